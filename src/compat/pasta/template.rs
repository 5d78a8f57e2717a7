//! What the sandbox has of the host: the interface it is copied from, its addresses, gateway and routes.
//!
//! # Theory of operation
//!
//! Each family is copied by itself. Its template is the interface that was named, else the one with the host's first
//! default route, else the first that any route leads to. From it come the address (the one with the longest prefix),
//! the gateway of the default route, the other addresses, and the routes, as far as the command line does not say
//! otherwise.
//!
//! A host without such an interface, or without an address of the family on it, gives nothing to copy: the sandbox is
//! then in *local mode*, at 169.254.2.1 behind 169.254.2.2, or with nothing but its link-local address behind fe80::1.
//!
//! All of this is a function of what netlink said of the host; nothing here asks the kernel.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::plan::Route;
use crate::sys::netlink::{self, Address, Link};

/// In local mode: the sandbox's address, its prefix, the gateway's.
const LOCAL_V4: (Ipv4Addr, u8) = (Ipv4Addr::new(169, 254, 2, 1), 16);
const LOCAL_GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 2, 2);
const LOCAL_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The prefix of an IPv6 address that came without one.
const USUAL_PREFIX_V6: u8 = 64;

/// The host's network as netlink tells of it.
#[derive(Clone, Debug, Default)]
pub struct HostNet {
    /// Its interfaces.
    pub links: Vec<Link>,
    /// Their addresses, in the kernel's order.
    pub addresses: Vec<Address>,
    /// The routes of the main table, in the kernel's order.
    pub routes: Vec<netlink::Route>,
}

/// What the command line says of one family.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The interface to copy from.
    pub interface: Option<u32>,
    /// The address.
    pub address: Option<IpAddr>,
    /// The length of its prefix.
    pub prefix: Option<u8>,
    /// The gateway.
    pub gateway: Option<IpAddr>,
    /// All addresses of the interface, not one.
    pub copy_addresses: bool,
    /// All routes of the interface, not only the default route.
    pub copy_routes: bool,
}

/// What the sandbox gets in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// Where it is copied from; `None` in local mode.
    pub interface: Option<u32>,
    /// The sandbox's address; `None` where it has its link-local address alone.
    pub address: Option<IpAddr>,
    /// The length of its prefix.
    pub prefix: u8,
    /// Where its default route leads.
    pub gateway: IpAddr,
    /// That is nobody's on the host: there is no default route there that says one.
    pub gateway_is_made_up: bool,
    /// Further addresses.
    pub addresses: Vec<IpNet>,
    /// Further routes, those that others need first.
    pub routes: Vec<Route>,
}

impl HostNet {
    /// The number of an interface.
    pub fn index(&self, name: &str) -> Option<u32> {
        self.links.iter().find(|link| link.name == name).map(|link| link.index)
    }

    /// The name of an interface.
    pub fn name(&self, index: u32) -> Option<&str> {
        self.links.iter().find(|link| link.index == index).map(|link| link.name.as_str())
    }

    /// What a sandbox gets of one family.
    pub fn template(&self, v6: bool, wanted: &Wanted) -> Template {
        let found = wanted.interface.or_else(|| self.external(v6)).and_then(|index| {
            let own = self.best_address(index, v6);
            wanted.address.or(own.map(|own| own.ip)).map(|address| (index, address, own))
        });
        let Some((index, address, own)) = found else { return local(v6, wanted) };
        let default = self.routes_of(index, v6).find(|route| route.prefix == 0);
        let gateway = wanted.gateway.or(default.and_then(|route| route.gateway));
        // A prefix of length 0 says as little as none.
        let given = wanted.prefix.filter(|prefix| *prefix > 0);
        let prefix = match wanted.address {
            Some(address) => given.unwrap_or_else(|| usual_prefix(address)),
            None => given.or(own.map(|own| own.prefix)).unwrap_or_else(|| usual_prefix(address)),
        };
        let mut template = Template {
            interface: Some(index),
            address: Some(address),
            prefix,
            gateway: gateway.unwrap_or_else(|| local_gateway(v6)),
            gateway_is_made_up: gateway.is_none(),
            addresses: Vec::new(),
            routes: Vec::new(),
        };
        if wanted.copy_addresses && wanted.address.is_none() {
            template.addresses = self.further_addresses(index, v6, address);
        }
        if wanted.copy_routes && wanted.gateway.is_none() {
            template.routes = self.further_routes(index, v6, &template);
        }
        template.reach_gateway();
        template
    }

