//! TCP flows (RFC 9293) between sandboxes and the host.
//!
//! # Theory of operation
//!
//! The table knows each flow by its four-tuple, one hash lookup for a segment. A flow's life:
//!
//! ```text
//!   SYN ── judged by policy ── refused: ICMP or RST, no flow
//!    │
//!    ▼                      host's connect() fails: RST, ICMP, or silence
//!   connecting ─────────────────────────────────────────────────────────► gone
//!    │ connect() succeeded: only now smoltcp sees the SYN and answers it
//!    ▼
//!   open ([`flow::OpenFlow`]) ── both FINs acknowledged, or a reset ──────► gone
//!                                                                          (a small record for TIME-WAIT)
//! ```
//!
//! While it is connecting the SYN is held: a repeated one changes nothing, one with another initial sequence
//! number replaces it, a RST takes the flow away. Connecting flows are bounded, for each sandbox by itself
//! ([`HALF_OPEN_LIMIT`]).
//!
//! smoltcp is hidden here. One `Interface` for each family serves all flows, since it holds nothing of a flow;
//! each flow's socket is in a set of its own ([`TcpSlot`]), because an interface visits every socket of the set
//! it is given. The interface is made anew for each flow so that initial sequence numbers come from a keyed
//! hash that nobody outside can predict (RFC 6528).
//!
//! Work is found without looking at every flow: a segment, a ready host socket or a timer makes a flow *dirty*,
//! and the worker pumps dirty flows one after another, sandboxes in turn. Timers are a heap with lazy deletion: a flow has at most
//! one entry that counts, and an entry that comes too early is pushed back.
//!
//! Flows that begin outside, for published ports, are dialed in the client's name; see [`inbound`].
//!
//! A flow that has been quiet for [`QUIET`] gives its rings' pages back. A flow that ended leaves its memory to
//! the next ([`SPARE_SLOTS`]) and, where the protocol wants it, a record of some 60 bytes for 10 seconds: it
//! acknowledges a repeated FIN and yields to a new SYN (RFC 6191).
//!
//! What a sandbox can make this table hold:
//!
//! | what | bound | then |
//! | --- | --- | --- |
//! | flows that are not open on both sides | [`HALF_OPEN_LIMIT`] that the sandbox began, as many that began outside | its SYNs are dropped, and repeated |
//! | flows | [`MOST_FLOWS`]; where sandboxes share the process's descriptors [`TcpTable::limit`], and no more than are left ([`Host::descriptors_left`]) | the same |
//! | memory of the rings | 128 MiB, 512 MiB of all sandboxes of a network, and 16 KiB for each flow beyond ([`memory`]) | its flows go on slowly |
//! | memory of a flow besides | some 2 KiB | |
//! | records of ended flows | [`TIME_WAIT_LIMIT`]; of one of several sandboxes a quarter | no record: what is repeated is reset |
//! | timers | four for each flow, and [`timers::LEAST_TIMERS`] | those that no longer count go |
//! | time without a word, though something was sent | [`flow::GIVE_UP`] | reset |
//!
//! A window that is never opened keeps its flow for ever, as with any kernel: it costs a descriptor and a ring full.
use std::cmp::Reverse;
use std::collections::hash_map::{Entry, RandomState};
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use slab::Slab;
use smoltcp::iface::{Config, Interface};
use smoltcp::wire::{HardwareAddress, IpAddress, TcpControl, TcpPacket};

use super::describe::Description;
use super::icmp::{self, IcmpError};
use super::link::{Asker, Host, HostError, Link, Peer, PortId, TcpId};
use super::{Segment, cost, counters::DropReason, packet::Packet, udp};
use crate::plan::Network;
use crate::policy::Refusal;
use crate::sys::tcp_slot::TcpSlot;
use device::{FlowDevice, Wire};
use dirty::Dirty;
use flow::{End, HostStream, OpenFlow};
use inbound::Dial;
use memory::Held;
use wire::HeldSyn;

