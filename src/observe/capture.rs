//! Every frame of a sandbox written to a file, as tcpdump(8) and Wireshark read it (`--pcap`).
//!
//! # Theory of operation
//!
//! The format is pcap, the classic one: a header of 24 bytes, then for each frame 16 bytes and the frame, everything in
//! the machine's own byte order (draft-ietf-opsawg-pcap). Frames begin with their Ethernet header (LINKTYPE_ETHERNET) and
//! stand there as they travel over the sandbox's link: a super-segment is one frame of up to 64 KiB, and a checksum that
//! was left to the receiver's kernel is not there yet. Those from the sandbox and those for it are in the order in which
//! the gateway dealt with them; the Ethernet addresses tell which is which. What goes past the link (published ports for
//! local clients, `--reach`) was never a frame.
//!
//! **Who does what.** The supervisor opens the file and writes the header ([`create`]): it is the one who may open files.
//! It keeps the descriptor and hands a duplicate to the gateway with the link, so that the first frame is in it. A
//! gateway that takes a dead one's place gets the same and writes on behind what is there. Nothing but the end of a file
//! is ever written (O_APPEND), so that whoever empties it meanwhile gets an emptied file and not one with a hole.
//!
//! **In the gateway** a frame costs one branch where nothing is captured. Otherwise it is copied to a buffer of
//! [`CAPACITY`], which is written when it is full, when there is nothing else to do, and at the end: whoever reads the file
//! while the sandbox is quiet sees everything. Only a gateway that is killed takes what was in its buffer with it.
//!
//! **A file that cannot be written to** (a full disk, a limit) ends the capture and not the network: what was written of
//! the last buffer is cut off again, so that the file stays readable, and there is one line for the person.
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::statfs::{FsType, fstatfs};

/// Bytes that wait to be written at most.
pub const CAPACITY: usize = 256 * 1024;

/// Microseconds (a1b2c3d4), version 2.4.
const MAGIC: u32 = 0xa1b2_c3d4;
const VERSION: [u16; 2] = [2, 4];
/// Longer than any frame; what tcpdump itself says.
const SNAP_LENGTH: u32 = 262_144;
/// LINKTYPE_ETHERNET.
const ETHERNET: u32 = 1;
/// In front of each frame.
const RECORD_HEADER: usize = 16;

/// Why nothing can be captured there.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file cannot be opened or written to.
    #[error("cannot capture to {0}: {1}")]
    File(String, #[source] io::Error),
    /// A pipe could hold up the network, a device is no place for it.
    #[error(
        "cannot capture to {0}: it is no ordinary file; give one, which can be read while it grows (tail -f -c +1)"
    )]
    NotAFile(String),
}

/// Open a file for a capture, empty, for its owner alone if it is new, with the header in it.
pub fn create(path: &Path) -> Result<File, CaptureError> {
    let name = || path.display().to_string();
    let failed = |error| CaptureError::File(name(), error);
    // O_NONBLOCK: opening a pipe that somebody left there must not wait. Emptied only once it is known to be a file.
    let mut file = File::options()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(failed)?;
    // What is written to a file of the kernel's own, it may take for an order.
    let orders = [libc::PROC_SUPER_MAGIC, libc::SYSFS_MAGIC, libc::CGROUP2_SUPER_MAGIC].map(|magic| FsType(magic as _));
    let is_order = orders.contains(&fstatfs(&file).map_err(|e| failed(e.into()))?.filesystem_type());
    if is_order || !file.metadata().map_err(failed)?.is_file() {
        return Err(CaptureError::NotAFile(name()));
    }
    file.set_len(0).map_err(failed)?;
    file.write_all(&header()).map_err(failed)?;
    Ok(file)
}

fn header() -> Vec<u8> {
    let [major, minor] = VERSION.map(u16::to_ne_bytes);
    // Time zone and accuracy are always zero.
    let rest = [0, 0, SNAP_LENGTH, ETHERNET].map(u32::to_ne_bytes);
    [&MAGIC.to_ne_bytes()[..], &major, &minor, rest.as_flattened()].concat()
}

/// Writes frames behind the header that [`create`] has written, perhaps in another process.
#[derive(Debug)]
pub struct Capture {
    file: File,
    /// Whole records.
    buffer: Vec<u8>,
    /// Why no more is written.
    failure: Option<io::Error>,
}

impl Capture {
    /// Begin, or go on.
    pub fn new(file: File) -> Capture {
        Capture { file, buffer: Vec::with_capacity(CAPACITY), failure: None }
    }

    /// A frame that has come, or is being sent.
    #[expect(clippy::disallowed_methods, reason = "captures have the time of day")]
    pub fn record(&mut self, frame: &[u8]) {
        self.record_at(SystemTime::now(), frame);
    }

    fn record_at(&mut self, now: SystemTime, frame: &[u8]) {
        if self.failure.is_some() {
            return;
        }
        if self.buffer.len() + RECORD_HEADER + frame.len() > CAPACITY {
            self.write();
        }
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        // Unsigned: until 2106.
        let length = frame.len() as u32;
        let header = [now.as_secs() as u32, now.subsec_micros(), length.min(SNAP_LENGTH), length].map(u32::to_ne_bytes);
        self.buffer.extend_from_slice(header.as_flattened());
        self.buffer.extend_from_slice(&frame[..frame.len().min(SNAP_LENGTH as usize)]);
    }

