//! What the person reads when something is wrong: one line that says what, why and what to do. (A mistake in a port
//! spec is shown below that line as well.)
use std::error::Error as _;
use std::fmt::Write as _;
use std::io;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::plan::SpecError;

/// Exit status of a command line that makes no sense.
pub const USAGE: u8 = 2;
/// Exit status when tapline itself failed, as with env(1), chroot(1) and docker-run(1).
pub const FAILED: u8 = 125;

/// Why the command line ended early.
#[derive(Debug)]
pub enum Failure {
    /// What clap has to say: a mistake in the command line, or a help text that was asked for.
    Clap(clap::Error),
    /// A command line that makes no sense; the subcommand whose help would tell more.
    Usage(&'static str, String),
    /// Anything else.
    Failed(anyhow::Error),
}

impl From<clap::Error> for Failure {
    fn from(error: clap::Error) -> Failure {
        Failure::Clap(error)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::Failed(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Failed(error.into())
    }
}

impl From<crate::control::state::StateError> for Failure {
    fn from(error: crate::control::state::StateError) -> Failure {
        Failure::Failed(error.into())
    }
}

impl Failure {
    /// Tells the person and chooses the exit status.
    pub fn report(self) -> i32 {
        match self {
            Failure::Clap(error) if !error.use_stderr() => match super::output::print(&error.render().to_string()) {
                Ok(()) => 0,
                Err(error) => Failure::from(error).report(),
            },
            Failure::Clap(error) => {
                say(&one_line(&error));
                hint(subcommand_of(&error).or_else(typed_subcommand).as_deref());
                USAGE.into()
            }
            Failure::Usage(verb, text) => {
                say(&text);
                hint(Some(verb));
                USAGE.into()
            }
            // Whoever read us has read enough.
            Failure::Failed(error) if is_broken_pipe(&error) => 0,
            Failure::Failed(error) => {
                say(&format!("{error:#}"));
                FAILED.into()
            }
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// A line on standard error; that it cannot be written cannot be told to anybody.
pub fn say(text: &str) {
    let _ = io::Write::write_all(&mut io::stderr(), format!("tapline: {text}\n").as_bytes());
}

fn hint(verb: Option<&str>) {
    let verb = verb.map(|verb| format!("{verb} ")).unwrap_or_default();
    let _ = io::Write::write_all(&mut io::stderr(), format!("try 'tapline {verb}--help'\n").as_bytes());
}

/// Which subcommand a mistake was made in, read off the usage line that clap adds to its errors.
fn subcommand_of(error: &clap::Error) -> Option<String> {
    let usage = match error.get(ContextKind::Usage)? {
        ContextValue::StyledStr(usage) => usage.to_string(),
        _ => return None,
    };
    let words = usage.split_whitespace().skip_while(|word| *word != "tapline").skip(1);
    let verbs: Vec<&str> = words.take_while(|word| word.bytes().all(|b| b.is_ascii_lowercase())).collect();
    (!verbs.is_empty()).then(|| verbs.join(" "))
}

/// Likewise off the command line, for the errors that clap adds no usage to.
fn typed_subcommand() -> Option<String> {
    let description = super::command();
    let mut here = &description;
    let mut verbs = Vec::new();
    for word in std::env::args_os().skip(1) {
        let Some(next) = here.find_subcommand(word) else { break };
        verbs.push(next.get_name());
        here = next;
    }
    (!verbs.is_empty()).then(|| verbs.join(" "))
}

/// What clap would say in a paragraph, in a line.
pub fn one_line(error: &clap::Error) -> String {
    let word = |kind| match error.get(kind) {
        Some(ContextValue::String(word)) => Some(word.clone()),
        Some(ContextValue::Strings(words)) if !words.is_empty() => Some(words.join(", ")),
        Some(ContextValue::StyledStrs(words)) if !words.is_empty() => Some(words[0].to_string()),
        _ => None,
    };
    let argument = word(ContextKind::InvalidArg).unwrap_or_default();
    let value = word(ContextKind::InvalidValue).unwrap_or_default();
    match error.kind() {
        ErrorKind::UnknownArgument => {
            let mut line = if argument.starts_with('-') {
                format!("unknown option '{argument}'")
            } else {
                format!("unexpected argument '{argument}'")
            };
            if let Some(nearest) = word(ContextKind::SuggestedArg) {
                let _ = write!(line, "; did you mean '{nearest}'?");
            }
            line
        }
        ErrorKind::InvalidSubcommand => {
            let mut line = format!("unknown command '{}'", word(ContextKind::InvalidSubcommand).unwrap_or_default());
            if let Some(nearest) = word(ContextKind::SuggestedSubcommand) {
                let _ = write!(line, "; did you mean '{nearest}'?");
            }
            line
        }
        ErrorKind::InvalidValue if value.is_empty() => format!("'{argument}' needs a value"),
        ErrorKind::InvalidValue => {
            let valid = word(ContextKind::ValidValue).unwrap_or_default();
            format!("'{value}' is no value for '{argument}': possible are {valid}")
        }
        ErrorKind::ValueValidation => {
            if let Some(fault) = error.source().and_then(|source| source.downcast_ref::<SpecError>()) {
                return fault.to_string();
            }
            let reason = error.source().map(|source| source.to_string()).unwrap_or_default();
            format!("'{value}' is no value for '{argument}': {reason}")
        }
        ErrorKind::ArgumentConflict => {
            let other = word(ContextKind::PriorArg).unwrap_or_default();
            format!("'{argument}' contradicts '{other}': give one of them")
        }
        ErrorKind::MissingRequiredArgument => format!("something is missing: {argument}"),
        _ => first_paragraph(&error.render().to_string()),
    }
}

fn first_paragraph(text: &str) -> String {
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let line = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}
