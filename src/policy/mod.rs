//! The one place where a new flow is judged.
//!
//! A destination is looked at once, when a flow begins; the verdict is kept with the flow. The rules of today:
//!
//! - the gateway's address leads to the host: to its own non-loopback address, or to its loopback where that
//!   was asked for (`--host-loopback`);
//! - nobody's business: 0.0.0.0/8, 127.0.0.0/8, ::, ::1, IPv4-mapped IPv6 (a way around the rules before);
//! - the clouds' metadata addresses, unless allowed (`--allow-metadata`);
//! - multicast and broadcast do not leave the segment;
//! - other addresses of the segment's own subnet are nobody's: they are not looked for outside.
//!
//! Later rules (links, published-from, egress by name) belong here and nowhere else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::plan::{HostView, Network};

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
    /// The DNS address, which offers nothing but DNS.
    DnsOnly,
}

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
pub fn judge(network: &Network, host: &HostView, destination: IpAddr) -> Result<IpAddr, Refusal> {
    if network.is_gateway(destination) {
        return match (destination, network.host_loopback_allowed) {
            (IpAddr::V4(_), true) => Ok(Ipv4Addr::LOCALHOST.into()),
            (IpAddr::V6(_), true) => Ok(Ipv6Addr::LOCALHOST.into()),
            (IpAddr::V4(_), false) => host.v4.map(IpAddr::V4).ok_or(Refusal::NoHostAddress),
            (IpAddr::V6(_), false) => host.v6.map(IpAddr::V6).ok_or(Refusal::NoHostAddress),
        };
    }
    if network.is_dns(destination) {
        return Err(Refusal::DnsOnly);
    }
    match destination {
        IpAddr::V4(ip) => judge_v4(network, ip)?,
        IpAddr::V6(ip) => judge_v6(network, ip)?,
    }
    Ok(destination)
}

fn judge_v4(network: &Network, ip: Ipv4Addr) -> Result<(), Refusal> {
    if ip.octets()[0] == 0 {
        return Err(Refusal::Unspecified);
    }
    if ip.is_loopback() {
        return Err(Refusal::Loopback);
    }
    if ip.is_multicast() || ip.is_broadcast() || network.v4.is_some_and(|l| l.subnet.broadcast() == ip) {
        return Err(Refusal::Multicast);
    }
    if !network.metadata_allowed && METADATA_V4.contains(&ip) {
        return Err(Refusal::Metadata);
    }
    if network.v4.is_some_and(|l| l.subnet.contains(&ip)) {
        return Err(Refusal::NotOnSegment);
    }
    Ok(())
}

fn judge_v6(network: &Network, ip: Ipv6Addr) -> Result<(), Refusal> {
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
    if !network.metadata_allowed && METADATA_V6.contains(&ip) {
        return Err(Refusal::Metadata);
    }
    if ip.is_unicast_link_local() || network.v6.is_some_and(|l| l.subnet.contains(&ip)) {
        return Err(Refusal::NotOnSegment);
    }
    Ok(())
}
