//! What `-t`, `-u`, `-T` and `-U` say: pasta's words for ports, read into [`plan::Ports`](Ports).
//!
//! # Theory of operation
//!
//! `-t` and `-u` are ports of the host that lead into the sandbox, `-T` and `-U` ports of the sandbox's loopback that lead
//! to the host's. Each may be given several times:
//!
//! ```text
//! none | auto | all | [ADDR[%IF]/ | *[%IF]/ | %IF/]ITEM[,ITEM]...
//! ITEM = F[-L][:[ADDR/]TF[-TL] | :ADDR]   these ports, to others or to the same
//!      | ~F[-L]                           not these
//!      | all                              all that the kernel gives no clients
//!      | auto                             of all these, only while somebody listens at the far end
//! ```
//!
//! A spec that is just `none`, `auto` or `all` stands alone. One with nothing but exceptions means all others. What means
//! all is *tolerant*: ports that cannot be had are left out. An item with a hole becomes several specs of the same text.
//!
//! What is left out means `auto`. UDP's `auto` follows, beside listeners of UDP, the numbers of TCP ports that are
//! forwarded: protocols that talk over TCP first open their UDP port too late to be found in time.
//!
//! A spec's text is the option as one would write it (`-t 8080:80`), which error messages name; and back from that text
//! the option is found ([`option_of`]).
use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::plan::{
    Auto, AutoRules, BindFailure, BindManner, ClashError, PortRange, Ports, Protocol, PublishSpec, Reach,
};

/// Longer values are no specs, in bytes.
const LONGEST: usize = 8191;

/// IFNAMSIZ less the final zero (netdevice(7)).
const LONGEST_INTERFACE: usize = 15;

/// The values of the options, in the order given, and what else matters for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `-t`, `--tcp-ports`.
    pub tcp: Vec<String>,
    /// `-u`, `--udp-ports`.
    pub udp: Vec<String>,
    /// `-T`, `--tcp-ns`.
    pub tcp_ns: Vec<String>,
    /// `-U`, `--udp-ns`.
    pub udp_ns: Vec<String>,
    /// `--freebind`.
    pub freebind: bool,
    /// IPv4 is not switched off (`-6`).
    pub v4: bool,
    /// IPv6 is not switched off (`-4`).
    pub v6: bool,
}

