//! Sockets on the host for published ports: what the supervisor binds, keeps, and hands to the gateway.
//!
//! # Theory of operation
//!
//! A spec is one socket for each port of the sandbox. Where all addresses of the host are meant it is a socket for
//! both families, `[::]` with IPV6_V6ONLY off (ipv6(7)), which halves the descriptors and cannot be had by half; on a
//! host without IPv6 it is `0.0.0.0`. A spec is bound as a whole or not at all: what was bound before something
//! failed is closed again.
//!
//! SO_REUSEADDR on TCP, so that what earlier connections left behind (TIME-WAIT) does not keep a restart from its
//! port; two listeners cannot share a port by it (socket(7)). Never on UDP, where they could. A free port gets it
//! only when it is bound: with it the kernel looks through the lower half of its range first, every time, which takes
//! ten thousand of them from a fraction of a second to a dozen (inet_csk_find_open_port in
//! net/ipv4/inet_connection_sock.c). A port may turn out to be taken as late as in listen(2), when another program is
//! as quick; then another free one is asked for.
//!
//! Where a *manner* says so ([`BindManner`](crate::plan::BindManner)): SO_BINDTODEVICE and IP_FREEBIND before the bind;
//! two specs that differ in their interface may share a port. Of a *tolerant* spec, and of all those together that come
//! from the same words, ports that are taken, not allowed or not the host's are left out, which one line at debug level
//! says; an error is only that none is left, or that there is no descriptor for the next one.
//!
//! A spec that *follows* the sandbox has no socket of its own; it is bound a port at a time ([`bind_followed`]).
//!
//! What a failure means to a person is told here as well ([`PortFailure`]), because only here is known what was
//! tried: who has the port ([`holder`]), from where on ports are free for everybody, which addresses there are. To find
//! that out takes a while, so it is done for what a person is told, and not before ([`Refusal::explain`]).
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;

use ipnet::IpNet;
use nix::net::if_::if_nametoindex;
use nix::sys::resource::{Resource, getrlimit};
use socket2::{Domain, Socket, Type};

use super::holder;
use super::splice;
use crate::plan::{Auto, BindFailure, Origin, PortFailure, PortRange, Protocol, PublishSpec, Published};

/// How often a free port is asked for when others take what was found.
const TRIES: u32 = 16;

/// A bound socket, non-blocking, and what it is for. A TCP socket listens already.
#[derive(Debug)]
pub struct Bound {
    /// What it is for.
    pub published: Published,
    /// The socket.
    pub socket: OwnedFd,
}

/// All sockets of a spec, or none.
///
/// # Errors
/// What was tried, why it failed, what to do.
pub fn bind(spec: &PublishSpec, sandbox: &str, from: &[IpNet], origin: Origin) -> Result<Vec<Bound>, PortFailure> {
    bind_all(&[spec], sandbox, from, origin)
}

/// All sockets of several specs, or none. Those that follow the sandbox have none yet.
///
/// # Errors
/// What was tried, why it failed, what to do.
pub fn bind_all(
    specs: &[&PublishSpec],
    sandbox: &str,
    from: &[IpNet],
    origin: Origin,
) -> Result<Vec<Bound>, PortFailure> {
    let mut all = Vec::new();
    let mut rest = specs;
    while let Some((spec, others)) = rest.split_first() {
        let like = |other: &&&PublishSpec| other.manner.tolerant && other.text == spec.text;
        let alike = if spec.manner.tolerant { others.iter().take_while(like).count() } else { 0 };
        let (group, after) = rest.split_at(1 + alike);
        rest = after;
        if spec.manner.following {
            continue;
        }
        all.extend(if spec.manner.tolerant {
            attempt_some(group, sandbox, from, origin).map_err(|refusal| refusal.explain(false))?
        } else {
            attempt(spec, sandbox, from, origin).map_err(|refusal| refusal.explain(true))?
        });
    }
    Ok(all)
}

/// As many sockets of these specs as can be had, which all come from the same words.
fn attempt_some(specs: &[&PublishSpec], sandbox: &str, from: &[IpNet], origin: Origin) -> Result<Vec<Bound>, Refusal> {
    let (mut all, mut left_out, mut first) = (Vec::new(), 0_u32, None);
    for spec in specs {
        let place = Place::of(spec);
        let Some(host) = spec.host.filter(|host| host.count() == spec.sandbox.count()) else {
            all.extend(attempt(spec, sandbox, from, origin)?);
            continue;
        };
        for (inside, port) in spec.sandbox.ports().zip(host.ports()) {
            match place.listen(port) {
                Ok(socket) => all.push(place.bound(spec, inside, socket, sandbox, from, origin)),
                Err(error) => {
                    let is_final = !is_of_one_port(&error);
                    if is_final || first.is_none() {
                        first = Some(Refusal {
                            place: place.clone(),
                            spec: Box::new((*spec).clone()),
                            port: Some(port),
                            error,
                        });
                    }
                    if is_final {
                        break;
                    }
                    left_out += 1;
                }
            }
        }
        if let Some(refusal) = first.take_if(|refusal| !is_of_one_port(&refusal.error)) {
            return Err(refusal);
        }
    }
    match first {
        Some(refusal) if all.is_empty() => Err(refusal),
        Some(refusal) => {
            let (text, port, error) = (&refusal.spec.text, refusal.port.unwrap_or_default(), &refusal.error);
            tracing::debug!("'{text}': {left_out} ports are left out, first {port} ({error})");
            Ok(all)
        }
        None => Ok(all),
    }
}

