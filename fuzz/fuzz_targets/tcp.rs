//! TCP segments against flows that live, the sandbox's own and those of clients of published ports: right
//! four-tuples, numbers near the right ones. Bytes carry a pattern, so
//! that one in the wrong place is seen on either side.
#![no_main]
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tapline::gateway::link::{Gso, Offload, TcpId};
use tapline_fuzz::{CLIENT_V4, DNS_V6, GATEWAY_V4, OUTSIDE_V4, OUTSIDE_V6, World, frame, host_error, pattern, sandbox};

const SLOTS: usize = 6;
/// These begin in the sandbox, the others outside.
const OWN: usize = 4;
const FAR_SIDES: [(IpAddr, u16); SLOTS] = [
    (IpAddr::V4(OUTSIDE_V4), 80),
    (IpAddr::V6(OUTSIDE_V6), 443),
    (IpAddr::V4(GATEWAY_V4), 8080),
    (IpAddr::V6(DNS_V6), 53),
    (IpAddr::V4(CLIENT_V4), 9000),
    (IpAddr::V6(OUTSIDE_V6), 9000),
];
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

#[derive(Arbitrary, Debug)]
struct Input {
    mtu: bool,
    isn: [u32; OWN],
    events: Vec<Event>,
}

#[derive(Arbitrary, Debug)]
enum Event {
    /// An ordinary segment: right numbers.
    Right {
        slot: u8,
        flags: u8,
        length: u16,
        window: u16,
    },
    /// Any segment at all.
    Any {
        slot: u8,
        flags: u8,
        sequence: i16,
        acknowledge: i16,
        length: u16,
        window: u16,
        options: Options,
        far: bool,
    },
    /// Open from the beginning to the end of the handshake. A call from outside is left unanswered without options.
    Open {
        slot: u8,
        options: Options,
    },
    Connected {
        which: u8,
        error: Option<u8>,
    },
    Stream {
        slot: u8,
        takes: u16,
        gives: u16,
        ended: bool,
        broken: bool,
    },
    Millis(u16),
    Seconds(u8),
    Room(bool),
}

#[derive(Arbitrary, Clone, Debug)]
enum Options {
    None,
    Usual { mss: u16, scale: u8, sack: bool },
    Any([u8; 8]),
}

impl Options {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Options::None => Vec::new(),
            Options::Usual { mss, scale, sack } => {
                let [high, low] = mss.to_be_bytes();
                let mut bytes = vec![2, 4, high, low, 3, 3, *scale, 1];
                if *sack {
                    bytes.extend_from_slice(&[4, 2, 1, 1]);
                }
                bytes
            }
            Options::Any(bytes) => bytes.to_vec(),
        }
    }
}

/// What a sandbox's kernel would know of a connection.
#[derive(Clone, Copy, Default)]
struct Slot {
    /// What the gateway acknowledged last: our next byte.
    next: u32,
    /// The gateway's initial sequence number.
    theirs: u32,
    /// Behind the last byte that came from the gateway.
    seen: u32,
    flow: Option<TcpId>,
    /// Who the other side is, where it is not who was expected: the gateway calls in a client's place.
    far: Option<(IpAddr, u16)>,
}

struct Sandbox {
    world: World,
    slots: [Slot; SLOTS],
    isn: [u32; OWN],
    read: usize,
}

impl Sandbox {
    #[allow(clippy::too_many_arguments)]
    fn send(&mut self, slot: usize, flags: u8, sequence: u32, ack: u32, window: u16, options: &[u8], length: usize) {
        let (dst, port) = self.slots[slot].far.unwrap_or(FAR_SIDES[slot]);
        let mut tcp = (40_000 + slot as u16).to_be_bytes().to_vec();
        tcp.extend_from_slice(&port.to_be_bytes());
        tcp.extend_from_slice(&sequence.to_be_bytes());
        tcp.extend_from_slice(&ack.to_be_bytes());
        tcp.extend_from_slice(&[(5 + options.len().div_ceil(4) as u8) << 4, flags]);
        tcp.extend_from_slice(&window.to_be_bytes());
        tcp.extend_from_slice(&[0; 4]);
        tcp.extend_from_slice(options);
        let header = tcp.len();
        let first = sequence.wrapping_add(u32::from(flags & SYN != 0));
        tcp.extend((0..length as u32).map(|at| pattern(first.wrapping_add(at))));
        let start = frame::ETHERNET as u16 + if dst.is_ipv4() { 20 } else { 40 };
        let offload = Offload {
            needs_csum: true,
            csum_start: start,
            csum_offset: 16,
            gso: if length > 1400 { if dst.is_ipv4() { Gso::TcpV4 } else { Gso::TcpV6 } } else { Gso::None },
            gso_size: if length > 1400 { 1400 } else { 0 },
            hdr_len: start + header as u16,
            ..Offload::default()
        };
        let before = self.world.host.connecting.len();
        self.world.frame(offload, &frame::ip(sandbox(dst), dst, 6, 64, &tcp));
        if self.world.host.connecting.len() > before {
            self.slots[slot].flow = self.world.host.connecting.last().copied();
        }
        self.look();
    }

