//! Subnets that a network can have: checked when they are typed, so that nothing later has to doubt them.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The subnet of a private network unless another is asked for: slirp's.
pub const DEFAULT_SUBNET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 2, 0), 24);
/// Likewise for IPv6.
pub const DEFAULT_SUBNET6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0), 64);

/// Why a text is not a subnet that a network can have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SubnetError {
    /// Not an address and a prefix length.
    #[error("not a subnet: an {family} address and a prefix length are needed, like {example}")]
    Malformed {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// One that would do.
        example: &'static str,
    },
    /// Bits are set behind the prefix.
    #[error("an address in a subnet, not the subnet itself: did you mean {network}?")]
    NotNetwork {
        /// The subnet that it lies in.
        network: String,
    },
    /// Too long a prefix for the layout.
    #[error("too small: the sandbox's address is {offset} behind the first, take /{longest} or shorter")]
    TooSmall {
        /// Where the sandbox lies.
        offset: &'static str,
        /// The longest prefix that will do.
        longest: u8,
    },
    /// No room for a gateway and a sandbox.
    #[error("too small: a gateway and a sandbox need an address each, take /{longest} or shorter")]
    NoRoom {
        /// The longest prefix that will do.
        longest: u8,
    },
    /// Overlaps addresses that mean something else.
    #[error("overlaps {range}, which is {meaning}: take a private range, like {example}")]
    Reserved {
        /// The range.
        range: String,
        /// What it is for.
        meaning: &'static str,
        /// One that would do.
        example: &'static str,
    },
}

/// Ranges no network can have (RFC 6890).
const RESERVED_V4: [(Ipv4Net, &str); 5] = [
    (Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8), "\"this network\""),
    (Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8), "loopback"),
    (Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16), "link-local"),
    (Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4), "multicast"),
    (Ipv4Net::new_assert(Ipv4Addr::new(240, 0, 0, 0), 4), "reserved"),
];

/// Likewise (RFC 4291): ::/8 holds ::, ::1 and the mapped and compatible forms of IPv4 addresses.
const RESERVED_V6: [(Ipv6Net, &str); 3] = [
    (Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 8), "loopback and embedded IPv4"),
    (Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10), "link-local"),
    (Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8), "multicast"),
];

const EXAMPLE_V4: &str = "10.0.2.0/24";
const EXAMPLE_V6: &str = "fd00::/64";

/// Reads an IPv4 subnet that has room for the layout ([`super::Ipv4Layout::slirp`]).
pub fn parse_ipv4_subnet(text: &str) -> Result<Ipv4Net, SubnetError> {
    let net: Ipv4Net = text.parse().map_err(|_| SubnetError::Malformed { family: "IPv4", example: EXAMPLE_V4 })?;
    if net.addr() != net.network() {
        return Err(SubnetError::NotNetwork { network: net.trunc().to_string() });
    }
    if net.prefix_len() > 25 {
        return Err(SubnetError::TooSmall { offset: "100", longest: 25 });
    }
    match RESERVED_V4.iter().find(|(range, _)| range.contains(&net) || net.contains(range)) {
        Some((range, meaning)) => Err(SubnetError::Reserved { range: range.to_string(), meaning, example: EXAMPLE_V4 }),
        None => Ok(net),
    }
}

/// Reads an IPv6 subnet that has room for the layout ([`super::Ipv6Layout::slirp`]).
pub fn parse_ipv6_subnet(text: &str) -> Result<Ipv6Net, SubnetError> {
    let net: Ipv6Net = text.parse().map_err(|_| SubnetError::Malformed { family: "IPv6", example: EXAMPLE_V6 })?;
    if net.addr() != net.network() {
        return Err(SubnetError::NotNetwork { network: net.trunc().to_string() });
    }
    if net.prefix_len() > 118 {
        return Err(SubnetError::TooSmall { offset: "::100", longest: 118 });
    }
    match RESERVED_V6.iter().find(|(range, _)| range.contains(&net) || net.contains(range)) {
        Some((range, meaning)) => Err(SubnetError::Reserved { range: range.to_string(), meaning, example: EXAMPLE_V6 }),
        None => Ok(net),
    }
}

