//! Can there be such a network?
//!
//! A supervisor is trusted, so this is not about harm: what makes no sense is told here, where it has an answer, instead
//! of doing something odd later.
use std::net::IpAddr;
use std::time::Duration;

use crate::plan::{Endpoint, Mapping, Network};

/// Longest time that a flow may be idle.
const MOST_IDLE: Duration = Duration::from_secs(30 * 86_400);
/// Longest name that is announced (RFC 1035, 3.1).
const LONGEST_NAME: usize = 255;
/// From RFC 791 to the largest that a TAP takes with an Ethernet header (linux/drivers/net/tun.c).
const MTU: std::ops::RangeInclusive<u16> = 68..=65521;

/// Can this network be served, with this endpoint on it? `Err` is why not, for the person.
pub fn check_network(network: &Network, endpoint: &Endpoint) -> Result<(), String> {
    let Network { behaviour, mtu, udp_timeout, .. } = network;
    if !MTU.contains(mtu) {
        return Err(format!("an MTU of {mtu} bytes; {} to {} are possible", MTU.start(), MTU.end()));
    }
    if udp_timeout.is_zero() || *udp_timeout > MOST_IDLE {
        return Err(format!("idle flows would end after {} seconds", udp_timeout.as_secs()));
    }
    if network.sharing.is_some() && !behaviour.is_usual() {
        return Err("several sandboxes are on it, and it behaves as only one for a single sandbox may".to_owned());
    }
    let names = [&behaviour.announcements.hostname, &behaviour.announcements.fqdn];
    if let Some(name) = names.into_iter().flatten().find(|name| !(1..=LONGEST_NAME).contains(&name.len())) {
        return Err(format!("a name of {} bytes is announced; 1 to {LONGEST_NAME} are possible", name.len()));
    }
    if let Some(layout) = network.v4 {
        check_somebody("the gateway's address", layout.gateway.into())?;
        if layout.dhcp_range.0 > layout.dhcp_range.1 {
            return Err(format!("DHCP gives addresses from {} to {}", layout.dhcp_range.0, layout.dhcp_range.1));
        }
    }
    if let Some(layout) = network.v6 {
        check_somebody("the gateway's address", layout.gateway.into())?;
    }
    match &behaviour.mapping {
        Some(mapping) => check_mapping(network, endpoint, mapping),
        None => Ok(()),
    }
}

fn check_mapping(network: &Network, endpoint: &Endpoint, mapping: &Mapping) -> Result<(), String> {
    let Network { behaviour, broadcast_to_host, host_loopback_allowed, .. } = network;
    if behaviour.host_denied || *broadcast_to_host || *host_loopback_allowed {
        return Err("the gateway's address is to be the host's, where addresses are mapped".to_owned());
    }
    let own = [network.v4.map(|l| IpAddr::V4(l.sandbox)), network.v6.map(|l| IpAddr::V6(l.sandbox))];
    let given = [endpoint.v4.map(IpAddr::V4), endpoint.v6.map(IpAddr::V6)];
    for (own, given) in own.into_iter().zip(given) {
        if let (Some(own), Some(given)) = (own, given)
            && own != given
        {
            return Err(format!("the sandbox has {given}, and the network has {own} for it"));
        }
    }
    let loopback = [mapping.host_loopback_v4.map(IpAddr::V4), mapping.host_loopback_v6.map(IpAddr::V6)];
    let guest = [mapping.guest_v4.map(IpAddr::V4), mapping.guest_v6.map(IpAddr::V6)];
    for ip in loopback.into_iter().chain(guest).flatten() {
        check_somebody("an address that is mapped to the host", ip)?;
    }
    match mapping.dns_over_tls {
        Some(resolver) if resolver.port() == 0 || resolver.ip().is_unspecified() => {
            Err(format!("the resolver over TLS is {resolver}"))
        }
        _ => Ok(()),
    }
}

