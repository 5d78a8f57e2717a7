//! Definitions and addresses, with directories of the test's own.
use super::*;
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory that goes away with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tapline-networks-{}-{n}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&path).unwrap();
        Scratch(path)
    }

    fn states(&self) -> StateDir {
        self.states_of(42)
    }

    /// The state directory as another host network namespace has it.
    fn states_of(&self, netns: u64) -> StateDir {
        StateDir::at(Some(self.0.clone()), self.0.join("fallback"), netns).unwrap()
    }

    fn dir(&self) -> PathBuf {
        self.0.join("data/networks")
    }

    fn networks(&self, routes: &[&str]) -> Networks {
        let routes = routes.iter().map(|route| route.parse().unwrap()).collect();
        Networks::at(Some(self.dir()), self.states(), Some(routes))
    }

    fn register(&self, n: u32) -> Registration {
        self.states().register(&format!("{n:012x}"), &format!("box-{n}")).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn v4(name: &str, subnet: &str) -> Draft {
    let part = Ipv4Part::new(subnet.parse().unwrap(), None, None).unwrap();
    Draft { v4: Wanted::This(part), v6: Wanted::No, ..Draft::new(name) }
}

fn join(network: &str) -> Join {
    Join { network: network.into(), ..Join::default() }
}

fn text<T: fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_network_is_there_until_it_is_removed() {
    let scratch = Scratch::new();
    let networks = scratch.networks(&[]);
    let (made, warnings) = networks.create(&Draft::new("db")).unwrap();
    assert_eq!((made.v4.unwrap().subnet.to_string(), &warnings[..]), ("10.176.0.0/20".into(), &[][..]));
    assert_eq!(made.v4.unwrap().gateway.to_string(), "10.176.0.1");
    assert!(made.v6.unwrap().subnet.to_string().starts_with("fd"));
    let again = scratch.networks(&[]);
    assert_eq!(again.list().unwrap().definitions, std::slice::from_ref(&made));
    for name in ["db", &made.id, &made.id[..5]] {
        assert_eq!(again.find(name).unwrap(), made);
    }
    assert!(text(networks.create(&Draft::new("db"))).contains("there is a network `db` already"));
    assert!(text(networks.create(&Draft::new("DB"))).contains("already"));
    assert_eq!(networks.remove("db").unwrap(), "db");
    assert!(text(networks.remove("db")).contains("there is no network `db`"));
    assert!(text(networks.find("db")).contains("tapline network ls"));
    assert!(networks.list().unwrap().definitions.is_empty());
    assert_eq!(fs::read_dir(scratch.dir()).unwrap().count(), 0);
}

#[test]
fn chosen_subnets_overlap_neither_networks_nor_routes_of_the_host() {
    let scratch = Scratch::new();
    let networks = scratch.networks(&["10.176.16.0/24", "fd00::/8"]);
    let draft = |name| Draft { v6: Wanted::No, ..Draft::new(name) };
    assert_eq!(networks.create(&draft("a")).unwrap().0.v4.unwrap().subnet.to_string(), "10.176.0.0/20".to_string());
    assert_eq!(networks.create(&draft("b")).unwrap().0.v4.unwrap().subnet.to_string(), "10.176.32.0/20".to_string());
    assert!(text(networks.create(&Draft::new("c"))).starts_with("no IPv6 subnet is free"));
}

#[test]
fn a_subnet_that_overlaps_a_network_is_refused_and_one_that_overlaps_a_route_is_warned_of() {
    let scratch = Scratch::new();
    let networks = scratch.networks(&["192.0.2.0/24"]);
    networks.create(&v4("db", "10.9.0.0/24")).unwrap();
    let error = text(networks.create(&v4("web", "10.9.0.0/16")));
    assert_eq!(
        error,
        "the subnet 10.9.0.0/16 overlaps 10.9.0.0/24 of the network `db`: choose another, or leave it out"
    );
    let (_, warnings) = networks.create(&v4("web", "192.0.2.128/25")).unwrap();
    assert!(warnings[0].contains("192.0.2.128/25 overlaps the host's route to 192.0.2.0/24"), "{warnings:?}");
}

#[test]
fn a_broken_file_is_named_and_is_no_obstacle_for_others() {
    let scratch = Scratch::new();
    let networks = scratch.networks(&[]);
    networks.create(&v4("good", "10.9.0.0/24")).unwrap();
    fs::write(scratch.dir().join("bad.toml"), "mtu = 1500\n[ipv4]\nsubnet = 7\n").unwrap();
    fs::write(scratch.dir().join("host.toml"), "[ipv4]\nsubnet = \"10.8.0.0/24\"\n").unwrap();
    let listing = networks.list().unwrap();
    assert_eq!(listing.definitions.len(), 1);
    let mut broken: Vec<String> = listing.broken.iter().map(|error| error.to_string()).collect();
    broken.sort();
    assert!(broken[0].contains("bad.toml:3: `subnet` must be"), "{broken:?}");
    assert!(broken[1].contains("host.toml:1: ") && broken[1].ends_with("rename the file"), "{broken:?}");
    let (_, warnings) = networks.create(&v4("more", "10.10.0.0/24")).unwrap();
    assert_eq!(warnings.len(), 2);
    assert!(text(networks.find("bad")).contains("bad.toml:3: "));
    assert!(networks.take(&mut scratch.register(1), &join("good")).is_ok());
    assert!(text(networks.take(&mut scratch.register(2), &join("bad"))).contains("bad.toml:3: "));
    networks.remove("bad").unwrap();
}

#[test]
fn addresses_are_handed_out_lowest_first_and_given_back() {
    let scratch = Scratch::new();
    let networks = scratch.networks(&[]);
    let (made, _) = networks.create(&Draft::new("db")).unwrap();
    let prefix = made.v6.unwrap().subnet.network();
    let mut held: Vec<Registration> = (0..4).map(|n| scratch.register(n)).collect();
    let places: Vec<Place> = held.iter_mut().map(|who| networks.take(who, &join("db")).unwrap()).collect();
    for (n, place) in places.iter().enumerate() {
        let v4 = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 176, 0, 2)) + n as u32);
        assert_eq!((place.v4, place.mac), (Some(v4), MacAddr::from_ipv4(v4)));
        assert_eq!(place.v6, Some(Ipv6Addr::from(u128::from(prefix) + 2 + n as u128)));
        assert_eq!(place.network, made.network());
    }
    networks.give_back(&mut held[1], "db");
    assert_eq!(networks.take(&mut held[1], &join(&made.id)).unwrap(), places[1]);
    // However it ends.
    held.remove(0);
    assert_eq!(networks.take(&mut scratch.register(9), &join("db")).unwrap(), places[0]);
}

