//! Frames that the gateway writes itself: Ethernet, IP and UDP headers, fragmentation.
//!
//! # Theory of operation
//!
//! Everything but TCP leaves the gateway through here. A caller says who the frame is for ([`Peer`]), what the
//! IP header shall say ([`Ip`]) and which bytes follow; the frame is written straight into the buffer that the
//! link lends, so an ordinary datagram is copied once and nothing is allocated.
//!
//! - [`udp`] leaves the UDP checksum to whoever needs it: the field holds the sum over the pseudo-header and
//!   [`Offload::needs_csum`] says so (virtio 1.2, 5.1.6.2). Several datagrams of one size leave as one
//!   super-segment where the port takes such frames ([`Link::takes_udp_super_segments`]), one by one elsewhere.
//! - [`icmp`] computes the checksum of ICMP and ICMPv6, for whose partial checksums no receiver is prepared.
//! - [`ip`] sends any payload whose checksum is right already.
//!
//! A datagram larger than the network's MTU leaves in fragments (RFC 791, 3.2; RFC 8200, 4.5). A partial
//! checksum cannot be completed over fragments, so it is computed in full first. Fragments are cut from the
//! caller's slices without gathering them in between.
//!
//! Identifications: an unfragmented IPv4 packet has don't-fragment set and identification 0, which RFC 6864
//! allows for atomic datagrams and which tells nobody how much the gateway sends. Fragmented ones get the next
//! value of [`Identifications`], a counter behind a keyed permutation: no value returns before all others were
//! used, and the next one cannot be guessed by somebody who has seen a few.
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::wire::IpProtocol;

use super::Segment;
use super::link::{Gso, Link, Offload, Peer};
use super::packet::{ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use crate::plan::MacAddr;

/// TTL and hop limit of what the gateway sends (RFC 1700's recommended default).
pub const HOP_LIMIT: u8 = 64;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const IPV6_FRAGMENT_HEADER: usize = 8;
const UDP_HEADER: usize = 8;
/// Where the checksum is in a UDP header.
const UDP_CHECKSUM_AT: u16 = 6;
/// Most datagrams in one super-segment (linux/udp.h, UDP_MAX_SEGMENTS, as it was at first).
const MAX_UDP_SEGMENTS: usize = 64;

/// What an IP header shall say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source address.
    pub src: IpAddr,
    /// Destination address, of the same family.
    pub dst: IpAddr,
    /// The protocol above.
    pub protocol: IpProtocol,
    /// Type of service / traffic class byte.
    pub tos: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
}

impl Ip {
    /// A header with the gateway's usual hop limit and traffic class 0.
    pub fn new(src: IpAddr, dst: IpAddr, protocol: IpProtocol) -> Ip {
        Ip { src, dst, protocol, tos: 0, hop_limit: HOP_LIMIT }
    }

    fn header_len(&self) -> usize {
        if self.src.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER }
    }
}

/// Send a UDP datagram, or with `gso_size` not 0 several of `gso_size` bytes each (the last may be shorter).
/// A datagram larger than the MTU leaves in fragments. Nothing is sent when the families of `from` and `to`
/// differ or a datagram is larger than UDP allows (65,507 bytes over IPv4, 65,527 over IPv6).
#[allow(clippy::too_many_arguments)]
pub fn udp(
    segment: &mut Segment,
    peer: Peer,
    from: SocketAddr,
    to: SocketAddr,
    payload: &[u8],
    gso_size: u16,
    tos: u8,
    link: &mut impl Link,
) {
    let ip = Ip { src: from.ip(), dst: to.ip(), protocol: IpProtocol::Udp, tos, hop_limit: HOP_LIMIT };
    let size = usize::from(gso_size);
    if size == 0 || payload.len() <= size {
        return udp_frame(segment, peer, ip, from.port(), to.port(), payload, 0, link);
    }
    let fits_mtu = ip.header_len() + UDP_HEADER + size <= usize::from(segment.network.mtu);
    let batch = if fits_mtu && link.takes_udp_super_segments(peer.port) {
        let most = (usize::from(u16::MAX) - IPV6_HEADER - UDP_HEADER) / size;
        size * most.clamp(1, MAX_UDP_SEGMENTS)
    } else {
        size
    };
    for datagrams in payload.chunks(batch) {
        let gso_size = if datagrams.len() > size { gso_size } else { 0 };
        udp_frame(segment, peer, ip, from.port(), to.port(), datagrams, gso_size, link);
    }
}

