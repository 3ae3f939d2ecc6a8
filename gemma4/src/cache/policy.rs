//! Which element types a cache gets: named choices, and one that follows from the memory at hand.

use super::kv::{CACHE_TYPES, KvConfig, KvTypes};
use crate::ggml::DType;
use crate::model::HParams;
use crate::session::SessionOptions;
use crate::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// How a session's KV cache is typed. Default: F16 everywhere.
///
/// A policy becomes a [`KvConfig`], the types of every layer, when a session is made. Policies are written and
/// read as text, as the programs' `--kv` takes it:
///
/// | text | meaning |
/// | --- | --- |
/// | `q8_0` | one type for all |
/// | `q8_0/q4_0` | keys / values |
/// | `full=q8_0/q4_0,swa=q4_0` | full-attention layers, sliding-window layers |
/// | `k_q8_v_q4`, `k_q8_v_tq3`, `swa_q8_full_q4`, `swa_q8_full_tq3`, `swa_tq3_full_q8` | the constants of these names |
/// | `captured`, `captured:11,17` | as [`KvPolicy::Captured`] |
/// | `auto`, `auto:6GiB` | as [`KvPolicy::Auto`], with the bytes that the cache may take |
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvPolicy {
    /// These types for all layers.
    Uniform(KvTypes),
    /// Types for full-attention layers, whose cache grows with the context, and for sliding-window layers,
    /// whose cache has a constant size.
    ByKind {
        /// Full-attention layers.
        full: KvTypes,
        /// Sliding-window layers.
        swa: KvTypes,
    },
    /// Q8_0 for full-attention layers that a drafter reads, the narrowest type for all others. As narrow as
    /// [`TQ3_0`](Self::TQ3_0) where most layers are, so it fails the same quality gates.
    Captured {
        /// Numbers of the layers that are read; sliding-window layers among them are not raised. If empty,
        /// the last full-attention layer, whose cache an MTP drafter reads: a DFlash drafter captures others,
        /// which have to be named.
        layers: Vec<u32>,
    },
    /// The best types whose cache fits.
    Auto {
        /// Bytes that the cache may take. `None`: what the device has left beside the session's other memory.
        budget: Option<u64>,
    },
    /// Types chosen layer by layer.
    Config(KvConfig),
}

/// The same type for keys and values.
const fn both(dtype: DType) -> KvTypes {
    KvTypes { k: dtype, v: dtype }
}

/// The type of fewest bits.
const NARROWEST: DType = DType::TQ3_0;

const Q8: KvTypes = both(DType::Q8_0);
const TQ3: KvTypes = both(DType::TQ3_0);

impl KvPolicy {
    /// F16 everywhere.
    pub const F16: KvPolicy = KvPolicy::Uniform(both(DType::F16));
    /// Q8_0 everywhere: half of F16, and no measurable loss.
    pub const Q8_0: KvPolicy = KvPolicy::Uniform(both(DType::Q8_0));
    /// Q4_0 everywhere, rotated.
    pub const Q4_0: KvPolicy = KvPolicy::Uniform(both(DType::Q4_0));

    /// TQ3_0 everywhere, rotated: 3.5 bits a value. Fails the quality gates of `docs/kv-cache.md`, those on
    /// drafts included: for contexts that fit in no other way.
    pub const TQ3_0: KvPolicy = KvPolicy::Uniform(TQ3);
    /// TQ3_0 for sliding-window layers, Q8_0 for full-attention layers. Fails the quality gates of
    /// `docs/kv-cache.md` and saves little, as long contexts are held by full-attention layers: for
    /// comparisons.
    pub const SWA_TQ3_FULL_Q8: KvPolicy = KvPolicy::ByKind { full: Q8, swa: TQ3 };
    /// TQ3_0 for full-attention layers, Q8_0 for sliding-window layers. Misses the gate on equal predictions of
    /// `docs/kv-cache.md` by 0.2 %, passes the others.
    pub const SWA_Q8_FULL_TQ3: KvPolicy = KvPolicy::ByKind { full: TQ3, swa: Q8 };
    /// Q4_0 for full-attention layers, Q8_0 for sliding-window layers.
    pub const SWA_Q8_FULL_Q4: KvPolicy = KvPolicy::ByKind { full: both(DType::Q4_0), swa: Q8 };
    /// Keys in Q8_0 and values in Q4_0 for full-attention layers, Q8_0 for sliding-window layers: 6.5 bits a
    /// value. Errors of keys enter attention through an exponential, those of values are averaged.
    pub const K_Q8_V_Q4: KvPolicy =
        KvPolicy::ByKind { full: KvTypes { k: DType::Q8_0, v: DType::Q4_0 }, swa: Q8 };
    /// Keys in Q8_0 and values in TQ3_0 for full-attention layers, Q8_0 for sliding-window layers: 6 bits a
    /// value.
    pub const K_Q8_V_TQ3: KvPolicy =
        KvPolicy::ByKind { full: KvTypes { k: DType::Q8_0, v: DType::TQ3_0 }, swa: Q8 };

