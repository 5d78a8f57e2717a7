//! Frames of sandboxes A, B and C, and where they go.
use std::time::{Duration, Instant};

use etherparse::{NetSlice, SlicedPacket};
use proptest::prelude::*;

use super::*;
use crate::gateway::emit;
use crate::plan::{Expose, PortRange, Protocol, SandboxLink, Sharing};

mod isolated;

const A: PortId = PortId(0);
const B: PortId = PortId(1);
const C: PortId = PortId(2);
const NAMES: [&str; 3] = ["a", "b", "c"];

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

const GATEWAY: &str = "10.0.2.2";
const GATEWAY6: &str = "fd00::2";
const NOBODY: MacAddr = MacAddr([2, 0, 0, 0, 0, 99]);
const ALL_NODES_MAC: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 1]);
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

fn network(icc: bool) -> Network {
    let mut network = emit::testing::network(1500);
    network.sharing = Some(Sharing { internal: false, icc });
    network
}

fn gateway_mac() -> MacAddr {
    emit::testing::network(1500).gateway_mac
}

fn v4(port: PortId) -> IpAddr {
    IpAddr::from([10, 0, 2, 100 + port.0 as u8])
}

fn v6(port: PortId) -> IpAddr {
    IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 0x100 + port.0 as u16])
}

fn mac(port: PortId) -> MacAddr {
    MacAddr([2, 0x42, 10, 0, 2, 100 + port.0 as u8])
}

fn endpoint(port: PortId) -> Endpoint {
    Endpoint {
        id: format!("{:012x}", port.0),
        name: NAMES[port.0 as usize % 3].into(),
        mac: mac(port),
        v4: packet::v4(v4(port)),
        v6: packet::v6(v6(port)),
        ..Endpoint::default()
    }
}

struct Test {
    switch: Switch,
    now: Instant,
}

impl Test {
    fn with(icc: bool, endpoints: [Endpoint; 3]) -> Test {
        let now = Instant::now();
        let mut switch = Switch::new(&network(icc)).unwrap();
        for (port, endpoint) in [A, B, C].into_iter().zip(endpoints) {
            switch.add_port(now, port, endpoint);
        }
        Test { switch, now }
    }

    fn new() -> Test {
        Test::with(true, [A, B, C].map(endpoint))
    }

    fn judge(&mut self, port: PortId, frame: &[u8]) -> Way {
        self.switch.judge(self.now, port, &Offload::default(), frame)
    }

    #[track_caller]
    fn goes(&mut self, port: PortId, frame: &[u8], way: Way) {
        assert_eq!(self.judge(port, frame), way, "{:02x?}", &frame[..frame.len().min(80)]);
    }

    #[track_caller]
    fn dropped(&mut self, port: PortId, frame: &[u8], reason: DropReason) {
        self.goes(port, frame, Way::Nowhere(reason));
    }
}

fn ethernet(from: MacAddr, to: MacAddr, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to.0[..], &from.0, &ethertype.to_be_bytes(), payload].concat()
}

/// A frame from `port` to this Ethernet address with an IP packet.
fn ip_frame(port: PortId, to: MacAddr, src: IpAddr, dst: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let packet = emit::testing::ip_packet(src, dst, protocol, 255, payload);
    ethernet(mac(port), to, if src.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 }, &packet)
}

fn ports(source: u16, destination: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (source.to_be_bytes(), destination.to_be_bytes());
    [a, b, c, d]
}

fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    [&ports(source, destination)[..], &[0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 1, 0, 0, 0, 0, 0]].concat()
}

fn udp(source: u16, destination: u16) -> Vec<u8> {
    [&ports(source, destination)[..], &[0, 12, 0, 0], b"data"].concat()
}

/// Both families' addresses of the two.
fn pairs(from: PortId, to: PortId) -> [(IpAddr, IpAddr); 2] {
    [(v4(from), v4(to)), (v6(from), v6(to))]
}

fn arp(port: PortId, to: MacAddr, operation: u16, sender: (MacAddr, &str), target: &str) -> Vec<u8> {
    let address = |text: &str| text.parse::<Ipv4Addr>().unwrap().octets();
    let head = [0, 1, 8, 0, 6, 4];
    let packet = [&head[..], &operation.to_be_bytes(), &sender.0.0, &address(sender.1), &[0; 6], &address(target)];
    ethernet(mac(port), to, ETHERTYPE_ARP, &packet.concat())
}

