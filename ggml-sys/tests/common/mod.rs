//! Graphs of a few operations on the CPU, for the tests of single operations.
#![allow(dead_code)] // each test uses its part

use ggml_sys::*;
use std::ffi::{CStr, c_void};
use std::ptr::{null, null_mut};

/// Deterministic random numbers.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u32 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) as u32
    }

    /// From `0..n`.
    pub fn below(&mut self, n: u32) -> u32 {
        self.next() % n
    }

    /// From 0..1, never 0.
    pub fn unit(&mut self) -> f64 {
        (f64::from(self.next()) + 0.5) / 4_294_967_296.0
    }

    /// Normally distributed.
    pub fn normal(&mut self) -> f32 {
        let (u, v) = (self.unit(), self.unit());
        ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    }

    pub fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }
}

/// A graph under construction: tensors, the data of some, and the results to read.
pub struct Bench {
    pub ctx: *mut ggml_context,
    pub threads: i32,
    /// Upstream's plain code in place of fast paths.
    pub reference: bool,
    data: Vec<(*mut ggml_tensor, Vec<u8>)>,
}

pub type Tensor = *mut ggml_tensor;

impl Bench {
    pub fn new(threads: i32) -> Self {
        let params = ggml_init_params { mem_size: 4 << 20, mem_buffer: null_mut(), no_alloc: true };
        // SAFETY: plain arguments; ggml allocates its own memory.
        let ctx = unsafe { ggml_init(params) };
        assert!(!ctx.is_null());
        Bench { ctx, threads, reference: false, data: Vec::new() }
    }

    pub fn tensor(&mut self, dtype: ggml_type, ne: &[i64]) -> Tensor {
        // SAFETY: the context is alive and has room; `ne` has as many entries as said.
        unsafe { ggml_new_tensor(self.ctx, dtype, ne.len() as i32, ne.as_ptr()) }
    }

    /// A tensor with these bytes.
    pub fn bytes(&mut self, dtype: ggml_type, ne: &[i64], bytes: Vec<u8>) -> Tensor {
        let tensor = self.tensor(dtype, ne);
        // SAFETY: the tensor was just made.
        assert_eq!(unsafe { ggml_nbytes(tensor) }, bytes.len());
        self.data.push((tensor, bytes));
        tensor
    }

    /// What a tensor, also a result, holds before the graph is computed.
    pub fn prefill(&mut self, tensor: Tensor, bytes: Vec<u8>) {
        self.data.push((tensor, bytes));
    }

