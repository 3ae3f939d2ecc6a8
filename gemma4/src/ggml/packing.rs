//! Weights in the order in which the CPU's fastest kernels read them.

use super::backend::Device;
use super::exception;
use super::tensor::{Arena, Role};
use super::{DType, misuse};
use crate::Result;
use ggml_sys as sys;
use std::ptr::NonNull;

/// How a weight is used in graphs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Product {
    /// One matrix: `MUL_MAT`.
    Matrix,
    /// A stack of matrices of which each token takes some: `MUL_MAT_ID`.
    Experts,
}

/// A kind of CPU memory whose tensors are rearranged when they are written. They serve products only: they
/// cannot be read back, and rows cannot be gathered from them.
#[derive(Clone, Copy)]
pub(crate) struct Packing {
    pub(super) buft: *mut sys::ggml_backend_buffer_type,
    pub(super) device: Device,
}

impl Packing {
    /// The packing that the CPU backend of this build and machine offers, if any.
    pub fn of_cpu() -> Result<Option<Packing>> {
        type Extra =
            unsafe extern "C" fn(*mut sys::ggml_backend_device) -> *mut *mut sys::ggml_backend_buffer_type;

        let device = Device::cpu()?;
        let extra = device.proc_address(c"ggml_backend_dev_get_extra_bufts");
        if extra.is_null() {
            return Ok(None);
        }
        // SAFETY: the name promises this signature and a list that ends with null. Its entries are static.
        unsafe {
            let mut list = std::mem::transmute::<*mut std::ffi::c_void, Extra>(extra)(device.raw());
            while !list.is_null() && !(*list).is_null() {
                let name = super::backend::text(sys::ggml_backend_buft_name(*list));
                // Others (AMX, KleidiAI) want more than rows in another order.
                if name == "CPU_REPACK" {
                    return Ok(Some(Packing { buft: *list, device }));
                }
                list = list.add(1);
            }
        }
        Ok(None)
    }

    /// Whether a weight of this type and shape, used in this way, gains by packing.
    pub fn serves(&self, dtype: DType, ne: [u64; 4], product: Product) -> Result<bool> {
        let arena = Arena::new(Role::Graph, 16, 0)?;
        let ne = ne.map(|n| n as i64);
        // SAFETY: the arena has room for the four tensors; their shapes fit each other by construction. The
        // empty buffer takes no memory and is freed after the only call that looks at it.
        unsafe {
            let ctx = arena.ctx();
            let weight = sys::ggml_new_tensor_4d(ctx, dtype.0, ne[0], ne[1], ne[2], ne[3]);
            let op = match product {
                Product::Matrix => {
                    let x = sys::ggml_new_tensor_4d(ctx, sys::GGML_TYPE_F32, ne[0], 512, ne[2], ne[3]);
                    sys::ggml_mul_mat(ctx, weight, x)
                }
                Product::Experts if ne[3] == 1 => {
                    let x = sys::ggml_new_tensor_3d(ctx, sys::GGML_TYPE_F32, ne[0], 1, 512);
                    let ids = sys::ggml_new_tensor_2d(ctx, sys::GGML_TYPE_I32, 1, 512);
                    sys::ggml_mul_mat_id(ctx, weight, x, ids)
                }
                Product::Experts => return Ok(false),
            };
            let Some(buffer) = NonNull::new(sys::ggml_try_buft_alloc_buffer(self.buft, 0)) else {
                return misuse("buft_alloc_buffer", exception().unwrap_or_default());
            };
            (*weight).buffer = buffer.as_ptr();
            let yes = sys::ggml_backend_dev_supports_op(self.device.raw(), op);
            (*weight).buffer = std::ptr::null_mut();
            sys::ggml_backend_buffer_free(buffer.as_ptr());
            Ok(yes)
        }
    }
}
