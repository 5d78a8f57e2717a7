//! UDP flows (RFC 768, RFC 4787).
//!
//! # Theory of operation
//!
//! A flow is one source address and port of a sandbox, whatever it writes to: it has one socket and so one port
//! on the host for all destinations (endpoint-independent mapping, RFC 4787 REQ-1), which is what hole punching
//! needs. A datagram from the host reaches the sandbox when its sender is an address that the flow has written
//! to ([`Peers`]; address-dependent filtering, REQ-8); others are counted and dropped.
//!
//! The way of a datagram out: header and checksum are checked; what the gateway answers itself is taken out
//! (DHCP, names); the destination is judged by the policy, once for each flow and address (a refusal is not kept:
//! nothing is remembered of those who only write where they may not); the hop limit goes down by one; the host's
//! socket sends it. Where the host says no, the sandbox is told with ICMP. To the gateway's own address the hop
//! limit stays, for that is no hop away, and the policy is asked each time, so that a flow follows when the
//! host's address changes.
//!
//! What goes to a client of a published port is taken out before all that: see `inbound`.
//!
//! The way back: the sender's address becomes the one that the sandbox had written to. Errors from the host's
//! queue become ICMP errors that quote the sandbox's packet, written again with its addresses.
//!
//! Timers: a flow ends when nothing came or went for `udp_timeout`, one that only asked port 53 after ten
//! seconds (RFC 4787 REQ-5 and its exception).
//!
//! Limits: each sandbox has at most [`MOST_FLOWS`] flows; the one idle longest makes room. So it does when the
//! host is out of descriptors. A flow whose first datagram could not be sent is not kept.
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use smoltcp::wire::IpProtocol;

use super::describe::Description;
use super::flows::{FlowTable, Idle};
use super::inbound::{Answer, Arrival, Inbound};
use super::peers::Peers;
use super::quote::Quote;
use super::{
    Segment,
    counters::DropReason,
    dhcp, emit,
    icmp::{self, IcmpError},
    link::{Asker, Datagram, Gso, Host, HostError, Link, Peer, PortId, UdpId, Unsent},
    packet::Packet,
};
use crate::policy::{self, Refusal};

/// Most flows of a sandbox.
pub const MOST_FLOWS: usize = 4096;
/// How long a flow is kept that only asked port 53.
const DNS_TIMEOUT: Duration = Duration::from_secs(10);
const DNS_PORT: u16 = 53;
const DHCP_SERVER_PORT: u16 = 67;
const HEADER: usize = 8;
/// Most datagrams in a super-segment (linux/udp.h, UDP_MAX_SEGMENTS since Linux 6.9).
const MOST_SEGMENTS: usize = 128;

/// Whose flow it is: the sandbox's port on the switch, its address and its UDP port.
type Key = (PortId, SocketAddr);

struct Flow {
    peer: Peer,
    source: SocketAddr,
    /// It has only asked port 53.
    only_dns: bool,
    peers: Peers,
}

/// All UDP flows of a network.
pub struct UdpTable {
    flows: FlowTable<Key, Flow>,
    most_flows: usize,
    /// Those that a client of a published port began.
    pub(super) inbound: Inbound,
}

/// A UDP header that was checked, and what follows it.
#[derive(Clone, Copy)]
struct Udp<'a> {
    src_port: u16,
    dst_port: u16,
    payload: &'a [u8],
    /// Bytes of each datagram of a super-segment, otherwise 0.
    segment: u16,
}

impl UdpTable {
    /// An empty table; flows expire after `timeout` without traffic.
    pub fn new(timeout: Duration) -> UdpTable {
        UdpTable {
            flows: FlowTable::new(DNS_TIMEOUT.min(timeout), timeout),
            most_flows: MOST_FLOWS,
            inbound: Inbound::new(timeout),
        }
    }

    /// Flows now.
    pub fn len(&self) -> usize {
        self.flows.len() + self.inbound.len()
    }

    /// Nothing there?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many places the table has, taken or not.
    ///
    /// Even places are those of flows that the sandbox began, odd ones those of clients' flows.
    pub fn places(&self) -> usize {
        2 * self.flows.places().max(self.inbound.places())
    }

    /// The flow at a place, for people.
    pub fn describe(&self, place: usize) -> Option<Description> {
        if place % 2 == 1 {
            return self.inbound.describe(place / 2);
        }
        let (_, flow) = self.flows.look(place / 2)?;
        Some(Description {
            port: flow.peer.port,
            protocol: "udp",
            published: false,
            inside: flow.source,
            outside: flow.peers.only(),
            state: "open",
        })
    }

    /// The port's flows end.
    pub fn remove_port(&mut self, port: PortId, segment: &mut Segment, host: &mut impl Host) {
        self.inbound.remove_port(port, segment);
        while let Some(index) = self.flows.oldest(port) {
            self.end(index, host);
        }
        self.flows.forget_port(port);
    }

    fn end(&mut self, index: u32, host: &mut impl Host) {
        if let Some(generation) = self.flows.remove(index) {
            host.udp_close(UdpId { index, generation });
        }
    }