#[test]
fn what_cannot_be_had_is_refused_with_the_reason_and_takes_nothing() {
    let scratch = Scratch::new();
    let networks = scratch.networks(&[]);
    networks.create(&v4("db", "10.9.0.0/29")).unwrap();
    let (mut one, mut two) = (scratch.register(1), scratch.register(2));
    let ask = |v4: &str| Join { v4: Some(v4.parse().unwrap()), ..join("db") };
    let mac = |mac: [u8; 6]| Join { mac: Some(MacAddr(mac)), ..join("db") };
    assert_eq!(networks.take(&mut one, &ask("10.9.0.6")).unwrap().v4, Some([10, 9, 0, 6].into()));
    let twice = text(networks.take(&mut one, &join("db")));
    assert_eq!(twice, "the sandbox `box-1` is on the network `db` already: name a network once");
    for (ask, why) in [
        (ask("10.9.0.6"), "10.9.0.6 on the network `db` is taken by the sandbox `box-1` (000000000001)"),
        (ask("10.8.0.6"), "10.8.0.6 cannot be had on the network `db` (10.9.0.0/29), it is outside"),
        (ask("10.9.0.1"), "it is the gateway's"),
        (ask("10.9.0.0"), "it is the network's own address"),
        (ask("10.9.0.7"), "it is the broadcast address"),
        (mac([2, 0x42, 10, 9, 0, 6]), "02:42:0a:09:00:06 on the network `db` is taken by the sandbox `box-1`"),
        (mac([2, 0x42, 10, 9, 0, 1]), "it is the gateway's"),
        (mac([3, 0, 0, 0, 0, 1]), "is a group's Ethernet address"),
        (Join { v6: Some(Ipv6Addr::LOCALHOST), ..join("db") }, "the network `db` has no IPv6"),
        (join("nobody"), "there is no network `nobody`"),
        (join("host"), "means something else"),
    ] {
        let error = text(networks.take(&mut two, &ask));
        assert!(error.contains(why), "{ask:?}: {error}");
        assert!(!two.has_claims_in("networks/db"));
    }
    // An address made of another's Ethernet address is passed over.
    assert!(networks.take(&mut two, &mac([2, 0x42, 10, 9, 0, 3])).is_ok());
    let mut more: Vec<Registration> = (3..6).map(|n| scratch.register(n)).collect();
    let places = more.iter_mut().map(|who| networks.take(who, &join("db")).map(|place| place.v4.unwrap().octets()[3]));
    let places: Vec<Result<u8>> = places.collect();
    assert!(matches!(places[..], [Ok(4), Ok(5), Err(NetworkError::Exhausted { .. })]), "{places:?}");
    assert!(text(networks.take(&mut more[2], &join("db"))).contains("no free address left in 10.9.0.0/29"));
}

