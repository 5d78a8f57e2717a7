//! `--dry-run`: the plan, for people or for programs.
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use clap::ValueEnum;

use super::ps::mode_word;
use crate::plan::{
    Access, Attach, Auto, HostTarget, Interface, Join, LinkChoice, MapUser, Mode, Names, Network, PidMode, Ports,
    PublishSpec, Run, Shared, Target, Userns,
};

/// How the plan is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Lines for people
    Text,
    /// The whole plan as JSON
    Json,
}

fn json<T: serde::Serialize>(plan: &T) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(plan)? + "\n")
}

/// A column of labels, a column of text.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, label: &str, text: impl std::fmt::Display) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{label:<10} {text}");
    }
}

/// The plan of `run`.
pub fn run(plan: &Run, warnings: &[String], format: Format) -> anyhow::Result<String> {
    if format == Format::Json {
        return json(plan);
    }
    let mut lines = Lines::default();
    lines.add("sandbox", format_args!("{} (id {})", plan.name, plan.id));
    let words: Vec<String> = plan.command.iter().map(|word| quoted(&word.to_string_lossy())).collect();
    lines.add("command", words.join(" "));
    lines.add(
        "user",
        match (plan.mode, plan.map_user) {
            (Mode::Container, _) => "as in the other sandbox",
            (_, MapUser::Root) => "root inside, the caller outside",
            (_, MapUser::Keep) => "the caller, inside as outside",
            (_, MapUser::Auto) => "root inside, with the caller's subordinate ids behind it",
        },
    );
    lines.add(
        "processes",
        match plan.pid {
            PidMode::Private => "a PID namespace of its own",
            PidMode::Host => "the caller's PID namespace",
        },
    );
    if plan.locked {
        lines.add("locked", "CMD has no capability over its network and mounts");
    }
    match plan.mode {
        Mode::Container => lines.add("hostname", "the other sandbox's, and its resolv.conf and hosts"),
        _ => lines.add("hostname", &plan.names.hostname),
    }
    match plan.mode {
        Mode::Bridge => {
            let Run { joins, default_net, interface, access, names, .. } = plan;
            add_shared(&mut lines, joins, default_net.as_deref(), interface.link, *access, names);
            if !names.options.is_empty() {
                lines.add("resolver", format_args!("options {}", names.options.join(" ")));
            }
            for link in &plan.links {
                let alias = link.alias.as_ref().map(|alias| format!(", called {alias}")).unwrap_or_default();
                lines.add("link", format_args!("to {}{alias}", link.sandbox));
            }
            add_ports(&mut lines, &plan.ports);
            add_publish_on(&mut lines, plan.publish_on.as_deref());
        }
        Mode::Private => {
            add_network(&mut lines, &plan.network, plan.names.search.as_deref(), &plan.interface);
            add_capture(&mut lines, plan.pcap.as_deref());
            if !plan.names.options.is_empty() {
                lines.add("resolver", format_args!("options {}", plan.names.options.join(" ")));
            }
            add_ports(&mut lines, &plan.ports);
        }
        Mode::None => lines.add("network", format_args!("{}: lo and nothing else", mode_word(plan.mode))),
        Mode::Container => match &plan.container {
            Some(Shared::Path(path)) => lines.add("network", format_args!("the namespace at {}", path.display())),
            Some(Shared::Sandbox(name)) => lines.add("network", format_args!("that of {name}")),
            None => {}
        },
        Mode::Host => lines.add("network", format_args!("{}: the host's own, no isolation", mode_word(plan.mode))),
    }
    add_warnings(&mut lines, warnings);
    Ok(lines.0)
}

/// The plan of `attach`.
pub fn attach(plan: &Attach, warnings: &[String], format: Format) -> anyhow::Result<String> {
    if format == Format::Json {
        return json(plan);
    }
    let mut lines = Lines::default();
    lines.add("sandbox", format_args!("{} (id {})", plan.name, plan.id));
    match &plan.target {
        Target::Pid(pid) => lines.add("target", format_args!("the namespaces of process {pid}")),
        Target::Path { netns, userns: Userns::Owner } => lines.add("target", netns.display()),
        Target::Path { netns, userns: Userns::Given(userns) | Userns::GivenOrStay(userns) } => {
            lines.add("target", format_args!("{}, owned by {}", netns.display(), userns.display()));
        }
        Target::Path { netns, userns: Userns::Stay } => {
            lines.add("target", format_args!("{}, in the caller's own user namespace", netns.display()));
        }
        Target::Tap(number) => lines.add("target", format_args!("the TAP of descriptor {number}")),
    }
    if plan.mode == Mode::Bridge {
        let Attach { joins, default_net, interface, access, names, .. } = plan;
        add_shared(&mut lines, joins, default_net.as_deref(), interface.link, *access, names);
    } else {
        add_network(&mut lines, &plan.network, plan.names.search.as_deref(), &plan.interface);
        add_capture(&mut lines, plan.pcap.as_deref());
    }
    add_ports(&mut lines, &plan.ports);
    add_publish_on(&mut lines, plan.publish_on.as_deref());
    if !plan.interface.configure {
        lines.add("configure", "no: the interface is made, and left without addresses");
    }
    add_warnings(&mut lines, warnings);
    Ok(lines.0)
}

