//! Raw kernel interfaces. All `unsafe` of the project is in this room; it imports nothing of ours.

pub mod sockopt;
pub mod tcp_slot;
pub mod vnet;
//! Raw kernel interfaces. All `unsafe` of the program is here, each block with the reason why it is sound.
//!
//! Nothing in this room knows of sandboxes, networks or flows: it imports nothing of ours, and hands out and
//! takes owned or borrowed descriptors only.

pub mod io;
pub mod scm;
pub mod tun;
#[cfg(test)]
pub mod testing;
//! (being built)
pub mod dgram;
//! Raw kernel interfaces. All `unsafe` is here; nothing here imports anything of ours.
pub mod caps;
pub mod random;
pub mod spawn;
