//! Two opinions about a frame of a sandbox: the gateway's, seen by what it does about it, and etherparse's.
//!
//! The gateway acts on a frame: a datagram, a connect or a ping goes to the host, an ARP reply, an echo reply or a reset
//! comes back. Then etherparse must read the same out of it, field by field, and find every length and checksum right. The
//! other way round, whatever etherparse takes for whole, and what the gateway would carry, must be acted upon. And the
//! views of IP packets that the gateway's own parsers make must say what etherparse's say.
//!
//! Where the two disagree for a reason, the reason has a name here ([`Accepted`]).
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use etherparse::{
    ArpOperation, IpNumber, Ipv4Slice, Ipv6Slice, NetSlice, SlicedPacket, TcpOptionElement, TransportSlice, checksum,
};
use smoltcp::wire::IpProtocol;
use tapline::gateway::Gateway;
use tapline::gateway::link::{Asker, Datagram, EchoId, Host, HostError, Link, Offload, Peer, PortId, TcpId, UdpId};
use tapline::gateway::packet::{self, Parsed};
use tapline::plan::{Endpoint, HostView, Ipv4Layout, Ipv6Layout, MacAddr, Network};

use super::SMOLTCP_LOOKS_AT_CHECKSUMS;

pub const PORT: PortId = PortId(1);
pub const SANDBOX_MAC: MacAddr = MacAddr([0x02, 0x42, 10, 0, 2, 100]);
pub const GATEWAY_MAC: MacAddr = MacAddr([0x02, 0x42, 10, 0, 2, 2]);
pub const SANDBOX_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
pub const SANDBOX_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100);
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
const DNS_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// Somebody outside, whom a sandbox may speak to.
pub const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
pub const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);

/// Why the two may disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Accepted {
    /// A tag in the Ethernet header (IEEE 802.1Q, 802.1AE). They look behind it; the gateway's segment has none, and a
    /// tagged frame is no frame of it.
    Tagged,
    /// An authentication header (RFC 4302). They look behind it; to the gateway it is a protocol that it does not carry,
    /// because a packet that is sent anew by a socket cannot keep it.
    Authenticated,
    /// A payload length of 0 in IPv6. They take it for a jumbogram (RFC 2675) or a length that nobody has filled in, and
    /// everything that is there for the packet; a TAP has no jumbograms, and to the gateway it is a packet with nothing
    /// in it.
    NoLength,
    /// A length of 0 in UDP. Likewise: only a jumbogram may say so (RFC 2675, 4).
    NoUdpLength,
    /// A routing header that wants to go on (RFC 8200, 4.4). They read past it; the gateway, which is no such router,
    /// drops it (RFC 5095).
    Routed,
    /// A fragment header behind another. They read both; the gateway puts together what was cut once, as Linux does
    /// (net/ipv6/reassembly.c).
    CutTwice,
    /// More than eight extension headers. They follow any number; so many are nobody's but an attacker's.
    LongChain,
    /// A SYN with options that cannot be read. They give what comes before; the gateway leaves such a SYN unanswered,
    /// because nobody knows what was offered.
    Options,
}

/// What the gateway did about a frame, or what etherparse reads that it should do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    Datagram {
        to: SocketAddr,
        payload: Vec<u8>,
        hop_limit: u8,
        tos: u8,
        dont_fragment: bool,
    },
    Connect {
        to: SocketAddr,
    },
    Ping {
        to: IpAddr,
        sequence: u16,
        data: Vec<u8>,
        hop_limit: u8,
        tos: u8,
        dont_fragment: bool,
    },
    /// A segment of no flow: from whom it is answered, and with which numbers.
    Reset {
        from: SocketAddr,
        to: SocketAddr,
        sequence: u32,
        acknowledge: Option<u32>,
    },
    Arp {
        target: Ipv4Addr,
    },
    /// The gateway's own answer to a ping.
    Pong {
        identifier: [u8; 4],
        data: Vec<u8>,
    },
}