/// Why the options cannot be had. The texts begin as pasta's do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortsError {
    /// A spec that says nothing, and why.
    #[error("Invalid port specifier {spec}: {fault}")]
    Invalid {
        /// As it was given.
        spec: String,
        /// One sentence.
        fault: String,
    },
    /// `none`, `auto` or `all` beside something else.
    #[error("Port forwarding mode '{0}' conflicts with previous mode")]
    Mode(String),
    /// Something else beside `none`, `auto` or `all`.
    #[error("Specific ports cannot be specified together with all/none/auto")]
    Specific,
    /// `-T` and `-U` listen on the sandbox's loopback alone.
    #[error("Listening address not allowed for {0}")]
    NoAddress(String),
    /// The kernel has no such names.
    #[error("Interface name '{0}' is too long (max {LONGEST_INTERFACE})")]
    LongInterface(String),
    /// An address of a family that is switched off.
    #[error("{text}: {family} is switched off")]
    NoFamily {
        /// The option.
        text: String,
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// Two options that cannot both be had.
    #[error("Forwarding configuration conflict: {0}")]
    Clash(#[from] ClashError),
}

/// What the options mean. `defaults_auto`: an option that was not given means `auto`, not `none`. `ephemeral` is what the
/// kernel takes clients' ports from.
///
/// # Errors
/// The first option that says nothing, or what cannot be had together.
pub fn resolve(options: &Options, defaults_auto: bool, ephemeral: PortRange) -> Result<Ports, PortsError> {
    let read = |letter, values| Flag { letter, defaults_auto, ephemeral }.read(values);
    let (tcp, udp) = (read(Letter::TcpIn, &options.tcp)?, read(Letter::UdpIn, &options.udp)?);
    let (tcp_ns, udp_ns) = (read(Letter::TcpOut, &options.tcp_ns)?, read(Letter::UdpOut, &options.udp_ns)?);
    let mut ports = Ports::default();
    for (wanted, outward, protocol) in [(&tcp, &tcp_ns, Protocol::Tcp), (&udp, &udp_ns, Protocol::Udp)] {
        let reached = outward.named();
        for item in &wanted.items {
            for item in item.beside(&reached) {
                ports.publish.push(published(options, &item, protocol)?);
            }
        }
    }
    follow(options, &mut ports, [&tcp, &udp]);
    ports.reach_auto = rules(&tcp_ns, &udp_ns);
    for (wanted, protocol) in [(&tcp_ns, Protocol::Tcp), (&udp_ns, Protocol::Udp)] {
        for item in &wanted.items {
            reach(&mut ports, item, protocol);
        }
    }
    ports.check_reach()?;
    Ok(ports)
}

/// From a spec's text to the option's letter and value.
pub fn option_of(text: &str) -> Option<(char, &str)> {
    let (option, value) = text.split_once(' ')?;
    let letter = option.strip_prefix('-')?.chars().next().filter(|c| "tuTU".contains(*c))?;
    (option.len() == 2).then_some((letter, value))
}

/// What pasta says of a port that could not be bound.
pub fn bind_error(failure: &BindFailure) -> String {
    let BindFailure { spec, port, errno, reason, tolerant } = failure;
    match port {
        Some(port) if !tolerant => format!("Failed to bind port {port} ({reason}) for option '{spec}', exiting"),
        _ if [libc::EMFILE, libc::ENFILE].contains(errno) => {
            let value = option_of(spec).map_or(spec.as_str(), |(_, value)| value);
            format!("Can't open enough sockets for port specifier: {value}")
        }
        _ => format!("Failed to bind any port for '{spec}', exiting"),
    }
}

fn published(options: &Options, item: &Item, protocol: Protocol) -> Result<PublishSpec, PortsError> {
    let family = match item.address {
        Some(IpAddr::V4(_)) if !options.v4 => Some("IPv4"),
        Some(IpAddr::V6(_)) if !options.v6 => Some("IPv6"),
        _ => None,
    };
    if let Some(family) = family {
        return Err(PortsError::NoFamily { text: item.text.clone(), family });
    }
    Ok(PublishSpec {
        text: item.text.clone(),
        address: item.address.or(all_addresses(options)),
        host: Some(item.from),
        sandbox: item.to,
        protocol,
        proxy: None,
        manner: Box::new(BindManner {
            interface: item.interface.clone(),
            freebind: options.freebind,
            tolerant: item.tolerant,
            sandbox_address: item.target,
            following: item.following,
        }),
    })
}

/// All addresses of the families that there are: `None` for both.
fn all_addresses(options: &Options) -> Option<IpAddr> {
    match (options.v4, options.v6) {
        (true, false) => Some(Ipv4Addr::UNSPECIFIED.into()),
        (false, true) => Some(Ipv6Addr::UNSPECIFIED.into()),
        (true, true) | (false, false) => None,
    }
}

/// What `-t auto` and `-u auto` follow.
fn follow(options: &Options, ports: &mut Ports, [tcp, udp]: [&Wanted; 2]) {
    let Some(rules) = rules(tcp, udp) else { return };
    ports.auto_rules = rules;
    match all_addresses(options) {
        None => ports.auto = Some(Auto::All),
        Some(IpAddr::V4(_)) => ports.auto = Some(Auto::AllV4),
        Some(IpAddr::V6(_)) => ports.auto = Some(Auto::AllV6),
    }
}

fn rules(tcp: &Wanted, udp: &Wanted) -> Option<AutoRules> {
    if tcp.auto.is_none() && udp.auto.is_none() {
        return None;
    }
    let except = |wanted: &Wanted, protocol| -> Vec<(Protocol, PortRange)> {
        wanted.auto.iter().flatten().map(|range| (protocol, *range)).collect()
    };
    Some(AutoRules {
        tcp: tcp.auto.is_some(),
        udp: udp.auto.is_some(),
        except: [except(tcp, Protocol::Tcp), except(udp, Protocol::Udp)].concat(),
        same_number: true,
        udp_as_tcp: udp.auto.is_some(),
    })
}

fn reach(ports: &mut Ports, item: &Item, protocol: Protocol) {
    let each = item.from.ports().zip(item.to.ports());
    let mut each: Vec<Reach> =
        each.map(|(sandbox_port, host_port)| Reach { host_port, sandbox_port, protocol }).collect();
    if item.following {
        ports.reach_following.extend(each);
        return;
    }
    if item.tolerant {
        ports.reach_tolerant = true;
        // What is published has its number for itself, and what was named before is there.
        let named: HashSet<u16> =
            ports.reach.iter().filter(|reach| reach.protocol == protocol).map(|reach| reach.sandbox_port).collect();
        each.retain(|reach| {
            !named.contains(&reach.sandbox_port) && !ports.publish.iter().any(|spec| concerns(spec, reach))
        });
    }
    ports.reach.extend(each);
}

/// Does the spec listen on the host where this leads to, or lead to where this listens?
fn concerns(spec: &PublishSpec, reach: &Reach) -> bool {
    let host = spec.host.is_some_and(|host| host.contains(reach.host_port));
    spec.protocol == reach.protocol && (host || spec.sandbox.contains(reach.sandbox_port))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Letter {
    TcpIn,
    UdpIn,
    TcpOut,
    UdpOut,
}

impl Letter {
    fn is_outward(self) -> bool {
        matches!(self, Letter::TcpOut | Letter::UdpOut)
    }
}

impl fmt::Display for Letter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Letter::TcpIn => "t",
            Letter::UdpIn => "u",
            Letter::TcpOut => "T",
            Letter::UdpOut => "U",
        })
    }
}