/// One UDP frame: a datagram, or a super-segment that the link takes.
#[allow(clippy::too_many_arguments)]
fn udp_frame(
    segment: &mut Segment,
    peer: Peer,
    ip: Ip,
    src_port: u16,
    dst_port: u16,
    payload: &[u8],
    gso_size: u16,
    link: &mut impl Link,
) {
    let Ok(length) = u16::try_from(UDP_HEADER + payload.len()) else { return };
    let mut header = udp_header(src_port, dst_port, length);
    let pseudo = pseudo_header_sum(ip.src, ip.dst, ip.protocol, u32::from(length));
    let whole = ip.header_len() + usize::from(length);
    if gso_size == 0 && whole > usize::from(segment.network.mtu) {
        return udp_checksummed(segment, peer, &ip, src_port, dst_port, payload, link);
    }
    header[6..].copy_from_slice(&fold(pseudo).to_be_bytes());
    let csum_start = (ETHERNET_HEADER + ip.header_len()) as u16; // 34 or 54
    let offload = Offload {
        needs_csum: true,
        csum_valid: false,
        csum_start,
        csum_offset: UDP_CHECKSUM_AT,
        gso: if gso_size == 0 { Gso::None } else { Gso::UdpL4 },
        gso_size,
        hdr_len: if gso_size == 0 { 0 } else { csum_start + UDP_HEADER as u16 },
    };
    send(segment, peer, &ip, [&header, payload], offload, link);
}

/// Send a UDP datagram with its checksum computed here, in fragments where it is larger than the MTU. For those
/// who read frames from a packet socket, DHCP clients, and take a partial checksum for a wrong one.
pub fn udp_checksummed(
    segment: &mut Segment,
    peer: Peer,
    ip: &Ip,
    src_port: u16,
    dst_port: u16,
    payload: &[u8],
    link: &mut impl Link,
) {
    let Ok(length) = u16::try_from(UDP_HEADER + payload.len()) else { return };
    let mut header = udp_header(src_port, dst_port, length);
    let pseudo = pseudo_header_sum(ip.src, ip.dst, ip.protocol, u32::from(length));
    // RFC 768: a sum that comes out as zero is sent as all ones.
    let sum = !fold(pseudo + u64::from(sum_of(&header)) + u64::from(sum_of(payload)));
    header[6..].copy_from_slice(&if sum == 0 { 0xffff } else { sum }.to_be_bytes());
    send(segment, peer, ip, [&header, payload], Offload::default(), link);
}

/// A UDP header with checksum 0.
fn udp_header(src_port: u16, dst_port: u16, length: u16) -> [u8; UDP_HEADER] {
    let ([a, b], [c, d], [e, f]) = (src_port.to_be_bytes(), dst_port.to_be_bytes(), length.to_be_bytes());
    [a, b, c, d, e, f, 0, 0]
}

/// Send an ICMP or ICMPv6 message: its first eight bytes (the checksum field is filled in here) and its body.
/// `ip.protocol` says which of the two it is.
pub fn icmp(segment: &mut Segment, peer: Peer, ip: &Ip, mut header: [u8; 8], body: &[u8], link: &mut impl Link) {
    header[2..4].fill(0);
    let length = (header.len() + body.len()) as u32; // at most a packet's length
    let pseudo = match ip.protocol {
        // RFC 4443, 2.3: the pseudo-header is part of ICMPv6's sum, and of ICMP's not.
        IpProtocol::Icmpv6 => pseudo_header_sum(ip.src, ip.dst, ip.protocol, length),
        _ => 0,
    };
    let sum = !fold(pseudo + u64::from(sum_of(&header)) + u64::from(sum_of(body)));
    header[2..4].copy_from_slice(&sum.to_be_bytes());
    send(segment, peer, ip, [&header, body], Offload::default(), link);
}

