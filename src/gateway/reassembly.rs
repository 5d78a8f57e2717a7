//! Reassembly of fragmented datagrams from sandboxes (RFC 791, RFC 8200 4.5, RFC 5722, RFC 6946).
//!
//! # Theory of operation
//!
//! Fragments of one datagram have port, source, destination, identification and protocol in common. Their payload
//! is gathered in one buffer, beside which the ranges that have come are kept in order and merged; when there is
//! one range from 0 to the end that the last fragment told, the datagram is whole and leaves as a [`Whole`], whose
//! [`packet`](Whole::packet) looks as if it had never been cut.
//!
//! A fragment that overlaps what has come is an attack or a fault: the datagram is lost, and so are its fragments
//! still to come (RFC 5722, here for IPv4 too). For that the entry stays behind, empty and *poisoned*, until its
//! time is up. A fragment that repeats, byte for byte, what has come is a duplicate and ignored. An IPv6 fragment
//! that is a whole datagram by itself (RFC 6946) never meets the others.
//!
//! Bounds, so that no sandbox can make the gateway grow:
//!
//! | what | bound | then |
//! | --- | --- | --- |
//! | datagram | 65,535 bytes, the least any fragment shows it must have | fragment dropped, malformed |
//! | unfinished datagrams of a port | 16 | its oldest is given up |
//! | of the network | 64 | the oldest of the port that has most is given up |
//! | memory of the network | 1 MiB | the oldest of the port that holds most is given up |
//! | gaps in a datagram | 128 | the datagram is given up |
//! | time since its first fragment | 30 s (IPv4), 60 s (IPv6) | given up; ICMP time exceeded where the fragment with offset 0 had come |
//!
//! What is given up is counted as a fragment limit or timeout, once for each datagram.
use std::net::IpAddr;
use std::time::{Duration, Instant};

use smoltcp::wire::{IpProtocol, Ipv4Packet};

use super::{
    Segment,
    counters::{Counters, DropReason},
    icmp::{self, IcmpError},
    link::{Link, Offload, Peer, PortId},
    packet::{self, Fragment, Packet, Parsed},
};

/// How long IPv4 fragments wait (RFC 1122, 3.3.2 asks for 60 to 120 s; Linux waits 30, which is plenty here).
const TIMEOUT_V4: Duration = Duration::from_secs(30);
/// How long IPv6 fragments wait (RFC 8200, 4.5).
const TIMEOUT_V6: Duration = Duration::from_secs(60);
const MAX_DATAGRAMS: usize = 64;
const MAX_DATAGRAMS_OF_A_PORT: usize = 16;
const MAX_BYTES: usize = 1 << 20;
const MAX_RANGES: usize = 128;
/// How much of a datagram's first fragment is kept to be quoted in an error.
const MAX_QUOTE: usize = 1280;

/// Unfinished datagrams.
pub struct Reassembler {
    /// In the order in which they began. Few enough to be searched one by one.
    unfinished: Vec<Unfinished>,
    /// Memory held by all of them.
    bytes: usize,
}

/// A datagram that is whole again.
#[derive(Debug)]
pub struct Whole {
    peer: Peer,
    /// IP header, made whole, and payload.
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    port: PortId,
    src: IpAddr,
    dst: IpAddr,
    id: u32,
    protocol: IpProtocol,
}

struct Unfinished {
    key: Key,
    peer: Peer,
    expires: Instant,
    /// Overlapped or contradicted itself: the rest is dropped too.
    poisoned: bool,
    /// Payload; what lies between the ranges is not there yet.
    data: Vec<u8>,
    /// What has come, in order, neither touching nor overlapping: first byte and the one after the last.
    ranges: Vec<(usize, usize)>,
    /// Where the payload ends, once the last fragment has come.
    end: Option<usize>,
    /// Headers of the fragment with offset 0.
    header: Vec<u8>,
    /// How long the payload of that fragment was.
    first_len: usize,
}

