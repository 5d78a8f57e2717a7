//! UDP flows that a client of a published port began, through the link.
//!
//! # Theory of operation
//!
//! The service inside sees its client's own address and port. A flow is known by two names:
//!
//! - outside, by the published socket, the host's address that was written to and the client ([`ReplyPath`] and an
//!   address): how a client's datagram finds its flow;
//! - inside, by the sandbox's address and port and the client's as the sandbox sees it: how the sandbox's datagrams
//!   find back. They are looked up before any other flow, and leave through the published socket.
//!
//! Where an address cannot be the client's inside (the sandbox has not that family; it is the sandbox's own, the
//! gateway's, that of DNS, nobody's; or the same client came by another socket already), the gateway's address stands
//! for it, with the client's port if that is free, and one of its own for each client otherwise. While a flow lives, a client's address that belongs to the segment
//! is answered for (ARP, neighbor discovery).
//!
//! Timers and limits are those of [`udp`](super::udp): idle flows end, each sandbox has a bounded number, the one
//! idle longest makes room. When a published socket is closed its flows end ([`Inbound::end_where`]).
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::describe::Description;
use super::flows::{FlowTable, Idle};
use super::kept::{can_be_a_client, stand_in};
use super::udp::{MOST_FLOWS, send_to_sandbox};
use super::{
    Segment,
    counters::DropReason,
    link::{Link, Peer, PortId, ReplyPath, Service},
};
use crate::plan::Endpoint;

/// The ports that the gateway's address has where it stands for clients whose own is taken: the dynamic ones (RFC 6335, 6), which are
/// more than a sandbox may have flows.
const FIRST_PORT: u16 = 49_152;

/// As the sandbox sees it: its port on the switch, its own side, the client's side.
pub(super) type Key = (PortId, SocketAddr, SocketAddr);

/// As the host sees it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Origin {
    path: ReplyPath,
    client: SocketAddr,
}

struct Flow {
    key: Key,
    origin: Origin,
    peer: Peer,
    /// The client's address is its own inside too.
    kept: bool,
}

/// Datagrams of a client.
pub(super) struct Arrival<'a> {
    pub port: PortId,
    pub client: SocketAddr,
    pub service: Service,
    pub payload: &'a [u8],
    pub segment: u16,
    pub tos: u8,
    pub path: ReplyPath,
}

/// All flows that began outside.
pub(super) struct Inbound {
    flows: FlowTable<Key, Flow>,
    by_origin: HashMap<Origin, u32>,
    most_flows: usize,
    next_port: u16,
}

impl Inbound {
    /// An empty table; flows expire after `timeout` without traffic.
    pub fn new(timeout: Duration) -> Inbound {
        Inbound {
            flows: FlowTable::new(timeout, timeout),
            by_origin: HashMap::new(),
            most_flows: MOST_FLOWS,
            next_port: FIRST_PORT,
        }
    }

    /// Flows now.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// How many places the table has, taken or not.
    pub fn places(&self) -> usize {
        self.flows.places()
    }

    /// The flow at a place, for people.
    pub fn describe(&self, place: usize) -> Option<Description> {
        let (&(port, inside, outside), _) = self.flows.look(place)?;
        Some(Description { port, protocol: "udp", published: true, inside, outside: Some(outside), state: "open" })
    }

