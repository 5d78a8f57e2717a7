//! DHCPv4 server (RFC 2131, RFC 2132, RFC 3396, RFC 3397).
//!
//! # Theory of operation
//!
//! For clients that configure themselves. The gateway is the only server of its segment and answers with its own
//! address as server identifier. A client is known by its port and hardware address.
//!
//! On a shared network a client gets the address of its port's endpoint and no other, and must be the endpoint: nobody
//! else's hardware address is served there. On an internal one no router is named, for there is no way out.
//!
//! Which address it gets on a network of its own: the one it has; else the one that the plan gives its port's endpoint;
//! else the one it wishes for; else the lowest free of the range. The addresses of the gateway, of DNS, of other ports'
//! endpoints, and those a client declined (something inside the sandbox has them) are not given. Where nothing is free,
//! the declined ones are tried again, and after that the port's client that was silent longest loses its address:
//! a sandbox that restarts its client with a new hardware address each time must not lock itself out.
//!
//! | message | answer |
//! | --- | --- |
//! | DISCOVER | OFFER |
//! | REQUEST (selecting, init-reboot, renewing, rebinding) | ACK when the client may have the address it names, else NAK |
//! | REQUEST that names another server | none |
//! | DECLINE | none; the address is not given for now |
//! | RELEASE | none; the address is free again |
//! | INFORM | ACK without an address |
//!
//! A restarted gateway has forgotten all leases. As there is no other server, it takes a client's word for its
//! address when that is one it could have been given, instead of the silence of RFC 2131, 4.3.2.
//!
//! Leases last a day on paper, but no clock runs here: an address stays with its client until it is released, its
//! port goes, or it is needed. Bindings are bounded for each port.
//!
//! Answers carry mask, router, resolvers, MTU, domain and search list, whether asked for or not, as far as they fit
//! into what the client takes (RFC 2132, 9.10). They are sent with a full checksum, for clients that read packet
//! sockets, and to the broadcast address where the client wants it (RFC 2131, 4.1).
use std::net::{IpAddr, Ipv4Addr};

use smoltcp::wire::{DHCP_CLIENT_PORT, DHCP_SERVER_PORT, DhcpMessageType, DhcpPacket, IpProtocol};

use super::{
    Segment,
    counters::DropReason,
    emit::{self, Ip},
    link::{Link, Peer, PortId},
    packet::{self, Packet},
};
use crate::plan::{Ipv4Layout, MacAddr, Network};

/// Lease time in seconds, with renewal after a half and rebinding after seven eighths of it (RFC 2131, 4.4.5).
const LEASE_SECONDS: u32 = 86_400;
/// Most clients remembered for one port.
const MAX_BINDINGS_OF_A_PORT: usize = 64;
/// Most addresses of the range that are looked at for a free one.
const MAX_SCAN: usize = 16_384;
/// Most declined addresses remembered.
const MAX_DECLINED: usize = 64;

/// Length of a message before its options, magic cookie included.
const FIXED: usize = 240;
/// Shortest message (RFC 1542, 2.1: BOOTP's vendor field of 64 bytes is there).
const MIN_MESSAGE: usize = 300;
/// The largest message every client takes (RFC 2131, 2: an IP datagram of 576 bytes).
const MAX_MESSAGE: usize = 576 - 28;
const MAGIC_COOKIE: [u8; 4] = [99, 130, 83, 99];
const BOOT_REPLY: u8 = 2;
const BROADCAST_FLAG: u16 = 0x8000;

/// Option codes of RFC 2132; 119 is of RFC 3397.
mod option {
    pub const MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DNS: u8 = 6;
    pub const DOMAIN: u8 = 15;
    pub const MTU: u8 = 26;
    pub const BROADCAST: u8 = 28;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER_ID: u8 = 54;
    pub const MESSAGE: u8 = 56;
    pub const MAX_SIZE: u8 = 57;
    pub const RENEWAL: u8 = 58;
    pub const REBINDING: u8 = 59;
    pub const SEARCH: u8 = 119;
    pub const END: u8 = 255;
}

/// Who has which address.
#[derive(Debug, Default)]
pub struct Leases {
    bindings: Vec<Binding>,
    /// Addresses that clients found taken.
    declined: Vec<Ipv4Addr>,
    /// Counts messages; the larger a binding's `used`, the later it was heard of.
    clock: u64,
}

#[derive(Debug)]
struct Binding {
    port: PortId,
    mac: MacAddr,
    address: Ipv4Addr,
    used: u64,
}

/// What a client asks, checked.
#[derive(Debug)]
struct Request {
    kind: DhcpMessageType,
    transaction: [u8; 4],
    mac: MacAddr,
    broadcast: bool,
    /// The address it has (ciaddr); unspecified when it has none.
    current: Ipv4Addr,
    wanted: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    /// Largest message it takes, in bytes.
    room: usize,
}

