#pragma once

#include "common.cuh"

inline unsigned ggml_cuda_cvta_generic_to_shared(void * p) { return (unsigned) ((char *) p - smem); }
template <int> void cp_async_cg_16(const unsigned to, const void * from) { copy_later(to, from, 16, 16); }
inline void cp_async_wait_all() { copies_end_group(); copies_wait(0); }
