//! Hands out the tensors of a file and decides where each one lives.

use super::weights::Linear;
use crate::ggml::gguf::{GgufSet, TensorInfo};
use crate::ggml::{DType, Device, FileMap, Packing, Product, Storage, StorageBuilder, Tensor};
use crate::{Error, Result};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::Path;

/// Bytes copied between two reports of progress.
const CHUNK: usize = 8 << 20;

/// The quantised types that ggml can multiply with; others in its table are intermediate formats.
const MATRIX_TYPES: &[&str] = &[
    "f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_K", "q3_K", "q4_K", "q5_K", "q6_K",
    "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_nl", "iq4_xs", "tq1_0", "tq2_0",
    "mxfp4", "nvfp4", "q1_0", "q2_0",
];

/// The tensors of a model file while they are claimed. [`load`](WeightSource::load) then fills them.
pub(crate) struct WeightSource<'a> {
    set: &'a GgufSet,
    /// Where tensors go that are claimed from now on.
    device: Device,
    use_mmap: bool,
    /// Tensors computed from the mapped file, one builder a file, and the bytes of all.
    mapped: Vec<(StorageBuilder, Vec<u64>)>,
    mapped_bytes: u64,
    /// Matrices that are copied to main memory and rearranged for the CPU's kernels.
    packing: Option<Packing>,
    packed: Copied,
    /// Tensors with memory of their own, by device.
    copied: Vec<Copied>,
}

/// Gets bytes done and bytes in all, and may break off.
pub(crate) type Report<'a> = &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>;

/// Bytes that weights take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct WeightBytes {
    /// In mapped files, of which the system holds what was read.
    pub mapped: u64,
    /// In memory of their own, by device.
    pub copied: Vec<(Device, u64)>,
}

impl WeightBytes {
    pub fn total(&self) -> u64 {
        self.mapped + self.copied.iter().map(|(_, n)| n).sum::<u64>()
    }

    /// What `device` has of them, mapped ones included.
    pub fn on(&self, device: Device) -> u64 {
        let own = self.copied.iter().filter(|(holder, _)| *holder == device);
        own.map(|(_, n)| n).sum::<u64>() + if device.uses_host_memory() { self.mapped } else { 0 }
    }
}

/// Tensors that get memory of their own.
struct Copied {
    device: Device,
    builder: StorageBuilder,
    jobs: Vec<Job>,
}

impl Copied {
    fn new(device: Device, max_tensors: usize) -> Result<Copied> {
        Ok(Copied { device, builder: StorageBuilder::weights(max_tensors)?, jobs: Vec::new() })
    }
}

struct Job {
    tensor: Tensor,
    file: usize,
    offset: u64,
    n_bytes: u64,
    /// Type in the file, if it is widened to F32.
    widen: Option<DType>,
}

impl<'a> WeightSource<'a> {
    /// `repack`: matrices that the CPU multiplies faster in another order are copied into that order.
    pub fn new(set: &'a GgufSet, device: Device, use_mmap: bool, repack: bool) -> Result<Self> {
        let n = set.len();
        let mut mapped = Vec::new();
        for _ in set.files() {
            mapped.push((StorageBuilder::weights(n)?, Vec::new()));
        }
        let packing = if repack && device.uses_host_memory() { Packing::of_cpu()? } else { None };
        Ok(WeightSource {
            set,
            device,
            use_mmap,
            mapped,
            mapped_bytes: 0,
            packing,
            packed: Copied::new(Device::cpu()?, n)?,
            copied: Vec::new(),
        })
    }

    /// Where tensors go that are claimed from now on.
    pub fn set_device(&mut self, device: Device) {
        self.device = device;
    }

    /// A table from which rows are gathered, that must be in the file.
    pub fn table(&mut self, name: &str, ne: &[u64]) -> Result<Tensor> {
        self.table_opt(name, ne)?.ok_or_else(|| self.missing(name, ne))
    }

    /// A table from which rows are gathered.
    pub fn table_opt(&mut self, name: &str, ne: &[u64]) -> Result<Option<Tensor>> {
        self.claim(name, ne, self.device, None)
    }

    /// The matrices of all experts, that must be in the file, on `device`.
    pub fn experts(&mut self, name: &str, ne: &[u64], device: Device) -> Result<Tensor> {
        self.experts_opt(name, ne, device)?.ok_or_else(|| self.missing(name, ne))
    }

