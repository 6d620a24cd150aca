//! Embeds the machine code of the GPU kernels: the objects in hip/prebuilt, where there are any. Nothing is compiled
//! here, so no GPU tools are needed.
//!
//! hip/prebuilt/manifest has a line for each object: its file name, `<family>.<target>.<hsaco or ptx>`, the hash
//! ([`source_hash`]) of what it was built from, and the compiler with its flags. An object whose sources have changed
//! since does not build into the library by accident: the build stops.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=hip");
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let table = match table(&root.join("hip")) {
        Ok(table) => table,
        Err(e) => panic!("{e}"),
    };
    fs::write(out.join("hip_objects.rs"), table).expect("OUT_DIR can be written");
}

/// The source of the table of embedded objects.
fn table(hip: &Path) -> Result<String, String> {
    let mut table = String::from("const EMBEDDED: &[Embedded] = &[\n");
    let prebuilt = hip.join("prebuilt");
    let manifest = fs::read_to_string(prebuilt.join("manifest")).unwrap_or_default();
    for line in manifest.lines().filter(|l| !l.is_empty()) {
        let mut parts = line.splitn(3, ' ');
        let (Some(file), Some(hash), Some(flags)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(format!("hip/prebuilt/manifest: \"{line}\" is not a file, a hash and flags"));
        };
        let mut names = file.split('.');
        let (Some(family), Some(target)) = (names.next(), names.next()) else {
            return Err(format!("hip/prebuilt/manifest: \"{file}\" is not <family>.<target>.<hsaco or ptx>"));
        };
        if hash != source_hash(hip, family, flags)? {
            return Err(format!("hip/prebuilt/{file} is stale: hip/{family}.hip, a header or its flags have changed"));
        }
        let path = prebuilt.join(file);
        if !path.is_file() {
            return Err(format!("hip/prebuilt/{file} is missing, but the manifest has it"));
        }
        writeln!(table, "    ({family:?}, {target:?}, include_bytes!({:?})),", path).map_err(|e| e.to_string())?;
    }
    table.push_str("];\n");
    Ok(table)
}

/// FNV-1a (64 bits) over the family's source, all headers in order of their names, and compiler and flags.
fn source_hash(hip: &Path, family: &str, flags: &str) -> Result<String, String> {
    let mut files = vec![hip.join(format!("{family}.hip"))];
    let headers = fs::read_dir(hip).map_err(|e| format!("{}: {e}", hip.display()))?;
    let mut headers: Vec<PathBuf> = headers.filter_map(|f| Some(f.ok()?.path())).collect();
    headers.retain(|path| path.extension().is_some_and(|e| e == "h"));
    headers.sort();
    files.extend(headers);
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut add = |bytes: &[u8]| {
        for &byte in bytes {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for file in files {
        add(&fs::read(&file).map_err(|e| format!("{}: {e}", file.display()))?);
    }
    add(flags.as_bytes());
    Ok(format!("{hash:016x}"))
}
