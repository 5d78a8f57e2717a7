//! What listens on the host's loopback, found on the sandbox's under the same number: `--reach auto`.
//!
//! # Theory of operation
//!
//! The supervisor looks every [`LOOK`] at what listens in its own network namespace where a client of the loopback comes
//! to: 127.0.0.1, ::1, all addresses. What is new it has the agent open on the sandbox's loopback, what has gone it has
//! closed:
//!
//! ```text
//! wanted ── Listen to the agent ──> asked ── its sockets come ──> open ── nobody listens any more ──> closing ──> gone
//!   ^                                 │ none came: taken inside                  gateway closes, then the agent forgets
//!   └────────── after RETRY ──────────┘
//! ```
//!
//! *Never a loop.* A number that is published on the host, or that a published port leads to, is not reached: nor while a
//! gateway is still closing it. What is opened here is not published by `-p auto`: the agent knows the sockets and the
//! supervisor the numbers ([`Reacher::numbers`]), and both go by that until the gateway has closed them.
//!
//! What the host listens on is not the sandbox's choice, yet there is a limit: [`MOST_FOLLOWED`](super::ports::MOST_FOLLOWED),
//! and fewer where this process may have few descriptors. Where some of those that the agent has opened could not be taken
//! all the same, there are never more than there were then.
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::listeners::{Listeners, is_on_loopback};
use super::ports::{Inner, room_for_reached};
use crate::plan::{AutoRules, Ports, Protocol, Reach, Reached};

/// How often the host is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// When a number that is taken inside is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Everything that is reached because somebody listens.
pub(super) struct Reacher {
    rules: Option<AutoRules>,
    /// Only these, where that is what was asked for.
    following: Vec<Reach>,
    /// `None` when nothing is followed, or the kernel does not say who listens.
    listeners: Option<Listeners>,
    /// By the number inside.
    wanted: BTreeMap<Inner, (Reach, State)>,
    /// The agent is at work on an order.
    order: Option<u64>,
    /// Could not be opened: when to try again.
    failed: BTreeMap<Inner, Instant>,
    /// At most so many are wanted.
    most: usize,
    told_of_limit: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The agent is to open it.
    Asked,
    Open,
    /// The gateway is to close it.
    Closing,
}

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Open these inside.
    pub(super) open: Vec<Reach>,
    /// Close what leads there.
    pub(super) close: Vec<Reach>,
}

impl Reacher {
    /// Nothing is reached yet.
    pub(super) fn new(ports: &Ports) -> Reacher {
        let is_wanted = ports.reach_auto.is_some() || !ports.reach_following.is_empty();
        let listeners = is_wanted.then(|| Listeners::open(LOOK)).and_then(|opened| {
            opened
                .inspect_err(|error| {
                    tracing::warn!("--reach auto finds nothing: the kernel does not say who listens ({error})");
                })
                .ok()
        });
        Reacher {
            rules: ports.reach_auto.clone(),
            following: ports.reach_following.clone(),
            listeners,
            wanted: BTreeMap::new(),
            order: None,
            failed: BTreeMap::new(),
            most: if is_wanted { room_for_reached() } else { 0 },
            told_of_limit: false,
        }
    }

    /// When to look.
    pub(super) fn next(&self) -> Option<Instant> {
        self.listeners.as_ref().map(Listeners::next)
    }

    /// The numbers inside that are ours, or are about to be, or are not closed yet.
    pub(super) fn numbers(&self) -> impl Iterator<Item = Inner> {
        self.wanted.keys().copied()
    }

    /// Look, if it is time, and say what is to be done. `taken` are numbers that are published, or used by the sandbox.
    pub(super) fn look(&mut self, now: Instant, taken: impl FnOnce() -> BTreeSet<Inner>) -> Option<Changes> {
        let found = self.listeners.as_mut()?.look(now, |_, at| is_on_loopback(at.ip()))?;
        match found {
            Ok(found) => Some(self.follow(now, &found, &taken())),
            Err(error) => {
                tracing::debug!("the host does not say who listens: {error}");
                None
            }
        }
    }

