//! Which disk is full, for whom, and what only says so.

use super::Evidence;
use super::recognise::{ROOM, SEGMENT, is_short, next, shared_memory};
use crate::event::bytes;
use crate::probe::disk::{FileSystem, Use};
use crate::probe::fills::Word;
use crate::probe::logs::LogPattern;
use crate::runbook::Runbook;
use crate::scenarios::{Certainty, Diagnosis, LookAlike};

/// Fewer files than this cannot be made any more: a server's next segment, a backup.
pub(super) const FILES: u64 = 16;
/// drctl's journal needs 1 MiB; a little more is wanted.
const STATE_NEEDS: u64 = 16 << 20;
/// With less, nothing that writes to it works for long.
const NOTHING_LEFT: u64 = 1 << 20;

/// What there is too little of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lack {
    /// Bytes.
    Bytes,
    /// Files (inodes).
    Files,
}

/// A disk without room.
#[derive(Debug)]
pub(super) struct Shortage<'a> {
    /// Which.
    pub disk: &'a FileSystem,
    /// Of what.
    pub lack: Lack,
    /// Bytes that must be free for everyone on it to work.
    pub enough: u64,
    /// Bytes that are freed where that is safe: the next backup needs room, too.
    pub wish: u64,
    /// Why it is one, in words.
    pub reasons: Vec<String>,
}

impl Shortage<'_> {
    /// What lies on it, for a sentence: the applications' data before drctl's.
    pub(super) fn who(&self) -> String {
        let mut uses: Vec<&Use> = self.disk.places.iter().map(|p| &p.what).collect();
        uses.sort_by_key(|u| match u {
            Use::Volume { .. } => 0,
            Use::Engine => 1,
            Use::Backups => 2,
            Use::State => 3,
            Use::Log { .. } => 4,
        });
        uses.dedup();
        let mut shown: Vec<String> = uses.iter().take(3).map(ToString::to_string).collect();
        if uses.len() > 3 {
            shown.push(format!("{} more", uses.len() - 3));
        }
        shown.join(", ")
    }
}

/// Every disk without room, those with data of the application first.
pub(super) fn shortages(ev: &Evidence) -> Vec<Shortage<'_>> {
    let mut all: Vec<Shortage<'_>> = ev
        .disks
        .file_systems
        .iter()
        .filter(|d| !d.read_only && d.size > 0)
        .filter_map(|d| shortage(ev, d))
        .collect();
    let has_data = |s: &Shortage<'_>| s.disk.places.iter().any(|p| matches!(p.what, Use::Volume { .. }));
    all.sort_by_key(|s| !has_data(s));
    all
}

fn shortage<'a>(ev: &'a Evidence, disk: &'a FileSystem) -> Option<Shortage<'a>> {
    let free = disk.free;
    let (mut short, mut enough, mut reasons) = (false, NOTHING_LEFT, Vec::new());
    let mut want = |is: bool, needs: u64| {
        short |= is;
        enough = enough.max(needs);
    };
    for (name, server) in ev.servers_on(disk) {
        let line = server
            .log
            .iter()
            .rev()
            .find(|l| l.pattern == LogPattern::DiskFull);
        let segment = server.wal.as_ref().map_or(SEGMENT, |w| w.segment.max(SEGMENT));
        let is = is_short(free, line.is_some()) || free < segment;
        want(is, ROOM.max(4 * segment));
        if let Some(line) = line.filter(|_| is) {
            reasons.push(format!("{name}: {}", line.line));
        }
        if is && !server.connection.is_open() {
            reasons.push(format!("{name} takes no connections"));
        }
    }
    for (name, state) in ev.caches_on(disk) {
        let info = state.and_then(|s| s.info.as_ref());
        // A save needs room for the new file beside the old one.
        let needs = info.map_or(0, |i| i.memory.dataset / 5 * 6).max(SEGMENT);
        let refuses = info.is_some_and(|i| !i.persistence.last_save_ok || !i.persistence.aof_write_ok);
        want(free < NOTHING_LEFT || (refuses && free < needs), needs);
        if refuses && free < needs {
            reasons.push(format!("{name} refuses writes: it could not save its data"));
        }
    }
    for place in &disk.places {
        match &place.what {
            Use::Engine | Use::Log { .. } | Use::Backups => want(free < SEGMENT, ROOM),
            Use::State => want(free < NOTHING_LEFT, STATE_NEEDS),
            Use::Volume { .. } => want(free < NOTHING_LEFT, SEGMENT),
        }
    }
    // A disk of a few megabytes is not asked for more than a half of itself.
    enough = enough.min(disk.size / 2);
    let wish = if disk.holds(&Use::Backups) {
        enough.max((ev.backups.newest_bytes / 4 * 5).min(disk.size / 2))
    } else {
        enough
    };
    if short {
        return Some(Shortage {
            disk,
            lack: Lack::Bytes,
            enough,
            wish,
            reasons,
        });
    }
    (disk.inodes > 0 && disk.free_inodes < FILES).then(|| Shortage {
        disk,
        lack: Lack::Files,
        enough,
        wish,
        reasons: vec![format!(
            "none of {} files more can be made, although {} are free",
            disk.inodes,
            bytes(free)
        )],
    })
}

