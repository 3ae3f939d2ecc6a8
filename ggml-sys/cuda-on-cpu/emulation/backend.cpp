// The matrix unit and a backend of ggml's around the kernels: attention and masks, in the CPU's memory.

#include "common.cuh"

namespace cuda_on_cpu {

#include "fattn-direct.cuh"
#include "fwht-signed.cuh"
#include "g4-fuse.cuh"
#include "kv-mask.cuh"
#include "tq3.cuh"

// ---- F16 and the matrix unit ----

float half_values[1 << 16];

static const bool half_values_are_there = [] {
    for (uint32_t i = 0; i < 1 << 16; ++i) {
        half_values[i] = ggml_fp16_to_fp32((ggml_fp16_t) i);
    }
    return true;
}();

static float value_of(const uint32_t pair, const unsigned which) { return half_values[pair >> 16*which & 0xFFFF]; }

void matrix_product(float * d, const uint32_t * a, const uint32_t b0, const uint32_t b1) {
    struct lane {
        float          * d;
        const uint32_t * a;
        uint32_t         b[2];
    } mine = {d, a, {b0, b1}};
    warp_together(mine, [](lane ** lanes) {
        float A[16][16];
        float B[16][8];
        float D[16][8];
        for (unsigned l = 0; l < warp_lanes; ++l) {
            const unsigned g = l/4;
            const unsigned t = l % 4;
            for (unsigned r = 0; r < 4; ++r) {
                for (unsigned i = 0; i < 2; ++i) {
                    A[g + 8*(r % 2)][2*t + i + 8*(r/2)] = value_of(lanes[l]->a[r], i);
                    D[g + 8*(r/2)][2*t + r % 2]         = lanes[l]->d[r];
                    if (r < 2) {
                        B[2*t + i + 8*r][g] = value_of(lanes[l]->b[r], i);
                    }
                }
            }
        }
        for (unsigned i = 0; i < 16; ++i) {
            for (unsigned k = 0; k < 16; ++k) {
                for (unsigned j = 0; j < 8; ++j) {
                    D[i][j] += A[i][k]*B[k][j];
                }
            }
        }
        for (unsigned l = 0; l < warp_lanes; ++l) {
            for (unsigned r = 0; r < 4; ++r) {
                lanes[l]->d[r] = D[l/4 + 8*(r/2)][2*(l % 4) + r % 2];
            }
        }
    });
}

void load_matrices(uint32_t * x, const uint32_t address, const bool transposed) {
    struct lane {
        uint32_t * x;
        uint32_t   address;
        bool       transposed;
    } mine = {x, address, transposed};
    warp_together(mine, [](lane ** lanes) {
        uint16_t M[4][8][8];
        for (unsigned l = 0; l < warp_lanes; ++l) {
            if (lanes[l]->address % 16 != 0) {
                fail("a row of a matrix begins at an odd address");
            }
            std::memcpy(M[l/8][l % 8], shared_at(lanes[l]->address, 16), 16);
        }
        for (unsigned l = 0; l < warp_lanes; ++l) {
            const unsigned row = l/4;
            const unsigned col = 2*(l % 4);
            for (unsigned m = 0; m < 4; ++m) {
                const uint16_t lo = lanes[l]->transposed ? M[m][col][row]     : M[m][row][col];
                const uint16_t hi = lanes[l]->transposed ? M[m][col + 1][row] : M[m][row][col + 1];
                lanes[l]->x[m] = lo | (uint32_t) hi << 16;
            }
        }
    });
}

// TF32 has 10 bits of a mantissa.
static float tf32(const float x) {
    uint32_t b;
    std::memcpy(&b, &x, 4);
    b = (b + 0x1000) & ~0x1FFFu;
    float y;
    std::memcpy(&y, &b, 4);
    return y;
}

int cublasGemmEx(cublasHandle_t, cublasOperation_t, cublasOperation_t, const int m, const int n, const int k, const void *, const void * A, cudaDataType,
        const int lda, const void * B, cudaDataType, const int ldb, const void *, void * C, cudaDataType, const int ldc, cublasComputeType_t, cublasGemmAlgo_t) {
    for (int j = 0; j < n; ++j) {
        for (int i = 0; i < m; ++i) {
            float sum = 0.0f;
            for (int l = 0; l < k; ++l) {
                sum += tf32(((const float *) A)[(size_t) i*lda + l])*tf32(((const float *) B)[(size_t) j*ldb + l]);
            }
            ((float *) C)[(size_t) j*ldc + i] = sum;
        }
    }
    return 0;
}

// ---- what the sources refer to and nobody calls here ----

ggml_cuda_g4_scope * ggml_cuda_g4_scope::of(const ggml_backend_cuda_context &) { return nullptr; }
char * ggml_cuda_g4_scope::make_q8_1(const ggml_tensor *, int64_t)             { return nullptr; }
bool ggml_cuda_g4_feeds_product(const ggml_cgraph *, const ggml_tensor *, int64_t, int) { return false; }

// ---- the backend ----

static bool is_noop(const ggml_tensor * op) {
    return op->op == GGML_OP_NONE || op->op == GGML_OP_VIEW || op->op == GGML_OP_RESHAPE || op->op == GGML_OP_PERMUTE || op->op == GGML_OP_TRANSPOSE;
}

// Kernels of these sources compute a node.
static bool is_ours(const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_FLASH_ATTN_EXT: return ggml_cuda_fattn_direct_choose(0, op) == FATTN_DIRECT_DIRECT;
        case GGML_OP_KV_MASK:        return ggml_cuda_kv_mask_supported(op);
        case GGML_OP_MUL_MAT:        return ggml_cuda_is_fwht_signed(op);
        case GGML_OP_SET_ROWS:       return op->type == GGML_TYPE_TQ3_0;
        case GGML_OP_CPY:            return ggml_cuda_cpy_tq3_supported(op->src[0], op->src[1]);
        default:                     return false;
    }
}

