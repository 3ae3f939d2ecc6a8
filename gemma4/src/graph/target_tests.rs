//! What a target graph does with its caches, seen in its operations.

use super::*;
use crate::cache::{CacheState, KvConfig, LayerKind};
use crate::ggml::DType;
use crate::{KvTypes, Rotation};

fn nodes(config: &KvConfig) -> Vec<(String, DType, Vec<DType>)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-gemma4/tiny-gemma4-q8_0.gguf");
    let model = Model::load(path).unwrap();
    let state = CacheState::new(1024, model.hparams().window, 64, 32).unwrap();
    let cache = KvCache::pretend(model.hparams(), config, &state, &model.device()).unwrap().0;
    let views = [LayerKind::Full, LayerKind::Swa].map(|kind| state.geometry(kind).slots());
    let shape = Shape {
        n_tokens: 4,
        view_full: views[0],
        view_swa: views[1],
        n_rows: 1,
        keep_layers: false,
        row_views: None,
    };
    TargetGraph::build(&model, &cache, None, shape).unwrap().0.nodes()
}

/// Finding 5: a cast before attention would leave the rotated domain to whoever casts. Attention reads the type
/// that is stored, and nothing else touches it but the writes.
#[test]
fn attention_reads_what_is_stored() {
    for dtype in [DType::TQ3_0, DType::Q4_0, DType::Q8_0, DType::F16] {
        let nodes = nodes(&KvConfig::uniform(dtype));
        let attention: Vec<_> = nodes.iter().filter(|(op, ..)| op == "FLASH_ATTN_EXT").collect();
        assert_eq!(attention.len(), 12);
        for (_, _, sources) in attention {
            assert_eq!(sources[1..3], [dtype, dtype]);
        }
        if dtype == DType::F16 {
            continue;
        }
        for (op, _, sources) in &nodes {
            let touches = sources.contains(&dtype);
            let known = ["VIEW", "RESHAPE", "PERMUTE", "SET_ROWS", "FLASH_ATTN_EXT"].contains(&op.as_str());
            // The weights of the model are Q8_0 as well.
            let weight = dtype == DType::Q8_0 && ["MUL_MAT", "GET_ROWS"].contains(&op.as_str());
            assert!(!touches || known || weight, "{op} touches {dtype}");
        }
    }
}

/// Finding 12: queries and keys are rotated or neither is; values and the output alike.
#[test]
fn every_rotation_has_its_counterpart() {
    let products = |config: &KvConfig| nodes(config).iter().filter(|(op, ..)| op == "MUL_MAT").count();
    let mut config = KvConfig::uniform(DType::F16);
    let plain = products(&config);
    let types = |k, v| KvTypes { k, v };
    let quantised = DType::TQ3_0;
    // Twelve layers: keys and queries, values and outputs.
    for (k, v, more) in [(quantised, DType::F16, 24), (DType::F16, quantised, 24), (quantised, quantised, 48)]
    {
        (config.full, config.swa) = (types(k, v), types(k, v));
        assert_eq!(products(&config) - plain, more, "{k} {v}");
    }
    config.rotation = Rotation::Never;
    assert_eq!(products(&config), plain);
}

/// One mask for each kind of layers, made on the device: no mask is uploaded.
#[test]
fn masks_are_made_once() {
    let nodes = nodes(&KvConfig::uniform(DType::F16));
    assert_eq!(nodes.iter().filter(|(op, ..)| op == "KV_MASK").count(), 2);
}