/// What fills a disk, the largest first: bytes, and what it is.
pub(super) fn fillers(ev: &Evidence, disk: &FileSystem) -> Vec<(u64, String)> {
    let mut all = Vec::new();
    for (name, server) in ev.servers_on(disk) {
        if let Some(n) = server.wal_bytes.filter(|n| *n > 0) {
            all.push((n, format!("the write-ahead log of {name} (pg_wal)")));
        }
        if let Some(n) = server.temporary_bytes.filter(|n| *n > 0) {
            all.push((
                n,
                format!("temporary files of {name}: they go with the statements, or at its next start"),
            ));
        }
    }
    if disk.holds(&Use::Backups) {
        let b = &ev.backups;
        let old: u64 = b.old.iter().map(|(_, n)| n).sum();
        if let Some(why) = &b.unreadable {
            all.push((0, format!("backups, which could not be looked at: {why}")));
        }
        if old > 0 {
            all.push((
                old,
                format!(
                    "{} backup sets that the rules no longer want, or that were never finished",
                    b.old.len()
                ),
            ));
        }
        if b.kept_bytes > 0 {
            all.push((b.kept_bytes, format!("{} backup sets that stay", b.kept)));
        }
    }
    let engine = disk.holds(&Use::Engine);
    for log in &ev.logs {
        let here = disk.holds(&Use::Log {
            service: log.service.clone(),
        });
        if here && log.bytes >= NOTHING_LEFT {
            all.push((log.bytes, format!("the log of {}", log.container)));
        }
    }
    let images: u64 = ev.images.iter().map(|i| i.own_bytes).sum();
    if engine && images > 0 {
        all.push((
            images,
            format!(
                "{} images of this deployment without a name and a use, without the layers that other images have",
                ev.images.len()
            ),
        ));
    }
    all.sort_by_key(|(n, _)| std::cmp::Reverse(*n));
    let known: u64 = all.iter().map(|(n, _)| n).sum();
    let rest = disk.size.saturating_sub(disk.free).saturating_sub(known);
    if rest > 0 {
        all.push((rest, "everything else: data, and files of others".into()));
    }
    all
}

pub(super) fn diagnose(ev: &Evidence, _: &Runbook) -> Diagnosis {
    let short = shortages(ev);
    let Some(first) = short.first() else {
        return without(ev);
    };
    let disk = first.disk;
    let mut reasons = Vec::new();
    for shortage in &short {
        reasons.extend(shortage.reasons.iter().cloned());
        for (n, what) in fillers(ev, shortage.disk).into_iter().take(5) {
            reasons.push(format!("{} {what}", bytes(n)));
        }
    }
    for (name, server) in ev.servers_on(disk) {
        reasons.extend(held_back(name, server));
    }
    let summary = match first.lack {
        Lack::Bytes => format!(
            "the disk of {} is full: {} of {} are free",
            first.who(),
            bytes(disk.free),
            bytes(disk.size)
        ),
        Lack::Files => format!("the disk of {} can hold no more files", first.who()),
    };
    Diagnosis {
        certainty: Certainty::Confirmed,
        summary,
        reasons,
        look_alike: None,
    }
}

/// Who keeps the log from being removed.
pub(super) fn held_back(name: &str, server: &crate::probe::fills::Database) -> Vec<String> {
    let mut all = Vec::new();
    let Some(wal) = &server.wal else {
        if !server.slot_names.is_empty() {
            all.push(format!(
                "{name} has the replication slots {}: what they hold back it can only say when it runs",
                server.slot_names.join(", ")
            ));
        }
        return all;
    };
    for slot in wal
        .slots
        .iter()
        .filter(|s| !s.active && s.retains > wal.segment * 4)
    {
        all.push(format!(
            "the replication slot {} of {name} is used by nobody and holds back {} of log",
            slot.name,
            bytes(slot.retains)
        ));
    }
    if let Some(segment) = &wal.archive_fails {
        all.push(format!(
            "archive_command of {name} fails for {segment}: no log is removed until it works"
        ));
    }
    all
}

