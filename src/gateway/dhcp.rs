//! DHCPv4 server (RFC 2131, RFC 2132, RFC 3396, RFC 3397, RFC 3442, RFC 4702).
//!
//! # Theory of operation
//!
//! For clients that configure themselves. The gateway is the only server of its segment and answers with its own
//! address as server identifier. A client is known by its port and hardware address.
//!
//! On a shared network a client gets the address of its port's endpoint and no other, and must be the endpoint: nobody
//! else's hardware address is served there. On an internal one no router is named, for there is no way out.
//!
//! Which address it gets on a network of its own: the one it has; else the one that the plan gives its port's endpoint,
//! if the range has it; else the one it wishes for; else the lowest free of the range. The addresses of the gateway, of DNS, of other ports'
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
//! Answers carry mask, router, resolvers, MTU, domain and search list, the client's hostname and full name, whatever of
//! these the network announces, whether asked for or not, as far as they fit into what the client takes (RFC 2132,
//! 9.10). A router that is not in the subnet is on the link all the same: a route to it comes first (RFC 3442). They are sent with a full checksum, for clients that read packet
//! sockets, and to the broadcast address where the client wants it (RFC 2131, 4.1).
use std::net::Ipv4Addr;

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
/// Before the name in option 81: its encoding is that of DNS, and nobody updates DNS (flags E and N); two fields that
/// mean nothing any more (RFC 4702, 2.1 and 2.2).
const FQDN_HEADER: [u8; 3] = [0x0c, 255, 255];
const MAGIC_COOKIE: [u8; 4] = [99, 130, 83, 99];
const BOOT_REPLY: u8 = 2;
const BROADCAST_FLAG: u16 = 0x8000;

/// Option codes of RFC 2132; 81 is of RFC 4702, 119 of RFC 3397, 121 of RFC 3442.
mod option {
    pub const MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DNS: u8 = 6;
    pub const HOSTNAME: u8 = 12;
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
    pub const FQDN: u8 = 81;
    pub const SEARCH: u8 = 119;
    pub const ROUTES: u8 = 121;
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
    if to != layout.gateway && !to.is_broadcast() && layout.broadcast() != Some(to) {
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
    let planned = planned.filter(|ip| (first..=last).contains(ip));
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
    if let Some(broadcast) = layout.broadcast() {
        reply.put(option::BROADCAST, &broadcast.octets());
    }
    if !network.sharing.is_some_and(|sharing| sharing.internal) {
        let [a, b, c, d] = layout.gateway.octets();
        if !layout.subnet.contains(&layout.gateway) {
            // Who reads this does not read the other (RFC 3442): to the router on the link, and by it to all.
            reply.put(option::ROUTES, &[32, a, b, c, d, 0, 0, 0, 0, 0, a, b, c, d]);
        }
        reply.put(option::ROUTER, &[a, b, c, d]);
    }
    let resolvers: Vec<u8> = resolvers(network, layout).iter().take(16).flat_map(Ipv4Addr::octets).collect();
    if !resolvers.is_empty() {
        reply.put(option::DNS, &resolvers);
    }
    let announcements = &network.behaviour.announcements;
    if announcements.mtu {
        reply.put(option::MTU, &network.mtu.to_be_bytes());
    }
    if let Some(hostname) = &announcements.hostname {
        reply.put(option::HOSTNAME, hostname.as_bytes());
    }
    let name = encode_domains(announcements.fqdn.as_slice(), 255 - FQDN_HEADER.len());
    if !name.is_empty() {
        reply.put(option::FQDN, &[&FQDN_HEADER[..], &name].concat());
    }
    let search = network.announced_search();
    if let Some(domain) = search.first() {
        reply.put(option::DOMAIN, domain.trim_end_matches('.').as_bytes());
    }
    reply.put_long(option::SEARCH, &encode_domains(search, 2 * 255));
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
    network.announced_resolvers(layout.dns.into()).into_iter().filter_map(packet::v4).collect()
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
mod tests;
