//! Graphs: a builder that records operations, and the finished, frozen result.

use super::tensor::{Arena, Role, Tensor};
use super::{DType, misuse};
use crate::Result;
use ggml_sys as sys;
use std::collections::HashSet;
use std::ptr::NonNull;
use std::sync::Arc;

/// Records the operations of one graph. The operations themselves are in [`ops`](super::ops).
pub(crate) struct GraphBuilder {
    pub(super) arena: Arc<Arena>,
    raw: NonNull<sys::ggml_cgraph>,
    max_nodes: usize,
    /// Inputs and tensors of other arenas: ggml asserts that a graph has room for them.
    leaves: HashSet<*mut sys::ggml_tensor>,
    inputs: Vec<Tensor>,
    reports: Vec<Tensor>,
}

impl GraphBuilder {
    /// A builder with room for `max_nodes` tensors.
    pub fn new(max_nodes: usize) -> Result<Self> {
        // SAFETY: arithmetic on constants.
        let overhead = unsafe { sys::ggml_graph_overhead_custom(max_nodes, false) };
        let arena = Arena::new(Role::Graph, max_nodes + 8, overhead)?;
        // SAFETY: the arena was sized for the graph.
        let raw = unsafe { sys::ggml_new_graph_custom(arena.ctx(), max_nodes, false) };
        match NonNull::new(raw) {
            Some(raw) => {
                let (leaves, inputs, reports) = (HashSet::new(), Vec::new(), Vec::new());
                Ok(GraphBuilder { arena, raw, max_nodes, leaves, inputs, reports })
            }
            None => misuse("new_graph", format!("no memory for {max_nodes} nodes")),
        }
    }

    /// An input: its data is written before each computation.
    pub fn input(&mut self, name: &str, dtype: DType, ne: [i64; 2]) -> Result<Tensor> {
        if ne[0] <= 0 || ne[1] <= 0 || dtype.row_bytes(ne[0] as u64).is_none() {
            return misuse("input", format!("{name}: no {dtype} tensor has the shape {ne:?}"));
        }
        self.arena.check_room("input")?;
        // SAFETY: the arena is this builder's own and has room.
        let raw = unsafe { sys::ggml_new_tensor_2d(self.arena.ctx(), dtype.0, ne[0], ne[1]) };
        let tensor = Tensor::wrap(raw, &self.arena, "input")?;
        tensor.set_name(name);
        // SAFETY: sets a flag of a description that only this builder knows.
        unsafe { sys::ggml_set_input(raw) };
        self.add_leaf("input", &tensor)?;
        self.inputs.push(tensor.clone());
        Ok(tensor)
    }

    /// Marks a result: its memory is not reused, so it can be read after the computation.
    pub fn output(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        if !Arc::ptr_eq(tensor.arena(), &self.arena) {
            return misuse("output", "the tensor is not of this graph");
        }
        tensor.set_name(name);
        // SAFETY: as above.
        unsafe { sys::ggml_set_output(tensor.raw()) };
        self.expand(tensor)
    }

    /// Marks a result that is wanted beside the graph's own; [`take_reports`](Self::take_reports) gives all.
    pub fn report(&mut self, tensor: &Tensor) -> Result<()> {
        self.output(&format!("report_{}", self.reports.len()), tensor)?;
        self.reports.push(tensor.clone());
        Ok(())
    }

    /// The marked reports, in order.
    pub fn take_reports(&mut self) -> Vec<Tensor> {
        std::mem::take(&mut self.reports)
    }

    /// Adds `tensor`, and all it depends on, to the order of execution.
    pub fn expand(&mut self, tensor: &Tensor) -> Result<()> {
        // SAFETY: both live in this builder's arena or in arenas that it keeps. The graph has a slot for
        // every description that the arena can hold, and `add_leaf` bounds the leaves.
        unsafe { sys::ggml_build_forward_expand(self.raw.as_ptr(), tensor.raw()) };
        Ok(())
    }

