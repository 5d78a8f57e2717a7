//! What a link's kernel would otherwise make of a frame: checksums, and the segments of a super-segment.
//!
//! # Theory of operation
//!
//! A port without virtio-net headers (a TAP that somebody else made) gives and takes finished frames only. Those that
//! come are whole already. Of those that go there a [`Cut`] makes finished ones: one with its checksum filled in, or as
//! many as the super-segment has segments (RFC 9293 for TCP; each datagram by itself for UDP). A segment is as long as
//! the frame's own header says, which whoever made it has chosen to fit the MTU.
//!
//! Nothing is copied but headers: [`Cut::piece`] writes those of one segment into a small buffer and says which bytes of
//! the frame follow them, and the port sends both in one call. So no piece depends on another, and a port that had no
//! room for the third goes on with the third later.
//!
//! What differs from piece to piece: the lengths; IPv4's identification, which counts up, and header checksum; TCP's
//! sequence number, its FIN and PSH, which belong to the last piece, and CWR, which belongs to the first (RFC 3168, 6.1.2);
//! the checksum. Everything else is the super-segment's, IPv6 extension headers included.
//!
//! A frame that does not hold what its header says is no cut ([`Cut::new`] answers `None`), whoever it came from.
use std::ops::Range;

use crate::gateway::link::{Gso, Offload};
use crate::gateway::packet::{ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6};

/// Room for the headers of a piece in bytes: Ethernet with a VLAN tag, IPv6 with some extension headers, or the longest
/// of IPv4 (60), and the longest of TCP (60).
pub const MAX_HEADERS: usize = 256;

const ETHERTYPE_VLAN: u16 = 0x8100;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
/// Where TCP's flags are in its header, and which (RFC 9293, 3.1).
const TCP_FLAGS: usize = 13;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// A frame and where everything is in it.
#[derive(Clone, Copy, Debug)]
pub struct Cut<'a> {
    frame: &'a [u8],
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// It is finished.
    Whole,
    /// Everything from `start` is to be summed up into the field at `field`.
    Checksum { start: usize, field: usize },
    /// It is to be cut.
    Segments(Segments),
}

#[derive(Clone, Copy, Debug)]
struct Segments {
    is_udp: bool,
    is_ipv6: bool,
    /// Where the IP header begins.
    ip: usize,
    /// Where TCP's or UDP's does.
    upper: usize,
    /// Where the payload does.
    payload: usize,
    /// Bytes of payload in each but the last.
    size: usize,
}

