//! The control thread between a supervisor and a worker that the tests play themselves.
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc as sync_mpsc;
use std::thread::JoinHandle;

use socket2::{Domain, Socket, Type};

use super::super::api::SandboxInfo;
use super::super::messages::{FromGateway, ToGateway};
use super::super::wire;
use super::check::{Request, check_api};
use super::*;
use crate::datapath::commands::{Command, CommandReceiver, CommandSender, Event, Snapshot};
use crate::gateway::link::{Asker, Peer, PortId};
use crate::plan::{HostView, LinkKind, MacAddr, Network, Origin, Protocol, Published, Reached};
use crate::sys::scm;
use crate::sys::testing::from_elsewhere;

mod descriptors;
mod shared;

const PATIENCE: Duration = Duration::from_secs(10);

fn info() -> SandboxInfo {
    crate::fuzzing::sandbox("0123456789ab", "web")
}

fn attach(api: bool) -> ToGateway {
    let SandboxInfo { endpoint, network, host, .. } = info();
    ToGateway::Attach { network, endpoint, link: LinkKind::Tap, host, api, capture: false }
}

/// A descriptor that is no link at all.
fn file() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

/// A worker that the test plays itself.
struct WorkerSide {
    events: mpsc::Sender<Event>,
    commands: CommandReceiver,
    _poll: mio::Poll,
}

/// What a gateway needs; its links are not looked at, and its workers come out of the other end.
fn setup(shared: bool, linger: Duration) -> (Setup, sync_mpsc::Receiver<WorkerSide>) {
    let (started, workers) = sync_mpsc::channel();
    let start_worker = Box::new(move |events| {
        let poll = mio::Poll::new()?;
        let (sender, commands) = CommandSender::new(mio::Waker::new(poll.registry(), mio::Token(0))?);
        started.send(WorkerSide { events, commands, _poll: poll }).map_err(|_| io::Error::other("the test is over"))?;
        Ok(sender)
    });
    (
        Setup {
            start_worker,
            check_link: |_, _| Ok(()),
            shared,
            first_word: None,
            linger,
            service: PATIENCE,
            lacks: Vec::new(),
        },
        workers,
    )
}

/// A private gateway's control thread, with the supervisor's and the worker's ends in the test's hands.
struct Bench {
    supervisor: Option<OwnedFd>,
    events: mpsc::Sender<Event>,
    commands: CommandReceiver,
    control: JoinHandle<Result<(), GatewayError>>,
    _poll: mio::Poll,
}

impl Bench {
    /// Start one; its link is not looked at.
    fn start(api: Option<UnixListener>) -> Bench {
        let (supervisor, theirs) = scm::pair().unwrap();
        let (setup, workers) = setup(false, PATIENCE);
        let control = std::thread::spawn(move || serve_one(theirs, setup));
        let link = file();
        let fds: Vec<_> = [link.as_fd()].into_iter().chain(api.as_ref().map(AsFd::as_fd)).collect();
        wire::send(&supervisor, &attach(api.is_some()), &fds).unwrap();
        let WorkerSide { events, commands, _poll } = workers.recv_timeout(PATIENCE).unwrap();
        Bench { supervisor: Some(supervisor), events, commands, control, _poll }
    }

