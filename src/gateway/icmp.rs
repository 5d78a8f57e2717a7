//! ICMP and ICMPv6: echo to the gateway, errors to sandboxes (RFC 792, RFC 1122 3.2.2, RFC 1812 4.3, RFC 4443).
//!
//! # Theory of operation
//!
//! Three kinds of messages come from sandboxes:
//!
//! - Echo requests. Those for the gateway's and the DNS address (and, for IPv6, for all nodes or all routers of
//!   the segment) are answered here, data and identifier returned as they came; those for elsewhere become ping
//!   flows ([`echo`](super::echo)).
//! - Neighbor discovery, types 133 to 137, which [`ndp`](super::ndp) knows.
//! - Errors about what the gateway sent, for instance a port unreachable for an answer whose asker has gone.
//!   Nothing follows from them: flows outside are not ours to break by an unauthenticated message, and what we
//!   send never exceeds the segment's MTU. They are checked, counted and dropped.
//!
//! Errors to sandboxes are made by [`send_error`], for every other part of the gateway. It keeps the rules that
//! stop storms: no error about an error, none about a fragment other than the first, none about what was sent to
//! a multicast or broadcast address (but packet too big, which IPv6 wants), none to a source that is not one
//! host; and for each sandbox a bucket ([`RateLimit`]) of a thousand, refilled at a thousand a second, which traceroute and path
//! MTU discovery never empty and a flood does. What an error quotes: for IPv4 as much as keeps the error within
//! 576 bytes (RFC 1812, 4.3.2.3), for IPv6 within 1280 (RFC 4443, 2.4 c).
//!
//! The sender of an error is the offender, the router or host outside that complained, so that traceroute shows
//! the true path. Where the sandbox had written to the gateway or the DNS address the error comes from that
//! address, and where no offender is known from the gateway's address of that family. One that is the host itself goes
//! by the name that the host has for a sandbox with the host's own addresses.
//!
//! The gateway is a hop: [`hop_limit_spent`] is asked before a packet is carried outside.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use smoltcp::wire::IpProtocol;

use super::{
    Segment,
    counters::DropReason,
    echo::EchoTable,
    emit::{self, HOP_LIMIT, Ip},
    kept::{can_be_a_client, stand_in},
    link::{Host, Link, Peer},
    ndp,
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

const V4_ECHO_REPLY: u8 = 0;
const V4_UNREACHABLE: u8 = 3;
const V4_SOURCE_QUENCH: u8 = 4;
const V4_REDIRECT: u8 = 5;
const V4_ECHO_REQUEST: u8 = 8;
const V4_TIME_EXCEEDED: u8 = 11;
const V4_PARAMETER_PROBLEM: u8 = 12;

const V6_UNREACHABLE: u8 = 1;
const V6_PACKET_TOO_BIG: u8 = 2;
const V6_TIME_EXCEEDED: u8 = 3;
const V6_PARAMETER_PROBLEM: u8 = 4;
const V6_ECHO_REQUEST: u8 = 128;
const V6_ECHO_REPLY: u8 = 129;
const V6_REDIRECT: u8 = 137;

/// Length of an ICMP header: type, code, checksum, four bytes that depend on the type.
const HEADER: usize = 8;
/// Longest IPv4 error with its IP header (RFC 1812, 4.3.2.3).
const MAX_V4_ERROR: usize = 576;
/// Longest IPv6 error with its IP header: the least MTU of a link (RFC 4443, 2.4 c).
const MAX_V6_ERROR: usize = 1280;
/// Traffic class of errors over IPv4: internetwork control (RFC 1812, 4.3.2.5).
const V4_ERROR_TOS: u8 = 0xc0;

/// A bucket of ICMP errors that may still be sent (RFC 4443, 2.4 f).
#[derive(Debug)]
pub struct RateLimit {
    tokens: u32,
    /// Up to when the bucket has been refilled.
    refilled: Instant,
}

impl RateLimit {
    /// Most errors at once.
    const BURST: u32 = 1000;
    /// Errors for each second.
    const PER_SECOND: u32 = 1000;

    /// A full bucket.
    pub fn new(now: Instant) -> RateLimit {
        RateLimit { tokens: Self::BURST, refilled: now }
    }

    /// May one more be sent?
    fn take(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.refilled);
        let earned = elapsed.as_millis().saturating_mul(u128::from(Self::PER_SECOND)) / 1000;
        if earned > 0 {
            // The part of a token that is left over is lost: at most a millisecond's worth.
            let earned = u32::try_from(earned).unwrap_or(u32::MAX);
            self.tokens = self.tokens.saturating_add(earned).min(Self::BURST);
            self.refilled = now;
        }
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                true
            }
            None => false,
        }
    }
}

