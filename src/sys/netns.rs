//! Network namespaces of the calling thread (network_namespaces(7), setns(2), ioctl_ns(2)).
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// `SIOCGSKNS` (linux/sockios.h): the network namespace of a socket.
const SIOCGSKNS: libc::c_ulong = 0x894c;

/// The network namespace that a socket was made in. Needs CAP_NET_ADMIN there, and no /proc.
pub fn of_socket(socket: impl AsFd) -> io::Result<OwnedFd> {
    // SAFETY: SIOCGSKNS takes no argument and returns a new descriptor.
    let fd = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCGSKNS as _) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Move the calling thread to a new, empty network namespace, which its user namespace owns.
pub fn unshare() -> io::Result<()> {
    // SAFETY: unshare takes flags only.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Move the calling thread to this network namespace.
pub fn enter(namespace: impl AsFd) -> io::Result<()> {
    // SAFETY: setns takes a descriptor, which is borrowed for the call, and flags.
    if unsafe { libc::setns(namespace.as_fd().as_raw_fd(), libc::CLONE_NEWNET) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
