//! The host's side of TCP flows: connecting sockets, and streams to the DNS forwarder.
//!
//! # Theory of operation
//!
//! One entry for each flow, at the flow's own index. It begins with a non-blocking connect(2); readiness for
//! writing, or an error, is its outcome, which the worker takes from [`TcpHost::take_outcome`]. Then it is a byte
//! stream that the gateway pumps ([`HostStream`]). A connection that was accepted for a published port is a stream
//! from the start ([`TcpHost::adopt`]).
//!
//! Readiness is edge-triggered and remembered in two flags. A read or write that moved less than it was given
//! has emptied or filled the kernel's buffer, so the flag falls without another call; only a stream whose far
//! side has closed keeps its flag until end of file was read. An event for an entry that meanwhile belongs to
//! another flow sets flags that were not earned; the next call answers EAGAIN and takes them back. Only a connect
//! asks the kernel before it believes an event.
//!
//! A connection to the host itself is established before connect(2) returns, so it is asked for a second time at
//! once; and readiness for writing is watched only while connecting and from the first write on that found no
//! room ([`TcpHost::arm`]). Both spare a short connection a round of the event loop.
//!
//! Every socket has SO_LINGER {1, 0} from the start: should this process be killed, its connections end in a
//! reset and not in what looks like a clean end. A flow that ends cleanly takes it off just before closing, and
//! the kernel delivers what is left.
use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, Socket, Type};

use super::addr::HostAddresses;
use super::errqueue;
use crate::gateway::icmp::IcmpError;
use crate::gateway::link::{HostError, TcpId};
use crate::gateway::tcp::flow::{HostStream, Transfer};
use crate::plan::{HostView, Outbound};
use crate::sys::sockopt;

/// A connect that has an outcome: which flow, what, and who sent the ICMP error, where one did.
pub type ConnectOutcome = (TcpId, Result<(), HostError>, Option<IpAddr>);

/// The host's side of one flow.
pub struct Stream {
    generation: u32,
    socket: Socket,
    connecting: bool,
    is_ipv6: bool,
    is_local: bool,
    readable: bool,
    writable: bool,
    far_side_closed: bool,
    /// Urgent data has come; a read ends in front of it, with more behind.
    urgent: bool,
    /// Events for writing are asked for.
    write_watched: bool,
    /// A write found no room since.
    write_blocked: bool,
    /// What is read before the socket's own bytes; empty once it was.
    first: Vec<u8>,
}

/// The host's side of all flows of a worker.
pub struct TcpHost {
    registry: Registry,
    outbound: Outbound,
    addresses: HostAddresses,
    token: fn(u32) -> Token,
    streams: Vec<Option<Stream>>,
    outcomes: VecDeque<ConnectOutcome>,
    /// Descriptors above this one are left to others.
    pub(super) highest: RawFd,
    /// The descriptor that was given last to any socket of the worker.
    pub(super) last: Rc<Cell<RawFd>>,
}

impl TcpHost {
    /// No flows yet. `token` makes the token for the flow at an index.
    pub fn new(registry: Registry, outbound: Outbound, token: fn(u32) -> Token) -> TcpHost {
        let addresses = HostAddresses::default();
        let (streams, outcomes) = (Vec::new(), VecDeque::new());
        TcpHost { registry, outbound, addresses, token, streams, outcomes, highest: RawFd::MAX, last: Rc::default() }
    }

    /// The host's addresses changed.
    pub fn handle_host_changed(&mut self, host: &HostView) {
        self.addresses = HostAddresses::new(host);
    }

    /// Begin to connect.
    pub fn connect(&mut self, flow: TcpId, to: SocketAddr, hop_limit: Option<u8>) {
        match self.start(to, hop_limit) {
            Ok((socket, connected)) => {
                let stream = Stream {
                    generation: flow.generation,
                    socket,
                    connecting: !connected,
                    is_ipv6: to.is_ipv6(),
                    is_local: to.ip().is_loopback(),
                    readable: connected,
                    writable: connected,
                    far_side_closed: false,
                    urgent: false,
                    write_watched: !connected,
                    write_blocked: false,
                    first: Vec::new(),
                };
                if let Err(error) = self.keep(flow, stream) {
                    self.outcomes.push_back((flow, Err(host_error(&error)), None));
                } else if connected {
                    self.outcomes.push_back((flow, Ok(()), None));
                }
            }
            Err(error) => self.outcomes.push_back((flow, Err(host_error(&error)), None)),
        }
    }

