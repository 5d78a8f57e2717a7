//! Neighbor discovery and router advertisements (RFC 4861, RFC 4862, RFC 8106).
//!
//! # Theory of operation
//!
//! The gateway has three IPv6 addresses: its own, that of DNS, and a link-local one derived from its MAC, which
//! router advertisements come from. As with ARP it answers for these and for clients that it stands for
//! ([`kept`](super::kept)), for nobody else, and learns nothing.
//!
//! From sandboxes come, each with hop limit 255, a right checksum and well-formed options, or they are dropped:
//!
//! | message | answer |
//! | --- | --- |
//! | neighbor solicitation for one of ours | advertisement (router, override), solicited when the asker has an address, to all nodes when it has none: a duplicate address detection, which thus fails |
//! | neighbor solicitation for a client the gateway stands for | advertisement (override, solicited); none to duplicate address detection |
//! | neighbor solicitation for others | none |
//! | neighbor advertisement | none; one that claims an address of ours is spoofed |
//! | router solicitation | router advertisement, to the asker or to all nodes |
//! | router advertisement, redirect | none; spoofed: the gateway is the only router of its segment |
//!
//! Where the sandbox has the host's own addresses ([`Behaviour::mapping`](crate::plan::Behaviour)) the gateway is found
//! at every address but the sandbox's, and answers no duplicate address detection.
//!
//! A router advertisement says: the prefix is on-link and, when it is a /64 that one sandbox has for itself, good for
//! autonomous addresses (RFC 4862, 5.5.3 d; on a shared network a sandbox has the address that was given to it, and
//! could not speak from another); whether there is DHCPv6 (M); the MTU; the resolvers and search domains; the gateway's MAC; and that the
//! gateway is a default router, unless the network is internal (RFC 4861, 6.2.3: lifetime 0). It answers solicitations
//! at once, not after the random delay of RFC 4861, 6.2.6: that is for links with several routers or hosts that were
//! all switched on together, and here each port is a wire of its own.
//!
//! [`Advertiser`] keeps the time of unsolicited ones, for each port by itself: at once when an endpoint joins, twice
//! more 16 s apart, then at random between 200 and 600 s (RFC 4861, 6.2.1 and 6.2.4).
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use smoltcp::wire::IpProtocol;

use super::{
    Segment, cost,
    counters::DropReason,
    dhcp,
    emit::{self, Ip},
    kept::{is_sandboxes, is_somebodys},
    link::{Link, Peer, PortId},
    packet::{self, Packet},
};
use crate::plan::{Ipv6Layout, MacAddr, Network};

pub(crate) const ROUTER_SOLICITATION: u8 = 133;
pub(crate) const ROUTER_ADVERTISEMENT: u8 = 134;
pub(crate) const NEIGHBOR_SOLICITATION: u8 = 135;
pub(crate) const NEIGHBOR_ADVERTISEMENT: u8 = 136;
pub(crate) const REDIRECT: u8 = 137;
/// Multicast listener discovery: query, report, done (RFC 2710), report of version 2 (RFC 3810).
pub(crate) const MLD: [u8; 4] = [130, 131, 132, 143];

const OPTION_SOURCE_ADDRESS: u8 = 1;
const OPTION_TARGET_ADDRESS: u8 = 2;
const OPTION_PREFIX: u8 = 3;
const OPTION_MTU: u8 = 5;
/// RFC 8106, 5.1.
const OPTION_RDNSS: u8 = 25;
/// RFC 8106, 5.2.
const OPTION_DNSSL: u8 = 31;

const FLAG_ROUTER: u8 = 0x80;
const FLAG_SOLICITED: u8 = 0x40;
const FLAG_OVERRIDE: u8 = 0x20;
/// M: addresses come by DHCPv6, and so does the rest (RFC 4861, 4.2).
const MANAGED: u8 = 0x80;
const PREFIX_ON_LINK: u8 = 0x80;
const PREFIX_AUTONOMOUS: u8 = 0x40;

