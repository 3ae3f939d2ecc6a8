//! Round trips, and a corpus of hostile files. Every file is made here.

use std::path::Path;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const F32: u32 = 0;
const Q8_0: u32 = 8;

fn layout(id: u32) -> Option<TypeLayout> {
    match id {
        F32 => Some(TypeLayout { block: 1, bytes: 4 }),
        Q8_0 => Some(TypeLayout { block: 32, bytes: 34 }),
        // Ids that ggml has retired have no block.
        4 => Some(TypeLayout { block: 0, bytes: 0 }),
        _ => None,
    }
}

fn parse(bytes: &[u8]) -> Result<GgufFile> {
    GgufFile::from_reader(Path::new("test.gguf"), bytes, bytes.len() as u64, &layout)
}

#[track_caller]
fn refused(bytes: &[u8], says: &str) {
    let message = parse(bytes).map(drop).unwrap_err().to_string();
    assert!(message.contains(says), "{message}\ndoes not say: {says}");
    assert!(message.starts_with("test.gguf: not a usable GGUF file: "), "{message}");
}

/// Hand-made bytes of a header.
#[derive(Clone, Default)]
struct Raw(Vec<u8>);

impl Raw {
    fn header(tensors: u64, keys: u64) -> Raw {
        Raw::default().bytes(b"GGUF").u32(3).u64(tensors).u64(keys)
    }
    fn bytes(mut self, bytes: &[u8]) -> Raw {
        self.0.extend_from_slice(bytes);
        self
    }
    fn u32(self, n: u32) -> Raw {
        self.bytes(&n.to_le_bytes())
    }
    fn u64(self, n: u64) -> Raw {
        self.bytes(&n.to_le_bytes())
    }
    fn str(self, text: impl AsRef<[u8]>) -> Raw {
        self.u64(text.as_ref().len() as u64).bytes(text.as_ref())
    }
    fn tensor(self, name: &str, ne: &[u64], type_id: u32, offset: u64) -> Raw {
        let raw = ne.iter().fold(self.str(name).u32(ne.len() as u32), |raw, &n| raw.u64(n));
        raw.u32(type_id).u64(offset)
    }
    /// Pads to the data section and adds `n` bytes of data.
    fn data(mut self, n: usize) -> Raw {
        self.0.resize(self.0.len().next_multiple_of(32) + n, 0);
        self
    }
}

fn sample() -> GgufWriter {
    let mut w = GgufWriter::new();
    w.set("general.architecture", "gemma4").set("u8", 7u8).set("i", -3i32).set("f", 0.5f32).set("b", true);
    w.set("tokens", ["a", "", "\u{2581}b"].iter().collect::<Strings>());
    w.set("flags", vec![true, false]).set("ints", vec![1i32, -2]).set("floats", vec![1.0f32]);
    w.tensor("one", F32, &[2, 3], vec![1; 24]).tensor("two", Q8_0, &[32, 2], vec![2; 68]);
    // A multiple of the alignment, so that no padding follows and every cut takes data away.
    w.tensor("three", F32, &[8], vec![3; 32]);
    w
}

#[test]
fn reads_what_was_written() {
    let bytes = sample().to_bytes();
    let file = parse(&bytes).unwrap();
    assert_eq!((file.version, file.alignment, file.file_len), (3, 32, bytes.len() as u64));
    assert_eq!(file.data_offset % 32, 0);
    let two = file.tensor("two").unwrap();
    assert_eq!((two.type_id, two.ne, two.n_dims, two.nbytes), (Q8_0, [32, 2, 1, 1], 2, 68));
    assert_eq!(two.offset, file.data_offset + 32);
    assert_eq!(bytes[two.offset as usize..][..68], [2; 68]);
    assert_eq!(file.tensor("three").unwrap().offset, file.data_offset + 32 + 96);
    assert!(file.tensor("four").is_none());
    assert_eq!(file.tensors.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["one", "two", "three"]);
    assert_eq!(file.metadata.iter().next().unwrap().0, "general.architecture");
    let mut v2 = bytes;
    v2[4] = 2;
    assert_eq!(parse(&v2).unwrap().version, 2);
}

