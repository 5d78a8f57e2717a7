//! Shared networks: who reaches whom, by which name. More of it, with other people's programs, is in tests/interop.
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::OPEN;
use crate::harness::*;

cases! {
    sandboxes_on_one_network_reach_each_other,
    sandboxes_on_different_networks_do_not_reach_each_other,
    an_internal_network_has_no_way_out,
    a_sandbox_that_says_nothing_is_on_the_bridge,
    a_sandbox_is_connected_and_disconnected_while_it_runs,
    a_namespace_that_is_served_is_connected_and_disconnected,
    a_namespace_gets_shared_networks,
    a_network_goes_by_its_id_too,
    an_attached_namespace_is_connected_and_disconnected_too,
    the_default_route_is_where_it_was_asked_for_and_moves_on,
    what_a_shared_network_promises_holds_for_the_locked,
    a_place_on_a_network_is_given_back_however_a_sandbox_ends,
}

/// A network, until the case ends.
struct Made(&'static str);

impl Made {
    fn new(name: &'static str, options: &[&str]) -> Result<Made, Fault> {
        succeeds(&[&["network", "create"], options, &[name]].concat())?;
        Ok(Made(name))
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let _ = command(&["network", "rm", self.0]).output();
    }
}

/// What a command line says that must work.
fn succeeds(words: &[&str]) -> Result<String, Fault> {
    let out = command(words).output().map_err(|e| e.to_string())?;
    holds(format!("{words:?}: {}", text(&out.stderr)), out.status.success())?;
    Ok(text(&out.stdout))
}

/// The addresses of an interface.
fn addresses(console: &mut Console, ifname: &str) -> Result<Vec<IpAddr>, Fault> {
    let said = console.ask(&["addresses", ifname])?;
    Ok(said.split(' ').filter_map(|word| word.split_once('/')?.0.parse().ok()).collect())
}

/// An echo server in a sandbox, at each of its addresses.
fn served(console: &mut Console) -> Result<Vec<String>, Fault> {
    same("the server", console.ask(&["serve", "7000"])?.as_str(), "serving")?;
    let found = addresses(console, "eth0")?;
    holds(format!("an address: {found:?}"), !found.is_empty())?;
    Ok(found.into_iter().map(|ip| SocketAddr::new(ip, 7000).to_string()).collect())
}

fn sandboxes_on_one_network_reach_each_other() -> Result<(), Fault> {
    let _network = Made::new("net-near", &[])?;
    let mut first = sandbox("net-first", &["--net", "net-near", "--network-alias", "net-alias"])?;
    let mut second = sandbox("net-second", &["--net", "net-near"])?;
    let servers = served(&mut first)?;
    for server in &servers {
        same(server, second.ask(&["tcp-echo", server, "3000000"])?.as_str(), "3000000 bytes came back")?;
        same(server, second.ask(&["udp-echo", server, "1000"])?.as_str(), "1000 bytes came back")?;
    }
    let mut all: Vec<String> = addresses(&mut first, "eth0")?.iter().map(IpAddr::to_string).collect();
    all.sort();
    for name in ["net-first", "net-alias", "NET-FIRST"] {
        same(name, second.ask(&["resolve", name])?, all.join(" "))?;
    }
    Ok(())
}

fn sandboxes_on_different_networks_do_not_reach_each_other() -> Result<(), Fault> {
    let _networks = (Made::new("net-one", &[])?, Made::new("net-other", &[])?);
    let mut first = sandbox("net-here", &["--net", "net-one"])?;
    let mut second = sandbox("net-there", &["--net", "net-other"])?;
    for server in served(&mut first)? {
        let said = second.ask(&["connect", &server])?;
        holds(format!("{server}: {said}"), said != "connected")?;
        holds(server.clone(), second.ask(&["udp-echo", &server, "10"]).is_err())?;
    }
    holds("no name either", second.ask(&["resolve", "net-here"]).is_err())
}

fn an_internal_network_has_no_way_out() -> Result<(), Fault> {
    let _networks = (Made::new("net-inner", &["--internal"])?, Made::new("net-outer", &[])?);
    let server = tcp_server("127.0.0.1:0", echo);
    for (network, wanted) in [("net-inner", false), ("net-outer", true)] {
        let options = [&["--net", network], OPEN].concat();
        let mut console = sandbox(&format!("on-{network}"), &options)?;
        // The gateway is the first of the subnet.
        let IpAddr::V4(own) = addresses(&mut console, "eth0")?[0] else { return Err("no IPv4".into()) };
        let gateway = SocketAddr::new((u32::from(own) & !0xfff | 1).to_be_bytes().into(), server.port()).to_string();
        let said = console.ask(&["connect", &gateway])?;
        same(&format!("{network}: {said}"), said == "connected", wanted)?;
        holds("somebody answers", console.ask(&["ping", gateway.split(':').next().unwrap_or_default(), "56"]).is_ok())?;
    }
    Ok(())
}

fn a_sandbox_that_says_nothing_is_on_the_bridge() -> Result<(), Fault> {
    let mut plain = Command::new(tapline());
    plain.args(["run", "--name", "net-default", "--"]).arg(this_program()).arg("console");
    for (name, directory) in [("RUNTIME_DIR", ""), ("CONFIG_HOME", "config"), ("DATA_HOME", "data")] {
        plain.env(format!("XDG_{name}"), runtime_dir().join(directory));
    }
    let mut first = Console::start(plain)?;
    let mut second = sandbox("net-bridged", &["--net", "bridge"])?;
    for server in served(&mut first)? {
        same(&server, second.ask(&["tcp-echo", &server, "10000"])?.as_str(), "10000 bytes came back")?;
    }
    same("interfaces", first.ask(&["interfaces"])?.as_str(), "lo eth0")?;
    same("inspect", inspect("net-default")?["mode"].as_str(), Some("bridge"))
}

fn a_sandbox_is_connected_and_disconnected_while_it_runs() -> Result<(), Fault> {
    let _network = Made::new("net-late", &[])?;
    let mut first = sandbox("net-early", &["--net", "net-late"])?;
    let mut second = sandbox("net-none", &["--net", "none"])?;
    let servers = served(&mut first)?;
    for _ in 0..2 {
        same("before", second.ask(&["interfaces"])?.as_str(), "lo")?;
        succeeds(&["network", "connect", "net-late", "net-none"])?;
        same("after", second.ask(&["interfaces"])?.as_str(), "lo eth0")?;
        for server in &servers {
            same(server, second.ask(&["tcp-echo", server, "10000"])?.as_str(), "10000 bytes came back")?;
        }
        holds("by name", second.ask(&["resolve", "net-early"]).is_ok())?;
        succeeds(&["network", "disconnect", "net-late", "net-none"])?;
    }
    Ok(())
}

fn a_namespace_that_is_served_is_connected_and_disconnected() -> Result<(), Fault> {
    let _network = Made::new("net-served", &[])?;
    let mut bare = sandbox("net-bare", &["--net", "none"])?;
    let pid = inspect("net-bare")?["pid"].to_string();
    succeeds(&["attach", "-q", "--detach", "--name", "net-att", &pid])?;
    for _ in 0..2 {
        succeeds(&["network", "connect", "net-served", "net-att"])?;
        same("both", bare.ask(&["interfaces"])?.as_str(), "lo tap0 eth0")?;
        succeeds(&["network", "disconnect", "net-served", "net-att"])?;
        same("one", bare.ask(&["interfaces"])?.as_str(), "lo tap0")?;
    }
    succeeds(&["stop", "net-att"]).map(drop)
}

fn a_namespace_gets_shared_networks() -> Result<(), Fault> {
    let _open = Made::new("net-att-open", &[])?;
    let _closed = Made::new("net-att-shut", &["--internal"])?;
    let mut bare = sandbox("net-shared-bare", &["--net", "none"])?;
    let mut other = sandbox("net-shared-other", &["--net", "net-att-open"])?;
    let pid = inspect("net-shared-bare")?["pid"].to_string();
    let options = ["--net", "net-att-shut", "--net", "net-att-open", "--network-alias", "net-att-alias"];
    succeeds(&[&["attach", "-q", "--detach", "--name", "net-att-both"], &options[..], &[&pid]].concat())?;
    same("interfaces", bare.ask(&["interfaces"])?.as_str(), "lo eth0 eth1")?;
    let state = inspect("net-att-both")?;
    let places = state["endpoints"].as_array().map(Vec::as_slice).unwrap_or_default();
    let seen: Vec<_> = places.iter().map(|p| (p["ifname"].as_str(), p["default_route"].as_bool())).collect();
    same("places", seen, vec![(Some("eth0"), Some(false)), (Some("eth1"), Some(true))])?;
    for server in served(&mut other)? {
        same(&server, bare.ask(&["tcp-echo", &server, "10000"])?.as_str(), "10000 bytes came back")?;
    }
    holds("by its alias", other.ask(&["resolve", "net-att-alias"]).is_ok())?;
    succeeds(&["stop", "net-att-both"])?;
    until("the interfaces are gone", 10, || bare.ask(&["interfaces"]).is_ok_and(|said| said == "lo"))
}

fn a_network_goes_by_its_id_too() -> Result<(), Fault> {
    let (_one, _two) = (Made::new("net-number-one", &[])?, Made::new("net-number-two", &[])?);
    let id = |name: &str| succeeds(&["network", "inspect", "--get", "id", name]).map(|id| id.trim().to_owned());
    let (one, two) = (id("net-number-one")?, id("net-number-two")?);
    let _first = sandbox("net-id-a", &["--net", &one])?;
    let options = ["--net", &one, "--net", &two, "--default-net", &two, "--link", "net-id-a"];
    let _second = sandbox("net-id-b", &options)?;
    let state = inspect("net-id-b")?;
    let places = state["endpoints"].as_array().map(Vec::as_slice).unwrap_or_default();
    let seen: Vec<_> = places.iter().map(|p| (p["network"].as_str(), p["default_route"].as_bool())).collect();
    same("places", seen, vec![(Some("net-number-one"), Some(false)), (Some("net-number-two"), Some(true))])
}

fn an_attached_namespace_is_connected_and_disconnected_too() -> Result<(), Fault> {
    let _network = Made::new("net-joined", &[])?;
    let mut first = sandbox("net-there-first", &["--net", "net-joined"])?;
    let servers = served(&mut first)?;
    let mut target = Command::new(this_program());
    target.arg("target");
    let mut target = Console::start(target)?;
    let pid = target.child.0.id().to_string();
    succeeds(&["attach", "-q", "--detach", "--name", "net-attached", &pid])?;
    for _ in 0..2 {
        let since = Instant::now();
        succeeds(&["network", "connect", "net-joined", "net-attached"])?;
        holds("the agent is started at once", since.elapsed() < Duration::from_secs(3))?;
        same("after", target.ask(&["interfaces"])?.as_str(), "lo tap0 eth0")?;
        for server in &servers {
            same(server, target.ask(&["tcp-echo", server, "10000"])?.as_str(), "10000 bytes came back")?;
        }
        succeeds(&["network", "disconnect", "net-joined", "net-attached"])?;
        same("before", target.ask(&["interfaces"])?.as_str(), "lo tap0")?;
    }
    same("the target ends", target.end()?.code(), Some(0))
}

fn the_default_route_is_where_it_was_asked_for_and_moves_on() -> Result<(), Fault> {
    let _networks = (Made::new("net-in", &["--internal"])?, Made::new("net-1", &[])?, Made::new("net-2", &[])?);
    let options = ["--net", "net-in", "--net", "net-1", "--net", "net-2", "--default-net", "net-2"];
    let mut console = sandbox("net-three", &options)?;
    let ifname = |network: &str| -> Result<String, Fault> {
        let all = inspect("net-three")?;
        let seats = all["endpoints"].as_array().ok_or("endpoints")?;
        let seat = seats.iter().find(|seat| seat["network"] == network).ok_or("a seat")?;
        Ok(seat["ifname"].as_str().unwrap_or_default().to_owned())
    };
    // 192.0.2.1 is nobody's (RFC 5737): a source address tells which way a packet would take.
    let mut leads_to = |network: &str| -> Result<(), Fault> {
        let ifname = ifname(network)?;
        let own = addresses(&mut console, &ifname)?[0].to_string();
        same(network, console.ask(&["source", "192.0.2.1"])?, own)
    };
    leads_to("net-2")?;
    succeeds(&["network", "disconnect", "net-2", "net-three"])?;
    leads_to("net-1")?;
    succeeds(&["network", "connect", "net-2", "net-three"])?;
    leads_to("net-2")?;
    succeeds(&["network", "disconnect", "net-in", "net-three"])?;
    leads_to("net-2")
}

fn what_a_shared_network_promises_holds_for_the_locked() -> Result<(), Fault> {
    let _network = Made::new("net-locked", &[])?;
    let mut first = sandbox("net-open", &["--net", "net-locked"])?;
    let mut second = sandbox("net-shut", &["--net", "net-locked", "--locked"])?;
    for server in served(&mut first)? {
        same(&server, second.ask(&["tcp-echo", &server, "10000"])?.as_str(), "10000 bytes came back")?;
    }
    same("without it", first.ask(&["set-down", "eth0"])?.as_str(), "down")?;
    same("with it", second.ask(&["set-down", "eth0"])?.as_str(), "not permitted")
}

fn a_place_on_a_network_is_given_back_however_a_sandbox_ends() -> Result<(), Fault> {
    let _network = Made::new("net-small", &["--subnet", "10.96.0.0/24", "--ip-range", "10.96.0.8/31", "--no-ipv6"])?;
    let start = |name: &str| sandbox(name, &["--net", "net-small"]);
    let mut first = start("net-a")?;
    let second = start("net-b")?;
    same(
        "the lowest",
        addresses(&mut first, "eth0")?,
        vec!["10.96.0.8".parse::<IpAddr>().map_err(|e| e.to_string())?],
    )?;
    let full = command(&["run", "--net", "net-small", "--", "true"]).output().map_err(|e| e.to_string())?;
    same(&text(&full.stderr), full.status.code(), Some(125))?;
    holds(text(&full.stderr), text(&full.stderr).contains("10.96.0.8/31") && text(&full.stderr).lines().count() == 1)?;
    signal(second.child.0.id(), Signal::SIGKILL)?;
    let pid = second.child.0.id();
    until("it has ended", 10, || has_ended(pid))?;
    let mut third = start("net-c")?;
    same("free again", addresses(&mut third, "eth0")?[0].to_string().as_str(), "10.96.0.9")?;
    same("status", first.end()?.code(), Some(0))?;
    let mut fourth = start("net-d")?;
    same("the lowest again", addresses(&mut fourth, "eth0")?[0].to_string().as_str(), "10.96.0.8")
}
