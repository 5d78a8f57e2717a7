//! A gateway of shared networks.
use std::net::Ipv4Addr;

use super::*;
use crate::plan::{Endpoint, Ipv4Layout, Network, SandboxLink, Sharing};
use socket2::SockAddr;

/// Longer than a test may be held up by others between two connections.
const LINGER: Duration = Duration::from_secs(1);

fn network(name: &str, third: u8) -> Network {
    let layout = Ipv4Layout::slirp(format!("10.1.{third}.0/24").parse().unwrap()).unwrap();
    let sharing = Some(Sharing { internal: false, icc: true });
    Network { name: name.into(), sharing, v4: Some(layout), ..crate::fuzzing::network() }
}

fn endpoint(id: &str, name: &str, ip: &str) -> Endpoint {
    let ip: Ipv4Addr = ip.parse().unwrap();
    Endpoint { id: id.into(), name: name.into(), mac: MacAddr::from_ipv4(ip), v4: Some(ip), ..Endpoint::default() }
}

/// A shared gateway's control thread.
struct Shared {
    address: SockAddr,
    workers: sync_mpsc::Receiver<WorkerSide>,
    control: JoinHandle<Result<(), GatewayError>>,
}

/// A listening socket of this test alone, without a file (unix(7), abstract).
fn listener(name: &str) -> (OwnedFd, SockAddr) {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    let name = format!("tapline-hub-{}-{name}", std::process::id());
    let address = SockAddr::unix(format!("\0{name}")).unwrap();
    socket.bind(&address).unwrap();
    socket.listen(8).unwrap();
    (socket.into(), address)
}

impl Shared {
    fn start(name: &str, linger: Duration) -> Shared {
        let (listener, address) = listener(name);
        let (setup, workers) = setup(true, linger);
        let control = std::thread::spawn(move || serve_many(listener, setup));
        Shared { address, workers, control }
    }

    fn connect(&self) -> Supervisor {
        connect(&self.address)
    }

    /// A supervisor that has said what it is for.
    fn ask(&self, network: &Network, endpoint: &Endpoint) -> Supervisor {
        let supervisor = self.connect();
        supervisor.ask(network, endpoint);
        supervisor
    }

    fn worker(&self) -> WorkerSide {
        self.workers.recv_timeout(PATIENCE).unwrap()
    }

    fn ends(self) -> Result<(), GatewayError> {
        self.control.join().unwrap()
    }
}

struct Supervisor(OwnedFd);

fn connect(address: &SockAddr) -> Supervisor {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    socket.connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    Supervisor(socket.into())
}

impl Supervisor {
    fn ask(&self, network: &Network, endpoint: &Endpoint) {
        let (network, endpoint) = (network.clone(), endpoint.clone());
        let message = ToGateway::Attach {
            network,
            endpoint,
            link: LinkKind::Tap,
            host: HostView::default(),
            api: false,
            capture: false,
        };
        wire::send(&self.0, &message, &[file().as_fd()]).unwrap();
    }

    fn said(&self) -> Option<FromGateway> {
        wire::recv(&self.0).unwrap().map(|(message, _)| message)
    }

    fn refusal(&self) -> String {
        match self.said() {
            Some(FromGateway::Refused { reason }) => reason,
            other => panic!("{other:?}"),
        }
    }

    fn is_attached(&self) {
        match self.said() {
            Some(FromGateway::Attached { .. }) => {}
            other => panic!("{other:?}"),
        }
    }

    fn linked(&self) -> (String, Vec<IpAddr>) {
        match self.said() {
            Some(FromGateway::Linked { sandbox, addresses }) => (sandbox, addresses),
            other => panic!("{other:?}"),
        }
    }
}

impl WorkerSide {
    fn command(&self) -> Command {
        self.commands.recv_timeout(PATIENCE).unwrap()
    }