/// How a comparison went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Both see the same.
    Acted(Act),
    /// Nobody does anything about it, or the gateway has a rule of its own not to.
    Nothing,
    /// A fragment, of which no more than the views are compared.
    Fragment,
    /// A known disagreement.
    Accepted(Accepted),
}

/// A host that notes what it is to do.
#[derive(Default)]
struct Notes {
    acts: Vec<Act>,
    connecting: Vec<TcpId>,
    replies: Vec<Vec<u8>>,
}

impl Host for Notes {
    fn tcp_connect(&mut self, flow: TcpId, to: SocketAddr, _: Option<u8>) {
        self.connecting.push(flow);
        self.acts.push(Act::Connect { to });
    }

    fn tcp_connect_dns(&mut self, flow: TcpId, _: Asker) {
        self.connecting.push(flow);
    }

    fn tcp_keepalive(&mut self, _: TcpId) {}
    fn tcp_close(&mut self, flow: TcpId, _: bool) {
        self.connecting.retain(|other| *other != flow);
    }

    fn udp_send(&mut self, _: UdpId, to: SocketAddr, datagram: Datagram<'_>) -> Result<(), HostError> {
        let Datagram { payload, hop_limit, tos, dont_fragment, .. } = datagram;
        self.acts.push(Act::Datagram { to, payload: payload.to_vec(), hop_limit, tos, dont_fragment });
        Ok(())
    }

    fn udp_close(&mut self, _: UdpId) {}

    fn echo_send(&mut self, _: EchoId, to: IpAddr, sequence: u16, datagram: Datagram<'_>) -> Result<(), HostError> {
        let Datagram { payload, hop_limit, tos, dont_fragment, .. } = datagram;
        self.acts.push(Act::Ping { to, sequence, data: payload.to_vec(), hop_limit, tos, dont_fragment });
        Ok(())
    }

    fn echo_close(&mut self, _: EchoId) {}

    fn dns_query(&mut self, _: Asker, _: &[u8]) -> bool {
        true
    }
}

/// A link that keeps frames.
#[derive(Default)]
struct Frames(Vec<Vec<u8>>);

impl Link for Frames {
    fn has_room(&self, _: PortId) -> bool {
        true
    }

    fn transmit<R>(&mut self, _: PortId, _: Offload, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut bytes = vec![0; len];
        let result = fill(&mut bytes);
        self.0.push(bytes);
        result
    }
}

/// A gateway that frames can be given to.
pub struct Bench {
    now: Instant,
    gateway: Gateway,
    host: Notes,
    link: Frames,
}

impl Default for Bench {
    fn default() -> Bench {
        let now = Instant::now();
        let network = Network {
            name: "private".into(),
            sharing: None,
            v4: Ipv4Layout::slirp("10.0.2.0/24".parse().expect("a subnet")),
            v6: Ipv6Layout::slirp("fd00::/64".parse().expect("a prefix")),
            mtu: 1500,
            gateway_mac: GATEWAY_MAC,
            host_loopback_allowed: false,
            metadata_allowed: false,
            broadcast_to_host: false,
            dns_enabled: true,
            dns_search: Vec::new(),
            dns_servers: Vec::new(),
            local_names: Vec::new(),
            outbound: Default::default(),
            udp_timeout: std::time::Duration::from_secs(180),
            behaviour: Default::default(),
        };
        let mut gateway = Gateway::new(now, network, HostView::default());
        let (v4, v6) = (Some(SANDBOX_V4), Some(SANDBOX_V6));
        gateway.add_port(PORT, Endpoint { id: "0123456789ab".into(), mac: SANDBOX_MAC, v4, v6, ..Endpoint::default() });
        Bench { now, gateway, host: Notes::default(), link: Frames::default() }
    }
}

