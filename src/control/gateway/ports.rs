//! Ports in the control thread: what the supervisor hands over is checked and passed on to the worker.
//!
//! # Theory of operation
//!
//! A message is taken apart at once ([`Ports::handle`]): descriptors are trusted only as what the kernel says they are
//! (family, kind, what they are bound to, whether they listen) and made non-blocking, and the worker gets its command.
//! The worker takes commands in the order they were sent, so nobody waits between one and the next. Its answers are
//! awaited by a task of its own ([`finish`]), in the same order: it keeps the API's table, says
//! [`FromGateway::Done`], and only then passes on the supervisor's answer to what a client of the API had asked for.
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use socket2::SockRef;
use tokio::sync::{mpsc, oneshot};

use super::super::api::ApiState;
use super::super::messages::{FromGateway, ToGateway};
use super::check::{Home, check_attach, check_bound, check_reached, set_nonblocking};
use crate::datapath::commands::{Command, CommandSender, WorkerGone};
use crate::plan::{PortFailure, Published, PublishedKey};

/// The ports that come by one connection.
pub struct Ports {
    id: String,
    commands: CommandSender,
    home: Home,
    steps: mpsc::UnboundedSender<Step>,
}

/// What is to be done after all that came before it.
#[derive(Debug)]
enum Step {
    Published { request: u64, ports: Vec<Published>, done: oneshot::Receiver<Result<(), String>> },
    Unpublished { request: u64, ports: Vec<PublishedKey>, done: oneshot::Receiver<()> },
    Unreached { request: u64, done: oneshot::Receiver<()> },
    Refused { request: u64, error: String },
    Answered { request: u64, failure: Option<PortFailure> },
}

impl Ports {
    /// For the sandbox with this id, and the connection with this number, which was made at `home`. Call it within a tokio runtime.
    pub fn new(
        id: String,
        connection: u64,
        commands: CommandSender,
        home: Home,
        state: Arc<ApiState>,
        said: mpsc::Sender<FromGateway>,
    ) -> Ports {
        let (steps, queue) = mpsc::unbounded_channel();
        tokio::spawn(finish(queue, id.clone(), connection, state, said));
        Ports { id, commands, home, steps }
    }

    /// A message about ports. `Ok` with a sentence where something cannot be done and the message has no answer.
    pub fn handle(&self, message: ToGateway, fds: Vec<OwnedFd>) -> Result<Option<String>, WorkerGone> {
        match message {
            ToGateway::Inside => match inside(fds) {
                Ok(agent) => self.commands.send(Command::Inside { id: self.id.clone(), agent })?,
                Err(error) => return Ok(Some(format!("the gateway cannot use the sandbox's agent: {error}"))),
            },
            ToGateway::Publish { request, ports } => match self.published(ports, fds) {
                Ok(ports) => {
                    let (reply, done) = oneshot::channel();
                    let served = ports.iter().map(|(port, _)| port.clone()).collect();
                    self.commands.send(Command::Publish { ports, reply })?;
                    self.then(Step::Published { request, ports: served, done });
                }
                Err(error) => self.then(Step::Refused { request, error }),
            },
            ToGateway::Unpublish { request, ports } => {
                let (reply, done) = oneshot::channel();
                self.commands.send(Command::Unpublish { ports: ports.clone(), reply })?;
                self.then(Step::Unpublished { request, ports, done });
            }
            ToGateway::Reach { reached } => {
                match paired("reach", reached, fds, |reached, fd| check_reached(reached, fd, self.home)) {
                    Ok(reached) => self.commands.send(Command::Reach { id: self.id.clone(), reached })?,
                    Err(error) => return Ok(Some(format!("ports of the host cannot be reached: {error}"))),
                }
            }
            ToGateway::Unreach { request, reached } => {
                let (reply, done) = oneshot::channel();
                self.commands.send(Command::Unreach { id: self.id.clone(), reached, reply })?;
                self.then(Step::Unreached { request, done });
            }
            ToGateway::Answer { request, failure } => self.then(Step::Answered { request, failure }),
            ToGateway::Attach { .. } | ToGateway::HostChanged { .. } | ToGateway::Listen | ToGateway::Api => {}
        }
        Ok(None)
    }

