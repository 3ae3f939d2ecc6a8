// Half floats, as far as the kernels use them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace cuda_on_cpu {

struct half {
    uint16_t bits;
    half & operator=(float x);
};

struct nv_bfloat16 {
    uint16_t bits;
};

struct alignas(4) half2 {
    half x, y;
};

struct char4  { signed char x, y, z, w; } __attribute__((aligned(4)));
struct short2 { short x, y; } __attribute__((aligned(4)));
struct short4 { short x, y, z, w; } __attribute__((aligned(8)));
struct int2   { int x, y; } __attribute__((aligned(8)));
struct int4   { int x, y, z, w; } __attribute__((aligned(16)));
struct uint2  { unsigned x, y; } __attribute__((aligned(8)));
struct uint4  { unsigned x, y, z, w; } __attribute__((aligned(16)));
struct float2 { float x, y; } __attribute__((aligned(8)));
struct float4 { float x, y, z, w; } __attribute__((aligned(16)));

extern float half_values[1 << 16];

inline float __half2float(const half x) { return half_values[x.bits]; }

// To the nearest, ties to even.
inline half __float2half_rn(const float x) {
    uint32_t b;
    std::memcpy(&b, &x, 4);
    const uint32_t sign = b >> 16 & 0x8000;
    b &= 0x7FFFFFFF;
    if (b > 0x7F800000) {
        return {(uint16_t) (sign | 0x7E00)}; // NaN
    }
    if (b >= 0x477FF000) {
        return {(uint16_t) (sign | 0x7C00)}; // 65520 and more
    }
    if (b < 0x38800000) { // subnormal: the sum rounds at the right place
        float y;
        std::memcpy(&y, &b, 4);
        y += 0.5f;
        std::memcpy(&b, &y, 4);
        return {(uint16_t) (sign | (b - 0x3F000000))};
    }
    b += 0xC8000FFF + (b >> 13 & 1);
    return {(uint16_t) (sign | b >> 13)};
}

inline half & half::operator=(const float x)                   { return *this = __float2half_rn(x); }
inline half   __float2half(const float x)                      { return __float2half_rn(x); }
inline half   __ushort_as_half(const uint16_t x)               { return {x}; }
inline uint16_t __half_as_ushort(const half x)                 { return x.bits; }
inline half2  make_half2(const half x, const half y)           { return {x, y}; }
inline half2  make_half2(const float x, const float y)         { return {__float2half_rn(x), __float2half_rn(y)}; }
inline half2  __floats2half2_rn(const float x, const float y)  { return make_half2(x, y); }
inline half2  __float2half2_rn(const float x)                  { return make_half2(x, x); }
inline float  __low2float(const half2 x)                       { return __half2float(x.x); }
inline float  __high2float(const half2 x)                      { return __half2float(x.y); }
inline float2 __half22float2(const half2 x)                    { return {__half2float(x.x), __half2float(x.y)}; }

inline nv_bfloat16 __float2bfloat16(const float x) {
    uint32_t b;
    std::memcpy(&b, &x, 4);
    return {(uint16_t) (std::isnan(x) ? 0x7FC0 : (b + 0x7FFF + (b >> 16 & 1)) >> 16)};
}

template <typename F> half2 half2_of(const half2 a, const half2 b, const F & f) {
    return make_half2(f(__half2float(a.x), __half2float(b.x)), f(__half2float(a.y), __half2float(b.y)));
}
inline half2 __hmul2(const half2 a, const half2 b) { return half2_of(a, b, [](float x, float y) { return x*y; }); }
inline half2 __hsub2(const half2 a, const half2 b) { return half2_of(a, b, [](float x, float y) { return x - y; }); }
inline half2 __hmin2_nan(const half2 a, const half2 b) { return half2_of(a, b, [](float x, float y) { return std::isnan(x) || x < y ? x : y; }); }
inline half2 __hmax2_nan(const half2 a, const half2 b) { return half2_of(a, b, [](float x, float y) { return std::isnan(x) || x > y ? x : y; }); }

} // namespace cuda_on_cpu
