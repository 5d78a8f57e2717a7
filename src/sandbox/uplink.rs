//! A sandbox's way to one network: its place there, the link, and the gateway that carries the link's frames.
//!
//! # Theory of operation
//!
//! A sandbox has an uplink for each network it is on, all of them with the same supervisor ([`super::uplinks`]). An
//! uplink's gateway is a process of its own on a private network, and the one of all shared networks otherwise; either
//! is spoken to over a connection that is this uplink's alone.
//!
//! ```text
//! wanted ── start ──> started ── link there, nothing left to reset ──> handed over ── Attached ──> attached
//!    ^                                                                      │                          │
//!    └───────────────────────── the connection closes ──────────────────────┴──────────────────────────┘
//! ```
//!
//! The supervisor keeps a duplicate of the link, so that a gateway that dies can be replaced: another is started, or
//! found, and handed the same. Its connections are lost, the sandbox goes on. Before the next one gets the link, what
//! went through the dead one is reset inside, for which the agent has [`RESET`]: so nothing new is hit, and nothing old
//! is left to wait. One that dies before any has carried a frame is an error: it would not be different the next time.
//! Nor would it be where the interface itself has been taken away inside.
//! Only a shared gateway may have been about to end when it was found, or may be dying, so another is looked for, up to [`SEARCH`].
//! After [`REPLACEMENTS`] within [`WINDOW`] no more are started.
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;

use super::link::Addresses;
use super::message::Gone;
use super::order::Order;
use crate::control::client::{GatewayProcess, SpawnError};
use crate::control::messages::{FromGateway, ToGateway};
use crate::control::state::StateDir;
use crate::control::wire::WireError;
use crate::plan::{HostView, InterfaceExtras, LinkChoice, LinkKind, Logging, MacAddr, Network, Seat};
use crate::sys::scm::ScmError;
use crate::sys::tun::{self, TapError};

/// How long the processes of a sandbox may take to end after their sockets are closed, before they are killed.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// A gateway that dies is replaced this often within [`WINDOW`].
const REPLACEMENTS: usize = 3;
const WINDOW: Duration = Duration::from_secs(10);

/// How long a shared gateway that serves is looked for, and the pause in between.
const SEARCH: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(50);

/// How long a gateway may take to carry frames from when it has been told everything: hundreds may start at once.
const SERVICE: Duration = Duration::from_secs(20);

/// How long the agent may take to reset what went through a gateway that has died.
const RESET: Duration = Duration::from_millis(500);

/// What becomes of an uplink whose gateway has closed the connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Another gateway is looked for: this one was about to end when it was found.
    Again,
    /// Another takes its place. The old one's end, for the person.
    Replaced(String),
    /// It has never worked, and will not; why.
    Failed(String),
    /// It died once too often, or there is nothing left to carry frames by; a sentence.
    GaveUp(String),
}

/// What frames are carried by.
#[derive(Debug)]
pub(super) struct KeptLink {
    /// What it is.
    pub(super) kind: LinkKind,
    /// Its descriptor, where it has one.
    pub(super) fd: Option<OwnedFd>,
    /// The interface's Ethernet address, where it was not for us to choose.
    pub(super) mac: Option<MacAddr>,
    /// The interface outlives us.
    pub(super) stays: bool,
}

/// A sandbox's way to one network.
pub(super) struct Uplink {
    /// Its number among those of the sandbox, never given again; that of the order for its interface, too.
    pub(super) number: u64,
    /// The place.
    pub(super) seat: Seat,
    /// How its interface is made.
    pub(super) order: Order,
    gateway: Option<GatewayProcess>,
    /// When to start another, where there is none.
    start_at: Option<Instant>,
    /// When the first was told everything.
    since: Option<Instant>,
    replacements: Replacements,
    /// When the last one died that is replaced.
    died_at: Option<Instant>,
    /// This one has refused to serve the sandbox.
    was_refused: bool,
    /// A duplicate of what the gateway has.
    link: Option<KeptLink>,
    /// Where its frames are written down; a duplicate likewise.
    capture: Option<File>,
    /// When the gateway was told everything.
    handed_over: Option<Instant>,
    /// The gateway carries frames.
    attached: bool,
    /// Some gateway has carried frames.
    has_worked: bool,
    /// Connections are being reset; until when that is waited for.
    resetting: Option<Instant>,
    /// It is being taken away: no other gateway is wanted.
    pub(super) leaving: bool,
}

