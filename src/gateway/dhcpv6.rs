//! DHCPv6 server (RFC 8415, RFC 3646, RFC 4704).
//!
//! # Theory of operation
//!
//! For clients that want to be told their IPv6 address instead of making one; offered where the network says so
//! ([`Services::dhcpv6`](crate::plan::Services)), and router advertisements then say that it is there. There is one
//! address to give, that of the client's endpoint, so there is nothing to remember: whoever asks at its port gets it, and
//! whoever renews another is told that it is void. A sandbox whose client forgets its identifier gets the address again.
//!
//! | message | answer |
//! | --- | --- |
//! | Solicit | Advertise, or Reply where the client wants rapid commit |
//! | Request, Renew, Rebind | Reply with the address; lifetimes of 0 for any other |
//! | Confirm | Reply: whether its addresses are of this link; none when it names no address |
//! | Release, Decline | Reply: success |
//! | Information-request | Reply without an address |
//! | any of those that names another server; Advertise, Reply, Reconfigure, relayed ones | none |
//!
//! The first IA_NA of a message gets the address, others are told that there is none (RFC 8415, 18.3.1), and so are those
//! that want temporary addresses or prefixes. Answers carry resolvers, search list and the client's full name, whatever
//! of these the network announces, as long as they fit the least MTU.
//!
//! A client sends to all servers of its link. To what came to an address of the gateway's own it is told to do so
//! (18.4), for nobody has been allowed anything else.
//!
//! Bounds: an identity has at most [`MAX_DUID`] bytes, [`MAX_ASSOCIATIONS`] associations of a message are answered, an
//! answer has at most [`MAX_ANSWER`] bytes.
use std::net::{IpAddr, Ipv6Addr};

use smoltcp::wire::IpProtocol;

use super::{
    Segment,
    counters::DropReason,
    dhcp::encode_domains,
    emit::{self, Ip},
    link::{Link, Peer},
    ndp,
    packet::{self, Packet},
};
use crate::plan::Network;

/// Where servers listen (RFC 8415, 7.2).
pub const SERVER_PORT: u16 = 547;
const CLIENT_PORT: u16 = 546;
/// All relay agents and servers of a link (7.1).
pub const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// Longest identity (11.1).
const MAX_DUID: usize = 130;
/// Most associations of one message that are answered.
const MAX_ASSOCIATIONS: usize = 8;
/// Longest answer: what fits the least MTU of IPv6 behind its header and that of UDP.
const MAX_ANSWER: usize = 1280 - 48;
/// Lifetime of the address and the times after which it is renewed and asked for anywhere, in seconds (21.4: at one half
/// and eight tenths of it).
const LIFETIME: u32 = 86_400;
const RENEW: u32 = LIFETIME / 2;
const REBIND: u32 = LIFETIME / 10 * 8;

/// Message types (7.3).
mod kind {
    pub const SOLICIT: u8 = 1;
    pub const ADVERTISE: u8 = 2;
    pub const REQUEST: u8 = 3;
    pub const CONFIRM: u8 = 4;
    pub const RENEW: u8 = 5;
    pub const REBIND: u8 = 6;
    pub const REPLY: u8 = 7;
    pub const RELEASE: u8 = 8;
    pub const DECLINE: u8 = 9;
    pub const RECONFIGURE: u8 = 10;
    pub const INFORMATION_REQUEST: u8 = 11;
}

/// Option codes (21, RFC 3646, RFC 4704).
mod option {
    pub const CLIENT_ID: u16 = 1;
    pub const SERVER_ID: u16 = 2;
    pub const IA_NA: u16 = 3;
    pub const IA_TA: u16 = 4;
    pub const ADDRESS: u16 = 5;
    pub const STATUS: u16 = 13;
    pub const RAPID_COMMIT: u16 = 14;
    pub const DNS: u16 = 23;
    pub const SEARCH: u16 = 24;
    pub const IA_PD: u16 = 25;
    pub const FQDN: u16 = 39;
}

