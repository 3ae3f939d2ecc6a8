//! Buffers, mapped files, and storage: tensors with memory of their own.

use super::backend::Device;
use super::packing::Packing;
use super::tensor::{Arena, Role, Tensor};
use super::{DType, exception, misuse};
use crate::{Error, Result};
use ggml_sys as sys;
use std::fs::File;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

/// A buffer of a device's memory.
pub(crate) struct Buffer(NonNull<sys::ggml_backend_buffer>);

// SAFETY: ggml's buffers may be used and freed from any thread; this handle is their only owner.
unsafe impl Send for Buffer {}
// SAFETY: shared access reads the size only.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Memory of a device; `None` if it has too little.
    pub(super) fn new(device: Device, n_bytes: usize) -> Option<Buffer> {
        // SAFETY: a live buffer type; a failure gives null.
        NonNull::new(unsafe { sys::ggml_try_buft_alloc_buffer(device.buffer_type(), n_bytes) }).map(Buffer)
    }

    pub(super) fn raw(&self) -> *mut sys::ggml_backend_buffer {
        self.0.as_ptr()
    }

    pub(super) fn size(&self) -> u64 {
        // SAFETY: the buffer is alive until drop.
        unsafe { sys::ggml_backend_buffer_get_size(self.0.as_ptr()) as u64 }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the arena that owned this buffer is going away, so no tensor refers to it.
        unsafe { sys::ggml_backend_buffer_free(self.0.as_ptr()) }
    }
}

/// A file mapped into memory, read-only.
///
/// Like every user of memory maps, this trusts that nobody truncates the file while it is in use: the
/// system would then end the process at the next read. [`LoadOptions`](crate::LoadOptions) can ask for a
/// copy instead.
pub(crate) struct FileMap(memmap2::Mmap);