fn attempt(spec: &PublishSpec, sandbox: &str, from: &[IpNet], origin: Origin) -> Result<Vec<Bound>, Refusal> {
    let place = Place::of(spec);
    let sandbox_ports = spec.sandbox.ports();
    let bound = |inside: u16, socket: (Socket, u16)| place.bound(spec, inside, socket, sandbox, from, origin);
    let failure = |port: Option<u16>| {
        let place = &place;
        move |error: io::Error| Refusal { place: place.clone(), spec: Box::new(spec.clone()), port, error }
    };
    match spec.host {
        None => sandbox_ports.map(|inside| Ok(bound(inside, place.listen_free().map_err(failure(None))?))).collect(),
        Some(host) if host.count() == spec.sandbox.count() => sandbox_ports
            .zip(host.ports())
            .map(|(inside, port)| Ok(bound(inside, place.listen(port).map_err(failure(Some(port)))?)))
            .collect(),
        Some(host) => {
            let socket = place.listen_in(host).map_err(|(port, error)| failure(Some(port))(error))?;
            Ok(vec![bound(spec.sandbox.first, socket)])
        }
    }
}

/// For a spec that follows the sandbox, which listens on this port: its socket, at the number that the spec says.
///
/// # Errors
/// When it cannot be had. None is had, and that is no error, where the spec does not mean the port.
pub fn bind_followed(
    spec: &PublishSpec,
    sandbox_port: u16,
    sandbox: &str,
    from: &[IpNet],
) -> Result<Vec<Bound>, Refusal> {
    let offset = sandbox_port.checked_sub(spec.sandbox.first).filter(|_| spec.sandbox.contains(sandbox_port));
    let Some((offset, host)) = offset.zip(spec.host) else { return Ok(Vec::new()) };
    let one = |port: u16| PortRange { first: port, last: port };
    let spec = PublishSpec { host: Some(one(host.first + offset)), sandbox: one(sandbox_port), ..spec.clone() };
    attempt(&spec, sandbox, from, Origin::Auto)
}

/// What could not be bound, and the kernel's answer.
#[derive(Debug)]
pub struct Refusal {
    place: Place,
    spec: Box<PublishSpec>,
    /// `None`: any free one.
    port: Option<u16>,
    error: io::Error,
}

impl Refusal {
    /// What it means to a person. Who has the port is looked for only with `names_holder`: that takes long.
    pub fn explain(&self, names_holder: bool) -> PortFailure {
        self.place.failure(&self.spec, self.port, &self.error, names_holder)
    }

    /// Is another port of no use either: no descriptor is left?
    pub fn is_exhausted(&self) -> bool {
        matches!(self.error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
    }

    /// Has somebody else the port?
    pub fn is_taken(&self) -> bool {
        self.port.is_some() && self.error.raw_os_error() == Some(libc::EADDRINUSE)
    }

    fn is_privileged(&self) -> bool {
        is_privileged(self.port, &self.error)
    }

    fn is_for_want_of_the_address(&self) -> bool {
        matches!(self.error.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT))
    }
}

/// What [`bind_or_near`] has made.
#[derive(Debug)]
pub struct Near {
    /// The sockets, all at one port of the host.
    pub bound: Vec<Bound>,
    /// Why it is not the sandbox's own number; for the person to be told once.
    pub taken: Option<Refusal>,
}

