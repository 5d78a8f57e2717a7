//! The stack that sandboxes talk to: the host they see at the gateway's address. No system call, no clock.
pub mod counters;
