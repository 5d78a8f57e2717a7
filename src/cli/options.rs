//! The options that `run` and `attach` share, and what they mean together.
use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::ValueRange;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args};
use ipnet::{Ipv4Net, Ipv6Net};

use super::error::Failure;
use super::values::LogFormat;
use crate::plan::{
    HostTarget, Interface, Ipv4Layout, Ipv6Layout, LinkChoice, Logging, MacAddr, Mode, Names, Network, Outbound,
    PRIVATE, subnet, words,
};

/// Names that lead to the gateway's address, and so to the host.
pub const HOST_NAMES: [&str; 3] = ["host.tapline.internal", "host.docker.internal", "host.containers.internal"];

/// The MTU where none is asked for, in bytes: slirp's, and the largest.
pub const DEFAULT_MTU: u16 = 65520;

/// The interface of a private network where no name is asked for.
const DEFAULT_IFNAME: &str = "tap0";

/// Idle UDP flows live so long where nothing else is asked for (RFC 4787 REQ-5 recommends five minutes).
pub const DEFAULT_UDP_TIMEOUT: Duration = Duration::from_secs(300);

/// Under this RFC 4787 REQ-5 is broken.
const SHORTEST_UDP_TIMEOUT: Duration = Duration::from_secs(120);

/// Options that cannot be given together. clap's own way to say so does not know of flags that are switched off.
const CONTRADICTIONS: [(&str, &str); 7] = [
    ("ipv4-only", "ipv6-only"),
    ("ipv4-only", "subnet6"),
    ("ipv6-only", "subnet"),
    ("no-dns", "dns"),
    ("no-dns", "dns-search"),
    ("no-dns", "dns-option"),
    ("quiet", "verbose"),
];

/// A flag that also takes `=false`, so that one in the configuration file can be switched off for a call.
pub fn with_off_switch(flag: Arg) -> Arg {
    flag.action(ArgAction::Set)
        .num_args(ValueRange::from(0..=1))
        .require_equals(true)
        .value_name("BOOL")
        .default_missing_value("true")
        .default_value("false")
        .hide_default_value(true)
        .hide_possible_values(true)
}

/// Is it one of those?
pub fn is_flag(arg: &Arg) -> bool {
    arg.get_default_values() == ["false"]
}

/// Was an option given, by its long name? A flag that was switched off counts as well.
pub fn is_given(matches: &ArgMatches, option: &str) -> bool {
    let id = option.replace('-', "_");
    matches.ids().any(|other| other.as_str() == id) && matches.value_source(&id) == Some(ValueSource::CommandLine)
}

/// Was it given, and not switched off?
fn is_wanted(matches: &ArgMatches, option: &str) -> bool {
    let off = |value: &bool| !value;
    let id = option.replace('-', "_");
    is_given(matches, option) && !matches.try_get_one::<bool>(&id).ok().flatten().is_some_and(off)
}

/// Is an option contradicted by what was given?
pub fn is_contradicted(matches: &ArgMatches, option: &str) -> bool {
    CONTRADICTIONS.iter().any(|(a, b)| *a == option && is_wanted(matches, b) || *b == option && is_wanted(matches, a))
}

/// A sentence for the first two that contradict each other.
pub fn contradiction(matches: &ArgMatches) -> Option<String> {
    let (a, b) = CONTRADICTIONS.iter().find(|(a, b)| is_wanted(matches, a) && is_wanted(matches, b))?;
    Some(format!("'--{a}' contradicts '--{b}': give one of them"))
}

/// The network and the interface inside.
#[derive(Args, Debug)]
#[command(next_help_heading = "Network")]
pub struct NetworkArgs {
    /// Name of the sandbox, for ps, exec, inspect and stop [default: the command's and eight digits]
    #[arg(long, value_name = "NAME", value_parser = words::parse_name)]
    pub name: Option<String>,

    /// Largest IP packet in bytes: 576 to 65520, with IPv6 1280 at least [default: 65520]
    #[arg(long, value_name = "BYTES", value_parser = words::parse_mtu)]
    mtu: Option<u16>,

