use super::*;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, openat};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::kill;
use nix::sys::stat::Mode;
use nix::unistd::Pid;

use crate::sys::testing::in_child;
use crate::sys::{proc, spawn};

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn holds(what: impl Into<String>, is_so: bool) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(what.into()) }
}

/// What was open before, through which the tests look at what is no longer there.
struct Before {
    /// /proc as it was.
    proc: File,
    mounts: File,
    tester: OwnedFd,
    /// Forgotten by somebody.
    leak: i32,
}

/// The stages without those that would keep a test from looking at what the others do. They have tests of their own.
fn looking_on() -> Vec<Stage> {
    STAGES.into_iter().filter(|stage| !matches!(stage, Stage::Files | Stage::Calls)).collect()
}

/// Be a gateway in those stages.
fn confined() -> Result<Before, String> {
    let open = |path| File::open(path).map_err(text);
    let (proc, mounts) = (open("/proc")?, open("/proc/self/ns/mnt")?);
    let tester = spawn::pidfd_open(std::process::id()).map_err(text)?;
    let leak = OwnedFd::from(open("/etc")?);
    fcntl(&leak, FcntlArg::F_SETFD(FdFlag::empty())).map_err(text)?;
    let number = leak.as_raw_fd();
    // It is closed behind its owner's back.
    std::mem::forget(leak);
    let lacks = enter(&looking_on(), Succession::Sibling(&mut || Ok(()))).map_err(text)?;
    holds(format!("{lacks:?}"), lacks.is_empty())?;
    Ok(Before { proc, mounts, tester, leak: number })
}

impl Before {
    fn status(&self) -> Result<String, String> {
        let file = openat(&self.proc, "self/status", OFlag::O_RDONLY, Mode::empty()).map_err(text)?;
        let mut status = String::new();
        File::from(file).read_to_string(&mut status).map_err(text)?;
        Ok(status)
    }

    fn field(&self, name: &str) -> Result<String, String> {
        let status = self.status()?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(|value| value.split_whitespace().collect::<Vec<_>>().join(" ")).ok_or(status)
    }
}

#[test]
fn a_confined_gateway_has_no_capability_and_cannot_gain_any() {
    in_child(|| {
        let before = confined()?;
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            let value = before.field(set)?;
            holds(format!("{set} {value}"), value == "0000000000000000")?;
        }
        holds("no_new_privs", before.field("NoNewPrivs")? == "1")?;
        holds("umask", before.field("Umask")? == "0077")?;
        holds("dumpable", !prctl::get_dumpable().map_err(text)?)?;
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(text)?;
        holds("descriptors", soft == hard)?;
        for none in
            [Resource::RLIMIT_CORE, Resource::RLIMIT_MEMLOCK, Resource::RLIMIT_MSGQUEUE, Resource::RLIMIT_RTPRIO]
        {
            holds(format!("{none:?}"), getrlimit(none).map_err(text)? == (0, 0))?;
        }
        Ok(())
    });
}

#[test]
fn a_confined_gateway_finds_no_file_and_makes_none() {
    in_child(|| {
        confined()?;
        for path in ["/etc/passwd", "/proc/self/status", "/dev/null", "/tmp", "/../etc", "etc"] {
            match File::open(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => return Err(format!("{path}: {other:?}")),
            }
        }
        for made in [File::create("/file").map(drop), fs::create_dir("/dir"), fs::remove_dir("/")] {
            holds(format!("{made:?}"), made.is_err())?;
        }
        holds("the root is empty", fs::read_dir("/").map_err(text)?.count() == 0)?;
        holds("its directory", std::env::current_dir().map_err(text)?.to_str() == Some("/"))?;
        const NONE: Option<&str> = None;
        for (fs, flags) in [
            (Some("tmpfs"), MsFlags::empty()),
            (Some("proc"), MsFlags::empty()),
            (None, MsFlags::MS_REMOUNT | MsFlags::MS_BIND),
        ] {
            let mounted = mount(fs, "/", fs, flags, NONE);
            holds(format!("{fs:?}: {mounted:?}"), mounted == Err(Errno::EPERM))?;
        }
        holds("chroot", nix::unistd::chroot("/") == Err(Errno::EPERM))
    });
}

#[test]
fn a_confined_gateway_enters_no_namespace_and_makes_none() {
    in_child(|| {
        let before = confined()?;
        let user = unshare(CloneFlags::CLONE_NEWUSER);
        holds(format!("user: {user:?}"), matches!(user, Err(Errno::ENOSPC | Errno::EPERM)))?;
        for kind in [CloneFlags::CLONE_NEWNS, CloneFlags::CLONE_NEWNET, CloneFlags::CLONE_NEWPID] {
            holds(format!("{kind:?}"), unshare(kind) == Err(Errno::EPERM))?;
        }
        holds("setns", setns(&before.mounts, CloneFlags::CLONE_NEWNS) == Err(Errno::EPERM))?;
        holds("the host's name", nix::unistd::sethostname("tapline") == Err(Errno::EPERM))
    });
}

#[test]
fn a_confined_gateway_is_alone_with_itself() {
    let tester = Pid::this();
    in_child(|| {
        let before = confined()?;
        holds("the first of its namespace", std::process::id() == 1)?;
        for pid in [tester, Pid::from_raw(-1), nix::unistd::getppid()].into_iter().filter(|pid| pid.as_raw() != 0) {
            holds(format!("{pid}"), kill(pid, None) == Err(Errno::ESRCH))?;
        }
        let traced = nix::sys::ptrace::seize(tester, nix::sys::ptrace::Options::empty());
        holds(format!("traced: {traced:?}"), traced == Err(Errno::ESRCH))?;
        let signalled = proc::pidfd_send_signal(before.tester.as_fd(), None);
        holds("signalled by a pidfd", signalled.is_err())
    });
}

#[test]
fn a_descriptor_that_was_left_open_is_closed() {
    in_child(|| {
        let before = confined()?;
        let file = openat(&before.proc, format!("self/fd/{}", before.leak).as_str(), OFlag::O_PATH, Mode::empty());
        holds(format!("{file:?}"), matches!(file, Err(Errno::ENOENT)))
    });
}

#[test]
fn a_root_that_cannot_be_pivoted_away_from_is_covered() {
    in_child(|| {
        crate::sys::testing::enter_namespace()?;
        unshare(CloneFlags::CLONE_NEWNS).map_err(text)?;
        root::empty_by_chroot().map_err(|(operation, errno)| format!("{operation}: {errno}"))?;
        holds("the root is empty", fs::read_dir("/").map_err(text)?.count() == 0)?;
        holds("etc", !fs::exists("/etc").unwrap_or(true) && !fs::exists("/../etc").unwrap_or(true))?;
        holds("a file", File::create("/file").is_err())
    });
}
