#!/bin/sh
# Packs the programs and libraries of a CUDA build for a machine that has a GPU and a CUDA 13 runtime but
# neither Rust nor a network. Run it here after
#
#   eval "$(tools/cuda-toolchain.sh FOLDER)"
#   CUDAARCHS=90-real cargo build --release -p gemma4-examples -p gemma4-tests --features gemma4-examples/cuda,gemma4-examples/dynamic-backends
#
# and there: unpack beside the repository's models/ and tests/ folders and run gpu/check.sh.
set -eu
target=${1:?usage: gpu-pack.sh TARGET_FOLDER ARCHIVE.tar.xz}
archive=${2:?usage: gpu-pack.sh TARGET_FOLDER ARCHIVE.tar.xz}
here=$(cd "$(dirname "$0")" && pwd)
out=$(find "$target/release/build" -path '*gemma4-ggml-sys-*/out/backends/libggml-cuda.so' | head -n 1)
[ -n "$out" ] || { echo "no libggml-cuda.so below $target: build with the features cuda,dynamic-backends" >&2; exit 1; }
out=$(dirname "$(dirname "$out")")
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir "$stage/gpu"
cp "$here/gpu-check.sh" "$stage/gpu/check.sh"
for program in generate bench golden; do
    cp "$target/release/$program" "$stage/gpu/"
done
# ggml looks for loadable backends beside the program.
cp "$out"/backends/libggml-*.so "$stage/gpu/"
for lib in ggml ggml-base; do
    cp -L "$out/lib/lib$lib.so.0" "$stage/gpu/"
done
strip --strip-unneeded "$stage"/gpu/*.so* "$stage/gpu/generate" "$stage/gpu/bench" "$stage/gpu/golden"
tar -C "$stage" -cf - gpu | xz -6 -T0 > "$archive"
ls -l "$archive" >&2