    /// IPv4 subnet; the gateway is its address 2, DNS 3, the sandbox 100 [default: 10.0.2.0/24]
    #[arg(long, value_name = "CIDR", value_parser = subnet::parse_ipv4_subnet)]
    subnet: Option<Ipv4Net>,

    /// IPv6 prefix; the gateway is ::2, DNS ::3, the sandbox ::100 [default: fd00::/64]
    #[arg(long, value_name = "CIDR", value_parser = subnet::parse_ipv6_subnet)]
    subnet6: Option<Ipv6Net>,

    /// No IPv6 inside
    #[arg(long)]
    ipv4_only: bool,

    /// No IPv4 inside
    #[arg(long)]
    ipv6_only: bool,

    /// Ethernet address of the interface [default: 02:42 and the sandbox's IPv4 address]
    #[arg(long, visible_alias = "mac-address", value_name = "MAC")]
    pub mac: Option<MacAddr>,

    /// Name of the interface inside [default: tap0; on shared networks eth0 and up]
    #[arg(long, value_name = "NAME", value_parser = words::parse_interface)]
    pub ifname: Option<String>,

    /// How frames travel between the sandbox and its gateway
    #[arg(long, value_name = "KIND", value_enum, default_value_t = LinkChoice::Auto)]
    link_kind: LinkChoice,

    /// Write every frame to this file, as tcpdump and Wireshark read it; for `--net private`
    ///
    /// In both directions, as they travel between the sandbox and its gateway: up to 64 KiB long, some without their
    /// checksum. The file is emptied first. What goes past the interface is no frame: published ports for clients on the
    /// host's loopback, and --reach.
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,

    /// Source address of connections to the outside; once for IPv4, once for IPv6
    #[arg(long, value_name = "IP", value_parser = words::parse_address)]
    outbound_addr: Vec<IpAddr>,

    /// Interface of the host that connections to the outside leave by
    #[arg(long, value_name = "NAME", value_parser = words::parse_host_interface)]
    outbound_interface: Option<String>,

    /// How long a UDP or ping flow may be idle: seconds, or with s, m or h [default: 5m]
    ///
    /// RFC 4787 asks for two minutes at least; less is possible and gets a warning. Flows to port 53 end after ten
    /// seconds.
    #[arg(long, value_name = "TIME", value_parser = words::parse_timeout)]
    udp_timeout: Option<Duration>,
}

impl NetworkArgs {
    /// Refuses what was typed and cannot be on a shared network.
    pub fn check_effects(&self, mode: Mode, typed: &ArgMatches) -> Result<(), String> {
        if mode == Mode::Bridge && self.link_kind == LinkChoice::None && is_given(typed, "link-kind") {
            return Err(
                "'--link-kind none' leaves out the interface that a shared network is joined by: take another \
                        kind, or '--net private'"
                    .into(),
            );
        }
        Ok(())
    }

    /// Where frames are written down. What a file says is for other networks, where there can be no capture.
    pub fn pcap(&self, mode: Mode) -> Option<PathBuf> {
        self.pcap.clone().filter(|_| mode == Mode::Private)
    }

    /// How the sandbox is joined to its gateway; likewise.
    fn link(&self, own_network: bool) -> LinkChoice {
        if self.link_kind == LinkChoice::None && !own_network { LinkChoice::Auto } else { self.link_kind }
    }
}

/// What may be reached on the host and beside it.
#[derive(Args, Debug)]
#[command(next_help_heading = "Access")]
pub struct AccessArgs {
    /// Let the gateway's address lead to the host's loopback
    ///
    /// Without it that address, and the name host.tapline.internal, lead to the host's own non-loopback address: what
    /// the host offers to its network can be used, and nothing of what it offers only to itself.
    #[arg(long)]
    pub host_loopback: bool,

    /// Let the clouds' metadata services be reached (169.254.169.254 and its like)
    #[arg(long)]
    pub allow_metadata: bool,
}

