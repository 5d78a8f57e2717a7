//! The attach protocol: what a supervisor and a gateway say to each other.
//!
//! One Unix SOCK_SEQPACKET connection for each sandbox; a message is one packet of JSON (at most
//! [`MAX_MESSAGE`] bytes), with descriptors beside it (SCM_RIGHTS) where the message says so. The supervisor
//! speaks first ([`ToGateway::Attach`]); the gateway answers [`FromGateway::Attached`] or
//! [`FromGateway::Refused`]. Afterwards either side may speak at any time. When the connection closes the
//! sandbox has ended and the gateway lets go of everything of it; a private gateway then ends itself.
use serde::{Deserialize, Serialize};

use crate::plan::{Endpoint, HostView, LinkKind, Network};

/// Largest message in bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// From a supervisor.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant)]
pub enum ToGateway {
    /// Serve this sandbox. Descriptors beside it, in this order: the link (a TAP queue, or the packet socket
    /// with its ring not yet made), then, where `api` is true, a listening Unix stream socket for the API.
    Attach {
        /// The segment.
        network: Network,
        /// The sandbox's place on it.
        endpoint: Endpoint,
        /// What the link descriptor is.
        link: LinkKind,
        /// The host as it is now.
        host: HostView,
        /// A listening socket for the API is among the descriptors.
        api: bool,
    },
    /// The host's addresses or resolvers have changed.
    HostChanged {
        /// The host as it is now.
        host: HostView,
    },
}

/// From a gateway.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromGateway {
    /// Frames are being carried.
    Attached,
    /// The sandbox cannot be served; one sentence for the person.
    Refused {
        /// What, why, what to do.
        reason: String,
    },
    /// Something the person should know once, for instance that ping sockets are closed.
    Notice {
        /// One sentence.
        text: String,
    },
}
