// What the kernels' sources take from CUDA C++ and from ggml's own common.cuh, on the CPU.
#pragma once

#include "threads.h"

#include <cuda_fp16.h>

#include "ggml-backend-impl.h"
#include "ggml-g4.h"
#include "ggml-impl.h"

#include <algorithm>
#include <atomic>
#include <climits>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__      thread_local
#define __forceinline__ inline
#define __align__(n)    __attribute__((aligned(n)))
#define __grid_constant__
#define __launch_bounds__(...)

#define FLASH_ATTN_AVAILABLE
#define TURING_MMA_AVAILABLE
#define AMPERE_MMA_AVAILABLE
#define CP_ASYNC_AVAILABLE
#define NO_DEVICE_CODE cuda_on_cpu::fail("no code for this device")
#define CUDA_CHECK(call)   ((void) (call))
#define CUBLAS_CHECK(call) ((void) (call))
#define WARP_SIZE 32
#define MATRIX_ROW_PADDING 512

namespace cuda_on_cpu {

#define GGML_COMMON_DECL_CUDA
#define GGML_COMMON_IMPL_CUDA
#include "ggml-common.h"

// ---- CUDA C++ ----

template <typename A, typename B> std::common_type_t<A, B> min(const A a, const B b) { return b < a ? b : a; }
template <typename A, typename B> std::common_type_t<A, B> max(const A a, const B b) { return a < b ? b : a; }

inline int2   make_int2(int x, int y)                            { return {x, y}; }
inline uint2  make_uint2(unsigned x, unsigned y)                 { return {x, y}; }
inline uint3  make_uint3(unsigned x, unsigned y, unsigned z)     { return {x, y, z}; }
inline float2 make_float2(float x, float y)                      { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w)    { return {x, y, z, w}; }
inline int    __popc(const unsigned x)                           { return __builtin_popcount(x); }

// With one rounding, whatever the compiler makes of the rest.
inline float    __fadd_rn(const float x, const float y)          { return x + y; }
inline float    __fmul_rn(const float x, const float y)          { return x*y; }
inline float    __fdiv_rn(const float x, const float y)          { return x/y; }
inline uint32_t __float_as_uint(const float x)                   { uint32_t b; std::memcpy(&b, &x, 4); return b; }

inline uint32_t __byte_perm(const uint32_t a, const uint32_t b, const uint32_t selector) {
    const uint64_t all = (uint64_t) b << 32 | a;
    uint32_t out = 0;
    for (int i = 0; i < 4; ++i) {
        const uint32_t s    = selector >> 4*i;
        const uint32_t byte = all >> 8*(s & 7) & 0xFF;
        out |= (s & 8 ? (byte & 0x80 ? 0xFF : 0) : byte) << 8*i;
    }
    return out;
}

inline void __syncthreads()                  { block_together(false); }
inline int  __syncthreads_or(const int mine) { return block_together(mine != 0); }

inline void __syncwarp(unsigned = 0xFFFFFFFF) {
    int nothing = 0;
    warp_together(nothing, [](int **) {});
}

template <typename T> T __shfl_xor_sync(unsigned, const T mine, const int offset, const int width = warp_lanes) {
    struct lane { T have, get; int from; } l = {mine, mine, 0};
    const int at = me % warp_lanes;
    l.from = ((at % width) ^ offset) < width ? (at/width*width) | ((at % width) ^ offset) : at;
    warp_together(l, [](lane ** lanes) {
        for (unsigned i = 0; i < warp_lanes; ++i) {
            lanes[i]->get = lanes[lanes[i]->from]->have;
        }
    });
    return l.get;
}

inline unsigned __ballot_sync(unsigned, const bool mine) {
    struct lane { bool have; unsigned all; } l = {mine, 0};
    warp_together(l, [](lane ** lanes) {
        unsigned all = 0;
        for (unsigned i = 0; i < warp_lanes; ++i) {
            all |= (unsigned) lanes[i]->have << i;
        }
        for (unsigned i = 0; i < warp_lanes; ++i) {
            lanes[i]->all = all;
        }
    });
    return l.all;
}

inline bool __any_sync(const unsigned mask, const bool mine) { return __ballot_sync(mask, mine) != 0; }

// ---- the runtime ----

using cudaStream_t = void *;
using cudaGraph_t  = void *;
enum cudaError_t { cudaSuccess };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void * to, const int value, const size_t size, cudaStream_t) {
    std::memset(to, value, size);
    return cudaSuccess;
}
template <typename F> cudaError_t cudaFuncSetAttribute(F, cudaFuncAttribute, const size_t size) {
    return size <= CUDA_ON_CPU_SHARED ? cudaSuccess : (fail("more shared memory than there is"), cudaSuccess);
}
template <typename F> cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int * n, F, const int threads, const size_t shared) {
    *n = std::min<size_t>(2048/threads, CUDA_ON_CPU_SHARED/(shared + 1024));
    return cudaSuccess;
}

