//! The raw bindings work: a matrix product through the backend API, a GGUF file, the patch series' ids.

use ggml_sys::*;
use std::ffi::{CStr, CString};
use std::ptr::{null, null_mut};

/// Deterministic values in -1..1.
fn values(n: usize, mut state: u32) -> Vec<f32> {
    let mut next = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn context(size: usize, no_alloc: bool) -> *mut ggml_context {
    // SAFETY: plain arguments; ggml allocates its own memory.
    unsafe { ggml_init(ggml_init_params { mem_size: size, mem_buffer: null_mut(), no_alloc }) }
}

#[test]
fn matrix_product_equals_a_plain_loop() {
    let (k, m, n) = (96, 7, 5);
    let (a, b) = (values(k * m, 1), values(k * n, 2));
    let mut got = vec![0f32; m * n];
    // SAFETY: every pointer comes from ggml and is used before its owner is freed; sizes match shapes.
    unsafe {
        assert!(ggml_try_backend_load_all());
        let backend = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, null());
        assert!(!backend.is_null());
        let ctx = context(1 << 20, true);
        let x = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, k as i64, m as i64);
        let y = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, k as i64, n as i64);
        let out = ggml_mul_mat(ctx, x, y);
        let graph = ggml_new_graph(ctx);
        ggml_build_forward_expand(graph, out);
        let buffer = ggml_try_alloc_ctx_tensors(ctx, ggml_backend_get_default_buffer_type(backend));
        assert!(!buffer.is_null());
        assert!(ggml_try_tensor_set(x, a.as_ptr().cast(), 0, a.len() * 4));
        assert!(ggml_try_tensor_set(y, b.as_ptr().cast(), 0, b.len() * 4));
        assert_eq!(ggml_backend_graph_compute(backend, graph), GGML_STATUS_SUCCESS);
        assert!(ggml_try_tensor_get(out, got.as_mut_ptr().cast(), 0, got.len() * 4));
        ggml_backend_buffer_free(buffer);
        ggml_free(ctx);
        ggml_backend_free(backend);
    }
    for j in 0..n {
        for i in 0..m {
            let want: f64 = (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[j * k + l])).sum();
            let have = f64::from(got[j * m + i]);
            assert!((have - want).abs() < 1e-4, "[{i}, {j}]: {have} instead of {want}");
        }
    }
}

#[test]
fn gguf_file_round_trip() {
    let path = std::env::temp_dir().join(format!("ggml-sys-{}.gguf", std::process::id()));
    let file = CString::new(path.to_str().unwrap()).unwrap();
    let weights = values(64, 3);
    // SAFETY: as above; the file is this test's own.
    unsafe {
        let ctx = context(1 << 20, false);
        let tensor = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 32, 2);
        ggml_set_name(tensor, c"weights".as_ptr());
        std::ptr::copy_nonoverlapping(weights.as_ptr(), (*tensor).data.cast(), weights.len());
        let written = gguf_init_empty();
        gguf_set_val_str(written, c"general.architecture".as_ptr(), c"gemma4".as_ptr());
        gguf_add_tensor(written, tensor);
        assert!(gguf_write_to_file(written, file.as_ptr(), false));
        gguf_free(written);
        ggml_free(ctx);

        let mut data = null_mut();
        let read = gguf_init_from_file(file.as_ptr(), gguf_init_params { no_alloc: false, ctx: &mut data });
        assert!(!read.is_null());
        let key = gguf_find_key(read, c"general.architecture".as_ptr());
        assert_eq!(CStr::from_ptr(gguf_get_val_str(read, key)), c"gemma4");
        let tensor = ggml_get_tensor(data, c"weights".as_ptr());
        assert_eq!((*tensor).ne, [32, 2, 1, 1]);
        let have = std::slice::from_raw_parts((*tensor).data.cast::<f32>(), weights.len());
        assert_eq!(have, weights);
        gguf_free(read);
        ggml_free(data);
    }
    std::fs::remove_file(path).unwrap();
}

#[test]
fn patch_series_is_in_the_library() {
    // SAFETY: lookups in static tables by ids that the headers name.
    unsafe {
        assert_eq!(CStr::from_ptr(ggml_type_name(GGML_TYPE_TQ3_0)), c"tq3_0");
        assert_eq!(ggml_blck_size(GGML_TYPE_TQ3_0), QK_TQ3_0 as i64);
        assert_eq!(ggml_type_size(GGML_TYPE_TQ3_0), 14);
        assert_eq!(ggml_row_size(GGML_TYPE_TQ3_0, 256), 112);
        assert_eq!(ggml_row_size(GGML_TYPE_TQ3_0, 512), 224);
        assert_eq!(CStr::from_ptr(ggml_op_name(GGML_OP_KV_MASK)), c"KV_MASK");
        // The gap between upstream's last id and ours stays empty.
        assert!((GGML_TYPE_Q2_0 + 1..GGML_TYPE_TQ3_0).all(|id| ggml_blck_size(id) == 0));
    }
}

#[test]
fn scheduler_is_told_what_no_backend_computes() {
    // SAFETY: as above.
    unsafe {
        assert!(ggml_try_backend_load_all());
        let cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
        let ctx = context(1 << 20, true);
        let cache = ggml_new_tensor_2d(ctx, GGML_TYPE_TQ3_0, 256, 8);
        let rows = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 256, 8);
        let half = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, 256, 8);
        let index = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, 8);
        let ids = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, 8);
        let params = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, GGML_KV_PARAMS.into());
        let yes = [
            ggml_set_rows(ctx, cache, rows, index),
            ggml_set_rows(ctx, cache, half, ids),
            ggml_get_rows(ctx, cache, ids),
            ggml_cpy(ctx, rows, cache),
            ggml_cpy(ctx, half, cache),
            ggml_cpy(ctx, cache, rows),
            ggml_cpy(ctx, cache, half),
            ggml_cpy(ctx, cache, cache),
            ggml_mul_mat(ctx, cache, rows),
            ggml_kv_mask(ctx, params, 256, 4, 0, 0, 0),
        ];
        for (i, op) in yes.into_iter().enumerate() {
            assert!(ggml_backend_dev_supports_op(cpu, op), "{i}");
        }
        let columns = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 8, 256);
        let no = [
            ggml_add(ctx, cache, rows),
            ggml_clamp(ctx, cache, 0.0, 1.0),
            ggml_scale(ctx, cache, 2.0),
            ggml_get_rows_back(ctx, cache, ids, rows),
            ggml_cpy(ctx, columns, ggml_reshape_2d(ctx, cache, 256, 8)),
            ggml_cpy(ctx, cache, ggml_new_tensor_2d(ctx, GGML_TYPE_Q8_0, 256, 8)),
        ];
        for (i, op) in no.into_iter().enumerate() {
            assert!(!ggml_backend_dev_supports_op(cpu, op), "{i}");
        }
        ggml_free(ctx);
    }
}
