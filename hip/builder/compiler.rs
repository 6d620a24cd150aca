//! Clang, which builds the kernels.

use super::sources::Source;
use super::targets::Target;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The oldest version that builds the kernels, and the newest that is looked for.
const VERSIONS: std::ops::RangeInclusive<u32> = 17..=30;

/// Programs to try for an LLVM tool: the one that an environment variable names, or the newest.
pub fn candidates(variable: &str, name: &str) -> Vec<String> {
    match env::var(variable).ok().filter(|named| !named.is_empty()) {
        Some(named) => vec![named],
        None => VERSIONS.rev().map(|v| format!("{name}-{v}")).chain([name.to_owned()]).collect(),
    }
}

/// An object to build.
pub struct Job<'a> {
    pub family: &'a Source,
    pub target: &'a Target,
    pub path: PathBuf,
}

pub struct Compiler {
    pub program: String,
    /// The line of `--version` that names it. Compilers of one version make the same objects.
    pub version: String,
}

impl Compiler {
    /// The compiler that CLANG names, else the newest clang that is installed, else that of ROCm.
    ///
    /// # Errors
    /// There is none, or none that is new enough.
    pub fn find() -> Result<Self, String> {
        let rocm = env::var("ROCM_PATH").unwrap_or_else(|_| "/opt/rocm".to_owned());
        let mut candidates = candidates("CLANG", "clang");
        if candidates.len() > 1 {
            candidates.extend([format!("{rocm}/llvm/bin/clang"), "hipcc".to_owned(), format!("{rocm}/bin/hipcc")]);
        }
        for program in &candidates {
            let Ok(output) = Command::new(program).arg("--version").output() else { continue };
            let text = String::from_utf8_lossy(&output.stdout);
            let Some(version) = text.lines().find(|line| line.contains("clang version ")) else { continue };
            let number = version.split("clang version ").nth(1).and_then(|v| v.split('.').next()?.parse::<u32>().ok());
            if number.is_some_and(|number| number >= *VERSIONS.start()) {
                return Ok(Self { program: program.clone(), version: version.trim().to_owned() });
            }
        }
        Err(format!(
            "there is no clang {} or later (tried {}): install clang and lld, or set CLANG to the program",
            VERSIONS.start(),
            candidates.join(", ")
        ))
    }

    /// Whether it can build for a target.
    pub fn knows(&self, target: &Target) -> bool {
        let machine = if target.is_nvidia() { "nvptx64" } else { "amdgcn" };
        let arguments = ["--print-supported-cpus".to_owned(), format!("--target={machine}")];
        let Ok(output) = Command::new(&self.program).args(arguments).output() else { return false };
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&text).split_whitespace().any(|word| word == target.name)
    }

    /// Builds objects, on `threads` threads, and calls `built` for each. `flags` gives flags that
    /// change no code, such as warnings.
    ///
    /// # Errors
    /// The first failure, which ends all threads.
    pub fn build(
        &self,
        hip: &Path,
        jobs: &[Job],
        threads: usize,
        flags: &(dyn Fn(&Target) -> Vec<&'static str> + Sync),
        built: &(dyn Fn(&Job) -> Result<(), String> + Sync),
    ) -> Result<(), String> {
        let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
        std::thread::scope(|scope| {
            for _ in 0..threads.max(1) {
                scope.spawn(|| {
                    while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(e) = self.build_one(hip, job, &flags(job.target)).and_then(|()| built(job)) {
                            next.store(jobs.len(), Ordering::Relaxed);
                            failure.lock().expect("no thread panics").get_or_insert(e);
                        }
                    }
                });
            }
        });
        failure.into_inner().expect("no thread panicked").map_or(Ok(()), Err)
    }

    fn build_one(&self, hip: &Path, job: &Job, flags: &[&str]) -> Result<(), String> {
        let (source, target) = (&job.family.path, job.target);
        let unfinished = job.path.with_extension("unfinished");
        let mut command = Command::new(&self.program);
        command.args(&target.flags).args(flags).arg("-I").arg(hip).arg(source).arg("-o").arg(&unfinished);
        let output = command.output().map_err(|e| format!("{}: {e}", self.program))?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("{} {} {}: {errors}", self.program, target.flags.join(" "), source.display()));
        }
        fs::rename(&unfinished, &job.path).map_err(|e| format!("{}: {e}", job.path.display()))
    }
}
