//! What help texts and manual pages say beyond the options: the one place for it.
use std::fmt::Write as _;

use clap::Command;

/// A pair of columns.
type Items = &'static [(&'static str, &'static str)];

/// What there is to say of a subcommand.
pub struct Page {
    /// The subcommand, `network create` for one of another; empty for `tapline` itself.
    pub verb: &'static str,
    /// What for, and the command line.
    pub examples: Items,
    /// Exit statuses.
    pub exit_status: Items,
    /// Files it reads or writes.
    pub files: Items,
    /// Variables it looks at.
    pub environment: Items,
}

/// What `tapline` alone prints.
pub const GREETING: &str = "\
tapline gives a command a network of its own, without any privilege on the host.

  tapline run -- CMD [ARG...]    run CMD with a network of its own
  tapline run                    the same with a shell
  tapline attach PID             give the namespace of a process a network
  tapline ps                     what is running
  tapline network ls             the networks that sandboxes share

'tapline --help' shows all commands, 'tapline run --help' all options.
";

const OWN_STATUS: Items = &[
    ("0", "It was done."),
    ("2", "The command line makes no sense."),
    ("125", "tapline failed; a line on standard error says why, and what to do."),
];

const PORT_STATUS: Items = &[
    ("0", "It was done."),
    ("1", "Nothing is published for that port."),
    ("2", "The command line makes no sense."),
    ("125", "tapline failed; a line on standard error says why, and what to do."),
];

const COMMAND_STATUS: Items = &[
    ("2", "The command line makes no sense (or CMD ended with 2)."),
    ("125", "tapline failed; a line on standard error says why, and what to do."),
    ("126", "CMD was found but cannot be run."),
    ("127", "CMD was not found."),
    ("128 + N", "Signal N ended CMD."),
    ("any other", "CMD's own exit status."),
];

const CONFIG_FILE: (&str, &str) = (
    "$XDG_CONFIG_HOME/tapline/config.toml",
    "Options for every call: the long name of an option is a key, without the hyphens in front; a list stands for an option given several times, true for a flag. Keys at the top count for run and attach, those in [run] or [attach] for that command. The command line wins; --flag=false there switches off what the file has on.",
);

const STATE: (&str, &str) = (
    "$XDG_RUNTIME_DIR/tapline/",
    "What runs: a directory for each sandbox, gone with it. Without a usable XDG_RUNTIME_DIR it is /tmp/tapline-UID.",
);

const NETWORKS: (&str, &str) = (
    "$XDG_DATA_HOME/tapline/networks/NAME.toml",
    "A network, as `tapline network create` writes it. Keys: id, created, mtu, internal, icc, dns, dns-search; in [ipv4] and [ipv6] subnet, gateway, ip-range; in [labels] whatever there is. A subnet is enough for one written by hand. It may be edited while no sandbox is on the network.",
);

const XDG_DATA: (&str, &str) = ("XDG_DATA_HOME", "Where networks are kept; ~/.local/share where it is not set.");
const XDG_CONFIG: (&str, &str) =
    ("XDG_CONFIG_HOME", "Where the configuration file lies; ~/.config where it is not set.");
const XDG_RUNTIME: (&str, &str) = ("XDG_RUNTIME_DIR", "Where the state directory lies.");

