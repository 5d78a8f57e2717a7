#!/usr/bin/env bash
# The unit tests under the address sanitizer (with its search for leaks): scripts/sanitize.sh [FILTER...]; without a
# filter those of `sys`, which has all that is `unsafe`, and of the rooms that work on its memory: rings, batches of
# datagrams, descriptors in messages, pipes.
#
# Run it by hand after a change of src/sys, or of what hands it memory, and before a release: a build of its own takes
# some minutes, and CI has none to spare. Where Miri can be had (a nightly toolchain) it sees more, but nothing behind a
# system call, and nearly everything here is behind one.
#
# The build is in a directory of its own, which goes away afterwards; TAPLINE_SANITIZE_DIR keeps it, for the next time.
set -euo pipefail
cd "$(dirname "$0")/.."
triple=$(rustc -vV | sed -n 's/^host: //p')
if [ -n "${TAPLINE_SANITIZE_DIR:-}" ]; then
    directory=$TAPLINE_SANITIZE_DIR
else
    directory=$(mktemp -d)
    trap 'rm -rf "$directory"' EXIT
fi
filters=("$@")
if [ ${#filters[@]} -eq 0 ]; then
    filters=(sys:: datapath::port datapath::links host::udp host::ping publish::pipes publish::splice publish::inside
        control::wire gateway::tcp::flow gateway::tcp::device)
fi
# The sanitizers are taken from a stable compiler too, when it is asked like this.
export RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" CARGO_TERM_COLOR=never
# A test that forks and ends without unwinding leaves what it had; and the sanitizer's own thread for leaks cannot trace
# a process in another namespace. The harness itself is looked at.
export ASAN_OPTIONS="detect_stack_use_after_return=1:${ASAN_OPTIONS:-}"
cargo --config 'profile.dev.package.tapline.opt-level=0' test --quiet --lib --target "$triple" --target-dir "$directory" \
    -- "${filters[@]}"
