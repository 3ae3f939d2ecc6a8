//! TQ3_0: bytes of known blocks, the two encoders against each other, every operation that takes the type.

mod common;

use common::{Bench, Random, decode, encode, floats, row_size};
use ggml_sys::*;

const TQ3: ggml_type = GGML_TYPE_TQ3_0;

/// Encoded by the CPU backend's kernel: a copy from F32.
fn encode_fast(values: &[f32]) -> Vec<u8> {
    let mut b = Bench::new(2);
    let n = values.len() as i64;
    let from = b.floats(&[32, n / 32], values);
    let to = b.tensor(TQ3, &[32, n / 32]);
    // SAFETY: both are of this context.
    let copy = unsafe { ggml_cpy(b.ctx, from, to) };
    b.run(&[copy]).remove(0)
}

/// Decoded by the CPU backend's kernel: a copy to F32.
fn decode_fast(bytes: &[u8]) -> Vec<f32> {
    let mut b = Bench::new(2);
    let n = (bytes.len() / 14 * 32) as i64;
    let from = b.bytes(TQ3, &[32, n / 32], bytes.to_vec());
    let to = b.tensor(GGML_TYPE_F32, &[32, n / 32]);
    // SAFETY: as above.
    let copy = unsafe { ggml_cpy(b.ctx, from, to) };
    b.run_floats(copy)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[track_caller]
fn expect(values: [f32; 32], bytes: &str) {
    assert_eq!(hex(&encode(TQ3, &values)), bytes, "reference");
    assert_eq!(hex(&encode_fast(&values)), bytes, "backend");
}

#[test]
fn worked_examples() {
    let block = |f: fn(i32) -> f32| std::array::from_fn(|j| f(j as i32));
    expect(block(|j| ((7 * j + 3) % 17 - 8) as f32), "042c211dd88bb3311dd8966bbcc2");
    expect(block(|j| ((11 * j + 5) % 23 - 11) as f32 / 8.0), "6921b16271216c1d2c1cf807f807");
    expect([1.0; 32], "7e20ffffffffffffffffffffffff");
    expect(block(|j| if j % 2 == 0 { 1.5 } else { -1.5 }), "bd22ff00ff00ff00ff00ff00ff00");
    expect(block(|j| if j == 5 { -2.0 } else { 0.0 }), "7e240000000000000000fffbffff");

    let x: [f32; 32] = block(|j| ((7 * j + 3) % 17 - 8) as f32);
    let y = decode(TQ3, &encode(TQ3, &x));
    for (got, index) in y.iter().zip([1, 5, 0, 3, 7, 1, 5, 0, 4, 7, 2, 6, 0, 4, 7, 2]) {
        let code = [-114., -71., -40., -13., 13., 40., 71., 114.][index];
        assert_eq!(*got, code * 0.062_744_14);
    }
    let one_hot = decode(TQ3, &encode(TQ3, &block(|j| if j == 5 { -2.0 } else { 0.0 })));
    assert!((one_hot[5] + 2.000_427).abs() < 1e-6 && (one_hot[6] - 0.228_119).abs() < 1e-6);
}

#[test]
fn degenerate_blocks() {
    let zero = "00000000000000000000ffffffff";
    let nan = "007e0000000000000000ffffffff";
    let with = |value: f32, other: f32| std::array::from_fn(|j| if j == 7 { value } else { other });
    expect([0.0; 32], zero);
    expect([-0.0; 32], zero);
    expect([5e-31; 32], zero);
    expect(with(-1e-9, 1e-9), zero); // the scale rounds to zero
    expect(with(1e-40, 0.0), zero);
    for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 2e19] {
        expect(with(poison, 1.0), nan);
        expect(with(poison, 0.0), nan);
    }
    expect([1e18; 32], "ff7bffffffffffffffffffffffff"); // the largest scale
    assert!(decode(TQ3, &encode(TQ3, &with(f32::NAN, 1.0))).iter().all(|v| v.is_nan()));
    // A cleared cache.
    for values in [decode(TQ3, &[0; 14]), decode_fast(&[0; 14])] {
        assert!(values.iter().all(|v| *v == 0.0 && v.is_sign_negative()));
    }
}

