//! What a gateway needs to know of a network, of a sandbox's place on it, and of the host.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::{Expose, MacAddr};

/// What a network is called that one sandbox has for itself. No shared network can have the name.
pub const PRIVATE: &str = "private";

/// Names of the gateway's addresses, which lead to the host.
pub const GATEWAY_NAMES: [&str; 3] = ["host.tapline.internal", "host.docker.internal", "host.containers.internal"];

/// The IPv4 addresses of a network: slirp's layout unless something else was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv4Layout {
    /// The segment's subnet.
    pub subnet: Ipv4Net,
    /// Where sandboxes see the gateway (base + 2).
    pub gateway: Ipv4Addr,
    /// Where sandboxes ask for names (base + 3).
    pub dns: Ipv4Addr,
    /// The sandbox's own address (base + 100) on a network that it has for itself; unspecified on a shared one,
    /// where only the [`Endpoint`] says it.
    pub sandbox: Ipv4Addr,
    /// First and last address that DHCP hands out on a network that a sandbox has for itself; the sandbox's own
    /// address twice unless a foreign command line asks for another range. On a shared one each endpoint is offered
    /// its own.
    pub dhcp_range: (Ipv4Addr, Ipv4Addr),
}

impl Ipv4Layout {
    /// slirp's layout on a subnet: gateway base + 2, DNS base + 3, sandbox base + 100.
    /// `None` when the subnet is longer than /25 and so has no base + 100.
    pub fn slirp(subnet: Ipv4Net) -> Option<Ipv4Layout> {
        if subnet.prefix_len() > 25 {
            return None;
        }
        let base = u32::from(subnet.network());
        let at = |offset: u32| Ipv4Addr::from(base + offset);
        Some(Ipv4Layout { subnet, gateway: at(2), dns: at(3), sandbox: at(100), dhcp_range: (at(100), at(100)) })
    }

    /// The subnet's broadcast address; one of two addresses or a single one has none (RFC 3021).
    pub fn broadcast(&self) -> Option<Ipv4Addr> {
        (self.subnet.prefix_len() < 31).then(|| self.subnet.broadcast())
    }

    /// Is it the first or the last address of the subnet, which are no host's where they mean the subnet and all of it?
    pub fn is_edge(&self, ip: Ipv4Addr) -> bool {
        self.broadcast().is_some_and(|broadcast| ip == broadcast || ip == self.subnet.network())
    }
}

/// The IPv6 addresses of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv6Layout {
    /// The segment's prefix.
    pub subnet: Ipv6Net,
    /// Where sandboxes see the gateway (prefix::2).
    pub gateway: Ipv6Addr,
    /// Where sandboxes ask for names (prefix::3).
    pub dns: Ipv6Addr,
    /// The sandbox's own address (prefix::100); unspecified on a shared network.
    pub sandbox: Ipv6Addr,
}

impl Ipv6Layout {
    /// Likewise for IPv6: prefix::2, prefix::3, prefix::100. `None` when the prefix is longer than /118.
    pub fn slirp(subnet: Ipv6Net) -> Option<Ipv6Layout> {
        if subnet.prefix_len() > 118 {
            return None;
        }
        let base = u128::from(subnet.network());
        let at = |offset: u128| Ipv6Addr::from(base + offset);
        Some(Ipv6Layout { subnet, gateway: at(2), dns: at(3), sandbox: at(0x100) })
    }
}

/// Which source host sockets use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outbound {
    /// IPv4 source address of TCP, UDP and ping; `None` lets the host choose.
    pub v4: Option<Ipv4Addr>,
    /// IPv6 source address.
    pub v6: Option<Ipv6Addr>,
    /// Interface to bind to (SO_BINDTODEVICE, socket(7)).
    pub interface: Option<String>,
    /// Another one for IPv4.
    #[serde(default)]
    pub interface_v4: Option<String>,
    /// Another one for IPv6.
    #[serde(default)]
    pub interface_v6: Option<String>,
}

impl Outbound {
    /// The interface that sockets towards this address are bound to.
    pub fn interface_for(&self, to: IpAddr) -> Option<&str> {
        let of_family = if to.is_ipv4() { &self.interface_v4 } else { &self.interface_v6 };
        of_family.as_ref().or(self.interface.as_ref()).map(String::as_str)
    }
}

/// The rules of a segment that several sandboxes are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sharing {
    /// No way out: the sandboxes reach each other and the gateway's DNS, which answers local names only.
    pub internal: bool,
    /// The sandboxes reach each other; with `false` only along links ([`Endpoint::links`]).
    pub icc: bool,
}

