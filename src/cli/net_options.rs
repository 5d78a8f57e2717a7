//! Which networks `run` was asked for, and what the options about shared networks mean together.
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clap::{ArgMatches, Args};

use super::error::Failure;
use super::options::is_given;
use crate::plan::words::{self, WordError};
use crate::plan::{BRIDGE, Definition, Join, MacAddr, MacError, Mode, PRIVATE, SandboxLink, Shared};

/// What `--net` stands for where it is not given.
pub const DEFAULT_NET: &str = BRIDGE;

/// One `--net`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetArg {
    Private,
    None,
    Host,
    Container(Shared),
    Network(Join),
}

/// Why a word is no network.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NetError {
    /// Not a network's name, and none of the words that mean something else.
    #[error("{0}; possible are bridge, private, none, host, container:SANDBOX, ns:PATH, and the name of a network")]
    Word(&'static str),
    /// Nothing behind the colon.
    #[error("nothing stands behind the colon; write {0}")]
    Nothing(&'static str),
    /// `container:` with what cannot be a sandbox.
    #[error("a sandbox's name or id, a PID or ns:PATH has to follow `container:`; {0}")]
    Container(WordError),
    /// An unknown key.
    #[error("`{0}` is unknown; a list has name=NETWORK in it, and ip=, ip6=, mac=, alias=, ifname= where wanted")]
    Key(String),
    /// A key twice.
    #[error("`{0}` stands there twice")]
    Twice(&'static str),
    /// A list without a name.
    #[error("the network's name is missing; write name=NETWORK,{0}")]
    NoName(String),
    /// A list on something that is no shared network.
    #[error("`{0}` takes no further words; they are for shared networks")]
    NotShared(String),
    /// A bad value.
    #[error("`{key}={value}`: {reason}")]
    Value {
        /// Its key.
        key: &'static str,
        /// It.
        value: String,
        /// Why it is bad.
        reason: String,
    },
}

impl NetArg {
    /// From what was typed.
    pub fn parse(text: &str) -> Result<NetArg, NetError> {
        let path = |path: &str| match path {
            "" => Err(NetError::Nothing("ns:PATH, like ns:/proc/4711/ns/net")),
            path => Ok(NetArg::Container(Shared::Path(path.into()))),
        };
        match text {
            "private" => return Ok(NetArg::Private),
            "none" => return Ok(NetArg::None),
            "host" => return Ok(NetArg::Host),
            "container" | "container:" => return Err(NetError::Nothing("container:SANDBOX, like container:web")),
            _ => {}
        }
        if let Some(whose) = text.strip_prefix("container:") {
            return match whose.strip_prefix("ns:") {
                Some(rest) => path(rest),
                None => words::parse_name(whose)
                    .map(|name| NetArg::Container(Shared::Sandbox(name)))
                    .map_err(NetError::Container),
            };
        }
        if let Some(rest) = text.strip_prefix("ns:") {
            return path(rest);
        }
        if text.contains('=') {
            return parse_list(text).map(NetArg::Network);
        }
        words::check_label(text).map_err(NetError::Word)?;
        Ok(NetArg::Network(Join { network: text.to_owned(), ..Join::default() }))
    }
}

/// `name=NETWORK,ip=ADDRESS,…`, as Docker has it.
fn parse_list(text: &str) -> Result<Join, NetError> {
    let mut join = Join::default();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').ok_or_else(|| NetError::Key(part.to_owned()))?;
        let bad = |key, reason: String| NetError::Value { key, value: value.to_owned(), reason };
        let second = |key, is_second: bool| if is_second { Err(NetError::Twice(key)) } else { Ok(()) };
        match key {
            "name" => {
                second("name", !join.network.is_empty())?;
                match NetArg::parse(value) {
                    Ok(NetArg::Network(named)) => join.network = named.network,
                    Ok(_) => return Err(NetError::NotShared(value.to_owned())),
                    Err(error) => return Err(bad("name", error.to_string())),
                }
            }
            "ip" => {
                let ip = parse_ipv4(value).map_err(|e| bad("ip", e.to_string()))?;
                second("ip", join.v4.replace(ip).is_some())?;
            }
            "ip6" => {
                let ip = parse_ipv6(value).map_err(|e| bad("ip6", e.to_string()))?;
                second("ip6", join.v6.replace(ip).is_some())?;
            }
            "mac" | "mac-address" => {
                let mac: MacAddr = value.parse().map_err(|e: MacError| bad("mac", e.to_string()))?;
                second("mac", join.mac.replace(mac).is_some())?;
            }
            "alias" => join.aliases.push(parse_alias(value).map_err(|e| bad("alias", e.to_string()))?),
            "ifname" => {
                let name = words::parse_interface(value).map_err(|e| bad("ifname", e.to_string()))?;
                second("ifname", join.ifname.replace(name).is_some())?;
            }
            other => return Err(NetError::Key(other.to_owned())),
        }
    }
    if join.network.is_empty() { Err(NetError::NoName(text.to_owned())) } else { Ok(join) }
}

impl fmt::Display for NetArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NetArg::Private => f.write_str("private"),
            NetArg::None => f.write_str("none"),
            NetArg::Host => f.write_str("host"),
            NetArg::Container(shared) => shared.fmt(f),
            NetArg::Network(join) => f.write_str(&join.network),
        }
    }
}