/// For `-p auto`: the sandbox's port under the same number of the host, on the addresses that `auto` means; when
/// that is taken, or for root only, under a free one, unless it is to have the `same_number`.
///
/// # Errors
/// When there is no free one either.
pub fn bind_or_near(
    auto: Auto,
    same_number: bool,
    protocol: Protocol,
    sandbox_port: u16,
    sandbox: &str,
    from: &[IpNet],
) -> Result<Near, Refusal> {
    let one = PortRange { first: sandbox_port, last: sandbox_port };
    let (word, addresses): (_, &[Option<IpAddr>]) = match auto {
        Auto::All => ("auto:all", &[None]),
        Auto::AllV4 => ("auto:all", &[Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED))]),
        Auto::AllV6 => ("auto:all", &[Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED))]),
        Auto::Loopback => ("auto", &[Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), Some(IpAddr::V6(Ipv6Addr::LOCALHOST))]),
    };
    let at = |port: Option<u16>| -> Result<Vec<Bound>, Refusal> {
        let mut host = port.map(|port| PortRange { first: port, last: port });
        let mut all: Vec<Bound> = Vec::new();
        for &address in addresses {
            let spec = PublishSpec {
                text: word.into(),
                address,
                host,
                sandbox: one,
                protocol,
                proxy: None,
                manner: Box::default(),
            };
            match attempt(&spec, sandbox, from, Origin::Auto) {
                Ok(bound) => all.extend(bound),
                // A host without IPv6 has no ::1, which is no reason to publish nothing.
                Err(refusal) if refusal.is_for_want_of_the_address() && !all.is_empty() => {}
                Err(refusal) => return Err(refusal),
            }
            // The second address gets the number that the first one has.
            host =
                all.first().map(|bound| bound.published.host.port()).map(|port| PortRange { first: port, last: port });
        }
        Ok(all)
    };
    let taken = match at(Some(sandbox_port)) {
        Ok(bound) => return Ok(Near { bound, taken: None }),
        Err(refusal) if !same_number && (refusal.is_taken() || refusal.is_privileged()) => refusal,
        Err(refusal) => return Err(refusal),
    };
    // What is free on one address need not be so on the other.
    let mut result = at(None);
    for _ in 1..TRIES {
        match &result {
            Err(refusal) if refusal.is_taken() => result = at(None),
            _ => break,
        }
    }
    Ok(Near { bound: result?, taken: Some(taken) })
}

/// Where sockets are bound.
#[derive(Clone, Debug)]
struct Place {
    address: IpAddr,
    dual_stack: bool,
    protocol: Protocol,
    interface: Option<String>,
    /// The interface's index; 0 without.
    device: u32,
    freebind: bool,
}

impl Place {
    fn of(spec: &PublishSpec) -> Place {
        let (address, dual_stack) = match spec.address {
            Some(address) => (address, false),
            None if host_has_ipv6() => (Ipv6Addr::UNSPECIFIED.into(), true),
            None => (Ipv4Addr::UNSPECIFIED.into(), false),
        };
        let interface = spec.manner.interface.clone();
        // Where there is no such interface, that is told when it is bound to.
        let device = interface.as_deref().and_then(|name| if_nametoindex(name).ok()).unwrap_or(0);
        Place { address, dual_stack, protocol: spec.protocol, interface, device, freebind: spec.manner.freebind }
    }

    /// Addresses of one link need to be told which (ipv6(7)).
    fn at(&self, port: u16) -> SocketAddr {
        match self.address {
            IpAddr::V6(ip) if ip.is_unicast_link_local() => SocketAddrV6::new(ip, port, 0, self.device).into(),
            address => SocketAddr::new(address, port),
        }
    }

    fn bound(
        &self,
        spec: &PublishSpec,
        sandbox_port: u16,
        (socket, port): (Socket, u16),
        sandbox: &str,
        from: &[IpNet],
        origin: Origin,
    ) -> Bound {
        let published = Published {
            sandbox: sandbox.to_owned(),
            protocol: spec.protocol,
            host: self.at(port),
            dual_stack: self.dual_stack,
            device: self.device,
            sandbox_port,
            sandbox_address: spec.manner.sandbox_address,
            proxy: spec.proxy,
            from: from.to_vec(),
            spec: spec.text.clone(),
            origin,
        };
        Bound { published, socket: socket.into() }
    }

    /// A socket at this port, and its port: another one for port 0 only.
    fn listen(&self, port: u16) -> io::Result<(Socket, u16)> {
        let (kind, protocol) = match self.protocol {
            Protocol::Tcp => (Type::STREAM, socket2::Protocol::TCP),
            Protocol::Udp => (Type::DGRAM, socket2::Protocol::UDP),
        };
        let address = self.at(port);
        let socket = Socket::new(Domain::for_address(address), kind.nonblocking(), Some(protocol))?;
        if address.is_ipv6() {
            socket.set_only_v6(!self.dual_stack)?;
        }
        if let Some(interface) = &self.interface {
            socket.bind_device(Some(interface.as_bytes()))?;
        }
        if self.freebind {
            if address.is_ipv6() { socket.set_freebind_v6(true) } else { socket.set_freebind_v4(true) }?;
        }
        if self.protocol == Protocol::Tcp && port != 0 {
            socket.set_reuse_address(true)?;
        }
        socket.bind(&address.into())?;
        if self.protocol == Protocol::Tcp {
            // Its connections inherit all of these, those too that come before a gateway serves it.
            socket.set_reuse_address(true)?;
            splice::set_options(&socket)?;
            socket.listen(libc::SOMAXCONN)?;
        }
        if port != 0 {
            return Ok((socket, port));
        }
        let port = socket.local_addr()?.as_socket().map_or(0, |address| address.port());
        Ok((socket, port))
    }

