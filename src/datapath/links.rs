//! The sending halves of all ports, as the gateway sees them.
use crate::gateway::link::{Link, Offload, PortId};

use super::port::Transmitter;

/// Sending halves, by port.
#[derive(Default)]
pub struct Links {
    senders: Vec<Option<Transmitter>>,
}

impl Links {
    /// No ports yet.
    pub fn new() -> Links {
        Links::default()
    }

    /// A port joins.
    pub fn insert(&mut self, port: PortId, sender: Transmitter) {
        let index = port.0 as usize;
        if index >= self.senders.len() {
            self.senders.resize_with(index + 1, || None);
        }
        self.senders[index] = Some(sender);
    }

    /// A port leaves.
    pub fn remove(&mut self, port: PortId) {
        if let Some(sender) = self.senders.get_mut(port.0 as usize) {
            *sender = None;
        }
    }

    /// The port may take frames again: send what waits. `true` when nothing waits any more.
    pub fn handle_writable(&mut self, port: PortId) -> bool {
        let Some(sender) = self.senders.get_mut(port.0 as usize).and_then(Option::as_mut) else { return false };
        sender.handle_writable();
        sender.has_room()
    }

    /// Ports that have no room now. A port without room must be tried again soon: see
    /// [`RETRY`](super::port::RETRY).
    pub fn full(&self) -> impl Iterator<Item = PortId> + '_ {
        self.senders
            .iter()
            .enumerate()
            .filter(|(_, sender)| sender.as_ref().is_some_and(|s| !s.has_room()))
            .map(|(index, _)| PortId(index as u32))
    }
}

impl Link for Links {
    fn has_room(&self, port: PortId) -> bool {
        self.senders.get(port.0 as usize).and_then(Option::as_ref).is_some_and(Transmitter::has_room)
    }

    fn takes_udp_super_segments(&self, port: PortId) -> bool {
        let sender = self.senders.get(port.0 as usize).and_then(Option::as_ref);
        sender.is_some_and(Transmitter::takes_udp_super_segments)
    }

    fn transmit<R>(&mut self, port: PortId, offload: Offload, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        match self.senders.get_mut(port.0 as usize).and_then(Option::as_mut) {
            Some(sender) => sender.transmit(offload, len, fill),
            // The port has gone; whoever writes still wants a place to write to.
            None => fill(&mut vec![0; len]),
        }
    }
}