    /// The matrices of all experts, on `device`.
    pub fn experts_opt(&mut self, name: &str, ne: &[u64], device: Device) -> Result<Option<Tensor>> {
        self.claim(name, ne, device, Some(Product::Experts))
    }

    /// The matrix `name` once more for products, if it gains by being packed: a table that is a matrix too.
    pub fn packed_twin(&mut self, name: &str, ne: &[u64]) -> Result<Option<Tensor>> {
        let Some((file, info)) = self.checked(name, ne)? else { return Ok(None) };
        self.pack(file, info, Product::Matrix)
    }

    /// Bytes of packed copies.
    pub fn packed_bytes(&self) -> u64 {
        self.packed.jobs.iter().map(|job| job.n_bytes).sum()
    }

    /// A table that stays in main memory: rows are gathered there.
    pub fn host(&mut self, name: &str, ne: &[u64]) -> Result<Tensor> {
        let cpu = Device::cpu()?;
        self.claim(name, ne, cpu, None)?.ok_or_else(|| self.missing(name, ne))
    }

    /// A weight matrix `NAME.weight` with its optional `NAME.scale`.
    pub fn linear(&mut self, name: &str, ne: &[u64]) -> Result<Linear> {
        self.linear_opt(name, ne)?.ok_or_else(|| self.missing(&format!("{name}.weight"), ne))
    }

    pub fn linear_opt(&mut self, name: &str, ne: &[u64]) -> Result<Option<Linear>> {
        let Some(mut linear) = self.linear_unscaled_opt(name, ne)? else { return Ok(None) };
        linear.scale = self.vector_opt(&format!("{name}.scale"), 1)?;
        Ok(Some(linear))
    }

    /// As [`linear_opt`](Self::linear_opt) where `NAME.scale` means something else.
    pub fn linear_unscaled_opt(&mut self, name: &str, ne: &[u64]) -> Result<Option<Linear>> {
        let weight = self.claim(&format!("{name}.weight"), ne, self.device, Some(Product::Matrix))?;
        Ok(weight.map(|weight| Linear { weight, scale: None }))
    }

    /// A vector of `n` numbers, F32 in memory.
    pub fn vector(&mut self, name: &str, n: u64) -> Result<Tensor> {
        self.vector_opt(name, n)?.ok_or_else(|| self.missing(name, &[n]))
    }

    pub fn vector_opt(&mut self, name: &str, n: u64) -> Result<Option<Tensor>> {
        let Some((file, info)) = self.checked(name, &[n])? else { return Ok(None) };
        let found = DType(info.type_id);
        match found {
            DType::F32 => self.place(file, info, self.device).map(Some),
            DType::F16 | DType::BF16 => self.copy(file, info, self.device, Some(found)).map(Some),
            _ => Err(self.wrong(name, format!("a vector of type {found}"), "f32, f16 or bf16")),
        }
    }

    /// A table of `n` indices below `below`, I32. They will be used as row numbers, so all are looked at.
    pub fn indices_opt(&mut self, name: &str, n: u64, below: u32) -> Result<Option<Tensor>> {
        let Some((file, info)) = self.checked(name, &[n])? else { return Ok(None) };
        let found = DType(info.type_id);
        if found != DType::I32 {
            return Err(self.wrong(name, format!("type {found}"), "i32"));
        }
        let path = &self.set.files()[file].path;
        let io = |action| move |source| Error::Io { action, path: path.to_owned(), source };
        let mut bytes = vec![0; info.nbytes as usize];
        let mut data = File::open(path).map_err(io("open"))?;
        data.seek(SeekFrom::Start(info.offset)).map_err(io("read"))?;
        data.read_exact(&mut bytes).map_err(io("read"))?;
        let ids = bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        match ids.enumerate().find(|&(_, id)| u32::try_from(id).map_or(true, |id| id >= below)) {
            Some((i, id)) => Err(self.wrong(name, format!("{id} at {i}"), format!("0 to {}", below - 1))),
            None => self.place(file, info, self.device).map(Some),
        }
    }

