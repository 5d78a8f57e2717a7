//! What a person asks of a running sandbox's supervisor: to connect it to another network, or to disconnect it.
//!
//! # Theory of operation
//!
//! The supervisor listens on `control.sock` in the sandbox's state directory (SOCK_SEQPACKET, mode 0600), in every mode
//! but `host` and `container`. A client connects, sends one [`Request`] and waits for one [`Reply`]; the packets are
//! those of [`super::wire`], without descriptors. The supervisor checks the client's uid (SO_PEERCRED), works on one
//! request at a time, and lets a few others wait.
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::plan::Join;

/// The socket's name in a sandbox's state directory.
pub const SOCKET: &str = "control.sock";

/// Callers that the kernel lets wait.
const BACKLOG: i32 = 16;

/// How long a client waits for the answer.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// From a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    /// Give the sandbox an interface on this network.
    Connect {
        /// Which network, and what is asked for there.
        join: Join,
    },
    /// Take the interface on this network away.
    Disconnect {
        /// The network's name.
        network: String,
    },
}

/// From the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Why it was not done, one sentence; nothing is half made then.
    pub error: Option<String>,
}

/// Listen in a sandbox's directory, whatever the length of its path; mode 0600. An old socket is replaced.
pub fn listen(entry: &Path) -> io::Result<UnixListener> {
    let path = entry.join(SOCKET);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let dir = File::open(entry)?;
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET.cloexec().nonblocking(), None)?;
    // Nobody else gets past the directory's mode 0700, so there is no moment in which the socket is open to others.
    socket.bind(&SockAddr::unix(short_path(&dir))?)?;
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)?;
    Ok(UnixListener::from(OwnedFd::from(socket)))
}

/// A path that is short enough for a socket address.
fn short_path(dir: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))
}
