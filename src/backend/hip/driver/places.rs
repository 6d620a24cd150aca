//! Where the libraries of ROCm may be, best first: already loaded by the process, named by the
//! user, then the newest version of all folders.

use std::env;
use std::path::{Path, PathBuf};

/// The newest version to look for by name in the system's own folders, newest first. Versions that
/// are not out yet will probably keep today's functions.
const NEWEST: u32 = 10;

/// The file names of a library of ROCm.
pub(crate) struct Names<'a> {
    /// The name without a version: `libamdhip64.so`.
    pub(crate) unix: &'a str,
    /// The oldest version that is accepted.
    pub(crate) oldest: u32,
    /// Whether to accept a file without a version; it may be any version.
    pub(crate) plain: bool,
    /// Whole names, newest first.
    pub(crate) windows: &'a [String],
}

/// The paths where a library may be.
pub(crate) fn candidates(names: &Names<'_>) -> Vec<PathBuf> {
    let roots: Vec<PathBuf> = ["ROCM_PATH", "HIP_PATH"].into_iter().filter_map(variable).collect();
    if cfg!(windows) {
        let pointed = roots.iter().flat_map(|root| names.windows.iter().map(|name| root.join("bin").join(name)));
        return pointed.chain(names.windows.iter().map(PathBuf::from)).collect();
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mut found = mapped(&maps, names);
    for root in roots {
        found.extend(versions(&root.join("lib"), names).into_iter().map(|(_, path)| path));
    }
    let mut others: Vec<_> = folders().iter().flat_map(|folder| versions(folder, names)).collect();
    // The loader's own libraries have only the major version in their names, and come before others
    // of the same major version.
    let system = (names.oldest..=NEWEST).map(|n| (vec![n, u32::MAX], PathBuf::from(format!("{}.{n}", names.unix))));
    others.extend(system);
    others.sort_by(|a, b| b.0.cmp(&a.0));
    found.extend(others.into_iter().map(|(_, path)| path));
    if names.plain {
        found.push(names.unix.into());
    }
    without_repetitions(found)
}

fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Each file once, in order. Folders link to each other, so paths may repeat.
fn without_repetitions(paths: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut seen = Vec::new();
    let mut is_new = |path: &PathBuf| {
        let file = path.canonicalize().unwrap_or_else(|_| path.clone());
        let is_new = !seen.contains(&file);
        seen.push(file);
        is_new
    };
    paths.into_iter().filter(|path| is_new(path)).collect()
}

/// Libraries that the process has already loaded. Two versions of one library in a process disturb
/// each other.
fn mapped(maps: &str, names: &Names<'_>) -> Vec<PathBuf> {
    let paths = maps.lines().filter_map(|line| line.find('/').and_then(|at| line.get(at..)));
    let is_library = |path: &&str| {
        let name = Path::new(path).file_name().and_then(|name| name.to_str());
        name.and_then(|name| version(name, names)).is_some()
    };
    let mut found: Vec<PathBuf> = paths.filter(is_library).map(PathBuf::from).collect();
    found.dedup();
    found
}

/// The version in a file's name: `[6, 4, 43482]`; empty if it has none. `None` for other files and
/// versions that are too old.
fn version(file: &str, names: &Names<'_>) -> Option<Vec<u32>> {
    let rest = file.strip_prefix(names.unix)?;
    if rest.is_empty() {
        return names.plain.then(Vec::new);
    }
    let parts = rest.strip_prefix('.')?.split('.').map_while(|part| part.parse().ok());
    let parts: Vec<u32> = parts.collect();
    (*parts.first()? >= names.oldest).then_some(parts)
}

/// The library's versions in a folder, newest first.
fn versions(folder: &Path, names: &Names<'_>) -> Vec<(Vec<u32>, PathBuf)> {
    let Ok(files) = std::fs::read_dir(folder) else { return Vec::new() };
    let read = |file: std::fs::DirEntry| Some((version(file.file_name().to_str()?, names)?, file.path()));
    let mut found: Vec<_> = files.filter_map(|file| read(file.ok()?)).collect();
    found.sort_by(|a, b| b.cmp(a));
    found
}

/// Folders that the system's loader may not know: those of ROCm's packages, of TheRock, and of
/// Python.
fn folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for rocm in matching(Path::new("/opt"), "rocm") {
        folders.push(rocm.join("lib"));
        folders.extend(matching(&rocm, "core").into_iter().map(|core| core.join("lib")));
    }
    let home = variable("HOME").map(|home| home.join(".local"));
    let pythons = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable);
    for prefix in pythons.chain(home).chain(["/usr/local".into(), "/usr".into()]) {
        for python in matching(&prefix.join("lib"), "python3") {
            let packages = ["site-packages", "dist-packages"].map(|packages| python.join(packages));
            folders.extend(packages.map(|packages| packages.join("_rocm_sdk_core/lib")));
        }
    }
    folders
}

