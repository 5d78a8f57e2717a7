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
//! *`-p auto`*: the agent tells which ports the sandbox listens on; those that came are published under the same
//! number, those that went are taken back ([`PortKeeper::follow`]). One that cannot have its number is published under
//! a free one, and the person is told once. What is missing is what the sandbox listens on, less what is held, what
//! somebody took back, and what has just failed; it is looked for whenever the listeners or the jobs have moved
//! ([`PortKeeper::catch_up`]). A port that comes back before its turn to be taken back stays; later it waits until the
//! gateway has closed it, for until then its number is taken by ourselves. A sandbox's listeners are its own choice, so
//! there is a limit: [`MOST_FOLLOWED`].
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use ipnet::IpNet;
use serde::Serialize;

use crate::control::messages::{MAX_MESSAGE, ToGateway};
use crate::control::wire::WireError;
use crate::plan::{Auto, Origin, PortFailure, Ports, Protocol, ProxyVersion, PublishSpec, Published};
use crate::plan::{PublishedKey, Reach, Reached};
use crate::publish::bind::{Bound, Near, bind, bind_or_near};
use crate::sys::proc;
use crate::sys::scm::{MAX_FDS, ScmError};

/// Most ports that `-p auto` publishes for one sandbox.
pub(super) const MOST_FOLLOWED: usize = 1024;

/// For how many of its ports at a time `-p auto` looks who is in the way, and how many may fail: either can take
/// milliseconds, which all else waits for.
const MOST_LOOKS: u32 = 4;
const MOST_FAILURES: u32 = 8;

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
    auto: Option<Auto>,
    /// Bound sockets, in the order they were asked for.
    held: BTreeMap<u64, Held>,
    jobs: VecDeque<Job>,
    /// The number of the batch under way, and how many of the first job's items are in it.
    under_way: Option<(u64, usize)>,
    /// Of batches and of what is held.
    numbers: u64,
    /// What the sandbox listens on, for `-p auto`.
    listening: BTreeSet<Inner>,
    /// Of that, what somebody has taken back over the API.
    declined: BTreeSet<Inner>,
    /// Of that, what could not be published; it is tried again when something else has changed.
    failed: BTreeSet<Inner>,
    /// What of that the person has been told of, and of the limit.
    told: BTreeSet<Inner>,
    told_of_limit: bool,
}

struct Held {
    bound: Bound,
    /// The gateway has it, and that is known to whoever asked.
    served: bool,
    /// A job will take it back.
    leaving: bool,
}

impl Held {
    fn inner(&self) -> Inner {
        (self.bound.published.protocol, self.bound.published.sandbox_port)
    }

    fn is_auto(&self) -> bool {
        self.bound.published.origin == Origin::Auto
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
    Auto,
}

enum Work {
    /// By number in `held`.
    Publish(Vec<u64>),
    /// Likewise; when its turn comes it becomes the next.
    TakeBack(Vec<u64>),
    /// Closed here, and to be closed by the gateway.
    Close(Vec<PublishedKey>),
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
}

impl PortKeeper {
    /// No ports yet.
    pub(super) fn new(sandbox: &str, name: &str, ports: &Ports) -> PortKeeper {
        PortKeeper {
            sandbox: sandbox.to_owned(),
            name: name.to_owned(),
            from: ports.from.clone(),
            reach: ports.reach.clone(),
            auto: ports.auto,
            held: BTreeMap::new(),
            jobs: VecDeque::new(),
            under_way: None,
            numbers: 0,
            listening: BTreeSet::new(),
            declined: BTreeSet::new(),
            failed: BTreeSet::new(),
            told: BTreeSet::new(),
            told_of_limit: false,
        }
    }