impl<'a> Cut<'a> {
    /// Look at a frame, Ethernet header first. `None` when it is not what `offload` says.
    pub fn new(frame: &'a [u8], offload: &Offload) -> Option<Cut<'a>> {
        let kind = match offload.gso {
            Gso::None if !offload.needs_csum => Kind::Whole,
            Gso::None => {
                let start = usize::from(offload.csum_start);
                let field = start + usize::from(offload.csum_offset);
                (field + 2 <= frame.len().min(MAX_HEADERS)).then_some(Kind::Checksum { start, field })?
            }
            Gso::TcpV4 | Gso::TcpV6 | Gso::UdpL4 => Kind::Segments(Segments::of(frame, offload)?),
        };
        Some(Cut { frame, kind })
    }

    /// How many frames it makes; at least one.
    pub fn pieces(&self) -> usize {
        match self.kind {
            Kind::Whole | Kind::Checksum { .. } => 1,
            Kind::Segments(Segments { payload, size, .. }) => (self.frame.len() - payload).div_ceil(size).max(1),
        }
    }

    /// The headers of the piece with this number, counted from 0, written to `headers`: how many bytes. And what follows
    /// them.
    pub fn piece(&self, number: usize, headers: &mut [u8; MAX_HEADERS]) -> (usize, &'a [u8]) {
        match self.kind {
            Kind::Whole => (0, self.frame),
            Kind::Checksum { start, field } => {
                let (head, rest) = self.frame.split_at(field + 2);
                headers[..head.len()].copy_from_slice(head);
                // Odd or even, `head` ends with the field, which is summed up as a word of its own.
                let sum = Sum::default().add(&self.frame[start..]).value();
                headers[field..field + 2].copy_from_slice(&unless_zero(sum, self.is_udp_field(start, field)));
                (head.len(), rest)
            }
            Kind::Segments(segments) => {
                let all = self.frame.len() - segments.payload;
                let from = (number * segments.size).min(all);
                let to = (from + segments.size).min(all);
                let rest = &self.frame[segments.payload + from..segments.payload + to];
                let last = to == all;
                segments.write(self.frame, number, from, last, rest, headers);
                (segments.payload, rest)
            }
        }
    }

    /// Is this the checksum field of UDP, for which zero means that there is none (RFC 768)?
    fn is_udp_field(&self, start: usize, field: usize) -> bool {
        field - start == 6
    }
}

impl Segments {
    fn of(frame: &[u8], offload: &Offload) -> Option<Segments> {
        let (ip, ethertype) = match word(frame, ETHERNET_HEADER - 2)? {
            ETHERTYPE_VLAN => (ETHERNET_HEADER + 4, word(frame, ETHERNET_HEADER + 2)?),
            other => (ETHERNET_HEADER, other),
        };
        let (is_ipv6, upper, protocol) = match ethertype {
            ETHERTYPE_IPV4 => {
                let length = usize::from(frame.get(ip)? & 0xf) * 4;
                (length >= 20).then_some((false, ip + length, Some(*frame.get(ip + 9)?)))?
            }
            // Behind extension headers only whoever made the frame knows where it is.
            ETHERTYPE_IPV6 if offload.needs_csum => (true, usize::from(offload.csum_start), None),
            ETHERTYPE_IPV6 => (true, ip + 40, Some(*frame.get(ip + 6)?)),
            _ => return None,
        };
        let (is_udp, fits) = match offload.gso {
            Gso::TcpV4 => (false, !is_ipv6),
            Gso::TcpV6 => (false, is_ipv6),
            Gso::UdpL4 => (true, true),
            Gso::None => return None,
        };
        let expected = if is_udp { PROTOCOL_UDP } else { PROTOCOL_TCP };
        if !fits || protocol.is_some_and(|protocol| protocol != expected) || (is_ipv6 && upper < ip + 40) {
            return None;
        }
        let header = if is_udp { 8 } else { usize::from(frame.get(upper + 12)? >> 4) * 4 };
        let payload = upper + header;
        let size = usize::from(offload.gso_size);
        let whole = header >= if is_udp { 8 } else { 20 } && payload <= frame.len().min(MAX_HEADERS) && size > 0;
        whole.then_some(Segments { is_udp, is_ipv6, ip, upper, payload, size })
    }

    /// The headers of one piece, whose payload is `rest`, the one from byte `from` on.
    fn write(
        &self,
        frame: &[u8],
        number: usize,
        from: usize,
        last: bool,
        rest: &[u8],
        headers: &mut [u8; MAX_HEADERS],
    ) {
        let Segments { ip, upper, payload, .. } = *self;
        headers[..payload].copy_from_slice(&frame[..payload]);
        let length = payload - upper + rest.len();
        if self.is_udp {
            put(headers, upper + 4, length as u16);
        } else {
            let sequence = u32::from_be_bytes([frame[upper + 4], frame[upper + 5], frame[upper + 6], frame[upper + 7]]);
            let sequence = sequence.wrapping_add(from as u32);
            headers[upper + 4..upper + 8].copy_from_slice(&sequence.to_be_bytes());
            if !last {
                headers[upper + TCP_FLAGS] &= !(FIN | PSH);
            }
            if number > 0 {
                headers[upper + TCP_FLAGS] &= !CWR;
            }
        }
        let addresses = if self.is_ipv6 {
            put(headers, ip + 4, (payload - ip - 40 + rest.len()) as u16);
            ip + 8..ip + 40
        } else {
            put(headers, ip + 2, (payload - ip + rest.len()) as u16);
            let identification = u16::from_be_bytes([frame[ip + 4], frame[ip + 5]]).wrapping_add(number as u16);
            put(headers, ip + 4, identification);
            put(headers, ip + 10, 0);
            let sum = Sum::default().add(&headers[ip..upper]).value();
            headers[ip + 10..ip + 12].copy_from_slice(&sum.to_be_bytes());
            ip + 12..ip + 20
        };
        self.write_checksum(addresses, length, rest, headers);
    }

