//! The supervisor's side of a gateway: starting or finding the process, and speaking to it.
//!
//! # Theory of operation
//!
//! A private gateway is this same program, started anew (`/proc/self/exe`, under the name this process was started by)
//! with the hidden subcommand `gateway --fd N`. It is started, not forked, so that nothing of the supervisor's
//! memory is in it, and isolated from the first instruction: an empty environment, `/` as its directory, a session
//! of its own with the terminal's signals ignored, standard input and output on /dev/null, standard error (or the log
//! file) kept for the log, and of all other descriptors only its end of the attach connection.
//!
//! On its way into namespaces of its own ([`confine`](crate::confine)) it goes on in a second process, which is our child as
//! well and tells us who it is ([`FromGateway::Moved`]). Until that is heard only the first is known; both are in the process
//! group that the first has begun, in which there is no other child of ours. So by that group everything is waited for
//! and, where need be, killed, wherever either of them was when it ended.
//!
//! The gateway of shared networks is found, or started by the first who needs it ([`super::rendezvous`]); it is nobody's
//! child and ends by itself. A connection to it that closes before [`FromGateway::Attached`] or
//! [`FromGateway::Refused`] was made when it was about to end: its owner lets go of the [`GatewayProcess`] and calls
//! [`GatewayProcess::join`] again, a few times at most.
//!
//! Everything here blocks and nothing needs a runtime: the supervisor has one thread and a poll loop. It waits for
//! the connection ([`GatewayProcess::connection`]), and calls [`GatewayProcess::recv`] when there is something. Dropping a
//! [`GatewayProcess`] closes the connection, upon which a private gateway ends by itself; [`GatewayProcess::stop`] also
//! waits for that, and ends one that does not.
use std::cell::OnceCell;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::messages::{FromGateway, ToGateway};
use super::rendezvous::Starter;
use super::state::{StateDir, StateError};
use super::wire::{self, WireError};
use crate::observe::logging;
use crate::plan::Logging;
use crate::sys::{proc, scm, spawn};

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
    /// It started and ended before it could be connected to.
    #[error("the gateway process ended at once ({0}): `gateway.log` in tapline's runtime directory says why")]
    Ended(String),
    /// There is no place for state.
    #[error(transparent)]
    State(StateError),
    /// A file operation on the way to the gateway of shared networks failed.
    #[error("cannot {0} {1}: {2}")]
    File(&'static str, PathBuf, io::Error),
}

/// The attach connection.
#[derive(Debug)]
pub struct Connection(OwnedFd);

