#!/bin/sh
# Installs CUDA 13.0's compiler and libraries into a folder, from Python wheels: enough to build the
# `cuda` feature on a machine without a GPU or a CUDA installation. Needs python3 with pip, and gcc.
#
#   eval "$(tools/cuda-toolchain.sh ~/.cache/cuda-13.0)"
#   CUDAARCHS=90-real cargo build --release --features cuda,dynamic-backends
#
# Prints the variables that the build needs; all else goes to stderr.
set -eu
dir=${1:?usage: cuda-toolchain.sh FOLDER}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
cuda=$dir/nvidia/cu13

if [ ! -x "$cuda/bin/nvcc" ] || [ ! -e "$cuda/lib/stubs/libcuda.so" ]; then
    echo "installing CUDA 13.0 into $dir (515 MB to download)" >&2
    python3 -m pip install --quiet --no-deps --target "$dir" \
        nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
        nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 nvidia-cublas==13.1.0.3 >&2
    # The wheels lack the names that CMake and the linker look for.
    ln -sfn lib "$cuda/lib64"
    for lib in cudart cublas cublasLt; do
        ln -sfn "lib$lib.so.13" "$cuda/lib/lib$lib.so"
    done
    # The driver's library comes with the driver. Linking needs its names only; the stub must define
    # them, or the linker drops it and loading fails on the real machine.
    mkdir -p "$cuda/lib/stubs"
    echo '#include <cuda.h>' | gcc -E -I"$cuda/include" - | grep -oE '\bcu[A-Z][A-Za-z0-9_]*[ ]*\(' |
        tr -d ' (' | sort -u | sed 's/.*/int &(void){return 999;}/' |
        gcc -shared -fPIC -x c - -Wl,-soname,libcuda.so.1 -o "$cuda/lib/stubs/libcuda.so"
fi
echo "export CUDAToolkit_ROOT='$cuda' CUDACXX='$cuda/bin/nvcc'"
