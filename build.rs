//! Embeds the machine code of the GPU kernels: the objects in hip/prebuilt, where there are any. Nothing is compiled
//! then, so no GPU tools are needed.
//!
//! hip/prebuilt/manifest names the compiler in its first line, and has a line for each object: family, target,
//! [`recipe_hash`] of what it was built from, archive, first byte, length, and hash of the code. An object whose sources
//! or flags have changed since does not get into the library by accident: the build stops.
//!
//! `WAVELM_BUILD_KERNELS=1` builds the kernels here in place of that, with clang 17 or later and lld, for all targets
//! that the compiler knows; a list of targets in place of 1 builds those, and `none` builds and embeds nothing.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs};

const BUILD_VARIABLE: &str = "WAVELM_BUILD_KERNELS";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=hip");
    for variable in [BUILD_VARIABLE, "CLANG", "ROCM_PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let hip = root.join("hip");
    let wanted = env::var(BUILD_VARIABLE).unwrap_or_default();
    let objects = match wanted.as_str() {
        "" | "0" => prebuilt(&hip),
        "none" => Ok(Objects::default()),
        wanted => built(&hip, &out, wanted),
    };
    match objects.and_then(|objects| Ok((objects, sources(&hip)?))) {
        Ok((objects, sources)) => {
            let Objects { archives, entries } = objects;
            let table = format!("{archives}const EMBEDDED: &[Embedded] = &[\n{entries}];\n");
            fs::write(out.join("hip_objects.rs"), table).expect("OUT_DIR can be written");
            fs::write(out.join("hip_sources.rs"), sources).expect("OUT_DIR can be written");
        }
        Err(e) => {
            println!("cargo::error={}", e.replace('\n', " "));
            std::process::exit(1);
        }
    }
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

/// What is in hip/prebuilt.
fn prebuilt(hip: &Path) -> Result<Objects, String> {
    let mut objects = Objects::default();
    let folder = hip.join("prebuilt");
    let manifest = match fs::read_to_string(folder.join("manifest")) {
        Ok(manifest) => manifest,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(objects),
        Err(e) => return Err(format!("hip/prebuilt/manifest cannot be read: {e}")),
    };
    let remedy = format!(
        "run `python3 hip/build.py --prebuilt` (it needs clang and lld), or set {BUILD_VARIABLE}=1 to build the kernels \
         with the library, or {BUILD_VARIABLE}=none to leave them out"
    );
    let (first, lines) = manifest.split_once('\n').unwrap_or_default();
    let wrong = |line: &str| format!("hip/prebuilt/manifest has the line \"{line}\", which is not one of its kind");
    let compiler = first.strip_prefix("compiler ").ok_or_else(|| wrong(first))?;
    let targets = read_targets(hip)?.targets;
    let sources = Sources::read(hip)?;
    for line in lines.lines() {
        let parts: Vec<&str> = line.split(' ').collect();
        let &[family, target, recipe, file, from, length, hash] = parts.as_slice() else { return Err(wrong(line)) };
        let (Ok(from), Ok(length)) = (from.parse::<usize>(), length.parse::<usize>()) else { return Err(wrong(line)) };
        let hash = u64::from_str_radix(hash, 16).map_err(|_| wrong(line))?;
        let flags = targets.iter().find(|t| t.name == target).map(|t| &t.flags);
        let now = flags.and_then(|flags| sources.recipe_hash(family, compiler, flags));
        if now.is_none_or(|now| format!("{now:016x}") != recipe) {
            return Err(format!(
                "the {family} kernels for {target} in hip/prebuilt are stale: hip/{family}.hip, a header or the flags in \
                 hip/targets have changed since they were built; {remedy}"
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
        let code = format!("Code::Packed {{ archive: {name}, from: {from}, length: {length} }}");
        objects.add(family, target, &code, hash);
    }
    Ok(objects)
}

/// A target of hip/targets.
struct Target {
    name: String,
    flags: Vec<String>,
}

struct Targets {
    /// Flags that have a name.
    named: HashMap<String, Vec<String>>,
    targets: Vec<Target>,
}

/// The contents of hip/targets, which says what its lines are.
fn read_targets(hip: &Path) -> Result<Targets, String> {
    let text = fs::read_to_string(hip.join("targets")).map_err(|e| format!("hip/targets: {e}"))?;
    let mut named: HashMap<String, Vec<String>> = HashMap::new();
    let mut targets = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(name) = words.next().filter(|name| !name.starts_with('#')) else { continue };
        if !name.starts_with('@') {
            words.next(); // the archive
        }
        let mut flags: Vec<String> = Vec::new();
        for word in words {
            match (word.starts_with('@'), named.get(word)) {
                (false, _) => flags.push(word.to_owned()),
                (true, Some(more)) => flags.extend_from_slice(more),
                (true, None) => return Err(format!("hip/targets: {word} is not defined before it is used")),
            }
        }
        if name.starts_with('@') {
            named.insert(name.to_owned(), flags);
        } else {
            let flags = flags.iter().map(|flag| flag.replace("TARGET", name)).collect();
            targets.push(Target { name: name.to_owned(), flags });
        }
    }
    Ok(Targets { named, targets })
}

const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a with 64 bits.
fn fnv(bytes: &[u8], start: u64) -> u64 {
    bytes.iter().fold(start, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The hash of each family's source and all headers, in order of their names.
struct Sources(Vec<(String, u64)>);

impl Sources {
    fn read(hip: &Path) -> Result<Self, String> {
        let read = |(name, path): (String, PathBuf)| {
            let text = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            Ok::<_, String>((name, text))
        };
        let files = |extension| files(hip, extension)?.into_iter().map(read).collect::<Result<Vec<_>, _>>();
        let headers = files("h")?;
        let hash = |source: &[u8]| headers.iter().fold(fnv(source, FNV_START), |hash, (_, text)| fnv(text, hash));
        Ok(Self(files("hip")?.into_iter().map(|(family, source)| (family, hash(&source))).collect()))
    }

    /// What an object is built from: source, headers, compiler and flags; `None` for a family that is not there.
    fn recipe_hash(&self, family: &str, compiler: &str, flags: &[String]) -> Option<u64> {
        let (_, sources) = self.0.iter().find(|(name, _)| name == family)?;
        Some(fnv(format!("{compiler} {}", flags.join(" ")).as_bytes(), *sources))
    }
}

/// The source of constants with the sources of the kernels and the flags for hipRTC, which compiles them at run time.
fn sources(hip: &Path) -> Result<String, String> {
    let mut text = String::new();
    for (constant, extension) in [("FAMILIES", "hip"), ("HEADERS", "h")] {
        writeln!(text, "const {constant}: &[(&str, &str)] = &[").expect("a String takes all text");
        for (name, path) in files(hip, extension)? {
            let name = if extension == "h" { format!("{name}.h") } else { name };
            writeln!(text, "    ({name:?}, include_str!({path:?})),").expect("a String takes all text");
        }
        text.push_str("];\n");
    }
    let targets = read_targets(hip)?;
    let flags = targets.named.get("@rtc").ok_or("hip/targets does not define @rtc")?;
    writeln!(text, "const FLAGS: &[&str] = &{flags:?};").expect("a String takes all text");
    Ok(text)
}

/// The files in hip/ that have an extension, with their names without it, in order.
fn files(hip: &Path, extension: &str) -> Result<Vec<(String, PathBuf)>, String> {
    let entries = fs::read_dir(hip).map_err(|e| format!("{}: {e}", hip.display()))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == extension));
    paths.sort();
    let name = |path: &Path| path.file_stem().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
    Ok(paths.into_iter().map(|path| (name(&path), path)).collect())
}

/// Builds the kernels into `out`. What is there from the same sources, flags and compiler is not built again.
fn built(hip: &Path, out: &Path, wanted: &str) -> Result<Objects, String> {
    let compiler = Compiler::find()?;
    let mut targets = read_targets(hip)?.targets;
    if wanted == "1" {
        // A compiler of another version, or AMD's, does not know them all.
        let (known, unknown): (Vec<_>, Vec<_>) = targets.into_iter().partition(|t| compiler.knows(&t.name));
        targets = known;
        for target in unknown {
            println!("cargo::warning={} does not know {}: no kernels are built for it", compiler.program, target.name);
        }
    } else {
        let names: Vec<&str> = wanted.split(',').map(str::trim).collect();
        if let Some(unknown) = names.iter().find(|name| targets.iter().all(|t| t.name != **name)) {
            return Err(format!(
                "{BUILD_VARIABLE} is 1, none or a list of targets, but {unknown} is not in hip/targets"
            ));
        }
        targets.retain(|t| names.contains(&t.name.as_str()));
    }
    let sources = Sources::read(hip)?;
    let folder = out.join("kernels");
    fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut jobs = Vec::new();
    for (target, (family, _)) in targets.iter().flat_map(|t| sources.0.iter().map(move |s| (t, s))) {
        let recipe = sources.recipe_hash(family, &compiler.version, &target.flags).unwrap_or_default();
        jobs.push((family, target, folder.join(format!("{family}.{}.{recipe:016x}", target.name))));
    }
    let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
    let threads = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize).max(1);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((family, target, path)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(e) = compiler.build(&hip.join(format!("{family}.hip")), &target.flags, path) {
                        next.store(jobs.len(), Ordering::Relaxed);
                        *failure.lock().expect("no thread panics") = Some(e);
                    }
                }
            });
        }
    });
    if let Some(e) = failure.into_inner().expect("no thread panicked") {
        return Err(e);
    }
    let mut objects = Objects::default();
    for (family, target, path) in jobs {
        let code = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let plain = format!("Code::Plain(include_bytes!({path:?}))");
        objects.add(family, &target.name, &plain, fnv(&code, FNV_START));
    }
    Ok(objects)
}

