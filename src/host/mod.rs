//! Host sockets: what stands on the outside of a flow.
//!
//! [`HostSide`] is a worker's whole outside. It implements the gateway's [`Host`](crate::gateway::link::Host) by
//! handing each call to the part that owns such sockets: [`tcp`] (connections), [`udp`] (datagrams), [`ping`]
//! (echo requests); questions for names go to the control thread over a bounded channel.
//! What the connectionless two have in common is in `socket`, what lets datagrams leave together in `outbox`, the ICMP errors that come back in [`errqueue`], and
//! which addresses are the host's own in [`addr`].
//!
//! [`watch`] is the supervisor's: it gathers what a gateway must know of the host, [`resolv`] reads resolv.conf.
pub mod addr;
pub mod errqueue;
mod outbox;
pub mod ping;
pub mod published;
pub mod resolv;
mod side;
mod socket;
pub mod tcp;
#[cfg(test)]
pub(crate) mod testing;
pub mod udp;
pub mod watch;

pub use side::HostSide;
