//! Datagrams for published ports, and for ports of the host that a sandbox reaches.
//!
//! # Theory of operation
//!
//! A *front* is a bound socket that takes the datagrams of many clients: a published one on the host, or one that
//! the agent bound inside (`--reach`). For each datagram there is its sender, the client, and where the front has
//! several addresses the one that was written to, which answers must come from. Then:
//!
//! - a client on the loopback, which a reached front's always is: past the link. A flow of its own (`detour`) has a
//!   connected socket on the other side, made inside by the agent or here on the host;
//! - any other client, and one on the loopback where the network wants it ([`LocalClients::Link`]): through the link with
//!   its own address, if that means anything there
//!   ([`Gateway::handle_published_datagram`](crate::gateway::Gateway::handle_published_datagram)), if it may connect.
//!   What the sandbox answers waits with the host's sockets for this round
//!   ([`Replies`](crate::host::published::Replies)). Where no agent makes sockets inside, the loopback's clients go
//!   this way too, with the gateway's address standing for them.
//!
//! Everything moves in batches: recvmmsg(2) takes up to [`BATCH`] datagrams, neighbours of one client and size are
//! put together ([`Batch::join`]) and leave with one sendmsg(2) and UDP_SEGMENT. The flow used last is kept at hand,
//! so most datagrams cost no hash lookup. What a full socket does not take is dropped and counted, as by any host.
//!
//! Sockets are watched edge-triggered; one that is left before it was empty stays on a list.
//!
//! Timers and limits: a flow ends when it was idle for the network's `udp_timeout`. Each sandbox has at most
//! [`MOST_FLOWS`], fewer where the process may have few descriptors; the one idle longest makes room. A front that is
//! closed takes its flows along. When a sandbox has ended its fronts hear nothing any more, but what it had said
//! still leaves through them until [`UdpSide::remove`].
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Registry};
use serde::{Deserialize, Serialize};
use slab::Slab;
use socket2::SockRef;

use super::{Pools, Surroundings};
use crate::datapath::commands::{FlowInfo, FlowKind};
use crate::datapath::tokens;
use crate::gateway::flows::{FlowTable, Idle};
use crate::gateway::link::{PortId, ReplyPath};
use crate::plan::{Behaviour, LocalClients, Published, PublishedKey, Reached};
use crate::policy;
use crate::sys::dgram::{self, BATCH, Batch, Letter, Message, SocketOption};
use detour::Detour;

mod detour;
#[cfg(test)]
mod tests;

/// Most flows of a sandbox.
pub const MOST_FLOWS: usize = 4096;
/// Most datagrams taken from a socket in one round.
const BUDGET: usize = 64;
/// Pending errors taken from a socket in one round.
const MOST_ERRORS: usize = 16;
/// Bytes asked of the kernel for datagrams that wait to be read; it gives what net.core.rmem_max allows.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Until the network has said how long flows may be idle.
const TIMEOUT: Duration = Duration::from_secs(180);

/// What was counted since the start. A datagram of a super-segment counts as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdpStats {
    /// Datagrams of clients.
    pub received: u64,
    /// Datagrams sent to clients.
    pub sent: u64,
    /// Dropped, because nobody listens or a socket took no more.
    pub dropped: u64,
    /// Of clients that may not connect.
    pub not_allowed: u64,
}

/// Where the datagrams of a front lead.
enum Leads {
    /// Into a sandbox.
    In(Published),
    /// To the host's loopback.
    Out(Reached),
}

/// A socket that takes datagrams of many clients.
struct Front {
    port: PortId,
    generation: u32,
    socket: OwnedFd,
    ipv6: bool,
    leads: Leads,
    /// On the list of those that have something.
    ready: bool,
    /// Nobody is heard any more.
    deaf: bool,
    /// The flow past the link that was used last: its origin, place and generation.
    last: Option<(Origin, u32, u32)>,
    /// Flows past the link.
    flows: usize,
}

/// What tells flows past the link apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Origin {
    front: u32,
    client: SocketAddr,
    local: Option<IpAddr>,
}

/// Datagrams of one size, on their way.
#[derive(Clone, Copy)]
struct Parcel<'a> {
    payload: &'a [u8],
    segment: u16,
    tos: u8,
}

impl Parcel<'_> {
    fn count(&self) -> u64 {
        if self.segment == 0 { 1 } else { self.payload.len().div_ceil(usize::from(self.segment)) as u64 }
    }
}

/// Datagrams, both ways.
pub struct UdpSide {
    registry: Registry,
    fronts: Slab<Front>,
    by_key: HashMap<PublishedKey, u32>,
    generation: u32,
    flows: FlowTable<Origin, Detour>,
    most_flows: usize,
    ready_fronts: Vec<u32>,
    ready_detours: Vec<u32>,
    /// Flows that wait for a socket inside: place and generation.
    waiting: Vec<(u32, u32)>,
    /// They may try again.
    stock_changed: bool,
    /// Fronts that were closed since the last round: place and generation.
    closed: Vec<(u32, u32)>,
    /// In its place but while it is in use.
    batch: Option<Box<Batch>>,
    stats: UdpStats,
}

