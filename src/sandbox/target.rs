//! The namespace that `attach` is given: opened, checked, entered, its end noticed.
//!
//! # Theory of operation
//!
//! A target is a process or a path. Both are opened first and looked at through the descriptors afterwards, so that
//! what was checked is what is entered. The user namespace is the process's, the one given by path, or the one that
//! owns the network namespace; the caller's own needs no entering.
//!
//! A namespace ends with its last process or mount, but whoever holds a descriptor of it, or of a device in it, keeps
//! it, and a gateway holds one. So the end is defined otherwise: for a process (a path in /proc is one) when the
//! process ends; for another path when there is something else, or nothing, at that path. The directory is watched
//! (inotify(7)), and because taking off a mount in another mount namespace makes no event there, the path is also
//! looked at every [`LOOK`].
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::unistd::Uid;

use crate::plan::Target;
use crate::sys::ns::{self, NsKind};
use crate::sys::spawn;

/// How often a path is looked at besides its events.
pub const LOOK: Duration = Duration::from_secs(2);

/// Why a target cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// No such process.
    #[error("there is no process {0}: give the PID of a process that runs in the namespace")]
    NoProcess(i32),
    /// Another user's.
    #[error("process {pid} belongs to {owner}, not to you: run tapline as that user, or as root")]
    OtherUser {
        /// The process.
        pid: i32,
        /// `root` or `uid N`.
        owner: String,
    },
    /// Ours, but closed to us.
    #[error(
        "process {0} does not let its namespaces be looked at (it is not dumpable, or has more rights than you): give \
         another process of the same namespace, or run tapline as root"
    )]
    Protected(i32),
    /// The path cannot be opened.
    #[error("cannot open {}: {error}; give the path of a namespace, such as /run/netns/NAME or /proc/PID/ns/net", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Not a namespace, or one of another kind.
    #[error("{} is no {wanted} namespace: give a path such as {example}", path.display())]
    WrongKind {
        /// The path.
        path: PathBuf,
        /// `network` or `user`.
        wanted: &'static str,
        /// What one looks like.
        example: &'static str,
    },
    /// The namespace is the caller's own.
    #[error(
        "that is the network namespace tapline itself runs in, whose network it would use: give another namespace's \
         PID or path"
    )]
    Own,
    /// The user namespace does not admit the caller.
    #[error(
        "the user namespace that owns this network namespace does not admit you ({0}): run tapline as the user who made \
         it, or inside it, or as root"
    )]
    NotAdmitted(io::Error),
    /// Something else.
    #[error("cannot {0}: {1}")]
    Io(&'static str, io::Error),
}

/// What tells that a target has ended.
#[derive(Debug)]
pub enum Life {
    /// Readable when the process has ended.
    Process(OwnedFd),
    /// What was at a path.
    Path {
        /// The path.
        path: PathBuf,
        /// Device and inode of the namespace.
        id: (u64, u64),
        /// Events of its directory, where it can be watched.
        events: Option<Inotify>,
    },
}

/// A target, open.
#[derive(Debug)]
pub struct Opened {
    /// The network namespace.
    netns: OwnedFd,
    /// The user namespace to enter first, unless it is the caller's own.
    userns: Option<OwnedFd>,
}

/// Open a target and check that it is what it should be.
pub fn open(target: &Target) -> Result<(Opened, Life), TargetError> {
    let (netns, userns, life) = match target {
        Target::Pid(pid) => open_process(*pid)?,
        Target::Path { netns, userns } => open_path(netns, userns.as_deref())?,
    };
    if is_own(&netns, "net")? {
        return Err(TargetError::Own);
    }
    let userns = if is_own(&userns, "user")? { None } else { Some(userns) };
    Ok((Opened { netns, userns }, life))
}