/// Tell a sandbox that `original` (a packet it sent, from its IP header on; at least the header and eight
/// bytes) met `error`. `offender` is where the error comes from; `None` means the gateway itself. Nothing is
/// sent where the rules in this file's head forbid it, or the rate limit (which is counted).
pub fn send_error(
    now: Instant,
    segment: &mut Segment,
    peer: Peer,
    offender: Option<IpAddr>,
    error: IcmpError,
    original: &[u8],
    link: &mut impl Link,
) {
    let Some(about) = About::parse(original) else { return };
    if !about.deserves(error, segment) {
        return;
    }
    let Some(src) = error_source(segment, offender, &about) else { return };
    if !segment.icmp_limits.entry(peer.port).or_insert_with(|| RateLimit::new(now)).take(now) {
        segment.counters.drop(DropReason::RateLimited);
        return;
    }
    match about.src {
        IpAddr::V4(_) => {
            let ip = Ip { src, dst: about.src, protocol: IpProtocol::Icmp, tos: V4_ERROR_TOS, hop_limit: HOP_LIMIT };
            let room = MAX_V4_ERROR.min(usize::from(segment.network.mtu)).saturating_sub(20 + HEADER);
            let quote = &original[..original.len().min(room)];
            emit::icmp(segment, peer, &ip, v4_header(error), quote, link);
        }
        IpAddr::V6(_) => {
            let ip = Ip { src, dst: about.src, protocol: IpProtocol::Icmpv6, tos: 0, hop_limit: HOP_LIMIT };
            let quote = &original[..original.len().min(MAX_V6_ERROR - 40 - HEADER)];
            emit::icmp(segment, peer, &ip, v6_header(error, about.next_header_at), quote, link);
        }
    }
}

/// A packet that leaves the segment has used up its hop limit: say so with `Err` after the sandbox was told. To
/// be asked by whoever carries packets outside; the gateway's own addresses are no hop away.
pub fn hop_limit_spent(
    now: Instant,
    segment: &mut Segment,
    packet: &Packet<'_>,
    link: &mut impl Link,
) -> Result<(), DropReason> {
    if packet.hop_limit > 1 || !segment.network.is_hop_to(packet.dst) {
        return Ok(());
    }
    send_error(now, segment, packet.peer, None, IcmpError::HopLimitExceeded, packet.bytes, link);
    Err(DropReason::HopLimit)
}

/// A sandbox sent an ICMP or ICMPv6 message.
pub fn handle(
    now: Instant,
    segment: &mut Segment,
    echo: &mut EchoTable,
    packet: &Packet<'_>,
    host: &mut impl Host,
    link: &mut impl Link,
) -> Result<(), DropReason> {
    let message = packet.payload();
    let header: [u8; HEADER] = *message.first_chunk().ok_or(DropReason::Malformed)?;
    if packet.checksum_to_verify() && !emit::checksum_holds(packet.src, packet.dst, packet.protocol, message) {
        return Err(DropReason::Checksum);
    }
    let body = &message[HEADER..];
    let v4 = packet.src.is_ipv4();
    match (v4, header[0]) {
        (true, V4_ECHO_REQUEST) | (false, V6_ECHO_REQUEST) => {
            if header[1] != 0 {
                return Err(DropReason::Malformed);
            }
            if !segment.network.behaviour.services.icmp {
                return Err(DropReason::Disabled);
            }
            if let Some(from) = echo_answered_from(segment, packet) {
                answer_echo(segment, packet, from, header, body, link);
                return Ok(());
            }
            if is_group(segment, packet.dst) {
                return Err(DropReason::Multicast);
            }
            hop_limit_spent(now, segment, packet, link)?;
            echo.handle_request(now, segment, packet, host, link)
        }
        (true, V4_ECHO_REPLY) | (false, V6_ECHO_REPLY) => Err(DropReason::Unsolicited),
        (true, V4_UNREACHABLE | V4_SOURCE_QUENCH | V4_REDIRECT | V4_TIME_EXCEEDED | V4_PARAMETER_PROBLEM)
        | (false, V6_UNREACHABLE | V6_PACKET_TOO_BIG | V6_TIME_EXCEEDED | V6_PARAMETER_PROBLEM) => {
            // What it quotes must at least be the head of a packet.
            About::parse(body).map_or(Err(DropReason::Malformed), |_| Err(DropReason::IcmpError))
        }
        (false, 133..=V6_REDIRECT) => ndp::handle(segment, packet, link),
        _ if is_group(segment, packet.dst) => Err(DropReason::Multicast),
        _ => Err(DropReason::Protocol),
    }
}

