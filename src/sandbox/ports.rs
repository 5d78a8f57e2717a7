//! Published ports as a supervisor keeps them: bound here, served by whichever gateway there is.
//!
//! # Theory of operation
//!
//! The supervisor binds a port's sockets and keeps them; gateways get duplicates. What is to be done about them is a
//! queue of jobs: publish what the command line asked for, what the API asked for, what `-p auto` found; take back.
//! The first job is worked on alone, in batches, and one batch is under way at a time: the gateway's
//! [`Done`](crate::control::messages::FromGateway::Done) lets the next one go. So no more than one batch of
//! descriptors is ever in flight (an ordinary user may have RLIMIT_NOFILE of them, unix(7)), nothing blocks, and
//! requests are answered in their order.
//!
//! ```text
//! publish:   bound ── batch, Done ── batch, Done ── … ── served
//!                          └─ an error: what was served is taken back, all of the job is closed
//! take back: all of it closed here ── batch, Done ── … ── the ports are free
//! ```
//!
//! A new gateway gets everything that is bound, in one job before all others ([`PortKeeper::begin`]). What somebody
//! asked the old one for over the API and had no answer to yet is closed: nobody waits for it any more. What the new
//! one refuses is closed, batch by batch, and the rest is served: the sandbox goes on. A gateway that cannot be told of
//! something does not know which ports there are; it is of no use any more ([`Outcome::broken`]), and the jobs wait for
//! the next one.
//!
//! *`-p auto`*: what the sandbox listens on is published and taken back as it comes and goes ([`follow`]).
//!
//! Listeners inside that are no longer wanted are closed by the same jobs, one after the other with those of ports
//! ([`PortKeeper::unreach`]).
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use ipnet::IpNet;
use nix::sys::resource::{Resource, getrlimit};
use serde::Serialize;

use crate::control::messages::{MAX_MESSAGE, ToGateway};
use crate::control::wire::WireError;
use crate::plan::{Origin, PortFailure, Ports, Protocol, ProxyVersion, PublishSpec, Published};
use crate::plan::{PublishedKey, Reach, Reached};
use crate::publish::bind::{Bound, bind, bind_all};
use crate::sys::proc;
use crate::sys::scm::{MAX_FDS, ScmError};
use follow::{Follow, Rule, Wish};

mod follow;

pub(super) use follow::MOST_FOLLOWED;

/// Descriptors that a supervisor and a gateway have for other things than ports, about.
const OTHER_DESCRIPTORS: u64 = 64;

/// Room in a message for what is around its list, in bytes.
const ENVELOPE: usize = 256;

/// A port of the sandbox.
pub(super) type Inner = (Protocol, u16);

/// Everything that is published for one sandbox.
pub(super) struct PortKeeper {
    /// The sandbox's id.
    sandbox: String,
    /// What people call it.
    name: String,
    /// `--publish-from`, for specs that do not say otherwise.
    from: Vec<IpNet>,
    /// What `--reach` has opened inside.
    reach: Vec<Reach>,
    /// Numbers inside that are reached because the host listens on them.
    reached: BTreeSet<Inner>,
    follow: Follow,
    /// Bound sockets, in the order they were asked for.
    held: BTreeMap<u64, Held>,
    jobs: VecDeque<Job>,
    /// The number of the batch under way, and how many of the first job's items are in it.
    under_way: Option<(u64, usize)>,
    /// Of batches and of what is held.
    numbers: u64,
    /// By ticket: what is held for somebody in this process ([`PortKeeper::publish`]).
    tickets: BTreeMap<u64, Vec<u64>>,
    /// What came of that, until it is fetched.
    settled: Vec<Settled>,
    /// Listeners inside that no gateway has any more, until that is told.
    unreached: Vec<Reached>,
}

/// What came of [`PortKeeper::publish`] or [`PortKeeper::unpublish`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settled {
    /// The ticket.
    pub(super) ticket: u64,
    /// It was to be published, not taken back.
    pub(super) publish: bool,
    /// Why it was not done; then nothing is left of it.
    pub(super) failure: Option<PortFailure>,
}

