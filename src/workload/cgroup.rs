//! A container's counters as the kernel keeps them, where the engine is on this machine. The engine's own take a second
//! and more (seen on 20.10, also when asked for one reading); these take microseconds.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::stats::Counters;

/// Where control groups are mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// Reads the counters of a container by its full identifier; `None` where its control group is not found, as on a
/// machine with another layout.
pub(super) fn read(id: &str) -> Option<Counters> {
    let cpus = std::thread::available_parallelism().map_or(1, |n| u64::try_from(n.get()).unwrap_or(1));
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let nanoseconds = u64::try_from(since_1970.as_nanos()).ok()?;
    Some(Counters {
        cpus,
        machine: nanoseconds.saturating_mul(cpus),
        ..below(Path::new(ROOT), id)?
    })
}

fn below(root: &Path, id: &str) -> Option<Counters> {
    // The engine's two drivers: systemd and cgroupfs.
    [format!("system.slice/docker-{id}.scope"), format!("docker/{id}")]
        .iter()
        .find_map(|group| version_2(&root.join(group)).or_else(|| version_1(root, group)))
}

fn version_2(group: &Path) -> Option<Counters> {
    let memory = number(&group.join("memory.current"))?;
    let cpu = std::fs::read_to_string(group.join("cpu.stat")).ok()?;
    Some(Counters {
        cpu: field(&cpu, "usage_usec")? * 1000,
        periods: field(&cpu, "nr_periods").unwrap_or_default(),
        throttled: field(&cpu, "nr_throttled").unwrap_or_default(),
        memory: memory.saturating_sub(reclaimable(&group.join("memory.stat"), "inactive_file")),
        ..Counters::default()
    })
}

fn version_1(root: &Path, group: &str) -> Option<Counters> {
    let of = |controller: &str, file: &str| -> PathBuf { root.join(controller).join(group).join(file) };
    let memory = number(&of("memory", "memory.usage_in_bytes"))?;
    let cpu = std::fs::read_to_string(of("cpu", "cpu.stat")).unwrap_or_default();
    Some(Counters {
        cpu: number(&of("cpuacct", "cpuacct.usage"))?,
        periods: field(&cpu, "nr_periods").unwrap_or_default(),
        throttled: field(&cpu, "nr_throttled").unwrap_or_default(),
        memory: memory.saturating_sub(reclaimable(&of("memory", "memory.stat"), "total_inactive_file")),
        ..Counters::default()
    })
}

fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(' '))?
        .trim()
        .parse()
        .ok()
}

fn reclaimable(path: &Path, name: &str) -> u64 {
    std::fs::read_to_string(path)
        .ok()
        .and_then(|text| field(&text, name))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_read() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("system.slice/docker-two.scope/memory.current", "1000\n");
        write(
            "system.slice/docker-two.scope/memory.stat",
            "anon 1\ninactive_file 400\n",
        );
        write(
            "system.slice/docker-two.scope/cpu.stat",
            "usage_usec 7\nnr_periods 3\nnr_throttled 2\n",
        );
        write("memory/docker/one/memory.usage_in_bytes", "500\n");
        write(
            "memory/docker/one/memory.stat",
            "inactive_file 1\ntotal_inactive_file 100\n",
        );
        write("cpuacct/docker/one/cpuacct.usage", "9000\n");
        let two = below(root.path(), "two").unwrap();
        assert_eq!(
            (two.memory, two.cpu, two.periods, two.throttled),
            (600, 7000, 3, 2)
        );
        let one = below(root.path(), "one").unwrap();
        assert_eq!((one.memory, one.cpu, one.periods), (400, 9000, 0));
        assert_eq!(below(root.path(), "none"), None);
    }
}
