//! The data directory as it lies on disk, seen by a read-only helper of the server's own
//! image: it works whether or not the server runs.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::control::{self, ControlData};
use super::logs::may_loop;
use crate::system::{PostgresServer, System};
use crate::workload::{HelperOutput, HelperSpec, Status};

/// The data directory as it lies on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FileFacts {
    /// `uid:gid` of the data directory.
    pub owner: String,
    /// Octal mode of the data directory, as `700`.
    pub mode: String,
    /// Content of `PG_VERSION`.
    pub version: Option<String>,
    /// The same of the database `template1`, which every cluster has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inner_version: Option<String>,
    /// Major version of the server program in the image.
    pub program_version: Option<String>,
    /// Files and directories that are owned by someone else than the majority, or that
    /// the server's user cannot write; the first twenty.
    pub foreign: Vec<String>,
    /// Directories that a server needs and that are not there.
    pub missing_directories: Vec<String>,
    /// Names of files in `pg_wal` (segments and histories), sorted.
    pub wal: Vec<String>,
    /// Names of files in `pg_xact`, sorted.
    pub xact: Vec<String>,
    /// What `postgres -C` says against the configuration, when it refuses it.
    pub configuration_error: Option<String>,
    /// Bytes in the data directory, `.drctl` left out.
    pub data_bytes: u64,
    /// Bytes free on its file system.
    pub disk_free: u64,
    /// Bytes of its file system.
    pub disk_total: u64,
    /// Bytes free where `pg_wal` is, when that is another file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wal_free: Option<u64>,
    /// Bytes used of `/dev/shm` and its size, when the container runs.
    pub shm: Option<(u64, u64)>,
    /// Which of `standby.signal`, `recovery.signal` and `backup_label` are there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signals: Vec<String>,
    /// What leads out of the data directory: tablespaces, and `pg_wal` where the cluster was made
    /// with `--waldir`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<String>,
    /// `postmaster.pid`, line by line; `None` when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock_file: Option<Vec<String>>,
}

/// Where a running server says that it listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listens {
    /// TCP port.
    pub port: u16,
    /// The first of its addresses; empty when it listens on its socket only.
    pub address: String,
}

/// What a running server says of itself in its lock file (`pidfile.h` in the server's sources).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerState {
    /// It starts, or replays its log.
    Starting,
    /// It serves.
    Ready,
    /// It serves those who read.
    Standby,
    /// It shuts down.
    Stopping,
}

impl FileFacts {
    /// What the server that was started at `container_start` says of itself: line 8 of the lock
    /// file (since PostgreSQL 10). `None` of an older server, and of a file that a start before
    /// this one has left: line 3 is the second in which its server began.
    #[must_use]
    pub fn server_state(&self, container_start: Option<Timestamp>) -> Option<ServerState> {
        let lines = self.lock_file.as_ref()?;
        let began: i64 = lines.get(2)?.trim().parse().ok()?;
        if container_start.is_some_and(|at| began < at.as_second()) {
            return None;
        }
        match lines.get(7)?.trim() {
            "starting" => Some(ServerState::Starting),
            "ready" => Some(ServerState::Ready),
            "standby" => Some(ServerState::Standby),
            "stopping" => Some(ServerState::Stopping),
            _ => None,
        }
    }

    /// There is nothing of a cluster: no `PG_VERSION`, and neither of the directories without
    /// which there is no control file and no database.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let gone = |name: &str| self.missing_directories.iter().any(|d| d == name);
        self.version.is_none() && self.inner_version.is_none() && gone("base") && gone("global")
    }

    /// Bytes free where there are the least: of the data's file system and of `pg_wal`'s.
    #[must_use]
    pub fn least_free(&self) -> u64 {
        self.wal_free.map_or(self.disk_free, |w| w.min(self.disk_free))
    }

    /// Where the server listens, by its lock file (`pidfile.h` in the server's sources: the port
    /// is line 4, the first address line 6). `None` before it listens.
    #[must_use]
    pub fn listens(&self) -> Option<Listens> {
        let lines = self.lock_file.as_ref()?;
        Some(Listens {
            port: lines.get(3)?.trim().parse().ok()?,
            address: lines.get(5)?.trim().to_owned(),
        })
    }
}

/// What a look at the directory gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// The directory, or why it could not be looked at.
    pub files: Result<FileFacts, String>,
    /// `pg_control`, or why it could not be read.
    pub control: Result<ControlData, String>,
    /// `uid:gid` as which the server has to run.
    pub server_user: Option<String>,
}

