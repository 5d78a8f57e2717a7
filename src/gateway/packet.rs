//! A checked view of an IP packet from a sandbox: lengths are checked once, here; behind it nothing can panic.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet};

use super::counters::DropReason;
use super::link::{Offload, Peer};

/// Length of an Ethernet header without VLAN tag.
pub const ETHERNET_HEADER: usize = 14;
/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// One whole IP packet (not a fragment any more) of a sandbox.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Who sent it.
    pub peer: Peer,
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// The protocol above IP and above all extension headers.
    pub protocol: IpProtocol,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Type of service / traffic class.
    pub tos: u8,
    /// IPv4's don't-fragment bit; true for IPv6 that was not fragmented by the sandbox.
    pub dont_fragment: bool,
    /// From the first byte of the IP header to the last of the IP payload (no Ethernet padding). Of a
    /// reassembled datagram: the header of its first fragment, made whole.
    pub bytes: &'a [u8],
    /// Where the upper protocol begins in `bytes`.
    pub payload_at: usize,
    /// What the virtio-net header said. Offsets count from the Ethernet header.
    pub offload: Offload,
}

impl<'a> Packet<'a> {
    /// The upper protocol's bytes.
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.payload_at..]
    }

    /// Must the upper protocol's checksum be verified by us?
    pub fn checksum_to_verify(&self) -> bool {
        !self.offload.needs_csum && !self.offload.csum_valid
    }
}

/// What an IP packet's bytes turned out to be.
#[derive(Clone, Copy, Debug)]
pub enum Parsed<'a> {
    /// A whole packet.
    Whole(Packet<'a>),
    /// One fragment of a datagram.
    Fragment(Fragment<'a>),
}

/// A fragment of an IPv4 or IPv6 datagram (RFC 791, 3.2; RFC 8200, 4.5).
#[derive(Clone, Copy, Debug)]
pub struct Fragment<'a> {
    /// Who sent it.
    pub peer: Peer,
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Identification; 16 bits for IPv4.
    pub id: u32,
    /// The protocol of the reassembled payload.
    pub protocol: IpProtocol,
    /// Where this fragment's payload belongs, in bytes.
    pub offset: u32,
    /// More fragments follow.
    pub more: bool,
    /// The headers before the fragment's payload, fragment header of IPv6 left out.
    pub header: &'a [u8],
    /// The fragment's payload.
    pub payload: &'a [u8],
}

/// Check an IPv4 packet and say what it is.
pub fn parse_ipv4(peer: Peer, offload: Offload, bytes: &[u8]) -> Result<Parsed<'_>, DropReason> {
    let view = Ipv4Packet::new_checked(bytes).map_err(|_| DropReason::Malformed)?;
    if view.version() != 4 || view.header_len() < 20 || usize::from(view.total_len()) < usize::from(view.header_len()) {
        return Err(DropReason::Malformed);
    }
    if !view.verify_checksum() {
        return Err(DropReason::Checksum);
    }
    let header_len = usize::from(view.header_len());
    let bytes = &bytes[..usize::from(view.total_len())];
    let (src, dst) = (IpAddr::V4(view.src_addr()), IpAddr::V4(view.dst_addr()));
    if view.more_frags() || view.frag_offset() != 0 {
        return Ok(Parsed::Fragment(Fragment {
            peer,
            src,
            dst,
            id: u32::from(view.ident()),
            protocol: view.next_header(),
            offset: u32::from(view.frag_offset()),
            more: view.more_frags(),
            header: &bytes[..header_len],
            payload: &bytes[header_len..],
        }));
    }
    Ok(Parsed::Whole(Packet {
        peer,
        src,
        dst,
        protocol: view.next_header(),
        hop_limit: view.hop_limit(),
        tos: bytes[1],
        dont_fragment: view.dont_frag(),
        bytes,
        payload_at: header_len,
        offload,
    }))
}

/// Longest chain of extension headers that is followed.
const MAX_EXTENSIONS: usize = 8;

/// Check an IPv6 packet, walk over its hop-by-hop, routing and destination options (RFC 8200, 4), and say what
/// it is. A routing header with segments left is refused (RFC 5095).
pub fn parse_ipv6(peer: Peer, offload: Offload, bytes: &[u8]) -> Result<Parsed<'_>, DropReason> {
    let view = Ipv6Packet::new_checked(bytes).map_err(|_| DropReason::Malformed)?;
    if view.version() != 6 {
        return Err(DropReason::Malformed);
    }
    let bytes = &bytes[..40 + usize::from(view.payload_len())];
    let (src, dst) = (IpAddr::V6(view.src_addr()), IpAddr::V6(view.dst_addr()));
    let mut next = view.next_header();
    let mut at = 40;
    for _ in 0..=MAX_EXTENSIONS {
        match next {
            // Nowhere but in front (RFC 8200, 4.3).
            IpProtocol::HopByHop if at != 40 => return Err(DropReason::Malformed),
            IpProtocol::HopByHop | IpProtocol::Ipv6Opts | IpProtocol::Ipv6Route => {
                let head = bytes.get(at..at + 8).ok_or(DropReason::Malformed)?;
                if next == IpProtocol::Ipv6Route && head[3] != 0 {
                    return Err(DropReason::Protocol);
                }
                next = IpProtocol::from(head[0]);
                at += 8 + usize::from(head[1]) * 8;
                if at > bytes.len() {
                    return Err(DropReason::Malformed);
                }
            }
            IpProtocol::Ipv6Frag => {
                let head: &[u8; 8] = bytes.get(at..).and_then(|b| b.first_chunk()).ok_or(DropReason::Malformed)?;
                // Those stand before it (RFC 8200, 4.5).
                if IpProtocol::from(head[0]) == IpProtocol::HopByHop {
                    return Err(DropReason::Malformed);
                }
                let field = u16::from_be_bytes([head[2], head[3]]);
                return Ok(Parsed::Fragment(Fragment {
                    peer,
                    src,
                    dst,
                    id: u32::from_be_bytes([head[4], head[5], head[6], head[7]]),
                    protocol: IpProtocol::from(head[0]),
                    offset: u32::from(field & !7),
                    more: field & 1 == 1,
                    header: &bytes[..at],
                    payload: &bytes[at + 8..],
                }));
            }
            _ => {
                return Ok(Parsed::Whole(Packet {
                    peer,
                    src,
                    dst,
                    protocol: next,
                    hop_limit: view.hop_limit(),
                    tos: view.traffic_class(),
                    dont_fragment: true,
                    bytes,
                    payload_at: at,
                    offload,
                }));
            }
        }
    }
    Err(DropReason::Malformed)
}

/// An IPv4 address, where it is one.
pub fn v4(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

/// An IPv6 address, where it is one.
pub fn v6(ip: IpAddr) -> Option<Ipv6Addr> {
    match ip {
        IpAddr::V6(ip) => Some(ip),
        IpAddr::V4(_) => None,
    }
}
