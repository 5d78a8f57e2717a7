//! The namespace that `attach` is given: opened, checked, entered, its end noticed.
//!
//! # Theory of operation
//!
//! A target is a process or a path. Both are opened first and looked at through the descriptors afterwards, so that
//! what was checked is what is entered. The user namespace is the one that owns the network namespace, whichever the
//! process itself is in (bubblewrap's is in one below), unless another is given by path; the caller's own needs no
//! entering.
//!
//! A namespace ends with its last process or mount, but whoever holds a descriptor of it, or of a device in it, keeps
//! it, and a gateway holds one. So the end is defined otherwise: for a process when the process ends; for a path when
//! there is something else, or nothing, at that path. One in /proc makes no events, but it belongs to a process, whose
//! end is the path's; besides it is looked at every [`LOOK_IN_PROC`]. Elsewhere the directory is watched (inotify(7)),
//! and because taking off a mount in another mount namespace makes no event there, the path is also looked at every
//! [`LOOK`]. A path that cannot be looked at any more is still there for all we know.
//!
//! Of a TAP's descriptor no namespace is known: [`Life::Unknown`] does not end.
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

use crate::plan::{Target, Userns};
use crate::sys::ns::{self, NsKind};
use crate::sys::spawn;

/// How often a path is looked at besides its events.
pub const LOOK: Duration = Duration::from_secs(2);

/// How often a path in /proc is.
pub const LOOK_IN_PROC: Duration = Duration::from_secs(1);

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
    /// A TAP's descriptor.
    #[error("a TAP's descriptor does not tell which namespace it is in: give the namespace's PID or path")]
    NoNamespace,
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
        /// What makes it worth a look.
        signs: Signs,
    },
    /// Nothing does.
    Unknown,
}

/// What says that there may be something else at a path.
#[derive(Debug)]
pub enum Signs {
    /// The process that the path belongs to, readable when it has ended.
    Process(OwnedFd),
    /// Events of the path's directory, where it can be watched.
    Directory(Option<Inotify>),
}

/// A target, open.
#[derive(Debug)]
pub struct Opened {
    /// The network namespace.
    netns: OwnedFd,
    /// The user namespace to enter first, unless it is the caller's own.
    userns: Option<OwnedFd>,
    /// That it does not admit the caller is no error.
    may_stay: bool,
}

/// Open a target and check that it is what it should be.
pub fn open(target: &Target) -> Result<(Opened, Life), TargetError> {
    let (netns, userns, life) = match target {
        Target::Pid(pid) => open_process(*pid)?,
        Target::Path { netns, userns } => open_path(netns, userns)?,
        Target::Tap(_) => return Err(TargetError::NoNamespace),
    };
    if is_own(&netns, "net")? {
        return Err(TargetError::Own);
    }
    let userns = match userns {
        Some(userns) if !is_own(&userns, "user")? => Some(userns),
        _ => None,
    };
    let may_stay = matches!(target, Target::Path { userns: Userns::GivenOrStay(_), .. });
    Ok((Opened { netns, userns, may_stay }, life))
}

fn open_process(pid: i32) -> Result<(OwnedFd, Option<OwnedFd>, Life), TargetError> {
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
    let netns = file("net")?;
    // The process's own may be one below, which has no say over the network namespace.
    let userns = ns::owner(netns.as_fd()).or_else(|_| file("user"))?;
    // Still the same process: its number was not given to another meanwhile.
    crate::sys::proc::pidfd_send_signal(pidfd.as_fd(), None).or_else(|error| match error.raw_os_error() {
        Some(libc::EPERM) => Ok(()),
        _ => Err(TargetError::NoProcess(pid)),
    })?;
    Ok((netns, Some(userns), Life::Process(pidfd)))
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

fn open_path(path: &Path, userns: &Userns) -> Result<(OwnedFd, Option<OwnedFd>, Life), TargetError> {
    let netns = open_kind(path, NsKind::Net, "network", "/run/netns/NAME or /proc/PID/ns/net")?;
    let userns = match userns {
        Userns::Given(path) | Userns::GivenOrStay(path) => {
            Some(open_kind(path, NsKind::User, "user", "/proc/PID/ns/user")?)
        }
        Userns::Owner => Some(ns::owner(netns.as_fd()).map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM) => TargetError::NotAdmitted(error),
            _ => TargetError::Io("find the user namespace that owns this network namespace", error),
        })?),
        Userns::Stay => None,
    };
    let signs = match process_of(path) {
        Some(pid) => Signs::Process(spawn::pidfd_open(pid.unsigned_abs()).map_err(|_| TargetError::NoProcess(pid))?),
        None => Signs::Directory(watch_directory(path)),
    };
    let life = Life::Path { path: path.to_owned(), id: identity(&netns)?, signs };
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
            setns(userns, CloneFlags::CLONE_NEWUSER)
                .or_else(|e| if self.may_stay { Ok(()) } else { Err(failed(e)) })?;
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
            Life::Process(pidfd) | Life::Path { signs: Signs::Process(pidfd), .. } => Some(pidfd.as_fd()),
            Life::Path { signs: Signs::Directory(events), .. } => events.as_ref().map(AsFd::as_fd),
            Life::Unknown => None,
        }
    }

    /// How long to wait at most before asking [`has_ended`](Self::has_ended).
    pub fn interval(&self) -> Option<Duration> {
        match self {
            Life::Path { signs: Signs::Process(_), .. } => Some(LOOK_IN_PROC),
            Life::Path { signs: Signs::Directory(_), .. } => Some(LOOK),
            Life::Process(_) | Life::Unknown => None,
        }
    }

    /// Has it ended? Asked without an event.
    pub fn is_over(&self) -> bool {
        let readable = match self {
            Life::Process(pidfd) | Life::Path { signs: Signs::Process(pidfd), .. } => {
                let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
                !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0))
            }
            Life::Path { .. } | Life::Unknown => false,
        };
        self.has_ended(readable)
    }

    /// Has it ended? `readable` says whether the descriptor was.
    pub fn has_ended(&self, readable: bool) -> bool {
        match self {
            Life::Process(_) => readable,
            Life::Path { path, id, signs: Signs::Process(_) } => readable || !is_at(path, *id),
            Life::Path { path, id, signs: Signs::Directory(events) } => {
                // Only that there were events matters, not which.
                while events.as_ref().is_some_and(|e| e.read_events().is_ok_and(|e| !e.is_empty())) {}
                !is_at(path, *id)
            }
            Life::Unknown => false,
        }
    }
}

