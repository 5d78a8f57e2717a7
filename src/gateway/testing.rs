//! What tests of UDP and ping share: a host that keeps what it is given, and a gateway between it and a link.
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};

use super::counters::DropReason;
use super::emit::testing::{PEER, Recorder, SANDBOX_MAC, endpoint, network};
use super::link::{Asker, Datagram, EchoId, Host, HostError, Offload, ReplyPath, TcpId, UdpId};
use super::{Gateway, packet};
use crate::plan::{HostView, Network};

/// The host's own addresses in tests.
pub const HOST_V4: &str = "198.51.100.7";
pub const HOST_V6: &str = "2001:db8:7::7";

/// A datagram that was sent, [`Datagram`] with its bytes kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent<Id, To> {
    pub flow: Id,
    pub to: To,
    pub payload: Vec<u8>,
    pub segment: u16,
    pub hop_limit: u8,
    pub tos: u8,
    pub dont_fragment: bool,
    /// Of an echo request.
    pub sequence: u16,
}

impl<Id, To> Sent<Id, To> {
    fn new(flow: Id, to: To, sequence: u16, datagram: Datagram<'_>) -> Sent<Id, To> {
        let Datagram { payload, segment, hop_limit, tos, dont_fragment } = datagram;
        Sent { flow, to, payload: payload.to_vec(), segment, hop_limit, tos, dont_fragment, sequence }
    }
}

/// Keeps what it is given.
#[derive(Default)]
pub struct FakeHost {
    /// Connects: whose, where to, hop limit.
    pub tcp: Vec<(TcpId, SocketAddr, Option<u8>)>,
    /// Connects to the forwarder.
    pub tcp_dns: Vec<TcpId>,
    pub udp: Vec<Sent<UdpId, SocketAddr>>,
    pub udp_closed: Vec<UdpId>,
    /// To clients of published ports: way, client, payload, type of service.
    pub published: Vec<(ReplyPath, SocketAddr, Vec<u8>, u8)>,
    pub echo: Vec<Sent<EchoId, IpAddr>>,
    pub echo_closed: Vec<EchoId>,
    pub queries: Vec<(Asker, Vec<u8>)>,
    /// What the next sends fail with; after that they succeed.
    pub fail: VecDeque<HostError>,
    pub dns_full: bool,
}

impl Host for FakeHost {
    fn tcp_connect(&mut self, flow: TcpId, to: SocketAddr, hop_limit: Option<u8>) {
        self.tcp.push((flow, to, hop_limit));
    }

    fn tcp_connect_dns(&mut self, flow: TcpId, _asker: Asker) {
        self.tcp_dns.push(flow);
    }

    fn tcp_keepalive(&mut self, _: TcpId) {}
    fn tcp_close(&mut self, _flow: TcpId, _reset: bool) {}

    fn udp_send(&mut self, flow: UdpId, to: SocketAddr, datagram: Datagram<'_>) -> Result<(), HostError> {
        self.fail.pop_front().map_or(Ok(()), Err)?;
        self.udp.push(Sent::new(flow, to, 0, datagram));
        Ok(())
    }

    fn published_send(&mut self, path: ReplyPath, client: SocketAddr, datagram: Datagram<'_>) -> Result<(), HostError> {
        self.fail.pop_front().map_or(Ok(()), Err)?;
        self.published.push((path, client, datagram.payload.to_vec(), datagram.tos));
        Ok(())
    }

    fn udp_close(&mut self, flow: UdpId) {
        self.udp_closed.push(flow);
    }

    fn echo_send(&mut self, flow: EchoId, to: IpAddr, sequence: u16, datagram: Datagram<'_>) -> Result<(), HostError> {
        self.fail.pop_front().map_or(Ok(()), Err)?;
        self.echo.push(Sent::new(flow, to, sequence, datagram));
        Ok(())
    }

    fn echo_close(&mut self, flow: EchoId) {
        self.echo_closed.push(flow);
    }

    fn dns_query(&mut self, asker: Asker, message: &[u8]) -> bool {
        self.queries.push((asker, message.to_vec()));
        !self.dns_full
    }
}

/// A gateway, its host and its link.
pub struct Test {
    pub now: Instant,
    pub gateway: Gateway,
    pub host: FakeHost,
    pub link: Recorder,
}

impl Test {
    pub fn new() -> Test {
        let host = HostView { v4: HOST_V4.parse().ok(), v6: HOST_V6.parse().ok(), ..HostView::default() };
        Test::with(network(1500), host)
    }

    pub fn with(network: Network, host: HostView) -> Test {
        let now = Instant::now();
        let mut gateway = Gateway::new(now, network, host);
        gateway.add_port(PEER.port, endpoint());
        Test { now, gateway, host: FakeHost::default(), link: Recorder::default() }
    }

