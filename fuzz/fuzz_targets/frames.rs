//! Whole frames behind their virtio-net headers, in sequence, with time and whatever the host has to say between.
#![no_main]
use std::net::SocketAddr;
use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tapline::fuzzing;
use tapline::plan::HostView;
use tapline::sys::vnet::VnetHeader;
use tapline_fuzz::{World, frame, host_error, icmp_error, place, router};

#[derive(Arbitrary, Debug)]
enum Event<'a> {
    /// A frame as it is.
    Raw {
        header: [u8; 10],
        bytes: &'a [u8],
    },
    /// A frame with right addresses.
    Ethernet {
        header: [u8; 10],
        kind: u8,
        bytes: &'a [u8],
    },
    /// An IP packet with right header.
    Ip {
        to: u8,
        from: Option<u8>,
        protocol: u8,
        hop_limit: u8,
        bytes: &'a [u8],
    },
    Seconds(u8),
    Connected {
        which: u8,
        error: Option<u8>,
        offender: Option<u8>,
    },
    Stream {
        which: u8,
        takes: u16,
        gives: u16,
        ended: bool,
        broken: bool,
    },
    Datagram {
        which: u8,
        from: Option<u8>,
        segment: u16,
        tos: u8,
        bytes: &'a [u8],
    },
    DatagramError {
        which: u8,
        kind: u8,
        mtu: u32,
        offender: Option<u8>,
        bytes: &'a [u8],
    },
    Reply {
        which: u8,
        hop_limit: u8,
        bytes: &'a [u8],
    },
    ReplyError {
        which: u8,
        kind: u8,
        mtu: u32,
        offender: Option<u8>,
        bytes: &'a [u8],
    },
    Answer {
        which: u8,
        bytes: &'a [u8],
    },
    Room(bool),
    Fail(u8),
    HostChanged(bool),
}

fn pick<T: Clone>(from: &[T], which: u8) -> Option<T> {
    from.get(usize::from(which).checked_rem(from.len())?).cloned()
}

fn step(world: &mut World, event: Event<'_>) {
    let now = world.now;
    match event {
        Event::Raw { header, bytes } => sent(world, header, bytes),
        Event::Ethernet { header, kind, bytes } => {
            let kind = [frame::ARP, frame::IPV4, frame::IPV6][usize::from(kind) % 3];
            let mut packet = bytes.to_vec();
            if kind == frame::IPV4 {
                frame::mend_ipv4(&mut packet);
            }
            sent(world, header, &frame::ethernet(kind, &packet));
        }
        Event::Ip { to, from, protocol, hop_limit, bytes } => {
            let dst = place(to);
            let src = from.map(place).filter(|src| src.is_ipv4() == dst.is_ipv4());
            world.packet(src.unwrap_or(tapline_fuzz::sandbox(dst)), dst, protocol, hop_limit, bytes);
        }
        Event::Seconds(time) => world.pass(Duration::from_secs(time.into())),
        Event::Connected { which, error, offender } => {
            world.outcome(which, error.map_or(Ok(()), |e| Err(host_error(e))), offender.map(router));
        }
        Event::Stream { which, takes, gives, ended, broken } => {
            let mut flows: Vec<_> = world.host.streams.keys().copied().collect();
            flows.sort_by_key(|flow| (flow.index, flow.generation));
            if let Some(flow) = pick(&flows, which) {
                let stream = world.host.streams.get_mut(&flow).expect("it was there");
                (stream.takes, stream.gives) = (takes.into(), gives.into());
                (stream.ended, stream.broken) = (stream.ended | ended, stream.broken | broken);
                world.stream_ready(flow);
            }
        }
        Event::Datagram { which, from, segment, tos, bytes } => {
            if let Some((flow, to)) = pick(&world.host.udp, which) {
                let from = SocketAddr::new(from.map_or(to.ip(), place), to.port());
                world.gateway.handle_udp(now, flow, from, bytes, segment, tos, &mut world.link);
            }
        }
        Event::DatagramError { which, kind, mtu, offender, bytes } => {
            if let Some((flow, to)) = pick(&world.host.udp, which) {
                let (error, offender) = (icmp_error(kind, mtu), offender.map(router));
                world.gateway.handle_udp_error(now, flow, to, error, offender, bytes, &mut world.link);
            }
        }
        Event::Reply { which, hop_limit, bytes } => {
            if let Some((flow, sequence)) = pick(&world.host.echo, which) {
                world.gateway.handle_echo_reply(now, flow, sequence, bytes, hop_limit, &mut world.link);
            }
        }
        Event::ReplyError { which, kind, mtu, offender, bytes } => {
            if let Some((flow, sequence)) = pick(&world.host.echo, which) {
                let (error, offender) = (icmp_error(kind, mtu), offender.map(router));
                world.gateway.handle_echo_error(now, flow, sequence, error, offender, bytes, &mut world.link);
            }
        }
        Event::Answer { which, bytes } => {
            if let Some((asker, _)) = pick(&world.host.questions, which) {
                world.gateway.handle_dns_answer(asker, bytes, &mut world.link);
            }
        }
        Event::Room(room) => world.link_room(room),
        Event::Fail(error) => world.host.fail = Some(host_error(error)),
        Event::HostChanged(there) => {
            let v4 = there.then(|| "198.51.100.8".parse().expect("an address"));
            world.gateway.handle_host_changed(HostView { v4, ..HostView::default() });
        }
    }
}

fn sent(world: &mut World, header: [u8; 10], bytes: &[u8]) {
    if let Some(offload) = fuzzing::offload(&VnetHeader::decode(&header), bytes.len()) {
        world.frame(offload, bytes);
    }
}

fuzz_target!(|events: Vec<Event<'_>>| {
    let mut world = World::new(1280);
    for event in events {
        step(&mut world, event);
    }
    world.finish();
});
