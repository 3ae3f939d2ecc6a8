//! Tensors and the arenas that own them.

use super::memory::{Buffer, FileMap};
use super::{DType, misuse};
use crate::{Error, Result};
use ggml_sys as sys;
use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

/// Who may write the data of an arena's tensors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// Filled once, then shared by sessions on any thread.
    Weights,
    /// Written by the graphs of one session.
    State,
    /// Nodes and inputs of one graph.
    Graph,
}

/// A ggml context: the memory of tensor descriptions, and all that their data needs.
pub(crate) struct Arena {
    ctx: NonNull<sys::ggml_context>,
    role: Role,
    keep: Mutex<Keep>,
}

/// What must outlive an arena's tensors.
#[derive(Default)]
struct Keep {
    buffers: Vec<Buffer>,
    maps: Vec<Arc<FileMap>>,
    arenas: Vec<Arc<Arena>>,
}

// SAFETY: the context is written only by the builder that made it, before anyone else has a reference;
// after that it is read. `keep` has its own lock. Data behind the tensors follows the rules of the module.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// An arena with room for `n_tensors` descriptions and `extra` bytes of other objects.
    pub(super) fn new(role: Role, n_tensors: usize, extra: usize) -> Result<Arc<Arena>> {
        // SAFETY: reads constants. ggml_init zeroes nothing that we rely on and reports failure by null.
        let ctx = unsafe {
            let size = sys::ggml_tensor_overhead().saturating_mul(n_tensors).saturating_add(extra);
            sys::ggml_init(sys::ggml_init_params {
                mem_size: size,
                mem_buffer: std::ptr::null_mut(),
                no_alloc: true,
            })
        };
        match NonNull::new(ctx) {
            Some(ctx) => Ok(Arc::new(Arena { ctx, role, keep: Mutex::default() })),
            None => misuse("init", format!("no memory for {n_tensors} tensor descriptions")),
        }
    }

    pub(super) fn role(&self) -> Role {
        self.role
    }

    pub(super) fn ctx(&self) -> *mut sys::ggml_context {
        self.ctx.as_ptr()
    }

    /// Refuses when the next object would not fit: ggml answers that by a null pointer that its own
    /// constructors then write through.
    pub(super) fn check_room(&self, op: &'static str) -> Result<()> {
        // SAFETY: the context is alive; both calls read its counters.
        let (used, size) = unsafe { (sys::ggml_used_mem(self.ctx()), sys::ggml_get_mem_size(self.ctx())) };
        // SAFETY: a constant.
        let one = unsafe { sys::ggml_tensor_overhead() };
        if used + 4 * one > size {
            return misuse(op, format!("the arena is full ({used} of {size} bytes)"));
        }
        Ok(())
    }

    fn keep(&self) -> std::sync::MutexGuard<'_, Keep> {
        // The lists stay consistent even if a thread panicked while it held the lock.
        self.keep.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn keep_buffer(&self, buffer: Buffer) {
        self.keep().buffers.push(buffer);
    }

    pub(super) fn keep_map(&self, map: Arc<FileMap>) {
        self.keep().maps.push(map);
    }

    pub(super) fn keep_arena(&self, other: &Arc<Arena>) {
        let mut keep = self.keep();
        if !keep.arenas.iter().any(|have| Arc::ptr_eq(have, other)) {
            keep.arenas.push(other.clone());
        }
    }

    /// Bytes of the buffers that this arena owns. A file map counts with its mapped size.
    pub(super) fn buffer_bytes(&self) -> u64 {
        self.keep().buffers.iter().map(Buffer::size).sum()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: this is the last reference, so no tensor of the context is reachable. Freeing a context
        // touches descriptions only; the buffers go afterwards, with `keep`.
        unsafe { sys::ggml_free(self.ctx.as_ptr()) }
    }
}

/// A counted reference to a tensor. Cheap to clone; the data lives as long as any clone.
#[derive(Clone)]
pub(crate) struct Tensor {
    raw: NonNull<sys::ggml_tensor>,
    arena: Arc<Arena>,
}

// SAFETY: a tensor gives read access to its description, which is frozen once its builder is gone; the
// arena is Send and Sync.
unsafe impl Send for Tensor {}
// SAFETY: as above.
unsafe impl Sync for Tensor {}

/// A backend whose own order of work a copy keeps to; `None` for a copy by itself.
pub(super) type Stream = Option<*mut sys::ggml_backend>;

impl Tensor {
    /// Wraps what a ggml constructor returned into `arena`.
    pub(super) fn wrap(raw: *mut sys::ggml_tensor, arena: &Arc<Arena>, op: &'static str) -> Result<Tensor> {
        match NonNull::new(raw) {
            Some(raw) => Ok(Tensor { raw, arena: arena.clone() }),
            None => misuse(op, "ggml returned no tensor"),
        }
    }

    pub(super) fn raw(&self) -> *mut sys::ggml_tensor {
        self.raw.as_ptr()
    }

    pub(super) fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// Shape, ggml order: `[ne0, ne1, ne2, ne3]`.
    pub fn ne(&self) -> [i64; 4] {
        // SAFETY: the arena keeps the description alive.
        unsafe { (*self.raw()).ne }
    }

    /// Strides in bytes.
    pub fn nb(&self) -> [usize; 4] {
        // SAFETY: as above.
        unsafe { (*self.raw()).nb }
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        // SAFETY: as above.
        DType(unsafe { (*self.raw()).type_ })
    }

