//! The record of a set's last verification: `proof.json` beside its manifest, which it is no
//! part of. Retention never takes the last set that one of these vouches for.

use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::catalogue::Set;
use super::{Label, files};
use crate::event::Verdict;

/// Version of the file's format. Another one says nothing.
const FORMAT: u32 = 1;
/// The file's name in a set.
const FILE: &str = "proof.json";

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Proof {
    /// `FORMAT`.
    pub format: u32,
    /// The set: a copy under another name proves nothing.
    pub label: Label,
    /// When it was verified.
    pub at: Timestamp,
    /// Version of the drctl that did it.
    pub drctl_version: String,
    /// `pass` or `fail`; one that could not be completed is not recorded.
    pub verdict: Verdict,
}

impl Proof {
    /// The record of a set, when there is one that can be read.
    #[must_use]
    pub fn of(directory: &Path, label: &Label) -> Option<Self> {
        let text = std::fs::read(directory.join(FILE)).ok()?;
        let proof: Self = serde_json::from_slice(&text).ok()?;
        (proof.format == FORMAT && &proof.label == label).then_some(proof)
    }
}

/// Records what a verification of `set` found. One that could not look leaves what an earlier
/// one found.
///
/// # Errors
/// The operating system's: the set is as it was.
pub fn record(set: &Set, verdict: Verdict) -> std::io::Result<()> {
    if !matches!(verdict, Verdict::Pass | Verdict::Fail) {
        return Ok(());
    }
    let proof = Proof {
        format: FORMAT,
        label: set.label.clone(),
        at: Timestamp::now(),
        drctl_version: env!("CARGO_PKG_VERSION").to_owned(),
        verdict,
    };
    let path = set.path.join(FILE);
    let temporary = set.path.join(".proof.json.new");
    files::write_private(&temporary, &serde_json::to_vec_pretty(&proof)?)?;
    std::fs::rename(&temporary, &path)?;
    files::sync_dir(&set.path)
}