#[test]
fn getters_take_any_width_and_name_what_is_wrong() {
    let m = parse(&sample().to_bytes()).unwrap().metadata;
    assert_eq!(
        (m.u32("u8").unwrap(), m.u64("u8").unwrap(), m.u32("none").unwrap()),
        (Some(7), Some(7), None)
    );
    assert_eq!((m.f32("f").unwrap(), m.bool("b").unwrap()), (Some(0.5), Some(true)));
    assert_eq!(m.str("general.architecture").unwrap(), Some("gemma4"));
    assert_eq!(m.strings("tokens").unwrap().unwrap().iter().collect::<Vec<_>>(), ["a", "", "\u{2581}b"]);
    assert_eq!(m.strings("tokens").unwrap().unwrap().get(2), Some("\u{2581}b"));
    assert_eq!(m.strings("tokens").unwrap().unwrap().get(3), None);
    assert_eq!(m.ints("flags").unwrap(), Some(vec![1, 0]));
    assert_eq!(m.ints("ints").unwrap(), Some(vec![1, -2]));
    assert_eq!(m.f32s("floats").unwrap(), Some(vec![1.0]));
    assert_eq!(m.u32_or_array("u8", 3).unwrap(), Some(vec![7; 3]));
    assert_eq!(m.u32_or_array("flags", 2).unwrap(), Some(vec![1, 0]));
    assert_eq!(m.u32_or_array("none", 2).unwrap(), None);
    let says = |result: Result<bool>, text: &str| assert_eq!(result.unwrap_err().to_string(), text);
    says(m.u32("i").map(|_| true), "test.gguf: i: found i32 -3, expected an integer from 0 to 2^32 - 1");
    says(m.u64("f").map(|_| true), "test.gguf: f: found f32 0.5, expected an integer from 0 on");
    says(m.bool("u8").map(|_| true), "test.gguf: u8: found u8 7, expected a bool");
    says(
        m.strings("flags").map(|_| true),
        "test.gguf: flags: found array of 2 bool, expected an array of strings",
    );
    says(
        m.u32_or_array("flags", 3).map(|_| true),
        "test.gguf: flags: found array of 2 bool, expected an integer or an array of 3 integers, each from 0 to 2^32 - 1",
    );
    assert!(m.u32_or_array("ints", 2).is_err() && m.f32("b").is_err() && m.str("b").is_err());
    assert!(m.ints("floats").is_err() && m.f32s("ints").is_err() && m.f32s("f").is_err());
}

#[test]
fn other_files_are_recognised() {
    refused(b"", "the file is empty");
    refused(b"GG", "ends after 2 bytes, inside the magic");
    refused(b"Hello, world", "not GGUF: the file starts with \"Hell\", expected");
    refused(b"FUGG\0\0\0\x03", "big-endian");
    refused(b"GGUF\0\0\0\x03", "big-endian");
    refused(b"version https://git-lfs", "git-lfs");
    refused(b"<!DOCTYPE html>", "web page");
    refused(b"\xff\0\x1b[", "starts with \"\\xff\\x00\\x1b[\"");
    refused(b"GGUF\x01\0\0\0", "version 1 is not supported");
    refused(b"GGUF\x63\0\0\0", "version 99 is unknown");
    refused(b"GGUF\0\0\0\0", "version 0 is unknown");
    let dir = TempDir::new().unwrap();
    let open = |path: &Path| GgufFile::open(path, &layout).map(drop).unwrap_err().to_string();
    assert!(open(dir.path()).contains("it is a directory"));
    assert!(open(&dir.path().join("none.gguf")).starts_with("cannot open "));
}

#[test]
fn cut_anywhere() {
    let bytes = sample().to_bytes();
    for n in 0..bytes.len() {
        let message = parse(&bytes[..n]).map(drop).unwrap_err().to_string();
        assert!(message.contains("ends") || n == 0, "{n}: {message}");
        // The file shrinks between the look at its size and the reading of it.
        let lied = GgufFile::from_reader(Path::new("x"), &bytes[..n], bytes.len() as u64, &layout);
        assert!(lied.is_err() || n as u64 >= parse(&bytes).unwrap().data_offset - 31);
    }
    refused(&bytes[..bytes.len() - 1], "inside the data of tensor \"three\"");
}

