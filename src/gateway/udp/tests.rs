use proptest::prelude::*;

use super::*;
use crate::gateway::emit::testing::{PEER, network};
use crate::gateway::link::Offload;
use crate::gateway::testing::{HOST_V4, HOST_V6, Test, udp_frame};
use crate::plan::{HostView, Network};

const A: &str = "10.0.2.100:4000";
const A6: &str = "[fd00::100]:4000";

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

/// The host got an answer for the flow that sent last.
fn answer(test: &mut Test, from: &str, payload: &[u8]) {
    let flow = test.host.udp.last().unwrap().flow;
    test.gateway.handle_udp(test.now, flow, at(from), payload, 0, 0, &mut test.link);
}

#[test]
fn one_flow_for_all_destinations_and_answers_only_from_them() {
    for (from, one, two, stranger) in [
        (A, "192.0.2.1:53", "192.0.2.2:99", "192.0.2.3:53"),
        (A6, "[2001:db8::1]:53", "[2001:db8::2]:99", "[2001:db8::3]:53"),
    ] {
        let mut test = Test::new();
        test.udp(from, one, b"to one");
        test.udp(from, two, b"to two");
        let [first, second] = &test.host.udp[..] else { panic!() };
        assert_eq!(first.flow, second.flow);
        assert_eq!((first.to, &first.payload[..], first.hop_limit), (at(one), &b"to one"[..], 7));
        assert_eq!((second.to, &second.payload[..]), (at(two), &b"to two"[..]));
        assert_eq!(test.gateway.counters().udp_flows, 1);
        answer(&mut test, one, b"answer");
        assert_eq!(test.received(), (at(one), at(from), b"answer".to_vec()));
        answer(&mut test, stranger, b"attack");
        assert!(test.link.frames.is_empty());
        assert_eq!(test.dropped(DropReason::Unsolicited), 1);
    }
}

#[test]
fn a_datagram_to_the_gateway_with_no_hop_left_is_sent_with_one() {
    let mut test = Test::new();
    test.frame(Offload::default(), &udp_frame(A, "10.0.2.2:9", 0, b"data"));
    assert_eq!(test.host.udp[0].hop_limit, 1);
}

#[test]
fn the_gateways_address_leads_to_the_host_and_answers_come_from_it() {
    let mut test = Test::new();
    test.udp(A, "10.0.2.2:7", b"x");
    let host = format!("{HOST_V4}:7");
    assert_eq!((test.host.udp[0].to, test.host.udp[0].hop_limit), (at(&host), 8), "no hop away");
    answer(&mut test, &host, b"y");
    assert_eq!(test.received(), (at("10.0.2.2:7"), at(A), b"y".to_vec()));
    // The same service asked directly by the same flow: its own address, from then on.
    test.udp(A, &host, b"x");
    answer(&mut test, &host, b"y");
    assert_eq!(test.received().0, at(&host));
    test.udp(A6, "[fd00::2]:7", b"x");
    let host = format!("[{HOST_V6}]:7");
    assert_eq!(test.host.udp[2].to, at(&host));
    answer(&mut test, &host, b"y");
    assert_eq!(test.received().0, at("[fd00::2]:7"));
}

#[test]
fn with_host_loopback_the_gateways_address_leads_there_and_follows_a_change_otherwise() {
    let mut open = network(1500);
    open.host_loopback_allowed = true;
    let mut test = Test::with(open, HostView::default());
    test.udp(A, "10.0.2.2:7", b"x");
    assert_eq!(test.host.udp[0].to, at("127.0.0.1:7"));
    answer(&mut test, "127.0.0.1:7", b"y");
    assert_eq!(test.received().0, at("10.0.2.2:7"));
    let mut test = Test::new();
    test.udp(A, "10.0.2.2:7", b"x");
    test.gateway.handle_host_changed(HostView { v4: "203.0.113.9".parse().ok(), ..HostView::default() });
    test.udp(A, "10.0.2.2:7", b"x");
    assert_eq!(test.host.udp[1].to, at("203.0.113.9:7"));
}