    /// The interface with the first default route, else the first that some route leads to.
    fn external(&self, v6: bool) -> Option<u32> {
        let usable = |route: &&netlink::Route| {
            let link_local = match route.destination {
                IpAddr::V4(ip) => ip.is_link_local() && route.prefix >= 16,
                IpAddr::V6(ip) => (ip.is_unicast_link_local() && route.prefix >= 10) || ip.is_multicast(),
            };
            route.destination.is_ipv6() == v6 && route.index.is_some() && !link_local
        };
        let mut routes = self.routes.iter().filter(usable);
        let default = routes.clone().find(|route| route.prefix == 0);
        default.or_else(|| routes.next()).and_then(|route| route.index)
    }

    /// The address with the longest prefix; of several the first.
    fn best_address(&self, index: u32, v6: bool) -> Option<Address> {
        let of = self.addresses_of(index, v6);
        of.copied().reduce(|best, other| if other.prefix > best.prefix { other } else { best })
    }

    /// The addresses of an interface that others can be given.
    fn addresses_of(&self, index: u32, v6: bool) -> impl Iterator<Item = &Address> {
        self.addresses.iter().filter(move |address| {
            let usable = !address.deprecated && !address.tentative && !address.ip.is_loopback();
            address.index == index && address.ip.is_ipv6() == v6 && usable && (address.global || !v6)
        })
    }

    fn further_addresses(&self, index: u32, v6: bool, first: IpAddr) -> Vec<IpNet> {
        let others = self.addresses_of(index, v6).filter(|address| address.global && address.ip != first);
        let mut nets: Vec<IpNet> = Vec::new();
        for net in others.filter_map(|address| IpNet::new(address.ip, address.prefix).ok()) {
            if !nets.contains(&net) {
                nets.push(net);
            }
        }
        nets
    }

    fn routes_of(&self, index: u32, v6: bool) -> impl Iterator<Item = &netlink::Route> {
        self.routes.iter().filter(move |route| route.index == Some(index) && route.destination.is_ipv6() == v6)
    }

    /// Without what the addresses bring along, and without the default route.
    fn further_routes(&self, index: u32, v6: bool, template: &Template) -> Vec<Route> {
        let subnets: Vec<IpNet> = template.subnets().collect();
        let mut routes: Vec<Route> = Vec::new();
        for route in self.routes_of(index, v6).filter(|route| route.prefix > 0) {
            let Ok(to) = IpNet::new(route.destination, route.prefix) else { continue };
            let of_the_link = match to.network() {
                IpAddr::V4(ip) => ip.is_multicast(),
                IpAddr::V6(ip) => ip.is_multicast() || ip.is_unicast_link_local(),
            };
            let brought_along = route.gateway.is_none() && subnets.contains(&to.trunc());
            let route = Route { to, via: route.gateway };
            if !of_the_link && !brought_along && !routes.contains(&route) {
                routes.push(route);
            }
        }
        // Whoever is a next hop has to be on the link first.
        routes.sort_by_key(|route| (route.via.is_some(), std::cmp::Reverse(route.to.prefix_len())));
        routes
    }
}

impl Template {
    /// The subnets that its addresses are in.
    fn subnets(&self) -> impl Iterator<Item = IpNet> {
        let first = self.address.and_then(|ip| IpNet::new(ip, self.prefix).ok());
        first.into_iter().chain(self.addresses.iter().copied()).map(|net| net.trunc())
    }

    /// Make sure that every next hop is on the link: one outside of all subnets gets a route of its own.
    fn reach_gateway(&mut self) {
        let hops: Vec<IpAddr> = std::iter::once(self.gateway).chain(self.routes.iter().filter_map(|r| r.via)).collect();
        for hop in hops {
            let on_link = matches!(hop, IpAddr::V6(ip) if ip.is_unicast_link_local())
                || self.subnets().any(|net| net.prefix_len() < longest(hop) && net.contains(&hop))
                || self.routes.iter().any(|route| route.via.is_none() && route.to.contains(&hop));
            if !on_link && let Ok(to) = IpNet::new(hop, longest(hop)) {
                self.routes.insert(0, Route { to, via: None });
            }
        }
    }
}

