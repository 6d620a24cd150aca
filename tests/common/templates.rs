//! The public chat templates and vocabularies that `tests/fixtures/fetch_templates.py` brings, where they are at hand.

#![allow(dead_code)] // each test binary uses a part

use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder that `WAVELM_TEMPLATES` names, or the one in the user's cache. `None`, with the reason printed, where there
/// is none.
pub fn folder() -> Option<PathBuf> {
    let cache = || {
        let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
        Some(std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or(home)?.join("wavelm/templates"))
    };
    let folder = std::env::var_os("WAVELM_TEMPLATES").map(PathBuf::from).or_else(cache);
    match folder {
        Some(folder) if folder.join("fetched.txt").exists() || !files(&folder, "jinja").is_empty() => Some(folder),
        folder => {
            let place = folder.map_or("the user's cache".to_string(), |folder| folder.display().to_string());
            println!("skipped: {place} has no templates; tests/fixtures/fetch_templates.py brings them");
            None
        }
    }
}

/// The files of a folder with an extension, in order.
pub fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    files.sort();
    files
}

/// Whether Python has Jinja 3.1; the reason is printed where it has not.
pub fn has_jinja() -> bool {
    let check = ["-c", "import jinja2; assert jinja2.__version__ >= '3.1'"];
    let has = Command::new("python3").args(check).output().is_ok_and(|output| output.status.success());
    if !has {
        println!("skipped: python3 with jinja2 3.1 is not there");
    }
    has
}
