//! `tapline network …`: a file for each of its commands.
use clap::{Args, Subcommand};

use super::error::Failure;
use crate::control::networks::NetworkError;

mod connect;
mod create;
mod inspect;
mod list;
mod remove;

/// Make, show and remove networks that sandboxes share, and connect sandboxes to them
///
/// Sandboxes on a network reach each other by name and address, those on others they do not. A network outlives its
/// sandboxes and the host's restart: it is a file, which may be edited while no sandbox is on it.
#[derive(Args, Debug)]
#[command(disable_help_subcommand = true, subcommand_value_name = "COMMAND", subcommand_help_heading = "Commands")]
pub struct NetworkVerbs {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Create(create::CreateArgs),
    #[command(visible_alias = "list")]
    Ls(list::LsArgs),
    Inspect(inspect::InspectArgs),
    #[command(visible_alias = "remove")]
    Rm(remove::RmArgs),
    Prune(remove::PruneArgs),
    Connect(connect::ConnectArgs),
    Disconnect(connect::DisconnectArgs),
}

impl NetworkVerbs {
    /// Does it.
    pub fn execute(self) -> Result<i32, Failure> {
        let Some(verb) = self.verb else {
            let text = "a command is missing: create, ls, inspect, rm, prune, connect or disconnect".to_owned();
            return Err(Failure::Usage("network", text));
        };
        match verb {
            Verb::Create(args) => args.execute(),
            Verb::Ls(args) => args.execute(),
            Verb::Inspect(args) => args.execute(),
            Verb::Rm(args) => args.execute(),
            Verb::Prune(args) => args.execute(),
            Verb::Connect(args) => args.execute(),
            Verb::Disconnect(args) => args.execute(),
        }
    }
}

impl From<NetworkError> for Failure {
    fn from(error: NetworkError) -> Failure {
        Failure::Failed(error.into())
    }
}
