//! TQ3_0, Q4_0 and the rotations in plain Rust, from their definitions: what tests and experiments compare with.

use half::f16;

/// Which scale a block of TQ3_0 gets for chosen codes `q`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// `sum x^2 / sum x q`: the block's products keep their size on average. The format's rule.
    Gain1,
    /// `sum x q / sum q^2`: the least squared error.
    LeastSquares,
}

/// How a block becomes codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// 3.5 bits.
    Tq3(Scale),
    /// 4.5 bits.
    Q4,
}

const CODEBOOK: [f32; 8] = [-114.0, -71.0, -40.0, -13.0, 13.0, 40.0, 71.0, 114.0];
/// Values of a block.
pub const BLOCK: usize = 32;

fn code(x: f32) -> f32 {
    let bound = |&b: &f32| x >= b;
    CODEBOOK[[-92.5, -55.5, -26.5, 0.0, 26.5, 55.5, 92.5].iter().filter(|b| bound(b)).count()]
}

fn tq3(x: &mut [f32], scale: Scale) {
    let most = x.iter().fold(0f32, |m, v| m.max(v.abs()));
    if most < 1e-30 {
        return x.fill(0.0);
    }
    let (mut best, mut codes) = ((-1.0f32, 0.0, 0.0), [0f32; BLOCK]);
    for c in [0.37f32, 0.41, 0.46] {
        let r = 53.0 / (c * most);
        let q: Vec<f32> = x.iter().map(|v| code(v * r)).collect();
        let s1: f32 = x.iter().zip(&q).map(|(x, q)| x * q).sum();
        let s2: f32 = q.iter().map(|q| q * q).sum();
        if s1 * s1 / s2 > best.0 {
            best = (s1 * s1 / s2, s1, s2);
            codes.copy_from_slice(&q);
        }
    }
    let d = match scale {
        Scale::Gain1 => x.iter().map(|v| v * v).sum::<f32>() / best.1,
        Scale::LeastSquares => best.1 / best.2,
    };
    let d = f16::from_f32(d.min(65504.0)).to_f32();
    x.iter_mut().zip(codes).for_each(|(x, q)| *x = d * q);
}

fn q4_0(x: &mut [f32]) {
    // The value of largest magnitude becomes -8.
    let most = x.iter().copied().fold(0f32, |m, v| if v.abs() > m.abs() { v } else { m });
    let d = most / -8.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    let stored = f16::from_f32(d).to_f32();
    x.iter_mut().for_each(|x| *x = ((*x * inverse + 8.5).floor().clamp(0.0, 15.0) - 8.0) * stored);
}

/// Rounds to what a cache would hold.
pub fn round(x: &mut [f32], how: Code) {
    for block in x.chunks_exact_mut(BLOCK) {
        match how {
            Code::Tq3(scale) => tq3(block, scale),
            Code::Q4 => q4_0(block),
        }
    }
}

/// The values of TQ3_0 blocks of 14 bytes: an F16 scale, two low bits each in 8 bytes, the high bit in 4.
pub fn decode_tq3(bytes: &[u8]) -> Vec<f32> {
    let values = |block: &[u8]| {
        let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
        let (qs, qh) = (block[2..10].to_vec(), block[10..14].to_vec());
        (0..BLOCK).map(move |e| {
            let (b, s) = (e % 8, e / 8);
            let low = (qs[b] >> (2 * s)) & 3;
            let high = (qh[b % 4] >> (s % 2 + 4 * (s / 2) + 2 * (b / 4))) & 1;
            d * CODEBOOK[(low | (high << 2)) as usize]
        })
    };
    bytes.chunks_exact(14).flat_map(values).collect()
}

/// The values of Q8_0 blocks of 34 bytes.
pub fn decode_q8(bytes: &[u8]) -> Vec<f32> {
    let values = |block: &[u8]| {
        let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
        block[2..].iter().map(|&q| d * f32::from(q as i8)).collect::<Vec<_>>()
    };
    bytes.chunks_exact(34).flat_map(values).collect()
}

/// A rotation of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// None.
    No,
    /// Hadamard over blocks of this many values.
    Plain(usize),
    /// Signs, then Hadamard.
    Signed(usize),
}

impl Turn {
    /// Rotates every block.
    pub fn forward(self, x: &mut [f32]) {
        match self {
            Turn::No => {}
            Turn::Plain(n) => x.chunks_exact_mut(n).for_each(hadamard),
            Turn::Signed(n) => x.chunks_exact_mut(n).for_each(|block| {
                signs(block);
                hadamard(block);
            }),
        }
    }

    /// Takes it back.
    pub fn inverse(self, x: &mut [f32]) {
        match self {
            Turn::No => {}
            Turn::Plain(n) => x.chunks_exact_mut(n).for_each(hadamard),
            Turn::Signed(n) => x.chunks_exact_mut(n).for_each(|block| {
                hadamard(block);
                signs(block);
            }),
        }
    }
}

fn signs(block: &mut [f32]) {
    for (i, x) in block.iter_mut().enumerate() {
        if (i & (i >> 1) & 0x55).count_ones() % 2 == 1 {
            *x = -*x;
        }
    }
}

fn hadamard(block: &mut [f32]) {
    let n = block.len();
    let mut half = 1;
    while half < n {
        for pair in block.chunks_exact_mut(2 * half) {
            let (a, b) = pair.split_at_mut(half);
            for (a, b) in a.iter_mut().zip(b) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    let scale = 1.0 / (n as f32).sqrt();
    block.iter_mut().for_each(|x| *x *= scale);
}

/// Squared error over squared size.
pub fn relative_error(exact: &[f32], rounded: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = exact.iter().zip(rounded).map(|(a, b)| square(a - b)).sum();
    error / exact.iter().map(|&x| square(x)).sum::<f64>().max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Example A of the format: codes and scale are known by hand.
    #[test]
    fn the_formats_example() {
        let x: Vec<f32> = (0..32).map(|j| ((7 * j + 3) % 17) as f32 - 8.0).collect();
        let bytes = [0x04, 0x2c, 0x21, 0x1d, 0xd8, 0x8b, 0xb3, 0x31, 0x1d, 0xd8, 0x96, 0x6b, 0xbc, 0xc2];
        let mut rounded = x.clone();
        round(&mut rounded, Code::Tq3(Scale::Gain1));
        assert_eq!(decode_tq3(&bytes), rounded);
        assert!((relative_error(&x, &rounded) - 0.016781).abs() < 1e-6);
    }

    #[test]
    fn rotations_come_back() {
        let x: Vec<f32> = (0..512).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        for turn in [Turn::No, Turn::Plain(512), Turn::Signed(64), Turn::Signed(512)] {
            let mut y = x.clone();
            turn.forward(&mut y);
            turn.inverse(&mut y);
            assert!(relative_error(&x, &y) < 1e-12, "{turn:?}");
        }
        // The signed rotation of ones has no peak.
        let mut ones = vec![1.0; 256];
        Turn::Signed(256).forward(&mut ones);
        assert!(ones.iter().all(|x| (x.abs() - 1.0).abs() < 1e-5));
    }
}