/// A message of neighbor discovery: type, what follows the checksum's four bytes, options.
fn ndp(port: PortId, to: MacAddr, addresses: (&str, &str), kind: u8, target: Option<&str>, options: &[u8]) -> Vec<u8> {
    let target = target.map(|target| target.parse::<Ipv6Addr>().unwrap().octets());
    let message = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], target.as_ref().map_or(&[], |t| &t[..]), options].concat();
    ip_frame(port, to, addresses.0.parse().unwrap(), addresses.1.parse().unwrap(), ICMPV6, &message)
}

fn link_layer(kind: u8, mac: MacAddr) -> Vec<u8> {
    [&[kind, 1][..], &mac.0].concat()
}

/// IPv4 fragments of a payload, the first with `first` bytes.
fn fragments(port: PortId, to: PortId, protocol: u8, id: u16, payload: &[u8], first: usize) -> [Vec<u8>; 2] {
    [(0, &payload[..first], true), (first, &payload[first..], false)].map(|(offset, part, more)| {
        let mut packet = emit::testing::ip_packet(v4(port), v4(to), protocol, 64, part);
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        packet[6..8].copy_from_slice(&((offset / 8) as u16 | if more { 0x2000 } else { 0 }).to_be_bytes());
        mend(&mut packet);
        ethernet(mac(port), mac(to), ETHERTYPE_IPV4, &packet)
    })
}

