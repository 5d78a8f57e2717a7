//! `-p auto`: published is what the sandbox listens on.
//!
//! # Theory of operation
//!
//! The agent tells which ports the sandbox listens on ([`PortKeeper::follow`]). *Rules* say what is to become of them: the
//! first is `-p auto`, under the same number or, where that cannot be had, under a free one, which the person is told
//! once; the others are specs that hold only while the sandbox listens, at the numbers that they say. What a rule makes
//! of a port is a *wish*. What is missing is what is wished for, less what is held, what somebody took back, and what has
//! just failed; it is looked for whenever the listeners or the jobs have moved ([`PortKeeper::catch_up`]), and where a rule
//! insists on its number, which another may give back, each [`RETRY`].
//!
//! A port that comes back before its turn to be taken back stays; later it waits until the gateway has closed it, for
//! until then its number is taken by ourselves. What is reached ([`super::super::reach`]) is not published, or a client
//! would go round and round. A sandbox's listeners are its own choice, so there is a limit: [`MOST_FOLLOWED`].
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{Asker, Held, Inner, PortKeeper, Work, raise_limit};
use crate::plan::{Auto, AutoRules, Ports, Protocol, PublishSpec};
use crate::publish::bind::{Near, Refusal, bind_followed, bind_or_near};

/// Most ports that are published for one sandbox because it listens on them.
pub(in crate::sandbox) const MOST_FOLLOWED: usize = 1024;

/// For how many of its ports at a time `-p auto` looks who is in the way, and how many may fail: either can take
/// milliseconds, which all else waits for.
pub(super) const MOST_LOOKS: u32 = 4;
const MOST_FAILURES: u32 = 8;

/// When a number that another has is tried again, where no other will do.
const RETRY: Duration = Duration::from_secs(1);

/// Which rule: the first is `-p auto`.
pub(super) type Rule = usize;
/// What a rule makes of a port of the sandbox.
pub(super) type Wish = (Rule, Inner);

/// What is followed, and how far that is done.
pub(super) struct Follow {
    auto: Option<Auto>,
    rules: AutoRules,
    /// Further rules, from the second on.
    specs: Vec<PublishSpec>,
    /// What the sandbox listens on.
    pub(super) listening: BTreeSet<Inner>,
    /// Of that, what somebody has taken back over the API.
    pub(super) declined: BTreeSet<Inner>,
    /// What could not be published; it is tried again when something else has changed.
    pub(super) failed: BTreeSet<Wish>,
    /// Some of that is to be tried again then.
    retry: Option<Instant>,
    /// What of that the person has been told of, and of the limit.
    told: BTreeSet<Inner>,
    told_of_limit: bool,
}

impl Follow {
    /// Nothing is published yet.
    pub(super) fn new(ports: &Ports) -> Follow {
        Follow {
            auto: ports.auto,
            rules: ports.auto_rules.clone(),
            specs: ports.publish.iter().filter(|spec| spec.manner.following).cloned().collect(),
            listening: BTreeSet::new(),
            declined: BTreeSet::new(),
            failed: BTreeSet::new(),
            retry: None,
            told: BTreeSet::new(),
            told_of_limit: false,
        }
    }

    fn is_off(&self) -> bool {
        self.auto.is_none() && self.specs.is_empty()
    }

    fn spec(&self, rule: Rule) -> Option<&PublishSpec> {
        rule.checked_sub(1).and_then(|at| self.specs.get(at))
    }

    /// The port of the host that a wish is for at first.
    fn host_port(&self, (rule, (_, port)): Wish) -> u16 {
        let spec = self.spec(rule).and_then(|spec| Some((spec.sandbox.first, spec.host?.first)));
        spec.map_or(port, |(inside, host)| host.saturating_add(port.saturating_sub(inside)))
    }

    /// Will no other number do?
    fn insists(&self, rule: Rule) -> bool {
        rule > 0 || self.rules.same_number
    }
}

impl PortKeeper {
    /// The sandbox listens on these ports now.
    pub(in crate::sandbox) fn follow(&mut self, listening: BTreeSet<Inner>) {
        if self.follow.is_off() {
            return;
        }
        self.follow.declined.retain(|port| listening.contains(port));
        self.follow.listening = listening;
        self.follow.failed.clear();
        self.follow_up();
    }

    /// These numbers are reached because the host listens on them.
    pub(in crate::sandbox) fn set_reached(&mut self, reached: BTreeSet<Inner>) {
        if self.reached != reached {
            self.reached = reached;
            self.follow_up();
        }
    }

    /// When to call [`retry`](Self::retry).
    pub(in crate::sandbox) fn next_retry(&self) -> Option<Instant> {
        self.follow.retry
    }

    /// Try again what another had, if it is time.
    pub(in crate::sandbox) fn retry(&mut self, now: Instant) {
        if self.follow.retry.take_if(|at| *at <= now).is_some() {
            self.follow.failed.clear();
            self.catch_up();
        }
    }

    fn follow_up(&mut self) {
        if self.follow.is_off() {
            return;
        }
        let wishes = self.wishes();
        self.keep_returned(&wishes);
        let is_gone = |held: &Held| !held.leaving && held.wish().is_some_and(|wish| !wishes.contains(&wish));
        let gone: Vec<u64> = self.held.iter().filter(|(_, held)| is_gone(held)).map(|(number, _)| *number).collect();
        if !gone.is_empty() {
            self.take_back(Asker::Auto, gone);
        }
        self.catch_up();
    }

