//! `tapline exec` and `tapline stop`: what is done to a sandbox that runs.
//!
//! # Theory of operation
//!
//! The state says which process is the sandbox's init. Its number alone proves nothing: it may have ended and the
//! number been given to another. So a pidfd is opened first, and then it is checked that this process descends from
//! the sandbox's supervisor, whose life the state's lock vouches for.
//!
//! [`exec`] forks a *joiner*, which enters init's namespaces (all that are not the caller's own) through the pidfd,
//! forks CMD into them and stays with it as init does with the first command: it passes signals on, tells when CMD
//! stops, returns how it ended. It asks to die with its parent, and CMD with it. Only those namespaces are entered;
//! the sandbox's root user may do there what it may do anyway. In a `--locked` sandbox the command is locked as the first
//! one is, in a user and a mount namespace of its own below the sandbox's.
//!
//! [`stop`] asks the supervisor to end as a person would (SIGTERM, which it passes on to CMD), and kills it after
//! [`STOP_PATIENCE`]; everything in the sandbox dies with it.
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_dumpable;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid};

use super::SandboxError;
use super::agent::follow;
use super::command::{self, CommandLine, NotStarted};
use super::init;
use super::message::{FromInit, ToInit};
use super::signals::Signals;
use super::supervisor::end_child;
use super::terminal::Terminal;
use crate::confine;
use crate::control::state::SandboxState;
use crate::control::wire;
use crate::sys::proc::{self, Forked};
use crate::sys::{scm, spawn};

/// How long a sandbox may take to end after SIGTERM before it is killed.
pub const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// How long the kernel may take to end what was killed.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// Run a command in a running sandbox: in its user, network, mount, UTS and PID namespaces. Its exit status, as
/// [`run`](super::run) has it.
///
/// # Errors
/// When the sandbox has ended, or its namespaces cannot be entered.
pub fn exec(state: &SandboxState, command: &[OsString]) -> Result<i32, SandboxError> {
    let signals = Signals::take().map_err(SandboxError::io("read signals"))?;
    let line = CommandLine::new(command, signals.before())?;
    let (init, namespaces) = find_init(state)?;
    let terminal = Terminal::remember();
    let (socket, supervisor) = scm::pair().map_err(SandboxError::io("make a socket pair"))?;
    let parent = getpid();
    let joiner = match proc::fork().map_err(SandboxError::io("start a process"))? {
        Forked::Child => join(parent, &init, namespaces, state.locked, &line, &supervisor),
        Forked::Parent(pid) => pid,
    };
    drop((supervisor, init));
    proc::close_inherited_fds(&[]).map_err(SandboxError::io("read /proc/self/fd"))?;
    proc::null_stdio(&[0, 1]).map_err(SandboxError::io("open /dev/null"))?;
    let result = serve(&signals, &socket, command);
    drop(socket);
    end_child(joiner);
    if let Some(terminal) = terminal {
        terminal.restore(!matches!(result, Ok((_, false))));
    }
    result.map(|(status, _)| status)
}

/// Listen to the joiner and to the person until CMD has ended: its status, and whether a signal ended it.
fn serve(signals: &Signals, socket: &OwnedFd, command: &[OsString]) -> Result<(i32, bool), SandboxError> {
    let mut started = false;
    loop {
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::Error::EINTR) => continue,
            other => other.map_err(SandboxError::io("wait for the command"))?,
        };
        while let Some(arrived) = signals.next() {
            if !started && arrived.ends() {
                return Ok((128 + arrived.signal as i32, true));
            }
            if started && !arrived.from_terminal {
                // When the joiner has gone, that is heard next.
                let _ = wire::send(socket, &ToInit::Signal { number: arrived.signal as i32 }, &[]);
            }
        }
        if !fds[1].any().unwrap_or(true) {
            continue;
        }
        match wire::recv::<FromInit>(socket)?.map(|(message, _)| message) {
            Some(FromInit::Started { lacks }) => {
                started = true;
                lacks.iter().for_each(|lack| tracing::debug!("{lack}"));
            }
            Some(FromInit::Stopped) => proc::stop_self().map_err(SandboxError::io("stop with the command"))?,
            Some(FromInit::Exited { status, by_signal }) => return Ok((status, by_signal)),
            Some(FromInit::NotExecuted { errno }) => {
                // Not empty: CommandLine::new has seen to it.
                let (status, sentence) = command::not_executed(&command[0], errno);
                tracing::error!("{sentence}");
                return Ok((status, false));
            }
            Some(FromInit::Failed { text }) => return Err(SandboxError::Inside(text)),
            Some(FromInit::Notice { text }) => tracing::warn!("{text}"),
            Some(FromInit::Ready) => {}
            None => return Err(SandboxError::Vanished { who: "joined process", signal: None }),
        }
    }
}