#[test]
fn refused_destinations_are_answered_and_cost_no_flow() {
    for (from, to, kind, code) in [
        (A, "127.0.0.1:7", 3, 13),
        (A, "169.254.169.254:80", 3, 13),
        (A, "10.0.2.50:7", 3, 1),
        (A6, "[::1]:7", 1, 1),
        (A6, "[::ffff:192.0.2.1]:7", 1, 1),
    ] {
        let mut test = Test::new();
        test.udp(from, to, b"x");
        let (_, got_kind, got_code, _, quoted) = test.error();
        assert_eq!((got_kind, got_code), (kind, code), "{to}");
        let frame = udp_frame(from, to, 8, b"x");
        assert_eq!(quoted, &frame[14..]);
        assert_eq!((test.dropped(DropReason::Refused), test.gateway.flows().1), (1, 0));
        assert!(test.host.udp.is_empty());
    }
}

#[test]
fn without_a_host_address_the_gateways_address_is_net_unreachable() {
    let mut test = Test::with(network(1500), HostView::default());
    test.udp(A, "10.0.2.2:7", b"x");
    assert_eq!(test.error().1, 3);
    test.udp(A6, "[fd00::2]:7", b"x");
    let (from, kind, code, ..) = test.error();
    assert_eq!((from, kind, code), (at("[fd00::2]:7").ip(), 1, 0));
}

#[test]
fn names_are_asked_of_the_forwarder_and_nothing_else_is_there() {
    let mut test = Test::new();
    test.udp(A, "10.0.2.3:53", b"question");
    let (asker, question) = test.host.queries[0].clone();
    assert_eq!((asker.from, asker.to, &question[..]), (at(A), at("10.0.2.3:53").ip(), &b"question"[..]));
    test.gateway.handle_dns_answer(asker, b"reply", &mut test.link);
    assert_eq!(test.received(), (at("10.0.2.3:53"), at(A), b"reply".to_vec()));
    test.udp(A, "10.0.2.3:54", b"x");
    let (from, kind, code, ..) = test.error();
    assert_eq!((from, kind, code), (at("10.0.2.3:53").ip(), 3, 3));
    test.host.dns_full = true;
    test.udp(A, "10.0.2.3:53", b"question");
    assert_eq!(test.dropped(DropReason::DnsOverload), 1);
    let mut off = network(1500);
    off.dns_enabled = false;
    let mut test = Test::with(off, HostView::default());
    test.udp(A, "10.0.2.3:53", b"question");
    assert_eq!((test.error().2, test.host.queries.len()), (3, 0));
}

#[test]
fn idle_flows_end_sooner_when_they_only_asked_for_names() {
    // Without IPv6 there are no router advertisements to be due as well.
    let mut test = Test::with(Network { v6: None, ..network(1500) }, HostView::default());
    test.udp(A, "192.0.2.1:53", b"x");
    test.udp("10.0.2.100:4001", "192.0.2.1:54", b"x");
    let dns = test.host.udp[0].flow;
    let begun = test.now;
    assert_eq!(test.gateway.udp.next_timeout(), Some(begun + Duration::from_secs(10)));
    test.pass(Duration::from_secs(9));
    test.gateway.handle_udp(test.now, dns, at("192.0.2.1:53"), b"y", 0, 0, &mut test.link);
    test.pass(Duration::from_secs(9));
    assert!(test.host.udp_closed.is_empty(), "an answer keeps a flow");
    test.pass(Duration::from_secs(1));
    assert_eq!(test.host.udp_closed, [dns]);
    test.pass(Duration::from_secs(160));
    assert_eq!(test.gateway.flows().1, 1);
    test.pass(Duration::from_secs(1));
    assert_eq!((test.gateway.flows().1, test.gateway.udp.next_timeout()), (0, None));
    // Late, for a flow that has ended: nothing.
    test.link.frames.clear();
    test.gateway.handle_udp(test.now, dns, at("192.0.2.1:53"), b"y", 0, 0, &mut test.link);
    assert!(test.link.frames.is_empty());
}

#[test]
fn a_flow_that_asked_for_names_and_more_stays_long() {
    let mut test = Test::new();
    test.udp(A, "192.0.2.1:53", b"x");
    test.udp(A, "192.0.2.1:443", b"x");
    test.udp(A, "192.0.2.1:53", b"x");
    test.pass(Duration::from_secs(179));
    assert_eq!(test.gateway.flows().1, 1);
}

#[test]
fn at_the_bound_the_flow_idle_longest_goes() {
    let mut test = Test::new();
    test.gateway.udp.most_flows = 2;
    test.udp("10.0.2.100:1", "192.0.2.1:9", b"x");
    test.udp("10.0.2.100:2", "192.0.2.1:9", b"x");
    test.udp("10.0.2.100:1", "192.0.2.1:9", b"x");
    test.udp("10.0.2.100:3", "192.0.2.1:9", b"x");
    assert_eq!(test.host.udp_closed, [test.host.udp[1].flow]);
    assert_eq!((test.host.udp.len(), test.gateway.flows().1), (4, 2));
}

