//! Which device holds, and so computes, which part of a model.

use crate::ggml::gguf::GgufSet;
use crate::ggml::{self, Device};
use crate::{Error, Result};

/// How a model is spread over devices, as [`LoadOptions`](super::LoadOptions) say it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spread {
    /// In the order of the layers; the first graphics card if empty.
    pub devices: Vec<Device>,
    /// Parts of the model for each of them; by free memory if empty.
    pub shares: Vec<f32>,
    /// Layers on them, counted from the last; the output head is one more.
    pub n_gpu_layers: Option<u32>,
    /// First layers whose experts stay in main memory.
    pub n_cpu_moe: u32,
}

/// The device of every part of a model.
#[derive(Clone, Debug)]
pub(crate) struct Placement {
    layers: Vec<Device>,
    head: Device,
    cpu: Device,
    n_cpu_moe: usize,
}

impl Placement {
    /// Places the `n_layer` layers of a file.
    pub fn new(spread: &Spread, set: &GgufSet, n_layer: usize) -> Result<Placement> {
        let cpu = Device::cpu()?;
        let devices = match spread.devices.as_slice() {
            [] => vec![ggml::devices()?.first().copied().unwrap_or(cpu)],
            several => several.to_vec(),
        };
        check(&devices, &spread.shares)?;
        let n_cpu_moe = (spread.n_cpu_moe as usize).min(n_layer);
        let parts = part_bytes(set, n_layer, n_cpu_moe);
        let n_wanted = spread.n_gpu_layers.map_or(parts.len(), |n| n as usize);
        let n_cpu = parts.len().saturating_sub(n_wanted);
        let shares: Vec<f64> = match spread.shares.as_slice() {
            [] if devices.len() == 1 => vec![1.0],
            [] => devices.iter().map(|device| device.memory_available() as f64).collect(),
            given => given.iter().map(|&share| f64::from(share)).collect(),
        };
        let mut placed = vec![cpu; n_cpu];
        placed.extend(cut(&parts[n_cpu..], &shares).into_iter().map(|i| devices[i]));
        let head = placed.pop().unwrap_or(cpu);
        Ok(Placement { layers: placed, head, cpu, n_cpu_moe })
    }

    /// The device of layer `i`.
    pub fn layer(&self, i: usize) -> Device {
        self.layers.get(i).copied().unwrap_or(self.head)
    }

    /// The device of layer `i`'s experts.
    pub fn experts(&self, i: usize) -> Device {
        if i < self.n_cpu_moe { self.cpu } else { self.layer(i) }
    }

    /// The device of the output head, where results are read.
    pub fn head(&self) -> Device {
        self.head
    }

    /// The device that gathers the rows of the tokens: the head's, which often has the table anyway, unless
    /// those rows would travel to another card for the first layer and back.
    pub fn embeddings(&self) -> Device {
        if self.layer(0) == self.head { self.head } else { self.cpu }
    }

    /// The devices of the layers and of the head, in order.
    pub fn devices(&self) -> Vec<Device> {
        let mut all = Vec::new();
        for device in self.layers.iter().chain([&self.head]) {
            if !all.contains(device) {
                all.push(*device);
            }
        }
        all
    }

    /// Whether one device holds all layers and the head.
    pub fn is_whole(&self) -> bool {
        self.layers.iter().all(|layer| *layer == self.head)
    }
}

fn check(devices: &[Device], shares: &[f32]) -> Result<()> {
    let wrong = |option, value: String, why: &str| Err(Error::Option { option, value, why: why.into() });
    if devices.iter().enumerate().any(|(i, device)| devices[..i].contains(device)) {
        return wrong("devices", format!("{devices:?}"), "each device can be there once");
    }
    let is_share = |share: &f32| share.is_finite() && *share >= 0.0;
    let fits = shares.is_empty()
        || (shares.len() == devices.len() && shares.iter().all(is_share) && shares.iter().any(|s| *s > 0.0));
    if !fits {
        let why = "one number for each device, none below 0 and one above; what counts is their relation";
        return wrong("shares", format!("{shares:?}"), why);
    }
    Ok(())
}