#[test]
fn counts_that_promise_too_much() {
    for n in [u64::MAX, i64::MAX as u64, 1 << 60, 1 << 40, 1 << 20] {
        refused(&Raw::header(n, 0).0, "ends inside the number of tensors");
        refused(&Raw::header(0, n).0, "ends inside the number of metadata keys");
        let key = Raw::header(0, 1).str("k");
        refused(&key.clone().u32(kind::STRING).u64(n).data(64).0, "the value of \"k\"");
        for element in (0..=12).filter(|&id| id != kind::ARRAY) {
            refused(
                &key.clone().u32(kind::ARRAY).u32(element).u64(n).data(64).0,
                "ends inside the value of \"k\"",
            );
        }
        refused(&Raw::header(0, 1).u64(n).data(64).0, "metadata key 0 has a length of");
        refused(&Raw::header(1, 0).u64(n).data(64).0, "the name of tensor 0 has a length of");
        let long = key.u32(kind::ARRAY).u32(kind::STRING).u64(2).str("a").u64(n).data(64);
        refused(&long.0, "element 1 of \"k\"");
    }
    let mut many = Raw::header(MAX_ENTRIES + 1, 0);
    many.0.resize(4 << 20, 0);
    refused(&many.0, "at most 65536 are accepted");
}

#[test]
fn sparse_files_do_not_cost_memory() {
    // A file of a terabyte, as far as its size tells: the promises would all fit.
    let open = |raw: Raw| {
        let reader = raw.0.as_slice().chain(std::io::repeat(0));
        GgufFile::from_reader(Path::new("x"), reader, 1 << 40, &layout).map(drop).unwrap_err().to_string()
    };
    let key = Raw::header(0, 1).str("k");
    let message = open(key.clone().u32(kind::ARRAY).u32(kind::U64).u64(1 << 36));
    assert!(message.contains("the header passes 256 MiB"), "{message}");
    let message = open(key.clone().u32(kind::ARRAY).u32(kind::STRING).u64(1 << 36));
    assert!(message.contains("the header passes 256 MiB"), "{message}");
    let message = open(key.u32(kind::STRING).u64(1 << 36));
    assert!(message.contains("at most 16777216 are accepted"), "{message}");
}

#[test]
fn bad_keys_and_values() {
    let pair = |key: &str| Raw::header(0, 2).str(key).u32(kind::U8).bytes(&[1]);
    refused(&pair("k").str("k").u32(kind::U8).bytes(&[1]).data(8).0, "metadata key \"k\" occurs twice");
    refused(&pair("").data(32).0, "metadata key 0 is empty");
    refused(&Raw::header(0, 1).str([b'a', 0xff]).data(32).0, "metadata key 0 is not valid UTF-8 at byte 33");
    refused(&Raw::header(0, 1).str(vec![b'a'; 70_000]).data(32).0, "length of 70000 bytes, at most 65535");
    let key = Raw::header(0, 1).str("k");
    refused(&key.clone().u32(13).data(32).0, "unknown type 13");
    refused(&key.clone().u32(u32::MAX).data(32).0, "unknown type 4294967295");
    refused(&key.clone().u32(kind::BOOL).bytes(&[2]).0, "is a bool of value 2");
    refused(&key.clone().u32(kind::STRING).str([0xC3]).0, "the value of \"k\" is not valid UTF-8");
    let array = key.u32(kind::ARRAY);
    refused(&array.clone().u32(kind::ARRAY).u64(1).u32(kind::U8).u64(1).data(32).0, "array of arrays");
    refused(&array.clone().u32(77).u64(1).data(32).0, "array of the unknown type 77");
    refused(
        &array.clone().u32(kind::BOOL).u64(2).bytes(&[1, 9]).0,
        "element 1 of \"k\" is a bool of value 9",
    );
    refused(&array.u32(kind::STRING).u64(2).str("a").str([0xff]).0, "element 1 of \"k\" is not valid UTF-8");
}

#[test]
fn bad_alignment() {
    for n in [0u32, 1, 4, 24, 33, 1 << 21, u32::MAX] {
        let mut w = GgufWriter::new();
        w.set("general.alignment", n);
        refused(&w.to_bytes(), &format!("general.alignment is {n}, expected a power of two"));
    }
    let mut w = GgufWriter::new();
    w.set("general.alignment", 64u64);
    refused(&w.to_bytes(), "general.alignment is u64 64, expected a u32");
    let mut w = sample();
    w.set("general.alignment", 64u32);
    let file = parse(&w.to_bytes()).unwrap();
    assert!(file.alignment == 64 && file.tensors.iter().all(|t| t.offset % 64 == 0));
}