/// A sandbox sent a UDP packet from 0.0.0.0, or to port 67 of the gateway.
pub fn handle(segment: &mut Segment, packet: &Packet<'_>, link: &mut impl Link) -> Result<(), DropReason> {
    let layout = segment.network.v4.ok_or(DropReason::Family)?;
    let to = packet::v4(packet.dst).ok_or(DropReason::Family)?;
    if to != layout.gateway && !to.is_broadcast() && to != layout.subnet.broadcast() {
        // Only somebody who has no address yet comes here with another destination.
        return Err(DropReason::Spoofed);
    }
    let mut request = Request::parse(message_of(packet)?)?;
    let endpoint = segment.ports.get(&packet.peer.port);
    if segment.network.sharing.is_some() && endpoint.is_none_or(|endpoint| endpoint.mac != request.mac) {
        return Err(DropReason::Spoofed);
    }
    request.room = request.room.min(usize::from(segment.network.mtu).saturating_sub(28).max(MAX_MESSAGE));
    let port = packet.peer.port;
    let planned = segment.ports.get(&port).and_then(|e| e.v4);
    match request.kind {
        DhcpMessageType::Discover => {
            let address = choose(segment, &layout, port, &request, planned).ok_or(DropReason::NoRoom)?;
            answer(segment, &layout, port, &request, DhcpMessageType::Offer, address, link);
        }
        DhcpMessageType::Request => {
            if request.server.is_some_and(|server| server != layout.gateway) {
                // It has chosen another server's offer.
                segment.leases.release(port, request.mac);
                return Ok(());
            }
            let wanted = request.wanted.or(Some(request.current)).filter(|ip| !ip.is_unspecified());
            let wanted = wanted.ok_or(DropReason::Malformed)?;
            if confirm(segment, &layout, port, request.mac, wanted, planned) {
                answer(segment, &layout, port, &request, DhcpMessageType::Ack, wanted, link);
            } else {
                refuse(segment, &layout, port, &request, link);
            }
        }
        DhcpMessageType::Decline => {
            let for_us = request.server.is_none_or(|server| server == layout.gateway);
            if let (true, Some(address)) = (for_us, request.wanted) {
                segment.leases.decline(port, request.mac, address);
            }
        }
        DhcpMessageType::Release => segment.leases.release(port, request.mac),
        DhcpMessageType::Inform => {
            if request.current.is_unspecified() {
                return Err(DropReason::Malformed);
            }
            answer(segment, &layout, port, &request, DhcpMessageType::Ack, Ipv4Addr::UNSPECIFIED, link);
        }
        DhcpMessageType::Offer | DhcpMessageType::Ack | DhcpMessageType::Nak => return Err(DropReason::Spoofed),
        DhcpMessageType::Unknown(_) => return Err(DropReason::Protocol),
    }
    Ok(())
}

/// The UDP payload of a datagram to port 67.
fn message_of<'a>(packet: &Packet<'a>) -> Result<&'a [u8], DropReason> {
    let datagram = packet.payload();
    let header: &[u8; 8] = datagram.first_chunk().ok_or(DropReason::Malformed)?;
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let datagram = datagram.get(..length).filter(|d| d.len() >= 8).ok_or(DropReason::Malformed)?;
    if u16::from_be_bytes([header[2], header[3]]) != DHCP_SERVER_PORT {
        return Err(DropReason::Spoofed);
    }
    let has_checksum = header[6..8] != [0, 0];
    if packet.checksum_to_verify()
        && has_checksum
        && !emit::checksum_holds(packet.src, packet.dst, packet.protocol, datagram)
    {
        return Err(DropReason::Checksum);
    }
    Ok(&datagram[8..])
}

impl Request {
    fn parse(message: &[u8]) -> Result<Request, DropReason> {
        let view = DhcpPacket::new_checked(message).map_err(|_| DropReason::Malformed)?;
        let is_request = message[0] == 1;
        let is_ethernet = message[1] == 1 && message[2] == 6;
        if !is_request || !is_ethernet || message[236..240] != MAGIC_COOKIE {
            return Err(DropReason::Malformed);
        }
        if !view.relay_agent_ip().is_unspecified() {
            return Err(DropReason::Protocol);
        }
        let mac = MacAddr(view.client_hardware_address().0);
        if mac.is_group() {
            return Err(DropReason::Malformed);
        }
        let mut request = Request {
            kind: DhcpMessageType::Unknown(0),
            transaction: [message[4], message[5], message[6], message[7]],
            mac,
            broadcast: u16::from_be_bytes([message[10], message[11]]) & BROADCAST_FLAG != 0,
            current: view.client_ip(),
            wanted: None,
            server: None,
            room: MAX_MESSAGE,
        };
        for option in view.options() {
            match (option.kind, option.data) {
                (option::MESSAGE_TYPE, &[kind]) => request.kind = DhcpMessageType::from(kind),
                (option::REQUESTED_ADDRESS, &[a, b, c, d]) => request.wanted = Some(Ipv4Addr::new(a, b, c, d)),
                (option::SERVER_ID, &[a, b, c, d]) => request.server = Some(Ipv4Addr::new(a, b, c, d)),
                (option::MAX_SIZE, &[high, low]) => {
                    let datagram = usize::from(u16::from_be_bytes([high, low]));
                    request.room = datagram.saturating_sub(28).max(MAX_MESSAGE);
                }
                (option::MESSAGE_TYPE | option::REQUESTED_ADDRESS | option::SERVER_ID | option::MAX_SIZE, _) => {
                    return Err(DropReason::Malformed);
                }
                _ => {}
            }
        }
        Ok(request)
    }
}