/// `--ip`.
pub fn parse_ipv4(text: &str) -> Result<Ipv4Addr, WordError> {
    match words::parse_address(text)? {
        IpAddr::V4(ip) => Ok(ip),
        IpAddr::V6(_) => Err(WordError::Address("that is an IPv6 address, and --ip6 is for those")),
    }
}

/// `--ip6`.
pub fn parse_ipv6(text: &str) -> Result<Ipv6Addr, WordError> {
    match words::parse_address(text)? {
        IpAddr::V6(ip) => Ok(ip),
        IpAddr::V4(_) => Err(WordError::Address("that is an IPv4 address, and --ip is for those")),
    }
}

/// A name on a network: one DNS label, lower case.
pub fn parse_alias(text: &str) -> Result<String, WordError> {
    match words::parse_name(text)?.to_ascii_lowercase() {
        name if name == "localhost" => Err(WordError::Label("it is what each sandbox calls itself (RFC 6761)")),
        name => Ok(name),
    }
}

/// `NAME[:ALIAS]`.
fn parse_link(text: &str) -> Result<SandboxLink, WordError> {
    let (name, alias) = match text.split_once(':') {
        Some((name, alias)) => (name, Some(parse_alias(alias)?)),
        None => (text, None),
    };
    Ok(SandboxLink { sandbox: words::parse_name(name)?, alias })
}

/// Which networks, and the sandbox's place on shared ones.
#[derive(Args, Debug)]
#[command(next_help_heading = "Network")]
pub struct NetsArgs {
    /// Which network CMD gets; may be repeated for several shared ones
    ///
    /// `bridge` is a network that all sandboxes share which ask for no other; it is made on first use. `private` is a
    /// network and a gateway that nobody else is on. `none` is a namespace with lo up and nothing else. `host` is the host's network,
    /// without any isolation. `container:SANDBOX` is the network of another sandbox, by its name or id;
    /// `container:PID` that of a process, `ns:PATH` a network namespace by its path. Anything else is the name of a
    /// shared network that `tapline network create` has made.
    ///
    /// With several, a list says what is wanted on one of them: name=NETWORK,ip=ADDRESS,ip6=ADDRESS,mac=MAC,
    /// alias=NAME,ifname=NAME.
    #[arg(long, visible_alias = "network", value_name = "NETWORK", value_parser = NetArg::parse, default_value = DEFAULT_NET)]
    net: Vec<NetArg>,

    /// IPv4 address on the shared network; of several, on the first whose subnet has it [default: the lowest free one]
    #[arg(long, value_name = "IP", value_parser = parse_ipv4)]
    ip: Option<Ipv4Addr>,

    /// Likewise for IPv6
    #[arg(long, value_name = "IP", value_parser = parse_ipv6)]
    ip6: Option<Ipv6Addr>,

    /// Another name that others on its shared networks find it by; may be repeated
    #[arg(long, visible_alias = "net-alias", value_name = "NAME", value_parser = parse_alias)]
    network_alias: Vec<String>,

    /// Of several networks the one with the default route [default: the first that is not internal]
    #[arg(long, value_name = "NETWORK", value_parser = words::parse_name)]
    default_net: Option<String>,

    /// Of several networks the one towards which ports are published [default: the one with the default route]
    #[arg(long, value_name = "NETWORK", value_parser = words::parse_name, help_heading = "Ports")]
    on: Option<String>,

