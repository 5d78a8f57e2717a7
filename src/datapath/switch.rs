//! The switch: where a sandbox's frame goes on a network that several sandboxes share.
//!
//! # Theory of operation
//!
//! [`Switch::judge`] looks at the headers of one frame and says its [`Way`]: to the gateway, to another sandbox's port,
//! to all of them, or nowhere and why. It reads no clock, makes no system call and writes no byte: the worker then hands
//! the frame on *as it was read*, virtio-net header included, so that a super-segment costs one read and one write
//! whatever the MTU. On a network that one sandbox has for itself there is no switch: every frame is the gateway's.
//!
//! **Who is where** is not learned. Ethernet and IP addresses were given to each endpoint when it joined, and a frame
//! that says anything else is somebody's lie. So the table cannot be filled, poisoned or flapped, has nothing to age,
//! and an address that it does not know is nobody's. Two hash lookups at most find a frame's way, however many ports
//! there are.
//!
//! **Who may say what**, looked at before anything else:
//!
//! | what | rule | else |
//! | --- | --- | --- |
//! | Ethernet source | the endpoint's | `spoofed_mac` |
//! | ARP sender | the endpoint's Ethernet and IPv4 address, or 0.0.0.0 in a probe | `spoofed_neighbor` |
//! | link-layer address in neighbor discovery, target of an advertisement | the endpoint's | `spoofed_neighbor` |
//! | IP source | the endpoint's, link-local included; 0.0.0.0 for DHCP and :: for ICMPv6 only | `spoofed` |
//! | router advertisement, redirect, answers of a DHCP server | never | `rogue_server` |
//! | ICMP error to another sandbox | about a packet from that one to the sender, who routes for nobody | `spoofed` |
//! | fragments | the first has the upper header; none is neighbor discovery (RFC 6980) or has offloads | `malformed` |
//! | offloads | fit the packet, and cover nothing of the headers that were looked at | `malformed` |
//!
//! **Where it goes**:
//!
//! | frame | way |
//! | --- | --- |
//! | to the gateway's Ethernet address | the gateway |
//! | to an endpoint's | that port |
//! | to anybody else's | nowhere: all stations are known |
//! | ARP request, neighbor solicitation for an endpoint's address | that port only, broadcast or not |
//! | the same for any other address | the gateway, which answers for its own and for clients that it stands for |
//! | DHCP, router solicitation | the gateway |
//! | multicast listener reports, IGMP | nowhere: everything is flooded anyway |
//! | ping to all nodes or all routers | the others and the gateway |
//! | all other broadcast and multicast | the others |
//!
//! Whatever is sent to a group of stations takes a token from its port's bucket: [`STORM_PER_SECOND`], and
//! [`STORM_BURST`] at once. Without one it is dropped (`storm`). What flooding costs counts against the budget that the
//! port has in each round of the worker, a frame for each copy, so that a storm takes nobody else's turn.
//!
//! **Where sandboxes do not reach each other** (`--icc=false`) nothing is flooded, those without a link between them do
//! not find each other's Ethernet address, and what is left is judged flow by flow: see
//! [`linked_flows`](super::linked_flows).
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use smoltcp::wire::IpProtocol;

use super::linked_flows::{LinkedFlows, Piece, Verdict};
use crate::gateway::addresses;
use crate::gateway::counters::DropReason;
use crate::gateway::link::{Gso, Offload, Peer, PortId};
use crate::gateway::ndp::{
    MLD, NEIGHBOR_ADVERTISEMENT, NEIGHBOR_SOLICITATION, REDIRECT, ROUTER_ADVERTISEMENT, ROUTER_SOLICITATION,
};
use crate::gateway::packet::{self, ETHERNET_HEADER, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Parsed};
use crate::plan::{Endpoint, Ipv4Layout, MacAddr, Network};
use crate::policy::links;

/// Frames to groups that a port may send at once.
pub const STORM_BURST: u32 = 2000;
/// Frames to groups that a port may send each second.
pub const STORM_PER_SECOND: u32 = 1000;

const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;

