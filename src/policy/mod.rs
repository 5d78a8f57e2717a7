//! The one place where a new flow is judged.
//!
//! A destination is looked at once, when a flow begins; the verdict is kept with the flow. The rules of today:
//!
//! - out of an internal network nothing leads, not even to the host;
//! - the gateway's address leads to the host: to its own non-loopback address, or to its loopback where that
//!   was asked for (`--host-loopback`), for the whole network or for one sandbox;
//! - nobody's business: 0.0.0.0/8, 127.0.0.0/8, ::, ::1, IPv4-mapped IPv6 (a way around the rules before);
//! - the clouds' metadata addresses, unless allowed (`--allow-metadata`);
//! - multicast and broadcast do not leave the segment;
//! - other addresses of the segment's own subnet are nobody's: they are not looked for outside;
//! - nor are those of the other networks that this user's sandboxes are on: networks do not reach each other.
//!
//! Where the sandbox has the host's own addresses ([`Behaviour::mapping`](crate::plan::Behaviour)) the subnet is the
//! host's: every address of it, the gateway's too, leads to itself, but for those that are mapped to the host.
//!
//! A client of a published port is judged too, when it connects (`--publish-from`); and so is what one sandbox sends
//! to another where they do not reach each other unasked ([`links`]).
//!
//! Later rules (egress by name) belong here and nowhere else.

pub mod links;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use crate::plan::{Access, HostView, Mapping, Network, Published};

/// Why a destination is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 0.0.0.0/8 or ::.
    Unspecified,
    /// 127.0.0.0/8 or ::1.
    Loopback,
    /// ::ffff:0:0/96.
    V4Mapped,
    /// A cloud's metadata service.
    Metadata,
    /// Multicast or broadcast.
    Multicast,
    /// An address of the segment that nobody has, or another link-local one.
    NotOnSegment,
    /// The gateway's address, but the host has no non-loopback address of that family to lead to.
    NoHostAddress,
    /// The gateway's address, which leads nowhere.
    HostDenied,
    /// The DNS address, which offers nothing but DNS.
    DnsOnly,
    /// An address of another network.
    Foreign,
    /// Anything at all, from an internal network.
    Internal,
}

/// What a destination is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// The network that the flow begins on.
    pub network: &'a Network,
    /// The host as it is now.
    pub host: &'a HostView,
    /// What this sandbox may reach besides.
    pub access: Access,
    /// The subnets of other networks.
    pub foreign: &'a [IpNet],
}

/// RFC 7858, 3.1 and RFC 9250, 4.1.1.
const DNS_OVER_TLS: u16 = 853;

/// The metadata services of AWS, Azure, Google, Oracle (169.254.169.254), AWS ECS, Alibaba, Azure's wire server.
const METADATA_V4: [Ipv4Addr; 4] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
];
/// AWS (fd00:ec2::254) and Google (fd20:ce::254).
const METADATA_V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

/// Where a new flow to `destination` leads on the host, or why it is refused.
pub fn judge(rules: &Rules<'_>, destination: IpAddr) -> Result<IpAddr, Refusal> {
    let Rules { network, host, access, foreign } = *rules;
    let metadata_allowed = network.metadata_allowed || access.metadata;
    if let Some(mapping) = &network.behaviour.mapping {
        return judge_mapped(network, mapping, destination, metadata_allowed);
    }
    if network.is_gateway(destination) {
        if is_internal(network) {
            return Err(Refusal::Internal);
        }
        if network.behaviour.host_denied {
            return Err(Refusal::HostDenied);
        }
        return match (destination, network.host_loopback_allowed || access.host_loopback) {
            (IpAddr::V4(_), true) => Ok(Ipv4Addr::LOCALHOST.into()),
            (IpAddr::V6(_), true) => Ok(Ipv6Addr::LOCALHOST.into()),
            (IpAddr::V4(_), false) => host.v4.map(IpAddr::V4).ok_or(Refusal::NoHostAddress),
            (IpAddr::V6(_), false) => host.v6.map(IpAddr::V6).ok_or(Refusal::NoHostAddress),
        };
    }
    if network.is_dns(destination) {
        return Err(Refusal::DnsOnly);
    }
    judge_address(network, destination, metadata_allowed)?;
    let on_segment = match destination {
        IpAddr::V4(ip) => network.v4.is_some_and(|l| l.subnet.contains(&ip)),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || network.v6.is_some_and(|l| l.subnet.contains(&ip)),
    };
    if on_segment {
        return Err(Refusal::NotOnSegment);
    }
    if is_internal(network) {
        return Err(Refusal::Internal);
    }
    if foreign.iter().any(|subnet| subnet.contains(&destination)) {
        return Err(Refusal::Foreign);
    }
    Ok(destination)
}

