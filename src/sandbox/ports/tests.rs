use super::follow::MOST_LOOKS;
use super::*;
use crate::plan::{Auto, AutoRules, BindManner, PortRange};
use crate::publish::holder::LOOKS;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

/// A gateway: what it was sent, and copies of the sockets it serves.
#[derive(Default)]
struct Gateway {
    heard: Vec<ToGateway>,
    sockets: usize,
}

/// What a send says when the kernel has no memory for it.
fn no_room() -> WireError {
    WireError::Connection(ScmError::Send(io::Error::from_raw_os_error(libc::ENOBUFS)))
}

impl Gateway {
    fn take(&mut self, message: &ToGateway, fds: &[BorrowedFd<'_>]) {
        if let ToGateway::Publish { ports, .. } = message {
            assert_eq!(ports.len(), fds.len());
            assert!(fds.len() <= MAX_FDS && serde_json::to_vec(message).unwrap().len() <= MAX_MESSAGE);
        }
        self.sockets += fds.len();
        self.heard.push(message.clone());
    }

    /// Answers everything until there is nothing more to be done; refuses what `refuse` says.
    fn serve(&mut self, keeper: &mut PortKeeper, refuse: impl Fn(&ToGateway) -> bool) -> Result<Outcome, PortFailure> {
        let mut all = Outcome::default();
        loop {
            let before = self.heard.len();
            let outcome = keeper.advance(|message, fds| {
                self.take(message, fds);
                Ok(())
            })?;
            all.started |= outcome.started;
            all.changed |= outcome.changed;
            let mut asked = false;
            for message in &self.heard[before..] {
                if let ToGateway::Publish { request, .. } | ToGateway::Unpublish { request, .. } = message {
                    assert!(!std::mem::replace(&mut asked, true), "one at a time");
                    keeper.handle_done(*request, refuse(message).then(|| "it is full".to_owned()));
                }
            }
            if !asked {
                return Ok(all);
            }
        }
    }

    fn answer(&self) -> Result<(), String> {
        match self.heard.last() {
            Some(ToGateway::Answer { failure: None, .. }) => Ok(()),
            Some(ToGateway::Answer { failure: Some(failure), .. }) => Err(failure.code.clone()),
            other => panic!("{other:?}"),
        }
    }
}

fn never(_: &ToGateway) -> bool {
    false
}

fn keeper(specs: &[&str], auto: Option<Auto>) -> (PortKeeper, Gateway) {
    let publish = specs.iter().map(|spec| PublishSpec::parse(spec).unwrap()).collect();
    let ports = Ports { publish, auto, ..Ports::default() };
    let mut keeper = PortKeeper::new("0123456789ab", "web", &ports);
    keeper.bind(&ports).unwrap();
    keeper.begin(true);
    let mut gateway = Gateway::default();
    assert!(gateway.serve(&mut keeper, never).unwrap().started);
    (keeper, gateway)
}

fn hosts(keeper: &PortKeeper) -> Vec<SocketAddr> {
    keeper.published().iter().map(|published| published.host).collect()
}

/// Nobody listens there, and somebody could.
fn is_free(at: SocketAddr) -> bool {
    TcpStream::connect(at).is_err() && TcpListener::bind(at).is_ok()
}

#[test]
fn a_thousand_ports_are_handed_over_in_batches_and_are_served_at_the_end() {
    let (keeper, gateway) = keeper(&["127.0.0.1::1001-2000"], None);
    assert_eq!((gateway.heard.len(), gateway.sockets), (1000_usize.div_ceil(MAX_FDS), 1000));
    let published = keeper.published();
    assert_eq!(published.iter().map(|p| p.sandbox_port).collect::<Vec<_>>(), (1001..=2000).collect::<Vec<_>>());
    assert!(TcpStream::connect(published[999].host).is_ok());
}

#[test]
fn batches_are_small_enough_for_a_message() {
    let from: Vec<IpNet> = (0..200).map(|n| format!("2001:db8:{n:x}::/48").parse().unwrap()).collect();
    let ports = Ports { publish: vec![PublishSpec::parse("127.0.0.1::1-100").unwrap()], from, ..Ports::default() };
    let mut keeper = PortKeeper::new("0123456789ab", "web", &ports);
    keeper.bind(&ports).unwrap();
    keeper.begin(true);
    let mut gateway = Gateway::default();
    assert!(gateway.serve(&mut keeper, never).unwrap().started);
    assert_eq!(gateway.sockets, 100);
    assert!(gateway.heard.len() > 2);
}

#[test]
fn a_port_is_free_as_soon_as_it_is_taken_back() {
    let (mut keeper, mut gateway) = keeper(&["127.0.0.1::80", "127.0.0.1::81"], None);
    let first = hosts(&keeper)[0];
    keeper.want_unpublish(7, "127.0.0.1::80");
    assert!(gateway.serve(&mut keeper, never).unwrap().changed);
    gateway.answer().unwrap();
    assert!(is_free(first));
    assert_eq!(hosts(&keeper).len(), 1);
    keeper.want_unpublish(8, "127.0.0.1::80");
    gateway.serve(&mut keeper, never).unwrap();
    assert_eq!(gateway.answer(), Err("not_published".to_owned()));
    let rest = hosts(&keeper)[0];
    assert_eq!(keeper.release().len(), 1);
    assert!(is_free(rest) && keeper.is_empty());
}

#[test]
fn what_the_gateway_refuses_is_not_left_half_done() {
    let (mut keeper, mut gateway) = keeper(&[], None);
    keeper.want_publish(1, "127.0.0.1::1-100", None, &[]);
    let bound: Vec<SocketAddr> = keeper.held.values().map(|held| held.bound.published.host).collect();
    // The first batch is served, the second is not.
    let second = |message: &ToGateway| matches!(message, ToGateway::Publish { ports, .. } if ports[0].sandbox_port > 1);
    assert!(!gateway.serve(&mut keeper, second).unwrap().changed);
    assert_eq!(gateway.answer(), Err("failed".to_owned()));
    let taken_back = gateway.heard.iter().find_map(|message| match message {
        ToGateway::Unpublish { ports, .. } => Some(ports.len()),
        _ => None,
    });
    assert_eq!(taken_back, Some(MAX_FDS));
    assert!(keeper.is_empty() && is_free(bound[0]) && is_free(bound[99]));
}

#[test]
fn a_port_of_the_command_line_that_is_refused_ends_the_start() {
    let ports = Ports { publish: vec![PublishSpec::parse("127.0.0.1::80").unwrap()], ..Ports::default() };
    let mut keeper = PortKeeper::new("0123456789ab", "web", &ports);
    keeper.bind(&ports).unwrap();
    keeper.begin(true);
    let failure = Gateway::default().serve(&mut keeper, |m| matches!(m, ToGateway::Publish { .. })).unwrap_err();
    assert_eq!(failure.to_string(), "it is full");
    assert!(keeper.is_empty());
}

#[test]
fn bad_and_taken_ports_are_refused_over_the_api() {
    let (mut keeper, mut gateway) = keeper(&[], None);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let spec = format!("{}:80", taken.local_addr().unwrap());
    for (spec, proxy, code) in
        [("80:", None, "bad_spec"), (&spec, None, "taken"), ("53/udp", Some(ProxyVersion::V1), "bad_spec")]
    {
        keeper.want_publish(1, spec, proxy, &[]);
        gateway.serve(&mut keeper, never).unwrap();
        assert_eq!(gateway.answer(), Err(code.to_owned()), "{spec}");
        assert!(keeper.is_empty());
    }
}

#[test]
fn a_new_gateway_gets_everything_but_what_nobody_waits_for_any_more() {
    let (mut keeper, _) = keeper(&["127.0.0.1::80", "127.0.0.1::81"], None);
    let [first, second] = hosts(&keeper)[..] else { panic!() };
    keeper.want_publish(1, "127.0.0.1::82", None, &[]);
    keeper.want_unpublish(2, "127.0.0.1::81");
    let third = keeper.held.values().last().unwrap().bound.published.host;
    // The old one dies with these on their way.
    keeper.advance(|_, _| Ok(())).unwrap();
    keeper.begin(false);
    let mut gateway = Gateway::default();
    let outcome = gateway.serve(&mut keeper, never).unwrap();
    assert_eq!(outcome, Outcome { changed: true, ..Outcome::default() });
    assert_eq!((gateway.sockets, hosts(&keeper)), (1, vec![first]));
    assert!(is_free(second) && is_free(third));
}

#[test]
fn what_a_new_gateway_refuses_is_closed_and_the_rest_is_served() {
    let (mut keeper, _) = keeper(&["127.0.0.1::1-100"], None);
    let before = hosts(&keeper);
    keeper.begin(false);
    let first = |message: &ToGateway| matches!(message, ToGateway::Publish { ports, .. } if ports[0].sandbox_port == 1);
    let outcome = Gateway::default().serve(&mut keeper, first).unwrap();
    assert_eq!(outcome.broken, None);
    assert_eq!(hosts(&keeper), before[MAX_FDS..]);
    assert!(is_free(before[0]) && is_free(before[MAX_FDS - 1]));
    assert!(TcpStream::connect(before[MAX_FDS]).is_ok());
}

#[test]
fn a_gateway_that_cannot_be_told_of_ports_is_broken_and_no_port_is_lost() {
    let (mut keeper, _) = keeper(&["127.0.0.1::1-100"], None);
    let before = hosts(&keeper);
    keeper.begin(false);
    let outcome = keeper.advance(|_, _| Err(no_room())).unwrap();
    assert!(outcome.broken.unwrap().contains("cannot send"));
    // It is not asked again, and its death is nothing to be told of.
    assert_eq!(keeper.advance(|_, _| panic!("it is broken")).unwrap(), Outcome::default());
    keeper.begin(false);
    let gone = || WireError::Connection(ScmError::Send(io::ErrorKind::BrokenPipe.into()));
    assert_eq!(keeper.advance(|_, _| Err(gone())).unwrap().broken, None);
    keeper.begin(false);
    Gateway::default().serve(&mut keeper, never).unwrap();
    assert_eq!(hosts(&keeper), before);
    assert!(TcpStream::connect(before[99]).is_ok());
}

#[test]
fn a_gateway_that_cannot_be_told_to_close_a_port_is_broken() {
    let (mut keeper, mut gateway) = keeper(&["127.0.0.1::80", "127.0.0.1::81"], None);
    let [first, second] = hosts(&keeper)[..] else { panic!() };
    keeper.want_unpublish(1, "127.0.0.1::80");
    assert!(keeper.advance(|_, _| Err(no_room())).unwrap().broken.is_some());
    keeper.begin(false);
    gateway.serve(&mut keeper, never).unwrap();
    assert_eq!(hosts(&keeper), [second]);
    assert!(is_free(first));
    // Nor may an answer be lost.
    keeper.want_unpublish(2, "127.0.0.1::80");
    assert!(keeper.advance(|_, _| Err(no_room())).unwrap().broken.is_some());
}

#[test]
fn ports_are_taken_back_by_other_words_that_mean_them() {
    let (mut keeper, mut gateway) = keeper(&["127.0.0.1::80/tcp", "127.0.0.1::90-92", "80"], None);
    let published = keeper.published();
    let ninety = &published[1];
    let wildcard = published[4].host.port();
    assert_eq!(keeper.find(&format!("{wildcard}:81")).unwrap_err().code, "not_published");
    assert_eq!(keeper.find(&format!("{wildcard}:80/udp")).unwrap_err().code, "not_published");
    for (spec, count) in [
        ("127.0.0.1::80".to_owned(), 4),
        (format!("{}:90", ninety.host.port()), 3),
        (format!("127.0.0.1:{}:91", published[2].host.port()), 2),
        ("127.0.0.1::90-92".to_owned(), 1),
        (format!("0.0.0.0:{wildcard}:80"), 0),
    ] {
        keeper.want_unpublish(1, &spec);
        gateway.serve(&mut keeper, never).unwrap();
        assert_eq!(gateway.answer(), Ok(()), "{spec}");
        assert_eq!(keeper.published().len(), count, "{spec}");
    }
}

#[test]
fn auto_follows_what_the_sandbox_listens_on() {
    let (mut keeper, mut gateway) = keeper(&["127.0.0.1::7777"], Some(Auto::Loopback));
    let free = {
        let both = TcpListener::bind("[::1]:0").unwrap();
        both.local_addr().unwrap().port()
    };
    // One that is published already, and one for each protocol.
    let all = BTreeSet::from([(Protocol::Tcp, free), (Protocol::Tcp, 7777), (Protocol::Udp, free)]);
    keeper.follow(all.clone());
    assert!(gateway.serve(&mut keeper, never).unwrap().changed);
    let auto = |keeper: &PortKeeper| -> Vec<Published> {
        keeper.published().into_iter().filter(|published| published.origin == Origin::Auto).collect()
    };
    assert_eq!(auto(&keeper).len(), 4, "{:?}", auto(&keeper));
    assert!(auto(&keeper).iter().all(|p| p.host.port() == free && p.sandbox_port == free && p.spec == "auto"));
    keeper.follow(all);
    assert!(!gateway.serve(&mut keeper, never).unwrap().changed);
    keeper.follow(BTreeSet::from([(Protocol::Tcp, free)]));
    assert!(gateway.serve(&mut keeper, never).unwrap().changed);
    assert!(auto(&keeper).iter().all(|p| p.protocol == Protocol::Tcp));
    assert!(UdpSocket::bind(("127.0.0.1", free)).is_ok());
    keeper.follow(BTreeSet::new());
    gateway.serve(&mut keeper, never).unwrap();
    assert_eq!(keeper.published().len(), 1);
}

#[test]
fn what_auto_has_found_while_a_gateway_died_is_served_by_the_next_and_told() {
    let (mut keeper, _) = keeper(&[], Some(Auto::Loopback));
    keeper.follow(BTreeSet::from([(Protocol::Udp, 7777)]));
    keeper.advance(|_, _| Ok(())).unwrap();
    keeper.begin(false);
    assert!(Gateway::default().serve(&mut keeper, never).unwrap().changed);
    assert!(keeper.published().iter().all(|p| p.sandbox_port == 7777) && !keeper.published().is_empty());
}

/// A port that nobody has, of either protocol and family.
fn free_port() -> u16 {
    let found = (20_000..30_000).find(|&port| {
        TcpListener::bind(("::", port)).is_ok_and(|_| UdpSocket::bind(("::", port)).is_ok())
            && TcpListener::bind(("127.0.0.1", port)).is_ok()
    });
    found.unwrap()
}

#[test]
fn what_auto_could_not_publish_is_tried_again_when_something_changes() {
    let (mut keeper, mut gateway) = keeper(&[], Some(Auto::Loopback));
    let wanted = BTreeSet::from([(Protocol::Udp, 7777)]);
    keeper.follow(wanted.clone());
    gateway.serve(&mut keeper, |message| matches!(message, ToGateway::Publish { .. })).unwrap();
    assert!(keeper.is_empty());
    keeper.follow(wanted);
    gateway.serve(&mut keeper, never).unwrap();
    assert!(!keeper.is_empty() && keeper.published().iter().all(|p| p.sandbox_port == 7777));
}

#[test]
fn auto_publishes_what_a_spec_no_longer_does_and_leaves_what_somebody_took_back() {
    let (mut keeper, mut gateway) = keeper(&["127.0.0.1::7777"], Some(Auto::Loopback));
    let wanted = BTreeSet::from([(Protocol::Tcp, 7777)]);
    keeper.follow(wanted.clone());
    keeper.want_unpublish(1, "127.0.0.1::7777");
    gateway.serve(&mut keeper, never).unwrap();
    let is_followed = |keeper: &PortKeeper| {
        !keeper.is_empty() && keeper.published().iter().all(|p| (p.sandbox_port, p.origin) == (7777, Origin::Auto))
    };
    assert!(is_followed(&keeper));
    keeper.want_unpublish(2, "auto");
    gateway.serve(&mut keeper, never).unwrap();
    keeper.follow(wanted.clone());
    gateway.serve(&mut keeper, never).unwrap();
    assert!(keeper.is_empty());
    // Whoever listens there later is another.
    keeper.follow(BTreeSet::new());
    keeper.follow(wanted);
    gateway.serve(&mut keeper, never).unwrap();
    assert!(is_followed(&keeper));
}

#[test]
fn a_listener_that_returns_at_once_keeps_its_number() {
    let (mut keeper, mut gateway) = keeper(&[], Some(Auto::Loopback));
    let port = free_port();
    let wanted = BTreeSet::from([(Protocol::Tcp, port)]);
    keeper.follow(wanted.clone());
    gateway.serve(&mut keeper, never).unwrap();
    let before = hosts(&keeper);
    assert!(before.iter().all(|host| host.port() == port));
    // Before its turn to be taken back.
    keeper.follow(BTreeSet::new());
    keeper.follow(wanted.clone());
    gateway.serve(&mut keeper, never).unwrap();
    assert_eq!(hosts(&keeper), before);
    // While the gateway closes it.
    let theirs: Vec<_> = keeper.held.values().map(|held| held.bound.socket.try_clone().unwrap()).collect();
    keeper.follow(BTreeSet::new());
    let mut closing = 0;
    keeper
        .advance(|message, _| {
            let ToGateway::Unpublish { request, .. } = message else { panic!("{message:?}") };
            closing = *request;
            Ok(())
        })
        .unwrap();
    keeper.follow(wanted);
    drop(theirs);
    keeper.handle_done(closing, None);
    gateway.serve(&mut keeper, never).unwrap();
    assert_eq!(hosts(&keeper), before);
}

#[test]
fn auto_takes_a_free_port_for_one_that_is_taken_on_either_address() {
    for taken in ["127.0.0.1:0", "[::1]:0"] {
        let taken = TcpListener::bind(taken).unwrap();
        let port = taken.local_addr().unwrap().port();
        let (mut keeper, mut gateway) = keeper(&[], Some(Auto::Loopback));
        keeper.follow(BTreeSet::from([(Protocol::Tcp, port)]));
        gateway.serve(&mut keeper, never).unwrap();
        let [v4, v6] = &keeper.published()[..] else { panic!() };
        assert_eq!((v4.sandbox_port, v4.host.port()), (port, v6.host.port()));
        assert_ne!(v4.host.port(), port);
    }
}

#[test]
fn a_sandbox_that_listens_on_taken_ports_has_the_host_searched_for_a_few_only() {
    let taken: Vec<TcpListener> = (0..50).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let ports = taken.iter().map(|taken| (Protocol::Tcp, taken.local_addr().unwrap().port()));
    let (mut keeper, mut gateway) = keeper(&[], Some(Auto::Loopback));
    let before = LOOKS.get();
    keeper.follow(ports.clone().collect());
    gateway.serve(&mut keeper, never).unwrap();
    assert_eq!(LOOKS.get() - before, MOST_LOOKS);
    let published: BTreeSet<u16> = keeper.published().iter().map(|published| published.sandbox_port).collect();
    assert_eq!(published.len(), 50);
    // Nobody is told twice.
    keeper.follow(BTreeSet::new());
    gateway.serve(&mut keeper, never).unwrap();
    keeper.follow(ports.collect());
    assert_eq!(LOOKS.get() - before, MOST_LOOKS);
}

#[test]
fn a_sandbox_that_listens_everywhere_gets_a_limited_number_of_ports() {
    let (mut keeper, mut gateway) = keeper(&[], Some(Auto::Loopback));
    keeper.follow((0..2 * MOST_FOLLOWED as u16).map(|n| (Protocol::Udp, 20_000 + n)).collect());
    gateway.serve(&mut keeper, never).unwrap();
    let followed: BTreeSet<Wish> = keeper.held.values().filter_map(Held::wish).collect();
    assert_eq!(followed.union(&keeper.follow.failed).count(), MOST_FOLLOWED);
    assert!(keeper.published().len() <= 2 * MOST_FOLLOWED);
}

fn spec(text: &str) -> PublishSpec {
    PublishSpec::parse(text).unwrap()
}

fn settled(ticket: u64, publish: bool) -> Vec<Settled> {
    vec![Settled { ticket, publish, failure: None }]
}

#[test]
fn what_is_published_under_a_ticket_is_taken_back_by_it() {
    let (mut keeper, mut gateway) = keeper(&[], None);
    let ticket = keeper.publish(&spec("127.0.0.1::80")).unwrap();
    assert_eq!(keeper.settled(), []);
    assert!(gateway.serve(&mut keeper, never).unwrap().changed);
    assert_eq!(keeper.settled(), settled(ticket, true));
    let host = hosts(&keeper)[0];
    let text = format!("{host}:80");
    assert_eq!(keeper.publish(&spec(&text)).unwrap_err().code, "taken");
    assert!(!keeper.unpublish(ticket + 1) && keeper.unpublish(ticket) && !keeper.unpublish(ticket));
    gateway.serve(&mut keeper, never).unwrap();
    assert_eq!(keeper.settled(), settled(ticket, false));
    assert!(keeper.is_empty() && is_free(host));
}

#[test]
fn a_ticket_that_the_gateway_refuses_leaves_nothing() {
    let (mut keeper, mut gateway) = keeper(&[], None);
    let ticket = keeper.publish(&spec("127.0.0.1::80")).unwrap();
    gateway.serve(&mut keeper, |message| matches!(message, ToGateway::Publish { .. })).unwrap();
    let [Settled { publish: true, failure: Some(failure), .. }] = &keeper.settled()[..] else { panic!() };
    assert_eq!(failure.message, "it is full");
    assert!(keeper.is_empty() && !keeper.unpublish(ticket));
}

#[test]
fn a_ticket_outlives_a_gateway() {
    let (mut keeper, _) = keeper(&[], None);
    let first = keeper.publish(&spec("127.0.0.1::80")).unwrap();
    let second = keeper.publish(&spec("127.0.0.1::81")).unwrap();
    assert!(keeper.unpublish(second));
    // The gateway dies before it has heard of either.
    keeper.begin(false);
    let mut gateway = Gateway::default();
    gateway.serve(&mut keeper, never).unwrap();
    let mut came = keeper.settled();
    came.sort_by_key(|settled| (settled.ticket, !settled.publish));
    assert_eq!(came[0], settled(first, true)[0]);
    assert!(came[1].publish && came[1].ticket == second);
    assert_eq!(came[2], settled(second, false)[0]);
    assert_eq!(keeper.published().iter().map(|port| port.sandbox_port).collect::<Vec<_>>(), [80]);
    assert!(keeper.unpublish(first));
}

/// A keeper for what another tool's command line asks for, which the gateway has started to serve.
fn started(ports: &Ports) -> (PortKeeper, Gateway) {
    let mut keeper = PortKeeper::new("0123456789ab", "web", ports);
    keeper.bind(ports).unwrap();
    keeper.begin(true);
    let mut gateway = Gateway::default();
    assert!(gateway.serve(&mut keeper, never).unwrap().started);
    (keeper, gateway)
}

/// Likewise: a range of this address follows the sandbox's ports 7000 to 7003.
fn following(address: [u8; 4], first: u16) -> PublishSpec {
    let manner = BindManner { following: true, ..BindManner::default() };
    PublishSpec {
        text: "-t X,auto".into(),
        address: Some(address.into()),
        host: Some(PortRange { first, last: first + 3 }),
        sandbox: PortRange { first: 7000, last: 7003 },
        manner: Box::new(manner),
        ..spec("80")
    }
}

fn listening(tcp: &[u16], udp: &[u16]) -> BTreeSet<Inner> {
    let tcp = tcp.iter().map(|port| (Protocol::Tcp, *port));
    tcp.chain(udp.iter().map(|port| (Protocol::Udp, *port))).collect()
}

#[test]
fn a_spec_that_follows_is_published_at_its_own_numbers_while_the_sandbox_listens() {
    let ports = Ports { publish: vec![following([127, 77, 8, 1], 9000)], ..Ports::default() };
    let (mut keeper, mut gateway) = started(&ports);
    assert!(keeper.is_empty());
    keeper.follow(listening(&[6999, 7001, 7003, 7004], &[7000]));
    gateway.serve(&mut keeper, never).unwrap();
    assert_eq!(hosts(&keeper), [([127, 77, 8, 1], 9001).into(), ([127, 77, 8, 1], 9003).into()]);
    assert!(keeper.published().iter().all(|published| published.origin == Origin::Auto));
    keeper.follow(listening(&[7003], &[]));
    gateway.serve(&mut keeper, never).unwrap();
    assert_eq!(hosts(&keeper), [([127, 77, 8, 1], 9003).into()]);
    // What is being given up is taken as well, and so is what is named.
    keeper.follow(listening(&[], &[]));
    let under_way = keeper.taken();
    assert!(under_way.contains(&(Protocol::Tcp, 9003)) && under_way.contains(&(Protocol::Tcp, 7003)));
    gateway.serve(&mut keeper, never).unwrap();
    assert_eq!(keeper.taken(), BTreeSet::new());
}

#[test]
fn two_rules_may_want_the_same_port_of_the_sandbox() {
    let publish = vec![following([127, 77, 8, 2], 9000), following([127, 77, 8, 3], 9000)];
    let (mut keeper, mut gateway) = started(&Ports { publish, ..Ports::default() });
    keeper.follow(listening(&[7000], &[]));
    gateway.serve(&mut keeper, never).unwrap();
    assert_eq!(hosts(&keeper), [([127, 77, 8, 2], 9000).into(), ([127, 77, 8, 3], 9000).into()]);
}

#[test]
fn where_no_other_number_will_do_a_taken_one_is_had_as_soon_as_it_is_free() {
    let (mut keeper, mut gateway) =
        started(&Ports { publish: vec![following([127, 77, 8, 4], 9000)], ..Ports::default() });
    let taken = TcpListener::bind("127.77.8.4:9000").unwrap();
    keeper.follow(listening(&[7000], &[]));
    assert!(keeper.is_empty());
    let retry = keeper.next_retry().unwrap();
    keeper.retry(retry);
    assert!(keeper.is_empty() && keeper.next_retry().is_some_and(|again| again > retry));
    drop(taken);
    keeper.retry(keeper.next_retry().unwrap());
    assert_eq!(keeper.next_retry(), None);
    gateway.serve(&mut keeper, never).unwrap();
    assert_eq!(hosts(&keeper).len(), 1);
}

#[test]
fn rules_of_auto_say_what_is_followed_and_udp_comes_with_tcp() {
    let free = |_| {
        let socket = TcpListener::bind("[::]:0").unwrap();
        socket.local_addr().unwrap().port()
    };
    let [web, except, quiet] = [(); 3].map(free);
    let auto_rules = AutoRules {
        except: vec![(Protocol::Tcp, PortRange { first: except, last: except })],
        same_number: true,
        udp_as_tcp: true,
        ..AutoRules::default()
    };
    let (mut keeper, mut gateway) =
        started(&Ports { auto: Some(Auto::All), auto_rules: auto_rules.clone(), ..Ports::default() });
    keeper.follow(listening(&[web, except], &[quiet]));
    gateway.serve(&mut keeper, never).unwrap();
    let held: BTreeSet<Inner> = keeper.held.values().map(Held::inner).collect();
    assert_eq!(held, listening(&[web], &[web, quiet]));
    assert!(keeper.published().iter().all(|published| published.host.port() == published.sandbox_port));
    // UDP alone comes with what is published of TCP, and with nothing else.
    let rules = AutoRules { tcp: false, ..auto_rules };
    let publish = vec![spec(&format!("127.0.0.1::{web}"))];
    let ports = Ports { publish, auto: Some(Auto::AllV4), auto_rules: rules, ..Ports::default() };
    drop((keeper, gateway));
    let (mut keeper, mut gateway) = started(&ports);
    keeper.follow(listening(&[web, except], &[]));
    gateway.serve(&mut keeper, never).unwrap();
    let held: BTreeSet<Inner> = keeper.held.values().filter(|held| held.is_auto()).map(Held::inner).collect();
    assert_eq!(held, listening(&[], &[web]));
}

#[test]
fn what_is_reached_is_not_published_and_is_again_when_it_is_no_longer() {
    let (mut keeper, mut gateway) =
        started(&Ports { publish: vec![following([127, 77, 8, 5], 9000)], ..Ports::default() });
    keeper.follow(listening(&[7000], &[]));
    gateway.serve(&mut keeper, never).unwrap();
    assert_eq!(hosts(&keeper).len(), 1);
    keeper.set_reached(listening(&[7000, 7001], &[]));
    gateway.serve(&mut keeper, never).unwrap();
    assert!(keeper.is_empty());
    keeper.follow(listening(&[7000, 7001], &[]));
    assert!(keeper.is_empty());
    keeper.set_reached(listening(&[7001], &[]));
    gateway.serve(&mut keeper, never).unwrap();
    assert_eq!(hosts(&keeper), [([127, 77, 8, 5], 9000).into()]);
}

#[test]
fn listeners_inside_are_closed_by_the_gateway_in_their_turn() {
    let (mut keeper, mut gateway) = keeper(&[], None);
    let reached: Vec<Reached> = (1..=3000)
        .map(|port| Reached { host_port: port, protocol: Protocol::Tcp, inside: ([127, 0, 0, 1], port).into() })
        .collect();
    keeper.unreach(reached.clone());
    let mut unreached = Vec::new();
    loop {
        let before = gateway.heard.len();
        let outcome = keeper
            .advance(|message, fds| {
                assert!(serde_json::to_vec(message).unwrap().len() <= MAX_MESSAGE);
                gateway.take(message, fds);
                Ok(())
            })
            .unwrap();
        assert!(!outcome.changed);
        unreached.extend(outcome.unreached);
        let Some(ToGateway::Unreach { request, .. }) = gateway.heard.get(before) else { break };
        keeper.handle_done(*request, None);
    }
    assert!(unreached == reached && gateway.heard.len() > 1);
    // A gateway that dies has closed them.
    keeper.unreach(reached.clone());
    keeper.begin(false);
    let outcome = keeper.advance(|_, _| Ok(())).unwrap();
    assert_eq!(outcome.unreached, reached);
    // So has one that is given up.
    keeper.unreach(reached[..1].to_vec());
    keeper.release();
    keeper.begin(false);
    assert_eq!(keeper.advance(|_, _| Ok(())).unwrap().unreached, reached[..1]);
}

#[test]
fn more_listeners_than_there_can_be_descriptors_for_are_refused_with_the_limit() {
    assert_eq!(check_limit(0), Ok(()));
    let failure = check_limit(1 << 40).unwrap_err();
    assert_eq!(failure.code, "exhausted");
    assert!(failure.message.contains("1099511627776 descriptors") && failure.message.contains("ulimit"), "{failure}");
}