/// What every message of neighbor discovery is sent with: proof that no router carried it.
const HOP_LIMIT: u8 = 255;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// RFC 2464, 7.
const ALL_NODES_MAC: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 1]);

/// RFC 4861, 6.2.1: MaxRtrAdvInterval, MinRtrAdvInterval, and what the first ones are apart at most (10).
const MAX_INTERVAL: Duration = Duration::from_secs(600);
const MIN_INTERVAL: Duration = Duration::from_secs(200);
const INITIAL_INTERVAL: Duration = Duration::from_secs(16);
/// MAX_INITIAL_RTR_ADVERTISEMENTS.
const INITIAL_ADVERTISEMENTS: u8 = 3;
/// AdvDefaultLifetime and the lifetime of resolvers (RFC 8106, 5.1): three times the longest interval, in seconds.
const ROUTER_LIFETIME: u16 = 1800;
/// Lifetimes of the prefix, in seconds; each advertisement renews them.
const PREFIX_VALID: u32 = 86_400;
const PREFIX_PREFERRED: u32 = 14_400;
/// Most bytes of search domains, so that an advertisement fits 1280 bytes; at most 16 resolvers take 264.
const MAX_SEARCH: usize = 800;

/// A sandbox sent an ICMPv6 message of neighbor discovery, or any from the unspecified address.
pub fn handle(segment: &mut Segment, packet: &Packet<'_>, link: &mut impl Link) -> Result<(), DropReason> {
    let layout = segment.network.v6.ok_or(DropReason::Family)?;
    let src = packet::v6(packet.src).ok_or(DropReason::Family)?;
    let message = packet.payload();
    let (header, body) = message.split_first_chunk::<8>().ok_or(DropReason::Malformed)?;
    if packet.checksum_to_verify() && !emit::checksum_holds(packet.src, packet.dst, IpProtocol::Icmpv6, message) {
        return Err(DropReason::Checksum);
    }
    segment.extra += cost::IN_VAIN;
    let services = segment.network.behaviour.services;
    match header[0] {
        kind if MLD.contains(&kind) => return Err(DropReason::Multicast),
        ROUTER_SOLICITATION..=REDIRECT if !services.ndp => return Err(DropReason::Disabled),
        ROUTER_SOLICITATION if !services.router_advertisements => return Err(DropReason::Disabled),
        ROUTER_SOLICITATION..=REDIRECT => {}
        // Everything else needs a source to answer.
        _ => return Err(DropReason::Spoofed),
    }
    // RFC 4861, 6.1 and 7.1.
    if packet.hop_limit != HOP_LIMIT || header[1] != 0 {
        return Err(DropReason::Malformed);
    }
    match header[0] {
        ROUTER_SOLICITATION => {
            check_options(body, src)?;
            let (to, mac) = if src.is_unspecified() { (ALL_NODES, ALL_NODES_MAC) } else { (src, packet.peer.mac) };
            advertise_router(segment, &layout, Peer { port: packet.peer.port, mac }, to, link);
            Ok(())
        }
        NEIGHBOR_SOLICITATION => {
            let (target, options) = body.split_first_chunk::<16>().ok_or(DropReason::Malformed)?;
            let target = Ipv6Addr::from(*target);
            check_options(options, src)?;
            if target.is_multicast() {
                return Err(DropReason::Malformed);
            }
            // RFC 4861, 7.1.1: duplicate address detection is always multicast.
            if src.is_unspecified() && packet.dst != IpAddr::V6(solicited_node(target)) {
                return Err(DropReason::Malformed);
            }
            segment.notice(packet.peer.port, if src.is_unspecified() { target } else { src });
            segment.notice_station(packet.peer, src.into());
            let role = role_for(segment, packet.peer, src, target).ok_or(DropReason::NotForUs)?;
            advertise_neighbor(segment, packet.peer, src, target, role, link);
            Ok(())
        }
        NEIGHBOR_ADVERTISEMENT => {
            let (target, _) = body.split_first_chunk::<16>().ok_or(DropReason::Malformed)?;
            if is_ours(segment, Ipv6Addr::from(*target)) { Err(DropReason::Spoofed) } else { Ok(()) }
        }
        ROUTER_ADVERTISEMENT | REDIRECT => Err(DropReason::Spoofed),
        _ => Err(DropReason::Protocol),
    }
}

