//! Real sandboxes, real TAPs, real sockets.
//!
//! The servers are threads of this process on the host's loopback; the clients run inside sandboxes. As a fresh
//! machine has neither curl nor ip, the client is this very program: called as `net probe WHAT ...` it is a small
//! network client ([`probe`]) that prints one line of what it saw. Everything else is `libtest-mimic`, so the
//! usual arguments of `cargo test` work.
//!
//! Where user namespaces are forbidden the first test says so and every other fails: nothing here passes by
//! doing nothing.
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

mod cases;
mod harness;
mod probe;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    if words.get(1).is_some_and(|w| w == "probe") {
        return probe::main(&words[2..]);
    }
    let mut arguments = Arguments::from_args();
    if arguments.test_threads.is_none() {
        // Sandboxes are cheap, but the machine may have two cores and some cases wait for a second.
        arguments.test_threads = Some(4);
    }
    let trials = cases::all().into_iter().map(|(name, case)| {
        Trial::test(name, move || {
            harness::require_user_namespaces()?;
            case().map_err(Failed::from)
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