/// Reads a subnet of either family for a network that sandboxes share: its gateway and its sandboxes may have any of
/// its addresses.
pub fn parse_shared_subnet(text: &str) -> Result<IpNet, SubnetError> {
    let net: IpNet =
        text.parse().map_err(|_| SubnetError::Malformed { family: "IPv4 or IPv6", example: "10.9.0.0/24" })?;
    if net.addr() != net.network() {
        return Err(SubnetError::NotNetwork { network: net.trunc().to_string() });
    }
    let longest = net.max_prefix_len() - 2;
    if net.prefix_len() > longest {
        return Err(SubnetError::NoRoom { longest });
    }
    let reserved = |range: IpNet, meaning, example| {
        overlap(range, net).then(|| SubnetError::Reserved { range: range.to_string(), meaning, example })
    };
    let v4 = RESERVED_V4.iter().find_map(|(range, meaning)| reserved((*range).into(), *meaning, "10.9.0.0/24"));
    let v6 = || RESERVED_V6.iter().find_map(|(range, meaning)| reserved((*range).into(), *meaning, "fd00:9::/64"));
    v4.or_else(v6).map_or(Ok(net), Err)
}

/// Have two subnets an address in common?
pub fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}

/// Where IPv4 subnets that nobody has asked for are taken from, the first first, and how long their prefixes are. The
/// others are for hosts that have a route for all of the first.
const POOLS: [Ipv4Net; 3] = [
    Ipv4Net::new_assert(Ipv4Addr::new(10, 176, 0, 0), 12),
    Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16),
];
const POOL_PREFIX: u8 = 20;

/// The first IPv4 subnet that overlaps none of these: 4094 addresses.
pub fn free_ipv4(taken: &[IpNet]) -> Option<Ipv4Net> {
    let mut candidates = POOLS.iter().flat_map(|pool| pool.subnets(POOL_PREFIX).into_iter().flatten());
    candidates.find(|net| !taken.iter().any(|other| overlap((*net).into(), *other)))
}

/// An IPv6 subnet that overlaps none of these: a /64 of the unique local prefix that these random bits are the
/// Global ID of (RFC 4193, 3.2), with the subnet ID zero; `None` when it is taken.
pub fn free_ipv6(random: [u8; 5], taken: &[IpNet]) -> Option<Ipv6Net> {
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&random);
    let net = Ipv6Net::new_assert(Ipv6Addr::from_octets(octets), 64);
    (!taken.iter().any(|other| overlap(net.into(), *other))).then_some(net)
}

/// The addresses of a subnet that sandboxes can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The subnet.
    pub subnet: IpNet,
    /// Where those that nobody has asked for are taken from, in the subnet.
    pub range: IpNet,
    /// The gateway has this one.
    pub gateway: IpAddr,
}

impl Pool {
    /// Why no sandbox can have this address, be it asked for or not; `None` when one can.
    pub fn refusal(&self, ip: IpAddr) -> Option<&'static str> {
        match reserved_in(self.subnet, ip) {
            None if ip == self.gateway => Some("is the gateway's"),
            reason => reason,
        }
    }

    /// The lowest address of the range that a sandbox can have and that is not taken.
    pub fn lowest_free(&self, taken: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let (mut ip, last) = (self.range.network(), self.range.broadcast());
        loop {
            if self.refusal(ip).is_none() && !taken(ip) {
                return Some(ip);
            }
            if ip == last {
                return None;
            }
            ip = next(ip);
        }
    }
}

/// The address behind this one; the highest stays.
fn next(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => Ipv4Addr::from(u32::from(ip).saturating_add(1)).into(),
        IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip).saturating_add(1)).into(),
    }
}

