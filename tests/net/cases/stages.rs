//! What the processes of a sandbox have given up, seen from outside (proc_pid_status(5)), and that its command has not.
use crate::harness::*;

cases! {
    supervisor_agent_and_init_have_given_up_what_they_do_not_need_and_the_command_has_not,
    whoever_attaches_has_given_up_as_much,
    an_agent_that_is_confined_still_makes_what_is_asked_for_later,
    what_is_executed_in_a_sandbox_is_as_locked_as_its_command,
}

/// A field of a process's status.
fn field(pid: u32, name: &str) -> Result<String, Fault> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(|e| format!("{pid}: {e}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.map(|value| value.trim().to_owned()).ok_or_else(|| format!("no {name} in {status}"))
}

const BIND: u64 = 1 << 10;
const ADMIN_AND_RAW: u64 = 1 << 12 | 1 << 13;
const KILL: u64 = 1 << 5;
/// CAP_SETFCAP, which root keeps for the gateways that it starts.
const SETFCAP: u64 = 1 << 31;
/// CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE, CAP_SYS_ADMIN.
const ENTER: u64 = 1 << 2 | 1 << 19 | 1 << 21;

/// It has no capabilities but these, and cannot get any; and a filter for its system calls.
fn has_no_more_than(who: &str, pid: u32, capabilities: u64) -> Result<(), Fault> {
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        let has = field(pid, set)?;
        let number = u64::from_str_radix(&has, 16).map_err(|e| e.to_string())?;
        holds(format!("{who}: {set} {has}"), number & !capabilities == 0)?;
    }
    same(&format!("{who}: no_new_privs"), field(pid, "NoNewPrivs")?.as_str(), "1")?;
    same(&format!("{who}: a filter"), field(pid, "Seccomp")?.as_str(), "2")
}

/// Nobody of the same user may look into it: its files in /proc are root's. (When root tests, they would be so anyway.)
fn is_not_dumpable(who: &str, pid: u32) -> Result<(), Fault> {
    use std::os::unix::fs::MetadataExt;
    let owner = std::fs::metadata(format!("/proc/{pid}/environ")).map_err(|e| e.to_string())?.uid();
    let dumpable = owner == nix::unistd::geteuid().as_raw() && owner != 0;
    holds(format!("{who} is not dumpable"), !dumpable)?;
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).map_err(|e| e.to_string())?;
    let cores = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap_or_default();
    same(cores, cores.split_whitespace().nth(4), Some("0"))
}

fn supervisor_agent_and_init_have_given_up_what_they_do_not_need_and_the_command_has_not() -> Result<(), Fault> {
    for (number, mode) in ["private", "none", "bridge"].into_iter().enumerate() {
        let console = sandbox(&format!("stages-{number}"), &["--net", mode])?;
        let supervisor = console.child.0.id();
        let agent = agent_of(supervisor)?;
        let only = |parent: u32| match children(parent)[..] {
            [(pid, _)] => Ok(pid),
            ref other => Err(format!("{parent} has the children {other:?}")),
        };
        let init = only(agent)?;
        let command = only(init)?;
        has_no_more_than("supervisor", supervisor, BIND | SETFCAP)?;
        has_no_more_than("agent", agent, BIND | ADMIN_AND_RAW)?;
        // As root of its namespace it has lost the others for good.
        same("agent: CapBnd", field(agent, "CapBnd")?, format!("{:016x}", BIND | ADMIN_AND_RAW))?;
        has_no_more_than("init", init, KILL)?;
        same("init: CapBnd", field(init, "CapBnd")?, format!("{KILL:016x}"))?;
        is_not_dumpable("supervisor", supervisor)?;
        is_not_dumpable("agent", agent)?;
        // What the command has is what a new user namespace gives.
        for (name, value) in [("NoNewPrivs", "0"), ("Seccomp", "0")] {
            same(&format!("command: {name}"), field(command, name)?.as_str(), value)?;
        }
        let all = field(command, "CapBnd")?;
        same("command: CapEff", field(command, "CapEff")?, all.clone())?;
        holds(format!("command: all of them: {all}"), all.len() == 16 && all.ends_with("fffffffff"))?;
        same("status", console.end()?.code(), Some(0))?;
    }
    Ok(())
}