const ECHO_REQUEST_V6: u8 = 128;
/// Messages of ICMP that only a router sends: redirect (RFC 792), router advertisement (RFC 1256).
const FROM_ROUTERS_V4: [u8; 2] = [5, 9];
/// Unreachable, source quench, time exceeded, parameter problem (RFC 792).
const ICMP_ERRORS: [u8; 4] = [3, 4, 11, 12];
/// Options of neighbor discovery with a link-layer address (RFC 4861, 4.6.1).
const LINK_LAYER_ADDRESS: [u8; 2] = [1, 2];

const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
const DHCPV6_CLIENT: u16 = 546;
const DHCPV6_SERVER: u16 = 547;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the gateway.
    Gateway,
    /// To this port.
    Port(PortId),
    /// To every other port ([`Switch::others`]), and to the gateway where that is said.
    Flood {
        /// The gateway has something to answer.
        gateway: bool,
    },
    /// Nowhere: no link opens it, and whoever sent it is told that it is prohibited.
    Refused,
    /// Nowhere, silently.
    Nowhere(DropReason),
}

/// A bucket of frames that may still be sent to groups.
#[derive(Debug)]
struct Bucket {
    tokens: u32,
    /// Up to when it has been refilled.
    refilled: Instant,
}

impl Bucket {
    fn take(&mut self, now: Instant) -> bool {
        let per_token = Duration::from_secs(1) / STORM_PER_SECOND;
        let earned = now.saturating_duration_since(self.refilled).as_micros() / per_token.as_micros();
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(u32::MAX);
            self.tokens = self.tokens.saturating_add(earned).min(STORM_BURST);
            self.refilled = if self.tokens == STORM_BURST { now } else { self.refilled + per_token * earned };
        }
        let left = self.tokens.checked_sub(1);
        self.tokens = left.unwrap_or(0);
        left.is_some()
    }
}

struct Station {
    endpoint: Endpoint,
    bucket: Bucket,
}

impl Station {
    fn has(&self, address: IpAddr) -> bool {
        addresses(&self.endpoint).any(|own| own == address)
    }
}

/// Who a frame is addressed to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Addressee {
    Gateway,
    Port(PortId),
    Group,
}

/// The ports of one shared network, and its rules.
pub struct Switch {
    icc: bool,
    gateway_mac: MacAddr,
    v4: Option<Ipv4Layout>,
    has_v6: bool,
    /// By port.
    stations: Vec<Option<Station>>,
    by_mac: HashMap<MacAddr, PortId>,
    by_address: HashMap<IpAddr, PortId>,
    /// The ports that frames go to.
    ports: Vec<PortId>,
    /// Where sandboxes do not reach each other.
    flows: LinkedFlows,
}

impl Switch {
    /// The switch of a shared network with nobody on it yet; `None` for a network that one sandbox has for itself.
    pub fn new(network: &Network) -> Option<Switch> {
        Some(Switch {
            icc: network.sharing?.icc,
            gateway_mac: network.gateway_mac,
            v4: network.v4,
            has_v6: network.v6.is_some(),
            stations: Vec::new(),
            by_mac: HashMap::new(),
            by_address: HashMap::new(),
            ports: Vec::new(),
            flows: LinkedFlows::new(network.udp_timeout),
        })
    }

    /// An endpoint joins. Addresses that an earlier one still has are the new one's from now on.
    pub fn add_port(&mut self, now: Instant, port: PortId, endpoint: Endpoint) {
        self.remove_port(port);
        let index = port.0 as usize;
        if index >= self.stations.len() {
            self.stations.resize_with(index + 1, || None);
        }
        self.by_mac.insert(endpoint.mac, port);
        self.by_address.extend(addresses(&endpoint).map(|address| (address, port)));
        self.ports.push(port);
        let bucket = Bucket { tokens: STORM_BURST, refilled: now };
        self.stations[index] = Some(Station { endpoint, bucket });
    }

    /// The sandbox on this port has ended: nothing goes there any more. What it had sent is still taken.
    pub fn leave(&mut self, port: PortId) {
        let Some(Some(station)) = self.stations.get(port.0 as usize) else { return };
        if self.by_mac.get(&station.endpoint.mac) == Some(&port) {
            self.by_mac.remove(&station.endpoint.mac);
        }
        for address in addresses(&station.endpoint) {
            if self.by_address.get(&address) == Some(&port) {
                self.by_address.remove(&address);
            }
        }
        self.ports.retain(|other| *other != port);
        self.flows.remove_port(port);
    }

