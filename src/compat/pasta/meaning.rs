//! What the options mean: the network, the interface and everything else of a plan.
//!
//! The sandbox has addresses of the host's own, so the network's mapping is always on: every address leads where it leads
//! on the host, but for those that the command line maps, and the gateway answers for all of them on the link. Which
//! addresses those are comes from the [`Template`]s of the two families, and from the host's resolvers: one that is only
//! to be had on the host's loopback is announced as the address that is mapped there, and questions that go to that
//! address are answered here.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};

use super::options::{Options, Pair, Stop, Whose};
use super::template::{HostNet, Template, Wanted};
use crate::host::resolv::ResolvConf;
use crate::plan::{
    self, Announcements, Behaviour, Interface, InterfaceExtras, Ipv4Layout, Ipv6Layout, LinkChoice, LocalClients,
    Logging, MacAddr, Mapping, Names, Network, Outbound, PRIVATE, Ports, Services, Target,
};

/// The interface inside where there is none to be called after.
const DEFAULT_IFNAME: &str = "tap0";
/// What a hostname inside begins with; the host's own follows.
const HOSTNAME_PREFIX: &str = "pasta-";
/// Longest hostname (hostname(7)).
const LONGEST_HOSTNAME: usize = 64;
/// Idle UDP flows and pings live so long.
const UDP_TIMEOUT: Duration = Duration::from_secs(180);
/// What the kernel gives a TAP when nobody says otherwise.
const KERNELS_MTU: u16 = 1500;
/// The smallest MTU of IPv4 (RFC 791), of our gateway, and of IPv6 (RFC 8200), in bytes.
const SMALLEST_V4: u16 = 68;
const SMALLEST_GATEWAY: u16 = 576;
const SMALLEST_V6: u16 = 1280;
/// DNS over TLS (RFC 7858).
const DNS_OVER_TLS: u16 = 853;

/// What has been looked at, or made up, for a plan.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The host's network.
    pub net: HostNet,
    /// The host's resolv.conf; `None` where there is none.
    pub resolv_conf: Option<ResolvConf>,
    /// The host's name.
    pub hostname: String,
    /// Its kernel has IPv6.
    pub has_ipv6: bool,
    /// A MAC for the sandbox, at random.
    pub mac: MacAddr,
    /// The sandbox's id, at random.
    pub id: String,
}

/// What everything comes to.
#[derive(Clone, Debug)]
pub struct Meaning {
    /// The network.
    pub network: Network,
    /// The interface inside.
    pub interface: Interface,
    /// Names and resolvers.
    pub names: Names,
    /// The sandbox's name.
    pub name: String,
    /// IPv4 and IPv6, as far as there are.
    pub templates: (Option<Template>, Option<Template>),
    /// For the person, one sentence each.
    pub warnings: Vec<String>,
}

