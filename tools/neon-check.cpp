// The NEON code of TQ3_0 (ggml-cpu/g4-tq3.cpp) beside the plain form (ggml-tq3.c, ggml-tq3-codec.h): see neon-check.sh.
#include "g4.h"
#include "ggml-impl.h"
#include "ggml-tq3-codec.h"
#include "ggml-tq3-quants.h"

#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

// From TQ3_0 to floats, as attention and copies take it.
extern ggml_to_float_t ggml_cpu_g4_to_float(enum ggml_type type);

// What the two files call of the rest of ggml.
extern "C" {
void ggml_abort(const char * file, int line, const char * fmt, ...) {
    va_list args;
    va_start(args, fmt);
    fprintf(stderr, "%s:%d: ", file, line);
    vfprintf(stderr, fmt, args);
    va_end(args);
    abort();
}
const struct ggml_type_traits * ggml_get_type_traits(enum ggml_type) { return nullptr; }
size_t  ggml_row_size(enum ggml_type, int64_t ne) { return ne/QK_TQ3_0*sizeof(block_tq3_0); }
int64_t ggml_nelements(const struct ggml_tensor * t) { return t->ne[0]*t->ne[1]*t->ne[2]*t->ne[3]; }
}

static int failures = 0;

static void expect(bool ok, const char * what) {
    printf("%s: %s\n", ok ? "ok    " : "FAILED", what);
    failures += !ok;
}

static std::mt19937 rng(4);

static std::vector<float> normal(size_t n, float scale) {
    std::normal_distribution<float> draw(0.0f, scale);
    std::vector<float> x(n);
    for (float & v : x) { v = draw(rng); }
    return x;
}

static std::vector<block_tq3_0> encode(const std::vector<float> & x, bool plain) {
    std::vector<block_tq3_0> y(x.size()/QK_TQ3_0);
    plain ? quantize_row_tq3_0_ref(x.data(), y.data(), x.size()) : quantize_row_tq3_0(x.data(), y.data(), x.size());
    return y;
}

static bool same(const block_tq3_0 & a, const block_tq3_0 & b) { return memcmp(&a, &b, sizeof(a)) == 0; }

// The squared cosine between a block and its codes.
static double score(const float * x, const block_tq3_0 & y) {
    double s1 = 0, s2 = 0;
    for (int j = 0; j < QK_TQ3_0; j++) {
        const double q = tq3_0_code(tq3_0_get(y.qs, y.qh, j));
        s1 += x[j]*q;
        s2 += q*q;
    }
    return s1*s1/s2;
}

static void check_encoder() {
    size_t n = 0, equal = 0;
    double worst = 0;
    int scales_off = 0;
    for (float scale = 1e-3f; scale < 2e3f; scale *= 10) {
        const auto x = normal(32*20000, scale);
        const auto a = encode(x, true), b = encode(x, false);
        for (size_t i = 0; i < a.size(); i++) {
            n++;
            equal += same(a[i], b[i]);
            const double s = score(&x[32*i], a[i]);
            worst = std::max(worst, std::fabs(score(&x[32*i], b[i]) - s)/s);
            scales_off += std::abs((int) a[i].d - (int) b[i].d) > 1 && same(a[i], b[i]);
        }
    }
    printf("%zu of %zu blocks are the same bytes; scores differ by at most %.1e\n", equal, n, worst);
    expect(equal >= 0.999*n && worst < 1e-5 && scales_off == 0, "encoder, normal values of scales 1e-3 to 1e3");

    // Blocks that have no codes, or whose values stand on the boundaries between two.
    std::vector<float> x(32*13, 0.0f);
    const auto block = [&x](int i) { return &x[32*i]; };
    const float odd[] = { NAN, INFINITY, -INFINITY, 1e-31f, 1e-9f, 3e38f, 1e19f, -2.0f };
    for (int i = 0; i < 8; i++) { block(i + 1)[5] = odd[i]; }
    for (int j = 0; j < 32; j++) {
        block(9)[j]  = 1.0f;
        block(10)[j] = j % 2 ? -1.5f : 1.5f;
        block(11)[j] = -0.0f;
        const float edges[] = { TQ3_0_EDGE_1, TQ3_0_EDGE_2, TQ3_0_EDGE_3, TQ3_0_SPAN/TQ3_0_TRIAL_2 };
        block(12)[j] = edges[j/2 % 4]*(j % 2 ? -1.0f : 1.0f);
    }
    const auto a = encode(x, true), b = encode(x, false);
    expect(memcmp(a.data(), b.data(), a.size()*sizeof(a[0])) == 0, "encoder, odd blocks: the same bytes");
}

// Blocks of any bytes but with a scale that is a number.
static std::vector<block_tq3_0> any_blocks(size_t n) {
    std::vector<block_tq3_0> y(n);
    for (auto & block : y) {
        const float d = std::ldexp(1.0f + (rng() % 1024)/1024.0f, (int) (rng() % 20) - 12);
        block.d = GGML_FP32_TO_FP16(rng() % 2 ? d : -d);
        for (auto & byte : block.qs) { byte = (uint8_t) rng(); }
        for (auto & byte : block.qh) { byte = (uint8_t) rng(); }
    }
    return y;
}

static void check_decoder() {
    const auto y = any_blocks(50000);
    std::vector<float> a(32*y.size()), b(a.size());
    dequantize_row_tq3_0(y.data(), a.data(), a.size());
    ggml_cpu_g4_to_float(GGML_TYPE_TQ3_0)(y.data(), b.data(), b.size());
    expect(memcmp(a.data(), b.data(), a.size()*sizeof(float)) == 0, "decoder, any bytes: the same floats");
}

static void check_dot() {
    double worst = 0;
    for (int n : { 32, 64, 96, 128, 256, 512, 4096 }) {
        for (int run = 0; run < 200; run++) {
            const auto x = any_blocks(n/32);
            std::vector<block_q8_0> y(n/32);
            for (auto & block : y) {
                block.d = GGML_FP32_TO_FP16(std::ldexp(1.0f + (rng() % 1024)/1024.0f, (int) (rng() % 12) - 8));
                for (auto & q : block.qs) { q = (int8_t) ((int) (rng() % 255) - 127); }
            }
            double want = 0, sum = 0;
            for (int i = 0; i < n/32; i++) {
                const double d = (double) GGML_FP16_TO_FP32(x[i].d)*GGML_FP16_TO_FP32(y[i].d);
                for (int j = 0; j < 32; j++) {
                    const double p = d*tq3_0_code(tq3_0_get(x[i].qs, x[i].qh, j))*y[i].qs[j];
                    want += p;
                    sum  += std::fabs(p);
                }
            }
            float got = NAN;
            ggml_vec_dot_tq3_0_q8_0(n, &got, 0, x.data(), 0, y.data(), 0, 1);
            worst = std::max(worst, std::fabs(got - want)/sum);
        }
    }
    printf("dot products differ by at most %.1e of the sum of magnitudes\n", worst);
    expect(worst < 1e-5, "dot product with Q8_0, rows of 32 to 4096");
}

int main() {
#if defined(__aarch64__) && defined(__ARM_NEON)
#if defined(__ARM_FEATURE_DOTPROD)
    printf("NEON with dot products\n");
#else
    printf("NEON\n");
#endif
#else
#error "compile for aarch64"
#endif
    check_encoder();
    check_decoder();
    check_dot();
    return failures != 0;
}
