//! The doors to the other rooms: what a subcommand asks for, and who does it.
use std::ffi::OsString;
use std::os::fd::RawFd;

use anyhow::{Result, bail};

use crate::control::state::SandboxState;
use crate::observe::logging;
use crate::plan::{self, Logging};
use crate::sys::random;

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

/// Begin to log, and say what the plan's making had to say.
pub fn start_logging(how: Logging, warnings: &[String]) {
    logging::init(how);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
}

/// `run`: CMD's exit status.
pub fn run(plan: plan::Run) -> Result<i32> {
    bail!("cannot run {}: this build has no supervisor", plan.command[0].to_string_lossy())
}

/// `attach`: the exit status.
pub fn attach(plan: plan::Attach) -> Result<i32> {
    bail!("cannot serve {:?}: this build has no supervisor", plan.target)
}

/// `exec`: CMD's exit status.
pub fn exec(state: &SandboxState, command: &[OsString]) -> Result<i32> {
    bail!("cannot run {} in {}: this build has no supervisor", command[0].to_string_lossy(), state.name)
}

/// `stop`.
pub fn stop(state: &SandboxState) -> Result<()> {
    bail!("cannot end {}: this build has no supervisor", state.name)
}

/// `gateway`: serves until its connection closes.
pub fn gateway(fd: RawFd) -> Result<i32> {
    bail!("cannot serve the connection {fd}: this build has no gateway")
}
