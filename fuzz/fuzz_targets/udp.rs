//! UDP: datagrams and super-segments out, answers and errors back; clients of published ports, and answers to them.
#![no_main]
use std::net::SocketAddr;
use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tapline::gateway::link::{Gso, Offload, ReplyPath};
use tapline_fuzz::{GATEWAY_V4, GATEWAY_V6, PORT, World, frame, host_error, icmp_error, place, router, sandbox};

#[derive(Arbitrary, Debug)]
enum Event {
    Send {
        to: u8,
        ports: (u8, u16),
        length: u16,
        claimed: Option<u16>,
        segment: Option<u16>,
        hop_limit: u8,
        fail: Option<u8>,
    },
    Answer {
        which: u8,
        from: Option<u8>,
        port: Option<u16>,
        length: u16,
        segment: u16,
        tos: u8,
    },
    Error {
        which: u8,
        kind: u8,
        mtu: u32,
        offender: Option<u8>,
        length: u16,
    },
    Reply {
        which: u8,
        length: u16,
    },
    /// A client writes to a published port.
    Arrive {
        client: (u8, u8),
        service: u8,
        path: (u8, Option<u8>),
        length: u16,
        segment: u16,
    },
    /// The sandbox writes to whom it takes for a client, under its own address or the gateway's.
    Respond {
        client: (u8, u8),
        own: bool,
        service: u8,
        length: u16,
        hop_limit: u8,
        fail: Option<u8>,
    },
    /// A published socket is closed.
    Close(u8),
    Seconds(u8),
    Room(bool),
    SuperDatagrams(bool),
}

/// Where the gateway's address stands for clients, they have ports from here on.
const STAND_INS: u16 = 49_152;

/// Few enough that an answer finds its client.
fn client_port(which: u8) -> u16 {
    u16::from(which % 16)
}

fn pick<T: Copy>(from: &[T], which: u8) -> Option<T> {
    from.get(usize::from(which).checked_rem(from.len())?).copied()
}

fn step(world: &mut World, event: Event, data: &[u8]) {
    let now = world.now;
    let bytes = |length: u16| &data[..usize::from(length).min(data.len())];
    match event {
        Event::Send { to, ports, length, claimed, segment, hop_limit, fail } => {
            let dst = place(to);
            let payload = bytes(length);
            let mut udp = (40_000 + u16::from(ports.0 % 16)).to_be_bytes().to_vec();
            udp.extend_from_slice(&ports.1.to_be_bytes());
            udp.extend_from_slice(&claimed.unwrap_or(8 + payload.len() as u16).to_be_bytes());
            udp.extend_from_slice(&[0, 0]);
            udp.extend_from_slice(payload);
            let gso = if segment.is_some() { Gso::UdpL4 } else { Gso::None };
            let start = frame::ETHERNET as u16 + if dst.is_ipv4() { 20 } else { 40 };
            let offload = Offload {
                needs_csum: true,
                csum_start: start,
                csum_offset: 6,
                gso,
                gso_size: segment.unwrap_or(0),
                hdr_len: start + 8,
                ..Offload::default()
            };
            world.host.fail = fail.map(host_error);
            world.frame(offload, &frame::ip(sandbox(dst), dst, 17, hop_limit, &udp));
        }
        Event::Answer { which, from, port, length, segment, tos } => {
            if let Some((flow, to)) = pick(&world.host.udp, which) {
                let from = SocketAddr::new(from.map_or(to.ip(), place), port.unwrap_or(to.port()));
                world.gateway.handle_udp(now, flow, from, bytes(length), segment, tos, &mut world.link);
            }
        }
        Event::Error { which, kind, mtu, offender, length } => {
            if let Some((flow, to)) = pick(&world.host.udp, which) {
                let (error, offender) = (icmp_error(kind, mtu), offender.map(router));
                world.gateway.handle_udp_error(now, flow, to, error, offender, bytes(length), &mut world.link);
            }
        }
        Event::Reply { which, length } => {
            let askers: Vec<_> = world.host.questions.iter().map(|(asker, _)| *asker).collect();
            if let Some(asker) = pick(&askers, which) {
                world.gateway.handle_dns_answer(asker, bytes(length), &mut world.link);
            }
        }
        Event::Arrive { client, service, path, length, segment } => {
            let client = SocketAddr::new(place(client.0), client_port(client.1));
            let path = ReplyPath { socket: path.0.into(), generation: 1, local: path.1.map(place) };
            let segment = if usize::from(segment) < bytes(length).len() { segment } else { 0 };
            let service = 40_000 + u16::from(service % 16);
            world.host.clients.insert((path, client));
            let (payload, link) = (bytes(length), &mut world.link);
            world.gateway.handle_published_datagram(now, PORT, client, service, payload, segment, 0, path, link);
        }
        Event::Respond { client, own, service, length, hop_limit, fail } => {
            let dst = place(client.0);
            let (dst, port) = match (own, dst.is_ipv4()) {
                (true, _) => (dst, client_port(client.1)),
                (false, true) => (GATEWAY_V4.into(), STAND_INS + u16::from(client.1 % 16)),
                (false, false) => (GATEWAY_V6.into(), STAND_INS + u16::from(client.1 % 16)),
            };
            let payload = bytes(length);
            let mut udp = (40_000 + u16::from(service % 16)).to_be_bytes().to_vec();
            udp.extend_from_slice(&port.to_be_bytes());
            udp.extend_from_slice(&(8 + payload.len() as u16).to_be_bytes());
            udp.extend_from_slice(&[0, 0]);
            udp.extend_from_slice(payload);
            world.host.fail = fail.map(host_error);
            world.packet(sandbox(dst), dst, 17, hop_limit, &udp);
        }
        Event::Close(socket) => {
            world.gateway.end_published_udp(|path| path.socket == u32::from(socket));
            world.host.clients.retain(|(path, _)| path.socket != u32::from(socket));
        }
        Event::Seconds(time) => world.pass(Duration::from_secs(time.into())),
        Event::Room(room) => world.link_room(room),
        Event::SuperDatagrams(taken) => world.link.super_datagrams = taken,
    }
}

fuzz_target!(|events: Vec<Event>| {
    let mut world = World::new(1500);
    let data = vec![0x5a; 65_507];
    for event in events.into_iter().take(64) {
        step(&mut world, event, &data);
    }
    world.finish();
});
