//! The machine's own limits: file descriptors and memory, and where they are below what the
//! configuration promises.

use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::{Config, Upstream, UpstreamKind};

/// Most connections of clients at once.
const MOST_CONNECTIONS: usize = 8192;

/// File descriptors that are kept for files, listeners and the like.
const OTHER_DESCRIPTORS: usize = 64;

/// Raises the limit of open file descriptors to the highest that the system allows this process.
pub fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(e) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!("the limit of open file descriptors cannot be raised: {e}");
    }
}

/// Returns how many connections clients may have at once under `config`: at most 8,192, and so many
/// that file descriptors remain for upstreams and files.
pub(super) fn connections(config: &Config) -> usize {
    connections_within(config, descriptors())
}

fn connections_within(config: &Config, descriptors: usize) -> usize {
    // A reserve beyond half of them would leave too few for clients.
    let reserve = reserve(config).min(descriptors / 2);
    MOST_CONNECTIONS.min(descriptors - reserve).max(1)
}

/// The file descriptors that upstreams and files need.
fn reserve(config: &Config) -> usize {
    let upstreams = config.upstreams.iter().map(|u| u.limits.max_concurrency);
    upstreams.fold(OTHER_DESCRIPTORS, usize::saturating_add)
}

fn descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX))
}

/// Returns warnings where the machine's limits are below what `config` promises, and where budgets are
/// lost by a crash.
pub fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = warnings_within(config, descriptors(), memory());
    warnings.extend(lost_leases(config));
    warnings
}

/// Returns a warning if replicas keep budgets together and nothing of them is kept across a crash.
fn lost_leases(config: &Config) -> Option<String> {
    if !config.replicas.share_limits || config.state_dir.is_some() {
        return None;
    }
    let has_budget = |upstream: &&Upstream| {
        let limits = &upstream.limits;
        let units = match &upstream.kind {
            UpstreamKind::CloudWatch { units, .. } => units.most_per_day(),
            _ => None,
        };
        limits.per_hour.or(limits.per_day).or(units).is_some()
    };
    let upstream = config.upstreams.iter().find(has_budget)?;
    Some(format!(
        "replicas keep the budgets of {:?} together (share_limits), and after a crash what this one held of them \
         counts as used: set [state] dir",
        upstream.name
    ))
}

fn warnings_within(config: &Config, descriptors: usize, memory: Option<u64>) -> Vec<String> {
    let mut warnings = Vec::new();
    let wanted = MOST_CONNECTIONS.saturating_add(reserve(config));
    if descriptors < wanted {
        warnings.push(format!(
            "the system allows this process {descriptors} open files (ulimit -n, LimitNOFILE), so clients may \
             have {} connections at once instead of {MOST_CONNECTIONS}; {wanted} would be enough",
            connections_within(config, descriptors)
        ));
    }
    let bytes = config.server.max_in_flight_bytes as u64;
    // docs/protection.md: the most that the process takes.
    let peak = (config.cache_memory / 10)
        .saturating_mul(13)
        .saturating_add(bytes)
        .saturating_add(64 << 20);
    if let Some(memory) = memory.filter(|m| *m < peak) {
        warnings.push(format!(
            "this machine or container has {} MiB of memory, but Heliostat may take up to {} MiB: 1.3 times \
             cache.memory, server.max_in_flight_bytes, and 64 MiB; lower cache.memory",
            memory >> 20,
            peak >> 20
        ));
    }
    warnings
}

/// Returns the memory that this process may use, as far as the system says: the machine's, or less by
/// the limit of its control group.
fn memory() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).ok();
    let machine = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
        let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kilobytes.checked_mul(1024)
    });
    let groups = limit_files(&read("/proc/self/cgroup").unwrap_or_default());
    let limits = groups
        .iter()
        .filter_map(|path| read(path)?.trim().parse().ok());
    machine.into_iter().chain(limits).min()
}

/// Returns the files with the memory limits of the control groups that a process is in, those above them
/// included, by its `/proc/self/cgroup`: of version 2, and of version 1.
fn limit_files(groups: &str) -> Vec<String> {
    // A container sees its own group at the root.
    let mut files = vec![
        "/sys/fs/cgroup/memory.max".to_owned(),
        "/sys/fs/cgroup/memory/memory.limit_in_bytes".to_owned(),
    ];
    for line in groups.lines() {
        let (root, file, path) = match line.split_once("::") {
            Some(("0", path)) => ("/sys/fs/cgroup", "memory.max", path),
            _ => match line.split_once(":memory:") {
                Some((_, path)) => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", path),
                None => continue,
            },
        };
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        for depth in 1..=parts.len() {
            let path = parts.get(..depth).unwrap_or_default().join("/");
            files.push(format!("{root}/{path}/{file}"));
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn who_shares_budgets_is_told_to_keep_a_state() {
        let upstream = |more: &str, state: &str| {
            let text = format!(
                "[replicas]\nshare_limits = true\n[cache.shared]\nurls = [\"redis://127.0.0.1:1\"]\n\
                 secret = \"a secret of the test\"\n{state}[[upstream]]\nname = \"prom\"\nkind = \"prometheus\"\n\
                 urls = [\"http://127.0.0.1:2\"]\nrate_limit = {{ per_second = 5, burst = 5{more} }}\n"
            );
            lost_leases(&config(&text))
        };
        let warned = upstream(", per_day = 10", "").unwrap();
        assert!(warned.contains("\"prom\"") && warned.contains("[state] dir"));
        assert_eq!(upstream("", ""), None);
        let folder = tempfile::tempdir().unwrap();
        let state = format!("[state]\ndir = {:?}\n", folder.path());
        assert_eq!(upstream(", per_day = 10", &state), None);
    }

    fn config(text: &str) -> Config {
        crate::config::parse(text, "test", &BTreeMap::new()).unwrap()
    }

    #[test]
    fn the_limits_of_all_groups_above_count() {
        let files = limit_files("12:pids:/x\n4:memory:/docker/a\n0::/system.slice/h.service\n");
        let expected = [
            "/sys/fs/cgroup/memory.max",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/docker/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes",
            "/sys/fs/cgroup/system.slice/memory.max",
            "/sys/fs/cgroup/system.slice/h.service/memory.max",
        ];
        assert_eq!(files, expected);
        assert_eq!(limit_files("0::/\n").len(), 2);
    }

    #[test]
    fn connections_leave_descriptors_for_upstreams() {
        let config = config("[[upstream]]\nkind = \"demo\"\nmax_concurrency = 36\n");
        assert_eq!(connections_within(&config, usize::MAX), 8192);
        assert_eq!(connections_within(&config, 1024), 924);
        assert_eq!(connections_within(&config, 100), 50);
        assert_eq!(connections_within(&config, 0), 1);
    }

    #[test]
    fn limits_below_the_configuration_are_warned_of() {
        let config = config("[cache]\nmemory = \"1000MiB\"\n");
        // 1300 and 250 and 64 MiB.
        assert!(warnings_within(&config, 10_000, Some(1614 << 20)).is_empty());
        assert!(warnings_within(&config, 10_000, None).is_empty());
        let warnings = warnings_within(&config, 1024, Some(1500 << 20));
        let [files, memory] = &warnings[..] else {
            panic!("{warnings:?}");
        };
        assert!(files.contains("1024 open files"), "{files}");
        assert!(memory.contains("1500 MiB"), "{memory}");
        assert!(memory.contains("1614 MiB"), "{memory}");
    }
}