/// Send any IP payload whose checksum, if its protocol has one, is right already. In fragments where it is larger
/// than the MTU; nothing is sent when the families differ or it is larger than IP allows.
pub fn ip(segment: &mut Segment, peer: Peer, ip: &Ip, payload: &[u8], link: &mut impl Link) {
    send(segment, peer, ip, [&[], payload], Offload::default(), link);
}

/// Send an Ethernet frame with a payload other than IP, at most 128 bytes of it (ARP).
pub fn ethernet(segment: &mut Segment, peer: Peer, ethertype: u16, payload: &[u8], link: &mut impl Link) {
    let source = segment.network.gateway_mac;
    let len = ETHERNET_HEADER + payload.len();
    count(segment, len);
    link.transmit(peer.port, Offload::default(), len, |frame| {
        write_ethernet(frame, peer.mac, source, ethertype);
        frame[ETHERNET_HEADER..].copy_from_slice(payload);
    });
}

/// The payload comes in two parts, so that a header need not be put in front of its data first.
fn send(segment: &mut Segment, peer: Peer, ip: &Ip, parts: [&[u8]; 2], offload: Offload, link: &mut impl Link) {
    let payload_len = parts[0].len() + parts[1].len();
    let most = match (ip.src, ip.dst) {
        (IpAddr::V4(_), IpAddr::V4(_)) => usize::from(u16::MAX) - IPV4_HEADER,
        (IpAddr::V6(_), IpAddr::V6(_)) => usize::from(u16::MAX),
        _ => return,
    };
    if payload_len > most {
        return;
    }
    let mtu = usize::from(segment.network.mtu);
    if offload.gso == Gso::None && ip.header_len() + payload_len > mtu {
        return send_fragments(segment, peer, ip, parts, mtu, link);
    }
    let source = segment.network.gateway_mac;
    let len = ETHERNET_HEADER + ip.header_len() + payload_len;
    count(segment, len);
    link.transmit(peer.port, offload, len, |frame| {
        let at = write_headers(frame, peer.mac, source, ip, payload_len, None);
        copy_range(parts, 0, &mut frame[at..]);
    });
}

fn send_fragments(segment: &mut Segment, peer: Peer, ip: &Ip, parts: [&[u8]; 2], mtu: usize, link: &mut impl Link) {
    let source = segment.network.gateway_mac;
    let (headers, id) = match ip.src {
        IpAddr::V4(_) => (IPV4_HEADER, u32::from(segment.identifications.next_v4())),
        IpAddr::V6(_) => (IPV6_HEADER + IPV6_FRAGMENT_HEADER, segment.identifications.next_v6()),
    };
    let total = parts[0].len() + parts[1].len();
    // Every fragment but the last carries a multiple of eight bytes.
    let size = (mtu.saturating_sub(headers) & !7).max(8);
    for offset in (0..total).step_by(size) {
        let piece = size.min(total - offset);
        let fragment = FragmentField { id, offset: offset as u16, more: offset + piece < total }; // offset < 65,536
        let len = ETHERNET_HEADER + headers + piece;
        count(segment, len);
        link.transmit(peer.port, Offload::default(), len, |frame| {
            let at = write_headers(frame, peer.mac, source, ip, piece, Some(fragment));
            copy_range(parts, offset, &mut frame[at..]);
        });
    }
}

fn count(segment: &mut Segment, frame_len: usize) {
    segment.counters.frames_out += 1;
    segment.counters.bytes_out += frame_len as u64;
}

#[derive(Clone, Copy)]
struct FragmentField {
    id: u32,
    /// In bytes, a multiple of eight.
    offset: u16,
    more: bool,
}

fn write_ethernet(frame: &mut [u8], to: MacAddr, from: MacAddr, ethertype: u16) {
    frame[..6].copy_from_slice(&to.0);
    frame[6..12].copy_from_slice(&from.0);
    frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
}

