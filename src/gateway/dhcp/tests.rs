use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use smoltcp::wire::DhcpRepr;

use super::*;
use crate::gateway::emit::testing::*;
use crate::gateway::link::Offload;
use crate::gateway::packet::Parsed;

const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);

/// A client's message, written by hand.
struct Message {
    kind: u8,
    mac: MacAddr,
    current: Ipv4Addr,
    flags: u16,
    options: Vec<(u8, Vec<u8>)>,
}

fn message(kind: DhcpMessageType) -> Message {
    Message { kind: kind.into(), mac: SANDBOX_MAC, current: Ipv4Addr::UNSPECIFIED, flags: 0, options: Vec::new() }
}

impl Message {
    fn with(mut self, code: u8, data: &[u8]) -> Message {
        self.options.push((code, data.to_vec()));
        self
    }

    fn wants(self, address: Ipv4Addr) -> Message {
        self.with(50, &address.octets())
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; 240];
        bytes[..3].copy_from_slice(&[1, 1, 6]);
        bytes[4..8].copy_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
        bytes[10..12].copy_from_slice(&self.flags.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.current.octets());
        bytes[28..34].copy_from_slice(&self.mac.0);
        bytes[236..].copy_from_slice(&MAGIC_COOKIE);
        bytes.extend_from_slice(&[53, 1, self.kind]);
        for (code, data) in &self.options {
            bytes.extend_from_slice(&[*code, data.len() as u8]);
            bytes.extend_from_slice(data);
        }
        bytes.push(255);
        bytes
    }

    fn packet(&self) -> Vec<u8> {
        let (src, dst) = match self.current.is_unspecified() {
            true => (self.current, Ipv4Addr::BROADCAST),
            false => (self.current, GATEWAY_V4),
        };
        let mut udp = Vec::new();
        etherparse::PacketBuilder::ipv4(src.octets(), dst.octets(), 64)
            .udp(68, 67)
            .write(&mut udp, &self.bytes())
            .unwrap();
        udp
    }
}

#[derive(Debug, PartialEq)]
struct Answer {
    kind: DhcpMessageType,
    address: Ipv4Addr,
    to: Ipv4Addr,
    to_mac: MacAddr,
    options: Vec<(u8, Vec<u8>)>,
    dhcp: Vec<u8>,
}

impl Answer {
    fn option(&self, code: u8) -> Option<&[u8]> {
        self.options.iter().find(|(c, _)| *c == code).map(|(_, d)| &d[..])
    }
}

fn feed(segment: &mut Segment, port: PortId, packet: &[u8]) -> Result<Option<Answer>, DropReason> {
    let peer = Peer { port, mac: SANDBOX_MAC };
    let Parsed::Whole(packet) = packet::parse_ipv4(peer, Offload::default(), packet)? else { panic!() };
    let mut link = Recorder::default();
    handle(segment, &packet, &mut link)?;
    if link.frames.is_empty() {
        return Ok(None);
    }
    assert_eq!((link.frames[0].0, link.frames[0].1), (port, Offload::default()));
    let frame = link.one();
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) = (sliced.net, sliced.transport) else { panic!() };
    let header = ip.header().to_header();
    assert_eq!(header.source, GATEWAY_V4.octets());
    assert_eq!((udp.source_port(), udp.destination_port()), (67, 68));
    assert_eq!(udp.checksum(), udp.to_header().calc_checksum_ipv4(&header, udp.payload()).unwrap());
    let view = DhcpPacket::new_checked(udp.payload()).unwrap();
    let repr = DhcpRepr::parse(&view).unwrap();
    assert_eq!((repr.transaction_id, repr.server_identifier), (0xdead_beef, Some(GATEWAY_V4)));
    assert!((MIN_MESSAGE..=1472).contains(&udp.payload().len()));
    Ok(Some(Answer {
        kind: repr.message_type,
        address: repr.your_ip,
        to: header.destination.into(),
        to_mac: MacAddr(frame[..6].try_into().unwrap()),
        options: view.options().map(|o| (o.kind, o.data.to_vec())).collect(),
        dhcp: udp.payload().to_vec(),
    }))
}

