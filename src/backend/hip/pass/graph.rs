//! Captured passes: passes of the same shape pay the host's cost of hundreds of launches only once.

use super::inputs::Inputs;
use crate::backend::hip::device::Device;
use crate::backend::hip::driver::{DevicePtr, Handle};
use crate::backend::hip::memory::pool::GroupPages;
use crate::backend::hip::memory::{Sent, Stream, end};
use crate::{Error, ErrorKind, Result};
use std::collections::HashMap;
use std::sync::Arc;

/// `off` turns graphs off: for comparisons, and for drivers whose graphs are broken.
const VARIABLE: &str = "WAVELM_HIP_GRAPHS";

/// The most graphs to keep. A session needs a new one each time its page table doubles.
const MOST: usize = 32;

/// Everything that a pass's launches depend on, except data that kernels read from memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    tokens: usize,
    outputs: usize,
    /// The address of each input. It follows from the number of sequences and the length of their
    /// tables.
    addresses: Vec<DevicePtr>,
    table_len: usize,
    pages: usize,
    single: bool,
    /// Where the pages of each group lie.
    pools: Vec<DevicePtr>,
    logits: DevicePtr,
}

impl Key {
    /// The key of a pass that may come again, a decode pass; `None` for others.
    pub(crate) fn new(inputs: &Inputs, pages: &[GroupPages], logits: DevicePtr) -> Option<Self> {
        inputs.decodes().then(|| Self {
            tokens: inputs.tokens,
            outputs: inputs.outputs,
            addresses: inputs.addresses(),
            table_len: inputs.table_len,
            pages: inputs.pages,
            single: inputs.single,
            pools: pages.iter().map(GroupPages::start).collect(),
            logits,
        })
    }
}

/// The graphs of an executor.
pub(crate) struct Graphs {
    device: Arc<Device>,
    kept: HashMap<Key, Graph>,
    on: bool,
}

impl Graphs {
    pub(crate) fn new(device: &Arc<Device>) -> Self {
        let on = std::env::var_os(VARIABLE).is_none_or(|v| v != "off");
        Self { device: Arc::clone(device), kept: HashMap::new(), on }
    }

    /// Whether passes are captured.
    pub(crate) fn are_on(&self) -> bool {
        self.on && self.device.has_graphs()
    }

    pub(crate) fn turn_off(&mut self) {
        self.on = false;
        self.kept.clear();
    }

    pub(crate) fn find(&self, key: &Key) -> Option<&Graph> {
        self.kept.get(key)
    }

    pub(crate) fn keep(&mut self, key: Key, graph: Graph) {
        // We do not track which graphs are stale; making all of them anew costs milliseconds.
        if self.kept.len() >= MOST {
            self.kept.clear();
        }
        self.kept.insert(key, graph);
    }

    /// Records the work that `launch` queues on the stream, without running it.
    ///
    /// # Errors
    /// Errors of `launch` and of the driver. Nothing is queued then.
    pub(crate) fn capture(&self, stream: &Stream, launch: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let graphs = self.device.driver()?.graphs();
        let graphs = graphs.ok_or_else(|| Error::new(ErrorKind::Device, "the driver has no graphs"))?;
        // SAFETY: the stream exists, and this thread ends the capture below in any case.
        unsafe { graphs.begin_capture(stream.handle()) }?;
        let launched = launch();
        // SAFETY: the capture began above.
        let graph = unsafe { graphs.end_capture(stream.handle()) };
        let graph = match (launched, graph) {
            (Ok(()), graph) => graph?,
            (Err(e), graph) => {
                if let Ok(graph) = graph {
                    // SAFETY: nobody else has it.
                    unsafe { graphs.destroy(graph) }?;
                }
                return Err(e);
            }
        };
        // SAFETY: the graph was just made.
        let made = unsafe { graphs.instantiate(graph) };
        // SAFETY: the executable graph does not need the captured one any more.
        if let Err(e) = unsafe { graphs.destroy(graph) } {
            log::warn!("{e}");
        }
        Ok(Graph { device: Arc::clone(&self.device), executable: made? })
    }
}

/// A captured pass that is ready to run.
pub(crate) struct Graph {
    device: Arc<Device>,
    executable: Handle,
}

// SAFETY: the handle is only a name, and any thread may use it.
unsafe impl Send for Graph {}

impl Graph {
    /// Queues all of its launches.
    pub(crate) fn launch(&self, stream: &Stream) -> Result<()> {
        let graphs = self.device.driver()?.graphs();
        let graphs = graphs.ok_or_else(|| Error::new(ErrorKind::Device, "the driver has no graphs"))?;
        // SAFETY: both exist. The launches use memory whose addresses are in the graph's key, or
        // that lives as long as the executor, which owns the graph.
        unsafe { graphs.launch(self.executable, stream.handle()) }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let executable = Sent::new(self.executable);
        end(&self.device, "ending a graph", move |driver| match driver.graphs() {
            // SAFETY: it is destroyed only here. Each pass is waited for, so it does not run.
            Some(graphs) => unsafe { graphs.destroy_executable(executable.get()) },
            None => Ok(()),
        });
    }
}
