//! One backend, and graphs of a few nodes on it.

use ggml_sys::*;
use std::ptr::{null, null_mut};

/// The device under test.
pub struct Device {
    backend: ggml_backend_t,
    dev: ggml_backend_dev_t,
}

/// Which device.
#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    /// The first GPU.
    Gpu,
    /// The CPU backend.
    Cpu,
    /// CUDA's kernels on the CPU.
    CudaOnCpu,
}

impl Device {
    /// Opens it, if there is one.
    pub fn open(kind: Kind) -> Option<Self> {
        // SAFETY: no pointers but ggml's own.
        unsafe {
            if !ggml_try_backend_load_all() {
                return None;
            }
            let cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
            let dev = match kind {
                Kind::Gpu => ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_GPU),
                Kind::Cpu => cpu,
                // It leaves some operations to the CPU backend.
                Kind::CudaOnCpu if cpu.is_null() => return None,
                Kind::CudaOnCpu => cuda_on_cpu::device()?,
            };
            if dev.is_null() {
                return None;
            }
            let backend = ggml_backend_dev_init(dev, null());
            (!backend.is_null()).then_some(Device { backend, dev })
        }
    }

    /// What the driver calls it.
    pub fn description(&self) -> String {
        // SAFETY: a string that lives as long as the device.
        unsafe {
            std::ffi::CStr::from_ptr(ggml_backend_dev_description(self.dev)).to_string_lossy().into_owned()
        }
    }

    /// Free bytes of the device's memory.
    pub fn free_memory(&self) -> usize {
        let (mut free, mut total) = (0, 0);
        // SAFETY: two places for two numbers.
        unsafe { ggml_backend_dev_memory(self.dev, &mut free, &mut total) };
        free
    }

    /// Waits for everything that was started.
    pub fn synchronize(&self) {
        // SAFETY: a live backend.
        unsafe { ggml_backend_synchronize(self.backend) }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: made in `open`, freed once.
        unsafe { ggml_backend_free(self.backend) }
    }
}

/// A tensor of a `Graph`, valid as long as it.
pub type Tensor = *mut ggml_tensor;

/// Tensors, nodes and the buffer that holds them.
pub struct Graph<'d> {
    device: &'d Device,
    /// For calls of ggml that make nodes.
    pub ctx: *mut ggml_context,
    graph: *mut ggml_cgraph,
    buffer: ggml_backend_buffer_t,
}

impl<'d> Graph<'d> {
    /// An empty one.
    pub fn new(device: &'d Device) -> Self {
        // SAFETY: ggml owns the memory.
        unsafe {
            let ctx =
                ggml_init(ggml_init_params { mem_size: 8 << 20, mem_buffer: null_mut(), no_alloc: true });
            let graph = ggml_new_graph_custom(ctx, 2048, false);
            Graph { device, ctx, graph, buffer: null_mut() }
        }
    }

    /// A tensor to be filled from outside.
    pub fn input(&self, t: ggml_type, ne: [usize; 4]) -> Tensor {
        // SAFETY: a live context.
        unsafe { ggml_new_tensor_4d(self.ctx, t, ne[0] as i64, ne[1] as i64, ne[2] as i64, ne[3] as i64) }
    }

    /// Makes a node part of the graph.
    pub fn expand(&self, node: Tensor) {
        // SAFETY: a node of this context.
        unsafe { ggml_build_forward_expand(self.graph, node) }
    }

    /// Whether the device computes a node.
    pub fn supports(&self, node: Tensor) -> bool {
        // SAFETY: a node of this context.
        unsafe { ggml_backend_dev_supports_op(self.device.dev, node) }
    }

    /// Bytes that the device reserves for a node's result beyond the result itself.
    pub fn extra_bytes(&self, node: Tensor) -> usize {
        // SAFETY: a node of this context, a buffer type that outlives it.
        unsafe {
            let buft = ggml_backend_dev_buffer_type(self.device.dev);
            ggml_backend_buft_get_alloc_size(buft, node) - ggml_nbytes(node)
        }
    }

    /// Places everything on the device; contents are undefined.
    pub fn allocate(&mut self) {
        // SAFETY: a context without data.
        unsafe {
            self.buffer = ggml_try_alloc_ctx_tensors(
                self.ctx,
                ggml_backend_get_default_buffer_type(self.device.backend),
            );
            assert!(!self.buffer.is_null(), "out of device memory");
            // Results that nobody writes must not look right.
            ggml_backend_buffer_clear(self.buffer, 0xFF);
        }
    }

    /// Fills a tensor, or its bytes from `offset` on.
    pub fn set(&self, t: Tensor, offset: usize, bytes: &[u8]) {
        // SAFETY: ggml checks the range; the tensor is allocated.
        unsafe { assert!(ggml_try_tensor_set(t, bytes.as_ptr().cast(), offset, bytes.len())) }
    }

    /// Fills an F32 tensor.
    pub fn set_f32(&self, t: Tensor, x: &[f32]) {
        self.set(t, 0, &x.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
    }

    /// Fills an I32 tensor.
    pub fn set_i32(&self, t: Tensor, x: &[i32]) {
        self.set(t, 0, &x.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
    }

    /// Starts the graph without waiting for it.
    pub fn start(&self) {
        // SAFETY: an allocated graph on its own backend.
        unsafe {
            assert_eq!(ggml_backend_graph_compute_async(self.device.backend, self.graph), GGML_STATUS_SUCCESS)
        }
    }

    /// Runs the graph.
    pub fn run(&self) {
        self.start();
        self.device.synchronize();
    }

    /// A contiguous tensor's bytes.
    pub fn get(&self, t: Tensor) -> Vec<u8> {
        // SAFETY: the size is the tensor's own.
        unsafe {
            let mut out = vec![0u8; ggml_nbytes(t)];
            assert!(ggml_try_tensor_get(t, out.as_mut_ptr().cast(), 0, out.len()));
            out
        }
    }

    /// A contiguous F32 tensor's values.
    pub fn get_f32(&self, t: Tensor) -> Vec<f32> {
        self.get(t).chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }
}

impl Drop for Graph<'_> {
    fn drop(&mut self) {
        // SAFETY: made by this graph, freed once, after the device is idle.
        unsafe {
            ggml_backend_synchronize(self.device.backend);
            ggml_backend_buffer_free(self.buffer);
            ggml_free(self.ctx);
        }
    }
}
