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
//! (DHCP, DHCPv6, names); the destination is judged by the policy, once for each flow and address (a refusal is not kept:
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
//! Limits: each sandbox has at most [`MOST_FLOWS`] flows, of at most 128 addresses each (some 8 KiB), and no more than there
//! are descriptors left for others; the one idle longest makes room. When the
//! host is out of descriptors, the one idle longest of the sandbox that has most does. A flow whose first datagram could not be sent is not kept.
//! A question to the DNS address has at most [`LONGEST_QUESTION`] bytes.
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use smoltcp::wire::IpProtocol;

use super::describe::Description;
use super::flows::{FlowTable, Idle};
use super::inbound::{Answer, Arrival, Inbound};
use super::peers::Peers;
use super::quote::Quote;
use super::{
    Segment, cost,
    counters::DropReason,
    dhcp, dhcpv6, emit,
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
/// A question has one name of 255 bytes at most, and what EDNS adds.
const LONGEST_QUESTION: usize = 4096;
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
        let services = segment.network.behaviour.services;
        if udp.dst_port == DHCP_SERVER_PORT && services.dhcp && is_for_dhcp_server(segment, packet.dst) {
            return dhcp::handle(segment, packet, link);
        }
        if dhcpv6::is_for_us(segment, packet.dst, udp.dst_port) {
            return dhcpv6::handle(segment, packet, udp.payload, link);
        }
        if self.inbound.len() > 0 {
            let (from, to) = (SocketAddr::new(packet.src, udp.src_port), SocketAddr::new(packet.dst, udp.dst_port));
            if let Some(answer) = self.inbound.answer(now, segment, packet.peer, from, to) {
                return send_answer(now, segment, packet, &udp, answer, host, link);
            }
        }
        let named = match packet.dst {
            IpAddr::V4(ip) if ip.is_broadcast() && segment.network.broadcast_to_host => {
                segment.network.v4.map_or(packet.dst, |layout| layout.gateway.into())
            }
            dst => dst,
        };
        // Where names have an address of their own nothing else is there; on the gateway's, other ports are the host's,
        // and with the host's own addresses inside they lead where the address leads.
        let to_host = segment.network.is_host(named);
        let is_mapped = segment.network.behaviour.mapping.is_some();
        let is_dns = segment.network.is_dns(named);
        let asks = udp.dst_port == DNS_PORT && segment.network.dns_enabled;
        if is_dns && (asks || !(to_host || is_mapped)) {
            return ask(now, segment, packet, &udp, host, link);
        }
        if !services.udp {
            return Err(DropReason::Disabled);
        }
        if udp.dst_port == 0 {
            return Err(DropReason::Malformed);
        }
        let key = (packet.peer.port, SocketAddr::new(packet.src, udp.src_port));
        let known = self.flows.find(&key);
        let is_fixed = !(to_host || is_dns);
        let cached = known.filter(|_| is_fixed).and_then(|at| self.flows.placed(at)?.1.peers.leads_to(named));
        let verdict = cached.map_or_else(|| judge(segment, packet.peer.port, named, udp.dst_port), Ok);
        if verdict == Err(Refusal::Multicast) {
            return Err(DropReason::Multicast);
        }
        let hop_limit = if !segment.network.is_hop_to(named) {
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
        segment.extra += if known.is_none() { cost::SOCKET } else { 0 };
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
        let count = self.flows.count(peer.port);
        if (count >= self.most_flows || count > host.descriptors_left())
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
        // No descriptor left: the flow idle longest of whoever has most makes room, unless this is the only one.
        match self.flows.oldest_where_most(port).filter(|oldest| *oldest != index) {
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

/// Where datagrams to a service lead. The port stays the same, so the resolver behind the DNS address must have it too.
fn judge(segment: &Segment, port: PortId, named: IpAddr, to: u16) -> Result<IpAddr, Refusal> {
    let encrypted = policy::encrypted_dns(&segment.network, SocketAddr::new(named, to));
    match encrypted.filter(|resolver| resolver.port() == to && resolver.is_ipv4() == named.is_ipv4()) {
        Some(resolver) => Ok(resolver.ip()),
        None => segment.judge(port, named),
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
    let hop_limit = if !segment.network.is_hop_to(packet.dst) {
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
            ip.is_broadcast() || layout.is_some_and(|l| l.gateway == ip || l.broadcast() == Some(ip))
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
    if segment.network.is_silent_without_names() {
        return Err(DropReason::Refused);
    }
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
        segment.extra += cost::QUESTION;
        if message.len() > LONGEST_QUESTION {
            outcome = Err(DropReason::Malformed);
            continue;
        }
        if !host.dns_query(asker, message) {
            outcome = Err(DropReason::DnsOverload);
        }
    }
    outcome
}

/// How a sandbox is told of a refusal.
pub(super) fn refusal_error(refusal: Refusal) -> IcmpError {
    match refusal {
        Refusal::NoHostAddress | Refusal::HostDenied => IcmpError::NetUnreachable,
        Refusal::NotOnSegment => IcmpError::HostUnreachable,
        Refusal::Unspecified
        | Refusal::Loopback
        | Refusal::V4Mapped
        | Refusal::Metadata
        | Refusal::Multicast
        | Refusal::DnsOnly
        | Refusal::Foreign
        | Refusal::Internal => IcmpError::Prohibited,
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
        offender if segment.network.behaviour.mapping.is_some() => offender,
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
mod tests;
