//! Whether a server's words speak of damaged data, or of a program that lacks a part.

/// Directories of relations and of transaction status, as messages name them: in quotes, below
/// the data directory.
const DATA: [&str; 7] = [
    "\"base/",
    "\"global/",
    "\"pg_tblspc/",
    "\"pg_xact/",
    "\"pg_multixact/",
    "\"pg_subtrans/",
    "\"pg_commit_ts/",
];

/// Words of PostgreSQL's programs that speak of damaged data, where no SQLSTATE comes with them.
const SIGNS: [&str; 14] = [
    "invalid page in block",
    "could not read block",
    "checksum",
    "missing chunk number",
    "unexpected chunk number",
    "compressed pglz data is corrupt",
    "compressed lz4 data is corrupt",
    "could not access status of transaction",
    "found xmin",
    "invalid memory alloc request size",
    "index is corrupted",
    "cache lookup failed",
    "XX001",
    "XX002",
];

/// True when an error speaks of damaged data, and not of time, locks, rights, connections or a
/// program that lacks a part. `text` is the server's message with its detail, which is where the
/// files of transaction status are named.
///
/// Class 58 says of any file that it is missing or cannot be read, also of a shared library: it
/// counts only with a file of the data in its words.
#[must_use]
pub fn is_damage(sqlstate: &str, text: &str) -> bool {
    match sqlstate.get(..2) {
        Some("XX") => missing_library(text).is_none(),
        Some("58") => names_data(text),
        _ => false,
    }
}

/// As [`is_damage`], of a program's output.
#[must_use]
pub fn is_damage_in_words(words: &str) -> bool {
    SIGNS.iter().any(|sign| words.contains(sign))
        || (words.contains("could not open file \"") && names_data(words))
}

fn names_data(text: &str) -> bool {
    DATA.iter().any(|directory| text.contains(directory))
}

/// The shared library that an error is about: one that is not there, cannot be loaded, or is of
/// another server version. `$libdir/citext` is named by a function of the database, anything else
/// most often by a setting.
#[must_use]
pub fn missing_library(text: &str) -> Option<&str> {
    [
        "could not access file \"",
        "could not load library \"",
        "incompatible library \"",
    ]
    .iter()
    .find_map(|words| {
        let (_, rest) = text.split_once(words)?;
        let (name, _) = rest.split_once('"')?;
        (!names_data(&format!("\"{name}"))).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_data_is_told_from_a_library() {
        for (sqlstate, text, damage, library) in [
            (
                "XX001",
                "ERROR XX001: invalid page in block 4 of relation base/1/10",
                true,
                None,
            ),
            ("XX002", "ERROR XX002: index \"a\" is not a btree", true, None),
            (
                "XX000",
                "FATAL XX000: cache lookup failed for relation 1259",
                true,
                None,
            ),
            (
                "58P01",
                "ERROR 58P01: could not open file \"base/16396/16457\": No such file or directory",
                true,
                None,
            ),
            (
                "58030",
                "ERROR 58030: could not read block 3 in file \"pg_tblspc/9/PG_15_202209061/5/16\": Input/output error",
                true,
                None,
            ),
            (
                "58P01",
                "ERROR 58P01: could not access status of transaction 827 (Could not open file \"pg_xact/0000\": No such file or directory.)",
                true,
                None,
            ),
            (
                "58P01",
                "FATAL 58P01: could not access file \"nolib\": No such file or directory",
                false,
                Some("nolib"),
            ),
            (
                "58P01",
                "ERROR 58P01: could not access file \"$libdir/citext\": No such file or directory",
                false,
                Some("$libdir/citext"),
            ),
            (
                "XX000",
                "ERROR XX000: incompatible library \"/usr/lib/a.so\": version mismatch",
                false,
                Some("/usr/lib/a.so"),
            ),
            (
                "58P01",
                "ERROR 58P01: could not open extension control file \"/usr/share/x.control\"",
                false,
                None,
            ),
            (
                "58P01",
                "ERROR 58P01: could not open shared memory segment \"/PostgreSQL.1\"",
                false,
                None,
            ),
            ("22023", "FATAL 22023: invalid value for parameter", false, None),
            (
                "57014",
                "ERROR 57014: canceling statement due to statement timeout",
                false,
                None,
            ),
        ] {
            assert_eq!(is_damage(sqlstate, text), damage, "{text}");
            assert_eq!(missing_library(text), library, "{text}");
        }
    }

    #[test]
    fn words_of_a_program_are_told_apart() {
        for words in [
            "pg_dump: error: invalid page in block 100 of relation base/16384/16390",
            "pg_basebackup: error: checksum error occurred",
            "pg_dump: error: query failed: ERROR:  could not open file \"base/1/2\": No such file or directory",
        ] {
            assert!(is_damage_in_words(words), "{words}");
        }
        for words in [
            "FATAL: password authentication failed for user \"x\"",
            "pg_dump: error: query failed: ERROR:  58P01: could not access file \"$libdir/citext\": No such file or directory",
        ] {
            assert!(!is_damage_in_words(words), "{words}");
        }
    }
}
