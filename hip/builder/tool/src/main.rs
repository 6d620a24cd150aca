//! Builds the GPU kernels with clang alone (17 or later, with lld): no ROCm or CUDA is needed. See
//! [`HELP`].

#[path = "../../mod.rs"]
mod builder;
mod pack;
mod prebuilt;
mod resources;

use builder::compiler::{Compiler, Job};
use builder::sources::Sources;
use builder::targets::{Target, Targets};
use prebuilt::Prebuilt;
use resources::{Reader, Used};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;

const HELP: &str = "\
cargo kernels [--out DIR] [--targets gfx1100,sm_80,…] [--families matvec,…] [--prebuilt | --check | --unpack | --list]

Builds DIR/<family>.<target>.hsaco for AMD targets and .ptx for NVIDIA's (DIR is target/hip by default), and prints what
each AMD kernel uses. Fails where a kernel spills registers, needs scratch memory, or uses more than the budgets.

    --prebuilt  also writes hip/prebuilt, which build.rs embeds; this takes all targets and families
    --check     also compares with hip/prebuilt, byte for byte where the compiler is the one that made it
    --unpack    takes the objects from hip/prebuilt, and compiles nothing
    --list      prints the families, the targets, and the flags for hipRTC

CLANG names the compiler, LLVM_READELF the reader of objects. By default they are the newest installed ones.";

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Build,
    Prebuilt,
    Check,
    Unpack,
    List,
}

struct Options {
    mode: Mode,
    out: PathBuf,
    targets: Option<Vec<String>>,
    families: Option<Vec<String>>,
}

impl Options {
    /// Reads the command line; `None` where it asks for help.
    fn parse(root: &Path, mut arguments: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut options = Self { mode: Mode::Build, out: root.join("target/hip"), targets: None, families: None };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            let names = |text: String| Some(text.split(',').map(str::to_owned).collect());
            let mode = match argument.as_str() {
                "--out" => {
                    options.out = value()?.into();
                    continue;
                }
                "--targets" => {
                    options.targets = names(value()?);
                    continue;
                }
                "--families" => {
                    options.families = names(value()?);
                    continue;
                }
                "--prebuilt" => Mode::Prebuilt,
                "--check" => Mode::Check,
                "--unpack" => Mode::Unpack,
                "--list" => Mode::List,
                "-h" | "--help" => return Ok(None),
                other => return Err(format!("{other} is no option; --help lists them")),
            };
            if options.mode != Mode::Build {
                return Err("only one of --prebuilt, --check, --unpack and --list makes sense".to_owned());
            }
            options.mode = mode;
        }
        let is_whole = options.targets.is_none() && options.families.is_none();
        if matches!(options.mode, Mode::Prebuilt | Mode::Check) && !is_whole {
            return Err("hip/prebuilt has all targets and families".to_owned());
        }
        Ok(Some(options))
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let hip = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let hip = hip.canonicalize().map_err(|e| format!("{}: {e}", hip.display()))?;
    let root = hip.parent().unwrap_or(&hip);
    let Some(options) = Options::parse(root, std::env::args().skip(1))? else {
        println!("{HELP}");
        return Ok(());
    };
    // Separate from the objects, so that DIR holds nothing else.
    let sources = Sources::read(&hip, &root.join("target/kernels/generated"))?;
    let targets = Targets::read(&hip)?;
    if options.mode == Mode::List {
        let families: Vec<&str> = sources.families.iter().map(|family| family.name.as_str()).collect();
        let names: Vec<&str> = targets.list.iter().map(|target| target.name.as_str()).collect();
        println!("{}", families.join(" "));
        println!("{}", names.join(" "));
        println!("{}", targets.rtc.join(" "));
        return Ok(());
    }
    let families = chosen(&sources.families, |family| &family.name, options.families.as_deref())?;
    let wanted = chosen(&targets.list, |target| &target.name, options.targets.as_deref())?;
    fs::create_dir_all(&options.out).map_err(|e| format!("{}: {e}", options.out.display()))?;
    let jobs: Vec<Job> = wanted
        .iter()
        .flat_map(|target| families.iter().map(move |family| (*target, *family)))
        .map(|(target, family)| Job { family, target, path: options.out.join(target.object(&family.name)) })
        .collect();

