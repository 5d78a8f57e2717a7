//! The sandbox's own resolv.conf, hosts and hostname, as texts, and as files that change while it runs.
//!
//! # Theory of operation
//!
//! Each text is a function of what the person asked for ([`Names`]), of the sandbox's places on networks ([`Seat`]) and
//! of the sandboxes that it has links to ([`Linked`]). Init writes them when it makes CMD's view of the file system, and
//! hands hosts and resolv.conf, open, to the supervisor: they lie in a mount namespace that the supervisor is not in.
//! When a network is connected or disconnected, or a linked sandbox comes back with another address, the supervisor
//! makes the texts anew and writes them through those descriptors, into the same files ([`OwnFiles`]).
//!
//! What CMD has appended to one of the files is kept. One that CMD has written anew is CMD's, and is left alone; so is
//! one that it has replaced, because the descriptor leads to the one that was there before.
use std::fmt::Write;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use crate::plan::{HostTarget, Mode, Names, Network, Run, SandboxLink, Seat};

pub use crate::plan::GATEWAY_NAMES;

/// A sandbox that this one has a link to, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linked {
    /// Its name, and what it is called besides.
    pub link: SandboxLink,
    /// Its addresses on the networks that the two share; none when it has ended.
    pub addresses: Vec<IpAddr>,
}

/// The files of /etc that are the sandbox's own, by name. In mode `host`, resolv.conf stays the host's, and the host's
/// hosts file (`host_hosts`) is kept and added to. In mode `container` they are another sandbox's, and not made here.
pub fn files(
    plan: &Run,
    seats: &[Seat],
    linked: &[Linked],
    host_search: &[String],
    host_hosts: &str,
) -> Vec<(&'static str, String)> {
    let mut files = vec![("hostname", format!("{}\n", plan.names.hostname))];
    match plan.mode {
        Mode::Private | Mode::Bridge | Mode::None => {
            files.push((RESOLV_CONF, resolv_conf(&plan.names, seats, host_search)));
            files.push((HOSTS, hosts(&plan.names, seats, linked)));
        }
        Mode::Host => {
            let mut text = host_hosts.to_owned();
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            own_lines(&mut text, &plan.names, &[]);
            added_lines(&mut text, &plan.names, &[Ipv4Addr::LOCALHOST.into()]);
            files.push((HOSTS, text));
        }
        Mode::Container => files.clear(),
    }
    files
}

/// Names of files in /etc.
pub const HOSTS: &str = "hosts";
/// Likewise.
pub const RESOLV_CONF: &str = "resolv.conf";

/// What the C library looks at (MAXNS in resolv.h).
const MOST_NAMESERVERS: usize = 3;

/// The seats, the one with the default route first.
fn default_first(seats: &[Seat]) -> impl Iterator<Item = &Seat> {
    seats.iter().filter(|seat| seat.default_route).chain(seats.iter().filter(|seat| !seat.default_route))
}

/// The seats in the order in which their resolvers are to be asked. The resolver of a private network knows nobody; those
/// of shared networks know each other's names, and the world's where one of them leads there.
fn resolvers_first(seats: &[Seat]) -> impl Iterator<Item = &Seat> {
    let has_private = seats.iter().any(|seat| seat.network.sharing.is_none());
    let knows_more = move |seat: &&Seat| has_private && seat.network.sharing.is_some_and(|sharing| !sharing.internal);
    default_first(seats).filter(knows_more).chain(default_first(seats).filter(move |seat| !knows_more(seat)))
}

/// resolv.conf(5). Empty without DNS, and without a network unless servers were given. On a private network servers
/// that were given take the place of its DNS address; on shared ones its DNS address asks them.
pub fn resolv_conf(names: &Names, seats: &[Seat], host_search: &[String]) -> String {
    let mut text = String::new();
    let mut servers: Vec<IpAddr> = Vec::new();
    for Seat { network, .. } in resolvers_first(seats) {
        if network.sharing.is_none() && !names.servers.is_empty() {
            servers.extend(&names.servers);
        } else if network.dns_enabled {
            servers.extend(network.v4.iter().map(|layout| IpAddr::V4(layout.dns)));
            servers.extend(network.v6.iter().map(|layout| IpAddr::V6(layout.dns)));
        }
    }
    if seats.is_empty() {
        servers.clone_from(&names.servers);
    } else if seats.len() > 1 {
        servers.truncate(MOST_NAMESERVERS);
    }
    if !names.dns || servers.is_empty() {
        return text;
    }
    // Writing to a String cannot fail, here and below.
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    let search = search_domains(names, seats, host_search);
    if !search.is_empty() {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    if !names.options.is_empty() {
        let _ = writeln!(text, "options {}", names.options.join(" "));
    }
    text
}

/// Those asked for, else the networks' own, else the host's.
fn search_domains<'a>(names: &'a Names, seats: &'a [Seat], host: &'a [String]) -> Vec<&'a str> {
    if let Some(asked) = &names.search {
        return asked.iter().map(String::as_str).collect();
    }
    let mut domains: Vec<&str> = Vec::new();
    for domain in default_first(seats).flat_map(|seat| &seat.network.dns_search) {
        if !domains.contains(&domain.as_str()) {
            domains.push(domain);
        }
    }
    if domains.is_empty() { host.iter().map(String::as_str).collect() } else { domains }
}

