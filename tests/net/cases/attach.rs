//! `tapline attach` to namespaces that tapline did not make; `exec`, `ps`, `inspect` and `stop`.
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use super::OPEN;
use crate::harness::*;

cases! {
    attach_by_pid_gives_a_network_until_it_is_ended,
    attach_by_path_gives_a_network,
    attach_ends_when_the_namespace_does,
    attach_ends_when_its_descriptor_hangs_up,
    attach_without_configuration_makes_the_interface_only,
    detached_attach_returns_when_ready_and_is_stopped_by_name,
    exec_joins_a_sandbox,
    ps_and_inspect_tell_of_a_sandbox,
    stop_ends_a_sandbox,
}

/// A process in namespaces of its own.
fn target() -> Result<Console, Fault> {
    let mut command = Command::new(this_program());
    command.arg("target");
    Console::start(command)
}

/// `tapline attach OPTIONS`, started, and its first line on --ready-fd read.
fn attach(options: &[&str]) -> Result<Running, Fault> {
    let plain = command(&["attach", "-q", "--host-loopback", "--ready-fd", "1"]);
    // Tests in the background of a script have SIGINT ignored, and so would it.
    let mut command = Command::new("env");
    command.arg("--default-signal=INT").arg(plain.get_program()).args(plain.get_args());
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut child = command
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| e.to_string())?;
    let mut line = String::new();
    let read = BufReader::new(child.stdout.take().ok_or("no stdout")?).read_line(&mut line);
    let child = Running(child);
    if read.is_ok() && line == "1\n" {
        return Ok(child);
    }
    Err(failure(child))
}

/// What a tapline that has failed said.
fn failure(mut child: Running) -> Fault {
    let mut errors = String::new();
    let read = child.0.stderr.take().map(|mut stderr| stderr.read_to_string(&mut errors));
    format!("tapline said: {errors} ({read:?})")
}

fn only_lo(target: &mut Console) -> Result<(), Fault> {
    until("the interface is gone", 10, || target.ask(&["interfaces"]).is_ok_and(|said| said == "lo"))
}

fn attach_by_pid_gives_a_network_until_it_is_ended() -> Result<(), Fault> {
    let server = tcp_server("127.0.0.1:0", echo);
    for link in ["tap", "packet"] {
        for end in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGKILL] {
            let mut target = target()?;
            same("before", target.ask(&["interfaces"])?.as_str(), "lo")?;
            let pid_file = runtime_dir().join(format!("attach-{link}-{end}.pid"));
            let file = pid_file.display().to_string();
            let pid = target.child.0.id().to_string();
            let mut child = attach(&["--link-kind", link, "--pid-file", &file, &pid])?;
            same("addresses", target.ask(&["addresses", "tap0"])?.as_str(), "10.0.2.100/24 fd00::100/64 mtu 65520")?;
            let said = target.ask(&["tcp-echo", &seen_from_inside(server), "1000000"])?;
            same("echo", said.as_str(), "1000000 bytes came back")?;
            let written = std::fs::read_to_string(&pid_file).map_err(|e| e.to_string())?;
            same("the PID file", written, format!("{}\n", child.0.id()))?;
            signal(child.0.id(), end)?;
            let status = child.0.wait().map_err(|e| e.to_string())?;
            only_lo(&mut target)?;
            if end != Signal::SIGKILL {
                same("status", status.code(), Some(0))?;
                holds("the PID file is gone", !pid_file.exists())?;
            }
            same("the target lives on", target.end()?.code(), Some(0))?;
        }
    }
    Ok(())
}

fn attach_by_path_gives_a_network() -> Result<(), Fault> {
    let server = tcp_server("127.0.0.1:0", echo);
    let mut target = target()?;
    let path = |kind| format!("/proc/{}/ns/{kind}", target.child.0.id());
    let (net, user) = (path("net"), path("user"));
    for options in [&["--netns", &net][..], &["--netns", &net, "--userns", &user][..]] {
        let mut child = attach(options)?;
        let said = target.ask(&["tcp-echo", &seen_from_inside(server), "100000"])?;
        same("echo", said.as_str(), "100000 bytes came back")?;
        signal(child.0.id(), Signal::SIGTERM)?;
        same("status", child.0.wait().map_err(|e| e.to_string())?.code(), Some(0))?;
        only_lo(&mut target)?;
    }
    Ok(())
}

