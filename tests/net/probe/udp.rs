//! What a UDP client may do besides an echo.
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrIn, getsockopt, recvmsg, setsockopt, sockopt::IpMtu, sockopt::Ipv4RecvErr,
};
use socket2::SockRef;

use super::{address, pattern, udp_socket};

/// Write to one; everything that comes until `end` does, with its sender.
pub fn punch(to: &str) -> Result<String, String> {
    let to = address(to)?;
    let socket = udp_socket(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(20))).map_err(|e| e.to_string())?;
    socket.send_to(b"here I am", to).map_err(|e| e.to_string())?;
    let mut said = Vec::new();
    loop {
        let mut buffer = [0; 100];
        let (n, from) = socket.recv_from(&mut buffer).map_err(|e| format!("after {said:?}: {e}"))?;
        match &buffer[..n] {
            b"end" => return Ok(said.join(" ")),
            text => said.push(format!("{}@{from}", String::from_utf8_lossy(text))),
        }
    }
}

/// From one socket, in turns, to a port that is closed and to one that answers: every answer must come.
pub fn two(closed: &str, open: &str, rounds: usize) -> Result<String, String> {
    let (closed, open) = (address(closed)?, address(open)?);
    let socket = udp_socket(open)?;
    socket.set_read_timeout(Some(Duration::from_secs(10))).map_err(|e| e.to_string())?;
    for round in 0..rounds {
        let text = format!("round {round}");
        let mut buffer = [0; 100];
        socket.send_to(b"anyone?", closed).map_err(|e| format!("{text}: {e}"))?;
        socket.send_to(text.as_bytes(), open).map_err(|e| format!("{text}: {e}"))?;
        let (n, from) = socket.recv_from(&mut buffer).map_err(|e| format!("{text}: {e}"))?;
        if from != open || &buffer[..n] != text.as_bytes() {
            return Err(format!("{text}: something else came from {from}"));
        }
    }
    Ok(format!("{rounds} answers"))
}

/// Send with the don't-fragment bit, as Linux does by itself, until the kernel knows a smaller path MTU; then have a
/// datagram of that size, now in fragments, come back.
pub fn path_mtu(to: &str, bytes: usize) -> Result<String, String> {
    let to = address(to)?;
    let socket = udp_socket(to)?;
    socket.connect(to).map_err(|e| e.to_string())?;
    socket.set_read_timeout(Some(Duration::from_millis(500))).map_err(|e| e.to_string())?;
    let before = getsockopt(&socket, IpMtu).map_err(|e| e.to_string())?;
    let out = pattern(bytes);
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        // EMSGSIZE is the news that is waited for.
        let _ = socket.send(&out);
        let mut buffer = vec![0; 70_000];
        if let Ok(n) = socket.recv(&mut buffer) {
            let after = getsockopt(&socket, IpMtu).map_err(|e| e.to_string())?;
            let right = buffer[..n] == out[..];
            return Ok(format!(
                "path MTU {before}, then {after}; {n} bytes, {}",
                if right { "right" } else { "wrong" }
            ));
        }
    }
    Err("no answer".into())
}

/// Send with a hop limit; who says that it was too low.
pub fn hops(to: &str, hops: u32) -> Result<String, String> {
    let to = address(to)?;
    let socket = UdpSocket::bind("0.0.0.0:0").map_err(|e| e.to_string())?;
    setsockopt(&socket, Ipv4RecvErr, &true).map_err(|e| e.to_string())?;
    SockRef::from(&socket).set_ttl_v4(hops).map_err(|e| e.to_string())?;
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        // An error that is pending is reported here too.
        let _ = socket.send_to(b"how far?", to);
        let round = Instant::now() + Duration::from_secs(1);
        while Instant::now() < round {
            if let Some(said) = queued_error(&socket)? {
                return Ok(said);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Err("no word of it".into())
}

fn queued_error(socket: &UdpSocket) -> Result<Option<String>, String> {
    let mut space = cmsg_space!(libc::sock_extended_err, libc::sockaddr_in);
    let mut buffer = [0; 100];
    let mut parts = [std::io::IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = match recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
        Ok(message) => message,
        Err(nix::Error::EAGAIN) => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    for control in message.cmsgs().map_err(|e| e.to_string())? {
        if let ControlMessageOwned::Ipv4RecvErr(error, Some(offender)) = control {
            let who: SocketAddr = std::net::SocketAddrV4::from(SockaddrIn::from(offender)).into();
            return Ok(Some(format!("type {} code {} from {}", error.ee_type, error.ee_code, who.ip())));
        }
    }
    Ok(None)
}
