//! Sockets inside a sandbox, made ahead of time by its agent.
//!
//! # Theory of operation
//!
//! A socket belongs to the namespace it was made in, whoever holds it; the gateway enters no namespace, so the
//! agent makes sockets for it. They speak over a SOCK_SEQPACKET pair of their own, past the supervisor. A request
//! is [`REQUEST`] bytes: the kind of socket and how many. The answer is as long: the kind and how many come, and
//! the descriptors beside it; fewer than were asked for, none even, when the kernel gives no more (no such address
//! family, no descriptor left).
//!
//! The gateway keeps a stock of each kind ([`Pool`]). Taking one below [`LOW`] asks for more, doubling up to
//! [`BATCH`], so that a burst of connections does not wait for the agent each time. Whoever finds the stock empty
//! waits for [`Pool::handle_ready`] to say that something came. Nothing here blocks.
//!
//! The agent trusts the gateway with nothing else: a request can only ever make an unconnected, unbound socket. The gateway
//! trusts the agent with as little: what comes has to be a new socket of the kind that was asked for, and none of the
//! host's own network, or it is closed with the connection.
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::sys::scm::{self, ScmError};
use crate::sys::sockopt::network_namespace;

/// Bytes of a request and of an answer.
pub const REQUEST: usize = 2;
/// Most sockets asked for at once.
pub const BATCH: u8 = 32;
/// Fewer in stock, and more are asked for.
pub const LOW: usize = 8;

/// A kind of socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over IPv4.
    Udp4,
    /// UDP over IPv6.
    Udp6,
}

impl Kind {
    /// All of them, each at its own number.
    pub const ALL: [Kind; 4] = [Kind::Tcp4, Kind::Tcp6, Kind::Udp4, Kind::Udp6];

    fn from_number(number: u8) -> Option<Kind> {
        Kind::ALL.get(usize::from(number)).copied()
    }

    fn socket(self) -> io::Result<Socket> {
        let (domain, kind, protocol) = self.what();
        Socket::new(domain, kind.nonblocking().cloexec(), Some(protocol))
    }

    fn what(self) -> (Domain, Type, Protocol) {
        match self {
            Kind::Tcp4 => (Domain::IPV4, Type::STREAM, Protocol::TCP),
            Kind::Tcp6 => (Domain::IPV6, Type::STREAM, Protocol::TCP),
            Kind::Udp4 => (Domain::IPV4, Type::DGRAM, Protocol::UDP),
            Kind::Udp6 => (Domain::IPV6, Type::DGRAM, Protocol::UDP),
        }
    }

    /// Is it one of these: new, non-blocking, and not of the host's?
    fn check(self, fd: &OwnedFd, host: Option<u64>) -> io::Result<()> {
        let socket = SockRef::from(fd);
        let (domain, kind, protocol) = self.what();
        if socket.domain()? != domain || socket.r#type()? != kind || socket.protocol()? != Some(protocol) {
            return Err(io::Error::other("it is of another kind"));
        }
        if host.is_some() && network_namespace(fd.as_fd()) == host {
            return Err(io::Error::other("it belongs to the host's own network"));
        }
        if socket.local_addr()?.as_socket().is_none_or(|bound| bound.port() != 0) {
            return Err(io::Error::other("it is bound already"));
        }
        match socket.nonblocking()? {
            true => Ok(()),
            false => Err(io::Error::other("it would block")),
        }
    }
}

/// The agent's side: answer one request. `false` when the gateway has gone.
///
/// # Errors
/// Those of the connection; it is of no use afterwards.
pub fn serve_one(gateway: BorrowedFd<'_>) -> io::Result<bool> {
    let mut request = [0; REQUEST];
    let length = match scm::recv(gateway, &mut request) {
        Ok((length, _)) => length,
        Err(error) if error.is_would_block() => return Ok(true),
        Err(error) => return Err(io::Error::other(error)),
    };
    if length == 0 {
        return Ok(false);
    }
    let (Some(kind), REQUEST) = (Kind::from_number(request[0]), length) else {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    };
    let wanted = request[1].min(BATCH);
    let sockets: Vec<Socket> = (0..wanted).map_while(|_| kind.socket().ok()).collect();
    let fds: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
    let sent = scm::send(gateway, &[request[0], fds.len() as u8], &fds);
    // Too many descriptors are on their way, or no memory is left: as if there were none to give.
    sent.or_else(|_| scm::send(gateway, &[request[0], 0], &[])).map_err(io::Error::other)?;
    Ok(true)
}

