//! Names: the sandbox's own files, and the forwarder.
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use crate::harness::*;
use crate::world;

cases! {
    names_of_the_gateway_resolve,
    hostname_and_files_of_names,
    options_for_names_are_written_down,
    without_dns_there_is_none,
    names_go_to_the_hosts_resolvers,

    ;
    forwards_names,
}

fn names_of_the_gateway_resolve() -> Result<(), Fault> {
    for name in ["host.tapline.internal", "host.docker.internal", "host.containers.internal"] {
        let said = probe(&[], &["resolve", name])?;
        holds(format!("{name}: {said}"), said.split(' ').any(|a| a == "10.0.2.2"))?;
    }
    Ok(())
}

fn hostname_and_files_of_names() -> Result<(), Fault> {
    let own = std::fs::read_to_string("/proc/sys/kernel/hostname").map_err(|e| e.to_string())?;
    let in_host_mode = probe(&["-q", "--net", "host"], &["print", "/proc/sys/kernel/hostname"])?;
    same("with the host's network, its name", in_host_mode.as_str(), own.trim_end())?;
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

fn options_for_names_are_written_down() -> Result<(), Fault> {
    let options = ["--dns", "192.0.2.53", "--dns", "2001:db8::53", "--dns-option", "ndots:2", "--dns-search", "."];
    let resolv = probe(&options, &["print", "/etc/resolv.conf"])?;
    let lines: Vec<&str> = resolv.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).collect();
    holds(resolv.clone(), lines.contains(&"nameserver 192.0.2.53") && lines.contains(&"nameserver 2001:db8::53"))?;
    holds(resolv.clone(), lines.contains(&"options ndots:2") && !resolv.contains("10.0.2.3"))?;
    holds(format!("no search domain: {resolv}"), !lines.iter().any(|l| l.starts_with("search") && *l != "search ."))?;
    let options = ["--add-host", "six:2001:db8::7", "--add-host", "up:host-gateway"];
    same("an IPv6 address", probe(&options, &["resolve", "six"])?.as_str(), "2001:db8::7")?;
    let said = probe(&options, &["resolve", "up"])?;
    holds(format!("host-gateway: {said}"), said.split(' ').any(|a| a == "10.0.2.2"))
}

fn without_dns_there_is_none() -> Result<(), Fault> {
    let resolv = probe(&["--no-dns"], &["print", "/etc/resolv.conf"])?;
    holds(format!("no resolver: {resolv}"), !resolv.contains("nameserver"))?;
    let out = run_probe(&["--no-dns"], &["dns", "tcp", "10.0.2.3:53", "a.test"]);
    same("nobody answers", out.status.code(), Some(2))
}

/// A resolver: `a.test` is its mark, `many.test` needs TCP, `fails.test` fails, all else is unknown.
fn resolver(at: Ipv4Addr, mark: Ipv4Addr) -> Result<(), Fault> {
    let udp = UdpSocket::bind((at, 53)).map_err(|e| format!("{at}, port 53: {e}"))?;
    let tcp = TcpListener::bind((at, 53)).map_err(|e| format!("{at}, port 53: {e}"))?;
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((n, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(&answer(&buffer[..n], mark, false), from);
        }
    });
    std::thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            let mut length = [0; 2];
            while stream.read_exact(&mut length).is_ok() {
                let mut query = vec![0; u16::from_be_bytes(length).into()];
                if stream.read_exact(&mut query).is_err() {
                    break;
                }
                let answer = answer(&query, mark, true);
                let framed = [&(answer.len() as u16).to_be_bytes()[..], &answer].concat();
                if stream.write_all(&framed).is_err() {
                    break;
                }
            }
        }
    });
    Ok(())
}

