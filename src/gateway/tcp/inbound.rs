//! Flows that begin outside: the gateway connects to a sandbox in a client's name.
//!
//! # Theory of operation
//!
//! ```text
//!   a client's connection was accepted ── [`TcpTable::open_published`]: smoltcp sends SYN
//!    │
//!    ▼           RST: once more on the other family, then refused ── no answer in 30 s ── refused
//!   dialing ──────────────────────────────────────────────────────────────────────────────────────► gone
//!    │ SYN-ACK                                                        (the client's connection is reset)
//!    ▼
//!   open, like any other flow
//! ```
//!
//! The flow is in the same table under the same kind of name, the sandbox's side first. As long as it is dialing,
//! what the client sends waits in the host's socket. Dialing flows are bounded like half-open ones.
//!
//! Who calls: the client under its own address and port, wherever the sandbox can answer that. Where it cannot (its
//! family is not on the network; the address means somebody else inside, or nobody) the gateway's address stands for
//! the client, with the client's port if that is free.
//!
//! Only the SYN-ACK says how large the sandbox's segments are, so it passes through here with its option raised
//! ([`device`]) before smoltcp sees it. Two answers are no end yet:
//!
//! - An acknowledgement of something else: the sandbox remembers an earlier connection of the same client (TIME-WAIT,
//!   or one that a gateway before this one left behind). smoltcp answers with RST, which ends it there (RFC 9293,
//!   3.5.1), and a new SYN follows at once rather than a second later.
//! - A reset: programs that listen on 0.0.0.0 alone should be found by clients that come over IPv6, and the other way
//!   round, so the other family is tried, in the gateway's name.
use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use smoltcp::socket::tcp::State as SocketState;
use smoltcp::wire::TcpPacket;

use super::device::{self, Wire};
use super::flow::OpenFlow;
use super::wire::{self, HeldSyn};
use super::{HALF_OPEN_LIMIT, Key, RING_BYTES, State, TcpTable, clock, interface};
use crate::gateway::kept::{can_be_a_client, stand_in};
use crate::gateway::link::{Link, Peer, PortId, Service, TcpId};
use crate::gateway::{Segment, counters::DropReason, packet::Packet};
use crate::sys::tcp_slot::TcpSlot;

/// How many of the gateway's ports are tried when the client's is taken.
const PORT_TRIES: u64 = 32;
/// Where they are taken from, and how many there are (RFC 6335, 6).
const EPHEMERAL: (u16, u64) = (49_152, 16_384);

/// What a flow that has had no SYN-ACK yet may still try.
pub(super) struct Dial {
    /// The sandbox's address of the other family.
    other: Option<SocketAddr>,
    /// A new SYN was sent because the sandbox remembered another connection.
    repeated: bool,
}

impl TcpTable {
    /// Connect to a sandbox's port in a client's name. The client's socket is to be the flow's stream.
    ///
    /// Fails when too many flows are dialing, the client has such a flow already, the sandbox is not there or has no
    /// address, or there is no memory.
    pub fn open_published(
        &mut self,
        now: Instant,
        segment: &mut Segment,
        port: PortId,
        client: SocketAddr,
        service: Service,
        link: &mut impl Link,
    ) -> Result<TcpId, DropReason> {
        if !segment.network.behaviour.services.tcp {
            return Err(DropReason::Disabled);
        }
        if self.dialing.of(port) >= HALF_OPEN_LIMIT {
            return Err(DropReason::HalfOpenLimit);
        }
        if self.is_full(port) {
            return Err(DropReason::FlowLimit);
        }
        let endpoint = segment.ports.get(&port).ok_or(DropReason::NoFlow)?;
        let peer = Peer { port, mac: endpoint.mac };
        let v4 = service.through_link(segment.network.v4.and(endpoint.v4).map(IpAddr::V4), true);
        let v6 = service.through_link(segment.network.v6.and(endpoint.v6).map(IpAddr::V6), false);
        // Without an interface: inside there is only one link.
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        let (same, other) = if client.is_ipv4() { (v4, v6) } else { (v6, v4) };
        let (key, other) = match same {
            Some(from) if can_be_a_client(segment, client.ip()) => (Key { port, from, to: client }, other),
            Some(from) => (self.stand_in(segment, port, from, client)?, other),
            None => (self.stand_in(segment, port, other.ok_or(DropReason::Family)?, client)?, None),
        };
        if self.by_key.contains_key(&key) {
            return Err(DropReason::FlowLimit);
        }
        let slot = match self.spare.pop() {
            Some(slot) => slot,
            None => TcpSlot::new(RING_BYTES).map_err(|_| DropReason::FlowLimit)?,
        };
        let open = OpenFlow::new(slot, self.dialing_wire(segment, peer, key), 0);
        let id = self.insert(now, key, peer, State::Open(Box::new(open)));
        self.flows[id.index as usize].inbound = true;
        self.flows[id.index as usize].dial = Some(Dial { other, repeated: false });
        self.dialing.add(port);
        segment.kept.keep(&segment.network, port, key.to.ip());
        segment.counters.tcp_flows += 1;
        self.dial(now, segment, id, link);
        Ok(id)
    }