#[test]
fn without_descriptors_the_flow_idle_longest_goes_and_the_first_is_refused() {
    let mut test = Test::new();
    test.host.fail = [HostError::Exhausted].into();
    test.udp("10.0.2.100:1", "192.0.2.1:9", b"x");
    assert_eq!((test.dropped(DropReason::FlowLimit), test.gateway.flows().1), (1, 0));
    test.udp("10.0.2.100:1", "192.0.2.1:9", b"x");
    test.host.fail = [HostError::Exhausted].into();
    test.udp("10.0.2.100:2", "192.0.2.1:9", b"y");
    assert_eq!((test.host.udp.len(), test.gateway.flows().1), (2, 1), "sent at the second try");
    test.host.fail = [HostError::Exhausted].into();
    test.udp("10.0.2.100:2", "192.0.2.1:9", b"y");
    assert_eq!((test.dropped(DropReason::NoRoom), test.gateway.flows().1), (1, 1), "a full socket ends no flow");
}

#[test]
fn what_the_host_says_to_a_send_reaches_the_sandbox() {
    for (error, v4, v6) in [
        (HostError::NetUnreachable, (3, 0, 0), (1, 0, 0)),
        (HostError::HostUnreachable, (3, 1, 0), (1, 3, 0)),
        (HostError::Prohibited, (3, 13, 0), (1, 1, 0)),
        (HostError::TooBig(1400), (3, 4, 1400), (2, 0, 1400)),
    ] {
        for (from, to, expected) in [(A, "192.0.2.1:9", v4), (A6, "[2001:db8::1]:9", v6)] {
            let mut test = Test::new();
            test.host.fail = [error].into();
            test.udp(from, to, b"x");
            let (_, kind, code, rest, _) = test.error();
            assert_eq!((kind, code, rest), expected);
            assert_eq!(test.dropped(DropReason::HostError), 1);
        }
    }
}

#[test]
fn what_could_not_be_sent_later_is_told_as_if_it_had_been_at_once() {
    let payload = [7; 1400];
    for (error, v4, v6, reason) in [
        (HostError::NetUnreachable, Some((3, 0, 0)), Some((1, 0, 0)), DropReason::HostError),
        (HostError::TooBig(1300), Some((3, 4, 1300)), Some((2, 0, 1300)), DropReason::HostError),
        (HostError::Exhausted, None, None, DropReason::NoRoom),
    ] {
        for (from, named, to, expected) in
            [(A, "10.0.2.2:9", format!("{HOST_V4}:9"), v4), (A6, "[2001:db8::1]:9", "[2001:db8::1]:9".to_owned(), v6)]
        {
            let mut at_once = Test::new();
            at_once.udp(from, named, &payload);
            let flow = at_once.host.udp[0].flow;
            at_once.host.fail = [error].into();
            at_once.udp(from, named, &payload);
            let mut later = Test::new();
            later.udp(from, named, &payload);
            let unsent = Unsent { flow, to: at(&to), error, datagrams: 3, payload: &payload };
            later.gateway.handle_udp_unsent(later.now, unsent, &mut later.link);
            assert_eq!((at_once.dropped(reason), later.dropped(reason)), (1, 3));
            let Some(expected) = expected else {
                assert!(at_once.link.frames.is_empty() && later.link.frames.is_empty());
                continue;
            };
            let (told_at_once, told_later) = (at_once.error(), later.error());
            assert_eq!((told_later.1, told_later.2, told_later.3), expected);
            assert_eq!((told_at_once.0, told_at_once.1), (told_later.0, told_later.1));
            // Addresses, ports, length: the hop limit and what hangs on it differ.
            let header = if from == A { 12 } else { 8 };
            let rest = told_at_once.4.len().min(told_later.4.len());
            assert!(rest > 500 && told_at_once.4[header..rest] == told_later.4[header..rest]);
            let gone = Unsent { flow: UdpId { generation: flow.generation + 1, ..flow }, ..unsent };
            later.gateway.handle_udp_unsent(later.now, gone, &mut later.link);
            assert!(later.link.frames.is_empty(), "nobody is left to be told");
        }
    }
}

