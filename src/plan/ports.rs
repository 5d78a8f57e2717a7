//! Ports: what was asked to be published or reached, and what came of it.
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

mod parse;

pub use parse::{PublishArg, ReachArg, SpecError, parse_clients, parse_port};

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP, where nothing is said.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// Ports from `first` to `last`, both included; neither is 0 and `first` is not larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

/// Version of the PROXY protocol (haproxy's `doc/proxy-protocol.txt`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// One `-p`: `[ADDRESS:][HOST[-HOST]:]PORT[-PORT][/PROTOCOL]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishSpec {
    /// As it was written; how it is found again.
    pub text: String,
    /// Where to listen; `None` on all addresses of the host, both families.
    pub address: Option<IpAddr>,
    /// The host's ports: as many as the sandbox's, or a range from which one free port is picked for the sandbox's
    /// only one; `None` means any free port for each.
    pub host: Option<PortRange>,
    /// The sandbox's ports.
    pub sandbox: PortRange,
    /// The protocol.
    pub protocol: Protocol,
    /// Put a PROXY header in front of each connection (TCP only).
    pub proxy: Option<ProxyVersion>,
    /// What another tool's command line wants otherwise.
    #[serde(default)]
    pub manner: Box<BindManner>,
}

/// How a published port is bound and where it leads, where that is not the usual; the default is the usual.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindManner {
    /// Only what comes in by this interface of the host (SO_BINDTODEVICE, socket(7)).
    pub interface: Option<String>,
    /// Also on an address that the host does not have (IP_FREEBIND, ip(7)).
    pub freebind: bool,
    /// Of several ports, those that cannot be bound are left out; an error only when none can.
    pub tolerant: bool,
    /// The address inside that it leads to; `None` means the sandbox's own.
    pub sandbox_address: Option<IpAddr>,
    /// Each port only while the sandbox listens on it; one that cannot be bound then is left out. Only with as many ports
    /// of the host as of the sandbox.
    #[serde(default)]
    pub following: bool,
}

/// `-p auto`: follow the sandbox's own listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Auto {
    /// On 127.0.0.1 and ::1.
    Loopback,
    /// On all addresses of the host (`auto:all`).
    All,
    /// On all its IPv4 addresses.
    AllV4,
    /// On all its IPv6 addresses.
    AllV6,
}

/// `--expose PORT[-PORT][/PROTOCOL]`: ports that `-P` publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expose {
    /// The sandbox's ports.
    pub ports: PortRange,
    /// The protocol.
    pub protocol: Protocol,
}

/// `--reach HOSTPORT[:PORT][/PROTOCOL]`: a port of the host's loopback that the sandbox finds on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// The port on the host's loopback.
    pub host_port: u16,
    /// The port on the sandbox's loopback.
    pub sandbox_port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

/// All that was asked for about ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// `-p`, in the order given.
    pub publish: Vec<PublishSpec>,
    /// `-p auto`.
    pub auto: Option<Auto>,
    /// `--expose`.
    pub expose: Vec<Expose>,
    /// `-P`: publish what is exposed, each at a free port.
    pub publish_exposed: bool,
    /// The PROXY header for what `-P` publishes over TCP; the specs of `-p` each have their own.
    pub exposed_proxy: Option<ProxyVersion>,
    /// `--publish-from`: who may connect; empty means everybody. The host's own loopback always may.
    pub from: Vec<IpNet>,
    /// `--reach`.
    pub reach: Vec<Reach>,
    /// What `auto` follows.
    #[serde(default)]
    pub auto_rules: AutoRules,
    /// Have what listens on the host be found on the sandbox's loopback, under the same numbers.
    #[serde(default)]
    pub reach_auto: Option<AutoRules>,
    /// What of `reach` cannot be bound inside is left out.
    #[serde(default)]
    pub reach_tolerant: bool,
    /// Likewise reached, but each only while somebody listens on the host's port.
    #[serde(default)]
    pub reach_following: Vec<Reach>,
}

/// Which listeners are followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AutoRules {
    /// Those of TCP.
    pub tcp: bool,
    /// Those of UDP.
    pub udp: bool,
    /// Not these.
    pub except: Vec<(Protocol, PortRange)>,
    /// One whose number is taken is left out, instead of being published under another.
    pub same_number: bool,
    /// Beside those of UDP, the numbers on which TCP listens and is forwarded: protocols that begin over TCP open their
    /// UDP port too late to be found in time.
    #[serde(default)]
    pub udp_as_tcp: bool,
}

