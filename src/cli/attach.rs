//! `tapline attach`.
use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::{ArgGroup, ArgMatches, Args};

use super::dry_run::{self, Format};
use super::error::Failure;
use super::net_options::AttachNetsArgs;
use super::options::{self, AccessArgs, LoggingArgs, NamesArgs, NetworkArgs};
use super::port_options::PortsArgs;
use super::{output, rooms};
use crate::plan::{self, Mode, Target};

/// Give an existing namespace a network
///
/// The namespace is that of process PID, or the one at the path given with --netns. tapline stays in the foreground
/// and ends when the namespace does; ended earlier, it takes the interface with it.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("target").args(["target_pid", "netns"]).required(true))]
pub struct AttachArgs {
    /// A process in the namespace
    #[arg(value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    target_pid: Option<i32>,

    /// Path of the network namespace, instead of a PID
    #[arg(long, value_name = "PATH")]
    netns: Option<PathBuf>,

    /// Path of the user namespace that owns it [default: found by asking the kernel]
    #[arg(long, value_name = "PATH", requires = "netns", conflicts_with = "target_pid")]
    userns: Option<PathBuf>,

    /// Make the interface and nothing else: for those who set addresses by themselves or by DHCP
    #[arg(long)]
    no_configure: bool,

    /// Write `1` and a newline to this descriptor when the network is ready
    #[arg(long, value_name = "FD", value_parser = clap::value_parser!(i32).range(0..))]
    ready_fd: Option<RawFd>,

    /// End when the other end of this descriptor is closed
    #[arg(long, value_name = "FD", value_parser = clap::value_parser!(i32).range(0..))]
    exit_fd: Option<RawFd>,

    /// Write the PID of the process that serves the namespace to this file
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,

    /// Return when the network is ready, and go on in the background
    #[arg(long)]
    detach: bool,

    /// Refuse to work where tapline's own processes cannot be confined in full
    ///
    /// Without it they are confined as far as the kernel allows, and a line says what is missing.
    #[arg(long)]
    require_confinement: bool,

    /// Print what would be done, and do nothing
    #[arg(long, value_name = "FORMAT", value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "text")]
    dry_run: Option<Format>,

    #[command(flatten)]
    nets: AttachNetsArgs,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    names: NamesArgs,
    #[command(flatten)]
    ports: PortsArgs,
    #[command(flatten)]
    logging: LoggingArgs,
}

impl AttachArgs {
    /// Refuses what was typed and would have no effect.
    pub fn check_effects(&self, typed: &ArgMatches) -> Result<(), Failure> {
        self.nets.check_effects(typed).map_err(|text| Failure::Usage("attach", text))?;
        let mode = self.nets.as_for_run().mode();
        self.network.check_effects(mode, typed).map_err(|text| Failure::Usage("attach", text))
    }

    fn plan(&self) -> Result<(plan::Attach, Vec<String>), Failure> {
        let target = match (self.target_pid, &self.netns) {
            (Some(pid), _) => Target::Pid(pid),
            (None, Some(netns)) => {
                let userns = self.userns.clone().map_or(plan::Userns::Owner, plan::Userns::Given);
                Target::Path { netns: netns.clone(), userns }
            }
            (None, None) => return Err(Failure::Usage("attach", "a PID or --netns PATH is needed".into())),
        };
        let nets = self.nets.as_for_run();
        let (network, access, names, mode) = (&self.network, &self.access, &self.names, nets.mode());
        let own_network = mode == Mode::Private;
        let mut shared = options::resolve("attach", "attach".as_ref(), network, access, names, None, own_network)?;
        let mut taken: Vec<&str> = names.add_host.iter().map(|(name, _)| name.as_str()).collect();
        taken.push(&shared.name);
        let nets = nets.resolve("attach", network.mac, network.ifname.as_deref(), &taken)?;
        if self.ready_fd.is_some() && self.ready_fd == self.exit_fd {
            return Err(Failure::Usage(
                "attach",
                "'--ready-fd' and '--exit-fd' are the same descriptor: give two".into(),
            ));
        }
        shared.interface.configure = !self.no_configure;
        let (ports, warnings) = self.ports.resolve("attach", !own_network)?;
        shared.warnings.extend(warnings);
        let plan = plan::Attach {
            ports,
            pcap: network.pcap(mode),
            id: shared.id,
            name: shared.name,
            target,
            mode,
            network: shared.network,
            interface: shared.interface,
            joins: nets.joins,
            default_net: nets.default_net,
            publish_on: nets.publish_on,
            access: match mode {
                Mode::Bridge => plan::Access { host_loopback: access.host_loopback, metadata: access.allow_metadata },
                _ => plan::Access::default(),
            },
            names: shared.names,
            logging: self.logging.resolve(),
            ready_fd: self.ready_fd,
            ready_text: "1\n".to_owned(),
            link_text: String::new(),
            greeting: String::new(),
            hostfwd_socket: None,
            outlives_target: false,
            confined: false,
            require_confinement: self.require_confinement,
            exit_fd: self.exit_fd,
            pid_file: self.pid_file.clone(),
            detach: self.detach,
        };
        Ok((plan, shared.warnings))
    }

    /// Does it.
    pub fn execute(self) -> Result<i32, Failure> {
        let planned = self.plan()?;
        self.execute_plan(planned)
    }

    /// Does it for a sandbox of this id.
    pub fn execute_as(self, id: String) -> Result<i32, Failure> {
        let (plan, warnings) = self.plan()?;
        self.execute_plan((plan::Attach { id, ..plan }, warnings))
    }

    fn execute_plan(self, (mut plan, warnings): (plan::Attach, Vec<String>)) -> Result<i32, Failure> {
        if let Some(format) = self.dry_run {
            output::print(&dry_run::attach(&plan, &warnings, format)?)?;
            return Ok(0);
        }
        rooms::name_networks(&mut plan.joins, &mut plan.default_net, &mut plan.publish_on);
        if let Some((v4, v6)) = self.nets.as_for_run().addresses() {
            rooms::place_addresses(&mut plan.joins, v4, v6);
        }
        drop(self);
        rooms::start_logging(plan.logging, &warnings);
        Ok(rooms::attach(plan)?)
    }
}