/// An address that one host can have, and be reached by.
fn check_somebody(what: &str, ip: IpAddr) -> Result<(), String> {
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || broadcast {
        return Err(format!("{what} is {ip}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::emit::testing::{endpoint, network};
    use crate::plan::{Behaviour, Sharing};

    fn refusal(change: impl FnOnce(&mut Network)) -> String {
        let mut network = network(1500);
        change(&mut network);
        check_network(&network, &endpoint()).expect_err("it was taken")
    }

    fn mapped(mapping: Mapping) -> Behaviour {
        Behaviour { mapping: Some(mapping), ..Behaviour::default() }
    }

    #[test]
    fn networks_as_they_are_made_can_be() {
        for mtu in [68, 1500, 65521] {
            assert_eq!(check_network(&network(mtu), &endpoint()), Ok(()));
        }
        assert_eq!(check_network(&Network { v4: None, v6: None, ..network(1500) }, &endpoint()), Ok(()));
        let full = Mapping {
            host_loopback_v4: "10.0.2.2".parse().ok(),
            guest_v4: "10.0.2.9".parse().ok(),
            host_loopback_v6: "fe80::1".parse().ok(),
            dns_over_tls: "192.0.2.53:853".parse().ok(),
            ..Mapping::default()
        };
        let network = Network { behaviour: mapped(full), ..network(1500) };
        assert_eq!(check_network(&network, &endpoint()), Ok(()));
    }

    #[test]
    fn nonsense_is_refused_in_a_sentence() {
        for mtu in [0, 67, 65522] {
            assert!(refusal(|network| network.mtu = mtu).contains("68 to 65521"));
        }
        assert!(refusal(|network| network.udp_timeout = Duration::ZERO).contains("after 0 seconds"));
        assert!(refusal(|network| network.udp_timeout = Duration::MAX).contains("seconds"));
        let shared = |network: &mut Network| {
            network.sharing = Some(Sharing { internal: false, icc: true });
            network.behaviour.host_denied = true;
        };
        assert!(refusal(shared).contains("single sandbox"));
        assert!(refusal(|n| n.behaviour.announcements.fqdn = Some("x".repeat(256))).contains("256 bytes"));
        assert!(refusal(|n| n.behaviour.announcements.hostname = Some(String::new())).contains("0 bytes"));
        assert!(refusal(|n| n.v4.as_mut().unwrap().gateway = [0; 4].into()).contains("0.0.0.0"));
        assert!(refusal(|n| n.v6.as_mut().unwrap().gateway = "ff02::1".parse().unwrap()).contains("ff02::1"));
        let range = |n: &mut Network| n.v4.as_mut().unwrap().dhcp_range = ([10, 0, 2, 9].into(), [10, 0, 2, 8].into());
        assert!(refusal(range).contains("from 10.0.2.9 to 10.0.2.8"));
    }

    #[test]
    fn mappings_that_contradict_themselves_are_refused() {
        let with = |mapping: Mapping| refusal(|network| network.behaviour = mapped(mapping));
        let loopback = Some([127, 0, 0, 1].into());
        assert!(with(Mapping { host_loopback_v4: loopback, ..Mapping::default() }).contains("127.0.0.1"));
        assert!(with(Mapping { guest_v6: "::".parse().ok(), ..Mapping::default() }).contains("is ::"));
        assert!(with(Mapping { dns_over_tls: "0.0.0.0:853".parse().ok(), ..Mapping::default() }).contains("over TLS"));
        let denied = |network: &mut Network| {
            network.behaviour = Behaviour { host_denied: true, ..mapped(Mapping::default()) };
        };
        assert!(refusal(denied).contains("mapped"));
        let moved = |network: &mut Network| {
            network.behaviour = mapped(Mapping::default());
            network.v4.as_mut().unwrap().sandbox = [10, 0, 2, 7].into();
        };
        assert!(refusal(moved).contains("has 10.0.2.100"));
    }
}