impl Whole {
    /// The datagram as a packet: header without a trace of fragmentation, checksum of the upper protocol still to
    /// be verified, don't-fragment not set.
    pub fn packet(&self) -> Result<Packet<'_>, DropReason> {
        let parsed = match self.bytes.first().map(|b| b >> 4) {
            Some(4) => packet::parse_ipv4(self.peer, Offload::default(), &self.bytes)?,
            _ => packet::parse_ipv6(self.peer, Offload::default(), &self.bytes)?,
        };
        match parsed {
            Parsed::Whole(packet) => Ok(Packet { dont_fragment: false, ..packet }),
            // A fragment header behind a fragment header.
            Parsed::Fragment(_) => Err(DropReason::Malformed),
        }
    }
}

impl Reassembler {
    /// Nothing unfinished.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Reassembler {
        Reassembler { unfinished: Vec::new(), bytes: 0 }
    }

    /// A fragment came; the datagram, if it is whole now. What is given up to make room is counted here, the
    /// fragment itself is for the caller to count.
    pub fn handle_fragment(
        &mut self,
        now: Instant,
        fragment: &Fragment<'_>,
        counters: &mut Counters,
    ) -> Result<Option<Whole>, DropReason> {
        let (start, end) = checked_range(fragment)?;
        if start == 0 && !fragment.more {
            return make_whole(fragment.peer, fragment.header, fragment.protocol, fragment.payload).map(Some);
        }
        let key = Key {
            port: fragment.peer.port,
            src: fragment.src,
            dst: fragment.dst,
            id: fragment.id,
            protocol: fragment.protocol,
        };
        let index = match self.unfinished.iter().position(|u| u.key == key) {
            // One that is too old but was not swept yet must not lend its ranges to a reused identification.
            Some(index) if self.unfinished[index].expires <= now => {
                self.give_up(index, DropReason::FragmentTimeout, counters);
                self.begin(now, key, fragment.peer, counters)
            }
            Some(index) => index,
            None => self.begin(now, key, fragment.peer, counters),
        };
        let before = self.unfinished[index].memory();
        let outcome = self.unfinished[index].add(fragment, start, end);
        self.bytes = self.bytes - before + self.unfinished[index].memory();
        outcome?;
        if self.unfinished[index].is_whole() {
            let done = self.remove(index);
            return make_whole(done.peer, &done.header, done.key.protocol, &done.data).map(Some);
        }
        while self.bytes > MAX_BYTES {
            let oldest = self.oldest_where_most(Unfinished::memory);
            self.give_up(oldest, DropReason::FragmentLimit, counters);
        }
        Ok(None)
    }

    /// Unfinished datagrams, and the memory they hold as it is counted.
    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, usize) {
        (self.unfinished.len(), self.bytes)
    }

    /// The port's sandbox has gone.
    pub fn remove_port(&mut self, port: PortId) {
        self.unfinished.retain(|u| u.key.port != port);
        self.bytes = self.unfinished.iter().map(Unfinished::memory).sum();
    }

    /// When the oldest unfinished datagram is given up.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.unfinished.iter().map(|u| u.expires).min()
    }

    /// Give up what is too old.
    pub fn handle_timeout(&mut self, now: Instant, segment: &mut Segment, link: &mut impl Link) {
        while let Some(index) = self.unfinished.iter().position(|u| u.expires <= now) {
            let old = self.remove(index);
            if old.poisoned {
                continue;
            }
            segment.counters.drop(DropReason::FragmentTimeout);
            if let Some(original) = old.first_fragment() {
                let error = IcmpError::ReassemblyTimeExceeded;
                icmp::send_error(now, segment, old.peer, None, error, &original, link);
            }
        }
    }

    /// A place for a new datagram; older ones make room where there are too many.
    fn begin(&mut self, now: Instant, key: Key, peer: Peer, counters: &mut Counters) -> usize {
        let of_port = self.unfinished.iter().filter(|u| u.key.port == key.port).count();
        if of_port >= MAX_DATAGRAMS_OF_A_PORT {
            let oldest = self.oldest(key.port);
            self.give_up(oldest, DropReason::FragmentLimit, counters);
        } else if self.unfinished.len() >= MAX_DATAGRAMS {
            let oldest = self.oldest_where_most(|_| 1);
            self.give_up(oldest, DropReason::FragmentLimit, counters);
        }
        let timeout = if key.src.is_ipv4() { TIMEOUT_V4 } else { TIMEOUT_V6 };
        self.unfinished.push(Unfinished {
            key,
            peer,
            expires: now + timeout,
            poisoned: false,
            data: Vec::new(),
            ranges: Vec::new(),
            end: None,
            header: Vec::new(),
            first_len: 0,
        });
        self.bytes += self.unfinished.last().map_or(0, Unfinished::memory);
        self.unfinished.len() - 1
    }

    /// The port's oldest datagram. There must be one.
    fn oldest(&self, port: PortId) -> usize {
        self.unfinished.iter().position(|u| u.key.port == port).unwrap_or(0)
    }

    /// The oldest datagram of the port whose datagrams weigh most together: what one sandbox leaves unfinished is not at
    /// the expense of the others. There must be one.
    fn oldest_where_most(&self, weight: impl Fn(&Unfinished) -> usize) -> usize {
        let of_port = |port| self.unfinished.iter().filter(|u| u.key.port == port).map(&weight).sum::<usize>();
        // Few enough to be weighed each time.
        let heaviest = self.unfinished.iter().map(|u| u.key.port).max_by_key(|port| of_port(*port));
        heaviest.map_or(0, |port| self.oldest(port))
    }

    fn give_up(&mut self, index: usize, reason: DropReason, counters: &mut Counters) {
        if !self.remove(index).poisoned {
            counters.drop(reason);
        }
    }

    fn remove(&mut self, index: usize) -> Unfinished {
        let removed = self.unfinished.remove(index);
        self.bytes -= removed.memory();
        removed
    }
}