impl Bench {
    /// What both make of a frame. With `vouched` its sender vouches for the upper checksum, as a virtio-net header can.
    ///
    /// # Panics
    /// When they disagree and there is no known reason to.
    pub fn compare(&mut self, frame: &[u8], vouched: bool) -> Outcome {
        if let Some((_, packet)) = frame.split_at_checked(packet::ETHERNET_HEADER)
            && views(packet)
        {
            return Outcome::Fragment;
        }
        let ours = self.ours(frame, vouched);
        let theirs = theirs(frame, vouched).unwrap_or_default();
        match (ours, theirs.reason) {
            (Some(act), _) if theirs.acts.contains(&act) => Outcome::Acted(act),
            (None, _) if theirs.acts.is_empty() || !theirs.must => Outcome::Nothing,
            // Each reason is one not to act; only a packet with nothing in it is acted upon in another way.
            (None, Some(reason)) => Outcome::Accepted(reason),
            (Some(_), Some(Accepted::NoLength)) => Outcome::Accepted(Accepted::NoLength),
            (ours, _) => panic!("the gateway: {ours:?}\netherparse: {theirs:?}\n{}", hex(frame)),
        }
    }

    fn ours(&mut self, frame: &[u8], vouched: bool) -> Option<Act> {
        let offload = Offload { csum_valid: vouched, ..Offload::default() };
        self.gateway.handle_frame(self.now, PORT, offload, frame, &mut self.host, &mut self.link);
        let act = self.host.acts.pop();
        assert!(self.host.acts.is_empty(), "several acts for one frame");
        let replies: Vec<Vec<u8>> = self.link.0.drain(..).collect();
        self.host.replies.extend(replies);
        // A flow that stays would answer the next frame in another way.
        while let Some(flow) = self.host.connecting.pop() {
            self.gateway.handle_tcp_outcome(self.now, flow, Err(HostError::Refused), None, &mut self.link);
        }
        self.link.0.clear();
        let reply = self.host.replies.drain(..).collect::<Vec<_>>();
        match (act, &reply[..]) {
            (Some(act), []) => Some(act),
            (Some(_), _) => panic!("acted upon and answered: {}", hex(frame)),
            (None, []) => None,
            // The large answer to a large ping comes in pieces.
            (None, replies) => replies.iter().find_map(|reply| answer(reply)),
        }
    }
}

/// What a frame of the gateway's is: a reset, an ARP reply, an answer to a ping; `None` for anything else, such as an
/// ICMP error.
fn answer(frame: &[u8]) -> Option<Act> {
    let packet = SlicedPacket::from_ethernet(frame).expect("the other parser takes what the gateway makes");
    if let Some(NetSlice::Arp(arp)) = &packet.net {
        assert_eq!(arp.operation(), ArpOperation::REPLY);
        return Some(Act::Arp { target: <[u8; 4]>::try_from(arp.sender_protocol_addr()).expect("IPv4").into() });
    }
    let (src, dst, ..) = addresses(packet.net.as_ref()?)?;
    match packet.transport.as_ref()? {
        TransportSlice::Tcp(tcp) => {
            assert!(tcp.rst(), "something else than a reset for no flow");
            Some(Act::Reset {
                from: SocketAddr::new(src, tcp.source_port()),
                to: SocketAddr::new(dst, tcp.destination_port()),
                sequence: tcp.sequence_number(),
                acknowledge: tcp.ack().then(|| tcp.acknowledgment_number()),
            })
        }
        TransportSlice::Icmpv4(m) if m.type_u8() == 0 => {
            Some(Act::Pong { identifier: m.bytes5to8(), data: m.payload().to_vec() })
        }
        TransportSlice::Icmpv6(m) if m.type_u8() == 129 => {
            Some(Act::Pong { identifier: m.bytes5to8(), data: m.payload().to_vec() })
        }
        _ => None,
    }
}

/// Source, destination, hop limit, type of service, don't fragment.
fn addresses(net: &NetSlice<'_>) -> Option<(IpAddr, IpAddr, u8, u8, bool)> {
    match net {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            let tos = header.dcp().value() << 2 | header.ecn().value();
            let (src, dst) = (header.source_addr().into(), header.destination_addr().into());
            Some((src, dst, header.ttl(), tos, header.dont_fragment()))
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            let (src, dst) = (header.source_addr().into(), header.destination_addr().into());
            let fragmented = fragments(ip) > 0;
            Some((src, dst, header.hop_limit(), header.traffic_class(), !fragmented))
        }
        NetSlice::Arp(_) => None,
    }
}

