use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use socket2::{Domain, Socket, Type};
use tokio::sync::mpsc;

use super::super::{Publishing, inside};
use super::*;
use crate::datapath::links::Links;
use crate::gateway::Gateway;
use crate::gateway::counters::DropReason;
use crate::gateway::link::{Datagram, Host};
use crate::host::HostSide;
use crate::host::testing::in_namespace;
use crate::plan::{Endpoint, HostView, MacAddr, Network, Origin as Wanted, Protocol};
use crate::sys::netlink::Netlink;
use crate::sys::testing::pair_elsewhere;

const PORT: PortId = PortId(0);
const LIMIT: Duration = Duration::from_secs(20);

/// A worker's part that publishes, an agent in the same namespace, and nobody behind the link.
struct World {
    poll: mio::Poll,
    publishing: Publishing,
    gateway: Gateway,
    host: HostSide,
    links: Links,
    now: Instant,
}

impl World {
    fn new() -> World {
        World::behaving(Behaviour::default())
    }

    /// On a network of that behaviour.
    fn behaving(behaviour: Behaviour) -> World {
        let mut world = World::on(Network { behaviour, ..crate::gateway::emit::testing::network(1500) });
        let [ours, theirs] = pair_elsewhere();
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        world.publishing.add_agent(PORT, ours).unwrap();
        std::thread::spawn(move || while inside::serve_one(theirs.as_fd()).unwrap_or(false) {});
        world
    }

    fn without_agent() -> World {
        World::on(crate::gateway::emit::testing::network(1500))
    }

    fn on(network: Network) -> World {
        let (poll, now) = (mio::Poll::new().unwrap(), Instant::now());
        let (events, _) = mpsc::channel(8);
        let host = HostSide::new(poll.registry(), &network, &HostView::default(), events).unwrap();
        let mut gateway = Gateway::new(now, network, HostView::default());
        let endpoint = Endpoint {
            id: "0123456789ab".into(),
            name: "test".into(),
            ifname: "tap0".into(),
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            // What stands for the sandbox's own address must be on the loopback.
            v4: Some(Ipv4Addr::new(127, 0, 0, 9)),
            ..Endpoint::default()
        };
        gateway.add_port(PORT, endpoint);
        let publishing = Publishing::new(poll.registry()).unwrap();
        World { poll, publishing, gateway, host, links: Links::new(), now }
    }

    fn publish(&mut self, socket: &UdpSocket, dual_stack: bool, sandbox_port: u16) -> Published {
        self.publish_from(&[], socket, dual_stack, sandbox_port)
    }

    fn publish_from(&mut self, from: &[&str], socket: &UdpSocket, dual_stack: bool, sandbox_port: u16) -> Published {
        let published = Published {
            sandbox: "0123456789ab".into(),
            protocol: Protocol::Udp,
            host: socket.local_addr().unwrap(),
            dual_stack,
            sandbox_port,
            sandbox_address: None,
            device: 0,
            proxy: None,
            from: from.iter().map(|net| net.parse().unwrap()).collect(),
            spec: String::new(),
            origin: Wanted::Option,
        };
        let copy = socket.try_clone().unwrap();
        copy.set_nonblocking(true).unwrap();
        self.publishing.publish(PORT, vec![(published.clone(), copy.into())]).unwrap();
        published
    }

    /// Do what is ready, after at most this long.
    fn turn(&mut self, wait: Duration) {
        let mut events = mio::Events::with_capacity(64);
        let wait = if self.publishing.is_busy() { Duration::ZERO } else { wait };
        self.poll.poll(&mut events, Some(wait)).unwrap();
        for event in events.iter() {
            if let Some((kind, index)) = tokens::read(event.token()) {
                self.publishing.handle_event(kind, index, event);
            }
        }
        let around = Surroundings { gateway: &mut self.gateway, host: &mut self.host, links: &mut self.links };
        self.publishing.round(self.now, around);
    }