impl Default for AutoRules {
    /// All of them.
    fn default() -> AutoRules {
        AutoRules { tcp: true, udp: true, except: Vec::new(), same_number: false, udp_as_tcp: false }
    }
}

impl AutoRules {
    /// Is this port followed, as far as its number goes?
    pub fn follows(&self, protocol: Protocol, port: u16) -> bool {
        let is_wanted = match protocol {
            Protocol::Tcp => self.tcp,
            Protocol::Udp => self.udp,
        };
        is_wanted && !self.except.iter().any(|(p, range)| *p == protocol && range.contains(port))
    }
}

impl Ports {
    /// Every spec there is to be published: those of `-p`, and with `-P` what is exposed.
    pub fn specs(&self) -> impl Iterator<Item = Cow<'_, PublishSpec>> {
        let exposed = self.expose.iter().filter(|_| self.publish_exposed);
        let exposed = exposed.map(|expose| Cow::Owned(expose.spec(self.exposed_proxy)));
        self.publish.iter().map(Cow::Borrowed).chain(exposed)
    }

    /// Is it to be looked at what the sandbox listens on?
    pub fn follow_sandbox(&self) -> bool {
        self.auto.is_some() || self.publish.iter().any(|spec| spec.manner.following)
    }

    /// Refuses what cannot all be had: the same port of the host, or of the sandbox's loopback, wanted twice.
    pub fn check(&self) -> Result<(), ClashError> {
        check_specs(&self.publish)?;
        self.check_reach()
    }

    /// Refuses the same port of the sandbox's loopback wanted twice, and published ports that `--reach` leads back to.
    pub fn check_reach(&self) -> Result<(), ClashError> {
        let mut taken: HashMap<(Protocol, u16), &Reach> = HashMap::new();
        for reach in self.reach.iter().chain(&self.reach_following) {
            if let Some(other) = taken.insert((reach.protocol, reach.sandbox_port), reach) {
                return Err(ClashError::Twice {
                    whose: "sandbox",
                    port: reach.sandbox_port,
                    protocol: reach.protocol,
                    first: other.to_string(),
                    second: reach.to_string(),
                });
            }
        }
        self.specs().try_for_each(|spec| self.check_loop(&spec))
    }

    /// Refuses a published port that `--reach` leads back to.
    pub fn check_loop(&self, spec: &PublishSpec) -> Result<(), ClashError> {
        match self.reach.iter().find(|reach| reach.leads_back(spec)) {
            None => Ok(()),
            Some(reach) => Err(ClashError::Loop { publish: spec.text.clone(), reach: reach.to_string() }),
        }
    }
}

impl Reach {
    /// Is this one of the listeners that it opens?
    pub fn is_led_by(&self, reached: &Reached) -> bool {
        (self.protocol, self.host_port, self.sandbox_port)
            == (reached.protocol, reached.host_port, reached.inside.port())
    }

    /// Does what this opens inside lead to where the spec listens, and the spec to what this opens?
    fn leads_back(&self, spec: &PublishSpec) -> bool {
        let on_loopback = spec.address.is_none_or(|address| address.is_loopback() || address.is_unspecified());
        let Some(host) = spec.host.filter(|_| !spec.manner.following) else { return false };
        if spec.protocol != self.protocol || !on_loopback || !host.contains(self.host_port) {
            return false;
        }
        // One port for each, or one of several for the only one.
        let offset = if host.count() == spec.sandbox.count() { self.host_port - host.first } else { 0 };
        spec.sandbox.first.checked_add(offset) == Some(self.sandbox_port)
    }
}

/// Two specs that cannot both be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClashError {
    /// One port is wanted twice.
    #[error(
        "'{first}' and '{second}' both want {protocol} port {port} of the {whose}: leave one out, or take another port"
    )]
    Twice {
        /// `host` or `sandbox`.
        whose: &'static str,
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// Who was first.
        first: String,
        /// Who came then.
        second: String,
    },
    /// A connection would go round and round.
    #[error(
        "'-p {publish}' leads to what '--reach {reach}' leads back to '-p {publish}': publish or reach another port"
    )]
    Loop {
        /// The published port.
        publish: String,
        /// What leads back to it.
        reach: String,
    },
}

