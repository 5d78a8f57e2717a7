//! The host's side of ping flows: one ping socket (SOCK_DGRAM, IPPROTO_ICMP or IPPROTO_ICMPV6; icmp(7)) for each.
//!
//! # Theory of operation
//!
//! A ping socket sends echo requests and receives the replies with its own identifier, which the kernel chooses
//! and writes over ours; the gateway's flow keeps the sandbox's. A flow has one destination, and a reply from
//! anybody else is counted and dropped here. ICMP errors come through the error queue as with
//! [UDP](super::udp), quoting the echo request, so `traceroute -I` works.
//!
//! Whether a process may have such sockets is decided by net.ipv4.ping_group_range, which on many hosts admits
//! nobody. That is not an error of ours: a flow's request then fails with [`HostError::Unsupported`], the person
//! is told once ([`PingHost::take_notice`]), and each new flow asks the kernel again, so that opening the range
//! needs no restart.

use std::io;
use std::net::{IpAddr, SocketAddr};

use mio::{Registry, Token};

use super::addr::{HostAddresses, host_error};
use super::errqueue;
use super::socket::OutSocket;
use crate::gateway::icmp::IcmpError;
use crate::gateway::link::{Datagram, EchoId, HostError};
use crate::plan::{HostView, Outbound};
use crate::sys::dgram::{BATCH, Batch, SocketOption};

/// ICMP types of echo request and reply, with the reply's (RFC 792; RFC 4443, 4).
const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REPLY_V4: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
/// Pending errors taken in one call before others get their turn.
const MOST_ERRORS: usize = 16;
/// The hop limit a reply is given when the kernel did not say its own.
const DEFAULT_HOP_LIMIT: u8 = 64;

/// What came for a flow.
#[derive(Clone, Copy, Debug)]
pub enum PingEvent<'a> {
    /// A reply: see [`Gateway::handle_echo_reply`](crate::gateway::Gateway::handle_echo_reply).
    Reply {
        /// Which flow.
        flow: EchoId,
        /// The request's sequence number.
        sequence: u16,
        /// Data after the echo header.
        data: &'a [u8],
        /// TTL or hop limit the reply came with.
        hop_limit: u8,
    },
    /// An ICMP error: see [`Gateway::handle_echo_error`](crate::gateway::Gateway::handle_echo_error).
    Error {
        /// Which flow.
        flow: EchoId,
        /// The request's sequence number.
        sequence: u16,
        /// Which error.
        error: IcmpError,
        /// Who sent it; `None` for this host's own stack.
        offender: Option<IpAddr>,
        /// Data after the quoted echo header, as much as came back.
        data: &'a [u8],
    },
}

struct Slot {
    generation: u32,
    socket: Option<(Box<OutSocket>, IpAddr)>,
}

/// The ping sockets of a worker.
pub struct PingHost {
    registry: Registry,
    token: fn(u32) -> Token,
    outbound: Option<Outbound>,
    addresses: HostAddresses,
    slots: Vec<Slot>,
    open: usize,
    limit: usize,
    unsolicited: u64,
    notice: Option<String>,
    noticed: bool,
}

impl PingHost {
    /// No sockets yet. `token` names a flow's place to the event loop; at most `limit` sockets are open at once.
    pub fn new(registry: Registry, token: fn(u32) -> Token, outbound: &Outbound, limit: usize) -> PingHost {
        let chosen = *outbound != Outbound::default();
        PingHost {
            registry,
            token,
            outbound: chosen.then(|| outbound.clone()),
            addresses: HostAddresses::default(),
            slots: Vec::new(),
            open: 0,
            limit,
            unsolicited: 0,
            notice: None,
            noticed: false,
        }
    }

    /// The host's addresses changed.
    pub fn handle_host_changed(&mut self, host: &HostView) {
        self.addresses = HostAddresses::new(host);
    }

    /// Sockets open now.
    pub fn open_sockets(&self) -> usize {
        self.open
    }

    /// Replies that were dropped because they came from somebody else than the flow's destination.
    pub fn unsolicited(&self) -> u64 {
        self.unsolicited
    }

    /// What the person should know, once: that the host allows no ping sockets.
    pub fn take_notice(&mut self) -> Option<String> {
        self.notice.take()
    }