mod device;
mod dirty;
pub mod flow;
mod inbound;
pub mod memory;
#[cfg(test)]
mod tests;
mod timers;
mod wire;

/// Bytes of each ring of a flow: what may be under way each way.
const RING_BYTES: usize = 512 * 1024;
/// Most flows of a sandbox: more than the 28,232 that a kernel has ports for to one server (net.ipv4.ip_local_port_range).
pub const MOST_FLOWS: usize = 32_768;
/// Most flows of a sandbox that are not open yet: the host is not connected, or the sandbox has not ended its handshake.
/// Further SYNs are dropped and will be repeated.
pub const HALF_OPEN_LIMIT: usize = 1024;
/// Ended flows whose memory is kept for the next.
pub const SPARE_SLOTS: usize = 32;
/// A flow with no more memory than this leaves it as it is when its slot is kept.
const WARM_BYTES: usize = 8 * 1024;
/// After this long without traffic a flow's pages are given back.
pub const QUIET: Duration = Duration::from_millis(200);
/// How long a record of an ended flow is kept (RFC 9293 wants two segment lifetimes; ours live on a TAP).
const TIME_WAIT: Duration = Duration::from_secs(10);
/// Most such records.
const TIME_WAIT_LIMIT: usize = 8192;

/// A flow's name: who speaks to whom, seen from the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    port: PortId,
    from: SocketAddr,
    to: SocketAddr,
}

enum State {
    /// The host's connect() is under way; the SYN waits.
    Connecting(Box<HeldSyn>),
    /// Bytes flow.
    Open(Box<OpenFlow>),
}

struct Flow {
    key: Key,
    peer: Peer,
    generation: u32,
    state: State,
    /// Is in the queue of dirty flows.
    dirty: bool,
    /// The entry of the timer heap that counts.
    timer: Option<Instant>,
    last_active: Instant,
    /// Is in the queue of flows to be looked at for quiet.
    quiet_queued: bool,
    /// Its pages were given back and not touched since.
    pages_released: bool,
    keepalive_asked: bool,
    /// Is in the list of flows that wait for room on their link.
    parked: bool,
    /// A timer made it dirty, not a segment or the host.
    timer_due: bool,
    /// Counts as one that is connecting.
    half_open: bool,
    /// It began outside, in the name of `key.to`.
    inbound: bool,
    /// The sandbox has not answered our SYN yet.
    dial: Option<Dial>,
}

/// How many flows of a kind each sandbox has. Who has none is not in it.
#[derive(Default)]
struct Counts(HashMap<PortId, usize>);

impl Counts {
    fn of(&self, port: PortId) -> usize {
        self.0.get(&port).copied().unwrap_or(0)
    }

    fn add(&mut self, port: PortId) {
        *self.0.entry(port).or_default() += 1;
    }

