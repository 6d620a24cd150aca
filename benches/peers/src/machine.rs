//! What machine this is.

use std::fmt::Write;
use std::process::Command;

/// One line: the processor, its cores and those of its instruction sets that matter here.
pub fn describe() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut text = processor(&cpuinfo).or_else(elsewhere).unwrap_or_else(|| "unknown processor".into());
    let virtual_machine = if has_flag(&cpuinfo, "hypervisor") { " of a virtual machine" } else { "" };
    // Writing to a string cannot fail.
    let _ = write!(text, "; {} on {}; {cores} cores{virtual_machine}; ", std::env::consts::ARCH, std::env::consts::OS);
    let mut sets = instruction_sets();
    // Nothing stable detects it.
    sets.extend(["amx_int8"].into_iter().filter(|flag| has_flag(&cpuinfo, flag)));
    if sets.is_empty() {
        sets.push("no instruction sets that matter here");
    }
    text + &sets.join(", ")
}

/// From Linux's description of the first processor. The name alone says little where a hypervisor shortens it.
fn processor(cpuinfo: &str) -> Option<String> {
    let field = |key: &str| Some(cpuinfo.lines().find_map(|line| value(line, key))?.to_string());
    let numbers = |keys: &[(&str, &str)]| -> Option<String> {
        let all: Option<Vec<String>> = keys.iter().map(|(key, name)| Some(format!("{name} {}", field(key)?))).collect();
        Some(all?.join(", "))
    };
    let x86 = numbers(&[("cpu family", "family"), ("model", "model"), ("stepping", "stepping")]);
    match (field("model name"), x86) {
        (Some(name), Some(x86)) => Some(format!("{name} ({x86})")),
        (Some(name), None) => Some(name),
        (None, _) => {
            numbers(&[("CPU implementer", "ARM implementer"), ("CPU part", "part"), ("CPU revision", "revision")])
        }
    }
}

fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let (name, value) = line.split_once(':')?;
    (name.trim() == key).then(|| value.trim())
}

fn has_flag(cpuinfo: &str, flag: &str) -> bool {
    let flags = cpuinfo.lines().find_map(|line| value(line, "flags"));
    flags.is_some_and(|flags| flags.split_ascii_whitespace().any(|one| one == flag))
}

/// The processor's name on macOS and Windows.
fn elsewhere() -> Option<String> {
    let sysctl = || Command::new("sysctl").args(["-n", "machdep.cpu.brand_string"]).output().ok();
    let name =
        sysctl().filter(|out| out.status.success()).map(|out| String::from_utf8_lossy(&out.stdout).trim().into());
    name.or_else(|| std::env::var("PROCESSOR_IDENTIFIER").ok())
}

/// Whether this program, and what is compiled into it, may use all of these instruction sets without asking for them.
pub fn compiled_for_it() -> bool {
    all_sets().into_iter().all(|(_, detected, compiled)| compiled || !detected)
}

fn instruction_sets() -> Vec<&'static str> {
    all_sets().into_iter().filter(|(_, detected, _)| *detected).map(|(name, ..)| name).collect()
}

/// Names, with whether this processor has them, and whether the compiler was told that every processor has.
macro_rules! sets {
    ($detect:ident: $($name:tt)*) => {
        vec![$(($name, std::arch::$detect!($name), cfg!(target_feature = $name))),*]
    };
}

#[cfg(target_arch = "x86_64")]
fn all_sets() -> Vec<(&'static str, bool, bool)> {
    sets!(is_x86_feature_detected: "avx2" "fma" "f16c" "avxvnni" "avx512f" "avx512bw" "avx512dq" "avx512vl" "avx512vbmi"
          "avx512vnni" "avx512bf16" "avx512fp16")
}

#[cfg(target_arch = "aarch64")]
fn all_sets() -> Vec<(&'static str, bool, bool)> {
    sets!(is_aarch64_feature_detected: "neon" "fp16" "dotprod" "i8mm" "bf16" "sve" "sve2")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn all_sets() -> Vec<(&'static str, bool, bool)> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_processors() {
        let x86 = "processor\t: 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\nstepping\t: 1\nflags\t\t: fpu amx_int8\n";
        assert_eq!(processor(x86).unwrap(), "AMD EPYC (family 26, model 2, stepping 1)");
        assert!(has_flag(x86, "amx_int8") && !has_flag(x86, "amx"));
        let arm = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\nCPU revision\t: 1\n";
        assert_eq!(processor(arm).unwrap(), "ARM implementer 0x41, part 0xd0c, revision 1");
        assert_eq!(processor(""), None);
        assert!(describe().contains(" cores"));
    }
}
