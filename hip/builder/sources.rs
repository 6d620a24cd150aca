//! The sources of the kernels: families, headers, and families that a template generates.
//!
//! Sources lie in folders by subject. A family is a file `<family>.hip`, from which each target
//! gets one object. Includes name headers from hip/ on: `#include "common/gpu.h"`.
//!
//! A template `<prefix>TYPE.hip.template` stands for a family for each tensor type in the lists of
//! [`FORMATS`]: TYPE in its name and text becomes the type's name in kernels, FORMAT the name of
//! its C++ class.

use std::fs;
use std::path::{Path, PathBuf};

/// Folders in hip/ that hold no sources of kernels.
const OTHER_FOLDERS: [&str; 4] = ["builder", "prebuilt", "sim", "tests"];

/// The header that lists tensor types, and the lists that templates use.
const FORMATS: (&str, [&str; 2]) = ("quant/formats.h", ["QUANTIZED_FORMATS", "HALF_FORMATS"]);

/// What [`fnv`] starts from.
pub const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a with 64 bits.
pub fn fnv(bytes: &[u8], start: u64) -> u64 {
    bytes.iter().fold(start, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A file of kernels.
pub struct Source {
    /// The family; of a header, the name by which others include it.
    pub name: String,
    /// The file to compile.
    pub path: PathBuf,
    pub text: String,
    /// The file in hip/ to edit: the template of a generated source.
    pub origin: String,
}

/// All of them, each list in the order of names.
pub struct Sources {
    pub families: Vec<Source>,
    pub headers: Vec<Source>,
}

impl Sources {
    /// Reads the sources in `hip`, and writes the generated ones to the folder `generated`.
    ///
    /// # Errors
    /// Files that cannot be read or written, a family that is there twice, a template whose list of
    /// tensor types is missing.
    pub fn read(hip: &Path, generated: &Path) -> Result<Self, String> {
        let is_kernels = |path: &Path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            path.is_dir() && !name.starts_with('.') && !OTHER_FOLDERS.contains(&name)
        };
        let (mut families, mut headers, mut templates) = (Vec::new(), Vec::new(), Vec::new());
        let folders = entries(hip)?.into_iter().filter(|path| is_kernels(path));
        for path in folders.map(|folder| entries(&folder)).collect::<Result<Vec<_>, _>>()?.concat() {
            let origin = path.strip_prefix(hip).unwrap_or(&path).to_string_lossy().replace('\\', "/");
            let file = origin.rsplit('/').next().unwrap_or_default();
            let (list, name) = match file.split_once('.') {
                Some((family, "hip")) => (&mut families, family.to_owned()),
                Some((_, "h")) => (&mut headers, origin.clone()),
                Some((family, "hip.template")) => (&mut templates, family.to_owned()),
                _ => continue,
            };
            let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            list.push(Source { name, path, text, origin });
        }
        for template in templates {
            generate(&template, &headers, generated, &mut families)?;
        }
        families.sort_by(|a, b| a.name.cmp(&b.name));
        headers.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some([a, b]) = families.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(format!("hip/{} and hip/{} are of the same family", a.origin, b.origin));
        }
        Ok(Self { families, headers })
    }

    /// The family of that name.
    pub fn family(&self, name: &str) -> Option<&Source> {
        self.families.iter().find(|family| family.name == name)
    }

    /// Identifies what an object is built from: its source, all headers, the compiler and the
    /// flags. `None` for a family that does not exist.
    pub fn recipe_hash(&self, family: &str, compiler: &str, flags: &[String]) -> Option<u64> {
        let source = fnv(self.family(family)?.text.as_bytes(), FNV_START);
        let sources = self.headers.iter().fold(source, |hash, header| fnv(header.text.as_bytes(), hash));
        Some(fnv(format!("{compiler} {}", flags.join(" ")).as_bytes(), sources))
    }
}

/// What a folder holds, in order.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    Ok(paths)
}

/// Adds the families that a template stands for.
fn generate(template: &Source, headers: &[Source], folder: &Path, to: &mut Vec<Source>) -> Result<(), String> {
    let (header, lists) = FORMATS;
    let text = headers.iter().find(|h| h.name == header).map(|h| h.text.as_str()).unwrap_or_default();
    fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    for list in lists {
        let types = stamps(text, list);
        if types.is_empty() {
            return Err(format!("hip/{}: hip/{header} has no list {list}", template.origin));
        }
        for (name, format) in types {
            let family = template.name.replace("TYPE", name);
            let text = template.text.replace("TYPE", name).replace("FORMAT", format);
            let path = folder.join(format!("{family}.hip"));
            // A file that stays the same keeps its time.
            if fs::read_to_string(&path).ok().as_ref() != Some(&text) {
                fs::write(&path, &text).map_err(|e| format!("{}: {e}", path.display()))?;
            }
            to.push(Source { name: family, path, text, origin: template.origin.clone() });
        }
    }
    Ok(())
}

/// The names in the macro `list` of a header: `STAMP(name, format)`, one a line.
fn stamps<'a>(text: &'a str, list: &str) -> Vec<(&'a str, &'a str)> {
    let head = format!("#define {list}(STAMP)");
    let lines = text.lines().skip_while(|line| !line.starts_with(&head)).skip(1);
    lines
        .map_while(|line| {
            let names = line.trim().strip_prefix("STAMP(")?.split(')').next()?;
            names.split_once(", ")
        })
        .collect()
}