fn extensions<'a>(ip: &Ipv6Slice<'a>) -> impl Iterator<Item = etherparse::Ipv6ExtensionSlice<'a>> {
    ip.extensions().clone().into_iter()
}

/// What etherparse reads out of a frame.
#[derive(Debug, Default)]
struct Opinion {
    /// What a gateway may do about it; nothing else.
    acts: Vec<Act>,
    /// It comes from the sandbox and goes to somebody outside, so the gateway has no rule against it.
    must: bool,
    /// Why the gateway might do nothing all the same.
    reason: Option<Accepted>,
}

/// `None` for what is no frame for a gateway.
fn theirs(frame: &[u8], vouched: bool) -> Option<Opinion> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let Some(etherparse::LinkSlice::Ethernet2(ethernet)) = &packet.link else { return None };
    let (to, from) = (ethernet.destination(), ethernet.source());
    if from[0] & 1 != 0 || (to != GATEWAY_MAC.0 && to[0] & 1 == 0) {
        return None;
    }
    let tagged = (!packet.link_exts.is_empty()).then_some(Accepted::Tagged);
    let net = packet.net.as_ref()?;
    if let NetSlice::Arp(arp) = net {
        let acts = asked_for(arp, from).into_iter().collect();
        let must = [SANDBOX_V4.octets(), [0; 4]].iter().any(|own| own == arp.sender_protocol_addr());
        return Some(Opinion { acts, must, reason: tagged });
    }
    // Nobody can vouch for a datagram by one of its fragments, be it the only one.
    let vouched = vouched && !matches!(net, NetSlice::Ipv6(ip) if fragments(ip) > 0);
    let reason = tagged.or(reason_of(net)?);
    let (src, dst, ..) = addresses(net)?;
    let must = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => src == SANDBOX_V4 && dst == OUTSIDE_V4,
        (IpAddr::V6(src), IpAddr::V6(dst)) => src == SANDBOX_V6 && dst == OUTSIDE_V6,
        _ => false,
    };
    let (acts, unread) = match packet.transport.as_ref() {
        Some(TransportSlice::Udp(udp)) => {
            (datagram(udp, net, vouched), (udp.length() == 0).then_some(Accepted::NoUdpLength))
        }
        Some(TransportSlice::Tcp(tcp)) => {
            let readable = |option: Result<TcpOptionElement, _>| option.is_ok();
            let unread = !tcp.options_iterator().all(readable);
            (segment(tcp, net, vouched), unread.then_some(Accepted::Options))
        }
        Some(TransportSlice::Icmpv4(m)) => {
            let holds = vouched || m.checksum() == m.icmp_type().calc_checksum(m.payload());
            let asks = holds && src.is_ipv4() && (m.type_u8(), m.code_u8()) == (8, 0);
            (if asks { ping(m.bytes5to8(), m.payload(), net) } else { Vec::new() }, None)
        }
        Some(TransportSlice::Icmpv6(m)) => {
            let holds = match (src, dst) {
                (IpAddr::V6(src), IpAddr::V6(dst)) => vouched || m.is_checksum_valid(src.octets(), dst.octets()),
                _ => false,
            };
            let asks = holds && (m.type_u8(), m.code_u8()) == (128, 0);
            (if asks { ping(m.bytes5to8(), m.payload(), net) } else { Vec::new() }, None)
        }
        _ => (Vec::new(), None),
    };
    Some(Opinion { acts, must, reason: reason.or(unread) })
}

