//! The event loop and its ports: see [`worker`].
pub mod commands;
pub mod links;
pub mod port;
pub mod tokens;
pub mod worker;

pub use worker::Worker;
//! (being built)
//! A worker's event loop and its ports; what it and the control thread say to each other ([`commands`]).
