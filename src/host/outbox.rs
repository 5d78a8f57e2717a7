//! Datagrams that wait, within one round of the worker, to leave together.
//!
//! # Theory of operation
//!
//! A program that sends many datagrams in a row costs a system call for each; with UDP_SEGMENT the kernel takes
//! up to [`SEGMENTS`] of one size at once. So what follows a datagram the same [`Way`] waits here: the first
//! has been sent at once, for a program that waits for its answer sends no second. A shorter datagram may be the
//! last, and ends what waits; a longer one begins anew. Nothing waits longer than the round, and nothing
//! overtakes: whoever sends anything else sends what waits first.
//!
//! Whoever sent it has long been told that all is well. What then could not be sent is kept with its reason
//! until the end of the round, and the gateway hears of it as it does of errors from the host's queue. A way on
//! which something failed begins again with a datagram that is sent at once.
//!
//! Bounds: one buffer, of the size of one super-segment; failures are fewer than the frames of a round.
use std::net::SocketAddr;

use crate::gateway::link::{Datagram, HostError, UdpId, Unsent};

/// Most datagrams in a super-segment (UDP_MAX_SEGMENTS of Linux 4.18 to 6.8; later ones take 128).
pub(super) const SEGMENTS: usize = 64;
/// Most bytes in a super-segment; UDP over IPv4 has room for 65,507.
const MOST_BYTES: usize = 65_000;
/// Larger datagrams go alone: of these, few would fit, and copying them is no less work than the call.
const LARGEST: usize = MOST_BYTES / 4;

/// What datagrams must have in common to leave together.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Way {
    pub flow: UdpId,
    pub to: SocketAddr,
    /// Through the flow's socket for the host itself.
    pub local: bool,
    hop_limit: u8,
    tos: u8,
    dont_fragment: bool,
}

impl Way {
    pub fn new(flow: UdpId, to: SocketAddr, local: bool, datagram: &Datagram<'_>) -> Way {
        let Datagram { hop_limit, tos, dont_fragment, .. } = *datagram;
        Way { flow, to, local, hop_limit, tos, dont_fragment }
    }

    /// Datagrams that go this way.
    pub fn datagram<'a>(&self, payload: &'a [u8]) -> Datagram<'a> {
        let Way { hop_limit, tos, dont_fragment, .. } = *self;
        Datagram { payload, segment: 0, hop_limit, tos, dont_fragment }
    }
}

/// What waits, borrowed apart from where failures go.
pub(super) struct Waiting<'a> {
    pub way: Way,
    /// The datagrams, one after the other.
    pub bytes: &'a [u8],
    /// Bytes of each but the last.
    pub size: usize,
    pub failures: &'a mut Failures,
}

/// What waits, and what went wrong.
pub(super) struct Outbox {
    /// The way that the datagram before went.
    last: Option<Way>,
    /// What waits to go that way.
    bytes: Vec<u8>,
    count: usize,
    /// Bytes of each but the last.
    size: usize,
    failures: Failures,
}

impl Outbox {
    pub fn new() -> Outbox {
        let bytes = Vec::with_capacity(MOST_BYTES);
        Outbox { last: None, bytes, count: 0, size: 0, failures: Failures::default() }
    }

    /// The way that the datagram before went, in this round, if all is well there.
    pub fn last(&self) -> Option<Way> {
        self.last
    }

    /// The next datagram may wait if it goes this way too; with `None` it may not.
    pub fn set_last(&mut self, way: Option<Way>) {
        debug_assert_eq!(self.count, 0, "what waits goes first");
        self.last = way;
    }

    /// May a datagram of this size wait at all?
    pub fn suits(len: usize) -> bool {
        (1..=LARGEST).contains(&len)
    }

    /// May it join those that wait already?
    pub fn has_place_for(&self, len: usize) -> bool {
        self.count == 0 || (len <= self.size && self.count < SEGMENTS && self.bytes.len() + len <= MOST_BYTES)
    }

    /// Let a datagram wait; `true` when none can follow it.
    pub fn push(&mut self, payload: &[u8]) -> bool {
        if self.count == 0 {
            self.size = payload.len();
        }
        self.bytes.extend_from_slice(payload);
        self.count += 1;
        payload.len() < self.size || !self.has_place_for(self.size)
    }

