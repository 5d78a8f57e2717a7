//! A sandbox's places on its networks: made of what was asked for and of the addresses that were taken; and what is
//! written of them in the state directory.
use std::fs::File;
use std::net::IpAddr;
use std::path::Path;

use super::SandboxError;
use super::order::Order;
use super::target::TargetError;
use super::uplink;
use crate::control::networks::{Networks, Place};
use crate::control::state::{Registration, SandboxState};
use crate::observe::capture;
use crate::plan::{
    self, Access, Endpoint, Expose, HostTarget, Join, LinkChoice, Logging, Mode, Names, Network, Ports, Run,
    SandboxLink, Seat, Target,
};

/// What is the same for all of a sandbox's places.
#[derive(Clone, Debug)]
pub(super) struct About {
    /// The sandbox's id.
    pub(super) id: String,
    /// Its name.
    pub(super) name: String,
    /// `--dns-search`, where it was given; announced on a network of its own.
    pub(super) search: Option<Vec<String>>,
    /// What is said.
    pub(super) logging: Logging,
    /// What kind of link it has on shared networks.
    pub(super) link: LinkChoice,
    /// `--link`.
    pub(super) links: Vec<SandboxLink>,
    /// What it may reach besides.
    pub(super) access: Access,
    /// What a link to it opens.
    pub(super) exposed: Vec<Expose>,
    /// Names and resolvers that were given for it, in its own files where it has such.
    pub(super) names: Option<Names>,
    /// `--default-net`.
    pub(super) default_net: Option<String>,
    /// `--on`.
    pub(super) publish_on: Option<String>,
    /// `--require-confinement`.
    pub(super) require_confinement: bool,
}

impl About {
    /// Of `run`.
    pub(super) fn of_run(plan: &Run) -> About {
        About {
            id: plan.id.clone(),
            name: plan.name.clone(),
            search: plan.names.search.clone(),
            logging: plan.logging,
            link: link_there(plan.interface.link),
            links: plan.links.clone(),
            access: plan.access,
            exposed: exposed(&plan.ports),
            names: Some(plan.names.clone()),
            default_net: plan.default_net.clone(),
            publish_on: plan.publish_on.clone(),
            require_confinement: plan.require_confinement,
        }
    }

    /// Of `attach`.
    pub(super) fn of_attach(plan: &plan::Attach) -> About {
        About {
            id: plan.id.clone(),
            name: plan.name.clone(),
            search: plan.names.search.clone(),
            logging: plan.logging,
            link: link_there(plan.interface.link),
            links: Vec::new(),
            access: plan.access,
            exposed: exposed(&plan.ports),
            names: Some(plan.names.clone()),
            default_net: plan.default_net.clone(),
            publish_on: plan.publish_on.clone(),
            require_confinement: plan.require_confinement,
        }
    }
}

/// What `-p` and `--expose` name.
fn exposed(ports: &Ports) -> Vec<Expose> {
    let mut all: Vec<Expose> = Vec::new();
    let published = ports.publish.iter().map(|spec| Expose { ports: spec.sandbox, protocol: spec.protocol });
    for expose in published.chain(ports.expose.iter().copied()) {
        if !all.contains(&expose) {
            all.push(expose);
        }
    }
    all
}

/// The places that a sandbox is to have from the start, and how their interfaces are made. Its addresses on shared
/// networks are taken for it.
pub(super) fn of_run(
    plan: &Run,
    about: &About,
    registration: &mut Registration,
) -> Result<Vec<(Seat, Order)>, SandboxError> {
    let mut seats = Vec::new();
    match plan.mode {
        Mode::Private => {
            let (seat, order) = private(&plan.id, &plan.name, &plan.names, &plan.interface, &plan.network);
            check_named(std::slice::from_ref(&seat), about)?;
            return Ok(vec![(seat, order)]);
        }
        Mode::Bridge => {
            check_link(plan.interface.link)?;
            let networks = Networks::open()?;
            for join in &plan.joins {
                let place = networks.take(registration, join)?;
                let taken = |name: &String| plan.joins.iter().any(|join| join.ifname.as_ref() == Some(name));
                let given = |name: &String| seats.iter().any(|seat: &Seat| seat.endpoint.ifname == *name);
                let free = || (0..).map(|n| format!("eth{n}")).find(|name| !taken(name) && !given(name));
                let ifname = join.ifname.clone().or_else(free).unwrap_or_default();
                seats.push(seat(about, join, place, ifname));
            }
            choose_default(&mut seats, plan.default_net.as_deref());
        }
        Mode::None | Mode::Host | Mode::Container => {}
    }
    check_named(&seats, about)?;
    let link = plan.interface.link;
    let order = |seat: &Seat| uplink::order(seat, Some(seat.endpoint.ifname.clone()), link, true);
    Ok(seats.into_iter().map(|seat| (seat.clone(), order(&seat))).collect())
}