fn open_process(pid: i32) -> Result<(OwnedFd, OwnedFd, Life), TargetError> {
    if pid <= 0 {
        return Err(TargetError::NoProcess(pid));
    }
    let pidfd = spawn::pidfd_open(pid.unsigned_abs()).map_err(|_| TargetError::NoProcess(pid))?;
    let file = |name: &str| {
        let path = format!("/proc/{pid}/ns/{name}");
        File::open(&path).map(OwnedFd::from).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => closed(pid),
            io::ErrorKind::NotFound => TargetError::NoProcess(pid),
            _ => TargetError::Open { path: path.into(), error },
        })
    };
    let (netns, userns) = (file("net")?, file("user")?);
    // Still the same process: its number was not given to another meanwhile.
    crate::sys::proc::pidfd_send_signal(pidfd.as_fd(), None).or_else(|error| match error.raw_os_error() {
        Some(libc::EPERM) => Ok(()),
        _ => Err(TargetError::NoProcess(pid)),
    })?;
    Ok((netns, userns, Life::Process(pidfd)))
}

/// Why a process's namespaces cannot be opened.
fn closed(pid: i32) -> TargetError {
    // The owner of /proc/PID is root for one that is not dumpable; its status tells the truth.
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let uid = status
        .lines()
        .find_map(|l| l.strip_prefix("Uid:"))
        .and_then(|l| l.split_whitespace().next())
        .and_then(|uid| uid.parse::<u32>().ok());
    match uid {
        Some(uid) if uid == Uid::effective().as_raw() => TargetError::Protected(pid),
        Some(0) => TargetError::OtherUser { pid, owner: "root".into() },
        Some(uid) => TargetError::OtherUser { pid, owner: format!("uid {uid}") },
        None => TargetError::NoProcess(pid),
    }
}

fn open_path(path: &Path, userns: Option<&Path>) -> Result<(OwnedFd, OwnedFd, Life), TargetError> {
    let netns = open_kind(path, NsKind::Net, "network", "/run/netns/NAME or /proc/PID/ns/net")?;
    let userns = match userns {
        Some(path) => open_kind(path, NsKind::User, "user", "/proc/PID/ns/user")?,
        None => ns::owner(netns.as_fd()).map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM) => TargetError::NotAdmitted(error),
            _ => TargetError::Io("find the user namespace that owns this network namespace", error),
        })?,
    };
    let life = match process_of(path) {
        Some(pid) => Life::Process(spawn::pidfd_open(pid.unsigned_abs()).map_err(|_| TargetError::NoProcess(pid))?),
        None => {
            let id = identity(&netns)?;
            Life::Path { path: path.to_owned(), id, events: watch_directory(path) }
        }
    };
    Ok((netns, userns, life))
}

fn open_kind(path: &Path, kind: NsKind, wanted: &'static str, example: &'static str) -> Result<OwnedFd, TargetError> {
    let opened = |error| TargetError::Open { path: path.to_owned(), error };
    // Opening a pipe that somebody left there must not wait.
    use std::os::unix::fs::OpenOptionsExt;
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).map_err(opened)?;
    match ns::kind(file.as_fd()).map_err(opened)? {
        Some(found) if found == kind => Ok(file.into()),
        _ => Err(TargetError::WrongKind { path: path.to_owned(), wanted, example }),
    }
}

/// The process that a path in /proc belongs to.
pub fn process_of(path: &Path) -> Option<i32> {
    let mut parts = path.strip_prefix("/proc").ok()?.iter();
    let first = parts.next()?.to_str()?;
    if first == "self" || first == "thread-self" { Some(nix::unistd::getpid().as_raw()) } else { first.parse().ok() }
}

fn watch_directory(path: &Path) -> Option<Inotify> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok()?;
    let flags = AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    inotify.add_watch(dir, flags).ok()?;
    Some(inotify)
}

/// Device and inode.
fn identity(fd: &OwnedFd) -> Result<(u64, u64), TargetError> {
    let stat = nix::sys::stat::fstat(fd).map_err(|e| TargetError::Io("look at the namespace", e.into()))?;
    Ok((stat.st_dev, stat.st_ino))
}

