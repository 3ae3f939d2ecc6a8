//! No attention of any graph sees all that its cache view holds: views are longer than what is written, and keep what a
//! window has left and what was taken back. Either a mask says what a query sees, or the numbers of the step do, which
//! say enough of a linear cache only.

use super::*;
use crate::cache::{CacheState, KvConfig, LayerKind};
use crate::ggml::{BlockSparse, DType, Graph, StorageBuilder};
use crate::model::{Assistant, Dflash, DrafterFile, Model};
use std::path::PathBuf;

/// Positions of a full-attention cache: more than any ring here has.
const N_CTX: u32 = 1024;

fn file(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", name].iter().collect()
}

fn golden(name: &str) -> PathBuf {
    file(&format!("tests/data/golden/{name}.f16.gguf"))
}

fn tiny(name: &str) -> PathBuf {
    file(&format!("models/tiny-gemma4/{name}-q8_0.gguf"))
}

/// A cache of a model, or of a drafter with these hyper-parameters, and its state.
fn cache(model: &Model, hparams: &HParams, dtype: DType) -> (KvCache, CacheState) {
    let state = CacheState::new(N_CTX, hparams.window, 64, 32).unwrap();
    let config = KvConfig::uniform(dtype);
    let cache = KvCache::pretend(hparams, &config, &state, &|_| model.device()).unwrap().0;
    assert!(state.full().slots() > state.swa().slots());
    (cache, state)
}

/// Findings 8 and 9: a decode of one token is no exception, nor is a full-attention layer.
fn assert_masked(what: &str, graph: &Graph, n_nodes: usize) {
    let nodes = graph.sources("FLASH_ATTN_EXT");
    assert_eq!(nodes.len(), n_nodes, "{what}");
    for (i, node) in nodes.iter().enumerate() {
        let source = |place: usize| node.get(place).cloned().flatten();
        let (Some((_, _, q)), Some((_, _, k))) = (source(0), source(1)) else {
            panic!("{what}, {i}: {node:?}")
        };
        match (source(3), source(5)) {
            (Some((op, dtype, ne)), _) => {
                assert_eq!((dtype, ne[0], ne[1]), (DType::F16, k[1], q[1]), "{what}, {i}");
                // A row of it, where rows attend one by one.
                assert!(op == "KV_MASK" || op == "VIEW", "{what}, {i}: a mask from {op}");
            }
            (None, Some((op, dtype, _))) => {
                assert_eq!((op.as_str(), dtype), ("NONE", DType::I32), "{what}, {i}: no input");
                assert_eq!(k[1], i64::from(N_CTX), "{what}, {i}: a ring without a mask");
            }
            (None, None) => panic!("{what}, {i}: nothing says what a query sees"),
        }
    }
}

fn shape(state: &CacheState, n_tokens: u32) -> Shape {
    Shape {
        n_tokens,
        view_full: state.full().slots(),
        view_swa: state.swa().slots(),
        n_rows: 1,
        keep_layers: false,
        picks: None,
        row_views: None,
    }
}

#[test]
fn target_graphs() {
    let golden = ["a-dense", "b-keqv", "c-moe", "d-ple"].map(golden);
    for path in golden.into_iter().chain([tiny("tiny-gemma4")]) {
        let model = Model::load(&path).unwrap();
        let layers = model.hparams().layers.len();
        let n_full = model.hparams().layers.iter().filter(|layer| layer.is_full()).count();
        for dtype in [DType::F32, DType::F16, DType::Q8_0, DType::TQ3_0] {
            let (cache, state) = cache(&model, model.hparams(), dtype);
            for n in [1, 4, 64] {
                let what = format!("{}, {dtype}, {n} tokens", path.display());
                let shape = shape(&state, n);
                let graph = TargetGraph::build(&model, &cache, None, shape).unwrap().0;
                assert_masked(&what, &graph, layers);
                let sparse = BlockSparse { alpha: 0.1, block: 64, sink: 1, window: 1, last_full: 1 };
                let (graph, _) =
                    TargetGraph::build_sparse(&model, &cache, None, shape, Some(sparse), true).unwrap();
                assert_masked(&format!("{what}, sparse"), &graph, layers + n_full);
            }
            // Four rows, each with an attention of its own where the types or the views ask for it.
            let mut shape = shape(&state, 4);
            shape.row_views = Some(RowViews::largest(&shape));
            let graph = TargetGraph::build(&model, &cache, None, shape).unwrap().0;
            let n_nodes = graph.sources("FLASH_ATTN_EXT").len();
            assert!(n_nodes > layers, "{n_nodes}");
            assert_masked(&format!("{}, {dtype}, by row", path.display()), &graph, n_nodes);
        }
    }
}

#[test]
fn graphs_of_an_assistant() {
    for (target, drafter) in [
        (golden("b-keqv"), golden("e-draft-b")),
        (golden("d-ple"), golden("e-draft-d")),
        (tiny("tiny-gemma4"), tiny("tiny-gemma4-mtp")),
    ] {
        let model = Model::load(target).unwrap();
        let assistant = Assistant::load(&DrafterFile::open(&drafter, true).unwrap(), &model, true).unwrap();
        let mut builder = StorageBuilder::state(2).unwrap();
        let n_embd = u64::from(model.hparams().n_embd);
        let hidden = builder.tensor("hidden", DType::F32, [n_embd, 4, 1, 1]).unwrap();
        let handed = builder.tensor("handed", DType::F32, [n_embd, 1, 1, 1]).unwrap();
        let _storage = builder.pretend(&model.device()).unwrap();
        for dtype in [DType::F16, DType::TQ3_0] {
            let (cache, state) = cache(&model, model.hparams(), dtype);
            for (mode, n) in
                [(MtpMode::Chain, 1), (MtpMode::Chain, 3), (MtpMode::First(8), 1), (MtpMode::Next(8), 1)]
            {
                let (view_full, view_swa) = (state.full().slots(), state.swa().slots());
                let shape = MtpShape { mode, n, view_full, view_swa, trace: false };
                let (graph, _) =
                    MtpGraph::build(&model, &assistant, &cache, &hidden, &handed, shape).unwrap();
                let what = format!("{}, {dtype}, {mode:?}, {n}", drafter.display());
                assert_masked(&what, &graph, n as usize * assistant.layers.len());
            }
        }
    }
}

#[test]
fn graphs_of_a_block_drafter() {
    let model = Model::load(tiny("tiny-gemma4")).unwrap();
    let file = DrafterFile::open(&tiny("tiny-gemma4-dflash"), true).unwrap();
    let drafter = Dflash::load(&file, &model).unwrap();
    let (cache, state) = cache(&model, &drafter.hparams, DType::F16);
    let views = [state.full().slots(), state.swa().slots()];
    for rule in [DflashMask::ZLab, DflashMask::Bidirectional, DflashMask::Causal] {
        for n in [2, 16] {
            let graph = BlockGraph::build(&model, &drafter, &cache, n, (views, rule), Picks::Best);
            assert_masked(&format!("{rule:?}, {n}"), &graph.unwrap().0, drafter.layers.len());
        }
    }
    // A bidirectional block is not causal: nothing but a mask can say so.
    assert!(drafter.hparams.layers.iter().any(|layer| layer.kind == LayerKind::Full));
}
