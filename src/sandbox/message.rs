//! What a supervisor says to the processes it forked, and what they say to it.
//!
//! One sequenced-packet socket pair with the agent, one with init (or, for `exec`, with the process that waits for
//! CMD in init's place). The packets are those of [`crate::control::wire`]. An end of file on either side means
//! that the other process has ended, and is how everything ends when one of them is killed.
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::order::Order;
use crate::plan::{LinkKind, MacAddr, Reach, Reached};

/// From the agent to the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromAgent {
    /// The user namespace is there; the supervisor is to write its id maps (`--map-user auto`).
    NeedsIds,
    /// An interface is there and has its addresses; the link's descriptor is beside this message, where it has one.
    Link {
        /// The order's number.
        order: u64,
        /// The interface's name.
        name: String,
        /// What the link is.
        kind: LinkKind,
        /// The interface's Ethernet address, where it was there already.
        mac: Option<MacAddr>,
        /// The interface was there already, and stays.
        stays: bool,
        /// What the person should know, one sentence.
        notice: Option<String>,
    },
    /// What came of an order, unless it is a [`Link`](Self::Link).
    Done {
        /// The order's number.
        order: u64,
        /// Why it was not done; one sentence.
        error: Option<String>,
    },
    /// Listeners for `--reach`, one socket for each beside it. Those of the command line come before the first
    /// [`Link`](Self::Link), those of a [`ToAgent::Listen`] before its [`Done`](Self::Done).
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
    /// It has given up what it does not need ([`confine::agent`](fn@crate::confine::agent)). Comes before the first
    /// [`Link`](Self::Link).
    Confined {
        /// What it could not give up; a sentence each.
        lacks: Vec<String>,
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
    /// Make an interface. Answered with [`FromAgent::Link`], or with [`FromAgent::Done`] when it failed.
    Make {
        /// The order's number.
        order: u64,
        /// What it is to be.
        interface: Order,
    },
    /// Take an interface away. Answered with [`FromAgent::Done`], as is what follows.
    Remove {
        /// The order's number.
        order: u64,
        /// Its name.
        name: String,
        /// How it was made.
        interface: Order,
    },
    /// Have the default route lead through an interface.
    TakeDefault {
        /// The order's number.
        order: u64,
        /// Its name.
        name: String,
        /// How it was made.
        interface: Order,
    },
    /// Have answers from UDP ports leave by an interface, and no others as said before.
    Answer {
        /// The order's number.
        order: u64,
        /// Its name.
        name: String,
        /// How it was made.
        interface: Order,
        /// Ranges of ports: the first and the last of each.
        udp: Vec<(u16, u16)>,
    },
    /// Open listeners on the sandbox's loopback. What can be had comes in [`FromAgent::Reached`], and then
    /// [`FromAgent::Done`].
    Listen {
        /// The order's number.
        order: u64,
        /// At most [`MOST_FOLLOWED`](super::ports::MOST_FOLLOWED).
        reach: Vec<Reach>,
    },
    /// Such listeners are closed: who listens there from now on is the sandbox.
    Forget {
        /// At most [`MAX_FDS`](crate::sys::scm::MAX_FDS).
        reached: Vec<Reached>,
    },
    /// A gateway has died: reset the connections that went through it.
    Reset {
        /// The order's number.
        order: u64,
        /// Which those are.
        gone: Gone,
    },
}

/// What went through a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Gone {
    /// The sandbox's own addresses on its network.
    pub(super) own: Vec<IpAddr>,
    /// Who is reached without it: others on the segment, other than those in `gateways`.
    pub(super) neighbors: Vec<IpNet>,
    /// The gateway's own addresses.
    pub(super) gateways: Vec<IpAddr>,
}

impl Gone {
    /// Has a connection between these two gone through it?
    pub(super) fn includes(&self, own: IpAddr, other: IpAddr) -> bool {
        let is_neighbor = self.neighbors.iter().any(|net| net.contains(&other)) && !self.gateways.contains(&other);
        self.own.contains(&own) && !is_neighbor
    }
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
    /// CMD runs, and who minds it has given up what that does not take.
    Started {
        /// But for this; a sentence each.
        lacks: Vec<String>,
    },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_through_a_gateway_is_all_but_neighbors() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let gone = Gone {
            own: vec![ip("10.176.0.2"), ip("fd00::2")],
            neighbors: vec!["10.176.0.0/20".parse().unwrap(), "fd00::/64".parse().unwrap()],
            gateways: vec![ip("10.176.0.1"), ip("fd00::1")],
        };
        for (own, other, included) in [
            ("10.176.0.2", "203.0.113.9", true),
            ("10.176.0.2", "10.176.0.1", true),
            ("10.176.0.2", "10.176.0.3", false),
            ("10.177.0.2", "203.0.113.9", false),
            ("127.0.0.1", "127.0.0.1", false),
            ("fd00::2", "2001:db8::9", true),
            ("fd00::2", "fd00::1", true),
            ("fd00::2", "fd00::3", false),
        ] {
            assert_eq!(gone.includes(ip(own), ip(other)), included, "{own} {other}");
        }
    }
}
