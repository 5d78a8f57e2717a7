//! Raw kernel interfaces. All `unsafe` of the program is here, each block with the reason why it is sound.
//!
//! Nothing in this room knows of sandboxes, networks or flows: it imports nothing of ours, and hands out and
//! takes owned or borrowed descriptors only.

pub mod caps;
pub mod dgram;
pub mod io;
pub mod netlink;
pub mod netns;
pub mod ns;
pub mod packet;
pub mod proc;
pub mod random;
pub mod refusal;
pub mod scm;
pub mod seccomp;
pub mod sockdiag;
pub mod sockopt;
pub mod spawn;
pub mod splice;
pub mod tcp_slot;
#[cfg(test)]
pub mod testing;
pub mod tun;
pub mod vnet;
pub mod watch;