    pub fn frame(&mut self, offload: Offload, frame: &[u8]) {
        self.gateway.handle_frame(self.now, PEER.port, offload, frame, &mut self.host, &mut self.link);
    }

    /// The sandbox sends a datagram that is allowed eight hops.
    pub fn udp(&mut self, from: &str, to: &str, payload: &[u8]) {
        self.frame(Offload::default(), &udp_frame(from, to, 8, payload));
    }

    /// The sandbox opens a connection.
    pub fn syn(&mut self, from: &str, to: &str) {
        self.frame(Offload::default(), &syn_frame(from, to, 64));
    }

    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.gateway.counters().dropped(reason)
    }

    pub fn pass(&mut self, time: Duration) {
        self.now += time;
        self.gateway.handle_timeout(self.now, &mut self.host, &mut self.link);
    }

    /// The UDP datagram in the one frame that the sandbox got: from, to, payload.
    #[track_caller]
    pub fn received(&mut self) -> (SocketAddr, SocketAddr, Vec<u8>) {
        let frame = self.link.one().to_vec();
        self.link.frames.clear();
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(TransportSlice::Udp(udp)) = &packet.transport else { panic!("{packet:?}") };
        let (src, dst) = addresses(&packet);
        (SocketAddr::new(src, udp.source_port()), SocketAddr::new(dst, udp.destination_port()), udp.payload().to_vec())
    }

    /// The ICMP error in the one frame that the sandbox got: its sender, type, code, the eight bytes' second
    /// half, and the quoted packet.
    #[track_caller]
    pub fn error(&mut self) -> (IpAddr, u8, u8, u32, Vec<u8>) {
        let frame = self.link.one().to_vec();
        self.link.frames.clear();
        let (src, _) = addresses(&SlicedPacket::from_ethernet(&frame).unwrap());
        let at = packet::ETHERNET_HEADER + if src.is_ipv4() { 20 } else { 40 };
        let rest = u32::from_be_bytes(*frame[at + 4..].first_chunk().unwrap());
        (src, frame[at], frame[at + 1], rest, frame[at + 8..].to_vec())
    }
}

fn addresses(packet: &SlicedPacket<'_>) -> (IpAddr, IpAddr) {
    match packet.net.as_ref().unwrap() {
        etherparse::NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        etherparse::NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        net => panic!("{net:?}"),
    }
}

/// A frame of the sandbox with an echo request.
pub fn echo_frame(from: &str, to: &str, hop_limit: u8, id: u16, seq: u16, data: &[u8]) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(SANDBOX_MAC.0, network(1500).gateway_mac.0);
    let mut frame = Vec::new();
    match (from.parse().unwrap(), to.parse().unwrap()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => ethernet
            .ipv4(src.octets(), dst.octets(), hop_limit)
            .icmpv4_echo_request(id, seq)
            .write(&mut frame, data)
            .unwrap(),
        (IpAddr::V6(src), IpAddr::V6(dst)) => ethernet
            .ipv6(src.octets(), dst.octets(), hop_limit)
            .icmpv6_echo_request(id, seq)
            .write(&mut frame, data)
            .unwrap(),
        _ => panic!("two families"),
    }
    frame
}

/// A frame of the sandbox with a SYN.
pub fn syn_frame(from: &str, to: &str, hop_limit: u8) -> Vec<u8> {
    let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let ethernet = PacketBuilder::ethernet2(SANDBOX_MAC.0, network(1500).gateway_mac.0);
    let mut frame = Vec::new();
    match (from.ip(), to.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => ethernet
            .ipv4(src.octets(), dst.octets(), hop_limit)
            .tcp(from.port(), to.port(), 1000, 64_000)
            .syn()
            .write(&mut frame, &[])
            .unwrap(),
        (IpAddr::V6(src), IpAddr::V6(dst)) => ethernet
            .ipv6(src.octets(), dst.octets(), hop_limit)
            .tcp(from.port(), to.port(), 1000, 64_000)
            .syn()
            .write(&mut frame, &[])
            .unwrap(),
        _ => panic!("two families"),
    }
    frame
}

/// A frame of the sandbox with a UDP datagram.
pub fn udp_frame(from: &str, to: &str, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let ethernet = PacketBuilder::ethernet2(SANDBOX_MAC.0, network(1500).gateway_mac.0);
    let mut frame = Vec::new();
    match (from.ip(), to.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => ethernet
            .ipv4(src.octets(), dst.octets(), hop_limit)
            .udp(from.port(), to.port())
            .write(&mut frame, payload)
            .unwrap(),
        (IpAddr::V6(src), IpAddr::V6(dst)) => ethernet
            .ipv6(src.octets(), dst.octets(), hop_limit)
            .udp(from.port(), to.port())
            .write(&mut frame, payload)
            .unwrap(),
        _ => panic!("two families"),
    }
    frame
}