    /// `product`: how graphs multiply with it, if they do nothing else.
    fn claim(
        &mut self,
        name: &str,
        ne: &[u64],
        device: Device,
        product: Option<Product>,
    ) -> Result<Option<Tensor>> {
        let Some((file, info)) = self.checked(name, ne)? else { return Ok(None) };
        let dtype = DType(info.type_id).to_string();
        if !MATRIX_TYPES.contains(&dtype.as_str()) {
            return Err(self.wrong(
                name,
                format!("type {dtype}"),
                format!("one of {}", MATRIX_TYPES.join(", ")),
            ));
        }
        if let Some(product) = product
            && let Some(packed) = self.pack(file, info, product)?
        {
            return Ok(Some(packed));
        }
        self.place(file, info, device).map(Some)
    }

    /// Places a weight among the packed ones, if that serves it.
    fn pack(&mut self, file: usize, info: &TensorInfo, product: Product) -> Result<Option<Tensor>> {
        let Some(packing) = &self.packing else { return Ok(None) };
        let dtype = DType(info.type_id);
        if !packing.serves(dtype, info.ne, product)? {
            return Ok(None);
        }
        let tensor = self.packed.builder.tensor(&info.name, dtype, info.ne)?;
        let (offset, n_bytes) = (info.offset, info.nbytes);
        self.packed.jobs.push(Job { tensor: tensor.clone(), file, offset, n_bytes, widen: None });
        Ok(Some(tensor))
    }

    /// Looks a tensor up and compares its shape.
    fn checked(&self, name: &str, ne: &[u64]) -> Result<Option<(usize, &'a TensorInfo)>> {
        let Some((file, info)) = self.set.tensor(name) else { return Ok(None) };
        let mut full = [1; 4];
        full[..ne.len()].copy_from_slice(ne);
        if info.ne != full {
            return Err(self.wrong(name, format!("shape {:?}", info.ne), format!("{full:?}")));
        }
        Ok(Some((file, info)))
    }

    fn place(&mut self, file: usize, info: &TensorInfo, device: Device) -> Result<Tensor> {
        let dtype = DType(info.type_id);
        // ggml's CPU kernels want 32-byte alignment, which a file may undercut.
        if self.use_mmap && device.uses_host_memory() && info.offset.is_multiple_of(32) {
            let (builder, offsets) = &mut self.mapped[file];
            offsets.push(info.offset);
            self.mapped_bytes += info.nbytes;
            return builder.tensor(&info.name, dtype, info.ne);
        }
        self.copy(file, info, device, None)
    }

    /// Gives a tensor memory on `device`. `widen`: its type in the file, if it becomes F32.
    fn copy(
        &mut self,
        file: usize,
        info: &TensorInfo,
        device: Device,
        widen: Option<DType>,
    ) -> Result<Tensor> {
        let at = match self.copied.iter().position(|copied| copied.device == device) {
            Some(at) => at,
            None => {
                // Divisors of rope angles can be there once a device.
                self.copied.push(Copied::new(device, self.set.len() + 1)?);
                self.copied.len() - 1
            }
        };
        let Copied { builder, jobs, .. } = &mut self.copied[at];
        let dtype = if widen.is_some() { DType::F32 } else { DType(info.type_id) };
        let tensor = builder.tensor(&info.name, dtype, info.ne)?;
        let (offset, n_bytes) = (info.offset, info.nbytes);
        jobs.push(Job { tensor: tensor.clone(), file, offset, n_bytes, widen });
        Ok(tensor)
    }

    /// Maps and reads everything that was claimed.
    pub fn load(self, progress: Report<'_>) -> Result<WeightBytes> {
        let mut taken = WeightBytes { mapped: self.mapped_bytes, copied: Vec::new() };
        for (i, (builder, offsets)) in self.mapped.into_iter().enumerate() {
            if !offsets.is_empty() {
                builder.map(&FileMap::open(&self.set.files()[i].path)?, &offsets)?;
            }
        }
        let jobs = self.copied.iter().chain([&self.packed]).flat_map(|copied| &copied.jobs);
        let mut report = Progress { done: self.mapped_bytes, total: self.mapped_bytes, sink: progress };
        report.total += jobs.map(|job| job.n_bytes).sum::<u64>();
        report.add(0)?;
        let (what, mut buffer) = ("the model's weights", Vec::new());
        for copied in self.copied {
            let hint = match copied.device.uses_host_memory() {
                true => "use a smaller quantisation of the model",
                false => {
                    "leave layers in main memory (LoadOptions::n_gpu_layers) or the experts (n_cpu_moe), spread the \
                     model over several devices, or use a smaller quantisation"
                }
            };
            let mut storage = copied.builder.allocate(&copied.device, what, hint)?;
            taken.copied.push((copied.device, storage.n_bytes()));
            for job in copied.jobs {
                job.run(&self.set.files()[job.file].path, &mut storage, &mut report, &mut buffer, CHUNK)?;
            }
        }
        if let (Some(packing), false) = (self.packing, self.packed.jobs.is_empty()) {
            let hint = "load the model without repacking";
            let mut storage = self.packed.builder.allocate_packed(&packing, what, hint)?;
            taken.copied.push((self.packed.device, storage.n_bytes()));
            for job in self.packed.jobs {
                // In one piece: rows are interleaved.
                job.run(
                    &self.set.files()[job.file].path,
                    &mut storage,
                    &mut report,
                    &mut buffer,
                    usize::MAX,
                )?;
            }
        }
        Ok(taken)
    }

