// ggml functions that may throw, wrapped: an exception must not cross into Rust.
//
// A function reports a caught exception by a null pointer, `false` or GGML_STATUS_FAILED, like the
// failures that ggml reports itself; ggml_try_error() then has the exception's text.
#pragma once

#include "ggml.h"
#include "ggml-alloc.h"
#include "ggml-backend.h"

#ifdef __cplusplus
extern "C" {
#endif

// Text of the last exception caught on this thread; empty if the last call threw none.
const char * ggml_try_error(void);

bool                  ggml_try_backend_load_all(void);
bool                  ggml_try_backend_load_all_from_path(const char * dir);
size_t                ggml_try_backend_dev_count(void);
bool                  ggml_try_backend_dev_memory(ggml_backend_dev_t dev, size_t * free, size_t * total);
ggml_backend_t        ggml_try_backend_dev_init(ggml_backend_dev_t dev);
ggml_backend_buffer_t ggml_try_buft_alloc_buffer(ggml_backend_buffer_type_t buft, size_t size);
ggml_backend_buffer_t ggml_try_dev_buffer_from_host_ptr(ggml_backend_dev_t dev, void * ptr, size_t size, size_t max_tensor_size);
ggml_backend_buffer_t ggml_try_alloc_ctx_tensors(struct ggml_context * ctx, ggml_backend_buffer_type_t buft);
bool                  ggml_try_buffer_clear(ggml_backend_buffer_t buffer, uint8_t value);
bool                  ggml_try_tensor_set(struct ggml_tensor * tensor, const void * data, size_t offset, size_t size);
// Without waiting: behind what the backend was asked for before. Data in pageable memory have been read on return.
bool                  ggml_try_tensor_set_async(ggml_backend_t backend, struct ggml_tensor * tensor, const void * data, size_t offset, size_t size);
// Behind what the backend was asked for before; waits for it.
bool                  ggml_try_tensor_get_in_order(ggml_backend_t backend, const struct ggml_tensor * tensor, void * data, size_t offset, size_t size);
bool                  ggml_try_tensor_get(const struct ggml_tensor * tensor, void * data, size_t offset, size_t size);
ggml_backend_sched_t  ggml_try_sched_new(ggml_backend_t * backends, ggml_backend_buffer_type_t * bufts, int n_backends, size_t graph_size, bool op_offload);
bool                  ggml_try_sched_reserve(ggml_backend_sched_t sched, struct ggml_cgraph * graph);
bool                  ggml_try_sched_reserve_size(ggml_backend_sched_t sched, struct ggml_cgraph * graph, size_t * sizes);
bool                  ggml_try_sched_alloc_graph(ggml_backend_sched_t sched, struct ggml_cgraph * graph);
enum ggml_status      ggml_try_sched_graph_compute_async(ggml_backend_sched_t sched, struct ggml_cgraph * graph);
bool                  ggml_try_sched_synchronize(ggml_backend_sched_t sched);
enum ggml_status      ggml_try_sched_graph_compute(ggml_backend_sched_t sched, struct ggml_cgraph * graph);

#ifdef __cplusplus
}
#endif
