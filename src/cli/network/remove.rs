//! `tapline network rm` and `tapline network prune`.
use clap::Args;

use crate::cli::error::{self, FAILED, Failure};
use crate::cli::output;
use crate::control::networks::{NetworkError, Networks};

/// Remove networks that no sandbox is on
///
/// Prints the names of those removed. One that cannot be removed does not keep the others.
#[derive(Args, Debug)]
pub struct RmArgs {
    /// Name or id of the network, or the beginning of its id
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,

    /// One that is not there is no error
    #[arg(short, long)]
    force: bool,
}

impl RmArgs {
    /// Does it.
    pub fn execute(self) -> Result<i32, Failure> {
        let networks = Networks::open()?;
        let mut status = 0;
        for name in &self.names {
            match networks.remove(name) {
                Ok(name) => output::print(&format!("{name}\n"))?,
                Err(NetworkError::NotFound(_)) if self.force => {}
                Err(error) => {
                    error::say(&error.to_string());
                    status = FAILED.into();
                }
            }
        }
        Ok(status)
    }
}

/// Remove every network that no sandbox is on
///
/// Prints their names. `bridge` stays.
#[derive(Args, Debug)]
pub struct PruneArgs {
    /// Has no effect: nothing is asked before
    #[arg(short, long)]
    force: bool,
}

impl PruneArgs {
    /// Does it.
    pub fn execute(self) -> Result<i32, Failure> {
        let (removed, errors) = Networks::open()?.prune()?;
        output::print(&removed.iter().map(|name| format!("{name}\n")).collect::<String>())?;
        for error in &errors {
            error::say(&error.to_string());
        }
        Ok(if errors.is_empty() { 0 } else { FAILED.into() })
    }
}
