//! Compression of a dump while it is being written.
//!
//! `pg_dump` compresses with zlib, and that is what its speed is bound by: without it, a dump
//! takes half of the processor time. So it writes plain files here, and drctl turns each into
//! the `.dat.gz` that `pg_restore` of every version looks for where the plain file is missing
//! (PostgreSQL's `cfopen_read`, since 9.1), with an encoder three times as fast as zlib. The
//! files are followed as they grow, and what was read is given back to the file system:
//! little of the plain text is ever on disk. Threads share a file chunk by chunk, so that one
//! large table does not leave cores idle.
//!
//! Whoever sees every byte can count: the text of `COPY` has one line for each row.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use libdeflater::{CompressionLvl, Compressor};
use rustix::fs::FallocateFlags;
use tokio::sync::mpsc;

/// Level of libdeflate: the lowest whose result is not larger than that of `gzip -6` for
/// text of many kinds.
const LEVEL: i32 = 4;
/// Plain bytes of one gzip member. A file of several members is one gzip file (RFC 1952, 2.2).
const CHUNK: usize = 1 << 20;
/// How far the chunks of one file may run ahead of the first that is not written yet: what
/// waits for its turn is in memory.
const AHEAD: u64 = 8 * CHUNK as u64;
/// How long to wait at least when nothing has grown.
const PAUSE: Duration = Duration::from_millis(25);
/// How `pg_dump` ends the text of a table (`\.` is the end of data of `COPY`).
const END_OF_DATA: &[u8] = b"\\.\n\n\n";
/// Line feeds in it.
const END_LINES: u64 = 3;

const FOLLOWING: u8 = 0;
const FINISHING: u8 = 1;
const ABANDONED: u8 = 2;

/// Threads that compress the data files of one directory. Dropping it stops them.
pub struct Packer {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    failures: mpsc::Receiver<io::Error>,
}

struct Shared {
    directory: PathBuf,
    phase: AtomicU8,
    /// Compressed bytes written.
    packed: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Files seen so far that have not been finished.
    files: HashMap<OsString, Progress>,
    /// What is left once nothing grows any more, the largest last.
    rest: Option<Vec<OsString>>,
    /// Rows of finished files, by the number in their name.
    rows: BTreeMap<u32, u64>,
}

#[derive(Default)]
struct Progress {
    /// Plain bytes that a thread has compressed or is compressing.
    claimed: u64,
    /// Plain bytes whose members are written.
    written: u64,
    /// Members that wait for those before them, by their place in the plain text.
    waiting: BTreeMap<u64, Member>,
    /// A thread writes its members.
    busy: bool,
    /// The plain length, once the file does not grow any more.
    length: Option<u64>,
    /// Line feeds in what is written.
    lines: u64,
    /// The last plain bytes written, as many as [`END_OF_DATA`] has.
    tail: Vec<u8>,
}

/// A compressed chunk.
struct Member {
    packed: Vec<u8>,
    plain: u64,
    lines: u64,
    tail: Vec<u8>,
}

/// Plain bytes to compress.
struct Job {
    name: OsString,
    at: u64,
    bytes: usize,
}

enum Claim {
    Job(Job),
    Nothing,
    /// Nothing is left, now or later.
    Done,
}

impl Packer {
    /// Starts to follow the files of `directory`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(directory: &Path, threads: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            directory: directory.to_owned(),
            phase: AtomicU8::new(FOLLOWING),
            packed: AtomicU64::new(0),
            state: Mutex::default(),
        });
        let (tell, failures) = mpsc::channel(threads.max(1));
        // Made first, so that dropping it ends the threads that were started.
        let mut packer = Self {
            shared,
            threads: Vec::new(),
            failures,
        };
        for _ in 0..threads.max(1) {
            let (shared, tell) = (packer.shared.clone(), tell.clone());
            let work = move || {
                if let Err(e) = shared.work() {
                    // The others may wait for a chunk that never comes.
                    shared.phase.store(ABANDONED, Ordering::Release);
                    let _ = tell.try_send(e);
                }
            };
            packer.threads.push(
                std::thread::Builder::new()
                    .name("drctl-gzip".into())
                    .spawn(work)?,
            );
        }
        Ok(packer)
    }

    /// Tells how many compressed bytes are written.
    pub fn meter(&self) -> impl Fn() -> u64 + Clone + Send + 'static {
        let shared = self.shared.clone();
        move || shared.packed.load(Ordering::Relaxed)
    }

    /// Completes when a thread has failed; never otherwise.
    pub async fn failed(&mut self) -> io::Error {
        match self.failures.recv().await {
            Some(e) => e,
            None => std::future::pending().await,
        }
    }

    /// Nothing grows any more: compresses the rest and removes the plain files. Returns the
    /// rows of each file named after a number (the entry in the dump's table of contents)
    /// that is the whole text of a `COPY`.
    ///
    /// # Errors
    /// The first that a thread met.
    pub async fn finish(mut self) -> io::Result<BTreeMap<u32, u64>> {
        // A thread that failed has set another phase, which stands.
        let _ = self
            .shared
            .phase
            .compare_exchange(FOLLOWING, FINISHING, Ordering::AcqRel, Ordering::Acquire);
        let threads = std::mem::take(&mut self.threads);
        let whole = tokio::task::spawn_blocking(move || {
            let mut whole = true;
            for thread in threads {
                whole &= thread.join().is_ok();
            }
            whole
        })
        .await
        .unwrap_or(false);
        match self.failures.try_recv() {
            Ok(e) => Err(e),
            Err(_) if whole && self.shared.state().files.is_empty() => {
                Ok(std::mem::take(&mut self.shared.state().rows))
            }
            Err(_) => Err(io::Error::other("a thread that compresses ended early")),
        }
    }
}