fn mend(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let sum = !emit::fold(u64::from(emit::sum_of(&packet[..20])));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// IPv6 fragments likewise.
fn fragments6(port: PortId, to: PortId, protocol: u8, id: u32, payload: &[u8], first: usize) -> [Vec<u8>; 2] {
    [(0, &payload[..first], 1), (first, &payload[first..], 0)].map(|(offset, part, more)| {
        let field = (offset as u16 & !7 | more).to_be_bytes();
        let payload = [&[protocol, 0][..], &field, &id.to_be_bytes(), part].concat();
        ip_frame(port, mac(to), v6(port), v6(to), 44, &payload)
    })
}

#[test]
fn a_network_of_one_sandbox_has_no_switch() {
    assert!(Switch::new(&emit::testing::network(1500)).is_none());
}

#[test]
fn what_is_addressed_to_a_station_goes_there_and_nowhere_else() {
    let mut test = Test::new();
    for (src, dst) in pairs(A, B) {
        for (protocol, payload) in [(TCP, tcp(1, 2, SYN)), (UDP, udp(1, 2)), (132, vec![0; 12]), (59, vec![])] {
            test.goes(A, &ip_frame(A, mac(B), src, dst, protocol, &payload), Way::Port(B));
            test.goes(A, &ip_frame(A, gateway_mac(), src, dst, protocol, &payload), Way::Gateway);
            test.dropped(A, &ip_frame(A, NOBODY, src, dst, protocol, &payload), DropReason::UnknownStation);
            test.dropped(A, &ip_frame(A, mac(A), src, dst, protocol, &payload), DropReason::NotForUs);
        }
        let echo = if src.is_ipv4() { (ICMP, 8) } else { (ICMPV6, 128) };
        let ping = ip_frame(A, mac(B), src, dst, echo.0, &[echo.1, 0, 0, 0, 0, 1, 0, 1]);
        test.goes(A, &ping, Way::Port(B));
    }
    let (one, other) = (mac(A).link_local().into(), mac(C).link_local().into());
    test.goes(A, &ip_frame(A, mac(C), one, other, UDP, &udp(1, 2)), Way::Port(C));
    for frame in fragments(A, B, UDP, 7, &[0; 64], 16).iter().chain(&fragments6(A, B, UDP, 7, &[0; 64], 16)) {
        test.goes(A, frame, Way::Port(B));
    }
}

#[test]
fn nobody_speaks_for_somebody_else() {
    let mut test = Test::new();
    let foreign = |src: &str, dst| ip_frame(A, mac(B), src.parse().unwrap(), dst, UDP, &udp(1, 2));
    for src in ["10.0.2.101", "10.0.2.2", "10.0.2.50", "192.0.2.1", "0.0.0.0", "127.0.0.1", "255.255.255.255"] {
        test.dropped(A, &foreign(src, v4(B)), DropReason::Spoofed);
    }
    for src in ["fd00::101", "fd00::2", "2001:db8::1", "::", "::1", "fe80::7", "ff02::1", "::ffff:10.0.2.100"] {
        test.dropped(A, &foreign(src, v6(B)), DropReason::Spoofed);
    }
    // To the gateway and to groups as well, and in every fragment.
    for to in [gateway_mac(), MacAddr::BROADCAST] {
        test.dropped(A, &ip_frame(A, to, v4(B), v4(C), TCP, &tcp(1, 2, SYN)), DropReason::Spoofed);
    }
    for mut frame in fragments(B, C, UDP, 7, &[0; 64], 16).into_iter().chain(fragments6(B, C, UDP, 7, &[0; 64], 16)) {
        frame[6..12].copy_from_slice(&mac(A).0);
        test.dropped(A, &frame, DropReason::Spoofed);
    }
    for ethertype in [ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, 0x8100] {
        for from in [mac(B), gateway_mac(), MacAddr::BROADCAST, MacAddr::default()] {
            test.dropped(A, &ethernet(from, mac(C), ethertype, &[0; 60]), DropReason::SpoofedMac);
        }
    }
    test.dropped(PortId(7), &ethernet(mac(A), mac(B), ETHERTYPE_IPV4, &[0; 60]), DropReason::SpoofedMac);
}

#[test]
fn questions_for_an_address_go_to_whoever_has_it() {
    let mut test = Test::new();
    for to in [MacAddr::BROADCAST, mac(B)] {
        test.goes(A, &arp(A, to, 1, (mac(A), "10.0.2.100"), "10.0.2.101"), Way::Port(B));
        test.goes(A, &arp(A, to, 1, (mac(A), "0.0.0.0"), "10.0.2.101"), Way::Port(B));
    }
    for target in [GATEWAY, "10.0.2.50", "10.0.2.3", "192.0.2.1"] {
        test.goes(A, &arp(A, MacAddr::BROADCAST, 1, (mac(A), "10.0.2.100"), target), Way::Gateway);
    }
    test.dropped(A, &arp(A, mac(C), 1, (mac(A), "10.0.2.100"), "10.0.2.101"), DropReason::NotForUs);
    test.dropped(A, &arp(A, mac(C), 1, (mac(A), "10.0.2.100"), "10.0.2.50"), DropReason::NotForUs);

    let own = link_layer(1, mac(A));
    let group = MacAddr([0x33, 0x33, 0xff, 0, 1, 1]);
    let local_of_b = mac(B).link_local().to_string();
    for target in ["fd00::101", &local_of_b] {
        for to in [group, mac(B)] {
            test.goes(A, &ndp(A, to, ("fd00::100", "ff02::1:ff00:101"), 135, Some(target), &own), Way::Port(B));
        }
        let detection = ndp(A, group, ("::", "ff02::1:ff00:101"), 135, Some(target), &[]);
        test.goes(A, &detection, Way::Port(B));
        let elsewhere = ndp(A, mac(C), ("fd00::100", "fd00::102"), 135, Some(target), &own);
        test.dropped(A, &elsewhere, DropReason::NotForUs);
    }
    for target in [GATEWAY6, "fd00::50", "fe80::1", "fd00::100"] {
        let question = ndp(A, group, ("fd00::100", "ff02::1:ff00:2"), 135, Some(target), &own);
        test.goes(A, &question, Way::Gateway);
    }
}

#[test]
fn who_answers_speaks_for_its_own_addresses() {
    let mut test = Test::new();
    test.goes(A, &arp(A, mac(B), 2, (mac(A), "10.0.2.100"), "10.0.2.101"), Way::Port(B));
    test.goes(A, &arp(A, gateway_mac(), 2, (mac(A), "10.0.2.100"), GATEWAY), Way::Gateway);
    let announced = arp(A, MacAddr::BROADCAST, 1, (mac(A), "10.0.2.100"), "10.0.2.100");
    test.goes(A, &announced, Way::Flood { gateway: false });
    for (operation, sender) in [
        (1, (mac(B), "10.0.2.100")),
        (1, (mac(A), "10.0.2.101")),
        (1, (mac(A), GATEWAY)),
        (2, (mac(A), "10.0.2.101")),
        (2, (mac(A), GATEWAY)),
        (2, (mac(A), "0.0.0.0")),
        (2, (gateway_mac(), GATEWAY)),
    ] {
        for to in [MacAddr::BROADCAST, mac(B), gateway_mac()] {
            test.dropped(A, &arp(A, to, operation, sender, "10.0.2.101"), DropReason::SpoofedNeighbor);
        }
    }
    test.dropped(A, &arp(A, mac(B), 3, (mac(A), "10.0.2.100"), "10.0.2.101"), DropReason::Malformed);
    let right = arp(A, mac(B), 1, (mac(A), "10.0.2.100"), "10.0.2.101");
    for len in 14..right.len() {
        test.dropped(A, &right[..len], DropReason::Malformed);
    }

    let local = mac(A).link_local().to_string();
    for target in ["fd00::100", &local] {
        let answer = |to, options: &[u8]| ndp(A, to, (target, "fd00::101"), 136, Some(target), options);
        test.goes(A, &answer(mac(B), &link_layer(2, mac(A))), Way::Port(B));
        test.goes(A, &answer(mac(B), &[]), Way::Port(B));
        test.goes(A, &answer(ALL_NODES_MAC, &link_layer(2, mac(A))), Way::Flood { gateway: false });
        test.dropped(A, &answer(mac(B), &link_layer(2, mac(C))), DropReason::SpoofedNeighbor);
        test.dropped(A, &answer(mac(B), &link_layer(1, mac(C))), DropReason::SpoofedNeighbor);
        let hidden = [&link_layer(2, mac(A))[..], &link_layer(2, gateway_mac())].concat();
        test.dropped(A, &answer(mac(B), &hidden), DropReason::SpoofedNeighbor);
        test.dropped(A, &answer(mac(B), &[2, 0, 0, 0, 0, 0, 0, 0]), DropReason::Malformed);
        test.dropped(A, &answer(mac(B), &[2, 2, 0, 0, 0, 0, 0, 0]), DropReason::Malformed);
    }
    for target in ["fd00::101", GATEWAY6, "fe80::1", "fd00::50"] {
        for to in [mac(B), ALL_NODES_MAC] {
            let lie = ndp(A, to, ("fd00::100", "ff02::1"), 136, Some(target), &link_layer(2, mac(A)));
            test.dropped(A, &lie, DropReason::SpoofedNeighbor);
        }
    }
    let question = ndp(A, mac(B), ("fd00::100", "fd00::101"), 135, Some("fd00::101"), &link_layer(1, mac(C)));
    test.dropped(A, &question, DropReason::SpoofedNeighbor);
    let nameless = ndp(A, mac(B), ("::", "ff02::1"), 136, Some("fd00::100"), &[]);
    test.dropped(A, &nameless, DropReason::SpoofedNeighbor);
}

#[test]
fn sandboxes_are_no_routers_and_no_dhcp_servers() {
    let mut test = Test::new();
    for to in [mac(B), ALL_NODES_MAC, gateway_mac()] {
        for kind in [134, 137] {
            let message = ndp(A, to, ("fd00::100", "ff02::1"), kind, None, &[0; 32]);
            test.dropped(A, &message, DropReason::RogueServer);
            // Behind other headers: eight bytes of destination options, of hop-by-hop options and these.
            for chain in [&[60u8][..], &[0, 60]] {
                let mut payload = Vec::new();
                for (i, _) in chain.iter().enumerate() {
                    let next = chain.get(i + 1).copied().unwrap_or(ICMPV6);
                    payload.extend_from_slice(&[next, 0, 1, 4, 0, 0, 0, 0]);
                }
                payload.extend_from_slice(&[kind, 0, 0, 0, 0, 0, 0, 0]);
                let message = ip_frame(A, to, v6(A), "ff02::1".parse().unwrap(), chain[0], &payload);
                test.dropped(A, &message, DropReason::RogueServer);
            }
        }
    }
    for kind in [5, 9] {
        let message = ip_frame(A, mac(B), v4(A), v4(B), ICMP, &[kind, 0, 0, 0, 10, 0, 2, 100]);
        test.dropped(A, &message, DropReason::RogueServer);
    }
    // In fragments: the first shows what it is, or goes no further.
    let advertisement = [&[134u8, 0, 0, 0][..], &[0; 60]].concat();
    let [first, _] = fragments6(A, B, ICMPV6, 1, &advertisement, 16);
    test.dropped(A, &first, DropReason::RogueServer);
    let [first, _] = fragments6(A, B, ICMPV6, 1, &[&[136u8, 0, 0, 0][..], &[0; 60]].concat(), 16);
    test.dropped(A, &first, DropReason::Malformed);
    let behind_options = [&[ICMPV6, 0, 1, 4, 0, 0, 0, 0][..], &advertisement].concat();
    let [first, _] = fragments6(A, B, 60, 1, &behind_options, 8);
    test.dropped(A, &first, DropReason::Malformed);
    for frames in [fragments(A, B, UDP, 1, &udp(67, 68), 0), fragments6(A, B, ICMPV6, 1, &advertisement, 0)] {
        test.dropped(A, &frames[0], DropReason::Malformed);
    }

    for to in [mac(B), MacAddr::BROADCAST] {
        for (source, destination) in [(67, 68), (67, 9), (9, 68)] {
            let answer = ip_frame(A, to, v4(A), v4(B), UDP, &udp(source, destination));
            test.dropped(A, &answer, DropReason::RogueServer);
        }
        for (source, destination) in [(547, 546), (547, 9), (9, 546)] {
            let answer = ip_frame(A, to, v6(A), v6(B), UDP, &udp(source, destination));
            test.dropped(A, &answer, DropReason::RogueServer);
        }
    }
    let [first, _] = fragments(A, B, UDP, 1, &[&udp(67, 68)[..], &[0; 40]].concat(), 16);
    test.dropped(A, &first, DropReason::RogueServer);
}

#[test]
fn dhcp_and_router_solicitations_reach_the_gateway_alone() {
    let mut test = Test::new();
    let any = "0.0.0.0".parse().unwrap();
    for (src, dst) in [(any, "255.255.255.255"), (v4(A), "255.255.255.255"), (v4(A), "10.0.2.255")] {
        let discover = ip_frame(A, MacAddr::BROADCAST, src, dst.parse().unwrap(), UDP, &udp(68, 67));
        test.goes(A, &discover, Way::Gateway);
    }
    test.goes(A, &ip_frame(A, gateway_mac(), v4(A), GATEWAY.parse().unwrap(), UDP, &udp(68, 67)), Way::Gateway);
    test.dropped(A, &ip_frame(A, mac(B), any, v4(B), UDP, &udp(68, 67)), DropReason::Spoofed);
    let other = ip_frame(A, MacAddr::BROADCAST, any, "255.255.255.255".parse().unwrap(), UDP, &udp(68, 9));
    test.dropped(A, &other, DropReason::Spoofed);

    let routers = MacAddr([0x33, 0x33, 0, 0, 0, 2]);
    for (src, options) in [("::", vec![]), ("fd00::100", link_layer(1, mac(A)))] {
        test.goes(A, &ndp(A, routers, (src, "ff02::2"), 133, None, &options), Way::Gateway);
    }
    let lie = ndp(A, routers, ("fd00::100", "ff02::2"), 133, None, &link_layer(1, mac(B)));
    test.dropped(A, &lie, DropReason::SpoofedNeighbor);
    test.dropped(A, &ndp(A, mac(B), ("fd00::100", "ff02::2"), 133, None, &[]), DropReason::NotForUs);
    let solicit =
        ip_frame(A, MacAddr([0x33, 0x33, 0, 1, 0, 2]), v6(A), "ff02::1:2".parse().unwrap(), UDP, &udp(546, 547));
    test.dropped(A, &solicit, DropReason::Multicast);
}

#[test]
fn broadcast_and_multicast_reach_all_others_and_what_only_switches_read_reaches_nobody() {
    let mut test = Test::new();
    let flood = Way::Flood { gateway: false };
    for dst in ["255.255.255.255", "10.0.2.255", "224.0.0.251"] {
        let frame = ip_frame(A, MacAddr::BROADCAST, v4(A), dst.parse().unwrap(), UDP, &udp(5353, 5353));
        test.goes(A, &frame, flood);
    }
    let dns =
        ip_frame(A, MacAddr([0x33, 0x33, 0, 0, 0, 0xfb]), v6(A), "ff02::fb".parse().unwrap(), UDP, &udp(5353, 5353));
    test.goes(A, &dns, flood);
    assert_eq!(test.switch.others(A).collect::<Vec<_>>(), [B, C]);
    let ping = |dst: &str| ip_frame(A, ALL_NODES_MAC, v6(A), dst.parse().unwrap(), ICMPV6, &[128, 0, 0, 0, 0, 1, 0, 1]);
    test.goes(A, &ping("ff02::1"), Way::Flood { gateway: true });
    test.goes(A, &ping("ff02::2"), Way::Flood { gateway: true });
    test.goes(A, &ping("ff02::fb"), flood);
    for kind in MLD {
        for src in ["fd00::100", "::"] {
            let report = ndp(A, MacAddr([0x33, 0x33, 0, 0, 0, 0x16]), (src, "ff02::16"), kind, None, &[0; 16]);
            test.dropped(A, &report, DropReason::Multicast);
        }
    }
    let igmp = ip_frame(A, MacAddr([1, 0, 0x5e, 0, 0, 0x16]), v4(A), "224.0.0.22".parse().unwrap(), 2, &[0x22; 16]);
    test.dropped(A, &igmp, DropReason::Multicast);
    // One sandbox's address behind everybody's Ethernet address (RFC 1122, 3.3.6).
    test.dropped(A, &ip_frame(A, MacAddr::BROADCAST, v4(A), v4(B), UDP, &udp(1, 2)), DropReason::Multicast);
}

#[test]
fn a_storm_is_cut_off_and_nobody_else_is() {
    let mut test = Test::new();
    let frame = |port| ip_frame(port, MacAddr::BROADCAST, v4(port), Ipv4Addr::BROADCAST.into(), UDP, &udp(1, 2));
    let question = arp(A, MacAddr::BROADCAST, 1, (mac(A), "10.0.2.100"), "10.0.2.101");
    for turn in 0..STORM_BURST {
        let storm = if turn % 2 == 0 { frame(A) } else { question.clone() };
        assert_ne!(test.judge(A, &storm), Way::Nowhere(DropReason::Storm));
    }
    test.dropped(A, &frame(A), DropReason::Storm);
    test.dropped(A, &question, DropReason::Storm);
    test.goes(B, &frame(B), Way::Flood { gateway: false });
    test.goes(A, &ip_frame(A, mac(B), v4(A), v4(B), TCP, &tcp(1, 2, ACK)), Way::Port(B));
    let count =
        |test: &mut Test| (0..5000).filter(|_| test.judge(A, &frame(A)) != Way::Nowhere(DropReason::Storm)).count();
    test.now += Duration::from_millis(100);
    assert_eq!(count(&mut test), 100);
    // However finely time passes.
    let mut passed = 0;
    for _ in 0..1000 {
        test.now += Duration::from_micros(1500);
        passed += u32::from(test.judge(A, &frame(A)) != Way::Nowhere(DropReason::Storm));
        passed += u32::from(test.judge(A, &frame(A)) != Way::Nowhere(DropReason::Storm));
    }
    assert_eq!(passed, 1500);
    test.now += Duration::from_secs(3600);
    assert_eq!(count(&mut test), STORM_BURST as usize);
}

#[test]
fn offloads_that_contradict_the_packet_are_malformed() {
    let mut test = Test::new();
    let frames = [
        ip_frame(A, mac(B), v4(A), v4(B), TCP, &tcp(1, 2, ACK)),
        ip_frame(A, mac(B), v6(A), v6(B), TCP, &tcp(1, 2, ACK)),
        ip_frame(A, mac(B), v4(A), v4(B), UDP, &udp(1, 2)),
        ip_frame(A, mac(B), v6(A), v6(B), UDP, &udp(1, 2)),
    ];
    for (which, frame) in frames.iter().enumerate() {
        let v4 = which % 2 == 0;
        for (gso, fits) in
            [(Gso::None, true), (Gso::TcpV4, which == 0), (Gso::TcpV6, which == 1), (Gso::UdpL4, which >= 2)]
        {
            let upper = if v4 { 34 } else { 54 };
            for (needs_csum, csum_start, right) in [
                (true, upper, true),
                (true, upper + 4, true),
                (true, upper - 2, false),
                (true, 0, false),
                (false, 0, true),
            ] {
                let offload =
                    Offload { needs_csum, csum_start, csum_offset: 2, gso, gso_size: 4, ..Offload::default() };
                let expected = if fits && right { Way::Port(B) } else { Way::Nowhere(DropReason::Malformed) };
                assert_eq!(test.switch.judge(test.now, A, &offload, frame), expected, "{which} {offload:?}");
            }
        }
    }
    for frame in fragments(A, B, UDP, 1, &[0; 64], 16).iter().chain(&fragments6(A, B, UDP, 1, &[0; 64], 16)) {
        for offload in [
            Offload { needs_csum: true, csum_start: 62, csum_offset: 6, ..Offload::default() },
            Offload { gso: Gso::UdpL4, gso_size: 8, ..Offload::default() },
        ] {
            assert_eq!(test.switch.judge(test.now, A, &offload, frame), Way::Nowhere(DropReason::Malformed));
        }
    }
}

#[test]
fn families_that_a_network_has_not_and_other_protocols_are_not_carried() {
    let mut network = network(true);
    network.v6 = None;
    let mut test = Test::new();
    test.switch = Switch::new(&network).unwrap();
    test.switch.add_port(test.now, A, endpoint(A));
    test.dropped(A, &ip_frame(A, ALL_NODES_MAC, v6(A), v6(B), TCP, &tcp(1, 2, SYN)), DropReason::Family);
    network.v6 = emit::testing::network(1500).v6;
    network.v4 = None;
    test.switch = Switch::new(&network).unwrap();
    test.switch.add_port(test.now, A, endpoint(A));
    test.dropped(A, &arp(A, MacAddr::BROADCAST, 1, (mac(A), "10.0.2.100"), GATEWAY), DropReason::Family);
    for ethertype in [0x8100, 0x88a8, 0x8863, 0x002e] {
        test.dropped(A, &ethernet(mac(A), MacAddr::BROADCAST, ethertype, &[0; 60]), DropReason::EtherType);
    }
}

#[test]
fn whoever_leaves_is_not_found_and_an_heir_of_its_addresses_is() {
    let mut test = Test::new();
    let to_b = ip_frame(A, mac(B), v4(A), v4(B), UDP, &udp(1, 2));
    let question = arp(A, MacAddr::BROADCAST, 1, (mac(A), "10.0.2.100"), "10.0.2.101");
    test.switch.leave(B);
    test.dropped(A, &to_b, DropReason::UnknownStation);
    test.goes(A, &question, Way::Gateway);
    assert_eq!(test.switch.others(A).collect::<Vec<_>>(), [C]);
    // What it had sent is still delivered.
    test.goes(B, &ip_frame(B, mac(A), v4(B), v4(A), TCP, &tcp(1, 2, FIN | ACK)), Way::Port(A));
    let heir = PortId(5);
    test.switch.add_port(test.now, heir, endpoint(B));
    test.switch.remove_port(B);
    test.goes(A, &to_b, Way::Port(heir));
    test.goes(A, &question, Way::Port(heir));
    test.dropped(B, &ip_frame(B, mac(A), v4(B), v4(A), UDP, &udp(1, 2)), DropReason::SpoofedMac);
    test.switch.remove_port(heir);
    assert_eq!((test.switch.by_mac.len(), test.switch.ports.len()), (2, 2));
    assert_eq!(test.switch.by_address.len(), 6);
}

/// What another sandbox may get from A, whatever A sends.
fn is_innocent(frame: &[u8]) -> bool {
    if frame[6..12] != mac(A).0 {
        return false;
    }
    let own = |address: IpAddr| [v4(A), v6(A), mac(A).link_local().into()].contains(&address);
    match SlicedPacket::from_ethernet(frame).map(|packet| packet.net) {
        Ok(Some(NetSlice::Ipv4(ip))) => own(ip.header().source_addr().into()),
        Ok(Some(NetSlice::Ipv6(ip))) => {
            let source = IpAddr::from(ip.header().source_addr());
            let payload = ip.payload();
            let kind = payload.payload.first().copied();
            let routes =
                payload.ip_number.0 == ICMPV6 && !ip.is_payload_fragmented() && matches!(kind, Some(134 | 137));
            (own(source) || source.is_unspecified()) && !routes
        }
        Ok(Some(NetSlice::Arp(arp))) => arp.sender_hw_addr() == mac(A).0,
        // The second parser is stricter with what follows the headers.
        _ => true,
    }
}

proptest! {
    #[test]
    fn nothing_forged_passes_whatever_is_sent(
        to in 0u8..6, kind in 0u8..3, src in 0u8..5, protocol in prop::sample::select(vec![0u8, 1, 6, 17, 43, 44, 58, 60]),
        payload in prop::collection::vec(any::<u8>(), 0..120), raw in any::<bool>(), icc in any::<bool>(), flip in any::<(u8, u8)>(),
    ) {
        let mut test = Test::with(icc, isolated::linked());
        let to = [mac(B), mac(C), gateway_mac(), MacAddr::BROADCAST, ALL_NODES_MAC, NOBODY][usize::from(to)];
        let pick = |all: [&str; 5]| all[usize::from(src)].parse::<IpAddr>().unwrap();
        let mut frame = match kind {
            _ if raw => ethernet(mac(A), to, [ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6][usize::from(kind)], &payload),
            0 => ip_frame(A, to, pick(["10.0.2.100", "10.0.2.101", "0.0.0.0", GATEWAY, "192.0.2.1"]), v4(B), protocol, &payload),
            1 => ip_frame(A, to, pick(["fd00::100", "fd00::101", "::", "fe80::42:aff:fe00:264", GATEWAY6]), v6(B), protocol, &payload),
            _ => arp(A, to, u16::from(protocol & 3), (mac(A), ["10.0.2.100", "10.0.2.101", "0.0.0.0", GATEWAY, "10.0.2.9"][usize::from(src)]), "10.0.2.101"),
        };
        let at = usize::from(flip.0) % frame.len();
        frame[at] ^= flip.1;
        let way = test.judge(A, &frame);
        if matches!(way, Way::Port(_) | Way::Flood { .. }) {
            prop_assert!(is_innocent(&frame), "{way:?} {frame:02x?}");
        }
        if !icc {
            prop_assert!(!matches!(way, Way::Flood { .. } | Way::Port(C)), "{way:?} {frame:02x?}");
        }
    }
}

#[test]
fn an_icmp_error_is_about_a_packet_of_its_receiver_to_its_sender() {
    let mut test = Test::new();
    let outside = |ip: IpAddr| -> IpAddr { if ip.is_ipv4() { GATEWAY } else { GATEWAY6 }.parse().unwrap() };
    for (address, protocol, kinds) in [(v4 as fn(PortId) -> IpAddr, ICMP, [3, 4, 11, 12]), (v6, ICMPV6, [1, 2, 3, 4])] {
        for kind in kinds {
            let error = |quoted: &[u8]| [&[kind, 0, 0, 0, 0, 0, 0, 0], quoted].concat();
            let about = |from: IpAddr, to: IpAddr| {
                error(&emit::testing::ip_packet(from, to, UDP, 64, &[&ports(4000, 53)[..], &[0, 8, 0, 0]].concat()))
            };
            let (a, b, c) = (address(A), address(B), address(C));
            let send = |payload: &[u8]| ip_frame(A, mac(B), a, b, protocol, payload);
            test.goes(A, &send(&about(b, a)), Way::Port(B));
            for (from, to) in [(b, outside(b)), (b, c), (c, a), (a, b)] {
                test.dropped(A, &send(&about(from, to)), DropReason::Spoofed);
            }
            test.dropped(A, &send(&about(b, a)[..20]), DropReason::Spoofed);
            test.dropped(A, &send(&error(&[])), DropReason::Spoofed);
            let to_gateway = ip_frame(A, gateway_mac(), a, outside(a), protocol, &about(outside(a), a));
            test.goes(A, &to_gateway, Way::Gateway);
            let (mac, all): (MacAddr, IpAddr) = match a {
                IpAddr::V4(_) => (MacAddr::BROADCAST, "255.255.255.255".parse().unwrap()),
                IpAddr::V6(_) => (ALL_NODES_MAC, "ff02::1".parse().unwrap()),
            };
            test.dropped(A, &ip_frame(A, mac, a, all, protocol, &about(b, a)), DropReason::Spoofed);
        }
    }
}
