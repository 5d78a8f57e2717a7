//! What a supervisor says to the processes it forked, and what they say to it.
//!
//! One sequenced-packet socket pair with the agent, one with init (or, for `exec`, with the process that waits for
//! CMD in init's place). The packets are those of [`crate::control::wire`]. An end of file on either side means
//! that the other process has ended, and is how everything ends when one of them is killed.
use serde::{Deserialize, Serialize};

use crate::plan::{LinkKind, Reached};

/// From the agent to the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromAgent {
    /// The user namespace is there; the supervisor is to write its id maps (`--map-user auto`).
    NeedsIds,
    /// The interface is there and has its addresses; the link's descriptor is beside this message.
    Link {
        /// What the descriptor is.
        kind: LinkKind,
        /// What the person should know, one sentence.
        notice: Option<String>,
    },
    /// Listeners for `--reach`, one socket for each beside it. All of them come before [`Link`](Self::Link).
    Reached {
        /// At most [`MAX_FDS`](crate::sys::scm::MAX_FDS).
        reached: Vec<Reached>,
    },
    /// What the sandbox listens on now, for `-p auto`.
    Listeners {
        /// TCP ports.
        tcp: Vec<u16>,
        /// UDP ports.
        udp: Vec<u16>,
    },
    /// Something the person should know, one sentence.
    Notice {
        /// The sentence.
        text: String,
    },
    /// Init has been forked.
    Init {
        /// Its PID, as the host's PID namespace counts.
        pid: i32,
    },
    /// Init has ended.
    InitEnded {
        /// The signal that ended it, if one did.
        signal: Option<i32>,
    },
    /// It cannot be done; one sentence.
    Failed {
        /// What, why, what to do.
        text: String,
    },
}

/// From the supervisor to the agent.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToAgent {
    /// The id maps are written.
    IdsMapped,
    /// Make sockets for this gateway, one descriptor: the connection to it, which speaks
    /// [`publish::inside`](crate::publish::inside). It takes the place of an earlier one.
    Inside,
}

/// From init to the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromInit {
    /// Something the person should know, one sentence.
    Notice {
        /// The sentence.
        text: String,
    },
    /// Mounts and names are made; waits for [`ToInit::Go`]. Beside it, where they are the sandbox's own, its hosts and
    /// resolv.conf, open for reading and writing.
    Ready,
    /// It cannot be done; one sentence.
    Failed {
        /// What, why, what to do.
        text: String,
    },
    /// CMD runs.
    Started,
    /// CMD could not be executed.
    NotExecuted {
        /// Why (errno(3)).
        errno: i32,
    },
    /// CMD was stopped by a signal.
    Stopped,
    /// CMD has ended.
    Exited {
        /// As a shell has it: the exit status, or 128 and the signal's number.
        status: i32,
        /// A signal ended it.
        by_signal: bool,
    },
}

/// From the supervisor to init.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToInit {
    /// Start CMD.
    Go,
    /// Send CMD a signal.
    Signal {
        /// Its number.
        number: i32,
    },
}
