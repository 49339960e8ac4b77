//! The end of a run: digests of what was written, then the manifest, then the name.

use std::fs;
use std::path::{Path, PathBuf};

use super::catalogue::{SUSPECT, Set};
use super::files;
use super::manifest::{self, Manifest};
use super::run::Run;
use crate::error::Result;

/// Digests of everything that PostgreSQL's own manifests do not cover: all but the files of
/// base backups, of which its manifest and the WAL (which that leaves out).
pub async fn digests(run: &Run<'_>, manifest: &Manifest) -> Result<Vec<manifest::FileDigest>> {
    let bases: Vec<PathBuf> = manifest
        .postgres
        .values()
        .filter_map(|p| p.physical.as_ref())
        .map(|p| PathBuf::from(&p.path))
        .collect();
    let root = run.staging.clone();
    let work = move || {
        let mut all = files::list(&root, &|p| !bases.iter().any(|b| p == b))?;
        for base in &bases {
            all.push(base.join("backup_manifest"));
            let wal = base.join("pg_wal");
            all.extend(
                files::list(&root.join(&wal), &|_| true)?
                    .iter()
                    .map(|f| wal.join(f)),
            );
        }
        all.sort();
        // Two cores are common and a digest uses one.
        let (left, right) = all.split_at(all.len() / 2);
        let digest_all = |part: &[PathBuf]| {
            part.iter()
                .map(|p| files::digest(&root, p))
                .collect::<std::io::Result<Vec<_>>>()
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(|| digest_all(right));
            let mut done = digest_all(left)?;
            done.extend(other.join().unwrap_or_else(|_| {
                Err(std::io::Error::other(
                    "the thread that computes digests ended early",
                ))
            })?);
            Ok(done)
        })
    };
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(std::io::Error::other(e)))
        .map_err(|e| run.io(&run.staging, &e))
}

/// Writes the manifest and gives the set its name. If power fails before the rename, an
/// unfinished set remains, which the next run removes; after it, a whole one.
pub fn seal(run: &Run<'_>, directory: &Path, manifest: Manifest, believed: bool) -> Result<Set> {
    let file = run.staging.join(manifest::FILE_NAME);
    let fail = |e: &std::io::Error| run.io(&file, e);
    let text = serde_json::to_vec_pretty(&manifest).map_err(|e| fail(&e.into()))?;
    // Everything that the manifest vouches for is on disk before the manifest exists.
    files::sync_file_system(&run.staging).map_err(|e| fail(&e))?;
    files::write_private(&file, &text).map_err(|e| fail(&e))?;
    files::sync_dir(&run.staging).map_err(|e| fail(&e))?;
    let name = if believed {
        run.label.to_string()
    } else {
        format!("{}{SUSPECT}", run.label)
    };
    let path = directory.join(name);
    fs::rename(&run.staging, &path).map_err(|e| fail(&e))?;
    files::sync_dir(directory).map_err(|e| fail(&e))?;
    Ok(Set {
        label: run.label.clone(),
        path,
        manifest,
        proof: None,
    })
}
