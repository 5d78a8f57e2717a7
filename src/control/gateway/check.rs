//! Descriptors that a supervisor hands over: they are trusted only as what the kernel says they are.
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{SFlag, fstat, major, minor};
use socket2::{Domain, SockRef, Type};

use super::super::messages::ToGateway;
use super::sense::check_network;
use crate::plan::{Endpoint, HostView, LinkKind, Network};

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
            check_link(kind, link).map_err(|e| format!("the link's descriptor is not a {}: {e}", name_of(kind)))?;
        }
        let api = match api.then(|| fds.next()).flatten() {
            None => None,
            Some(fd) => {
                check_api(&fd).map_err(|e| format!("the API's descriptor is not a listening Unix socket: {e}"))?;
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

/// Is this our end of an attach connection, or a socket at which to listen for them?
pub fn check_attach(fd: &OwnedFd) -> io::Result<()> {
    let socket = SockRef::from(fd);
    if socket.domain()? != Domain::UNIX || socket.r#type()? != Type::SEQPACKET {
        return Err(io::Error::other("not a Unix sequenced-packet socket"));
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

/// An ordinary file that is written to at its end only.
fn check_capture(fd: &OwnedFd) -> io::Result<()> {
    let kind = SFlag::from_bits_truncate(fstat(fd)?.st_mode) & SFlag::S_IFMT;
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    if kind != SFlag::S_IFREG || !flags.contains(OFlag::O_APPEND) {
        return Err(io::Error::other("it is no ordinary file, or not open for appending"));
    }
    Ok(())
}

pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