    fn listen_free(&self) -> io::Result<(Socket, u16)> {
        let mut result = self.listen(0);
        for _ in 1..TRIES {
            match &result {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => result = self.listen(0),
                _ => break,
            }
        }
        result
    }

    /// The first port that can be had; else the first one, and why it cannot.
    fn listen_in(&self, range: PortRange) -> Result<(Socket, u16), (u16, io::Error)> {
        let mut first_failure = None;
        for port in range.ports() {
            match self.listen(port) {
                Ok(found) => return Ok(found),
                Err(error) if is_of_one_port(&error) => first_failure = first_failure.or(Some((port, error))),
                Err(error) => return Err((port, error)),
            }
        }
        Err(first_failure.unwrap_or((range.first, io::ErrorKind::InvalidInput.into())))
    }

    /// What a failure at a port (`None`: at any free one) means to a person.
    fn failure(&self, spec: &PublishSpec, port: Option<u16>, error: &io::Error, names_holder: bool) -> PortFailure {
        let what = format!("'{}' cannot be published", spec.text);
        let text = error.to_string();
        let bind = BindFailure {
            spec: spec.text.clone(),
            port,
            errno: error.raw_os_error().unwrap_or_default(),
            // What Rust appends, strerror(3) does not have.
            reason: text.split(" (os error").next().unwrap_or_default().to_owned(),
            tolerant: spec.manner.tolerant,
        };
        let fail = |code: &str, why: String| PortFailure {
            bind: Some(Box::new(bind.clone())),
            ..PortFailure::new(code, format!("{what}: {why}"))
        };
        match (error.raw_os_error(), port) {
            (Some(libc::EADDRINUSE), Some(port)) => fail("taken", self.taken(spec, port, names_holder)),
            (Some(libc::EADDRINUSE), None) => fail(
                "exhausted",
                format!(
                    "no {} port of the host is free: end what uses them, or name one outside the range in /proc/sys/net/ipv4/ip_local_port_range",
                    self.protocol
                ),
            ),
            (_, Some(port)) if is_privileged(Some(port), error) => fail("privileged", privileged(spec, port)),
            (Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT), _) => fail("no_such_address", self.no_such_address()),
            (Some(libc::ENODEV), _) if self.interface.is_some() => fail(
                "no_such_address",
                format!("the host has no interface {} (ip link)", self.interface.as_deref().unwrap_or_default()),
            ),
            (Some(libc::EPERM), _) if self.interface.is_some() => fail(
                "privileged",
                "only root may bind to an interface before Linux 5.7: name one of its addresses instead".into(),
            ),
            (Some(libc::EMFILE), _) => {
                let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or_default();
                let needed = spec.sandbox.count();
                fail(
                    "exhausted",
                    format!(
                        "it takes {needed} {}, and this process may have {soft} in all (ulimit -n; {hard} at most): publish fewer, or raise the limit",
                        if needed == 1 { "descriptor" } else { "descriptors" },
                    ),
                )
            }
            (Some(libc::ENFILE), _) => fail("exhausted", "the host has no descriptor left (fs.file-max)".into()),
            _ => {
                let port = port.map_or("a free port".to_owned(), |port| format!("port {port}"));
                fail("failed", format!("binding {} {port} of {} failed: {error}", self.protocol, self.shown()))
            }
        }
    }

    fn shown(&self) -> String {
        match self.address {
            address if !address.is_unspecified() => address.to_string(),
            _ if self.dual_stack => "the host".to_owned(),
            IpAddr::V4(_) => "all IPv4 addresses".to_owned(),
            IpAddr::V6(_) => "all IPv6 addresses".to_owned(),
        }
    }

    fn taken(&self, spec: &PublishSpec, port: u16, names_holder: bool) -> String {
        let is_picked = spec.host.is_some_and(|host| host.count() != spec.sandbox.count());
        let who = names_holder.then(|| holder::of(self.protocol, SocketAddr::new(self.address, port))).flatten();
        let who = who.map_or(" by another program".to_owned(), |who| format!(" by {who}"));
        let (protocol, place) = (self.protocol, self.shown());
        // What it would be with a port that is free.
        let free = PublishSpec { host: None, ..spec.clone() };
        match spec.host {
            Some(host) if is_picked => format!(
                "none of the {protocol} ports {host} of {place} is free, {port} is taken{who}: take another range, or any free port with {free}"
            ),
            _ => format!(
                "{protocol} port {port} of {place} is taken{who}: end that, take another port, or any free one with {free}"
            ),
        }
    }

    fn no_such_address(&self) -> String {
        let family = if self.address.is_ipv4() { "IPv4" } else { "IPv6" };
        let others: Vec<String> = host_addresses()
            .into_iter()
            .filter(|ip| ip.is_ipv4() == self.address.is_ipv4())
            .map(|ip| ip.to_string())
            .collect();
        match &others[..] {
            [] => format!("the host has no {family} address: take one of the other family, or none for all"),
            some => format!(
                "the host has no address {}: take one of {}{}, or none for all",
                self.address,
                some[..some.len().min(8)].join(", "),
                if some.len() > 8 { " and others" } else { "" },
            ),
        }
    }
}