    /// A sandbox sent a UDP packet.
    pub fn handle_packet(
        &mut self,
        now: Instant,
        segment: &mut Segment,
        packet: &Packet<'_>,
        host: &mut impl Host,
        link: &mut impl Link,
    ) -> Result<(), DropReason> {
        let udp = parse(packet)?;
        if udp.dst_port == DHCP_SERVER_PORT && is_for_dhcp_server(segment, packet.dst) {
            return dhcp::handle(segment, packet, link);
        }
        if self.inbound.len() > 0 {
            let (from, to) = (SocketAddr::new(packet.src, udp.src_port), SocketAddr::new(packet.dst, udp.dst_port));
            if let Some(answer) = self.inbound.answer(now, packet.peer, from, to) {
                return send_answer(now, segment, packet, &udp, answer, host, link);
            }
        }
        let named = match packet.dst {
            IpAddr::V4(ip) if ip.is_broadcast() && segment.network.broadcast_to_host => {
                segment.network.v4.map_or(packet.dst, |layout| layout.gateway.into())
            }
            dst => dst,
        };
        if segment.network.is_dns(named) {
            return ask(now, segment, packet, &udp, host, link);
        }
        if udp.dst_port == 0 {
            return Err(DropReason::Malformed);
        }
        let key = (packet.peer.port, SocketAddr::new(packet.src, udp.src_port));
        let known = self.flows.find(&key);
        let to_gateway = segment.network.is_gateway(named);
        let cached = known.filter(|_| !to_gateway).and_then(|at| self.flows.placed(at)?.1.peers.leads_to(named));
        let verdict = cached.map_or_else(|| policy::judge(&segment.network, &segment.host, named), Ok);
        if verdict == Err(Refusal::Multicast) {
            return Err(DropReason::Multicast);
        }
        let hop_limit = if to_gateway {
            // A host takes what reaches it with none left (RFC 1122, 3.2.1.7), but no socket sends it.
            packet.hop_limit.max(1)
        } else {
            icmp::hop_limit_spent(now, segment, packet, link)?;
            packet.hop_limit - 1 // which was 2 at least, or it had been spent
        };
        let leads_to = verdict.map_err(|refusal| {
            icmp::send_error(now, segment, packet.peer, None, refusal_error(refusal), packet.bytes, link);
            DropReason::Refused
        })?;
        let datagram = Datagram {
            payload: udp.payload,
            segment: udp.segment,
            hop_limit,
            tos: packet.tos,
            dont_fragment: packet.dont_fragment,
        };
        let index = known.unwrap_or_else(|| self.begin(now, packet.peer, key, host));
        let sent = self.send(index, known.is_none(), SocketAddr::new(leads_to, udp.dst_port), datagram, host);
        match sent {
            Ok(()) => {
                segment.counters.udp_flows += u64::from(known.is_none());
                self.sent(now, index, packet.peer, named, leads_to, udp.dst_port);
                Ok(())
            }
            Err(error) => {
                if known.is_none() && !matches!(error, HostError::TooBig(_)) {
                    self.end(index, host);
                }
                if let Some(error) = host_error(error) {
                    icmp::send_error(now, segment, packet.peer, None, error, packet.bytes, link);
                }
                Err(send_failure(error, known.is_none()))
            }
        }
    }

    /// A client of a published port sent something.
    pub(super) fn handle_arrival(
        &mut self,
        now: Instant,
        segment: &mut Segment,
        arrival: &Arrival<'_>,
        link: &mut impl Link,
    ) {
        if let Err(reason) = self.inbound.handle_datagram(now, segment, arrival, link) {
            segment.counters.drop_many(reason, datagrams(arrival.payload, arrival.segment));
        }
    }

    /// A new flow, for which another may have to go.
    fn begin(&mut self, now: Instant, peer: Peer, key: Key, host: &mut impl Host) -> u32 {
        if self.flows.count(peer.port) >= self.most_flows
            && let Some(oldest) = self.flows.oldest(peer.port)
        {
            self.end(oldest, host);
        }
        let flow = Flow { peer, source: key.1, only_dns: true, peers: Peers::default() };
        self.flows.insert(now, peer.port, key, flow, Idle::Short)
    }

    fn send(
        &mut self,
        index: u32,
        is_new: bool,
        to: SocketAddr,
        datagram: Datagram<'_>,
        host: &mut impl Host,
    ) -> Result<(), HostError> {
        let Some((generation, flow)) = self.flows.placed(index) else { return Err(HostError::Exhausted) };
        let id = UdpId { index, generation };
        let port = flow.peer.port;
        let sent = host.udp_send(id, to, datagram);
        if !is_new || sent != Err(HostError::Exhausted) {
            return sent;
        }
        // No descriptor left: the flow idle longest makes room, unless this is the only one.
        match self.flows.oldest(port).filter(|oldest| *oldest != index) {
            Some(oldest) => {
                self.end(oldest, host);
                host.udp_send(id, to, datagram)
            }
            None => sent,
        }
    }

    fn sent(&mut self, now: Instant, index: u32, peer: Peer, named: IpAddr, leads_to: IpAddr, port: u16) {
        let Some((_, flow)) = self.flows.placed(index) else { return };
        flow.peer = peer;
        flow.only_dns &= port == DNS_PORT;
        flow.peers.write(named, leads_to, port);
        let idle = if flow.only_dns { Idle::Short } else { Idle::Long };
        self.flows.touch(now, index, idle);
    }

