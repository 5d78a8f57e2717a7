//! The ground that a gateway stands on, seen from outside: namespaces of its own, an empty root, no capability, no
//! descriptor but its own. In a world, where we are root of the user namespace in which it was started and may look.
use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::harness::*;
use crate::world;

cases! {
    gateways_are_alone_in_namespaces_of_their_own_with_an_empty_root,
    a_gateway_ends_when_it_is_asked_to_and_is_replaced,
    ;
    gateways_seen_from_outside,
}

fn gateways_are_alone_in_namespaces_of_their_own_with_an_empty_root() -> Result<(), Fault> {
    world::run_bare("gateways_seen_from_outside")
}

fn gateways_seen_from_outside() -> Result<(), Fault> {
    let out = command(&["network", "create", "shared"]).output().map_err(|e| e.to_string())?;
    holds(text(&out.stderr), out.status.success())?;
    let (mut private, mut shared) = (sandbox("ground-private", &[])?, sandbox("ground-shared", &["--net", "shared"])?);
    let of_shared = in_this_world(|line| line.split(' ').nth(2) == Some("--listen"));
    let [of_shared] = of_shared[..] else { return Err(format!("the gateways of shared networks: {of_shared:?}")) };
    let gateways = [gateway_of(private.child.0.id())?, of_shared];
    for gateway in gateways {
        stands_alone(gateway)?;
    }
    for kind in ["user", "mnt", "pid"] {
        let namespaces = gateways.map(|pid| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok());
        holds(format!("two {kind} namespaces: {namespaces:?}"), namespaces[0] != namespaces[1])?;
    }
    same("it works", private.ask(&["interfaces"])?.as_str(), "lo tap0")?;
    same("its status", private.end()?.code(), Some(0))?;
    same("it works", shared.ask(&["interfaces"])?.as_str(), "lo eth0")?;
    same("its status", shared.end()?.code(), Some(0))
}

/// The processes in our network namespace whose command line is like that.
fn in_this_world(is_it: impl Fn(&str) -> bool) -> Vec<u32> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let network = |who: &str| fs::read_link(format!("/proc/{who}/ns/net")).ok();
    pids.filter(|pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        !has_ended(*pid) && is_it(&text(&line).replace('\0', " ")) && network(&pid.to_string()) == network("self")
    })
    .collect()
}

fn stands_alone(gateway: u32) -> Result<(), Fault> {
    let of = |what: &str| Path::new("/proc").join(gateway.to_string()).join(what);
    for kind in ["user", "mnt", "pid", "ipc", "uts", "net"] {
        let theirs = fs::read_link(of(&format!("ns/{kind}"))).map_err(|e| e.to_string())?;
        let ours = fs::read_link(format!("/proc/self/ns/{kind}")).map_err(|e| e.to_string())?;
        same(&format!("{kind}: {theirs:?} is the host's"), theirs == ours, kind == "net")?;
    }
    let found: Vec<_> = fs::read_dir(of("root")).map_err(|e| e.to_string())?.flatten().map(|e| e.path()).collect();
    holds(format!("its root is empty: {found:?}"), found.is_empty())?;
    let mounts = fs::read_to_string(of("mountinfo")).map_err(|e| e.to_string())?;
    let root: Vec<&str> = mounts.split_whitespace().skip(3).take(3).collect();
    let is_bare = mounts.lines().count() == 1
        && root[..2] == ["/", "/"]
        && ["ro", "nosuid", "nodev", "noexec"].iter().all(|flag| root[2].split(',').any(|it| it == *flag));
    holds(format!("its only mount: {mounts}"), is_bare)?;
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        same(set, status_field(gateway, set)?.as_str(), "0000000000000000")?;
    }
    same("no_new_privs", status_field(gateway, "NoNewPrivs")?.as_str(), "1")?;
    let (own, map) = (nix::unistd::getuid(), fs::read_to_string(of("uid_map")).map_err(|e| e.to_string())?);
    let ids: Vec<String> = map.split_whitespace().map(str::to_owned).collect();
    same("its user is itself", ids, vec![own.to_string(), own.to_string(), "1".into()])?;
    // The standard three lead to /dev/null and to the log.
    for fd in fs::read_dir(of("fd")).map_err(|e| e.to_string())?.flatten() {
        let number: u32 = fd.file_name().to_str().and_then(|n| n.parse().ok()).ok_or("no number")?;
        let Ok(leads_to) = fs::read_link(fd.path()) else { continue };
        let known = ["socket:", "anon_inode:", "pipe:", "/dev/net/tun"];
        let is_known = known.iter().any(|known| leads_to.to_string_lossy().starts_with(known));
        holds(format!("descriptor {number} leads to {leads_to:?}"), number < 3 || is_known)?;
    }
    Ok(())
}

fn a_gateway_ends_when_it_is_asked_to_and_is_replaced() -> Result<(), Fault> {
    use std::io::BufRead;

    let (console, errors) = sandbox_and_errors("ground-asked", &[])?;
    let supervisor = console.child.0.id();
    let first = gateway_of(supervisor)?;
    signal(first, Signal::SIGTERM)?;
    let mut said = String::new();
    std::io::BufReader::new(errors).read_line(&mut said).map_err(|e| e.to_string())?;
    holds(said.clone(), said.contains("the gateway died (exit status 143)") && said.contains("starting another"))?;
    until("there is another", 10, || gateway_of(supervisor).is_ok_and(|pid| pid != first))?;
    // Neither of the first one's two processes is left to be waited for, nor of the second's but one.
    until("one gateway is its child", 10, || gateways_with_the_dead(supervisor) == 1)?;
    same("the status is CMD's", console.end()?.code(), Some(0))
}

/// How many children are gateways or have been: of one that has ended only its name is left.
fn gateways_with_the_dead(supervisor: u32) -> usize {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let stats = entries.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let is_child = |stat: &String| {
        stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)) == Some(&supervisor.to_string())
    };
    // The other child is the agent.
    stats.filter(is_child).count().saturating_sub(1)
}
