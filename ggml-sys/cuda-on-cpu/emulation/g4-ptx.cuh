#pragma once

#include "common.cuh"

inline void g4_ldmatrix(uint32_t (&x)[4], const uint32_t address)       { load_matrices(x, address, false); }
inline void g4_ldmatrix_trans(uint32_t (&x)[4], const uint32_t address) { load_matrices(x, address, true); }
inline void g4_mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t b0, const uint32_t b1) { matrix_product(d, a, b0, b1); }
