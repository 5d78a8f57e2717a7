//! The client inside: `net probe WHAT ARGUMENT...`. Prints one line; exits with 0 when it got an answer of any
//! kind, 1 when it did not understand, 2 when nothing came.
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tapline::sys::netlink::{LinkChange, Netlink};

use crate::harness;

mod dns;
pub mod flood;
mod frames;
mod hostile;
mod icmp;
mod tcp;
mod udp;

const PATIENCE: Duration = Duration::from_secs(10);

/// Does what the words say.
pub fn main(words: &[String]) -> ExitCode {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match probe(&words) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(line) => {
            eprintln!("probe {words:?}: {line}");
            ExitCode::from(2)
        }
    }
}

/// What the words ask for, or why not.
pub fn probe(words: &[&str]) -> Result<String, String> {
    match words {
        ["connect", to] => Ok(connect(to)),
        ["tcp-echo", to, bytes] => tcp_echo(to, number(bytes)?),
        ["tcp-many", to, count] => tcp_many(to, number(count)?),
        ["tcp-read-to-end", to] => tcp_read_to_end(to),
        ["tcp-half-close", to, bytes] => tcp::half_close(to, number(bytes)?),
        ["tcp-reset", to] => tcp::reset(to),
        ["tcp-urgent-out", to] => tcp::urgent_out(to),
        ["tcp-urgent-in", to] => tcp::urgent_in(to),
        ["tcp-stalled-in", to, second] => tcp::stalled_in(to, second),
        ["tcp-stalled-out", to, second, bytes] => tcp::stalled_out(to, second, number(bytes)?),
        ["tcp-keepalive", to, second] => tcp::keepalive(to, second),
        ["tcp-storm", to, count] => hostile::storm(to, number(count)?),
        ["tcp-write-and-keep", to, count] => hostile::write_and_keep(to, number(count)?),
        ["tcp-open-and-keep", to, count] => hostile::open_and_keep(to, number(count)?),
        ["udp-ask-and-keep", to] => hostile::ask_and_keep(to),
        ["udp-punch", to] => udp::punch(to),
        ["udp-two", closed, open, rounds] => udp::two(closed, open, number(rounds)?),
        ["udp-path-mtu", to, bytes] => udp::path_mtu(to, number(bytes)?),
        ["udp-hops", to, hops] => udp::hops(to, number(hops)? as u32),
        ["ping", to, bytes] => icmp::ping(to, number(bytes)?),
        ["dns", transport, to, name] => dns::ask(transport, to, name),
        ["frames", count] => frames::malformed(number(count)?),
        ["flood", attack, gateway, port, limit] => flood::main(attack, gateway, port, limit, false),
        ["flood", attack, gateway, port, limit, "dry"] => flood::main(attack, gateway, port, limit, true),
        ["flood-servers", sink, source] => flood::servers(sink, source),
        ["overlap"] => frames::overlap(),
        ["udp-echo", to, bytes] => udp_echo(to, number(bytes)?),
        ["udp-source", to, second] => udp_source(to, second),
        ["udp-error", to] => udp_error(to),
        ["ids"] => Ok(format!("{} {}", nix::unistd::getuid(), nix::unistd::getgid())),
        ["interfaces"] => interfaces(),
        ["addresses", name] => addresses(name),
        ["set-down", name] => set_down(name),
        ["resolve", name] => resolve(name),
        ["serve", port] => serve(port),
        ["source", to] => source(to),
        ["hold", to] => hold(to),
        ["held", bytes] => held(number(bytes)?),
        ["held-read-to-end"] => held_read_to_end(),
        ["print", path] => {
            std::fs::read_to_string(path).map(|t| t.trim_end().to_owned()).map_err(|e| format!("{path}: {e}"))
        }
        ["sleep", seconds] => {
            std::thread::sleep(Duration::from_secs(number(seconds)? as u64));
            Ok("slept".into())
        }
        _ => Err("unknown probe".into()),
    }
}

fn number(word: &str) -> Result<usize, String> {
    word.parse().map_err(|e| format!("{word}: {e}"))
}

fn address(word: &str) -> Result<SocketAddr, String> {
    word.parse().map_err(|e| format!("{word}: {e}"))
}

fn open(to: &str) -> Result<TcpStream, String> {
    let stream = TcpStream::connect_timeout(&address(to)?, PATIENCE).map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(|e| e.to_string())?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(|e| e.to_string())?;
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    Ok(stream)
}

