//! Which layers of a model run on which device.

use crate::backend::hip::Tell;
use crate::backend::segments::{self, Segments};
use crate::backend::{Backend, cpu, hip};
use crate::device::Device;
use crate::gguf::Gguf;
use crate::program::{Cut, Program};
use crate::{Error, ErrorKind, Result, memory};
use std::sync::Arc;

/// Which layers of a model run on which device.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Placement {
    /// All layers on the first GPU, if they fit in its memory together with the cache of a session
    /// and the buffers of a pass. Otherwise it runs as many of the first layers as fit, the next GPU
    /// as many of the others, and the CPU the rest. [`Device::Hip`] allows only that GPU,
    /// [`Device::Auto`] all that are usable, the fastest first.
    #[default]
    Automatic,
    /// The first N layers on the GPU; the CPU runs the others. A number equal to the model's or
    /// larger places the whole model, with the output matrix. A placement that does not fit is an
    /// error of the kind [`OutOfMemory`](ErrorKind::OutOfMemory).
    Layers(usize),
    /// These devices in order, each with a number of layers; the CPU runs those that are left. A
    /// placement that does not fit is an error of the kind
    /// [`OutOfMemory`](ErrorKind::OutOfMemory). The model's [device](crate::LoadOptions::device)
    /// is then the first GPU of the list.
    ///
    /// ```no_run
    /// # fn main() -> wavelm::Result<()> {
    /// use wavelm::{Device, Model, Placement};
    /// let devices = vec![(Device::hip(0), 24), (Device::hip(1), 24)];
    /// let model = Model::options().placement(Placement::Devices(devices)).load("model.gguf")?;
    /// # Ok(())
    /// # }
    /// ```
    Devices(Vec<(Device, usize)>),
}

impl Placement {
    /// The device to search for, where the placement decides it.
    pub(super) fn device(&self, asked: Device) -> Device {
        match self {
            Placement::Automatic => asked,
            Placement::Layers(0) => Device::Cpu,
            Placement::Layers(_) => asked,
            Placement::Devices(list) => {
                let gpu = list.iter().find(|(device, layers)| matches!(device, Device::Hip(_)) && *layers > 0);
                gpu.map_or(Device::Cpu, |(device, _)| *device)
            }
        }
    }

    /// # Errors
    /// `InvalidInput` for a list that names no device, or one that cannot be placed on.
    pub(super) fn check(&self) -> Result<()> {
        let Placement::Devices(list) = self else { return Ok(()) };
        if list.iter().any(|(device, _)| *device == Device::Auto) {
            return Err(Error::invalid_input("a placement names each device: auto is none; use cpu or hip:N"));
        }
        if list.iter().all(|(_, layers)| *layers == 0) {
            return Err(Error::invalid_input("a placement without layers was asked for; give a device some"));
        }
        Ok(())
    }
}

/// A model to place.
pub(super) struct Load<'a> {
    pub(super) gguf: &'a Arc<Gguf>,
    pub(super) program: &'a Arc<Program>,
    /// Options for the first GPU.
    pub(super) hip: hip::HipOptions,
    /// Further GPUs that an automatic placement may use.
    pub(super) others: Vec<usize>,
    pub(super) cpu: cpu::CpuOptions,
    /// The context to leave room for.
    pub(super) context: usize,
}

/// A backend, and the text that says how much of the model each device runs and why; none if one
/// device runs all of it.
type Placed = (Arc<dyn Backend>, Option<String>);

