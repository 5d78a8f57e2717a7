//! Frames of three sandboxes on a shared network, through the switch and, where it says so, the gateway. Whatever one
//! sends, another gets nothing that claims to be from somebody else; where sandboxes are kept apart, nothing but what a
//! link opens; and the gateway's answers go to the one who asked.
#![no_main]
use std::net::IpAddr;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use etherparse::{NetSlice, SlicedPacket};
use libfuzzer_sys::fuzz_target;
use tapline::datapath::switch::{Switch, Way};
use tapline::fuzzing;
use tapline::gateway::Gateway;
use tapline::gateway::link::{Link, Offload, PortId};
use tapline::plan::{Endpoint, Expose, HostView, MacAddr, PortRange, Protocol, SandboxLink, Sharing};
use tapline::sys::vnet::VnetHeader;
use tapline_fuzz::frame::Rules;
use tapline_fuzz::{GATEWAY_V4, Sockets, frame, network, place};

const MTU: u16 = 1500;
const PORTS: u32 = 3;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    icc: bool,
    internal: bool,
    events: Vec<Event<'a>>,
}

#[derive(Arbitrary, Debug)]
enum Event<'a> {
    /// A frame as it is.
    Raw {
        port: u8,
        header: [u8; 10],
        bytes: &'a [u8],
    },
    /// A frame with right addresses.
    Ethernet {
        port: u8,
        to: u8,
        header: [u8; 10],
        kind: u8,
        bytes: &'a [u8],
    },
    /// An IP packet with right header.
    Ip {
        port: u8,
        to: u8,
        v6: bool,
        lie: Option<u8>,
        protocol: u8,
        hop_limit: u8,
        bytes: &'a [u8],
    },
    Milliseconds(u16),
    Leave(u8),
    Join(u8),
}

fn mac(port: PortId) -> MacAddr {
    MacAddr([2, 0x42, 10, 0, 2, 100 + port.0 as u8])
}

fn address(port: PortId, v6: bool) -> IpAddr {
    let last = 100 + port.0 as u8;
    if v6 { [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)].into() } else { [10, 0, 2, last].into() }
}

/// The first has a link to the second, which exposes a few ports.
fn endpoint(port: PortId) -> Endpoint {
    let exposed = Expose { ports: PortRange { first: 1, last: 0x2fff }, protocol: Protocol::Tcp };
    let (IpAddr::V4(v4), IpAddr::V6(v6)) = (address(port, false), address(port, true)) else { unreachable!() };
    Endpoint {
        id: format!("{:012x}", port.0),
        name: port.0.to_string(),
        mac: mac(port),
        v4: Some(v4),
        v6: Some(v6),
        links: if port.0 == 0 { vec![SandboxLink { sandbox: "1".into(), alias: None }] } else { Vec::new() },
        exposed: vec![exposed, Expose { protocol: Protocol::Udp, ..exposed }],
        ..Endpoint::default()
    }
}

/// Frames of the gateway: for whoever sent last, or nobody.
struct Answers {
    to: Option<PortId>,
}

impl Link for Answers {
    fn has_room(&self, _: PortId) -> bool {
        true
    }

    fn transmit<R>(&mut self, port: PortId, offload: Offload, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut bytes = vec![0xaa; len];
        let result = fill(&mut bytes);
        let rules = Rules { mtu: MTU.into(), mac: MacAddr::from_ipv4(GATEWAY_V4), sources: None, own: Vec::new() };
        frame::check(&bytes, &offload, &rules);
        let to = MacAddr(std::array::from_fn(|i| bytes[i]));
        assert!(to == mac(port) || to.is_group(), "a frame for somebody else");
        assert!(self.to.is_none_or(|to| to == port), "an answer to somebody who has not asked");
        result
    }
}

struct World {
    now: Instant,
    icc: bool,
    switch: Switch,
    gateway: Gateway,
    host: Sockets,
}

impl World {
    fn sent(&mut self, port: PortId, header: [u8; 10], bytes: &[u8]) {
        let Some(offload) = fuzzing::offload(&VnetHeader::decode(&header), bytes.len()) else { return };
        let way = self.switch.judge(self.now, port, &offload, bytes);
        let mut link = Answers { to: Some(port) };
        match way {
            Way::Gateway => {
                self.gateway.handle_frame(self.now, port, offload, bytes, &mut self.host, &mut link);
            }
            Way::Refused => self.gateway.handle_refused(self.now, port, offload, bytes, &mut link),
            Way::Port(to) => {
                assert!(to != port);
                assert!(self.icc || port.0 + to.0 == 1, "no link leads there");
                innocent(port, bytes);
            }
            Way::Flood { .. } => {
                assert!(self.icc);
                assert!(self.switch.others(port).all(|to| to != port));
                innocent(port, bytes);
            }
            Way::Nowhere(_) => {}
        }
    }
}

