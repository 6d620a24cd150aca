//! Split sets: a model in several files named `…-00001-of-0000N.gguf`. Each file says which part it
//! is.

use super::parse::{Parsed, parse};
use super::storage::{Reading, Storage};
use super::{TensorInfo, show};
use crate::{Error, ErrorKind, Result, memory};
use std::path::{Path, PathBuf};

/// The limit of the five digits in a name.
const MOST_PARTS: usize = 99_999;

/// One file of a model.
#[derive(Debug)]
pub(super) struct Part {
    pub path: PathBuf,
    pub storage: Storage,
}

/// How to get at the bytes of files.
pub(super) enum Access<'a> {
    Map,
    Read(&'a mut dyn FnMut(u64, u64) -> Result<()>),
}

/// Opens a file and, where it says that it is part of a set, all others of the set in its
/// directory. Returns the parts in order, and the first one's header with the tensors of all.
pub(super) fn open(path: &Path, access: Access<'_>) -> Result<(Vec<Part>, Parsed)> {
    match access {
        Access::Map => open_with(path, &mut Storage::map),
        Access::Read(tell) => {
            let total = total_bytes(path);
            let mut tell = |done: u64| tell(done.min(total), total);
            tell(0)?;
            let mut reading = Reading { tell: &mut tell, done: 0 };
            let opened = open_with(path, &mut |path: &Path| Storage::read(path, &mut reading))?;
            // Files may have become shorter since their sizes were added up.
            tell(total)?;
            Ok(opened)
        }
    }
}

fn open_with(path: &Path, storage: &mut dyn FnMut(&Path) -> Result<Storage>) -> Result<(Vec<Part>, Parsed)> {
    let (part, mut parsed) = open_part(path, 0, storage)?;
    let Some((index, count)) = place_in_set(&parsed).map_err(|error| error.in_file(path))? else {
        return Ok((vec![part], parsed));
    };
    let stem = stem_of_set(path, index, count).map_err(|error| error.in_file(path))?;
    parsed.tensors.iter_mut().for_each(|tensor| tensor.part = index);

    let mut named = Some((part, parsed));
    let mut parts = Vec::new();
    let mut first: Option<Parsed> = None;
    for i in 0..count {
        let part_path = path.with_file_name(part_name(stem, i, count));
        let opened = if i == index { named.take() } else { None };
        let (part, mut parsed) = match opened {
            Some(opened) => opened,
            None => open_part(&part_path, i, storage)
                .map_err(|error| if part_path.exists() { error } else { missing(&part_path, i, count, error) })?,
        };
        let place = place_in_set(&parsed).map_err(|error| error.in_file(&part_path))?;
        if place != Some((i, count)) {
            let found = match place {
                Some((index, count)) => format!("part {} of {count}", index + 1),
                None => "no part of a split model".to_string(),
            };
            let message = format!("its name is that of part {} of {count}, but it says that it is {found}", i + 1);
            return Err(Error::invalid_file(message).in_file(&part_path));
        }
        match &mut first {
            Some(first) => {
                memory::reserve(&mut first.tensors, parsed.tensors.len(), "the list of tensors")?;
                first.tensors.append(&mut parsed.tensors);
            }
            None => first = Some(parsed),
        }
        memory::push(&mut parts, part, "the parts of the model")?;
    }
    let all = first.ok_or_else(|| Error::invalid_file("a split model has no parts").in_file(path))?;
    check_total(&all).map_err(|error| error.in_file(path))?;
    Ok((parts, all))
}

fn open_part(path: &Path, index: usize, storage: &mut dyn FnMut(&Path) -> Result<Storage>) -> Result<(Part, Parsed)> {
    let storage = storage(path).map_err(|error| error.in_file(path))?;
    let parsed = parse(storage.bytes(), index).map_err(|error| error.in_file(path))?;
    Ok((Part { path: path.to_path_buf(), storage }, parsed))
}

/// Bytes of a file, and of all others of its set if its name is that of a part, before any of them
/// is opened.
fn total_bytes(path: &Path) -> u64 {
    let len = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
    let of_set = || {
        let (before, count) = path.file_name()?.to_str()?.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, index) = before.rsplit_once('-')?;
        let (index, count) = (index.parse::<usize>().ok()?.checked_sub(1)?, count.parse().ok()?);
        let is_name = index < count && count <= MOST_PARTS && path.ends_with(part_name(stem, index, count));
        is_name.then(|| (0..count).map(|i| len(&path.with_file_name(part_name(stem, i, count)))).sum())
    };
    of_set().unwrap_or_else(|| len(path))
}

fn missing(path: &Path, index: usize, count: usize, error: Error) -> Error {
    let message = format!(
        "this is part {} of {count} of the model, and it is missing: put all parts into one directory",
        index + 1
    );
    Error::new(ErrorKind::Io, message).with_source(error).in_file(path)
}

/// Which part a file says it is (from 0), and of how many; `None` for a whole file.
fn place_in_set(parsed: &Parsed) -> Result<Option<(usize, usize)>> {
    let count = parsed.metadata.usize("split.count")?.unwrap_or(1);
    let index = parsed.metadata.usize("split.no")?;
    if count <= 1 {
        return match index {
            None | Some(0) => Ok(None),
            Some(index) => Err(Error::invalid_file(format!("split.no is {index}, but split.count is {count}"))),
        };
    }
    if count > MOST_PARTS {
        return Err(Error::invalid_file(format!("split.count is {count}; at most {MOST_PARTS} parts are possible")));
    }
    match index {
        Some(index) if index < count => Ok(Some((index, count))),
        Some(index) => Err(Error::invalid_file(format!("split.no is {index}, but split.count is {count}"))),
        None => Err(Error::invalid_file(format!("split.count is {count}, but split.no is missing"))),
    }
}

/// The name of part `index` (from 0) of `count`.
fn part_name(stem: &str, index: usize, count: usize) -> String {
    format!("{stem}-{:05}-of-{count:05}.gguf", index + 1)
}

/// The beginning that the names of all parts share, taken from the name of one of them.
fn stem_of_set(path: &Path, index: usize, count: usize) -> Result<&str> {
    let ending = part_name("", index, count);
    path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(ending.as_str())).ok_or_else(
        || {
            Error::invalid_file(format!(
                "this is part {} of {count} of a model, so its name must end in {ending} for the others to be found",
                index + 1
            ))
        },
    )
}

fn check_total(all: &Parsed) -> Result<()> {
    match all.metadata.usize("split.tensors.count")? {
        Some(total) if total != all.tensors.len() => Err(Error::invalid_file(format!(
            "split.tensors.count is {total}, but the parts hold {} tensors",
            all.tensors.len()
        ))),
        _ => Ok(()),
    }
}

/// Positions of the tensors sorted by name, after checking that no name appears twice in the model.
pub(super) fn index_tensors(tensors: &[TensorInfo]) -> Result<Vec<usize>> {
    super::sorted_by_name(tensors, |tensor| &tensor.name)?
        .map_err(|name| Error::invalid_file(format!("tensor {} appears twice", show(name))))
}

/// Refuses a part of a split set where there is no directory in which to find the others.
pub(super) fn check_whole(parsed: &Parsed) -> Result<()> {
    match place_in_set(parsed)? {
        None => Ok(()),
        Some((index, count)) => Err(Error::invalid_file(format!(
            "this is part {} of {count} of a model: open it by its path, so that the other parts are found",
            index + 1
        ))),
    }
}
