//! How much memory a process may still take, where the system tells. On Linux the answer considers
//! free memory, the limits of the process's control groups (versions 1 and 2, with all groups above
//! them), and its own resource limits.

/// Available memory in bytes; `None` where the system does not tell.
#[cfg(target_os = "linux")]
pub(crate) fn available_memory() -> Option<u64> {
    linux::available_in(std::path::Path::new("/"))
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn available_memory() -> Option<u64> {
    None // other systems tell only through a system library
}

/// How many bytes the limits of this process's control groups leave; `None` where there are no
/// limits. Linux ends a process that uses more.
#[cfg(target_os = "linux")]
pub(super) fn left_by_groups() -> Option<u64> {
    use std::sync::OnceLock;
    /// More than any machine has. Version 1 reports a number this large where there is no limit.
    const UNLIMITED: u64 = 1 << 60;
    // Most processes have no limits, and need not look again.
    static HAS_LIMITS: OnceLock<bool> = OnceLock::new();
    let left = || linux::cgroups(std::path::Path::new("/")).filter(|&left| left < UNLIMITED);
    if *HAS_LIMITS.get_or_init(|| left().is_some()) { left() } else { None }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn left_by_groups() -> Option<u64> {
    None
}

#[cfg(target_os = "linux")]
mod linux {
    use std::path::{Component, Path, PathBuf};

    /// How much memory is left according to the files below `root`: the least of the available
    /// memory (free, or holding data that can be read again) and of the rest of each limit.
    pub(super) fn available_in(root: &Path) -> Option<u64> {
        let free = kilobytes(&read(root, "proc/meminfo")?, "MemAvailable:")?;
        let limits = [cgroups(root), resources(root)].into_iter().flatten();
        Some(limits.fold(free, u64::min))
    }

    fn read(root: &Path, file: impl AsRef<Path>) -> Option<String> {
        std::fs::read_to_string(root.join(file)).ok()
    }

    /// A line like `MemAvailable:  123 kB`, in bytes.
    fn kilobytes(text: &str, name: &str) -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    }

    /// Bytes that the limits of address space and of data leave (`ulimit -v`, `ulimit -d`).
    fn resources(root: &Path) -> Option<u64> {
        let (limits, status) = (read(root, "proc/self/limits")?, read(root, "proc/self/status")?);
        let left = |limit: &str, used: &str| {
            // Soft, hard, unit; "unlimited" is no number.
            let line = limits.lines().find_map(|line| line.strip_prefix(limit))?;
            let limit = line.split_whitespace().next()?.parse::<u64>().ok()?;
            Some(limit.saturating_sub(kilobytes(&status, used).unwrap_or(0)))
        };
        let left = [left("Max address space", "VmSize:"), left("Max data size", "VmData:")];
        left.into_iter().flatten().min()
    }

    /// A hierarchy of control groups that counts memory, and the names of its files.
    struct Kind {
        is_v2: bool,
        /// Files that hold a group's limits; the smallest limit counts.
        limits: &'static [&'static str],
        usage: &'static str,
        /// Lines of `memory.stat` that count caches of files: bytes that the system drops and reads
        /// again when needed.
        caches: &'static [&'static str],
    }

    const V2: Kind = Kind {
        is_v2: true,
        limits: &["memory.max", "memory.high"],
        usage: "memory.current",
        caches: &["inactive_file", "active_file", "slab_reclaimable"],
    };
    const V1: Kind = Kind {
        is_v2: false,
        limits: &["memory.limit_in_bytes"],
        usage: "memory.usage_in_bytes",
        caches: &["total_inactive_file", "total_active_file"],
    };

    /// Bytes that the control groups of this process leave.
    pub(super) fn cgroups(root: &Path) -> Option<u64> {
        let (groups, mounts) = (read(root, "proc/self/cgroup")?, read(root, "proc/self/mountinfo")?);
        let left = |kind: &Kind| {
            let path = groups.lines().find_map(|line| kind.path(line))?;
            let (mounted, mount) = mounts.lines().find_map(|line| kind.mount(line))?;
            kind.left(root, &mount, &below(path, &mounted))
        };
        [left(&V2), left(&V1)].into_iter().flatten().min()
    }

    /// The group's path below a mount point; `mounted` is the group at the top of that mount. A
    /// container may have its own group mounted and not see the groups above it. A path from
    /// outside the container is then not below the mount, and the top of the mount is the group.
    fn below(path: &str, mounted: &str) -> PathBuf {
        let path = Path::new(path).strip_prefix(mounted).unwrap_or(Path::new(""));
        let is_below = path.components().all(|part| matches!(part, Component::Normal(_)));
        if is_below { path.to_path_buf() } else { PathBuf::new() }
    }

    impl Kind {
        /// The group in a line of `/proc/self/cgroup`: number, controllers and path.
        fn path<'a>(&self, line: &'a str) -> Option<&'a str> {
            let mut parts = line.splitn(3, ':');
            let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let is_it = match self.is_v2 {
                true => number == "0" && controllers.is_empty(),
                false => controllers.split(',').any(|controller| controller == "memory"),
            };
            is_it.then(|| path.strip_suffix(" (deleted)").unwrap_or(path))
        }

        /// The mounted group and its mount point, from a line of `/proc/self/mountinfo`.
        fn mount(&self, line: &str) -> Option<(String, String)> {
            let (mount, system) = line.split_once(" - ")?;
            let mut system = system.split(' ');
            let (kind, options) = (system.next()?, system.nth(1)?);
            let is_it = match self.is_v2 {
                true => kind == "cgroup2",
                false => kind == "cgroup" && options.split(',').any(|option| option == "memory"),
            };
            let mut mount = mount.split(' ').skip(3);
            let (group, place) = (mount.next()?, mount.next()?);
            is_it.then(|| (unescaped(group), unescaped(place)))
        }

        /// The least that the limits of a group and of the groups above it, up to the mount, leave.
        fn left(&self, root: &Path, mount: &str, group: &Path) -> Option<u64> {
            let mount = Path::new(mount.trim_start_matches('/'));
            let mut least = None;
            for (above, group) in group.ancestors().enumerate() {
                let group = mount.join(group);
                // In version 1, an option of a group decides whether it counts the groups below it.
                let counts_below = || read(root, group.join("memory.use_hierarchy")).is_none_or(|on| on.trim() != "0");
                if above > 0 && !self.is_v2 && !counts_below() {
                    break;
                }
                least = [least, self.left_of(root, &group)].into_iter().flatten().min();
            }
            least
        }

        /// Bytes that the limits of one group leave.
        fn left_of(&self, root: &Path, group: &Path) -> Option<u64> {
            let stat = read(root, group.join("memory.stat")).unwrap_or_default();
            let of_stat = |name: &str| {
                let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
                lines.find(|&(key, _)| key == name).and_then(|(_, value)| value.trim().parse::<u64>().ok())
            };
            // "max" is no number.
            let limit = |file: &&str| read(root, group.join(file))?.trim().parse::<u64>().ok();
            // Version 1 reports the limit of the groups above, even where those are not visible.
            let above = if self.is_v2 { None } else { of_stat("hierarchical_memory_limit") };
            let limit = self.limits.iter().filter_map(limit).chain(above).min()?;
            let usage = read(root, group.join(self.usage)).and_then(|usage| usage.trim().parse::<u64>().ok());
            let caches = self.caches.iter().filter_map(|name| of_stat(name)).fold(0, u64::saturating_add);
            Some(limit.saturating_sub(usage.unwrap_or(0).saturating_sub(caches)))
        }
    }

    /// A path of `/proc/self/mountinfo`, which has some characters as three octal digits.
    fn unescaped(path: &str) -> String {
        [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
            .iter()
            .fold(path.to_owned(), |path, (code, character)| path.replace(code, character))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        /// A made-up tree of files, removed when dropped.
        struct Tree(PathBuf);

        impl Tree {
            fn new(name: &str, files: &[(&str, &str)]) -> Self {
                let root = std::env::temp_dir().join(format!("wavelm-available-{name}-{}", std::process::id()));
                let tree = Self(root);
                tree.add("proc/meminfo", "MemTotal: 24000000 kB\nMemFree: 100 kB\nMemAvailable:   20000000 kB\n");
                files.iter().for_each(|(file, text)| tree.add(file, text));
                tree
            }

            fn add(&self, file: &str, text: &str) {
                let path = self.0.join(file);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }

            fn left(&self) -> Option<u64> {
                available_in(&self.0)
            }
        }

        impl Drop for Tree {
            fn drop(&mut self) {
                let _ = std::fs::remove_dir_all(&self.0);
            }
        }

        const FREE: u64 = 20_000_000 * 1024;
        const MOUNT_V2: &str = "24 30 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        const MOUNT_V1: &str = "25 30 0:20 / /sys rw - sysfs sysfs rw\n\
            33 24 0:29 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n\
            34 24 0:30 / /sys/fs/cgroup/cpu rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n";

        #[test]
        fn without_limits_it_is_what_is_free() {
            let tree = Tree::new("none", &[]);
            assert_eq!(tree.left(), Some(FREE));
            tree.add("proc/self/cgroup", "0::/a\n");
            tree.add("proc/self/mountinfo", MOUNT_V2);
            tree.add("sys/fs/cgroup/a/memory.max", "max\n");
            assert_eq!(tree.left(), Some(FREE));
            tree.add("proc/meminfo", "MemTotal: 1 kB\n");
            assert_eq!(tree.left(), None);
            assert!(super::super::available_memory().is_some_and(|bytes| bytes > 0));
        }

        #[test]
        fn the_least_of_all_groups_above_counts() {
            let tree = Tree::new("v2", &[("proc/self/cgroup", "0::/a/b/c\n"), ("proc/self/mountinfo", MOUNT_V2)]);
            tree.add("sys/fs/cgroup/a/b/c/memory.max", "9000\n");
            tree.add("sys/fs/cgroup/a/b/c/memory.current", "1000\n");
            assert_eq!(tree.left(), Some(8000));
            // Caches of files do not count against the limit, other memory does.
            tree.add("sys/fs/cgroup/a/b/memory.max", "7000\n");
            tree.add("sys/fs/cgroup/a/b/memory.current", "3000\n");
            tree.add("sys/fs/cgroup/a/b/memory.stat", "anon 700\nfile 2300\ninactive_file 1500\nactive_file 500\n");
            assert_eq!(tree.left(), Some(6000));
            tree.add("sys/fs/cgroup/a/memory.high", "5000\n");
            tree.add("sys/fs/cgroup/a/memory.max", "max\n");
            tree.add("sys/fs/cgroup/a/memory.current", "4000\n");
            assert_eq!(tree.left(), Some(1000));
            // Usage exceeds a limit that was lowered later.
            tree.add("sys/fs/cgroup/memory.max", "10\n");
            tree.add("sys/fs/cgroup/memory.current", "4000\n");
            assert_eq!(tree.left(), Some(0));
        }

        #[test]
        fn a_container_sees_its_own_groups() {
            let mounted = "24 30 0:26 /host/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
            let files = [("proc/self/mountinfo", mounted), ("proc/self/cgroup", "0::/host/abc/x\n")];
            let tree = Tree::new("container", &files);
            tree.add("sys/fs/cgroup/memory.max", "5000");
            tree.add("sys/fs/cgroup/x/memory.max", "4000");
            assert_eq!(tree.left(), Some(4000));
            // A namespace whose root is the container's group; and a process outside of that group.
            tree.add("proc/self/mountinfo", MOUNT_V2);
            for path in ["0::/\n", "0::/../other\n"] {
                tree.add("proc/self/cgroup", path);
                assert_eq!(tree.left(), Some(5000));
            }
            tree.add("proc/self/mountinfo", &mounted.replace("/sys/fs/cgroup", "/mnt/a\\040b"));
            tree.add("mnt/a b/memory.max", "300");
            assert_eq!(tree.left(), Some(300));
        }

        #[test]
        fn version_1_has_other_names() {
            let groups = "12:cpu,cpuacct:/x\n5:memory:/a/b\n0::/\n";
            let tree = Tree::new("v1", &[("proc/self/cgroup", groups), ("proc/self/mountinfo", MOUNT_V1)]);
            let memory = |file: &str| format!("sys/fs/cgroup/memory/{file}");
            assert_eq!(tree.left(), Some(FREE));
            tree.add(&memory("a/b/memory.limit_in_bytes"), "9223372036854771712\n");
            tree.add(&memory("a/b/memory.usage_in_bytes"), "800\n");
            assert_eq!(tree.left(), Some(FREE));
            tree.add(&memory("a/memory.limit_in_bytes"), "6000\n");
            tree.add(&memory("a/memory.usage_in_bytes"), "5500\n");
            tree.add(&memory("a/memory.stat"), "inactive_file 1\ntotal_inactive_file 1000\ntotal_active_file 500\n");
            assert_eq!(tree.left(), Some(2000));
            tree.add(&memory("a/memory.use_hierarchy"), "0\n");
            assert_eq!(tree.left(), Some(FREE));
            // A limit above a container's mount.
            tree.add(&memory("a/b/memory.stat"), "hierarchical_memory_limit 1000\ntotal_inactive_file 700\n");
            assert_eq!(tree.left(), Some(900));
        }

        #[test]
        fn resource_limits_count() {
            let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                Max data size             unlimited            unlimited            bytes     \n\
                Max address space         5000000              unlimited            bytes     \n";
            let tree = Tree::new("limits", &[("proc/self/limits", limits)]);
            tree.add("proc/self/status", "Name:\tx\nVmSize:\t    1000 kB\nVmData:\t    500 kB\n");
            assert_eq!(tree.left(), Some(5_000_000 - 1000 * 1024));
            tree.add("proc/self/limits", "Max data size  600000  700000  bytes\nMax address space  unlimited  x\n");
            assert_eq!(tree.left(), Some(600_000 - 500 * 1024));
            tree.add("proc/self/limits", "Max data size  unlimited  unlimited  bytes\n");
            assert_eq!(tree.left(), Some(FREE));
        }
    }
}
