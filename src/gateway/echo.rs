//! Ping flows: echo requests to hosts outside, through the host's ping sockets.
//!
//! # Theory of operation
//!
//! A flow is one sandbox address, one destination and one echo identifier (RFC 5508, 3). The host's socket has
//! an identifier of its own, which the kernel chose; the flow keeps the sandbox's and puts it back on replies and
//! on the requests that ICMP errors quote. Sequence numbers, data, hop limit and type of service pass unchanged,
//! but for the one hop that the gateway is.
//!
//! Pings to the gateway's own addresses never come here: [`icmp`] answers them. The policy judges a flow's
//! destination when the flow begins, as with UDP. Where the host allows no ping sockets the
//! sandbox is told that its request is prohibited.
//!
//! Timers and limits: a flow ends when it was idle for a minute (RFC 5508 REQ-2; sooner where UDP flows are to
//! end sooner). Each sandbox has at most [`MOST_FLOWS`]; the one idle longest makes room.
use std::net::IpAddr;
use std::time::{Duration, Instant};

use smoltcp::wire::IpProtocol;

use super::flows::{FlowTable, Idle};
use super::quote::Quote;
use super::udp::{host_error, offender_as_named, refusal_error};
use super::{
    Segment,
    counters::DropReason,
    emit,
    icmp::{self, IcmpError},
    link::{Datagram, EchoId, Host, HostError, Link, Peer, PortId},
    packet::Packet,
};
use crate::policy::{self, Refusal};

/// Most ping flows of a sandbox.
pub const MOST_FLOWS: usize = 512;
/// How long a flow may be idle.
const TIMEOUT: Duration = Duration::from_secs(60);
const HEADER: usize = 8;
const CHECKSUM_AT: usize = 2;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    port: PortId,
    source: IpAddr,
    destination: IpAddr,
    identifier: u16,
}

struct Flow {
    peer: Peer,
    key: Key,
    leads_to: IpAddr,
}

/// All ping flows of a network.
pub struct EchoTable {
    flows: FlowTable<Key, Flow>,
}

impl EchoTable {
    /// An empty table; flows expire after `timeout` without traffic, or a minute.
    pub fn new(timeout: Duration) -> EchoTable {
        let timeout = timeout.min(TIMEOUT);
        EchoTable { flows: FlowTable::new(timeout, timeout) }
    }

    /// Flows now.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Nothing there?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The port's flows end.
    pub fn remove_port(&mut self, port: PortId, host: &mut impl Host) {
        while let Some(index) = self.flows.oldest(port) {
            self.end(index, host);
        }
        self.flows.forget_port(port);
    }

    fn end(&mut self, index: u32, host: &mut impl Host) {
        if let Some(generation) = self.flows.remove(index) {
            host.echo_close(EchoId { index, generation });
        }
    }

    /// A sandbox sent an echo request for somewhere outside. Its checksum and hop limit have been looked at.
    pub fn handle_request(
        &mut self,
        now: Instant,
        segment: &mut Segment,
        packet: &Packet<'_>,
        host: &mut impl Host,
        link: &mut impl Link,
    ) -> Result<(), DropReason> {
        let (&[_, _, _, _, i0, i1, s0, s1], data) =
            packet.payload().split_first_chunk::<HEADER>().ok_or(DropReason::Malformed)?;
        let key = Key {
            port: packet.peer.port,
            source: packet.src,
            destination: packet.dst,
            identifier: u16::from_be_bytes([i0, i1]),
        };
        let known = self.flows.find(&key);
        let cached = known.and_then(|at| Some(self.flows.placed(at)?.1.leads_to));
        let verdict = cached.map_or_else(|| policy::judge(&segment.network, &segment.host, packet.dst), Ok);
        let leads_to = verdict.map_err(|refusal| {
            if refusal == Refusal::Multicast {
                return DropReason::Multicast;
            }
            icmp::send_error(now, segment, packet.peer, None, refusal_error(refusal), packet.bytes, link);
            DropReason::Refused
        })?;
        let datagram = Datagram {
            payload: data,
            segment: 0,
            hop_limit: packet.hop_limit.saturating_sub(1).max(1),
            tos: packet.tos,
            dont_fragment: packet.dont_fragment,
        };
        let index = known.unwrap_or_else(|| {
            if self.flows.count(key.port) >= MOST_FLOWS
                && let Some(oldest) = self.flows.oldest(key.port)
            {
                self.end(oldest, host);
            }
            self.flows.insert(now, key.port, key, Flow { peer: packet.peer, key, leads_to }, Idle::Long)
        });
        self.flows.touch(now, index, Idle::Long);
        let Some((generation, flow)) = self.flows.placed(index) else { return Err(DropReason::FlowLimit) };
        flow.peer = packet.peer;
        let id = EchoId { index, generation };
        let sequence = u16::from_be_bytes([s0, s1]);
        let mut sent = host.echo_send(id, leads_to, sequence, datagram);
        if known.is_none() && sent == Err(HostError::Exhausted) {
            // No descriptor left: the flow idle longest makes room, unless this is the only one.
            if let Some(oldest) = self.flows.oldest(key.port).filter(|oldest| *oldest != index) {
                self.end(oldest, host);
                sent = host.echo_send(id, leads_to, sequence, datagram);
            }
        }
        let Err(error) = sent else { return Ok(()) };
        if known.is_none() && !matches!(error, HostError::TooBig(_)) {
            self.end(index, host);
        }
        if let Some(error) = host_error(error) {
            icmp::send_error(now, segment, packet.peer, None, error, packet.bytes, link);
        }
        Err(match (error, known) {
            (HostError::Unsupported, _) => DropReason::PingClosed,
            (HostError::Exhausted, None) => DropReason::FlowLimit,
            (HostError::Exhausted, Some(_)) => DropReason::NoRoom,
            _ => DropReason::HostError,
        })
    }

