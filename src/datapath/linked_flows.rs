//! Flows along links, on a network whose sandboxes do not reach each other (`--icc=false`).
//!
//! # Theory of operation
//!
//! What a link opens is one rule ([`links::may_open`]): new flows in its direction, to exposed ports. It is asked once,
//! when a flow begins; then the flow is remembered, and packets either way pass because of it:
//!
//! | packet | passes |
//! | --- | --- |
//! | TCP, UDP of a known flow, either way | yes |
//! | to a port that a link opens | yes, and begins a flow |
//! | TCP without SYN from such a port to the one that has the link | yes, and makes the flow known again |
//! | ICMP error that quotes a packet which its receiver sent in a known flow | yes |
//! | later fragment of a datagram whose first one passed | yes |
//! | SYN, datagram, ping that nothing opens | no, and its sender is told |
//! | everything else | no |
//!
//! The third row is for connections that are older than this process: when a gateway has been replaced, its sandboxes'
//! connections to each other live on. A segment without SYN opens nothing at a receiver that does not know it.
//!
//! A ping is not opened by a link, as under Docker, whose links are rules for ports.
//!
//! Timers: a flow is forgotten after it was idle for [`TCP_OPEN`], or [`TCP_OTHER`] while nobody has answered or after
//! a FIN or RST; UDP after the network's own timeout, [`UDP_UNANSWERED`] while nobody has answered; the fragments of a
//! datagram after [`FRAGMENTS`]. No clock runs for that: what is too old goes when the next packet is judged.
//!
//! Limits: a sandbox has at most [`MOST_FLOWS`] flows of TCP and as many of UDP that it began, and
//! [`MOST_DATAGRAMS`] datagrams in fragments; the one idle longest makes room. A port that goes takes its flows along,
//! both those that it began and those that led to it, so that whoever has its address next inherits nothing.
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use smoltcp::wire::IpProtocol;

use crate::gateway::flows::{FlowTable, Idle};
use crate::gateway::link::PortId;
use crate::gateway::packet::Parsed;
use crate::plan::{Endpoint, Protocol};
use crate::policy::links;

/// RFC 5382, REQ-5.
const TCP_OPEN: Duration = Duration::from_secs(2 * 3600 + 4 * 60);
/// A connection that begins or ends (RFC 5382, REQ-5: four minutes at least).
const TCP_OTHER: Duration = Duration::from_secs(240);
/// As Linux's connection tracking has it.
const UDP_UNANSWERED: Duration = Duration::from_secs(30);
/// The longest that any kernel waits for fragments (RFC 8200, 4.5).
const FRAGMENTS: Duration = Duration::from_secs(60);
/// Most flows of each protocol that a sandbox may have begun.
pub const MOST_FLOWS: usize = 4096;
/// Most datagrams in fragments of a sandbox.
const MOST_DATAGRAMS: usize = 256;

/// What is to be done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Pass,
    /// It does not, and its sender is to be told.
    Refused,
    /// It does not.
    Dropped,
}

/// An IP packet or a fragment of one, as far as it is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// The protocol above IP and its extension headers.
    pub protocol: IpProtocol,
    /// The upper protocol's bytes, or what this fragment has of them.
    pub upper: &'a [u8],
    /// Which part of which datagram it is, if it is a part.
    pub fragment: Option<FragmentOf>,
}

/// Which part of which datagram a fragment is.
#[derive(Clone, Copy, Debug)]
pub struct FragmentOf {
    /// The datagram's identification.
    pub id: u32,
    /// Where it belongs, in bytes.
    pub offset: u32,
}

impl<'a> Piece<'a> {
    /// What is looked at of a parsed packet.
    pub fn of(parsed: &Parsed<'a>) -> Piece<'a> {
        match parsed {
            Parsed::Whole(packet) => Piece {
                src: packet.src,
                dst: packet.dst,
                protocol: packet.protocol,
                upper: packet.payload(),
                fragment: None,
            },
            Parsed::Fragment(fragment) => Piece {
                src: fragment.src,
                dst: fragment.dst,
                protocol: fragment.protocol,
                upper: fragment.payload,
                fragment: Some(FragmentOf { id: fragment.id, offset: fragment.offset }),
            },
        }
    }

    /// Is it a fragment without the upper header?
    pub fn is_later_fragment(&self) -> bool {
        self.fragment.is_some_and(|fragment| fragment.offset > 0)
    }

    fn ports(&self) -> Option<(u16, u16)> {
        let &[s0, s1, d0, d1, ..] = self.upper else { return None };
        Some((u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])))
    }
}

/// A flow's name, seen from whoever began it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    ports: (PortId, PortId),
    from: SocketAddr,
    to: SocketAddr,
}