/// Names inside.
#[derive(Args, Debug)]
#[command(next_help_heading = "Names")]
pub struct NamesArgs {
    /// Resolver to be used inside; may be repeated [default: the network's DNS address, which asks the host's]
    #[arg(long, value_name = "IP", value_parser = words::parse_address)]
    pub dns: Vec<IpAddr>,

    /// Search domain; may be repeated, `.` means none [default: the host's]
    #[arg(long, value_name = "DOMAIN", value_parser = words::parse_search_domain)]
    dns_search: Vec<String>,

    /// Another name inside; the address may be `host-gateway`, for the host; may be repeated
    #[arg(long, value_name = "NAME:IP", value_parser = words::parse_add_host)]
    pub add_host: Vec<(String, HostTarget)>,

    /// No name resolution: an empty resolv.conf, and nobody answers at the DNS address
    #[arg(long)]
    no_dns: bool,
}

/// What is said while it works.
#[derive(Args, Debug)]
#[command(next_help_heading = "Messages")]
pub struct LoggingArgs {
    /// Say more; twice for debugging
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,

    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,

    /// Form of the messages on standard error
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

impl LoggingArgs {
    /// What it means.
    pub fn resolve(&self) -> Logging {
        // More than a handful of -v means no more than a handful.
        let verbosity = if self.quiet { -1 } else { i8::try_from(self.verbose.min(9)).unwrap_or(9) };
        Logging { verbosity, json: self.log_format == LogFormat::Json }
    }
}

/// All that `run` and `attach` share, resolved.
pub struct Resolved {
    pub id: String,
    pub name: String,
    pub network: Network,
    pub interface: Interface,
    /// Everything but the options, which only `run` has a file for.
    pub names: Names,
    /// One sentence each; nothing that prevents the work.
    pub warnings: Vec<String>,
}

/// What the shared options mean together. `verb` is the subcommand, `base` the word that a default name begins with.
/// Where the sandbox has no network of its own, what is said of one is for other calls and not judged.
pub fn resolve(
    verb: &'static str,
    base: &OsStr,
    network: &NetworkArgs,
    access: &AccessArgs,
    names: &NamesArgs,
    hostname: Option<&str>,
    own_network: bool,
) -> Result<Resolved, Failure> {
    let usage = |text: String| Failure::Usage(verb, text);
    let mut warnings = Vec::new();
    let id = crate::cli::rooms::random_id();
    let name = match &network.name {
        Some(name) => name.clone(),
        None => words::default_name(&base.to_string_lossy(), &id),
    };

    // The subnets' parsers have made sure of the room.
    let v4 = if network.ipv6_only { None } else { Ipv4Layout::slirp(network.subnet.unwrap_or(subnet::DEFAULT_SUBNET)) };
    let v6 =
        if network.ipv4_only { None } else { Ipv6Layout::slirp(network.subnet6.unwrap_or(subnet::DEFAULT_SUBNET6)) };
    let mtu = network.mtu.unwrap_or(DEFAULT_MTU);
    if own_network && v6.is_some() && mtu < 1280 {
        return Err(usage(format!(
            "'{mtu}' is no value for '--mtu <BYTES>' with IPv6, which needs 1280 bytes at least (RFC 8200): take more, or add --ipv4-only"
        )));
    }
    let (gateway_mac, derived_mac) = match (v4, v6) {
        (Some(v4), _) => (MacAddr::from_ipv4(v4.gateway), MacAddr::from_ipv4(v4.sandbox)),
        (None, Some(v6)) => (MacAddr::from_ipv6(v6.gateway), MacAddr::from_ipv6(v6.sandbox)),
        (None, None) => return Err(usage("'--ipv4-only' contradicts '--ipv6-only': give one of them".into())),
    };
    let mac = network.mac.unwrap_or(derived_mac);
    if own_network && mac == gateway_mac {
        return Err(usage(format!("'{mac}' is no value for '--mac <MAC>': the gateway has it, take another")));
    }
    let udp_timeout = network.udp_timeout.unwrap_or(DEFAULT_UDP_TIMEOUT);
    if own_network && udp_timeout < SHORTEST_UDP_TIMEOUT {
        warnings.push(format!(
            "--udp-timeout of {} s is less than the two minutes of RFC 4787: idle UDP conversations may break",
            udp_timeout.as_secs()
        ));
    }
    let search = search_domains(&names.dns_search).map_err(usage)?;
    let resolved_names = Names {
        hostname: hostname.unwrap_or(&name).to_owned(),
        dns: !names.no_dns,
        servers: names.dns.clone(),
        search: search.clone(),
        options: Vec::new(),
        hosts: names.add_host.clone(),
    };
    let resolved_network = Network {
        name: PRIVATE.to_owned(),
        sharing: None,
        v4,
        v6,
        mtu,
        gateway_mac,
        host_loopback_allowed: access.host_loopback,
        metadata_allowed: access.allow_metadata,
        broadcast_to_host: false,
        dns_enabled: !names.no_dns,
        dns_search: search.unwrap_or_default(),
        dns_servers: names.dns.clone(),
        local_names: local_names(&names.add_host, v4.map(|l| l.gateway), v6.map(|l| l.gateway)),
        outbound: outbound(network).map_err(usage)?,
        udp_timeout,
        behaviour: Default::default(),
    };
    let ifname = network.ifname.clone().unwrap_or_else(|| DEFAULT_IFNAME.to_owned());
    let interface =
        Interface { name: ifname, mac, link: network.link(own_network), configure: true, extras: Default::default() };
    Ok(Resolved { id, name, network: resolved_network, interface, names: resolved_names, warnings })
}

fn search_domains(given: &[String]) -> Result<Option<Vec<String>>, String> {
    match given {
        [] => Ok(None),
        [dot] if dot == "." => Ok(Some(Vec::new())),
        several if several.iter().any(|domain| domain == ".") => {
            Err("'--dns-search .' means no search domain: give it alone, or leave it out".into())
        }
        several => Ok(Some(several.to_vec())),
    }
}

fn outbound(network: &NetworkArgs) -> Result<Outbound, String> {
    let mut outbound = Outbound { interface: network.outbound_interface.clone(), ..Outbound::default() };
    for address in &network.outbound_addr {
        let taken = match address {
            IpAddr::V4(v4) => outbound.v4.replace(*v4).is_some(),
            IpAddr::V6(v6) => outbound.v6.replace(*v6).is_some(),
        };
        if taken {
            let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            return Err(format!("'--outbound-addr {address}' is the second {family} address: one of each family"));
        }
    }
    Ok(outbound)
}

/// The names that the DNS address answers itself: those given, and the host's where they were not given.
fn local_names(given: &[(String, HostTarget)], v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) -> Vec<(String, IpAddr)> {
    let gateways: Vec<IpAddr> = v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6)).collect();
    let is_given = |name: &str| given.iter().any(|(other, _)| other == name);
    let built_in =
        HOST_NAMES.into_iter().filter(|name| !is_given(name)).map(|name| (name.to_owned(), HostTarget::Gateway));
    built_in
        .chain(given.iter().cloned())
        .flat_map(|(name, target)| {
            let addresses = match target {
                HostTarget::Address(address) => vec![address],
                HostTarget::Gateway => gateways.clone(),
            };
            addresses.into_iter().map(move |address| (name.clone(), address))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_name_takes_the_place_of_a_built_in_one() {
        let given = vec![("host.docker.internal".to_owned(), HostTarget::Address([192, 0, 2, 7].into()))];
        let names = local_names(&given, Some(Ipv4Addr::new(10, 0, 2, 2)), None);
        let of = |name: &str| names.iter().filter(|(n, _)| n == name).map(|(_, ip)| *ip).collect::<Vec<_>>();
        assert_eq!(of("host.docker.internal"), [IpAddr::from([192, 0, 2, 7])]);
        assert_eq!(of("host.tapline.internal"), [IpAddr::from([10, 0, 2, 2])]);
    }

    #[test]
    fn a_dot_means_no_search_domain() {
        assert_eq!(search_domains(&[]), Ok(None));
        assert_eq!(search_domains(&[".".into()]), Ok(Some(vec![])));
        assert!(search_domains(&[".".into(), "example.org".into()]).is_err());
    }
}