/// An Ethernet segment with a subnet, a gateway address and rules: all that a gateway must know of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its name; [`PRIVATE`] for one that a single sandbox has for itself.
    pub name: String,
    /// `None` for a network that one sandbox has for itself: it may use any address of the subnet.
    pub sharing: Option<Sharing>,
    /// IPv4 side; `None` with `--ipv6-only`.
    pub v4: Option<Ipv4Layout>,
    /// IPv6 side; `None` with `--ipv4-only`.
    pub v6: Option<Ipv6Layout>,
    /// IP MTU of the segment in bytes, 576 to 65520 (1280 at least with IPv6). Another tool's command line may have 68
    /// (RFC 791) to 65521; with less than 1280 the kernel has no IPv6 on the interface, whatever is here.
    pub mtu: u16,
    /// The gateway's Ethernet address; its fe80 address is derived from it.
    pub gateway_mac: MacAddr,
    /// The gateway's address leads to the host's loopback (`--host-loopback`); otherwise to the host's own
    /// non-loopback address.
    pub host_loopback_allowed: bool,
    /// The clouds' metadata addresses may be reached (`--allow-metadata`).
    pub metadata_allowed: bool,
    /// Datagrams to 255.255.255.255 go to the gateway's address, as the slirp4netns command line wants it;
    /// otherwise they are counted and dropped.
    pub broadcast_to_host: bool,
    /// The DNS address answers; `false` with `--no-dns`.
    pub dns_enabled: bool,
    /// Search domains announced by DHCP (option 119) and router advertisement (RFC 8106). Those that were asked for;
    /// the host's come in by [`Network::announcing`].
    pub dns_search: Vec<String>,
    /// Resolvers given by hand (`--dns`), announced by DHCP and router advertisement instead of the DNS
    /// address; empty means the DNS address.
    pub dns_servers: Vec<IpAddr>,
    /// Names that the DNS address answers itself, lower case, without a final dot: host.tapline.internal and
    /// its like, which lead to the gateway's addresses.
    pub local_names: Vec<(String, IpAddr)>,
    /// Source addresses and interface of host sockets.
    pub outbound: Outbound,
    /// How long a UDP or ping flow may be idle (RFC 4787 REQ-5: not under 2 minutes); 10 s for port 53.
    #[serde(with = "seconds")]
    pub udp_timeout: Duration,
    /// What it does otherwise than tapline's own networks.
    #[serde(default, skip_serializing_if = "Behaviour::is_usual")]
    pub behaviour: Behaviour,
}

/// What a network does otherwise than tapline's own, where another tool's command line wants it. The default is what
/// tapline's own do. Only for a network that one sandbox has for itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Behaviour {
    /// The gateway's address leads nowhere: what goes there is answered with network unreachable, except that a ping is
    /// answered by the gateway itself.
    pub host_denied: bool,
    /// Which way clients on the host's loopback take to a published port.
    pub local_clients: LocalClients,
    /// What is offered and carried.
    pub services: Services,
    /// `Some` where the sandbox has addresses of the host's own. The gateway then answers for every address on the link
    /// but the sandbox's, and every address leads where it leads on the host, but for those named here. The network's
    /// gateway address is then what the gateway itself speaks from, and no name for the host.
    pub mapping: Option<Mapping>,
    /// What DHCP, DHCPv6 and router advertisements say.
    pub announcements: Announcements,
}

impl Behaviour {
    /// Is it as on tapline's own networks?
    pub fn is_usual(&self) -> bool {
        *self == Behaviour::default()
    }
}

/// Which way a client on the host's loopback takes to a published port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LocalClients {
    /// Past the link: to the sandbox's loopback, and where nobody listens there to its own address.
    #[default]
    Loopback,
    /// Past the link, to the sandbox's loopback only.
    LoopbackOnly,
    /// Past the link, to the sandbox's own address only.
    OwnAddress,
    /// Through the link, as all others do; the gateway's address stands for them.
    Link,
}

/// What a gateway offers and carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Services {
    /// TCP in and out.
    pub tcp: bool,
    /// UDP in and out; DHCP and DNS do not count.
    pub udp: bool,
    /// Echo requests.
    pub icmp: bool,
    /// DHCP (RFC 2131).
    pub dhcp: bool,
    /// DHCPv6 (RFC 8415).
    pub dhcpv6: bool,
    /// Neighbor discovery (RFC 4861), without router advertisements.
    pub ndp: bool,
    /// Router advertisements.
    pub router_advertisements: bool,
}

impl Default for Services {
    /// Everything but DHCPv6.
    fn default() -> Services {
        Services { tcp: true, udp: true, icmp: true, dhcp: true, dhcpv6: false, ndp: true, router_advertisements: true }
    }
}

