//! Who is on which network, and what it is called there.
//!
//! # Theory of operation
//!
//! One [`Directory`] knows the endpoints of all shared networks of a gateway, by the number of the connection that each
//! came by. Names are a network's: a sandbox's name, its aliases there and its id lead to its addresses there, and an
//! address back to the sandbox's name. Who asks sees the networks that it is on itself, whichever of its resolvers it
//! asked; aliases of its links are for it alone.
//!
//! Every question is a few hash lookups, one set for each network that the asker is on. Networks that a sandbox has for
//! itself are not in here.
//!
//! A sandbox that has a link is told the linked one's addresses when it attaches and whenever they change: what changes
//! the directory gives back the [`News`] that came of it.
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use hickory_proto::rr::Name;
use ipnet::IpNet;

use crate::plan::{Endpoint, Network};

/// A name in lower case, its labels joined by dots, without a final one.
pub type Key = Box<[u8]>;

/// The key of a name; `None` where a label has a dot in it, which no name of ours has.
pub fn key_of(name: &Name) -> Option<Vec<u8>> {
    let mut key = Vec::with_capacity(name.len());
    for label in name.iter() {
        if label.contains(&b'.') {
            return None;
        }
        if !key.is_empty() {
            key.push(b'.');
        }
        key.extend(label.iter().map(u8::to_ascii_lowercase));
    }
    Some(key)
}

/// The key of a name as people write it.
pub fn key(text: &str) -> Key {
    text.trim_end_matches('.').to_ascii_lowercase().into_bytes().into()
}

/// A linked sandbox's addresses are others now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// The connection of the one that links.
    pub to: u64,
    /// The linked sandbox's name.
    pub sandbox: String,
    /// Its addresses on the network that both are on; empty when it is not there.
    pub addresses: Vec<IpAddr>,
}

/// Which sandbox an address belongs to.
#[derive(Debug, PartialEq, Eq)]
pub enum Owner<'a> {
    /// This one, by its name.
    Sandbox(&'a Name),
    /// Nobody, though it is in a subnet of the asker's.
    Nobody,
    /// The address is in none of the asker's subnets.
    Elsewhere,
}

/// All endpoints on shared networks.
#[derive(Debug, Default)]
pub struct Directory {
    networks: HashMap<String, Zone>,
    /// By the sandbox's id: its connections, with the networks that they are for.
    sandboxes: HashMap<String, Vec<(u64, String)>>,
    /// Connection to sandbox.
    connections: HashMap<u64, String>,
}

/// One network's names.
#[derive(Debug, Default)]
struct Zone {
    internal: bool,
    subnets: Vec<IpNet>,
    members: HashMap<u64, Member>,
    names: HashMap<Key, Vec<u64>>,
    addresses: HashMap<IpAddr, u64>,
    /// By a sandbox's name: who has a link to it.
    linkers: HashMap<String, Vec<u64>>,
}

/// One endpoint.
#[derive(Debug)]
struct Member {
    sandbox: String,
    /// The sandbox's name for PTR; `None` where DNS cannot carry it.
    name: Option<Name>,
    addresses: Vec<IpAddr>,
    /// What leads to it on this network.
    keys: Vec<Key>,
    /// What it calls those that it has links to, their own names among it, and which sandbox it is.
    aliases: Vec<(Key, String)>,
    /// Names of the sandboxes that it has links to.
    links: Vec<String>,
}

impl Directory {
    /// An endpoint is on a network from now on.
    pub fn attach(&mut self, connection: u64, network: &Network, endpoint: &Endpoint) -> Vec<News> {
        let Some(sharing) = network.sharing else { return Vec::new() };
        let zone = self.networks.entry(network.name.clone()).or_default();
        zone.internal = sharing.internal;
        zone.subnets = subnets(network).collect();
        let mut keys: Vec<Key> =
            [&endpoint.name, &endpoint.id].into_iter().chain(&endpoint.aliases).map(|n| key(n)).collect();
        keys.sort_unstable();
        keys.dedup();
        let member = Member {
            sandbox: endpoint.name.clone(),
            name: absolute(&endpoint.name),
            addresses: endpoint.v4.map(IpAddr::from).into_iter().chain(endpoint.v6.map(IpAddr::from)).collect(),
            keys,
            aliases: endpoint
                .links
                .iter()
                .flat_map(|link| link.alias.iter().chain([&link.sandbox]).map(|name| (key(name), link.sandbox.clone())))
                .collect(),
            links: endpoint.links.iter().map(|link| link.sandbox.clone()).collect(),
        };
        let sandbox = member.sandbox.clone();
        let links = member.links.clone();
        zone.insert(connection, member);
        self.sandboxes.entry(endpoint.id.clone()).or_default().push((connection, network.name.clone()));
        self.connections.insert(connection, endpoint.id.clone());
        let mut news = zone.news_of(&sandbox);
        news.extend(links.into_iter().map(|link| News {
            to: connection,
            addresses: zone.addresses_of(&link),
            sandbox: link,
        }));
        news
    }