impl Key {
    fn reversed(self) -> Key {
        Key { ports: (self.ports.1, self.ports.0), from: self.to, to: self.from }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct DatagramKey {
    ports: (PortId, PortId),
    addresses: (IpAddr, IpAddr),
    protocol: IpProtocol,
    id: u32,
}

#[derive(Default)]
struct Flow {
    answered: bool,
    /// TCP: a FIN or RST has been seen.
    ending: bool,
}

/// TCP's flags, as far as they are looked at.
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// All flows along links of a network.
pub struct LinkedFlows {
    tcp: FlowTable<Key, Flow>,
    udp: FlowTable<Key, Flow>,
    datagrams: FlowTable<DatagramKey, ()>,
}

impl LinkedFlows {
    /// None yet. UDP flows are forgotten after `udp_timeout`.
    pub fn new(udp_timeout: Duration) -> LinkedFlows {
        LinkedFlows {
            tcp: FlowTable::new(TCP_OTHER, TCP_OPEN),
            udp: FlowTable::new(UDP_UNANSWERED.min(udp_timeout), udp_timeout),
            datagrams: FlowTable::new(FRAGMENTS, FRAGMENTS),
        }
    }

    /// May this packet of one sandbox go to the other? Its source is known to be right.
    pub fn judge(
        &mut self,
        now: Instant,
        from: (PortId, &Endpoint),
        to: (PortId, &Endpoint),
        piece: &Piece<'_>,
    ) -> Verdict {
        expire(&mut self.tcp, now);
        expire(&mut self.udp, now);
        expire(&mut self.datagrams, now);
        if !crate::gateway::addresses(to.1).any(|address| address == piece.dst) {
            return Verdict::Dropped;
        }
        let ports = (from.0, to.0);
        let datagram = piece.fragment.map(|fragment| DatagramKey {
            ports,
            addresses: (piece.src, piece.dst),
            protocol: piece.protocol,
            id: fragment.id,
        });
        if piece.is_later_fragment() {
            let known = datagram.and_then(|key| self.datagrams.find(&key));
            return if known.is_some() { Verdict::Pass } else { Verdict::Dropped };
        }
        let verdict = match piece.protocol {
            IpProtocol::Tcp => self.tcp_segment(now, from, to, piece),
            IpProtocol::Udp => self.udp_datagram(now, from, to, piece),
            IpProtocol::Icmp if piece.src.is_ipv4() => self.icmp(ports, piece, 8, &[3, 11, 12]),
            IpProtocol::Icmpv6 if piece.src.is_ipv6() => self.icmp(ports, piece, 128, &[1, 2, 3, 4]),
            _ => Verdict::Dropped,
        };
        if let (Verdict::Pass, Some(key)) = (verdict, datagram)
            && self.datagrams.find(&key).is_none()
        {
            insert(&mut self.datagrams, now, MOST_DATAGRAMS, key, (), Idle::Long, from.0);
        }
        verdict
    }

    fn tcp_segment(
        &mut self,
        now: Instant,
        from: (PortId, &Endpoint),
        to: (PortId, &Endpoint),
        piece: &Piece<'_>,
    ) -> Verdict {
        let (Some((source, destination)), Some(&flags)) = (piece.ports(), piece.upper.get(13)) else {
            return Verdict::Dropped;
        };
        let key = key(from.0, to.0, piece, source, destination);
        let ends = flags & (FIN | RST) != 0;
        if use_known(&mut self.tcp, now, key, ends) {
            return Verdict::Pass;
        }
        if links::may_open(from.1, to.1, Protocol::Tcp, destination) {
            insert(&mut self.tcp, now, MOST_FLOWS, key, Flow::default(), Idle::Short, from.0);
            return Verdict::Pass;
        }
        let opens = flags & SYN != 0;
        if !opens && links::may_open(to.1, from.1, Protocol::Tcp, source) {
            let flow = Flow { answered: true, ending: ends };
            let idle = if ends { Idle::Short } else { Idle::Long };
            insert(&mut self.tcp, now, MOST_FLOWS, key.reversed(), flow, idle, to.0);
            return Verdict::Pass;
        }
        if opens && flags & (ACK | RST) == 0 { Verdict::Refused } else { Verdict::Dropped }
    }

    fn udp_datagram(
        &mut self,
        now: Instant,
        from: (PortId, &Endpoint),
        to: (PortId, &Endpoint),
        piece: &Piece<'_>,
    ) -> Verdict {
        let Some((source, destination)) = piece.ports() else { return Verdict::Dropped };
        let key = key(from.0, to.0, piece, source, destination);
        if use_known(&mut self.udp, now, key, false) {
            return Verdict::Pass;
        }
        if links::may_open(from.1, to.1, Protocol::Udp, destination) {
            insert(&mut self.udp, now, MOST_FLOWS, key, Flow::default(), Idle::Short, from.0);
            return Verdict::Pass;
        }
        Verdict::Refused
    }

    /// An ICMP message. An error passes with the packet that it quotes, which its receiver must have sent.
    fn icmp(&self, ports: (PortId, PortId), piece: &Piece<'_>, echo_request: u8, errors: &[u8]) -> Verdict {
        let Some((header, quoted)) = piece.upper.split_first_chunk::<8>() else { return Verdict::Dropped };
        if header[0] == echo_request {
            return Verdict::Refused;
        }
        let Some(quote) = errors.contains(&header[0]).then(|| Quoted::parse(quoted)).flatten() else {
            return Verdict::Dropped;
        };
        if quote.from.ip() != piece.dst || quote.to.ip() != piece.src {
            return Verdict::Dropped;
        }
        let table = match quote.protocol {
            Protocol::Tcp => &self.tcp,
            Protocol::Udp => &self.udp,
        };
        let sent = Key { ports: (ports.1, ports.0), from: quote.from, to: quote.to };
        let known = table.find(&sent).or_else(|| table.find(&sent.reversed()));
        if known.is_some() { Verdict::Pass } else { Verdict::Dropped }
    }

    /// The port is gone, and with it the flows that it began and those that led to it.
    pub fn remove_port(&mut self, port: PortId) {
        let led = |key: &Key| key.ports.1 == port;
        remove_port(&mut self.tcp, port, led);
        remove_port(&mut self.udp, port, led);
        remove_port(&mut self.datagrams, port, |key| key.ports.1 == port);
    }

    /// Flows now: of TCP and of UDP.
    #[cfg(test)]
    pub fn len(&self) -> (usize, usize) {
        (self.tcp.len(), self.udp.len())
    }
}

fn key(from: PortId, to: PortId, piece: &Piece<'_>, source: u16, destination: u16) -> Key {
    let (from_socket, to_socket) = (SocketAddr::new(piece.src, source), SocketAddr::new(piece.dst, destination));
    Key { ports: (from, to), from: from_socket, to: to_socket }
}

/// A packet of a flow that is known, either way, is noted.
fn use_known(table: &mut FlowTable<Key, Flow>, now: Instant, key: Key, ends: bool) -> bool {
    let (index, answers) = match table.find(&key) {
        Some(index) => (index, false),
        None => match table.find(&key.reversed()) {
            Some(index) => (index, true),
            None => return false,
        },
    };
    let Some((_, flow)) = table.placed(index) else { return false };
    flow.answered |= answers;
    flow.ending |= ends;
    let idle = if flow.answered && !flow.ending { Idle::Long } else { Idle::Short };
    table.touch(now, index, idle);
    true
}

fn insert<K: Copy + Eq + std::hash::Hash, V>(
    table: &mut FlowTable<K, V>,
    now: Instant,
    most: usize,
    key: K,
    value: V,
    idle: Idle,
    port: PortId,
) {
    if table.count(port) >= most
        && let Some(oldest) = table.oldest(port)
    {
        table.remove(oldest);
    }
    table.insert(now, port, key, value, idle);
}

fn expire<K: Copy + Eq + std::hash::Hash, V>(table: &mut FlowTable<K, V>, now: Instant) {
    while let Some(index) = table.expired(now) {
        table.remove(index);
    }
}

fn remove_port<K: Copy + Eq + std::hash::Hash, V>(
    table: &mut FlowTable<K, V>,
    port: PortId,
    led_there: impl Fn(&K) -> bool,
) {
    while let Some(index) = table.oldest(port) {
        table.remove(index);
    }
    table.forget_port(port);
    for index in table.find_where(led_there) {
        table.remove(index);
    }
}

/// What an ICMP error quotes.
struct Quoted {
    protocol: Protocol,
    from: SocketAddr,
    to: SocketAddr,
}

impl Quoted {
    /// The head of a packet with at least the ports. A later fragment has none.
    fn parse(bytes: &[u8]) -> Option<Quoted> {
        let (src, dst, protocol, upper): (IpAddr, IpAddr, u8, &[u8]) = match bytes.first()? >> 4 {
            4 => {
                let header: &[u8; 20] = bytes.first_chunk()?;
                let later = u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0;
                let length = usize::from(header[0] & 15) * 4;
                let address = |at: usize| IpAddr::from([header[at], header[at + 1], header[at + 2], header[at + 3]]);
                let upper = bytes.get(length..).filter(|_| length >= 20 && !later)?;
                (address(12), address(16), header[9], upper)
            }
            6 => {
                let header: &[u8; 40] = bytes.first_chunk()?;
                let address = |at: usize| IpAddr::from(std::array::from_fn::<u8, 16, _>(|i| header[at + i]));
                (address(8), address(24), header[6], &bytes[40..])
            }
            _ => return None,
        };
        let protocol = match IpProtocol::from(protocol) {
            IpProtocol::Tcp => Protocol::Tcp,
            IpProtocol::Udp => Protocol::Udp,
            _ => return None,
        };
        let &[s0, s1, d0, d1, ..] = upper else { return None };
        let (source, destination) = (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]));
        Some(Quoted { protocol, from: SocketAddr::new(src, source), to: SocketAddr::new(dst, destination) })
    }
}
