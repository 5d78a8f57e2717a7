#!/bin/sh
# Run a test suite where nothing can be reached but its own loopback: a test that needs the internet, or a server that
# happens to run on this machine, fails here and not only on somebody else's machine.
#
#     examples/offline-tests.sh [COMMAND [ARG...]]      (default: make test)
set -eu

[ $# -gt 0 ] || set -- make test
exec "${TAPLINE:-tapline}" run --net none -- "$@"
