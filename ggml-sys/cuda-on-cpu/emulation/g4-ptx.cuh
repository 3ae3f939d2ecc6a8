#pragma once

#include "common.cuh"

inline uint64_t g4_evict_first()                                                                    { return 0; }
inline void g4_copy_16(const uint32_t to, const char * from, uint64_t)                              { copy_later(to, from, 16, 16); }
inline void g4_copy_16_of(const uint32_t to, const char * from, const int size, uint64_t)           { copy_later(to, from, 16, size); }
inline void g4_copy_4(const uint32_t to, const void * from, const bool is_there)                    { copy_later(to, from, 4, is_there ? 4 : 0); }
inline void g4_barrier(const int which, const int threads)                                          { some_together(which, threads); }

inline void g4_mma_s8(int (&d)[4], const uint32_t (&a)[4], const int2 b, const int c)               { product_of_codes(d, a, 4, true,  b.x, b.y, c); }
inline void g4_mma_u8(int (&d)[4], const uint32_t (&a)[4], const int2 b, const int c)               { product_of_codes(d, a, 4, false, b.x, b.y, c); }
inline void g4_mma_s8_16(int (&d)[4], const uint32_t a0, const uint32_t a1, const int b) {
    const uint32_t a[2] = {a0, a1};
    product_of_codes(d, a, 2, true, b, 0, 0);
}
inline void g4_mma_tf32(float (&d)[4], const float (&a)[4], const float b0, const float b1)         { product_of_floats(d, a, b0, b1); }
inline void g4_mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t b0, const uint32_t b1) { product_of_halves(d, a, b0, b1); }

inline void g4_ldmatrix(uint32_t (&x)[4], const uint32_t address)                                   { load_matrices(x, address, false); }
inline void g4_ldmatrix_trans(uint32_t (&x)[4], const uint32_t address)                             { load_matrices(x, address, true); }
