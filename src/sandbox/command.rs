//! CMD: forked, made ready and executed; its end waited for.
//!
//! # Theory of operation
//!
//! [`start`] forks. The child does its last preparations (the nested user namespace of `--locked`), asks to be killed
//! when its parent dies, takes back the signal mask and dispositions that the person's shell gave us, and executes
//! CMD. A close-on-exec pipe brings back why that failed; its end of file means that it did not.
//!
//! [`mind`] then stays with CMD to its end: it passes on signals that the supervisor asks for, tells it when CMD
//! stops, and returns how CMD ended. When the supervisor's socket closes, the supervisor is gone and CMD is killed.
//! The process that minds may be PID 1 of a PID namespace; then it also reaps every orphan, and whatever CMD left
//! behind dies with it when it exits (pid_namespaces(7)). All its signals are blocked; SIGCHLD is read from a
//! signalfd.
use std::ffi::{CString, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getpid, getppid};

use super::message::{FromInit, ToInit};
use crate::control::wire;
use crate::sys::proc::{self, Change, Forked};

/// CMD, ready for an exec.
#[derive(Debug, Clone)]
pub(super) struct CommandLine {
    program: CString,
    args: Vec<CString>,
    /// The mask CMD is to have.
    mask: SigSet,
    /// Its whole environment; `None` means the caller's.
    environment: Option<Vec<CString>>,
}

/// A word has a NUL byte in it, or there is none.
#[derive(Debug, thiserror::Error)]
#[error("the command cannot be executed: it is empty or has a NUL byte in it")]
pub struct BadCommand;

impl CommandLine {
    /// From the words and the signal mask that CMD is to have.
    pub(super) fn new(words: &[OsString], mask: SigSet) -> Result<CommandLine, BadCommand> {
        let args: Result<Vec<CString>, _> = words.iter().map(|w| CString::new(w.as_bytes())).collect();
        match args {
            Ok(args) if !args.is_empty() => Ok(CommandLine { program: args[0].clone(), args, mask, environment: None }),
            _ => Err(BadCommand),
        }
    }

    /// The same as a login shell: its first word begins with a `-`.
    pub(super) fn into_login_shell(mut self) -> CommandLine {
        let name = [b"-", self.program.as_bytes()].concat();
        // Neither of the two has a NUL byte.
        self.args[0] = CString::new(name).unwrap_or_default();
        self
    }

    /// With further variables in its environment, in place of the caller's of the same names.
    pub(super) fn with_environment(mut self, variables: Vec<(String, String)>) -> CommandLine {
        if variables.is_empty() {
            return self;
        }
        let kept = std::env::vars_os().filter(|(name, _)| !variables.iter().any(|(other, _)| name == other.as_str()));
        let all = kept.chain(variables.iter().map(|(name, value)| (name.into(), value.into())));
        let word = |(mut name, value): (OsString, OsString)| {
            name.push("=");
            name.push(value);
            // Neither the caller's nor ours has a NUL byte.
            CString::new(name.into_encoded_bytes()).ok()
        };
        self.environment = Some(all.filter_map(word).collect());
        self
    }
}

/// Why CMD does not run.
#[derive(Debug)]
pub(super) enum NotStarted {
    /// Something before the exec failed; one sentence.
    Preparation(String),
    /// The exec failed with this error number.
    Exec(i32),
}

/// What the child writes to the pipe: one byte that tells the two apart, then the number or the sentence.
const EXEC: u8 = b'x';
const PREPARATION: u8 = b'p';

/// Fork, run `prepare` in the child, execute. Returns when CMD runs, or why it does not.
pub(super) fn start(command: &CommandLine, prepare: impl FnOnce() -> Result<(), String>) -> Result<Pid, NotStarted> {
    let broken = |error: io::Error| NotStarted::Preparation(format!("cannot start the command: {error}"));
    let (mut result, mut report) = io::pipe().map_err(broken)?;
    let parent = getpid();
    match proc::fork().map_err(broken)? {
        Forked::Child => {
            drop(result);
            let error = prepare().err().map(|text| [&[PREPARATION], text.as_bytes()].concat()).unwrap_or_else(|| {
                // After `prepare`, since a new user namespace may clear it.
                let _ = set_pdeathsig(Signal::SIGKILL);
                // A parent outside this PID namespace (`exec`) has no number here.
                if ![parent, Pid::from_raw(0)].contains(&getppid()) {
                    proc::exit_now(125);
                }
                let error = match proc::restore_signals(&command.mask) {
                    Ok(()) => proc::exec(&command.program, &command.args, command.environment.as_deref()),
                    Err(error) => error,
                };
                [&[EXEC][..], &error.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes()].concat()
            });
            let _ = report.write_all(&error);
            proc::exit_now(125);
        }
        Forked::Parent(pid) => {
            drop(report);
            let mut said = Vec::new();
            result.read_to_end(&mut said).map_err(broken)?;
            let failure = match said.split_first() {
                None => return Ok(pid),
                Some((&EXEC, number)) => NotStarted::Exec(number.try_into().map_or(libc::EIO, i32::from_ne_bytes)),
                Some((_, text)) => NotStarted::Preparation(String::from_utf8_lossy(text).into_owned()),
            };
            let _ = waitpid(pid, None);
            Err(failure)
        }
    }
}