/// What the gateway is at this address, FLAG_ROUTER or nothing, if it answers for it.
fn role_for(segment: &Segment, peer: Peer, asker: Ipv6Addr, target: Ipv6Addr) -> Option<u8> {
    if segment.network.behaviour.mapping.is_some() {
        let is_router = segment.network.is_gateway(target.into()) || segment.network.v6?.gateway == target;
        let answers = !asker.is_unspecified()
            && is_somebodys(&segment.network, target.into())
            && !is_sandboxes(segment, target.into());
        return answers.then_some(if is_router { FLAG_ROUTER } else { 0 });
    }
    if is_ours(segment, target) {
        return Some(FLAG_ROUTER);
    }
    (!asker.is_unspecified() && segment.kept.contains(peer.port, target.into())).then_some(0)
}

/// Is it an address that nobody else may claim? One who has the host's own addresses may claim any.
fn is_ours(segment: &Segment, address: Ipv6Addr) -> bool {
    let (network, address) = (&segment.network, address.into());
    network.is_gateway(address) || (network.is_dns(address) && network.behaviour.mapping.is_none())
}

/// RFC 4861, 4.6: each option has a length, which is not 0; and who has no address names no link-layer address.
fn check_options(mut options: &[u8], src: Ipv6Addr) -> Result<(), DropReason> {
    while let &[kind, units, ..] = options {
        if kind == OPTION_SOURCE_ADDRESS && src.is_unspecified() {
            return Err(DropReason::Malformed);
        }
        let length = usize::from(units) * 8;
        options = options.get(length..).filter(|_| length > 0).ok_or(DropReason::Malformed)?;
    }
    if options.is_empty() { Ok(()) } else { Err(DropReason::Malformed) }
}

/// RFC 4291, 2.7.1.
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., high, low] = address.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | (high & 0xff), low)
}

/// `role` is FLAG_ROUTER or nothing.
fn advertise_neighbor(
    segment: &mut Segment,
    peer: Peer,
    asker: Ipv6Addr,
    target: Ipv6Addr,
    role: u8,
    link: &mut impl Link,
) {
    let (to, mac, solicited) =
        if asker.is_unspecified() { (ALL_NODES, ALL_NODES_MAC, 0) } else { (asker, peer.mac, FLAG_SOLICITED) };
    let mut body = [0u8; 24];
    body[..16].copy_from_slice(&target.octets());
    body[16..18].copy_from_slice(&[OPTION_TARGET_ADDRESS, 1]);
    body[18..].copy_from_slice(&segment.network.gateway_mac.0);
    let header = [NEIGHBOR_ADVERTISEMENT, 0, 0, 0, role | FLAG_OVERRIDE | solicited, 0, 0, 0];
    send(segment, Peer { port: peer.port, mac }, target, to, header, &body, link);
}

fn advertise_router(segment: &mut Segment, layout: &Ipv6Layout, peer: Peer, to: Ipv6Addr, link: &mut impl Link) {
    let internal = segment.network.sharing.is_some_and(|sharing| sharing.internal);
    let [lifetime_high, lifetime_low] = if internal { [0, 0] } else { ROUTER_LIFETIME.to_be_bytes() };
    let flags = if segment.network.behaviour.services.dhcpv6 { MANAGED } else { 0 };
    let header = [ROUTER_ADVERTISEMENT, 0, 0, 0, emit::HOP_LIMIT, flags, lifetime_high, lifetime_low];
    let body = router_options(&segment.network, layout);
    let from = segment.network.gateway_link_local();
    send(segment, peer, from, to, header, &body, link);
}

