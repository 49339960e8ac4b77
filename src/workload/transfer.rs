//! Directory trees as one stream: tar, compressed with zstd where both sides can. All of it
//! blocks; it runs on a thread of its own and meets the connection at a channel.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::staging::Meter;

/// Bytes of one chunk of the stream.
const CHUNK: usize = 128 << 10;
/// Fast enough that the network, not the processor, is the limit.
const LEVEL: i32 = 1;

/// How the stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    /// By zstd.
    Zstd,
    /// Not at all: the far side's image has no zstd.
    Plain,
}

/// Bytes of the regular files below a directory, for a forecast.
pub(super) fn size(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => size(&entry.path()),
            Ok(meta) if meta.is_file() => meta.len(),
            _ => 0,
        })
        .sum()
}

/// Sends a directory's content.
pub(super) fn pack(
    directory: &Path,
    packing: Packing,
    to: mpsc::Sender<Bytes>,
    meter: Meter,
) -> io::Result<()> {
    let sink = Sink {
        to,
        buffer: Vec::with_capacity(CHUNK),
    };
    match packing {
        Packing::Plain => archive(directory, sink, meter)?.flush(),
        Packing::Zstd => {
            let mut encoder = zstd::Encoder::new(sink, LEVEL)?;
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            encoder.multithread(u32::try_from(cores).unwrap_or(1))?;
            encoder.include_checksum(true)?;
            archive(directory, encoder, meter)?.finish()?.flush()
        }
    }
}

fn archive<W: Write>(directory: &Path, to: W, meter: Meter) -> io::Result<W> {
    let mut builder = tar::Builder::new(Metered { inner: to, meter });
    builder.follow_symlinks(false);
    // Busybox does not know the extension for files with holes.
    builder.sparse(false);
    builder.append_dir_all(".", directory)?;
    Ok(builder.into_inner()?.inner)
}

/// Receives a directory's content. Names that lead out of it are refused, and only root
/// gives files away.
pub(super) fn unpack(
    directory: &Path,
    packing: Packing,
    from: mpsc::Receiver<Bytes>,
    meter: Meter,
) -> io::Result<()> {
    let mut source = Source {
        from,
        rest: Bytes::new(),
    };
    match packing {
        Packing::Plain => extract(directory, &mut source, meter)?,
        Packing::Zstd => {
            let mut decoder = zstd::Decoder::new(&mut source)?;
            extract(directory, &mut decoder, meter)?;
            // To the end of the frame: its checksum stands there.
            io::copy(&mut decoder, &mut io::sink())?;
        }
    }
    io::copy(&mut source, &mut io::sink()).map(drop)
}

fn extract(directory: &Path, from: impl Read, meter: Meter) -> io::Result<()> {
    let mut archive = tar::Archive::new(Metered { inner: from, meter });
    archive.set_preserve_ownerships(rustix::process::geteuid().is_root());
    archive.set_unpack_xattrs(false);
    archive.unpack(directory)
}

/// Counts the plain bytes that pass.
struct Metered<T> {
    inner: T,
    meter: Meter,
}

impl<T: Write> Write for Metered<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.meter.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Metered<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.meter.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// Writes into a channel, in chunks of a good size.
struct Sink {
    to: mpsc::Sender<Bytes>,
    buffer: Vec<u8>,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let chunk = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK));
        self.to
            .blocking_send(chunk.into())
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

