//! Reading and writing what people say about ports: `-p`, `--expose`, `--reach`, `--publish-from`.
//!
//! A text is taken apart from the outside: options behind a comma, the protocol behind a slash, an address in
//! brackets, then the parts between colons. Whatever does not fit is told with the part it is about
//! ([`SpecError`]), which is a slice of the text, so that its place is known.
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use super::{Auto, Expose, PortRange, Protocol, ProxyVersion, PublishSpec, Reach};

/// Longer ones are no specs, in bytes: the longest that means something has less than a hundred.
const LONGEST: usize = 128;

/// Why a text is not what it should be: names text and fault, with a caret under the place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecError {
    /// What it should have been.
    what: &'static str,
    /// As it can be shown: no control characters, no endless text.
    text: String,
    fault: String,
    /// The first character that the fault is about, and how many.
    place: Option<(usize, usize)>,
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SpecError { what, text, fault, place } = self;
        write!(f, "'{text}' is no {what}: {fault}")?;
        match place {
            Some((start, length)) => write!(f, "\n    {text}\n    {:start$}{:^<length$}", "", ""),
            None => Ok(()),
        }
    }
}

impl std::error::Error for SpecError {}

/// What was said with `-p`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublishArg {
    /// A spec.
    Spec(PublishSpec),
    /// `auto` or `auto:all`.
    Auto(Auto),
}

impl PublishArg {
    /// Reads a value of `-p`.
    pub fn parse(text: &str) -> Result<PublishArg, SpecError> {
        match text.strip_prefix("auto") {
            None => PublishSpec::parse(text).map(PublishArg::Spec),
            Some("") => Ok(PublishArg::Auto(Auto::Loopback)),
            Some(":all") => Ok(PublishArg::Auto(Auto::All)),
            Some(rest) => {
                let reading = Reading::of("port spec", text)?;
                Err(reading
                    .fault(rest, "'auto' (on the host's loopback) and 'auto:all' (on all its addresses) are possible"))
            }
        }
    }
}

impl PublishSpec {
    /// Reads `[ADDRESS:][HOST[-HOST]:]PORT[-PORT][/PROTOCOL][,proxy=VERSION]`.
    pub fn parse(text: &str) -> Result<PublishSpec, SpecError> {
        let reading = Reading::of("port spec", text)?;
        let (rest, options) = match text.split_once(',') {
            Some((rest, options)) => (rest, Some(options)),
            None => (text, None),
        };
        let (rest, protocol) = reading.protocol(rest)?;
        let proxy = options.map(|options| reading.proxy(options, protocol)).transpose()?;
        let (address, host, sandbox) = reading.places(rest)?;
        let sandbox_ports = reading.range(sandbox)?;
        let host_ports = match host {
            None => None,
            Some(host) => Some(reading.range(host)?),
        };
        if let (Some(ports), Some(word)) = (host_ports, host)
            && ports.count() != sandbox_ports.count()
            && sandbox_ports.count() != 1
        {
            let fault = format!(
                "{word} {}, {sandbox} {}: ranges of the same length are needed, or one port behind the colon",
                counted(ports),
                counted(sandbox_ports)
            );
            return Err(reading.fault(rest_from(rest, word), fault));
        }
        Ok(PublishSpec {
            text: text.to_owned(),
            address,
            host: host_ports,
            sandbox: sandbox_ports,
            protocol,
            proxy,
            manner: Box::default(),
        })
    }

    /// Do both mean the same ports, however they are written? The PROXY header does not count.
    pub fn means_same(&self, other: &PublishSpec) -> bool {
        let meaning = |spec: &PublishSpec| (spec.address, spec.host, spec.sandbox, spec.protocol);
        meaning(self) == meaning(other)
    }
}

/// Without the words that say what goes without saying.
impl fmt::Display for PublishSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V4(ip)) => write!(f, "{ip}:")?,
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:")?,
            None => {}
        }
        match self.host {
            Some(host) => write!(f, "{host}:")?,
            None if self.address.is_some() => f.write_str(":")?,
            None => {}
        }
        write!(f, "{}{}", self.sandbox, suffix(self.protocol))?;
        match self.proxy {
            Some(version) => write!(f, ",proxy={version}"),
            None => Ok(()),
        }
    }
}

