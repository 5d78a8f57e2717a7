//! What an agent does as long as the sandbox lives, besides waiting for its end.
//!
//! # Theory of operation
//!
//! Five things, in one poll loop ([`Attendance::wait`]):
//!
//! - it makes interfaces, takes them away, moves the default route, and resets what went through a gateway that has
//!   died, as the supervisor asks;
//! - it makes sockets inside for the gateway ([`publish::inside`](crate::publish::inside)), whose connection the
//!   supervisor sends it ([`ToAgent::Inside`]), for a new gateway another;
//! - it opens listeners on the sandbox's loopback, for what the supervisor has found on the host's ([`super::reach`]);
//! - with `-p auto` it looks every [`LOOK`] at what the sandbox listens on, and tells the supervisor when that has
//!   changed. Without, nothing wakes it;
//! - it hears of the supervisor's end, and of a child's.
//!
//! *What counts as listening* ([`super::listeners`]): what is on the unspecified address or one that can be reached: of
//! 127.0.0.0/8 only 127.0.0.1. What was made for `--reach` does not count, until the supervisor says that it is closed.
//!
//! Before that, for `--reach`, the agent binds listeners on the sandbox's loopback ([`bind_reached`]); the supervisor
//! gets them, so many at a time, and the agent keeps none.
use std::collections::{BTreeSet, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Socket, Type};

use super::link::MadeLink;
use super::listeners::{Listeners, can_be_reached};
use super::message::{FromAgent, Gone, ToAgent};
use super::order;
use super::ports::{Inner, MOST_FOLLOWED};
use crate::control::gateway::check_attach;
use crate::control::wire;
use crate::plan::{Ports, Protocol, Reach, Reached};
use crate::publish::{inside, splice};
use crate::sys::proc;
use crate::sys::scm::MAX_FDS;
use crate::sys::sockdiag::SockDiag;

/// How often `-p auto` looks.
const LOOK: Duration = Duration::from_millis(200);

