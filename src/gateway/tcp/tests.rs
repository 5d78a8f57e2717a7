//! The gateway against a second stack: an ordinary smoltcp client in the sandbox's place, a byte vector in the
//! host's, and a link between them that loses, repeats and reorders.
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, TcpPacket};

use super::super::counters::DropReason;
use super::super::link::*;
use super::super::{Gateway, packet};
use super::flow::{End, HostStream, Transfer};
use super::*;
use crate::gateway::emit::testing::network;
use crate::plan::{Endpoint, HostView, MacAddr};

const PORT: PortId = PortId(1);

mod asleep;
mod bounds;
mod inbound;

#[derive(Default)]
struct FakeStream {
    received: Vec<u8>,
    to_give: VecDeque<u8>,
    ended: bool,
    broken: bool,
    write_shut: bool,
    /// Most bytes taken in one call; 0 takes nothing.
    takes: usize,
}

impl HostStream for FakeStream {
    fn send(&mut self, data: &[u8]) -> Transfer {
        if self.broken {
            return Transfer::Broken;
        }
        let n = data.len().min(self.takes);
        self.received.extend_from_slice(&data[..n]);
        if n == 0 { Transfer::Blocked } else { Transfer::Moved(n) }
    }
    fn recv(&mut self, room: &mut [u8]) -> Transfer {
        if self.broken {
            return Transfer::Broken;
        }
        let n = room.len().min(self.to_give.len());
        for (to, from) in room.iter_mut().zip(self.to_give.drain(..n)) {
            *to = from;
        }
        match n {
            0 if self.ended => Transfer::Ended,
            0 => Transfer::Blocked,
            n => Transfer::Moved(n),
        }
    }
    fn shutdown_write(&mut self) {
        self.write_shut = true;
    }
}

/// What the gateway asked of the host.
#[derive(Default)]
struct FakeHost {
    connects: Vec<(TcpId, SocketAddr, Option<u8>)>,
    dns: Vec<TcpId>,
    closed: Vec<(TcpId, bool)>,
    keepalives: usize,
    /// Descriptors that are left.
    left: Option<usize>,
}

impl Host for FakeHost {
    fn tcp_connect(&mut self, flow: TcpId, to: SocketAddr, hop_limit: Option<u8>) {
        self.connects.push((flow, to, hop_limit));
    }
    fn tcp_connect_dns(&mut self, flow: TcpId, _: Asker) {
        self.dns.push(flow);
    }
    fn tcp_keepalive(&mut self, _: TcpId) {
        self.keepalives += 1;
    }
    fn tcp_close(&mut self, flow: TcpId, reset: bool) {
        self.closed.push((flow, reset));
    }
    fn udp_send(&mut self, _: UdpId, _: SocketAddr, _: Datagram<'_>) -> Result<(), HostError> {
        Ok(())
    }
    fn udp_close(&mut self, _: UdpId) {}
    fn echo_send(&mut self, _: EchoId, _: IpAddr, _: u16, _: Datagram<'_>) -> Result<(), HostError> {
        Ok(())
    }
    fn echo_close(&mut self, _: EchoId) {}
    fn dns_query(&mut self, _: Asker, _: &[u8]) -> bool {
        true
    }
    fn descriptors_left(&self) -> usize {
        self.left.unwrap_or(usize::MAX)
    }
}

/// Frames for the sandbox, super-segments cut as the kernel would.
#[derive(Default)]
struct FakeLink {
    packets: VecDeque<Vec<u8>>,
    super_segments: usize,
    full: bool,
}

