//! Clients of slirp4netns' API, served by the supervisor ([`control::hostfwd`](crate::control::hostfwd)).
//!
//! # Theory of operation
//!
//! ```text
//! accepted ── asking ── a whole request ── waiting for the port ── answering ── leaving ── closed
//!                └ what cannot be asked for, or asked for nothing in SILENCE ──┘
//! ```
//!
//! Nobody is waited for: every socket is in the supervisor's poll loop, [`MOST`] clients at a time, and the next ones
//! wait in the kernel. One that says nothing, or not all, for [`SILENCE`] is told so and closed. A port that is asked
//! for is bound at once and served when the gateway says so; when that takes longer than [`WORK`] it is given up. What
//! a client says behind its request is thrown away before its connection is closed, because the kernel would
//! throw away the answer otherwise: for [`LINGER`] at most.
//!
//! Who may connect is a matter of the socket file's place and mode, which the caller has chosen. What is there is removed
//! first; at the end the file is removed if it is still ours.
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::ports::Settled;
use crate::control::hostfwd::{self, Forward, Forwards, Refusal, Request};
use crate::plan::{PortFailure, PublishSpec};

/// Most clients at a time.
const MOST: usize = 64;

/// How many times what a client says in excess is read in its turn.
const MOST_AT_ONCE: usize = 16;

/// How long a client may take to say what it wants, and to read the answer.
const SILENCE: Duration = Duration::from_secs(10);

/// How long a port may take to be served.
const WORK: Duration = Duration::from_secs(15);

/// How long a client may take to close its side when it has been answered.
const LINGER: Duration = Duration::from_secs(1);

/// How long nobody is accepted when it has failed, for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Who publishes ports.
pub(super) trait Publisher {
    /// Bind and begin to serve; the ticket it has then.
    fn publish(&mut self, spec: &PublishSpec) -> Result<u64, PortFailure>;
    /// Take back; false when there is no such ticket.
    fn unpublish(&mut self, ticket: u64) -> bool;
}

/// Whom to listen to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ear {
    /// New clients.
    Listener,
    /// A client.
    Client(u64),
}

/// The API of one sandbox.
#[derive(Debug)]
pub(super) struct HostFwd {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket's file.
    id: (u64, u64),
    forwards: Forwards,
    clients: Vec<Client>,
    numbers: u64,
    /// Nobody is accepted until then.
    pause: Option<Instant>,
}

#[derive(Debug)]
struct Client {
    number: u64,
    socket: UnixStream,
    state: State,
    /// When it, or what it waits for, has taken too long.
    until: Instant,
}

#[derive(Debug)]
enum State {
    /// What it has said so far.
    Asking(Vec<u8>),
    /// For a port to be served, under this ticket.
    Adding(u64, Forward),
    /// For a port to be free.
    Removing(u64),
    /// What it has not been sent yet.
    Answering(Vec<u8>),
    /// It has its answer.
    Leaving,
    /// It is to be forgotten.
    Closed,
}

impl HostFwd {
    /// Listen at a path, for a sandbox with this address.
    ///
    /// # Errors
    /// When the path cannot be had, or is too long for a socket.
    pub(super) fn listen(path: &Path, own: IpAddr) -> io::Result<HostFwd> {
        let path = std::path::absolute(path)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        let meta = fs::symlink_metadata(&path)?;
        let id = (meta.dev(), meta.ino());
        Ok(HostFwd { listener, path, id, forwards: Forwards::new(own), clients: Vec::new(), numbers: 0, pause: None })
    }

    /// What to poll, and for what.
    pub(super) fn fds(&self) -> impl Iterator<Item = (Ear, BorrowedFd<'_>, PollFlags)> {
        let has_room = self.clients.iter().filter(|client| !client.is_leaving()).count() < MOST;
        let listens = has_room && self.pause.is_none();
        let listener = listens.then(|| (Ear::Listener, self.listener.as_fd(), PollFlags::POLLIN));
        let clients = self.clients.iter().filter_map(|client| {
            let flags = match &client.state {
                State::Asking(_) | State::Leaving => PollFlags::POLLIN,
                State::Answering(_) => PollFlags::POLLOUT,
                // It is told in any case, and not looked after until then.
                State::Adding(..) | State::Removing(_) | State::Closed => return None,
            };
            Some((Ear::Client(client.number), client.socket.as_fd(), flags))
        });
        listener.into_iter().chain(clients)
    }