/// In the child: enter, start CMD, stay with it.
fn join(
    parent: Pid,
    init: &OwnedFd,
    namespaces: CloneFlags,
    locked: bool,
    line: &CommandLine,
    supervisor: &OwnedFd,
) -> ! {
    let work = || -> Result<(), String> {
        let cwd = std::env::current_dir().ok();
        proc::close_own_fds_in_child(&[init.as_fd(), supervisor.as_fd()])
            .map_err(|e| format!("cannot close files: {e}"))?;
        if !namespaces.is_empty() {
            setns(init, namespaces).map_err(|e| {
                format!("cannot enter the sandbox's namespaces: {}; is it yours, and still running?", e.desc())
            })?;
        }
        // Not earlier: a change of credentials clears it.
        follow(parent)?;
        set_dumpable(false).map_err(|e| format!("cannot hide from the sandbox: {e}"))?;
        let prepare = || {
            // Entering a mount namespace leaves one at its root.
            let there = cwd.as_deref().is_some_and(|dir| std::env::set_current_dir(dir).is_ok());
            if !there {
                std::env::set_current_dir("/").map_err(|e| format!("cannot enter /: {e}"))?;
            }
            if locked {
                // To write its own maps. Nobody in there may trace it: they are all in namespaces below.
                set_dumpable(true).map_err(|e| format!("cannot map ids: {e}"))?;
                init::lock()?;
            }
            Ok(())
        };
        let child = match command::start(line, prepare) {
            Ok(child) => child,
            Err(NotStarted::Preparation(text)) => return Err(text),
            Err(NotStarted::Exec(errno)) => {
                let _ = wire::send(supervisor, &FromInit::NotExecuted { errno }, &[]);
                return Ok(());
            }
        };
        let _ = proc::null_stdio(&[0, 1, 2]);
        let _ = proc::close_all_fds_in_child(&[supervisor.as_fd()]);
        let mut confined = confine::minder().map_err(|e| e.to_string())?;
        let lacks = std::mem::take(&mut confined.lacks);
        let _ = wire::send(supervisor, &FromInit::Started { lacks }, &[]);
        if let Some(ending) = command::mind(child, supervisor).map_err(|e| format!("cannot wait: {e}"))? {
            let message = FromInit::Exited { status: ending.status, by_signal: ending.by_signal };
            let _ = wire::send(supervisor, &message, &[]);
        }
        Ok(())
    };
    if let Err(text) = work() {
        let _ = wire::send(supervisor, &FromInit::Failed { text }, &[]);
    }
    proc::exit_now(0);
}

/// A pidfd of the sandbox's init, and those of its namespaces that are not the caller's.
fn find_init(state: &SandboxState) -> Result<(OwnedFd, CloneFlags), SandboxError> {
    let gone = || SandboxError::Gone(state.name.clone());
    let pid = state.pid.ok_or_else(gone)?;
    let pidfd = spawn::pidfd_open(pid.unsigned_abs()).map_err(|_| gone())?;
    // Init's parent is the agent, whose parent is the supervisor; what `attach` serves was made by somebody else.
    let grandparent = parent_of(pid).and_then(parent_of);
    if grandparent != Some(state.supervisor_pid) {
        return Err(gone());
    }
    let mut namespaces = CloneFlags::empty();
    for (file, flag) in [
        ("user", CloneFlags::CLONE_NEWUSER),
        ("net", CloneFlags::CLONE_NEWNET),
        ("mnt", CloneFlags::CLONE_NEWNS),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("pid", CloneFlags::CLONE_NEWPID),
    ] {
        let inode = |process: &str| fs::metadata(Path::new("/proc").join(process).join("ns").join(file));
        let theirs = inode(&pid.to_string()).map_err(SandboxError::io("look at the sandbox's namespaces"))?;
        let ours = inode("self").map_err(SandboxError::io("look at /proc/self/ns"))?;
        if (theirs.dev(), theirs.ino()) != (ours.dev(), ours.ino()) {
            namespaces |= flag;
        }
    }
    Ok((pidfd, namespaces))
}

/// The parent of a process, by /proc/pid/stat (proc(5)).
pub(super) fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command's name in parentheses, which may have anything in it.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// End a running sandbox: SIGTERM to its supervisor, SIGKILL when it has not ended after [`STOP_PATIENCE`]. Returns
/// when it has ended.
///
/// # Errors
/// When it is not ours to end, or does not end.
pub fn stop(state: &SandboxState) -> Result<(), SandboxError> {
    let Ok(supervisor) = spawn::pidfd_open(state.supervisor_pid.unsigned_abs()) else { return Ok(()) };
    let ended = |error: &io::Error| error.raw_os_error() == Some(libc::ESRCH);
    for (signal, patience) in [(Signal::SIGTERM, STOP_PATIENCE), (Signal::SIGKILL, KILL_PATIENCE)] {
        match proc::pidfd_send_signal(supervisor.as_fd(), Some(signal)) {
            Err(error) if ended(&error) => return Ok(()),
            other => other.map_err(SandboxError::io("end the sandbox"))?,
        }
        if wait_readable(supervisor.as_fd(), patience) {
            return Ok(());
        }
        if signal == Signal::SIGTERM {
            tracing::warn!("{} has not ended {} s after SIGTERM: killing it", state.name, STOP_PATIENCE.as_secs());
        }
    }
    Err(SandboxError::Io { what: "end the sandbox", error: io::ErrorKind::TimedOut.into() })
}

/// Wait for a descriptor, up to `patience`.
fn wait_readable(fd: BorrowedFd<'_>, patience: Duration) -> bool {
    let end = std::time::Instant::now() + patience;
    loop {
        let left = end.saturating_duration_since(std::time::Instant::now());
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Err(nix::Error::EINTR) => {}
            other => return matches!(other, Ok(1..)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_of_a_process_is_found_whatever_its_name() {
        let dir = std::env::temp_dir().join(format!("tapline-exec-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let program = dir.join("a) 1 (b");
        fs::copy("/bin/sleep", &program).unwrap();
        let mut child = std::process::Command::new(&program).arg("60").spawn().unwrap();
        assert_eq!(parent_of(child.id() as i32), Some(std::process::id() as i32));
        child.kill().unwrap();
        child.wait().unwrap();
        fs::remove_dir_all(dir).unwrap();
    }
}
