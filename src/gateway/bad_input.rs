//! Whole frames through the whole gateway: pings to it, and bytes that no honest sandbox would send.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;
use smoltcp::wire::IpProtocol;

use super::counters::DropReason;
use super::emit::testing::*;
use super::emit::{self, Ip};
use super::link::{Asker, Datagram, EchoId, Gso, Host, HostError, Offload, PortId, TcpId, UdpId};
use super::packet::{ETHERNET_HEADER, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use super::{Gateway, dhcp, ndp};
use crate::plan::{Behaviour, HostView, MacAddr, Mapping, Network};

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);

/// A host on which everything is taken and nothing comes back.
struct Silent;

impl Host for Silent {
    fn tcp_connect(&mut self, _flow: TcpId, _to: SocketAddr, _hop_limit: Option<u8>) {}
    fn tcp_connect_dns(&mut self, _flow: TcpId, _asker: Asker) {}
    fn tcp_keepalive(&mut self, _: TcpId) {}
    fn tcp_close(&mut self, _flow: TcpId, _reset: bool) {}
    fn udp_send(&mut self, _flow: UdpId, _to: SocketAddr, _datagram: Datagram<'_>) -> Result<(), HostError> {
        Ok(())
    }
    fn udp_close(&mut self, _flow: UdpId) {}
    fn echo_send(&mut self, _flow: EchoId, _to: IpAddr, _seq: u16, _datagram: Datagram<'_>) -> Result<(), HostError> {
        Ok(())
    }
    fn echo_close(&mut self, _flow: EchoId) {}
    fn dns_query(&mut self, _asker: Asker, _message: &[u8]) -> bool {
        true
    }
}

fn gateway(network: Network) -> Gateway {
    let mut gateway = Gateway::new(Instant::now(), network, HostView::default());
    gateway.add_port(PEER.port, endpoint());
    gateway
}

/// Hand the gateway a frame around this IP packet.
fn feed(gateway: &mut Gateway, packet: &[u8]) -> Recorder {
    let ethertype = if packet[0] >> 4 == 4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
    let frame = frame_from_sandbox(gateway.network().gateway_mac, ethertype, packet);
    let mut link = Recorder::default();
    gateway.handle_frame(Instant::now(), PEER.port, Offload::default(), &frame, &mut Silent, &mut link);
    link
}

/// The IP packets of an ICMP message from the sandbox, in fragments where it exceeds 1500 bytes.
fn icmp(src: IpAddr, dst: IpAddr, hop_limit: u8, header: [u8; 8], body: &[u8]) -> Vec<Vec<u8>> {
    let (mut segment, mut link) = (segment(1500), Recorder::default());
    let protocol = if src.is_ipv4() { IpProtocol::Icmp } else { IpProtocol::Icmpv6 };
    let ip = Ip { src, dst, protocol, tos: 0x20, hop_limit };
    emit::icmp(&mut segment, PEER, &ip, header, body, &mut link);
    link.frames.into_iter().map(|(_, _, frame)| frame[ETHERNET_HEADER..].to_vec()).collect()
}

fn echo_request(src: IpAddr, dst: IpAddr, body: &[u8]) -> Vec<Vec<u8>> {
    let kind = if src.is_ipv4() { 8 } else { 128 };
    icmp(src, dst, 1, [kind, 0, 0, 0, 0x12, 0x34, 0, 7], body)
}

#[track_caller]
fn dropped(gateway: &Gateway, reason: DropReason) {
    for &other in DropReason::ALL {
        assert_eq!(gateway.counters().dropped(other), u64::from(other == reason), "{other:?}");
    }
}

