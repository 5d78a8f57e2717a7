//! The host's side of UDP flows: one unconnected socket for each.
//!
//! # Theory of operation
//!
//! A flow's socket is made at its first datagram and closed when the gateway says so. It is not connected and,
//! unless a source was asked for, not bound: the kernel gives it one port for all destinations, which is the
//! endpoint-independent mapping of RFC 4787; who may answer is the gateway's business. Where a source address or
//! interface was asked for, destinations on the host itself get a second socket without it, because nothing that
//! comes over loopback reaches a socket bound to another interface.
//!
//! Sending: TTL, type of service and the don't-fragment bit are the socket's options, set when a datagram wants
//! them otherwise than the one before. A super-segment goes out with UDP_SEGMENT; where the kernel will not have
//! that (a path with a small MTU, an old kernel), one datagram at a time. Single datagrams that follow each other
//! within a round wait for one another and leave likewise, at the latest with [`UdpHost::flush`], which also tells
//! what could not be sent of them: see `outbox`. An ICMP error pending on the socket
//! fails one send, for whatever destination, and is cleared by failing it: the send is made again. What the
//! error said waits in the error queue and comes out when the event loop reports it.
//!
//! Receiving: the event loop watches edge-triggered, so [`UdpHost::handle_ready`] reads until the socket is empty
//! or the budget is spent, and says which. Datagrams of one sender and size that come together are handed on
//! joined, whether the kernel joined them (UDP_GRO) or [`Batch::join`] does. All sockets share the worker's [`Batch`]; a flow costs a descriptor
//! and its place in the table.
//!
//! Limits: the number of sockets is bounded by what the worker was given of the process's descriptors. At the
//! bound a new flow's first datagram fails with [`HostError::Exhausted`], upon which the gateway ends the
//! oldest idle flow and tries again.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;

use mio::{Registry, Token};

use super::addr::{HostAddresses, host_error};
use super::errqueue::{self, HostIcmp};
use super::outbox::{Outbox, SEGMENTS, Waiting, Way};
use super::socket::OutSocket;
use crate::gateway::link::{Datagram, HostError, UdpId, Unsent};
use crate::plan::{HostView, Outbound};
use crate::sys::dgram::{BATCH, Batch, SocketOption};

/// Pending errors taken in one call of [`UdpHost::handle_ready`] before others get their turn.
const MOST_ERRORS: usize = 16;

/// What came for a flow.
#[derive(Clone, Copy, Debug)]
pub enum UdpEvent<'a> {
    /// A datagram, or several joined ones: see [`Gateway::handle_udp`](crate::gateway::Gateway::handle_udp).
    Datagram {
        /// Which flow.
        flow: UdpId,
        /// The sender.
        from: SocketAddr,
        /// The payload.
        payload: &'a [u8],
        /// Bytes of each joined datagram, 0 for a single one.
        segment: u16,
        /// Type of service / traffic class.
        tos: u8,
    },
    /// An ICMP error: see [`Gateway::handle_udp_error`](crate::gateway::Gateway::handle_udp_error).
    Error {
        /// Which flow.
        flow: UdpId,
        /// What happened to which datagram.
        icmp: HostIcmp<'a>,
    },
}

/// A place in the table.
#[derive(Default)]
struct Slot {
    generation: u32,
    /// For everything that leaves the host.
    outward: Option<Box<OutSocket>>,
    /// For the host itself, where the outward socket has a chosen source.
    local: Option<Box<OutSocket>>,
    /// Datagrams of this size or more were not taken joined: the path's MTU is smaller. 0 when all were.
    unjoinable: usize,
}

/// The sockets of a worker's UDP flows.
pub struct UdpHost {
    registry: Registry,
    token: fn(u32) -> Token,
    outbound: Option<Outbound>,
    addresses: HostAddresses,
    slots: Vec<Slot>,
    open: usize,
    limit: usize,
    /// Descriptors above this one are left to others.
    pub(super) highest: RawFd,
    /// The descriptor that was given last to any socket of the worker.
    pub(super) last: Rc<Cell<RawFd>>,
    offload: bool,
    outbox: Outbox,
}

