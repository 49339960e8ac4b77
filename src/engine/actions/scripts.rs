//! The shell scripts that work on a data directory, plain POSIX: the official images'
//! Alpine variants have only busybox. Each can be cut off anywhere and run again.
//!
//! `$D` is the data directory, `$W` the run's directory in it, `$RUN` the run.

/// Common to all scripts: `$W` is the run's directory, `$D` the data directory.
pub(super) const PRELUDE: &str = r#"set -eu
export LC_ALL=C
D="$PGDATA"; W="$D/.drctl/$RUN"
fail() { echo "$*" >&2; exit 1; }
# Everything in a directory, hidden names too, one per line; .drctl never.
entries() { ls -A "$1" | grep -vx -e .drctl || true; }
# From one directory to another: all entries but those that make a server start.
move() {
  entries "$1" | while read -r e; do
    case "$e" in global|PG_VERSION) ;; *) mv "$1/$e" "$2/" ;; esac
  done
}
# Segments and histories of pg_wal from segment $FIRST on. Timelines (the first eight
# digits) do not order segments, the rest does.
keep_wal() {
  mkdir -p "$W/wal"
  ls "$D/pg_wal" 2>/dev/null | awk -v first="x$FIRST" '
    /\.history$/ { print }
    length($0) == 24 && !/[^0-9A-F]/ && ("x" substr($0, 9)) >= ("x" substr(first, 10)) { print }
  ' | while read -r name; do cp -a "$D/pg_wal/$name" "$W/wal/$name"; done
  # What the backup itself holds of the log is good, the server's own may be what is
  # damaged: up to the backup's end its bytes count, from there on the server's.
  [ ! -s "$W/base-end" ] || ls "$W/base-wal" | while read -r name; do
    read -r end offset < "$W/base-end"
    suffix=${name#????????}
    if [ ! -f "$W/wal/$name" ] || expr "x$suffix" \< "x$end" >/dev/null; then
      cp -a "$W/base-wal/$name" "$W/wal/$name"
    elif [ "$suffix" = "$end" ]; then
      { head -c "$offset" "$W/base-wal/$name"; tail -c "+$((offset + 1))" "$W/wal/$name"; } > "$W/joined"
      mv "$W/joined" "$W/wal/$name"
    fi
  done
  # A segment of another length would end the replay with an error instead of at its end.
  cat > "$W/restore-wal" <<'END'
file="${0%/*}/wal/$1"
case "$1" in
*.history) [ -f "$file" ] || exit 1 ;;
*) [ -f "$file" ] && [ "$(wc -c < "$file")" -eq "$3" ] || exit 1 ;;
esac
# More than 125 ends the recovery instead of ending the replay (manual, 26.3.4).
cp "$file" "$2" || exit 200
END
}
"#;

pub(super) const EXTRACT: &str = r#"
owner=$(stat -c %u:%g "$D")
mkdir -p "$W"; chmod 700 "$D/.drctl" "$W"
rm -rf "$W/new"
cp -a /drctl/base "$W/new"
rm -rf "$W/new/.drctl"
[ -f "$W/new/PG_VERSION" ] && [ -f "$W/new/global/pg_control" ] && [ -f "$W/new/backup_label" ] ||
  fail "the base backup is not complete: PG_VERSION, global/pg_control or backup_label is missing"
