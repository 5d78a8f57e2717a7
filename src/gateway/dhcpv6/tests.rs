use std::time::Duration;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

use super::*;
use crate::gateway::emit::testing::{DNS_V6, PEER, SANDBOX_MAC, SANDBOX_V6, network};
use crate::gateway::link::Offload;
use crate::gateway::testing::Test;
use crate::plan::HostView;

const CLIENT: &[u8] = &[0, 3, 0, 1, 2, 0x42, 10, 0, 2, 100];
const IAID: [u8; 4] = [1, 2, 3, 4];

fn serving(change: impl FnOnce(&mut Network)) -> Test {
    let mut network = network(1500);
    network.behaviour.services.dhcpv6 = true;
    change(&mut network);
    let mut test = Test::with(network, HostView::default());
    test.pass(Duration::ZERO);
    test.link.frames.clear();
    test
}

/// A client's message, written by hand.
struct Message(Vec<u8>);

fn message(kind: u8) -> Message {
    Message(vec![kind, 0xab, 0xcd, 0xef])
}

impl Message {
    fn with(mut self, code: u16, data: &[u8]) -> Message {
        self.0.extend_from_slice(&code.to_be_bytes());
        self.0.extend_from_slice(&(data.len() as u16).to_be_bytes());
        self.0.extend_from_slice(data);
        self
    }

    fn client(self) -> Message {
        self.with(1, CLIENT)
    }

    fn server(self, test: &Test) -> Message {
        let id = server_id(test.gateway.network());
        self.with(2, &id)
    }

    /// An association that has these addresses.
    fn has(self, addresses: &[Ipv6Addr]) -> Message {
        self.association(IAID, addresses)
    }

    fn association(self, id: [u8; 4], addresses: &[Ipv6Addr]) -> Message {
        let mut data = [&id[..], &[0; 8]].concat();
        for address in addresses {
            data.extend_from_slice(&[0, 5, 0, 24]);
            data.extend_from_slice(&address.octets());
            data.extend_from_slice(&[0; 8]);
        }
        self.with(3, &data)
    }
}

fn link_local() -> Ipv6Addr {
    SANDBOX_MAC.link_local()
}

fn send_to(test: &mut Test, to: Ipv6Addr, message: &[u8]) {
    let mac = match to.is_multicast() {
        true => [0x33, 0x33, 0, 1, 0, 2],
        false => test.gateway.network().gateway_mac.0,
    };
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(SANDBOX_MAC.0, mac)
        .ipv6(link_local().octets(), to.octets(), 1)
        .udp(546, 547)
        .write(&mut frame, message)
        .unwrap();
    test.frame(Offload::default(), &frame);
}

#[derive(Debug)]
struct Answer {
    kind: u8,
    options: Vec<(u16, Vec<u8>)>,
}

impl Answer {
    fn option(&self, code: u16) -> Option<&[u8]> {
        self.options.iter().find(|(c, _)| *c == code).map(|(_, data)| &data[..])
    }

    /// Identity, times and options of each association for addresses.
    fn associations(&self) -> Vec<Given> {
        let all = self.options.iter().filter(|(code, _)| *code == 3);
        all.map(|(_, data)| {
            let number = |at: usize| u32::from_be_bytes(data[at..at + 4].try_into().unwrap());
            Given { id: data[..4].try_into().unwrap(), times: (number(4), number(8)), options: parse(&data[12..]) }
        })
        .collect()
    }

    fn status(&self) -> Option<u16> {
        self.option(13).map(|data| u16::from_be_bytes([data[0], data[1]]))
    }
}

#[derive(Debug, PartialEq)]
struct Given {
    id: [u8; 4],
    times: (u32, u32),
    options: Vec<(u16, Vec<u8>)>,
}

impl Given {
    /// Addresses with their lifetimes, which are the same.
    fn addresses(&self) -> Vec<(Ipv6Addr, u32)> {
        let all = self.options.iter().filter(|(code, _)| *code == 5);
        all.map(|(_, data)| {
            assert_eq!((data.len(), &data[16..20]), (24, &data[20..]));
            let ip: [u8; 16] = data[..16].try_into().unwrap();
            (ip.into(), u32::from_be_bytes(data[16..20].try_into().unwrap()))
        })
        .collect()
    }
}

