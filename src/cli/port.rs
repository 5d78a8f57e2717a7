//! `tapline port`, and what `publish` and `unpublish` have in common with it.
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::anyhow;
use clap::Args;

use super::error::{self, Failure};
use super::output;
use super::ps::mode_word;
use crate::control::http::{AskError, PortsClient};
use crate::control::state::{SandboxState, StateDir};
use crate::plan::{Mode, Protocol, Published, parse_port};

/// Exit status when nothing is published there.
const NOT_PUBLISHED: i32 = 1;

/// List the published ports of a sandbox
///
/// A line for each address: the sandbox's port, and where the host listens for it. With PORT only the latter, for
/// that port.
#[derive(Args, Debug)]
pub struct PortArgs {
    /// Name or id of the sandbox, or the beginning of its id
    #[arg(value_name = "SANDBOX")]
    name: String,

    /// A port of the sandbox; tcp where nothing is said
    #[arg(value_name = "PORT[/PROTO]", value_parser = parse_port)]
    port: Option<(u16, Protocol)>,
}

impl PortArgs {
    /// Does it.
    pub fn execute(self) -> Result<i32, Failure> {
        let (states, sandbox) = find(&self.name)?;
        let mut published = PortsClient { states: &states, id: &sandbox.id }.list()?;
        let Some((port, protocol)) = self.port else {
            output::print(&lines(&published))?;
            return Ok(0);
        };
        published.retain(|one| (one.sandbox_port, one.protocol) == (port, protocol));
        if published.is_empty() {
            let name = &sandbox.name;
            error::say(&format!(
                "nothing is published for {port}/{protocol} of `{name}`: `tapline port {name}` lists what is"
            ));
            return Ok(NOT_PUBLISHED);
        }
        output::print(&addresses(&published).map(|(_, address)| format!("{address}\n")).collect::<String>())?;
        Ok(0)
    }
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Failure {
        Failure::Failed(error.into())
    }
}

/// A sandbox that can have published ports, and where it was found.
pub fn find(name: &str) -> Result<(StateDir, SandboxState), Failure> {
    let states = StateDir::open()?;
    let sandbox = states.find(name)?;
    let why = match sandbox.mode {
        Mode::Private | Mode::Bridge => return Ok((states, sandbox)),
        Mode::None => "nothing leads into it",
        Mode::Container => "its ports are those of the sandbox whose network it shares",
        Mode::Host => "the ports of what runs there are the host's own",
    };
    let mode = mode_word(sandbox.mode);
    Err(anyhow!("`{}` was started with --net {mode} and has no published ports: {why}", sandbox.name).into())
}

/// `80/tcp -> 0.0.0.0:49153`, a line for each address.
pub fn lines(published: &[Published]) -> String {
    addresses(published).map(|((port, protocol), address)| format!("{port}/{protocol} -> {address}\n")).collect()
}

/// Where the host listens for which port of the sandbox, in order; both families of a socket that takes both.
fn addresses(published: &[Published]) -> impl Iterator<Item = ((u16, Protocol), SocketAddr)> {
    let mut all: Vec<((u16, Protocol), SocketAddr)> = Vec::new();
    for one in published {
        let inside = (one.sandbox_port, one.protocol);
        if one.dual_stack {
            all.push((inside, SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), one.host.port())));
        }
        all.push((inside, one.host));
    }
    all.sort_unstable();
    all.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Origin;

    fn published(host: &str, dual_stack: bool, sandbox_port: u16, protocol: Protocol) -> Published {
        Published {
            sandbox: "0123456789ab".into(),
            protocol,
            host: host.parse().unwrap(),
            dual_stack,
            sandbox_port,
            sandbox_address: None,
            device: 0,
            proxy: None,
            from: Vec::new(),
            spec: "80".into(),
            origin: Origin::Option,
        }
    }

    #[test]
    fn a_socket_for_both_families_is_two_lines() {
        let ports = [
            published("[::]:49153", true, 80, Protocol::Tcp),
            published("127.0.0.1:53", false, 53, Protocol::Udp),
            published("127.0.0.1:8080", false, 80, Protocol::Tcp),
        ];
        assert_eq!(
            lines(&ports),
            "53/udp -> 127.0.0.1:53\n80/tcp -> 0.0.0.0:49153\n80/tcp -> 127.0.0.1:8080\n80/tcp -> [::]:49153\n"
        );
    }
}