impl Load<'_> {
    /// Loads the model. `tell` hears how many bytes of weights are on GPUs.
    ///
    /// # Errors
    /// `OutOfMemory` where not even one layer fits, or not the requested number; otherwise the
    /// backends' errors.
    pub(super) fn place(&self, placement: &Placement, tell: &mut Tell<'_>) -> Result<Placed> {
        let gpu = Device::Hip(self.hip.gpu);
        match placement {
            Placement::Layers(n) => self.segments(&[(gpu, *n)], "as the caller asked", tell),
            Placement::Devices(list) => self.segments(list, "as the caller asked", tell),
            Placement::Automatic => self.fit(tell),
        }
    }

    /// Places so many layers on each device in turn, and the rest on the CPU.
    fn segments(&self, list: &[(Device, usize)], why: &str, tell: &mut Tell<'_>) -> Result<Placed> {
        let layers = self.program.states.len();
        let cuts = self.program.layer_cuts()?;
        let (mut placed, mut between, mut devices) = (0, Vec::new(), Vec::new());
        let rest = (Device::Cpu, usize::MAX);
        for (device, count) in list.iter().copied().chain([rest]) {
            let count = count.min(layers - placed);
            if count == 0 {
                continue;
            }
            if placed > 0 {
                memory::push(&mut between, cut_before(&cuts, placed)?, "the cuts of a model")?;
            }
            memory::push(&mut devices, (device, count), "the devices of a model")?;
            placed += count;
        }
        if let [(device, _)] = devices[..] {
            let mut parts = self.open(vec![(device, Program::clone(self.program))], tell)?;
            let only = parts.pop().ok_or_else(|| Error::invalid_input("a model without layers cannot be placed"))?;
            return Ok((Arc::from(only), None));
        }
        let parts = segments::parts(self.program, &between)?;
        let parts = memory::collected(devices.iter().map(|(device, _)| *device).zip(parts), "the parts of a model")?;
        let backends = self.open(parts, tell)?;
        Ok((Arc::new(Segments::new(backends)?), Some(self.text(&devices, why))))
    }

    /// Loads each part on its device.
    fn open(&self, parts: Vec<(Device, Program)>, tell: &mut Tell<'_>) -> Result<Vec<Box<dyn Backend>>> {
        let bytes = |program: &Program| program.weights.iter().map(|w| w.tensor.size()).sum::<u64>();
        let on_gpus = || parts.iter().filter(|(device, _)| *device != Device::Cpu);
        let (all, gpus) = (on_gpus().map(|(_, program)| bytes(program)).sum::<u64>(), on_gpus().count());
        let mut backends: Vec<Box<dyn Backend>> = memory::with_room(parts.len(), "the parts of a model")?;
        let mut before = 0;
        for (device, program) in parts {
            let (size, program) = (bytes(&program), Arc::new(program));
            let Device::Hip(gpu) = device else {
                backends.push(Box::new(cpu::CpuBackend::new(Arc::clone(self.gguf), program, self.cpu.clone())?));
                continue;
            };
            // One GPU counts the bytes that it needs; several count in parts of the file.
            let mut tell_part = |done: u64, total: u64| match gpus {
                1 => tell(done, total),
                _ => tell(before + (done as f64 / total.max(1) as f64 * size as f64) as u64, all),
            };
            let options = hip::HipOptions { gpu, ..self.hip.clone() };
            backends.push(Box::new(hip::HipBackend::new(self.gguf, &program, &options, &mut tell_part)?));
            before += size;
        }
        Ok(backends)
    }

    fn text(&self, devices: &[(Device, usize)], why: &str) -> String {
        let all = self.program.states.len();
        match devices {
            [(Device::Hip(_), layers), (Device::Cpu, _)] => {
                format!("the first {layers} of {all} layers, the others on the CPU, {why}")
            }
            _ => {
                let plural = |n: usize| if n == 1 { "" } else { "s" };
                let each = devices.iter().map(|(device, n)| format!("{n} layer{} on {device}", plural(*n)));
                format!("{} of {all}, {why}", each.collect::<Vec<_>>().join(", "))
            }
        }
    }

    /// Places as many layers as fit on each GPU in turn. Starts from the memory that is free now,
    /// and tries one layer fewer at a time if a device has less after all.
    fn fit(&self, tell: &mut Tell<'_>) -> Result<Placed> {
        // Leaves room for code and for the driver's own memory.
        let usable = |free: u64| free - free / 32;
        let layers = self.program.states.len();
        let cuts = self.program.layer_cuts()?;
        let free = hip::free_memory(self.hip.gpu)?;
        let all = self.needed(self.hip.gpu, Program::clone(self.program))?;
        if all <= usable(free) {
            match self.segments(&[(Device::Hip(self.hip.gpu), layers)], "", tell) {
                Err(e) if e.kind() == ErrorKind::OutOfMemory => log::info!("hip:{}: {e}", self.hip.gpu),
                placed => return placed,
            }
        }
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let why = format!("because all of it needs {} MiB and {} MiB are free", mib(all), free >> 20);
        let mut least = all;
        for n in (1..layers).rev() {
            let Ok(cut) = cut_before(&cuts, n) else { continue };
            let Some(front) = segments::parts(self.program, &[cut])?.into_iter().next() else { continue };
            least = self.needed(self.hip.gpu, front)?;
            if least > usable(free) {
                continue;
            }
            let mut list = vec![(Device::Hip(self.hip.gpu), n)];
            let mut placed = n;
            for &gpu in &self.others {
                let room = hip::free_memory(gpu).map_or(0, usable);
                let count = self.most_layers(&cuts, placed, gpu, room)?;
                list.push((Device::Hip(gpu), count));
                placed += count;
            }
            match self.segments(&list, &why, tell) {
                Err(e) if e.kind() == ErrorKind::OutOfMemory => log::info!("hip:{}: {e}", self.hip.gpu),
                placed => return placed,
            }
        }
        Err(Error::new(
            ErrorKind::OutOfMemory,
            format!(
                "one layer with its buffers and cache needs {} MiB, which do not fit the memory of which {} MiB are free",
                mib(least),
                free >> 20
            ),
        ))
    }

    /// How many layers from `first` on fit a GPU with `room` bytes.
    fn most_layers(&self, cuts: &[Option<Cut>], first: usize, gpu: usize, room: u64) -> Result<usize> {
        let layers = self.program.states.len();
        for count in (1..=layers - first).rev() {
            let mut between = vec![cut_before(cuts, first)?];
            if first + count < layers {
                let Ok(end) = cut_before(cuts, first + count) else { continue };
                between.push(end);
            }
            let Some(part) = segments::parts(self.program, &between)?.into_iter().nth(1) else { continue };
            // A GPU that cannot be asked is left out.
            if self.needed(gpu, part).is_ok_and(|needed| needed <= room) {
                return Ok(count);
            }
        }
        Ok(0)
    }

    /// Bytes that a part of the program takes on a GPU.
    fn needed(&self, gpu: usize, program: Program) -> Result<u64> {
        hip::bytes(&hip::HipOptions { gpu, ..self.hip.clone() }, &Arc::new(program), self.context)
    }
}

/// The place to cut before a layer.
fn cut_before(cuts: &[Option<Cut>], layer: usize) -> Result<Cut> {
    cuts.get(layer).copied().flatten().ok_or_else(|| {
        Error::unsupported(format!("this model cannot be cut before layer {layer}; place all of it on one device"))
    })
}
