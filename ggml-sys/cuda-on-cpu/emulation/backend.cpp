// The matrix unit, and a backend of ggml's around the kernels, in the CPU's memory.

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

// TF32 has 10 bits of a mantissa. The matrix unit leaves out the others, cuBLAS rounds.
static float tf32(const float x, const bool rounded) {
    uint32_t b;
    std::memcpy(&b, &x, 4);
    b = (b + (rounded ? 0x1000 : 0)) & ~0x1FFFu;
    float y;
    std::memcpy(&y, &b, 4);
    return y;
}

// What the lanes of a warp bring to a product: 16 x K values and K x 8 of them.
template <typename T, int K> struct product {
    T * d;     // 4 values of the result
    T   a[2][K/4]; // rows l/4 and l/4 + 8: runs of `run` values, one in 4 of them the lane's
    T   b[K/4];
    T   c;
    bool adds; // to what is there

    void together(const int run) {
        this->run = run;
        warp_together(*this, [](product ** lanes) {
            T A[16][K];
            T B[K][8];
            const int run = lanes[0]->run;
            for (int l = 0; l < (int) warp_lanes; ++l) {
                for (int i = 0; i < K/4; ++i) {
                    const int k = i/run*4*run + l % 4*run + i % run;
                    A[l/4][k]     = lanes[l]->a[0][i];
                    A[l/4 + 8][k] = lanes[l]->a[1][i];
                    B[k][l/4]     = lanes[l]->b[i];
                }
            }
            T D[16][8] = {};
            for (int i = 0; i < 16; ++i) {
                for (int k = 0; k < K; ++k) {
                    for (int j = 0; j < 8; ++j) {
                        D[i][j] += A[i][k]*B[k][j];
                    }
                }
            }
            for (int l = 0; l < (int) warp_lanes; ++l) {
                for (int r = 0; r < 4; ++r) {
                    T & d = lanes[l]->d[r];
                    d = D[l/4 + 8*(r/2)][2*(l % 4) + r % 2] + (lanes[l]->adds ? d : lanes[l]->c);
                }
            }
        });
    }

private:
    int run;
};

void product_of_halves(float * d, const uint32_t * a, const uint32_t b0, const uint32_t b1) {
    product<float, 16> p = {};
    p.d    = d;
    p.adds = true;
    const auto value = [](const uint32_t pair, const int which) { return half_values[pair >> 16*which & 0xFFFF]; };
    for (int i = 0; i < 4; ++i) {
        p.a[0][i] = value(a[i/2*2],     i % 2);
        p.a[1][i] = value(a[i/2*2 + 1], i % 2);
        p.b[i]    = value(i < 2 ? b0 : b1, i % 2);
    }
    p.together(2);
}

void product_of_floats(float * d, const float * a, const float b0, const float b1) {
    product<float, 8> p = {};
    p.d    = d;
    p.adds = true;
    for (int i = 0; i < 2; ++i) {
        p.a[0][i] = tf32(a[2*i],     false);
        p.a[1][i] = tf32(a[2*i + 1], false);
        p.b[i]    = tf32(i == 0 ? b0 : b1, false);
    }
    p.together(1);
}

template <int K> static void product_of_codes(int * d, const uint32_t * a, const bool is_signed, const uint32_t b0, const uint32_t b1, const int c) {
    product<int, K> p = {};
    p.d = d;
    p.c = c;
    const auto code = [](const uint32_t word, const int which, const bool is_signed) {
        const int x = word >> 8*which & 0xFF;
        return is_signed ? (int8_t) x : x;
    };
    for (int i = 0; i < K/4; ++i) {
        p.a[0][i] = code(a[i/4*2],     i % 4, is_signed);
        p.a[1][i] = code(a[i/4*2 + 1], i % 4, is_signed);
        p.b[i]    = code(i < 4 ? b0 : b1, i % 4, true);
    }
    p.together(4);
}

void product_of_codes(int * d, const uint32_t * a, const int registers, const bool is_signed, const uint32_t b0, const uint32_t b1, const int c) {
    registers == 4 ? product_of_codes<32>(d, a, is_signed, b0, b1, c) : product_of_codes<16>(d, a, is_signed, b0, b1, c);
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

int cublasGemmEx(cublasHandle_t, cublasOperation_t, cublasOperation_t, const int m, const int n, const int k, const void *, const void * A, cudaDataType,
        const int lda, const void * B, cudaDataType, const int ldb, const void *, void * C, cudaDataType, const int ldc, cublasComputeType_t, cublasGemmAlgo_t) {
    for (int j = 0; j < n; ++j) {
        for (int i = 0; i < m; ++i) {
            float sum = 0.0f;
            for (int l = 0; l < k; ++l) {
                sum += tf32(((const float *) A)[(size_t) i*lda + l], true)*tf32(((const float *) B)[(size_t) j*ldb + l], true);
            }
            ((float *) C)[(size_t) j*ldc + i] = sum;
        }
    }
    return 0;
}

// ---- the backend ----

static bool is_noop(const ggml_tensor * op) {
    return op->op == GGML_OP_NONE || op->op == GGML_OP_VIEW || op->op == GGML_OP_RESHAPE || op->op == GGML_OP_PERMUTE || op->op == GGML_OP_TRANSPOSE;
}

// What is no kernel's of these sources is the CPU backend's, but for attention: other kernels would compute it on a card.
static ggml_backend_t cpu() {
    static ggml_backend_t backend = [] {
        const ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
        const ggml_backend_t     cpu    = ggml_backend_dev_init(device, nullptr);
        // It would start its threads for every node.
        const auto set = (ggml_backend_set_n_threads_t) ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_set_n_threads");
        set(cpu, 1);
        return cpu;
    }();
    return backend;
}

static bool supports_op(ggml_backend_dev_t, const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_FLASH_ATTN_EXT: return ggml_cuda_fattn_direct_choose(0, op) == FATTN_DIRECT_DIRECT;
        case GGML_OP_KV_MASK:        return ggml_cuda_kv_mask_supported(op);
        case GGML_OP_MUL_MAT:        return ggml_cuda_is_fwht_signed(op) || ggml_backend_supports_op(cpu(), op);
        default:                     return is_noop(op) || ggml_backend_supports_op(cpu(), op);
    }
}

