//! Descriptors that travel over Unix sockets (unix(7), SCM_RIGHTS), and who is at the other end (SO_PEERCRED).
//!
//! The sockets are SOCK_SEQPACKET: a message arrives whole, with its descriptors, or not at all. What arrives
//! is closed on exec from the first moment. A message that had more bytes or more descriptors than were asked
//! for is an error, and everything that came with it is closed: half a message is worth nothing. (Where only descriptors
//! were lost the bytes are in the buffer all the same, so that whoever waits for an answer can be told.)
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Most descriptors in one message (the kernel's own limit is 253, SCM_MAX_FD).
pub const MAX_FDS: usize = 64;

/// Room for the control message, aligned as `struct cmsghdr` has to be.
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// Bytes of it; a multiple of 8.
const CONTROL: usize = 288;

// CMSG_SPACE(MAX_FDS descriptors): header and payload, each rounded up to 8.
const _: () = assert!(16 + MAX_FDS * size_of::<RawFd>() <= CONTROL);

/// Why a message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum ScmError {
    /// sendmsg(2) failed.
    #[error("cannot send a message: {0}")]
    Send(#[source] io::Error),
    /// recvmsg(2) failed.
    #[error("cannot receive a message: {0}")]
    Receive(#[source] io::Error),
    /// More descriptors than a message can carry.
    #[error("a message can carry {MAX_FDS} descriptors, not {0}")]
    TooManyFds(usize),
    /// The message was longer than the buffer.
    #[error("a message was longer than {0} bytes")]
    TooLong(usize),
    /// Descriptors were lost on the way: too many, or this process has no room for more.
    #[error("descriptors of a message of {0} bytes were lost: this process may have too many open (ulimit -n)")]
    FdsLost(usize),
}

impl ScmError {
    /// Is it only that a non-blocking socket has nothing to say, or no room?
    pub fn is_would_block(&self) -> bool {
        matches!(self, ScmError::Send(e) | ScmError::Receive(e) if e.kind() == io::ErrorKind::WouldBlock)
    }
}

/// Who connected: process, user and group, as they were when the connection was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Process id in our PID namespace; 0 when it is not in it.
    pub pid: i32,
    /// User id in our user namespace.
    pub uid: u32,
    /// Group id in our user namespace.
    pub gid: u32,
}

/// Two connected sockets, closed on exec.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: socketpair writes two descriptors into the array given to it.
    if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the two descriptors are new and nobody else's.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// Send one message with descriptors beside it. `bytes` must not be empty: an empty message is the end.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), ScmError> {
    if fds.len() > MAX_FDS {
        return Err(ScmError::TooManyFds(fds.len()));
    }
    let mut control = Control([0; CONTROL]);
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: `struct msghdr` is plain integers and pointers, for all of which zero is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    if !fds.is_empty() {
        let payload = size_of_val(fds) as u32;
        message.msg_control = (&raw mut control).cast();
        // SAFETY: CMSG_SPACE and CMSG_LEN only compute. `control` is aligned, cleared and large enough for one
        // header and MAX_FDS descriptors, so that CMSG_FIRSTHDR points into it and CMSG_DATA has room for all.
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(payload) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(payload) as _;
            let data = libc::CMSG_DATA(header).cast::<RawFd>();
            for (i, fd) in fds.iter().enumerate() {
                data.add(i).write_unaligned(fd.as_raw_fd());
            }
        }
    }
    loop {
        // SAFETY: `message` points to `iov`, `bytes` and `control`, which outlive the call; the kernel only reads.
        let sent = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
        if sent >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(ScmError::Send(error));
        }
    }
}