    #[track_caller]
    fn until<T>(&mut self, mut done: impl FnMut(&mut World) -> Option<T>) -> T {
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(result) = done(self) {
                return result;
            }
            assert!(Instant::now() < end, "nothing came: {:?}", self.side().stats);
            self.turn(Duration::from_millis(5));
        }
    }

    /// The client's datagrams arrive. It sends until they do: the kernel takes packets for a new IPv6 address only once a
    /// work queue of its own has run.
    #[track_caller]
    fn until_heard(&mut self, client: &UdpSocket, to: SocketAddr, heard: impl Fn(&World) -> bool) {
        let mut again = Instant::now();
        self.until(|world| {
            if again <= Instant::now() {
                // Refused as long as the address is not there.
                let _ = client.send_to(b"x", to);
                again += Duration::from_millis(200);
            }
            heard(world).then_some(())
        });
    }

    #[track_caller]
    fn answer(&mut self, client: &UdpSocket) -> (Vec<u8>, SocketAddr) {
        let mut buffer = [0; 2048];
        self.until(|_| client.recv_from(&mut buffer).ok().map(|(len, from)| (buffer[..len].to_vec(), from)))
    }

    fn side(&self) -> &UdpSide {
        &self.publishing.udp
    }

    fn flows(&self) -> usize {
        self.side().flows.len()
    }
}

/// A socket that does not wait.
fn socket(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

fn dual_stack() -> UdpSocket {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, None).unwrap();
    socket.set_only_v6(false).unwrap();
    socket.bind(&"[::]:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    socket.into()
}

/// Something that says back what it hears, until it is dropped.
struct Service {
    port: u16,
    heard_from: Arc<Mutex<Vec<SocketAddr>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    fn at(address: &str) -> Service {
        let socket = UdpSocket::bind(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let port = socket.local_addr().unwrap().port();
        let (stop, heard_from) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (stopped, heard) = (stop.clone(), heard_from.clone());
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 65_535];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                    let mut heard = heard.lock().unwrap();
                    if !heard.contains(&from) {
                        heard.push(from);
                    }
                    socket.send_to(&buffer[..len], from).unwrap();
                }
            }
        });
        Service { port, heard_from, stop, thread: Some(thread) }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

/// A port on which nobody listens.
fn closed_port() -> u16 {
    // Below the ports that the kernel gives to other tests' sockets.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let nth = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 12_000 + (std::process::id() as u16 % 1_000) * 16 + nth % 16;
        if ["127.0.0.1", "::1"].iter().all(|ip| UdpSocket::bind((*ip, port)).is_ok()) {
            return port;
        }
    }
}

#[test]
fn many_clients_have_a_flow_each_and_hear_only_their_own_answers() {
    let (mut world, service) = (World::new(), Service::at("127.0.0.1:0"));
    let front = UdpSocket::bind("127.0.0.1:0").unwrap();
    world.publish(&front, false, service.port);
    let to = front.local_addr().unwrap();
    let clients: Vec<UdpSocket> = (0..100).map(|_| socket("127.0.0.1:0")).collect();
    for round in 0..3 {
        for (nth, client) in clients.iter().enumerate() {
            client.send_to(format!("{nth} {round}").as_bytes(), to).unwrap();
        }
        for (nth, client) in clients.iter().enumerate() {
            assert_eq!(world.answer(client), (format!("{nth} {round}").into_bytes(), to));
        }
    }
    assert_eq!((world.flows(), service.heard_from.lock().unwrap().len()), (100, 100));
    let stats = world.side().stats();
    assert_eq!(stats, UdpStats { received: 300, sent: 300, ..UdpStats::default() });
    let flow = world.side().describe(0, |port| (port == PORT).then_some("0123456789ab")).unwrap();
    assert_eq!((flow.sandbox.as_str(), flow.kind, flow.state.as_str()), ("0123456789ab", FlowKind::Spliced, "open"));
    assert_eq!(flow.inside, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), service.port));
    assert!(clients.iter().any(|client| client.local_addr().ok() == flow.outside));
    let (mut listed, mut cursor) = (0, Some(0));
    while let Some(place) = cursor {
        let page = world.publishing.flows(|_| Some("0123456789ab"), place, 30, 1000);
        listed += page.flows.iter().filter(|flow| flow.kind == FlowKind::Spliced).count();
        cursor = page.next;
    }
    assert_eq!(listed, 100);
}

