//! Descriptors that processes of ours hand to each other: they are trusted only as what the kernel says they are.
//!
//! # Theory of operation
//!
//! One of these processes may be in somebody else's hands, and what it hands on must not make another do what it could not
//! have done itself. So a descriptor has to be of the kind that it is said to be, in the state that it is said to be in,
//! and of the right side: a socket belongs to the network namespace that it was made in, and a socket of the host's must
//! not be taken for one of the sandbox's, nor the other way round. Which namespace that is the kernel tells by a number
//! (SO_NETNS_COOKIE, Linux 5.14), to anybody; the host's is that of the connection by which the descriptor came, because
//! the supervisor has made it. For a TAP it tells only who has a capability over it, so for those it is not asked.
//!
//! What is none of that is refused with a sentence, and closed.
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{SFlag, fstat, major, minor};
use socket2::{Domain, SockRef, Socket, Type};

use super::super::messages::ToGateway;
use super::sense::check_network;
use crate::plan::{Endpoint, HostView, LinkKind, Network, Protocol, Reached};
use crate::sys::sockopt::network_namespace;

/// An attach request whose descriptors are what they should be.
pub struct Request {
    pub network: Network,
    pub endpoint: Endpoint,
    pub host: HostView,
    pub kind: LinkKind,
    pub link: Option<OwnedFd>,
    pub api: Option<UnixListener>,
    pub capture: Option<File>,
}

impl Request {
    /// Take a first message apart; `check_link` looks at the link. `Err` is a sentence for the person.
    pub fn check(
        message: ToGateway,
        fds: Vec<OwnedFd>,
        check_link: impl Fn(LinkKind, &OwnedFd) -> io::Result<()>,
        home: Home,
    ) -> Result<Request, String> {
        let ToGateway::Attach { network, endpoint, link: kind, host, api, capture } = message else {
            return Err("the first message was not `attach`".to_owned());
        };
        let has_link = kind != LinkKind::None;
        check_network(&network, &endpoint).map_err(|nonsense| format!("the network cannot be: {nonsense}"))?;
        let expected = usize::from(has_link) + usize::from(api) + usize::from(capture);
        if fds.len() != expected {
            return Err(format!("{} descriptors came with `attach`, {expected} were expected", fds.len()));
        }
        let mut fds = fds.into_iter();
        // Their number was checked above.
        let link = has_link.then(|| fds.next()).flatten();
        if let Some(link) = &link {
            check_link(kind, link)
                .and_then(|()| if kind == LinkKind::Packet { home.is_not_of(link) } else { Ok(()) })
                .map_err(|e| format!("the link's descriptor is not a {}: {e}", name_of(kind)))?;
        }
        let api = match api.then(|| fds.next()).flatten() {
            None => None,
            Some(fd) => {
                let fit = check_api(&fd).and_then(|()| set_nonblocking(&fd));
                fit.map_err(|e| format!("the API's descriptor is not a listening Unix socket: {e}"))?;
                Some(UnixListener::from(fd))
            }
        };
        let capture = fds.next();
        if let Some(capture) = &capture {
            if network.sharing.is_some() {
                return Err("frames can be captured on a network of the sandbox's own only".to_owned());
            }
            check_capture(capture).map_err(|e| format!("the capture's descriptor is not a file: {e}"))?;
        }
        let capture = capture.map(File::from);
        Ok(Request { network, endpoint, host, kind, link, api, capture })
    }
}

fn name_of(kind: LinkKind) -> &'static str {
    match kind {
        LinkKind::Tap | LinkKind::PlainTap => "TAP device",
        LinkKind::Packet => "packet socket",
        LinkKind::None => "link",
    }
}

/// The host's network namespace, as far as the kernel tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home(Option<u64>);

impl Home {
    /// The caller's own.
    pub fn here() -> Home {
        Home(Socket::new(Domain::UNIX, Type::DGRAM, None).ok().and_then(|socket| network_namespace(socket.as_fd())))
    }

    /// The one that this connection was made in.
    pub fn of(connection: impl AsFd) -> Home {
        Home(network_namespace(connection.as_fd()))
    }

    /// A socket that belongs to the host.
    pub fn is_of(self, socket: impl AsFd) -> io::Result<()> {
        match (self.0, network_namespace(socket.as_fd())) {
            (Some(home), Some(its)) if home != its => Err(io::Error::other("it belongs to another network namespace")),
            _ => Ok(()),
        }
    }

    /// A socket that belongs to a sandbox.
    pub fn is_not_of(self, socket: impl AsFd) -> io::Result<()> {
        match (self.0, network_namespace(socket.as_fd())) {
            (Some(home), Some(its)) if home == its => Err(io::Error::other("it belongs to the host's own network")),
            _ => Ok(()),
        }
    }
}

