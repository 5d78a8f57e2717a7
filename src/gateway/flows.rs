//! A table of flows that end by being idle: what UDP and ping have in common.
//!
//! # Theory of operation
//!
//! A flow is found by its key (one hash lookup) or by its place and the place's generation, which is what host
//! sockets know it by; places are reused, so they stay small and dense, and a generation that no longer fits
//! means that the flow has ended meanwhile.
//!
//! Each flow is in two doubly linked lists that run through the places themselves, so that using a flow, ending
//! it and finding the one to end cost the same however many there are:
//!
//! - the list of its [`Idle`] class, for expiry: all flows of a class have the same timeout and are kept in the
//!   order of their last use, so only the first of each list can be the next to expire;
//! - the list of its sandbox's port, for the bound on each sandbox's flows: the first is the one that was idle
//!   longest.
//!
//! The table decides nothing: whoever owns it asks for the count and the oldest before adding a flow.
use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use super::link::PortId;

/// How long a flow may be idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Idle {
    /// A question and its answer.
    Short,
    /// Everything else.
    Long,
}

const NONE: u32 = u32::MAX;

/// Neighbors in a list.
#[derive(Clone, Copy)]
struct Links {
    previous: u32,
    next: u32,
}

/// A list's ends: least recently used first.
#[derive(Clone, Copy)]
struct List {
    first: u32,
    last: u32,
}

const UNLINKED: Links = Links { previous: NONE, next: NONE };
const EMPTY: List = List { first: NONE, last: NONE };

/// Which of a place's two pairs of links.
const BY_AGE: usize = 0;
const BY_PORT: usize = 1;

struct Place<K, V> {
    generation: u32,
    links: [Links; 2],
    flow: Option<Flow<K, V>>,
}

struct Flow<K, V> {
    key: K,
    value: V,
    port: u32,
    idle: Idle,
    used: Instant,
}

/// One sandbox's flows.
struct PortFlows {
    list: List,
    count: usize,
}

pub(crate) struct FlowTable<K, V> {
    by_key: HashMap<K, u32>,
    places: Vec<Place<K, V>>,
    free: Vec<u32>,
    ages: [List; 2],
    timeouts: [Duration; 2],
    by_port: HashMap<PortId, u32>,
    ports: Vec<PortFlows>,
    free_ports: Vec<u32>,
}

impl<K: Copy + Eq + Hash, V> FlowTable<K, V> {
    /// An empty table with the timeouts of both classes.
    pub fn new(short: Duration, long: Duration) -> FlowTable<K, V> {
        FlowTable {
            by_key: HashMap::new(),
            places: Vec::new(),
            free: Vec::new(),
            ages: [EMPTY; 2],
            timeouts: [short, long],
            by_port: HashMap::new(),
            ports: Vec::new(),
            free_ports: Vec::new(),
        }
    }

    /// Flows now.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// One sandbox's flows now.
    pub fn count(&self, port: PortId) -> usize {
        self.by_port.get(&port).map_or(0, |at| self.ports[*at as usize].count)
    }

    /// The flow of this sandbox that was idle longest.
    pub fn oldest(&self, port: PortId) -> Option<u32> {
        let at = self.by_port.get(&port)?;
        Some(self.ports[*at as usize].list.first).filter(|first| *first != NONE)
    }

    /// The flow that makes room for one more of this sandbox's when there is no room for anybody's: the one that was idle
    /// longest of whoever has most, so that nobody's many flows keep others from having a few.
    pub fn oldest_where_most(&self, port: PortId) -> Option<u32> {
        let most = self.ports.iter().max_by_key(|flows| flows.count).filter(|most| most.count > self.count(port));
        most.map(|flows| flows.list.first).or_else(|| self.oldest(port))
    }

    /// The place of the flow with this key.
    pub fn find(&self, key: &K) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    /// The flow at this place, if it is still the one of this generation.
    pub fn at(&mut self, index: u32, generation: u32) -> Option<&mut V> {
        let place = self.places.get_mut(index as usize).filter(|place| place.generation == generation)?;
        place.flow.as_mut().map(|flow| &mut flow.value)
    }

    /// The flow that [`find`](Self::find) or [`insert`](Self::insert) has just placed here, and its generation.
    pub fn placed(&mut self, index: u32) -> Option<(u32, &mut V)> {
        let place = self.places.get_mut(index as usize)?;
        let generation = place.generation;
        place.flow.as_mut().map(|flow| (generation, &mut flow.value))
    }