/// Write Ethernet and IP headers; where the payload begins.
fn write_headers(
    frame: &mut [u8],
    to: MacAddr,
    from: MacAddr,
    ip: &Ip,
    payload_len: usize,
    fragment: Option<FragmentField>,
) -> usize {
    match (ip.src, ip.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            write_ethernet(frame, to, from, ETHERTYPE_IPV4);
            write_ipv4(&mut frame[ETHERNET_HEADER..], ip, src, dst, payload_len, fragment);
            ETHERNET_HEADER + IPV4_HEADER
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            write_ethernet(frame, to, from, ETHERTYPE_IPV6);
            ETHERNET_HEADER + write_ipv6(&mut frame[ETHERNET_HEADER..], ip, src, dst, payload_len, fragment)
        }
        _ => unreachable!("send() lets only one family through"),
    }
}

fn write_ipv4(
    out: &mut [u8],
    ip: &Ip,
    src: Ipv4Addr,
    dst: Ipv4Addr,
    payload_len: usize,
    fragment: Option<FragmentField>,
) {
    const DONT_FRAGMENT: u16 = 0x4000;
    const MORE_FRAGMENTS: u16 = 0x2000;
    let (id, flags) = match fragment {
        None => (0, DONT_FRAGMENT),
        Some(f) => (f.id as u16, (f.offset / 8) | if f.more { MORE_FRAGMENTS } else { 0 }),
    };
    let header = &mut out[..IPV4_HEADER];
    header[0] = 0x45;
    header[1] = ip.tos;
    header[2..4].copy_from_slice(&((IPV4_HEADER + payload_len) as u16).to_be_bytes());
    header[4..6].copy_from_slice(&id.to_be_bytes());
    header[6..8].copy_from_slice(&flags.to_be_bytes());
    header[8] = ip.hop_limit;
    header[9] = ip.protocol.into();
    header[10..12].fill(0);
    header[12..16].copy_from_slice(&src.octets());
    header[16..20].copy_from_slice(&dst.octets());
    let sum = !fold(u64::from(sum_of(header)));
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

fn write_ipv6(
    out: &mut [u8],
    ip: &Ip,
    src: Ipv6Addr,
    dst: Ipv6Addr,
    payload_len: usize,
    fragment: Option<FragmentField>,
) -> usize {
    let extension = if fragment.is_some() { IPV6_FRAGMENT_HEADER } else { 0 };
    let first = 6 << 28 | u32::from(ip.tos) << 20;
    out[..4].copy_from_slice(&first.to_be_bytes());
    out[4..6].copy_from_slice(&((extension + payload_len) as u16).to_be_bytes());
    out[6] = if fragment.is_some() { IpProtocol::Ipv6Frag.into() } else { ip.protocol.into() };
    out[7] = ip.hop_limit;
    out[8..24].copy_from_slice(&src.octets());
    out[24..40].copy_from_slice(&dst.octets());
    if let Some(f) = fragment {
        let header = &mut out[IPV6_HEADER..IPV6_HEADER + IPV6_FRAGMENT_HEADER];
        header[0] = ip.protocol.into();
        header[1] = 0;
        header[2..4].copy_from_slice(&(f.offset | u16::from(f.more)).to_be_bytes());
        header[4..].copy_from_slice(&f.id.to_be_bytes());
    }
    IPV6_HEADER + extension
}

/// Fill `out` from the two parts laid end to end, beginning `offset` bytes in.
fn copy_range(parts: [&[u8]; 2], offset: usize, out: &mut [u8]) {
    let [first, second] = parts;
    let from_first = first.len().saturating_sub(offset).min(out.len());
    let (head, tail) = out.split_at_mut(from_first);
    if from_first > 0 {
        head.copy_from_slice(&first[offset..offset + from_first]);
    }
    let at = (offset + from_first).saturating_sub(first.len());
    tail.copy_from_slice(&second[at..at + tail.len()]);
}

/// The ones'-complement sum over the pseudo-header of RFC 768 / RFC 8200, 8.1, not folded yet.
pub fn pseudo_header_sum(src: IpAddr, dst: IpAddr, protocol: IpProtocol, length: u32) -> u64 {
    let addresses = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => u64::from(sum_of(&src.octets())) + u64::from(sum_of(&dst.octets())),
        (IpAddr::V6(src), IpAddr::V6(dst)) => u64::from(sum_of(&src.octets())) + u64::from(sum_of(&dst.octets())),
        _ => 0,
    };
    addresses + u64::from(u8::from(protocol)) + u64::from(length)
}