#[track_caller]
fn say(segment: &mut Segment, message: &Message) -> Answer {
    feed(segment, PEER.port, &message.packet()).unwrap().expect("no answer")
}

fn wide(segment: &mut Segment, last: u8) {
    let layout = segment.network.v4.as_mut().unwrap();
    layout.dhcp_range = (Ipv4Addr::new(10, 0, 2, 1), Ipv4Addr::new(10, 0, 2, last));
}

fn at(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 2, last)
}

#[test]
fn a_client_gets_the_planned_address_and_all_it_needs() {
    let mut segment = segment(1400);
    let offer = say(&mut segment, &message(DhcpMessageType::Discover));
    assert_eq!((offer.kind, offer.address, offer.to), (DhcpMessageType::Offer, SANDBOX_V4, SANDBOX_V4));
    assert_eq!(offer.to_mac, SANDBOX_MAC);
    let request = message(DhcpMessageType::Request).wants(SANDBOX_V4).with(54, &GATEWAY_V4.octets());
    let ack = say(&mut segment, &request);
    assert_eq!((ack.kind, ack.address), (DhcpMessageType::Ack, SANDBOX_V4));
    assert_eq!(ack.option(1), Some(&[255, 255, 255, 0][..]));
    assert_eq!(ack.option(3), Some(&GATEWAY_V4.octets()[..]));
    assert_eq!(ack.option(6), Some(&DNS_V4.octets()[..]));
    assert_eq!(ack.option(26), Some(&1400u16.to_be_bytes()[..]));
    assert_eq!(ack.option(15), Some(&b"example.org"[..]));
    assert_eq!(ack.option(119), Some(&b"\x07example\x03org\0\x04corp\x07example\x03org\0"[..]));
    assert_eq!(ack.option(51), Some(&86_400u32.to_be_bytes()[..]));
    assert_eq!(ack.option(58), Some(&43_200u32.to_be_bytes()[..]));
    assert_eq!(ack.option(59), Some(&75_600u32.to_be_bytes()[..]));
    assert_eq!(ack.option(28), Some(&[10, 0, 2, 255][..]));
}

#[test]
fn given_resolvers_replace_the_dns_address_and_no_dns_means_none() {
    let mut segment = segment(1500);
    segment.network.dns_servers = vec!["9.9.9.9".parse().unwrap(), "2620:fe::9".parse().unwrap()];
    let offer = say(&mut segment, &message(DhcpMessageType::Discover));
    assert_eq!(offer.option(6), Some(&[9, 9, 9, 9][..]));
    segment.network.dns_servers.clear();
    segment.network.dns_enabled = false;
    segment.network.dns_search.clear();
    let offer = say(&mut segment, &message(DhcpMessageType::Discover));
    assert_eq!((offer.option(6), offer.option(15), offer.option(119)), (None, None, None));
}

#[test]
fn the_broadcast_flag_is_honoured_and_returned() {
    let offer = say(&mut segment(1500), &Message { flags: 0x8000, ..message(DhcpMessageType::Discover) });
    assert_eq!((offer.to, offer.to_mac), (Ipv4Addr::BROADCAST, MacAddr::BROADCAST));
    assert_eq!((offer.address, &offer.dhcp[10..12]), (SANDBOX_V4, &[0x80, 0][..]));
}

#[test]
fn after_a_restart_a_client_keeps_its_address_and_a_wrong_one_is_refused() {
    // Init-reboot, and renewing at a server that knows nothing of it.
    let ack = say(&mut segment(1500), &message(DhcpMessageType::Request).wants(SANDBOX_V4));
    assert_eq!((ack.kind, ack.address), (DhcpMessageType::Ack, SANDBOX_V4));
    let ack = say(&mut segment(1500), &Message { current: SANDBOX_V4, ..message(DhcpMessageType::Request) });
    assert_eq!((ack.kind, ack.to, ack.to_mac), (DhcpMessageType::Ack, SANDBOX_V4, SANDBOX_MAC));
    for wrong in [Ipv4Addr::new(192, 168, 1, 5), at(101), GATEWAY_V4, DNS_V4, at(255), at(0)] {
        let nak = say(&mut segment(1500), &message(DhcpMessageType::Request).wants(wrong));
        assert_eq!((nak.kind, nak.to, nak.to_mac), (DhcpMessageType::Nak, Ipv4Addr::BROADCAST, MacAddr::BROADCAST));
        assert_eq!((nak.address, nak.option(51)), (Ipv4Addr::UNSPECIFIED, None));
    }
}

