//! TCP flows.
use std::net::IpAddr;
use std::time::Instant;

use super::{
    Segment,
    counters::DropReason,
    link::{Host, HostError, Link, PortId, TcpId},
    packet::Packet,
};
use crate::plan::Network;

/// All TCP flows of a network.
pub struct TcpTable {}

impl TcpTable {
    /// An empty table.
    pub fn new(_now: Instant, _network: &Network) -> TcpTable {
        TcpTable {}
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
    /// A sandbox sent a segment.
    pub fn handle_segment(
        &mut self,
        _now: Instant,
        _segment: &mut Segment,
        _packet: &Packet<'_>,
        _host: &mut impl Host,
        _link: &mut impl Link,
    ) -> Result<(), DropReason> {
        Err(DropReason::Protocol)
    }
    /// The host's connect has an outcome.
    pub fn handle_outcome(
        &mut self,
        _now: Instant,
        _segment: &mut Segment,
        _flow: TcpId,
        _outcome: Result<(), HostError>,
        _offender: Option<IpAddr>,
        _link: &mut impl Link,
    ) {
    }
    /// When to call `handle_timeout`.
    pub fn next_timeout(&mut self) -> Option<Instant> {
        None
    }
    /// Time has passed.
    pub fn handle_timeout(&mut self, _now: Instant, _host: &mut impl Host) {}
}