    /// A sandbox on a network of this one that is to be found by its name and ALIAS; may be repeated
    ///
    /// Its addresses are in /etc/hosts, its exposed ports in the environment of CMD (ALIAS_PORT and the like). Where the
    /// network keeps its sandboxes from each other (--icc=false), those ports are open to this one.
    #[arg(long, value_name = "SANDBOX[:ALIAS]", value_parser = parse_link, help_heading = "Names")]
    link: Vec<SandboxLink>,
}

/// The same for `attach`.
#[derive(Args, Debug)]
#[command(next_help_heading = "Network")]
pub struct AttachNetsArgs {
    /// Which network the namespace gets: `private`, or the name of a shared one; may be repeated for several of those
    ///
    /// `private` is a network and a gateway that nobody else is on. Anything else is `bridge`, or the name of a network
    /// that `tapline network create` has made. With several, a list says what is wanted on one of them:
    /// name=NETWORK,ip=ADDRESS,ip6=ADDRESS,mac=MAC,alias=NAME,ifname=NAME.
    #[arg(long, visible_alias = "network", value_name = "NETWORK", value_parser = NetArg::parse, default_value = PRIVATE)]
    net: Vec<NetArg>,

    /// IPv4 address on the shared network; of several, on the first whose subnet has it [default: the lowest free one]
    #[arg(long, value_name = "IP", value_parser = parse_ipv4)]
    ip: Option<Ipv4Addr>,

    /// Likewise for IPv6
    #[arg(long, value_name = "IP", value_parser = parse_ipv6)]
    ip6: Option<Ipv6Addr>,

    /// Another name that others on its shared networks find it by; may be repeated
    #[arg(long, visible_alias = "net-alias", value_name = "NAME", value_parser = parse_alias)]
    network_alias: Vec<String>,

    /// Of several networks the one with the default route [default: the first that is not internal]
    #[arg(long, value_name = "NETWORK", value_parser = words::parse_name)]
    default_net: Option<String>,

    /// Of several networks the one towards which ports are published [default: the one with the default route]
    #[arg(long, value_name = "NETWORK", value_parser = words::parse_name, help_heading = "Ports")]
    on: Option<String>,
}

impl AttachNetsArgs {
    /// Refuses what was typed and would have no effect, and what no namespace of somebody else's can be given.
    pub fn check_effects(&self, typed: &ArgMatches) -> Result<(), String> {
        let cannot = |net: &&NetArg| matches!(net, NetArg::None | NetArg::Host | NetArg::Container(_));
        if let Some(net) = self.net.iter().find(cannot).filter(|_| is_given(typed, "net")) {
            return Err(format!(
                "'--net {net}' is for `tapline run`: a namespace that is there can get `private` or shared networks"
            ));
        }
        self.as_for_run().check_effects(typed)?;
        let ineffective = ["dns-search", "no-dns"].iter().find(|option| is_given(typed, option));
        match ineffective.filter(|_| self.as_for_run().mode() == Mode::Bridge) {
            Some(option) => Err(format!("'--{option}' has no effect on a shared network: leave it out")),
            None => Ok(()),
        }
    }

    /// As `run` would take them. What a file says for `run`, and makes no sense here, is for other calls.
    pub fn as_for_run(&self) -> NetsArgs {
        let usable = |net: &&NetArg| matches!(net, NetArg::Private | NetArg::Network(_));
        let mut net: Vec<NetArg> = self.net.iter().filter(usable).cloned().collect();
        if net.is_empty() {
            net.push(NetArg::Private);
        }
        NetsArgs {
            net,
            ip: self.ip,
            ip6: self.ip6,
            network_alias: self.network_alias.clone(),
            default_net: self.default_net.clone(),
            on: self.on.clone(),
            link: Vec::new(),
        }
    }
}

/// What they mean.
#[derive(Debug, PartialEq, Eq)]
pub struct Nets {
    pub mode: Mode,
    pub joins: Vec<Join>,
    pub default_net: Option<String>,
    pub container: Option<Shared>,
    pub links: Vec<SandboxLink>,
    pub publish_on: Option<String>,
}

