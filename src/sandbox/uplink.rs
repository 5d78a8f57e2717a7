//! A supervisor's way to its gateway: the process, the link it carries, the host it is told of.
//!
//! # Theory of operation
//!
//! `run` and `attach` serve a sandbox in the same manner, and this is the manner. The gateway is started while the
//! agent still makes the interface; the link is handed over when it comes ([`Uplink::give_link`]); from then on the
//! supervisor's loop waits for [`Uplink::connection`] and [`Uplink::host_fds`], and calls [`Uplink::hear`] and
//! [`Uplink::look_at_host`].
//!
//! The supervisor keeps a duplicate of the link, so that a gateway that dies can be replaced: another is started and
//! handed the same. Its connections are lost, the sandbox goes on. One that dies before any has carried a frame is an
//! error: it would not be different the next time. So is one that dies again and again: after [`REPLACEMENTS`] within
//! [`WINDOW`] no more are started ([`Heard::GaveUp`]).
//!
//! What a gateway is given besides the link is kept as well, and given to the next one: published ports
//! ([`super::ports`]), and listeners inside for `--reach`. The connection to the agent that makes sockets inside is
//! made anew for each gateway. The order is: link, listeners inside, agent, ports; the network works when the ports
//! that the command line asks for are served.
//!
//! At the end the ports are taken back first, and it is waited for that, so that they are free when the supervisor is
//! gone: for [`RELEASE`], after which the gateway is killed.
use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;

use super::SandboxError;
use super::message::ToAgent;
use super::ports::{Inner, PortKeeper, reach_batches};
use crate::control::client::{GatewayProcess, SpawnError};
use crate::control::messages::{FromGateway, ToGateway};
use crate::control::state::{Registration, SandboxState};
use crate::control::wire;
use crate::host::watch::HostWatch;
use crate::plan::{Endpoint, LinkKind, Logging, Network, Ports, Protocol, Reached};
use crate::sys::scm;

/// How long the processes of a sandbox may take to end after their sockets are closed, before they are killed.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// A gateway that dies is replaced this often within [`WINDOW`].
const REPLACEMENTS: usize = 3;
const WINDOW: Duration = Duration::from_secs(10);

/// How long a gateway may take to close its listeners when the sandbox has ended.
const RELEASE: Duration = Duration::from_millis(200);

/// What a gateway is to do; the same for each that is started.
pub(super) struct Task<'a> {
    /// The sandbox's place on the network.
    pub(super) endpoint: Endpoint,
    /// The network as it was asked for.
    pub(super) network: &'a Network,
    /// `--dns-search`, where it was given.
    pub(super) search: Option<&'a [String]>,
    /// Ports published and reached.
    pub(super) ports: &'a Ports,
    /// What is said.
    pub(super) logging: Logging,
}

/// A sandbox in the state directory, and what is written there of it.
pub(super) struct Record {
    /// The entry.
    pub(super) registration: Registration,
    /// What `ps` and `inspect` show.
    pub(super) state: SandboxState,
}

impl Record {
    /// Write the state down.
    pub(super) fn publish(&mut self) -> Result<(), SandboxError> {
        Ok(self.registration.publish(&self.state)?)
    }
}

/// What a gateway had to say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing that concerns the sandbox's course.
    Nothing,
    /// It died once too often and is not replaced; how.
    GaveUp(String),
}

/// The gateway of one sandbox, and what the next one would need.
pub(super) struct Uplink<'a> {
    task: Task<'a>,
    watch: HostWatch,
    /// `None` before the start, and when there is to be no other.
    gateway: Option<GatewayProcess>,
    replacements: Replacements,
    /// A duplicate of what the gateway has.
    link: Option<(LinkKind, OwnedFd)>,
    /// Listeners inside, for `--reach`.
    reached: Vec<(Reached, OwnedFd)>,
    ports: PortKeeper,
    /// The gateway carries frames.
    attached: bool,
    /// The gateway has a connection to the agent.
    joined: bool,
    /// Some gateway has carried frames.
    has_worked: bool,
    /// Some gateway has served all that was there at the start.
    has_started: bool,
}

