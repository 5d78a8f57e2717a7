//! What a person asks of a running sandbox's supervisor: to connect it to another network, or to disconnect it.
//!
//! # Theory of operation
//!
//! The supervisor listens on `control.sock` in the sandbox's state directory (SOCK_SEQPACKET, mode 0600), in every mode
//! but `host` and `container`. A client connects, sends one [`Request`] and waits for one [`Reply`]; the packets are
//! those of [`super::wire`], without descriptors. The supervisor checks the client's uid (SO_PEERCRED), works on one
//! request at a time, and lets a few others wait.
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::plan::Join;

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