    /// These are listened on at the host's loopback.
    fn follow(&mut self, now: Instant, found: &BTreeSet<Inner>, taken: &BTreeSet<Inner>) -> Changes {
        let goals = self.goals(found, taken);
        let mut changes = Changes::default();
        for (inner, (reach, state)) in &mut self.wanted {
            // What the agent is at work on is looked at again when it has come.
            if *state == State::Open && goals.get(inner) != Some(reach) {
                *state = State::Closing;
                changes.close.push(*reach);
            }
        }
        self.failed.retain(|inner, until| *until > now && goals.contains_key(inner));
        if self.order.is_none() {
            let missing = goals.into_iter().filter(|(inner, _)| !self.wanted.contains_key(inner));
            let missing: Vec<(Inner, Reach)> = missing.filter(|(inner, _)| !self.failed.contains_key(inner)).collect();
            let room = self.most.saturating_sub(self.wanted.len());
            if missing.len() > room && !std::mem::replace(&mut self.told_of_limit, true) {
                tracing::warn!("--reach auto opens {} ports at most: the host listens on more", self.most);
            }
            for (inner, reach) in missing.into_iter().take(room) {
                self.wanted.insert(inner, (reach, State::Asked));
                changes.open.push(reach);
            }
        }
        changes
    }

    /// What is to be reached, by the number inside.
    fn goals(&self, found: &BTreeSet<Inner>, taken: &BTreeSet<Inner>) -> BTreeMap<Inner, Reach> {
        let mut goals = BTreeMap::new();
        if let Some(rules) = &self.rules {
            let follows = |inner: &Inner| rules.follows(inner.0, inner.1) && !taken.contains(inner);
            let mut ports: BTreeSet<Inner> = found.iter().copied().filter(follows).collect();
            if rules.udp_as_tcp {
                let beside = ports.iter().filter(|(protocol, _)| *protocol == Protocol::Tcp);
                let beside: Vec<Inner> = beside.map(|(_, port)| (Protocol::Udp, *port)).filter(follows).collect();
                ports.extend(beside);
            }
            let same = |(protocol, port)| Reach { host_port: port, sandbox_port: port, protocol };
            goals.extend(ports.into_iter().map(|inner| (inner, same(inner))));
        }
        let there = self.following.iter().filter(|reach| found.contains(&(reach.protocol, reach.host_port)));
        goals.extend(there.map(|reach| ((reach.protocol, reach.sandbox_port), *reach)));
        goals.retain(|inner, reach| !taken.contains(inner) && !taken.contains(&(reach.protocol, reach.host_port)));
        goals
    }

    /// The agent has been given the order to open what was asked for.
    pub(super) fn handle_ordered(&mut self, order: u64) {
        self.order = Some(order);
    }

    /// The agent has opened these; false for what nobody asked for.
    pub(super) fn handle_opened(&mut self, reached: &Reached) -> bool {
        match self.wanted.get_mut(&(reached.protocol, reached.inside.port())) {
            Some((reach, state)) if *state != State::Closing && reach.host_port == reached.host_port => {
                *state = State::Open;
                true
            }
            _ => false,
        }
    }

    /// Listeners that the agent has opened are lost for want of descriptors: there are to be no more than are open now.
    /// True for the first time.
    pub(super) fn handle_lost(&mut self) -> bool {
        self.most = self.wanted.values().filter(|(_, state)| *state == State::Open).count();
        !std::mem::replace(&mut self.told_of_limit, true)
    }

    /// The agent is done with an order: what has not come cannot be had now. False when it is not one of ours.
    pub(super) fn handle_done(&mut self, now: Instant, order: u64) -> bool {
        if self.order.take_if(|ours| *ours == order).is_none() {
            return false;
        }
        for inner in self.not_opened() {
            self.failed.insert(inner, now + RETRY);
        }
        true
    }

    /// The agent has gone: what it was at work on is asked of another.
    pub(super) fn forget_agent(&mut self) {
        self.order = None;
        self.not_opened();
    }

