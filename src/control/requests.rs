//! What a person asks of a running sandbox's supervisor: to connect it to another network, or to disconnect it.
//!
//! # Theory of operation
//!
//! The supervisor listens on `control.sock` in the sandbox's state directory (SOCK_SEQPACKET, mode 0600), in every mode
//! but `host` and `container`. A client connects, sends one [`Request`] and waits for one [`Reply`]; the packets are
//! those of [`super::wire`], without descriptors. The supervisor checks the client's uid (SO_PEERCRED), works on one
//! request at a time, and lets a few others wait.
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

use super::state::bind_private;
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
    bind_private(&socket, &dir, SOCKET)?;
    socket.listen(BACKLOG)?;
    Ok(UnixListener::from(OwnedFd::from(socket)))
}