impl Expose {
    /// Reads `PORT[-PORT][/PROTOCOL]`.
    pub fn parse(text: &str) -> Result<Expose, SpecError> {
        let reading = Reading::of("port or range of ports", text)?;
        let (rest, protocol) = reading.protocol(text)?;
        reading.no_more_parts(rest, 1, "PORT[-PORT][/PROTOCOL]")?;
        Ok(Expose { ports: reading.range(rest)?, protocol })
    }

    /// What `-P` makes of it.
    pub fn spec(&self, proxy: Option<ProxyVersion>) -> PublishSpec {
        PublishSpec {
            text: self.to_string(),
            address: None,
            host: None,
            sandbox: self.ports,
            protocol: self.protocol,
            proxy: proxy.filter(|_| self.protocol == Protocol::Tcp),
            manner: Box::default(),
        }
    }
}

impl fmt::Display for Expose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.ports, suffix(self.protocol))
    }
}

impl Reach {
    /// Reads `HOSTPORT[:PORT][/PROTOCOL]`.
    pub fn parse(text: &str) -> Result<Reach, SpecError> {
        let reading = Reading::of("port to be reached", text)?;
        let (rest, protocol) = reading.protocol(text)?;
        reading.no_more_parts(rest, 2, "HOSTPORT[:PORT][/PROTOCOL]")?;
        let (host, sandbox) = rest.split_once(':').unwrap_or((rest, rest));
        Ok(Reach { host_port: reading.port(host)?, sandbox_port: reading.port(sandbox)?, protocol })
    }
}

/// What was said with `--reach`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReachArg {
    /// A port.
    Port(Reach),
    /// `auto`: whatever the host listens on.
    Auto,
}

impl ReachArg {
    /// Reads a value of `--reach`.
    pub fn parse(text: &str) -> Result<ReachArg, SpecError> {
        match text {
            "auto" => Ok(ReachArg::Auto),
            _ => Reach::parse(text).map(ReachArg::Port),
        }
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.host_port)?;
        if self.sandbox_port != self.host_port {
            write!(f, ":{}", self.sandbox_port)?;
        }
        f.write_str(suffix(self.protocol))
    }
}

impl PortRange {
    /// How many ports; never 0.
    pub fn count(self) -> usize {
        usize::from(self.last.saturating_sub(self.first)) + 1
    }

    /// Is it one of them?
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// They themselves, the lowest first.
    pub fn ports(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        if self.last == self.first { Ok(()) } else { write!(f, "-{}", self.last) }
    }
}

impl fmt::Display for ProxyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProxyVersion::V1 => "v1",
            ProxyVersion::V2 => "v2",
        })
    }
}

/// Reads `PORT[/PROTOCOL]`, a port of a sandbox.
pub fn parse_port(text: &str) -> Result<(u16, Protocol), SpecError> {
    let reading = Reading::of("port", text)?;
    let (rest, protocol) = reading.protocol(text)?;
    Ok((reading.port(rest)?, protocol))
}

/// Reads a subnet of clients, or one address.
pub fn parse_clients(text: &str) -> Result<IpNet, SpecError> {
    let reading = Reading::of("subnet", text)?;
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    match text.parse::<IpNet>() {
        Ok(net) if net.addr() == net.network() => Ok(net),
        Ok(net) => Err(reading.fault(text, format!("bits are set behind the prefix; did you mean {}?", net.trunc()))),
        Err(_) => {
            Err(reading.fault(text, "an address, or one and a prefix length are needed, like 192.0.2.7 or 10.0.0.0/8"))
        }
    }
}

fn suffix(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "",
        Protocol::Udp => "/udp",
    }
}

fn counted(ports: PortRange) -> String {
    match ports.count() {
        1 => "is one port".to_owned(),
        n => format!("are {n} ports"),
    }
}

/// From a part of a text to its end.
fn rest_from<'t>(text: &'t str, part: &str) -> &'t str {
    &text[offset(text, part)..]
}

