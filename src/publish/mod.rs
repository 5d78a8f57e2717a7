//! Published ports: what comes in.
//!
//! # Theory of operation
//!
//! The supervisor binds sockets on the host and keeps them, so that they outlive a gateway; the gateway gets
//! duplicates and serves them in its worker ([`Publishing`]). Who connects decides the way:
//!
//! ```text
//!   a client on the host's loopback   accept ── a socket made inside ── splice(2) both ways      (past the link)
//!   any other client                  accept ── smoltcp connects to the sandbox in its name      (through the link)
//! ```
//!
//! The same, turned around, is `--reach`: a listener inside, a connection to the host's loopback, splice(2).
//! Datagrams go the same two ways.
//!
//! | file | what |
//! | --- | --- |
//! | [`bind`](mod@bind) | sockets on the host, and why one cannot be had; the supervisor's |
//! | [`holder`] | who has a port that is taken |
//! | [`inside`] | sockets that the agent makes inside a sandbox, ahead of time |
//! | [`tcp`] | connections: listeners, and how a connection is opened |
//! | [`splice`] | an open connection past the link |
//! | [`pipes`] | the pipes that its bytes go through |
//! | [`proxy`] | the PROXY header in front of a connection |
//! | [`udp`] | datagrams |
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Registry};
use serde::{Deserialize, Serialize};

use crate::datapath::commands::FlowPage;
use crate::datapath::links::Links;
use crate::datapath::tokens::{self, Kind};
use crate::gateway::Gateway;
use crate::gateway::link::PortId;
use crate::host::HostSide;
use crate::plan::{Protocol, Published, PublishedKey, Reached};
use inside::Pool;

pub mod bind;
pub mod holder;
pub mod inside;
pub mod pipes;
pub mod proxy;
pub mod splice;
pub mod tcp;
pub mod udp;

/// What a worker does for published ports.
pub struct Publishing {
    registry: Registry,
    pools: Pools,
    tcp: tcp::TcpSide,
    udp: udp::UdpSide,
}

/// What was counted about published ports and `--reach`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Connections.
    pub tcp: tcp::TcpStats,
    /// Datagrams.
    pub udp: udp::UdpStats,
}

/// The stocks of sockets inside, by sandbox.
pub type Pools = HashMap<PortId, Pool>;

/// The rest of the worker, as far as a published port needs it.
pub struct Surroundings<'a> {
    /// The network's gateway.
    pub gateway: &'a mut Gateway,
    /// The host's sockets.
    pub host: &'a mut HostSide,
    /// The sandboxes' links.
    pub links: &'a mut Links,
}

impl Publishing {
    /// No ports yet.
    pub fn new(registry: &Registry) -> io::Result<Publishing> {
        Ok(Publishing {
            registry: registry.try_clone()?,
            pools: HashMap::new(),
            tcp: tcp::TcpSide::new(registry.try_clone()?),
            udp: udp::UdpSide::new(registry.try_clone()?),
        })
    }

    /// A sandbox has at most so many connections past the link from now on.
    pub fn limit(&mut self, connections: usize) {
        self.tcp.limit(connections);
    }

    /// The agent that makes sockets for a sandbox; it takes the place of an earlier one.
    pub fn add_agent(&mut self, port: PortId, agent: OwnedFd) -> io::Result<()> {
        self.forget_agent(port);
        let raw = agent.as_raw_fd();
        self.registry.register(&mut SourceFd(&raw), tokens::agent(port.0), Interest::READABLE)?;
        self.pools.insert(port, Pool::new(agent));
        // Whoever came before the agent asks it now.
        self.tcp.handle_stock(port);
        self.udp.handle_stock(port);
        Ok(())
    }

    fn forget_agent(&mut self, port: PortId) {
        if let Some(pool) = self.pools.remove(&port) {
            // A failure means that it was not registered.
            let _ = self.registry.deregister(&mut SourceFd(&pool.agent().as_raw_fd()));
        }
    }

    /// Serve these ports of a sandbox: all or none.
    pub fn publish(&mut self, port: PortId, ports: Vec<(Published, OwnedFd)>) -> io::Result<()> {
        let keys: Vec<PublishedKey> = ports.iter().map(|(published, _)| published.key()).collect();
        let added = ports.into_iter().try_for_each(|(published, socket)| match published.protocol {
            Protocol::Tcp => self.tcp.publish(port, published, socket),
            Protocol::Udp => self.udp.publish(port, published, socket),
        });
        if added.is_err() {
            self.unpublish(&keys);
        }
        added
    }

    /// Close these ports' sockets; what is connected stays so.
    pub fn unpublish(&mut self, ports: &[PublishedKey]) {
        for key in ports {
            match key.protocol {
                Protocol::Tcp => self.tcp.unpublish(*key),
                Protocol::Udp => self.udp.unpublish(*key),
            }
        }
    }

