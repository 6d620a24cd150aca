//! Compiles the kernels at run time: the last resort for an AMD GPU for which the library has no
//! code.
//!
//! The compiler is hipRTC, which comes with ROCm 6 and later. It is searched for like the driver;
//! `WAVELM_HIPRTC_LIBRARY` names another library. Older versions are not searched for, because
//! hipRTC of ROCm 5.2 aborts the process when it does not know a processor. NVIDIA's NVRTC is not
//! clang, whose vector types and builtins the kernels use. It is not needed either, because drivers
//! compile the embedded PTX.
//!
//! Compiled kernels are kept in the user's cache folder ([`CodeCache`]).

use super::code_cache::{CodeCache, Recipe};
use crate::backend::hip::driver::places::{self, Names};
use crate::backend::hip::driver::{Handle, Status, innermost, table};
use libloading::Library;
use std::collections::HashMap;
use std::env;
use std::ffi::{CString, c_char, c_int};
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

/// Names the one compiler library to load, in place of all others.
const LIBRARY_VARIABLE: &str = "WAVELM_HIPRTC_LIBRARY";

// FAMILIES and HEADERS: names and texts of the sources. FLAGS: those of hip/targets for hipRTC.
include!(concat!(env!("OUT_DIR"), "/hip_sources.rs"));

table! {
    /// The functions of hipRTC.
    Functions {
        create(*mut Handle, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char)
            = "hiprtcCreateProgram";
        compile(Handle, c_int, *const *const c_char) = "hiprtcCompileProgram";
        log_size(Handle, *mut usize) = "hiprtcGetProgramLogSize";
        log(Handle, *mut c_char) = "hiprtcGetProgramLog";
        code_size(Handle, *mut usize) = "hiprtcGetCodeSize";
        code(Handle, *mut c_char) = "hiprtcGetCode";
        destroy(*mut Handle) = "hiprtcDestroyProgram";
    }
}

struct Compiler {
    functions: Functions,
    /// How the library was found.
    name: String,
    /// The compiler's version, or why it cannot compile, for each architecture that was asked for.
    /// The lock is held while compiling, because no library promises to do two things at once.
    versions: Mutex<HashMap<String, Result<String, String>>>,
    /// Never unloaded, like the driver.
    _library: std::mem::ManuallyDrop<Library>,
}

/// The compiler of this machine, loaded at the first call, or why there is none.
fn compiler() -> Result<&'static Compiler, String> {
    static COMPILER: OnceLock<Result<Compiler, String>> = OnceLock::new();
    let found = COMPILER.get_or_init(|| {
        let candidates = match env::var_os(LIBRARY_VARIABLE).filter(|v| !v.is_empty()) {
            Some(path) => vec![path.into()],
            None => {
                let windows = (6..=8).rev().flat_map(|v| (0..6).rev().map(move |m| format!("hiprtc0{v}0{m}.dll")));
                let windows: Vec<String> = windows.collect();
                places::candidates(&Names { unix: "libhiprtc.so", oldest: 6, plain: false, windows: &windows })
            }
        };
        let mut reasons = Vec::new();
        for path in &candidates {
            match Compiler::load(path) {
                Ok(compiler) => return Ok(compiler),
                Err(reason) => {
                    log::debug!("{}: {reason}", path.display());
                    reasons.push(reason);
                }
            }
        }
        let names: Vec<String> = candidates.iter().map(|path| path.display().to_string()).collect();
        Err(match reasons.as_slice() {
            [reason] => format!("hipRTC cannot be loaded: {reason}"),
            _ => format!("hipRTC was not found to compile them (tried {})", names.join(", ")),
        })
    });
    found.as_ref().map_err(Clone::clone)
}

/// An architecture that the compiler of this machine knows.
pub(crate) struct Target {
    compiler: &'static Compiler,
    arch: String,
    /// The compiler's own version text.
    version: String,
}