    pub fn floats(&mut self, ne: &[i64], values: &[f32]) -> Tensor {
        self.bytes(GGML_TYPE_F32, ne, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    pub fn ints(&mut self, ne: &[i64], values: &[i32]) -> Tensor {
        self.bytes(GGML_TYPE_I32, ne, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// A tensor of any type that holds these values, by the type's reference encoder.
    pub fn encoded(&mut self, dtype: ggml_type, ne: &[i64], values: &[f32]) -> Tensor {
        self.bytes(dtype, ne, encode(dtype, values))
    }

    /// Computes and reads `results`. Tensors without data start as zeros.
    pub fn run(self, results: &[Tensor]) -> Vec<Vec<u8>> {
        self.compute(results, 1).0
    }

    /// Seconds of each computation of `result`, after a first one.
    pub fn time(self, result: Tensor, rounds: usize) -> Vec<f64> {
        self.compute(&[result], rounds + 1).1.split_off(1)
    }

    fn compute(&self, results: &[Tensor], rounds: usize) -> (Vec<Vec<u8>>, Vec<f64>) {
        // SAFETY: every pointer comes from ggml and is used before its owner is freed; sizes are asked for.
        unsafe {
            let backend = cpu(self.threads, self.reference);
            let graph = ggml_new_graph(self.ctx);
            for &result in results {
                ggml_set_output(result);
                ggml_build_forward_expand(graph, result);
            }
            let device = ggml_backend_get_device(backend);
            for i in 0..ggml_graph_n_nodes(graph) {
                let node = ggml_graph_node(graph, i);
                assert!(
                    ggml_backend_dev_supports_op(device, node),
                    "{:?} is refused",
                    CStr::from_ptr(ggml_op_desc(node))
                );
            }
            let buffer = ggml_try_alloc_ctx_tensors(self.ctx, ggml_backend_get_default_buffer_type(backend));
            assert!(!buffer.is_null());
            assert!(ggml_try_buffer_clear(buffer, 0));
            for (tensor, bytes) in &self.data {
                assert!(ggml_try_tensor_set(*tensor, bytes.as_ptr().cast(), 0, bytes.len()));
            }
            let seconds = (0..rounds).map(|_| {
                let start = std::time::Instant::now();
                assert_eq!(ggml_backend_graph_compute(backend, graph), GGML_STATUS_SUCCESS);
                start.elapsed().as_secs_f64()
            });
            let seconds = seconds.collect();
            let read = |&tensor: &Tensor| {
                let mut bytes = vec![0u8; ggml_nbytes(tensor)];
                assert!(ggml_try_tensor_get(tensor, bytes.as_mut_ptr().cast(), 0, bytes.len()));
                bytes
            };
            let out = results.iter().map(read).collect();
            ggml_backend_buffer_free(buffer);
            ggml_backend_free(backend);
            (out, seconds)
        }
    }

    /// Computes one F32 result.
    pub fn run_floats(self, result: Tensor) -> Vec<f32> {
        floats(&self.run(&[result])[0])
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // SAFETY: made by `new`; nothing refers to it afterwards.
        unsafe { ggml_free(self.ctx) }
    }
}

fn cpu(threads: i32, reference: bool) -> ggml_backend_t {
    // SAFETY: the names promise these signatures; the backend is alive.
    unsafe {
        assert!(ggml_try_backend_load_all());
        let backend = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, null());
        assert!(!backend.is_null());
        let registry = ggml_backend_dev_backend_reg(ggml_backend_get_device(backend));
        let function = |name: &CStr| -> *mut c_void {
            let address = ggml_backend_reg_get_proc_address(registry, name.as_ptr());
            assert!(!address.is_null(), "{name:?}");
            address
        };
        type SetThreads = unsafe extern "C" fn(ggml_backend_t, i32);
        type SetRef = unsafe extern "C" fn(ggml_backend_t, bool);
        let set_threads: SetThreads = std::mem::transmute(function(c"ggml_backend_set_n_threads"));
        let set_ref: SetRef = std::mem::transmute(function(c"ggml_backend_cpu_set_use_ref"));
        set_threads(backend, threads);
        set_ref(backend, reference);
        backend
    }
}

pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Bytes of `n` values.
pub fn row_size(dtype: ggml_type, n: usize) -> usize {
    // SAFETY: a lookup in a static table.
    unsafe { ggml_row_size(dtype, n as i64) }
}

/// The reference encoder of a type.
pub fn encode(dtype: ggml_type, values: &[f32]) -> Vec<u8> {
    if dtype == GGML_TYPE_F32 {
        return values.iter().flat_map(|v| v.to_le_bytes()).collect();
    }
    let mut bytes = vec![0u8; row_size(dtype, values.len())];
    // SAFETY: the type has an encoder; the buffer has the size of its rows.
    unsafe {
        let encode = (*ggml_get_type_traits(dtype)).from_float_ref.unwrap();
        encode(values.as_ptr(), bytes.as_mut_ptr().cast(), values.len() as i64);
    }
    bytes
}

/// The reference decoder of a type.
pub fn decode(dtype: ggml_type, bytes: &[u8]) -> Vec<f32> {
    if dtype == GGML_TYPE_F32 {
        return floats(bytes);
    }
    // SAFETY: as above.
    unsafe {
        let n = bytes.len() / ggml_type_size(dtype) * ggml_blck_size(dtype) as usize;
        let mut values = vec![0f32; n];
        let decode = (*ggml_get_type_traits(dtype)).to_float.unwrap();
        decode(bytes.as_ptr().cast(), values.as_mut_ptr(), n as i64);
        values
    }
}

/// Squared error relative to the squares of `want`.
pub fn nmse(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let error: f64 = got.iter().zip(want).map(|(&g, w)| (f64::from(g) - w).powi(2)).sum();
    error / want.iter().map(|w| w * w).sum::<f64>()
}
