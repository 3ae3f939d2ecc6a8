#pragma once

#include "common.cuh"

#define MMVQ_MAX_BATCH_SIZE 8

struct ggml_cuda_mm_fusion_args_host {
    const ggml_tensor * gate = nullptr;
    ggml_glu_op         glu_op;
};

// Upstream's own kernels are not here: what goes to them is the CPU backend's.
inline int  get_mmvq_mmid_max_batch(ggml_type, int) { return 0; }
inline void ggml_cuda_mul_mat_vec_q(ggml_backend_cuda_context &, const ggml_tensor *, const ggml_tensor *, const ggml_tensor *, ggml_tensor *,
        const ggml_cuda_mm_fusion_args_host *) {
    fail("a kernel of upstream's");
}
