//! Links to other sandboxes (`--link NAME[:ALIAS]`), as they are when a sandbox starts.
//!
//! # Theory of operation
//!
//! A link is looked up before anything is made: the other sandbox must run, and be on one of the networks that this one
//! joins. From its state come the addresses for /etc/hosts, which the gateway keeps up to date afterwards, and the
//! variables that CMD finds, under the names and in the form of Docker's legacy links. Those stay as they are, even when
//! the other sandbox comes back with another address: a program that wants to follow it uses the name.
//!
//! ```text
//! DB_NAME=/web/db                      who has the link, and what it calls the other
//! DB_PORT=tcp://10.176.0.3:5432        the lowest port, TCP before UDP
//! DB_PORT_5432_TCP=tcp://10.176.0.3:5432
//! DB_PORT_5432_TCP_ADDR=10.176.0.3     DB_PORT_5432_TCP_PORT=5432     DB_PORT_5432_TCP_PROTO=tcp
//! ```
use std::net::{IpAddr, SocketAddr};

use super::etc::Linked;
use crate::control::state::{SandboxState, StateDir, StateError};
use crate::plan::{Expose, Protocol, Run, SandboxLink};

/// Why a link cannot be made. One sentence each.
#[derive(Debug, thiserror::Error)]
pub enum LinkedError {
    /// Nobody of that name, or several.
    #[error("--link {name}: {error}{hint}", hint = if is_kind(name) { "; the kind of interface is --link-kind" } else { "" })]
    State {
        /// What was given.
        name: String,
        /// Why.
        error: StateError,
    },
    /// Its own name.
    #[error("--link {0} is this sandbox itself: name another one, or leave it out")]
    Itself(String),
    /// On no network together.
    #[error(
        "--link {name}: that sandbox is on none of this one's networks ({}){theirs}: name the same network for \
         both, or connect one with `tapline network connect`",
        ours.join(", ")
    )]
    Apart {
        /// The other sandbox.
        name: String,
        /// This one's networks.
        ours: Vec<String>,
        /// The other one's, in words that go on with the sentence.
        theirs: String,
    },
}

fn is_kind(name: &str) -> bool {
    ["auto", "tap", "packet"].contains(&name)
}

/// A sandbox that this one has a link to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What it is called, and its addresses on the networks that both are on; IPv4 first.
    pub linked: Linked,
    /// Its exposed and published ports.
    pub exposed: Vec<Expose>,
}

/// Look the plan's links up. One that was given by an id is in the plan by its name afterwards.
pub fn find(states: &StateDir, plan: &mut Run) -> Result<Vec<Peer>, LinkedError> {
    let ours: Vec<String> = plan.joins.iter().map(|join| join.network.clone()).collect();
    let mut peers = Vec::new();
    for link in &mut plan.links {
        let name = &link.sandbox;
        let state = states.find(name).map_err(|error| LinkedError::State { name: name.clone(), error })?;
        if state.id == plan.id {
            return Err(LinkedError::Itself(name.clone()));
        }
        link.sandbox.clone_from(&state.name);
        peers.push(peer(link, &state, &ours)?);
    }
    Ok(peers)
}

fn peer(link: &SandboxLink, state: &SandboxState, ours: &[String]) -> Result<Peer, LinkedError> {
    let shared = || state.endpoints.iter().filter(|seat| seat.network.sharing.is_some());
    let mut common = shared().filter(|seat| ours.contains(&seat.network.name)).peekable();
    let Some(first) = common.peek() else {
        let theirs: Vec<&str> = shared().map(|seat| seat.network.name.as_str()).collect();
        let theirs = match &theirs[..] {
            [] => ", nor on any other that is shared".to_owned(),
            theirs => format!(" but on {}", theirs.join(", ")),
        };
        return Err(LinkedError::Apart { name: link.sandbox.clone(), ours: ours.to_vec(), theirs });
    };
    let exposed = first.endpoint.exposed.clone();
    let mut addresses: Vec<IpAddr> = common
        .flat_map(|seat| seat.endpoint.v4.map(IpAddr::V4).into_iter().chain(seat.endpoint.v6.map(IpAddr::V6)))
        .collect();
    // The sort is stable: by network within a family.
    addresses.sort_by_key(IpAddr::is_ipv6);
    Ok(Peer { linked: Linked { link: link.clone(), addresses }, exposed })
}