#[test]
fn bad_tensors() {
    let one = |ne: &[u64], type_id: u32| Raw::header(1, 0).tensor("t", ne, type_id, 0).data(256).0;
    assert_eq!(parse(&one(&[], F32)).unwrap().tensors[0].nbytes, 4);
    refused(&one(&[1; 5], F32), "tensor \"t\" has 5 dimensions");
    refused(&Raw::header(1, 0).str("t").u32(u32::MAX).data(64).0, "has 4294967295 dimensions");
    refused(&one(&[4, 0], F32), "no size may be 0");
    refused(&one(&[33], Q8_0), "multiple of the type's block of 32");
    refused(&one(&[4], 4), "has the type 4, which");
    refused(&one(&[4], u32::MAX), "has the type 4294967295, which");
    // CVE-2026-33298: products that wrap to a small size.
    for ne in [[1 << 32, 1 << 32, 1, 1], [u64::MAX, 1, 1, 1], [1 << 62, 4, 1, 1], [i64::MAX as u64, 1, 1, 1]]
    {
        refused(&one(&ne, F32), "which no memory can hold");
    }
    // CVE-2026-7482: more data than the file has.
    refused(&one(&[1 << 40], F32), "the file ends inside the data of tensor \"t\"");
    refused(&Raw::header(1, 0).tensor("", &[1], F32, 0).data(64).0, "is empty or has a NUL");
    refused(&Raw::header(1, 0).tensor("a\0b", &[1], F32, 0).data(64).0, "is empty or has a NUL");
    refused(
        &Raw::header(1, 0).tensor(&"n".repeat(64), &[1], F32, 0).data(64).0,
        "length of 64 bytes, at most 63",
    );
    assert!(parse(&Raw::header(1, 0).tensor(&"n".repeat(63), &[1], F32, 0).data(64).0).is_ok());
    let two = |name: &str, offset: u64| {
        Raw::header(2, 0).tensor("a", &[16], F32, 0).tensor(name, &[1], F32, offset).data(256).0
    };
    assert!(parse(&two("b", 64)).is_ok());
    refused(&two("a", 64), "tensor \"a\" occurs twice");
    refused(&two("b", 0), "tensor \"b\" has the data offset 0, which overlaps");
    refused(&two("b", 32), "overlaps");
    refused(&two("b", 96), "leaves a gap; 64 was expected");
    refused(&two("b", 65), "not a multiple of the alignment 32");
    refused(&two("b", u64::MAX - 31), "leaves a gap");
    refused(&Raw::header(1, 0).tensor("t", &[1], F32, 32).data(64).0, "leaves a gap");
}

/// Parts of a split model: each holds the tensors of its list.
fn split(dir: &Path, parts: &[&[&str]], total: u32) {
    for (i, names) in parts.iter().enumerate() {
        let mut w = GgufWriter::new();
        w.set("split.no", i as u16)
            .set("split.count", parts.len() as u16)
            .set("split.tensors.count", total as i32);
        for name in *names {
            w.tensor(name, F32, &[1], vec![0; 4]);
        }
        w.write(&dir.join(format!("m-{:05}-of-{:05}.gguf", i + 1, parts.len()))).unwrap();
    }
}

#[test]
fn split_models() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    let error = |name: &str| GgufSet::open(&path(name), &layout).map(drop).unwrap_err().to_string();
    let (first, second, third) = ("m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf");
    split(dir.path(), &[&[], &["a", "b"], &["c"]], 3);
    let set = GgufSet::open(&path(first), &layout).unwrap();
    assert_eq!((set.files().len(), set.len(), set.is_empty()), (3, 3, false));
    assert_eq!(
        set.tensors().map(|(i, t)| (i, t.name.as_str())).collect::<Vec<_>>(),
        [(1, "a"), (1, "b"), (2, "c")]
    );
    assert_eq!(set.tensor("c").map(|(i, t)| (i, t.nbytes)), Some((2, 4)));
    assert!(set.tensor("d").is_none());
    assert_eq!(set.metadata().u32("split.no").unwrap(), Some(0));

    let message = error(third);
    assert!(
        message.contains("part 3 of 3; open ") && message.contains(&format!("{first} instead")),
        "{message}"
    );
    std::fs::copy(path(third), path("other.gguf")).unwrap();
    assert!(error("other.gguf").contains("open the first part instead"));
    std::fs::copy(path(first), path("other.gguf")).unwrap();
    assert!(error("other.gguf").contains("does not end in -00001-of-00003.gguf"));
    std::fs::copy(path(second), path(third)).unwrap();
    assert!(error(first).contains("expected split.no 2 and split.count 3, found 1 and 3"));
    std::fs::remove_file(path(third)).unwrap();
    let message = error(first);
    assert!(
        message.starts_with("cannot open this part of a split model: ") && message.contains(third),
        "{message}"
    );
    split(dir.path(), &[&["x"], &["a", "b"], &["a"]], 4);
    assert!(error(first).contains("tensor \"a\" is in an earlier part as well"));
    split(dir.path(), &[&["x"], &["a", "b"], &["c"]], 9);
    assert!(error(first).contains("found 4 tensors in 3 files, expected 9 tensors"));

    sample().write(&path("single.gguf")).unwrap();
    let set = GgufSet::open(&path("single.gguf"), &layout).unwrap();
    assert_eq!((set.files().len(), set.len()), (1, 3));
}

