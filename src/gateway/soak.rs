//! Hours of a busy gateway in virtual time: thousands of flows that come and go in every way there is, over a link
//! that loses; and floods. At the end nothing may be left, and at no time more than the bounds say.
//!
//! Half of the flows begin outside, as those of published ports do.
//!
//! The sandbox's side is the smallest TCP that gets through: whatever is not acknowledged is sent again at every
//! tick, and what comes out of order is dropped.
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};

use super::counters::DropReason;
use super::emit::testing::{PEER, SANDBOX_MAC, SANDBOX_V4, endpoint, frame_from_sandbox, network};
use super::link::{Asker, Datagram, EchoId, Host, HostError, Link, Offload, PortId, TcpId, UdpId};
use super::packet::ETHERTYPE_IPV4;
use super::tcp::flow::{HostStream, Transfer};
use super::tcp::{HALF_OPEN_LIMIT, Outcome};
use super::udp::MOST_FLOWS;
use super::{Gateway, echo};
use crate::plan::{HostView, Network};

const TICK: Duration = Duration::from_millis(20);
const DESTINATION: [u8; 4] = [192, 0, 2, 9];

/// Repeatable chance.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % bound
    }
}

/// How a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    SandboxCloses,
    HostCloses,
    SandboxResets,
    HostBreaks,
    Refused,
    /// The sandbox never answers the SYN-ACK, nor anything else.
    Silent,
}

const FATES: [Fate; 6] =
    [Fate::SandboxCloses, Fate::HostCloses, Fate::SandboxResets, Fate::HostBreaks, Fate::Refused, Fate::Silent];

/// The sandbox's side of a connection.
struct Client {
    fate: Fate,
    /// The gateway connects to it.
    inbound: bool,
    isn: u32,
    /// Payload bytes it sends in all.
    length: u32,
    /// Of these (and of SYN and FIN), so many are acknowledged.
    acknowledged: u32,
    /// What it expects from the gateway next; `None` before the SYN-ACK.
    expects: Option<u32>,
    fin_came: bool,
    over: bool,
}

/// The host's side.
struct Stream {
    fate: Fate,
    gives: usize,
    got: u32,
    wants: u32,
    shut: bool,
}

impl HostStream for Stream {
    fn send(&mut self, data: &[u8]) -> Transfer {
        assert!(!self.shut);
        self.got += data.len() as u32;
        assert!(self.got <= self.wants, "a byte came twice");
        Transfer::Moved(data.len())
    }
    fn recv(&mut self, room: &mut [u8]) -> Transfer {
        if self.gives > 0 {
            let count = room.len().min(self.gives);
            self.gives -= count;
            return Transfer::Moved(count);
        }
        match self.fate {
            Fate::HostBreaks => Transfer::Broken,
            Fate::HostCloses => Transfer::Ended,
            Fate::SandboxCloses if self.shut => Transfer::Ended,
            _ => Transfer::Blocked,
        }
    }
    fn shutdown_write(&mut self) {
        self.shut = true;
    }
}

/// Sockets that are open, so that one that is forgotten shows.
#[derive(Default)]
struct Sockets {
    connects: Vec<TcpId>,
    streams: HashMap<TcpId, Stream>,
    udp: HashSet<UdpId>,
    echo: HashSet<EchoId>,
    most_udp: usize,
}

impl Host for Sockets {
    fn tcp_connect(&mut self, flow: TcpId, _: SocketAddr, _: Option<u8>) {
        self.connects.push(flow);
    }
    fn tcp_connect_dns(&mut self, flow: TcpId, _: Asker) {
        self.connects.push(flow);
    }
    fn tcp_keepalive(&mut self, _: TcpId) {}
    fn tcp_close(&mut self, flow: TcpId, _: bool) {
        self.connects.retain(|&id| id != flow);
        self.streams.remove(&flow);
    }
    fn udp_send(&mut self, flow: UdpId, _: SocketAddr, _: Datagram<'_>) -> Result<(), HostError> {
        self.udp.insert(flow);
        self.most_udp = self.most_udp.max(self.udp.len());
        Ok(())
    }
    fn udp_close(&mut self, flow: UdpId) {
        assert!(self.udp.remove(&flow));
    }
    fn echo_send(&mut self, flow: EchoId, _: IpAddr, _: u16, _: Datagram<'_>) -> Result<(), HostError> {
        self.echo.insert(flow);
        Ok(())
    }
    fn echo_close(&mut self, flow: EchoId) {
        assert!(self.echo.remove(&flow));
    }
    fn dns_query(&mut self, _: Asker, _: &[u8]) -> bool {
        true
    }
}