/// Shared networks: what is asked for there. What is not is decided when the sandbox starts.
fn add_shared(
    lines: &mut Lines,
    joins: &[Join],
    default_net: Option<&str>,
    link: LinkChoice,
    access: Access,
    names: &Names,
) {
    for join in joins {
        let mut wanted: Vec<String> = Vec::new();
        wanted.extend(join.v4.map(|ip| ip.to_string()));
        wanted.extend(join.v6.map(|ip| ip.to_string()));
        if wanted.is_empty() {
            wanted.push("the lowest free addresses".to_owned());
        }
        wanted.extend(join.mac.map(|mac| mac.to_string()));
        wanted.extend(join.ifname.as_ref().map(|name| format!("interface {name}")));
        if !join.aliases.is_empty() {
            wanted.push(format!("also called {}", join.aliases.join(", ")));
        }
        lines.add("network", format_args!("{}, shared: {}", join.network, wanted.join(", ")));
    }
    match default_net {
        Some(network) => lines.add("route", format_args!("through {network}")),
        None if joins.len() > 1 => lines.add("route", "through the first of them that is not internal"),
        None => {}
    }
    lines.add(
        "links",
        match link {
            LinkChoice::Auto => "TAPs, or packet sockets where there is no /dev/net/tun",
            LinkChoice::Tap => "TAPs",
            LinkChoice::Packet => "packet sockets",
            LinkChoice::None => "none",
        },
    );
    add_access(lines, access.host_loopback, access.metadata);
    let Names { dns, servers, search, hosts, .. } = names;
    add_resolver(lines, *dns, servers, search.as_deref());
    for (name, target) in hosts {
        match target {
            HostTarget::Address(address) => lines.add("name", format_args!("{name} is {address}")),
            HostTarget::Gateway => lines.add("name", format_args!("{name} is the gateway")),
        }
    }
}

fn add_publish_on(lines: &mut Lines, network: Option<&str>) {
    if let Some(network) = network {
        lines.add("published", format_args!("towards its address on {network}"));
    }
}

fn add_access(lines: &mut Lines, host_loopback: bool, metadata: bool) {
    lines.add(
        "host",
        match host_loopback {
            true => "the gateway's address leads to the host's loopback",
            false => "the gateway's address leads to the host's own address; its loopback is closed",
        },
    );
    lines.add("metadata", if metadata { "the clouds' metadata addresses are open" } else { "refused" });
}

fn add_resolver(lines: &mut Lines, dns: bool, servers: &[IpAddr], search: Option<&[String]>) {
    lines.add(
        "resolvers",
        match (dns, servers) {
            (false, _) => "none".to_owned(),
            (true, []) => "the network's DNS address, which asks the host's".to_owned(),
            (true, some) => some.iter().map(|ip| ip.to_string()).collect::<Vec<_>>().join(", "),
        },
    );
    match search {
        _ if !dns => {}
        None => lines.add("search", "the host's domains"),
        Some([]) => lines.add("search", "none"),
        Some(domains) => lines.add("search", domains.join(" ")),
    }
}

fn add_capture(lines: &mut Lines, pcap: Option<&Path>) {
    if let Some(path) = pcap {
        lines.add("capture", format_args!("every frame to {}", path.display()));
    }
}

