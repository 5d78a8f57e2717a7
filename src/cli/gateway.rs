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
use crate::plan::Logging;

/// The word that means this.
pub const VERB: &str = "gateway";

/// Does it; `words` follow the verb.
pub fn execute(words: &[OsString]) -> Result<i32, Failure> {
    let Some((fd, logging)) = parse(words) else {
        return Err(anyhow!("`gateway` is started by tapline itself: use `tapline run` or `tapline attach`").into());
    };
    rooms::start_logging(logging, &[]);
    Ok(rooms::gateway(fd)?)
}

/// The attach connection and what is said.
fn parse(words: &[OsString]) -> Option<(RawFd, Logging)> {
    let mut fd = None;
    let mut logging = Logging { verbosity: 0, json: false };
    let mut words = words.iter().map(OsString::as_os_str).map(OsStr::to_str);
    while let Some(word) = words.next() {
        match word? {
            "--fd" => fd = words.next()??.parse().ok().filter(|fd| *fd > 2),
            "-q" => logging.verbosity = -1,
            "-v" => logging.verbosity = logging.verbosity.saturating_add(1),
            "--log-format" => logging.json = words.next()?? == "json",
            _ => return None,
        }
    }
    Some((fd?, logging))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::logging;

    #[test]
    fn it_understands_what_a_supervisor_says() {
        for (verbosity, json) in [(0, false), (-1, true), (3, false)] {
            let logging = Logging { verbosity, json };
            let mut words: Vec<OsString> = vec!["--fd".into(), "7".into()];
            words.extend(logging::arguments(logging));
            assert_eq!(parse(&words), Some((7, logging)));
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
