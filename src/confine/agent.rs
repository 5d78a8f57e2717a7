//! What an agent gives up, and the process that minds a command.
//!
//! # Theory of operation
//!
//! An agent is root of the sandbox's user namespace, as CMD is, but outside CMD's PID and mount namespace and on the
//! host's files. CMD must not gain anything by taking it over. It enters its stages when it has made the interfaces that
//! were asked for, before it hands them over, so before anything of the sandbox can speak to it; init is forked before
//! that, because all of this is inherited:
//!
//! 1. *Descriptors* (its caller closes them): nothing is open but the connection to the supervisor. No file, socket or
//!    namespace of anybody else's can be used.
//! 2. *Memory*: not dumpable (from the start, see [`crate::sandbox`]), no core files. Nobody without rights on the host
//!    can trace it, look into it or have it written down.
//! 3. *Privileges*: no_new_privs, and of the capabilities over the sandbox only those that interfaces and listeners take:
//!    CAP_NET_ADMIN, CAP_NET_RAW, CAP_NET_BIND_SERVICE; CAP_SYS_ADMIN only where links have to be veth pairs, whose far
//!    half needs another network namespace. The bounding set is the same. No other can be had again.
//! 4. *Files* (Landlock): nothing can be opened but /dev/net/tun, the network's sysctls, and /dev/null. No mount, no
//!    Unix socket in a file system, no other process's memory.
//! 5. *Calls* (seccomp): no program can be executed, no process or thread made, no namespace made or entered (but for
//!    that of a veth pair), nothing mounted or traced, no user changed, and the parts of the kernel that it never needs
//!    cannot be reached.
//!
//! Who *minds* a command (init, and the process that `tapline exec` leaves inside) keeps less: CAP_KILL, to pass signals
//! on, and no files at all. It stays dumpable where others have to find the namespaces through it.
use std::io;
use std::os::fd::OwnedFd;

use landlock::{AccessFs, BitFlags};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};

use super::forbidden::{self, EXECUTION, Family, IDENTITY, KERNEL, MOUNTS, NAMESPACES, OLD, PROCESSES, TRACING};
use super::{ConfineError, Stage, paths};
use crate::sys::caps::{self, Capability};

/// A process that is confined.
#[derive(Debug)]
#[must_use = "to be kept as long as the process needs its files"]
pub struct Confined {
    /// What could not be had, a sentence each.
    pub lacks: Vec<String>,
    _pins: Vec<OwnedFd>,
}

const NEVER: &[Family] = &[EXECUTION, PROCESSES, OLD, MOUNTS, NAMESPACES, TRACING, IDENTITY, KERNEL];

/// Confine an agent. With `makes_veth` it can go on making links that are veth pairs.
pub fn agent(makes_veth: bool) -> Result<Confined, ConfineError> {
    let mut keep = vec![Capability::NetAdmin, Capability::NetRaw, Capability::NetBindService];
    keep.extend(makes_veth.then_some(Capability::SysAdmin));
    let file = AccessFs::ReadFile | AccessFs::WriteFile;
    let left = [
        ("/dev/net/tun", file | AccessFs::IoctlDev),
        ("/proc/sys/net", file | AccessFs::ReadDir | AccessFs::Truncate),
        // Which groups may open ping sockets.
        ("/proc/self/gid_map", BitFlags::from(AccessFs::ReadFile)),
        // For its standard streams.
        ("/dev/null", file),
    ];
    enter("agent", &keep, &left, makes_veth.then_some(libc::CLONE_NEWNET))
}

/// Confine who minds a command and does nothing else any more.
pub fn minder() -> Result<Confined, ConfineError> {
    enter("first process", &[Capability::Kill], &[], None)
}

fn enter(
    who: &str,
    keep: &[Capability],
    left: &[paths::Left],
    may_make: Option<libc::c_int>,
) -> Result<Confined, ConfineError> {
    let failed = |stage, operation| move |error: io::Error| ConfineError { stage, operation, error };
    let limited = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    limited.map_err(|error| failed(Stage::Memory, "RLIMIT_CORE")(error.into()))?;
    prctl::set_no_new_privs().map_err(|error| failed(Stage::Privileges, "no_new_privs")(error.into()))?;
    caps::keep_only(keep).map_err(failed(Stage::Privileges, "drop capabilities"))?;
    let mut lacks = Vec::new();
    let pins = paths::leave(left).unwrap_or_else(|why| {
        lacks.push(format!("the sandbox's {who} may open the files that its user may: {why}"));
        Vec::new()
    });
    if let Err(why) = forbidden::refuse(NEVER, may_make) {
        lacks.push(format!("the sandbox's {who} keeps system calls that it does not need: no seccomp filter ({why})"));
    }
    Ok(Confined { lacks, _pins: pins })
}

#[cfg(test)]
mod tests;