/// Status codes (21.13).
mod status {
    pub const SUCCESS: u16 = 0;
    pub const NO_ADDRESSES: u16 = 2;
    pub const NOT_ON_LINK: u16 = 4;
    pub const USE_MULTICAST: u16 = 5;
    pub const NO_PREFIX: u16 = 6;
}

/// Flags of the name's option (RFC 4704, 4.1): S, the server is to update DNS; O, it was asked to and does not do as the
/// client wished; N, it updates nothing.
const FQDN_SERVER_UPDATES: u8 = 1;
const FQDN_OVERRULED: u8 = 2;
const FQDN_NO_UPDATE: u8 = 4;

/// Is this for the server here?
pub fn is_for_us(segment: &Segment, to: IpAddr, port: u16) -> bool {
    port == SERVER_PORT
        && segment.network.behaviour.services.dhcpv6
        && (to == IpAddr::V6(ALL_SERVERS) || segment.network.is_gateway(to))
}

/// A sandbox sent a datagram to the server; `message` is its payload.
pub fn handle(
    segment: &mut Segment,
    packet: &Packet<'_>,
    message: &[u8],
    link: &mut impl Link,
) -> Result<(), DropReason> {
    let to = packet::v6(packet.src).ok_or(DropReason::Family)?;
    let request = Request::parse(message)?;
    let server = server_id(&segment.network);
    request.check(&server, packet.dst == IpAddr::V6(ALL_SERVERS))?;
    // What the sandbox has made itself is not what it is to have.
    let planned = segment.network.v6.map(|layout| layout.sandbox).filter(|ip| !ip.is_unspecified());
    let own = planned.or_else(|| segment.ports.get(&packet.peer.port)?.v6);
    let Some(answer) = answer(&segment.network, &request, &server, own, packet.dst == IpAddr::V6(ALL_SERVERS)) else {
        return Ok(());
    };
    let from = segment.network.gateway_link_local();
    let ip = Ip::new(from.into(), to.into(), IpProtocol::Udp);
    let peer = Peer { port: packet.peer.port, mac: packet.peer.mac };
    emit::udp_checksummed(segment, peer, &ip, SERVER_PORT, CLIENT_PORT, &answer, link);
    Ok(())
}

/// Who the server is: its Ethernet address (11.4).
fn server_id(network: &Network) -> [u8; 10] {
    let [a, b, c, d, e, f] = network.gateway_mac.0;
    [0, 3, 0, 1, a, b, c, d, e, f]
}

/// Options one after the other; the last is an error where there are bytes left that are none.
struct Options<'a>(&'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = Result<(u16, &'a [u8]), DropReason>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let rest = std::mem::take(&mut self.0);
        let Some((&[c0, c1, l0, l1], data)) = rest.split_first_chunk() else { return Some(Err(DropReason::Malformed)) };
        let Some((data, rest)) = data.split_at_checked(usize::from(u16::from_be_bytes([l0, l1]))) else {
            return Some(Err(DropReason::Malformed));
        };
        self.0 = rest;
        Some(Ok((u16::from_be_bytes([c0, c1]), data)))
    }
}

/// An association that a client has, or wants.
#[derive(Clone, Copy, Debug)]
struct Association<'a> {
    /// IA_NA, IA_TA or IA_PD.
    code: u16,
    id: [u8; 4],
    /// Its options.
    options: &'a [u8],
}

impl Association<'_> {
    /// The addresses in it.
    fn addresses(&self) -> impl Iterator<Item = Ipv6Addr> {
        Options(self.options).filter_map(|found| match found {
            Ok((option::ADDRESS, data)) => data.first_chunk::<16>().map(|ip| Ipv6Addr::from(*ip)),
            _ => None,
        })
    }
}

/// What a client asks, checked.
#[derive(Debug)]
struct Request<'a> {
    kind: u8,
    transaction: [u8; 3],
    client: Option<&'a [u8]>,
    server: Option<&'a [u8]>,
    associations: Vec<Association<'a>>,
    rapid_commit: bool,
    /// Flags of the name that the client sent.
    fqdn: Option<u8>,
}