impl Drop for Packer {
    fn drop(&mut self) {
        self.shared.phase.store(ABANDONED, Ordering::Release);
    }
}

impl Shared {
    fn phase(&self) -> u8 {
        self.phase.load(Ordering::Acquire)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) -> io::Result<()> {
        let mut encoder = Encoder::new();
        loop {
            let phase = self.phase();
            if phase == ABANDONED {
                return Ok(());
            }
            let looked = Instant::now();
            match self.claim(phase == FINISHING)? {
                Claim::Job(mut job) => loop {
                    self.pack(&mut encoder, &job)?;
                    // More of the same costs no look through the directory.
                    match self.more(job.name)? {
                        Some(next) if self.phase() != ABANDONED => job = next,
                        _ => break,
                    }
                },
                Claim::Done => return Ok(()),
                // A directory of a million large objects takes a while to look through.
                Claim::Nothing => std::thread::sleep(PAUSE.max(looked.elapsed() * 8)),
            }
        }
    }

    /// The next work.
    fn claim(&self, finishing: bool) -> io::Result<Claim> {
        let mut state = self.state();
        if finishing {
            return self.claim_rest(&mut state);
        }
        let most = self
            .look()?
            .into_iter()
            .filter_map(|(name, length)| {
                let waiting = state.files.get(&name).map_or(length, |p| p.open(length));
                (waiting >= CHUNK as u64).then_some((waiting, name))
            })
            .max();
        Ok(most.map_or(Claim::Nothing, |(_, name)| Claim::Job(state.take(name, CHUNK))))
    }

    fn claim_rest(&self, state: &mut State) -> io::Result<Claim> {
        if state.rest.is_none() {
            let mut all = self.look()?;
            let mut rest = Vec::new();
            all.sort_by_key(|(name, length)| {
                length.saturating_sub(state.files.get(name).map_or(0, |p| p.claimed))
            });
            for (name, length) in all {
                let progress = state.files.entry(name.clone()).or_default();
                progress.length = Some(length);
                if progress.written < length || length == 0 {
                    rest.push(name);
                } else {
                    self.complete(state, &name)?;
                }
            }
            state.rest = Some(rest);
        }
        let mut rest = state.rest.take().unwrap_or_default();
        let mut held_back = Vec::new();
        let mut found = Claim::Done;
        while let Some(name) = rest.pop() {
            let Some((length, open, left)) = state.files.get(&name).and_then(|p| {
                let length = p.length?;
                Some((length, p.open(length), length.saturating_sub(p.claimed)))
            }) else {
                continue;
            };
            if open > 0 || length == 0 {
                let job = state.take(name.clone(), chunk_of(open));
                if left > job.bytes as u64 {
                    rest.push(name);
                }
                found = Claim::Job(job);
                break;
            }
            // What others have taken already, they finish; the rest has to wait for them.
            if left > 0 {
                held_back.push(name);
                found = Claim::Nothing;
            }
        }
        held_back.reverse();
        rest.extend(held_back);
        state.rest = Some(rest);
        Ok(found)
    }

    /// More work in the same file.
    fn more(&self, name: OsString) -> io::Result<Option<Job>> {
        let mut state = self.state();
        let Some(progress) = state.files.get(&name) else {
            return Ok(None);
        };
        if let Some(length) = progress.length {
            let open = progress.open(length);
            return Ok((open > 0).then(|| state.take(name, chunk_of(open))));
        }
        let length = fs::metadata(self.directory.join(&name))?.len();
        Ok((progress.open(length) >= CHUNK as u64).then(|| state.take(name, CHUNK)))
    }

