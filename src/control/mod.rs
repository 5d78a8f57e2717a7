//! The attach protocol, the state directory, and the control thread of a gateway.
pub mod api;
pub mod client;
pub mod gateway;
pub mod hostfwd;
pub mod http;
pub mod messages;
pub mod networks;
pub mod rendezvous;
pub mod requests;
pub mod state;
pub mod wire;