impl Target {
    /// # Errors
    /// The reason why nothing can be compiled for `arch`.
    pub(crate) fn new(arch: &str) -> Result<Self, String> {
        // The name becomes part of a file's name.
        if !arch.starts_with("gfx") || !arch.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err("only those for AMD GPUs can be compiled when a program runs".to_owned());
        }
        let compiler = compiler()?;
        let mut versions = compiler.versions.lock().unwrap_or_else(PoisonError::into_inner);
        let version = versions.entry(arch.to_owned()).or_insert_with(|| compiler.version(arch)).clone()?;
        Ok(Self { compiler, arch: arch.to_owned(), version })
    }

    /// The origin, for people.
    pub(crate) fn origin(&self) -> String {
        format!("compiled by {} (clang {})", self.compiler.name, self.version)
    }

    /// The code of a family: from the cache, or compiled and then cached.
    pub(crate) fn object(&self, family: &str) -> Result<Vec<u8>, String> {
        let unknown = || format!("there is no source of {family} kernels");
        let (_, source) = FAMILIES.iter().find(|(name, _)| *name == family).ok_or_else(unknown)?;
        let sources = HEADERS.iter().map(|(_, text)| *text).chain([*source]);
        let made_by = [self.version.as_str(), &self.compiler.name, &self.arch];
        let recipe = Recipe::new(
            &format!("{family}.{}", self.arch),
            made_by.into_iter().chain(FLAGS.iter().copied()).chain(sources),
        );
        let cache = CodeCache::open();
        if let Some(code) = cache.as_ref().ok().and_then(|cache| cache.get(&recipe)) {
            return Ok(code);
        }
        let _one_at_a_time = self.compiler.versions.lock().unwrap_or_else(PoisonError::into_inner);
        log::info!("compiling the {family} kernels for {} by {}", self.arch, self.compiler.name);
        let (code, _) = self.compiler.compile(family, source, HEADERS, &self.arch)?;
        if let Err(e) = cache.and_then(|cache| cache.put(&recipe, &code).map_err(|e| e.to_string())) {
            log::warn!("compiled kernels are not kept for the next time: {e}");
        }
        Ok(code)
    }
}

impl Compiler {
    fn load(path: &Path) -> Result<Self, String> {
        // SAFETY: loading runs the library's constructors. The names are those of AMD's libraries,
        // or the user of the program asks for the library with an environment variable.
        let library = unsafe { Library::new(path) }.map_err(|e| innermost(&e))?;
        Ok(Self {
            functions: Functions::find(&library).map_err(|e| format!("{}: {e}", path.display()))?,
            name: path.display().to_string(),
            versions: Mutex::default(),
            _library: std::mem::ManuallyDrop::new(library),
        })
    }

    /// The compiler's version, taken from a message that it prints while it compiles an empty
    /// kernel, because hipRTC's own version numbers do not change with the compiler. Fails if it
    /// does not know the architecture.
    fn version(&self, arch: &str) -> Result<String, String> {
        const MARK: &str = "compiler: ";
        let source = format!(
            "#pragma message(\"{MARK}\" __clang_version__)\nextern \"C\" __attribute__((global)) void nothing() {{}}\n"
        );
        let (_, log) = self.compile("nothing", &source, &[], arch)?;
        let version = log.lines().find_map(|line| line.split_once(MARK)?.1.split(['[', '(']).next());
        Ok(version.unwrap_or("of unknown version").trim().to_owned())
    }