    /// A client sent a datagram, or with `segment` not 0 several of that size.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        segment: &mut Segment,
        arrival: &Arrival<'_>,
        link: &mut impl Link,
    ) -> Result<(), DropReason> {
        if !segment.network.behaviour.services.udp {
            return Err(DropReason::Disabled);
        }
        if !link.has_room(arrival.port) {
            return Err(DropReason::NoRoom);
        }
        let origin = Origin { path: arrival.path, client: arrival.client };
        let index = match self.by_origin.get(&origin) {
            Some(index) => *index,
            None => self.begin(now, segment, arrival, origin)?,
        };
        let Some((_, flow)) = self.flows.placed(index) else { return Err(DropReason::NoFlow) };
        let (peer, (_, to, from)) = (flow.peer, flow.key);
        self.flows.touch(now, index, Idle::Long);
        send_to_sandbox(segment, peer, from, to, arrival.payload, arrival.segment, arrival.tos, link);
        Ok(())
    }

    /// A new flow, for which another may have to go.
    fn begin(
        &mut self,
        now: Instant,
        segment: &mut Segment,
        arrival: &Arrival<'_>,
        origin: Origin,
    ) -> Result<u32, DropReason> {
        let port = arrival.port;
        let endpoint = segment.ports.get(&port).ok_or(DropReason::NoFlow)?;
        // Nobody can answer port 0, and no socket has it.
        if origin.client.port() == 0 {
            return Err(DropReason::Malformed);
        }
        let peer = Peer { port, mac: endpoint.mac };
        let (key, kept) = self.name(segment, endpoint, arrival).ok_or(DropReason::Family)?;
        if self.flows.count(port) >= self.most_flows
            && let Some(oldest) = self.flows.oldest(port)
        {
            self.end(oldest, segment);
        }
        if kept {
            segment.keep_address(port, key.2.ip());
        }
        let index = self.flows.insert(now, port, key, Flow { key, origin, peer, kept }, Idle::Long);
        self.by_origin.insert(origin, index);
        segment.counters.udp_flows += 1;
        Ok(index)
    }

    /// What the two sides are called inside, and whether the client keeps its address.
    fn name(&mut self, segment: &Segment, endpoint: &Endpoint, arrival: &Arrival<'_>) -> Option<(Key, bool)> {
        let client = SocketAddr::new(arrival.client.ip(), arrival.client.port()); // without a scope
        let families = [client.is_ipv4(), !client.is_ipv4()];
        let sandbox = |v4| arrival.service.through_link(own_address(segment, endpoint, v4), v4);
        if let Some(sandbox) = sandbox(client.is_ipv4())
            && can_be_a_client(segment, client.ip())
        {
            let key = (arrival.port, sandbox, client);
            if self.flows.find(&key).is_none() {
                return Some((key, true));
            }
        }
        let sandbox = families.into_iter().find_map(sandbox)?;
        let gateway = stand_in(segment, client.ip(), sandbox.is_ipv4())?;
        let free = |table: &Inbound, port| {
            let key = (arrival.port, sandbox, SocketAddr::new(gateway, port));
            table.flows.find(&key).is_none().then_some((key, false))
        };
        free(self, client.port()).or_else(|| {
            (FIRST_PORT..=u16::MAX).find_map(|_| {
                let port = self.next_port;
                self.next_port = port.checked_add(1).unwrap_or(FIRST_PORT);
                free(self, port)
            })
        })
    }

    /// Where a datagram of the sandbox leads, if it goes to a client. A service that is bound to no address may answer from
    /// another than was written to: a link-local client from the link-local one (RFC 6724, 5, rule 2).
    pub fn answer(
        &mut self,
        now: Instant,
        segment: &Segment,
        peer: Peer,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Option<Answer> {
        let by = |from| self.flows.find(&(peer.port, from, to));
        let index = by(from).or_else(|| {
            let own = own_address(segment, segment.ports.get(&peer.port)?, from.is_ipv4())?;
            (own != from.ip()).then(|| by(SocketAddr::new(own, from.port()))).flatten()
        })?;
        let (_, flow) = self.flows.placed(index)?;
        flow.peer = peer;
        let answer = Answer { path: flow.origin.path, client: flow.origin.client };
        self.flows.touch(now, index, Idle::Long);
        Some(answer)
    }

    fn end(&mut self, index: u32, segment: &mut Segment) {
        let Some((_, flow)) = self.flows.placed(index) else { return };
        let (origin, (port, _, client), kept) = (flow.origin, flow.key, flow.kept);
        self.flows.remove(index);
        self.by_origin.remove(&origin);
        if kept {
            segment.forget_address(port, client.ip());
        }
    }

    /// These ways back are closed: their flows end.
    pub fn end_where(&mut self, segment: &mut Segment, closed: impl Fn(ReplyPath) -> bool) {
        let ended: Vec<u32> = self.by_origin.iter().filter(|(o, _)| closed(o.path)).map(|(_, index)| *index).collect();
        ended.into_iter().for_each(|index| self.end(index, segment));
    }

    /// The sandbox has gone.
    pub fn remove_port(&mut self, port: PortId, segment: &mut Segment) {
        while let Some(index) = self.flows.oldest(port) {
            self.end(index, segment);
        }
        self.flows.forget_port(port);
    }

    /// When the next flow may expire.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.flows.next_timeout()
    }

    /// Expire flows.
    pub fn handle_timeout(&mut self, now: Instant, segment: &mut Segment) {
        while let Some(index) = self.flows.expired(now) {
            self.end(index, segment);
        }
    }
}

