//! Runs graphs on one or more backends.

use super::backend::{Backend, CancelFlag, Device};
use super::graph::Graph;
use super::memory::Buffer;
use super::tensor::Tensor;
use super::{exception, misuse};
use crate::{Error, Result};
use ggml_sys as sys;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Runs after which a graph takes as long as ever after. Devices other than the CPU may record a graph when they see it again.
const SETTLING: [u32; 2] = [1, 2];

/// GGML_SCHED_MAX_BACKENDS, which is private to ggml.
const MAX_BACKENDS: usize = 16;

/// Backends, and the graphs that are ready to run on them.
///
/// Each slot holds one graph with memory for its intermediate values. A graph stays in its slot and is
/// computed again and again with new inputs, until another takes its place.
pub(crate) struct Engine {
    // Before the backends: schedulers must go first.
    slots: Vec<Slot>,
    graphs_loaded: u64,
    settling_runs: u64,
    building: Duration,
    backends: Vec<Backend>,
    cancel: CancelFlag,
}

struct Slot {
    sched: NonNull<sys::ggml_backend_sched>,
    max_nodes: usize,
    graph: Option<Graph>,
    /// How often the graph ran.
    runs: u32,
    /// Memory of the graph's inputs, where the scheduler does not see to it. After the graph: tensors go first.
    inputs: Option<Buffer>,
    /// Whether the first backend computes the whole graph and takes orders without waiting for what it was asked before.
    is_stream: bool,
}

// SAFETY: a scheduler has no ties to a thread and is used through `&mut Engine` alone.
unsafe impl Send for Slot {}

impl Drop for Slot {
    fn drop(&mut self) {
        // SAFETY: the backends are still alive, by the order of fields in Engine.
        unsafe { sys::ggml_backend_sched_free(self.sched.as_ptr()) }
    }
}

impl Engine {
    /// `backends` in order of preference; the last one must be the CPU, which computes everything.
    pub fn new(backends: Vec<Backend>, cancel: CancelFlag) -> Result<Engine> {
        let last_is_cpu = backends.last().is_some_and(|b| b.device().uses_host_memory());
        if !last_is_cpu || backends.len() > MAX_BACKENDS {
            return misuse("sched_new", "the last backend must be the CPU, and there may be 16 at most");
        }
        let (slots, building) = (Vec::new(), Duration::ZERO);
        Ok(Engine { slots, graphs_loaded: 0, settling_runs: 0, building, backends, cancel })
    }

    /// Adds an empty slot for graphs of up to `max_nodes` nodes and returns its number.
    pub fn add_slot(&mut self, max_nodes: usize) -> Result<usize> {
        let mut raw: Vec<_> = self.backends.iter().map(Backend::raw).collect();
        // Twice: the scheduler's table holds leaves as well as nodes.
        // SAFETY: the backends are alive and outlive the scheduler; null buffer types mean the defaults.
        let sched = unsafe {
            sys::ggml_try_sched_new(
                raw.as_mut_ptr(),
                std::ptr::null_mut(),
                raw.len() as i32,
                2 * max_nodes,
                true,
            )
        };
        let Some(sched) = NonNull::new(sched) else {
            return misuse("sched_new", exception().unwrap_or_else(|| "no scheduler".into()));
        };
        self.slots.push(Slot { sched, max_nodes, graph: None, runs: 0, inputs: None, is_stream: false });
        Ok(self.slots.len() - 1)
    }

    /// Splits `graph` over the backends of `slot` and returns the bytes of intermediate memory that it would
    /// take, one number for each backend. The slot is empty and holds the split until [`unload`](Self::unload).
    pub(super) fn split(&mut self, slot: usize, graph: &Graph) -> Result<Vec<u64>> {
        let sched = self.slot(slot)?.empty(graph)?;
        self.place_attention(sched, graph);
        self.reserve_inputs(slot, 0)?;
        self.place_inputs(slot, graph, false)?;
        let mut sizes = vec![0usize; self.backends.len()];
        // SAFETY: scheduler and graph are alive and fit each other; `sizes` has an entry for each backend.
        let done = unsafe { sys::ggml_try_sched_reserve_size(sched, graph.raw(), sizes.as_mut_ptr()) };
        if !done {
            return misuse("sched_reserve_size", exception().unwrap_or_default());
        }
        if let Some(first) = sizes.first_mut() {
            *first += self.input_bytes(graph);
        }
        Ok(sizes.into_iter().map(|n| n as u64).collect())
    }

    /// Empties a slot. Its memory stays.
    pub(super) fn unload(&mut self, slot: usize) -> Result<()> {
        let slot = self.slot(slot)?;
        slot.graph = None;
        // SAFETY: the scheduler is alive.
        unsafe { sys::ggml_backend_sched_reset(slot.sched.as_ptr()) };
        Ok(())
    }

