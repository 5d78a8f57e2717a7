//! A sandbox that tries to hurt those it shares a network with, in every way of [`crate::probe::flood`].
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use super::OPEN;
use crate::harness::*;
use crate::probe::flood::{sink, source};
use crate::world;

cases! {
    a_flood_of_connections_costs_others_nothing_that_lasts,
    a_flood_of_datagrams_costs_others_nothing_that_lasts,
    a_flood_of_what_is_not_carried_costs_others_nothing_that_lasts,
    ;
    connections,
    datagrams,
    not_carried,
}

/// What a gateway may have of its own memory, whatever one sandbox does: for these attacks far less than the 128 MiB of
/// rings that it bounds a sandbox to.
const MOST_MIB: u64 = 96;

fn a_flood_of_connections_costs_others_nothing_that_lasts() -> Result<(), Fault> {
    world::run(&["--net", "none"], "connections")
}

fn a_flood_of_datagrams_costs_others_nothing_that_lasts() -> Result<(), Fault> {
    world::run(&["--net", "none"], "datagrams")
}

fn a_flood_of_what_is_not_carried_costs_others_nothing_that_lasts() -> Result<(), Fault> {
    world::run(&["--net", "none"], "not_carried")
}

fn connections() -> Result<(), Fault> {
    flood(&[("syn", 20_000), ("half-open", 20_000), ("zero-window", 640), ("tiny-segments", 100_000)])
}

fn datagrams() -> Result<(), Fault> {
    flood(&[("udp-sources", 20_000), ("dns", 20_000), ("fragments", 20_000), ("overlap", 20_000)])
}

fn not_carried() -> Result<(), Fault> {
    let attacks = ["arp", "ndp", "redirects", "spoofed", "offloads"];
    flood(&attacks.map(|attack| (attack, 20_000)))
}

/// The process that serves all shared networks here, and how much memory is its own, in MiB.
fn gateway() -> Result<(u32, u64), Fault> {
    for entry in std::fs::read_dir("/proc").map_err(|e| e.to_string())?.flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<String> = line.split(|byte| *byte == 0).map(text).collect();
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        if words.get(1).is_none_or(|word| word != "gateway") || !words.iter().any(|word| word == "--listen") {
            continue;
        }
        let status = std::fs::read_to_string(entry.path().join("status")).map_err(|e| e.to_string())?;
        let own = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).ok_or("its memory")?;
        let kib: u64 = own.trim().trim_end_matches(" kB").parse().map_err(|e| format!("{own}: {e}"))?;
        return Ok((pid, kib / 1024));
    }
    Err("there is no gateway".into())
}

/// One sandbox attacks while another talks to the host and to a third. All of it in a world of its own, so that nothing
/// reaches anybody else's resolver.
fn flood(attacks: &[(&str, u64)]) -> Result<(), Fault> {
    // It never answers.
    let _resolver = UdpSocket::bind("127.0.0.1:53").map_err(|e| e.to_string())?;
    std::fs::write("/etc/resolv.conf", "nameserver 127.0.0.1\n").map_err(|e| e.to_string())?;
    let out = command(&["network", "create", "floods"]).output().map_err(|e| e.to_string())?;
    holds(text(&out.stderr), out.status.success())?;
    let options = [&["--net", "floods"], OPEN].concat();
    let mut attacker = sandbox("attacker", &options)?;
    let mut good = sandbox("good", &options)?;
    let mut third = sandbox("third", &options)?;
    same("the third", third.ask(&["serve", "7000"])?.as_str(), "serving")?;
    let address = third.ask(&["addresses", "eth0"])?;
    let own: Ipv4Addr = address.split('/').next().unwrap_or_default().parse().map_err(|e| format!("{address}: {e}"))?;
    let gateway_address = Ipv4Addr::from(u32::from(own) & !0xfff | 1);
    let at_gateway = |server: SocketAddr| SocketAddr::new(IpAddr::V4(gateway_address), server.port()).to_string();

    let echo = at_gateway(tcp_server("127.0.0.1:0", echo));
    let taking = tcp_server("127.0.0.1:0", sink);
    let _udp = UdpSocket::bind(taking).map_err(|e| e.to_string())?;
    let giving = tcp_server("127.0.0.1:0", source);
    let near = format!("{own}:7000");
    same("before", good.ask(&["tcp-echo", &echo, "100000"])?.as_str(), "100000 bytes came back")?;
    let (pid, _) = gateway()?;
    for (attack, count) in attacks {
        let server = if *attack == "zero-window" { giving } else { taking };
        let words = ["flood", attack, &gateway_address.to_string(), &server.port().to_string(), &count.to_string()];
        attacker.tell(&words)?;
        for to in [&echo, &near] {
            let said = good.ask(&["tcp-echo", to, "300000"]).map_err(|e| format!("during {attack}: {e}"))?;
            same(&format!("during {attack}"), said.as_str(), "300000 bytes came back")?;
        }
        let said = attacker.answer(&words)?;
        holds(format!("{attack}: {said}"), said.ends_with(" sent"))?;
        let (now, mib) = gateway()?;
        holds(format!("after {attack}: {mib} MiB"), mib < MOST_MIB)?;
        same(&format!("the gateway after {attack}"), now, pid)?;
        let said = attacker.ask(&["tcp-echo", &echo, "10000"]).map_err(|e| format!("after {attack}: {e}"))?;
        same(&format!("the attacker itself after {attack}"), said.as_str(), "10000 bytes came back")?;
    }
    Ok(())
}
