//! The graphs that a proposer keeps in the session's engine.

use crate::Result;
use crate::ggml::{Engine, Graph};
use std::collections::HashMap;
use std::hash::Hash;

/// Slots of an engine by key, each with the graph that it holds.
pub(super) struct Slots<K, G>(HashMap<K, (usize, Option<G>)>);

impl<K: Eq + Hash + Copy, G> Slots<K, G> {
    pub fn new() -> Self {
        Slots(HashMap::new())
    }

    fn index(&mut self, engine: &mut Engine, key: K, max_nodes: usize) -> Result<usize> {
        if let Some(&(index, _)) = self.0.get(&key) {
            return Ok(index);
        }
        let index = engine.add_slot(max_nodes)?;
        self.0.insert(key, (index, None));
        Ok(index)
    }

    /// Takes the memory of the largest graph of `key`.
    pub fn reserve(
        &mut self,
        engine: &mut Engine,
        key: K,
        max_nodes: usize,
        build: impl FnMut() -> Result<Graph>,
    ) -> Result<()> {
        let index = self.index(engine, key, max_nodes)?;
        engine.reserve(index, build, "use a smaller max_draft, n_batch or n_ctx")
    }

    /// The graph of `key` and its slot. One that does not fit gives way to what `build` makes.
    pub fn load(
        &mut self,
        engine: &mut Engine,
        key: K,
        max_nodes: usize,
        fits: impl Fn(&G) -> bool,
        build: impl FnOnce() -> Result<(Graph, G)>,
    ) -> Result<(usize, &G)> {
        let index = self.index(engine, key, max_nodes)?;
        let (_, held) = self.0.entry(key).or_insert((index, None));
        // Taken out first: a slot whose loading failed holds nothing.
        let held = match held.take().filter(fits) {
            Some(graph) => held.insert(graph),
            None => held.insert(engine.build(index, build)?),
        };
        Ok((index, held))
    }
}