#[test]
fn answers_come_from_the_address_that_was_written_to() {
    let (mut world, service) = (World::new(), Service::at("127.0.0.1:0"));
    let front = dual_stack();
    world.publish(&front, true, service.port);
    let port = front.local_addr().unwrap().port();
    for (own, address) in [("127.0.0.1:0", "127.0.0.2"), ("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")] {
        let client = socket(own);
        // A connected socket hears nobody else.
        let to = SocketAddr::new(address.parse().unwrap(), port);
        client.connect(to).unwrap();
        client.send(address.as_bytes()).unwrap();
        assert_eq!(world.answer(&client), (address.as_bytes().to_vec(), to));
    }
    let client = socket("127.0.0.1:0");
    for address in ["127.0.0.2", "127.0.0.3"] {
        let to = SocketAddr::new(address.parse().unwrap(), port);
        client.send_to(b"x", to).unwrap();
        assert_eq!(world.answer(&client).1, to, "one client, two addresses");
    }
}

#[test]
fn a_hundred_thousand_datagrams_pass_in_order_and_none_is_lost() {
    const COUNT: u64 = 100_000;
    const WINDOW: u64 = 64;
    let (mut world, service) = (World::new(), Service::at("127.0.0.1:0"));
    let front = UdpSocket::bind("127.0.0.1:0").unwrap();
    world.publish(&front, false, service.port);
    let client = socket("127.0.0.1:0");
    client.connect(front.local_addr().unwrap()).unwrap();
    let (mut sent, mut next) = (0u64, 0u64);
    let mut buffer = [0; 1500];
    let end = Instant::now() + Duration::from_secs(60);
    while next < COUNT {
        while sent < COUNT && sent - next < WINDOW {
            let mut datagram = [sent as u8; 1400];
            datagram[..8].copy_from_slice(&sent.to_be_bytes());
            client.send(&datagram).unwrap();
            sent += 1;
        }
        world.turn(Duration::from_millis(1));
        while let Ok(len) = client.recv(&mut buffer) {
            assert_eq!((len, u64::from_be_bytes(*buffer.first_chunk().unwrap())), (1400, next));
            assert!(buffer[8..len].iter().all(|&b| b == next as u8));
            next += 1;
        }
        assert!(Instant::now() < end, "{next} of {sent} came back: {:?}", world.side().stats());
    }
    let stats = world.side().stats();
    assert_eq!(stats, UdpStats { received: COUNT, sent: COUNT, ..UdpStats::default() });
}

#[test]
fn datagrams_of_every_size_keep_their_borders() {
    let (mut world, service) = (World::new(), Service::at("127.0.0.1:0"));
    let front = UdpSocket::bind("127.0.0.1:0").unwrap();
    world.publish(&front, false, service.port);
    let client = socket("127.0.0.1:0");
    client.connect(front.local_addr().unwrap()).unwrap();
    let sizes = [1000, 1000, 1000, 999, 1000, 0, 0, 1, 1, 1, 2000, 65_507];
    sizes.iter().for_each(|&size| assert_eq!(client.send(&vec![1; size]).unwrap(), size));
    let mut buffer = vec![0; 65_536];
    for size in sizes {
        assert_eq!(world.until(|_| client.recv(&mut buffer).ok()), size);
    }
}