/// What stands behind the first eight bytes of a router advertisement (RFC 4861, 4.2).
fn router_options(network: &Network, layout: &Ipv6Layout) -> Vec<u8> {
    let mut body = vec![0; 8]; // reachable time and retransmission timer: the host's own choice
    body.extend_from_slice(&[OPTION_SOURCE_ADDRESS, 1]);
    body.extend_from_slice(&network.gateway_mac.0);

    if network.behaviour.announcements.mtu {
        body.extend_from_slice(&[OPTION_MTU, 1, 0, 0]);
        body.extend_from_slice(&u32::from(network.mtu).to_be_bytes());
    }

    let length = layout.subnet.prefix_len();
    let autonomous = if length == 64 && network.sharing.is_none() { PREFIX_AUTONOMOUS } else { 0 };
    body.extend_from_slice(&[OPTION_PREFIX, 4, length, PREFIX_ON_LINK | autonomous]);
    body.extend_from_slice(&PREFIX_VALID.to_be_bytes());
    body.extend_from_slice(&PREFIX_PREFERRED.to_be_bytes());
    body.extend_from_slice(&[0; 4]);
    body.extend_from_slice(&layout.subnet.network().octets());

    let lifetime = u32::from(ROUTER_LIFETIME).to_be_bytes();
    let resolvers = resolvers(network, layout);
    if !resolvers.is_empty() {
        let units = 1 + 2 * resolvers.len() as u8; // at most 16
        body.extend_from_slice(&[OPTION_RDNSS, units, 0, 0]);
        body.extend_from_slice(&lifetime);
        resolvers.iter().for_each(|ip| body.extend_from_slice(&ip.octets()));
    }
    let mut search = dhcp::encode_domains(network.announced_search(), MAX_SEARCH);
    if !search.is_empty() {
        search.resize(search.len().next_multiple_of(8), 0);
        let units = 1 + (search.len() / 8) as u8; // at most 101
        body.extend_from_slice(&[OPTION_DNSSL, units, 0, 0]);
        body.extend_from_slice(&lifetime);
        body.extend_from_slice(&search);
    }
    body
}

/// The IPv6 resolvers that are announced.
pub(super) fn resolvers(network: &Network, layout: &Ipv6Layout) -> Vec<Ipv6Addr> {
    network.announced_resolvers(layout.dns.into()).into_iter().filter_map(packet::v6).take(16).collect()
}

fn send(
    segment: &mut Segment,
    peer: Peer,
    from: Ipv6Addr,
    to: Ipv6Addr,
    header: [u8; 8],
    body: &[u8],
    link: &mut impl Link,
) {
    let ip = Ip { src: from.into(), dst: to.into(), protocol: IpProtocol::Icmpv6, tos: 0, hop_limit: HOP_LIMIT };
    emit::icmp(segment, peer, &ip, header, body, link);
}

/// When which port is due for an unsolicited router advertisement.
#[derive(Debug)]
pub struct Advertiser {
    ports: Vec<Due>,
    /// The earliest of them.
    next: Option<Instant>,
    /// The last time that was heard of: ports that join are due then.
    now: Instant,
    random: RandomState,
    /// How many random intervals were drawn.
    drawn: u64,
}

#[derive(Debug)]
struct Due {
    port: PortId,
    at: Instant,
    /// Initial ones that were sent.
    sent: u8,
}

impl Advertiser {
    /// Nobody to tell yet.
    pub fn new(now: Instant) -> Advertiser {
        Advertiser { ports: Vec::new(), next: None, now, random: RandomState::new(), drawn: 0 }
    }

    /// An endpoint joined: its first advertisement is due.
    pub fn add_port(&mut self, port: PortId) {
        self.remove_port(port);
        self.ports.push(Due { port, at: self.now, sent: 0 });
        self.next = Some(self.now);
    }

    /// The endpoint has gone.
    pub fn remove_port(&mut self, port: PortId) {
        self.ports.retain(|due| due.port != port);
        self.next = self.ports.iter().map(|due| due.at).min();
    }

