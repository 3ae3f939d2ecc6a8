//! Element types.

use super::gguf::TypeLayout;
use ggml_sys as sys;
use std::ffi::CStr;
use std::fmt;

/// An element type of tensors: a plain number type, or blocks of quantised values.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct DType(pub(crate) u32);

#[allow(missing_docs)] // the names are the documentation
impl DType {
    pub const F32: DType = DType(sys::GGML_TYPE_F32);
    pub const F16: DType = DType(sys::GGML_TYPE_F16);
    pub const BF16: DType = DType(sys::GGML_TYPE_BF16);
    pub const Q8_0: DType = DType(sys::GGML_TYPE_Q8_0);
    pub const Q5_1: DType = DType(sys::GGML_TYPE_Q5_1);
    pub const Q5_0: DType = DType(sys::GGML_TYPE_Q5_0);
    pub const Q4_1: DType = DType(sys::GGML_TYPE_Q4_1);
    pub const Q4_0: DType = DType(sys::GGML_TYPE_Q4_0);
    pub const IQ4_NL: DType = DType(sys::GGML_TYPE_IQ4_NL);
    /// 3.5 bits a value. For caches only: no file holds it.
    pub const TQ3_0: DType = DType(sys::GGML_TYPE_TQ3_0);
    pub const I32: DType = DType(sys::GGML_TYPE_I32);
    pub const I64: DType = DType(sys::GGML_TYPE_I64);
}

impl DType {
    /// Bytes of a row of `n` values; `None` if `n` is no multiple of the block size.
    pub(crate) fn row_bytes(self, n: u64) -> Option<u64> {
        let layout = layout(self.0)?;
        n.is_multiple_of(layout.block).then(|| (n / layout.block).checked_mul(layout.bytes)).flatten()
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if layout(self.0).is_none() {
            return write!(f, "type {}", self.0);
        }
        // SAFETY: the id is one of ggml's table, whose names are static strings.
        let name = unsafe { CStr::from_ptr(sys::ggml_type_name(self.0)) };
        f.write_str(&name.to_string_lossy())
    }
}

impl fmt::Debug for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Block size and bytes of any type in ggml's table.
fn layout(id: u32) -> Option<TypeLayout> {
    if id >= sys::GGML_TYPE_COUNT {
        return None;
    }
    // SAFETY: the id is inside the table; gaps in it are zero-filled.
    let (block, bytes) = unsafe { (sys::ggml_blck_size(id), sys::ggml_type_size(id)) };
    (block > 0 && bytes > 0).then_some(TypeLayout { block: block as u64, bytes: bytes as u64 })
}

/// Layout of a type that a file may use. TQ3_0 exists in caches only: its id means other things to other
/// programs.
pub fn type_layout(id: u32) -> Option<TypeLayout> {
    if id == sys::GGML_TYPE_TQ3_0 { None } else { layout(id) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_and_names() {
        assert_eq!(DType::Q8_0.row_bytes(64), Some(68));
        assert_eq!(DType::Q8_0.row_bytes(65), None);
        assert_eq!(DType::TQ3_0.row_bytes(256), Some(112));
        assert_eq!(DType::TQ3_0.row_bytes(512), Some(224));
        assert_eq!(DType::TQ3_0.to_string(), "tq3_0");
        assert_eq!(DType::F16.row_bytes(3), Some(6));
        assert_eq!(DType::Q4_0.to_string(), "q4_0");
        assert_eq!(DType(4).to_string(), "type 4");
    }

    #[test]
    fn files_may_not_use_removed_unknown_or_private_types() {
        for id in [4, 5, 31, 36, 43, 100, 223, sys::GGML_TYPE_TQ3_0, sys::GGML_TYPE_COUNT, u32::MAX] {
            assert_eq!(type_layout(id), None, "{id}");
        }
    }
}
