//! `tapline stop`.
use clap::Args;

use super::error::Failure;
use super::rooms;
use crate::control::state::StateDir;

/// End a sandbox
///
/// Asks it to end (SIGTERM), and after ten seconds makes it.
#[derive(Args, Debug)]
pub struct StopArgs {
    /// Name or id of the sandbox, or the beginning of its id
    #[arg(value_name = "NAME")]
    name: String,
}

impl StopArgs {
    /// Does it.
    pub fn execute(self) -> Result<i32, Failure> {
        let state = StateDir::open()?.find(&self.name)?;
        rooms::stop(&state)?;
        Ok(0)
    }
}