/// Likewise for `attach`. What an interface is called on a shared network, the agent finds out: it may have others.
pub(super) fn of_attach(
    plan: &plan::Attach,
    about: &About,
    registration: &mut Registration,
) -> Result<Vec<(Seat, Order)>, SandboxError> {
    let plan::Interface { link, configure, .. } = plan.interface;
    if plan.mode == Mode::Private {
        return Ok(vec![private(&plan.id, &plan.name, &plan.names, &plan.interface, &plan.network)]);
    }
    check_link(link)?;
    if let Target::Tap(_) = plan.target {
        return Err(SandboxError::Target(TargetError::NoNamespace));
    }
    let networks = Networks::open()?;
    let mut seats = Vec::new();
    for join in &plan.joins {
        let place = networks.take(registration, join)?;
        seats.push(seat(about, join, place, join.ifname.clone().unwrap_or_default()));
    }
    choose_default(&mut seats, plan.default_net.as_deref());
    check_named(&seats, about)?;
    let order =
        |(seat, join): (Seat, &Join)| (seat.clone(), uplink::order(&seat, join.ifname.clone(), link, configure));
    Ok(seats.into_iter().zip(&plan.joins).map(order).collect())
}

/// There is no being on a shared network without an interface.
fn check_link(link: LinkChoice) -> Result<(), SandboxError> {
    match link {
        LinkChoice::None => Err(SandboxError::Inside(
            "--link-kind none: no shared network can be joined without an interface; leave one of them out".to_owned(),
        )),
        LinkChoice::Auto | LinkChoice::Tap | LinkChoice::Packet => Ok(()),
    }
}

/// What an interface on a shared network is to be, for a sandbox whose own network has this.
fn link_there(link: LinkChoice) -> LinkChoice {
    if link == LinkChoice::None { LinkChoice::Auto } else { link }
}

/// The file of `--pcap`, which is opened before anything else is begun.
pub(super) fn capture_file(pcap: Option<&Path>, mode: Mode) -> Result<Option<File>, SandboxError> {
    match pcap {
        Some(_) if mode != Mode::Private => Err(SandboxError::Inside(
            "--pcap: frames can be captured on a network of the sandbox's own only (--net private)".to_owned(),
        )),
        Some(path) => Ok(Some(capture::create(path)?)),
        None => Ok(None),
    }
}

/// Is the sandbox on the networks that options name?
fn check_named(seats: &[Seat], about: &About) -> Result<(), SandboxError> {
    for (what, named) in [("--default-net", &about.default_net), ("--on", &about.publish_on)] {
        if let Some(name) = named
            && !seats.iter().any(|seat| seat.network.name == *name)
        {
            return Err(SandboxError::Inside(format!(
                "{what} {name}: the sandbox is not on that network; name one that --net names"
            )));
        }
    }
    Ok(())
}

/// The place on a network that a sandbox has for itself, and how its interface is made.
fn private(id: &str, name: &str, names: &Names, interface: &plan::Interface, network: &Network) -> (Seat, Order) {
    let mut network = network.clone();
    if interface.link == LinkChoice::None {
        // Nobody has an address there, the resolver included.
        (network.v4, network.v6) = (None, None);
    }
    let endpoint = Endpoint {
        id: id.to_owned(),
        name: name.to_owned(),
        ifname: interface.name.clone(),
        mac: interface.mac,
        v4: network.v4.map(|l| l.sandbox),
        v6: network.v6.map(|l| l.sandbox),
        // Usually those that were given are announced to the sandbox, and the DNS address asks the host's.
        dns_servers: if network.behaviour.mapping.is_some() { names.servers.clone() } else { Vec::new() },
        ..Endpoint::default()
    };
    let seat = Seat { endpoint, network, default_route: true };
    let plan::Interface { name, link, configure, extras, .. } = interface;
    let order = uplink::order_with(&seat, Some(name.clone()), *link, *configure, extras);
    (seat, order)
}

