//! A gateway that several sandboxes share: its one address for everything, addresses that were given, networks that
//! lead nowhere.
use std::net::{IpAddr, SocketAddr};

use etherparse::PacketBuilder;

use super::counters::DropReason;
use super::emit::testing::*;
use super::link::{Asker, Offload, Peer, PortId};
use super::tcp::HALF_OPEN_LIMIT;
use super::testing::{Test, echo_frame, udp_frame};
use crate::plan::{Access, Endpoint, HostView, MacAddr, Network, Sharing};

const B: &str = "10.0.2.101";

/// slirp's addresses, but names are answered at the gateway's.
fn network_with(sharing: Sharing) -> Network {
    let mut network = network(1500);
    network.name = "bridge".into();
    network.sharing = Some(sharing);
    if let Some(v4) = &mut network.v4 {
        (v4.dns, v4.sandbox) = (v4.gateway, std::net::Ipv4Addr::UNSPECIFIED);
        v4.dhcp_range = (v4.sandbox, v4.sandbox);
    }
    if let Some(v6) = &mut network.v6 {
        (v6.dns, v6.sandbox) = (v6.gateway, std::net::Ipv6Addr::UNSPECIFIED);
    }
    network
}

fn test(internal: bool) -> Test {
    let host = HostView { v4: "198.51.100.7".parse().ok(), v6: "2001:db8:7::7".parse().ok(), ..HostView::default() };
    Test::with(network_with(Sharing { internal, icc: true }), host)
}

fn second(test: &mut Test, access: Access) -> Peer {
    let v4 = B.parse().ok();
    let mac = MacAddr::from_ipv4(v4.unwrap());
    let endpoint = Endpoint { id: "abcdefabcdef".into(), mac, v4, v6: None, access, ..endpoint() };
    test.gateway.add_port(PortId(9), endpoint);
    Peer { port: PortId(9), mac }
}

#[test]
fn the_gateways_port_53_is_dns_and_its_other_ports_are_the_hosts() {
    for (own, gateway, host) in
        [("10.0.2.100:4000", "10.0.2.2", "198.51.100.7"), ("[fd00::100]:4000", "[fd00::2]", "[2001:db8:7::7]")]
    {
        let mut test = test(false);
        test.udp(own, &format!("{gateway}:53"), b"question");
        assert_eq!((test.host.queries.len(), test.host.udp.len()), (1, 0));
        test.udp(own, &format!("{gateway}:5353"), b"x");
        assert_eq!((test.host.queries.len(), test.host.udp[0].to), (1, format!("{host}:5353").parse().unwrap()));
        assert!(test.link.frames.is_empty());
        let ip = |address: &str| -> IpAddr { address.trim_matches(['[', ']']).parse().unwrap() };
        let from = own.parse::<SocketAddr>().unwrap().ip().to_string();
        let to = ip(gateway).to_string();
        test.frame(Offload::default(), &echo_frame(&from, &to, 1, 1, 1, b"ping"));
        assert_eq!((test.link.frames.len(), test.host.echo.len()), (1, 0), "answered on the spot");
    }
}

#[test]
fn without_dns_port_53_is_a_port_like_others() {
    let mut network = network_with(Sharing { internal: false, icc: true });
    network.dns_enabled = false;
    let host = HostView { v4: "198.51.100.7".parse().ok(), ..HostView::default() };
    let mut test = Test::with(network, host);
    test.udp("10.0.2.100:4000", "10.0.2.2:53", b"x");
    assert_eq!(test.host.udp[0].to, "198.51.100.7:53".parse().unwrap());
}

#[test]
fn a_sandbox_speaks_from_its_own_addresses_and_no_others_of_the_subnet() {
    let mut test = test(false);
    for (from, to) in [
        ("10.0.2.7:1", "192.0.2.1:7"),
        ("10.0.2.101:1", "192.0.2.1:7"),
        ("[fd00::7]:1", "[2001:db8::1]:7"),
        ("[fe80::7]:1", "[fe80::42:aff:fe00:202]:7"),
    ] {
        test.udp(from, to, b"x");
    }
    assert_eq!((test.dropped(DropReason::Spoofed), test.host.udp.len()), (4, 0));
    test.udp("10.0.2.100:1", "192.0.2.1:7", b"x");
    test.udp("[fd00::100]:1", "[2001:db8::1]:7", b"x");
    assert_eq!((test.dropped(DropReason::Spoofed), test.host.udp.len()), (4, 2));
}

