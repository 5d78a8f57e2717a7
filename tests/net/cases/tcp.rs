//! TCP: bytes, ends and refusals.
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use super::OPEN;
use crate::harness::*;
use crate::probe::pattern;
use crate::world;

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
    half_closes_pass_both_ways,
    a_sandbox_that_resets_is_seen_to_reset,
    urgent_data_is_not_lost,
    a_reader_that_waits_gets_all,
    a_server_that_waits_gets_all,
    no_answer_is_no_answer,
    keepalive_asked_for_inside_is_kept_outside,
    a_world_without_routes_is_unreachable_at_once,
    what_the_host_gains_can_be_used,
    a_host_without_ipv6_is_no_error,
    the_source_on_the_host_can_be_chosen,
    the_gateways_address_is_the_host,
    ;
    without_routes,
    gains_ipv6,
    no_ipv6,
    chooses_source,
    gateway_is_host,
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
        let options = ["--host-loopback", "--link-kind", "packet", "--mtu", mtu];
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
    let closed = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).map_err(|e| e.to_string())?;
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
        let socket = SockRef::from(&stream);
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
    use nix::sys::resource::{Resource, getrlimit};
    // Each takes a descriptor of the client, of the gateway and of this process.
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|e| e.to_string())?;
    let count = limit.saturating_sub(500).min(10_000).to_string();
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
    let server = listener.local_addr().map_err(|e| e.to_string())?;
    // One thread for all: whoever is let in has its byte sent back, and stays.
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let mut byte = [0];
            if stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte)).is_ok() {
                held.push(stream);
            }
        }
    });
    let said = probe(OPEN, &["tcp-many", &seen_from_inside(server), &count])?;
    same("connections", said, format!("{count} open"))
}

/// The loopback addresses of the families that the host has, with any port.
fn loopbacks() -> Vec<&'static str> {
    if host_has_ipv6() { vec!["127.0.0.1:0", "[::1]:0"] } else { vec!["127.0.0.1:0"] }
}

fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = stream.set_read_timeout(Some(Duration::from_secs(30)));
    let _ = stream.read_to_end(&mut bytes);
    bytes
}

fn half_closes_pass_both_ways() -> Result<(), Fault> {
    for at in loopbacks() {
        // The client ends first: what comes after its end still arrives.
        let (server, all) = tcp_once(at, |mut stream| {
            let got = read_all(&mut stream);
            let written = stream.write_all(&got);
            (got.len(), written.is_ok())
        });
        let said = probe(OPEN, &["tcp-echo", &seen_from_inside(server), "300000"])?;
        same("the client first", said.as_str(), "300000 bytes came back")?;
        same("the server's side", told(&all)?, (300_000, true))?;
        // The server ends first.
        let (server, all) = tcp_once(at, |mut stream| {
            let written = stream.write_all(&pattern(200_000)).and_then(|()| stream.shutdown(Shutdown::Write));
            (written.is_ok(), read_all(&mut stream) == pattern(300_000))
        });
        let said = probe(OPEN, &["tcp-half-close", &seen_from_inside(server), "300000"])?;
        same("the server first", said.as_str(), "200000 bytes read before 300000 were written")?;
        same("the server's side", told(&all)?, (true, true))?;
    }
    Ok(())
}

fn a_sandbox_that_resets_is_seen_to_reset() -> Result<(), Fault> {
    for at in loopbacks() {
        let (server, end) = tcp_once(at, |mut stream| {
            let _ = stream.set_read_timeout(Some(Duration::from_secs(30)));
            let mut some = [0; 4];
            stream.read_exact(&mut some).and_then(|()| stream.write_all(b"!")).map_err(|e| e.kind())?;
            stream.read(&mut some).map_err(|e| e.kind())
        });
        same("the client", probe(OPEN, &["tcp-reset", &seen_from_inside(server)])?.as_str(), "reset")?;
        same("the server", told(&end)?, Err(std::io::ErrorKind::ConnectionReset))?;
    }
    Ok(())
}