    /// The checksum over the pseudo-header, TCP's or UDP's header, and the payload.
    fn write_checksum(&self, addresses: Range<usize>, length: usize, rest: &[u8], headers: &mut [u8; MAX_HEADERS]) {
        let Segments { is_udp, upper, payload, .. } = *self;
        let field = upper + if is_udp { 6 } else { 16 };
        put(headers, field, 0);
        let protocol = if is_udp { PROTOCOL_UDP } else { PROTOCOL_TCP };
        // The headers of TCP and UDP have an even length.
        let sum = Sum::default()
            .add(&headers[addresses])
            .add(&[0, protocol])
            .add(&(length as u16).to_be_bytes())
            .add(&headers[upper..payload])
            .add(rest)
            .value();
        headers[field..field + 2].copy_from_slice(&unless_zero(sum, is_udp));
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

fn put(headers: &mut [u8; MAX_HEADERS], at: usize, value: u16) {
    headers[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// A checksum as it is written.
fn unless_zero(sum: u16, is_udp: bool) -> [u8; 2] {
    (if is_udp && sum == 0 { 0xffff } else { sum }).to_be_bytes()
}

/// The internet checksum (RFC 1071). Parts are added one after the other; all but the last have an even length.
#[derive(Clone, Copy, Default)]
struct Sum(u64);

impl Sum {
    fn add(self, bytes: &[u8]) -> Sum {
        let (words, rest) = bytes.as_chunks::<4>();
        // Words of four bytes do as well as of two: what is carried over is added at the end.
        let mut sum = self.0 + words.iter().map(|word| u64::from(u32::from_be_bytes(*word))).sum::<u64>();
        let (words, rest) = rest.as_chunks::<2>();
        sum += words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum::<u64>();
        Sum(sum + rest.first().map_or(0, |last| u64::from(*last) << 8))
    }

    fn value(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{
        IpNumber, Ipv6RawExtHeader, LaxSlicedPacket, NetSlice, PacketBuilder, SlicedPacket, TransportSlice,
    };
    use proptest::prelude::*;

    const V4: ([u8; 4], [u8; 4]) = ([10, 0, 2, 2], [10, 0, 2, 100]);

    fn v6() -> ([u8; 16], [u8; 16]) {
        let at = |last| std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last).octets();
        (at(2), at(0x100))
    }

    /// The frames that a frame becomes.
    fn finished(frame: &[u8], offload: &Offload) -> Vec<Vec<u8>> {
        let cut = Cut::new(frame, offload).unwrap();
        let mut headers = [0xaa; MAX_HEADERS];
        let piece = |number| {
            let (length, rest) = cut.piece(number, &mut headers);
            [&headers[..length], rest].concat()
        };
        (0..cut.pieces()).map(piece).collect()
    }

    #[derive(Clone, Debug)]
    struct Made {
        frame: Vec<u8>,
        offload: Offload,
        payload: Vec<u8>,
        is_udp: bool,
    }

    /// A super-segment as a gateway or a kernel makes it: correct throughout, except that the upper checksum is that of
    /// the pseudo-header.
    #[allow(clippy::too_many_arguments)]
    fn made(is_udp: bool, is_ipv6: bool, vlan: bool, options: usize, payload: Vec<u8>, size: u16, flags: u8) -> Made {
        let mut frame = Vec::new();
        let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]);
        let (from, to) = v6();
        let mut tcp = etherparse::TcpHeader::new(80, 4000, 0xffff_ff00, 0xffff);
        (tcp.fin, tcp.psh, tcp.cwr, tcp.ack) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0, true);
        tcp.set_options_raw(&vec![1; options * 4]).unwrap();
        macro_rules! write {
            ($ip:expr) => {
                if is_udp {
                    $ip.udp(80, 4000).write(&mut frame, &payload).unwrap()
                } else {
                    $ip.tcp_header(tcp).write(&mut frame, &payload).unwrap()
                }
            };
        }
        match (vlan, is_ipv6) {
            (false, false) => write!(ethernet.ipv4(V4.0, V4.1, 64)),
            (false, true) => write!(ethernet.ipv6(from, to, 64)),
            (true, false) => write!(ethernet.single_vlan(7.try_into().unwrap()).ipv4(V4.0, V4.1, 64)),
            (true, true) => write!(ethernet.single_vlan(7.try_into().unwrap()).ipv6(from, to, 64)),
        }
        let ip = if vlan { 18 } else { 14 };
        let csum_start = ip + if is_ipv6 { 40 } else { 20 };
        let csum_offset = if is_udp { 6 } else { 16 };
        let pseudo = !pseudo_sum(&frame, ip, is_ipv6, is_udp, frame.len() - csum_start);
        frame[csum_start + csum_offset..][..2].copy_from_slice(&pseudo.to_be_bytes());
        let offload = Offload {
            needs_csum: true,
            csum_start: csum_start as u16,
            csum_offset: csum_offset as u16,
            gso: match (is_udp, is_ipv6) {
                (true, _) => Gso::UdpL4,
                (false, false) => Gso::TcpV4,
                (false, true) => Gso::TcpV6,
            },
            gso_size: size,
            ..Offload::default()
        };
        Made { frame, offload, payload, is_udp }
    }

    fn pseudo_sum(frame: &[u8], ip: usize, is_ipv6: bool, is_udp: bool, length: usize) -> u16 {
        let addresses = if is_ipv6 { &frame[ip + 8..ip + 40] } else { &frame[ip + 12..ip + 20] };
        let protocol = if is_udp { 17 } else { 6 };
        Sum::default().add(addresses).add(&[0, protocol]).add(&(length as u16).to_be_bytes()).value()
    }

    prop_compose! {
        fn frames()(
            is_udp: bool,
            is_ipv6: bool,
            vlan: bool,
            options in 0..=10usize,
            payload in prop::collection::vec(any::<u8>(), 1..9000),
            size in 1..4000u16,
            flags in 0..8u8,
        ) -> Made {
            // A frame of at most 64 pieces, as a gateway makes them.
            let size = size.max((payload.len() / 64 + 1) as u16);
            made(is_udp, is_ipv6, vlan, options, payload, size, flags)
        }
    }

    /// What is right about one finished frame: its payload. Panics on what is not.
    fn check(made: &Made, number: usize, frame: &[u8], last: bool) -> Vec<u8> {
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let whole = SlicedPacket::from_ethernet(&made.frame).unwrap();
        assert_eq!(frame[..14], made.frame[..14]);
        assert_eq!(packet.vlan().map(|vlan| vlan.to_header()), whole.vlan().map(|vlan| vlan.to_header()));
        let (sum, expected) = match (packet.net.unwrap(), packet.transport.unwrap(), whole.transport.unwrap()) {
            (net, TransportSlice::Tcp(tcp), TransportSlice::Tcp(all)) => {
                let (header, original) = (tcp.to_header(), all.to_header());
                let from = u32::try_from(number).unwrap() * u32::from(made.offload.gso_size);
                assert_eq!(header.sequence_number, original.sequence_number.wrapping_add(from));
                assert_eq!((header.fin, header.psh), (original.fin && last, original.psh && last));
                assert_eq!(header.cwr, original.cwr && number == 0);
                assert_eq!((header.ack, &header.options), (true, &original.options));
                let right = match net {
                    NetSlice::Ipv4(ip) => header.calc_checksum_ipv4(&ip.header().to_header(), tcp.payload()),
                    NetSlice::Ipv6(ip) => header.calc_checksum_ipv6(&ip.header().to_header(), tcp.payload()),
                    other => panic!("{other:?}"),
                };
                (header.checksum, right.unwrap())
            }
            (net, TransportSlice::Udp(udp), TransportSlice::Udp(_)) => {
                let header = udp.to_header();
                let right = match net {
                    NetSlice::Ipv4(ip) => header.calc_checksum_ipv4(&ip.header().to_header(), udp.payload()),
                    NetSlice::Ipv6(ip) => header.calc_checksum_ipv6(&ip.header().to_header(), udp.payload()),
                    other => panic!("{other:?}"),
                };
                (header.checksum, right.unwrap())
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(sum, expected);
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        if let Some(NetSlice::Ipv4(ip)) = &packet.net {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!(header.identification, number as u16);
        }
        match packet.transport.unwrap() {
            TransportSlice::Tcp(tcp) => tcp.payload().to_vec(),
            TransportSlice::Udp(udp) => udp.payload().to_vec(),
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn pieces_are_right_each_by_itself_and_make_the_whole(made in frames()) {
            let frames = finished(&made.frame, &made.offload);
            let mut payload = Vec::new();
            for (number, frame) in frames.iter().enumerate() {
                let piece = check(&made, number, frame, number + 1 == frames.len());
                prop_assert!(piece.len() == usize::from(made.offload.gso_size) || number + 1 == frames.len());
                payload.extend(piece);
            }
            prop_assert_eq!(payload, made.payload);
        }

        #[test]
        fn a_frame_gets_its_checksum(made in frames()) {
            let offload = Offload { gso: Gso::None, gso_size: 0, ..made.offload };
            let frames = finished(&made.frame, &offload);
            prop_assert_eq!(frames.len(), 1);
            prop_assert_eq!(check(&made, 0, &frames[0], true), made.payload);
        }

        #[test]
        fn whatever_a_header_says_of_whatever_frame_nothing_panics(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            made in frames(),
            use_made: bool,
            gso in prop::sample::select(vec![Gso::None, Gso::TcpV4, Gso::TcpV6, Gso::UdpL4]),
            needs_csum: bool,
            csum_start in 0..400u16,
            csum_offset in 0..20u16,
            gso_size: u16,
            cut_at in 0..400usize,
        ) {
            let frame = if use_made { &made.frame[..made.frame.len().min(cut_at)] } else { &bytes[..] };
            let offload = Offload { needs_csum, csum_start, csum_offset, gso, gso_size, ..Offload::default() };
            if let Some(cut) = Cut::new(frame, &offload) {
                let mut headers = [0; MAX_HEADERS];
                for number in 0..cut.pieces() {
                    let (length, rest) = cut.piece(number, &mut headers);
                    prop_assert!(length <= MAX_HEADERS && length + rest.len() <= frame.len());
                }
            }
        }
    }

    #[test]
    fn extension_headers_go_with_each_piece() {
        let (from, to) = v6();
        let payload = vec![7; 3000];
        let mut upper = Vec::new();
        let tcp = etherparse::TcpHeader::new(80, 4000, 1, 0xffff);
        tcp.write(&mut upper).unwrap();
        upper.extend(&payload);
        // Destination options, eight bytes of padding.
        let options = Ipv6RawExtHeader::new_raw(IpNumber::TCP, &[1, 4, 0, 0, 0, 0]).unwrap();
        let mut behind = options.to_bytes().to_vec();
        behind.extend(&upper);
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]).ipv6(from, to, 64);
        builder.write(&mut frame, IpNumber::IPV6_DESTINATION_OPTIONS, &behind).unwrap();
        let offload = Offload {
            needs_csum: true,
            csum_start: 62,
            csum_offset: 16,
            gso: Gso::TcpV6,
            gso_size: 1400,
            ..Offload::default()
        };
        let lengths: Vec<usize> = finished(&frame, &offload)
            .iter()
            .map(|frame| {
                let packet = LaxSlicedPacket::from_ethernet(frame).unwrap();
                let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("{packet:?}") };
                let Some(etherparse::LaxNetSlice::Ipv6(ip)) = packet.net else { panic!("no IPv6") };
                let header = ip.header().to_header();
                assert_eq!(usize::from(header.payload_length), frame.len() - 54);
                let right = tcp.to_header().calc_checksum_ipv6(&header, tcp.payload()).unwrap();
                assert_eq!(tcp.checksum(), right);
                tcp.payload().len()
            })
            .collect();
        assert_eq!(lengths, [1400, 1400, 200]);
    }

    #[test]
    fn a_udp_checksum_of_zero_is_written_as_its_other_form() {
        let mut made = made(true, false, false, 0, vec![0, 0], 0, 0);
        let offload = Offload { gso: Gso::None, ..made.offload };
        let right = &finished(&made.frame, &offload)[0];
        // Two bytes that make the sum of everything zero.
        let sum = u16::from_be_bytes([right[40], right[41]]);
        let end = made.frame.len();
        made.frame[end - 2..].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(finished(&made.frame, &offload)[0][40..42], [0xff, 0xff]);
        assert!(made.is_udp);
    }

    #[test]
    fn a_finished_frame_is_left_alone() {
        let made = made(false, false, false, 0, vec![1; 100], 0, 0);
        assert_eq!(finished(&made.frame, &Offload::default()), std::slice::from_ref(&made.frame));
    }
}
