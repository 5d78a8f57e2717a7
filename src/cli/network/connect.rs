//! `tapline network connect` and `tapline network disconnect`: what the supervisor of a running sandbox is asked for.
use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::anyhow;
use clap::Args;

use crate::cli::error::Failure;
use crate::cli::net_options::{parse_alias, parse_ipv4, parse_ipv6};
use crate::cli::ps::mode_word;
use crate::control::networks::Networks;
use crate::control::requests::{PATIENCE, Reply, Request};
use crate::control::state::{SandboxState, StateDir};
use crate::control::wire;
use crate::plan::{Join, MacAddr, Mode, words};

/// Give a running sandbox an interface on a network
#[derive(Args, Debug)]
pub struct ConnectArgs {
    /// IPv4 address there [default: the lowest that is free]
    #[arg(long, value_name = "IP", value_parser = parse_ipv4)]
    ip: Option<Ipv4Addr>,

    /// Likewise for IPv6
    #[arg(long, value_name = "IP", value_parser = parse_ipv6)]
    ip6: Option<Ipv6Addr>,

    /// Ethernet address there [default: made of the IP address]
    #[arg(long, value_name = "MAC")]
    mac: Option<MacAddr>,

    /// Another name that others on the network find it by; may be repeated
    #[arg(long, visible_alias = "network-alias", value_name = "NAME", value_parser = parse_alias)]
    alias: Vec<String>,

    /// Name of the interface inside [default: the first free of eth0, eth1 and so on]
    #[arg(long, value_name = "NAME", value_parser = words::parse_interface)]
    ifname: Option<String>,

    /// Name or id of the network
    #[arg(value_name = "NETWORK")]
    network: String,

    /// Name or id of the sandbox, or the beginning of its id
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
}

/// Take a running sandbox's interface on a network away
///
/// Its flows on other networks are left alone; its default route moves to another network where it led through this one.
#[derive(Args, Debug)]
pub struct DisconnectArgs {
    /// Name or id of the network
    #[arg(value_name = "NETWORK")]
    network: String,

    /// Name or id of the sandbox, or the beginning of its id
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
}

impl ConnectArgs {
    /// Does it.
    pub fn execute(self) -> Result<i32, Failure> {
        let states = StateDir::open()?;
        let sandbox = find(&states, &self.sandbox)?;
        let network = Networks::open()?.find(&self.network)?.name;
        if is_on(&sandbox, &network) {
            let name = &sandbox.name;
            return Err(
                anyhow!("the sandbox `{name}` is on the network `{network}` already: disconnect it first").into()
            );
        }
        let join = Join { network, v4: self.ip, v6: self.ip6, mac: self.mac, aliases: self.alias, ifname: self.ifname };
        ask(&states, &sandbox, &Request::Connect { join })
    }
}

impl DisconnectArgs {
    /// Does it.
    pub fn execute(self) -> Result<i32, Failure> {
        let states = StateDir::open()?;
        let sandbox = find(&states, &self.sandbox)?;
        let network = match is_on(&sandbox, &self.network) {
            true => self.network,
            // An id, or a network that somebody has removed by hand.
            false => Networks::open()?.find(&self.network).map_or(self.network, |found| found.name),
        };
        if !is_on(&sandbox, &network) {
            let on: Vec<String> = shared(&sandbox).map(|name| format!("`{name}`")).collect();
            let on = if on.is_empty() { "none that is shared".to_owned() } else { on.join(", ") };
            return Err(
                anyhow!("the sandbox `{}` is not on the network `{network}`: it is on {on}", sandbox.name).into()
            );
        }
        ask(&states, &sandbox, &Request::Disconnect { network })
    }
}

/// The shared networks that a sandbox is on.
fn shared(sandbox: &SandboxState) -> impl Iterator<Item = &str> {
    sandbox.endpoints.iter().filter(|seat| seat.network.sharing.is_some()).map(|seat| seat.network.name.as_str())
}

fn is_on(sandbox: &SandboxState, network: &str) -> bool {
    shared(sandbox).any(|name| name == network)
}

/// A sandbox that can have interfaces of its own.
fn find(states: &StateDir, name: &str) -> Result<SandboxState, Failure> {
    let sandbox = states.find(name)?;
    let why = match sandbox.mode {
        Mode::Private | Mode::Bridge | Mode::None => return Ok(sandbox),
        Mode::Container => "its interfaces are those of the sandbox whose network it shares: connect that one",
        Mode::Host => "its interfaces are the host's own",
    };
    let mode = mode_word(sandbox.mode);
    Err(anyhow!("`{}` was started with --net {mode} and cannot be connected to networks: {why}", sandbox.name).into())
}

/// Asks the sandbox's supervisor and waits for the answer.
fn ask(states: &StateDir, sandbox: &SandboxState, request: &Request) -> Result<i32, Failure> {
    let name = &sandbox.name;
    let socket = states.connect_control(&sandbox.id, PATIENCE).map_err(|error| {
        anyhow!("the supervisor of `{name}` does not listen ({error}): it is ending, or of an earlier version; try again, or start it anew")
    })?;
    wire::send(&socket, request, &[]).map_err(anyhow::Error::from)?;
    match wire::recv::<Reply>(&socket) {
        Ok(Some((Reply { error: None }, _))) => Ok(0),
        Ok(Some((Reply { error: Some(why) }, _))) => Err(anyhow!(why).into()),
        Ok(None) => Err(anyhow!("the sandbox `{name}` ended before it was done").into()),
        Err(error) if error.is_would_block() => {
            let seconds = PATIENCE.as_secs();
            Err(anyhow!("the supervisor of `{name}` has not answered in {seconds} s: `tapline inspect {name}` shows whether it was done").into())
        }
        Err(error) => Err(anyhow::Error::from(error).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{BRIDGE, Definition, Endpoint, Ipv4Part, Seat, Sharing};
    use std::collections::BTreeMap;

    #[test]
    fn only_shared_networks_count_as_connected() {
        let definition = Definition {
            name: BRIDGE.into(),
            id: "0123456789ab".into(),
            v4: Some(Ipv4Part::new("10.9.0.0/24".parse().unwrap(), None, None).unwrap()),
            v6: None,
            mtu: 1500,
            sharing: Sharing { internal: false, icc: true },
            dns: Vec::new(),
            dns_search: Vec::new(),
            labels: BTreeMap::new(),
            created: 0,
        };
        let seat = |shared: bool| {
            let mut network = definition.network();
            network.sharing = network.sharing.filter(|_| shared);
            Seat { endpoint: Endpoint::default(), network, default_route: true }
        };
        let sandbox = |endpoints| SandboxState {
            id: "0123456789ab".into(),
            name: "web".into(),
            pid: None,
            supervisor_pid: 1,
            mode: Mode::Bridge,
            v4: None,
            v6: None,
            since: 0,
            command: Vec::new(),
            endpoints,
            ports: Vec::new(),
            names: None,
            container: None,
        };
        assert!(is_on(&sandbox(vec![seat(true)]), BRIDGE));
        assert!(!is_on(&sandbox(vec![seat(false)]), BRIDGE));
        assert!(!is_on(&sandbox(vec![seat(true)]), "db"));
    }
}