#[test]
fn each_datagram_that_a_full_link_costs_is_counted() {
    let mut test = Test::new();
    test.udp(A, "192.0.2.1:9", b"x");
    test.link.full = true;
    answer(&mut test, "192.0.2.1:9", b"x");
    let flow = test.host.udp[0].flow;
    test.gateway.handle_udp(test.now, flow, at("192.0.2.1:9"), &[0; 2001], 1000, 0, &mut test.link);
    assert_eq!((test.dropped(DropReason::NoRoom), test.link.frames.len()), (4, 0));
}

#[test]
fn errors_from_the_hosts_queue_quote_the_sandboxs_own_packet() {
    let error = IcmpError::PortUnreachable;
    let own: IpAddr = HOST_V4.parse().unwrap();
    for (named, to, offender, seen_from) in [
        ("192.0.2.1:9", "192.0.2.1:9".to_owned(), "192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:9", "192.0.2.1:9".to_owned(), "203.0.113.1", "203.0.113.1"),
        ("192.0.2.1:9", "192.0.2.1:9".to_owned(), HOST_V4, "10.0.2.2"),
        ("10.0.2.2:9", format!("{own}:9"), HOST_V4, "10.0.2.2"),
    ] {
        let mut test = Test::new();
        test.udp(A, named, b"payload");
        let flow = test.host.udp[0].flow;
        let (offender, to) = (offender.parse().ok(), at(&to));
        test.gateway.handle_udp_error(test.now, flow, to, error, offender, b"payload", &mut test.link);
        let (from, kind, code, _, quoted) = test.error();
        assert_eq!((from, kind, code), (seen_from.parse().unwrap(), 3, 3));
        let packet = etherparse::SlicedPacket::from_ip(&quoted).unwrap();
        let Some(etherparse::TransportSlice::Udp(udp)) = packet.transport else { panic!() };
        assert_eq!((udp.source_port(), udp.destination_port(), udp.payload()), (4000, 9, &b"payload"[..]));
        let Some(etherparse::NetSlice::Ipv4(ip)) = packet.net else { panic!() };
        assert_eq!(IpAddr::from(ip.header().source_addr()), at(A).ip());
        assert_eq!(IpAddr::from(ip.header().destination_addr()), at(named).ip());
    }
}

#[test]
fn a_spent_hop_limit_is_the_gateways_to_tell_except_on_the_way_to_itself() {
    let mut test = Test::new();
    test.frame(Offload::default(), &udp_frame(A, "192.0.2.1:33434", 1, b"x"));
    let (from, kind, code, ..) = test.error();
    assert_eq!((from, kind, code), (at("10.0.2.2:1").ip(), 11, 0));
    assert_eq!((test.dropped(DropReason::HopLimit), test.gateway.flows().1), (1, 0));
    test.frame(Offload::default(), &udp_frame(A, "10.0.2.2:33434", 1, b"x"));
    assert_eq!(test.host.udp.len(), 1);
}

#[test]
fn checksums_are_verified_where_nobody_vouches_for_them() {
    let mut test = Test::new();
    let good = udp_frame(A, "192.0.2.1:9", 8, b"data");
    let (mut bad, mut absent) = (good.clone(), good);
    *bad.last_mut().unwrap() ^= 1;
    test.frame(Offload::default(), &bad);
    assert_eq!((test.dropped(DropReason::Checksum), test.host.udp.len()), (1, 0));
    test.frame(Offload { needs_csum: true, csum_start: 34, csum_offset: 6, ..Offload::default() }, &bad);
    assert_eq!(test.host.udp.len(), 1, "a partial checksum is not verified");
    absent[14 + 20 + 6..14 + 20 + 8].fill(0);
    test.frame(Offload::default(), &absent);
    assert_eq!(test.host.udp.len(), 2, "IPv4 may go without");
    let mut absent = udp_frame(A6, "[2001:db8::1]:9", 8, b"data");
    absent[14 + 40 + 6..14 + 40 + 8].fill(0);
    test.frame(Offload::default(), &absent);
    assert_eq!((test.dropped(DropReason::Checksum), test.host.udp.len()), (2, 2), "IPv6 may not");
}