impl Unfinished {
    fn memory(&self) -> usize {
        size_of::<Unfinished>()
            + self.data.capacity()
            + self.header.capacity()
            + self.ranges.capacity() * size_of::<(usize, usize)>()
    }

    fn add(&mut self, fragment: &Fragment<'_>, start: usize, end: usize) -> Result<(), DropReason> {
        if self.poisoned {
            return Err(DropReason::FragmentOverlap);
        }
        let known_end = self.ranges.last().map_or(0, |&(_, end)| end);
        let contradicts = match self.end {
            Some(whole) => end > whole || (!fragment.more && end != whole),
            None => !fragment.more && end < known_end,
        };
        if contradicts {
            return self.poison(DropReason::FragmentOverlap);
        }
        // The first range that ends at or after our beginning: the only one before which or into which we fit.
        let at = self.ranges.partition_point(|&(_, range_end)| range_end < start);
        match self.ranges.get(at) {
            Some(&(from, to)) if from <= start && end <= to => {
                return if self.data[start..end] == *fragment.payload {
                    Ok(())
                } else {
                    self.poison(DropReason::FragmentOverlap)
                };
            }
            Some(&(from, to)) if from < end && start < to => return self.poison(DropReason::FragmentOverlap),
            _ => {}
        }
        // Where we touch the end of one range, the next must not be overlapped either.
        if self.ranges.get(at).is_some_and(|&(_, to)| to == start)
            && self.ranges.get(at + 1).is_some_and(|&(from, _)| from < end)
        {
            return self.poison(DropReason::FragmentOverlap);
        }
        self.insert_range(at, start, end);
        if self.ranges.len() > MAX_RANGES {
            return self.poison(DropReason::FragmentLimit);
        }
        if self.data.len() < end {
            self.data.resize(end, 0);
        }
        self.data[start..end].copy_from_slice(fragment.payload);
        if !fragment.more {
            self.end = Some(end);
        }
        if start == 0 {
            self.header = fragment.header.to_vec();
            self.first_len = end;
        }
        Ok(())
    }

