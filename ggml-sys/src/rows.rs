//! Rows of numbers in ggml's types and back, for tests and tools: no model's data should go through here, which takes no
//! threads and no hints.

use crate::*;

/// Bytes that `n` numbers take in rows of `row`; `None` where the type is unknown or its blocks do not divide a row.
fn size(type_: ggml_type, n: usize, row: usize) -> Option<usize> {
    if type_ >= GGML_TYPE_COUNT || row == 0 || n % row != 0 {
        return None;
    }
    // SAFETY: the id is one of the table; removed types have blocks of no values.
    let (block, bytes) = unsafe { (ggml_blck_size(type_), ggml_type_size(type_)) };
    (block > 0 && row % block as usize == 0).then(|| n / block as usize * bytes)
}

/// Rounds rows of `row` numbers to a type, all columns weighing the same. False, with nothing written, if the type cannot
/// be made from numbers, `out` has another size, or a row is longer than 65,536.
pub fn quantize_rows(type_: ggml_type, values: &[f32], row: usize, out: &mut [u8]) -> bool {
    static IMPORTANCE: [f32; 1 << 16] = [1.0; 1 << 16];
    // Types between operations, whose rounding is not offered, would end the process.
    let is_weight = !matches!(
        type_,
        GGML_TYPE_Q8_1
            | GGML_TYPE_Q8_K
            | GGML_TYPE_I8
            | GGML_TYPE_I16
            | GGML_TYPE_I32
            | GGML_TYPE_I64
            | GGML_TYPE_F64
    );
    if !is_weight || row > IMPORTANCE.len() || size(type_, values.len(), row) != Some(out.len()) {
        return false;
    }
    // SAFETY: the type can be made, both buffers have its sizes, and there is a weight for each column.
    let written = unsafe {
        let importance =
            if ggml_quantize_requires_imatrix(type_) { IMPORTANCE.as_ptr() } else { core::ptr::null() };
        let (n_rows, n) = ((values.len() / row) as i64, row as i64);
        ggml_quantize_chunk(type_, values.as_ptr(), out.as_mut_ptr().cast(), 0, n_rows, n, importance)
    };
    written == out.len()
}

/// The numbers that blocks of a type stand for. False, with nothing written, if they have another count or the type cannot
/// be read.
pub fn dequantize_rows(type_: ggml_type, bytes: &[u8], values: &mut [f32]) -> bool {
    if values.is_empty() || size(type_, values.len(), values.len()) != Some(bytes.len()) {
        return false;
    }
    // SAFETY: the id is one of the table, and both buffers hold as many numbers as are decoded.
    unsafe {
        let Some(decode) = (*ggml_get_type_traits(type_)).to_float else { return false };
        decode(bytes.as_ptr().cast(), values.as_mut_ptr(), values.len() as i64);
    }
    true
}