impl Uplink {
    /// No gateway and no link yet.
    pub(super) fn new(number: u64, seat: Seat, order: Order) -> Uplink {
        Uplink {
            number,
            seat,
            order,
            gateway: None,
            start_at: None,
            since: None,
            replacements: Replacements::default(),
            died_at: None,
            was_refused: false,
            link: None,
            capture: None,
            handed_over: None,
            attached: false,
            has_worked: false,
            resetting: None,
            leaving: false,
        }
    }

    /// Is its network shared with others?
    pub(super) fn is_shared(&self) -> bool {
        self.seat.network.sharing.is_some()
    }

    /// Start or find a gateway.
    pub(super) fn start_gateway(&mut self, states: &StateDir, logging: Logging) -> Result<(), SpawnError> {
        self.start_at = None;
        let gateway =
            if self.is_shared() { GatewayProcess::join(states, logging) } else { GatewayProcess::spawn(logging) }?;
        // One that does not read must not stop the supervisor. Where this fails it may.
        let _ = SockRef::from(&gateway.connection().as_fd()).set_write_timeout(Some(PATIENCE));
        self.gateway = Some(gateway);
        self.was_refused = false;
        (self.attached, self.handed_over) = (false, None);
        Ok(())
    }

    /// Is another gateway to be started now?
    pub(super) fn wants_gateway(&self, now: Instant) -> bool {
        self.gateway.is_none() && !self.leaving && self.start_at.is_some_and(|at| at <= now)
    }

    /// Is there a gateway, or will there be one?
    pub(super) fn has_gateway(&self) -> bool {
        self.gateway.is_some() || self.start_at.is_some()
    }