struct Held {
    bound: Bound,
    /// The gateway has it, and that is known to whoever asked.
    served: bool,
    /// A job will take it back.
    leaving: bool,
    /// By which rule it follows the sandbox, if it does.
    rule: Option<Rule>,
}

impl Held {
    fn inner(&self) -> Inner {
        (self.bound.published.protocol, self.bound.published.sandbox_port)
    }

    /// What of the sandbox it follows, if it does.
    fn wish(&self) -> Option<Wish> {
        self.rule.map(|rule| (rule, self.inner()))
    }

    fn is_auto(&self) -> bool {
        self.rule.is_some()
    }
}

struct Job {
    asker: Asker,
    work: Work,
    /// How many items the gateway has dealt with.
    done: usize,
    failure: Option<PortFailure>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    /// The first gateway is to serve what the command line asked for.
    Start,
    /// Another gateway is to serve what the one before did.
    Again,
    /// A request over the API, by its number.
    Api(u64),
    /// Somebody in this process.
    Ticket { ticket: u64, publish: bool },
    /// What the sandbox listens on.
    Auto,
    /// What the host no longer listens on.
    Unreach,
}

enum Work {
    /// By number in `held`.
    Publish(Vec<u64>),
    /// Likewise; when its turn comes it becomes the next.
    TakeBack(Vec<u64>),
    /// Closed here, and to be closed by the gateway.
    Close(Vec<PublishedKey>),
    /// Likewise, listeners inside.
    Unreach(Vec<Reached>),
}

/// What came of working on the jobs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Everything that was there at the start is served.
    pub(super) started: bool,
    /// What [`PortKeeper::published`] says has changed.
    pub(super) changed: bool,
    /// The gateway lives and could not be told of something, and why: another has to take its place.
    pub(super) broken: Option<String>,
    /// These listeners inside no gateway has any more.
    pub(super) unreached: Vec<Reached>,
}

impl PortKeeper {
    /// No ports yet.
    pub(super) fn new(sandbox: &str, name: &str, ports: &Ports) -> PortKeeper {
        PortKeeper {
            sandbox: sandbox.to_owned(),
            name: name.to_owned(),
            from: ports.from.clone(),
            reach: ports.reach.clone(),
            reached: BTreeSet::new(),
            follow: Follow::new(ports),
            held: BTreeMap::new(),
            jobs: VecDeque::new(),
            under_way: None,
            numbers: 0,
            tickets: BTreeMap::new(),
            settled: Vec::new(),
            unreached: Vec::new(),
        }
    }

    /// Bind everything that the command line asks for; or nothing.
    pub(super) fn bind(&mut self, ports: &Ports) -> Result<(), PortFailure> {
        let specs: Vec<_> = ports.specs().collect();
        if !specs.is_empty() || !ports.reach.is_empty() {
            raise_limit();
        }
        check_limit(2 * ports.reach.len())?;
        let specs: Vec<&PublishSpec> = specs.iter().map(AsRef::as_ref).collect();
        let bound = bind_all(&specs, &self.sandbox, &self.from, Origin::Option)?;
        self.hold(bound, None);
        Ok(())
    }

    /// Is anything published, or about to be?
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// What is served, in the order it was asked for.
    pub(super) fn published(&self) -> Vec<Published> {
        self.held.values().filter(|held| held.served).map(|held| held.bound.published.clone()).collect()
    }

