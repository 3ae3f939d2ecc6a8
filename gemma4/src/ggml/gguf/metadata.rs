//! Keys and values, and the getters that say what was wrong.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Many strings in one allocation.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Strings {
    pub(super) text: String,
    ends: Vec<usize>,
}

impl Strings {
    /// Ends the string that was appended to `text`.
    pub(super) fn close(&mut self) {
        self.ends.push(self.text.len());
    }

    /// Appends a string.
    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.close();
    }

    /// Number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The string at `index`, `None` past the end.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.text.get(start..end)
    }

    /// The strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let text = self.text.get(start..end).unwrap_or_default();
            start = end;
            text
        })
    }
}

impl fmt::Debug for Strings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Strings(len {})", self.len())
    }
}

impl<S: AsRef<str>> FromIterator<S> for Strings {
    fn from_iter<I: IntoIterator<Item = S>>(iter: I) -> Self {
        let mut strings = Strings::default();
        iter.into_iter().for_each(|text| strings.push(text.as_ref()));
        strings
    }
}

/// An array of a metadata value, in the type that the file wrote. GGUF arrays do not nest.
#[derive(Clone, PartialEq)]
#[allow(missing_docs)] // The variants are the types.
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    Strings(Strings),
}

impl Array {
    fn len_and_type(&self) -> (usize, &'static str) {
        match self {
            Array::U8(v) => (v.len(), "u8"),
            Array::I8(v) => (v.len(), "i8"),
            Array::U16(v) => (v.len(), "u16"),
            Array::I16(v) => (v.len(), "i16"),
            Array::U32(v) => (v.len(), "u32"),
            Array::I32(v) => (v.len(), "i32"),
            Array::U64(v) => (v.len(), "u64"),
            Array::I64(v) => (v.len(), "i64"),
            Array::F32(v) => (v.len(), "f32"),
            Array::F64(v) => (v.len(), "f64"),
            Array::Bool(v) => (v.len(), "bool"),
            Array::Strings(v) => (v.len(), "string"),
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len_and_type().0
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements as integers, bools as 0 and 1. `None` for other types and for a `u64` beyond `i64`.
    pub fn ints(&self) -> Option<Vec<i64>> {
        fn widen<T: Copy + Into<i64>>(v: &[T]) -> Option<Vec<i64>> {
            Some(v.iter().map(|&x| x.into()).collect())
        }
        match self {
            Array::U8(v) => widen(v),
            Array::I8(v) => widen(v),
            Array::U16(v) => widen(v),
            Array::I16(v) => widen(v),
            Array::U32(v) => widen(v),
            Array::I32(v) => widen(v),
            Array::I64(v) => widen(v),
            Array::Bool(v) => widen(v),
            Array::U64(v) => v.iter().map(|&x| i64::try_from(x).ok()).collect(),
            Array::F32(_) | Array::F64(_) | Array::Strings(_) => None,
        }
    }
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (len, element) = self.len_and_type();
        write!(f, "[{element}; {len}]")
    }
}

/// A metadata value, in the type that the file wrote.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // The variants are the types.
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    Str(String),
    Array(Array),
}

impl Value {
    /// Type and value in words, long strings cut, for messages.
    pub fn describe(&self) -> String {
        match self {
            Value::U8(v) => format!("u8 {v}"),
            Value::I8(v) => format!("i8 {v}"),
            Value::U16(v) => format!("u16 {v}"),
            Value::I16(v) => format!("i16 {v}"),
            Value::U32(v) => format!("u32 {v}"),
            Value::I32(v) => format!("i32 {v}"),
            Value::U64(v) => format!("u64 {v}"),
            Value::I64(v) => format!("i64 {v}"),
            Value::F32(v) => format!("f32 {v}"),
            Value::F64(v) => format!("f64 {v}"),
            Value::Bool(v) => format!("bool {v}"),
            Value::Str(v) if v.chars().nth(60).is_some() => {
                format!("string {:?}...", v.chars().take(60).collect::<String>())
            }
            Value::Str(v) => format!("string {v:?}"),
            Value::Array(v) => {
                let (len, element) = v.len_and_type();
                format!("array of {len} {element}")
            }
        }
    }

    /// Any integer type; bools as 0 and 1 are not integers here.
    fn integer(&self) -> Option<i128> {
        Some(match self {
            Value::U8(v) => (*v).into(),
            Value::I8(v) => (*v).into(),
            Value::U16(v) => (*v).into(),
            Value::I16(v) => (*v).into(),
            Value::U32(v) => (*v).into(),
            Value::I32(v) => (*v).into(),
            Value::U64(v) => (*v).into(),
            Value::I64(v) => (*v).into(),
            _ => return None,
        })
    }
}

macro_rules! value_from {
    ($($type:ty => $make:expr;)*) => {
        $(impl From<$type> for Value {
            fn from(value: $type) -> Value {
                $make(value)
            }
        })*
    };
}

value_from! {
    u8 => Value::U8;
    u16 => Value::U16;
    u32 => Value::U32;
    i32 => Value::I32;
    u64 => Value::U64;
    i64 => Value::I64;
    f32 => Value::F32;
    f64 => Value::F64;
    bool => Value::Bool;
    String => Value::Str;
    &str => |v: &str| Value::Str(v.to_owned());
    Array => Value::Array;
    Vec<u8> => |v| Value::Array(Array::U8(v));
    Vec<u32> => |v| Value::Array(Array::U32(v));
    Vec<i32> => |v| Value::Array(Array::I32(v));
    Vec<f32> => |v| Value::Array(Array::F32(v));
    Vec<bool> => |v| Value::Array(Array::Bool(v));
    Strings => |v| Value::Array(Array::Strings(v));
}