/// All values of one option.
#[derive(Debug, Default)]
struct Wanted {
    /// `auto` at every address, and its exceptions.
    auto: Option<Vec<PortRange>>,
    items: Vec<Item>,
}

impl Wanted {
    /// The numbers that are named, on either side.
    fn named(&self) -> Vec<PortRange> {
        let named = self.items.iter().filter(|item| !item.tolerant && !item.following);
        named.flat_map(|item| [item.from, item.to]).collect()
    }
}

/// Ports that lead to as many others.
#[derive(Clone, Debug)]
struct Item {
    /// The option that it comes from.
    text: String,
    address: Option<IpAddr>,
    interface: Option<String>,
    from: PortRange,
    to: PortRange,
    target: Option<IpAddr>,
    tolerant: bool,
    following: bool,
}

impl Item {
    /// What means all leaves out what is named in the other direction.
    fn beside(&self, named: &[PortRange]) -> Vec<Item> {
        if !self.tolerant || self.following {
            return vec![self.clone()];
        }
        let pieces = without(self.from, named).into_iter();
        pieces.map(|piece| Item { from: piece, to: piece, ..self.clone() }).collect()
    }
}

/// One of the four options.
struct Flag {
    letter: Letter,
    defaults_auto: bool,
    ephemeral: PortRange,
}

/// What was given so far.
enum Mode {
    Nothing,
    Word,
    Specific,
}

impl Flag {
    fn read(&self, values: &[String]) -> Result<Wanted, PortsError> {
        let mut wanted = Wanted::default();
        if values.is_empty() {
            wanted.auto = self.defaults_auto.then(Vec::new);
        }
        let mut mode = Mode::Nothing;
        for value in values {
            let is_word = matches!(value.as_str(), "none" | "auto" | "all");
            mode = match mode {
                Mode::Word | Mode::Specific if is_word => return Err(PortsError::Mode(value.clone())),
                Mode::Word => return Err(PortsError::Specific),
                Mode::Nothing if is_word => Mode::Word,
                Mode::Nothing | Mode::Specific => Mode::Specific,
            };
            if value != "none" {
                Spec { option: self, value, text: format!("-{} {value}", self.letter) }.read(&mut wanted)?;
            }
        }
        Ok(wanted)
    }
}

/// One value.
struct Spec<'a> {
    option: &'a Flag,
    value: &'a str,
    text: String,
}

/// An item as it is written.
enum Chunk {
    All,
    Auto,
    Except(PortRange),
    Ports { from: PortRange, to: PortRange, target: Option<IpAddr> },
}