impl Meaning {
    /// What the options mean on this host.
    pub fn of(options: &Options, facts: &Facts) -> Result<Meaning, Stop> {
        let mut warnings = Vec::new();
        let v6_fits = families(options, &mut warnings)?;
        let template = |v6| facts.net.template(v6, &wanted(options, facts, v6));
        check_interfaces(options, &facts.net)?;
        let v4 = options.v4.then(|| template(false));
        // One that was asked for alone is not left out.
        let has_v6 = facts.has_ipv6 || !options.v4;
        let v6 = (options.v6 && v6_fits && has_v6).then(|| template(true));
        for (name, template) in [(&options.outbound_if4, &v4), (&options.outbound_if6, &v6)] {
            let has_none = |template: &Template| template.interface.is_none();
            if let Some(name) = name.as_ref().filter(|_| template.as_ref().is_some_and(has_none)) {
                return Err(Stop::Value(format!("External interface not usable: {name} has no address")));
            }
        }
        let mac = options.mac.unwrap_or(facts.mac);
        let mapping = Mapping {
            host_loopback_v4: mapped(options.host_loopback.v4, options.map_gateway, v4.as_ref(), ipv4),
            host_loopback_v6: mapped(options.host_loopback.v6, options.map_gateway, v6.as_ref(), ipv6),
            guest_v4: options.guest.v4.filter(|_| v4.is_some()),
            guest_v6: options.guest.v6.filter(|_| v6.is_some()),
            dns_over_tls: None,
            further: further(v4.as_ref(), v6.as_ref()),
            interface: v6.as_ref().and_then(|template| template.interface),
        };
        let resolvers = Resolvers::of(options, facts.resolv_conf.as_ref(), &mapping, (v4.is_some(), v6.is_some()));
        let mapping = Mapping { dns_over_tls: resolvers.over_tls, ..mapping };
        let layout_v4 = v4.as_ref().map(|template| layout_v4(template, resolvers.asked.v4));
        let layout_v6 = v6.as_ref().map(|template| layout_v6(template, resolvers.asked.v6, mac));
        let (mtu, interface_mtu) = mtu(options.mtu, v6.is_some());
        let search = search(options, facts.resolv_conf.as_ref());
        let name = plan::words::default_name("pasta", &facts.id);
        let network = Network {
            name: PRIVATE.to_owned(),
            sharing: None,
            v4: layout_v4,
            v6: layout_v6,
            mtu,
            gateway_mac: options.our_mac,
            host_loopback_allowed: false,
            metadata_allowed: true,
            broadcast_to_host: false,
            dns_enabled: resolvers.asked != Pair::default(),
            dns_search: search.clone(),
            dns_servers: resolvers.announced.clone(),
            local_names: Vec::new(),
            outbound: Outbound {
                v4: options.outbound.v4,
                v6: options.outbound.v6,
                interface_v4: options.outbound_if4.clone(),
                interface_v6: options.outbound_if6.clone(),
                ..Outbound::default()
            },
            udp_timeout: UDP_TIMEOUT,
            behaviour: Behaviour {
                host_denied: false,
                local_clients: local_clients(options),
                services: services(options, v4.as_ref(), v6.as_ref()),
                mapping: Some(mapping),
                announcements: Announcements {
                    resolvers: options.announce_dns && !resolvers.announced.is_empty(),
                    search: options.announce_search,
                    hostname: options.hostname.clone(),
                    fqdn: options.fqdn.clone(),
                    mtu: options.mtu > 0,
                },
            },
        };
        let extras = |template: &Option<Template>| {
            template.as_ref().map(|template| (template.addresses.clone(), template.routes.clone())).unwrap_or_default()
        };
        let ((mut addresses, mut routes), (addresses_v6, routes_v6)) = (extras(&v4), extras(&v6));
        addresses.extend(addresses_v6);
        routes.extend(routes_v6);
        let interface = Interface {
            name: ifname(options, &facts.net, v4.as_ref(), v6.as_ref()),
            mac,
            link: if options.splice_only { LinkChoice::None } else { LinkChoice::Auto },
            configure: options.configure,
            extras: InterfaceExtras { mtu: interface_mtu, addresses, routes, ..InterfaceExtras::default() },
        };
        let names = Names {
            hostname: hostname(&facts.hostname),
            dns: network.dns_enabled,
            servers: resolvers.asked_instead,
            search: Some(search),
            options: Vec::new(),
            hosts: Vec::new(),
        };
        Ok(Meaning { network, interface, names, name, templates: (v4, v6), warnings })
    }