impl<'a> Uplink<'a> {
    /// No gateway and no link yet.
    pub(super) fn new(task: Task<'a>, watch: HostWatch) -> Uplink<'a> {
        let ports = PortKeeper::new(&task.endpoint.id, &task.endpoint.name, task.ports);
        Uplink {
            task,
            watch,
            gateway: None,
            replacements: Replacements::default(),
            link: None,
            reached: Vec::new(),
            ports,
            attached: false,
            joined: false,
            has_worked: false,
            has_started: false,
        }
    }

    /// Start the first gateway.
    pub(super) fn start_gateway(&mut self) -> Result<(), SpawnError> {
        let gateway = GatewayProcess::spawn(self.task.logging)?;
        // One that does not read must not stop the supervisor. Where this fails it may.
        let _ = SockRef::from(&gateway.connection().as_fd()).set_write_timeout(Some(PATIENCE));
        self.gateway = Some(gateway);
        (self.attached, self.joined) = (false, false);
        Ok(())
    }

    /// Bind the ports that the command line asks for. Call it after the forks: nobody else is to have them.
    pub(super) fn bind_ports(&mut self) -> Result<(), SandboxError> {
        Ok(self.ports.bind(self.task.ports)?)
    }

    /// Listeners inside have come. The link comes after them.
    pub(super) fn keep_reached(&mut self, reached: Vec<Reached>, sockets: Vec<OwnedFd>) {
        self.reached.extend(reached.into_iter().zip(sockets));
    }

    /// The listeners inside, made for `--reach`.
    pub(super) fn reached(&self) -> Vec<Reached> {
        self.reached.iter().map(|(reached, _)| *reached).collect()
    }

    /// The sandbox listens on these ports now (`-p auto`).
    pub(super) fn follow(&mut self, tcp: Vec<u16>, udp: Vec<u16>) {
        if self.gateway.is_none() {
            return;
        }
        let tcp = tcp.into_iter().map(|port| (Protocol::Tcp, port));
        let listening: BTreeSet<Inner> = tcp.chain(udp.into_iter().map(|port| (Protocol::Udp, port))).collect();
        self.ports.follow(listening);
    }

    /// Is an agent needed, which makes sockets inside?
    pub(super) fn needs_agent(&self) -> bool {
        self.gateway.is_some() && !self.ports.is_empty()
    }

    /// The agent has gone, or there is another one.
    pub(super) fn forget_agent(&mut self) {
        self.joined = false;
    }

    /// The link is there: the gateway gets it.
    pub(super) fn give_link(&mut self, kind: LinkKind, link: OwnedFd, record: &mut Record) -> Result<(), SandboxError> {
        self.link = Some((kind, link));
        self.hand_over(record)
    }

    /// Has the link come?
    pub(super) fn has_link(&self) -> bool {
        self.link.is_some()
    }

    /// The gateway's connection; when readable, call [`hear`](Self::hear).
    pub(super) fn connection(&self) -> Option<BorrowedFd<'_>> {
        self.gateway.as_ref().map(|gateway| gateway.connection().as_fd())
    }