/// Bytes of each layer and, last, of the head. Experts that stay in main memory do not count.
fn part_bytes(set: &GgufSet, n_layer: usize, n_cpu_moe: usize) -> Vec<u64> {
    let mut parts = vec![0u64; n_layer + 1];
    for (_, info) in set.tensors() {
        let layer = info.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        match layer.and_then(|(i, name)| Some((i.parse::<usize>().ok()?, name))) {
            Some((i, name)) if i < n_layer => {
                if i >= n_cpu_moe || !name.contains("_exps.") {
                    parts[i] += info.nbytes;
                }
            }
            Some(_) => {}
            // Per-layer embeddings stay in main memory; of the two tables of the vocabulary one is the head.
            None if info.name.starts_with("per_layer_token_embd") => {}
            None => parts[n_layer] = parts[n_layer].max(info.nbytes),
        }
    }
    parts
}

/// Cuts a row of parts into one piece for each share, by size. Returns the number of each part's piece; pieces are
/// in order and may be empty.
fn cut(parts: &[u64], shares: &[f64]) -> Vec<usize> {
    let total: f64 = parts.iter().map(|&n| n as f64).sum();
    let whole: f64 = shares.iter().sum();
    let (mut before, mut ends) = (0.0, Vec::with_capacity(shares.len()));
    for share in shares {
        before += share / whole;
        ends.push(before);
    }
    let last = shares.iter().rposition(|share| *share > 0.0).unwrap_or(0);
    let mut done = 0.0;
    let piece = |&n: &u64| {
        let middle = (done + n as f64 / 2.0) / total;
        done += n as f64;
        // NaN, of parts without bytes, and what rounding pushes past the end belong to the last.
        ends.iter().position(|end| middle < *end).unwrap_or(last)
    };
    parts.iter().map(piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pieces_follow_the_shares() {
        assert_eq!(cut(&[1; 4], &[1.0, 1.0]), [0, 0, 1, 1]);
        assert_eq!(cut(&[1; 4], &[3.0, 1.0]), [0, 0, 0, 1]);
        assert_eq!(cut(&[1; 4], &[0.0, 1.0]), [1; 4]);
        assert_eq!(cut(&[1; 4], &[1.0, 0.0]), [0; 4]);
        assert_eq!(cut(&[6, 1, 1], &[1.0, 1.0]), [0, 1, 1]);
        assert_eq!(cut(&[0; 3], &[1.0, 1.0]), [1; 3]);
        assert_eq!(cut(&[], &[1.0]), [0usize; 0]);
    }

    proptest! {
        #[test]
        fn pieces_are_in_order_and_near_their_size(
            parts in prop::collection::vec(1u64..1000, 1..80),
            shares in prop::collection::vec(0.01f64..4.0, 1..6),
        ) {
            let pieces = cut(&parts, &shares);
            prop_assert!(pieces.is_sorted());
            prop_assert_eq!(pieces.len(), parts.len());
            let total = parts.iter().sum::<u64>() as f64;
            let largest = *parts.iter().max().unwrap() as f64;
            for (i, share) in shares.iter().enumerate() {
                let size: u64 = parts.iter().zip(&pieces).filter(|(_, p)| **p == i).map(|(n, _)| n).sum();
                let wanted = total * share / shares.iter().sum::<f64>();
                prop_assert!((size as f64 - wanted).abs() <= largest + 1e-6);
            }
        }
    }

    #[test]
    fn shares_that_say_nothing_are_refused() {
        let cpu = Device::cpu().unwrap();
        assert!(check(&[cpu], &[]).is_ok());
        assert!(check(&[cpu], &[0.5]).is_ok());
        for shares in [&[0.0][..], &[-1.0], &[f32::NAN], &[1.0, 1.0]] {
            assert!(check(&[cpu], shares).is_err(), "{shares:?}");
        }
        assert!(check(&[cpu, cpu], &[]).is_err());
    }
}