static std::vector<memory> tensors_of(const ggml_tensor * node) {
    std::vector<memory> all = {{node->data, ggml_nbytes(node)}};
    for (const ggml_tensor * t : node->src) {
        if (t != nullptr) {
            all.push_back({t->data, ggml_nbytes(t)});
        }
    }
    return all;
}

// Node i and those behind it that its kernel takes too, in the order in which ggml-cuda.cu asks. Returns how many, or 0.
static int compute(ggml_backend_cuda_context & context, ggml_cgraph * graph, const int i) {
    ggml_tensor * node = graph->nodes[i];
    if (const int more = ggml_cuda_g4_try_fuse(context, graph, i)) {
        return 1 + more;
    }
    switch (node->op) {
        case GGML_OP_FLASH_ATTN_EXT:
            ggml_cuda_fattn_direct(context, node);
            return 1;
        case GGML_OP_KV_MASK:
            ggml_cuda_op_kv_mask(context, node);
            return 1;
        case GGML_OP_MUL_MAT:
            if (ggml_cuda_is_fwht_signed(node)) {
                ggml_cuda_op_fwht_signed(context, node);
                return 1;
            }
            return ggml_cuda_g4_mul_mat(context, node->src[0], node->src[1], node);
        case GGML_OP_MUL_MAT_ID:
            return ggml_cuda_g4_mul_mat_id(context, node);
        case GGML_OP_SET_ROWS:
            if (node->type == GGML_TYPE_TQ3_0) {
                ggml_cuda_op_set_rows_tq3(context, node);
                return 1;
            }
            return 0;
        case GGML_OP_CPY:
            return ggml_cuda_cpy_tq3(context, node->src[0], node->src[1]);
        default:
            return 0;
    }
}

static ggml_status graph_compute(ggml_backend_t, ggml_cgraph * graph) {
    static std::mutex one_at_a_time;
    std::lock_guard<std::mutex> lock(one_at_a_time);
    std::vector<memory> tensors;
    for (int i = 0; i < graph->n_nodes; ++i) {
        for (const memory & m : tensors_of(graph->nodes[i])) {
            tensors.push_back(m);
        }
    }
    ggml_backend_cuda_context context;
    ggml_cuda_g4_scope        scope(context);
    set_readable(tensors);
    for (int i = 0; i < graph->n_nodes;) {
        if (is_noop(graph->nodes[i])) {
            ++i;
            continue;
        }
        if (const int n = compute(context, graph, i)) {
            i += n;
            continue;
        }
        ggml_cgraph       one    = ggml_graph_view(graph, i, i + 1);
        const ggml_status status = ggml_backend_graph_compute(cpu(), &one);
        if (status != GGML_STATUS_SUCCESS) {
            return status;
        }
        ++i;
    }
    set_readable({});
    return GGML_STATUS_SUCCESS;
}

static const char * name(ggml_backend_t)                { return "CUDA-on-CPU"; }
static const char * device_name(ggml_backend_dev_t)     { return "CUDA-on-CPU"; }
static const char * description(ggml_backend_dev_t)     { return "CUDA kernels on the CPU"; }
static enum ggml_backend_dev_type type(ggml_backend_dev_t)   { return GGML_BACKEND_DEVICE_TYPE_GPU; }
static bool supports_buft(ggml_backend_dev_t, ggml_backend_buffer_type_t buft) { return ggml_backend_buft_is_host(buft); }
static ggml_backend_buffer_type_t buffer_type(ggml_backend_dev_t)              { return ggml_backend_cpu_buffer_type(); }
static void free_memory(ggml_backend_dev_t, size_t * free, size_t * total)          { *free = *total = (size_t) 16 << 30; }
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
static void * reg_address(ggml_backend_reg_t, const char * name) {
    if (strcmp(name, GGML_G4_CAUSAL) == 0) {
        return (void *) ggml_flash_attn_ext_get_causal;
    }
    if (strcmp(name, GGML_G4_SPARSE_REPORT) == 0) {
        return (void *) ggml_flash_attn_ext_get_block_sparse;
    }
    return nullptr;
}

static ggml_backend_dev_t the_device() {
    static ggml_backend_reg reg = [] {
        ggml_backend_reg r = {};
        r.api_version            = GGML_BACKEND_API_VERSION;
        r.iface.get_name         = reg_name;
        r.iface.get_device_count = reg_count;
        r.iface.get_device       = reg_get;
        r.iface.get_proc_address = reg_address;
        return r;
    }();
    static ggml_backend_device device = [] {
        ggml_backend_device d = {};
        d.iface.get_name        = device_name;
        d.iface.get_description = description;
        d.iface.get_memory      = free_memory;
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

extern "C" ggml_backend_dev_t gemma4_cuda_on_cpu_device() {
    return cuda_on_cpu::the_device();
}
