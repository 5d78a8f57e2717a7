//! What a sandbox sees of a gateway that dies.
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tapline::control::client::GatewayProcess;
use tapline::control::rendezvous::Starter;
use tapline::control::state::StateDir;

use crate::harness::*;
use crate::world;

cases! {
    an_idle_reader_hears_within_a_second_that_its_gateway_has_died,
    attached_namespaces_hear_of_it_too,
    connections_between_sandboxes_outlive_the_gateway_of_their_network,
    ;
    a_shared_gateway_dies_under_load,
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

/// In a world, whose networks have a gateway of their own.
fn connections_between_sandboxes_outlive_the_gateway_of_their_network() -> Result<(), Fault> {
    world::run_bare("a_shared_gateway_dies_under_load")
}

fn a_shared_gateway_dies_under_load() -> Result<(), Fault> {
    let out = command(&["network", "create", "shared"]).output().map_err(|e| e.to_string())?;
    holds(text(&out.stderr), out.status.success())?;
    let on_it = &["--net", "shared", "--host-loopback"];
    let (mut first, mut second, mut idle) = (
        sandbox("death-first", on_it)?,
        sandbox("death-second", &[on_it, &["-p", "127.0.0.1::7000"] as &[_]].concat())?,
        sandbox("death-idle", on_it)?,
    );
    for console in [&mut first, &mut second] {
        same("the server", console.ask(&["serve", "7000"])?.as_str(), "serving")?;
    }
    let inside = inspect("death-first")?;
    let own = inside["v4"].as_str().ok_or(format!("an address: {inside}"))?.to_owned();
    let gateway_ip = inside["endpoints"][0]["gateway_v4"].as_str().ok_or("a gateway")?.to_owned();
    let published = inspect("death-second")?["ports"][0]["host"].as_str().ok_or("a port")?.to_owned();
    same("held", second.ask(&["hold", &format!("{own}:7000")])?.as_str(), "held")?;
    same("before", second.ask(&["held", "100000"])?.as_str(), "100000 bytes came back")?;
    let (server, accepted) = silent_server("127.0.0.1:0");
    let port = server.rsplit(':').next().unwrap_or_default();
    let to = format!("{gateway_ip}:{port}");
    let read = ["held-read-to-end"];
    same("connected", idle.ask(&["hold", &to])?.as_str(), "held")?;
    told(&accepted)?;
    idle.tell(&read)?;

    let netns = std::fs::metadata("/proc/self/ns/net").map_err(|e| e.to_string())?.ino();
    let states = StateDir::at(Some(runtime_dir()), "/nowhere".into(), netns).map_err(|e| e.to_string())?;
    let starter = Starter {
        program: tapline(),
        name: None,
        arguments: vec!["gateway".into()],
        after: Vec::new(),
        systemd_run: None,
    };
    let pid = || Ok::<u32, Fault>(GatewayProcess::reach(&states, &starter).map_err(|e| e.to_string())?.pid());
    let before = pid()?;
    let since = Instant::now();
    signal(before, Signal::SIGKILL)?;
    let said = idle.answer(&read);
    let took = since.elapsed();
    let heard = said.as_ref().is_err_and(|fault| fault.contains("abort"))
        || said.as_ref().is_ok_and(|said| said == "0 bytes, then reset");
    holds(
        format!("{to} was aborted within a second: {said:?} after {took:?}"),
        heard && took < Duration::from_secs(1),
    )?;
    same("the connection lives", second.ask(&["held", "100000"])?.as_str(), "100000 bytes came back")?;
    holds("there is another gateway", pid()? != before)?;
    until("the published port is served again", 2, || {
        let echoed = TcpStream::connect(&published).and_then(|mut stream| {
            stream.write_all(b"hello")?;
            stream.read_exact(&mut [0; 5])
        });
        echoed.is_ok()
    })?;
    same("what is new works", idle.ask(&["connect", &to])?.as_str(), "connected")?;
    same("the connection still lives", second.ask(&["held", "1000"])?.as_str(), "1000 bytes came back")
}

/// The connection is there on both sides before its gateway dies: one whose SYN was not answered yet would just be
/// made anew through the next.
fn hears_of_it(console: &mut Console, supervisor: u32, to: &str, accepted: &mpsc::Receiver<()>) -> Result<(), Fault> {
    let read = ["held-read-to-end"];
    same("connected", console.ask(&["hold", to])?.as_str(), "held")?;
    told(accepted)?;
    console.tell(&read)?;
    let gateway = gateway_of(supervisor)?;
    let since = Instant::now();
    signal(gateway, Signal::SIGKILL)?;
    let said = console.answer(&read);
    let took = since.elapsed();
    let heard = said.as_ref().is_err_and(|fault| fault.to_string().contains("abort"))
        || said.as_ref().is_ok_and(|said| said == "0 bytes, then reset");
    holds(format!("{to} was aborted: {said:?}"), heard)?;
    holds(format!("within a second, not {took:?}"), took < Duration::from_secs(1))
}
