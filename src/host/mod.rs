//! Host sockets: what stands on the outside of a flow.
//!
//! [`HostSide`] is a worker's whole outside. It implements the gateway's [`Host`](crate::gateway::link::Host) by
//! handing each call to the part that owns such sockets: [`tcp`] (connections), [`udp`] (datagrams), [`ping`]
//! (echo requests); questions for names go to the control thread over a bounded channel.
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