    /// The endpoint of this connection has gone.
    pub fn detach(&mut self, connection: u64) -> Vec<News> {
        let Some(id) = self.connections.remove(&connection) else { return Vec::new() };
        let Some(places) = self.sandboxes.get_mut(&id) else { return Vec::new() };
        let Some(at) = places.iter().position(|(other, _)| *other == connection) else { return Vec::new() };
        let (_, network) = places.remove(at);
        if places.is_empty() {
            self.sandboxes.remove(&id);
        }
        let Some(zone) = self.networks.get_mut(&network) else { return Vec::new() };
        let sandbox = zone.remove(connection);
        let news = sandbox.map(|sandbox| zone.news_of(&sandbox)).unwrap_or_default();
        if zone.members.is_empty() {
            self.networks.remove(&network);
        }
        news
    }

    /// The addresses that a name has for the sandbox `asker` (its id); `None` where it has none. What it calls one that
    /// it has a link to leads to that one alone, whatever others are called.
    pub fn addresses(&self, asker: &str, name: &[u8]) -> Option<Vec<IpAddr>> {
        let mut found = Vec::new();
        for (connection, zone) in self.zones_of(asker) {
            let aliases = zone.members.get(&connection).map(|me| &me.aliases);
            if let Some((_, sandbox)) = aliases.into_iter().flatten().find(|(alias, _)| **alias == *name) {
                found.extend(zone.addresses_of(sandbox));
                continue;
            }
            let members = zone.names.get(name).into_iter().flatten().filter_map(|member| zone.members.get(member));
            found.extend(members.flat_map(|member| &member.addresses));
        }
        let mut seen = HashSet::new();
        found.retain(|ip| seen.insert(*ip));
        (!found.is_empty() || self.has_name(asker, name)).then_some(found)
    }

    fn has_name(&self, asker: &str, name: &[u8]) -> bool {
        self.zones_of(asker).any(|(_, zone)| zone.names.contains_key(name))
    }

    /// Whose address this is, as the sandbox `asker` (its id) sees it.
    pub fn owner(&self, asker: &str, ip: IpAddr) -> Owner<'_> {
        let mut found = Owner::Elsewhere;
        for (_, zone) in self.zones_of(asker) {
            let member = zone.addresses.get(&ip).and_then(|member| zone.members.get(member));
            if let Some(name) = member.and_then(|member| member.name.as_ref()) {
                return Owner::Sandbox(name);
            }
            if zone.subnets.iter().any(|subnet| subnet.contains(&ip)) {
                found = Owner::Nobody;
            }
        }
        found
    }

    /// May what the sandbox (its id) asks for be passed on? Not when all its networks are internal ones; nor when it has
    /// left them.
    pub fn may_forward(&self, asker: &str) -> bool {
        self.zones_of(asker).any(|(_, zone)| !zone.internal)
    }

    fn zones_of(&self, asker: &str) -> impl Iterator<Item = (u64, &Zone)> {
        let places = self.sandboxes.get(asker).into_iter().flatten();
        places.filter_map(|(connection, network)| Some((*connection, self.networks.get(network)?)))
    }
}

impl Zone {
    fn insert(&mut self, connection: u64, member: Member) {
        for key in &member.keys {
            self.names.entry(key.clone()).or_default().push(connection);
        }
        for ip in &member.addresses {
            self.addresses.insert(*ip, connection);
        }
        for link in &member.links {
            self.linkers.entry(link.clone()).or_default().push(connection);
        }
        self.members.insert(connection, member);
    }

    /// Take an endpoint out; its sandbox's name.
    fn remove(&mut self, connection: u64) -> Option<String> {
        let member = self.members.remove(&connection)?;
        for key in &member.keys {
            take_out(&mut self.names, key, connection);
        }
        for ip in &member.addresses {
            if self.addresses.get(ip) == Some(&connection) {
                self.addresses.remove(ip);
            }
        }
        for link in &member.links {
            take_out(&mut self.linkers, link, connection);
        }
        Some(member.sandbox)
    }