#[test]
fn a_service_is_found_wherever_it_listens() {
    for (service, client) in [
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("[::1]:0", "127.0.0.1:0"),
        ("127.0.0.9:0", "127.0.0.1:0"),
        ("127.0.0.1:0", "[::1]:0"),
        ("[::1]:0", "[::1]:0"),
        ("127.0.0.9:0", "[::1]:0"),
    ] {
        let (mut world, service) = (World::new(), Service::at(service));
        let front = dual_stack();
        world.publish(&front, true, service.port);
        let client = socket(client);
        let to = SocketAddr::new(client.local_addr().unwrap().ip(), front.local_addr().unwrap().port());
        for payload in [b"one", b"two"] {
            client.send_to(payload, to).unwrap();
        }
        assert_eq!(world.answer(&client).0, b"one");
        assert_eq!(world.answer(&client).0, b"two");
        assert_eq!(world.side().stats().dropped, 0);
    }
}

#[test]
fn the_network_says_which_way_local_clients_take() {
    for (ways, service, found) in [
        (LocalClients::LoopbackOnly, "127.0.0.1:0", true),
        (LocalClients::LoopbackOnly, "127.0.0.9:0", false),
        (LocalClients::OwnAddress, "127.0.0.9:0", true),
        (LocalClients::OwnAddress, "127.0.0.1:0", false),
    ] {
        let mut world = World::behaving(Behaviour { local_clients: ways, ..Behaviour::default() });
        let service = Service::at(service);
        let front = UdpSocket::bind("127.0.0.1:0").unwrap();
        world.publish(&front, false, service.port);
        let client = socket("127.0.0.1:0");
        client.send_to(b"x", front.local_addr().unwrap()).unwrap();
        if found {
            assert_eq!(world.answer(&client).0, b"x");
        } else {
            world.until(|world| (world.side().stats().dropped == 1).then_some(()));
            assert!(service.heard_from.lock().unwrap().is_empty());
        }
        assert_eq!(world.gateway.counters().dropped(DropReason::NoRoom), 0);
    }
    let mut world = World::behaving(Behaviour { local_clients: LocalClients::Link, ..Behaviour::default() });
    let service = Service::at("127.0.0.1:0");
    let front = UdpSocket::bind("127.0.0.1:0").unwrap();
    world.publish(&front, false, service.port);
    socket("127.0.0.1:0").send_to(b"x", front.local_addr().unwrap()).unwrap();
    // This world's link has no room.
    world.until(|world| (world.gateway.counters().dropped(DropReason::NoRoom) == 1).then_some(()));
    assert_eq!(world.flows(), 0);
}

#[test]
fn the_sandboxs_loopback_is_not_looked_for_through_the_link() {
    let only = Behaviour { local_clients: LocalClients::LoopbackOnly, ..Behaviour::default() };
    let mut world = World::on(Network { behaviour: only, ..crate::gateway::emit::testing::network(1500) });
    let front = UdpSocket::bind("127.0.0.1:0").unwrap();
    world.publish(&front, false, 7);
    socket("127.0.0.1:0").send_to(b"x", front.local_addr().unwrap()).unwrap();
    world.until(|world| (world.side().stats().dropped == 1).then_some(()));
    assert_eq!(world.gateway.counters().dropped(DropReason::NoRoom), 0);
}

#[test]
fn a_port_may_lead_to_another_address_than_the_sandboxs_own() {
    let (mut world, service) = (World::new(), Service::at("127.0.0.55:0"));
    let front = UdpSocket::bind("127.0.0.1:0").unwrap();
    let published = world.publish(&front, false, service.port);
    let copy = front.try_clone().unwrap();
    copy.set_nonblocking(true).unwrap();
    let leading = Published { sandbox_address: "127.0.0.55".parse().ok(), ..published };
    world.publishing.publish(PORT, vec![(leading, copy.into())]).unwrap();
    let client = socket("127.0.0.1:0");
    client.send_to(b"x", front.local_addr().unwrap()).unwrap();
    assert_eq!(world.answer(&client).0, b"x");
}