/// What keeps an address from being anybody's on this subnet: it lies elsewhere, or means something else there (IPv4:
/// the network itself and its broadcast address; IPv6: the subnet-router anycast address, RFC 4291, 2.6.1).
pub fn reserved_in(subnet: IpNet, ip: IpAddr) -> Option<&'static str> {
    match subnet {
        _ if !subnet.contains(&ip) => Some("is outside"),
        IpNet::V4(net) if ip == net.network() => Some("is the network's own address"),
        IpNet::V4(net) if ip == net.broadcast() => Some("is the broadcast address"),
        IpNet::V6(net) if ip == net.network() => Some("is the anycast address of routers"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_shared_subnet_of_either_family_is_read() {
        assert_eq!(parse_shared_subnet("10.9.0.0/30").unwrap(), net("10.9.0.0/30"));
        assert_eq!(parse_shared_subnet("fd00:9::/126").unwrap(), net("fd00:9::/126"));
        assert_eq!(parse_shared_subnet("10.9.0.0/31"), Err(SubnetError::NoRoom { longest: 30 }));
        assert_eq!(parse_shared_subnet("fd00:9::/127"), Err(SubnetError::NoRoom { longest: 126 }));
        for bad in ["127.0.0.0/24", "0.0.0.0/0", "224.0.0.0/24", "::/64", "ff02::/64", "fe80::/64"] {
            assert!(matches!(parse_shared_subnet(bad), Err(SubnetError::Reserved { .. })), "{bad}");
        }
        assert!(parse_shared_subnet("10.9.0.1/24").unwrap_err().to_string().contains("did you mean 10.9.0.0/24?"));
        assert!(parse_shared_subnet("10.9.0.0").is_err());
    }

    #[test]
    fn a_free_subnet_overlaps_nothing_that_is_taken() {
        assert_eq!(free_ipv4(&[]), Some("10.176.0.0/20".parse().unwrap()));
        assert_eq!(free_ipv4(&[net("10.176.0.0/20"), net("10.176.17.7/32")]), Some("10.176.32.0/20".parse().unwrap()));
        assert_eq!(free_ipv4(&[net("10.0.0.0/8")]), Some("172.16.0.0/20".parse().unwrap()));
        let all = [net("10.0.0.0/8"), net("172.16.0.0/12"), net("192.168.0.0/16")];
        assert_eq!(free_ipv4(&all[..2]), Some("192.168.0.0/20".parse().unwrap()));
        assert_eq!(free_ipv4(&all), None);
        assert_eq!(free_ipv6([1, 2, 3, 4, 5], &[]), Some("fd01:203:405::/64".parse().unwrap()));
        assert_eq!(free_ipv6([1, 2, 3, 4, 5], &[net("fd00::/8")]), None);
    }

    #[test]
    fn the_lowest_free_address_is_nobody_elses() {
        let pool = Pool { subnet: net("10.9.0.0/29"), range: net("10.9.0.0/29"), gateway: [10, 9, 0, 2].into() };
        let mut taken: Vec<IpAddr> = Vec::new();
        while let Some(ip) = pool.lowest_free(|ip| taken.contains(&ip)) {
            taken.push(ip);
        }
        assert_eq!(taken, [1, 3, 4, 5, 6].map(|n| IpAddr::from([10, 9, 0, n])));
        let pool = Pool { range: net("10.9.0.4/31"), ..pool };
        assert_eq!(pool.lowest_free(|_| false), Some([10, 9, 0, 4].into()));
        let pool =
            Pool { subnet: net("fd00:9::/64"), range: net("fd00:9::/64"), gateway: "fd00:9::1".parse().unwrap() };
        assert_eq!(pool.lowest_free(|_| false), Some("fd00:9::2".parse().unwrap()));
        let highest = Pool { range: net("fd00:9::ffff:ffff:ffff:ffff/128"), ..pool };
        assert_eq!(highest.lowest_free(|_| true), None);
    }

    #[test]
    fn an_address_inside_a_subnet_is_answered_with_the_subnet() {
        let error = parse_ipv4_subnet("10.1.2.3/24").unwrap_err();
        assert_eq!(error, SubnetError::NotNetwork { network: "10.1.2.0/24".into() });
        let error = parse_ipv6_subnet("fd00:1::7/64").unwrap_err();
        assert_eq!(error, SubnetError::NotNetwork { network: "fd00:1::/64".into() });
    }

    #[test]
    fn every_accepted_subnet_has_room_for_the_layout() {
        assert!(super::super::Ipv4Layout::slirp(parse_ipv4_subnet("10.9.9.128/25").unwrap()).is_some());
        assert!(matches!(parse_ipv4_subnet("10.9.9.128/26"), Err(SubnetError::TooSmall { longest: 25, .. })));
        assert!(super::super::Ipv6Layout::slirp(parse_ipv6_subnet("fd00::/118").unwrap()).is_some());
        assert!(matches!(parse_ipv6_subnet("fd00::/119"), Err(SubnetError::TooSmall { longest: 118, .. })));
    }

    #[test]
    fn ranges_with_another_meaning_are_refused_from_inside_and_outside() {
        for bad in ["127.0.0.0/24", "0.0.0.0/0", "224.0.0.0/24", "64.0.0.0/2", "169.254.0.0/16", "240.0.0.0/8"] {
            assert!(matches!(parse_ipv4_subnet(bad), Err(SubnetError::Reserved { .. })), "{bad}");
        }
        for bad in ["::/64", "::/0", "fe80::/64", "ff02::/64", "::ffff:0:0/96"] {
            assert!(matches!(parse_ipv6_subnet(bad), Err(SubnetError::Reserved { .. })), "{bad}");
        }
    }

    #[test]
    fn what_is_no_subnet_is_malformed() {
        for bad in ["", "10.0.2.0", "10.0.2.0/33", "fd00::/64", "10.0.2/24"] {
            assert!(matches!(parse_ipv4_subnet(bad), Err(SubnetError::Malformed { .. })), "{bad}");
        }
        for bad in ["", "fd00::", "fd00::/129", "10.0.2.0/24"] {
            assert!(matches!(parse_ipv6_subnet(bad), Err(SubnetError::Malformed { .. })), "{bad}");
        }
    }
}