/// A protocol we do not carry: protocol unreachable.
pub fn refuse_protocol(
    now: Instant,
    segment: &mut Segment,
    packet: &Packet<'_>,
    link: &mut impl Link,
) -> Result<(), DropReason> {
    if is_group(segment, packet.dst) {
        return Err(DropReason::Multicast);
    }
    send_error(now, segment, packet.peer, None, IcmpError::ProtocolUnreachable, packet.bytes, link);
    Err(DropReason::Protocol)
}

/// The address that answers this echo request, where it is one of the gateway's.
fn echo_answered_from(segment: &Segment, packet: &Packet<'_>) -> Option<IpAddr> {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
    match packet.dst {
        dst if segment.network.is_host(dst) || segment.network.is_dns(dst) => Some(dst),
        // RFC 4443, 4.2: an answer to a multicast request comes from a unicast address.
        IpAddr::V6(ALL_NODES | ALL_ROUTERS) => own_address(segment, packet.src),
        _ => None,
    }
}

fn answer_echo(
    segment: &mut Segment,
    packet: &Packet<'_>,
    from: IpAddr,
    mut header: [u8; HEADER],
    body: &[u8],
    link: &mut impl Link,
) {
    header[0] = if packet.src.is_ipv4() { V4_ECHO_REPLY } else { V6_ECHO_REPLY };
    let ip = Ip { src: from, dst: packet.src, protocol: packet.protocol, tos: packet.tos, hop_limit: HOP_LIMIT };
    emit::icmp(segment, packet.peer, &ip, header, body, link);
}

/// The gateway's address towards this one: of the same family, link-local towards link-local.
fn own_address(segment: &Segment, towards: IpAddr) -> Option<IpAddr> {
    match towards {
        IpAddr::V4(_) => segment.network.v4.map(|l| l.gateway.into()),
        IpAddr::V6(ip) => Some(match segment.network.v6 {
            Some(layout) if !ip.is_unicast_link_local() && segment.network.behaviour.mapping.is_none() => {
                layout.gateway.into()
            }
            _ => segment.network.gateway_link_local().into(),
        }),
    }
}

fn error_source(segment: &Segment, offender: Option<IpAddr>, about: &About) -> Option<IpAddr> {
    let network = &segment.network;
    let is_mapped = network.behaviour.mapping.is_some();
    if network.is_host(about.dst) || (network.is_dns(about.dst) && !is_mapped) {
        return Some(about.dst);
    }
    match offender {
        // The host itself has complained: it has the sandbox's address, or one of its loopback's.
        Some(ip) if is_mapped && ip.is_ipv4() == about.src.is_ipv4() && !can_be_a_client(segment, ip) => {
            stand_in(segment, ip, ip.is_ipv4())
        }
        Some(ip) if ip.is_ipv4() == about.src.is_ipv4() && !ip.is_unspecified() && !ip.is_loopback() => Some(ip),
        _ => own_address(segment, about.src),
    }
}