    /// The gateway's connection; when readable, call [`hear`](Self::hear).
    pub(super) fn connection(&self) -> Option<BorrowedFd<'_>> {
        self.gateway.as_ref().map(|gateway| gateway.connection().as_fd())
    }

    /// When it wants to be looked at again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        [self.start_at, self.resetting, self.service_due()].into_iter().flatten().min()
    }

    /// When the gateway will have taken too long to carry frames.
    fn service_due(&self) -> Option<Instant> {
        self.handed_over.filter(|_| !self.attached && self.gateway.is_some()).map(|since| since + SERVICE)
    }

    /// Has the gateway taken too long to carry frames?
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.service_due().is_some_and(|due| due <= now)
    }

    /// The link is there.
    pub(super) fn keep_link(&mut self, link: KeptLink) {
        let Seat { endpoint, network, .. } = &mut self.seat;
        if let Some(mac) = link.mac {
            endpoint.mac = mac;
            let advertised = network.v6.filter(|_| self.order.extras.v6_by_advertisement);
            endpoint.v6 = advertised.map(|layout| mac.address_in(layout.subnet)).or(endpoint.v6);
        }
        self.link = Some(link);
    }

    /// Have every frame written down there.
    pub(super) fn capture_to(&mut self, file: File) {
        self.capture = Some(file);
    }

    /// The link's descriptor, for who wants to keep it after the uplink.
    pub(super) fn take_link(&mut self) -> Option<OwnedFd> {
        self.link.take().and_then(|link| link.fd)
    }

    /// Has the link come?
    pub(super) fn has_link(&self) -> bool {
        self.link.is_some()
    }

    /// The link.
    pub(super) fn link(&self) -> Option<BorrowedFd<'_>> {
        self.link.as_ref().and_then(|link| link.fd.as_ref()).map(AsFd::as_fd)
    }

    /// Does the gateway carry frames?
    pub(super) fn is_attached(&self) -> bool {
        self.attached
    }

    /// Has any gateway ever carried frames?
    pub(super) fn has_worked(&self) -> bool {
        self.has_worked
    }

    /// Has the gateway been told everything?
    pub(super) fn is_handed_over(&self) -> bool {
        self.handed_over.is_some()
    }

    /// The agent has reset what was to be reset.
    pub(super) fn handle_reset(&mut self) {
        self.resetting = None;
    }

    /// May the gateway be given the link now?
    pub(super) fn is_ready(&mut self, now: Instant) -> bool {
        if self.resetting.is_some_and(|until| until <= now) {
            self.resetting = None;
        }
        self.gateway.is_some()
            && self.link.is_some()
            && self.handed_over.is_none()
            && self.resetting.is_none()
            && !self.leaving
    }

    /// Give the gateway the link; `api` is the listener of the sandbox's API, if it is to serve that.
    pub(super) fn hand_over(
        &mut self,
        network: Network,
        host: HostView,
        api: Option<BorrowedFd<'_>>,
    ) -> Result<(), WireError> {
        let (Some(gateway), Some(KeptLink { kind, fd, .. })) = (&self.gateway, &self.link) else { return Ok(()) };
        let endpoint = self.seat.endpoint.clone();
        let (has_api, capture) = (api.is_some(), self.capture.is_some());
        let message = ToGateway::Attach { network, endpoint, link: *kind, host, api: has_api, capture };
        let capture = self.capture.as_ref().map(AsFd::as_fd);
        let fds: Vec<BorrowedFd<'_>> = fd.iter().map(AsFd::as_fd).chain(api).chain(capture).collect();
        self.handed_over = Some(Instant::now());
        self.since = self.since.or(self.handed_over);
        unless_gone(gateway.connection().send(&message, &fds))
    }

    /// Tell the gateway something. That it has gone is heard next, and no error here.
    pub(super) fn tell(&self, message: &ToGateway, fds: &[BorrowedFd<'_>]) -> Result<(), WireError> {
        unless_gone(self.send(message, fds))
    }

    /// Tell the gateway something.
    pub(super) fn send(&self, message: &ToGateway, fds: &[BorrowedFd<'_>]) -> Result<(), WireError> {
        match &self.gateway {
            Some(gateway) => gateway.connection().send(message, fds),
            None => Err(ScmError::Send(io::ErrorKind::NotConnected.into()).into()),
        }
    }

    /// What the gateway has said; `None` when its connection has closed. What it says that means no more than that is
    /// dealt with here.
    pub(super) fn hear(&mut self) -> Result<Option<FromGateway>, WireError> {
        let Some(gateway) = &self.gateway else { return Ok(None) };
        match gateway.recv() {
            // One that has worked and now talks nonsense is as good as dead.
            Err(error) if self.has_worked => {
                tracing::error!("{error}");
                Ok(None)
            }
            Ok(Some(attached @ FromGateway::Attached { .. })) => {
                (self.attached, self.has_worked) = (true, true);
                Ok(Some(attached))
            }
            Ok(Some(refused @ FromGateway::Refused { .. })) => {
                self.was_refused = true;
                Ok(Some(refused))
            }
            other => other,
        }
    }

    /// The gateway has closed its connection, or is of no use any more.
    pub(super) fn handle_end(&mut self, now: Instant) -> Fate {
        let overdue = self.is_overdue(now);
        let was_attached = self.attached;
        (self.attached, self.handed_over) = (false, None);
        let how = match self.gateway.take().map(|gateway| gateway.stop(if overdue { Duration::ZERO } else { PATIENCE }))
        {
            Some(_) if overdue => format!("it has said nothing for {} seconds", SERVICE.as_secs()),
            Some(Ok(ended)) => ended.to_string(),
            Some(Err(error)) => error.to_string(),
            None => "its connection closed".to_owned(),
        };
        if self.leaving {
            return Fate::GaveUp(how);
        }
        if !self.has_worked {
            if overdue {
                return Fate::Failed(format!(
                    "the gateway does not serve the network {}: {how}",
                    self.seat.network.name
                ));
            }
            // Before it is given a link a gateway waits for no supervisor for long.
            if self.is_shared() && self.since.is_none_or(|since| now.duration_since(since) < SEARCH) {
                self.start_at = Some(now + PAUSE);
                return Fate::Again;
            }
            return Fate::Failed(format!("the gateway ended before it carried a frame ({how})"));
        }
        // One that dies may be found as long as it has not let go of the socket it listens at.
        let is_recent = self.died_at.is_some_and(|at| now.duration_since(at) < SEARCH);
        if self.is_shared() && !was_attached && !self.was_refused && !overdue && is_recent {
            self.start_at = Some(now + PAUSE);
            return Fate::Again;
        }
        if self.is_link_gone() {
            return Fate::GaveUp(format!("the interface {} was removed", self.seat.endpoint.ifname));
        }
        if !self.replacements.allow(now) {
            return Fate::GaveUp(format!("the gateway died again and again ({how})"));
        }
        self.died_at = Some(now);
        self.start_at = Some(now);
        self.resetting = Some(now + RESET);
        Fate::Replaced(how)
    }

    /// Has the interface been taken away inside? Of a packet socket's it is not known.
    fn is_link_gone(&self) -> bool {
        let Some(KeptLink { kind: LinkKind::Tap | LinkKind::PlainTap, fd: Some(fd), .. }) = &self.link else {
            return false;
        };
        matches!(tun::inspect(fd), Err(TapError::NotATap(error)) if error.raw_os_error() == Some(libc::EBADFD))
    }

    /// No other gateway is to be started.
    pub(super) fn give_up(&mut self) {
        self.gateway = None;
        self.start_at = None;
        (self.attached, self.handed_over) = (false, None);
    }

    /// What went through a gateway that has died.
    pub(super) fn gone(&self) -> Gone {
        let Seat { endpoint, network, .. } = &self.seat;
        let own: Vec<IpAddr> = endpoint
            .v4
            .map(IpAddr::V4)
            .into_iter()
            .chain(endpoint.v6.map(IpAddr::V6))
            .chain([endpoint.mac.link_local().into()])
            .collect();
        // On a network of its own a sandbox has nobody beside it but the gateway; its own addresses are not reached
        // through one.
        let neighbors = if self.is_shared() {
            let v4 = network.v4.map(|l| IpNet::V4(l.subnet));
            let link_local = std::iter::once(IpNet::from(LINK_LOCAL));
            v4.into_iter().chain(network.v6.map(|l| IpNet::V6(l.subnet))).chain(link_local).collect()
        } else {
            own.iter().map(|ip| IpNet::from(*ip)).collect()
        };
        let v4 = network.v4.into_iter().flat_map(|l| [l.gateway, l.dns]).map(IpAddr::V4);
        let v6 = network.v6.into_iter().flat_map(|l| [l.gateway, l.dns]).map(IpAddr::V6);
        let gateways = v4.chain(v6).chain([network.gateway_link_local().into()]).collect();
        Gone { own, neighbors, gateways }
    }

    /// The gateway is of no use: end its process, where it is this sandbox's alone; otherwise only the connection.
    pub(super) fn kill(&mut self) {
        if let Some(gateway) = &self.gateway {
            gateway.kill();
        }
    }

    /// Let go of the link; the gateway's process, where it is this sandbox's alone, for who wants to wait for its end.
    /// Without that it ends by itself.
    pub(super) fn end(self) -> Option<GatewayProcess> {
        let is_shared = self.is_shared();
        if let Some(KeptLink { fd: Some(fd), stays: true, .. }) = &self.link {
            // Whoever has it next need not know of offloads. One that is gone needs nothing.
            let _ = tun::leave(fd);
        }
        self.gateway.filter(|_| !is_shared)
    }

    /// Have the gateway close ports, and wait for it until `deadline`. True also when it has ended.
    pub(super) fn take_back(&self, message: &ToGateway, deadline: Instant) -> bool {
        let (Some(gateway), ToGateway::Unpublish { request: ours, .. }) = (&self.gateway, message) else { return true };
        let connection = gateway.connection();
        if connection.send(message, &[]).is_err() {
            return self.has_ended();
        }
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(connection.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)) {
                Err(nix::Error::EINTR) => continue,
                Ok(1..) => {}
                _ => return false,
            }
            match gateway.recv() {
                Ok(Some(FromGateway::Done { request, .. })) if request == *ours => return true,
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return self.has_ended(),
            }
        }
    }

    fn has_ended(&self) -> bool {
        self.gateway.as_ref().is_none_or(GatewayProcess::has_ended)
    }
}

