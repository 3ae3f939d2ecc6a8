//! Synthetic models with the true shapes of the published ones: same layers, widths, quantisation types,
//! vocabulary size and file size, random weights. They show what loads, fits and how fast it runs; what they
//! write is noise. Their drafters are made the same way.
//!
//! Types follow the Q4_K_M recipe: Q4_K; Q6_K for the embedding and half of the down and value projections;
//! where a row is no multiple of 256, Q5_0 for Q4_K and Q8_0 for Q6_K.

mod sizes;

pub use sizes::{Size, micro, sizes};

use gemma4::gguf::{Array, GgufWriter, Value};
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

/// What is written for a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The model itself.
    Model,
    /// Google's assistant for it.
    Mtp,
    /// z-lab's block drafter for it.
    Dflash,
}

impl Part {
    /// Splits a name such as `31b-mtp` into that of a size and the part of it.
    pub fn of(name: &str) -> (&str, Part) {
        let part = |suffix, part| name.strip_suffix(suffix).map(|size| (size, part));
        part("-mtp", Part::Mtp).or_else(|| part("-dflash", Part::Dflash)).unwrap_or((name, Part::Model))
    }
}

/// Types of a drafter's matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrafterType {
    /// Q8_0.
    Eight,
    /// Four bits, as the model's.
    Four,
}

impl DrafterType {
    fn get(self, ne0: u64, more_bits: bool) -> Type {
        match self {
            DrafterType::Eight => Q8_0,
            DrafterType::Four => quantised(ne0, more_bits),
        }
    }
}

/// Layers of a target whose outputs its block drafter reads.
const TAPS: [(&str, [i32; 6]); 2] = [("26b-a4b", [1, 6, 11, 17, 22, 27]), ("31b", [1, 12, 23, 35, 46, 57])];

/// A ggml type: id, values a block, bytes a block.
#[derive(Clone, Copy, PartialEq)]
struct Type(u32, u64, u64);
const F32: Type = Type(0, 1, 4);
const F16: Type = Type(1, 1, 2);
const Q5_0: Type = Type(6, 32, 22);
const Q8_0: Type = Type(8, 32, 34);
const Q4_K: Type = Type(12, 256, 144);
const Q6_K: Type = Type(14, 256, 210);

fn quantised(ne0: u64, more_bits: bool) -> Type {
    match (ne0.is_multiple_of(256), more_bits) {
        (true, false) => Q4_K,
        (true, true) => Q6_K,
        (false, false) => Q5_0,
        (false, true) => Q8_0,
    }
}

/// The half of the layers that the recipe gives more bits.
fn more_bits(i: usize, n: usize) -> bool {
    i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2
}

/// A generator of pseudo-random bits (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in -1..1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// Blocks of random weights with mean 0 and standard deviation about 0.02, reused over the whole file.
struct Pools(Vec<(Type, Arc<Vec<u8>>)>);

impl Pools {
    const BYTES: usize = 8 << 20;

    fn new() -> Pools {
        Pools([F16, Q5_0, Q8_0, Q4_K, Q6_K].map(|t| (t, Arc::new(Self::fill(t)))).into())
    }

    fn fill(t: Type) -> Vec<u8> {
        let mut random = Random(u64::from(t.0));
        let size = t.2 as usize;
        let n = Self::BYTES / size;
        let mut out: Vec<u8> = (0..n * size).map(|_| random.next() as u8).collect();
        for block in out.chunks_exact_mut(size) {
            let mut half = |at: usize, x: f32| {
                let jittered = x * (1.0 + 0.12 * random.unit());
                block[at..at + 2].copy_from_slice(&half_bits(jittered).to_le_bytes());
            };
            match t {
                F16 => half(0, 0.02 * 1.7),
                Q5_0 => half(0, 0.02 / 9.2),
                Q8_0 => half(0, 0.02 / 74.0),
                Q4_K => {
                    half(0, 1.4e-4);
                    half(2, 1.4e-4 * 7.5);
                }
                _ => {
                    half(208, 0.02 / (18.5 * 18.5));
                    block[192..208].iter_mut().for_each(|scale| *scale = ((*scale & 63) as i8 - 32) as u8);
                }
            }
            if t == F16 && random.next() & 1 == 1 {
                block[1] |= 0x80;
            }
        }
        out
    }

