//! What the flows do when time passes: timers that are due, pages that are given back, records that grow old.
//!
//! # Theory of operation
//!
//! Each of the three is a queue whose first entry is the next that is due: a heap of timers, in which only the entry counts
//! that its flow knows of, and two lists in the order of time. Nothing here looks at a flow whose time has not come.
use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::time::Instant;

use super::{QUIET, State, TIME_WAIT_LIMIT, TcpId, TcpTable};

/// Timers that may be there without being needed.
pub(super) const LEAST_TIMERS: usize = 1024;

impl TcpTable {
    /// When to call [`handle_timeout`](Self::handle_timeout) if nothing happens before.
    pub fn next_timeout(&mut self) -> Option<Instant> {
        let timer = self.timers.peek().map(|Reverse((at, ..))| *at);
        let quiet = self.quiet.front().map(|(at, _)| *at);
        let record = self.time_wait_order.front().map(|(at, _)| *at);
        [timer, quiet, record].into_iter().flatten().min()
    }

    /// Time has passed: flows whose timer is due become dirty, quiet ones give their pages back, old records go.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(&Reverse((at, index, generation))) = self.timers.peek() {
            if at > now {
                break;
            }
            self.timers.pop();
            let id = TcpId { index, generation };
            if let Some(flow) = self.flow(id)
                && flow.timer == Some(at)
            {
                flow.timer = None;
                flow.timer_due = true;
                self.mark_dirty(id);
            }
        }
        self.release_quiet(now);
        self.forget_records(now);
    }

    /// Records that are old, or the oldest of too many, go.
    pub(super) fn forget_records(&mut self, now: Instant) {
        while let Some(&(until, key)) = self.time_wait_order.front() {
            if until > now && self.time_wait_order.len() <= TIME_WAIT_LIMIT {
                break;
            }
            self.time_wait_order.pop_front();
            self.records.subtract(key.port);
            if let Entry::Occupied(record) = self.time_wait.entry(key)
                && record.get().until == until
            {
                record.remove();
            }
        }
    }

    fn release_quiet(&mut self, now: Instant) {
        while let Some(&(due, id)) = self.quiet.front() {
            if due > now {
                break;
            }
            self.quiet.pop_front();
            let found = self.flows.get_mut(id.index as usize).filter(|flow| flow.generation == id.generation);
            let Some(flow) = found else { continue };
            flow.quiet_queued = false;
            let State::Open(open) = &mut flow.state else { continue };
            if now < flow.last_active + QUIET || !open.is_quiet() {
                flow.quiet_queued = true;
                self.quiet.push_back((now + QUIET, id));
            } else {
                open.release_pages();
                self.memory.update(flow.key.port, &mut open.counted, 0);
                flow.pages_released = true;
            }
        }
    }

    pub(super) fn schedule(&mut self, id: TcpId, at: Instant) {
        if let Some(flow) = self.flow(id)
            && flow.timer.is_none_or(|timer| at < timer)
        {
            flow.timer = Some(at);
            self.timers.push(Reverse((at, id.index, id.generation)));
            if self.timers.len() > LEAST_TIMERS + 4 * self.flows.len() {
                self.forget_timers();
            }
        }
    }

    /// Entries of the timer heap that no longer count go.
    fn forget_timers(&mut self) {
        let mut timers = std::mem::take(&mut self.timers);
        timers.retain(|Reverse((at, index, generation))| {
            self.flow(TcpId { index: *index, generation: *generation }).is_some_and(|flow| flow.timer == Some(*at))
        });
        self.timers = timers;
    }
}