/// Why the gateway might not carry an IP packet, by its headers. `None` when its own checksum is wrong.
fn reason_of(net: &NetSlice<'_>) -> Option<Option<Accepted>> {
    match net {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            header_holds(header.slice()).then(|| ip.extensions().auth.is_some().then_some(Accepted::Authenticated))
        }
        NetSlice::Ipv6(ip) => {
            let mut reason = None;
            for (n, extension) in extensions(ip).enumerate() {
                use etherparse::Ipv6ExtensionSlice as E;
                reason = reason.or(match extension {
                    E::Authentication(_) => Some(Accepted::Authenticated),
                    // The second byte behind the first two is how many segments are left.
                    E::Fragment(_) if fragments(ip) > 1 => Some(Accepted::CutTwice),
                    E::Routing(header) if has_segments_left(&header) => Some(Accepted::Routed),
                    _ if n >= MOST_EXTENSIONS => Some(Accepted::LongChain),
                    _ => None,
                });
            }
            if ip.header().payload_length() == 0
                && !ip.payload().payload.is_empty() | ip.extensions().first_header().is_some()
            {
                reason = Some(Accepted::NoLength);
            }
            Some(reason)
        }
        NetSlice::Arp(_) => Some(None),
    }
}

/// Is the checksum of an IPv4 header right? (Theirs is computed over what they have understood of it, without the flag that
/// RFC 791 has kept free.)
fn header_holds(header: &[u8]) -> bool {
    let sum = |mut sum: checksum::Sum16BitWords, four: &[u8]| sum.add_4bytes([four[0], four[1], four[2], four[3]]);
    !SMOLTCP_LOOKS_AT_CHECKSUMS
        || header.chunks_exact(4).fold(checksum::Sum16BitWords::new(), sum).ones_complement() == 0
}

fn fragments(ip: &Ipv6Slice<'_>) -> usize {
    extensions(ip).filter(|e| matches!(e, etherparse::Ipv6ExtensionSlice::Fragment(_))).count()
}

/// So many extension headers the gateway follows.
const MOST_EXTENSIONS: usize = 8;

fn has_segments_left(header: &etherparse::Ipv6RawExtHeaderSlice<'_>) -> bool {
    header.payload().get(1).is_some_and(|left| *left != 0)
}

fn datagram(udp: &etherparse::UdpSlice<'_>, net: &NetSlice<'_>, vouched: bool) -> Vec<Act> {
    let Some((src, dst, hop_limit, tos, dont_fragment)) = addresses(net) else { return Vec::new() };
    let header = udp.to_header();
    let expected = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            header.calc_checksum_ipv4_raw(src.octets(), dst.octets(), udp.payload()).ok()
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            header.calc_checksum_ipv6_raw(src.octets(), dst.octets(), udp.payload()).ok()
        }
        _ => None,
    };
    let holds = vouched || expected == Some(udp.checksum()) || (udp.checksum() == 0 && src.is_ipv4());
    if !holds || udp.destination_port() == 0 || hop_limit < 2 {
        return Vec::new();
    }
    let (to, payload) = (SocketAddr::new(dst, udp.destination_port()), udp.payload().to_vec());
    vec![Act::Datagram { to, payload, hop_limit: hop_limit - 1, tos, dont_fragment }]
}

fn segment(tcp: &etherparse::TcpSlice<'_>, net: &NetSlice<'_>, vouched: bool) -> Vec<Act> {
    let Some((src, dst, hop_limit, ..)) = addresses(net) else { return Vec::new() };
    let expected = match net {
        NetSlice::Ipv4(ip) => tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination()).ok(),
        NetSlice::Ipv6(ip) => tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination()).ok(),
        NetSlice::Arp(_) => None,
    };
    let holds = !SMOLTCP_LOOKS_AT_CHECKSUMS || vouched || expected == Some(tcp.checksum());
    if !holds || tcp.source_port() == 0 || tcp.destination_port() == 0 || tcp.rst() {
        return Vec::new();
    }
    let (from, to) = (SocketAddr::new(src, tcp.source_port()), SocketAddr::new(dst, tcp.destination_port()));
    // RFC 9293, 3.10.7.1.
    let length = tcp.payload().len() as u32 + u32::from(tcp.syn()) + u32::from(tcp.fin());
    let (sequence, acknowledge) = match tcp.ack() {
        true => (tcp.acknowledgment_number(), None),
        false => (0, Some(tcp.sequence_number().wrapping_add(length))),
    };
    let reset = Act::Reset { from: to, to: from, sequence, acknowledge };
    let opens = tcp.syn() && !tcp.ack() && !tcp.fin();
    match (opens, [IpAddr::V4(OUTSIDE_V4), OUTSIDE_V6.into()].contains(&dst)) {
        (true, _) if hop_limit < 2 => Vec::new(),
        (true, true) => vec![Act::Connect { to }],
        // Where nothing may be connected to, a SYN is answered like any other.
        (true, false) => vec![Act::Connect { to }, reset],
        (false, _) => vec![reset],
    }
}

