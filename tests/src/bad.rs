//! Takes model files apart and puts them together again, right or wrong.

use gemma4::gguf::{GgufFile, GgufWriter, Strings, TypeLayout, Value};
use gemma4::{Error, Model};
use std::path::{Path, PathBuf};

/// Type ids of a file's tensors.
#[allow(missing_docs)]
pub mod id {
    pub const F32: u32 = 0;
    pub const F16: u32 = 1;
    pub const Q8_0: u32 = 8;
    pub const I32: u32 = 26;
    pub const BF16: u32 = 30;
    /// A type of our own that no file may use.
    pub const TQ3_0: u32 = 224;
}

/// Every type of ggml's table: id, values of a block, bytes of a block.
pub const TYPES: &[(u32, u64, u64)] = &[
    (0, 1, 4),
    (1, 1, 2),
    (2, 32, 18),
    (3, 32, 20),
    (6, 32, 22),
    (7, 32, 24),
    (8, 32, 34),
    (9, 32, 36),
    (10, 256, 84),
    (11, 256, 110),
    (12, 256, 144),
    (13, 256, 176),
    (14, 256, 210),
    (15, 256, 292),
    (16, 256, 66),
    (17, 256, 74),
    (18, 256, 98),
    (19, 256, 50),
    (20, 32, 18),
    (21, 256, 110),
    (22, 256, 82),
    (23, 256, 136),
    (24, 1, 1),
    (25, 1, 2),
    (26, 1, 4),
    (27, 1, 8),
    (28, 1, 8),
    (29, 256, 56),
    (30, 1, 2),
    (34, 256, 54),
    (35, 256, 66),
    (39, 32, 17),
    (40, 64, 36),
    (41, 128, 18),
    (42, 64, 18),
];

/// Layout of a type of [`TYPES`].
pub fn layout(id: u32) -> Option<TypeLayout> {
    TYPES.iter().find(|t| t.0 == id).map(|&(_, block, bytes)| TypeLayout { block, bytes })
}

/// One tensor with its data.
#[derive(Clone, Debug)]
pub struct Part {
    /// Name.
    pub name: String,
    /// ggml's type id.
    pub type_id: u32,
    /// Sizes, fastest first.
    pub ne: Vec<u64>,
    /// The bytes as in the file.
    pub data: Vec<u8>,
}

impl Part {
    /// A tensor of zeros.
    pub fn zeros(name: &str, type_id: u32, ne: &[u64]) -> Part {
        let mut part = Part { name: name.into(), type_id, ne: ne.to_vec(), data: Vec::new() };
        part.retype(type_id);
        part
    }

    /// A vector of F32 numbers.
    pub fn f32s(name: &str, values: &[f32]) -> Part {
        let data = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Part { name: name.into(), type_id: id::F32, ne: vec![values.len() as u64], data }
    }

    /// Changes the type, and the data to zeros of the right length.
    pub fn retype(&mut self, type_id: u32) {
        self.type_id = type_id;
        self.resize();
    }

    /// Gives the data the length that type and shape ask for: zeros, unless it has it already.
    pub fn resize(&mut self) {
        // Types that the table lacks are given the size of F32: the reader must stop before it counts.
        let TypeLayout { block, bytes } = layout(self.type_id).unwrap_or(TypeLayout { block: 1, bytes: 4 });
        let n = (self.ne.iter().product::<u64>() / block * bytes) as usize;
        if self.data.len() != n {
            self.data = vec![0; n];
        }
    }

    /// The values of an F32 tensor.
    pub fn values(&self) -> Vec<f32> {
        assert_eq!(self.type_id, id::F32, "{}", self.name);
        self.data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }
}

/// A model file in pieces.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Keys and values in the order of the file.
    pub metadata: Vec<(String, Value)>,
    /// Tensors in the order of the file.
    pub tensors: Vec<Part>,
}

