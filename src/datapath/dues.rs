//! What sandboxes owe each other on a network that they share.
//!
//! # Theory of operation
//!
//! A worker carries for everybody on its network. Whoever is alone may use all of it. But when others have something to
//! carry too, one sandbox must not have the worker do nothing but look at what it drops, refuse what nobody hears, make
//! sockets and ask for names, all of which cost far more than they cost whoever sends them. Two things see to that:
//!
//! - A *turn* ends after [`FRAME_BUDGET`] frames; while others are busy small frames and dear ones ([`cost`]) count
//!   for several ([`Turn`]), so that the others' next turn is some tens of microseconds away.
//! - What is dear has to be paid for out of a *bucket* ([`Dues`]) that fills with time: while others are busy a sandbox that owes is
//!   not read from until it no longer does. Its frames wait in its own kernel, and what finds no room there is lost there.
//!
//! That is [`PER_SECOND`] units: 50,000 frames that go nowhere, 6,000 sockets or 3,000 connections each second, about
//! a twentieth to a seventh of a processor. The bucket holds a tenth of a second's worth. Nobody is held to it who is alone.
//!
//! Others are *busy* ([`Busy`]) as long as frames of theirs have been carried within [`LATELY`]. Frames that are dear do
//! not count for that: two that flood do not make each other honest, nor anybody poor.
use std::time::{Duration, Instant};

use crate::gateway::cost;
use crate::gateway::link::PortId;

/// Most frames taken from a port in one turn.
pub const FRAME_BUDGET: u32 = 64;
/// What a bucket earns each second.
const PER_SECOND: u32 = 200_000;
/// The most that it holds.
const MOST: i64 = PER_SECOND as i64 / 10;
/// How long a sandbox that had something carried is busy.
const LATELY: Duration = Duration::from_millis(10);
/// A frame below this size carries little for what it costs.
const SMALL: usize = 512;
/// As how many frames it counts while others wait.
const SMALL_COUNTS: u32 = 8;

/// One sandbox's bucket.
#[derive(Debug)]
pub struct Dues {
    left: i64,
    filled: Instant,
}

impl Dues {
    /// A full one.
    pub fn new(now: Instant) -> Dues {
        Dues { left: MOST, filled: now }
    }

    /// Pay for something; there may be less than nothing left.
    pub fn pay(&mut self, units: u32) {
        self.left = (self.left - i64::from(units)).max(-MOST);
    }

    /// Is there nothing left?
    pub fn is_owing(&mut self, now: Instant) -> bool {
        const EACH: u128 = 1_000_000 / PER_SECOND as u128;
        let earned = now.saturating_duration_since(self.filled).as_micros() / EACH;
        if earned > 0 {
            self.left = i64::try_from(earned).map_or(MOST, |earned| self.left.saturating_add(earned).min(MOST));
            // Less than one unit is lost.
            self.filled = now;
        }
        self.left <= 0
    }
}

/// Who has had something carried lately.
#[derive(Debug, Default)]
pub struct Busy {
    /// The last two of them, the latest first.
    last: [Option<(PortId, Instant)>; 2],
}

impl Busy {
    /// Something of this port was carried.
    pub fn note(&mut self, port: PortId, now: Instant) {
        if self.last[0].is_some_and(|(last, _)| last != port) {
            self.last[1] = self.last[0];
        }
        self.last[0] = Some((port, now));
    }

    /// Is anybody else busy?
    pub fn others(&self, port: PortId, now: Instant) -> bool {
        self.last.iter().flatten().any(|(other, at)| *other != port && now.saturating_duration_since(*at) < LATELY)
    }
}

/// A port's turn.
#[derive(Debug)]
pub struct Turn {
    taken: u32,
    /// Others wait.
    is_short: bool,
    /// Something was carried in it.
    pub carried: bool,
}

impl Turn {
    /// It begins.
    pub fn new(is_short: bool) -> Turn {
        Turn { taken: 0, is_short, carried: false }
    }

    /// Is it over?
    pub fn is_over(&self) -> bool {
        self.taken >= FRAME_BUDGET
    }

    /// A frame of this length was taken, written `copies` times more than once, at this extra cost.
    pub fn take(&mut self, length: usize, copies: u32, extra: u32) {
        self.carried |= extra == 0;
        self.taken += 1 + copies;
        if self.is_short {
            self.taken += extra.max(if length < SMALL { SMALL_COUNTS - 1 } else { 0 });
        }
    }
}

/// What nothing came of.
pub const IN_VAIN: u32 = cost::IN_VAIN;

#[cfg(test)]
mod tests {
    use super::*;

    const A: PortId = PortId(1);
    const B: PortId = PortId(2);

    #[test]
    fn a_bucket_that_is_overdrawn_fills_again_within_a_fifth_of_a_second() {
        let now = Instant::now();
        let mut dues = Dues::new(now);
        let mut paid = 0;
        while !dues.is_owing(now) {
            dues.pay(cost::CONNECTION);
            paid += 1;
        }
        assert!((300..=320).contains(&paid), "{paid}");
        for _ in 0..100_000 {
            dues.pay(cost::CONNECTION);
        }
        assert!(dues.is_owing(now + Duration::from_millis(99)));
        assert!(!dues.is_owing(now + Duration::from_millis(201)));
        let mut later = now + Duration::from_secs(1);
        let mut served = 0;
        // A second of asking each 100 microseconds.
        for _ in 0..10_000 {
            later += Duration::from_micros(100);
            if !dues.is_owing(later) {
                dues.pay(cost::IN_VAIN);
                dues.pay(cost::IN_VAIN);
                dues.pay(cost::IN_VAIN);
                dues.pay(cost::IN_VAIN);
                dues.pay(cost::IN_VAIN);
                dues.pay(cost::IN_VAIN);
                served += 6;
            }
        }
        assert!((50_000..=56_000).contains(&served), "{served}");
    }

    #[test]
    fn others_are_busy_for_a_while_and_nobody_is_to_himself() {
        let now = Instant::now();
        let mut busy = Busy::default();
        assert!(!busy.others(A, now));
        busy.note(A, now);
        assert!(!busy.others(A, now) && busy.others(B, now));
        busy.note(B, now + Duration::from_millis(5));
        busy.note(B, now + Duration::from_millis(6));
        assert!(busy.others(A, now + Duration::from_millis(15)) && busy.others(B, now + Duration::from_millis(9)));
        assert!(!busy.others(B, now + Duration::from_millis(10)));
        assert!(!busy.others(A, now + Duration::from_millis(16)));
    }

    #[test]
    fn a_turn_is_long_for_who_is_alone_and_short_for_what_is_small_or_dear_beside_others() {
        let frames = |is_short: bool, length: usize, extra: u32| {
            let mut turn = Turn::new(is_short);
            let mut count = 0;
            while !turn.is_over() {
                turn.take(length, 0, extra);
                count += 1;
            }
            (count, turn.carried)
        };
        assert_eq!(frames(false, 60, cost::CONNECTION), (64, false));
        assert_eq!(frames(false, 60, 0), (64, true));
        assert_eq!(frames(true, 65_000, 0), (64, true));
        assert_eq!(frames(true, 60, 0), (8, true));
        assert_eq!(frames(true, 60, cost::CONNECTION), (1, false));
        assert_eq!(frames(true, 60, cost::IN_VAIN), (8, false));
        assert_eq!(frames(true, 1400, cost::IN_VAIN), (13, false));
    }
}
