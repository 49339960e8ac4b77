//! What the machine of the engine has to spare.

use crate::system::System;

/// Bytes of memory that could be given out without swapping (`MemAvailable`, proc(5)); `None`
/// where the engine is on another machine, which does not tell.
pub async fn memory_available(system: &System) -> Option<u64> {
    if !system.docker.is_local() {
        return None;
    }
    let text = tokio::fs::read_to_string("/proc/meminfo").await.ok()?;
    let kib: u64 = text
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))?
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .ok()?;
    Some(kib << 10)
}