    fn start(&self, to: SocketAddr, hop_limit: Option<u8>) -> io::Result<(Socket, bool)> {
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(to), kind, Some(Protocol::TCP))?;
        self.last.set(socket.as_raw_fd());
        if socket.as_raw_fd() > self.highest {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        if to.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_tcp_nodelay(true)?;
        socket.set_linger(Some(Duration::ZERO))?;
        // Urgent data stays in its place in the stream.
        socket.set_out_of_band_inline(true)?;
        if let Some(hop_limit) = hop_limit {
            sockopt::set_hop_limit(socket.as_fd(), to.is_ipv6(), hop_limit)?;
        }
        if !to.ip().is_loopback() {
            self.choose_source(&socket, to)?;
            // Set only while connecting: later it would turn a passing trouble into a broken connection.
            sockopt::set_receive_errors(socket.as_fd(), to.is_ipv6(), true)?;
        }
        let to = to.into();
        let under_way = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::EINPROGRESS | libc::EALREADY));
        // Twice: the first is never finished on a non-blocking socket, the second says whether it is by now.
        match socket.connect(&to) {
            Ok(()) => return Ok((socket, true)),
            Err(error) if under_way(&error) => {}
            Err(error) => return Err(error),
        }
        match socket.connect(&to) {
            Ok(()) => Ok((socket, true)),
            Err(error) if under_way(&error) => Ok((socket, false)),
            Err(error) => Err(error),
        }
    }

    fn choose_source(&self, socket: &Socket, to: SocketAddr) -> io::Result<()> {
        // What the host has itself comes back through its loopback interface.
        let interface = self.outbound.interface_for(to.ip()).filter(|_| !self.addresses.is_local(to.ip()));
        if let Some(interface) = interface {
            socket.bind_device(Some(interface.as_bytes()))?;
        }
        let source = match to {
            SocketAddr::V4(_) => self.outbound.v4.map(IpAddr::V4),
            SocketAddr::V6(_) => self.outbound.v6.map(IpAddr::V6),
        };
        if let Some(source) = source {
            sockopt::set_bind_address_no_port(socket.as_fd())?;
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        Ok(())
    }

    /// Give the flow one end of a socket pair; the other end is returned, for the forwarder.
    pub fn connect_pair(&mut self, flow: TcpId) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let stream = Stream {
            generation: flow.generation,
            socket: Socket::from(OwnedFd::from(ours)),
            connecting: false,
            is_ipv6: false,
            is_local: true,
            readable: true,
            writable: true,
            far_side_closed: false,
            urgent: false,
            write_watched: false,
            write_blocked: false,
            first: Vec::new(),
        };
        self.keep(flow, stream)?;
        self.outcomes.push_back((flow, Ok(()), None));
        Ok(theirs)
    }

    /// Make an accepted connection a flow's stream. The sandbox is given `first`, if there is any, before what the
    /// client sends. There is no outcome to wait for: the flow is pumped once the sandbox has answered.
    pub fn adopt(&mut self, flow: TcpId, socket: Socket, first: Vec<u8>) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        socket.set_linger(Some(Duration::ZERO))?;
        socket.set_tcp_nodelay(true)?;
        socket.set_out_of_band_inline(true)?;
        let stream = Stream {
            generation: flow.generation,
            socket,
            connecting: false,
            is_ipv6: false,
            is_local: true,
            readable: true,
            writable: true,
            far_side_closed: false,
            urgent: false,
            write_watched: false,
            write_blocked: false,
            first,
        };
        self.keep(flow, stream)
    }

    /// An outcome that is known without asking the host.
    pub fn push_outcome(&mut self, outcome: ConnectOutcome) {
        self.outcomes.push_back(outcome);
    }

    fn keep(&mut self, flow: TcpId, stream: Stream) -> io::Result<()> {
        let token = (self.token)(flow.index);
        let fd = stream.socket.as_raw_fd();
        self.registry.register(&mut SourceFd(&fd), token, interest(stream.write_watched))?;
        let index = flow.index as usize;
        if index >= self.streams.len() {
            self.streams.resize_with(index + 1, || None);
        }
        self.streams[index] = Some(stream);
        Ok(())
    }

    /// Watch for room to write, if a write found none. Call it when a flow was pumped.
    pub fn arm(&mut self, flow: TcpId) {
        let token = (self.token)(flow.index);
        let Some(stream) = self.streams.get_mut(flow.index as usize).and_then(Option::as_mut) else { return };
        if stream.write_blocked && !stream.write_watched {
            let fd = stream.socket.as_raw_fd();
            // Registering again reports what is ready already, so room that came meanwhile is not missed.
            stream.write_watched = self.registry.reregister(&mut SourceFd(&fd), token, interest(true)).is_ok();
        }
    }

    /// A stream is ready. Gives the flow when it is an open one that should be pumped; a connect's outcome goes
    /// to [`take_outcome`](Self::take_outcome).
    pub fn handle_event(&mut self, index: u32, event: &Event) -> Option<TcpId> {
        let stream = self.streams.get_mut(index as usize)?.as_mut()?;
        let flow = TcpId { index, generation: stream.generation };
        // Also while it connects: what comes with the outcome comes only once.
        stream.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        stream.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
        stream.far_side_closed |= event.is_read_closed() || event.is_error();
        stream.urgent |= event.is_priority();
        if stream.connecting {
            if let Some((outcome, offender)) = stream.connect_outcome() {
                self.outcomes.push_back((flow, outcome, offender));
            }
            return None;
        }
        Some(flow)
    }

    /// The next connect that has an outcome.
    pub fn take_outcome(&mut self) -> Option<ConnectOutcome> {
        self.outcomes.pop_front()
    }

    /// The flow's stream.
    pub fn stream(&mut self, flow: TcpId) -> Option<&mut Stream> {
        self.streams.get_mut(flow.index as usize)?.as_mut().filter(|s| s.generation == flow.generation)
    }

    /// Let the host's kernel probe the far side.
    pub fn keepalive(&mut self, flow: TcpId) {
        if let Some(stream) = self.stream(flow) {
            // A DNS stream knows no such thing, and a socket that cannot is no worse off than before.
            let _ = stream.socket.set_keepalive(true);
        }
    }

    /// Close the flow's stream, with a reset or leaving what is queued to the kernel.
    pub fn close(&mut self, flow: TcpId, reset: bool) {
        if self.stream(flow).is_none() {
            return;
        }
        let Some(stream) = self.streams[flow.index as usize].take() else { return };
        self.last.set(self.last.get().min(stream.socket.as_raw_fd()));
        if !reset {
            // Without it the last bytes would be lost in a reset, so a failure matters; it cannot fail on a
            // socket that let it be set.
            let _ = stream.socket.set_linger(None);
        }
    }
}

