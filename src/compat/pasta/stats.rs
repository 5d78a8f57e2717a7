//! `--stats`: the gateway's counters on standard error.
//!
//! A process of its own asks the sandbox's API for them, as anybody could, and prints a line when something has changed.
//! It is forked before the supervisor begins, because that one has better things to do than to wait for answers, and
//! ends with it.
use std::io::{Read, Write};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{getpid, getppid};
use serde::Deserialize;

use crate::control::state::StateDir;
use crate::sys::proc::{self, Forked};

/// The head of the table is repeated after so many lines.
const LINES: usize = 20;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is shown of the counters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
struct Numbers {
    frames_in: u64,
    bytes_in: u64,
    frames_out: u64,
    bytes_out: u64,
    tcp_flows: u64,
    udp_flows: u64,
    echo_flows: u64,
    tcp_flows_total: u64,
    udp_flows_total: u64,
    dns_queries: u64,
    dropped: std::collections::BTreeMap<String, u64>,
}

const HEAD: &str =
    "  frames in     bytes in  frames out    bytes out   tcp   udp  ping  tcp total  udp total  dns  dropped";

impl Numbers {
    fn line(&self) -> String {
        format!(
            "{:>11} {:>12} {:>11} {:>12} {:>5} {:>5} {:>5} {:>10} {:>10} {:>4} {:>8}",
            self.frames_in,
            self.bytes_in,
            self.frames_out,
            self.bytes_out,
            self.tcp_flows,
            self.udp_flows,
            self.echo_flows,
            self.tcp_flows_total,
            self.udp_flows_total,
            self.dns_queries,
            self.dropped.values().sum::<u64>(),
        )
    }
}

/// Print the counters of the sandbox with this id from now on, not more often than every so many seconds.
pub fn start(id: &str, seconds: u64) -> std::io::Result<()> {
    let parent = getpid();
    if proc::fork()? != Forked::Child {
        return Ok(());
    }
    let _ = set_pdeathsig(Signal::SIGKILL);
    let mut shown = (Numbers::default(), 0);
    while getppid() == parent {
        sleep(Duration::from_secs(seconds));
        if let Some(numbers) = ask(id).filter(|numbers| *numbers != shown.0) {
            let head = if shown.1 % LINES == 0 { format!("{HEAD}\n") } else { String::new() };
            let _ = std::io::stderr().write_all(format!("{head}{}\n", numbers.line()).as_bytes());
            shown = (numbers, shown.1 + 1);
        }
    }
    proc::exit_now(0);
}

/// `None` as long as nobody answers.
fn ask(id: &str) -> Option<Numbers> {
    let mut api = StateDir::open().ok()?.connect_api(id).ok()?;
    api.set_read_timeout(Some(PATIENCE)).ok()?;
    api.write_all(b"GET /v1/counters HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    api.read_to_string(&mut answer).ok()?;
    numbers(&answer)
}

fn numbers(answer: &str) -> Option<Numbers> {
    let (_, body) = answer.split_once("\r\n\r\n")?;
    serde_json::from_str(body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::commands::Snapshot;
    use crate::gateway::counters::Counters;

    #[test]
    fn the_apis_counters_are_understood() {
        let mut counters = Counters::default();
        (counters.frames_in, counters.bytes_out) = (7, 9);
        let snapshot = Snapshot::new(&counters, (1, 2, 3), Default::default());
        let body = serde_json::to_string(&snapshot).unwrap();
        let numbers = numbers(&format!("HTTP/1.0 200 OK\r\ncontent-type: x\r\n\r\n{body}")).unwrap();
        assert_eq!((numbers.frames_in, numbers.bytes_out, numbers.udp_flows), (7, 9, 2));
        // Each number stands under the end of its name.
        assert_eq!(numbers.line().len(), HEAD.len());
    }
}
