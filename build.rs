//! Embeds the machine code of the GPU kernels: the objects in hip/prebuilt, if there are any. This
//! compiles nothing, so it needs no GPU tools.
//!
//! hip/prebuilt/manifest has a hash of everything that each object was built from. The build stops
//! where sources or flags have changed since, so that no stale object gets into the library.
//!
//! `WAVELM_BUILD_KERNELS=1` builds the kernels here instead, with clang 17 or later and lld, for
//! all targets that the compiler knows. A list of targets in place of 1 builds those, and `none`
//! embeds nothing.

#[path = "hip/builder/mod.rs"]
mod builder;

use builder::compiler::{Compiler, Job};
use builder::manifest::Manifest;
use builder::sources::{FNV_START, Source, Sources, fnv};
use builder::targets::{Target, Targets};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

const BUILD_VARIABLE: &str = "WAVELM_BUILD_KERNELS";

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo::rerun-if-changed=hip");
    for variable in [BUILD_VARIABLE, "CLANG", "ROCM_PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if let Err(e) = run(&root.join("hip"), &out) {
        println!("cargo::error={}", e.replace('\n', " "));
        std::process::exit(1);
    }
}

fn run(hip: &Path, out: &Path) -> Result<(), String> {
    let sources = Sources::read(hip, &out.join("generated"))?;
    let targets = Targets::read(hip)?;
    let wanted = env::var(BUILD_VARIABLE).unwrap_or_default();
    let objects = match wanted.as_str() {
        "" | "0" => prebuilt(hip, &sources, &targets),
        "none" => Ok(Objects::default()),
        wanted => built(hip, &out.join("kernels"), &sources, &targets, wanted),
    }?;
    let table = format!("{}const EMBEDDED: &[Embedded] = &[\n{}];\n", objects.archives, objects.entries);
    fs::write(out.join("hip_objects.rs"), table).expect("OUT_DIR can be written");
    fs::write(out.join("hip_sources.rs"), embedded_sources(&sources, &targets)).expect("OUT_DIR can be written");
    Ok(())
}

/// The source of the table of embedded objects.
#[derive(Default)]
struct Objects {
    /// A constant for each archive.
    archives: String,
    entries: String,
}

impl Objects {
    fn add(&mut self, family: &str, target: &str, code: &str, hash: u64) {
        let fields = format!("family: {family:?}, target: {target:?}, code: {code}, hash: {hash:#x}");
        writeln!(self.entries, "    Embedded {{ {fields} }},").expect("a String takes all text");
    }
}

/// The objects in hip/prebuilt.
fn prebuilt(hip: &Path, sources: &Sources, targets: &Targets) -> Result<Objects, String> {
    let mut objects = Objects::default();
    let folder = hip.join("prebuilt");
    let manifest = match fs::read_to_string(folder.join("manifest")) {
        Ok(manifest) => Manifest::parse(&manifest)?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(objects),
        Err(e) => return Err(format!("hip/prebuilt/manifest cannot be read: {e}")),
    };
    let remedy = format!(
        "run `cargo kernels --prebuilt` (it needs clang and lld), or set {BUILD_VARIABLE}=1 to build the kernels with the \
         library, or {BUILD_VARIABLE}=none to leave them out"
    );
    for entry in &manifest.entries {
        let (family, target, file) = (&entry.family, &entry.target, &entry.archive);
        let found = targets.get(target).filter(|t| t.archive_of(family) == *file);
        let now = found.and_then(|t| sources.recipe_hash(family, &manifest.compiler, &t.flags));
        if now != Some(entry.recipe) {
            let source = sources.family(family).map_or("which is gone", |source| &source.origin);
            return Err(format!(
                "the {family} kernels for {target} in hip/prebuilt are stale: their source ({source}), a header or the \
                 flags in hip/targets have changed since they were built; {remedy}"
            ));
        }
        let archive = folder.join(file);
        if !archive.is_file() {
            return Err(format!("hip/prebuilt/{file} is missing, but the manifest has it; {remedy}"));
        }
        let name = file.replace(['.', '-'], "_").to_uppercase();
        let constant = format!("const {name}: &[u8] = include_bytes!({archive:?});\n");
        if !objects.archives.contains(&constant) {
            objects.archives.push_str(&constant);
        }
        let code = format!("Code::Packed {{ archive: {name}, from: {}, length: {} }}", entry.from, entry.length);
        objects.add(family, target, &code, entry.hash);
    }
    Ok(objects)
}

/// The source of constants with the sources of the kernels and the flags for hipRTC, which compiles
/// them at run time.
fn embedded_sources(sources: &Sources, targets: &Targets) -> String {
    let mut text = String::new();
    let mut list = |constant: &str, sources: &[Source]| {
        writeln!(text, "const {constant}: &[(&str, &str)] = &[").expect("a String takes all text");
        for source in sources {
            writeln!(text, "    ({:?}, include_str!({:?})),", source.name, source.path)
                .expect("a String takes all text");
        }
        text.push_str("];\n");
    };
    list("FAMILIES", &sources.families);
    list("HEADERS", &sources.headers);
    writeln!(text, "const FLAGS: &[&str] = &{:?};", targets.rtc).expect("a String takes all text");
    text
}

/// Builds the kernels into `folder`. An object that is there, from the same sources, flags and
/// compiler, is not built again.
fn built(hip: &Path, folder: &Path, sources: &Sources, targets: &Targets, wanted: &str) -> Result<Objects, String> {
    let compiler = Compiler::find()
        .map_err(|e| format!("{BUILD_VARIABLE} is set, but {e}, or unset {BUILD_VARIABLE}, which needs no compiler"))?;
    let is_wanted = |target: &Target| {
        if wanted != "1" {
            return wanted.split(',').any(|name| name.trim() == target.name);
        }
        // A compiler of another version, or AMD's, does not know them all.
        let knows = compiler.knows(target);
        if !knows {
            let (program, target) = (&compiler.program, &target.name);
            println!("cargo::warning={program} does not know {target}: no kernels are built for it");
        }
        knows
    };
    if let Some(unknown) = wanted.split(',').map(str::trim).find(|&name| name != "1" && targets.get(name).is_none()) {
        return Err(format!("{BUILD_VARIABLE} is 1, none or a list of targets, but {unknown} is not in hip/targets"));
    }
    fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut jobs = Vec::new();
    for target in targets.list.iter().filter(|target| is_wanted(target)) {
        for family in &sources.families {
            let recipe = sources.recipe_hash(&family.name, &compiler.version, &target.flags).unwrap_or_default();
            let path = folder.join(format!("{recipe:016x}.{}", target.object(&family.name)));
            jobs.push(Job { family, target, path });
        }
    }
    let threads = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let (built, missing): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(|job| job.path.is_file());
    compiler.build(hip, &missing, threads, &|_| Vec::new(), &|_| Ok(()))?;
    let mut objects = Objects::default();
    for Job { family, target, path } in built.iter().chain(&missing) {
        let code = fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let plain = format!("Code::Plain(include_bytes!({path:?}))");
        objects.add(&family.name, &target.name, &plain, fnv(&code, FNV_START));
    }
    Ok(objects)
}
