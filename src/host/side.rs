//! A worker's whole outside, as the gateway sees it.
use std::net::{IpAddr, SocketAddr};

use mio::Registry;
use tokio::sync::mpsc;

use super::ping::PingHost;
use super::published::Replies;
use super::tcp::TcpHost;
use super::udp::UdpHost;
use crate::datapath::commands::Event;
use crate::datapath::tokens;
use crate::gateway::link::{Asker, Datagram, EchoId, Host, HostError, ReplyPath, TcpId, UdpId};
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
        };
        side.handle_host_changed(view);
        Ok(side)
    }

    /// The host's addresses changed.
    pub fn handle_host_changed(&mut self, view: &HostView) {
        self.udp.handle_host_changed(view);
        self.ping.handle_host_changed(view);
    }
}

/// How many of the process's descriptors datagram flows may have; connections may have the rest.
struct Limits {
    udp: usize,
    ping: usize,
}

impl Limits {
    fn of_this_process() -> Limits {
        let soft = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).map_or(1024, |l| l.0);
        let files = usize::try_from(soft).unwrap_or(usize::MAX);
        Limits { udp: (files / 4).clamp(16, 8192), ping: (files / 16).clamp(4, 512) }
    }
}

impl Host for HostSide {
    fn tcp_connect(&mut self, flow: TcpId, to: SocketAddr, hop_limit: Option<u8>) {
        self.tcp.connect(flow, to, hop_limit);
    }

    fn tcp_connect_dns(&mut self, flow: TcpId, asker: Asker) {
        let handed_over = self.tcp.connect_pair(flow).ok().and_then(|stream| {
            let event = Event::DnsStream { asker, stream };
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
        self.udp.send(flow, to, datagram)
    }

    fn published_send(&mut self, path: ReplyPath, client: SocketAddr, datagram: Datagram<'_>) -> Result<(), HostError> {
        self.replies.push(path, client, datagram)
    }

    fn udp_close(&mut self, flow: UdpId) {
        self.udp.close(flow);
    }

    fn echo_send(&mut self, flow: EchoId, to: IpAddr, sequence: u16, datagram: Datagram<'_>) -> Result<(), HostError> {
        self.ping.send(flow, to, sequence, datagram)
    }

    fn echo_close(&mut self, flow: EchoId) {
        self.ping.close(flow);
    }

    fn dns_query(&mut self, asker: Asker, message: &[u8]) -> bool {
        self.events.try_send(Event::DnsQuery { asker, message: message.to_vec() }).is_ok()
    }
}