/// Is it still at this path, for all we can see?
fn is_at(path: &Path, id: (u64, u64)) -> bool {
    match fs::metadata(path) {
        Ok(meta) => (meta.dev(), meta.ino()) == id,
        Err(error) => !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ESRCH)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_namespace_is_refused_with_its_path() {
        let by_path = |path: &str| open(&Target::Path { netns: path.into(), userns: Userns::Owner }).unwrap_err();
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
        let life = Life::Path { path: path.clone(), id, signs: Signs::Directory(watch_directory(&path)) };
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
    /// A child that sleeps; ended and waited for when dropped.
    struct Sleeper(std::process::Child);

    impl Sleeper {
        fn new(unshare: &[&str]) -> Sleeper {
            let mut command = std::process::Command::new("unshare");
            command.args(unshare).args(["sleep", "60"]).stdin(std::process::Stdio::null());
            Sleeper(command.spawn().unwrap())
        }

        fn ns(&self, name: &str) -> PathBuf {
            format!("/proc/{}/ns/{name}", self.0.id()).into()
        }

        /// Until it has namespaces of its own.
        fn wait(&self, name: &str) {
            let own = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
            while fs::read_link(self.ns(name)).unwrap() == own
                || !fs::read_to_string(format!("/proc/{}/comm", self.0.id())).unwrap().starts_with("sleep")
            {
                std::thread::yield_now();
            }
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn enter(target: &Target) {
        let (opened, _) = open(target).unwrap();
        crate::sys::testing::in_child(|| opened.enter().map_err(text));
    }

    #[test]
    fn the_namespace_of_a_process_in_a_user_namespace_below_is_entered_by_its_owner() {
        let sleeper = Sleeper::new(&["-Urn", "unshare", "-U"]);
        sleeper.wait("net");
        enter(&Target::Pid(sleeper.0.id() as i32));
        enter(&Target::Path { netns: sleeper.ns("net"), userns: Userns::Owner });
    }

    #[test]
    fn a_user_namespace_that_does_not_admit_its_own_member_is_not_needed_where_it_may_stay() {
        let sleeper = Sleeper::new(&["-Ur", "unshare", "-n"]);
        sleeper.wait("net");
        let (netns, userns) = (sleeper.ns("net"), sleeper.ns("user"));
        crate::sys::testing::in_child(move || {
            let above = File::open("/proc/self/ns/user").map_err(text)?;
            // Inside: the same target is entered without the user namespace, which a member cannot enter again.
            let (outside, _) = open(&Target::Path { netns: netns.clone(), userns: Userns::Owner }).map_err(text)?;
            setns(outside.userns.as_ref().ok_or("it is our own")?, CloneFlags::CLONE_NEWUSER).map_err(text)?;
            let inside = |userns| open(&Target::Path { netns: netns.clone(), userns }).map_err(text);
            for choice in [Userns::Owner, Userns::Stay, Userns::GivenOrStay(userns.clone()), Userns::Given(userns)] {
                let (opened, _) = inside(choice)?;
                if opened.has_userns() {
                    return Err("its own is to be entered".to_owned());
                }
            }
            let admits_nobody = Opened { netns: outside.netns, userns: Some(above.into()), may_stay: true };
            admits_nobody.enter().map_err(text)
        });
    }

    fn text(error: impl std::fmt::Display) -> String {
        error.to_string()
    }

    #[test]
    fn a_path_in_proc_ends_with_its_process_and_is_looked_at_each_second() {
        let sleeper = Sleeper::new(&["-Urn"]);
        sleeper.wait("net");
        let (_, life) = open(&Target::Path { netns: sleeper.ns("net"), userns: Userns::Owner }).unwrap();
        assert_eq!(life.interval(), Some(Duration::from_secs(1)));
        assert!(!life.is_over() && !life.has_ended(false));
        drop(sleeper);
        assert!(life.has_ended(false) && life.is_over());
    }
}