#[test]
fn out_of_an_internal_network_nothing_leads_but_names_and_pings_of_the_gateway_are_answered() {
    let mut test = test(true);
    for to in ["192.0.2.1:7", "10.0.2.2:80", "198.51.100.7:80"] {
        test.udp("10.0.2.100:4000", to, b"x");
        let (_, kind, code, ..) = test.error();
        assert_eq!((kind, code), (3, 13), "{to}");
    }
    test.frame(Offload::default(), &echo_frame("fd00::100", "2001:db8::1", 8, 1, 1, b"x"));
    assert_eq!((test.error().2, test.dropped(DropReason::Refused)), (1, 4));
    let mut syn = Vec::new();
    PacketBuilder::ethernet2(SANDBOX_MAC.0, test.gateway.network().gateway_mac.0)
        .ipv4([10, 0, 2, 100], [192, 0, 2, 1], 64)
        .tcp(4444, 80, 1, 65535)
        .syn()
        .write(&mut syn, b"")
        .unwrap();
    test.frame(Offload::default(), &syn);
    assert_eq!((test.error().2, test.gateway.flows().0), (13, 0));
    assert!(test.host.udp.is_empty() && test.host.echo.is_empty());
    test.udp("10.0.2.100:4000", "10.0.2.2:53", b"question");
    assert_eq!(test.host.queries.len(), 1);
    test.frame(Offload::default(), &echo_frame("10.0.2.100", "10.0.2.2", 8, 1, 1, b"x"));
    assert_eq!(test.link.frames.len(), 1);
}

#[test]
fn what_one_sandbox_may_reach_the_others_may_not() {
    let mut test = test(false);
    let peer = second(&mut test, Access { host_loopback: true, metadata: true });
    test.udp("10.0.2.100:1", "10.0.2.2:80", b"x");
    test.udp("10.0.2.100:1", "169.254.169.254:80", b"x");
    for to in ["10.0.2.2:80", "169.254.169.254:80"] {
        let mut frame = udp_frame("10.0.2.101:1", to, 8, b"x");
        frame[6..12].copy_from_slice(&peer.mac.0);
        test.gateway.handle_frame(test.now, peer.port, Offload::default(), &frame, &mut test.host, &mut test.link);
    }
    let sent: Vec<String> = test.host.udp.iter().map(|sent| sent.to.to_string()).collect();
    assert_eq!(sent, ["198.51.100.7:80", "127.0.0.1:80", "169.254.169.254:80"]);
}

#[test]
fn one_sandbox_leaves_the_others_their_connects_and_their_errors() {
    let mut test = test(false);
    let peer = second(&mut test, Access::default());
    let mut send = |port: PortId, mac: MacAddr, from: [u8; 4], source: u16, to: [u8; 4]| {
        let mut syn = Vec::new();
        PacketBuilder::ethernet2(mac.0, network(1500).gateway_mac.0)
            .ipv4(from, to, 64)
            .tcp(source, 80, 1, 65535)
            .syn()
            .write(&mut syn, b"")
            .unwrap();
        test.gateway.handle_frame(test.now, port, Offload::default(), &syn, &mut test.host, &mut test.link);
        let sent = test.link.frames.len();
        test.link.frames.clear();
        (test.gateway.flows().0, test.gateway.counters().dropped(DropReason::HalfOpenLimit), sent)
    };
    let (own, outside, nobody) = ([10, 0, 2, 100], [192, 0, 2, 1], [169, 254, 169, 254]);
    for source in 1..=HALF_OPEN_LIMIT as u16 {
        send(PEER.port, PEER.mac, own, source, outside);
    }
    assert_eq!(send(PEER.port, PEER.mac, own, 5000, outside), (HALF_OPEN_LIMIT, 1, 0));
    assert_eq!(send(peer.port, peer.mac, [10, 0, 2, 101], 5000, outside), (HALF_OPEN_LIMIT + 1, 1, 0));
    let told: usize = (0..2000).map(|source| send(PEER.port, PEER.mac, own, 6000 + source, nobody).2).sum();
    assert_eq!(told, 1000);
    assert_eq!(send(peer.port, peer.mac, [10, 0, 2, 101], 6000, nobody).2, 1);
}

#[test]
fn on_an_internal_network_the_gateway_stands_for_the_clients_of_a_published_port() {
    for (internal, seen) in [(true, "10.0.2.2"), (false, "203.0.113.9")] {
        let mut test = test(internal);
        let client: SocketAddr = "203.0.113.9:5000".parse().unwrap();
        test.gateway.open_published(test.now, PEER.port, client, 80, &mut test.link).unwrap();
        let (_, _, syn) = test.link.frames.remove(0);
        assert_eq!(syn[26..30], seen.parse::<std::net::Ipv4Addr>().unwrap().octets());
        let path = super::link::ReplyPath { socket: 1, generation: 1, local: None };
        test.gateway.handle_published_datagram(test.now, PEER.port, client, 80, b"x", 0, 0, path, &mut test.link);
        let from = test.received().0;
        assert_eq!(from.ip().to_string(), seen);
        test.udp("10.0.2.100:80", &from.to_string(), b"answer");
        assert_eq!(test.host.published[0].1, client);
    }
}