fn attach_ends_when_the_namespace_does() -> Result<(), Fault> {
    for by_path in [false, true] {
        let target = target()?;
        let pid = target.child.0.id().to_string();
        let path = format!("/proc/{pid}/ns/net");
        let mut child = attach(if by_path { vec!["--netns", &path] } else { vec![pid.as_str()] }.as_slice())?;
        let gateway = gateway_of(child.0.id())?;
        target.end()?;
        same("status", child.0.wait().map_err(|e| e.to_string())?.code(), Some(0))?;
        until("the gateway has ended", 10, || has_ended(gateway))?;
    }
    Ok(())
}

fn attach_ends_when_its_descriptor_hangs_up() -> Result<(), Fault> {
    let mut target = target()?;
    let pid = target.child.0.id().to_string();
    let mut command = command(&["attach", "-q", "--ready-fd", "1", "--exit-fd", "0", &pid]);
    let mut child = Running(
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| e.to_string())?,
    );
    let mut ready = String::new();
    BufReader::new(child.0.stdout.take().ok_or("no stdout")?).read_line(&mut ready).map_err(|e| e.to_string())?;
    same("ready", ready.as_str(), "1\n")?;
    same("it serves", target.ask(&["interfaces"])?.as_str(), "lo tap0")?;
    drop(child.0.stdin.take());
    same("status", child.0.wait().map_err(|e| e.to_string())?.code(), Some(0))?;
    only_lo(&mut target)
}

fn attach_without_configuration_makes_the_interface_only() -> Result<(), Fault> {
    let mut target = target()?;
    let pid = target.child.0.id().to_string();
    let _child = attach(&["--no-configure", "--ifname", "bare0", "--mtu", "1500", &pid])?;
    same("interfaces", target.ask(&["interfaces"])?.as_str(), "lo bare0")?;
    let said = target.ask(&["addresses", "bare0"])?;
    holds(format!("no address: {said}"), said.starts_with("mtu "))
}

fn detached_attach_returns_when_ready_and_is_stopped_by_name() -> Result<(), Fault> {
    let server = tcp_server("127.0.0.1:0", echo);
    let mut target = target()?;
    let pid = target.child.0.id().to_string();
    // The output is read to its end, which a supervisor in the background must not hold up.
    let out = command(&["attach", "--detach", "--host-loopback", "--name", "behind", &pid])
        .output()
        .map_err(|e| e.to_string())?;
    same(&text(&out.stderr), out.status.code(), Some(0))?;
    let said = target.ask(&["tcp-echo", &seen_from_inside(server), "1000"])?;
    same("it works at once", said.as_str(), "1000 bytes came back")?;
    holds("ps shows it", names_in_ps()?.contains(&"behind".to_owned()))?;
    let out = command(&["stop", "behind"]).output().map_err(|e| e.to_string())?;
    same(&text(&out.stderr), out.status.code(), Some(0))?;
    only_lo(&mut target)?;
    holds("ps does not show it any more", !names_in_ps()?.contains(&"behind".to_owned()))?;
    let out = command(&["attach", "--detach", "2147483647"]).output().map_err(|e| e.to_string())?;
    same("the reason comes to the front", out.status.code(), Some(125))?;
    same(&text(&out.stderr), text(&out.stderr).lines().count(), 1)
}

