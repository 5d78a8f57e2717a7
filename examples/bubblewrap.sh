#!/bin/sh
# A network for a sandbox of bubblewrap: bwrap says which process is the sandbox, waits until its network is there, and
# only then starts the command.
#
#     examples/bubblewrap.sh [COMMAND [ARG...]]      (default: shows the interfaces)
set -eu

[ $# -gt 0 ] || set -- cat /proc/net/dev

work=$(mktemp -d)
mkfifo "$work/info" "$work/go"
sandbox='' pid=''
# What waits at the block-fd does not end with bwrap.
leave() {
    [ -z "$sandbox" ] || kill "$sandbox" $pid 2>/dev/null || true
    rm -r "$work"
}
trap leave EXIT
trap 'exit 1' HUP INT TERM

# bwrap shows its sandbox the host's files as it is told to: resolv.conf is to name the network's DNS address.
echo 'nameserver 10.0.2.3' > "$work/resolv.conf"

# Opened for reading and writing, since bwrap is to start before anybody writes.
bwrap --unshare-user --unshare-net --die-with-parent --info-fd 3 --block-fd 4 \
    --ro-bind / / --dev /dev --proc /proc --ro-bind "$work/resolv.conf" "$(realpath /etc/resolv.conf)" \
    -- "$@" 3> "$work/info" 4<> "$work/go" &
sandbox=$!

# To its end, or bwrap would find nobody to write to.
pid=$(sed -n 's/.*"child-pid": *\([0-9]*\).*/\1/p' "$work/info")
# bwrap sets up lo first, and then who the user is: before that it is too early for others.
until grep -q . "/proc/$pid/gid_map" 2>/dev/null; do
    kill -0 "$sandbox" 2>/dev/null || exit 1
    sleep 0.05
done
"${TAPLINE:-tapline}" attach --detach "$pid" || exit 1
echo > "$work/go"
status=0
wait "$sandbox" || status=$?
sandbox=''
exit "$status"
