//! Links, addresses and routes of a network namespace: a small blocking rtnetlink client (rtnetlink(7)).
//!
//! A [`Netlink`] speaks to the namespace that its thread was in when it was opened, wherever the thread goes
//! later. Each operation is one request and its answer; an error names the operation and the object. Nothing is
//! kept between requests.
//!
//! A dump that the kernel marks as interrupted (NLM_F_DUMP_INTR: something changed meanwhile) is asked for
//! again. A message in a dump that cannot be decoded is passed over: newer kernels know attributes that the
//! decoder does not, and one strange link must not hide the others.
//!
//! A [`Watch`] says when something has changed, and not what: whoever watches looks at the whole anew. So the
//! overrun of its socket (ENOBUFS) loses nothing, it is one more change.
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkBuffer, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// How often an interrupted dump is asked for again.
const DUMP_ATTEMPTS: usize = 8;

/// Room for one batch of answers; the kernel sends at most 32 KiB at a time (netlink(7)).
const ANSWER: usize = 64 * 1024;

/// The main routing table.
const MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;

/// Why the namespace's network could not be asked or changed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] io::Error),
    /// An operation failed. `what` names it and its object: `add the address 10.0.2.100/24`.
    #[error("cannot {what}: {source}")]
    Failed {
        /// Operation and object.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel's answer was not one.
    #[error("cannot {what}: the kernel's answer is not understood ({why})")]
    Answer {
        /// Operation and object.
        what: String,
        /// What is wrong with it.
        why: String,
    },
}

impl NetlinkError {
    /// The kernel's error number, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            NetlinkError::Open(source) | NetlinkError::Failed { source, .. } => source.raw_os_error(),
            NetlinkError::Answer { .. } => None,
        }
    }

    /// Is it that this kernel, or this namespace, has no such address family (or has it switched off)?
    pub fn is_family_missing(&self) -> bool {
        matches!(self.errno(), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EACCES))
    }
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number in this namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// It is administratively up.
    pub up: bool,
    /// It has a carrier, and the kernel has acted on that: frames are not thrown away.
    pub running: bool,
    /// It is the loopback interface.
    pub loopback: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// Its Ethernet address, where it has one.
    pub mac: Option<[u8; 6]>,
    /// Length of its transmit queue in frames.
    pub tx_queue_len: Option<u32>,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The interface.
    pub index: u32,
    /// The address.
    pub ip: IpAddr,
    /// Length of its prefix.
    pub prefix: u8,
    /// Its scope is the whole network, not a link or the host.
    pub global: bool,
    /// Duplicate address detection has not ended, or has failed: it cannot be used.
    pub tentative: bool,
    /// Deprecated: not to be chosen for new connections (RFC 4862).
    pub deprecated: bool,
}

/// A unicast route of the main table. Of several next hops it has the one with the most weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination; the unspecified address with prefix length 0 for a default route.
    pub destination: IpAddr,
    /// Length of the destination's prefix.
    pub prefix: u8,
    /// Next hop, where it is not on the link itself.
    pub gateway: Option<IpAddr>,
    /// Outgoing interface.
    pub index: Option<u32>,
    /// Source address that is preferred for it.
    pub preferred_source: Option<IpAddr>,
    /// Metric; lower is better.
    pub priority: u32,
}

/// What to change of a link. What is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkChange {
    /// Up or down.
    pub up: Option<bool>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Ethernet address.
    pub mac: Option<[u8; 6]>,
    /// Length of the transmit queue in frames.
    pub tx_queue_len: Option<u32>,
}

/// A connection to the kernel's routing of one network namespace.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Box<[u8]>,
}