/// How CMD ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ending {
    /// The exit status, or 128 and the signal's number.
    pub(super) status: i32,
    /// A signal ended it.
    pub(super) by_signal: bool,
}

/// Stay with CMD until it ends. `None` when the supervisor went first.
pub(super) fn mind(child: Pid, supervisor: &OwnedFd) -> io::Result<Option<Ending>> {
    let mut chld = SigSet::empty();
    chld.add(Signal::SIGCHLD);
    chld.thread_block()?;
    let children = SignalFd::with_flags(&chld, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    loop {
        if let Some(ending) = reap(child, supervisor) {
            return Ok(Some(ending));
        }
        let mut fds =
            [PollFd::new(children.as_fd(), PollFlags::POLLIN), PollFd::new(supervisor.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::Error::EINTR) => continue,
            other => other?,
        };
        let spoken = fds[1].any().unwrap_or(true);
        while let Ok(Some(_)) = children.read_signal() {}
        if spoken {
            match wire::recv::<ToInit>(supervisor) {
                Ok(Some((ToInit::Signal { number }, _))) => {
                    // A signal that this kernel does not know, or a child that has just ended: nothing to do.
                    if let Ok(signal) = Signal::try_from(number) {
                        let _ = kill(child, signal);
                    }
                }
                Ok(Some((ToInit::Go, _))) => {}
                Ok(None) | Err(_) => {
                    let _ = kill(child, Signal::SIGKILL);
                    return Ok(None);
                }
            }
        }
    }
}

/// Take note of every child that has something to tell.
fn reap(child: Pid, supervisor: &OwnedFd) -> Option<Ending> {
    while let Some((pid, change)) = proc::wait_any() {
        if pid != child {
            continue;
        }
        match change {
            Change::Exited(status) => return Some(Ending { status, by_signal: false }),
            Change::Killed(signal) => return Some(Ending { status: 128 + signal, by_signal: true }),
            // The supervisor stops with CMD. When it has gone, its socket tells.
            Change::Stopped(_) => drop(wire::send(supervisor, &FromInit::Stopped, &[])),
        }
    }
    None
}

/// What a shell says and returns when a command cannot be executed: `(status, sentence)`.
pub(super) fn not_executed(command: &OsString, errno: i32) -> (i32, String) {
    let name = command.to_string_lossy();
    let error = Errno::from_raw(errno);
    // execvp says EACCES when any directory of PATH cannot be searched: a shell would have gone on.
    let error = match error {
        Errno::EACCES if !name.contains('/') && !is_in_path(command) => Errno::ENOENT,
        other => other,
    };
    match error {
        Errno::ENOENT if name.contains('/') => (127, format!("{name}: No such file or directory")),
        Errno::ENOENT => (127, format!("{name}: command not found")),
        Errno::ENOTDIR => (127, format!("{name}: {}", error.desc())),
        _ => (126, format!("{name}: {}", error.desc())),
    }
}

/// Is there a file of this name in a directory of PATH that can be looked into?
fn is_in_path(name: &OsString) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_executed_has_the_shells_statuses() {
        let of = |name: &str, errno| not_executed(&name.into(), errno);
        assert_eq!(of("nope", libc::ENOENT), (127, "nope: command not found".into()));
        assert_eq!(of("./nope", libc::ENOENT).0, 127);
        assert_eq!(of("/etc", libc::EACCES), (126, "/etc: Permission denied".into()));
        assert_eq!(of("./x", libc::ENOEXEC).0, 126);
        // A directory of PATH that is closed to us does not make a command that is nowhere a forbidden one.
        assert_eq!(of("no-such-command", libc::EACCES), (127, "no-such-command: command not found".into()));
    }

    #[test]
    fn further_variables_take_the_place_of_the_callers() {
        let line = CommandLine::new(&["a".into()], SigSet::empty()).unwrap();
        assert!(line.clone().with_environment(Vec::new()).environment.is_none());
        let line = line.with_environment(vec![("PATH".into(), "/nowhere".into()), ("DB_PORT".into(), "x=y".into())]);
        let all: Vec<String> = line.environment.unwrap().into_iter().map(|w| w.into_string().unwrap()).collect();
        let paths: Vec<&String> = all.iter().filter(|word| word.starts_with("PATH=")).collect();
        assert_eq!(paths, ["PATH=/nowhere"]);
        assert!(all.contains(&"DB_PORT=x=y".to_owned()));
        assert!(all.len() > 2, "the caller's others are kept");
    }

    #[test]
    fn a_login_shell_is_told_by_its_own_name() {
        let line = CommandLine::new(&["/bin/sh".into()], SigSet::empty()).unwrap().into_login_shell();
        assert_eq!((line.program.to_str(), line.args[0].to_str()), (Ok("/bin/sh"), Ok("-/bin/sh")));
    }

    #[test]
    fn a_command_with_a_nul_byte_or_no_word_is_refused() {
        assert!(CommandLine::new(&[], SigSet::empty()).is_err());
        assert!(CommandLine::new(&["a\0b".into()], SigSet::empty()).is_err());
        assert!(CommandLine::new(&["a".into()], SigSet::empty()).is_ok());
    }
}
