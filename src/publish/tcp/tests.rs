//! Real sockets on the loopback. The sandbox's port is a listener beside the others, and its agent is a thread.
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;

use mio::{Events, Poll, Waker};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::mpsc;

use super::*;
use crate::datapath::links::Links;
use crate::gateway::Gateway;
use crate::host::HostSide;
use crate::host::testing::in_namespace;
use crate::plan::{HostView, MacAddr, Network, Origin};
use crate::publish::{Publishing, inside};
use crate::sys::testing::pair_elsewhere;

const PORT: PortId = PortId(3);
const ID: &str = "0123456789ab";
/// What the sandbox's own address is in these tests.
const OWN: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 77);
/// Longest that anything here may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A sandbox's port at a host address, for these clients.
fn published(host: SocketAddr, sandbox_port: u16, from: &[&str]) -> Published {
    Published {
        sandbox: ID.to_owned(),
        protocol: crate::plan::Protocol::Tcp,
        host,
        dual_stack: false,
        sandbox_port,
        sandbox_address: None,
        device: 0,
        proxy: None,
        from: from.iter().map(|from| from.parse().unwrap()).collect(),
        spec: sandbox_port.to_string(),
        origin: Origin::Option,
    }
}

/// A worker that does nothing but publish.
struct Test {
    poll: Poll,
    waker: Arc<Waker>,
    publishing: Publishing,
    gateway: Gateway,
    host: HostSide,
    links: Links,
    agent: Option<JoinHandle<()>>,
}

impl Test {
    /// With an agent.
    fn new() -> Test {
        let mut test = Test::without_agent();
        test.add_agent();
        test
    }

    /// With an agent, on a network of that behaviour.
    fn behaving(behaviour: Behaviour) -> Test {
        let mut test = Test::on(Network { behaviour, ..crate::gateway::emit::testing::network(65520) });
        test.add_agent();
        test
    }

    fn without_agent() -> Test {
        Test::on(crate::gateway::emit::testing::network(65520))
    }

