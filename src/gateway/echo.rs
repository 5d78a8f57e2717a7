//! Ping flows: echo requests to hosts outside, through the host's ping sockets.
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{
    Segment,
    counters::DropReason,
    icmp::IcmpError,
    link::{EchoId, Host, Link, PortId},
    packet::Packet,
};

/// All ping flows of a network.
pub struct EchoTable {}

impl EchoTable {
    /// An empty table; flows expire after `timeout` without traffic.
    pub fn new(_timeout: Duration) -> EchoTable {
        EchoTable {}
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
    /// A sandbox sent an echo request for somewhere outside.
    pub fn handle_request(
        &mut self,
        _now: Instant,
        _segment: &mut Segment,
        _packet: &Packet<'_>,
        _host: &mut impl Host,
        _link: &mut impl Link,
    ) -> Result<(), DropReason> {
        Err(DropReason::Protocol)
    }
    /// An echo reply came.
    #[allow(clippy::too_many_arguments)]
    pub fn handle_reply(
        &mut self,
        _now: Instant,
        _segment: &mut Segment,
        _flow: EchoId,
        _sequence: u16,
        _data: &[u8],
        _hop_limit: u8,
        _link: &mut impl Link,
    ) {
    }
    /// An ICMP error came.
    #[allow(clippy::too_many_arguments)]
    pub fn handle_error(
        &mut self,
        _now: Instant,
        _segment: &mut Segment,
        _flow: EchoId,
        _sequence: u16,
        _error: IcmpError,
        _offender: Option<IpAddr>,
        _data: &[u8],
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