    /// No longer wanted: what the agent has not opened.
    fn not_opened(&mut self) -> Vec<Inner> {
        let asked = self.wanted.iter().filter(|(_, (_, state))| *state == State::Asked);
        let asked: Vec<Inner> = asked.map(|(inner, _)| *inner).collect();
        for inner in &asked {
            self.wanted.remove(inner);
        }
        asked
    }

    /// No gateway has these any more.
    pub(super) fn handle_closed(&mut self, closed: &[Reached]) {
        for reached in closed {
            let inner = (reached.protocol, reached.inside.port());
            if self.wanted.get(&inner).is_some_and(|(_, state)| *state == State::Closing) {
                self.wanted.remove(&inner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ports::MOST_FOLLOWED;
    use super::*;

    const TCP: Protocol = Protocol::Tcp;
    const UDP: Protocol = Protocol::Udp;

    fn reacher(ports: Ports) -> Reacher {
        Reacher { listeners: None, ..Reacher::new(&ports) }
    }

    fn auto() -> Reacher {
        reacher(Ports { reach_auto: Some(AutoRules::default()), ..Ports::default() })
    }

    fn same(protocol: Protocol, port: u16) -> Reach {
        Reach { host_port: port, sandbox_port: port, protocol }
    }

    fn opened(reach: Reach) -> Reached {
        let Reach { host_port, protocol, sandbox_port } = reach;
        Reached { host_port, protocol, inside: ([127, 0, 0, 1], sandbox_port).into() }
    }

    fn follow(reacher: &mut Reacher, found: &[Inner], taken: &[Inner]) -> Changes {
        let (found, taken) = (found.iter().copied().collect(), taken.iter().copied().collect());
        reacher.follow(Instant::now(), &found, &taken)
    }

    #[test]
    fn what_comes_is_opened_and_what_goes_is_closed() {
        let mut reacher = auto();
        let changes = follow(&mut reacher, &[(TCP, 80), (UDP, 53)], &[]);
        assert_eq!(changes, Changes { open: vec![same(TCP, 80), same(UDP, 53)], close: vec![] });
        reacher.handle_ordered(1);
        // The agent is at work, whatever has changed.
        assert_eq!(follow(&mut reacher, &[(TCP, 81)], &[]), Changes::default());
        assert!(reacher.handle_opened(&opened(same(TCP, 80))) && !reacher.handle_opened(&opened(same(TCP, 81))));
        assert!(!reacher.handle_done(Instant::now(), 2) && reacher.handle_done(Instant::now(), 1));
        let changes = follow(&mut reacher, &[(TCP, 81)], &[]);
        assert_eq!(changes, Changes { open: vec![same(TCP, 81)], close: vec![same(TCP, 80)] });
        // Ours until the gateway has closed it.
        assert!(reacher.numbers().any(|inner| inner == (TCP, 80)));
        assert_eq!(follow(&mut reacher, &[(TCP, 80)], &[]).open, []);
        reacher.handle_closed(&[opened(same(TCP, 80)), opened(same(TCP, 81))]);
        assert_eq!(reacher.numbers().collect::<Vec<_>>(), [(TCP, 81)]);
        assert_eq!(follow(&mut reacher, &[(TCP, 80)], &[]).open, [same(TCP, 80)]);
    }

    #[test]
    fn what_is_published_or_used_inside_is_not_reached() {
        let mut reacher = auto();
        assert_eq!(follow(&mut reacher, &[(TCP, 80), (TCP, 81)], &[(TCP, 80), (UDP, 81)]).open, [same(TCP, 81)]);
        reacher.handle_ordered(1);
        reacher.handle_opened(&opened(same(TCP, 81)));
        reacher.handle_done(Instant::now(), 1);
        assert_eq!(follow(&mut reacher, &[(TCP, 81)], &[(TCP, 81)]).close, [same(TCP, 81)]);
    }

    #[test]
    fn a_number_that_is_taken_inside_is_tried_again_later() {
        let mut reacher = auto();
        let (now, found) = (Instant::now(), BTreeSet::from([(TCP, 80)]));
        let open = |reacher: &mut Reacher, at| reacher.follow(at, &found, &BTreeSet::new()).open.len();
        assert_eq!(open(&mut reacher, now), 1);
        reacher.handle_ordered(1);
        reacher.handle_done(now, 1);
        assert_eq!((open(&mut reacher, now), open(&mut reacher, now + RETRY)), (0, 1));
        // An agent that has gone has opened nothing.
        reacher.handle_ordered(2);
        reacher.forget_agent();
        assert_eq!(open(&mut reacher, now + RETRY), 1);
    }

    #[test]
    fn rules_say_what_is_followed() {
        let rules = AutoRules {
            except: vec![(TCP, crate::plan::PortRange { first: 22, last: 25 })],
            udp_as_tcp: true,
            ..AutoRules::default()
        };
        let following = Reach { host_port: 5432, sandbox_port: 15432, protocol: TCP };
        let mut with = reacher(Ports {
            reach_auto: Some(AutoRules { udp: false, ..rules.clone() }),
            reach_following: vec![following],
            ..Ports::default()
        });
        let found = [(TCP, 22), (TCP, 80), (UDP, 53), (TCP, 5432)];
        assert_eq!(follow(&mut with, &found, &[(TCP, 5431)]).open, [same(TCP, 80), same(TCP, 5432), following]);
        let mut with = reacher(Ports { reach_auto: Some(rules), ..Ports::default() });
        assert_eq!(follow(&mut with, &found[..3], &[]).open, [same(TCP, 80), same(UDP, 53), same(UDP, 80)]);
        // With what is not reached nothing comes.
        let mut with = reacher(Ports { reach_auto: with.rules.clone(), ..Ports::default() });
        assert_eq!(follow(&mut with, &found[..3], &[(TCP, 80)]).open, [same(UDP, 53)]);
        assert_eq!(reacher(Ports::default()).next(), None);
    }

    #[test]
    fn a_host_that_listens_everywhere_is_reached_in_part() {
        let found: Vec<Inner> = (1..=2000).map(|port| (TCP, port)).collect();
        let mut reacher = auto();
        assert!((1..=MOST_FOLLOWED).contains(&reacher.most));
        reacher.most = 240;
        assert_eq!(follow(&mut reacher, &found, &[]).open.len(), 240);
    }

    #[test]
    fn after_listeners_were_lost_there_are_no_more_than_there_are() {
        let found: Vec<Inner> = (1..=10).map(|port| (TCP, port)).collect();
        let mut reacher = auto();
        assert_eq!(follow(&mut reacher, &found, &[]).open.len(), 10);
        reacher.handle_ordered(1);
        for port in 1..=3 {
            reacher.handle_opened(&opened(same(TCP, port)));
        }
        assert!(reacher.handle_lost() && !reacher.handle_lost(), "it is told once");
        let now = Instant::now();
        reacher.handle_done(now, 1);
        let found: BTreeSet<Inner> = found.into_iter().collect();
        assert_eq!(reacher.follow(now + RETRY, &found, &BTreeSet::new()), Changes::default());
        // One that goes makes room for another.
        reacher.follow(now + RETRY, &found, &BTreeSet::from([(TCP, 1)]));
        reacher.handle_closed(&[opened(same(TCP, 1))]);
        assert_eq!(reacher.follow(now + RETRY, &found, &BTreeSet::from([(TCP, 1)])).open, [same(TCP, 4)]);
    }

    #[test]
    fn the_host_is_looked_at_where_a_client_of_its_loopback_comes_to() {
        let listen = |at: &str| std::net::TcpListener::bind(at).unwrap();
        let (near, all) = (listen("127.0.0.1:0"), listen("[::]:0"));
        let elsewhere = listen("127.77.3.1:0");
        let port = |listener: &std::net::TcpListener| (TCP, listener.local_addr().unwrap().port());
        let mut listeners = Listeners::open(LOOK).unwrap();
        let later = Instant::now() + LOOK;
        let found = listeners.look(later, |_, at| is_on_loopback(at.ip())).unwrap().unwrap();
        assert!(found.contains(&port(&near)) && found.contains(&port(&all)) && !found.contains(&port(&elsewhere)));
        assert!(listeners.look(later, |_, _| true).is_none() && listeners.next() >= later + LOOK);
    }
}
