//! The one binary: chooses the command line by the name the program was called by.
use std::ffi::OsString;
use std::process::ExitCode;

use tapline::compat::Tool;

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    match words.first().and_then(|called| Tool::of(called)) {
        Some(tool) => tool.main(words),
        None => tapline::cli::main(words),
    }
}
