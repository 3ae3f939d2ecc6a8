#!/bin/sh
# Builds llama.cpp for CUDA from the source that ggml-sys takes its ggml from, without our patches, and peer_bench against
# it. For one kind of GPU, and with the kernels alone that a Gemma 4 of these types needs (trim.py): minutes, not an hour.
#
#   eval "$(tools/cuda-toolchain.sh ~/.cache/cuda-13.0)"        # CUDA 13, if there is none
#   bench/peer/gpu/build.sh TARGET/release/build/gemma4-ggml-sys-*/out/upstream/llama-cpp-sys-2-*/llama.cpp OUT 90
#   LD_LIBRARY_PATH=OUT OUT/peer_bench MODEL.gguf kv=q8_0,ub=2048,max=131072,pp=2048/8192,dec=0/32768/131072,ver=4096
set -eu
usage="usage: build.sh LLAMA_CPP_SOURCE OUT [ARCHITECTURE]"
source=$(cd "${1:?$usage}" && pwd)
out=${2:?$usage}
arch=${3:-90}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out/src" && out=$(cd "$out" && pwd)

cd "$source"
cp -r --parents CMakeLists.txt LICENSE cmake include src ggml/CMakeLists.txt ggml/cmake ggml/include \
    ggml/src/CMakeLists.txt ggml/src/ggml-cpu ggml/src/ggml-cuda "$out/src/"
cp ggml/src/*.c ggml/src/*.cpp ggml/src/*.h ggml/src/*.in "$out/src/ggml/src/"
sed -i 's|^add_subdirectory(vendor)|# &|' "$out/src/CMakeLists.txt"
(cd "$out/src/ggml/src/ggml-cuda/template-instances" && python3 "$here/trim.py")

cmake -S "$out/src" -B "$out/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_CUDA=ON \
    -DCMAKE_CUDA_ARCHITECTURES="$arch-real" -DGGML_CUDA_FA_ALL_QUANTS=OFF \
    -DGGML_CUDA_FA_QUANTS="q4_0-q4_0;q8_0-q8_0;f16-f16" -DGGML_CUDA_NCCL=OFF -DGGML_NATIVE=OFF -DGGML_AVX2=ON \
    -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF \
    -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF \
    -DCMAKE_SHARED_LINKER_FLAGS="-Wl,-z,lazy"
ninja -C "$out/build" llama ggml-cuda
g++ -O2 -std=c++17 -pthread -I"$out/src/include" -I"$out/src/ggml/include" "$here/peer_bench.cpp" -o "$out/peer_bench" \
    -L"$out/build/bin" -lllama -lggml -lggml-base -Wl,-rpath-link,"$out/build/bin" -Wl,--unresolved-symbols=ignore-all
for lib in ggml-cuda llama ggml ggml-base ggml-cpu; do
    cp -L "$out/build/bin/lib$lib.so" "$out/" && strip -S "$out/lib$lib.so" && ln -sf "lib$lib.so" "$out/lib$lib.so.0"
done