    /// A datagram came from the host.
    #[allow(clippy::too_many_arguments)]
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        segment: &mut Segment,
        flow: UdpId,
        from: SocketAddr,
        payload: &[u8],
        segment_size: u16,
        tos: u8,
        link: &mut impl Link,
    ) {
        // A flow that has ended meanwhile is no fault of anybody.
        let Some(found) = self.flows.at(flow.index, flow.generation) else { return };
        let Some(named) = found.peers.named(from) else { return segment.counters.drop(DropReason::Unsolicited) };
        let (peer, to) = (found.peer, found.source);
        let idle = if found.only_dns { Idle::Short } else { Idle::Long };
        self.flows.touch(now, flow.index, idle);
        if !link.has_room(peer.port) {
            return segment.counters.drop_many(DropReason::NoRoom, datagrams(payload, segment_size));
        }
        let from = SocketAddr::new(named, from.port());
        send_to_sandbox(segment, peer, from, to, payload, segment_size, tos, link);
    }

    /// An ICMP error came.
    #[allow(clippy::too_many_arguments)]
    pub fn handle_error(
        &mut self,
        now: Instant,
        segment: &mut Segment,
        flow: UdpId,
        to: SocketAddr,
        error: IcmpError,
        offender: Option<IpAddr>,
        payload: &[u8],
        link: &mut impl Link,
    ) {
        let Some(found) = self.flows.at(flow.index, flow.generation) else { return };
        let Some(named) = found.peers.named(to) else { return segment.counters.drop(DropReason::Unsolicited) };
        let Some(quote) = quote(found.source, SocketAddr::new(named, to.port()), payload) else { return };
        let peer = found.peer;
        let offender = offender_as_named(segment, offender, named, to.ip());
        icmp::send_error(now, segment, peer, offender, error, quote.bytes(), link);
    }

    /// Datagrams that had waited to leave together could not be sent: what the sandbox would have been told at
    /// once.
    pub fn handle_unsent(&mut self, now: Instant, segment: &mut Segment, unsent: Unsent<'_>, link: &mut impl Link) {
        segment.counters.drop_many(send_failure(unsent.error, false), unsent.datagrams);
        let Some(found) = self.flows.at(unsent.flow.index, unsent.flow.generation) else { return };
        let (Some(error), Some(named)) = (host_error(unsent.error), found.peers.named(unsent.to)) else { return };
        let to = SocketAddr::new(named, unsent.to.port());
        if let Some(quote) = quote(found.source, to, unsent.payload) {
            icmp::send_error(now, segment, found.peer, None, error, quote.bytes(), link);
        }
    }

    /// When the next flow may expire.
    pub fn next_timeout(&self) -> Option<Instant> {
        [self.flows.next_timeout(), self.inbound.next_timeout()].into_iter().flatten().min()
    }

    /// Expire flows.
    pub fn handle_timeout(&mut self, now: Instant, segment: &mut Segment, host: &mut impl Host) {
        self.inbound.handle_timeout(now, segment);
        while let Some(index) = self.flows.expired(now) {
            self.end(index, host);
        }
    }
}

/// How many datagrams a payload is, joined ones of `segment` bytes unless that is 0.
fn datagrams(payload: &[u8], segment: u16) -> u64 {
    if segment == 0 { 1 } else { payload.len().div_ceil(usize::from(segment)) as u64 }
}

/// A sandbox's datagram to a client of a published port.
fn send_answer(
    now: Instant,
    segment: &mut Segment,
    packet: &Packet<'_>,
    udp: &Udp<'_>,
    answer: Answer,
    host: &mut impl Host,
    link: &mut impl Link,
) -> Result<(), DropReason> {
    let hop_limit = if segment.network.is_gateway(packet.dst) {
        packet.hop_limit.max(1)
    } else {
        icmp::hop_limit_spent(now, segment, packet, link)?;
        packet.hop_limit - 1
    };
    let datagram = Datagram {
        payload: udp.payload,
        segment: udp.segment,
        hop_limit,
        tos: packet.tos,
        dont_fragment: packet.dont_fragment,
    };
    host.published_send(answer.path, answer.client, datagram).map_err(|error| {
        if let Some(error) = host_error(error) {
            icmp::send_error(now, segment, packet.peer, None, error, packet.bytes, link);
        }
        send_failure(error, false)
    })
}

/// A sandbox's datagram written again, to be quoted.
fn quote(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Option<Quote> {
    let length = u16::try_from(HEADER + payload.len()).unwrap_or(u16::MAX);
    let mut header = [0; HEADER];
    header[..2].copy_from_slice(&from.port().to_be_bytes());
    header[2..4].copy_from_slice(&to.port().to_be_bytes());
    header[4..6].copy_from_slice(&length.to_be_bytes());
    Quote::new(from.ip(), to.ip(), IpProtocol::Udp, header, 6, payload)
}

/// What a datagram that the host would not send is counted as. A new flow for which there is nothing left is not
/// begun; one that is there has met a full socket.
fn send_failure(error: HostError, is_new: bool) -> DropReason {
    match error {
        HostError::Exhausted if is_new => DropReason::FlowLimit,
        HostError::Exhausted => DropReason::NoRoom,
        _ => DropReason::HostError,
    }
}

/// Check a UDP header (RFC 768; RFC 8200, 8.1).
fn parse<'a>(packet: &Packet<'a>) -> Result<Udp<'a>, DropReason> {
    let bytes = packet.payload();
    let &[s0, s1, d0, d1, l0, l1, c0, c1] = bytes.first_chunk().ok_or(DropReason::Malformed)?;
    let length = usize::from(u16::from_be_bytes([l0, l1]));
    let payload = bytes.get(HEADER..length).ok_or(DropReason::Malformed)?;
    if packet.checksum_to_verify() {
        // Without a checksum only over IPv4.
        let absent = [c0, c1] == [0, 0];
        let holds = if absent {
            packet.src.is_ipv4()
        } else {
            emit::checksum_holds(packet.src, packet.dst, IpProtocol::Udp, &bytes[..length])
        };
        if !holds {
            return Err(DropReason::Checksum);
        }
    }
    let segment = match packet.offload.gso {
        Gso::None => 0,
        Gso::UdpL4 => match packet.offload.gso_size {
            0 => return Err(DropReason::Malformed),
            size if payload.len().div_ceil(usize::from(size)) > MOST_SEGMENTS => return Err(DropReason::Malformed),
            size if usize::from(size) >= payload.len() => 0,
            size => size,
        },
        Gso::TcpV4 | Gso::TcpV6 => return Err(DropReason::Malformed),
    };
    Ok(Udp { src_port: u16::from_be_bytes([s0, s1]), dst_port: u16::from_be_bytes([d0, d1]), payload, segment })
}

