//! Where sandboxes do not reach each other: A has a link to B, which exposes 80/tcp and 53/udp; C has none.
use super::*;
use crate::datapath::linked_flows::MOST_FLOWS;

const REFUSED: Way = Way::Refused;
const ISOLATED: Way = Way::Nowhere(DropReason::Isolated);

/// A, linked to B; B; C.
pub fn linked() -> [Endpoint; 3] {
    let exposed = [(80, Protocol::Tcp), (53, Protocol::Udp)]
        .map(|(port, protocol)| Expose { ports: PortRange { first: port, last: port }, protocol });
    let links = vec![SandboxLink { sandbox: "b".into(), alias: Some("web".into()) }];
    [
        Endpoint { links, ..endpoint(A) },
        Endpoint { exposed: exposed.to_vec(), ..endpoint(B) },
        Endpoint { exposed: exposed.to_vec(), ..endpoint(C) },
    ]
}

fn test() -> Test {
    Test::with(false, linked())
}

fn error_about(packet: &[u8], v4: bool) -> (u8, Vec<u8>) {
    let head = if v4 { [3, 3, 0, 0, 0, 0, 0, 0] } else { [1, 4, 0, 0, 0, 0, 0, 0] };
    (if v4 { ICMP } else { ICMPV6 }, [&head[..], packet].concat())
}

#[test]
fn without_a_link_nobody_is_reached_or_even_found() {
    let mut test = test();
    for (from, to) in [(A, C), (C, A), (B, C), (C, B)] {
        for (src, dst) in pairs(from, to) {
            test.goes(from, &ip_frame(from, mac(to), src, dst, TCP, &tcp(1, 80, SYN)), REFUSED);
            test.goes(from, &ip_frame(from, mac(to), src, dst, TCP, &tcp(80, 1, ACK)), ISOLATED);
            test.goes(from, &ip_frame(from, mac(to), src, dst, UDP, &udp(1, 53)), REFUSED);
            test.goes(from, &ip_frame(from, mac(to), src, dst, 132, &[0; 12]), ISOLATED);
            let (protocol, kind) = if src.is_ipv4() { (ICMP, 8) } else { (ICMPV6, 128) };
            let ping = ip_frame(from, mac(to), src, dst, protocol, &[kind, 0, 0, 0, 0, 1, 0, 1]);
            test.goes(from, &ping, REFUSED);
        }
    }
    test.goes(A, &arp(A, MacAddr::BROADCAST, 1, (mac(A), "10.0.2.100"), "10.0.2.102"), ISOLATED);
    test.goes(A, &arp(A, mac(C), 2, (mac(A), "10.0.2.100"), "10.0.2.102"), ISOLATED);
    let question = ndp(A, ALL_NODES_MAC, ("fd00::100", "ff02::1:ff00:102"), 135, Some("fd00::102"), &[]);
    test.goes(A, &question, ISOLATED);
    let answer = ndp(A, mac(C), ("fd00::100", "fd00::102"), 136, Some("fd00::100"), &[]);
    test.goes(A, &answer, ISOLATED);
    // Nothing is flooded, but what the gateway answers reaches it.
    let broadcast = ip_frame(A, MacAddr::BROADCAST, v4(A), Ipv4Addr::BROADCAST.into(), UDP, &udp(1, 2));
    test.goes(A, &broadcast, ISOLATED);
    test.goes(A, &arp(A, MacAddr::BROADCAST, 1, (mac(A), "10.0.2.100"), "10.0.2.100"), ISOLATED);
    let ping = ip_frame(A, ALL_NODES_MAC, v6(A), "ff02::1".parse().unwrap(), ICMPV6, &[128, 0, 0, 0, 0, 1, 0, 1]);
    test.goes(A, &ping, Way::Gateway);
    test.goes(A, &arp(A, MacAddr::BROADCAST, 1, (mac(A), "10.0.2.100"), GATEWAY), Way::Gateway);
    test.goes(A, &ip_frame(A, gateway_mac(), v4(A), GATEWAY.parse().unwrap(), UDP, &udp(1, 53)), Way::Gateway);
}

