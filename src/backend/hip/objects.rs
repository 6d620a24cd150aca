//! Where the machine code of the kernels comes from: a folder of the user's, or what is embedded in this library.

use std::borrow::Cow;
use std::env;
use std::path::{Path, PathBuf};

/// A folder of `<family>.<target>.hsaco` and `<family>.<target>.ptx` files, which are taken before the embedded ones.
pub(super) const FOLDER_VARIABLE: &str = "WAVELM_HSACO_DIR";

/// An embedded code object: family, target and code.
type Embedded = (&'static str, &'static str, &'static [u8]);

include!(concat!(env!("OUT_DIR"), "/hip_objects.rs"));

/// A code object and where it comes from.
pub(super) struct Object {
    pub(super) code: Cow<'static, [u8]>,
    pub(super) origin: String,
}

/// A family that every model needs: where it is, the others are too.
const PROBE: &str = "matvec";

/// Where the kernels for an architecture come from, or why there are none.
pub(super) fn origin(arch: &str) -> Result<String, String> {
    find(PROBE, arch).map(|object| object.origin)
}

/// The kernels of a family for an architecture.
///
/// # Errors
/// Why there are none.
pub(super) fn find(family: &str, arch: &str) -> Result<Object, String> {
    let folder = env::var_os(FOLDER_VARIABLE).filter(|v| !v.is_empty()).map(PathBuf::from);
    find_in(folder.as_deref(), EMBEDDED, family, arch)
}

fn find_in(folder: Option<&Path>, embedded: &[Embedded], family: &str, arch: &str) -> Result<Object, String> {
    let targets = targets(arch);
    for target in folder.iter().flat_map(|_| &targets) {
        for extension in ["hsaco", "ptx"] {
            let Some(folder) = folder else { continue };
            let path = folder.join(format!("{family}.{target}.{extension}"));
            match std::fs::read(&path) {
                Ok(code) => return Ok(Object::new(Cow::Owned(code), path.display().to_string())),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(format!("{} cannot be read: {e}", path.display())),
            }
        }
    }
    let target = targets.iter().find_map(|t| embedded.iter().find(|(f, e, _)| *f == family && e == t));
    if let Some((_, target, code)) = target {
        return Ok(Object::new(Cow::Borrowed(*code), format!("embedded for {target}")));
    }
    let elsewhere = match folder {
        Some(folder) => format!("{} ({FOLDER_VARIABLE}) has none either", folder.display()),
        None => format!("{FOLDER_VARIABLE} names no folder with others"),
    };
    let mut known: Vec<&str> = embedded.iter().map(|(_, target, _)| *target).collect();
    known.sort_unstable();
    known.dedup();
    let known = if known.is_empty() { "no kernels at all".to_owned() } else { format!("only {}", known.join(", ")) };
    Err(format!("there are no {family} kernels for {arch}: this build of wavelm has {known}, and {elsewhere}"))
}

impl Object {
    fn new(code: Cow<'static, [u8]>, origin: String) -> Self {
        // PTX is text, which the driver takes as a C string; machine code begins with the magic number of ELF files.
        let is_text = !code.starts_with(b"\x7fELF") && code.last() != Some(&0);
        let code = if is_text { Cow::Owned([&code, &b"\0"[..]].concat()) } else { code };
        Self { code, origin }
    }
}

/// Whether kernels of an architecture use matrix cores: those of the families matmul_core_*, which no other has.
pub(super) fn has_matrix_cores(arch: &str) -> bool {
    const FAMILIES: [&str; 5] = ["gfx11", "gfx12", "gfx94", "gfx95", "sm_"];
    FAMILIES.iter().any(|family| arch.starts_with(family)) || ["gfx908", "gfx90a", "gfxsim"].contains(&arch)
}

/// What runs on an architecture, best first: itself, and what its maker promises to run on it. There are no guesses.
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

    const SOME: &[Embedded] = &[
        ("matvec", "gfx1100", b"\x7fELF exact"),
        ("matvec", "gfx11-generic", b"\x7fELF generic"),
        ("matvec", "sm_80", b"ptx"),
    ];

    #[test]
    fn the_exact_object_comes_before_the_generic_one() {
        let origin = |arch| find_in(None, SOME, "matvec", arch).map(|o| o.origin);
        assert_eq!(origin("gfx1100").unwrap(), "embedded for gfx1100");
        assert_eq!(origin("gfx1102").unwrap(), "embedded for gfx11-generic");
        assert_eq!(origin("sm_90").unwrap(), "embedded for sm_80");
        for unknown in ["gfx1250", "gfx1030", "sm_75", ""] {
            let reason = origin(unknown).unwrap_err();
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
        let object = find_in(Some(&folder), SOME, "matvec", "gfx1100").unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(&*object.code, b"\x7fELF mine");
        let other = find_in(Some(&folder), SOME, "matvec", "sm_86").unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((&*other.code, other.origin.as_str()), (&b"ptx\0"[..], "embedded for sm_80"));
        assert!(find_in(Some(&folder), &[], "norm", "gfx1100").is_err_and(|e| e.contains("no kernels at all")));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
