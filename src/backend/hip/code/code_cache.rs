//! A cache of kernels that were compiled on this machine, in the user's cache folder.
//!
//! A GPU runs the code from there with all of the user's rights. So a file is trusted only if
//! nobody but the user can have written it: it is a regular file, opened without following a link;
//! it and its folder belong to the user, and nobody else may write to them. One SHA-256 of the
//! code's inputs and one of the code detect files that are damaged or have another file's name.
//! Code of an untrusted file is compiled again; an unusable folder costs time, nothing else.

use hmac_sha256::Hash;
use std::env;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// The first bytes of a file. The hash of the recipe, the hash of the code, and the code follow.
const MAGIC: &[u8; 8] = b"wavelm 2";
/// Bytes before the code.
const HEADER: usize = MAGIC.len() + 2 * HASH;
const HASH: usize = 32;
/// The largest file that is read. The objects of all families together are smaller.
const MOST: u64 = 1 << 26;

/// The inputs of a piece of code: source, headers, flags, compiler, architecture.
pub(crate) struct Recipe {
    hash: [u8; HASH],
    name: String,
}

impl Recipe {
    /// `name` is for people: family and architecture.
    pub(crate) fn new<'a>(name: &str, parts: impl IntoIterator<Item = &'a str>) -> Self {
        Self::named(name, "hsaco", parts)
    }

    /// A recipe for the facts about a machine.
    pub(crate) fn of_probe<'a>(parts: impl IntoIterator<Item = &'a str>) -> Self {
        Self::named("probe", "txt", parts)
    }

    fn named<'a>(name: &str, extension: &str, parts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut hash = Hash::new();
        for part in parts {
            // With the lengths, two lists of parts differ even if they are the same when joined.
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let hash = hash.finalize();
        let short: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Self { hash, name: format!("{name}.{short}.{extension}") }
    }
}

/// The user's folder of compiled kernels.
#[derive(Debug)]
pub(crate) struct CodeCache {
    folder: PathBuf,
}

impl CodeCache {
    /// The folder by the conventions of the system, created if missing.
    ///
    /// # Errors
    /// The reason why nothing can be kept.
    pub(crate) fn open() -> Result<Self, String> {
        let variable = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let cache = if cfg!(windows) {
            variable("LOCALAPPDATA")
        } else {
            variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")))
        };
        let cache = cache.ok_or("there is no cache folder; set HOME")?;
        Self::in_folder(cache.join("wavelm").join("kernels"))
    }

    fn in_folder(folder: PathBuf) -> Result<Self, String> {
        let mut builder = DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        let about = |e: &dyn std::fmt::Display| format!("{}: {e}", folder.display());
        builder.create(&folder).map_err(|e| about(&e))?;
        let data = fs::symlink_metadata(&folder).map_err(|e| about(&e))?;
        if !data.is_dir() {
            return Err(about(&"this is a link or a file, not a folder"));
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::{MetadataExt, PermissionsExt};
            if data.uid() != user() {
                return Err(about(&"the folder belongs to another user"));
            }
            if data.mode() & 0o077 != 0 {
                fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).map_err(|e| about(&e))?;
            }
        }
        Ok(Self { folder })
    }

    /// The file of a recipe.
    pub(crate) fn path(&self, recipe: &Recipe) -> PathBuf {
        self.folder.join(&recipe.name)
    }

    /// The code of a recipe; `None` if there is none that can be trusted.
    pub(crate) fn get(&self, recipe: &Recipe) -> Option<Vec<u8>> {
        let path = self.path(recipe);
        match read(&path, recipe) {
            Ok(code) => Some(code),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => {
                log::warn!("{} is not used, but made again: {e}", path.display());
                None
            }
        }
    }

    /// Keeps the code of a recipe. A concurrent reader finds the old file, the new one, or none.
    pub(crate) fn put(&self, recipe: &Recipe, code: &[u8]) -> io::Result<()> {
        /// Threads of one process must not write to the same file either.
        static WRITTEN: AtomicU32 = AtomicU32::new(0);
        let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
        let unfinished = self.folder.join(format!("{}.{}.{number}", recipe.name, std::process::id()));
        let write = || {
            // Removes what a killed process with the same number left behind.
            let _ = fs::remove_file(&unfinished);
            let mut options = OpenOptions::new();
            options.write(true).create_new(true);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            let mut file = options.open(&unfinished)?;
            for part in [MAGIC, &recipe.hash[..], &Hash::hash(code), code] {
                file.write_all(part)?;
            }
            fs::rename(&unfinished, self.folder.join(&recipe.name))
        };
        let written = write();
        if written.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        written
    }
}

