//! One datagram socket on its way out: what UDP flows and ping flows have in common.
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use super::addr;
use crate::gateway::link::{Datagram, HostError};
use crate::plan::Outbound;
use crate::sys::dgram::{self, SocketOption};

/// Bytes asked of the kernel for datagrams that wait to be read; it gives what net.core.rmem_max allows.
const RECEIVE_BUFFER: usize = 1 << 20;
/// How often a send is tried: an ICMP error for an earlier datagram, pending on the socket, fails a send once and
/// is cleared by that (its entry in the error queue stays). More than one can come in between.
const ATTEMPTS: usize = 3;
/// Assumed where the kernel does not say: the least that IPv6 allows (RFC 8200, 5).
const FALLBACK_MTU: u32 = 1280;

/// A socket and the options it has now, so that a call is made only for those that change.
pub(super) struct OutSocket {
    fd: OwnedFd,
    ipv6: bool,
    hop_limit: Option<u8>,
    tos: u8,
    dont_fragment: Option<bool>,
}

impl OutSocket {
    /// Open a socket towards `to` and have the event loop watch it (edge-triggered).
    pub fn open(
        to: IpAddr,
        icmp: bool,
        outbound: Option<&Outbound>,
        registry: &Registry,
        token: Token,
    ) -> io::Result<OutSocket> {
        let socket = addr::open(to, icmp, outbound)?;
        // A smaller buffer than asked for loses datagrams sooner, no more.
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
        let this =
            OutSocket { fd: OwnedFd::from(socket), ipv6: to.is_ipv6(), hop_limit: None, tos: 0, dont_fragment: None };
        this.set(SocketOption::ReceiveErrors, 1)?;
        registry.register(&mut SourceFd(&this.fd.as_raw_fd()), token, Interest::READABLE)?;
        Ok(this)
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn set(&self, option: SocketOption, value: i32) -> io::Result<()> {
        dgram::set_option(self.fd.as_fd(), self.ipv6, option, value)
    }

    /// Make the socket send as this datagram wants to be sent.
    pub fn prepare(&mut self, datagram: &Datagram<'_>) -> io::Result<()> {
        let hop_limit = datagram.hop_limit.max(1);
        if self.hop_limit != Some(hop_limit) {
            self.set(SocketOption::HopLimit, i32::from(hop_limit))?;
            self.hop_limit = Some(hop_limit);
        }
        if self.tos != datagram.tos {
            self.set(SocketOption::Tos, i32::from(datagram.tos))?;
            self.tos = datagram.tos;
        }
        if self.dont_fragment != Some(datagram.dont_fragment) {
            self.set(SocketOption::DontFragment, i32::from(datagram.dont_fragment))?;
            self.dont_fragment = Some(datagram.dont_fragment);
        }
        Ok(())
    }

    /// Send one datagram (or one super-segment), so that an ICMP error for another never costs it.
    pub fn send(&self, to: SocketAddr, parts: [&[u8]; 2], segment: u16) -> io::Result<()> {
        let mut result = Ok(());
        for _ in 0..ATTEMPTS {
            result = dgram::send(self.fd.as_fd(), to, parts, segment);
            match &result {
                Err(error) if may_be_pending(error) => {}
                _ => break,
            }
        }
        result
    }

    /// What to tell the sandbox of a send that failed.
    pub fn explain(&self, error: &io::Error, to: IpAddr, outbound: Option<&Outbound>) -> HostError {
        if error.raw_os_error() == Some(libc::EMSGSIZE) && self.dont_fragment == Some(true) {
            return HostError::TooBig(path_mtu(to, outbound).unwrap_or(FALLBACK_MTU));
        }
        addr::host_error(error)
    }
}

/// The errnos that ICMP errors turn into (net/ipv4/icmp.c, icmp_err_convert; net/ipv6/icmp.c, icmpv6_err_convert).
fn may_be_pending(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EINTR
                | libc::ECONNREFUSED
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::ENOPROTOOPT
                | libc::EMSGSIZE
                | libc::EOPNOTSUPP
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EACCES
                | libc::EPROTO
        )
    )
}

/// The MTU of the path to a destination. The kernel says it of connected sockets only, so one is made for the
/// question (a datagram socket's connect sends nothing).
fn path_mtu(to: IpAddr, outbound: Option<&Outbound>) -> io::Result<u32> {
    let socket = addr::open(to, false, outbound)?;
    socket.connect(&SocketAddr::new(to, 9).into())?;
    dgram::path_mtu(socket.as_fd(), to.is_ipv6())
}
