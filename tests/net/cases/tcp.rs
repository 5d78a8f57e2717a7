//! TCP: bytes, ends and refusals.
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use super::OPEN;
use crate::harness::*;

cases! {
    tcp_reaches_the_hosts_loopback_when_allowed,
    tcp_reaches_the_hosts_loopback_over_ipv6,
    bytes_pass_at_small_mtu,
    the_packet_link_carries_bytes,
    loopback_is_closed_by_default,
    refused_connection_is_refused_inside,
    metadata_and_loopback_destinations_are_refused,
    a_server_that_resets_is_seen_to_reset,
    many_connections_at_once,
}

fn tcp_reaches_the_hosts_loopback_when_allowed() -> Result<(), Fault> {
    let server = tcp_server("127.0.0.1:0", echo);
    let said = probe(OPEN, &["tcp-echo", &seen_from_inside(server), "3000000"])?;
    same("echo", said.as_str(), "3000000 bytes came back")
}

fn tcp_reaches_the_hosts_loopback_over_ipv6() -> Result<(), Fault> {
    if !host_has_ipv6() {
        let said = probe(OPEN, &["connect", "[fd00::2]:9"])?;
        return holds(
            format!("without IPv6 on the host it is unreachable at once: {said}"),
            said.contains("unreachable"),
        );
    }
    let server = tcp_server("[::1]:0", echo);
    let said = probe(OPEN, &["tcp-echo", &seen_from_inside(server), "3000000"])?;
    same("echo", said.as_str(), "3000000 bytes came back")
}

fn bytes_pass_at_small_mtu() -> Result<(), Fault> {
    let server = tcp_server("127.0.0.1:0", echo);
    for mtu in ["1280", "1500", "9000"] {
        let options = ["--host-loopback", "--mtu", mtu];
        let said = probe(&options, &["tcp-echo", &seen_from_inside(server), "1000000"])?;
        same(mtu, said.as_str(), "1000000 bytes came back")?;
    }
    Ok(())
}

fn the_packet_link_carries_bytes() -> Result<(), Fault> {
    let server = tcp_server("127.0.0.1:0", echo);
    for mtu in ["1500", "65520"] {
        let options = ["--host-loopback", "--link", "packet", "--mtu", mtu];
        let said = probe(&options, &["tcp-echo", &seen_from_inside(server), "3000000"])?;
        same(mtu, said.as_str(), "3000000 bytes came back")?;
    }
    Ok(())
}

fn loopback_is_closed_by_default() -> Result<(), Fault> {
    let server = tcp_server("127.0.0.1:0", echo);
    let said = probe(&[], &["connect", &seen_from_inside(server)])?;
    holds(format!("the host's loopback must not be reached: {said}"), said != "connected")
}

fn refused_connection_is_refused_inside() -> Result<(), Fault> {
    // A port that was ours a moment ago and is nobody's now.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).map_err(|e| e.to_string())?;
    let said = probe(OPEN, &["connect", &seen_from_inside(closed)])?;
    same("a closed port", said.as_str(), "refused")
}

fn metadata_and_loopback_destinations_are_refused() -> Result<(), Fault> {
    for to in ["169.254.169.254:80", "100.100.100.200:80", "[fd00:ec2::254]:80"] {
        let began = Instant::now();
        let said = probe(OPEN, &["connect", to])?;
        holds(format!("{to}: {said}"), said != "connected" && said != "timed out")?;
        holds(format!("{to}: answered at once"), began.elapsed() < Duration::from_secs(2))?;
    }
    Ok(())
}

fn a_server_that_resets_is_seen_to_reset() -> Result<(), Fault> {
    let server = tcp_server("127.0.0.1:0", |mut stream| {
        let _ = stream.write_all(b"some");
        let _ = stream.flush();
        std::thread::sleep(Duration::from_millis(200));
        // Unread bytes at close make a reset of it, but a linger of zero is surer.
        let socket = socket2::SockRef::from(&stream);
        let _ = socket.set_linger(Some(Duration::ZERO));
    });
    let said = probe(OPEN, &["tcp-read-to-end", &seen_from_inside(server)])?;
    same("how it ended", said.as_str(), "4 bytes, then reset")?;
    let server = tcp_server("127.0.0.1:0", |mut stream| {
        let _ = stream.write_all(b"some");
    });
    let said = probe(OPEN, &["tcp-read-to-end", &seen_from_inside(server)])?;
    same("how it ended", said.as_str(), "4 bytes, then end")
}

fn many_connections_at_once() -> Result<(), Fault> {
    let server = tcp_server("127.0.0.1:0", |mut stream| {
        let mut byte = [0];
        while stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte)).is_ok() {}
    });
    let said = probe(OPEN, &["tcp-many", &seen_from_inside(server), "400"])?;
    same("connections", said.as_str(), "400 open")
}
