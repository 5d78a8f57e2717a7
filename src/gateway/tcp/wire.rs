//! Small work on TCP headers: the maximum segment size option, resets, pseudo-headers.
use std::net::{IpAddr, SocketAddr};

use smoltcp::wire::{
    IpAddress, IpProtocol, IpRepr, Ipv4Packet, Ipv6Packet, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};

use crate::gateway::link::{Link, Offload, Peer};
use crate::gateway::packet::{ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Packet};
use crate::gateway::{Segment, counters::DropReason};
use crate::plan::MacAddr;

/// Offset of the checksum field in a TCP header.
const CHECKSUM_AT: usize = 16;
/// Kind of the maximum segment size option (RFC 9293, 3.2).
const OPTION_MSS: u8 = 2;
/// Largest header smoltcp can be given: IPv6 and TCP with all options.
const MAX_HEADERS: usize = 40 + 60;

/// Where the two bytes of the maximum segment size option are in a TCP header, if it has one.
pub fn mss_option_at(header: &[u8]) -> Option<usize> {
    let mut at = 20;
    while at < header.len() {
        match header[at] {
            0 => return None,
            1 => at += 1,
            kind => {
                let len = usize::from(*header.get(at + 1)?);
                if len < 2 || at + len > header.len() {
                    return None;
                }
                if kind == OPTION_MSS && len == 4 {
                    return Some(at + 2);
                }
                at += len;
            }
        }
    }
    None
}

/// A SYN as it is kept until the host has answered: plain IP header and TCP header, no payload.
#[derive(Clone, Debug)]
pub struct HeldSyn {
    bytes: [u8; MAX_HEADERS],
    len: usize,
    tcp_at: usize,
}

impl HeldSyn {
    /// Keep a SYN's headers. Data in it is left out: its sender repeats it (RFC 9293, 3.10.7.2).
    pub fn new(packet: &Packet<'_>, tcp: &TcpPacket<&[u8]>) -> Result<HeldSyn, DropReason> {
        let header_len = usize::from(tcp.header_len());
        let (src, dst) = (IpAddress::from(packet.src), IpAddress::from(packet.dst));
        // Options that smoltcp cannot read: it would never answer, and the flow never end.
        let unread = smoltcp::phy::ChecksumCapabilities::ignored();
        TcpRepr::parse(tcp, &src, &dst, &unread).map_err(|_| DropReason::Malformed)?;
        let ip = IpRepr::new(src, dst, IpProtocol::Tcp, header_len, packet.hop_limit.max(1));
        let (tcp_at, len) = (ip.header_len(), ip.header_len() + header_len);
        let mut bytes = [0; MAX_HEADERS];
        let header = packet.payload().get(..header_len).ok_or(DropReason::Malformed)?;
        ip.emit(bytes.get_mut(..len).ok_or(DropReason::Malformed)?, &Default::default());
        bytes[tcp_at..len].copy_from_slice(header);
        Ok(HeldSyn { bytes, len, tcp_at })
    }

    /// The packet.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The TCP header.
    pub fn tcp(&self) -> &[u8] {
        &self.bytes[self.tcp_at..self.len]
    }

    /// Sequence number of the SYN.
    pub fn sequence(&self) -> u32 {
        u32::from_be_bytes([self.tcp()[4], self.tcp()[5], self.tcp()[6], self.tcp()[7]])
    }

    /// The maximum segment size the sandbox offered, 536 where it offered none (RFC 9293, 3.7.1).
    pub fn mss(&self) -> u16 {
        mss_option_at(self.tcp()).map_or(536, |at| u16::from_be_bytes([self.tcp()[at], self.tcp()[at + 1]]))
    }

    /// Put another maximum segment size into the option, where there is one.
    pub fn set_mss(&mut self, mss: u16) {
        if let Some(at) = mss_option_at(self.tcp()) {
            let at = self.tcp_at + at;
            self.bytes[at..at + 2].copy_from_slice(&mss.to_be_bytes());
        }
    }
}

/// The largest segment that the network takes, behind an IP header of this length and a plain TCP header. An MTU that has
/// no room for one, which only IPv6 meets (no link of its has one under 1280), counts as one that has.
pub fn largest_segment(mtu: u16, ip_header: usize) -> u16 {
    const LEAST: usize = 8;
    usize::from(mtu).saturating_sub(ip_header + 20).max(LEAST) as u16
}