impl Parts {
    /// Reads a file that is not split.
    pub fn read(path: &Path) -> Parts {
        let file = GgufFile::open(path, &layout).unwrap();
        let bytes = std::fs::read(path).unwrap();
        let metadata = file.metadata.iter().map(|(k, v)| (k.to_owned(), v.clone())).collect();
        let tensors = file.tensors.iter().map(|t| Part {
            name: t.name.clone(),
            type_id: t.type_id,
            ne: t.ne[..t.n_dims as usize].to_vec(),
            data: bytes[t.offset as usize..(t.offset + t.nbytes) as usize].to_vec(),
        });
        Parts { metadata, tensors: tensors.collect() }
    }

    /// Two layers (a sliding window of 4, then full) of one head over a vocabulary of eight tokens. Matrices
    /// are zeros of type `matrix`, whose block must divide `n_embd` and `head_dim`.
    pub fn micro(n_embd: u32, head_dim: u32, matrix: u32) -> Parts {
        let (d, h, v) = (u64::from(n_embd), u64::from(head_dim), 8u64);
        let mut parts = Parts { metadata: Vec::new(), tensors: Vec::new() };
        parts.set("general.architecture", "gemma4");
        for (key, value) in [
            ("block_count", 2),
            ("context_length", 128),
            ("embedding_length", n_embd),
            ("embedding_length_per_layer_input", 0),
            ("feed_forward_length", n_embd),
            ("attention.head_count", 1),
            ("attention.head_count_kv", 1),
            ("attention.key_length", head_dim),
            ("attention.key_length_swa", head_dim),
            ("attention.value_length", head_dim),
            ("attention.value_length_swa", head_dim),
            ("attention.sliding_window", 4),
        ] {
            parts.set(&format!("gemma4.{key}"), value);
        }
        parts.set("gemma4.attention.sliding_window_pattern", vec![true, false]);
        parts.set("gemma4.attention.layer_norm_rms_epsilon", 1e-6f32);
        parts.set("tokenizer.ggml.model", "gemma4");
        let tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "a", "b", "ab", "\u{2581}"];
        parts.set("tokenizer.ggml.tokens", tokens.iter().collect::<Strings>());
        parts.set("tokenizer.ggml.token_type", vec![3i32, 3, 3, 2, 1, 1, 1, 1]);
        parts.set("tokenizer.ggml.merges", ["a b"].iter().collect::<Strings>());
        parts.set("tokenizer.ggml.unknown_token_id", 3u32);