/// Refuses specs that want the same port of the host. Where a free port is picked there is always another.
pub fn check_specs(specs: &[PublishSpec]) -> Result<(), ClashError> {
    let fixed = |spec: &PublishSpec| spec.host.filter(|host| host.count() == spec.sandbox.count());
    let mut wanted: Vec<(Protocol, PortRange, &PublishSpec)> =
        specs.iter().filter_map(|spec| Some((spec.protocol, fixed(spec)?, spec))).collect();
    // Whoever clashes with a spec begins, in this order, before the spec's ports end. Equals stay as they were given.
    wanted.sort_by_key(|(protocol, ports, _)| (*protocol, ports.first));
    for (at, (protocol, ports, spec)) in wanted.iter().enumerate() {
        let near = wanted[at + 1..].iter().take_while(|(p, other, _)| p == protocol && other.first <= ports.last);
        if let Some((_, other_ports, other)) = near.into_iter().find(|(_, _, other)| is_shared(spec, other)) {
            return Err(ClashError::Twice {
                whose: "host",
                port: other_ports.first,
                protocol: *protocol,
                first: spec.text.clone(),
                second: other.text.clone(),
            });
        }
    }
    Ok(())
}

/// Is there an address that both listen at?
fn is_shared(a: &PublishSpec, b: &PublishSpec) -> bool {
    match (a.address, b.address) {
        (None, _) | (_, None) => true,
        (Some(a), Some(b)) => a == b || a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified()),
    }
}

/// Why a port is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// An option of the command line.
    Option,
    /// The API, or `tapline publish`.
    Api,
    /// `-p auto`: the sandbox listens there.
    Auto,
}

/// A published port: a socket bound on the host that leads to a port of a sandbox. One for each socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// The sandbox's id.
    pub sandbox: String,
    /// The protocol.
    pub protocol: Protocol,
    /// What the socket is bound to. `[::]` with `dual_stack` is every address of the host.
    pub host: SocketAddr,
    /// The socket takes IPv4 as well (IPV6_V6ONLY is off, ipv6(7)).
    pub dual_stack: bool,
    /// The index of the only interface of the host that clients come in by; 0 for any.
    #[serde(default, skip_serializing_if = "is_any")]
    pub device: u32,
    /// The sandbox's port.
    pub sandbox_port: u16,
    /// The address inside that it leads to; `None` means the sandbox's own.
    #[serde(default)]
    pub sandbox_address: Option<IpAddr>,
    /// The PROXY header, if one is wanted.
    pub proxy: Option<ProxyVersion>,
    /// Who may connect; empty means everybody. The host's own loopback always may.
    pub from: Vec<IpNet>,
    /// The spec that asked for it.
    pub spec: String,
    /// Who asked for it.
    pub origin: Origin,
}

/// What tells published ports apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PublishedKey {
    /// The protocol.
    pub protocol: Protocol,
    /// What the socket is bound to.
    pub host: SocketAddr,
    /// The interface, as in [`Published::device`]: sockets of different ones may share an address.
    #[serde(default, skip_serializing_if = "is_any")]
    pub device: u32,
}

fn is_any(device: &u32) -> bool {
    *device == 0
}

impl Published {
    /// What tells it apart.
    pub fn key(&self) -> PublishedKey {
        PublishedKey { protocol: self.protocol, host: self.host, device: self.device }
    }
}

/// A listener inside a sandbox that leads to a port of the host's loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Reached {
    /// The port on the host's loopback.
    pub host_port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// What the socket inside is bound to: 127.0.0.1 or ::1.
    pub inside: SocketAddr,
}

/// Why a port could not be published or taken back, for programs and for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct PortFailure {
    /// One word that stays the same: `bad_spec`, `taken`, `privileged`, `no_such_address`, `not_published`,
    /// `exhausted`, `failed`.
    pub code: String,
    /// What, why, what to do.
    pub message: String,
    /// The kernel's own answer, where a socket could not be bound; for who has other words for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind: Option<Box<BindFailure>>,
}