    /// Put in a range that overlaps none; `at` is the first that ends at or after `start`.
    fn insert_range(&mut self, at: usize, start: usize, end: usize) {
        let joins_before = self.ranges.get(at).is_some_and(|&(_, to)| to == start);
        let after = if joins_before { at + 1 } else { at };
        let joins_after = self.ranges.get(after).is_some_and(|&(from, _)| from == end);
        match (joins_before, joins_after) {
            (true, true) => {
                self.ranges[at].1 = self.ranges[after].1;
                self.ranges.remove(after);
            }
            (true, false) => self.ranges[at].1 = end,
            (false, true) => self.ranges[after].0 = start,
            (false, false) => self.ranges.insert(at, (start, end)),
        }
    }

    /// Forget everything but that this datagram is lost.
    fn poison(&mut self, reason: DropReason) -> Result<(), DropReason> {
        self.poisoned = true;
        self.data = Vec::new();
        self.ranges = Vec::new();
        self.header = Vec::new();
        self.end = None;
        Err(reason)
    }

    fn is_whole(&self) -> bool {
        matches!((&self.ranges[..], self.end), (&[(0, to)], Some(end)) if to == end)
    }

    /// The fragment with offset 0 as it came, as much as an error quotes; `None` when it had not come.
    fn first_fragment(&self) -> Option<Vec<u8>> {
        if self.header.is_empty() {
            return None;
        }
        let mut bytes = self.header.clone();
        if self.key.src.is_ipv6() {
            let more_at_offset_0 = [0, 1];
            bytes.extend_from_slice(&[u8::from(self.key.protocol), 0]);
            bytes.extend_from_slice(&more_at_offset_0);
            bytes.extend_from_slice(&self.key.id.to_be_bytes());
        }
        let quote = self.first_len.min(MAX_QUOTE);
        bytes.extend_from_slice(&self.data[..quote]);
        Some(bytes)
    }
}

/// Where the fragment belongs, if it can belong anywhere: not empty, a multiple of eight bytes unless it is the
/// last, and not beyond the largest datagram (the "ping of death").
fn checked_range(fragment: &Fragment<'_>) -> Result<(usize, usize), DropReason> {
    let start = fragment.offset as usize;
    let end = start + fragment.payload.len();
    // IPv6 does not count its fixed header in the length.
    let headers = fragment.header.len() - if fragment.src.is_ipv6() { 40 } else { 0 };
    if fragment.payload.is_empty()
        || (fragment.more && !fragment.payload.len().is_multiple_of(8))
        || headers + end > usize::from(u16::MAX)
    {
        return Err(DropReason::Malformed);
    }
    Ok((start, end))
}

fn make_whole(peer: Peer, header: &[u8], protocol: IpProtocol, payload: &[u8]) -> Result<Whole, DropReason> {
    let mut bytes = Vec::with_capacity(header.len() + payload.len());
    bytes.extend_from_slice(header);
    bytes.extend_from_slice(payload);
    if header[0] >> 4 == 4 {
        let total = u16::try_from(bytes.len()).map_err(|_| DropReason::Malformed)?;
        let mut view = Ipv4Packet::new_unchecked(&mut bytes[..]);
        view.set_total_len(total);
        view.clear_flags();
        view.set_frag_offset(0);
        view.fill_checksum();
    } else {
        let length = u16::try_from(bytes.len() - 40).map_err(|_| DropReason::Malformed)?;
        bytes[4..6].copy_from_slice(&length.to_be_bytes());
        let named_at = last_next_header(header).ok_or(DropReason::Malformed)?;
        bytes[named_at] = protocol.into();
    }
    Ok(Whole { peer, bytes })
}

