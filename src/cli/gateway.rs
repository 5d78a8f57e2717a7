//! The hidden `tapline gateway`: what a supervisor starts.
use std::os::fd::RawFd;

use clap::Args;

use super::error::Failure;
use super::options::LoggingArgs;
use super::rooms;

/// Serve the sandbox at the other end of a descriptor; started by run and attach
#[derive(Args, Debug)]
pub struct GatewayArgs {
    /// The attach connection
    #[arg(long, value_name = "FD", value_parser = clap::value_parser!(i32).range(3..))]
    fd: RawFd,

    #[command(flatten)]
    logging: LoggingArgs,
}

impl GatewayArgs {
    /// Does it.
    pub fn execute(self) -> Result<i32, Failure> {
        rooms::start_logging(self.logging.resolve(), &[]);
        Ok(rooms::gateway(self.fd)?)
    }
}
