//! The stack that sandboxes talk to: the host they see at the gateway's address.
//!
//! # Theory of operation
//!
//! Sans-IO: nothing here makes a system call or reads a clock. Time, frames and the outcomes of host operations
//! come in as arguments; frames for sandboxes go out through [`Link`], datagrams and connections through
//! [`Host`]. The functions come in four families: `handle_*` takes an event, `poll_*` gives work, `next_timeout`
//! and `handle_timeout` are the clock, the rest are getters.
//!
//! One [`Gateway`] serves one network. The way of a frame:
//!
//! 1. [`Gateway::handle_frame`] looks at the Ethernet header: ARP goes to [`arp`], IP is checked by [`packet`]
//!    and its source judged (a sandbox speaks only from its segment's addresses).
//! 2. Fragments wait in [`reassembly`] until their datagram is whole.
//! 3. TCP goes to [`tcp`], UDP to [`udp`] (DHCP, DHCPv6 and DNS are taken out there), ICMP to [`icmp`], neighbor
//!    discovery to [`ndp`]. A new flow is judged by the [`policy`](crate::policy) once.
//!
//! A frame that goes no further is counted with its [`DropReason`](counters::DropReason); nothing a sandbox
//! sends can end or stall the gateway.
//!
//! # What one sandbox can make it hold
//!
//! | what | bound | bytes | where |
//! | --- | --- | --- | --- |
//! | rings of TCP flows | 128 MiB (512 MiB for a network), and 16 KiB for each flow beyond | 128 MiB, with 32,768 flows that all have come beyond 640 MiB | [`tcp::memory`] |
//! | TCP flows | 32,768; 1,024 half-open each way; on shared networks no more than there are descriptors left | 2 KiB each | [`tcp`] |
//! | UDP flows | 4,096 it began, 4,096 its clients began; each 128 addresses | 30 MiB; in the kernel a receive buffer each | [`udp`] |
//! | ping flows | 512 | 0.1 MiB | [`echo`] |
//! | unfinished datagrams | 16; 1 MiB for a network | 1 MiB | [`reassembly`] |
//! | addresses by DHCP | 64 | some KiB | [`dhcp`] |
//! | frames that wait for its link | 64, half of them other sandboxes' | 4.2 MiB | [`datapath::port`](crate::datapath::port) |
//! | flows along links (`--icc=false`) | 4,096 of each protocol, 256 datagrams in fragments | 2 MiB | `datapath::linked_flows` |
//! | questions | 128 of 4 KiB that wait, 256 that are asked for (1,024 where it is alone), 256 on streams | 33 MiB with answers of 64 KiB | [`names`](crate::names) |
//!
//! What a frame may cost in time while others want to be served is in `datapath::dues`.

pub mod arp;
#[cfg(test)]
mod bad_input;
pub mod cost;
pub mod counters;
pub mod describe;
pub mod dhcp;
pub mod dhcpv6;
pub mod echo;
pub mod emit;
pub(crate) mod flows;
pub mod icmp;
mod inbound;
pub mod kept;
pub mod link;
#[cfg(test)]
mod mapped;
pub mod ndp;
pub mod packet;
mod peers;
mod quote;
pub mod reassembly;
#[cfg(test)]
mod shared;
#[cfg(test)]
mod soak;
pub mod tcp;
#[cfg(test)]
pub(crate) mod testing;
pub mod udp;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use ipnet::IpNet;
use smoltcp::wire::IpProtocol;

use crate::plan::{Access, Endpoint, HostView, MacAddr, Network};
use crate::policy::{self, Refusal, Rules};
use counters::{Counters, DropReason};
use link::{Asker, EchoId, Host, HostError, Link, Offload, Peer, PortId, ReplyPath, Service, TcpId, UdpId, Unsent};
use packet::{ETHERNET_HEADER, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Packet, Parsed};

/// What every part of the gateway may look at: the network, the host, who is on which port, and the counters.
pub struct Segment {
    /// The network this gateway serves.
    pub network: Network,
    /// The host as it was last told.
    pub host: HostView,
    /// The subnets of other networks, where nothing leads.
    pub foreign: Vec<IpNet>,
    /// The endpoint behind each port.
    pub ports: HashMap<PortId, Endpoint>,
    /// The endpoints' addresses.
    addresses: HashMap<IpAddr, PortId>,
    /// Ports whose sandbox has shown which IPv6 address it has.
    settled: HashSet<PortId>,
    /// What is counted.
    pub counters: Counters,
    /// What the frame at hand has cost so far beyond being carried; see [`cost`].
    extra: u32,
    /// How many ICMP errors may still be sent, to each port that was sent one.
    icmp_limits: HashMap<PortId, icmp::RateLimit>,
    /// Identifications for fragmented datagrams.
    pub identifications: emit::Identifications,
    /// Addresses given by DHCP.
    pub leases: dhcp::Leases,
    /// Clients' addresses that the gateway stands for on the link.
    pub kept: kept::Kept,
}

