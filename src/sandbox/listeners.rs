//! What a network namespace listens on, as far as somebody who follows its ports wants to know.
//!
//! TCP sockets that listen, and UDP sockets that are not connected. A UDP port in the range that the kernel takes clients'
//! ports from belongs to a client. Which addresses count is for the caller to say.
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use super::ports::Inner;
use crate::plan::Protocol;
use crate::sys::sockdiag::SockDiag;

/// The kernel's own default (ip(7)).
const LOCAL_PORTS: RangeInclusive<u16> = 32_768..=60_999;

/// Looking takes time where there are tens of thousands of sockets: at most one part in so many, but not so seldom that
/// somebody notices.
const SHARE: u32 = 20;
const SELDOM: Duration = Duration::from_millis(900);

/// A look at one namespace, again and again.
pub(super) struct Listeners {
    diag: SockDiag,
    /// UDP ports of clients.
    local_ports: RangeInclusive<u16>,
    /// How often.
    pause: Duration,
    next: Instant,
}

impl Listeners {
    /// Of the namespace that the calling thread is in, not more often than each `pause`.
    pub(super) fn open(pause: Duration) -> io::Result<Listeners> {
        let mut diag = SockDiag::open()?;
        diag.tcp_listeners()?;
        let local_ports = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
        let local_ports = local_ports.ok().and_then(|text| parse_range(&text)).unwrap_or(LOCAL_PORTS);
        Ok(Listeners { diag, local_ports, pause, next: Instant::now() })
    }

    /// When it is time to look.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// The ports that somebody listens on, at an address that counts; `None` before it is time.
    pub(super) fn look(
        &mut self,
        now: Instant,
        counts: impl Fn(Protocol, SocketAddr) -> bool,
    ) -> Option<io::Result<BTreeSet<Inner>>> {
        if now < self.next {
            return None;
        }
        let begun = Instant::now();
        let found = self.read(counts);
        self.next = now + self.pause.max((begun.elapsed() * SHARE).min(SELDOM));
        Some(found)
    }

    fn read(&mut self, counts: impl Fn(Protocol, SocketAddr) -> bool) -> io::Result<BTreeSet<Inner>> {
        let tcp = self.diag.tcp_listeners()?;
        let mut udp = self.diag.udp_listeners()?;
        udp.retain(|at| !self.local_ports.contains(&at.port()));
        let of = |protocol, bound: Vec<SocketAddr>| {
            let bound = bound.into_iter().map(|at| SocketAddr::new(at.ip().to_canonical(), at.port()));
            bound.filter(|at| counts(protocol, *at)).map(|at| (protocol, at.port())).collect::<BTreeSet<Inner>>()
        };
        let mut found = of(Protocol::Tcp, tcp);
        found.extend(of(Protocol::Udp, udp));
        Ok(found)
    }
}

/// Does somebody who connects to the namespace's loopback or to its own address find it there?
pub(super) fn can_be_reached(ip: IpAddr) -> bool {
    !ip.is_loopback() || ip == Ipv4Addr::LOCALHOST || ip == Ipv6Addr::LOCALHOST
}

/// Does somebody who connects to the namespace's loopback find it there?
pub(super) fn is_on_loopback(ip: IpAddr) -> bool {
    ip.is_unspecified() || ip == Ipv4Addr::LOCALHOST || ip == Ipv6Addr::LOCALHOST
}

fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut words = text.split_ascii_whitespace().map(str::parse);
    Some(words.next()?.ok()?..=words.next()?.ok()?)
}
