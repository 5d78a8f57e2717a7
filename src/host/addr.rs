//! Which addresses are the host's own, which source its sockets have, and what an errno means to a sandbox.
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use socket2::{Domain, Protocol, Socket, Type};

use crate::gateway::link::HostError;
use crate::plan::{HostView, Outbound};

/// The host's own addresses, as it was last told.
#[derive(Clone, Debug, Default)]
pub struct HostAddresses {
    own: [Option<IpAddr>; 2],
}

impl HostAddresses {
    /// What a view of the host says.
    pub fn new(host: &HostView) -> HostAddresses {
        HostAddresses { own: [host.v4.map(IpAddr::V4), host.v6.map(IpAddr::V6)] }
    }

    /// Does a datagram to this address stay on the host? Its loopback and its own addresses.
    pub fn is_local(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.own.contains(&Some(ip))
    }
}

/// A link-local destination is on one interface, where one is known.
pub(super) fn scoped(to: SocketAddr, interface: Option<u32>) -> SocketAddr {
    match (to, interface) {
        (SocketAddr::V6(v6), Some(scope)) if v6.ip().is_unicast_link_local() => {
            SocketAddrV6::new(*v6.ip(), v6.port(), 0, scope).into()
        }
        _ => to,
    }
}

/// A non-blocking, close-on-exec socket of the family of `to`, with the source that was asked for. Destinations
/// on the host itself are reached without it (`outbound` is `None`): nothing comes in for them through the
/// interface the socket would be bound to.
pub(super) fn open(to: IpAddr, icmp: bool, outbound: Option<&Outbound>) -> io::Result<Socket> {
    let (domain, protocol) = match (to, icmp) {
        (IpAddr::V4(_), false) => (Domain::IPV4, Protocol::UDP),
        (IpAddr::V4(_), true) => (Domain::IPV4, Protocol::ICMPV4),
        (IpAddr::V6(_), false) => (Domain::IPV6, Protocol::UDP),
        (IpAddr::V6(_), true) => (Domain::IPV6, Protocol::ICMPV6),
    };
    Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(protocol)).and_then(|socket| {
        if to.is_ipv6() {
            // IPv4-mapped destinations must not slip past a rule.
            socket.set_only_v6(true)?;
        }
        if let Some(outbound) = outbound {
            bind(&socket, to, outbound)?;
        }
        Ok(socket)
    })
}

/// Give a socket the source that was asked for: SO_BINDTODEVICE (socket(7); without privilege since Linux 5.7)
/// and the source address of its family.
pub(super) fn bind(socket: &Socket, to: IpAddr, outbound: &Outbound) -> io::Result<()> {
    if let Some(interface) = outbound.interface_for(to) {
        socket.bind_device(Some(interface.as_bytes()))?;
    }
    let source = match to {
        IpAddr::V4(_) => outbound.v4.map(IpAddr::V4),
        IpAddr::V6(_) => outbound.v6.map(IpAddr::V6),
    };
    match source {
        Some(source) => socket.bind(&SocketAddr::new(source, 0).into()),
        None => Ok(()),
    }
}

/// What a system call's error means to a sandbox.
pub fn host_error(error: &io::Error) -> HostError {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => HostError::Refused,
        Some(
            libc::ENETUNREACH
            | libc::EADDRNOTAVAIL
            | libc::EAFNOSUPPORT
            | libc::ENETDOWN
            | libc::ENODEV
            | libc::ENXIO
            | libc::ENONET,
        ) => HostError::NetUnreachable,
        Some(libc::EHOSTUNREACH | libc::EHOSTDOWN) => HostError::HostUnreachable,
        Some(libc::EACCES | libc::EPERM) => HostError::Prohibited,
        Some(libc::ETIMEDOUT) => HostError::TimedOut,
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EAGAIN) => HostError::Exhausted,
        _ => HostError::Reset,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_on_the_host_is_loopback_and_its_own_addresses() {
        let host = HostView { v4: Some([192, 0, 2, 7].into()), ..HostView::default() };
        let addresses = HostAddresses::new(&host);
        for local in ["127.0.0.1", "127.1.2.3", "::1", "192.0.2.7"] {
            assert!(addresses.is_local(local.parse().unwrap()), "{local}");
        }
        for elsewhere in ["192.0.2.8", "2001:db8::1", "0.0.0.0"] {
            assert!(!addresses.is_local(elsewhere.parse().unwrap()), "{elsewhere}");
        }
    }

    #[test]
    fn link_local_destinations_are_on_the_interface_that_is_known() {
        let at = |to: &str| -> SocketAddr { to.parse().unwrap() };
        assert_eq!(scoped(at("[fe80::1]:80"), Some(3)), at("[fe80::1%3]:80"));
        assert_eq!(scoped(at("[fe80::1]:80"), None), at("[fe80::1]:80"));
        for to in ["[2001:db8::1]:80", "169.254.1.1:80"] {
            assert_eq!(scoped(at(to), Some(3)), at(to));
        }
    }

    #[test]
    fn sockets_have_the_source_address_that_was_asked_for() {
        let outbound = Outbound { v4: Some([127, 0, 0, 9].into()), ..Outbound::default() };
        let to = "127.0.0.1".parse().unwrap();
        let bound = open(to, false, Some(&outbound)).unwrap().local_addr().unwrap().as_socket().unwrap();
        assert_eq!(bound.ip(), IpAddr::from([127, 0, 0, 9]));
        let free = open(to, false, None).unwrap().local_addr().unwrap().as_socket().unwrap();
        assert!(free.ip().is_unspecified());
    }

    #[test]
    fn a_source_address_the_host_does_not_have_is_net_unreachable() {
        let outbound = Outbound { v4: Some([192, 0, 2, 99].into()), ..Outbound::default() };
        let error = open("198.51.100.1".parse().unwrap(), false, Some(&outbound)).unwrap_err();
        assert_eq!(host_error(&error), HostError::NetUnreachable);
    }

    #[test]
    fn sockets_are_bound_to_the_interface_that_was_asked_for() {
        let outbound = |name: &str| Outbound { interface: Some(name.to_owned()), ..Outbound::default() };
        let to = "192.0.2.1".parse().unwrap();
        let bound = open(to, false, Some(&outbound("lo"))).unwrap();
        assert_eq!(bound.device().unwrap().as_deref(), Some(&b"lo"[..]));
        let error = open(to, false, Some(&outbound("no-such-if"))).unwrap_err();
        assert_eq!(host_error(&error), HostError::NetUnreachable);
    }
}
