//! Flows that have something to be done, in the order in which they have their turns.
//!
//! First come, first served within a sandbox; sandboxes take turns. So one whose thousand connections are all busy keeps
//! another's single one waiting for one turn, not for a thousand.
use std::collections::VecDeque;

use super::super::link::{PortId, TcpId};

#[derive(Default)]
pub(super) struct Dirty {
    /// By port.
    queues: Vec<VecDeque<TcpId>>,
    /// The ports whose queues are not empty, each once.
    turns: VecDeque<PortId>,
}

impl Dirty {
    /// A flow of the sandbox on this port has something to be done.
    pub fn push(&mut self, port: PortId, id: TcpId) {
        let index = port.0 as usize;
        if index >= self.queues.len() {
            self.queues.resize_with(index + 1, VecDeque::new);
        }
        let queue = &mut self.queues[index];
        if queue.is_empty() {
            self.turns.push_back(port);
        }
        queue.push_back(id);
    }

    /// Whose turn it is.
    pub fn pop(&mut self) -> Option<TcpId> {
        let port = self.turns.pop_front()?;
        let queue = self.queues.get_mut(port.0 as usize)?;
        let id = queue.pop_front();
        if !queue.is_empty() {
            self.turns.push_back(port);
        }
        id
    }

    /// Nothing to be done?
    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// The port has gone, and all its flows.
    pub fn remove_port(&mut self, port: PortId) {
        if let Some(queue) = self.queues.get_mut(port.0 as usize) {
            *queue = VecDeque::new();
            self.turns.retain(|other| *other != port);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(index: u32) -> TcpId {
        TcpId { index, generation: 1 }
    }

    #[test]
    fn a_sandbox_with_many_busy_flows_does_not_keep_another_waiting() {
        let (many, few) = (PortId(3), PortId(0));
        let mut dirty = Dirty::default();
        for index in 0..1000 {
            dirty.push(many, id(index));
        }
        dirty.push(few, id(5000));
        let order: Vec<u32> = std::iter::from_fn(|| dirty.pop()).map(|id| id.index).collect();
        assert_eq!((order.len(), &order[..4]), (1001, &[0, 5000, 1, 2][..]));
        assert!(dirty.is_empty());
        dirty.push(many, id(1));
        dirty.push(few, id(2));
        dirty.push(many, id(3));
        dirty.remove_port(many);
        assert_eq!((dirty.pop(), dirty.pop(), dirty.is_empty()), (Some(id(2)), None, true));
        dirty.push(many, id(4));
        assert_eq!(dirty.pop(), Some(id(4)));
    }
}
