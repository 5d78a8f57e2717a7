//! Networks that behave otherwise than tapline's own: the sandbox has the host's addresses, the host is denied,
//! services are off.
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use etherparse::{ArpEthIpv4Packet, ArpOperation, PacketBuilder};

use super::counters::DropReason;
use super::emit::testing::{PEER, SANDBOX_MAC, frame_from_sandbox, network};
use super::icmp::IcmpError;
use super::link::{EchoId, HostError, Offload, ReplyPath, Service, UdpId};
use super::packet::ETHERTYPE_ARP;
use super::testing::{Test, echo_frame, syn_frame, udp_frame};
use crate::plan::{Behaviour, HostView, LocalClients, Mapping, Network, Services};

const OWN: &str = "10.0.2.100:4000";
const OWN6: &str = "[fd00::100]:4000";
const PATH: ReplyPath = ReplyPath { socket: 1, generation: 1, local: None };

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// The host's loopback and its copy of the sandbox's address have names; those of names are elsewhere.
fn mapping() -> Mapping {
    Mapping {
        host_loopback_v4: "10.0.2.2".parse().ok(),
        host_loopback_v6: "fd00::2".parse().ok(),
        guest_v4: "10.0.2.9".parse().ok(),
        guest_v6: "fd00::9".parse().ok(),
        dns_over_tls: "192.0.2.53:853".parse().ok(),
        further: vec![ip("10.0.2.101"), ip("fd00::101")],
        interface: Some(2),
    }
}

fn mapped(mapping: Mapping) -> Network {
    let behaviour = Behaviour { mapping: Some(mapping), ..Behaviour::default() };
    Network { behaviour, metadata_allowed: true, ..network(1500) }
}

fn with(network: Network) -> Test {
    let host = HostView { v4: "10.0.2.100".parse().ok(), v6: "fd00::100".parse().ok(), ..HostView::default() };
    let mut test = Test::with(network, host);
    // The first router advertisement.
    test.pass(Duration::ZERO);
    test.link.frames.clear();
    test
}

/// With all that is mapped, and with the gateway's address a machine like others.
fn both() -> [Test; 2] {
    let bare = Mapping { interface: Some(2), ..Mapping::default() };
    [with(mapped(mapping())), with(mapped(bare))]
}

fn arp(test: &mut Test, sender: &str, target: &str) -> bool {
    let v4 = |text: &str| -> [u8; 4] { text.parse::<std::net::Ipv4Addr>().unwrap().octets() };
    let packet = ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: SANDBOX_MAC.0,
        sender_ipv4: v4(sender),
        target_mac: [0; 6],
        target_ipv4: v4(target),
    };
    let frame = frame_from_sandbox(
        crate::plan::MacAddr::BROADCAST,
        ETHERTYPE_ARP,
        &etherparse::ArpPacket::from(packet).to_bytes(),
    );
    test.frame(Offload::default(), &frame);
    !std::mem::take(&mut test.link.frames).is_empty()
}

/// What a neighbor solicitation is answered with: the flags, or nothing.
fn solicit(test: &mut Test, source: &str, target: &str) -> Option<u8> {
    let (source, target): (std::net::Ipv6Addr, std::net::Ipv6Addr) = (source.parse().unwrap(), target.parse().unwrap());
    let [.., a, b, c] = target.octets();
    let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c];
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(SANDBOX_MAC.0, [0x33, 0x33, 0xff, a, b, c])
        .ipv6(source.octets(), group, 255)
        .icmpv6(etherparse::Icmpv6Type::Unknown { type_u8: 135, code_u8: 0, bytes5to8: [0; 4] })
        .write(&mut frame, &target.octets())
        .unwrap();
    test.frame(Offload::default(), &frame);
    let frames = std::mem::take(&mut test.link.frames);
    frames.first().map(|(_, _, frame)| {
        assert_eq!((frame[54], &frame[62..78]), (136, &target.octets()[..]));
        frame[58]
    })
}

