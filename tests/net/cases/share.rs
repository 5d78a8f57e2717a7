//! `--net container:` and `ns:`: another sandbox's network; links to other sandboxes; and what `--locked` promises in every mode.
use std::io::Read;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::harness::*;

cases! {
    two_sandboxes_on_one_network_talk_over_lo,
    names_and_hostname_are_the_other_sandboxes,
    a_process_and_a_path_can_be_shared_too,
    a_namespace_that_attach_serves_can_be_shared,
    when_the_other_ends_the_command_goes_on_and_it_is_said_once,
    what_cannot_be_shared_is_said_in_a_sentence,
    exec_joins_a_sandbox_that_shares,
    a_link_is_in_hosts_and_in_the_environment,
    a_link_that_cannot_be_is_said_in_a_sentence,
    a_locked_command_has_no_power_over_network_and_mounts_in_any_mode,
}

/// What a script in a sandbox says.
fn script(options: &[&str], script: &str) -> Result<String, Fault> {
    let words = [&["run", "-q"], options, &["--", "sh", "-c", script]].concat();
    let out = command(&words).output().map_err(|e| e.to_string())?;
    same(&format!("{options:?}: {}{}", text(&out.stdout), text(&out.stderr)), out.status.code(), Some(0))?;
    Ok(text(&out.stdout))
}

/// What is said up to the end of a line.
fn line(from: &mut impl Read) -> Result<String, Fault> {
    let (mut bytes, mut byte) = (Vec::new(), [0]);
    while !bytes.ends_with(b"\n") && from.read(&mut byte).map_err(|e| e.to_string())? == 1 {
        bytes.push(byte[0]);
    }
    Ok(text(&bytes))
}

/// A process in namespaces of its own.
fn target() -> Result<Console, Fault> {
    let mut command = Command::new(this_program());
    command.arg("target");
    Console::start(command)
}

fn two_sandboxes_on_one_network_talk_over_lo() -> Result<(), Fault> {
    let server = tcp_server("127.0.0.1:0", echo);
    let reach = format!("{}:4444", server.port());
    let mut first = sandbox("share-lo", &["--net", "private", "--host-loopback", "--reach", &reach])?;
    let mut second = sandbox("share-lo-2", &["--net", "container:share-lo"])?;
    same("interfaces", second.ask(&["interfaces"])?.as_str(), "lo tap0")?;
    same("addresses", second.ask(&["addresses", "tap0"])?, first.ask(&["addresses", "tap0"])?)?;
    let said = second.ask(&["tcp-echo", &seen_from_inside(server), "100000"])?;
    same("the gateway serves both", said.as_str(), "100000 bytes came back")?;
    let said = second.ask(&["tcp-echo", "127.0.0.1:4444", "100000"])?;
    same("what listens on the first's lo", said.as_str(), "100000 bytes came back")?;
    same("the second's status", second.end()?.code(), Some(0))?;
    let said = first.ask(&["tcp-echo", &seen_from_inside(server), "1000"])?;
    same("the first goes on", said.as_str(), "1000 bytes came back")
}

fn names_and_hostname_are_the_other_sandboxes() -> Result<(), Fault> {
    let options =
        ["--net", "private", "--hostname", "front.example", "--add-host", "db:192.0.2.7", "--dns-search", "a.example"];
    let _first = sandbox("share-names", &options)?;
    let script = |mode: &str| {
        let show = "hostname; cat /etc/hostname /etc/hosts /etc/resolv.conf; ls /sys/class/net; \
                    touch /etc/of-this-one && ls /proc | grep -c '^[0-9]'";
        script(&["--net", mode], show)
    };
    let said = script("container:share-names")?;
    let lines: Vec<&str> = said.lines().collect();
    same("hostname", &lines[..2], &["front.example", "front.example"])?;
    for line in ["192.0.2.7 db", "10.0.2.100 front.example front", "nameserver 10.0.2.3", "search a.example", "tap0"] {
        holds(format!("{line} in {said}"), lines.contains(&line))?;
    }
    // Its own shell, ls and grep, and not what runs in the first.
    let processes: u32 = lines.last().and_then(|n| n.parse().ok()).ok_or("a number of processes")?;
    holds(format!("processes of its own: {processes}"), processes < 10)?;
    let said = text(&command(&["exec", "share-names", "--", "ls", "/etc"]).output().map_err(|e| e.to_string())?.stdout);
    holds("files of its own", !said.contains("of-this-one"))
}

fn a_process_and_a_path_can_be_shared_too() -> Result<(), Fault> {
    let target = target()?;
    let pid = target.child.0.id();
    let namespace = std::fs::read_link(format!("/proc/{pid}/ns/net")).map_err(|e| e.to_string())?;
    for net in
        [format!("container:{pid}"), format!("ns:/proc/{pid}/ns/net"), format!("container:ns:/proc/{pid}/ns/net")]
    {
        for locked in [&["--locked"][..], &[]] {
            let said = script(&[&["--net", net.as_str()], locked].concat(), "readlink /proc/self/ns/net; id -u")?;
            same(&net, said.lines().collect(), vec![namespace.to_str().ok_or("not text")?, "0"])?;
        }
    }
    Ok(())
}