    /// The addresses of the sandbox with this name.
    fn addresses_of(&self, sandbox: &str) -> Vec<IpAddr> {
        let named = self.names.get(&key(sandbox)).into_iter().flatten().filter_map(|member| self.members.get(member));
        named.filter(|member| member.sandbox == sandbox).flat_map(|member| member.addresses.iter().copied()).collect()
    }

    /// What those are to be told who have a link to this sandbox.
    fn news_of(&self, sandbox: &str) -> Vec<News> {
        let Some(linkers) = self.linkers.get(sandbox) else { return Vec::new() };
        let addresses = self.addresses_of(sandbox);
        let news = |to: &u64| News { to: *to, sandbox: sandbox.to_owned(), addresses: addresses.clone() };
        linkers.iter().map(news).collect()
    }
}

fn take_out<K: std::hash::Hash + Eq>(table: &mut HashMap<K, Vec<u64>>, key: &K, connection: u64) {
    if let Some(all) = table.get_mut(key) {
        all.retain(|other| *other != connection);
        if all.is_empty() {
            table.remove(key);
        }
    }
}

/// The subnets of a network.
pub fn subnets(network: &Network) -> impl Iterator<Item = IpNet> {
    let v4 = network.v4.map(|layout| IpNet::V4(layout.subnet));
    v4.into_iter().chain(network.v6.map(|layout| IpNet::V6(layout.subnet)))
}