impl Segment {
    /// A segment with nobody on it yet.
    pub fn new(network: Network, host: HostView) -> Segment {
        Segment {
            network,
            host,
            foreign: Vec::new(),
            ports: HashMap::new(),
            addresses: HashMap::new(),
            settled: HashSet::new(),
            counters: Counters::default(),
            extra: 0,
            icmp_limits: HashMap::new(),
            identifications: emit::Identifications::new(),
            leases: dhcp::Leases::default(),
            kept: kept::Kept::default(),
        }
    }

    /// An endpoint joins. Where an ended one that has not left yet had the same address, it is the new one's.
    fn add(&mut self, port: PortId, endpoint: Endpoint) {
        self.addresses.extend(addresses(&endpoint).map(|address| (address, port)));
        self.ports.insert(port, endpoint);
    }

    /// An endpoint leaves.
    fn remove(&mut self, port: PortId) {
        self.icmp_limits.remove(&port);
        self.settled.remove(&port);
        let Some(endpoint) = self.ports.remove(&port) else { return };
        for address in addresses(&endpoint) {
            if self.addresses.get(&address) == Some(&port) {
                self.addresses.remove(&address);
            }
        }
    }

    /// A sandbox has this IPv6 address, or is about to. Where it makes its own of an advertised prefix the plan can only
    /// guess which that will be; the first that it shows, or the planned one, is where clients of published ports find
    /// it. (On tapline's own networks the address is set from outside.)
    fn notice(&mut self, port: PortId, address: Ipv6Addr) {
        let network = &self.network;
        let Some(layout) = network.v6 else { return };
        let is_ours = network.is_host(address.into()) || network.is_dns(address.into()) || layout.gateway == address;
        let is_another = network.behaviour.mapping.as_ref().is_some_and(|m| m.further.contains(&address.into()));
        if network.behaviour.is_usual() || !layout.subnet.contains(&address) || is_ours || is_another {
            return;
        }
        let Some(endpoint) = self.ports.get_mut(&port) else { return };
        let is_news = self.settled.insert(port) || address == layout.sandbox;
        if !is_news || endpoint.v6 == Some(address) || address.is_unicast_link_local() {
            return;
        }
        let old = endpoint.v6.replace(address).map(IpAddr::V6);
        if let Some(old) = old.filter(|old| self.addresses.get(old) == Some(&port)) {
            self.addresses.remove(&old);
        }
        self.addresses.insert(address.into(), port);
    }

    /// A sandbox has this address at this Ethernet address, which is not the planned one where somebody inside has
    /// changed it. On a shared network nobody may, and none comes here.
    fn notice_station(&mut self, peer: Peer, address: IpAddr) {
        let Some(endpoint) = self.ports.get_mut(&peer.port).filter(|endpoint| endpoint.mac != peer.mac) else { return };
        let own = [endpoint.v4.map(IpAddr::V4), endpoint.v6.map(IpAddr::V6)];
        if self.network.sharing.is_some() || !own.contains(&Some(address)) {
            return;
        }
        let old = std::mem::replace(&mut endpoint.mac, peer.mac).link_local().into();
        if self.addresses.get(&old) == Some(&peer.port) {
            self.addresses.remove(&old);
        }
        self.addresses.insert(peer.mac.link_local().into(), peer.port);
    }

    /// Which port has this address.
    fn has(&self, address: IpAddr) -> Option<PortId> {
        self.addresses.get(&address).copied()
    }

    /// A client of a published port has this address inside: a sandbox that looks for it on its segment finds the
    /// gateway.
    pub(crate) fn keep_address(&mut self, port: PortId, client: IpAddr) {
        self.kept.keep(&self.network, port, client);
    }

    /// One client less has this address.
    pub(crate) fn forget_address(&mut self, port: PortId, client: IpAddr) {
        self.kept.forget(port, client);
    }