#[test]
fn who_has_many_flows_makes_room_for_who_has_few() {
    let mut test = test(false);
    let peer = second(&mut test, Access::default());
    for source in 1..=5 {
        test.udp(&format!("10.0.2.100:{source}"), "192.0.2.1:7", b"x");
        test.frame(Offload::default(), &echo_frame("10.0.2.100", "192.0.2.1", 8, source, 1, b"x"));
    }
    test.host.fail = [super::link::HostError::Exhausted].into();
    let send = |test: &mut Test, mut frame: Vec<u8>| {
        frame[6..12].copy_from_slice(&peer.mac.0);
        test.gateway.handle_frame(test.now, peer.port, Offload::default(), &frame, &mut test.host, &mut test.link);
    };
    send(&mut test, udp_frame("10.0.2.101:1", "192.0.2.1:9", 8, b"x"));
    assert_eq!((test.host.udp_closed.len(), test.host.udp_closed[0]), (1, test.host.udp[0].flow));
    assert_eq!(test.host.udp.last().map(|sent| sent.to.port()), Some(9));
    test.host.fail = [super::link::HostError::Exhausted].into();
    send(&mut test, echo_frame("10.0.2.101", "192.0.2.2", 8, 1, 1, b"x"));
    assert_eq!((test.host.echo_closed.len(), test.host.echo_closed[0]), (1, test.host.echo[0].flow));
    assert_eq!(test.host.echo.last().map(|sent| sent.to), "192.0.2.2".parse().ok());
    assert_eq!(test.dropped(DropReason::FlowLimit), 0);
}

#[test]
fn one_sandbox_leaves_the_others_connections() {
    let mut test = test(false);
    let peer = second(&mut test, Access::default());
    test.gateway.tcp().limit(2);
    let mut send = |port: PortId, mac: MacAddr, from: [u8; 4], source: u16| {
        let mut syn = Vec::new();
        PacketBuilder::ethernet2(mac.0, network(1500).gateway_mac.0)
            .ipv4(from, [192, 0, 2, 1], 64)
            .tcp(source, 80, 1, 65535)
            .syn()
            .write(&mut syn, b"")
            .unwrap();
        test.gateway.handle_frame(test.now, port, Offload::default(), &syn, &mut test.host, &mut test.link);
        (test.gateway.flows().0, test.gateway.counters().dropped(DropReason::FlowLimit))
    };
    for source in 1..=3 {
        send(PEER.port, PEER.mac, [10, 0, 2, 100], source);
    }
    assert_eq!(send(peer.port, peer.mac, [10, 0, 2, 101], 1), (3, 1));
    test.gateway.remove_port(PEER.port, &mut test.host);
    test.gateway.add_port(PEER.port, endpoint());
    let client = "203.0.113.9:5".parse().unwrap();
    for _ in 0..2 {
        let _ = test.gateway.open_published(test.now, peer.port, client, 80, &mut test.link);
    }
    assert_eq!(test.gateway.flows().0, 2, "those from outside count too");
    let refused =
        test.gateway.open_published(test.now, peer.port, "203.0.113.9:6".parse().unwrap(), 80, &mut test.link);
    assert_eq!(refused.err(), Some(DropReason::FlowLimit));
}

#[test]
fn other_networks_are_refused_once_they_are_known() {
    let mut test = test(false);
    test.gateway.handle_foreign(vec!["10.176.16.0/20".parse().unwrap()]);
    test.udp("10.0.2.100:1", "10.176.16.2:80", b"x");
    let (_, kind, code, ..) = test.error();
    assert_eq!((kind, code, test.host.udp.len()), (3, 13, 0));
    test.gateway.handle_foreign(Vec::new());
    test.udp("10.0.2.100:1", "10.176.16.2:80", b"x");
    assert_eq!(test.host.udp.len(), 1);
}

#[test]
fn an_answer_whose_asker_has_gone_does_not_reach_the_next_on_its_port() {
    let mut test = test(false);
    let asker = |ip: &str| Asker { peer: PEER, from: format!("{ip}:4000").parse().unwrap(), to: GATEWAY_V4.into() };
    test.gateway.handle_dns_answer(asker("10.0.2.55"), b"answer", &mut test.link);
    assert!(test.link.frames.is_empty());
    test.gateway.handle_dns_answer(asker("10.0.2.100"), b"answer", &mut test.link);
    assert_eq!(test.link.frames.len(), 1);
}

#[test]
fn an_address_that_was_taken_over_stays_with_its_new_owner() {
    let mut test = test(false);
    let old = PEER.port;
    let heir = Endpoint { id: "abcdefabcdef".into(), v6: None, ..endpoint() };
    test.gateway.add_port(PortId(9), heir);
    test.gateway.remove_port(old, &mut test.host);
    let segment = &mut test.gateway.segment;
    assert_eq!((segment.has(SANDBOX_V4.into()), segment.has(SANDBOX_V6.into())), (Some(PortId(9)), None));
    test.gateway.remove_port(PortId(9), &mut test.host);
    assert!(test.gateway.segment.addresses.is_empty());
}