impl Spec<'_> {
    fn read(&self, wanted: &mut Wanted) -> Result<(), PortsError> {
        if self.value.len() > LONGEST {
            let spec = shown(self.value);
            return Err(PortsError::Invalid { spec, fault: format!("it is longer than {LONGEST} bytes") });
        }
        let (place, rest) = self.place()?;
        let (address, interface) = place.unwrap_or_default();
        let (mut all, mut auto, mut holes, mut items) = (false, false, Vec::new(), Vec::new());
        for chunk in rest.split(',') {
            match self.chunk(chunk)? {
                Chunk::All => all = true,
                Chunk::Auto => auto = true,
                Chunk::Except(range) => holes.push(range),
                Chunk::Ports { from, to, target } => items.push((from, to, target)),
            }
        }
        let item = |from: PortRange, to: PortRange, target, tolerant| Item {
            text: self.text.clone(),
            address,
            interface: interface.clone(),
            from,
            to,
            target,
            tolerant,
            following: auto,
        };
        for (from, to, target) in &items {
            if let Some(target) = target {
                self.check_target(*target, address)?;
            }
            wanted.items.extend(without(*from, &holes).into_iter().map(|piece| {
                let first = to.first + (piece.first - from.first);
                item(piece, PortRange { first, last: first + (piece.last - piece.first) }, *target, false)
            }));
        }
        if all || items.is_empty() {
            // Listeners that are followed are there, whatever their number.
            if auto && address.is_none() && interface.is_none() && items.is_empty() {
                wanted.auto.get_or_insert_default().extend(holes);
                return Ok(());
            }
            holes.extend(items.iter().map(|(from, ..)| *from));
            if !auto {
                holes.push(self.option.ephemeral);
            }
            let everything = PortRange { first: 1, last: u16::MAX };
            wanted.items.extend(without(everything, &holes).into_iter().map(|piece| item(piece, piece, None, true)));
        }
        Ok(())
    }

    fn fault<T>(&self, fault: impl Into<String>) -> Result<T, PortsError> {
        Err(PortsError::Invalid { spec: self.value.to_owned(), fault: fault.into() })
    }

    /// What stands before the first slash, if that is a place to listen, and the rest.
    #[allow(clippy::type_complexity)]
    fn place(&self) -> Result<(Option<(Option<IpAddr>, Option<String>)>, &str), PortsError> {
        let Some((place, rest)) = self.value.split_once('/') else { return Ok((None, self.value)) };
        let (address, interface) = match place.split_once('%') {
            Some((address, interface)) => (address, Some(interface)),
            None => (place, None),
        };
        let address = match address {
            "*" => None,
            "" if interface.is_some() => None,
            _ => match any_address(address) {
                Some(address) => Some(address),
                // It may be the slash behind a target.
                None if address.contains(|c: char| c.is_ascii_digit()) && self.chunk_begins(place) => {
                    return Ok((None, self.value));
                }
                None => return self.fault(format!("'{}' is not an IP address", shown(address))),
            },
        };
        if self.option.letter.is_outward() {
            return Err(PortsError::NoAddress(self.text.clone()));
        }
        if let Some(name) = interface {
            if name.len() > LONGEST_INTERFACE {
                return Err(PortsError::LongInterface(shown(name)));
            }
            if matches!(name, "" | "." | "..") || name.contains(|c: char| c.is_whitespace() || c == ':') {
                return self.fault(format!("'{}' is not an interface's name", shown(name)));
            }
        }
        Ok((Some((address, interface.map(str::to_owned))), rest))
    }

    /// Could this be the beginning of items, the last of which has a target address?
    fn chunk_begins(&self, place: &str) -> bool {
        let last = place.rsplit(',').next().unwrap_or(place);
        last.split_once(':').is_some_and(|(ports, target)| self.range(ports).is_ok() && any_address(target).is_some())
    }

    fn chunk(&self, chunk: &str) -> Result<Chunk, PortsError> {
        match chunk {
            "all" => return Ok(Chunk::All),
            "auto" => return Ok(Chunk::Auto),
            "" => return self.fault("ports are missing"),
            _ => {}
        }
        if let Some(range) = chunk.strip_prefix('~') {
            return Ok(Chunk::Except(self.range(range)?));
        }
        let (from, target) = match chunk.split_once(':') {
            Some((from, target)) => (self.range(from)?, target),
            None => {
                let from = self.range(chunk)?;
                return Ok(Chunk::Ports { from, to: from, target: None });
            }
        };
        if let Some(address) = any_address(target) {
            return Ok(Chunk::Ports { from, to: from, target: Some(address) });
        }
        let (address, to) = match target.split_once('/') {
            Some((address, to)) => match any_address(address) {
                Some(address) => (Some(address), to),
                None => return self.fault(format!("'{}' is not an IP address", shown(address))),
            },
            None => (None, target),
        };
        let to = self.range(to)?;
        if to.count() != from.count() {
            return self.fault(format!(
                "{from} and {to} are ranges of different length ({} and {})",
                from.count(),
                to.count()
            ));
        }
        Ok(Chunk::Ports { from, to, target: address })
    }

    fn check_target(&self, target: IpAddr, listening: Option<IpAddr>) -> Result<(), PortsError> {
        if self.option.letter.is_outward() {
            return self.fault("the host's loopback is what the sandbox's leads to, and no other address");
        }
        if target.is_multicast() || target.is_unspecified() {
            return self.fault(format!("{target} is nobody's address"));
        }
        match listening {
            Some(listening) if listening.is_ipv4() == target.is_ipv4() => Ok(()),
            _ => self.fault(format!(
                "{target} takes clients of its own family only: put {}/ in front",
                if target.is_ipv4() { "0.0.0.0" } else { "[::]" }
            )),
        }
    }

    fn range(&self, text: &str) -> Result<PortRange, PortsError> {
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (self.port(first)?, self.port(last)?),
            None => self.port(text).map(|port| (port, port))?,
        };
        if first > last {
            return self.fault(format!("the range {first}-{last} ends before it begins"));
        }
        Ok(PortRange { first, last })
    }

    fn port(&self, text: &str) -> Result<u16, PortsError> {
        match text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u16>()) {
            Some(Ok(port @ 1..)) => Ok(port),
            _ => self.fault(format!("'{}' is not a port number (1 to 65535)", shown(text))),
        }
    }
}

