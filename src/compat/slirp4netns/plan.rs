//! Options turned into the plan of [`attach`](crate::sandbox::attach), and what is said when it works.
use std::fmt::Write as _;
use std::net::Ipv6Addr;
use std::time::Duration;

use super::options::{Netns, Options};
use crate::plan::{
    self, Access, Attach, Behaviour, Interface, InterfaceExtras, Ipv4Layout, Ipv6Layout, LINK_NUMBER, LinkChoice,
    LocalClients, Logging, MacAddr, Mode, Names, Network, Outbound, PRIVATE, Ports, Target, Userns, subnet,
};

/// How long idle UDP and ping flows live (libslirp's SO_EXPIRE).
const UDP_TIMEOUT: Duration = Duration::from_secs(240);

/// The least MTU that a network can have (RFC 791); an interface is given what was asked for, which the kernel may refuse.
const LEAST_MTU: u16 = 68;

/// Where the DHCP range begins and ends in the subnet.
const DHCP_FIRST: u32 = 15;
const DHCP_LAST: u32 = 30;

/// The plan for a namespace; `id` is the sandbox's.
pub(super) fn plan(options: &Options, id: String) -> Option<Attach> {
    let v4 = layout(options)?;
    let mac = options.mac.unwrap_or(MacAddr::from_ipv4(v4.sandbox));
    let v6 = Ipv6Layout::slirp(subnet::DEFAULT_SUBNET6).filter(|_| options.ipv6);
    let v6 = v6.map(|v6| Ipv6Layout { sandbox: advertised(v6, mac), ..v6 });
    let mtu = options.mtu.max(LEAST_MTU);
    let network = Network {
        name: PRIVATE.to_owned(),
        sharing: None,
        v4: Some(v4),
        v6,
        mtu,
        gateway_mac: MacAddr::from_ipv4(v4.gateway),
        host_loopback_allowed: !options.disable_host_loopback,
        metadata_allowed: true,
        broadcast_to_host: true,
        dns_enabled: !options.disable_dns,
        dns_search: Vec::new(),
        dns_servers: Vec::new(),
        local_names: Vec::new(),
        outbound: Outbound { v4: options.outbound, v6: options.outbound6, ..Outbound::default() },
        udp_timeout: UDP_TIMEOUT,
        behaviour: Behaviour {
            host_denied: options.disable_host_loopback,
            local_clients: LocalClients::Link,
            ..Behaviour::default()
        },
    };
    let interface = Interface {
        name: options.tap.clone(),
        mac,
        link: LinkChoice::Auto,
        configure: options.configure,
        extras: InterfaceExtras {
            mtu: (mtu != options.mtu).then_some(options.mtu.into()),
            v6_by_advertisement: true,
            may_exist: true,
            ..InterfaceExtras::default()
        },
    };
    let name = plan::words::default_name("slirp4netns", &id);
    Some(Attach {
        names: Names {
            hostname: name.clone(),
            dns: !options.disable_dns,
            servers: Vec::new(),
            search: Some(Vec::new()),
            options: Vec::new(),
            hosts: Vec::new(),
        },
        id,
        name,
        target: target(options),
        mode: Mode::Private,
        network,
        interface,
        joins: Vec::new(),
        default_net: None,
        publish_on: None,
        access: Access::default(),
        ports: Ports::default(),
        logging: Logging { verbosity: 0, json: false },
        ready_fd: options.ready_fd,
        ready_text: "1".to_owned(),
        link_text: format!("sent tapfd={LINK_NUMBER} for {}\nreceived tapfd={LINK_NUMBER}\n", options.tap),
        greeting: greeting(options, v4),
        hostfwd_socket: options.api_socket.clone(),
        outlives_target: true,
        confined: options.sandbox,
        require_confinement: false,
        exit_fd: options.exit_fd,
        pid_file: None,
        detach: false,
        pcap: None,
    })
}

