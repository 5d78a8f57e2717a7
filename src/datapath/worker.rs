//! A worker: one thread, one network, one event loop.
//!
//! # Theory of operation
//!
//! The worker owns everything of its network: the ports, the gateway, the host's sockets, their timers and
//! counters. It takes no lock and waits for nothing but its epoll. A round:
//!
//! 1. wait for events (not at all while something is left to be done, or for [`WATCH`] after a frame between two
//!    sandboxes; else until the next timer);
//! 2. commands of the control thread;
//! 3. host sockets that became ready: a TCP flow becomes dirty, datagrams are taken in batches;
//! 4. frames, a turn for each port ([`dues`](super::dues)), each handed to the gateway, or where several sandboxes are on the network
//!    to where the [`switch`](super::switch) says; then the datagrams among them that waited
//!    to leave together;
//! 5. published ports ([`publish`](crate::publish)): accept, connect, move bytes and datagrams past the stack;
//! 6. outcomes of connects; then dirty flows are pumped, sandboxes in turn, at most [`PUMP_BUDGET`] of them and for
//!    [`PUMP_TIME`], so that frames between sandboxes do not wait for them;
//! 7. timers that are due.
//!
//! Readiness is edge-triggered: whoever stops before its source was empty (ports, datagram sockets) stays on a
//! list and is visited in the next round without an event. So a busy port, flow or socket cannot starve the
//! others, and nothing is forgotten.
//!
//! Frames are read before flows are pumped, so that many segments of a flow are answered by one
//! acknowledgement, and the bytes of many segments leave in one send(2).
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Waker};
use slab::Slab;
use tokio::sync::{mpsc, oneshot};

use super::commands::{Command, CommandReceiver, CommandSender, Event, Snapshot};
use super::dues::{Busy, Dues, IN_VAIN, Turn};
use super::flow_list;
use super::links::Links;
use super::port::{self, NotForwarded, RX_BUFFER, Received, Receiver, RecvError};
use super::switch::{Switch, Way};
use super::tokens::{self, Kind};
use crate::gateway::counters::DropReason;
use crate::gateway::link::PortId;
use crate::gateway::tcp::Outcome;
use crate::gateway::tcp::flow::End;
use crate::gateway::{Gateway, addresses};
use crate::host::HostSide;
use crate::host::ping::PingEvent;
use crate::host::udp::UdpEvent;
use crate::observe::capture::Capture;
use crate::plan::{Endpoint, HostView, LinkKind, Network, Published};
use crate::publish::{Publishing, Surroundings};
use crate::sys::dgram::Batch;

/// How long it goes on looking for frames after one between two sandboxes, before it sleeps: about what it costs the
/// sender's kernel to wake it. Measured: 10 to 20 per cent more between two sandboxes on two cores.
const WATCH: Duration = Duration::from_micros(20);
/// Most dirty flows pumped in one round.
const PUMP_BUDGET: usize = 256;
/// After this long in one round no further flow is pumped.
const PUMP_TIME: Duration = Duration::from_micros(500);
/// Most datagrams taken from a socket in one round.
const DATAGRAM_BUDGET: usize = 64;
/// Events taken in one wait.
const EVENT_CAPACITY: usize = 512;

/// How long what an ended sandbox had sent may take to reach the host's sockets.
const FAREWELL: Duration = Duration::from_millis(60);
/// Stack of the worker's thread in bytes.
const STACK: usize = 512 * 1024;

/// One endpoint's receiving half.
struct Port {
    endpoint: Endpoint,
    /// Is in the list of ports that were left before they were empty.
    queued: bool,
    receiver: Receiver,
    /// `None` where there is no link.
    raw: Option<std::os::fd::RawFd>,
    dues: Dues,
}

/// An endpoint whose sandbox has ended.
struct Leaving {
    key: usize,
    until: Instant,
    reply: oneshot::Sender<()>,
}

/// What exists once the first endpoint has said which network this is.
struct Served {
    gateway: Gateway,
    host: HostSide,
    /// Where several sandboxes are on the network.
    switch: Option<Switch>,
}