impl<'a> Request<'a> {
    fn parse(message: &'a [u8]) -> Result<Request<'a>, DropReason> {
        let (&[kind, t0, t1, t2], options) = message.split_first_chunk().ok_or(DropReason::Malformed)?;
        let mut request = Request {
            kind,
            transaction: [t0, t1, t2],
            client: None,
            server: None,
            associations: Vec::new(),
            rapid_commit: false,
            fqdn: None,
        };
        for found in Options(options) {
            let (code, data) = found?;
            match code {
                option::CLIENT_ID if (3..=MAX_DUID).contains(&data.len()) => request.client = Some(data),
                option::CLIENT_ID => return Err(DropReason::Malformed),
                option::SERVER_ID => request.server = Some(data),
                option::IA_NA | option::IA_TA | option::IA_PD => {
                    let (id, rest) = data.split_first_chunk().ok_or(DropReason::Malformed)?;
                    // Behind the identity of the others are two times (21.4, 21.21).
                    let times = if code == option::IA_TA { 0 } else { 8 };
                    let options = rest.get(times..).ok_or(DropReason::Malformed)?;
                    if Options(options).any(|option| option.is_err()) {
                        return Err(DropReason::Malformed);
                    }
                    if request.associations.len() < MAX_ASSOCIATIONS {
                        request.associations.push(Association { code, id: *id, options });
                    }
                }
                option::RAPID_COMMIT => request.rapid_commit = true,
                option::FQDN => request.fqdn = Some(*data.first().ok_or(DropReason::Malformed)?),
                _ => {}
            }
        }
        Ok(request)
    }

    /// RFC 8415, 16: which messages are to be dropped, by who sends them to whom.
    fn check(&self, server: &[u8], to_all: bool) -> Result<(), DropReason> {
        let (is_known, names_us) = (self.client.is_some(), self.server == Some(server));
        let valid = match self.kind {
            kind::SOLICIT | kind::CONFIRM | kind::REBIND => is_known && self.server.is_none() && to_all,
            kind::REQUEST | kind::RENEW | kind::RELEASE | kind::DECLINE => {
                if self.server.is_some() && !names_us {
                    return Err(DropReason::NotForUs);
                }
                is_known && names_us
            }
            kind::INFORMATION_REQUEST => {
                if self.server.is_some() && !names_us {
                    return Err(DropReason::NotForUs);
                }
                self.associations.is_empty() && to_all
            }
            // Only servers say this; here is no other.
            kind::ADVERTISE | kind::REPLY | kind::RECONFIGURE => return Err(DropReason::Spoofed),
            _ => return Err(DropReason::Protocol),
        };
        if valid { Ok(()) } else { Err(DropReason::Malformed) }
    }
}

/// The answer, if there is one. `own` is the address to give.
fn answer(
    network: &Network,
    request: &Request<'_>,
    server: &[u8],
    own: Option<Ipv6Addr>,
    to_all: bool,
) -> Option<Vec<u8>> {
    let commits = request.kind != kind::SOLICIT || request.rapid_commit;
    let mut reply = Reply::new(if commits { kind::REPLY } else { kind::ADVERTISE }, request.transaction);
    if let Some(client) = request.client {
        reply.put(option::CLIENT_ID, client);
    }
    reply.put(option::SERVER_ID, server);
    if !to_all {
        reply.put_status(status::USE_MULTICAST, "servers are asked at ff02::1:2");
        return Some(reply.bytes);
    }
    match request.kind {
        kind::CONFIRM => {
            let prefix = network.v6?.subnet;
            let mut addresses = request.associations.iter().flat_map(Association::addresses).peekable();
            addresses.peek()?;
            match addresses.all(|ip| prefix.contains(&ip)) {
                true => reply.put_status(status::SUCCESS, "these are addresses of this link"),
                false => reply.put_status(status::NOT_ON_LINK, "not all are addresses of this link"),
            }
            return Some(reply.bytes);
        }
        kind::RELEASE | kind::DECLINE => {
            reply.put_status(status::SUCCESS, "as you say");
            return Some(reply.bytes);
        }
        kind::SOLICIT if request.rapid_commit => reply.put(option::RAPID_COMMIT, &[]),
        _ => {}
    }
    let mut free = own;
    for association in &request.associations {
        reply.put_association(request.kind, association, &mut free);
    }
    reply.put_the_rest(network, request);
    Some(reply.bytes)
}

/// A message being written. An option that does not fit any more is left out.
struct Reply {
    bytes: Vec<u8>,
}

impl Reply {
    fn new(kind: u8, [t0, t1, t2]: [u8; 3]) -> Reply {
        Reply { bytes: vec![kind, t0, t1, t2] }
    }

