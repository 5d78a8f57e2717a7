//! Which ports a network namespace listens on, and the end of its connections (sock_diag(7)).
//!
//! The kernel is asked for the sockets of the states that matter only, so that listeners cost what there is of them,
//! however many connections there are.
//!
//! A connection is reset as by an error (SOCK_DESTROY, which takes CAP_NET_ADMIN over the namespace): whoever reads or
//! writes it gets ECONNABORTED at once. It is named by both its ends and the kernel's cookie, so that no other can be
//! meant, however long ago it was listed.
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};

/// SOCK_DIAG_BY_FAMILY (linux/sock_diag.h).
const BY_FAMILY: u16 = 20;
/// SOCK_DESTROY, likewise.
const DESTROY: u16 = 21;
/// NLM_F_REQUEST and NLM_F_DUMP (linux/netlink.h).
const REQUEST_DUMP: u16 = 0x301;
/// NLM_F_REQUEST and NLM_F_ACK.
const REQUEST_ACK: u16 = 0x5;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Bytes of `struct nlmsghdr`, and with `struct inet_diag_req_v2` behind it (linux/inet_diag.h).
const HEADER: usize = 16;
const REQUEST: usize = HEADER + 56;
/// States of `enum tcp_states`: a UDP socket that is not connected is closed.
const CLOSE: u32 = 7;
const LISTEN: u32 = 10;
/// Those of a connection that both sides know of: ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING.
const CONNECTED: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// Bytes of `struct inet_diag_sockid`, and where it is in a `struct inet_diag_msg`.
const ID: usize = 48;
const ID_AT: usize = 4;
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
        self.dump_both(protocol, 1 << state, bound_to)
    }

    /// Reset the TCP connections that `which` picks by their own address and the other side's; how many there were. An
    /// IPv4 address is one, whatever the family of the socket.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where the kernel cannot (CONFIG_INET_DIAG_DESTROY), `EPERM` without the right.
    pub fn reset_connections(&mut self, which: impl Fn(IpAddr, IpAddr) -> bool) -> io::Result<usize> {
        let mut all = self.dump_both(libc::IPPROTO_TCP as u8, CONNECTED, Connection::read)?;
        all.retain(|connection| which(connection.own, connection.other));
        let mut count = 0;
        for connection in &all {
            match self.destroy(connection) {
                Ok(()) => count += 1,
                // It has ended by itself.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(count)
    }

    fn destroy(&mut self, connection: &Connection) -> io::Result<()> {
        let mut request = request(DESTROY, REQUEST_ACK, connection.family, libc::IPPROTO_TCP as u8, CONNECTED);
        request[HEADER + 8..].copy_from_slice(&connection.id);
        self.socket.send(&request, 0)?;
        let length = self.receive()?;
        // `struct nlmsgerr`, whose number is 0 for an acknowledgement.
        match u32_at(&self.buffer[..length], HEADER) {
            Some(0) => Ok(()),
            Some(error) => Err(io::Error::from_raw_os_error((error as i32).wrapping_neg())),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn dump_both<T>(&mut self, protocol: u8, states: u32, take: fn(&[u8]) -> Option<T>) -> io::Result<Vec<T>> {
        let mut found = self.dump(libc::AF_INET as u8, protocol, states, take)?;
        match self.dump(libc::AF_INET6 as u8, protocol, states, take) {
            Ok(v6) => found.extend(v6),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
        Ok(found)
    }

    fn dump<T>(&mut self, family: u8, protocol: u8, states: u32, take: fn(&[u8]) -> Option<T>) -> io::Result<Vec<T>> {
        self.socket.send(&request(BY_FAMILY, REQUEST_DUMP, family, protocol, states), 0)?;
        let mut found = Vec::new();
        loop {
            let length = self.receive()?;
            if read(&self.buffer[..length], take, &mut found)? {
                return Ok(found);
            }
        }
    }

    fn receive(&mut self) -> io::Result<usize> {
        loop {
            match super::io::read(self.socket.as_fd(), &mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

fn request(kind: u16, flags: u16, family: u8, protocol: u8, states: u32) -> [u8; REQUEST] {
    let mut request = [0; REQUEST];
    request[0..4].copy_from_slice(&(REQUEST as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&kind.to_ne_bytes());
    request[6..8].copy_from_slice(&flags.to_ne_bytes());
    request[HEADER] = family;
    request[HEADER + 1] = protocol;
    request[HEADER + 4..HEADER + 8].copy_from_slice(&states.to_ne_bytes());
    request
}

/// A TCP connection as the kernel lists it.
struct Connection {
    family: u8,
    own: IpAddr,
    other: IpAddr,
    id: [u8; ID],
}

impl Connection {
    /// Out of a `struct inet_diag_msg`.
    fn read(body: &[u8]) -> Option<Connection> {
        let family = *body.first()?;
        let id: [u8; ID] = body.get(ID_AT..ID_AT + ID)?.try_into().ok()?;
        let (own, other) = (address(family, body.get(8..24)?)?, address(family, body.get(24..40)?)?);
        Some(Connection { family, own: own.to_canonical(), other: other.to_canonical(), id })
    }
}

/// Take in one batch of answers; true after the last.
fn read<T>(mut bytes: &[u8], take: fn(&[u8]) -> Option<T>, found: &mut Vec<T>) -> io::Result<bool> {
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
            _ => found.extend(take(body)),
        }
        // Messages begin at multiples of four bytes.
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// The local address in a `struct inet_diag_msg`: the family, and from byte 4 on a `struct inet_diag_sockid`.
fn bound_to(body: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(body.get(4..6)?.try_into().ok()?);
    let ip = address(*body.first()?, body.get(8..24)?)?;
    (port != 0).then_some(SocketAddr::new(ip, port))
}

/// An address of a `struct inet_diag_sockid`: sixteen bytes, of which IPv4 uses four.
fn address(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    let bytes: [u8; 16] = bytes.try_into().ok()?;
    match i32::from(family) {
        libc::AF_INET => Some(IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]))),
        libc::AF_INET6 => Some(IpAddr::V6(Ipv6Addr::from(bytes))),
        _ => None,
    }
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
    fn a_reader_of_a_connection_that_is_reset_hears_of_it_and_others_go_on() {
        crate::sys::testing::in_namespace(|| {
            let text = |error: io::Error| error.to_string();
            let mut netlink = crate::sys::netlink::Netlink::open().map_err(|e| e.to_string())?;
            let lo = netlink.link("lo").map_err(|e| e.to_string())?.index;
            let up = crate::sys::netlink::LinkChange { up: Some(true), ..Default::default() };
            netlink.change_link(lo, &up).map_err(|e| e.to_string())?;
            let v4 = TcpListener::bind("127.0.0.1:0").map_err(text)?;
            let both = TcpListener::bind("[::]:0").map_err(text)?;
            let port = both.local_addr().map_err(text)?.port();
            let connect = |to: (&str, u16)| {
                let stream = TcpStream::connect(to)?;
                stream.set_read_timeout(Some(std::time::Duration::from_secs(10)))?;
                io::Result::Ok(stream)
            };
            let mut doomed = Vec::new();
            let mut spared = connect(("127.0.0.1", v4.local_addr().map_err(text)?.port())).map_err(text)?;
            let (mut spared_other, _) = v4.accept().map_err(text)?;
            // IPv4 over an IPv6 socket on the side that is reset, and IPv6.
            for to in ["127.0.0.9", "::1"] {
                let stream = connect((to, port)).map_err(text)?;
                let (accepted, _) = both.accept().map_err(text)?;
                doomed.push((accepted, stream));
            }
            let reset = SockDiag::open().and_then(|mut diag| {
                diag.reset_connections(|own, _| own == IpAddr::from([127, 0, 0, 9]) || own.is_ipv6())
            });
            // Of that over ::1 both ends are meant, and the second has ended with the first.
            if !matches!(reset, Ok(2 | 3)) {
                return Err(format!("{reset:?}"));
            }
            for (accepted, _) in &mut doomed {
                match io::Read::read(accepted, &mut [0]) {
                    Err(error) if matches!(error.raw_os_error(), Some(libc::ECONNABORTED | libc::ECONNRESET)) => {}
                    other => return Err(format!("{other:?}")),
                }
            }
            // The far end of the first hears it from the wire.
            match io::Read::read(&mut doomed[0].1, &mut [0]) {
                Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => {}
                other => return Err(format!("{other:?}")),
            }
            io::Write::write_all(&mut spared_other, b"x").map_err(text)?;
            io::Read::read_exact(&mut spared, &mut [0]).map_err(text)
        });
    }

    #[test]
    fn an_answer_that_is_cut_short_or_an_error_is_no_port() {
        let mut found: Vec<SocketAddr> = Vec::new();
        assert!(!read(&[72, 0, 0, 0, 20, 0], bound_to, &mut found).unwrap());
        assert!(!read(&[0; 64], bound_to, &mut found).unwrap());
        let mut error = [0; 36];
        error[0..4].copy_from_slice(&36u32.to_ne_bytes());
        error[4..6].copy_from_slice(&ERROR.to_ne_bytes());
        error[HEADER..HEADER + 4].copy_from_slice(&(-libc::ENOENT).to_ne_bytes());
        assert_eq!(read(&error, bound_to, &mut found).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        assert!(found.is_empty());
    }
}