fn layout(options: &Options) -> Option<Ipv4Layout> {
    let base = u32::from(options.cidr.network());
    let range = ((base + DHCP_FIRST).into(), (base + DHCP_LAST).into());
    Some(Ipv4Layout { dhcp_range: range, ..Ipv4Layout::slirp(options.cidr)? })
}

/// The address that the sandbox makes itself of an advertised prefix (RFC 4862, 5.5.3; RFC 4291, appendix A), where it
/// does so the plain way.
fn advertised(v6: Ipv6Layout, mac: MacAddr) -> Ipv6Addr {
    let interface = u128::from(mac.link_local()) & u128::from(u64::MAX);
    Ipv6Addr::from(u128::from(v6.subnet.network()) | interface)
}

fn target(options: &Options) -> Target {
    let given = |userns: &std::path::PathBuf| Userns::GivenOrStay(userns.clone());
    match (&options.netns, &options.userns) {
        (Netns::Pid(pid), None) => Target::Pid(*pid),
        (Netns::Pid(pid), Some(userns)) => {
            Target::Path { netns: format!("/proc/{pid}/ns/net").into(), userns: given(userns) }
        }
        (Netns::Path(path), userns) => {
            Target::Path { netns: path.clone(), userns: userns.as_ref().map(given).unwrap_or_default() }
        }
        (Netns::Tap(fd), _) => Target::Tap(*fd),
    }
}

