//! Compression of a dump while it is being written.
//!
//! `pg_dump` compresses with zlib, and that is what its speed is bound by: without it, a dump
//! takes half of the processor time. So it writes plain files here, and drctl turns each into
//! the `.dat.gz` that `pg_restore` of every version looks for where the plain file is missing
//! (PostgreSQL's `cfopen_read`, since 9.1), with an encoder three times as fast as zlib. The
//! files are followed as they grow, and what was read is given back to the file system:
//! little of the plain text is ever on disk.

use std::collections::HashMap;
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
/// How long to wait at least when nothing has grown.
const PAUSE: Duration = Duration::from_millis(25);

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
}

#[derive(Default, Clone, Copy)]
struct Progress {
    /// Plain bytes that are compressed already.
    consumed: u64,
    /// A thread has it.
    busy: bool,
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

    /// Nothing grows any more: compresses the rest and removes the plain files.
    ///
    /// # Errors
    /// The first that a thread met.
    pub async fn finish(mut self) -> io::Result<()> {
        self.shared.phase.store(FINISHING, Ordering::Release);
        let threads = std::mem::take(&mut self.threads);
        let whole = tokio::task::spawn_blocking(move || threads.into_iter().all(|t| t.join().is_ok()))
            .await
            .unwrap_or(false);
        match self.failures.try_recv() {
            Ok(e) => Err(e),
            Err(_) if whole => Ok(()),
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
                Some((name, consumed)) => {
                    let ends = phase == FINISHING;
                    let consumed = self.pack(&mut encoder, &name, consumed, ends)?;
                    self.release(name, consumed, ends);
                }
                // What others still have, they finish.
                None if phase == FINISHING => return Ok(()),
                // A directory of a million large objects takes a while to look through.
                None => std::thread::sleep(PAUSE.max(looked.elapsed() * 8)),
            }
        }
    }

    /// A file with work in it that nobody has, and how much of it is compressed already.
    fn claim(&self, finishing: bool) -> io::Result<Option<(OsString, u64)>> {
        let mut state = self.state();
        let name = if finishing {
            if state.rest.is_none() {
                let mut all = self.look()?;
                all.retain(|(name, _)| !state.files.get(name).is_some_and(|p| p.busy));
                all.sort_by_key(|(name, length)| {
                    length - state.files.get(name).map_or(0, |p| p.consumed).min(*length)
                });
                state.rest = Some(all.into_iter().map(|(name, _)| name).collect());
            }
            state.rest.as_mut().and_then(Vec::pop)
        } else {
            let waiting = |name: &OsString, length: u64| {
                let p = state.files.get(name).copied().unwrap_or_default();
                (!p.busy).then(|| length.saturating_sub(p.consumed))
            };
            self.look()?
                .into_iter()
                .filter_map(|(name, length)| Some((waiting(&name, length)?, name)))
                .filter(|(bytes, _)| *bytes >= CHUNK as u64)
                .max()
                .map(|(_, name)| name)
        };
        Ok(name.map(|name| {
            let progress = state.files.entry(name.clone()).or_default();
            progress.busy = true;
            (name, progress.consumed)
        }))
    }

    fn release(&self, name: OsString, consumed: u64, ended: bool) {
        let mut state = self.state();
        if ended {
            state.files.remove(&name);
            return;
        }
        // The others may have listed the rest while this one was taken.
        if let Some(rest) = &mut state.rest {
            rest.push(name.clone());
        }
        state.files.insert(
            name,
            Progress {
                consumed,
                busy: false,
            },
        );
    }

    /// Data files and their lengths. `toc.dat` is read as it is.
    fn look(&self) -> io::Result<Vec<(OsString, u64)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name != OsStr::new("toc.dat") && Path::new(&name).extension() == Some(OsStr::new("dat")) {
                found.push((name, entry.metadata()?.len()));
            }
        }
        Ok(found)
    }

    /// Compresses what has grown, in whole chunks; to the end when it `ends`.
    fn pack(&self, encoder: &mut Encoder, name: &OsStr, consumed: u64, ends: bool) -> io::Result<u64> {
        let plain = self.directory.join(name);
        let mut packed = plain.clone().into_os_string();
        packed.push(".gz");
        let from = OpenOptions::new().read(true).write(true).open(&plain)?;
        let mut to = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&packed)?;
        let mut at = consumed;
        while self.phase() != ABANDONED {
            let n = read_chunk(&from, &mut encoder.plain, at)?;
            let whole = n == CHUNK;
            // An empty file is one empty member: an empty .gz is no gzip file.
            if !whole && !(ends && (n > 0 || at == 0)) {
                break;
            }
            let member = encoder.member(n)?;
            to.write_all(member)?;
            self.packed.fetch_add(member.len() as u64, Ordering::Relaxed);
            // Only a favour to the disk: not every file system can.
            let _ = rustix::fs::fallocate(
                &from,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                at,
                n as u64,
            );
            at += n as u64;
            if !whole {
                break;
            }
        }
        if ends && self.phase() != ABANDONED {
            fs::remove_file(&plain)?;
        }
        Ok(at)
    }
}

/// Fills the buffer from `at` on, as far as the file goes.
fn read_chunk(from: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(free) = buffer.get_mut(filled..).filter(|b| !b.is_empty()) {
        match from.read_at(free, at + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
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

    /// The first `n` plain bytes as a gzip member.
    fn member(&mut self, n: usize) -> io::Result<&[u8]> {
        let plain = self.plain.get(..n).unwrap_or_default();
        let length = self
            .compressor
            .gzip_compress(plain, &mut self.packed)
            .map_err(|e| io::Error::other(e.to_string()))?;
        Ok(self.packed.get(..length).unwrap_or_default())
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
        packer.finish().await.unwrap();
        assert_eq!(unpack(&path("growing.dat.gz")), expected);
        assert_eq!(unpack(&path("exact.dat.gz")), exact);
        assert_eq!(unpack(&path("small.dat.gz")), line);
        assert_eq!(unpack(&path("empty.dat.gz")), b"");
        assert_eq!(fs::read(path("toc.dat")).unwrap(), b"as it is");
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
    async fn a_failure_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut packer = Packer::start(&dir.path().join("not there"), 1).unwrap();
        let e = tokio::time::timeout(Duration::from_secs(5), packer.failed())
            .await
            .unwrap();
        assert_eq!(e.kind(), io::ErrorKind::NotFound);
    }
}
