//! A shared network as a person defined it: what is checked when one is made, and when its file is read.
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::subnet::{Pool, reserved_in};
use super::words::{self, WordError};
use super::{Ipv4Layout, Ipv6Layout, MacAddr, Network, Outbound, PRIVATE, Sharing};

/// The network of every sandbox that asks for no other; made on first use, cannot be removed.
pub const BRIDGE: &str = "bridge";

/// The MTU of a network of which nothing else was said: the largest.
pub const DEFAULT_MTU: u16 = 65520;

/// Idle UDP flows of a shared network live so long (RFC 4787 REQ-5 recommends five minutes).
const UDP_TIMEOUT: Duration = Duration::from_secs(300);

/// Words that mean something else where a network's name can stand, or might be taken for that.
const NO_NAMES: [&str; 7] = [PRIVATE, "none", "host", "container", "default", "auto", "ns"];

/// Why something cannot be a network.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DefinitionError {
    /// Not a DNS label.
    #[error("`{0}` is {1}")]
    Name(String, WordError),
    /// A word with another meaning.
    #[error("`{0}` means something else for --net and cannot be a network's name: choose another")]
    ReservedName(String),
    /// No addresses at all.
    #[error("a network needs an IPv4 subnet or an IPv6 subnet: leave one of them in")]
    NoFamily,
    /// The gateway cannot have this address.
    #[error("the gateway {gateway} {problem} of the subnet {subnet}: choose another of its addresses, like {example}")]
    Gateway {
        /// The address.
        gateway: IpAddr,
        /// What is wrong with it.
        problem: &'static str,
        /// Of this subnet.
        subnet: IpNet,
        /// One that would do.
        example: IpAddr,
    },
    /// The range is not a part of the subnet.
    #[error("the ip-range {range} is not within the subnet {subnet}: choose a part of it")]
    Range {
        /// The range.
        range: IpNet,
        /// The subnet.
        subnet: IpNet,
    },
    /// The range has no address that a sandbox could have.
    #[error("the ip-range {range} has no address for a sandbox (the gateway is {gateway}): choose a larger one")]
    EmptyRange {
        /// The range.
        range: IpNet,
        /// The gateway.
        gateway: IpAddr,
    },
    /// Too small an MTU for IPv6.
    #[error("an MTU of {0} is too small for IPv6, which needs 1280 bytes at least (RFC 8200): take more, or no IPv6")]
    Mtu(u16),
}

/// A network's name: one DNS label that means nothing else.
pub fn parse_network_name(text: &str) -> Result<String, DefinitionError> {
    words::parse_name(text).map_err(|error| DefinitionError::Name(text.to_owned(), error))?;
    if NO_NAMES.iter().any(|word| word.eq_ignore_ascii_case(text)) {
        return Err(DefinitionError::ReservedName(text.to_owned()));
    }
    Ok(text.to_owned())
}

/// Which addresses a subnet's gateway and sandboxes have. The gateway is the subnet's first address where none is
/// given.
fn check_part(subnet: IpNet, gateway: Option<IpAddr>, range: Option<IpNet>) -> Result<Pool, DefinitionError> {
    let first = match subnet {
        IpNet::V4(net) => Ipv4Addr::from(u32::from(net.network()) | 1).into(),
        IpNet::V6(net) => Ipv6Addr::from(u128::from(net.network()) | 1).into(),
    };
    let gateway = gateway.unwrap_or(first);
    if let Some(problem) = reserved_in(subnet, gateway) {
        return Err(DefinitionError::Gateway { gateway, problem, subnet, example: first });
    }
    let pool = Pool { subnet, range: range.unwrap_or(subnet), gateway };
    match range {
        Some(range) if !subnet.contains(&range) => Err(DefinitionError::Range { range, subnet }),
        Some(range) if pool.lowest_free(|_| false).is_none() => Err(DefinitionError::EmptyRange { range, gateway }),
        _ => Ok(pool),
    }
}

/// The IPv4 side of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv4Part {
    /// The segment's subnet.
    pub subnet: Ipv4Net,
    /// The gateway's address, which answers DNS too; in the subnet.
    pub gateway: Ipv4Addr,
    /// Where sandboxes' addresses are taken from, in the subnet; `None` means all of it.
    pub range: Option<Ipv4Net>,
}

