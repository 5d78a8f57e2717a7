//! The attach protocol: what a supervisor and a gateway say to each other.
//!
//! One Unix SOCK_SEQPACKET connection for each endpoint; a message is one packet of JSON (at most
//! [`MAX_MESSAGE`] bytes), with descriptors beside it (SCM_RIGHTS) where the message says so. The supervisor
//! speaks first ([`ToGateway::Attach`]); the gateway answers [`FromGateway::Attached`] or
//! [`FromGateway::Refused`]. Afterwards either side may speak at any time. When the connection closes the
//! sandbox has ended and the gateway lets go of everything of it; a private gateway then ends itself.
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::plan::{Endpoint, HostView, LinkKind, Network, PortFailure, ProxyVersion, Published, PublishedKey, Reached};

/// Largest message in bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// From a supervisor.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant)]
pub enum ToGateway {
    /// Serve this sandbox. Descriptors beside it, in this order: the link, where it has one (a TAP queue, or the packet
    /// socket with its ring not yet made), then, where `api` is true, a listening Unix stream socket for the API,
    /// then, where `capture` is true, the file that every frame is written to (see
    /// [`observe::capture`](crate::observe::capture)).
    Attach {
        /// The segment.
        network: Network,
        /// The sandbox's place on it.
        endpoint: Endpoint,
        /// What the link is.
        link: LinkKind,
        /// The host as it is now.
        host: HostView,
        /// A listening socket for the API is among the descriptors.
        api: bool,
        /// A file for a capture is among the descriptors. Only for a network of the sandbox's own.
        #[serde(default)]
        capture: bool,
    },
    /// The host's addresses or resolvers have changed.
    HostChanged {
        /// The host as it is now.
        host: HostView,
    },
    /// The agent that makes sockets inside, one descriptor: a SOCK_SEQPACKET connection to it, which speaks
    /// [`publish::inside`](crate::publish::inside). A later one takes the place of an earlier one.
    Inside,
    /// Serve these ports. One bound socket for each beside it, in their order; TCP sockets listen already.
    /// Answered with [`FromGateway::Done`].
    Publish {
        /// Comes back with the answer.
        request: u64,
        /// At most [`MAX_FDS`](crate::sys::scm::MAX_FDS).
        ports: Vec<Published>,
    },
    /// Close these ports' sockets; connections that exist go on. Answered with [`FromGateway::Done`] when they
    /// are closed.
    Unpublish {
        /// Comes back with the answer.
        request: u64,
        /// Which; those that are not known are passed over.
        ports: Vec<PublishedKey>,
    },
    /// Serve these listeners that the agent made inside; one bound socket for each beside it.
    Reach {
        /// At most [`MAX_FDS`](crate::sys::scm::MAX_FDS).
        reached: Vec<Reached>,
    },
    /// Close these listeners inside; connections that exist go on. Answered with [`FromGateway::Done`] when they are
    /// closed.
    Unreach {
        /// Comes back with the answer.
        request: u64,
        /// Which; those that are not known are passed over.
        reached: Vec<Reached>,
    },
    /// Serve the sandbox's API here from now on, one descriptor: a listening Unix stream socket. Said when the endpoint
    /// that had it has left, or when the one before is lost with its directory.
    Api,
    /// Listen here too, one descriptor: a listening SOCK_SEQPACKET socket, where supervisors find this gateway again
    /// when the runtime directory was removed. Only for a gateway of shared networks.
    Listen,
    /// What came of [`FromGateway::WantPublish`] or [`FromGateway::WantUnpublish`]. By then the gateway has had
    /// every [`Publish`](Self::Publish) or [`Unpublish`](Self::Unpublish) that belongs to it.
    Answer {
        /// The request's number.
        request: u64,
        /// Why it was not done; then nothing was.
        failure: Option<PortFailure>,
    },
}

/// From a gateway.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromGateway {
    /// The gateway has gone on in another process, a child of whoever started the first, which has ended or is about to. A
    /// pidfd of it beside this. The first message there is, if at all; no answer to anything.
    Moved,
    /// Frames are being carried.
    Attached {
        /// What the gateway could not give up, and why; a sentence for each. Empty when it is confined in full.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        lacks: Vec<String>,
    },
    /// The sandbox cannot be served; one sentence for the person.
    Refused {
        /// What, why, what to do.
        reason: String,
    },
    /// What came of [`ToGateway::Publish`], [`ToGateway::Unpublish`] or [`ToGateway::Unreach`].
    Done {
        /// The request's number.
        request: u64,
        /// Why it was not done; one sentence.
        error: Option<String>,
    },
    /// Somebody asked over the API for a port to be published: bind it and send [`ToGateway::Publish`], then
    /// [`ToGateway::Answer`].
    WantPublish {
        /// Comes back with the answer.
        request: u64,
        /// As for `-p`.
        spec: String,
        /// As for `--proxy-protocol`.
        proxy: Option<ProxyVersion>,
        /// As for `--publish-from`; empty means what the sandbox was started with.
        from: Vec<IpNet>,
    },
    /// Likewise, for taking back what a spec has published.
    WantUnpublish {
        /// Comes back with the answer.
        request: u64,
        /// As for `-p`.
        spec: String,
    },
    /// The addresses of a sandbox that this one has a link to; said when it attaches, and whenever they change.
    Linked {
        /// The other sandbox's name.
        sandbox: String,
        /// Its addresses on this network; empty when it has ended.
        addresses: Vec<IpAddr>,
    },
    /// Something the person should know once, for instance that ping sockets are closed.
    Notice {
        /// One sentence.
        text: String,
    },
}