/// hosts(5): loopback, the sandbox itself, the gateway's names, links, and what `--add-host` says.
pub fn hosts(names: &Names, seats: &[Seat], linked: &[Linked]) -> String {
    let mut text = String::from(
        "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n\
         fe00::0 ip6-localnet\nff00::0 ip6-mcastprefix\nff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n",
    );
    own_lines(&mut text, names, seats);
    let gateways = gateways(seats);
    for gateway in &gateways {
        let _ = writeln!(text, "{gateway} {}", GATEWAY_NAMES.join(" "));
    }
    for Linked { link, addresses } in linked {
        let alias = link.alias.as_ref().map(|alias| format!("{alias} ")).unwrap_or_default();
        for address in addresses {
            let _ = writeln!(text, "{address} {alias}{}", link.sandbox);
        }
    }
    added_lines(&mut text, names, &gateways);
    text
}

/// The addresses that lead to the host: those of the gateway that the default route leads to.
fn gateways(seats: &[Seat]) -> Vec<IpAddr> {
    let leads_out = |network: &Network| !network.sharing.is_some_and(|sharing| sharing.internal);
    let Some(Seat { network, .. }) = default_first(seats).find(|seat| leads_out(&seat.network)) else {
        return Vec::new();
    };
    let v4 = network.v4.iter().map(|layout| IpAddr::V4(layout.gateway));
    v4.chain(network.v6.iter().map(|layout| IpAddr::V6(layout.gateway))).collect()
}

