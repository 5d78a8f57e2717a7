//! splice(2) between a socket and a pipe, and accept4(2).
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use socket2::SockAddr;

/// Move up to `most` bytes from one descriptor to another, one of which is a pipe; neither is waited for.
#[inline]
pub fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    let (no_offset, fds) = (std::ptr::null_mut(), (from.as_raw_fd(), to.as_raw_fd()));
    // SAFETY: with null offsets the call touches no memory of ours; both descriptors are open while borrowed.
    let moved = unsafe { libc::splice(fds.0, no_offset, fds.1, no_offset, most, flags) };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

/// Take the next connection of a listener: non-blocking, and closed on exec.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, SocketAddr)> {
    let accept = |storage: *mut socket2::SockAddrStorage, length: *mut libc::socklen_t| {
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: `storage` has room for any address and `length` says how much, as try_init promises.
        let fd = unsafe { libc::accept4(listener.as_raw_fd(), storage.cast(), length, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    // SAFETY: accept4 writes a whole address and its length, or fails.
    let (socket, peer) = unsafe { SockAddr::try_init(accept) }?;
    let peer = peer.as_socket().ok_or_else(|| io::Error::other("the client has no IP address"))?;
    Ok((socket, peer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    #[test]
    fn bytes_go_through_a_pipe_and_nobody_is_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, peer) = accept(listener.as_fd()).unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let nothing = splice(accepted.as_fd(), writer.as_fd(), 100).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        client.write_all(b"there and back").unwrap();
        assert_eq!(splice(accepted.as_fd(), writer.as_fd(), 100).unwrap(), 14);
        assert_eq!(splice(reader.as_fd(), accepted.as_fd(), 14).unwrap(), 14);
        let mut back = [0; 14];
        client.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"there and back");
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(splice(accepted.as_fd(), writer.as_fd(), 100).unwrap(), 0);
    }
}
