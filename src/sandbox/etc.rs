//! The sandbox's own resolv.conf, hosts and hostname, as texts.
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

use crate::plan::{HostTarget, Mode, Names, Network, Run};

/// Names that lead to the gateway.
pub const GATEWAY_NAMES: [&str; 3] = ["host.tapline.internal", "host.docker.internal", "host.containers.internal"];

/// The files of /etc that are the sandbox's own, by name. In mode `host`, resolv.conf stays the host's, and the host's
/// hosts file (`host_hosts`) is kept and added to.
pub fn files(plan: &Run, host_search: &[String], host_hosts: &str) -> Vec<(&'static str, String)> {
    let network = (plan.mode == Mode::Private).then_some(&plan.network);
    let mut files = vec![("hostname", format!("{}\n", plan.names.hostname))];
    match plan.mode {
        Mode::Private | Mode::Bridge | Mode::None | Mode::Container => {
            files.push(("resolv.conf", resolv_conf(&plan.names, network, host_search)));
            files.push(("hosts", hosts(&plan.names, network)));
        }
        Mode::Host => {
            let mut text = host_hosts.to_owned();
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            own_lines(&mut text, &plan.names, None);
            added_lines(&mut text, &plan.names, &[Ipv4Addr::LOCALHOST.into()]);
            files.push(("hosts", text));
        }
    }
    files
}

/// resolv.conf(5). Empty without DNS, and without a network unless servers were given.
pub fn resolv_conf(names: &Names, network: Option<&Network>, host_search: &[String]) -> String {
    let mut text = String::new();
    let gateway_dns = network.map(|n| {
        let v4 = n.v4.iter().map(|l| IpAddr::V4(l.dns));
        v4.chain(n.v6.iter().map(|l| IpAddr::V6(l.dns))).collect::<Vec<_>>()
    });
    let servers = if names.servers.is_empty() { gateway_dns.unwrap_or_default() } else { names.servers.clone() };
    if !names.dns || servers.is_empty() {
        return text;
    }
    // Writing to a String cannot fail, here and below.
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    let search = names.search.as_deref().unwrap_or(host_search);
    if !search.is_empty() {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    if !names.options.is_empty() {
        let _ = writeln!(text, "options {}", names.options.join(" "));
    }
    text
}

/// hosts(5): loopback, the sandbox itself, the gateway's names, and what `--add-host` says.
pub fn hosts(names: &Names, network: Option<&Network>) -> String {
    let mut text = String::from(
        "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n\
         fe00::0 ip6-localnet\nff00::0 ip6-mcastprefix\nff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n",
    );
    own_lines(&mut text, names, network);
    let gateways: Vec<IpAddr> = network
        .map(|n| {
            let v4 = n.v4.iter().map(|l| IpAddr::V4(l.gateway));
            v4.chain(n.v6.iter().map(|l| IpAddr::V6(l.gateway))).collect()
        })
        .unwrap_or_default();
    for gateway in &gateways {
        let _ = writeln!(text, "{gateway} {}", GATEWAY_NAMES.join(" "));
    }
    added_lines(&mut text, names, &gateways);
    text
}

/// The sandbox's own name with its own addresses; without any, with 127.0.1.1 as Debian does.
fn own_lines(text: &mut String, names: &Names, network: Option<&Network>) {
    let v4 = network.and_then(|n| n.v4).map(|l| IpAddr::V4(l.sandbox));
    let v6 = network.and_then(|n| n.v6).map(|l| IpAddr::V6(l.sandbox));
    let own: Vec<IpAddr> = v4.into_iter().chain(v6).collect();
    let own = if own.is_empty() { vec![Ipv4Addr::new(127, 0, 1, 1).into()] } else { own };
    // A name with a domain is given its first part as an alias, as `hostname -s` would have it.
    let short = names.hostname.split_once('.').map(|(first, _)| format!(" {first}")).unwrap_or_default();
    for address in own {
        let _ = writeln!(text, "{address} {}{short}", names.hostname);
    }
}

fn added_lines(text: &mut String, names: &Names, gateways: &[IpAddr]) {
    for (name, target) in &names.hosts {
        match target {
            HostTarget::Address(address) => {
                let _ = writeln!(text, "{address} {name}");
            }
            HostTarget::Gateway => {
                for gateway in gateways {
                    let _ = writeln!(text, "{gateway} {name}");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Ipv4Layout, Ipv6Layout, MacAddr, Outbound};

    fn network() -> Network {
        let v4 = Ipv4Layout::slirp("10.0.2.0/24".parse().unwrap()).unwrap();
        Network {
            name: "private".into(),
            sharing: None,
            v4: Some(v4),
            v6: Ipv6Layout::slirp("fd00::/64".parse().unwrap()),
            mtu: 65520,
            gateway_mac: MacAddr::from_ipv4(v4.gateway),
            host_loopback_allowed: false,
            metadata_allowed: false,
            broadcast_to_host: false,
            dns_enabled: true,
            dns_search: Vec::new(),
            dns_servers: Vec::new(),
            local_names: Vec::new(),
            outbound: Outbound::default(),
            udp_timeout: std::time::Duration::from_secs(180),
        }
    }

    fn names() -> Names {
        Names {
            hostname: "box.example".into(),
            dns: true,
            servers: Vec::new(),
            search: None,
            options: Vec::new(),
            hosts: Vec::new(),
        }
    }

    #[test]
    fn resolv_conf_names_the_gateway_and_the_hosts_search() {
        let mut names = names();
        let text = resolv_conf(&names, Some(&network()), &["corp.example".into()]);
        assert_eq!(text, "nameserver 10.0.2.3\nnameserver fd00::3\nsearch corp.example\n");
        names.search = Some(Vec::new());
        names.options = vec!["ndots:2".into(), "rotate".into()];
        names.servers = vec!["192.0.2.1".parse().unwrap()];
        let text = resolv_conf(&names, Some(&network()), &["corp.example".into()]);
        assert_eq!(text, "nameserver 192.0.2.1\noptions ndots:2 rotate\n");
    }

    #[test]
    fn resolv_conf_is_empty_without_dns_or_network() {
        let mut names = names();
        assert_eq!(resolv_conf(&names, None, &["corp.example".into()]), "");
        names.dns = false;
        assert_eq!(resolv_conf(&names, Some(&network()), &[]), "");
    }

    #[test]
    fn hosts_has_the_sandbox_the_gateway_and_what_was_added() {
        let mut names = names();
        names.hosts =
            vec![("db".into(), HostTarget::Address("192.0.2.9".parse().unwrap())), ("up".into(), HostTarget::Gateway)];
        let text = hosts(&names, Some(&network()));
        for line in [
            "127.0.0.1 localhost",
            "10.0.2.100 box.example box",
            "fd00::100 box.example box",
            "10.0.2.2 host.tapline.internal host.docker.internal host.containers.internal",
            "192.0.2.9 db",
            "10.0.2.2 up",
            "fd00::2 up",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        let alone = hosts(&names, None);
        assert!(alone.contains("127.0.1.1 box.example box\n") && !alone.contains("internal") && !alone.contains(" up"));
    }
}
