#pragma once

#include "common.cuh"

// Rows as q8_1, with zeros up to ne0 values.
inline void quantize_row_q8_1_cuda(const float * x, const int32_t *, void * y, ggml_type, const int64_t ne00, const int64_t s01, const int64_t s02,
        const int64_t s03, const int64_t ne0, const int64_t ne1, const int64_t ne2, const int64_t ne3, cudaStream_t) {
    block_q8_1 * out = (block_q8_1 *) y;
    for (int64_t i = 0; i < ne1*ne2*ne3; ++i) {
        const float * row = x + i % ne1*s01 + i/ne1 % ne2*s02 + i/ne1/ne2*s03;
        for (int64_t b = 0; b < ne0; b += QK8_1, ++out) {
            const auto value = [&](const int64_t j) { return b + j < ne00 ? row[b + j] : 0.0f; };
            float amax = 0.0f;
            float sum  = 0.0f;
            for (int j = 0; j < QK8_1; ++j) {
                amax = fmaxf(amax, fabsf(value(j)));
                sum += value(j);
            }
            const float d = amax/127.0f;
            for (int j = 0; j < QK8_1; ++j) {
                out->qs[j] = amax == 0.0f ? 0 : (int8_t) roundf(value(j)/d);
            }
            out->ds = make_half2(d, sum);
        }
    }
}
