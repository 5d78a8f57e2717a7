//! Flows past the link: a client on the loopback, and a socket in the other namespace.
//!
//! # Theory of operation
//!
//! Nothing says where inside a service listens: on 127.0.0.1, on ::1, on the sandbox's own address. So a flow *seeks*:
//! it takes a socket of the next candidate's family, connects it and sends the first datagrams. Over a loopback
//! a closed port answers at once, with an ICMP error that is pending on the socket when sendmsg(2) comes back; then
//! the next candidate is tried with the same datagrams. When all have refused the flow is forgotten, as if nobody had
//! ever asked.
//!
//! ```text
//!   seeking ── sent, and nobody refused ──> tried ── an answer ──> open
//!      ^                                      │ refused later        │ refused
//!      └──────────────────────────────────────┘                      └──> forgotten: the next datagram seeks anew
//! ```
//!
//! While it seeks, a flow may have to wait for a socket from the agent; what comes meanwhile waits too, within
//! [`MOST_KEPT`] bytes. A flow that was tried keeps a small first datagram, for a refusal may come late on a busy host.
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use mio::Interest;
use mio::unix::SourceFd;
use socket2::{Domain, SockRef, Socket, Type};

use super::super::inside::{Kind, Taken};
use super::super::{Pools, Surroundings};
use super::{BATCH, BUDGET, Leads, MOST_ERRORS, Origin, Parcel, UdpSide, front_of, post, prepare};
use crate::datapath::tokens;
use crate::gateway::flows::Idle;
use crate::gateway::link::PortId;
use crate::plan::{Endpoint, LocalClients, Published};
use crate::sys::dgram::{self, Batch, SocketOption};

/// Most bytes that wait for a socket.
const MOST_KEPT: usize = 256 << 10;
/// What a kept datagram counts for besides its bytes.
const KEPT_OVERHEAD: usize = 64;
/// Most flows that wait for a socket inside.
const MOST_WAITING: usize = 256;
/// A first datagram of this many bytes is kept until somebody has answered.
const LARGEST_KEPT: usize = 2048;

/// One flow.
#[derive(Default)]
pub(super) struct Detour {
    port: u32,
    socket: Option<Far>,
    /// The candidate to be tried next.
    next: usize,
    /// Some candidate has refused, so that there is no want of sockets.
    refused: bool,
    /// What waits for a socket, or was sent and might have to be sent again.
    kept: Vec<Kept>,
    /// Somebody has answered.
    open: bool,
    /// On the list of those that have something.
    ready: bool,
}

/// The socket on the other side.
struct Far {
    fd: OwnedFd,
    to: SocketAddr,
}

struct Kept {
    payload: Vec<u8>,
    segment: u16,
    tos: u8,
}

impl Kept {
    fn new(parcel: Parcel<'_>) -> Kept {
        Kept { payload: parcel.payload.to_vec(), segment: parcel.segment, tos: parcel.tos }
    }

    fn parcel(&self) -> Parcel<'_> {
        Parcel { payload: &self.payload, segment: self.segment, tos: self.tos }
    }
}

impl Detour {
    /// Where it leads, once that is known.
    pub fn to(&self) -> Option<SocketAddr> {
        self.socket.as_ref().map(|far| far.to)
    }

    /// Something may be read; `true` when that is news.
    pub fn make_ready(&mut self) -> bool {
        !std::mem::replace(&mut self.ready, true)
    }
}

impl UdpSide {
    /// A new flow, for which another may have to go.
    pub(super) fn begin(&mut self, now: Instant, port: PortId, origin: Origin) -> u32 {
        if self.flows.count(port) >= self.most_flows
            && let Some(oldest) = self.flows.oldest(port)
        {
            self.end(oldest);
        }
        if let Some(front) = front_of(&mut self.fronts, origin.front) {
            front.flows += 1;
        }
        let detour = Detour { port: port.0, ..Detour::default() };
        self.flows.insert(now, port, origin, detour, Idle::Long)
    }

    /// A flow is over; its socket closes, which takes it out of the epoll, for nobody else has it.
    pub(super) fn end(&mut self, index: u32) {
        let Some((origin, _)) = self.flows.look(index as usize) else { return };
        let front = origin.front;
        self.flows.remove(index);
        if let Some(front) = front_of(&mut self.fronts, front) {
            front.flows -= 1;
        }
    }