/// Where a slice of a text begins, in bytes.
fn offset(text: &str, part: &str) -> usize {
    (part.as_ptr() as usize).saturating_sub(text.as_ptr() as usize).min(text.len())
}

/// A text that is being read. All parts handed to its methods are slices of it.
struct Reading<'t> {
    what: &'static str,
    text: &'t str,
}

impl<'t> Reading<'t> {
    fn of(what: &'static str, text: &'t str) -> Result<Reading<'t>, SpecError> {
        let refuse = |text: String, fault: String| Err(SpecError { what, text, fault, place: None });
        match text.len() {
            0 => refuse(String::new(), "it is empty".to_owned()),
            1..=LONGEST => Ok(Reading { what, text }),
            _ => {
                let beginning = text.chars().take(40).map(visible).chain(['…']).collect();
                refuse(beginning, format!("it is longer than {LONGEST} bytes"))
            }
        }
    }

    fn fault(&self, part: &str, fault: impl Into<String>) -> SpecError {
        let start = self.text[..offset(self.text, part)].chars().count();
        SpecError {
            what: self.what,
            text: shown(self.text),
            // It may quote some of the text.
            fault: shown(&fault.into()),
            place: Some((start, part.chars().count().max(1))),
        }
    }

    fn port(&self, part: &'t str) -> Result<u16, SpecError> {
        if part.is_empty() {
            return Err(self.fault(part, "a port number (1 to 65535) is missing"));
        }
        // A sign is taken by `parse`, but is not a digit.
        match part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse::<u16>()) {
            Some(Ok(port @ 1..)) => Ok(port),
            _ => Err(self.fault(part, format!("'{part}' is not a port number (1 to 65535)"))),
        }
    }

    fn range(&self, part: &'t str) -> Result<PortRange, SpecError> {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (self.port(first)?, self.port(last)?),
            None => self.port(part).map(|port| (port, port))?,
        };
        if first > last {
            return Err(self.fault(part, format!("the range runs backwards: did you mean {last}-{first}?")));
        }
        Ok(PortRange { first, last })
    }

    /// The protocol, and what is in front of it.
    fn protocol(&self, part: &'t str) -> Result<(&'t str, Protocol), SpecError> {
        match part.split_once('/') {
            None => Ok((part, Protocol::Tcp)),
            Some((rest, word)) if word.eq_ignore_ascii_case("tcp") => Ok((rest, Protocol::Tcp)),
            Some((rest, word)) if word.eq_ignore_ascii_case("udp") => Ok((rest, Protocol::Udp)),
            Some((_, "")) => Err(self.fault(rest_from(part, &part[part.len()..]), "a protocol is missing: tcp or udp")),
            Some((_, word)) => Err(self.fault(word, format!("'{word}' is no protocol: tcp or udp"))),
        }
    }

    fn proxy(&self, options: &'t str, protocol: Protocol) -> Result<ProxyVersion, SpecError> {
        let version = match options.strip_prefix("proxy=") {
            Some("v1") => ProxyVersion::V1,
            Some("v2") => ProxyVersion::V2,
            Some(word) => {
                return Err(self.fault(word, format!("'{word}' is no version of the PROXY protocol: v1 or v2")));
            }
            None => {
                let fault = format!("'{options}' is no option of a port: proxy=v1 and proxy=v2 are");
                return Err(self.fault(options, fault));
            }
        };
        match protocol {
            Protocol::Tcp => Ok(version),
            Protocol::Udp => Err(self.fault(options, "the PROXY header goes in front of TCP connections, not UDP")),
        }
    }

    /// The address, the host's ports and the sandbox's.
    fn places(&self, part: &'t str) -> Result<(Option<IpAddr>, Option<&'t str>, &'t str), SpecError> {
        if let Some(inner) = part.strip_prefix('[') {
            return self.bracketed(part, inner);
        }
        // The address may hold colons it should not, the ports cannot.
        let mut parts = part.rsplitn(3, ':');
        let sandbox = parts.next().unwrap_or(part);
        match (parts.next(), parts.next()) {
            (None, _) => Ok((None, None, sandbox)),
            (Some(host), None) => {
                if host.parse::<IpAddr>().is_ok() {
                    let fault =
                        format!("'{host}' is an address, and needs two colons: {host}::{sandbox} for any free port");
                    return Err(self.fault(host, fault));
                }
                Ok((None, Some(host), sandbox))
            }
            (Some(host), Some(address)) => {
                let address = self.address(part, address)?;
                Ok((Some(address), Some(host).filter(|host| !host.is_empty()), sandbox))
            }
        }
    }

    fn bracketed(
        &self,
        part: &'t str,
        inner: &'t str,
    ) -> Result<(Option<IpAddr>, Option<&'t str>, &'t str), SpecError> {
        let Some((word, rest)) = inner.split_once(']') else {
            return Err(self.fault(part, "the bracket is not closed"));
        };
        let Ok(address) = word.parse::<Ipv6Addr>() else {
            let fault = match word.contains('%') {
                true => "a zone cannot be given: addresses of one link cannot be published at".to_owned(),
                false => format!("'{word}' is not an IPv6 address, which is what brackets are for"),
            };
            return Err(self.fault(word, fault));
        };
        let address = self.of_a_host(word, address.into())?;
        let ports = match rest.strip_prefix(':') {
            Some(ports) => ports,
            None => return Err(self.fault(rest, "a colon is needed behind the bracket: [ADDRESS]:[HOSTPORT]:PORT")),
        };
        match ports.split_once(':') {
            None => Err(self.fault(ports, format!("a second colon is needed: [{word}]::{ports} for any free port"))),
            Some((_, sandbox)) if sandbox.contains(':') => {
                Err(self.fault(sandbox, "too many parts: [ADDRESS]:[HOSTPORT]:PORT"))
            }
            Some((host, sandbox)) => Ok((Some(address), Some(host).filter(|host| !host.is_empty()), sandbox)),
        }
    }

    fn address(&self, part: &'t str, word: &'t str) -> Result<IpAddr, SpecError> {
        if let Ok(address) = word.parse::<IpAddr>() {
            if address.is_ipv6() {
                return Err(self.fault(word, format!("an IPv6 address needs brackets: [{word}]")));
            }
            return self.of_a_host(word, address);
        }
        if part.parse::<Ipv6Addr>().is_ok() {
            return Err(self.fault(part, format!("an IPv6 address needs brackets, and a port behind it: [{part}]::80")));
        }
        if word.is_empty() {
            return Err(self.fault(word, "an address is missing in front of the first colon"));
        }
        if word.contains(':') {
            return Err(
                self.fault(word, "too many parts, or an IPv6 address without brackets: [ADDRESS]:[HOSTPORT]:PORT")
            );
        }
        Err(self
            .fault(word, format!("'{word}' is not an IPv4 address, like 127.0.0.1, nor an IPv6 address in brackets")))
    }

    /// Could a socket be bound to it?
    fn of_a_host(&self, word: &'t str, address: IpAddr) -> Result<IpAddr, SpecError> {
        let why = match address {
            _ if address.is_multicast() => "a multicast address is no host's",
            IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address is no host's",
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => "an IPv4 address is written as such, without brackets",
            IpAddr::V6(v6) if v6.is_unicast_link_local() => "addresses of one link cannot be published at",
            _ => return Ok(address),
        };
        Err(self.fault(word, why))
    }

    fn no_more_parts(&self, part: &'t str, most: usize, form: &str) -> Result<(), SpecError> {
        match part.match_indices(':').nth(most - 1) {
            Some((at, _)) => Err(self.fault(&part[at..], format!("too many parts: {form}"))),
            None => Ok(()),
        }
    }
}