/// Written independently of the parser under test.
fn parse(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut options = Vec::new();
    while !bytes.is_empty() {
        let code = u16::from_be_bytes([bytes[0], bytes[1]]);
        let length = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
        options.push((code, bytes[4..4 + length].to_vec()));
        bytes = &bytes[4 + length..];
    }
    options
}

fn ask(test: &mut Test, message: &Message) -> Option<Answer> {
    ask_at(test, ALL_SERVERS, message)
}

fn ask_at(test: &mut Test, to: Ipv6Addr, message: &Message) -> Option<Answer> {
    send_to(test, to, &message.0);
    let (port, offload, frame) = test.link.frames.pop()?;
    assert!(test.link.frames.is_empty());
    assert_eq!((port, offload, &frame[..6]), (PEER.port, Offload::default(), &SANDBOX_MAC.0[..]));
    let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
    let (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Udp(udp))) = (sliced.net, sliced.transport) else { panic!() };
    let header = ip.header().to_header();
    let from = test.gateway.network().gateway_link_local();
    assert_eq!((header.source, header.destination), (from.octets(), link_local().octets()));
    assert_eq!((udp.source_port(), udp.destination_port()), (547, 546));
    assert_eq!(udp.checksum(), udp.to_header().calc_checksum_ipv6(&header, udp.payload()).unwrap());
    let payload = udp.payload();
    assert_eq!(payload[1..4], [0xab, 0xcd, 0xef]);
    let answer = Answer { kind: payload[0], options: parse(&payload[4..]) };
    assert_eq!(answer.option(2), Some(&server_id(test.gateway.network())[..]));
    Some(answer)
}

#[track_caller]
fn says(test: &mut Test, message: Message) -> Answer {
    ask(test, &message).expect("no answer")
}

#[test]
fn a_client_gets_its_address_in_four_messages() {
    let mut test = serving(|_| {});
    let advertise = says(&mut test, message(1).client().has(&[]));
    assert_eq!((advertise.kind, advertise.option(1)), (2, Some(CLIENT)));
    let given = advertise.associations();
    assert_eq!((given.len(), given[0].id, given[0].times), (1, IAID, (43_200, 69_120)));
    assert_eq!(given[0].addresses(), [(SANDBOX_V6, 86_400)]);
    let request = message(3).client().server(&test).has(&[SANDBOX_V6]);
    let reply = says(&mut test, request);
    assert_eq!((reply.kind, reply.associations()), (7, given));
    assert_eq!(reply.option(23), Some(&DNS_V6.octets()[..]));
    assert_eq!(reply.option(24), Some(&b"\x07example\x03org\0\x04corp\x07example\x03org\0"[..]));
    assert_eq!((reply.option(39), reply.option(14)), (None, None));
}

#[test]
fn rapid_commit_gives_it_in_two() {
    let mut test = serving(|_| {});
    let reply = says(&mut test, message(1).client().has(&[]).with(14, &[]));
    assert_eq!((reply.kind, reply.option(14)), (7, Some(&[][..])));
    assert_eq!(reply.associations()[0].addresses(), [(SANDBOX_V6, 86_400)]);
}

#[test]
fn renewing_and_rebinding_keep_the_address_and_void_others() {
    let mut test = serving(|_| {});
    let other: Ipv6Addr = "2001:db8::7".parse().unwrap();
    let renewal = message(5).client().server(&test).has(&[SANDBOX_V6]);
    assert_eq!(says(&mut test, renewal).associations()[0].addresses(), [(SANDBOX_V6, 86_400)]);
    let reply = says(&mut test, message(6).client().has(&[other]));
    assert_eq!((reply.kind, reply.associations()[0].addresses()), (7, vec![(SANDBOX_V6, 86_400), (other, 0)]));
}

#[test]
fn confirm_says_whether_addresses_are_of_this_link() {
    let mut test = serving(|_| {});
    let near: Ipv6Addr = "fd00::5".parse().unwrap();
    let far: Ipv6Addr = "2001:db8::7".parse().unwrap();
    for (addresses, status) in [(&[SANDBOX_V6, near][..], 0), (&[SANDBOX_V6, far], 4), (&[far], 4)] {
        let reply = says(&mut test, message(4).client().has(addresses));
        assert_eq!((reply.kind, reply.status()), (7, Some(status)));
    }
    assert!(ask(&mut test, &message(4).client().has(&[])).is_none(), "there is nothing to confirm");
}

