//! Pings, over the sockets that Linux has for them.
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::pattern;

/// An echo request with so many bytes, and its answer.
pub fn ping(to: &str, bytes: usize) -> Result<String, String> {
    let to: IpAddr = to.parse().map_err(|e| format!("{to}: {e}"))?;
    let (domain, protocol, request, reply) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol)).map_err(|e| format!("no ping socket: {e}"))?;
    socket.set_read_timeout(Some(Duration::from_secs(2))).map_err(|e| e.to_string())?;
    // The kernel fills in the checksum and the identifier.
    let message = [&[request, 0, 0, 0, 0, 0, 0, 7][..], &pattern(bytes)].concat();
    let mut answer = vec![0; 70_000];
    for _ in 0..3 {
        socket.send_to(&message, &SocketAddr::new(to, 0).into()).map_err(|e| e.to_string())?;
        if let Ok(n) = std::io::Read::read(&mut &socket, &mut answer) {
            let right = answer[0] == reply && answer[6..n] == message[6..];
            return Ok(if right { format!("{bytes} bytes came back") } else { format!("another answer: {n} bytes") });
        }
    }
    Ok("no answer".into())
}
