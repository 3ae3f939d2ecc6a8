//! TQ3_0 in plain Rust, written from the format's description: what the device is compared with.

/// Values of a block.
pub const BLOCK: usize = 32;
/// Bytes of a block.
pub const BYTES: usize = 14;

const LEVELS: [f32; 8] = [-114.0, -71.0, -40.0, -13.0, 13.0, 40.0, 71.0, 114.0];
const BOUNDS: [f32; 7] = [-92.5, -55.5, -26.5, 0.0, 26.5, 55.5, 92.5];

/// IEEE half to f32.
pub fn half_to_f32(h: u16) -> f32 {
    let sign = if h & 0x8000 != 0 { -1.0 } else { 1.0 };
    let exponent = i32::from((h >> 10) & 31);
    let mantissa = f32::from(h & 1023);
    match exponent {
        0 => sign * mantissa * 2f32.powi(-24),
        31 if mantissa == 0.0 => sign * f32::INFINITY,
        31 => f32::NAN,
        _ => sign * (1.0 + mantissa / 1024.0) * 2f32.powi(exponent - 15),
    }
}

/// f32 to IEEE half, to nearest even.
pub fn f32_to_half(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = ((bits >> 16) & 0x8000) as u16;
    if x.is_nan() {
        return sign | 0x7E00;
    }
    let magnitude = f64::from(x.abs());
    if magnitude >= 65520.0 {
        return sign | 0x7C00;
    }
    // Steps of the half format around the value; f64 holds every product below exactly.
    let exponent = ((bits >> 23) & 255) as i32 - 127;
    let step = 2f64.powi(exponent.max(-14) - 10);
    let steps = magnitude / step;
    let floor = steps.floor();
    let odd = (floor as u64) % 2 == 1;
    let up = steps - floor > 0.5 || (steps - floor == 0.5 && odd);
    let n = floor as u32 + u32::from(up);
    // n counts from 1024 for normal values: a carry moves into the exponent by itself.
    sign | (((exponent.max(-14) + 14) as u32 * 1024 + n) as u16)
}

fn index(v: f32) -> usize {
    BOUNDS.iter().filter(|&&b| v >= b).count()
}

fn pack(d: u16, index: &[usize; BLOCK]) -> [u8; BYTES] {
    let mut out = [0; BYTES];
    out[..2].copy_from_slice(&d.to_le_bytes());
    for (e, &i) in index.iter().enumerate() {
        let (b, s) = (e % 8, e / 8);
        out[2 + b] |= ((i & 3) << (2 * s)) as u8;
        out[10 + b % 4] |= ((i >> 2) << (s % 2 + 4 * (s / 2) + 2 * (b / 4))) as u8;
    }
    out
}

/// Encodes one block.
pub fn encode(x: &[f32]) -> [u8; BYTES] {
    let top = x.iter().fold(0f32, |a, v| a.max(v.abs()));
    let norm: f32 = x.iter().map(|v| v * v).sum();
    if x.iter().any(|v| !v.is_finite()) || !norm.is_finite() {
        return pack(0x7E00, &[4; BLOCK]);
    }
    if top < 1e-30 {
        return pack(0, &[4; BLOCK]);
    }
    let mut best = (-1f32, 1f32, [4; BLOCK]);
    for c in [0.37f32, 0.41, 0.46] {
        let r = 53.0 / (c * top);
        let mut codes = [0; BLOCK];
        for (code, v) in codes.iter_mut().zip(x) {
            *code = index(v * r);
        }
        let dot: f32 = codes.iter().zip(x).map(|(&i, v)| LEVELS[i] * v).sum();
        let len: f32 = codes.iter().map(|&i| LEVELS[i] * LEVELS[i]).sum();
        if dot * dot / len > best.0 {
            best = (dot * dot / len, dot, codes);
        }
    }
    match f32_to_half((norm / best.1).min(65504.0)) {
        0 => pack(0, &[4; BLOCK]),
        d => pack(d, &best.2),
    }
}

/// Decodes one block.
pub fn decode(bytes: &[u8]) -> [f32; BLOCK] {
    let d = half_to_f32(u16::from_le_bytes([bytes[0], bytes[1]]));
    std::array::from_fn(|e| {
        let (b, s) = (e % 8, e / 8);
        let low = usize::from(bytes[2 + b] >> (2 * s)) & 3;
        let high = usize::from(bytes[10 + b % 4] >> (s % 2 + 4 * (s / 2) + 2 * (b / 4))) & 1;
        d * LEVELS[low + 4 * high]
    })
}

/// What the encoder maximises, of the codes in an encoded block, and its scale.
pub fn score(bytes: &[u8], x: &[f32]) -> (f64, u16) {
    let d = u16::from_le_bytes([bytes[0], bytes[1]]);
    let mut unit = bytes.to_vec();
    unit[..2].copy_from_slice(&f32_to_half(1.0).to_le_bytes());
    let codes = decode(&unit);
    let dot: f64 = codes.iter().zip(x).map(|(q, v)| f64::from(*q) * f64::from(*v)).sum();
    let len: f64 = codes.iter().map(|q| f64::from(*q).powi(2)).sum();
    (dot * dot / len, d)
}

/// The worked examples of the format: inputs and bytes.
pub fn examples() -> Vec<(Vec<f32>, [u8; BYTES])> {
    let a = (0..32).map(|j| ((7 * j + 3) % 17 - 8) as f32).collect();
    let b = (0..32).map(|j| ((11 * j + 5) % 23 - 11) as f32 / 8.0).collect();
    let mut one_hot = vec![0.0; 32];
    one_hot[5] = -2.0;
    let mut nan = vec![1.0; 32];
    nan[7] = f32::NAN;
    let mut infinite = vec![1.0; 32];
    infinite[30] = f32::NEG_INFINITY;
    let all = |d: [u8; 2], qs: u8, qh: u8| -> [u8; BYTES] {
        std::array::from_fn(|i| {
            if i < 2 {
                d[i]
            } else if i < 10 {
                qs
            } else {
                qh
            }
        })
    };
    vec![
        (a, [0x04, 0x2c, 0x21, 0x1d, 0xd8, 0x8b, 0xb3, 0x31, 0x1d, 0xd8, 0x96, 0x6b, 0xbc, 0xc2]),
        (b, [0x69, 0x21, 0xb1, 0x62, 0x71, 0x21, 0x6c, 0x1d, 0x2c, 0x1c, 0xf8, 0x07, 0xf8, 0x07]),
        (vec![1.0; 32], all([0x7e, 0x20], 0xff, 0xff)),
        (
            (0..32).map(|j| if j % 2 == 0 { 1.5 } else { -1.5 }).collect(),
            [0xbd, 0x22, 0xff, 0, 0xff, 0, 0xff, 0, 0xff, 0, 0xff, 0, 0xff, 0],
        ),
        (one_hot, [0x7e, 0x24, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfb, 0xff, 0xff]),
        (vec![0.0; 32], all([0, 0], 0, 0xff)),
        (vec![1e-31; 32], all([0, 0], 0, 0xff)),
        (vec![1e-9; 32], all([0, 0], 0, 0xff)),
        (nan, all([0, 0x7e], 0, 0xff)),
        (infinite, all([0, 0x7e], 0, 0xff)),
        (vec![1e9; 32], all([0xff, 0x7b], 0xff, 0xff)),
    ]
}