    /// Compiles a source. Returns the code and the compiler's messages.
    fn compile(
        &self,
        name: &str,
        source: &str,
        headers: &[(&str, &str)],
        arch: &str,
    ) -> Result<(Vec<u8>, String), String> {
        let text = |text: &str| CString::new(text).map_err(|_| format!("the source of {name} has a zero byte"));
        let (source, title) = (text(source)?, text(&format!("{name}.hip"))?);
        let names = headers.iter().map(|(name, _)| text(name)).collect::<Result<Vec<_>, _>>()?;
        let texts = headers.iter().map(|(_, header)| text(header)).collect::<Result<Vec<_>, _>>()?;
        let target = format!("--offload-arch={arch}");
        let flags = FLAGS.iter().copied().chain([target.as_str()]).map(text).collect::<Result<Vec<_>, _>>()?;
        let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).collect::<Vec<_>>();
        let (names, texts, options) = (pointers(&names), pointers(&texts), pointers(&flags));
        let count = |list: &[*const c_char]| c_int::try_from(list.len()).unwrap_or(0);
        let mut program = Program { functions: &self.functions, handle: std::ptr::null_mut() };
        // SAFETY: all texts end with zero and live until the end of this function, and the counts
        // match them; the program is written to a variable that lives.
        let created = unsafe {
            let (count, texts, names) = (count(&names), texts.as_ptr(), names.as_ptr());
            (self.functions.create)(&mut program.handle, source.as_ptr(), title.as_ptr(), count, texts, names)
        };
        self.check(created, name, arch, "")?;
        // SAFETY: the program exists; the options as above.
        let compiled = unsafe { (self.functions.compile)(program.handle, count(&options), options.as_ptr()) };
        let log = String::from_utf8_lossy(&program.read(self.functions.log_size, self.functions.log)).into_owned();
        let log = log.trim_end_matches('\0').trim().to_owned();
        self.check(compiled, name, arch, &log)?;
        let code = program.read(self.functions.code_size, self.functions.code);
        if code.is_empty() {
            return Err(format!("{} compiled {name} for {arch} to nothing", self.name));
        }
        Ok((code, log))
    }

    fn check(&self, status: Status, name: &str, arch: &str, log: &str) -> Result<(), String> {
        match status {
            0 => Ok(()),
            _ => Err(format!("{} cannot compile {name}.hip for {arch}: error {status}: {log}", self.name)),
        }
    }
}

/// A program of the compiler, that is, one source to compile.
struct Program<'a> {
    functions: &'a Functions,
    handle: Handle,
}

impl Program<'_> {
    /// The log or the code; empty if the compiler does not return it.
    fn read(
        &self,
        size: unsafe extern "C" fn(Handle, *mut usize) -> Status,
        read: unsafe extern "C" fn(Handle, *mut c_char) -> Status,
    ) -> Vec<u8> {
        /// More than any code or log has.
        const MOST: usize = 1 << 28;
        let mut bytes = 0;
        // SAFETY: the program exists, the size is written to a variable that lives.
        if unsafe { size(self.handle, &mut bytes) } != 0 || bytes == 0 || bytes > MOST {
            return Vec::new();
        }
        let mut text = vec![0u8; bytes];
        // SAFETY: the memory has as many bytes as the library says it writes.
        match unsafe { read(self.handle, text.as_mut_ptr().cast()) } {
            0 => text,
            _ => Vec::new(),
        }
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: the program exists, and is not used any more.
            unsafe { (self.functions.destroy)(&mut self.handle) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_amd_gpu_is_not_compiled_for() {
        for arch in ["sm_75", "", "gfx../..", "gfx90a:xnack+"] {
            assert!(Target::new(arch).is_err_and(|e| e.contains("only those for AMD GPUs")), "{arch}");
        }
    }

    /// Uses the real hipRTC if the variable names one; needs no GPU.
    #[test]
    fn all_kernels_compile() {
        if env::var_os(LIBRARY_VARIABLE).is_none() {
            println!("skipped: {LIBRARY_VARIABLE} names no compiler");
            return;
        }
        for arch in ["gfx906", "gfx1030"] {
            let target = Target::new(arch).unwrap_or_else(|e| panic!("{e}"));
            assert!(target.version.starts_with(|c: char| c.is_ascii_digit()), "{}", target.origin());
            for (family, source) in FAMILIES {
                let compiled = target.compiler.compile(family, source, HEADERS, arch);
                let (code, _) = compiled.unwrap_or_else(|e| panic!("{e}"));
                assert!(code.starts_with(b"\x7fELF"), "{family} for {arch}");
            }
            let (_, source) = FAMILIES[0];
            let reason = target.compiler.compile("broken", &source[..source.len() / 2], HEADERS, arch).unwrap_err();
            assert!(reason.contains("broken.hip") && reason.contains("error:"), "{reason}");
        }
    }
}