#[test]
fn a_link_opens_the_exposed_ports_in_its_direction_and_answers_come_back() {
    let mut test = test();
    for (src, dst) in pairs(A, B) {
        let there = |protocol, payload: Vec<u8>| ip_frame(A, mac(B), src, dst, protocol, &payload);
        let back = |protocol, payload: Vec<u8>| ip_frame(B, mac(A), dst, src, protocol, &payload);
        test.goes(A, &there(TCP, tcp(4000, 81, SYN)), REFUSED);
        test.goes(A, &there(UDP, udp(4000, 80)), REFUSED);
        test.goes(B, &back(TCP, tcp(80, 4000, SYN)), REFUSED);
        test.goes(B, &back(TCP, tcp(80, 4000, SYN | ACK)), ISOLATED);
        test.goes(B, &back(UDP, udp(53, 4000)), REFUSED);
        test.goes(A, &there(TCP, tcp(4000, 80, SYN)), Way::Port(B));
        test.goes(B, &back(TCP, tcp(80, 4000, SYN | ACK)), Way::Port(A));
        test.goes(A, &there(TCP, tcp(4000, 80, ACK)), Way::Port(B));
        test.goes(B, &back(TCP, tcp(80, 4000, FIN | ACK)), Way::Port(A));
        test.goes(B, &back(TCP, tcp(80, 4001, SYN | ACK)), ISOLATED);
        test.goes(A, &there(UDP, udp(4000, 53)), Way::Port(B));
        test.goes(B, &back(UDP, udp(53, 4000)), Way::Port(A));
        test.goes(B, &back(UDP, udp(53, 4001)), REFUSED);
        let (protocol, kind) = if src.is_ipv4() { (ICMP, 8) } else { (ICMPV6, 128) };
        test.goes(A, &there(protocol, vec![kind, 0, 0, 0, 0, 1, 0, 1]), REFUSED);
        // Behind B's Ethernet address there is only B.
        let (_, stranger) = pairs(A, C)[usize::from(src.is_ipv6())];
        test.goes(A, &ip_frame(A, mac(B), src, stranger, TCP, &tcp(1, 80, SYN)), ISOLATED);
    }
    // Each finds the other.
    test.goes(A, &arp(A, MacAddr::BROADCAST, 1, (mac(A), "10.0.2.100"), "10.0.2.101"), Way::Port(B));
    test.goes(B, &arp(B, mac(A), 2, (mac(B), "10.0.2.101"), "10.0.2.100"), Way::Port(A));
    test.goes(B, &ndp(B, mac(A), ("fd00::101", "fd00::100"), 135, Some("fd00::100"), &[]), Way::Port(A));
    test.goes(A, &ndp(A, mac(B), ("fd00::100", "fd00::101"), 136, Some("fd00::100"), &[]), Way::Port(B));
}

#[test]
fn errors_pass_with_the_packets_that_they_quote() {
    let mut test = test();
    for (src, dst) in pairs(A, B) {
        let v4 = src.is_ipv4();
        let sent = |protocol, payload: &[u8]| ip_frame(A, mac(B), src, dst, protocol, payload);
        let error = |packet: &[u8]| {
            let (protocol, message) = error_about(packet, v4);
            ip_frame(B, mac(A), dst, src, protocol, &message)
        };
        let (question, other) = (sent(UDP, &udp(4000, 53)), sent(UDP, &udp(4001, 53)));
        test.goes(B, &error(&question[14..]), ISOLATED);
        test.goes(A, &question, Way::Port(B));
        test.goes(B, &error(&question[14..]), Way::Port(A));
        test.goes(B, &error(&other[14..]), ISOLATED);
        test.goes(A, &sent(TCP, &tcp(4000, 80, SYN)), Way::Port(B));
        test.goes(B, &error(&sent(TCP, &tcp(4000, 80, ACK))[14..]), Way::Port(A));
        // About an answer, from the one that asked.
        let answer = ip_frame(B, mac(A), dst, src, UDP, &udp(53, 4000));
        let (protocol, message) = error_about(&answer[14..], v4);
        test.goes(A, &ip_frame(A, mac(B), src, dst, protocol, &message), Way::Port(B));
        // About what the receiver has not sent.
        test.goes(B, &error(&answer[14..]), ISOLATED);
        for len in 14..14 + if v4 { 23 } else { 43 } {
            test.goes(B, &error(&question[14..len]), ISOLATED);
        }
        // Other messages pass with nothing.
        let other = if v4 { [13, 0, 0, 0, 0, 0, 0, 0] } else { [100, 0, 0, 0, 0, 0, 0, 0] };
        let message = [&other[..], &question[14..]].concat();
        test.goes(B, &ip_frame(B, mac(A), dst, src, protocol, &message), ISOLATED);
    }
}

#[test]
fn later_fragments_pass_with_their_first() {
    let mut test = test();
    let datagram = |port| [&udp(4000, port)[..], &[0; 40]].concat();
    type Split = fn(PortId, PortId, u8, u16, &[u8], usize) -> [Vec<u8>; 2];
    let split6: Split =
        |from, to, protocol, id, payload, first| fragments6(from, to, protocol, id.into(), payload, first);
    for split in [fragments as Split, split6] {
        let [first, later] = split(A, B, UDP, 7, &datagram(53), 16);
        test.goes(A, &later, ISOLATED);
        test.goes(A, &first, Way::Port(B));
        test.goes(A, &later, Way::Port(B));
        let [_, other] = split(A, B, UDP, 8, &datagram(53), 16);
        test.goes(A, &other, ISOLATED);
        let [first, later_of_refused] = split(A, B, UDP, 9, &datagram(99), 16);
        test.goes(A, &first, REFUSED);
        test.goes(A, &later_of_refused, ISOLATED);
        let [_, strangers] = split(C, B, UDP, 7, &datagram(53), 16);
        test.goes(C, &strangers, ISOLATED);
        let [_, back] = split(B, A, UDP, 7, &datagram(53), 16);
        test.goes(B, &back, ISOLATED);
        let [first, _] = split(A, B, TCP, 10, &[&tcp(4000, 80, SYN)[..], &[0; 40]].concat(), 8);
        test.dropped(A, &first, DropReason::Malformed);
        test.now += Duration::from_secs(61);
        test.goes(A, &later, ISOLATED);
    }
}