/// Frames for the sandbox.
#[derive(Default)]
struct Wire {
    frames: Vec<Vec<u8>>,
    full: bool,
}

impl Link for Wire {
    fn has_room(&self, _: PortId) -> bool {
        !self.full
    }
    fn transmit<R>(&mut self, _: PortId, _: Offload, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut frame = vec![0; len];
        let result = fill(&mut frame);
        self.frames.push(frame);
        result
    }
}

struct Soak {
    now: Instant,
    gateway: Gateway,
    host: Sockets,
    link: Wire,
    clients: HashMap<u16, Client>,
    chance: Chance,
    /// One frame in so many is lost, each way; 0 for none.
    loss: u64,
}

impl Soak {
    fn new(loss: u64) -> Soak {
        let now = Instant::now();
        let mut gateway = Gateway::new(now, Network { v6: None, ..network(1500) }, HostView::default());
        gateway.add_port(PEER.port, endpoint());
        let (host, link, clients) = (Sockets::default(), Wire::default(), HashMap::new());
        Soak { now, gateway, host, link, clients, chance: Chance(7), loss }
    }

    fn lost(&mut self) -> bool {
        self.loss > 0 && self.chance.below(self.loss) == 0
    }

    fn frame(&mut self, frame: &[u8]) {
        self.gateway.handle_frame(self.now, PEER.port, Offload::default(), frame, &mut self.host, &mut self.link);
    }

    fn segment(&mut self, port: u16, flags: &str, sequence: u32, acknowledge: u32, payload: &[u8]) {
        let packet = PacketBuilder::ethernet2(SANDBOX_MAC.0, self.gateway.network().gateway_mac.0)
            .ipv4(SANDBOX_V4.octets(), DESTINATION, 64)
            .tcp(port, 80, sequence, 60_000);
        let packet = if flags.contains('A') { packet.ack(acknowledge) } else { packet };
        let packet = if flags.contains('S') { packet.syn() } else { packet };
        let packet = if flags.contains('F') { packet.fin() } else { packet };
        let packet = if flags.contains('R') { packet.rst() } else { packet };
        let mut frame = Vec::with_capacity(packet.size(payload.len()));
        packet.write(&mut frame, payload).unwrap();
        self.frame(&frame);
    }

    fn begin(&mut self, port: u16, fate: Fate) {
        let (isn, length) = (self.chance.below(1 << 32) as u32, self.chance.below(3000) as u32);
        let (inbound, over) = (false, false);
        let client = Client { fate, inbound, isn, length, acknowledged: 0, expects: None, fin_came: false, over };
        self.clients.insert(port, client);
    }

    /// A connection from outside to this port of the sandbox.
    fn begin_inbound(&mut self, port: u16, fate: Fate) {
        self.begin(port, fate);
        let gives = self.chance.below(5000) as usize;
        let client = self.clients.get_mut(&port).unwrap();
        client.inbound = true;
        let stream = Stream { fate, gives, got: 0, wants: client.length, shut: false };
        let from = SocketAddr::new(DESTINATION.into(), 80);
        match self.gateway.open_published(self.now, PEER.port, from, port, &mut self.link) {
            Ok(flow) => assert!(self.host.streams.insert(flow, stream).is_none()),
            Err(reason) => panic!("{reason:?}"),
        }
    }

    /// Each client sends what is not acknowledged.
    fn clients_send(&mut self) {
        let mut ports: Vec<u16> = self.clients.iter().filter(|(_, c)| !c.over).map(|(&port, _)| port).collect();
        ports.sort_unstable();
        for port in ports {
            if self.lost() {
                continue;
            }
            let Client { fate, inbound, isn, length, acknowledged, expects, .. } = self.clients[&port];
            if acknowledged == length + 2 {
                continue; // waits for the other side, and answers it
            }
            let Some(expects) = expects else {
                if !inbound {
                    self.segment(port, "S", isn, 0, &[]);
                }
                continue;
            };
            if inbound && fate == Fate::Refused {
                self.segment(port, "RA", 0, expects, &[]);
                self.over(port);
                continue;
            }
            if inbound && acknowledged == 0 && fate != Fate::SandboxResets {
                self.segment(port, "SA", isn, expects, &[]);
                continue;
            }
            let at = acknowledged.saturating_sub(1).min(length);
            let sequence = isn.wrapping_add(1).wrapping_add(at);
            match fate {
                Fate::Silent | Fate::Refused => {}
                // Not lost, because nobody would repeat it.
                Fate::SandboxResets => {
                    self.segment(port, "RA", sequence, expects, &[]);
                    self.over(port);
                }
                Fate::SandboxCloses | Fate::HostCloses | Fate::HostBreaks => {
                    let piece = vec![1; (length - at).min(1400) as usize];
                    let is_last = at + piece.len() as u32 == length;
                    let closes = match fate {
                        Fate::HostCloses => self.clients[&port].fin_came,
                        _ => fate == Fate::SandboxCloses,
                    };
                    let flags = if is_last && closes { "FA" } else { "A" };
                    self.segment(port, flags, sequence, expects, &piece);
                }
            }
        }
    }