    fn get(&self, t: Type) -> Arc<Vec<u8>> {
        let found = self.0.iter().find(|(have, _)| *have == t);
        found.map_or_else(|| Arc::new(vec![0; 4096]), |(_, pool)| pool.clone())
    }
}

/// The bits of a half-precision number near a small positive `x`.
fn half_bits(x: f32) -> u16 {
    // Normal range only, rounding down: the values here are scales.
    let bits = x.to_bits();
    let exponent = ((bits >> 23) & 0xff) as i32 - 127 + 15;
    if exponent <= 0 {
        return ((x * 16_777_216.0) as u16).min(0x3ff);
    }
    ((exponent as u16) << 10) | ((bits >> 13) & 0x3ff) as u16
}

struct Maker {
    writer: GgufWriter,
    /// None: matrices are zero.
    pools: Option<Pools>,
    seed: u64,
    /// Names of tensors, and their bytes.
    sizes: Vec<(String, u64)>,
}

impl Maker {
    /// Random weights.
    fn matrix(&mut self, name: &str, t: Type, ne: &[u64]) {
        let n_bytes = ne.iter().product::<u64>() / t.1 * t.2;
        let pool = self.pools.as_ref().map_or_else(|| Arc::new(vec![0; 1 << 20]), |pools| pools.get(t));
        self.seed += 1;
        self.sizes.push((name.to_owned(), n_bytes));
        let start = (Random(self.seed).next() % (pool.len() as u64 / t.2) * t.2) as usize;
        self.writer.tensor_stream(name, t.0, ne, n_bytes, move |out: &mut dyn Write| {
            let (mut left, mut at) = (n_bytes as usize, start);
            while left > 0 {
                let n = left.min(pool.len() - at);
                out.write_all(&pool[at..at + n])?;
                left -= n;
                at = 0;
            }
            io::Result::Ok(())
        });
    }

    /// Values in F32, as they are.
    fn table(&mut self, name: &str, ne: &[u64], bytes: Vec<u8>) {
        self.sizes.push((name.to_owned(), bytes.len() as u64));
        self.writer.tensor(name, F32.0, ne, bytes);
    }

    fn vector(&mut self, name: &str, values: impl Iterator<Item = f32>) {
        let values: Vec<f32> = values.collect();
        self.table(name, &[values.len() as u64], values.iter().flat_map(|x| x.to_le_bytes()).collect());
    }

    fn ones(&mut self, name: &str, n: u64) {
        self.vector(name, (0..n).map(|_| 1.0));
    }
}

/// Writes the model `size`, cut to its first `n_layer` layers if that is less (dense sizes and the mixture:
/// sharing layers need their donors). Returns the file's bytes.
pub fn write(size: &Size, n_layer: Option<usize>, path: &Path) -> gemma4::Result<u64> {
    let mut size = size.clone();
    if size.shared_kv == 0 {
        size.n_layer = n_layer.unwrap_or(size.n_layer).clamp(size.period, size.n_layer);
    }
    maker(&size, Some(Pools::new())).writer.write(path)?;
    Ok(std::fs::metadata(path).map_or(0, |m| m.len()))
}

/// Bytes of weights that one token's pass reads: all, but of the experts those that a token uses. The embeddings are the
/// head as well.
pub fn token_bytes(size: &Size) -> u64 {
    let (experts, used, _) = size.experts;
    let read = |(name, bytes): &(String, u64)| match name.contains("_exps") {
        true => bytes / experts * used,
        false => *bytes,
    };
    maker(size, None).sizes.iter().map(read).sum()
}

/// Writes a drafter for `size`; `hollow`, with matrices of zeros as [`write_hollow`] does. Returns the file's bytes.
///
/// # Errors
/// If the file cannot be written, or no drafter of that kind is published for the size.
pub fn write_drafter(
    size: &Size,
    part: Part,
    types: DrafterType,
    hollow: bool,
    path: &Path,
) -> io::Result<u64> {
    let mut maker =
        Maker { writer: GgufWriter::new(), pools: (!hollow).then(Pools::new), seed: 1000, sizes: Vec::new() };
    match part {
        Part::Mtp if size.shared_kv == 0 => assistant(&mut maker, size, types),
        Part::Dflash if TAPS.iter().any(|(name, _)| *name == size.name) => dflash(&mut maker, size, types),
        _ => return Err(io::Error::other(format!("there is no {part:?} of {}", size.name))),
    }
    if hollow {
        let mut out = Hollow { file: File::create(path)?, len: 0 };
        maker.writer.write_to(&mut out)?;
        out.file.set_len(out.len)?;
    } else {
        maker.writer.write(path).map_err(io::Error::other)?;
    }
    Ok(std::fs::metadata(path)?.len())
}

