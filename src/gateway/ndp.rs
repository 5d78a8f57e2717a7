//! Neighbor discovery and router advertisements (RFC 4861, RFC 8106).
use super::{Segment, counters::DropReason, link::Link, packet::Packet};

/// A sandbox sent a neighbor discovery message.
pub fn handle(_segment: &mut Segment, _packet: &Packet<'_>, _link: &mut impl Link) -> Result<(), DropReason> {
    Err(DropReason::Protocol)
}