    /// What is said about it at the start.
    pub fn summary(&self, net: &HostNet) -> String {
        let mut lines = Vec::new();
        let (v4, v6) = &self.templates;
        let copied = |template: &Option<Template>, family| {
            let index = template.as_ref().and_then(|template| template.interface)?;
            Some(format!("{} ({family})", net.name(index)?))
        };
        let from: Vec<String> = copied(v4, "IPv4").into_iter().chain(copied(v6, "IPv6")).collect();
        if !from.is_empty() {
            lines.push(format!("Template interface: {}", from.join(", ")));
        }
        for (template, family) in [(v4, "IPv4"), (v6, "IPv6")] {
            if template.as_ref().is_some_and(|template| template.interface.is_none()) {
                lines.push(format!("{family}: no interface to copy from, local addresses"));
            }
        }
        if self.interface.link != LinkChoice::None {
            lines.push(format!("Namespace interface: {}", self.interface.name));
        }
        lines.push(format!("MAC:\n    host: {}", self.network.gateway_mac));
        let Behaviour { services, mapping, .. } = &self.network.behaviour;
        let mapping = mapping.clone().unwrap_or_default();
        if let Some(layout) = &self.network.v4 {
            lines.extend(mapping.host_loopback_v4.map(|ip| format!("    NAT to host 127.0.0.1: {ip}")));
            if services.dhcp {
                let (mask, router) = (layout.subnet.netmask(), layout.gateway);
                lines.push(format!("DHCP:\n    assign: {}\n    mask: {mask}\n    router: {router}", layout.sandbox));
            }
        }
        if let Some(layout) = &self.network.v6 {
            lines.extend(mapping.host_loopback_v6.map(|ip| format!("    NAT to host ::1: {ip}")));
            lines.push(format!("NDP/DHCPv6:\n    assign: {}\n    router: {}", layout.sandbox, layout.gateway));
        }
        if !self.network.dns_servers.is_empty() {
            lines.push("DNS:".to_owned());
            lines.extend(self.network.dns_servers.iter().map(|server| format!("    {server}")));
        }
        lines.iter().map(|line| format!("{line}\n")).collect()
    }

    /// A namespace that is there already.
    pub fn attach(self, options: &Options, target: Target, ports: Ports, facts: &Facts) -> plan::Attach {
        plan::Attach {
            id: facts.id.clone(),
            name: self.name,
            target,
            mode: plan::Mode::Private,
            network: self.network,
            interface: self.interface,
            joins: Vec::new(),
            default_net: None,
            publish_on: None,
            access: plan::Access::default(),
            names: self.names,
            ports,
            pcap: options.pcap.clone(),
            logging: logging(options),
            ready_fd: None,
            ready_text: String::new(),
            link_text: String::new(),
            greeting: String::new(),
            hostfwd_socket: None,
            outlives_target: options.outlives_netns,
            confined: true,
            require_confinement: false,
            exit_fd: None,
            pid_file: options.pid_file.clone(),
            detach: !options.foreground,
        }
    }

    /// A new one with a command in it.
    pub fn run(self, options: &Options, words: Vec<std::ffi::OsString>, ports: Ports, facts: &Facts) -> plan::Run {
        let login_shell = matches!(&options.whose, Whose::Command(given) if given.is_empty());
        plan::Run {
            id: facts.id.clone(),
            name: self.name,
            mode: plan::Mode::Private,
            network: self.network,
            interface: self.interface,
            joins: Vec::new(),
            default_net: None,
            container: None,
            links: Vec::new(),
            publish_on: None,
            access: plan::Access::default(),
            names: self.names,
            pid: if options.own_pids { plan::PidMode::Private } else { plan::PidMode::Host },
            map_user: plan::MapUser::Root,
            ports,
            locked: false,
            require_confinement: false,
            pcap: options.pcap.clone(),
            logging: logging(options),
            surroundings: plan::Surroundings {
                host_files: true,
                own_ipc: true,
                login_shell,
                pid_file: options.pid_file.clone(),
                status_not_executed: Some(1),
            },
            command: words,
        }
    }
}

/// Warnings and errors are always said; what an ordinary day brings only to those who ask.
fn logging(options: &Options) -> Logging {
    Logging { verbosity: options.verbosity, json: false }
}

/// Does IPv6 fit into the MTU that was asked for?
fn families(options: &Options, warnings: &mut Vec<String>) -> Result<bool, Stop> {
    let mtu = options.mtu;
    if mtu == 0 || options.splice_only {
        return Ok(true);
    }
    if options.v4 && mtu < SMALLEST_V4 {
        warnings.push(format!("MTU {mtu} is too small for IPv4 (minimum {SMALLEST_V4})"));
    }
    if options.v6 && mtu < SMALLEST_V6 {
        if !options.v4 {
            return Err(Stop::Value(format!("MTU {mtu} is too small for IPv6 (minimum {SMALLEST_V6})")));
        }
        warnings.push(format!("MTU {mtu} is too small for IPv6 (minimum {SMALLEST_V6}): going without IPv6"));
        return Ok(false);
    }
    Ok(true)
}