/// The segments that are sent to somebody who takes this much; tiny ones, which cost the most, are not believed in
/// (linux/tcp.h, TCP_MIN_SND_MSS) as far as the network takes larger ones.
pub fn segments_for(offered: u16, largest: u16) -> u16 {
    const LEAST: u16 = 48;
    offered.clamp(LEAST.min(largest), largest)
}

/// Sum of the pseudo-header (RFC 9293, 3.1; RFC 8200, 8.1), folded and not inverted: what the checksum field
/// of a frame with `needs_csum` holds.
pub fn pseudo_header_sum(ip: &[u8], length: usize) -> u16 {
    let addresses = if ip[0] >> 4 == 4 { &ip[12..20] } else { &ip[8..40] };
    let mut sum = u32::from(u8::from(IpProtocol::Tcp)) + length as u32;
    for pair in addresses.chunks_exact(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Write the Ethernet header, `fill` the IP packet, and put the pseudo-header sum where the checksum goes.
/// `mss`: what a SYN's option is set to.
pub fn finish_frame<R>(
    frame: &mut [u8],
    from: MacAddr,
    to: MacAddr,
    ip_header: usize,
    mss: u16,
    fill: impl FnOnce(&mut [u8]) -> R,
) -> R {
    let (ethernet, ip) = frame.split_at_mut(ETHERNET_HEADER);
    ethernet[..6].copy_from_slice(&to.0);
    ethernet[6..12].copy_from_slice(&from.0);
    let kind = if ip_header == 20 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
    ethernet[12..].copy_from_slice(&kind.to_be_bytes());
    let result = fill(ip);
    let tcp_len = ip.len() - ip_header;
    let sum = pseudo_header_sum(ip, tcp_len);
    let tcp = &mut ip[ip_header..];
    tcp[CHECKSUM_AT..CHECKSUM_AT + 2].copy_from_slice(&sum.to_be_bytes());
    const SYN: u8 = 2;
    if tcp[13] & SYN != 0 {
        let header = usize::from(tcp[12] >> 4) * 4;
        if let Some(at) = tcp.get(..header).and_then(mss_option_at) {
            tcp[at..at + 2].copy_from_slice(&mss.to_be_bytes());
        }
    }
    result
}

/// Let a segment of ours tell of a window of [`LEAST`](super::memory::LEAST) bytes at most, as smoltcp scales the windows
/// of rings of this size; to somebody who does not scale it is less, and never nothing.
pub fn lower_window(tcp: &mut [u8]) {
    const SCALE: u32 = (super::RING_BYTES >> 15).ilog2();
    const MOST: u16 = (super::memory::LEAST >> SCALE) as u16;
    let told = u16::from_be_bytes([tcp[14], tcp[15]]).min(MOST);
    tcp[14..16].copy_from_slice(&told.to_be_bytes());
}

/// The offload of an ordinary TCP segment behind an IP header of this length.
pub fn checksum_offload(ip_header: usize) -> Offload {
    Offload {
        needs_csum: true,
        csum_start: (ETHERNET_HEADER + ip_header) as u16,
        csum_offset: CHECKSUM_AT as u16,
        hdr_len: (ETHERNET_HEADER + ip_header + 20) as u16,
        ..Offload::default()
    }
}

/// Send a bare segment: a reset or an acknowledgement that belongs to no socket.
#[allow(clippy::too_many_arguments)]
pub fn send_bare(
    segment: &mut Segment,
    peer: Peer,
    from: SocketAddr,
    to: SocketAddr,
    control: TcpControl,
    sequence: u32,
    acknowledge: Option<u32>,
    link: &mut impl Link,
) {
    let repr = TcpRepr {
        src_port: from.port(),
        dst_port: to.port(),
        control,
        seq_number: TcpSeqNumber(sequence as i32),
        ack_number: acknowledge.map(|a| TcpSeqNumber(a as i32)),
        // A repeated FIN must not look like a closed window.
        window_len: if control == TcpControl::Rst { 0 } else { 1024 },
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let (src, dst) = (IpAddress::from(from.ip()), IpAddress::from(to.ip()));
    let ip = IpRepr::new(src, dst, IpProtocol::Tcp, repr.buffer_len(), 64);
    let ip_header = ip.header_len();
    let len = ETHERNET_HEADER + ip_header + repr.buffer_len();
    segment.counters.frames_out += 1;
    segment.counters.bytes_out += len as u64;
    let mac = segment.network.gateway_mac;
    link.transmit(peer.port, checksum_offload(ip_header), len, |frame| {
        finish_frame(frame, mac, peer.mac, ip_header, 0, |bytes| {
            let mut caps = smoltcp::phy::ChecksumCapabilities::default();
            caps.tcp = smoltcp::phy::Checksum::None;
            ip.emit(&mut *bytes, &caps);
            repr.emit(&mut TcpPacket::new_unchecked(&mut bytes[ip_header..]), &src, &dst, &caps);
        });
    });
}

/// Answer a segment that belongs to no flow with a reset (RFC 9293, 3.10.7.1).
pub fn refuse(segment: &mut Segment, packet: &Packet<'_>, tcp: &TcpPacket<&[u8]>, link: &mut impl Link) {
    let (from, to) = (SocketAddr::new(packet.dst, tcp.dst_port()), SocketAddr::new(packet.src, tcp.src_port()));
    if tcp.ack() {
        let sequence = tcp.ack_number().0 as u32;
        send_bare(segment, packet.peer, from, to, TcpControl::Rst, sequence, None, link);
    } else {
        let acknowledge = (tcp.seq_number().0 as u32).wrapping_add(tcp.segment_len() as u32);
        send_bare(segment, packet.peer, from, to, TcpControl::Rst, 0, Some(acknowledge), link);
    }
}

/// Verify a segment's checksum where nobody vouches for it.
pub fn verify_checksum(packet: &Packet<'_>, tcp: &TcpPacket<&[u8]>) -> Result<(), DropReason> {
    if !packet.checksum_to_verify() || tcp.verify_checksum(&packet.src.into(), &packet.dst.into()) {
        Ok(())
    } else {
        Err(DropReason::Checksum)
    }
}

/// An IPv6 packet whose extension headers smoltcp does not know, without them; `None` for all others, which
/// can be given to it as they are.
pub fn without_extensions(packet: &Packet<'_>) -> Option<Vec<u8>> {
    let IpAddr::V6(_) = packet.src else { return None };
    if packet.payload_at == 40 {
        return None;
    }
    let mut bytes = packet.bytes[..40].to_vec();
    bytes.extend_from_slice(packet.payload());
    let mut view = Ipv6Packet::new_unchecked(&mut bytes[..]);
    view.set_next_header(IpProtocol::Tcp);
    view.set_payload_len(packet.payload().len() as u16);
    Some(bytes)
}

/// A packet without what is behind the first `length` bytes of its `text`, and so without its FIN. Its IP header is a plain
/// one.
pub fn shortened(packet: &[u8], text: usize, length: usize) -> Vec<u8> {
    const FIN_AND_PUSH: u8 = 0x09;
    let mut bytes = packet[..packet.len() - (text - length)].to_vec();
    let total = bytes.len() as u16;
    let tcp_at = if bytes[0] >> 4 == 4 {
        Ipv4Packet::new_unchecked(&mut bytes[..]).set_total_len(total);
        usize::from(Ipv4Packet::new_unchecked(&bytes[..]).header_len())
    } else {
        let header = smoltcp::wire::IPV6_HEADER_LEN;
        Ipv6Packet::new_unchecked(&mut bytes[..]).set_payload_len(total - header as u16);
        header
    };
    bytes[tcp_at + 13] &= !FIN_AND_PUSH;
    bytes
}

/// Length of a plain IP header of this packet's family.
pub fn plain_ip_header(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(_) => smoltcp::wire::IPV4_HEADER_LEN,
        IpAddr::V6(_) => smoltcp::wire::IPV6_HEADER_LEN,
    }
}

/// Acknowledgement number, sequence number and sequence length of a segment we wrote; `None` for a reset, whose
/// numbers may be those of another connection.
pub fn numbers(ip: &[u8]) -> Option<(u32, u32, u32)> {
    let header = match ip.first()? >> 4 {
        4 => usize::from(Ipv4Packet::new_checked(ip).ok()?.header_len()),
        _ => 40,
    };
    let tcp = TcpPacket::new_checked(ip.get(header..)?).ok().filter(|tcp| !tcp.rst())?;
    Some((tcp.ack_number().0 as u32, tcp.seq_number().0 as u32, tcp.segment_len() as u32))
}
