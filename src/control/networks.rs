//! Shared networks: their definitions, and who has which address.
use std::net::{Ipv4Addr, Ipv6Addr};

pub mod file;

use super::state::Registration;
use crate::plan::{Join, MacAddr, Network};

/// Why a network cannot be used, made or removed. One sentence for the person.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Nobody has defined it.
    #[error("there is no network `{0}`: `tapline network ls` lists those there are")]
    NotFound(String),
}

/// A place on a network that a sandbox has taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The network, as the gateway is to know it.
    pub network: Network,
    /// The IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// The IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// The Ethernet address: the one asked for, or made of the IPv4 (else IPv6) address.
    pub mac: MacAddr,
}

/// The definitions of this user's networks.
#[derive(Debug)]
pub struct Networks {}

impl Networks {
    /// The definitions of the caller's user. Call it in the host's network namespace.
    pub fn open() -> Result<Networks, NetworkError> {
        Ok(Networks {})
    }

    /// Take addresses on a network for a registered sandbox: those asked for, or the lowest free ones. They are kept
    /// as long as the registration, or until [`give_back`](Self::give_back).
    pub fn take(&self, _registration: &mut Registration, join: &Join) -> Result<Place, NetworkError> {
        Err(NetworkError::NotFound(join.network.clone()))
    }

    /// Give the addresses on a network back.
    pub fn give_back(&self, _registration: &mut Registration, _network: &str) {}
}
