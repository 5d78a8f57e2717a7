#!/bin/sh
# A web server on this machine's loopback, and a client with a network of its own that may reach it. Needs python3 and
# curl. Port 8000 must be free, or give another.
#
#     examples/fetch-from-host.sh [PORT]
set -eu

port=${1:-8000}
python3 -m http.server --bind 127.0.0.1 "$port" &
server=$!
trap 'kill "$server"' EXIT

# The gateway's address, and this name for it, lead to the host. curl tries again until the server listens.
"${TAPLINE:-tapline}" run --host-loopback -- \
    curl --silent --show-error --retry 10 --retry-connrefused --output /dev/null --write-out 'HTTP %{http_code}\n' \
    "http://host.tapline.internal:$port/"