impl UdpSide {
    /// No ports yet.
    pub fn new(registry: Registry) -> UdpSide {
        let soft = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).map_or(1024, |l| l.0);
        let files = usize::try_from(soft).unwrap_or(usize::MAX);
        UdpSide {
            registry,
            fronts: Slab::new(),
            by_key: HashMap::new(),
            generation: 0,
            flows: FlowTable::new(TIMEOUT, TIMEOUT),
            most_flows: (files / 4).clamp(16, MOST_FLOWS),
            ready_fronts: Vec::new(),
            ready_detours: Vec::new(),
            waiting: Vec::new(),
            stock_changed: false,
            closed: Vec::new(),
            batch: Some(Box::new(Batch::new())),
            stats: UdpStats::default(),
        }
    }

    /// What was counted.
    pub fn stats(&self) -> UdpStats {
        self.stats
    }

    /// How many places there are for flows past the link, taken or not.
    pub fn places(&self) -> usize {
        self.flows.places()
    }

    /// The flow past the link at a place, for people. `id` names the sandbox at a port.
    pub fn describe<'a>(&self, place: usize, id: impl Fn(PortId) -> Option<&'a str>) -> Option<FlowInfo> {
        let (origin, detour) = self.flows.look(place)?;
        let front = self.fronts.get(origin.front as usize)?;
        let to = detour.to();
        let (kind, inside, outside) = match &front.leads {
            Leads::In(published) => {
                let unknown = SocketAddr::new(origin.local.unwrap_or(origin.client.ip()), published.sandbox_port);
                (FlowKind::Spliced, to.unwrap_or(unknown), Some(origin.client))
            }
            Leads::Out(_) => (FlowKind::Reach, origin.client, to),
        };
        let state = if to.is_some() { "open" } else { "connecting" }.to_owned();
        Some(FlowInfo { protocol: "udp".to_owned(), kind, sandbox: id(front.port)?.to_owned(), inside, outside, state })
    }

    /// Serve a published port of a sandbox.
    pub fn publish(&mut self, port: PortId, published: Published, socket: OwnedFd) -> io::Result<()> {
        let key = published.key();
        self.unpublish(key);
        let (host, dual) = (published.host, published.dual_stack);
        let front = self.add(port, host, dual, Leads::In(published), socket)?;
        self.by_key.insert(key, front);
        Ok(())
    }

    /// Serve a listener inside a sandbox.
    pub fn reach(&mut self, port: PortId, reached: Reached, socket: OwnedFd) -> io::Result<()> {
        self.add(port, reached.inside, false, Leads::Out(reached), socket).map(|_| ())
    }

    /// Close those of these listeners inside a sandbox that are of UDP. The flows of its clients end.
    pub fn unreach(&mut self, port: PortId, reached: &HashSet<Reached>) {
        let is_meant =
            |front: &Front| front.port == port && matches!(&front.leads, Leads::Out(leads) if reached.contains(leads));
        let meant: Vec<u32> =
            self.fronts.iter().filter(|(_, front)| is_meant(front)).map(|(index, _)| index as u32).collect();
        meant.into_iter().for_each(|index| self.close(index));
    }

    fn add(&mut self, port: PortId, bound: SocketAddr, dual: bool, leads: Leads, socket: OwnedFd) -> io::Result<u32> {
        let ipv6 = bound.is_ipv6();
        if bound.ip().is_unspecified() {
            dgram::set_option(socket.as_fd(), ipv6, SocketOption::ReceiveDestination, 1)?;
        }
        dgram::set_option(socket.as_fd(), ipv6, SocketOption::ReceiveTos, 1)?;
        if dual {
            dgram::set_option(socket.as_fd(), false, SocketOption::ReceiveTos, 1)?;
        }
        prepare(&socket, ipv6);
        let entry = self.fronts.vacant_entry();
        let index = entry.key() as u32;
        self.registry.register(&mut SourceFd(&socket.as_raw_fd()), tokens::datagrams(index), Interest::READABLE)?;
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        entry.insert(Front { port, generation, socket, ipv6, leads, ready: false, deaf: false, last: None, flows: 0 });
        Ok(index)
    }

    /// Close a published port's socket. The flows of its clients end.
    pub fn unpublish(&mut self, key: PublishedKey) {
        if let Some(index) = self.by_key.remove(&key) {
            self.close(index);
        }
    }

    fn close(&mut self, index: u32) {
        if self.fronts.get(index as usize).is_some_and(|front| front.flows > 0) {
            for flow in self.flows.find_where(|origin| origin.front == index) {
                self.end(flow);
            }
        }
        self.hush(index);
        if let Some(front) = self.fronts.try_remove(index as usize) {
            self.closed.push((index, front.generation));
        }
    }

    /// Hear nothing more from a front.
    fn hush(&mut self, index: u32) {
        let Some(front) = self.fronts.get_mut(index as usize) else { return };
        if !std::mem::replace(&mut front.deaf, true) {
            // The supervisor has the same socket, so that closing it would not take it out of the epoll.
            let _ = self.registry.deregister(&mut SourceFd(&front.socket.as_raw_fd()));
        }
    }

    fn fronts_of(&self, port: PortId) -> Vec<u32> {
        self.fronts.iter().filter(|(_, front)| front.port == port).map(|(index, _)| index as u32).collect()
    }

    /// The sandbox has ended: nothing more is heard from clients.
    pub fn close_listeners(&mut self, port: PortId) {
        self.fronts_of(port).into_iter().for_each(|index| self.hush(index));
    }

    /// Nothing of the sandbox is left.
    pub fn remove(&mut self, port: PortId) {
        while let Some(index) = self.flows.oldest(port) {
            self.end(index);
        }
        self.flows.forget_port(port);
        for index in self.fronts_of(port) {
            self.close(index);
        }
        let UdpSide { by_key, fronts, .. } = self;
        by_key.retain(|_, index| fronts.contains(*index as usize));
    }

    /// The sandbox's stock of sockets has changed: those that waited for one try again.
    pub fn handle_stock(&mut self, _port: PortId) {
        self.stock_changed = !self.waiting.is_empty();
    }

    /// A published socket, or one inside, is ready.
    pub fn handle_datagrams(&mut self, index: u32, _event: &Event) {
        if let Some(front) = self.fronts.get_mut(index as usize)
            && !std::mem::replace(&mut front.ready, true)
        {
            self.ready_fronts.push(index);
        }
    }

    /// The other socket of a flow is ready.
    pub fn handle_detour(&mut self, index: u32, _event: &Event) {
        if let Some((_, detour)) = self.flows.placed(index)
            && detour.make_ready()
        {
            self.ready_detours.push(index);
        }
    }

    /// What there is to be done.
    pub fn round(&mut self, now: Instant, pools: &mut Pools, around: Surroundings<'_>) {
        let around = &mut { around };
        if !self.closed.is_empty() {
            let mut closed = std::mem::take(&mut self.closed);
            closed.sort_unstable();
            around.gateway.end_published_udp(|path| closed.binary_search(&(path.socket, path.generation)).is_ok());
        }
        self.flows.set_timeout(Idle::Long, around.gateway.network().udp_timeout);
        if std::mem::take(&mut self.stock_changed) {
            for (index, generation) in std::mem::take(&mut self.waiting) {
                if self.flows.at(index, generation).is_some() {
                    self.seek(now, index, pools, around);
                }
            }
        }
        let Some(mut batch) = self.batch.take() else { return };
        for index in std::mem::take(&mut self.ready_fronts) {
            self.serve(now, index, &mut batch, pools, around);
        }
        for index in std::mem::take(&mut self.ready_detours) {
            self.serve_detour(now, index, &mut batch, pools, around);
        }
        self.batch = Some(batch);
        self.send_replies(around.host);
        while let Some(index) = self.flows.expired(now) {
            self.end(index);
        }
    }

    /// Is something left to be done?
    pub fn is_busy(&self) -> bool {
        self.stock_changed || !(self.ready_fronts.is_empty() && self.ready_detours.is_empty() && self.closed.is_empty())
    }

    /// When a round is due.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.flows.next_timeout()
    }

    /// Take what a front has, within the budget.
    fn serve(&mut self, now: Instant, index: u32, batch: &mut Batch, pools: &mut Pools, around: &mut Surroundings<'_>) {
        let (mut taken, mut errors) = (0, 0);
        while taken < BUDGET && errors < MOST_ERRORS {
            let Some(front) = self.fronts.get_mut(index as usize).filter(|front| !front.deaf) else { return };
            match batch.receive(front.socket.as_fd()) {
                Ok(count) => {
                    batch.join(count);
                    for message in (0..count).filter_map(|i| batch.message(i)) {
                        self.arrive(now, index, &message, pools, around);
                    }
                    taken += count;
                    if count == BATCH {
                        continue;
                    }
                }
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    errors += 1;
                    continue;
                }
                Err(_) => {}
            }
            front_of(&mut self.fronts, index).into_iter().for_each(|front| front.ready = false);
            return;
        }
        self.ready_fronts.push(index);
    }

    /// Datagrams of a client came.
    fn arrive(
        &mut self,
        now: Instant,
        index: u32,
        message: &Message<'_>,
        pools: &mut Pools,
        around: &mut Surroundings<'_>,
    ) {
        let Some(front) = self.fronts.get(index as usize) else { return };
        let parcel = Parcel { payload: message.payload, segment: message.segment, tos: message.tos };
        self.stats.received += parcel.count();
        let origin = Origin { front: index, client: canonical(message.from), local: message.to };
        let Behaviour { services, local_clients, .. } = &around.gateway.network().behaviour;
        if !services.udp {
            self.stats.dropped += parcel.count();
            return;
        }
        let past_link = origin.client.ip().is_loopback() && *local_clients != LocalClients::Link;
        if !past_link && matches!(front.leads, Leads::In(_)) {
            return self.send_through_link(now, origin, parcel, around);
        }
        let known = match front.last {
            Some((last, place, generation)) if last == origin && self.flows.at(place, generation).is_some() => {
                Some(place)
            }
            _ => self.flows.find(&origin),
        };
        let place = match known {
            Some(place) => place,
            None => self.begin(now, front.port, origin),
        };
        self.deliver(now, place, parcel, pools, around);
        if let Some((generation, _)) = self.flows.placed(place)
            && let Some(front) = front_of(&mut self.fronts, index)
        {
            front.last = Some((origin, place, generation));
        }
    }

    /// Hand datagrams to the gateway.
    fn send_through_link(&mut self, now: Instant, origin: Origin, parcel: Parcel<'_>, around: &mut Surroundings<'_>) {
        let Some(front) = self.fronts.get(origin.front as usize) else { return };
        let Leads::In(published) = &front.leads else { return };
        if !policy::may_connect(published, origin.client.ip()) {
            self.stats.not_allowed += parcel.count();
            return;
        }
        let path = ReplyPath { socket: origin.front, generation: front.generation, local: origin.local };
        let Parcel { payload, segment, tos } = parcel;
        around.gateway.handle_published_datagram(
            now,
            front.port,
            origin.client,
            published,
            payload,
            segment,
            tos,
            path,
            around.links,
        );
    }

    /// Send what sandboxes said to clients through their links.
    fn send_replies(&mut self, host: &mut crate::host::HostSide) {
        let UdpSide { fronts, stats, .. } = self;
        host.replies.take(|reply| {
            let parcel = Parcel { payload: reply.payload, segment: reply.segment, tos: reply.tos };
            let front = front_of(fronts, reply.path.socket).filter(|f| f.generation == reply.path.generation);
            match front.map(|front| front.send(reply.client, reply.path.local, parcel)) {
                Some(Ok(())) => stats.sent += parcel.count(),
                Some(Err(_)) | None => stats.dropped += parcel.count(),
            }
        });
    }
}