    fn put(&mut self, code: u16, data: &[u8]) {
        if self.bytes.len() + 4 + data.len() <= MAX_ANSWER {
            put(&mut self.bytes, code, data);
        }
    }

    fn put_status(&mut self, status: u16, why: &str) {
        self.put(option::STATUS, &status_data(status, why));
    }

    /// What becomes of an association. `free` is the address, as long as none has it.
    fn put_association(&mut self, asked: u8, association: &Association<'_>, free: &mut Option<Ipv6Addr>) {
        let mut data = association.id.to_vec();
        match association.code {
            option::IA_NA => {
                let own = free.take();
                let times = if own.is_some() { [RENEW, REBIND] } else { [0, 0] };
                times.iter().for_each(|time| data.extend_from_slice(&time.to_be_bytes()));
                match own {
                    Some(own) => put_address(&mut data, own, LIFETIME),
                    None => put(&mut data, option::STATUS, &status_data(status::NO_ADDRESSES, "there is only one")),
                }
                // 18.3.4 and 18.3.5: what it has, and may not have, is void.
                if matches!(asked, kind::RENEW | kind::REBIND) {
                    let others = association.addresses().filter(|ip| own != Some(*ip)).take(MAX_ASSOCIATIONS);
                    others.for_each(|other| put_address(&mut data, other, 0));
                }
            }
            option::IA_TA => {
                put(&mut data, option::STATUS, &status_data(status::NO_ADDRESSES, "none that are temporary"));
            }
            _ => {
                data.extend_from_slice(&[0; 8]);
                put(&mut data, option::STATUS, &status_data(status::NO_PREFIX, "no prefixes here"));
            }
        }
        self.put(association.code, &data);
    }

    fn put_the_rest(&mut self, network: &Network, request: &Request<'_>) {
        let resolvers = network.v6.map(|layout| ndp::resolvers(network, &layout)).unwrap_or_default();
        if !resolvers.is_empty() {
            let all: Vec<u8> = resolvers.iter().flat_map(Ipv6Addr::octets).collect();
            self.put(option::DNS, &all);
        }
        let name = encode_domains(network.behaviour.announcements.fqdn.as_slice(), 255);
        if !name.is_empty() {
            let overruled = request.fqdn.is_some_and(|flags| flags & FQDN_SERVER_UPDATES != 0);
            let flags = FQDN_NO_UPDATE | if overruled { FQDN_OVERRULED } else { 0 };
            self.put(option::FQDN, &[&[flags], &name[..]].concat());
        }
        let room = MAX_ANSWER.saturating_sub(self.bytes.len() + 4);
        let search = encode_domains(network.announced_search(), room);
        if !search.is_empty() {
            self.put(option::SEARCH, &search);
        }
    }
}

fn put(bytes: &mut Vec<u8>, code: u16, data: &[u8]) {
    bytes.extend_from_slice(&code.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u16).to_be_bytes()); // within MAX_ANSWER
    bytes.extend_from_slice(data);
}

/// An address with both its lifetimes (21.6).
fn put_address(bytes: &mut Vec<u8>, ip: Ipv6Addr, lifetime: u32) {
    let lifetime = lifetime.to_be_bytes();
    put(bytes, option::ADDRESS, &[&ip.octets()[..], &lifetime, &lifetime].concat());
}

fn status_data(status: u16, why: &str) -> Vec<u8> {
    [&status.to_be_bytes()[..], why.as_bytes()].concat()
}

#[cfg(test)]
mod tests;