/// A worker; [`Worker::run`] is its thread.
pub struct Worker {
    poll: Poll,
    commands: CommandReceiver,
    events: mpsc::Sender<Event>,
    ports: Slab<Port>,
    /// Which port a sandbox has, by its id.
    by_id: HashMap<String, usize>,
    links: Links,
    served: Option<Served>,
    /// The subnets of other networks, which may be known before the first endpoint is.
    foreign: Vec<IpNet>,
    publishing: Publishing,
    /// Ports that were left before they were empty.
    ready_ports: Vec<usize>,
    /// All of them owe the others something, and wait.
    all_owing: bool,
    busy: Busy,
    /// When the last frame came that the switch looked at.
    last_switched: Option<Instant>,
    /// There is another processor for those who send.
    may_watch: bool,
    /// Ports of sandboxes that have ended, until all they sent is delivered.
    leaving: Vec<Leaving>,
    /// What the control thread must hear, however full its queue is.
    untold: Vec<Event>,
    /// UDP and ping sockets that were.
    ready_udp: Vec<(u32, bool)>,
    ready_ping: Vec<(u32, bool)>,
    /// Where a TAP's frame is read into.
    frame: Box<[u8]>,
    /// Where datagrams are read into.
    batch: Batch,
}

impl Worker {
    /// A worker and the way to send it commands. `events` leads to the control thread.
    pub fn new(events: mpsc::Sender<Event>) -> io::Result<(Worker, CommandSender)> {
        let poll = Poll::new()?;
        let (sender, commands) = CommandSender::new(Waker::new(poll.registry(), tokens::COMMAND)?);
        let publishing = Publishing::new(poll.registry())?;
        let worker = Worker {
            poll,
            commands,
            events,
            ports: Slab::new(),
            by_id: HashMap::new(),
            links: Links::new(),
            served: None,
            foreign: Vec::new(),
            publishing,
            ready_ports: Vec::new(),
            all_owing: false,
            busy: Busy::default(),
            last_switched: None,
            may_watch: processors() > 1,
            leaving: Vec::new(),
            untold: Vec::new(),
            ready_udp: Vec::new(),
            ready_ping: Vec::new(),
            frame: vec![0; RX_BUFFER].into_boxed_slice(),
            batch: Batch::new(),
        };
        Ok((worker, sender))
    }

    /// Start a worker in a thread of its own. `events` leads to the control thread.
    pub fn start(events: mpsc::Sender<Event>) -> io::Result<CommandSender> {
        let (sent, made) = std::sync::mpsc::sync_channel(1);
        // The worker is made where it runs: its links share buffers within their thread.
        std::thread::Builder::new().name("worker".into()).stack_size(STACK).spawn(move || {
            match Worker::new(events) {
                Ok((worker, commands)) => {
                    let _ = sent.send(Ok(commands));
                    if let Err(error) = worker.run() {
                        tracing::error!("the gateway's worker has ended: {error}");
                    }
                }
                Err(error) => {
                    let _ = sent.send(Err(error));
                }
            }
        })?;
        made.recv().unwrap_or_else(|_| Err(io::Error::other("the worker ended at once")))
    }