#[test]
fn an_ip_range_bounds_what_is_chosen_and_not_what_is_asked_for() {
    let scratch = Scratch::new();
    let networks = scratch.networks(&[]);
    let range = Some("10.9.0.4/31".parse().unwrap());
    let part = Ipv4Part::new("10.9.0.0/24".parse().unwrap(), None, range).unwrap();
    networks.create(&Draft { v4: Wanted::This(part), v6: Wanted::No, ..Draft::new("db") }).unwrap();
    let mut held: Vec<Registration> = (0..4).map(|n| scratch.register(n)).collect();
    assert_eq!(networks.take(&mut held[0], &join("db")).unwrap().v4, Some([10, 9, 0, 4].into()));
    assert_eq!(networks.take(&mut held[1], &join("db")).unwrap().v4, Some([10, 9, 0, 5].into()));
    assert!(text(networks.take(&mut held[2], &join("db"))).contains("10.9.0.4/31"));
    let asked = Join { v4: Some([10, 9, 0, 200].into()), ..join("db") };
    assert!(networks.take(&mut held[3], &asked).is_ok());
}

#[test]
fn a_network_of_ipv6_alone_makes_ethernet_addresses_of_it() {
    let scratch = Scratch::new();
    let networks = scratch.networks(&[]);
    let part = Ipv6Part::new("fd00:9::/64".parse().unwrap(), None, None).unwrap();
    networks.create(&Draft { v4: Wanted::No, v6: Wanted::This(part), ..Draft::new("six") }).unwrap();
    let (mut one, mut two) = (scratch.register(1), scratch.register(2));
    let ask = Join { v6: Some("fd00:9::1:0:2".parse().unwrap()), ..join("six") };
    assert_eq!(networks.take(&mut one, &ask).unwrap().mac.to_string(), "02:42:00:00:00:02");
    // fd00:9::2 would have the same.
    let place = networks.take(&mut two, &join("six")).unwrap();
    assert_eq!((place.v4, place.v6), (None, Some("fd00:9::3".parse().unwrap())));
}