/// All pages, in the order of the commands.
pub const PAGES: &[Page] = &[
    Page {
        verb: "",
        examples: &[
            ("A shell on the network that sandboxes share:", "tapline run"),
            ("A network for a process that already has a namespace:", "tapline attach 4711"),
        ],
        exit_status: OWN_STATUS,
        files: &[CONFIG_FILE, STATE],
        environment: &[XDG_CONFIG, XDG_RUNTIME],
    },
    Page {
        verb: "run",
        examples: &[
            ("A command on the network that sandboxes share:", "tapline run -- curl https://example.org"),
            ("A shell that can reach nothing:", "tapline run --net none"),
            ("With a network that nobody else is on:", "tapline run --net private"),
            (
                "A service on the host's loopback is reached through the gateway's address:",
                "tapline run --host-loopback -- curl http://host.tapline.internal:8000",
            ),
            ("Other addresses, IPv4 only:", "tapline run --net private --subnet 192.168.7.0/24 --ipv4-only"),
            ("A resolver and a name of one's own:", "tapline run --dns 192.0.2.53 --add-host db:192.0.2.7"),
            (
                "A service on port 8080 of the host, for its own users only:",
                "tapline run -p 127.0.0.1:8080:80 -- nginx",
            ),
            ("Whatever the command listens at, under the same number:", "tapline run -p auto -- npm start"),
            ("One port of the host's loopback:", "tapline run --reach 5432 -- psql -h 127.0.0.1"),
            (
                "Two networks, with a name of its own on both:",
                "tapline run --name api --net front --net back --network-alias app -- ./serve",
            ),
            ("A tool beside a sandbox, on the same network:", "tapline run --net container:web -- ss -tln"),
            ("What would be done:", "tapline run --dry-run -- make test"),
        ],
        exit_status: COMMAND_STATUS,
        files: &[CONFIG_FILE, STATE, ("/etc/subuid, /etc/subgid", "Subordinate ids, for --map-user auto.")],
        environment: &[("SHELL", "CMD where none is given."), XDG_CONFIG, XDG_RUNTIME],
    },
    Page {
        verb: "attach",
        examples: &[
            ("A network for the namespace of a process:", "tapline attach 4711"),
            ("Return when it is ready:", "tapline attach --detach --pid-file tapline.pid 4711"),
            ("By path; the user namespace that owns it is found:", "tapline attach --netns /proc/4711/ns/net"),
            ("Only the interface, for a DHCP client inside:", "tapline attach --no-configure --ifname eth0 4711"),
            ("A place on the network that sandboxes share:", "tapline attach --net bridge --name web 4711"),
        ],
        exit_status: OWN_STATUS,
        files: &[CONFIG_FILE, STATE],
        environment: &[XDG_CONFIG, XDG_RUNTIME],
    },
    Page {
        verb: "exec",
        examples: &[("Look at a sandbox from inside:", "tapline exec bash-3f9a0d21 -- cat /etc/resolv.conf")],
        exit_status: COMMAND_STATUS,
        files: &[STATE],
        environment: &[XDG_RUNTIME],
    },
    Page {
        verb: "ps",
        examples: &[
            ("What is running:", "tapline ps"),
            ("For programs, a JSON object on each line:", "tapline ps --format json"),
        ],
        exit_status: OWN_STATUS,
        files: &[STATE],
        environment: &[XDG_RUNTIME],
    },
    Page {
        verb: "inspect",
        examples: &[
            ("Addresses, process ids and counters:", "tapline inspect bash-3f9a0d21"),
            ("Its first address, for a script:", "tapline inspect --get endpoints.0.v4 web"),
            ("For people:", "tapline inspect --format table web db"),
        ],
        exit_status: OWN_STATUS,
        files: &[STATE],
        environment: &[XDG_RUNTIME],
    },
    Page {
        verb: "network",
        examples: &[
            ("A network:", "tapline network create backend"),
            ("A sandbox on it:", "tapline run --net backend --name db -- redis-server"),
            ("Another, which finds that one by name:", "tapline run --net backend -- redis-cli -h db"),
        ],
        exit_status: OWN_STATUS,
        files: &[NETWORKS, STATE],
        environment: &[XDG_DATA, XDG_RUNTIME],
    },
    Page {
        verb: "network create",
        examples: &[
            ("With subnets that are free:", "tapline network create backend"),
            ("Without a way out:", "tapline network create --internal backend"),
            (
                "With a subnet of one's own, IPv4 only:",
                "tapline network create --subnet 10.9.0.0/24 --gateway 10.9.0.254 --no-ipv6 backend",
            ),
            ("Whose sandboxes reach each other along links only:", "tapline network create --icc=false backend"),
        ],
        exit_status: OWN_STATUS,
        files: &[NETWORKS],
        environment: &[XDG_DATA],
    },
    Page {
        verb: "network ls",
        examples: &[
            ("All networks:", "tapline network ls"),
            ("For programs, a JSON object on each line:", "tapline network ls --format json"),
        ],
        exit_status: OWN_STATUS,
        files: &[NETWORKS, STATE],
        environment: &[XDG_DATA, XDG_RUNTIME],
    },
    Page {
        verb: "network inspect",
        examples: &[
            ("Subnets, rules, and who is on it:", "tapline network inspect bridge"),
            ("Its IPv4 subnet, for a script:", "tapline network inspect --get ipv4.subnet bridge"),
        ],
        exit_status: OWN_STATUS,
        files: &[NETWORKS, STATE],
        environment: &[XDG_DATA, XDG_RUNTIME],
    },
    Page {
        verb: "network rm",
        examples: &[("Two networks:", "tapline network rm backend frontend")],
        exit_status: OWN_STATUS,
        files: &[NETWORKS, STATE],
        environment: &[XDG_DATA, XDG_RUNTIME],
    },
    Page {
        verb: "network prune",
        examples: &[("Whatever is not in use:", "tapline network prune")],
        exit_status: OWN_STATUS,
        files: &[NETWORKS, STATE],
        environment: &[XDG_DATA, XDG_RUNTIME],
    },
    Page {
        verb: "network connect",
        examples: &[
            ("A further network for a sandbox:", "tapline network connect backend web"),
            ("With an address and another name:", "tapline network connect --ip 10.9.0.7 --alias api backend web"),
        ],
        exit_status: OWN_STATUS,
        files: &[NETWORKS, STATE],
        environment: &[XDG_DATA, XDG_RUNTIME],
    },
    Page {
        verb: "network disconnect",
        examples: &[("Without it again:", "tapline network disconnect backend web")],
        exit_status: OWN_STATUS,
        files: &[NETWORKS, STATE],
        environment: &[XDG_DATA, XDG_RUNTIME],
    },
    Page {
        verb: "port",
        examples: &[("What is published:", "tapline port web"), ("Where port 80 is:", "tapline port web 80")],
        exit_status: PORT_STATUS,
        files: &[STATE],
        environment: &[XDG_RUNTIME],
    },
    Page {
        verb: "publish",
        examples: &[
            ("Port 80 at port 8080 of all addresses of the host:", "tapline publish web 8080:80"),
            (
                "Port 53 over UDP at a free port, for a subnet only:",
                "tapline publish web 53/udp --publish-from 10.0.0.0/8",
            ),
        ],
        exit_status: OWN_STATUS,
        files: &[STATE],
        environment: &[XDG_RUNTIME],
    },
    Page {
        verb: "unpublish",
        examples: &[("As it was published:", "tapline unpublish web 8080:80")],
        exit_status: OWN_STATUS,
        files: &[STATE],
        environment: &[XDG_RUNTIME],
    },
    Page {
        verb: "stop",
        examples: &[("End a sandbox:", "tapline stop bash-3f9a0d21")],
        exit_status: OWN_STATUS,
        files: &[STATE],
        environment: &[XDG_RUNTIME],
    },
    Page {
        verb: "oci-hook",
        examples: &[
            ("As `hooks` in a container's config.json has it:", "/usr/bin/tapline oci-hook createRuntime"),
            ("When the container has gone:", "/usr/bin/tapline oci-hook poststop"),
        ],
        exit_status: OWN_STATUS,
        files: &[CONFIG_FILE, STATE],
        environment: &[
            XDG_CONFIG,
            (
                "XDG_RUNTIME_DIR",
                "Where the state directory lies. A hook has the environment that `env` in the configuration gives it, and may have none; without this variable the state directory is /tmp/tapline-UID, and `tapline ps` looks there too.",
            ),
        ],
    },
    Page {
        verb: "link-as",
        examples: &[
            ("For Podman, Buildah and RootlessKit:", "tapline link-as slirp4netns ~/.local/lib/tapline"),
            ("For Podman 5 and newer:", "tapline link-as pasta ~/.local/lib/tapline"),
        ],
        exit_status: OWN_STATUS,
        files: &[],
        environment: &[],
    },
    Page {
        verb: "completions",
        examples: &[
            ("For bash:", "tapline completions bash > ~/.local/share/bash-completion/completions/tapline"),
            ("For fish:", "tapline completions fish > ~/.config/fish/completions/tapline.fish"),
        ],
        exit_status: OWN_STATUS,
        files: &[],
        environment: &[],
    },
];