impl Leases {
    /// The port's sandbox has gone; its addresses are free.
    pub fn remove_port(&mut self, port: PortId) {
        self.bindings.retain(|b| b.port != port);
    }

    fn of(&self, port: PortId, mac: MacAddr) -> Option<Ipv4Addr> {
        self.bindings.iter().find(|b| b.port == port && b.mac == mac).map(|b| b.address)
    }

    fn is_bound(&self, address: Ipv4Addr) -> bool {
        self.bindings.iter().any(|b| b.address == address)
    }

    /// From now on this client, and nobody else, has this address.
    fn bind(&mut self, port: PortId, mac: MacAddr, address: Ipv4Addr) {
        self.clock += 1;
        self.bindings.retain(|b| b.address != address && !(b.port == port && b.mac == mac));
        if self.bindings.iter().filter(|b| b.port == port).count() >= MAX_BINDINGS_OF_A_PORT {
            self.forget_oldest(port);
        }
        self.bindings.push(Binding { port, mac, address, used: self.clock });
    }

    /// The address of the port's client that was silent longest, which loses it.
    fn forget_oldest(&mut self, port: PortId) -> Option<Ipv4Addr> {
        let of_port = self.bindings.iter().enumerate().filter(|(_, b)| b.port == port);
        let (index, _) = of_port.min_by_key(|(_, b)| b.used)?;
        Some(self.bindings.swap_remove(index).address)
    }

    fn release(&mut self, port: PortId, mac: MacAddr) {
        self.bindings.retain(|b| !(b.port == port && b.mac == mac));
    }

    fn decline(&mut self, port: PortId, mac: MacAddr, address: Ipv4Addr) {
        if self.of(port, mac) != Some(address) {
            return;
        }
        self.release(port, mac);
        if self.declined.len() >= MAX_DECLINED {
            self.declined.remove(0);
        }
        self.declined.push(address);
    }
}

/// An address that this client may have, bound to it.
fn choose(
    segment: &mut Segment,
    layout: &Ipv4Layout,
    port: PortId,
    request: &Request,
    planned: Option<Ipv4Addr>,
) -> Option<Ipv4Addr> {
    if segment.network.sharing.is_some() {
        return planned;
    }
    let address = match segment.leases.of(port, request.mac) {
        Some(address) => address,
        None => free_address(segment, layout, port, request.wanted, planned)
            .or_else(|| {
                segment.leases.declined.clear();
                free_address(segment, layout, port, request.wanted, planned)
            })
            .or_else(|| segment.leases.forget_oldest(port))?,
    };
    segment.leases.bind(port, request.mac, address);
    Some(address)
}

fn free_address(
    segment: &Segment,
    layout: &Ipv4Layout,
    port: PortId,
    wanted: Option<Ipv4Addr>,
    planned: Option<Ipv4Addr>,
) -> Option<Ipv4Addr> {
    let free = |ip: &Ipv4Addr| may_have(segment, layout, port, *ip, planned) && !segment.leases.is_bound(*ip);
    let (first, last) = layout.dhcp_range;
    let range = (u32::from(first)..=u32::from(last)).take(MAX_SCAN).map(Ipv4Addr::from);
    planned.filter(free).or_else(|| wanted.filter(free)).or_else(|| range.into_iter().find(free))
}

/// Is this an address that a client on this port can be given, whoever has it now?
fn may_have(segment: &Segment, layout: &Ipv4Layout, port: PortId, ip: Ipv4Addr, planned: Option<Ipv4Addr>) -> bool {
    let (first, last) = layout.dhcp_range;
    segment.source_allowed(port, ip.into())
        && (planned == Some(ip) || (first..=last).contains(&ip))
        && segment.has(ip.into()).is_none_or(|other| other == port)
        && !segment.leases.declined.contains(&ip)
}

/// May the client have the address it names? Then it is bound to it.
fn confirm(
    segment: &mut Segment,
    layout: &Ipv4Layout,
    port: PortId,
    mac: MacAddr,
    wanted: Ipv4Addr,
    planned: Option<Ipv4Addr>,
) -> bool {
    if segment.network.sharing.is_some() {
        return planned == Some(wanted);
    }
    let has = segment.leases.of(port, mac) == Some(wanted);
    let free = !segment.leases.is_bound(wanted) && may_have(segment, layout, port, wanted, planned);
    if has || free {
        segment.leases.bind(port, mac, wanted);
    }
    has || free
}

