//! ICMP and ICMPv6: echo to the gateway, errors to sandboxes (RFC 792, RFC 4443, RFC 1812 4.3).
use std::net::IpAddr;
use std::time::Instant;

use super::{
    Segment,
    counters::DropReason,
    echo::EchoTable,
    link::{Host, Link, Peer},
    packet::Packet,
};

/// An ICMP error, of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// No route to the network (v4 3/0, v6 1/0).
    NetUnreachable,
    /// No route to the host (v4 3/1, v6 1/3).
    HostUnreachable,
    /// Protocol unreachable (v4 3/2, v6 4/1).
    ProtocolUnreachable,
    /// Port unreachable (v4 3/3, v6 1/4).
    PortUnreachable,
    /// Communication administratively prohibited (v4 3/13, v6 1/1).
    Prohibited,
    /// Fragmentation needed (v4 3/4), packet too big (v6 2/0), with the next hop's MTU in bytes.
    PacketTooBig(u32),
    /// Hop limit used up in transit (v4 11/0, v6 3/0).
    HopLimitExceeded,
    /// Reassembly time exceeded (v4 11/1, v6 3/1).
    ReassemblyTimeExceeded,
}

/// A bucket of ICMP errors that may still be sent (RFC 4443, 2.4 f).
pub struct RateLimit {}

impl RateLimit {
    /// A full bucket.
    pub fn new(_now: Instant) -> RateLimit {
        RateLimit {}
    }
}

/// Tell a sandbox that `original` (a packet it sent, from its IP header on; at least the header and eight
/// bytes) met `error`. `offender` is where the error comes from; `None` means the gateway itself.
pub fn send_error(
    _now: Instant,
    _segment: &mut Segment,
    _peer: Peer,
    _offender: Option<IpAddr>,
    _error: IcmpError,
    _original: &[u8],
    _link: &mut impl Link,
) {
}

/// A sandbox sent an ICMP or ICMPv6 message.
pub fn handle(
    _now: Instant,
    _segment: &mut Segment,
    _echo: &mut EchoTable,
    _packet: &Packet<'_>,
    _host: &mut impl Host,
    _link: &mut impl Link,
) -> Result<(), DropReason> {
    Err(DropReason::Protocol)
}

/// A protocol we do not carry: protocol unreachable.
pub fn refuse_protocol(
    now: Instant,
    segment: &mut Segment,
    packet: &Packet<'_>,
    link: &mut impl Link,
) -> Result<(), DropReason> {
    send_error(now, segment, packet.peer, None, IcmpError::ProtocolUnreachable, packet.bytes, link);
    Err(DropReason::Protocol)
}
