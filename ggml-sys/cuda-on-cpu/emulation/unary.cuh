#pragma once

#include "common.cuh"

inline float ggml_cuda_op_gelu_single(const float x) {
    return 0.5f*x*(1.0f + tanhf(0.79788456080286535587989211986876f*x*(1.0f + 0.044715f*x*x)));
}
