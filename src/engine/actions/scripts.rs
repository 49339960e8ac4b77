//! The shell scripts that work on a data directory; each says in its head what it does. They are
//! run by helpers of the server's own image, which may be Alpine's.

/// What stands before each of them: `$D`, `$W`, and how a write-ahead log is kept.
pub(super) const PRELUDE: &str = include_str!("prelude.sh");

/// A script and what it is asked to do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Script {
    text: &'static str,
    verb: &'static str,
}

impl Script {
    /// The command line of a helper.
    pub(super) fn argv(self) -> [String; 5] {
        let whole = format!("{PRELUDE}{}", self.text);
        ["/bin/sh", "-c", &whole, "drctl", self.verb].map(str::to_owned)
    }
}

const fn cluster(verb: &'static str) -> Script {
    let text = include_str!("cluster.sh");
    Script { text, verb }
}

const fn damaged(verb: &'static str) -> Script {
    let text = include_str!("damaged.sh");
    Script { text, verb }
}

pub(super) const EXTRACT: Script = cluster("extract");
pub(super) const KEEP_WAL: Script = cluster("keep-wal");
pub(super) const STOPPED_AT: Script = cluster("stopped-at");
pub(super) const LIVE_WAL: Script = cluster("live-wal");
pub(super) const LOG_USED: Script = cluster("log-used");
pub(super) const SWITCH: Script = cluster("switch");
pub(super) const SWITCH_BACK: Script = cluster("switch-back");
pub(super) const DISCARD: Script = cluster("discard");
pub(super) const OWNER: Script = cluster("owner");
pub(super) const COPY_DAMAGED: Script = damaged("copy");
pub(super) const RESET_COPY: Script = damaged("reset");
pub(super) const FILL_STATUS: Script = damaged("fill");
pub(super) const EMPTY_FILES: Script = damaged("empty");
pub(super) const DROP_COPY: Script = damaged("drop");
/// Makes a control file for a copy, so that it replays its own write-ahead log.
pub(super) const REBUILD_CONTROL: Script = Script {
    text: include_str!("rebuild_control.sh"),
    verb: "",
};

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use super::{COPY_DAMAGED, KEEP_WAL, LIVE_WAL, STOPPED_AT, Script};

    /// What a script prints, or what it says against it.
    fn run(data: &Path, script: Script) -> Result<String, String> {
        let [shell, arguments @ ..] = script.argv();
        let out = Command::new(shell)
            .args(arguments)
            .env("PGDATA", data)
            .env("RUN", "run")
            .env("TO", "new")
            .env("FIRST", "000000010000000000000001")
            .env("WHOLE", "yes")
            .env(
                "PATH",
                format!("{}:{}", data.display(), std::env::var("PATH").unwrap()),
            )
            .output()
            .unwrap();
        if out.status.success() {
            Ok(String::from_utf8_lossy(&out.stdout).into_owned())
        } else {
            Err(String::from_utf8_lossy(&out.stderr).into_owned())
        }
    }

    /// Copies the damage of a data directory; the copy, or what the script says against it.
    fn copy(data: &Path) -> Result<PathBuf, String> {
        run(data, COPY_DAMAGED).map(|_| data.join(".drctl/run/new"))
    }

    fn cluster(place: &Path) -> (PathBuf, PathBuf) {
        let (data, log) = (place.join("data"), place.join("log"));
        for directory in ["base/1", "global", "pg_tblspc"] {
            fs::create_dir_all(data.join(directory)).unwrap();
        }
        fs::create_dir(&log).unwrap();
        fs::write(data.join("base/1/1259"), "rows").unwrap();
        fs::write(log.join("000000010000000000000001"), "log").unwrap();
        symlink(&log, data.join("pg_wal")).unwrap();
        (data, log)
    }

    #[test]
    fn a_copy_shares_nothing_with_the_original() {
        let place = tempfile::tempdir().unwrap();
        let (data, log) = cluster(place.path());
        // Twice: the first may have been cut off.
        for _ in 0..2 {
            let copy = copy(&data).unwrap();
            assert!(copy.join("pg_wal").symlink_metadata().unwrap().is_dir());
            // As `pg_resetwal` does, on the copy.
            fs::remove_file(copy.join("pg_wal/000000010000000000000001")).unwrap();
            fs::write(copy.join("base/1/1259"), "other").unwrap();
        }
        assert_eq!(
            fs::read_to_string(log.join("000000010000000000000001")).unwrap(),
            "log"
        );
        assert_eq!(fs::read_to_string(data.join("base/1/1259")).unwrap(), "rows");
    }

    #[test]
    fn only_a_clean_stop_tells_where_the_log_ends() {
        let place = tempfile::tempdir().unwrap();
        let (data, _) = cluster(place.path());
        let program = data.join("pg_controldata");
        let at = "Latest checkpoint location:           0/5000028";
        for (state, warning, expected) in [
            ("shut down", "", "0/5000028\n"),
            ("shut down in recovery", "", ""),
            ("in production", "", ""),
            (
                "shut down",
                "WARNING: Calculated CRC checksum does not match value stored in file.",
                "",
            ),
        ] {
            let says =
                format!("#!/bin/sh\necho '{warning}' >&2\necho 'Database cluster state:   {state}\n{at}'\n");
            fs::write(&program, says).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            run(&data, KEEP_WAL).unwrap();
            assert_eq!(run(&data, STOPPED_AT).unwrap(), expected, "{state} {warning}");
        }
    }

    #[test]
    fn a_segment_that_goes_while_it_is_copied_is_not_kept() {
        let place = tempfile::tempdir().unwrap();
        let (data, log) = cluster(place.path());
        fs::create_dir_all(data.join(".drctl/run/new")).unwrap();
        // It is listed, and not there when the copy is done.
        symlink("gone", log.join("000000010000000000000002")).unwrap();
        fs::write(log.join("000000010000000000000003"), "log").unwrap();
        let said = run(&data, LIVE_WAL).unwrap();
        assert_eq!(
            said,
            "kept 000000010000000000000001\nkept 000000010000000000000003\n"
        );
    }

    #[test]
    fn no_log_is_kept_for_a_replay_into_a_tablespace_of_the_server() {
        let place = tempfile::tempdir().unwrap();
        let (data, _) = cluster(place.path());
        fs::create_dir_all(data.join(".drctl/run/new")).unwrap();
        run(&data, LIVE_WAL).unwrap();
        assert!(data.join(".drctl/run/wal/000000010000000000000001").exists());
        symlink(place.path(), data.join("pg_tblspc/16400")).unwrap();
        let refused = run(&data, LIVE_WAL).unwrap_err();
        assert!(refused.contains("tablespaces"), "{refused}");
    }

    #[test]
    fn what_cannot_be_copied_apart_is_not_copied() {
        for link in ["pg_tblspc/16400", "base/2"] {
            let place = tempfile::tempdir().unwrap();
            let (data, _) = cluster(place.path());
            let elsewhere = place.path().join("elsewhere");
            fs::create_dir(&elsewhere).unwrap();
            symlink(&elsewhere, data.join(link)).unwrap();
            let refused = copy(&data).unwrap_err();
            assert!(
                refused.contains("would share them") || refused.contains("is a link"),
                "{link}: {refused}"
            );
        }
    }
}
