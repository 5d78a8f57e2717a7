//! Servers outside that mean harm: what they cost is bounded, others are served, nothing ends.
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::SockRef;

use super::OPEN;
use crate::harness::*;

cases! {
    a_server_that_resets_everything_costs_nobody_else_anything,
    servers_that_never_read_hold_nobody_up,
    servers_that_never_stop_sending_fill_no_memory,
    a_hundred_thousand_answers_to_one_datagram_are_no_harm,
}

/// Connections at once to a server that means harm.
const MANY: u64 = 100;
/// What a connection may cost a gateway whose rings are both full, and some for its tables, in kibibytes.
const KIB_FOR_EACH: u64 = 2 * 1024;

/// A sandbox, and what its gateway's memory was at first.
struct Victim {
    console: Console,
    supervisor: u32,
    gateway: u32,
    resident: u64,
}

impl Victim {
    fn new(name: &str) -> Result<Victim, Fault> {
        let mut console = sandbox(name, &[&["--net", "private"], OPEN].concat())?;
        others_are_served(&mut console)?;
        let supervisor = console.child.0.id();
        let gateway = gateway_of(supervisor)?;
        Ok(Victim { console, supervisor, gateway, resident: resident(gateway)? })
    }

    /// It is the same gateway, others are served, and it has not grown by more than this, in kibibytes.
    fn ends_well(mut self, most: u64) -> Result<(), Fault> {
        others_are_served(&mut self.console)?;
        same("the gateway", gateway_of(self.supervisor)?, self.gateway)?;
        let grown = resident(self.gateway)?.saturating_sub(self.resident);
        holds(format!("it has grown by {grown} KiB, and may by {most}"), grown <= most)?;
        same("the status is CMD's", self.console.end()?.code(), Some(0))
    }
}

fn others_are_served(console: &mut Console) -> Result<(), Fault> {
    let server = seen_from_inside(tcp_server("127.0.0.1:0", echo));
    same("TCP", console.ask(&["tcp-echo", &server, "300000"])?.as_str(), "300000 bytes came back")?;
    let server = seen_from_inside(udp_echo("127.0.0.1:0"));
    same("UDP", console.ask(&["udp-echo", &server, "1200"])?.as_str(), "1200 bytes came back")
}

/// Memory of a process, in kibibytes.
fn resident(pid: u32) -> Result<u64, Fault> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(|e| e.to_string())?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| format!("no VmRSS in {status}"))
}

fn a_server_that_resets_everything_costs_nobody_else_anything() -> Result<(), Fault> {
    let resets = |when: fn(&mut TcpStream)| {
        tcp_server("127.0.0.1:0", move |mut stream| {
            when(&mut stream);
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        })
    };
    let at_once = seen_from_inside(resets(|_| ()));
    let in_the_middle = seen_from_inside(resets(|stream| drop(stream.read(&mut [0; 16]))));
    let mut victim = Victim::new("storm")?;
    for server in [at_once, in_the_middle] {
        let said = victim.console.ask(&["tcp-storm", &server, "500"])?;
        same("how they ended", said.as_str(), "500 over, most by a reset")?;
    }
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", victim.gateway)).map(|all| all.count()).unwrap_or(0);
    until("their sockets are closed", 20, || descriptors() < 200)?;
    victim.ends_well(16 * 1024)
}

fn servers_that_never_read_hold_nobody_up() -> Result<(), Fault> {
    let server = seen_from_inside(tcp_server("127.0.0.1:0", |stream| {
        std::thread::sleep(Duration::from_secs(120));
        drop(stream);
    }));
    let mut victim = Victim::new("deaf")?;
    let said = victim.console.ask(&["tcp-write-and-keep", &server, &MANY.to_string()])?;
    same("connections", said, format!("{MANY} stalled"))?;
    victim.ends_well(MANY * KIB_FOR_EACH)
}

fn servers_that_never_stop_sending_fill_no_memory() -> Result<(), Fault> {
    let sent = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&sent);
    let server = seen_from_inside(tcp_server("127.0.0.1:0", move |mut stream| {
        let bytes = [0x5a; 64 * 1024];
        while let Ok(count) = stream.write(&bytes) {
            counter.fetch_add(count as u64, Ordering::Relaxed);
        }
    }));
    let mut victim = Victim::new("loud")?;
    let said = victim.console.ask(&["tcp-open-and-keep", &server, &MANY.to_string()])?;
    same("connections", said, format!("{MANY} open"))?;
    // All that the kernels and the gateway take has been taken when nothing moves any more.
    let mut last = 0;
    until("the servers are held up", 60, || {
        std::thread::sleep(Duration::from_millis(500));
        let now = sent.load(Ordering::Relaxed);
        now != 0 && std::mem::replace(&mut last, now) == now
    })?;
    victim.ends_well(MANY * KIB_FOR_EACH)
}

fn a_hundred_thousand_answers_to_one_datagram_are_no_harm() -> Result<(), Fault> {
    let socket = UdpSocket::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
    let server = seen_from_inside(socket.local_addr().map_err(|e| e.to_string())?);
    let answering = std::thread::spawn(move || {
        let (_, from) = socket.recv_from(&mut [0; 100])?;
        for _ in 0..100_000 {
            // A full queue is its receiver's trouble.
            let _ = socket.send_to(&[0x5a; 1400], from);
        }
        std::io::Result::Ok(())
    });
    let mut victim = Victim::new("amplified")?;
    same("the question", victim.console.ask(&["udp-ask-and-keep", &server])?.as_str(), "asked")?;
    // While they come, and when they have come.
    others_are_served(&mut victim.console)?;
    answering.join().map_err(|_| "the server panicked")?.map_err(|e| e.to_string())?;
    victim.ends_well(16 * 1024)
}