impl Stream {
    /// Has the connect an outcome? An event may also have been meant for an earlier socket.
    fn connect_outcome(&mut self) -> Option<(Result<(), HostError>, Option<IpAddr>)> {
        let error = match self.socket.take_error() {
            Ok(None) if self.socket.peer_addr().is_ok() => {
                self.connecting = false;
                self.readable = true;
                self.writable = true;
                if !self.is_local {
                    // Failing leaves soft errors hard, no more.
                    let _ = sockopt::set_receive_errors(self.socket.as_fd(), self.is_ipv6, false);
                }
                return Some((Ok(()), None));
            }
            Ok(None) => return None,
            Ok(Some(error)) | Err(error) => error,
        };
        self.connecting = false;
        // What the errno leaves out: who said so, and whether it was only the hop limit (traceroute -T).
        let mut told = (host_error(&error), None);
        errqueue::drain(self.socket.as_fd(), |icmp| {
            if let Some(error) = icmp_outcome(icmp.error) {
                told = (error, icmp.offender);
            }
        });
        Some((Err(told.0), told.1))
    }
}

impl HostStream for Stream {
    fn send(&mut self, data: &[u8]) -> Transfer {
        if !self.writable {
            return Transfer::Blocked;
        }
        loop {
            match self.socket.send_with_flags(data, libc::MSG_NOSIGNAL) {
                Ok(0) => return Transfer::Blocked,
                Ok(sent) => {
                    self.writable = sent == data.len();
                    self.write_blocked |= !self.writable;
                    return Transfer::Moved(sent);
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => {
                        self.writable = false;
                        self.write_blocked = true;
                        return Transfer::Blocked;
                    }
                    _ => return Transfer::Broken,
                },
            }
        }
    }

    fn recv(&mut self, room: &mut [u8]) -> Transfer {
        if !self.first.is_empty() {
            let count = room.len().min(self.first.len());
            room[..count].copy_from_slice(&self.first[..count]);
            self.first.drain(..count);
            return Transfer::Moved(count);
        }
        if !self.readable {
            return Transfer::Blocked;
        }
        loop {
            match self.socket.read(room) {
                Ok(0) => return Transfer::Ended,
                Ok(received) => {
                    self.readable = received == room.len() || self.far_side_closed || self.urgent;
                    return Transfer::Moved(received);
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => {
                        self.readable = false;
                        self.urgent = false;
                        return Transfer::Blocked;
                    }
                    _ => return Transfer::Broken,
                },
            }
        }
    }