    /// When to call [`expire`](Self::expire).
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.clients.iter().map(|client| client.until).chain(self.pause).min()
    }

    /// One of them is ready.
    pub(super) fn hear(&mut self, ear: Ear, ports: &mut impl Publisher) {
        match ear {
            Ear::Listener => self.accept(),
            Ear::Client(number) => {
                if let Some(client) = self.clients.iter_mut().find(|client| client.number == number)
                    && let Some(request) = client.hear()
                {
                    self.serve(number, request, ports);
                }
            }
        }
        self.sweep();
    }

    fn accept(&mut self) {
        match self.listener.accept() {
            Ok((socket, _)) => {
                if socket.set_nonblocking(true).is_err() {
                    return;
                }
                if self.clients.len() >= MOST
                    && let Some(at) = self.clients.iter().position(Client::is_leaving)
                {
                    self.clients.remove(at);
                }
                self.numbers += 1;
                let until = Instant::now() + SILENCE;
                self.clients.push(Client { number: self.numbers, socket, state: State::Asking(Vec::new()), until });
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted) => {}
            Err(error) => {
                tracing::debug!("a client of the API is not accepted: {error}");
                self.pause = Some(Instant::now() + PAUSE);
            }
        }
    }

    fn serve(&mut self, number: u64, request: Result<Request, Refusal>, ports: &mut impl Publisher) {
        let until = Instant::now() + WORK;
        let waits = match request {
            Ok(Request::Add(forward)) => match ports.publish(&forward.spec(self.forwards.own())) {
                Ok(ticket) => Ok(State::Adding(ticket, forward)),
                Err(failure) => Err(refused(&failure)),
            },
            Ok(Request::Remove(id)) => match self.forwards.ticket(id) {
                Ok(ticket) => {
                    self.forwards.forget(ticket);
                    if ports.unpublish(ticket) { Ok(State::Removing(ticket)) } else { Err(Forwards::removed()) }
                }
                Err(refusal) => Err(refusal.answer()),
            },
            Ok(Request::List) => Err(self.forwards.list()),
            Err(refusal) => Err(refusal.answer()),
        };
        let Some(client) = self.clients.iter_mut().find(|client| client.number == number) else { return };
        match waits {
            Ok(state) => (client.state, client.until) = (state, until),
            Err(answer) => client.answer(answer),
        }
    }

    /// What came of ports that were asked for, or given back.
    pub(super) fn settle(&mut self, settled: Vec<Settled>) {
        for Settled { ticket, publish, failure } in settled {
            let waits = |client: &&mut Client| match client.state {
                State::Adding(waits_for, _) => publish && waits_for == ticket,
                State::Removing(waits_for) => !publish && waits_for == ticket,
                _ => false,
            };
            let Some(client) = self.clients.iter_mut().find(waits) else { continue };
            let answer = match (&client.state, failure) {
                (State::Adding(_, forward), None) => self.forwards.added(forward, ticket),
                (State::Adding(..), Some(failure)) => refused(&failure),
                (_, None) => Forwards::removed(),
                (_, Some(failure)) => {
                    tracing::warn!("{failure}");
                    Refusal::RemoveFailed.answer()
                }
            };
            client.answer(answer);
        }
        self.sweep();
    }

    /// Have done with what has taken too long.
    pub(super) fn expire(&mut self, now: Instant, ports: &mut impl Publisher) {
        self.pause = self.pause.filter(|pause| *pause > now);
        for client in self.clients.iter_mut().filter(|client| client.until <= now) {
            match &client.state {
                // Whoever has sent nothing, or not all.
                State::Asking(_) => client.answer(Refusal::NoJson.answer()),
                State::Adding(ticket, _) => {
                    ports.unpublish(*ticket);
                    tracing::warn!("a port that the API asked for is not served in time");
                    client.answer(Refusal::AddFailed.answer());
                }
                State::Removing(_) => client.answer(Refusal::RemoveFailed.answer()),
                State::Answering(_) | State::Leaving | State::Closed => client.close(),
            }
        }
        self.sweep();
    }

    /// Whoever is done goes.
    fn sweep(&mut self) {
        self.clients.retain(|client| !client.is_closed());
    }
}

impl Drop for HostFwd {
    fn drop(&mut self) {
        // Another may have put its own there.
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.id) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The answer to a port that cannot be had. Why not is not in it: callers know its words.
fn refused(failure: &PortFailure) -> String {
    tracing::warn!("{failure}");
    Refusal::AddFailed.answer()
}

impl Client {
    fn is_leaving(&self) -> bool {
        matches!(self.state, State::Leaving)
    }

    /// Its request, when it is there.
    fn hear(&mut self) -> Option<Result<Request, Refusal>> {
        match &mut self.state {
            State::Asking(said) => {
                let mut is_all = false;
                while !is_all && said.len() < hostfwd::MOST {
                    let mut chunk = [0; hostfwd::MOST];
                    match self.socket.read(&mut chunk) {
                        Ok(0) => is_all = true,
                        Ok(count) => said.extend_from_slice(&chunk[..count]),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(_) => {
                            self.close();
                            return None;
                        }
                    }
                }
                hostfwd::complete(said, is_all)
            }
            State::Answering(_) => {
                self.send();
                None
            }
            State::Leaving => {
                self.discard();
                None
            }
            State::Adding(..) | State::Removing(_) | State::Closed => None,
        }
    }

    fn answer(&mut self, text: String) {
        self.state = State::Answering(text.into_bytes());
        self.until = Instant::now() + SILENCE;
        self.send();
    }

    /// As much of the answer as goes.
    fn send(&mut self) {
        let State::Answering(rest) = &mut self.state else { return };
        while !rest.is_empty() {
            match self.socket.write(rest) {
                Ok(count) => drop(rest.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // It has gone.
                Err(_) => return self.close(),
            }
        }
        let _ = self.socket.shutdown(Shutdown::Write);
        self.state = State::Leaving;
        self.until = Instant::now() + LINGER;
        self.discard();
    }

    /// What it has to say besides; its end closes it.
    fn discard(&mut self) {
        let mut chunk = [0; hostfwd::MOST];
        // One that goes on and on has other turns, until its time is over.
        for _ in 0..MOST_AT_ONCE {
            match self.socket.read(&mut chunk) {
                Ok(0) => return self.close(),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => return self.close(),
            }
        }
    }

    fn close(&mut self) {
        self.state = State::Closed;
    }

    fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }
}

#[cfg(test)]
mod tests;
