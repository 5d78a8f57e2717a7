//! The options about ports that `run` and `attach` share, and what they mean together.
use clap::Args;
use ipnet::IpNet;

use super::error::Failure;
use crate::plan::{self, AutoRules, Expose, Mode, Ports, Protocol, ProxyVersion, PublishArg, PublishSpec, ReachArg};

/// The options' names, as they are typed.
pub const PORT_OPTIONS: [&str; 6] = ["publish", "publish-all", "expose", "publish-from", "proxy-protocol", "reach"];

/// What leads into the sandbox, and to the host's loopback.
#[derive(Args, Debug)]
#[command(next_help_heading = "Ports")]
pub struct PortsArgs {
    /// Publish a port: [ADDRESS:][HOSTPORT:]PORT[/udp], or `auto`; may be repeated
    ///
    /// The host listens at HOSTPORT (without it at a free port), on ADDRESS (without it on all its addresses), and what
    /// comes in goes to PORT of the sandbox. HOSTPORT and PORT may be ranges of the same length, like
    /// 8000-8009:80-89; of a range in front of a single port, one that is free is taken. IPv6 addresses stand in
    /// brackets; 0.0.0.0 is every IPv4 address, [::] every IPv6 address. ,proxy=v1 or ,proxy=v2 behind it is
    /// --proxy-protocol for this one.
    ///
    /// `auto` publishes whatever the sandbox listens at, as long as it does, on the host's loopback under the same
    /// number, or a free one where that is taken; `auto:all` on all of the host's addresses.
    #[arg(short, long, value_name = "SPEC", value_parser = PublishArg::parse)]
    publish: Vec<PublishArg>,

    /// Publish what --expose names, each at a free port
    #[arg(short = 'P', long)]
    publish_all: bool,

    /// A port or a range that the sandbox serves, for -P and for links; may be repeated
    #[arg(long, value_name = "PORT[-PORT][/PROTO]", value_parser = Expose::parse)]
    expose: Vec<Expose>,

    /// Who may connect to what is published: a subnet or an address; may be repeated [default: everybody]
    ///
    /// The host's own loopback always may.
    #[arg(long, value_name = "CIDR", value_parser = plan::parse_clients)]
    publish_from: Vec<IpNet>,

    /// Begin each published TCP connection with a PROXY header, for services that read it
    #[arg(long, value_name = "VERSION", value_enum)]
    proxy_protocol: Option<ProxyVersion>,

    /// Open a port of the host's loopback on the sandbox's own loopback: HOSTPORT[:PORT][/udp], or `auto`; may be repeated
    ///
    /// The rest of the host's loopback stays closed.
    ///
    /// `auto` opens whatever listens on the host's loopback, as long as it does, under the same number; what is published,
    /// and what the sandbox itself listens on, stays as it is.
    #[arg(long, value_name = "HOSTPORT[:PORT]", value_parser = ReachArg::parse)]
    reach: Vec<ReachArg>,
}

impl PortsArgs {
    /// What they mean together, and warnings. `verb` is the subcommand. On shared networks what is exposed is for links.
    pub fn resolve(&self, verb: &'static str, shared: bool) -> Result<(Ports, Vec<String>), Failure> {
        self.ports(shared).map_err(|text| Failure::Usage(verb, text))
    }

    fn ports(&self, shared: bool) -> Result<(Ports, Vec<String>), String> {
        let mut ports = Ports {
            publish_exposed: self.publish_all,
            expose: self.expose.clone(),
            from: self.publish_from.clone(),
            ..Ports::default()
        };
        for arg in &self.reach {
            match arg {
                ReachArg::Port(reach) => ports.reach.push(*reach),
                ReachArg::Auto => ports.reach_auto = Some(AutoRules::default()),
            }
        }
        for arg in &self.publish {
            match arg {
                PublishArg::Spec(spec) => ports.publish.push(spec.clone()),
                PublishArg::Auto(auto) if ports.auto.is_none_or(|other| other == *auto) => ports.auto = Some(*auto),
                PublishArg::Auto(_) => {
                    return Err("'-p auto' contradicts '-p auto:all': give one of them".into());
                }
            }
        }
        if let Some(version) = self.proxy_protocol {
            let exposes_tcp = self.publish_all && self.expose.iter().any(|e| e.protocol == Protocol::Tcp);
            if !add_proxy(&mut ports.publish, version) && !exposes_tcp {
                return Err(NO_TCP.into());
            }
            ports.exposed_proxy = exposes_tcp.then_some(version);
        }
        ports.check().map_err(|error| error.to_string())?;
        let mut warnings = Vec::new();
        match (self.publish_all, self.expose.is_empty()) {
            (true, true) => {
                warnings.push("-P publishes what --expose names, which is nothing: add --expose PORT".into())
            }
            (false, false) if !shared => warnings.push("--expose alone publishes nothing: add -P".into()),
            _ => {}
        }
        Ok((ports, warnings))
    }
}

/// Why --proxy-protocol can be of no use.
pub const NO_TCP: &str = "'--proxy-protocol' has no effect: it is for published TCP ports, and none is given; add one with -p, or leave it out";

/// Every TCP spec that does not say otherwise gets the header; `false` when there is no TCP spec.
pub fn add_proxy(specs: &mut [PublishSpec], version: ProxyVersion) -> bool {
    let mut tcp = specs.iter_mut().filter(|spec| spec.protocol == Protocol::Tcp).peekable();
    let any = tcp.peek().is_some();
    tcp.for_each(|spec| spec.proxy = spec.proxy.or(Some(version)));
    any
}

/// Why an option about ports cannot be used in a mode.
/// `word` is what stands behind --net.
pub fn refusal(option: &str, mode: Mode, word: &str) -> String {
    let option = match option {
        "publish" => "-p",
        "publish-all" => "-P",
        other => &format!("--{other}"),
    };
    match mode {
        Mode::Host => format!(
            "'{option}' has no effect with '--net host': the command's own ports are the host's: leave {option} out"
        ),
        Mode::Container => format!(
            "'{option}' has no effect with '--net {word}': the ports there are the other sandbox's, so give {option} to \
             that one"
        ),
        Mode::Private | Mode::Bridge | Mode::None => format!(
            "'{option}' has no effect with '--net {word}': nothing leads into or out of such a sandbox: leave one of them out"
        ),
    }
}