    /// Send an echo request: see [`Host::echo_send`](crate::gateway::link::Host::echo_send).
    /// The destination's port means nothing.
    pub fn send(
        &mut self,
        flow: EchoId,
        destination: SocketAddr,
        sequence: u16,
        datagram: Datagram<'_>,
    ) -> Result<(), HostError> {
        let to = destination.ip();
        let local = self.addresses.is_local(to);
        self.socket(flow, to, local)?;
        let outbound = self.outbound.as_ref().filter(|_| !local);
        let Some((socket, _)) = &mut self.slots[flow.index as usize].socket else { return Err(HostError::Exhausted) };
        let kind = if to.is_ipv6() { ECHO_REQUEST_V6 } else { ECHO_REQUEST_V4 };
        // The kernel fills in checksum and identifier.
        let [s0, s1] = sequence.to_be_bytes();
        let header = [kind, 0, 0, 0, 0, 0, s0, s1];
        let sent = socket.prepare(&datagram).and_then(|()| socket.send(destination, [&header, datagram.payload], 0));
        sent.map_err(|error| socket.explain(&error, to, outbound))
    }

    /// See that a flow has its socket.
    fn socket(&mut self, flow: EchoId, to: IpAddr, local: bool) -> Result<(), HostError> {
        let index = flow.index as usize;
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, || Slot { generation: 0, socket: None });
        }
        if self.slots[index].generation != flow.generation {
            self.clear(index);
            self.slots[index].generation = flow.generation;
        }
        if self.slots[index].socket.is_some() {
            return Ok(());
        }
        if self.open >= self.limit {
            return Err(HostError::Exhausted);
        }
        let outbound = self.outbound.as_ref().filter(|_| !local);
        let opened = OutSocket::open(to, true, outbound, &self.registry, (self.token)(flow.index));
        let socket = opened.map_err(|error| self.explain_open(&error))?;
        socket.set(SocketOption::ReceiveHopLimit, 1).map_err(|error| host_error(&error))?;
        self.slots[index].socket = Some((Box::new(socket), to));
        self.open += 1;
        Ok(())
    }

    /// Why there is no socket; told to the person once where it is the host's setting.
    fn explain_open(&mut self, error: &io::Error) -> HostError {
        let group = nix::unistd::getegid();
        let text = match error.raw_os_error() {
            Some(libc::EACCES) => format!(
                "ping to the outside is closed on this host: net.ipv4.ping_group_range does not include group \
                 {group} (sysctl -w net.ipv4.ping_group_range=\"0 2147483647\" opens it)"
            ),
            Some(libc::EPERM) => "ping to the outside is closed on this host: a security policy refuses ping \
                 sockets (a container engine's seccomp profile, or AppArmor); allow socket(SOCK_DGRAM, IPPROTO_ICMP) \
                 there"
                .to_owned(),
            Some(libc::EPROTONOSUPPORT) => {
                "ping to the outside is closed on this host: its kernel has no ping sockets".to_owned()
            }
            _ => return host_error(error),
        };
        if !self.noticed {
            self.noticed = true;
            self.notice = Some(text);
        }
        HostError::Unsupported
    }

    fn clear(&mut self, index: usize) {
        self.open -= usize::from(self.slots[index].socket.take().is_some());
    }

    /// The flow has ended.
    pub fn close(&mut self, flow: EchoId) {
        let index = flow.index as usize;
        if self.slots.get(index).is_some_and(|slot| slot.generation == flow.generation) {
            self.clear(index);
        }
    }

    /// The event loop says that the socket at this place is readable, or (`error`) that its error queue is not
    /// empty. Hands everything to `sink`, up to about `budget` messages; `true` when more remains, upon which
    /// this must be called again without another event.
    pub fn handle_ready(
        &mut self,
        index: u32,
        error: bool,
        batch: &mut Batch,
        budget: usize,
        mut sink: impl FnMut(PingEvent<'_>),
    ) -> bool {
        let Some(Slot { generation, socket: Some((socket, peer)) }) = self.slots.get(index as usize) else {
            return false;
        };
        let flow = EchoId { index, generation: *generation };
        if error {
            drain(socket, flow, &mut sink);
        }
        let (mut taken, mut errors) = (0, 0);
        loop {
            match batch.receive(socket.as_fd()) {
                Ok(count) => {
                    for message in (0..count).filter_map(|i| batch.message(i)) {
                        let Some((kind, sequence, data)) = parse(message.payload) else { continue };
                        if message.from.ip() != *peer || !matches!(kind, ECHO_REPLY_V4 | ECHO_REPLY_V6) {
                            self.unsolicited += 1;
                            continue;
                        }
                        let hop_limit = message.hop_limit.unwrap_or(DEFAULT_HOP_LIMIT);
                        sink(PingEvent::Reply { flow, sequence, data, hop_limit });
                    }
                    taken += count;
                    if count < BATCH {
                        return false;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => {
                    drain(socket, flow, &mut sink);
                    errors += 1;
                }
            }
            if taken >= budget || errors >= MOST_ERRORS {
                return true;
            }
        }
    }
}

/// Hand on what the error queue holds.
fn drain(socket: &OutSocket, flow: EchoId, sink: &mut impl FnMut(PingEvent<'_>)) {
    errqueue::drain(socket.as_fd(), |icmp| {
        if let Some((_, sequence, data)) = parse(icmp.payload) {
            sink(PingEvent::Error { flow, sequence, error: icmp.error, offender: icmp.offender, data });
        }
    });
}

/// Type, sequence number and data of an echo message.
fn parse(message: &[u8]) -> Option<(u8, u16, &[u8])> {
    let (&[kind, _, _, _, _, _, s0, s1], data) = message.split_first_chunk()?;
    Some((kind, u16::from_be_bytes([s0, s1]), data))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::host::testing::in_namespace;

    const FLOW: EchoId = EchoId { index: 0, generation: 1 };
    const DATAGRAM: Datagram<'static> =
        Datagram { payload: b"tapline", segment: 0, hop_limit: 9, tos: 0, dont_fragment: true };

    fn host() -> (mio::Poll, PingHost) {
        let poll = mio::Poll::new().unwrap();
        let registry = poll.registry().try_clone().unwrap();
        (poll, PingHost::new(registry, |index| Token(index as usize), &Outbound::default(), 8))
    }

    fn open_group_range() {
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap();
    }

    #[test]
    fn a_reply_comes_back_with_sequence_data_and_hop_limit() {
        if in_namespace("host::ping::tests::a_reply_comes_back_with_sequence_data_and_hop_limit", 65_536) {
            return;
        }
        open_group_range();
        for to in ["127.0.0.1", "::1"] {
            let (mut poll, mut pings) = host();
            pings.send(FLOW, SocketAddr::new(to.parse().unwrap(), 0), 513, DATAGRAM).unwrap();
            let mut events = mio::Events::with_capacity(4);
            poll.poll(&mut events, Some(Duration::from_secs(5))).unwrap();
            assert!(!events.is_empty(), "no reply from {to}");
            let mut replies = 0;
            pings.handle_ready(0, false, &mut Batch::new(), 16, |event| match event {
                PingEvent::Reply { flow, sequence, data, hop_limit } => {
                    assert_eq!((flow, sequence, data, hop_limit), (FLOW, 513, &b"tapline"[..], 64));
                    replies += 1;
                }
                PingEvent::Error { error, .. } => panic!("{error:?}"),
            });
            assert_eq!(replies, 1);
            pings.close(FLOW);
            assert_eq!(pings.open_sockets(), 0);
        }
        let (_poll, mut host) = host();
        let outside = "192.0.2.1".parse().unwrap();
        assert_eq!(host.send(FLOW, SocketAddr::new(outside, 0), 1, DATAGRAM), Err(HostError::NetUnreachable));
    }

    #[test]
    fn where_ping_sockets_are_closed_the_person_is_told_once() {
        if in_namespace("host::ping::tests::where_ping_sockets_are_closed_the_person_is_told_once", 65_536) {
            return;
        }
        let (_poll, mut host) = host();
        let to = "127.0.0.1".parse().unwrap();
        assert_eq!(host.send(FLOW, SocketAddr::new(to, 0), 1, DATAGRAM), Err(HostError::Unsupported));
        let notice = host.take_notice().unwrap();
        assert!(notice.contains("ping_group_range does not include group 0"), "{notice}");
        assert_eq!(host.send(FLOW, SocketAddr::new(to, 0), 2, DATAGRAM), Err(HostError::Unsupported));
        assert_eq!(host.take_notice(), None);
        // Opened meanwhile: works without a restart.
        open_group_range();
        assert_eq!(host.send(FLOW, SocketAddr::new(to, 0), 3, DATAGRAM), Ok(()));
    }
}