#[test]
fn the_gateway_is_found_at_every_address_but_the_sandboxs() {
    for mut test in both() {
        for target in ["10.0.2.1", "10.0.2.2", "10.0.2.3", "10.0.2.9", "10.0.2.254", "192.0.2.1"] {
            assert!(arp(&mut test, "10.0.2.100", target), "{target}");
            assert!(!arp(&mut test, "0.0.0.0", target), "a probe for {target}");
        }
        // Also from an address that the sandbox took by itself.
        assert!(arp(&mut test, "172.16.0.1", "172.16.0.2"));
        for target in ["10.0.2.100", "10.0.2.255", "10.0.2.0", "127.0.0.1", "224.0.0.1", "0.0.0.0"] {
            assert!(!arp(&mut test, "10.0.2.7", target), "{target}");
        }
        for target in ["fd00::1", "fd00::9", "fe80::1234", "2001:db8::1"] {
            assert_eq!(solicit(&mut test, "fd00::100", target), Some(0x60), "{target}");
            assert_eq!(solicit(&mut test, "::", target), None, "a probe for {target}");
        }
        assert_eq!(solicit(&mut test, "fe80::42:aff:fe00:264", "fd00::2"), Some(0xe0), "the router");
        for target in ["fd00::100", "fe80::42:aff:fe00:264", "::1"] {
            assert_eq!(solicit(&mut test, "fd00::7", target), None, "{target}");
        }
    }
    let mut test = with(mapped(mapping()));
    assert!(!arp(&mut test, "10.0.2.100", "10.0.2.101"), "the sandbox's other address");
    assert_eq!(solicit(&mut test, "fd00::100", "fd00::101"), None);
}

#[test]
fn connections_lead_where_the_address_leads_on_the_host() {
    let [mut test, mut bare] = both();
    for (to, leads_to) in [
        ("10.0.2.2:80", "127.0.0.1:80"),
        ("10.0.2.9:80", "10.0.2.100:80"),
        ("10.0.2.1:80", "10.0.2.1:80"),
        ("10.0.3.1:80", "10.0.3.1:80"),
        ("10.0.2.3:80", "10.0.2.3:80"),
        ("10.0.2.3:853", "192.0.2.53:853"),
        ("169.254.169.254:80", "169.254.169.254:80"),
    ] {
        test.syn(OWN, to);
        assert_eq!(test.host.tcp.last().unwrap().1, at(leads_to), "{to}");
        bare.syn(OWN, to);
        assert_eq!(bare.host.tcp.last().unwrap().1, at(to));
    }
    for (to, leads_to) in [
        ("[fd00::2]:80", "[::1]:80"),
        ("[fd00::9]:80", "[fd00::100]:80"),
        ("[fd00::1]:80", "[fd00::1]:80"),
        ("[fe80::1]:80", "[fe80::1]:80"),
        ("[fd00::3]:853", "192.0.2.53:853"),
    ] {
        test.syn(OWN6, to);
        assert_eq!(test.host.tcp.last().unwrap().1, at(leads_to), "{to}");
        bare.syn(OWN6, to);
        assert_eq!(bare.host.tcp.last().unwrap().1, at(to));
    }
    test.syn(OWN, "10.0.2.3:53");
    test.syn(OWN6, "[fd00::3]:53");
    assert_eq!(test.host.tcp_dns.len(), 2);
    assert!(test.link.frames.is_empty() && bare.link.frames.is_empty());
}

#[test]
fn nobodys_business_stays_refused_with_the_hosts_own_addresses() {
    let mut test = with(mapped(Mapping { interface: None, ..mapping() }));
    for to in ["127.0.0.1:80", "0.1.2.3:80"] {
        test.syn(OWN, to);
        let (_, kind, code, ..) = test.error();
        assert_eq!((kind, code), (3, 13), "{to}");
    }
    for (to, code) in [
        ("[::ffff:127.0.0.1]:80", 1),
        // Without an interface no link-local address is found; the gateway's own is nobody's service.
        ("[fe80::1]:80", 3),
        ("[fe80::42:aff:fe00:202]:80", 3),
    ] {
        test.syn(OWN6, to);
        assert_eq!(test.error().2, code, "{to}");
    }
    for to in ["224.0.0.251:5353", "255.255.255.255:9", "10.0.2.255:9"] {
        test.udp(OWN, to, b"x");
    }
    assert_eq!((test.dropped(DropReason::Multicast), test.host.tcp.len(), test.host.udp.len()), (3, 0, 0));
}