/// The way to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub path: ReplyPath,
    pub client: SocketAddr,
}

/// The sandbox's address of a family, if it has that family.
fn own_address(segment: &Segment, endpoint: &Endpoint, v4: bool) -> Option<IpAddr> {
    if v4 {
        segment.network.v4.and(endpoint.v4).map(IpAddr::V4)
    } else {
        segment.network.v6.and(endpoint.v6).map(IpAddr::V6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::describe::Table;
    use crate::gateway::emit::testing::{PEER, SANDBOX_V4, SANDBOX_V6, network};
    use crate::gateway::link::{Gso, HostError, Offload};
    use crate::gateway::testing::{Test, udp_frame};
    use crate::plan::{HostView, Network};

    const PATH: ReplyPath = ReplyPath { socket: 3, generation: 1, local: None };
    const SERVICE: &str = "10.0.2.100:53";
    const SERVICE6: &str = "[fd00::100]:53";

    fn at(address: &str) -> SocketAddr {
        address.parse().unwrap()
    }

    fn arrive(test: &mut Test, path: ReplyPath, client: &str, payload: &[u8], segment: u16) {
        let now = test.now;
        test.gateway.handle_published_datagram(
            now,
            PEER.port,
            at(client),
            53,
            payload,
            segment,
            0xb8,
            path,
            &mut test.link,
        );
    }

    #[test]
    fn the_service_sees_the_clients_own_address_and_its_answer_leaves_by_the_published_socket() {
        for (client, service) in [("192.0.2.9:7000", SERVICE), ("[2001:db8::9]:7000", SERVICE6)] {
            let path = ReplyPath { local: Some(at("198.51.100.7:1").ip()), ..PATH };
            let mut test = Test::new();
            arrive(&mut test, path, client, b"question", 0);
            assert_eq!(test.link.one()[..6], PEER.mac.0);
            assert_eq!(test.received(), (at(client), at(service), b"question".to_vec()));
            test.udp(service, client, b"answer");
            let [(to_path, to, sent, tos)] = &test.host.published[..] else { panic!() };
            assert_eq!((*to_path, *to, &sent[..], *tos), (path, at(client), &b"answer"[..], 0));
            assert!(test.host.udp.is_empty());
            assert_eq!((test.gateway.counters().udp_flows, test.gateway.flows().1), (1, 1));
            let described = (0..test.gateway.places(Table::Udp)).find_map(|at| test.gateway.describe(Table::Udp, at));
            let described = described.unwrap();
            assert!(described.published && described.port == PEER.port);
            assert_eq!((described.inside, described.outside), (at(service), Some(at(client))));
            // Other ports of the client, and other ports of the sandbox, are flows of their own.
            let stranger = SocketAddr::new(at(client).ip(), 7001).to_string();
            test.udp(service, &stranger, b"x");
            let other = SocketAddr::new(at(service).ip(), 54).to_string();
            test.udp(&other, client, b"x");
            assert_eq!((test.host.published.len(), test.host.udp.len()), (1, 2));
        }
    }

    #[test]
    fn an_idle_flow_ends_and_either_side_keeps_it() {
        let network = Network { v6: None, ..network(1500) };
        let mut test = Test::with(network, HostView::default());
        arrive(&mut test, PATH, "192.0.2.9:7000", b"x", 0);
        test.pass(Duration::from_secs(179));
        test.udp(SERVICE, "192.0.2.9:7000", b"y");
        test.pass(Duration::from_secs(179));
        arrive(&mut test, PATH, "192.0.2.9:7000", b"x", 0);
        test.pass(Duration::from_secs(179));
        assert_eq!(test.gateway.flows().1, 1);
        test.pass(Duration::from_secs(1));
        assert_eq!((test.gateway.flows().1, test.gateway.next_timeout()), (0, None));
        test.udp(SERVICE, "192.0.2.9:7000", b"z");
        assert_eq!((test.host.published.len(), test.host.udp.len()), (1, 1), "now it is the sandbox's own");
    }

    #[test]
    fn addresses_that_cannot_be_a_clients_are_stood_for_by_the_gateway() {
        for client in ["10.0.2.100:9", "10.0.2.2:9", "10.0.2.3:9", "10.0.2.255:9", "127.0.0.1:9", "0.0.0.0:9"] {
            let mut test = Test::new();
            arrive(&mut test, PATH, client, b"x", 0);
            let (from, to, _) = test.received();
            assert_eq!((from.ip(), to), (at("10.0.2.2:0").ip(), at(SERVICE)), "{client}");
            test.udp(SERVICE, &from.to_string(), b"y");
            assert_eq!(test.host.published[0].1, at(client));
        }
        for client in ["[fd00::100]:9", "[fd00::2]:9", "[fd00::3]:9", "[::1]:9", "[fe80::42:aff:fe00:264]:9"] {
            let mut test = Test::new();
            arrive(&mut test, PATH, client, b"x", 0);
            let (from, to, _) = test.received();
            assert_eq!((from.ip(), to), (at("[fd00::2]:0").ip(), at(SERVICE6)), "{client}");
        }
        let mut test = Test::with(Network { v6: None, ..network(1500) }, HostView::default());
        arrive(&mut test, PATH, "[2001:db8::9]:9", b"x", 0);
        assert_eq!(test.received().0, at("10.0.2.2:9"), "the client's own port");
        arrive(&mut test, PATH, "[2001:db8::a]:9", b"x", 0);
        let second = test.received().0;
        assert_eq!(second, SocketAddr::new(at("10.0.2.2:0").ip(), FIRST_PORT), "a port for each client");
        test.udp(SERVICE, &second.to_string(), b"y");
        assert_eq!(test.host.published[0].1, at("[2001:db8::a]:9"));
    }

    #[test]
    fn a_client_on_the_sandboxs_own_link_is_answered_for_while_its_flow_lives() {
        for client in ["10.0.2.50:9", "[fd00::50]:9", "[fe80::50]:9"] {
            let mut test = Test::new();
            let kept = |test: &Test| test.gateway.segment.kept.contains(PEER.port, at(client).ip());
            arrive(&mut test, PATH, client, b"x", 0);
            assert_eq!((test.received().0, kept(&test)), (at(client), true));
            test.udp(if at(client).is_ipv4() { SERVICE } else { SERVICE6 }, client, b"y");
            assert_eq!(test.host.published[0].1, at(client), "not refused as nobody's");
            // The kernel's choice, where the service is bound to no address.
            let another = if at(client).is_ipv4() { "10.0.2.101:53" } else { "[fe80::42:aff:fe00:264]:53" };
            test.udp(another, client, b"z");
            assert_eq!((test.host.published.len(), test.host.udp.len()), (2, 0));
            test.pass(Duration::from_secs(180));
            assert!(!kept(&test));
        }
    }

    #[test]
    fn the_same_client_by_two_sockets_is_two_clients() {
        let other = ReplyPath { socket: 4, ..PATH };
        let mut test = Test::new();
        arrive(&mut test, PATH, "192.0.2.9:9", b"x", 0);
        let first = test.received().0;
        arrive(&mut test, other, "192.0.2.9:9", b"x", 0);
        let second = test.received().0;
        for (from, path) in [(first, PATH), (second, other)] {
            test.udp(SERVICE, &from.to_string(), b"y");
            assert_eq!(test.host.published.last().map(|sent| (sent.0, sent.1)), Some((path, at("192.0.2.9:9"))));
        }
    }

    #[test]
    fn a_full_link_a_sandbox_that_left_and_port_0_cost_the_datagram() {
        let mut test = Test::new();
        arrive(&mut test, PATH, "192.0.2.9:0", b"x", 0);
        test.link.full = true;
        arrive(&mut test, PATH, "192.0.2.9:9", &[0; 2001], 1000);
        test.link.full = false;
        test.gateway.remove_port(PEER.port, &mut test.host);
        arrive(&mut test, PATH, "192.0.2.9:9", b"x", 0);
        let counted =
            [DropReason::Malformed, DropReason::NoRoom, DropReason::NoFlow].map(|reason| test.dropped(reason));
        assert_eq!((counted, test.link.frames.len(), test.gateway.flows().1), ([1, 3, 1], 0, 0));
    }

    #[test]
    fn at_the_bound_the_flow_idle_longest_goes() {
        let mut test = Test::new();
        test.gateway.udp.inbound.most_flows = 2;
        for client in ["192.0.2.1:9", "192.0.2.2:9", "192.0.2.1:9", "192.0.2.3:9"] {
            arrive(&mut test, PATH, client, b"x", 0);
        }
        assert_eq!(test.gateway.flows().1, 2);
        for client in ["192.0.2.1:9", "192.0.2.2:9", "192.0.2.3:9"] {
            test.udp(SERVICE, client, b"y");
        }
        assert_eq!((test.host.published.len(), test.host.udp.len()), (2, 1));
        assert_eq!(test.host.udp[0].to, at("192.0.2.2:9"));
    }

    #[test]
    fn flows_end_with_their_socket_and_with_their_sandbox() {
        let other = ReplyPath { socket: 4, ..PATH };
        let mut test = Test::new();
        arrive(&mut test, PATH, "192.0.2.1:9", b"x", 0);
        arrive(&mut test, other, "192.0.2.2:9", b"x", 0);
        test.gateway.end_published_udp(|path| path.socket == PATH.socket);
        assert_eq!(test.gateway.flows().1, 1);
        arrive(&mut test, PATH, "192.0.2.1:9", b"x", 0);
        test.gateway.remove_port(PEER.port, &mut test.host);
        assert_eq!((test.gateway.flows().1, test.gateway.udp.inbound.by_origin.len()), (0, 0));
    }

    #[test]
    fn super_segments_pass_both_ways_whole() {
        let payload = [7; 5 * 1000 + 1];
        let mut test = Test::new();
        test.link.udp_super_segments = true;
        arrive(&mut test, PATH, "192.0.2.9:9", &payload, 1000);
        let (_, offload, frame) = &test.link.frames[0];
        assert_eq!((test.link.frames.len(), offload.gso, offload.gso_size), (1, Gso::UdpL4, 1000));
        assert_eq!(frame[15], 0xb8, "the type of service goes along");
        let offload = Offload { needs_csum: true, gso: Gso::UdpL4, gso_size: 1000, ..Offload::default() };
        test.frame(offload, &udp_frame(SERVICE, "192.0.2.9:9", 8, &payload));
        assert_eq!(test.host.published[0].2.len(), payload.len());
    }

    #[test]
    fn a_spent_hop_limit_and_the_hosts_refusal_are_told() {
        let mut test = Test::new();
        arrive(&mut test, PATH, "192.0.2.9:9", b"x", 0);
        test.link.frames.clear();
        test.frame(Offload::default(), &udp_frame(SERVICE, "192.0.2.9:9", 1, b"y"));
        assert_eq!(test.error().1, 11);
        test.host.fail = [HostError::NetUnreachable].into();
        test.udp(SERVICE, "192.0.2.9:9", b"y");
        let (_, kind, code, ..) = test.error();
        assert_eq!((kind, code, test.dropped(DropReason::HostError)), (3, 0, 1));
        test.host.fail = [HostError::Exhausted].into();
        test.udp(SERVICE, "192.0.2.9:9", b"y");
        assert_eq!((test.dropped(DropReason::NoRoom), test.link.frames.len()), (1, 0));
    }

    #[test]
    fn a_scope_stays_outside() {
        let mut test = Test::new();
        let client = SocketAddr::V6(std::net::SocketAddrV6::new("fe80::9".parse().unwrap(), 9, 0, 2));
        let now = test.now;
        test.gateway.handle_published_datagram(now, PEER.port, client, 53, b"x", 0, 0, PATH, &mut test.link);
        assert_eq!(test.received().0, at("[fe80::9]:9"));
        test.udp(SERVICE6, "[fe80::9]:9", b"y");
        assert_eq!(test.host.published[0].1, client);
        let own = (SANDBOX_V4, SANDBOX_V6);
        assert_eq!((at(SERVICE).ip(), at(SERVICE6).ip()), (own.0.into(), own.1.into()));
    }
}
