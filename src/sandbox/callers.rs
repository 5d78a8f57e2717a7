//! Who asks a running sandbox's supervisor for something over `control.sock` ([`requests`]).
//!
//! # Theory of operation
//!
//! A caller connects, sends one request, and gets one answer. Up to [`MOST`] may wait, each in its turn; the next ones
//! wait in the kernel. Nobody is waited for: one that has said nothing after [`SILENCE`] is closed, one that has gone
//! is found out when it is answered. Only the supervisor's own user, or root, is listened to.
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::unistd::geteuid;

use crate::control::requests::{self, Reply, Request};
use crate::control::wire;
use crate::sys::scm;

/// Most callers at a time.
const MOST: usize = 8;

/// How long a caller may say nothing.
const SILENCE: Duration = Duration::from_secs(2);

/// Everybody who asks.
#[derive(Debug, Default)]
pub(super) struct Callers {
    listener: Option<UnixListener>,
    waiting: Vec<Caller>,
    numbers: u64,
}

#[derive(Debug)]
struct Caller {
    number: u64,
    socket: OwnedFd,
    /// When it must have said something.
    until: Instant,
    request: Option<Request>,
}

impl Callers {
    /// Listen in the sandbox's directory, and no longer in the one before.
    pub(super) fn listen(&mut self, entry: &Path) {
        match requests::listen(entry) {
            Ok(listener) => self.listener = Some(listener),
            Err(error) => {
                self.listener = None;
                tracing::warn!("the sandbox cannot be connected to other networks while it runs: {error}");
            }
        }
    }

    /// Who wants to be accepted; when readable, call [`accept`](Self::accept).
    pub(super) fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().filter(|_| self.waiting.len() < MOST).map(AsFd::as_fd)
    }

    /// Who has not said anything yet, by number; when readable, call [`hear`](Self::hear).
    pub(super) fn silent(&self) -> impl Iterator<Item = (u64, BorrowedFd<'_>)> {
        self.waiting
            .iter()
            .filter(|caller| caller.request.is_none())
            .map(|caller| (caller.number, caller.socket.as_fd()))
    }

    /// When somebody will have said nothing for too long.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.waiting.iter().filter(|caller| caller.request.is_none()).map(|caller| caller.until).min()
    }

    /// Somebody wants in.
    pub(super) fn accept(&mut self) {
        let Some((socket, _)) = self.listener.as_ref().and_then(|listener| listener.accept().ok()) else { return };
        let is_ours = scm::peer_credentials(&socket).is_ok_and(|peer| [0, geteuid().as_raw()].contains(&peer.uid));
        if !is_ours || socket.set_nonblocking(true).is_err() {
            return;
        }
        self.numbers += 1;
        let until = Instant::now() + SILENCE;
        self.waiting.push(Caller { number: self.numbers, socket: socket.into(), until, request: None });
    }

    /// A caller has said something, or has gone.
    pub(super) fn hear(&mut self, number: u64) {
        let Some(at) = self.waiting.iter().position(|caller| caller.number == number) else { return };
        match wire::recv::<Request>(&self.waiting[at].socket) {
            Ok(Some((request, _))) => self.waiting[at].request = Some(request),
            Err(error) if error.is_would_block() => {}
            Ok(None) => drop(self.waiting.remove(at)),
            Err(error) => self.answer(number, Some(format!("the request cannot be read: {error}"))),
        }
    }

    /// Close those who have said nothing for too long.
    pub(super) fn expire(&mut self, now: Instant) {
        self.waiting.retain(|caller| caller.request.is_some() || caller.until > now);
    }

    /// Who has waited longest, and for what.
    pub(super) fn first(&self) -> Option<(u64, Request)> {
        self.waiting.iter().find_map(|caller| Some((caller.number, caller.request.clone()?)))
    }

    /// Answer a caller; with `error` it was not done.
    pub(super) fn answer(&mut self, number: u64, error: Option<String>) {
        let Some(at) = self.waiting.iter().position(|caller| caller.number == number) else { return };
        // One that has gone need not know.
        let _ = wire::send(&self.waiting.remove(at).socket, &Reply { error }, &[]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, SockAddr, Socket, Type};
    use std::os::fd::AsRawFd;

    /// A directory that goes away with the test.
    struct Entry(std::path::PathBuf);

    impl Entry {
        fn new(name: &str) -> Entry {
            let path = std::env::temp_dir().join(format!("tapline-callers-{}-{name}", std::process::id()));
            std::fs::create_dir(&path).unwrap();
            Entry(path)
        }
    }

    impl Drop for Entry {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn disconnect(network: &str) -> Request {
        Request::Disconnect { network: network.to_owned() }
    }

    fn connect(entry: &Path) -> Socket {
        let dir = std::fs::File::open(entry).unwrap();
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        let path = format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), requests::SOCKET);
        socket.connect(&SockAddr::unix(path).unwrap()).unwrap();
        socket
    }

    fn answer(socket: &Socket) -> Option<Reply> {
        wire::recv(socket).unwrap().map(|(reply, _)| reply)
    }

    #[test]
    fn callers_have_their_turns_and_one_that_is_silent_or_gone_holds_up_nobody() {
        // Longer than a socket's address may be.
        let entry = Entry::new(&"x".repeat(120));
        let mut callers = Callers::default();
        callers.listen(&entry.0);
        let silent: Vec<Socket> = (0..3)
            .map(|_| {
                let socket = connect(&entry.0);
                callers.accept();
                socket
            })
            .collect();
        let asking = connect(&entry.0);
        wire::send(&asking, &disconnect("one"), &[]).unwrap();
        while callers.first().is_none() {
            callers.accept();
            let numbers: Vec<u64> = callers.silent().map(|(number, _)| number).collect();
            numbers.into_iter().for_each(|number| callers.hear(number));
        }
        let (number, request) = callers.first().unwrap();
        assert_eq!(request, disconnect("one"));
        callers.answer(number, Some("not today".into()));
        assert_eq!(answer(&asking).unwrap().error.as_deref(), Some("not today"));
        assert_eq!(callers.silent().count(), 3);
        drop(silent);
        let numbers: Vec<u64> = callers.silent().map(|(number, _)| number).collect();
        numbers.into_iter().for_each(|number| callers.hear(number));
        assert_eq!(callers.silent().count(), 0);
    }

    #[test]
    fn one_that_says_nothing_is_closed_and_one_that_talks_nonsense_is_told() {
        let entry = Entry::new("nonsense");
        let mut callers = Callers::default();
        callers.listen(&entry.0);
        let silent = connect(&entry.0);
        callers.accept();
        callers.expire(Instant::now() + SILENCE);
        assert!(callers.deadline().is_none());
        assert!(answer(&silent).is_none());
        let odd = connect(&entry.0);
        callers.accept();
        scm::send(&odd, b"what?", &[]).unwrap();
        let number = callers.silent().next().unwrap().0;
        callers.hear(number);
        assert!(answer(&odd).unwrap().error.unwrap().contains("cannot be read"));
    }
}