    fn shutdown_write(&mut self) {
        // It fails only when the connection is broken already, which the next read tells.
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
    }
}

fn interest(writing: bool) -> Interest {
    let reading = Interest::READABLE | Interest::PRIORITY;
    if writing { reading | Interest::WRITABLE } else { reading }
}

/// What an ICMP error that a SYN met means for the connect; `None` where errno says as much.
fn icmp_outcome(error: IcmpError) -> Option<HostError> {
    match error {
        IcmpError::HopLimitExceeded => Some(HostError::HopLimitExceeded),
        IcmpError::NetUnreachable => Some(HostError::NetUnreachable),
        IcmpError::HostUnreachable => Some(HostError::HostUnreachable),
        IcmpError::Prohibited => Some(HostError::Prohibited),
        _ => None,
    }
}

/// What a sandbox can be told of an error of connect(2).
fn host_error(error: &io::Error) -> HostError {
    match error.raw_os_error().unwrap_or(0) {
        libc::ECONNREFUSED => HostError::Refused,
        libc::EHOSTUNREACH | libc::EHOSTDOWN => HostError::HostUnreachable,
        libc::ETIMEDOUT => HostError::TimedOut,
        libc::EACCES | libc::EPERM => HostError::Prohibited,
        libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EAGAIN => HostError::Exhausted,
        libc::ECONNRESET | libc::EPIPE | libc::ECONNABORTED => HostError::Reset,
        _ => HostError::NetUnreachable,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    const FLOW: TcpId = TcpId { index: 3, generation: 7 };

    /// A flow with an accepted connection for its stream, and the client's end.
    fn adopted(first: &[u8]) -> (mio::Poll, TcpHost, TcpStream) {
        let poll = mio::Poll::new().unwrap();
        let registry = poll.registry().try_clone().unwrap();
        let mut host = TcpHost::new(registry, Outbound::default(), |index| Token(index as usize));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        host.adopt(FLOW, listener.accept().unwrap().0.into(), first.to_vec()).unwrap();
        (poll, host, client)
    }

    /// Everything up to the end of file or the break.
    fn read_all(poll: &mut mio::Poll, host: &mut TcpHost, room: usize) -> (Vec<u8>, Transfer) {
        let (mut all, mut room) = (Vec::new(), vec![0; room]);
        let mut events = mio::Events::with_capacity(8);
        loop {
            match host.stream(FLOW).unwrap().recv(&mut room) {
                Transfer::Moved(count) => all.extend_from_slice(&room[..count]),
                Transfer::Blocked => {
                    poll.poll(&mut events, Some(Duration::from_secs(10))).unwrap();
                    assert!(!events.is_empty(), "nothing comes");
                    for event in events.iter() {
                        assert_eq!(host.handle_event(event.token().0 as u32, event), Some(FLOW));
                    }
                }
                end => return (all, end),
            }
        }
    }

    #[test]
    fn an_accepted_connection_is_read_behind_what_comes_first_and_to_its_end() {
        let (mut poll, mut host, mut client) = adopted(b"PROXY header, ");
        assert!(host.take_outcome().is_none());
        client.write_all(b"then the client").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let (all, end) = read_all(&mut poll, &mut host, 4);
        assert_eq!((&all[..], end), (&b"PROXY header, then the client"[..], Transfer::Ended));
        assert_eq!(host.stream(FLOW).unwrap().send(b"answer"), Transfer::Moved(6));
        host.close(FLOW, false);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"answer");
    }

    #[test]
    fn the_last_descriptors_are_left_to_others() {
        let (_poll, mut host, _client) = adopted(b"");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let other = TcpId { index: 4, generation: 1 };
        host.highest = 2;
        host.connect(other, listener.local_addr().unwrap(), None);
        assert_eq!(host.take_outcome(), Some((other, Err(HostError::Exhausted), None)));
        host.highest = RawFd::MAX;
        host.connect(other, listener.local_addr().unwrap(), None);
        assert!(host.stream(other).is_some());
    }

    /// Wait for one event and read once, into more room than needed.
    fn read_at_an_event(poll: &mut mio::Poll, host: &mut TcpHost) -> Vec<u8> {
        let mut events = mio::Events::with_capacity(8);
        poll.poll(&mut events, Some(Duration::from_secs(10))).unwrap();
        for event in events.iter() {
            host.handle_event(event.token().0 as u32, event);
        }
        let mut room = [0; 100];
        match host.stream(FLOW).unwrap().recv(&mut room) {
            Transfer::Moved(count) => room[..count].to_vec(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_comes_behind_urgent_data_is_read_without_another_event() {
        let (mut poll, mut host, mut client) = adopted(b"");
        let mut room = [0; 100];
        assert_eq!(host.stream(FLOW).unwrap().recv(&mut room), Transfer::Blocked);
        client.write_all(b"abc").unwrap();
        socket2::SockRef::from(&client).send_out_of_band(b"d").unwrap();
        client.write_all(b"efg").unwrap();
        let mut all = read_at_an_event(&mut poll, &mut host);
        while all.len() < 7 {
            let Transfer::Moved(count) = host.stream(FLOW).unwrap().recv(&mut room) else { panic!("{all:?}") };
            all.extend_from_slice(&room[..count]);
        }
        assert_eq!(all, b"abcdefg");
    }

    #[test]
    fn an_end_that_comes_with_the_connects_outcome_is_read() {
        let mut poll = mio::Poll::new().unwrap();
        let registry = poll.registry().try_clone().unwrap();
        let mut host = TcpHost::new(registry, Outbound::default(), |index| Token(index as usize));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        host.connect(FLOW, at, None);
        // As if it were still under way when all of this happens.
        host.take_outcome();
        let stream = host.stream(FLOW).unwrap();
        (stream.connecting, stream.readable, stream.writable) = (true, false, false);
        let (mut server, _) = listener.accept().unwrap();
        server.write_all(b"banner").unwrap();
        drop(server);
        assert_eq!(read_at_an_event(&mut poll, &mut host), b"banner");
        assert_eq!(host.stream(FLOW).unwrap().recv(&mut [0; 100]), Transfer::Ended);
    }

    #[test]
    fn an_accepted_connection_whose_flow_fails_is_reset() {
        let (_poll, mut host, mut client) = adopted(b"");
        host.close(FLOW, true);
        let error = client.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(host.stream(FLOW).is_none());
    }

    #[test]
    fn a_client_that_breaks_off_is_noticed() {
        let (mut poll, mut host, client) = adopted(b"first");
        Socket::from(client).set_linger(Some(Duration::ZERO)).unwrap();
        let (all, end) = read_all(&mut poll, &mut host, 100);
        assert_eq!((&all[..], end), (&b"first"[..], Transfer::Broken));
    }

    #[test]
    fn the_hosts_own_address_is_reached_past_the_interface_that_was_asked_for() {
        use crate::sys::netlink::{LinkChange, Netlink};
        let name = "host::tcp::tests::the_hosts_own_address_is_reached_past_the_interface_that_was_asked_for";
        if crate::host::testing::in_namespace(name, 65_536) {
            return;
        }
        let mut netlink = Netlink::open().unwrap();
        let here = std::fs::File::open("/proc/self/ns/net").unwrap();
        netlink.create_veth("up0", "far0", here.as_fd()).unwrap();
        let index = netlink.link("up0").unwrap().index;
        netlink.change_link(index, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
        let own: IpAddr = "2001:db8::1".parse().unwrap();
        netlink.add_address(1, own, 128).unwrap();
        let listener = TcpListener::bind((own, 0)).unwrap();
        let mut poll = mio::Poll::new().unwrap();
        let registry = poll.registry().try_clone().unwrap();
        let outbound = Outbound { interface: Some("up0".to_owned()), ..Outbound::default() };
        let mut host = TcpHost::new(registry, outbound, |index| Token(index as usize));
        host.handle_host_changed(&HostView { v6: "2001:db8::1".parse().ok(), ..HostView::default() });
        // The kernel takes packets for a new IPv6 address only once a work queue of its own has run.
        let end = std::time::Instant::now() + Duration::from_secs(10);
        loop {
            host.connect(FLOW, listener.local_addr().unwrap(), None);
            let outcome = loop {
                if let Some((_, outcome, _)) = host.take_outcome() {
                    break outcome;
                }
                let mut events = mio::Events::with_capacity(8);
                poll.poll(&mut events, Some(Duration::from_secs(10))).unwrap();
                for event in events.iter() {
                    host.handle_event(event.token().0 as u32, event);
                }
            };
            if outcome.is_ok() {
                break;
            }
            assert!(std::time::Instant::now() < end, "{outcome:?}");
            host.close(FLOW, true);
            std::thread::sleep(Duration::from_millis(5));
        }
        listener.accept().unwrap();
    }
}