#[test]
fn several_clients_get_addresses_of_their_own_and_none_of_the_gateways() {
    let mut segment = segment(1500);
    wide(&mut segment, 6);
    let discover = |n| Message { mac: MacAddr([2, 0, 0, 0, 0, n]), ..message(DhcpMessageType::Discover) };
    let given: Vec<Ipv4Addr> = (0..4).map(|n| say(&mut segment, &discover(n)).address).collect();
    assert_eq!(given, [at(1), at(4), at(5), at(6)], "the planned one is not in the range");
    assert_eq!(say(&mut segment, &discover(2)).address, at(5));
    // One more: the one that was silent longest loses its address.
    assert_eq!(say(&mut segment, &discover(5)).address, at(1));
    let renewal = Message { mac: MacAddr([2, 0, 0, 0, 0, 0]), ..message(DhcpMessageType::Request) };
    assert_eq!(say(&mut segment, &renewal.wants(at(1))).kind, DhcpMessageType::Nak);
    // But who has the planned one already may keep it.
    let keeps = Message { mac: MacAddr([2, 0, 0, 0, 0, 7]), ..message(DhcpMessageType::Request) };
    assert_eq!(say(&mut segment, &keeps.wants(SANDBOX_V4)).kind, DhcpMessageType::Ack);
}

#[test]
fn only_what_the_network_announces_is_said() {
    let mut segment = segment(1500);
    let announcements = &mut segment.network.behaviour.announcements;
    *announcements = crate::plan::Announcements { resolvers: false, search: false, mtu: false, ..Default::default() };
    let offer = say(&mut segment, &message(DhcpMessageType::Discover));
    assert_eq!([6, 12, 15, 26, 81, 119].map(|code| offer.option(code)), [None; 6]);
    let announcements = &mut segment.network.behaviour.announcements;
    announcements.hostname = Some("box".into());
    announcements.fqdn = Some("box.example.org".into());
    let offer = say(&mut segment, &message(DhcpMessageType::Discover));
    assert_eq!(offer.option(12), Some(&b"box"[..]));
    assert_eq!(offer.option(81), Some(&b"\x0c\xff\xff\x03box\x07example\x03org\0"[..]));
    // An address that nobody has is no resolver.
    segment.network.behaviour.announcements.resolvers = true;
    segment.network.v4.as_mut().unwrap().dns = Ipv4Addr::UNSPECIFIED;
    assert_eq!(say(&mut segment, &message(DhcpMessageType::Discover)).option(6), None);
}

#[test]
fn a_router_outside_the_subnet_is_on_the_link() {
    let mut segment = segment(1500);
    segment.network.behaviour.mapping = Some(Default::default());
    let layout = segment.network.v4.as_mut().unwrap();
    layout.subnet = "10.0.2.100/32".parse().unwrap();
    let offer = say(&mut segment, &message(DhcpMessageType::Discover));
    assert_eq!((offer.address, offer.option(1)), (SANDBOX_V4, Some(&[255; 4][..])));
    assert_eq!((offer.option(28), offer.option(3)), (None, Some(&GATEWAY_V4.octets()[..])));
    assert_eq!(offer.option(121), Some(&[32, 10, 0, 2, 2, 0, 0, 0, 0, 0, 10, 0, 2, 2][..]));
    assert_eq!(say(&mut segment, &message(DhcpMessageType::Request).wants(SANDBOX_V4)).kind, DhcpMessageType::Ack);
}

#[test]
fn the_address_of_another_ports_endpoint_is_not_given() {
    let mut segment = segment(1500);
    wide(&mut segment, 100);
    let other = crate::plan::Endpoint { v4: None, mac: OTHER, ..endpoint() };
    segment.add(PortId(2), other);
    let wants = Message { mac: OTHER, ..message(DhcpMessageType::Discover) }.wants(SANDBOX_V4);
    let offer = feed(&mut segment, PortId(2), &wants.packet()).unwrap().unwrap();
    assert_eq!(offer.address, at(1));
    segment.leases.remove_port(PortId(2));
    assert!(segment.leases.bindings.is_empty());
}

