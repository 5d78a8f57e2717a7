//! Asking the host's resolvers.
//!
//! # Theory of operation
//!
//! Every nameserver of the host's resolv.conf is asked in its order. An *attempt* is one query to one server: over
//! UDP from a fresh connected socket, so that the kernel picks a random source port and lets nobody else's
//! datagrams in; over TCP on a fresh connection. Each attempt has a random id of its own, and an answer counts only
//! when id and question are right, so that a guesser has some 32 bits to guess, one socket's life to do it in, and
//! `MOST_WRONG` tries: after these the same server is asked over TCP, where nobody can speak in its name.
//!
//! A server that says SERVFAIL, REFUSED or NOTIMP, that refuses the packet (ECONNREFUSED, no route) or cannot be
//! asked is done with for this query, and the next one is asked at once. One that is silent for a *step* gets
//! company: the next is asked, but its own answer still counts if it comes after all. When everyone has been asked
//! and somebody was silent, those are asked again, with a longer step, until the *total* is over:
//!
//! ```text
//! 0 s       1.5 s        3 s                 6 s                          10 s
//! |- first -|- second ---|- first again -----|- second again -------------| SERVFAIL
//! ```
//!
//! A query waits for `MAX_ATTEMPTS` attempts at once, so that a sandbox that asks a lot while nobody answers does not
//! use up the descriptors; the oldest is given up first. All sandboxes' attempts together have a bounded number of sockets ([`Sockets`]), and
//! nobody more than are left for the others; an attempt for which there is none fails like one for which there is no
//! descriptor. If nobody had a better answer, the first SERVFAIL (or its
//! like) is passed on as it came; with no answer at all we say SERVFAIL ourselves. NXDOMAIN is an answer like any
//! other.
//!
//! A server that was silent, or unreachable, while it answered nobody else either is *dead* for a while: it is asked
//! after the others, so that a sandbox does not wait for it each time. Any answer brings it back, and so does a
//! change of the host's resolvers.
//!
//! The network's source address and interface (`--outbound-addr`, `--outbound-interface`) apply to every resolver
//! but loopback ones, which could not be reached from them.
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout_at};

use super::message::{NOTIMP, Query, REFUSED, SERVFAIL, is_truncated, rcode, with_id};
use crate::plan::Outbound;
use crate::sys::random;

/// Most servers that are used; more do not help anybody.
const MAX_SERVERS: usize = 8;
/// Most attempts, each with a socket, that one query waits for at once; the oldest is given up for a new one.
const MAX_ATTEMPTS: usize = 6;
/// How often a silent server is asked.
const ROUNDS: u32 = 3;
/// So many datagrams that are not the answer, and no other is waited for: who guesses ids has had as many tries (RFC 5452).
const MOST_WRONG: u32 = 16;
/// Largest DNS message.
const MAX_MESSAGE: usize = 65535;

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long a server may be silent before the next one is asked as well; twice that in the second round.
    pub step: Duration,
    /// After which the asker is told SERVFAIL.
    pub total: Duration,
    /// How long a dead server is asked last.
    pub dead: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing { step: Duration::from_millis(1500), total: Duration::from_secs(10), dead: Duration::from_secs(30) }
    }
}

/// How the asker came, and so how the servers are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// On a stream: no answer is too long.
    Tcp,
}

/// The host's resolvers.
#[derive(Debug)]
pub struct Upstreams {
    servers: Mutex<Vec<Server>>,
    outbound: Outbound,
    timing: Timing,
    sockets: Sockets,
}

/// The sockets with which all resolvers of all sandboxes are asked.
#[derive(Clone, Debug)]
pub struct Sockets {
    /// A permit for each that there may be.
    all: Arc<Semaphore>,
    /// One reference for each that this sandbox has, and one more.
    own: Arc<()>,
}

impl Sockets {
    /// So many for everybody.
    pub fn new(most: usize) -> Sockets {
        Sockets { all: Arc::new(Semaphore::new(most)), own: Arc::default() }
    }

    /// The same sockets, for another sandbox.
    pub fn for_another(&self) -> Sockets {
        Sockets { all: Arc::clone(&self.all), own: Arc::default() }
    }

    /// May there be one more? For as long as what is given is kept.
    fn take(&self) -> Option<(OwnedSemaphorePermit, Arc<()>)> {
        let own = Arc::clone(&self.own);
        let leaves_some = Arc::strong_count(&self.own) <= self.all.available_permits() + 1;
        let permit = Arc::clone(&self.all).try_acquire_owned().ok().filter(|_| leaves_some)?;
        Some((permit, own))
    }
}

#[derive(Clone, Debug)]
struct Server {
    address: SocketAddr,
    dead_until: Option<Instant>,
    last_answer: Option<Instant>,
}