    /// There is a new gateway, which has nothing yet.
    pub(super) fn begin(&mut self, first: bool) {
        self.under_way = None;
        let mut waiting = Vec::new();
        for job in std::mem::take(&mut self.jobs) {
            match (job.asker, &job.work) {
                (Asker::Api(_), Work::Publish(numbers)) | (_, Work::TakeBack(numbers)) => {
                    close(&mut self.held, numbers);
                }
                (_, Work::Unreach(reached)) => self.unreached.extend(reached),
                _ => {}
            }
            let Asker::Ticket { ticket, publish } = job.asker else { continue };
            if let (Some(_), Work::Publish(numbers)) = (&job.failure, &job.work) {
                close(&mut self.held, numbers);
            }
            match job.failure {
                None if publish => waiting.push(ticket),
                failure => self.settle(ticket, publish, failure),
            }
        }
        let asker = if first { Asker::Start } else { Asker::Again };
        self.ask(asker, Work::Publish(self.held.keys().copied().collect()), None);
        // Served with everything else; whoever asked still waits.
        for ticket in waiting {
            self.ask(Asker::Ticket { ticket, publish: true }, Work::Publish(Vec::new()), None);
        }
    }

    /// Bind a spec now, and have it served. What came of it is among [`settled`](Self::settled) later, under the ticket
    /// that is given here; [`unpublish`](Self::unpublish) takes it back by that.
    ///
    /// # Errors
    /// When it cannot be bound.
    pub(super) fn publish(&mut self, spec: &PublishSpec) -> Result<u64, PortFailure> {
        let from = self.from.clone();
        let numbers = self.bind_spec(spec, &from)?;
        self.numbers += 1;
        let ticket = self.numbers;
        self.tickets.insert(ticket, numbers.clone());
        self.ask(Asker::Ticket { ticket, publish: true }, Work::Publish(numbers), None);
        Ok(ticket)
    }

    /// Take back what was published under a ticket; false when there is no such. That it is free again is among
    /// [`settled`](Self::settled) later.
    pub(super) fn unpublish(&mut self, ticket: u64) -> bool {
        let Some(numbers) = self.tickets.remove(&ticket) else { return false };
        self.take_back(Asker::Ticket { ticket, publish: false }, numbers);
        true
    }

    /// What came of [`publish`](Self::publish) and [`unpublish`](Self::unpublish) since this was last called.
    pub(super) fn settled(&mut self) -> Vec<Settled> {
        std::mem::take(&mut self.settled)
    }

    fn settle(&mut self, ticket: u64, publish: bool, mut failure: Option<PortFailure>) {
        if publish && let Some(numbers) = self.tickets.get(&ticket) {
            if failure.is_none() && !numbers.iter().all(|number| self.held.contains_key(number)) {
                failure = Some(PortFailure::new("failed", "the gateway died, and the new one does not serve the port"));
            }
            if failure.is_some() {
                self.tickets.remove(&ticket);
            }
        }
        self.settled.push(Settled { ticket, publish, failure });
    }

    /// Somebody asks for a port over the API.
    pub(super) fn want_publish(&mut self, request: u64, spec: &str, proxy: Option<ProxyVersion>, from: &[IpNet]) {
        match self.bind_wanted(spec, proxy, from) {
            Ok(numbers) => self.ask(Asker::Api(request), Work::Publish(numbers), None),
            Err(failure) => self.ask(Asker::Api(request), Work::TakeBack(Vec::new()), Some(failure)),
        }
    }

    fn bind_wanted(
        &mut self,
        spec: &str,
        proxy: Option<ProxyVersion>,
        from: &[IpNet],
    ) -> Result<Vec<u64>, PortFailure> {
        let mut spec = parse(spec)?;
        if proxy.is_some() && spec.protocol == Protocol::Udp {
            let text = format!("{}: datagrams have no PROXY header, ask for the port without one", spec.text);
            return Err(PortFailure::new("bad_spec", text));
        }
        spec.proxy = spec.proxy.or(proxy);
        let from = if from.is_empty() { self.from.clone() } else { from.to_vec() };
        self.bind_spec(&spec, &from)
    }