    /// The event loop. Returns when it is told to stop, or all senders of commands are gone; fails when epoll does.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENT_CAPACITY);
        loop {
            let timeout = self.patience();
            if timeout != Some(Duration::ZERO) {
                self.flush_capture();
            }
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            }
            let now = Instant::now();
            for event in events.iter() {
                match tokens::read(event.token()) {
                    Some((Kind::Port, index)) => self.port_event(index, event),
                    Some((Kind::Tcp, index)) => {
                        if let Some(Served { gateway, host, .. }) = &mut self.served
                            && let Some(flow) = host.tcp.handle_event(index, event)
                        {
                            gateway.tcp().handle_stream_ready(flow);
                        }
                    }
                    Some((Kind::Udp, index)) => self.ready_udp.push((index, event.is_error())),
                    Some((Kind::Ping, index)) => self.ready_ping.push((index, event.is_error())),
                    Some((
                        kind @ (Kind::Listener | Kind::Splice | Kind::Datagrams | Kind::Detour | Kind::Agent),
                        index,
                    )) => self.publishing.handle_event(kind, index, event),
                    Some((Kind::Command, _)) if !self.commands(now) => {
                        self.close();
                        return Ok(());
                    }
                    Some((Kind::Command, _)) | None => {}
                }
            }
            self.full_links();
            self.datagrams(now);
            self.frames(now);
            if let Some(Served { gateway, host, .. }) = &mut self.served {
                self.publishing.round(now, Surroundings { gateway, host, links: &mut self.links });
            }
            self.flows(now);
            self.farewells(now);
            self.tell();
            if let Some(Served { gateway, host, .. }) = &mut self.served
                && gateway.next_timeout().is_some_and(|at| at <= now)
            {
                gateway.handle_timeout(now, host, &mut self.links);
            }
        }
    }

    /// How long the next wait may be.
    fn patience(&mut self) -> Option<Duration> {
        let watchful = self.is_watchful();
        let Served { gateway, .. } = self.served.as_mut()?;
        let ports = !self.ready_ports.is_empty() && !self.all_owing;
        let busy = ports || !(self.ready_udp.is_empty() && self.ready_ping.is_empty());
        if busy || gateway.tcp().has_dirty() || self.publishing.is_busy() || watchful {
            return Some(Duration::ZERO);
        }
        if self.links.any_full() || !self.leaving.is_empty() || !self.untold.is_empty() || self.all_owing {
            return Some(port::RETRY);
        }
        // mio rounds up to whole milliseconds.
        let next = [gateway.next_timeout(), self.publishing.next_timeout()].into_iter().flatten().min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// Was there a frame between two sandboxes just now? The next one is not far then.
    fn is_watchful(&self) -> bool {
        self.may_watch && self.last_switched.is_some_and(|at| at.elapsed() < WATCH)
    }

    fn port_event(&mut self, index: u32, event: &mio::event::Event) {
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.queue(index as usize);
        }
    }

    /// A port may have frames.
    fn queue(&mut self, key: usize) {
        if let Some(port) = self.ports.get_mut(key)
            && !std::mem::replace(&mut port.queued, true)
        {
            self.ready_ports.push(key);
        }
    }

    /// Links that had no room: try again, and let the flows go on that waited for them.
    fn full_links(&mut self) {
        let Some(Served { gateway, .. }) = &mut self.served else { return };
        self.links.retry(|port| gateway.tcp().handle_link_ready(port));
    }

    /// Take datagrams from sockets that have some.
    fn datagrams(&mut self, now: Instant) {
        let Some(Served { gateway, host, .. }) = &mut self.served else { return };
        let links = &mut self.links;
        for (index, error) in std::mem::take(&mut self.ready_udp) {
            let more = host.udp.handle_ready(index, error, &mut self.batch, DATAGRAM_BUDGET, |event| match event {
                UdpEvent::Datagram { flow, from, payload, segment, tos } => {
                    gateway.handle_udp(now, flow, from, payload, segment, tos, links);
                }
                UdpEvent::Error { flow, icmp } => {
                    gateway.handle_udp_error(now, flow, icmp.to, icmp.error, icmp.offender, icmp.payload, links);
                }
            });
            if more {
                self.ready_udp.push((index, false));
            }
        }
        for (index, error) in std::mem::take(&mut self.ready_ping) {
            let more = host.ping.handle_ready(index, error, &mut self.batch, DATAGRAM_BUDGET, |event| match event {
                PingEvent::Reply { flow, sequence, data, hop_limit } => {
                    gateway.handle_echo_reply(now, flow, sequence, data, hop_limit, links);
                }
                PingEvent::Error { flow, sequence, error, offender, data } => {
                    gateway.handle_echo_error(now, flow, sequence, error, offender, data, links);
                }
            });
            if more {
                self.ready_ping.push((index, false));
            }
        }
        if let Some(notice) = host.ping.take_notice() {
            // A control thread that cannot take it now is flooded; the counter still tells.
            let _ = self.events.try_send(Event::Notice(notice));
        }
    }

    /// Take frames from ports that have some.
    fn frames(&mut self, now: Instant) {
        let Some(Served { gateway, host, switch }) = &mut self.served else { return };
        let mut failed = Vec::new();
        let mut owing = 0;
        for key in std::mem::take(&mut self.ready_ports) {
            let Some(port) = self.ports.get_mut(key) else { continue };
            let id = PortId(key as u32);
            let others = switch.is_some() && self.busy.others(id, now);
            if others && port.dues.is_owing(now) {
                self.ready_ports.push(key);
                owing += 1;
                continue;
            }
            port.queued = false;
            let mut turn = Turn::new(others);
            loop {
                if turn.is_over() {
                    port.queued = true;
                    self.ready_ports.push(key);
                    break;
                }
                match port.receiver.recv(&mut self.frame) {
                    Ok(Some(received)) => {
                        self.links.record(&received);
                        let length = received.frame().len();
                        let (copies, extra) = match switch {
                            Some(switch) => {
                                self.last_switched = Some(now);
                                let way = switch.judge(now, id, &received.offload, received.frame());
                                switched(now, id, way, &received, switch, gateway, host, &mut self.links)
                            }
                            None => {
                                let (offload, frame) = (received.offload, received.frame());
                                (0, gateway.handle_frame(now, id, offload, frame, host, &mut self.links))
                            }
                        };
                        port.dues.pay(extra);
                        turn.take(length, copies, extra);
                    }
                    Ok(None) => break,
                    Err(RecvError::Malformed) => {
                        gateway.count_drop(DropReason::Malformed);
                        port.dues.pay(IN_VAIN);
                        turn.take(0, 0, IN_VAIN);
                    }
                    Err(RecvError::Io(error)) => {
                        failed.push((key, error));
                        break;
                    }
                }
            }
            if turn.carried {
                self.busy.note(id, now);
            }
        }
        self.all_owing = owing > 0 && owing == self.ready_ports.len();
        host.udp.flush(|unsent| gateway.handle_udp_unsent(now, unsent, &mut self.links));
        for (key, error) in failed {
            let id = self.ports[key].endpoint.id.clone();
            self.detach(key);
            let reason = format!("the link of sandbox {id} failed: {error}");
            self.untold.push(Event::PortClosed { id, reason });
        }
    }

    /// Write down what was captured. A file that takes no more is no reason to serve no more.
    fn flush_capture(&mut self) {
        if let Err(error) = self.links.flush_capture() {
            self.untold.push(Event::Notice(format!("no more frames are captured: {error}")));
            self.tell();
        }
    }

    /// Tell the control thread what it must hear.
    fn tell(&mut self) {
        while let Some(event) = self.untold.pop() {
            match self.events.try_send(event) {
                Err(mpsc::error::TrySendError::Full(event)) => return self.untold.push(event),
                // Without a control thread there is nobody to be told.
                Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            }
        }
    }

    /// Outcomes of connects, then bytes.
    fn flows(&mut self, now: Instant) {
        let Some(Served { gateway, host, .. }) = &mut self.served else { return };
        while let Some((flow, outcome, offender)) = host.tcp.take_outcome() {
            if gateway.handle_tcp_outcome(now, flow, outcome, offender, &mut self.links) == Outcome::Gone {
                host.tcp.close(flow, true);
            }
        }
        let begun = Instant::now();
        for pumped in 0..PUMP_BUDGET {
            if pumped > 0 && begun.elapsed() >= PUMP_TIME {
                break;
            }
            let Some(flow) = gateway.tcp().take_dirty() else { break };
            let Some(stream) = host.tcp.stream(flow) else { continue };
            if let Some(end) = gateway.pump_tcp(now, flow, stream, &mut self.links) {
                host.tcp.close(flow, end != End::Closed);
            } else {
                host.tcp.arm(flow);
            }
        }
    }

    /// Let go of ended sandboxes. Their kernel has closed every socket, so each flow's end is in the link already
    /// or follows at once; what its program wrote just before it ended is not lost.
    fn farewells(&mut self, now: Instant) {
        for leaving in std::mem::take(&mut self.leaving) {
            let port = PortId(leaving.key as u32);
            let busy = self.ports.get(leaving.key).is_some_and(|port| port.queued)
                || self.served.as_mut().is_some_and(|s| s.gateway.tcp().is_delivering(port))
                || self.publishing.is_delivering(port);
            if busy && now < leaving.until {
                self.leaving.push(leaving);
                continue;
            }
            if self.ports.contains(leaving.key) {
                self.detach(leaving.key);
            }
            // Who no longer waits has ended, and so will this thread.
            let _ = leaving.reply.send(());
        }
    }

    /// Close what is left.
    fn close(&mut self) {
        let keys: Vec<usize> = self.ports.iter().map(|(key, _)| key).collect();
        keys.into_iter().for_each(|key| self.detach(key));
        for leaving in self.leaving.drain(..) {
            // Who no longer waits has ended too.
            let _ = leaving.reply.send(());
        }
    }

    /// Commands of the control thread; `false` when it has gone, or wants no more of this worker.
    fn commands(&mut self, now: Instant) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Stop) => return false,
                Ok(command) => self.command(now, command),
                Err(std::sync::mpsc::TryRecvError::Empty) => return true,
                Err(std::sync::mpsc::TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn command(&mut self, now: Instant, command: Command) {
        match command {
            Command::AttachPort { endpoint, link, fd, capture, network, host, reply } => {
                if let Some(file) = capture {
                    self.links.capture(Capture::new(file));
                }
                let result = self.attach(now, *endpoint, link, fd, *network, host).map_err(|e| e.to_string());
                // Who no longer waits for the answer closes the connection, which detaches.
                let _ = reply.send(result);
            }
            Command::DetachPort { id, reply } => match self.by_id.remove(&id) {
                Some(key) => {
                    if let Some(Served { switch: Some(switch), .. }) = &mut self.served {
                        switch.leave(PortId(key as u32));
                    }
                    self.publishing.close_listeners(PortId(key as u32));
                    self.leaving.push(Leaving { key, until: now + FAREWELL, reply });
                    self.queue(key);
                }
                None => {
                    let _ = reply.send(());
                }
            },
            Command::Inside { id, agent } => {
                if let Some(port) = self.port_of(&id)
                    && let Err(error) = self.publishing.add_agent(port, agent)
                {
                    tracing::warn!("the connection to the sandbox's agent cannot be watched: {error}");
                }
            }
            Command::Publish { ports, reply } => {
                let _ = reply.send(self.publish(ports));
            }
            Command::Unpublish { ports, reply } => {
                self.publishing.unpublish(&ports);
                let _ = reply.send(());
            }
            Command::Reach { id, reached } => {
                if let Some(port) = self.port_of(&id)
                    && let Err(error) = self.publishing.reach(port, reached)
                {
                    tracing::warn!("a port of the host cannot be reached from the sandbox: {error}");
                }
            }
            Command::Unreach { id, reached, reply } => {
                if let Some(port) = self.port_of(&id) {
                    self.publishing.unreach(port, &reached);
                }
                let _ = reply.send(());
            }
            Command::Flows { cursor, limit, reply } => {
                let gateway = self.served.as_mut().map(|served| &mut served.gateway);
                let ports = &self.ports;
                let id = |port: PortId| ports.get(port.0 as usize).map(|port| port.endpoint.id.as_str());
                let _ = reply.send(flow_list::page(gateway, &mut self.publishing, id, cursor, limit));
            }
            Command::Foreign(subnets) => {
                if let Some(Served { gateway, .. }) = &mut self.served {
                    gateway.handle_foreign(subnets.clone());
                }
                self.foreign = subnets;
            }
            // Taken out before.
            Command::Stop => {}
            Command::HostChanged(view) => {
                if let Some(Served { gateway, host, .. }) = &mut self.served {
                    host.handle_host_changed(&view);
                    gateway.handle_host_changed(view);
                }
            }
            Command::DnsAnswer { asker, message } => {
                if let Some(Served { gateway, .. }) = &mut self.served {
                    gateway.handle_dns_answer(asker, &message, &mut self.links);
                }
            }
            Command::Snapshot { reply } => {
                let snapshot = match &mut self.served {
                    Some(Served { gateway, .. }) => {
                        let flows = gateway.flows();
                        Snapshot::new(gateway.counters(), flows, self.publishing.stats())
                    }
                    None => Snapshot::default(),
                };
                let _ = reply.send(snapshot);
            }
        }
    }

    /// Which port a sandbox has.
    fn port_of(&self, id: &str) -> Option<PortId> {
        self.by_id.get(id).map(|key| PortId(*key as u32))
    }

    /// Serve published ports, all of one sandbox.
    fn publish(&mut self, ports: Vec<(Published, OwnedFd)>) -> Result<(), String> {
        let Some((first, _)) = ports.first() else { return Ok(()) };
        let port = self.port_of(&first.sandbox).ok_or("the sandbox has ended")?;
        self.publishing.publish(port, ports).map_err(|error| format!("the gateway cannot serve the ports: {error}"))
    }

    fn attach(
        &mut self,
        now: Instant,
        endpoint: Endpoint,
        link: LinkKind,
        fd: Option<OwnedFd>,
        network: Network,
        host: HostView,
    ) -> io::Result<PortId> {
        if self.served.is_none() {
            let side = HostSide::new(self.poll.registry(), &network, &host, self.events.clone())?;
            let mut gateway = Gateway::new(now, network.clone(), host);
            gateway.handle_foreign(self.foreign.clone());
            if network.sharing.is_some() {
                gateway.tcp().limit(side.most_connections());
                // Each takes two descriptors.
                self.publishing.limit(side.most_connections() / 2);
            }
            self.served = Some(Served { gateway, host: side, switch: Switch::new(&network) });
        }
        if let Some(Served { gateway, .. }) = &self.served
            && is_gateways(gateway.network(), &endpoint)
        {
            return Err(io::Error::other("an address of the sandbox is the gateway's own: give it another"));
        }
        let port = port::Port::from_fd(link, fd).map_err(io::Error::other)?;
        let entry = self.ports.vacant_entry();
        let key = entry.key();
        let raw = port.raw_fd();
        if let Some(raw) = raw {
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut SourceFd(&raw), tokens::port(key as u32), interest)?;
        }
        self.links.insert(PortId(key as u32), port.transmitter);
        self.by_id.insert(endpoint.id.clone(), key);
        // Frames may have come before the registration.
        let dues = Dues::new(now);
        entry.insert(Port { endpoint: endpoint.clone(), queued: true, receiver: port.receiver, raw, dues });
        self.ready_ports.push(key);
        if let Some(Served { gateway, switch, .. }) = &mut self.served {
            if let Some(switch) = switch {
                switch.add_port(now, PortId(key as u32), endpoint.clone());
            }
            gateway.add_port(PortId(key as u32), endpoint);
        }
        Ok(PortId(key as u32))
    }

    fn detach(&mut self, key: usize) {
        self.flush_capture();
        if let Some(Served { gateway, host, switch }) = &mut self.served {
            gateway.remove_port(PortId(key as u32), host);
            if let Some(switch) = switch {
                switch.remove_port(PortId(key as u32));
            }
        }
        self.publishing.remove(PortId(key as u32));
        let Port { endpoint, raw, receiver, .. } = self.ports.remove(key);
        if self.by_id.get(&endpoint.id) == Some(&key) {
            self.by_id.remove(&endpoint.id);
        }
        // The descriptor is shared with others who may keep it open: take it out of the epoll by name.
        if let Some(raw) = raw {
            let _ = self.poll.registry().deregister(&mut SourceFd(&raw));
        }
        receiver.leave();
        self.links.remove(PortId(key as u32));
        self.ready_ports.retain(|&k| k != key);
        self.all_owing &= !self.ready_ports.is_empty();
    }
}