/// The ones'-complement sum over bytes (RFC 1071); an odd last byte counts as the high half of a word. Good for
/// slices of up to 128 KiB.
pub fn sum_of(bytes: &[u8]) -> u32 {
    // RFC 1071, 2 (B): the sum does not depend on byte order, so wide words may be added and folded.
    let mut words = bytes.chunks_exact(4);
    let mut sum: u64 = words.by_ref().map(|w| u64::from(u32::from_be_bytes([w[0], w[1], w[2], w[3]]))).sum();
    sum += match *words.remainder() {
        [] => 0,
        [a] => u64::from(a) << 24,
        [a, b] => u64::from(a) << 24 | u64::from(b) << 16,
        [a, b, c] => u64::from(a) << 24 | u64::from(b) << 16 | u64::from(c) << 8,
        _ => unreachable!("a remainder of chunks of four has at most three bytes"),
    };
    u32::from(fold(sum))
}

/// Fold a ones'-complement sum to 16 bits.
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// Is the checksum of an ICMP or ICMPv6 message, or of a UDP datagram that has one, right?
pub fn checksum_holds(src: IpAddr, dst: IpAddr, protocol: IpProtocol, message: &[u8]) -> bool {
    let pseudo = match protocol {
        IpProtocol::Icmp => 0,
        _ => pseudo_header_sum(src, dst, protocol, message.len() as u32),
    };
    fold(pseudo + u64::from(sum_of(message))) == 0xffff
}

/// Identifications for fragmented datagrams: a counter behind a keyed permutation (a four-round Feistel network),
/// so that values are unique for as long as their width allows and do not tell the next one.
#[derive(Debug)]
pub struct Identifications {
    keys: [u32; 4],
    v4: u16,
    v6: u32,
}

impl Default for Identifications {
    fn default() -> Identifications {
        Identifications::new()
    }
}

impl Identifications {
    /// A permutation of its own for each network, keyed by the standard library's random state.
    pub fn new() -> Identifications {
        let random = RandomState::new();
        let keys = std::array::from_fn(|i| random.hash_one(i) as u32);
        Identifications { keys, v4: random.hash_one(4) as u16, v6: random.hash_one(5) as u32 }
    }

    /// The next identification of an IPv4 datagram (RFC 6864).
    pub fn next_v4(&mut self) -> u16 {
        self.v4 = self.v4.wrapping_add(1);
        self.permute(u32::from(self.v4), 8) as u16
    }

    /// The next identification of an IPv6 datagram (RFC 7739).
    pub fn next_v6(&mut self) -> u32 {
        self.v6 = self.v6.wrapping_add(1);
        self.permute(self.v6, 16)
    }

    /// A permutation of the values of twice `half` bits.
    fn permute(&self, value: u32, half: u32) -> u32 {
        let mask = (1 << half) - 1;
        let (mut left, mut right) = (value >> half, value & mask);
        for key in self.keys {
            let mut mixed = (right ^ key).wrapping_mul(0x9e37_79b1);
            mixed ^= mixed >> 15;
            mixed = mixed.wrapping_mul(0x85eb_ca77) ^ key;
            (left, right) = (right, left ^ ((mixed >> 13) & mask));
        }
        left << half | right
    }
}

/// What tests of the gateway's parts share: a network with slirp's layout and a link that keeps what it is given.
#[cfg(test)]
pub(crate) mod testing {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    use std::time::Duration;

    use crate::gateway::Segment;
    use crate::gateway::link::{Link, Offload, Peer, PortId};
    use crate::plan::{Endpoint, HostView, Ipv4Layout, Ipv6Layout, MacAddr, Network};

    pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
    pub const DNS_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
    pub const SANDBOX_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
    pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
    pub const DNS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);
    pub const SANDBOX_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100);
    pub const SANDBOX_MAC: MacAddr = MacAddr([0x02, 0x42, 10, 0, 2, 100]);
    pub const PEER: Peer = Peer { port: PortId(1), mac: SANDBOX_MAC };

    pub fn network(mtu: u16) -> Network {
        Network {
            name: "private".into(),
            sharing: None,
            v4: Ipv4Layout::slirp("10.0.2.0/24".parse().unwrap()),
            v6: Ipv6Layout::slirp("fd00::/64".parse().unwrap()),
            mtu,
            gateway_mac: MacAddr::from_ipv4(GATEWAY_V4),
            host_loopback_allowed: false,
            metadata_allowed: false,
            broadcast_to_host: false,
            dns_enabled: true,
            dns_search: vec!["example.org".into(), "corp.example.org".into()],
            dns_servers: Vec::new(),
            local_names: Vec::new(),
            outbound: Default::default(),
            udp_timeout: Duration::from_secs(180),
            behaviour: Default::default(),
        }
    }

    pub fn endpoint() -> Endpoint {
        Endpoint {
            id: "0123456789ab".into(),
            name: "test".into(),
            ifname: "tap0".into(),
            mac: SANDBOX_MAC,
            v4: Some(SANDBOX_V4),
            v6: Some(SANDBOX_V6),
            ..Endpoint::default()
        }
    }

    pub fn segment(mtu: u16) -> Segment {
        let mut segment = Segment::new(network(mtu), HostView::default());
        segment.add(PEER.port, endpoint());
        segment
    }

    /// Keeps every frame.
    #[derive(Default)]
    pub struct Recorder {
        pub frames: Vec<(PortId, Offload, Vec<u8>)>,
        pub udp_super_segments: bool,
        /// It has no room for data.
        pub full: bool,
    }

    impl Recorder {
        /// The one frame there is.
        #[track_caller]
        pub fn one(&self) -> &[u8] {
            assert_eq!(self.frames.len(), 1, "{:02x?}", self.frames);
            &self.frames[0].2
        }
    }

    impl Link for Recorder {
        fn has_room(&self, _port: PortId) -> bool {
            !self.full
        }

        fn takes_udp_super_segments(&self, _port: PortId) -> bool {
            self.udp_super_segments
        }

        fn transmit<R>(&mut self, port: PortId, offload: Offload, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
            // Not zero: what a frame's writer forgets must show.
            let mut frame = vec![0xaa; len];
            let result = fill(&mut frame);
            self.frames.push((port, offload, frame));
            result
        }
    }

    /// An Ethernet frame from the sandbox around an IP packet.
    pub fn frame_from_sandbox(to: MacAddr, ethertype: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        frame.extend_from_slice(&to.0);
        frame.extend_from_slice(&SANDBOX_MAC.0);
        frame.extend_from_slice(&ethertype.to_be_bytes());
        frame.extend_from_slice(payload);
        frame
    }

    /// The IP packet that a second writer makes of these.
    pub fn ip_packet(src: IpAddr, dst: IpAddr, protocol: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut header = etherparse::Ipv4Header::new(
                    payload.len() as u16,
                    hop_limit,
                    etherparse::IpNumber(protocol),
                    src.octets(),
                    dst.octets(),
                )
                .unwrap();
                header.header_checksum = header.calc_header_checksum();
                header.write(&mut packet).unwrap();
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => etherparse::Ipv6Header {
                traffic_class: 0,
                flow_label: Default::default(),
                payload_length: payload.len() as u16,
                next_header: etherparse::IpNumber(protocol),
                hop_limit,
                source: src.octets(),
                destination: dst.octets(),
            }
            .write(&mut packet)
            .unwrap(),
            _ => panic!("two families"),
        }
        packet.extend_from_slice(payload);
        packet
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::testing::*;
    use super::*;

    fn sockets(v6: bool) -> (SocketAddr, SocketAddr) {
        if v6 {
            ("[2001:db8::1]:53".parse().unwrap(), SocketAddr::new(SANDBOX_V6.into(), 4000))
        } else {
            ("192.0.2.1:53".parse().unwrap(), SocketAddr::new(SANDBOX_V4.into(), 4000))
        }
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    /// Complete a partial checksum as the receiving kernel would.
    fn complete(offload: &Offload, frame: &mut [u8]) {
        let start = usize::from(offload.csum_start);
        let sum = !fold(u64::from(sum_of(&frame[start..])));
        let at = start + usize::from(offload.csum_offset);
        frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }

    #[test]
    fn a_datagram_leaves_with_a_partial_checksum_that_completes_to_the_right_one() {
        for v6 in [false, true] {
            for len in [0, 1, 2, 3, 1000, 1001] {
                let (from, to) = sockets(v6);
                let (mut segment, mut link) = (segment(1500), Recorder::default());
                let payload = pattern(len);
                udp(&mut segment, PEER, from, to, &payload, 0, 0xb8, &mut link);
                let (port, offload, mut frame) = link.frames.remove(0);
                assert_eq!(port, PEER.port);
                assert!(offload.needs_csum);
                assert_eq!((offload.csum_start, offload.csum_offset), (if v6 { 54 } else { 34 }, 6));
                complete(&offload, &mut frame);
                let parsed = SlicedPacket::from_ethernet(&frame).unwrap();
                let Some(TransportSlice::Udp(udp)) = &parsed.transport else { panic!("{parsed:?}") };
                assert_eq!((udp.source_port(), udp.destination_port(), udp.payload()), (53, 4000, &payload[..]));
                let right = match parsed.net.as_ref().unwrap() {
                    NetSlice::Ipv4(ip) => {
                        let header = ip.header().to_header();
                        assert_eq!(header.header_checksum, header.calc_header_checksum());
                        assert_eq!((ip.header().ttl(), header.dont_fragment), (64, true));
                        assert_eq!(frame[15], 0xb8);
                        udp.to_header().calc_checksum_ipv4(&header, udp.payload()).unwrap()
                    }
                    NetSlice::Ipv6(ip) => {
                        assert_eq!((ip.header().hop_limit(), ip.header().traffic_class()), (64, 0xb8));
                        udp.to_header().calc_checksum_ipv6(&ip.header().to_header(), udp.payload()).unwrap()
                    }
                    other => panic!("{other:?}"),
                };
                assert_eq!(udp.checksum(), right);
                assert_eq!((segment.counters.frames_out, segment.counters.bytes_out), (1, frame.len() as u64));
            }
        }
    }

    #[test]
    fn a_datagram_larger_than_the_mtu_leaves_in_fragments_that_make_it_again() {
        for v6 in [false, true] {
            let (from, to) = sockets(v6);
            for (mtu, len) in [(1500, 1473), (1500, 65_507), (1280, 5000), (65_520, 65_507)] {
                let (mut segment, mut link) = (segment(mtu), Recorder::default());
                let payload = pattern(len);
                udp(&mut segment, PEER, from, to, &payload, 0, 0, &mut link);
                assert!(link.frames.len() > 1);
                let mut whole = Vec::new();
                let mut ids = HashSet::new();
                for (i, (_, offload, frame)) in link.frames.iter().enumerate() {
                    assert_eq!(*offload, Offload::default());
                    assert!(frame.len() - ETHERNET_HEADER <= usize::from(mtu));
                    let last = i + 1 == link.frames.len();
                    let parsed = SlicedPacket::from_ethernet(frame).unwrap();
                    let piece = match parsed.net.as_ref().unwrap() {
                        NetSlice::Ipv4(ip) => {
                            let header = ip.header();
                            assert_eq!(header.to_header().calc_header_checksum(), header.header_checksum());
                            assert_eq!(usize::from(header.fragments_offset().byte_offset()), whole.len());
                            assert_eq!((header.more_fragments(), header.dont_fragment()), (!last, false));
                            ids.insert(u32::from(header.identification()));
                            ip.payload().payload
                        }
                        NetSlice::Ipv6(ip) => {
                            let extension = ip.extensions().clone().into_iter().next().unwrap();
                            let etherparse::Ipv6ExtensionSlice::Fragment(f) = extension else { panic!() };
                            assert_eq!(usize::from(f.fragment_offset().byte_offset()), whole.len());
                            assert_eq!(f.more_fragments(), !last);
                            ids.insert(f.identification());
                            ip.payload().payload
                        }
                        other => panic!("{other:?}"),
                    };
                    whole.extend_from_slice(piece);
                }
                assert_eq!(ids.len(), 1);
                assert_eq!(&whole[8..], &payload[..]);
                assert!(checksum_holds(from.ip(), to.ip(), IpProtocol::Udp, &whole));
            }
        }
    }

    #[test]
    fn datagrams_of_one_size_leave_as_one_super_segment_where_the_port_takes_it() {
        let (from, to) = sockets(false);
        let (mut segment, mut link) = (segment(1500), Recorder { udp_super_segments: true, ..Default::default() });
        let payload = pattern(3500);
        udp(&mut segment, PEER, from, to, &payload, 1000, 0, &mut link);
        let (_, offload, frame) = &link.frames[0];
        assert_eq!((link.frames.len(), offload.gso, offload.gso_size, offload.hdr_len), (1, Gso::UdpL4, 1000, 42));
        assert_eq!(frame[42..], payload[..]);
        // Elsewhere, and where each is larger than the MTU, one by one.
        link.udp_super_segments = false;
        link.frames.clear();
        udp(&mut segment, PEER, from, to, &payload, 1000, 0, &mut link);
        let lengths: Vec<usize> = link.frames.iter().map(|(_, _, f)| f.len() - 42).collect();
        assert_eq!(lengths, [1000, 1000, 1000, 500]);
        assert!(link.frames.iter().all(|(_, o, _)| o.gso == Gso::None && o.needs_csum));
    }

    #[test]
    fn a_long_row_of_small_datagrams_is_cut_to_what_a_kernel_takes() {
        let (from, to) = sockets(true);
        let (mut segment, mut link) = (segment(1500), Recorder { udp_super_segments: true, ..Default::default() });
        udp(&mut segment, PEER, from, to, &pattern(100 * 129), 100, 0, &mut link);
        let lengths: Vec<usize> = link.frames.iter().map(|(_, _, f)| f.len() - 62).collect();
        assert_eq!(lengths, [6400, 6400, 100]);
        assert_eq!(link.frames[2].1.gso, Gso::None);
    }

    #[test]
    fn what_no_packet_can_carry_is_not_sent() {
        let (mut segment, mut link) = (segment(1500), Recorder::default());
        let (from, to) = sockets(false);
        udp(&mut segment, PEER, from, to, &[0; 65_508], 0, 0, &mut link);
        udp(&mut segment, PEER, from, to, &[0; 70_000], 0, 0, &mut link);
        udp(&mut segment, PEER, sockets(true).0, to, b"mixed families", 0, 0, &mut link);
        assert!(link.frames.is_empty());
        assert_eq!(segment.counters.frames_out, 0);
    }

    #[test]
    fn icmp_checksums_are_right_for_both_families() {
        for (src, dst, protocol) in [
            (IpAddr::V4(GATEWAY_V4), IpAddr::V4(SANDBOX_V4), IpProtocol::Icmp),
            (IpAddr::V6(GATEWAY_V6), IpAddr::V6(SANDBOX_V6), IpProtocol::Icmpv6),
        ] {
            let (mut segment, mut link) = (segment(1500), Recorder::default());
            let kind = if src.is_ipv4() { 0 } else { 129 };
            icmp(&mut segment, PEER, &Ip::new(src, dst, protocol), [kind, 0, 9, 9, 1, 2, 3, 4], b"odd", &mut link);
            let frame = link.one();
            let parsed = SlicedPacket::from_ethernet(frame).unwrap();
            match (parsed.transport.unwrap(), src, dst) {
                (TransportSlice::Icmpv4(m), ..) => {
                    assert_eq!(m.checksum(), m.icmp_type().calc_checksum(m.payload()));
                }
                (TransportSlice::Icmpv6(m), IpAddr::V6(src), IpAddr::V6(dst)) => {
                    assert!(m.is_checksum_valid(src.octets(), dst.octets()));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn identifications_do_not_repeat_and_are_not_a_count() {
        let mut ids = Identifications::new();
        let values: Vec<u16> = (0..65_536).map(|_| ids.next_v4()).collect();
        assert_eq!(values.iter().collect::<HashSet<_>>().len(), 65_536);
        let steps: HashSet<u16> = values.windows(2).map(|w| w[1].wrapping_sub(w[0])).collect();
        assert!(steps.len() > 1000, "{}", steps.len());
        let wide: HashSet<u32> = (0..100_000).map(|_| ids.next_v6()).collect();
        assert_eq!(wide.len(), 100_000);
    }
}
