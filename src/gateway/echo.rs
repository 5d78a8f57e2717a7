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
//! Timers and limits: a flow ends when it was idle for as long as its network says ([`Network::ping_timeout`](crate::plan::Network)).
//! Each sandbox has at most [`MOST_FLOWS`]; the one idle longest makes room.
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use smoltcp::wire::IpProtocol;

use super::describe::Description;
use super::flows::{FlowTable, Idle};
use super::quote::Quote;
use super::udp::{host_error, offender_as_named, refusal_error};
use super::{
    Segment, cost,
    counters::DropReason,
    emit,
    icmp::{self, IcmpError},
    link::{Datagram, EchoId, Host, HostError, Link, Peer, PortId},
    packet::Packet,
};
use crate::policy::Refusal;

/// Most ping flows of a sandbox.
pub const MOST_FLOWS: usize = 512;
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
    /// An empty table; flows expire after `timeout` without traffic.
    pub fn new(timeout: Duration) -> EchoTable {
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

    /// How many places the table has, taken or not.
    pub fn places(&self) -> usize {
        self.flows.places()
    }

    /// The flow at a place, for people; its identifier stands where others have a port.
    pub fn describe(&self, place: usize) -> Option<Description> {
        let (key, _) = self.flows.look(place)?;
        Some(Description {
            port: key.port,
            protocol: "icmp",
            published: false,
            inside: SocketAddr::new(key.source, key.identifier),
            outside: Some(SocketAddr::new(key.destination, 0)),
            state: "open",
        })
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
        let verdict = cached.map_or_else(|| segment.judge(packet.peer.port, packet.dst), Ok);
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
            hop_limit: packet.hop_limit.saturating_sub(u8::from(segment.network.is_hop_to(packet.dst))).max(1),
            tos: packet.tos,
            dont_fragment: packet.dont_fragment,
        };
        segment.extra += if known.is_none() { cost::SOCKET } else { 0 };
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
            // No descriptor left: the flow idle longest of whoever has most makes room, unless this is the only one.
            if let Some(oldest) = self.flows.oldest_where_most(key.port).filter(|oldest| *oldest != index) {
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
            hop_limit: hop_limit.saturating_sub(u8::from(segment.network.is_hop_to(key.destination))).max(1),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::emit::testing::{PEER, network};
    use crate::gateway::link::Offload;
    use crate::gateway::testing::{HOST_V4, Test, echo_frame};
    use crate::plan::{Behaviour, LocalClients, Network};

    const A: &str = "10.0.2.100";
    const A6: &str = "fd00::100";

    fn ping(test: &mut Test, from: &str, to: &str, identifier: u16, sequence: u16) {
        test.frame(Offload::default(), &echo_frame(from, to, 8, identifier, sequence, b"data"));
    }

    #[test]
    fn replies_carry_the_sandboxs_identifier() {
        for (from, to, reply, at) in [(A, "192.0.2.1", 0, 34), (A6, "2001:db8::1", 129, 54)] {
            let mut test = Test::new();
            ping(&mut test, from, to, 0xabcd, 258);
            let sent = test.host.echo[0].clone();
            assert_eq!((sent.to, sent.sequence, sent.hop_limit), (to.parse().unwrap(), 258, 7));
            assert_eq!(sent.payload, b"data");
            test.gateway.handle_echo_reply(test.now, sent.flow, 258, b"data", 55, &mut test.link);
            let frame = test.link.one();
            assert_eq!((frame[at], &frame[at + 4..]), (reply, &b"\xab\xcd\x01\x02data"[..]));
            let hop_limit = if from == A { frame[22] } else { frame[21] };
            assert_eq!(hop_limit, 54, "the gateway is a hop on the way back too");
        }
    }

    #[test]
    fn each_identifier_and_destination_is_a_flow_and_ends_after_a_minute() {
        let mut test = Test::new();
        ping(&mut test, A, "192.0.2.1", 1, 1);
        ping(&mut test, A, "192.0.2.1", 2, 1);
        ping(&mut test, A, "192.0.2.2", 1, 1);
        ping(&mut test, A, "192.0.2.1", 1, 2);
        assert_eq!(test.gateway.flows().2, 3);
        assert_eq!(test.host.echo[0].flow, test.host.echo[3].flow);
        test.pass(Duration::from_secs(59));
        assert_eq!(test.gateway.flows().2, 3);
        test.pass(Duration::from_secs(1));
        assert_eq!((test.gateway.flows().2, test.host.echo_closed.len()), (0, 3));
    }

    #[test]
    fn on_a_network_of_another_tool_a_flow_ends_when_those_of_udp_do() {
        let behaviour = Behaviour { local_clients: LocalClients::Link, ..Behaviour::default() };
        let network = Network { udp_timeout: Duration::from_secs(240), behaviour, ..network(1500) };
        let mut test = Test::with(network, Default::default());
        ping(&mut test, A, "192.0.2.1", 1, 1);
        test.pass(Duration::from_secs(239));
        assert_eq!(test.gateway.flows().2, 1);
        test.pass(Duration::from_secs(1));
        assert_eq!((test.gateway.flows().2, test.host.echo_closed.len()), (0, 1));
    }

    #[test]
    fn errors_quote_the_sandboxs_own_request() {
        for (offender, seen_from) in [("203.0.113.1", "203.0.113.1"), (HOST_V4, "10.0.2.2")] {
            let mut test = Test::new();
            ping(&mut test, A, "192.0.2.1", 0xabcd, 3);
            let flow = test.host.echo[0].flow;
            let (error, offender) = (IcmpError::HopLimitExceeded, offender.parse().ok());
            test.gateway.handle_echo_error(test.now, flow, 3, error, offender, b"data", &mut test.link);
            let (from, kind, code, _, quoted) = test.error();
            assert_eq!((from, kind, code), (seen_from.parse().unwrap(), 11, 0));
            let original = echo_frame(A, "192.0.2.1", 8, 0xabcd, 3, b"data");
            assert_eq!(quoted[12..], original[26..], "addresses, echo header with its checksum, data");
        }
    }

    #[test]
    fn where_ping_is_closed_the_sandbox_is_told() {
        let mut test = Test::new();
        test.host.fail = [HostError::Unsupported].into();
        ping(&mut test, A, "192.0.2.1", 1, 1);
        let (_, kind, code, ..) = test.error();
        assert_eq!((kind, code, test.dropped(DropReason::PingClosed), test.gateway.flows().2), (3, 13, 1, 0));
    }

    #[test]
    fn the_policy_holds_for_pings_and_spent_hops_are_told() {
        let mut test = Test::new();
        ping(&mut test, A, "169.254.169.254", 1, 1);
        assert_eq!(test.error().2, 13);
        ping(&mut test, A6, "::1", 1, 1);
        assert_eq!(test.error().2, 1);
        assert_eq!((test.dropped(DropReason::Refused), test.host.echo.len()), (2, 0));
        test.frame(Offload::default(), &echo_frame(A, "192.0.2.1", 1, 1, 1, b""));
        assert_eq!((test.error().1, test.dropped(DropReason::HopLimit)), (11, 1));
    }

    #[test]
    fn pings_are_bounded_and_a_sandbox_that_leaves_takes_them_along() {
        let mut test = Test::new();
        for identifier in 0..=MOST_FLOWS as u16 {
            ping(&mut test, A, "192.0.2.1", identifier, 1);
        }
        assert_eq!((test.gateway.flows().2, test.host.echo_closed.len()), (MOST_FLOWS, 1));
        assert_eq!(test.host.echo_closed[0], test.host.echo[0].flow);
        test.gateway.remove_port(PEER.port, &mut test.host);
        assert_eq!((test.gateway.flows().2, test.host.echo_closed.len()), (0, MOST_FLOWS + 1));
    }
}
