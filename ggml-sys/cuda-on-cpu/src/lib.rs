//! CUDA kernels of the patch series without a graphics card: the sources that nvcc compiles, compiled for the CPU, with fibers for
//! threads and plain loops for the matrix unit (`emulation/`). It is slow and exact, and finds what a card hides: shared memory that is
//! read before a copy was waited for, addresses beyond a tensor, lanes that wait for different things.
//!
//! `cargo run -p gemma4-ggml-sys --example kernels -- --on-cpu` runs the checks of attention on it.

use ggml_sys::ggml_backend_dev_t;

#[cfg(emulated)]
unsafe extern "C" {
    fn gemma4_cuda_on_cpu_device() -> ggml_backend_dev_t;
}

/// A device that computes attention and masks as the CUDA backend does, and nothing else. ggml's registry does not list it. `None` where
/// it is not built: it needs Linux.
pub fn device() -> Option<ggml_backend_dev_t> {
    #[cfg(emulated)]
    // SAFETY: takes nothing, and returns a device that lives as long as the program.
    return Some(unsafe { gemma4_cuda_on_cpu_device() });
    #[cfg(not(emulated))]
    None
}