fn urgent_data_is_not_lost() -> Result<(), Fault> {
    let (server, all) = tcp_once("127.0.0.1:0", |mut stream| {
        let _ = SockRef::from(&stream).set_out_of_band_inline(true);
        text(&read_all(&mut stream))
    });
    probe(OPEN, &["tcp-urgent-out", &seen_from_inside(server)])?;
    same("out", told(&all)?.as_str(), "ab!cd")?;
    let (server, sent) = tcp_once("127.0.0.1:0", |mut stream| {
        let mut go = [0; 2];
        stream.read_exact(&mut go)?;
        stream.write_all(b"ab")?;
        SockRef::from(&stream).send_out_of_band(b"!")?;
        stream.write_all(b"cd")
    });
    let said = probe(OPEN, &["tcp-urgent-in", &seen_from_inside(server)])?;
    told(&sent)?.map_err(|e| e.to_string())?;
    same("in", said.as_str(), "ab!cd")
}

fn a_reader_that_waits_gets_all() -> Result<(), Fault> {
    let stalled = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&stalled);
    let (server, done) = tcp_once("127.0.0.1:0", move |mut stream| {
        let out = pattern(40_000_000);
        let _ = stream.set_write_timeout(Some(Duration::from_secs(1)));
        let mut sent = 0;
        while sent < out.len() {
            match stream.write(&out[sent..]) {
                Ok(n) => sent += n,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => set.store(true, Ordering::Release),
                Err(_) => break,
            }
        }
        sent
    });
    let is_stalled = Arc::clone(&stalled);
    let (second, _) = tcp_once("127.0.0.1:0", move |mut stream| {
        let _ = until("the first server is stalled", 60, || is_stalled.load(Ordering::Acquire));
        stream.write_all(b"!")
    });
    let said = probe(OPEN, &["tcp-stalled-in", &seen_from_inside(server), &seen_from_inside(second)])?;
    same("sent", told(&done)?, 40_000_000)?;
    holds("the server had to wait", stalled.load(Ordering::Acquire))?;
    same("received", said.as_str(), "40000000 bytes, as they were")
}

fn a_server_that_waits_gets_all() -> Result<(), Fault> {
    let (second, begin) = tcp_once("127.0.0.1:0", |_| ());
    let (server, all) = tcp_once("127.0.0.1:0", move |mut stream| {
        let begun = begin.recv_timeout(Duration::from_secs(60)).is_ok();
        let got = read_all(&mut stream);
        let _ = stream.write_all(b"!");
        (begun, got == pattern(40_000_000))
    });
    let (server, second) = (seen_from_inside(server), seen_from_inside(second));
    let said = probe(OPEN, &["tcp-stalled-out", &server, &second, "40000000"])?;
    same("the client", said.as_str(), "stalled, then all went")?;
    same("the server", told(&all)?, (true, true))
}

fn no_answer_is_no_answer() -> Result<(), Fault> {
    // A listener whose queue is full answers no SYN.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).map_err(|e| e.to_string())?;
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    socket.bind(&any.into()).and_then(|()| socket.listen(0)).map_err(|e| e.to_string())?;
    let listener = TcpListener::from(socket);
    let server = listener.local_addr().map_err(|e| e.to_string())?;
    let mut waiting = Vec::new();
    until("the queue is full", 30, || match TcpStream::connect_timeout(&server, Duration::from_millis(300)) {
        Ok(stream) => {
            waiting.push(stream);
            false
        }
        Err(_) => true,
    })?;
    same("inside", probe(OPEN, &["connect", &seen_from_inside(server)])?.as_str(), "timed out")
}

/// The kernel's list of TCP sockets (proc(5)): is there one to this port of 127.0.0.1 whose keepalive timer runs?
fn has_keepalive_timer(port: u16) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(2) == Some(&format!("0100007F:{port:04X}").as_str())
            && fields.get(5).is_some_and(|timer| timer.starts_with("02:"))
    })
}

fn keepalive_asked_for_inside_is_kept_outside() -> Result<(), Fault> {
    let (server, _held) = tcp_once("127.0.0.1:0", |mut stream| read_all(&mut stream));
    let (second, seen) = tcp_once("127.0.0.1:0", move |mut stream| {
        let seen = until("a keepalive timer", 20, || has_keepalive_timer(server.port()));
        let _ = stream.write_all(b"!");
        seen
    });
    holds("not before it is asked for", !has_keepalive_timer(server.port()))?;
    probe(OPEN, &["tcp-keepalive", &seen_from_inside(server), &seen_from_inside(second)])?;
    told(&seen)?
}

const NO_NETWORK: &[&str] = &["--net", "none"];

fn a_world_without_routes_is_unreachable_at_once() -> Result<(), Fault> {
    world::run(NO_NETWORK, "without_routes")
}