#[test]
fn where_udp_is_switched_off_nothing_passes() {
    let mut off = Behaviour::default();
    off.services.udp = false;
    let (mut world, service) = (World::behaving(off), Service::at("127.0.0.1:0"));
    let front = UdpSocket::bind("127.0.0.1:0").unwrap();
    world.publish(&front, false, service.port);
    socket("127.0.0.1:0").send_to(b"x", front.local_addr().unwrap()).unwrap();
    world.until(|world| (world.side().stats().dropped == 1).then_some(()));
    assert_eq!(world.flows(), 0);
}

#[test]
fn where_nobody_listens_the_flow_is_forgotten_and_a_later_service_is_found() {
    let mut world = World::new();
    let (front, port) = (UdpSocket::bind("127.0.0.1:0").unwrap(), closed_port());
    world.publish(&front, false, port);
    let client = socket("127.0.0.1:0");
    client.send_to(b"x", front.local_addr().unwrap()).unwrap();
    world.until(|world| (world.side().stats().dropped == 1).then_some(()));
    assert_eq!(world.flows(), 0);
    for address in ["127.0.0.1", "[::1]"] {
        let service = Service::at(&format!("{address}:{port}"));
        client.send_to(b"y", front.local_addr().unwrap()).unwrap();
        // Behind what was meant for the one before.
        while world.answer(&client).0 != b"y" {}
        drop(service);
        // The flow is there; its service is not, as soon as no child of another test has its socket any more.
        world.until(|world| {
            client.send_to(b"lost", front.local_addr().unwrap()).unwrap();
            (world.flows() == 0).then_some(())
        });
    }
}

#[test]
fn idle_flows_end() {
    let (mut world, service) = (World::new(), Service::at("127.0.0.1:0"));
    let front = UdpSocket::bind("127.0.0.1:0").unwrap();
    world.publish(&front, false, service.port);
    let client = socket("127.0.0.1:0");
    let begun = world.now;
    for second in [0, 100, 200] {
        world.now = begun + Duration::from_secs(second);
        client.send_to(b"x", front.local_addr().unwrap()).unwrap();
        world.answer(&client);
    }
    assert_eq!(world.side().next_timeout(), Some(begun + Duration::from_secs(380)));
    world.now = begun + Duration::from_secs(379);
    world.turn(Duration::ZERO);
    assert_eq!(world.flows(), 1);
    world.now = begun + Duration::from_secs(380);
    world.turn(Duration::ZERO);
    assert_eq!((world.flows(), world.side().next_timeout()), (0, None));
    client.send_to(b"again", front.local_addr().unwrap()).unwrap();
    assert_eq!(world.answer(&client).0, b"again");
}

#[test]
fn at_the_bound_the_flow_idle_longest_makes_room() {
    let (mut world, service) = (World::new(), Service::at("127.0.0.1:0"));
    let front = UdpSocket::bind("127.0.0.1:0").unwrap();
    world.publish(&front, false, service.port);
    world.publishing.udp.most_flows = 3;
    let clients: Vec<UdpSocket> = (0..8).map(|_| socket("127.0.0.1:0")).collect();
    for client in &clients {
        client.send_to(b"x", front.local_addr().unwrap()).unwrap();
        world.answer(client);
        assert!(world.flows() <= 3);
    }
    assert_eq!(service.heard_from.lock().unwrap().len(), 8);
}

#[test]
fn unpublish_frees_the_port_and_ends_its_flows_and_no_others() {
    let (mut world, service) = (World::new(), Service::at("127.0.0.1:0"));
    let (one, two) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let published = world.publish(&one, false, service.port);
    world.publish(&two, false, service.port);
    let client = socket("127.0.0.1:0");
    for front in [&one, &two] {
        client.send_to(b"x", front.local_addr().unwrap()).unwrap();
        world.answer(&client);
    }
    world.publishing.unpublish(&[published.key()]);
    assert_eq!(world.flows(), 1);
    drop(one);
    UdpSocket::bind(published.host).expect("the port is free");
    client.send_to(b"y", two.local_addr().unwrap()).unwrap();
    assert_eq!(world.answer(&client).0, b"y");
}