    /// The device that computes `node` of the graph that was split last in `slot`.
    pub(super) fn device_of(&mut self, slot: usize, node: *mut sys::ggml_tensor) -> Result<Option<Device>> {
        let sched = self.slot(slot)?.sched.as_ptr();
        // SAFETY: the scheduler is alive; it looks the node's address up, and does not follow it.
        let raw = unsafe { sys::ggml_backend_sched_get_tensor_backend(sched, node) };
        Ok(self.backends.iter().find(|backend| backend.raw() == raw).map(Backend::device))
    }

    /// Gives a slot the memory that a graph needs, so that smaller graphs load into it without taking more.
    /// `build` makes the graph: it is split twice, and once split it cannot be used again.
    pub fn reserve(
        &mut self,
        index: usize,
        mut build: impl FnMut() -> Result<Graph>,
        hint: &'static str,
    ) -> Result<()> {
        let started = Instant::now();
        let sizes = self.split(index, &build()?)?;
        self.unload(index)?;
        let graph = build()?;
        let sched = self.slot(index)?.sched.as_ptr();
        // Systems promise memory that they do not have, and end the process when it is used.
        for (backend, &size) in self.backends.iter().zip(&sizes) {
            // SAFETY: scheduler and backend are alive.
            let have = unsafe { sys::ggml_backend_sched_get_buffer_size(sched, backend.raw()) };
            let (needed, available) = (size.saturating_sub(have as u64), backend.device().memory_available());
            if needed > available {
                return Err(compute_memory(backend, needed, hint));
            }
        }
        self.slot(index)?.empty(&graph)?;
        self.place_attention(sched, &graph);
        self.reserve_inputs(index, self.input_bytes(&graph))?;
        self.place_inputs(index, &graph, false)?;
        // SAFETY: scheduler and graph are alive and fit each other; the scheduler was reset. What a failed
        // reservation leaves behind is reset too, so that the slot stays usable.
        let done = unsafe {
            let done = sys::ggml_try_sched_reserve(sched, graph.raw());
            sys::ggml_backend_sched_reset(sched);
            done
        };
        self.building += started.elapsed();
        if done { Ok(()) } else { Err(compute_memory(&self.backends[0], sizes[0], hint)) }
    }

    /// Puts a graph into a slot.
    pub fn load(&mut self, index: usize, graph: Graph) -> Result<()> {
        let sched = self.slot(index)?.empty(&graph)?;
        self.place_attention(sched, &graph);
        self.reserve_inputs(index, self.input_bytes(&graph))?;
        self.place_inputs(index, &graph, true)?;
        // SAFETY: scheduler and graph are alive; the graph has at most as many nodes as the scheduler can
        // hold, and its tensors are allocated for the first time.
        let done = unsafe { sys::ggml_try_sched_alloc_graph(sched, graph.raw()) };
        if !done {
            return Err(compute_memory(&self.backends[0], 0, "use a smaller n_batch or n_ctx"));
        }
        // SAFETY: the scheduler is alive, and a loaded graph has a node.
        let (n_splits, first) =
            unsafe { (sys::ggml_backend_sched_get_n_splits(sched), sys::ggml_graph_node(graph.raw(), 0)) };
        let first = self.device_of(index, first)?;
        let is_stream = n_splits == 1
            && first == self.backends.first().map(Backend::device)
            && first.is_some_and(|device| device.copies_in_order());
        let slot = &mut self.slots[index];
        slot.is_stream = is_stream;
        slot.graph = Some(graph);
        slot.runs = 0;
        self.graphs_loaded += 1;
        Ok(())
    }

    /// Builds a graph and puts it into a slot. Returns what `build` returns besides.
    pub fn build<G>(&mut self, index: usize, build: impl FnOnce() -> Result<(Graph, G)>) -> Result<G> {
        let started = Instant::now();
        let (graph, made) = build()?;
        self.load(index, graph)?;
        self.building += started.elapsed();
        Ok(made)
    }

    /// Graphs that were put into slots so far.
    pub fn graphs_loaded(&self) -> u64 {
        self.graphs_loaded
    }

    /// Runs of graphs so far that took longer than later ones will.
    pub fn settling_runs(&self) -> u64 {
        self.settling_runs
    }

    /// Time that [`build`](Self::build) and [`reserve`](Self::reserve) took so far.
    pub fn building(&self) -> Duration {
        self.building
    }