fn a_namespace_that_attach_serves_can_be_shared() -> Result<(), Fault> {
    let server = tcp_server("127.0.0.1:0", echo);
    for by_path in [false, true] {
        let target = target()?;
        let pid = target.child.0.id().to_string();
        let path = format!("/proc/{pid}/ns/net");
        let place = if by_path { vec!["--netns", &path] } else { vec![pid.as_str()] };
        let name = format!("share-attached-{by_path}");
        let options = ["attach", "-q", "--host-loopback", "--detach", "--name", &name];
        let out = command(&[&options[..], &place].concat()).output().map_err(|e| e.to_string())?;
        same(&text(&out.stderr), out.status.code(), Some(0))?;
        let net = format!("container:{name}");
        let (mut console, mut errors) = sandbox_and_errors(&format!("{name}-2"), &["--net", &net])?;
        let said = console.ask(&["tcp-echo", &seen_from_inside(server), "10000"])?;
        same("the network", said.as_str(), "10000 bytes came back")?;
        // Not the host's, which may be a resolver on its loopback.
        let names = script(&["--net", &net], "cat /etc/resolv.conf")?;
        holds(names.clone(), names.starts_with("nameserver 10.0.2.3\n"))?;
        // The network ends with what serves it, though the namespace does not.
        let out = command(&["stop", &name]).output().map_err(|e| e.to_string())?;
        same(&text(&out.stderr), out.status.code(), Some(0))?;
        until("the interface is gone", 10, || console.ask(&["interfaces"]).is_ok_and(|said| said == "lo"))?;
        let mut said = line(&mut errors)?;
        same("the command goes on", console.end()?.code(), Some(0))?;
        errors.read_to_string(&mut said).map_err(|e| e.to_string())?;
        same(&said, said.lines().count(), 1)?;
        holds(said.clone(), said.contains(&name) && said.contains("without a network"))?;
        same("the target goes on", target.end()?.code(), Some(0))?;
    }
    Ok(())
}

fn when_the_other_ends_the_command_goes_on_and_it_is_said_once() -> Result<(), Fault> {
    for end in [Signal::SIGTERM, Signal::SIGKILL] {
        let first = sandbox("share-end", &["--net", "private"])?;
        let (mut second, mut errors) = sandbox_and_errors("share-end-2", &["--net", "container:share-end"])?;
        same("before", second.ask(&["interfaces"])?.as_str(), "lo tap0")?;
        signal(first.child.0.id(), end)?;
        until("its network has gone", 10, || second.ask(&["interfaces"]).is_ok_and(|said| said == "lo"))?;
        let mut said = line(&mut errors)?;
        same("the command goes on", second.end()?.code(), Some(0))?;
        errors.read_to_string(&mut said).map_err(|e| e.to_string())?;
        same(&said, said.lines().count(), 1)?;
        holds(said.clone(), said.contains("container:share-end") && said.contains("goes on without a network"))?;
        drop(first);
    }
    Ok(())
}

fn what_cannot_be_shared_is_said_in_a_sentence() -> Result<(), Fault> {
    let _host = sandbox("share-host", &["--net", "host", "-q"])?;
    let own = std::process::id().to_string();
    let gone = {
        let target = target()?;
        let pid = target.child.0.id().to_string();
        target.end()?;
        pid
    };
    for (options, expected) in [
        (["--net", "container:share-nobody"], "no sandbox has the name or id `share-nobody`"),
        (["--net", "container:share-self"], "this sandbox itself"),
        (["--net", "container:share-host"], "use --net host"),
        (["--net", &format!("container:{own}")], "use --net host"),
        (["--net", &format!("container:{gone}")], "there is no process"),
        (["--net", "ns:/dev/null"], "no network namespace"),
        (["--net", "ns:/nonexistent/net"], "/nonexistent/net"),
    ] {
        let words = [&["run", "--name", "share-self"], &options[..], &["--", "true"]].concat();
        let out = command(&words).output().map_err(|e| e.to_string())?;
        let errors = text(&out.stderr);
        same(&errors, out.status.code(), Some(125))?;
        same(&errors, errors.lines().count(), 1)?;
        holds(format!("{options:?}: {errors}"), errors.contains(expected))?;
    }
    holds("nothing is left", !names_in_ps()?.contains(&"share-self".to_owned()))
}

