//! Host sockets: what stands on the outside of a flow.
//!
//! [`HostSide`] is a worker's whole outside. It implements the gateway's [`Host`](crate::gateway::link::Host) by
//! handing each call to the part that owns such sockets: [`tcp`] (connections), [`udp`] (datagrams), [`ping`]
//! (echo requests); questions for names go to the control thread over a bounded channel.
//! The host's sockets behind sandboxes' flows.
//! [`udp`] and [`ping`] each keep a table of sockets by the place of the flow they belong to; what the two have
//! in common is in `socket`, the ICMP errors that come back in [`errqueue`], and which addresses are the host's
//! own in [`addr`].

pub mod addr;
pub mod errqueue;
pub mod ping;
mod side;
mod socket;
pub mod tcp;
#[cfg(test)]
mod testing;
pub mod udp;

pub use side::HostSide;