/// Receive one message into `buffer`: its length and its descriptors. A length of 0 is the end: the other side
/// has closed.
pub fn recv(socket: impl AsFd, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), ScmError> {
    let mut control = Control([0; CONTROL]);
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: `struct msghdr` is plain integers and pointers, for all of which zero is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>() as _;
    let length = loop {
        // SAFETY: `message` points to `iov`, `buffer` and `control`, which outlive the call, with their lengths.
        let got = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        if let Ok(length) = usize::try_from(got) {
            break length;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(ScmError::Receive(error));
        }
    };
    let fds = descriptors(&message);
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(ScmError::FdsLost(length));
    }
    if message.msg_flags & libc::MSG_TRUNC != 0 {
        return Err(ScmError::TooLong(buffer.len()));
    }
    if fds.len() > MAX_FDS {
        return Err(ScmError::TooManyFds(fds.len()));
    }
    Ok((length, fds))
}

/// Own every descriptor that a message brought.
fn descriptors(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: recvmsg has filled in `message` and the control buffer it points to; CMSG_FIRSTHDR and CMSG_NXTHDR
    // stay inside it. Each descriptor in a SCM_RIGHTS message is new in this process and nobody else's.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let payload = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                for i in 0..payload / size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(i).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    fds
}

/// Who is at the other end of a connected Unix socket (SO_PEERCRED).
pub fn peer_credentials(socket: impl AsFd) -> io::Result<PeerCredentials> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is the size of `credentials`.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(PeerCredentials { pid: credentials.pid, uid: credentials.uid, gid: credentials.gid })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn message_brings_its_descriptors_in_order() {
        let (a, b) = pair().unwrap();
        let (mut from_first, first) = io::pipe().unwrap();
        let (mut from_second, second) = io::pipe().unwrap();
        send(&a, b"two pipes", &[first.as_fd(), second.as_fd()]).unwrap();
        drop((first, second));
        let mut buffer = [0; 64];
        let (length, fds) = recv(&b, &mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"two pipes");
        let [first, second] = <[OwnedFd; 2]>::try_from(fds).unwrap();
        for fd in [&first, &second] {
            // SAFETY: F_GETFD takes no argument.
            let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) };
            assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        }
        std::fs::File::from(first).write_all(b"1").unwrap();
        std::fs::File::from(second).write_all(b"2").unwrap();
        let mut text = String::new();
        from_first.read_to_string(&mut text).unwrap();
        from_second.read_to_string(&mut text).unwrap();
        assert_eq!(text, "12");
    }

    #[test]
    fn end_is_an_empty_message() {
        let (a, b) = pair().unwrap();
        drop(a);
        let (length, fds) = recv(&b, &mut [0; 8]).unwrap();
        assert_eq!((length, fds.len()), (0, 0));
    }

    #[test]
    fn too_long_message_is_an_error_that_closes_its_descriptors() {
        let (a, b) = pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        send(&a, b"longer than that", &[writer.as_fd()]).unwrap();
        drop(writer);
        assert!(matches!(recv(&b, &mut [0; 8]), Err(ScmError::TooLong(8))));
        // All writers are gone, so the pipe ends instead of waiting.
        assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn descriptors_without_room_are_an_error_that_closes_the_rest() {
        super::super::testing::in_child(|| {
            let text = |e: &dyn std::fmt::Display| e.to_string();
            let (a, b) = pair().map_err(|e| text(&e))?;
            let (mut reader, writer) = io::pipe().map_err(|e| text(&e))?;
            send(&a, b"x", &[writer.as_fd(); 4]).map_err(|e| text(&e))?;
            drop(writer);
            // Two descriptors fit, four came.
            let next = reader.as_raw_fd().max(b.as_raw_fd()) as u64 + 3;
            let limit = libc::rlimit { rlim_cur: next, rlim_max: next };
            // SAFETY: setrlimit reads one structure.
            unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
            match recv(&b, &mut [0; 8]) {
                Err(ScmError::FdsLost(1)) => {}
                other => return Err(format!("{other:?}")),
            }
            match reader.read(&mut [0; 1]) {
                Ok(0) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    #[test]
    fn peer_is_ourselves() {
        let (a, _b) = pair().unwrap();
        let peer = peer_credentials(&a).unwrap();
        assert_eq!(peer.pid, std::process::id() as i32);
        // SAFETY: geteuid takes nothing and cannot fail.
        assert_eq!(peer.uid, unsafe { libc::geteuid() });
    }
}