/// Addresses that lead elsewhere than to themselves, where the sandbox has the host's own ([`Behaviour::mapping`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// Leads to 127.0.0.1 on the host. Clients that cannot be shown under their own address come from here.
    pub host_loopback_v4: Option<Ipv4Addr>,
    /// Leads to ::1 on the host; likewise.
    pub host_loopback_v6: Option<Ipv6Addr>,
    /// Leads to the host's own copy of the sandbox's address; clients that have that address come from here.
    pub guest_v4: Option<Ipv4Addr>,
    /// Likewise.
    pub guest_v6: Option<Ipv6Addr>,
    /// What goes to the network's DNS address, port 853, leads here (RFC 7858; RFC 9250, where the port is the same and
    /// the family too).
    pub dns_over_tls: Option<SocketAddr>,
    /// Addresses that the sandbox has besides the endpoint's: nobody answers for them on the link either, and no client
    /// can be shown under one.
    #[serde(default)]
    pub further: Vec<IpAddr>,
    /// The index of the host's interface that link-local IPv6 destinations are on; without it they are not reached.
    #[serde(default)]
    pub interface: Option<u32>,
}

/// What DHCP, DHCPv6 and router advertisements say besides addresses, routes and MTU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcements {
    /// Resolvers.
    pub resolvers: bool,
    /// Search domains.
    pub search: bool,
    /// The sandbox's hostname (DHCP option 12).
    pub hostname: Option<String>,
    /// Its fully qualified name (RFC 4702, RFC 4704).
    pub fqdn: Option<String>,
    /// The MTU (DHCP option 26, RFC 4861 section 4.6.4).
    pub mtu: bool,
}

impl Default for Announcements {
    /// All that is always known.
    fn default() -> Announcements {
        Announcements { resolvers: true, search: true, hostname: None, fqdn: None, mtu: true }
    }
}

impl Network {
    /// The network as a gateway is to announce it: with the search domains that were asked for, or the host's.
    /// None without DNS, unless the sandbox finds resolvers where the host does.
    pub fn announcing(&self, asked: Option<&[String]>, host: &HostView) -> Network {
        let has_resolvers = self.dns_enabled || self.behaviour.mapping.is_some();
        let search = asked.unwrap_or(&host.search).iter().filter(|_| has_resolvers);
        Network { dns_search: search.cloned().collect(), ..self.clone() }
    }

    /// The resolvers that are announced: those given by hand, or the DNS address, of whichever families. `dns` is that
    /// of the family that is asked for.
    pub fn announced_resolvers(&self, dns: IpAddr) -> Vec<IpAddr> {
        if !self.behaviour.announcements.resolvers {
            return Vec::new();
        }
        if self.dns_servers.is_empty() {
            return if self.dns_enabled && !dns.is_unspecified() { vec![dns] } else { Vec::new() };
        }
        self.dns_servers.clone()
    }

    /// The search domains that are announced.
    pub fn announced_search(&self) -> &[String] {
        if self.behaviour.announcements.search { &self.dns_search } else { &[] }
    }

    /// The gateway's link-local IPv6 address, where router advertisements come from.
    pub fn gateway_link_local(&self) -> Ipv6Addr {
        self.gateway_mac.link_local()
    }

    /// Is this one of the gateway's own addresses (not its DNS address)? Where the sandbox has the host's own addresses
    /// ([`Behaviour::mapping`]) only the link-local one is.
    pub fn is_gateway(&self, ip: IpAddr) -> bool {
        match ip {
            ip if self.behaviour.mapping.is_some() => ip == IpAddr::V6(self.gateway_link_local()),
            IpAddr::V4(ip) => self.v4.is_some_and(|l| l.gateway == ip),
            IpAddr::V6(ip) => self.v6.is_some_and(|l| l.gateway == ip) || ip == self.gateway_link_local(),
        }
    }

    /// Is this the address that answers DNS? An unspecified one in the layout means that there is none.
    pub fn is_dns(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => self.v4.is_some_and(|l| l.dns == ip) && !ip.is_unspecified(),
            IpAddr::V6(ip) => self.v6.is_some_and(|l| l.dns == ip) && !ip.is_unspecified(),
        }
    }

    /// Is nobody heard at the DNS address, where there are no names? On tapline's own networks the gateway says that
    /// nobody is there, so that no program waits.
    pub fn is_silent_without_names(&self) -> bool {
        !self.dns_enabled && !self.behaviour.is_usual()
    }

    /// How long a ping flow may be idle: on tapline's own networks no longer than it needs (RFC 5508 REQ-2: a minute),
    /// elsewhere as long as a UDP flow.
    pub fn ping_timeout(&self) -> Duration {
        const NEEDED: Duration = Duration::from_secs(60);
        if self.behaviour.is_usual() { self.udp_timeout.min(NEEDED) } else { self.udp_timeout }
    }

    /// Does this address stand for the host itself: the gateway's, or one that is mapped?
    pub fn is_host(&self, ip: IpAddr) -> bool {
        self.is_gateway(ip)
            || self.behaviour.mapping.as_ref().is_some_and(|mapping| match ip {
                IpAddr::V4(ip) => [mapping.host_loopback_v4, mapping.guest_v4].contains(&Some(ip)),
                IpAddr::V6(ip) => [mapping.host_loopback_v6, mapping.guest_v6].contains(&Some(ip)),
            })
    }

    /// Is the gateway a hop on the way to this address? Not to its own; and a sandbox that has the host's own addresses
    /// is where the host is.
    pub fn is_hop_to(&self, ip: IpAddr) -> bool {
        self.behaviour.mapping.is_none() && !self.is_gateway(ip) && !self.is_dns(ip)
    }
}

