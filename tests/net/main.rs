//! Real sandboxes, real TAPs, real sockets.
//!
//! The servers are threads of this process on the host's loopback; the clients run inside sandboxes. As a fresh
//! machine has neither curl nor ip, the client is this very program: called as `net probe WHAT ...` it is a small
//! network client ([`probe`]) that prints one line of what it saw. What else it can be called as is told in
//! [`console`], [`terminal`] and [`world`]. Everything else is `libtest-mimic`, so the usual arguments of
//! `cargo test` work.
//!
//! Where user namespaces are forbidden the first test says so and every other fails: nothing here passes by
//! doing nothing.
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

mod cases;
mod console;
mod harness;
mod probe;
mod terminal;
mod world;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    match words.get(1).map(String::as_str) {
        Some("probe") => return probe::main(&words[2..]),
        Some("console") => return console::main(),
        Some("target") => return console::target(),
        Some("on-terminal") if words.len() > 3 => return terminal::main(&words[2], &words[3..]),
        Some("case") if words.len() == 3 => return world::main(&words[2]),
        Some("bare-case") if words.len() == 3 => return world::bare_main(&words[2]),
        _ => {}
    }
    raise_descriptor_limit();
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
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    let _ = std::fs::remove_dir_all(harness::runtime_dir());
    conclusion.exit_code()
}

/// Ten thousand connections take as many descriptors at the server's end.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