    /// The same for a service: the DNS address may lead elsewhere with one port than with others.
    fn judge_service(&self, port: PortId, destination: SocketAddr) -> Result<SocketAddr, Refusal> {
        match policy::encrypted_dns(&self.network, destination) {
            Some(resolver) => Ok(resolver),
            None => self.judge(port, destination.ip()).map(|ip| SocketAddr::new(ip, destination.port())),
        }
    }

    /// Where a new flow of the sandbox on this port leads on the host, or why it is refused.
    fn judge(&self, port: PortId, destination: IpAddr) -> Result<IpAddr, Refusal> {
        let access = self.ports.get(&port).map_or_else(Access::default, |endpoint| endpoint.access);
        let rules = Rules { network: &self.network, host: &self.host, access, foreign: &self.foreign };
        policy::judge(&rules, destination)
    }

    /// May a sandbox on this port use this source address? On a network of its own: the segment's unicast addresses,
    /// except the gateway's; link-local ones for IPv6. One that has the host's own addresses: any unicast address. On a
    /// shared one: those that were given to it, and the link-local one of its Ethernet address.
    fn source_allowed(&self, port: PortId, source: IpAddr) -> bool {
        if self.network.sharing.is_some() {
            return self.ports.get(&port).is_some_and(|endpoint| addresses(endpoint).any(|own| own == source));
        }
        if self.network.behaviour.mapping.is_some() {
            return kept::is_somebodys(&self.network, source);
        }
        if self.network.is_gateway(source) || self.network.is_dns(source) {
            return false;
        }
        match source {
            IpAddr::V4(ip) => self.network.v4.is_some_and(|l| l.subnet.contains(&ip) && !l.is_edge(ip)),
            IpAddr::V6(ip) => {
                !ip.is_multicast()
                    && (ip.is_unicast_link_local() || self.network.v6.is_some_and(|l| l.subnet.contains(&ip)))
            }
        }
    }
}

/// An endpoint's addresses: those that were given to it, and the link-local one of its Ethernet address.
pub(crate) fn addresses(endpoint: &Endpoint) -> impl Iterator<Item = IpAddr> + use<> {
    let local = endpoint.mac.link_local();
    let given = [endpoint.v4.map(IpAddr::V4), endpoint.v6.map(IpAddr::V6)];
    given.into_iter().flatten().chain([IpAddr::V6(local)])
}

/// One network's gateway.
pub struct Gateway {
    segment: Segment,
    tcp: tcp::TcpTable,
    udp: udp::UdpTable,
    echo: echo::EchoTable,
    reassembly: reassembly::Reassembler,
    advertiser: ndp::Advertiser,
}

impl Gateway {
    /// A gateway for a network, with nobody on it yet.
    pub fn new(now: Instant, network: Network, host: HostView) -> Gateway {
        Gateway {
            tcp: tcp::TcpTable::new(now, &network),
            udp: udp::UdpTable::new(network.udp_timeout),
            echo: echo::EchoTable::new(network.ping_timeout()),
            reassembly: reassembly::Reassembler::new(),
            advertiser: ndp::Advertiser::new(now),
            segment: Segment::new(network, host),
        }
    }

    /// An endpoint joins at a port. With IPv6 it is sent a router advertisement at the next
    /// [`handle_timeout`](Self::handle_timeout), which is due at once, so that a client that configures itself
    /// need not ask.
    pub fn add_port(&mut self, port: PortId, endpoint: Endpoint) {
        self.segment.add(port, endpoint);
        if self.segment.network.v6.is_some() && self.segment.network.behaviour.services.router_advertisements {
            self.advertiser.add_port(port);
        }
    }

    /// The endpoint at this port has gone: its flows end, their host sockets are closed with a reset.
    pub fn remove_port(&mut self, port: PortId, host: &mut impl Host) {
        self.segment.remove(port);
        self.segment.leases.remove_port(port);
        self.segment.kept.remove_port(port);
        self.tcp.remove_port(port, host);
        self.udp.remove_port(port, &mut self.segment, host);
        self.echo.remove_port(port, host);
        self.reassembly.remove_port(port);
        self.advertiser.remove_port(port);
    }

    /// The host's addresses or resolvers changed: new flows use them.
    pub fn handle_host_changed(&mut self, host: HostView) {
        self.segment.host = host;
    }

    /// The subnets of other networks: new flows do not lead there.
    pub fn handle_foreign(&mut self, subnets: Vec<IpNet>) {
        self.segment.foreign = subnets;
    }