/// Clients without an address ask everybody, those that renew a lease ask the gateway (RFC 2131, 4.4.5).
fn is_for_dhcp_server(segment: &Segment, dst: IpAddr) -> bool {
    match dst {
        IpAddr::V4(ip) => {
            let layout = segment.network.v4;
            ip.is_broadcast() || layout.is_some_and(|l| l.gateway == ip || l.subnet.broadcast() == ip)
        }
        IpAddr::V6(_) => false,
    }
}

/// A datagram to the address that answers names.
fn ask(
    now: Instant,
    segment: &mut Segment,
    packet: &Packet<'_>,
    udp: &Udp<'_>,
    host: &mut impl Host,
    link: &mut impl Link,
) -> Result<(), DropReason> {
    if udp.dst_port != DNS_PORT || !segment.network.dns_enabled {
        icmp::send_error(now, segment, packet.peer, None, IcmpError::PortUnreachable, packet.bytes, link);
        return Err(DropReason::Refused);
    }
    let from = SocketAddr::new(packet.src, udp.src_port);
    let asker = Asker { peer: packet.peer, from, to: packet.dst };
    let size = if udp.segment == 0 { udp.payload.len().max(1) } else { usize::from(udp.segment) };
    let mut outcome = Ok(());
    for message in udp.payload.chunks(size) {
        segment.counters.dns_queries += 1;
        if !host.dns_query(asker, message) {
            outcome = Err(DropReason::DnsOverload);
        }
    }
    outcome
}

/// How a sandbox is told of a refusal.
pub(super) fn refusal_error(refusal: Refusal) -> IcmpError {
    match refusal {
        Refusal::NoHostAddress => IcmpError::NetUnreachable,
        Refusal::NotOnSegment => IcmpError::HostUnreachable,
        Refusal::Unspecified
        | Refusal::Loopback
        | Refusal::V4Mapped
        | Refusal::Metadata
        | Refusal::Multicast
        | Refusal::DnsOnly => IcmpError::Prohibited,
    }
}

/// How a sandbox is told that the host would not send.
pub(super) fn host_error(error: HostError) -> Option<IcmpError> {
    match error {
        HostError::Refused => Some(IcmpError::PortUnreachable),
        HostError::NetUnreachable => Some(IcmpError::NetUnreachable),
        HostError::HostUnreachable | HostError::TimedOut => Some(IcmpError::HostUnreachable),
        HostError::HopLimitExceeded => Some(IcmpError::HopLimitExceeded),
        HostError::Prohibited | HostError::Unsupported => Some(IcmpError::Prohibited),
        HostError::TooBig(mtu) => Some(IcmpError::PacketTooBig(mtu)),
        HostError::Reset | HostError::Exhausted => None,
    }
}

/// Who an error is said to come from: the destination itself under the name the sandbox has for it; the gateway
/// (`None`) where it is the host, which the sandbox sees as the gateway; else who it is.
pub(super) fn offender_as_named(
    segment: &Segment,
    offender: Option<IpAddr>,
    named: IpAddr,
    leads_to: IpAddr,
) -> Option<IpAddr> {
    match offender {
        Some(ip) if ip == leads_to => Some(named),
        Some(ip) if ip.is_loopback() => None,
        Some(IpAddr::V4(ip)) if segment.host.v4 == Some(ip) => None,
        Some(IpAddr::V6(ip)) if segment.host.v6 == Some(ip) => None,
        other => other,
    }
}

