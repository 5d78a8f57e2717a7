//! The supervisor's side of a gateway: starting the process, and speaking to it.
//!
//! # Theory of operation
//!
//! A gateway is this same program, started anew (`/proc/self/exe`, under the name this process was started by)
//! with the hidden subcommand `gateway --fd N`. It is started, not forked, so that nothing of the supervisor's
//! memory is in it, and isolated from the first instruction: an empty environment, `/` as its directory, a session
//! of its own with the terminal's signals ignored, standard input and output on /dev/null, standard error kept for
//! the log, and of all other descriptors only its end of the attach connection.
//!
//! Everything here blocks and nothing needs a runtime: the supervisor has one thread and a poll loop. It waits for
//! the connection ([`GatewayProcess::connection`]) and for the process itself ([`GatewayProcess::pidfd`]), and
//! calls [`Connection::recv`] when there is something. Dropping a [`GatewayProcess`] closes the connection, upon
//! which the gateway ends by itself; [`GatewayProcess::stop`] also waits for that, and ends one that does not.
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::messages::{FromGateway, ToGateway};
use super::state::StateDir;
use super::wire::{self, WireError};
use crate::observe::logging;
use crate::plan::Logging;
use crate::sys::{scm, spawn};

/// Why there is no gateway.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// Out of descriptors or memory.
    #[error("cannot make a connection to the gateway: {0}")]
    Socket(io::Error),
    /// The process did not start.
    #[error(
        "cannot start the gateway process: {0}; is /proc mounted, and is there room under the process limit (ulimit -u)?"
    )]
    Start(io::Error),
}

/// The attach connection.
#[derive(Debug)]
pub struct Connection(OwnedFd);

impl Connection {
    /// Send a message, with descriptors beside it where it says so. They are duplicated: the caller's stay open.
    pub fn send(&self, message: &ToGateway, fds: &[BorrowedFd<'_>]) -> Result<(), WireError> {
        wire::send(&self.0, message, fds)
    }

    /// Wait for the next message; `None` when the gateway has ended or closed.
    pub fn recv(&self) -> Result<Option<FromGateway>, WireError> {
        Ok(wire::recv(&self.0)?.map(|(message, _)| message))
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A gateway's process.
#[derive(Debug)]
pub struct GatewayProcess {
    child: Child,
    pidfd: OwnedFd,
    connection: Connection,
}

impl GatewayProcess {
    /// Start a gateway. It returns as soon as the program is started; what it has to say comes over the connection.
    pub fn spawn(logging: Logging) -> Result<GatewayProcess, SpawnError> {
        let mut command = Command::new("/proc/self/exe");
        if let Some(name) = std::env::args_os().next() {
            command.arg0(name);
        }
        command.arg("gateway");
        GatewayProcess::start(command, logging::arguments(logging))
    }

    /// Find the gateway of the shared networks of this user in this host network namespace, or start it.
    pub fn join(_state: &StateDir, logging: Logging) -> Result<GatewayProcess, SpawnError> {
        GatewayProcess::spawn(logging)
    }

    /// The same as [`spawn`](Self::spawn) with another program; `--fd N` and `arguments` follow those that the command has.
    pub fn start(mut command: Command, arguments: Vec<OsString>) -> Result<GatewayProcess, SpawnError> {
        let (ours, theirs) = scm::pair().map_err(SpawnError::Socket)?;
        command
            .args(["--fd".to_owned(), theirs.as_raw_fd().to_string()])
            .args(arguments)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit());
        spawn::isolate(&mut command, theirs.as_fd());
        let child = command.spawn().map_err(SpawnError::Start)?;
        let pidfd = spawn::pidfd_open(child.id()).map_err(SpawnError::Start)?;
        Ok(GatewayProcess { child, pidfd, connection: Connection(ours) })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Readable when the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Its attach connection.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// How it ended, if it has; also lets go of the ended process.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Close the connection, wait up to `patience` for the gateway to end by itself, then kill it.
    pub fn stop(self, patience: Duration) -> io::Result<ExitStatus> {
        let GatewayProcess { mut child, pidfd, connection } = self;
        drop(connection);
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        if !matches!(poll(&mut fds, timeout), Ok(1..)) {
            child.kill()?;
        }
        child.wait()
    }
}

/// How a gateway ended, for the person: `exit status 1`, `killed by SIGKILL`.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => match nix::sys::signal::Signal::try_from(signal) {
            Ok(signal) => format!("killed by {}", signal.as_str()),
            Err(_) => format!("killed by signal {signal}"),
        },
        (None, None) => "it ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell in the gateway's place; `$2` is the descriptor's number.
    fn shell(script: &str) -> GatewayProcess {
        let mut command = Command::new("/bin/bash");
        command.args(["-c", script, "gateway"]);
        GatewayProcess::start(command, Vec::new()).unwrap()
    }

    #[test]
    fn the_child_has_its_end_and_nothing_else_of_ours() {
        // A descriptor that somebody forgot to mark close-on-exec.
        let (leak, _other) = io::pipe().unwrap();
        nix::fcntl::fcntl(&leak, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        // ls has a descriptor of its own on the directory it reads, the lowest free one.
        let script = r#"fds=$(cd /proc/self/fd && echo *)
            for fd in $fds; do [ -e /proc/self/fd/$fd ] && case $fd in 0|1|2|255) ;; *) left="$left$fd," ;; esac; done
            read -r _ _ _ _ _ session rest < /proc/$$/stat
            if [ "$left" = "$2," ] && [ "$session" = $$ ] && [ "$PWD" = / ] && [ -z "$HOME" ]; then
                text="{\"type\":\"attached\"}"
            else
                text="{\"type\":\"refused\",\"reason\":\"$left of $2, session $session of $$, $PWD\"}"
            fi
            printf %s "$text" >&$2"#;
        let gateway = shell(script);
        match gateway.connection().recv().unwrap() {
            Some(FromGateway::Attached) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(gateway.stop(Duration::from_secs(5)).unwrap().code(), Some(0));
    }

    #[test]
    fn its_end_is_seen_on_the_pidfd_and_on_the_connection() {
        let mut gateway = shell("kill -KILL $$");
        assert!(gateway.connection().recv().unwrap().is_none());
        let mut fds = [PollFd::new(gateway.pidfd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(5000u16)), Ok(1));
        let status = gateway.try_wait().unwrap().unwrap();
        assert_eq!(describe(status), "killed by SIGKILL");
    }

    #[test]
    fn one_that_does_not_end_by_itself_is_killed() {
        let gateway = shell("exec sleep 60");
        assert_eq!(gateway.stop(Duration::from_millis(50)).unwrap().signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let error = GatewayProcess::start(Command::new("/nonexistent"), Vec::new()).unwrap_err();
        assert!(matches!(error, SpawnError::Start(_)), "{error}");
    }
}