    fn bind_spec(&mut self, spec: &PublishSpec, from: &[IpNet]) -> Result<Vec<u64>, PortFailure> {
        let asked = Ports { reach: self.reach.clone(), ..Ports::default() };
        asked.check_loop(spec).map_err(|error| PortFailure::new("bad_spec", error.to_string()))?;
        raise_limit();
        let bound = bind(spec, &self.sandbox, from, Origin::Api)?;
        Ok(self.hold(bound, None))
    }

    /// Somebody takes a port back over the API.
    pub(super) fn want_unpublish(&mut self, request: u64, spec: &str) {
        match self.find(spec) {
            Ok(numbers) => {
                let there = numbers.iter().filter_map(|number| self.held.get(number));
                self.follow.declined.extend(there.filter(|held| held.is_auto()).map(Held::inner));
                self.take_back(Asker::Api(request), numbers);
            }
            Err(failure) => self.ask(Asker::Api(request), Work::TakeBack(Vec::new()), Some(failure)),
        }
    }

    /// What a spec means of that which is held: what was asked for in these words, or in others that mean the same,
    /// or the ports that it names one by one.
    fn find(&self, text: &str) -> Result<Vec<u64>, PortFailure> {
        let those = |wanted: &dyn Fn(&Published) -> bool| -> Vec<u64> {
            let there = self.held.iter().filter(|(_, held)| !held.leaving && wanted(&held.bound.published));
            there.map(|(number, _)| *number).collect()
        };
        let mut found = those(&|published| published.spec == text);
        if !found.is_empty() {
            return Ok(found);
        }
        let spec = parse(text)?;
        found = those(&|published| PublishSpec::parse(&published.spec).is_ok_and(|other| other.means_same(&spec)));
        if found.is_empty()
            && let Some(host) = spec.host
            && host.count() == spec.sandbox.count()
        {
            found = those(&|published| {
                let (outer, inner) = (published.host.port(), published.sandbox_port);
                published.protocol == spec.protocol
                    && (host.first..=host.last).contains(&outer)
                    && inner.checked_sub(spec.sandbox.first) == Some(outer - host.first)
                    && spec.address.is_none_or(|address| is_bound_to(published, address))
            });
            let ports: BTreeSet<u16> =
                found.iter().map(|number| self.held[number].bound.published.host.port()).collect();
            if ports.len() < host.count() {
                found.clear();
            }
        }
        if found.is_empty() {
            let text = format!("{text} is not published: `tapline port {}` lists what is", self.name);
            return Err(PortFailure::new("not_published", text));
        }
        Ok(found)
    }

    fn hold(&mut self, bound: Vec<Bound>, rule: Option<Rule>) -> Vec<u64> {
        let first = self.numbers + 1;
        self.numbers += bound.len() as u64;
        let numbers: Vec<u64> = (first..=self.numbers).collect();
        let held = bound.into_iter().map(|bound| Held { bound, served: false, leaving: false, rule });
        self.held.extend(numbers.iter().copied().zip(held));
        numbers
    }

    /// Have these listeners inside closed, which are closed here; that no gateway has them any more is told by
    /// [`Outcome::unreached`].
    pub(super) fn unreach(&mut self, reached: Vec<Reached>) {
        self.ask(Asker::Unreach, Work::Unreach(reached), None);
    }

    /// Numbers that are published, or being given up, or lead somewhere inside, or that the sandbox listens on.
    pub(super) fn taken(&self) -> BTreeSet<Inner> {
        let held = self.held.values().flat_map(|held| {
            let Published { protocol, host, .. } = &held.bound.published;
            [(*protocol, host.port()), held.inner()]
        });
        let reached = self.reach.iter().map(|reach| (reach.protocol, reach.sandbox_port));
        held.chain(self.closing()).chain(reached).chain(self.follow.listening.iter().copied()).collect()
    }

    /// Ports of the host that gateways are to close.
    fn closing(&self) -> impl Iterator<Item = Inner> {
        let closing = self.jobs.iter().filter_map(|job| match &job.work {
            Work::Close(keys) => Some(keys),
            Work::Publish(_) | Work::TakeBack(_) | Work::Unreach(_) => None,
        });
        closing.flatten().map(|key| (key.protocol, key.host.port()))
    }

