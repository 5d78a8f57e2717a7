//! The stage that gives a gateway namespaces of its own.
//!
//! # Theory of operation
//!
//! A user namespace, so that the rest can be had without privilege, and for good: what is no longer in the host's has
//! none of its capabilities, whatever happens. A mount namespace, for the root that comes next; a PID namespace: nobody else
//! can be seen, signalled, or traced; IPC and UTS, because they cost nothing. The network namespace stays the host's.
//!
//! Who made a PID namespace is not in it, and can have no more threads: only its next child is. So the gateway goes on in
//! a second process and the first ends. The second is a copy, not started anew, on purpose: memory of a program that
//! is started inside a user namespace may be read by whoever made that (ptrace(2)); that of a copy may not.
//!
//! As the first process of its namespace a gateway is spared signals that have no handler, so it gets one for SIGTERM:
//! whoever shuts the machine down, or ends the unit it belongs to, need not wait.
//!
//! Our own uid and gid are mapped onto themselves, so that who calls is told by the same numbers as before (SO_PEERCRED);
//! everybody else, root too, is `nobody` from here on. Below our user namespace there can be no other: its own
//! limit on their number becomes none.
//!
//! A kernel, an administrator or a container may refuse this. Then as much is taken as there is ([`ATTEMPTS`]), and
//! one sentence says what is missing and why.
use std::fs;
use std::io;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid};

use super::{Failure, Succession};
use crate::sys::proc::{self, Forked};
use crate::sys::refusal::{Facts, Reason};

const ALL: CloneFlags = CloneFlags::CLONE_NEWUSER
    .union(CloneFlags::CLONE_NEWPID)
    .union(CloneFlags::CLONE_NEWNS)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWUTS);

/// From the best to the least. Without a user namespace only who is privileged has the others.
const ATTEMPTS: [CloneFlags; 4] = [
    ALL,
    ALL.difference(CloneFlags::CLONE_NEWUSER),
    ALL.difference(CloneFlags::CLONE_NEWPID),
    CloneFlags::CLONE_NEWUSER.union(CloneFlags::CLONE_NEWNS),
];

const NAMES: [(CloneFlags, &str); 5] = [
    (CloneFlags::CLONE_NEWUSER, "user"),
    (CloneFlags::CLONE_NEWNS, "mount"),
    (CloneFlags::CLONE_NEWPID, "PID"),
    (CloneFlags::CLONE_NEWIPC, "IPC"),
    (CloneFlags::CLONE_NEWUTS, "UTS"),
];

/// What is said where nothing could be had.
const NOTHING: &str = "the gateway has no namespaces of its own, and sees the host's files and processes";

/// What came of it.
pub(super) struct Entered {
    /// There is a mount namespace, in which the root can be changed.
    pub(super) can_change_root: bool,
    /// What is missing, and why.
    pub(super) lack: Option<String>,
}

/// Enter new namespaces; returns in the process that is in them.
pub(super) fn enter(succession: Succession<'_>) -> Result<Entered, Failure> {
    let ids = (Uid::effective(), Gid::effective());
    // Some of it would still be given; but then there could be no more threads, and no second process.
    if !proc::is_alone() {
        let lack = Some(format!("{NOTHING}: it has several threads already"));
        return Ok(Entered { can_change_root: false, lack });
    }
    let (made, refused) = make();
    let lack = refused.map(|errno| missing(made, errno));
    if made.contains(CloneFlags::CLONE_NEWUSER) {
        map_ids(ids);
        // Read-only in many containers. What could be had in another one is refused by the later stages too.
        if let Err(error) = fs::write("/proc/sys/user/max_user_namespaces", "0") {
            tracing::debug!("the number of user namespaces below the gateway's own is not limited: {error}");
        }
    }
    succeed(succession, made.contains(CloneFlags::CLONE_NEWPID))
        .map_err(|error| ("start its second process", error))?;
    Ok(Entered { can_change_root: made.contains(CloneFlags::CLONE_NEWNS), lack })
}

/// Make what can be made; what was made, and why not all.
fn make() -> (CloneFlags, Option<Errno>) {
    let mut refused = None;
    for attempt in ATTEMPTS {
        match unshare(attempt) {
            Ok(()) => return (attempt, refused),
            Err(errno) => refused = refused.or(Some(errno)),
        }
    }
    (CloneFlags::empty(), refused)
}

/// One sentence for a refusal.
fn missing(made: CloneFlags, errno: Errno) -> String {
    if made.is_empty() {
        return format!("{NOTHING}: {}", Reason::of(errno, &Facts::gather()));
    }
    let names: Vec<&str> = NAMES.iter().filter(|(flag, _)| !made.contains(*flag)).map(|(_, name)| *name).collect();
    let what = format!("the gateway has no namespace of its own of these kinds: {}", names.join(", "));
    match made.contains(CloneFlags::CLONE_NEWUSER) {
        false => format!("{what}: {}", Reason::of(errno, &Facts::gather())),
        true => format!("{what}: {} (the limits are in /proc/sys/user)", io::Error::from(errno)),
    }
}

/// Ourselves onto ourselves (user_namespaces(7)). The ids are asked for beforehand: until they are mapped they look like
/// somebody else's. Root without CAP_SETFCAP may not do it, nor whoever AppArmor restricts. No right depends on it; but
/// then everybody looks alike to us, and who may call is left to the permissions of the socket.
fn map_ids((uid, gid): (Uid, Gid)) {
    let lines = [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("{uid} {uid} 1\n")),
        ("/proc/self/gid_map", format!("{gid} {gid} 1\n")),
    ];
    for (file, text) in lines {
        if let Err(error) = fs::write(file, text) {
            tracing::debug!("the gateway cannot write {file}: {error}");
        }
    }
}

/// Go on in a second process, where there has to be one.
fn succeed(succession: Succession<'_>, is_first: bool) -> io::Result<()> {
    match succession {
        Succession::Orphan(leave) => {
            if let Forked::Parent(_) = proc::fork()? {
                proc::exit_now(leave());
            }
        }
        Succession::Sibling(arrive) if is_first => {
            if let Forked::Parent(_) = proc::fork_sibling()? {
                proc::exit_now(0);
            }
            arrive()?;
        }
        Succession::Sibling(_) => {}
    }
    proc::end_on_sigterm()
}