#[test]
fn pings_to_the_gateway_and_dns_are_answered_with_their_data() {
    let local = network(1500).gateway_link_local();
    let sandbox_local = SANDBOX_MAC.link_local();
    let cases: [(IpAddr, IpAddr, IpAddr); 6] = [
        (SANDBOX_V4.into(), GATEWAY_V4.into(), GATEWAY_V4.into()),
        (SANDBOX_V4.into(), DNS_V4.into(), DNS_V4.into()),
        (SANDBOX_V6.into(), GATEWAY_V6.into(), GATEWAY_V6.into()),
        (SANDBOX_V6.into(), DNS_V6.into(), DNS_V6.into()),
        (sandbox_local.into(), local.into(), local.into()),
        (sandbox_local.into(), ALL_NODES.into(), local.into()),
    ];
    for (src, dst, answers) in cases {
        let body: Vec<u8> = (0..56).collect();
        let link = feed(&mut gateway(network(1500)), &echo_request(src, dst, &body)[0]);
        let packet = SlicedPacket::from_ethernet(link.one()).unwrap();
        assert_eq!(link.one()[..6], SANDBOX_MAC.0);
        let (from, to, kind, rest, payload) = match (packet.net.unwrap(), packet.transport.unwrap()) {
            (NetSlice::Ipv4(ip), TransportSlice::Icmpv4(m)) => {
                assert_eq!(m.checksum(), m.icmp_type().calc_checksum(m.payload()));
                assert_eq!(link.one()[15], 0x20);
                let addresses = (ip.header().source_addr().into(), ip.header().destination_addr().into());
                (addresses.0, addresses.1, m.type_u8(), m.bytes5to8(), m.payload().to_vec())
            }
            (NetSlice::Ipv6(ip), TransportSlice::Icmpv6(m)) => {
                assert!(m.is_checksum_valid(ip.header().source(), ip.header().destination()));
                let addresses: (IpAddr, IpAddr) =
                    (ip.header().source_addr().into(), ip.header().destination_addr().into());
                (addresses.0, addresses.1, m.type_u8(), m.bytes5to8(), m.payload().to_vec())
            }
            other => panic!("{other:?}"),
        };
        assert_eq!((from, to), (answers, src));
        assert_eq!(kind, if src.is_ipv4() { 0 } else { 129 });
        assert_eq!((rest, payload), ([0x12, 0x34, 0, 7], body));
    }
}

#[test]
fn a_ping_of_the_largest_size_comes_and_goes_in_fragments() {
    for (src, dst) in [(SANDBOX_V4.into(), GATEWAY_V4.into()), (IpAddr::V6(SANDBOX_V6), IpAddr::V6(GATEWAY_V6))] {
        let body: Vec<u8> = (0..65_507usize).map(|i| ((i * 13) >> 2) as u8).collect();
        let mut gateway = gateway(network(1500));
        let mut answer = Recorder::default();
        for packet in echo_request(src, dst, &body) {
            assert!(answer.frames.is_empty());
            answer = feed(&mut gateway, &packet);
        }
        let expected = icmp(dst, src, 64, [if src.is_ipv4() { 0 } else { 129 }, 0, 0, 0, 0x12, 0x34, 0, 7], &body);
        assert_eq!(answer.frames.len(), expected.len());
        let payloads = |packets: Vec<&[u8]>| -> Vec<u8> {
            packets.into_iter().flat_map(|p| p[if src.is_ipv4() { 20 } else { 48 }..].to_vec()).collect()
        };
        let sent = payloads(answer.frames.iter().map(|(_, _, f)| &f[ETHERNET_HEADER..]).collect());
        assert!(sent == payloads(expected.iter().map(|p| &p[..]).collect()));
    }
}