    /// Policies with a name, for texts and help pages.
    pub const NAMED: &[(&str, KvPolicy)] = &[
        ("swa_tq3_full_q8", KvPolicy::SWA_TQ3_FULL_Q8),
        ("swa_q8_full_tq3", KvPolicy::SWA_Q8_FULL_TQ3),
        ("swa_q8_full_q4", KvPolicy::SWA_Q8_FULL_Q4),
        ("k_q8_v_tq3", KvPolicy::K_Q8_V_TQ3),
        ("k_q8_v_q4", KvPolicy::K_Q8_V_Q4),
    ];

    /// What [`Auto`](Self::Auto) tries, best first by the KL divergence that `docs/kv-cache.md` reports: long
    /// contexts spend their bytes on full-attention layers, and these bear narrow types best.
    pub const LADDER: &[KvPolicy] = &[
        KvPolicy::F16,
        KvPolicy::Q8_0,
        KvPolicy::K_Q8_V_Q4,
        KvPolicy::SWA_Q8_FULL_Q4,
        KvPolicy::SWA_Q8_FULL_TQ3,
        KvPolicy::Q4_0,
        KvPolicy::TQ3_0,
    ];

    /// The types of every layer of a model, where a cache may take `budget` bytes. Only
    /// [`Auto`](Self::Auto) looks at the budget, and prefers its own.
    ///
    /// # Errors
    /// [`Error::Option`] if options cannot work for this model, or if no step of the
    /// [`LADDER`](Self::LADDER) fits.
    pub fn resolve(&self, hparams: &HParams, options: &SessionOptions, budget: u64) -> Result<KvConfig> {
        Ok(match self {
            KvPolicy::Uniform(types) => KvConfig { full: *types, swa: *types, ..KvConfig::default() },
            KvPolicy::ByKind { full, swa } => KvConfig { full: *full, swa: *swa, ..KvConfig::default() },
            KvPolicy::Captured { layers } => captured(hparams, layers)?,
            KvPolicy::Auto { budget: own } => widest(hparams, options, own.unwrap_or(budget))?,
            KvPolicy::Config(config) => config.clone(),
        })
    }
}

impl Default for KvPolicy {
    fn default() -> Self {
        KvPolicy::F16
    }
}

impl From<KvConfig> for KvPolicy {
    fn from(config: KvConfig) -> Self {
        KvPolicy::Config(config)
    }
}

impl From<KvTypes> for KvPolicy {
    fn from(types: KvTypes) -> Self {
        KvPolicy::Uniform(types)
    }
}

impl From<DType> for KvPolicy {
    fn from(dtype: DType) -> Self {
        KvPolicy::Uniform(both(dtype))
    }
}

fn refuse<T>(value: impl fmt::Display, why: impl Into<String>) -> Result<T> {
    Err(Error::Option { option: "kv", value: value.to_string(), why: why.into() })
}

/// Q8_0 for the full-attention layers of `layers`, or for the last of all.
fn captured(hparams: &HParams, layers: &[u32]) -> Result<KvConfig> {
    let mut config = KvConfig::uniform(NARROWEST);
    let all = &hparams.layers;
    let last = (0..).zip(all).filter(|(_, layer)| layer.is_full()).map(|(i, _)| i).last();
    let read = if layers.is_empty() { last.as_slice() } else { layers };
    for &i in read {
        let Some(layer) = all.get(i as usize) else {
            return refuse(format!("captured:{i}"), format!("the model has {} layers", all.len()));
        };
        if layer.is_full() {
            // A layer without a cache of its own reads another one's.
            config = config.layer(layer.kv_layer, both(DType::Q8_0));
        }
    }
    Ok(config)
}

