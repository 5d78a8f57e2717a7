//! Datagrams for published ports; see [the room](super).
use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use mio::Registry;
use mio::event::Event;

use super::{Pools, Surroundings};
use crate::gateway::link::PortId;
use crate::plan::{Published, PublishedKey, Reached};

/// Datagrams, both ways.
pub struct UdpSide {
    _registry: Registry,
}

impl UdpSide {
    /// No ports yet.
    pub fn new(registry: Registry) -> UdpSide {
        UdpSide { _registry: registry }
    }

    /// Serve a published port of a sandbox.
    pub fn publish(&mut self, _port: PortId, _published: Published, _socket: OwnedFd) -> io::Result<()> {
        Ok(())
    }

    /// Close a published port's socket.
    pub fn unpublish(&mut self, _key: PublishedKey) {}

    /// Serve a listener inside a sandbox.
    pub fn reach(&mut self, _port: PortId, _reached: Reached, _socket: OwnedFd) -> io::Result<()> {
        Ok(())
    }

    /// The sandbox has ended: no new connections.
    pub fn close_listeners(&mut self, _port: PortId) {}

    /// Nothing of the sandbox is left.
    pub fn remove(&mut self, _port: PortId) {}

    /// The sandbox's stock of sockets has changed: those that waited for one try again.
    pub fn handle_stock(&mut self, _port: PortId) {}

    /// A published socket, or one inside, is ready.
    pub fn handle_datagrams(&mut self, _index: u32, _event: &Event) {}

    /// The other socket of a flow is ready.
    pub fn handle_detour(&mut self, _index: u32, _event: &Event) {}

    /// What there is to be done.
    pub fn round(&mut self, _now: Instant, _pools: &mut Pools, _around: Surroundings<'_>) {}

    /// Is something left to be done?
    pub fn is_busy(&self) -> bool {
        false
    }

    /// When a round is due.
    pub fn next_timeout(&self) -> Option<Instant> {
        None
    }
}
