//! Random values, quantised rows and the comparison of results.

use crate::tq3;
use ggml_sys::*;

/// A small generator: the same numbers everywhere.
pub struct Random(u64);

impl Random {
    /// Starts a sequence.
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Uniform in 0..n.
    pub fn below(&mut self, n: u64) -> u64 {
        (self.bits() >> 11) % n
    }

    /// Close to standard normal: the sum of 12 uniform values.
    pub fn normal(&mut self) -> f32 {
        let (a, b) = (self.bits(), self.bits());
        let part = |bits: u64, i: u32| ((bits >> (10 * i)) & 1023) as f32 + 0.5;
        (0..6).map(|i| part(a, i) + part(b, i)).sum::<f32>() / 1024.0 - 6.0
    }

    /// That many normal values times `scale`.
    pub fn normals(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| scale * self.normal()).collect()
    }
}

/// The types of K and V that the kernels know.
pub const TYPES: [ggml_type; 4] = [GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_TQ3_0];

/// A type's short name.
pub fn name(t: ggml_type) -> &'static str {
    match t {
        GGML_TYPE_F32 => "f32",
        GGML_TYPE_F16 => "f16",
        GGML_TYPE_Q8_0 => "q8_0",
        GGML_TYPE_Q4_0 => "q4_0",
        GGML_TYPE_TQ3_0 => "tq3_0",
        GGML_TYPE_Q5_0 => "q5_0",
        GGML_TYPE_Q4_K => "q4_k",
        GGML_TYPE_Q6_K => "q6_k",
        _ => "?",
    }
}

/// Bytes of `n` values of a type.
pub fn bytes_of(t: ggml_type, n: usize) -> usize {
    // SAFETY: a lookup in a static table.
    unsafe { ggml_row_size(t, n as i64) }
}

/// Quantises a whole number of blocks.
pub fn quantise(t: ggml_type, x: &[f32]) -> Vec<u8> {
    match t {
        GGML_TYPE_TQ3_0 => x.chunks(tq3::BLOCK).flat_map(tq3::encode).collect(),
        GGML_TYPE_F16 => x.iter().flat_map(|&v| tq3::f32_to_half(v).to_le_bytes()).collect(),
        _ => {
            let mut out = vec![0u8; bytes_of(t, x.len())];
            // SAFETY: one row of the slice's length; the output has the row's size.
            unsafe {
                ggml_quantize_chunk(
                    t,
                    x.as_ptr(),
                    out.as_mut_ptr().cast(),
                    0,
                    1,
                    x.len() as i64,
                    std::ptr::null(),
                );
            }
            out
        }
    }
}

/// Decodes what `quantise` made.
pub fn dequantise(t: ggml_type, bytes: &[u8]) -> Vec<f32> {
    let half = |b: &[u8]| tq3::half_to_f32(u16::from_le_bytes([b[0], b[1]]));
    match t {
        GGML_TYPE_TQ3_0 => bytes.chunks(tq3::BYTES).flat_map(tq3::decode).collect(),
        GGML_TYPE_F16 => bytes.chunks(2).map(half).collect(),
        GGML_TYPE_Q8_0 => {
            let block =
                |b: &[u8]| -> Vec<f32> { b[2..34].iter().map(|&q| half(b) * f32::from(q as i8)).collect() };
            bytes.chunks(34).flat_map(block).collect()
        }
        _ => {
            let block = |b: &[u8]| -> Vec<f32> {
                let low = b[2..18].iter().map(|&q| half(b) * (f32::from(q & 15) - 8.0));
                low.chain(b[2..18].iter().map(|&q| half(b) * (f32::from(q >> 4) - 8.0))).collect()
            };
            bytes.chunks(18).flat_map(block).collect()
        }
    }
}

/// Squared error over squared reference.
pub fn nmse(have: &[f32], want: &[f32]) -> f64 {
    let error: f64 = have.iter().zip(want).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    let norm: f64 = want.iter().map(|b| f64::from(*b).powi(2)).sum();
    if norm == 0.0 { error } else { error / norm }
}