/// The page of a subcommand; tapline's own for one that has none.
pub fn of(verb: &str) -> &'static Page {
    PAGES.iter().find(|page| page.verb == verb).unwrap_or(&PAGES[0])
}

/// Puts examples and exit statuses behind the long help texts.
pub fn with_help(mut description: Command) -> Command {
    for page in PAGES {
        description = match page.verb.split_once(' ') {
            _ if page.verb.is_empty() => description.after_long_help(help(page)),
            None => description.mut_subcommand(page.verb, |verb| verb.after_long_help(help(page))),
            Some((verb, inner)) => description
                .mut_subcommand(verb, |verb| verb.mut_subcommand(inner, |inner| inner.after_long_help(help(page)))),
        };
    }
    description
}

fn help(page: &Page) -> String {
    let mut text = String::from("Examples:\n");
    // Writing to a String cannot fail.
    for (purpose, line) in page.examples {
        let _ = writeln!(text, "  {purpose}\n      {line}");
    }
    text.push_str("\nExit status:\n");
    for (status, meaning) in page.exit_status {
        let _ = writeln!(text, "  {status:<10} {meaning}");
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_visible_subcommand_has_a_page_and_every_page_a_subcommand() {
        let description = crate::cli::command();
        let mut visible = vec![String::new()];
        for verb in description.get_subcommands().filter(|verb| !verb.is_hide_set()) {
            visible.push(verb.get_name().to_owned());
            let inner = verb.get_subcommands().filter(|inner| !inner.is_hide_set());
            visible.extend(inner.map(|inner| format!("{} {}", verb.get_name(), inner.get_name())));
        }
        let mut pages: Vec<&str> = PAGES.iter().map(|page| page.verb).collect();
        visible.sort_unstable();
        pages.sort_unstable();
        assert_eq!(visible, pages);
    }

    #[test]
    fn every_example_is_a_command_line_that_parses() {
        for (_, line) in PAGES.iter().flat_map(|page| page.examples) {
            let words: Vec<&str> = line.split(" > ").next().unwrap_or(line).split_whitespace().collect();
            assert!(crate::cli::command().try_get_matches_from(words).is_ok(), "{line}");
        }
    }
}
