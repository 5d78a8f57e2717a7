//! UDP: datagrams and super-segments out, answers and errors back.
#![no_main]
use std::net::SocketAddr;
use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tapline::gateway::link::{Gso, Offload};
use tapline_fuzz::{World, frame, host_error, icmp_error, place, router, sandbox};

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
    Seconds(u8),
    Room(bool),
    SuperDatagrams(bool),
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
