//! Namespaces, the view of `/etc`, and the processes that make and hold them: supervisor, agent, init.
//!
//! [`run`] makes a sandbox and runs a command in it, [`attach`] serves a namespace that somebody else made, [`exec`]
//! runs another command in a running sandbox, [`stop`] ends one. Each is called in a process with one thread and
//! blocks until it is done.
//!
//! | file | what it is for |
//! | --- | --- |
//! | [`userns`] | user namespaces: making one, mapping ids, why it is forbidden |
//! | [`mounts`], [`etc`] | CMD's view of the file system; resolv.conf, hosts, hostname |
//! | supervisor | the process the person started: waits for everything, passes on |
//! | agent | the process inside the namespaces that does there what only a member can |
//! | init, command | the first process of the PID namespace; CMD |
//! | uplinks, uplink | a supervisor's ways to its networks, whose gateways it replaces when they die |
//! | [`share`] | another sandbox's network, for mode `container` |
//! | [`linked`] | links to other sandboxes |
//! | seats | the sandbox's places on its networks, made of what was asked for |
//! | callers | who asks a supervisor to connect or disconnect networks |
//! | hostfwd | clients of slirp4netns' API, who ask for ports |
//! | ports | published ports as a supervisor keeps them |
//! | reach, listeners | what listens on the host is found inside; who listens in a namespace |
//! | attend | what an agent does as long as the sandbox lives |
//! | attach, [`target`] | the supervisor of `attach`; the namespace it is given |
//! | exec | joining a running sandbox, ending it |
//! | [`link`], [`order`] | an interface inside; several of them, and their routes |
//! | message | what they say to each other |
//! | signals, terminal | what the person types |
use std::io;
use std::path::PathBuf;

use crate::control::state::StateError;

mod agent;
mod attach;
mod attend;
mod callers;
mod command;
pub mod etc;
mod exec;
mod hostfwd;
mod init;
pub mod link;
pub mod linked;
mod listeners;
mod message;
pub mod mounts;
pub mod order;
mod ports;
mod reach;
mod seats;
pub mod share;
mod signals;
mod supervisor;
pub mod target;
mod terminal;
mod uplink;
mod uplinks;
pub mod userns;

pub use attach::{Ended, attach};
pub use exec::{STOP_PATIENCE, exec, stop};
pub use supervisor::run;

/// Why tapline itself failed. Each is one sentence for the person: what, why, what to do.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The state directory, or the name.
    #[error(transparent)]
    State(#[from] StateError),
    /// The user namespace or its ids.
    #[error(transparent)]
    Userns(#[from] userns::UsernsError),
    /// The namespace that was given.
    #[error(transparent)]
    Target(#[from] target::TargetError),
    /// Another sandbox's network cannot be shared.
    #[error(transparent)]
    Share(#[from] share::ShareError),
    /// A link to another sandbox cannot be made.
    #[error(transparent)]
    Linked(#[from] linked::LinkedError),
    /// The host cannot be watched.
    #[error("cannot look at the host's addresses and routes: {0}")]
    Watch(#[from] crate::sys::netlink::NetlinkError),
    /// A shared network.
    #[error(transparent)]
    Network(#[from] crate::control::networks::NetworkError),
    /// The gateway did not start.
    #[error(transparent)]
    Spawn(#[from] crate::control::client::SpawnError),
    /// The connection to the gateway, or to a process of ours, failed.
    #[error(transparent)]
    Wire(#[from] crate::control::wire::WireError),
    /// The file of `--pcap`.
    #[error(transparent)]
    Capture(#[from] crate::observe::capture::CaptureError),
    /// A port cannot be published.
    #[error(transparent)]
    Port(#[from] crate::plan::PortFailure),
    /// A supervisor cannot give up what it is to give up.
    #[error(transparent)]
    Confine(#[from] crate::confine::ConfineError),
    /// Nobody can be listened to there.
    #[error("cannot listen at {}: {error}; take another path, of 107 bytes at most", path.display())]
    Listen {
        /// The path.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The command cannot be executed.
    #[error(transparent)]
    Command(#[from] command::BadCommand),
    /// `--require-confinement`, and something is missing.
    #[error("--require-confinement: {0}")]
    Unconfined(String),
    /// A process inside failed; its sentence.
    #[error("{0}")]
    Inside(String),
    /// A process of the sandbox ended without a word.
    #[error("the sandbox's {who} ended unexpectedly{}: everything in it has ended with it", killed_by(*.signal))]
    Vanished {
        /// `agent`, `first process` or `gateway`.
        who: &'static str,
        /// The signal that ended it.
        signal: Option<i32>,
    },
    /// Somebody wanted an end of an attached namespace's network before it worked.
    #[error("{} before its network worked", early(*.0))]
    EndedEarly(Ended),
    /// The sandbox has ended, or is about to.
    #[error("the sandbox `{0}` has no process to join: it has ended, or is only just starting")]
    Gone(String),
    /// A system call failed.
    #[error("cannot {what}: {error}")]
    Io {
        /// What was tried, as a verb.
        what: &'static str,
        /// Why it failed.
        error: io::Error,
    },
}

impl SandboxError {
    fn io<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> SandboxError {
        move |error| SandboxError::Io { what, error: error.into() }
    }
}

fn early(ended: Ended) -> &'static str {
    if ended == Ended::Target { "the namespace has ended" } else { "it was ended" }
}

fn killed_by(signal: Option<i32>) -> String {
    match signal.map(nix::sys::signal::Signal::try_from) {
        Some(Ok(signal)) => format!(", killed by {}", signal.as_str()),
        _ => String::new(),
    }
}
