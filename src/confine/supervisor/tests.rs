//! What a supervisor has given up, and that the gateway that it starts can still give up more.
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::sys::testing::{empty_call, in_child, in_namespace};

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Each field has this value?
fn has(expected: &[(&str, &str)]) -> Result<(), String> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(text)?;
    for (name, value) in expected {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
        if line != *value {
            return Err(format!("{name} {line}"));
        }
    }
    Ok(())
}

#[test]
fn a_supervisor_keeps_the_capability_to_bind_or_to_enter_and_no_other() {
    // Root of a namespace of its own has them all.
    for (keep, left) in [(Keep::ToBind, "0000000080000400"), (Keep::ToEnter, "0000000080283404")] {
        in_namespace(|| {
            let lacks = supervisor(keep).map_err(text)?;
            has(&[("CapPrm:", left), ("CapEff:", left), ("CapBnd:", left), ("NoNewPrivs:", "1"), ("Seccomp:", "2")])?;
            if prctl::get_dumpable().map_err(text)? || !lacks.is_empty() {
                return Err(format!("{lacks:?}"));
            }
            for call in KERNEL.iter().chain(TRACING) {
                match empty_call(*call) {
                    Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
                    other => return Err(format!("call {call}: {other:?}")),
                }
            }
            Ok(())
        });
    }
}

#[test]
fn what_a_supervisor_starts_can_still_make_namespaces_and_an_empty_root() {
    in_child(|| {
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        supervisor(Keep::ToBind).map_err(text)?;
        let status = std::process::Command::new("/bin/true").status().map_err(text)?;
        if !status.success() {
            return Err(text(status));
        }
        // As the program is executed anew, it is dumpable again.
        prctl::set_dumpable(true).map_err(text)?;
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(text)?;
        std::fs::write("/proc/self/setgroups", "deny").map_err(text)?;
        std::fs::write("/proc/self/uid_map", format!("{uid} {uid} 1")).map_err(text)?;
        std::fs::write("/proc/self/gid_map", format!("{gid} {gid} 1")).map_err(text)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).map_err(text)?;
        mount(Some("tmpfs"), "/tmp", Some("tmpfs"), MsFlags::empty(), None::<&str>).map_err(text)?;
        nix::unistd::pivot_root("/tmp", "/tmp").map_err(text)
    });
}