#[test]
fn messages_that_nothing_follows_from_are_counted_by_their_reason() {
    let (src, dst) = (IpAddr::V4(SANDBOX_V4), IpAddr::V4(GATEWAY_V4));
    let (src6, dst6) = (IpAddr::V6(SANDBOX_V6), IpAddr::V6(GATEWAY_V6));
    let quoted = ip_packet(dst, src, 17, 64, &[0; 8]);
    let quoted6 = ip_packet(dst6, src6, 17, 64, &[0; 8]);
    let header = |kind, code| [kind, code, 0, 0, 0, 0, 0, 0];
    for (src, dst, header, body, reason) in [
        (src, dst, header(3, 3), &quoted[..], DropReason::IcmpError),
        (src6, dst6, header(1, 4), &quoted6[..], DropReason::IcmpError),
        (src6, dst6, header(2, 0), &quoted6[..], DropReason::IcmpError),
        (src, dst, header(3, 3), &quoted[..12], DropReason::Malformed),
        (src6, dst6, header(1, 4), &[], DropReason::Malformed),
        (src, dst, header(0, 0), &[], DropReason::Unsolicited),
        (src6, dst6, header(129, 0), &[], DropReason::Unsolicited),
        (src, dst, header(13, 0), &[0; 12], DropReason::Protocol),
        (src, dst, header(8, 1), &[], DropReason::Malformed),
        (src, Ipv4Addr::BROADCAST.into(), header(8, 0), &[], DropReason::Multicast),
        (src, Ipv4Addr::new(10, 0, 2, 255).into(), header(8, 0), &[], DropReason::Multicast),
        (src6, "ff02::16".parse().unwrap(), header(143, 0), &[], DropReason::Multicast),
        (src6, ALL_NODES.into(), header(134, 0), &[0; 8], DropReason::Spoofed),
        (GATEWAY_V4.into(), src, header(8, 0), &[], DropReason::Spoofed),
        (Ipv4Addr::new(192, 168, 0, 1).into(), dst, header(8, 0), &[], DropReason::Spoofed),
    ] {
        let mut gateway = gateway(network(1500));
        let link = feed(&mut gateway, &icmp(src, dst, 255, header, body)[0]);
        assert!(link.frames.is_empty());
        dropped(&gateway, reason);
    }
}

#[test]
fn the_gateway_is_a_hop_for_others_and_none_for_itself() {
    for (src, dst, own) in [
        (IpAddr::V4(SANDBOX_V4), IpAddr::V4(OUTSIDE_V4), IpAddr::V4(GATEWAY_V4)),
        (SANDBOX_V6.into(), OUTSIDE_V6.into(), GATEWAY_V6.into()),
    ] {
        let mut gateway = gateway(network(1500));
        let link = feed(&mut gateway, &echo_request(src, dst, b"traceroute")[0]);
        dropped(&gateway, DropReason::HopLimit);
        let packet = SlicedPacket::from_ethernet(link.one()).unwrap();
        let from: IpAddr = match packet.net.unwrap() {
            NetSlice::Ipv4(ip) => ip.header().source_addr().into(),
            NetSlice::Ipv6(ip) => ip.header().source_addr().into(),
            other => panic!("{other:?}"),
        };
        assert_eq!(from, own);
        let (kind, code) = match packet.transport.unwrap() {
            TransportSlice::Icmpv4(m) => (m.type_u8(), m.code_u8()),
            TransportSlice::Icmpv6(m) => (m.type_u8(), m.code_u8()),
            other => panic!("{other:?}"),
        };
        assert_eq!((kind, code), if src.is_ipv4() { (11, 0) } else { (3, 0) });
    }
}

#[test]
fn a_wrong_checksum_is_not_answered() {
    for (src, dst) in [(SANDBOX_V4.into(), GATEWAY_V4.into()), (IpAddr::V6(SANDBOX_V6), IpAddr::V6(GATEWAY_V6))] {
        let mut packet = echo_request(src, dst, b"data").remove(0);
        *packet.last_mut().unwrap() ^= 1;
        let mut gateway = gateway(network(1500));
        assert!(feed(&mut gateway, &packet).frames.is_empty());
        dropped(&gateway, DropReason::Checksum);
    }
}

