//! `tapline run`.
use std::ffi::OsString;

use clap::{ArgMatches, Args};

use super::dry_run::{self, Format};
use super::error::Failure;
use super::net_options::NetsArgs;
use super::options::{self, AccessArgs, LoggingArgs, NamesArgs, NetworkArgs};
use super::port_options::{self, PORT_OPTIONS, PortsArgs};
use super::{output, rooms};
use crate::plan::{self, MapUser, Mode, PidMode, words};

/// Run a command with a network of its own
///
/// Makes a user, network, mount, UTS and PID namespace, gives it an interface, addresses and routes, its own
/// resolv.conf, hosts and hostname, and runs CMD in it: by default $SHELL. Whatever ends tapline ends CMD and all it
/// started, and leaves nothing behind.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Hostname inside [default: the sandbox's name; with --net host the host's, with container: that one's]
    #[arg(long, value_name = "NAME", value_parser = words::parse_hostname)]
    hostname: Option<String>,

    /// Which user CMD sees itself as
    #[arg(long, value_name = "USER", value_enum, default_value_t = MapUser::Root)]
    map_user: MapUser,

    /// Which PID namespace CMD is in
    #[arg(long, value_name = "MODE", value_enum, default_value_t = PidMode::Private)]
    pid: PidMode,

    /// Leave CMD no capability over its network and mounts
    ///
    /// CMD then runs in a further user namespace, so that it can neither change its network nor uncover what is
    /// covered.
    #[arg(long)]
    locked: bool,

    /// Refuse to work where tapline's own processes cannot be confined in full
    ///
    /// Without it they are confined as far as the kernel allows, and a line says what is missing.
    #[arg(long)]
    require_confinement: bool,

    /// Print what would be done, and do nothing
    #[arg(long, value_name = "FORMAT", value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "text")]
    dry_run: Option<Format>,

    #[command(flatten)]
    nets: NetsArgs,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    names: NamesArgs,
    #[command(flatten)]
    ports: PortsArgs,

    /// Option for resolv.conf(5), like ndots:2; may be repeated
    #[arg(long, value_name = "OPTION", value_parser = words::parse_resolver_option, help_heading = "Names")]
    dns_option: Vec<String>,

    #[command(flatten)]
    logging: LoggingArgs,

    /// The command and its arguments [default: $SHELL]
    #[arg(value_name = "CMD", trailing_var_arg = true)]
    command: Vec<OsString>,
}

/// What has no effect without a network that is the sandbox's.
const OF_THE_NETWORK: [&str; 14] = [
    "mtu",
    "subnet",
    "subnet6",
    "ipv4-only",
    "ipv6-only",
    "mac",
    "ifname",
    "link-kind",
    "pcap",
    "outbound-addr",
    "outbound-interface",
    "udp-timeout",
    "host-loopback",
    "allow-metadata",
];

impl RunArgs {
    /// Refuses what was typed and would have no effect: whoever types it expects one. In the configuration file it
    /// may stand, for other calls.
    pub fn check_effects(&self, typed: &ArgMatches) -> Result<(), Failure> {
        self.nets.check_effects(typed).map_err(|text| Failure::Usage("run", text))?;
        self.network.check_effects(self.nets.mode(), typed).map_err(|text| Failure::Usage("run", text))?;
        let others: &[&str] = match self.nets.mode() {
            Mode::Private | Mode::Bridge => return Ok(()),
            // resolv.conf is written when there is a resolver to write.
            Mode::None if self.names.dns.is_empty() => &["dns-search", "dns-option"],
            Mode::None => &[],
            Mode::Host => &["dns", "dns-search", "dns-option", "no-dns"],
            Mode::Container => &["dns", "dns-search", "dns-option", "no-dns", "add-host", "hostname", "map-user"],
        };
        if let Some(option) = PORT_OPTIONS.iter().find(|option| options::is_given(typed, option)) {
            return Err(Failure::Usage("run", port_options::refusal(option, self.nets.mode(), &self.nets.word())));
        }
        match OF_THE_NETWORK.iter().chain(others).find(|option| options::is_given(typed, option)) {
            None => Ok(()),
            Some(option) => {
                let why = match (self.nets.mode(), *option) {
                    (Mode::Container, "map-user") => ", whose user ids are those of that network's sandbox",
                    (Mode::Container, _) => ", which takes it from the other sandbox",
                    _ => "",
                };
                let word = self.nets.word();
                let text = format!("'--{option}' has no effect with '--net {word}'{why}: leave one of them out");
                Err(Failure::Usage("run", text))
            }
        }
    }

    fn plan(&self) -> Result<(plan::Run, Vec<String>), Failure> {
        let command = if self.command.is_empty() { vec![rooms::default_shell()] } else { self.command.clone() };
        let mode = self.nets.mode();
        let (network, access, names) = (&self.network, &self.access, &self.names);
        let own_network = mode == Mode::Private;
        let hostname = self.hostname.as_deref();
        let mut shared = options::resolve("run", &command[0], network, access, names, hostname, own_network)?;
        let mut taken: Vec<&str> = names.add_host.iter().map(|(name, _)| name.as_str()).collect();
        taken.push(&shared.name);
        let nets = self.nets.resolve("run", network.mac, network.ifname.as_deref(), &taken)?;
        shared.names.options.clone_from(&self.dns_option);
        if mode == Mode::Host
            && self.hostname.is_none()
            && let Some(own) = rooms::host_name()
        {
            // Who shares the host's network is known there by the host's name, as under Docker.
            shared.names.hostname = own;
        }
        // Those in the configuration file are for other calls then.
        let ports = match mode {
            Mode::Private | Mode::Bridge => {
                let (ports, warnings) = self.ports.resolve("run", mode == Mode::Bridge)?;
                shared.warnings.extend(warnings);
                ports
            }
            Mode::None | Mode::Host | Mode::Container => plan::Ports::default(),
        };
        let plan = plan::Run {
            id: shared.id,
            name: shared.name,
            mode,
            network: shared.network,
            interface: shared.interface,
            joins: nets.joins,
            default_net: nets.default_net,
            container: nets.container,
            links: nets.links,
            publish_on: nets.publish_on,
            access: match mode {
                Mode::Bridge => plan::Access { host_loopback: access.host_loopback, metadata: access.allow_metadata },
                Mode::Private | Mode::None | Mode::Host | Mode::Container => plan::Access::default(),
            },
            names: shared.names,
            pid: self.pid,
            map_user: self.map_user,
            ports,
            locked: self.locked,
            require_confinement: self.require_confinement,
            pcap: network.pcap(mode),
            logging: self.logging.resolve(),
            surroundings: plan::Surroundings::default(),
            command,
        };
        Ok((plan, shared.warnings))
    }

    /// Does it.
    pub fn execute(self) -> Result<i32, Failure> {
        let (mut plan, warnings) = self.plan()?;
        if let Some(format) = self.dry_run {
            output::print(&dry_run::run(&plan, &warnings, format)?)?;
            return Ok(0);
        }
        rooms::name_networks(&mut plan.joins, &mut plan.default_net, &mut plan.publish_on);
        if let Some((v4, v6)) = self.nets.addresses() {
            rooms::place_addresses(&mut plan.joins, v4, v6);
        }
        // What was typed is not needed while CMD runs, and the supervisor counts its kilobytes.
        drop(self);
        rooms::start_logging(plan.logging, &warnings);
        Ok(rooms::run(plan)?)
    }
}