    /// Serve the endpoint that comes next.
    fn serve(&self, port: u32) {
        match self.command() {
            Command::AttachPort { reply, .. } => reply.send(Ok(PortId(port))).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn detach(&self, id: &str) {
        match self.command() {
            Command::DetachPort { id: ended, reply } => {
                assert_eq!(ended, id);
                reply.send(()).unwrap();
            }
            other => panic!("{other:?}"),
        }
    }

    /// One that nobody waits for.
    fn detach_unheard(&self, id: &str) {
        assert!(matches!(self.command(), Command::DetachPort { id: ended, .. } if ended == id));
    }

    fn foreign(&self) -> Vec<String> {
        match self.command() {
            Command::Foreign(subnets) => subnets.iter().map(ToString::to_string).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn stops(&self) {
        assert!(matches!(self.command(), Command::Stop));
    }

    /// The answer to a question that the sandbox at this port asks.
    fn ask(&self, port: u32, query: &[u8]) -> Vec<u8> {
        let asker = Asker { peer: Peer { port: PortId(port), ..asker().peer }, ..asker() };
        self.events
            .blocking_send(Event::DnsQuery { asker, message: query.to_vec(), turn: Default::default() })
            .unwrap();
        match self.command() {
            Command::DnsAnswer { message, .. } => message,
            other => panic!("{other:?}"),
        }
    }
}

/// A question for the address of a name of one label.
fn question(name: &str) -> Vec<u8> {
    let mut query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
    query.push(u8::try_from(name.len()).unwrap());
    query.extend_from_slice(name.as_bytes());
    query.extend_from_slice(b"\x00\x00\x01\x00\x01");
    query
}

const WEB: &str = "aaaaaaaaaaaa";
const APP: &str = "bbbbbbbbbbbb";

#[test]
fn each_network_has_a_worker_as_long_as_somebody_is_on_it() {
    let gateway = Shared::start("workers", LINGER);
    let (front, back) = (network("front", 1), network("back", 2));
    let web = gateway.ask(&front, &endpoint(WEB, "web", "10.1.1.5"));
    let front_worker = gateway.worker();
    front_worker.serve(0);
    web.is_attached();
    let app = gateway.ask(&front, &endpoint(APP, "app", "10.1.1.6"));
    front_worker.serve(1);
    app.is_attached();
    // The same sandbox on another network: a connection of its own.
    let app_back = gateway.ask(&back, &endpoint(APP, "app", "10.1.2.6"));
    let back_worker = gateway.worker();
    assert_eq!(front_worker.foreign(), ["10.1.2.0/24"]);
    // It knows where nothing leads before the first frame comes.
    assert_eq!(back_worker.foreign(), ["10.1.1.0/24"]);
    back_worker.serve(0);
    app_back.is_attached();

    // Each is answered for the networks that it is on.
    assert!(front_worker.ask(0, &question("app")).ends_with(&[10, 1, 1, 6]));
    let both = back_worker.ask(0, &question("APP"));
    assert_eq!(both[6..8], [0, 2]);
    assert!(front_worker.ask(1, &question("web")).ends_with(&[10, 1, 1, 5]));

    drop(web);
    front_worker.detach(WEB);
    drop(app);
    front_worker.detach(APP);
    front_worker.stops();
    assert_eq!(back_worker.foreign(), [""; 0]);
    let again = gateway.ask(&front, &endpoint(WEB, "web", "10.1.1.5"));
    assert_eq!(back_worker.foreign(), ["10.1.1.0/24"]);
    let front_worker = gateway.worker();
    assert_eq!(front_worker.foreign(), ["10.1.2.0/24"]);
    front_worker.serve(0);
    again.is_attached();
    drop(app_back);
    back_worker.detach(APP);
    back_worker.stops();
    drop(again);
    gateway.ends().unwrap();
}

#[test]
fn what_another_has_is_refused_until_it_has_gone() {
    let gateway = Shared::start("clash", LINGER);
    let net = network("front", 1);
    let web = gateway.ask(&net, &endpoint(WEB, "web", "10.1.1.5"));
    let worker = gateway.worker();
    worker.serve(0);
    web.is_attached();
    let other_mac = Endpoint { mac: MacAddr([2, 0, 0, 0, 0, 9]), ..endpoint(APP, "app", "10.1.1.5") };
    let other_ip = Endpoint { v4: Some([10, 1, 1, 9].into()), ..endpoint(APP, "app", "10.1.1.5") };
    for (endpoint, what) in [
        (other_mac, "the address 10.1.1.5"),
        (other_ip, "the Ethernet address 02:42:0a:01:01:05"),
        (endpoint(WEB, "web", "10.1.1.9"), "the id aaaaaaaaaaaa"),
    ] {
        let reason = gateway.ask(&net, &endpoint).refusal();
        assert!(reason.contains(what) && reason.contains("web"), "{reason}");
    }
    let defined_anew = Network { mtu: 9000, ..net.clone() };
    let reason = gateway.ask(&defined_anew, &endpoint(APP, "app", "10.1.1.6")).refusal();
    assert!(reason.contains("MTU 9000") && reason.contains("`front`"), "{reason}");
    let private = Network { sharing: None, ..network("own", 3) };
    assert!(gateway.ask(&private, &endpoint(APP, "app", "10.1.3.6")).refusal().contains("of its own"));

    // One that has closed its connection is waited for, be it noticed or not.
    drop(web);
    let next = gateway.ask(&net, &endpoint(APP, "app", "10.1.1.5"));
    worker.detach(WEB);
    // One that ends before its network does would be a failure of the gateway's.
    let _successor = match worker.commands.recv_timeout(PATIENCE).unwrap() {
        // Its worker went with the last that was on it.
        Command::Stop => {
            let successor = gateway.worker();
            successor.serve(0);
            Some(successor)
        }
        Command::AttachPort { reply, .. } => {
            reply.send(Ok(PortId(1))).unwrap();
            None
        }
        other => panic!("{other:?}"),
    };
    next.is_attached();
    drop(next);
    gateway.ends().unwrap();
}

#[test]
fn a_worker_that_cannot_serve_refuses_one_and_ends_with_the_last() {
    let gateway = Shared::start("cannot", LINGER);
    let web = gateway.ask(&network("front", 1), &endpoint(WEB, "web", "10.1.1.5"));
    let worker = gateway.worker();
    match worker.command() {
        Command::AttachPort { reply, .. } => reply.send(Err("no such device".into())).unwrap(),
        other => panic!("{other:?}"),
    }
    assert_eq!(web.refusal(), "no such device");
    worker.stops();
    gateway.ends().unwrap();
}

#[test]
fn a_worker_that_does_not_answer_refuses_one_who_is_not_served_later() {
    let (listener, address) = listener("mute");
    let (setup, workers) = setup(true, LINGER);
    let setup = Setup { service: Duration::from_millis(200), ..setup };
    let control = std::thread::spawn(move || serve_many(listener, setup));
    let gateway = Shared { address, workers, control };
    let net = network("front", 1);
    let web = gateway.ask(&net, &endpoint(WEB, "web", "10.1.1.5"));
    let worker = gateway.worker();
    let Command::AttachPort { reply, .. } = worker.command() else { panic!() };
    let reason = web.refusal();
    assert!(reason.contains("`front`") && reason.contains("0.2 s"), "{reason}");
    assert!(reply.send(Ok(PortId(0))).is_err(), "nobody waits any more");
    worker.detach_unheard(WEB);
    worker.stops();
    gateway.ends().unwrap();
}

#[test]
fn it_ends_when_nobody_has_been_there_for_a_while_and_not_before() {
    let gateway = Shared::start("end", LINGER);
    for _ in 0..3 {
        let supervisor = gateway.ask(&network("front", 1), &endpoint(WEB, "web", "10.1.1.5"));
        let worker = gateway.worker();
        worker.serve(0);
        supervisor.is_attached();
        drop(supervisor);
        worker.detach(WEB);
        worker.stops();
    }
    let address = gateway.address.clone();
    let begun = std::time::Instant::now();
    gateway.ends().unwrap();
    assert!(begun.elapsed() >= LINGER - LINGER / 10 && begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    assert_eq!(socket.connect(&address).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn one_that_talks_nonsense_or_nothing_harms_nobody_else() {
    let (listener, address) = listener("nonsense");
    let (setup, workers) = setup(true, LINGER);
    let setup = Setup { first_word: Some(Duration::from_millis(200)), ..setup };
    let control = std::thread::spawn(move || serve_many(listener, setup));
    let gateway = Shared { address, workers, control };
    let net = network("front", 1);
    let web = gateway.ask(&net, &endpoint(WEB, "web", "10.1.1.5"));
    let worker = gateway.worker();
    worker.serve(0);
    web.is_attached();
    let silent: Vec<_> = (0..2 * hub::MAX_SILENT).map(|_| gateway.connect()).collect();
    let nonsense = gateway.connect();
    scm::send(&nonsense.0, b"not json", &[]).unwrap();
    let other = gateway.connect();
    wire::send(&other.0, &ToGateway::Inside, &[]).unwrap();
    assert!(other.refusal().contains("first message"));
    assert!(nonsense.said().is_none());
    for supervisor in silent {
        assert!(supervisor.said().is_none());
    }
    let app = gateway.ask(&net, &endpoint(APP, "app", "10.1.1.6"));
    worker.serve(1);
    app.is_attached();
    drop((web, app));
    gateway.ends().unwrap();
}

#[test]
fn it_can_be_found_at_another_place_as_well() {
    let gateway = Shared::start("listen", LINGER);
    let net = network("front", 1);
    let web = gateway.ask(&net, &endpoint(WEB, "web", "10.1.1.5"));
    let worker = gateway.worker();
    worker.serve(0);
    web.is_attached();
    let (second, address) = listener("listen-second");
    wire::send(&web.0, &ToGateway::Listen, &[second.as_fd()]).unwrap();
    drop(second);
    let app = connect(&address);
    app.ask(&net, &endpoint(APP, "app", "10.1.1.6"));
    worker.serve(1);
    app.is_attached();
    for (fds, what) in [(vec![], "0 descriptors"), (vec![file()], "another place")] {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        wire::send(&web.0, &ToGateway::Listen, &fds).unwrap();
        match web.said() {
            Some(FromGateway::Notice { text }) => assert!(text.contains(what), "{text}"),
            other => panic!("{other:?}"),
        }
    }
    drop((web, app));
    gateway.ends().unwrap();
}

#[test]
fn who_has_a_link_is_told_where_the_other_is() {
    let gateway = Shared::start("linked", LINGER);
    let net = network("front", 1);
    let links = vec![SandboxLink { sandbox: "db".into(), alias: Some("store".into()) }];
    let app = gateway.ask(&net, &Endpoint { links, ..endpoint(APP, "app", "10.1.1.6") });
    let worker = gateway.worker();
    worker.serve(0);
    app.is_attached();
    assert_eq!(app.linked(), ("db".into(), vec![]));
    let db = gateway.ask(&net, &endpoint(WEB, "db", "10.1.1.7"));
    worker.serve(1);
    db.is_attached();
    assert_eq!(app.linked(), ("db".into(), vec![IpAddr::from([10, 1, 1, 7])]));
    assert!(worker.ask(0, &question("store")).ends_with(&[10, 1, 1, 7]));
    drop(db);
    assert_eq!(app.linked(), ("db".into(), vec![]));
    worker.detach(WEB);
    drop(app);
    gateway.ends().unwrap();
}

#[test]
fn what_one_supervisor_says_of_the_host_is_for_all_and_said_once() {
    let gateway = Shared::start("host", LINGER);
    let web = gateway.ask(&network("front", 1), &endpoint(WEB, "web", "10.1.1.5"));
    let front = gateway.worker();
    front.serve(0);
    web.is_attached();
    let app = gateway.ask(&network("back", 2), &endpoint(APP, "app", "10.1.2.6"));
    let back = gateway.worker();
    assert_eq!((front.foreign(), back.foreign()), (vec!["10.1.2.0/24".into()], vec!["10.1.1.0/24".into()]));
    back.serve(0);
    app.is_attached();
    let host = HostView { v4: Some([192, 0, 2, 1].into()), ..HostView::default() };
    for supervisor in [&web, &app] {
        wire::send(&supervisor.0, &ToGateway::HostChanged { host: host.clone() }, &[]).unwrap();
    }
    for worker in [&front, &back] {
        assert!(matches!(worker.command(), Command::HostChanged(changed) if changed == host));
    }
    drop((web, app));
    gateway.ends().unwrap();
}

#[test]
fn a_link_that_fails_ends_one_connection() {
    let gateway = Shared::start("link", LINGER);
    let net = network("front", 1);
    let web = gateway.ask(&net, &endpoint(WEB, "web", "10.1.1.5"));
    let worker = gateway.worker();
    worker.serve(0);
    let app = gateway.ask(&net, &endpoint(APP, "app", "10.1.1.6"));
    worker.serve(1);
    web.is_attached();
    app.is_attached();
    let event = Event::PortClosed { id: WEB.into(), reason: "eth0 was deleted".into() };
    worker.events.blocking_send(event).unwrap();
    assert!(matches!(web.said(), Some(FromGateway::Notice { text }) if text == "eth0 was deleted"));
    worker.detach(WEB);
    assert!(web.said().is_none());
    worker.events.blocking_send(Event::Notice("ping sockets are closed".into())).unwrap();
    assert!(matches!(app.said(), Some(FromGateway::Notice { .. })));
    drop(app);
    gateway.ends().unwrap();
}

#[test]
fn a_worker_that_ends_by_itself_ends_the_gateway() {
    let gateway = Shared::start("dead", PATIENCE);
    let web = gateway.ask(&network("front", 1), &endpoint(WEB, "web", "10.1.1.5"));
    let worker = gateway.worker();
    worker.serve(0);
    web.is_attached();
    drop(worker);
    assert!(matches!(gateway.ends(), Err(GatewayError::Worker(_))));
    assert!(web.said().is_none());
}

/// How many a second is measured by the row `dns` of the benchmark.
#[test]
fn many_questions_at_once_for_local_names_are_all_answered() {
    const SANDBOXES: u32 = 250;
    const QUESTIONS: u32 = 20_000;
    let gateway = Shared::start("speed", LINGER);
    let net = network("front", 1);
    let mut worker = None;
    let all: Vec<Supervisor> = (0..SANDBOXES)
        .map(|at| {
            let address = format!("10.1.1.{}", at + 4);
            let supervisor = gateway.ask(&net, &endpoint(&format!("{at:012x}"), &format!("web{at}"), &address));
            worker.get_or_insert_with(|| gateway.worker()).serve(at);
            supervisor.is_attached();
            supervisor
        })
        .collect();
    let WorkerSide { events, commands, _poll } = worker.unwrap();
    let query = question("web77");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for at in 0..QUESTIONS {
                let asker = Asker { peer: Peer { port: PortId(at % SANDBOXES), ..asker().peer }, ..asker() };
                events
                    .blocking_send(Event::DnsQuery { asker, message: query.clone(), turn: Default::default() })
                    .unwrap();
            }
        });
        for _ in 0..QUESTIONS {
            match commands.recv_timeout(PATIENCE).unwrap() {
                Command::DnsAnswer { message, .. } => assert!(message.ends_with(&[10, 1, 1, 81])),
                other => panic!("{other:?}"),
            }
        }
    });
    drop((all, events, commands));
}

/// With real workers and TAPs: two endpoints on one network, one on another.
#[test]
fn real_workers_serve_several_taps_and_stop_with_the_last() {
    use crate::sys::testing::in_namespace;
    use crate::sys::tun::Tap;

    in_namespace(|| {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let (listener, address) = listener("taps");
        let start_worker = Box::new(Worker::start);
        let setup = Setup {
            start_worker,
            check_link,
            shared: true,
            first_word: Some(PATIENCE),
            linger: LINGER,
            service: PATIENCE,
            lacks: Vec::new(),
        };
        let control = std::thread::spawn(move || serve_many(listener, setup));
        let (front, back) = (network("front", 1), network("back", 2));
        let mut all = Vec::new();
        for (ifname, network, endpoint) in [
            ("tl0", &front, endpoint(WEB, "web", "10.1.1.5")),
            ("tl1", &front, endpoint(APP, "app", "10.1.1.6")),
            ("tl2", &back, endpoint(APP, "app", "10.1.2.6")),
        ] {
            let tap = Tap::create(ifname).map_err(|e| text(&e))?;
            let supervisor = connect(&address);
            let (network, host) = (network.clone(), HostView::default());
            let message =
                ToGateway::Attach { network, endpoint, link: LinkKind::Tap, host, api: false, capture: false };
            wire::send(&supervisor.0, &message, &[tap.as_fd()]).map_err(|e| text(&e))?;
            match supervisor.said() {
                Some(FromGateway::Attached { .. }) => all.push((supervisor, tap)),
                other => return Err(format!("{ifname}: {other:?}")),
            }
        }
        let workers = || {
            let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
            let names = tasks.map(|task| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default());
            names.filter(|name| name.trim() == "worker").count()
        };
        if workers() != 2 {
            return Err(format!("{} workers serve two networks", workers()));
        }
        drop(all);
        control.join().map_err(|_| "the control thread panicked")?.map_err(|e| text(&e))?;
        let begun = std::time::Instant::now();
        while workers() > 0 {
            if begun.elapsed() > PATIENCE {
                return Err("a worker does not stop".into());
            }
            std::thread::yield_now();
        }
        Ok(())
    });
}
