//! Connections for published ports; see [the room](super).
//!
//! # Theory of operation
//!
//! A connection's life:
//!
//! ```text
//!   accept4(2) ── not one of those who may connect: reset
//!    │
//!    ├── a client that is not on the host's loopback: handed to the gateway and the host's streams, and forgotten
//!    ▼
//!   waiting ── for a socket from the sandbox's stock ([`WAITING_LIMIT`] for each sandbox; others stay in the
//!    │          kernel's queue)
//!    ▼
//!   connecting ── to one goal after another; all refused, or [`PATIENCE`] is over: reset
//!    ▼
//!   open ([`splice`](super::splice)) ── both ways ended: closed; broken: reset
//! ```
//!
//! The goals of a local client are the sandbox's loopback addresses and then its own, the client's family first, or what
//! the network ([`LocalClients`]) or the port wants instead; of a sandbox that reaches out, the host's two loopback
//! addresses. Where local clients go through the link they are clients like any other. On a loopback most of this is over at once: the
//! connect is asked for a second time, as in [`host::tcp`](crate::host::tcp), and a connection that is accepted is
//! usually open, with its first bytes on their way, before the next wait.
//!
//! Work is found by lists: listeners with something to accept, connections with something to do, sandboxes whose
//! stock has changed. A round takes a bounded amount from each, first come first served, and leaves the rest to the
//! next round. Where several sandboxes share the process's descriptors each has a bounded number of connections
//! ([`TcpSide::limit`]); its further clients wait in the kernel. When the process has no descriptor left nothing is accepted for [`PAUSE`], or until a connection ends;
//! whoever knocks meanwhile waits in the kernel.
//!
//! Closing a listener leaves its connections alone. A sandbox that ends takes them with it, except that what it
//! had delivered in full is not undone by a reset.
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Registry};
use serde::{Deserialize, Serialize};
use slab::Slab;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::inside::{Kind, Pool, Taken};
use super::splice::{self, Next, Side, Spliced, Tools};
use super::{Pools, Surroundings, proxy};
use crate::datapath::commands::{FlowInfo, FlowKind};
use crate::datapath::tokens;
use crate::gateway::link::PortId;
use crate::plan::{Behaviour, Endpoint, LocalClients, Published, PublishedKey, Reached};
use crate::policy;
use crate::sys::splice::accept;

#[cfg(test)]
mod tests;

/// Most connections accepted in one round.
const ACCEPT_BUDGET: usize = 64;
/// Bytes after which a round lets the others have their turn.
const ROUND_BYTES: u64 = 16 << 20;
/// Connections of a sandbox that may wait for a socket inside.
const WAITING_LIMIT: usize = 512;
/// How long a connection may take to open.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long nothing is accepted when there is no descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

/// What was counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpStats {
    /// Connections accepted, of whatever kind.
    pub accepted: u64,
    /// Of clients on the host's loopback, opened.
    pub spliced: u64,
    /// Of other clients, handed to the gateway.
    pub through_link: u64,
    /// Of sandboxes to the host's loopback, opened.
    pub reached: u64,
    /// Clients that are not among those who may connect.
    pub not_allowed: u64,
    /// Reset because nobody listens at the other end.
    pub refused: u64,
    /// Reset because there was no socket inside, no descriptor, no answer in time.
    pub dropped: u64,
    /// Bytes delivered to sandboxes past the link.
    pub bytes_in: u64,
    /// Bytes delivered from sandboxes past the link.
    pub bytes_out: u64,
}

/// What a listener leads to.
enum Leads {
    Inside(Box<Published>),
    Outside(Reached),
}

struct Listener {
    socket: OwnedFd,
    port: PortId,
    leads: Leads,
    /// Is in the list of those with something to accept.
    queued: bool,
}

/// A connection on its way to being open.
struct Opening {
    /// Taken out when both are connected.
    accepted: Option<Socket>,
    /// Where to connect to, in this order.
    goals: Goals,
    /// The goal that is tried now.
    current: usize,
    /// What goes before the client's own bytes.
    first: Vec<u8>,
    /// The connect that is under way.
    connecting: Option<Socket>,
}

enum State {
    Opening(Box<Opening>),
    Open(Box<Spliced>),
}

