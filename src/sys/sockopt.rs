//! Socket options that neither std nor socket2 offers.
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Set an integer socket option (setsockopt(2)).
fn set_int(fd: BorrowedFd<'_>, level: i32, option: i32, value: i32) -> io::Result<()> {
    let length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the option's value is an int that lives across the call, and its length is given.
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// SO_NETNS_COOKIE (linux/socket.h).
const SO_NETNS_COOKIE: libc::c_int = 71;

/// A number that stands for the network namespace that a socket of any kind was made in, for whoever asks; since Linux
/// 5.14. `None` where the kernel does not tell, or it is no socket.
pub fn network_namespace(fd: BorrowedFd<'_>) -> Option<u64> {
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is the size of `cookie`.
    let result = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut length)
    };
    (result == 0).then_some(cookie)
}

/// IP_RECVERR or IPV6_RECVERR: keep ICMP errors with their sender in the error queue (ip(7), ipv6(7)).
pub fn set_receive_errors(fd: BorrowedFd<'_>, ipv6: bool, on: bool) -> io::Result<()> {
    match ipv6 {
        true => set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, on.into()),
        false => set_int(fd, libc::IPPROTO_IP, libc::IP_RECVERR, on.into()),
    }
}

/// IP_BIND_ADDRESS_NO_PORT: a chosen source address without using up a port before connect() (ip(7)).
pub fn set_bind_address_no_port(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_int(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

/// IP_TTL or IPV6_UNICAST_HOPS.
pub fn set_hop_limit(fd: BorrowedFd<'_>, ipv6: bool, hop_limit: u8) -> io::Result<()> {
    match ipv6 {
        true => set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, hop_limit.into()),
        false => set_int(fd, libc::IPPROTO_IP, libc::IP_TTL, hop_limit.into()),
    }
}