/// What there is without anything to copy.
fn local(v6: bool, wanted: &Wanted) -> Template {
    let (address, prefix) = match (wanted.address, v6) {
        (Some(address), _) => (Some(address), usual_prefix(address)),
        (None, false) => (Some(LOCAL_V4.0.into()), LOCAL_V4.1),
        (None, true) => (None, USUAL_PREFIX_V6),
    };
    let mut template = Template {
        interface: None,
        address,
        prefix: wanted.prefix.filter(|prefix| *prefix > 0).unwrap_or(prefix),
        gateway: wanted.gateway.unwrap_or_else(|| local_gateway(v6)),
        gateway_is_made_up: false,
        addresses: Vec::new(),
        routes: Vec::new(),
    };
    template.reach_gateway();
    template
}

fn local_gateway(v6: bool) -> IpAddr {
    if v6 { LOCAL_GATEWAY_V6.into() } else { LOCAL_GATEWAY_V4.into() }
}

fn longest(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// The prefix of an address that was given without one: by its class (RFC 791), as ifconfig did.
fn usual_prefix(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(ip) => match ip.octets()[0] {
            0..=127 => 8,
            128..=191 => 16,
            192..=223 => 24,
            _ => 32,
        },
        IpAddr::V6(_) => USUAL_PREFIX_V6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// `index address/prefix` words; one that ends with `!` is deprecated, with `~` of the link alone.
    fn host(addresses: &[(u32, &str)], routes: &[(&str, Option<&str>, u32)]) -> HostNet {
        let links = [(1, "lo"), (2, "eth0"), (3, "wlan0")].map(|(index, name)| Link {
            index,
            name: name.to_owned(),
            up: true,
            running: true,
            loopback: index == 1,
            mtu: 1500,
            mac: None,
            tx_queue_len: None,
        });
        let addresses = addresses.iter().map(|(index, text)| {
            let net: IpNet = text.trim_end_matches(['!', '~']).parse().unwrap();
            Address {
                index: *index,
                ip: net.addr(),
                prefix: net.prefix_len(),
                global: !text.ends_with('~'),
                tentative: false,
                deprecated: text.ends_with('!'),
            }
        });
        let routes = routes.iter().map(|(to, via, index)| {
            let to: IpNet = to.parse().unwrap();
            netlink::Route {
                destination: to.addr(),
                prefix: to.prefix_len(),
                gateway: via.map(ip),
                index: Some(*index),
                preferred_source: None,
                priority: 0,
            }
        });
        HostNet { links: links.to_vec(), addresses: addresses.collect(), routes: routes.collect() }
    }

    const PLAIN: Wanted =
        Wanted { interface: None, address: None, prefix: None, gateway: None, copy_addresses: true, copy_routes: true };

    fn said(template: &Template) -> String {
        let nets = |nets: &[IpNet]| nets.iter().map(|net| format!(" {net}")).collect::<String>();
        let routes = template.routes.iter().map(|route| match route.via {
            Some(via) => format!(" {}@{via}", route.to),
            None => format!(" {}", route.to),
        });
        let address = template.address.map_or("-".to_owned(), |ip| ip.to_string());
        let gateway = if template.gateway_is_made_up { "none" } else { &template.gateway.to_string() };
        format!(
            "{} {address}/{} by {gateway};{};{}",
            template.interface.unwrap_or(0),
            template.prefix,
            nets(&template.addresses),
            routes.collect::<String>()
        )
    }

    #[test]
    fn the_interface_with_the_default_route_is_copied_whole() {
        let host = host(
            &[(2, "192.0.2.2/24"), (2, "192.0.2.3/24"), (2, "198.51.100.1/25!"), (3, "10.0.0.1/8")],
            &[
                ("10.0.0.0/8", None, 3),
                ("0.0.0.0/0", Some("192.0.2.1"), 2),
                ("203.0.113.0/24", Some("192.0.2.9"), 2),
                ("192.0.2.0/24", None, 2),
                ("198.18.0.0/15", None, 2),
            ],
        );
        assert_eq!(
            said(&host.template(false, &PLAIN)),
            "2 192.0.2.2/24 by 192.0.2.1; 192.0.2.3/24; 198.18.0.0/15 203.0.113.0/24@192.0.2.9"
        );
        let one = Wanted { copy_addresses: false, copy_routes: false, ..PLAIN };
        assert_eq!(said(&host.template(false, &one)), "2 192.0.2.2/24 by 192.0.2.1;;");
        let third = Wanted { interface: Some(3), ..PLAIN };
        assert_eq!(said(&host.template(false, &third)), "3 10.0.0.1/8 by none;; 169.254.2.2/32");
    }

    #[test]
    fn what_was_given_is_not_copied() {
        let host = host(
            &[(2, "192.0.2.2/24"), (2, "192.0.2.3/24")],
            &[("0.0.0.0/0", Some("192.0.2.1"), 2), ("198.18.0.0/15", None, 2)],
        );
        let given = Wanted { address: Some(ip("10.1.2.3")), gateway: Some(ip("10.1.2.1")), ..PLAIN };
        assert_eq!(said(&host.template(false, &given)), "2 10.1.2.3/8 by 10.1.2.1;;");
        let far = Wanted { prefix: Some(30), gateway: Some(ip("192.0.2.99")), ..PLAIN };
        assert_eq!(said(&host.template(false, &far)), "2 192.0.2.2/30 by 192.0.2.99; 192.0.2.3/24;");
        let classes = ["10.0.0.1", "172.16.0.1", "192.168.0.1", "2001:db8::1"].map(|text| usual_prefix(ip(text)));
        assert_eq!(classes, [8, 16, 24, 64]);
    }

    #[test]
    fn a_gateway_outside_of_the_subnet_is_put_on_the_link() {
        let onlink = host(&[(2, "203.0.113.5/32")], &[("0.0.0.0/0", Some("172.31.1.1"), 2)]);
        assert_eq!(said(&onlink.template(false, &PLAIN)), "2 203.0.113.5/32 by 172.31.1.1;; 172.31.1.1/32");
        let routed =
            host(&[(2, "203.0.113.5/32")], &[("0.0.0.0/0", Some("172.31.1.1"), 2), ("172.31.1.1/32", None, 2)]);
        assert_eq!(said(&routed.template(false, &PLAIN)), "2 203.0.113.5/32 by 172.31.1.1;; 172.31.1.1/32");
    }

    #[test]
    fn ipv6_has_global_addresses_and_a_gateway_of_either_kind() {
        let host = host(
            &[(2, "fe80::7/64~"), (2, "2001:db8::7/64"), (2, "2001:db8:1::7/128")],
            &[("2001:db8::/64", None, 2), ("fe80::/64", None, 2), ("::/0", Some("fe80::9"), 2), ("ff00::/8", None, 2)],
        );
        assert_eq!(said(&host.template(true, &PLAIN)), "2 2001:db8:1::7/128 by fe80::9; 2001:db8::7/64;");
    }

    #[test]
    fn without_an_interface_it_is_local() {
        let bare = host(&[(1, "127.0.0.1/8~"), (1, "::1/128~")], &[("::1/128", None, 1)]);
        assert_eq!(said(&bare.template(false, &PLAIN)), "0 169.254.2.1/16 by 169.254.2.2;;");
        assert_eq!(said(&bare.template(true, &PLAIN)), "0 -/64 by fe80::1;;");
        let given = Wanted { address: Some(ip("10.0.0.1")), prefix: Some(24), gateway: Some(ip("10.0.0.2")), ..PLAIN };
        assert_eq!(said(&bare.template(false, &given)), "0 10.0.0.1/24 by 10.0.0.2;;");
        // An interface that has no address of the family, likewise.
        let only4 = host(&[(2, "192.0.2.2/24"), (2, "fe80::1/64~")], &[("0.0.0.0/0", None, 2), ("fe80::/64", None, 2)]);
        assert_eq!(said(&only4.template(true, &PLAIN)), "0 -/64 by fe80::1;;");
        assert_eq!(said(&only4.template(false, &PLAIN)), "2 192.0.2.2/24 by none;; 169.254.2.2/32");
    }
}