struct Connection {
    generation: u32,
    port: PortId,
    kind: FlowKind,
    client: SocketAddr,
    /// What it is connected to, or tries to be.
    goal: SocketAddr,
    state: State,
    /// Is in the list of those with something to do.
    queued: bool,
}

/// A connection's place, and which one it is of those that had it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Id {
    place: usize,
    generation: u32,
}

type Goals = [Option<SocketAddr>; 4];

/// How far a connection came with its goals.
enum Step {
    Connected(Socket),
    /// Its connect is under way.
    UnderWay(Socket),
    /// There is no socket inside yet.
    Wait,
    /// Nobody listens at any goal.
    Refused,
    /// There is no descriptor left.
    Exhausted,
}

/// Connections, both ways.
pub struct TcpSide {
    registry: Registry,
    tools: Tools,
    listeners: Slab<Listener>,
    published: HashMap<PublishedKey, usize>,
    connections: Slab<Connection>,
    /// How many of these each sandbox has. Who has none is not in it.
    counts: HashMap<PortId, usize>,
    /// Most of a sandbox.
    most: usize,
    next_generation: u32,
    /// Listeners with something to accept.
    ready_listeners: VecDeque<usize>,
    /// Connections with something to do.
    ready: VecDeque<usize>,
    /// Connections that wait for a socket inside, by sandbox, oldest first.
    waiting: HashMap<PortId, VecDeque<Id>>,
    /// Sandboxes whose stock has changed.
    stocked: Vec<PortId>,
    /// Listeners whose sandbox has as many connections as it may, or as many waiting for a socket inside.
    held_listeners: Vec<usize>,
    /// When those that are not open yet must be, soonest first; those that are open by now are passed over.
    deadlines: VecDeque<(Instant, Id)>,
    /// Nothing is accepted until then.
    pause: Option<Instant>,
    stats: TcpStats,
}

impl TcpSide {
    /// No ports yet.
    pub fn new(registry: Registry) -> TcpSide {
        TcpSide {
            registry,
            tools: Tools::new(),
            listeners: Slab::new(),
            published: HashMap::new(),
            connections: Slab::new(),
            counts: HashMap::new(),
            most: usize::MAX,
            next_generation: 0,
            ready_listeners: VecDeque::new(),
            ready: VecDeque::new(),
            waiting: HashMap::new(),
            stocked: Vec::new(),
            held_listeners: Vec::new(),
            deadlines: VecDeque::new(),
            pause: None,
            stats: TcpStats::default(),
        }
    }

    /// A sandbox has at most so many connections past the link from now on; further clients wait in the kernel.
    pub fn limit(&mut self, most: usize) {
        self.most = most;
    }

    /// Serve a published port of a sandbox. It takes the place of an earlier one at the same address.
    pub fn publish(&mut self, port: PortId, published: Published, socket: OwnedFd) -> io::Result<()> {
        let key = published.key();
        self.unpublish(key);
        let place = self.listen(port, socket, Leads::Inside(Box::new(published)))?;
        self.published.insert(key, place);
        Ok(())
    }

    /// Serve a listener inside a sandbox.
    pub fn reach(&mut self, port: PortId, reached: Reached, socket: OwnedFd) -> io::Result<()> {
        self.listen(port, socket, Leads::Outside(reached)).map(drop)
    }

    /// Close those of these listeners inside a sandbox that are of TCP.
    pub fn unreach(&mut self, port: PortId, reached: &HashSet<Reached>) {
        let is_meant = |listener: &Listener| {
            listener.port == port && matches!(&listener.leads, Leads::Outside(leads) if reached.contains(leads))
        };
        let meant: Vec<usize> =
            self.listeners.iter().filter(|(_, listener)| is_meant(listener)).map(|(place, _)| place).collect();
        meant.into_iter().for_each(|place| self.close_listener(place));
    }

    fn listen(&mut self, port: PortId, socket: OwnedFd, leads: Leads) -> io::Result<usize> {
        // What is accepted has them from the listener, without a call each.
        splice::set_options(&SockRef::from(&socket))?;
        let entry = self.listeners.vacant_entry();
        let place = entry.key();
        let fd = socket.as_raw_fd();
        self.registry.register(&mut SourceFd(&fd), tokens::listener(place as u32), Interest::READABLE)?;
        entry.insert(Listener { socket, port, leads, queued: false });
        Ok(place)
    }

