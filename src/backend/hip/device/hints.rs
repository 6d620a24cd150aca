//! Why AMD's library may not find a GPU, as far as the system tells.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Advice for people, as the end of a sentence.
pub(crate) fn of_system() -> String {
    if cfg!(windows) {
        return "; AMD's driver (Adrenalin) brings amdhip64_6.dll or later: install it or a newer one".to_owned();
    }
    if !cfg!(target_os = "linux") {
        return String::new();
    }
    let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path).map(drop);
    let nodes = render_nodes(Path::new("/dev/dri")).into_iter().map(|path| (open(&path), path)).collect();
    hint(open(Path::new("/dev/kfd")), Path::new("/dev/dxg").exists(), is_container(), nodes)
}

/// The nodes through which programs use GPUs.
fn render_nodes(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|file| file.path());
    let is_node = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("renderD"));
    let mut nodes: Vec<_> = files.filter(is_node).collect();
    nodes.sort();
    nodes
}

fn is_container() -> bool {
    ["/.dockerenv", "/run/.containerenv"].iter().any(|path| Path::new(path).exists())
}

fn hint(kfd: io::Result<()>, has_dxg: bool, is_container: bool, nodes: Vec<(io::Result<()>, PathBuf)>) -> String {
    let is = |result: &io::Result<()>, kind| result.as_ref().is_err_and(|e| e.kind() == kind);
    if has_dxg && is(&kfd, ErrorKind::NotFound) {
        return "; in WSL, AMD GPUs need AMD's driver for Windows with WSL support, ROCm for WSL in Linux, and from \
                ROCm 7 on HSA_ENABLE_DXG_DETECTION=1"
            .to_owned();
    }
    match kfd {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::PermissionDenied && is_container => {
            return "; this container may not open /dev/kfd: start it with --device=/dev/kfd --device=/dev/dri and \
                    --group-add for the groups that own them"
                .to_owned();
        }
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            return "; this user may not open /dev/kfd: add it to the groups render and video".to_owned();
        }
        Err(e) if e.kind() == ErrorKind::NotFound && is_container => {
            return "; /dev/kfd does not exist: there is no AMD GPU, its kernel driver (amdgpu) is not loaded, or this \
                    container was started without --device=/dev/kfd --device=/dev/dri"
                .to_owned();
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return "; /dev/kfd does not exist: there is no AMD GPU, or its kernel driver (amdgpu) is not loaded"
                .to_owned();
        }
        Err(_) => return "; /dev/kfd cannot be opened".to_owned(),
    }
    // A library needs both nodes.
    match nodes.iter().find(|(opened, _)| is(opened, ErrorKind::PermissionDenied)) {
        Some((_, node)) if is_container => format!(
            "; this container may not open {}: start it with --group-add for the group that owns it, and where SELinux \
             is on with --security-opt=label=disable",
            node.display()
        ),
        Some((_, node)) => format!("; this user may not open {}: add it to the group render", node.display()),
        None if nodes.is_empty() => {
            "; /dev/dri has no renderD* node: a container needs --device=/dev/dri beside --device=/dev/kfd".to_owned()
        }
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind::{NotFound, PermissionDenied, ResourceBusy};

    #[test]
    fn each_obstacle_has_its_own_hint() {
        let nodes = |kind: Option<ErrorKind>| {
            let opened = |kind: Option<ErrorKind>| kind.map_or(Ok(()), |kind| Err(kind.into()));
            vec![(opened(None), "/dev/dri/renderD128".into()), (opened(kind), "/dev/dri/renderD129".into())]
        };
        let of = |kfd: Option<ErrorKind>, dxg, container, nodes| {
            hint(kfd.map_or(Ok(()), |kind| Err(kind.into())), dxg, container, nodes)
        };
        let all = nodes(None);
        assert_eq!(of(None, false, false, all), "");
        assert_eq!(of(None, true, false, nodes(None)), "");
        let cases = [
            (of(Some(NotFound), false, false, vec![]), "is not loaded"),
            (of(Some(NotFound), false, true, vec![]), "this container was started without"),
            (of(Some(NotFound), true, false, vec![]), "in WSL"),
            (of(Some(PermissionDenied), false, false, nodes(None)), "this user may not open /dev/kfd"),
            (of(Some(PermissionDenied), false, true, nodes(None)), "this container may not open /dev/kfd"),
            (of(Some(ResourceBusy), false, false, nodes(None)), "/dev/kfd cannot be opened"),
            (of(None, false, false, nodes(Some(PermissionDenied))), "this user may not open /dev/dri/renderD129"),
            (of(None, false, true, nodes(Some(PermissionDenied))), "this container may not open /dev/dri/renderD129"),
            (of(None, false, true, vec![]), "no renderD* node"),
        ];
        for (hint, part) in cases {
            assert!(hint.contains(part) && hint.starts_with("; "), "{hint}");
        }
    }
}