/// Plain POSIX shell that also busybox runs. One `key=value` line per fact. The owner that
/// counts is that of most entries: the directory itself may be the one that was changed.
const LOOK: &str = r#"
export LC_ALL=C
for d in /usr/lib/postgresql/*/bin /usr/local/pgsql/bin; do [ -d "$d" ] && PATH=$PATH:$d; done
cd "$PGDATA" || { echo "error=no data directory at $PGDATA"; exit 0; }
stat -c 'owner=%u:%g
mode=%a' .
[ -f PG_VERSION ] && printf 'version=%s\n' "$(head -n 1 PG_VERSION)"
[ -f base/1/PG_VERSION ] && printf 'inner-version=%s\n' "$(head -n 1 base/1/PG_VERSION)"
printf 'program=%s\n' "$(postgres --version 2>/dev/null)"
most=$(stat -c '%u:%g' -- * | sort | uniq -c | sort -rn | head -n 1 | sed 's/^ *[0-9]* *//')
case $most in 0:*|'') most=$(id -u postgres 2>/dev/null):$(id -g postgres 2>/dev/null) ;; esac
printf 'user=%s\n' "$most"
uid=${most%%:*}
[ -z "$uid" ] || timeout 2 find . -path ./.drctl -prune -o \( ! -user "$uid" -o -type d ! -perm -700 -o -type f ! -perm -600 \) -print 2>/dev/null |
  head -n 20 | while IFS= read -r f; do stat -c 'foreign=%n (%u:%g, mode %a)' -- "$f"; done
for d in base global pg_wal pg_xact pg_multixact pg_notify pg_replslot pg_stat pg_stat_tmp pg_twophase pg_snapshots pg_logical \
  pg_logical/snapshots pg_logical/mappings pg_commit_ts pg_dynshmem pg_serial pg_subtrans pg_tblspc; do
  [ -d "$d" ] || echo "missing=$d"
done
for f in standby.signal recovery.signal backup_label; do [ -e "$f" ] && echo "signal=$f"; done
if [ -e postmaster.pid ]; then echo 'lock-file=there'; sed 's/^/lock=/' postmaster.pid; fi
for f in base global pg_* base/* pg_tblspc/*; do
  case $f in *.conf) ;; *) [ -L "$f" ] && echo "link=$f" ;; esac
done
for f in pg_wal/*; do [ -f "$f" ] && echo "wal=${f#pg_wal/}"; done
for f in pg_xact/*; do [ -f "$f" ] && echo "xact=${f#pg_xact/}"; done
echo "kib=$(timeout 2 du -sk . 2>/dev/null | cut -f 1)"
echo "kib-aside=$(timeout 1 du -sk .drctl 2>/dev/null | cut -f 1)"
df -Pk . | tail -n 1 | { read -r _ total _ free _; echo "disk=$total $free"; }
[ "$(stat -c %d .)" = "$(stat -L -c %d pg_wal)" ] ||
  df -Pk pg_wal/. | tail -n 1 | { read -r _ _ _ free _; echo "wal-free=$free"; }
control() { pg_controldata -D "$PGDATA" 2>&1; }
said=$(control)
# A file that is being written can look torn once; damage stays.
case $said in *'does not match'*) sleep 0.1; said=$(control) ;; esac
printf '%s\n' "$said" | sed 's/^/control=/'
"#;

/// Says what a start would say against the configuration, without starting.
const CONFIGURATION: &str = r#"
export LC_ALL=C
for d in /usr/lib/postgresql/*/bin /usr/local/pgsql/bin; do [ -d "$d" ] && PATH=$PATH:$d; done
said=$(postgres -D "$PGDATA" -C hba_file 2>&1) || { printf '%s\n' "$said"; exit 1; }
hba=$(printf '%s\n' "$said" | tail -n 1)
[ -r "$hba" ] || { echo "$hba cannot be read"; exit 1; }
"#;

/// Looks at the data directory with a read-only helper, and with a second one at the
/// configuration when the server does not run. Each is ended after `deadline`.
pub async fn look(system: &System, server: &PostgresServer, run: &str, deadline: Duration) -> Look {
    let helper = |purpose, script: &'static str| {
        server.files_helper(
            system.deployment(),
            run,
            purpose,
            true,
            &["/bin/sh", "-c", script],
        )
    };
    let shm = shared_memory(system, server, deadline);
    let (output, shm) = tokio::join!(run_helper(system, helper("look-at-files", LOOK), deadline), shm);
    let mut found = match output {
        Ok(output) if output.stdout.is_empty() => failed(&output.last_words()),
        Ok(output) => parse(&output.stdout),
        Err(why) => failed(&why),
    };
    if let Ok(files) = &mut found.files {
        files.shm = shm;
        if may_loop(&server.container) || matches!(server.container.status, Status::Exited | Status::Created)
        {
            let mut spec = helper("check-configuration", CONFIGURATION);
            spec.user = found.server_user.clone();
            files.configuration_error = match run_helper(system, spec, deadline).await {
                Ok(output) if output.exit_code == 0 => None,
                Ok(output) => Some(output.last_words()).filter(|w| !w.is_empty()),
                // Not looked at is not refused.
                Err(_) => None,
            };
        }
    }
    found
}