    /// Close a published port's socket.
    pub fn unpublish(&mut self, key: PublishedKey) {
        if let Some(place) = self.published.remove(&key) {
            self.close_listener(place);
        }
    }

    fn close_listener(&mut self, place: usize) {
        let listener = self.listeners.remove(place);
        // The supervisor has the same socket, so closing ours does not take it out of the epoll. It was registered.
        let _ = self.registry.deregister(&mut SourceFd(&listener.socket.as_raw_fd()));
        self.ready_listeners.retain(|&ready| ready != place);
    }

    /// The sandbox has ended: no new connections.
    pub fn close_listeners(&mut self, port: PortId) {
        let theirs: Vec<usize> =
            self.listeners.iter().filter(|(_, listener)| listener.port == port).map(|(place, _)| place).collect();
        for place in theirs {
            if let Leads::Inside(published) = &self.listeners[place].leads {
                self.published.remove(&published.key());
            }
            self.close_listener(place);
        }
    }

    /// Nothing of the sandbox is left. Whoever has got all that the sandbox had to say keeps it; the rest is reset.
    pub fn remove(&mut self, port: PortId) {
        self.close_listeners(port);
        self.waiting.remove(&port);
        let theirs: Vec<usize> =
            self.connections.iter().filter(|(_, connection)| connection.port == port).map(|(place, _)| place).collect();
        for place in theirs {
            let connection = &self.connections[place];
            let inside = side_inside(connection.kind);
            let mut cleanly = [false; 2];
            cleanly[1 - inside] = matches!(&connection.state, State::Open(open) if open.is_delivered(inside));
            self.end(place, cleanly);
        }
    }

    /// The sandbox's stock of sockets has changed: those that waited for one try again.
    pub fn handle_stock(&mut self, port: PortId) {
        if self.waiting.contains_key(&port) && !self.stocked.contains(&port) {
            self.stocked.push(port);
        }
    }

    /// A listener is ready.
    pub fn handle_listener(&mut self, index: u32) {
        let place = index as usize;
        if let Some(listener) = self.listeners.get_mut(place)
            && !std::mem::replace(&mut listener.queued, true)
        {
            self.ready_listeners.push_back(place);
        }
    }

    /// One side of a spliced connection is ready.
    pub fn handle_splice(&mut self, index: u32, event: &Event) {
        let (place, side) = (index as usize / 2, index as usize % 2);
        if let Some(connection) = self.connections.get_mut(place) {
            if let State::Open(open) = &mut connection.state {
                open.handle_event(side, event);
            }
            self.queue(place);
        }
    }

    /// Does some connection still have to hear the end of what the sandbox says? An ended sandbox's sockets are
    /// closed, so their ends are here or on their way.
    pub fn is_delivering(&self, port: PortId) -> bool {
        self.connections.iter().any(|(_, connection)| {
            connection.port == port
                && matches!(&connection.state, State::Open(open) if !open.is_delivered(side_inside(connection.kind)))
        })
    }

    /// What there is to be done.
    pub fn round(&mut self, now: Instant, pools: &mut Pools, around: Surroundings<'_>) {
        let Surroundings { gateway, host, links } = around;
        if self.pause.is_some_and(|until| until <= now) {
            self.pause = None;
        }
        self.expire(now);
        self.serve_waiting(pools);
        self.accept(now, pools, Surroundings { gateway, host, links });
        self.pump(pools);
    }

    /// Is something left to be done?
    pub fn is_busy(&self) -> bool {
        !self.ready.is_empty() || !self.stocked.is_empty() || (self.pause.is_none() && !self.ready_listeners.is_empty())
    }

    /// When a round is due.
    pub fn next_timeout(&self) -> Option<Instant> {
        let pause = self.pause.filter(|_| !self.ready_listeners.is_empty());
        [pause, self.deadlines.front().map(|front| front.0)].into_iter().flatten().min()
    }

    /// What was counted so far.
    pub fn stats(&self) -> TcpStats {
        self.stats
    }