/// Reads from a channel.
struct Source {
    from: mpsc::Receiver<Bytes>,
    rest: Bytes,
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.from.blocking_recv() {
                Some(chunk) => self.rest = chunk,
                None => return Ok(0),
            }
        }
        let part = self.rest.split_to(buffer.len().min(self.rest.len()));
        if let Some(to) = buffer.get_mut(..part.len()) {
            to.copy_from_slice(&part);
        }
        Ok(part.len())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    /// Packs `from` and unpacks it into `to` after `change` had its way with the stream.
    async fn through(
        from: &Path,
        to: &Path,
        packing: Packing,
        change: impl Fn(Vec<u8>) -> Vec<u8>,
    ) -> io::Result<(u64, u64)> {
        let (sent, received) = (Meter::default(), Meter::default());
        let (tell, mut chunks) = mpsc::channel(4);
        let (dir, meter) = (from.to_owned(), sent.clone());
        let packer = tokio::task::spawn_blocking(move || pack(&dir, packing, tell, meter));
        let mut stream = Vec::new();
        while let Some(chunk) = chunks.recv().await {
            stream.extend_from_slice(&chunk);
        }
        packer.await.unwrap()?;
        let (tell, chunks) = mpsc::channel(4);
        let (dir, meter) = (to.to_owned(), received.clone());
        let unpacker = tokio::task::spawn_blocking(move || unpack(&dir, packing, chunks, meter));
        for part in change(stream).chunks(1000) {
            if tell.send(Bytes::copy_from_slice(part)).await.is_err() {
                break;
            }
        }
        drop(tell);
        unpacker.await.unwrap()?;
        Ok((sent.load(Ordering::Relaxed), received.load(Ordering::Relaxed)))
    }

    fn tree(root: &Path) {
        fs::create_dir_all(root.join("pg_wal/archive_status")).unwrap();
        fs::create_dir(root.join("pg_twophase")).unwrap();
        fs::write(root.join("PG_VERSION"), "15\n").unwrap();
        fs::write(root.join("empty"), "").unwrap();
        let content: Vec<u8> = (0..3_000_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        fs::write(root.join("pg_wal/000000010000000000000001"), content).unwrap();
        fs::write(root.join("x".repeat(180)), "a long name").unwrap();
        fs::set_permissions(root.join("PG_VERSION"), fs::Permissions::from_mode(0o640)).unwrap();
    }

    #[tokio::test]
    async fn a_tree_arrives_as_it_was() {
        for packing in [Packing::Zstd, Packing::Plain] {
            let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            tree(from.path());
            let (sent, received) = through(from.path(), to.path(), packing, |s| s).await.unwrap();
            assert!(sent >= 12_000_000 && received >= 12_000_000, "{sent} {received}");
            assert_eq!(size(from.path()), size(to.path()));
            for name in [
                "PG_VERSION",
                "empty",
                "pg_wal/000000010000000000000001",
                &"x".repeat(180),
            ] {
                let (a, b) = (from.path().join(name), to.path().join(name));
                assert!(fs::read(&a).unwrap() == fs::read(&b).unwrap(), "{name}");
                let (a, b) = (fs::metadata(a).unwrap(), fs::metadata(b).unwrap());
                assert_eq!((a.mode(), a.uid(), a.mtime()), (b.mode(), b.uid(), b.mtime()));
            }
            assert!(to.path().join("pg_twophase").is_dir());
            assert!(to.path().join("pg_wal/archive_status").is_dir());
        }
    }

    #[tokio::test]
    async fn what_was_cut_off_or_changed_is_noticed() {
        let from = tempfile::tempdir().unwrap();
        tree(from.path());
        for (name, packing, change) in [
            (
                "cut",
                Packing::Zstd,
                (|s| s[..s.len() / 2].to_vec()) as fn(Vec<u8>) -> Vec<u8>,
            ),
            ("cut", Packing::Plain, |s| s[..s.len() / 2].to_vec()),
            ("one byte", Packing::Zstd, |mut s| {
                let middle = s.len() / 2;
                s[middle] ^= 1;
                s
            }),
            ("nothing", Packing::Zstd, |_| Vec::new()),
        ] {
            let to = tempfile::tempdir().unwrap();
            let done = through(from.path(), to.path(), packing, change).await;
            assert!(done.is_err(), "{name} {packing:?}");
        }
    }

    #[tokio::test]
    async fn names_that_lead_out_are_refused() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        header.set_mode(0o644);
        let name = b"../out";
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name);
        header.set_cksum();
        let mut builder = tar::Builder::new(Vec::new());
        builder.append(&header, &b"x"[..]).unwrap();
        let stream = builder.into_inner().unwrap();
        let (tell, chunks) = mpsc::channel(1);
        tell.send(stream.into()).await.unwrap();
        drop(tell);
        let to = inner.clone();
        let _ = tokio::task::spawn_blocking(move || unpack(&to, Packing::Plain, chunks, Meter::default()))
            .await
            .unwrap();
        assert!(!outer.path().join("out").exists());
    }
}
