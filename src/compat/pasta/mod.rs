//! The command line of pasta.
use std::ffi::OsString;
use std::process::ExitCode;

pub mod ports;

/// Runs it, `argv[0]` first; the process's exit status.
pub fn main(_words: Vec<OsString>) -> ExitCode {
    eprintln!("pasta: this command line is not served yet; use tapline attach or tapline run");
    ExitCode::FAILURE
}