fn add_network(lines: &mut Lines, network: &Network, search: Option<&[String]>, interface: &Interface) {
    lines.add("network", format_args!("private, MTU {}", network.mtu));
    if let Some(v4) = network.v4 {
        lines
            .add("IPv4", format_args!("{}: gateway {}, DNS {}, sandbox {}", v4.subnet, v4.gateway, v4.dns, v4.sandbox));
    }
    if let Some(v6) = network.v6 {
        lines
            .add("IPv6", format_args!("{}: gateway {}, DNS {}, sandbox {}", v6.subnet, v6.gateway, v6.dns, v6.sandbox));
    }
    let link = match interface.link {
        LinkChoice::Auto => "a TAP, or a packet socket where there is no /dev/net/tun",
        LinkChoice::Tap => "a TAP",
        LinkChoice::Packet => "a packet socket",
        LinkChoice::None => "no interface but lo",
    };
    lines.add("interface", format_args!("{}, {}, {link}", interface.name, interface.mac));
    add_access(lines, network.host_loopback_allowed, network.metadata_allowed);
    add_resolver(lines, network.dns_enabled, &network.dns_servers, search);
    for (name, address) in &network.local_names {
        lines.add("name", format_args!("{name} is {address}"));
    }
    let outbound = &network.outbound;
    let sources = outbound.v4.map(|ip| ip.to_string()).into_iter().chain(outbound.v6.map(|ip| ip.to_string()));
    let sources: Vec<String> = sources.chain(outbound.interface.clone()).collect();
    if !sources.is_empty() {
        lines.add("outbound", format_args!("from {}", sources.join(", ")));
    }
    lines.add("UDP", format_args!("idle flows end after {} s", network.udp_timeout.as_secs()));
}

fn add_ports(lines: &mut Lines, ports: &Ports) {
    for spec in ports.specs() {
        lines.add("publish", published(&spec));
    }
    match ports.auto {
        None => {}
        Some(Auto::Loopback) => lines.add("publish", "whatever the sandbox listens at, on the host's loopback"),
        Some(Auto::All) => lines.add("publish", "whatever the sandbox listens at, on all addresses of the host"),
        Some(Auto::AllV4) => lines.add("publish", "whatever the sandbox listens at, on all IPv4 addresses of the host"),
        Some(Auto::AllV6) => lines.add("publish", "whatever the sandbox listens at, on all IPv6 addresses of the host"),
    }
    if !ports.from.is_empty() {
        let from: Vec<String> = ports.from.iter().map(|net| net.to_string()).collect();
        lines.add("clients", format_args!("{} and the host's loopback", from.join(", ")));
    }
    for reach in &ports.reach {
        lines.add(
            "reach",
            format_args!(
                "{} port {} of the host's loopback, at {} of the sandbox's",
                reach.protocol, reach.host_port, reach.sandbox_port
            ),
        );
    }
    if ports.reach_auto.is_some() {
        lines.add("reach", "whatever the host's loopback listens at, on the sandbox's");
    }
}

/// Where a spec listens and where it leads.
fn published(spec: &PublishSpec) -> String {
    let host = match spec.host {
        None if spec.sandbox.count() == 1 => "a free port".to_owned(),
        None => "free ports".to_owned(),
        Some(host) if host.count() != spec.sandbox.count() => format!("a free port of {host}"),
        Some(host) if host.count() == 1 => format!("port {host}"),
        Some(host) => format!("ports {host}"),
    };
    let address = match spec.address {
        None => "all addresses of the host".to_owned(),
        Some(ip) if ip.is_unspecified() && ip.is_ipv4() => "all IPv4 addresses of the host".to_owned(),
        Some(ip) if ip.is_unspecified() => "all IPv6 addresses of the host".to_owned(),
        Some(ip) => ip.to_string(),
    };
    let proxy = spec.proxy.map(|version| format!(", with a PROXY header ({version})")).unwrap_or_default();
    let lead = if spec.sandbox.count() == 1 { "leads" } else { "lead" };
    format!("{host} of {address} {lead} to {}/{}{proxy}", spec.sandbox, spec.protocol)
}

fn add_warnings(lines: &mut Lines, warnings: &[String]) {
    for warning in warnings {
        lines.add("warning", warning);
    }
}

/// A word as a shell would want it.
fn quoted(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:=@%+,".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    let visible: String = word.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    format!("'{}'", visible.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_is_told_in_words() {
        let of = |text| published(&PublishSpec::parse(text).unwrap());
        assert_eq!(of("80"), "a free port of all addresses of the host leads to 80/tcp");
        assert_eq!(
            of("[::1]:8000-8009:80,proxy=v1"),
            "a free port of 8000-8009 of ::1 leads to 80/tcp, with a PROXY header (v1)"
        );
        assert_eq!(
            of("0.0.0.0:8000-8001:80-81/udp"),
            "ports 8000-8001 of all IPv4 addresses of the host lead to 80-81/udp"
        );
    }

    #[test]
    fn words_are_quoted_where_a_shell_needs_it() {
        assert_eq!(quoted("curl"), "curl");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("echo hi"), "'echo hi'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert!(!quoted("\x1b[2J").contains('\x1b'));
    }
}
