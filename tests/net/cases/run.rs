//! `tapline run`: streams, signals, statuses, terminals, and that nothing is left behind.
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use nix::sys::signal::Signal;

use super::OPEN;
use crate::harness::*;
use crate::terminal::Terminal;
use crate::world;

cases! {
    exit_status_is_the_commands,
    signals_go_through,
    killing_tapline_ends_the_command,
    none_has_only_lo,
    the_standard_streams_are_the_commands_own,
    the_end_of_output_is_seen_when_the_command_closes_it,
    the_commands_end_ends_what_it_left_behind,
    killed_processes_leave_nothing_behind,
    who_only_waits_is_small,
    a_gateway_that_is_killed_is_replaced,
    a_gateway_that_dies_again_and_again_leaves_the_command_its_files,
    the_command_is_who_it_was_asked_to_be,
    the_whole_subordinate_range_or_a_reason,
    pid_host_keeps_the_callers_processes,
    host_mode_is_the_hosts_network,
    the_interface_is_what_was_asked_for,
    options_come_from_the_file_and_the_command_line_wins,
    a_shell_has_job_control_and_leaves_its_terminal_sane,
    tapline_is_a_job_like_another,
    what_is_logged_may_be_json_or_nothing,
    without_a_proc_of_its_own_it_goes_on_and_says_so,
    ;
    masked_proc,
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
    // Several times, because CMD may be heard before tapline has heard that it runs.
    for _ in 0..8 {
        let mut child = Running(
            command(&["run", "--", "sh", "-c", script]).stdout(Stdio::piped()).spawn().map_err(|e| e.to_string())?,
        );
        let mut out = child.0.stdout.take().expect("it is piped");
        let mut ready = [0; 6];
        out.read_exact(&mut ready).map_err(|e| e.to_string())?;
        signal(child.0.id(), Signal::SIGTERM)?;
        let mut rest = String::new();
        out.read_to_string(&mut rest).map_err(|e| e.to_string())?;
        same("what it said", rest.trim(), "told")?;
        same("status", child.0.wait().map_err(|e| e.to_string())?.code(), Some(3))?;
    }
    Ok(())
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

fn none_has_only_lo() -> Result<(), Fault> {
    let said = probe(&["--net", "none"], &["print", "/proc/net/dev"])?;
    let interfaces: Vec<&str> = said.lines().filter_map(|l| l.split_once(':')).map(|(name, _)| name.trim()).collect();
    same("interfaces", interfaces, vec!["lo"])?;
    let said = probe(&["--net", "none"], &["connect", "192.0.2.1:80"])?;
    same("outside", said.as_str(), "network unreachable")
}

fn the_standard_streams_are_the_commands_own() -> Result<(), Fault> {
    let mut child = command(&["run", "-q", "--", "sh", "-c", "cat; echo err >&2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| e.to_string())?;
    let bytes = crate::probe::pattern(1_000_000);
    let mut input = child.stdin.take().ok_or("no stdin")?;
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || input.write_all(&sent));
    let out = child.wait_with_output().map_err(|e| e.to_string())?;
    writer.join().map_err(|_| "the writer panicked")?.map_err(|e| e.to_string())?;
    holds(format!("{} of {} bytes came through", out.stdout.len(), bytes.len()), out.stdout == bytes)?;
    same("stderr", text(&out.stderr).as_str(), "err\n")
}

fn the_end_of_output_is_seen_when_the_command_closes_it() -> Result<(), Fault> {
    let mut child = Running(
        command(&["run", "-q", "--", "sh", "-c", "echo all; exec >/dev/null 2>&1; read line"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| e.to_string())?,
    );
    // Were a copy of it left open in a process of tapline's, this would not return.
    let mut said = String::new();
    child.0.stdout.take().ok_or("no stdout")?.read_to_string(&mut said).map_err(|e| e.to_string())?;
    same("what it said", said.as_str(), "all\n")?;
    holds("it still runs", child.0.try_wait().map_err(|e| e.to_string())?.is_none())?;
    child.0.stdin.take().ok_or("no stdin")?.write_all(b"end\n").map_err(|e| e.to_string())?;
    same("status", child.0.wait().map_err(|e| e.to_string())?.code(), Some(0))
}

fn the_commands_end_ends_what_it_left_behind() -> Result<(), Fault> {
    let path = runtime_dir().join("left");
    let file = std::fs::File::create(&path).map_err(|e| e.to_string())?;
    // The daemon has a session of its own, ignores what can be ignored, and says when it holds the lock.
    let daemon = format!("trap '' TERM HUP INT; exec 9>{}; flock 9; echo held; exec sleep 1000", path.display());
    let script = format!("setsid sh -c \"{daemon}\" & read line");
    let mut child = Running(
        command(&["run", "--", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| e.to_string())?,
    );
    let mut held = [0; 5];
    child.0.stdout.as_mut().ok_or("no stdout")?.read_exact(&mut held).map_err(|e| e.to_string())?;
    holds("the daemon holds its lock", file.try_lock().is_err())?;
    child.0.stdin.take().ok_or("no stdin")?.write_all(b"end\n").map_err(|e| e.to_string())?;
    same("status", child.0.wait().map_err(|e| e.to_string())?.code(), Some(0))?;
    holds("it has ended when tapline has", file.try_lock().is_ok())
}

/// A sandbox whose supervisor, agent or gateway is killed: what is to be gone, and what `ps` says afterwards.
fn killed_processes_leave_nothing_behind() -> Result<(), Fault> {
    for whom in ["supervisor", "agent"] {
        let name = format!("killed-{whom}");
        let (mut console, mut errors) = sandbox_and_errors(&name, &[])?;
        let supervisor = console.child.0.id();
        let (agent, gateway) = (agent_of(supervisor)?, gateway_of(supervisor)?);
        let inside = inspect(&name)?["pid"].as_u64().ok_or("there is a PID")? as u32;
        let id = inspect(&name)?["id"].as_str().ok_or("there is an id")?.to_owned();
        signal(if whom == "agent" { agent } else { supervisor }, Signal::SIGKILL)?;
        let status = console.child.0.wait().map_err(|e| e.to_string())?;
        match whom {
            "agent" => {
                same("status when the agent is killed", status.code(), Some(125))?;
                let mut said = String::new();
                errors.read_to_string(&mut said).map_err(|e| e.to_string())?;
                holds(said.clone(), said.lines().count() == 1 && said.contains("agent ended unexpectedly"))?;
            }
            _ => same("status", status.signal(), Some(9))?,
        }
        for (who, pid) in [("agent", agent), ("gateway", gateway), ("init", inside)] {
            until(&format!("{who} has ended after {whom} was killed"), 10, || has_ended(pid))?;
        }
        holds("ps does not show it", !names_in_ps()?.contains(&name))?;
        let left: Vec<_> = entries().into_iter().filter(|path| path.ends_with(&id)).collect();
        same("files left", left, vec![])?;
    }
    Ok(())
}

/// Resident memory of those who wait, shared libraries included; while they planned they had some 6 MiB each, or more in
/// a build for debugging. What they are asked later they still answer.
fn who_only_waits_is_small() -> Result<(), Fault> {
    let mut console = sandbox("small", &[])?;
    let supervisor = console.child.0.id();
    for (who, pid) in [("supervisor", supervisor), ("agent", agent_of(supervisor)?)] {
        let resident = || {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).map(str::to_owned);
            line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(u64::MAX)
        };
        until(&format!("the {who} holds at most 4 MiB, not {} KiB", resident()), 10, || resident() <= 4096)?;
    }
    same("CMD goes on", console.ask(&["interfaces"])?.as_str(), "lo tap0")?;
    same("the status is CMD's", console.end()?.code(), Some(0))
}

fn a_gateway_that_is_killed_is_replaced() -> Result<(), Fault> {
    let server = tcp_server("127.0.0.1:0", echo);
    let to = seen_from_inside(server);
    let (mut console, mut errors) = sandbox_and_errors("gateway-killed", &["--host-loopback"])?;
    let first = gateway_of(console.child.0.id())?;
    same("before", console.ask(&["tcp-echo", &to, "100000"])?.as_str(), "100000 bytes came back")?;
    signal(first, Signal::SIGKILL)?;
    until("there is another", 10, || gateway_of(console.child.0.id()).is_ok_and(|pid| pid != first))?;
    until("it is at work", 20, || {
        console.ask(&["tcp-echo", &to, "100000"]).is_ok_and(|said| said == "100000 bytes came back")
    })?;
    same("the status is CMD's", console.end()?.code(), Some(0))?;
    let mut said = String::new();
    errors.read_to_string(&mut said).map_err(|e| e.to_string())?;
    holds(format!("one line that says so: {said}"), said.contains("starting another") && said.lines().count() == 1)
}

fn a_gateway_that_dies_again_and_again_leaves_the_command_its_files() -> Result<(), Fault> {
    let (mut console, errors) = sandbox_and_errors("gateway-gone", &[])?;
    let supervisor = console.child.0.id();
    signal(gateway_of(supervisor)?, Signal::SIGKILL)?;
    // It is replaced three times in ten seconds; each is killed as soon as it is there.
    let mut lines = BufReader::new(errors).lines();
    loop {
        let line = lines.next().ok_or("tapline says nothing more")?.map_err(|e| e.to_string())?;
        if line.contains("goes on without a network") {
            break;
        }
        holds(line.clone(), line.contains("starting another"))?;
        until("there is another", 10, || gateway_of(supervisor).is_ok_and(|pid| signal(pid, Signal::SIGKILL).is_ok()))?;
    }
    same("CMD goes on", console.ask(&["interfaces"])?.as_str(), "lo tap0")?;
    same("the status is CMD's", console.end()?.code(), Some(0))
}

fn the_command_is_who_it_was_asked_to_be() -> Result<(), Fault> {
    let own = (nix::unistd::getuid().to_string(), nix::unistd::getgid().to_string());
    for mode in ["private", "none", "host"] {
        let ids = |options: &[&str]| {
            let mut all = vec!["--net", mode];
            all.extend(options);
            probe(&all, &["ids"])
        };
        same(mode, ids(&[])?, "0 0".into())?;
        same(mode, ids(&["--map-user", "root"])?, "0 0".into())?;
        same(mode, ids(&["--map-user", "keep"])?, format!("{} {}", own.0, own.1))?;
    }
    Ok(())
}

fn the_whole_subordinate_range_or_a_reason() -> Result<(), Fault> {
    let out = command(&["run", "-q", "--net", "none", "--map-user", "auto", "--", "cat", "/proc/self/uid_map"])
        .output()
        .map_err(|e| e.to_string())?;
    let (said, errors) = (text(&out.stdout), text(&out.stderr));
    if out.status.success() {
        // The ranges, one after the other, after root.
        let fields: Vec<&str> = said.split_whitespace().collect();
        same("root is the caller", &fields[..3], &["0", &nix::unistd::getuid().to_string(), "1"])?;
        return holds(format!("further ids are mapped: {said}"), fields.len() >= 6 && fields[3] == "1");
    }
    same(&errors, out.status.code(), Some(125))?;
    same(&errors, errors.lines().count(), 1)?;
    holds(errors.clone(), ["/etc/subuid", "/etc/subgid", "newuidmap", "newgidmap"].iter().any(|w| errors.contains(w)))
}

fn pid_host_keeps_the_callers_processes() -> Result<(), Fault> {
    let nspid = |mode| -> Result<usize, Fault> {
        let said = probe(&["--net", "none", "--pid", mode], &["print", "/proc/self/status"])?;
        let line = said.lines().find(|l| l.starts_with("NSpid:")).ok_or("NSpid")?.to_owned();
        same("it is a number in its own PID namespace", line.split_whitespace().count(), 2)?;
        line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).ok_or(line)
    };
    holds("small numbers in a namespace of its own", nspid("private")? < 10)?;
    let own = probe(&["--net", "none", "--pid", "host"], &["print", &format!("/proc/{}/comm", std::process::id())])?;
    holds(format!("this process is seen: {own}"), own.starts_with("net"))
}

fn host_mode_is_the_hosts_network() -> Result<(), Fault> {
    let inside = probe(&["--net", "host"], &["interfaces"])?;
    same("interfaces", inside, crate::probe::probe(&["interfaces"])?)?;
    let server = tcp_server("127.0.0.1:0", echo);
    same("the host's loopback", probe(&["--net", "host"], &["connect", &server.to_string()])?.as_str(), "connected")
}

fn the_interface_is_what_was_asked_for() -> Result<(), Fault> {
    let said = probe(&[], &["addresses", "tap0"])?;
    same("slirp's layout", said.as_str(), "10.0.2.100/24 fd00::100/64 mtu 65520")?;
    let options = ["--subnet", "192.168.77.0/25", "--subnet6", "fd12:3456::/64", "--mtu", "1400", "--ifname", "eth7"];
    let mac = ["--mac", "02:00:00:aa:bb:cc"];
    let all = [&options[..], &mac[..]].concat();
    let said = probe(&all, &["addresses", "eth7"])?;
    same("others", said.as_str(), "192.168.77.100/25 fd12:3456::100/64 mtu 1400")?;
    same("MAC", probe(&all, &["print", "/sys/class/net/eth7/address"])?.as_str(), "02:00:00:aa:bb:cc")?;
    let server = tcp_server("127.0.0.1:0", echo);
    let to = format!("192.168.77.2:{}", server.port());
    let said = probe(&[&all[..], OPEN].concat(), &["tcp-echo", &to, "100000"])?;
    same("the gateway there", said.as_str(), "100000 bytes came back")?;
    same("--ipv4-only", probe(&["--ipv4-only"], &["addresses", "tap0"])?.as_str(), "10.0.2.100/24 mtu 65520")?;
    same("--ipv6-only", probe(&["--ipv6-only"], &["addresses", "tap0"])?.as_str(), "fd00::100/64 mtu 65520")
}

fn options_come_from_the_file_and_the_command_line_wins() -> Result<(), Fault> {
    let home = runtime_dir().join("with-config");
    std::fs::create_dir_all(home.join("tapline")).map_err(|e| e.to_string())?;
    std::fs::write(home.join("tapline/config.toml"), "mtu = 1300\n[run]\nifname = \"filed0\"\n")
        .map_err(|e| e.to_string())?;
    let ask = |options: &[&str], name| {
        let mut command = probe_command(options, &["addresses", name]);
        let out = command.env("XDG_CONFIG_HOME", &home).output().map_err(|e| e.to_string())?;
        holds(text(&out.stderr), out.status.success())?;
        Ok::<_, Fault>(text(&out.stdout).trim_end().to_owned())
    };
    holds("the file counts", ask(&[], "filed0")?.ends_with("mtu 1300"))?;
    holds("the command line wins", ask(&["--mtu", "1350", "--ifname", "typed0"], "typed0")?.ends_with("mtu 1350"))
}

fn a_shell_has_job_control_and_leaves_its_terminal_sane() -> Result<(), Fault> {
    let mut terminal = Terminal::new()?;
    let before = terminal.settings()?;
    let mut shell = command(&["run", "-q", "--", "bash", "--norc", "-i"]);
    shell.env("PS1", "inside> ");
    let mut running = terminal.start(&shell)?;
    terminal.expect("inside> ")?;
    terminal.press("sleep 1000\r")?;
    terminal.expect("sleep 1000")?;
    // The sleep is in the foreground when the terminal's group is no longer the shell's.
    terminal.wait_for_foreground("sleep")?;
    terminal.press("\x1a")?;
    terminal.expect("Stopped")?;
    terminal.expect("inside> ")?;
    terminal.press("fg\r")?;
    terminal.wait_for_foreground("sleep")?;
    terminal.press("\x03")?;
    terminal.expect("inside> ")?;
    terminal.press("exec sh -c 'stty raw -echo; kill -KILL $$'\r")?;
    let status = running.0.wait().map_err(|e| e.to_string())?;
    same(&terminal.screen(), status.code(), Some(128 + 9))?;
    let after = terminal.settings()?;
    same("local modes", after.local_flags, before.local_flags)?;
    same("input modes", after.input_flags, before.input_flags)?;
    same("output modes", after.output_flags, before.output_flags)
}

fn tapline_is_a_job_like_another() -> Result<(), Fault> {
    let mut terminal = Terminal::new()?;
    let mut shell = std::process::Command::new("sh");
    shell.arg("-i").env("PS1", "outside> ").env("XDG_RUNTIME_DIR", runtime_dir());
    let mut running = terminal.start(&shell)?;
    terminal.expect("outside> ")?;
    let tapline = tapline();
    terminal.press(&format!("{} run -q --net private -- sleep 1000\r", tapline.display()))?;
    terminal.wait_for_foreground("sleep")?;
    terminal.press("\x1a")?;
    terminal.expect("Stopped")?;
    terminal.expect("outside> ")?;
    terminal.press("fg\r")?;
    terminal.expect("sleep 1000")?;
    terminal.wait_for_foreground("sleep")?;
    terminal.press("\x03")?;
    terminal.expect("outside> ")?;
    terminal.press("echo status=$?\r")?;
    terminal.expect("status=130")?;
    terminal.press("exit 0\r")?;
    same("status", running.0.wait().map_err(|e| e.to_string())?.code(), Some(0))
}

fn what_is_logged_may_be_json_or_nothing() -> Result<(), Fault> {
    let said = |options: &[&str]| -> Result<String, Fault> {
        let mut command = command(&["run", "--net", "host"]);
        let out = command.args(options).args(["--", "true"]).output().map_err(|e| e.to_string())?;
        same(&text(&out.stderr), out.status.code(), Some(0))?;
        Ok(text(&out.stderr))
    };
    let line = said(&[])?;
    holds(line.clone(), line.starts_with("tapline: ") && line.lines().count() == 1)?;
    let line = said(&["--log-format", "json"])?;
    let object: serde_json::Value = serde_json::from_str(line.trim()).map_err(|e| format!("{e}: {line}"))?;
    holds(line, object.is_object())?;
    same("-q", said(&["-q"])?.as_str(), "")
}

fn without_a_proc_of_its_own_it_goes_on_and_says_so() -> Result<(), Fault> {
    world::run(&["--net", "none"], "masked_proc")
}

fn masked_proc() -> Result<(), Fault> {
    use nix::mount::{MsFlags, mount};
    // As container engines do it; the kernel then refuses to show what is covered by another /proc.
    mount(Some("tmpfs"), "/proc/bus", Some("tmpfs"), MsFlags::empty(), None::<&str>).map_err(|e| e.to_string())?;
    let out = run_probe(&[], &["interfaces"]);
    let errors = text(&out.stderr);
    same(&errors, (out.status.code(), text(&out.stdout).trim_end()), (Some(0), "lo tap0"))?;
    holds(errors.clone(), errors.lines().filter(|line| line.contains("cannot mount /proc")).count() == 1)
}