    /// Connections past the link now.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// No connection at all?
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// How many places for connections there are, taken or not.
    pub fn places(&self) -> usize {
        self.connections.capacity()
    }

    /// The connection at a place, for people. `id` names the sandbox at a port.
    pub fn describe<'a>(&self, place: usize, id: impl Fn(PortId) -> Option<&'a str>) -> Option<FlowInfo> {
        let connection = self.connections.get(place)?;
        let (inside, outside) = match side_inside(connection.kind) {
            0 => (connection.client, connection.goal),
            _ => (connection.goal, connection.client),
        };
        let state = match &connection.state {
            State::Opening(_) => "connecting",
            State::Open(open) if open.is_closing() => "closing",
            State::Open(_) => "open",
        };
        Some(FlowInfo {
            protocol: "tcp".to_owned(),
            kind: connection.kind,
            sandbox: id(connection.port)?.to_owned(),
            inside,
            outside: Some(outside),
            state: state.to_owned(),
        })
    }

    /// Take what knocks.
    fn accept(&mut self, now: Instant, pools: &mut Pools, around: Surroundings<'_>) {
        let Surroundings { gateway, host, links } = around;
        let mut left = ACCEPT_BUDGET;
        while let Some(place) = self.ready_listeners.pop_front() {
            if self.pause.is_some() || left == 0 {
                self.ready_listeners.push_front(place);
                return;
            }
            let Some(listener) = self.listeners.get_mut(place) else { continue };
            // The kernel's queue keeps those for whom there is no place, or no socket inside yet.
            let is_full = self.counts.get(&listener.port).is_some_and(|count| *count >= self.most);
            if is_full || self.waiting.get(&listener.port).is_some_and(|waiting| waiting.len() >= WAITING_LIMIT) {
                self.held_listeners.push(place);
                continue;
            }
            match accept(listener.socket.as_fd()) {
                Ok((socket, client)) => {
                    // Behind the others: a listener with many clients lets those with few have their turn.
                    self.ready_listeners.push_back(place);
                    left -= 1;
                    self.stats.accepted += 1;
                    let around = Surroundings { gateway: &mut *gateway, host: &mut *host, links: &mut *links };
                    self.accepted(now, place, socket.into(), unmapped(client), pools, around);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => listener.queued = false,
                Err(error) if is_exhausted(&error) => {
                    tracing::debug!("connections are not accepted for a moment: {error}");
                    self.pause = Some(now + PAUSE);
                    self.ready_listeners.push_front(place);
                }
                // A client that has gone again, or what the network had to say of it (accept(2)).
                Err(error) if is_clients_own(&error) => {
                    self.ready_listeners.push_back(place);
                    left -= 1;
                }
                Err(error) => {
                    tracing::warn!("a listener for published ports is of no use any more: {error}");
                    listener.queued = false;
                }
            }
        }
    }

    /// A connection was accepted. To drop it is to reset it.
    fn accepted(
        &mut self,
        now: Instant,
        place: usize,
        socket: Socket,
        client: SocketAddr,
        pools: &mut Pools,
        around: Surroundings<'_>,
    ) {
        let Surroundings { gateway, host, links } = around;
        let listener = &self.listeners[place];
        let port = listener.port;
        let Behaviour { services, local_clients, .. } = gateway.network().behaviour;
        if !services.tcp {
            self.stats.dropped += 1;
            return;
        }
        let (kind, goals, first) = match &listener.leads {
            Leads::Outside(reached) => (FlowKind::Reach, loopback(client, reached.host_port), Vec::new()),
            Leads::Inside(published) => {
                if !policy::may_connect(published, client.ip()) {
                    self.stats.not_allowed += 1;
                    return;
                }
                let first = match published.proxy {
                    Some(version) => {
                        let server = socket.local_addr().ok().and_then(|address| address.as_socket());
                        proxy::header(version, client, unmapped(server.unwrap_or(published.host)))
                    }
                    None => Vec::new(),
                };
                if !client.ip().is_loopback() || local_clients == LocalClients::Link {
                    match gateway.open_published(now, port, client, &**published, links) {
                        Ok(flow) => match host.tcp.adopt(flow, socket, first) {
                            Ok(()) => self.stats.through_link += 1,
                            Err(error) => {
                                tracing::debug!("a connection cannot be watched: {error}");
                                gateway.abandon_published(flow);
                            }
                        },
                        Err(reason) => gateway.count_drop(reason),
                    }
                    return;
                }
                (FlowKind::Spliced, goals(client, published, local_clients, gateway.endpoint(port)), first)
            }
        };
        let opening = Opening { accepted: Some(socket), goals, current: 0, first, connecting: None };
        self.next_generation = self.next_generation.wrapping_add(1);
        *self.counts.entry(port).or_default() += 1;
        let place = self.connections.insert(Connection {
            generation: self.next_generation,
            port,
            kind,
            client,
            goal: goals[0].unwrap_or(client),
            state: State::Opening(Box::new(opening)),
            queued: false,
        });
        if !self.advance(place, pools) {
            self.deadlines.push_back((now + PATIENCE, self.id(place)));
        }
    }

    fn id(&self, place: usize) -> Id {
        Id { place, generation: self.connections[place].generation }
    }

    /// Try the goals of a connection that is not open yet, from the current one on. `false` when it is neither open
    /// nor gone after that.
    fn advance(&mut self, place: usize, pools: &mut Pools) -> bool {
        let id = self.id(place);
        let connection = &mut self.connections[place];
        let State::Opening(opening) = &mut connection.state else { return true };
        let token = tokens::splice(place as u32 * 2 + 1);
        let step = opening.step(connection.kind, pools.get_mut(&connection.port));
        if let Some(goal) = opening.goal() {
            connection.goal = goal;
        }
        match step {
            Step::Connected(socket) => match Side::new(&self.registry, socket, token, false) {
                Ok(side) => self.open(place, side),
                Err(_) => self.give_up(place),
            },
            Step::UnderWay(socket) => {
                let interest = splice::READING.add(Interest::WRITABLE);
                let watched = self.registry.register(&mut SourceFd(&socket.as_raw_fd()), token, interest);
                opening.connecting = Some(socket);
                match watched {
                    Ok(()) => return false,
                    Err(_) => self.give_up(place),
                }
            }
            Step::Wait => {
                let waiting = self.waiting.entry(connection.port).or_default();
                waiting.push_back(id);
                return false;
            }
            Step::Refused => {
                self.stats.refused += 1;
                self.end(place, [false; 2]);
            }
            Step::Exhausted => self.give_up(place),
        }
        true
    }

    /// Is this connection there, and not open yet?
    fn is_opening(&self, id: Id) -> bool {
        self.connections
            .get(id.place)
            .is_some_and(|c| c.generation == id.generation && matches!(c.state, State::Opening(_)))
    }

    /// A connection that will not be opened, for want of something of ours.
    fn give_up(&mut self, place: usize) {
        self.stats.dropped += 1;
        self.end(place, [false; 2]);
    }

    /// Both sockets are connected.
    fn open(&mut self, place: usize, connected: Side) {
        let connection = &mut self.connections[place];
        let State::Opening(opening) = &mut connection.state else { return };
        let Some(accepted) = opening.accepted.take() else { return };
        let first = std::mem::take(&mut opening.first);
        match Side::new(&self.registry, accepted, tokens::splice(place as u32 * 2), true) {
            Ok(accepted) => {
                connection.state = State::Open(Box::new(Spliced::new(accepted, connected, first)));
                match connection.kind {
                    FlowKind::Reach => self.stats.reached += 1,
                    _ => self.stats.spliced += 1,
                }
                self.queue(place);
            }
            Err(_) => self.give_up(place),
        }
    }

    /// Do what there is to be done for connections, those first that waited longest.
    fn pump(&mut self, pools: &mut Pools) {
        let mut left = ROUND_BYTES;
        for _ in 0..self.ready.len() {
            if left == 0 {
                return;
            }
            let Some(place) = self.ready.pop_front() else { return };
            let Some(connection) = self.connections.get_mut(place) else { continue };
            connection.queued = false;
            let open = match &mut connection.state {
                State::Open(open) => open,
                State::Opening(opening) => {
                    match opening.take_outcome() {
                        None => {}
                        Some(Ok(socket)) => {
                            let token = tokens::splice(place as u32 * 2 + 1);
                            // What came with the outcome is reported once more by registering again.
                            let interest = splice::READING.add(Interest::WRITABLE);
                            let again = self.registry.reregister(&mut SourceFd(&socket.as_raw_fd()), token, interest);
                            if again.is_err() {
                                self.give_up(place);
                                continue;
                            }
                            self.open(place, Side::watched_both_ways(socket, token));
                        }
                        Some(Err(error)) if leads_nowhere(&error) => {
                            self.advance(place, pools);
                        }
                        // Somebody was there, and has hung up.
                        Some(Err(_)) => self.end(place, [false; 2]),
                    }
                    continue;
                }
            };
            let mut moved = [0; 2];
            let next = open.pump(&self.registry, &mut self.tools, &mut moved);
            let inside = side_inside(connection.kind);
            self.stats.bytes_in += moved[1 - inside];
            self.stats.bytes_out += moved[inside];
            left = left.saturating_sub(moved[0] + moved[1]);
            match next {
                Next::Wait => {}
                Next::Again => self.queue(place),
                Next::Close => self.end(place, [true; 2]),
                Next::Reset => self.end(place, [false; 2]),
            }
        }
    }

    fn queue(&mut self, place: usize) {
        if !std::mem::replace(&mut self.connections[place].queued, true) {
            self.ready.push_back(place);
        }
    }

    /// Try again for those that waited for a socket inside.
    fn serve_waiting(&mut self, pools: &mut Pools) {
        if !self.stocked.is_empty() {
            self.ready_listeners.extend(self.held_listeners.drain(..));
        }
        for port in std::mem::take(&mut self.stocked) {
            for id in self.waiting.remove(&port).unwrap_or_default() {
                if self.is_opening(id) {
                    self.advance(id.place, pools);
                }
            }
        }
    }

    /// Reset connections that did not open in time.
    fn expire(&mut self, now: Instant) {
        while let Some(&(until, id)) = self.deadlines.front() {
            let waits = self.is_opening(id);
            if waits && until > now {
                return;
            }
            self.deadlines.pop_front();
            if waits {
                self.ready_listeners.extend(self.held_listeners.drain(..));
                for waiting in self.waiting.values_mut() {
                    waiting.retain(|other| *other != id);
                }
                self.give_up(id.place);
            }
        }
    }

    /// A connection is over. The sides that `cleanly` names are closed, the others reset.
    fn end(&mut self, place: usize, cleanly: [bool; 2]) {
        let connection = self.connections.remove(place);
        if let Entry::Occupied(mut count) = self.counts.entry(connection.port) {
            if *count.get() >= self.most {
                self.ready_listeners.extend(self.held_listeners.drain(..));
            }
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        // What is not open yet is reset by being dropped.
        if let State::Open(open) = connection.state {
            open.close(cleanly, &mut self.tools.pipes);
        }
        self.pause = None;
    }
}

impl Opening {
    fn goal(&self) -> Option<SocketAddr> {
        self.goals.get(self.current).copied().flatten()
    }

    /// Try one goal after another. `pool` has the sandbox's sockets.
    fn step(&mut self, kind: FlowKind, mut pool: Option<&mut Pool>) -> Step {
        while let Some(goal) = self.goal() {
            let socket = match (kind, &mut pool) {
                (FlowKind::Reach, _) => match host_socket(goal) {
                    Ok(socket) => socket,
                    Err(error) if is_exhausted(&error) => return Step::Exhausted,
                    Err(_) => {
                        self.current += 1;
                        continue;
                    }
                },
                // Its agent is not there yet.
                (_, None) => return Step::Wait,
                (_, Some(pool)) => match pool.take(if goal.is_ipv4() { Kind::Tcp4 } else { Kind::Tcp6 }) {
                    Taken::Socket(socket) => socket.into(),
                    Taken::Wait => return Step::Wait,
                    Taken::Never => {
                        self.current += 1;
                        continue;
                    }
                },
            };
            match connect(&socket, goal) {
                Ok(true) => return Step::Connected(socket),
                Ok(false) => return Step::UnderWay(socket),
                Err(_) => self.current += 1,
            }
        }
        Step::Refused
    }

    /// What became of the connect under way, if it has an outcome. After a failure the next goal is the current one.
    fn take_outcome(&mut self) -> Option<io::Result<Socket>> {
        let socket = self.connecting.take()?;
        let error = match socket.take_error() {
            Ok(None) if socket.peer_addr().is_ok() => return Some(Ok(socket)),
            Ok(None) => {
                self.connecting = Some(socket);
                return None;
            }
            Ok(Some(error)) | Err(error) => error,
        };
        self.current += 1;
        Some(Err(error))
    }
}

/// Where a local client's connection may lead, in the order in which it is tried: first the client's own family.
fn goals(client: SocketAddr, published: &Published, ways: LocalClients, endpoint: Option<&Endpoint>) -> Goals {
    let at = |ip: Option<IpAddr>| ip.map(|ip| SocketAddr::new(ip, published.sandbox_port));
    if published.sandbox_address.is_some() {
        return [at(published.sandbox_address), None, None, None];
    }
    let to_loopback = !matches!(ways, LocalClients::OwnAddress | LocalClients::Link);
    let to_own = ways != LocalClients::LoopbackOnly;
    let endpoint = endpoint.filter(|_| to_own);
    let v4 = at(to_loopback.then_some(Ipv4Addr::LOCALHOST.into()));
    let v6 = at(to_loopback.then_some(Ipv6Addr::LOCALHOST.into()));
    let own_v4 = at(endpoint.and_then(|endpoint| endpoint.v4).map(IpAddr::V4));
    let own_v6 = at(endpoint.and_then(|endpoint| endpoint.v6).map(IpAddr::V6));
    let mut goals = match client {
        SocketAddr::V4(_) => [v4, v6, own_v4, own_v6],
        SocketAddr::V6(_) => [v6, own_v6, v4, own_v4],
    };
    // The first `None` is the end.
    goals.sort_by_key(Option::is_none);
    goals
}

/// The host's loopback addresses, that of the client's family first.
fn loopback(client: SocketAddr, port: u16) -> Goals {
    let both = [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))];
    match (both, client) {
        ([v4, v6], SocketAddr::V4(_)) => [Some(v4), Some(v6), None, None],
        ([v4, v6], SocketAddr::V6(_)) => [Some(v6), Some(v4), None, None],
    }
}