#[test]
fn every_index_in_every_place() {
    let codes = [-114., -71., -40., -13., 13., 40., 71., 114.];
    let mut random = Random::new(1);
    let (mut blocks, mut want) = (Vec::new(), Vec::new());
    for round in 0..4000 {
        // Packed here by the format's definition.
        let indices: [u8; 32] =
            std::array::from_fn(|_| if round < 8 { round as u8 } else { random.below(8) as u8 });
        let mut block = [0u8; 14];
        block[1] = 0x3C; // scale 1
        for (e, &index) in indices.iter().enumerate() {
            let (b, s) = (e % 8, e / 8);
            block[2 + b] |= (index & 3) << (2 * s);
            block[10 + b % 4] |= (index >> 2) << (s % 2 + 4 * (s / 2) + 2 * (b / 4));
        }
        blocks.extend(block);
        want.extend(indices.map(|i| codes[usize::from(i)]));
    }
    assert_eq!(decode(TQ3, &blocks), want);
    assert_eq!(decode_fast(&blocks), want);
    // Blocks with a value of each size keep their scale, so encoding gives the indices back.
    let (again, fast) = (encode(TQ3, &want), encode_fast(&want));
    let mut kept = 0;
    for (i, x) in want.chunks(32).enumerate() {
        if [13., 40., 71., 114.].iter().all(|c| x.iter().any(|x| x.abs() == *c)) {
            let at = i * 14 + 2..i * 14 + 14;
            assert_eq!(again[at.clone()], blocks[at.clone()]);
            assert_eq!(fast[at.clone()], blocks[at]);
            kept += 1;
        }
    }
    assert!(kept > 3900);
}

#[test]
fn encoders_agree_on_a_million_blocks() {
    let mut random = Random::new(2);
    let (blocks, chunk) = (1_000_000, 50_000);
    let mut different = 0;
    for part in 0..blocks / chunk {
        let scale = 10f32.powi(part % 7 - 3);
        let x: Vec<f32> = (0..chunk * 32).map(|_| random.normal() * scale).collect();
        let (a, b) = (encode(TQ3, &x), encode_fast(&x));
        for ((a, b), x) in a.chunks(14).zip(b.chunks(14)).zip(x.chunks(32)) {
            if a != b {
                different += 1;
                let (sa, sb) = (score(a, x), score(b, x));
                assert!((sa - sb).abs() <= 1e-5 * sa, "{sa} and {sb}");
                let d = |b: &[u8]| i32::from(u16::from_le_bytes([b[0], b[1]]));
                assert!((d(a) - d(b)).abs() <= 1 || a[2..] != b[2..]);
            }
        }
    }
    assert!(different <= blocks / 1000, "{different} of {blocks} blocks differ");
}

/// What the encoder maximises: (x.q)^2 / q.q.
fn score(block: &[u8], x: &[f32]) -> f64 {
    let q = decode(TQ3, block);
    let dot: f64 = q.iter().zip(x).map(|(&q, &x)| f64::from(q) * f64::from(x)).sum();
    dot * dot / q.iter().map(|&q| f64::from(q).powi(2)).sum::<f64>()
}

#[test]
fn noise_and_gain() {
    let mut random = Random::new(3);
    let n = 1 << 20;
    let gauss = random.normals(n);
    let laplace: Vec<f32> = (0..n)
        .map(|_| {
            let sign = if random.next() & 1 == 0 { 1.0 } else { -1.0 };
            (sign * random.unit().ln()) as f32
        })
        .collect();
    let student: Vec<f32> = (0..n)
        .map(|_| {
            let chi: f32 = (0..5).map(|_| random.normal().powi(2)).sum();
            random.normal() / (chi / 5.0).sqrt()
        })
        .collect();
    for (name, x, limit) in [("normal", gauss, 0.0270), ("Laplace", laplace, 0.0400), ("t5", student, 0.0395)]
    {
        let y = decode_fast(&encode_fast(&x));
        let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
            x.iter().zip(&y).map(|(&x, &y)| f(f64::from(x), f64::from(y))).sum()
        };
        let power = sum(&|x, _| x * x);
        let noise = sum(&|x, y| (x - y) * (x - y)) / power;
        let gain = sum(&|x, y| x * y) / power;
        assert!(noise <= limit, "{name}: noise {noise}");
        assert!((gain - 1.0).abs() <= 1e-3, "{name}: gain {gain}");
    }
}

#[test]
fn conversions_equal_the_reference() {
    let mut random = Random::new(4);
    let (n, rows, heads) = (96, 5, 3); // an odd number of blocks in a row
    let values = random.normals(n * rows * heads);
    let bytes = encode(TQ3, &values);
    let want = decode(TQ3, &bytes);
    assert_eq!(decode_fast(&bytes), want);

    let mut b = Bench::new(2);
    let ne = [n as i64, rows as i64, heads as i64];
    let cache = b.bytes(TQ3, &ne, bytes);
    let half = b.tensor(GGML_TYPE_F16, &ne);
    let single = b.tensor(GGML_TYPE_F32, &[ne[0], ne[2], ne[1]]);
    let ids = b.ints(&[2, 3], &[4, 0, 2, 2, 1, 3]);
    // SAFETY: all are of this context.
    let results = unsafe {
        let swapped = ggml_permute(b.ctx, cache, 0, 2, 1, 3);
        [
            ggml_cpy(b.ctx, cache, half),
            ggml_cpy(b.ctx, swapped, single),
            ggml_get_rows(b.ctx, cache, ids),
            ggml_cont(b.ctx, swapped),
        ]
    };
    let out = b.run(&results);
    // F16 is the rounded F32.
    let want_half = encode(GGML_TYPE_F16, &want);
    assert_eq!(out[0], want_half);
    let row = |r: usize, h: usize| &want[(h * rows + r) * n..][..n];
    let swapped: Vec<f32> =
        (0..rows).flat_map(|r| (0..heads).flat_map(move |h| row(r, h)).copied()).collect();
    assert_eq!(floats(&out[1]), swapped);
    let picked: Vec<f32> = [(4, 0), (0, 0), (2, 1), (2, 1), (1, 2), (3, 2)]
        .iter()
        .flat_map(|&(r, h)| row(r, h))
        .copied()
        .collect();
    assert_eq!(floats(&out[2]), picked);
    assert_eq!(decode(TQ3, &out[3]), swapped);
}