    /// The port is no more.
    pub fn remove_port(&mut self, port: PortId) {
        self.leave(port);
        if let Some(station) = self.stations.get_mut(port.0 as usize) {
            *station = None;
        }
    }

    /// Every port that a flooded frame of this one goes to.
    pub fn others(&self, port: PortId) -> impl Iterator<Item = PortId> + '_ {
        self.ports.iter().copied().filter(move |other| *other != port)
    }

    /// Where this frame of the sandbox on this port goes. `frame` begins with its Ethernet header; `offload` is what
    /// the header in front of it said.
    pub fn judge(&mut self, now: Instant, port: PortId, offload: &Offload, frame: &[u8]) -> Way {
        self.way(now, port, offload, frame).unwrap_or_else(Way::Nowhere)
    }

    fn way(&mut self, now: Instant, port: PortId, offload: &Offload, frame: &[u8]) -> Result<Way, DropReason> {
        let (header, rest) = frame.split_first_chunk::<ETHERNET_HEADER>().ok_or(DropReason::Malformed)?;
        let &[d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = header;
        let (to, from) = (MacAddr([d0, d1, d2, d3, d4, d5]), MacAddr([s0, s1, s2, s3, s4, s5]));
        let station = self.stations.get_mut(port.0 as usize).and_then(Option::as_mut);
        let station = station.filter(|station| station.endpoint.mac == from).ok_or(DropReason::SpoofedMac)?;
        let addressee = if to.is_group() {
            if !station.bucket.take(now) {
                return Err(DropReason::Storm);
            }
            Addressee::Group
        } else if to == self.gateway_mac {
            Addressee::Gateway
        } else {
            match self.by_mac.get(&to) {
                Some(other) if *other != port => Addressee::Port(*other),
                Some(_) => return Err(DropReason::NotForUs),
                None => return Err(DropReason::UnknownStation),
            }
        };
        let peer = Peer { port, mac: from };
        let parsed = match u16::from_be_bytes([t0, t1]) {
            ETHERTYPE_ARP if self.v4.is_some() => return self.arp(port, addressee, rest),
            ETHERTYPE_IPV4 if self.v4.is_some() => packet::parse_ipv4(peer, *offload, rest)?,
            ETHERTYPE_IPV6 if self.has_v6 => packet::parse_ipv6(peer, *offload, rest)?,
            ETHERTYPE_ARP | ETHERTYPE_IPV4 | ETHERTYPE_IPV6 => return Err(DropReason::Family),
            _ => return Err(DropReason::EtherType),
        };
        let piece = Piece::of(&parsed);
        check_offload(offload, &parsed)?;
        check_fragment(&piece)?;
        if !piece.src.is_unspecified() && !self.station(port).is_some_and(|station| station.has(piece.src)) {
            return Err(DropReason::Spoofed);
        }
        if piece.is_later_fragment() {
            return self.packet(now, port, addressee, &piece);
        }
        match (piece.protocol, piece.src) {
            (IpProtocol::Icmpv6, IpAddr::V6(_)) => self.icmpv6(now, port, addressee, &piece),
            (IpProtocol::Udp, _) => self.udp(now, port, addressee, &piece),
            (IpProtocol::Icmp, IpAddr::V4(_)) if piece.upper.first().is_some_and(|k| FROM_ROUTERS_V4.contains(k)) => {
                Err(DropReason::RogueServer)
            }
            _ if piece.src.is_unspecified() => Err(DropReason::Spoofed),
            _ => self.packet(now, port, addressee, &piece),
        }
    }

    fn station(&self, port: PortId) -> Option<&Station> {
        self.stations.get(port.0 as usize)?.as_ref()
    }

    /// May these two find each other's Ethernet address?
    fn reach(&self, port: PortId, other: PortId) -> bool {
        self.icc
            || match (self.station(port), self.station(other)) {
                (Some(one), Some(other)) => links::are_linked(&one.endpoint, &other.endpoint),
                _ => false,
            }
    }

    /// An ARP packet (RFC 826).
    fn arp(&self, port: PortId, addressee: Addressee, packet: &[u8]) -> Result<Way, DropReason> {
        let packet: &[u8; 28] = packet.first_chunk().ok_or(DropReason::Malformed)?;
        let &[0, 1, 8, 0, 6, 4, o0, o1, m0, m1, m2, m3, m4, m5, s0, s1, s2, s3, .., t0, t1, t2, t3] = packet else {
            return Err(DropReason::Malformed);
        };
        let operation = u16::from_be_bytes([o0, o1]);
        if !matches!(operation, ARP_REQUEST | ARP_REPLY) {
            return Err(DropReason::Malformed);
        }
        let (sender, target) = (Ipv4Addr::new(s0, s1, s2, s3), Ipv4Addr::new(t0, t1, t2, t3));
        let endpoint = &self.station(port).ok_or(DropReason::SpoofedMac)?.endpoint;
        let is_probe = operation == ARP_REQUEST && sender.is_unspecified();
        if MacAddr([m0, m1, m2, m3, m4, m5]) != endpoint.mac || !(is_probe || endpoint.v4 == Some(sender)) {
            return Err(DropReason::SpoofedNeighbor);
        }
        if operation == ARP_REQUEST && sender != target {
            self.solicit(port, addressee, target.into())
        } else {
            self.advertise(port, addressee)
        }
    }

    /// Somebody asks who has this address.
    fn solicit(&self, port: PortId, addressee: Addressee, target: IpAddr) -> Result<Way, DropReason> {
        let owner = self.by_address.get(&target).copied().filter(|owner| *owner != port);
        match (addressee, owner) {
            (Addressee::Gateway, _) | (Addressee::Group, None) => Ok(Way::Gateway),
            (Addressee::Port(asked), owner) if owner != Some(asked) => Err(DropReason::NotForUs),
            (_, Some(owner)) if self.reach(port, owner) => Ok(Way::Port(owner)),
            _ => Err(DropReason::Isolated),
        }
    }

    /// Somebody says what its own address is.
    fn advertise(&self, port: PortId, addressee: Addressee) -> Result<Way, DropReason> {
        match addressee {
            Addressee::Gateway => Ok(Way::Gateway),
            Addressee::Port(other) if self.reach(port, other) => Ok(Way::Port(other)),
            Addressee::Group if self.icc => Ok(Way::Flood { gateway: false }),
            Addressee::Port(_) | Addressee::Group => Err(DropReason::Isolated),
        }
    }

    /// A packet of ICMPv6 with its first bytes.
    fn icmpv6(
        &mut self,
        now: Instant,
        port: PortId,
        addressee: Addressee,
        piece: &Piece<'_>,
    ) -> Result<Way, DropReason> {
        let (header, body) = piece.upper.split_first_chunk::<8>().ok_or(DropReason::Malformed)?;
        let mac = self.station(port).ok_or(DropReason::SpoofedMac)?.endpoint.mac;
        match header[0] {
            kind if MLD.contains(&kind) => Err(DropReason::Multicast),
            ROUTER_ADVERTISEMENT | REDIRECT => Err(DropReason::RogueServer),
            ROUTER_SOLICITATION | NEIGHBOR_SOLICITATION | NEIGHBOR_ADVERTISEMENT if piece.fragment.is_some() => {
                Err(DropReason::Malformed)
            }
            ROUTER_SOLICITATION => {
                check_neighbor_options(body, mac)?;
                match addressee {
                    Addressee::Gateway | Addressee::Group => Ok(Way::Gateway),
                    Addressee::Port(_) => Err(DropReason::NotForUs),
                }
            }
            NEIGHBOR_SOLICITATION => {
                let (target, options) = body.split_first_chunk::<16>().ok_or(DropReason::Malformed)?;
                check_neighbor_options(options, mac)?;
                self.solicit(port, addressee, Ipv6Addr::from(*target).into())
            }
            NEIGHBOR_ADVERTISEMENT => {
                let (target, options) = body.split_first_chunk::<16>().ok_or(DropReason::Malformed)?;
                check_neighbor_options(options, mac)?;
                let target = IpAddr::V6(Ipv6Addr::from(*target));
                if piece.src.is_unspecified() || !self.station(port).is_some_and(|station| station.has(target)) {
                    return Err(DropReason::SpoofedNeighbor);
                }
                self.advertise(port, addressee)
            }
            _ if piece.src.is_unspecified() => Err(DropReason::Spoofed),
            ECHO_REQUEST_V6
                if addressee == Addressee::Group && [ALL_NODES, ALL_ROUTERS].map(IpAddr::V6).contains(&piece.dst) =>
            {
                Ok(if self.icc { Way::Flood { gateway: true } } else { Way::Gateway })
            }
            _ => self.packet(now, port, addressee, piece),
        }
    }

    /// A packet of UDP with its header.
    fn udp(&mut self, now: Instant, port: PortId, addressee: Addressee, piece: &Piece<'_>) -> Result<Way, DropReason> {
        let &[s0, s1, d0, d1, ..] = piece.upper else { return Err(DropReason::Malformed) };
        let (from, to) = (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]));
        if addressee == Addressee::Gateway {
            return Ok(Way::Gateway);
        }
        let is_server = match piece.src {
            IpAddr::V4(_) => from == DHCP_SERVER || to == DHCP_CLIENT,
            IpAddr::V6(_) => from == DHCPV6_SERVER || to == DHCPV6_CLIENT,
        };
        if is_server {
            return Err(DropReason::RogueServer);
        }
        match (piece.src, addressee) {
            (IpAddr::V4(_), Addressee::Group) if to == DHCP_SERVER => Ok(Way::Gateway),
            (IpAddr::V6(_), Addressee::Group) if to == DHCPV6_SERVER => Err(DropReason::Multicast),
            _ if piece.src.is_unspecified() => Err(DropReason::Spoofed),
            _ => self.packet(now, port, addressee, piece),
        }
    }

    /// Any packet whose source is right and which means nothing to the switch.
    fn packet(
        &mut self,
        now: Instant,
        port: PortId,
        addressee: Addressee,
        piece: &Piece<'_>,
    ) -> Result<Way, DropReason> {
        if piece.src.is_unspecified() {
            return Err(DropReason::Spoofed);
        }
        let to_others = self.icc && addressee != Addressee::Gateway;
        if to_others && is_icmp_error(piece) && !self.is_true_error(port, addressee, piece) {
            return Err(DropReason::Spoofed);
        }
        match addressee {
            Addressee::Gateway => Ok(Way::Gateway),
            Addressee::Group if !self.is_group(piece.dst) || piece.protocol == IpProtocol::Igmp => {
                Err(DropReason::Multicast)
            }
            Addressee::Group if self.icc => Ok(Way::Flood { gateway: false }),
            Addressee::Group => Err(DropReason::Isolated),
            Addressee::Port(other) if self.icc => Ok(Way::Port(other)),
            Addressee::Port(other) => {
                let station = |port: PortId| self.stations.get(port.0 as usize)?.as_ref();
                let (Some(from), Some(to)) = (station(port), station(other)) else {
                    return Err(DropReason::UnknownStation);
                };
                match self.flows.judge(now, (port, &from.endpoint), (other, &to.endpoint), piece) {
                    Verdict::Pass => Ok(Way::Port(other)),
                    Verdict::Refused => Ok(Way::Refused),
                    Verdict::Dropped => Err(DropReason::Isolated),
                }
            }
        }
    }

    /// Is an ICMP error about a packet that its receiver may have sent to its sender? Any other would be about a
    /// conversation with somebody else, which it could break (RFC 5927): its port, its MTU.
    fn is_true_error(&self, port: PortId, addressee: Addressee, piece: &Piece<'_>) -> bool {
        let has = |port, address| self.station(port).is_some_and(|station| station.has(address));
        match (addressee, piece.upper.get(8..).and_then(quoted_addresses)) {
            (Addressee::Port(other), Some((from, to))) => has(other, from) && has(port, to),
            _ => false,
        }
    }

    fn is_group(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(ip) => {
                ip.is_multicast() || ip.is_broadcast() || self.v4.is_some_and(|l| l.subnet.broadcast() == ip)
            }
            IpAddr::V6(ip) => ip.is_multicast(),
        }
    }
}