#[test]
fn on_a_shared_network_each_endpoint_is_offered_its_own_address_and_no_other() {
    let mut segment = segment(1500);
    segment.network.sharing = Some(crate::plan::Sharing { internal: false, icc: true });
    wide(&mut segment, 50);
    let wish = message(DhcpMessageType::Discover).wants(at(40));
    let offer = say(&mut segment, &wish);
    assert_eq!((offer.address, offer.option(3)), (SANDBOX_V4, Some(&GATEWAY_V4.octets()[..])));
    assert_eq!(say(&mut segment, &message(DhcpMessageType::Request).wants(SANDBOX_V4)).kind, DhcpMessageType::Ack);
    assert_eq!(say(&mut segment, &message(DhcpMessageType::Request).wants(at(40))).kind, DhcpMessageType::Nak);
    let stranger = Message { mac: OTHER, ..message(DhcpMessageType::Discover) };
    assert_eq!(feed(&mut segment, PEER.port, &stranger.packet()), Err(DropReason::Spoofed));
    segment.network.sharing = Some(crate::plan::Sharing { internal: true, icc: true });
    assert_eq!(say(&mut segment, &message(DhcpMessageType::Discover)).option(3), None, "no way out");
}

#[test]
fn a_wish_is_granted_where_it_is_free() {
    let mut segment = segment(1500);
    wide(&mut segment, 50);
    say(&mut segment, &message(DhcpMessageType::Discover));
    let wish = Message { mac: OTHER, ..message(DhcpMessageType::Discover) }.wants(at(40));
    assert_eq!(say(&mut segment, &wish).address, at(40));
}

#[test]
fn declined_addresses_are_avoided_until_nothing_else_is_left() {
    let mut segment = segment(1500);
    segment.network.v4.as_mut().unwrap().dhcp_range = (at(100), at(101));
    say(&mut segment, &message(DhcpMessageType::Discover));
    let decline = |ip| message(DhcpMessageType::Decline).wants(ip).with(54, &GATEWAY_V4.octets());
    assert_eq!(feed(&mut segment, PEER.port, &decline(SANDBOX_V4).packet()), Ok(None));
    assert_eq!(say(&mut segment, &message(DhcpMessageType::Discover)).address, at(101));
    // Somebody else's address cannot be declined.
    assert_eq!(feed(&mut segment, PEER.port, &decline(at(77)).packet()), Ok(None));
    assert_eq!(segment.leases.declined, [SANDBOX_V4]);
    assert_eq!(feed(&mut segment, PEER.port, &decline(at(101)).packet()), Ok(None));
    assert_eq!(say(&mut segment, &message(DhcpMessageType::Discover)).address, SANDBOX_V4);
}

#[test]
fn a_released_address_is_free_again() {
    let mut segment = segment(1500);
    say(&mut segment, &message(DhcpMessageType::Discover));
    let release = Message { current: SANDBOX_V4, ..message(DhcpMessageType::Release) };
    assert_eq!(feed(&mut segment, PEER.port, &release.packet()), Ok(None));
    let other = Message { mac: OTHER, ..message(DhcpMessageType::Request) };
    assert_eq!(say(&mut segment, &other.wants(SANDBOX_V4)).kind, DhcpMessageType::Ack);
}

#[test]
fn inform_is_answered_without_an_address() {
    let mut segment = segment(1500);
    let ack = say(&mut segment, &Message { current: at(9), ..message(DhcpMessageType::Inform) });
    assert_eq!((ack.kind, ack.address, ack.to), (DhcpMessageType::Ack, Ipv4Addr::UNSPECIFIED, at(9)));
    assert_eq!((ack.option(51), ack.option(6)), (None, Some(&DNS_V4.octets()[..])));
    assert!(segment.leases.bindings.is_empty());
}