fn is_seqpacket(socket: &SockRef<'_>) -> io::Result<()> {
    if socket.domain()? != Domain::UNIX || socket.r#type()? != Type::SEQPACKET {
        return Err(io::Error::other("not a Unix sequenced-packet socket"));
    }
    Ok(())
}

/// Is this an end of a connection between processes of ours?
pub fn check_attach(fd: &OwnedFd) -> io::Result<()> {
    let socket = SockRef::from(fd);
    is_seqpacket(&socket)?;
    if socket.peer_addr().is_err() {
        return Err(io::Error::other("nobody is at its other end"));
    }
    Ok(())
}

/// Is this a socket at which to listen for them?
pub fn check_listener(fd: &OwnedFd) -> io::Result<()> {
    let socket = SockRef::from(fd);
    is_seqpacket(&socket)?;
    if socket.local_addr()?.is_unnamed() {
        return Err(io::Error::other("it is bound to no place"));
    }
    if socket.peer_addr().is_ok() {
        return Err(io::Error::other("it is connected"));
    }
    Ok(())
}

/// Is the descriptor what it is said to be? Makes it non-blocking. That a TAP has the right flags is found out by
/// the worker, which asks the device (TUNGETIFF).
pub fn check_link(kind: LinkKind, fd: &OwnedFd) -> io::Result<()> {
    match kind {
        LinkKind::Tap | LinkKind::PlainTap => {
            let stat = fstat(fd)?;
            let is_device = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR;
            // 10:200 is /dev/net/tun (linux/miscdevice.h, TUN_MINOR).
            if !is_device || (major(stat.st_rdev), minor(stat.st_rdev)) != (10, 200) {
                return Err(io::Error::other("it was not opened from /dev/net/tun"));
            }
        }
        LinkKind::Packet => {
            let socket = SockRef::from(fd);
            if socket.domain()? != Domain::PACKET || socket.r#type()? != Type::RAW {
                return Err(io::Error::other("it is another kind of socket"));
            }
        }
        LinkKind::None => return Err(io::Error::other("there is to be none")),
    }
    set_nonblocking(fd)
}

pub fn check_api(fd: &OwnedFd) -> io::Result<()> {
    let socket = SockRef::from(fd);
    if socket.domain()? != Domain::UNIX || socket.r#type()? != Type::STREAM || !socket.is_listener()? {
        return Err(io::Error::other("it is another kind of socket"));
    }
    Ok(())
}

/// An ordinary file, that only grows, and cannot be read by this: no device and no pipe. (That it is none of the kernel's
/// own is seen to by who opens it.)
pub fn check_capture(fd: &OwnedFd) -> io::Result<()> {
    let kind = SFlag::from_bits_truncate(fstat(fd)?.st_mode) & SFlag::S_IFMT;
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    if kind != SFlag::S_IFREG || !flags.contains(OFlag::O_APPEND) {
        return Err(io::Error::other("it is no ordinary file, or not open for appending"));
    }
    if flags & OFlag::O_ACCMODE != OFlag::O_WRONLY {
        return Err(io::Error::other("it is open for reading too"));
    }
    Ok(())
}

/// What an agent sends as its sandbox's link.
pub fn check_sent_link(kind: LinkKind, fd: &OwnedFd) -> io::Result<()> {
    check_link(kind, fd).and_then(|()| if kind == LinkKind::Packet { Home::here().is_not_of(fd) } else { Ok(()) })
}

/// Is it a socket of this protocol, bound there, and does it listen if it is TCP?
pub fn check_bound(protocol: Protocol, to: SocketAddr, fd: &OwnedFd) -> io::Result<()> {
    let socket = SockRef::from(fd);
    let (kind, number) = match protocol {
        Protocol::Tcp => (Type::STREAM, socket2::Protocol::TCP),
        Protocol::Udp => (Type::DGRAM, socket2::Protocol::UDP),
    };
    let family = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    if socket.domain()? != family || socket.r#type()? != kind || socket.protocol()? != Some(number) {
        return Err(io::Error::other("it is another kind of socket"));
    }
    match socket.local_addr()?.as_socket() {
        Some(bound) if bound == to => {}
        Some(bound) => return Err(io::Error::other(format!("it is bound to {bound}"))),
        None => return Err(io::Error::other("it is not bound")),
    }
    if protocol == Protocol::Tcp && !socket.is_listener()? {
        return Err(io::Error::other("it does not listen"));
    }
    if protocol == Protocol::Udp && socket.peer_addr().is_ok() {
        return Err(io::Error::other("it is connected"));
    }
    Ok(())
}

/// A listener inside a sandbox.
pub fn check_reached(reached: &Reached, fd: &OwnedFd, home: Home) -> Result<(), String> {
    check_bound(reached.protocol, reached.inside, fd).and_then(|()| home.is_not_of(fd)).map_err(|error| {
        format!("the socket at {}/{} is not what it is said to be: {error}", reached.inside, reached.protocol)
    })
}

pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
