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
