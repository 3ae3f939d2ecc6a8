//! Devices and the streams that compute on them.

use super::tensor::Tensor;
use super::{exception, misuse};
use crate::{Error, Result};
use ggml_sys as sys;
use std::ffi::{CStr, c_char, c_void};
use std::fmt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Loads backends that come as libraries. A static build has them all already.
pub(super) fn load_all() -> Result<(), String> {
    // SAFETY: no arguments; exceptions are caught.
    let mut done = unsafe { sys::ggml_try_backend_load_all() };
    // ggml looks beside the executable. Tests and examples of this workspace have them in the build folder.
    if done
        && cpu_device().is_none()
        && let Some(dir) = sys::BACKENDS_DIR.filter(|dir| Path::new(dir).is_dir())
    {
        let dir = std::ffi::CString::new(dir).map_err(|e| e.to_string())?;
        // SAFETY: a NUL-terminated path that lives through the call.
        done = unsafe { sys::ggml_try_backend_load_all_from_path(dir.as_ptr()) };
    }
    if !done {
        return Err(exception().unwrap_or_else(|| "loading backends failed".into()));
    }
    match cpu_device() {
        Some(_) => Ok(()),
        None => Err("no CPU backend was found; put the libggml-cpu-* libraries beside the executable".into()),
    }
}

fn cpu_device() -> Option<NonNull<sys::ggml_backend_device>> {
    // SAFETY: a lookup in ggml's registry.
    NonNull::new(unsafe { sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU) })
}

/// What a device is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum DeviceKind {
    /// The processor, with main memory.
    Cpu,
    /// A graphics card with memory of its own.
    Gpu,
    /// A graphics unit that shares main memory.
    IntegratedGpu,
    /// Something that helps another device, such as a matrix unit.
    Accelerator,
}

/// Something that can compute. Devices live as long as the process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Device(NonNull<sys::ggml_backend_device>);

// SAFETY: a device is an entry of ggml's registry, which is filled once and then read.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

/// All devices that this build and this machine have, graphics cards first.
///
/// # Errors
/// [`Error::Device`] if ggml's backends cannot be loaded.
pub fn devices() -> Result<Vec<Device>> {
    super::init()?;
    // SAFETY: the count bounds the index; ggml never removes a device here.
    let mut all: Vec<Device> = unsafe {
        (0..sys::ggml_try_backend_dev_count())
            .filter_map(|i| NonNull::new(sys::ggml_backend_dev_get(i)))
            .map(Device)
            .collect()
    };
    all.sort_by_key(|device| device.kind() == DeviceKind::Cpu);
    Ok(all)
}

impl Device {
    /// The processor.
    ///
    /// # Errors
    /// [`Error::Device`] if ggml's backends cannot be loaded.
    pub fn cpu() -> Result<Device> {
        super::init()?;
        let missing = || Error::Device { name: "CPU".into(), why: "ggml has no CPU backend".into() };
        cpu_device().map(Device).ok_or_else(missing)
    }

    /// Short name, such as `CPU` or `CUDA0`.
    pub fn name(&self) -> String {
        // SAFETY: a static string of a live device.
        unsafe { text(sys::ggml_backend_dev_name(self.0.as_ptr())) }
    }

    /// The maker's name of the hardware.
    pub fn description(&self) -> String {
        // SAFETY: as above.
        unsafe { text(sys::ggml_backend_dev_description(self.0.as_ptr())) }
    }

    /// What the device is.
    pub fn kind(&self) -> DeviceKind {
        // SAFETY: as above.
        match unsafe { sys::ggml_backend_dev_type(self.0.as_ptr()) } {
            sys::GGML_BACKEND_DEVICE_TYPE_CPU => DeviceKind::Cpu,
            sys::GGML_BACKEND_DEVICE_TYPE_GPU => DeviceKind::Gpu,
            sys::GGML_BACKEND_DEVICE_TYPE_IGPU => DeviceKind::IntegratedGpu,
            _ => DeviceKind::Accelerator,
        }
    }

    /// Bytes that can still be allocated on the device, as far as the system tells.
    pub fn memory_available(&self) -> u64 {
        if self.kind() == DeviceKind::Cpu {
            return host_memory();
        }
        let (mut free, mut total) = (0, 0);
        // SAFETY: both pointers are valid for writes.
        unsafe { sys::ggml_try_backend_dev_memory(self.0.as_ptr(), &mut free, &mut total) };
        free as u64
    }

    /// Whether it computes from main memory, so that a mapped file needs no copy.
    pub(crate) fn uses_host_memory(&self) -> bool {
        self.kind() == DeviceKind::Cpu
    }

    pub(super) fn raw(&self) -> *mut sys::ggml_backend_device {
        self.0.as_ptr()
    }

    pub(super) fn buffer_type(&self) -> *mut sys::ggml_backend_buffer_type {
        // SAFETY: a live device has a default buffer type.
        unsafe { sys::ggml_backend_dev_buffer_type(self.0.as_ptr()) }
    }