/// OFFER or ACK. `address` is unspecified in the answer to INFORM, which then has no lease either.
fn answer(
    segment: &mut Segment,
    layout: &Ipv4Layout,
    port: PortId,
    request: &Request,
    kind: DhcpMessageType,
    address: Ipv4Addr,
    link: &mut impl Link,
) {
    let network = &segment.network;
    let mut reply = Reply::new(request, kind, layout.gateway, address);
    if !address.is_unspecified() {
        reply.put(option::LEASE_TIME, &LEASE_SECONDS.to_be_bytes());
        reply.put(option::RENEWAL, &(LEASE_SECONDS / 2).to_be_bytes());
        reply.put(option::REBINDING, &(LEASE_SECONDS / 8 * 7).to_be_bytes());
    }
    reply.put(option::MASK, &layout.subnet.netmask().octets());
    reply.put(option::BROADCAST, &layout.subnet.broadcast().octets());
    if !network.sharing.is_some_and(|sharing| sharing.internal) {
        reply.put(option::ROUTER, &layout.gateway.octets());
    }
    let resolvers: Vec<u8> = resolvers(network, layout).iter().take(16).flat_map(Ipv4Addr::octets).collect();
    if !resolvers.is_empty() {
        reply.put(option::DNS, &resolvers);
    }
    reply.put(option::MTU, &network.mtu.to_be_bytes());
    if let Some(domain) = network.dns_search.first() {
        reply.put(option::DOMAIN, domain.trim_end_matches('.').as_bytes());
    }
    reply.put_long(option::SEARCH, &encode_domains(&network.dns_search, 2 * 255));
    let message = reply.finish();

    let (to, mac) = if !request.current.is_unspecified() {
        (request.current, request.mac)
    } else if request.broadcast {
        (Ipv4Addr::BROADCAST, MacAddr::BROADCAST)
    } else {
        (address, request.mac)
    };
    send(segment, layout, Peer { port, mac }, to, &message, link);
}

/// NAK, which is always broadcast: the client's address is wrong (RFC 2131, 4.1).
fn refuse(segment: &mut Segment, layout: &Ipv4Layout, port: PortId, request: &Request, link: &mut impl Link) {
    let mut reply = Reply::new(request, DhcpMessageType::Nak, layout.gateway, Ipv4Addr::UNSPECIFIED);
    reply.put(option::MESSAGE, b"address not available on this network");
    let message = reply.finish();
    send(segment, layout, Peer { port, mac: MacAddr::BROADCAST }, Ipv4Addr::BROADCAST, &message, link);
}

fn send(segment: &mut Segment, layout: &Ipv4Layout, peer: Peer, to: Ipv4Addr, message: &[u8], link: &mut impl Link) {
    let ip = Ip::new(layout.gateway.into(), to.into(), IpProtocol::Udp);
    emit::udp_checksummed(segment, peer, &ip, DHCP_SERVER_PORT, DHCP_CLIENT_PORT, message, link);
}

/// The IPv4 resolvers that are announced.
fn resolvers(network: &Network, layout: &Ipv4Layout) -> Vec<Ipv4Addr> {
    if network.dns_servers.is_empty() {
        return if network.dns_enabled { vec![layout.dns] } else { Vec::new() };
    }
    network.dns_servers.iter().filter_map(|&ip: &IpAddr| packet::v4(ip)).collect()
}

/// Domains one after the other, as labels with a length in front, uncompressed (RFC 1035, 3.1), as RFC 3397 and
/// RFC 8106 want them. What is no domain name is left out, and so is what exceeds `room` bytes.
pub(super) fn encode_domains(domains: &[String], room: usize) -> Vec<u8> {
    let mut all = Vec::new();
    for domain in domains {
        let domain = domain.trim_end_matches('.');
        let mut encoded = Vec::with_capacity(domain.len() + 2);
        let mut valid = true;
        for label in domain.split('.') {
            match u8::try_from(label.len()) {
                Ok(length @ 1..=63) => encoded.push(length),
                _ => valid = false,
            }
            encoded.extend_from_slice(label.as_bytes());
        }
        encoded.push(0);
        if valid && encoded.len() <= 255 && all.len() + encoded.len() <= room {
            all.extend_from_slice(&encoded);
        }
    }
    all
}

/// A message being written. An option that does not fit any more is left out.
struct Reply {
    bytes: Vec<u8>,
    room: usize,
}

impl Reply {
    fn new(request: &Request, kind: DhcpMessageType, server: Ipv4Addr, address: Ipv4Addr) -> Reply {
        let mut bytes = vec![0; FIXED];
        bytes[..3].copy_from_slice(&[BOOT_REPLY, 1, 6]);
        bytes[4..8].copy_from_slice(&request.transaction);
        if request.broadcast {
            bytes[10..12].copy_from_slice(&BROADCAST_FLAG.to_be_bytes());
        }
        if kind != DhcpMessageType::Nak {
            bytes[12..16].copy_from_slice(&request.current.octets());
        }
        bytes[16..20].copy_from_slice(&address.octets());
        bytes[28..34].copy_from_slice(&request.mac.0);
        bytes[236..240].copy_from_slice(&MAGIC_COOKIE);
        let mut reply = Reply { bytes, room: request.room };
        reply.put(option::MESSAGE_TYPE, &[kind.into()]);
        reply.put(option::SERVER_ID, &server.octets());
        reply
    }