    /// An echo reply came.
    #[allow(clippy::too_many_arguments)]
    pub fn handle_reply(
        &mut self,
        now: Instant,
        segment: &mut Segment,
        flow: EchoId,
        sequence: u16,
        data: &[u8],
        hop_limit: u8,
        link: &mut impl Link,
    ) {
        let Some(found) = self.flows.at(flow.index, flow.generation) else { return };
        let (peer, key) = (found.peer, found.key);
        self.flows.touch(now, flow.index, Idle::Long);
        if !link.has_room(peer.port) {
            return segment.counters.drop(DropReason::NoRoom);
        }
        let (protocol, kind) = match key.source {
            IpAddr::V4(_) => (IpProtocol::Icmp, 0),
            IpAddr::V6(_) => (IpProtocol::Icmpv6, 129),
        };
        let ip = emit::Ip {
            hop_limit: hop_limit.saturating_sub(1).max(1),
            ..emit::Ip::new(key.destination, key.source, protocol)
        };
        emit::icmp(segment, peer, &ip, echo_header(kind, key.identifier, sequence), data, link);
    }

    /// An ICMP error came.
    #[allow(clippy::too_many_arguments)]
    pub fn handle_error(
        &mut self,
        now: Instant,
        segment: &mut Segment,
        flow: EchoId,
        sequence: u16,
        error: IcmpError,
        offender: Option<IpAddr>,
        data: &[u8],
        link: &mut impl Link,
    ) {
        let Some(found) = self.flows.at(flow.index, flow.generation) else { return };
        let (peer, key, leads_to) = (found.peer, found.key, found.leads_to);
        let (protocol, kind) = match key.source {
            IpAddr::V4(_) => (IpProtocol::Icmp, 8),
            IpAddr::V6(_) => (IpProtocol::Icmpv6, 128),
        };
        let header = echo_header(kind, key.identifier, sequence);
        let Some(quote) = Quote::new(key.source, key.destination, protocol, header, CHECKSUM_AT, data) else { return };
        let offender = offender_as_named(segment, offender, key.destination, leads_to);
        icmp::send_error(now, segment, peer, offender, error, quote.bytes(), link);
    }

    /// When the next flow may expire.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.flows.next_timeout()
    }

    /// Expire flows.
    pub fn handle_timeout(&mut self, now: Instant, host: &mut impl Host) {
        while let Some(index) = self.flows.expired(now) {
            self.end(index, host);
        }
    }
}

/// An echo message's first eight bytes, checksum left out (RFC 792; RFC 4443, 4.1).
fn echo_header(kind: u8, identifier: u16, sequence: u16) -> [u8; HEADER] {
    let ([i0, i1], [s0, s1]) = (identifier.to_be_bytes(), sequence.to_be_bytes());
    [kind, 0, 0, 0, i0, i1, s0, s1]
}
