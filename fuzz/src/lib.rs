//! What the targets share: a gateway between a link and a host that both check what they are given, and the
//! clock. A target makes frames and events; whatever the gateway answers must be a frame that a second parser
//! reads, with lengths, checksums and offloads that are true; nothing may be left to do for ever; and when the
//! sandbox has left, nothing may be left at all.
pub mod frame;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use frame::Rules;
use tapline::gateway::Gateway;
use tapline::gateway::icmp::IcmpError;
use tapline::gateway::link::{
    Asker, Datagram, EchoId, Host, HostError, Link, Offload, PortId, ReplyPath, TcpId, UdpId,
};
use tapline::gateway::tcp::Outcome;
use tapline::gateway::tcp::flow::{HostStream, Transfer};
use tapline::plan::{Endpoint, HostView, Ipv4Layout, Ipv6Layout, MacAddr, Network};

pub const PORT: PortId = PortId(1);
pub const SANDBOX_MAC: MacAddr = MacAddr([0x02, 0x42, 10, 0, 2, 100]);
pub const SANDBOX_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
pub const SANDBOX_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100);
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
pub const DNS_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
pub const DNS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);
pub const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
pub const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);
/// Somebody on the sandbox's segment.
pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 50);
const HOST_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// Most turns of the pump, or of the clock standing still, before something is taken to go on for ever.
const PATIENCE: usize = 10_000;

/// Destinations worth writing to.
pub const PLACES: [IpAddr; 12] = [
    IpAddr::V4(OUTSIDE_V4),
    IpAddr::V6(OUTSIDE_V6),
    IpAddr::V4(GATEWAY_V4),
    IpAddr::V6(GATEWAY_V6),
    IpAddr::V4(DNS_V4),
    IpAddr::V6(DNS_V6),
    IpAddr::V4(HOST_V4),
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V4(Ipv4Addr::BROADCAST),
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)),
    IpAddr::V4(Ipv4Addr::new(240, 0, 0, 1)),
];

/// One of [`PLACES`].
pub fn place(which: u8) -> IpAddr {
    PLACES[usize::from(which) % PLACES.len()]
}

/// Somebody who may have sent an ICMP error: the host's kernel takes none from a group.
pub fn router(which: u8) -> IpAddr {
    PLACES[usize::from(which) % 8]
}

/// The sandbox's address of the other's family.
pub fn sandbox(other: IpAddr) -> IpAddr {
    if other.is_ipv4() { SANDBOX_V4.into() } else { SANDBOX_V6.into() }
}

/// One of the ways in which a host says no.
pub fn host_error(which: u8) -> HostError {
    use HostError::*;
    let all = [
        Refused,
        NetUnreachable,
        HostUnreachable,
        Prohibited,
        TooBig(1280),
        TooBig(0),
        TooBig(u32::MAX),
        TimedOut,
        Reset,
        Exhausted,
        Unsupported,
    ];
    all[usize::from(which) % all.len()]
}

/// One of the ICMP errors.
pub fn icmp_error(which: u8, mtu: u32) -> IcmpError {
    use IcmpError::*;
    let all = [
        NetUnreachable,
        HostUnreachable,
        ProtocolUnreachable,
        PortUnreachable,
        Prohibited,
        PacketTooBig(mtu),
        HopLimitExceeded,
        ReassemblyTimeExceeded,
    ];
    all[usize::from(which) % all.len()]
}

/// slirp's network.
pub fn network(mtu: u16) -> Network {
    Network {
        name: "private".into(),
        sharing: None,
        v4: Ipv4Layout::slirp("10.0.2.0/24".parse().expect("a subnet")),
        v6: Ipv6Layout::slirp("fd00::/64".parse().expect("a prefix")),
        mtu,
        gateway_mac: MacAddr::from_ipv4(GATEWAY_V4),
        host_loopback_allowed: false,
        metadata_allowed: false,
        broadcast_to_host: false,
        dns_enabled: true,
        dns_search: vec!["example.org".into()],
        dns_servers: Vec::new(),
        local_names: vec![("host.tapline.internal".into(), GATEWAY_V4.into())],
        outbound: Default::default(),
        udp_timeout: Duration::from_secs(180),
        behaviour: Default::default(),
    }
}