fn is_own(fd: &OwnedFd, name: &str) -> Result<bool, TargetError> {
    let own = fs::metadata(Path::new("/proc/self/ns").join(name))
        .map_err(|error| TargetError::Io("look at /proc/self/ns", error))?;
    Ok(identity(fd)? == (own.dev(), own.ino()))
}

impl Opened {
    /// Enter, in a process with one thread.
    pub fn enter(&self) -> Result<(), TargetError> {
        let failed = |errno: nix::errno::Errno| TargetError::NotAdmitted(errno.into());
        if let Some(userns) = &self.userns {
            setns(userns, CloneFlags::CLONE_NEWUSER).map_err(failed)?;
        }
        setns(&self.netns, CloneFlags::CLONE_NEWNET).map_err(failed)
    }

    /// Is there a user namespace to enter, or does the network namespace belong to the caller's own?
    pub fn has_userns(&self) -> bool {
        self.userns.is_some()
    }

    /// Its descriptors, which a forked child keeps.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.netns.as_fd()).chain(self.userns.iter().map(AsFd::as_fd))
    }
}

impl Life {
    /// What to poll for being readable.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Life::Process(pidfd) => Some(pidfd.as_fd()),
            Life::Path { events, .. } => events.as_ref().map(AsFd::as_fd),
        }
    }

    /// How long to wait at most before asking [`has_ended`](Self::has_ended).
    pub fn interval(&self) -> Option<Duration> {
        matches!(self, Life::Path { .. }).then_some(LOOK)
    }

    /// Has it ended? Asked without an event.
    pub fn is_over(&self) -> bool {
        let readable = match self {
            Life::Process(pidfd) => {
                let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
                !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0))
            }
            Life::Path { .. } => false,
        };
        self.has_ended(readable)
    }

    /// Has it ended? `readable` says whether the descriptor was.
    pub fn has_ended(&self, readable: bool) -> bool {
        match self {
            Life::Process(_) => readable,
            Life::Path { path, id, events } => {
                // Only that there were events matters, not which.
                while events.as_ref().is_some_and(|e| e.read_events().is_ok_and(|e| !e.is_empty())) {}
                !fs::metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == *id)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_namespace_is_refused_with_its_path() {
        let by_path = |path: &str| open(&Target::Path { netns: path.into(), userns: None }).unwrap_err();
        assert!(matches!(by_path("/dev/null"), TargetError::WrongKind { wanted: "network", .. }));
        assert!(matches!(by_path("/proc/self/ns/uts"), TargetError::WrongKind { .. }));
        assert!(matches!(by_path("/nonexistent/netns"), TargetError::Open { .. }));
        assert!(matches!(by_path("/proc/self/ns/net"), TargetError::Own));
        assert!(matches!(open(&Target::Pid(0)), Err(TargetError::NoProcess(0))));
        // One past the largest PID there can be.
        assert!(matches!(open(&Target::Pid(1 << 22)), Err(TargetError::NoProcess(_))));
    }

    #[test]
    fn a_path_ends_when_something_else_is_there() {
        let path = std::env::temp_dir().join(format!("tapline-target-{}", std::process::id()));
        fs::write(&path, "").unwrap();
        let id = identity(&File::open(&path).unwrap().into()).unwrap();
        let life = Life::Path { path: path.clone(), id, events: watch_directory(&path) };
        assert!(!life.has_ended(true));
        let other = path.with_extension("new");
        fs::write(&other, "").unwrap();
        fs::rename(&other, &path).unwrap();
        assert!(life.has_ended(false));
        fs::remove_file(&path).unwrap();
        assert!(life.has_ended(false));
    }

    #[test]
    fn a_path_in_proc_belongs_to_a_process() {
        assert_eq!(process_of(Path::new("/proc/42/ns/net")), Some(42));
        assert_eq!(process_of(Path::new("/run/netns/a")), None);
    }
}