/// A ping goes on, or is answered where the gateway itself is meant.
fn ping(identifier: [u8; 4], data: &[u8], net: &NetSlice<'_>) -> Vec<Act> {
    let Some((_, to, hop_limit, tos, dont_fragment)) = addresses(net) else { return Vec::new() };
    let sequence = u16::from_be_bytes([identifier[2], identifier[3]]);
    let on = Act::Ping { to, sequence, data: data.to_vec(), hop_limit: hop_limit.wrapping_sub(1), tos, dont_fragment };
    let is_outside = [IpAddr::V4(OUTSIDE_V4), OUTSIDE_V6.into()].contains(&to);
    match (is_outside, hop_limit > 1) {
        (true, true) => vec![on],
        (true, false) => Vec::new(),
        (false, goes_on) => {
            [Act::Pong { identifier, data: data.to_vec() }].into_iter().chain(goes_on.then_some(on)).collect()
        }
    }
}

/// The address that an ARP request asks for, where the gateway is to answer.
fn asked_for(arp: &etherparse::ArpPacketSlice<'_>, from: [u8; 6]) -> Option<Act> {
    let target = Ipv4Addr::from(<[u8; 4]>::try_from(arp.target_protocol_addr()).ok()?);
    let is_arp = arp.hw_addr_type().0 == 1 && arp.proto_addr_type().0 == 0x0800 && arp.hw_addr_size() == 6;
    let asks = is_arp && arp.sender_hw_addr() == from && arp.operation() == ArpOperation::REQUEST;
    (asks && [GATEWAY_V4, DNS_V4].contains(&target)).then_some(Act::Arp { target })
}

/// The views of a packet that the gateway's parsers make, against etherparse's: where both have one they say the same, and
/// where only one has, there is a reason. True for a fragment of several.
fn views(bytes: &[u8]) -> bool {
    let peer = Peer { port: PORT, mac: SANDBOX_MAC };
    let (as_v4, as_v6) =
        (packet::parse_ipv4(peer, Offload::default(), bytes), packet::parse_ipv6(peer, Offload::default(), bytes));
    match bytes.first().map(|first| first >> 4) {
        Some(4) => {
            assert!(as_v6.is_err(), "{}", hex(bytes));
            let ours = as_v4.ok();
            view_v4(ours, bytes);
            is_fragment(ours)
        }
        Some(6) => {
            assert!(as_v4.is_err(), "{}", hex(bytes));
            let ours = as_v6.ok();
            view_v6(ours, bytes);
            is_fragment(ours)
        }
        _ => {
            assert!(as_v4.is_err() && as_v6.is_err(), "{}", hex(bytes));
            false
        }
    }
}

fn is_fragment(parsed: Option<Parsed<'_>>) -> bool {
    matches!(parsed, Some(Parsed::Fragment(fragment)) if fragment.more || fragment.offset > 0)
}

