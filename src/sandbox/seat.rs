//! A sandbox's place on a network: what the gateway is to know of it.
use std::net::IpAddr;

use crate::control::networks::Place;
use crate::plan::{Endpoint, Expose, HostTarget, Network, Ports, Run, Seat};

/// The endpoint of a sandbox of `run` on a shared network.
pub fn endpoint(plan: &Run, place: &Place, ifname: &str) -> Endpoint {
    let join = plan.joins.iter().find(|join| join.network == place.network.name);
    Endpoint {
        id: plan.id.clone(),
        name: plan.name.clone(),
        ifname: ifname.to_owned(),
        mac: place.mac,
        v4: place.v4,
        v6: place.v6,
        aliases: join.map(|join| join.aliases.clone()).unwrap_or_default(),
        links: plan.links.clone(),
        exposed: exposed(&plan.ports),
        access: plan.access,
        names: added_names(&plan.names.hosts, &place.network),
        dns_servers: plan.names.servers.clone(),
    }
}

/// The seat of a sandbox of `run` on its private network.
pub fn private(plan: &Run) -> Seat {
    let endpoint = Endpoint {
        id: plan.id.clone(),
        name: plan.name.clone(),
        ifname: plan.interface.name.clone(),
        mac: plan.interface.mac,
        v4: plan.network.v4.map(|layout| layout.sandbox),
        v6: plan.network.v6.map(|layout| layout.sandbox),
        exposed: exposed(&plan.ports),
        ..Endpoint::default()
    };
    Seat { endpoint, network: plan.network.clone(), default_route: true }
}

/// The ports that a link to the sandbox opens: those exposed, and those published.
pub fn exposed(ports: &Ports) -> Vec<Expose> {
    let published = ports.publish.iter().map(|spec| Expose { ports: spec.sandbox, protocol: spec.protocol });
    let mut exposed: Vec<Expose> = Vec::new();
    for expose in ports.expose.iter().copied().chain(published) {
        if !exposed.contains(&expose) {
            exposed.push(expose);
        }
    }
    exposed
}

/// `--add-host` for the DNS address of a network.
fn added_names(hosts: &[(String, HostTarget)], network: &Network) -> Vec<(String, IpAddr)> {
    let v4 = network.v4.map(|layout| IpAddr::V4(layout.gateway));
    let gateways: Vec<IpAddr> = v4.into_iter().chain(network.v6.map(|layout| IpAddr::V6(layout.gateway))).collect();
    hosts
        .iter()
        .flat_map(|(name, target)| {
            let addresses = match target {
                HostTarget::Address(address) => vec![*address],
                HostTarget::Gateway => gateways.clone(),
            };
            addresses.into_iter().map(move |address| (name.clone(), address))
        })
        .collect()
}
