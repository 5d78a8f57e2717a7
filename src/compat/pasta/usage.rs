//! What `--help` and `--version` print, and the usage behind a word that is no option.
//!
//! Callers look for the long names of options in it, and take the first line of `--version` for the version.
use std::fmt::Write as _;

use crate::compat::manual::{Items, Manual};

/// What stands behind `pasta ` in the first line of `--version`: the newest of the original that is followed here, and
/// ours. Callers that compare versions compare the date.
pub const VERSION: &str = concat!("2026_07_01.tapline-", env!("CARGO_PKG_VERSION"));

/// Options by what they are for; each with its argument, and a sentence.
const SECTIONS: &[(&str, Items)] = &[
    (
        "General",
        &[
            ("-h, --help", "Print this and exit"),
            ("--version", "Print the version and exit"),
            ("-f, --foreground", "Stay in the foreground (a PID or --netns: otherwise in the background when ready)"),
            ("-P, --pid FILE", "Write the PID of the process that serves to FILE"),
            ("-q, --quiet", "Say warnings and errors only"),
            ("-d, --debug", "Say more"),
            ("--trace", "Say everything"),
            ("-e, --stderr", "Accepted, without effect"),
            ("-l, --log-file FILE", "Log to FILE"),
            ("--log-size BYTES", "Largest size of the log file; the oldest goes (default: 1 MiB)"),
            ("-p, --pcap FILE", "Write every frame to FILE (pcap)"),
            ("--stats SECONDS", "With -f: counters on standard error, not more often than that"),
            ("--runas UID[:GID]", "Started by root: become this user, or LOGIN[:GROUP] (default: nobody)"),
            ("-c, --conf-path SOCKET", "Accepted; the protocol of pesto is not served"),
            ("--chroot-fallback", "Accepted, without effect"),
        ],
    ),
    (
        "Namespaces",
        &[
            ("--netns PATH|NAME", "Serve this network namespace; a NAME is one of ip-netns(8)"),
            ("--userns PATH", "Enter this user namespace for it"),
            ("--netns-only", "Enter no user namespace that was not asked for (implied by --netns without --userns)"),
            ("--no-netns-quit", "Go on when the namespace's path or process is gone"),
            ("--no-pidns", "No PID namespace of its own for COMMAND"),
        ],
    ),
    (
        "The interface inside",
        &[
            ("--config-net", "Set its addresses, routes and MTU, and bring it up"),
            ("-I, --ns-ifname NAME", "Its name (default: that of the interface that is copied, else tap0)"),
            ("--ns-mac-addr MAC", "Its MAC (default: at random)"),
            ("-m, --mtu BYTES", "Its MTU; 0 leaves it alone (default: 65520)"),
            ("-i, --interface NAME", "Copy from this interface (default: the one with the first default route)"),
            ("-a, --address ADDR[/LENGTH]", "Its address instead of the host's; once for each family"),
            ("-n, --netmask MASK|LENGTH", "The length of the IPv4 address's prefix"),
            ("-g, --gateway ADDR", "Its gateway instead of the host's; once for each family"),
            ("--no-copy-addrs", "One address of the interface that is copied, not all"),
            ("--no-copy-routes", "The default route of the interface that is copied, not all routes"),
            ("-M, --mac-addr MAC", "Our own MAC (default: 9a:55:9a:55:9a:55)"),
            ("-4, --ipv4-only", "No IPv6"),
            ("-6, --ipv6-only", "No IPv4"),
            ("--splice-only", "No interface at all: only ports, between the loopbacks"),
        ],
    ),
    (
        "The host's side",
        &[
            ("-o, --outbound ADDR", "Source address of our sockets; once for each family"),
            ("--outbound-if4 NAME", "Interface that IPv4 sockets are bound to; it is copied, too, without -i"),
            ("--outbound-if6 NAME", "Likewise for IPv6"),
            ("--map-host-loopback ADDR|none", "ADDR inside is the host's loopback (default: the gateway's address)"),
            ("--no-map-gw", "The gateway's address is not the host's loopback"),
            ("--map-guest-addr ADDR|none", "ADDR inside is the host, at the address that the sandbox has, too"),
        ],
    ),
    (
        "Names",
        &[
            ("--dns-forward ADDR", "Answer questions that go to ADDR; once for each family"),
            ("--dns-host ADDR", "Ask this resolver for it (default: those of the host's resolv.conf)"),
            ("-D, --dns ADDR|none", "Announce this resolver instead of the host's; may be repeated"),
            ("-S, --search DOMAINS|none", "Announce these search domains instead of the host's"),
            ("-H, --hostname NAME", "Announce this hostname by DHCP"),
            ("--fqdn NAME", "Announce this name by DHCP and DHCPv6"),
            ("--dhcp-dns, --no-dhcp-dns", "Announce resolvers, or not (default: not)"),
            ("--dhcp-search, --no-dhcp-search", "Announce search domains, or not (default: not)"),
        ],
    ),
    (
        "Services",
        &[
            ("--no-tcp", "No TCP"),
            ("--no-udp", "No UDP"),
            ("--no-icmp", "No echo requests"),
            ("--no-dhcp", "No DHCP"),
            ("--no-dhcpv6", "No DHCPv6"),
            ("--no-ndp", "No neighbor discovery"),
            ("--no-ra", "No router advertisements"),
        ],
    ),
    (
        "Ports",
        &[
            ("-t, --tcp-ports SPEC", "TCP ports of the host that lead inside (default: auto); may be repeated"),
            ("-u, --udp-ports SPEC", "Likewise for UDP"),
            ("-T, --tcp-ns SPEC", "TCP ports of the inside's loopback that lead to the host's (default: auto)"),
            ("-U, --udp-ns SPEC", "Likewise for UDP"),
            ("--freebind", "Listen also at addresses that the host does not have"),
            ("--host-lo-to-ns-lo", "Clients on the host's loopback arrive at the inside's loopback"),
            ("--no-splice", "Clients on the host's loopback go through the interface, as others do"),
        ],
    ),
];