    /// Bind everything that the command line asks for; or nothing.
    pub(super) fn bind(&mut self, ports: &Ports) -> Result<(), PortFailure> {
        let specs: Vec<_> = ports.specs().collect();
        if !specs.is_empty() {
            raise_limit();
        }
        let mut bound = Vec::new();
        for spec in &specs {
            bound.extend(bind(spec, &self.sandbox, &self.from, Origin::Option)?);
        }
        self.hold(bound);
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
        for job in std::mem::take(&mut self.jobs) {
            match (job.asker, &job.work) {
                (Asker::Api(_), Work::Publish(numbers)) | (_, Work::TakeBack(numbers)) => {
                    close(&mut self.held, numbers);
                }
                _ => {}
            }
        }
        let asker = if first { Asker::Start } else { Asker::Again };
        self.ask(asker, Work::Publish(self.held.keys().copied().collect()), None);
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
        let asked = Ports { reach: self.reach.clone(), ..Ports::default() };
        asked.check_loop(&spec).map_err(|error| PortFailure::new("bad_spec", error.to_string()))?;
        raise_limit();
        let from = if from.is_empty() { &self.from } else { from };
        let bound = bind(&spec, &self.sandbox, from, Origin::Api)?;
        Ok(self.hold(bound))
    }

    /// Somebody takes a port back over the API.
    pub(super) fn want_unpublish(&mut self, request: u64, spec: &str) {
        match self.find(spec) {
            Ok(numbers) => {
                let there = numbers.iter().filter_map(|number| self.held.get(number));
                self.declined.extend(there.filter(|held| held.is_auto()).map(Held::inner));
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

    /// The sandbox listens on these ports now.
    pub(super) fn follow(&mut self, listening: BTreeSet<Inner>) {
        if self.auto.is_none() {
            return;
        }
        // A client would come to what --reach opened there, and from there back.
        let leads_back = |inner: &Inner| self.reach.iter().any(|r| (r.protocol, r.sandbox_port) == *inner);
        let listening: BTreeSet<Inner> = listening.into_iter().filter(|inner| !leads_back(inner)).collect();
        self.declined.retain(|port| listening.contains(port));
        self.listening = listening;
        self.keep_returned();
        let is_gone = |held: &Held| held.is_auto() && !held.leaving && !self.listening.contains(&held.inner());
        let gone: Vec<u64> = self.held.iter().filter(|(_, held)| is_gone(held)).map(|(number, _)| *number).collect();
        if !gone.is_empty() {
            self.take_back(Asker::Auto, gone);
        }
        self.failed.clear();
        self.catch_up();
    }

    /// What the sandbox listens on again, before it was taken back, stays as it is.
    fn keep_returned(&mut self) {
        for job in &mut self.jobs {
            let (Asker::Auto, Work::TakeBack(numbers)) = (job.asker, &mut job.work) else { continue };
            numbers.retain(|number| match self.held.get_mut(number) {
                Some(held) if self.listening.contains(&held.inner()) => {
                    held.leaving = false;
                    false
                }
                _ => true,
            });
        }
    }

    /// Publish what the sandbox listens on and what is not there yet.
    fn catch_up(&mut self) {
        let Some(auto) = self.auto else { return };
        let mut out_of_question: BTreeSet<Inner> = self.held.values().map(Held::inner).collect();
        out_of_question.extend(self.declined.iter().chain(&self.failed));
        for job in &self.jobs {
            if let Work::Close(keys) = &job.work {
                out_of_question.extend(keys.iter().map(|key| (key.protocol, key.host.port())));
            }
        }
        let missing: Vec<Inner> = self.listening.difference(&out_of_question).copied().collect();
        if missing.is_empty() {
            return;
        }
        let followed: BTreeSet<Inner> = self.held.values().filter(|held| held.is_auto()).map(Held::inner).collect();
        raise_limit();
        let room = MOST_FOLLOWED.saturating_sub(followed.union(&self.failed).count());
        if missing.len() > room && !std::mem::replace(&mut self.told_of_limit, true) {
            tracing::warn!("-p auto publishes {MOST_FOLLOWED} ports at most: the sandbox has more");
        }
        let (mut looks, mut failures) = (MOST_LOOKS, 0);
        let mut bound = Vec::new();
        for port in missing.into_iter().take(room) {
            match bind_or_near(auto, port.0, port.1, &self.sandbox, &self.from) {
                Ok(Near { bound: sockets, taken }) => {
                    if let (Some(refusal), Some(first)) = (taken, sockets.first())
                        && self.told.insert(port)
                    {
                        let why = refusal.explain(looks > 0);
                        looks = looks.saturating_sub(1);
                        let number = first.published.host.port();
                        tracing::warn!("{why}; -p auto has published {}/{} at port {number} instead", port.1, port.0);
                    }
                    bound.extend(sockets);
                }
                Err(refusal) => {
                    self.failed.insert(port);
                    if self.told.insert(port) {
                        tracing::warn!("-p auto: {}", refusal.explain(looks > 0));
                        looks = looks.saturating_sub(1);
                    }
                    failures += 1;
                    if failures == MOST_FAILURES {
                        break;
                    }
                }
            }
        }
        if !bound.is_empty() {
            let numbers = self.hold(bound);
            self.ask(Asker::Auto, Work::Publish(numbers), None);
        }
    }

    fn hold(&mut self, bound: Vec<Bound>) -> Vec<u64> {
        let first = self.numbers + 1;
        self.numbers += bound.len() as u64;
        let numbers: Vec<u64> = (first..=self.numbers).collect();
        let held = bound.into_iter().map(|bound| Held { bound, served: false, leaving: false });
        self.held.extend(numbers.iter().copied().zip(held));
        numbers
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
                self.failed.extend(refused.iter().filter_map(|number| self.held.get(number)).map(Held::inner));
                let ports: Vec<String> = close(&mut self.held, refused)
                    .iter()
                    .map(|PublishedKey { protocol, host }| format!("{host}/{protocol}"))
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
                        self.failed.extend(numbers.iter().filter_map(|number| self.held.get(number)).map(Held::inner));
                    }
                    let (served, rest) = numbers.split_at(job.done);
                    close(&mut self.held, rest);
                    (job.work, job.done) = (Work::Close(close(&mut self.held, served)), 0);
                }
                Work::TakeBack(numbers) => job.work = Work::Close(close(&mut self.held, numbers)),
                Work::Publish(_) | Work::Close(_) => {}
            }
            let is_done = match &job.work {
                Work::Publish(all) | Work::TakeBack(all) => job.done == all.len(),
                Work::Close(all) => job.done == all.len(),
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
        outcome.changed |= failure.is_none() || asker == Asker::Again;
        match work {
            Work::Publish(numbers) => {
                for number in numbers {
                    if let Some(held) = self.held.get_mut(&number) {
                        held.served = true;
                    }
                }
            }
            // There is room again for what failed.
            Work::TakeBack(_) | Work::Close(_) if failure.is_none() => self.failed.clear(),
            Work::TakeBack(_) | Work::Close(_) => {}
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
            (Asker::Auto | Asker::Again, Some(failure)) => tracing::warn!("{failure}"),
            (Asker::Auto | Asker::Again, None) => {}
        }
        self.catch_up();
        Ok(())
    }

    /// The sandbox has ended: every socket is closed here. What the gateway is to close, in batches.
    pub(super) fn release(&mut self) -> Vec<ToGateway> {
        self.jobs.clear();
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

/// The messages that hand listeners inside to a gateway: how many each takes of them.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::holder::LOOKS;
    use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

    /// A gateway: what it was sent, and copies of the sockets it serves.
    #[derive(Default)]
    struct Gateway {
        heard: Vec<ToGateway>,
        sockets: usize,
    }

    /// What a send says when the kernel has no memory for it.
    fn no_room() -> WireError {
        WireError::Connection(ScmError::Send(io::Error::from_raw_os_error(libc::ENOBUFS)))
    }

    impl Gateway {
        fn take(&mut self, message: &ToGateway, fds: &[BorrowedFd<'_>]) {
            if let ToGateway::Publish { ports, .. } = message {
                assert_eq!(ports.len(), fds.len());
                assert!(fds.len() <= MAX_FDS && serde_json::to_vec(message).unwrap().len() <= MAX_MESSAGE);
            }
            self.sockets += fds.len();
            self.heard.push(message.clone());
        }

        /// Answers everything until there is nothing more to be done; refuses what `refuse` says.
        fn serve(
            &mut self,
            keeper: &mut PortKeeper,
            refuse: impl Fn(&ToGateway) -> bool,
        ) -> Result<Outcome, PortFailure> {
            let mut all = Outcome::default();
            loop {
                let before = self.heard.len();
                let outcome = keeper.advance(|message, fds| {
                    self.take(message, fds);
                    Ok(())
                })?;
                all.started |= outcome.started;
                all.changed |= outcome.changed;
                let mut asked = false;
                for message in &self.heard[before..] {
                    if let ToGateway::Publish { request, .. } | ToGateway::Unpublish { request, .. } = message {
                        assert!(!std::mem::replace(&mut asked, true), "one at a time");
                        keeper.handle_done(*request, refuse(message).then(|| "it is full".to_owned()));
                    }
                }
                if !asked {
                    return Ok(all);
                }
            }
        }

        fn answer(&self) -> Result<(), String> {
            match self.heard.last() {
                Some(ToGateway::Answer { failure: None, .. }) => Ok(()),
                Some(ToGateway::Answer { failure: Some(failure), .. }) => Err(failure.code.clone()),
                other => panic!("{other:?}"),
            }
        }
    }

    fn never(_: &ToGateway) -> bool {
        false
    }

    fn keeper(specs: &[&str], auto: Option<Auto>) -> (PortKeeper, Gateway) {
        let publish = specs.iter().map(|spec| PublishSpec::parse(spec).unwrap()).collect();
        let ports = Ports { publish, auto, ..Ports::default() };
        let mut keeper = PortKeeper::new("0123456789ab", "web", &ports);
        keeper.bind(&ports).unwrap();
        keeper.begin(true);
        let mut gateway = Gateway::default();
        assert!(gateway.serve(&mut keeper, never).unwrap().started);
        (keeper, gateway)
    }

    fn hosts(keeper: &PortKeeper) -> Vec<SocketAddr> {
        keeper.published().iter().map(|published| published.host).collect()
    }

    /// Nobody listens there, and somebody could.
    fn is_free(at: SocketAddr) -> bool {
        TcpStream::connect(at).is_err() && TcpListener::bind(at).is_ok()
    }

    #[test]
    fn a_thousand_ports_are_handed_over_in_batches_and_are_served_at_the_end() {
        let (keeper, gateway) = keeper(&["127.0.0.1::1001-2000"], None);
        assert_eq!((gateway.heard.len(), gateway.sockets), (1000_usize.div_ceil(MAX_FDS), 1000));
        let published = keeper.published();
        assert_eq!(published.iter().map(|p| p.sandbox_port).collect::<Vec<_>>(), (1001..=2000).collect::<Vec<_>>());
        assert!(TcpStream::connect(published[999].host).is_ok());
    }

    #[test]
    fn batches_are_small_enough_for_a_message() {
        let from: Vec<IpNet> = (0..200).map(|n| format!("2001:db8:{n:x}::/48").parse().unwrap()).collect();
        let ports = Ports { publish: vec![PublishSpec::parse("127.0.0.1::1-100").unwrap()], from, ..Ports::default() };
        let mut keeper = PortKeeper::new("0123456789ab", "web", &ports);
        keeper.bind(&ports).unwrap();
        keeper.begin(true);
        let mut gateway = Gateway::default();
        assert!(gateway.serve(&mut keeper, never).unwrap().started);
        assert_eq!(gateway.sockets, 100);
        assert!(gateway.heard.len() > 2);
    }

    #[test]
    fn a_port_is_free_as_soon_as_it_is_taken_back() {
        let (mut keeper, mut gateway) = keeper(&["127.0.0.1::80", "127.0.0.1::81"], None);
        let first = hosts(&keeper)[0];
        keeper.want_unpublish(7, "127.0.0.1::80");
        assert!(gateway.serve(&mut keeper, never).unwrap().changed);
        gateway.answer().unwrap();
        assert!(is_free(first));
        assert_eq!(hosts(&keeper).len(), 1);
        keeper.want_unpublish(8, "127.0.0.1::80");
        gateway.serve(&mut keeper, never).unwrap();
        assert_eq!(gateway.answer(), Err("not_published".to_owned()));
        let rest = hosts(&keeper)[0];
        assert_eq!(keeper.release().len(), 1);
        assert!(is_free(rest) && keeper.is_empty());
    }

    #[test]
    fn what_the_gateway_refuses_is_not_left_half_done() {
        let (mut keeper, mut gateway) = keeper(&[], None);
        keeper.want_publish(1, "127.0.0.1::1-100", None, &[]);
        let bound: Vec<SocketAddr> = keeper.held.values().map(|held| held.bound.published.host).collect();
        // The first batch is served, the second is not.
        let second =
            |message: &ToGateway| matches!(message, ToGateway::Publish { ports, .. } if ports[0].sandbox_port > 1);
        assert!(!gateway.serve(&mut keeper, second).unwrap().changed);
        assert_eq!(gateway.answer(), Err("failed".to_owned()));
        let taken_back = gateway.heard.iter().find_map(|message| match message {
            ToGateway::Unpublish { ports, .. } => Some(ports.len()),
            _ => None,
        });
        assert_eq!(taken_back, Some(MAX_FDS));
        assert!(keeper.is_empty() && is_free(bound[0]) && is_free(bound[99]));
    }

    #[test]
    fn a_port_of_the_command_line_that_is_refused_ends_the_start() {
        let ports = Ports { publish: vec![PublishSpec::parse("127.0.0.1::80").unwrap()], ..Ports::default() };
        let mut keeper = PortKeeper::new("0123456789ab", "web", &ports);
        keeper.bind(&ports).unwrap();
        keeper.begin(true);
        let failure = Gateway::default().serve(&mut keeper, |m| matches!(m, ToGateway::Publish { .. })).unwrap_err();
        assert_eq!(failure.to_string(), "it is full");
        assert!(keeper.is_empty());
    }

    #[test]
    fn bad_and_taken_ports_are_refused_over_the_api() {
        let (mut keeper, mut gateway) = keeper(&[], None);
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let spec = format!("{}:80", taken.local_addr().unwrap());
        for (spec, proxy, code) in
            [("80:", None, "bad_spec"), (&spec, None, "taken"), ("53/udp", Some(ProxyVersion::V1), "bad_spec")]
        {
            keeper.want_publish(1, spec, proxy, &[]);
            gateway.serve(&mut keeper, never).unwrap();
            assert_eq!(gateway.answer(), Err(code.to_owned()), "{spec}");
            assert!(keeper.is_empty());
        }
    }

    #[test]
    fn a_new_gateway_gets_everything_but_what_nobody_waits_for_any_more() {
        let (mut keeper, _) = keeper(&["127.0.0.1::80", "127.0.0.1::81"], None);
        let [first, second] = hosts(&keeper)[..] else { panic!() };
        keeper.want_publish(1, "127.0.0.1::82", None, &[]);
        keeper.want_unpublish(2, "127.0.0.1::81");
        let third = keeper.held.values().last().unwrap().bound.published.host;
        // The old one dies with these on their way.
        keeper.advance(|_, _| Ok(())).unwrap();
        keeper.begin(false);
        let mut gateway = Gateway::default();
        let outcome = gateway.serve(&mut keeper, never).unwrap();
        assert_eq!(outcome, Outcome { changed: true, ..Outcome::default() });
        assert_eq!((gateway.sockets, hosts(&keeper)), (1, vec![first]));
        assert!(is_free(second) && is_free(third));
    }

    #[test]
    fn what_a_new_gateway_refuses_is_closed_and_the_rest_is_served() {
        let (mut keeper, _) = keeper(&["127.0.0.1::1-100"], None);
        let before = hosts(&keeper);
        keeper.begin(false);
        let first =
            |message: &ToGateway| matches!(message, ToGateway::Publish { ports, .. } if ports[0].sandbox_port == 1);
        let outcome = Gateway::default().serve(&mut keeper, first).unwrap();
        assert_eq!(outcome.broken, None);
        assert_eq!(hosts(&keeper), before[MAX_FDS..]);
        assert!(is_free(before[0]) && is_free(before[MAX_FDS - 1]));
        assert!(TcpStream::connect(before[MAX_FDS]).is_ok());
    }

    #[test]
    fn a_gateway_that_cannot_be_told_of_ports_is_broken_and_no_port_is_lost() {
        let (mut keeper, _) = keeper(&["127.0.0.1::1-100"], None);
        let before = hosts(&keeper);
        keeper.begin(false);
        let outcome = keeper.advance(|_, _| Err(no_room())).unwrap();
        assert!(outcome.broken.unwrap().contains("cannot send"));
        // It is not asked again, and its death is nothing to be told of.
        assert_eq!(keeper.advance(|_, _| panic!("it is broken")).unwrap(), Outcome::default());
        keeper.begin(false);
        let gone = || WireError::Connection(ScmError::Send(io::ErrorKind::BrokenPipe.into()));
        assert_eq!(keeper.advance(|_, _| Err(gone())).unwrap().broken, None);
        keeper.begin(false);
        Gateway::default().serve(&mut keeper, never).unwrap();
        assert_eq!(hosts(&keeper), before);
        assert!(TcpStream::connect(before[99]).is_ok());
    }

    #[test]
    fn a_gateway_that_cannot_be_told_to_close_a_port_is_broken() {
        let (mut keeper, mut gateway) = keeper(&["127.0.0.1::80", "127.0.0.1::81"], None);
        let [first, second] = hosts(&keeper)[..] else { panic!() };
        keeper.want_unpublish(1, "127.0.0.1::80");
        assert!(keeper.advance(|_, _| Err(no_room())).unwrap().broken.is_some());
        keeper.begin(false);
        gateway.serve(&mut keeper, never).unwrap();
        assert_eq!(hosts(&keeper), [second]);
        assert!(is_free(first));
        // Nor may an answer be lost.
        keeper.want_unpublish(2, "127.0.0.1::80");
        assert!(keeper.advance(|_, _| Err(no_room())).unwrap().broken.is_some());
    }

    #[test]
    fn ports_are_taken_back_by_other_words_that_mean_them() {
        let (mut keeper, mut gateway) = keeper(&["127.0.0.1::80/tcp", "127.0.0.1::90-92", "80"], None);
        let published = keeper.published();
        let ninety = &published[1];
        let wildcard = published[4].host.port();
        assert_eq!(keeper.find(&format!("{wildcard}:81")).unwrap_err().code, "not_published");
        assert_eq!(keeper.find(&format!("{wildcard}:80/udp")).unwrap_err().code, "not_published");
        for (spec, count) in [
            ("127.0.0.1::80".to_owned(), 4),
            (format!("{}:90", ninety.host.port()), 3),
            (format!("127.0.0.1:{}:91", published[2].host.port()), 2),
            ("127.0.0.1::90-92".to_owned(), 1),
            (format!("0.0.0.0:{wildcard}:80"), 0),
        ] {
            keeper.want_unpublish(1, &spec);
            gateway.serve(&mut keeper, never).unwrap();
            assert_eq!(gateway.answer(), Ok(()), "{spec}");
            assert_eq!(keeper.published().len(), count, "{spec}");
        }
    }

    #[test]
    fn auto_follows_what_the_sandbox_listens_on() {
        let (mut keeper, mut gateway) = keeper(&["127.0.0.1::7777"], Some(Auto::Loopback));
        let free = {
            let both = TcpListener::bind("[::1]:0").unwrap();
            both.local_addr().unwrap().port()
        };
        // One that is published already, and one for each protocol.
        let all = BTreeSet::from([(Protocol::Tcp, free), (Protocol::Tcp, 7777), (Protocol::Udp, free)]);
        keeper.follow(all.clone());
        assert!(gateway.serve(&mut keeper, never).unwrap().changed);
        let auto = |keeper: &PortKeeper| -> Vec<Published> {
            keeper.published().into_iter().filter(|published| published.origin == Origin::Auto).collect()
        };
        assert_eq!(auto(&keeper).len(), 4, "{:?}", auto(&keeper));
        assert!(auto(&keeper).iter().all(|p| p.host.port() == free && p.sandbox_port == free && p.spec == "auto"));
        keeper.follow(all);
        assert!(!gateway.serve(&mut keeper, never).unwrap().changed);
        keeper.follow(BTreeSet::from([(Protocol::Tcp, free)]));
        assert!(gateway.serve(&mut keeper, never).unwrap().changed);
        assert!(auto(&keeper).iter().all(|p| p.protocol == Protocol::Tcp));
        assert!(UdpSocket::bind(("127.0.0.1", free)).is_ok());
        keeper.follow(BTreeSet::new());
        gateway.serve(&mut keeper, never).unwrap();
        assert_eq!(keeper.published().len(), 1);
    }

    #[test]
    fn what_auto_has_found_while_a_gateway_died_is_served_by_the_next_and_told() {
        let (mut keeper, _) = keeper(&[], Some(Auto::Loopback));
        keeper.follow(BTreeSet::from([(Protocol::Udp, 7777)]));
        keeper.advance(|_, _| Ok(())).unwrap();
        keeper.begin(false);
        assert!(Gateway::default().serve(&mut keeper, never).unwrap().changed);
        assert!(keeper.published().iter().all(|p| p.sandbox_port == 7777) && !keeper.published().is_empty());
    }

    /// A port that nobody has, of either protocol and family.
    fn free_port() -> u16 {
        let found = (20_000..30_000).find(|&port| {
            TcpListener::bind(("::", port)).is_ok_and(|_| UdpSocket::bind(("::", port)).is_ok())
                && TcpListener::bind(("127.0.0.1", port)).is_ok()
        });
        found.unwrap()
    }

    #[test]
    fn what_auto_could_not_publish_is_tried_again_when_something_changes() {
        let (mut keeper, mut gateway) = keeper(&[], Some(Auto::Loopback));
        let wanted = BTreeSet::from([(Protocol::Udp, 7777)]);
        keeper.follow(wanted.clone());
        gateway.serve(&mut keeper, |message| matches!(message, ToGateway::Publish { .. })).unwrap();
        assert!(keeper.is_empty());
        keeper.follow(wanted);
        gateway.serve(&mut keeper, never).unwrap();
        assert!(!keeper.is_empty() && keeper.published().iter().all(|p| p.sandbox_port == 7777));
    }

    #[test]
    fn auto_publishes_what_a_spec_no_longer_does_and_leaves_what_somebody_took_back() {
        let (mut keeper, mut gateway) = keeper(&["127.0.0.1::7777"], Some(Auto::Loopback));
        let wanted = BTreeSet::from([(Protocol::Tcp, 7777)]);
        keeper.follow(wanted.clone());
        keeper.want_unpublish(1, "127.0.0.1::7777");
        gateway.serve(&mut keeper, never).unwrap();
        let is_followed = |keeper: &PortKeeper| {
            !keeper.is_empty() && keeper.published().iter().all(|p| (p.sandbox_port, p.origin) == (7777, Origin::Auto))
        };
        assert!(is_followed(&keeper));
        keeper.want_unpublish(2, "auto");
        gateway.serve(&mut keeper, never).unwrap();
        keeper.follow(wanted.clone());
        gateway.serve(&mut keeper, never).unwrap();
        assert!(keeper.is_empty());
        // Whoever listens there later is another.
        keeper.follow(BTreeSet::new());
        keeper.follow(wanted);
        gateway.serve(&mut keeper, never).unwrap();
        assert!(is_followed(&keeper));
    }

    #[test]
    fn a_listener_that_returns_at_once_keeps_its_number() {
        let (mut keeper, mut gateway) = keeper(&[], Some(Auto::Loopback));
        let port = free_port();
        let wanted = BTreeSet::from([(Protocol::Tcp, port)]);
        keeper.follow(wanted.clone());
        gateway.serve(&mut keeper, never).unwrap();
        let before = hosts(&keeper);
        assert!(before.iter().all(|host| host.port() == port));
        // Before its turn to be taken back.
        keeper.follow(BTreeSet::new());
        keeper.follow(wanted.clone());
        gateway.serve(&mut keeper, never).unwrap();
        assert_eq!(hosts(&keeper), before);
        // While the gateway closes it.
        let theirs: Vec<_> = keeper.held.values().map(|held| held.bound.socket.try_clone().unwrap()).collect();
        keeper.follow(BTreeSet::new());
        let mut closing = 0;
        keeper
            .advance(|message, _| {
                let ToGateway::Unpublish { request, .. } = message else { panic!("{message:?}") };
                closing = *request;
                Ok(())
            })
            .unwrap();
        keeper.follow(wanted);
        drop(theirs);
        keeper.handle_done(closing, None);
        gateway.serve(&mut keeper, never).unwrap();
        assert_eq!(hosts(&keeper), before);
    }

    #[test]
    fn auto_takes_a_free_port_for_one_that_is_taken_on_either_address() {
        for taken in ["127.0.0.1:0", "[::1]:0"] {
            let taken = TcpListener::bind(taken).unwrap();
            let port = taken.local_addr().unwrap().port();
            let (mut keeper, mut gateway) = keeper(&[], Some(Auto::Loopback));
            keeper.follow(BTreeSet::from([(Protocol::Tcp, port)]));
            gateway.serve(&mut keeper, never).unwrap();
            let [v4, v6] = &keeper.published()[..] else { panic!() };
            assert_eq!((v4.sandbox_port, v4.host.port()), (port, v6.host.port()));
            assert_ne!(v4.host.port(), port);
        }
    }

    #[test]
    fn a_sandbox_that_listens_on_taken_ports_has_the_host_searched_for_a_few_only() {
        let taken: Vec<TcpListener> = (0..50).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports = taken.iter().map(|taken| (Protocol::Tcp, taken.local_addr().unwrap().port()));
        let (mut keeper, mut gateway) = keeper(&[], Some(Auto::Loopback));
        let before = LOOKS.get();
        keeper.follow(ports.clone().collect());
        gateway.serve(&mut keeper, never).unwrap();
        assert_eq!(LOOKS.get() - before, MOST_LOOKS);
        let published: BTreeSet<u16> = keeper.published().iter().map(|published| published.sandbox_port).collect();
        assert_eq!(published.len(), 50);
        // Nobody is told twice.
        keeper.follow(BTreeSet::new());
        gateway.serve(&mut keeper, never).unwrap();
        keeper.follow(ports.collect());
        assert_eq!(LOOKS.get() - before, MOST_LOOKS);
    }

    #[test]
    fn a_sandbox_that_listens_everywhere_gets_a_limited_number_of_ports() {
        let (mut keeper, mut gateway) = keeper(&[], Some(Auto::Loopback));
        keeper.follow((0..2 * MOST_FOLLOWED as u16).map(|n| (Protocol::Udp, 20_000 + n)).collect());
        gateway.serve(&mut keeper, never).unwrap();
        let followed: BTreeSet<Inner> = keeper.held.values().map(Held::inner).collect();
        assert_eq!(followed.union(&keeper.failed).count(), MOST_FOLLOWED);
        assert!(keeper.published().len() <= 2 * MOST_FOLLOWED);
    }
}