    /// When the next is due.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.next
    }

    /// Send what is due.
    pub fn handle_timeout(&mut self, now: Instant, segment: &mut Segment, link: &mut impl Link) {
        self.now = now;
        let (Some(layout), true) = (segment.network.v6, self.next.is_some_and(|next| next <= now)) else { return };
        for due in self.ports.iter_mut().filter(|due| due.at <= now) {
            let all = Peer { port: due.port, mac: ALL_NODES_MAC };
            advertise_router(segment, &layout, all, ALL_NODES, link);
            due.sent = due.sent.saturating_add(1);
            due.at = now
                + if due.sent < INITIAL_ADVERTISEMENTS {
                    INITIAL_INTERVAL
                } else {
                    self.drawn += 1;
                    let span = (MAX_INTERVAL - MIN_INTERVAL).as_millis() as u64; // 400,000
                    MIN_INTERVAL + Duration::from_millis(self.random.hash_one(self.drawn) % span)
                };
        }
        self.next = self.ports.iter().map(|due| due.at).min();
    }
}

#[cfg(test)]
mod tests {
    use etherparse::icmpv6::{NdpOptionType, RouterAdvertisementPayloadSlice};
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    use smoltcp::wire::{Icmpv6Message, Icmpv6Packet, NdiscNeighborFlags, NdiscPrefixInfoFlags, NdiscRepr};

    use super::super::emit::testing::*;
    use super::*;
    use crate::gateway::link::Offload;
    use crate::gateway::packet::Parsed;

    const NOBODY: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

    fn message(src: Ipv6Addr, dst: Ipv6Addr, hop_limit: u8, kind: u8, rest: &[u8]) -> Vec<u8> {
        let mut icmp = vec![kind, 0, 0, 0];
        icmp.extend_from_slice(rest);
        let pseudo = emit::pseudo_header_sum(src.into(), dst.into(), IpProtocol::Icmpv6, icmp.len() as u32);
        let sum = !emit::fold(pseudo + u64::from(emit::sum_of(&icmp)));
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        ip_packet(src.into(), dst.into(), 58, hop_limit, &icmp)
    }

    fn solicitation(src: Ipv6Addr, dst: Ipv6Addr, target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
        message(src, dst, 255, NEIGHBOR_SOLICITATION, &[&[0; 4], &target.octets()[..], options].concat())
    }

    fn feed(segment: &mut Segment, packet: &[u8]) -> (Result<(), DropReason>, Recorder) {
        let mut link = Recorder::default();
        let Ok(Parsed::Whole(packet)) = packet::parse_ipv6(PEER, Offload::default(), packet) else { panic!() };
        (handle(segment, &packet, &mut link), link)
    }

