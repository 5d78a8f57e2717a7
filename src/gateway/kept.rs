//! Client addresses that the segment's own subnet happens to contain.
//!
//! # Theory of operation
//!
//! A published port shows a sandbox its clients under their own addresses. One that lies outside the segment the
//! sandbox answers through its default route. One inside it (the host's network may use the same private range, and
//! link-local addresses are on every link) the sandbox asks for with ARP or neighbor discovery, and somebody has to
//! answer: the gateway, for as long as it holds a flow of that client, at that port and at no other. So addresses are
//! counted, flow by flow; each that keeps one gives it back once.
//!
//! A sandbox that looks whether such an address is free, because it wants it for itself, is not answered.
//!
//! A sandbox that has the host's own addresses finds the gateway at every address of its link, client or not, so there
//! nothing depends on what is kept.
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;

use super::Segment;
use super::link::PortId;
use crate::plan::Network;

/// Addresses on the link that the gateway answers for besides its own.
#[derive(Debug, Default)]
pub struct Kept {
    flows: HashMap<(PortId, IpAddr), u32>,
}

impl Kept {
    /// A flow in this client's name begins. Addresses that are not on the link need nothing.
    pub fn keep(&mut self, network: &Network, port: PortId, client: IpAddr) {
        if is_on_link(network, client) {
            *self.flows.entry((port, client)).or_default() += 1;
        }
    }

    /// A flow in this client's name has ended.
    pub fn forget(&mut self, port: PortId, client: IpAddr) {
        if let Entry::Occupied(mut entry) = self.flows.entry((port, client)) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }

    /// The port has gone, and with it all flows.
    pub fn remove_port(&mut self, port: PortId) {
        self.flows.retain(|key, _| key.0 != port);
    }

    /// Does the gateway stand for this address at this port?
    pub fn contains(&self, port: PortId, address: IpAddr) -> bool {
        self.flows.contains_key(&(port, address))
    }

    /// How many addresses are kept.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.flows.len()
    }
}

/// Would a sandbox look for this address on its link, and is it not the gateway's anyway?
fn is_on_link(network: &Network, address: IpAddr) -> bool {
    let on_link = match address {
        IpAddr::V4(ip) => network.v4.is_some_and(|l| l.subnet.contains(&ip)),
        IpAddr::V6(ip) => network.v6.is_some_and(|l| ip.is_unicast_link_local() || l.subnet.contains(&ip)),
    };
    on_link && !network.is_gateway(address) && !network.is_dns(address)
}

/// Can this be the address of one host that is not the one who looks at it?
pub(super) fn is_somebodys(network: &Network, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => {
            let is_edge = network.v4.is_some_and(|l| l.is_edge(ip));
            !(ip.octets()[0] == 0 || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast() || is_edge)
        }
        // The first 80 bits are 0 in ::, ::1 and the forms that contain IPv4 addresses.
        IpAddr::V6(ip) => !(ip.segments()[..5] == [0; 5] || ip.is_multicast()),
    }
}

/// Has the sandbox itself this address?
pub(super) fn is_sandboxes(segment: &Segment, address: IpAddr) -> bool {
    let mapping = segment.network.behaviour.mapping.as_ref();
    segment.has(address).is_some() || mapping.is_some_and(|mapping| mapping.further.contains(&address))
}

/// Is it, for all that is known, an address that both the host and the sandbox have? The planned one is, also where the
/// sandbox has shown another.
fn is_copy(segment: &Segment, address: IpAddr) -> bool {
    let network = &segment.network;
    let planned = match address {
        IpAddr::V4(ip) => network.v4.is_some_and(|l| l.sandbox == ip),
        IpAddr::V6(ip) => network.v6.is_some_and(|l| l.sandbox == ip),
    };
    is_sandboxes(segment, address) || (planned && network.behaviour.mapping.is_some())
}

/// Can a sandbox answer somebody under this address, and nobody else? From an internal network no route leads to anybody
/// but the gateway.
///
/// One that has the host's own addresses can answer under any that is not its own: the gateway carries what goes there.
pub(super) fn can_be_a_client(segment: &Segment, address: IpAddr) -> bool {
    let network = &segment.network;
    if network.sharing.is_some_and(|sharing| sharing.internal) {
        return false;
    }
    let is_dns = network.behaviour.mapping.is_none() && network.is_dns(address);
    let taken = network.is_gateway(address) || is_dns || is_copy(segment, address);
    is_somebodys(network, address) && !taken
}

/// Who stands, in this family, for somebody outside who cannot be shown under the own address: the gateway. To a
/// sandbox that has the host's own addresses it is the one that leads to who that is, where there is one.
pub(super) fn stand_in(segment: &Segment, outside: IpAddr, v4: bool) -> Option<IpAddr> {
    let network = &segment.network;
    let Some(mapping) = &network.behaviour.mapping else {
        return if v4 { network.v4.map(|l| l.gateway.into()) } else { network.v6.map(|l| l.gateway.into()) };
    };
    let is_copy = is_copy(segment, outside);
    if v4 {
        let gateway = network.v4?.gateway;
        Some(mapping.guest_v4.filter(|_| is_copy).or(mapping.host_loopback_v4).unwrap_or(gateway).into())
    } else {
        network.v6?;
        let gateway = network.gateway_link_local();
        Some(mapping.guest_v6.filter(|_| is_copy).or(mapping.host_loopback_v6).unwrap_or(gateway).into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::emit::testing::network;
    use super::*;

    #[test]
    fn an_address_is_kept_until_the_last_flow_has_ended_and_at_its_port_only() {
        let (network, mut kept) = (network(1500), Kept::default());
        for client in ["10.0.2.50", "fd00::50", "fe80::50"] {
            let client: IpAddr = client.parse().unwrap();
            kept.keep(&network, PortId(1), client);
            kept.keep(&network, PortId(1), client);
            kept.forget(PortId(1), client);
            assert!(kept.contains(PortId(1), client) && !kept.contains(PortId(2), client));
            kept.forget(PortId(2), client);
            kept.forget(PortId(1), client);
            assert!(!kept.contains(PortId(1), client));
            kept.forget(PortId(1), client);
        }
        assert_eq!(kept.count(), 0);
    }

    #[test]
    fn addresses_elsewhere_and_the_gateways_own_are_not_counted() {
        let (network, mut kept) = (network(1500), Kept::default());
        for client in ["192.0.2.1", "2001:db8::1", "10.0.2.2", "10.0.2.3", "fd00::2"] {
            kept.keep(&network, PortId(1), client.parse().unwrap());
        }
        assert_eq!(kept.count(), 0);
    }

    #[test]
    fn a_port_that_goes_takes_its_addresses_along() {
        let (network, mut kept) = (network(1500), Kept::default());
        kept.keep(&network, PortId(1), "10.0.2.50".parse().unwrap());
        kept.keep(&network, PortId(2), "10.0.2.50".parse().unwrap());
        kept.remove_port(PortId(1));
        assert_eq!(kept.count(), 1);
    }
}