/// Runs a helper, and waits no longer for the engine than for the helper. The task goes on when
/// the wait is over: broken off in the middle it could leave a container behind.
async fn run_helper(system: &System, spec: HelperSpec, deadline: Duration) -> Result<HelperOutput, String> {
    let docker = system.docker.clone();
    let task = tokio::spawn(async move { docker.run_helper(&spec, deadline).await });
    match tokio::time::timeout(deadline + Duration::from_secs(1), task).await {
        Ok(Ok(Ok(output))) => Ok(output),
        Ok(Ok(Err(e))) => Err(e.to_string()),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err("the engine did not start a helper container in time".to_owned()),
    }
}

fn failed(why: &str) -> Look {
    Look {
        files: Err(why.to_owned()),
        control: Err(why.to_owned()),
        server_user: None,
    }
}

/// Bytes used of a running container's `/dev/shm`, and its size.
pub(super) async fn shared_memory(
    system: &System,
    server: &PostgresServer,
    deadline: Duration,
) -> Option<(u64, u64)> {
    if !server.container.is_running() {
        return None;
    }
    let output = system
        .docker
        .exec(&server.container.id, None, &["df", "-Pk", "/dev/shm"], deadline)
        .await
        .ok()?;
    shm_line(&output.stdout)
}

fn shm_line(df: &str) -> Option<(u64, u64)> {
    let mut words = df.lines().last()?.split_whitespace().skip(1);
    let total: u64 = words.next()?.parse().ok()?;
    let used: u64 = words.next()?.parse().ok()?;
    Some((used << 10, total << 10))
}

/// Reads the helper's lines.
#[must_use]
pub fn parse(output: &str) -> Look {
    let all = |key: &str| -> Vec<String> {
        output
            .lines()
            .filter_map(|l| l.strip_prefix(key)?.strip_prefix('='))
            .map(str::to_owned)
            .collect()
    };
    let one = |key: &str| all(key).into_iter().next().filter(|v| !v.is_empty());
    let kib = |text: Option<&str>| text.and_then(|t| t.parse::<u64>().ok()).unwrap_or_default() << 10;
    if let Some(why) = one("error") {
        return failed(&why);
    }
    let disk = one("disk").unwrap_or_default();
    let (total, free) = disk.split_once(' ').unwrap_or_default();
    let mut wal = all("wal");
    wal.sort();
    let mut xact = all("xact");
    xact.sort();
    let user = one("user").filter(|u| {
        u.split_once(':')
            .is_some_and(|(u, g)| !u.is_empty() && !g.is_empty())
    });
    let owner = one("owner").unwrap_or_default();
    Look {
        files: Ok(FileFacts {
            owner,
            mode: one("mode").unwrap_or_default(),
            version: one("version").map(|v| v.trim().to_owned()),
            inner_version: one("inner-version").map(|v| v.trim().to_owned()),
            program_version: one("program").as_deref().and_then(major),
            foreign: all("foreign")
                .into_iter()
                .map(|f| f.strip_prefix("./").map_or(f.clone(), str::to_owned))
                .collect(),
            missing_directories: all("missing"),
            wal,
            xact,
            configuration_error: None,
            // Too large to be added up in time: then everything that the file system holds, which
            // is too much rather than too little.
            data_bytes: match one("kib") {
                Some(all) => kib(Some(&all)).saturating_sub(kib(one("kib-aside").as_deref())),
                None => kib(Some(total)).saturating_sub(kib(Some(free))),
            },
            disk_free: kib(Some(free)),
            disk_total: kib(Some(total)),
            wal_free: one("wal-free")
                .and_then(|f| f.parse::<u64>().ok())
                .map(|f| f << 10),
            shm: None,
            signals: all("signal"),
            links: all("link"),
            lock_file: one("lock-file").map(|_| all("lock")),
        }),
        control: control::parse(&all("control").join("\n")),
        server_user: user,
    }
}