    fn published(&self, ports: Vec<Published>, fds: Vec<OwnedFd>) -> Result<Vec<(Published, OwnedFd)>, String> {
        if let Some(other) = ports.iter().find(|port| port.sandbox != self.id) {
            return Err(format!("a port of the sandbox {} came over the connection of {}", other.sandbox, self.id));
        }
        paired("publish", ports, fds, |port, fd| check_published(port, fd, self.home))
    }

    fn then(&self, step: Step) {
        // Its reader lives as long as the runtime.
        let _ = self.steps.send(step);
    }
}

/// Finish one step after the other.
async fn finish(
    mut steps: mpsc::UnboundedReceiver<Step>,
    id: String,
    connection: u64,
    state: Arc<ApiState>,
    said: mpsc::Sender<FromGateway>,
) {
    while let Some(step) = steps.recv().await {
        let (request, error) = match step {
            Step::Published { request, ports, done } => match done.await {
                Ok(Ok(())) => {
                    state.handle_published(&id, connection, ports);
                    (request, None)
                }
                Ok(Err(error)) => (request, Some(error)),
                Err(_) => (request, Some(WorkerGone.to_string())),
            },
            Step::Unpublished { request, ports, done } => {
                // A worker that has gone has closed them.
                let _ = done.await;
                state.handle_unpublished(&id, connection, &ports);
                (request, None)
            }
            Step::Unreached { request, done } => {
                let _ = done.await;
                (request, None)
            }
            Step::Refused { request, error } => (request, Some(error)),
            Step::Answered { request, failure } => {
                state.handle_answer(&id, request, failure);
                continue;
            }
        };
        if said.send(FromGateway::Done { request, error }).await.is_err() {
            return;
        }
    }
}

/// Each with its socket, of which there must be as many, checked and non-blocking.
fn paired<T>(
    message: &str,
    items: Vec<T>,
    fds: Vec<OwnedFd>,
    check: impl Fn(&T, &OwnedFd) -> Result<(), String>,
) -> Result<Vec<(T, OwnedFd)>, String> {
    count(message, fds.len(), items.len())?;
    let pairs: Vec<(T, OwnedFd)> = items.into_iter().zip(fds).collect();
    for (item, fd) in &pairs {
        check(item, fd)?;
        set_nonblocking(fd).map_err(|error| format!("a socket cannot be made non-blocking: {error}"))?;
    }
    Ok(pairs)
}

fn count(message: &str, came: usize, expected: usize) -> Result<(), String> {
    if came == expected {
        return Ok(());
    }
    let hint = if came == 0 { "; the gateway may have too many open (ulimit -n)" } else { "" };
    Err(format!("{came} descriptors came with `{message}`, {expected} were expected{hint}"))
}

/// The connection to an agent.
fn inside(fds: Vec<OwnedFd>) -> Result<OwnedFd, String> {
    count("inside", fds.len(), 1)?;
    let agent = fds.into_iter().next().ok_or("no descriptor")?;
    check_attach(&agent).and_then(|()| set_nonblocking(&agent)).map_err(|error| error.to_string())?;
    Ok(agent)
}

fn check_published(port: &Published, fd: &OwnedFd, home: Home) -> Result<(), String> {
    check_bound(port.protocol, port.host, fd)
        .and_then(|()| home.is_of(fd))
        .and_then(|()| match port.host.is_ipv6() && SockRef::from(fd).only_v6()? == port.dual_stack {
            true => Err(io::Error::other("its IPV6_V6ONLY is not as it was said")),
            false => Ok(()),
        })
        .map_err(|error| {
            format!("the socket for {}/{} is not what it is said to be: {error}", port.host, port.protocol)
        })
}
