#!/bin/sh
# Checks the NEON code of TQ3_0 beside its plain form, compiled for ARM and run in an emulator. On Debian:
#
#   apt-get install qemu-user g++-aarch64-linux-gnu
#   cargo build -p gemma4-ggml-sys
#   tools/neon-check.sh [TARGET_FOLDER]
#
# On an ARM machine: CXX=c++ CC=cc QEMU= tools/neon-check.sh
set -eu
target=${1:-target}
here=$(cd "$(dirname "$0")" && pwd)
ggml=$(ls -td "$target"/*/build/gemma4-ggml-sys-*/out/ggml 2>/dev/null | head -n 1)
[ -n "$ggml" ] || { echo "no patched ggml below $target: cargo build -p gemma4-ggml-sys" >&2; exit 1; }
cc=${CC:-aarch64-linux-gnu-gcc}
cxx=${CXX:-aarch64-linux-gnu-g++}
qemu=${QEMU-qemu-aarch64}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
# The second has an instruction for sums of products; the first does them in steps.
for arch in armv8-a armv8.2-a+dotprod; do
    flags="-O2 -march=$arch -I$ggml/src -I$ggml/src/ggml-cpu -I$ggml/include"
    $cxx -std=c++17 $flags -c "$here/neon-check.cpp" -o "$out/check.o"
    $cxx -std=c++17 $flags -c "$ggml/src/ggml-cpu/g4-tq3.cpp" -o "$out/neon.o"
    $cc -std=c11 $flags -c "$ggml/src/ggml-tq3.c" -o "$out/plain.o"
    $cxx -static "$out/check.o" "$out/neon.o" "$out/plain.o" -o "$out/check"
    $qemu "$out/check"
done