/// `15` of `postgres (PostgreSQL) 15.20 (Debian 15.20-1)`; `9.6` of `… 9.6.24`.
fn major(program: &str) -> Option<String> {
    let number = program
        .split_whitespace()
        .find(|w| w.starts_with(|c: char| c.is_ascii_digit()))?;
    let mut parts = number.split('.');
    let first = parts.next()?;
    let digits: String = first.chars().take_while(char::is_ascii_digit).collect();
    if digits.parse::<u32>().ok()? < 10 {
        return Some(format!("{digits}.{}", parts.next()?));
    }
    Some(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_helper() {
        let look = parse(
            "owner=0:0\nmode=755\nversion=15\ninner-version=15\nprogram=postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)\nuser=999:999\n\
             foreign=. (0:0, mode 755)\nforeign=./base (0:0, mode 700)\nmissing=pg_notify\nsignal=standby.signal\nlock-file=there\nlock=1\nlock=/d\nlock=17\nlock=5433\nlock=/run\nlock=localhost\n\
             wal=000000010000000000000002\n\
             wal=000000010000000000000001\nxact=0000\nkib=2048\nkib-aside=1024\ndisk=100 50\nwal-free=7\n\
             control=pg_controldata: error: could not read file \"x\": read 100 of 296\n",
        );
        let files = look.files.unwrap();
        assert_eq!((files.owner.as_str(), files.mode.as_str()), ("0:0", "755"));
        assert_eq!(files.version.as_deref(), Some("15"));
        assert_eq!(files.inner_version.as_deref(), Some("15"));
        assert_eq!(files.program_version.as_deref(), Some("15"));
        assert_eq!(files.foreign, [". (0:0, mode 755)", "base (0:0, mode 700)"]);
        assert_eq!(files.missing_directories, ["pg_notify"]);
        assert_eq!(files.signals, ["standby.signal"]);
        let listens = files.listens().unwrap();
        assert_eq!((listens.port, listens.address.as_str()), (5433, "localhost"));
        assert_eq!(
            files.wal,
            ["000000010000000000000001", "000000010000000000000002"]
        );
        assert_eq!(files.data_bytes, 1 << 20);
        assert_eq!((files.disk_total, files.disk_free), (100 << 10, 50 << 10));
        assert_eq!((files.wal_free, files.least_free()), (Some(7 << 10), 7 << 10));
        assert_eq!(look.server_user.as_deref(), Some("999:999"));
        assert!(look.control.unwrap_err().contains("read 100 of 296"));
    }

    #[test]
    fn a_lock_file_tells_how_its_own_server_is() {
        let state = |third: &str, eighth: &str, start: i64| {
            let mut files = parse("owner=0:0\nuser=999:999\n").files.unwrap();
            let lines = [
                "1",
                "/d",
                third,
                "5432",
                "/run",
                "*",
                "  5432001         0",
                eighth,
            ];
            files.lock_file = Some(lines.iter().map(ToString::to_string).collect());
            files.server_state(Timestamp::from_second(start).ok())
        };
        assert_eq!(state("1000", "ready   ", 999), Some(ServerState::Ready));
        assert_eq!(state("1000", "starting", 1000), Some(ServerState::Starting));
        assert_eq!(state("1000", "standby ", 1000), Some(ServerState::Standby));
        assert_eq!(state("1000", "stopping", 1000), Some(ServerState::Stopping));
        // Of the run before, which had been ready.
        assert_eq!(state("1000", "ready   ", 1001), None);
        assert_eq!(state("1000", "", 999), None);
    }

    #[test]
    fn an_empty_directory_is_no_directory_with_losses() {
        let empty = "owner=0:0\nuser=999:999\nmissing=base\nmissing=global\nmissing=pg_wal\n";
        assert!(parse(empty).files.unwrap().is_empty());
        for some in ["version=15\n", "inner-version=15\n"] {
            assert!(!parse(&format!("{empty}{some}")).files.unwrap().is_empty());
        }
        assert!(!parse("owner=0:0\nmissing=base\n").files.unwrap().is_empty());
    }

    #[test]
    fn a_directory_that_is_not_there() {
        assert_eq!(
            parse("error=no data directory at /x\n").files.unwrap_err(),
            "no data directory at /x"
        );
    }

    #[test]
    fn versions_and_shared_memory() {
        assert_eq!(major("postgres (PostgreSQL) 16beta1").as_deref(), Some("16"));
        assert_eq!(major("postgres (PostgreSQL) 9.6.24").as_deref(), Some("9.6"));
        assert_eq!(major(""), None);
        let df =
            "Filesystem 1024-blocks Used Available Capacity Mounted on\nshm 65536 1024 64512 2% /dev/shm\n";
        assert_eq!(shm_line(df), Some((1 << 20, 64 << 20)));
    }
}