/// A socket that could not be bound.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindFailure {
    /// [`PublishSpec::text`].
    pub spec: String,
    /// Which port of the host; `None` for any free one.
    pub port: Option<u16>,
    /// The kernel's number (errno(3)), and what it is called (strerror(3)).
    pub errno: i32,
    /// Likewise.
    pub reason: String,
    /// The spec is tolerant: no other of its ports could be bound either, or none of them any more.
    pub tolerant: bool,
}

impl PortFailure {
    /// A failure of this code.
    pub fn new(code: &str, message: impl Into<String>) -> PortFailure {
        PortFailure { code: code.to_owned(), message: message.into(), bind: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clash(specs: &[&str]) -> Option<String> {
        let specs: Vec<PublishSpec> = specs.iter().map(|text| PublishSpec::parse(text).unwrap()).collect();
        check_specs(&specs).err().map(|error| error.to_string())
    }

    #[test]
    fn the_same_port_of_the_host_twice_names_both_specs() {
        assert_eq!(
            clash(&["8080:80", "127.0.0.1:8080:81"]).unwrap(),
            "'8080:80' and '127.0.0.1:8080:81' both want tcp port 8080 of the host: leave one out, or take another port"
        );
        for specs in [
            &["8080:80", "8080:80"][..],
            &["9000:1", "8000-8009:80-89", "8005:1"],
            &["0.0.0.0:8080:80", "127.0.0.1:8080:80"],
            &["[::]:8080:80", "[::1]:8080:80"],
            &["1-65535:1-65535", "1:1/udp", "70:2"],
        ] {
            assert!(clash(specs).is_some(), "{specs:?}");
        }
    }

    #[test]
    fn ports_that_can_all_be_had_are_no_clash() {
        for specs in [
            &["80", "80", "127.0.0.1::80"][..],
            &["8080:80", "8080:80/udp"],
            &["127.0.0.1:8080:80", "127.0.0.2:8080:80", "[::1]:8080:80"],
            &["0.0.0.0:8080:80", "[::]:8080:80"],
            &["8000-8009:80-89", "8010:80", "7999:80"],
            &["8000-8009:80", "8000-8009:81"],
        ] {
            assert_eq!(clash(specs), None, "{specs:?}");
        }
    }

    #[test]
    fn a_port_that_leads_back_to_itself_is_refused() {
        let with = |publish: &str, reach: &str| {
            let publish = vec![PublishSpec::parse(publish).unwrap()];
            Ports { publish, reach: vec![Reach::parse(reach).unwrap()], ..Ports::default() }.check()
        };
        for (publish, reach) in [("93:93", "93"), ("127.0.0.1:8093:93", "8093:93"), ("90-99:80-89", "95:85")] {
            assert!(matches!(with(publish, reach), Err(ClashError::Loop { .. })), "{publish} {reach}");
        }
        for (publish, reach) in [("93:94", "93"), ("93:93/udp", "93"), ("192.0.2.1:93:93", "93"), ("93", "93")] {
            assert_eq!(with(publish, reach), Ok(()), "{publish} {reach}");
        }
    }

    #[test]
    fn a_port_of_the_sandboxs_loopback_can_lead_to_one_place_only() {
        let reach = |texts: &[&str]| texts.iter().map(|text| Reach::parse(text).unwrap()).collect();
        let ports = Ports { reach: reach(&["5432", "5432/udp", "5433"]), ..Ports::default() };
        assert_eq!(ports.check(), Ok(()));
        let ports = Ports { reach: reach(&["5432", "5433:5432"]), ..Ports::default() };
        assert!(ports.check().unwrap_err().to_string().starts_with("'5432' and '5433:5432' both want tcp port 5432"));
    }

    #[test]
    fn what_is_exposed_is_published_only_when_asked_for() {
        let mut ports = Ports {
            publish: vec![PublishSpec::parse("8080:80").unwrap()],
            expose: vec![Expose::parse("90-91").unwrap()],
            ..Ports::default()
        };
        let texts = |ports: &Ports| ports.specs().map(|spec| spec.text.clone()).collect::<Vec<_>>();
        assert_eq!(texts(&ports), ["8080:80"]);
        ports.publish_exposed = true;
        assert_eq!(texts(&ports), ["8080:80", "90-91"]);
    }
}
