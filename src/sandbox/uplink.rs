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
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::SandboxError;
use crate::control::client::{self, GatewayProcess, SpawnError};
use crate::control::messages::{FromGateway, ToGateway};
use crate::control::state::{Registration, SandboxState};
use crate::host::watch::HostWatch;
use crate::plan::{Endpoint, LinkKind, Logging, Network};

/// How long the processes of a sandbox may take to end after their sockets are closed, before they are killed.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// A gateway that dies is replaced this often within [`WINDOW`].
const REPLACEMENTS: usize = 3;
const WINDOW: Duration = Duration::from_secs(10);

/// What a gateway is to do; the same for each that is started.
pub(super) struct Task<'a> {
    /// The sandbox's place on the network.
    pub(super) endpoint: Endpoint,
    /// The network as it was asked for.
    pub(super) network: &'a Network,
    /// `--dns-search`, where it was given.
    pub(super) search: Option<&'a [String]>,
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
    /// The network works.
    Serving,
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
    /// Some gateway has carried frames.
    has_worked: bool,
}

impl<'a> Uplink<'a> {
    /// No gateway and no link yet.
    pub(super) fn new(task: Task<'a>, watch: HostWatch) -> Uplink<'a> {
        Uplink { task, watch, gateway: None, replacements: Replacements::default(), link: None, has_worked: false }
    }

    /// Start the first gateway.
    pub(super) fn start_gateway(&mut self) -> Result<(), SpawnError> {
        self.gateway = Some(GatewayProcess::spawn(self.task.logging)?);
        Ok(())
    }

    /// The link is there: the gateway gets it.
    pub(super) fn give_link(&mut self, kind: LinkKind, link: OwnedFd, record: &Record) -> Result<(), SandboxError> {
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
    pub(super) fn hear(&mut self, record: &Record) -> Result<Heard, SandboxError> {
        let Some(gateway) = &self.gateway else { return Ok(Heard::Nothing) };
        match gateway.connection().recv()? {
            Some(FromGateway::Attached) => {
                self.has_worked = true;
                return Ok(Heard::Serving);
            }
            Some(FromGateway::Refused { reason }) => return Err(SandboxError::Inside(reason)),
            Some(FromGateway::Done { .. } | FromGateway::WantPublish { .. } | FromGateway::WantUnpublish { .. }) => {}
            Some(FromGateway::Notice { text }) => tracing::warn!("{text}"),
            None => return self.replace(record),
        }
        Ok(Heard::Nothing)
    }

    fn hand_over(&mut self, record: &Record) -> Result<(), SandboxError> {
        let (Some(gateway), Some((kind, link))) = (&self.gateway, &self.link) else { return Ok(()) };
        let api = record.registration.bind_api()?;
        let host = self.watch.view().clone();
        let network = self.task.network.announcing(self.task.search, &host);
        let endpoint = self.task.endpoint.clone();
        let message = ToGateway::Attach { network, endpoint, link: *kind, host, api: true };
        gateway.connection().send(&message, &[link.as_fd(), api.as_fd()])?;
        Ok(())
    }

    /// The gateway has closed its connection: say how it ended, and start another.
    fn replace(&mut self, record: &Record) -> Result<Heard, SandboxError> {
        let Some(gateway) = self.gateway.take() else { return Ok(Heard::Nothing) };
        let how = match gateway.stop(PATIENCE) {
            Ok(status) => client::describe(status),
            Err(error) => error.to_string(),
        };
        if !self.has_worked {
            return Err(SandboxError::Inside(format!("the gateway ended before it carried a frame ({how})")));
        }
        if !self.replacements.allow(Instant::now()) {
            return Ok(Heard::GaveUp(how));
        }
        tracing::error!("the gateway died ({how}): its connections are lost, starting another");
        self.start_gateway()?;
        self.hand_over(record)?;
        Ok(Heard::Nothing)
    }

    /// Let go of the link; the gateway, for who wants to wait for its end. Without that it ends by itself.
    pub(super) fn end(self) -> Option<GatewayProcess> {
        self.gateway
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
