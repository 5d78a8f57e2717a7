//! tapline's own command line.
//!
//! # Theory of operation
//!
//! Each subcommand has a file with what can be typed (a clap structure) and what is done about it. Two words are
//! kept apart: the structures here hold what was *typed*, [`crate::plan`] what it *means*; the way from one to the
//! other is [`options`] and the subcommand's own file, and nobody behind it looks at an option again.
//!
//! Options come from two places: the command line and the configuration file ([`config`]). There is only one
//! description of them, clap's: a key of the file becomes the option of that name, put in front of those that were
//! typed, unless the same option, or one that contradicts it, was typed. Help texts, manual pages ([`man`]) and
//! completions come from that description too; what clap has no place for (examples, exit statuses, files,
//! environment) stands in [`pages`].
//!
//! Whatever goes wrong before CMD runs is one line on standard error: what, why, what to do ([`error`]). A command
//! line that makes no sense ends with 2, everything else that is tapline's fault or its host's with 125, and the
//! rest is CMD's own status. A reader that went away (`tapline ps | head -1`) is no error.
//!
//! [`command`] and [`main`] are all that the outside sees. The gateway is this program too, under a word of its own
//! ([`gateway`]): it starts without clap and without looking at any configuration.
use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

mod attach;
mod completions;
pub(crate) mod config;
mod document;
mod dry_run;
mod error;
mod exec;
mod gateway;
mod inspect;
mod link_as;
mod man;
mod net_options;
mod network;
pub(crate) mod oci_hook;
mod options;
mod output;
mod pages;
mod port;
mod port_options;
mod ps;
mod publish;
mod rooms;
mod run;
mod stop;
mod unpublish;
mod values;

use error::Failure;

/// Rootless networking for containers and sandboxes
///
/// tapline gives a command, or a namespace that a container runtime made, a network of its own, without any
/// privilege on the host: an interface with addresses, routes and name resolution inside, ordinary sockets of an
/// ordinary user outside.
#[derive(Debug, Parser)]
#[command(name = "tapline", version, max_term_width = 100, args_override_self = true)]
#[command(disable_help_subcommand = true, subcommand_value_name = "COMMAND", subcommand_help_heading = "Commands")]
struct Cli {
    #[command(subcommand)]
    command: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(Box<run::RunArgs>),
    Attach(Box<attach::AttachArgs>),
    Exec(exec::ExecArgs),
    Ps(ps::PsArgs),
    Inspect(inspect::InspectArgs),
    Network(network::NetworkVerbs),
    Port(port::PortArgs),
    Publish(publish::PublishArgs),
    Unpublish(unpublish::UnpublishArgs),
    Stop(stop::StopArgs),
    LinkAs(link_as::LinkAsArgs),
    OciHook(oci_hook::OciHookArgs),
    Completions(completions::CompletionsArgs),
    #[command(hide = true)]
    Man(man::ManArgs),
}

/// The description of the command line: what completions, manual pages and tests are made from.
pub fn command() -> clap::Command {
    pages::with_help(config::with_off_switches(Cli::command()))
}

/// The manual pages, by file name, as `tapline man DIR` writes them.
///
/// # Errors
/// None in practice: they are written to memory.
pub fn manual_pages() -> std::io::Result<Vec<(String, Vec<u8>)>> {
    man::pages(command())
}

/// Runs the command line, `argv[0]` first; the process's exit status.
pub fn main(words: Vec<OsString>) -> ExitCode {
    let status = match dispatch(words) {
        Ok(status) => status,
        Err(failure) => failure.report(),
    };
    // A status is what wait(2) gives: 0 to 255.
    ExitCode::from(u8::try_from(status).unwrap_or(error::FAILED))
}

fn dispatch(words: Vec<OsString>) -> Result<i32, Failure> {
    if let [_, verb, rest @ ..] = &words[..]
        && verb == gateway::VERB
    {
        return gateway::execute(rest);
    }
    let Some(verb) = parse(words)?.command else {
        output::print(pages::GREETING)?;
        return Ok(0);
    };
    match verb {
        Verb::Run(args) => args.execute(),
        Verb::Attach(args) => args.execute(),
        Verb::Exec(args) => args.execute(),
        Verb::Ps(args) => args.execute(),
        Verb::Inspect(args) => args.execute(),
        Verb::Network(args) => args.execute(),
        Verb::Port(args) => args.execute(),
        Verb::Publish(args) => args.execute(),
        Verb::Unpublish(args) => args.execute(),
        Verb::Stop(args) => args.execute(),
        Verb::LinkAs(args) => args.execute(),
        Verb::OciHook(args) => args.execute(),
        Verb::Completions(args) => args.execute(),
        Verb::Man(args) => args.execute(),
    }
}

/// What was typed and what the configuration file adds. clap's description and matches, some hundreds of kilobytes,
/// do not outlive this.
fn parse(words: Vec<OsString>) -> Result<Cli, Failure> {
    let typed = command().try_get_matches_from(words.clone())?;
    let (verb, given) = match typed.subcommand() {
        Some(("run", given)) => ("run", given),
        Some(("attach", given)) => ("attach", given),
        _ => return Ok(Cli::from_arg_matches(&typed)?),
    };
    if let Some(text) = options::contradiction(given) {
        return Err(Failure::Usage(verb, text));
    }
    let merged = config::words(verb, given)?.map(|found| config::merge(words, verb, found)).transpose()?;
    let cli = Cli::from_arg_matches(merged.as_ref().unwrap_or(&typed))?;
    match &cli.command {
        Some(Verb::Run(args)) => args.check_effects(given)?,
        Some(Verb::Attach(args)) => args.check_effects(given)?,
        _ => {}
    }
    Ok(cli)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_description_holds_together() {
        super::command().debug_assert();
    }
}