    /// Who is at a port.
    pub fn endpoint(&self, port: PortId) -> Option<&Endpoint> {
        self.segment.ports.get(&port)
    }

    /// The network served.
    pub fn network(&self) -> &Network {
        &self.segment.network
    }

    /// What was counted so far.
    pub fn counters(&self) -> &Counters {
        &self.segment.counters
    }

    /// A frame of `len` bytes went from one sandbox to `copies` others, past the gateway.
    pub fn count_switched(&mut self, len: usize, copies: u64) {
        self.segment.counters.frames_in += 1;
        self.segment.counters.bytes_in += len as u64;
        self.count_copies(len, copies);
    }

    /// A frame that the gateway had too went to `copies` other sandboxes.
    pub fn count_copies(&mut self, len: usize, copies: u64) {
        self.segment.counters.frames_out += copies;
        self.segment.counters.bytes_out += copies * len as u64;
    }

    /// A frame from one sandbox to another that the network's rules do not let through: its sender is told.
    pub fn handle_refused(&mut self, now: Instant, port: PortId, offload: Offload, frame: &[u8], link: &mut impl Link) {
        self.count_switched(frame.len(), 0);
        self.segment.counters.drop(DropReason::Isolated);
        let Some((header, packet)) = frame.split_first_chunk::<ETHERNET_HEADER>() else { return };
        let peer = Peer { port, mac: MacAddr(std::array::from_fn(|i| header[6 + i])) };
        let ipv4 = header[12..] == ETHERTYPE_IPV4.to_be_bytes();
        let parsed =
            if ipv4 { packet::parse_ipv4(peer, offload, packet) } else { packet::parse_ipv6(peer, offload, packet) };
        if let Ok(Parsed::Whole(packet)) = parsed {
            icmp::send_error(now, &mut self.segment, peer, None, icmp::IcmpError::Prohibited, packet.bytes, link);
        }
    }

    /// Count a frame that was dropped before it came here.
    pub fn count_drop(&mut self, reason: DropReason) {
        self.segment.counters.drop(reason);
    }

    /// TCP flows: the worker pumps bytes between them and host sockets.
    pub fn tcp(&mut self) -> &mut tcp::TcpTable {
        &mut self.tcp
    }

    /// How many places a table of flows has, taken or not.
    pub fn places(&self, table: describe::Table) -> usize {
        match table {
            describe::Table::Tcp => self.tcp.places(),
            describe::Table::Udp => self.udp.places(),
            describe::Table::Echo => self.echo.places(),
        }
    }

    /// The flow at a place of a table, if there is one.
    pub fn describe(&mut self, table: describe::Table, place: usize) -> Option<describe::Description> {
        match table {
            describe::Table::Tcp => self.tcp.describe(place),
            describe::Table::Udp => self.udp.describe(place),
            describe::Table::Echo => self.echo.describe(place),
        }
    }

    /// Numbers of flows now: TCP, UDP, ping.
    pub fn flows(&self) -> (usize, usize, usize) {
        (self.tcp.len(), self.udp.len(), self.echo.len())
    }

    /// A sandbox sent a frame. Afterwards call [`tcp::TcpTable::take_dirty`] until it returns `None`. Gives what the frame
    /// has cost beyond being carried ([`cost`]).
    pub fn handle_frame(
        &mut self,
        now: Instant,
        port: PortId,
        offload: Offload,
        frame: &[u8],
        host: &mut impl Host,
        link: &mut impl Link,
    ) -> u32 {
        self.segment.counters.frames_in += 1;
        self.segment.counters.bytes_in += frame.len() as u64;
        self.segment.extra = 0;
        if let Err(reason) = self.frame(now, port, offload, frame, host, link) {
            self.segment.counters.drop(reason);
            self.segment.extra += cost::IN_VAIN;
        }
        self.segment.extra
    }