/// The sandbox's own name with its own addresses; without any, with 127.0.1.1 as Debian does.
fn own_lines(text: &mut String, names: &Names, seats: &[Seat]) {
    let mut own: Vec<IpAddr> = default_first(seats)
        .flat_map(|Seat { endpoint, .. }| endpoint.v4.map(IpAddr::V4).into_iter().chain(endpoint.v6.map(IpAddr::V6)))
        .collect();
    if own.is_empty() {
        own.push(Ipv4Addr::new(127, 0, 1, 1).into());
    }
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

/// A file of the sandbox's, open, and what was written there last.
#[derive(Debug)]
struct OwnFile {
    file: File,
    written: String,
}

/// The sandbox's hosts and resolv.conf while it runs.
#[derive(Debug)]
pub struct OwnFiles {
    hosts: OwnFile,
    resolv_conf: OwnFile,
}

impl OwnFiles {
    /// From the descriptors that came with init's `Ready`, hosts first, and the texts that init wrote. `None` where
    /// there are none (in the modes `host` and `container`), or they are something else than ordinary files with these
    /// texts: what is written to them later shall change nothing else.
    pub fn new(fds: Vec<OwnedFd>, files: &[(&'static str, String)]) -> Option<OwnFiles> {
        let text = |name| files.iter().find(|(other, _)| *other == name).map(|(_, text)| text.clone());
        let [hosts, resolv_conf] = <[OwnedFd; 2]>::try_from(fds).ok()?;
        let own = |fd: OwnedFd, name| {
            let file = OwnFile { file: fd.into(), written: text(name)? };
            match file.is_as_written() {
                Ok(true) => return Some(file),
                Ok(false) => tracing::warn!("what came as the sandbox's {name} is another file: it stays as it is"),
                Err(error) => tracing::warn!("the sandbox's {name} cannot be read, and stays as it is: {error}"),
            }
            None
        };
        Some(OwnFiles { hosts: own(hosts, HOSTS)?, resolv_conf: own(resolv_conf, RESOLV_CONF)? })
    }

    /// What [`hosts`] says now.
    pub fn update_hosts(&mut self, text: String) -> io::Result<()> {
        self.hosts.update(text)
    }

    /// What [`resolv_conf`] says now.
    pub fn update_resolv_conf(&mut self, text: String) -> io::Result<()> {
        self.resolv_conf.update(text)
    }
}

impl OwnFile {
    /// Is it an ordinary file with that text and nothing else?
    fn is_as_written(&self) -> io::Result<bool> {
        let meta = self.file.metadata()?;
        if !meta.is_file() || meta.len() != self.written.len() as u64 {
            return Ok(false);
        }
        let mut there = vec![0; self.written.len()];
        self.file.read_exact_at(&mut there, 0)?;
        Ok(there == self.written.as_bytes())
    }

    /// Put this text in the place of the one before; nothing happens when that is no longer there.
    fn update(&mut self, text: String) -> io::Result<()> {
        if self.written == text {
            return Ok(());
        }
        let mut there = vec![0; self.file.metadata()?.len().min(LONGEST).try_into().unwrap_or(0)];
        self.file.read_exact_at(&mut there, 0)?;
        if let Some(appended) = there.strip_prefix(self.written.as_bytes()) {
            rewrite(&self.file, &[text.as_bytes(), appended].concat())?;
            self.written = text;
        }
        Ok(())
    }
}

/// No file of these is longer, in bytes, unless CMD has made it something else.
const LONGEST: u64 = 1 << 20;

/// The whole file, in place.
fn rewrite(file: &File, bytes: &[u8]) -> io::Result<()> {
    file.write_all_at(bytes, 0)?;
    file.set_len(bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Endpoint, Ipv4Layout, Ipv6Layout, MacAddr, Outbound, Sharing};

    fn seat() -> Seat {
        let network = network();
        let endpoint =
            Endpoint { v4: network.v4.map(|l| l.sandbox), v6: network.v6.map(|l| l.sandbox), ..Endpoint::default() };
        Seat { endpoint, network, default_route: true }
    }

    /// A place on a shared network: gateway and DNS at 1, the sandbox at 2.
    fn shared(third: u8, internal: bool, default_route: bool) -> Seat {
        let (v4, gateway) = (Ipv4Addr::new(10, 176, third, 2), Ipv4Addr::new(10, 176, third, 1));
        let layout = Ipv4Layout {
            subnet: format!("10.176.{third}.0/24").parse().unwrap(),
            gateway,
            dns: gateway,
            sandbox: Ipv4Addr::UNSPECIFIED,
            dhcp_range: (Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED),
        };
        let sharing = Some(Sharing { internal, icc: true });
        let network = Network { v4: Some(layout), v6: None, sharing, ..network() };
        Seat { endpoint: Endpoint { v4: Some(v4), ..Endpoint::default() }, network, default_route }
    }

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
            behaviour: Default::default(),
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
        let text = resolv_conf(&names, &[seat()], &["corp.example".into()]);
        assert_eq!(text, "nameserver 10.0.2.3\nnameserver fd00::3\nsearch corp.example\n");
        names.search = Some(Vec::new());
        names.options = vec!["ndots:2".into(), "rotate".into()];
        names.servers = vec!["192.0.2.1".parse().unwrap()];
        let text = resolv_conf(&names, &[seat()], &["corp.example".into()]);
        assert_eq!(text, "nameserver 192.0.2.1\noptions ndots:2 rotate\n");
    }

    #[test]
    fn resolv_conf_is_empty_without_dns_or_network() {
        let mut names = names();
        assert_eq!(resolv_conf(&names, &[], &["corp.example".into()]), "");
        names.dns = false;
        assert_eq!(resolv_conf(&names, &[seat()], &[]), "");
    }

    #[test]
    fn hosts_has_the_sandbox_the_gateway_and_what_was_added() {
        let mut names = names();
        names.hosts =
            vec![("db".into(), HostTarget::Address("192.0.2.9".parse().unwrap())), ("up".into(), HostTarget::Gateway)];
        let text = hosts(&names, &[seat()], &[]);
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
        let alone = hosts(&names, &[], &[]);
        assert!(alone.contains("127.0.1.1 box.example box\n") && !alone.contains("internal") && !alone.contains(" up"));
    }

    #[test]
    fn a_private_network_does_not_hide_the_names_of_those_that_were_joined_later() {
        let mut joined = shared(1, false, false);
        let text = resolv_conf(&names(), &[seat(), joined.clone()], &[]);
        assert_eq!(text, "nameserver 10.176.1.1\nnameserver 10.0.2.3\nnameserver fd00::3\n");
        // One that leads nowhere does not know the world's names.
        joined.network.sharing = Some(Sharing { internal: true, icc: true });
        let text = resolv_conf(&names(), &[seat(), joined], &[]);
        assert!(text.starts_with("nameserver 10.0.2.3\n"), "{text}");
    }

    #[test]
    fn every_network_has_its_resolver_the_default_routes_first() {
        let mut names = names();
        names.servers = vec!["192.0.2.1".parse().unwrap()];
        let seats = [shared(1, true, false), shared(2, false, true)];
        let text = resolv_conf(&names, &seats, &["corp.example".into()]);
        assert_eq!(text, "nameserver 10.176.2.1\nnameserver 10.176.1.1\nsearch corp.example\n");
        let many: Vec<Seat> = (1..=5).map(|n| shared(n, false, n == 5)).collect();
        let text = resolv_conf(&names, &many, &[]);
        assert_eq!(text, "nameserver 10.176.5.1\nnameserver 10.176.1.1\nnameserver 10.176.2.1\n");
        let mut own = shared(1, false, true);
        own.network.dns_search = vec!["front.example".into()];
        assert!(resolv_conf(&names, &[own], &["corp.example".into()]).ends_with("\nsearch front.example\n"));
        // Without a network, those that were given are all there is.
        assert_eq!(resolv_conf(&names, &[], &[]), "nameserver 192.0.2.1\n");
    }

    #[test]
    fn hosts_has_all_own_addresses_and_those_of_links() {
        let linked = [
            Linked {
                link: SandboxLink { sandbox: "pg-1".into(), alias: Some("db".into()) },
                addresses: vec!["10.176.1.9".parse().unwrap(), "fd01::9".parse().unwrap()],
            },
            Linked { link: SandboxLink { sandbox: "gone".into(), alias: None }, addresses: Vec::new() },
        ];
        let text = hosts(&names(), &[shared(1, true, false), shared(2, false, true)], &linked);
        let own: Vec<&str> = text.lines().filter(|line| line.ends_with(" box.example box")).collect();
        assert_eq!(own, ["10.176.2.2 box.example box", "10.176.1.2 box.example box"]);
        assert!(text.contains("10.176.1.9 db pg-1\nfd01::9 db pg-1\n") && !text.contains("gone"), "{text}");
        let gateways: Vec<&str> = text.lines().filter(|line| line.contains("host.tapline.internal")).collect();
        assert_eq!(gateways.len(), 1);
        assert!(gateways[0].starts_with("10.176.2.1 "), "the one that leads out: {gateways:?}");
        assert!(!hosts(&names(), &[shared(1, true, true)], &[]).contains("host.tapline.internal"));
    }

    #[test]
    fn only_the_files_that_were_written_are_kept_for_later() {
        let dir = std::env::temp_dir().join(format!("tapline-etc-own-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let file = |name: &str, text: &str| -> OwnedFd {
            std::fs::write(dir.join(name), text).unwrap();
            File::options().read(true).write(true).open(dir.join(name)).unwrap().into()
        };
        let texts = [(HOSTS, "one\n".to_owned()), (RESOLV_CONF, "two\n".to_owned())];
        let good = || vec![file("hosts", "one\n"), file("resolv.conf", "two\n")];
        assert!(OwnFiles::new(good(), &texts).is_some());
        let null = || OwnedFd::from(File::options().read(true).write(true).open("/dev/null").unwrap());
        for wrong in [
            vec![file("hosts", "one\n")],
            vec![file("hosts", "one\n"), file("shadow", "root:x\n")],
            vec![file("hosts", "one\n"), null()],
            vec![File::open(&dir).unwrap().into(), file("resolv.conf", "two\n")],
            vec![file("hosts", "one\n"), io::pipe().unwrap().0.into()],
        ] {
            assert!(OwnFiles::new(wrong, &texts).is_none());
        }
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_file_is_written_anew_in_place_and_what_the_command_wrote_is_its_own() {
        let path = std::env::temp_dir().join(format!("tapline-etc-{}", std::process::id()));
        let open = || File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        let there = || std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, "1.1.1.1 a\n2.2.2.2 b\n").unwrap();
        let mut own = OwnFile { file: open(), written: "1.1.1.1 a\n2.2.2.2 b\n".into() };
        own.update("3.3.3.3 a\n".into()).unwrap();
        assert_eq!(there(), "3.3.3.3 a\n");
        std::fs::write(&path, "3.3.3.3 a\n9.9.9.9 mine\n").unwrap();
        own.update("4.4.4.4 a\n5.5.5.5 b\n".into()).unwrap();
        assert_eq!(there(), "4.4.4.4 a\n5.5.5.5 b\n9.9.9.9 mine\n");
        std::fs::write(&path, "all mine\n").unwrap();
        own.update("6.6.6.6 a\n".into()).unwrap();
        assert_eq!(there(), "all mine\n");
        std::fs::remove_file(&path).unwrap();
    }
}
