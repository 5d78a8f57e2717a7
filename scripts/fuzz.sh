#!/usr/bin/env bash
# Run the fuzz targets: scripts/fuzz.sh SECONDS [TARGET...]; each target SECONDS long, all targets without a name.
# One line for each; exit status 1 when one found something (the input is then in fuzz/artifacts).
# With 0 seconds the committed corpus is run once and nothing new is looked for: the same result every time.
#
# The targets are built without a sanitizer: what they look for are panics, overflows, broken promises and work
# without an end; `unsafe` is in src/sys alone, where nearly nothing reads bytes. A build with the address sanitizer
# takes far longer and runs at a fraction of the speed.
#
# The same seed each time; to look for new things, TAPLINE_FUZZ_SEED=0 takes another each time. (Where a run gets with
# a seed still differs: hash tables and addresses are random.) Each target has one core, and as many run at a time as
# there are cores, or TAPLINE_FUZZ_JOBS.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:?usage: scripts/fuzz.sh SECONDS [TARGET...]}
shift
at_once=${TAPLINE_FUZZ_JOBS:-$(nproc)}
export CARGO_TERM_COLOR=never
# The coverage flags are taken from a stable compiler too, when it is asked like this.
export RUSTC_BOOTSTRAP=1
if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "installing cargo-fuzz" >&2
    cargo install --quiet --locked cargo-fuzz
fi
command -v c++ >/dev/null || { echo "fuzz.sh: libFuzzer is C++ and needs a compiler: apt-get install g++" >&2; exit 2; }

triple=$(rustc -vV | sed -n 's/^host: //p')
cargo fuzz build --sanitizer none --codegen-units 16 --target "$triple"
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    mapfile -t targets < <(cargo fuzz list)
fi

work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT

# One target; its line goes to standard output, what it found to standard error.
run() {
    local target=$1 log=$work/$1.log runs coverage
    # New finds go into a directory of their own: the committed seeds stay as they are.
    mkdir -p "$work/$target" "fuzz/corpus/$target" "fuzz/artifacts/$target"
    local bound=(-max_total_time="$seconds")
    [ "$seconds" -gt 0 ] || bound=(-runs=0)
    if "fuzz/target/$triple/release/$target" "$work/$target" "fuzz/corpus/$target" \
        -seed="${TAPLINE_FUZZ_SEED:-1}" -artifact_prefix="fuzz/artifacts/$target/" "${bound[@]}" -max_len=8192 -timeout=20 \
        -rss_limit_mb=2048 -print_final_stats=1 -verbosity=1 >"$log" 2>&1; then
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        coverage=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
        if [ "${runs:-0}" -eq 0 ]; then
            printf '%-12s did not run\n' "$target"
            cat "$log" >&2
            return 1
        fi
        printf '%-12s ok, %s executions, %s edges\n' "$target" "$runs" "$coverage"
    else
        printf '%-12s FAILED\n' "$target"
        grep -vE '^#[0-9]+' "$log" | tail -n 60 >&2
        return 1
    fi
}

failed=0
running=0
for target in "${targets[@]}"; do
    if [ "$running" -ge "$at_once" ]; then
        wait -n || failed=1
        running=$((running - 1))
    fi
    run "$target" &
    running=$((running + 1))
done
while [ "$running" -gt 0 ]; do
    wait -n || failed=1
    running=$((running - 1))
done
exit "$failed"