static void compute(ggml_backend_cuda_context & context, ggml_tensor * node) {
    switch (node->op) {
        case GGML_OP_FLASH_ATTN_EXT: {
            std::vector<std::pair<const char *, size_t>> readable;
            for (const ggml_tensor * t : {node->src[1], node->src[2]}) {
                readable.push_back({(const char *) t->data, ggml_nbytes(t)});
            }
            set_readable(readable);
            ggml_cuda_fattn_direct(context, node);
            set_readable({});
            break;
        }
        case GGML_OP_KV_MASK:  ggml_cuda_op_kv_mask(context, node); break;
        case GGML_OP_MUL_MAT:  ggml_cuda_op_fwht_signed(context, node); break;
        case GGML_OP_SET_ROWS: ggml_cuda_op_set_rows_tq3(context, node); break;
        case GGML_OP_CPY:      ggml_cuda_cpy_tq3(context, node->src[0], node->src[1]); break;
        default:               fail("an operation that was not asked about");
    }
}

// What is left is the CPU backend's, but for attention: other kernels would compute it on a card.
static ggml_backend_t cpu() {
    static ggml_backend_t backend = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
    return backend;
}

static bool supports_op(ggml_backend_dev_t, const ggml_tensor * op) {
    return is_noop(op) || is_ours(op) || (op->op != GGML_OP_FLASH_ATTN_EXT && ggml_backend_supports_op(cpu(), op));
}

static ggml_status graph_compute(ggml_backend_t, ggml_cgraph * graph) {
    ggml_backend_cuda_context context;
    for (int i = 0; i < graph->n_nodes; ++i) {
        ggml_tensor * node = graph->nodes[i];
        if (is_noop(node)) {
            continue;
        }
        if (is_ours(node)) {
            compute(context, node);
            continue;
        }
        ggml_cgraph        one    = ggml_graph_view(graph, i, i + 1);
        const ggml_status  status = supports_op(nullptr, node) ? ggml_backend_graph_compute(cpu(), &one) : GGML_STATUS_FAILED;
        if (status != GGML_STATUS_SUCCESS) {
            return status;
        }
    }
    return GGML_STATUS_SUCCESS;
}

static const char * name(ggml_backend_t)                { return "CUDA-on-CPU"; }
static const char * device_name(ggml_backend_dev_t)     { return "CUDA-on-CPU"; }
static const char * description(ggml_backend_dev_t)     { return "CUDA kernels on the CPU"; }
static enum ggml_backend_dev_type type(ggml_backend_dev_t)   { return GGML_BACKEND_DEVICE_TYPE_GPU; }
static bool supports_buft(ggml_backend_dev_t, ggml_backend_buffer_type_t buft) { return ggml_backend_buft_is_host(buft); }
static ggml_backend_buffer_type_t buffer_type(ggml_backend_dev_t)              { return ggml_backend_cpu_buffer_type(); }
static void memory(ggml_backend_dev_t, size_t * free, size_t * total)          { *free = *total = 0; }
static void props(ggml_backend_dev_t dev, ggml_backend_dev_props * p) {
    *p = {};
    p->name        = device_name(dev);
    p->description = description(dev);
    p->type        = type(dev);
}

static ggml_backend_dev_t the_device();

static void free_backend(ggml_backend_t backend) { delete backend; }

static ggml_guid_t guid() {
    static ggml_guid id = {0x67, 0x34, 'c', 'u', 'd', 'a', '-', 'o', 'n', '-', 'c', 'p', 'u', 0, 0, 1};
    return &id;
}

static ggml_backend_t init_backend(ggml_backend_dev_t, const char *) {
    ggml_backend_i i = {};
    i.get_name      = name;
    i.free          = free_backend;
    i.graph_compute = graph_compute;
    return new ggml_backend{guid(), i, the_device(), nullptr};
}

static const char * reg_name(ggml_backend_reg_t)           { return "CUDA-on-CPU"; }
static size_t reg_count(ggml_backend_reg_t)                { return 1; }
static ggml_backend_dev_t reg_get(ggml_backend_reg_t, size_t) { return the_device(); }

static ggml_backend_dev_t the_device() {
    static ggml_backend_reg reg = [] {
        ggml_backend_reg r = {};
        r.api_version            = GGML_BACKEND_API_VERSION;
        r.iface.get_name         = reg_name;
        r.iface.get_device_count = reg_count;
        r.iface.get_device       = reg_get;
        return r;
    }();
    static ggml_backend_device device = [] {
        ggml_backend_device d = {};
        d.iface.get_name        = device_name;
        d.iface.get_description = description;
        d.iface.get_memory      = memory;
        d.iface.get_type        = type;
        d.iface.get_props       = props;
        d.iface.init_backend    = init_backend;
        d.iface.get_buffer_type = buffer_type;
        d.iface.supports_op     = supports_op;
        d.iface.supports_buft   = supports_buft;
        d.reg = &reg;
        return d;
    }();
    return &device;
}

} // namespace cuda_on_cpu

// Not in ggml's registry: no program should find it by chance.
extern "C" ggml_backend_dev_t gemma4_cuda_on_cpu_device() {
    return cuda_on_cpu::the_device();
}