/// Has the endpoint an address of the gateway's?
fn is_gateways(network: &Network, endpoint: &Endpoint) -> bool {
    let is = |address| network.is_gateway(address) || network.is_dns(address);
    endpoint.mac == network.gateway_mac || addresses(endpoint).any(is)
}

/// A frame on a shared network goes its way. How many more copies of it were written than one, and what it costs beyond
/// being carried.
#[allow(clippy::too_many_arguments)]
fn switched(
    now: Instant,
    from: PortId,
    way: Way,
    received: &Received<'_>,
    switch: &Switch,
    gateway: &mut Gateway,
    host: &mut HostSide,
    links: &mut Links,
) -> (u32, u32) {
    let (offload, frame) = (received.offload, received.frame());
    let mut forward = |to: PortId, gateway: &mut Gateway| {
        let sent = links.forward(to, received);
        if let Err(error) = sent {
            gateway.count_drop(match error {
                NotForwarded::NoRoom => DropReason::NoRoom,
                NotForwarded::Refused => DropReason::LinkRefused,
            });
        }
        u64::from(sent.is_ok())
    };
    match way {
        Way::Gateway => return (0, gateway.handle_frame(now, from, offload, frame, host, links)),
        Way::Port(to) => {
            let copies = forward(to, gateway);
            gateway.count_switched(frame.len(), copies);
        }
        Way::Flood { gateway: answers } => {
            let (mut written, mut copies) = (0, 0);
            for to in switch.others(from) {
                written += 1;
                copies += forward(to, gateway);
            }
            if answers {
                gateway.handle_frame(now, from, offload, frame, host, links);
                gateway.count_copies(frame.len(), copies);
            } else {
                gateway.count_switched(frame.len(), copies);
            }
            return (written, 0);
        }
        Way::Refused => {
            gateway.handle_refused(now, from, offload, frame, links);
            return (0, IN_VAIN);
        }
        Way::Nowhere(reason) => {
            gateway.count_switched(frame.len(), 0);
            gateway.count_drop(reason);
            return (0, IN_VAIN);
        }
    }
    (0, 0)
}

/// How many processors this thread may run on.
fn processors() -> usize {
    let allowed = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0));
    allowed.map_or(1, |set| (0..nix::sched::CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).count())
}

#[cfg(test)]
mod tests;