fn check_interfaces(options: &Options, net: &HostNet) -> Result<(), Stop> {
    let missing = |name: &&String| net.index(name).is_none();
    if let Some(name) = options.interface.as_ref().filter(missing) {
        return Err(Stop::Value(format!("Invalid interface name {name}: No such device")));
    }
    match options.outbound_if4.iter().chain(&options.outbound_if6).find(missing) {
        Some(name) => Err(Stop::Value(format!("External interface not usable: there is no {name}"))),
        None => Ok(()),
    }
}

fn wanted(options: &Options, facts: &Facts, v6: bool) -> Wanted {
    let outbound = if v6 { &options.outbound_if6 } else { &options.outbound_if4 };
    let named = options.interface.as_ref().or(outbound.as_ref());
    let of = |pair: Pair| if v6 { pair.v6.map(IpAddr::V6) } else { pair.v4.map(IpAddr::V4) };
    Wanted {
        interface: named.and_then(|name| facts.net.index(name)),
        address: of(options.address),
        prefix: if v6 { options.prefix6 } else { options.prefix4 },
        gateway: of(options.gateway),
        copy_addresses: options.copy_addresses,
        copy_routes: options.copy_routes,
    }
}

/// The address that leads to the host's loopback: one that was given, else the gateway's.
fn mapped<Ip>(
    given: Option<Ip>,
    gateway: bool,
    template: Option<&Template>,
    family: fn(IpAddr) -> Option<Ip>,
) -> Option<Ip> {
    let template = template?;
    let by_gateway = || Some(template.gateway).filter(|_| gateway && !template.gateway_is_made_up).and_then(family);
    given.or_else(by_gateway)
}

/// The addresses that the sandbox has besides the first of each family.
fn further(v4: Option<&Template>, v6: Option<&Template>) -> Vec<IpAddr> {
    let addresses = |template: &Template| template.addresses.iter().map(|net| net.addr()).collect::<Vec<_>>();
    [v4, v6].into_iter().flatten().flat_map(addresses).collect()
}

fn ipv4(ip: IpAddr) -> Option<Ipv4Addr> {
    if let IpAddr::V4(ip) = ip { Some(ip) } else { None }
}

fn ipv6(ip: IpAddr) -> Option<Ipv6Addr> {
    if let IpAddr::V6(ip) = ip { Some(ip) } else { None }
}

fn layout_v4(template: &Template, dns: Option<Ipv4Addr>) -> Ipv4Layout {
    let sandbox = template.address.and_then(ipv4).unwrap_or(Ipv4Addr::UNSPECIFIED);
    Ipv4Layout {
        subnet: Ipv4Net::new(sandbox, template.prefix).map_or(sandbox.into(), |net| net.trunc()),
        gateway: ipv4(template.gateway).unwrap_or(Ipv4Addr::UNSPECIFIED),
        dns: dns.unwrap_or(Ipv4Addr::UNSPECIFIED),
        sandbox,
        dhcp_range: (sandbox, sandbox),
    }
}

fn layout_v6(template: &Template, dns: Option<Ipv6Addr>, mac: MacAddr) -> Ipv6Layout {
    let sandbox = template.address.and_then(ipv6).unwrap_or(mac.link_local());
    Ipv6Layout {
        subnet: Ipv6Net::new(sandbox, template.prefix).map_or(sandbox.into(), |net| net.trunc()),
        gateway: ipv6(template.gateway).unwrap_or(Ipv6Addr::UNSPECIFIED),
        dns: dns.unwrap_or(Ipv6Addr::UNSPECIFIED),
        sandbox,
    }
}

/// The network's MTU, and the interface's where that is another.
fn mtu(asked: u16, v6: bool) -> (u16, Option<u32>) {
    let smallest = if v6 { SMALLEST_V6 } else { SMALLEST_GATEWAY };
    match asked {
        0 => (KERNELS_MTU, Some(0)),
        asked if asked < smallest => (smallest, Some(asked.into())),
        asked => (asked, None),
    }
}

