//! Types of KV caches on one core: dot product, conversions, attention.
//!
//! The types take turns within each round, so that whatever else the machine does meets all of them; figures
//! are medians over the rounds, and those of the last column medians of each round's ratio to Q8_0.

#[cfg(feature = "dynamic-backends")]
fn main() {
    eprintln!("the kernels of loadable backends cannot be linked: build without `dynamic-backends`");
}

#[cfg(not(feature = "dynamic-backends"))]
fn main() {
    kernels::main();
}

#[cfg(not(feature = "dynamic-backends"))]
#[path = "../tests/common/mod.rs"]
mod common;

#[cfg(not(feature = "dynamic-backends"))]
mod kernels {
    use super::common::{Bench, Random, encode, row_size};
    use ggml_sys::*;
    use std::hint::black_box;
    use std::time::Instant;

    const TYPES: [ggml_type; 4] = [GGML_TYPE_TQ3_0, GGML_TYPE_Q4_0, GGML_TYPE_IQ4_NL, GGML_TYPE_Q8_0];
    const NAMES: [&str; 4] = ["tq3_0", "q4_0", "iq4_nl", "q8_0"];
    const D: usize = 512;
    /// Rows of a measurement.
    const CACHED: usize = 64;
    /// Rows of a cache that no processor cache holds, 200 M values and more.
    const STREAMED: usize = 1 << 20;
    const ROUNDS: usize = 10_000;

    type Kernel<'a> = Box<dyn FnMut() + 'a>;

    pub fn main() {
        // SAFETY: fills static tables.
        unsafe { ggml_cpu_init() };
        let only: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
        let wanted = |name: &str| only.is_empty() || only.iter().any(|o| name.contains(o.as_str()));
        if wanted("dot") {
            report("dot product with q8_0, in cache", &mut dots(CACHED));
            report("dot product with q8_0, streamed", &mut dots(STREAMED));
        }
        if wanted("to_float") {
            report("to f32", &mut to_float());
        }
        if wanted("from_float") {
            report("from f32", &mut from_float());
        }
        if wanted("attention") {
            attention();
        }
    }

    /// `n` rows of a type; the same few again and again.
    fn rows(dtype: ggml_type, n: usize) -> Vec<u8> {
        let some = encode(dtype, &Random::new(1).normals(D * CACHED));
        some.iter().copied().cycle().take(row_size(dtype, D) * n).collect()
    }