/// How a connection attempt ends: `connected`, or the error's name.
fn connect(to: &str) -> String {
    let Ok(to) = address(to) else { return "bad address".into() };
    match TcpStream::connect_timeout(&to, Duration::from_secs(3)) {
        Ok(_) => "connected".into(),
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused => "refused".into(),
            ErrorKind::TimedOut => "timed out".into(),
            ErrorKind::HostUnreachable => "host unreachable".into(),
            ErrorKind::NetworkUnreachable => "network unreachable".into(),
            ErrorKind::PermissionDenied => "prohibited".into(),
            _ => error.to_string(),
        },
    }
}

/// A byte stream that says where each byte belongs.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 + i / 253) as u8).collect()
}

/// Send bytes, half-close, read them back to the end.
fn tcp_echo(to: &str, bytes: usize) -> Result<String, String> {
    let stream = open(to)?;
    let out = pattern(bytes);
    let mut writer = stream.try_clone().map_err(|e| e.to_string())?;
    let sent = out.clone();
    let thread = std::thread::spawn(move || writer.write_all(&sent).and_then(|()| writer.shutdown(Shutdown::Write)));
    let mut back = Vec::new();
    (&stream).read_to_end(&mut back).map_err(|e| format!("after {} bytes: {e}", back.len()))?;
    thread.join().map_err(|_| "the writer panicked")?.map_err(|e| e.to_string())?;
    Ok(if back == out { format!("{bytes} bytes came back") } else { format!("{} bytes came, others", back.len()) })
}

/// Hold many connections at once, a byte on each.
fn tcp_many(to: &str, count: usize) -> Result<String, String> {
    let mut held = Vec::new();
    for i in 0..count {
        let mut stream = open(to).map_err(|e| format!("connection {i}: {e}"))?;
        stream.write_all(&[i as u8]).map_err(|e| format!("connection {i}: {e}"))?;
        held.push(stream);
    }
    for (i, stream) in held.iter_mut().enumerate() {
        let mut byte = [0];
        stream.read_exact(&mut byte).map_err(|e| format!("connection {i}: {e}"))?;
        if byte[0] != i as u8 {
            return Err(format!("connection {i} got another's byte"));
        }
    }
    Ok(format!("{} open", held.len()))
}

/// Read until the other side ends, however it does.
fn tcp_read_to_end(to: &str) -> Result<String, String> {
    read_to_end(&mut open(to)?)
}

fn read_to_end(stream: &mut TcpStream) -> Result<String, String> {
    let mut back = Vec::new();
    match stream.read_to_end(&mut back) {
        Ok(n) => Ok(format!("{n} bytes, then end")),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(format!("{} bytes, then reset", back.len())),
        Err(error) => Err(error.to_string()),
    }
}

fn udp_socket(to: SocketAddr) -> Result<UdpSocket, String> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).map_err(|e| e.to_string())?;
    socket.set_read_timeout(Some(Duration::from_secs(3))).map_err(|e| e.to_string())?;
    Ok(socket)
}

/// A datagram there and back, from the address it was sent to.
fn udp_echo(to: &str, bytes: usize) -> Result<String, String> {
    let to = address(to)?;
    let socket = udp_socket(to)?;
    let out = pattern(bytes);
    let mut buffer = vec![0; 70_000];
    for _ in 0..3 {
        socket.send_to(&out, to).map_err(|e| e.to_string())?;
        if let Ok((n, from)) = socket.recv_from(&mut buffer) {
            if from != to {
                return Err(format!("the answer came from {from}"));
            }
            return Ok(if buffer[..n] == out[..] {
                format!("{n} bytes came back")
            } else {
                format!("{n} other bytes")
            });
        }
    }
    Err("no answer".into())
}

/// The source that two servers saw: they answer with it.
fn udp_source(first: &str, second: &str) -> Result<String, String> {
    let (first, second) = (address(first)?, address(second)?);
    let socket = udp_socket(first)?;
    let mut seen = Vec::new();
    for to in [first, second] {
        let mut buffer = [0; 100];
        socket.send_to(b"who am I", to).map_err(|e| e.to_string())?;
        let (n, _) = socket.recv_from(&mut buffer).map_err(|e| e.to_string())?;
        seen.push(String::from_utf8_lossy(&buffer[..n]).into_owned());
    }
    Ok(seen.join(" "))
}

