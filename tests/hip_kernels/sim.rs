//! Launches the GPU kernels that are built for the host, with the simulator.

use crate::simulator;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::sync::OnceLock;

/// The kernels, built for one wave size.
pub struct Sim {
    pub wave: u32,
    library: libloading::Library,
}

/// The simulators of both wave sizes; none, with the reason printed, where there is no C++ compiler.
pub fn sims() -> &'static [Sim] {
    static SIMS: OnceLock<Vec<Sim>> = OnceLock::new();
    SIMS.get_or_init(|| simulator::libraries().iter().map(|(wave, path)| open(*wave, path)).collect())
}

fn open(wave: u32, path: &Path) -> Sim {
    // SAFETY: the library was just built from this repository's sources; its constructors only fill a table.
    let library = unsafe { libloading::Library::new(path) }.unwrap();
    // SAFETY: the signature is that of the simulator's function.
    let built = unsafe { library.get::<extern "C" fn() -> u32>(b"wavelm_sim_wave").unwrap()() };
    assert_eq!(built, wave);
    Sim { wave, library }
}

/// An argument of a kernel.
pub enum Arg<'a> {
    Buffer(&'a Buffer),
    Null,
    U32(u32),
    U64(u64),
    F32(f32),
}

impl<'a> From<&'a Buffer> for Arg<'a> {
    fn from(buffer: &'a Buffer) -> Self {
        Self::Buffer(buffer)
    }
}

impl<'a> From<Option<&'a Buffer>> for Arg<'a> {
    fn from(buffer: Option<&'a Buffer>) -> Self {
        buffer.map_or(Self::Null, Self::Buffer)
    }
}

impl From<usize> for Arg<'_> {
    fn from(value: usize) -> Self {
        Self::U32(u32::try_from(value).unwrap())
    }
}

impl From<u64> for Arg<'_> {
    fn from(value: u64) -> Self {
        Self::U64(value)
    }
}

impl From<f32> for Arg<'_> {
    fn from(value: f32) -> Self {
        Self::F32(value)
    }
}

/// `args![a, b, …]`: anything that is an [`Arg`].
#[macro_export]
macro_rules! args {
    ($($arg:expr),* $(,)?) => { &[$($crate::sim::Arg::from($arg)),*] };
}

impl Sim {
    /// All kernels, by name.
    pub fn kernels(&self) -> Vec<String> {
        // SAFETY: the signature is that of the simulator's function.
        let kernel = unsafe { self.library.get::<extern "C" fn(u32) -> *const c_char>(b"wavelm_sim_kernel").unwrap() };
        let names = (0..).map(|i| kernel(i)).take_while(|name| !name.is_null());
        // SAFETY: names are strings that live as long as the library.
        names.map(|name| unsafe { CStr::from_ptr(name) }.to_str().unwrap().to_owned()).collect()
    }

    /// Threads in a block of a kernel.
    pub fn threads(&self, kernel: &str) -> u32 {
        let name = CString::new(kernel).unwrap();
        // SAFETY: the signature is that of the simulator's function.
        let threads =
            unsafe { self.library.get::<extern "C" fn(*const c_char) -> u32>(b"wavelm_sim_threads").unwrap() };
        threads(name.as_ptr())
    }

    /// Runs `body` with matrix cores that take subnormal halves for zero, as those of gfx90a do.
    pub fn flushing<T>(&self, body: impl FnOnce() -> T) -> T {
        // SAFETY: the signature is that of the simulator's function.
        let flush = unsafe { self.library.get::<extern "C" fn(c_int)>(b"wavelm_sim_flush").unwrap() };
        flush(1);
        let result = body();
        flush(0);
        result
    }