/// Four layers that read the caches of the target's last two kinds of layers.
fn assistant(m: &mut Maker, size: &Size, types: DrafterType) {
    let own = Size {
        n_layer: 4,
        n_embd: 1024,
        period: 4,
        n_ff: 8192,
        n_ff_shared: 8192,
        shared_kv: 4,
        n_embd_per_layer: 0,
        experts: (0, 0, 0),
        ..size.clone()
    };
    let arch = "gemma4-assistant";
    metadata(&mut m.writer, &own, arch);
    m.writer.set(format!("{arch}.embedding_length_out"), Value::U32(size.n_embd as u32));
    m.writer.set(format!("{arch}.nextn_predict_layers"), Value::U32(4));
    let (d, backbone, v) = (own.n_embd, size.n_embd, crate::vocabulary::SIZE);
    m.matrix("token_embd.weight", types.get(d, true), &[d, v]);
    m.ones("output_norm.weight", d);
    rope_freqs(m);
    m.matrix("nextn.pre_projection.weight", types.get(2 * backbone, false), &[2 * backbone, d]);
    m.matrix("nextn.post_projection.weight", types.get(d, false), &[d, backbone]);
    for i in 0..own.n_layer {
        let head = if is_full(&own, i) { 512 } else { 256 };
        let name = |part: &str| format!("blk.{i}.{part}.weight");
        for norm in ["attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"] {
            m.ones(&name(norm), d);
        }
        let q = head * own.n_head;
        m.matrix(&name("attn_q"), types.get(d, false), &[d, q]);
        m.matrix(&name("attn_output"), types.get(q, false), &[q, d]);
        m.ones(&name("attn_q_norm"), head);
        m.ones(&name("layer_output_scale"), 1);
        gated(m, i, d, own.n_ff, types);
    }
}

/// Five layers, the last one full, with a cache of their own.
fn dflash(m: &mut Maker, size: &Size, types: DrafterType) {
    const LAYERS: usize = 5;
    const HEAD: u64 = 128;
    const HEADS_KV: u64 = 8;
    let (d, ff, heads) = (size.n_embd, 2 * size.n_embd, 2 * size.n_head);
    let taps = TAPS.iter().find(|(name, _)| *name == size.name).map_or([0; 6], |(_, taps)| *taps);
    let mut set = |key: &str, value: Value| {
        m.writer.set(format!("dflash.{key}"), value);
    };
    let numbers = [
        ("block_count", LAYERS as u64),
        ("context_length", u64::from(size.n_ctx)),
        ("embedding_length", d),
        ("feed_forward_length", ff),
        ("attention.head_count", heads),
        ("attention.head_count_kv", HEADS_KV),
        ("attention.key_length", HEAD),
        ("attention.value_length", HEAD),
        ("attention.sliding_window", 2048),
        ("block_size", 16),
    ];
    for (key, value) in numbers {
        set(key, Value::U32(value as u32));
    }
    set("attention.layer_norm_rms_epsilon", Value::F32(1e-6));
    set("rope.freq_base", Value::F32(1e6));
    let slides = (0..LAYERS).map(|i| i + 1 < LAYERS).collect();
    set("attention.sliding_window_pattern", Value::Array(Array::Bool(slides)));
    // The input of the layer behind.
    set("target_layers", Value::Array(Array::I32(taps.iter().map(|tap| tap + 1).collect())));
    m.writer.set("tokenizer.ggml.mask_token_id", Value::U32(4));
    m.writer.set("general.architecture", Value::Str("dflash".into()));
    m.writer.set("general.name", Value::Str(format!("synthetic block drafter of {}", size.name)));
    let fused = d * taps.len() as u64;
    m.matrix("fc.weight", types.get(fused, false), &[fused, d]);
    m.ones("enc.output_norm.weight", d);
    m.ones("output_norm.weight", d);
    for i in 0..LAYERS {
        let name = |part: &str| format!("blk.{i}.{part}.weight");
        m.ones(&name("attn_norm"), d);
        m.ones(&name("ffn_norm"), d);
        let (q, kv) = (HEAD * heads, HEAD * HEADS_KV);
        m.matrix(&name("attn_q"), types.get(d, false), &[d, q]);
        m.matrix(&name("attn_k"), types.get(d, false), &[d, kv]);
        m.matrix(&name("attn_v"), types.get(d, true), &[d, kv]);
        m.matrix(&name("attn_output"), types.get(q, false), &[q, d]);
        m.ones(&name("attn_q_norm"), HEAD);
        m.ones(&name("attn_k_norm"), HEAD);
        gated(m, i, d, ff, types);
    }
}

