#!/bin/sh
# Runs gemma4 on this machine's GPU: packed by gpu-pack.sh as gpu/check.sh. Run it in a folder that has
# the repository's models/ and tests/.
set -u
here=$(cd "$(dirname "$0")" && pwd)
libs=$here
for name in libcublas.so.13 libcudart.so.13 libcublasLt.so.13; do
    found=$(find / -name "$name" -not -path '/proc/*' 2>/dev/null | head -n 1)
    [ -n "$found" ] && libs=$libs:$(dirname "$found") || echo "warning: no $name on this machine" >&2
done
export LD_LIBRARY_PATH="$libs"
model=models/tiny-gemma4/tiny-gemma4-q8_0.gguf
failed=0
run() {
    echo "== $*"
    "$@" || { echo "FAILED: $*"; failed=1; }
}
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
run "$here/generate" --model "$model" -n 64
run "$here/generate" --model "$model" --device CPU -n 64
run "$here/golden" tests/data/golden
run "$here/golden" models/tiny-gemma4
run "$here/bench" --model "$model" --prompt 512,2048 --depth 0,2048 -n 128 --json gpu-bench.json
exit $failed