/// What a connected socket is told of a datagram nobody takes.
fn udp_error(to: &str) -> Result<String, String> {
    let to = address(to)?;
    let socket = udp_socket(to)?;
    socket.connect(to).map_err(|e| e.to_string())?;
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        if let Err(error) = socket.send(b"anyone?") {
            return Ok(format!("{:?}", error.kind()));
        }
        let mut buffer = [0; 100];
        socket.set_read_timeout(Some(Duration::from_millis(300))).map_err(|e| e.to_string())?;
        match socket.recv(&mut buffer) {
            Ok(_) => return Ok("an answer".into()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Ok(format!("{:?}", error.kind())),
        }
    }
    Err("no word of it".into())
}

/// The addresses that the C library finds for a name.
fn resolve(name: &str) -> Result<String, String> {
    use std::net::ToSocketAddrs;
    let mut found: Vec<String> =
        (name, 0).to_socket_addrs().map_err(|e| e.to_string())?.map(|a| a.ip().to_string()).collect();
    found.sort();
    found.dedup();
    Ok(found.join(" "))
}

/// Echo servers for TCP and UDP at every address, as long as this process lives.
fn serve(port: &str) -> Result<String, String> {
    let any = if harness::host_has_ipv6() { "[::]" } else { "0.0.0.0" };
    let at = format!("{any}:{port}");
    harness::tcp_server(&at, harness::echo);
    harness::udp_echo(&at);
    Ok("serving".into())
}

fn netlink() -> Result<Netlink, String> {
    Netlink::open().map_err(|e| e.to_string())
}

/// The names of the interfaces.
fn interfaces() -> Result<String, String> {
    let links = netlink()?.links().map_err(|e| e.to_string())?;
    Ok(links.into_iter().map(|l| l.name).collect::<Vec<_>>().join(" "))
}

/// The addresses of an interface, but for IPv6's link-local ones; then its MTU.
fn addresses(name: &str) -> Result<String, String> {
    let mut netlink = netlink()?;
    let link = netlink.link(name).map_err(|e| e.to_string())?;
    let mut said: Vec<String> = netlink
        .addresses()
        .map_err(|e| e.to_string())?
        .into_iter()
        .filter(|a| a.index == link.index && !matches!(a.ip, std::net::IpAddr::V6(ip) if ip.is_unicast_link_local()))
        .map(|a| format!("{}/{}", a.ip, a.prefix))
        .collect();
    said.sort();
    said.push(format!("mtu {}", link.mtu));
    Ok(said.join(" "))
}

/// Take an interface down.
fn set_down(name: &str) -> Result<String, String> {
    let mut netlink = netlink()?;
    let link = netlink.link(name).map_err(|e| e.to_string())?;
    match netlink.change_link(link.index, &LinkChange { up: Some(false), ..LinkChange::default() }) {
        Ok(()) => Ok("down".into()),
        Err(error) if error.errno() == Some(libc::EPERM) => Ok("not permitted".into()),
        Err(error) => Err(error.to_string()),
    }
}

static HELD: Mutex<Option<TcpStream>> = Mutex::new(None);

/// Connect, and keep the connection for [`held`].
fn hold(to: &str) -> Result<String, String> {
    let stream = TcpStream::connect(to).map_err(|e| format!("connect {to}: {e}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).map_err(|e| e.to_string())?;
    *HELD.lock().map_err(|e| e.to_string())? = Some(stream);
    Ok("held".into())
}

/// Send bytes over the connection that is kept, to a server that sends them back.
fn held(bytes: usize) -> Result<String, String> {
    let mut held = HELD.lock().map_err(|e| e.to_string())?;
    let stream = held.as_mut().ok_or("nothing is held")?;
    let mut back = vec![0; bytes];
    stream.write_all(&vec![7; bytes]).and_then(|()| stream.read_exact(&mut back)).map_err(|e| e.to_string())?;
    match back.iter().all(|byte| *byte == 7) {
        true => Ok(format!("{bytes} bytes came back")),
        false => Err("something else came back".into()),
    }
}

/// How the connection that is kept ends.
fn held_read_to_end() -> Result<String, String> {
    let mut held = HELD.lock().map_err(|e| e.to_string())?;
    read_to_end(held.as_mut().ok_or("nothing is held")?)
}

/// Which address would be the source of a packet there.
fn source(to: &str) -> Result<String, String> {
    let socket = UdpSocket::bind("0.0.0.0:0").map_err(|e| e.to_string())?;
    socket
        .connect((to, 9))
        .and_then(|()| socket.local_addr())
        .map(|own| own.ip().to_string())
        .map_err(|e| e.to_string())
}