/// The gateway's stock of sockets inside one sandbox.
#[derive(Debug)]
pub struct Pool {
    agent: OwnedFd,
    /// The network namespace that none of the sockets may be of, where the kernel tells.
    host: Option<u64>,
    stocks: [Stock; 4],
}

#[derive(Debug, Default)]
struct Stock {
    sockets: Vec<OwnedFd>,
    asked: bool,
    next_batch: u8,
    /// The agent had none to give the last time.
    refused: bool,
}

/// What [`Pool::take`] found.
#[derive(Debug)]
pub enum Taken {
    /// A socket, non-blocking, not bound and not connected.
    Socket(OwnedFd),
    /// None now; the agent was asked. Try again when [`Pool::handle_ready`] says so.
    Wait,
    /// The agent has none to give: no such family inside, or no descriptor left.
    Never,
}

impl Pool {
    /// A stock that is still empty. `agent` is a non-blocking connection, already registered with the worker's poll; it
    /// was made on the host.
    pub fn new(agent: OwnedFd) -> Pool {
        let host = network_namespace(agent.as_fd());
        Pool { agent, host, stocks: Default::default() }
    }

    /// The connection to the agent.
    pub fn agent(&self) -> BorrowedFd<'_> {
        self.agent.as_fd()
    }

    /// Take one.
    pub fn take(&mut self, kind: Kind) -> Taken {
        let at = kind as usize;
        let stock = &mut self.stocks[at];
        let socket = stock.sockets.pop();
        let refused = stock.refused;
        // A family that is missing now may be there later: it is asked for again each time.
        if stock.sockets.len() < LOW && !stock.asked {
            let batch = stock.next_batch.clamp(LOW as u8, BATCH);
            match scm::send(&self.agent, &[at as u8, batch], &[]) {
                Ok(()) => (stock.asked, stock.next_batch) = (true, batch.saturating_mul(2)),
                Err(_) if socket.is_none() => return Taken::Never,
                Err(_) => {}
            }
        }
        match socket {
            Some(socket) => Taken::Socket(socket),
            None if refused => Taken::Never,
            None => Taken::Wait,
        }
    }

    /// The connection is readable: take in what the agent sent. `Ok(true)` when anything came, be it only that there
    /// is none; whoever waited tries again.
    ///
    /// # Errors
    /// The agent has gone, or speaks another language; the pool is of no use then.
    pub fn handle_ready(&mut self) -> io::Result<bool> {
        let mut came = false;
        loop {
            let mut answer = [0; REQUEST];
            let (length, fds) = match scm::recv(&self.agent, &mut answer) {
                Ok(received) => received,
                // This process has no room for them: an answer all the same.
                Err(ScmError::FdsLost(length)) => (length, Vec::new()),
                Err(error) if error.is_would_block() => return Ok(came),
                Err(error) => return Err(io::Error::other(error)),
            };
            let (Some(kind), REQUEST) = (Kind::from_number(answer[0]), length) else {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            };
            if let Some(error) = fds.iter().find_map(|fd| kind.check(fd, self.host).err()) {
                tracing::warn!("the sandbox's agent sent a socket that was not asked for: {error}");
                return Err(error);
            }
            let stock = &mut self.stocks[kind as usize];
            stock.asked = false;
            stock.refused = fds.is_empty();
            stock.sockets.extend(fds);
            came = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::pair_elsewhere;
    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    /// Made elsewhere, so that this is the inside.
    fn pair() -> (Pool, OwnedFd) {
        let [ours, theirs] = pair_elsewhere();
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        (Pool::new(ours), theirs)
    }

    #[test]
    fn an_empty_stock_is_filled_by_the_agent_and_then_given_out() {
        let (mut pool, agent) = pair();
        assert!(matches!(pool.take(Kind::Tcp4), Taken::Wait));
        assert!(matches!(pool.take(Kind::Tcp4), Taken::Wait), "asked only once");
        assert!(!pool.handle_ready().unwrap());
        assert!(serve_one(agent.as_fd()).unwrap());
        assert!(pool.handle_ready().unwrap());
        for _ in 0..LOW {
            let Taken::Socket(socket) = pool.take(Kind::Tcp4) else { panic!("the stock has {LOW}") };
            let socket = Socket::from(socket);
            assert_eq!((socket.domain().unwrap(), socket.r#type().unwrap()), (Domain::IPV4, Type::STREAM));
            assert!(socket.nonblocking().unwrap());
        }
        // The first of them asked for twice as many.
        assert!(serve_one(agent.as_fd()).unwrap());
        assert!(pool.handle_ready().unwrap());
        assert_eq!(pool.stocks[0].sockets.len(), 2 * LOW);
    }

    #[test]
    fn kinds_are_kept_apart() {
        let (mut pool, agent) = pair();
        assert!(matches!(pool.take(Kind::Udp4), Taken::Wait));
        serve_one(agent.as_fd()).unwrap();
        pool.handle_ready().unwrap();
        assert!(matches!(pool.take(Kind::Tcp4), Taken::Wait));
        let Taken::Socket(socket) = pool.take(Kind::Udp4) else { panic!() };
        assert_eq!(Socket::from(socket).r#type().unwrap(), Type::DGRAM);
    }

    #[test]
    fn an_agent_that_has_none_or_has_gone_is_told_apart() {
        let (mut pool, agent) = pair();
        assert!(matches!(pool.take(Kind::Tcp6), Taken::Wait));
        let mut request = [0; REQUEST];
        scm::recv(&agent, &mut request).unwrap();
        scm::send(&agent, &[Kind::Tcp6 as u8, 0], &[]).unwrap();
        assert!(pool.handle_ready().unwrap(), "whoever waits must hear of it");
        assert!(matches!(pool.take(Kind::Tcp6), Taken::Never));
        drop(agent);
        assert!(pool.handle_ready().is_err());
        assert!(matches!(pool.take(Kind::Tcp4), Taken::Never));
    }

    #[test]
    fn what_was_not_asked_for_is_closed_with_the_connection() {
        let socket = |domain, kind: Type| Socket::new(domain, kind, None).unwrap();
        let tcp = || socket(Domain::IPV4, Type::STREAM.nonblocking());
        let bound = tcp();
        bound.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let pipe = Socket::from(OwnedFd::from(io::pipe().unwrap().1));
        for (socket, what) in [
            (socket(Domain::IPV4, Type::DGRAM.nonblocking()), "another kind"),
            (socket(Domain::IPV6, Type::STREAM.nonblocking()), "another kind"),
            (socket(Domain::UNIX, Type::STREAM.nonblocking()), "another kind"),
            (pipe, "Socket operation on non-socket"),
            (socket(Domain::IPV4, Type::STREAM), "it would block"),
            (bound, "bound already"),
        ] {
            let (mut pool, agent) = pair();
            assert!(matches!(pool.take(Kind::Tcp4), Taken::Wait));
            scm::send(&agent, &[Kind::Tcp4 as u8, 2], &[tcp().as_fd(), socket.as_fd()]).unwrap();
            let error = pool.handle_ready().unwrap_err().to_string();
            assert!(error.contains(what), "{error}, not {what}");
        }
        // A pool of the host's: what comes has to be of another namespace.
        let (ours, theirs) = scm::pair().unwrap();
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let mut pool = Pool::new(ours);
        scm::send(&theirs, &[Kind::Tcp4 as u8, 1], &[tcp().as_fd()]).unwrap();
        assert!(pool.handle_ready().unwrap_err().to_string().contains("the host's own network"));
    }

    #[test]
    fn nonsense_ends_the_connection_on_either_side() {
        let (mut pool, agent) = pair();
        scm::send(&pool.agent, &[9, 1], &[]).unwrap();
        assert!(serve_one(agent.as_fd()).is_err());
        scm::send(&agent, &[9, 1], &[]).unwrap();
        assert!(pool.handle_ready().is_err());
        drop(pool);
        assert!(!serve_one(agent.as_fd()).unwrap());
    }
}