struct Compiler {
    program: String,
    /// The first line that names it, which has its version.
    version: String,
}

impl Compiler {
    /// The one that CLANG names, else the newest clang that is installed, else that of ROCm, hipcc in the end.
    fn find() -> Result<Self, String> {
        let rocm = env::var("ROCM_PATH").unwrap_or_else(|_| "/opt/rocm".to_owned());
        let named = env::var("CLANG").ok().filter(|name| !name.is_empty());
        let candidates = match named {
            Some(named) => vec![named],
            None => {
                let mut names: Vec<String> = (17..=30).rev().map(|v| format!("clang-{v}")).collect();
                names.extend(["clang".to_owned(), format!("{rocm}/llvm/bin/clang")]);
                names.extend(["hipcc".to_owned(), format!("{rocm}/bin/hipcc")]);
                names
            }
        };
        for program in &candidates {
            let Ok(output) = Command::new(program).arg("--version").output() else { continue };
            let text = String::from_utf8_lossy(&output.stdout);
            let Some(version) = text.lines().find(|line| line.contains("clang version ")) else { continue };
            let number = version.split("clang version ").nth(1).and_then(|v| v.split('.').next()?.parse::<u32>().ok());
            if number.is_some_and(|number| number >= 17) {
                return Ok(Self { program: program.clone(), version: version.trim().to_owned() });
            }
        }
        Err(format!(
            "{BUILD_VARIABLE} is set, but there is no clang 17 or later (tried {}): install clang and lld, or set CLANG to \
             the program, or unset {BUILD_VARIABLE}, which needs no compiler",
            candidates.join(", ")
        ))
    }

    /// Whether it can build for a target.
    fn knows(&self, target: &str) -> bool {
        let machine = if target.starts_with("sm_") { "nvptx64" } else { "amdgcn" };
        let arguments = ["--print-supported-cpus".to_owned(), format!("--target={machine}")];
        let Ok(output) = Command::new(&self.program).args(arguments).output() else { return false };
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&text).split_whitespace().any(|word| word == target)
    }

    /// Builds one object, unless it is there.
    fn build(&self, source: &Path, flags: &[String], path: &Path) -> Result<(), String> {
        if path.is_file() {
            return Ok(());
        }
        let unfinished = path.with_extension("unfinished");
        let output = Command::new(&self.program).args(flags).arg(source).arg("-o").arg(&unfinished).output();
        let output = output.map_err(|e| format!("{}: {e}", self.program))?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("{} {} {}: {errors}", self.program, flags.join(" "), source.display()));
        }
        fs::rename(&unfinished, path).map_err(|e| format!("{}: {e}", path.display()))
    }
}