/// Does the frame say who it is from?
fn innocent(port: PortId, bytes: &[u8]) {
    assert_eq!(bytes[6..12], mac(port).0);
    let own = [address(port, false), address(port, true), mac(port).link_local().into()];
    match SlicedPacket::from_ethernet(bytes).map(|packet| packet.net) {
        Ok(Some(NetSlice::Ipv4(ip))) => assert!(own.contains(&ip.header().source_addr().into())),
        Ok(Some(NetSlice::Ipv6(ip))) => {
            let source = IpAddr::from(ip.header().source_addr());
            assert!(own.contains(&source) || source.is_unspecified());
            let payload = ip.payload();
            if payload.ip_number.0 == 58 && !ip.is_payload_fragmented() {
                assert!(!matches!(payload.payload.first(), Some(134 | 137)), "a router");
            }
        }
        Ok(Some(NetSlice::Arp(arp))) => assert_eq!(arp.sender_hw_addr(), mac(port).0),
        _ => {}
    }
}

fn ethernet(port: PortId, to: u8, kind: u16, packet: &[u8]) -> Vec<u8> {
    let gateway = MacAddr::from_ipv4(GATEWAY_V4);
    let groups = [MacAddr::BROADCAST, MacAddr([0x33, 0x33, 0, 0, 0, 1])];
    let all = [mac(PortId(0)), mac(PortId(1)), mac(PortId(2)), gateway, groups[0], groups[1]];
    [&all[usize::from(to) % all.len()].0[..], &mac(port).0, &kind.to_be_bytes(), packet].concat()
}

fn step(world: &mut World, event: Event<'_>) {
    let port = |port: u8| PortId(u32::from(port) % PORTS);
    match event {
        Event::Raw { port: from, header, bytes } => world.sent(port(from), header, bytes),
        Event::Ethernet { port: from, to, header, kind, bytes } => {
            let kind = [frame::ARP, frame::IPV4, frame::IPV6][usize::from(kind) % 3];
            let mut packet = bytes.to_vec();
            if kind == frame::IPV4 {
                frame::mend_ipv4(&mut packet);
            }
            world.sent(port(from), header, &ethernet(port(from), to, kind, &packet));
        }
        Event::Ip { port: from, to, v6, lie, protocol, hop_limit, bytes } => {
            let from = port(from);
            let src = lie.map(place).filter(|src| src.is_ipv6() == v6).unwrap_or(address(from, v6));
            let dst = match PortId(u32::from(to) % 6) {
                station if station.0 < PORTS => address(station, v6),
                _ => Some(place(to)).filter(|dst| dst.is_ipv6() == v6).unwrap_or(address(PortId(9), v6)),
            };
            let packet = frame::ip(src, dst, protocol, hop_limit, bytes);
            let kind = if v6 { frame::IPV6 } else { frame::IPV4 };
            world.sent(from, [0; 10], &ethernet(from, to, kind, &packet[frame::ETHERNET..]));
        }
        Event::Milliseconds(time) => {
            world.now += Duration::from_millis(time.into());
            let now = world.now;
            world.gateway.handle_timeout(now, &mut world.host, &mut Answers { to: None });
        }
        Event::Leave(which) => world.switch.leave(port(which)),
        Event::Join(which) => {
            let which = port(which);
            world.switch.remove_port(which);
            world.gateway.remove_port(which, &mut world.host);
            world.switch.add_port(world.now, which, endpoint(which));
            world.gateway.add_port(which, endpoint(which));
        }
    }
}

fuzz_target!(|input: Input<'_>| {
    let now = Instant::now();
    let mut network = network(MTU);
    network.sharing = Some(Sharing { icc: input.icc, internal: input.internal });
    let switch = Switch::new(&network).expect("it is shared");
    let gateway = Gateway::new(now, network, HostView::default());
    let mut world = World { now, icc: input.icc, switch, gateway, host: Sockets::default() };
    for which in 0..PORTS as u8 {
        step(&mut world, Event::Join(which));
    }
    for event in input.events {
        step(&mut world, event);
    }
    for port in (0..PORTS).map(PortId) {
        world.switch.remove_port(port);
        world.gateway.remove_port(port, &mut world.host);
    }
    assert_eq!(world.gateway.flows(), (0, 0, 0));
});