    fn on(network: Network) -> Test {
        let poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), tokens::COMMAND).unwrap());
        let view = HostView::default();
        let host = HostSide::new(poll.registry(), &network, &view, mpsc::channel(8).0).unwrap();
        let mut gateway = Gateway::new(Instant::now(), network, view);
        let (mac, ifname) = (MacAddr::from_ipv4(OWN), "tap0".to_owned());
        let endpoint =
            Endpoint { id: ID.to_owned(), name: "test".to_owned(), ifname, mac, v4: Some(OWN), ..Endpoint::default() };
        gateway.add_port(PORT, endpoint);
        let publishing = Publishing::new(poll.registry()).unwrap();
        Test { poll, waker, publishing, gateway, host, links: Links::new(), agent: None }
    }

    fn add_agent(&mut self) {
        let [ours, theirs] = pair_elsewhere();
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        self.agent = Some(std::thread::spawn(move || while inside::serve_one(theirs.as_fd()).unwrap_or(false) {}));
        self.publishing.add_agent(PORT, ours).unwrap();
    }

    fn tcp(&self) -> &TcpSide {
        &self.publishing.tcp
    }

    fn stats(&self) -> TcpStats {
        self.tcp().stats()
    }

    /// Publish a sandbox's port at any port of a host address; the address.
    fn publish(&mut self, host: &str, sandbox_port: u16) -> SocketAddr {
        self.publish_for(host, sandbox_port, &[])
    }

    fn publish_for(&mut self, host: &str, sandbox_port: u16, from: &[&str]) -> SocketAddr {
        let host: IpAddr = host.parse().unwrap();
        let listener = TcpListener::bind((host, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let host = listener.local_addr().unwrap();
        self.publishing.publish(PORT, vec![(published(host, sandbox_port, from), listener.into())]).unwrap();
        host
    }

    /// Serve a listener inside that leads to a port of the host; its address.
    fn reach(&mut self, inside: &str, host_port: u16) -> SocketAddr {
        let inside: IpAddr = inside.parse().unwrap();
        let listener = TcpListener::bind((inside, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let inside = listener.local_addr().unwrap();
        let reached = Reached { host_port, protocol: crate::plan::Protocol::Tcp, inside };
        self.publishing.reach(PORT, vec![(reached, listener.into())]).unwrap();
        inside
    }

    /// One round of the worker.
    fn turn(&mut self, longest: Duration) {
        let mut events = Events::with_capacity(64);
        let timeout = match self.publishing.is_busy() {
            true => Duration::ZERO,
            false => self
                .publishing
                .next_timeout()
                .map_or(longest, |at| at.saturating_duration_since(Instant::now()).min(longest)),
        };
        self.poll.poll(&mut events, Some(timeout)).unwrap();
        for event in events.iter() {
            match tokens::read(event.token()) {
                Some((tokens::Kind::Command, _)) | None => {}
                Some((kind, index)) => self.publishing.handle_event(kind, index, event),
            }
        }
        let Test { publishing, gateway, host, links, .. } = self;
        publishing.round(Instant::now(), Surroundings { gateway, host, links });
    }

    /// Turn until something is so.
    #[track_caller]
    fn until(&mut self, so: impl Fn(&TcpSide) -> bool) {
        let begin = Instant::now();
        while !so(self.tcp()) {
            assert!(begin.elapsed() < LIMIT, "it is not so: {:?}", self.stats());
            self.turn(Duration::from_millis(100));
        }
    }

    /// Turn while other threads work; what they answer.
    #[track_caller]
    fn during<R: Send>(&mut self, work: impl FnOnce() -> R + Send) -> R {
        let waker = Arc::clone(&self.waker);
        std::thread::scope(|scope| {
            let worker = scope.spawn(move || {
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
                waker.wake().unwrap();
                result
            });
            let begin = Instant::now();
            while !worker.is_finished() {
                assert!(begin.elapsed() < LIMIT, "{:?}", self.stats());
                self.turn(Duration::from_millis(100));
            }
            worker.join().unwrap().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A client and a server that are connected through the published port.
    fn connected(&mut self, host: SocketAddr, server: &TcpListener) -> (TcpStream, TcpStream) {
        self.during(|| {
            let client = connect_to(host);
            let (server, _) = server.accept().unwrap();
            server.set_read_timeout(Some(LIMIT)).unwrap();
            (client, server)
        })
    }

    /// Everything has ended, and nothing is left behind.
    #[track_caller]
    fn assert_ended(&mut self) {
        self.until(TcpSide::is_empty);
        assert_eq!(self.tcp().tools.pipes.lent(), 0);
    }
}

impl Drop for Test {
    fn drop(&mut self) {
        self.publishing.remove(PORT);
        if let Some(agent) = self.agent.take() {
            let _ = agent.join();
        }
    }
}

fn connect_to(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_write_timeout(Some(LIMIT)).unwrap();
    stream
}

fn listen(at: &str) -> (TcpListener, u16) {
    let listener = TcpListener::bind((at.parse::<IpAddr>().unwrap(), 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A port of 127.0.0.1 (and of [::1]) where nobody listens, for as long as this lives.
fn nobody_listens() -> (Socket, u16) {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
    socket.set_only_v6(false).unwrap();
    socket.bind(&"[::]:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    (socket, port)
}

fn reset(stream: TcpStream) {
    Socket::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
}

#[track_caller]
fn assert_reset(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let error = stream.read_to_end(&mut rest).expect_err("a reset, not an end");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    all
}

/// Bytes that depend on their place (xorshift64).
struct Noise(u64);

impl Noise {
    fn next_block(&mut self) -> [u8; 8] {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.to_le_bytes()
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length / 8).flat_map(|_| self.next_block()).collect()
    }
}

fn send_noise(mut to: &TcpStream, seed: u64, length: usize) {
    const PIECE: usize = 256 * 1024;
    let mut noise = Noise(seed);
    for _ in 0..length / PIECE {
        to.write_all(&noise.bytes(PIECE)).unwrap();
    }
    to.shutdown(Shutdown::Write).unwrap();
}

/// Read to the end and compare.
fn check_noise(mut from: &TcpStream, seed: u64, length: usize) {
    let mut noise = Noise(seed);
    let mut block = vec![0; 64 * 1024];
    for _ in 0..length / block.len() {
        from.read_exact(&mut block).unwrap();
        assert!(block == noise.bytes(block.len()));
    }
    assert_eq!(from.read(&mut block).unwrap(), 0);
}

fn both_ways_at_once(client: &TcpStream, server: &TcpStream, length: usize) {
    std::thread::scope(|scope| {
        scope.spawn(|| send_noise(client, 1, length));
        scope.spawn(|| send_noise(server, 2, length));
        scope.spawn(|| check_noise(server, 1, length));
        check_noise(client, 2, length);
    });
}

#[test]
fn many_bytes_both_ways_at_once_are_whole() {
    const LENGTH: usize = 64 << 20;
    let mut test = Test::new();
    let (listener, port) = listen("127.0.0.1");
    let host = test.publish("127.0.0.1", port);
    let (client, server) = test.connected(host, &listener);
    test.during(|| both_ways_at_once(&client, &server, LENGTH));
    test.assert_ended();
    assert_eq!((test.stats().bytes_in, test.stats().bytes_out), (LENGTH as u64, LENGTH as u64));
    assert_eq!((test.stats().accepted, test.stats().spliced), (1, 1));
}

#[test]
fn without_pipes_bytes_are_whole_as_well() {
    const LENGTH: usize = 4 << 20;
    let mut test = Test::new();
    test.publishing.tcp.tools.pipes = super::super::pipes::PipePool::with_most(0);
    let (listener, port) = listen("127.0.0.1");
    let host = test.publish("127.0.0.1", port);
    let (client, server) = test.connected(host, &listener);
    test.during(|| both_ways_at_once(&client, &server, LENGTH));
    test.assert_ended();
}

#[test]
fn an_end_on_one_side_leaves_the_other_way_open() {
    let mut test = Test::new();
    let (listener, port) = listen("127.0.0.1");
    let host = test.publish("127.0.0.1", port);
    for swapped in [false, true] {
        let (mut first, mut second) = test.connected(host, &listener);
        if swapped {
            (first, second) = (second, first);
        }
        test.during(|| {
            first.write_all(b"a question").unwrap();
            first.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_all(&mut second), b"a question");
            second.write_all(&[7; 3 << 20]).unwrap();
            second.write_all(b"an answer").unwrap();
            drop(second);
            assert!(read_all(&mut first).ends_with(b"an answer"));
        });
        test.assert_ended();
    }
}

#[test]
fn a_reset_of_either_side_is_one_of_the_other() {
    let mut test = Test::new();
    let (listener, port) = listen("127.0.0.1");
    let host = test.publish("127.0.0.1", port);
    for swapped in [false, true] {
        let (mut first, mut second) = test.connected(host, &listener);
        if swapped {
            (first, second) = (second, first);
        }
        test.during(|| {
            first.write_all(b"some").unwrap();
            second.read_exact(&mut [0; 4]).unwrap();
            reset(first);
            assert_reset(&mut second);
        });
        test.assert_ended();
    }
}

#[test]
fn what_came_before_a_reset_can_be_read() {
    let mut test = Test::new();
    let (listener, port) = listen("127.0.0.1");
    let host = test.publish("127.0.0.1", port);
    let (mut client, mut server) = test.connected(host, &listener);
    // A server that answers without reading the question.
    test.during(|| client.write_all(b"a question").unwrap());
    test.until(|tcp| tcp.stats().bytes_in == 10);
    server.write_all(b"no").unwrap();
    drop(server);
    let mut answer = [0; 2];
    test.during(|| {
        client.read_exact(&mut answer).unwrap();
        assert_reset(&mut client);
    });
    assert_eq!(&answer, b"no");
    test.assert_ended();
}

#[test]
fn where_nobody_listens_the_client_is_reset() {
    let mut test = Test::new();
    let (_nobody, port) = nobody_listens();
    let host = test.publish("127.0.0.1", port);
    test.during(|| assert_reset(&mut connect_to(host)));
    test.assert_ended();
    assert_eq!((test.stats().refused, test.stats().spliced), (1, 0));
}

#[test]
fn a_service_is_found_at_any_of_the_sandboxs_own_addresses() {
    let mut test = Test::new();
    for at in ["127.0.0.1", "::1", &OWN.to_string()] {
        for from in ["127.0.0.1", "::1"] {
            let (listener, port) = listen(at);
            let host = test.publish(from, port);
            let (mut client, mut server) = test.connected(host, &listener);
            test.during(|| {
                client.write_all(b"x").unwrap();
                server.read_exact(&mut [0]).unwrap();
            });
        }
    }
    assert_eq!(test.stats().spliced, 6);
}

#[test]
fn goals_begin_with_the_clients_family() {
    let endpoint = Endpoint {
        id: ID.to_owned(),
        name: "test".to_owned(),
        ifname: "tap0".to_owned(),
        mac: MacAddr::from_ipv4(OWN),
        v4: Some(Ipv4Addr::new(10, 0, 2, 100)),
        v6: Some("fd00::100".parse().unwrap()),
        ..Endpoint::default()
    };
    let names = |goals: Goals| -> Vec<String> { goals.iter().flatten().map(|goal| goal.to_string()).collect() };
    let client = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 1);
    let mut published = published("192.0.2.1:80".parse().unwrap(), 80, &[]);
    let order = |ways, ip: &str, endpoint| names(goals(client(ip), &published, ways, Some(endpoint)));
    let any = LocalClients::Loopback;
    let from_v4 = ["127.0.0.1:80", "[::1]:80", "10.0.2.100:80", "[fd00::100]:80"];
    assert_eq!(order(any, "127.9.9.9", &endpoint), from_v4);
    let from_v6 = ["[::1]:80", "[fd00::100]:80", "127.0.0.1:80", "10.0.2.100:80"];
    assert_eq!(order(any, "::1", &endpoint), from_v6);
    let without_v6 = Endpoint { v6: None, ..endpoint.clone() };
    assert_eq!(order(any, "::1", &without_v6), ["[::1]:80", "127.0.0.1:80", "10.0.2.100:80"]);
    assert_eq!(order(LocalClients::LoopbackOnly, "127.0.0.1", &endpoint), ["127.0.0.1:80", "[::1]:80"]);
    assert_eq!(order(LocalClients::LoopbackOnly, "::1", &endpoint), ["[::1]:80", "127.0.0.1:80"]);
    assert_eq!(order(LocalClients::OwnAddress, "127.0.0.1", &endpoint), ["10.0.2.100:80", "[fd00::100]:80"]);
    assert_eq!(order(LocalClients::OwnAddress, "::1", &without_v6), ["10.0.2.100:80"]);
    published.sandbox_address = "10.0.2.15".parse().ok();
    for ways in [any, LocalClients::LoopbackOnly, LocalClients::OwnAddress] {
        assert_eq!(names(goals(client("::1"), &published, ways, Some(&endpoint))), ["10.0.2.15:80"]);
    }
    assert_eq!(names(loopback(client("127.0.0.1"), 80)), ["127.0.0.1:80", "[::1]:80"]);
    assert_eq!(names(loopback(client("::1"), 80)), ["[::1]:80", "127.0.0.1:80"]);
}

#[test]
fn the_network_says_which_way_local_clients_take() {
    for (ways, at, spliced) in [
        (LocalClients::LoopbackOnly, "127.0.0.1", true),
        (LocalClients::LoopbackOnly, "127.0.0.77", false),
        (LocalClients::OwnAddress, "127.0.0.77", true),
        (LocalClients::OwnAddress, "127.0.0.1", false),
    ] {
        let mut test = Test::behaving(Behaviour { local_clients: ways, ..Behaviour::default() });
        let (listener, port) = listen(at);
        let host = test.publish("127.0.0.1", port);
        if spliced {
            test.connected(host, &listener);
        } else {
            let client = TcpStream::connect(host).unwrap();
            test.until(|tcp| tcp.stats().refused == 1);
            drop(client);
        }
        assert_eq!((test.stats().spliced, test.stats().refused), (u64::from(spliced), u64::from(!spliced)), "{at}");
    }
    let mut test = Test::behaving(Behaviour { local_clients: LocalClients::Link, ..Behaviour::default() });
    let (_listener, port) = listen("127.0.0.1");
    let host = test.publish("127.0.0.1", port);
    let _client = TcpStream::connect(host).unwrap();
    test.until(|tcp| tcp.stats().through_link == 1);
    assert_eq!((test.stats().spliced, test.gateway.flows().0), (0, 1));
}

#[test]
fn a_port_may_lead_to_another_address_than_the_sandboxs_own() {
    let mut test = Test::new();
    let (listener, port) = listen("127.0.0.55");
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let host = socket.local_addr().unwrap();
    let leading = Published { sandbox_address: "127.0.0.55".parse().ok(), ..published(host, port, &[]) };
    test.publishing.publish(PORT, vec![(leading, socket.into())]).unwrap();
    test.connected(host, &listener);
    assert_eq!(test.stats().spliced, 1);
}

#[test]
fn where_tcp_is_switched_off_a_client_is_reset() {
    let mut off = Behaviour::default();
    off.services.tcp = false;
    let mut test = Test::behaving(off);
    let (_listener, port) = listen("127.0.0.1");
    let host = test.publish("127.0.0.1", port);
    let _client = TcpStream::connect(host).unwrap();
    test.until(|tcp| tcp.stats().dropped == 1);
    assert_eq!(test.stats().spliced, 0);
}

#[test]
fn strangers_are_reset_and_local_clients_are_not() {
    if in_namespace("publish::tcp::tests::strangers_are_reset_and_local_clients_are_not", 65536) {
        return;
    }
    let mut netlink = crate::sys::netlink::Netlink::open().unwrap();
    for address in ["192.0.2.1", "198.51.100.1"] {
        netlink.add_address(1, address.parse().unwrap(), 32).unwrap();
    }
    let mut test = Test::new();
    let (listener, port) = listen("127.0.0.1");
    let host = test.publish_for("::", port, &["198.51.100.0/24"]);
    let at = |ip: &str| SocketAddr::new(ip.parse().unwrap(), host.port());
    // Whoever connects to an address of the host's own has that address.
    test.during(|| assert_reset(&mut connect_to(at("192.0.2.1"))));
    assert_eq!((test.stats().not_allowed, test.stats().accepted), (1, 1));
    let (mut client, server) = test.connected(at("127.0.0.1"), &listener);
    drop(server);
    test.during(|| assert_eq!(client.read(&mut [0]).unwrap(), 0));
    assert_eq!((test.stats().not_allowed, test.stats().spliced), (1, 1));
}

#[test]
fn who_comes_before_the_agent_waits_and_too_many_are_left_in_the_kernels_queue() {
    let mut test = Test::without_agent();
    let (listener, port) = listen("127.0.0.1");
    let host = test.publish("127.0.0.1", port);
    let mut clients: Vec<TcpStream> = (0..40).map(|_| connect_to(host)).collect();
    test.until(|tcp| tcp.len() == 40);
    assert!(test.tcp().next_timeout().is_some_and(|at| at > Instant::now() + PATIENCE / 2));
    assert!(!test.tcp().is_busy());
    // As if there were as many as may wait.
    let oldest = *test.tcp().waiting[&PORT].front().unwrap();
    let waiting = test.publishing.tcp.waiting.get_mut(&PORT).unwrap();
    let stale = Id { place: oldest.place, generation: oldest.generation.wrapping_sub(1) };
    for _ in waiting.len()..WAITING_LIMIT {
        waiting.push_back(stale);
    }
    clients.push(connect_to(host));
    test.until(|tcp| !tcp.held_listeners.is_empty());
    assert!(!test.tcp().is_busy());
    assert_eq!((test.stats().accepted, test.stats().dropped), (40, 0));
    test.add_agent();
    test.during(|| {
        for client in &mut clients {
            client.write_all(b"x").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
        }
        for _ in 0..clients.len() {
            let (mut server, _) = listener.accept().unwrap();
            assert_eq!(read_all(&mut server), b"x");
        }
        for client in &mut clients {
            assert_eq!(read_all(client), b"");
        }
    });
    test.assert_ended();
    assert!(test.tcp().next_timeout().is_none());
}

#[test]
fn a_connection_that_does_not_open_in_time_is_reset() {
    let mut test = Test::without_agent();
    let host = test.publish("127.0.0.1", 80);
    let mut client = connect_to(host);
    test.until(|tcp| tcp.len() == 1);
    let Test { publishing, gateway, host, links, .. } = &mut test;
    publishing.round(Instant::now() + PATIENCE, Surroundings { gateway, host, links });
    assert_eq!((test.tcp().len(), test.stats().dropped), (0, 1));
    assert_reset(&mut client);
}

#[test]
fn what_goes_first_comes_before_the_clients_own_bytes() {
    let mut test = Test::without_agent();
    let (listener, port) = listen("127.0.0.1");
    let host = test.publish("127.0.0.1", port);
    let mut client = connect_to(host);
    client.write_all(b"own bytes").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    test.until(|tcp| tcp.len() == 1);
    for (_, connection) in test.publishing.tcp.connections.iter_mut() {
        let State::Opening(opening) = &mut connection.state else { panic!("it waits for the agent") };
        opening.first = b"header, ".to_vec();
    }
    test.add_agent();
    let received = test.during(|| read_all(&mut listener.accept().unwrap().0));
    assert_eq!(received, b"header, own bytes");
}

#[test]
fn a_service_that_is_slow_to_accept_is_waited_for() {
    let mut test = Test::new();
    // With room for one that waits.
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    listener.listen(0).unwrap();
    let listener = TcpListener::from(listener);
    let address = listener.local_addr().unwrap();
    let first = connect_to(address);
    let host = test.publish("127.0.0.1", address.port());
    let mut client = connect_to(host);
    test.until(|tcp| tcp.len() == 1 && !tcp.is_busy());
    let flow = test.publishing.flows(|_| Some(ID), 0, 1, 100).flows.remove(0);
    assert_eq!((flow.state.as_str(), flow.inside), ("connecting", address));
    assert!(test.tcp().next_timeout().is_some());
    drop(first);
    drop(listener.accept().unwrap());
    // The kernel tries again after a second.
    test.during(|| {
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"at last").unwrap();
        server.read_exact(&mut [0; 7]).unwrap();
    });
    assert_eq!(test.stats().spliced, 1);
    drop(client);
    test.assert_ended();
    assert!(test.tcp().next_timeout().is_none());
}

#[test]
fn two_hundred_connections_at_once_are_served() {
    const CLIENTS: u8 = 200;
    let mut test = Test::new();
    let (listener, port) = listen("127.0.0.1");
    let host = test.publish("127.0.0.1", port);
    test.during(|| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let servers: Vec<TcpStream> = (0..CLIENTS).map(|_| listener.accept().unwrap().0).collect();
                for mut server in servers {
                    let question = read_all(&mut server);
                    server.write_all(&question).unwrap();
                }
            });
            let mut clients: Vec<TcpStream> = (0..CLIENTS).map(|_| connect_to(host)).collect();
            for (number, client) in (0..CLIENTS).zip(&mut clients) {
                client.write_all(&vec![number; 1 + usize::from(number) * 100]).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
            }
            for (number, client) in (0..CLIENTS).zip(&mut clients) {
                assert_eq!(read_all(client), vec![number; 1 + usize::from(number) * 100]);
            }
        });
    });
    test.assert_ended();
    assert_eq!(test.stats().spliced, u64::from(CLIENTS));
}

#[test]
fn urgent_bytes_stay_in_their_place() {
    const PIECE: usize = 1 << 20;
    let mut test = Test::new();
    let (listener, port) = listen("127.0.0.1");
    let host = test.publish("127.0.0.1", port);
    for piece in [3, PIECE] {
        let (mut client, mut server) = test.connected(host, &listener);
        let received = test.during(|| {
            std::thread::scope(|scope| {
                let reading = scope.spawn(|| read_all(&mut server));
                client.write_all(&vec![1; piece]).unwrap();
                SockRef::from(&client).send_out_of_band(b"!").unwrap();
                client.write_all(&vec![2; piece]).unwrap();
                SockRef::from(&client).send_out_of_band(b"?").unwrap();
                client.shutdown(Shutdown::Write).unwrap();
                reading.join().unwrap()
            })
        });
        assert_eq!(received.len(), 2 * piece + 2);
        assert_eq!((received[piece], received[2 * piece + 1]), (b'!', b'?'));
        drop((client, server));
        test.assert_ended();
    }
}

#[test]
fn unpublishing_leaves_connections_alone() {
    let mut test = Test::new();
    let (listener, port) = listen("127.0.0.1");
    let host = test.publish("127.0.0.1", port);
    let (mut client, mut server) = test.connected(host, &listener);
    test.publishing.unpublish(&[PublishedKey { protocol: crate::plan::Protocol::Tcp, host, device: 0 }]);
    assert_eq!(TcpStream::connect(host).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    // Free at once.
    drop(TcpListener::bind(host).unwrap());
    test.during(|| {
        client.write_all(b"still here").unwrap();
        server.read_exact(&mut [0; 10]).unwrap();
    });
    drop((client, server));
    test.assert_ended();
    assert!(test.tcp().listeners.is_empty() && test.tcp().published.is_empty());
}

#[test]
fn a_sandbox_reaches_the_hosts_loopback() {
    let mut test = Test::without_agent();
    for (inside, outside) in [("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "::1"), ("::1", "::1"), ("::1", "127.0.0.1")] {
        let (listener, port) = listen(outside);
        let at = test.reach(inside, port);
        let (client, server) = test.connected(at, &listener);
        let place = test.tcp().connections.iter().next().unwrap().0;
        let flow = test.tcp().describe(place, |_| Some(ID)).unwrap();
        assert_eq!((flow.kind, flow.state.as_str()), (FlowKind::Reach, "open"));
        assert_eq!((flow.inside, flow.outside), (client.local_addr().unwrap(), listener.local_addr().ok()));
        test.during(|| both_ways_at_once(&client, &server, 1 << 20));
        test.assert_ended();
    }
    let (_nobody, port) = nobody_listens();
    let at = test.reach("127.0.0.1", port);
    test.during(|| assert_reset(&mut connect_to(at)));
    assert_eq!((test.stats().reached, test.stats().refused), (4, 1));
    test.publishing.close_listeners(PORT);
    assert_eq!(TcpStream::connect(at).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn what_is_no_longer_reached_is_closed_and_its_connections_go_on() {
    let mut test = Test::without_agent();
    let (listener, port) = listen("127.0.0.1");
    let (gone, stays) = (test.reach("127.0.0.1", port), test.reach("::1", port));
    let (client, server) = test.connected(gone, &listener);
    let reached = Reached { host_port: port, protocol: crate::plan::Protocol::Tcp, inside: gone };
    test.publishing.unreach(PortId(PORT.0 + 1), &[reached]);
    test.publishing.unreach(PORT, &[Reached { host_port: port - 1, ..reached }]);
    drop(TcpStream::connect(gone).unwrap());
    test.publishing.unreach(PORT, &[reached]);
    assert_eq!(TcpStream::connect(gone).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    test.during(|| both_ways_at_once(&client, &server, 1 << 20));
    drop(test.connected(stays, &listener));
}

#[test]
fn an_idle_connection_is_small() {
    let mut test = Test::new();
    let (listener, port) = listen("127.0.0.1");
    let host = test.publish("127.0.0.1", port);
    let (mut client, mut server) = test.connected(host, &listener);
    test.during(|| {
        client.write_all(&[1; 200_000]).unwrap();
        server.read_exact(&mut [0; 200_000]).unwrap();
    });
    assert_eq!(test.tcp().tools.pipes.lent(), 0);
    let each = size_of::<Connection>() + size_of::<Spliced>();
    assert!(each <= 320, "{each} bytes");
    let place = test.tcp().connections.iter().next().unwrap().0;
    let flow = test.tcp().describe(place, |port| (port == PORT).then_some(ID)).unwrap();
    assert_eq!((flow.kind, flow.state.as_str(), flow.sandbox.as_str()), (FlowKind::Spliced, "open", ID));
    assert_eq!((flow.inside, flow.outside), (listener.local_addr().unwrap(), client.local_addr().ok()));
}

#[test]
fn what_an_ended_sandbox_had_said_in_full_is_not_reset() {
    let mut test = Test::new();
    let (listener, port) = listen("127.0.0.1");
    let host = test.publish("127.0.0.1", port);
    let (mut told, mut server) = test.connected(host, &listener);
    let (mut cut_off, mut other) = test.connected(host, &listener);
    server.write_all(b"all of it").unwrap();
    drop(server);
    test.until(|tcp| {
        tcp.connections.iter().any(|(_, c)| matches!(&c.state, State::Open(open) if open.is_delivered(1)))
    });
    // More than the kernel keeps for a client that does not read.
    other.set_nonblocking(true).unwrap();
    let mut written = 0;
    test.during(|| {
        let begin = Instant::now();
        while begin.elapsed() < LIMIT {
            match other.write(&[1; 65536]) {
                Ok(more) => written += more,
                Err(_) if written > 32 << 20 => break,
                Err(error) if error.kind() == ErrorKind::WouldBlock && written > 1 << 20 => break,
                Err(_) => std::thread::yield_now(),
            }
        }
    });
    assert!(test.publishing.is_delivering(PORT));
    test.publishing.remove(PORT);
    assert!(!test.publishing.is_delivering(PORT));
    assert_eq!(read_all(&mut told), b"all of it");
    assert_reset(&mut cut_off);
    test.assert_ended();
}

#[test]
fn connections_are_listed_page_by_page() {
    let mut test = Test::new();
    let (listener, port) = listen("127.0.0.1");
    let host = test.publish("127.0.0.1", port);
    let pairs: Vec<_> = (0..10).map(|_| test.connected(host, &listener)).collect();
    let mut clients: Vec<SocketAddr> = pairs.iter().map(|(client, _)| client.local_addr().unwrap()).collect();
    clients.sort();
    for (limit, places) in [(1, 100), (100, 3), (4, 2), (100, 100)] {
        let (mut all, mut cursor) = (Vec::new(), Some(0));
        while let Some(at) = cursor {
            let page = test.publishing.flows(|_| Some(ID), at, limit, places);
            assert!(page.flows.len() <= limit);
            all.extend(page.flows.into_iter().filter_map(|flow| flow.outside));
            cursor = page.next;
        }
        all.sort();
        assert_eq!(all, clients, "{limit} {places}");
    }
    let unknown = test.publishing.flows(|_| None, 0, 100, 100);
    assert!(unknown.flows.is_empty() && unknown.next.is_none());
    assert_eq!(test.publishing.flows(|_| Some(ID), u64::MAX, 100, 100).next, None);
}

/// Run a test again, alone in a process that may be killed or have few descriptors. `None` in that process.
fn alone(test: &str, with: &str) -> Option<std::process::Child> {
    const ALONE: &str = "TAPLINE_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return None;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("publish::tcp::tests::{test}"), "--nocapture"]);
    Some(command.env(ALONE, with).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
}

#[test]
fn a_killed_gateway_leaves_resets_on_both_sides() {
    let (listener, port) = listen("127.0.0.1");
    let Some(mut gateway) = alone("a_killed_gateway_leaves_resets_on_both_sides", &port.to_string()) else {
        let port = std::env::var("TAPLINE_TEST_ALONE").unwrap().parse().unwrap();
        let mut test = Test::new();
        println!("\nat {}", test.publish("127.0.0.1", port));
        // Until it is killed; or the one who should kill it has gone.
        let _ = test.during(|| io::stdin().read(&mut [0]));
        return;
    };
    let output = io::BufReader::new(gateway.stdout.take().unwrap());
    let at = io::BufRead::lines(output)
        .find_map(|line| line.unwrap().strip_prefix("at ").map(|at| at.parse::<SocketAddr>().unwrap()))
        .unwrap();
    let pair = || {
        let client = connect_to(at);
        let (server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(LIMIT)).unwrap();
        (client, server)
    };
    let (mut open_client, mut open_server) = pair();
    let (mut client, mut server) = pair();
    open_client.write_all(b"half a fi").unwrap();
    open_server.read_exact(&mut [0; 9]).unwrap();
    // One way of this one has ended already.
    client.write_all(b"x").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut server), b"x");
    server.write_all(b"half a fi").unwrap();
    client.read_exact(&mut [0; 9]).unwrap();
    gateway.kill().unwrap();
    gateway.wait().unwrap();
    for mut side in [open_client, open_server, client] {
        assert_reset(&mut side);
    }
    // It has read an end, and would again: the error is beside it.
    assert!(server.take_error().unwrap().is_some());
}

#[test]
fn at_a_sandboxs_bound_its_next_client_waits_for_a_place() {
    let mut test = Test::new();
    test.publishing.limit(2);
    let (listener, port) = listen("127.0.0.1");
    let at = test.reach("127.0.0.1", port);
    let first = test.connected(at, &listener);
    let second = test.connected(at, &listener);
    let waiting = connect_to(at);
    test.until(|tcp| !tcp.held_listeners.is_empty());
    assert_eq!((test.stats().accepted, test.tcp().len(), test.publishing.is_busy()), (2, 2, false));
    drop(first);
    test.until(|tcp| tcp.stats().accepted == 3);
    drop((second, waiting, listener));
    test.until(TcpSide::is_empty);
    assert!(test.tcp().counts.is_empty());
}

#[test]
fn without_descriptors_clients_wait_and_nothing_spins() {
    if let Some(test) = alone("without_descriptors_clients_wait_and_nothing_spins", "1") {
        assert!(test.wait_with_output().unwrap().status.success());
        return;
    }
    // An agent would take and release descriptors in between.
    let mut test = Test::without_agent();
    let (listener, port) = listen("127.0.0.1");
    let at = test.reach("127.0.0.1", port);
    let (first, first_server) = test.connected(at, &listener);
    let client = connect_to(at);
    // No descriptor beyond those that are there.
    let mut fill = vec![std::fs::File::open("/dev/null").unwrap()];
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, fill[0].as_raw_fd() as u64, hard).unwrap();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        fill.push(file);
    }
    let before = test.stats().accepted;
    test.until(|tcp| tcp.pause.is_some());
    assert!(!test.publishing.is_busy());
    assert!(test.publishing.next_timeout().is_some_and(|at| at <= Instant::now() + PAUSE));
    assert_eq!(test.stats().accepted, before);
    // A connection ends: there is room again, without waiting.
    drop((first, first_server));
    test.until(|tcp| tcp.stats().accepted == before + 1);
    drop((fill, client));
}