fn exec_joins_a_sandbox() -> Result<(), Fault> {
    let server = tcp_server("127.0.0.1:0", echo);
    let mut console = sandbox("joined", &["--host-loopback", "--hostname", "joined-host"])?;
    let exec = |words: &[&str]| {
        command(&["exec", "joined", "--"])
            .args(words)
            .output()
            .map_err(|e| e.to_string())
            .map(|out| (out.status.code(), text(&out.stdout).trim_end().to_owned(), text(&out.stderr)))
    };
    let program = this_program().display().to_string();
    let (status, said, errors) = exec(&[&program, "probe", "tcp-echo", &seen_from_inside(server), "100000"])?;
    same(&errors, (status, said.as_str()), (Some(0), "100000 bytes came back"))?;
    let (_, said, _) = exec(&["cat", "/proc/sys/kernel/hostname", "/etc/hostname"])?;
    same("its names", said.as_str(), "joined-host\njoined-host")?;
    same("status", exec(&["sh", "-c", "exit 9"])?.0, Some(9))?;
    same("status by a signal", exec(&["sh", "-c", "kill -TERM $$"])?.0, Some(143))?;
    same("not found", exec(&["/no/such/program"])?.0, Some(127))?;
    same("it still answers", console.ask(&["interfaces"])?.as_str(), "lo tap0")?;
    // What was started by exec ends with the sandbox.
    let mut child = Running(
        command(&["exec", "joined", "--", "sh", "-c", "echo here; exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| e.to_string())?,
    );
    let mut here = [0; 5];
    child.0.stdout.take().ok_or("no stdout")?.read_exact(&mut here).map_err(|e| e.to_string())?;
    same("CMD's end", console.end()?.code(), Some(0))?;
    let status = child.0.wait().map_err(|e| e.to_string())?;
    holds(format!("exec ends with the sandbox: {status}"), !status.success())
}

fn ps_and_inspect_tell_of_a_sandbox() -> Result<(), Fault> {
    let mut console = sandbox("shown", OPEN)?;
    let server = tcp_server("127.0.0.1:0", echo);
    console.ask(&["tcp-echo", &seen_from_inside(server), "500000"])?;
    console.ask(&["connect", "169.254.169.254:80"])?;
    let out = command(&["ps"]).output().map_err(|e| e.to_string())?;
    let table = text(&out.stdout);
    let row = table.lines().find(|l| l.contains("shown")).ok_or_else(|| format!("no row: {table}"))?;
    holds(format!("addresses and mode: {row}"), row.contains("10.0.2.100") && row.contains("private"))?;
    let document = inspect("shown")?;
    same("name", document["name"].as_str(), Some("shown"))?;
    same("supervisor", document["supervisor_pid"].as_u64(), Some(console.child.0.id().into()))?;
    same("address", document["v4"].as_str(), Some("10.0.2.100"))?;
    let counters = &document["counters"];
    same("TCP flows", counters["tcp_flows_total"].as_u64(), Some(1))?;
    same("refused", counters["dropped"]["refused"].as_u64(), Some(1))?;
    for (counter, least) in [("bytes_in", 500_000), ("bytes_out", 500_000), ("frames_in", 10), ("frames_out", 10)] {
        let count = counters[counter].as_u64().unwrap_or(0);
        holds(format!("{counter}: {count}"), count >= least)?;
    }
    let id = document["id"].as_str().ok_or("an id")?.to_owned();
    same("by its id's beginning", inspect(&id[..6])?["name"].as_str(), Some("shown"))?;
    same("CMD", console.end()?.code(), Some(0))?;
    let out = command(&["inspect", "shown"]).output().map_err(|e| e.to_string())?;
    same("afterwards", out.status.code(), Some(125))
}

fn stop_ends_a_sandbox() -> Result<(), Fault> {
    let mut console = sandbox("stopped", &[])?;
    let gateway = gateway_of(console.child.0.id())?;
    let out = command(&["stop", "stopped"]).output().map_err(|e| e.to_string())?;
    same(&text(&out.stderr), out.status.code(), Some(0))?;
    same("status", console.child.0.wait().map_err(|e| e.to_string())?.code(), Some(143))?;
    until("the gateway has ended", 10, || has_ended(gateway))?;
    holds("ps does not show it", !names_in_ps()?.contains(&"stopped".to_owned()))
}
