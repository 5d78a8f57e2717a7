//! tapline's own command line.
use std::process::ExitCode;

/// Runs the command line; the process's exit status.
pub fn main() -> ExitCode {
    ExitCode::FAILURE
}