/// RFC 1035, 4.1: the header, the question again, an address for each answer.
fn answer(query: &[u8], mark: Ipv4Addr, tcp: bool) -> Vec<u8> {
    let mut at = 12;
    let mut name = String::new();
    while query[at] != 0 {
        let length = usize::from(query[at]);
        name.push_str(&String::from_utf8_lossy(&query[at + 1..=at + length]).to_ascii_lowercase());
        name.push('.');
        at += length + 1;
    }
    let is_a = query[at + 1..at + 3] == [0, 1];
    let (rcode, truncated, addresses): (u8, bool, Vec<Ipv4Addr>) = match name.as_str() {
        "a.test." | "host.search.test." if is_a => (0, false, vec![mark]),
        "many.test." if is_a && !tcp => (0, true, vec![]),
        "many.test." if is_a => (0, false, (0..100).map(|n| Ipv4Addr::new(198, 18, 9, n)).collect()),
        "a.test." | "many.test." | "host.search.test." => (0, false, vec![]),
        "fails.test." => (2, false, vec![]),
        _ => (3, false, vec![]),
    };
    let mut out = query[..2].to_vec();
    out.extend([0x81 | u8::from(truncated) << 1, 0x80 | rcode, 0, 1, 0, addresses.len() as u8, 0, 0, 0, 0]);
    out.extend(&query[12..at + 5]);
    for address in addresses {
        // The name by reference, type A, class IN, a minute, four bytes.
        out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        out.extend(address.octets());
    }
    out
}

fn names_go_to_the_hosts_resolvers() -> Result<(), Fault> {
    world::run(&["--net", "none"], "forwards_names")
}

fn forwards_names() -> Result<(), Fault> {
    let write = |path: &str, text: &str| std::fs::write(path, text).map_err(|e| format!("{path}: {e}"));
    write("/etc/resolv.conf", "search search.test\nnameserver 127.0.0.1\n")?;
    let marks = [[198, 18, 0, 1], [198, 18, 0, 2], [198, 18, 0, 3]].map(Ipv4Addr::from);
    for (n, mark) in (1..).zip(marks) {
        resolver(Ipv4Addr::new(127, 0, 0, n), mark)?;
    }
    let mut console = sandbox("asks", &[])?;
    for transport in ["udp", "tcp"] {
        for to in ["10.0.2.3:53", "[fd00::3]:53"] {
            for (name, wanted) in [
                ("a.test", "rcode 0 truncated 0 answers 1"),
                ("fails.test", "rcode 2 truncated 0 answers 0"),
                ("nobody.test", "rcode 3 truncated 0 answers 0"),
            ] {
                let said = console.ask(&["dns", transport, to, name])?;
                same(&format!("{name} over {transport} to {to}"), said.as_str(), wanted)?;
            }
        }
    }
    let said = console.ask(&["dns", "udp", "10.0.2.3:53", "many.test"])?;
    holds(format!("the bit that says `too long` passes: {said}"), said.contains("truncated 1"))?;
    let said = console.ask(&["dns", "tcp", "10.0.2.3:53", "many.test"])?;
    same("a long answer over TCP", said.as_str(), "rcode 0 truncated 0 answers 100")?;
    let said = console.ask(&["resolve", "many.test"])?;
    same("the C library gets it all", said.split(' ').count(), 100)?;
    same("the host's search domain", console.ask(&["resolve", "host"])?.as_str(), "198.18.0.1")?;
    let queries = inspect("asks")?["counters"]["dns_queries"].as_u64();
    holds(format!("questions are counted: {queries:?}"), queries.is_some_and(|n| n > 10))?;

    let own = console.ask(&["print", "/etc/resolv.conf"])?;
    let leads_to = |console: &mut Console, what: &str, mark: &str| {
        until(what, 15, || console.ask(&["resolve", "a.test"]).is_ok_and(|said| said == mark))?;
        same("the sandbox's own file stays", console.ask(&["print", "/etc/resolv.conf"])?, own.clone())
    };
    leads_to(&mut console, "the first", "198.18.0.1")?;
    write("/etc/new", "nameserver 127.0.0.2\n")?;
    std::fs::rename("/etc/new", "/etc/resolv.conf").map_err(|e| e.to_string())?;
    leads_to(&mut console, "a file that took its place", "198.18.0.2")?;
    std::fs::create_dir("/etc/elsewhere").map_err(|e| e.to_string())?;
    write("/etc/elsewhere/resolv.conf", "nameserver 127.0.0.3\n")?;
    std::fs::remove_file("/etc/resolv.conf").map_err(|e| e.to_string())?;
    std::os::unix::fs::symlink("elsewhere/resolv.conf", "/etc/resolv.conf").map_err(|e| e.to_string())?;
    leads_to(&mut console, "a link", "198.18.0.3")?;
    // Nobody listens at the first one.
    write("/etc/elsewhere/resolv.conf", "nameserver 127.0.0.9\nnameserver 127.0.0.1\n")?;
    leads_to(&mut console, "the next when one does not answer", "198.18.0.1")
}