    fn take_back(&mut self, asker: Asker, numbers: Vec<u64>) {
        for number in &numbers {
            if let Some(held) = self.held.get_mut(number) {
                held.leaving = true;
            }
        }
        self.ask(asker, Work::TakeBack(numbers), None);
    }

    fn ask(&mut self, asker: Asker, work: Work, failure: Option<PortFailure>) {
        self.jobs.push_back(Job { asker, work, done: 0, failure });
    }

    /// The gateway has dealt with a batch.
    pub(super) fn handle_done(&mut self, request: u64, error: Option<String>) {
        let (Some((number, count)), Some(job)) = (self.under_way, self.jobs.front_mut()) else { return };
        if number != request {
            return;
        }
        self.under_way = None;
        match (error, &job.work) {
            (Some(error), Work::Publish(_)) => self.refuse(count, error),
            (error, _) => {
                if let Some(error) = error {
                    tracing::warn!("{error}");
                }
                job.done += count;
            }
        }
    }

    /// The first job's next ports, so many, cannot be served. Whoever asked gets none of those that were asked for;
    /// what another gateway served is closed by itself, for a port that nobody serves must not accept connections.
    fn refuse(&mut self, count: usize, why: String) {
        let Some(job) = self.jobs.front_mut() else { return };
        match &job.work {
            Work::Publish(numbers) if job.asker == Asker::Again => {
                let refused = &numbers[job.done..job.done + count];
                job.done += count;
                let there = refused.iter().filter_map(|number| self.held.get(number));
                self.follow.failed.extend(there.filter_map(Held::wish));
                let ports: Vec<String> = close(&mut self.held, refused)
                    .iter()
                    .map(|PublishedKey { protocol, host, .. }| format!("{host}/{protocol}"))
                    .collect();
                tracing::error!("the new gateway does not serve {}, which is closed now: {why}", ports.join(", "));
            }
            _ => job.failure = job.failure.take().or(Some(PortFailure::new("failed", why))),
        }
    }