    /// Writes an input of the graph in `slot`.
    pub fn write<T: Plain>(&mut self, slot: usize, tensor: &Tensor, data: &[T]) -> Result<()> {
        let slot = self.slot(slot)?;
        slot.own("tensor_set", tensor)?;
        let stream = slot.is_stream.then(|| self.backends[0].raw());
        tensor.copy_in(0, bytes_of(data), stream)
    }

    /// Computes the graph in `slot`.
    pub fn compute(&mut self, slot: usize) -> Result<()> {
        self.launch(slot)?;
        let sched = self.slot(slot)?.sched.as_ptr();
        // SAFETY: the scheduler is alive.
        match unsafe { sys::ggml_try_sched_synchronize(sched) } {
            true => Ok(()),
            false => misuse("compute", exception().unwrap_or_default()),
        }
    }

    /// As [`compute`](Self::compute), without waiting for the end if [`read`](Self::read) can wait instead. Nothing else
    /// may look at what is computed before.
    pub fn launch(&mut self, slot: usize) -> Result<()> {
        let cancel = self.cancel.clone();
        let settling = SETTLING[usize::from(self.backends.len() > 1)];
        let slot = self.slot(slot)?;
        let Some(graph) = &slot.graph else { return misuse("compute", "the slot is empty") };
        let (sched, raw) = (slot.sched.as_ptr(), graph.raw());
        // SAFETY: the graph is loaded: its tensors have memory, and its arena keeps everything it reads.
        let status = unsafe {
            match slot.is_stream {
                true => sys::ggml_try_sched_graph_compute_async(sched, raw),
                false => sys::ggml_try_sched_graph_compute(sched, raw),
            }
        };
        slot.runs = slot.runs.saturating_add(1);
        let is_settling = slot.runs <= settling;
        self.settling_runs += u64::from(is_settling);
        match status {
            sys::GGML_STATUS_SUCCESS => Ok(()),
            sys::GGML_STATUS_ABORTED => Err(Error::Cancelled),
            _ if cancel.is_set() => Err(Error::Cancelled),
            sys::GGML_STATUS_ALLOC_FAILED => misuse("compute", "not enough memory for a work buffer"),
            _ => misuse("compute", exception().unwrap_or_else(|| format!("status {status}"))),
        }
    }

    /// Reads a result of the graph in `slot` into `data`.
    pub fn read<T: Plain>(&self, slot: usize, tensor: &Tensor, data: &mut [T]) -> Result<()> {
        self.read_at(slot, tensor, 0, data)
    }

    /// As [`read`](Self::read), from byte `offset` on.
    pub fn read_at<T: Plain>(
        &self,
        slot: usize,
        tensor: &Tensor,
        offset: usize,
        data: &mut [T],
    ) -> Result<()> {
        let Some(slot) = self.slots.get(slot) else {
            return misuse("tensor_get", format!("there is no slot {slot}"));
        };
        slot.own("tensor_get", tensor)?;
        tensor.copy_out(offset, bytes_of_mut(data), slot.is_stream.then(|| self.backends[0].raw()))
    }

    /// Where inputs are placed; `None` if the scheduler sees to them: on the CPU, which has them at once, and with several
    /// devices, since none computes what has a source in another one's memory.
    fn input_device(&self) -> Option<Device> {
        let mut others =
            self.backends.iter().map(Backend::device).filter(|device| !device.uses_host_memory());
        match (others.next(), others.next()) {
            (Some(only), None) => Some(only),
            _ => None,
        }
    }

    /// Bytes that the inputs of a graph take there.
    fn input_bytes(&self, graph: &Graph) -> usize {
        let size = |device: Device| graph.inputs.iter().map(|input| device.padded_size(input)).sum();
        self.input_device().map_or(0, size)
    }

    /// Sees to at least `n_bytes` for a slot's inputs on the first device.
    fn reserve_inputs(&mut self, index: usize, n_bytes: usize) -> Result<()> {
        let Some(device) = self.input_device() else { return Ok(()) };
        let slot = self.slot(index)?;
        if slot.inputs.as_ref().is_none_or(|have| have.size() < n_bytes as u64) {
            slot.inputs = None;
            slot.inputs = Buffer::new(device, n_bytes);
        }
        match slot.inputs {
            Some(_) => Ok(()),
            None => Err(compute_memory(&self.backends[0], n_bytes as u64, "use a smaller n_batch")),
        }
    }

    /// Has inputs written straight to the first device. A scheduler takes them to main memory, and from there to the
    /// device, waiting each time. Unless `is_real` they are only said to be there, for a graph that is split and no more.
    fn place_inputs(&mut self, index: usize, graph: &Graph, is_real: bool) -> Result<()> {
        let Some(device) = self.input_device() else { return Ok(()) };
        let Some(buffer) = &self.slot(index)?.inputs else { return Ok(()) };
        let mut at = 0;
        for input in &graph.inputs {
            match is_real {
                true => input.place_in(buffer, at)?,
                false => input.pretend_in(buffer),
            }
            at += device.padded_size(input);
        }
        Ok(())
    }