fn whoever_attaches_has_given_up_as_much() -> Result<(), Fault> {
    let mut target = Console::start({
        let mut command = std::process::Command::new(this_program());
        command.arg("target");
        command
    })?;
    let pid = target.child.0.id().to_string();
    let mut words = command(&["attach", "-q", "--ready-fd", "1", "-p", "auto", &pid]);
    let mut child = Running(words.stdout(std::process::Stdio::piped()).spawn().map_err(|e| e.to_string())?);
    let mut line = String::new();
    let ready = child.0.stdout.take().ok_or("no stdout")?;
    std::io::BufRead::read_line(&mut std::io::BufReader::new(ready), &mut line).map_err(|e| e.to_string())?;
    same("ready", line.as_str(), "1\n")?;
    let supervisor = child.0.id();
    has_no_more_than("supervisor", supervisor, BIND | SETFCAP | ADMIN_AND_RAW | ENTER)?;
    is_not_dumpable("supervisor", supervisor)?;
    let agent = agent_of(supervisor)?;
    has_no_more_than("agent", agent, BIND | ADMIN_AND_RAW)?;
    is_not_dumpable("agent", agent)?;
    // It is in the namespace, and has only its connections open, and the two paths that it may need again.
    let target_is = |what: &str| !what.starts_with("socket:") && !["/dev/null", "/dev/net/tun"].contains(&what);
    let open: Vec<String> = std::fs::read_dir(format!("/proc/{agent}/fd"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|fd| Some(std::fs::read_link(fd.path()).ok()?.display().to_string()))
        .filter(|what| target_is(what))
        .collect();
    let expected = |what: &String| what.starts_with("/proc/") && (what.ends_with("/gid_map") || what.ends_with("/net"));
    holds(format!("what the agent has open: {open:?}"), open.iter().all(expected))?;
    same("the target is as it was", target.ask(&["interfaces"])?.as_str(), "lo tap0")?;
    same("the target's", field(target.child.0.id(), "NoNewPrivs")?.as_str(), "0")
}

fn an_agent_that_is_confined_still_makes_what_is_asked_for_later() -> Result<(), Fault> {
    for link in ["tap", "packet"] {
        let name = format!("stages-later-{link}");
        let mut console = sandbox(&name, &["--net", "private", "--link-kind", link])?;
        for _ in 0..2 {
            let out = command(&["network", "connect", "bridge", &name]).output().map_err(|e| e.to_string())?;
            holds(text(&out.stderr), out.status.success())?;
            same("there", console.ask(&["interfaces"])?.as_str(), "lo tap0 eth0")?;
            let out = command(&["network", "disconnect", "bridge", &name]).output().map_err(|e| e.to_string())?;
            holds(text(&out.stderr), out.status.success())?;
            same("gone", console.ask(&["interfaces"])?.as_str(), "lo tap0")?;
        }
        same("status", console.end()?.code(), Some(0))?;
    }
    Ok(())
}

fn what_is_executed_in_a_sandbox_is_as_locked_as_its_command() -> Result<(), Fault> {
    let _locked = sandbox("exec-locked", &["--net", "private", "--locked"])?;
    let _open = sandbox("exec-open", &["--net", "private"])?;
    let exec = |name: &str, script: &str| {
        let out = command(&["exec", name, "--", "sh", "-c", script]).output().map_err(|e| e.to_string())?;
        Ok::<_, Fault>((out.status.success(), text(&out.stdout), text(&out.stderr)))
    };
    for power in super::share::POWERS {
        let (done, _, said) = exec("exec-locked", power)?;
        holds(format!("{power} is refused: {said}"), !done)?;
    }
    // It is in the sandbox all the same.
    let (done, said, errors) =
        exec("exec-locked", "id -u; readlink /proc/1/ns/net /proc/self/ns/net; ls /sys/class/net")?;
    let lines: Vec<&str> = said.lines().collect();
    holds(format!("{said}{errors}"), done && lines.len() == 4)?;
    same("its user", lines[0].parse().ok(), Some(0))?;
    same("the interfaces", lines[2..].to_vec(), vec!["lo", "tap0"])?;
    // And the same things can be done where it is not locked.
    for power in ["umount -l /etc", "mount -t sysfs none /mnt", "nsenter --net=/proc/1/ns/net true"] {
        let (done, _, said) = exec("exec-open", power)?;
        holds(format!("{power}: {said}"), done)?;
    }
    Ok(())
}