    /// Runs a kernel.
    ///
    /// # Panics
    /// Where the launch fails, or something was written outside of a buffer.
    pub fn launch(&self, kernel: &str, grid: [usize; 3], args: &[Arg<'_>]) {
        let result = self.try_launch(kernel, grid, args);
        assert!(result.is_ok(), "wave {}: {}", self.wave, result.unwrap_err());
    }

    /// Runs a kernel; the simulator's message where that fails.
    pub fn try_launch(&self, kernel: &str, grid: [usize; 3], args: &[Arg<'_>]) -> Result<(), String> {
        type Launch =
            unsafe extern "C" fn(*const c_char, u32, u32, u32, u32, *mut *mut c_void, u32, *mut c_char, usize) -> c_int;
        let values: Vec<u64> = args
            .iter()
            .map(|arg| match arg {
                Arg::Buffer(buffer) => buffer.start() as u64,
                Arg::Null => 0,
                Arg::U32(value) => u64::from(*value),
                Arg::U64(value) => *value,
                Arg::F32(value) => u64::from(value.to_bits()),
            })
            .collect();
        let mut pointers: Vec<*mut c_void> = values.iter().map(|v| std::ptr::from_ref(v).cast_mut().cast()).collect();
        let [x, y, z] = grid.map(|n| u32::try_from(n).unwrap());
        let name = CString::new(kernel).unwrap();
        let mut message = vec![0_u8; 500];
        // SAFETY: the signature is that of the simulator's function. The arguments are those of the kernel, as far as
        // the simulator can check, and buffers have guards on both sides.
        let code = unsafe {
            let launch = self.library.get::<Launch>(b"wavelm_sim_launch").unwrap();
            let (threads, count) = (self.threads(kernel), args.len() as u32);
            launch(
                name.as_ptr(),
                x,
                y,
                z,
                threads,
                pointers.as_mut_ptr(),
                count,
                message.as_mut_ptr().cast(),
                message.len(),
            )
        };
        for (i, arg) in args.iter().enumerate() {
            if let Arg::Buffer(buffer) = arg {
                assert!(buffer.is_intact(), "wave {}: {kernel} wrote outside of its argument {i}", self.wave);
            }
        }
        let message = CStr::from_bytes_until_nul(&message).unwrap().to_str().unwrap();
        if code == 0 { Ok(()) } else { Err(message.to_owned()) }
    }
}

/// Device memory: its start is a multiple of 256 bytes, and guards on both sides show what is written outside.
pub struct Buffer {
    memory: *mut [Line],
    bytes: usize,
}

#[repr(C, align(256))]
#[derive(Clone, Copy)]
struct Line([u8; 256]);

const GUARD: u8 = 0xa5;

impl Buffer {
    /// Memory that holds these values.
    pub fn new<T: bytemuck::NoUninit>(values: &[T]) -> Self {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let lines = vec![Line([GUARD; 256]); bytes.len().div_ceil(256) + 2];
        let buffer = Self { memory: Box::into_raw(lines.into_boxed_slice()), bytes: bytes.len() };
        // SAFETY: the memory has the length of the values between the guards.
        unsafe { buffer.start().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
        buffer
    }

    /// Memory for `len` values that has to be written before it is read: numbers in it are not plausible.
    pub fn unset<T>(len: usize) -> Self {
        Self::new(&vec![0x7f_u8; len * size_of::<T>()])
    }

    fn start(&self) -> *mut u8 {
        self.memory.cast::<u8>().wrapping_add(256)
    }

    /// What it holds.
    pub fn read<T: bytemuck::AnyBitPattern>(&self) -> Vec<T> {
        // SAFETY: the memory has this length, and nothing writes to it now.
        let bytes = unsafe { std::slice::from_raw_parts(self.start(), self.bytes) };
        bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
    }

    fn is_intact(&self) -> bool {
        // SAFETY: the memory is a whole number of lines, and nothing writes to it now.
        let all = unsafe { std::slice::from_raw_parts(self.memory.cast::<u8>(), self.memory.len() * 256) };
        all[..256].iter().chain(&all[256 + self.bytes..]).all(|&byte| byte == GUARD)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: made by `into_raw` in `new`, and not freed since.
        drop(unsafe { Box::from_raw(self.memory) });
    }
}