/// Could this word for a network be its id, or as much of it as somebody would type?
pub fn may_be_id(word: &str) -> bool {
    (4..=12).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What only shared networks make use of.
const OF_SHARED_NETWORKS: [&str; 6] = ["ip", "ip6", "network-alias", "default-net", "on", "link"];

/// What belongs to a network as a whole, and how `tapline network create` is told, where it can be.
const OF_THE_WHOLE_NETWORK: [(&str, Option<&str>); 9] = [
    ("mtu", Some("--mtu")),
    ("subnet", Some("--subnet")),
    ("subnet6", Some("--subnet")),
    ("ipv4-only", Some("--no-ipv6")),
    ("ipv6-only", None),
    ("outbound-addr", None),
    ("outbound-interface", None),
    ("udp-timeout", None),
    ("pcap", None),
];

impl NetsArgs {
    /// Which network; where several were given the first decides, and [`resolve`](Self::resolve) refuses what
    /// does not go together.
    pub fn mode(&self) -> Mode {
        match self.net.first() {
            Some(NetArg::Private) => Mode::Private,
            Some(NetArg::None) => Mode::None,
            Some(NetArg::Host) => Mode::Host,
            Some(NetArg::Container(_)) => Mode::Container,
            Some(NetArg::Network(_)) | None => Mode::Bridge,
        }
    }

    /// As it was typed: the first of them.
    pub fn word(&self) -> String {
        self.net.first().map(ToString::to_string).unwrap_or_default()
    }

    /// Refuses what was typed and would have no effect, or another one than that.
    pub fn check_effects(&self, typed: &ArgMatches) -> Result<(), String> {
        let word = self.word();
        if self.mode() != Mode::Bridge {
            return match OF_SHARED_NETWORKS.iter().find(|option| is_given(typed, option)) {
                None => Ok(()),
                Some(option) => Err(format!(
                    "'--{option}' has no effect with '--net {word}', it is for shared networks: leave one of them out"
                )),
            };
        }
        if let Some((option, creation)) = OF_THE_WHOLE_NETWORK.iter().find(|(option, _)| is_given(typed, option)) {
            let other = match creation {
                Some(creation) => format!(", or make a network with `tapline network create {creation}`"),
                None => String::new(),
            };
            return Err(format!(
                "'--{option}' belongs to a network as a whole, and `{word}` is shared: take '--net private'{other}"
            ));
        }
        for (option, chosen) in [("default-net", &self.default_net), ("on", &self.on)] {
            if let Some(name) = chosen.as_ref().filter(|name| is_given(typed, option) && !self.may_join(name)) {
                return Err(format!(
                    "'--{option} {name}' names a network that the sandbox is not on: add '--net {name}', or name another"
                ));
            }
        }
        Ok(())
    }

    /// What was given by --ip and --ip6, where there are several networks that it could be for.
    pub fn addresses(&self) -> Option<(Option<Ipv4Addr>, Option<Ipv6Addr>)> {
        (self.net.len() > 1 && (self.ip.is_some() || self.ip6.is_some())).then_some((self.ip, self.ip6))
    }

    /// Is this network among them, as far as words can tell? Behind an id may be any.
    fn may_join(&self, name: &str) -> bool {
        let may_be = |join: &Join| join.network == name || may_be_id(&join.network) || may_be_id(name);
        self.net.iter().any(|net| matches!(net, NetArg::Network(join) if may_be(join)))
    }

    /// What they mean together with the MAC and the interface's name, which concern the first network. `names` are
    /// the sandbox's own, and those that it has been given by --add-host.
    pub fn resolve(
        &self,
        verb: &'static str,
        mac: Option<MacAddr>,
        ifname: Option<&str>,
        names: &[&str],
    ) -> Result<Nets, Failure> {
        let usage = |text| Failure::Usage(verb, text);
        let mode = self.mode();
        let mut nets =
            Nets { mode, joins: Vec::new(), default_net: None, container: None, links: Vec::new(), publish_on: None };
        let alone = self.net.iter().find(|net| !matches!(net, NetArg::Network(_)));
        if let (Some(alone), 2..) = (alone, self.net.len()) {
            return Err(usage(format!("'--net {alone}' goes with no other network: give it alone, or leave it out")));
        }
        for net in &self.net {
            match net {
                NetArg::Private | NetArg::None | NetArg::Host => {}
                NetArg::Container(whose) => nets.container = Some(whose.clone()),
                NetArg::Network(join) => {
                    if nets.joins.iter().any(|other| other.network == join.network) {
                        return Err(usage(format!("'--net {}' is given twice: once is enough", join.network)));
                    }
                    nets.joins.push(join.clone());
                }
            }
        }
        if mode != Mode::Bridge {
            return Ok(nets);
        }
        self.place_first(&mut nets.joins, mac, ifname).map_err(usage)?;
        for join in &mut nets.joins {
            join.aliases.extend(self.network_alias.iter().cloned());
            join.aliases.sort();
            join.aliases.dedup();
        }
        let known = |chosen: &Option<String>| chosen.clone().filter(|name| self.may_join(name));
        nets.default_net = known(&self.default_net);
        nets.publish_on = known(&self.on);
        nets.links.clone_from(&self.link);
        let aliases = nets.joins.iter().flat_map(|join| &join.aliases).map(String::as_str);
        let taken: Vec<&str> = aliases.chain(names.iter().copied()).collect();
        check_links(&nets.links, &taken).map_err(usage)?;
        Ok(nets)
    }

    /// What was asked for without a network's name is for the first.
    fn place_first(&self, joins: &mut [Join], mac: Option<MacAddr>, ifname: Option<&str>) -> Result<(), String> {
        let Some(first) = joins.first_mut() else { return Ok(()) };
        let twice = |option: &str, name: &str| {
            format!("'--{option}' is also in the list of '--net name={name}': leave one of them out")
        };
        if let Some(ip) = self.ip
            && first.v4.replace(ip).is_some()
        {
            return Err(twice("ip", &first.network));
        }
        if let Some(ip) = self.ip6
            && first.v6.replace(ip).is_some()
        {
            return Err(twice("ip6", &first.network));
        }
        if let Some(mac) = mac
            && first.mac.replace(mac).is_some()
        {
            return Err(twice("mac", &first.network));
        }
        if let Some(ifname) = ifname
            && first.ifname.replace(ifname.to_owned()).is_some()
        {
            return Err(twice("ifname", &first.network));
        }
        let mut names: Vec<&str> = joins.iter().filter_map(|join| join.ifname.as_deref()).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            None => Ok(()),
            Some(pair) => Err(format!("two interfaces cannot both be called {}: give one another name", pair[0])),
        }
    }
}

