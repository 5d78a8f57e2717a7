//! How much memory the rings of a network's flows have, and what is done when it is too much.
//!
//! # Theory of operation
//!
//! A flow's two rings are a mapping of 1 MiB, whose pages exist from when they are first written to until the flow is
//! quiet or ends. Most flows never have more than a few. But a sandbox can see to it that pages stay: bytes for a host
//! that does not read, a window that it never opens, a first segment that it leaves out. So the pages of each flow are
//! counted as they are touched ([`Touched`]; what the rings' positions say, no system call), and the sums are kept for
//! each sandbox and for the network ([`Held`]).
//!
//! A sandbox is *pressed* while it holds [`MOST_OF_A_SANDBOX`], or as much as is left of [`MOST_OF_A_NETWORK`]: so the
//! more the others hold, the less it may, and something is always left for who comes next. Whoever is pressed goes on,
//! but slowly: each ring takes no more than [`LEAST`] bytes at once, what the sandbox sends beyond that is as if it had
//! been lost, what the host has stays in its kernel; and pages that hold nothing any more go back at once. Nothing is
//! reset, and a flow that is stuck holds up no other.
//!
//! So the rings of a sandbox are bounded by [`MOST_OF_A_SANDBOX`] and four pages for each flow it has beyond: two for
//! each ring, for [`LEAST`] bytes may lie across a page's end.
use crate::gateway::link::PortId;

/// The memory that a sandbox's rings may have before it is pressed.
pub const MOST_OF_A_SANDBOX: usize = 128 << 20;
/// The same for all sandboxes of a network together.
pub const MOST_OF_A_NETWORK: usize = 512 << 20;
/// What a ring of a sandbox that is pressed takes.
pub const LEAST: usize = 4096;

/// The kernel's unit of memory here; on machines with larger pages the counts are that much too small for flows that
/// move little.
const PAGE: usize = 4096;

/// The sums.
#[derive(Default)]
pub(super) struct Held {
    by_port: Vec<usize>,
    all: usize,
}

impl Held {
    /// A flow of this port holds `now` bytes; it was counted with `counted` before.
    pub fn update(&mut self, port: PortId, counted: &mut usize, now: usize) {
        if *counted == now {
            return;
        }
        let index = port.0 as usize;
        if index >= self.by_port.len() {
            self.by_port.resize(index + 1, 0);
        }
        let before = std::mem::replace(counted, now);
        self.by_port[index] = self.by_port[index] + now - before;
        self.all = self.all + now - before;
    }

    /// Has this port's sandbox as much as it may have?
    pub fn is_pressed(&self, port: PortId) -> bool {
        let own = self.of(port);
        own >= MOST_OF_A_SANDBOX.min(MOST_OF_A_NETWORK.saturating_sub(self.all))
    }

    /// What this port's sandbox holds.
    pub fn of(&self, port: PortId) -> usize {
        self.by_port.get(port.0 as usize).copied().unwrap_or(0)
    }
}

/// Which pages of a flow's rings exist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Touched {
    /// Where in the receive ring the next byte is read.
    read_at: usize,
    /// Sequence number of the first byte that was written to the receive ring since its pages were given back.
    received_from: u32,
    /// Where in the send ring the next byte is written; past its end after it has gone round.
    write_at: usize,
    /// Up to where the send ring was written to since it last began anew.
    highest: usize,
    /// Bytes in the middle of the send ring, left over from when pages were given back, and behind them.
    in_the_middle: usize,
    /// The send ring has not begun anew since then.
    goes_on: bool,
}

/// Two parts of the rings: where each begins, and how long it is.
pub(super) type Parts = [(usize, usize); 2];

impl Touched {
    /// Nothing yet; the sandbox's first byte has this sequence number.
    pub fn new(first: u32) -> Touched {
        Touched { received_from: first, ..Touched::default() }
    }

    /// So many bytes were taken out of the receive ring of this size.
    pub fn read(&mut self, count: usize, ring: usize) {
        self.read_at = (self.read_at + count) % ring;
    }

    /// So many bytes are written to the send ring, in which `queued` were before. An empty one begins anew.
    pub fn wrote(&mut self, count: usize, queued: usize) {
        if queued == 0 {
            (self.write_at, self.goes_on) = (0, false);
        }
        self.write_at += count;
        if self.goes_on {
            self.in_the_middle += count;
        } else {
            self.highest = self.highest.max(self.write_at);
        }
    }