impl Link for FakeLink {
    fn has_room(&self, _: PortId) -> bool {
        !self.full
    }
    fn transmit<R>(&mut self, port: PortId, offload: Offload, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        assert_eq!(port, PORT);
        let mut frame = vec![0xAA; len];
        let result = fill(&mut frame);
        etherparse::PacketHeaders::from_ethernet_slice(&frame).expect("the other parser takes it too");
        let ip_header = if frame[14] >> 4 == 4 { 20 } else { 40 };
        let packet = frame[packet::ETHERNET_HEADER..].to_vec();
        if offload.gso == Gso::None {
            self.packets.push_back(packet);
            return result;
        }
        self.super_segments += 1;
        assert_eq!(offload.gso, if ip_header == 20 { Gso::TcpV4 } else { Gso::TcpV6 });
        let headers = ip_header + 20;
        assert_eq!(usize::from(offload.hdr_len), 14 + headers);
        let payload = &packet[headers..];
        let pieces: Vec<&[u8]> = payload.chunks(usize::from(offload.gso_size)).collect();
        for (i, piece) in pieces.iter().enumerate() {
            let mut cut = packet[..headers].to_vec();
            cut.extend_from_slice(piece);
            let total = cut.len();
            if ip_header == 20 {
                cut[2..4].copy_from_slice(&(total as u16).to_be_bytes());
                smoltcp::wire::Ipv4Packet::new_unchecked(&mut cut[..]).fill_checksum();
            } else {
                cut[4..6].copy_from_slice(&((total - 40) as u16).to_be_bytes());
            }
            let mut tcp = TcpPacket::new_unchecked(&mut cut[ip_header..]);
            tcp.set_seq_number(tcp.seq_number() + i * usize::from(offload.gso_size));
            if i + 1 < pieces.len() {
                tcp.set_fin(false);
                tcp.set_psh(false);
            }
            self.packets.push_back(cut);
        }
        result
    }
}

/// A link that misbehaves, repeatably.
struct Trouble {
    state: u64,
    lose: u64,
    repeat: u64,
    swap: u64,
}

impl Trouble {
    fn none() -> Trouble {
        Trouble { state: 1, lose: 0, repeat: 0, swap: 0 }
    }
    fn some(seed: u64) -> Trouble {
        Trouble { state: seed, lose: 8, repeat: 12, swap: 9 }
    }
    fn strikes(&mut self, one_in: u64) -> bool {
        self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        one_in != 0 && (self.state >> 33).is_multiple_of(one_in)
    }
    fn pass(&mut self, packets: &mut VecDeque<Vec<u8>>, to: &mut VecDeque<Vec<u8>>) {
        while let Some(packet) = packets.pop_front() {
            if self.strikes(self.lose) {
                continue;
            }
            if self.strikes(self.repeat) {
                to.push_back(packet.clone());
            }
            if self.strikes(self.swap)
                && let Some(last) = to.pop_back()
            {
                to.push_back(packet);
                to.push_back(last);
                continue;
            }
            to.push_back(packet);
        }
    }
}

/// The client's device: queues of IP packets.
struct ClientDevice {
    mtu: usize,
    incoming: VecDeque<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
}
struct ClientRx(Vec<u8>);
struct ClientTx<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for ClientRx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}
impl TxToken for ClientTx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}
impl Device for ClientDevice {
    type RxToken<'a> = ClientRx;
    type TxToken<'a> = ClientTx<'a>;
    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(ClientRx, ClientTx<'_>)> {
        let packet = self.incoming.pop_front()?;
        Some((ClientRx(packet), ClientTx(&mut self.outgoing)))
    }
    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<ClientTx<'_>> {
        Some(ClientTx(&mut self.outgoing))
    }
    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ip;
        caps.max_transmission_unit = self.mtu;
        caps.checksum.tcp = Checksum::Tx;
        caps
    }
}

struct Sim {
    start: Instant,
    now: Instant,
    gateway: Gateway,
    host: FakeHost,
    link: FakeLink,
    streams: HashMap<TcpId, FakeStream>,
    ended: Vec<(TcpId, End)>,
    device: ClientDevice,
    interface: Interface,
    sockets: SocketSet<'static>,
    trouble: Trouble,
    /// Nothing happens to the client's packets any more: smoltcp's own sockets never repeat a lost FIN once
    /// three duplicate acknowledgements have come (the gateway works around it, see `OpenFlow::repeat_fin`).
    client_spared: bool,
    /// What a connect on the host has for an outcome; `None` leaves it under way.
    outcome: Option<Result<(), HostError>>,
    /// Who that outcome's ICMP error came from.
    offender: Option<IpAddr>,
    mac: MacAddr,
}