impl UdpHost {
    /// No sockets yet. `token` names a flow's place to the event loop; at most `limit` sockets are open at once.
    pub fn new(registry: Registry, token: fn(u32) -> Token, outbound: &Outbound, limit: usize) -> UdpHost {
        let chosen = *outbound != Outbound::default();
        UdpHost {
            registry,
            token,
            outbound: chosen.then(|| outbound.clone()),
            addresses: HostAddresses::default(),
            slots: Vec::new(),
            open: 0,
            limit,
            highest: RawFd::MAX,
            last: Rc::default(),
            offload: true,
            outbox: Outbox::new(),
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

    /// Send a datagram or super-segment of a flow: see [`Host::udp_send`](crate::gateway::link::Host::udp_send).
    /// A datagram that follows one of the same kind may wait for others: call [`flush`](Self::flush) before the
    /// next wait for events.
    pub fn send(&mut self, flow: UdpId, to: SocketAddr, datagram: Datagram<'_>) -> Result<(), HostError> {
        let local = self.outbound.is_some() && self.addresses.is_local(to.ip());
        let way = Way::new(flow, to, local, &datagram);
        let len = datagram.payload.len();
        if self.may_wait(&way, &datagram) {
            if !self.outbox.has_place_for(len) {
                self.send_waiting();
            }
            // Unless that failed.
            if self.outbox.last() == Some(way) {
                if self.outbox.push(datagram.payload) {
                    self.send_waiting();
                }
                return Ok(());
            }
        }
        self.send_waiting();
        self.outbox.set_last(None);
        self.send_now(&way, &datagram)?;
        self.outbox.set_last(Some(way));
        Ok(())
    }

    /// Does a datagram follow one that went the same way, and would the kernel take them joined?
    fn may_wait(&self, way: &Way, datagram: &Datagram<'_>) -> bool {
        let (len, index) = (datagram.payload.len(), way.flow.index as usize);
        self.outbox.last() == Some(*way)
            && self.offload
            && datagram.segment == 0
            && Outbox::suits(len)
            && self.slots.get(index).is_some_and(|slot| slot.unjoinable == 0 || len < slot.unjoinable)
    }

    fn send_now(&mut self, way: &Way, datagram: &Datagram<'_>) -> Result<(), HostError> {
        self.socket(way.flow, way.to.ip(), way.local).map_err(|error| host_error(&error))?;
        let (offload, to) = (self.offload, way.to);
        let outbound = if way.local { None } else { self.outbound.as_ref() };
        let slot = &mut self.slots[way.flow.index as usize];
        let place = if way.local { &mut slot.local } else { &mut slot.outward };
        let Some(socket) = place else { return Err(HostError::Exhausted) };
        let sent = socket.prepare(datagram).and_then(|()| transmit(socket, to, datagram, offload));
        sent.map_err(|error| socket.explain(&error, to.ip(), outbound))
    }

    /// Send what waits. What cannot be sent is kept for [`flush`](Self::flush) to tell.
    fn send_waiting(&mut self) {
        let UdpHost { outbox, slots, outbound, .. } = self;
        let Some(Waiting { way, bytes, size, failures }) = outbox.waiting() else { return };
        let slot = &mut slots[way.flow.index as usize];
        let place = if way.local { &mut slot.local } else { &mut slot.outward };
        // It was there for the datagram before, and closing it sends what waits first.
        let Some(socket) = place else { return outbox.clear() };
        let outbound = if way.local { None } else { outbound.as_ref() };
        let segment = if bytes.len() > size { size as u16 } else { 0 }; // the buffer is smaller than 65,536
        let sent = socket.prepare(&way.datagram(bytes)).and_then(|()| socket.send(way.to, [bytes, &[]], segment));
        match sent {
            Ok(()) => {}
            Err(error) if segment == 0 || error.kind() == io::ErrorKind::WouldBlock => {
                failures.push(&way, socket.explain(&error, way.to.ip(), outbound), bytes.chunks(size));
            }
            Err(error) => {
                if matches!(error.raw_os_error(), Some(libc::EMSGSIZE | libc::EINVAL | libc::EIO | libc::EOPNOTSUPP)) {
                    slot.unjoinable = size;
                }
                for one in bytes.chunks(size) {
                    if let Err(error) = socket.send(way.to, [one, &[]], 0) {
                        failures.push(&way, socket.explain(&error, way.to.ip(), outbound), [one].into_iter());
                    }
                }
            }
        }
        outbox.clear();
    }

    /// The round is over: send what waits, and hand over what could not be sent since the last time.
    pub fn flush(&mut self, sink: impl FnMut(Unsent<'_>)) {
        self.send_waiting();
        self.outbox.set_last(None);
        self.outbox.take_failures(sink);
    }

    /// See that a flow has the socket it needs.
    fn socket(&mut self, flow: UdpId, to: IpAddr, local: bool) -> io::Result<()> {
        let index = flow.index as usize;
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, Slot::default);
        }
        if self.slots[index].generation != flow.generation {
            self.clear(index);
            self.slots[index].generation = flow.generation;
        }
        let slot = &mut self.slots[index];
        let (place, outbound) =
            if local { (&mut slot.local, None) } else { (&mut slot.outward, self.outbound.as_ref()) };
        if place.is_some() {
            return Ok(());
        }
        if self.open >= self.limit {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        let socket = OutSocket::open(to, false, outbound, &self.registry, (self.token)(flow.index))?;
        self.last.set(socket.as_fd().as_raw_fd());
        if socket.as_fd().as_raw_fd() > self.highest {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        socket.set(SocketOption::ReceiveTos, 1)?;
        // UDP_GRO came after UDP_SEGMENT: a kernel that refuses it may ignore the other.
        self.offload &= socket.set(SocketOption::Gro, 1).is_ok();
        *place = Some(Box::new(socket));
        self.open += 1;
        Ok(())
    }

    fn clear(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        for socket in [slot.outward.take(), slot.local.take()].into_iter().flatten() {
            self.open -= 1;
            self.last.set(self.last.get().min(socket.as_fd().as_raw_fd()));
        }
        slot.unjoinable = 0;
    }

    /// The flow has ended.
    pub fn close(&mut self, flow: UdpId) {
        if self.outbox.last().is_some_and(|way| way.flow == flow) {
            self.send_waiting();
            self.outbox.set_last(None);
        }
        let index = flow.index as usize;
        if self.slots.get(index).is_some_and(|slot| slot.generation == flow.generation) {
            self.clear(index);
        }
    }

    /// The event loop says that the socket at this place is readable, or (`error`) that its error queue is not
    /// empty. Hands everything to `sink`, up to about `budget` datagrams; `true` when more remains, upon which
    /// this must be called again without another event.
    pub fn handle_ready(
        &mut self,
        index: u32,
        error: bool,
        batch: &mut Batch,
        budget: usize,
        mut sink: impl FnMut(UdpEvent<'_>),
    ) -> bool {
        let Some(slot) = self.slots.get(index as usize) else { return false };
        let flow = UdpId { index, generation: slot.generation };
        let mut more = false;
        for socket in [&slot.outward, &slot.local].into_iter().flatten() {
            if error {
                errqueue::drain(socket.as_fd(), |icmp| sink(UdpEvent::Error { flow, icmp }));
            }
            more |= receive(socket, flow, batch, budget, &mut sink);
        }
        more
    }
}

/// Send what a datagram holds.
fn transmit(socket: &OutSocket, to: SocketAddr, datagram: &Datagram<'_>, offload: bool) -> io::Result<()> {
    let segment = usize::from(datagram.segment);
    if segment == 0 || datagram.payload.len() <= segment {
        return socket.send(to, [datagram.payload, &[]], 0);
    }
    for part in datagram.payload.chunks(segment * SEGMENTS) {
        if offload && part.len() > segment {
            match socket.send(to, [part, &[]], datagram.segment) {
                // What else stands in the way (EMSGSIZE, EINVAL, EIO) may not be in the way of single ones.
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock) => return Err(error),
                Err(_) => {}
                Ok(()) => continue,
            }
        }
        for one in part.chunks(segment) {
            socket.send(to, [one, &[]], 0)?;
        }
    }
    Ok(())
}

/// Read a socket until it is empty (`false`) or the budget is spent (`true`).
fn receive(
    socket: &OutSocket,
    flow: UdpId,
    batch: &mut Batch,
    budget: usize,
    sink: &mut impl FnMut(UdpEvent<'_>),
) -> bool {
    let (mut taken, mut errors) = (0, 0);
    loop {
        match batch.receive(socket.as_fd()) {
            Ok(count) => {
                batch.join(count);
                for message in (0..count).filter_map(|i| batch.message(i)) {
                    let (from, payload, segment) = (message.from, message.payload, message.segment);
                    sink(UdpEvent::Datagram { flow, from, payload, segment, tos: message.tos });
                }
                taken += count;
                if count < BATCH {
                    return false;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(_) => {
                errqueue::drain(socket.as_fd(), |icmp| sink(UdpEvent::Error { flow, icmp }));
                errors += 1;
            }
        }
        if taken >= budget || errors >= MOST_ERRORS {
            return true;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::gateway::icmp::IcmpError;
    use crate::host::testing::in_namespace;

    const FLOW: UdpId = UdpId { index: 3, generation: 7 };

    struct Test {
        poll: mio::Poll,
        host: UdpHost,
        batch: Batch,
        datagrams: Vec<(SocketAddr, Vec<u8>, u16, u8)>,
        errors: Vec<(IcmpError, Option<IpAddr>, SocketAddr, Vec<u8>)>,
    }

    impl Test {
        fn new(outbound: &Outbound, limit: usize) -> Test {
            let poll = mio::Poll::new().unwrap();
            let registry = poll.registry().try_clone().unwrap();
            let host = UdpHost::new(registry, |index| Token(index as usize), outbound, limit);
            Test { poll, host, batch: Batch::new(), datagrams: Vec::new(), errors: Vec::new() }
        }

        /// Do what the event loop says until `done`.
        fn wait(&mut self, done: impl Fn(&Test) -> bool) {
            let end = Instant::now() + Duration::from_secs(5);
            let mut events = mio::Events::with_capacity(8);
            while !done(self) {
                assert!(Instant::now() < end, "waited too long: {:?} {:?}", self.datagrams, self.errors);
                self.poll.poll(&mut events, Some(Duration::from_millis(200))).unwrap();
                for event in &events {
                    let mut error = event.is_error();
                    loop {
                        let Test { host, batch, datagrams, errors, .. } = self;
                        let more = host.handle_ready(event.token().0 as u32, error, batch, 16, |event| match event {
                            UdpEvent::Datagram { flow, from, payload, segment, tos } => {
                                assert_eq!(flow, FLOW);
                                datagrams.push((from, payload.to_vec(), segment, tos));
                            }
                            UdpEvent::Error { flow, icmp } => {
                                assert_eq!(flow, FLOW);
                                errors.push((icmp.error, icmp.offender, icmp.to, icmp.payload.to_vec()));
                            }
                        });
                        error = false;
                        if !more {
                            break;
                        }
                    }
                }
            }
        }
    }

    fn datagram(payload: &[u8]) -> Datagram<'_> {
        Datagram { payload, segment: 0, hop_limit: 63, tos: 0, dont_fragment: false }
    }

    fn server(address: &str) -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    /// An address where nobody listens.
    fn closed(address: &str) -> SocketAddr {
        server(address).1
    }

    #[test]
    fn empty_and_largest_datagrams_go_there_and_back() {
        for (address, largest) in [("127.0.0.1:0", 65_507), ("[::1]:0", 65_507)] {
            let mut test = Test::new(&Outbound::default(), 8);
            let (server, to) = server(address);
            let mut buffer = vec![0; 70_000];
            for len in [0, 1, largest] {
                let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
                test.host.send(FLOW, to, datagram(&payload)).unwrap();
                assert_eq!(flush(&mut test), []);
                let (n, from) = server.recv_from(&mut buffer).unwrap();
                assert!(buffer[..n] == payload[..], "{len} bytes arrived as {n}");
                server.send_to(&buffer[..n], from).unwrap();
                test.wait(|t| !t.datagrams.is_empty());
                let (sender, back, segment, _) = test.datagrams.pop().unwrap();
                assert!(sender == to && segment == 0 && back == payload, "{len}");
            }
            assert_eq!(test.host.open_sockets(), 1, "one socket carries all of a flow");
        }
    }

    #[test]
    fn an_error_for_one_destination_costs_no_datagram_to_another() {
        for (address, own) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")] {
            let mut test = Test::new(&Outbound::default(), 8);
            let (server, to) = server(address);
            let refused = closed(address);
            for i in 0..20u8 {
                test.host.send(FLOW, refused, datagram(b"lost")).unwrap();
                test.host.send(FLOW, to, datagram(&[i])).unwrap();
                let mut buffer = [0; 16];
                let (n, _) = server.recv_from(&mut buffer).unwrap();
                assert_eq!(buffer[..n], [i]);
            }
            test.wait(|t| t.errors.len() == 20);
            for error in test.errors {
                let expected = (IcmpError::PortUnreachable, Some(own.parse().unwrap()), refused, b"lost".to_vec());
                assert_eq!(error, expected);
            }
        }
    }

    #[test]
    fn super_segments_arrive_as_their_datagrams() {
        for offload in [true, false] {
            let mut test = Test::new(&Outbound::default(), 8);
            test.host.offload = offload;
            let (server, to) = server("127.0.0.1:0");
            let payload: Vec<u8> = (0..100 * 400 + 7).map(|i| (i / 400) as u8).collect();
            let super_segment = Datagram { segment: 400, ..datagram(&payload) };
            test.host.offload = offload;
            test.host.send(FLOW, to, super_segment).unwrap();
            let mut buffer = [0; 2000];
            for i in 0..=100u8 {
                let n = server.recv(&mut buffer).unwrap();
                assert_eq!(n, if i == 100 { 7 } else { 400 });
                assert!(buffer[..n].iter().all(|b| *b == i));
            }
        }
    }

    #[test]
    fn joined_datagrams_come_with_their_segment_size() {
        let mut sender = Test::new(&Outbound::default(), 8);
        let mut receiver = Test::new(&Outbound::default(), 8);
        let (server, to) = server("127.0.0.1:0");
        receiver.host.send(FLOW, to, datagram(b"hello")).unwrap();
        let receiver_at = server.recv_from(&mut [0; 16]).unwrap().1;
        let payload = [5; 10 * 1000 + 1];
        sender.host.send(FLOW, receiver_at, Datagram { segment: 1000, ..datagram(&payload) }).unwrap();
        let bytes = |t: &Test| t.datagrams.iter().map(|d| d.1.len()).sum::<usize>();
        receiver.wait(|t| bytes(t) == payload.len());
        assert_eq!((receiver.datagrams.len(), receiver.datagrams[0].2), (1, 1000), "joined by UDP_GRO");
    }

    #[test]
    fn datagrams_that_come_one_by_one_are_joined_where_they_are_alike() {
        for (a, b) in [("127.0.0.1:0", "127.0.0.2:0"), ("[::1]:0", "[::1]:0")] {
            let mut test = Test::new(&Outbound::default(), 8);
            let ((a, to_a), (b, to_b)) = (server(a), server(b));
            test.host.send(FLOW, to_a, datagram(b"hello")).unwrap();
            let own = a.recv_from(&mut [0; 16]).unwrap().1;
            let sizes = [500, 500, 400, 400, 400, 0, 0, 600, 601, 1, 1, 65_507, 100];
            let sizes = if a.local_addr().unwrap().is_ipv4() { sizes } else { sizes.map(|s| s.min(65_000)) };
            for (size, i) in sizes.iter().zip(0..) {
                a.send_to(&vec![i; *size], own).unwrap();
            }
            for i in 0..5 {
                [&a, &b][i % 2].send_to(&[9; 100], own).unwrap();
            }
            let total = sizes.iter().sum::<usize>() + 500;
            test.wait(|t| t.datagrams.iter().map(|d| d.1.len()).sum::<usize>() == total);
            let seen: Vec<(SocketAddr, usize, u16)> = test.datagrams.iter().map(|d| (d.0, d.1.len(), d.2)).collect();
            let largest = sizes[11];
            let expected = [
                (to_a, 1400, 500),
                (to_a, 800, 400),
                (to_a, 0, 0),
                (to_a, 0, 0),
                (to_a, 600, 0),
                (to_a, 602, 601),
                (to_a, 1, 0),
                (to_a, largest, 0),
                (to_a, 200, 100),
                (to_b, 100, 0),
                (to_a, 100, 0),
                (to_b, 100, 0),
                (to_a, 100, 0),
            ];
            assert_eq!(seen[..], expected);
            let order = test.datagrams.iter().flat_map(|d| d.1.iter().copied()).take(total - 500).collect::<Vec<u8>>();
            let sent: Vec<u8> = sizes.iter().zip(0..).flat_map(|(size, i)| vec![i; *size]).collect();
            assert!(order == sent);
        }
    }

    #[test]
    fn no_more_are_joined_than_a_super_segment_holds() {
        let mut test = Test::new(&Outbound::default(), 8);
        let (server, to) = server("127.0.0.1:0");
        test.host.send(FLOW, to, datagram(b"hello")).unwrap();
        let own = server.recv_from(&mut [0; 16]).unwrap().1;
        for _ in 0..8 {
            server.send_to(&[1; 20_000], own).unwrap();
        }
        test.wait(|t| t.datagrams.iter().map(|d| d.1.len()).sum::<usize>() == 160_000);
        assert_eq!(test.datagrams.iter().map(|d| d.1.len()).collect::<Vec<_>>(), [60_000, 60_000, 40_000]);
    }

    #[test]
    fn one_port_for_all_destinations() {
        let mut test = Test::new(&Outbound::default(), 8);
        let (a, to_a) = server("127.0.0.1:0");
        let (b, to_b) = server("127.0.0.2:0");
        test.host.send(FLOW, to_a, datagram(b"a")).unwrap();
        test.host.send(FLOW, to_b, datagram(b"b")).unwrap();
        let from = |socket: &UdpSocket| socket.recv_from(&mut [0; 16]).unwrap().1.port();
        assert_eq!(from(&a), from(&b));
    }

    #[test]
    fn type_of_service_goes_out_and_comes_back() {
        let mut sender = Test::new(&Outbound::default(), 8);
        let mut receiver = Test::new(&Outbound::default(), 8);
        let (server, to) = server("127.0.0.1:0");
        receiver.host.send(FLOW, to, datagram(b"hello")).unwrap();
        let receiver_at = server.recv_from(&mut [0; 16]).unwrap().1;
        sender.host.send(FLOW, receiver_at, Datagram { tos: 0xb9, ..datagram(b"x") }).unwrap();
        receiver.wait(|t| t.datagrams.len() == 1);
        assert_eq!(receiver.datagrams[0].3, 0xb9, "expedited forwarding, ECT(1)");
    }

    #[test]
    fn at_the_bound_there_is_no_socket_until_another_is_closed() {
        let mut test = Test::new(&Outbound::default(), 1);
        let (_server, to) = server("127.0.0.1:0");
        let other = UdpId { index: 0, generation: 1 };
        test.host.send(FLOW, to, datagram(b"1")).unwrap();
        assert_eq!(test.host.send(other, to, datagram(b"2")), Err(HostError::Exhausted));
        test.host.close(UdpId { generation: FLOW.generation - 1, ..FLOW });
        assert_eq!(test.host.open_sockets(), 1, "an old generation closes nothing");
        test.host.close(FLOW);
        assert_eq!(test.host.send(other, to, datagram(b"2")), Ok(()));
        test.host.close(other);
        test.host.highest = 2;
        let refused = test.host.send(FLOW, to, datagram(b"3"));
        assert_eq!(refused, Err(HostError::Exhausted), "the last descriptors are left to others");
    }

    #[test]
    fn the_host_itself_is_reached_without_the_chosen_source() {
        let outbound = Outbound { v4: Some([127, 0, 0, 9].into()), ..Outbound::default() };
        let mut test = Test::new(&outbound, 8);
        let (server, to) = server("127.0.0.1:0");
        test.host.send(FLOW, to, datagram(b"x")).unwrap();
        let from = server.recv_from(&mut [0; 16]).unwrap().1;
        assert_eq!(from.ip(), IpAddr::from([127, 0, 0, 1]));
        server.send_to(b"answer", from).unwrap();
        test.wait(|t| t.datagrams.len() == 1);
    }

    #[test]
    fn dont_fragment_is_honoured_and_without_it_the_host_fragments() {
        if in_namespace("host::udp::tests::dont_fragment_is_honoured_and_without_it_the_host_fragments", 1500) {
            return;
        }
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let mut test = Test::new(&Outbound::default(), 8);
            let (server, to) = server(address);
            let payload = [9; 4000];
            let whole = Datagram { dont_fragment: true, ..datagram(&payload) };
            assert_eq!(test.host.send(FLOW, to, whole), Err(HostError::TooBig(1500)));
            let in_parts = Datagram { segment: 2000, ..whole };
            assert_eq!(test.host.send(FLOW, to, in_parts), Err(HostError::TooBig(1500)));
            let mut buffer = [0; 8000];
            for (segment, sizes) in [(0, &[4000][..]), (2000, &[2000, 2000]), (1400, &[1400, 1400, 1200])] {
                test.host.send(FLOW, to, Datagram { segment, ..datagram(&payload) }).unwrap();
                for size in sizes {
                    assert_eq!(server.recv(&mut buffer).unwrap(), *size, "{address}, segments of {segment}");
                }
            }
            test.host.send(FLOW, to, Datagram { payload: &payload[..1400], ..whole }).unwrap();
            assert_eq!(server.recv(&mut buffer).unwrap(), 1400);
            assert!(test.errors.is_empty());
        }
    }

    #[test]
    fn without_a_route_the_network_is_unreachable() {
        if in_namespace("host::udp::tests::without_a_route_the_network_is_unreachable", 65_536) {
            return;
        }
        let mut test = Test::new(&Outbound::default(), 8);
        for outside in ["192.0.2.1:9", "[2001:db8::1]:9"] {
            let result = test.host.send(FLOW, outside.parse().unwrap(), datagram(b"x"));
            assert_eq!(result, Err(HostError::NetUnreachable), "{outside}");
            test.host.close(FLOW);
        }
    }

    /// What has come so far, as bytes.
    fn arrived(server: &UdpSocket) -> Vec<Vec<u8>> {
        server.set_nonblocking(true).unwrap();
        let mut buffer = vec![0; 70_000];
        // Over loopback a datagram has arrived when it has been sent.
        std::iter::from_fn(|| server.recv(&mut buffer).ok().map(|n| buffer[..n].to_vec())).collect()
    }

    fn flush(test: &mut Test) -> Vec<(UdpId, SocketAddr, HostError, u64, Vec<u8>)> {
        let mut unsent = Vec::new();
        test.host.flush(|u| unsent.push((u.flow, u.to, u.error, u.datagrams, u.payload.to_vec())));
        unsent
    }

    #[test]
    fn the_first_leaves_at_once_and_what_follows_in_order_with_the_round() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let mut test = Test::new(&Outbound::default(), 8);
            let (server, to) = server(address);
            let sizes = [1400, 1400, 1400, 900, 900, 1000, 1, 0, 0, 7, 7, 65_507, 30_000, 30_000, 3];
            let payloads: Vec<Vec<u8>> = sizes.iter().zip(0..).map(|(size, i)| vec![i; *size]).collect();
            test.host.send(FLOW, to, datagram(&payloads[0])).unwrap();
            assert_eq!(arrived(&server).len(), 1, "nobody waits for the first");
            test.host.send(FLOW, to, datagram(&payloads[1])).unwrap();
            assert_eq!(arrived(&server).len(), 0, "the second waits");
            assert_eq!(flush(&mut test), []);
            assert_eq!(arrived(&server), [payloads[1].clone()]);
            let mut got = Vec::new();
            for payload in &payloads {
                test.host.send(FLOW, to, datagram(payload)).unwrap();
                got.append(&mut arrived(&server));
            }
            assert_eq!(flush(&mut test), []);
            got.append(&mut arrived(&server));
            assert!(got == payloads, "{:?}", got.iter().map(Vec::len).collect::<Vec<_>>());
        }
    }

    #[test]
    fn datagrams_of_one_size_leave_joined() {
        let mut sender = Test::new(&Outbound::default(), 8);
        let mut receiver = Test::new(&Outbound::default(), 8);
        let (server, to) = server("127.0.0.1:0");
        receiver.host.send(FLOW, to, datagram(b"hello")).unwrap();
        let to = server.recv_from(&mut [0; 16]).unwrap().1;
        // The first alone, two, two and a shorter one, a longer one: what came is seen as it was sent.
        for size in [500, 400, 400, 500, 500, 100, 600] {
            sender.host.send(FLOW, to, datagram(&vec![1; size])).unwrap();
        }
        assert_eq!(flush(&mut sender), []);
        receiver.wait(|t| t.datagrams.last().is_some_and(|d| d.1.len() == 600));
        let seen: Vec<(usize, u16)> = receiver.datagrams.iter().map(|d| (d.1.len(), d.2)).collect();
        assert_eq!(seen, [(500, 0), (800, 400), (1100, 500), (600, 0)]);
        receiver.datagrams.clear();
        for i in 0..100 {
            sender.host.send(FLOW, to, datagram(&[i; 1400])).unwrap();
        }
        assert_eq!(flush(&mut sender), []);
        let bytes = |t: &Test| t.datagrams.iter().map(|d| d.1.len()).sum::<usize>();
        receiver.wait(|t| bytes(t) == 100 * 1400);
        let seen: Vec<usize> = receiver.datagrams.iter().map(|d| d.1.len() / 1400).collect();
        assert_eq!(seen, [1, 46, 46, 7], "65,000 bytes are the most");
        let order: Vec<u8> = receiver.datagrams.iter().flat_map(|d| d.1.chunks(1400).map(|c| c[0])).collect();
        assert_eq!(order, (0..100).collect::<Vec<u8>>());
    }

    #[test]
    fn what_goes_another_way_overtakes_nothing() {
        let mut test = Test::new(&Outbound::default(), 8);
        let (a, to_a) = server("127.0.0.1:0");
        let (b, to_b) = server("127.0.0.2:0");
        let other = UdpId { index: 0, generation: 1 };
        let plain = datagram(b"");
        let ways = [
            (FLOW, to_a, plain),
            (other, to_a, plain),
            (FLOW, to_b, plain),
            (FLOW, to_a, Datagram { tos: 8, ..plain }),
            (FLOW, to_a, Datagram { hop_limit: 9, ..plain }),
            (FLOW, to_a, Datagram { dont_fragment: true, ..plain }),
            (FLOW, to_a, Datagram { segment: 2, ..plain }),
        ];
        let mut number = 0;
        let mut sent = Vec::new();
        for one in ways {
            for another in ways {
                for (flow, to, kind) in [one, one, another, another, one] {
                    number += 1u32;
                    let payload = number.to_be_bytes();
                    test.host.send(flow, to, Datagram { payload: &payload, ..kind }).unwrap();
                    let parts = if kind.segment == 0 { 4 } else { 2 };
                    sent.extend(payload.chunks(parts).map(|part| (to, part.to_vec())));
                }
            }
        }
        assert_eq!(flush(&mut test), []);
        for (server, to) in [(a, to_a), (b, to_b)] {
            let expected: Vec<_> = sent.iter().filter(|s| s.0 == to).map(|s| s.1.clone()).collect();
            assert_eq!(arrived(&server), expected);
        }
    }

    #[test]
    fn two_flows_in_turn_wait_for_nothing() {
        let mut test = Test::new(&Outbound::default(), 8);
        let (server, to) = server("127.0.0.1:0");
        let other = UdpId { index: 0, generation: 1 };
        for i in 0..6 {
            test.host.send(if i % 2 == 0 { FLOW } else { other }, to, datagram(&[i])).unwrap();
            assert_eq!(arrived(&server), [vec![i]]);
        }
    }

    #[test]
    fn a_flow_that_ends_leaves_nothing_behind() {
        let mut test = Test::new(&Outbound::default(), 8);
        let (server, to) = server("127.0.0.1:0");
        for i in 0..3 {
            test.host.send(FLOW, to, datagram(&[i])).unwrap();
        }
        test.host.close(FLOW);
        assert_eq!(arrived(&server), [[0], [1], [2]]);
        let next = UdpId { generation: FLOW.generation + 1, ..FLOW };
        test.host.send(next, to, datagram(&[3])).unwrap();
        assert_eq!((arrived(&server), test.host.open_sockets()), (vec![vec![3]], 1));
    }

    #[test]
    fn what_waited_and_could_not_be_sent_is_told_and_costs_nobody_else() {
        if in_namespace("host::udp::tests::what_waited_and_could_not_be_sent_is_told_and_costs_nobody_else", 1500) {
            return;
        }
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let mut test = Test::new(&Outbound::default(), 8);
            let (server, to) = server(address);
            let whole = |payload| Datagram { dont_fragment: true, ..datagram(payload) };
            let (small, large) = ([1; 900], [2; 1600]);
            test.host.send(FLOW, to, whole(&small)).unwrap();
            for payload in [&large[..], &large, &large, &small] {
                assert_eq!(test.host.send(FLOW, to, whole(payload)), Ok(()), "it waits");
            }
            assert_eq!(arrived(&server), [&small, &small]);
            assert_eq!(test.host.send(FLOW, to, whole(&large)), Err(HostError::TooBig(1500)), "and then no more");
            assert_eq!(flush(&mut test), [(FLOW, to, HostError::TooBig(1500), 3, large.to_vec())]);
            assert_eq!(flush(&mut test), []);
            // One that waits alone.
            test.host.send(FLOW, to, whole(&small)).unwrap();
            test.host.slots[FLOW.index as usize].unjoinable = 0;
            test.host.send(FLOW, to, whole(&large)).unwrap();
            assert_eq!(flush(&mut test), [(FLOW, to, HostError::TooBig(1500), 1, large.to_vec())]);
            assert_eq!(arrived(&server), [&small]);
        }
    }

    #[test]
    fn larger_than_the_paths_mtu_they_leave_one_by_one_in_fragments() {
        if in_namespace("host::udp::tests::larger_than_the_paths_mtu_they_leave_one_by_one_in_fragments", 1500) {
            return;
        }
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let mut test = Test::new(&Outbound::default(), 8);
            let (server, to) = server(address);
            for i in 0..4 {
                test.host.send(FLOW, to, datagram(&[i; 2000])).unwrap();
            }
            assert_eq!(flush(&mut test), []);
            assert!(arrived(&server) == (0..4).map(|i| vec![i; 2000]).collect::<Vec<_>>(), "{address}");
            for i in 0..3 {
                test.host.send(FLOW, to, datagram(&[i; 2000])).unwrap();
                assert_eq!(arrived(&server).len(), 1, "no longer tried");
            }
            for _ in 0..3 {
                test.host.send(FLOW, to, datagram(&[9; 1000])).unwrap();
            }
            assert_eq!(arrived(&server).len(), 0, "smaller ones wait");
            assert_eq!(flush(&mut test), []);
            assert_eq!(arrived(&server).len(), 3);
        }
    }

    #[test]
    fn an_error_for_an_earlier_datagram_costs_none_of_those_that_wait() {
        let mut test = Test::new(&Outbound::default(), 8);
        let (server, to) = server("127.0.0.1:0");
        let refused = closed("127.0.0.1:0");
        for i in 0..20 {
            test.host.send(FLOW, refused, datagram(b"lost")).unwrap();
            for _ in 0..5 {
                test.host.send(FLOW, to, datagram(&[i; 100])).unwrap();
            }
            for _ in 0..3 {
                test.host.send(FLOW, refused, datagram(b"lost")).unwrap();
            }
        }
        assert_eq!(flush(&mut test), []);
        assert!(arrived(&server) == (0..100).map(|i| vec![i / 5; 100]).collect::<Vec<_>>());
    }
}
