#!/bin/sh
# Checks models that are spread over devices on a machine that has none but its processor: two servers of ggml's RPC backend
# are two devices with memory of their own. Needs programs with loadable backends, gcc and g++:
#
#   cargo build --release --bins -p gemma4-examples -p gemma4-tests --features gemma4-examples/dynamic-backends
#   tools/two-devices/run.sh target
#
# Run it in the repository's root.
set -eu
target=${1:?usage: run.sh TARGET_FOLDER}
here=$(cd "$(dirname "$0")" && pwd)
backends=$(ls -td "$target"/release/build/gemma4-ggml-sys-*/out/backends 2>/dev/null | head -n 1)
[ -n "$backends" ] || { echo "no loadable backends below $target: build with dynamic-backends" >&2; exit 1; }
out=$(dirname "$backends")
rpc=$(ls -d "$out"/upstream/*/llama.cpp/ggml/src/ggml-rpc)
work=$(mktemp -d)
servers=
trap 'for s in $servers; do kill "$s" 2>/dev/null; done; rm -rf "$work"' EXIT

cp "$target/release/golden" "$target/release/generate" "$out"/backends/libggml-cpu-*.so "$work/"
for lib in ggml ggml-base; do cp -L "$out/lib/lib$lib.so.0" "$work/"; done
g++ -O2 -std=c++17 -fPIC -shared -DGGML_BACKEND_DL -DGGML_BACKEND_SHARED -DGGML_BACKEND_BUILD -DGGML_SHARED \
    -I"$out/ggml/include" -I"$out/ggml/src" -I"$rpc" "$rpc/ggml-rpc.cpp" "$rpc/transport.cpp" -o "$work/libggml-rpc.so" -L"$out/lib" -lggml-base
gcc -O2 -I"$out/ggml/include" "$here/server.c" -o "$work/server" -L"$out/lib" -L"$work" -lggml-rpc -lggml -lggml-base "-Wl,-rpath-link,$out/lib"
gcc -O2 -shared -fPIC -I"$out/ggml/include" "$here/preload.c" -o "$work/preload.so" -ldl
export LD_LIBRARY_PATH="$work" RPC_SERVERS=127.0.0.1:50151,127.0.0.1:50152

for port in 50151 50152; do
    "$work/server" "127.0.0.1:$port" "$work" >/dev/null 2>&1 &
    servers="$servers $!"
done
sleep 1

failed=0
check() {
    echo "== $*"
    env LD_PRELOAD="$work/preload.so" "$@" "$work/golden" tests/data/golden >"$work/log" 2>&1 || { cat "$work/log"; failed=1; }
}
check GEMMA4_DEVICES=RPC0,RPC1
check GEMMA4_DEVICES=RPC1,RPC0 GEMMA4_GPU_LAYERS=3
check GEMMA4_DEVICES=RPC0 GEMMA4_GPU_LAYERS=2
check GEMMA4_DEVICES=RPC0,RPC1 GEMMA4_CPU_MOE=1

models=models/tiny-gemma4
text() {
    LD_PRELOAD="$work/preload.so" "$work/generate" -m $models/tiny-gemma4-q8_0.gguf -n 64 --temperature 0 --no-echo "$@" "def main():" 2>/dev/null
}
text --device CPU >"$work/expected"
for where in "RPC0" "RPC0,RPC1" "RPC1,RPC0 --shares 1,3" "RPC0,RPC1 --n-gpu-layers 8"; do
    for drafter in "" "--drafter $models/tiny-gemma4-mtp-q8_0.gguf" "--drafter $models/tiny-gemma4-dflash-q8_0.gguf"; do
        echo "== generate --device $where $drafter"
        # shellcheck disable=SC2086 # words
        text --device $where $drafter >"$work/text" && cmp "$work/expected" "$work/text" || failed=1
    done
done
if [ "$failed" -eq 0 ]; then echo "two devices: all passed"; else echo "two devices: FAILED"; fi
exit "$failed"
