//! Old backup sets that fill a disk: copies of the newest one, each with the fault's mark.

use std::path::{Path, PathBuf};

use super::LEAVE;
use crate::backup::{Catalogue, Label, catalogue_error};
use crate::error::{Error, Kind, Result};
use crate::incident::write_atomically;
use crate::probe::disk;
use crate::system::System;

/// Old sets that are made, at most.
const SETS: i64 = 40;

/// A label for each day before the newest set's.
pub(super) fn older_labels(system: &System) -> Result<Vec<Label>> {
    let catalogue = Catalogue::open(&system.runbook.backup.directory, system.deployment());
    let newest = catalogue.sets().map_err(catalogue_error)?.pop();
    let at = newest.and_then(|s| s.label.at()).ok_or_else(|| {
        Error::new(
            Kind::Refused,
            "there is no backup set whose copies could fill the disk",
        )
        .untouched("everything")
        .next("drctl backup")
    })?;
    Ok((1..=SETS)
        .filter_map(|day| {
            let then = at.checked_sub(jiff::SignedDuration::from_hours(24 * day)).ok()?;
            Some(Label::new(then, 1))
        })
        .collect())
}

fn mark(id: &str) -> String {
    format!("drctl-fault-{id}")
}

/// Copies the newest set under older labels while there is room, then fills what is left.
pub(super) fn old_sets(
    directory: &Path,
    deployment: &str,
    labels: &[Label],
    id: &str,
) -> std::io::Result<String> {
    let other = std::io::Error::other;
    let newest = Catalogue::open(directory, deployment)
        .sets()
        .map_err(|e| other(e.to_string()))?
        .pop()
        .ok_or_else(|| other("the backup set is gone".to_owned()))?;
    let size = crate::backup::allocated(&newest.path);
    let mut made = 0;
    for label in labels {
        let path = directory.join(label.to_string());
        if path.exists() {
            continue;
        }
        if disk::room(directory)?.free < size / 10 * 11 + LEAVE {
            break;
        }
        // The mark first: whatever of it is there can be told from a real set.
        std::fs::create_dir(&path)?;
        std::fs::write(path.join(mark(id)), "")?;
        copy_tree(&newest.path, &path)?;
        let mut manifest = newest.manifest.clone();
        manifest.label = label.clone();
        manifest.started = label.at().unwrap_or(manifest.started);
        write_atomically(
            &path.join(crate::backup::FILE_NAME),
            &serde_json::to_vec(&manifest)?,
        )?;
        made += 1;
    }
    let rest = disk::room(directory)?.free.saturating_sub(LEAVE);
    if rest > 0 {
        let file = std::fs::File::create(directory.join(mark(id)))?;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, rest)?;
    }
    Ok(format!("{made} old sets fill the disk"))
}

/// All but the manifest and the proof, which are the original's own.
fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else if kind.is_file()
            && entry.file_name() != crate::backup::FILE_NAME
            && entry.file_name() != "proof.json"
        {
            std::fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// Removes what carries the fault's mark, and tells how much that was.
pub(super) fn remove_sets(directory: &Path, id: &str) -> std::io::Result<usize> {
    let mut removed = 0;
    let own = directory.join(mark(id));
    if own.exists() {
        std::fs::remove_file(own)?;
        removed += 1;
    }
    let entries: Vec<PathBuf> = std::fs::read_dir(directory)?
        .filter_map(|e| Some(e.ok()?.path()))
        .collect();
    for path in entries {
        let is_label = path
            .file_name()
            .and_then(|n| n.to_str())
            .is_some_and(|n| n.parse::<Label>().is_ok());
        if is_label && path.join(mark(id)).exists() {
            std::fs::remove_dir_all(&path)?;
            removed += 1;
        }
    }
    Ok(removed)
}