    /// When readable, call [`look_at_host`](Self::look_at_host).
    pub(super) fn host_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.watch.fds()
    }

    /// How long to wait at most before [`look_at_host`](Self::look_at_host).
    pub(super) fn refresh_interval(&self) -> Option<Duration> {
        self.watch.refresh_interval()
    }

    /// The host may have changed: tell the gateway.
    pub(super) fn look_at_host(&mut self) {
        let changed = self.watch.handle_ready();
        let changed = changed.or_else(|| self.watch.refresh_interval().and_then(|_| self.watch.refresh()));
        // Before the link is handed over there is nothing to correct: the view goes with it.
        if let (Some(host), Some(gateway), true) = (changed, &self.gateway, self.link.is_some()) {
            // A gateway that has just died is heard next, and the one that replaces it gets the new view.
            let _ = gateway.connection().send(&ToGateway::HostChanged { host }, &[]);
        }
    }

    /// The gateway has said something, or has ended.
    ///
    /// # Errors
    /// When the sandbox cannot be served.
    pub(super) fn hear(&mut self, record: &mut Record) -> Result<Heard, SandboxError> {
        let Some(gateway) = &self.gateway else { return Ok(Heard::Nothing) };
        let message = match gateway.connection().recv() {
            // One that has worked and now talks nonsense is as good as dead.
            Err(error) if self.has_worked => {
                tracing::error!("{error}");
                None
            }
            message => message?,
        };
        match message {
            Some(FromGateway::Attached) => (self.attached, self.has_worked) = (true, true),
            // It ends now, which is heard next.
            Some(FromGateway::Refused { reason }) if self.has_worked => {
                tracing::error!("the new gateway cannot serve the sandbox: {reason}");
            }
            Some(FromGateway::Refused { reason }) => return Err(SandboxError::Inside(reason)),
            Some(FromGateway::Done { request, error }) => self.ports.handle_done(request, error),
            Some(FromGateway::WantPublish { request, spec, proxy, from }) => {
                self.ports.want_publish(request, &spec, proxy, &from);
            }
            Some(FromGateway::WantUnpublish { request, spec }) => self.ports.want_unpublish(request, &spec),
            Some(FromGateway::Linked { .. }) => {}
            Some(FromGateway::Notice { text }) => tracing::warn!("{text}"),
            None => return self.replace(record),
        }
        Ok(Heard::Nothing)
    }

    /// After everything that was heard: give the gateway what it is to have next. `agent` is the socket to the agent
    /// that makes sockets inside, where there is one. True when the network has begun to work, all that was there at
    /// the start included.
    ///
    /// # Errors
    /// When a port that the command line asks for cannot be served.
    pub(super) fn go_on(&mut self, agent: Option<&OwnedFd>, record: &mut Record) -> Result<bool, SandboxError> {
        let Some(gateway) = &self.gateway else { return Ok(false) };
        if let (Some(agent), true, false) = (agent, self.link.is_some(), self.joined) {
            let (ours, theirs) = scm::pair().map_err(SandboxError::io("make a socket pair"))?;
            // Whichever of them has gone is heard next.
            let _ = wire::send(agent, &ToAgent::Inside, &[theirs.as_fd()]);
            let _ = gateway.connection().send(&ToGateway::Inside, &[ours.as_fd()]);
            self.joined = true;
        }
        if !self.attached {
            return Ok(false);
        }
        let outcome = self.ports.advance(|message, fds| gateway.connection().send(message, fds))?;
        if let Some(why) = outcome.broken {
            tracing::error!("the gateway cannot be told of ports and is killed: {why}");
            // Its end is heard next, and another takes its place.
            gateway.kill();
        }
        if outcome.changed {
            self.write_down(record);
        }
        let works = outcome.started && !self.has_started;
        self.has_started |= works;
        Ok(works)
    }

    /// What is published is to be seen in `ps` and `inspect`. That it is not must not end a sandbox.
    fn write_down(&self, record: &mut Record) {
        let ports = self.ports.published();
        if record.state.ports != ports {
            record.state.ports = ports;
            if let Err(error) = record.publish() {
                tracing::warn!("`tapline ps` does not show the published ports: {error}");
            }
        }
    }

    fn hand_over(&mut self, record: &mut Record) -> Result<(), SandboxError> {
        let (Some(gateway), Some((kind, link))) = (&self.gateway, &self.link) else { return Ok(()) };
        // The directory may have been removed since.
        let repaired = record.registration.repair();
        let api = match repaired.and_then(|_| record.registration.bind_api()) {
            Ok(api) => Some(api),
            // A sandbox that works goes on without its API.
            Err(error) if self.has_worked => {
                tracing::warn!("the sandbox's API is not served any more: {error}");
                None
            }
            Err(error) => return Err(error.into()),
        };
        let host = self.watch.view().clone();
        let network = self.task.network.announcing(self.task.search, &host);
        let endpoint = self.task.endpoint.clone();
        let message = ToGateway::Attach { network, endpoint, link: *kind, host, api: api.is_some() };
        let fds: Vec<BorrowedFd<'_>> = [link.as_fd()].into_iter().chain(api.as_ref().map(AsFd::as_fd)).collect();
        gateway.connection().send(&message, &fds)?;
        let reached = self.reached();
        let mut sockets = self.reached.iter().map(|(_, socket)| socket.as_fd());
        for batch in reach_batches(&reached) {
            let fds: Vec<BorrowedFd<'_>> = sockets.by_ref().take(batch.len()).collect();
            gateway.connection().send(&ToGateway::Reach { reached: batch.to_vec() }, &fds)?;
        }
        self.ports.begin(!self.has_started);
        Ok(())
    }

    /// The gateway has closed its connection: say how it ended, and start another.
    fn replace(&mut self, record: &mut Record) -> Result<Heard, SandboxError> {
        let Some(gateway) = self.gateway.take() else { return Ok(Heard::Nothing) };
        self.attached = false;
        let how = match gateway.stop(PATIENCE) {
            Ok(ended) => ended.to_string(),
            Err(error) => error.to_string(),
        };
        if !self.has_worked {
            return Err(SandboxError::Inside(format!("the gateway ended before it carried a frame ({how})")));
        }
        if !self.replacements.allow(Instant::now()) {
            return Ok(self.give_up(record, how));
        }
        tracing::error!("the gateway died ({how}): its connections are lost, starting another");
        // What has worked once does not end for want of another gateway.
        if let Err(error) = self.start_gateway().map_err(SandboxError::from).and_then(|()| self.hand_over(record)) {
            self.gateway = None;
            return Ok(self.give_up(record, error.to_string()));
        }
        Ok(Heard::Nothing)
    }

    fn give_up(&mut self, record: &mut Record, why: String) -> Heard {
        // Better refused than accepted by nobody.
        self.ports.release();
        self.write_down(record);
        Heard::GaveUp(why)
    }

    /// Let go of ports and link; the gateway, for who wants to wait for its end. Without that it ends by itself.
    pub(super) fn end(mut self) -> Option<GatewayProcess> {
        let messages = self.ports.release();
        let gateway = self.gateway?;
        let deadline = Instant::now() + RELEASE;
        if self.attached && !messages.iter().all(|message| take_back(&gateway, message, deadline)) {
            if let Err(error) = gateway.stop(Duration::ZERO) {
                tracing::debug!("the gateway cannot be killed: {error}");
            }
            return None;
        }
        Some(gateway)
    }
}

