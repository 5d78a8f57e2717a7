//! The gateway's parsers against another's, over packets made at random: valid ones, and such that are a little broken.
//!
//! The same packets each time. `TAPLINE_DIFFERENTIAL_SEED` and `TAPLINE_DIFFERENTIAL_PACKETS` make others, and more; a
//! failure names its seed and shows the frame. The fuzz target `differential` compares in the same way what no generator
//! would think of.
mod opinions;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use opinions::{
    Accepted, Act, Bench, GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, OUTSIDE_V4, OUTSIDE_V6, Outcome, SANDBOX_MAC,
    SANDBOX_V4, SANDBOX_V6, hex,
};

const SMOLTCP_LOOKS_AT_CHECKSUMS: bool = true;
const SEED: u64 = 20_261_121;
const PACKETS: u64 = 100_000;
/// A gateway sees so many, so that its tables do not fill.
const FOR_ONE: u64 = 64;

/// xorshift64*, as good as is needed here.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> usize {
        ((self.next() >> 33) % limit) as usize
    }

    /// True one time in so many.
    fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    fn byte(&mut self) -> u8 {
        (self.next() >> 40) as u8
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.byte()).collect()
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64)]
    }
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0))).sum()
}

fn folded(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A frame, with what is needed to make its checksums right again.
struct Made {
    bytes: Vec<u8>,
    v6: bool,
    /// Where the upper protocol begins, and which it is.
    upper: Option<(usize, u8)>,
}

const ETHERNET: usize = 14;

impl Made {
    /// Make IPv4's header checksum right, as far as there is one.
    fn mend_header(&mut self) {
        let Some(packet) = self.bytes.get_mut(ETHERNET..).filter(|_| !self.v6) else { return };
        let Some(length) = packet.first().map(|b| usize::from(b & 15) * 4).filter(|l| (20..=packet.len()).contains(l))
        else {
            return;
        };
        packet[10..12].fill(0);
        let checksum = folded(sum(&packet[..length]));
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    }

    /// Make the upper checksum right, over what the IP header says there is.
    fn mend_upper(&mut self) {
        let Some((at, protocol)) = self.upper else { return };
        let end = match self.v6 {
            true => self.bytes.get(18..20).map(|b| ETHERNET + 40 + usize::from(u16::from_be_bytes([b[0], b[1]]))),
            false => self.bytes.get(16..18).map(|b| ETHERNET + usize::from(u16::from_be_bytes([b[0], b[1]]))),
        };
        let addresses = if self.v6 { ETHERNET + 8..ETHERNET + 40 } else { ETHERNET + 12..ETHERNET + 20 };
        let (Some(end), Some(addresses)) = (end, self.bytes.get(addresses).map(<[u8]>::to_vec)) else { return };
        let Some(upper) = self.bytes.get_mut(at..end) else { return };
        let field = match protocol {
            6 => 16,
            17 => 6,
            _ => 2,
        };
        let mut length = upper.len();
        if let (17, Some(said)) = (protocol, upper.get(4..6)) {
            length = length.min(usize::from(u16::from_be_bytes([said[0], said[1]])));
        }
        if length < field + 2 {
            return;
        }
        upper[field..field + 2].fill(0);
        let pseudo = if protocol == 1 { 0 } else { sum(&addresses) + u64::from(protocol) + length as u64 };
        let checksum = match folded(pseudo + sum(&upper[..length])) {
            0 if protocol == 17 => 0xffff,
            checksum => checksum,
        };
        upper[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
    }
}

fn tcp(random: &mut Random) -> Vec<u8> {
    let mut bytes = (1 + random.next() as u16 % 60_000).to_be_bytes().to_vec();
    bytes.extend(random.pick(&[80u16, 443, 22, 0, 65_535]).to_be_bytes());
    bytes.extend(random.bytes(8));
    let usual = [&[2, 4, 5, 0xb4][..], &[1], &[3, 3, 7], &[4, 2], &[8, 10, 0, 0, 0, 1, 0, 0, 0, 2], &[0], &[30, 3, 9]];
    let mut options = Vec::new();
    for _ in 0..random.below(5) {
        let one = random.pick(&usual);
        if options.len() + one.len() <= 40 {
            options.extend_from_slice(one);
        }
    }
    if random.one_in(8) && !options.is_empty() {
        let at = random.below(options.len() as u64);
        options[at] = random.byte();
    }
    options.resize(options.len().next_multiple_of(4), 0);
    let flags = if random.one_in(2) { 2 } else { random.byte() };
    bytes.extend([(5 + (options.len() / 4) as u8) << 4, flags]);
    bytes.extend(random.bytes(2));
    bytes.extend([0; 4]);
    bytes.extend(options);
    bytes
}

/// What is above IP: its protocol, and its bytes.
fn upper(random: &mut Random, v6: bool) -> (u8, Vec<u8>) {
    let length = if random.one_in(16) { random.below(1400) } else { random.below(64) };
    let data = random.bytes(length);
    match random.below(8) {
        0..=2 => {
            let mut bytes = random.bytes(2);
            bytes.extend(random.pick(&[9u16, 123, 443, 5353, 0]).to_be_bytes());
            bytes.extend((8 + length as u16).to_be_bytes());
            bytes.extend([0, 0]);
            (17, [bytes, data].concat())
        }
        3..=4 => (6, [tcp(random), data].concat()),
        5..=6 => {
            let kind = if random.one_in(8) { random.byte() } else { [8, 128][usize::from(v6)] };
            let code = if random.one_in(16) { random.byte() } else { 0 };
            let head = [&[kind, code, 0, 0][..], &random.bytes(4)].concat();
            (if v6 { 58 } else { 1 }, [head, data].concat())
        }
        _ => (random.pick(&[132, 47, 50, 51, 59, 135, 139, 140, 2, 89]), data),
    }
}

fn ipv4(random: &mut Random) -> Made {
    let (protocol, upper) = upper(random, false);
    let options = if random.one_in(4) { random.below(11) * 4 } else { 0 };
    let mut bytes = vec![0x45 + (options / 4) as u8, random.byte()];
    bytes.extend(((20 + options + upper.len()) as u16).to_be_bytes());
    bytes.extend(random.bytes(2));
    let fragment = match random.below(12) {
        0 => random.next() as u16,
        1 => 0x8000,
        2..=6 => 0,
        _ => 0x4000,
    };
    bytes.extend(fragment.to_be_bytes());
    bytes.extend([if random.one_in(8) { random.byte() } else { 64 }, protocol, 0, 0]);
    bytes.extend(SANDBOX_V4.octets());
    bytes.extend(if random.one_in(6) { GATEWAY_V4 } else { OUTSIDE_V4 }.octets());
    bytes.extend(random.bytes(options));
    let at = ETHERNET + bytes.len();
    let upper_at = [1, 6, 17].contains(&protocol).then_some((at, protocol));
    Made { bytes: [bytes, upper].concat(), v6: false, upper: upper_at }
}

/// An extension header of IPv6 that leads to `next`.
fn extension(random: &mut Random, kind: u8, next: u8) -> Vec<u8> {
    match kind {
        44 => {
            let field = if random.one_in(2) { 0 } else { random.next() as u16 };
            [&[next, 0][..], &field.to_be_bytes(), &random.bytes(4)].concat()
        }
        51 => [&[next, 1, 0, 0][..], &random.bytes(8)].concat(),
        _ => {
            let units = if random.one_in(4) { random.below(3) } else { 0 };
            let mut bytes = random.bytes(8 + 8 * units);
            (bytes[0], bytes[1]) = (next, units as u8);
            if kind == 43 && !random.one_in(4) {
                bytes[3] = 0;
            }
            bytes
        }
    }
}

fn ipv6(random: &mut Random) -> Made {
    let (protocol, upper) = upper(random, true);
    let count = match random.below(24) {
        0 => 7 + random.below(4),
        1..=8 => 1 + random.below(3),
        _ => 0,
    };
    let kinds: Vec<u8> = (0..count)
        .map(|n| match random.below(24) {
            0 => 44,
            1 => 51,
            2..=6 => 43,
            7 => 0,
            _ if n == 0 && random.one_in(2) => 0,
            _ => 60,
        })
        .collect();
    let mut extensions = Vec::new();
    for (n, kind) in kinds.iter().enumerate() {
        let next = *kinds.get(n + 1).unwrap_or(&protocol);
        extensions.extend(extension(random, *kind, next));
    }
    let traffic_class = random.byte();
    let mut bytes = vec![0x60 | traffic_class >> 4, traffic_class << 4 | random.byte() & 15];
    bytes.extend(random.bytes(2));
    bytes.extend(((extensions.len() + upper.len()) as u16).to_be_bytes());
    bytes.extend([*kinds.first().unwrap_or(&protocol), if random.one_in(8) { random.byte() } else { 64 }]);
    bytes.extend(SANDBOX_V6.octets());
    bytes.extend(if random.one_in(6) { GATEWAY_V6 } else { OUTSIDE_V6 }.octets());
    bytes.extend(extensions);
    let at = ETHERNET + bytes.len();
    let upper_at = [58, 6, 17].contains(&protocol).then_some((at, protocol));
    Made { bytes: [bytes, upper].concat(), v6: true, upper: upper_at }
}

fn arp(random: &mut Random) -> Made {
    let operation = if random.one_in(8) { random.byte() } else { 1 };
    let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, operation];
    bytes.extend(SANDBOX_MAC.0);
    bytes.extend(random.pick(&[SANDBOX_V4.octets(), SANDBOX_V4.octets(), [0; 4]]));
    bytes.extend([0; 6]);
    let last = random.pick(&[2, 2, 3, 4, 100]);
    bytes.extend([10, 0, 2, last]);
    Made { bytes, v6: false, upper: None }
}

/// A frame, and whether its sender vouches for its upper checksum.
fn frame(random: &mut Random) -> (Vec<u8>, bool) {
    let (kind, mut made) = match random.below(16) {
        0 => (0x0806u16, arp(random)),
        1..=8 => (0x0800, ipv4(random)),
        _ => (0x86dd, ipv6(random)),
    };
    let mut bytes = [&GATEWAY_MAC.0[..], &SANDBOX_MAC.0, &kind.to_be_bytes()].concat();
    bytes.append(&mut made.bytes);
    made.bytes = bytes;
    if kind != 0x0806 {
        made.mend_upper();
        made.mend_header();
    }
    if random.one_in(2) {
        return (made.bytes, random.one_in(8));
    }
    // A little broken, mostly with checksums that are right for it.
    for _ in 0..1 + random.below(3) {
        let length = made.bytes.len() as u64;
        match random.below(8) {
            0 => made.bytes.truncate(random.below(length + 1)),
            1 => {
                let padding = random.below(46);
                made.bytes.extend(random.bytes(padding));
            }
            2 => {
                // A length that is off by a few: IP's, or what is at its place in UDP.
                let at = ETHERNET + if made.v6 { 4 } else { 2 };
                let at = made.upper.filter(|_| random.one_in(2)).map_or(at, |(upper, _)| upper + 4);
                if let Some(two) = made.bytes.get_mut(at..at + 2) {
                    let said = u16::from_be_bytes([two[0], two[1]]);
                    let other = said.wrapping_add(random.below(17) as u16).wrapping_sub(8);
                    two.copy_from_slice(&if random.one_in(3) { 0 } else { other }.to_be_bytes());
                }
            }
            3 => {
                // In the headers, where it matters.
                let at = random.below(length.clamp(1, 80));
                if let Some(byte) = made.bytes.get_mut(at) {
                    *byte = random.byte();
                }
            }
            4..=6 => {
                let at = random.below(length.clamp(1, 80));
                let bit = 1 << random.below(8);
                if let Some(byte) = made.bytes.get_mut(at) {
                    *byte ^= bit;
                }
            }
            _ => {
                let tag = [0x81, 0, 0, random.byte()];
                if made.bytes.len() > 12 && random.one_in(4) {
                    made.bytes.splice(12..12, tag);
                }
            }
        }
    }
    if kind != 0x0806 {
        if !random.one_in(3) {
            made.mend_upper();
        }
        if !random.one_in(4) {
            made.mend_header();
        }
    }
    (made.bytes, random.one_in(8))
}

fn name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Acted(Act::Datagram { .. }) => "datagrams",
        Outcome::Acted(Act::Connect { .. }) => "connects",
        Outcome::Acted(Act::Ping { .. }) => "pings",
        Outcome::Acted(Act::Reset { .. }) => "resets",
        Outcome::Acted(Act::Arp { .. }) => "ARP replies",
        Outcome::Acted(Act::Pong { .. }) => "answers to pings",
        Outcome::Nothing => "nothing",
        Outcome::Fragment => "fragments",
        Outcome::Accepted(Accepted::Tagged) => "tagged",
        Outcome::Accepted(Accepted::Authenticated) => "authenticated",
        Outcome::Accepted(Accepted::NoLength) => "without a length",
        Outcome::Accepted(Accepted::NoUdpLength) => "without a length of UDP",
        Outcome::Accepted(Accepted::Routed) => "to be routed on",
        Outcome::Accepted(Accepted::CutTwice) => "cut twice",
        Outcome::Accepted(Accepted::LongChain) => "with a long chain of headers",
        Outcome::Accepted(Accepted::Options) => "with options that cannot be read",
    }
}