#[test]
fn answers_come_from_the_address_that_was_asked() {
    let mut test = with(mapped(mapping()));
    for (from, to, leads_to) in [
        (OWN, "10.0.2.2:7", "127.0.0.1:7"),
        (OWN, "10.0.2.9:7", "10.0.2.100:7"),
        (OWN, "10.0.2.1:7", "10.0.2.1:7"),
        (OWN, "10.0.2.3:853", "192.0.2.53:853"),
        (OWN, "10.0.2.3:7", "10.0.2.3:7"),
        (OWN6, "[fd00::2]:7", "[::1]:7"),
        (OWN6, "[fd00::9]:7", "[fd00::100]:7"),
        (OWN6, "[fe80::1]:7", "[fe80::1]:7"),
    ] {
        test.udp(from, to, b"x");
        let sent = test.host.udp.last().unwrap().clone();
        // Where the host is, there the sandbox is: no hop is counted.
        assert_eq!((sent.to, sent.hop_limit), (at(leads_to), 8), "{to}");
        test.gateway.handle_udp(test.now, sent.flow, at(leads_to), b"y", 0, 0, &mut test.link);
        assert_eq!(test.received(), (at(to), at(from), b"y".to_vec()));
    }
    test.udp(OWN, "10.0.2.3:53", b"question");
    assert_eq!(test.host.queries.len(), 1);
    // What the sandbox sends from another address finds back too.
    test.udp("172.16.0.1:9", "192.0.2.1:7", b"x");
    let flow = test.host.udp.last().unwrap().flow;
    test.gateway.handle_udp(test.now, flow, at("192.0.2.1:7"), b"y", 0, 0, &mut test.link);
    assert_eq!(test.received().1, at("172.16.0.1:9"));
}

#[test]
fn without_a_resolver_for_names_the_dns_address_is_one_like_others() {
    let mut test = with(Network { dns_enabled: false, ..mapped(Mapping::default()) });
    test.udp(OWN, "10.0.2.3:53", b"x");
    test.syn(OWN, "10.0.2.3:53");
    assert_eq!((test.host.udp[0].to, test.host.tcp[0].1), (at("10.0.2.3:53"), at("10.0.2.3:53")));
    assert!(test.host.queries.is_empty() && test.host.tcp_dns.is_empty());
}

#[test]
fn a_packet_with_its_last_hop_is_carried_on() {
    let mut test = with(mapped(mapping()));
    test.frame(Offload::default(), &syn_frame(OWN, "10.0.2.1:80", 1));
    test.frame(Offload::default(), &syn_frame(OWN, "10.0.2.1:81", 64));
    test.frame(Offload::default(), &udp_frame(OWN, "10.0.2.1:7", 1, b"x"));
    test.frame(Offload::default(), &echo_frame("10.0.2.100", "10.0.2.1", 1, 7, 1, b"ping"));
    assert_eq!((test.host.tcp[0].2, test.host.tcp[1].2), (Some(1), None));
    assert_eq!((test.host.udp[0].hop_limit, test.host.echo[0].hop_limit), (1, 1));
    assert!(test.link.frames.is_empty());
}

#[test]
fn mapped_addresses_answer_pings_and_others_are_pinged() {
    let mut test = with(mapped(mapping()));
    for (from, to) in [("10.0.2.100", "10.0.2.2"), ("10.0.2.100", "10.0.2.9"), ("fd00::100", "fd00::2")] {
        test.frame(Offload::default(), &echo_frame(from, to, 64, 7, 1, b"ping"));
        assert_eq!(std::mem::take(&mut test.link.frames).len(), 1, "{to}");
    }
    assert!(test.host.echo.is_empty());
    let mut test = with(mapped(Mapping::default()));
    test.frame(Offload::default(), &echo_frame("10.0.2.100", "10.0.2.2", 64, 7, 1, b"ping"));
    assert_eq!((test.host.echo[0].to, test.link.frames.len()), (ip("10.0.2.2"), 0), "the gateway is a machine");
    let flow: EchoId = test.host.echo[0].flow;
    test.gateway.handle_echo_reply(test.now, flow, 1, b"ping", 64, &mut test.link);
    assert_eq!(
        (test.link.one()[22], &test.link.one()[26..30]),
        (64, &[10, 0, 2, 2][..]),
        "no hop on the way back either"
    );
}