fn is_group(segment: &Segment, ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            ip.is_multicast() || ip.is_broadcast() || segment.network.v4.is_some_and(|l| l.broadcast() == Some(ip))
        }
        IpAddr::V6(ip) => ip.is_multicast(),
    }
}

/// First eight bytes of an ICMP error (RFC 792; RFC 1191 for the MTU; RFC 1812, 5.2.7.1 for code 13).
fn v4_header(error: IcmpError) -> [u8; HEADER] {
    let (kind, code, mtu) = match error {
        IcmpError::NetUnreachable => (V4_UNREACHABLE, 0, 0),
        IcmpError::HostUnreachable => (V4_UNREACHABLE, 1, 0),
        IcmpError::ProtocolUnreachable => (V4_UNREACHABLE, 2, 0),
        IcmpError::PortUnreachable => (V4_UNREACHABLE, 3, 0),
        IcmpError::PacketTooBig(mtu) => (V4_UNREACHABLE, 4, u16::try_from(mtu).unwrap_or(u16::MAX)),
        IcmpError::Prohibited => (V4_UNREACHABLE, 13, 0),
        IcmpError::HopLimitExceeded => (V4_TIME_EXCEEDED, 0, 0),
        IcmpError::ReassemblyTimeExceeded => (V4_TIME_EXCEEDED, 1, 0),
    };
    let [high, low] = mtu.to_be_bytes();
    [kind, code, 0, 0, 0, 0, high, low]
}

/// First eight bytes of an ICMPv6 error (RFC 4443, 3). `next_header_at` is where the original names the protocol.
fn v6_header(error: IcmpError, next_header_at: u32) -> [u8; HEADER] {
    let (kind, code, last) = match error {
        IcmpError::NetUnreachable => (V6_UNREACHABLE, 0, 0),
        IcmpError::Prohibited => (V6_UNREACHABLE, 1, 0),
        IcmpError::HostUnreachable => (V6_UNREACHABLE, 3, 0),
        IcmpError::PortUnreachable => (V6_UNREACHABLE, 4, 0),
        // RFC 8200, 5: no link of IPv6 has a smaller one.
        IcmpError::PacketTooBig(mtu) => (V6_PACKET_TOO_BIG, 0, mtu.max(1280)),
        IcmpError::HopLimitExceeded => (V6_TIME_EXCEEDED, 0, 0),
        IcmpError::ReassemblyTimeExceeded => (V6_TIME_EXCEEDED, 1, 0),
        IcmpError::ProtocolUnreachable => (V6_PARAMETER_PROBLEM, 1, next_header_at),
    };
    let [a, b, c, d] = last.to_be_bytes();
    [kind, code, 0, 0, a, b, c, d]
}

/// What the rules for errors need to know of the packet that an error is about. Only its head need be there.
#[derive(Debug)]
struct About {
    src: IpAddr,
    dst: IpAddr,
    /// It is a fragment other than the first.
    later_fragment: bool,
    /// It is itself an ICMP error, or a redirect.
    is_error: bool,
    /// For IPv6: where the field is that names the upper protocol.
    next_header_at: u32,
}

impl About {
    fn parse(original: &[u8]) -> Option<About> {
        match original.first()? >> 4 {
            4 => About::parse_v4(original),
            6 => About::parse_v6(original),
            _ => None,
        }
    }

    fn parse_v4(original: &[u8]) -> Option<About> {
        let header: &[u8; 20] = original.first_chunk()?;
        let upper_at = usize::from(header[0] & 0x0f) * 4;
        if upper_at < 20 {
            return None;
        }
        let kind = original.get(upper_at..)?.first().copied();
        let later_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0;
        let is_error = IpProtocol::from(header[9]) == IpProtocol::Icmp
            && matches!(
                kind,
                None | Some(V4_UNREACHABLE | V4_SOURCE_QUENCH | V4_REDIRECT | V4_TIME_EXCEEDED | V4_PARAMETER_PROBLEM)
            );
        Some(About {
            src: Ipv4Addr::new(header[12], header[13], header[14], header[15]).into(),
            dst: Ipv4Addr::new(header[16], header[17], header[18], header[19]).into(),
            later_fragment,
            is_error,
            next_header_at: 9,
        })
    }

