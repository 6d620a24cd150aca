//! Sources of the kernels' machine code: a folder of the user's, the objects embedded in this
//! library, or a compiler on the machine at run time.

use super::rtc;
use crate::memory;
use std::borrow::Cow;
use std::env;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// A folder of `<family>.<target>.hsaco` and `<family>.<target>.ptx` files, which take precedence
/// over the embedded ones.
pub(crate) const FOLDER_VARIABLE: &str = "WAVELM_HSACO_DIR";

/// An embedded code object.
struct Embedded {
    family: &'static str,
    target: &'static str,
    code: Code,
    /// [`fnv`] of the code.
    hash: u64,
}

#[derive(Clone, Copy)]
// Each build uses only one variant: objects built with the library, or prebuilt ones.
#[allow(dead_code)]
enum Code {
    Plain(&'static [u8]),
    /// A part of an LZMA archive. An archive holds the objects of one family for neighbouring
    /// targets, which are so alike that together they take a third of the space.
    Packed {
        archive: &'static [u8],
        from: usize,
        length: usize,
    },
}

include!(concat!(env!("OUT_DIR"), "/hip_objects.rs"));

/// FNV-1a with 64 bits: detects damage, not forgery.
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A code object and where it comes from.
pub(crate) struct Object {
    pub(crate) code: Cow<'static, [u8]>,
    pub(crate) origin: String,
}

/// A family that every model needs. Where it exists, the others exist too.
const PROBE: &str = "matvec";

/// Where the kernels for an architecture come from, or why there are none.
pub(crate) fn origin(arch: &str) -> Result<String, String> {
    source(PROBE, arch).map(|source| source.origin())
}

/// The kernels of a family for an architecture, best first: a driver may refuse code that is newer
/// than itself.
///
/// # Errors
/// The reason why there are none.
pub(crate) fn find<'a>(
    family: &'a str,
    arch: &str,
) -> Result<impl Iterator<Item = Result<Object, String>> + use<'a>, String> {
    let folder = folder();
    let mut found = locate(folder.as_deref(), EMBEDDED, family, arch).peekable();
    let none = found.peek().is_none().then(|| missing(folder.as_deref(), EMBEDDED, family, arch));
    let arch = arch.to_owned();
    // Tried only if the driver refuses everything else, because starting a compiler takes time.
    let mut compiled =
        std::iter::once_with(move || rtc::Target::new(&arch).map(|t| Source::Compiled(t, family))).peekable();
    if let Some(reason) = none
        && let Some(Err(e)) = compiled.peek()
    {
        return Err(format!("{reason}; {e}"));
    }
    Ok(found.map(Ok).chain(compiled).map(|source| source?.load()))
}

fn folder() -> Option<PathBuf> {
    env::var_os(FOLDER_VARIABLE).filter(|v| !v.is_empty()).map(PathBuf::from)
}

fn source<'a>(family: &'a str, arch: &str) -> Result<Source<'a>, String> {
    let folder = folder();
    let located = locate(folder.as_deref(), EMBEDDED, family, arch).next();
    located
        .map_or_else(|| rtc::Target::new(arch).map(|target| Source::Compiled(target, family)), Ok)
        .map_err(|e| format!("{}; {e}", missing(folder.as_deref(), EMBEDDED, family, arch)))
}

/// The place of an object.
enum Source<'a> {
    File(PathBuf),
    Embedded(&'a Embedded),
    /// Also has the family.
    Compiled(rtc::Target, &'a str),
}

/// Files and embedded objects, best first.
fn locate<'a>(
    folder: Option<&Path>,
    embedded: &'a [Embedded],
    family: &'a str,
    arch: &str,
) -> impl Iterator<Item = Source<'a>> + use<'a> {
    let targets = targets(arch);
    let mut files = Vec::new();
    if let Some(folder) = folder {
        let paths = targets.iter().flat_map(|t| ["hsaco", "ptx"].map(|e| folder.join(format!("{family}.{t}.{e}"))));
        files.extend(paths.filter(|path| path.exists()).map(Source::File));
    }
    let of_target = move |t: String| embedded.iter().find(|e| e.family == family && e.target == t);
    files.into_iter().chain(targets.into_iter().filter_map(of_target).map(Source::Embedded))
}

/// The reason why there are none.
fn missing(folder: Option<&Path>, embedded: &[Embedded], family: &str, arch: &str) -> String {
    let elsewhere = match folder {
        Some(folder) => format!("{} ({FOLDER_VARIABLE}) has none either", folder.display()),
        None => format!("{FOLDER_VARIABLE} names no folder with others"),
    };
    let mut known: Vec<&str> = embedded.iter().map(|e| e.target).collect();
    known.sort_unstable();
    known.dedup();
    let known = if known.is_empty() { "no kernels at all".to_owned() } else { format!("only {}", known.join(", ")) };
    format!("there are no {family} kernels for {arch}: this build of wavelm has {known}, and {elsewhere}")
}