/// Who complained, according to the error that the sandbox got, and about which destination.
fn complaint(test: &mut Test, to: &str, leads_to: &str, offender: &str) -> (IpAddr, IpAddr) {
    let from = if at(to).is_ipv4() { OWN } else { OWN6 };
    test.udp(from, to, b"x");
    let flow: UdpId = test.host.udp.last().unwrap().flow;
    let (error, offender) = (IcmpError::PortUnreachable, Some(ip(offender)));
    test.gateway.handle_udp_error(test.now, flow, at(leads_to), error, offender, b"x", &mut test.link);
    let (src, _, _, _, quoted) = test.error();
    let about = match quoted[0] >> 4 {
        4 => IpAddr::from(<[u8; 4]>::try_from(&quoted[16..20]).unwrap()),
        _ => IpAddr::from(<[u8; 16]>::try_from(&quoted[24..40]).unwrap()),
    };
    (src, about)
}

#[test]
fn errors_quote_what_was_sent_and_come_from_addresses_that_the_sandbox_knows() {
    let mut test = with(mapped(mapping()));
    for (to, leads_to, offender, from) in [
        ("10.0.2.2:7", "127.0.0.1:7", "127.0.0.1", "10.0.2.2"),
        ("10.0.2.9:7", "10.0.2.100:7", "10.0.2.100", "10.0.2.9"),
        ("192.0.2.1:7", "192.0.2.1:7", "192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:7", "192.0.2.1:7", "10.0.2.1", "10.0.2.1"),
        // The host has found nobody: it has the sandbox's address, which the sandbox would not take it from.
        ("10.0.2.77:7", "10.0.2.77:7", "10.0.2.100", "10.0.2.9"),
        ("10.0.2.77:7", "10.0.2.77:7", "10.0.2.101", "10.0.2.9"),
        ("[fd00::2]:7", "[::1]:7", "::1", "fd00::2"),
        ("[fd00::77]:7", "[fd00::77]:7", "fd00::100", "fd00::9"),
        ("[fd00::77]:7", "[fd00::77]:7", "fe80::77", "fe80::77"),
    ] {
        assert_eq!(complaint(&mut test, to, leads_to, offender), (ip(from), at(to).ip()), "{to}, {offender}");
    }
    let mut test = with(mapped(Mapping::default()));
    assert_eq!(complaint(&mut test, "10.0.2.77:7", "10.0.2.77:7", "10.0.2.100").0, ip("10.0.2.2"));
    let own = test.gateway.network().gateway_link_local();
    assert_eq!(complaint(&mut test, "[fd00::77]:7", "[fd00::77]:7", "fd00::100").0, IpAddr::V6(own));
    // The same of connections.
    let mut test = with(mapped(mapping()));
    test.syn(OWN, "10.0.2.77:80");
    let flow = test.host.tcp[0].0;
    let (outcome, offender) = (Err(HostError::HostUnreachable), Some(ip("10.0.2.100")));
    test.gateway.handle_tcp_outcome(test.now, flow, outcome, offender, &mut test.link);
    let (src, kind, code, ..) = test.error();
    assert_eq!((src, kind, code), (ip("10.0.2.9"), 3, 1));
}

/// As whom a client of a published port is seen, over UDP and TCP.
fn seen(test: &mut Test, client: &str) -> IpAddr {
    let client = at(client);
    test.gateway.handle_published_datagram(test.now, PEER.port, client, 53, b"x", 0, 0, PATH, &mut test.link);
    let (by, to, _) = test.received();
    assert_eq!((by.port(), to.port()), (client.port(), 53));
    let service = if to.is_ipv4() { "10.0.2.100:53" } else { "[fd00::100]:53" };
    test.udp(service, &by.to_string(), b"answer");
    assert_eq!(test.host.published.last().map(|sent| sent.1), Some(client), "the answer finds back");
    let flow = test.gateway.open_published(test.now, PEER.port, client, 80, &mut test.link).unwrap();
    let syn = std::mem::take(&mut test.link.frames).remove(0).2;
    let name = match syn[14] >> 4 {
        4 => IpAddr::from(<[u8; 4]>::try_from(&syn[26..30]).unwrap()),
        _ => IpAddr::from(<[u8; 16]>::try_from(&syn[22..38]).unwrap()),
    };
    assert_eq!(name, by.ip());
    test.gateway.abandon_published(flow);
    name
}