fn endpoint() -> Endpoint {
    Endpoint {
        id: "0123456789ab".into(),
        name: "fuzz".into(),
        ifname: "tap0".into(),
        mac: SANDBOX_MAC,
        v4: Some(SANDBOX_V4),
        v6: Some(SANDBOX_V6),
        ..Endpoint::default()
    }
}

/// The byte of a stream's pattern at this place, so that what arrives shows where it belongs.
pub fn pattern(at: u32) -> u8 {
    (at ^ (at >> 7) ^ (at >> 17)) as u8
}

/// Frames for the sandbox, each checked.
pub struct Frames {
    pub sent: Vec<(Offload, Vec<u8>)>,
    pub full: bool,
    pub super_datagrams: bool,
    pub rules: Rules,
}

impl Link for Frames {
    fn has_room(&self, port: PortId) -> bool {
        assert_eq!(port, PORT);
        !self.full
    }

    fn takes_udp_super_segments(&self, _: PortId) -> bool {
        self.super_datagrams
    }

    fn transmit<R>(&mut self, port: PortId, offload: Offload, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        assert_eq!(port, PORT);
        let mut bytes = vec![0xaa; len];
        let result = fill(&mut bytes);
        frame::check(&bytes, &offload, &self.rules);
        self.sent.push((offload, bytes));
        result
    }
}

/// The host's side of a TCP flow: gives a pattern, and wants the sandbox's pattern where that has begun.
#[derive(Default)]
pub struct Stream {
    /// Bytes it will take until it is asked again.
    pub takes: usize,
    /// Bytes it still has to give.
    pub gives: usize,
    pub ended: bool,
    pub broken: bool,
    /// The sequence number of the next byte that is due from the sandbox, once that is known.
    pub expects: Option<u32>,
    given: u32,
    shut: bool,
}

impl HostStream for Stream {
    fn send(&mut self, data: &[u8]) -> Transfer {
        assert!(!data.is_empty(), "nothing is no write");
        assert!(!self.shut, "a byte behind the end");
        if self.broken {
            return Transfer::Broken;
        }
        let count = data.len().min(self.takes);
        if let Some(next) = &mut self.expects {
            for &byte in &data[..count] {
                assert_eq!(byte, pattern(*next), "a byte in the wrong place");
                *next = next.wrapping_add(1);
            }
        }
        self.takes -= count;
        if count == 0 { Transfer::Blocked } else { Transfer::Moved(count) }
    }

    fn recv(&mut self, room: &mut [u8]) -> Transfer {
        if self.broken {
            return Transfer::Broken;
        }
        let count = room.len().min(self.gives);
        for byte in &mut room[..count] {
            *byte = pattern(self.given);
            self.given = self.given.wrapping_add(1);
        }
        self.gives -= count;
        match count {
            0 if self.ended => Transfer::Ended,
            0 => Transfer::Blocked,
            count => Transfer::Moved(count),
        }
    }

    fn shutdown_write(&mut self) {
        assert!(!self.shut, "shut twice");
        self.shut = true;
    }
}

/// The host's sockets. Nobody may use one that was closed.
#[derive(Default)]
pub struct Sockets {
    /// Connects under way.
    pub connecting: Vec<TcpId>,
    pub streams: HashMap<TcpId, Stream>,
    pub udp: Vec<(UdpId, SocketAddr)>,
    pub echo: Vec<(EchoId, u16)>,
    pub questions: Vec<(Asker, Vec<u8>)>,
    /// Who has written to a published port, by which socket, that is not closed.
    pub clients: HashSet<(ReplyPath, SocketAddr)>,
    /// What the next send fails with.
    pub fail: Option<HostError>,
    /// The host's loopback may be written to, and groups.
    pub open: bool,
    udp_closed: HashSet<UdpId>,
    echo_closed: HashSet<EchoId>,
}

