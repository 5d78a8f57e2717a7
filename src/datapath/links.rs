//! The sending halves of all ports, as the gateway sees them; and where frames of both directions are written down.
use std::io;

use super::port::{NotForwarded, Received, Transmitter};
use crate::gateway::link::{Link, Offload, PortId};
use crate::observe::capture::Capture;

/// Sending halves, by port.
#[derive(Default)]
pub struct Links {
    senders: Vec<Option<Sender>>,
    /// Those that have no room, each once.
    full: Vec<PortId>,
    capture: Option<Capture>,
}

struct Sender {
    transmitter: Transmitter,
    /// Is in the list of those that have no room.
    listed: bool,
}

impl Links {
    /// No ports yet.
    pub fn new() -> Links {
        Links::default()
    }

    /// Write every frame down from now on. For networks with one port.
    pub fn capture(&mut self, capture: Capture) {
        self.capture = Some(capture);
    }

    /// A frame has come.
    #[inline]
    pub fn record(&mut self, received: &Received<'_>) {
        if let Some(capture) = &mut self.capture {
            capture.record(received.frame());
        }
    }

    /// There is time to write down what waits for that.
    ///
    /// # Errors
    /// Once, when nothing is written down any more.
    pub fn flush_capture(&mut self) -> io::Result<()> {
        let flushed = self.capture.as_mut().map_or(Ok(()), Capture::flush);
        if flushed.is_err() {
            self.capture = None;
        }
        flushed
    }

    /// A port joins.
    pub fn insert(&mut self, port: PortId, transmitter: Transmitter) {
        let index = port.0 as usize;
        if index >= self.senders.len() {
            self.senders.resize_with(index + 1, || None);
        }
        self.senders[index] = Some(Sender { transmitter, listed: false });
    }

    /// A port leaves.
    pub fn remove(&mut self, port: PortId) {
        if let Some(sender) = self.senders.get_mut(port.0 as usize).and_then(Option::take)
            && sender.listed
        {
            self.full.retain(|other| *other != port);
        }
    }

    /// Ports that had no room may take frames again: send what waits. `ready` is told of each with which nothing waits
    /// any more. To be called at every event, and [`RETRY`](super::port::RETRY) later at the latest while
    /// [`any_full`](Self::any_full).
    pub fn retry(&mut self, mut ready: impl FnMut(PortId)) {
        let senders = &mut self.senders;
        self.full.retain(|&port| {
            let Some(sender) = senders.get_mut(port.0 as usize).and_then(Option::as_mut) else { return false };
            sender.transmitter.handle_writable();
            sender.listed = !sender.transmitter.has_room();
            if !sender.listed {
                ready(port);
            }
            sender.listed
        });
    }

    /// Has any port no room now?
    pub fn any_full(&self) -> bool {
        !self.full.is_empty()
    }

    /// Send a frame that came from another port, as it came.
    pub fn forward(&mut self, port: PortId, received: &Received<'_>) -> Result<(), NotForwarded> {
        let sender = self.senders.get_mut(port.0 as usize).and_then(Option::as_mut).ok_or(NotForwarded::Refused)?;
        let result = sender.transmitter.forward(received);
        if !sender.listed && !sender.transmitter.has_room() {
            sender.listed = true;
            self.full.push(port);
        }
        result
    }

    fn sender(&self, port: PortId) -> Option<&Transmitter> {
        self.senders.get(port.0 as usize)?.as_ref().map(|sender| &sender.transmitter)
    }
}

impl Link for Links {
    fn has_room(&self, port: PortId) -> bool {
        self.sender(port).is_some_and(Transmitter::has_room)
    }

    fn takes_udp_super_segments(&self, port: PortId) -> bool {
        self.sender(port).is_some_and(Transmitter::takes_udp_super_segments)
    }

    fn transmit<R>(&mut self, port: PortId, offload: Offload, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        match self.senders.get_mut(port.0 as usize).and_then(Option::as_mut) {
            Some(sender) => {
                let capture = &mut self.capture;
                let result = sender.transmitter.transmit(offload, len, |frame| {
                    let result = fill(frame);
                    if let Some(capture) = capture {
                        capture.record(frame);
                    }
                    result
                });
                if !sender.listed && !sender.transmitter.has_room() {
                    sender.listed = true;
                    self.full.push(port);
                }
                result
            }
            // The port has gone; whoever writes still wants a place to write to.
            None => fill(&mut vec![0; len]),
        }
    }
}