    /// Whether a copy that was asked for keeps to the order of what else its backend was asked for, and has read its data
    /// when the call returns. Other backends read them when the next graph is submitted.
    pub(super) fn copies_in_order(&self) -> bool {
        // SAFETY: a live device has a registry, and that a static name.
        let registry =
            unsafe { text(sys::ggml_backend_reg_name(sys::ggml_backend_dev_backend_reg(self.raw()))) };
        matches!(registry.as_str(), "CUDA" | "ROCm")
    }

    /// Bytes that a tensor takes of the device's memory, up to where the next one can begin.
    pub(super) fn padded_size(&self, tensor: &Tensor) -> usize {
        let buft = self.buffer_type();
        // SAFETY: buffer type and tensor are alive.
        unsafe {
            let align = sys::ggml_backend_buft_get_alignment(buft).max(1);
            sys::ggml_backend_buft_get_alloc_size(buft, tensor.raw()).next_multiple_of(align)
        }
    }

    /// What the backend's captured graphs are like, if it has such: for tests that watch how many kernels a step takes.
    #[doc(hidden)]
    pub fn gpu_graphs(&self) -> Option<GpuGraphs> {
        type Stats = unsafe extern "C" fn(*mut u64, *mut u64, *mut u64);
        let stats = self.proc_address(c"ggml_cuda_g4_stats");
        if stats.is_null() {
            return None;
        }
        // SAFETY: patch 0014 gives this function that name.
        let stats = unsafe { std::mem::transmute::<*mut c_void, Stats>(stats) };
        let mut graphs = GpuGraphs::default();
        // SAFETY: three places for three numbers.
        unsafe { stats(&mut graphs.captured, &mut graphs.instantiated, &mut graphs.kernels) };
        Some(graphs)
    }

    /// Whether the device computes `node` as attention that is causal by numbers
    /// (`GraphBuilder::attention_causal`): one that does not know of it would see every key.
    pub(crate) fn attends_causally(&self, node: &Tensor) -> bool {
        !self.proc_address(c"ggml_flash_attn_ext_get_causal").is_null()
            // SAFETY: device and node are alive.
            && unsafe { sys::ggml_backend_dev_supports_op(self.raw(), node.raw()) }
    }

    /// Whether the device answers reports of block-sparse attention (`GraphBuilder::block_sparse`).
    pub(crate) fn reports_sparse_attention(&self) -> bool {
        !self.proc_address(c"ggml_flash_attn_ext_get_block_sparse").is_null()
    }

    /// A function that the device's backend offers by name.
    pub(super) fn proc_address(&self, name: &CStr) -> *mut c_void {
        // SAFETY: a live registry and a NUL-terminated name; unknown names give null.
        unsafe {
            sys::ggml_backend_reg_get_proc_address(
                sys::ggml_backend_dev_backend_reg(self.raw()),
                name.as_ptr(),
            )
        }
    }
}

/// Graphs that CUDA replays: numbers since the process started.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpuGraphs {
    /// Computations that were captured.
    pub captured: u64,
    /// Executable graphs that were made of them.
    pub instantiated: u64,
    /// Kernels of the one that was captured last.
    pub kernels: u64,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.description())
    }
}

/// # Safety
/// `raw` must be null or a NUL-terminated string.
pub(super) unsafe fn text(raw: *const c_char) -> String {
    if raw.is_null() {
        return String::new();
    }
    // SAFETY: by the contract above.
    unsafe { CStr::from_ptr(raw) }.to_string_lossy().into_owned()
}

/// Bytes of main memory that can be had without swapping, within the limits of the container.
pub(crate) fn host_memory() -> u64 {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let free = system.available_memory();
    system.cgroup_limits().map_or(free, |limits| free.min(limits.free_memory))
}

/// Set from any thread, it makes a running computation stop at its next operation.
#[derive(Clone, Default, Debug)]
pub(crate) struct CancelFlag(Arc<AtomicBool>);

impl CancelFlag {
    pub fn set(&self, on: bool) {
        self.0.store(on, Ordering::Relaxed);
    }

    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

unsafe extern "C" fn should_abort(flag: *mut c_void) -> bool {
    // SAFETY: set together with the pointer to a flag that the backend keeps alive.
    unsafe { &*flag.cast::<AtomicBool>() }.load(Ordering::Relaxed)
}

/// A stream of work on a device. On the CPU it owns its threads.
pub(crate) struct Backend {
    raw: NonNull<sys::ggml_backend>,
    device: Device,
    pool: Option<ThreadPool>,
    _cancel: CancelFlag,
}

// SAFETY: a backend has no ties to the thread that made it; it is used through `&mut Engine` alone.
unsafe impl Send for Backend {}
// SAFETY: shared access reads the device only.
unsafe impl Sync for Backend {}

impl Backend {
    /// Opens a stream. `n_threads` counts on the CPU. `cancel` stops running graphs where the backend can.
    pub fn new(device: Device, n_threads: usize, cancel: &CancelFlag) -> Result<Backend> {
        super::init()?;
        // SAFETY: a live device; exceptions are caught.
        let raw = unsafe { sys::ggml_try_backend_dev_init(device.raw()) };
        let Some(raw) = NonNull::new(raw) else {
            let why = exception().unwrap_or_else(|| "the backend did not start; its log says more".into());
            return Err(Error::Device { name: device.name(), why });
        };
        let mut backend = Backend { raw, device, pool: None, _cancel: cancel.clone() };
        if device.kind() == DeviceKind::Cpu {
            backend.pool = ThreadPool::attach(raw, device, n_threads)?;
        }
        let set_abort = device.proc_address(c"ggml_backend_set_abort_callback");
        if !set_abort.is_null() {
            // SAFETY: the name promises this signature; the flag outlives the backend, which holds it.
            unsafe {
                let set_abort: unsafe extern "C" fn(
                    *mut sys::ggml_backend,
                    sys::ggml_abort_callback,
                    *mut c_void,
                ) = std::mem::transmute(set_abort);
                set_abort(raw.as_ptr(), Some(should_abort), Arc::as_ptr(&cancel.0).cast_mut().cast());
            }
        }
        Ok(backend)
    }