fn any_value() -> impl Strategy<Value = Value> {
    let text = || prop::string::string_regex("\\PC{0,12}").unwrap();
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        (-1e9f32..1e9).prop_map(Value::F32),
        (-1e9f64..1e9).prop_map(Value::F64),
        any::<bool>().prop_map(Value::Bool),
        text().prop_map(Value::Str),
        any_array(text()).prop_map(Value::Array),
    ]
}

fn any_array(text: impl Strategy<Value = String> + 'static) -> impl Strategy<Value = Array> {
    fn many<S: Strategy>(of: S) -> impl Strategy<Value = Vec<S::Value>>
    where
        S::Value: Clone,
    {
        // Long enough to cross the reader's buffer now and then.
        prop::collection::vec(of, 0..6).prop_flat_map(|v| {
            (0..3usize).prop_map(move |n| v.iter().cloned().cycle().take(v.len() * [1, 7, 1500][n]).collect())
        })
    }
    prop_oneof![
        many(any::<u8>()).prop_map(Array::U8),
        many(any::<i8>()).prop_map(Array::I8),
        many(any::<u16>()).prop_map(Array::U16),
        many(any::<i16>()).prop_map(Array::I16),
        many(any::<u32>()).prop_map(Array::U32),
        many(any::<i32>()).prop_map(Array::I32),
        many(any::<u64>()).prop_map(Array::U64),
        many(any::<i64>()).prop_map(Array::I64),
        many(-1e9f32..1e9).prop_map(Array::F32),
        many(-1e9f64..1e9).prop_map(Array::F64),
        many(any::<bool>()).prop_map(Array::Bool),
        many(text).prop_map(|v| Array::Strings(v.into_iter().collect())),
    ]
}

proptest! {
    #[test]
    fn round_trip(
        keys in prop::collection::btree_map("[a-z.]{1,12}", any_value(), 0..8),
        tensors in prop::collection::btree_map("[a-z.]{1,63}", prop::collection::vec(1..5u64, 0..=4), 0..8),
        alignment in 3..8u32,
    ) {
        let mut w = GgufWriter::new();
        for (key, value) in &keys {
            w.set(key.clone(), value.clone());
        }
        w.set("general.alignment", 1u32 << alignment);
        for (name, ne) in &tensors {
            w.tensor(name, F32, ne, name.bytes().cycle().take(4 * ne.iter().product::<u64>() as usize).collect());
        }
        let bytes = w.to_bytes();
        let file = parse(&bytes).unwrap();
        prop_assert_eq!(file.metadata.len(), keys.len() + 1);
        for (key, value) in &keys {
            prop_assert_eq!(file.metadata.get(key), Some(value));
        }
        prop_assert_eq!(file.tensors.len(), tensors.len());
        for (name, ne) in &tensors {
            let t = file.tensor(name).unwrap();
            prop_assert_eq!(&t.ne[..ne.len()], &ne[..]);
            prop_assert_eq!(t.nbytes, 4 * ne.iter().product::<u64>());
            let data = &bytes[t.offset as usize..][..t.nbytes as usize];
            prop_assert!(data.iter().copied().eq(name.bytes().cycle().take(data.len())));
        }
    }

    #[test]
    fn flipped_bytes_do_not_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = sample().to_bytes();
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(file) = parse(&bytes) {
            prop_assert!(file.tensors.iter().all(|t| t.offset + t.nbytes <= bytes.len() as u64));
        }
    }

    #[test]
    fn noise_does_not_panic(noise in prop::collection::vec(any::<u8>(), 0..200), tensors in 0..3u64, keys in 0..3u64) {
        let _ = parse(&noise);
        let _ = parse(&Raw::header(tensors, keys).bytes(&noise).0);
    }
}