        let ones = |name: &str, n: u64| Part::f32s(name, &vec![1.0; n as usize]);
        parts.tensors.push(Part::zeros("token_embd.weight", matrix, &[d, v]));
        parts.tensors.push(ones("output_norm.weight", d));
        parts.tensors.push(ones("rope_freqs.weight", h / 2));
        for i in 0..2 {
            let name = |name: &str| format!("blk.{i}.{name}.weight");
            for norm in ["attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"] {
                parts.tensors.push(ones(&name(norm), d));
            }
            for norm in ["attn_q_norm", "attn_k_norm"] {
                parts.tensors.push(ones(&name(norm), h));
            }
            for (matrix_name, ne) in [
                ("attn_q", [d, h]),
                ("attn_k", [d, h]),
                ("attn_v", [d, h]),
                ("attn_output", [h, d]),
                ("ffn_gate", [d, d]),
                ("ffn_up", [d, d]),
                ("ffn_down", [d, d]),
            ] {
                parts.tensors.push(Part::zeros(&name(matrix_name), matrix, &ne));
            }
        }
        parts
    }

    /// Sets a key, in its old place if there is one.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        let value = value.into();
        match self.metadata.iter_mut().find(|(k, _)| k == key) {
            Some((_, slot)) => *slot = value,
            None => self.metadata.push((key.to_owned(), value)),
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    /// Removes a key that must be there.
    pub fn remove(&mut self, key: &str) {
        let n = self.metadata.len();
        self.metadata.retain(|(k, _)| k != key);
        assert_eq!(self.metadata.len() + 1, n, "{key}");
    }

    /// A tensor that must be there.
    pub fn tensor(&mut self, name: &str) -> &mut Part {
        self.tensors.iter_mut().find(|t| t.name == name).unwrap_or_else(|| panic!("no {name}"))
    }

    /// Removes a tensor that must be there.
    pub fn remove_tensor(&mut self, name: &str) {
        let n = self.tensors.len();
        self.tensors.retain(|t| t.name != name);
        assert_eq!(self.tensors.len() + 1, n, "{name}");
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut writer = GgufWriter::new();
        for (key, value) in &self.metadata {
            writer.set(key.as_str(), value.clone());
        }
        for t in &self.tensors {
            writer.tensor(&t.name, t.type_id, &t.ne, t.data.clone());
        }
        writer.to_bytes()
    }

    /// Writes the parts of a split model, `tensors[i]` to part `i`, and returns their paths. The first part has
    /// all keys.
    pub fn write_split(&self, dir: &Path, counts: &[usize]) -> Vec<PathBuf> {
        assert_eq!(counts.iter().sum::<usize>(), self.tensors.len());
        let mut tensors = self.tensors.iter();
        let mut paths = Vec::new();
        for (i, &n) in counts.iter().enumerate() {
            let mut part =
                Parts { metadata: Vec::new(), tensors: tensors.by_ref().take(n).cloned().collect() };
            if i == 0 {
                part.metadata.clone_from(&self.metadata);
            }
            part.set("split.no", i as u32);
            part.set("split.count", counts.len() as u32);
            part.set("split.tensors.count", self.tensors.len() as i32);
            let path = dir.join(format!("model-{:05}-of-{:05}.gguf", i + 1, counts.len()));
            std::fs::write(&path, part.bytes()).unwrap();
            paths.push(path);
        }
        paths
    }
}

/// A folder for files that go away with it, and one file in it that is written again and again.
pub struct Bench<D> {
    dir: D,
}

impl<D: AsRef<Path>> Bench<D> {
    /// Works in `dir`, which a `tempfile::TempDir` removes in the end.
    pub fn new(dir: D) -> Self {
        Bench { dir }
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.as_ref().join(name)
    }

    /// Loads `parts` from a file.
    pub fn load(&self, parts: &Parts) -> gemma4::Result<Model> {
        self.load_bytes(&parts.bytes())
    }

    /// Loads a file of these bytes.
    pub fn load_bytes(&self, bytes: &[u8]) -> gemma4::Result<Model> {
        // Removed and not overwritten: a model of the last call may still have it mapped.
        let path = self.path("model.gguf");
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, bytes).unwrap();
        Model::load(&path)
    }

    /// The error of loading `parts`, which must fail.
    pub fn error(&self, what: &str, parts: &Parts) -> Error {
        match self.load(parts) {
            Err(e) => e,
            Ok(_) => panic!("{what}: loaded"),
        }
    }

    /// Loads `parts`, which must fail with [`Error::Model`] about `key`, and returns the message.
    pub fn model_error(&self, what: &str, parts: &Parts, key: &str) -> String {
        let error = self.error(what, parts);
        let message = error.to_string();
        match error {
            Error::Model { path, key: found, found: f, expected } => {
                assert_eq!(found, key, "{what}: {message}");
                assert!(path.ends_with("model.gguf"), "{what}: {message}");
                assert!(!f.is_empty() && !expected.is_empty(), "{what}: {message}");
                assert!(message.contains(key) && message.contains(&f), "{what}: {message}");
            }
            other => panic!("{what}: {other:?}"),
        }
        message
    }
}

/// Asserts that a message holds all of `parts`.
#[track_caller]
pub fn says(message: impl ToString, parts: &[&str]) {
    let message = message.to_string();
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}