/// Most ports that are opened at a time: each has a socket of either family.
const MAX_REACH: usize = MAX_FDS / 2;

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
        let follower = ports.follow_sandbox().then(|| Follower::new(reached)).and_then(|follower| {
            follower
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
            let timeout = self.follower.as_ref().map(|f| f.listeners.next().saturating_duration_since(Instant::now()));
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
            Ok(Some((ToAgent::Inside, fds))) => match connection(fds) {
                Ok(gateway) => {
                    self.gateway = Some(gateway);
                    true
                }
                Err(why) => {
                    let text = format!("the sandbox's agent makes no sockets for a gateway: {why}");
                    notify(self.supervisor, vec![text]).is_ok()
                }
            },
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
            Ok(Some((ToAgent::Listen { order, reach }, _))) => {
                let outcome = bind_reached(self.supervisor, &reach, true);
                if let (Ok(reached), Some(follower)) = (&outcome, &mut self.follower) {
                    follower.reached.extend(reached.iter().map(bound_to));
                }
                self.done(order, outcome.map(drop))
            }
            Ok(Some((ToAgent::Forget { reached }, _))) => {
                if let Some(follower) = &mut self.follower {
                    follower.reached.retain(|there| !reached.iter().any(|gone| bound_to(gone) == *there));
                }
                true
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

/// The one connection that came with a message.
fn connection(fds: Vec<OwnedFd>) -> Result<OwnedFd, String> {
    let [one] = <[OwnedFd; 1]>::try_from(fds).map_err(|fds| format!("{} descriptors came, not one", fds.len()))?;
    check_attach(&one).map_err(|error| error.to_string())?;
    Ok(one)
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
    listeners: Listeners,
    /// What was made for `--reach`.
    reached: HashSet<(Protocol, SocketAddr)>,
    told: BTreeSet<Inner>,
}

impl Follower {
    fn new(reached: Vec<Reached>) -> io::Result<Follower> {
        let reached = reached.iter().map(bound_to).collect();
        Ok(Follower { listeners: Listeners::open(LOOK)?, reached, told: BTreeSet::new() })
    }

    /// What has changed, when it is time to look.
    fn look(&mut self, now: Instant) -> Option<FromAgent> {
        let Follower { listeners, reached, told } = self;
        let counts = |protocol, at: SocketAddr| can_be_reached(at.ip()) && !reached.contains(&(protocol, at));
        let found = listeners.look(now, counts)?.ok()?;
        // One more than are published, so that the supervisor sees that there are more.
        let of = |wanted: Protocol| -> Vec<u16> {
            let ports = found.iter().filter(|(protocol, _)| *protocol == wanted).map(|(_, port)| *port);
            ports.take(MOST_FOLLOWED + 1).collect()
        };
        let (tcp, udp) = (of(Protocol::Tcp), of(Protocol::Udp));
        if found == *told {
            return None;
        }
        *told = found;
        Some(FromAgent::Listeners { tcp, udp })
    }
}

fn bound_to(reached: &Reached) -> (Protocol, SocketAddr) {
    (reached.protocol, reached.inside)
}

/// In the sandbox's network namespace, whose loopback is up: listeners for `--reach`, handed to the supervisor. What
/// cannot be had is left out if that is `tolerant`; not for want of descriptors.
pub(super) fn bind_reached(supervisor: &OwnedFd, wanted: &[Reach], tolerant: bool) -> Result<Vec<Reached>, String> {
    if wanted.len() > MAX_REACH {
        // What is under way counts (unix(7)). CMD has its own limit: its first process was forked before.
        let _ = proc::raise_descriptor_limit();
    }
    let mut all = Vec::new();
    for wanted in wanted.chunks(MAX_REACH) {
        let (reached, sockets): (Vec<Reached>, Vec<Socket>) = bind_some(wanted, tolerant)?.into_iter().unzip();
        if reached.is_empty() {
            continue;
        }
        let fds: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
        wire::send(supervisor, &FromAgent::Reached { reached: reached.clone() }, &fds).map_err(|e| e.to_string())?;
        all.extend(reached);
    }
    Ok(all)
}

fn bind_some(wanted: &[Reach], tolerant: bool) -> Result<Vec<(Reached, Socket)>, String> {
    let mut bound = Vec::new();
    for reach in wanted {
        let mut both = Vec::new();
        for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let inside = SocketAddr::new(ip, reach.sandbox_port);
            match listener(inside, reach.protocol) {
                Ok(socket) => {
                    let Reach { host_port, protocol, .. } = *reach;
                    both.push((Reached { host_port, protocol, inside }, socket));
                }
                Err(error) if ip.is_ipv6() && is_family_missing(&error) => {}
                // Of the two both or none: whoever is on one of them is somebody of the sandbox.
                Err(error) if tolerant && !is_exhausted(&error) => {
                    both.clear();
                    break;
                }
                Err(error) => return Err(not_reached(reach, inside, &error)),
            }
        }
        bound.extend(both);
    }
    Ok(bound)
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

fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

fn not_reached(reach: &Reach, inside: SocketAddr, error: &io::Error) -> String {
    let what = format!("--reach {reach}: cannot listen on {inside}/{} inside", reach.protocol);
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => format!(
            "{what}: something there listens on it already; give another port, as in --reach {}:PORT",
            reach.host_port
        ),
        Some(libc::EMFILE) => {
            format!("{what}: the limit of descriptors is too low for so many ports (ulimit -n); reach fewer")
        }
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
            let reached = bind_reached(&ours, &[reach(5432, Protocol::Tcp), reach(53, Protocol::Udp)], false)?;
            if reached.len() != 4 {
                return Err(format!("{reached:?}"));
            }
            let web = listener(([0, 0, 0, 0], 80).into(), Protocol::Tcp).map_err(text)?;
            let _stub = listener(([127, 0, 0, 53], 53).into(), Protocol::Tcp).map_err(text)?;
            let _dns = listener("[::]:5353".parse().map_err(text)?, Protocol::Udp).map_err(text)?;
            let _client = listener(([0, 0, 0, 0], 40_000).into(), Protocol::Udp).map_err(text)?;
            let mut follower = Follower::new(reached).map_err(text)?;
            // However long a look takes on a busy machine, the next is then.
            let step = Duration::from_secs(1);
            let now = Instant::now() + step;
            match follower.look(now) {
                Some(FromAgent::Listeners { tcp, udp }) if tcp == [80] && udp == [5353] => {}
                other => return Err(format!("{other:?}")),
            }
            if let Some(again) = follower.look(now + step) {
                return Err(format!("{again:?}"));
            }
            drop(web);
            match follower.look(now + 2 * step) {
                Some(FromAgent::Listeners { tcp, .. }) if tcp.is_empty() => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    #[test]
    fn what_is_opened_later_does_not_count_until_it_is_forgotten() {
        in_namespace(|| {
            super::super::link::configure_namespace().map_err(text)?;
            let (ours, supervisor) = scm::pair().map_err(text)?;
            let ports = Ports { auto: Some(crate::plan::Auto::All), ..Ports::default() };
            let taken = listener(([127, 0, 0, 1], 81).into(), Protocol::Tcp).map_err(text)?;
            let wanted = [80, 81, 82].map(|port| reach(port, Protocol::Tcp));
            wire::send(&supervisor, &ToAgent::Listen { order: 7, reach: wanted.to_vec() }, &[]).map_err(text)?;
            let agent = std::thread::spawn(move || Attendance::new(&ours, &ports, Vec::new()).wait(None));
            let mut sockets = Vec::new();
            let mut opened: Vec<Reached> = Vec::new();
            let (mut listening, mut done) = (None, false);
            while listening.is_none() || !done {
                match wire::recv::<FromAgent>(&supervisor).map_err(text)? {
                    Some((FromAgent::Reached { reached }, fds)) => {
                        opened.extend(reached);
                        sockets.extend(fds);
                    }
                    Some((FromAgent::Listeners { tcp, .. }, _)) => listening = Some(tcp),
                    Some((FromAgent::Done { order: 7, error: None }, _)) => done = true,
                    other => return Err(format!("{other:?}")),
                }
            }
            if listening != Some(vec![81]) {
                return Err(format!("{listening:?}"));
            }
            let hear = || match wire::recv::<FromAgent>(&supervisor).map_err(text)? {
                Some((FromAgent::Listeners { tcp, .. }, _)) => Ok(tcp),
                other => Err(format!("{other:?}")),
            };
            drop(taken);
            let listening = hear()?;
            let inside: Vec<u16> = opened.iter().map(|reached| reached.inside.port()).collect();
            if !(listening.is_empty() && inside == [80, 80, 82, 82] && sockets.len() == 4) {
                return Err(format!("{listening:?} {inside:?}"));
            }
            // Whoever listens there now is the sandbox.
            wire::send(&supervisor, &ToAgent::Forget { reached: opened[..2].to_vec() }, &[]).map_err(text)?;
            let listening = hear()?;
            drop(supervisor);
            match (listening[..] == [80], agent.join()) {
                (true, Ok(Ok(Ended::Supervisor))) => Ok(()),
                other => Err(format!("{listening:?} {other:?}")),
            }
        });
    }

    #[test]
    fn thousands_of_ports_are_opened_in_batches() {
        in_namespace(|| {
            super::super::link::configure_namespace().map_err(text)?;
            let (ours, supervisor) = scm::pair().map_err(text)?;
            let taken = listener(([0, 0, 0, 0], 1500).into(), Protocol::Tcp).map_err(text)?;
            let wanted: Vec<Reach> = (1..=3000).map(|port| reach(port, Protocol::Tcp)).collect();
            let binding = std::thread::spawn(move || bind_reached(&ours, &wanted, true).map(|reached| reached.len()));
            let mut came = 0;
            while let Some((FromAgent::Reached { reached }, fds)) =
                wire::recv::<FromAgent>(&supervisor).map_err(text)?
            {
                if reached.len() != fds.len() {
                    return Err(format!("{} {}", reached.len(), fds.len()));
                }
                came += fds.len();
            }
            drop(taken);
            match binding.join() {
                Ok(Ok(bound)) if bound == came && came == 2 * 2999 => Ok(()),
                other => Err(format!("{came} {other:?}")),
            }
        });
    }

    #[test]
    fn a_port_that_is_taken_inside_is_said_to_be() {
        in_namespace(|| {
            super::super::link::configure_namespace().map_err(text)?;
            let (ours, _theirs) = scm::pair().map_err(text)?;
            let _there = listener(([0, 0, 0, 0], 5432).into(), Protocol::Tcp).map_err(text)?;
            match bind_reached(&ours, &[reach(5432, Protocol::Tcp)], false) {
                Err(said) if said.contains("5432") && said.contains("listens on it already") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    #[test]
    fn an_agent_makes_sockets_for_connections_alone_and_closes_what_else_it_is_sent() {
        let (ours, supervisor) = scm::pair().unwrap();
        let agent = std::thread::spawn(move || Attendance::new(&ours, &Ports::default(), Vec::new()).wait(None));
        let (mut reader, writer) = io::pipe().unwrap();
        let alone = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        let stream = Socket::pair(Domain::UNIX, Type::STREAM, None).unwrap().0;
        for (fds, what) in [
            (vec![writer.as_fd()], "Socket operation on non-socket"),
            (vec![alone.as_fd()], "nobody is at its other end"),
            (vec![stream.as_fd()], "not a Unix sequenced-packet socket"),
            (vec![], "0 descriptors came"),
            (vec![supervisor.as_fd(), supervisor.as_fd()], "2 descriptors came"),
        ] {
            wire::send(&supervisor, &ToAgent::Inside, &fds).unwrap();
            match wire::recv::<FromAgent>(&supervisor).unwrap() {
                Some((FromAgent::Notice { text }, _)) => assert!(text.contains(what), "{text}"),
                other => panic!("{other:?}"),
            }
        }
        // Nobody else has the pipe open any more.
        drop(writer);
        assert_eq!(io::Read::read(&mut reader, &mut [0; 1]).unwrap(), 0);
        drop(supervisor);
        assert_eq!(agent.join().unwrap(), Ok(Ended::Supervisor));
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