fn local_clients(options: &Options) -> LocalClients {
    if !options.splice {
        LocalClients::Link
    } else if options.host_lo_to_ns_lo || options.splice_only {
        LocalClients::LoopbackOnly
    } else {
        LocalClients::OwnAddress
    }
}

fn services(options: &Options, v4: Option<&Template>, v6: Option<&Template>) -> Services {
    Services {
        tcp: options.tcp,
        udp: options.udp,
        icmp: options.icmp && !options.splice_only,
        // DHCP without a router is DHCP without a network.
        dhcp: options.dhcp && v4.is_some_and(|template| !template.gateway_is_made_up),
        dhcpv6: options.dhcpv6 && v6.is_some_and(|template| template.address.is_some()),
        ndp: options.ndp && v6.is_some(),
        // An interface that is configured needs no advertisement, and would take a second address from one.
        router_advertisements: options.ra && options.ndp && !options.configure && v6.is_some(),
    }
}

fn ifname(options: &Options, net: &HostNet, v4: Option<&Template>, v6: Option<&Template>) -> String {
    let copied = [v4, v6].into_iter().flatten().find_map(|template| net.name(template.interface?));
    options.ifname.clone().or(copied.map(str::to_owned)).unwrap_or_else(|| DEFAULT_IFNAME.to_owned())
}

fn hostname(host: &str) -> String {
    let mut name = format!("{HOSTNAME_PREFIX}{host}");
    name.truncate((0..=LONGEST_HOSTNAME).rev().find(|at| name.is_char_boundary(*at)).unwrap_or(0));
    name
}

fn search(options: &Options, host: Option<&ResolvConf>) -> Vec<String> {
    let of_host = || host.map(|conf| conf.search.clone()).unwrap_or_default();
    options.search.clone().unwrap_or_else(of_host)
}

/// Who answers questions for names, and who is said to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Resolvers {
    /// What is announced.
    announced: Vec<IpAddr>,
    /// Where questions are answered here.
    asked: Pair,
    /// Who is asked instead; nobody means the host's.
    asked_instead: Vec<IpAddr>,
    /// Who is asked over TLS instead.
    over_tls: Option<SocketAddr>,
}

impl Resolvers {
    fn of(
        options: &Options,
        host: Option<&ResolvConf>,
        mapping: &Mapping,
        (has_v4, has_v6): (bool, bool),
    ) -> Resolvers {
        let mut resolvers = Resolvers { asked: options.dns_forward, ..Resolvers::default() };
        let asked_instead = [options.dns_host.v4.map(IpAddr::V4), options.dns_host.v6.map(IpAddr::V6)];
        resolvers.asked_instead = asked_instead.into_iter().flatten().collect();
        let given = options.dns.as_deref();
        resolvers.announced = given.unwrap_or_default().to_vec();
        let of_host: Vec<IpAddr> =
            host.iter().flat_map(|conf| conf.nameservers.iter().map(|server| server.ip)).collect();
        for server in of_host.iter().filter(|_| given != Some(&[])) {
            let enabled = if server.is_ipv4() { has_v4 } else { has_v6 };
            let has_own = |other: &IpAddr| other.is_ipv4() == server.is_ipv4();
            if enabled && !given.unwrap_or_default().iter().any(has_own) {
                let reachable = resolvers.reachable(*server, mapping);
                resolvers.announced.extend(reachable);
            }
        }
        let first = resolvers.asked_instead.first().or(of_host.first());
        if resolvers.asked != Pair::default() {
            resolvers.over_tls = first.map(|ip| SocketAddr::new(*ip, DNS_OVER_TLS));
        }
        resolvers
    }