/// Send a datagram (or, with `segment_size` not 0, several of that size) to a sandbox, in fragments where it is
/// larger than the MTU.
#[allow(clippy::too_many_arguments)]
pub fn send_to_sandbox(
    segment: &mut Segment,
    peer: Peer,
    from: SocketAddr,
    to: SocketAddr,
    payload: &[u8],
    segment_size: u16,
    tos: u8,
    link: &mut impl Link,
) {
    emit::udp(segment, peer, from, to, payload, segment_size, tos, link);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gateway::emit::testing::{PEER, network};
    use crate::gateway::link::Offload;
    use crate::gateway::testing::{HOST_V4, HOST_V6, Test, udp_frame};
    use crate::plan::{HostView, Network};

    const A: &str = "10.0.2.100:4000";
    const A6: &str = "[fd00::100]:4000";

    fn at(address: &str) -> SocketAddr {
        address.parse().unwrap()
    }

    /// The host got an answer for the flow that sent last.
    fn answer(test: &mut Test, from: &str, payload: &[u8]) {
        let flow = test.host.udp.last().unwrap().flow;
        test.gateway.handle_udp(test.now, flow, at(from), payload, 0, 0, &mut test.link);
    }

    #[test]
    fn one_flow_for_all_destinations_and_answers_only_from_them() {
        for (from, one, two, stranger) in [
            (A, "192.0.2.1:53", "192.0.2.2:99", "192.0.2.3:53"),
            (A6, "[2001:db8::1]:53", "[2001:db8::2]:99", "[2001:db8::3]:53"),
        ] {
            let mut test = Test::new();
            test.udp(from, one, b"to one");
            test.udp(from, two, b"to two");
            let [first, second] = &test.host.udp[..] else { panic!() };
            assert_eq!(first.flow, second.flow);
            assert_eq!((first.to, &first.payload[..], first.hop_limit), (at(one), &b"to one"[..], 7));
            assert_eq!((second.to, &second.payload[..]), (at(two), &b"to two"[..]));
            assert_eq!(test.gateway.counters().udp_flows, 1);
            answer(&mut test, one, b"answer");
            assert_eq!(test.received(), (at(one), at(from), b"answer".to_vec()));
            answer(&mut test, stranger, b"attack");
            assert!(test.link.frames.is_empty());
            assert_eq!(test.dropped(DropReason::Unsolicited), 1);
        }
    }

    #[test]
    fn a_datagram_to_the_gateway_with_no_hop_left_is_sent_with_one() {
        let mut test = Test::new();
        test.frame(Offload::default(), &udp_frame(A, "10.0.2.2:9", 0, b"data"));
        assert_eq!(test.host.udp[0].hop_limit, 1);
    }

    #[test]
    fn the_gateways_address_leads_to_the_host_and_answers_come_from_it() {
        let mut test = Test::new();
        test.udp(A, "10.0.2.2:7", b"x");
        let host = format!("{HOST_V4}:7");
        assert_eq!((test.host.udp[0].to, test.host.udp[0].hop_limit), (at(&host), 8), "no hop away");
        answer(&mut test, &host, b"y");
        assert_eq!(test.received(), (at("10.0.2.2:7"), at(A), b"y".to_vec()));
        // The same service asked directly by the same flow: its own address, from then on.
        test.udp(A, &host, b"x");
        answer(&mut test, &host, b"y");
        assert_eq!(test.received().0, at(&host));
        test.udp(A6, "[fd00::2]:7", b"x");
        let host = format!("[{HOST_V6}]:7");
        assert_eq!(test.host.udp[2].to, at(&host));
        answer(&mut test, &host, b"y");
        assert_eq!(test.received().0, at("[fd00::2]:7"));
    }

    #[test]
    fn with_host_loopback_the_gateways_address_leads_there_and_follows_a_change_otherwise() {
        let mut open = network(1500);
        open.host_loopback_allowed = true;
        let mut test = Test::with(open, HostView::default());
        test.udp(A, "10.0.2.2:7", b"x");
        assert_eq!(test.host.udp[0].to, at("127.0.0.1:7"));
        answer(&mut test, "127.0.0.1:7", b"y");
        assert_eq!(test.received().0, at("10.0.2.2:7"));
        let mut test = Test::new();
        test.udp(A, "10.0.2.2:7", b"x");
        test.gateway.handle_host_changed(HostView { v4: "203.0.113.9".parse().ok(), ..HostView::default() });
        test.udp(A, "10.0.2.2:7", b"x");
        assert_eq!(test.host.udp[1].to, at("203.0.113.9:7"));
    }

    #[test]
    fn refused_destinations_are_answered_and_cost_no_flow() {
        for (from, to, kind, code) in [
            (A, "127.0.0.1:7", 3, 13),
            (A, "169.254.169.254:80", 3, 13),
            (A, "10.0.2.50:7", 3, 1),
            (A6, "[::1]:7", 1, 1),
            (A6, "[::ffff:192.0.2.1]:7", 1, 1),
        ] {
            let mut test = Test::new();
            test.udp(from, to, b"x");
            let (_, got_kind, got_code, _, quoted) = test.error();
            assert_eq!((got_kind, got_code), (kind, code), "{to}");
            let frame = udp_frame(from, to, 8, b"x");
            assert_eq!(quoted, &frame[14..]);
            assert_eq!((test.dropped(DropReason::Refused), test.gateway.flows().1), (1, 0));
            assert!(test.host.udp.is_empty());
        }
    }

    #[test]
    fn without_a_host_address_the_gateways_address_is_net_unreachable() {
        let mut test = Test::with(network(1500), HostView::default());
        test.udp(A, "10.0.2.2:7", b"x");
        assert_eq!(test.error().1, 3);
        test.udp(A6, "[fd00::2]:7", b"x");
        let (from, kind, code, ..) = test.error();
        assert_eq!((from, kind, code), (at("[fd00::2]:7").ip(), 1, 0));
    }

    #[test]
    fn names_are_asked_of_the_forwarder_and_nothing_else_is_there() {
        let mut test = Test::new();
        test.udp(A, "10.0.2.3:53", b"question");
        let (asker, question) = test.host.queries[0].clone();
        assert_eq!((asker.from, asker.to, &question[..]), (at(A), at("10.0.2.3:53").ip(), &b"question"[..]));
        test.gateway.handle_dns_answer(asker, b"reply", &mut test.link);
        assert_eq!(test.received(), (at("10.0.2.3:53"), at(A), b"reply".to_vec()));
        test.udp(A, "10.0.2.3:54", b"x");
        let (from, kind, code, ..) = test.error();
        assert_eq!((from, kind, code), (at("10.0.2.3:53").ip(), 3, 3));
        test.host.dns_full = true;
        test.udp(A, "10.0.2.3:53", b"question");
        assert_eq!(test.dropped(DropReason::DnsOverload), 1);
        let mut off = network(1500);
        off.dns_enabled = false;
        let mut test = Test::with(off, HostView::default());
        test.udp(A, "10.0.2.3:53", b"question");
        assert_eq!((test.error().2, test.host.queries.len()), (3, 0));
    }

    #[test]
    fn idle_flows_end_sooner_when_they_only_asked_for_names() {
        // Without IPv6 there are no router advertisements to be due as well.
        let mut test = Test::with(Network { v6: None, ..network(1500) }, HostView::default());
        test.udp(A, "192.0.2.1:53", b"x");
        test.udp("10.0.2.100:4001", "192.0.2.1:54", b"x");
        let dns = test.host.udp[0].flow;
        let begun = test.now;
        assert_eq!(test.gateway.udp.next_timeout(), Some(begun + Duration::from_secs(10)));
        test.pass(Duration::from_secs(9));
        test.gateway.handle_udp(test.now, dns, at("192.0.2.1:53"), b"y", 0, 0, &mut test.link);
        test.pass(Duration::from_secs(9));
        assert!(test.host.udp_closed.is_empty(), "an answer keeps a flow");
        test.pass(Duration::from_secs(1));
        assert_eq!(test.host.udp_closed, [dns]);
        test.pass(Duration::from_secs(160));
        assert_eq!(test.gateway.flows().1, 1);
        test.pass(Duration::from_secs(1));
        assert_eq!((test.gateway.flows().1, test.gateway.udp.next_timeout()), (0, None));
        // Late, for a flow that has ended: nothing.
        test.link.frames.clear();
        test.gateway.handle_udp(test.now, dns, at("192.0.2.1:53"), b"y", 0, 0, &mut test.link);
        assert!(test.link.frames.is_empty());
    }

    #[test]
    fn a_flow_that_asked_for_names_and_more_stays_long() {
        let mut test = Test::new();
        test.udp(A, "192.0.2.1:53", b"x");
        test.udp(A, "192.0.2.1:443", b"x");
        test.udp(A, "192.0.2.1:53", b"x");
        test.pass(Duration::from_secs(179));
        assert_eq!(test.gateway.flows().1, 1);
    }

    #[test]
    fn at_the_bound_the_flow_idle_longest_goes() {
        let mut test = Test::new();
        test.gateway.udp.most_flows = 2;
        test.udp("10.0.2.100:1", "192.0.2.1:9", b"x");
        test.udp("10.0.2.100:2", "192.0.2.1:9", b"x");
        test.udp("10.0.2.100:1", "192.0.2.1:9", b"x");
        test.udp("10.0.2.100:3", "192.0.2.1:9", b"x");
        assert_eq!(test.host.udp_closed, [test.host.udp[1].flow]);
        assert_eq!((test.host.udp.len(), test.gateway.flows().1), (4, 2));
    }

    #[test]
    fn without_descriptors_the_flow_idle_longest_goes_and_the_first_is_refused() {
        let mut test = Test::new();
        test.host.fail = [HostError::Exhausted].into();
        test.udp("10.0.2.100:1", "192.0.2.1:9", b"x");
        assert_eq!((test.dropped(DropReason::FlowLimit), test.gateway.flows().1), (1, 0));
        test.udp("10.0.2.100:1", "192.0.2.1:9", b"x");
        test.host.fail = [HostError::Exhausted].into();
        test.udp("10.0.2.100:2", "192.0.2.1:9", b"y");
        assert_eq!((test.host.udp.len(), test.gateway.flows().1), (2, 1), "sent at the second try");
        test.host.fail = [HostError::Exhausted].into();
        test.udp("10.0.2.100:2", "192.0.2.1:9", b"y");
        assert_eq!((test.dropped(DropReason::NoRoom), test.gateway.flows().1), (1, 1), "a full socket ends no flow");
    }

    #[test]
    fn what_the_host_says_to_a_send_reaches_the_sandbox() {
        for (error, v4, v6) in [
            (HostError::NetUnreachable, (3, 0, 0), (1, 0, 0)),
            (HostError::HostUnreachable, (3, 1, 0), (1, 3, 0)),
            (HostError::Prohibited, (3, 13, 0), (1, 1, 0)),
            (HostError::TooBig(1400), (3, 4, 1400), (2, 0, 1400)),
        ] {
            for (from, to, expected) in [(A, "192.0.2.1:9", v4), (A6, "[2001:db8::1]:9", v6)] {
                let mut test = Test::new();
                test.host.fail = [error].into();
                test.udp(from, to, b"x");
                let (_, kind, code, rest, _) = test.error();
                assert_eq!((kind, code, rest), expected);
                assert_eq!(test.dropped(DropReason::HostError), 1);
            }
        }
    }

    #[test]
    fn what_could_not_be_sent_later_is_told_as_if_it_had_been_at_once() {
        let payload = [7; 1400];
        for (error, v4, v6, reason) in [
            (HostError::NetUnreachable, Some((3, 0, 0)), Some((1, 0, 0)), DropReason::HostError),
            (HostError::TooBig(1300), Some((3, 4, 1300)), Some((2, 0, 1300)), DropReason::HostError),
            (HostError::Exhausted, None, None, DropReason::NoRoom),
        ] {
            for (from, named, to, expected) in [
                (A, "10.0.2.2:9", format!("{HOST_V4}:9"), v4),
                (A6, "[2001:db8::1]:9", "[2001:db8::1]:9".to_owned(), v6),
            ] {
                let mut at_once = Test::new();
                at_once.udp(from, named, &payload);
                let flow = at_once.host.udp[0].flow;
                at_once.host.fail = [error].into();
                at_once.udp(from, named, &payload);
                let mut later = Test::new();
                later.udp(from, named, &payload);
                let unsent = Unsent { flow, to: at(&to), error, datagrams: 3, payload: &payload };
                later.gateway.handle_udp_unsent(later.now, unsent, &mut later.link);
                assert_eq!((at_once.dropped(reason), later.dropped(reason)), (1, 3));
                let Some(expected) = expected else {
                    assert!(at_once.link.frames.is_empty() && later.link.frames.is_empty());
                    continue;
                };
                let (told_at_once, told_later) = (at_once.error(), later.error());
                assert_eq!((told_later.1, told_later.2, told_later.3), expected);
                assert_eq!((told_at_once.0, told_at_once.1), (told_later.0, told_later.1));
                // Addresses, ports, length: the hop limit and what hangs on it differ.
                let header = if from == A { 12 } else { 8 };
                let rest = told_at_once.4.len().min(told_later.4.len());
                assert!(rest > 500 && told_at_once.4[header..rest] == told_later.4[header..rest]);
                let gone = Unsent { flow: UdpId { generation: flow.generation + 1, ..flow }, ..unsent };
                later.gateway.handle_udp_unsent(later.now, gone, &mut later.link);
                assert!(later.link.frames.is_empty(), "nobody is left to be told");
            }
        }
    }

    #[test]
    fn each_datagram_that_a_full_link_costs_is_counted() {
        let mut test = Test::new();
        test.udp(A, "192.0.2.1:9", b"x");
        test.link.full = true;
        answer(&mut test, "192.0.2.1:9", b"x");
        let flow = test.host.udp[0].flow;
        test.gateway.handle_udp(test.now, flow, at("192.0.2.1:9"), &[0; 2001], 1000, 0, &mut test.link);
        assert_eq!((test.dropped(DropReason::NoRoom), test.link.frames.len()), (4, 0));
    }

    #[test]
    fn errors_from_the_hosts_queue_quote_the_sandboxs_own_packet() {
        let error = IcmpError::PortUnreachable;
        let own: IpAddr = HOST_V4.parse().unwrap();
        for (named, to, offender, seen_from) in [
            ("192.0.2.1:9", "192.0.2.1:9".to_owned(), "192.0.2.1", "192.0.2.1"),
            ("192.0.2.1:9", "192.0.2.1:9".to_owned(), "203.0.113.1", "203.0.113.1"),
            ("192.0.2.1:9", "192.0.2.1:9".to_owned(), HOST_V4, "10.0.2.2"),
            ("10.0.2.2:9", format!("{own}:9"), HOST_V4, "10.0.2.2"),
        ] {
            let mut test = Test::new();
            test.udp(A, named, b"payload");
            let flow = test.host.udp[0].flow;
            let (offender, to) = (offender.parse().ok(), at(&to));
            test.gateway.handle_udp_error(test.now, flow, to, error, offender, b"payload", &mut test.link);
            let (from, kind, code, _, quoted) = test.error();
            assert_eq!((from, kind, code), (seen_from.parse().unwrap(), 3, 3));
            let packet = etherparse::SlicedPacket::from_ip(&quoted).unwrap();
            let Some(etherparse::TransportSlice::Udp(udp)) = packet.transport else { panic!() };
            assert_eq!((udp.source_port(), udp.destination_port(), udp.payload()), (4000, 9, &b"payload"[..]));
            let Some(etherparse::NetSlice::Ipv4(ip)) = packet.net else { panic!() };
            assert_eq!(IpAddr::from(ip.header().source_addr()), at(A).ip());
            assert_eq!(IpAddr::from(ip.header().destination_addr()), at(named).ip());
        }
    }

    #[test]
    fn a_spent_hop_limit_is_the_gateways_to_tell_except_on_the_way_to_itself() {
        let mut test = Test::new();
        test.frame(Offload::default(), &udp_frame(A, "192.0.2.1:33434", 1, b"x"));
        let (from, kind, code, ..) = test.error();
        assert_eq!((from, kind, code), (at("10.0.2.2:1").ip(), 11, 0));
        assert_eq!((test.dropped(DropReason::HopLimit), test.gateway.flows().1), (1, 0));
        test.frame(Offload::default(), &udp_frame(A, "10.0.2.2:33434", 1, b"x"));
        assert_eq!(test.host.udp.len(), 1);
    }

    #[test]
    fn checksums_are_verified_where_nobody_vouches_for_them() {
        let mut test = Test::new();
        let good = udp_frame(A, "192.0.2.1:9", 8, b"data");
        let (mut bad, mut absent) = (good.clone(), good);
        *bad.last_mut().unwrap() ^= 1;
        test.frame(Offload::default(), &bad);
        assert_eq!((test.dropped(DropReason::Checksum), test.host.udp.len()), (1, 0));
        test.frame(Offload { needs_csum: true, csum_start: 34, csum_offset: 6, ..Offload::default() }, &bad);
        assert_eq!(test.host.udp.len(), 1, "a partial checksum is not verified");
        absent[14 + 20 + 6..14 + 20 + 8].fill(0);
        test.frame(Offload::default(), &absent);
        assert_eq!(test.host.udp.len(), 2, "IPv4 may go without");
        let mut absent = udp_frame(A6, "[2001:db8::1]:9", 8, b"data");
        absent[14 + 40 + 6..14 + 40 + 8].fill(0);
        test.frame(Offload::default(), &absent);
        assert_eq!((test.dropped(DropReason::Checksum), test.host.udp.len()), (2, 2), "IPv6 may not");
    }

    #[test]
    fn super_segments_go_out_as_one_and_come_back_as_one() {
        let mut test = Test::new();
        let payload = [7; 5 * 1000 + 1];
        let offload = Offload { needs_csum: true, gso: Gso::UdpL4, gso_size: 1000, ..Offload::default() };
        test.frame(offload, &udp_frame(A, "192.0.2.1:9", 8, &payload));
        assert_eq!((test.host.udp[0].segment, test.host.udp[0].payload.len()), (1000, payload.len()));
        test.link.udp_super_segments = true;
        let flow = test.host.udp[0].flow;
        test.gateway.handle_udp(test.now, flow, at("192.0.2.1:9"), &payload, 1000, 0, &mut test.link);
        let (_, offload, _) = &test.link.frames[0];
        assert_eq!((test.link.frames.len(), offload.gso, offload.gso_size), (1, Gso::UdpL4, 1000));
        for gso_size in [0, 1] {
            test.frame(Offload { gso_size, ..offload_of(Gso::UdpL4) }, &udp_frame(A, "192.0.2.1:9", 8, &payload));
        }
        test.frame(offload_of(Gso::TcpV4), &udp_frame(A, "192.0.2.1:9", 8, &payload));
        assert_eq!((test.dropped(DropReason::Malformed), test.host.udp.len()), (3, 1));
    }

    fn offload_of(gso: Gso) -> Offload {
        Offload { needs_csum: true, gso, gso_size: 1000, ..Offload::default() }
    }

    #[test]
    fn empty_and_largest_datagrams_pass_both_ways() {
        let mut test = Test::new();
        for len in [0, 65_507] {
            let payload = vec![3; len];
            test.udp(A, "192.0.2.1:9", &payload);
            assert_eq!(test.host.udp.pop().unwrap().payload, payload);
            test.udp(A, "192.0.2.1:9", b"again");
            answer(&mut test, "192.0.2.1:9", &payload);
            let bytes: usize = test.link.frames.iter().map(|(_, _, frame)| frame.len() - 34).sum();
            assert_eq!(bytes, len + 8, "whole, or in fragments of IP payload");
            test.link.frames.clear();
        }
    }

    #[test]
    fn broadcast_and_multicast_go_nowhere_unless_broadcast_leads_to_the_host() {
        let mut test = Test::new();
        for to in ["255.255.255.255:9", "10.0.2.255:9", "224.0.0.251:5353"] {
            test.udp(A, to, b"x");
        }
        test.udp(A6, "[ff02::fb]:5353", b"x");
        assert_eq!((test.dropped(DropReason::Multicast), test.link.frames.len(), test.host.udp.len()), (4, 0, 0));
        let mut open = network(1500);
        open.broadcast_to_host = true;
        let view = HostView { v4: HOST_V4.parse().ok(), ..HostView::default() };
        let mut test = Test::with(open, view);
        test.udp(A, "255.255.255.255:9", b"x");
        let host = format!("{HOST_V4}:9");
        assert_eq!(test.host.udp[0].to, at(&host));
        answer(&mut test, &host, b"y");
        assert_eq!(test.received().0, at("10.0.2.2:9"));
    }

    #[test]
    fn the_dont_fragment_bit_and_the_type_of_service_go_along() {
        let mut test = Test::new();
        for (tos, flags, expected) in [(0xb9, 0x40, true), (0, 0, false)] {
            let mut frame = udp_frame(A, "192.0.2.1:9", 8, b"x");
            frame[15] = tos;
            frame[20] = flags;
            frame[24..26].fill(0);
            let sum = !emit::fold(u64::from(emit::sum_of(&frame[14..34])));
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
            test.frame(Offload::default(), &frame);
            let sent = test.host.udp.pop().unwrap();
            assert_eq!((sent.tos, sent.dont_fragment), (tos, expected));
        }
    }

    #[test]
    fn a_sandbox_that_leaves_takes_its_flows_along() {
        let mut test = Test::new();
        test.udp(A, "192.0.2.1:9", b"x");
        test.udp(A6, "[2001:db8::1]:9", b"x");
        test.gateway.remove_port(PEER.port, &mut test.host);
        assert_eq!((test.host.udp_closed.len(), test.gateway.flows().1), (2, 0));
    }

    proptest! {
        /// Any bytes at all in place of UDP: dropped or sent, never a panic, never more than was there.
        #[test]
        fn any_bytes_are_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..64), v4: bool) {
            let mut test = Test::new();
            let (from, to) = if v4 { (A, "192.0.2.1:9") } else { (A6, "[2001:db8::1]:9") };
            let mut frame = udp_frame(from, to, 8, &bytes);
            let at = frame.len() - bytes.len() - 8;
            frame[at..].rotate_left(8);
            test.frame(Offload { csum_valid: true, ..Offload::default() }, &frame);
            prop_assert!(test.host.udp.iter().all(|sent| sent.payload.len() <= bytes.len()));
        }
    }
}