/// fe80::/10 (RFC 4291 section 2.5.6).
const LINK_LOCAL: ipnet::Ipv6Net = ipnet::Ipv6Net::new_assert(std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);

/// How an endpoint's interface is made.
pub(super) fn order(seat: &Seat, name: Option<String>, link: LinkChoice, configure: bool) -> Order {
    order_with(seat, name, link, configure, &InterfaceExtras::default())
}

/// Likewise, and what it is given besides.
pub(super) fn order_with(
    seat: &Seat,
    name: Option<String>,
    link: LinkChoice,
    configure: bool,
    extras: &InterfaceExtras,
) -> Order {
    let Seat { endpoint, network, default_route } = seat;
    let is_open = network.sharing.is_none_or(|sharing| !sharing.internal);
    let v4 = network.v4.zip(endpoint.v4).map(|(layout, address)| Addresses {
        address,
        prefix: layout.subnet.prefix_len(),
        gateway: is_open.then_some(layout.gateway),
    });
    let v6 = network.v6.zip(endpoint.v6).map(|(layout, address)| Addresses {
        address,
        prefix: layout.subnet.prefix_len(),
        gateway: is_open.then_some(layout.gateway),
    });
    let v6_by_advertisement = extras.v6_by_advertisement && network.v6.is_some();
    Order {
        name,
        mac: endpoint.mac,
        mtu: Some(extras.mtu.unwrap_or(network.mtu.into())).filter(|mtu| *mtu > 0),
        link,
        configure,
        v4,
        v6: v6.filter(|_| !v6_by_advertisement),
        default_route: *default_route,
        own_table: network.sharing.is_some(),
        extras: InterfaceExtras { v6_by_advertisement, ..extras.clone() },
    }
}