impl Sockets {
    /// Nobody sends there.
    fn check(&self, to: IpAddr) {
        assert!(!to.is_unspecified() && (self.open || !(to.is_loopback() || to.is_multicast())), "to {to}");
    }
}

impl Host for Sockets {
    fn tcp_connect(&mut self, flow: TcpId, to: SocketAddr, hop_limit: Option<u8>) {
        self.check(to.ip());
        assert_ne!(hop_limit, Some(0));
        self.connecting.push(flow);
    }

    fn tcp_connect_dns(&mut self, flow: TcpId, _: Asker) {
        self.connecting.push(flow);
    }

    fn tcp_keepalive(&mut self, flow: TcpId) {
        assert!(self.streams.contains_key(&flow));
    }

    fn tcp_close(&mut self, flow: TcpId, _: bool) {
        let at = self.connecting.iter().position(|&id| id == flow);
        let was_there = self.streams.remove(&flow).is_some() || at.map(|at| self.connecting.remove(at)).is_some();
        assert!(was_there, "closed twice");
    }

    fn udp_send(&mut self, flow: UdpId, to: SocketAddr, datagram: Datagram<'_>) -> Result<(), HostError> {
        assert!(!self.udp_closed.contains(&flow));
        assert!(to.port() != 0);
        self.check(to.ip());
        assert!(datagram.hop_limit > 0);
        assert!(datagram.segment == 0 || usize::from(datagram.segment) < datagram.payload.len());
        self.udp.push((flow, to));
        self.fail.take().map_or(Ok(()), Err)
    }

    fn published_send(&mut self, path: ReplyPath, client: SocketAddr, datagram: Datagram<'_>) -> Result<(), HostError> {
        assert!(self.clients.contains(&(path, client)), "an answer to somebody who never asked");
        assert!(datagram.hop_limit > 0);
        assert!(datagram.segment == 0 || usize::from(datagram.segment) < datagram.payload.len());
        self.fail.take().map_or(Ok(()), Err)
    }

    fn udp_close(&mut self, flow: UdpId) {
        assert!(self.udp_closed.insert(flow), "closed twice");
    }

    fn echo_send(&mut self, flow: EchoId, to: IpAddr, sequence: u16, _: Datagram<'_>) -> Result<(), HostError> {
        assert!(!self.echo_closed.contains(&flow));
        self.check(to);
        self.echo.push((flow, sequence));
        self.fail.take().map_or(Ok(()), Err)
    }

    fn echo_close(&mut self, flow: EchoId) {
        assert!(self.echo_closed.insert(flow), "closed twice");
    }

    fn dns_query(&mut self, asker: Asker, message: &[u8]) -> bool {
        self.questions.push((asker, message.to_vec()));
        self.fail.take().is_none()
    }
}

/// A gateway with one sandbox, its host, its link and its clock.
pub struct World {
    pub now: Instant,
    pub gateway: Gateway,
    pub host: Sockets,
    pub link: Frames,
}

impl World {
    pub fn new(mtu: u16) -> World {
        World::with(network(mtu))
    }

    /// On a network whose addresses are those of [`network`].
    pub fn with(network: Network) -> World {
        let mut world = World::of(network, endpoint());
        let own = [GATEWAY_V4.into(), DNS_V4.into(), MacAddr::from_ipv4(GATEWAY_V4).link_local().into()];
        world.link.rules.sources = Some(PLACES.into_iter().chain(own).chain([CLIENT_V4.into()]).collect());
        world
    }

