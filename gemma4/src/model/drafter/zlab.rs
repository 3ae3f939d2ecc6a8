//! DFlash drafters as z-lab publishes them: a folder with `config.json` and `*.safetensors`.
//!
//! The folder is described as if it were a `dflash` GGUF file whose tensors lie in the safetensors files, so
//! that one loader reads both. Matrices are row-major `[out, in]` there, which are the bytes of `[in, out]`.

use super::dflash::ARCH;
use crate::ggml::gguf::{GgufFile, GgufSet, Metadata, TensorInfo};
use crate::ggml::{DType, FileMap};
use crate::{Error, Result};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The longest `config.json` that is read, in bytes.
const MAX_CONFIG: u64 = 1 << 20;

/// Describes the drafter in the folder `dir`.
pub(super) fn open(dir: &Path) -> Result<GgufSet> {
    let config = read_config(&dir.join("config.json"))?;
    let metadata = describe(&config)?;
    let mut files = Vec::new();
    for path in weight_files(dir)? {
        files.push(read_table(&path, &metadata)?);
    }
    GgufSet::merge(files)
}

/// The values of a `config.json`, and where they are from.
struct Config {
    path: PathBuf,
    root: Value,
}

impl Config {
    /// A value at the top level or in `dflash_config`.
    fn get(&self, key: &str) -> Option<&Value> {
        let nested = || self.root.get("dflash_config").and_then(|c| c.get(key));
        self.root.get(key).or_else(nested).filter(|v| !v.is_null())
    }

    fn wrong(&self, key: &str, found: impl Into<String>, expected: impl Into<String>) -> Error {
        let path = self.path.clone();
        Error::Model { path, key: key.into(), found: found.into(), expected: expected.into() }
    }

    fn u32(&self, key: &str) -> Result<Option<u32>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64().and_then(|n| u32::try_from(n).ok()) {
            Some(n) => Ok(Some(n)),
            None => Err(self.wrong(key, value.to_string(), "an integer from 0 to 2^32 - 1")),
        }
    }

    fn f32(&self, key: &str) -> Result<Option<f32>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(x) => Ok(Some(x as f32)),
            None => Err(self.wrong(key, value.to_string(), "a number")),
        }
    }

    fn str(&self, key: &str) -> Result<Option<&str>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_str() {
            Some(text) => Ok(Some(text)),
            None => Err(self.wrong(key, value.to_string(), "a string")),
        }
    }

    fn list(&self, key: &str) -> Result<Option<&Vec<Value>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_array() {
            Some(list) => Ok(Some(list)),
            None => Err(self.wrong(key, value.to_string(), "a list")),
        }
    }
}

fn read_config(path: &Path) -> Result<Config> {
    let io = |action| move |source| Error::Io { action, path: path.to_owned(), source };
    let len = std::fs::metadata(path).map_err(io("open"))?.len();
    let config = Config { path: path.to_owned(), root: Value::Null };
    if len > MAX_CONFIG {
        return Err(config.wrong("config.json", format!("{len} bytes"), format!("at most {MAX_CONFIG}")));
    }
    let text = std::fs::read_to_string(path).map_err(io("read"))?;
    match serde_json::from_str(&text) {
        Ok(root @ Value::Object(_)) => Ok(Config { root, ..config }),
        Ok(_) => Err(config.wrong("config.json", "no object", "the configuration of a DFlash drafter")),
        Err(e) => Err(config.wrong("config.json", e.to_string(), "the configuration of a DFlash drafter")),
    }
}

/// The keys of a `dflash` GGUF file.
fn describe(config: &Config) -> Result<Metadata> {
    let mut meta = Metadata::new(&config.path);
    meta.set("general.architecture", ARCH);
    let numbers = [
        ("num_hidden_layers", "block_count"),
        ("hidden_size", "embedding_length"),
        ("intermediate_size", "feed_forward_length"),
        ("num_attention_heads", "attention.head_count"),
        ("num_key_value_heads", "attention.head_count_kv"),
        ("head_dim", "attention.key_length"),
        ("head_dim", "attention.value_length"),
        ("max_position_embeddings", "context_length"),
        ("vocab_size", "vocab_size"),
        ("block_size", "block_size"),
    ];
    for (from, to) in numbers {
        if let Some(n) = config.u32(from)? {
            meta.set(format!("{ARCH}.{to}"), n);
        }
    }
    let floats =
        [("rms_norm_eps", "attention.layer_norm_rms_epsilon"), ("embedding_scale", "embedding_scale")];
    for (from, to) in floats {
        if let Some(x) = config.f32(from)? {
            meta.set(format!("{ARCH}.{to}"), x);
        }
    }
    // Newer configurations keep it among the parameters of the rotation.
    let nested = config.root.get("rope_parameters").and_then(|p| p.get("rope_theta")).and_then(Value::as_f64);
    if let Some(theta) = config.f32("rope_theta")?.or(nested.map(|x| x as f32)) {
        meta.set(format!("{ARCH}.rope.freq_base"), theta);
    }
    if let Some(token) = config.u32("mask_token_id")? {
        meta.set("tokenizer.ggml.mask_token_id", token);
    }
    if let Some(name) = config.str("hidden_act")? {
        meta.set(format!("{ARCH}.hidden_activation"), name);
    }
    windows(config, &mut meta)?;
    if let Some(ids) = config.list("target_layer_ids")? {
        // There the output of layer i, in GGUF the input of the next one.
        let ids = ids.iter().map(|id| u32::try_from(id.as_u64()?.checked_add(1)?).ok());
        let Some(ids) = ids.collect::<Option<Vec<u32>>>() else {
            return Err(config.wrong("target_layer_ids", "other values", "a list of layer numbers"));
        };
        meta.set(format!("{ARCH}.target_layers"), ids);
    }
    Ok(meta)
}

