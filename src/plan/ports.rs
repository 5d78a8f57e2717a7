//! Ports: what was asked to be published or reached, and what came of it.
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP, where nothing is said.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// Ports from `first` to `last`, both included; neither is 0 and `first` is not larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

/// Version of the PROXY protocol (haproxy's `doc/proxy-protocol.txt`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// One `-p`: `[ADDRESS:][HOST[-HOST]:]PORT[-PORT][/PROTOCOL]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishSpec {
    /// As it was written; how it is found again.
    pub text: String,
    /// Where to listen; `None` on all addresses of the host, both families.
    pub address: Option<IpAddr>,
    /// The host's ports: as many as the sandbox's, or a range from which one free port is picked for the sandbox's
    /// only one; `None` means any free port for each.
    pub host: Option<PortRange>,
    /// The sandbox's ports.
    pub sandbox: PortRange,
    /// The protocol.
    pub protocol: Protocol,
    /// Put a PROXY header in front of each connection (TCP only).
    pub proxy: Option<ProxyVersion>,
}

/// `-p auto`: follow the sandbox's own listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Auto {
    /// On 127.0.0.1 and ::1.
    Loopback,
    /// On all addresses of the host (`auto:all`).
    All,
}

/// `--expose PORT[-PORT][/PROTOCOL]`: ports that `-P` publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expose {
    /// The sandbox's ports.
    pub ports: PortRange,
    /// The protocol.
    pub protocol: Protocol,
}

/// `--reach HOSTPORT[:PORT][/PROTOCOL]`: a port of the host's loopback that the sandbox finds on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// The port on the host's loopback.
    pub host_port: u16,
    /// The port on the sandbox's loopback.
    pub sandbox_port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

/// All that was asked for about ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// `-p`, in the order given.
    pub publish: Vec<PublishSpec>,
    /// `-p auto`.
    pub auto: Option<Auto>,
    /// `--expose`.
    pub expose: Vec<Expose>,
    /// `-P`: publish what is exposed, each at a free port.
    pub publish_exposed: bool,
    /// `--publish-from`: who may connect; empty means everybody. The host's own loopback always may.
    pub from: Vec<IpNet>,
    /// `--reach`.
    pub reach: Vec<Reach>,
}

/// Why a port is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// An option of the command line.
    Option,
    /// The API, or `tapline publish`.
    Api,
    /// `-p auto`: the sandbox listens there.
    Auto,
}

/// A published port: a socket bound on the host that leads to a port of a sandbox. One for each socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// The sandbox's id.
    pub sandbox: String,
    /// The protocol.
    pub protocol: Protocol,
    /// What the socket is bound to. `[::]` with `dual_stack` is every address of the host.
    pub host: SocketAddr,
    /// The socket takes IPv4 as well (IPV6_V6ONLY is off, ipv6(7)).
    pub dual_stack: bool,
    /// The sandbox's port.
    pub sandbox_port: u16,
    /// The PROXY header, if one is wanted.
    pub proxy: Option<ProxyVersion>,
    /// Who may connect; empty means everybody. The host's own loopback always may.
    pub from: Vec<IpNet>,
    /// The spec that asked for it.
    pub spec: String,
    /// Who asked for it.
    pub origin: Origin,
}

/// What tells published ports apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PublishedKey {
    /// The protocol.
    pub protocol: Protocol,
    /// What the socket is bound to.
    pub host: SocketAddr,
}

impl Published {
    /// What tells it apart.
    pub fn key(&self) -> PublishedKey {
        PublishedKey { protocol: self.protocol, host: self.host }
    }
}

/// A listener inside a sandbox that leads to a port of the host's loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    /// The port on the host's loopback.
    pub host_port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// What the socket inside is bound to: 127.0.0.1 or ::1.
    pub inside: SocketAddr,
}

/// Why a port could not be published or taken back, for programs and for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct PortFailure {
    /// One word that stays the same: `bad_spec`, `taken`, `privileged`, `no_such_address`, `not_published`,
    /// `exhausted`, `failed`.
    pub code: String,
    /// What, why, what to do.
    pub message: String,
}