    fn dots(n: usize) -> Vec<Kernel<'static>> {
        let query = rows(GGML_TYPE_Q8_0, 1);
        let kernel = |dtype| {
            let (keys, query) = (rows(dtype, n), query.clone());
            // SAFETY: a static table; the type has a dot product with Q8_0.
            let dot = unsafe { (*ggml_get_type_traits_cpu(dtype)).vec_dot.unwrap() };
            let size = row_size(dtype, D);
            let mut at = 0;
            Box::new(move || {
                // The next rows each time.
                let some = &keys[at * size..][..CACHED * size];
                at = (at + CACHED) % n;
                for key in some.chunks_exact(size) {
                    let mut sum = 0f32;
                    // SAFETY: both rows have D values.
                    unsafe {
                        dot(D as i32, &mut sum, 0, key.as_ptr().cast(), 0, query.as_ptr().cast(), 0, 1);
                    }
                    black_box(sum);
                }
            }) as Kernel<'static>
        };
        TYPES.into_iter().map(kernel).collect()
    }

    fn to_float() -> Vec<Kernel<'static>> {
        let kernel = |dtype| {
            let (from, mut to) = (rows(dtype, CACHED), vec![0f32; D]);
            // SAFETY: a lookup; the type can be decoded.
            let decode = unsafe { ggml_cpu_g4_to_float(dtype).unwrap() };
            Box::new(move || {
                for row in from.chunks_exact(row_size(dtype, D)) {
                    // SAFETY: source and target have D values.
                    unsafe { decode(row.as_ptr().cast(), to.as_mut_ptr(), D as i64) };
                    black_box(&to);
                }
            }) as Kernel<'static>
        };
        TYPES.into_iter().map(kernel).collect()
    }

    fn from_float() -> Vec<Kernel<'static>> {
        let kernel = |dtype| {
            let (from, mut to) = (Random::new(2).normals(D * CACHED), vec![0u8; row_size(dtype, D)]);
            // SAFETY: a static table; the type can be encoded.
            let encode = unsafe { (*ggml_get_type_traits_cpu(dtype)).from_float.unwrap() };
            Box::new(move || {
                for row in from.chunks_exact(D) {
                    // SAFETY: as above.
                    unsafe { encode(row.as_ptr(), to.as_mut_ptr().cast(), D as i64) };
                    black_box(&to);
                }
            }) as Kernel<'static>
        };
        TYPES.into_iter().map(kernel).collect()
    }

    /// Seconds of each kernel, by round. Rounds are short: an interrupted one is an outlier.
    fn time(kernels: &mut [Kernel<'_>]) -> Vec<Vec<f64>> {
        let mut seconds = vec![Vec::new(); kernels.len()];
        for round in 0..ROUNDS {
            for (kernel, seconds) in kernels.iter_mut().zip(&mut seconds) {
                let start = Instant::now();
                kernel();
                // The first rounds warm up.
                if round >= ROUNDS / 10 {
                    seconds.push(start.elapsed().as_secs_f64());
                }
            }
        }
        seconds
    }

    fn median(values: impl Iterator<Item = f64>) -> f64 {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    }

    fn fastest(values: &[f64]) -> f64 {
        values.iter().copied().fold(f64::INFINITY, f64::min)
    }

    fn report(title: &str, kernels: &mut [Kernel<'_>]) {
        let seconds = time(kernels);
        println!("\n{title}\n  type    G values/s   GB/s   speed / q8_0");
        for (i, name) in NAMES.iter().enumerate() {
            let middle = median(seconds[i].iter().copied());
            let ratio = median(seconds[i].iter().zip(&seconds[NAMES.len() - 1]).map(|(s, q8)| q8 / s));
            let bytes = (row_size(TYPES[i], D) * CACHED) as f64;
            println!(
                "  {name:7} {:10.2} {:6.2} {ratio:14.2}",
                (D * CACHED) as f64 / middle / 1e9,
                bytes / middle / 1e9
            );
        }
    }

    /// One KV head with eight query heads of 512 values, the shape of full-attention layers.
    fn attention() {
        const GQA: usize = 8;
        println!(
            "\nattention, 8 query heads of 512 values, one core, fastest in ms\n  type      slots  tokens     here  upstream"
        );
        for (n_kv, tokens) in [(1024usize, 1usize), (1024, 8), (1024, 64)] {
            for (dtype, name) in TYPES.into_iter().zip(NAMES).chain([(GGML_TYPE_F16, "f16")]) {
                let seconds = [false, true].map(|reference| {
                    let mut b = Bench::new(1);
                    b.reference = reference && dtype != GGML_TYPE_F16;
                    let mut random = Random::new(3);
                    let cache = [D as i64, n_kv as i64, 1];
                    let some = random.normals(D * 64);
                    let values: Vec<f32> = some.iter().copied().cycle().take(D * n_kv).collect();
                    let k = b.encoded(dtype, &cache, &values);
                    let v = b.encoded(dtype, &cache, &values);
                    let q =
                        b.floats(&[D as i64, tokens as i64, GQA as i64], &random.normals(D * GQA * tokens));
                    let mask = b.tensor(GGML_TYPE_F16, &[n_kv as i64, tokens as i64]);
                    // SAFETY: all are of this context and fit.
                    let out = unsafe {
                        let out = ggml_flash_attn_ext(b.ctx, q, k, v, mask, 0.05, 0.0, 0.0);
                        ggml_flash_attn_ext_set_prec(out, GGML_PREC_F32);
                        out
                    };
                    b.time(out, if reference { 5 } else { 25 })
                });
                println!(
                    "  {name:7} {n_kv:7} {tokens:7} {:8.2} {:9.2}",
                    fastest(&seconds[0]) * 1e3,
                    fastest(&seconds[1]) * 1e3
                );
            }
        }
    }
}