/// May another port of the same place be had?
fn is_of_one_port(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied)
}

fn is_privileged(port: Option<u16>, error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM))
        && port.is_some_and(|port| port < unprivileged_from())
}

fn privileged(spec: &PublishSpec, port: u16) -> String {
    let from = unprivileged_from();
    // 80 is known as 8080, 443 as 8443, and so on.
    let other = if port < 100 { u32::from(port) + 8000 } else { u32::from(port % 1000) + 8000 };
    let first = u16::try_from(other).unwrap_or(from).max(from);
    let last = first.saturating_add(spec.sandbox.last - spec.sandbox.first);
    let instead = PublishSpec { host: Some(PortRange { first, last }), ..spec.clone() };
    format!(
        "port {port} is for root, as all below {from} are (sysctl net.ipv4.ip_unprivileged_port_start): take another, like {instead}, or let root set that to {port}"
    )
}

/// The first port that everybody may bind (Documentation/networking/ip-sysctl.rst).
fn unprivileged_from() -> u16 {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    text.trim().parse().unwrap_or(1024)
}

/// Neither left out of the kernel nor switched off on every interface.
fn host_has_ipv6() -> bool {
    fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6").is_ok_and(|text| text.trim() == "0")
        && Socket::new(Domain::IPV6, Type::DGRAM, None).is_ok()
}