fn unless_gone(sent: Result<(), WireError>) -> Result<(), WireError> {
    match sent {
        Err(WireError::Connection(ScmError::Send(error))) if is_gone(&error) => Ok(()),
        other => other,
    }
}

fn is_gone(error: &io::Error) -> bool {
    let gone = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset, io::ErrorKind::NotConnected];
    gone.contains(&error.kind())
}

/// When gateways were replaced.
#[derive(Debug, Default)]
struct Replacements(VecDeque<Instant>);

impl Replacements {
    /// May another be started now? If so, it is counted.
    fn allow(&mut self, now: Instant) -> bool {
        while self.0.front().is_some_and(|at| now.duration_since(*at) >= WINDOW) {
            self.0.pop_front();
        }
        let allowed = self.0.len() < REPLACEMENTS;
        if allowed {
            self.0.push_back(now);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan;

    #[test]
    fn a_gateway_that_says_nothing_is_not_waited_for_longer_than_that() {
        let endpoint = plan::Endpoint::default();
        let seat = Seat { endpoint, network: crate::fuzzing::network(), default_route: true };
        let order = order(&seat, None, LinkChoice::Auto, true);
        let mut uplink = Uplink::new(0, seat, order);
        let mut silent = std::process::Command::new("/bin/bash");
        silent.args(["-c", "exec sleep 60"]);
        uplink.gateway = Some(GatewayProcess::start(silent, Vec::new()).unwrap());
        let (link, _other) = crate::sys::scm::pair().unwrap();
        uplink.keep_link(KeptLink { kind: LinkKind::Tap, fd: Some(link), mac: None, stays: false });
        let now = Instant::now();
        assert_eq!(uplink.deadline(), None);
        uplink.hand_over(uplink.seat.network.clone(), HostView::default(), None).unwrap();
        assert!(uplink.deadline().unwrap() >= now + SERVICE && !uplink.is_overdue(now));
        let late = uplink.deadline().unwrap();
        assert!(uplink.is_overdue(late));
        match uplink.handle_end(late) {
            Fate::Failed(why) => assert!(why.contains("has said nothing for 20 seconds"), "{why}"),
            other => panic!("{other:?}"),
        }
        assert!(uplink.deadline().is_none() && !uplink.has_gateway());
    }

    #[test]
    fn who_comes_to_an_interface_that_is_there_takes_its_address_and_what_follows_from_it() {
        let mac = MacAddr([0x3e, 0x65, 0xa7, 0xdb, 0xcb, 0x6a]);
        for (v6_by_advertisement, own) in [(false, None), (true, Some("fd00::3c65:a7ff:fedb:cb6a".parse().unwrap()))] {
            let endpoint = plan::Endpoint::default();
            let v6 = plan::Ipv6Layout::slirp("fd00::/64".parse().unwrap());
            let network = Network { v6, ..crate::fuzzing::network() };
            let seat = Seat { endpoint, network, default_route: true };
            let extras = InterfaceExtras { v6_by_advertisement, ..InterfaceExtras::default() };
            let order = order_with(&seat, None, LinkChoice::Auto, true, &extras);
            let mut uplink = Uplink::new(0, seat, order);
            uplink.keep_link(KeptLink { kind: LinkKind::None, fd: None, mac: Some(mac), stays: true });
            assert_eq!((uplink.seat.endpoint.mac, uplink.seat.endpoint.v6), (mac, own));
        }
    }

    #[test]
    fn an_interfaces_mtu_is_its_networks_unless_another_is_given_or_none() {
        for (given, wanted) in
            [(None, Some(crate::fuzzing::network().mtu.into())), (Some(0), None), (Some(68), Some(68))]
        {
            let endpoint = plan::Endpoint::default();
            let seat = Seat { endpoint, network: crate::fuzzing::network(), default_route: true };
            let extras = InterfaceExtras { mtu: given, ..InterfaceExtras::default() };
            assert_eq!(order_with(&seat, None, LinkChoice::Auto, true, &extras).mtu, wanted);
        }
    }

    #[test]
    fn no_other_gateway_is_started_for_an_interface_that_was_removed() {
        crate::sys::testing::in_namespace(|| {
            let text = |error: &dyn std::fmt::Display| error.to_string();
            let mut netlink = crate::sys::netlink::Netlink::open().map_err(|e| text(&e))?;
            let mut uplink = shared_uplink();
            uplink.seat.endpoint.ifname = "tl0".to_owned();
            let fd = Some(tun::Tap::create("tl0").map_err(|e| text(&e))?.into_fd());
            uplink.keep_link(KeptLink { kind: LinkKind::Tap, fd, mac: None, stays: false });
            (uplink.gateway, uplink.attached, uplink.has_worked) = (ending(), true, true);
            let Fate::Replaced(_) = uplink.handle_end(Instant::now()) else { return Err("given up".to_owned()) };
            let index = netlink.link("tl0").map_err(|e| text(&e))?.index;
            netlink.delete_link(index).map_err(|e| text(&e))?;
            (uplink.gateway, uplink.attached) = (ending(), true);
            match uplink.handle_end(Instant::now()) {
                Fate::GaveUp(why) if why == "the interface tl0 was removed" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    /// To a network that others are on, too.
    fn shared_uplink() -> Uplink {
        let sharing = Some(plan::Sharing { internal: false, icc: true });
        let network = Network { sharing, ..crate::fuzzing::network() };
        let seat = Seat { endpoint: plan::Endpoint::default(), network, default_route: true };
        let order = order(&seat, None, LinkChoice::Auto, true);
        Uplink::new(0, seat, order)
    }

    /// A gateway that ends at once.
    fn ending() -> Option<GatewayProcess> {
        let mut ending = std::process::Command::new("/bin/bash");
        ending.args(["-c", "exit 0"]);
        Some(GatewayProcess::start(ending, Vec::new()).unwrap())
    }

    #[test]
    fn a_shared_gateway_that_has_not_waited_for_the_link_is_looked_for_again_however_late_it_is() {
        let mut uplink = shared_uplink();
        let late = Instant::now() + 5 * SEARCH;
        uplink.gateway = ending();
        assert_eq!(uplink.handle_end(late), Fate::Again);
        assert!(uplink.wants_gateway(late + PAUSE));
        // One that ends with the link in its hands is no better the next time.
        uplink.gateway = ending();
        let (link, _other) = crate::sys::scm::pair().unwrap();
        uplink.keep_link(KeptLink { kind: LinkKind::Tap, fd: Some(link), mac: None, stays: false });
        uplink.hand_over(uplink.seat.network.clone(), HostView::default(), None).unwrap();
        assert_eq!(uplink.handle_end(Instant::now()), Fate::Again);
        uplink.gateway = ending();
        assert!(matches!(uplink.handle_end(late), Fate::Failed(_)));
    }

    #[test]
    fn a_dying_gateway_that_is_found_once_more_is_no_second_death() {
        let mut uplink = shared_uplink();
        let now = Instant::now();
        (uplink.gateway, uplink.attached, uplink.has_worked) = (ending(), true, true);
        assert!(matches!(uplink.handle_end(now), Fate::Replaced(_)));
        for _ in 0..2 * REPLACEMENTS {
            uplink.gateway = ending();
            assert_eq!(uplink.handle_end(now + PAUSE), Fate::Again);
            assert!(uplink.wants_gateway(now + 2 * PAUSE));
        }
        // One that says why not is another matter, and so is one that has carried frames.
        (uplink.gateway, uplink.was_refused) = (ending(), true);
        assert!(matches!(uplink.handle_end(now + PAUSE), Fate::Replaced(_)));
        (uplink.gateway, uplink.was_refused, uplink.attached) = (ending(), false, true);
        assert!(matches!(uplink.handle_end(now + PAUSE), Fate::Replaced(_)));
        uplink.gateway = ending();
        assert!(matches!(uplink.handle_end(now + 2 * SEARCH), Fate::GaveUp(_)));
    }

    #[test]
    fn three_replacements_in_ten_seconds_are_enough() {
        let mut replacements = Replacements::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(replacements.allow(at(0)) && replacements.allow(at(1)) && replacements.allow(at(2)));
        assert!(!replacements.allow(at(9)), "a fourth");
        assert!(replacements.allow(at(10)), "the first is long past");
        assert!(!replacements.allow(at(10)));
    }
}