    /// What waits, if anything does.
    pub fn waiting(&mut self) -> Option<Waiting<'_>> {
        let way = self.last.filter(|_| self.count > 0)?;
        Some(Waiting { way, bytes: &self.bytes, size: self.size, failures: &mut self.failures })
    }

    /// What waited has been sent, or has failed.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
        if std::mem::take(&mut self.failures.fresh) {
            self.last = None;
        }
    }

    /// Hand over everything that went wrong since the last time.
    pub fn take_failures(&mut self, sink: impl FnMut(Unsent<'_>)) {
        self.failures.take(sink);
    }
}

/// [`Unsent`], with its payload's end in the common buffer.
struct Failure {
    flow: UdpId,
    to: SocketAddr,
    error: HostError,
    datagrams: u64,
    end: usize,
}

/// What went wrong in this round.
#[derive(Default)]
pub(super) struct Failures {
    entries: Vec<Failure>,
    payloads: Vec<u8>,
    /// Some of it with what waits now.
    fresh: bool,
}

impl Failures {
    /// These datagrams could not be sent. The sandbox is told once of what repeats itself.
    pub fn push<'a>(&mut self, way: &Way, error: HostError, mut datagrams: impl Iterator<Item = &'a [u8]>) {
        self.fresh = true;
        let &Way { flow, to, .. } = way;
        if let Some(before) = self.entries.last_mut()
            && (before.flow, before.to, before.error) == (flow, to, error)
        {
            before.datagrams += datagrams.count() as u64;
            return;
        }
        self.payloads.extend_from_slice(datagrams.next().unwrap_or(&[]));
        let end = self.payloads.len();
        self.entries.push(Failure { flow, to, error, datagrams: 1 + datagrams.count() as u64, end });
    }

    fn take(&mut self, mut sink: impl FnMut(Unsent<'_>)) {
        let mut at = 0;
        for Failure { flow, to, error, datagrams, end } in self.entries.drain(..) {
            sink(Unsent { flow, to, error, datagrams, payload: &self.payloads[at..end] });
            at = end;
        }
        self.payloads.clear();
        self.payloads.shrink_to(MOST_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOW: UdpId = UdpId { index: 3, generation: 7 };

    fn way() -> Way {
        let datagram = Datagram { payload: &[], segment: 0, hop_limit: 63, tos: 0, dont_fragment: false };
        Way::new(FLOW, "192.0.2.1:9".parse().unwrap(), false, &datagram)
    }

    #[test]
    fn a_super_segment_is_full_by_number_or_by_bytes_or_with_a_shorter_one() {
        for (size, most) in [(1, 64), (1000, 64), (1400, 46), (LARGEST, 4)] {
            let mut outbox = Outbox::new();
            outbox.set_last(Some(way()));
            let full = (1..).find(|_| outbox.push(&vec![1; size]));
            assert_eq!(full, Some(most), "{size}");
            assert!(outbox.waiting().unwrap().bytes.len() <= MOST_BYTES);
        }
        let mut outbox = Outbox::new();
        outbox.set_last(Some(way()));
        assert!(!outbox.push(&[1; 100]));
        assert!(outbox.has_place_for(100) && outbox.has_place_for(99) && !outbox.has_place_for(101));
        assert!(outbox.push(&[1; 99]), "a shorter one ends it");
        assert!(!Outbox::suits(0) && Outbox::suits(LARGEST) && !Outbox::suits(LARGEST + 1));
    }

    #[test]
    fn failures_come_with_their_own_datagrams() {
        let mut outbox = Outbox::new();
        outbox.set_last(Some(way()));
        outbox.push(b"one");
        let Waiting { way, failures, .. } = outbox.waiting().unwrap();
        failures.push(&way, HostError::NetUnreachable, [&b"one"[..], b"two"].into_iter());
        failures.push(&way, HostError::NetUnreachable, [&b"six"[..]].into_iter());
        failures.push(&way, HostError::Prohibited, [&b"7"[..]].into_iter());
        outbox.clear();
        assert!(outbox.last().is_none(), "the next is sent at once");
        let mut failures = Vec::new();
        outbox.take_failures(|f| failures.push((f.flow, f.error, f.datagrams, f.payload.to_vec())));
        let expected =
            [(FLOW, HostError::NetUnreachable, 3, b"one".to_vec()), (FLOW, HostError::Prohibited, 1, b"7".to_vec())];
        assert_eq!(failures, expected);
        outbox.take_failures(|f| panic!("told twice: {f:?}"));
    }
}