    /// How many places there are, taken or not: each flow is at one below.
    pub fn places(&self) -> usize {
        self.places.len()
    }

    /// The flow at this place, with its key.
    pub fn look(&self, index: usize) -> Option<(&K, &V)> {
        self.places.get(index)?.flow.as_ref().map(|flow| (&flow.key, &flow.value))
    }

    /// The places of all flows with such keys. Looks at every flow there is.
    pub fn find_where(&self, wanted: impl Fn(&K) -> bool) -> Vec<u32> {
        self.by_key.iter().filter(|(key, _)| wanted(key)).map(|(_, index)| *index).collect()
    }

    /// Flows of a class, those that are there too, may be idle this long from now on.
    pub fn set_timeout(&mut self, idle: Idle, timeout: Duration) {
        self.timeouts[idle as usize] = timeout;
    }

    /// Add a flow whose key is not in the table. Its place.
    pub fn insert(&mut self, now: Instant, port: PortId, key: K, value: V, idle: Idle) -> u32 {
        let port = self.port_place(port);
        let flow = Some(Flow { key, value, port, idle, used: now });
        let index = match self.free.pop() {
            Some(index) => {
                self.places[index as usize].flow = flow;
                index
            }
            None => {
                self.places.push(Place { generation: 1, links: [UNLINKED; 2], flow });
                (self.places.len() - 1) as u32
            }
        };
        self.by_key.insert(key, index);
        self.ports[port as usize].count += 1;
        push(&mut self.places, BY_AGE, &mut self.ages[idle as usize], index);
        push(&mut self.places, BY_PORT, &mut self.ports[port as usize].list, index);
        index
    }

    fn port_place(&mut self, port: PortId) -> u32 {
        let (ports, free) = (&mut self.ports, &mut self.free_ports);
        *self.by_port.entry(port).or_insert_with(|| {
            free.pop().unwrap_or_else(|| {
                ports.push(PortFlows { list: EMPTY, count: 0 });
                (ports.len() - 1) as u32
            })
        })
    }

    /// The flow at this place was used; it is of this class from now on.
    pub fn touch(&mut self, now: Instant, index: u32, idle: Idle) {
        let Some(flow) = self.places.get_mut(index as usize).and_then(|place| place.flow.as_mut()) else { return };
        let (before, port) = (flow.idle, flow.port as usize);
        flow.used = now;
        flow.idle = idle;
        if before != idle || self.ages[idle as usize].last != index {
            unlink(&mut self.places, BY_AGE, &mut self.ages[before as usize], index);
            push(&mut self.places, BY_AGE, &mut self.ages[idle as usize], index);
        }
        if self.ports[port].list.last != index {
            unlink(&mut self.places, BY_PORT, &mut self.ports[port].list, index);
            push(&mut self.places, BY_PORT, &mut self.ports[port].list, index);
        }
    }

    /// End the flow at this place: the generation it had.
    pub fn remove(&mut self, index: u32) -> Option<u32> {
        let place = self.places.get_mut(index as usize)?;
        let flow = place.flow.take()?;
        let generation = place.generation;
        place.generation = generation.wrapping_add(1);
        self.by_key.remove(&flow.key);
        self.free.push(index);
        let port = &mut self.ports[flow.port as usize];
        port.count -= 1;
        unlink(&mut self.places, BY_AGE, &mut self.ages[flow.idle as usize], index);
        unlink(&mut self.places, BY_PORT, &mut port.list, index);
        Some(generation)
    }

    /// The sandbox at this port is gone: call [`remove`](Self::remove) for each [`oldest`](Self::oldest) first.
    pub fn forget_port(&mut self, port: PortId) {
        if let Some(at) = self.by_port.remove(&port) {
            self.free_ports.push(at);
        }
    }

    /// When the next flow expires if nothing uses it before.
    pub fn next_timeout(&self) -> Option<Instant> {
        [Idle::Short, Idle::Long].into_iter().filter_map(|idle| self.first_timeout(idle)).map(|(at, _)| at).min()
    }

    fn first_timeout(&self, idle: Idle) -> Option<(Instant, u32)> {
        let first = self.ages[idle as usize].first;
        let flow = self.places.get(first as usize)?.flow.as_ref()?;
        Some((flow.used + self.timeouts[idle as usize], first))
    }