#[test]
fn a_protocol_that_is_not_carried_is_answered_unreachable_unless_it_is_multicast() {
    let mut outside = gateway(network(1500));
    let link = feed(&mut outside, &ip_packet(SANDBOX_V4.into(), OUTSIDE_V4.into(), 132, 64, &[0; 12]));
    assert_eq!(link.one()[34..36], [3, 2]);
    dropped(&outside, DropReason::Protocol);
    let mut group = gateway(network(1500));
    let igmp = ip_packet(SANDBOX_V4.into(), Ipv4Addr::new(224, 0, 0, 22).into(), 2, 1, &[0; 8]);
    assert!(feed(&mut group, &igmp).frames.is_empty());
    dropped(&group, DropReason::Multicast);
}

#[test]
fn a_port_that_joins_is_sent_a_router_advertisement_when_time_passes() {
    let mut gateway = gateway(network(1500));
    let due = gateway.next_timeout().unwrap();
    let mut link = Recorder::default();
    gateway.handle_timeout(due, &mut Silent, &mut link);
    assert_eq!((link.one()[0..2].to_vec(), link.one()[54]), (vec![0x33, 0x33], 134));
    assert!(gateway.next_timeout().unwrap() > due);
    gateway.remove_port(PEER.port, &mut Silent);
    assert_eq!(gateway.next_timeout(), None);

    let mut v4_only = self::gateway(Network { v6: None, ..network(1500) });
    assert_eq!(v4_only.next_timeout(), None);
    let mut link = Recorder::default();
    v4_only.handle_timeout(due, &mut Silent, &mut link);
    assert!(link.frames.is_empty());
}

/// Frames that are right, one of each kind the gateway knows.
fn right_frames() -> Vec<Vec<u8>> {
    let (src, dst) = (IpAddr::V4(SANDBOX_V4), IpAddr::V4(GATEWAY_V4));
    let (src6, dst6) = (IpAddr::V6(SANDBOX_V6), IpAddr::V6(GATEWAY_V6));
    let mut packets = Vec::new();
    packets.extend(echo_request(src, dst, &[1; 40]));
    packets.extend(echo_request(src6, dst6, &[1; 3000]));
    packets.extend(echo_request(src, dst, &[1; 3000]));
    packets.extend(echo_request(src, OUTSIDE_V4.into(), &[1; 40]));
    packets.extend(icmp(src, dst, 64, [3, 3, 0, 0, 0, 0, 0, 0], &ip_packet(dst, src, 17, 64, &[0; 8])));
    let target = [&GATEWAY_V6.octets()[..], &[1, 1, 2, 0x42, 10, 0, 2, 100]].concat();
    packets.extend(icmp(src6, dst6, 255, [135, 0, 0, 0, 0, 0, 0, 0], &target));
    packets.extend(icmp(src6, ALL_NODES.into(), 255, [133, 0, 0, 0, 0, 0, 0, 0], &[1, 1, 2, 0x42, 10, 0, 2, 100]));
    packets.push(ip_packet(src, OUTSIDE_V4.into(), 132, 1, &[0; 20]));
    packets.push(ip_packet(src6, OUTSIDE_V6.into(), 60, 1, &[132, 0, 1, 4, 0, 0, 0, 0, 1, 2, 3, 4]));
    let mut dhcp = vec![1, 1, 6, 0, 1, 2, 3, 4];
    dhcp.resize(28, 0);
    dhcp.extend_from_slice(&SANDBOX_MAC.0);
    dhcp.resize(236, 0);
    dhcp.extend_from_slice(&[99, 130, 83, 99, 53, 1, 1, 50, 4, 10, 0, 2, 100, 57, 2, 5, 220, 255]);
    let mut packet = Vec::new();
    etherparse::PacketBuilder::ipv4([0; 4], [255; 4], 64).udp(68, 67).write(&mut packet, &dhcp).unwrap();
    packets.push(packet);
    let mut packet = Vec::new();
    let builder = etherparse::PacketBuilder::ipv4(SANDBOX_V4.octets(), OUTSIDE_V4.octets(), 64);
    builder.udp(4000, 53).write(&mut packet, &[7; 30]).unwrap();
    packets.push(packet);
    let mut packet = Vec::new();
    let builder = etherparse::PacketBuilder::ipv6(SANDBOX_V6.octets(), OUTSIDE_V6.octets(), 64);
    builder.tcp(4000, 80, 1, 65_535).syn().write(&mut packet, &[]).unwrap();
    packets.push(packet);

    let gateway = network(1500).gateway_mac;
    let mut frames: Vec<Vec<u8>> = packets
        .iter()
        .map(|p| frame_from_sandbox(gateway, if p[0] >> 4 == 4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 }, p))
        .collect();
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend_from_slice(&SANDBOX_MAC.0);
    arp.extend_from_slice(&SANDBOX_V4.octets());
    arp.extend_from_slice(&[0; 6]);
    arp.extend_from_slice(&GATEWAY_V4.octets());
    frames.push(frame_from_sandbox(MacAddr::BROADCAST, ETHERTYPE_ARP, &arp));
    frames
}

