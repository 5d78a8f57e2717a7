//! Flows as people want to see them.
use std::net::SocketAddr;

use super::link::PortId;

/// A table of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// [`tcp`](super::tcp).
    Tcp,
    /// [`udp`](super::udp).
    Udp,
    /// [`echo`](super::echo).
    Echo,
}

impl Table {
    /// All of them, in the order in which they are listed.
    pub const ALL: [Table; 3] = [Table::Tcp, Table::Udp, Table::Echo];
}

/// One flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// The sandbox's port on the switch.
    pub port: PortId,
    /// `tcp`, `udp` or `icmp`.
    pub protocol: &'static str,
    /// A client of a published port began it, not the sandbox.
    pub published: bool,
    /// The sandbox's address and port.
    pub inside: SocketAddr,
    /// The other side, as the sandbox names it; `None` where there are several.
    pub outside: Option<SocketAddr>,
    /// `connecting`, `open`, `closing`.
    pub state: &'static str,
}