/// A message of ICMP that quotes a packet (RFC 792; RFC 4443, 2.1).
fn is_icmp_error(piece: &Piece<'_>) -> bool {
    match (piece.src, piece.protocol, piece.upper.first()) {
        (IpAddr::V4(_), IpProtocol::Icmp, Some(kind)) => ICMP_ERRORS.contains(kind),
        (IpAddr::V6(_), IpProtocol::Icmpv6, Some(kind)) => *kind < ECHO_REQUEST_V6,
        _ => false,
    }
}

/// From whom and to whom the packet was whose head this is.
fn quoted_addresses(head: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let v4 = |at: usize| head.get(at..)?.first_chunk::<4>().map(|bytes| IpAddr::from(*bytes));
    let v6 = |at: usize| head.get(at..)?.first_chunk::<16>().map(|bytes| IpAddr::from(*bytes));
    match head.first()? >> 4 {
        4 => Some((v4(12)?, v4(16)?)),
        6 => Some((v6(8)?, v6(24)?)),
        _ => None,
    }
}

/// An offload must be one that such a packet can have, and the checksum that the receiver's kernel may still compute
/// must not lie in the headers that were judged.
fn check_offload(offload: &Offload, parsed: &Parsed<'_>) -> Result<(), DropReason> {
    let fits = match parsed {
        Parsed::Fragment(_) => !offload.needs_csum && offload.gso == Gso::None,
        Parsed::Whole(packet) => {
            let upper_at = ETHERNET_HEADER + packet.payload_at;
            let covered = !offload.needs_csum || usize::from(offload.csum_start) >= upper_at;
            covered
                && match offload.gso {
                    Gso::None => true,
                    Gso::TcpV4 => packet.src.is_ipv4() && packet.protocol == IpProtocol::Tcp,
                    Gso::TcpV6 => packet.src.is_ipv6() && packet.protocol == IpProtocol::Tcp,
                    Gso::UdpL4 => packet.protocol == IpProtocol::Udp,
                }
        }
    };
    if fits { Ok(()) } else { Err(DropReason::Malformed) }
}

