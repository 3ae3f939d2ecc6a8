//! CUDA kernels of the patch series without a graphics card: the sources that nvcc compiles, compiled for the CPU, with fibers for
//! threads and plain loops for the matrix unit (`emulation/`). It is slow and exact, and finds what a card may hide: shared memory
//! that is read before a copy was waited for, addresses beyond a tensor, lanes that wait for different things.
//!
//! `cargo run -p gemma4-ggml-sys --example kernels -- --on-cpu` runs checks on it; `docs/cuda.md`, "Without a card".

use ggml_sys::ggml_backend_dev_t;

#[cfg(emulated)]
unsafe extern "C" {
    fn gemma4_cuda_on_cpu_device() -> ggml_backend_dev_t;
}

/// The device's name.
pub const NAME: &str = "CUDA-on-CPU";

/// A device that computes with the series' CUDA kernels what the CUDA backend computes with them, and all else, but for attention,
/// with the CPU backend. `None` where it is not built: it needs Linux and g++.
pub fn device() -> Option<ggml_backend_dev_t> {
    #[cfg(emulated)]
    // SAFETY: takes nothing, and returns a device that lives as long as the program.
    return Some(unsafe { gemma4_cuda_on_cpu_device() });
    #[cfg(not(emulated))]
    None
}

/// Puts it into ggml's registry, where models find devices. Before that no program sees it by chance. Whether there is one.
/// To be called before other threads ask for devices.
pub fn register() -> bool {
    static ONCE: std::sync::Once = std::sync::Once::new();
    let Some(device) = device() else { return false };
    // SAFETY: a device that lives as long as the program.
    ONCE.call_once(|| unsafe { ggml_sys::ggml_backend_device_register(device) });
    true
}