#[test]
fn a_network_in_use_is_not_removed_and_by_whom_is_said() {
    let scratch = Scratch::new();
    let networks = scratch.networks(&[]);
    networks.create(&v4("db", "10.9.0.0/24")).unwrap();
    networks.create(&v4("idle", "10.10.0.0/24")).unwrap();
    let mut held: Vec<Registration> = (0..7).map(|n| scratch.register(n)).collect();
    for who in &mut held {
        networks.take(who, &join("db")).unwrap();
    }
    let error = text(networks.remove("db"));
    assert!(error.contains("in use by `box-0`, `box-1`, `box-2`, `box-3`, `box-4` and 2 others: "), "{error}");
    // From another host network namespace, too.
    let other = Networks::at(Some(scratch.dir()), scratch.states_of(43), Some(Vec::new()));
    assert!(matches!(other.remove("db"), Err(NetworkError::InUse { .. })));
    assert_eq!(other.prune().unwrap().0, ["idle"]);
    drop(held);
    assert_eq!(networks.remove("db").unwrap(), "db");
}

#[test]
fn removing_and_joining_at_once_leave_no_sandbox_on_a_network_that_is_gone() {
    let scratch = Scratch::new();
    for round in 0..20 {
        scratch.networks(&[]).create(&v4("db", "10.9.0.0/24")).unwrap();
        let mut who = scratch.register(round);
        let (joined, removed) = std::thread::scope(|scope| {
            let remover = scope.spawn(|| scratch.networks(&[]).remove("db"));
            (scratch.networks(&[]).take(&mut who, &join("db")), remover.join().unwrap())
        });
        assert_ne!(joined.is_ok(), removed.is_ok(), "{joined:?} {removed:?}");
        drop(who);
        let _ = scratch.networks(&[]).remove("db");
    }
}

#[test]
fn bridge_is_made_on_first_use_and_stays() {
    let scratch = Scratch::new();
    let networks = scratch.networks(&[]);
    assert!(networks.list().unwrap().definitions.is_empty());
    let place = networks.take(&mut scratch.register(1), &join(BRIDGE)).unwrap();
    assert_eq!(place.network.name, BRIDGE);
    assert!(scratch.dir().join("bridge.toml").is_file());
    assert_eq!(networks.find(BRIDGE).unwrap().network(), place.network);
    assert!(matches!(networks.remove(BRIDGE), Err(NetworkError::Permanent)));
    assert_eq!(networks.prune().unwrap().0, [""; 0]);
    assert_eq!(networks.list().unwrap().definitions.len(), 1);
}

#[test]
fn without_a_place_for_definitions_bridge_is_this_namespaces_own() {
    let scratch = Scratch::new();
    fs::write(scratch.0.join("file"), "").unwrap();
    for dir in [None, Some(scratch.0.join("file/networks"))] {
        let networks = Networks::at(dir, scratch.states(), Some(Vec::new()));
        let place = networks.take(&mut scratch.register(1), &join(BRIDGE)).unwrap();
        assert_eq!(networks.list().unwrap().definitions[0].network(), place.network);
        assert!(networks.create(&Draft::new("db")).is_err());
    }
}

#[test]
fn who_has_no_home_is_on_the_bridge_that_the_others_are_on() {
    let scratch = Scratch::new();
    let homeless = || Networks::at(None, scratch.states(), Some(Vec::new()));
    let mut one = scratch.register(1);
    let first = scratch.networks(&[]).take(&mut one, &join(BRIDGE)).unwrap();
    let mut two = scratch.register(2);
    assert_eq!(homeless().take(&mut two, &join(BRIDGE)).unwrap().network, first.network);
    drop((one, two));
    // Nobody is on it: the homeless make their own, which nobody else is to find.
    let mut three = scratch.register(3);
    let own = homeless().take(&mut three, &join(BRIDGE)).unwrap();
    assert_ne!(own.network, first.network);
    let mut four = scratch.register(4);
    assert_eq!(scratch.networks(&[]).take(&mut four, &join(BRIDGE)).unwrap().network, own.network);
    drop((three, four));
    assert_eq!(scratch.networks(&[]).take(&mut scratch.register(5), &join(BRIDGE)).unwrap().network, first.network);
}

