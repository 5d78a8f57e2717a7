//! A log file that does not grow: when it is full its older half goes.
//!
//! # Theory of operation
//!
//! Supervisor and gateway append to the same open file, each through a duplicate of its descriptor (a gateway has it as
//! its standard error, and is told how large it may be). An append is one write, so that lines do not mix. Whoever finds
//! that its line would not fit makes room first: it keeps the newer half from the beginning of a line on. Both take the
//! file's record lock (fcntl(2), of the process) for that, so that no line is lost between.
//!
//! A forked process that has closed its descriptors may have given the number to something else: what is there is looked
//! at before each write, and a line that has nowhere to go is nobody's.
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::{FcntlArg, fcntl};

use crate::plan::date;

/// A log file, open.
#[derive(Debug)]
pub struct LogFile {
    file: File,
    /// Device and inode.
    identity: (u64, u64),
    /// Largest size in bytes.
    limit: u64,
}

impl LogFile {
    /// Create one, or empty the one that is there. It is for its owner alone.
    pub fn create(path: &Path, limit: u64) -> io::Result<LogFile> {
        let file = File::options().create(true).read(true).append(true).mode(0o600).open(path)?;
        file.set_len(0)?;
        LogFile::of(file, limit)
    }

    /// The one that standard error is.
    pub fn of_stderr(limit: u64) -> io::Result<LogFile> {
        LogFile::of(File::from(io::stderr().as_fd().try_clone_to_owned()?), limit)
    }

    fn of(file: File, limit: u64) -> io::Result<LogFile> {
        let identity = identity(&file)?;
        Ok(LogFile { file, identity, limit })
    }

    /// Another descriptor of it.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    /// Its limit in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    fn append(&self, line: &[u8]) -> io::Result<()> {
        if identity(&self.file)? != self.identity {
            return Ok(());
        }
        if self.file.metadata()?.size() + line.len() as u64 > self.limit {
            self.lock(libc::F_WRLCK)?;
            let room = self.make_room(line.len() as u64);
            self.lock(libc::F_UNLCK)?;
            room?;
        }
        (&self.file).write_all(line)
    }

    /// Unless another process has just done so.
    fn make_room(&self, wanted: u64) -> io::Result<()> {
        let size = self.file.metadata()?.size();
        if size + wanted <= self.limit {
            return Ok(());
        }
        let kept = (self.limit / 2).min(self.limit.saturating_sub(wanted));
        let mut newer = vec![0; usize::try_from(kept.min(size)).unwrap_or(0)];
        let from = size - newer.len() as u64;
        self.file.read_exact_at(&mut newer, from)?;
        let begin = newer.iter().position(|byte| *byte == b'\n').map_or(newer.len(), |end| end + 1);
        self.file.set_len(0)?;
        (&self.file).write_all(&newer[begin..])
    }

    fn lock(&self, kind: libc::c_int) -> io::Result<()> {
        let whole = libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        loop {
            match fcntl(&self.file, FcntlArg::F_SETLKW(&whole)) {
                Err(nix::Error::EINTR) => {}
                other => return Ok(other.map(drop)?),
            }
        }
    }
}

fn identity(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|meta| (meta.dev(), meta.ino()))
}

/// What a logger writes to: each call is one event, which gets the time in front of it.
#[derive(Debug)]
pub struct LogWriter {
    /// The file.
    pub file: LogFile,
    /// Say it on standard error as well.
    pub to_stderr: bool,
}

impl Write for LogWriter {
    #[expect(clippy::disallowed_methods, reason = "log files have the time of day")]
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let line = [date::rfc3339(now).as_bytes(), b" ", event].concat();
        self.file.append(&line)?;
        if self.to_stderr {
            io::stderr().write_all(event)?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("tapline-log-{}-{name}", std::process::id()))
    }

    #[test]
    fn the_newest_lines_stay_and_the_file_keeps_its_size() {
        let path = path("newest");
        std::fs::write(&path, "of another day\n").unwrap();
        let log = LogFile::create(&path, 1000).unwrap();
        for number in 0..500 {
            log.append(format!("line {number}\n").as_bytes()).unwrap();
            assert!(std::fs::metadata(&path).unwrap().len() <= 1000);
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.last(), Some(&"line 499"));
        // Whole lines, one after the other.
        let first: u32 = lines[0].strip_prefix("line ").unwrap().parse().unwrap();
        assert_eq!(lines.len() as u32, 500 - first);
        // Two that write to it make room for each other.
        let other = LogFile::of(File::from(log.duplicate().unwrap()), 1000).unwrap();
        for number in 0..200 {
            (if number % 2 == 0 { &log } else { &other }).append(format!("again {number}\n").as_bytes()).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.ends_with("again 198\nagain 199\n") && text.len() <= 1000, "{text}");
        // A line that is larger than the file stands alone.
        log.append(&[b'x'; 2000]).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 2000);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn each_event_has_its_time_in_front() {
        let path = path("time");
        let mut writer = LogWriter { file: LogFile::create(&path, 1 << 20).unwrap(), to_stderr: false };
        writer.write_all(b"tapline: warning: something\n").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let (time, rest) = text.split_once(' ').unwrap();
        assert!(time.starts_with("20") && time.ends_with('Z'), "{time}");
        assert_eq!(rest, "tapline: warning: something\n");
        std::fs::remove_file(&path).unwrap();
    }
}
