//! Where the gateway of shared networks is found, and how it comes to be.
//!
//! # Theory of operation
//!
//! All shared networks of a user in a host network namespace have one gateway. It listens at `gateway.sock` in the
//! state directory ([`super::state`]), in whichever of its places could be used when it was started:
//!
//! ```text
//! <root>/<inode of the host's network namespace>/
//!     gateway.sock   bound by whoever starts a gateway; left behind when it ends
//!     gateway.lock   held (flock) by whoever is starting one
//!     gateway.log    what gateways say: the one last started, and others before it as long as it is short
//! ```
//!
//! [`StateDir::reach_gateway`] connects to the first that answers. Where none does it takes the locks, looks again,
//! because somebody else may have been quicker, binds the socket, starts a gateway with it, and waits until that listens.
//! So twenty who come at once get one gateway, and a socket that nobody listens at is replaced.
//!
//! A gateway must not end with the shell, the session or the unit that happened to start it. It is started in a
//! session of its own and forks once more, so that it is nobody's child; and where the user's systemd runs it is put
//! into a scope of its own (`systemd-run --user --scope`), because the end of a unit ends all that is in its cgroup.
//! When systemd-run fails, or takes longer than [`SYSTEMD_PATIENCE`], the gateway is started without.
//!
//! A gateway that ends takes nothing with it: whoever connects and is not heard before the connection closes calls
//! [`StateDir::reach_gateway`] again.
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, SockAddr, Socket, Type};

use super::client::SpawnError;
use super::gateway::BACKLOG;
use super::state::{StateDir, bind_private, short_path};
use crate::observe::logging;
use crate::plan::Logging;
use crate::sys::spawn;

const SOCKET: &str = "gateway.sock";
const LOCK: &str = "gateway.lock";
const LOG: &str = "gateway.log";
/// A log of more bytes than that is begun anew with the next gateway.
const LONG_LOG: u64 = 64 * 1024;

/// How long a connection may wait for room among those.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// How long systemd-run may take.
const SYSTEMD_PATIENCE: Duration = Duration::from_secs(3);
/// How long a gateway may take to be ready.
const START_PATIENCE: Duration = Duration::from_secs(10);

/// How a gateway is started.
#[derive(Clone, Debug)]
pub struct Starter {
    /// The program.
    pub program: PathBuf,
    /// Under which name; `None` means its path.
    pub name: Option<OsString>,
    /// Its arguments; `--listen N` and `after` follow.
    pub arguments: Vec<OsString>,
    /// The last arguments.
    pub after: Vec<OsString>,
    /// The program that puts it into a scope of its own, and what it needs of the environment.
    pub systemd_run: Option<(PathBuf, Vec<(OsString, OsString)>)>,
}

impl Starter {
    /// This same program, in a scope of its own where the user's systemd runs.
    pub fn ours(how: Logging) -> Starter {
        Starter {
            program: "/proc/self/exe".into(),
            // Not the name that this program was called by, which may be another tool's.
            name: Some("tapline".into()),
            arguments: vec!["gateway".into()],
            after: logging::arguments(how),
            systemd_run: systemd_run(),
        }
    }

    /// Start a gateway that is to listen at `listener`, which is bound; returns when it can be connected to.
    fn start(&self, listener: &OwnedFd, log: &File) -> Result<(), SpawnError> {
        if let Some((systemd_run, environment)) = &self.systemd_run
            && let Some(program) = self.path_for_others()
        {
            let mut command = Command::new(systemd_run);
            command.args(["--user", "--scope", "--quiet", "--collect", "--"]).arg(program);
            match self.run(command, environment, listener, log, SYSTEMD_PATIENCE) {
                Ok(status) if status.success() => return Ok(()),
                Ok(status) => tracing::info!("systemd-run failed ({status}): the gateway is started without a scope"),
                Err(error) => tracing::info!("systemd-run: {error}: the gateway is started without a scope"),
            }
        }
        let mut command = Command::new(&self.program);
        if let Some(name) = &self.name {
            command.arg0(name);
        }
        let status = self.run(command, &[], listener, log, START_PATIENCE).map_err(SpawnError::Start)?;
        match status.success() {
            true => Ok(()),
            false => Err(SpawnError::Ended(status.to_string())),
        }
    }

    /// The program's path, as it is for one that is not this process.
    fn path_for_others(&self) -> Option<PathBuf> {
        let path = fs::read_link(&self.program).unwrap_or_else(|_| self.program.clone());
        let same = |one: fs::Metadata, other: fs::Metadata| (one.dev(), one.ino()) == (other.dev(), other.ino());
        // It may have been replaced since it was started, or be seen by this process alone.
        same(fs::metadata(&path).ok()?, fs::metadata(&self.program).ok()?).then_some(path)
    }

    /// Run the command, whose first process ends when the gateway is ready.
    fn run(
        &self,
        mut command: Command,
        environment: &[(OsString, OsString)],
        listener: &OwnedFd,
        log: &File,
        patience: Duration,
    ) -> io::Result<ExitStatus> {
        command
            .args(&self.arguments)
            .args(["--listen".to_owned(), listener.as_raw_fd().to_string()])
            .args(&self.after)
            .env_clear()
            .envs(environment.iter().cloned())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.try_clone()?);
        spawn::isolate(&mut command, listener.as_fd());
        let mut child = command.spawn()?;
        let pidfd = spawn::pidfd_open(child.id())?;
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        let ended = loop {
            match poll(&mut fds, timeout) {
                Err(nix::Error::EINTR) => {}
                other => break matches!(other, Ok(1..)),
            }
        };
        if !ended {
            child.kill()?;
            child.wait()?;
            return Err(io::ErrorKind::TimedOut.into());
        }
        child.wait()
    }
}

