//! UDP flows (RFC 768, RFC 4787).
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::{
    Segment,
    counters::DropReason,
    icmp::IcmpError,
    link::{Host, Link, Peer, PortId, UdpId},
    packet::Packet,
};

/// All UDP flows of a network.
pub struct UdpTable {}

impl UdpTable {
    /// An empty table; flows expire after `timeout` without traffic.
    pub fn new(_timeout: Duration) -> UdpTable {
        UdpTable {}
    }
    /// Flows now.
    pub fn len(&self) -> usize {
        0
    }
    /// Nothing there?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The port's flows end.
    pub fn remove_port(&mut self, _port: PortId, _host: &mut impl Host) {}
    /// A sandbox sent a UDP packet.
    pub fn handle_packet(
        &mut self,
        _now: Instant,
        _segment: &mut Segment,
        _packet: &Packet<'_>,
        _host: &mut impl Host,
        _link: &mut impl Link,
    ) -> Result<(), DropReason> {
        Err(DropReason::Protocol)
    }
    /// A datagram came from the host.
    #[allow(clippy::too_many_arguments)]
    pub fn handle_datagram(
        &mut self,
        _now: Instant,
        _segment: &mut Segment,
        _flow: UdpId,
        _from: SocketAddr,
        _payload: &[u8],
        _segment_size: u16,
        _tos: u8,
        _link: &mut impl Link,
    ) {
    }
    /// An ICMP error came.
    #[allow(clippy::too_many_arguments)]
    pub fn handle_error(
        &mut self,
        _now: Instant,
        _segment: &mut Segment,
        _flow: UdpId,
        _to: SocketAddr,
        _error: IcmpError,
        _offender: Option<IpAddr>,
        _payload: &[u8],
        _link: &mut impl Link,
    ) {
    }
    /// When the next flow may expire.
    pub fn next_timeout(&self) -> Option<Instant> {
        None
    }
    /// Expire flows.
    pub fn handle_timeout(&mut self, _now: Instant, _host: &mut impl Host) {}
}

/// Send a datagram (or, with `segment_size` not 0, several of that size) to a sandbox, in fragments where it is
/// larger than the MTU.
#[allow(clippy::too_many_arguments)]
pub fn send_to_sandbox(
    _segment: &mut Segment,
    _peer: Peer,
    _from: SocketAddr,
    _to: SocketAddr,
    _payload: &[u8],
    _segment_size: u16,
    _tos: u8,
    _link: &mut impl Link,
) {
}
