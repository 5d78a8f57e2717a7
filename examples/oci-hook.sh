#!/bin/sh
# A container of runc or crun, without Podman and without a daemon: a hook in its config.json gives it a network. The
# container serves a page, which is published on the host's loopback by an annotation. Needs Debian's busybox-static and
# python3. Port 8080 must be free, or give another.
#
#     examples/oci-hook.sh [runc|crun [PORT]]
set -eu

runtime=${1:-runc} port=${2:-8080}
here=$(dirname "$(realpath "$0")")
tapline=$(command -v "${TAPLINE:-tapline}")

# crun shows a container's namespaces, before its program runs, only to those with capabilities over them: so it is run
# by the root of a user namespace, as Podman runs it. It knows the second version of cgroups only, and not beside the first.
if [ "$runtime" = crun ] && [ -z "${OCI_HOOK_INSIDE:-}" ]; then
    OCI_HOOK_INSIDE=yes exec unshare --user --map-root-user --mount "$0" "$@"
fi
if [ "$runtime" = crun ] && [ -d /sys/fs/cgroup/unified ]; then
    mount --bind /sys/fs/cgroup/unified /sys/fs/cgroup
fi

work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
mkdir "$work/bundle"
mkfifo "$work/leash"

# The program ends when its standard input does.
"$here/oci/make_bundle.py" "$work/bundle" "$runtime" "$tapline" "tapline.publish=127.0.0.1:$port:80" -- \
    sh -c 'httpd -p 80 -h /www && cat'
mkdir "$work/bundle/rootfs/www"
echo "hello from a container" > "$work/bundle/rootfs/www/index.html"
"$runtime" --root "$work/state" run --bundle "$work/bundle" hooked < "$work/leash" &
container=$!
exec 3> "$work/leash"

until busybox wget -q -O - "http://127.0.0.1:$port/" 2>/dev/null; do
    kill -0 "$container" 2>/dev/null || exit 1
    sleep 0.1
done
"$tapline" ps
exec 3>&-
wait "$container"