/// A place on a shared network. It does not have the default route.
pub(super) fn seat(about: &About, join: &Join, place: Place, ifname: String) -> Seat {
    let Place { network, v4, v6, mac, dns_servers } = place;
    let given = about.names.as_ref().map(|names| names.servers.clone()).unwrap_or_default();
    let endpoint = Endpoint {
        id: about.id.clone(),
        name: about.name.clone(),
        ifname,
        mac,
        v4,
        v6,
        aliases: join.aliases.clone(),
        links: about.links.clone(),
        exposed: about.exposed.clone(),
        access: about.access,
        names: about.names.as_ref().map(|names| own_names(names, &network)).unwrap_or_default(),
        dns_servers: if given.is_empty() { dns_servers } else { given },
    };
    Seat { endpoint, network, default_route: false }
}

/// `--add-host`, as the DNS address answers it.
fn own_names(names: &Names, network: &Network) -> Vec<(String, IpAddr)> {
    let gateways: Vec<IpAddr> = gateways(network).collect();
    let addresses = |target: &HostTarget| match target {
        HostTarget::Address(address) => vec![*address],
        HostTarget::Gateway => gateways.clone(),
    };
    let lower = |name: &str| name.trim_end_matches('.').to_ascii_lowercase();
    names.hosts.iter().flat_map(|(name, to)| addresses(to).into_iter().map(move |ip| (lower(name), ip))).collect()
}

fn gateways(network: &Network) -> impl Iterator<Item = IpAddr> {
    let v4 = network.v4.map(|l| IpAddr::V4(l.gateway));
    v4.into_iter().chain(network.v6.map(|l| IpAddr::V6(l.gateway)))
}

/// Does the network lead anywhere else?
pub(super) fn is_open(network: &Network) -> bool {
    network.sharing.is_none_or(|sharing| !sharing.internal)
}

/// The default route leads through the network named, else through the first that leads anywhere.
fn choose_default(seats: &mut [Seat], named: Option<&str>) {
    let open = |seat: &Seat| is_open(&seat.network);
    let chosen = seats
        .iter()
        .position(|seat| open(seat) && Some(seat.network.name.as_str()) == named)
        .or_else(|| seats.iter().position(open));
    if let Some(at) = chosen {
        seats[at].default_route = true;
    }
}

/// What `ps` and `inspect` show of them.
pub(super) fn write_down(state: &mut SandboxState, seats: Vec<Seat>) {
    let first = seats.iter().find(|seat| seat.default_route).or(seats.first());
    state.v4 = first.and_then(|seat| seat.endpoint.v4);
    state.v6 = first.and_then(|seat| seat.endpoint.v6);
    state.endpoints = seats;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_networks_resolvers_are_asked_for_a_sandbox_that_names_none() {
        let about = About {
            id: "0123456789ab".into(),
            name: "web".into(),
            search: None,
            logging: Logging { verbosity: 0, json: false },
            link: LinkChoice::Auto,
            links: Vec::new(),
            access: Access::default(),
            exposed: Vec::new(),
            names: None,
            default_net: None,
            publish_on: None,
            require_confinement: false,
        };
        let of_network: Vec<IpAddr> = vec!["192.0.2.53".parse().unwrap()];
        let place = Place {
            network: crate::fuzzing::network(),
            v4: None,
            v6: None,
            mac: plan::MacAddr::default(),
            dns_servers: of_network.clone(),
        };
        let servers = |about: &About| seat(about, &Join::default(), place.clone(), "eth0".into()).endpoint.dns_servers;
        assert_eq!(servers(&about), of_network);
        let own: Vec<IpAddr> = vec!["192.0.2.54".parse().unwrap()];
        let names = Names {
            hostname: String::new(),
            dns: true,
            servers: own.clone(),
            search: None,
            options: Vec::new(),
            hosts: Vec::new(),
        };
        assert_eq!(servers(&About { names: Some(names), ..about }), own);
    }
}