    fn frame(
        &mut self,
        now: Instant,
        port: PortId,
        offload: Offload,
        frame: &[u8],
        host: &mut impl Host,
        link: &mut impl Link,
    ) -> Result<(), DropReason> {
        let (header, rest) = frame.split_first_chunk::<ETHERNET_HEADER>().ok_or(DropReason::Malformed)?;
        let &[d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = header;
        let to = MacAddr([d0, d1, d2, d3, d4, d5]);
        let peer = Peer { port, mac: MacAddr([s0, s1, s2, s3, s4, s5]) };
        if peer.mac.is_group() {
            return Err(DropReason::Malformed);
        }
        if to != self.segment.network.gateway_mac && !to.is_group() {
            return Err(DropReason::NotForUs);
        }
        let parsed = match u16::from_be_bytes([t0, t1]) {
            ETHERTYPE_ARP => {
                self.segment.extra += cost::IN_VAIN;
                return arp::handle(&mut self.segment, peer, rest, link);
            }
            ETHERTYPE_IPV4 if self.segment.network.v4.is_some() => packet::parse_ipv4(peer, offload, rest)?,
            ETHERTYPE_IPV6 if self.segment.network.v6.is_some() => packet::parse_ipv6(peer, offload, rest)?,
            ETHERTYPE_IPV4 | ETHERTYPE_IPV6 => return Err(DropReason::Family),
            _ => return Err(DropReason::EtherType),
        };
        match parsed {
            Parsed::Whole(packet) => self.packet(now, &packet, host, link),
            Parsed::Fragment(fragment) => {
                if !self.segment.source_allowed(peer.port, fragment.src) {
                    return Err(DropReason::Spoofed);
                }
                self.segment.extra += cost::FRAGMENT;
                match self.reassembly.handle_fragment(now, &fragment, &mut self.segment.counters)? {
                    None => Ok(()),
                    Some(whole) => self.packet(now, &whole.packet()?, host, link),
                }
            }
        }
    }

    fn packet(
        &mut self,
        now: Instant,
        packet: &Packet<'_>,
        host: &mut impl Host,
        link: &mut impl Link,
    ) -> Result<(), DropReason> {
        let segment = &mut self.segment;
        let services = segment.network.behaviour.services;
        if packet.src.is_unspecified() {
            // Only somebody who has no address yet: DHCP, duplicate address detection, router solicitation.
            return match packet.protocol {
                IpProtocol::Udp if packet.src.is_ipv4() && !services.dhcp => Err(DropReason::Disabled),
                IpProtocol::Udp if packet.src.is_ipv4() => dhcp::handle(segment, packet, link),
                IpProtocol::Icmpv6 => ndp::handle(segment, packet, link),
                _ => Err(DropReason::Spoofed),
            };
        }
        if !segment.source_allowed(packet.peer.port, packet.src) {
            return Err(DropReason::Spoofed);
        }
        match packet.protocol {
            IpProtocol::Tcp if !services.tcp => Err(DropReason::Disabled),
            IpProtocol::Tcp => self.tcp.handle_segment(now, segment, packet, host, link),
            IpProtocol::Udp => self.udp.handle_packet(now, segment, packet, host, link),
            IpProtocol::Icmp if packet.src.is_ipv4() => icmp::handle(now, segment, &mut self.echo, packet, host, link),
            IpProtocol::Icmpv6 if packet.src.is_ipv6() => {
                icmp::handle(now, segment, &mut self.echo, packet, host, link)
            }
            _ => icmp::refuse_protocol(now, segment, packet, link),
        }
    }

    /// The host's connect for a TCP flow has an outcome. `offender` is who sent the ICMP error, where one did.
    pub fn handle_tcp_outcome(
        &mut self,
        now: Instant,
        flow: TcpId,
        outcome: Result<(), HostError>,
        offender: Option<IpAddr>,
        link: &mut impl Link,
    ) -> tcp::Outcome {
        self.tcp.handle_outcome(now, &mut self.segment, flow, outcome, offender, link)
    }

    /// Connect to a sandbox's port in a client's name, for a published port; see [`tcp::TcpTable::open_published`].
    /// The flow's stream has to be there when the flow is pumped; what becomes of it is told by
    /// [`pump_tcp`](Self::pump_tcp).
    pub fn open_published(
        &mut self,
        now: Instant,
        port: PortId,
        client: SocketAddr,
        service: impl Into<Service>,
        link: &mut impl Link,
    ) -> Result<TcpId, DropReason> {
        self.tcp.open_published(now, &mut self.segment, port, client, service.into(), link)
    }

    /// The stream of a flow from [`open_published`](Self::open_published) could not be had: forget the flow.
    pub fn abandon_published(&mut self, flow: TcpId) {
        self.tcp.abandon(&mut self.segment, flow);
    }

    /// Move a dirty TCP flow's bytes; see [`tcp::TcpTable::pump`].
    pub fn pump_tcp(
        &mut self,
        now: Instant,
        flow: TcpId,
        stream: &mut impl tcp::flow::HostStream,
        link: &mut impl Link,
    ) -> Option<tcp::flow::End> {
        self.tcp.pump(now, &mut self.segment, flow, stream, link)
    }

    /// A datagram came for a UDP flow. With `segment` not 0 it is several of that size (the last may be shorter).
    #[allow(clippy::too_many_arguments)]
    pub fn handle_udp(
        &mut self,
        now: Instant,
        flow: UdpId,
        from: SocketAddr,
        payload: &[u8],
        segment: u16,
        tos: u8,
        link: &mut impl Link,
    ) {
        self.udp.handle_datagram(now, &mut self.segment, flow, from, payload, segment, tos, link);
    }

    /// A client sent a datagram to a published port (with `segment` not 0 several of that size): the sandbox gets it
    /// with the client's own address. `reply` is the way back, for [`Host::published_send`].
    #[allow(clippy::too_many_arguments)]
    pub fn handle_published_datagram(
        &mut self,
        now: Instant,
        port: PortId,
        client: SocketAddr,
        service: impl Into<Service>,
        payload: &[u8],
        segment: u16,
        tos: u8,
        reply: ReplyPath,
        link: &mut impl Link,
    ) {
        let service = service.into();
        let arrival = inbound::Arrival { port, client, service, payload, segment, tos, path: reply };
        self.udp.handle_arrival(now, &mut self.segment, &arrival, link);
    }

    /// These published UDP sockets are closed: the flows of their clients end.
    pub fn end_published_udp(&mut self, closed: impl Fn(ReplyPath) -> bool) {
        self.udp.inbound.end_where(&mut self.segment, closed);
    }

    /// Datagrams that had waited on the host's side to leave together could not be sent.
    pub fn handle_udp_unsent(&mut self, now: Instant, unsent: Unsent<'_>, link: &mut impl Link) {
        self.udp.handle_unsent(now, &mut self.segment, unsent, link);
    }

    /// The host's error queue had an ICMP error for a datagram that this flow had sent to `to`.
    #[allow(clippy::too_many_arguments)]
    pub fn handle_udp_error(
        &mut self,
        now: Instant,
        flow: UdpId,
        to: SocketAddr,
        error: icmp::IcmpError,
        offender: Option<IpAddr>,
        payload: &[u8],
        link: &mut impl Link,
    ) {
        self.udp.handle_error(now, &mut self.segment, flow, to, error, offender, payload, link);
    }

    /// An echo reply came for a ping flow.
    pub fn handle_echo_reply(
        &mut self,
        now: Instant,
        flow: EchoId,
        sequence: u16,
        data: &[u8],
        hop_limit: u8,
        link: &mut impl Link,
    ) {
        self.echo.handle_reply(now, &mut self.segment, flow, sequence, data, hop_limit, link);
    }

    /// An ICMP error came for an echo request of a ping flow.
    #[allow(clippy::too_many_arguments)]
    pub fn handle_echo_error(
        &mut self,
        now: Instant,
        flow: EchoId,
        sequence: u16,
        error: icmp::IcmpError,
        offender: Option<IpAddr>,
        data: &[u8],
        link: &mut impl Link,
    ) {
        self.echo.handle_error(now, &mut self.segment, flow, sequence, error, offender, data, link);
    }

    /// The forwarder answered a question. One whose asker has gone is nobody's, whoever has the port now.
    pub fn handle_dns_answer(&mut self, asker: Asker, message: &[u8], link: &mut impl Link) {
        if !self.segment.source_allowed(asker.peer.port, asker.from.ip()) {
            return;
        }
        udp::send_to_sandbox(
            &mut self.segment,
            asker.peer,
            SocketAddr::new(asker.to, 53),
            asker.from,
            message,
            0,
            0,
            link,
        );
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) if nothing else happens before.
    pub fn next_timeout(&mut self) -> Option<Instant> {
        [
            self.tcp.next_timeout(),
            self.udp.next_timeout(),
            self.echo.next_timeout(),
            self.reassembly.next_timeout(),
            self.advertiser.next_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Time has passed: retransmissions, expiry of flows and of unfinished datagrams, router advertisements.
    pub fn handle_timeout(&mut self, now: Instant, host: &mut impl Host, link: &mut impl Link) {
        self.tcp.handle_timeout(now);
        self.udp.handle_timeout(now, &mut self.segment, host);
        self.echo.handle_timeout(now, host);
        self.reassembly.handle_timeout(now, &mut self.segment, link);
        self.advertiser.handle_timeout(now, &mut self.segment, link);
    }
}
