//! The doors to the other rooms: what a subcommand asks for, and who does it.
use std::ffi::OsString;
use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use super::net_options;
use crate::control::gateway::Entrance;
use crate::control::networks::Networks;
use crate::control::state::SandboxState;
use crate::observe::logging;
use crate::plan::{self, Logging};
use crate::sys::{proc, random};
use crate::{control, sandbox};

/// Twelve hexadecimal digits that nobody else has.
pub fn random_id() -> String {
    random::bytes::<6>().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The command where none is given: $SHELL, else the user's shell, else /bin/sh.
pub fn default_shell() -> OsString {
    let from_environment = std::env::var_os("SHELL").filter(|shell| !shell.is_empty());
    let from_passwd = || {
        let user = nix::unistd::User::from_uid(nix::unistd::getuid()).ok()??;
        Some(user.shell.into_os_string()).filter(|shell| !shell.is_empty())
    };
    from_environment.or_else(from_passwd).unwrap_or_else(|| "/bin/sh".into())
}

/// This host's name, where it is text.
pub fn host_name() -> Option<String> {
    nix::unistd::gethostname().ok()?.into_string().ok()
}

/// Begin to log, and say what the plan's making had to say.
pub fn start_logging(how: Logging, warnings: &[String]) {
    logging::init(how);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
}

/// Of several networks, an address is for the one whose subnet has it. What cannot be found out is said when the
/// network is joined.
pub fn place_addresses(joins: &mut [plan::Join], v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) {
    if let Ok(networks) = Networks::open() {
        let definitions: Vec<_> = joins.iter().map(|join| networks.find(&join.network).ok()).collect();
        net_options::place_addresses(joins, &definitions, v4, v6);
    }
}

/// Puts networks' names where their ids were typed, as far as there are such networks.
pub fn name_networks(joins: &mut [plan::Join], default_net: &mut Option<String>, publish_on: &mut Option<String>) {
    let joined = joins.iter_mut().map(|join| &mut join.network);
    let words = joined.chain(default_net).chain(publish_on);
    let mut ids = words.filter(|word| net_options::may_be_id(word)).peekable();
    if ids.peek().is_none() {
        return;
    }
    let Ok(networks) = Networks::open() else { return };
    for word in ids {
        if let Ok(definition) = networks.find(word) {
            *word = definition.name;
        }
    }
}

/// `run`: CMD's exit status.
pub fn run(plan: plan::Run) -> Result<i32> {
    // The agent and init are copies of this process: what planning used would be theirs too.
    proc::trim_memory();
    Ok(sandbox::run(plan)?)
}

/// `attach`: the exit status, however it ends.
pub fn attach(plan: plan::Attach) -> Result<i32> {
    proc::trim_memory();
    sandbox::attach(plan)?;
    Ok(0)
}

/// `exec`: CMD's exit status.
pub fn exec(state: &SandboxState, command: &[OsString]) -> Result<i32> {
    Ok(sandbox::exec(state, command)?)
}

/// `stop`.
pub fn stop(state: &SandboxState) -> Result<()> {
    Ok(sandbox::stop(state)?)
}

/// `gateway`: serves as long as somebody is there.
pub fn gateway(entrance: Entrance) -> Result<i32> {
    control::gateway::main(entrance)?;
    Ok(0)
}
