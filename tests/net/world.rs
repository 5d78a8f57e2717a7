//! Worlds: some cases need a host with other addresses, another resolv.conf or another /dev than this machine's.
//!
//! Such a case runs in a sandbox of tapline itself (`run --net none`, where nothing else is said), in which this very
//! program plays the host, `net case NAME`: it is root there, may give `lo` addresses, listen on port 53 and replace
//! files of /etc, and starts tapline in its turn. So these cases show nesting as well.
use std::net::IpAddr;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU32, Ordering};

use tapline::sys::netlink::{LinkChange, Netlink};

use crate::harness::*;
use crate::{cases, console};

/// The environment variable that holds the runtime directory of a world.
pub const DIR: &str = "TAPLINE_TEST_DIR";

/// Run the rest of a case in a world made with these options.
pub fn run(options: &[&str], case: &str) -> Result<(), Fault> {
    run_with(options, case, &[])
}

/// The same with environment variables.
pub fn run_with(options: &[&str], case: &str, variables: &[(&str, String)]) -> Result<(), Fault> {
    let mut command = command(&[&["run", "-q"], options, &["--"]].concat());
    command.arg(this_program()).args(["case", case]);
    finish(command.envs(variables.iter().map(|(name, value)| (name, value))))
}

/// The rest of a case in a user and a network namespace as the kernel makes them, but with `lo` up.
pub fn run_bare(case: &str) -> Result<(), Fault> {
    finish(Command::new(this_program()).args(["bare-case", case]))
}

fn finish(command: &mut Command) -> Result<(), Fault> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("tapline-world-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let dir = std::env::temp_dir().join(name);
    let out = command.env(DIR, &dir).output().map_err(|e| e.to_string())?;
    let _ = std::fs::remove_dir_all(&dir);
    holds(format!("in a world: {}{}", text(&out.stdout), text(&out.stderr)), out.status.success())
}

/// Make the bare namespaces, then the case of this name.
pub fn bare_main(name: &str) -> ExitCode {
    let up = || {
        console::enter()?;
        let mut netlink = Netlink::open().map_err(|e| e.to_string())?;
        let lo = netlink.link("lo").map_err(|e| e.to_string())?.index;
        netlink.change_link(lo, &LinkChange { up: Some(true), ..LinkChange::default() }).map_err(|e| e.to_string())
    };
    match up() {
        Ok(()) => main(name),
        Err(fault) => {
            eprintln!("{fault}");
            ExitCode::FAILURE
        }
    }
}

/// In the world: the case of this name.
pub fn main(name: &str) -> ExitCode {
    let Some((_, case)) = cases::inner().into_iter().find(|(n, _)| *n == name) else {
        eprintln!("there is no inner case {name}");
        return ExitCode::FAILURE;
    };
    match case() {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("{fault}");
            ExitCode::FAILURE
        }
    }
}

/// Give the world's `lo` an address.
pub fn add_address(ip: &str) -> Result<(), Fault> {
    let ip: IpAddr = ip.parse().map_err(|e| format!("{ip}: {e}"))?;
    let mut netlink = Netlink::open().map_err(|e| e.to_string())?;
    let lo = netlink.link("lo").map_err(|e| e.to_string())?.index;
    let prefix = if ip.is_ipv4() { 32 } else { 128 };
    netlink.add_address(lo, ip, prefix).map_err(|e| e.to_string())
}