    /// Send a client's datagrams to the other side.
    pub(super) fn deliver(
        &mut self,
        now: Instant,
        index: u32,
        parcel: Parcel<'_>,
        pools: &mut Pools,
        around: &mut Surroundings<'_>,
    ) {
        self.flows.touch(now, index, Idle::Long);
        let Some((_, detour)) = self.flows.placed(index) else { return };
        let Some(far) = &detour.socket else {
            let first = detour.next == 0 && detour.kept.is_empty();
            let kept: usize = detour.kept.iter().map(|kept| kept.payload.len() + KEPT_OVERHEAD).sum();
            if kept + parcel.payload.len() > MOST_KEPT {
                self.stats.dropped += parcel.count();
                return;
            }
            detour.kept.push(Kept::new(parcel));
            if first {
                self.seek(now, index, pools, around);
            }
            return;
        };
        match post(&far.fd, far.to.is_ipv6(), None, None, parcel) {
            Ok(()) => {}
            // What was sent before has met a closed port; this was not sent.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                if detour.open {
                    detour.next = 0;
                    detour.open = false;
                }
                detour.socket = None;
                detour.kept.push(Kept::new(parcel));
                self.seek(now, index, pools, around);
            }
            Err(_) => self.stats.dropped += parcel.count(),
        }
    }

    /// Try candidates, beginning with the next, until one does not refuse.
    pub(super) fn seek(&mut self, now: Instant, index: u32, pools: &mut Pools, around: &mut Surroundings<'_>) {
        loop {
            let Some((origin, detour)) = self.flows.look(index as usize) else { return };
            let (origin, port) = (*origin, PortId(detour.port));
            let Some(front) = self.fronts.get(origin.front as usize) else { return };
            let ways = around.gateway.network().behaviour.local_clients;
            let to = candidate(&front.leads, ways, around.gateway.endpoint(port), origin.client.is_ipv4(), detour.next);
            let Some(to) = to else { return self.give_up(now, index, origin, around) };
            let taken = match &front.leads {
                Leads::In(_) => pools.get_mut(&port).map_or(Taken::Never, |pool| pool.take(kind(to))),
                Leads::Out(_) => open(to).map_or(Taken::Never, Taken::Socket),
            };
            let Some((generation, detour)) = self.flows.placed(index) else { return };
            let socket = match taken {
                Taken::Socket(socket) => socket,
                Taken::Wait if self.waiting.len() < MOST_WAITING => return self.waiting.push((index, generation)),
                Taken::Wait => return self.give_up(now, index, origin, around),
                Taken::Never => {
                    detour.next += 1;
                    continue;
                }
            };
            detour.next += 1;
            match attempt(&socket, to, &detour.kept) {
                Ok(()) => {}
                Err(error) => {
                    detour.refused |= error.kind() == io::ErrorKind::ConnectionRefused;
                    continue;
                }
            }
            prepare(&socket, to.is_ipv6());
            // Without the type of service of answers they are sent without.
            let _ = dgram::set_option(socket.as_fd(), to.is_ipv6(), SocketOption::ReceiveTos, 1);
            let source = &mut SourceFd(&socket.as_raw_fd());
            if self.registry.register(source, tokens::detour(index), Interest::READABLE).is_err() {
                continue;
            }
            detour.kept.truncate(1);
            detour.kept.retain(|kept| kept.payload.len() <= LARGEST_KEPT);
            detour.kept.shrink_to_fit();
            detour.socket = Some(Far { fd: socket, to });
            return;
        }
    }

    /// Nobody listens, or no socket is to be had; then there is the link.
    fn give_up(&mut self, now: Instant, index: u32, origin: Origin, around: &mut Surroundings<'_>) {
        let Some((_, detour)) = self.flows.placed(index) else { return };
        let (kept, refused) = (std::mem::take(&mut detour.kept), detour.refused);
        self.end(index);
        // The sandbox's loopback is not found through the link.
        let may_take_link = around.gateway.network().behaviour.local_clients != LocalClients::LoopbackOnly;
        let inward =
            may_take_link && self.fronts.get(origin.front as usize).is_some_and(|f| matches!(f.leads, Leads::In(_)));
        for kept in &kept {
            if inward && !refused {
                self.send_through_link(now, origin, kept.parcel(), around);
            } else {
                self.stats.dropped += kept.parcel().count();
            }
        }
    }

    /// Take what came from the other side, and send it to the client.
    pub(super) fn serve_detour(
        &mut self,
        now: Instant,
        index: u32,
        batch: &mut Batch,
        pools: &mut Pools,
        around: &mut Surroundings<'_>,
    ) {
        let (mut taken, mut errors) = (0, 0);
        while taken < BUDGET && errors < MOST_ERRORS {
            let Some((origin, detour)) = self.flows.look(index as usize) else { return };
            let (origin, Some(far)) = (*origin, &detour.socket) else { break };
            match batch.receive(far.fd.as_fd()) {
                Ok(count) => {
                    batch.join(count);
                    self.answer(now, index, origin, batch, count);
                    taken += count;
                    if count == BATCH {
                        continue;
                    }
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    return self.refused(now, index, pools, around);
                }
                Err(_) => errors += 1,
            }
        }
        if taken >= BUDGET || errors >= MOST_ERRORS {
            self.ready_detours.push(index);
        } else if let Some((_, detour)) = self.flows.placed(index) {
            detour.ready = false;
        }
    }

    fn answer(&mut self, now: Instant, index: u32, origin: Origin, batch: &Batch, count: usize) {
        let Some(front) = self.fronts.get(origin.front as usize) else { return };
        for message in (0..count).filter_map(|i| batch.message(i)) {
            let parcel = Parcel { payload: message.payload, segment: message.segment, tos: message.tos };
            match front.send(origin.client, origin.local, parcel) {
                Ok(()) => self.stats.sent += parcel.count(),
                Err(_) => self.stats.dropped += parcel.count(),
            }
        }
        if let Some((_, detour)) = self.flows.placed(index)
            && !std::mem::replace(&mut detour.open, true)
        {
            detour.kept = Vec::new();
        }
        self.flows.touch(now, index, Idle::Long);
    }

    /// The other side says that nobody listens there.
    fn refused(&mut self, now: Instant, index: u32, pools: &mut Pools, around: &mut Surroundings<'_>) {
        let Some((_, detour)) = self.flows.placed(index) else { return };
        if detour.open || detour.kept.is_empty() {
            return self.end(index);
        }
        (detour.socket, detour.ready, detour.refused) = (None, false, true);
        self.seek(now, index, pools, around);
    }
}

