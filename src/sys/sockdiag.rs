//! Which ports a network namespace listens on (sock_diag(7)).
//!
//! The kernel is asked for the sockets of one state only, so that an answer costs what there is of them, however many
//! connections there are.
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};

/// SOCK_DIAG_BY_FAMILY (linux/sock_diag.h).
const BY_FAMILY: u16 = 20;
/// NLM_F_REQUEST and NLM_F_DUMP (linux/netlink.h).
const REQUEST_DUMP: u16 = 0x301;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Bytes of `struct nlmsghdr`, and with `struct inet_diag_req_v2` behind it (linux/inet_diag.h).
const HEADER: usize = 16;
const REQUEST: usize = HEADER + 56;
/// States of `enum tcp_states`: a UDP socket that is not connected is closed.
const CLOSE: u32 = 7;
const LISTEN: u32 = 10;
/// Room for one batch of answers.
const ANSWER: usize = 32 * 1024;

/// A question to the network namespace that the calling thread was in when this was opened.
pub struct SockDiag {
    socket: Socket,
    buffer: Box<[u8]>,
}

impl SockDiag {
    /// Connect to the kernel.
    pub fn open() -> io::Result<SockDiag> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddr::new(0, 0))?;
        Ok(SockDiag { socket, buffer: vec![0; ANSWER].into_boxed_slice() })
    }

    /// What TCP sockets listen on. A family that the kernel does not have has none.
    pub fn tcp_listeners(&mut self) -> io::Result<Vec<SocketAddr>> {
        self.both_families(libc::IPPROTO_TCP as u8, LISTEN)
    }

    /// What UDP sockets are bound to that are not connected.
    pub fn udp_listeners(&mut self) -> io::Result<Vec<SocketAddr>> {
        self.both_families(libc::IPPROTO_UDP as u8, CLOSE)
    }

    fn both_families(&mut self, protocol: u8, state: u32) -> io::Result<Vec<SocketAddr>> {
        let mut found = self.dump(libc::AF_INET as u8, protocol, state)?;
        match self.dump(libc::AF_INET6 as u8, protocol, state) {
            Ok(v6) => found.extend(v6),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
        Ok(found)
    }

    fn dump(&mut self, family: u8, protocol: u8, state: u32) -> io::Result<Vec<SocketAddr>> {
        let mut request = [0; REQUEST];
        request[0..4].copy_from_slice(&(REQUEST as u32).to_ne_bytes());
        request[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
        request[6..8].copy_from_slice(&REQUEST_DUMP.to_ne_bytes());
        request[HEADER] = family;
        request[HEADER + 1] = protocol;
        request[HEADER + 4..HEADER + 8].copy_from_slice(&(1u32 << state).to_ne_bytes());
        self.socket.send(&request, 0)?;
        let mut found = Vec::new();
        loop {
            let length = match super::io::read(self.socket.as_fd(), &mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if read(&self.buffer[..length], &mut found)? {
                return Ok(found);
            }
        }
    }
}

/// Take in one batch of answers; true after the last.
fn read(mut bytes: &[u8], found: &mut Vec<SocketAddr>) -> io::Result<bool> {
    while let Some(length) = u32_at(bytes, 0).map(|length| length as usize).filter(|length| *length >= HEADER) {
        let Some(message) = bytes.get(..length) else { break };
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        let body = &message[HEADER..];
        match kind {
            DONE => return Ok(true),
            ERROR => {
                let errno = u32_at(body, 0).map_or(libc::EIO, |error| (error as i32).wrapping_neg());
                return Err(io::Error::from_raw_os_error(errno));
            }
            _ => found.extend(bound_to(body)),
        }
        // Messages begin at multiples of four bytes.
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// The local address in a `struct inet_diag_msg`: the family, and from byte 4 on a `struct inet_diag_sockid`.
fn bound_to(body: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(body.get(4..6)?.try_into().ok()?);
    let source: [u8; 16] = body.get(8..24)?.try_into().ok()?;
    let ip = match i32::from(*body.first()?) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::new(source[0], source[1], source[2], source[3])),
        libc::AF_INET6 => IpAddr::V6(Ipv6Addr::from(source)),
        _ => return None,
    };
    (port != 0).then_some(SocketAddr::new(ip, port))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    #[test]
    fn listeners_of_both_families_are_found_and_connections_are_not() {
        let v4 = TcpListener::bind("127.0.0.1:0").unwrap();
        let v6 = TcpListener::bind("[::]:0").unwrap();
        let client = TcpStream::connect(v4.local_addr().unwrap()).unwrap();
        let found = SockDiag::open().unwrap().tcp_listeners().unwrap();
        assert!(found.contains(&v4.local_addr().unwrap()) && found.contains(&v6.local_addr().unwrap()), "{found:?}");
        assert!(!found.contains(&client.local_addr().unwrap()));
    }

    #[test]
    fn a_datagram_socket_is_found_until_it_is_connected() {
        let (one, other) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("[::1]:0").unwrap());
        let mut diag = SockDiag::open().unwrap();
        let found = diag.udp_listeners().unwrap();
        assert!(found.contains(&one.local_addr().unwrap()) && found.contains(&other.local_addr().unwrap()));
        one.connect("127.0.0.1:9").unwrap();
        assert!(!diag.udp_listeners().unwrap().contains(&one.local_addr().unwrap()));
    }

    #[test]
    fn an_answer_that_is_cut_short_or_an_error_is_no_port() {
        let mut found = Vec::new();
        assert!(!read(&[72, 0, 0, 0, 20, 0], &mut found).unwrap());
        assert!(!read(&[0; 64], &mut found).unwrap());
        let mut error = [0; 36];
        error[0..4].copy_from_slice(&36u32.to_ne_bytes());
        error[4..6].copy_from_slice(&ERROR.to_ne_bytes());
        error[HEADER..HEADER + 4].copy_from_slice(&(-libc::ENOENT).to_ne_bytes());
        assert_eq!(read(&error, &mut found).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        assert!(found.is_empty());
    }
}
