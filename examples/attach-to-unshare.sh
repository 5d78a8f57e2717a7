#!/bin/sh
# A network for a namespace that another program made: unshare(1) here, a container runtime elsewhere.
#
#     examples/attach-to-unshare.sh
set -eu

work=$(mktemp -d)
mkfifo "$work/up" "$work/go"

# Inside: say that the namespace is there, wait for its network, look at it.
unshare --user --map-root-user --net sh -c '
    echo up > "$1/up"
    read -r _ < "$1/go"
    cat /proc/net/dev /proc/net/route
' sh "$work" &
inside=$!
trap 'kill "$inside" 2>/dev/null || :; rm -r "$work"' EXIT

# Outside: with --detach tapline returns when the network works, and ends by itself when the namespace does.
read -r _ < "$work/up"
"${TAPLINE:-tapline}" attach --detach "$inside"
echo go > "$work/go"
wait "$inside"