#[test]
fn release_and_decline_succeed_and_the_address_is_given_again() {
    let mut test = serving(|_| {});
    for kind in [8, 9] {
        let reply = message(kind).client().server(&test).has(&[SANDBOX_V6]);
        let reply = says(&mut test, reply);
        assert_eq!((reply.kind, reply.status()), (7, Some(0)));
    }
    assert_eq!(says(&mut test, message(1).client().has(&[])).associations()[0].addresses()[0].0, SANDBOX_V6);
}

#[test]
fn an_information_request_is_answered_without_an_address() {
    let mut test = serving(|_| {});
    let reply = says(&mut test, message(11));
    assert_eq!((reply.kind, reply.option(1), reply.associations().len()), (7, None, 0));
    assert_eq!(reply.option(23), Some(&DNS_V6.octets()[..]));
    let reply = message(11).client().server(&test);
    assert_eq!(says(&mut test, reply).option(1), Some(CLIENT));
}

#[test]
fn there_is_one_address_and_nothing_else() {
    let mut test = serving(|_| {});
    let solicit = message(1).client().association([9; 4], &[]).has(&[]).with(4, &[7; 4]).with(25, &[8; 12]);
    let advertise = says(&mut test, solicit);
    let [first, second] = &advertise.associations()[..] else { panic!("{advertise:?}") };
    assert_eq!((first.id, first.addresses()), ([9; 4], vec![(SANDBOX_V6, 86_400)]));
    assert_eq!((second.id, second.times, second.options[0].0), (IAID, (0, 0), 13));
    assert_eq!(second.options[0].1[..2], [0, 2]);
    let (temporary, prefix) = (advertise.option(4).unwrap(), advertise.option(25).unwrap());
    assert_eq!((&temporary[..4], parse(&temporary[4..])[0].1[..2].to_vec()), (&[7; 4][..], vec![0, 2]));
    assert_eq!((&prefix[..4], parse(&prefix[12..])[0].1[..2].to_vec()), (&[8; 4][..], vec![0, 6]));
}

#[test]
fn only_what_the_network_announces_is_said() {
    let mut test = serving(|network| {
        network.behaviour.announcements.resolvers = false;
        network.behaviour.announcements.search = false;
        network.behaviour.announcements.fqdn = Some("box.example.org".into());
    });
    let reply = says(&mut test, message(11));
    assert_eq!((reply.option(23), reply.option(24)), (None, None));
    assert_eq!(reply.option(39), Some(&b"\x04\x03box\x07example\x03org\0"[..]));
    // The client would like the server to update DNS.
    let reply = says(&mut test, message(11).with(39, b"\x01\x03box\0"));
    assert_eq!(reply.option(39).map(|data| data[0]), Some(6));
}

#[test]
fn an_answer_fits_the_least_mtu() {
    let mut test = serving(|network| {
        network.dns_search = (0..100).map(|n| format!("domain-number-{n}.example.org")).collect();
        network.dns_servers = (0..50).map(|n| IpAddr::V6(Ipv6Addr::from(1 << 125 | n))).collect();
    });
    let mut solicit = message(1).client();
    for n in 0..100 {
        solicit = solicit.association([n; 4], &[]);
    }
    send_to(&mut test, ALL_SERVERS, &solicit.0);
    let frame = test.link.one();
    assert!(frame.len() <= 14 + 1280, "{}", frame.len());
    let options = parse(&frame[14 + 48 + 4..]);
    assert_eq!(options.iter().filter(|(code, _)| *code == 3).count(), MAX_ASSOCIATIONS);
    assert_eq!(options.iter().find(|(code, _)| *code == 23).unwrap().1.len(), 256);
    assert!(options.iter().any(|(code, _)| *code == 24));
}