    /// Write what waits.
    ///
    /// # Errors
    /// Once, when the capture has ended because the file cannot be written to.
    pub fn flush(&mut self) -> io::Result<()> {
        self.write();
        match self.failure.take() {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    fn write(&mut self) {
        if self.buffer.is_empty() || self.failure.is_some() {
            return;
        }
        let before = self.file.metadata().map(|meta| meta.len());
        if let Err(error) = self.file.write_all(&self.buffer) {
            // Half a record would make all that follows unreadable.
            let _ = before.and_then(|before| self.file.set_len(before));
            self.failure = Some(error);
        }
        self.buffer.clear();
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.write();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::process::Command;
    use std::time::Duration;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("tapline-capture-{}-{name}", std::process::id()))
    }

    fn udp(payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64)
            .udp(4000, 9)
            .write(&mut frame, payload)
            .unwrap();
        frame
    }

    /// Time in microseconds and frame of each record, by what the format says.
    fn records(bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(16), word(20)), (MAGIC, SNAP_LENGTH, ETHERNET));
        assert_eq!(bytes[4..8], [VERSION[0].to_ne_bytes(), VERSION[1].to_ne_bytes()].concat());
        let (mut at, mut found) = (24, Vec::new());
        while at < bytes.len() {
            let length = word(at + 8) as usize;
            assert_eq!(word(at + 12) as usize, length);
            found
                .push((u64::from(word(at)) * 1_000_000 + u64::from(word(at + 4)), bytes[at + 16..][..length].to_vec()));
            at += 16 + length;
        }
        found
    }

    #[test]
    fn what_is_recorded_is_read_back_and_another_gateway_goes_on_behind_it() {
        let path = path("whole");
        std::fs::write(&path, "something old").unwrap();
        let file = create(&path).unwrap();
        let at = |micros| UNIX_EPOCH + Duration::from_micros(micros);
        let large = vec![7; 65_557];
        let mut capture = Capture::new(file.try_clone().unwrap());
        // More than fits the buffer.
        for number in 0..10 {
            capture.record_at(at(1_700_000_000_000_000 + number), &large);
        }
        capture.record_at(at(1_700_000_001_999_999), &udp(b"small"));
        assert!(records(&std::fs::read(&path).unwrap()).len() < 10, "the rest waits");
        capture.flush().unwrap();
        assert_eq!(records(&std::fs::read(&path).unwrap()).len(), 11);
        drop(capture);
        let mut next = Capture::new(file);
        next.record_at(at(1_700_000_002_000_000), &udp(b"later"));
        drop(next);
        let found = records(&std::fs::read(&path).unwrap());
        let times: Vec<u64> = found.iter().map(|(time, _)| *time).collect();
        assert_eq!(times[..2], [1_700_000_000_000_000, 1_700_000_000_000_001]);
        assert_eq!(times[10..], [1_700_000_001_999_999, 1_700_000_002_000_000]);
        assert!(found[..10].iter().all(|(_, frame)| *frame == large));
        assert_eq!(found[11].1, udp(b"later"));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_new_file_is_its_owners_alone() {
        let path = path("mode");
        create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_is_no_file_is_refused_and_not_waited_for() {
        assert!(matches!(create(Path::new("/dev/null")), Err(CaptureError::NotAFile(_))));
        assert!(matches!(create(Path::new("/proc/self/comm")), Err(CaptureError::NotAFile(_))));
        let error = create(Path::new("/nonexistent/file")).unwrap_err().to_string();
        assert_eq!(error, "cannot capture to /nonexistent/file: No such file or directory (os error 2)");
        let pipe = path("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR).unwrap();
        // Nobody reads it (ENXIO), or somebody does.
        assert!(matches!(create(&pipe), Err(CaptureError::File(..))));
        let _reader = nix::fcntl::open(
            &pipe,
            nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_NONBLOCK,
            nix::sys::stat::Mode::empty(),
        );
        assert!(matches!(create(&pipe), Err(CaptureError::NotAFile(_))));
        std::fs::remove_file(&pipe).unwrap();
    }

    #[test]
    fn a_file_that_takes_no_more_ends_the_capture_once_and_stays_readable() {
        let path = path("limit");
        let file = path.clone();
        crate::sys::testing::in_child(move || {
            let text = |e: &dyn std::fmt::Display| e.to_string();
            let mut capture = Capture::new(create(&file).map_err(|e| text(&e))?);
            capture.record(&udp(b"fits"));
            capture.flush().map_err(|e| text(&e))?;
            crate::sys::testing::limit_files(1000).map_err(|e| text(&e))?;
            (0..100).for_each(|_| capture.record(&udp(&[1; 100])));
            match capture.flush() {
                Err(error) if error.raw_os_error() == Some(libc::EFBIG) => {}
                other => return Err(format!("{other:?}")),
            }
            capture.flush().map_err(|e| text(&e))
        });
        let found = records(&std::fs::read(&path).unwrap());
        assert_eq!(found.iter().map(|(_, frame)| frame).collect::<Vec<_>>(), [&udp(b"fits")]);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn tcpdump_reads_it() {
        let path = path("tcpdump");
        let mut capture = Capture::new(create(&path).unwrap());
        capture.record_at(UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456), &udp(b"hello"));
        drop(capture);
        // Where the program is installed; the format is looked at above.
        if let Ok(said) = Command::new("tcpdump").args(["-n", "-tt", "-r"]).arg(&path).output() {
            let said = String::from_utf8_lossy(&said.stdout).into_owned();
            assert_eq!(said.trim(), "1700000000.123456 IP 192.0.2.1.4000 > 192.0.2.2.9: UDP, length 5");
        }
        std::fs::remove_file(&path).unwrap();
    }
}