#[test]
fn an_ended_sandbox_hears_nothing_more_but_is_heard_until_it_is_removed() {
    let (mut world, service) = (World::new(), Service::at("127.0.0.1:0"));
    let front = UdpSocket::bind("127.0.0.1:0").unwrap();
    let published = world.publish(&front, false, service.port);
    let client = socket("127.0.0.1:0");
    client.send_to(b"x", front.local_addr().unwrap()).unwrap();
    world.answer(&client);
    let inside = service.heard_from.lock().unwrap()[0];
    world.publishing.close_listeners(PORT);
    client.send_to(b"unheard", front.local_addr().unwrap()).unwrap();
    drop(service);
    let last = UdpSocket::bind(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), published.sandbox_port)).unwrap();
    last.send_to(b"last words", inside).unwrap();
    assert_eq!(world.answer(&client).0, b"last words");
    assert_eq!(world.side().stats().received, 1);
    world.publishing.remove(PORT);
    world.turn(Duration::ZERO);
    assert_eq!((world.flows(), world.side().fronts.len(), world.side().by_key.len()), (0, 0, 0));
    drop(front);
    UdpSocket::bind(published.host).expect("the port is free");
}

#[test]
fn a_port_of_the_host_is_reached_from_inside_by_both_families() {
    for (service, front) in [("127.0.0.1:0", "127.0.0.1:0"), ("[::1]:0", "127.0.0.1:0"), ("127.0.0.1:0", "[::1]:0")] {
        let (mut world, service) = (World::without_agent(), Service::at(service));
        let front = UdpSocket::bind(front).unwrap();
        let inside = front.local_addr().unwrap();
        let reached = Reached { host_port: service.port, protocol: Protocol::Udp, inside };
        let copy = front.try_clone().unwrap();
        copy.set_nonblocking(true).unwrap();
        world.publishing.reach(PORT, vec![(reached, copy.into())]).unwrap();
        let clients: Vec<UdpSocket> = (0..5).map(|_| socket(&SocketAddr::new(inside.ip(), 0).to_string())).collect();
        for (nth, client) in clients.iter().enumerate() {
            client.send_to(&[nth as u8], inside).unwrap();
        }
        for (nth, client) in clients.iter().enumerate() {
            assert_eq!(world.answer(client), (vec![nth as u8], inside));
        }
        let flow = world.side().describe(0, |_| Some("0123456789ab")).unwrap();
        assert_eq!((flow.kind, flow.outside.map(|to| to.port())), (FlowKind::Reach, Some(service.port)));
        world.publishing.unreach(PORT, &[reached]);
        drop(front);
        UdpSocket::bind(inside).expect("the port is free");
    }
}

#[test]
fn without_an_agent_the_loopbacks_clients_go_through_the_link() {
    let mut world = World::without_agent();
    let front = dual_stack();
    world.publish(&front, true, 7);
    let client = socket("127.0.0.1:0");
    client.connect(("127.0.0.2", front.local_addr().unwrap().port())).unwrap();
    client.send(b"x").unwrap();
    // This world's link has no room.
    world.until(|world| (world.gateway.counters().dropped(DropReason::NoRoom) == 1).then_some(()));
    assert_eq!(world.flows(), 0);
    // What the sandbox says to such a client leaves by the front.
    let generation = world.side().fronts[0].generation;
    let path = ReplyPath { socket: 0, generation, local: "127.0.0.2".parse().ok() };
    let datagram = Datagram { payload: b"aabb", segment: 2, hop_limit: 9, tos: 0, dont_fragment: false };
    let to = client.local_addr().unwrap();
    world.host.published_send(path, to, datagram).unwrap();
    let stale = ReplyPath { generation: generation + 1, ..path };
    world.host.published_send(stale, to, datagram).unwrap();
    assert_eq!(world.answer(&client).0, b"aa");
    assert_eq!(world.answer(&client).0, b"bb");
    let stats = world.side().stats();
    assert_eq!((stats.received, stats.sent, stats.dropped), (1, 2, 2));
}