    fn parse_v6(original: &[u8]) -> Option<About> {
        let header: &[u8; 40] = original.first_chunk()?;
        let address = |at: usize| -> IpAddr {
            let bytes: [u8; 16] = std::array::from_fn(|i| header[at + i]);
            Ipv6Addr::from(bytes).into()
        };
        let (src, dst) = (address(8), address(24));
        let mut about = About { src, dst, later_fragment: false, is_error: false, next_header_at: 6 };
        let mut next = IpProtocol::from(header[6]);
        let mut at = 40usize;
        loop {
            let rest = original.get(at..).unwrap_or(&[]);
            let length = match (next, rest) {
                (IpProtocol::HopByHop | IpProtocol::Ipv6Opts | IpProtocol::Ipv6Route, &[_, units, ..]) => {
                    8 + usize::from(units) * 8
                }
                (IpProtocol::Ipv6Frag, &[_, _, high, low, ..]) => {
                    about.later_fragment |= u16::from_be_bytes([high, low]) & !7 != 0;
                    8
                }
                (IpProtocol::Icmpv6, _) => {
                    // RFC 4443, 2.1: errors are the types below 128. Nothing to look at: be silent.
                    about.is_error = rest.first().is_none_or(|&kind| kind < 128 || kind == V6_REDIRECT);
                    return Some(about);
                }
                _ => return Some(about),
            };
            next = IpProtocol::from(rest[0]);
            about.next_header_at = at as u32; // within a packet
            at += length;
        }
    }