    fn subtract(&mut self, port: PortId) {
        if let Entry::Occupied(mut count) = self.0.entry(port) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// What is left of a flow whose sandbox may still repeat its FIN.
struct TimeWait {
    until: Instant,
    sequence: u32,
    acknowledge: u32,
}

/// All TCP flows of a network.
pub struct TcpTable {
    epoch: Instant,
    flows: Slab<Flow>,
    by_key: HashMap<Key, usize>,
    next_generation: u32,
    /// Flows that the sandbox began and that are not open on both sides.
    connecting: Counts,
    /// Flows whose SYN the sandbox has not answered yet.
    dialing: Counts,
    /// All flows.
    open: Counts,
    /// Most of a sandbox.
    most_flows: usize,
    dirty: Dirty,
    /// By port: flows that wait for room on their link.
    parked: Vec<Vec<TcpId>>,
    /// What all rings have.
    memory: Held,
    timers: BinaryHeap<Reverse<(Instant, u32, u32)>>,
    quiet: VecDeque<(Instant, TcpId)>,
    time_wait: HashMap<Key, TimeWait>,
    time_wait_order: VecDeque<(Instant, Key)>,
    /// Entries in that order.
    records: Counts,
    /// Most of a sandbox.
    most_records: usize,
    spare: Vec<TcpSlot>,
    v4: Interface,
    v6: Interface,
    secret: RandomState,
    flows_seen: u64,
    our_mtu: u16,
}

impl TcpTable {
    /// An empty table; `now` is the zero of smoltcp's clock.
    pub fn new(now: Instant, network: &Network) -> TcpTable {
        let secret = RandomState::new();
        TcpTable {
            epoch: now,
            flows: Slab::new(),
            by_key: HashMap::new(),
            next_generation: 1,
            connecting: Counts::default(),
            dialing: Counts::default(),
            open: Counts::default(),
            most_flows: MOST_FLOWS,
            dirty: Dirty::default(),
            parked: Vec::new(),
            memory: Held::default(),
            timers: BinaryHeap::new(),
            quiet: VecDeque::new(),
            time_wait: HashMap::new(),
            time_wait_order: VecDeque::new(),
            records: Counts::default(),
            most_records: if network.sharing.is_some() { TIME_WAIT_LIMIT / 4 } else { TIME_WAIT_LIMIT },
            spare: Vec::new(),
            v4: interface(secret.hash_one(4)),
            v6: interface(secret.hash_one(6)),
            secret,
            flows_seen: 0,
            our_mtu: network.mtu,
        }
    }

    /// A sandbox has at most so many flows from now on; further SYNs are dropped and will be repeated.
    pub fn limit(&mut self, most_flows: usize) {
        self.most_flows = most_flows.min(MOST_FLOWS);
    }

    /// Has this sandbox as many flows as it may have?
    fn is_full(&self, port: PortId) -> bool {
        self.open.of(port) >= self.most_flows
    }

    /// Flows now.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// No flow at all?
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// How many places the table has, taken or not.
    pub fn places(&self) -> usize {
        self.flows.capacity()
    }

    /// The flow at a place, for people.
    pub fn describe(&mut self, place: usize) -> Option<Description> {
        let flow = self.flows.get_mut(place)?;
        let state = match &mut flow.state {
            State::Connecting(_) => "connecting",
            State::Open(open) => open.phase(),
        };
        Some(Description {
            port: flow.key.port,
            protocol: "tcp",
            published: flow.inbound,
            inside: flow.key.from,
            outside: Some(flow.key.to),
            state,
        })
    }

    /// A sandbox sent a segment.
    pub fn handle_segment(
        &mut self,
        now: Instant,
        segment: &mut Segment,
        packet: &Packet<'_>,
        host: &mut impl Host,
        link: &mut impl Link,
    ) -> Result<(), DropReason> {
        let tcp = TcpPacket::new_checked(packet.payload()).map_err(|_| DropReason::Malformed)?;
        if tcp.src_port() == 0 || tcp.dst_port() == 0 {
            return Err(DropReason::Malformed);
        }
        wire::verify_checksum(packet, &tcp)?;
        let key = Key {
            port: packet.peer.port,
            from: SocketAddr::new(packet.src, tcp.src_port()),
            to: SocketAddr::new(packet.dst, tcp.dst_port()),
        };
        if let Some(&index) = self.by_key.get(&key) {
            return self.for_flow(now, segment, index, packet, &tcp, host, link);
        }
        let opens = tcp.syn() && !tcp.ack() && !tcp.rst() && !tcp.fin();
        if let Some(record) = self.time_wait.get(&key) {
            if opens {
                self.time_wait.remove(&key);
            } else if tcp.rst() {
                return Ok(());
            } else {
                let (sequence, acknowledge) = (record.sequence, Some(record.acknowledge));
                wire::send_bare(segment, packet.peer, key.to, key.from, TcpControl::None, sequence, acknowledge, link);
                return Ok(());
            }
        }
        if opens {
            return self.open(now, segment, key, packet, &tcp, host, link);
        }
        // Nobody answers in the name of a group or of no address (RFC 9293, 3.9.2.3).
        if !is_somebody(segment, packet.dst) {
            return Err(DropReason::Multicast);
        }
        if !tcp.rst() {
            wire::refuse(segment, packet, &tcp, link);
        }
        Err(DropReason::NoFlow)
    }

    /// A SYN for a new flow.
    #[allow(clippy::too_many_arguments)]
    fn open(
        &mut self,
        now: Instant,
        segment: &mut Segment,
        key: Key,
        packet: &Packet<'_>,
        tcp: &TcpPacket<&[u8]>,
        host: &mut impl Host,
        link: &mut impl Link,
    ) -> Result<(), DropReason> {
        let dns = key.to.port() == 53 && segment.network.dns_enabled && segment.network.is_dns(key.to.ip());
        let destination = if dns {
            key.to
        } else {
            match segment.judge_service(key.port, key.to) {
                Ok(destination) => destination,
                Err(refusal) => return Err(refuse(now, segment, refusal, packet, tcp, link)),
            }
        };
        let for_gateway = dns || segment.network.is_host(key.to.ip());
        let is_hop = segment.network.is_hop_to(key.to.ip());
        if packet.hop_limit <= 1 && is_hop {
            icmp::send_error(now, segment, packet.peer, None, IcmpError::HopLimitExceeded, packet.bytes, link);
            return Err(DropReason::HopLimit);
        }
        if self.connecting.of(key.port) >= HALF_OPEN_LIMIT {
            return Err(DropReason::HalfOpenLimit);
        }
        // Who has more than is left for all leaves it to them.
        if self.is_full(key.port) || self.open.of(key.port) > host.descriptors_left() {
            return Err(DropReason::FlowLimit);
        }
        let held = Box::new(HeldSyn::new(packet, tcp)?);
        let id = self.insert(now, key, packet.peer, State::Connecting(held));
        self.flows[id.index as usize].half_open = true;
        self.connecting.add(key.port);
        segment.counters.tcp_flows += 1;
        segment.extra += cost::CONNECTION;
        if dns {
            host.tcp_connect_dns(id, Asker { peer: packet.peer, from: key.from, to: key.to.ip() });
        } else {
            const USUAL_HOP_LIMIT: u8 = 64;
            let is_usual = packet.hop_limit == USUAL_HOP_LIMIT || for_gateway;
            let hop_limit = (!is_usual).then(|| packet.hop_limit.saturating_sub(u8::from(is_hop)).max(1));
            host.tcp_connect(id, destination, hop_limit);
        }
        Ok(())
    }

    fn insert(&mut self, now: Instant, key: Key, peer: Peer, state: State) -> TcpId {
        let generation = self.next_generation;
        self.next_generation = generation.wrapping_add(1);
        let index = self.flows.insert(Flow {
            key,
            peer,
            generation,
            state,
            dirty: false,
            timer: None,
            last_active: now,
            quiet_queued: false,
            pages_released: false,
            keepalive_asked: false,
            parked: false,
            timer_due: false,
            half_open: false,
            inbound: false,
            dial: None,
        });
        self.by_key.insert(key, index);
        self.open.add(key.port);
        TcpId { index: index as u32, generation }
    }

    /// A segment of a flow that is known.
    #[allow(clippy::too_many_arguments)]
    fn for_flow(
        &mut self,
        now: Instant,
        segment: &mut Segment,
        index: usize,
        packet: &Packet<'_>,
        tcp: &TcpPacket<&[u8]>,
        host: &mut impl Host,
        link: &mut impl Link,
    ) -> Result<(), DropReason> {
        let flow = &mut self.flows[index];
        let id = TcpId { index: index as u32, generation: flow.generation };
        if flow.dial.is_some() {
            return self.for_dialing(now, segment, id, packet, tcp, link);
        }
        let open = match &mut flow.state {
            State::Connecting(held) => {
                if tcp.rst() {
                    self.remove(id);
                    host.tcp_close(id, true);
                } else if tcp.syn() && !tcp.ack() && held.sequence() != tcp.seq_number().0 as u32 {
                    **held = HeldSyn::new(packet, tcp)?;
                }
                return Ok(());
            }
            State::Open(open) => open,
        };
        let sequence = tcp.seq_number().0 as u32;
        let text = tcp.payload().len();
        let plain = wire::without_extensions(packet);
        let mut bytes = plain.as_deref().unwrap_or(packet.bytes);
        let (mut taken, mut end) = (text, sequence.wrapping_add(tcp.segment_len() as u32));
        let short;
        open.wire.is_pressed = self.memory.is_pressed(flow.key.port);
        if text > 0 && open.wire.is_pressed {
            taken = open.room_behind(sequence).min(text);
            if taken < text {
                segment.counters.drop(DropReason::NoRoom);
                short = wire::shortened(bytes, text, taken);
                bytes = &short;
                end = if taken > 0 { sequence.wrapping_add(taken as u32) } else { open.highest_received };
            }
        }
        let window = RING_BYTES as u32;
        // Only what smoltcp can have taken counts: within a window of what we acknowledged.
        if (end.wrapping_sub(open.highest_received) as i32) > 0 && end.wrapping_sub(open.wire.last_ack) <= window {
            open.highest_received = end;
        }
        if is_keepalive(tcp, open.wire.last_ack) && !flow.keepalive_asked {
            flow.keepalive_asked = true;
            host.tcp_keepalive(id);
        }
        let interface = if packet.src.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        let clock = clock(self.epoch, now);
        let was_reset = tcp.rst();
        let text_end = sequence.wrapping_add(u32::from(tcp.syn())).wrapping_add(taken as u32);
        open.receive(clock, interface, &mut segment.counters, bytes, text_end, link);
        use smoltcp::socket::tcp::State::{Closed, Listen};
        open.reset_by_sandbox |= was_reset && matches!(open.slot.socket().state(), Closed | Listen);
        flow.last_active = now;
        flow.pages_released &= taken == 0;
        let memory = open.memory();
        self.memory.update(flow.key.port, &mut open.counted, memory);
        self.mark_dirty(id);
        Ok(())
    }

    /// The host's connect has an outcome: the SYN is answered now.
    pub fn handle_outcome(
        &mut self,
        now: Instant,
        segment: &mut Segment,
        id: TcpId,
        outcome: Result<(), HostError>,
        offender: Option<IpAddr>,
        link: &mut impl Link,
    ) -> Outcome {
        let Some(flow) = self.flow(id) else { return Outcome::Gone };
        let (key, peer) = (flow.key, flow.peer);
        let State::Connecting(held) = &flow.state else { return Outcome::Gone };
        let held = held.clone();
        match outcome {
            Ok(()) => match self.established(now, segment, id, *held, link) {
                Ok(()) => return Outcome::Open,
                // No memory for its rings: as if the SYN had been lost.
                Err(_) => segment.counters.drop(DropReason::FlowLimit),
            },
            Err(HostError::Refused | HostError::Reset) => {
                let acknowledge = Some(held.sequence().wrapping_add(1));
                wire::send_bare(segment, peer, key.to, key.from, TcpControl::Rst, 0, acknowledge, link);
            }
            Err(HostError::TimedOut) => {}
            Err(HostError::Exhausted | HostError::Unsupported) => segment.counters.drop(DropReason::FlowLimit),
            Err(error) => {
                let error = match error {
                    HostError::HostUnreachable => IcmpError::HostUnreachable,
                    HostError::HopLimitExceeded => IcmpError::HopLimitExceeded,
                    HostError::Prohibited => IcmpError::Prohibited,
                    HostError::TooBig(mtu) => IcmpError::PacketTooBig(mtu),
                    _ => IcmpError::NetUnreachable,
                };
                icmp::send_error(now, segment, peer, offender, error, held.bytes(), link);
            }
        }
        self.remove(id);
        Outcome::Gone
    }

    /// Let smoltcp take the held SYN.
    fn established(
        &mut self,
        now: Instant,
        segment: &mut Segment,
        id: TcpId,
        mut held: HeldSyn,
        link: &mut impl Link,
    ) -> std::io::Result<()> {
        let mut slot = match self.spare.pop() {
            Some(slot) => slot,
            None => TcpSlot::new(RING_BYTES)?,
        };
        slot.renew();
        let flow = &mut self.flows[id.index as usize];
        let key = flow.key;
        let ip_header = wire::plain_ip_header(key.from.ip());
        let our_mss = wire::largest_segment(self.our_mtu, ip_header);
        let mss = wire::segments_for(held.mss(), our_mss);
        let isn = held.sequence();
        held.set_mss(device::super_segment(mss, ip_header));
        let endpoint = (IpAddress::from(key.to.ip()), key.to.port());
        slot.socket().listen(endpoint).map_err(|e| std::io::Error::other(format!("{e:?}")))?;
        let wire = Wire {
            peer: flow.peer,
            mac: segment.network.gateway_mac,
            ip_header,
            mss,
            our_mss,
            last_ack: 0,
            next_sequence: None,
            is_pressed: false,
        };
        let mut open = Box::new(OpenFlow::new(slot, wire, isn));
        self.flows_seen += 1;
        let seed = self.secret.hash_one((self.flows_seen, key));
        let fresh = interface(seed);
        let interface = if key.from.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        *interface = fresh;
        let clock = clock(self.epoch, now);
        open.receive(clock, interface, &mut segment.counters, held.bytes(), isn.wrapping_add(1), link);
        flow.state = State::Open(open);
        flow.last_active = now;
        self.mark_dirty(id);
        Ok(())
    }

    /// The host's stream of a flow is ready for reading or writing.
    pub fn handle_stream_ready(&mut self, id: TcpId) {
        self.mark_dirty(id);
    }

    /// A link has room again: flows that waited for it are pumped.
    pub fn handle_link_ready(&mut self, port: PortId) {
        let Some(parked) = self.parked.get_mut(port.0 as usize) else { return };
        for id in std::mem::take(parked) {
            if let Some(flow) = self.flow(id) {
                flow.parked = false;
                self.mark_dirty(id);
            }
        }
    }

    fn park(&mut self, port: PortId, id: TcpId) {
        let index = port.0 as usize;
        if index >= self.parked.len() {
            self.parked.resize_with(index + 1, Vec::new);
        }
        self.parked[index].push(id);
    }

    /// The next flow that has something to do. Give it to [`pump`](Self::pump).
    pub fn take_dirty(&mut self) -> Option<TcpId> {
        while let Some(id) = self.dirty.pop() {
            if let Some(flow) = self.flow(id) {
                flow.dirty = false;
                return Some(id);
            }
        }
        None
    }

    /// Is any flow dirty?
    pub fn has_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Move a flow's bytes between the sandbox and the host's stream. `Some` when it has ended: it is gone from
    /// the table, close its stream.
    pub fn pump(
        &mut self,
        now: Instant,
        segment: &mut Segment,
        id: TcpId,
        stream: &mut impl HostStream,
        link: &mut impl Link,
    ) -> Option<End> {
        let clock = clock(self.epoch, now);
        let flow = self.flows.get_mut(id.index as usize).filter(|f| f.generation == id.generation)?;
        let State::Open(open) = &mut flow.state else { return None };
        let interface = if flow.key.from.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        let before = open.bytes;
        if std::mem::take(&mut flow.timer_due)
            && let Some((sequence, acknowledge)) = open.repeat_fin(clock, interface)
        {
            let (peer, from, to) = (flow.peer, flow.key.to, flow.key.from);
            wire::send_bare(segment, peer, from, to, TcpControl::Fin, sequence, Some(acknowledge), link);
        }
        open.wire.is_pressed = self.memory.is_pressed(flow.key.port);
        let pumped = open.pump(clock, interface, &mut segment.counters, stream, link);
        let memory = open.memory();
        self.memory.update(flow.key.port, &mut open.counted, memory);
        if flow.half_open && !open.is_opening() {
            flow.half_open = false;
            self.connecting.subtract(flow.key.port);
        }
        if let Some(end) = pumped.end {
            self.ended(now, segment, id, end);
            return Some(end);
        }
        let wake =
            open.poll_at(clock, interface).map(|at| self.epoch + Duration::from_micros(at.total_micros() as u64));
        if open.bytes != before {
            flow.last_active = now;
            flow.pages_released = false;
        }
        if !flow.quiet_queued && !flow.pages_released {
            flow.quiet_queued = true;
            self.quiet.push_back((now + QUIET, id));
        }
        if pumped.link_full {
            let port = flow.key.port;
            if !std::mem::replace(&mut flow.parked, true) {
                self.park(port, id);
            }
        } else {
            if let Some(at) = wake {
                self.schedule(id, at.max(now));
            }
            if pumped.more {
                self.mark_dirty(id);
            }
        }
        None
    }

    /// Has some flow of this port bytes of the sandbox, or its end, that the host's side has not been given yet?
    pub fn is_delivering(&self, port: PortId) -> bool {
        self.flows.iter().any(|(_, f)| {
            f.key.port == port && f.dial.is_none() && matches!(&f.state, State::Open(o) if !o.is_delivered())
        })
    }

    /// The port's flows end at once: without a reset where the host's side has all that the sandbox sent.
    pub fn remove_port(&mut self, port: PortId, host: &mut impl Host) {
        let gone: Vec<TcpId> = self
            .flows
            .iter()
            .filter(|(_, f)| f.key.port == port)
            .map(|(index, f)| TcpId { index: index as u32, generation: f.generation })
            .collect();
        for id in gone {
            let flow = self.remove(id);
            let delivered = flow.is_some_and(|f| matches!(f.state, State::Open(o) if o.is_delivered()));
            host.tcp_close(id, !delivered);
        }
        self.dirty.remove_port(port);
        if let Some(parked) = self.parked.get_mut(port.0 as usize) {
            *parked = Vec::new();
        }
        self.time_wait.retain(|key, _| key.port != port);
    }

    fn ended(&mut self, now: Instant, segment: &mut Segment, id: TcpId, end: End) {
        let Some(flow) = self.remove(id) else { return };
        if flow.inbound {
            segment.kept.forget(flow.key.port, flow.key.to.ip());
        }
        let State::Open(mut open) = flow.state else { return };
        if end == End::Closed
            && self.records.of(flow.key.port) < self.most_records
            && let Some(sequence) = open.wire.next_sequence
        {
            let until = now + TIME_WAIT;
            let record = TimeWait { until, sequence, acknowledge: open.highest_received };
            self.time_wait.insert(flow.key, record);
            self.time_wait_order.push_back((until, flow.key));
            self.records.add(flow.key.port);
            self.forget_records(now);
        }
        if self.spare.len() < SPARE_SLOTS {
            if open.memory() > WARM_BYTES {
                open.release_pages();
            }
            self.spare.push(open.slot);
        }
    }

    fn remove(&mut self, id: TcpId) -> Option<Flow> {
        self.flow(id)?;
        let mut flow = self.flows.remove(id.index as usize);
        self.open.subtract(flow.key.port);
        if let State::Open(open) = &mut flow.state {
            self.memory.update(flow.key.port, &mut open.counted, 0);
        }
        if flow.half_open {
            self.connecting.subtract(flow.key.port);
        }
        if flow.dial.is_some() {
            self.dialing.subtract(flow.key.port);
        }
        if let Some(parked) = self.parked.get_mut(flow.key.port.0 as usize).filter(|_| flow.parked) {
            parked.retain(|&other| other != id);
        }
        self.by_key.remove(&flow.key);
        Some(flow)
    }

    fn flow(&mut self, id: TcpId) -> Option<&mut Flow> {
        self.flows.get_mut(id.index as usize).filter(|f| f.generation == id.generation)
    }

    fn mark_dirty(&mut self, id: TcpId) {
        if let Some(flow) = self.flow(id)
            && !flow.dirty
        {
            flow.dirty = true;
            let port = flow.key.port;
            self.dirty.push(port, id);
        }
    }
}

/// What became of a flow when its connect had an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is open.
    Open,
    /// It is gone; close the host's side, if there is one.
    Gone,
}

/// Can this address be anybody's own?
fn is_somebody(segment: &Segment, address: IpAddr) -> bool {
    let broadcast = match address {
        IpAddr::V4(ip) => ip.is_broadcast() || segment.network.v4.is_some_and(|l| l.broadcast() == Some(ip)),
        IpAddr::V6(_) => false,
    };
    !(address.is_multicast() || address.is_unspecified() || broadcast)
}

/// A keepalive probe (RFC 9293, 3.8.4): nothing, or one byte, just before what we expect.
fn is_keepalive(tcp: &TcpPacket<&[u8]>, expected: u32) -> bool {
    let sequence = tcp.seq_number().0 as u32;
    tcp.ack()
        && !tcp.syn()
        && !tcp.fin()
        && !tcp.rst()
        && tcp.payload().len() <= 1
        && sequence.wrapping_add(1) == expected
}

/// Tell the sandbox why its SYN goes nowhere.
fn refuse(
    now: Instant,
    segment: &mut Segment,
    refusal: Refusal,
    packet: &Packet<'_>,
    tcp: &TcpPacket<&[u8]>,
    link: &mut impl Link,
) -> DropReason {
    let error = match refusal {
        Refusal::Multicast => return DropReason::Multicast,
        Refusal::DnsOnly if segment.network.is_silent_without_names() => return DropReason::Refused,
        Refusal::DnsOnly => {
            wire::refuse(segment, packet, tcp, link);
            return DropReason::Refused;
        }
        refusal => udp::refusal_error(refusal),
    };
    icmp::send_error(now, segment, packet.peer, None, error, packet.bytes, link);
    DropReason::Refused
}

/// An interface that takes packets for any destination.
fn interface(seed: u64) -> Interface {
    struct Nowhere;
    impl Link for Nowhere {
        fn has_room(&self, _: PortId) -> bool {
            false
        }
        fn transmit<R>(&mut self, _: PortId, _: super::link::Offload, _: usize, f: impl FnOnce(&mut [u8]) -> R) -> R {
            f(&mut [])
        }
    }
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = seed;
    let peer = Peer { port: PortId(0), mac: Default::default() };
    let mut wire = Wire {
        peer,
        mac: peer.mac,
        ip_header: 20,
        mss: 0,
        our_mss: 0,
        last_ack: 0,
        next_sequence: None,
        is_pressed: false,
    };
    let mut counters = Default::default();
    let mut device = FlowDevice { incoming: None, wire: &mut wire, counters: &mut counters, link: &mut Nowhere };
    let mut interface = Interface::new(config, &mut device, smoltcp::time::Instant::ZERO);
    interface.set_any_ip(true);
    interface
}

/// smoltcp's clock counts from the table's beginning.
fn clock(epoch: Instant, now: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros(now.saturating_duration_since(epoch).as_micros() as i64)
}