/// Entries of a folder whose names begin with `start`.
fn matching(folder: &Path, start: &str) -> Vec<PathBuf> {
    let Ok(files) = std::fs::read_dir(folder) else { return Vec::new() };
    let begins = |file: &std::fs::DirEntry| file.file_name().to_string_lossy().starts_with(start);
    let mut found: Vec<PathBuf> = files.flatten().filter(begins).map(|file| file.path()).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const HIP: Names<'static> = Names { unix: "libamdhip64.so", oldest: 5, plain: true, windows: &[] };
    const RTC: Names<'static> = Names { unix: "libhiprtc.so", oldest: 6, plain: false, windows: &[] };

    #[test]
    fn versions_are_read_from_names() {
        assert_eq!(version("libamdhip64.so.6.4.43482", &HIP), Some(vec![6, 4, 43482]));
        assert_eq!(version("libamdhip64.so", &HIP), Some(vec![]));
        assert_eq!(version("libhiprtc.so", &RTC), None);
        assert_eq!(version("libhiprtc.so.6", &RTC), Some(vec![6]));
        for other in ["libamdhip64.so.4", "libamdhip64.so.", "libamdhip64.so.x", "libamdhip64.sox.7", "libc.so.6"] {
            assert_eq!(version(other, &HIP), None, "{other}");
        }
    }

    #[test]
    fn the_newest_version_of_a_folder_comes_first_and_links_are_one_file() {
        let folder = env::temp_dir().join(format!("wavelm-places-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for name in ["libamdhip64.so.5.7", "libamdhip64.so.6.10.1", "libamdhip64.so.6.9.9", "libhiprtc.so.7", "x"] {
            std::fs::write(folder.join(name), name).unwrap();
        }
        let found = |names| -> Vec<String> {
            let files = versions(&folder, names).into_iter();
            files.map(|(_, path)| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
        };
        assert_eq!(found(&HIP), ["libamdhip64.so.6.10.1", "libamdhip64.so.6.9.9", "libamdhip64.so.5.7"]);
        assert_eq!(found(&RTC), ["libhiprtc.so.7"]);
        #[cfg(unix)]
        {
            let (link, file) = (folder.join("link"), folder.join("x"));
            std::os::unix::fs::symlink(&file, &link).unwrap();
            assert_eq!(without_repetitions(vec![link.clone(), file, link.clone(), "y".into()]), [link, "y".into()]);
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_newer_version_comes_first_wherever_it_is() {
        let names = candidates(&HIP);
        let at = |name: &str| names.iter().position(|path| path == Path::new(name)).unwrap();
        assert!(at("libamdhip64.so.8") < at("libamdhip64.so.7") && at("libamdhip64.so.7") < at("libamdhip64.so.5"));
        assert_eq!(at("libamdhip64.so"), names.len() - 1);
    }

    #[test]
    fn what_is_loaded_is_found_once() {
        let maps = "7f00-7f01 r--p 00000000 08:01 42 /opt/rocm-7.0.1/lib/libamdhip64.so.7.0.70001\n\
                    7f01-7f02 r-xp 00001000 08:01 42 /opt/rocm-7.0.1/lib/libamdhip64.so.7.0.70001\n\
                    7f02-7f03 r-xp 00001000 08:01 43 /opt/a b/libhiprtc.so.7\n\
                    7f03-7f04 rw-p 00000000 00:00 0 [heap]\n7f04-7f05 rw-p 00000000 00:00 0\n";
        assert_eq!(mapped(maps, &HIP), [Path::new("/opt/rocm-7.0.1/lib/libamdhip64.so.7.0.70001")]);
        assert_eq!(mapped(maps, &RTC), [Path::new("/opt/a b/libhiprtc.so.7")]);
    }
}