/// Another sandbox that one has a link to (`--link NAME[:ALIAS]`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxLink {
    /// The other sandbox's name.
    pub sandbox: String,
    /// What else it is called for the one that links, lower case.
    pub alias: Option<String>,
}

/// What a sandbox may reach beyond what its network allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// The gateway's address leads to the host's loopback.
    pub host_loopback: bool,
    /// The clouds' metadata addresses may be reached.
    pub metadata: bool,
}

/// A sandbox's place on a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The sandbox's id: 12 hexadecimal digits.
    pub id: String,
    /// The sandbox's name.
    pub name: String,
    /// The interface inside (`tap0`).
    pub ifname: String,
    /// The interface's Ethernet address.
    pub mac: MacAddr,
    /// The sandbox's IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// The sandbox's IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// Other names that it has on this network (`--network-alias`), lower case.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Sandboxes that it has links to.
    #[serde(default)]
    pub links: Vec<SandboxLink>,
    /// Ports that a link to this sandbox opens where sandboxes do not reach each other (`--expose`, `-p`).
    #[serde(default)]
    pub exposed: Vec<Expose>,
    /// What it may reach besides.
    #[serde(default)]
    pub access: Access,
    /// Names that the DNS address answers for this sandbox alone (`--add-host`), lower case, without a final dot.
    #[serde(default)]
    pub names: Vec<(String, IpAddr)>,
    /// Resolvers that its questions are passed on to (`--dns`); empty means the host's.
    #[serde(default)]
    pub dns_servers: Vec<IpAddr>,
}

/// How frames travel between a sandbox and the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkKind {
    /// A TAP device: read and write, a virtio-net header in front of each frame.
    Tap,
    /// A packet socket with a receive ring on the far half of a veth pair.
    Packet,
    /// A TAP device without that header: checksums are computed and super-segments cut before frames go there.
    PlainTap,
    /// None at all, and no descriptor: nothing but `lo` inside.
    None,
}

/// What a gateway must know of the host, gathered by the supervisor and told anew whenever it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostView {
    /// The host's own non-loopback IPv4 address: the preferred source of its default route, else the first
    /// global address.
    pub v4: Option<Ipv4Addr>,
    /// Likewise for IPv6.
    pub v6: Option<Ipv6Addr>,
    /// Every nameserver of the host's resolv.conf, in order, port 53 (an IPv6 one may have a scope).
    pub resolvers: Vec<SocketAddr>,
    /// The host's search domains.
    pub search: Vec<String>,
}

/// Durations as seconds with a fraction, for JSON and TOML.
mod seconds {
    use std::time::Duration;

    pub fn serialize<S: serde::Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(value.as_secs_f64())
    }

    pub fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let seconds = <f64 as serde::Deserialize>::deserialize(from)?;
        Duration::try_from_secs_f64(seconds).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_is_announced_before_the_hosts() {
        let network = Network {
            name: PRIVATE.into(),
            sharing: None,
            v4: None,
            v6: None,
            mtu: 1500,
            gateway_mac: MacAddr::from_ipv4(Ipv4Addr::new(10, 0, 2, 2)),
            host_loopback_allowed: false,
            metadata_allowed: false,
            broadcast_to_host: false,
            dns_enabled: true,
            dns_search: Vec::new(),
            dns_servers: Vec::new(),
            local_names: Vec::new(),
            outbound: Outbound::default(),
            udp_timeout: Duration::from_secs(300),
            behaviour: Behaviour::default(),
        };
        let host = HostView { search: vec!["host.example".into()], ..HostView::default() };
        let of = |network: &Network, asked: Option<&[String]>| network.announcing(asked, &host).dns_search;
        assert_eq!(of(&network, None), ["host.example"]);
        assert_eq!(of(&network, Some(&[])), [""; 0]);
        assert_eq!(of(&network, Some(&["own.example".into()])), ["own.example"]);
        assert_eq!(of(&Network { dns_enabled: false, ..network }, None), [""; 0]);
    }
}
