#!/bin/sh
# Packs programs for a machine that has a GPU, CUDA 13, cmake and ninja, but neither Rust nor a network:
#
#   cargo build --release --bins -p gemma4-examples -p gemma4-tests --features gemma4-examples/dynamic-backends
#   cargo build --release --example kernels -p gemma4-ggml-sys --features dynamic-backends
#   tools/gpu-pack.sh target gpu.tar.xz
#
# There: unpack it in a folder that has the repository's models/ and tests/, and run gpu/check.sh, which
# compiles the packed ggml for that machine's GPU (some minutes) and runs everything on it. With the feature
# gemma4-examples/cuda as well (see cuda-toolchain.sh) the archive holds the compiled library instead.
set -eu
usage="usage: gpu-pack.sh TARGET_FOLDER ARCHIVE.tar.xz"
target=${1:?$usage}
archive=${2:?$usage}
here=$(cd "$(dirname "$0")" && pwd)
backends=$(ls -td "$target"/release/build/gemma4-ggml-sys-*/out/backends 2>/dev/null | head -n 1)
[ -n "$backends" ] || { echo "no loadable backends below $target: build with dynamic-backends" >&2; exit 1; }
out=$(dirname "$backends")
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir "$stage/gpu" "$stage/gpu/source"
cp "$here/gpu-check.sh" "$stage/gpu/check.sh"
for program in generate bench perplexity golden acceptance steps synth; do
    cp "$target/release/$program" "$stage/gpu/"
    strip --strip-unneeded "$stage/gpu/$program"
done
if [ -e "$target/release/examples/kernels" ]; then
    cp "$target/release/examples/kernels" "$stage/gpu/"
    strip --strip-unneeded "$stage/gpu/kernels"
fi
if [ -e "$backends/libggml-cuda.so" ]; then
    # ggml looks for loadable backends beside the program.
    cp "$backends"/libggml-*.so "$stage/gpu/"
    for lib in ggml ggml-base; do
        cp -L "$out/lib/lib$lib.so.0" "$stage/gpu/"
    done
    strip --strip-unneeded "$stage"/gpu/*.so*
else
    cp -r "$out/ggml" "$stage/gpu/source/ggml"
    rm -rf "$stage"/gpu/source/ggml/src/ggml-vulkan "$stage"/gpu/source/ggml/src/ggml-metal
    cp -r "$here/../ggml-sys/cmake" "$here/../ggml-sys/shim" "$stage/gpu/source/"
fi
tar -C "$stage" -cf - gpu | xz -6 -T0 > "$archive"
ls -l "$archive" >&2