    /// Bytes of intermediate memory that all slots hold, over all backends.
    pub fn compute_bytes(&self) -> u64 {
        let inputs: u64 = self.slots.iter().flat_map(|slot| &slot.inputs).map(Buffer::size).sum();
        let sizes = self.slots.iter().flat_map(|slot| {
            // SAFETY: scheduler and backends are alive.
            self.backends.iter().map(move |backend| unsafe {
                sys::ggml_backend_sched_get_buffer_size(slot.sched.as_ptr(), backend.raw()) as u64
            })
        });
        inputs + sizes.sum::<u64>()
    }

    /// The devices of the backends, in their order.
    pub fn devices(&self) -> impl Iterator<Item = Device> {
        self.backends.iter().map(Backend::device)
    }

    /// Has attention computed where its keys are, if that device can: they are much more than the queries. A
    /// scheduler goes by the neighbours, and would copy a whole cache where a layer reads that of another device.
    fn place_attention(&self, sched: *mut sys::ggml_backend_sched, graph: &Graph) {
        if self.backends.len() == 1 {
            return;
        }
        for i in 0..graph.n_nodes() {
            // SAFETY: the index is in range; nodes and their sources live as long as the graph.
            let node = unsafe { &mut *sys::ggml_graph_node(graph.raw(), i as i32) };
            if node.op != sys::GGML_OP_FLASH_ATTN_EXT {
                continue;
            }
            // SAFETY: as above; a buffer has a type and that a device.
            let home = unsafe {
                let keys = node.src[1].as_ref();
                let buffer = keys.map(|k| k.view_src.as_ref().map_or(k.buffer, |whole| whole.buffer));
                buffer.filter(|buffer| !buffer.is_null()).map(|buffer| {
                    sys::ggml_backend_buft_get_device(sys::ggml_backend_buffer_get_type(buffer))
                })
            };
            let Some(backend) = self.backends.iter().find(|b| Some(b.device().raw()) == home) else {
                continue;
            };
            // SAFETY: device, scheduler and node are alive; the backend is one of the scheduler's.
            unsafe {
                if sys::ggml_backend_dev_supports_op(backend.device().raw(), node) {
                    sys::ggml_backend_sched_set_tensor_backend(sched, node, backend.raw());
                }
            }
        }
    }

    fn slot(&mut self, index: usize) -> Result<&mut Slot> {
        match self.slots.get_mut(index) {
            Some(slot) => Ok(slot),
            None => misuse("slot", format!("there is no slot {index}")),
        }
    }
}

impl Slot {
    /// Makes room for `graph`: the old one's tensors point into memory that the new one takes over.
    fn empty(&mut self, graph: &Graph) -> Result<*mut sys::ggml_backend_sched> {
        if graph.max_nodes > self.max_nodes {
            return misuse("sched_alloc_graph", "the graph may have more nodes than the slot");
        }
        self.graph = None;
        // SAFETY: the scheduler is alive.
        unsafe { sys::ggml_backend_sched_reset(self.sched.as_ptr()) };
        Ok(self.sched.as_ptr())
    }

    fn own(&self, op: &'static str, tensor: &Tensor) -> Result<()> {
        match &self.graph {
            Some(graph) if Arc::ptr_eq(tensor.arena(), &graph.arena) => Ok(()),
            _ => misuse(op, "the tensor is not of the graph in this slot"),
        }
    }
}

fn compute_memory(backend: &Backend, needed: u64, hint: &'static str) -> Error {
    Error::OutOfMemory {
        what: "the intermediate values of a computation".into(),
        device: backend.device().name(),
        needed,
        available: backend.device().memory_available(),
        hint,
    }
}

/// Types whose values are plain bytes, without padding and without invalid patterns.
///
/// # Safety
/// Only for such types.
pub(crate) unsafe trait Plain: Copy {}
// SAFETY: plain numbers.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for i64 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}
// SAFETY: a transparent u16.
unsafe impl Plain for half::f16 {}

fn bytes_of<T: Plain>(data: &[T]) -> &[u8] {
    // SAFETY: plain values are bytes; length and lifetime are those of the slice.
    unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), size_of_val(data)) }
}

fn bytes_of_mut<T: Plain>(data: &mut [T]) -> &mut [u8] {
    // SAFETY: as above, and any bytes are a valid value.
    unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr().cast(), size_of_val(data)) }
}
