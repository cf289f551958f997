#!/bin/bash
# Everything on a GPU in one go: compile and check in parallel, then measure alone. Arguments go to the second half.
#   OUT=/some/directory benchmarks/gpu_all.sh --parts peaks,kernels,serve,peer
#   SLICES processes share the checks; TUNE=--tune compiles the other tilings there too.
set -u
here=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$here/src:$here/tests/engine:${PYTHONPATH:-}" PENSTOCK_COMPILED=0 PYTHONUNBUFFERED=1
export OUT=${OUT:-/tmp/penstock-gpu}
mkdir -p "$OUT"
cd "$here" || exit 1
slices=${SLICES:-10}
processes=()
for slice in $(seq 0 $((slices - 1))); do
    python3 benchmarks/gpu_engine.py --parts checks --check-part "$slice/$slices" ${TUNE:-} --out "" \
        >"/tmp/checks-$slice" 2>&1 &
    processes+=($!)
done
timeout 150 python3 -m pytest -p no:cacheprovider -q tests/engine/test_cuda.py tests/engine/test_triton_kernels.py \
    >"$OUT/tests.txt" 2>&1 &
processes+=($!)
wait "${processes[@]}"
cat /tmp/checks-* | grep -v '^{' >"$OUT/checks.txt"
grep -v -e '^== ' -e '^    *[0-9.]* s$' "$OUT/checks.txt"
tail -n 12 "$OUT/tests.txt"
date +%T
[ $# -gt 0 ] || set -- --parts peaks,kernels,latency,serve,peer --dtype bfloat16,fp8
python3 benchmarks/gpu_engine.py --out "$OUT" "$@" 2>&1 | tee "$OUT/bench.txt" | grep -v '^{'
date +%T