    /// Data files and their lengths. `toc.dat` is read as it is.
    fn look(&self) -> io::Result<Vec<(OsString, u64)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == OsStr::new("toc.dat") || Path::new(&name).extension() != Some(OsStr::new("dat")) {
                continue;
            }
            match entry.metadata() {
                Ok(meta) => found.push((name, meta.len())),
                // Finished by another thread meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(found)
    }

    /// Compresses a chunk, and writes it when those before it are written.
    fn pack(&self, encoder: &mut Encoder, job: &Job) -> io::Result<()> {
        let from = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.directory.join(&job.name))?;
        let member = encoder.member(&from, job)?;
        let mut state = self.state();
        let Some(progress) = state.files.get_mut(&job.name) else {
            return Err(io::Error::other("a file that is being compressed was forgotten"));
        };
        progress.waiting.insert(job.at, member);
        if progress.busy {
            return Ok(());
        }
        progress.busy = true;
        loop {
            let Some(progress) = state.files.get_mut(&job.name) else {
                return Ok(());
            };
            let at = progress.written;
            let Some(member) = progress.waiting.remove(&at) else {
                progress.busy = false;
                break;
            };
            drop(state);
            self.append(&job.name, &member)?;
            // Only a favour to the disk: not every file system can.
            let _ = rustix::fs::fallocate(
                &from,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                at,
                member.plain.max(1),
            );
            state = self.state();
            if let Some(progress) = state.files.get_mut(&job.name) {
                progress.account(&member);
                if progress.length == Some(progress.written) {
                    return self.complete(&mut state, &job.name);
                }
            }
        }
        Ok(())
    }

    fn append(&self, name: &OsStr, member: &Member) -> io::Result<()> {
        let mut packed = self.directory.join(name).into_os_string();
        packed.push(".gz");
        let mut to = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&packed)?;
        to.write_all(&member.packed)?;
        self.packed
            .fetch_add(member.packed.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// All of a file is written.
    fn complete(&self, state: &mut State, name: &OsStr) -> io::Result<()> {
        let Some(progress) = state.files.remove(name) else {
            return Ok(());
        };
        let number = Path::new(name)
            .file_stem()
            .and_then(OsStr::to_str)
            .and_then(|s| s.parse().ok());
        if let Some(number) = number
            && let Some(rows) = progress.rows()
        {
            state.rows.insert(number, rows);
        }
        fs::remove_file(self.directory.join(name))
    }
}

impl State {
    fn take(&mut self, name: OsString, bytes: usize) -> Job {
        let progress = self.files.entry(name.clone()).or_default();
        let at = progress.claimed;
        progress.claimed += bytes as u64;
        Job { name, at, bytes }
    }
}

impl Progress {
    /// Of `length` bytes, those that may be taken now.
    fn open(&self, length: u64) -> u64 {
        length.min(self.written + AHEAD).saturating_sub(self.claimed)
    }

    fn account(&mut self, member: &Member) {
        self.written += member.plain;
        self.lines += member.lines;
        self.tail.extend_from_slice(&member.tail);
        let surplus = self.tail.len().saturating_sub(END_OF_DATA.len());
        self.tail.drain(..surplus);
    }

    /// The rows of a whole `COPY` text. A line feed inside a value is written as `\n`, and no
    /// encoding that a dump may have uses the byte in another character.
    fn rows(&self) -> Option<u64> {
        if self.tail != END_OF_DATA {
            return None;
        }
        self.lines.checked_sub(END_LINES)
    }
}

/// At most a chunk.
fn chunk_of(bytes: u64) -> usize {
    usize::try_from(bytes).map_or(CHUNK, |b| b.min(CHUNK))
}

struct Encoder {
    compressor: Compressor,
    plain: Vec<u8>,
    packed: Vec<u8>,
}

impl Encoder {
    fn new() -> Self {
        let mut compressor = Compressor::new(CompressionLvl::new(LEVEL).unwrap_or_default());
        let bound = compressor.gzip_compress_bound(CHUNK);
        Self {
            compressor,
            plain: vec![0; CHUNK],
            packed: vec![0; bound],
        }
    }