impl Ipv4Part {
    /// Checked; with the gateway that was asked for, or the subnet's first address.
    pub fn new(
        subnet: Ipv4Net,
        gateway: Option<Ipv4Addr>,
        range: Option<Ipv4Net>,
    ) -> Result<Ipv4Part, DefinitionError> {
        let pool = check_part(subnet.into(), gateway.map(IpAddr::from), range.map(IpNet::from))?;
        let IpAddr::V4(gateway) = pool.gateway else { unreachable!("the gateway is of its subnet's family") };
        Ok(Ipv4Part { subnet, gateway, range })
    }

    /// The addresses that sandboxes can have.
    pub fn pool(&self) -> Pool {
        let range = self.range.unwrap_or(self.subnet);
        Pool { subnet: self.subnet.into(), range: range.into(), gateway: self.gateway.into() }
    }
}

/// The IPv6 side of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv6Part {
    /// The segment's prefix.
    pub subnet: Ipv6Net,
    /// The gateway's address, which answers DNS too; in the subnet.
    pub gateway: Ipv6Addr,
    /// Where sandboxes' addresses are taken from, in the subnet; `None` means all of it.
    pub range: Option<Ipv6Net>,
}

impl Ipv6Part {
    /// As [`Ipv4Part::new`].
    pub fn new(
        subnet: Ipv6Net,
        gateway: Option<Ipv6Addr>,
        range: Option<Ipv6Net>,
    ) -> Result<Ipv6Part, DefinitionError> {
        let pool = check_part(subnet.into(), gateway.map(IpAddr::from), range.map(IpNet::from))?;
        let IpAddr::V6(gateway) = pool.gateway else { unreachable!("the gateway is of its subnet's family") };
        Ok(Ipv6Part { subnet, gateway, range })
    }

    /// The addresses that sandboxes can have.
    pub fn pool(&self) -> Pool {
        let range = self.range.unwrap_or(self.subnet);
        Pool { subnet: self.subnet.into(), range: range.into(), gateway: self.gateway.into() }
    }
}

/// A network that sandboxes can join, complete: what was not asked for has been chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// Its name: one DNS label.
    pub name: String,
    /// 12 hexadecimal digits, random; another network of the same name has another.
    pub id: String,
    /// IPv4; at least one of both families is there.
    pub v4: Option<Ipv4Part>,
    /// IPv6.
    pub v6: Option<Ipv6Part>,
    /// IP MTU of the segment in bytes.
    pub mtu: u16,
    /// Its rules.
    pub sharing: Sharing,
    /// Resolvers instead of the host's; empty means the host's.
    pub dns: Vec<IpAddr>,
    /// Search domains instead of the host's.
    pub dns_search: Vec<String>,
    /// What the person wrote on it.
    pub labels: BTreeMap<String, String>,
    /// When it was made, in seconds since 1970 (UTC).
    pub created: u64,
}

/// One family of a network that is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted<T> {
    /// Without it.
    No,
    /// With a subnet that is free.
    Any,
    /// With this one.
    This(T),
}

/// A network that is to be made: what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// Its name.
    pub name: String,
    /// IPv4.
    pub v4: Wanted<Ipv4Part>,
    /// IPv6.
    pub v6: Wanted<Ipv6Part>,
    /// As in [`Definition`], like what follows.
    pub mtu: u16,
    /// Its rules.
    pub sharing: Sharing,
    /// Resolvers.
    pub dns: Vec<IpAddr>,
    /// Search domains.
    pub dns_search: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

impl Draft {
    /// A network of both families, of which nothing else was said.
    pub fn new(name: &str) -> Draft {
        Draft {
            name: name.to_owned(),
            v4: Wanted::Any,
            v6: Wanted::Any,
            mtu: DEFAULT_MTU,
            sharing: Sharing { internal: false, icc: true },
            dns: Vec::new(),
            dns_search: Vec::new(),
            labels: BTreeMap::new(),
        }
    }

    /// As [`Definition::check`].
    pub fn check(&self) -> Result<(), DefinitionError> {
        check_families(self.v4 != Wanted::No, self.v6 != Wanted::No, self.mtu)
    }
}

fn check_families(v4: bool, v6: bool, mtu: u16) -> Result<(), DefinitionError> {
    match (v4, v6) {
        (false, false) => Err(DefinitionError::NoFamily),
        (_, true) if mtu < 1280 => Err(DefinitionError::Mtu(mtu)),
        _ => Ok(()),
    }
}

impl Definition {
    /// What the parts alone do not say: there is one at least, and the MTU is large enough for them.
    pub fn check(&self) -> Result<(), DefinitionError> {
        check_families(self.v4.is_some(), self.v6.is_some(), self.mtu)
    }