/// The first step of the ladder that fits.
fn widest(hparams: &HParams, options: &SessionOptions, budget: u64) -> Result<KvConfig> {
    let mut least = u64::MAX;
    for step in KvPolicy::LADDER {
        let config = step.resolve(hparams, options, budget)?;
        // A type whose blocks do not divide this model's heads is no candidate.
        let Ok(bytes) = config.bytes(hparams, options) else { continue };
        if bytes <= budget {
            tracing::debug!(%step, bytes, budget, "KV types chosen");
            return Ok(config);
        }
        least = least.min(bytes);
    }
    let mib = |n: u64| n as f64 / f64::from(1 << 20);
    let (least, budget) = (mib(least), mib(budget));
    refuse(
        "auto",
        format!("the smallest cache takes {least:.1} MiB, {budget:.1} MiB are there: use a smaller n_ctx"),
    )
}

impl fmt::Display for KvPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KvPolicy::Uniform(types) => write!(f, "{types}"),
            KvPolicy::ByKind { full, swa } => write!(f, "full={full},swa={swa}"),
            KvPolicy::Captured { layers } => {
                let list: Vec<_> = layers.iter().map(u32::to_string).collect();
                write!(f, "captured{}{}", if list.is_empty() { "" } else { ":" }, list.join(","))
            }
            KvPolicy::Auto { budget: None } => f.write_str("auto"),
            KvPolicy::Auto { budget: Some(bytes) } => write!(f, "auto:{bytes}"),
            KvPolicy::Config(config) => {
                write!(f, "full={},swa={}", config.full, config.swa)?;
                config.layers.iter().try_for_each(|(layer, types)| write!(f, ",{layer}={types}"))
            }
        }
    }
}

impl FromStr for KvPolicy {
    type Err = Error;

    fn from_str(text: &str) -> Result<KvPolicy> {
        let text = text.to_ascii_lowercase();
        if let Some((_, policy)) = KvPolicy::NAMED.iter().find(|(name, _)| *name == text) {
            return Ok(policy.clone());
        }
        let (head, tail) = text.split_once(':').map_or((text.as_str(), None), |(a, b)| (a, Some(b)));
        match (head, tail) {
            ("auto", None) => Ok(KvPolicy::Auto { budget: None }),
            ("auto", Some(size)) => Ok(KvPolicy::Auto { budget: Some(bytes(size)?) }),
            ("captured", None) => Ok(KvPolicy::Captured { layers: Vec::new() }),
            ("captured", Some(list)) => match list.split(',').map(str::parse).collect() {
                Ok(layers) => Ok(KvPolicy::Captured { layers }),
                Err(_) => refuse(&text, "captured: takes layer numbers, such as captured:11,17"),
            },
            _ if text.contains('=') => by_kind(&text),
            _ => Ok(KvPolicy::Uniform(text.parse()?)),
        }
    }
}

/// `full=TYPES,swa=TYPES`.
fn by_kind(text: &str) -> Result<KvPolicy> {
    let (mut full, mut swa) = (None, None);
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("full", types)) => full = Some(types.parse()?),
            Some(("swa", types)) => swa = Some(types.parse()?),
            _ => return refuse(text, format!("{part} is neither full=TYPES nor swa=TYPES")),
        }
    }
    match (full, swa) {
        (Some(full), Some(swa)) => Ok(KvPolicy::ByKind { full, swa }),
        _ => refuse(text, "both full=TYPES and swa=TYPES are needed"),
    }
}

/// `123`, `512MiB`, `6GiB`.
fn bytes(text: &str) -> Result<u64> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let factor = match unit.trim().trim_end_matches("ib").trim_end_matches('b') {
        "" => 1.0,
        "k" => 1024.0,
        "m" => 1_048_576.0,
        "g" => 1_073_741_824.0,
        _ => return refuse(text, "sizes are written as 6GiB, 512MiB or in bytes"),
    };
    match number.parse::<f64>() {
        Ok(n) if n > 0.0 => Ok((n * factor) as u64),
        _ => refuse(text, "sizes are written as 6GiB, 512MiB or in bytes"),
    }
}

impl fmt::Display for KvTypes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.k == self.v { write!(f, "{}", self.k) } else { write!(f, "{}/{}", self.k, self.v) }
    }
}

impl FromStr for KvTypes {
    type Err = Error;

    /// `TYPE`, or `TYPE/TYPE` for keys and values.
    fn from_str(text: &str) -> Result<KvTypes> {
        let named = |name: &str| match CACHE_TYPES.into_iter().find(|t| t.to_string() == name) {
            Some(dtype) => Ok(dtype),
            None => refuse(name, format!("a KV cache can be one of {CACHE_TYPES:?}")),
        };
        match text.split_once('/') {
            Some((k, v)) => Ok(KvTypes { k: named(k)?, v: named(v)? }),
            None => Ok(both(named(text)?)),
        }
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
