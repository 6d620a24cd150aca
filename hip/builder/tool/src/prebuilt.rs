//! hip/prebuilt: archives of all objects, and the manifest.

use crate::builder::compiler::Job;
use crate::builder::manifest::{Entry, Manifest};
use crate::builder::sources::{FNV_START, Sources, fnv};
use crate::builder::targets::Targets;
use crate::pack::{pack, unpack};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

pub struct Prebuilt<'a> {
    pub hip: &'a Path,
    pub sources: &'a Sources,
    pub targets: &'a Targets,
    /// The folder of the objects.
    pub out: &'a Path,
}

impl Prebuilt<'_> {
    fn folder(&self) -> PathBuf {
        self.hip.join("prebuilt")
    }

    /// Fills the folder with the objects in `out`.
    pub fn write(&self, compiler: &str) -> Result<(), String> {
        let folder = self.folder();
        let mut manifest = Manifest { compiler: compiler.to_owned(), entries: Vec::new() };
        // In the order of the first target of each archive.
        let mut archives: Vec<&str> = Vec::new();
        for target in &self.targets.list {
            if !archives.contains(&target.archive.as_str()) {
                archives.push(&target.archive);
            }
        }
        let mut packed = Vec::new();
        let mut unpacked = 0;
        for family in &self.sources.families {
            for archive in &archives {
                let (mut data, mut file, mut is_text) = (Vec::new(), String::new(), false);
                for target in self.targets.list.iter().filter(|target| target.archive == *archive) {
                    let code = read(&self.out.join(target.object(&family.name)))?;
                    let recipe = self.sources.recipe_hash(&family.name, compiler, &target.flags);
                    file = target.archive_of(&family.name);
                    is_text = target.is_nvidia();
                    manifest.entries.push(Entry {
                        family: family.name.clone(),
                        target: target.name.clone(),
                        recipe: recipe.unwrap_or_default(),
                        archive: file.clone(),
                        from: data.len(),
                        length: code.len(),
                        hash: fnv(&code, FNV_START),
                    });
                    data.extend(code);
                }
                unpacked += data.len();
                packed.push((file, pack(&data, is_text)?));
            }
        }
        // Nothing is lost where packing fails.
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        }
        fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let mut size = 0;
        for (file, archive) in &packed {
            write(&folder.join(file), archive)?;
            size += archive.len();
        }
        write(&folder.join("manifest"), manifest.to_string().as_bytes())?;
        println!("hip/prebuilt: {unpacked} bytes of code in {size} bytes of {} archives", packed.len());
        Ok(())
    }

    fn manifest(&self) -> Result<Manifest, String> {
        let path = self.folder().join("manifest");
        let text = fs::read_to_string(path)
            .map_err(|e| format!("hip/prebuilt/manifest: {e}; run cargo kernels --prebuilt"))?;
        Manifest::parse(&text)
    }

    /// Compares with the objects in `out`.
    pub fn check(&self, compiler: &str) -> Result<(), String> {
        let manifest = self.manifest()?;
        if manifest.compiler != compiler {
            println!("hip/prebuilt was made with {}, not {compiler}: its bytes are not compared", manifest.compiler);
            return Ok(());
        }
        let mut archives = Archives::new(self.folder());
        let (mut wrong, mut seen) = (Vec::new(), HashSet::new());
        for entry in &manifest.entries {
            let (family, name) = (&entry.family, &entry.target);
            seen.insert((family.as_str(), name.as_str()));
            let target = self.targets.get(name);
            let recipe = target.and_then(|target| self.sources.recipe_hash(family, compiler, &target.flags));
            let (Some(target), true) = (target, recipe == Some(entry.recipe)) else {
                wrong.push(format!("hip/prebuilt has {family} for {name} from other sources or flags"));
                continue;
            };
            if archives.code(entry)? != read(&self.out.join(target.object(family)))? {
                wrong.push(format!("hip/prebuilt has other bytes of {family} for {name}"));
            }
        }
        for family in &self.sources.families {
            let lacks = |target: &&str| !seen.contains(&(family.name.as_str(), *target));
            let targets = self.targets.list.iter().map(|target| target.name.as_str());
            wrong
                .extend(targets.filter(lacks).map(|target| format!("hip/prebuilt lacks {} for {target}", family.name)));
        }
        match wrong.as_slice() {
            [] => println!("hip/prebuilt: all {} objects are, byte for byte, what {compiler} makes", seen.len()),
            wrong => return Err(wrong.join("\n")),
        }
        Ok(())
    }

    /// Writes objects to their paths.
    pub fn unpack(&self, jobs: &[Job]) -> Result<(), String> {
        let manifest = self.manifest()?;
        let mut archives = Archives::new(self.folder());
        for job in jobs {
            let (family, target) = (&job.family.name, &job.target.name);
            let entry = manifest.entries.iter().find(|e| e.family == *family && e.target == *target);
            let entry = entry.ok_or(format!("hip/prebuilt lacks {family} for {target}"))?;
            write(&job.path, archives.code(entry)?)?;
        }
        Ok(())
    }
}

/// Archives, each unpacked once.
struct Archives {
    folder: PathBuf,
    unpacked: HashMap<String, Vec<u8>>,
}

impl Archives {
    fn new(folder: PathBuf) -> Self {
        Self { folder, unpacked: HashMap::new() }
    }

    fn code(&mut self, entry: &Entry) -> Result<&[u8], String> {
        if !self.unpacked.contains_key(&entry.archive) {
            let data = unpack(&read(&self.folder.join(&entry.archive))?)?;
            self.unpacked.insert(entry.archive.clone(), data);
        }
        let code = self.unpacked.get(&entry.archive).and_then(|data| data.get(entry.from..)?.get(..entry.length));
        code.ok_or(format!("hip/prebuilt/{} is shorter than the manifest says", entry.archive))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn write(path: &Path, data: &[u8]) -> Result<(), String> {
    fs::write(path, data).map_err(|e| format!("{}: {e}", path.display()))
}