/// The sliding window, and which layers have it.
fn windows(config: &Config, meta: &mut Metadata) -> Result<()> {
    let is_off = config.get("use_sliding_window").and_then(Value::as_bool) == Some(false);
    let (Some(window), false) = (config.u32("sliding_window")?, is_off) else { return Ok(()) };
    let n = config.u32("num_hidden_layers")?.unwrap_or(0) as usize;
    let pattern: Vec<bool> = match config.list("layer_types")? {
        Some(kinds) => kinds.iter().map(|kind| kind.as_str() == Some("sliding_attention")).collect(),
        None => (0..n.min(1 << 16)).map(|i| i + 1 < n).collect(),
    };
    meta.set(format!("{ARCH}.attention.sliding_window"), window);
    meta.set(format!("{ARCH}.attention.sliding_window_pattern"), pattern);
    Ok(())
}

/// The safetensors files of the folder, by name.
fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let io = |source| Error::Io { action: "list", path: dir.to_owned(), source };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|x| x == "safetensors") {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        let (path, key) = (dir.to_owned(), "*.safetensors".to_owned());
        let (found, expected) = ("no such file".into(), "the weights of a DFlash drafter".into());
        return Err(Error::Model { path, key, found, expected });
    }
    paths.sort();
    Ok(paths)
}

/// The tensors of one file, under their names in GGUF.
fn read_table(path: &Path, metadata: &Metadata) -> Result<GgufFile> {
    let wrong = |key: &str, found: String, expected: &str| Error::Model {
        path: path.to_owned(),
        key: key.to_owned(),
        found,
        expected: expected.to_owned(),
    };
    let io = |source| Error::Io { action: "open", path: path.to_owned(), source };
    let meta = std::fs::metadata(path).map_err(io)?;
    if !meta.is_file() || meta.len() < 8 {
        return Err(wrong("header", format!("{} bytes", meta.len()), "a safetensors file"));
    }
    let map = FileMap::open(path)?;
    let bytes = map.bytes();
    let (header, table) =
        SafeTensors::read_metadata(bytes).map_err(|e| wrong("header", e.to_string(), "safetensors"))?;
    let mut tensors = Vec::new();
    for (name, info) in table.tensors() {
        let type_id = match info.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => return Err(wrong(&name, format!("type {other:?}"), "F32, F16 or BF16")),
        };
        let mut ne = [1u64; 4];
        if info.shape.is_empty() || info.shape.len() > 4 || info.shape.contains(&0) {
            return Err(wrong(&name, format!("shape {:?}", info.shape), "1 to 4 sizes above 0"));
        }
        for (to, &from) in ne.iter_mut().zip(info.shape.iter().rev()) {
            *to = from as u64;
        }
        let (start, end) = info.data_offsets;
        tensors.push(TensorInfo {
            name: gguf_name(&name),
            type_id: type_id.0,
            ne,
            n_dims: info.shape.len() as u32,
            // The header's length stands in eight bytes before it.
            offset: (8 + header + start) as u64,
            nbytes: (end - start) as u64,
        });
    }
    tensors.sort_by_key(|t| t.offset);
    let mut own = Metadata::new(path);
    for (key, value) in metadata.iter() {
        own.set(key, value.clone());
    }
    Ok(GgufFile::from_table(own, tensors, bytes.len() as u64))
}

/// The name that a tensor has in GGUF; unknown ones keep theirs and are never asked for.
fn gguf_name(name: &str) -> String {
    let name = name.strip_prefix("model.").unwrap_or(name);
    let whole = match name {
        "fc.weight" => Some("fc.weight"),
        "hidden_norm.weight" => Some("enc.output_norm.weight"),
        "norm.weight" => Some("output_norm.weight"),
        "embed_tokens.weight" => Some("token_embd.weight"),
        "lm_head.weight" => Some("output.weight"),
        _ => None,
    };
    if let Some(whole) = whole {
        return whole.into();
    }
    let layered = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
    let part = |part: &str| {
        Some(match part {
            "input_layernorm.weight" => "attn_norm.weight",
            "post_attention_layernorm.weight" => "ffn_norm.weight",
            "self_attn.q_proj.weight" => "attn_q.weight",
            "self_attn.k_proj.weight" => "attn_k.weight",
            "self_attn.v_proj.weight" => "attn_v.weight",
            "self_attn.o_proj.weight" => "attn_output.weight",
            "self_attn.q_norm.weight" => "attn_q_norm.weight",
            "self_attn.k_norm.weight" => "attn_k_norm.weight",
            "mlp.gate_proj.weight" => "ffn_gate.weight",
            "mlp.up_proj.weight" => "ffn_up.weight",
            "mlp.down_proj.weight" => "ffn_down.weight",
            _ => return None,
        })
    };
    match layered.and_then(|(i, rest)| Some((i, part(rest)?))) {
        Some((i, part)) => format!("blk.{i}.{part}"),
        None => name.to_owned(),
    }
}