/// A name as DNS has it; `None` where DNS cannot carry it (an empty label, more than 63 bytes in one).
pub fn absolute(name: &str) -> Option<Name> {
    let mut name = Name::from_ascii(name).ok()?;
    name.set_fqdn(true);
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{SandboxLink, Sharing};

    fn network(name: &str, third: u8, internal: bool) -> Network {
        let subnet = format!("10.1.{third}.0/24").parse().unwrap();
        Network {
            name: name.into(),
            sharing: Some(Sharing { internal, icc: true }),
            v4: Some(crate::plan::Ipv4Layout::slirp(subnet).unwrap()),
            ..crate::fuzzing::network()
        }
    }

    fn endpoint(id: &str, name: &str, ip: &str) -> Endpoint {
        Endpoint { id: id.into(), name: name.into(), v4: Some(ip.parse().unwrap()), ..Endpoint::default() }
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn names_are_those_of_the_networks_that_both_are_on() {
        let mut directory = Directory::default();
        let (front, back) = (network("front", 1, false), network("back", 2, true));
        directory.attach(1, &front, &endpoint("aaaaaaaaaaaa", "web", "10.1.1.5"));
        directory.attach(2, &front, &endpoint("bbbbbbbbbbbb", "app", "10.1.1.6"));
        directory.attach(3, &back, &endpoint("bbbbbbbbbbbb", "app", "10.1.2.6"));
        let db = Endpoint { aliases: vec!["store".into()], ..endpoint("cccccccccccc", "db", "10.1.2.7") };
        directory.attach(4, &back, &db);
        assert_eq!(directory.addresses("aaaaaaaaaaaa", b"app"), Some(ips(&["10.1.1.6"])));
        assert_eq!(directory.addresses("cccccccccccc", b"app"), Some(ips(&["10.1.2.6"])));
        assert_eq!(directory.addresses("bbbbbbbbbbbb", b"app"), Some(ips(&["10.1.1.6", "10.1.2.6"])));
        assert_eq!(directory.addresses("bbbbbbbbbbbb", b"store"), Some(ips(&["10.1.2.7"])));
        assert_eq!(directory.addresses("bbbbbbbbbbbb", b"cccccccccccc"), Some(ips(&["10.1.2.7"])));
        assert_eq!(directory.addresses("aaaaaaaaaaaa", b"store"), None);
        assert_eq!(directory.addresses("aaaaaaaaaaaa", b"db"), None);

        let name = absolute("db").unwrap();
        assert_eq!(directory.owner("bbbbbbbbbbbb", "10.1.2.7".parse().unwrap()), Owner::Sandbox(&name));
        assert_eq!(directory.owner("bbbbbbbbbbbb", "10.1.2.8".parse().unwrap()), Owner::Nobody);
        assert_eq!(directory.owner("aaaaaaaaaaaa", "10.1.2.7".parse().unwrap()), Owner::Elsewhere);

        assert!(directory.may_forward("bbbbbbbbbbbb") && !directory.may_forward("cccccccccccc"));
        assert!(!directory.may_forward("dddddddddddd"), "on none");
        directory.detach(2);
        assert!(!directory.may_forward("bbbbbbbbbbbb"));
        assert_eq!(directory.addresses("aaaaaaaaaaaa", b"app"), None);
        for connection in [1, 3, 4] {
            directory.detach(connection);
        }
        assert!(directory.networks.is_empty() && directory.sandboxes.is_empty() && directory.connections.is_empty());
    }

    #[test]
    fn who_links_is_told_where_the_other_is_and_calls_it_what_it_likes() {
        let mut directory = Directory::default();
        let net = network("front", 1, false);
        let links = vec![SandboxLink { sandbox: "db".into(), alias: Some("postgres".into()) }];
        let app = Endpoint { links, ..endpoint("aaaaaaaaaaaa", "app", "10.1.1.5") };
        let news = |addresses: &[&str]| News { to: 1, sandbox: "db".into(), addresses: ips(addresses) };
        assert_eq!(directory.attach(1, &net, &app), [news(&[])]);
        assert_eq!(directory.attach(2, &net, &endpoint("bbbbbbbbbbbb", "db", "10.1.1.6")), [news(&["10.1.1.6"])]);
        assert_eq!(directory.addresses("aaaaaaaaaaaa", b"postgres"), Some(ips(&["10.1.1.6"])));
        assert_eq!(directory.addresses("bbbbbbbbbbbb", b"postgres"), None);
        assert_eq!(directory.detach(2), [news(&[])]);
        assert_eq!(directory.addresses("aaaaaaaaaaaa", b"postgres"), None);
        assert_eq!(directory.attach(3, &net, &endpoint("cccccccccccc", "db", "10.1.1.9")), [news(&["10.1.1.9"])]);
        assert_eq!(directory.attach(4, &net, &endpoint("dddddddddddd", "other", "10.1.1.10")), []);
        directory.detach(1);
        assert_eq!(directory.detach(3), []);
    }

    #[test]
    fn an_address_is_said_once_whatever_leads_to_it() {
        let mut directory = Directory::default();
        let net = network("front", 1, false);
        let links = vec![SandboxLink { sandbox: "db".into(), alias: Some("db".into()) }];
        directory.attach(1, &net, &Endpoint { links, ..endpoint("aaaaaaaaaaaa", "app", "10.1.1.5") });
        let db = Endpoint { v6: Some("fd01::6".parse().unwrap()), ..endpoint("bbbbbbbbbbbb", "db", "10.1.1.6") };
        directory.attach(2, &net, &db);
        assert_eq!(directory.addresses("aaaaaaaaaaaa", b"db"), Some(ips(&["10.1.1.6", "fd01::6"])));
    }

    #[test]
    fn what_a_link_is_called_leads_to_no_other() {
        let mut directory = Directory::default();
        let net = network("front", 1, false);
        let links = vec![SandboxLink { sandbox: "db".into(), alias: Some("store".into()) }];
        directory.attach(1, &net, &Endpoint { links, ..endpoint("aaaaaaaaaaaa", "app", "10.1.1.5") });
        directory.attach(2, &net, &endpoint("bbbbbbbbbbbb", "db", "10.1.1.6"));
        directory.attach(3, &net, &endpoint("cccccccccccc", "store", "10.1.1.7"));
        let other = Endpoint { aliases: vec!["db".into()], ..endpoint("dddddddddddd", "other", "10.1.1.8") };
        directory.attach(4, &net, &other);
        for name in [&b"store"[..], b"db"] {
            assert_eq!(directory.addresses("aaaaaaaaaaaa", name), Some(ips(&["10.1.1.6"])));
        }
        assert_eq!(directory.addresses("cccccccccccc", b"store"), Some(ips(&["10.1.1.7"])));
        assert_eq!(directory.addresses("cccccccccccc", b"db"), Some(ips(&["10.1.1.6", "10.1.1.8"])));
    }

    #[test]
    fn two_of_the_same_alias_are_both_found() {
        let mut directory = Directory::default();
        let net = network("front", 1, false);
        for (at, id) in ["aaaaaaaaaaaa", "bbbbbbbbbbbb"].iter().enumerate() {
            let aliases = vec!["api".into()];
            let endpoint = Endpoint { aliases, ..endpoint(id, &format!("n{at}"), &format!("10.1.1.{}", at + 5)) };
            directory.attach(at as u64, &net, &endpoint);
        }
        assert_eq!(directory.addresses("aaaaaaaaaaaa", b"api"), Some(ips(&["10.1.1.5", "10.1.1.6"])));
    }
}