fn visible(c: char) -> char {
    if c.is_control() { '?' } else { c }
}

fn shown(part: &str) -> String {
    part.chars().map(visible).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(first: u16, last: u16) -> PortRange {
        PortRange { first, last }
    }

    fn meaning(text: &str) -> (Option<String>, Option<PortRange>, PortRange, Protocol, Option<ProxyVersion>) {
        let spec = PublishSpec::parse(text).unwrap();
        assert_eq!(spec.text, text);
        (spec.address.map(|ip| ip.to_string()), spec.host, spec.sandbox, spec.protocol, spec.proxy)
    }

    #[test]
    fn every_form_means_what_the_manual_says() {
        use Protocol::{Tcp, Udp};
        let at = |ip: &str| Some(ip.to_owned());
        let one = |port| range(port, port);
        assert_eq!(meaning("80"), (None, None, one(80), Tcp, None));
        assert_eq!(meaning("80/tcp"), (None, None, one(80), Tcp, None));
        assert_eq!(meaning("53/UDP"), (None, None, one(53), Udp, None));
        assert_eq!(meaning("8080:80"), (None, Some(one(8080)), one(80), Tcp, None));
        assert_eq!(meaning("127.0.0.1::80"), (at("127.0.0.1"), None, one(80), Tcp, None));
        assert_eq!(meaning("127.0.0.1:8080:80/udp"), (at("127.0.0.1"), Some(one(8080)), one(80), Udp, None));
        assert_eq!(meaning("0.0.0.0:8080:80"), (at("0.0.0.0"), Some(one(8080)), one(80), Tcp, None));
        assert_eq!(meaning("[::1]:8080:80"), (at("::1"), Some(one(8080)), one(80), Tcp, None));
        assert_eq!(meaning("[::]::80-89"), (at("::"), None, range(80, 89), Tcp, None));
        assert_eq!(meaning("8000-8009:80-89"), (None, Some(range(8000, 8009)), range(80, 89), Tcp, None));
        assert_eq!(meaning("8000-8009:80"), (None, Some(range(8000, 8009)), one(80), Tcp, None));
        assert_eq!(meaning("80,proxy=v1"), (None, None, one(80), Tcp, Some(ProxyVersion::V1)));
        assert_eq!(meaning("[::1]:1:65535/tcp,proxy=v2").4, Some(ProxyVersion::V2));
    }

    #[test]
    fn auto_is_no_spec_but_a_wish() {
        assert_eq!(PublishArg::parse("auto").unwrap(), PublishArg::Auto(Auto::Loopback));
        assert_eq!(PublishArg::parse("auto:all").unwrap(), PublishArg::Auto(Auto::All));
        let error = PublishArg::parse("auto:80").unwrap_err().to_string();
        assert!(error.contains("'auto:all'") && error.ends_with("    auto:80\n        ^^^"), "{error}");
    }

    #[test]
    fn a_bad_spec_is_told_with_a_caret_under_the_place() {
        assert_eq!(
            PublishSpec::parse("x8080:80").unwrap_err().to_string(),
            "'x8080:80' is no port spec: 'x8080' is not a port number (1 to 65535)\n    x8080:80\n    ^^^^^"
        );
        assert_eq!(PublishSpec::parse("").unwrap_err().to_string(), "'' is no port spec: it is empty");
        let cases = [
            ("x", "'x' is not a port number", "^"),
            ("0", "'0' is not a port number", "^"),
            ("0:80", "'0' is not a port number", "^"),
            ("8080:65536", "'65536' is not a port number", "     ^^^^^"),
            ("8080:+80", "'+80' is not a port number", "     ^^^"),
            ("8080:80 ", "'80 ' is not a port number", "     ^^^"),
            ("8080:", "port number (1 to 65535) is missing", "     ^"),
            (":80", "port number (1 to 65535) is missing", "^"),
            ("80-", "port number (1 to 65535) is missing", "   ^"),
            ("1-2-3", "'2-3' is not a port number", "  ^^^"),
            ("8080:89-80", "did you mean 80-89?", "     ^^^^^"),
            ("8000-8009:80-85", "8000-8009 are 10 ports, 80-85 are 6 ports", "^^^^^^^^^^^^^^^"),
            ("8080:80-89", "8080 is one port, 80-89 are 10 ports", "^^^^^^^^^^"),
            ("1.2.3:80:80", "'1.2.3' is not an IPv4 address", "^^^^^"),
            ("999.0.0.1:80:80", "'999.0.0.1' is not an IPv4 address", "^^^^^^^^^"),
            ("localhost:80:80", "'localhost' is not an IPv4 address", "^^^^^^^^^"),
            ("127.0.0.1:80", "127.0.0.1::80 for any free port", "^^^^^^^^^"),
            ("224.0.0.1:80:80", "multicast", "^^^^^^^^^"),
            ("255.255.255.255:80:80", "broadcast", "^^^^^^^^^^^^^^^"),
            (":80:80", "an address is missing", "^"),
            ("[::1:80:80", "the bracket is not closed", "^^^^^^^^^^"),
            ("::1]:80:80", "too many parts", "^^^^"),
            ("[::1]", "a colon is needed", "     ^"),
            ("[::1]80:80", "a colon is needed", "     ^^^^^"),
            ("[::1]:80", "[::1]::80 for any free port", "      ^^"),
            ("[::1]:80:80:80", "too many parts", "         ^^^^^"),
            ("[127.0.0.1]:80:80", "'127.0.0.1' is not an IPv6 address", " ^^^^^^^^^"),
            ("[fe80::1%eth0]:80:80", "a zone cannot be given", " ^^^^^^^^^^^^"),
            ("[fe80::1]:80:80", "of one link", " ^^^^^^^"),
            ("[::ffff:127.0.0.1]:80:80", "without brackets", " ^^^^^^^^^^^^^^^^"),
            ("::1:8080:80", "an IPv6 address needs brackets: [::1]", "^^^"),
            ("2001:db8::7:80", "an IPv6 address needs brackets, and a port", "^^^^^^^^^^^^^^"),
            ("1:2:3:4", "too many parts", "^^^"),
            ("a:b:c:d:x", "too many parts", "^^^^^"),
            ("80/sctp", "'sctp' is no protocol: tcp or udp", "   ^^^^"),
            ("80/", "a protocol is missing", "   ^"),
            ("80/tcp/udp", "'tcp/udp' is no protocol", "   ^^^^^^^"),
            ("80,proxy=v3", "'v3' is no version", "         ^^"),
            ("80,", "'' is no option", "   ^"),
            ("80,nonsense", "'nonsense' is no option", "   ^^^^^^^^"),
            ("80,proxy=v1,proxy=v2", "'v1,proxy=v2' is no version", "         ^^^^^^^^^^^"),
            ("80/udp,proxy=v1", "not UDP", "       ^^^^^^^^"),
            ("ü:80", "'ü' is not a port number", "^"),
            ("80\u{1b}[2J", "'80?[2J' is not", "^^^^^^"),
            ("127.0.0.1:53\u{1b}", "needs two colons: 127.0.0.1::53? for", "^^^^^^^^^"),
        ];
        for (text, fault, caret) in cases {
            let error = PublishSpec::parse(text).unwrap_err().to_string();
            let lines: Vec<&str> = error.lines().collect();
            assert!(lines[0].contains(fault), "{error}");
            assert_eq!(lines[2], format!("    {caret}"), "{error}");
            assert!(!error.contains('\u{1b}'));
        }
        let long = PublishSpec::parse(&"8".repeat(100_000)).unwrap_err().to_string();
        assert!(long.contains("longer than 128 bytes") && long.len() < 200, "{long}");
    }

    #[test]
    fn exposed_and_reached_ports_have_their_own_forms() {
        assert_eq!(Expose::parse("80").unwrap(), Expose { ports: range(80, 80), protocol: Protocol::Tcp });
        assert_eq!(Expose::parse("80-89/udp").unwrap(), Expose { ports: range(80, 89), protocol: Protocol::Udp });
        assert!(Expose::parse("8080:80").unwrap_err().to_string().contains("too many parts"));
        let reach = |host_port, sandbox_port, protocol| Reach { host_port, sandbox_port, protocol };
        assert_eq!(Reach::parse("5432").unwrap(), reach(5432, 5432, Protocol::Tcp));
        assert_eq!(Reach::parse("5432:15432").unwrap(), reach(5432, 15432, Protocol::Tcp));
        assert_eq!(Reach::parse("53:5353/udp").unwrap(), reach(53, 5353, Protocol::Udp));
        assert_eq!(ReachArg::parse("auto").unwrap(), ReachArg::Auto);
        assert_eq!(ReachArg::parse("53").unwrap(), ReachArg::Port(reach(53, 53, Protocol::Tcp)));
        assert!(ReachArg::parse("auto:all").unwrap_err().to_string().contains("'auto' is not a port number"));
        let error = Reach::parse("127.0.0.1:53:53").unwrap_err().to_string();
        assert!(error.contains("too many parts") && error.ends_with("\n                ^^^"), "{error}");
        assert_eq!(parse_port("80/udp").unwrap(), (80, Protocol::Udp));
        assert!(parse_port("80-89").is_err());
    }

    #[test]
    fn what_is_exposed_is_published_at_free_ports() {
        let spec = Expose::parse("80-89").unwrap().spec(Some(ProxyVersion::V1));
        assert_eq!(PublishSpec { text: spec.text.clone(), ..PublishSpec::parse("80-89,proxy=v1").unwrap() }, spec);
        assert_eq!(
            Expose::parse("53/udp").unwrap().spec(Some(ProxyVersion::V1)),
            PublishSpec::parse("53/udp").unwrap()
        );
    }

    #[test]
    fn clients_are_subnets_or_addresses() {
        assert_eq!(parse_clients("192.0.2.7").unwrap().to_string(), "192.0.2.7/32");
        assert_eq!(parse_clients("2001:db8::7").unwrap().to_string(), "2001:db8::7/128");
        assert_eq!(parse_clients("10.0.0.0/8").unwrap().to_string(), "10.0.0.0/8");
        assert!(parse_clients("10.0.0.1/8").unwrap_err().to_string().contains("did you mean 10.0.0.0/8?"));
        for bad in ["", "10.0.0.0/33", "10.0.0/8", "example.org"] {
            assert!(parse_clients(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_spec_is_found_again_however_it_is_written() {
        let spec = |text| PublishSpec::parse(text).unwrap();
        assert!(spec("8080:80").means_same(&spec("8080:80/tcp,proxy=v2")));
        assert!(spec("[::1]:8080:80").means_same(&spec("[0:0:0:0:0:0:0:1]:8080-8080:80")));
        assert!(!spec("8080:80").means_same(&spec("8080:80/udp")));
        assert!(!spec("8080:80").means_same(&spec("0.0.0.0:8080:80")));
    }

    prop_compose! {
        fn any_spec()(
            address in prop::option::of(prop_oneof![
                any::<[u8; 4]>().prop_map(IpAddr::from),
                any::<[u8; 16]>().prop_map(IpAddr::from),
            ]),
            host in prop::option::of(1u16..),
            sandbox in 1u16..,
            more in 0u16..20,
            same_length: bool,
            udp: bool,
            proxy in prop::option::of(prop_oneof![Just(ProxyVersion::V1), Just(ProxyVersion::V2)]),
        ) -> PublishSpec {
            let widened = |first: u16, more: u16| PortRange { first: first.min(65500), last: first.min(65500) + more };
            let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
            let one = host.is_some() && !same_length;
            PublishSpec {
                text: String::new(),
                address,
                host: host.map(|host| widened(host, more)),
                sandbox: widened(sandbox, if one { 0 } else { more }),
                protocol,
                proxy: proxy.filter(|_| !udp),
                manner: Box::default(),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_written_is_read_as_the_same(mut spec in any_spec()) {
            spec.text = spec.to_string();
            match PublishSpec::parse(&spec.text) {
                Ok(read) => prop_assert_eq!(read, spec),
                Err(error) => {
                    let reading = Reading::of("", &spec.text).unwrap();
                    prop_assert!(reading.of_a_host(&spec.text, spec.address.unwrap()).is_err(), "{}", error);
                }
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,40}", near in "[\\[\\]0-9a:.,/x%-]{0,24}") {
            for text in [&text, &near] {
                if let Err(error) = PublishArg::parse(text) {
                    prop_assert!(error.to_string().contains("is no"));
                }
                let _ = (Expose::parse(text), Reach::parse(text), parse_port(text), parse_clients(text));
            }
        }
    }
}