pg_controldata "$W/new" | awk '/^Bytes per WAL segment/ { print $NF }' > "$W/segment-size"
rm -rf "$W/base-wal"; mkdir "$W/base-wal"; : > "$W/base-end"
lsn=$(sed -n 's/.*"End-LSN": "\([0-9A-F]*\/[0-9A-F]*\)".*/\1/p' "$W/new/backup_manifest" 2>/dev/null | tail -n 1)
if [ -n "$lsn" ]; then
  size=$(cat "$W/segment-size"); low=$((0x${lsn#*/}))
  ls "$W/new/pg_wal" | grep -x '[0-9A-F]\{24\}' | while read -r name; do cp -a "$W/new/pg_wal/$name" "$W/base-wal/"; done
  printf '%08X%08X %d\n' "$((0x${lsn%/*}))" "$((low / size))" "$((low % size))" > "$W/base-end"
fi
keep_wal
# Without this file the server would stop replaying at the end of the backup, silently.
: > "$W/new/recovery.signal"
for f in postgresql.conf postgresql.auto.conf pg_hba.conf pg_ident.conf; do
  [ ! -f "$D/$f" ] || cmp -s "$D/$f" "$W/new/$f" || echo "differs $f"
done
chown -R "$owner" "$D/.drctl"
chmod 700 "$W/new"
echo "bytes $(du -sk "$W/new" | cut -f1)"
"#;

pub(super) const KEEP_WAL: &str = r#"
keep_wal
chown -R "$(stat -c %u:%g "$D")" "$W"
echo "segments $(ls "$W/wal" | grep -vc history || true)"
"#;

pub(super) const LIVE_WAL: &str = r#"
if [ -e "$W/log-used" ]; then echo done; exit 0; fi
[ -d "$W/new" ] || fail "there is no copy of the base backup in $W"
keep_wal
chown -R "$(stat -c %u:%g "$D")" "$W/wal" "$W/restore-wal"
"#;

pub(super) const LOG_USED: &str = r#"
: > "$W/log-used"
rm -rf "$W/new" "$W/wal" "$W/base-wal"
"#;

pub(super) const COPY_DAMAGED: &str = r#"
owner=$(stat -c %u:%g "$D")
mkdir -p "$W"; chmod 700 "$D/.drctl" "$W"
rm -rf "$W/$TO"; mkdir "$W/$TO"
# The copy is started, mended and reset: what a link in it leads to would be the original.
[ -z "$(ls -A "$D/pg_tblspc" 2>/dev/null)" ] ||
  fail "the server has tablespaces outside its data directory: a copy would share them with the original"
entries "$D" | while read -r e; do
  case "$e" in pg_wal) ;; *) cp -a "$D/$e" "$W/$TO/" ;; esac
done
# A directory elsewhere when the cluster was made with --waldir (POSTGRES_INITDB_WALDIR of the official image).
if [ -d "$D/pg_wal" ]; then
  mkdir "$W/$TO/pg_wal"; chmod 700 "$W/$TO/pg_wal"
  cp -a "$D/pg_wal/." "$W/$TO/pg_wal/"
fi
foreign=$(find "$W/$TO/base" "$W/$TO/global" "$W/$TO"/pg_* -type l ! -name '*.conf' 2>/dev/null | head -n 1)
[ -z "$foreign" ] || fail "${foreign#"$W/$TO/"} is a link: what is changed in a copy would be changed in the original"
rm -f "$W/$TO/postmaster.pid"
chown -R "$owner" "$D/.drctl"
chmod 700 "$W/$TO"
"#;

/// Makes a copy start that does not: the control file and the WAL are made anew
/// (`pg_resetwal`), missing transaction status is filled in as committed. Never run on
/// anything but a copy. The next transaction is taken from the newest pg_xact segment
/// when the control file has nothing to say (PostgreSQL manual, pg_resetwal).
pub(super) const RESET_COPY: &str = r#"
cd "$W/$TO"
[ -s global/pg_control ] || : > global/pg_control
last=$(ls pg_xact 2>/dev/null | sort | tail -n 1)
first=$(ls pg_xact 2>/dev/null | sort | head -n 1)
if [ -z "$last" ]; then last=0000; fi
set -- -f -D .
if ! pg_controldata . 2>/dev/null | grep -q 'NextXID' || pg_controldata . 2>&1 | grep -qi 'WARNING.*CRC'; then
  next=$(( (0x$last + 1) * 1048576 ))
  set -- "$@" -x "$next" -o "$next"
  echo "control"
fi
pg_resetwal "$@" >/dev/null
# 0x55 is four committed transactions to the byte. The alternative, zeros, would make every
# row that was not yet marked vanish.
if [ ! -e "pg_xact/$last" ]; then
  head -c 262144 /dev/zero | tr '\0' 'U' > "pg_xact/$last"
  echo "xact $last"
fi
"#;

/// Makes a control file for a copy, so that it replays its own write-ahead log.
pub(super) const REBUILD_CONTROL: &str = include_str!("rebuild_control.sh");

/// `global` goes out first and comes in last: without it no server starts on the
/// directory, so that power failing anywhere in between leaves old or new or nothing that
/// runs, never a mixture. The markers make it go on where it stopped.
pub(super) const SWITCH: &str = r#"
[ -d "$W" ] || fail "there is no work directory $W"
[ ! -e "$W/switched" ] || exit 0
if [ ! -e "$W/old-complete" ]; then
  [ -f "$W/new/global/pg_control" ] && [ -f "$W/new/PG_VERSION" ] || fail "$W/new is no data directory"
  mkdir -p "$W/old"
  [ ! -e "$D/global" ] || mv "$D/global" "$W/old/"
  sync
  move "$D" "$W/old"
  [ ! -e "$D/PG_VERSION" ] || mv "$D/PG_VERSION" "$W/old/"
  sync
  : > "$W/old-complete"
  sync
fi
[ ! -e "$W/new/PG_VERSION" ] || mv "$W/new/PG_VERSION" "$D/"
move "$W/new" "$D"
sync
[ ! -e "$W/new/global" ] || mv "$W/new/global" "$D/"
: > "$W/switched"
sync
"#;

pub(super) const SWITCH_BACK: &str = r#"
if [ ! -d "$W/old" ]; then echo "nothing"; exit 0; fi
if [ -e "$W/old-complete" ] && [ ! -e "$W/new-back" ]; then
  mkdir -p "$W/new"
  [ ! -e "$D/global" ] || mv "$D/global" "$W/new/"
  sync
  move "$D" "$W/new"
  [ ! -e "$D/PG_VERSION" ] || mv "$D/PG_VERSION" "$W/new/"
  sync
  : > "$W/new-back"
  sync
fi
[ ! -e "$W/old/PG_VERSION" ] || mv "$W/old/PG_VERSION" "$D/"
move "$W/old" "$D"
sync
[ ! -e "$W/old/global" ] || mv "$W/old/global" "$D/"
sync
# What served until now may hold work that users did since: it is not the undo's to drop.
[ ! -e "$W/switched" ] || [ ! -d "$W/new" ] || mv "$W/new" "$W-undone"
rm -f "$W/switched" "$W/old-complete" "$W/new-back"
rmdir "$W/old"
sync
"#;

pub(super) const DISCARD: &str = r#"
[ ! -e "$W/old-complete" ] || [ -e "$W/switched" ] || fail "a switch is not finished: resume or undo it first"
rm -rf "$W"
rmdir "$D/.drctl" 2>/dev/null || true
"#;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use super::{COPY_DAMAGED, PRELUDE};

    /// Copies the damage of a data directory; the copy, or what the script says against it.
    fn copy(data: &Path) -> Result<PathBuf, String> {
        let out = Command::new("/bin/sh")
            .args(["-c", &format!("{PRELUDE}{COPY_DAMAGED}")])
            .env("PGDATA", data)
            .env("RUN", "run")
            .env("TO", "new")
            .output()
            .unwrap();
        if out.status.success() {
            Ok(data.join(".drctl/run/new"))
        } else {
            Err(String::from_utf8_lossy(&out.stderr).into_owned())
        }
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
