//! A shared network as a person defined it.
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::{Ipv4Layout, Ipv6Layout, MacAddr, Network, Outbound, Sharing};

/// The network of every sandbox that asks for no other; made on first use, cannot be removed.
pub const BRIDGE: &str = "bridge";

/// Idle UDP flows of a shared network live so long (RFC 4787 REQ-5 recommends five minutes).
const UDP_TIMEOUT: Duration = Duration::from_secs(300);

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

impl Definition {
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
        }
    }
}