/// The addresses that can be bound without naming an interface.
fn host_addresses() -> BTreeSet<IpAddr> {
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|interface| interface.address);
    all.filter_map(|address| match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(v4), _) => Some(IpAddr::V4(v4.ip())),
        (_, Some(v6)) if !v6.ip().is_unicast_link_local() => Some(IpAddr::V6(v6.ip())),
        _ => None,
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::BindManner;
    use crate::sys::netlink::{LinkChange, Netlink};
    use crate::sys::testing::in_namespace;
    use socket2::SockRef;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsFd;
    use std::sync::atomic::{AtomicU8, Ordering};
    use std::time::{Duration, Instant};

    fn try_bind(text: &str) -> Result<Vec<Bound>, PortFailure> {
        bind(&PublishSpec::parse(text).unwrap(), "0123456789ab", &[], Origin::Option)
    }

    fn hosts(bound: &[Bound]) -> Vec<SocketAddr> {
        bound.iter().map(|one| one.published.host).collect()
    }

    /// A loopback address that no other test uses, of this run or another, and the first of four free ports on it.
    fn place() -> (Ipv4Addr, u16) {
        static NEXT: AtomicU8 = AtomicU8::new(100);
        let [.., high, low] = std::process::id().to_be_bytes();
        let address = Ipv4Addr::new(127, NEXT.fetch_add(1, Ordering::Relaxed), high, low);
        // Somebody may listen on all addresses.
        let is_free =
            |port: u16| TcpListener::bind((address, port)).is_ok() && UdpSocket::bind((address, port)).is_ok();
        let first = (10_000..32_000).step_by(4).find(|&first| (first..first + 4).all(is_free));
        (address, first.unwrap())
    }

    #[test]
    fn one_socket_takes_both_families_where_all_addresses_are_meant() {
        let bound = try_bind("80").unwrap();
        let [one] = &bound[..] else { panic!("{bound:?}") };
        assert_eq!((one.published.sandbox_port, one.published.spec.as_str()), (80, "80"));
        let listener = TcpListener::from(one.socket.try_clone().unwrap());
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let port = one.published.host.port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        if one.published.dual_stack {
            TcpStream::connect((Ipv6Addr::LOCALHOST, port)).unwrap();
            assert_eq!(one.published.host.ip(), Ipv6Addr::UNSPECIFIED);
        }
    }

    #[test]
    fn an_address_is_of_its_own_family_only() {
        let bound = try_bind("[::1]::80").unwrap();
        let port = bound[0].published.host.port();
        assert!(!bound[0].published.dual_stack);
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        // Docker's 0.0.0.0 and [::]: the same number, each for itself.
        let v4 = try_bind("0.0.0.0::80/udp").unwrap();
        try_bind(&format!("[::]:{}:80/udp", v4[0].published.host.port())).unwrap();
    }

    #[test]
    fn ranges_go_side_by_side() {
        let (ip, port) = place();
        let first = try_bind(&format!("{ip}:{port}-{}:80-83/udp", port + 3)).unwrap();
        let inside: Vec<u16> = first.iter().map(|one| one.published.sandbox_port).collect();
        assert_eq!(inside, [80, 81, 82, 83]);
        let expected: Vec<SocketAddr> = (port..=port + 3).map(|port| (ip, port).into()).collect();
        assert_eq!(hosts(&first), expected);
        let free = try_bind(&format!("{ip}::80-83")).unwrap();
        let ports: BTreeSet<SocketAddr> = hosts(&free).into_iter().collect();
        assert_eq!(ports.len(), 4);
    }

    #[test]
    fn of_a_range_the_first_free_port_is_picked() {
        let (ip, port) = place();
        let spec = format!("{ip}:{port}-{}:80", port + 1);
        let _taken = TcpListener::bind((ip, port)).unwrap();
        let bound = try_bind(&spec).unwrap();
        assert_eq!(hosts(&bound), [(ip, port + 1).into()]);
        let failure = try_bind(&spec).unwrap_err();
        assert_eq!(failure.code, "taken");
        let expected = format!("none of the tcp ports {port}-{} of {ip} is free, {port} is taken by", port + 1);
        assert!(failure.message.contains(&expected), "{failure}");
    }

    #[test]
    fn nothing_is_left_of_a_spec_that_cannot_be_had_as_a_whole() {
        let (ip, port) = place();
        for suffix in ["", "/udp"] {
            let _taken = (TcpListener::bind((ip, port + 2)).unwrap(), UdpSocket::bind((ip, port + 2)).unwrap());
            let failure = try_bind(&format!("{ip}:{port}-{}:80-83{suffix}", port + 3)).unwrap_err();
            assert_eq!(failure.code, "taken", "{failure}");
            try_bind(&format!("{ip}:{port}-{}:80-81{suffix}", port + 1)).unwrap();
        }
    }

    #[test]
    fn a_taken_port_is_told_with_who_has_it_and_what_to_do() {
        let (ip, port) = place();
        let spec = format!("{ip}:{port}:80");
        let _taken = TcpListener::bind((ip, port)).unwrap();
        let who = format!("(process {})", std::process::id());
        // A child that another test forks has the socket as well for a moment.
        let failure = std::iter::repeat_with(|| try_bind(&spec).unwrap_err());
        let failure = failure.take(50).find(|failure| failure.message.contains(&who)).unwrap();
        assert_eq!(failure.code, "taken");
        let (taken, free) = (format!("tcp port {port} of {ip} is taken by"), format!("{ip}::80"));
        for part in [&spec, &taken, &who, &free] {
            assert!(failure.message.contains(part), "{part}: {failure}");
        }
        // Somebody else may be in the way of all addresses as well.
        assert_eq!(try_bind(&format!("{port}:80")).unwrap_err().code, "taken");
    }

    #[test]
    fn udp_never_shares_a_port() {
        let (ip, _) = place();
        let bound = try_bind(&format!("{ip}::53/udp")).unwrap();
        let text = format!("{ip}:{}:53/udp", bound[0].published.host.port());
        assert_eq!(try_bind(&text).unwrap_err().code, "taken");
    }

    #[test]
    fn a_port_is_free_again_at_once_however_its_connections_ended() {
        let (ip, port) = place();
        for spec in [format!("{ip}:{port}:80"), format!("{ip}::80")] {
            let one = try_bind(&spec).unwrap().remove(0);
            let address = one.published.host;
            let listener = TcpListener::from(one.socket);
            listener.set_nonblocking(false).unwrap();
            let mut client = TcpStream::connect(address).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            SockRef::from(&server).set_linger(None).unwrap();
            server.write_all(b"x").unwrap();
            // Whoever closes first is left in TIME-WAIT.
            drop(server);
            client.read_to_end(&mut Vec::new()).unwrap();
            drop((client, listener));
            try_bind(&format!("{address}:80")).unwrap();
        }
    }

    #[test]
    fn an_address_that_the_host_does_not_have_is_told_with_those_it_has() {
        let failure = try_bind("192.0.2.1:20000:80").unwrap_err();
        assert_eq!(failure.code, "no_such_address");
        assert!(
            failure.message.contains("no address 192.0.2.1: take one of ") && failure.message.contains("127.0.0.1")
        );
        let failure = try_bind("[2001:db8::1]::80/udp").unwrap_err();
        assert_eq!(failure.code, "no_such_address");
    }

    #[test]
    fn a_privileged_port_is_told_with_the_sysctl_and_another() {
        let spec = PublishSpec::parse("443:80").unwrap();
        if unprivileged_from() != 1024 {
            return;
        }
        let failure = Place::of(&spec).failure(&spec, Some(443), &io::Error::from_raw_os_error(libc::EACCES), true);
        assert_eq!(failure.code, "privileged");
        for part in ["below 1024", "net.ipv4.ip_unprivileged_port_start", "like 8443:80"] {
            assert!(failure.message.contains(part), "{part}: {failure}");
        }
        let spec = PublishSpec::parse("80:80").unwrap();
        assert!(privileged(&spec, 80).contains("like 8080:80"));
    }

    /// With a manner, as another tool's command line has it.
    fn mannered(text: &str, manner: BindManner) -> PublishSpec {
        PublishSpec { manner: Box::new(manner), ..PublishSpec::parse(text).unwrap() }
    }

    fn try_all(specs: &[PublishSpec]) -> Result<Vec<Bound>, PortFailure> {
        bind_all(&specs.iter().collect::<Vec<_>>(), "0123456789ab", &[], Origin::Option)
    }

    #[test]
    fn only_who_comes_in_by_the_interface_is_heard_and_others_may_have_the_number() {
        in_namespace(|| {
            let text = |error: &dyn std::fmt::Display| error.to_string();
            let mut netlink = Netlink::open().map_err(|e| text(&e))?;
            let here = fs::File::open("/proc/self/ns/net").map_err(|e| text(&e))?;
            netlink.create_veth("one", "two", here.as_fd()).map_err(|e| text(&e))?;
            for name in ["lo", "one", "two"] {
                let index = netlink.link(name).map_err(|e| text(&e))?.index;
                let up = LinkChange { up: Some(true), ..LinkChange::default() };
                netlink.change_link(index, &up).map_err(|e| text(&e))?;
            }
            let on = |interface: &str| BindManner { interface: Some(interface.into()), ..BindManner::default() };
            for suffix in ["", "/udp"] {
                let spec = format!("8080:80{suffix}");
                let bound = try_all(&[mannered(&spec, on("one")), mannered(&spec, on("two"))]).map_err(|e| text(&e))?;
                let keys: BTreeSet<_> = bound.iter().map(|one| one.published.key().device).collect();
                if keys.len() != 2 || keys.contains(&0) {
                    return Err(format!("{keys:?}"));
                }
                if suffix.is_empty() && TcpStream::connect(("127.0.0.1", 8080)).is_ok() {
                    return Err("heard by lo".into());
                }
                match try_all(&[mannered(&spec, on("nobody0"))]) {
                    Err(failure) if failure.message.contains("no interface nobody0") => {}
                    other => return Err(format!("{other:?}")),
                }
            }
            let lo = try_all(&[mannered("8081:80", on("lo"))]).map_err(|e| text(&e))?;
            TcpStream::connect(lo[0].published.host).map_err(|e| text(&e))?;
            // An address of one link is told which.
            let fe80 = netlink.link("one").map_err(|e| text(&e))?.index;
            netlink.add_address(fe80, "fe80::5".parse::<IpAddr>().map_err(|e| text(&e))?, 64).map_err(|e| text(&e))?;
            let local = PublishSpec { address: "fe80::5".parse().ok(), ..mannered("8082:80", on("one")) };
            let bound = try_all(&[local]).map_err(|e| text(&e))?;
            match bound[0].published.host {
                SocketAddr::V6(host) if host.scope_id() == fe80 => Ok(()),
                other => Err(other.to_string()),
            }
        });
    }

    #[test]
    fn an_address_that_the_host_does_not_have_is_bound_where_that_is_asked_for() {
        let freely = BindManner { freebind: true, ..BindManner::default() };
        for spec in ["192.0.2.1::80", "192.0.2.1::80/udp", "[2001:db8::1]::80"] {
            assert_eq!(try_bind(spec).unwrap_err().code, "no_such_address");
            assert_eq!(try_all(&[mannered(spec, freely.clone())]).unwrap().len(), 1);
        }
    }

    #[test]
    fn of_a_tolerant_spec_what_is_taken_is_left_out_until_nothing_is_left() {
        let (ip, port) = place();
        let tolerant = || BindManner { tolerant: true, ..BindManner::default() };
        let spec = |first: u16, last: u16| {
            let spec = mannered(&format!("{ip}:{first}-{last}:{first}-{last}"), tolerant());
            PublishSpec { text: "-t all".into(), ..spec }
        };
        let taken = [TcpListener::bind((ip, port)).unwrap(), TcpListener::bind((ip, port + 2)).unwrap()];
        let bound = try_all(&[spec(port, port + 3)]).unwrap();
        assert_eq!(bound.iter().map(|one| one.published.sandbox_port).collect::<Vec<_>>(), [port + 1, port + 3]);
        drop(bound);
        // Pieces of the same words stand together.
        assert_eq!(try_all(&[spec(port, port), spec(port + 1, port + 1)]).unwrap().len(), 1);
        let failure = try_all(&[spec(port, port), spec(port + 2, port + 2)]).unwrap_err();
        let bind = failure.bind.unwrap();
        assert!(bind.tolerant && bind.spec == "-t all" && bind.reason == "Address already in use", "{bind:?}");
        drop(taken);
    }

    #[test]
    fn what_could_not_be_bound_is_told_in_the_kernels_words_too() {
        let (ip, port) = place();
        let _taken = TcpListener::bind((ip, port + 1)).unwrap();
        let spec = PublishSpec {
            text: "-t X".into(),
            ..mannered(&format!("{ip}:{port}-{}:80-81", port + 1), BindManner::default())
        };
        let bind = try_all(&[spec]).unwrap_err().bind.unwrap();
        let expected = BindFailure {
            spec: "-t X".into(),
            port: Some(port + 1),
            errno: libc::EADDRINUSE,
            reason: "Address already in use".into(),
            tolerant: false,
        };
        assert_eq!(*bind, expected);
    }

    #[test]
    fn a_spec_that_follows_is_bound_a_port_at_a_time_at_its_number() {
        let (ip, port) = place();
        let following =
            BindManner { following: true, sandbox_address: Some([10, 0, 0, 9].into()), ..BindManner::default() };
        let spec = mannered(&format!("{ip}:{port}-{}:90-92", port + 2), following);
        assert!(try_all(std::slice::from_ref(&spec)).unwrap().is_empty());
        let follow = |inside| bind_followed(&spec, inside, "0123456789ab", &[]);
        let bound = follow(91).unwrap();
        let one = &bound[0].published;
        assert_eq!((one.host, one.sandbox_port, one.origin), ((ip, port + 1).into(), 91, Origin::Auto));
        assert_eq!(one.sandbox_address, Some([10, 0, 0, 9].into()));
        assert!(follow(91).is_err() && follow(89).unwrap().is_empty() && follow(93).unwrap().is_empty());
    }

    #[test]
    fn too_few_descriptors_are_told_with_the_limit() {
        let spec = PublishSpec::parse("1-60000").unwrap();
        let failure = Place::of(&spec).failure(&spec, None, &io::Error::from_raw_os_error(libc::EMFILE), true);
        assert_eq!(failure.code, "exhausted");
        assert!(
            failure.message.contains("takes 60000 descriptors") && failure.message.contains("ulimit -n"),
            "{failure}"
        );
    }

    #[test]
    fn what_follows_the_sandbox_has_its_number_or_a_free_one() {
        let free = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        let before = holder::LOOKS.get();
        let near = bind_or_near(Auto::Loopback, false, Protocol::Tcp, port, "0123456789ab", &[]).unwrap();
        assert_eq!(holder::LOOKS.get(), before, "nobody has asked");
        let taken = near.taken.unwrap();
        assert!(taken.explain(false).message.contains(&format!("tcp port {port} of 127.0.0.1 is taken by another")));
        assert_eq!(holder::LOOKS.get(), before);
        let taken = taken.explain(true);
        assert!(taken.message.contains(&format!("tcp port {port} of 127.0.0.1 is taken by")), "{taken}");
        let ports: BTreeSet<u16> = near.bound.iter().map(|one| one.published.host.port()).collect();
        assert!(ports.len() == 1 && !ports.contains(&port));
        assert_eq!(near.bound[0].published.host.ip(), Ipv4Addr::LOCALHOST);
        assert_eq!((near.bound[0].published.sandbox_port, near.bound[0].published.origin), (port, Origin::Auto));

        drop(free);
        let near = bind_or_near(Auto::All, false, Protocol::Udp, port, "0123456789ab", &[]).unwrap();
        assert!(near.taken.is_none());
        assert_eq!(near.bound[0].published.host.port(), port);
        assert_eq!(near.bound[0].published.spec, "auto:all");
    }

    #[test]
    fn a_thousand_ports_are_bound_in_well_under_a_second() {
        // As many as the limit has room for beside the other tests.
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let count = (soft / 4).clamp(1, 1000);
        let (ip, _) = place();
        let started = Instant::now();
        let bound: Vec<Bound> = (0..count).flat_map(|n| try_bind(&format!("{ip}::{}", n + 1)).unwrap()).collect();
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        assert_eq!(bound.len() as u64, count);
    }

    #[test]
    fn a_range_may_be_as_long_as_the_limit_of_descriptors_allows() {
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let count = (soft / 2).min(10_000);
        let (ip, _) = place();
        let started = Instant::now();
        let bound = try_bind(&format!("{ip}::1-{count}")).unwrap();
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        let ports: BTreeSet<SocketAddr> = hosts(&bound).into_iter().collect();
        assert_eq!(ports.len() as u64, count);
    }
}
