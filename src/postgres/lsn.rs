//! Log sequence numbers (PostgreSQL manual, 8.20) and the names of WAL segments.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A position in the write-ahead log, in bytes from its beginning. Written `16/B374D848`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// File name of the segment that holds this position, for segments of
    /// `segment_size` bytes on `timeline`: three groups of eight hexadecimal digits
    /// (`XLogFileName` in the server's sources).
    #[must_use]
    pub fn segment_name(self, timeline: u32, segment_size: u64) -> String {
        let per_id = 0x1_0000_0000 / segment_size.max(1);
        let number = self.0 / segment_size.max(1);
        format!("{timeline:08X}{:08X}{:08X}", number / per_id, number % per_id)
    }

    /// Bytes from `earlier` to here; 0 when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// What lacks in a list of segments that ought to go from `first` up to the last of them, on
/// whatever timelines: the first gap, in words. `None` when each is there.
#[must_use]
pub fn wal_gap<T: AsRef<str>>(wal: &[T], first: &str) -> Option<String> {
    let number = |name: &str| -> Option<(u64, u64)> {
        (name.len() == 24).then_some(())?;
        Some((
            u64::from_str_radix(name.get(8..16)?, 16).ok()?,
            u64::from_str_radix(name.get(16..24)?, 16).ok()?,
        ))
    };
    let Some(start) = number(first) else {
        return Some(format!("{first:?} is no segment"));
    };
    let mut numbers: Vec<(u64, u64)> = wal
        .iter()
        .filter_map(|n| number(n.as_ref()))
        .filter(|n| *n >= start)
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    if numbers.first() != Some(&start) {
        return Some(format!("segment {first} is not there"));
    }
    numbers.windows(2).find_map(|pair| match pair {
        // A carry: how many segments make one group of 4 GiB depends on their size.
        [(a, x), (b, y)] if (a == b && *y == x + 1) || (*b == a + 1 && *y == 0) => None,
        [(a, x), _] => Some(format!("the segment after …{a:08X}{x:08X} is not there")),
        _ => None,
    })
}

/// Text that is no LSN.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a log sequence number such as 16/B374D848")]
pub struct NotAnLsn(String);

impl FromStr for Lsn {
    type Err = NotAnLsn;

    fn from_str(s: &str) -> Result<Self, NotAnLsn> {
        let parse = || {
            let (high, low) = s.trim().split_once('/')?;
            if high.len() > 8 || low.len() > 8 {
                return None;
            }
            let high = u64::from_str_radix(high, 16).ok()?;
            let low = u64::from_str_radix(low, 16).ok()?;
            Some(Self(high << 32 | low))
        };
        parse().ok_or_else(|| NotAnLsn(s.to_owned()))
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_in_the_wal_are_seen() {
        let gap = |names: &[&str], first: &str| {
            let names: Vec<String> = names.iter().map(|n| format!("00000001{n}")).collect();
            wal_gap(&names, &format!("00000001{first}"))
        };
        let first = "0000000000000004";
        assert_eq!(
            gap(
                &["0000000000000003", "0000000000000004", "0000000000000005"],
                first
            ),
            None
        );
        assert_eq!(
            gap(&["0000000000000004", "0000000000000006"], first).as_deref(),
            Some("the segment after …0000000000000004 is not there")
        );
        let begins = gap(&["0000000000000005", "0000000000000006"], first).unwrap();
        assert!(begins.contains("000000010000000000000004"), "{begins}");
        assert!(gap(&[], first).is_some());
        assert!(wal_gap(&["x"], "").is_some());
        let carry = ["00000000000000FF", "0000000100000000"];
        assert_eq!(gap(&carry, "00000000000000FF"), None);
    }

    #[test]
    fn positions_and_segments() {
        let lsn: Lsn = "0/45CB8D0".parse().unwrap();
        assert_eq!(lsn.to_string(), "0/45CB8D0");
        assert_eq!(lsn.segment_name(1, 16 << 20), "000000010000000000000004");
        let lsn: Lsn = "2A/FF000028".parse().unwrap();
        assert_eq!(lsn.segment_name(3, 16 << 20), "000000030000002A000000FF");
        assert!("nonsense".parse::<Lsn>().is_err());
        assert!("1/2/3".parse::<Lsn>().is_err());
    }
}
