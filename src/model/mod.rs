//! [`Model`]: a GGUF file, ready to run.

mod arch;
mod config;
mod options;
mod placement;
mod probe;
mod rescue;

pub use options::{LoadOptions, MemoryEstimate, Progress};
pub use placement::Placement;
pub use probe::probe_child_entry;
pub use rescue::Event;

use crate::backend::{Backend, KernelTime, cpu};
use crate::chat::ChatTemplate;
use crate::device::{Device, DeviceReport};
use crate::gguf::Gguf;
use crate::program::Program;
use crate::tokenizer::Tokenizer;
use crate::{Error, KvType, Result};
use config::Config;
use rescue::Rescue;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// A loaded model: weights, tokenizer, chat template and the device that runs it.
///
/// Cloning is cheap (the clones share everything), and any number of threads may use a model. A
/// [`Session`](crate::Session) holds the state of one conversation.
#[derive(Clone)]
pub struct Model(Arc<Inner>);

struct Inner {
    /// Without the tensors' data.
    gguf: Gguf,
    config: Config,
    program: Arc<Program>,
    tokenizer: Tokenizer,
    template: Result<ChatTemplate, Arc<Error>>,
    backend: Arc<dyn Backend>,
    report: DeviceReport,
    rescue: Option<Rescue>,
    context: usize,
    kv_type: KvType,
}