    /// Gives nothing memory: for planning. Returns the bytes that [`load`](Self::load) would take.
    pub fn pretend(self) -> Result<WeightBytes> {
        let cpu = Device::cpu()?;
        let mut taken = WeightBytes { mapped: self.mapped_bytes, copied: Vec::new() };
        for (builder, _) in self.mapped {
            builder.pretend(&cpu)?;
        }
        for copied in self.copied {
            taken.copied.push((copied.device, copied.builder.pretend(&copied.device)?.1));
        }
        if let Some(packing) = self.packing {
            taken.copied.push((cpu, self.packed.builder.pretend_packed(&packing)?.1));
        }
        Ok(taken)
    }

    /// Refuses a file that has a tensor though `key`, which is absent or 0, says that it has none.
    pub fn refuse(&self, name: &str, key: &str, what: &str) -> Result<()> {
        match self.set.tensor(name) {
            Some(_) => {
                Err(self.wrong(key, "0 or nothing", format!("a number: the file has {what}, such as {name}")))
            }
            None => Ok(()),
        }
    }

    fn missing(&self, name: &str, ne: &[u64]) -> Error {
        self.wrong(name, "no such tensor", format!("a tensor of shape {ne:?}"))
    }

    fn wrong(&self, name: &str, found: impl Into<String>, expected: impl Into<String>) -> Error {
        self.set.metadata().wrong(name, found, expected)
    }
}

struct Progress<'a> {
    done: u64,
    total: u64,
    sink: Report<'a>,
}

impl Progress<'_> {
    fn add(&mut self, n: u64) -> Result<()> {
        self.done += n;
        match (self.sink)(self.done, self.total) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled),
        }
    }
}

impl Job {
    /// Copies the tensor from the file, `chunk` bytes at a time.
    fn run(
        &self,
        path: &Path,
        storage: &mut Storage,
        report: &mut Progress<'_>,
        buffer: &mut Vec<u8>,
        chunk: usize,
    ) -> Result<()> {
        let io = |action| move |source| Error::Io { action, path: path.to_owned(), source };
        let mut file = File::open(path).map_err(io("open"))?;
        file.seek(SeekFrom::Start(self.offset)).map_err(io("read"))?;
        buffer.resize(chunk.min(self.n_bytes as usize), 0);
        let mut done = 0usize;
        while (done as u64) < self.n_bytes {
            let n = buffer.len().min(self.n_bytes as usize - done);
            file.read_exact(&mut buffer[..n]).map_err(io("read"))?;
            match self.widen {
                None => storage.write(&self.tensor, done, &buffer[..n])?,
                // Two bytes become four; chunks are even.
                Some(from) => storage.write(&self.tensor, 2 * done, &widen(&buffer[..n], from))?,
            }
            done += n;
            report.add(n as u64)?;
        }
        Ok(())
    }
}

/// Sixteen-bit numbers as F32 bytes.
fn widen(bytes: &[u8], from: DType) -> Vec<u8> {
    let number = |b: &[u8]| {
        let bits = u16::from_le_bytes([b[0], b[1]]);
        if from == DType::BF16 {
            half::bf16::from_bits(bits).to_f32()
        } else {
            half::f16::from_bits(bits).to_f32()
        }
    };
    bytes.chunks_exact(2).flat_map(|b| number(b).to_le_bytes()).collect()
}