impl FileMap {
    pub fn open(path: &Path) -> Result<Arc<FileMap>> {
        let io = |action| move |source| Error::Io { action, path: path.to_owned(), source };
        let file = File::open(path).map_err(io("open"))?;
        // SAFETY: the map is read-only. That the file keeps its length is the documented condition above.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io("map into memory"))?;
        Ok(Arc::new(FileMap(map)))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Collects tensors that will share one allocation.
pub(crate) struct StorageBuilder {
    arena: Arc<Arena>,
    tensors: Vec<Tensor>,
}

impl StorageBuilder {
    /// Weights: filled once, then shared by everybody and written by nobody.
    pub fn weights(max_tensors: usize) -> Result<Self> {
        Ok(StorageBuilder { arena: Arena::new(Role::Weights, max_tensors + 4, 0)?, tensors: Vec::new() })
    }

    /// State of one session, which its graphs write.
    pub fn state(max_tensors: usize) -> Result<Self> {
        Ok(StorageBuilder { arena: Arena::new(Role::State, max_tensors + 4, 0)?, tensors: Vec::new() })
    }

    /// Describes a tensor of shape `ne`.
    pub fn tensor(&mut self, name: &str, dtype: DType, ne: [u64; 4]) -> Result<Tensor> {
        let bytes = dtype.row_bytes(ne[0]).and_then(|row| {
            ne[1..].iter().try_fold(row, |size, &n| if n == 0 { None } else { size.checked_mul(n) })
        });
        if ne[0] == 0 || bytes.is_none_or(|b| b > isize::MAX as u64) {
            return misuse("new_tensor", format!("{name}: no {dtype} tensor has the shape {ne:?}"));
        }
        self.arena.check_room("new_tensor")?;
        let ne = ne.map(|n| n as i64);
        // SAFETY: the arena is this builder's own and has room; the shape is valid for the type.
        let raw = unsafe { sys::ggml_new_tensor(self.arena.ctx(), dtype.0, 4, ne.as_ptr()) };
        let tensor = Tensor::wrap(raw, &self.arena, "new_tensor")?;
        tensor.set_name(name);
        self.tensors.push(tensor.clone());
        Ok(tensor)
    }

    /// Allocates memory on `device` for all tensors, zero-filled.
    pub fn allocate(self, device: &Device, what: &str, hint: &'static str) -> Result<Storage> {
        self.allocate_in(device.buffer_type(), device, what, hint)
    }

    /// As [`allocate`](Self::allocate), in the CPU's memory for rearranged weights.
    pub fn allocate_packed(self, packing: &Packing, what: &str, hint: &'static str) -> Result<Storage> {
        self.allocate_in(packing.buft, &packing.device, what, hint)
    }

    fn allocate_in(
        self,
        buft: *mut sys::ggml_backend_buffer_type,
        device: &Device,
        what: &str,
        hint: &'static str,
    ) -> Result<Storage> {
        if self.tensors.is_empty() {
            return Ok(Storage { arena: self.arena, writable: false });
        }
        // SAFETY: the context and the buffer type are alive; only reads sizes.
        let needed =
            unsafe { sys::ggml_backend_alloc_ctx_tensors_from_buft_size(self.arena.ctx(), buft) } as u64;
        let out_of_memory = |available: u64| Error::OutOfMemory {
            what: what.to_owned(),
            device: device.name(),
            needed,
            available,
            hint,
        };
        let available = device.memory_available();
        if needed > available {
            return Err(out_of_memory(available));
        }
        // SAFETY: as above; a failed allocation returns null and leaves the tensors without memory.
        let raw = unsafe { sys::ggml_try_alloc_ctx_tensors(self.arena.ctx(), buft) };
        let Some(raw) = NonNull::new(raw) else { return Err(out_of_memory(available)) };
        let usage = usage(self.arena.role());
        // SAFETY: a live buffer that only this function knows. Clearing matters: attention multiplies
        // masked rows by zero, and zero times a stray NaN is NaN.
        let cleared = unsafe {
            sys::ggml_backend_buffer_set_usage(raw.as_ptr(), usage);
            sys::ggml_try_buffer_clear(raw.as_ptr(), 0)
        };
        self.arena.keep_buffer(Buffer(raw));
        if !cleared {
            return misuse("buffer_clear", exception().unwrap_or_default());
        }
        Ok(Storage { arena: self.arena, writable: true })
    }

    /// Gives all tensors a buffer of no size, so that graphs over them can be measured but not computed.
    /// Returns the bytes that [`allocate`](Self::allocate) would take.
    pub fn pretend(self, device: &Device) -> Result<(Storage, u64)> {
        self.pretend_in(device.buffer_type())
    }

    /// As [`pretend`](Self::pretend), for [`allocate_packed`](Self::allocate_packed).
    pub fn pretend_packed(self, packing: &Packing) -> Result<(Storage, u64)> {
        self.pretend_in(packing.buft)
    }

    fn pretend_in(self, buft: *mut sys::ggml_backend_buffer_type) -> Result<(Storage, u64)> {
        let usage = usage(self.arena.role());
        // SAFETY: the context and the buffer type are alive; an empty buffer takes no memory.
        let (needed, raw) = unsafe {
            let needed = sys::ggml_backend_alloc_ctx_tensors_from_buft_size(self.arena.ctx(), buft);
            (needed as u64, sys::ggml_try_buft_alloc_buffer(buft, 0))
        };
        let Some(raw) = NonNull::new(raw) else {
            return misuse("buft_alloc_buffer", exception().unwrap_or_default());
        };
        // SAFETY: a live buffer that only this function knows. The scheduler goes by what buffers are for.
        unsafe { sys::ggml_backend_buffer_set_usage(raw.as_ptr(), usage) };
        for tensor in &self.tensors {
            // SAFETY: the tensors are this builder's own. Without data they cannot be read or written:
            // `is_allocated` says no, and nothing computes a measured graph.
            unsafe { (*tensor.raw()).buffer = raw.as_ptr() };
        }
        self.arena.keep_buffer(Buffer(raw));
        Ok((Storage { arena: self.arena, writable: false }, needed))
    }

    /// Places all tensors into a mapped file, each at its offset in bytes. Only for devices that compute
    /// from host memory.
    pub fn map(self, map: &Arc<FileMap>, offsets: &[u64]) -> Result<Storage> {
        const OP: &str = "buffer_from_ptr";
        if self.tensors.is_empty() {
            return Ok(Storage { arena: self.arena, writable: false });
        }
        let bytes = map.bytes();
        if offsets.len() != self.tensors.len() || !(bytes.as_ptr() as usize).is_multiple_of(32) {
            return misuse(OP, "the map is misaligned, or offsets are missing");
        }
        for (tensor, &offset) in self.tensors.iter().zip(offsets) {
            let end = offset.checked_add(tensor.n_bytes() as u64);
            if end.is_none_or(|end| end > bytes.len() as u64) || !offset.is_multiple_of(32) {
                return misuse(
                    OP,
                    format!("{tensor:?} at byte {offset} is not inside the file, or misaligned"),
                );
            }
        }
        // SAFETY: the pointer is aligned for ggml and valid for the length; the arena keeps the map. ggml
        // takes it as writable, but nothing writes: weights are no target of any operation.
        let raw =
            unsafe { sys::ggml_backend_cpu_buffer_from_ptr(bytes.as_ptr().cast_mut().cast(), bytes.len()) };
        let Some(raw) = NonNull::new(raw) else { return misuse(OP, "ggml returned no buffer") };
        self.arena.keep_map(map.clone());
        self.arena.keep_buffer(Buffer(raw));
        for (tensor, &offset) in self.tensors.iter().zip(offsets) {
            // SAFETY: the tensor is new (no memory, no view) and its range lies inside the buffer.
            let status = unsafe {
                sys::ggml_backend_buffer_set_usage(raw.as_ptr(), sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
                let address = bytes.as_ptr().add(offset as usize).cast_mut().cast();
                sys::ggml_backend_tensor_alloc(raw.as_ptr(), tensor.raw(), address)
            };
            if status != sys::GGML_STATUS_SUCCESS {
                return misuse(OP, format!("status {status}"));
            }
        }
        Ok(Storage { arena: self.arena, writable: false })
    }
}

/// What ggml is told of a buffer.
fn usage(role: Role) -> sys::ggml_backend_buffer_usage {
    match role {
        Role::Weights => sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS,
        _ => sys::GGML_BACKEND_BUFFER_USAGE_ANY,
    }
}

/// Tensors with memory, and the right to write them.
pub(crate) struct Storage {
    arena: Arc<Arena>,
    writable: bool,
}

impl Storage {
    /// Copies bytes into a tensor of this storage.
    pub fn write(&mut self, tensor: &Tensor, offset: usize, bytes: &[u8]) -> Result<()> {
        if !Arc::ptr_eq(tensor.arena(), &self.arena) || !self.writable {
            return misuse("tensor_set", "the tensor belongs to another storage, or this one is read-only");
        }
        tensor.copy_in(offset, bytes, None)
    }

    /// Copies bytes from a tensor of this storage. No computation may be running on it: the session that
    /// owns both sees to that.
    pub fn read(&self, tensor: &Tensor, offset: usize, bytes: &mut [u8]) -> Result<()> {
        if !Arc::ptr_eq(tensor.arena(), &self.arena) {
            return misuse("tensor_get", "the tensor belongs to another storage");
        }
        tensor.copy_out(offset, bytes, None)
    }

    /// Whether a tensor is of this storage.
    pub fn owns(&self, tensor: &Tensor) -> bool {
        Arc::ptr_eq(tensor.arena(), &self.arena)
    }

    /// Bytes allocated or mapped.
    pub fn n_bytes(&self) -> u64 {
        self.arena.buffer_bytes()
    }
}