    /// On any network at all.
    pub fn of(network: Network, endpoint: Endpoint) -> World {
        let now = Instant::now();
        let own = [endpoint.v4.map(IpAddr::V4), endpoint.v6.map(IpAddr::V6)].into_iter().flatten();
        // Another tool's command line may give both the same address, and then each has what was asked for.
        let gateways = [network.v4.map(|l| IpAddr::V4(l.gateway)), network.v6.map(|l| IpAddr::V6(l.gateway))];
        let is_others = |ip: IpAddr| gateways.contains(&Some(ip)) || network.is_host(ip) || network.is_dns(ip);
        let own = own.filter(|ip| !is_others(*ip)).collect();
        let rules = Rules { mtu: network.mtu.into(), mac: network.gateway_mac, sources: None, own };
        let view = HostView { v4: Some(HOST_V4), ..HostView::default() };
        let open = network.host_loopback_allowed || network.behaviour.mapping.is_some();
        let mut gateway = Gateway::new(now, network, view);
        gateway.add_port(PORT, endpoint);
        let link = Frames { sent: Vec::new(), full: false, super_datagrams: true, rules };
        World { now, gateway, host: Sockets { open, ..Sockets::default() }, link }
    }

    /// What every sandbox says first, whatever its network is: that it is there, who is there, and a little to each
    /// of [`PLACES`].
    pub fn greet(&mut self) {
        let network = self.gateway.network();
        let (mac, v4, v6) = (network.gateway_mac, network.v4, network.v6);
        let Some(endpoint) = self.gateway.endpoint(PORT) else { return };
        let (own, own4, own6) = (endpoint.mac, endpoint.v4, endpoint.v6);
        let to = |kind: u16, packet: &[u8]| [&mac.0[..], &own.0, &kind.to_be_bytes(), packet].concat();
        if let (Some(layout), Some(ip)) = (v4, own4) {
            let ask = [&[0, 1, 8, 0, 6, 4, 0, 1], &own.0[..], &ip.octets(), &[0; 6], &layout.gateway.octets()].concat();
            self.frame(Offload::default(), &to(frame::ARP, &ask));
        }
        // RFC 2131: DHCPDISCOVER; RFC 4861: a router solicitation.
        let mut discover = vec![0; 236];
        discover[..3].copy_from_slice(&[1, 1, 6]);
        discover[28..34].copy_from_slice(&own.0);
        discover.extend_from_slice(&[99, 130, 83, 99, 53, 1, 1, 255]);
        self.datagram(&to, Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into(), (68, 67), &discover);
        let routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
        self.upper(&to, own.link_local().into(), routers.into(), 58, &[133, 0, 0, 0, 0, 0, 0, 0]);
        let gateways = [v4.map(|l| IpAddr::V4(l.gateway)), v6.map(|l| IpAddr::V6(l.gateway))];
        for dst in PLACES.into_iter().chain(gateways.into_iter().flatten()) {
            let Some(src) = (if dst.is_ipv4() { own4.map(IpAddr::V4) } else { own6.map(IpAddr::V6) }) else { continue };
            // Its own kernel sends none of that.
            if src == dst {
                continue;
            }
            self.datagram(&to, src, dst, (40_000, 9), &[0x5a; 1000]);
            let syn = [156, 64, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 255, 255, 0, 0, 0, 0];
            self.upper(&to, src, dst, 6, &syn);
            let echo = if dst.is_ipv4() { (1, 8) } else { (58, 128) };
            self.upper(&to, src, dst, echo.0, &[&[echo.1, 0, 0, 0, 0, 7, 0, 1], &[9; 56][..]].concat());
        }
        while !self.host.connecting.is_empty() {
            self.outcome(0, Err(HostError::Refused), None);
        }
    }

    fn datagram(
        &mut self,
        to: &impl Fn(u16, &[u8]) -> Vec<u8>,
        src: IpAddr,
        dst: IpAddr,
        ports: (u16, u16),
        payload: &[u8],
    ) {
        let length = (8 + payload.len() as u16).to_be_bytes();
        let udp = [&ports.0.to_be_bytes()[..], &ports.1.to_be_bytes(), &length, &[0, 0], payload].concat();
        self.upper(to, src, dst, 17, &udp);
    }

