//! wavelm runs GGUF language models inside your program: one crate, no C++ toolchain, no server.
//!
//! # Quickstart
//!
//! ```no_run
//! use wavelm::{Message, Model, Sampler};
//!
//! # fn main() -> wavelm::Result<()> {
//! let model = Model::load("SmolLM2-135M-Instruct.Q4_1.gguf")?;
//! let mut session = model.session()?;
//! let prompt = model.chat_prompt(&[Message::user("Name three primes.")])?;
//! for piece in session.generate(&prompt, &Sampler::default())?.max_tokens(64) {
//!     print!("{}", piece?.text()); // whole characters only; token() and logprob() are there too
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A [`Model`] is a file on a device: cheap to clone, usable from any thread. A [`Session`] is one conversation with
//! it, and a [`Sampler`] says how tokens are drawn. A conversation goes on by passing the whole of it again, a little
//! longer: the session evaluates only what it has not seen.
//!
//! # What works
//!
//! | | |
//! |---|---|
//! | Files | GGUF 2 and 3, split files, memory-mapped or read |
//! | Architectures | `llama` (Llama 2 and 3, Mistral, Yi, SmolLM, …), `qwen2`, `qwen3`, `gemma3` |
//! | Tensor types | F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K |
//! | Tokenizers | byte-level BPE and SentencePiece, from the file alone |
//! | Chat templates | the file's own (Jinja), or a built-in one where it has none |
//! | Positions | rotary embeddings of both styles, linear and YaRN scaling, frequency factors |
//! | Attention | grouped queries, sliding windows, a paged cache in F16, Q8_0 or F32 |
//! | Sampling | temperature, top-k, top-p, min-p, typical, penalties, biases, bans, seeds |
//! | Devices | CPUs (AVX-512 VNNI, AVX-VNNI, AVX2 and NEON kernels, portable code elsewhere); GPUs, with embedded kernels (never run on AMD silicon so far) |
//!
//! What a file asks for beyond this is a typed [`Error`] that names the file and the tensor or key, never a panic.
//!
//! # Threads
//!
//! A model computes on a pool of its own (physical cores by default, see [`LoadOptions::threads`]) or on the
//! [caller's](LoadOptions::pool). The thread that calls is one of those that compute: nothing runs in the background
//! while no session works. Results do not depend on the number of threads. Any number of sessions may work at a time;
//! they share the pool. [`Session::canceller`] stops a session from another thread, also in the middle of a prompt.
//!
//! # Faults
//!
//! A GPU that fails in use (a fault, no memory left, the device lost) is no error of a session: its tokens are evaluated
//! again on the CPU, and its stream goes on with the text that it would have had. [`LoadOptions::on_event`] tells of it,
//! [`Session::device`] and [`Model::device_report`] say where things run since; [`LoadOptions::rescue`] turns it off.
//!
//! # Memory
//!
//! Memory whose amount an input decides (a file, a prompt, an option, the length of a context) and that cannot be had is an
//! error of the kind [`OutOfMemory`](ErrorKind::OutOfMemory), which says what it was for and how much; sessions and models go
//! on after it. A small piece that cannot be had ends the process, as in all Rust programs. So operations begin, and larger
//! pieces are taken, only where 4 MB stay free besides. Clones of prompts, metadata and pieces are yours: nothing is asked
//! before them.
//!
//! # Environment variables
//!
//! | | |
//! |---|---|
//! | `WAVELM_THREADS` | threads where [`LoadOptions::threads`] is not called |
//! | `WAVELM_CPU` | the CPU kernels: `scalar`, `avx2`, `avxvnni`, `avx512`, `neon`, `dotprod` or `i8mm`, where the processor has them |
//! | `WAVELM_CPU_WEIGHTS` | `mapped`: weights as they lie in the file; `copied`: to another order, between the first tokens; by default the latter on x86-64 where Linux says that memory suffices. Of files in memory ([`LoadOptions::map`]) it decides the order alone |
//! | `WAVELM_HIP_LIBRARY` | the GPU driver library to load, in place of those that are looked for |
//! | `WAVELM_HSACO_DIR` | a folder of GPU kernels (`<family>.<arch>.hsaco` or `.ptx`), taken before the built-in ones |
//!
//! The library never prints; it reports through the [`log`](https://docs.rs/log) crate.

mod backend;
#[doc(hidden)]
pub mod bench_internals;
pub mod chat;
mod device;
mod error;
pub mod gguf;
mod memory;
mod model;
mod program;
pub mod quant;
pub mod sampler;
mod session;
mod simd;
pub mod tokenizer;

pub use backend::Canceller;
pub use backend::kv_type::KvType;
pub use backend::profile::KernelTime;
pub use chat::Message;
pub use device::{Device, DeviceInfo, DeviceReport, GpuInfo, devices, why_no_gpu};
pub use error::{Error, ErrorKind, Result};
pub use model::{Event, LoadOptions, MemoryEstimate, Model, Placement, Progress, probe_child_entry};
pub use program::Precision;
pub use sampler::Sampler;
pub use session::{ContextPolicy, Generation, Piece, Prompt, Session, SessionOptions, Stats, StopReason, next_of_each};