    let reader = Reader::find()?;
    let prebuilt = Prebuilt { hip: &hip, sources: &sources, targets: &targets, out: &options.out };
    if options.mode == Mode::Unpack {
        prebuilt.unpack(&jobs)?;
        let tables = jobs.iter().map(|job| reader.used(&job.path, job.target)).collect::<Result<Vec<_>, _>>()?;
        return report(&jobs, &tables);
    }
    let compiler = Compiler::find()?;
    if let Some(unknown) = wanted.iter().find(|target| !compiler.knows(target)) {
        return Err(format!("{} does not know {}", compiler.program, unknown.name));
    }
    println!("{}", compiler.version);
    let tables = build(&hip, &compiler, &jobs, &reader)?;
    report(&jobs, &tables)?;
    match options.mode {
        Mode::Prebuilt => prebuilt.write(&compiler.version),
        Mode::Check => prebuilt.check(&compiler.version),
        _ => Ok(()),
    }
}

/// Those of `all` that are named, or all.
fn chosen<'a, T>(all: &'a [T], name: impl Fn(&T) -> &String, names: Option<&[String]>) -> Result<Vec<&'a T>, String> {
    let Some(names) = names else { return Ok(all.iter().collect()) };
    let find = |wanted: &String| {
        all.iter().find(|one| name(one) == wanted).ok_or(format!("there is no {wanted}; --list has the names"))
    };
    names.iter().map(find).collect()
}

/// Builds all objects, and returns what the kernels of each use.
fn build(hip: &Path, compiler: &Compiler, jobs: &[Job], reader: &Reader) -> Result<Vec<Vec<Used>>, String> {
    let flags = |target: &Target| {
        let mut flags = vec!["-Wall", "-Wextra", "-Wno-unknown-cuda-version"];
        // Clang 19 warns about code objects of version 6.
        if !target.name.ends_with("-generic") {
            flags.push("-Werror");
        }
        flags
    };
    let tables = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    compiler.build(hip, jobs, threads, &flags, &|job| {
        let used = reader.used(&job.path, job.target)?;
        let mut tables = tables.lock().expect("no thread panics");
        tables.push((job.path.clone(), used));
        if tables.len() % 50 == 0 {
            eprintln!("{} of {} objects", tables.len(), jobs.len());
        }
        Ok(())
    })?;
    let mut tables = tables.into_inner().expect("no thread panicked");
    let mut table_of = |job: &Job| {
        let at = tables.iter().position(|(path, _)| *path == job.path);
        at.map(|at| tables.swap_remove(at).1).unwrap_or_default()
    };
    Ok(jobs.iter().map(&mut table_of).collect())
}

/// Prints what kernels use, and fails where that is too much.
fn report(jobs: &[Job], tables: &[Vec<Used>]) -> Result<(), String> {
    println!("{:32} {:16} vgprs agprs sgprs spills scratch    lds wave", "kernel", "target");
    let mut failures = Vec::new();
    for (job, used) in jobs.iter().zip(tables) {
        let target = &job.target.name;
        if job.target.is_nvidia() {
            let size = fs::metadata(&job.path).map_err(|e| format!("{}: {e}", job.path.display()))?.len();
            println!("{:32} {target:16} {size} bytes of PTX", job.family.name);
        }
        for kernel in used {
            println!("{:32} {target:16} {kernel}", kernel.name);
            if kernel.is_too_much() {
                failures.push(format!("{} for {target}", kernel.name));
            }
        }
    }
    match failures.as_slice() {
        [] => Ok(()),
        failures => Err(format!("spills, scratch memory or beyond the budget: {}", failures.join(", "))),
    }
}