    fn upper(&mut self, to: &impl Fn(u16, &[u8]) -> Vec<u8>, src: IpAddr, dst: IpAddr, protocol: u8, payload: &[u8]) {
        let packet = frame::ip(src, dst, protocol, 255, payload);
        let kind = if src.is_ipv4() { frame::IPV4 } else { frame::IPV6 };
        self.frame(Offload { csum_valid: true, ..Offload::default() }, &to(kind, &packet[frame::ETHERNET..]));
    }

    /// The sandbox sends a frame.
    pub fn frame(&mut self, offload: Offload, frame: &[u8]) {
        self.gateway.handle_frame(self.now, PORT, offload, frame, &mut self.host, &mut self.link);
        self.settle();
    }

    /// The sandbox sends an IP packet whose upper checksum is not looked at.
    pub fn packet(&mut self, src: IpAddr, dst: IpAddr, protocol: u8, hop_limit: u8, payload: &[u8]) {
        let vouched = Offload { csum_valid: true, ..Offload::default() };
        self.frame(vouched, &frame::ip(src, dst, protocol, hop_limit, payload));
    }

    /// A connect has an outcome.
    pub fn outcome(&mut self, which: u8, result: Result<(), HostError>, offender: Option<IpAddr>) {
        if self.host.connecting.is_empty() {
            return;
        }
        let at = usize::from(which) % self.host.connecting.len();
        let flow = self.host.connecting.remove(at);
        let outcome = self.gateway.handle_tcp_outcome(self.now, flow, result, offender, &mut self.link);
        if outcome == Outcome::Open {
            assert!(result.is_ok());
            self.host.streams.insert(flow, Stream::default());
        }
        self.settle();
    }

    /// A client of a published port calls.
    pub fn call(&mut self, client: SocketAddr, sandbox_port: u16) -> Option<TcpId> {
        let flow = self.gateway.open_published(self.now, PORT, client, sandbox_port, &mut self.link).ok()?;
        assert!(self.host.streams.insert(flow, Stream::default()).is_none());
        self.settle();
        Some(flow)
    }

    /// A TCP flow's host socket has something to say.
    pub fn stream_ready(&mut self, flow: TcpId) {
        self.gateway.tcp().handle_stream_ready(flow);
        self.settle();
    }

    pub fn link_room(&mut self, room: bool) {
        self.link.full = !room;
        if room {
            self.gateway.tcp().handle_link_ready(PORT);
        }
        self.settle();
    }

    /// Pump until no flow is dirty. That it ends is what is tested.
    pub fn settle(&mut self) {
        for _ in 0..PATIENCE {
            let Some(flow) = self.gateway.tcp().take_dirty() else { return };
            let Some(stream) = self.host.streams.get_mut(&flow) else { continue };
            if self.gateway.pump_tcp(self.now, flow, stream, &mut self.link).is_some() {
                self.host.streams.remove(&flow);
            }
        }
        panic!("a flow is dirty for ever");
    }

    /// Time passes. That the clock is not asked to stand still is what is tested.
    pub fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        let mut turns = 0;
        while let Some(at) = self.gateway.next_timeout().filter(|at| *at <= until) {
            turns += 1;
            assert!(turns < PATIENCE, "a timer is due for ever");
            self.now = self.now.max(at);
            self.gateway.handle_timeout(self.now, &mut self.host, &mut self.link);
            self.settle();
        }
        self.now = until;
    }

    /// The sandbox leaves; what is left of it goes with time.
    pub fn finish(mut self) {
        self.gateway.remove_port(PORT, &mut self.host);
        assert_eq!(self.gateway.flows(), (0, 0, 0));
        assert!(self.host.streams.is_empty() && self.host.connecting.is_empty());
        let frames = self.link.sent.len();
        self.pass(Duration::from_secs(120));
        assert_eq!(self.gateway.next_timeout(), None, "a timer of nobody");
        assert_eq!(self.link.sent.len(), frames, "a frame to nobody");
    }
}