/// Make the IP header's checksum right again, so that a change behind it is looked at.
fn repair(frame: &mut [u8]) {
    if frame.len() < 34 || frame[12..14] != ETHERTYPE_IPV4.to_be_bytes() {
        return;
    }
    let header = usize::from(frame[14] & 15) * 4;
    if header >= 20 && frame.len() >= 14 + header {
        frame[24..26].fill(0);
        let sum = !emit::fold(u64::from(emit::sum_of(&frame[14..14 + header])));
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
}

fn offload() -> impl Strategy<Value = Offload> {
    let gso = prop_oneof![Just(Gso::None), Just(Gso::TcpV4), Just(Gso::TcpV6), Just(Gso::UdpL4)];
    (any::<(bool, bool, u16, u16, u16, u16)>(), gso).prop_map(|((needs, valid, start, offset, size, hdr), gso)| {
        Offload {
            needs_csum: needs,
            csum_valid: valid,
            csum_start: start,
            csum_offset: offset,
            gso,
            gso_size: size,
            hdr_len: hdr,
        }
    })
}

/// Frames in, with time passing, and what the gateway makes of them: it must not panic, and what it sends must be
/// frames that a second parser reads. On networks of every kind.
fn survive(frames: &[(Vec<u8>, Offload)]) {
    let mut mapped = network(1280);
    let mapping = Mapping { host_loopback_v4: "10.0.2.2".parse().ok(), ..Mapping::default() };
    mapped.behaviour = Behaviour { mapping: Some(mapping), ..Behaviour::default() };
    mapped.behaviour.services.dhcpv6 = true;
    let mut denied = network(68);
    denied.behaviour.host_denied = true;
    for network in [network(1280), mapped, denied] {
        survive_on(network, frames);
    }
}

fn survive_on(network: Network, frames: &[(Vec<u8>, Offload)]) {
    let mtu = usize::from(network.mtu);
    let mut gateway = gateway(network);
    let mut now = Instant::now();
    for (frame, offload) in frames {
        let mut link = Recorder::default();
        gateway.handle_frame(now, PEER.port, *offload, frame, &mut Silent, &mut link);
        now += Duration::from_secs(7);
        gateway.handle_timeout(now, &mut Silent, &mut link);
        for (port, _, sent) in &link.frames {
            assert_eq!(*port, PEER.port);
            assert!(sent.len() <= ETHERNET_HEADER + mtu);
            assert_eq!(sent[6..12], gateway.network().gateway_mac.0);
            SlicedPacket::from_ethernet(sent).unwrap();
        }
    }
    gateway.remove_port(PortId(1), &mut Silent);
    assert_eq!(gateway.counters().frames_in, frames.len() as u64);
}

#[test]
fn right_frames_are_understood() {
    // The seeds of the tests below must get past the first checks, or those would show little.
    let mut gateway = gateway(network(1500));
    let mut answers = 0;
    for frame in right_frames() {
        let mut link = Recorder::default();
        gateway.handle_frame(Instant::now(), PEER.port, Offload::default(), &frame, &mut Silent, &mut link);
        answers += link.frames.len();
    }
    for reason in [DropReason::Malformed, DropReason::Checksum, DropReason::Spoofed, DropReason::EtherType] {
        assert_eq!(gateway.counters().dropped(reason), 0, "{reason:?}");
    }
    assert!(answers >= 12, "{answers}");
}

proptest! {
    #[test]
    fn random_bytes_never_panic(
        kind in prop_oneof![Just(ETHERTYPE_ARP), Just(ETHERTYPE_IPV4), Just(ETHERTYPE_IPV6), any::<u16>()],
        payload in prop::collection::vec(any::<u8>(), 0..200),
        raw in prop::collection::vec(any::<u8>(), 0..60),
        offload in offload(),
    ) {
        let gateway = network(1500).gateway_mac;
        let mut versioned = payload.clone();
        if let Some(first) = versioned.first_mut() {
            *first = if kind == ETHERTYPE_IPV4 { 0x45 } else { 0x60 };
        }
        let mut repaired = frame_from_sandbox(gateway, kind, &versioned);
        repair(&mut repaired);
        survive(&[
            (raw, offload),
            (frame_from_sandbox(gateway, kind, &payload), offload),
            (frame_from_sandbox(MacAddr::BROADCAST, kind, &versioned), offload),
            (repaired, offload),
        ]);
    }

    #[test]
    fn changed_frames_never_panic(
        changes in prop::collection::vec(
            (any::<prop::sample::Index>(), prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
             any::<Option<prop::sample::Index>>(), any::<bool>(), offload()),
            1..24,
        ),
    ) {
        let right = right_frames();
        let frames: Vec<_> = changes
            .into_iter()
            .map(|(which, bytes, cut, mend, offload)| {
                let mut frame = which.get(&right).clone();
                for (at, value) in bytes {
                    // Headers are short: most changes hit them.
                    let at = at.index(frame.len().min(90));
                    frame[at] = value;
                }
                if let Some(cut) = cut {
                    frame.truncate(cut.index(frame.len()));
                }
                if mend {
                    repair(&mut frame);
                }
                (frame, offload)
            })
            .collect();
        survive(&frames);
    }

    #[test]
    fn single_handlers_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), checksum_valid: bool) {
        let mut segment = segment(1500);
        let mut link = Recorder::default();
        let _ = super::arp::handle(&mut segment, PEER, &bytes, &mut link);
        let offload = Offload { csum_valid: checksum_valid, ..Offload::default() };
        let message = |kind: u8| {
            let mut bytes = bytes.clone();
            if let Some(first) = bytes.first_mut() { *first = kind; }
            bytes
        };
        for kind in 133..=137 {
            let packet = ip_packet(SANDBOX_V6.into(), ALL_NODES.into(), 58, 255, &message(kind));
            if let Ok(super::packet::Parsed::Whole(packet)) = super::packet::parse_ipv6(PEER, offload, &packet) {
                let _ = ndp::handle(&mut segment, &packet, &mut link);
            }
        }
        let mut udp = vec![0, 68, 0, 67];
        udp.extend_from_slice(&(bytes.len() as u16 + 8).to_be_bytes());
        udp.extend_from_slice(&[0, 0]);
        udp.extend_from_slice(&bytes);
        if udp.len() > 250 {
            udp[8..11].copy_from_slice(&[1, 1, 6]);
            udp[32..36].fill(0);
            udp[244..248].copy_from_slice(&[99, 130, 83, 99]);
        }
        let packet = ip_packet(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into(), 17, 64, &udp);
        if let Ok(super::packet::Parsed::Whole(packet)) = super::packet::parse_ipv4(PEER, offload, &packet) {
            let _ = dhcp::handle(&mut segment, &packet, &mut link);
        }
        super::icmp::send_error(
            Instant::now(), &mut segment, PEER, None, super::icmp::IcmpError::PortUnreachable, &bytes, &mut link,
        );
        for (_, _, frame) in &link.frames {
            SlicedPacket::from_ethernet(frame).unwrap();
        }
    }
}
