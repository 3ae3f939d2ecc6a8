// The tiles of ggml's mma.cuh that the kernels use.
#pragma once

#include "common.cuh"

namespace ggml_cuda_mma {

template <int I, int J, typename T> struct tile {
    static constexpr int ne = I*J/32;
    T x[ne] = {};
};

inline void mma(tile<16, 8, float> & D, const tile<16, 8, half2> & A, const tile<8, 8, half2> & B) {
    product_of_halves(D.x, (const uint32_t *) A.x, ((const uint32_t *) B.x)[0], ((const uint32_t *) B.x)[1]);
}

} // namespace ggml_cuda_mma