fn gated(m: &mut Maker, i: usize, d: u64, ff: u64, types: DrafterType) {
    let name = |part: &str| format!("blk.{i}.{part}.weight");
    m.matrix(&name("ffn_gate"), types.get(d, false), &[d, ff]);
    m.matrix(&name("ffn_up"), types.get(d, false), &[d, ff]);
    m.matrix(&name("ffn_down"), types.get(ff, true), &[ff, d]);
}

/// Proportional rope: a quarter of the pairs turn.
fn rope_freqs(m: &mut Maker) {
    m.vector("rope_freqs.weight", (0..256).map(|i| if i < 64 { 1.0 } else { 1e30 }));
}

/// Writes the model `size` with matrices of zeros, as a file with holes: it loads, costs no room on the disk, and
/// shows what caches and computations of that size take.
pub fn write_hollow(size: &Size, path: &Path) -> io::Result<()> {
    let mut out = Hollow { file: File::create(path)?, len: 0 };
    maker(size, None).writer.write_to(&mut out)?;
    out.file.set_len(out.len)
}

/// A file in which long runs of zeros are holes.
struct Hollow {
    file: File,
    len: u64,
}

impl Write for Hollow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        const ZEROS: &[u8] = &[0; 1 << 20];
        let is_hole = bytes.len() >= 4096 && bytes.chunks(ZEROS.len()).all(|b| b == &ZEROS[..b.len()]);
        if is_hole {
            self.file.seek(SeekFrom::Current(bytes.len() as i64))?;
        } else {
            self.file.write_all(bytes)?;
        }
        self.len += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn maker(size: &Size, pools: Option<Pools>) -> Maker {
    let mut maker = Maker { writer: GgufWriter::new(), pools, seed: 0, sizes: Vec::new() };
    metadata(&mut maker.writer, size, "gemma4");
    crate::vocabulary::set(&mut maker.writer);
    tensors(&mut maker, size);
    maker
}

fn is_full(size: &Size, i: usize) -> bool {
    i % size.period == size.period - 1
}

fn metadata(writer: &mut GgufWriter, size: &Size, arch: &str) {
    let n = size.n_layer;
    let mut set = |key: &str, value: Value| {
        writer.set(format!("{arch}.{key}"), value);
    };
    let u32s = |values: Vec<u64>| Value::Array(Array::U32(values.into_iter().map(|x| x as u32).collect()));
    let owners = n - size.shared_kv;
    set("block_count", Value::U32(n as u32));
    set("context_length", Value::U32(size.n_ctx));
    set("embedding_length", Value::U32(size.n_embd as u32));
    set(
        "feed_forward_length",
        u32s((0..n).map(|i| if i < owners { size.n_ff } else { size.n_ff_shared }).collect()),
    );
    set("attention.head_count", Value::U32(size.n_head as u32));
    let kv = |i| if is_full(size, i) { size.n_head_kv.1 } else { size.n_head_kv.0 };
    set("attention.head_count_kv", u32s((0..n).map(kv).collect()));
    for (key, value) in
        [("key_length", 512), ("value_length", 512), ("key_length_swa", 256), ("value_length_swa", 256)]
    {
        set(&format!("attention.{key}"), Value::U32(value));
    }
    set("attention.layer_norm_rms_epsilon", Value::F32(1e-6));
    set("attention.sliding_window", Value::U32(size.window));
    set(
        "attention.sliding_window_pattern",
        Value::Array(Array::Bool((0..n).map(|i| !is_full(size, i)).collect())),
    );
    set("attention.shared_kv_layers", Value::U32(size.shared_kv as u32));
    set("embedding_length_per_layer_input", Value::U32(size.n_embd_per_layer as u32));
    set("rope.freq_base", Value::F32(1e6));
    set("rope.freq_base_swa", Value::F32(1e4));
    set("rope.dimension_count", Value::U32(512));
    set("rope.dimension_count_swa", Value::U32(256));
    if arch == "gemma4" {
        set("final_logit_softcapping", Value::F32(30.0));
    }
    if size.experts.0 > 0 {
        set("expert_count", Value::U32(size.experts.0 as u32));
        set("expert_used_count", Value::U32(size.experts.1 as u32));
        set("expert_feed_forward_length", Value::U32(size.experts.2 as u32));
    }
    writer.set("general.architecture", Value::Str(arch.into()));
    writer.set("general.name", Value::Str(format!("synthetic {arch} of {}, random weights", size.name)));
}