impl Sim {
    fn new(mtu: u16, trouble: Trouble) -> Sim {
        let start = Instant::now();
        let network = network(mtu);
        let (v4, v6) = (network.v4.unwrap(), network.v6.unwrap());
        let mac = MacAddr::from_ipv4(v4.sandbox);
        let host_view = HostView {
            v4: Some("192.0.2.2".parse().unwrap()),
            v6: Some("2001:db8::2".parse().unwrap()),
            ..HostView::default()
        };
        let mut gateway = Gateway::new(start, network, host_view);
        let endpoint = Endpoint {
            id: "0123456789ab".into(),
            name: "test".into(),
            ifname: "tap0".into(),
            mac,
            v4: Some(v4.sandbox),
            v6: Some(v6.sandbox),
            ..Endpoint::default()
        };
        gateway.add_port(PORT, endpoint);
        let mut device = ClientDevice { mtu: mtu.into(), incoming: VecDeque::new(), outgoing: VecDeque::new() };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = 7;
        let mut interface = Interface::new(config, &mut device, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|list| {
            list.push(IpCidr::new(IpAddress::from(v4.sandbox), 24)).unwrap();
            list.push(IpCidr::new(IpAddress::from(v6.sandbox), 64)).unwrap();
        });
        interface.routes_mut().add_default_ipv4_route(v4.gateway).unwrap();
        interface.routes_mut().add_default_ipv6_route(v6.gateway).unwrap();
        Sim {
            start,
            now: start,
            gateway,
            host: FakeHost::default(),
            link: FakeLink::default(),
            streams: HashMap::new(),
            ended: Vec::new(),
            device,
            interface,
            sockets: SocketSet::new(Vec::new()),
            trouble,
            client_spared: false,
            outcome: Some(Ok(())),
            offender: None,
            mac,
        }
    }

