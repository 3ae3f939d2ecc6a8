//! Every type computes what its numbers say: a model of quantised matrices gives the logits of one whose matrices are those
//! numbers in F32, and stays as near to the original as the type's rounding lets it.

use gemma4::gguf::TypeLayout;
use gemma4::{DType, KvConfig, LoadOptions, Model, Session, SessionOptions};
use gemma4_tests::bad::{Parts, TYPES, id, layout};
use gemma4_tests::quantise::relative_error;
use ggml_sys::{dequantize_rows, quantize_rows};
use std::ops::ControlFlow;
use std::path::Path;

/// Width of everything: the largest block.
const N: usize = 256;

/// Types of ggml's table that are no weights: sums and integers between operations.
const NO_WEIGHTS: [u32; 7] = [9, 15, 24, 25, 26, 27, 28];

/// IQ2_XXS, IQ2_XS, IQ1_S, IQ2_S, IQ1_M: ggml makes tables before it quantises to them, which takes seconds each.
const SLOW: [u32; 5] = [16, 17, 19, 22, 29];
const IQ1_M: u32 = 29;

/// A matrix `[N, N]` as a file has it, and the numbers that it stands for.
struct Matrix {
    type_id: u32,
    bytes: Vec<u8>,
    values: Vec<f32>,
}

/// Pseudo-random bits.
fn random() -> impl FnMut() -> u32 {
    let mut state = 1u64;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    }
}

impl Matrix {
    /// Numbers like those of a trained matrix: a sum of four is nearly normal.
    fn random() -> Matrix {
        let mut random = random();
        let mut uniform = || random() as f32 / u32::MAX as f32 - 0.5;
        Matrix::plain((0..N * N).map(|_| (0..4).map(|_| uniform()).sum::<f32>() / 10.0).collect())
    }

    /// Blocks of a [`SLOW`] type of which everything but the scale is random: all bits are good there.
    fn random_blocks(type_id: u32) -> Matrix {
        let TypeLayout { block, bytes } = layout(type_id).unwrap();
        let mut random = random();
        let mut out: Vec<u8> = (0..N * N / block as usize * bytes as usize).map(|_| random() as u8).collect();
        let scale = half::f16::from_f32(0.002).to_bits();
        for block in out.chunks_exact_mut(bytes as usize) {
            if type_id == IQ1_M {
                // Four bits each at the top of the four words at the end.
                for (i, high) in block[48..].iter_mut().skip(1).step_by(2).enumerate() {
                    *high = *high & 0x0f | ((scale >> (4 * i)) as u8 & 0x0f) << 4;
                }
            } else {
                block[..2].copy_from_slice(&scale.to_le_bytes());
            }
        }
        let values = decode(type_id, &out);
        Matrix { type_id, bytes: out, values }
    }

    fn plain(values: Vec<f32>) -> Matrix {
        Matrix { type_id: id::F32, bytes: values.iter().flat_map(|x| x.to_le_bytes()).collect(), values }
    }

    /// The same numbers as ggml's quantiser rounds them.
    fn quantised(&self, type_id: u32) -> Matrix {
        if type_id == id::F32 {
            return Matrix::plain(self.values.clone());
        }
        let TypeLayout { block, bytes } = layout(type_id).unwrap();
        let mut out = vec![0u8; N * N / block as usize * bytes as usize];
        assert!(quantize_rows(type_id, &self.values, N, &mut out), "type {type_id}");
        let values = decode(type_id, &out);
        Matrix { type_id, bytes: out, values }
    }

    /// The same numbers in F32.
    fn widened(&self) -> Matrix {
        Matrix::plain(self.values.clone())
    }
}

/// What blocks of `[N, N]` numbers stand for.
fn decode(type_id: u32, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0f32; N * N];
    assert!(dequantize_rows(type_id, bytes, &mut values), "type {type_id}");
    values
}

/// A model whose matrices are these in turn, each with its rows shifted by another number.
fn model<'a>(matrices: impl Iterator<Item = &'a Matrix>) -> Parts {
    let mut parts = Parts::micro(N as u32, N as u32, id::F32);
    for part in parts.tensors.iter_mut().filter(|t| t.name.ends_with("attn_q_norm.weight")) {
        // Queries as long as keys would look at one key only, and which one hangs on the last digit.
        part.data = (1.0 / 16f32).to_le_bytes().repeat(N);
    }
    let places = parts.tensors.iter_mut().filter(|t| t.ne.len() == 2);
    for (i, (part, matrix)) in places.zip(matrices).enumerate() {
        let row = matrix.bytes.len() / N;
        let rows = (0..part.ne[1] as usize).map(|r| (r + 37 * i) % N);
        part.data = rows.flat_map(|r| &matrix.bytes[r * row..(r + 1) * row]).copied().collect();
        part.type_id = matrix.type_id;
    }
    parts
}