#[test]
fn super_segments_go_out_as_one_and_come_back_as_one() {
    let mut test = Test::new();
    let payload = [7; 5 * 1000 + 1];
    let offload = Offload { needs_csum: true, gso: Gso::UdpL4, gso_size: 1000, ..Offload::default() };
    test.frame(offload, &udp_frame(A, "192.0.2.1:9", 8, &payload));
    assert_eq!((test.host.udp[0].segment, test.host.udp[0].payload.len()), (1000, payload.len()));
    test.link.udp_super_segments = true;
    let flow = test.host.udp[0].flow;
    test.gateway.handle_udp(test.now, flow, at("192.0.2.1:9"), &payload, 1000, 0, &mut test.link);
    let (_, offload, _) = &test.link.frames[0];
    assert_eq!((test.link.frames.len(), offload.gso, offload.gso_size), (1, Gso::UdpL4, 1000));
    for gso_size in [0, 1] {
        test.frame(Offload { gso_size, ..offload_of(Gso::UdpL4) }, &udp_frame(A, "192.0.2.1:9", 8, &payload));
    }
    test.frame(offload_of(Gso::TcpV4), &udp_frame(A, "192.0.2.1:9", 8, &payload));
    assert_eq!((test.dropped(DropReason::Malformed), test.host.udp.len()), (3, 1));
}

fn offload_of(gso: Gso) -> Offload {
    Offload { needs_csum: true, gso, gso_size: 1000, ..Offload::default() }
}

#[test]
fn empty_and_largest_datagrams_pass_both_ways() {
    let mut test = Test::new();
    for len in [0, 65_507] {
        let payload = vec![3; len];
        test.udp(A, "192.0.2.1:9", &payload);
        assert_eq!(test.host.udp.pop().unwrap().payload, payload);
        test.udp(A, "192.0.2.1:9", b"again");
        answer(&mut test, "192.0.2.1:9", &payload);
        let bytes: usize = test.link.frames.iter().map(|(_, _, frame)| frame.len() - 34).sum();
        assert_eq!(bytes, len + 8, "whole, or in fragments of IP payload");
        test.link.frames.clear();
    }
}

#[test]
fn broadcast_and_multicast_go_nowhere_unless_broadcast_leads_to_the_host() {
    let mut test = Test::new();
    for to in ["255.255.255.255:9", "10.0.2.255:9", "224.0.0.251:5353"] {
        test.udp(A, to, b"x");
    }
    test.udp(A6, "[ff02::fb]:5353", b"x");
    assert_eq!((test.dropped(DropReason::Multicast), test.link.frames.len(), test.host.udp.len()), (4, 0, 0));
    let mut open = network(1500);
    open.broadcast_to_host = true;
    let view = HostView { v4: HOST_V4.parse().ok(), ..HostView::default() };
    let mut test = Test::with(open, view);
    test.udp(A, "255.255.255.255:9", b"x");
    let host = format!("{HOST_V4}:9");
    assert_eq!(test.host.udp[0].to, at(&host));
    answer(&mut test, &host, b"y");
    assert_eq!(test.received().0, at("10.0.2.2:9"));
}

#[test]
fn the_dont_fragment_bit_and_the_type_of_service_go_along() {
    let mut test = Test::new();
    for (tos, flags, expected) in [(0xb9, 0x40, true), (0, 0, false)] {
        let mut frame = udp_frame(A, "192.0.2.1:9", 8, b"x");
        frame[15] = tos;
        frame[20] = flags;
        frame[24..26].fill(0);
        let sum = !emit::fold(u64::from(emit::sum_of(&frame[14..34])));
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        test.frame(Offload::default(), &frame);
        let sent = test.host.udp.pop().unwrap();
        assert_eq!((sent.tos, sent.dont_fragment), (tos, expected));
    }
}

#[test]
fn a_sandbox_that_leaves_takes_its_flows_along() {
    let mut test = Test::new();
    test.udp(A, "192.0.2.1:9", b"x");
    test.udp(A6, "[2001:db8::1]:9", b"x");
    test.gateway.remove_port(PEER.port, &mut test.host);
    assert_eq!((test.host.udp_closed.len(), test.gateway.flows().1), (2, 0));
}

proptest! {
    /// Any bytes at all in place of UDP: dropped or sent, never a panic, never more than was there.
    #[test]
    fn any_bytes_are_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..64), v4: bool) {
        let mut test = Test::new();
        let (from, to) = if v4 { (A, "192.0.2.1:9") } else { (A6, "[2001:db8::1]:9") };
        let mut frame = udp_frame(from, to, 8, &bytes);
        let at = frame.len() - bytes.len() - 8;
        frame[at..].rotate_left(8);
        test.frame(Offload { csum_valid: true, ..Offload::default() }, &frame);
        prop_assert!(test.host.udp.iter().all(|sent| sent.payload.len() <= bytes.len()));
    }
}