    /// Serve these listeners inside a sandbox.
    pub fn reach(&mut self, port: PortId, reached: Vec<(Reached, OwnedFd)>) -> io::Result<()> {
        reached.into_iter().try_for_each(|(reached, socket)| match reached.protocol {
            Protocol::Tcp => self.tcp.reach(port, reached, socket),
            Protocol::Udp => self.udp.reach(port, reached, socket),
        })
    }

    /// Close these listeners inside a sandbox; what is connected stays so.
    pub fn unreach(&mut self, port: PortId, reached: &[Reached]) {
        let reached: HashSet<Reached> = reached.iter().copied().collect();
        self.tcp.unreach(port, &reached);
        self.udp.unreach(port, &reached);
    }

    /// The sandbox has ended: its listeners are closed now. What is connected goes on until [`remove`](Self::remove).
    pub fn close_listeners(&mut self, port: PortId) {
        self.tcp.close_listeners(port);
        self.udp.close_listeners(port);
    }

    /// Has some connection past the link bytes that were not delivered yet?
    pub fn is_delivering(&self, port: PortId) -> bool {
        self.tcp.is_delivering(port)
    }

    /// Nothing of this sandbox is left.
    pub fn remove(&mut self, port: PortId) {
        self.close_listeners(port);
        self.tcp.remove(port);
        self.udp.remove(port);
        self.forget_agent(port);
    }

    /// A socket of ours is ready.
    pub fn handle_event(&mut self, kind: Kind, index: u32, event: &Event) {
        match kind {
            Kind::Listener => self.tcp.handle_listener(index),
            Kind::Splice => self.tcp.handle_splice(index, event),
            Kind::Datagrams => self.udp.handle_datagrams(index, event),
            Kind::Detour => self.udp.handle_detour(index, event),
            Kind::Agent => self.handle_agent(PortId(index)),
            Kind::Port | Kind::Tcp | Kind::Udp | Kind::Ping | Kind::Command => {}
        }
    }

    fn handle_agent(&mut self, port: PortId) {
        let Some(pool) = self.pools.get_mut(&port) else { return };
        match pool.handle_ready() {
            Ok(false) => {}
            Ok(true) => {
                self.tcp.handle_stock(port);
                self.udp.handle_stock(port);
            }
            // The supervisor sends another when there is one.
            Err(error) => {
                tracing::debug!("the sandbox's agent makes no more sockets: {error}");
                self.forget_agent(port);
                self.tcp.handle_stock(port);
                self.udp.handle_stock(port);
            }
        }
    }

    /// Do what there is to be done, within budgets: accept, connect, move bytes and datagrams, expire.
    pub fn round(&mut self, now: Instant, around: Surroundings<'_>) {
        let Surroundings { gateway, host, links } = around;
        self.tcp.round(
            now,
            &mut self.pools,
            Surroundings { gateway: &mut *gateway, host: &mut *host, links: &mut *links },
        );
        self.udp.round(now, &mut self.pools, Surroundings { gateway, host, links });
    }

    /// Some of the flows that take the way past the link. `id` names the sandbox at a port, `cursor` is where the last
    /// page ended, 0 for the first; a page looks at no more than `places` places and has at most `limit` flows.
    pub fn flows<'a>(
        &mut self,
        id: impl Fn(PortId) -> Option<&'a str>,
        cursor: u64,
        limit: usize,
        places: usize,
    ) -> FlowPage {
        // Even places are connections, odd ones datagrams.
        let end = 2 * self.tcp.places().max(self.udp.places()) as u64;
        let last = end.min(cursor.saturating_add(places as u64));
        let mut page = FlowPage::default();
        for place in cursor..last {
            if page.flows.len() >= limit {
                return FlowPage { next: Some(place), ..page };
            }
            let at = (place / 2) as usize;
            page.flows.extend(match place % 2 {
                0 => self.tcp.describe(at, &id),
                _ => self.udp.describe(at, &id),
            });
        }
        FlowPage { next: (last < end).then_some(last), ..page }
    }

    /// What was counted since the start.
    pub fn stats(&self) -> Stats {
        Stats { tcp: self.tcp.stats(), udp: self.udp.stats() }
    }

    /// Is something left to be done in the next round, without an event?
    pub fn is_busy(&self) -> bool {
        self.tcp.is_busy() || self.udp.is_busy()
    }

    /// When [`round`](Self::round) is due if nothing happens before.
    pub fn next_timeout(&self) -> Option<Instant> {
        [self.tcp.next_timeout(), self.udp.next_timeout()].into_iter().flatten().min()
    }
}