/// systemd-run, where there is one and the user's systemd runs.
fn systemd_run() -> Option<(PathBuf, Vec<(OsString, OsString)>)> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR")?;
    fs::symlink_metadata(Path::new(&runtime).join("systemd/private")).ok()?;
    let path = std::env::var_os("PATH")?;
    let program = std::env::split_paths(&path)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join("systemd-run"))
        .find(|program| fs::metadata(program).is_ok_and(|meta| meta.is_file() && meta.mode() & 0o111 != 0))?;
    let needed = ["XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "PATH"];
    let environment = needed.iter().filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?)));
    Some((program, environment.collect()))
}

impl StateDir {
    /// A connection to the gateway of shared networks, which is started if there is none.
    pub fn reach_gateway(&self, starter: &Starter) -> Result<OwnedFd, SpawnError> {
        if let Some(connection) = self.find_gateway() {
            return Ok(connection);
        }
        let base = self.usable_base().map_err(SpawnError::State)?;
        // In the same order by everybody, so that nobody waits for one who waits for him.
        let mut locks = Vec::new();
        for base in self.existing_bases() {
            locks.push(lock(&base.join(LOCK))?);
        }
        if let Some(connection) = self.find_gateway() {
            return Ok(connection);
        }
        let listener = OwnedFd::from(bind(&base)?);
        let log = open_log(&base.join(LOG))?;
        starter.start(&listener, &log)?;
        drop(listener);
        connect(&base).map_err(|error| SpawnError::File("connect to", base.join(SOCKET), error))
    }

    /// A socket where the gateway is to be found from now on, for [`ToGateway::Listen`](super::messages::ToGateway);
    /// `None` where one is found already.
    pub fn bind_gateway(&self) -> Result<Option<OwnedFd>, SpawnError> {
        let base = self.usable_base().map_err(SpawnError::State)?;
        let _lock = lock(&base.join(LOCK))?;
        if connect(&base).is_ok() {
            return Ok(None);
        }
        let socket = bind(&base)?;
        // At once: until the gateway has it, whoever comes is to wait, and not to start another.
        socket.listen(BACKLOG).map_err(|error| SpawnError::File("listen at", base.join(SOCKET), error))?;
        Ok(Some(socket.into()))
    }

    /// Has somebody taken away the place where the gateway is found? (The socket of one that has ended stays.)
    pub fn has_lost_gateway(&self) -> bool {
        !self.existing_bases().any(|base| fs::symlink_metadata(base.join(SOCKET)).is_ok())
    }

    /// A connection to a gateway that is there.
    fn find_gateway(&self) -> Option<OwnedFd> {
        self.existing_bases().find_map(|base| connect(&base).ok())
    }
}

fn lock(path: &Path) -> Result<File, SpawnError> {
    let failed = |what| move |error| SpawnError::File(what, path.to_owned(), error);
    let file = private_file().truncate(false).open(path).map_err(failed("open"))?;
    file.lock().map_err(failed("lock"))?;
    Ok(file)
}

/// A file that only its owner may read, made if need be.
fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options
}

fn open_log(path: &Path) -> Result<File, SpawnError> {
    let failed = |error| SpawnError::File("write", path.to_owned(), error);
    let log = private_file().append(true).open(path).map_err(failed)?;
    // The last words of one that has just died stay there.
    if log.metadata().map_err(failed)?.len() > LONG_LOG {
        log.set_len(0).map_err(failed)?;
    }
    Ok(log)
}

fn seqpacket() -> io::Result<Socket> {
    Socket::new(Domain::UNIX, Type::SEQPACKET, None)
}

/// The socket's address, whatever the length of its path, as long as the directory is open.
fn address(directory: &File) -> io::Result<SockAddr> {
    SockAddr::unix(short_path(directory, SOCKET))
}

fn connect(base: &Path) -> io::Result<OwnedFd> {
    let directory = File::open(base)?;
    let socket = seqpacket()?;
    // A gateway that accepts nobody must not stop whoever asks.
    socket.set_write_timeout(Some(CONNECT_PATIENCE))?;
    socket.connect(&address(&directory)?)?;
    socket.set_write_timeout(None)?;
    Ok(socket.into())
}

/// Bind the socket, in the place of one that nobody listens at. The caller holds the lock.
fn bind(base: &Path) -> Result<Socket, SpawnError> {
    let path = base.join(SOCKET);
    let failed = |what| {
        let path = path.clone();
        move |error| SpawnError::File(what, path, error)
    };
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("replace")(error)),
        _ => {}
    }
    let directory = File::open(base).map_err(|error| SpawnError::File("open", base.to_owned(), error))?;
    let socket = seqpacket().map_err(SpawnError::Socket)?;
    bind_private(&socket, &directory, SOCKET).map_err(failed("bind"))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_gateways_have_said_stays_until_it_is_much() {
        let path = std::env::temp_dir().join(format!("tapline-gateway-log-{}", std::process::id()));
        open_log(&path).unwrap().write_all(b"last words\n").unwrap();
        open_log(&path).unwrap().write_all(b"and the next one's\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "last words\nand the next one's\n");
        open_log(&path).unwrap().write_all(&vec![b'x'; LONG_LOG as usize]).unwrap();
        assert_eq!(open_log(&path).unwrap().metadata().unwrap().len(), 0);
        fs::remove_file(path).unwrap();
    }
}
