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
#include <mutex>
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
#define GGML_CUDA_MAX_DEVICES 1
#define GGML_CUDA_CC_PASCAL 600
#define GGML_CUDA_CC_HOPPER 900
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
inline char4  make_char4(signed char x, signed char y, signed char z, signed char w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y)                      { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w)    { return {x, y, z, w}; }
inline int    __popc(const unsigned x)                           { return __builtin_popcount(x); }
inline int    __ffs(const unsigned x)                            { return __builtin_ffs(x); }
inline float  rsqrtf(const float x)                              { return 1.0f/sqrtf(x); }
inline uint32_t __funnelshift_r(const uint32_t low, const uint32_t high, const unsigned shift) { return ((uint64_t) high << 32 | low) >> (shift & 31); }
inline uint32_t __funnelshift_rc(const uint32_t low, const uint32_t high, const unsigned shift) {
    return ((uint64_t) high << 32 | low) >> std::min(shift, 32u);
}
inline uint32_t __cvta_generic_to_shared(const void * p)         { return (uint32_t) ((const char *) p - smem); }

inline void sincospi(const double x, double * s, double * c) {
    *s = sin(3.14159265358979323846*x);
    *c = cos(3.14159265358979323846*x);
}

// With one rounding, whatever the compiler makes of the rest.
inline float    __fadd_rn(const float x, const float y)          { return x + y; }
inline float    __fmul_rn(const float x, const float y)          { return x*y; }
inline float    __fdiv_rn(const float x, const float y)          { return x/y; }
inline uint32_t __float_as_uint(const float x)                   { uint32_t b; std::memcpy(&b, &x, 4); return b; }
inline float    __int_as_float(const int x)                      { float f; std::memcpy(&f, &x, 4); return f; }
inline float    __uint_as_float(const uint32_t x)                { return __int_as_float(x); }

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

// The value of lane `from`.
template <typename T> T shuffle(const T mine, const int from) {
    struct lane { T have, get; int from; } l = {mine, mine, from};
    warp_together(l, [](lane ** lanes) {
        for (unsigned i = 0; i < warp_lanes; ++i) {
            lanes[i]->get = lanes[lanes[i]->from]->have;
        }
    });
    return l.get;
}
template <typename T> T __shfl_sync(unsigned, const T mine, const int from, const int width = warp_lanes) {
    return shuffle(mine, (int) (me % warp_lanes)/width*width + (from & (width - 1)));
}
template <typename T> T __shfl_xor_sync(unsigned, const T mine, const int offset, const int width = warp_lanes) {
    const int at = me % warp_lanes;
    return shuffle(mine, (at % width ^ offset) < width ? at ^ offset : at);
}
template <typename T> T __shfl_down_sync(unsigned, const T mine, const int offset, const int width = warp_lanes) {
    const int at = me % warp_lanes;
    return shuffle(mine, at % width + offset < width ? at + offset : at);
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

using cudaStream_t    = void *;
using cudaGraph_t     = void *;
using cudaGraphNode_t = void *;
enum cudaError_t { cudaSuccess, cudaErrorNotSupported };
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice };
enum cudaGraphNodeType { cudaGraphNodeTypeKernel };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void * to, const int value, const size_t size, cudaStream_t) {
    std::memset(to, value, size);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void * to, const void * from, const size_t size, cudaMemcpyKind, cudaStream_t) {
    std::memcpy(to, from, size);
    return cudaSuccess;
}
inline cudaError_t cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t *, size_t * n)      { *n = 0; return cudaSuccess; }
inline cudaError_t cudaGraphNodeGetType(cudaGraphNode_t, cudaGraphNodeType * type)    { *type = cudaGraphNodeTypeKernel; return cudaSuccess; }

// Clusters are not known here, and devices before Hopper have none.
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    struct { struct { unsigned x, y, z; } clusterDim; } val;
};
struct cudaLaunchConfig_t {
    dim3                  gridDim, blockDim;
    size_t                dynamicSmemBytes;
    cudaStream_t          stream;
    cudaLaunchAttribute * attrs;
    unsigned              numAttrs;
};
template <typename F> cudaError_t cudaOccupancyMaxActiveClusters(int *, F, const cudaLaunchConfig_t *) { return cudaErrorNotSupported; }
template <typename F, typename A> cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *, F, const A &) { fail("a launch of clusters"); }

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
        int    cc    = 860;
        int    nsm   = 6;
        size_t smpbo = CUDA_ON_CPU_SHARED - 1024;
    } devices[1];
};
inline const ggml_cuda_device_info & ggml_cuda_info() {
    static const ggml_cuda_device_info info;
    return info;
}
inline int  ggml_cuda_get_device()                { return 0; }
inline int  ggml_cuda_highest_compiled_arch(int)  { return 860; }
inline bool ampere_mma_available(int)             { return true; }
inline void ggml_cuda_pdl_sync()                  {}
inline void ggml_cuda_pdl_lc()                    {}
inline ggml_backend_buffer_type_t ggml_backend_cuda_buffer_type(int) { return ggml_backend_cpu_buffer_type(); }

inline int ggml_cuda_dp4a(const int a, const int b, int c) {
    for (int i = 0; i < 32; i += 8) {
        c += (int8_t) (a >> i)*(int8_t) (b >> i);
    }
    return c;
}

// NaNs in it: who reads what nobody wrote is found out.
struct ggml_cuda_pool {
    void * alloc(const size_t size, size_t * actual) {
        *actual = (size + 255)/256*256;
        void * p = std::aligned_alloc(256, *actual);
        std::memset(p, 0xFF, *actual);
        add_scratch({p, *actual});
        return p;
    }
    void free(void * p, size_t) {
        drop_scratch(p);
        std::free(p);
    }
};

template <typename T> struct ggml_cuda_pool_alloc {
    ggml_cuda_pool & pool;
    T *              ptr    = nullptr;
    size_t           actual = 0;

    explicit ggml_cuda_pool_alloc(ggml_cuda_pool & pool) : pool(pool) {}
    ggml_cuda_pool_alloc(ggml_cuda_pool & pool, const size_t n) : pool(pool) { alloc(n); }
    ggml_cuda_pool_alloc(const ggml_cuda_pool_alloc &) = delete;
    ~ggml_cuda_pool_alloc() {
        if (ptr != nullptr) {
            pool.free(ptr, actual);
        }
    }
    T * alloc(const size_t n) { return ptr = (T *) pool.alloc(std::max<size_t>(n, 1)*sizeof(T), &actual); }
    T * get()                 { return ptr; }
};

struct ggml_cuda_stream_context {
    std::vector<int> concurrent_events;
};

struct ggml_backend_cuda_context {
    int                      device         = 0;
    int                      curr_stream_no = 0;
    ggml_cuda_pool           memory;
    ggml_cuda_stream_context streams;

    ggml_cuda_pool &           pool()           { return memory; }
    ggml_cuda_stream_context & stream_context() { return streams; }
    cudaStream_t               stream()         { return nullptr; }
    cublasHandle_t             cublas_handle()  { return nullptr; }
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

// A lane's registers of m16n8k16 (F16), m16n8k8 (TF32) and m16n8k32 or k16 (int8; `registers` of A are 4 or 2).
void product_of_halves(float * d, const uint32_t * a, uint32_t b0, uint32_t b1);
void product_of_floats(float * d, const float * a, float b0, float b1);
void product_of_codes(int * d, const uint32_t * a, int registers, bool is_signed, uint32_t b0, uint32_t b1, int c);
// Four matrices of 8 x 8 F16.
void load_matrices(uint32_t * x, uint32_t address, bool transposed);

} // namespace cuda_on_cpu