/// The first fragment has to show what the datagram is (RFC 7112; RFC 1858 for TCP, whose flags come late in its
/// header); so extension headers behind the fragment header are refused.
fn check_fragment(piece: &Piece<'_>) -> Result<(), DropReason> {
    let is_extension = matches!(
        piece.protocol,
        IpProtocol::HopByHop | IpProtocol::Ipv6Opts | IpProtocol::Ipv6Route | IpProtocol::Ipv6Frag
    );
    let least = match piece.protocol {
        IpProtocol::Tcp => 20,
        IpProtocol::Udp | IpProtocol::Icmp | IpProtocol::Icmpv6 => 8,
        _ => 0,
    };
    match piece.fragment {
        Some(_) if is_extension => Err(DropReason::Malformed),
        Some(fragment) if fragment.offset == 0 && piece.upper.len() < least => Err(DropReason::Malformed),
        _ => Ok(()),
    }
}

/// Options of neighbor discovery name no other Ethernet address than the sender's (RFC 4861, 4.6).
fn check_neighbor_options(mut options: &[u8], own: MacAddr) -> Result<(), DropReason> {
    while let &[kind, units, ..] = options {
        let (option, rest) = options.split_at_checked(usize::from(units) * 8).ok_or(DropReason::Malformed)?;
        if LINK_LAYER_ADDRESS.contains(&kind) && option.get(2..8) != Some(&own.0) {
            return Err(if units == 0 { DropReason::Malformed } else { DropReason::SpoofedNeighbor });
        }
        if units == 0 {
            return Err(DropReason::Malformed);
        }
        options = rest;
    }
    if options.is_empty() { Ok(()) } else { Err(DropReason::Malformed) }
}

#[cfg(test)]
mod tests;
