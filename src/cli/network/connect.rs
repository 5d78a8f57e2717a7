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
    use crate::control::state::Registration;
    use crate::plan::{BRIDGE, Definition, Endpoint, Ipv4Part, Seat, Sharing};
    use socket2::{Domain, SockAddr, Socket, Type};
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    /// A registered sandbox on a network of a test's own; gone with the test.
    struct Scene {
        root: PathBuf,
        states: StateDir,
        held: Option<Registration>,
    }

    impl Scene {
        fn new(name: &str, mode: Mode, shared: bool) -> Scene {
            let root = std::env::temp_dir().join(format!("tapline-connect-{}-{name}", std::process::id()));
            std::fs::create_dir(&root).unwrap();
            let states = StateDir::at(Some(root.clone()), root.join("fallback"), 42).unwrap();
            let mut held = states.register("0123456789ab", "web").unwrap();
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
            let mut network = definition.network();
            network.sharing = network.sharing.filter(|_| shared);
            let mut state = states.find("web").unwrap();
            let endpoint = Endpoint { mac: MacAddr([2, 0x42, 10, 9, 0, 2]), ..Endpoint::default() };
            state.endpoints = vec![Seat { endpoint, network, default_route: true }];
            state.mode = mode;
            held.publish(&state).unwrap();
            Scene { root, states, held: Some(held) }
        }

        /// What the person is told when the supervisor answers so; with nothing to say it closes the connection.
        fn ask(&self, reply: Option<Reply>) -> Result<i32, String> {
            let path = self.held.as_ref().unwrap().path().join("control.sock");
            let listener = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
            listener.bind(&SockAddr::unix(&path).unwrap()).unwrap();
            listener.listen(1).unwrap();
            let request = Request::Disconnect { network: BRIDGE.into() };
            let result = std::thread::scope(|scope| {
                scope.spawn(|| {
                    let (client, _) = listener.accept().unwrap();
                    let (asked, _) = wire::recv::<Request>(&client).unwrap().unwrap();
                    assert_eq!(asked, request);
                    if let Some(reply) = reply {
                        wire::send(&client, &reply, &[]).unwrap();
                    }
                });
                ask(&self.states, &self.states.find("web").unwrap(), &request)
            });
            std::fs::remove_file(path).unwrap();
            result.map_err(told)
        }
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            self.held = None;
            let _ = std::fs::remove_dir_all(&self.root);
        }
    }

    fn told(failure: Failure) -> String {
        match failure {
            Failure::Failed(error) => format!("{error:#}"),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn what_the_supervisor_answers_is_what_the_person_reads() {
        let scene = Scene::new("answers", Mode::Bridge, true);
        assert_eq!(scene.ask(Some(Reply { error: None })), Ok(0));
        let refused = scene.ask(Some(Reply { error: Some("it is the last one".into()) }));
        assert_eq!(refused, Err("it is the last one".into()));
        assert!(scene.ask(None).unwrap_err().contains("ended before it was done"));
        let request = Request::Disconnect { network: BRIDGE.into() };
        let silent = ask(&scene.states, &scene.states.find("web").unwrap(), &request).map_err(told).unwrap_err();
        assert!(silent.starts_with("the supervisor of `web` does not listen (cannot connect to "), "{silent}");
    }

    #[test]
    fn only_sandboxes_with_interfaces_of_their_own_can_be_connected() {
        for (name, mode, why) in [
            ("host", Mode::Host, "was started with --net host and cannot be connected to networks: its interfaces are"),
            ("container", Mode::Container, "connect that one"),
        ] {
            let scene = Scene::new(name, mode, true);
            let error = find(&scene.states, "web").map_err(told).unwrap_err();
            assert!(error.starts_with("`web` ") && error.contains(why), "{error}");
        }
        let scene = Scene::new("none", Mode::None, true);
        assert!(find(&scene.states, "web").is_ok());
    }

    #[test]
    fn only_shared_networks_count_as_connected() {
        let scene = Scene::new("shared", Mode::Bridge, true);
        let sandbox = scene.states.find("web").unwrap();
        assert!(is_on(&sandbox, BRIDGE) && !is_on(&sandbox, "db"));
        let scene = Scene::new("private", Mode::Private, false);
        assert!(!is_on(&scene.states.find("web").unwrap(), BRIDGE));
    }
}
