//! DNS at the gateway's DNS address.
pub mod local;
pub mod message;
