//! Fragments: any that a sandbox may think of, and datagrams cut, shuffled and repeated, which must become whole
//! exactly once and byte for byte.
#![no_main]
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tapline::gateway::link::Offload;
use tapline_fuzz::{DNS_V4, DNS_V6, World, frame, pattern, sandbox};

#[derive(Arbitrary, Debug)]
struct Input {
    v6: bool,
    hostile: Vec<Hostile>,
    length: u16,
    /// How many units of eight bytes each piece holds.
    cuts: Vec<u8>,
    /// Which piece goes next; what is left goes in order.
    order: Vec<u8>,
    repeat: Option<u8>,
}

#[derive(Arbitrary, Debug)]
struct Hostile {
    id: u8,
    units: u16,
    length: u16,
    more: bool,
    protocol: u8,
    seconds: u8,
}

/// A frame with a fragment; `at` in bytes, a multiple of eight.
fn fragment(v6: bool, id: u32, protocol: u8, at: usize, more: bool, payload: &[u8]) -> Vec<u8> {
    let dst: IpAddr = if v6 { DNS_V6.into() } else { DNS_V4.into() };
    if v6 {
        let field = (at as u16) & !7 | u16::from(more);
        let mut packet = vec![protocol, 0];
        packet.extend_from_slice(&field.to_be_bytes());
        packet.extend_from_slice(&id.to_be_bytes());
        packet.extend_from_slice(payload);
        return frame::ip(sandbox(dst), dst, 44, 64, &packet);
    }
    let mut bytes = frame::ip(sandbox(dst), dst, protocol, 64, payload);
    let field = (at / 8) as u16 & 0x1fff | if more { 0x2000 } else { 0 };
    bytes[18..20].copy_from_slice(&(id as u16).to_be_bytes());
    bytes[20..22].copy_from_slice(&field.to_be_bytes());
    frame::mend_ipv4(&mut bytes[frame::ETHERNET..]);
    bytes
}

fuzz_target!(|input: Input| {
    let mut world = World::new(1500);
    let offload = Offload::default();
    for h in &input.hostile {
        let payload = vec![h.id; usize::from(h.length)];
        let at = usize::from(h.units & 0x1fff) * 8;
        world.frame(offload, &fragment(input.v6, u32::from(h.id % 32), h.protocol, at, h.more, &payload));
        world.pass(Duration::from_millis(u64::from(h.seconds) * 100));
    }
    // An honest datagram in the middle of all that: a question, so that it comes out at one place; none is longer.
    let length = usize::from(input.length).clamp(1, 4096);
    let dst: IpAddr = if input.v6 { DNS_V6.into() } else { DNS_V4.into() };
    let mut datagram = vec![0x9c, 0x40, 0, 53];
    datagram.extend_from_slice(&((8 + length) as u16).to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend((0..length as u32).map(pattern));
    let sum = checksum(sandbox(dst), dst, &datagram);
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());

    let mut pieces = Vec::new();
    let (mut at, mut cuts) = (0, input.cuts.iter().take(40));
    while at < datagram.len() {
        let size = cuts.next().map_or(datagram.len(), |cut| (usize::from(*cut) + 1) * 8);
        let end = (at + size).min(datagram.len());
        pieces.push((at, end));
        at = end;
    }
    let total = datagram.len();
    let send = |world: &mut World, (at, end): (usize, usize)| {
        world.frame(offload, &fragment(input.v6, 0x777, 17, at, end < total, &datagram[at..end]));
    };
    let asked = world.host.questions.len();
    let mut order = input.order.iter();
    while !pieces.is_empty() {
        assert_eq!(world.host.questions.len(), asked, "whole before its last piece");
        let which = order.next().map_or(0, |at| usize::from(*at) % pieces.len());
        let piece = pieces.remove(which);
        // A piece that comes twice while others are missing changes nothing.
        if input.repeat.is_some_and(|r| usize::from(r) == pieces.len()) && !pieces.is_empty() {
            send(&mut world, piece);
        }
        send(&mut world, piece);
    }
    let (asker, message) = world.host.questions.get(asked).expect("whole with its last piece");
    assert_eq!(asker.from, SocketAddr::new(sandbox(dst), 40_000));
    assert!(message.iter().copied().eq((0..length as u32).map(pattern)));
    assert_eq!(world.host.questions.len(), asked + 1);
    world.pass(Duration::from_secs(61));
    world.finish();
});

fn checksum(src: IpAddr, dst: IpAddr, datagram: &[u8]) -> u16 {
    use tapline::gateway::emit;
    let pseudo = emit::pseudo_header_sum(src, dst, smoltcp::wire::IpProtocol::Udp, datagram.len() as u32);
    match !emit::fold(pseudo + u64::from(emit::sum_of(datagram))) {
        0 => 0xffff,
        sum => sum,
    }
}
