#pragma once

#include "common.cuh"

template <typename to, typename from> to ggml_cuda_cast(const from x) {
    if constexpr (std::is_same_v<to, from>) {
        return x;
    } else if constexpr (std::is_same_v<to, half>) {
        return __float2half_rn(x);
    } else if constexpr (std::is_same_v<to, nv_bfloat16>) {
        return __float2bfloat16(x);
    } else if constexpr (std::is_same_v<from, half>) {
        return __half2float(x);
    } else {
        return (to) x;
    }
}