fn exec_joins_a_sandbox_that_shares() -> Result<(), Fault> {
    let _first = sandbox("share-exec", &["--net", "private"])?;
    let _second = sandbox("share-exec-2", &["--net", "container:share-exec"])?;
    let exec = |name: &str, script: &str| -> Result<String, Fault> {
        let out = command(&["exec", name, "--", "sh", "-c", script]).output().map_err(|e| e.to_string())?;
        same(&text(&out.stderr), out.status.code(), Some(0))?;
        Ok(text(&out.stdout))
    };
    let namespaces = "readlink /proc/self/ns/net /proc/self/ns/mnt /proc/self/ns/pid";
    let (first, second) = (exec("share-exec", namespaces)?, exec("share-exec-2", namespaces)?);
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let (first, second) = (lines(&first), lines(&second));
    same("one network", &second[0], &first[0])?;
    holds("mounts of its own", second[1] != first[1])?;
    holds("processes of its own", second[2] != first[2])?;
    same("mode", inspect("share-exec-2")?["mode"].as_str(), Some("container"))
}

fn a_link_is_in_hosts_and_in_the_environment() -> Result<(), Fault> {
    let _db = sandbox("linked-db", &["--net", "bridge", "--expose", "5432", "-p", "127.0.0.1::53/udp"])?;
    let state = inspect("linked-db")?;
    let address = state["v4"].as_str().ok_or("an IPv4 address")?;
    let options = ["--net", "bridge", "--name", "linked-web", "--link", "linked-db:sql"];
    let said = script(&options, "env; cat /etc/hosts")?;
    for line in [
        "SQL_NAME=/linked-web/sql".to_owned(),
        format!("SQL_PORT=udp://{address}:53"),
        format!("SQL_PORT_5432_TCP=tcp://{address}:5432"),
        format!("SQL_PORT_5432_TCP_ADDR={address}"),
        format!("{address} sql linked-db"),
    ] {
        holds(format!("{line} in {said}"), said.lines().any(|l| l == line))?;
    }
    // By the beginning of its id it is the same sandbox.
    let id = state["id"].as_str().and_then(|id| id.get(..10)).ok_or("an id")?;
    let said = script(&["--net", "bridge", "--link", &format!("{id}:sql")], "cat /etc/hosts")?;
    holds(said.clone(), said.contains(&format!("{address} sql linked-db\n")))
}

fn a_link_that_cannot_be_is_said_in_a_sentence() -> Result<(), Fault> {
    let _alone = sandbox("link-alone", &["--net", "private"])?;
    for (link, expected) in [
        ("link-nobody", "no sandbox has the name or id `link-nobody`"),
        ("link-alone", "on none of this one's networks (bridge), nor on any other that is shared"),
        ("packet", "--link-kind"),
    ] {
        let words = ["run", "--name", "link-to", "--net", "bridge", "--link", &format!("{link}:x"), "--", "true"];
        let out = command(&words).output().map_err(|e| e.to_string())?;
        let errors = text(&out.stderr);
        same(&errors, (out.status.code(), errors.lines().count()), (Some(125), 1))?;
        holds(errors.clone(), errors.contains(expected))?;
    }
    holds("nothing is left", !names_in_ps()?.contains(&"link-to".to_owned()))
}

/// What a command that is not locked may do, and a locked one may not: about the network, and about mounts.
pub const POWERS: [&str; 7] = [
    "umount -l /etc",
    "umount -l /sys",
    "mount --bind / /mnt",
    "mount -t sysfs none /mnt",
    "echo 1 >/proc/sys/net/ipv4/ip_forward",
    "nsenter --user=/proc/1/ns/user true",
    "nsenter --net=/proc/1/ns/net true",
];

fn a_locked_command_has_no_power_over_network_and_mounts_in_any_mode() -> Result<(), Fault> {
    let _first = sandbox("locked-other", &["--net", "private"])?;
    let server = tcp_server("127.0.0.1:0", echo);
    let modes =
        [("bridge", "eth0"), ("private", "tap0"), ("none", "lo"), ("host", "lo"), ("container:locked-other", "tap0")];
    for (mode, interface) in modes {
        let options = ["--net", mode, "--locked"];
        same(mode, probe(&options, &["set-down", interface])?.as_str(), "not permitted")?;
        for power in POWERS {
            let words = [&["run", "-q"], &options[..], &["--", "sh", "-c", power]].concat();
            let out = command(&words).output().map_err(|e| e.to_string())?;
            holds(format!("{mode}: {power} is refused"), !out.status.success())?;
        }
    }
    // It has a network all the same, and the same things can be done without --locked.
    let said = probe(&["--locked", "--host-loopback"], &["tcp-echo", &seen_from_inside(server), "1000"])?;
    same("it has a network", said.as_str(), "1000 bytes came back")?;
    same("without", probe(&["--net", "container:locked-other"], &["set-down", "lo"])?.as_str(), "down")?;
    for power in ["umount -l /etc", "mount -t sysfs none /mnt", "nsenter --net=/proc/1/ns/net true"] {
        script(&["--net", "none"], power).map(drop)?;
    }
    Ok(())
}