    /// Refuses an operation for which there is no room, and keeps its sources alive.
    pub(super) fn admit(&mut self, op: &'static str, sources: &[&Tensor]) -> Result<()> {
        self.arena.check_room(op)?;
        for tensor in sources {
            if !Arc::ptr_eq(tensor.arena(), &self.arena) {
                if tensor.arena().role() == Role::Graph {
                    return misuse(op, "a source belongs to another graph");
                }
                self.arena.keep_arena(tensor.arena());
                self.add_leaf(op, tensor)?;
            }
        }
        Ok(())
    }

    fn add_leaf(&mut self, op: &'static str, tensor: &Tensor) -> Result<()> {
        self.leaves.insert(tensor.raw());
        if self.leaves.len() >= self.max_nodes {
            return misuse(op, format!("the graph reads more than {} tensors", self.max_nodes));
        }
        Ok(())
    }

    /// Freezes the graph.
    pub fn finish(self) -> Result<Graph> {
        // SAFETY: the graph is alive.
        let n_nodes = unsafe { sys::ggml_graph_n_nodes(self.raw.as_ptr()) };
        if n_nodes <= 0 {
            return misuse("graph", "no operations");
        }
        let GraphBuilder { arena, raw, max_nodes, inputs, .. } = self;
        Ok(Graph { inputs, arena, raw, n_nodes: n_nodes as usize, max_nodes })
    }
}

/// A finished graph. It computes through an [`Engine`](super::Engine).
pub(crate) struct Graph {
    /// What is written before each computation.
    pub(super) inputs: Vec<Tensor>,
    pub(super) arena: Arc<Arena>,
    raw: NonNull<sys::ggml_cgraph>,
    n_nodes: usize,
    pub(super) max_nodes: usize,
}

// SAFETY: the graph lives in its arena and is touched by the engine that owns it alone.
unsafe impl Send for Graph {}

/// Name of a source's own operation, its type and its shape.
#[cfg(test)]
pub(crate) type Source = (String, DType, [i64; 4]);

impl Graph {
    pub(super) fn raw(&self) -> *mut sys::ggml_cgraph {
        self.raw.as_ptr()
    }

    /// Operations of the graph.
    pub fn n_nodes(&self) -> usize {
        self.n_nodes
    }

    /// Name of the operation, type, and types of the sources of every node.
    #[cfg(test)]
    pub fn nodes(&self) -> Vec<(String, DType, Vec<DType>)> {
        let node = |i: usize| {
            // SAFETY: the graph and its tensors are alive; operations have static names; sources come first,
            // and null after the last one.
            unsafe {
                let node = sys::ggml_graph_node(self.raw(), i as i32);
                let name = std::ffi::CStr::from_ptr(sys::ggml_op_name((*node).op));
                let sources = (*node).src.iter().take_while(|s| !s.is_null());
                let types = sources.map(|&s| DType((*s).type_)).collect();
                (name.to_string_lossy().into_owned(), DType((*node).type_), types)
            }
        };
        (0..self.n_nodes).map(node).collect()
    }

    /// The sources of every node of an operation, by place.
    #[cfg(test)]
    pub fn sources(&self, op: &str) -> Vec<Vec<Option<Source>>> {
        // SAFETY: the graph and its tensors are alive; operations have static names.
        let name =
            |op| unsafe { std::ffi::CStr::from_ptr(sys::ggml_op_name(op)) }.to_string_lossy().into_owned();
        let node = |i: usize| {
            // SAFETY: as above; places without a source are null.
            unsafe {
                let node = sys::ggml_graph_node(self.raw(), i as i32);
                let source =
                    |s: &*mut sys::ggml_tensor| s.as_ref().map(|s| (name(s.op), DType(s.type_), s.ne));
                (name((*node).op) == op).then(|| (*node).src.iter().map(source).collect())
            }
        };
        (0..self.n_nodes).filter_map(node).collect()
    }
}