impl Source<'_> {
    /// The origin, for people.
    fn origin(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Embedded(embedded) => format!("embedded for {}", embedded.target),
            Self::Compiled(target, _) => target.origin(),
        }
    }

    fn load(&self) -> Result<Object, String> {
        let code = match self {
            Self::File(path) => Cow::Owned(read(path).map_err(|e| format!("{} cannot be read: {e}", path.display()))?),
            Self::Embedded(embedded) => embedded.unpack()?,
            Self::Compiled(target, family) => Cow::Owned(target.object(family)?),
        };
        // PTX is text, and the driver takes it as a C string. Machine code begins with the magic
        // number of ELF files.
        let is_text = !code.starts_with(b"\x7fELF") && code.last() != Some(&0);
        let code = if is_text { Cow::Owned(terminated(&code).map_err(|e| e.to_string())?) } else { code };
        Ok(Object { code, origin: self.origin() })
    }
}

/// The bytes of a file. Lack of memory is an error.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    // The reader grows the vector, and reports an error where it cannot.
    let mut code = Vec::new();
    std::fs::File::open(path)?.read_to_end(&mut code)?;
    Ok(code)
}

/// Text with a zero at its end.
fn terminated(text: &[u8]) -> crate::Result<Vec<u8>> {
    let mut terminated = memory::with_room(text.len() + 1, "kernels as text")?;
    terminated.extend_from_slice(text);
    terminated.push(0);
    Ok(terminated)
}

/// Whether kernels of an architecture use matrix cores. Only these architectures have the families
/// matmul_core_*.
pub(crate) fn has_matrix_cores(arch: &str) -> bool {
    const FAMILIES: [&str; 5] = ["gfx11", "gfx12", "gfx94", "gfx95", "sm_"];
    FAMILIES.iter().any(|family| arch.starts_with(family)) || ["gfx908", "gfx90a", "gfxsim"].contains(&arch)
}

impl Embedded {
    /// The code, checked.
    fn unpack(&self) -> Result<Cow<'static, [u8]>, String> {
        let damaged = |e: &str| format!("the embedded {} kernels for {} are damaged: {e}", self.family, self.target);
        let code = match self.code {
            Code::Plain(code) => Cow::Borrowed(code),
            Code::Packed { archive, from, length } => {
                Cow::Owned(unpack(archive, from, length).map_err(|e| damaged(&e.to_string()))?)
            }
        };
        if fnv(&code) != self.hash {
            return Err(damaged("their checksum is another"));
        }
        Ok(code)
    }
}

/// The part of an archive from byte `from` on.
fn unpack(archive: &[u8], from: usize, length: usize) -> io::Result<Vec<u8>> {
    /// The most memory for the decoder in KiB. Its window is as large as the largest archive's
    /// content.
    const MOST_MEMORY: u32 = 64 << 10;
    let mut reader = lzma_rust2::LzmaReader::new_mem_limit(archive, MOST_MEMORY, None)?;
    io::copy(&mut (&mut reader).take(from as u64), &mut io::sink())?;
    let mut code = Vec::new();
    code.try_reserve_exact(length)?;
    reader.take(length as u64).read_to_end(&mut code)?;
    if code.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(code)
}

/// The targets whose code runs on an architecture, best first: the architecture itself, and those
/// whose compatibility its maker promises. There are no guesses.
fn targets(arch: &str) -> Vec<String> {
    let mut targets = vec![arch.to_owned()];
    if let Some(version) = arch.strip_prefix("sm_").and_then(|v| v.parse::<u32>().ok()) {
        // PTX for an older architecture is compiled for newer ones.
        targets.extend((50..version).rev().map(|v| format!("sm_{v}")));
    } else if let Some(generic) = generic_target(arch) {
        targets.push(generic.to_owned());
    }
    targets
}

