//! Reassembly of fragmented datagrams from sandboxes (RFC 791, RFC 8200, RFC 5722).
use std::time::Instant;

use super::{
    Segment,
    counters::DropReason,
    link::Link,
    packet::{Fragment, Packet},
};

/// Unfinished datagrams.
pub struct Reassembler {}

/// A datagram that is whole again.
pub struct Whole {}

impl Whole {
    /// The datagram as a packet.
    pub fn packet(&self) -> Result<Packet<'_>, DropReason> {
        Err(DropReason::Malformed)
    }
}

impl Reassembler {
    /// Nothing unfinished.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Reassembler {
        Reassembler {}
    }
    /// A fragment came; the datagram, if it is whole now.
    pub fn handle_fragment(&mut self, _now: Instant, _fragment: &Fragment<'_>) -> Result<Option<Whole>, DropReason> {
        Err(DropReason::FragmentLimit)
    }
    /// When the oldest unfinished datagram is given up.
    pub fn next_timeout(&self) -> Option<Instant> {
        None
    }
    /// Give up what is too old.
    pub fn handle_timeout(&mut self, _now: Instant, _segment: &mut Segment, _link: &mut impl Link) {}
}
