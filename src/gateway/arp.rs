//! ARP (RFC 826): the gateway answers for its own addresses, and for clients it stands for.
//!
//! # Theory of operation
//!
//! No state. The gateway has two IPv4 addresses, its own and that of DNS, and answers requests for these and for
//! clients that it stands for ([`kept`](super::kept)), and no others: an address of the segment that nobody has stays unanswered, so that a sandbox finds out at once.
//! It keeps no table of neighbors either: a frame's sender is known by its port, and answers go back there. Only where
//! clients of published ports find the sandbox follows a change of its Ethernet address.
//!
//! - A request must come from an address that a sandbox may use, or from 0.0.0.0: that is a probe of somebody
//!   about to take an address (RFC 5227, 2.1.1), who must learn that the gateway's are taken.
//! - A sender that claims one of the gateway's addresses is counted as spoofed. It changes nothing here; its own
//!   probe has had its answer.
//! - Announcements (sender and target are the same address) and replies need no answer.
//!
//! Where the sandbox has the host's own addresses ([`Behaviour::mapping`](crate::plan::Behaviour)) the other machines of
//! its subnet are behind the gateway, so it answers for every address but the sandbox's, and no probe: whatever the
//! sandbox takes is its own.
use std::net::{IpAddr, Ipv4Addr};

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress};

use super::{
    Segment,
    counters::DropReason,
    emit,
    kept::{is_sandboxes, is_somebodys},
    link::{Link, Peer},
    packet::ETHERTYPE_ARP,
};
use crate::plan::MacAddr;

/// Length of an ARP packet for Ethernet and IPv4.
const ARP_LEN: usize = 28;

/// A sandbox sent an ARP packet (without Ethernet header).
pub fn handle(segment: &mut Segment, peer: Peer, packet: &[u8], link: &mut impl Link) -> Result<(), DropReason> {
    if segment.network.v4.is_none() {
        return Err(DropReason::Family);
    }
    let view = ArpPacket::new_checked(packet).map_err(|_| DropReason::Malformed)?;
    let ArpRepr::EthernetIpv4 { operation, source_hardware_addr, source_protocol_addr, target_protocol_addr, .. } =
        ArpRepr::parse(&view).map_err(|_| DropReason::Malformed)?
    else {
        return Err(DropReason::Malformed);
    };
    // The address in the packet is what others would learn: it must be the one that sends.
    if source_hardware_addr != EthernetAddress(peer.mac.0) {
        return Err(DropReason::Spoofed);
    }
    let probe = source_protocol_addr == Ipv4Addr::UNSPECIFIED;
    if !probe && !segment.source_allowed(peer.port, source_protocol_addr.into()) {
        return Err(DropReason::Spoofed);
    }
    segment.notice_station(peer, source_protocol_addr.into());
    match operation {
        ArpOperation::Request => {}
        ArpOperation::Reply => return Ok(()),
        ArpOperation::Unknown(_) => return Err(DropReason::Malformed),
    }
    if source_protocol_addr == target_protocol_addr {
        return Ok(());
    }
    if !answers_for(segment, peer, target_protocol_addr.into(), probe) {
        return Err(DropReason::NotForUs);
    }
    let mut reply = [0u8; ARP_LEN];
    ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(segment.network.gateway_mac.0),
        source_protocol_addr: target_protocol_addr,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    }
    .emit(&mut ArpPacket::new_unchecked(&mut reply[..]));
    let to = Peer { port: peer.port, mac: MacAddr(source_hardware_addr.0) };
    emit::ethernet(segment, to, ETHERTYPE_ARP, &reply, link);
    Ok(())
}

fn answers_for(segment: &Segment, peer: Peer, target: IpAddr, probe: bool) -> bool {
    if segment.network.behaviour.mapping.is_some() {
        return !probe && is_somebodys(&segment.network, target) && !is_sandboxes(segment, target);
    }
    let stands_for = !probe && segment.kept.contains(peer.port, target);
    segment.network.is_gateway(target) || segment.network.is_dns(target) || stands_for
}

#[cfg(test)]
mod tests {
    use etherparse::{ArpEthIpv4Packet, ArpOperation as Op, ArpPacket as Arp, NetSlice, SlicedPacket};

    use super::super::emit::testing::*;
    use super::*;