    /// Bytes of the pages that exist; `received` is behind the last byte in the receive ring.
    pub fn bytes(&self, received: u32, ring: usize) -> usize {
        let receive = received.wrapping_sub(self.received_from) as usize;
        let send = self.in_the_middle + self.highest;
        [receive, send].into_iter().map(|touched| touched.next_multiple_of(PAGE).min(ring)).sum()
    }

    /// What the rings hold: their pages stay when the others are given back. `next` is the first byte in the receive
    /// ring, `received` behind its last.
    pub fn in_use(&self, next: u32, received: u32, queued: usize, ring: usize) -> Parts {
        let unread = received.wrapping_sub(next) as usize;
        [(self.read_at, unread.min(ring)), ((self.write_at + ring - queued % ring) % ring, queued)]
    }

    /// Only the pages of what is in use are left.
    pub fn trimmed(&mut self, next: u32, queued: usize) {
        self.received_from = next;
        (self.highest, self.in_the_middle, self.goes_on) = (0, queued, queued > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RING: usize = 512 * 1024;
    const A: PortId = PortId(0);
    const B: PortId = PortId(3);

    #[test]
    fn a_sandbox_is_pressed_at_its_own_bound_and_the_sooner_the_more_others_hold() {
        let mut held = Held::default();
        let mut counted = [0; 8];
        held.update(A, &mut counted[0], MOST_OF_A_SANDBOX - 1);
        assert!(!held.is_pressed(A));
        held.update(A, &mut counted[0], MOST_OF_A_SANDBOX);
        assert!(held.is_pressed(A) && !held.is_pressed(B));
        // Everybody takes what he may: the last one still finds something.
        for port in 0..8 {
            let mut bytes = 0;
            while !held.is_pressed(PortId(port)) {
                bytes += 1 << 20;
                held.update(PortId(port), &mut counted[port as usize], bytes);
            }
            assert!(held.of(PortId(port)) > 1 << 20, "{port}");
        }
        assert!(held.all <= MOST_OF_A_NETWORK);
        for port in 0..8 {
            held.update(PortId(port), &mut counted[port as usize], 0);
        }
        assert_eq!((held.all, held.is_pressed(A)), (0, false));
    }

    #[test]
    fn pages_are_counted_as_they_are_touched_and_a_ring_at_most_once() {
        let mut touched = Touched::new(u32::MAX - 10);
        let bytes = |touched: &Touched, received: u32| touched.bytes(received.wrapping_sub(11), RING);
        assert_eq!(bytes(&touched, 0), 0);
        // One that comes out of order touches its own pages only; those before it are counted, because they follow.
        assert_eq!(bytes(&touched, 5000), 8192);
        assert_eq!(bytes(&touched, 3_000_000), RING);
        // A question and an answer, again and again, stay where they are.
        for _ in 0..1000 {
            touched.wrote(1000, 0);
        }
        assert_eq!(bytes(&touched, 0), 4096);
        touched.wrote(RING, 1000);
        assert_eq!(bytes(&touched, 0), RING);
    }

    #[test]
    fn what_is_in_use_is_found_wherever_it_is() {
        let mut touched = Touched::new(0);
        touched.wrote(RING - 100, 0);
        // All but 1000 was taken; 300 more go round the end.
        touched.wrote(300, 1000);
        touched.read(RING + 70, RING);
        let parts = touched.in_use(RING as u32 + 70, RING as u32 + 170, 1300, RING);
        assert_eq!(parts, [(70, 100), (RING - 1100, 1300)]);
        touched.trimmed(RING as u32 + 70, 1300);
        assert_eq!(touched.bytes(RING as u32 + 170, RING), 2 * 4096);
        touched.wrote(5000, 1300);
        assert_eq!(touched.bytes(RING as u32 + 70, RING), 8192);
        touched.wrote(10, 0);
        assert_eq!(touched.bytes(RING as u32 + 70, RING), 8192, "what is left and the beginning");
        touched.trimmed(RING as u32 + 70, 0);
        assert_eq!(touched.bytes(RING as u32 + 70, RING), 0);
    }
}