/// Where a service may listen, by preference: `nth` of them.
fn candidate(
    leads: &Leads,
    ways: LocalClients,
    endpoint: Option<&Endpoint>,
    v4: bool,
    nth: usize,
) -> Option<SocketAddr> {
    let local = |wanted: bool| {
        let (local4, local6) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
        (wanted.then_some(local4), wanted.then_some(local6))
    };
    let ((local4, local6), own4, own6, port) = match leads {
        Leads::In(Published { sandbox_address: Some(ip), sandbox_port, .. }) => {
            return (nth == 0).then(|| SocketAddr::new(*ip, *sandbox_port));
        }
        Leads::In(published) => {
            let endpoint = endpoint.filter(|_| ways != LocalClients::LoopbackOnly);
            let own4: Option<IpAddr> = endpoint.and_then(|e| e.v4).map(IpAddr::V4);
            let to_loopback = !matches!(ways, LocalClients::OwnAddress | LocalClients::Link);
            (local(to_loopback), own4, endpoint.and_then(|e| e.v6).map(IpAddr::V6), published.sandbox_port)
        }
        Leads::Out(reached) => (local(true), None, None, reached.host_port),
    };
    let all = if v4 { [local4, local6, own4, own6] } else { [local6, local4, own6, own4] };
    all.into_iter().flatten().nth(nth).map(|ip| SocketAddr::new(ip, port))
}

fn kind(to: SocketAddr) -> Kind {
    if to.is_ipv4() { Kind::Udp4 } else { Kind::Udp6 }
}

/// A socket here on the host.
fn open(to: SocketAddr) -> io::Result<OwnedFd> {
    Socket::new(Domain::for_address(to), Type::DGRAM.nonblocking().cloexec(), None).map(OwnedFd::from)
}

/// Connect, send, and hear whether that was refused.
fn attempt(socket: &OwnedFd, to: SocketAddr, parcels: &[Kept]) -> io::Result<()> {
    let socket_ref = SockRef::from(socket);
    socket_ref.connect(&to.into())?;
    for (nth, kept) in parcels.iter().enumerate() {
        match post(socket, to.is_ipv6(), None, None, kept.parcel()) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Err(error),
            // It is lost, as a datagram may be; those before it have arrived.
            Ok(()) | Err(_) => {}
        }
        if nth == 0
            && let Some(error) = socket_ref.take_error()?
        {
            return Err(error);
        }
    }
    Ok(())
}