impl Connection {
    /// Send a message, with descriptors beside it where it says so. They are duplicated: the caller's stay open.
    pub fn send(&self, message: &ToGateway, fds: &[BorrowedFd<'_>]) -> Result<(), WireError> {
        wire::send(&self.0, message, fds)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A gateway, and the connection to it.
#[derive(Debug)]
pub struct GatewayProcess {
    kind: Kind,
    connection: Connection,
}

#[derive(Debug)]
enum Kind {
    /// Ours alone.
    Private(Children),
    /// Others' as well.
    Shared,
}

/// The one or two processes of a private gateway.
#[derive(Debug)]
struct Children {
    /// The first one's number, and so their process group's.
    group: Pid,
    first: OwnedFd,
    /// The one in which it has gone on; the first is no more by then.
    second: OnceCell<OwnedFd>,
}

/// How a gateway ended; says so to the person: `exit status 1`, `killed by SIGKILL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The process has ended like this.
    Process(ExitStatus),
    /// The connection is closed; the process is others' as well, and may live on.
    Connection,
}

impl Ended {
    /// How the process ended, where it is known.
    pub fn status(self) -> Option<ExitStatus> {
        match self {
            Ended::Process(status) => Some(status),
            Ended::Connection => None,
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ended::Process(status) => to.write_str(&describe(*status)),
            Ended::Connection => to.write_str("its connection closed"),
        }
    }
}

impl GatewayProcess {
    /// Start a gateway. It returns as soon as the program is started; what it has to say comes over the connection.
    pub fn spawn(logging: Logging) -> Result<GatewayProcess, SpawnError> {
        let mut command = Command::new("/proc/self/exe");
        // Not the name that this program was called by, which may be another tool's.
        command.arg0("tapline").arg("gateway");
        GatewayProcess::start(command, logging::arguments(logging))
    }

    /// Find the gateway of the shared networks of this user in this host network namespace, or start it; a connection
    /// to it for one endpoint.
    pub fn join(state: &StateDir, logging: Logging) -> Result<GatewayProcess, SpawnError> {
        GatewayProcess::reach(state, &Starter::ours(logging))
    }

    /// The same with another program.
    pub fn reach(state: &StateDir, starter: &Starter) -> Result<GatewayProcess, SpawnError> {
        Ok(GatewayProcess { kind: Kind::Shared, connection: Connection(state.reach_gateway(starter)?) })
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
            .stderr(logging::stderr_of_child());
        spawn::isolate(&mut command, theirs.as_fd());
        let child = command.spawn().map_err(SpawnError::Start)?;
        let first = spawn::pidfd_open(child.id()).map_err(SpawnError::Start)?;
        let group = Pid::from_raw(child.id().cast_signed());
        let children = Children { group, first, second: OnceCell::new() };
        Ok(GatewayProcess { kind: Kind::Private(children), connection: Connection(ours) })
    }

    /// The process id of a shared one; 0 where it cannot be told.
    pub fn pid(&self) -> u32 {
        // As the kernel noted it when the connection was made: who listens.
        let peer = scm::peer_credentials(&self.connection);
        peer.map_or(0, |peer| u32::try_from(peer.pid).unwrap_or(0))
    }

    /// The process group of a private one: the process id of the first of its processes.
    pub fn group(&self) -> Option<u32> {
        match &self.kind {
            Kind::Private(children) => Some(children.group.as_raw().cast_unsigned()),
            Kind::Shared => None,
        }
    }

    /// Wait for the next message; `None` when the gateway has ended or closed.
    pub fn recv(&self) -> Result<Option<FromGateway>, WireError> {
        let Some((message, mut fds)) = wire::recv(&self.connection.0)? else { return Ok(None) };
        if let (FromGateway::Moved, Kind::Private(children), Some(second)) = (&message, &self.kind, fds.pop()) {
            children.handle_moved(second);
        }
        Ok(Some(message))
    }

    /// Its attach connection.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Has it ended? For a shared one: has it closed the connection?
    pub fn has_ended(&self) -> bool {
        match &self.kind {
            Kind::Private(children) => match children.second.get() {
                Some(second) => is_ready(second, PollFlags::POLLIN, PollTimeout::ZERO),
                // The first may have ended because there is a second, which we have not heard yet.
                None => is_ready(&children.first, PollFlags::POLLIN, PollTimeout::ZERO) && self.is_closed(),
            },
            Kind::Shared => self.is_closed(),
        }
    }

    /// Is there nobody at the other end of the connection? What was said before that may be unread.
    fn is_closed(&self) -> bool {
        is_ready(&self.connection, PollFlags::empty(), PollTimeout::ZERO)
    }

    /// End a private gateway; its end is heard on the connection. A shared one is others' as well and goes on.
    pub fn kill(&self) {
        if let Kind::Private(children) = &self.kind
            && let Err(error) = children.kill()
        {
            tracing::debug!("the gateway cannot be killed: {error}");
        }
    }

    /// Close the connection. A private gateway has up to `patience` to end by itself, then it is killed; a shared one is
    /// not waited for.
    pub fn stop(self, patience: Duration) -> io::Result<Ended> {
        // It may have said who it is since it was last listened to.
        while matches!(&self.kind, Kind::Private(children) if children.second.get().is_none())
            && is_ready(&self.connection, PollFlags::POLLIN, PollTimeout::ZERO)
            && matches!(self.recv(), Ok(Some(_)))
        {}
        let GatewayProcess { kind, connection } = self;
        drop(connection);
        let Kind::Private(children) = kind else { return Ok(Ended::Connection) };
        let known = children.second.get().unwrap_or(&children.first);
        is_ready(known, PollFlags::POLLIN, PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX));
        children.end().map(Ended::Process)
    }
}

impl Children {
    /// There is a second process: the first is of no more use.
    fn handle_moved(&self, second: OwnedFd) {
        if self.second.set(second).is_err() {
            return;
        }
        // It is about to end. That must not depend on whether it may run.
        let _ = proc::pidfd_send_signal(self.first.as_fd(), Some(Signal::SIGKILL));
        let _ = waitpid(self.group, None);
    }

    /// Kill both. As long as one of them has not been waited for, nobody else's group has this number.
    fn kill(&self) -> io::Result<()> {
        match killpg(self.group, Signal::SIGKILL) {
            // Nobody is left but who has ended.
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Kill whoever still lives, and see to it that nobody is left; how the gateway has ended.
    fn end(self) -> io::Result<ExitStatus> {
        self.kill()?;
        let mut how = None;
        while let Some((pid, status)) = proc::wait_for_group(self.group)? {
            // The first one's end means something only where there was no other.
            if pid != self.group || how.is_none() {
                how = Some(status);
            }
        }
        how.ok_or_else(|| io::Error::other("somebody else has waited for its end"))
    }
}

fn is_ready(fd: &impl AsFd, flags: PollFlags, patience: PollTimeout) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), flags)];
    loop {
        match poll(&mut fds, patience) {
            Err(Errno::EINTR) => {}
            other => return matches!(other, Ok(1..)),
        }
    }
}

/// How a gateway ended, for the person: `exit status 1`, `killed by SIGKILL`.
fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => match Signal::try_from(signal) {
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
        match gateway.recv().unwrap() {
            Some(FromGateway::Attached { .. }) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(gateway.stop(Duration::from_secs(5)).unwrap().status().unwrap().code(), Some(0));
    }

    #[test]
    fn its_end_is_seen_on_the_process_and_on_the_connection() {
        let gateway = shell("kill -KILL $$");
        assert!(gateway.recv().unwrap().is_none());
        let Kind::Private(children) = &gateway.kind else { panic!() };
        let mut fds = [PollFd::new(children.first.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(5000u16)), Ok(1));
        assert!(gateway.has_ended());
        assert_eq!(gateway.stop(Duration::ZERO).unwrap().to_string(), "killed by SIGKILL");
    }

    #[test]
    fn one_that_does_not_end_by_itself_is_killed() {
        let gateway = shell("exec sleep 60");
        assert!(!gateway.has_ended());
        let ended = gateway.stop(Duration::from_millis(50)).unwrap();
        assert_eq!(ended.status().unwrap().signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let error = GatewayProcess::start(Command::new("/nonexistent"), Vec::new()).unwrap_err();
        assert!(matches!(error, SpawnError::Start(_)), "{error}");
    }
}