/// What is said on standard output when it works. Scripts look for single lines of it.
fn greeting(options: &Options, v4: Ipv4Layout) -> String {
    let mut text = String::from("Starting slirp\n");
    let mut line = |what: &str, value: &dyn std::fmt::Display| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "* {:<16} {value}", format!("{what}:"));
    };
    line("MTU", &options.mtu);
    line("Network", &v4.subnet.network());
    line("Netmask", &v4.subnet.netmask());
    line("Gateway", &v4.gateway);
    line("DNS", &v4.dns);
    line("DHCP begin", &v4.dhcp_range.0);
    line("DHCP end", &v4.dhcp_range.1);
    line("Recommended IP", &v4.sandbox);
    if let Some(path) = &options.api_socket {
        line("API Socket", &path.display());
    }
    // With one space more than the others.
    if let Some(ip) = &options.outbound {
        line("Outbound IPv4", &format_args!(" {ip}"));
    }
    if let Some(ip) = &options.outbound6 {
        line("Outbound IPv6", &format_args!(" {ip}"));
    }
    if let Some(mac) = &options.mac {
        line("MAC address", mac);
    }
    if !options.disable_host_loopback {
        let _ = writeln!(
            text,
            "WARNING: 127.0.0.1:* on the host is accessible as {} (set --disable-host-loopback to prohibit connecting \
             to 127.0.0.1:*)",
            v4.gateway
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options {
            configure: true,
            exit_fd: Some(3),
            ready_fd: Some(4),
            mtu: 1500,
            ipv6: false,
            api_socket: None,
            cidr: "10.0.2.0/24".parse().unwrap(),
            disable_host_loopback: false,
            disable_dns: false,
            userns: None,
            sandbox: false,
            seccomp: false,
            outbound: None,
            outbound6: None,
            mac: None,
            netns: Netns::Pid(42),
            tap: "tap0".into(),
        }
    }

    fn plan_of(options: Options) -> Attach {
        plan(&options, "0123456789ab".into()).unwrap()
    }

    #[test]
    fn addresses_lie_where_the_original_has_them() {
        let plan = plan_of(Options { cidr: "10.7.128.0/17".parse().unwrap(), ..options() });
        let v4 = plan.network.v4.unwrap();
        let all = [v4.gateway, v4.dns, v4.sandbox, v4.dhcp_range.0, v4.dhcp_range.1];
        assert_eq!(
            all.map(|ip| ip.to_string()),
            ["10.7.128.2", "10.7.128.3", "10.7.128.100", "10.7.128.15", "10.7.128.30"]
        );
        assert_eq!(plan.network.v6, None);
        assert_eq!(plan.network.udp_timeout.as_secs(), 240);
        assert!(plan.network.broadcast_to_host && plan.network.metadata_allowed);
    }

    #[test]
    fn with_ipv6_the_sandbox_is_where_its_own_kernel_puts_it() {
        let mac = "02:11:22:33:44:55".parse().unwrap();
        let plan = plan_of(Options { ipv6: true, mac: Some(mac), mtu: 600, ..options() });
        let v6 = plan.network.v6.unwrap();
        assert_eq!(v6.sandbox.to_string(), "fd00::11:22ff:fe33:4455");
        assert_eq!((v6.gateway.to_string(), v6.dns.to_string()), ("fd00::2".into(), "fd00::3".into()));
        assert!(plan.interface.extras.v6_by_advertisement);
        assert_eq!((plan.network.mtu, plan.interface.extras.mtu), (600, None));
    }

    #[test]
    fn the_interface_has_the_mtu_that_was_asked_for_where_the_network_cannot() {
        for (asked, network, interface) in [(1500, 1500, None), (65521, 65521, None), (1, 68, Some(1))] {
            let plan = plan_of(Options { mtu: asked, ..options() });
            assert_eq!((plan.network.mtu, plan.interface.extras.mtu), (network, interface), "{asked}");
        }
    }

    #[test]
    fn a_host_that_is_disabled_is_denied_and_a_resolver_that_is_is_none() {
        let open = plan_of(options()).network;
        assert!(open.host_loopback_allowed && !open.behaviour.host_denied && open.dns_enabled);
        let shut = plan_of(Options { disable_host_loopback: true, disable_dns: true, ..options() }).network;
        assert!(!shut.host_loopback_allowed && shut.behaviour.host_denied && !shut.dns_enabled);
    }

    #[test]
    fn a_user_namespace_that_does_not_admit_is_passed_over() {
        let given: std::path::PathBuf = "/proc/7/ns/user".into();
        let target = |netns, userns| plan_of(Options { netns, userns, ..options() }).target;
        assert_eq!(target(Netns::Pid(42), None), Target::Pid(42));
        assert_eq!(
            target(Netns::Pid(42), Some(given.clone())),
            Target::Path { netns: "/proc/42/ns/net".into(), userns: Userns::GivenOrStay(given.clone()) }
        );
        let by_path = Netns::Path("/run/netns/a".into());
        assert_eq!(target(by_path.clone(), None), Target::Path { netns: "/run/netns/a".into(), userns: Userns::Owner });
        assert_eq!(
            target(by_path, Some(given.clone())),
            Target::Path { netns: "/run/netns/a".into(), userns: Userns::GivenOrStay(given) }
        );
        assert_eq!(target(Netns::Tap(5), None), Target::Tap(5));
    }

    #[test]
    fn the_greeting_is_the_originals() {
        let all = Options {
            api_socket: Some("/tmp/s".into()),
            outbound: Some([127, 0, 0, 1].into()),
            outbound6: Some(Ipv6Addr::LOCALHOST),
            mac: Some("02:11:22:33:44:aa".parse().unwrap()),
            ..options()
        };
        assert_eq!(
            plan_of(all.clone()).greeting,
            "Starting slirp\n\
             * MTU:             1500\n\
             * Network:         10.0.2.0\n\
             * Netmask:         255.255.255.0\n\
             * Gateway:         10.0.2.2\n\
             * DNS:             10.0.2.3\n\
             * DHCP begin:      10.0.2.15\n\
             * DHCP end:        10.0.2.30\n\
             * Recommended IP:  10.0.2.100\n\
             * API Socket:      /tmp/s\n\
             * Outbound IPv4:    127.0.0.1\n\
             * Outbound IPv6:    ::1\n\
             * MAC address:     02:11:22:33:44:aa\n\
             WARNING: 127.0.0.1:* on the host is accessible as 10.0.2.2 (set --disable-host-loopback to prohibit \
             connecting to 127.0.0.1:*)\n"
        );
        assert!(!plan_of(Options { disable_host_loopback: true, ..all }).greeting.contains("WARNING"));
    }
}
