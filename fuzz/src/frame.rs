//! Frames of the sandbox, made by hand, and the check of those that it gets.
use std::net::IpAddr;

use etherparse::{NetSlice, SlicedPacket};
use smoltcp::wire::IpProtocol;
use tapline::gateway::emit;
use tapline::gateway::link::{Gso, Offload};
use tapline::plan::MacAddr;

use crate::{GATEWAY_V4, SANDBOX_MAC};

pub const ETHERNET: usize = 14;
pub const ARP: u16 = 0x0806;
pub const IPV4: u16 = 0x0800;
pub const IPV6: u16 = 0x86dd;

/// An Ethernet frame from the sandbox to the gateway.
pub fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(ETHERNET + payload.len());
    frame.extend_from_slice(&MacAddr::from_ipv4(GATEWAY_V4).0);
    frame.extend_from_slice(&SANDBOX_MAC.0);
    frame.extend_from_slice(&ethertype.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// A frame with an IP packet, cut where the length field would overflow.
pub fn ip(src: IpAddr, dst: IpAddr, protocol: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let payload = &payload[..payload.len().min(65_515)];
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut header = [0; 20];
            header[0] = 0x45;
            header[2..4].copy_from_slice(&((20 + payload.len()) as u16).to_be_bytes());
            header[8] = hop_limit;
            header[9] = protocol;
            header[12..16].copy_from_slice(&src.octets());
            header[16..].copy_from_slice(&dst.octets());
            let mut packet = header.to_vec();
            packet.extend_from_slice(payload);
            mend_ipv4(&mut packet);
            ethernet(IPV4, &packet)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend_from_slice(&(payload.len() as u16).to_be_bytes());
            packet.extend_from_slice(&[protocol, hop_limit]);
            packet.extend_from_slice(&src.octets());
            packet.extend_from_slice(&dst.octets());
            packet.extend_from_slice(payload);
            ethernet(IPV6, &packet)
        }
        _ => unreachable!("two families"),
    }
}

/// Make an IPv4 header's checksum right.
pub fn mend_ipv4(packet: &mut [u8]) {
    let Some(length) = packet.first().map(|b| usize::from(b & 15) * 4).filter(|l| *l >= 20 && *l <= packet.len())
    else {
        return;
    };
    packet[10..12].fill(0);
    let sum = !emit::fold(u64::from(emit::sum_of(&packet[..length])));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// What frames of a gateway must keep to.
pub struct Rules {
    pub mtu: usize,
    /// The gateway's Ethernet address.
    pub mac: MacAddr,
    /// Who may be named as the sender of an IP packet; `None` for anybody but the sandbox itself.
    pub sources: Option<Vec<IpAddr>>,
    /// The sandbox's own addresses, as nobody else may call themselves.
    pub own: Vec<IpAddr>,
}

/// Is this a frame that a kernel would take, that says the truth about itself, and comes from somebody who may send it?
pub fn check(frame: &[u8], offload: &Offload, rules: &Rules) {
    let mtu = rules.mtu;
    assert!(frame.len() >= ETHERNET && frame.len() <= ETHERNET + 65_575);
    assert_eq!(frame[6..12], rules.mac.0);
    assert!(!offload.csum_valid);
    if offload.gso == Gso::None {
        assert!(frame.len() <= ETHERNET + mtu, "{} bytes at an MTU of {mtu}", frame.len());
    }
    if offload.needs_csum {
        let field = usize::from(offload.csum_start) + usize::from(offload.csum_offset);
        assert!(field + 2 <= frame.len());
    }
    let packet = SlicedPacket::from_ethernet(frame).expect("the other parser takes it");
    let bytes = &frame[ETHERNET..];
    let (src, dst, protocol, payload, is_fragment): (IpAddr, IpAddr, _, _, _) = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            assert_eq!(usize::from(header.total_len()), bytes.len());
            assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
            assert!(header.ttl() > 0);
            let payload = ip.payload();
            (
                header.source_addr().into(),
                header.destination_addr().into(),
                payload.ip_number,
                payload.payload,
                header.is_fragmenting_payload(),
            )
        }
        Some(NetSlice::Ipv6(ip)) => {
            assert_eq!(usize::from(ip.header().payload_length()) + 40, bytes.len());
            assert!(ip.header().hop_limit() > 0);
            let payload = ip.payload();
            (
                ip.header().source_addr().into(),
                ip.header().destination_addr().into(),
                payload.ip_number,
                payload.payload,
                ip.is_payload_fragmented(),
            )
        }
        Some(NetSlice::Arp(arp)) => {
            assert_eq!(*offload, Offload::default());
            assert_eq!(arp.sender_hw_addr(), rules.mac.0);
            return;
        }
        None => panic!("neither ARP nor IP"),
    };
    assert!(!src.is_multicast() && !src.is_unspecified());
    assert!(!rules.own.contains(&src), "in the name of the sandbox itself");
    assert!(rules.sources.as_ref().is_none_or(|all| all.contains(&src)), "from {src}, who is nobody");
    if is_fragment {
        assert!(!offload.needs_csum && offload.gso == Gso::None);
        return;
    }
    let upper = IpProtocol::from(protocol.0);
    let at = frame.len() - payload.len();
    if offload.needs_csum {
        assert_eq!(usize::from(offload.csum_start), at);
        assert_eq!(offload.csum_offset, if upper == IpProtocol::Tcp { 16 } else { 6 });
        let field = at + usize::from(offload.csum_offset);
        let sum = emit::fold(emit::pseudo_header_sum(src, dst, upper, payload.len() as u32));
        assert_eq!(frame[field..field + 2], sum.to_be_bytes(), "not the pseudo-header's sum");
    } else if upper == IpProtocol::Icmp {
        assert_eq!(emit::fold(u64::from(emit::sum_of(payload))), 0xffff);
    } else {
        assert!(emit::checksum_holds(src, dst, upper, payload));
    }
    let header = match (offload.gso, upper) {
        (Gso::None, _) => return,
        (Gso::TcpV4, IpProtocol::Tcp) if src.is_ipv4() => usize::from(payload[12] >> 4) * 4,
        (Gso::TcpV6, IpProtocol::Tcp) if src.is_ipv6() => usize::from(payload[12] >> 4) * 4,
        (Gso::UdpL4, IpProtocol::Udp) => 8,
        other => panic!("{other:?}"),
    };
    assert!(offload.needs_csum && offload.gso_size > 0);
    assert_eq!(usize::from(offload.hdr_len), at + header);
    assert!(at - ETHERNET + header + usize::from(offload.gso_size) <= mtu);
    assert!(payload.len() - header > usize::from(offload.gso_size));
}