fn number(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

#[test]
fn two_parsers_agree_about_packets_made_at_random() {
    let (seed, packets) = (number("TAPLINE_DIFFERENTIAL_SEED", SEED), number("TAPLINE_DIFFERENTIAL_PACKETS", PACKETS));
    let mut random = Random(seed.max(1));
    let mut bench = Bench::default();
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for n in 0..packets {
        if n % FOR_ONE == 0 {
            bench = Bench::default();
        }
        let (frame, vouched) = frame(&mut random);
        match catch_unwind(AssertUnwindSafe(|| bench.compare(&frame, vouched))) {
            Ok(outcome) => *counts.entry(name(&outcome)).or_default() += 1,
            Err(_) => panic!("packet {n} of seed {seed}, vouched for: {vouched}: {}", hex(&frame)),
        }
    }
    println!("{counts:#?}");
    // What is never met proves nothing.
    for (what, part) in [
        ("datagrams", 10),
        ("connects", 50),
        ("pings", 20),
        ("resets", 50),
        ("ARP replies", 100),
        ("answers to pings", 200),
        ("fragments", 100),
        ("nothing", 10),
        ("tagged", 10_000),
        ("authenticated", 10_000),
        ("without a length", 10_000),
        ("without a length of UDP", 20_000),
        ("cut twice", 50_000),
        ("to be routed on", 1000),
        ("with a long chain of headers", 10_000),
        ("with options that cannot be read", 1000),
    ] {
        let count = counts.get(what).copied().unwrap_or_default();
        assert!(count >= packets / part, "{what}: {count} of {packets}");
    }
}

/// Where a header of options for every hop stands anywhere but in front (RFC 8200, 4.3), nobody reads on.
#[test]
fn options_for_every_hop_stand_in_front_or_make_no_packet() {
    let datagram = [0x9c, 0x40, 0, 9, 0, 8, 0, 0];
    let chain = |first: u8, headers: &[&[u8]]| {
        let behind = [&headers.concat()[..], &datagram].concat();
        let mut made =
            Made { bytes: [&GATEWAY_MAC.0[..], &SANDBOX_MAC.0, &[0x86, 0xdd]].concat(), v6: true, upper: None };
        made.bytes.extend([0x60, 0, 0, 0, 0, behind.len() as u8, first, 64]);
        made.bytes.extend(SANDBOX_V6.octets());
        made.bytes.extend(OUTSIDE_V6.octets());
        made.bytes.extend(behind);
        made.upper = Some((made.bytes.len() - datagram.len(), 17));
        made.mend_upper();
        made.bytes
    };
    let (options, more) = ([17, 0, 1, 4, 0, 0, 0, 0], [0, 0, 1, 4, 0, 0, 0, 0]);
    let in_front = Bench::default().compare(&chain(0, &[&options]), false);
    assert!(matches!(in_front, Outcome::Acted(Act::Datagram { .. })), "{in_front:?}");
    for (what, frame) in [
        ("behind others", chain(60, &[&more, &options])),
        ("behind a fragment header", chain(44, &[&[0, 0, 0, 0, 0, 0, 0, 7], &options])),
    ] {
        assert_eq!(Bench::default().compare(&frame, false), Outcome::Nothing, "{what}");
    }
}