/// Most ports of one link that have variables of their own: an environment has bounds (execve(2)).
const MOST_PORTS: usize = 256;

/// The variables for CMD. `own` is this sandbox's name.
pub fn environment(own: &str, peers: &[Peer]) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    for Peer { linked: Linked { link, addresses }, exposed } in peers {
        let alias = link.alias.as_ref().unwrap_or(&link.sandbox);
        let prefix = alias.to_ascii_uppercase().replace('-', "_");
        variables.push((format!("{prefix}_NAME"), format!("/{own}/{alias}")));
        let Some(&address) = addresses.first() else { continue };
        let url = |(port, protocol): (u16, Protocol)| format!("{protocol}://{}", SocketAddr::new(address, port));
        let ports = single_ports(exposed);
        if let Some(first) = ports.first() {
            variables.push((format!("{prefix}_PORT"), url(*first)));
        }
        for port in ports {
            let (number, protocol) = (port.0, port.1.to_string());
            let name = format!("{prefix}_PORT_{number}_{}", protocol.to_ascii_uppercase());
            variables.push((name.clone(), url(port)));
            variables.push((format!("{name}_ADDR"), address.to_string()));
            variables.push((format!("{name}_PORT"), number.to_string()));
            variables.push((format!("{name}_PROTO"), protocol));
        }
    }
    variables
}

/// The lowest first, TCP before UDP.
fn single_ports(exposed: &[Expose]) -> Vec<(u16, Protocol)> {
    let each = |expose: &Expose| {
        let protocol = expose.protocol;
        (expose.ports.first..=expose.ports.last).map(move |port| (port, protocol)).take(MOST_PORTS)
    };
    let mut ports: Vec<(u16, Protocol)> = exposed.iter().flat_map(each).collect();
    ports.sort_unstable();
    ports.dedup();
    ports.truncate(MOST_PORTS);
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(alias: Option<&str>, addresses: &[&str], exposed: &[&str]) -> Peer {
        let link = SandboxLink { sandbox: "pg-1".into(), alias: alias.map(str::to_owned) };
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        let exposed = exposed.iter().map(|text| Expose::parse(text).unwrap()).collect();
        Peer { linked: Linked { link, addresses }, exposed }
    }

    #[test]
    fn the_environment_has_dockers_names() {
        let lines = |peer| -> Vec<String> {
            environment("web", &[peer]).into_iter().map(|(name, value)| format!("{name}={value}")).collect()
        };
        assert_eq!(
            lines(peer(Some("db"), &["10.176.0.3", "fd01::3"], &["5432", "53/udp"])),
            [
                "DB_NAME=/web/db",
                "DB_PORT=udp://10.176.0.3:53",
                "DB_PORT_53_UDP=udp://10.176.0.3:53",
                "DB_PORT_53_UDP_ADDR=10.176.0.3",
                "DB_PORT_53_UDP_PORT=53",
                "DB_PORT_53_UDP_PROTO=udp",
                "DB_PORT_5432_TCP=tcp://10.176.0.3:5432",
                "DB_PORT_5432_TCP_ADDR=10.176.0.3",
                "DB_PORT_5432_TCP_PORT=5432",
                "DB_PORT_5432_TCP_PROTO=tcp",
            ]
        );
        assert_eq!(
            lines(peer(None, &["fd01::3"], &["80"]))[..2],
            ["PG_1_NAME=/web/pg-1", "PG_1_PORT=tcp://[fd01::3]:80"]
        );
        assert_eq!(lines(peer(None, &["10.176.0.3"], &[])), ["PG_1_NAME=/web/pg-1"]);
    }

    #[test]
    fn a_long_range_does_not_fill_the_environment() {
        let variables = environment("web", &[peer(None, &["10.176.0.3"], &["1-65535", "1-65535/udp"])]);
        assert!(variables.len() <= 2 + 4 * MOST_PORTS);
        assert_eq!(variables[1].1, "tcp://10.176.0.3:1");
    }
}
