//! A process that stays and runs one probe after the other: `net console`, in a sandbox; `net target`, in a user and
//! network namespace that it makes for itself, as a container runtime would.
//!
//! It says `ready`, reads a probe's words from each line of its input, and answers `ok WHAT IT SAID` or `failed WHY`.
//! It ends when its input does.
use std::io::BufRead;
use std::process::ExitCode;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

use crate::probe;

/// Serve.
pub fn main() -> ExitCode {
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let words: Vec<&str> = line.split_whitespace().collect();
        match probe::probe(&words) {
            Ok(said) => println!("ok {}", said.replace('\n', " | ")),
            Err(why) => println!("failed {}", why.replace('\n', " | ")),
        }
    }
    ExitCode::SUCCESS
}

/// Serve in namespaces of our own.
pub fn target() -> ExitCode {
    match enter() {
        Ok(()) => main(),
        Err(why) => {
            println!("failed {why}");
            ExitCode::FAILURE
        }
    }
}

/// Make the namespaces, and become root in them.
pub fn enter() -> Result<(), String> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
        .map_err(|e| format!("this machine lets us make no namespace: {e}"))?;
    let write = |path: &str, text: String| std::fs::write(path, text).map_err(|e| format!("{path}: {e}"));
    write("/proc/self/setgroups", "deny".into())?;
    write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    write("/proc/self/gid_map", format!("0 {gid} 1"))
}