/// No disk is full: what looks like it, or nothing.
fn without(ev: &Evidence) -> Diagnosis {
    let found = |look_alike: LookAlike, reason: String| Diagnosis {
        certainty: Certainty::Absent,
        summary: format!("no disk is full: {}", look_alike.explanation),
        reasons: vec![reason],
        look_alike: Some(look_alike),
    };
    let alike = |name: &str, explanation: String, next: &[String]| LookAlike {
        name: name.into(),
        explanation,
        next: next.to_vec(),
    };
    if let Some(disk) = ev.disks.file_systems.iter().find(|d| d.read_only) {
        let who = Shortage {
            disk,
            lack: Lack::Bytes,
            enough: 0,
            wish: 0,
            reasons: vec![],
        }
        .who();
        let path = disk.places.first().map_or("/", |p| p.path.as_str());
        return found(
            alike(
                "read-only",
                format!("the disk of {who} takes no writes: it is mounted read-only"),
                &[
                    "dmesg | tail -50    # an error of the disk makes the kernel do so".into(),
                    format!(
                        "findmnt -T {path}    # and mount -o remount,rw only when the disk is known to be well"
                    ),
                ],
            ),
            format!("{path} is read-only"),
        );
    }
    for (name, server) in ev
        .databases
        .iter()
        .filter_map(|(n, s)| Some((n, s.as_ref().ok()?)))
    {
        let container = ev
            .containers
            .get(name)
            .and_then(|c| c.found())
            .map_or(name.as_str(), |f| f.info.name.as_str());
        if let Some((word, line)) = server.words.last() {
            let look_alike = match word {
                Word::SharedMemory => shared_memory(container, server.shared_memory),
                Word::TempFileLimit => alike(
                    "temp-file-limit",
                    format!(
                        "a statement of {name} wanted more temporary files than temp_file_limit allows; the disk is not full"
                    ),
                    &[
                        "show temp_file_limit;".into(),
                        "# raise work_mem or the limit, or mend the statement; docker logs names it".into(),
                    ],
                ),
                Word::Quota => alike(
                    "quota",
                    format!("the user of {name} has used up its quota; the disk itself has room"),
                    &["repquota -a    # who may have how much?".into()],
                ),
                Word::ReadOnly => alike(
                    "read-only",
                    format!("the disk of {name} took no writes: it was read-only"),
                    &["dmesg | tail -50    # an error of the disk makes the kernel do so".into()],
                ),
            };
            return found(look_alike, line.clone());
        }
    }
    // A server that is not well and whose disk was not seen may be here because of it.
    let unseen = ev.disks.unseen.iter().find(|(what, _)| match what {
        Use::Volume { service, .. } => {
            (ev.databases.contains_key(service) || ev.caches.contains_key(service))
                && !ev
                    .containers
                    .get(service)
                    .and_then(|c| c.found())
                    .is_some_and(crate::probe::containers::ContainerFacts::is_well)
        }
        _ => false,
    });
    match unseen {
        Some((what, why)) => Diagnosis {
            certainty: Certainty::Unknown,
            summary: format!("the disk of {what} could not be looked at"),
            reasons: vec![why.clone()],
            look_alike: None,
        },
        None => Diagnosis {
            certainty: Certainty::Absent,
            summary: "every disk has room".into(),
            reasons: Vec::new(),
            look_alike: None,
        },
    }
}

/// What to type where nothing can be freed safely; the largest things first.
pub(super) fn by_hand(ev: &Evidence, shortage: &Shortage<'_>) -> Vec<String> {
    let disk = shortage.disk;
    let mut all = Vec::new();
    for (name, server) in ev.servers_on(disk) {
        for slot in server
            .wal
            .iter()
            .flat_map(|w| &w.slots)
            .filter(|s| !s.active && s.retains > 0)
        {
            all.push(format!(
                "select pg_drop_replication_slot({});    # on {name}: frees {} at the next checkpoint; its subscriber must be set up anew",
                crate::postgres::quote_literal(&slot.name),
                bytes(slot.retains)
            ));
        }
        let keeps = server.wal.as_ref().map_or(0, |w| w.keep);
        if keeps > 0 && server.wal_bytes.is_some_and(|n| n > keeps / 2) {
            all.push(format!(
                "alter system set wal_keep_size = 0; select pg_reload_conf(); checkpoint;    # on {name}: it keeps up to {} of log for others",
                bytes(keeps)
            ));
        }
        if server.wal.is_none() && !server.slot_names.is_empty() {
            all.push(format!(
                "# move something large that is yours off the disk, 64 MB and more; docker restart {name}'s container; then drctl recover disk-full --dry-run names what each slot holds back"
            ));
        }
        if server.wal.as_ref().is_some_and(|w| w.archive_fails.is_some()) {
            all.push(format!(
                "select * from pg_stat_archiver;    # on {name}: mend archive_command, and the log goes by itself"
            ));
        }
    }
    if disk.holds(&Use::Backups) && ev.backups.kept_bytes > 0 {
        all.push(if ev.backups.rules {
            "drctl backup prune --dry-run    # after lowering backup.keep in the runbook".to_owned()
        } else {
            "backup: { keep: { last: 2, daily: 7 } }    # in the runbook, then drctl backup prune --dry-run"
                .to_owned()
        });
    }
    for (incident, what) in &ev.kept {
        all.push(format!("drctl incident close {incident}    # lets go of {what}"));
    }
    if disk.holds(&Use::Engine) {
        all.push("docker system df -v    # images, build cache and volumes, everybody's; docker builder prune frees only what can be built again".into());
    }
    let path = disk.places.first().map_or("/", |p| p.path.as_str());
    all.push(match shortage.lack {
        Lack::Bytes => format!("du -xh --max-depth=2 {path} | sort -h | tail -20    # what is large?"),
        Lack::Files => format!("df -i {path}; du --inodes -x --max-depth=2 {path} | sort -n | tail -20    # where are so many files?"),
    });
    all.extend(next().into_iter().skip(1));
    all
}