impl Netlink {
    /// Connect to the network namespace of the calling thread.
    pub fn open() -> Result<Netlink, NetlinkError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(NetlinkError::Open)?;
        socket.bind_auto().map_err(NetlinkError::Open)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(NetlinkError::Open)?;
        Ok(Netlink { socket, sequence: 0, buffer: vec![0; ANSWER].into_boxed_slice() })
    }

    /// The link of this name.
    pub fn link(&mut self, name: &str) -> Result<Link, NetlinkError> {
        let what = format!("find the interface {name}");
        let found = self.links()?.into_iter().find(|l| l.name == name);
        found.ok_or_else(|| NetlinkError::Failed { what, source: io::Error::from_raw_os_error(libc::ENODEV) })
    }

    /// Every link.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        self.dump("list the interfaces", RouteNetlinkMessage::GetLink(LinkMessage::default()), |message| {
            if let RouteNetlinkMessage::NewLink(link) = message { Some(read_link(&link)) } else { None }
        })
    }

    /// Every address of both families.
    pub fn addresses(&mut self) -> Result<Vec<Address>, NetlinkError> {
        self.dump("list the addresses", RouteNetlinkMessage::GetAddress(AddressMessage::default()), |message| {
            if let RouteNetlinkMessage::NewAddress(address) = message { read_address(&address) } else { None }
        })
    }

    /// Every unicast route of the main table, both families.
    pub fn routes(&mut self) -> Result<Vec<Route>, NetlinkError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let read = |message| if let RouteNetlinkMessage::NewRoute(r) = message { read_route(&r) } else { None };
            match self.dump("list the routes", RouteNetlinkMessage::GetRoute(request), read) {
                Ok(found) => routes.extend(found),
                // A kernel without IPv6 has no IPv6 routes.
                Err(error) if family == AddressFamily::Inet6 && error.is_family_missing() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(routes)
    }

    /// Every rule that says which table routes what, both families: the table's number.
    pub fn rules(&mut self) -> Result<Vec<u32>, NetlinkError> {
        let mut rules = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RuleMessage::default();
            request.header.family = family;
            let read =
                |message| if let RouteNetlinkMessage::NewRule(rule) = message { Some(table_of(&rule)) } else { None };
            match self.dump("list the rules", RouteNetlinkMessage::GetRule(request), read) {
                Ok(found) => rules.extend(found),
                Err(error) if family == AddressFamily::Inet6 && error.is_family_missing() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(rules)
    }

    /// Change a link.
    pub fn change_link(&mut self, index: u32, change: &LinkChange) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        if let Some(up) = change.up {
            message.header.change_mask = LinkFlags::Up;
            message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        }
        let attributes = &mut message.attributes;
        attributes.extend(change.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
        attributes.extend(change.mtu.map(LinkAttribute::Mtu));
        attributes.extend(change.tx_queue_len.map(LinkAttribute::TxQueueLen));
        let what = || {
            let words = [
                change.up.map(|up| if up { "up" } else { "down" }.to_owned()),
                change.mac.map(|mac| format!("address {}", mac.map(|byte| format!("{byte:02x}")).join(":"))),
                change.mtu.map(|mtu| format!("MTU {mtu}")),
                change.tx_queue_len.map(|length| format!("queue length {length}")),
            ];
            format!("set {} on interface {index}", words.into_iter().flatten().collect::<Vec<_>>().join(", "))
        };
        self.request(what, RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Have the kernel give the link no IPv6 link-local address of its own making.
    pub fn set_addr_gen_mode_none(&mut self, index: u32) -> Result<(), NetlinkError> {
        self.set_addr_gen_mode(index, In6AddrGenMode::None)
    }

    /// Let the kernel make the link-local address from the MAC (its default), for those who configure the
    /// interface themselves.
    pub fn set_addr_gen_mode_eui64(&mut self, index: u32) -> Result<(), NetlinkError> {
        self.set_addr_gen_mode(index, In6AddrGenMode::Eui64)
    }

    fn set_addr_gen_mode(&mut self, index: u32, mode: In6AddrGenMode) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let mode = AfSpecInet6::AddrGenMode(mode);
        message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]));
        let what = || format!("say how interface {index} gets its link-local address");
        self.request(what, RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Give a link an address that can be used at once (no duplicate address detection).
    pub fn add_address(&mut self, index: u32, ip: IpAddr, prefix: u8) -> Result<(), NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.family = family(ip);
        message.header.prefix_len = prefix;
        message.header.index = index;
        message.header.flags = AddressHeaderFlags::Nodad;
        if matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()) {
            message.header.scope = AddressScope::Link;
        }
        message.attributes.extend([
            AddressAttribute::Local(ip),
            AddressAttribute::Address(ip),
            AddressAttribute::Flags(AddressFlags::Nodad),
        ]);
        if let IpAddr::V4(ip) = ip
            && prefix < 31
        {
            let host = u32::MAX >> prefix;
            message.attributes.push(AddressAttribute::Broadcast(Ipv4Addr::from(u32::from(ip) | host)));
        }
        let what = || format!("add the address {ip}/{prefix}");
        self.request(what, RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Add a route to the main table: through `gateway`, or straight to the link without one.
    pub fn add_route(
        &mut self,
        index: u32,
        destination: IpAddr,
        prefix: u8,
        gateway: Option<IpAddr>,
    ) -> Result<(), NetlinkError> {
        self.add_route_in(MAIN, index, destination, prefix, gateway)
    }

    /// The same in another table, which is there as soon as a route is in it.
    pub fn add_route_in(
        &mut self,
        table: u32,
        index: u32,
        destination: IpAddr,
        prefix: u8,
        gateway: Option<IpAddr>,
    ) -> Result<(), NetlinkError> {
        let message = route(table, index, destination, prefix, gateway);
        let what = || route_text("add", table, destination, prefix, gateway);
        self.request(what, RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Have the main table's default route of the gateway's family lead through `gateway`, wherever it has led before.
    pub fn replace_default(&mut self, index: u32, gateway: IpAddr) -> Result<(), NetlinkError> {
        let everywhere = unspecified(gateway);
        let message = route(MAIN, index, everywhere, 0, Some(gateway));
        let what = || route_text("set", MAIN, everywhere, 0, Some(gateway));
        self.request(what, RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Remove what [`add_route_in`](Self::add_route_in) has added.
    pub fn delete_route_in(
        &mut self,
        table: u32,
        index: u32,
        destination: IpAddr,
        prefix: u8,
        gateway: Option<IpAddr>,
    ) -> Result<(), NetlinkError> {
        let message = route(table, index, destination, prefix, gateway);
        let what = || route_text("remove", table, destination, prefix, gateway);
        self.request(what, RouteNetlinkMessage::DelRoute(message), 0)
    }

    /// Have a table refuse, at once, what no other route in it leads anywhere; `like` is any address of the family.
    pub fn refuse_the_rest(&mut self, table: u32, like: IpAddr) -> Result<(), NetlinkError> {
        let everywhere = unspecified(like);
        let what = || format!("have table {table} refuse {everywhere}/0");
        self.request(what, RouteNetlinkMessage::NewRoute(refusal(table, everywhere)), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Remove what [`refuse_the_rest`](Self::refuse_the_rest) has added.
    pub fn forget_the_rest(&mut self, table: u32, like: IpAddr) -> Result<(), NetlinkError> {
        let everywhere = unspecified(like);
        let what = || format!("have table {table} no longer refuse {everywhere}/0");
        self.request(what, RouteNetlinkMessage::DelRoute(refusal(table, everywhere)), 0)
    }

    /// Have packets from this address routed by this table first. A rule that is there already is fine.
    pub fn add_rule(&mut self, from: IpAddr, table: u32) -> Result<(), NetlinkError> {
        let what = || format!("have what comes from {from} routed by table {table}");
        match self.request(what, RouteNetlinkMessage::NewRule(rule(from, table)), NLM_F_CREATE | NLM_F_EXCL) {
            Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
            other => other,
        }
    }

    /// Remove what [`add_rule`](Self::add_rule) has added.
    pub fn delete_rule(&mut self, from: IpAddr, table: u32) -> Result<(), NetlinkError> {
        let what = || format!("stop routing what comes from {from} by table {table}");
        self.request(what, RouteNetlinkMessage::DelRule(rule(from, table)), 0)
    }

    /// Have UDP packets that have no source address yet routed by this table when they come from these ports, after what
    /// is on the links; in place of what was said before. `like` is any address of the family.
    pub fn route_ports(&mut self, like: IpAddr, table: u32, udp: &[(u16, u16)]) -> Result<(), NetlinkError> {
        let what = || format!("have answers from UDP ports routed by table {table}");
        for priority in [PORTS_ON_LINK, PORTS] {
            while self.remove_first_rule(like, priority)? {}
        }
        if udp.is_empty() {
            return Ok(());
        }
        let mut on_link = port_rule(like, libc::RT_TABLE_MAIN.into(), PORTS_ON_LINK);
        // All but default routes.
        on_link.attributes.push(RuleAttribute::SuppressPrefixLen(0));
        self.request(what, RouteNetlinkMessage::NewRule(on_link), NLM_F_CREATE | NLM_F_EXCL)?;
        for &(start, end) in udp {
            let mut rule = port_rule(like, table, PORTS);
            rule.attributes.push(RuleAttribute::SourcePortRange(RulePortRange { start, end }));
            self.request(what, RouteNetlinkMessage::NewRule(rule), NLM_F_CREATE | NLM_F_EXCL)?;
        }
        Ok(())
    }

    /// False when there was none.
    fn remove_first_rule(&mut self, like: IpAddr, priority: u32) -> Result<bool, NetlinkError> {
        let mut message = RuleMessage::default();
        message.header.family = family(like);
        message.attributes.push(RuleAttribute::Priority(priority));
        let what = || format!("remove rule {priority}");
        match self.request(what, RouteNetlinkMessage::DelRule(message), 0) {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Make a pair of Ethernet interfaces, one here and the other in another network namespace.
    pub fn create_veth(
        &mut self,
        name: &str,
        peer_name: &str,
        peer_namespace: BorrowedFd<'_>,
    ) -> Result<(), NetlinkError> {
        let mut peer = LinkMessage::default();
        peer.attributes.push(LinkAttribute::IfName(peer_name.to_owned()));
        peer.attributes.push(LinkAttribute::NetNsFd(peer_namespace.as_raw_fd()));
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        let what = || format!("make the veth pair {name}");
        self.request(what, RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Remove a link; a veth takes its other half with it.
    pub fn delete_link(&mut self, index: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.request(|| format!("remove interface {index}"), RouteNetlinkMessage::DelLink(message), 0)
    }

    /// A request that is answered with an acknowledgement or an error.
    fn request(
        &mut self,
        what: impl Fn() -> String,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        let failed = |source| NetlinkError::Failed { what: what(), source };
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags).map_err(failed)?;
        loop {
            let length = self.receive().map_err(failed)?;
            let answers = messages(&self.buffer[..length], self.sequence);
            for answer in answers {
                if let Some(NetlinkPayload::Error(error)) = answer.payload {
                    return match error.code {
                        None => Ok(()),
                        Some(_) => Err(failed(error.to_io())),
                    };
                }
            }
        }
    }

    /// A request that is answered with a list.
    fn dump<T>(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
        read: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        let failed = |source| NetlinkError::Failed { what: what.to_owned(), source };
        for _ in 0..DUMP_ATTEMPTS {
            self.send(message.clone(), NLM_F_REQUEST | NLM_F_DUMP).map_err(failed)?;
            let mut found = Vec::new();
            let mut interrupted = false;
            'answers: loop {
                let length = self.receive().map_err(failed)?;
                for answer in messages(&self.buffer[..length], self.sequence) {
                    interrupted |= answer.flags & NLM_F_DUMP_INTR != 0;
                    match answer.payload {
                        Some(NetlinkPayload::Done(_)) => break 'answers,
                        Some(NetlinkPayload::Error(error)) if error.code.is_some() => {
                            return Err(failed(error.to_io()));
                        }
                        Some(NetlinkPayload::InnerMessage(inner)) => found.extend(read(inner)),
                        _ => {}
                    }
                }
            }
            if !interrupted {
                return Ok(found);
            }
        }
        Err(NetlinkError::Answer { what: what.to_owned(), why: "it changed faster than it could be read".to_owned() })
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }

    fn receive(&mut self) -> io::Result<usize> {
        loop {
            match super::io::read(self.socket.as_fd(), &mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// One message of an answer; no payload where it could not be decoded.
struct Answer {
    flags: u16,
    payload: Option<NetlinkPayload<RouteNetlinkMessage>>,
}

/// The messages in `bytes` that belong to the request of this number.
fn messages(bytes: &[u8], sequence: u32) -> impl Iterator<Item = Answer> + '_ {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        loop {
            let header = NetlinkBuffer::new_checked(rest).ok()?;
            let (length, flags, number) = (header.length() as usize, header.flags(), header.sequence_number());
            let message = rest.get(..length)?;
            // Messages begin at multiples of four bytes.
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            if number == sequence {
                let payload = NetlinkMessage::deserialize(message).ok().map(|m| m.payload);
                return Some(Answer { flags, payload });
            }
        }
    })
}

/// A unicast route as the kernel is told of it.
fn route(table: u32, index: u32, destination: IpAddr, prefix: u8, gateway: Option<IpAddr>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination);
    message.header.destination_prefix_length = prefix;
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    message.header.scope = if gateway.is_some() { RouteScope::Universe } else { RouteScope::Link };
    if prefix > 0 {
        message.attributes.push(RouteAttribute::Destination(destination.into()));
    }
    message.attributes.extend(gateway.map(|ip| RouteAttribute::Gateway(ip.into())));
    message.attributes.push(RouteAttribute::Table(table));
    message.attributes.push(RouteAttribute::Oif(index));
    message
}

/// A default route that leads nowhere.
fn refusal(table: u32, everywhere: IpAddr) -> RouteMessage {
    let mut message = route(table, 0, everywhere, 0, None);
    message.header.kind = RouteType::Unreachable;
    message.header.scope = RouteScope::Universe;
    message.attributes.retain(|attribute| !matches!(attribute, RouteAttribute::Oif(_)));
    message
}

fn route_text(verb: &str, table: u32, destination: IpAddr, prefix: u8, gateway: Option<IpAddr>) -> String {
    let through = gateway.map(|gateway| format!(" through {gateway}")).unwrap_or_default();
    let table = if table == MAIN { String::new() } else { format!(" in table {table}") };
    format!("{verb} the route {destination}/{prefix}{through}{table}")
}

/// The rule of [`Netlink::add_rule`]. Before those that a namespace begins with, except that for local addresses.
fn rule(from: IpAddr, table: u32) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(from);
    message.header.src_len = if from.is_ipv4() { 32 } else { 128 };
    message.header.action = RuleAction::ToTable;
    message.attributes.extend([
        RuleAttribute::Source(from),
        RuleAttribute::Table(table),
        RuleAttribute::Priority(table),
    ]);
    message
}

/// The priorities of [`Netlink::route_ports`]: before the main table, after the rules of interfaces' own addresses.
const PORTS_ON_LINK: u32 = 20_000;
const PORTS: u32 = 20_001;
/// Which the kernel's headers have, and libc has not.
const FRA_IP_PROTO: u16 = 22;

fn port_rule(like: IpAddr, table: u32, priority: u32) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(like);
    message.header.action = RuleAction::ToTable;
    message.attributes.extend([
        RuleAttribute::Table(table),
        RuleAttribute::Priority(priority),
        RuleAttribute::Other(DefaultNla::new(FRA_IP_PROTO, vec![libc::IPPROTO_UDP as u8])),
    ]);
    message
}

fn table_of(rule: &RuleMessage) -> u32 {
    let number = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Table(number) => Some(*number),
        _ => None,
    });
    number.unwrap_or_else(|| rule.header.table.into())
}

/// The unspecified address of the same family.
fn unspecified(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn read_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        up: message.header.flags.contains(LinkFlags::Up),
        running: message.header.flags.contains(LinkFlags::Running),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        mtu: 0,
        mac: None,
        tx_queue_len: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().ok(),
            LinkAttribute::TxQueueLen(length) => link.tx_queue_len = Some(*length),
            _ => {}
        }
    }
    link
}

fn read_address(message: &AddressMessage) -> Option<Address> {
    let (mut local, mut address) = (None, None);
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(all) => flags |= *all,
            _ => {}
        }
    }
    Some(Address {
        index: message.header.index,
        // On a point-to-point link IFA_ADDRESS is the other side's.
        ip: local.or(address)?,
        prefix: message.header.prefix_len,
        global: message.header.scope == AddressScope::Universe,
        tentative: flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed),
        deprecated: flags.contains(AddressFlags::Deprecated),
    })
}