    fn connect(&mut self, to: &str) -> SocketHandle {
        let to: SocketAddr = to.parse().unwrap();
        let buffer = || tcp::SocketBuffer::new(vec![0; 256 * 1024]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_ack_delay(None);
        let local = 40_000 + self.sockets.iter().count() as u16;
        socket.connect(self.interface.context(), (IpAddress::from(to.ip()), to.port()), local).unwrap();
        self.sockets.add(socket)
    }

    fn client(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// The only stream there is.
    fn stream(&mut self) -> &mut FakeStream {
        assert_eq!(self.streams.len(), 1);
        self.streams.values_mut().next().unwrap()
    }

    fn give_gateway(&mut self, packet: &[u8]) {
        let mut frame = Vec::with_capacity(14 + packet.len());
        frame.extend_from_slice(&self.gateway.network().gateway_mac.0);
        frame.extend_from_slice(&self.mac.0);
        frame.extend_from_slice(if packet[0] >> 4 == 4 { &[8, 0] } else { &[0x86, 0xdd] });
        frame.extend_from_slice(packet);
        self.gateway.handle_frame(self.now, PORT, Offload::default(), &frame, &mut self.host, &mut self.link);
    }

    /// One exchange of everything that is ready; then the clock moves.
    fn step(&mut self, by: Duration) {
        let clock = clock(self.start, self.now);
        self.interface.poll(clock, &mut self.device, &mut self.sockets);
        let mut arriving = VecDeque::new();
        match self.client_spared {
            true => Trouble::none().pass(&mut self.device.outgoing, &mut arriving),
            false => self.trouble.pass(&mut self.device.outgoing, &mut arriving),
        }
        for packet in arriving {
            self.give_gateway(&packet);
        }
        let asked: Vec<TcpId> = self.host.connects.iter().map(|c| c.0).chain(self.host.dns.iter().copied()).collect();
        for id in asked {
            if self.streams.contains_key(&id) {
                continue;
            }
            if let Some(outcome) = self.outcome
                && self.gateway.handle_tcp_outcome(self.now, id, outcome, self.offender, &mut self.link)
                    == Outcome::Open
            {
                self.streams.insert(id, FakeStream { takes: usize::MAX, ..FakeStream::default() });
            }
        }
        let open: Vec<TcpId> = self.streams.keys().copied().collect();
        for id in open {
            self.gateway.tcp().handle_stream_ready(id);
        }
        self.gateway.handle_timeout(self.now, &mut self.host, &mut self.link);
        let mut rounds = 0;
        while let Some(id) = self.gateway.tcp().take_dirty() {
            rounds += 1;
            assert!(rounds < 10_000, "the pump spins");
            let mut nothing = FakeStream::default();
            let stream = self.streams.get_mut(&id).unwrap_or(&mut nothing);
            if let Some(end) = self.gateway.pump_tcp(self.now, id, stream, &mut self.link) {
                self.ended.push((id, end));
            }
        }
        self.trouble.pass(&mut self.link.packets, &mut self.device.incoming);
        self.now += by;
    }

    fn run_until(&mut self, what: &str, mut done: impl FnMut(&mut Sim) -> bool) {
        for _ in 0..20_000 {
            if done(self) {
                return;
            }
            self.step(Duration::from_millis(5));
        }
        panic!("never: {what}");
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

/// Both ways at once, half-closed by the client first; everything arrives, nothing is left.
fn echo_and_close(mtu: u16, to: &str, trouble: Trouble, len: usize) -> Sim {
    let mut sim = Sim::new(mtu, trouble);
    let client = sim.connect(to);
    let (out, back) = (pattern(len), pattern(len + 1));
    sim.run_until("connected", |s| !s.streams.is_empty());
    sim.stream().to_give.extend(&back);
    let (mut sent, mut got) = (0, Vec::new());
    let both = |s: &mut Sim| {
        let socket = s.client(client);
        if socket.can_send() && sent < out.len() {
            sent += socket.send_slice(&out[sent..]).unwrap();
        }
        while socket.can_recv() {
            socket.recv(|data| (data.len(), got.extend_from_slice(data))).unwrap();
        }
        got.len() == back.len() && s.stream().received.len() == out.len()
    };
    sim.run_until("both ways done", both);
    assert!(got == back && sim.stream().received == out, "bytes differ");
    sim.client_spared = true;
    sim.client(client).close();
    sim.run_until("half-closed", |s| s.stream().write_shut);
    assert_eq!(sim.gateway.flows().0, 1, "the other half is open");
    sim.stream().ended = true;
    sim.run_until("closed", |s| !s.ended.is_empty() && s.client(client).state() != tcp::State::Established);
    assert_eq!(sim.ended[0].1, End::Closed);
    assert_eq!(sim.gateway.flows().0, 0);
    sim
}

#[test]
fn bytes_pass_both_ways_and_both_sides_close() {
    for mtu in [68, 576, 1500, 65520, 65521] {
        let sim = echo_and_close(mtu, "192.0.2.1:80", Trouble::none(), 300_000);
        assert_eq!(sim.link.super_segments > 0, mtu < 65520, "{mtu}");
    }
}

#[test]
fn a_network_without_room_for_a_segment_ends_nothing() {
    for (mtu, ip_header) in [(68, 40), (60, 40), (20, 20), (0, 20)] {
        let largest = wire::largest_segment(mtu, ip_header);
        assert_eq!((largest, wire::segments_for(0, largest), wire::segments_for(u16::MAX, largest)), (8, 8, 8));
    }
    assert_eq!(wire::largest_segment(1500, 20), 1460);
    assert_eq!([1, 536, 9000].map(|offered| wire::segments_for(offered, 1460)), [48, 536, 1460]);
}

#[test]
fn bytes_pass_over_ipv6() {
    for mtu in [1280, 1500, 65520] {
        let sim = echo_and_close(mtu, "[2001:db8::1]:80", Trouble::none(), 300_000);
        assert_eq!(sim.link.super_segments > 0, mtu < 65520, "{mtu}: smoltcp would have dropped them");
    }
}

#[test]
fn loss_repetition_and_reordering_change_nothing() {
    for seed in 1..6 {
        echo_and_close(1500, "192.0.2.1:80", Trouble::some(seed), 60_000);
        echo_and_close(1500, "[2001:db8::1]:80", Trouble::some(seed), 60_000);
    }
}

#[test]
fn the_gateway_address_leads_to_the_hosts_own() {
    let mut sim = Sim::new(1500, Trouble::none());
    sim.connect("10.0.2.2:22");
    sim.connect("[fd00::2]:22");
    sim.run_until("both connected", |s| s.streams.len() == 2);
    let to: Vec<String> = sim.host.connects.iter().map(|c| c.1.to_string()).collect();
    assert_eq!(to, ["192.0.2.2:22", "[2001:db8::2]:22"]);
}

#[test]
fn nothing_is_answered_before_the_host_has_connected() {
    let mut sim = Sim::new(1500, Trouble::none());
    sim.outcome = None;
    let client = sim.connect("192.0.2.1:80");
    for _ in 0..1000 {
        sim.step(Duration::from_millis(5));
    }
    assert_eq!(sim.client(client).state(), tcp::State::SynSent);
    assert_eq!(sim.host.connects.len(), 1, "a repeated SYN connects no second time");
    sim.outcome = Some(Ok(()));
    sim.run_until("established", |s| s.client(client).state() == tcp::State::Established);
}

#[test]
fn refused_connect_reaches_the_sandbox_as_rst() {
    let mut sim = Sim::new(1500, Trouble::none());
    sim.outcome = Some(Err(HostError::Refused));
    let client = sim.connect("192.0.2.1:80");
    sim.run_until("refused", |s| s.client(client).state() == tcp::State::Closed);
    assert!(sim.now - sim.start < Duration::from_millis(500), "at once");
    assert_eq!(sim.gateway.flows().0, 0);
}

/// traceroute -T: the router that dropped the SYN is named to the sandbox, not the gateway.
#[test]
fn a_hop_limit_that_is_used_up_is_told_with_the_true_routers_address() {
    let mut sim = Sim::new(1500, Trouble::none());
    sim.outcome = Some(Err(HostError::HopLimitExceeded));
    sim.offender = Some("203.0.113.9".parse().unwrap());
    sim.connect("192.0.2.1:80");
    let told =
        |sim: &mut Sim| sim.device.incoming.iter().any(|p| p[12..16] == [203, 0, 113, 9] && p[20..22] == [11, 0]);
    sim.run_until("told", told);
    assert_eq!(sim.gateway.flows().0, 0);
}

#[test]
fn no_answer_gives_no_answer() {
    let mut sim = Sim::new(1500, Trouble::none());
    sim.outcome = Some(Err(HostError::TimedOut));
    sim.connect("192.0.2.1:80");
    for _ in 0..10 {
        sim.step(Duration::from_millis(5));
    }
    assert!(sim.device.incoming.is_empty() && sim.link.packets.is_empty());
    assert_eq!(sim.gateway.flows().0, 0);
}

#[test]
fn a_reset_from_the_sandbox_resets_the_host() {
    let mut sim = Sim::new(1500, Trouble::none());
    let client = sim.connect("192.0.2.1:80");
    sim.run_until("established", |s| s.client(client).state() == tcp::State::Established);
    sim.client(client).abort();
    sim.run_until("ended", |s| !s.ended.is_empty());
    assert_eq!(sim.ended[0].1, End::ResetBySandbox);
}

#[test]
fn a_broken_host_socket_resets_the_sandbox() {
    let mut sim = Sim::new(1500, Trouble::none());
    let client = sim.connect("192.0.2.1:80");
    sim.run_until("established", |s| s.client(client).state() == tcp::State::Established);
    sim.stream().broken = true;
    sim.run_until("reset", |s| s.client(client).state() == tcp::State::Closed);
    assert_eq!(sim.ended[0].1, End::ResetByHost);
    assert_eq!(sim.gateway.flows().0, 0);
}

#[test]
fn a_host_that_takes_nothing_closes_the_window_and_opens_it_again() {
    let mut sim = Sim::new(1500, Trouble::none());
    let client = sim.connect("192.0.2.1:80");
    sim.run_until("established", |s| s.client(client).state() == tcp::State::Established && !s.streams.is_empty());
    sim.stream().takes = 0;
    let out = pattern(2 * RING_BYTES);
    let mut sent = 0;
    for _ in 0..2000 {
        let socket = sim.client(client);
        if socket.can_send() {
            sent += socket.send_slice(&out[sent..]).unwrap();
        }
        sim.step(Duration::from_millis(5));
    }
    assert!(sent < out.len(), "the window never closed");
    assert_eq!(sim.stream().received.len(), 0);
    sim.stream().takes = 1000;
    sim.run_until("all taken", |s| {
        let socket = s.client(client);
        if socket.can_send() && sent < out.len() {
            sent += socket.send_slice(&out[sent..]).unwrap();
        }
        s.stream().received.len() == out.len()
    });
    assert!(sim.stream().received == out);
}

#[test]
fn a_full_link_loses_nothing() {
    let mut sim = Sim::new(1500, Trouble::none());
    let client = sim.connect("192.0.2.1:80");
    sim.run_until("established", |s| s.client(client).state() == tcp::State::Established && !s.streams.is_empty());
    let back = pattern(400_000);
    sim.stream().to_give.extend(&back);
    let mut got = Vec::new();
    let mut round = 0;
    sim.run_until("all arrived", |s| {
        round += 1;
        s.link.full = round % 3 != 0;
        if !s.link.full {
            s.gateway.tcp().handle_link_ready(PORT);
        }
        let socket = s.client(client);
        while socket.can_recv() {
            socket.recv(|data| (data.len(), got.extend_from_slice(data))).unwrap();
        }
        got.len() == back.len()
    });
    assert!(got == back);
}

#[test]
fn segments_of_no_flow_are_reset() {
    let mut sim = Sim::new(1500, Trouble::none());
    let client = sim.connect("192.0.2.1:80");
    sim.run_until("established", |s| s.client(client).state() == tcp::State::Established);
    sim.gateway.remove_port(PORT, &mut sim.host);
    assert_eq!(sim.host.closed.len(), 1);
    assert!(sim.host.closed[0].1, "the host's side is reset");
    sim.streams.clear();
    sim.client(client).send_slice(b"anyone?").unwrap();
    sim.run_until("reset", |s| s.client(client).state() == tcp::State::Closed);
    assert!(sim.gateway.counters().dropped(DropReason::NoFlow) > 0);
}

#[test]
fn half_open_flows_are_bounded() {
    let mut sim = Sim::new(1500, Trouble::none());
    sim.outcome = None;
    for port in 0..HALF_OPEN_LIMIT + 10 {
        sim.connect(&format!("192.0.2.1:{}", port + 1));
    }
    sim.step(Duration::from_millis(1));
    assert_eq!(sim.gateway.flows().0, HALF_OPEN_LIMIT);
    assert_eq!(sim.gateway.counters().dropped(DropReason::HalfOpenLimit), 10);
}

#[test]
fn an_ended_flow_leaves_a_record_that_yields_to_a_new_syn() {
    let mut sim = echo_and_close(1500, "192.0.2.1:80", Trouble::none(), 1000);
    assert_eq!(sim.gateway.tcp().time_wait.len(), 1);
    // The same four-tuple again: the client's port is counted by sockets, so take the old one out.
    let old = sim.sockets.iter().next().unwrap().0;
    sim.sockets.remove(old);
    sim.streams.clear();
    let client = sim.connect("192.0.2.1:80");
    sim.run_until("established", |s| s.client(client).state() == tcp::State::Established);
    assert_eq!(sim.gateway.tcp().time_wait.len(), 0);
    sim.client(client).abort();
    for _ in 0..3000 {
        sim.step(Duration::from_millis(5));
    }
    assert!(sim.gateway.tcp().time_wait_order.is_empty(), "the record's place went with its time");
}

#[test]
fn quiet_flows_give_their_pages_back_and_go_on_after_it() {
    let mut sim = Sim::new(1500, Trouble::none());
    let client = sim.connect("192.0.2.1:80");
    sim.run_until("established", |s| s.client(client).state() == tcp::State::Established && !s.streams.is_empty());
    for round in 1..4 {
        sim.client(client).send_slice(b"hello").unwrap();
        sim.run_until("arrived", |s| s.stream().received.len() == 5 * round);
        for _ in 0..100 {
            sim.step(Duration::from_millis(5));
        }
        let table = sim.gateway.tcp();
        assert!(table.flows.iter().all(|(_, f)| f.pages_released), "round {round}");
    }
    assert_eq!(sim.stream().received, b"hellohellohello");
}

#[test]
fn refused_destinations_open_no_flow() {
    for to in ["127.0.0.1:80", "0.1.2.3:80", "169.254.169.254:80", "[::ffff:192.0.2.1]:80", "10.0.2.77:80"] {
        let mut sim = Sim::new(1500, Trouble::none());
        sim.connect(to);
        sim.step(Duration::from_millis(5));
        assert!(sim.host.connects.is_empty(), "{to}");
        assert_eq!(sim.gateway.counters().dropped(DropReason::Refused), 1, "{to}");
    }
}

#[test]
fn dns_over_tcp_goes_to_the_forwarder_and_the_dns_address_offers_nothing_else() {
    let mut sim = Sim::new(1500, Trouble::none());
    let dns = sim.connect("10.0.2.3:53");
    sim.run_until("established", |s| s.client(dns).state() == tcp::State::Established);
    assert_eq!(sim.host.dns.len(), 1);
    let other = sim.connect("10.0.2.3:80");
    sim.run_until("refused", |s| s.client(other).state() == tcp::State::Closed);
    assert!(sim.host.connects.is_empty());
}

#[test]
fn a_keepalive_probe_turns_it_on_outside_once() {
    let mut sim = Sim::new(1500, Trouble::none());
    let client = sim.connect("192.0.2.1:80");
    sim.run_until("established", |s| s.client(client).state() == tcp::State::Established);
    sim.client(client).set_keep_alive(Some(smoltcp::time::Duration::from_millis(50)));
    for _ in 0..100 {
        sim.step(Duration::from_millis(5));
    }
    assert_eq!(sim.host.keepalives, 1);
}

#[test]
fn a_wrong_checksum_is_counted_and_dropped() {
    let mut sim = Sim::new(1500, Trouble::none());
    sim.connect("192.0.2.1:80");
    let clock = clock(sim.start, sim.now);
    sim.interface.poll(clock, &mut sim.device, &mut sim.sockets);
    let mut syn = sim.device.outgoing.pop_front().unwrap();
    syn[20 + 16] ^= 1;
    sim.give_gateway(&syn);
    assert_eq!(sim.gateway.counters().dropped(DropReason::Checksum), 1);
    assert!(sim.host.connects.is_empty());
}

/// A segment from port 40000 of the sandbox to 192.0.2.1:80, with options and payload as they are.
fn raw_segment(flags: u8, sequence: u32, acknowledge: u32, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut tcp = vec![0x9c, 0x40, 0, 80];
    tcp.extend_from_slice(&sequence.to_be_bytes());
    tcp.extend_from_slice(&acknowledge.to_be_bytes());
    tcp.extend_from_slice(&[(5 + options.len() as u8 / 4) << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    tcp.extend_from_slice(options);
    tcp.extend_from_slice(payload);
    let (src, dst) = ("10.0.2.100".parse().unwrap(), "192.0.2.1".parse().unwrap());
    let ip = smoltcp::wire::IpRepr::new(
        IpAddress::Ipv4(src),
        IpAddress::Ipv4(dst),
        smoltcp::wire::IpProtocol::Tcp,
        tcp.len(),
        64,
    );
    let mut packet = vec![0; ip.buffer_len()];
    ip.emit(&mut packet, &Default::default());
    packet[20..].copy_from_slice(&tcp);
    TcpPacket::new_unchecked(&mut packet[20..]).fill_checksum(&src.into(), &dst.into());
    packet
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const ACK: u8 = 16;

/// Our initial sequence number, from the SYN-ACK that the client's queue holds.
fn isn_of_syn_ack(sim: &mut Sim) -> u32 {
    let packet = sim.device.incoming.drain(..).next_back().expect("a SYN-ACK");
    let tcp = TcpPacket::new_checked(&packet[20..]).unwrap();
    assert!(tcp.syn() && tcp.ack());
    tcp.seq_number().0 as u32
}

#[test]
fn a_syn_whose_options_cannot_be_read_begins_nothing() {
    let mut sim = Sim::new(1500, Trouble::none());
    // A maximum segment size of one byte.
    sim.give_gateway(&raw_segment(SYN, 1, 0, &[2, 3, 5, 0], &[]));
    assert_eq!((sim.gateway.flows().0, sim.host.connects.len()), (0, 0));
    assert_eq!(sim.gateway.counters().dropped(DropReason::Malformed), 1);
}

#[test]
fn a_handshake_that_the_sandbox_never_ends_is_given_up() {
    let mut sim = Sim::new(1500, Trouble::none());
    sim.give_gateway(&raw_segment(SYN, 1, 0, &[], &[]));
    sim.step(Duration::from_millis(5));
    isn_of_syn_ack(&mut sim);
    for _ in 0..29 {
        sim.step(Duration::from_secs(1));
        // smoltcp's own client would answer with a reset.
        sim.device.incoming.clear();
    }
    assert_eq!((sim.gateway.flows().0, sim.ended.len()), (1, 0));
    for _ in 0..40 {
        sim.step(Duration::from_secs(1));
        sim.device.incoming.clear();
    }
    assert_eq!((sim.gateway.flows().0, sim.ended.len()), (0, 1));
    assert_eq!(sim.ended[0].1, End::ResetByHost, "the far side sees a reset");
}

#[test]
fn text_behind_the_sandboxs_fin_is_not_given_to_the_host() {
    let mut sim = Sim::new(1500, Trouble::none());
    sim.give_gateway(&raw_segment(SYN, 1, 0, &[], &[]));
    sim.step(Duration::from_millis(5));
    let acknowledge = isn_of_syn_ack(&mut sim).wrapping_add(1);
    sim.give_gateway(&raw_segment(ACK | FIN, 2, acknowledge, &[], b"text"));
    sim.step(Duration::from_millis(5));
    sim.device.incoming.clear();
    assert!(sim.stream().write_shut);
    sim.give_gateway(&raw_segment(ACK, 7, acknowledge, &[], b"more"));
    sim.step(Duration::from_millis(5));
    assert_eq!(sim.stream().received, b"text");
    assert_eq!(sim.gateway.flows().0, 1, "the other half is still open");
}

#[test]
fn text_behind_the_fin_is_not_given_to_a_host_that_was_slow_either() {
    let mut sim = Sim::new(1500, Trouble::none());
    sim.give_gateway(&raw_segment(SYN, 1, 0, &[], &[]));
    sim.step(Duration::from_millis(5));
    let acknowledge = isn_of_syn_ack(&mut sim).wrapping_add(1);
    sim.stream().takes = 0;
    sim.give_gateway(&raw_segment(ACK | FIN, 2, acknowledge, &[], b"text"));
    sim.give_gateway(&raw_segment(ACK, 7, acknowledge, &[], b"more"));
    sim.step(Duration::from_millis(5));
    sim.device.incoming.clear();
    assert_eq!((sim.stream().received.len(), sim.stream().write_shut), (0, false));
    sim.stream().takes = usize::MAX;
    sim.step(Duration::from_millis(5));
    assert_eq!(sim.stream().received, b"text");
    assert!(sim.stream().write_shut);
}

impl TcpTable {
    /// The sandbox's TCP port of a flow.
    pub(in crate::gateway) fn port_of(&mut self, id: TcpId) -> Option<u16> {
        self.flow(id).map(|flow| flow.key.from.port())
    }

    /// How much each of the table's collections holds.
    pub(in crate::gateway) fn held(&self) -> [(&'static str, usize); 11] {
        [
            ("flows", self.flows.len()),
            ("keys", self.by_key.len()),
            ("connecting", self.connecting.0.values().sum()),
            ("dialing", self.dialing.0.values().sum()),
            ("dirty", usize::from(!self.dirty.is_empty())),
            ("parked", self.parked.iter().map(Vec::len).sum()),
            ("timers", self.timers.len()),
            ("quiet", self.quiet.len()),
            ("records", self.time_wait.len()),
            ("records' order", self.time_wait_order.len()),
            ("spare slots beyond their limit", self.spare.len().saturating_sub(SPARE_SLOTS)),
        ]
    }
}

#[test]
fn a_flow_waits_for_its_link_once_however_often_it_was_pumped() {
    let mut sim = Sim::new(1500, Trouble::none());
    let client = sim.connect("192.0.2.1:80");
    sim.run_until("established", |s| s.client(client).state() == tcp::State::Established);
    sim.stream().to_give.extend(pattern(10_000));
    sim.link.full = true;
    for _ in 0..20 {
        sim.step(Duration::from_millis(5));
    }
    assert_eq!(sim.gateway.tcp().parked[PORT.0 as usize].len(), 1);
    sim.stream().broken = true;
    sim.link.full = false;
    sim.gateway.tcp().handle_link_ready(PORT);
    sim.run_until("ended", |s| !s.ended.is_empty());
    assert!(sim.gateway.tcp().parked[PORT.0 as usize].is_empty());
}

#[test]
fn a_segment_to_a_group_or_to_nobody_is_not_answered() {
    for to in [[224, 0, 0, 1], [255, 255, 255, 255], [10, 0, 2, 255], [0, 0, 0, 0]] {
        let mut sim = Sim::new(1500, Trouble::none());
        let mut packet = raw_segment(ACK, 7, 1, &[], b"text");
        packet[16..20].copy_from_slice(&to);
        let (src, dst) = (IpAddress::v4(10, 0, 2, 100), IpAddress::v4(to[0], to[1], to[2], to[3]));
        smoltcp::wire::Ipv4Packet::new_unchecked(&mut packet[..]).fill_checksum();
        TcpPacket::new_unchecked(&mut packet[20..]).fill_checksum(&src, &dst);
        sim.give_gateway(&packet);
        assert!(sim.link.packets.is_empty(), "{to:?}");
        assert_eq!(sim.gateway.counters().dropped(DropReason::Multicast), 1, "{to:?}");
    }
}