    /// Go on with the jobs as far as the gateway lets us: call it after all of the above, when there is a gateway that
    /// carries frames.
    ///
    /// # Errors
    /// When a port of the command line cannot be served.
    pub(super) fn advance(
        &mut self,
        mut send: impl FnMut(&ToGateway, &[BorrowedFd<'_>]) -> Result<(), WireError>,
    ) -> Result<Outcome, PortFailure> {
        let mut outcome = Outcome::default();
        while self.under_way.is_none()
            && let Some(job) = self.jobs.front_mut()
        {
            match &job.work {
                Work::Publish(numbers) if job.failure.is_some() => {
                    if job.asker == Asker::Auto {
                        let refused = numbers.iter().filter_map(|number| self.held.get(number));
                        self.follow.failed.extend(refused.filter_map(Held::wish));
                    }
                    let (served, rest) = numbers.split_at(job.done);
                    close(&mut self.held, rest);
                    (job.work, job.done) = (Work::Close(close(&mut self.held, served)), 0);
                }
                Work::TakeBack(numbers) => job.work = Work::Close(close(&mut self.held, numbers)),
                Work::Publish(_) | Work::Close(_) | Work::Unreach(_) => {}
            }
            let is_done = match &job.work {
                Work::Publish(all) | Work::TakeBack(all) => job.done == all.len(),
                Work::Close(all) => job.done == all.len(),
                Work::Unreach(all) => job.done == all.len(),
            };
            if is_done {
                self.finish(&mut outcome, &mut send)?;
                continue;
            }
            self.numbers += 1;
            let request = self.numbers;
            let sent = match &job.work {
                Work::Publish(numbers) => {
                    let rest = numbers[job.done..].iter().filter_map(|number| self.held.get(number));
                    let batch = batch(rest.map(|held| (&held.bound.published, &held.bound)), MAX_FDS);
                    let fds: Vec<BorrowedFd<'_>> = batch.iter().map(|bound| bound.socket.as_fd()).collect();
                    let ports = batch.iter().map(|bound| bound.published.clone()).collect();
                    send(&ToGateway::Publish { request, ports }, &fds).map(|()| batch.len())
                }
                Work::TakeBack(_) => Ok(0),
                Work::Close(keys) => {
                    let ports: Vec<PublishedKey> = batch(keys[job.done..].iter().map(|key| (key, *key)), usize::MAX);
                    let count = ports.len();
                    send(&ToGateway::Unpublish { request, ports }, &[]).map(|()| count)
                }
                Work::Unreach(reached) => {
                    let rest = reached[job.done..].iter().map(|reached| (reached, *reached));
                    let reached: Vec<Reached> = batch(rest, usize::MAX);
                    let count = reached.len();
                    send(&ToGateway::Unreach { request, reached }, &[]).map(|()| count)
                }
            };
            match (sent, &job.work) {
                (Ok(count), _) => self.under_way = Some((request, count)),
                // More than a message holds is said of one port, which no other gateway would get either.
                (Err(error @ (WireError::TooLarge(_) | WireError::Json(_))), Work::Publish(_)) => {
                    self.refuse(1, error.to_string());
                }
                // The start has failed, whatever becomes of the gateway.
                (Err(_), Work::Close(keys)) if job.asker == Asker::Start => job.done = keys.len(),
                (Err(error), _) => self.wait_for_another(&mut outcome, &error),
            }
        }
        outcome.unreached = std::mem::take(&mut self.unreached);
        Ok(outcome)
    }

    /// The gateway cannot be told of something.
    fn wait_for_another(&mut self, outcome: &mut Outcome, error: &WireError) {
        // No answer has this number.
        self.under_way = Some((0, 0));
        // One that has just died is heard of next.
        outcome.broken = (!is_gone(error)).then(|| error.to_string());
    }

    /// The first job is done.
    fn finish(
        &mut self,
        outcome: &mut Outcome,
        send: &mut impl FnMut(&ToGateway, &[BorrowedFd<'_>]) -> Result<(), WireError>,
    ) -> Result<(), PortFailure> {
        let Some(Job { asker, work, failure, .. }) = self.jobs.pop_front() else { return Ok(()) };
        // What was under way when the old gateway died has changed with it: closed by `begin`, or served now.
        outcome.changed |= failure.is_none() && asker != Asker::Unreach || asker == Asker::Again;
        match work {
            Work::Publish(numbers) => {
                for number in numbers {
                    if let Some(held) = self.held.get_mut(&number) {
                        held.served = true;
                    }
                }
            }
            // There is room again for what failed.
            Work::TakeBack(_) | Work::Close(_) if failure.is_none() => self.follow.failed.clear(),
            Work::TakeBack(_) | Work::Close(_) => {}
            Work::Unreach(reached) => self.unreached.extend(reached),
        }
        match (asker, failure) {
            (Asker::Start, None) => outcome.started = true,
            (Asker::Start, Some(failure)) => return Err(failure),
            (Asker::Api(request), failure) => {
                // A gateway that has died has nobody left to tell.
                if let Err(error @ WireError::Connection(_)) = send(&ToGateway::Answer { request, failure }, &[]) {
                    self.wait_for_another(outcome, &error);
                }
            }
            (Asker::Ticket { ticket, publish }, failure) => self.settle(ticket, publish, failure),
            (Asker::Auto | Asker::Again | Asker::Unreach, Some(failure)) => tracing::warn!("{failure}"),
            (Asker::Auto | Asker::Again | Asker::Unreach, None) => {}
        }
        self.catch_up();
        Ok(())
    }

    /// The sandbox has ended: every socket is closed here. What the gateway is to close, in batches.
    pub(super) fn release(&mut self) -> Vec<ToGateway> {
        for job in self.jobs.drain(..) {
            if let Work::Unreach(reached) = job.work {
                self.unreached.extend(reached);
            }
        }
        self.tickets.clear();
        self.under_way = None;
        let keys: Vec<PublishedKey> =
            std::mem::take(&mut self.held).into_values().map(|held| held.bound.published.key()).collect();
        let mut messages = Vec::new();
        let mut rest = &keys[..];
        while !rest.is_empty() {
            let ports = batch(rest.iter().map(|key| (key, *key)), usize::MAX);
            rest = &rest[ports.len()..];
            self.numbers += 1;
            messages.push(ToGateway::Unpublish { request: self.numbers, ports });
        }
        messages
    }
}

/// Listeners inside, as many at a time as a message about them takes, with their descriptors or without.
pub(super) fn reach_batches(reached: &[Reached]) -> impl Iterator<Item = &[Reached]> {
    // Each is far below a hundred bytes.
    reached.chunks(MAX_FDS)
}

/// Close these here; what a gateway is to close.
fn close(held: &mut BTreeMap<u64, Held>, numbers: &[u64]) -> Vec<PublishedKey> {
    numbers.iter().filter_map(|number| held.remove(number)).map(|held| held.bound.published.key()).collect()
}

/// As many as one message holds, and at least one. Each comes with that which is written of it.
fn batch<'a, S: Serialize + 'a, T>(items: impl Iterator<Item = (&'a S, T)>, most: usize) -> Vec<T> {
    let mut room = MAX_MESSAGE - ENVELOPE;
    let mut taken = Vec::new();
    for (written, item) in items.take(most) {
        let bytes = serde_json::to_vec(written).map_or(0, |text| text.len() + 1);
        if bytes > room && !taken.is_empty() {
            break;
        }
        room = room.saturating_sub(bytes);
        taken.push(item);
    }
    taken
}

fn parse(text: &str) -> Result<PublishSpec, PortFailure> {
    PublishSpec::parse(text).map_err(|error| PortFailure::new("bad_spec", error.to_string()))
}

/// Is it this address that people would say it is bound to?
fn is_bound_to(published: &Published, address: IpAddr) -> bool {
    let ip = published.host.ip();
    ip == address || published.dual_stack && ip.is_unspecified() && address.is_unspecified()
}

fn is_gone(error: &WireError) -> bool {
    let gone = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset, io::ErrorKind::NotConnected];
    matches!(error, WireError::Connection(ScmError::Send(error)) if gone.contains(&error.kind()))
}

/// Each port needs a descriptor. CMD has its own limit: it is a child of the agent, which was forked before.
fn raise_limit() {
    if let Err(error) = proc::raise_descriptor_limit() {
        tracing::debug!("the limit of descriptors stays as it is: {error}");
    }
}

/// For so many ports of the host that are followed inside there are descriptors, here and in the gateway: each takes one
/// for each family, and half of all there are is for what goes through them.
pub(super) fn room_for_reached() -> usize {
    raise_limit();
    let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    usize::try_from(soft.saturating_sub(OTHER_DESCRIPTORS) / 4).map_or(MOST_FOLLOWED, |room| room.min(MOST_FOLLOWED))
}

/// Refuses more listeners inside than this process, and the gateway, can have descriptors for.
fn check_limit(listeners: usize) -> Result<(), PortFailure> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((u64::MAX, u64::MAX));
    if listeners as u64 + OTHER_DESCRIPTORS <= soft || listeners == 0 {
        return Ok(());
    }
    Err(too_many_listeners(listeners, hard))
}

/// Listeners inside have been lost, because this process has no room for their descriptors.
pub(super) fn too_many_listeners(listeners: usize, limit: u64) -> PortFailure {
    let text = format!(
        "ports of the host cannot be reached: they take {listeners} descriptors, and this process may have {limit} in all (ulimit -Hn): reach fewer, or raise the limit"
    );
    PortFailure::new("exhausted", text)
}

#[cfg(test)]
mod tests;