fn without_routes() -> Result<(), Fault> {
    let mut console = sandbox("without-routes", &[])?;
    for to in ["192.0.2.7:80", "[2001:db8::7]:80"] {
        let said = console.ask(&["connect", to])?;
        holds(format!("{to}: {said}"), ["network unreachable", "host unreachable"].contains(&said.as_str()))?;
    }
    let said = console.ask(&["udp-hops", "192.0.2.7:80", "64"])?;
    same("UDP, network unreachable (RFC 792)", said.as_str(), "type 3 code 0 from 10.0.2.2")
}

fn what_the_host_gains_can_be_used() -> Result<(), Fault> {
    world::run(NO_NETWORK, "gains_ipv6")
}

fn gains_ipv6() -> Result<(), Fault> {
    let mut console = sandbox("gains", &[])?;
    for (ip, at) in [("192.0.2.1", "192.0.2.1:4000"), ("2001:db8::1", "[2001:db8::1]:4000")] {
        let said = console.ask(&["connect", at])?;
        holds(format!("{at}, which nobody has: {said}"), said.ends_with("unreachable"))?;
        world::add_address(ip)?;
        tcp_server(at, echo);
        // A kernel that was told that it is unreachable may remember it for a moment.
        until(&format!("{at} is reached"), 10, || console.ask(&["connect", at]).is_ok_and(|s| s == "connected"))?;
        same(at, console.ask(&["tcp-echo", at, "1000000"])?.as_str(), "1000000 bytes came back")?;
    }
    Ok(())
}

fn a_host_without_ipv6_is_no_error() -> Result<(), Fault> {
    world::run(NO_NETWORK, "no_ipv6")
}

fn no_ipv6() -> Result<(), Fault> {
    std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").map_err(|e| e.to_string())?;
    holds("the host has none", !host_has_ipv6())?;
    let server = tcp_server("127.0.0.1:0", echo);
    let mut console = sandbox("without-ipv6", OPEN)?;
    same("inside", console.ask(&["addresses", "tap0"])?.as_str(), "10.0.2.100/24 fd00::100/64 mtu 65520")?;
    for to in ["[2001:db8::7]:80", "[fd00::2]:80"] {
        let said = console.ask(&["connect", to])?;
        holds(format!("{to}: {said}"), said.ends_with("unreachable"))?;
    }
    let said = console.ask(&["tcp-echo", &seen_from_inside(server), "1000"])?;
    same("IPv4 works", said.as_str(), "1000 bytes came back")
}

fn the_source_on_the_host_can_be_chosen() -> Result<(), Fault> {
    world::run(NO_NETWORK, "chooses_source")
}

fn chooses_source() -> Result<(), Fault> {
    for ip in ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"] {
        world::add_address(ip)?;
    }
    for (at, source) in [("192.0.2.1:0", "192.0.2.2"), ("[2001:db8::1]:0", "2001:db8::2")] {
        let (server, peer) = tcp_once(at, |stream| {
            let peer = stream.peer_addr().map(|a| a.ip().to_string()).ok();
            echo(stream);
            peer
        });
        let options = ["--outbound-addr", source, "--outbound-interface", "lo"];
        let said = probe(&options, &["tcp-echo", &server.to_string(), "1000"])?;
        same(at, said.as_str(), "1000 bytes came back")?;
        same("the source that the server saw", told(&peer)?, Some(source.to_owned()))?;
    }
    Ok(())
}

fn the_gateways_address_is_the_host() -> Result<(), Fault> {
    world::run(&["--subnet", "10.7.0.0/24"], "gateway_is_host")
}

fn gateway_is_host() -> Result<(), Fault> {
    let own = tcp_server("10.7.0.100:0", echo);
    let loopback = tcp_server("127.0.0.1:0", echo);
    let own6 = tcp_server("[fd00::100]:0", echo);
    let mut console = sandbox("asks-host", &["--subnet6", "fd77::/64"])?;
    same("the host's own address", console.ask(&["connect", &seen_from_inside(own)])?.as_str(), "connected")?;
    let to6 = format!("[fd77::2]:{}", own6.port());
    same("the same over IPv6", console.ask(&["connect", &to6])?.as_str(), "connected")?;
    let said = console.ask(&["connect", &seen_from_inside(loopback)])?;
    same("nothing of its loopback", said.as_str(), "refused")
}
