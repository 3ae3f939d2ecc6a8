#pragma once

#include "common.cuh"

inline bool ggml_cuda_should_use_mmq(ggml_type, int, int64_t, int64_t) { return false; }