    /// How the sandbox reaches a resolver of the host: as it is, but for one on the loopback, or one that the mapping
    /// hides.
    fn reachable(&mut self, server: IpAddr, mapping: &Mapping) -> Option<IpAddr> {
        match server {
            IpAddr::V4(ip) if ip.is_loopback() || Some(ip) == mapping.host_loopback_v4 => {
                self.asked.v4 = self.asked.v4.or(mapping.host_loopback_v4);
                self.asked.v4.map(IpAddr::V4)
            }
            IpAddr::V6(ip) if ip.is_loopback() || Some(ip) == mapping.host_loopback_v6 => {
                self.asked.v6 = self.asked.v6.or(mapping.host_loopback_v6);
                self.asked.v6.map(IpAddr::V6)
            }
            other => Some(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netlink::{Address, Link, Route};
    use std::ffi::OsString;

    fn facts(resolv_conf: &str) -> Facts {
        let link = |index, name: &str| Link {
            index,
            name: name.to_owned(),
            up: true,
            running: true,
            loopback: index == 1,
            mtu: 1500,
            mac: None,
            tx_queue_len: None,
        };
        let address = |ip: &str, prefix| Address {
            index: 2,
            ip: ip.parse().unwrap(),
            prefix,
            global: true,
            tentative: false,
            deprecated: false,
        };
        let default = |gateway: &str| {
            let gateway: IpAddr = gateway.parse().unwrap();
            let everywhere = if gateway.is_ipv4() { "0.0.0.0" } else { "::" };
            Route {
                destination: everywhere.parse().unwrap(),
                prefix: 0,
                gateway: Some(gateway),
                index: Some(2),
                preferred_source: None,
                priority: 0,
            }
        };
        Facts {
            net: HostNet {
                links: vec![link(1, "lo"), link(2, "eth0")],
                addresses: vec![address("192.0.2.2", 24), address("2001:db8::2", 64)],
                routes: vec![default("192.0.2.1"), default("fe80::1")],
            },
            resolv_conf: Some(ResolvConf::parse(resolv_conf)),
            hostname: "host".to_owned(),
            has_ipv6: true,
            mac: MacAddr([2, 0, 0, 0, 0, 7]),
            id: "0123456789ab".to_owned(),
        }
    }

    fn meaning_on(words: &str, facts: &Facts) -> Meaning {
        let options = Options::parse(words.split_whitespace().map(OsString::from)).unwrap();
        Meaning::of(&options, facts).unwrap()
    }

    fn meaning(words: &str) -> Meaning {
        meaning_on(words, &facts("nameserver 198.51.100.1\nsearch host.example\n"))
    }

    fn mapping(meaning: &Meaning) -> Mapping {
        meaning.network.behaviour.mapping.clone().unwrap()
    }

    #[test]
    fn the_sandbox_has_the_hosts_addresses_and_gateway() {
        let meaning = meaning("--config-net");
        assert_eq!(mapping(&meaning).interface, Some(2));
        let (v4, v6) = (meaning.network.v4.unwrap(), meaning.network.v6.unwrap());
        assert_eq!((v4.sandbox.to_string(), v4.gateway.to_string()), ("192.0.2.2".into(), "192.0.2.1".into()));
        assert_eq!(v4.subnet.to_string(), "192.0.2.0/24");
        assert_eq!((v6.sandbox.to_string(), v6.gateway.to_string()), ("2001:db8::2".into(), "fe80::1".into()));
        assert_eq!((meaning.interface.name.as_str(), meaning.interface.configure), ("eth0", true));
        assert_eq!((meaning.network.mtu, meaning.interface.extras.mtu), (65520, None));
        assert_eq!(meaning.network.gateway_mac.to_string(), "9a:55:9a:55:9a:55");
        assert!(meaning.network.metadata_allowed && !meaning.network.dns_enabled);
        assert_eq!(meaning.names.hostname, "pasta-host");
    }

    #[test]
    fn the_gateways_address_is_the_hosts_loopback_unless_that_is_switched_off() {
        let gateway = mapping(&meaning(""));
        assert_eq!(gateway.host_loopback_v4, Some([192, 0, 2, 1].into()));
        assert_eq!(gateway.host_loopback_v6, Some("fe80::1".parse().unwrap()));
        let none = Mapping { interface: Some(2), ..Mapping::default() };
        assert_eq!(mapping(&meaning("--no-map-gw")), none);
        assert_eq!(mapping(&meaning("--map-host-loopback none")), none);
        let given = mapping(&meaning("--no-map-gw --map-host-loopback 192.0.2.9 --map-guest-addr 169.254.1.2"));
        assert_eq!(given.host_loopback_v4, Some([192, 0, 2, 9].into()));
        assert_eq!((given.host_loopback_v6, given.guest_v4), (None, Some([169, 254, 1, 2].into())));
        assert_eq!(mapping(&meaning("-4")).host_loopback_v6, None);
    }

    #[test]
    fn without_an_interface_addresses_are_local() {
        let bare = Facts { net: HostNet::default(), ..facts("nameserver 198.51.100.1\n") };
        let meaning = meaning_on("--config-net", &bare);
        assert_eq!(meaning.network.v4.unwrap().sandbox.to_string(), "169.254.2.1");
        assert_eq!(mapping(&meaning).host_loopback_v4, Some([169, 254, 2, 2].into()));
        assert_eq!(meaning.network.v6.unwrap().sandbox, meaning.interface.mac.link_local());
        assert_eq!(mapping(&meaning).host_loopback_v6, Some("fe80::1".parse().unwrap()));
        assert_eq!(meaning.interface.name, "tap0");
        assert!(!meaning.network.behaviour.services.dhcpv6);
    }

    #[test]
    fn a_kernel_without_ipv6_is_no_reason_to_warn() {
        let without = Facts { has_ipv6: false, ..facts("") };
        assert!(meaning_on("", &without).network.v6.is_none());
        assert!(meaning_on("-6", &without).network.v6.is_some());
    }

    #[test]
    fn an_mtu_of_0_leaves_it_alone_and_one_that_is_too_small_costs_ipv6() {
        let of = |words| {
            let meaning = meaning(words);
            let announced = meaning.network.behaviour.announcements.mtu;
            (meaning.network.mtu, meaning.interface.extras.mtu, announced, meaning.network.v6.is_some())
        };
        assert_eq!(of("-m 0"), (1500, Some(0), false, true));
        assert_eq!(of("-m 1500"), (1500, None, true, true));
        assert_eq!(of("-m 1000"), (1000, None, true, false));
        assert_eq!(of("-m 500"), (576, Some(500), true, false));
        assert_eq!(meaning("-m 1000").warnings.len(), 1);
        let options = Options::parse(["-6".into(), "-m1000".into()]).unwrap();
        assert!(Meaning::of(&options, &facts("")).is_err());
    }

    #[test]
    fn questions_are_forwarded_where_that_was_asked_for() {
        let meaning = meaning("--dns-forward 169.254.1.1 --dns-host 127.0.0.53");
        assert!(meaning.network.dns_enabled);
        assert_eq!(meaning.network.v4.unwrap().dns.to_string(), "169.254.1.1");
        assert_eq!(meaning.names.servers, ["127.0.0.53".parse::<IpAddr>().unwrap()]);
        assert_eq!(mapping(&meaning).dns_over_tls, Some("127.0.0.53:853".parse().unwrap()));
    }

    #[test]
    fn resolvers_on_the_hosts_loopback_are_announced_as_the_mapped_address() {
        let of = |words: &str, conf: &str| {
            let meaning = meaning_on(words, &facts(conf));
            let servers: Vec<String> = meaning.network.dns_servers.iter().map(IpAddr::to_string).collect();
            (
                servers.join(" "),
                meaning.network.v4.unwrap().dns.to_string(),
                meaning.network.behaviour.announcements.resolvers,
            )
        };
        let stub = "nameserver 127.0.0.53\nnameserver 198.51.100.1\nnameserver 2001:db8::53\n";
        let is = |servers: &str, dns: &str, said| (servers.to_owned(), dns.to_owned(), said);
        assert_eq!(of("--dhcp-dns", stub), is("192.0.2.1 198.51.100.1 2001:db8::53", "192.0.2.1", true));
        assert_eq!(of("--dhcp-dns --no-map-gw", stub), is("198.51.100.1 2001:db8::53", "0.0.0.0", true));
        assert_eq!(
            of("--no-map-gw --dns-forward 192.0.2.77", stub),
            is("192.0.2.77 198.51.100.1 2001:db8::53", "192.0.2.77", false)
        );
        // The gateway is the resolver, and its address is the host's loopback.
        assert_eq!(of("", "nameserver 192.0.2.1\n"), is("192.0.2.1", "192.0.2.1", false));
        assert_eq!(of("-D 127.0.0.1", stub), is("127.0.0.1 2001:db8::53", "0.0.0.0", false));
        assert_eq!(of("--dhcp-dns -D none", stub), is("", "0.0.0.0", false));
        assert_eq!(of("-4", stub), is("192.0.2.1 198.51.100.1", "192.0.2.1", false));
    }

    #[test]
    fn search_domains_are_the_hosts_unless_others_were_given() {
        assert_eq!(meaning("").network.dns_search, ["host.example"]);
        assert_eq!(meaning("-S a.example").names.search.unwrap(), ["a.example"]);
        assert_eq!(meaning("-S none").names.search.unwrap(), [""; 0]);
        assert!(meaning("--dhcp-search").network.behaviour.announcements.search);
    }

    #[test]
    fn off_switches_are_in_the_plan() {
        let services = |words| meaning(words).network.behaviour.services;
        let all = services("");
        assert!(all.tcp && all.udp && all.icmp && all.dhcp && all.dhcpv6 && all.ndp && all.router_advertisements);
        assert!(!services("--config-net").router_advertisements && services("--config-net").ndp);
        assert!(!services("--no-tcp").tcp && !services("--no-udp").udp && !services("--no-icmp").icmp);
        assert!(
            !services("--no-dhcp").dhcp
                && !services("--no-dhcpv6").dhcpv6
                && !services("--no-ra").router_advertisements
        );
        assert!(!services("--no-ndp").ndp && !services("-4").ndp && !services("-6").dhcp);
    }

    #[test]
    fn local_clients_take_the_way_that_was_asked_for() {
        let way = |words| meaning(words).network.behaviour.local_clients;
        assert_eq!(way(""), LocalClients::OwnAddress);
        assert_eq!(way("--host-lo-to-ns-lo"), LocalClients::LoopbackOnly);
        assert_eq!(way("--no-splice"), LocalClients::Link);
        assert_eq!(way("--splice-only"), LocalClients::LoopbackOnly);
    }

    #[test]
    fn outbound_sockets_are_bound_by_family() {
        let outbound = meaning("-o 192.0.2.2 -o 2001:db8::2 --outbound-if4 eth0").network.outbound;
        assert_eq!((outbound.v4, outbound.v6.is_some()), (Some([192, 0, 2, 2].into()), true));
        assert_eq!((outbound.interface_v4.as_deref(), outbound.interface_v6), (Some("eth0"), None));
        let bare = Options::parse(["--outbound-if4=lo".into()]).unwrap();
        assert!(Meaning::of(&bare, &facts("")).unwrap_err().to_string().contains("lo has no address"));
        for words in ["-i nope", "--outbound-if6 nope"] {
            let options = Options::parse(words.split_whitespace().map(OsString::from)).unwrap();
            assert!(Meaning::of(&options, &facts("")).unwrap_err().to_string().contains("nope"));
        }
    }

    #[test]
    fn names_inside_are_those_that_were_given() {
        let announcements = meaning("-H web --fqdn web.example").network.behaviour.announcements;
        assert_eq!(
            (announcements.hostname.as_deref(), announcements.fqdn.as_deref()),
            (Some("web"), Some("web.example"))
        );
        assert_eq!(hostname(&"h".repeat(80)).len(), 64);
        assert_eq!(meaning("-I wan0").interface.name, "wan0");
    }

    #[test]
    fn what_is_said_at_the_start_names_what_was_chosen() {
        let facts = facts("nameserver 198.51.100.1\n");
        let text = meaning_on("", &facts).summary(&facts.net);
        for part in [
            "eth0 (IPv4), eth0 (IPv6)",
            "assign: 192.0.2.2",
            "router: 192.0.2.1",
            "127.0.0.1: 192.0.2.1",
            "    198.51.100.1",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}