/// The generic target of LLVM that covers a processor ("User Guide for AMDGPU Backend", table of generic processors).
fn generic_target(arch: &str) -> Option<&'static str> {
    match arch {
        "gfx900" | "gfx902" | "gfx904" | "gfx906" | "gfx909" | "gfx90c" => Some("gfx9-generic"),
        "gfx940" | "gfx941" | "gfx942" | "gfx950" => Some("gfx9-4-generic"),
        "gfx1010" | "gfx1011" | "gfx1012" | "gfx1013" => Some("gfx10-1-generic"),
        "gfx1030" | "gfx1031" | "gfx1032" | "gfx1033" | "gfx1034" | "gfx1035" | "gfx1036" => Some("gfx10-3-generic"),
        "gfx1100" | "gfx1101" | "gfx1102" | "gfx1103" | "gfx1150" | "gfx1151" | "gfx1152" | "gfx1153" => {
            Some("gfx11-generic")
        }
        "gfx1200" | "gfx1201" => Some("gfx12-generic"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn plain(family: &'static str, target: &'static str, code: &'static [u8], hash: u64) -> Embedded {
        Embedded { family, target, code: Code::Plain(code), hash }
    }

    const SOME: &[Embedded] = &[
        plain("matvec", "gfx1100", b"\x7fELF exact", 0),
        plain("matvec", "gfx11-generic", b"\x7fELF generic", 0),
        plain("matvec", "sm_80", b"ptx", 0x77f66219569bebfb),
    ];

    fn load(folder: Option<&Path>, embedded: &[Embedded], family: &str, arch: &str) -> Result<Object, String> {
        let first = locate(folder, embedded, family, arch).next();
        first.ok_or_else(|| missing(folder, embedded, family, arch))?.load()
    }

    #[test]
    fn the_exact_object_comes_before_the_generic_one() {
        let origins = |arch| locate(None, SOME, "matvec", arch).map(|source| source.origin()).collect::<Vec<_>>();
        assert_eq!(origins("gfx1100"), ["embedded for gfx1100", "embedded for gfx11-generic"]);
        assert_eq!(origins("gfx1102"), ["embedded for gfx11-generic"]);
        assert_eq!(origins("sm_90"), ["embedded for sm_80"]);
        for unknown in ["gfx1250", "gfx1030", "sm_75", ""] {
            assert!(origins(unknown).is_empty());
            let reason = missing(None, SOME, "matvec", unknown);
            assert!(reason.contains("gfx11-generic") && reason.contains(FOLDER_VARIABLE), "{reason}");
        }
    }

    #[test]
    fn matrix_cores_are_known() {
        assert!(
            ["gfx90a", "gfx942", "gfx1100", "gfx1151", "gfx1201", "sm_80", "sm_90"].map(has_matrix_cores) == [true; 7]
        );
        assert!(["gfx906", "gfx90c", "gfx1010", "gfx1030"].map(has_matrix_cores) == [false; 4]);
    }

    #[test]
    fn a_folder_comes_first_and_text_ends_with_zero() {
        let folder = env::temp_dir().join(format!("wavelm-objects-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("matvec.gfx11-generic.hsaco"), b"\x7fELF mine").unwrap();
        let object = load(Some(&folder), SOME, "matvec", "gfx1100").unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(&*object.code, b"\x7fELF mine");
        let other = load(Some(&folder), SOME, "matvec", "sm_86").unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((&*other.code, other.origin.as_str()), (&b"ptx\0"[..], "embedded for sm_80"));
        assert!(load(Some(&folder), &[], "norm", "gfx1100").is_err_and(|e| e.contains("no kernels at all")));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    /// 300 times "first, ", then 300 times "second, ", packed like the archives in hip/prebuilt.
    const ARCHIVE: &[u8] = &[
        109, 0, 0, 1, 0, 255, 255, 255, 255, 255, 255, 255, 255, 0, 51, 26, 74, 71, 51, 216, 151, 15, 76, 112, 164, 4,
        219, 243, 59, 255, 25, 105, 228, 179, 131, 196, 125, 4, 2, 105, 126, 138, 103, 178, 140, 167, 134, 140, 228,
        121, 199, 14, 96, 169, 105, 204, 141, 133, 255, 255, 103, 88, 0, 0,
    ];

    fn packed(archive: &'static [u8], length: usize) -> Embedded {
        let code = Code::Packed { archive, from: 7 * 300, length };
        Embedded { family: "matvec", target: "gfx906", code, hash: fnv("second, ".repeat(300).as_bytes()) }
    }

    #[test]
    fn a_part_of_an_archive_is_unpacked() {
        let code = packed(ARCHIVE, 8 * 300).unpack().unwrap();
        assert_eq!(code, "second, ".repeat(300).as_bytes());
        for length in [8 * 300 + 1, 8 * 300 - 1, 0, usize::MAX] {
            let reason = packed(ARCHIVE, length).unpack().unwrap_err();
            assert!(reason.contains("matvec kernels for gfx906 are damaged"), "{reason}");
        }
    }

    #[test]
    fn a_damaged_archive_gives_an_error_or_the_right_code() {
        let expected = "second, ".repeat(300);
        let mut errors = 0;
        for bit in 0..ARCHIVE.len() * 8 {
            let mut archive = ARCHIVE.to_vec();
            archive[bit / 8] ^= 1 << (bit % 8);
            // Some bits have no effect on the code: they enlarge the window, or follow the code.
            match packed(archive.leak(), expected.len()).unpack() {
                Ok(code) => assert_eq!(code, expected.as_bytes(), "bit {bit}"),
                Err(_) => errors += 1,
            }
        }
        assert!(errors > ARCHIVE.len() * 8 / 2, "{errors} of {} bits", ARCHIVE.len() * 8);
        for length in 0..ARCHIVE.len() / 2 {
            assert!(packed(&ARCHIVE[..length], expected.len()).unpack().is_err(), "{length} bytes");
        }
    }

    #[test]
    fn all_embedded_objects_are_whole() {
        for embedded in EMBEDDED {
            let code = embedded.unpack().unwrap();
            let start: &[u8] = if embedded.target.starts_with("sm_") { b"//" } else { b"\x7fELF" };
            assert!(code.starts_with(start), "{} for {}", embedded.family, embedded.target);
        }
    }
}