#[test]
fn clients_keep_their_addresses_where_the_sandbox_can_answer_them() {
    let [mut test, mut bare] = both();
    let own = IpAddr::V6(test.gateway.network().gateway_link_local());
    for (client, mapped, unmapped) in [
        ("192.0.2.9:7", "192.0.2.9", "192.0.2.9"),
        // The router itself, and a neighbour.
        ("10.0.2.2:7", "10.0.2.2", "10.0.2.2"),
        ("10.0.2.3:8", "10.0.2.3", "10.0.2.3"),
        ("10.0.2.77:7", "10.0.2.77", "10.0.2.77"),
        ("127.0.0.1:9", "10.0.2.2", "10.0.2.2"),
        ("0.0.0.0:10", "10.0.2.2", "10.0.2.2"),
        ("10.0.2.100:11", "10.0.2.9", "10.0.2.2"),
        ("[2001:db8::9]:7", "2001:db8::9", "2001:db8::9"),
        ("[fe80::9]:7", "fe80::9", "fe80::9"),
        ("[::1]:7", "fd00::2", &own.to_string()),
        ("[fd00::100]:11", "fd00::9", &own.to_string()),
    ] {
        assert_eq!(seen(&mut test, client), ip(mapped), "{client}");
        assert_eq!(seen(&mut bare, client), ip(unmapped), "{client}");
    }
    assert_eq!(seen(&mut test, "10.0.2.101:17"), ip("10.0.2.9"), "another address of the sandbox");
}

#[test]
fn a_published_port_may_lead_to_another_address_inside() {
    let mut test = Test::new();
    let service = |address: &str| Service { address: address.parse().ok(), port: 53 };
    let mut arrive = |client: &str, service: Service| {
        test.link.frames.clear();
        let client = at(client);
        test.gateway.handle_published_datagram(test.now, PEER.port, client, service, b"x", 0, 0, PATH, &mut test.link);
        let datagram = test.received();
        test.gateway.open_published(test.now, PEER.port, client, service, &mut test.link).unwrap();
        let syn = test.link.frames[0].2.clone();
        let to = match syn[14] >> 4 {
            4 => IpAddr::from(<[u8; 4]>::try_from(&syn[30..34]).unwrap()),
            _ => IpAddr::from(<[u8; 16]>::try_from(&syn[38..54]).unwrap()),
        };
        assert_eq!(datagram.1.ip(), to);
        (datagram.0.ip(), to)
    };
    assert_eq!(arrive("192.0.2.9:1", service("10.0.2.15")), (ip("192.0.2.9"), ip("10.0.2.15")));
    // A client of the other family: the gateway stands for it.
    assert_eq!(arrive("[2001:db8::9]:2", service("10.0.2.15")), (ip("10.0.2.2"), ip("10.0.2.15")));
    assert_eq!(arrive("192.0.2.9:3", service("fd00::15")), (ip("fd00::2"), ip("fd00::15")));
    // The loopback is not found through the link.
    assert_eq!(arrive("192.0.2.9:4", service("127.0.0.1")), (ip("192.0.2.9"), ip("10.0.2.100")));
    assert_eq!(arrive("127.0.0.1:5", Service::from(53)), (ip("10.0.2.2"), ip("10.0.2.100")));
}

#[test]
fn a_denied_host_is_net_unreachable_and_still_answers_pings() {
    let behaviour = Behaviour { host_denied: true, ..Behaviour::default() };
    let mut test = with(Network { behaviour, host_loopback_allowed: true, broadcast_to_host: true, ..network(1500) });
    for (from, to, v4) in [(OWN, "10.0.2.2:80", true), (OWN6, "[fd00::2]:80", false)] {
        for tcp in [true, false] {
            if tcp {
                test.syn(from, to);
            } else {
                test.udp(from, to, b"x");
            }
            let (src, kind, code, ..) = test.error();
            assert_eq!((src, kind, code), (at(to).ip(), if v4 { 3 } else { 1 }, 0), "{to}");
        }
    }
    test.udp(OWN, "255.255.255.255:9", b"x");
    assert_eq!((test.host.tcp.len(), test.host.udp.len(), test.link.frames.len()), (0, 0, 0));
    for (from, to) in [("10.0.2.100", "10.0.2.2"), ("fd00::100", "fd00::2")] {
        test.frame(Offload::default(), &echo_frame(from, to, 64, 7, 1, b"ping"));
        assert_eq!(std::mem::take(&mut test.link.frames).len(), 1);
    }
    test.udp(OWN, "10.0.2.3:53", b"question");
    test.syn(OWN, "192.0.2.1:80");
    assert_eq!((test.host.queries.len(), test.host.tcp.len()), (1, 1), "names and the world");
}

