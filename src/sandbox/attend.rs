//! What an agent does as long as the sandbox lives, besides waiting for its end.
//!
//! # Theory of operation
//!
//! Four things, in one poll loop ([`Attendance::wait`]):
//!
//! - it makes interfaces, takes them away, moves the default route, and resets what went through a gateway that has
//!   died, as the supervisor asks;
//! - it makes sockets inside for the gateway ([`publish::inside`](crate::publish::inside)), whose connection the
//!   supervisor sends it ([`ToAgent::Inside`]), for a new gateway another;
//! - with `-p auto` it looks every [`LOOK`] at what the sandbox listens on, and tells the supervisor when that has
//!   changed. Without, nothing wakes it;
//! - it hears of the supervisor's end, and of a child's.
//!
//! *What counts as listening*: TCP sockets that do, and UDP sockets that are not connected, on the unspecified address
//! or one that can be reached: of 127.0.0.0/8 only 127.0.0.1. A UDP port in the range that the kernel takes clients'
//! ports from belongs to a client. What was made for `--reach` does not count.
//!
//! Before that, for `--reach`, the agent binds listeners on the sandbox's loopback ([`bind_reached`]); the supervisor
//! gets them and the agent keeps none.
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Socket, Type};

use super::link::MadeLink;
use super::message::{FromAgent, Gone, ToAgent};
use super::order;
use super::ports::{MOST_FOLLOWED, reach_batches};
use crate::control::wire;
use crate::plan::{Ports, Protocol, Reach, Reached};
use crate::publish::{inside, splice};
use crate::sys::sockdiag::SockDiag;

/// How often `-p auto` looks.
const LOOK: Duration = Duration::from_millis(200);

/// The kernel's own default (ip(7)).
const LOCAL_PORTS: RangeInclusive<u16> = 32_768..=60_999;

/// Who has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// What the child's descriptor stands for.
    Child,
    /// The supervisor.
    Supervisor,
}

/// An agent's service.
pub(super) struct Attendance<'a> {
    supervisor: &'a OwnedFd,
    gateway: Option<OwnedFd>,
    follower: Option<Follower>,
}