#[test]
fn a_request_to_another_server_is_left_to_it() {
    let mut segment = segment(1500);
    say(&mut segment, &message(DhcpMessageType::Discover));
    let request = message(DhcpMessageType::Request).wants(SANDBOX_V4).with(54, &[10, 0, 2, 9]);
    assert_eq!(feed(&mut segment, PEER.port, &request.packet()), Ok(None));
    assert!(segment.leases.bindings.is_empty());
}

#[test]
fn a_long_search_list_is_cut_to_what_the_client_takes() {
    let mut segment = segment(1500);
    segment.network.dns_search = (0..40).map(|i| format!("domain-number-{i}.example.org")).collect();
    let small = say(&mut segment, &message(DhcpMessageType::Discover));
    assert!(small.dhcp.len() <= MAX_MESSAGE);
    assert_eq!(small.option(119), None);
    let large = say(&mut segment, &message(DhcpMessageType::Discover).with(57, &1500u16.to_be_bytes()));
    let lengths: Vec<usize> = large.options.iter().filter(|(c, _)| *c == 119).map(|(_, d)| d.len()).collect();
    assert_eq!(lengths.len(), 2);
    assert_eq!(lengths[0], 255);
}

#[test]
fn names_that_are_none_are_left_out() {
    let names = ["", ".", "a..b", &"x".repeat(64), "good.", &"long.".repeat(60)].map(str::to_owned);
    assert_eq!(encode_domains(&names, 1000), b"\x04good\0");
    assert_eq!(encode_domains(&names, 5), b"");
}

#[test]
fn malformed_messages_are_dropped() {
    let mut segment = segment(1500);
    let right = message(DhcpMessageType::Discover);
    let whole = right.packet();
    for length in 0..whole.len() - 1 {
        // The headers say what is there, the message is cut.
        let cut = &right.bytes()[..length.saturating_sub(28).min(239)];
        let mut packet = Vec::new();
        let to = Ipv4Addr::BROADCAST.octets();
        etherparse::PacketBuilder::ipv4([0; 4], to, 64).udp(68, 67).write(&mut packet, cut).unwrap();
        assert_eq!(feed(&mut segment, PEER.port, &packet), Err(DropReason::Malformed));
    }
    let mut wrong = whole.clone();
    wrong[28 + 100] ^= 1;
    assert_eq!(feed(&mut segment, PEER.port, &wrong), Err(DropReason::Checksum));
    let malformed = Err(DropReason::Malformed);
    for wrong in [
        right.bytes().len().to_be_bytes().to_vec(),
        [[2].as_slice(), &right.bytes()[1..]].concat(),
        [[1, 6].as_slice(), &right.bytes()[2..]].concat(),
        [&right.bytes()[..236], &[0; 8]].concat(),
        Message { mac: MacAddr::BROADCAST, ..message(DhcpMessageType::Discover) }.bytes(),
        message(DhcpMessageType::Discover).with(50, &[1]).bytes(),
        message(DhcpMessageType::Request).bytes(),
        message(DhcpMessageType::Inform).bytes(),
    ] {
        let mut packet = Vec::new();
        let to = Ipv4Addr::BROADCAST.octets();
        etherparse::PacketBuilder::ipv4([0; 4], to, 64).udp(68, 67).write(&mut packet, &wrong).unwrap();
        assert_eq!(feed(&mut segment, PEER.port, &packet), malformed);
    }
    let offer = message(DhcpMessageType::Offer).packet();
    assert_eq!(feed(&mut segment, PEER.port, &offer), Err(DropReason::Spoofed));
}

#[test]
fn other_datagrams_without_an_address_are_spoofed() {
    let mut packet = Vec::new();
    let builder = etherparse::PacketBuilder::ipv4([0; 4], [192, 0, 2, 1], 64).udp(68, 67);
    builder.write(&mut packet, &message(DhcpMessageType::Discover).bytes()).unwrap();
    assert_eq!(feed(&mut segment(1500), PEER.port, &packet), Err(DropReason::Spoofed));
    let mut packet = Vec::new();
    let builder = etherparse::PacketBuilder::ipv4([0; 4], [255; 4], 64).udp(68, 69);
    builder.write(&mut packet, b"no dhcp").unwrap();
    assert_eq!(feed(&mut segment(1500), PEER.port, &packet), Err(DropReason::Spoofed));
}