    fn packet(operation: Op, mac: MacAddr, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
        let packet = ArpEthIpv4Packet {
            operation,
            sender_mac: mac.0,
            sender_ipv4: sender.octets(),
            target_mac: [0; 6],
            target_ipv4: target.octets(),
        };
        Arp::from(packet).to_bytes().to_vec()
    }

    fn ask(packet: &[u8]) -> (Result<(), DropReason>, Recorder) {
        let (mut segment, mut link) = (segment(1500), Recorder::default());
        (handle(&mut segment, PEER, packet, &mut link), link)
    }

    #[track_caller]
    fn answered(sender: Ipv4Addr, target: Ipv4Addr) {
        let (result, link) = ask(&packet(Op::REQUEST, SANDBOX_MAC, sender, target));
        assert_eq!(result, Ok(()));
        let frame = SlicedPacket::from_ethernet(link.one()).unwrap();
        let Some(NetSlice::Arp(arp)) = frame.net else { panic!("{frame:?}") };
        let reply = ArpEthIpv4Packet::try_from(arp.to_packet()).unwrap();
        let gateway = network(1500).gateway_mac;
        assert_eq!(link.one()[..6], SANDBOX_MAC.0);
        assert_eq!(link.one()[6..12], gateway.0);
        assert_eq!(
            reply,
            ArpEthIpv4Packet {
                operation: Op::REPLY,
                sender_mac: gateway.0,
                sender_ipv4: target.octets(),
                target_mac: SANDBOX_MAC.0,
                target_ipv4: sender.octets(),
            }
        );
    }

    #[track_caller]
    fn unanswered(packet: &[u8], expected: Result<(), DropReason>) {
        let (result, link) = ask(packet);
        assert_eq!(result, expected);
        assert!(link.frames.is_empty());
    }

    #[test]
    fn requests_and_probes_for_the_gateway_and_dns_are_answered() {
        answered(SANDBOX_V4, GATEWAY_V4);
        answered(SANDBOX_V4, DNS_V4);
        answered(Ipv4Addr::new(10, 0, 2, 7), GATEWAY_V4);
        answered(Ipv4Addr::UNSPECIFIED, GATEWAY_V4);
        answered(Ipv4Addr::UNSPECIFIED, DNS_V4);
    }

    #[test]
    fn nobody_else_is_answered_for() {
        for target in [[10, 0, 2, 1], [10, 0, 2, 9], [192, 0, 2, 1], [10, 0, 2, 255]] {
            let request = packet(Op::REQUEST, SANDBOX_MAC, SANDBOX_V4, target.into());
            unanswered(&request, Err(DropReason::NotForUs));
        }
    }

    #[test]
    fn announcements_and_replies_are_taken_silently() {
        unanswered(&packet(Op::REQUEST, SANDBOX_MAC, SANDBOX_V4, SANDBOX_V4), Ok(()));
        unanswered(&packet(Op::REPLY, SANDBOX_MAC, SANDBOX_V4, GATEWAY_V4), Ok(()));
    }

    #[test]
    fn senders_that_claim_what_is_not_theirs_are_spoofed() {
        let spoofed = Err(DropReason::Spoofed);
        unanswered(&packet(Op::REQUEST, SANDBOX_MAC, GATEWAY_V4, DNS_V4), spoofed);
        unanswered(&packet(Op::REQUEST, SANDBOX_MAC, GATEWAY_V4, GATEWAY_V4), spoofed);
        unanswered(&packet(Op::REQUEST, SANDBOX_MAC, Ipv4Addr::new(192, 0, 2, 1), GATEWAY_V4), spoofed);
        unanswered(&packet(Op::REQUEST, SANDBOX_MAC, Ipv4Addr::new(10, 0, 2, 255), GATEWAY_V4), spoofed);
        unanswered(&packet(Op::REQUEST, MacAddr([2, 0, 0, 0, 0, 9]), SANDBOX_V4, GATEWAY_V4), spoofed);
    }

    #[test]
    fn what_is_no_arp_for_ipv4_is_malformed() {
        let right = packet(Op::REQUEST, SANDBOX_MAC, SANDBOX_V4, GATEWAY_V4);
        for len in 0..right.len() {
            unanswered(&right[..len], Err(DropReason::Malformed));
        }
        for at in [0, 2, 4, 5, 6] {
            let mut wrong = right.clone();
            wrong[at] ^= 0x10;
            unanswered(&wrong, Err(DropReason::Malformed));
        }
    }
}
