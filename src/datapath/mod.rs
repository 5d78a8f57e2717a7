//! A worker's event loop ([`worker`]) and its ports ([`port`]); what it and the control thread say to each other
//! ([`commands`]).
pub mod commands;
mod flow_list;
pub mod links;
pub mod port;
pub mod tokens;
pub mod worker;

pub use worker::Worker;