#[test]
fn a_connection_that_is_older_than_the_switch_goes_on() {
    let mut test = test();
    let there = |flags| ip_frame(A, mac(B), v4(A), v4(B), TCP, &tcp(4001, 80, flags));
    let back = |port, flags| ip_frame(B, mac(A), v4(B), v4(A), TCP, &tcp(80, port, flags));
    test.goes(B, &back(4000, ACK), Way::Port(A));
    test.goes(A, &ip_frame(A, mac(B), v4(A), v4(B), TCP, &tcp(4000, 80, ACK)), Way::Port(B));
    test.goes(A, &there(ACK), Way::Port(B));
    test.goes(B, &back(4001, ACK), Way::Port(A));
    assert_eq!(test.switch.flows.len(), (2, 0));
}

#[test]
fn a_sandbox_that_comes_back_with_another_address_is_reached_and_its_heir_is_not() {
    let mut test = test();
    let syn = |to| ip_frame(A, mac(to), v4(A), v4(to), TCP, &tcp(4000, 80, SYN));
    let ack = ip_frame(A, mac(B), v4(A), v4(B), TCP, &tcp(4000, 80, ACK));
    test.goes(A, &syn(B), Way::Port(B));
    test.switch.leave(B);
    let back = PortId(4);
    let [_, b, c] = linked();
    test.switch.add_port(test.now, back, Endpoint { name: "b".into(), exposed: b.exposed, ..endpoint(back) });
    test.goes(A, &syn(back), Way::Port(back));
    // Somebody else has the old address now, at the same port of the switch.
    test.switch.remove_port(B);
    test.switch.add_port(test.now, B, Endpoint { name: "heir".into(), exposed: c.exposed, ..endpoint(B) });
    test.goes(A, &syn(B), REFUSED);
    test.goes(A, &ack, ISOLATED);
    test.goes(B, &ip_frame(B, mac(A), v4(B), v4(A), TCP, &tcp(80, 4000, ACK)), ISOLATED);
    assert_eq!(test.switch.flows.len(), (1, 0));
}

#[test]
fn flows_end_by_being_idle_and_are_bounded() {
    let mut test = test();
    let question = |port| ip_frame(A, mac(B), v4(A), v4(B), UDP, &udp(port, 53));
    let answer = |port| ip_frame(B, mac(A), v4(B), v4(A), UDP, &udp(53, port));
    let pass = |test: &mut Test, seconds| test.now += Duration::from_secs(seconds);
    test.goes(A, &question(1), Way::Port(B));
    pass(&mut test, 31);
    test.goes(B, &answer(1), REFUSED);
    test.goes(A, &question(1), Way::Port(B));
    test.goes(B, &answer(1), Way::Port(A));
    pass(&mut test, 179);
    test.goes(B, &answer(1), Way::Port(A));
    pass(&mut test, 181);
    test.goes(B, &answer(1), REFUSED);
    assert_eq!(test.switch.flows.len(), (0, 0));

    let there = |flags| ip_frame(A, mac(B), v4(A), v4(B), TCP, &tcp(1, 80, flags));
    let back = |flags| ip_frame(B, mac(A), v4(B), v4(A), TCP, &tcp(80, 1, flags));
    test.goes(A, &there(SYN), Way::Port(B));
    test.goes(B, &back(SYN | ACK), Way::Port(A));
    pass(&mut test, 7000);
    test.goes(B, &back(SYN | ACK), Way::Port(A));
    test.goes(A, &there(RST), Way::Port(B));
    pass(&mut test, 241);
    test.goes(B, &back(SYN | ACK), ISOLATED);
    assert_eq!(test.switch.flows.len(), (0, 0));

    for port in 0..=MOST_FLOWS as u16 {
        test.goes(A, &question(1000 + port), Way::Port(B));
    }
    assert_eq!(test.switch.flows.len(), (0, MOST_FLOWS));
    test.goes(B, &answer(1000), REFUSED);
    test.goes(B, &answer(1001), Way::Port(A));
    test.switch.remove_port(A);
    assert_eq!(test.switch.flows.len(), (0, 0));
}
