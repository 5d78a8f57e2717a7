//! Clients of published ports: the second stack listens, the gateway connects.
use super::*;
use crate::gateway::emit::testing::frame_from_sandbox;
use crate::gateway::tcp::inbound::Dial;

const V4: &str = "192.0.2.77:40123";
const V6: &str = "[2001:db8::77]:40123";

impl Sim {
    fn listen(&mut self, address: Option<&str>) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 256 * 1024]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_ack_delay(None);
        let addr = address.map(|ip| ip.parse::<IpAddr>().unwrap().into());
        socket.listen(smoltcp::wire::IpListenEndpoint { addr, port: 80 }).unwrap();
        self.sockets.add(socket)
    }

    fn publish_to(&mut self, client: &str) -> Result<TcpId, DropReason> {
        let client = client.parse().unwrap();
        let id = self.gateway.open_published(self.now, PORT, client, 80, &mut self.link)?;
        self.streams.insert(id, FakeStream { takes: usize::MAX, ..FakeStream::default() });
        Ok(id)
    }

    /// The one connection that the sandbox has: its far side.
    fn seen_by(&mut self, handle: SocketHandle) -> Option<SocketAddr> {
        let remote = self.client(handle).remote_endpoint()?;
        Some(SocketAddr::new(remote.addr.into(), remote.port))
    }

    #[track_caller]
    fn assert_nothing_held(&mut self) {
        self.step(Duration::from_secs(20));
        self.step(Duration::from_secs(20));
        for (what, held) in self.gateway.tcp().held() {
            assert_eq!(held, 0, "{what}");
        }
        assert_eq!(self.gateway.segment.kept.count(), 0);
    }

    /// A segment of the sandbox's port 80 for a client over IPv4.
    fn answer(&mut self, client: &str, flags: u8, sequence: u32, acknowledge: u32, options: &[u8]) {
        let client: SocketAddr = client.parse().unwrap();
        let IpAddr::V4(to) = client.ip() else { panic!("{client}") };
        let mut tcp = [&80u16.to_be_bytes()[..], &client.port().to_be_bytes()].concat();
        tcp.extend_from_slice(&sequence.to_be_bytes());
        tcp.extend_from_slice(&acknowledge.to_be_bytes());
        tcp.extend_from_slice(&[(5 + options.len() as u8 / 4) << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend_from_slice(options);
        let from = [10, 0, 2, 100];
        TcpPacket::new_unchecked(&mut tcp[..])
            .fill_checksum(&IpAddress::v4(from[0], from[1], from[2], from[3]), &IpAddr::V4(to).into());
        let mut ip =
            etherparse::Ipv4Header::new(tcp.len() as u16, 64, etherparse::ip_number::TCP, from, to.octets()).unwrap();
        ip.header_checksum = ip.calc_header_checksum();
        self.give_gateway(&[&ip.to_bytes()[..], &tcp].concat());
    }

    /// Flags, sequence and acknowledgement number of the last segment for the sandbox.
    #[track_caller]
    fn last_segment(&mut self) -> (u8, u32, u32) {
        let packet = self.link.packets.pop_back().expect("a segment");
        let tcp = TcpPacket::new_unchecked(&packet[if packet[0] >> 4 == 4 { 20 } else { 40 }..]);
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        let flags = flag(tcp.syn(), SYN) | flag(tcp.rst(), RST) | flag(tcp.ack(), ACK);
        (flags, tcp.seq_number().0 as u32, tcp.ack_number().0 as u32)
    }
}

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Both ways at once, the client's end first or the sandbox's; everything arrives, nothing is left.
fn exchange(mtu: u16, from: &str, trouble: Trouble, len: usize, sandbox_first: bool) -> Sim {
    let mut sim = Sim::new(mtu, trouble);
    let server = sim.listen(None);
    sim.publish_to(from).unwrap();
    let (out, back) = (pattern(len), pattern(len + 1));
    sim.stream().to_give.extend(&back);
    let (mut sent, mut got) = (0, Vec::new());
    sim.run_until("both ways done", |s| {
        let socket = s.client(server);
        if socket.can_send() && sent < out.len() {
            sent += socket.send_slice(&out[sent..]).unwrap();
        }
        while socket.can_recv() {
            socket.recv(|data| (data.len(), got.extend_from_slice(data))).unwrap();
        }
        got.len() == back.len() && s.stream().received.len() == out.len()
    });
    assert!(got == back && sim.stream().received == out, "bytes differ");
    assert_eq!(sim.seen_by(server), Some(from.parse().unwrap()));
    sim.client_spared = true;
    if sandbox_first {
        sim.client(server).close();
        sim.run_until("half-closed", |s| s.stream().write_shut);
        assert_eq!(sim.gateway.flows().0, 1, "the other half is open");
        sim.stream().ended = true;
    } else {
        sim.stream().ended = true;
        sim.run_until("half-closed", |s| s.client(server).state() == tcp::State::CloseWait);
        assert!(sim.ended.is_empty() && sim.client(server).can_send(), "the other half is open");
        sim.client(server).close();
    }
    sim.run_until("closed", |s| !s.ended.is_empty());
    assert_eq!(sim.ended[0].1, End::Closed);
    assert!(sim.stream().write_shut);
    sim.assert_nothing_held();
    sim
}

#[test]
fn bytes_pass_both_ways_under_the_clients_own_address() {
    for mtu in [1500, 65520] {
        for (from, sandbox_first) in [(V4, true), (V4, false), (V6, true), (V6, false)] {
            let sim = exchange(mtu, from, Trouble::none(), 300_000, sandbox_first);
            assert_eq!(sim.link.super_segments > 0, mtu < 65520, "{mtu} {from}");
        }
    }
}

#[test]
fn loss_repetition_and_reordering_change_nothing_for_clients() {
    for seed in 1..6 {
        exchange(1500, V4, Trouble::some(seed), 60_000, seed % 2 == 0);
        exchange(1500, V6, Trouble::some(seed), 60_000, seed % 2 == 1);
    }
}

#[test]
fn the_syn_offers_the_true_segment_size_and_the_answers_is_kept() {
    for (mtu, from, ours) in [(1500, V4, 1460), (1500, V6, 1440), (65520, V4, 65480), (65520, V6, 65460)] {
        let mut sim = Sim::new(mtu, Trouble::none());
        sim.publish_to(from).unwrap();
        let syn = sim.link.packets.pop_front().unwrap();
        let header = if syn[0] >> 4 == 4 { 20 } else { 40 };
        let at = header + wire::mss_option_at(&syn[header..]).unwrap();
        assert_eq!(u16::from_be_bytes([syn[at], syn[at + 1]]), ours, "{mtu} {from}");
    }
    let mut sim = Sim::new(1500, Trouble::none());
    sim.publish_to(V4).unwrap();
    let (flags, isn, _) = sim.last_segment();
    assert_eq!(flags, SYN);
    sim.answer(V4, SYN | ACK, 5000, isn.wrapping_add(1), &[2, 4, 0x02, 0x58, 1, 3, 3, 7]);
    sim.answer(V4, ACK, 5001, isn.wrapping_add(1), &[]);
    sim.stream().to_give.extend(pattern(5000));
    sim.link.packets.clear();
    sim.step(Duration::ZERO);
    let over_v4 = sim.device.incoming.iter().filter(|packet| packet[0] >> 4 == 4);
    let sizes: Vec<usize> = over_v4.map(|packet| packet.len() - 40).filter(|&n| n > 0).collect();
    assert_eq!(sizes, [600, 600, 600, 600, 600, 600, 600, 600, 200], "cut to the 600 that the sandbox asked for");
}

#[test]
fn a_refusal_ends_as_a_reset() {
    for from in [V4, V6] {
        let mut sim = Sim::new(1500, Trouble::none());
        let id = sim.publish_to(from).unwrap();
        sim.run_until("refused", |s| !s.ended.is_empty());
        assert_eq!(sim.ended, [(id, End::ResetBySandbox)]);
        assert!(sim.now - sim.start < Duration::from_millis(100), "at once");
        assert!(!sim.streams[&id].write_shut);
        sim.assert_nothing_held();
    }
}

#[test]
fn a_service_on_one_family_is_found_from_the_other_in_the_gateways_name() {
    for (listens, from, seen) in [("10.0.2.100", V6, "10.0.2.2:40123"), ("fd00::100", V4, "[fd00::2]:40123")] {
        let mut sim = Sim::new(1500, Trouble::none());
        let server = sim.listen(Some(listens));
        sim.publish_to(from).unwrap();
        sim.stream().to_give.extend(b"hello");
        sim.run_until("arrived", |s| s.client(server).recv_queue() == 5);
        assert_eq!(sim.seen_by(server), Some(seen.parse().unwrap()));
        sim.client(server).abort();
        sim.run_until("ended", |s| !s.ended.is_empty());
        sim.assert_nothing_held();
    }
}

#[test]
fn no_answer_is_a_reset_after_half_a_minute_of_asking() {
    let mut sim = Sim::new(1500, Trouble { lose: 1, ..Trouble::none() });
    let id = sim.publish_to(V4).unwrap();
    while sim.ended.is_empty() {
        sim.step(Duration::from_millis(100));
        assert!(sim.now - sim.start < Duration::from_secs(40));
    }
    assert!(sim.now - sim.start > Duration::from_secs(29));
    assert_eq!(sim.ended, [(id, End::ResetByHost)]);
    sim.assert_nothing_held();
}

#[test]
fn clients_whose_address_means_somebody_else_inside_come_as_the_gateway() {
    let unusable = [
        "10.0.2.100:7000",
        "10.0.2.2:7000",
        "10.0.2.3:7000",
        "10.0.2.255:7000",
        "10.0.2.0:7000",
        "127.0.0.1:7000",
        "0.0.0.0:7000",
        "224.0.0.1:7000",
        "255.255.255.255:7000",
    ];
    for from in unusable {
        let mut sim = Sim::new(1500, Trouble::none());
        let server = sim.listen(None);
        sim.publish_to(from).unwrap();
        sim.run_until("open", |s| s.client(server).state() == tcp::State::Established);
        assert_eq!(sim.seen_by(server), Some("10.0.2.2:7000".parse().unwrap()), "{from}");
        assert_eq!(sim.gateway.segment.kept.count(), 0);
    }
    for from in ["[fd00::100]:7000", "[fd00::2]:7000", "[::1]:7000", "[ff02::1]:7000", "[fe80::7:2%3]:7000"] {
        let mut sim = Sim::new(1500, Trouble::none());
        let server = sim.listen(None);
        sim.publish_to(from).unwrap();
        sim.run_until("open", |s| s.client(server).state() == tcp::State::Established);
        let expected = if from.starts_with("[fe80") { "[fe80::7:2]:7000" } else { "[fd00::2]:7000" };
        assert_eq!(sim.seen_by(server), Some(expected.parse().unwrap()), "{from}");
    }
    // A dual-stack listener names IPv4 clients this way.
    let mut sim = Sim::new(1500, Trouble::none());
    let server = sim.listen(None);
    sim.publish_to("[::ffff:192.0.2.77]:7000").unwrap();
    sim.run_until("open", |s| s.client(server).state() == tcp::State::Established);
    assert_eq!(sim.seen_by(server), Some("192.0.2.77:7000".parse().unwrap()));
}

#[test]
fn a_family_that_the_network_has_not_is_replaced_by_the_other() {
    for (from, seen) in [(V4, "[fd00::2]:40123"), (V6, "10.0.2.2:40123")] {
        let mut sim = Sim::new(1500, Trouble::none());
        if from == V4 {
            sim.gateway.segment.network.v4 = None;
        } else {
            sim.gateway.segment.network.v6 = None;
        }
        let server = sim.listen(None);
        sim.publish_to(from).unwrap();
        sim.run_until("open", |s| s.client(server).state() == tcp::State::Established);
        assert_eq!(sim.seen_by(server), Some(seen.parse().unwrap()));
    }
}

#[test]
fn a_stand_ins_port_that_is_taken_is_replaced_and_a_clients_is_not() {
    let mut sim = Sim::new(1500, Trouble::none());
    sim.publish_to("10.0.2.100:7000").unwrap();
    sim.publish_to("10.0.2.3:7000").unwrap();
    let ports: Vec<u16> = sim.gateway.tcp().flows.iter().map(|(_, flow)| flow.key.to.port()).collect();
    assert!(ports.contains(&7000) && ports.iter().any(|&port| port >= 49_152), "{ports:?}");
    sim.publish_to(V4).unwrap();
    assert_eq!(sim.publish_to(V4), Err(DropReason::FlowLimit));
    assert_eq!(sim.gateway.flows().0, 3);
    assert_eq!(
        sim.gateway.open_published(sim.now, PortId(9), V4.parse().unwrap(), 80, &mut sim.link),
        Err(DropReason::NoFlow)
    );
}

#[test]
fn dialing_flows_are_bounded_and_the_open_ones_do_not_count() {
    let mut sim = Sim::new(1500, Trouble::none());
    let server = sim.listen(None);
    sim.publish_to(V4).unwrap();
    sim.run_until("open", |s| s.client(server).state() == tcp::State::Established);
    let mut ids = Vec::new();
    for n in 0..HALF_OPEN_LIMIT {
        let client = SocketAddr::new([198, 51, (n >> 8) as u8, n as u8].into(), 5000);
        ids.push(sim.gateway.open_published(sim.now, PORT, client, 81, &mut sim.link).unwrap());
    }
    assert_eq!(sim.publish_to("192.0.2.78:1"), Err(DropReason::HalfOpenLimit));
    for id in ids {
        sim.gateway.abandon_published(id);
    }
    sim.publish_to("192.0.2.78:1").unwrap();
    assert_eq!(sim.gateway.flows().0, 2);
}

#[test]
fn many_clients_at_once_each_get_their_own_bytes() {
    let mut sim = Sim::new(1500, Trouble::some(3));
    let servers: Vec<SocketHandle> = (0..50).map(|_| sim.listen(None)).collect();
    for n in 0..50u8 {
        let from = if n % 2 == 0 { format!("192.0.2.{n}:9000") } else { format!("[2001:db8::{n}]:9000") };
        let id = sim.publish_to(&from).unwrap();
        sim.streams.get_mut(&id).unwrap().to_give.extend(from.bytes());
    }
    sim.run_until("all have come", |s| {
        servers.iter().all(|&handle| match s.seen_by(handle) {
            Some(from) => s.client(handle).recv_queue() == from.to_string().len(),
            None => false,
        })
    });
    for handle in servers {
        let from = sim.seen_by(handle).unwrap().to_string();
        let mut bytes = vec![0; 100];
        let count = sim.client(handle).recv_slice(&mut bytes).unwrap();
        assert_eq!(bytes[..count], *from.as_bytes());
    }
}

#[test]
fn resets_pass_either_way_and_a_full_sandbox_holds_the_client_back() {
    let mut sim = Sim::new(1500, Trouble::none());
    let server = sim.listen(None);
    let id = sim.publish_to(V4).unwrap();
    sim.stream().to_give.extend(pattern(2 << 20));
    sim.run_until("the window is closed", |s| s.client(server).recv_queue() > 250 * 1024);
    for _ in 0..400 {
        sim.step(Duration::from_millis(5));
    }
    assert!(sim.stream().to_give.len() >= (2 << 20) - 256 * 1024 - RING_BYTES, "the rest waits in the host's socket");
    let mut got = 0;
    sim.run_until("all has come", |s| {
        got += s.client(server).recv(|data| (data.len(), data.len())).unwrap();
        got == 2 << 20
    });
    sim.client(server).abort();
    sim.run_until("reset", |s| !s.ended.is_empty());
    assert_eq!(sim.ended, [(id, End::ResetBySandbox)]);

    let mut sim = Sim::new(1500, Trouble::none());
    let server = sim.listen(None);
    sim.publish_to(V4).unwrap();
    sim.run_until("open", |s| s.client(server).state() == tcp::State::Established);
    sim.stream().broken = true;
    sim.run_until("reset", |s| s.client(server).state() == tcp::State::Closed);
    assert_eq!(sim.ended[0].1, End::ResetByHost);
    sim.assert_nothing_held();
}

#[test]
fn a_client_comes_back_with_the_same_port_while_a_record_is_kept() {
    let mut sim = Sim::new(1500, Trouble::none());
    for _ in 0..3 {
        let server = sim.listen(None);
        sim.streams.clear();
        sim.publish_to(V4).unwrap();
        sim.run_until("open", |s| s.client(server).state() == tcp::State::Established);
        sim.stream().ended = true;
        sim.run_until("half-closed", |s| s.client(server).state() == tcp::State::CloseWait);
        sim.client(server).close();
        sim.run_until("closed", |s| !s.ended.is_empty() && s.client(server).state() == tcp::State::Closed);
        sim.ended.clear();
        assert_eq!(sim.gateway.tcp().time_wait.len(), 1);
    }
}

#[test]
fn a_sandbox_that_remembers_an_earlier_connection_is_asked_again_at_once() {
    let mut sim = Sim::new(1500, Trouble::none());
    let id = sim.publish_to(V4).unwrap();
    let (_, first, _) = sim.last_segment();
    // RFC 9293, 3.5.1: what a socket of an earlier connection answers.
    sim.answer(V4, ACK, 9000, 77, &[]);
    let (flags, second, _) = sim.last_segment();
    assert!(flags == SYN && second != first, "{flags}");
    assert_eq!((sim.last_segment().0, sim.link.packets.len()), (RST, 0), "with the numbers of the earlier one");
    // Once: the next such answer waits for the timer.
    sim.answer(V4, ACK, 9000, 77, &[]);
    assert_eq!(sim.last_segment(), (RST, 77, 0));
    assert!(sim.link.packets.is_empty());
    sim.answer(V4, SYN | ACK, 100, second.wrapping_add(1), &[]);
    assert!(sim.gateway.tcp().flows[id.index as usize].dial.is_none());
    sim.step(Duration::ZERO);
    sim.link.packets.append(&mut sim.device.incoming);
    assert_eq!(sim.last_segment(), (ACK, second.wrapping_add(1), 101));
}

#[test]
fn what_is_no_answer_to_the_syn_changes_nothing() {
    let mut sim = Sim::new(1500, Trouble::none());
    let id = sim.publish_to(V4).unwrap();
    let (_, isn, _) = sim.last_segment();
    let right = isn.wrapping_add(1);
    for (flags, acknowledge, options) in [
        (SYN, 0, &[][..]),
        (RST, 0, &[]),
        (RST | ACK, 5, &[]),
        (ACK, right, &[]),
        (SYN | ACK, right, &[2, 9, 0, 0]),
        (0, 0, &[]),
        (SYN | RST | ACK, right, &[]),
    ] {
        sim.answer(V4, flags, 500, acknowledge, options);
        assert!(sim.link.packets.is_empty(), "{flags}");
        assert!(matches!(sim.gateway.tcp().flows[id.index as usize].dial, Some(Dial { .. })), "{flags}");
    }
    sim.answer(V4, SYN | ACK, 500, right, &[]);
    assert!(sim.gateway.tcp().flows[id.index as usize].dial.is_none());
}

#[test]
fn a_client_whose_address_is_on_the_link_is_found_there_as_long_as_it_is_connected() {
    let mut sim = Sim::new(1500, Trouble::none());
    let server = sim.listen(None);
    let client = "10.0.2.50:7000";
    sim.publish_to(client).unwrap();
    assert!(asks_for(&mut sim, "10.0.2.50", false), "asked before it answers");
    sim.run_until("open", |s| s.client(server).state() == tcp::State::Established);
    assert_eq!(sim.seen_by(server), Some(client.parse().unwrap()));
    assert!(!asks_for(&mut sim, "10.0.2.50", true), "who looks for a free address may have it");
    assert!(!asks_for(&mut sim, "10.0.2.51", false));
    sim.stream().broken = true;
    sim.run_until("ended", |s| !s.ended.is_empty());
    assert!(!asks_for(&mut sim, "10.0.2.50", false));

    for client in ["fd00::50", "fe80::50"] {
        let mut sim = Sim::new(1500, Trouble::none());
        sim.publish_to(&format!("[{client}]:7000")).unwrap();
        assert!(solicits(&mut sim, client));
        assert!(!solicits(&mut sim, "fd00::51") && !solicits(&mut sim, "fe80::51"));
        sim.gateway.remove_port(PORT, &mut sim.host);
        assert_eq!(sim.gateway.segment.kept.count(), 0);
    }
}

/// Is an ARP request answered? A probe comes from nobody (RFC 5227).
fn asks_for(sim: &mut Sim, address: &str, probe: bool) -> bool {
    let packet = etherparse::ArpEthIpv4Packet {
        operation: etherparse::ArpOperation::REQUEST,
        sender_mac: sim.mac.0,
        sender_ipv4: if probe { [0; 4] } else { [10, 0, 2, 100] },
        target_mac: [0; 6],
        target_ipv4: address.parse::<std::net::Ipv4Addr>().unwrap().octets(),
    };
    let arp = etherparse::ArpPacket::from(packet).to_bytes();
    sim.gives_answer(packet::ETHERTYPE_ARP, &arp)
}

/// Is a neighbor solicitation answered?
fn solicits(sim: &mut Sim, address: &str) -> bool {
    let target: std::net::Ipv6Addr = address.parse().unwrap();
    let source: std::net::Ipv6Addr = "fd00::100".parse().unwrap();
    let builder = etherparse::PacketBuilder::ipv6(source.octets(), target.octets(), 255);
    let bytes = [&[0; 4][..], &target.octets()].concat();
    let mut packet = Vec::new();
    let [a, b, c, d] = [bytes[0], bytes[1], bytes[2], bytes[3]];
    builder.icmpv6_raw(135, 0, [a, b, c, d]).write(&mut packet, &bytes[4..]).unwrap();
    sim.gives_answer(packet::ETHERTYPE_IPV6, &packet)
}

impl Sim {
    fn gives_answer(&mut self, ethertype: u16, packet: &[u8]) -> bool {
        let mut frame = frame_from_sandbox(self.gateway.network().gateway_mac, ethertype, packet);
        frame[6..12].copy_from_slice(&self.mac.0);
        self.link.packets.clear();
        self.gateway.handle_frame(self.now, PORT, Offload::default(), &frame, &mut self.host, &mut self.link);
        self.link.packets.pop_front().is_some()
    }
}