    fn over(&mut self, port: u16) {
        self.clients.get_mut(&port).unwrap().over = true;
    }

    /// The clients get what has come.
    fn clients_receive(&mut self) {
        for frame in std::mem::take(&mut self.link.frames) {
            if self.lost() {
                continue;
            }
            let packet = SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(TransportSlice::Tcp(tcp)) = packet.transport else { continue };
            let port = tcp.destination_port();
            let Some(client) = self.clients.get_mut(&port) else { continue };
            if tcp.rst() {
                client.over = true;
                continue;
            }
            if client.fate == Fate::Silent {
                client.over |= tcp.syn();
                continue;
            }
            if tcp.syn() {
                client.expects.get_or_insert(tcp.sequence_number().wrapping_add(1));
            }
            let acknowledged = tcp.acknowledgment_number().wrapping_sub(client.isn);
            if tcp.ack() && acknowledged <= client.length + 2 {
                client.acknowledged = client.acknowledged.max(acknowledged);
            }
            let Some(expects) = client.expects else { continue };
            if !tcp.syn() && tcp.sequence_number() == expects {
                let length = tcp.payload().len() as u32 + u32::from(tcp.fin());
                client.expects = Some(expects.wrapping_add(length));
                client.fin_came |= tcp.fin();
            }
            // Both FINs are through: from now on it only says so again.
            if client.fin_came && client.acknowledged == client.length + 2 {
                client.over = true;
            }
            if client.acknowledged == client.length + 2 {
                let (sequence, expects) = (client.isn.wrapping_add(client.length + 2), client.expects.unwrap());
                if !tcp.payload().is_empty() || tcp.fin() {
                    self.segment(port, "A", sequence, expects, &[]);
                }
            }
        }
    }

    fn host_answers(&mut self) {
        for flow in std::mem::take(&mut self.host.connects) {
            // The flow's client is the one whose SYN came last; its fate is found by its port.
            let port = self.gateway.tcp().port_of(flow).unwrap();
            let Client { fate, length, .. } = self.clients[&port];
            let outcome = if fate == Fate::Refused { Err(HostError::Refused) } else { Ok(()) };
            if self.gateway.handle_tcp_outcome(self.now, flow, outcome, None, &mut self.link) == Outcome::Open {
                let gives = self.chance.below(5000) as usize;
                self.host.streams.insert(flow, Stream { fate, gives, got: 0, wants: length, shut: false });
            }
            if fate == Fate::Refused {
                self.over(port);
            }
        }
        while let Some(flow) = self.gateway.tcp().take_dirty() {
            let Some(stream) = self.host.streams.get_mut(&flow) else { continue };
            if self.gateway.pump_tcp(self.now, flow, stream, &mut self.link).is_some() {
                self.host.streams.remove(&flow);
            }
        }
    }

    fn tick(&mut self, by: Duration) {
        self.clients_send();
        self.gateway.handle_timeout(self.now, &mut self.host, &mut self.link);
        self.host_answers();
        self.clients_receive();
        self.host_answers();
        self.now += by;
    }

    /// Time passes until nothing waits for it.
    fn drain(&mut self) {
        for _ in 0..20_000 {
            let Some(at) = self.gateway.next_timeout() else { break };
            self.now = self.now.max(at);
            self.tick(Duration::ZERO);
        }
    }

    #[track_caller]
    fn assert_nothing_left(&mut self) {
        assert_eq!(self.gateway.flows(), (0, 0, 0));
        for (what, held) in self.gateway.tcp().held() {
            assert_eq!(held, 0, "{what}");
        }
        assert_eq!(self.gateway.next_timeout(), None);
        assert_eq!(self.gateway.reassembly.held(), (0, 0));
        assert_eq!(self.gateway.segment.kept.count(), 0);
        let Sockets { connects, streams, udp, echo, .. } = &self.host;
        assert_eq!((connects.len(), streams.len(), udp.len(), echo.len()), (0, 0, 0, 0), "sockets");
    }
}

