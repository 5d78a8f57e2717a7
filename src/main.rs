//! The one binary: chooses the command line by the name the program was called by.
use std::process::ExitCode;

fn main() -> ExitCode {
    tapline::cli::main()
}