const SPEC: &str = "
SPEC is one of
  none, all     no port; every port that is not ephemeral
  auto          ports that something listens on at the other end
  [ADDR[%IF]/ | %IF/]ITEM,...
                ITEM: FIRST[-LAST][:TO-FIRST[-TO-LAST]], or ~FIRST[-LAST] for all but those;
                ADDR and IF, for -t and -u: where to listen
for example -t 8080:80, -t 127.0.0.1/22,8000-8010, -u auto, -t ~22
";

/// The help text. `called` is what the program was called by.
pub fn help(called: &str) -> String {
    let mut text = format!(
        "Usage: {called} [OPTION]... [COMMAND [ARG]...]\n       {called} [OPTION]... PID\n       \
         {called} [OPTION]... --netns PATH|NAME\n\nA network for COMMAND (or a shell) in new user and network namespaces, \
         for the\nnamespaces of the process PID, or for a network namespace by its path or name.\n"
    );
    for (title, options) in SECTIONS {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\n{title}:");
        for (option, meaning) in *options {
            let _ = match option.len() {
                0..=25 => writeln!(text, "  {option:<25} {meaning}"),
                _ => writeln!(text, "  {option}\n  {:<25} {meaning}", ""),
            };
        }
    }
    text + SPEC
}

/// What `--version` prints.
pub fn version() -> String {
    format!(
        "pasta {VERSION}\ntapline {}, as pasta: https://passt.top describes the original's options\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// The manual page.
pub const MANUAL: Manual = Manual {
    name: "tapline-pasta",
    about: "Rootless networking under the name of pasta",
    synopsis: &["pasta [OPTION]... [COMMAND [ARG]...]", "pasta [OPTION]... PID", "pasta [OPTION]... --netns PATH|NAME"],
    description: &[
        "Called by a name with pasta in it, tapline has the command line of pasta, of the passt project, as Podman and \
         scripts use it; tapline link-as pasta DIR makes such a link. What is behind it is what is behind tapline run and \
         tapline attach.",
        "The first form runs COMMAND, or $SHELL, in new user, network, mount, UTS, IPC and PID namespaces, and sees the \
         host's files as they are. The others serve namespaces that somebody else made: those of a process, or a network \
         namespace by its path, or by its name in /run/netns.",
        "The sandbox has the host's own addresses: those of the interface with the host's first default route, with its \
         gateway and its routes. What it sends to another address goes there as the host's own. The gateway's address is \
         the host's loopback instead, unless --no-map-gw or --map-host-loopback say otherwise. Where the host has no such \
         interface the sandbox is at 169.254.2.1 behind 169.254.2.2, and behind fe80::1.",
        "With a PID or --netns it goes to the background when the network works, and its parent ends then; it serves until \
         the namespace's path or process is gone. Of options given several times the last counts.",
    ],
    options: SECTIONS,
    notes: &[
        (
            "PORTS",
            &[
                "A SPEC for -t, -u, -T and -U is none, all (every port that is not ephemeral), auto (ports that something \
                 listens on at the other end, looked at every second), or a list of items with commas between them, behind \
                 ADDR/, ADDR%IF/ or %IF/ where it is to be one address or one interface of the host. An item is \
                 FIRST[-LAST], with :FIRST[-LAST] behind it for other ports at the other end; ~FIRST[-LAST] are ports that \
                 are left out. An option may be given several times.",
                "A port that was named and cannot be bound is an error; of all, or all but some, those that cannot be bound \
                 are left out.",
                "A client on the host's loopback is spliced to the sandbox's own address, or with --host-lo-to-ns-lo to its \
                 loopback. Every other client is seen by its own address; one that the sandbox could not answer (the \
                 sandbox has it too) comes from the --map-guest-addr address, else from the --map-host-loopback address, \
                 else from the gateway's.",
            ],
        ),
        (
            "DIFFERENCES",
            &[
                "Messages go to standard error as long as there is one, and to --log-file; there is no system logger. \
                 --conf-path is accepted, and pesto not served. --no-icmp leaves neighbor discovery as it is. Several \
                 resolvers of the host are asked where one does not answer, and changes of its resolv.conf are followed. \
                 --no-dhcp-dns and --no-dhcp-search, which the original has for passt alone, are what is usual here.",
                "Options of passt alone (--socket, --fd, --one-off, --vhost-user and so on) are refused.",
                "AppArmor and SELinux profiles of distributions are tied to the path of the original program, /usr/bin/pasta: \
                 a link elsewhere runs under tapline's own profile, or under none. Where user namespaces are kept from \
                 programs without a profile (Ubuntu 23.10 and later), tapline's file needs one with `userns,`. A link in the \
                 place of the original gets a profile that was written for another program, and that may forbid what this \
                 one does (starting itself anew, its files in $XDG_RUNTIME_DIR).",
            ],
        ),
    ],
    examples: &[
        ("A shell with the host's addresses:", "pasta --config-net"),
        (
            "Port 8080 of the host for a service on port 80 of a process's namespace:",
            "pasta --config-net -t 8080:80 4711",
        ),
        (
            "As Podman calls it:",
            "pasta --config-net -t 8080-8080:80-80 --dns-forward 169.254.1.1 -u none -T none -U none --no-map-gw --quiet \
             --netns /run/user/1000/netns/netns-1 --map-guest-addr 169.254.1.2",
        ),
    ],
    exit_status: &[
        ("0", "The network works, in the background; in the foreground: the namespace has ended, or SIGTERM came."),
        ("1", "It failed; a line on standard error says why. Also when COMMAND cannot be executed."),
        ("128 + N", "Signal N ended COMMAND."),
        ("any other", "COMMAND's own exit status."),
    ],
    see_also: "tapline(1), tapline-run(1), tapline-attach(1), tapline-link-as(1), podman-run(1)",
};

#[cfg(test)]
mod tests {
    use super::super::options::{Key, TABLE};
    use super::*;

    #[test]
    fn every_option_is_in_the_help_under_all_its_names() {
        let words: Vec<&str> = SECTIONS
            .iter()
            .flat_map(|(_, options)| *options)
            .flat_map(|(option, _)| option.split([' ', ',']))
            .collect();
        for opt in TABLE.iter().filter(|opt| !matches!(opt.key, Key::Foreign(_))) {
            let long = format!("--{}", opt.long.unwrap());
            assert!(words.contains(&long.as_str()), "{long}");
            if let Some(short) = opt.short {
                assert!(words.contains(&format!("-{short}").as_str()), "-{short}");
            }
        }
        let options = words.iter().filter(|word| word.starts_with("--")).count();
        assert_eq!(options, TABLE.iter().filter(|opt| !matches!(opt.key, Key::Foreign(_))).count());
    }

    #[test]
    fn the_first_line_of_the_version_is_the_version() {
        assert!(version().starts_with("pasta 2026_"));
        assert!(help("pasta").starts_with("Usage: pasta [OPTION]... [COMMAND [ARG]...]\n"));
    }
}