/// Was there nobody, so that another address may do?
fn leads_nowhere(error: &io::Error) -> bool {
    let errors = [libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::ENETUNREACH, libc::EADDRNOTAVAIL, libc::ETIMEDOUT];
    error.raw_os_error().is_some_and(|error| errors.contains(&error))
}

/// Which side of a connection is the sandbox's.
fn side_inside(kind: FlowKind) -> usize {
    usize::from(kind != FlowKind::Reach)
}

fn host_socket(to: SocketAddr) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking().cloexec();
    Socket::new(Domain::for_address(to), kind, Some(Protocol::TCP))
}

/// Begin to connect. `true` when that is all.
fn connect(socket: &Socket, to: SocketAddr) -> io::Result<bool> {
    splice::set_options(socket)?;
    let to_address = to.into();
    // Twice: the first is never finished on a non-blocking socket, the second says whether it is by now.
    for _ in 0..2 {
        match socket.connect(&to_address) {
            Ok(()) if is_itself(socket, to) => return Err(io::ErrorKind::ConnectionRefused.into()),
            Ok(()) => return Ok(true),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINPROGRESS | libc::EALREADY)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Where nobody listens, a socket that happens to be given the very port it connects to is connected to itself
/// (RFC 9293, 3.5, simultaneous open).
fn is_itself(socket: &Socket, to: SocketAddr) -> bool {
    const NEVER_GIVEN: u16 = 1024;
    to.port() >= NEVER_GIVEN && socket.local_addr().is_ok_and(|own| own.as_socket() == Some(to))
}

/// An IPv4 client of a dual-stack listener has an IPv4 address.
fn unmapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(v4.into(), v6.port()),
            None => address,
        },
        SocketAddr::V4(_) => address,
    }
}

/// Nothing is left to make a socket of.
fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// Errors of accept(2) that concern one client only.
fn is_clients_own(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::EINTR
                | libc::EPROTO
                | libc::EPERM
                | libc::ENETDOWN
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::EOPNOTSUPP
                | libc::ENETUNREACH
        )
    )
}