    /// A client calls, and the sandbox answers.
    fn call(&mut self, slot: usize, options: Options) {
        let (client, port) = FAR_SIDES[slot];
        let Some(flow) = self.world.call(SocketAddr::new(client, port), 40_000 + slot as u16) else { return };
        self.slots[slot] = Slot { flow: Some(flow), ..Slot::default() };
        self.look();
        if matches!(options, Options::None) {
            return;
        }
        let isn = self.isn[slot - OWN];
        let Slot { seen, .. } = self.slots[slot];
        self.send(slot, SYN | ACK, isn, seen, 65_535, &options.bytes(), 0);
        // It was taken when it is acknowledged; then it is known where the sandbox's bytes begin.
        if self.slots[slot].far.is_some()
            && self.slots[slot].next == isn.wrapping_add(1)
            && let Some(stream) = self.world.host.streams.get_mut(&flow)
        {
            stream.expects = Some(isn.wrapping_add(1));
        }
    }

    /// Look at what has come.
    fn look(&mut self) {
        while let Some((_, bytes)) = self.world.link.sent.get(self.read) {
            self.read += 1;
            let packet = etherparse::SlicedPacket::from_ethernet(bytes).expect("checked");
            let Some(etherparse::TransportSlice::Tcp(tcp)) = &packet.transport else { continue };
            let at = usize::from(tcp.destination_port().wrapping_sub(40_000));
            let slot = &mut self.slots[at];
            let sequence = tcp.sequence_number();
            if tcp.rst() {
                continue;
            }
            if tcp.syn() && !tcp.ack() {
                assert!(at >= OWN, "a call that nobody made");
                (slot.theirs, slot.seen, slot.next) = (sequence, sequence.wrapping_add(1), self.isn[at - OWN]);
                let source = match packet.net.as_ref().expect("checked") {
                    etherparse::NetSlice::Ipv4(ip) => IpAddr::V4(ip.header().source_addr()),
                    etherparse::NetSlice::Ipv6(ip) => IpAddr::V6(ip.header().source_addr()),
                    other => panic!("{other:?}"),
                };
                slot.far = Some((source, tcp.source_port()));
                continue;
            }
            if tcp.syn() {
                (slot.theirs, slot.seen, slot.next) = (sequence, sequence.wrapping_add(1), tcp.acknowledgment_number());
                // From here on it is known where the sandbox's bytes begin.
                if let Some(stream) = slot.flow.and_then(|flow| self.world.host.streams.get_mut(&flow)) {
                    stream.expects.get_or_insert(slot.next);
                }
                continue;
            }
            slot.next = tcp.acknowledgment_number();
            let place = sequence.wrapping_sub(slot.theirs.wrapping_add(1));
            for (n, &byte) in tcp.payload().iter().enumerate() {
                assert_eq!(byte, pattern(place.wrapping_add(n as u32)), "a byte in the wrong place");
            }
            let end = sequence.wrapping_add(tcp.payload().len() as u32 + u32::from(tcp.fin()));
            if (end.wrapping_sub(slot.seen) as i32) > 0 {
                slot.seen = end;
            }
        }
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Right { slot, flags, length, window } => {
                let slot = usize::from(slot) % SLOTS;
                let Slot { next, seen, .. } = self.slots[slot];
                self.send(slot, (flags & FIN) | ACK, next, seen, window, &[], usize::from(length));
            }
            Event::Any { slot, flags, sequence, acknowledge, length, window, options, far } => {
                let slot = usize::from(slot) % SLOTS;
                let scale = if far { 1 << 16 } else { 1 };
                let near = |from: u32, by: i16| from.wrapping_add((i32::from(by) * scale) as u32);
                let Slot { next, seen, .. } = self.slots[slot];
                let (sequence, acknowledge) = (near(next, sequence), near(seen, acknowledge));
                self.send(slot, flags, sequence, acknowledge, window, &options.bytes(), usize::from(length));
            }
            Event::Open { slot, options } => {
                let slot = usize::from(slot) % SLOTS;
                if slot >= OWN {
                    self.call(slot, options);
                    return;
                }
                self.send(slot, SYN, self.isn[slot], 0, 65_535, &options.bytes(), 0);
                if let Some(at) = self.world.host.connecting.len().checked_sub(1) {
                    self.world.outcome(at as u8, Ok(()), None);
                    self.look();
                }
                let Slot { next, seen, .. } = self.slots[slot];
                self.send(slot, ACK, next, seen, 65_535, &[], 0);
            }
            Event::Connected { which, error } => {
                self.world.outcome(which, error.map_or(Ok(()), |e| Err(host_error(e))), None);
            }
            Event::Stream { slot, takes, gives, ended, broken } => {
                let Some(flow) = self.slots[usize::from(slot) % SLOTS].flow else { return };
                let Some(stream) = self.world.host.streams.get_mut(&flow) else { return };
                (stream.takes, stream.gives) = (takes.into(), gives.into());
                (stream.ended, stream.broken) = (stream.ended | ended, stream.broken | broken);
                self.world.stream_ready(flow);
            }
            Event::Millis(time) => self.world.pass(Duration::from_millis(time.into())),
            Event::Seconds(time) => self.world.pass(Duration::from_secs(time.into())),
            Event::Room(room) => self.world.link_room(room),
        }
        self.look();
    }
}

fuzz_target!(|input: Input| {
    let world = World::new(if input.mtu { 1500 } else { 65_520 });
    let mut sandbox = Sandbox { world, slots: [Slot::default(); SLOTS], isn: input.isn, read: 0 };
    for event in input.events.into_iter().take(64) {
        sandbox.step(event);
    }
    // Whatever state a flow is in, a reset with the right number ends it.
    sandbox.world.link_room(true);
    sandbox.look();
    for slot in 0..SLOTS {
        let Slot { next, seen, .. } = sandbox.slots[slot];
        sandbox.send(slot, RST | ACK, next, seen, 0, &[], 0);
    }
    sandbox.world.finish();
});