/// An address of either family, with or without brackets; one that stands for an IPv4 address is that.
fn any_address(text: &str) -> Option<IpAddr> {
    let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    inner.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

/// What is left of a range between the holes.
fn without(range: PortRange, holes: &[PortRange]) -> Vec<PortRange> {
    let mut holes: Vec<PortRange> = holes.to_vec();
    holes.sort_by_key(|hole| hole.first);
    let mut pieces = Vec::new();
    // One more than a port, so that what follows the last one has a number.
    let mut next = u32::from(range.first);
    let end = u32::from(range.last) + 1;
    for hole in holes {
        let (first, after) = (u32::from(hole.first), u32::from(hole.last) + 1);
        if first > next {
            pieces.push((next, first.min(end)));
        }
        next = next.max(after);
        if next >= end {
            break;
        }
    }
    pieces.push((next, end));
    let piece = |(first, after): (u32, u32)| {
        (first < after).then(|| PortRange { first: first as u16, last: (after - 1) as u16 })
    };
    pieces.into_iter().filter_map(piece).collect()
}

fn shown(text: &str) -> String {
    text.chars().take(64).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EPHEMERAL: PortRange = PortRange { first: 32_768, last: 60_999 };

    fn options(t: &[&str], u: &[&str], tcp_ns: &[&str], udp_ns: &[&str]) -> Options {
        let owned = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
        let (tcp, udp, tcp_ns, udp_ns) = (owned(t), owned(u), owned(tcp_ns), owned(udp_ns));
        Options { tcp, udp, tcp_ns, udp_ns, freebind: false, v4: true, v6: true }
    }

    fn ports(t: &[&str], u: &[&str], tcp_ns: &[&str], udp_ns: &[&str]) -> Result<Ports, PortsError> {
        resolve(&options(t, u, tcp_ns, udp_ns), false, EPHEMERAL)
    }

    fn tcp(values: &[&str]) -> Vec<PublishSpec> {
        let ports = ports(values, &[], &[], &[]).unwrap();
        assert!(ports.reach.is_empty() && ports.reach_auto.is_none());
        ports.publish
    }

    /// Address and interface, ports of the host, of the sandbox, and the address there.
    fn meaning(value: &str) -> Vec<String> {
        let words = |spec: &PublishSpec| {
            let BindManner { interface, sandbox_address, .. } = &*spec.manner;
            let address = spec.address.map_or("*".to_owned(), |ip| ip.to_string());
            let interface = interface.as_ref().map_or(String::new(), |name| format!("%{name}"));
            let target = sandbox_address.map_or(String::new(), |ip| format!("{ip}/"));
            assert_eq!(spec.text, format!("-t {value}"));
            format!("{address}{interface}/{}:{target}{}", spec.host.unwrap(), spec.sandbox)
        };
        tcp(&[value]).iter().map(words).collect()
    }

    fn refusal(value: &str) -> String {
        ports(&[value], &[], &[], &[]).unwrap_err().to_string()
    }

    #[test]
    fn every_example_of_the_manual_means_what_it_says() {
        for (value, expected) in [
            ("22", &["*/22:22"][..]),
            ("22:23", &["*/22:23"]),
            ("22,25", &["*/22:22", "*/25:25"]),
            ("22-80", &["*/22-80:22-80"]),
            ("22-80:32-90", &["*/22-80:32-90"]),
            ("192.0.2.1/22", &["192.0.2.1/22:22"]),
            ("192.0.2.1%eth0/22", &["192.0.2.1%eth0/22:22"]),
            ("%eth0/22", &["*%eth0/22:22"]),
            ("2000-5000,~3000-3010", &["*/2000-2999:2000-2999", "*/3011-5000:3011-5000"]),
            ("192.0.2.1/20-30,~25", &["192.0.2.1/20-24:20-24", "192.0.2.1/26-30:26-30"]),
        ] {
            assert_eq!(meaning(value), expected, "{value}");
        }
    }

    #[test]
    fn podmans_specs_are_ranges_with_ipv6_addresses_without_brackets() {
        assert_eq!(meaning("::1/5000-5000:5000-5000"), ["::1/5000:5000"]);
        assert_eq!(meaning("8080-8089:80-89"), ["*/8080-8089:80-89"]);
        assert_eq!(meaning("2001:db8::1/80-80:8080-8080"), ["2001:db8::1/80:8080"]);
        assert_eq!(meaning("127.0.0.1%lo/5000-5000:5001-5001"), ["127.0.0.1%lo/5000:5001"]);
        let values = ["::1/5000-5000:5000-5000", "127.0.0.1/5000-5000:5000-5000"];
        let both = ports(&values, &["none"], &["none"], &["none"]).unwrap();
        assert_eq!(both.publish.len(), 2);
        assert!(both.auto.is_none() && both.reach_auto.is_none());
    }

    #[test]
    fn addresses_have_brackets_or_none_and_a_star_is_every_address() {
        assert_eq!(meaning("[::1]/80"), ["::1/80:80"]);
        assert_eq!(meaning("[192.0.2.1]/80"), ["192.0.2.1/80:80"]);
        assert_eq!(meaning("[fe80::1]%eth0/80"), ["fe80::1%eth0/80:80"]);
        assert_eq!(meaning("::ffff:192.0.2.1/80"), ["192.0.2.1/80:80"]);
        assert_eq!(meaning("*%eth0/80"), ["*%eth0/80:80"]);
        assert_eq!(meaning("*/80"), ["*/80:80"]);
        assert_eq!(meaning("0.0.0.0/80"), ["0.0.0.0/80:80"]);
    }

    #[test]
    fn a_target_may_have_an_address() {
        assert_eq!(meaning("0.0.0.0/22:192.0.2.9/23"), ["0.0.0.0/22:192.0.2.9/23"]);
        assert_eq!(meaning("[::]/22-23:[2001:db8::9]/32-33"), ["::/22-23:2001:db8::9/32-33"]);
        assert_eq!(meaning("127.0.0.1/22:192.0.2.9"), ["127.0.0.1/22:192.0.2.9/22"]);
        assert!(refusal("22:192.0.2.9/23").contains("put 0.0.0.0/ in front"));
        assert!(refusal("[::]/22:192.0.2.9/23").contains("own family"));
        assert!(refusal("0.0.0.0/22:224.0.0.1/23").contains("nobody's"));
    }

    #[test]
    fn exceptions_may_stand_anywhere_and_take_items_apart() {
        assert_eq!(meaning("~25,20-30:120-130,~28-40"), ["*/20-24:120-124", "*/26-27:126-127"]);
        assert_eq!(meaning("~10-30,20-25"), [""; 0]);
        assert_eq!(meaning("20-30,~1-20,~30-65535"), ["*/21-29:21-29"]);
    }

    #[test]
    fn exceptions_alone_mean_all_others_but_what_clients_get() {
        let specs = tcp(&["~20000-20010"]);
        let ranges: Vec<_> = specs.iter().map(|spec| spec.host.unwrap().to_string()).collect();
        assert_eq!(ranges, ["1-19999", "20011-32767", "61000-65535"]);
        assert!(specs.iter().all(|spec| spec.manner.tolerant && !spec.manner.following));
        assert_eq!(meaning("all"), ["*/1-32767:1-32767", "*/61000-65535:61000-65535"]);
        assert_eq!(meaning("::1/all"), ["::1/1-32767:1-32767", "::1/61000-65535:61000-65535"]);
        let specs = tcp(&["22:23,all"]);
        assert_eq!(specs.iter().map(|spec| spec.manner.tolerant).collect::<Vec<_>>(), [false, true, true, true]);
        assert_eq!(specs[1].host.unwrap().last, 21);
    }

    #[test]
    fn none_auto_and_all_stand_alone() {
        let refused = |values: &[&str]| ports(values, &[], &[], &[]).unwrap_err().to_string();
        for word in ["none", "auto", "all"] {
            let conflict = format!("Port forwarding mode '{word}' conflicts with previous mode");
            assert_eq!(refused(&["22", word]), conflict);
            assert_eq!(refused(&["none", word]), conflict);
            assert_eq!(refused(&["auto", word]), conflict);
            let specific = "Specific ports cannot be specified together with all/none/auto";
            assert_eq!(refused(&[word, "22"]), specific);
        }
        // Each option for itself.
        let both = ports(&["none"], &["53"], &["auto"], &["none"]).unwrap();
        assert_eq!((both.publish.len(), both.auto), (1, None));
        assert_eq!(both.publish[0].text, "-u 53");
    }

    #[test]
    fn what_is_not_given_is_auto_or_none() {
        let nothing = options(&[], &[], &[], &[]);
        assert_eq!(resolve(&nothing, false, EPHEMERAL).unwrap(), Ports::default());
        let auto = resolve(&nothing, true, EPHEMERAL).unwrap();
        assert_eq!(auto, ports(&["auto"], &["auto"], &["auto"], &["auto"]).unwrap());
        let rules = AutoRules { tcp: true, udp: true, except: vec![], same_number: true, udp_as_tcp: true };
        assert_eq!((auto.auto, &auto.auto_rules, auto.reach_auto.as_ref()), (Some(Auto::All), &rules, Some(&rules)));
        let some = resolve(&options(&["8080"], &[], &["none"], &[]), true, EPHEMERAL).unwrap();
        assert_eq!((some.publish.len(), some.auto), (1, Some(Auto::All)));
        assert_eq!((some.auto_rules.tcp, some.auto_rules.udp), (false, true));
        assert!(some.reach_auto.is_some_and(|rules| !rules.tcp && rules.udp));
    }

    #[test]
    fn auto_beside_ports_follows_these_alone() {
        let some = ports(&["8000-8010:9000-9010,auto", "22"], &["~53,auto"], &["5432:15432,auto"], &[]).unwrap();
        assert!(some.publish[0].manner.following && !some.publish[0].manner.tolerant);
        assert!(!some.publish[1].manner.following);
        assert_eq!(some.auto_rules.except, [(Protocol::Udp, PortRange { first: 53, last: 53 })]);
        assert_eq!((some.auto, some.auto_rules.tcp), (Some(Auto::All), false));
        let reach = Reach { host_port: 15432, sandbox_port: 5432, protocol: Protocol::Tcp };
        assert_eq!((some.reach_following, some.reach), (vec![reach], vec![]));
        // Followed listeners may have any number.
        assert_eq!(meaning("::1/auto"), ["::1/1-65535:1-65535"]);
        assert!(tcp(&["::1/auto"])[0].manner.following);
        assert_eq!(meaning("%eth0/auto,~22"), ["*%eth0/1-21:1-21", "*%eth0/23-65535:23-65535"]);
    }

    #[test]
    fn a_family_that_is_switched_off_has_no_sockets() {
        let v4 = Options { v6: false, ..options(&["80"], &["auto"], &[], &[]) };
        let some = resolve(&v4, false, EPHEMERAL).unwrap();
        assert_eq!(some.publish[0].address, Some(Ipv4Addr::UNSPECIFIED.into()));
        assert_eq!(some.auto, Some(Auto::AllV4));
        let v6 = Options { v4: false, freebind: true, ..options(&["80"], &["auto"], &[], &[]) };
        let some = resolve(&v6, false, EPHEMERAL).unwrap();
        assert_eq!((some.publish[0].address, some.auto), (Some(Ipv6Addr::UNSPECIFIED.into()), Some(Auto::AllV6)));
        assert!(some.publish[0].manner.freebind);
        let error = resolve(&Options { tcp: vec!["127.0.0.1/80".into()], ..v6 }, false, EPHEMERAL).unwrap_err();
        assert_eq!(error.to_string(), "-t 127.0.0.1/80: IPv4 is switched off");
    }

    #[test]
    fn ports_of_the_sandboxs_loopback_lead_to_the_hosts() {
        let some = ports(&[], &[], &["5432", "80-82:8080-8082,~81"], &["53"]).unwrap();
        let texts: Vec<String> = some.reach.iter().map(Reach::to_string).collect();
        assert_eq!(texts, ["5432", "8080:80", "8082:82", "53/udp"]);
        assert!(!some.reach_tolerant && some.publish.is_empty());
        let all = ports(&["8080:80"], &[], &["all"], &[]).unwrap();
        assert!(all.reach_tolerant);
        assert_eq!(all.reach.len(), 32_767 + 4_536 - 2);
        assert!(!all.reach.iter().any(|reach| [80, 8080].contains(&reach.sandbox_port)));
        // All of both leave nothing for the second.
        assert!(ports(&["all"], &[], &["all"], &[]).unwrap().reach.is_empty());
        assert_eq!(ports(&[], &[], &["22", "~23"], &[]).unwrap().reach.len(), 32_767 + 4_536 - 1);
    }

    #[test]
    fn what_cannot_be_had_together_is_told() {
        let error = ports(&["5000"], &[], &["5000"], &[]).unwrap_err().to_string();
        assert!(error.starts_with("Forwarding configuration conflict: "), "{error}");
        assert!(ports(&[], &[], &["22", "23:22", "22:24"], &[]).is_err());
        assert!(ports(&["5000"], &[], &[], &["5000"]).is_ok());
        // All of one direction leave out what is named in the other.
        let named = ports(&["all"], &[], &["5000:6000"], &[]).unwrap();
        let hosts: Vec<String> = named.publish.iter().map(|spec| spec.host.unwrap().to_string()).collect();
        assert_eq!(hosts, ["1-4999", "5001-5999", "6001-32767", "61000-65535"]);
        for value in ["127.0.0.1/80", "%lo/80", "*/80", "::1/auto"] {
            let error = ports(&[], &[], &[value], &[]).unwrap_err().to_string();
            assert_eq!(error, format!("Listening address not allowed for -T {value}"));
        }
        assert!(ports(&[], &[], &["80:192.0.2.9/80"], &[]).unwrap_err().to_string().contains("loopback"));
    }

    #[test]
    fn what_says_nothing_is_told_with_the_reason() {
        for (value, fault) in [
            ("", "ports are missing"),
            ("22,", "ports are missing"),
            ("0", "'0' is not a port number"),
            ("0-10", "'0' is not a port number"),
            ("22:0", "'0' is not a port number"),
            ("65536", "'65536' is not a port number"),
            ("+22", "'+22' is not a port number"),
            (" 22", "' 22' is not a port number"),
            ("80-22", "ends before it begins"),
            ("22-80:32-80", "different length (59 and 49)"),
            ("22-23:80", "different length (2 and 1)"),
            ("22:", "'' is not a port number"),
            ("22:23:24", "is not a port number"),
            ("~", "'' is not a port number"),
            ("~1:2", "is not a port number"),
            ("none,22", "'none' is not a port number"),
            ("localhost/22", "'localhost' is not an IP address"),
            ("192.0.2/22", "'192.0.2' is not an IP address"),
            ("/22", "'' is not an IP address"),
            ("[::1/22", "'[::1' is not an IP address"),
            ("%/22", "'' is not an interface's name"),
            ("%../22", "'..' is not an interface's name"),
            ("192.0.2.1/", "ports are missing"),
            ("192.0.2.1/22/23", "is not a port number"),
            ("0.0.0.0/22:x/23", "'x' is not an IP address"),
        ] {
            let error = refusal(value);
            assert!(error.starts_with(&format!("Invalid port specifier {value}: ")), "{error}");
            assert!(error.contains(fault), "{value}: {error}");
        }
        let long = refusal(&"22,".repeat(50_000));
        assert!(long.contains("longer than 8191 bytes") && long.len() < 200, "{long}");
        assert_eq!(refusal("%abcdefghijklmnop/22"), "Interface name 'abcdefghijklmnop' is too long (max 15)");
    }

    #[test]
    fn a_port_that_cannot_be_bound_is_told_in_pastas_words() {
        let mut failure = BindFailure {
            spec: "-t ::1/5000-5000:5000-5000".into(),
            port: Some(5000),
            errno: libc::EADDRINUSE,
            reason: "Address already in use".into(),
            tolerant: false,
        };
        assert_eq!(
            bind_error(&failure),
            "Failed to bind port 5000 (Address already in use) for option '-t ::1/5000-5000:5000-5000', exiting"
        );
        failure.tolerant = true;
        assert_eq!(bind_error(&failure), "Failed to bind any port for '-t ::1/5000-5000:5000-5000', exiting");
        failure.errno = libc::EMFILE;
        assert_eq!(bind_error(&failure), "Can't open enough sockets for port specifier: ::1/5000-5000:5000-5000");
    }

    #[test]
    fn the_option_is_found_by_a_specs_text() {
        assert_eq!(option_of("-t ::1/80,auto"), Some(('t', "::1/80,auto")));
        for text in ["8080:80", "-x 80", "-t", "--tcp 80", "auto"] {
            assert_eq!(option_of(text), None, "{text}");
        }
    }

    prop_compose! {
        fn any_item()(
            first in 1u16..=65_500, more in 0u16..30, to in prop::option::of(1u16..=65_500), except: bool
        ) -> String {
            let range = |first: u16| if more == 0 { first.to_string() } else { format!("{first}-{}", first + more) };
            match to {
                _ if except => format!("~{}", range(first)),
                Some(to) => format!("{}:{}", range(first), range(to)),
                None => range(first),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_good_option_is_read_and_found_again(
            items in prop::collection::vec(any_item(), 1..5),
            place in prop::option::of(prop_oneof![
                any::<[u8; 4]>().prop_map(|ip| format!("{}/", IpAddr::from(ip))),
                any::<[u8; 16]>().prop_map(|ip| format!("{}%eth0/", IpAddr::from(ip))),
                any::<[u8; 16]>().prop_map(|ip| format!("[{}]/", IpAddr::from(ip))),
                Just("%eth0/".to_owned()),
            ]),
            auto: bool, udp: bool,
        ) {
            let auto = if auto { ",auto" } else { "" };
            let value = format!("{}{}{auto}", place.unwrap_or_default(), items.join(","));
            let values = &[value.as_str()][..];
            let (ports, letter) = match udp {
                true => (ports(&[], values, &[], &[]), 'u'),
                false => (ports(values, &[], &[], &[]), 't'),
            };
            let ports = ports.unwrap();
            for spec in &ports.publish {
                prop_assert_eq!(option_of(&spec.text), Some((letter, value.as_str())));
                prop_assert_eq!(spec.host.map(PortRange::count), Some(spec.sandbox.count()));
                // Written with what was found, it means the same.
                let again = match udp {
                    true => resolve(&options(&[], &[option_of(&spec.text).unwrap().1], &[], &[]), false, EPHEMERAL),
                    false => resolve(&options(&[option_of(&spec.text).unwrap().1], &[], &[], &[]), false, EPHEMERAL),
                };
                prop_assert!(again.unwrap().publish.contains(spec));
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,40}", near in "[\\[\\]0-9a-f:.,/%~*-]{0,24}") {
            for text in [text.as_str(), &near] {
                let values = &[text][..];
                let read = ports(values, values, &[], &[]);
                let outward = ports(&[], &[], values, values);
                if let Ok(ports) = read {
                    prop_assert!(ports.publish.iter().all(|spec| spec.host.is_some_and(|host| host.first > 0)));
                }
                prop_assert!(outward.is_err() || !text.contains('/'));
            }
        }
    }
}
