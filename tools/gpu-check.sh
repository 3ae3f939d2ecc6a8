#!/bin/sh
# Runs gemma4 on this machine's GPU: packed by gpu-pack.sh as gpu/check.sh. Run it in a folder that has
# the repository's models/ and tests/. Results also go to the folder named as the first argument.
set -u
here=$(cd "$(dirname "$0")" && pwd)
results=${1:-.}
failed=0

if [ ! -e "$here/libggml-cuda.so" ]; then
    echo "== compiling ggml for this machine"
    archs=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | sort -u | tr -d . | sed 's/$/-real/' | paste -sd ';')
    # The options are those of ggml-sys/build/compile.rs.
    cmake -S "$here/source/cmake" -B "$here/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
        -DGGML_SOURCE_DIR="$here/source/ggml" -DGGML_SHIM_DIR="$here/source/shim" \
        -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$here" -DCMAKE_RUNTIME_OUTPUT_DIRECTORY="$here" \
        -DCMAKE_CUDA_ARCHITECTURES="$archs" -DBUILD_SHARED_LIBS=ON -DGGML_BACKEND_DL=ON -DGGML_NATIVE=OFF \
        -DGGML_CPU_ALL_VARIANTS=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON \
        -DGGML_CUDA=ON -DGGML_CUDA_GRAPHS=ON -DGGML_CUDA_NCCL=OFF -DGGML_LLAMAFILE=ON -DGGML_OPENMP=OFF \
        -DGGML_ALL_WARNINGS=OFF -DGIT_EXE=OFF >"$here/build.log" 2>&1 &&
        ninja -C "$here/build" gemma4_ggml_all >>"$here/build.log" 2>&1 ||
        { tail -n 40 "$here/build.log"; exit 1; }
fi

libs=$here
for name in libcublas.so.13 libcudart.so.13; do
    found=$(find / -name "$name" -not -path '/proc/*' 2>/dev/null | head -n 1)
    if [ -n "$found" ]; then libs=$libs:$(dirname "$found"); else echo "warning: no $name here" >&2; fi
done
export LD_LIBRARY_PATH="$libs"

run() {
    echo "== $*"
    "$@" || { echo "FAILED: $*"; failed=1; }
}
model=models/tiny-gemma4/tiny-gemma4-q8_0.gguf
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv
if [ -e "$here/kernels" ]; then
    # Neither is about time, so both at once.
    sanitizer=
    if command -v compute-sanitizer >/dev/null; then
        compute-sanitizer --report-api-errors no --error-exitcode 1 "$here/kernels" --short --quiet \
            >"$results/gpu-sanitizer.txt" 2>&1 &
        sanitizer=$!
    else
        echo "warning: no compute-sanitizer here" >&2
    fi
    run "$here/kernels" --quiet
    if [ -n "$sanitizer" ]; then
        wait "$sanitizer" || { echo "FAILED: compute-sanitizer"; failed=1; }
        tail -n 2 "$results/gpu-sanitizer.txt"
    fi
    # As on a card with 99 KB of shared memory for a block.
    run env GGML_CUDA_G4_SHARED=101376 "$here/kernels" --short --quiet
    timeout 180 "$here/kernels" --bench >"$results/gpu-kernels.txt" 2>/dev/null || echo "warning: no times of the kernels" >&2
fi
run "$here/generate" --model "$model" --device CUDA0 -n 64
run "$here/golden" tests/data/golden
run "$here/golden" models/tiny-gemma4
# Layers and experts in main memory, and layers on a second card where there is one.
run env GEMMA4_GPU_LAYERS=2 "$here/golden" tests/data/golden
run env GEMMA4_CPU_MOE=1 "$here/golden" tests/data/golden
if nvidia-smi -L | grep -q '^GPU 1'; then
    run env GEMMA4_DEVICES=CUDA0,CUDA1 "$here/golden" tests/data/golden
    run env GEMMA4_DEVICES=CUDA1,CUDA0 GEMMA4_GPU_LAYERS=3 "$here/golden" tests/data/golden
    run "$here/generate" --model "$model" --device CUDA0,CUDA1 --shares 1,3 -n 64 --drafter models/tiny-gemma4/tiny-gemma4-mtp-q8_0.gguf
fi
run "$here/steps" "$model"
run "$here/perplexity" --model "$model" --windows 12 models/tiny-gemma4/val-code.txt
run "$here/perplexity" --model "$model" --windows 12 --kv q8_0 models/tiny-gemma4/val-code.txt
run "$here/perplexity" --model "$model" --windows 12 --kv q4_0 models/tiny-gemma4/val-code.txt
run "$here/perplexity" --model "$model" --windows 12 --kv tq3_0 models/tiny-gemma4/val-code.txt
run "$here/acceptance" 8 f16,q8_0,tq3_0
run "$here/bench" --model "$model" --device CUDA0 --plan --kvs "f16 q8_0 q4_0 tq3_0 iq4_nl q5_1/q4_0" --context 4096
run "$here/bench" --model "$model" --device CUDA0 --prompt 512,2048 --depth 0,2048 -n 128 \
    --drafter models/tiny-gemma4/tiny-gemma4-mtp-q8_0.gguf,models/tiny-gemma4/tiny-gemma4-dflash-q8_0.gguf,ngram --json "$results/gpu-bench.json"
if [ "$failed" -eq 0 ]; then echo "gpu check: all passed"; else echo "gpu check: FAILED"; fi
exit "$failed"