#[test]
fn what_came_to_the_gateway_alone_is_sent_to_all_servers() {
    let mut test = serving(|_| {});
    let gateway = test.gateway.network().v6.unwrap().gateway;
    for kind in [3, 5, 8, 9] {
        let alone = message(kind).client().server(&test).has(&[SANDBOX_V6]);
        let reply = ask_at(&mut test, gateway, &alone).unwrap();
        assert_eq!((reply.kind, reply.status(), reply.associations().len()), (7, Some(5), 0));
    }
    for kind in [1, 4, 6, 11] {
        assert!(ask_at(&mut test, gateway, &message(kind).client()).is_none());
    }
}

#[test]
fn messages_of_others_for_others_and_nonsense_are_dropped() {
    let mut test = serving(|_| {});
    let other = [0, 3, 0, 1, 2, 2, 2, 2, 2, 2];
    let wrong = [
        (message(1), DropReason::Malformed),
        (message(1).client().server(&test), DropReason::Malformed),
        (message(3).client(), DropReason::Malformed),
        (message(3).server(&test), DropReason::Malformed),
        (message(3).client().with(2, &other), DropReason::NotForUs),
        (message(11).with(2, &other), DropReason::NotForUs),
        (message(11).has(&[]), DropReason::Malformed),
        (message(6).client().server(&test), DropReason::Malformed),
        (message(2).client(), DropReason::Spoofed),
        (message(7).client(), DropReason::Spoofed),
        (message(10).client(), DropReason::Spoofed),
        (message(12).client(), DropReason::Protocol),
        (message(1).with(1, &[0; 131]), DropReason::Malformed),
        (message(1).with(1, &[0; 2]), DropReason::Malformed),
        (message(1).client().with(3, &[0; 11]), DropReason::Malformed),
        (message(1).client().with(3, &[0; 13]), DropReason::Malformed),
        (message(1).client().with(39, &[]), DropReason::Malformed),
    ];
    for (nth, (message, reason)) in wrong.iter().enumerate() {
        let before = test.dropped(*reason);
        assert!(ask(&mut test, message).is_none(), "{nth}");
        assert_eq!(test.dropped(*reason), before + 1, "{nth}");
    }
    let right = message(1).client().has(&[SANDBOX_V6]).0;
    for length in 0..right.len() {
        let before = test.link.frames.len();
        send_to(&mut test, ALL_SERVERS, &right[..length]);
        // What ends behind an option is whole.
        let whole = [4 + 14].contains(&length);
        assert_eq!(test.link.frames.len() - before, usize::from(whole), "{length}");
    }
}

#[test]
fn it_is_there_only_where_the_network_says_so_and_is_announced() {
    let managed = |on: bool| {
        let mut network = network(1500);
        network.behaviour.services.dhcpv6 = on;
        let mut test = Test::with(network, HostView::default());
        test.pass(Duration::ZERO);
        let advertised = test.link.one()[14 + 40 + 5];
        test.link.frames.clear();
        let answered = ask(&mut test, &message(1).client().has(&[])).is_some();
        (advertised, answered, test.dropped(DropReason::Multicast))
    };
    assert_eq!(managed(true), (0x80, true, 0));
    assert_eq!(managed(false), (0, false, 1));
}

proptest::proptest! {
    /// Whatever is put into a message, it is answered once or not at all, in a frame that another parser reads.
    #[test]
    fn no_message_is_a_surprise(
        kind in 0u8..15,
        options in proptest::collection::vec((0u16..45, proptest::collection::vec(proptest::num::u8::ANY, 0..40)), 0..12),
        with_client in proptest::bool::ANY,
        cut in 0usize..600,
    ) {
        let mut test = serving(|network| network.behaviour.announcements.fqdn = Some("box.example.org".into()));
        let mut asked = message(kind);
        if with_client {
            asked = asked.client().server(&test);
        }
        for (code, data) in &options {
            asked = asked.with(*code, data);
        }
        asked.0.truncate(cut.max(1));
        send_to(&mut test, ALL_SERVERS, &asked.0);
        proptest::prop_assert!(test.link.frames.len() <= 1);
        if let Some((_, _, frame)) = test.link.frames.first() {
            proptest::prop_assert!(frame.len() <= 14 + 1280);
            parse(&frame[14 + 48 + 4..]);
        }
    }
}
