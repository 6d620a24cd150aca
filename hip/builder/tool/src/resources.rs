//! What the kernels of an object use, from the notes that AMD's objects carry.

use crate::builder::compiler::candidates;
use crate::builder::targets::Target;
use std::fmt;
use std::path::Path;
use std::process::Command;

// With these, at least four waves fit a compute unit of every target, and a block fits NVIDIA's
// static shared memory.
const MAX_VGPRS: u32 = 256;
const MAX_LDS: u32 = 48 * 1024;

/// What a kernel uses.
#[derive(Default, Debug, PartialEq)]
pub struct Used {
    pub name: String,
    vgprs: u32,
    agprs: u32,
    sgprs: u32,
    vgpr_spills: u32,
    sgpr_spills: u32,
    /// Bytes of memory for each lane, for what registers cannot hold.
    scratch: u32,
    /// Bytes of shared memory for each block.
    lds: u32,
    /// Lanes of a wave.
    wave: u32,
}

impl Used {
    /// Whether it spills, needs scratch memory, or is beyond a budget.
    pub fn is_too_much(&self) -> bool {
        let spills = self.vgpr_spills + self.sgpr_spills;
        spills > 0 || self.scratch > 0 || self.vgprs > MAX_VGPRS || self.lds > MAX_LDS
    }

    fn set(&mut self, field: &str, value: &str) {
        let field = match field {
            "name" => return value.clone_into(&mut self.name),
            "vgpr_count" => &mut self.vgprs,
            "agpr_count" => &mut self.agprs,
            "sgpr_count" => &mut self.sgprs,
            "vgpr_spill_count" => &mut self.vgpr_spills,
            "sgpr_spill_count" => &mut self.sgpr_spills,
            "private_segment_fixed_size" => &mut self.scratch,
            "group_segment_fixed_size" => &mut self.lds,
            "wavefront_size" => &mut self.wave,
            _ => return,
        };
        // A value that cannot be read is beyond every budget.
        *field = value.parse().unwrap_or(u32::MAX);
    }
}

impl fmt::Display for Used {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spills = self.vgpr_spills + self.sgpr_spills;
        let Self { vgprs, agprs, sgprs, scratch, lds, wave, .. } = self;
        write!(f, "{vgprs:5} {agprs:5} {sgprs:5} {spills:6} {scratch:7} {lds:6} {wave:4}")
    }
}

/// The program that reads objects.
pub struct Reader(String);

impl Reader {
    pub fn find() -> Result<Self, String> {
        let candidates = candidates("LLVM_READELF", "llvm-readelf");
        let runs = |name: &String| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success());
        let found = candidates.iter().find(|name| runs(name)).cloned();
        found.map(Self).ok_or(format!(
            "there is no llvm-readelf (tried {}): install LLVM's tools, or set LLVM_READELF to the program",
            candidates.join(", ")
        ))
    }

    /// What each kernel of an object uses, in the order of their names; nothing for PTX.
    pub fn used(&self, path: &Path, target: &Target) -> Result<Vec<Used>, String> {
        if target.is_nvidia() {
            return Ok(Vec::new());
        }
        let output = Command::new(&self.0).arg("--notes").arg(path).output().map_err(|e| format!("{}: {e}", self.0))?;
        if !output.status.success() {
            return Err(format!("{} {}: {}", self.0, path.display(), String::from_utf8_lossy(&output.stderr)));
        }
        Ok(parse(&String::from_utf8_lossy(&output.stdout)))
    }
}

/// The kernels in the notes. Each is an item of a list, whose own fields are indented by four.
fn parse(notes: &str) -> Vec<Used> {
    let mut kernels: Vec<Used> = Vec::new();
    let list = notes.split_once("amdhsa.kernels:").map_or("", |(_, list)| list);
    for line in list.lines() {
        let Some((indent, field)) = line.split_at_checked(4) else { continue };
        if indent == "  - " {
            kernels.push(Used::default());
        }
        let (Some(kernel), Some(field)) = (kernels.last_mut(), field.strip_prefix('.')) else { continue };
        if let Some((name, value)) = field.split_once(':').filter(|_| indent == "  - " || indent == "    ") {
            kernel.set(name, value.trim());
        }
    }
    // Families for matrix cores are empty for targets that have none.
    kernels.retain(|kernel| !kernel.name.is_empty());
    kernels.sort_by(|a, b| a.name.cmp(&b.name));
    kernels
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTES: &str = "\
Displaying notes found in: .note
  Owner                Data size        Description
  AMDGPU               0x000001e0       NT_AMDGPU_METADATA (AMDGPU Metadata)
    AMDGPU Metadata:
---
amdhsa.kernels:
  - .agpr_count:     4
    .args:
      - .name:           not_a_kernel
        .offset:         0
    .group_segment_fixed_size: 128
    .name:           second
    .private_segment_fixed_size: 0
    .sgpr_count:     14
    .sgpr_spill_count: 0
    .vgpr_count:     9
    .vgpr_spill_count: 0
    .wavefront_size: 32
  - .args:           []
    .name:           first
    .vgpr_spill_count: 3
amdhsa.target:   amdgcn-amd-amdhsa--gfx1100
amdhsa.version:
  - 1
  - 2
...
";

    #[test]
    fn notes_are_read() {
        let kernels = parse(NOTES);
        let names: Vec<&str> = kernels.iter().map(|kernel| kernel.name.as_str()).collect();
        assert_eq!(names, ["first", "second"]);
        assert!(kernels[0].is_too_much());
        let expected =
            Used { name: "second".to_owned(), vgprs: 9, agprs: 4, sgprs: 14, lds: 128, wave: 32, ..Used::default() };
        assert_eq!(kernels[1], expected);
        assert!(!kernels[1].is_too_much());
        assert!(parse("").is_empty());
    }
}