    /// The bytes of a job as a gzip member. No byte is one empty member: an empty .gz is no
    /// gzip file.
    fn member(&mut self, from: &File, job: &Job) -> io::Result<Member> {
        let plain = self
            .plain
            .get_mut(..job.bytes)
            .ok_or_else(|| io::Error::other("a chunk is too long"))?;
        from.read_exact_at(plain, job.at)?;
        let length = self
            .compressor
            .gzip_compress(plain, &mut self.packed)
            .map_err(|e| io::Error::other(e.to_string()))?;
        let tail = plain.len().saturating_sub(END_OF_DATA.len());
        Ok(Member {
            packed: self.packed.get(..length).unwrap_or_default().to_vec(),
            plain: plain.len() as u64,
            lines: memchr::memchr_iter(b'\n', plain).count() as u64,
            tail: plain.get(tail..).unwrap_or_default().to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpack(path: &Path) -> Vec<u8> {
        let output = std::process::Command::new("gzip")
            .arg("-dc")
            .arg(path)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    }

    #[tokio::test]
    async fn files_are_followed_and_end_as_gzip() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let line = b"1\tone line of a table, of no interest\t42\n";
        fs::write(path("toc.dat"), "as it is").unwrap();
        fs::write(path("blobs.toc"), "too").unwrap();
        fs::write(path("empty.dat"), "").unwrap();
        fs::write(path("small.dat"), line).unwrap();
        let packer = Packer::start(dir.path(), 2).unwrap();
        let mut expected = Vec::new();
        let mut growing = File::create(path("growing.dat")).unwrap();
        for i in 0..5 {
            // Not in chunks of ours.
            let part = line.repeat(40_000 + i);
            growing.write_all(&part).unwrap();
            expected.extend_from_slice(&part);
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        let exact = vec![7; 2 * CHUNK];
        fs::write(path("exact.dat"), &exact).unwrap();
        let rows = packer.finish().await.unwrap();
        assert_eq!(unpack(&path("growing.dat.gz")), expected);
        assert_eq!(unpack(&path("exact.dat.gz")), exact);
        assert_eq!(unpack(&path("small.dat.gz")), line);
        assert_eq!(unpack(&path("empty.dat.gz")), b"");
        assert_eq!(fs::read(path("toc.dat")).unwrap(), b"as it is");
        // Names that are no entries of a table of contents.
        assert!(rows.is_empty(), "{rows:?}");
        let mut left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(
            left,
            [
                "blobs.toc",
                "empty.dat.gz",
                "exact.dat.gz",
                "growing.dat.gz",
                "small.dat.gz",
                "toc.dat"
            ]
        );
    }

    #[tokio::test]
    async fn rows_are_counted_in_whole_copies() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let end = b"\\.\n\n\n";
        let whole = |rows: usize| [b"1\tan\\n escaped line feed\n".repeat(rows), end.to_vec()].concat();
        // Ends just before, in, and just after the end of a chunk.
        let row = 25;
        let short = (CHUNK - end.len()) / row;
        for (name, rows) in [
            ("1", 0),
            ("2", 3),
            ("3", short - 1),
            ("4", short),
            ("5", short + 1),
            ("6", 9 * short),
        ] {
            assert_eq!(whole(1).len(), row + end.len());
            fs::write(path(&format!("{name}.dat")), whole(rows)).unwrap();
        }
        let mut exact = vec![b'x'; 2 * CHUNK - end.len() - 1];
        exact.push(b'\n');
        exact.extend_from_slice(end);
        fs::write(path("7.dat"), &exact).unwrap();
        fs::write(path("8.dat"), "INSERT INTO t VALUES (1);\n").unwrap();
        fs::write(path("9.dat"), "").unwrap();
        let packer = Packer::start(dir.path(), 3).unwrap();
        tokio::time::sleep(Duration::from_millis(60)).await;
        let rows = packer.finish().await.unwrap();
        let expected: BTreeMap<u32, u64> = [
            (1, 0),
            (2, 3),
            (3, short - 1),
            (4, short),
            (5, short + 1),
            (6, 9 * short),
            (7, 1),
        ]
        .map(|(n, rows)| (n, rows as u64))
        .into();
        assert_eq!(rows, expected);
        assert_eq!(unpack(&path("6.dat.gz")), whole(9 * short));
        assert_eq!(unpack(&path("7.dat.gz")), exact);
        assert!(!path("7.dat").exists());
    }

    #[tokio::test]
    async fn a_failure_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut packer = Packer::start(&dir.path().join("not there"), 1).unwrap();
        let e = tokio::time::timeout(Duration::from_secs(5), packer.failed())
            .await
            .unwrap();
        assert_eq!(e.kind(), io::ErrorKind::NotFound);
    }
}