/// Where a flow leads out of a sandbox that has the host's own addresses.
fn judge_mapped(
    network: &Network,
    mapping: &Mapping,
    destination: IpAddr,
    metadata_allowed: bool,
) -> Result<IpAddr, Refusal> {
    let (loopback, guest, own) = match destination {
        IpAddr::V4(_) => {
            let own = network.v4.map(|l| IpAddr::V4(l.sandbox));
            (mapping.host_loopback_v4.map(IpAddr::V4), mapping.guest_v4.map(IpAddr::V4), own)
        }
        IpAddr::V6(_) => {
            let own = network.v6.map(|l| IpAddr::V6(l.sandbox));
            (mapping.host_loopback_v6.map(IpAddr::V6), mapping.guest_v6.map(IpAddr::V6), own)
        }
    };
    if loopback == Some(destination) {
        return Ok(if destination.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    if guest == Some(destination) {
        return own.filter(|own| !own.is_unspecified()).ok_or(Refusal::NoHostAddress);
    }
    judge_address(network, destination, metadata_allowed)?;
    match destination {
        IpAddr::V6(ip)
            if network.is_gateway(destination) || (ip.is_unicast_link_local() && mapping.interface.is_none()) =>
        {
            Err(Refusal::NotOnSegment)
        }
        _ => Ok(destination),
    }
}

/// Where a flow to the DNS address leads that is not for its forwarder: to the resolver behind it, over TLS or QUIC.
pub fn encrypted_dns(network: &Network, destination: SocketAddr) -> Option<SocketAddr> {
    let resolver = network.behaviour.mapping.as_ref()?.dns_over_tls?;
    (destination.port() == DNS_OVER_TLS && network.is_dns(destination.ip())).then_some(resolver)
}

fn is_internal(network: &Network) -> bool {
    network.sharing.is_some_and(|sharing| sharing.internal)
}

/// May this client use a published port? Where nobody was named, everybody may; the host's own loopback always. An
/// IPv4 client is judged by its IPv4 address, also where the socket takes both families.
pub fn may_connect(published: &Published, client: IpAddr) -> bool {
    let client = client.to_canonical();
    published.from.is_empty() || client.is_loopback() || published.from.iter().any(|from| from.contains(&client))
}

/// Can anything lead to this address at all?
fn judge_address(network: &Network, ip: IpAddr, metadata_allowed: bool) -> Result<(), Refusal> {
    match ip {
        IpAddr::V4(ip) => judge_v4(network, ip, metadata_allowed),
        IpAddr::V6(ip) => judge_v6(ip, metadata_allowed),
    }
}

fn judge_v4(network: &Network, ip: Ipv4Addr, metadata_allowed: bool) -> Result<(), Refusal> {
    if ip.octets()[0] == 0 {
        return Err(Refusal::Unspecified);
    }
    if ip.is_loopback() {
        return Err(Refusal::Loopback);
    }
    if ip.is_multicast() || ip.is_broadcast() || network.v4.is_some_and(|l| l.broadcast() == Some(ip)) {
        return Err(Refusal::Multicast);
    }
    if !metadata_allowed && METADATA_V4.contains(&ip) {
        return Err(Refusal::Metadata);
    }
    Ok(())
}

fn judge_v6(ip: Ipv6Addr, metadata_allowed: bool) -> Result<(), Refusal> {
    if ip.is_unspecified() {
        return Err(Refusal::Unspecified);
    }
    if ip.is_loopback() {
        return Err(Refusal::Loopback);
    }
    // ::a.b.c.d, the deprecated IPv4-compatible form (RFC 4291, 2.5.5.1), is refused with the mapped one.
    if ip.segments()[..5] == [0; 5] {
        return Err(Refusal::V4Mapped);
    }
    if ip.is_multicast() {
        return Err(Refusal::Multicast);
    }
    if !metadata_allowed && METADATA_V6.contains(&ip) {
        return Err(Refusal::Metadata);
    }
    Ok(())
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::plan::{Origin, Protocol, Sharing};

    fn network() -> Network {
        crate::gateway::emit::testing::network(65520)
    }

    fn host() -> HostView {
        HostView { v4: "192.0.2.7".parse().ok(), v6: "2001:db8::7".parse().ok(), ..HostView::default() }
    }

    fn verdict(network: &Network, to: &str) -> Result<String, Refusal> {
        ask(&Rules { network, host: &host(), access: Access::default(), foreign: &[] }, to)
    }

    fn ask(rules: &Rules<'_>, to: &str) -> Result<String, Refusal> {
        judge(rules, to.parse().unwrap()).map(|ip| ip.to_string())
    }

    #[test]
    fn the_gateways_address_leads_to_the_hosts_own_and_to_loopback_only_when_allowed() {
        let mut net = network();
        assert_eq!(verdict(&net, "10.0.2.2").unwrap(), "192.0.2.7");
        assert_eq!(verdict(&net, "fd00::2").unwrap(), "2001:db8::7");
        let nobody = HostView::default();
        let rules = Rules { network: &net, host: &nobody, access: Access::default(), foreign: &[] };
        assert_eq!(ask(&rules, "10.0.2.2"), Err(Refusal::NoHostAddress));
        net.host_loopback_allowed = true;
        assert_eq!(verdict(&net, "10.0.2.2").unwrap(), "127.0.0.1");
        assert_eq!(verdict(&net, "fd00::2").unwrap(), "::1");
    }

    #[test]
    fn nobodys_business_is_refused() {
        let mut net = network();
        // Also with the loopback allowed: only the gateway's address leads there.
        for allowed in [false, true] {
            net.host_loopback_allowed = allowed;
            for (to, why) in [
                ("0.0.0.0", Refusal::Unspecified),
                ("0.255.0.1", Refusal::Unspecified),
                ("127.0.0.1", Refusal::Loopback),
                ("127.255.255.254", Refusal::Loopback),
                ("::", Refusal::Unspecified),
                ("::1", Refusal::Loopback),
                ("::ffff:127.0.0.1", Refusal::V4Mapped),
                ("::ffff:192.0.2.1", Refusal::V4Mapped),
                ("::127.0.0.1", Refusal::V4Mapped),
                ("224.0.0.1", Refusal::Multicast),
                ("255.255.255.255", Refusal::Multicast),
                ("10.0.2.255", Refusal::Multicast),
                ("ff02::1", Refusal::Multicast),
                ("10.0.2.50", Refusal::NotOnSegment),
                ("fd00::50", Refusal::NotOnSegment),
                ("fe80::1", Refusal::NotOnSegment),
                ("10.0.2.3", Refusal::DnsOnly),
                ("fd00::3", Refusal::DnsOnly),
            ] {
                assert_eq!(verdict(&net, to), Err(why), "{to}");
            }
        }
    }

    #[test]
    fn metadata_services_are_refused_unless_allowed() {
        let mut net = network();
        let services =
            ["169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "fd00:ec2::254", "fd20:ce::254"];
        for to in services {
            assert_eq!(verdict(&net, to), Err(Refusal::Metadata), "{to}");
        }
        net.metadata_allowed = true;
        for to in services {
            assert_eq!(verdict(&net, to).as_deref(), Ok(to));
        }
    }

    #[test]
    fn what_one_sandbox_may_reach_is_added_to_what_its_network_allows() {
        let (mut net, host) = (network(), host());
        let may = |net: &Network, access: Access, to: &str| {
            ask(&Rules { network: net, host: &host, access, foreign: &[] }, to)
        };
        let (none, all) = (Access::default(), Access { host_loopback: true, metadata: true });
        assert_eq!(may(&net, none, "10.0.2.2").as_deref(), Ok("192.0.2.7"));
        assert_eq!(may(&net, all, "10.0.2.2").as_deref(), Ok("127.0.0.1"));
        assert_eq!(may(&net, Access { metadata: true, ..none }, "10.0.2.2").as_deref(), Ok("192.0.2.7"));
        assert_eq!(may(&net, Access { host_loopback: true, ..none }, "169.254.169.254"), Err(Refusal::Metadata));
        assert_eq!(may(&net, all, "fd00:ec2::254").as_deref(), Ok("fd00:ec2::254"));
        net.host_loopback_allowed = true;
        assert_eq!(may(&net, none, "fd00::2").as_deref(), Ok("::1"));
    }

    #[test]
    fn other_networks_are_not_reached_by_any_of_their_addresses() {
        let (net, host) = (network(), host());
        let foreign = ["10.176.16.0/20".parse().unwrap(), "fd12:3456::/64".parse().unwrap()];
        let rules = Rules { network: &net, host: &host, access: Access::default(), foreign: &foreign };
        for to in ["10.176.16.1", "10.176.16.2", "10.176.31.255", "fd12:3456::1", "fd12:3456::ffff"] {
            assert_eq!(ask(&rules, to), Err(Refusal::Foreign), "{to}");
        }
        for to in ["10.176.32.1", "fd12:3456:0:1::1", "8.8.8.8"] {
            assert_eq!(ask(&rules, to).as_deref(), Ok(to));
        }
    }

    #[test]
    fn out_of_an_internal_network_nothing_leads() {
        let mut net = network();
        net.sharing = Some(Sharing { internal: true, icc: true });
        let all = Access { host_loopback: true, metadata: true };
        let host = host();
        let rules = Rules { network: &net, host: &host, access: all, foreign: &[] };
        for to in ["10.0.2.2", "fd00::2", "8.8.8.8", "2001:db8::1", "169.254.169.254", "192.0.2.7"] {
            assert_eq!(ask(&rules, to), Err(Refusal::Internal), "{to}");
        }
        assert_eq!(ask(&rules, "224.0.0.1"), Err(Refusal::Multicast), "which is not answered");
    }

    #[test]
    fn the_rest_of_the_world_is_itself() {
        for to in ["192.0.2.1", "8.8.8.8", "10.0.3.1", "2001:db8::1", "64:ff9b::1"] {
            assert_eq!(verdict(&network(), to).as_deref(), Ok(to));
        }
    }

    #[test]
    fn clients_of_a_published_port_are_those_that_were_named_and_the_host_itself() {
        let mut published = Published {
            sandbox: "0123456789ab".to_owned(),
            protocol: Protocol::Tcp,
            host: "[::]:8080".parse().unwrap(),
            dual_stack: true,
            sandbox_port: 80,
            sandbox_address: None,
            device: 0,
            proxy: None,
            from: vec![],
            spec: "8080:80".to_owned(),
            origin: Origin::Option,
        };
        let may = |published: &Published, client: &str| may_connect(published, client.parse().unwrap());
        assert!(may(&published, "203.0.113.1") && may(&published, "2001:db8::1"));
        published.from = vec!["192.0.2.0/24".parse().unwrap(), "2001:db8:1::/48".parse().unwrap()];
        for client in ["192.0.2.9", "::ffff:192.0.2.9", "2001:db8:1::9", "127.0.0.1", "127.8.8.8", "::1"] {
            assert!(may(&published, client), "{client}");
        }
        for client in ["192.0.3.9", "::ffff:192.0.3.9", "2001:db8:2::9", "::", "fe80::1"] {
            assert!(!may(&published, client), "{client}");
        }
    }
}