/// The code in a file of the cache, checked.
fn read(path: &Path, recipe: &Recipe) -> io::Result<Vec<u8>> {
    let no = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason);
    let file = open(path)?;
    // Checks the open file, because the path may name another file by now.
    let data = file.metadata()?;
    if !data.is_file() {
        return Err(no("this is no regular file"));
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        if data.uid() != user() {
            return Err(no("the file belongs to another user"));
        }
        if data.mode() & 0o022 != 0 {
            return Err(no("others may write to the file"));
        }
    }
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes)?;
    let is_whole = bytes.split_at_checked(HEADER).is_some_and(|(header, code)| {
        !code.is_empty()
            && header
                .strip_prefix(MAGIC)
                .and_then(|hashes| hashes.split_at_checked(HASH))
                .is_some_and(|(of_recipe, of_code)| *of_recipe == recipe.hash && *of_code == Hash::hash(code))
    });
    if !is_whole {
        return Err(no("the file is damaged, or of another version"));
    }
    bytes.drain(..HEADER);
    Ok(bytes)
}

/// Opens a file, but no link, and no pipe: opening a pipe would wait for its writer.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options.open(path)
}

/// The user whose rights this process has.
#[cfg(unix)]
fn user() -> u32 {
    // SAFETY: the call takes nothing, cannot fail and changes nothing.
    unsafe { libc::geteuid() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = env::temp_dir().join(format!("wavelm-kernels-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder
    }

    #[test]
    fn the_cache_gives_back_what_is_whole() {
        let folder = folder("whole");
        let cache = CodeCache::in_folder(folder.join("below")).unwrap();
        let (a, b) = (Recipe::new("a", ["x", "yz"]), Recipe::new("a", ["xy", "z"]));
        assert_eq!(cache.get(&a), None);
        cache.put(&a, b"code").unwrap();
        cache.put(&a, b"other").unwrap();
        assert_eq!(cache.get(&a).as_deref(), Some(&b"other"[..]));
        assert_eq!(cache.get(&b), None);
        assert_eq!(fs::read_dir(&cache.folder).unwrap().count(), 1);
        let path = cache.folder.join(&a.name);
        let whole = fs::read(&path).unwrap();
        // The file of another recipe under this name.
        fs::write(cache.folder.join(&b.name), &whole).unwrap();
        assert_eq!(cache.get(&b), None);
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(cache.get(&a), None, "{length} bytes");
        }
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, damaged).unwrap();
            assert_eq!(cache.get(&a), None, "bit {bit}");
        }
        // With a file in place of the folder, nothing can be kept, not even by root.
        assert!(CodeCache::in_folder(path.clone()).is_err());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn what_others_may_have_written_is_not_believed() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
        let folder = folder("others");
        fs::create_dir_all(folder.join("open")).unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        mode(&folder.join("open"), 0o777);
        let cache = CodeCache::in_folder(folder.join("open")).unwrap();
        assert_eq!(fs::metadata(&cache.folder).unwrap().mode() & 0o777, 0o700);
        let a = Recipe::new("a", ["x"]);
        cache.put(&a, b"code").unwrap();
        let path = cache.folder.join(&a.name);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        mode(&path, 0o620);
        assert_eq!(cache.get(&a), None, "a file that the group may write to");
        mode(&path, 0o600);
        assert!(cache.get(&a).is_some());

        let elsewhere = folder.join("elsewhere");
        fs::rename(&path, &elsewhere).unwrap();
        symlink(&elsewhere, &path).unwrap();
        assert_eq!(cache.get(&a), None, "a link");
        cache.put(&a, b"new").unwrap();
        assert_eq!(cache.get(&a).as_deref(), Some(&b"new"[..]));
        assert!(fs::read(&elsewhere).unwrap().ends_with(b"code"), "a link was followed");

        symlink(&cache.folder, folder.join("link")).unwrap();
        assert!(CodeCache::in_folder(folder.join("link")).unwrap_err().contains("link"));
        // Root can give a file to another user.
        if user() == 0 {
            std::os::unix::fs::chown(&path, Some(1), None).unwrap();
            assert_eq!(cache.get(&a), None, "another user's file");
            std::os::unix::fs::chown(&cache.folder, Some(1), None).unwrap();
            assert!(CodeCache::in_folder(cache.folder.clone()).unwrap_err().contains("another user"));
        } else {
            println!("skipped: only root can make another user's files");
        }
        fs::remove_dir_all(&folder).unwrap();
    }

    /// A pipe in place of a file must not block.
    #[cfg(unix)]
    #[test]
    fn a_pipe_is_no_file() {
        let folder = folder("pipe");
        let cache = CodeCache::in_folder(folder.clone()).unwrap();
        let a = Recipe::new("a", ["x"]);
        let made = std::process::Command::new("mkfifo").arg(folder.join(&a.name)).status();
        if made.is_ok_and(|status| status.success()) {
            assert_eq!(cache.get(&a), None);
        } else {
            println!("skipped: mkfifo is missing");
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
