//! The file hip/prebuilt/manifest: what the archives there hold, and what it was built from.
//!
//! The first line names the compiler. Each other line is an object: family, target, recipe (see
//! `Sources::recipe_hash`), archive, first byte in the unpacked archive, length, hash of the code.

use std::fmt;

pub struct Entry {
    pub family: String,
    pub target: String,
    pub recipe: u64,
    pub archive: String,
    pub from: usize,
    pub length: usize,
    pub hash: u64,
}

pub struct Manifest {
    /// The version of the compiler.
    pub compiler: String,
    pub entries: Vec<Entry>,
}

impl Manifest {
    /// Reads the contents of the file.
    ///
    /// # Errors
    /// A line that is not one of a manifest.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |line: &str| format!("hip/prebuilt/manifest has the line \"{line}\", which is not one of its kind");
        let (first, lines) = text.split_once('\n').unwrap_or_default();
        let compiler = first.strip_prefix("compiler ").ok_or_else(|| wrong(first))?.to_owned();
        let entries = lines.lines().map(|line| Entry::parse(line).ok_or_else(|| wrong(line))).collect::<Result<_, _>>();
        Ok(Self { compiler, entries: entries? })
    }
}

impl Entry {
    fn parse(line: &str) -> Option<Self> {
        let parts: Vec<&str> = line.split(' ').collect();
        let &[family, target, recipe, archive, from, length, hash] = parts.as_slice() else { return None };
        let hexadecimal = |text| u64::from_str_radix(text, 16).ok();
        Some(Self {
            family: family.to_owned(),
            target: target.to_owned(),
            recipe: hexadecimal(recipe)?,
            archive: archive.to_owned(),
            from: from.parse().ok()?,
            length: length.parse().ok()?,
            hash: hexadecimal(hash)?,
        })
    }
}

impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "compiler {}", self.compiler)?;
        for e in &self.entries {
            let (recipe, hash) = (format!("{:016x}", e.recipe), format!("{:016x}", e.hash));
            writeln!(f, "{} {} {recipe} {} {} {} {hash}", e.family, e.target, e.archive, e.from, e.length)?;
        }
        Ok(())
    }
}