    /// RFC 1122, 3.2.2 and RFC 4443, 2.4 e: may an error be sent about this?
    fn deserves(&self, error: IcmpError, segment: &Segment) -> bool {
        let one_host = match self.src {
            IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_loopback() && ip.octets()[0] < 240,
            IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_loopback(),
        } && !is_group(segment, self.src);
        let to_group = is_group(segment, self.dst) || matches!(self.dst, IpAddr::V4(ip) if ip.is_unspecified());
        let too_big_v6 = self.dst.is_ipv6() && matches!(error, IcmpError::PacketTooBig(_));
        one_host && (!to_group || too_big_v6) && !self.later_fragment && !self.is_error
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use etherparse::{Icmpv4Type, Icmpv6Type, SlicedPacket, TransportSlice, icmpv4, icmpv6};

    use super::super::emit::testing::*;
    use super::*;

    const OUTSIDE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9));
    const OUTSIDE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9));

    fn outside(v6: bool) -> (IpAddr, IpAddr) {
        if v6 { (SANDBOX_V6.into(), OUTSIDE_V6) } else { (SANDBOX_V4.into(), OUTSIDE_V4) }
    }

    fn sent(error: IcmpError, offender: Option<IpAddr>, original: &[u8]) -> Recorder {
        let (mut segment, mut link) = (segment(1500), Recorder::default());
        send_error(Instant::now(), &mut segment, PEER, offender, error, original, &mut link);
        link
    }

    /// Type, code, source, the last four bytes of the header, and what is quoted; the checksum is verified.
    fn parse(frame: &[u8]) -> (u8, u8, IpAddr, [u8; 4], Vec<u8>) {
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        match (packet.net.unwrap(), packet.transport.unwrap()) {
            (etherparse::NetSlice::Ipv4(ip), TransportSlice::Icmpv4(m)) => {
                assert_eq!(m.checksum(), m.icmp_type().calc_checksum(m.payload()));
                let src = ip.header().source_addr().into();
                (m.type_u8(), m.code_u8(), src, m.bytes5to8(), m.payload().to_vec())
            }
            (etherparse::NetSlice::Ipv6(ip), TransportSlice::Icmpv6(m)) => {
                assert!(m.is_checksum_valid(ip.header().source(), ip.header().destination()));
                let src = ip.header().source_addr().into();
                (m.type_u8(), m.code_u8(), src, m.bytes5to8(), m.payload().to_vec())
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_error_has_the_type_and_code_of_its_family() {
        let errors = [
            (IcmpError::NetUnreachable, (3, 0), (1, 0)),
            (IcmpError::HostUnreachable, (3, 1), (1, 3)),
            (IcmpError::ProtocolUnreachable, (3, 2), (4, 1)),
            (IcmpError::PortUnreachable, (3, 3), (1, 4)),
            (IcmpError::Prohibited, (3, 13), (1, 1)),
            (IcmpError::PacketTooBig(1400), (3, 4), (2, 0)),
            (IcmpError::HopLimitExceeded, (11, 0), (3, 0)),
            (IcmpError::ReassemblyTimeExceeded, (11, 1), (3, 1)),
        ];
        for (error, v4, v6) in errors {
            for (is_v6, expected) in [(false, v4), (true, v6)] {
                let (src, dst) = outside(is_v6);
                let original = ip_packet(src, dst, 17, 64, &[1; 40]);
                let link = sent(error, Some(dst), &original);
                let (kind, code, from, rest, quote) = parse(link.one());
                assert_eq!((kind, code), expected, "{error:?}");
                assert_eq!((from, quote), (dst, original));
                match error {
                    IcmpError::PacketTooBig(mtu) => assert_eq!(u32::from_be_bytes(rest), mtu),
                    IcmpError::ProtocolUnreachable if is_v6 => assert_eq!(rest, [0, 0, 0, 6]),
                    _ => assert_eq!(rest, [0; 4]),
                }
            }
        }
    }

    #[test]
    fn a_second_parser_reads_what_was_meant() {
        let original = ip_packet(SANDBOX_V4.into(), OUTSIDE_V4, 17, 64, &[0; 40]);
        let link = sent(IcmpError::PacketTooBig(1400), None, &original);
        let packet = SlicedPacket::from_ethernet(link.one()).unwrap();
        let Some(TransportSlice::Icmpv4(message)) = packet.transport else { panic!() };
        let needed = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 };
        assert_eq!(message.icmp_type(), Icmpv4Type::DestinationUnreachable(needed));
        let original = ip_packet(SANDBOX_V6.into(), OUTSIDE_V6, 17, 64, &[0; 40]);
        let link = sent(IcmpError::HopLimitExceeded, None, &original);
        let packet = SlicedPacket::from_ethernet(link.one()).unwrap();
        let Some(TransportSlice::Icmpv6(message)) = packet.transport else { panic!() };
        assert_eq!(message.icmp_type(), Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded));
    }

    #[test]
    fn quotes_stay_within_576_and_1280_bytes() {
        for (is_v6, most) in [(false, 576), (true, 1280)] {
            let (src, dst) = outside(is_v6);
            let link = sent(IcmpError::PortUnreachable, None, &ip_packet(src, dst, 17, 64, &[7; 9000]));
            assert_eq!(link.one().len() - 14, most);
        }
    }

    #[test]
    fn errors_come_from_the_offender_or_the_address_that_was_asked_or_the_gateway() {
        let hop = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
        let away = ip_packet(SANDBOX_V4.into(), OUTSIDE_V4, 17, 64, &[0; 8]);
        let to_dns = ip_packet(SANDBOX_V4.into(), DNS_V4.into(), 17, 64, &[0; 8]);
        let from = |offender, original: &[u8]| parse(sent(IcmpError::PortUnreachable, offender, original).one()).2;
        assert_eq!(from(Some(hop), &away), hop);
        assert_eq!(from(None, &away), IpAddr::V4(GATEWAY_V4));
        assert_eq!(from(Some(Ipv4Addr::LOCALHOST.into()), &away), IpAddr::V4(GATEWAY_V4));
        assert_eq!(from(Some(OUTSIDE_V6), &away), IpAddr::V4(GATEWAY_V4));
        assert_eq!(from(Some(hop), &to_dns), IpAddr::V4(DNS_V4));
        let local = ip_packet(SANDBOX_MAC.link_local().into(), OUTSIDE_V6, 17, 64, &[0; 8]);
        assert_eq!(from(None, &local), IpAddr::V6(network(1500).gateway_link_local()));
    }

    #[test]
    fn no_error_about_errors_groups_later_fragments_or_nobody() {
        let v4 =
            |dst: Ipv4Addr, protocol, payload: &[u8]| ip_packet(SANDBOX_V4.into(), dst.into(), protocol, 64, payload);
        let group6 = "ff02::fb".parse().unwrap();
        let mut fragment = v4(Ipv4Addr::new(192, 0, 2, 9), 17, &[0; 16]);
        fragment[7] = 1;
        let fragment6 = [44u8, 0, 0, 8, 0, 0, 0, 1];
        let quiet: Vec<Vec<u8>> = vec![
            v4(Ipv4Addr::new(192, 0, 2, 9), 1, &[3, 3, 0, 0, 0, 0, 0, 0]),
            v4(Ipv4Addr::new(192, 0, 2, 9), 1, &[11, 0, 0, 0, 0, 0, 0, 0]),
            v4(Ipv4Addr::new(192, 0, 2, 9), 1, &[]),
            v4(Ipv4Addr::BROADCAST, 17, &[0; 8]),
            v4(Ipv4Addr::new(10, 0, 2, 255), 17, &[0; 8]),
            v4(Ipv4Addr::new(224, 0, 0, 251), 17, &[0; 8]),
            v4(Ipv4Addr::UNSPECIFIED, 17, &[0; 8]),
            ip_packet(Ipv4Addr::UNSPECIFIED.into(), OUTSIDE_V4, 17, 64, &[0; 8]),
            ip_packet(Ipv4Addr::BROADCAST.into(), OUTSIDE_V4, 17, 64, &[0; 8]),
            ip_packet(SANDBOX_V6.into(), group6, 17, 64, &[0; 8]),
            ip_packet(SANDBOX_V6.into(), OUTSIDE_V6, 58, 64, &[1, 4, 0, 0, 0, 0, 0, 0]),
            ip_packet(SANDBOX_V6.into(), OUTSIDE_V6, 60, 64, &[58, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0]),
            ip_packet(SANDBOX_V6.into(), OUTSIDE_V6, 44, 64, &fragment6),
            ip_packet(Ipv6Addr::UNSPECIFIED.into(), OUTSIDE_V6, 17, 64, &[0; 8]),
            fragment,
            vec![],
            vec![0x45; 19],
            vec![0x60; 39],
            vec![0x41; 60],
        ];
        for original in quiet {
            let link = sent(IcmpError::HostUnreachable, None, &original);
            assert!(link.frames.is_empty(), "{original:02x?}");
        }
        // Packet too big is the exception for IPv6 multicast.
        let group = ip_packet(SANDBOX_V6.into(), group6, 17, 64, &[0; 8]);
        assert_eq!(sent(IcmpError::PacketTooBig(1280), None, &group).frames.len(), 1);
        // A ping is no error.
        let ping = v4(Ipv4Addr::new(192, 0, 2, 9), 1, &[8, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(sent(IcmpError::HostUnreachable, None, &ping).frames.len(), 1);
    }

    #[test]
    fn protocol_unreachable_points_at_the_field_that_names_the_protocol() {
        let original = ip_packet(SANDBOX_V6.into(), OUTSIDE_V6, 60, 64, &[132, 0, 0, 0, 0, 0, 0, 0, 9, 9]);
        assert_eq!(parse(sent(IcmpError::ProtocolUnreachable, None, &original).one()).3, [0, 0, 0, 40]);
    }

    #[test]
    fn a_flood_of_errors_ends_and_a_traceroute_does_not() {
        let (mut segment, mut link) = (segment(1500), Recorder::default());
        let original = ip_packet(SANDBOX_V4.into(), OUTSIDE_V4, 17, 1, &[0; 8]);
        let mut now = Instant::now();
        for _ in 0..1500 {
            send_error(now, &mut segment, PEER, None, IcmpError::HopLimitExceeded, &original, &mut link);
        }
        assert_eq!(link.frames.len(), 1000);
        assert_eq!(segment.counters.dropped(DropReason::RateLimited), 500);
        for _ in 0..90 {
            now += Duration::from_millis(10);
            send_error(now, &mut segment, PEER, None, IcmpError::HopLimitExceeded, &original, &mut link);
        }
        assert_eq!(link.frames.len(), 1090);
    }
}
