//! A worker's whole outside, as the gateway sees it.
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;

use mio::Registry;
use tokio::sync::mpsc;

use super::addr;
use super::ping::PingHost;
use super::published::Replies;
use super::tcp::TcpHost;
use super::udp::UdpHost;
use crate::datapath::commands::{EVENT_CAPACITY, Event, Turn};
use crate::datapath::tokens;
use crate::gateway::link::{Asker, Datagram, EchoId, Host, HostError, PortId, ReplyPath, TcpId, UdpId};
use crate::plan::{HostView, Network};

/// All host sockets of a worker, and the way to the forwarder.
pub struct HostSide {
    /// Connections.
    pub tcp: TcpHost,
    /// Datagrams.
    pub udp: UdpHost,
    /// Echo requests.
    pub ping: PingHost,
    /// Datagrams for clients of published ports.
    pub replies: Replies,
    events: mpsc::Sender<Event>,
    /// By port: what each of a sandbox's questions has while it waits for the control thread.
    turns: Vec<Turn>,
    /// How many of these may wait.
    most_waiting: usize,
    limits: Limits,
    /// The index of the interface that link-local destinations are on.
    interface: Option<u32>,
}

impl HostSide {
    /// Nothing open yet. `events` leads to the control thread.
    pub fn new(
        registry: &Registry,
        network: &Network,
        view: &HostView,
        events: mpsc::Sender<Event>,
    ) -> std::io::Result<HostSide> {
        let outbound = &network.outbound;
        let limits = Limits::of_this_process();
        let mut side = HostSide {
            tcp: TcpHost::new(registry.try_clone()?, outbound.clone(), tokens::tcp),
            udp: UdpHost::new(registry.try_clone()?, tokens::udp, outbound, limits.udp),
            ping: PingHost::new(registry.try_clone()?, tokens::ping, outbound, limits.ping),
            replies: Replies::default(),
            events,
            turns: Vec::new(),
            most_waiting: if network.sharing.is_some() { EVENT_CAPACITY / 8 } else { EVENT_CAPACITY },
            limits,
            interface: network.behaviour.mapping.as_ref().and_then(|mapping| mapping.interface),
        };
        if network.sharing.is_some() {
            (side.tcp.highest, side.udp.highest) = (limits.highest, limits.highest);
        }
        side.udp.last = Rc::clone(&side.tcp.last);
        side.handle_host_changed(view);
        Ok(side)
    }

    /// How many connections one of several sandboxes may have, so that the others have some too.
    pub fn most_connections(&self) -> usize {
        self.limits.tcp
    }

    /// A sandbox asks for a name: its turn, unless as many of its questions wait already as may.
    fn turn(&mut self, port: PortId) -> Option<Turn> {
        let index = port.0 as usize;
        if index >= self.turns.len() {
            self.turns.resize_with(index + 1, Turn::default);
        }
        self.turns.get(index).filter(|turn| Arc::strong_count(turn) <= self.most_waiting).cloned()
    }

    /// The host's addresses changed.
    pub fn handle_host_changed(&mut self, view: &HostView) {
        self.tcp.handle_host_changed(view);
        self.udp.handle_host_changed(view);
        self.ping.handle_host_changed(view);
    }
}

/// How many of the process's descriptors flows may have: datagrams and pings together, and the connections of one of
/// several sandboxes. There, too, the last descriptors are left for new supervisors, names and published ports.
#[derive(Clone, Copy)]
struct Limits {
    udp: usize,
    ping: usize,
    tcp: usize,
    highest: RawFd,
}

impl Limits {
    fn of_this_process() -> Limits {
        let soft = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).map_or(1024, |l| l.0);
        let files = usize::try_from(soft).unwrap_or(usize::MAX);
        Limits {
            udp: (files / 4).clamp(16, 8192),
            ping: (files / 16).clamp(4, 512),
            tcp: files / 8 * 5,
            highest: RawFd::try_from(files - files / 16).unwrap_or(RawFd::MAX),
        }
    }
}

impl Host for HostSide {
    fn tcp_connect(&mut self, flow: TcpId, to: SocketAddr, hop_limit: Option<u8>) {
        self.tcp.connect(flow, addr::scoped(to, self.interface), hop_limit);
    }

    fn tcp_connect_dns(&mut self, flow: TcpId, asker: Asker) {
        let handed_over = self.turn(asker.peer.port).and_then(|turn| {
            let stream = self.tcp.connect_pair(flow).ok()?;
            let event = Event::DnsStream { asker, stream, turn };
            self.events.try_send(event).ok()
        });
        if handed_over.is_none() {
            self.tcp.close(flow, true);
            self.tcp.push_outcome((flow, Err(HostError::Exhausted), None));
        }
    }

    fn tcp_keepalive(&mut self, flow: TcpId) {
        self.tcp.keepalive(flow);
    }

    fn tcp_close(&mut self, flow: TcpId, reset: bool) {
        self.tcp.close(flow, reset);
    }

    fn udp_send(&mut self, flow: UdpId, to: SocketAddr, datagram: Datagram<'_>) -> Result<(), HostError> {
        self.udp.send(flow, addr::scoped(to, self.interface), datagram)
    }

    fn published_send(&mut self, path: ReplyPath, client: SocketAddr, datagram: Datagram<'_>) -> Result<(), HostError> {
        self.replies.push(path, client, datagram)
    }

    fn udp_close(&mut self, flow: UdpId) {
        self.udp.close(flow);
    }

    fn echo_send(&mut self, flow: EchoId, to: IpAddr, sequence: u16, datagram: Datagram<'_>) -> Result<(), HostError> {
        self.ping.send(flow, addr::scoped(SocketAddr::new(to, 0), self.interface), sequence, datagram)
    }

    fn echo_close(&mut self, flow: EchoId) {
        self.ping.close(flow);
    }

    fn dns_query(&mut self, asker: Asker, message: &[u8]) -> bool {
        let Some(turn) = self.turn(asker.peer.port) else { return false };
        self.events.try_send(Event::DnsQuery { asker, message: message.to_vec(), turn }).is_ok()
    }

    fn descriptors_left(&self) -> usize {
        // The kernel gives the lowest number that is free (POSIX): when most are taken, the one that it gave last says how
        // many. One that has been closed is the next to be given.
        usize::try_from(self.tcp.highest.saturating_sub(self.tcp.last.get())).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::link::Peer;
    use crate::plan::{MacAddr, Sharing};

    #[test]
    fn who_asks_without_end_leaves_the_others_their_turns() {
        let poll = mio::Poll::new().unwrap();
        let (events, mut waiting) = mpsc::channel(EVENT_CAPACITY);
        let network = Network { sharing: Some(Sharing { internal: false, icc: true }), ..crate::fuzzing::network() };
        let mut side = HostSide::new(poll.registry(), &network, &HostView::default(), events).unwrap();
        let asker = |port: u32| {
            let peer = Peer { port: PortId(port), mac: MacAddr::default() };
            Asker { peer, from: "10.0.2.100:4000".parse().unwrap(), to: "10.0.2.3".parse().unwrap() }
        };
        let taken = (0..EVENT_CAPACITY).filter(|_| side.dns_query(asker(0), b"x")).count();
        assert_eq!(taken, EVENT_CAPACITY / 8);
        assert!(side.dns_query(asker(7), b"y"));
        drop(waiting.try_recv().unwrap());
        assert!(side.dns_query(asker(0), b"x"), "one was taken up");
        assert!(!side.dns_query(asker(0), b"x"));
    }
}