#[test]
fn a_network_without_names_drops_what_goes_to_their_address() {
    let behaviour = Behaviour { local_clients: LocalClients::Link, ..Behaviour::default() };
    let mut test = with(Network { dns_enabled: false, behaviour, ..network(1500) });
    for to in ["10.0.2.3:53", "10.0.2.3:80"] {
        test.udp(OWN, to, b"x");
        test.syn(OWN, to);
    }
    assert_eq!((test.dropped(DropReason::Refused), test.link.frames.len()), (4, 0));
    assert!(test.host.tcp.is_empty() && test.host.udp.is_empty() && test.host.queries.is_empty());
    // On tapline's own nobody is kept waiting.
    let mut test = with(Network { dns_enabled: false, ..network(1500) });
    for to in ["10.0.2.3:53", "10.0.2.3:80"] {
        test.udp(OWN, to, b"x");
        let (src, kind, code, ..) = test.error();
        assert_eq!((src, kind, code), (ip("10.0.2.3"), 3, 3));
        test.syn(OWN, to);
        const RST_ACK: u8 = 0x14;
        assert_eq!(test.link.one()[47], RST_ACK);
        test.link.frames.clear();
    }
}

/// A network with one service switched off.
fn without(off: impl FnOnce(&mut Services)) -> Test {
    let mut behaviour = Behaviour::default();
    off(&mut behaviour.services);
    let mut test = Test::with(Network { behaviour, ..network(1500) }, HostView::default());
    test.pass(Duration::ZERO);
    test
}

#[test]
fn what_is_switched_off_is_neither_offered_nor_carried() {
    let mut test = without(|services| services.tcp = false);
    test.link.frames.clear();
    test.syn(OWN, "192.0.2.1:80");
    test.syn(OWN, "10.0.2.3:53");
    assert_eq!((test.host.tcp.len(), test.host.tcp_dns.len(), test.link.frames.len()), (0, 0, 0));
    let opened = test.gateway.open_published(test.now, PEER.port, at("192.0.2.9:7"), 80, &mut test.link);
    assert_eq!((opened, test.dropped(DropReason::Disabled)), (Err(DropReason::Disabled), 2));
    test.udp(OWN, "192.0.2.1:7", b"x");
    assert_eq!(test.host.udp.len(), 1, "the others are there");

    let mut test = without(|services| services.udp = false);
    test.link.frames.clear();
    test.udp(OWN, "192.0.2.1:7", b"x");
    test.gateway.handle_published_datagram(
        test.now,
        PEER.port,
        at("192.0.2.9:7"),
        53,
        b"x",
        0,
        0,
        PATH,
        &mut test.link,
    );
    assert_eq!((test.host.udp.len(), test.link.frames.len(), test.dropped(DropReason::Disabled)), (0, 0, 2));
    test.udp(OWN, "10.0.2.3:53", b"question");
    assert_eq!(test.host.queries.len(), 1, "names do not count");

    let mut test = without(|services| services.icmp = false);
    test.link.frames.clear();
    for to in ["10.0.2.2", "10.0.2.3", "192.0.2.1"] {
        test.frame(Offload::default(), &echo_frame("10.0.2.100", to, 64, 7, 1, b"ping"));
    }
    test.frame(Offload::default(), &echo_frame("fd00::100", "ff02::1", 1, 7, 1, b"ping"));
    assert_eq!((test.host.echo.len(), test.link.frames.len(), test.dropped(DropReason::Disabled)), (0, 0, 4));

    let mut test = without(|services| services.ndp = false);
    assert_eq!(test.link.frames.len(), 1, "advertisements go on");
    test.link.frames.clear();
    assert_eq!((solicit(&mut test, "fd00::100", "fd00::2"), test.dropped(DropReason::Disabled)), (None, 1));

    let mut test = without(|services| services.router_advertisements = false);
    test.pass(Duration::from_secs(2000));
    assert!(test.link.frames.is_empty());
    assert_eq!(solicit(&mut test, "fd00::100", "fd00::2"), Some(0xe0));

    let mut test = without(|services| services.dhcp = false);
    test.link.frames.clear();
    test.udp("0.0.0.0:68", "255.255.255.255:67", &[0; 300]);
    assert_eq!((test.link.frames.len(), test.dropped(DropReason::Disabled)), (0, 1));
}