    /// Bytes from the first element to the end of the last.
    pub fn n_bytes(&self) -> usize {
        // SAFETY: as above.
        unsafe { sys::ggml_nbytes(self.raw()) }
    }

    /// Whether elements follow each other without gaps.
    pub fn is_contiguous(&self) -> bool {
        // SAFETY: as above.
        unsafe { sys::ggml_is_contiguous(self.raw()) }
    }

    /// Whether every row is without gaps.
    pub fn is_contiguous_rows(&self) -> bool {
        // SAFETY: as above.
        unsafe { sys::ggml_is_contiguous_rows(self.raw()) }
    }

    /// Whether rows have no gaps inside and dimensions 2 and 3 follow dimension 1 without gaps: true of a
    /// view of one half of every row.
    pub fn is_packed_above_rows(&self) -> bool {
        // SAFETY: as above.
        unsafe { sys::ggml_is_contiguous_1(self.raw()) }
    }

    /// Number of values.
    pub fn n_elements(&self) -> i64 {
        self.ne().iter().product()
    }

    /// Whether memory stands behind the tensor (through the tensor it views, for a view).
    pub(super) fn is_allocated(&self) -> bool {
        // SAFETY: as above; `view_src` of a view lives in an arena that this one keeps.
        unsafe {
            let tensor = &*self.raw();
            !tensor.data.is_null()
                && (!tensor.buffer.is_null()
                    || (!tensor.view_src.is_null() && !(*tensor.view_src).buffer.is_null()))
        }
    }

    /// Names the tensor, for logs and debuggers. Long names are cut.
    pub(super) fn set_name(&self, name: &str) {
        if let Ok(name) = CString::new(name) {
            // SAFETY: copies at most GGML_MAX_NAME bytes into the description; only builders call this.
            unsafe { sys::ggml_set_name(self.raw(), name.as_ptr()) };
        }
    }

    /// Gives the tensor, which must be new, its place in a buffer.
    pub(super) fn place_in(&self, buffer: &Buffer, offset: usize) -> Result<()> {
        let size = self.n_bytes();
        if self.is_allocated() || offset.checked_add(size).is_none_or(|end| end as u64 > buffer.size()) {
            return misuse(
                "tensor_alloc",
                format!("{self:?} at {offset} of a buffer of {} bytes", buffer.size()),
            );
        }
        // SAFETY: the tensor has no memory yet, and the range lies inside of the buffer.
        let status = unsafe {
            let address = sys::ggml_backend_buffer_get_base(buffer.raw()).cast::<u8>().add(offset);
            sys::ggml_backend_tensor_alloc(buffer.raw(), self.raw(), address.cast())
        };
        if status == sys::GGML_STATUS_SUCCESS {
            Ok(())
        } else {
            misuse("tensor_alloc", format!("status {status}"))
        }
    }

    /// Says in whose memory the tensor will be, without giving it any: [`is_allocated`](Self::is_allocated) stays false.
    pub(super) fn pretend_in(&self, buffer: &Buffer) {
        // SAFETY: sets a field of a description that only the owner of the graph knows.
        unsafe { (*self.raw()).buffer = buffer.raw() };
    }

    /// Copies data to the tensor: at once, or behind what `stream` was asked for before. The caller must hold the only way
    /// to write it.
    pub(super) fn copy_in(&self, offset: usize, bytes: &[u8], stream: Stream) -> Result<()> {
        self.check_range("tensor_set", offset, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        let (data, size) = (bytes.as_ptr().cast(), bytes.len());
        // SAFETY: memory stands behind the tensor and the range lies inside. A backend whose copies keep its order
        // (`Device::copies_in_order`) has read the data when the call returns.
        let done = unsafe {
            match stream {
                None => sys::ggml_try_tensor_set(self.raw(), data, offset, size),
                Some(backend) => sys::ggml_try_tensor_set_async(backend, self.raw(), data, offset, size),
            }
        };
        self.check_done("tensor_set", done)
    }

    /// Copies data from the tensor: at once, or when `stream` has done what it was asked for before. Nobody else may be
    /// writing it.
    pub(super) fn copy_out(&self, offset: usize, bytes: &mut [u8], stream: Stream) -> Result<()> {
        self.check_range("tensor_get", offset, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        let (data, size) = (bytes.as_mut_ptr().cast(), bytes.len());
        // SAFETY: as above; the data are there when it returns.
        let done = unsafe {
            match stream {
                None => sys::ggml_try_tensor_get(self.raw(), data, offset, size),
                Some(backend) => sys::ggml_try_tensor_get_in_order(backend, self.raw(), data, offset, size),
            }
        };
        self.check_done("tensor_get", done)
    }

    fn check_range(&self, op: &'static str, offset: usize, len: usize) -> Result<()> {
        let size = self.n_bytes();
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return misuse(op, format!("{len} bytes at {offset} of a tensor of {size} bytes"));
        }
        if !self.is_allocated() {
            return misuse(op, "the tensor has no memory yet");
        }
        Ok(())
    }

    fn check_done(&self, op: &'static str, done: bool) -> Result<()> {
        if done {
            return Ok(());
        }
        Err(Error::Ggml { op, why: super::exception().unwrap_or_else(|| "copy failed".into()) })
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{:?}", self.dtype(), self.ne())
    }
}
