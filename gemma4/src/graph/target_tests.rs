//! What a target graph does with its caches, seen in its operations.

use super::*;
use crate::cache::{CacheState, KvConfig, LayerKind};
use crate::ggml::DType;
use crate::{KvTypes, Rotation, Session, SessionOptions};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-gemma4/tiny-gemma4-q8_0.gguf");
const EXPERTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/golden/c-moe.f16.gguf");

fn nodes(config: &KvConfig) -> Vec<(String, DType, Vec<DType>)> {
    nodes_of(TINY, config)
}

fn nodes_of(path: &str, config: &KvConfig) -> Vec<(String, DType, Vec<DType>)> {
    let model = Model::load(path).unwrap();
    let state = CacheState::new(1024, model.hparams().window, 64, 32).unwrap();
    let cache = KvCache::pretend(model.hparams(), config, &state, &|_| model.device()).unwrap().0;
    let views = [LayerKind::Full, LayerKind::Swa].map(|kind| state.geometry(kind).slots());
    let shape = Shape {
        n_tokens: 4,
        view_full: views[0],
        view_swa: views[1],
        n_rows: 1,
        keep_layers: false,
        picks: None,
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

/// One mask for each kind of layers, made on the device: no mask is uploaded. Full attention over quantised caches does
/// without, which leaves the rings'.
#[test]
fn masks_are_made_once() {
    let masks = |config| nodes(&config).iter().filter(|(op, ..)| op == "KV_MASK").count();
    assert_eq!(masks(KvConfig::uniform(DType::F16)), 2);
    assert_eq!(masks(KvConfig::uniform(DType::TQ3_0)), 1);
    let mut mixed = KvConfig::uniform(DType::F16);
    mixed.full = KvTypes { k: DType::Q8_0, v: DType::F16 };
    assert_eq!(masks(mixed), 1);
}

/// Kernels of the GPU take whole runs of small operations, if nothing stands between them.
#[test]
fn small_operations_stand_side_by_side() {
    let nodes = nodes_of(EXPERTS, &KvConfig::uniform(DType::TQ3_0));
    let names = ["VIEW", "RESHAPE", "PERMUTE"];
    let ops: Vec<_> = nodes.iter().map(|(op, ..)| op.as_str()).filter(|op| !names.contains(op)).collect();
    let count = |run: &str| {
        let run: Vec<_> = run.split(' ').collect();
        ops.windows(run.len()).filter(|window| *window == run).count()
    };
    let layers = ops.iter().filter(|op| **op == "FLASH_ATTN_EXT").count();
    assert!(layers > 1);
    // Queries, values and keys, from their products to the cache.
    let query = "RMS_NORM MUL ROPE MUL_MAT";
    assert_eq!(count(&format!("{query} RMS_NORM MUL_MAT SET_ROWS {query} SET_ROWS")), layers);
    // The residual stream, and what dense network, router and experts see of it. The last layer of these four tokens
    // takes the wanted row in between.
    assert_eq!(count("RMS_NORM MUL ADD RMS_NORM MUL RMS_NORM SCALE MUL RMS_NORM MUL"), layers - 1);
    // Both halves of the network, their sum, and what the next layer or the head sees. One expert is added to another.
    let sum = "RMS_NORM MUL CONT GET_ROWS MUL MUL ADD RMS_NORM MUL ADD RMS_NORM MUL ADD";
    assert_eq!(count(&format!("{sum} MUL RMS_NORM MUL MUL_MAT")), layers);
}

/// A chunk's mask of the full layers would be the largest of its values. What rotations add is small beside it.
#[test]
fn quantised_caches_cost_no_mask() {
    let model = Model::load(TINY).unwrap();
    let compute = |dtype| {
        let types = KvTypes { k: dtype, v: dtype };
        let options = SessionOptions::default().n_ctx(65_536).n_batch(1024).kv(types);
        Session::plan(&model, &options).unwrap().compute
    };
    let mask = 2 * 65_536 * 1024;
    let (masked, without) = (compute(DType::F16), compute(DType::TQ3_0));
    assert!(masked > mask && without + mask * 9 / 10 < masked, "{masked} and {without} bytes");
}
