//! The file hip/targets: what the kernels are built for, and with which flags.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// A GPU, or a family of GPUs, that objects are built for.
pub struct Target {
    pub name: String,
    /// The archive in hip/prebuilt that holds the objects of this target and its neighbours.
    pub archive: String,
    pub flags: Vec<String>,
}

impl Target {
    /// Whether its objects are PTX, which is text, rather than machine code.
    pub fn is_nvidia(&self) -> bool {
        self.name.starts_with("sm_")
    }

    /// The name of the object of a family.
    pub fn object(&self, family: &str) -> String {
        format!("{family}.{}.{}", self.name, if self.is_nvidia() { "ptx" } else { "hsaco" })
    }

    /// The name of the archive of a family.
    pub fn archive_of(&self, family: &str) -> String {
        format!("{family}.{}.lzma", self.archive)
    }
}

/// The contents of hip/targets, whose head explains its lines.
pub struct Targets {
    pub list: Vec<Target>,
    /// Flags for hipRTC, which compiles the kernels when a program runs.
    pub rtc: Vec<String>,
}

impl Targets {
    /// Reads the file.
    ///
    /// # Errors
    /// A line that cannot be understood, or a file that cannot be read.
    pub fn read(hip: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(hip.join("targets")).map_err(|e| format!("hip/targets: {e}"))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut named: HashMap<&str, Vec<String>> = HashMap::new();
        let mut list = Vec::new();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let Some(name) = words.next().filter(|name| !name.starts_with('#')) else { continue };
            let is_name = name.starts_with('@');
            let archive = if is_name { "" } else { words.next().unwrap_or_default() };
            let mut flags: Vec<String> = Vec::new();
            for word in words {
                match (word.starts_with('@'), named.get(word)) {
                    (false, _) => flags.push(word.to_owned()),
                    (true, Some(more)) => flags.extend_from_slice(more),
                    (true, None) => return Err(format!("hip/targets: {word} is not defined before it is used")),
                }
            }
            if is_name {
                named.insert(name, flags);
            } else {
                let flags = flags.iter().map(|flag| flag.replace("TARGET", name)).collect();
                list.push(Target { name: name.to_owned(), archive: archive.to_owned(), flags });
            }
        }
        let rtc = named.remove("@rtc").ok_or("hip/targets does not define @rtc")?;
        Ok(Self { list, rtc })
    }

    /// The target of that name.
    pub fn get(&self, name: &str) -> Option<&Target> {
        self.list.iter().find(|target| target.name == name)
    }
}