enum cublasOperation_t   { CUBLAS_OP_N, CUBLAS_OP_T };
enum cudaDataType        { CUDA_R_32F };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F_FAST_TF32 };
enum cublasGemmAlgo_t    { CUBLAS_GEMM_DEFAULT_TENSOR_OP };
using cublasHandle_t = void *;
inline int cublasSetStream(cublasHandle_t, cudaStream_t) { return 0; }
// C = A^T*B, columns one after the other.
int cublasGemmEx(cublasHandle_t, cublasOperation_t, cublasOperation_t, int m, int n, int k, const void * alpha, const void * A, cudaDataType, int lda,
    const void * B, cudaDataType, int ldb, const void * beta, void * C, cudaDataType, int ldc, cublasComputeType_t, cublasGemmAlgo_t);

// ---- ggml's common.cuh ----

struct ggml_cuda_device_info {
    struct {
        int    cc    = 900;
        int    nsm   = 6;
        size_t smpbo = CUDA_ON_CPU_SHARED - 1024;
    } devices[1];
};
inline const ggml_cuda_device_info & ggml_cuda_info() {
    static const ggml_cuda_device_info info;
    return info;
}
inline int  ggml_cuda_get_device()          { return 0; }
inline bool ampere_mma_available(int)       { return true; }
inline void ggml_cuda_pdl_sync()            {}

struct ggml_cuda_pool {};

template <typename T> struct ggml_cuda_pool_alloc {
    T *                     ptr = nullptr;
    std::unique_ptr<char[]> memory;

    explicit ggml_cuda_pool_alloc(ggml_cuda_pool &) {}
    // NaNs in it: who reads what nobody wrote is found out.
    T * alloc(const size_t n) {
        memory.reset(new char[n*sizeof(T) + 128]);
        std::memset(memory.get(), 0xFF, n*sizeof(T) + 128);
        ptr = (T *) (((uintptr_t) memory.get() + 127) & ~(uintptr_t) 127);
        return ptr;
    }
};

struct ggml_backend_cuda_context {
    ggml_cuda_pool memory;

    ggml_cuda_pool & pool()          { return memory; }
    cudaStream_t     stream()        { return nullptr; }
    cublasHandle_t   cublas_handle() { return nullptr; }
};

struct ggml_cuda_kernel_launch_params {
    dim3   grid, threads;
    size_t shared;

    ggml_cuda_kernel_launch_params(const dim3 grid, const dim3 threads, const size_t shared, cudaStream_t) :
        grid(grid), threads(threads), shared(shared) {}
};

template <typename F, typename... A> void ggml_cuda_kernel_launch(F kernel, const ggml_cuda_kernel_launch_params & params, A... arguments) {
    launch(params.grid, params.threads, params.shared, [=]() { kernel(arguments...); });
}

inline uint3 init_fastdiv_values(const uint64_t d)                    { return {0, 0, (unsigned) d}; }
inline uint32_t fastdiv(const uint32_t n, const uint3 d)              { return n/d.z; }
inline uint2 fast_div_modulo(const uint32_t n, const uint3 d)         { return {n/d.z, n % d.z}; }

template <int width> float warp_reduce_max(float x) {
    for (int offset = width/2; offset > 0; offset >>= 1) {
        x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFF, x, offset, width));
    }
    return x;
}
template <int width> float warp_reduce_sum(float x) {
    for (int offset = width/2; offset > 0; offset >>= 1) {
        x += __shfl_xor_sync(0xFFFFFFFF, x, offset, width);
    }
    return x;
}

// ---- the matrix unit ----

// D += A*B for m16n8k16: the registers of a lane.
void matrix_product(float * d, const uint32_t * a, const uint32_t b0, const uint32_t b1);
// Four matrices of 8 x 8 F16.
void load_matrices(uint32_t * x, uint32_t address, bool transposed);

} // namespace cuda_on_cpu
