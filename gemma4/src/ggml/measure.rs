//! What a graph takes and who computes it, before anything is allocated.

use super::Engine;
use super::backend::Device;
use super::graph::Graph;
use crate::Result;
use ggml_sys as sys;

/// Tile edge of ggml's attention on the CPU (GGML_FA_TILE_Q and _KV, private to ggml).
const ATTENTION_TILE: u64 = 64;

/// Scratch of a thread for tiled products on the CPU (TILED_WS_SLOT, private to ggml).
const PRODUCT_SCRATCH: u64 = 512 << 10;

/// A graph as the scheduler would run it.
pub(crate) struct Measured {
    /// Bytes of intermediate values, and of what block-sparse attention has beside them on devices other than the CPU; one
    /// number for each backend.
    pub buffers: Vec<u64>,
    /// Bytes at most that the CPU's threads share as scratch.
    pub work: u64,
    /// Who computes the attention of each layer, in the graph's order.
    pub attention: Vec<Device>,
}

impl Engine {
    /// Plans `graph` in `slot`, which is empty afterwards. The scheduler rewrites the sources of operations
    /// that need copies: a measured graph is good for nothing else.
    pub fn measure(&mut self, slot: usize, graph: Graph, n_threads: usize) -> Result<Measured> {
        let mut buffers = self.split(slot, &graph)?;
        let mut lists = vec![0; buffers.len()];
        let (mut work, mut attention) = (0, Vec::new());
        for i in 0..graph.n_nodes() {
            // SAFETY: the index is in range; nodes live as long as the graph.
            let node = unsafe { sys::ggml_graph_node(graph.raw(), i as i32) };
            let Some(device) = self.device_of(slot, node)? else { continue };
            // SAFETY: the node is alive.
            if unsafe { (*node).op } == sys::GGML_OP_FLASH_ATTN_EXT {
                attention.push(device);
            }
            if device.uses_host_memory() {
                // SAFETY: as above.
                work = work.max(unsafe { work_bytes(&*node, n_threads as u64) });
            } else if let Some(lists) =
                self.devices().zip(&mut lists).find_map(|(d, n)| (d == device).then_some(n))
            {
                // SAFETY: as above.
                *lists = (*lists).max(unsafe { list_bytes(&*node) });
            }
        }
        buffers.iter_mut().zip(lists).for_each(|(bytes, lists)| *bytes += lists);
        self.unload(slot)?;
        Ok(Measured { buffers, work, attention })
    }
}

/// Bytes that CUDA takes to choose the keys of a block-sparse node: the means of the key blocks, the scores of one head, what
/// each head keeps, and the lists. As `g4_sparse_select` of patch 0031 allocates them.
///
/// # Safety
/// `node` and its sources must be alive.
unsafe fn list_bytes(node: &sys::ggml_tensor) -> u64 {
    let none = sys::ggml_block_sparse { alpha: 0.0, block: 0, sink: 0, window: 0, last_full: 0, report: 0 };
    let mut options = none;
    // SAFETY: a live node, and a place for its options; other operations have none.
    let is_sparse = node.op == sys::GGML_OP_FLASH_ATTN_EXT
        && unsafe { sys::ggml_flash_attn_ext_get_block_sparse(node, &mut options) };
    // SAFETY: by the contract above.
    let (q, k) = unsafe { (node.src[0].as_ref(), node.src[1].as_ref()) };
    let (true, Some(q), Some(k), Ok(block @ 1..)) = (is_sparse, q, k, u64::try_from(options.block)) else {
        return 0;
    };
    let [head_dim, n_kv, n_head_kv, n_tokens] =
        [k.ne[0], k.ne[1], k.ne[2], q.ne[1]].map(|n| u64::try_from(n).unwrap_or(0));
    let blocks = n_kv.div_ceil(block);
    let lists = n_head_kv * (n_tokens.div_ceil(block) + 1);
    4 * n_head_kv * blocks * head_dim + 4 * n_tokens * blocks + 5 * lists * blocks + 4 * lists
}

/// Bytes at most that ggml's CPU backend wants as scratch for one operation. Follows `ggml_graph_plan`, which
/// loadable backends do not offer.
///
/// # Safety
/// `node` and its sources must be alive.
unsafe fn work_bytes(node: &sys::ggml_tensor, n_threads: u64) -> u64 {
    let source = |i: usize| {
        // SAFETY: by the contract above.
        unsafe { node.src[i].as_ref() }
    };
    let values = |t: &sys::ggml_tensor| t.ne.iter().product::<i64>() as u64;
    match (node.op, source(0), source(1)) {
        (sys::GGML_OP_MUL_MAT | sys::GGML_OP_MUL_MAT_ID, Some(weights), Some(x)) => {
            // SAFETY: a type of a live tensor.
            let quantised = unsafe { sys::ggml_is_quantized(weights.type_) };
            let converted = match weights.type_ {
                sys::GGML_TYPE_F32 => 0,
                // Blocks of Q8_1 and Q8_K: 1.125 and 1.14 bytes a value.
                _ if quantised => values(x) * 23 / 20,
                _ => 2 * values(x),
            };
            let scratch = if quantised { n_threads * PRODUCT_SCRATCH } else { 0 };
            let experts = source(2).map_or(0, |ids| weights.ne[2] as u64 * (values(ids) * 8 + 128));
            converted + scratch + experts
        }
        (sys::GGML_OP_FLASH_ATTN_EXT, Some(q), Some(k)) => {
            let (dk, dv) = (k.ne[0] as u64, node.ne[0] as u64);
            let tile = ATTENTION_TILE;
            let prefill = n_threads * (2 * tile * dk + 2 * tile * dv + 2 * tile * tile);
            let decode = n_threads * (q.ne[2] as u64 * (2 + dv) + dk + 2 * dv);
            // SAFETY: a live attention node.
            let sparse = unsafe { sys::ggml_flash_attn_ext_block_sparse_scratch(node, n_threads as i32) };
            (4 * prefill.max(decode)).max(sparse as u64)
        }
        (sys::GGML_OP_SOFT_MAX | sys::GGML_OP_ROPE, ..) => 4 * node.ne[0] as u64 * n_threads,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ggml::{BlockSparse, DType, GraphBuilder};

    /// Two KV heads of 512 values behind 256000 positions in blocks of 128, a chunk of 2048.
    #[test]
    fn lists_of_block_sparse_attention() {
        let mut g = GraphBuilder::new(16).unwrap();
        let params = g.kv_params("params").unwrap();
        let rows =
            [("q", DType::F32, 2048, 16), ("k", DType::Q8_0, 256_000, 2), ("v", DType::Q8_0, 256_000, 2)];
        let [q, k, v] = rows.map(|(name, dtype, n, heads)| {
            let rows = g.input(name, dtype, [512, n * heads]).unwrap();
            g.reshape(&rows, [512, n, heads]).unwrap()
        });
        let node = g.attention_causal([&q, &k, &v], &params, 1.0).unwrap();
        // SAFETY: the builder keeps its nodes alive.
        let bytes = |node: &crate::ggml::Tensor| unsafe { list_bytes(&*node.raw()) };
        assert_eq!(bytes(&node), 0);
        let sparse = BlockSparse { alpha: 0.12, block: 128, sink: 2, window: 4, last_full: 1 };
        g.block_sparse(&node, &params, sparse, false).unwrap();
        let means = 4 * 2 * 2000 * 512;
        let scores = 4 * 2048 * 2000;
        let lists = 2 * 17;
        assert_eq!(bytes(&node), means + scores + lists * (2000 * 5 + 4));
    }
}