    /// What was sent: Ethernet destination, source, destination, and the message; hop limit and checksum are
    /// verified.
    fn parse(frame: &[u8]) -> (MacAddr, Ipv6Addr, Ipv6Addr, Vec<u8>) {
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) = (packet.net, packet.transport) else {
            panic!()
        };
        let header = ip.header();
        assert_eq!(header.hop_limit(), 255);
        assert!(icmp.is_checksum_valid(header.source(), header.destination()));
        let mac = MacAddr(frame[..6].try_into().unwrap());
        (mac, header.source_addr(), header.destination_addr(), icmp.slice().to_vec())
    }

    #[test]
    fn solicitations_for_the_gateways_addresses_are_answered_however_they_come() {
        let local = network(1500).gateway_link_local();
        let option = [1, 1, 0x02, 0x42, 10, 0, 2, 100];
        for target in [GATEWAY_V6, DNS_V6, local] {
            for (src, dst) in [(SANDBOX_V6, solicited_node(target)), (SANDBOX_MAC.link_local(), target)] {
                for options in [&option[..], &[]] {
                    let (result, link) = feed(&mut segment(1500), &solicitation(src, dst, target, options));
                    assert_eq!(result, Ok(()));
                    let (mac, from, to, icmp) = parse(link.one());
                    assert_eq!((mac, from, to), (SANDBOX_MAC, target, src));
                    let view = Icmpv6Packet::new_checked(&icmp[..]).unwrap();
                    let Ok(NdiscRepr::NeighborAdvert { flags, target_addr, lladdr }) = NdiscRepr::parse(&view) else {
                        panic!()
                    };
                    assert_eq!(flags, NdiscNeighborFlags::all());
                    assert_eq!(target_addr, target);
                    assert_eq!(lladdr.unwrap().as_bytes(), network(1500).gateway_mac.0);
                }
            }
        }
    }

    #[test]
    fn duplicate_address_detection_of_the_gateways_address_fails() {
        let packet = solicitation(NOBODY, solicited_node(GATEWAY_V6), GATEWAY_V6, &[]);
        let (result, link) = feed(&mut segment(1500), &packet);
        assert_eq!(result, Ok(()));
        let (mac, from, to, icmp) = parse(link.one());
        assert_eq!((mac, from, to), (ALL_NODES_MAC, GATEWAY_V6, ALL_NODES));
        assert_eq!(icmp[4], FLAG_ROUTER | FLAG_OVERRIDE);
    }

    #[test]
    fn nobody_else_is_answered_for() {
        for target in [SANDBOX_V6, "fd00::4".parse().unwrap(), "2001:db8::1".parse().unwrap()] {
            let (result, link) = feed(&mut segment(1500), &solicitation(NOBODY, solicited_node(target), target, &[]));
            assert_eq!((result, link.frames.len()), (Err(DropReason::NotForUs), 0));
        }
    }

    #[test]
    fn a_router_solicitation_is_answered_with_all_that_a_host_needs() {
        for (src, mac, to) in
            [(SANDBOX_MAC.link_local(), SANDBOX_MAC, SANDBOX_MAC.link_local()), (NOBODY, ALL_NODES_MAC, ALL_NODES)]
        {
            let routers = "ff02::2".parse().unwrap();
            let (result, link) = feed(&mut segment(1400), &message(src, routers, 255, ROUTER_SOLICITATION, &[0; 4]));
            assert_eq!(result, Ok(()));
            let (sent_mac, from, sent_to, icmp) = parse(link.one());
            assert_eq!((sent_mac, from, sent_to), (mac, network(1500).gateway_link_local(), to));
            let view = Icmpv6Packet::new_checked(&icmp[..]).unwrap();
            assert_eq!(view.msg_type(), Icmpv6Message::RouterAdvert);
            let Ok(NdiscRepr::RouterAdvert { hop_limit, flags, router_lifetime, lladdr, mtu, prefix_info, .. }) =
                NdiscRepr::parse(&view)
            else {
                panic!()
            };
            assert_eq!((hop_limit, flags.bits(), router_lifetime.secs()), (64, 0, 1800));
            assert_eq!(lladdr.unwrap().as_bytes(), network(1500).gateway_mac.0);
            assert_eq!(mtu, Some(1400));
            let prefix = prefix_info.unwrap();
            assert_eq!((prefix.prefix_len, prefix.prefix), (64, "fd00::".parse().unwrap()));
            assert_eq!(prefix.flags, NdiscPrefixInfoFlags::ON_LINK | NdiscPrefixInfoFlags::ADDRCONF);
            assert!(prefix.preferred_lifetime <= prefix.valid_lifetime);
        }
    }

    /// The options of an advertisement as a second parser sees them.
    fn options(network: &Network) -> Vec<(u8, Vec<u8>)> {
        let body = router_options(network, &network.v6.unwrap());
        let payload = RouterAdvertisementPayloadSlice::from_slice(&body).unwrap();
        payload
            .options_iterator()
            .map(|option| {
                let option = option.unwrap();
                let NdpOptionType(kind) = option.option_type();
                (kind, option.as_bytes()[2..].to_vec())
            })
            .collect()
    }

    #[test]
    fn resolvers_and_search_domains_are_announced() {
        let mut network = network(1500);
        let found = options(&network);
        let of = |kind: u8, found: &[(u8, Vec<u8>)]| found.iter().find(|(k, _)| *k == kind).map(|(_, d)| d.clone());
        let rdnss = of(OPTION_RDNSS, &found).unwrap();
        assert_eq!((&rdnss[2..6], &rdnss[6..]), (&1800u32.to_be_bytes()[..], &DNS_V6.octets()[..]));
        let dnssl = of(OPTION_DNSSL, &found).unwrap();
        assert!(dnssl[6..].starts_with(b"\x07example\x03org\0\x04corp\x07example\x03org\0"));
        assert_eq!(found.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [1, 5, 3, 25, 31]);

        network.dns_servers = vec!["9.9.9.9".parse().unwrap(), "2620:fe::9".parse().unwrap()];
        let given: Ipv6Addr = "2620:fe::9".parse().unwrap();
        assert_eq!(of(OPTION_RDNSS, &options(&network)).unwrap()[6..], given.octets());

        network.dns_servers.clear();
        network.dns_enabled = false;
        network.dns_search.clear();
        assert_eq!(options(&network).iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [1, 5, 3]);
    }

    #[test]
    fn only_what_the_network_announces_is_said() {
        let mut network = network(1500);
        network.behaviour.announcements =
            crate::plan::Announcements { resolvers: false, search: false, mtu: false, ..Default::default() };
        let kinds = |network: &Network| options(network).iter().map(|(kind, _)| *kind).collect::<Vec<_>>();
        assert_eq!(kinds(&network), [1, 3]);
        network.behaviour.announcements = Default::default();
        network.v6.as_mut().unwrap().dns = Ipv6Addr::UNSPECIFIED;
        assert_eq!(kinds(&network), [1, 5, 3, 31], "an address that nobody has is no resolver");
    }

    #[test]
    fn an_advertisement_never_exceeds_the_least_mtu() {
        let mut network = network(1280);
        network.dns_search = (0..100).map(|i| format!("domain-number-{i}.example.org")).collect();
        network.dns_servers = (0..50).map(|i| IpAddr::V6(Ipv6Addr::from(1 << 125 | i))).collect();
        assert!(router_options(&network, &network.v6.unwrap()).len() + 8 + 40 <= 1280);
        assert_eq!(options(&network).len(), 5);
    }

    #[test]
    fn only_a_64_bit_prefix_is_good_for_autonomous_addresses() {
        let mut network = network(1500);
        network.v6 = Ipv6Layout::slirp("fd00::/96".parse().unwrap());
        let options = options(&network);
        let prefix = &options.iter().find(|(kind, _)| *kind == OPTION_PREFIX).unwrap().1;
        assert_eq!(prefix[..2], [96, PREFIX_ON_LINK]);
    }

    #[test]
    fn on_a_shared_network_nobody_makes_an_address_of_its_own_and_an_internal_one_has_no_router() {
        let mut segment = segment(1500);
        for (internal, expected) in [(false, 1800), (true, 0)] {
            segment.network.sharing = Some(crate::plan::Sharing { internal, icc: true });
            let options = options(&segment.network);
            let prefix = &options.iter().find(|(kind, _)| *kind == OPTION_PREFIX).unwrap().1;
            assert_eq!(prefix[..2], [64, PREFIX_ON_LINK]);
            let solicitation = message(SANDBOX_V6, ALL_NODES, 255, ROUTER_SOLICITATION, &[0; 4]);
            let (result, link) = feed(&mut segment, &solicitation);
            assert_eq!(result, Ok(()));
            let (.., body) = parse(link.one());
            assert_eq!(u16::from_be_bytes([body[6], body[7]]), expected);
        }
    }

    #[test]
    fn routers_and_false_neighbors_in_sandboxes_are_spoofed() {
        let local = SANDBOX_MAC.link_local();
        let advertisement = |target: Ipv6Addr| [&[0x20, 0, 0, 0], &target.octets()[..]].concat();
        for (kind, rest, expected) in [
            (ROUTER_ADVERTISEMENT, vec![0; 12], Err(DropReason::Spoofed)),
            (REDIRECT, vec![0; 36], Err(DropReason::Spoofed)),
            (NEIGHBOR_ADVERTISEMENT, advertisement(GATEWAY_V6), Err(DropReason::Spoofed)),
            (NEIGHBOR_ADVERTISEMENT, advertisement(SANDBOX_V6), Ok(())),
            (128, vec![0; 4], Err(DropReason::Spoofed)),
            (143, vec![0; 4], Err(DropReason::Multicast)),
        ] {
            let (result, link) = feed(&mut segment(1500), &message(local, ALL_NODES, 255, kind, &rest));
            assert_eq!((result, link.frames.len()), (expected, 0), "{kind}");
        }
    }

    #[test]
    fn what_breaks_the_rules_is_malformed() {
        let to = solicited_node(GATEWAY_V6);
        let target = GATEWAY_V6.octets();
        let body = [&[0; 4], &target[..]].concat();
        let ns = |options: &[u8]| solicitation(SANDBOX_V6, to, GATEWAY_V6, options);
        let group: Ipv6Addr = "ff02::5".parse().unwrap();
        for packet in [
            message(SANDBOX_V6, to, 254, NEIGHBOR_SOLICITATION, &body),
            message(SANDBOX_V6, to, 255, NEIGHBOR_SOLICITATION, &body[..19]),
            message(SANDBOX_V6, to, 255, NEIGHBOR_SOLICITATION, &body[..3]),
            message(SANDBOX_V6, to, 1, ROUTER_SOLICITATION, &[0; 4]),
            ns(&[1, 0, 0, 0, 0, 0, 0, 0]),
            ns(&[1, 2, 0, 0, 0, 0, 0, 0]),
            ns(&[1]),
            solicitation(NOBODY, GATEWAY_V6, GATEWAY_V6, &[]),
            solicitation(NOBODY, to, GATEWAY_V6, &[1, 1, 2, 0, 0, 0, 0, 9]),
            solicitation(SANDBOX_V6, to, group, &[]),
            message(NOBODY, ALL_NODES, 255, ROUTER_SOLICITATION, &[0, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 9]),
        ] {
            let (result, link) = feed(&mut segment(1500), &packet);
            assert_eq!((result, link.frames.len()), (Err(DropReason::Malformed), 0), "{packet:02x?}");
        }
        let mut wrong = ns(&[]);
        wrong[50] ^= 1;
        assert_eq!(feed(&mut segment(1500), &wrong).0, Err(DropReason::Checksum));
    }

    #[test]
    fn a_new_port_is_told_at_once_then_less_and_less_often() {
        let mut now = Instant::now();
        let (mut segment, mut link) = (segment(1500), Recorder::default());
        let mut advertiser = Advertiser::new(now);
        assert_eq!(advertiser.next_timeout(), None);
        advertiser.add_port(PEER.port);
        assert!(advertiser.next_timeout().unwrap() <= now);
        let mut gaps = Vec::new();
        for sent in 1..=50 {
            advertiser.handle_timeout(now, &mut segment, &mut link);
            assert_eq!(link.frames.len(), sent);
            let next = advertiser.next_timeout().unwrap();
            advertiser.handle_timeout(next - Duration::from_millis(1), &mut segment, &mut link);
            assert_eq!(link.frames.len(), sent);
            gaps.push(next - now);
            now = next;
        }
        assert_eq!(gaps[..2], [INITIAL_INTERVAL; 2]);
        assert!(gaps[2..].iter().all(|gap| (MIN_INTERVAL..=MAX_INTERVAL).contains(gap)));
        assert!(gaps[2..].windows(2).any(|w| w[0] != w[1]));
        let (mac, _, to, icmp) = parse(&link.frames[0].2);
        assert_eq!((link.frames[0].0, mac, to, icmp[0]), (PEER.port, ALL_NODES_MAC, ALL_NODES, 134));
        advertiser.remove_port(PEER.port);
        assert_eq!(advertiser.next_timeout(), None);
    }
}