impl Model {
    /// Loads a model with the default [options](Self::options): the best usable device, the context length that the
    /// model was trained for.
    /// # Errors
    /// The error says what is wrong with the file, or why it cannot run.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Self::options().load(path)
    }

    /// Options for loading: device, threads, context length, cache type, progress, …
    pub fn options() -> LoadOptions {
        LoadOptions::new()
    }

    fn load_with(options: &mut LoadOptions, gguf: Gguf) -> Result<Self> {
        let path = gguf.path().to_path_buf();
        Self::build(options, gguf).map_err(|e| if path.as_os_str().is_empty() { e } else { e.in_file(&path) })
    }

    fn build(options: &mut LoadOptions, gguf: Gguf) -> Result<Self> {
        let config = Config::read(&gguf)?;
        let program = Arc::new(arch::program(&gguf, &config)?);
        let tokenizer = Tokenizer::from_metadata(gguf.metadata())?;
        if tokenizer.vocab_len() > config.vocab {
            return Err(Error::invalid_file(format!(
                "the tokenizer has {} tokens, but tensor token_embd.weight only {} rows",
                tokenizer.vocab_len(),
                config.vocab
            )));
        }
        let template = ChatTemplate::from_metadata(gguf.metadata()).map_err(Arc::new);
        if let Err(e) = &template {
            log::warn!("{}: the chat template is unusable: {e}", gguf.path().display());
        }
        let context = options.context.unwrap_or(config.context);
        // The backend owns the data, and gives it back when it is not needed any more.
        let (gguf, data) = (gguf.without_data(), gguf);
        let (backend, report, rescue) = options.open_backend(data, &program, &config)?;
        log::info!("{}: {}, {}", gguf.path().display(), config.arch, backend.describe());
        let kv_type = options.effective_kv_type();
        let inner = Inner { gguf, config, program, tokenizer, template, backend, report, rescue, context, kv_type };
        Ok(Self(Arc::new(inner)))
    }

    /// The tokenizer of the file.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.0.tokenizer
    }

    /// The chat template of the file, or the built-in one for its kind where it has none.
    ///
    /// # Errors
    /// `Template` where the file's template is broken.
    pub fn chat_template(&self) -> Result<&ChatTemplate> {
        self.0.template.as_ref().map_err(|e| Error::new(e.kind(), e.to_string()).with_source(Arc::clone(e)))
    }

    /// The longest context that a session of this model may have, in tokens.
    pub fn context_len(&self) -> usize {
        self.0.context
    }

    /// The context length that the model was trained for, in tokens.
    pub fn trained_context_len(&self) -> usize {
        self.0.config.context
    }

    /// Tokens in the vocabulary: the length of a row of logits.
    pub fn vocab_len(&self) -> usize {
        self.0.config.vocab
    }

    /// The architecture, as the file names it: `llama`, `qwen2`, …
    pub fn architecture(&self) -> &str {
        &self.0.config.arch
    }

    /// The name that the file gives the model.
    pub fn name(&self) -> Option<&str> {
        self.0.gguf.metadata().str("general.name").ok().flatten()
    }

    /// The file: metadata and the list of tensors. Their [data](Gguf::data) is not there: the
    /// backend has it, in the form that it needs. To get the data, open the file again.
    pub fn gguf(&self) -> &Gguf {
        &self.0.gguf
    }

    /// Which device runs the model, and why others do not. If that device fails in use, the CPU
    /// takes over, and the report says so.
    pub fn device_report(&self) -> &DeviceReport {
        self.0.rescue.as_ref().and_then(Rescue::report).unwrap_or(&self.0.report)
    }

    /// The device that runs the model; see also [`Session::device`](crate::Session::device).
    pub fn device(&self) -> Device {
        self.device_report().device()
    }

    /// How many threads compute, the calling one included.
    pub fn threads(&self) -> usize {
        self.backend().threads()
    }

    /// The forward pass as text, one operation per line: for debugging models.
    pub fn program(&self) -> impl fmt::Display + '_ {
        &*self.0.program
    }

    /// Bytes of weights that are read to generate one token: the measure of decoding speed.
    pub fn bytes_per_token(&self) -> u64 {
        self.0.program.bytes_per_token()
    }

    /// Bytes of cached keys and values that are read to generate one token after `depth` others.
    /// Together with [`bytes_per_token`](Self::bytes_per_token), this measures decoding speed in
    /// long contexts.
    pub fn kv_bytes_per_token(&self, depth: usize) -> u64 {
        cpu::kv_bytes_read(&self.0.program, self.0.kv_type, depth)
    }

    /// Runs `work` while the GPU times each kernel that it runs for this model. Returns how long
    /// each kernel took, the longest first.
    ///
    /// The profile counts the passes of all sessions of the model, on any thread, including the
    /// draws of tokens. They compute the same as always, but a little slower, because kernels are
    /// launched one by one. If the GPU runs only a part of the model, only that part is timed.
    ///
    /// ```no_run
    /// # fn main() -> wavelm::Result<()> {
    /// let model = wavelm::Model::load("model.gguf")?;
    /// let mut session = model.session()?;
    /// let (fed, kernels) = model.profile(|| session.feed(&model.prompt("Once upon a time")?))?;
    /// fed?;
    /// for kernel in kernels {
    ///     println!("{:24} {:5} launches, {:?}", kernel.kernel, kernel.launches, kernel.time);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Before `work` runs: `Unsupported` where the CPU runs the model, `InvalidInput` where a
    /// profile of it runs already, `Device` where the driver cannot measure times.
    pub fn profile<T>(&self, work: impl FnOnce() -> T) -> Result<(T, Vec<KernelTime>)> {
        /// Ends the profile, even if `work` panics.
        struct Profile(Option<Arc<dyn Backend>>);
        impl Profile {
            fn end(&mut self) -> Vec<KernelTime> {
                self.0.take().map_or_else(Vec::new, |backend| backend.end_profile())
            }
        }
        impl Drop for Profile {
            fn drop(&mut self) {
                self.end();
            }
        }
        let backend = Arc::clone(self.backend());
        backend.start_profile()?;
        let mut profile = Profile(Some(backend));
        let done = work();
        Ok((done, profile.end()))
    }

    /// The backend of new sessions.
    pub(crate) fn backend(&self) -> &Arc<dyn Backend> {
        self.0.rescue.as_ref().and_then(Rescue::backend).unwrap_or(&self.0.backend)
    }

    /// The backend to move to for a session whose device was given up meanwhile.
    pub(crate) fn follow(&self) -> Option<Arc<dyn Backend>> {
        self.0.rescue.as_ref()?.follow(self.0.report.device())
    }

    /// The backend to move to for a session of the model's first device after `error`; `None` where
    /// it stays.
    pub(crate) fn rescue(&self, error: &Error) -> Option<Arc<dyn Backend>> {
        self.0.rescue.as_ref()?.rescue(&self.0.program, &self.0.report, error)
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("path", &self.0.gguf.path())
            .field("architecture", &self.0.config.arch)
            .field("context_len", &self.0.context)
            .field("device", &self.device())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