#[test]
fn matrix_product_is_the_integer_product() {
    let mut random = Random::new(5);
    for d in [32usize, 64, 96, 128, 160, 256, 512] {
        let (m, n) = (7, 3);
        let (a, x) = (random.normals(d * m), random.normals(d * n));
        let (ta, tx) = (encode(TQ3, &a), encode(GGML_TYPE_Q8_0, &x));
        let (da, dx) = (decode(TQ3, &ta), decode(GGML_TYPE_Q8_0, &tx));
        let mut b = Bench::new(2);
        let weights = b.bytes(TQ3, &[d as i64, m as i64], ta);
        // Already in Q8_0, so the product's own rounding is not in the comparison.
        let input = b.bytes(GGML_TYPE_Q8_0, &[d as i64, n as i64], tx);
        // SAFETY: as above.
        let product = unsafe { ggml_mul_mat(b.ctx, weights, input) };
        let got = b.run_floats(product);
        for j in 0..n {
            for i in 0..m {
                let terms = || (0..d).map(|l| f64::from(da[i * d + l]) * f64::from(dx[j * d + l]));
                let (want, size): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
                let have = f64::from(got[j * m + i]);
                assert!((have - want).abs() <= 1e-5 * size, "{d}: {have} instead of {want}");
            }
        }
    }
}

#[test]
fn rows_written_by_index() {
    let mut random = Random::new(6);
    let (d, slots, heads) = (256usize, 16usize, 2usize);
    for (tokens, first) in [(1usize, 5usize), (7, 12), (16, 3)] {
        for (wide, half) in [(true, false), (false, false), (false, true)] {
            let values = random.normals(d * tokens * heads);
            let mut b = Bench::new(2);
            let cache = b.tensor(TQ3, &[d as i64, slots as i64, heads as i64]);
            let dtype = if half { GGML_TYPE_F16 } else { GGML_TYPE_F32 };
            let rows = b.encoded(dtype, &[d as i64, tokens as i64, heads as i64], &values);
            let at: Vec<usize> = (0..tokens).map(|t| (first + t) % slots).collect();
            // One list of rows for all heads.
            let index = if wide {
                let bytes = at.iter().flat_map(|&i| (i as i64).to_le_bytes()).collect();
                b.bytes(GGML_TYPE_I64, &[tokens as i64], bytes)
            } else {
                b.ints(&[tokens as i64], &at.iter().map(|&i| i as i32).collect::<Vec<_>>())
            };
            // SAFETY: as above.
            let write = unsafe { ggml_set_rows(b.ctx, cache, rows, index) };
            let got = b.run(&[write]).remove(0);
            let size = row_size(TQ3, d);
            let stored = decode(dtype, &encode(dtype, &values));
            let want = encode_fast(&stored);
            for h in 0..heads {
                for s in 0..slots {
                    let have = &got[(h * slots + s) * size..][..size];
                    match at.iter().position(|&i| i == s) {
                        Some(t) => assert_eq!(have, &want[(h * tokens + t) * size..][..size]),
                        None => assert!(have.iter().all(|&b| b == 0), "slot {s} was written"),
                    }
                }
            }
        }
    }
}

#[test]
fn registration() {
    // SAFETY: lookups in static tables; buffers have the size of their rows.
    unsafe {
        let traits = *ggml_get_type_traits(TQ3);
        assert!(traits.is_quantized && traits.to_float.is_some() && traits.from_float_ref.is_some());
        let values = Random::new(7).normals(512);
        let mut bytes = vec![0u8; row_size(TQ3, 512)];
        let written = ggml_quantize_chunk(
            TQ3,
            values.as_ptr(),
            bytes.as_mut_ptr().cast(),
            256,
            1,
            256,
            std::ptr::null(),
        );
        assert_eq!(written, 112);
        assert_eq!(bytes[112..], encode(TQ3, &values[256..]));
        let valid = |bytes: &[u8]| ggml_validate_row_data(TQ3, bytes.as_ptr().cast(), bytes.len());
        assert!(valid(&bytes));
        for scale in [0x7E00u16, 0x7C00, 0xFC00] {
            bytes[14..16].copy_from_slice(&scale.to_le_bytes());
            assert!(!valid(&bytes), "{scale:#x}");
        }
    }
}
