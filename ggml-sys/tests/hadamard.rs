//! The signed rotation: closed forms, the matrix product that it replaces, what it must leave unchanged.

mod common;

use common::{Bench, Random, encode, floats};
use ggml_sys::*;

fn sigma(i: usize) -> f64 {
    if (i & (i >> 1) & 0x55).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 }
}

fn walsh(i: usize, j: usize) -> f64 {
    if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 }
}

fn matrix(n: usize, inverse: bool) -> Vec<f32> {
    let entry = |i: usize, j: usize| walsh(i, j) * sigma(if inverse { i } else { j }) / (n as f64).sqrt();
    (0..n * n).map(|at| entry(at / n, at % n) as f32).collect()
}

struct Input<'a> {
    n: usize,
    values: &'a [f32],
    dtype: ggml_type,
    inverse: bool,
}

/// The hinted product. `honest` fills the matrix; the fast transform must not need it.
fn rotate(input: &Input<'_>, honest: bool, reference: bool) -> Vec<f32> {
    let mut b = Bench::new(2);
    b.reference = reference;
    let (n, rows) = (input.n as i64, (input.values.len() / input.n) as i64);
    let m = if honest { matrix(input.n, input.inverse) } else { vec![f32::NAN; input.n * input.n] };
    let m = b.floats(&[n, n], &m);
    let x = b.encoded(input.dtype, &[n, rows], input.values);
    let hint = match input.inverse {
        false => GGML_HINT_SRC0_IS_SIGNED_HADAMARD,
        true => GGML_HINT_SRC0_IS_SIGNED_HADAMARD_INVERSE,
    };
    // SAFETY: all are of this context.
    let y = unsafe {
        let y = ggml_mul_mat(b.ctx, m, x);
        ggml_mul_mat_set_hint(y, hint);
        y
    };
    b.run_floats(y)
}

fn forward(n: usize, values: &[f32]) -> Vec<f32> {
    rotate(&Input { n, values, dtype: GGML_TYPE_F32, inverse: false }, false, false)
}

fn inverse(n: usize, values: &[f32]) -> Vec<f32> {
    rotate(&Input { n, values, dtype: GGML_TYPE_F32, inverse: true }, false, false)
}

/// Largest difference relative to the largest value.
fn distance(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(0.0f64, |m, w| m.max(w.abs()));
    got.iter().zip(want).fold(0.0f64, |m, (&g, w)| m.max((f64::from(g) - w).abs())) / scale
}

#[test]
fn closed_forms() {
    for n in [64, 256] {
        let want: Vec<f64> = (0..n).map(sigma).collect();
        assert!(distance(&forward(n, &vec![1.0; n]), &want) < 2e-6, "ones, {n}");
    }
    let want: Vec<f64> = (0..512).map(|i| if i < 256 { 2f64.sqrt() * sigma(i) } else { 0.0 }).collect();
    assert!(distance(&forward(512, &[1.0; 512]), &want) < 2e-6, "ones, 512");
    let mut unit = [0f32; 256];
    unit[5] = 1.0;
    let want: Vec<f64> = (0..256).map(|i| walsh(i, 5) / 16.0).collect();
    assert!(distance(&forward(256, &unit), &want) < 2e-6, "unit vector");
    // Flat spectrum: a constant reaches no coefficient with more than sqrt(2).
    for (n, most) in [(64, 1.0), (128, 2f32.sqrt()), (256, 1.0), (512, 2f32.sqrt())] {
        let top = forward(n, &vec![1.0; n]).into_iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!((top - most).abs() < 1e-5, "{n}: {top}");
    }
}

#[test]
fn equals_the_matrix_product() {
    let mut random = Random::new(11);
    for n in [1, 2, 4, 8, 64, 128, 256, 512, 1024] {
        let values = random.normals(n * 5);
        for (inverse, dtype) in
            [(false, GGML_TYPE_F32), (true, GGML_TYPE_F32), (false, GGML_TYPE_F16), (true, GGML_TYPE_F16)]
        {
            let seen = common::decode(dtype, &encode(dtype, &values));
            let mut want = vec![0f64; n * 5];
            for (at, w) in want.iter_mut().enumerate() {
                let (row, i) = (at / n, at % n);
                let sum: f64 = (0..n)
                    .map(|j| walsh(i, j) * sigma(if inverse { i } else { j }) * f64::from(seen[row * n + j]))
                    .sum();
                *w = sum / (n as f64).sqrt();
            }
            let input = Input { n, values: &values, dtype, inverse };
            assert!(distance(&rotate(&input, false, false), &want) < 2e-6, "{n}, inverse {inverse}");
            if dtype == GGML_TYPE_F32 {
                // What a backend without the hint computes.
                assert!(distance(&rotate(&input, true, true), &want) < 2e-6, "{n}, product");
            }
        }
    }
}

#[test]
fn round_trip() {
    let mut random = Random::new(12);
    for n in [64, 128, 256, 512] {
        let x = random.normals(n * 33);
        let y = forward(n, &x);
        let want: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
        assert!(distance(&inverse(n, &y), &want) < 1e-6, "{n}");
        assert!(distance(&y, &want) > 0.1, "{n}: nothing was rotated");
    }
}

#[test]
fn rows_with_gaps_are_rotated_in_place_of_copies() {
    // Rows of a view: every second row of a tensor.
    let mut random = Random::new(13);
    let (n, rows) = (64usize, 6usize);
    let values = random.normals(n * rows * 2);
    let mut b = Bench::new(2);
    let m = b.floats(&[n as i64, n as i64], &matrix(n, false));
    let x = b.floats(&[n as i64, 2 * rows as i64], &values);
    // SAFETY: all are of this context; the view lies inside the tensor.
    let y = unsafe {
        let view = ggml_view_2d(b.ctx, x, n as i64, rows as i64, 2 * n * 4, 0);
        let y = ggml_mul_mat(b.ctx, m, view);
        ggml_mul_mat_set_hint(y, GGML_HINT_SRC0_IS_SIGNED_HADAMARD);
        y
    };
    let got = b.run(&[y]).remove(0);
    let dense: Vec<f32> = values.chunks(2 * n).flat_map(|pair| &pair[..n]).copied().collect();
    assert_eq!(floats(&got), forward(n, &dense));
}

#[test]
fn attention_does_not_change() {
    // q.k with both rotated over the head, and the average of values rotated in blocks of 64 and back.
    let mut random = Random::new(14);
    let (d, keys) = (256usize, 40usize);
    let (q, k, v) = (random.normals(d), random.normals(d * keys), random.normals(d * keys));
    let dot =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum() };
    let (rq, rk) = (forward(d, &q), forward(d, &k));
    for t in 0..keys {
        let (plain, rotated) = (dot(&q, &k[t * d..][..d]), dot(&rq, &rk[t * d..][..d]));
        assert!((plain - rotated).abs() < 1e-5 * d as f64, "{plain} and {rotated}");
    }
    let weights: Vec<f64> = (0..keys).map(|_| random.unit() / keys as f64).collect();
    let average = |v: &[f32]| -> Vec<f32> {
        (0..d).map(|i| (0..keys).map(|t| weights[t] * f64::from(v[t * d + i])).sum::<f64>() as f32).collect()
    };
    let want: Vec<f64> = average(&v).into_iter().map(f64::from).collect();
    assert!(distance(&inverse(64, &average(&forward(64, &v))), &want) < 1e-5);
}
