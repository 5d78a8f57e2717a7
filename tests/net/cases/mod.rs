//! What is shown, one function each.
use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::harness::*;

macro_rules! cases {
    ($($name:ident,)+) => {
        /// Every case with its name.
        pub fn all() -> Vec<(&'static str, Case)> {
            vec![$((stringify!($name), $name as Case),)+]
        }
    };
}

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
    udp_of_every_size_comes_back,
    udp_keeps_its_source_for_every_destination,
    udp_to_a_closed_port_is_told,
    exit_status_is_the_commands,
    signals_go_through,
    killing_tapline_ends_the_command,
    names_of_the_gateway_resolve,
    hostname_and_files_of_names,
    none_has_only_lo,
}

const OPEN: &[&str] = &["--host-loopback"];

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

fn udp_of_every_size_comes_back() -> Result<(), Fault> {
    let mut servers = vec![udp_echo("127.0.0.1:0")];
    if host_has_ipv6() {
        servers.push(udp_echo("[::1]:0"));
    }
    for server in servers {
        for mtu in ["1500", "65520"] {
            for size in ["0", "1", "1400", "1473", "9000", "65507"] {
                if server.is_ipv6() && size == "65507" {
                    continue;
                }
                let options = ["--host-loopback", "--mtu", mtu];
                let said = probe(&options, &["udp-echo", &seen_from_inside(server), size])?;
                same(&format!("{server} MTU {mtu}"), said, format!("{size} bytes came back"))?;
            }
        }
    }
    Ok(())
}

fn udp_keeps_its_source_for_every_destination() -> Result<(), Fault> {
    let tell = || {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a loopback port is free");
        let address = socket.local_addr().expect("it is bound");
        std::thread::spawn(move || {
            let mut buffer = [0; 100];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(from.to_string().as_bytes(), from);
            }
        });
        seen_from_inside(address)
    };
    let said = probe(OPEN, &["udp-source", &tell(), &tell()])?;
    let seen: Vec<&str> = said.split(' ').collect();
    same("the source that two servers saw (RFC 4787, REQ-1)", seen.first(), seen.get(1))
}

fn udp_to_a_closed_port_is_told() -> Result<(), Fault> {
    let closed: SocketAddr = UdpSocket::bind("127.0.0.1:0").and_then(|s| s.local_addr()).map_err(|e| e.to_string())?;
    let said = probe(OPEN, &["udp-error", &seen_from_inside(closed)])?;
    same("port unreachable", said.as_str(), "ConnectionRefused")
}

fn exit_status_is_the_commands() -> Result<(), Fault> {
    for (script, status) in [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 128 + 15), ("kill -KILL $$", 128 + 9)] {
        for mode in ["private", "none", "host"] {
            let out =
                command(&["run", "-q", "--net", mode, "--", "sh", "-c", script]).output().map_err(|e| e.to_string())?;
            same(&format!("{script} in {mode}: {}", text(&out.stderr)), out.status.code(), Some(status))?;
        }
    }
    let out = command(&["run", "--", "/no/such/program"]).output().map_err(|e| e.to_string())?;
    same("not found", out.status.code(), Some(127))?;
    holds(text(&out.stderr), text(&out.stderr).contains("/no/such/program"))?;
    let out = command(&["run", "--", "/etc/passwd"]).output().map_err(|e| e.to_string())?;
    same("not executable", out.status.code(), Some(126))
}

fn signals_go_through() -> Result<(), Fault> {
    let script = "trap 'echo told; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    let mut child =
        Running(command(&["run", "--", "sh", "-c", script]).stdout(Stdio::piped()).spawn().map_err(|e| e.to_string())?);
    let mut out = child.0.stdout.take().expect("it is piped");
    let mut ready = [0; 6];
    out.read_exact(&mut ready).map_err(|e| e.to_string())?;
    signal(child.0.id(), libc::SIGTERM)?;
    let mut rest = String::new();
    out.read_to_string(&mut rest).map_err(|e| e.to_string())?;
    same("what it said", rest.trim(), "told")?;
    same("status", child.0.wait().map_err(|e| e.to_string())?.code(), Some(3))
}

fn signal(pid: u32, signal: i32) -> Result<(), Fault> {
    let out = std::process::Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).output();
    holds("kill", out.is_ok_and(|o| o.status.success()))
}

fn killing_tapline_ends_the_command() -> Result<(), Fault> {
    // A file that CMD and its children hold open: when all are gone its lock can be had.
    let path = runtime_dir().join("held");
    for pid_mode in ["private", "host"] {
        let path = path.with_extension(pid_mode);
        let file = std::fs::File::create(&path).map_err(|e| e.to_string())?;
        let script = match pid_mode {
            "private" => {
                format!("exec 9>{0}; flock 9; sleep 1000 & echo ready; setsid sleep 1000; wait", path.display())
            }
            _ => format!("exec 9>{0}; flock 9; echo ready; exec sleep 1000", path.display()),
        };
        let mut child = Running(
            command(&["run", "--pid", pid_mode, "--", "sh", "-c", &script])
                .stdout(Stdio::piped())
                .spawn()
                .map_err(|e| e.to_string())?,
        );
        let mut ready = [0; 6];
        child.0.stdout.take().expect("it is piped").read_exact(&mut ready).map_err(|e| e.to_string())?;
        holds("held while it runs", file.try_lock().is_err())?;
        child.0.kill().map_err(|e| e.to_string())?;
        let status = child.0.wait().map_err(|e| e.to_string())?;
        same("killed", status.signal(), Some(9))?;
        until("everything it started is gone", 5, || file.try_lock().is_ok())?;
        let _ = file.unlock();
    }
    Ok(())
}

fn names_of_the_gateway_resolve() -> Result<(), Fault> {
    for name in ["host.tapline.internal", "host.docker.internal", "host.containers.internal"] {
        let said = probe(&[], &["resolve", name])?;
        holds(format!("{name}: {said}"), said.split(' ').any(|a| a == "10.0.2.2"))?;
    }
    Ok(())
}

fn hostname_and_files_of_names() -> Result<(), Fault> {
    let options = ["--hostname", "box", "--dns-search", "example.test", "--add-host", "db:10.9.8.7"];
    let resolv = probe(&options, &["print", "/etc/resolv.conf"])?;
    holds(
        format!("resolv.conf: {resolv}"),
        resolv.contains("nameserver 10.0.2.3") && resolv.contains("search example.test"),
    )?;
    same("hostname", probe(&options, &["print", "/proc/sys/kernel/hostname"])?.as_str(), "box")?;
    same("/etc/hostname", probe(&options, &["print", "/etc/hostname"])?.as_str(), "box")?;
    same("--add-host", probe(&options, &["resolve", "db"])?.as_str(), "10.9.8.7")
}

fn none_has_only_lo() -> Result<(), Fault> {
    let said = probe(&["--net", "none"], &["print", "/proc/net/dev"])?;
    let interfaces: Vec<&str> = said.lines().filter_map(|l| l.split_once(':')).map(|(name, _)| name.trim()).collect();
    same("interfaces", interfaces, vec!["lo"])?;
    let said = probe(&["--net", "none"], &["connect", "192.0.2.1:80"])?;
    same("outside", said.as_str(), "network unreachable")
}