/// Logits of 40 tokens at once, and of 4 one by one.
fn logits(dir: &Path, parts: &Parts, repack: bool) -> [Vec<f32>; 2] {
    let path = dir.join("model.gguf");
    let _ = std::fs::remove_file(&path);
    std::fs::write(&path, parts.bytes()).unwrap();
    let options = LoadOptions::default().repack(repack);
    let model = Model::load_with(&path, &options, |_| ControlFlow::Continue(())).unwrap();
    let kv = KvConfig::uniform(DType::F32);
    let options = SessionOptions::default().n_ctx(64).n_batch(40).n_threads(1).kv(kv);
    let mut session = Session::new(&model, &options).unwrap();
    let token = |i: u32| 4 + i * i % 7 % 4;
    let chunk = session.evaluate(&(0..40).map(token).collect::<Vec<_>>(), false).unwrap().logits;
    let mut single = Vec::new();
    for i in 40..44 {
        session.prefill(&[token(i)]).unwrap();
        single.extend(session.logits());
    }
    [chunk, single]
}

/// Root of the squared error over the squared size, the worse of both phases.
fn distance(want: &[Vec<f32>; 2], got: &[Vec<f32>; 2]) -> f64 {
    want.iter().zip(got).map(|(want, got)| relative_error(want, got).sqrt()).fold(0.0, f64::max)
}

fn types() -> Vec<u32> {
    let types: Vec<u32> = TYPES.iter().map(|t| t.0).filter(|id| !NO_WEIGHTS.contains(id)).collect();
    assert_eq!(types.len(), 28);
    types
}

/// Compares a model of this matrix with one of its numbers in F32, and both orders of its rows in memory.
fn assert_own_numbers(dir: &Path, matrix: &Matrix) -> [Vec<f32>; 2] {
    let (type_id, widened) = (matrix.type_id, matrix.widened());
    let want = logits(dir, &model([&widened].into_iter().cycle()), false);
    let [plain, packed] =
        [false, true].map(|repack| logits(dir, &model([matrix].into_iter().cycle()), repack));
    for got in [&plain, &packed] {
        let own = distance(&want, got);
        println!("type {type_id}: {own:.5} from its numbers");
        assert!(own < 0.05, "type {type_id}: {own}");
    }
    plain
}

/// As [`assert_own_numbers`], and compares with the numbers before they were rounded.
fn assert_near(dir: &Path, types: impl Iterator<Item = u32>) {
    let exact = Matrix::random();
    let original = logits(dir, &model([&exact].into_iter().cycle()), false);
    for type_id in types {
        let matrix = exact.quantised(type_id);
        let rounding = relative_error(&exact.values, &matrix.values).sqrt();
        let far = distance(&original, &assert_own_numbers(dir, &matrix));
        println!("type {type_id}: weights are rounded by {rounding:.4}, logits are {far:.4} off");
        assert!(far < 2.0 * rounding + 0.02, "type {type_id}: {far} by {rounding}");
    }
}

#[test]
fn every_type_computes_its_own_numbers() {
    let dir = tempfile::tempdir().unwrap();
    assert_near(dir.path(), types().into_iter().filter(|id| !SLOW.contains(id)));
    for type_id in SLOW {
        assert_own_numbers(dir.path(), &Matrix::random_blocks(type_id));
    }
}

#[test]
#[ignore = "ggml makes its tables for 20 seconds"]
fn slow_types_are_near_the_original() {
    let dir = tempfile::tempdir().unwrap();
    assert_near(dir.path(), SLOW.into_iter());
}

#[test]
fn types_are_mixed_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let exact = Matrix::random();
    let matrix = |id| if SLOW.contains(&id) { Matrix::random_blocks(id) } else { exact.quantised(id) };
    let matrices: Vec<Matrix> = types().into_iter().map(matrix).collect();
    let widened: Vec<Matrix> = matrices.iter().map(Matrix::widened).collect();
    // 15 matrices a model: two models have every type.
    for skip in [0, 13] {
        let want = logits(dir.path(), &model(widened.iter().skip(skip)), false);
        for repack in [false, true] {
            let own = distance(&want, &logits(dir.path(), &model(matrices.iter().skip(skip)), repack));
            println!("types from {skip} on: {own:.5}");
            assert!(own < 0.05, "types from {skip} on, repack {repack}: {own}");
        }
    }
}
