//! Host sockets: what stands on the outside of a flow.
pub mod tcp;