    pub(super) fn raw(&self) -> *mut sys::ggml_backend {
        self.raw.as_ptr()
    }

    pub fn device(&self) -> Device {
        self.device
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // SAFETY: the engine drops its schedulers first. The pool's threads must not outlive the backend's
        // last graph, so it goes after.
        unsafe { sys::ggml_backend_free(self.raw.as_ptr()) };
        self.pool = None;
    }
}

/// The CPU backend's threads. Without a pool of its own ggml starts and joins them for every graph.
struct ThreadPool {
    raw: NonNull<sys::ggml_threadpool>,
    free: unsafe extern "C" fn(*mut sys::ggml_threadpool),
}

impl ThreadPool {
    /// Makes `n_threads` threads for `backend`. `None` if the backend has no such thing.
    fn attach(
        backend: NonNull<sys::ggml_backend>,
        device: Device,
        n_threads: usize,
    ) -> Result<Option<ThreadPool>> {
        type SetThreads = unsafe extern "C" fn(*mut sys::ggml_backend, i32);
        type New = unsafe extern "C" fn(*mut sys::ggml_threadpool_params) -> *mut sys::ggml_threadpool;
        type Free = unsafe extern "C" fn(*mut sys::ggml_threadpool);
        type Attach = unsafe extern "C" fn(*mut sys::ggml_backend, *mut sys::ggml_threadpool);

        if n_threads == 0 || n_threads > sys::GGML_MAX_N_THREADS as usize {
            return Err(Error::Option {
                option: "n_threads",
                value: n_threads.to_string(),
                why: format!("must be from 1 to {}", sys::GGML_MAX_N_THREADS),
            });
        }
        try_threads(n_threads - 1)?;
        let addresses = [
            c"ggml_backend_set_n_threads",
            c"ggml_threadpool_new",
            c"ggml_threadpool_free",
            c"ggml_backend_cpu_set_threadpool",
        ]
        .map(|name| device.proc_address(name));
        if addresses.iter().any(|a| a.is_null()) {
            return Ok(None);
        }
        let [set_threads, new, free, attach] = addresses;
        // SAFETY: the names promise these signatures; the backend is alive and idle.
        unsafe {
            let free = std::mem::transmute::<*mut c_void, Free>(free);
            let mut params = sys::ggml_threadpool_params_default(n_threads as i32);
            std::mem::transmute::<*mut c_void, SetThreads>(set_threads)(backend.as_ptr(), n_threads as i32);
            let raw = std::mem::transmute::<*mut c_void, New>(new)(&mut params);
            let Some(raw) = NonNull::new(raw) else {
                return misuse("threadpool_new", format!("cannot start {n_threads} threads"));
            };
            std::mem::transmute::<*mut c_void, Attach>(attach)(backend.as_ptr(), raw.as_ptr());
            Ok(Some(ThreadPool { raw, free }))
        }
    }
}

/// Starts and ends `n` threads at once: ggml aborts the process when the system refuses it one.
fn try_threads(n: usize) -> Result<()> {
    /// What ggml's threads get on Linux unless the user's limit says otherwise.
    const STACK: usize = 8 << 20;
    std::thread::scope(|scope| {
        let mut waiting = Vec::with_capacity(n);
        for started in 0..n {
            // Dropping the sender wakes the thread, whether all have started or not.
            let (end, wait) = std::sync::mpsc::channel::<()>();
            let thread = std::thread::Builder::new().stack_size(STACK);
            if let Err(why) = thread.spawn_scoped(scope, move || wait.recv().is_err()) {
                return Err(Error::Option {
                    option: "n_threads",
                    value: (n + 1).to_string(),
                    why: format!("the system starts no more than {started} beside the caller's ({why})"),
                });
            }
            waiting.push(end);
        }
        Ok(())
    })
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        // SAFETY: made by the matching function, freed once.
        unsafe { (self.free)(self.raw.as_ptr()) }
    }
}
