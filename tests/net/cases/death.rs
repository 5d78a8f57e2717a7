//! What a sandbox sees of a gateway that dies.
use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::*;

cases! {
    an_idle_reader_hears_within_a_second_that_its_gateway_has_died,
    attached_namespaces_hear_of_it_too,
}

/// A server that accepts and says nothing; what comes out of the receiver is that it has accepted.
fn silent_server(at: &str) -> (String, mpsc::Receiver<()>) {
    let (accepted, there) = mpsc::sync_channel(16);
    let serve = move |mut stream: TcpStream| {
        let _ = accepted.send(());
        let _ = stream.read(&mut [0]);
    };
    (seen_from_inside(tcp_server(at, serve)), there)
}

/// Nobody else would tell it: it sends nothing that a new gateway could answer with a reset.
fn an_idle_reader_hears_within_a_second_that_its_gateway_has_died() -> Result<(), Fault> {
    let mut hosts = vec!["127.0.0.1:0"];
    if host_has_ipv6() {
        hosts.push("[::1]:0");
    }
    for at in hosts {
        let (to, accepted) = silent_server(at);
        let mut console = sandbox("gateway-idle", &["--net", "private", "--host-loopback"])?;
        let supervisor = console.child.0.id();
        hears_of_it(&mut console, supervisor, &to, &accepted)?;
        same("the status is CMD's", console.end()?.code(), Some(0))?;
    }
    Ok(())
}

/// There an agent is started for it.
fn attached_namespaces_hear_of_it_too() -> Result<(), Fault> {
    let (to, accepted) = silent_server("127.0.0.1:0");
    let mut target = Command::new(this_program());
    target.arg("target");
    let mut target = Console::start(target)?;
    let pid = target.child.0.id().to_string();
    let mut attach = command(&["attach", "-q", "--host-loopback", "--ready-fd", "1", &pid]);
    let mut attached = Running(attach.stdout(Stdio::piped()).spawn().map_err(|e| e.to_string())?);
    let mut line = String::new();
    let stdout = attached.0.stdout.take().ok_or("no stdout")?;
    BufReader::new(stdout).read_line(&mut line).map_err(|e| e.to_string())?;
    same("ready", line.as_str(), "1\n")?;
    let supervisor = attached.0.id();
    hears_of_it(&mut target, supervisor, &to, &accepted)?;
    until("there is another gateway", 10, || gateway_of(supervisor).is_ok())?;
    let echo = seen_from_inside(tcp_server("127.0.0.1:0", echo));
    until("it is at work", 20, || {
        target.ask(&["tcp-echo", &echo, "1000"]).is_ok_and(|said| said == "1000 bytes came back")
    })?;
    same("the target lives on", target.end()?.code(), Some(0))
}

fn hears_of_it(console: &mut Console, supervisor: u32, to: &str, accepted: &mpsc::Receiver<()>) -> Result<(), Fault> {
    console.tell(&["tcp-read-to-end", to])?;
    told(accepted)?;
    let gateway = gateway_of(supervisor)?;
    let since = Instant::now();
    signal(gateway, Signal::SIGKILL)?;
    let said = console.answer(&["tcp-read-to-end", to]);
    let took = since.elapsed();
    let heard = said.as_ref().is_err_and(|fault| fault.to_string().contains("abort"))
        || said.as_ref().is_ok_and(|said| said == "0 bytes, then reset");
    holds(format!("{to} was aborted: {said:?}"), heard)?;
    holds(format!("within a second, not {took:?}"), took < Duration::from_secs(1))
}