fn tensors(m: &mut Maker, size: &Size) {
    let (d, v, p, n) = (size.n_embd, crate::vocabulary::SIZE, size.n_embd_per_layer, size.n_layer);
    m.matrix("token_embd.weight", quantised(d, true), &[d, v]);
    m.ones("output_norm.weight", d);
    rope_freqs(m);
    if p > 0 {
        m.matrix("per_layer_token_embd.weight", quantised(p * n as u64, true), &[p * n as u64, v]);
        m.matrix("per_layer_model_proj.weight", F16, &[d, p * n as u64]);
        m.ones("per_layer_proj_norm.weight", p);
    }
    for i in 0..n {
        layer(m, size, i);
    }
}

fn layer(m: &mut Maker, size: &Size, i: usize) {
    let (d, n, p) = (size.n_embd, size.n_layer, size.n_embd_per_layer);
    let full = is_full(size, i);
    let (head, kv) = if full { (512, size.n_head_kv.1) } else { (256, size.n_head_kv.0) };
    let owns = i < n - size.shared_kv;
    let ff = if owns { size.n_ff } else { size.n_ff_shared };
    let more = more_bits(i, n);
    let name = |part: &str| format!("blk.{i}.{part}.weight");
    m.ones(&name("attn_norm"), d);
    m.matrix(&name("attn_q"), quantised(d, false), &[d, head * size.n_head]);
    if owns {
        m.matrix(&name("attn_k"), quantised(d, false), &[d, head * kv]);
        if !(full && size.k_eq_v) {
            m.matrix(&name("attn_v"), quantised(d, more), &[d, head * kv]);
        }
        m.ones(&name("attn_k_norm"), head);
    }
    m.matrix(&name("attn_output"), quantised(head * size.n_head, false), &[head * size.n_head, d]);
    m.ones(&name("attn_q_norm"), head);
    for norm in ["post_attention_norm", "ffn_norm", "post_ffw_norm"] {
        m.ones(&name(norm), d);
    }
    m.ones(&name("layer_output_scale"), 1);
    m.matrix(&name("ffn_gate"), quantised(d, false), &[d, ff]);
    m.matrix(&name("ffn_up"), quantised(d, false), &[d, ff]);
    m.matrix(&name("ffn_down"), quantised(ff, more), &[ff, d]);
    if p > 0 {
        m.matrix(&name("inp_gate"), quantised(d, false), &[d, p]);
        m.matrix(&name("proj"), quantised(p, false), &[p, d]);
        m.ones(&name("post_norm"), d);
    }
    let (e, _, fe) = size.experts;
    if e > 0 {
        let mut random = Random(i as u64);
        let router: Vec<u8> = (0..d * e).flat_map(|_| (1.7 * random.unit()).to_le_bytes()).collect();
        m.table(&name("ffn_gate_inp"), &[d, e], router);
        m.ones(&format!("blk.{i}.ffn_gate_inp.scale"), d);
        for norm in ["pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2"] {
            m.ones(&name(norm), d);
        }
        m.matrix(&name("ffn_gate_up_exps"), quantised(d, false), &[d, 2 * fe, e]);
        m.matrix(&name("ffn_down_exps"), quantised(fe, more), &[fe, d, e]);
        m.ones(&format!("blk.{i}.ffn_down_exps.scale"), e);
    }
}