/// The keys and values of a file.
///
/// The getters return `Ok(None)` for a key that is absent and [`Error::Model`] for one whose value has another
/// type or does not fit. Integers may have any width and sign, as writers disagree about them.
#[derive(Debug, Clone)]
pub struct Metadata {
    path: PathBuf,
    entries: Vec<(String, Value)>,
    index: HashMap<String, usize>,
}

impl Metadata {
    /// No keys yet; `path` is used in messages.
    pub fn new(path: &Path) -> Metadata {
        Metadata { path: path.to_path_buf(), entries: Vec::new(), index: HashMap::new() }
    }

    /// Adds a key, or returns it if it is there already.
    pub(super) fn insert_new(&mut self, key: String, value: Value) -> Option<String> {
        match self.index.entry(key) {
            Entry::Occupied(slot) => Some(slot.key().clone()),
            Entry::Vacant(slot) => {
                self.entries.push((slot.key().clone(), value));
                slot.insert(self.entries.len() - 1);
                None
            }
        }
    }

    /// Adds a key or replaces its value.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        let (key, value) = (key.into(), value.into());
        match self.index.get(&key).and_then(|&i| self.entries.get_mut(i)) {
            Some((_, slot)) => *slot = value,
            None => drop(self.insert_new(key, value)),
        }
    }

    /// The file that the values are from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Keys and values in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of a key, whatever its type.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).and_then(|&i| self.entries.get(i)).map(|(_, value)| value)
    }

    /// An integer from 0 on.
    ///
    /// # Errors
    /// [`Error::Model`] if it is not an integer or is negative.
    pub fn u64(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "an integer from 0 on", |v| u64::try_from(v.integer()?).ok())
    }

    /// An integer from 0 to 2^32 - 1.
    ///
    /// # Errors
    /// [`Error::Model`] if it is not an integer or does not fit.
    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "an integer from 0 to 2^32 - 1", |v| u32::try_from(v.integer()?).ok())
    }

    /// A floating-point number; an `f64` is rounded.
    ///
    /// # Errors
    /// [`Error::Model`] if it has another type.
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "a floating-point number", |v| match v {
            Value::F32(x) => Some(*x),
            Value::F64(x) => Some(*x as f32),
            _ => None,
        })
    }

    /// A flag: a bool, or an integer that is 0 or 1.
    ///
    /// # Errors
    /// [`Error::Model`] if it is something else.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a bool", |v| match (v, v.integer()) {
            (Value::Bool(b), _) => Some(*b),
            (_, Some(n @ (0 | 1))) => Some(n == 1),
            _ => None,
        })
    }

    /// A string.
    ///
    /// # Errors
    /// [`Error::Model`] if it has another type.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", |v| match v {
            Value::Str(s) => Some(s.as_str()),
            _ => None,
        })
    }

    /// An array of strings.
    ///
    /// # Errors
    /// [`Error::Model`] if it has another type.
    pub fn strings(&self, key: &str) -> Result<Option<&Strings>> {
        self.typed(key, "an array of strings", |v| match v {
            Value::Array(Array::Strings(s)) => Some(s),
            _ => None,
        })
    }

    /// An array of integers of any type, or of bools, which become 0 and 1.
    ///
    /// # Errors
    /// [`Error::Model`] if it has another type or an element does not fit an `i64`.
    pub fn ints(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.typed(key, "an array of integers or bools", |v| match v {
            Value::Array(a) => a.ints(),
            _ => None,
        })
    }

    /// An array of floating-point numbers; `f64`s are rounded.
    ///
    /// # Errors
    /// [`Error::Model`] if it has another type.
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.typed(key, "an array of floating-point numbers", |v| match v {
            Value::Array(Array::F32(v)) => Some(v.clone()),
            Value::Array(Array::F64(v)) => Some(v.iter().map(|&x| x as f32).collect()),
            _ => None,
        })
    }

    /// One number for all of `n` layers, or an array of exactly `n`: always `n` numbers.
    ///
    /// # Errors
    /// [`Error::Model`] if it is neither, or a number does not fit a `u32`.
    pub fn u32_or_array(&self, key: &str, n: usize) -> Result<Option<Vec<u32>>> {
        let expected = format!("an integer or an array of {n} integers, each from 0 to 2^32 - 1");
        self.typed(key, &expected, |v| match v {
            // Counted before it is widened: the array may be as long as the file.
            Value::Array(a) if a.len() == n => a.ints()?.into_iter().map(|x| u32::try_from(x).ok()).collect(),
            Value::Array(_) => None,
            scalar => Some(vec![u32::try_from(scalar.integer()?).ok()?; n]),
        })
    }

    /// The error for a key that has to be there and is not.
    pub fn missing(&self, key: &str, expected: &str) -> Error {
        self.wrong(key, "nothing: the key is missing", expected)
    }

    /// The error for a value that has the right type but cannot be.
    pub fn wrong(&self, key: &str, found: impl Into<String>, expected: impl Into<String>) -> Error {
        let path = self.path.clone();
        Error::Model { path, key: key.to_owned(), found: found.into(), expected: expected.into() }
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        f: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        f(value).map(Some).ok_or_else(|| self.wrong(key, value.describe(), expected))
    }
}