/// Where the last of these IPv6 headers says what follows it.
fn last_next_header(header: &[u8]) -> Option<usize> {
    let (mut named_at, mut at) = (6, 40);
    while at < header.len() {
        named_at = at;
        at += 8 + usize::from(*header.get(at + 1)?) * 8;
    }
    (at == header.len()).then_some(named_at)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::super::emit::testing::*;
    use super::super::emit::{self, Ip};
    use super::*;

    const OUTSIDE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9));
    const OUTSIDE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9));

    fn addresses(v6: bool) -> (IpAddr, IpAddr) {
        if v6 { (SANDBOX_V6.into(), OUTSIDE_V6) } else { (SANDBOX_V4.into(), OUTSIDE_V4) }
    }

    fn parse(peer: Peer, packet: &[u8]) -> Parsed<'_> {
        if packet[0] >> 4 == 4 {
            packet::parse_ipv4(peer, Offload::default(), packet).unwrap()
        } else {
            packet::parse_ipv6(peer, Offload::default(), packet).unwrap()
        }
    }

    /// The IP packets of a datagram cut for an MTU, by the gateway's own writer (tested with another parser).
    fn cut(v6: bool, mtu: u16, payload: &[u8]) -> Vec<Vec<u8>> {
        let (mut segment, mut link) = (segment(mtu), Recorder::default());
        let (src, dst) = addresses(v6);
        emit::ip(&mut segment, PEER, &Ip::new(src, dst, IpProtocol::Udp), payload, &mut link);
        link.frames.into_iter().map(|(_, _, frame)| frame[14..].to_vec()).collect()
    }

    struct Bench {
        reassembler: Reassembler,
        counters: Counters,
        now: Instant,
    }

    impl Bench {
        fn new() -> Bench {
            Bench { reassembler: Reassembler::new(), counters: Counters::default(), now: Instant::now() }
        }

        fn feed(&mut self, fragment: &Fragment<'_>) -> Result<Option<Whole>, DropReason> {
            let result = self.reassembler.handle_fragment(self.now, fragment, &mut self.counters);
            let counted: usize = self.reassembler.unfinished.iter().map(Unfinished::memory).sum();
            assert_eq!(self.reassembler.bytes, counted);
            assert!(counted <= MAX_BYTES && self.reassembler.unfinished.len() <= MAX_DATAGRAMS);
            result
        }

        fn feed_packet(&mut self, packet: &[u8]) -> Result<Option<Whole>, DropReason> {
            let Parsed::Fragment(fragment) = parse(PEER, packet) else { panic!("not a fragment") };
            self.feed(&fragment)
        }
    }

    /// A fragment by hand, of an IPv4 datagram.
    fn piece<'a>(id: u32, offset: u32, more: bool, header: &'a [u8], payload: &'a [u8]) -> Fragment<'a> {
        let (src, dst) = addresses(false);
        Fragment { peer: PEER, src, dst, id, protocol: IpProtocol::Udp, offset, more, header, payload }
    }

    fn header_v4() -> Vec<u8> {
        let (src, dst) = addresses(false);
        ip_packet(src, dst, 17, 64, &[])
    }

    fn check_whole(whole: &Whole, v6: bool, payload: &[u8]) {
        let packet = whole.packet().unwrap();
        let (src, dst) = addresses(v6);
        assert_eq!((packet.src, packet.dst, packet.protocol), (src, dst, IpProtocol::Udp));
        assert_eq!(packet.payload(), payload);
        assert!(!packet.dont_fragment && packet.checksum_to_verify());
        let second = etherparse::IpSlice::from_slice(packet.bytes).unwrap();
        assert_eq!(second.payload().payload, payload);
        assert!(!second.payload().fragmented);
    }

    #[test]
    fn the_largest_datagram_is_made_whole_in_reverse_order_too() {
        for v6 in [false, true] {
            let payload: Vec<u8> = (0..65_515usize).map(|i| ((i * 31) >> 3) as u8).collect();
            for mtu in [1280, 1500, 9000] {
                let mut bench = Bench::new();
                let mut pieces = cut(v6, mtu, &payload);
                let first = pieces.remove(0);
                for packet in pieces.iter().rev() {
                    assert!(bench.feed_packet(packet).unwrap().is_none());
                }
                check_whole(&bench.feed_packet(&first).unwrap().unwrap(), v6, &payload);
                assert_eq!(bench.reassembler.bytes, 0);
                assert_eq!(bench.reassembler.next_timeout(), None);
            }
        }
    }

    #[test]
    fn an_overlap_loses_the_datagram_and_what_still_comes_of_it() {
        let header = header_v4();
        for (offset, len) in [(8, 16), (0, 24), (16, 16), (8, 24)] {
            let mut bench = Bench::new();
            assert!(bench.feed(&piece(1, 0, true, &header, &[1; 16])).unwrap().is_none());
            assert!(bench.feed(&piece(1, 24, true, &header, &[1; 8])).unwrap().is_none());
            let overlap = bench.feed(&piece(1, offset, true, &header, &vec![2; len]));
            assert_eq!(overlap.unwrap_err(), DropReason::FragmentOverlap, "{offset} {len}");
            let rest = bench.feed(&piece(1, 16, false, &header, &[1; 8]));
            assert_eq!(rest.unwrap_err(), DropReason::FragmentOverlap);
            // Another datagram is not touched.
            assert!(bench.feed(&piece(2, 0, true, &header, &[1; 16])).unwrap().is_none());
            assert!(bench.feed(&piece(2, 16, false, &header, &[1; 3])).unwrap().is_some());
        }
    }

    #[test]
    fn a_duplicate_is_ignored_and_a_changed_one_is_an_overlap() {
        let header = header_v4();
        let mut bench = Bench::new();
        for _ in 0..3 {
            assert!(bench.feed(&piece(1, 8, false, &header, &[5; 11])).unwrap().is_none());
        }
        let changed = bench.feed(&piece(1, 8, false, &header, &[6; 11]));
        assert_eq!(changed.unwrap_err(), DropReason::FragmentOverlap);
        assert!(bench.feed(&piece(3, 8, false, &header, &[5; 11])).unwrap().is_none());
        let whole = bench.feed(&piece(3, 0, true, &header, &[4; 8])).unwrap().unwrap();
        check_whole(&whole, false, &[[4; 8].as_slice(), &[5; 11]].concat());
    }

    #[test]
    fn contradictions_about_the_end_lose_the_datagram() {
        let header = header_v4();
        for (offset, more, len) in [(24, true, 8), (8, false, 8), (24, false, 8)] {
            let mut bench = Bench::new();
            assert!(bench.feed(&piece(1, 16, false, &header, &[1; 8])).unwrap().is_none());
            assert!(bench.feed(&piece(1, offset, more, &header, &vec![1; len])).is_err());
            assert!(bench.feed(&piece(1, 0, true, &header, &[1; 16])).is_err());
        }
        let mut bench = Bench::new();
        assert!(bench.feed(&piece(1, 16, true, &header, &[1; 8])).unwrap().is_none());
        assert!(bench.feed(&piece(1, 8, false, &header, &[1; 8])).is_err());
    }

    #[test]
    fn impossible_fragments_are_malformed_and_leave_nothing() {
        let header = header_v4();
        let mut bench = Bench::new();
        for (offset, more, len) in [(0, true, 0), (8, false, 0), (0, true, 7), (65_528, false, 8), (65_512, true, 8)] {
            let result = bench.feed(&piece(1, offset, more, &header, &vec![1; len]));
            assert_eq!(result.unwrap_err(), DropReason::Malformed, "{offset} {len}");
        }
        assert!(bench.reassembler.unfinished.is_empty());
    }

    #[test]
    fn a_port_that_never_finishes_loses_its_oldest_and_nobody_elses() {
        let header = header_v4();
        let mut bench = Bench::new();
        let other = Peer { port: PortId(2), ..PEER };
        assert!(bench.feed(&Fragment { peer: other, ..piece(7, 0, true, &header, &[1; 8]) }).unwrap().is_none());
        for id in 0..100 {
            assert!(bench.feed(&piece(id, 0, true, &header, &[1; 8])).unwrap().is_none());
        }
        assert_eq!(bench.reassembler.unfinished.len(), 1 + MAX_DATAGRAMS_OF_A_PORT);
        assert_eq!(bench.counters.dropped(DropReason::FragmentLimit), 84);
        let end = bench.feed(&Fragment { peer: other, ..piece(7, 8, false, &header, &[1; 8]) });
        assert!(end.unwrap().is_some());
        assert!(bench.feed(&piece(99, 8, false, &header, &[1; 8])).unwrap().is_some());
    }

    #[test]
    fn what_others_leave_unfinished_costs_nobody_else_a_datagram() {
        let header = header_v4();
        let large = vec![1; 65_000];
        for (ports, payload) in [(1, &large[..]), (4, &large[..8])] {
            let mut bench = Bench::new();
            for port in 10..10 + ports {
                for id in 0..MAX_DATAGRAMS_OF_A_PORT as u32 {
                    let peer = Peer { port: PortId(port), ..PEER };
                    let fragment = Fragment { peer, ..piece(id, 0, true, &header, payload) };
                    assert!(bench.feed(&fragment).unwrap().is_none());
                }
            }
            for id in 0..4 {
                assert!(bench.feed(&piece(id, 0, true, &header, &large[..32_000])).unwrap().is_none());
            }
            for id in 0..4 {
                assert!(bench.feed(&piece(id, 32_000, false, &header, &[1; 8])).unwrap().is_some(), "{ports} {id}");
            }
        }
    }

    #[test]
    fn memory_is_bounded_whatever_offsets_are_claimed() {
        let header = header_v4();
        let mut bench = Bench::new();
        for port in 0..20 {
            for id in 0..20 {
                let peer = Peer { port: PortId(port), ..PEER };
                let far = Fragment { peer, ..piece(id, 65_000, true, &header, &[1; 8]) };
                assert!(bench.feed(&far).unwrap().is_none());
            }
        }
        assert!(bench.counters.dropped(DropReason::FragmentLimit) > 300);
    }

    #[test]
    fn too_many_gaps_lose_the_datagram() {
        let header = header_v4();
        let mut bench = Bench::new();
        let results: Vec<_> = (0..200).map(|i| bench.feed(&piece(1, i * 16, true, &header, &[1; 8]))).collect();
        assert!(results[..MAX_RANGES].iter().all(|r| r.is_ok()));
        assert_eq!(results[MAX_RANGES].as_ref().unwrap_err(), &DropReason::FragmentLimit);
    }

    #[test]
    fn time_ends_and_is_told_only_where_the_first_fragment_had_come() {
        for (v6, seconds) in [(false, 30), (true, 60)] {
            let pieces = cut(v6, 1280, &[3; 4000]);
            for first_came in [false, true] {
                let mut bench = Bench::new();
                bench.feed_packet(&pieces[if first_came { 0 } else { 1 }]).unwrap();
                let due = bench.reassembler.next_timeout().unwrap();
                assert_eq!(due, bench.now + Duration::from_secs(seconds));
                let (mut segment, mut link) = (segment(1500), Recorder::default());
                bench.reassembler.handle_timeout(due - Duration::from_millis(1), &mut segment, &mut link);
                assert_eq!((bench.reassembler.unfinished.len(), link.frames.len()), (1, 0));
                bench.reassembler.handle_timeout(due, &mut segment, &mut link);
                assert_eq!(bench.reassembler.next_timeout(), None);
                assert_eq!(segment.counters.dropped(DropReason::FragmentTimeout), 1);
                if !first_came {
                    assert!(link.frames.is_empty());
                    continue;
                }
                let at = if v6 { 14 + 40 } else { 14 + 20 };
                let frame = link.one();
                assert_eq!(frame[at..at + 2], if v6 { [3, 1] } else { [11, 1] });
                let quote = &frame[at + 8..];
                assert_eq!(quote, &pieces[0][..quote.len()]);
            }
        }
    }

    #[test]
    fn an_identification_used_again_after_its_time_begins_anew() {
        let header = header_v4();
        let mut bench = Bench::new();
        bench.feed(&piece(1, 8, false, &header, &[1; 8])).unwrap();
        bench.now += TIMEOUT_V4;
        assert!(bench.feed(&piece(1, 0, true, &header, &[2; 16])).unwrap().is_none());
        assert_eq!(bench.counters.dropped(DropReason::FragmentTimeout), 1);
    }

    #[test]
    fn an_atomic_fragment_is_whole_by_itself() {
        let (src, dst) = addresses(true);
        // Destination options before the fragment header, UDP behind it.
        let mut inner = vec![44, 0, 1, 4, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 9];
        inner.extend_from_slice(b"datagram");
        let packet = ip_packet(src, dst, 60, 64, &inner);
        let whole = Bench::new().feed_packet(&packet).unwrap().unwrap();
        let packet = whole.packet().unwrap();
        assert_eq!((packet.protocol, packet.payload()), (IpProtocol::Udp, &b"datagram"[..]));
        assert_eq!((packet.bytes[6], packet.bytes[40]), (60, 17));
    }

    #[test]
    fn a_fragment_header_inside_a_fragment_is_malformed() {
        let (src, dst) = addresses(true);
        let inner = [44, 0, 0, 0, 0, 0, 0, 9, 17, 0, 0, 0, 0, 0, 0, 8, 1, 2, 3, 4];
        let whole = Bench::new().feed_packet(&ip_packet(src, dst, 44, 64, &inner)).unwrap().unwrap();
        assert_eq!(whole.packet().unwrap_err(), DropReason::Malformed);
    }

    #[test]
    fn a_port_that_goes_takes_its_fragments_with_it() {
        let header = header_v4();
        let mut bench = Bench::new();
        bench.feed(&piece(1, 0, true, &header, &[1; 8])).unwrap();
        bench.reassembler.remove_port(PEER.port);
        assert_eq!((bench.reassembler.bytes, bench.reassembler.next_timeout()), (0, None));
    }

    proptest! {
        #[test]
        fn any_order_with_duplicates_makes_the_original(
            v6: bool,
            mtu in 1280u16..9000,
            payload in prop::collection::vec(any::<u8>(), 9000..40_000),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
        ) {
            let pieces = cut(v6, mtu, &payload);
            let mut bench = Bench::new();
            let mut whole = None;
            // Some at random, repeated perhaps, then all that are missing.
            let mut left: Vec<usize> = (0..pieces.len()).collect();
            for index in order.iter().map(|i| i.index(pieces.len())) {
                if left.len() == 1 && left[0] == index {
                    continue;
                }
                left.retain(|&i| i != index);
                prop_assert!(bench.feed_packet(&pieces[index]).unwrap().is_none());
            }
            for index in left.into_iter().rev() {
                prop_assert!(whole.is_none());
                whole = bench.feed_packet(&pieces[index]).unwrap();
            }
            check_whole(&whole.unwrap(), v6, &payload);
        }

        #[test]
        fn no_fragments_make_it_panic_or_grow(
            fragments in prop::collection::vec((0u32..3, 0u32..200, any::<bool>(), 0usize..100, 0u32..9000), 0..200),
        ) {
            let header = header_v4();
            let mut bench = Bench::new();
            for (id, offset, more, len, far) in fragments {
                let offset = if far < 100 { far * 90 } else { offset } * 8;
                let _ = bench.feed(&piece(id, offset, more, &header, &vec![len as u8; len]));
            }
        }
    }
}
