//! The one binary: chooses the command line by the name the program was called by.
use std::ffi::OsString;
use std::process::ExitCode;

use tapline::compat::Tool;
use tapline::sys::proc;

fn main() -> ExitCode {
    proc::survive_file_limit();
    let words: Vec<OsString> = std::env::args_os().collect();
    match words.first().and_then(|called| Tool::of(called)) {
        Some(tool) => tool.main(words),
        None => tapline::cli::main(words),
    }
}
