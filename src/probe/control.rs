//! `pg_control`, as `pg_controldata` reads it.

use serde::{Deserialize, Serialize};

use crate::postgres::Lsn;

/// `pg_controldata` (PostgreSQL manual, reference page of that name).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ControlData {
    /// Cluster state, as `in production`, `shut down`.
    pub state: String,
    /// System identifier.
    pub system_identifier: String,
    /// Latest checkpoint's REDO location.
    pub redo: Option<Lsn>,
    /// Latest checkpoint's timeline.
    pub timeline: u32,
    /// Next transaction, without its epoch.
    pub next_xid: u64,
    /// Data page checksum version; 0 is off.
    pub checksum_version: u32,
    /// Bytes per WAL segment.
    pub wal_segment_size: u64,
    /// True when `pg_controldata` warned that the checksum does not match.
    pub checksum_mismatch: bool,
}

/// Reads the program's output in the C locale.
///
/// # Errors
/// The program's own words when it could not read the file, or what is missing.
pub fn parse(output: &str) -> Result<ControlData, String> {
    let value = |name: &str| {
        output
            .lines()
            .find_map(|l| l.trim().strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
    };
    let Some(state) = value("Database cluster state") else {
        let words: Vec<&str> = output.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        return Err(match words.as_slice() {
            [] => "pg_controldata said nothing".to_owned(),
            some => some.iter().take(5).copied().collect::<Vec<_>>().join("; "),
        });
    };
    let number = |name: &str| value(name).and_then(|v| v.parse::<u64>().ok());
    let missing = |name: &str| format!("pg_controldata prints no {name}");
    // A file of zeros or of garbage is printed too, under a warning: keep what can be read.
    let next_xid = value("Latest checkpoint's NextXID")
        .and_then(|v| v.rsplit_once(':'))
        .and_then(|(_, xid)| xid.parse().ok())
        .ok_or_else(|| missing("NextXID"))?;
    Ok(ControlData {
        state: state.to_owned(),
        system_identifier: value("Database system identifier").unwrap_or_default().to_owned(),
        redo: value("Latest checkpoint's REDO location").and_then(|v| v.parse().ok()),
        timeline: small(number("Latest checkpoint's TimeLineID")),
        next_xid,
        checksum_version: small(number("Data page checksum version")),
        wal_segment_size: number("Bytes per WAL segment").unwrap_or_default(),
        checksum_mismatch: output.contains("CRC checksum does not match"),
    })
}

fn small(n: Option<u64>) -> u32 {
    n.and_then(|n| u32::try_from(n).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
pg_control version number:            1300
Catalog version number:               202209061
Database system identifier:           7574868433215299623
Database cluster state:               in production
pg_control last modified:             Fri Nov 20 18:59:34 2026
Latest checkpoint location:           0/45CB908
Latest checkpoint's REDO location:    0/45CB8D0
Latest checkpoint's REDO WAL file:    000000010000000000000004
Latest checkpoint's TimeLineID:       1
Latest checkpoint's NextXID:          0:3920
Bytes per WAL segment:                16777216
Data page checksum version:           1
";

    #[test]
    fn a_good_file() {
        let c = parse(GOOD).unwrap();
        assert_eq!(c.state, "in production");
        assert_eq!(c.system_identifier, "7574868433215299623");
        assert_eq!(c.redo, Some(Lsn(0x45C_B8D0)));
        assert_eq!((c.timeline, c.next_xid, c.checksum_version), (1, 3920, 1));
        assert_eq!(c.wal_segment_size, 16 << 20);
        assert!(!c.checksum_mismatch);
    }

    #[test]
    fn a_damaged_file_is_said_to_be() {
        let warned = format!(
            "WARNING: Calculated CRC checksum does not match value stored in file.\n\
             Either the file is corrupt, or it has a different layout than this program\n\
             is expecting.  The results below are untrustworthy.\n\n{GOOD}"
        );
        assert!(parse(&warned).unwrap().checksum_mismatch);
        let gone = "pg_controldata: error: could not open file \"/data/global/pg_control\" for reading: No such file or directory";
        assert_eq!(parse(gone).unwrap_err(), gone);
        assert_eq!(parse("").unwrap_err(), "pg_controldata said nothing");
    }
}