    /// A flow that has been idle too long.
    pub fn expired(&self, now: Instant) -> Option<u32> {
        [Idle::Short, Idle::Long]
            .into_iter()
            .filter_map(|idle| self.first_timeout(idle))
            .find(|(at, _)| *at <= now)
            .map(|(_, index)| index)
    }
}

/// Put a place at the end of a list.
fn push<K, V>(places: &mut [Place<K, V>], which: usize, list: &mut List, index: u32) {
    places[index as usize].links[which] = Links { previous: list.last, next: NONE };
    match list.last {
        NONE => list.first = index,
        last => places[last as usize].links[which].next = index,
    }
    list.last = index;
}

/// Take a place out of the list it is in.
fn unlink<K, V>(places: &mut [Place<K, V>], which: usize, list: &mut List, index: u32) {
    let Links { previous, next } = std::mem::replace(&mut places[index as usize].links[which], UNLINKED);
    match previous {
        NONE => list.first = next,
        previous => places[previous as usize].links[which].next = next,
    }
    match next {
        NONE => list.last = previous,
        next => places[next as usize].links[which].previous = previous,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: PortId = PortId(1);
    const SHORT: Duration = Duration::from_secs(10);
    const LONG: Duration = Duration::from_secs(120);

    #[test]
    fn a_place_given_to_another_flow_does_not_answer_to_the_old_generation() {
        let now = Instant::now();
        let mut table = FlowTable::new(SHORT, LONG);
        let first = table.insert(now, A, 1, "one", Idle::Long);
        let generation = table.remove(first).unwrap();
        let second = table.insert(now, A, 2, "two", Idle::Long);
        assert_eq!(first, second, "places are reused");
        assert_eq!(table.at(first, generation), None);
        assert_eq!(table.at(second, generation + 1), Some(&mut "two"));
    }

    #[test]
    fn a_sandbox_that_left_leaves_no_trace() {
        let now = Instant::now();
        let mut table = FlowTable::new(SHORT, LONG);
        for round in 0..100 {
            table.insert(now, PortId(round), round, (), Idle::Long);
            while let Some(index) = table.oldest(PortId(round)) {
                table.remove(index);
            }
            table.forget_port(PortId(round));
        }
        assert_eq!((table.len(), table.ports.len(), table.by_port.len(), table.places.len()), (0, 1, 0, 1));
    }

    proptest! {
        /// Against a plain list: whatever happens, the oldest, the count and the next timeout agree.
        #[test]
        fn order_and_timeouts_are_those_of_a_plain_list(
            steps in proptest::collection::vec((0u8..4, 0u32..12, 0u32..2, any::<bool>(), 0u64..30), 1..200),
        ) {
            let mut now = Instant::now();
            let mut table: FlowTable<u32, ()> = FlowTable::new(SHORT, LONG);
            // (key, port, class, used), least recently used first.
            let mut model: Vec<(u32, u32, Idle, Instant)> = Vec::new();
            for (step, key, port, short, seconds) in steps {
                let idle = if short { Idle::Short } else { Idle::Long };
                match (step, table.find(&key)) {
                    (0 | 1, Some(index)) => {
                        table.touch(now, index, idle);
                        let at = model.iter().position(|m| m.0 == key).unwrap();
                        let old = model.remove(at);
                        model.push((key, old.1, idle, now));
                    }
                    (0 | 1, None) => {
                        table.insert(now, PortId(port), key, (), idle);
                        model.push((key, port, idle, now));
                    }
                    (2, Some(index)) => {
                        table.remove(index);
                        model.retain(|m| m.0 != key);
                    }
                    _ => {
                        now += Duration::from_secs(seconds);
                        while let Some(index) = table.expired(now) {
                            table.remove(index);
                        }
                        model.retain(|m| m.3 + if m.2 == Idle::Short { SHORT } else { LONG } > now);
                    }
                }
                prop_assert_eq!(table.len(), model.len());
                let next = model.iter().map(|m| m.3 + if m.2 == Idle::Short { SHORT } else { LONG }).min();
                prop_assert_eq!(table.next_timeout(), next);
                for port in 0..2 {
                    let of_port: Vec<_> = model.iter().filter(|m| m.1 == port).collect();
                    prop_assert_eq!(table.count(PortId(port)), of_port.len());
                    let oldest = table.oldest(PortId(port));
                    prop_assert_eq!(oldest, of_port.first().and_then(|m| table.find(&m.0)));
                }
            }
        }
    }
}