#[test]
fn an_edited_bridge_counts_from_when_nobody_is_on_it() {
    let scratch = Scratch::new();
    let networks = scratch.networks(&[]);
    let mut one = scratch.register(1);
    let first = networks.take(&mut one, &join(BRIDGE)).unwrap();
    fs::write(scratch.dir().join("bridge.toml"), "[ipv4]\nsubnet = \"10.9.0.0/24\"\n").unwrap();
    assert_eq!(networks.take(&mut scratch.register(2), &join(BRIDGE)).unwrap().network, first.network);
    assert_eq!(networks.list().unwrap().definitions[0].network(), first.network);
    drop(one);
    let edited = networks.take(&mut scratch.register(3), &join(BRIDGE)).unwrap();
    assert_eq!(edited.v4, Some([10, 9, 0, 2].into()));
    assert_eq!(networks.list().unwrap().definitions[0].network(), edited.network);
    fs::remove_file(scratch.dir().join("bridge.toml")).unwrap();
    networks.create(&v4(BRIDGE, "10.9.0.0/16")).unwrap();
    let error = text(networks.create(&v4(BRIDGE, "10.9.0.0/16")));
    assert!(error.contains("cannot be removed: to change it, edit ") && error.contains("bridge.toml"), "{error}");
}

#[test]
fn an_error_says_a_thing_once() {
    let scratch = Scratch::new();
    let networks = scratch.networks(&[]);
    networks.create(&v4("db", "10.9.0.0/24")).unwrap();
    fs::write(scratch.dir().join("db.toml"), "junk").unwrap();
    let error = anyhow::Error::from(networks.find("db").unwrap_err());
    assert_eq!(format!("{error:#}").matches("db.toml").count(), 1, "{error:#}");
}

#[test]
fn inside_a_sandbox_bridge_has_another_subnet_and_outside_it_stays() {
    let scratch = Scratch::new();
    let outer = scratch.networks(&[]).find(BRIDGE).unwrap();
    let subnet = outer.v4.unwrap().subnet.to_string();
    let inside = || Networks::at(Some(scratch.dir()), scratch.states_of(43), Some(vec![subnet.parse().unwrap()]));
    let inner = inside().find(BRIDGE).unwrap();
    assert!(!overlap(inner.v4.unwrap().subnet.into(), outer.v4.unwrap().subnet.into()));
    assert_eq!(inside().find(BRIDGE).unwrap(), inner);
    assert_eq!(inside().list().unwrap().definitions, std::slice::from_ref(&inner));
    let (other, _) = inside().create(&Draft::new("db")).unwrap();
    assert!(!overlap(inner.v4.unwrap().subnet.into(), other.v4.unwrap().subnet.into()));
    assert_eq!(scratch.networks(&[]).find(BRIDGE).unwrap(), outer);
}

#[test]
fn while_somebody_is_on_bridge_a_new_route_does_not_change_it() {
    let scratch = Scratch::new();
    let mut one = scratch.register(1);
    let first = scratch.networks(&[]).take(&mut one, &join(BRIDGE)).unwrap();
    let networks = scratch.networks(&["10.0.0.0/8"]);
    let second = networks.take(&mut scratch.register(2), &join(BRIDGE)).unwrap();
    assert_eq!(second.network, first.network);
    drop(one);
    let third = networks.take(&mut scratch.register(3), &join(BRIDGE)).unwrap();
    assert_eq!(third.network.v4.unwrap().subnet.to_string(), "172.16.0.0/20");
}

#[test]
fn two_hundred_and_fifty_have_places_and_one_that_is_given_back_is_the_next() {
    let scratch = Scratch::new();
    let networks = scratch.networks(&[]);
    let mut held = Vec::new();
    for n in 0..250 {
        let mut who = scratch.register(n);
        networks.take(&mut who, &join(BRIDGE)).unwrap();
        held.push(who);
    }
    assert_eq!(networks.users(BRIDGE).len(), 250);
    assert_eq!(scratch.states().list().unwrap().len(), 250);
    assert_eq!(scratch.states().find("box-249").unwrap().name, "box-249");
    let before = held.swap_remove(100);
    drop(before);
    let place = networks.take(&mut scratch.register(1000), &join(BRIDGE)).unwrap();
    assert_eq!(place.v4, Some([10, 176, 0, 102].into()));
}