    /// The same, attached already.
    fn attached(api: Option<UnixListener>) -> Bench {
        let bench = Bench::start(api);
        match bench.command() {
            Command::AttachPort { endpoint, reply, .. } => {
                assert_eq!(endpoint.id, "0123456789ab");
                reply.send(Ok(PortId(0))).unwrap();
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(bench.said(), Some(FromGateway::Attached { .. })));
        bench
    }

    fn command(&self) -> Command {
        self.commands.recv_timeout(PATIENCE).unwrap()
    }

    fn said(&self) -> Option<FromGateway> {
        wire::recv(self.supervisor.as_ref().unwrap()).unwrap().map(|(message, _)| message)
    }

    fn send(&self, message: &ToGateway) {
        self.hand(message, &[]);
    }

    /// Send a message with sockets beside it.
    fn hand(&self, message: &ToGateway, sockets: &[&Socket]) {
        let fds: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        wire::send(self.supervisor.as_ref().unwrap(), message, &fds).unwrap();
    }

    /// What came of a request.
    fn done(&self) -> (u64, Option<String>) {
        match self.said() {
            Some(FromGateway::Done { request, error }) => (request, error),
            other => panic!("{other:?}"),
        }
    }

    /// The sandbox ends.
    fn end(mut self) {
        self.supervisor = None;
        match self.command() {
            Command::DetachPort { id, reply } => {
                assert_eq!(id, "0123456789ab");
                reply.send(()).unwrap();
            }
            other => panic!("{other:?}"),
        }
        self.control.join().unwrap().unwrap();
    }
}

fn asker() -> Asker {
    let peer = Peer { port: PortId(0), mac: MacAddr([2, 0, 0, 0, 0, 2]) };
    Asker { peer, from: SocketAddr::from(([10, 0, 2, 100], 4444)), to: IpAddr::from([10, 0, 2, 3]) }
}

#[test]
fn a_closed_connection_ends_the_sandbox_and_then_the_gateway() {
    Bench::attached(None).end();
}

#[test]
fn a_worker_that_cannot_serve_is_a_refusal() {
    let bench = Bench::start(None);
    match bench.command() {
        Command::AttachPort { reply, .. } => reply.send(Err("no such device".into())).unwrap(),
        other => panic!("{other:?}"),
    }
    assert!(matches!(bench.said(), Some(FromGateway::Refused { reason }) if reason == "no such device"));
    assert!(bench.said().is_none());
    bench.control.join().unwrap().unwrap();
}

#[test]
fn a_worker_that_ends_ends_the_gateway() {
    let bench = Bench::attached(None);
    drop((bench.events, bench.commands));
    assert!(matches!(bench.control.join().unwrap(), Err(GatewayError::Worker(_))));
}

#[test]
fn a_query_is_answered_through_the_worker() {
    let bench = Bench::attached(None);
    let message = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x09localhost\x00\x00\x01\x00\x01".to_vec();
    bench.events.blocking_send(Event::DnsQuery { asker: asker(), message, turn: Default::default() }).unwrap();
    match bench.command() {
        Command::DnsAnswer { asker: to, message } => {
            assert_eq!(to, asker());
            assert_eq!(message[..4], [0x12, 0x34, 0x85, 0x80]);
            assert!(message.ends_with(&[127, 0, 0, 1]));
        }
        other => panic!("{other:?}"),
    }
    bench.end();
}

#[test]
fn a_stream_of_queries_is_served() {
    let bench = Bench::attached(None);
    let (mut ours, stream) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    bench.events.blocking_send(Event::DnsStream { asker: asker(), stream, turn: Default::default() }).unwrap();
    ours.write_all(b"\x00\x1b\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x09localhost\x00\x00\x01\x00\x01")
        .unwrap();
    let mut head = [0; 4];
    ours.read_exact(&mut head).unwrap();
    assert_eq!(head[2..], [0x12, 0x34]);
    bench.end();
}

#[test]
fn what_changes_on_the_host_reaches_the_worker() {
    let bench = Bench::attached(None);
    let host = HostView { v4: Some([192, 0, 2, 1].into()), ..HostView::default() };
    bench.send(&ToGateway::HostChanged { host: host.clone() });
    assert!(matches!(bench.command(), Command::HostChanged(changed) if changed == host));
    // The same again is nothing new.
    bench.send(&ToGateway::HostChanged { host });
    bench.end();
}

#[test]
fn notices_reach_the_supervisor() {
    let bench = Bench::attached(None);
    bench.events.blocking_send(Event::Notice("ping sockets are closed".into())).unwrap();
    assert!(matches!(bench.said(), Some(FromGateway::Notice { text }) if text == "ping sockets are closed"));
    bench.end();
}

#[test]
fn a_link_that_fails_ends_the_gateway_with_the_reason() {
    let bench = Bench::attached(None);
    let event = Event::PortClosed { id: "0123456789ab".into(), reason: "tap0 was deleted".into() };
    bench.events.blocking_send(event).unwrap();
    assert!(matches!(bench.said(), Some(FromGateway::Notice { text }) if text == "tap0 was deleted"));
    assert!(matches!(bench.command(), Command::DetachPort { .. }));
    bench.control.join().unwrap().unwrap();
}

#[test]
fn nonsense_and_a_second_attach_change_nothing() {
    let bench = Bench::attached(None);
    scm::send(bench.supervisor.as_ref().unwrap(), b"not json", &[]).unwrap();
    bench.send(&attach(false));
    assert!(matches!(bench.said(), Some(FromGateway::Refused { .. })));
    bench.send(&ToGateway::Listen);
    assert!(matches!(bench.said(), Some(FromGateway::Notice { .. })));
    bench.end();
}

/// The response to a request on a fresh connection: its status line and its body.
fn http(path: &std::path::Path, request: &str) -> (String, serde_json::Value) {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "{request} HTTP/1.1\r\nHost: tapline\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), serde_json::from_str(body).unwrap())
}

/// A listening socket with a path that goes away with the test.
fn api_socket(name: &str) -> (std::path::PathBuf, UnixListener) {
    let path = std::env::temp_dir().join(format!("tapline-api-{}-{name}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    (path, listener)
}

#[test]
fn the_api_shows_the_sandbox_and_its_counters() {
    let (path, listener) = api_socket("shows");
    let bench = Bench::attached(Some(listener));
    let (status, body) = http(&path, "GET /v1/sandboxes/web");
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert_eq!(serde_json::from_value::<SandboxInfo>(body).unwrap(), info());

    let asked = std::thread::spawn({
        let path = path.clone();
        move || http(&path, "GET /v1/counters")
    });
    match bench.command() {
        Command::Snapshot { reply } => reply.send(Snapshot { frames_in: 7, ..Snapshot::default() }).unwrap(),
        other => panic!("{other:?}"),
    }
    let (status, body) = asked.join().unwrap();
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert_eq!((&body["frames_in"], &body["dns"]["queries"]), (&7.into(), &0.into()));

    let (status, body) = http(&path, "GET /v1/elsewhere");
    assert_eq!((status.as_str(), &body["code"]), ("HTTP/1.1 404 Not Found", &"not_found".into()));
    let (status, body) = http(&path, "DELETE /v1/sandboxes");
    assert_eq!((status.as_str(), &body["code"]), ("HTTP/1.1 405 Method Not Allowed", &"method_not_allowed".into()));
    bench.end();
    std::fs::remove_file(path).unwrap();
}

/// A bound socket, which listens if it is TCP, and the port it serves.
fn published(protocol: Protocol, address: &str) -> (Published, Socket) {
    let address: SocketAddr = address.parse().unwrap();
    let kind = if protocol == Protocol::Tcp { Type::STREAM } else { Type::DGRAM };
    let socket = Socket::new(Domain::for_address(address), kind, None).unwrap();
    if address.is_ipv6() {
        socket.set_only_v6(true).unwrap();
    }
    socket.bind(&address.into()).unwrap();
    if protocol == Protocol::Tcp {
        socket.listen(8).unwrap();
    }
    let port = Published {
        sandbox: "0123456789ab".into(),
        protocol,
        host: socket.local_addr().unwrap().as_socket().unwrap(),
        dual_stack: false,
        sandbox_port: 80,
        sandbox_address: None,
        device: 0,
        proxy: None,
        from: Vec::new(),
        spec: "80".into(),
        origin: Origin::Option,
    };
    (port, socket)
}

#[test]
fn ports_are_served_and_closed_by_the_worker() {
    let (path, listener) = api_socket("ports");
    let bench = Bench::attached(Some(listener));
    let (tcp, tcp_socket) = published(Protocol::Tcp, "127.0.0.1:0");
    let (udp, udp_socket) = published(Protocol::Udp, "[::1]:0");
    let ports = vec![tcp.clone(), udp.clone()];
    bench.hand(&ToGateway::Publish { request: 7, ports: ports.clone() }, &[&tcp_socket, &udp_socket]);
    match bench.command() {
        Command::Publish { ports: served, reply } => {
            let (came, sockets): (Vec<_>, Vec<_>) = served.into_iter().unzip();
            assert_eq!(came, ports);
            for (socket, port) in sockets.into_iter().map(Socket::from).zip(&ports) {
                assert_eq!(socket.local_addr().unwrap().as_socket(), Some(port.host));
                assert!(socket.nonblocking().unwrap());
            }
            reply.send(Ok(())).unwrap();
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.done(), (7, None));
    let listed = |ports: &[&Published]| {
        assert_eq!(http(&path, "GET /v1/sandboxes/web/ports").1, serde_json::json!({ "ports": ports }));
    };
    listed(&[&tcp, &udp]);

    bench.send(&ToGateway::Unpublish { request: 8, ports: vec![tcp.key()] });
    match bench.command() {
        Command::Unpublish { ports, reply } => {
            assert_eq!(ports, [tcp.key()]);
            reply.send(()).unwrap();
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.done(), (8, None));
    listed(&[&udp]);

    // What the worker cannot serve is not listed.
    bench.hand(&ToGateway::Publish { request: 9, ports: vec![tcp] }, &[&tcp_socket]);
    match bench.command() {
        Command::Publish { reply, .. } => reply.send(Err("no room".into())).unwrap(),
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.done(), (9, Some("no room".into())));
    listed(&[&udp]);
    bench.end();
    std::fs::remove_file(path).unwrap();
}

/// A listener on the loopback of a network namespace of its own.
fn listener_elsewhere() -> Socket {
    let made = from_elsewhere(|| {
        crate::sandbox::link::bring_up_loopback().map_err(|e| e.to_string())?;
        std::net::TcpListener::bind("127.0.0.1:0").map(|listener| vec![listener.into()]).map_err(|e| e.to_string())
    });
    Socket::from(made.into_iter().next().unwrap())
}

#[test]
fn sockets_that_are_not_what_they_are_said_to_be_are_refused_and_closed() {
    let bench = Bench::attached(None);
    let (port, socket) = published(Protocol::Tcp, "127.0.0.1:0");
    let (other, other_socket) = published(Protocol::Tcp, "127.0.0.1:0");
    let (_, datagram) = published(Protocol::Udp, "127.0.0.1:0");
    let (six, six_socket) = published(Protocol::Tcp, "[::1]:0");
    let silent = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    silent.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let silent_port = Published { host: silent.local_addr().unwrap().as_socket().unwrap(), ..port.clone() };
    let file = Socket::from(file());
    let foreign = Published { sandbox: "ffffffffffff".into(), ..port.clone() };
    let dual = Published { dual_stack: true, ..six };
    let inside_socket = listener_elsewhere();
    let inside = Published { host: inside_socket.local_addr().unwrap().as_socket().unwrap(), ..port.clone() };
    let connected = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    connected.connect(&SocketAddr::from(([127, 0, 0, 1], 9)).into()).unwrap();
    let host = connected.local_addr().unwrap().as_socket().unwrap();
    let connected_port = Published { host, protocol: Protocol::Udp, ..port.clone() };
    let cases: [(Vec<Published>, &[&Socket], &str); 11] = [
        (vec![port.clone()], &[], "0 descriptors came with `publish`, 1 were expected"),
        (vec![port.clone()], &[&socket, &other_socket], "2 descriptors came"),
        (vec![], &[&socket], "0 were expected"),
        (vec![port.clone(), other], &[&socket, &socket], "it is bound to"),
        (vec![port.clone()], &[&datagram], "another kind of socket"),
        (vec![port.clone()], &[&file], "is not what it is said to be"),
        (vec![silent_port], &[&silent], "it does not listen"),
        (vec![dual], &[&six_socket], "IPV6_V6ONLY"),
        (vec![inside], &[&inside_socket], "another network namespace"),
        (vec![connected_port], &[&connected], "it is connected"),
        (vec![foreign], &[&socket], "a port of the sandbox ffffffffffff"),
    ];
    for (request, (ports, sockets, reason)) in cases.into_iter().enumerate() {
        bench.hand(&ToGateway::Publish { request: request as u64, ports }, sockets);
        let (answered, error) = bench.done();
        assert_eq!(answered, request as u64);
        assert!(error.as_ref().is_some_and(|error| error.contains(reason)), "{reason}: {error:?}");
    }
    // Nobody else has the listener any more; but what other tests have forked may have it until it ends.
    drop(socket);
    let until = std::time::Instant::now() + 3 * PATIENCE;
    while let Err(error) = std::net::TcpListener::bind(port.host) {
        assert!(std::time::Instant::now() < until, "{error}");
        std::thread::sleep(Duration::from_millis(10));
    }
    bench.end();
}

#[test]
fn requests_about_ports_neither_overtake_nor_hold_up() {
    let bench = Bench::attached(None);
    let (one, one_socket) = published(Protocol::Tcp, "127.0.0.1:0");
    let (two, two_socket) = published(Protocol::Tcp, "127.0.0.1:0");
    bench.hand(&ToGateway::Publish { request: 1, ports: vec![one.clone()] }, &[&one_socket]);
    bench.send(&ToGateway::Unpublish { request: 2, ports: vec![one.key()] });
    bench.hand(&ToGateway::Publish { request: 3, ports: vec![two] }, &[]);
    let host = HostView { search: vec!["example.org".into()], ..HostView::default() };
    bench.send(&ToGateway::HostChanged { host });
    bench.hand(&ToGateway::Publish { request: 4, ports: vec![one] }, &[&two_socket]);
    // The worker has all of it before it has answered anything.
    let Command::Publish { reply: first, .. } = bench.command() else { panic!() };
    let Command::Unpublish { reply: second, .. } = bench.command() else { panic!() };
    assert!(matches!(bench.command(), Command::HostChanged(_)));
    second.send(()).unwrap();
    first.send(Ok(())).unwrap();
    assert_eq!(bench.done(), (1, None));
    assert_eq!(bench.done(), (2, None));
    for request in [3, 4] {
        let (answered, error) = bench.done();
        assert!(answered == request && error.is_some());
    }
    bench.end();
}

#[test]
fn a_port_that_the_api_is_asked_for_is_bound_by_the_supervisor() {
    let (path, listener) = api_socket("asked");
    let bench = Bench::attached(Some(listener));
    let client = std::thread::spawn({
        let path = path.clone();
        move || {
            let body = r#"{"spec":"127.0.0.1::80"}"#;
            let length = body.len();
            let head = format!("Content-Type: application/json\r\nContent-Length: {length}\r\nConnection: close");
            let mut stream = UnixStream::connect(path).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let request = "POST /v1/sandboxes/web/ports HTTP/1.1\r\nHost: tapline";
            write!(stream, "{request}\r\n{head}\r\n\r\n{body}").unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        }
    });
    let request = match bench.said() {
        Some(FromGateway::WantPublish { request, spec, proxy: None, from }) if from.is_empty() => {
            assert_eq!(spec, "127.0.0.1::80");
            request
        }
        other => panic!("{other:?}"),
    };
    let (port, socket) = published(Protocol::Tcp, "127.0.0.1:0");
    let port = Published { spec: "127.0.0.1::80".into(), origin: Origin::Api, ..port };
    bench.hand(&ToGateway::Publish { request: 1, ports: vec![port.clone()] }, &[&socket]);
    // It may come before the worker has said anything.
    bench.send(&ToGateway::Answer { request, failure: None });
    match bench.command() {
        Command::Publish { reply, .. } => reply.send(Ok(())).unwrap(),
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.done(), (1, None));
    let answer = client.join().unwrap();
    assert!(answer.starts_with("HTTP/1.1 201 Created"), "{answer}");
    let body: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(body, serde_json::json!({ "ports": [port] }));
    bench.end();
    std::fs::remove_file(path).unwrap();
}

#[test]
fn the_agent_and_listeners_inside_are_handed_on() {
    let bench = Bench::attached(None);
    let (agent, _inside) = scm::pair().unwrap();
    let agent = Socket::from(agent);
    bench.hand(&ToGateway::Inside, &[&agent]);
    match bench.command() {
        Command::Inside { id, agent } => {
            assert_eq!(id, "0123456789ab");
            assert!(Socket::from(agent).nonblocking().unwrap());
        }
        other => panic!("{other:?}"),
    }
    let socket = listener_elsewhere();
    let inside = socket.local_addr().unwrap().as_socket().unwrap();
    let reached = Reached { host_port: 5432, protocol: Protocol::Tcp, inside };
    bench.hand(&ToGateway::Reach { reached: vec![reached] }, &[&socket]);
    match bench.command() {
        Command::Reach { id, reached: came } => {
            assert_eq!((id.as_str(), came[0].0), ("0123456789ab", reached));
        }
        other => panic!("{other:?}"),
    }
    bench.send(&ToGateway::Unreach { request: 5, reached: vec![reached] });
    let Command::Unreach { id, reached: gone, reply } = bench.command() else { panic!() };
    assert_eq!((id.as_str(), gone), ("0123456789ab", vec![reached]));
    reply.send(()).unwrap();
    assert!(matches!(bench.said(), Some(FromGateway::Done { request: 5, error: None })));
    let (port, of_the_host) = published(Protocol::Tcp, "127.0.0.1:0");
    for (message, sockets) in [
        (ToGateway::Inside, vec![&socket]),
        (ToGateway::Inside, vec![]),
        (ToGateway::Reach { reached: vec![Reached { protocol: Protocol::Udp, ..reached }] }, vec![&socket]),
        // One of the host's own.
        (ToGateway::Reach { reached: vec![Reached { inside: port.host, ..reached }] }, vec![&of_the_host]),
    ] {
        bench.hand(&message, &sockets);
        assert!(matches!(bench.said(), Some(FromGateway::Notice { .. })));
    }
    bench.end();
}

#[test]
fn names_are_answered_while_hundreds_of_clients_misbehave() {
    let (path, listener) = api_socket("hostile");
    let bench = Bench::attached(Some(listener));
    let hostile: Vec<UnixStream> = (0..500)
        .map(|at| {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.set_nonblocking(true).unwrap();
            let bytes: &[u8] = match at % 5 {
                0 => b"",
                1 => b"GET /v1/sandboxes HTTP/1.1\r\nx: ",
                2 => b"POST /v1/sandboxes/web/ports HTTP/1.1\r\nContent-Length: 65536\r\n\r\n",
                3 => b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n",
                _ => b"\0\0\0\0",
            };
            let _ = stream.write_all(bytes);
            stream
        })
        .collect();
    let begun = std::time::Instant::now();
    for _ in 0..20 {
        let message = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x09localhost\x00\x00\x01\x00\x01".to_vec();
        bench.events.blocking_send(Event::DnsQuery { asker: asker(), message, turn: Default::default() }).unwrap();
        assert!(matches!(bench.command(), Command::DnsAnswer { .. }));
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    // An honest client has to wait for its turn, but not for them to leave.
    let (status, _) = http(&path, "GET /v1/sandboxes");
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    drop(hostile);
    bench.end();
    std::fs::remove_file(path).unwrap();
}

#[test]
fn descriptors_are_taken_for_what_they_are() {
    let refusal = |message, fds| Request::check(message, fds, check_link, Home::of(file())).err().unwrap();
    assert!(refusal(attach(false), vec![]).contains("0 descriptors"));
    assert!(refusal(attach(true), vec![file()]).contains("2 were expected"));
    assert!(refusal(attach(false), vec![file()]).contains("not a TAP device"));
    let (_, datagram) = nix::sys::socket::socketpair(
        nix::sys::socket::AddressFamily::Unix,
        nix::sys::socket::SockType::Datagram,
        None,
        nix::sys::socket::SockFlag::empty(),
    )
    .unwrap();
    assert!(check_link(LinkKind::Packet, &datagram).is_err());
    assert!(check_attach(&datagram).is_err());
    assert!(check_api(&datagram).is_err());
    let (_, unlistened) = UnixStream::pair().unwrap();
    assert!(check_api(&unlistened.into()).is_err());
    let host = HostView::default();
    assert!(refusal(ToGateway::HostChanged { host }, vec![]).contains("first message"));
}

/// A file as a supervisor opens one for a capture.
fn capture_file() -> (std::path::PathBuf, OwnedFd) {
    let path = std::env::temp_dir().join(format!("tapline-gateway-{}.pcap", std::process::id()));
    let file = crate::observe::capture::create(&path).unwrap();
    (path, file.into())
}

#[test]
fn a_capture_is_taken_for_a_file_of_a_network_of_its_own_and_a_missing_link_for_none() {
    let message = |network: Network, link, capture| {
        let SandboxInfo { endpoint, host, .. } = info();
        ToGateway::Attach { network, endpoint, link, host, api: false, capture }
    };
    let check = |message, fds| Request::check(message, fds, |_, _| Ok(()), Home::of(file()));
    let refusal = |message, fds| check(message, fds).err().unwrap();
    let network = info().network;
    let (path, capture) = capture_file();
    let again = || capture.try_clone().unwrap();
    let both = check(message(network.clone(), LinkKind::Tap, true), vec![file(), again()]).ok().unwrap();
    assert!(both.link.is_some() && both.capture.is_some() && both.api.is_none());
    let none = check(message(network.clone(), LinkKind::None, true), vec![again()]).ok().unwrap();
    assert!(none.link.is_none() && none.capture.is_some());
    assert!(refusal(message(network.clone(), LinkKind::None, false), vec![file()]).contains("0 were expected"));
    assert!(refusal(message(network.clone(), LinkKind::Tap, true), vec![file()]).contains("2 were expected"));
    assert!(refusal(message(network.clone(), LinkKind::None, true), vec![file()]).contains("no ordinary file"));
    let written_anywhere = File::options().write(true).open(&path).unwrap();
    let why = refusal(message(network.clone(), LinkKind::None, true), vec![written_anywhere.into()]);
    assert!(why.contains("not open for appending"), "{why}");
    let sharing = Some(crate::plan::Sharing { internal: false, icc: true });
    let why = refusal(message(Network { sharing, ..network }, LinkKind::Tap, true), vec![file(), again()]);
    assert!(why.contains("network of the sandbox's own only"), "{why}");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_supervisor_that_goes_before_it_attaches_leaves_nothing() {
    let (supervisor, theirs) = scm::pair().unwrap();
    drop(supervisor);
    let (setup, workers) = setup(false, PATIENCE);
    serve_one(theirs, setup).unwrap();
    assert!(workers.try_recv().is_err());
}

#[test]
fn a_wrong_link_is_refused_before_a_worker_is_started() {
    let (supervisor, theirs) = scm::pair().unwrap();
    wire::send(&supervisor, &attach(false), &[file().as_fd()]).unwrap();
    let (setup, workers) = setup(false, PATIENCE);
    serve_one(theirs, Setup { check_link, ..setup }).unwrap();
    assert!(workers.try_recv().is_err());
    let (said, _) = wire::recv::<FromGateway>(&supervisor).unwrap().unwrap();
    assert!(matches!(said, FromGateway::Refused { reason } if reason.contains("TAP")));
}

/// The whole process: started as a supervisor starts it, confined, with a real TAP and the real worker.
#[test]
fn a_gateway_process_serves_a_tap_and_ends_with_its_connection() {
    use super::super::client::GatewayProcess;
    use crate::sys::testing::in_namespace;
    use crate::sys::tun::Tap;
    use std::process::Command;
    use std::time::Instant;

    const INSIDE: &str = "TAPLINE_TEST_GATEWAY_FD";
    const ME: &str = "control::gateway::tests::a_gateway_process_serves_a_tap_and_ends_with_its_connection";
    if let Some(fd) = std::env::var_os(INSIDE) {
        return main(Entrance::Connection(fd.to_str().unwrap().parse().unwrap())).unwrap();
    }
    in_namespace(|| {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let tap = Tap::create("tl0").map_err(|e| text(&e))?;
        // This test's own program in the gateway's place: it does not know `gateway --fd`, hence the shell between.
        let mut command = Command::new("/bin/sh");
        let script = format!("{INSIDE}=$2 exec \"$0\" --exact {ME} --nocapture");
        command.args(["-c", &script]).arg(std::env::current_exe().map_err(|e| text(&e))?);
        let gateway = GatewayProcess::start(command, Vec::new()).map_err(|e| text(&e))?;
        gateway.connection().send(&attach(false), &[tap.as_fd()]).map_err(|e| text(&e))?;
        match gateway.recv().map_err(|e| text(&e))? {
            Some(FromGateway::Attached { .. }) => {}
            other => return Err(format!("{other:?}")),
        }
        let begun = Instant::now();
        let status = gateway.stop(PATIENCE).map_err(|e| text(&e))?;
        let well = status.status().is_some_and(|status| status.success());
        if !well || begun.elapsed() > Duration::from_secs(1) {
            return Err(format!("{status} after {:?}", begun.elapsed()));
        }
        Ok(())
    });
}