impl Front {
    /// Send to a client from the address it wrote to.
    fn send(&self, client: SocketAddr, local: Option<IpAddr>, parcel: Parcel<'_>) -> io::Result<()> {
        let sent = post(&self.socket, self.ipv6, Some(client), local, parcel);
        match sent {
            // A broadcast's address, or one that the host no longer has: the kernel's choice instead.
            Err(error) if local.is_some() && error.raw_os_error() == Some(libc::EINVAL) => {
                post(&self.socket, self.ipv6, Some(client), None, parcel)
            }
            sent => sent,
        }
    }
}

fn front_of(fronts: &mut Slab<Front>, index: u32) -> Option<&mut Front> {
    fronts.get_mut(index as usize)
}

/// Send datagrams; where they cannot go together, one by one.
fn post(
    socket: &OwnedFd,
    ipv6: bool,
    to: Option<SocketAddr>,
    from: Option<IpAddr>,
    parcel: Parcel<'_>,
) -> io::Result<()> {
    let Parcel { payload, segment, tos } = parcel;
    let letter = Letter { to, from, tos, segment, payload };
    match dgram::post(socket.as_fd(), ipv6, &letter) {
        Err(error) if segment != 0 && is_unjoinable(&error) => payload
            .chunks(usize::from(segment))
            .try_for_each(|one| dgram::post(socket.as_fd(), ipv6, &Letter { segment: 0, payload: one, ..letter })),
        sent => sent,
    }
}

fn is_unjoinable(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMSGSIZE | libc::EINVAL | libc::EIO | libc::EOPNOTSUPP))
}

/// Room for bursts, and joined datagrams where the kernel has them; without either all goes on, more slowly.
fn prepare(socket: &OwnedFd, ipv6: bool) {
    let _ = SockRef::from(socket).set_recv_buffer_size(RECEIVE_BUFFER);
    let _ = dgram::set_option(socket.as_fd(), ipv6, SocketOption::Gro, 1);
}

/// A client of a dual-stack socket under its own address.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(v4.into(), v6.port()),
            None => address,
        },
        SocketAddr::V4(_) => address,
    }
}