#[test]
fn thousands_of_flows_in_every_way_over_a_link_that_loses_leave_nothing() {
    let mut soak = Soak::new(10);
    let (start, mut next, mut timers) = (soak.now, 0u16, 0);
    while next < 3000 || soak.clients.values().any(|c| !c.over) {
        if next < 3000 {
            for _ in 0..soak.chance.below(8) {
                let fate = FATES[soak.chance.below(FATES.len() as u64) as usize];
                match next % 2 {
                    0 => soak.begin(1024 + next, fate),
                    _ => soak.begin_inbound(1024 + next, fate),
                }
                next += 1;
            }
        }
        // A link that stands still for a while.
        soak.link.full = soak.chance.below(50) == 0;
        if !soak.link.full {
            soak.gateway.tcp().handle_link_ready(PEER.port);
        }
        soak.tick(TICK);
        let held: HashMap<_, _> = soak.gateway.tcp().held().into();
        timers = timers.max(held["timers"]);
        let flows = held["flows"];
        assert!(
            held["keys"] == flows && held["parked"] <= flows && held["connecting"] + held["dialing"] <= flows,
            "{held:?}"
        );
        assert!(soak.now < start + Duration::from_secs(3600), "virtual time ran away");
        if soak.clients.len() > 64 {
            soak.clients.retain(|_, c| !c.over || c.fate == Fate::Silent || c.fin_came);
        }
    }
    assert!(timers < 20_000, "{timers} entries in the timers' heap");
    soak.link.full = false;
    soak.gateway.tcp().handle_link_ready(PEER.port);
    soak.drain();
    assert!(soak.gateway.counters().tcp_flows >= 3000);
    soak.assert_nothing_left();
}

#[test]
fn a_flood_of_syns_is_bounded_and_passes() {
    // Nobody outside has answered yet.
    let mut soak = Soak::new(0);
    for port in 1..=5000 {
        soak.segment(port, "S", u32::from(port), 0, &[]);
    }
    assert_eq!((soak.gateway.flows().0, soak.host.connects.len()), (HALF_OPEN_LIMIT, HALF_OPEN_LIMIT));
    assert_eq!(soak.gateway.counters().dropped(DropReason::HalfOpenLimit), 5000 - HALF_OPEN_LIMIT as u64);
    // They answer; the sandbox does not.
    for port in 1..=5000 {
        soak.begin(port, Fate::Silent);
        soak.over(port);
    }
    soak.host_answers();
    assert_eq!(soak.host.streams.len(), HALF_OPEN_LIMIT);
    soak.drain();
    soak.assert_nothing_left();
}

#[test]
fn floods_of_sources_are_bounded_and_pass() {
    let mut soak = Soak::new(0);
    for source in 1..=10_000u16 {
        let packet = || {
            PacketBuilder::ethernet2(SANDBOX_MAC.0, network(1500).gateway_mac.0).ipv4(
                SANDBOX_V4.octets(),
                DESTINATION,
                64,
            )
        };
        let mut frame = Vec::new();
        packet().udp(source, 9).write(&mut frame, b"flood").unwrap();
        soak.frame(&frame);
        frame.clear();
        packet().icmpv4_echo_request(source, 1).write(&mut frame, b"flood").unwrap();
        soak.frame(&frame);
    }
    assert_eq!(soak.gateway.flows(), (0, MOST_FLOWS, echo::MOST_FLOWS));
    assert_eq!((soak.host.udp.len(), soak.host.echo.len()), (MOST_FLOWS, echo::MOST_FLOWS));
    // The new one is made room for before it has its socket.
    assert!(soak.host.most_udp <= MOST_FLOWS);
    soak.drain();
    soak.assert_nothing_left();
}

#[test]
fn a_flood_of_fragments_is_bounded_and_passes() {
    let mut soak = Soak::new(0);
    for id in 0..5000u16 {
        // The last 1400 bytes of a large datagram whose beginning never comes.
        let mut ip =
            etherparse::Ipv4Header::new(1400, 64, etherparse::ip_number::UDP, SANDBOX_V4.octets(), DESTINATION)
                .unwrap();
        ip.identification = id;
        ip.more_fragments = id % 2 == 0;
        ip.fragment_offset = etherparse::IpFragOffset::try_new(7000).unwrap();
        ip.header_checksum = ip.calc_header_checksum();
        let packet = [&ip.to_bytes()[..], &[0x5a; 1400]].concat();
        let frame = frame_from_sandbox(soak.gateway.network().gateway_mac, ETHERTYPE_IPV4, &packet);
        soak.frame(&frame);
        let (datagrams, bytes) = soak.gateway.reassembly.held();
        assert!(datagrams <= 16 && bytes <= 1 << 20, "{datagrams} datagrams, {bytes} bytes");
    }
    assert_eq!(soak.gateway.reassembly.held().0, 16);
    soak.drain();
    soak.assert_nothing_left();
}