    /// What all rules make of what the sandbox listens on.
    fn wishes(&self) -> BTreeSet<Wish> {
        let Follow { auto, rules, specs, listening, .. } = &self.follow;
        let mut wishes = BTreeSet::new();
        if auto.is_some() {
            let follows = |(protocol, port): &Inner| rules.follows(*protocol, *port);
            wishes.extend(listening.iter().filter(|inner| follows(inner)).map(|inner| (0, *inner)));
            if rules.udp_as_tcp {
                let is_published =
                    |inner: &Inner| self.held.values().any(|held| !held.leaving && held.inner() == *inner);
                let is_tcp = |inner: &&Inner| inner.0 == Protocol::Tcp && (follows(inner) || is_published(inner));
                let beside = listening.iter().filter(is_tcp).map(|(_, port)| (Protocol::Udp, *port));
                wishes.extend(beside.filter(|inner| follows(inner)).map(|inner| (0, inner)));
            }
        }
        for (rule, spec) in (1..).zip(specs) {
            let is_meant = |(protocol, port): &&Inner| *protocol == spec.protocol && spec.sandbox.contains(*port);
            wishes.extend(listening.iter().filter(is_meant).map(|inner| (rule, *inner)));
        }
        // A client would come to what --reach opened there, and from there back.
        let leads_back = |inner: &Inner| {
            self.reached.contains(inner) || self.reach.iter().any(|r| (r.protocol, r.sandbox_port) == *inner)
        };
        wishes.retain(|(_, inner)| !leads_back(inner));
        wishes
    }

    /// What is wished for again, before it was taken back, stays as it is.
    fn keep_returned(&mut self, wishes: &BTreeSet<Wish>) {
        for job in &mut self.jobs {
            let (Asker::Auto, Work::TakeBack(numbers)) = (job.asker, &mut job.work) else { continue };
            numbers.retain(|number| match self.held.get_mut(number) {
                Some(held) if held.wish().is_some_and(|wish| wishes.contains(&wish)) => {
                    held.leaving = false;
                    false
                }
                _ => true,
            });
        }
    }

    /// Publish what is wished for and what is not there yet.
    pub(super) fn catch_up(&mut self) {
        let missing = self.missing();
        if missing.is_empty() {
            return;
        }
        let followed: BTreeSet<Wish> = self.held.values().filter_map(Held::wish).collect();
        raise_limit();
        let room = MOST_FOLLOWED.saturating_sub(followed.union(&self.follow.failed).count());
        if missing.len() > room && !std::mem::replace(&mut self.follow.told_of_limit, true) {
            tracing::warn!("-p auto publishes {MOST_FOLLOWED} ports at most: the sandbox has more");
        }
        let (mut looks, mut failures) = (MOST_LOOKS, 0);
        let mut numbers = Vec::new();
        for wish in missing.into_iter().take(room) {
            let (rule, port) = wish;
            match self.bind_wish(wish) {
                Ok(Near { bound, taken }) => {
                    if let (Some(refusal), Some(first)) = (taken, bound.first())
                        && self.follow.told.insert(port)
                    {
                        let why = refusal.explain(looks > 0);
                        looks = looks.saturating_sub(1);
                        let number = first.published.host.port();
                        tracing::warn!("{why}; -p auto has published {}/{} at port {number} instead", port.1, port.0);
                    }
                    numbers.extend(self.hold(bound, Some(rule)));
                }
                Err(refusal) => {
                    let insists = self.follow.insists(rule);
                    self.follow.failed.insert(wish);
                    if insists && refusal.is_taken() {
                        self.follow.retry.get_or_insert_with(|| Instant::now() + RETRY);
                    }
                    if self.follow.told.insert(port) {
                        if insists && !refusal.is_exhausted() {
                            tracing::debug!("not published: {}", refusal.explain(false));
                        } else {
                            tracing::warn!("-p auto: {}", refusal.explain(looks > 0));
                            looks = looks.saturating_sub(1);
                        }
                    }
                    // That a number is taken is found at once.
                    failures += u32::from(!insists || refusal.is_exhausted());
                    if failures == MOST_FAILURES {
                        break;
                    }
                }
            }
        }
        if !numbers.is_empty() {
            self.ask(Asker::Auto, Work::Publish(numbers), None);
        }
    }

    /// What is wished for, and neither there nor out of the question.
    fn missing(&self) -> Vec<Wish> {
        if self.follow.is_off() || self.follow.listening.is_empty() {
            return Vec::new();
        }
        let held: BTreeSet<Inner> = self.held.values().map(Held::inner).collect();
        let followed: BTreeSet<Wish> = self.held.values().filter_map(Held::wish).collect();
        let closing: BTreeSet<Inner> = self.closing().collect();
        let Follow { declined, failed, .. } = &self.follow;
        let is_missing = |wish: &Wish| {
            let (rule, inner) = *wish;
            // -p auto leaves alone what is published otherwise.
            let is_there = if rule == 0 { held.contains(&inner) } else { followed.contains(wish) };
            let place = (inner.0, self.follow.host_port(*wish));
            !is_there && !declined.contains(&inner) && !failed.contains(wish) && !closing.contains(&place)
        };
        self.wishes().into_iter().filter(is_missing).collect()
    }

    fn bind_wish(&self, (rule, (protocol, port)): Wish) -> Result<Near, Refusal> {
        match (self.follow.spec(rule), self.follow.auto) {
            (Some(spec), _) => {
                let bound = bind_followed(spec, port, &self.sandbox, &self.from)?;
                Ok(Near { bound, taken: None })
            }
            (None, Some(auto)) => {
                bind_or_near(auto, self.follow.rules.same_number, protocol, port, &self.sandbox, &self.from)
            }
            (None, None) => Ok(Near { bound: Vec::new(), taken: None }),
        }
    }
}