#[test]
fn clients_elsewhere_go_through_the_link_if_they_may_and_hear_the_address_they_wrote_to() {
    let name = "publish::udp::tests::\
                clients_elsewhere_go_through_the_link_if_they_may_and_hear_the_address_they_wrote_to";
    if in_namespace(name, 65_536) {
        return;
    }
    let mut netlink = Netlink::open().unwrap();
    for ip in ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"] {
        let ip: IpAddr = ip.parse().unwrap();
        netlink.add_address(1, ip, if ip.is_ipv4() { 32 } else { 128 }).unwrap();
    }
    let (mut world, service) = (World::new(), Service::at("127.0.0.1:0"));
    let front = dual_stack();
    world.publish_from(&["192.0.2.1/32", "2001:db8::1/128"], &front, true, service.port);
    let port = front.local_addr().unwrap().port();
    let generation = world.side().fronts[0].generation;
    for (own, to) in [("192.0.2.1", "192.0.2.2"), ("[2001:db8::1]", "2001:db8::2")] {
        let client = socket(&format!("{own}:0"));
        let local: IpAddr = to.parse().unwrap();
        client.connect((local, port)).unwrap();
        // This world's link has no room.
        let no_room = |world: &World| world.gateway.counters().dropped(DropReason::NoRoom);
        let before = no_room(&world);
        world.until_heard(&client, SocketAddr::new(local, port), |world| no_room(world) > before);
        let path = ReplyPath { socket: 0, generation, local: Some(local) };
        let datagram = Datagram { payload: b"aabb", segment: 2, hop_limit: 9, tos: 0xb8, dont_fragment: false };
        world.host.published_send(path, client.local_addr().unwrap(), datagram).unwrap();
        for expected in [b"aa", b"bb"] {
            assert_eq!(world.answer(&client), (expected.to_vec(), SocketAddr::new(local, port)));
        }
        let stranger = socket(&SocketAddr::new(local, 0).to_string());
        let own: IpAddr = own.trim_matches(['[', ']']).parse().unwrap();
        let not_allowed = |world: &World| world.side().stats().not_allowed;
        let before = not_allowed(&world);
        world.until_heard(&stranger, SocketAddr::new(own, port), |world| not_allowed(world) > before);
    }
    let client = socket("127.0.0.1:0");
    client.send_to(b"x", ("127.0.0.1", port)).unwrap();
    assert_eq!(world.answer(&client).0, b"x", "the loopback always may");
}

#[test]
fn a_type_of_service_goes_along_both_ways() {
    let mut world = World::new();
    let service = socket("127.0.0.1:0");
    let front = UdpSocket::bind("127.0.0.1:0").unwrap();
    world.publish(&front, false, service.local_addr().unwrap().port());
    let client = socket("127.0.0.1:0");
    let tos = |socket: &UdpSocket| {
        dgram::set_option(socket.as_fd(), false, SocketOption::Tos, 0xb8).unwrap();
        dgram::set_option(socket.as_fd(), false, SocketOption::ReceiveTos, 1).unwrap();
    };
    tos(&service);
    tos(&client);
    let hear = |world: &mut World, socket: BorrowedFd<'_>| {
        let mut batch = Batch::new();
        world.until(|_| batch.receive(socket).ok());
        let message = batch.message(0).unwrap();
        (message.from, message.tos)
    };
    client.send_to(b"x", front.local_addr().unwrap()).unwrap();
    let (from, seen) = hear(&mut world, service.as_fd());
    assert_eq!(seen, 0xb8);
    service.send_to(b"y", from).unwrap();
    assert_eq!(hear(&mut world, client.as_fd()), (front.local_addr().unwrap(), 0xb8));
}