impl Upstreams {
    /// These servers, asked from this source, with these sockets.
    pub fn new(servers: &[SocketAddr], outbound: Outbound, timing: Timing, sockets: Sockets) -> Upstreams {
        let upstreams = Upstreams { servers: Mutex::default(), outbound, timing, sockets };
        upstreams.replace(servers);
        upstreams
    }

    /// Use these servers from now on. Queries on their way still use the others.
    pub fn replace(&self, servers: &[SocketAddr]) {
        let mut new: Vec<Server> = Vec::new();
        for &address in servers.iter().take(MAX_SERVERS) {
            if !new.iter().any(|s| s.address == address) {
                new.push(Server { address, dead_until: None, last_answer: None });
            }
        }
        *self.lock() = new;
    }

    /// Who is asked.
    #[cfg(test)]
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.lock().iter().map(|server| server.address).collect()
    }

    /// Ask until there is an answer, which has the asker's id and otherwise the server's bytes. Takes no longer
    /// than the total.
    pub async fn ask(&self, query: &Query, transport: Transport) -> Vec<u8> {
        let begun = Instant::now();
        let deadline = begun + self.timing.total;
        let mut waiting: Vec<SocketAddr> = self.order(begun);
        let mut attempts = JoinSet::new();
        let mut silent: VecDeque<AbortHandle> = VecDeque::new();
        let mut last_resort: Option<Vec<u8>> = None;
        for round in 0..ROUNDS {
            for server in waiting.clone() {
                // It may have failed meanwhile, while others were waited for.
                if !waiting.contains(&server) {
                    continue;
                }
                let socket = self.sockets.take();
                let attempt = attempt(server, query.clone(), transport, self.outbound.clone(), socket);
                silent.push_back(attempts.spawn(attempt));
                if silent.len() > MAX_ATTEMPTS {
                    silent.pop_front().inspect(AbortHandle::abort);
                }
                let last = round + 1 == ROUNDS && waiting.last() == Some(&server);
                let step = if last { deadline } else { deadline.min(Instant::now() + self.timing.step * (1 << round)) };
                // Until this server has failed, or has been silent for a step, or anybody has answered.
                while waiting.contains(&server) {
                    match timeout_at(step, attempts.join_next()).await {
                        Ok(Some(Ok((from, Ok(answer))))) => {
                            self.mark_answered(from);
                            if !matches!(rcode(&answer), SERVFAIL | REFUSED | NOTIMP) {
                                return with_id(answer, query.id());
                            }
                            waiting.retain(|&s| s != from);
                            last_resort.get_or_insert(answer);
                        }
                        Ok(Some(Ok((from, Err(error))))) => {
                            tracing::debug!("resolver {from}: {error}");
                            waiting.retain(|&s| s != from);
                            if !is_ours(&error) {
                                self.mark_dead(from, begun);
                            }
                        }
                        // The oldest attempt, given up above.
                        Ok(Some(Err(_))) => {}
                        Ok(None) => break,
                        Err(_) => {
                            tracing::debug!("resolver {server} is silent");
                            self.mark_dead(server, begun);
                            break;
                        }
                    }
                }
            }
            if waiting.is_empty() || Instant::now() >= deadline {
                break;
            }
        }
        match last_resort {
            Some(answer) => with_id(answer, query.id()),
            None => query.error(SERVFAIL),
        }
    }

    /// Who to ask, in which order: the living as they stand in resolv.conf, then the dead.
    fn order(&self, now: Instant) -> Vec<SocketAddr> {
        let mut servers = self.lock().clone();
        // A stable sort: within each half the order stays.
        servers.sort_by_key(|s| s.dead_until.is_some_and(|until| until > now));
        servers.into_iter().map(|s| s.address).collect()
    }

    fn mark_answered(&self, server: SocketAddr) {
        if let Some(server) = self.lock().iter_mut().find(|s| s.address == server) {
            server.dead_until = None;
            server.last_answer = Some(Instant::now());
        }
    }

    /// It did not answer a query that was begun at `since`; if it answered another one after that it is only slow.
    fn mark_dead(&self, server: SocketAddr, since: Instant) {
        let dead_until = Instant::now() + self.timing.dead;
        if let Some(server) = self.lock().iter_mut().find(|s| s.address == server)
            && server.last_answer.is_none_or(|at| at < since)
        {
            server.dead_until = Some(dead_until);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Server>> {
        // A list of plain data is whole whoever panicked beside it.
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An error that says nothing about the server: we are out of descriptors or memory.
fn is_ours(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// Ask one server once. Waits for ever for one that is silent.
async fn attempt(
    server: SocketAddr,
    query: Query,
    transport: Transport,
    outbound: Outbound,
    socket: Option<(OwnedSemaphorePermit, Arc<()>)>,
) -> (SocketAddr, io::Result<Vec<u8>>) {
    let Some(_socket) = socket else {
        return (server, Err(io::Error::from_raw_os_error(libc::EMFILE)));
    };
    let answer = match transport {
        Transport::Udp => ask_in_datagrams(server, &query, &outbound).await,
        Transport::Tcp => match ask_tcp(server, &query, &outbound).await {
            // Some resolvers have no TCP at all; most answers fit a datagram anyway.
            Err(error) if !is_ours(&error) => match ask_udp(server, &query, &outbound).await {
                Ok(Said::Answer(answer)) if !is_truncated(&answer) => Ok(answer),
                _ => Err(error),
            },
            other => other,
        },
    };
    (server, answer)
}

/// What a server said to a question in a datagram.
enum Said {
    Answer(Vec<u8>),
    /// So much else that somebody may be guessing.
    Noise,
}

/// Ask over UDP, and over TCP where somebody may be answering in the server's name.
async fn ask_in_datagrams(server: SocketAddr, query: &Query, outbound: &Outbound) -> io::Result<Vec<u8>> {
    match ask_udp(server, query, outbound).await? {
        Said::Answer(answer) => Ok(answer),
        Said::Noise => {
            tracing::debug!("resolver {server}: {MOST_WRONG} wrong answers, asking over TCP");
            ask_tcp(server, query, outbound).await
        }
    }
}

async fn ask_udp(server: SocketAddr, query: &Query, outbound: &Outbound) -> io::Result<Said> {
    let socket = UdpSocket::from_std(socket(server, Type::DGRAM, Protocol::UDP, outbound)?.into())?;
    socket.connect(server).await?;
    let id = random::u16();
    socket.send(&query.with_id(id)).await?;
    let mut wrong = 0;
    while wrong < MOST_WRONG {
        // A refusal (ICMP) makes the socket "in error" and not readable.
        if socket.ready(Interest::READABLE | Interest::ERROR).await?.is_error() {
            if let Some(error) = socket.take_error()? {
                return Err(error);
            }
            // Somebody's error that has gone already: wait for the next event, do not spin on this one.
            let _ = socket.try_io(Interest::ERROR, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
        }
        let mut answer = Vec::with_capacity(MAX_MESSAGE);
        match socket.try_recv_buf(&mut answer) {
            Ok(_) if query.is_answered_by(&answer, id) => {
                answer.shrink_to_fit();
                return Ok(Said::Answer(answer));
            }
            Ok(_) => {
                tracing::debug!("resolver {server} sent something else than the answer");
                wrong += 1;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Said::Noise)
}

async fn ask_tcp(server: SocketAddr, query: &Query, outbound: &Outbound) -> io::Result<Vec<u8>> {
    let socket = socket(server, Type::STREAM, Protocol::TCP, outbound)?;
    let mut stream = TcpSocket::from_std_stream(socket.into()).connect(server).await?;
    let id = random::u16();
    write_message(&mut stream, &query.with_id(id)).await?;
    match read_message(&mut stream).await? {
        Some(answer) if query.is_answered_by(&answer, id) => Ok(answer),
        Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "not the answer to what was asked")),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// A non-blocking socket towards a server, with the source that the network wants.
fn socket(to: SocketAddr, kind: Type, protocol: Protocol, outbound: &Outbound) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), kind.nonblocking().cloexec(), Some(protocol))?;
    if to.ip().is_loopback() {
        return Ok(socket);
    }
    if let Some(interface) = outbound.interface_for(to.ip()) {
        socket.bind_device(Some(interface.as_bytes()))?;
    }
    let source = match to {
        SocketAddr::V4(_) => outbound.v4.map(IpAddr::V4),
        SocketAddr::V6(_) => outbound.v6.map(IpAddr::V6),
    };
    if let Some(source) = source {
        if kind == Type::STREAM {
            // The port is chosen at connect(), so that one port can serve several servers (ip(7)).
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        }
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    Ok(socket)
}

/// Write a message as on a stream: two bytes of length before it (RFC 1035, 4.2.2), in one piece (RFC 7766, 8).
pub(super) async fn write_message(stream: &mut (impl AsyncWriteExt + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut bytes = Vec::with_capacity(2 + message.len());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(message);
    stream.write_all(&bytes).await
}

/// Read a message as on a stream; `None` at its end.
pub(crate) async fn read_message(stream: &mut (impl AsyncReadExt + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    if stream.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut length[1..]).await?;
    // Only as much memory as has come, whatever the length says.
    let length = u64::from(u16::from_be_bytes(length));
    let mut message = Vec::new();
    stream.take(length).read_to_end(&mut message).await?;
    if message.len() as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(message))
}