#[test]
fn an_address_that_the_sandbox_makes_itself_is_where_clients_find_it() {
    let service = |test: &mut Test| {
        let client = at("[2001:db8::9]:7");
        test.gateway.open_published(test.now, PEER.port, client, 80, &mut test.link).map(|flow| {
            test.gateway.abandon_published(flow);
            let syn = test.link.frames.pop().unwrap().2;
            IpAddr::from(<[u8; 16]>::try_from(&syn[38..54]).unwrap())
        })
    };
    let [mut test, _] = both();
    assert_eq!(service(&mut test), Ok(ip("fd00::100")), "the planned one, until another is seen");
    solicit(&mut test, "::", "fe80::1234");
    solicit(&mut test, "::", "2001:db8::1");
    solicit(&mut test, "::", "fd00::101");
    assert_eq!(service(&mut test), Ok(ip("fd00::100")), "of another prefix, of the link only, one of several");
    solicit(&mut test, "::", "fd00::42:aff:fe00:264");
    assert_eq!(service(&mut test), Ok(ip("fd00::42:aff:fe00:264")));
    // The host's own is somebody else now, whom the sandbox may look for; as a client it is not shown under it.
    assert_eq!(solicit(&mut test, "fd00::42:aff:fe00:264", "fd00::100"), Some(0x60));
    assert!(!super::kept::can_be_a_client(&test.gateway.segment, ip("fd00::100")));
    solicit(&mut test, "::", "fd00::abcd");
    assert_eq!(service(&mut test), Ok(ip("fd00::42:aff:fe00:264")), "a temporary one takes nothing over");
    solicit(&mut test, "fd00::100", "fd00::1");
    assert_eq!(service(&mut test), Ok(ip("fd00::100")), "the planned one does");
    let mut usual = Test::new();
    usual.pass(Duration::ZERO);
    usual.link.frames.clear();
    solicit(&mut usual, "::", "fd00::abcd");
    assert_eq!(service(&mut usual), Ok(ip("fd00::100")), "on tapline's own networks it is set from outside");
}

#[test]
fn clients_find_a_sandbox_that_has_changed_its_ethernet_address() {
    let mut test = Test::new();
    test.pass(Duration::ZERO);
    let other = crate::plan::MacAddr([2, 0, 0, 0, 0, 7]);
    let arp_from = |test: &mut Test, sender: [u8; 4]| {
        let packet = ArpEthIpv4Packet {
            operation: ArpOperation::REQUEST,
            sender_mac: other.0,
            sender_ipv4: sender,
            target_mac: [0; 6],
            target_ipv4: [10, 0, 2, 2],
        };
        let mut frame = frame_from_sandbox(
            crate::plan::MacAddr::BROADCAST,
            ETHERTYPE_ARP,
            &etherparse::ArpPacket::from(packet).to_bytes(),
        );
        frame[6..12].copy_from_slice(&other.0);
        test.frame(Offload::default(), &frame);
        test.link.frames.clear();
    };
    let found_at = |test: &mut Test| {
        test.gateway.open_published(test.now, PEER.port, at("192.0.2.9:7"), 80, &mut test.link).map(|flow| {
            test.gateway.abandon_published(flow);
            crate::plan::MacAddr(*test.link.frames.pop().unwrap().2.first_chunk().unwrap())
        })
    };
    arp_from(&mut test, [10, 0, 2, 50]);
    assert_eq!(found_at(&mut test), Ok(SANDBOX_MAC), "somebody else behind the sandbox");
    arp_from(&mut test, [10, 0, 2, 100]);
    assert_eq!(found_at(&mut test), Ok(other));
}