impl<'a> Attendance<'a> {
    /// Begin, in the sandbox's network namespace; `reached` is what [`bind_reached`] gave.
    pub(super) fn new(supervisor: &'a OwnedFd, ports: &Ports, reached: Vec<Reached>) -> Attendance<'a> {
        let follower = ports.auto.and_then(|_| {
            Follower::new(reached)
                .inspect_err(|error| {
                    let text = format!("-p auto publishes nothing: the kernel does not say who listens ({error})");
                    let _ = wire::send(supervisor, &FromAgent::Notice { text }, &[]);
                })
                .ok()
        });
        Attendance { supervisor, gateway: None, follower }
    }

    /// Serve until the supervisor has ended, or `child` is readable.
    pub(super) fn wait(&mut self, child: Option<BorrowedFd<'_>>) -> Result<Ended, String> {
        loop {
            if let Some(follower) = &mut self.follower
                && let Some(message) = follower.look(Instant::now())
                && wire::send(self.supervisor, &message, &[]).is_err()
            {
                return Ok(Ended::Supervisor);
            }
            let timeout = self.follower.as_ref().map(|f| f.next.saturating_duration_since(Instant::now()));
            let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
            let mut fds = vec![readable(self.supervisor.as_fd())];
            fds.extend(child.map(readable));
            fds.extend(self.gateway.as_ref().map(|gateway| readable(gateway.as_fd())));
            match poll(&mut fds, timeout.map_or(PollTimeout::NONE, round_up)) {
                Err(nix::Error::EINTR) => continue,
                other => other.map_err(|e| format!("cannot wait: {e}"))?,
            };
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
            if child.is_some() && ready[1] {
                return Ok(Ended::Child);
            }
            if self.gateway.is_some() && ready.last() == Some(&true) {
                self.serve_gateway();
            }
            if ready[0] && !self.hear() {
                return Ok(Ended::Supervisor);
            }
        }
    }

    fn serve_gateway(&mut self) {
        if let Some(gateway) = &self.gateway
            && !inside::serve_one(gateway.as_fd()).unwrap_or(false)
        {
            // It has ended, or speaks another language. The supervisor sends the next one's connection.
            self.gateway = None;
        }
    }

    /// False when the supervisor has gone.
    fn hear(&mut self) -> bool {
        match wire::recv::<ToAgent>(self.supervisor) {
            Ok(Some((ToAgent::Inside, mut fds))) => {
                self.gateway = fds.pop();
                true
            }
            Ok(Some((ToAgent::IdsMapped, _))) => true,
            Ok(Some((ToAgent::Make { order, interface }, _))) => match order::make(&interface) {
                Ok(made) => {
                    notify(self.supervisor, made.notices).is_ok()
                        && send_link(self.supervisor, order, made.name, made.link).is_ok()
                }
                Err(error) => self.done(order, Err(error.to_string())),
            },
            Ok(Some((ToAgent::Remove { order, name, interface }, _))) => {
                self.done(order, order::remove(&name, &interface).map_err(|e| e.to_string()))
            }
            Ok(Some((ToAgent::TakeDefault { order, name, interface }, _))) => {
                self.done(order, order::take_default(&name, &interface).map_err(|e| e.to_string()))
            }
            Ok(Some((ToAgent::Answer { order, name, interface, udp }, _))) => {
                self.done(order, order::answer_by(&name, &interface, &udp).map_err(|e| e.to_string()))
            }
            Ok(Some((ToAgent::Reset { order, gone }, _))) => self.done(order, reset(&gone)),
            Ok(None) | Err(_) => false,
        }
    }

    /// Answer an order; false when the supervisor has gone.
    fn done(&self, order: u64, outcome: Result<(), String>) -> bool {
        wire::send(self.supervisor, &FromAgent::Done { order, error: outcome.err() }, &[]).is_ok()
    }
}

/// End the connections that went through a gateway that has died, so that nobody waits for what will not come. Those
/// that are still being set up go on with the next gateway.
fn reset(gone: &Gone) -> Result<(), String> {
    match SockDiag::open().and_then(|mut diag| diag.reset_connections(|own, other| gone.includes(own, other))) {
        // What cannot be reset here is reset by the next gateway, as soon as it sends something.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOENT)) => Ok(()),
        other => other.map(drop).map_err(|e| format!("connections that were lost cannot be reset inside: {e}")),
    }
}

/// Hand a link to the supervisor.
pub(super) fn send_link(supervisor: &OwnedFd, order: u64, name: String, link: MadeLink) -> Result<(), String> {
    let MadeLink { kind, fd, mac, stays, notice } = link;
    let fds: Vec<BorrowedFd<'_>> = fd.iter().map(AsFd::as_fd).collect();
    wire::send(supervisor, &FromAgent::Link { order, name, kind, mac, stays, notice }, &fds).map_err(|e| e.to_string())
}

/// Lines for the person.
pub(super) fn notify(supervisor: &OwnedFd, notices: Vec<String>) -> Result<(), String> {
    for text in notices {
        wire::send(supervisor, &FromAgent::Notice { text }, &[]).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// For poll(2), which counts milliseconds: not before the time has come.
fn round_up(duration: Duration) -> PollTimeout {
    PollTimeout::try_from(duration + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
}

/// Looks at what the sandbox listens on.
struct Follower {
    diag: SockDiag,
    reached: Vec<Reached>,
    /// UDP ports of clients.
    local_ports: RangeInclusive<u16>,
    told: (BTreeSet<u16>, BTreeSet<u16>),
    next: Instant,
}

impl Follower {
    fn new(reached: Vec<Reached>) -> io::Result<Follower> {
        let mut diag = SockDiag::open()?;
        diag.tcp_listeners()?;
        let local_ports = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
        let local_ports = local_ports.ok().and_then(|text| parse_range(&text)).unwrap_or(LOCAL_PORTS);
        Ok(Follower { diag, reached, local_ports, told: Default::default(), next: Instant::now() })
    }

    /// What has changed, when it is time to look.
    fn look(&mut self, now: Instant) -> Option<FromAgent> {
        if now < self.next {
            return None;
        }
        self.next = now + LOOK;
        let tcp = self.diag.tcp_listeners().ok()?;
        let udp = self.diag.udp_listeners().ok()?;
        let tcp = self.ports(Protocol::Tcp, tcp);
        let mut udp = self.ports(Protocol::Udp, udp);
        udp.retain(|port| !self.local_ports.contains(port));
        // One more than are published, so that the supervisor sees that there are more.
        let short =
            |ports: &BTreeSet<u16>| -> BTreeSet<u16> { ports.iter().copied().take(MOST_FOLLOWED + 1).collect() };
        let found = (short(&tcp), short(&udp));
        if found == self.told {
            return None;
        }
        let (tcp, udp) = (found.0.iter().copied().collect(), found.1.iter().copied().collect());
        self.told = found;
        Some(FromAgent::Listeners { tcp, udp })
    }

    fn ports(&self, protocol: Protocol, bound: Vec<SocketAddr>) -> BTreeSet<u16> {
        let is_reached =
            |at: &SocketAddr| self.reached.iter().any(|reached| (reached.protocol, reached.inside) == (protocol, *at));
        bound.iter().filter(|at| can_be_reached(at.ip()) && !is_reached(at)).map(SocketAddr::port).collect()
    }
}

/// Does somebody who connects to the sandbox's loopback or to its own address find it there?
fn can_be_reached(ip: IpAddr) -> bool {
    !ip.is_loopback() || ip == Ipv4Addr::LOCALHOST || ip == Ipv6Addr::LOCALHOST
}

fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut words = text.split_ascii_whitespace().map(str::parse);
    Some(words.next()?.ok()?..=words.next()?.ok()?)
}

/// In the sandbox's network namespace, whose loopback is up: listeners for `--reach`, handed to the supervisor.
pub(super) fn bind_reached(supervisor: &OwnedFd, wanted: &[Reach]) -> Result<Vec<Reached>, String> {
    let mut bound: Vec<(Reached, OwnedFd)> = Vec::new();
    for reach in wanted {
        for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let inside = SocketAddr::new(ip, reach.sandbox_port);
            match listener(inside, reach.protocol) {
                Ok(socket) => {
                    let Reach { host_port, protocol, .. } = *reach;
                    bound.push((Reached { host_port, protocol, inside }, socket.into()));
                }
                Err(error) if ip.is_ipv6() && is_family_missing(&error) => {}
                Err(error) => return Err(not_reached(reach, inside, &error)),
            }
        }
    }
    let reached: Vec<Reached> = bound.iter().map(|(reached, _)| *reached).collect();
    let mut sockets = bound.iter().map(|(_, socket)| socket.as_fd());
    for batch in reach_batches(&reached) {
        let fds: Vec<BorrowedFd<'_>> = sockets.by_ref().take(batch.len()).collect();
        wire::send(supervisor, &FromAgent::Reached { reached: batch.to_vec() }, &fds).map_err(|e| e.to_string())?;
    }
    Ok(reached)
}

fn listener(at: SocketAddr, protocol: Protocol) -> io::Result<Socket> {
    let kind = match protocol {
        Protocol::Tcp => Type::STREAM,
        Protocol::Udp => Type::DGRAM,
    };
    let socket = Socket::new(Domain::for_address(at), kind.nonblocking().cloexec(), None)?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    match protocol {
        Protocol::Tcp => {
            socket.set_reuse_address(true)?;
            splice::set_options(&socket)?;
            socket.bind(&at.into())?;
            socket.listen(libc::SOMAXCONN)?;
        }
        Protocol::Udp => socket.bind(&at.into())?,
    }
    Ok(socket)
}

fn is_family_missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn not_reached(reach: &Reach, inside: SocketAddr, error: &io::Error) -> String {
    let what = format!("--reach {reach}: cannot listen on {inside}/{} inside", reach.protocol);
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => format!(
            "{what}: something there listens on it already; give another port, as in --reach {}:PORT",
            reach.host_port
        ),
        Some(libc::EADDRNOTAVAIL) => format!("{what}: the namespace's loopback interface is down (ip link set lo up)"),
        _ => format!("{what}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::scm;
    use crate::sys::testing::in_namespace;

    fn text(error: impl std::fmt::Display) -> String {
        error.to_string()
    }

    fn reach(port: u16, protocol: Protocol) -> Reach {
        Reach { host_port: 5432, sandbox_port: port, protocol }
    }

    #[test]
    fn listeners_are_told_of_once_and_clients_and_reached_ports_are_left_out() {
        in_namespace(|| {
            super::super::link::configure_namespace().map_err(text)?;
            let (ours, _theirs) = scm::pair().map_err(text)?;
            let reached = bind_reached(&ours, &[reach(5432, Protocol::Tcp), reach(53, Protocol::Udp)])?;
            if reached.len() != 4 {
                return Err(format!("{reached:?}"));
            }
            let web = listener(([0, 0, 0, 0], 80).into(), Protocol::Tcp).map_err(text)?;
            let _stub = listener(([127, 0, 0, 53], 53).into(), Protocol::Tcp).map_err(text)?;
            let _dns = listener("[::]:5353".parse().map_err(text)?, Protocol::Udp).map_err(text)?;
            let _client = listener(([0, 0, 0, 0], 40_000).into(), Protocol::Udp).map_err(text)?;
            let mut follower = Follower::new(reached).map_err(text)?;
            let now = Instant::now() + LOOK;
            match follower.look(now) {
                Some(FromAgent::Listeners { tcp, udp }) if tcp == [80] && udp == [5353] => {}
                other => return Err(format!("{other:?}")),
            }
            if let Some(again) = follower.look(now + LOOK) {
                return Err(format!("{again:?}"));
            }
            drop(web);
            match follower.look(now + 2 * LOOK) {
                Some(FromAgent::Listeners { tcp, .. }) if tcp.is_empty() => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    #[test]
    fn a_port_that_is_taken_inside_is_said_to_be() {
        in_namespace(|| {
            super::super::link::configure_namespace().map_err(text)?;
            let (ours, _theirs) = scm::pair().map_err(text)?;
            let _there = listener(([0, 0, 0, 0], 5432).into(), Protocol::Tcp).map_err(text)?;
            match bind_reached(&ours, &[reach(5432, Protocol::Tcp)]) {
                Err(said) if said.contains("5432") && said.contains("listens on it already") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    #[test]
    fn an_agent_serves_the_gateway_it_was_given_last_and_ends_with_its_supervisor() {
        let (ours, supervisor) = scm::pair().unwrap();
        let (first, first_agent) = scm::pair().unwrap();
        let (second, second_agent) = scm::pair().unwrap();
        wire::send(&supervisor, &ToAgent::Inside, &[first_agent.as_fd()]).unwrap();
        wire::send(&supervisor, &ToAgent::Inside, &[second_agent.as_fd()]).unwrap();
        drop((first_agent, second_agent));
        let agent = std::thread::spawn(move || Attendance::new(&ours, &Ports::default(), Vec::new()).wait(None));
        assert_eq!(scm::recv(&first, &mut [0; 8]).unwrap().0, 0, "closed when the second came");
        scm::send(&second, &[inside::Kind::Udp4 as u8, 3], &[]).unwrap();
        assert_eq!(scm::recv(&second, &mut [0; 8]).unwrap().1.len(), 3);
        drop(supervisor);
        assert_eq!(agent.join().unwrap(), Ok(Ended::Supervisor));
    }
}
