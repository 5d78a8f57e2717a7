//! `tapline exec`.
use std::ffi::OsString;

use clap::Args;

use super::error::Failure;
use super::rooms;
use crate::control::state::StateDir;

/// Run another command in a sandbox
///
/// CMD joins all namespaces of the sandbox. The exit status is CMD's.
#[derive(Args, Debug)]
pub struct ExecArgs {
    /// Name or id of the sandbox, or the beginning of its id
    #[arg(value_name = "NAME")]
    name: String,

    /// The command and its arguments
    #[arg(value_name = "CMD", trailing_var_arg = true, required = true)]
    command: Vec<OsString>,
}

impl ExecArgs {
    /// Does it.
    pub fn execute(self) -> Result<i32, Failure> {
        let state = StateDir::open()?.find(&self.name)?;
        Ok(rooms::exec(&state, &self.command)?)
    }
}