fn view_v4(ours: Option<Parsed<'_>>, bytes: &[u8]) {
    let theirs = Ipv4Slice::from_slice(bytes);
    let (ours, theirs) = match (ours, theirs) {
        (None, Ok(theirs)) => {
            assert!(!header_holds(theirs.header().slice()), "refused for nothing: {}", hex(bytes));
            return;
        }
        // They look into authentication headers.
        (Some(Parsed::Whole(p)), Err(_)) if p.protocol == IpProtocol::IpSecAh => return,
        (Some(Parsed::Fragment(f)), Err(_)) if f.protocol == IpProtocol::IpSecAh => return,
        (Some(ours), Err(error)) => panic!("{ours:?} but {error}"),
        (Some(ours), Ok(theirs)) => (ours, theirs),
        (None, Err(_)) => return,
    };
    let header = theirs.header();
    let (src, dst): (IpAddr, IpAddr) = (header.source_addr().into(), header.destination_addr().into());
    let is_auth = header.protocol() == IpNumber::AUTHENTICATION_HEADER;
    match ours {
        Parsed::Whole(p) => {
            assert!(!header.is_fragmenting_payload());
            assert_eq!((p.src, p.dst, u8::from(p.protocol)), (src, dst, header.protocol().0));
            assert_eq!((p.hop_limit, p.dont_fragment), (header.ttl(), header.dont_fragment()));
            assert_eq!(p.tos, header.dcp().value() << 2 | header.ecn().value());
            assert_eq!(p.bytes.len(), usize::from(header.total_len()));
            assert!(is_auth || p.payload() == theirs.payload().payload);
        }
        Parsed::Fragment(f) => {
            assert!(header.is_fragmenting_payload());
            assert_eq!((f.src, f.dst, f.id), (src, dst, header.identification().into()));
            assert_eq!((f.offset, f.more), (header.fragments_offset().byte_offset() as u32, header.more_fragments()));
            assert!(is_auth || f.payload == theirs.payload().payload);
        }
    }
}

fn view_v6(ours: Option<Parsed<'_>>, bytes: &[u8]) {
    let theirs = Ipv6Slice::from_slice(bytes);
    let (ours, theirs) = match (ours, theirs) {
        (None, Ok(theirs)) => {
            let left = extensions(&theirs).any(|e| match e {
                etherparse::Ipv6ExtensionSlice::Routing(header) => has_segments_left(&header),
                _ => false,
            });
            let long = extensions(&theirs).count() > MOST_EXTENSIONS;
            let empty = theirs.header().payload_length() == 0;
            assert!(left || long || empty, "refused for nothing: {}", hex(bytes));
            return;
        }
        (Some(ours), Err(error)) => {
            // They read on behind a fragment header and inside an authentication header.
            let fragment = matches!(ours, Parsed::Fragment(_));
            let auth = matches!(ours, Parsed::Whole(p) if p.protocol == IpProtocol::IpSecAh);
            assert!(fragment || auth, "{ours:?} but {error}");
            return;
        }
        (Some(ours), Ok(theirs)) => (ours, theirs),
        (None, Err(_)) => return,
    };
    let header = theirs.header();
    if header.payload_length() == 0 {
        return;
    }
    let (src, dst): (IpAddr, IpAddr) = (header.source_addr().into(), header.destination_addr().into());
    match ours {
        Parsed::Whole(p) => {
            assert_eq!((p.src, p.dst, p.hop_limit), (src, dst, header.hop_limit()));
            assert_eq!(p.tos, header.traffic_class());
            assert_eq!(p.bytes.len(), 40 + usize::from(header.payload_length()));
            let payload = theirs.payload();
            if u8::from(p.protocol) == payload.ip_number.0 {
                assert!(!payload.fragmented);
                assert_eq!(p.payload(), payload.payload);
            } else {
                // They follow the authentication header, too.
                assert_eq!(p.protocol, IpProtocol::IpSecAh);
            }
        }
        Parsed::Fragment(f) => {
            assert_eq!((f.src, f.dst), (src, dst));
            let theirs = extensions(&theirs).find_map(|e| match e {
                etherparse::Ipv6ExtensionSlice::Fragment(f) => Some(f),
                _ => None,
            });
            let Some(theirs) = theirs else { panic!("a fragment without a header: {}", hex(bytes)) };
            assert_eq!((f.id, f.more), (theirs.identification(), theirs.more_fragments()));
            assert_eq!(f.offset, theirs.fragment_offset().byte_offset() as u32);
            assert_eq!(u8::from(f.protocol), theirs.next_header().0);
        }
    }
}

/// A frame as it can be put into a test.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