fn read_route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let unspecified = match header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let mut route = Route {
        destination: unspecified,
        prefix: header.destination_prefix_length,
        gateway: None,
        index: None,
        preferred_source: None,
        priority: 0,
    };
    let mut table = u32::from(header.table);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => route.destination = ip_of(to)?,
            RouteAttribute::Gateway(to) => route.gateway = ip_of(to),
            RouteAttribute::PrefSource(from) => route.preferred_source = ip_of(from),
            RouteAttribute::Oif(index) => route.index = Some(*index),
            RouteAttribute::Priority(priority) => route.priority = *priority,
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::MultiPath(hops) => {
                let heaviest = hops.iter().reduce(|best, hop| if hop.hops > best.hops { hop } else { best });
                if let Some(hop) = heaviest {
                    route.index = Some(hop.interface_index);
                    route.gateway = hop.attributes.iter().find_map(|attribute| match attribute {
                        RouteAttribute::Gateway(to) => ip_of(to),
                        _ => None,
                    });
                }
            }
            _ => {}
        }
    }
    (header.kind == RouteType::Unicast && table == MAIN).then_some(route)
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

/// Says when links, addresses or routes of a network namespace have changed.
pub struct Watch {
    socket: Socket,
}

impl Watch {
    /// Watch the network namespace of the calling thread.
    pub fn open() -> Result<Watch, NetlinkError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(NetlinkError::Open)?;
        socket.bind_auto().map_err(NetlinkError::Open)?;
        for group in [
            libc::RTNLGRP_LINK,
            libc::RTNLGRP_IPV4_IFADDR,
            libc::RTNLGRP_IPV6_IFADDR,
            libc::RTNLGRP_IPV4_ROUTE,
            libc::RTNLGRP_IPV6_ROUTE,
        ] {
            let what = || "watch the host's addresses and routes".to_owned();
            socket.add_membership(group).map_err(|source| NetlinkError::Failed { what: what(), source })?;
        }
        socket.set_non_blocking(true).map_err(NetlinkError::Open)?;
        Ok(Watch { socket })
    }

    /// Take every event that waits: `true` when there was one. Call when the descriptor is readable.
    pub fn drain(&mut self) -> io::Result<bool> {
        let mut changed = false;
        let mut buffer = [0; 8 * 1024];
        loop {
            match super::io::read(self.socket.as_fd(), &mut buffer) {
                Ok(_) => changed = true,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // Events were lost, of which at least one was an event.
                    Some(libc::ENOBUFS) => changed = true,
                    Some(libc::EAGAIN) => return Ok(changed),
                    _ => return Err(error),
                },
            }
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// For registration with a poll (readable).
impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::in_namespace;
    use super::super::tun::Tap;
    use super::*;

    fn text(error: impl std::fmt::Display) -> String {
        error.to_string()
    }

    #[test]
    fn what_was_set_is_what_is_listed() {
        in_namespace(|| {
            let _tap = Tap::create("tl0").map_err(text)?;
            let mut netlink = Netlink::open().map_err(text)?;
            let index = netlink.link("tl0").map_err(text)?.index;
            netlink.set_addr_gen_mode_none(index).map_err(text)?;
            let mac = [2, 0x42, 10, 0, 2, 100];
            let change = LinkChange { up: Some(true), mtu: Some(1400), mac: Some(mac), tx_queue_len: Some(77) };
            netlink.change_link(index, &change).map_err(text)?;
            let link = netlink.link("tl0").map_err(text)?;
            if (link.up, link.mtu, link.mac, link.tx_queue_len) != (true, 1400, Some(mac), Some(77)) {
                return Err(format!("{link:?}"));
            }
            let (v4, v6) = ("10.0.2.100".parse().unwrap(), "fd00::100".parse().unwrap());
            let (gateway4, gateway6) = ("10.0.2.2".parse().unwrap(), "fd00::2".parse().unwrap());
            netlink.add_address(index, v4, 24).map_err(text)?;
            netlink.add_address(index, v6, 64).map_err(text)?;
            netlink.add_route(index, "0.0.0.0".parse().unwrap(), 0, Some(gateway4)).map_err(text)?;
            netlink.add_route(index, "::".parse().unwrap(), 0, Some(gateway6)).map_err(text)?;
            netlink.add_route(index, "192.0.2.0".parse().unwrap(), 24, None).map_err(text)?;
            let addresses = netlink.addresses().map_err(text)?;
            let usable = |ip: IpAddr, prefix: u8| {
                addresses.iter().any(|a| (a.index, a.ip, a.prefix, a.tentative) == (index, ip, prefix, false))
            };
            // No link-local address was made.
            if !usable(v4, 24) || !usable(v6, 64) || addresses.iter().filter(|a| a.index == index).count() != 2 {
                return Err(format!("{addresses:?}"));
            }
            let routes = netlink.routes().map_err(text)?;
            for gateway in [gateway4, gateway6] {
                if !routes.iter().any(|r| r.prefix == 0 && r.gateway == Some(gateway) && r.index == Some(index)) {
                    return Err(format!("no route through {gateway}: {routes:?}"));
                }
            }
            if !routes.iter().any(|r| r.destination.to_string() == "192.0.2.0" && r.gateway.is_none()) {
                return Err(format!("{routes:?}"));
            }
            netlink.delete_link(index).map_err(text)?;
            if netlink.link("tl0").map_err(|e| e.errno()) != Err(Some(libc::ENODEV)) {
                return Err("it is still there".to_owned());
            }
            Ok(())
        });
    }

    #[test]
    fn of_several_next_hops_the_heaviest_counts() {
        let hop = |index, weight, gateway: [u8; 4]| {
            let mut hop = netlink_packet_route::route::RouteNextHop::default();
            (hop.interface_index, hop.hops) = (index, weight);
            hop.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway.into())));
            hop
        };
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.kind = RouteType::Unicast;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        let hops = vec![hop(2, 0, [192, 0, 2, 1]), hop(3, 4, [192, 0, 2, 2]), hop(4, 4, [192, 0, 2, 3])];
        message.attributes.push(RouteAttribute::MultiPath(hops));
        let route = read_route(&message).unwrap();
        assert_eq!((route.index, route.gateway), (Some(3), Some([192, 0, 2, 2].into())));
    }

    #[test]
    fn error_names_the_operation() {
        in_namespace(|| {
            let mut netlink = Netlink::open().map_err(text)?;
            let lo = netlink.link("lo").map_err(text)?.index;
            match netlink.add_route(lo, "192.0.2.0".parse().unwrap(), 24, Some("198.51.100.1".parse().unwrap())) {
                Err(error)
                    if error.to_string().starts_with("cannot add the route 192.0.2.0/24 through 198.51.100.1: ") =>
                {
                    Ok(())
                }
                other => Err(format!("{other:?}")),
            }
        });
    }

    #[test]
    fn veth_has_its_other_half_in_the_other_namespace() {
        in_namespace(|| {
            let here = std::fs::File::open("/proc/self/ns/net").map_err(text)?;
            let mut first = Netlink::open().map_err(text)?;
            // SAFETY: unshare takes flags only.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                return Err(io::Error::last_os_error().to_string());
            }
            let mut second = Netlink::open().map_err(text)?;
            second.create_veth("far0", "near0", here.as_fd()).map_err(text)?;
            second.link("far0").map_err(text)?;
            let near = first.link("near0").map_err(text)?;
            first.delete_link(near.index).map_err(text)?;
            match second.link("far0") {
                Err(error) if error.errno() == Some(libc::ENODEV) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    #[test]
    fn watch_says_that_something_changed_and_then_nothing() {
        in_namespace(|| {
            let mut watch = Watch::open().map_err(text)?;
            let mut netlink = Netlink::open().map_err(text)?;
            if watch.drain().map_err(text)? {
                return Err("changed before it was".to_owned());
            }
            let lo = netlink.link("lo").map_err(text)?.index;
            netlink.change_link(lo, &LinkChange { up: Some(true), ..LinkChange::default() }).map_err(text)?;
            match (watch.drain().map_err(text)?, watch.drain().map_err(text)?) {
                (true, false) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }
}
