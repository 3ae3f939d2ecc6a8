#include "shim.h"

#include <cstdio>
#include <exception>

static thread_local char error_text[512];

// Calls f; an exception becomes `failed`.
template <typename R, typename F> static R guarded(R failed, F f) noexcept {
    error_text[0] = '\0';
    try {
        return f();
    } catch (const std::exception & e) {
        snprintf(error_text, sizeof(error_text), "%s", e.what());
    } catch (...) {
        snprintf(error_text, sizeof(error_text), "an exception without a text");
    }
    return failed;
}

template <typename F> static bool guarded_void(F f) noexcept {
    return guarded(false, [&] { f(); return true; });
}

const char * ggml_try_error(void) {
    return error_text;
}

bool ggml_try_backend_load_all(void) {
    return guarded_void([] { ggml_backend_load_all(); });
}

bool ggml_try_backend_load_all_from_path(const char * dir) {
    return guarded_void([=] { ggml_backend_load_all_from_path(dir); });
}

size_t ggml_try_backend_dev_count(void) {
    return guarded((size_t) 0, [] { return ggml_backend_dev_count(); });
}

bool ggml_try_backend_dev_memory(ggml_backend_dev_t dev, size_t * free, size_t * total) {
    return guarded_void([=] { ggml_backend_dev_memory(dev, free, total); });
}

ggml_backend_t ggml_try_backend_dev_init(ggml_backend_dev_t dev) {
    return guarded((ggml_backend_t) nullptr, [=] { return ggml_backend_dev_init(dev, nullptr); });
}

ggml_backend_buffer_t ggml_try_buft_alloc_buffer(ggml_backend_buffer_type_t buft, size_t size) {
    return guarded((ggml_backend_buffer_t) nullptr, [=] { return ggml_backend_buft_alloc_buffer(buft, size); });
}

ggml_backend_buffer_t ggml_try_dev_buffer_from_host_ptr(ggml_backend_dev_t dev, void * ptr, size_t size, size_t max_tensor_size) {
    return guarded((ggml_backend_buffer_t) nullptr, [=] { return ggml_backend_dev_buffer_from_host_ptr(dev, ptr, size, max_tensor_size); });
}

ggml_backend_buffer_t ggml_try_alloc_ctx_tensors(struct ggml_context * ctx, ggml_backend_buffer_type_t buft) {
    return guarded((ggml_backend_buffer_t) nullptr, [=] { return ggml_backend_alloc_ctx_tensors_from_buft(ctx, buft); });
}

bool ggml_try_buffer_clear(ggml_backend_buffer_t buffer, uint8_t value) {
    return guarded_void([=] { ggml_backend_buffer_clear(buffer, value); });
}

bool ggml_try_tensor_set(struct ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    return guarded_void([=] { ggml_backend_tensor_set(tensor, data, offset, size); });
}

bool ggml_try_tensor_set_async(ggml_backend_t backend, struct ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    return guarded_void([=] { ggml_backend_tensor_set_async(backend, tensor, data, offset, size); });
}

bool ggml_try_tensor_get_in_order(ggml_backend_t backend, const struct ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    return guarded_void([=] {
        ggml_backend_tensor_get_async(backend, tensor, data, offset, size);
        ggml_backend_synchronize(backend);
    });
}

bool ggml_try_tensor_get(const struct ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    return guarded_void([=] { ggml_backend_tensor_get(tensor, data, offset, size); });
}

ggml_backend_sched_t ggml_try_sched_new(ggml_backend_t * backends, ggml_backend_buffer_type_t * bufts, int n_backends, size_t graph_size, bool op_offload) {
    return guarded((ggml_backend_sched_t) nullptr, [=] { return ggml_backend_sched_new(backends, bufts, n_backends, graph_size, false, op_offload); });
}

bool ggml_try_sched_reserve(ggml_backend_sched_t sched, struct ggml_cgraph * graph) {
    return guarded(false, [=] { return ggml_backend_sched_reserve(sched, graph); });
}

bool ggml_try_sched_reserve_size(ggml_backend_sched_t sched, struct ggml_cgraph * graph, size_t * sizes) {
    return guarded_void([=] { ggml_backend_sched_reserve_size(sched, graph, sizes); });
}

bool ggml_try_sched_alloc_graph(ggml_backend_sched_t sched, struct ggml_cgraph * graph) {
    return guarded(false, [=] { return ggml_backend_sched_alloc_graph(sched, graph); });
}

enum ggml_status ggml_try_sched_graph_compute_async(ggml_backend_sched_t sched, struct ggml_cgraph * graph) {
    return guarded(GGML_STATUS_FAILED, [=] { return ggml_backend_sched_graph_compute_async(sched, graph); });
}

bool ggml_try_sched_synchronize(ggml_backend_sched_t sched) {
    return guarded_void([=] { ggml_backend_sched_synchronize(sched); });
}

enum ggml_status ggml_try_sched_graph_compute(ggml_backend_sched_t sched, struct ggml_cgraph * graph) {
    return guarded(GGML_STATUS_FAILED, [=] { return ggml_backend_sched_graph_compute(sched, graph); });
}
