//! Raw kernel interfaces. All `unsafe` of the project is in this room; it imports nothing of ours.

pub mod sockopt;
pub mod tcp_slot;
pub mod vnet;