    /// Its subnets, IPv4 first.
    pub fn subnets(&self) -> impl Iterator<Item = IpNet> {
        let v4 = self.v4.map(|part| IpNet::from(part.subnet));
        v4.into_iter().chain(self.v6.map(|part| IpNet::from(part.subnet)))
    }

    /// What a gateway must know of it.
    pub fn network(&self) -> Network {
        let v4 = self.v4.map(|part| Ipv4Layout {
            subnet: part.subnet,
            gateway: part.gateway,
            dns: part.gateway,
            sandbox: Ipv4Addr::UNSPECIFIED,
            dhcp_range: (Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED),
        });
        let v6 = self.v6.map(|part| Ipv6Layout {
            subnet: part.subnet,
            gateway: part.gateway,
            dns: part.gateway,
            sandbox: Ipv6Addr::UNSPECIFIED,
        });
        let gateway_mac = match (self.v4, self.v6) {
            (Some(v4), _) => MacAddr::from_ipv4(v4.gateway),
            (None, Some(v6)) => MacAddr::from_ipv6(v6.gateway),
            (None, None) => MacAddr::default(),
        };
        Network {
            name: self.name.clone(),
            sharing: Some(self.sharing),
            v4,
            v6,
            mtu: self.mtu,
            gateway_mac,
            host_loopback_allowed: false,
            metadata_allowed: false,
            broadcast_to_host: false,
            dns_enabled: true,
            dns_search: self.dns_search.clone(),
            dns_servers: Vec::new(),
            local_names: Vec::new(),
            outbound: Outbound::default(),
            udp_timeout: UDP_TIMEOUT,
            behaviour: Default::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(subnet: &str, gateway: Option<&str>, range: Option<&str>) -> Result<Ipv4Part, String> {
        let (gateway, range) = (gateway.map(|ip| ip.parse().unwrap()), range.map(|net| net.parse().unwrap()));
        Ipv4Part::new(subnet.parse().unwrap(), gateway, range).map_err(|error| error.to_string())
    }

    #[test]
    fn the_gateway_is_the_first_address_unless_another_is_given() {
        assert_eq!(v4("10.9.0.0/24", None, None).unwrap().gateway, Ipv4Addr::new(10, 9, 0, 1));
        assert_eq!(v4("10.9.0.0/24", Some("10.9.0.254"), None).unwrap().gateway, Ipv4Addr::new(10, 9, 0, 254));
        let v6 = Ipv6Part::new("fd00:9::/64".parse().unwrap(), None, None).unwrap();
        assert_eq!(v6.gateway.to_string(), "fd00:9::1");
    }

    #[test]
    fn a_gateway_that_cannot_be_is_refused_with_one_that_can() {
        for (bad, why) in [("10.8.0.1", "outside"), ("10.9.0.0", "own address"), ("10.9.0.255", "broadcast")] {
            let error = v4("10.9.0.0/24", Some(bad), None).unwrap_err();
            assert!(error.contains(bad) && error.contains(why) && error.ends_with("like 10.9.0.1"), "{error}");
        }
        let anycast = Ipv6Part::new("fd00:9::/64".parse().unwrap(), Some("fd00:9::".parse().unwrap()), None);
        assert!(anycast.unwrap_err().to_string().contains("anycast"));
    }

    #[test]
    fn a_range_is_a_part_of_the_subnet_and_has_room() {
        assert!(v4("10.9.0.0/24", None, Some("10.9.0.128/25")).is_ok());
        assert!(v4("10.9.0.0/24", None, Some("10.9.0.0/24")).is_ok());
        for bad in ["10.9.1.0/25", "10.9.0.0/23"] {
            assert!(v4("10.9.0.0/24", None, Some(bad)).unwrap_err().contains("not within the subnet"), "{bad}");
        }
        for empty in ["10.9.0.0/31", "10.9.0.255/32"] {
            assert!(v4("10.9.0.0/24", None, Some(empty)).unwrap_err().contains("no address for a sandbox"), "{empty}");
        }
    }

    #[test]
    fn names_that_mean_something_else_are_refused() {
        assert_eq!(parse_network_name("db-1").unwrap(), "db-1");
        for bad in ["none", "Host", "private", "container", "default", "a.b", "", "../x"] {
            let error = parse_network_name(bad).unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{bad}` ")), "{error}");
        }
    }
}
