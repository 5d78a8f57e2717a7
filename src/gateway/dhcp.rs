//! DHCPv4 (RFC 2131, RFC 2132).
use super::{Segment, counters::DropReason, link::Link, packet::Packet};

/// A sandbox sent a UDP packet from 0.0.0.0, or to port 67 of the gateway.
pub fn handle(_segment: &mut Segment, _packet: &Packet<'_>, _link: &mut impl Link) -> Result<(), DropReason> {
    Err(DropReason::Protocol)
}