/// Have the gateway close ports, and wait for it. True also when it has ended.
fn take_back(gateway: &GatewayProcess, message: &ToGateway, deadline: Instant) -> bool {
    let ToGateway::Unpublish { request: ours, .. } = message else { return true };
    let connection = gateway.connection();
    if connection.send(message, &[]).is_err() {
        return gateway.has_ended();
    }
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(connection.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)) {
            Err(nix::Error::EINTR) => continue,
            Ok(1..) => {}
            _ => return false,
        }
        match connection.recv() {
            Ok(Some(FromGateway::Done { request, .. })) if request == *ours => return true,
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return gateway.has_ended(),
        }
    }
}

/// When gateways were replaced.
#[derive(Debug, Default)]
struct Replacements(VecDeque<Instant>);

impl Replacements {
    /// May another be started now? If so, it is counted.
    fn allow(&mut self, now: Instant) -> bool {
        while self.0.front().is_some_and(|at| now.duration_since(*at) >= WINDOW) {
            self.0.pop_front();
        }
        let allowed = self.0.len() < REPLACEMENTS;
        if allowed {
            self.0.push_back(now);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_replacements_in_ten_seconds_are_enough() {
        let mut replacements = Replacements::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(replacements.allow(at(0)) && replacements.allow(at(1)) && replacements.allow(at(2)));
        assert!(!replacements.allow(at(9)), "a fourth");
        assert!(replacements.allow(at(10)), "the first is long past");
        assert!(!replacements.allow(at(10)));
    }
}
