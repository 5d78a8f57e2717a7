//! Subnets that a network can have: checked when they are typed, so that nothing later has to doubt them.
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

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

#[cfg(test)]
mod tests {
    use super::*;

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
