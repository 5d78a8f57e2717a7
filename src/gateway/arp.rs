//! ARP (RFC 826): the gateway answers for its own addresses.
use super::{
    Segment,
    counters::DropReason,
    link::{Link, Peer},
};

/// A sandbox sent an ARP packet (without Ethernet header).
pub fn handle(_segment: &mut Segment, _peer: Peer, _packet: &[u8], _link: &mut impl Link) -> Result<(), DropReason> {
    Err(DropReason::Protocol)
}
