//! A worker's event loop ([`worker`]), its ports ([`port`]) and the switch between them ([`switch`]); what it and the control thread say to each other
//! ([`commands`]).
pub mod commands;
pub mod cut;
mod dues;
mod flow_list;
mod linked_flows;
pub mod links;
pub mod port;
pub mod switch;
pub mod tokens;
pub mod worker;

pub use worker::Worker;