/// Of several networks, those of --ip and --ip6 go to the first whose subnet has them; to the first of all where none
/// has. `definitions` are theirs, where they are known.
pub fn place_addresses(
    joins: &mut [Join],
    definitions: &[Option<Definition>],
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
) {
    let first_with = |has: &dyn Fn(&Definition) -> bool| definitions.iter().position(|d| d.as_ref().is_some_and(has));
    if let Some(ip) = v4
        && let Some(at) = first_with(&|d| d.v4.is_some_and(|part| part.subnet.contains(&ip)))
        && joins[at].v4.is_none()
    {
        joins[0].v4 = None;
        joins[at].v4 = Some(ip);
    }
    if let Some(ip) = v6
        && let Some(at) = first_with(&|d| d.v6.is_some_and(|part| part.subnet.contains(&ip)))
        && joins[at].v6.is_none()
    {
        joins[0].v6 = None;
        joins[at].v6 = Some(ip);
    }
}

/// Refuses links whose names lead to two places. `taken` are names that lead elsewhere.
fn check_links(links: &[SandboxLink], taken: &[&str]) -> Result<(), String> {
    let names = |link: &SandboxLink| {
        [Some(link.sandbox.to_ascii_lowercase()), link.alias.clone()].into_iter().flatten().collect::<Vec<_>>()
    };
    for (at, link) in links.iter().enumerate() {
        let written = match &link.alias {
            Some(alias) => format!("{}:{alias}", link.sandbox),
            None => link.sandbox.clone(),
        };
        for name in names(link) {
            if taken.iter().any(|other| other.eq_ignore_ascii_case(&name)) {
                return Err(format!(
                    "'--link {written}': the name {name} is the sandbox's own or given by --add-host: take another alias"
                ));
            }
            let clash = links[..at]
                .iter()
                .find(|other| !other.sandbox.eq_ignore_ascii_case(&link.sandbox) && names(other).contains(&name));
            if let Some(other) = clash {
                return Err(format!(
                    "'--link {written}': {name} already leads to {}: take another alias",
                    other.sandbox
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Ipv4Part, Sharing};

    fn network(name: &str) -> NetArg {
        NetArg::Network(Join { network: name.into(), ..Join::default() })
    }

    #[test]
    fn a_net_is_a_word_a_sandbox_a_path_or_a_name() {
        let of = |text| NetArg::parse(text).unwrap();
        assert_eq!(of("private"), NetArg::Private);
        assert_eq!(of("bridge"), network("bridge"));
        assert_eq!(of("front-1"), network("front-1"));
        assert_eq!(of("container:web"), NetArg::Container(Shared::Sandbox("web".into())));
        assert_eq!(of("container:4711"), NetArg::Container(Shared::Sandbox("4711".into())));
        let path = NetArg::Container(Shared::Path("/run/netns/a".into()));
        assert_eq!(of("container:ns:/run/netns/a"), path);
        assert_eq!(of("ns:/run/netns/a"), path);
        for bad in ["", "a_b", "container", "container:", "container:a/b", "ns:", "container:ns:", "a.b"] {
            assert!(NetArg::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_list_says_what_is_wanted_on_a_network() {
        let parsed = NetArg::parse("name=front,ip=10.1.0.5,ip6=fd01::5,mac=02:00:00:00:00:05,alias=Web,alias=www");
        let NetArg::Network(join) = parsed.unwrap() else { panic!("a network") };
        assert_eq!((join.network.as_str(), join.v4), ("front", Some(Ipv4Addr::new(10, 1, 0, 5))));
        assert_eq!(join.aliases, ["web", "www"]);
        assert!(join.v6.is_some() && join.mac.is_some() && join.ifname.is_none());
        for (bad, why) in [
            ("ip=10.1.0.5", "name is missing"),
            ("name=host,ip=10.1.0.5", "takes no further words"),
            ("name=a,ip=10.1.0.5,ip=10.1.0.6", "twice"),
            ("name=a,ip=fd00::1", "--ip6"),
            ("name=a,speed=1", "`speed` is unknown"),
            ("name=a,alias", "`alias` is unknown"),
        ] {
            let error = NetArg::parse(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn an_address_is_for_the_network_whose_subnet_has_it() {
        let definition = |name: &str, third: u8| Definition {
            name: name.into(),
            id: "0123456789ab".into(),
            v4: Some(Ipv4Part {
                subnet: format!("10.9.{third}.0/24").parse().unwrap(),
                gateway: Ipv4Addr::new(10, 9, third, 1),
                range: None,
            }),
            v6: None,
            mtu: 1500,
            sharing: Sharing { internal: false, icc: true },
            dns: Vec::new(),
            dns_search: Vec::new(),
            labels: Default::default(),
            created: 0,
        };
        let ip = Ipv4Addr::new(10, 9, 2, 7);
        let place = |definitions: [Option<Definition>; 2]| {
            let first = Join { network: "a".into(), v4: Some(ip), ..Join::default() };
            let mut joins = [first, Join { network: "b".into(), ..Join::default() }];
            place_addresses(&mut joins, &definitions, Some(ip), None);
            joins.map(|join| join.v4)
        };
        assert_eq!(place([Some(definition("a", 1)), Some(definition("b", 2))]), [None, Some(ip)]);
        assert_eq!(place([Some(definition("a", 2)), Some(definition("b", 1))]), [Some(ip), None]);
        // Whether it is anywhere at all is said by whoever gives addresses out.
        assert_eq!(place([Some(definition("a", 1)), None]), [Some(ip), None]);
    }

    #[test]
    fn a_name_leads_to_one_sandbox_only() {
        let check = |links: &[&str]| {
            let links: Vec<SandboxLink> = links.iter().map(|text| parse_link(text).unwrap()).collect();
            check_links(&links, &["own", "added"])
        };
        assert_eq!(check(&["db:sql", "cache"]), Ok(()));
        assert_eq!(check(&["db:sql", "db:store"]), Ok(()));
        assert!(check(&["db:sql", "cache:SQL"]).unwrap_err().contains("sql already leads to db"));
        assert!(check(&["db:cache", "cache"]).unwrap_err().contains("already leads to db"));
        assert!(check(&["db:own"]).unwrap_err().contains("take another alias"));
        assert!(check(&["db:added"]).is_err());
        assert!(parse_link("db:a_b").is_err() && parse_link(":x").is_err() && parse_link("db:").is_err());
    }
}