    /// One option of at most 255 bytes; empty ones are left out, they have no meaning here.
    fn put(&mut self, code: u8, data: &[u8]) {
        let Ok(length @ 1..) = u8::try_from(data.len()) else { return };
        // One byte is kept for the end.
        if self.bytes.len() + 2 + data.len() < self.room {
            self.bytes.extend_from_slice(&[code, length]);
            self.bytes.extend_from_slice(data);
        }
    }

    /// An option that may be longer than 255 bytes: in several pieces, all or none (RFC 3396, 5).
    fn put_long(&mut self, code: u8, data: &[u8]) {
        let pieces = data.len().div_ceil(255);
        if self.bytes.len() + data.len() + 2 * pieces < self.room {
            data.chunks(255).for_each(|piece| self.put(code, piece));
        }
    }

    fn finish(mut self) -> Vec<u8> {
        self.bytes.push(option::END);
        if self.bytes.len() < MIN_MESSAGE {
            self.bytes.resize(MIN_MESSAGE, 0);
        }
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    use smoltcp::wire::DhcpRepr;

    use super::super::emit::testing::*;
    use super::*;
    use crate::gateway::link::Offload;
    use crate::gateway::packet::Parsed;

    const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);

    /// A client's message, written by hand.
    struct Message {
        kind: u8,
        mac: MacAddr,
        current: Ipv4Addr,
        flags: u16,
        options: Vec<(u8, Vec<u8>)>,
    }

    fn message(kind: DhcpMessageType) -> Message {
        Message { kind: kind.into(), mac: SANDBOX_MAC, current: Ipv4Addr::UNSPECIFIED, flags: 0, options: Vec::new() }
    }

    impl Message {
        fn with(mut self, code: u8, data: &[u8]) -> Message {
            self.options.push((code, data.to_vec()));
            self
        }

        fn wants(self, address: Ipv4Addr) -> Message {
            self.with(50, &address.octets())
        }

        fn bytes(&self) -> Vec<u8> {
            let mut bytes = vec![0; 240];
            bytes[..3].copy_from_slice(&[1, 1, 6]);
            bytes[4..8].copy_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
            bytes[10..12].copy_from_slice(&self.flags.to_be_bytes());
            bytes[12..16].copy_from_slice(&self.current.octets());
            bytes[28..34].copy_from_slice(&self.mac.0);
            bytes[236..].copy_from_slice(&MAGIC_COOKIE);
            bytes.extend_from_slice(&[53, 1, self.kind]);
            for (code, data) in &self.options {
                bytes.extend_from_slice(&[*code, data.len() as u8]);
                bytes.extend_from_slice(data);
            }
            bytes.push(255);
            bytes
        }

        fn packet(&self) -> Vec<u8> {
            let (src, dst) = match self.current.is_unspecified() {
                true => (self.current, Ipv4Addr::BROADCAST),
                false => (self.current, GATEWAY_V4),
            };
            let mut udp = Vec::new();
            etherparse::PacketBuilder::ipv4(src.octets(), dst.octets(), 64)
                .udp(68, 67)
                .write(&mut udp, &self.bytes())
                .unwrap();
            udp
        }
    }

    #[derive(Debug, PartialEq)]
    struct Answer {
        kind: DhcpMessageType,
        address: Ipv4Addr,
        to: Ipv4Addr,
        to_mac: MacAddr,
        options: Vec<(u8, Vec<u8>)>,
        dhcp: Vec<u8>,
    }

    impl Answer {
        fn option(&self, code: u8) -> Option<&[u8]> {
            self.options.iter().find(|(c, _)| *c == code).map(|(_, d)| &d[..])
        }
    }

