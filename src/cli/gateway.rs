//! `tapline gateway`: what a supervisor starts. No person types it, so it is no subcommand of clap's, whose description
//! would cost a gateway time and memory; its few words are those of [`GatewayProcess`] and [`arguments`].
//!
//! [`GatewayProcess`]: crate::control::client::GatewayProcess
//! [`arguments`]: crate::observe::logging::arguments
use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;

use anyhow::anyhow;

use super::error::Failure;
use super::rooms;
use crate::control::gateway::Entrance;
use crate::observe::logging;
use crate::plan::Logging;

/// The word that means this.
pub const VERB: &str = "gateway";

/// Does it; `words` follow the verb.
pub fn execute(words: &[OsString]) -> Result<i32, Failure> {
    let Some(Words { entrance, logging, log_size }) = parse(words) else {
        return Err(anyhow!("`gateway` is started by tapline itself: use `tapline run` or `tapline attach`").into());
    };
    match log_size {
        Some(limit) => logging::init_as_file(logging, limit),
        None => rooms::start_logging(logging, &[]),
    }
    Ok(rooms::gateway(entrance)?)
}

/// What a supervisor has said.
#[derive(Debug, PartialEq, Eq)]
struct Words {
    /// Where supervisors come in.
    entrance: Entrance,
    /// What is said.
    logging: Logging,
    /// Standard error is a log file of at most so many bytes.
    log_size: Option<u64>,
}

fn parse(words: &[OsString]) -> Option<Words> {
    let mut entrance = None;
    let mut logging = Logging { verbosity: 0, json: false };
    let mut log_size = None;
    let mut words = words.iter().map(OsString::as_os_str).map(OsStr::to_str);
    while let Some(word) = words.next() {
        match word? {
            "--fd" => entrance = Some(Entrance::Connection(number(words.next()??)?)),
            "--listen" => entrance = Some(Entrance::Listener(number(words.next()??)?)),
            "-q" => logging.verbosity = -1,
            "-v" => logging.verbosity = logging.verbosity.saturating_add(1),
            "--log-format" => logging.json = words.next()?? == "json",
            "--log-size" => log_size = Some(words.next()??.parse().ok()?),
            _ => return None,
        }
    }
    Some(Words { entrance: entrance?, logging, log_size })
}

/// A descriptor that is none of the standard ones.
fn number(word: &str) -> Option<RawFd> {
    word.parse().ok().filter(|fd| *fd > 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_understands_what_a_supervisor_says() {
        for (verbosity, json) in [(0, false), (-1, true), (3, false)] {
            let logging = Logging { verbosity, json };
            for (word, entrance) in [("--fd", Entrance::Connection(7)), ("--listen", Entrance::Listener(7))] {
                let mut words: Vec<OsString> = vec![word.into(), "7".into()];
                words.extend(logging::arguments(logging));
                assert_eq!(parse(&words), Some(Words { entrance, logging, log_size: None }));
                words.extend(["--log-size".into(), "70000".into()]);
                assert_eq!(parse(&words), Some(Words { entrance, logging, log_size: Some(70_000) }));
            }
        }
    }

    #[test]
    fn it_understands_nothing_else() {
        for words in [&[][..], &["--fd"], &["--fd", "2"], &["--fd", "x"], &["--fd", "7", "--help"]] {
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            assert_eq!(parse(&words), None, "{words:?}");
        }
    }
}