    /// The client's socket could not be served after all: forget its flow. The sandbox is told when it answers.
    pub fn abandon(&mut self, segment: &mut Segment, id: TcpId) {
        if let Some(flow) = self.remove(id)
            && flow.inbound
        {
            segment.kept.forget(flow.key.port, flow.key.to.ip());
        }
    }

    /// Send a SYN for a flow's present name.
    fn dial(&mut self, now: Instant, segment: &mut Segment, id: TcpId, link: &mut impl Link) {
        let flow = &mut self.flows[id.index as usize];
        let (key, peer) = (flow.key, flow.peer);
        // The sandbox answers under this name from now on; what is left of an earlier flow is in the way.
        self.time_wait.remove(&key);
        self.flows_seen += 1;
        let fresh = interface(self.secret.hash_one((self.flows_seen, key)));
        let wire = self.dialing_wire(segment, peer, key);
        let interface = if key.from.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        *interface = fresh;
        let State::Open(open) = &mut self.flows[id.index as usize].state else { return };
        open.dial(interface, wire, key.to, key.from);
        open.transmit(clock(self.epoch, now), interface, &mut segment.counters, link);
        self.mark_dirty(id);
    }

    /// What is known before the SYN-ACK.
    fn dialing_wire(&self, segment: &Segment, peer: Peer, key: Key) -> Wire {
        let ip_header = wire::plain_ip_header(key.from.ip());
        let our_mss = wire::largest_segment(self.our_mtu, ip_header);
        let mac = segment.network.gateway_mac;
        Wire { peer, mac, ip_header, mss: our_mss, our_mss, last_ack: 0, next_sequence: None, is_pressed: false }
    }

    /// A name in which the gateway itself is the client.
    fn stand_in(
        &self,
        segment: &Segment,
        port: PortId,
        from: SocketAddr,
        client: SocketAddr,
    ) -> Result<Key, DropReason> {
        let gateway = stand_in(segment, client.ip(), from.is_ipv4()).ok_or(DropReason::Family)?;
        let (first, count) = EPHEMERAL;
        let any = |n| first + (self.secret.hash_one((self.flows_seen, n)) % count) as u16;
        std::iter::once(client.port())
            .chain((0..PORT_TRIES).map(any))
            .map(|to| Key { port, from, to: SocketAddr::new(gateway, to) })
            .find(|key| !self.by_key.contains_key(key) && !self.time_wait.contains_key(key))
            .ok_or(DropReason::FlowLimit)
    }

    /// A segment of a flow that is dialing.
    pub(super) fn for_dialing(
        &mut self,
        now: Instant,
        segment: &mut Segment,
        id: TcpId,
        packet: &Packet<'_>,
        tcp: &TcpPacket<&[u8]>,
        link: &mut impl Link,
    ) -> Result<(), DropReason> {
        // The sandbox's own SYN has crossed ours; its answer to ours opens the connection.
        if tcp.syn() && !tcp.ack() {
            return Ok(());
        }
        // No text is taken before the handshake's end: headers are all there is to see.
        let mut answer = HeldSyn::new(packet, tcp)?;
        let flow = &mut self.flows[id.index as usize];
        let State::Open(open) = &mut flow.state else { return Ok(()) };
        if tcp.syn() {
            open.wire.mss = wire::segments_for(answer.mss(), open.wire.our_mss);
            answer.set_mss(device::super_segment(open.wire.mss, open.wire.ip_header));
        }
        let expected = open.wire.next_sequence;
        let interface = if packet.src.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        let begins = answer.sequence().wrapping_add(1);
        open.receive(clock(self.epoch, now), interface, &mut segment.counters, answer.bytes(), begins, link);
        flow.last_active = now;
        let state = open.slot.socket().state();
        let Some(dial) = &mut flow.dial else { return Ok(()) };
        match state {
            SocketState::SynSent => {
                let of_another = expected.is_some_and(|expected| tcp.ack_number().0 as u32 != expected);
                if tcp.ack() && !tcp.rst() && of_another && !std::mem::replace(&mut dial.repeated, true) {
                    self.dial(now, segment, id, link);
                }
            }
            SocketState::Closed => match dial.other.take() {
                Some(other) => self.dial_other(now, segment, id, other, link),
                None => {
                    open.reset_by_sandbox = true;
                    self.mark_dirty(id);
                }
            },
            _ => {
                open.answered(begins);
                flow.dial = None;
                self.dialing.subtract(flow.key.port);
                self.mark_dirty(id);
            }
        }
        Ok(())
    }

    /// Refused on one family: try the other.
    fn dial_other(&mut self, now: Instant, segment: &mut Segment, id: TcpId, other: SocketAddr, link: &mut impl Link) {
        let old = self.flows[id.index as usize].key;
        match self.stand_in(segment, old.port, other, old.to) {
            Ok(key) => {
                tracing::debug!("{} refused {}; {other} is tried in the gateway's name", old.from, old.to);
                self.by_key.remove(&old);
                self.by_key.insert(key, id.index as usize);
                self.flows[id.index as usize].key = key;
                segment.kept.forget(old.port, old.to.ip());
                segment.kept.keep(&segment.network, key.port, key.to.ip());
                self.dial(now, segment, id, link);
            }
            Err(_) => {
                if let State::Open(open) = &mut self.flows[id.index as usize].state {
                    open.reset_by_sandbox = true;
                }
                self.mark_dirty(id);
            }
        }
    }
}