    fn feed(segment: &mut Segment, port: PortId, packet: &[u8]) -> Result<Option<Answer>, DropReason> {
        let peer = Peer { port, mac: SANDBOX_MAC };
        let Parsed::Whole(packet) = packet::parse_ipv4(peer, Offload::default(), packet)? else { panic!() };
        let mut link = Recorder::default();
        handle(segment, &packet, &mut link)?;
        if link.frames.is_empty() {
            return Ok(None);
        }
        assert_eq!((link.frames[0].0, link.frames[0].1), (port, Offload::default()));
        let frame = link.one();
        let sliced = SlicedPacket::from_ethernet(frame).unwrap();
        let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) = (sliced.net, sliced.transport) else {
            panic!()
        };
        let header = ip.header().to_header();
        assert_eq!(header.source, GATEWAY_V4.octets());
        assert_eq!((udp.source_port(), udp.destination_port()), (67, 68));
        assert_eq!(udp.checksum(), udp.to_header().calc_checksum_ipv4(&header, udp.payload()).unwrap());
        let view = DhcpPacket::new_checked(udp.payload()).unwrap();
        let repr = DhcpRepr::parse(&view).unwrap();
        assert_eq!((repr.transaction_id, repr.server_identifier), (0xdead_beef, Some(GATEWAY_V4)));
        assert!((MIN_MESSAGE..=1472).contains(&udp.payload().len()));
        Ok(Some(Answer {
            kind: repr.message_type,
            address: repr.your_ip,
            to: header.destination.into(),
            to_mac: MacAddr(frame[..6].try_into().unwrap()),
            options: view.options().map(|o| (o.kind, o.data.to_vec())).collect(),
            dhcp: udp.payload().to_vec(),
        }))
    }

    #[track_caller]
    fn say(segment: &mut Segment, message: &Message) -> Answer {
        feed(segment, PEER.port, &message.packet()).unwrap().expect("no answer")
    }

    fn wide(segment: &mut Segment, last: u8) {
        let layout = segment.network.v4.as_mut().unwrap();
        layout.dhcp_range = (Ipv4Addr::new(10, 0, 2, 1), Ipv4Addr::new(10, 0, 2, last));
    }

    fn at(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 2, last)
    }

    #[test]
    fn a_client_gets_the_planned_address_and_all_it_needs() {
        let mut segment = segment(1400);
        let offer = say(&mut segment, &message(DhcpMessageType::Discover));
        assert_eq!((offer.kind, offer.address, offer.to), (DhcpMessageType::Offer, SANDBOX_V4, SANDBOX_V4));
        assert_eq!(offer.to_mac, SANDBOX_MAC);
        let request = message(DhcpMessageType::Request).wants(SANDBOX_V4).with(54, &GATEWAY_V4.octets());
        let ack = say(&mut segment, &request);
        assert_eq!((ack.kind, ack.address), (DhcpMessageType::Ack, SANDBOX_V4));
        assert_eq!(ack.option(1), Some(&[255, 255, 255, 0][..]));
        assert_eq!(ack.option(3), Some(&GATEWAY_V4.octets()[..]));
        assert_eq!(ack.option(6), Some(&DNS_V4.octets()[..]));
        assert_eq!(ack.option(26), Some(&1400u16.to_be_bytes()[..]));
        assert_eq!(ack.option(15), Some(&b"example.org"[..]));
        assert_eq!(ack.option(119), Some(&b"\x07example\x03org\0\x04corp\x07example\x03org\0"[..]));
        assert_eq!(ack.option(51), Some(&86_400u32.to_be_bytes()[..]));
        assert_eq!(ack.option(58), Some(&43_200u32.to_be_bytes()[..]));
        assert_eq!(ack.option(59), Some(&75_600u32.to_be_bytes()[..]));
        assert_eq!(ack.option(28), Some(&[10, 0, 2, 255][..]));
    }

    #[test]
    fn given_resolvers_replace_the_dns_address_and_no_dns_means_none() {
        let mut segment = segment(1500);
        segment.network.dns_servers = vec!["9.9.9.9".parse().unwrap(), "2620:fe::9".parse().unwrap()];
        let offer = say(&mut segment, &message(DhcpMessageType::Discover));
        assert_eq!(offer.option(6), Some(&[9, 9, 9, 9][..]));
        segment.network.dns_servers.clear();
        segment.network.dns_enabled = false;
        segment.network.dns_search.clear();
        let offer = say(&mut segment, &message(DhcpMessageType::Discover));
        assert_eq!((offer.option(6), offer.option(15), offer.option(119)), (None, None, None));
    }

    #[test]
    fn the_broadcast_flag_is_honoured_and_returned() {
        let offer = say(&mut segment(1500), &Message { flags: 0x8000, ..message(DhcpMessageType::Discover) });
        assert_eq!((offer.to, offer.to_mac), (Ipv4Addr::BROADCAST, MacAddr::BROADCAST));
        assert_eq!((offer.address, &offer.dhcp[10..12]), (SANDBOX_V4, &[0x80, 0][..]));
    }

    #[test]
    fn after_a_restart_a_client_keeps_its_address_and_a_wrong_one_is_refused() {
        // Init-reboot, and renewing at a server that knows nothing of it.
        let ack = say(&mut segment(1500), &message(DhcpMessageType::Request).wants(SANDBOX_V4));
        assert_eq!((ack.kind, ack.address), (DhcpMessageType::Ack, SANDBOX_V4));
        let ack = say(&mut segment(1500), &Message { current: SANDBOX_V4, ..message(DhcpMessageType::Request) });
        assert_eq!((ack.kind, ack.to, ack.to_mac), (DhcpMessageType::Ack, SANDBOX_V4, SANDBOX_MAC));
        for wrong in [Ipv4Addr::new(192, 168, 1, 5), at(101), GATEWAY_V4, DNS_V4, at(255), at(0)] {
            let nak = say(&mut segment(1500), &message(DhcpMessageType::Request).wants(wrong));
            assert_eq!((nak.kind, nak.to, nak.to_mac), (DhcpMessageType::Nak, Ipv4Addr::BROADCAST, MacAddr::BROADCAST));
            assert_eq!((nak.address, nak.option(51)), (Ipv4Addr::UNSPECIFIED, None));
        }
    }

    #[test]
    fn several_clients_get_addresses_of_their_own_and_none_of_the_gateways() {
        let mut segment = segment(1500);
        wide(&mut segment, 6);
        let discover = |n| Message { mac: MacAddr([2, 0, 0, 0, 0, n]), ..message(DhcpMessageType::Discover) };
        let given: Vec<Ipv4Addr> = (0..5).map(|n| say(&mut segment, &discover(n)).address).collect();
        assert_eq!(given, [SANDBOX_V4, at(1), at(4), at(5), at(6)]);
        assert_eq!(say(&mut segment, &discover(2)).address, at(4));
        // One more: the one that was silent longest loses its address.
        assert_eq!(say(&mut segment, &discover(5)).address, SANDBOX_V4);
        let renewal = Message { mac: MacAddr([2, 0, 0, 0, 0, 0]), ..message(DhcpMessageType::Request) };
        assert_eq!(say(&mut segment, &renewal.wants(SANDBOX_V4)).kind, DhcpMessageType::Nak);
    }

    #[test]
    fn the_address_of_another_ports_endpoint_is_not_given() {
        let mut segment = segment(1500);
        wide(&mut segment, 100);
        let other = crate::plan::Endpoint { v4: None, mac: OTHER, ..endpoint() };
        segment.add(PortId(2), other);
        let wants = Message { mac: OTHER, ..message(DhcpMessageType::Discover) }.wants(SANDBOX_V4);
        let offer = feed(&mut segment, PortId(2), &wants.packet()).unwrap().unwrap();
        assert_eq!(offer.address, at(1));
        segment.leases.remove_port(PortId(2));
        assert!(segment.leases.bindings.is_empty());
    }

    #[test]
    fn on_a_shared_network_each_endpoint_is_offered_its_own_address_and_no_other() {
        let mut segment = segment(1500);
        segment.network.sharing = Some(crate::plan::Sharing { internal: false, icc: true });
        wide(&mut segment, 50);
        let wish = message(DhcpMessageType::Discover).wants(at(40));
        let offer = say(&mut segment, &wish);
        assert_eq!((offer.address, offer.option(3)), (SANDBOX_V4, Some(&GATEWAY_V4.octets()[..])));
        assert_eq!(say(&mut segment, &message(DhcpMessageType::Request).wants(SANDBOX_V4)).kind, DhcpMessageType::Ack);
        assert_eq!(say(&mut segment, &message(DhcpMessageType::Request).wants(at(40))).kind, DhcpMessageType::Nak);
        let stranger = Message { mac: OTHER, ..message(DhcpMessageType::Discover) };
        assert_eq!(feed(&mut segment, PEER.port, &stranger.packet()), Err(DropReason::Spoofed));
        segment.network.sharing = Some(crate::plan::Sharing { internal: true, icc: true });
        assert_eq!(say(&mut segment, &message(DhcpMessageType::Discover)).option(3), None, "no way out");
    }

    #[test]
    fn a_wish_is_granted_where_it_is_free() {
        let mut segment = segment(1500);
        wide(&mut segment, 50);
        say(&mut segment, &message(DhcpMessageType::Discover));
        let wish = Message { mac: OTHER, ..message(DhcpMessageType::Discover) }.wants(at(40));
        assert_eq!(say(&mut segment, &wish).address, at(40));
    }

    #[test]
    fn declined_addresses_are_avoided_until_nothing_else_is_left() {
        let mut segment = segment(1500);
        wide(&mut segment, 1);
        say(&mut segment, &message(DhcpMessageType::Discover));
        let decline = |ip| message(DhcpMessageType::Decline).wants(ip).with(54, &GATEWAY_V4.octets());
        assert_eq!(feed(&mut segment, PEER.port, &decline(SANDBOX_V4).packet()), Ok(None));
        assert_eq!(say(&mut segment, &message(DhcpMessageType::Discover)).address, at(1));
        // Somebody else's address cannot be declined.
        assert_eq!(feed(&mut segment, PEER.port, &decline(at(77)).packet()), Ok(None));
        assert_eq!(segment.leases.declined, [SANDBOX_V4]);
        assert_eq!(feed(&mut segment, PEER.port, &decline(at(1)).packet()), Ok(None));
        assert_eq!(say(&mut segment, &message(DhcpMessageType::Discover)).address, SANDBOX_V4);
    }

    #[test]
    fn a_released_address_is_free_again() {
        let mut segment = segment(1500);
        say(&mut segment, &message(DhcpMessageType::Discover));
        let release = Message { current: SANDBOX_V4, ..message(DhcpMessageType::Release) };
        assert_eq!(feed(&mut segment, PEER.port, &release.packet()), Ok(None));
        let other = Message { mac: OTHER, ..message(DhcpMessageType::Request) };
        assert_eq!(say(&mut segment, &other.wants(SANDBOX_V4)).kind, DhcpMessageType::Ack);
    }

    #[test]
    fn inform_is_answered_without_an_address() {
        let mut segment = segment(1500);
        let ack = say(&mut segment, &Message { current: at(9), ..message(DhcpMessageType::Inform) });
        assert_eq!((ack.kind, ack.address, ack.to), (DhcpMessageType::Ack, Ipv4Addr::UNSPECIFIED, at(9)));
        assert_eq!((ack.option(51), ack.option(6)), (None, Some(&DNS_V4.octets()[..])));
        assert!(segment.leases.bindings.is_empty());
    }

    #[test]
    fn a_request_to_another_server_is_left_to_it() {
        let mut segment = segment(1500);
        say(&mut segment, &message(DhcpMessageType::Discover));
        let request = message(DhcpMessageType::Request).wants(SANDBOX_V4).with(54, &[10, 0, 2, 9]);
        assert_eq!(feed(&mut segment, PEER.port, &request.packet()), Ok(None));
        assert!(segment.leases.bindings.is_empty());
    }

    #[test]
    fn a_long_search_list_is_cut_to_what_the_client_takes() {
        let mut segment = segment(1500);
        segment.network.dns_search = (0..40).map(|i| format!("domain-number-{i}.example.org")).collect();
        let small = say(&mut segment, &message(DhcpMessageType::Discover));
        assert!(small.dhcp.len() <= MAX_MESSAGE);
        assert_eq!(small.option(119), None);
        let large = say(&mut segment, &message(DhcpMessageType::Discover).with(57, &1500u16.to_be_bytes()));
        let lengths: Vec<usize> = large.options.iter().filter(|(c, _)| *c == 119).map(|(_, d)| d.len()).collect();
        assert_eq!(lengths.len(), 2);
        assert_eq!(lengths[0], 255);
    }

    #[test]
    fn names_that_are_none_are_left_out() {
        let names = ["", ".", "a..b", &"x".repeat(64), "good.", &"long.".repeat(60)].map(str::to_owned);
        assert_eq!(encode_domains(&names, 1000), b"\x04good\0");
        assert_eq!(encode_domains(&names, 5), b"");
    }

    #[test]
    fn malformed_messages_are_dropped() {
        let mut segment = segment(1500);
        let right = message(DhcpMessageType::Discover);
        let whole = right.packet();
        for length in 0..whole.len() - 1 {
            // The headers say what is there, the message is cut.
            let cut = &right.bytes()[..length.saturating_sub(28).min(239)];
            let mut packet = Vec::new();
            let to = Ipv4Addr::BROADCAST.octets();
            etherparse::PacketBuilder::ipv4([0; 4], to, 64).udp(68, 67).write(&mut packet, cut).unwrap();
            assert_eq!(feed(&mut segment, PEER.port, &packet), Err(DropReason::Malformed));
        }
        let mut wrong = whole.clone();
        wrong[28 + 100] ^= 1;
        assert_eq!(feed(&mut segment, PEER.port, &wrong), Err(DropReason::Checksum));
        let malformed = Err(DropReason::Malformed);
        for wrong in [
            right.bytes().len().to_be_bytes().to_vec(),
            [[2].as_slice(), &right.bytes()[1..]].concat(),
            [[1, 6].as_slice(), &right.bytes()[2..]].concat(),
            [&right.bytes()[..236], &[0; 8]].concat(),
            Message { mac: MacAddr::BROADCAST, ..message(DhcpMessageType::Discover) }.bytes(),
            message(DhcpMessageType::Discover).with(50, &[1]).bytes(),
            message(DhcpMessageType::Request).bytes(),
            message(DhcpMessageType::Inform).bytes(),
        ] {
            let mut packet = Vec::new();
            let to = Ipv4Addr::BROADCAST.octets();
            etherparse::PacketBuilder::ipv4([0; 4], to, 64).udp(68, 67).write(&mut packet, &wrong).unwrap();
            assert_eq!(feed(&mut segment, PEER.port, &packet), malformed);
        }
        let offer = message(DhcpMessageType::Offer).packet();
        assert_eq!(feed(&mut segment, PEER.port, &offer), Err(DropReason::Spoofed));
    }

    #[test]
    fn other_datagrams_without_an_address_are_spoofed() {
        let mut packet = Vec::new();
        let builder = etherparse::PacketBuilder::ipv4([0; 4], [192, 0, 2, 1], 64).udp(68, 67);
        builder.write(&mut packet, &message(DhcpMessageType::Discover).bytes()).unwrap();
        assert_eq!(feed(&mut segment(1500), PEER.port, &packet), Err(DropReason::Spoofed));
        let mut packet = Vec::new();
        let builder = etherparse::PacketBuilder::ipv4([0; 4], [255; 4], 64).udp(68, 69);
        builder.write(&mut packet, b"no dhcp").unwrap();
        assert_eq!(feed(&mut segment(1500), PEER.port, &packet), Err(DropReason::Spoofed));
    }
}
