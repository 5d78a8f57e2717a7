//! User namespaces: making one, mapping ids, and saying why it is forbidden.
//!
//! Everything tapline does without privilege rests on one thing that an ordinary user may do: make a user namespace
//! in which it has every capability. Whoever administers a machine can take that away in four ways, and each has
//! its own way out, so a refusal is looked into before it is reported: a sysctl of Debian's, AppArmor's restriction
//! of unconfined programs (Ubuntu 23.10 and later), a container's seccomp filter, and the limit on their number.
//! The looking is [`Facts::gather`]; the judgement is [`Reason::of`] (both in [`sys::refusal`](crate::sys::refusal)).
//!
//! A process may map its own uid and gid itself, once setgroups(2) is denied (user_namespaces(7)). More than that
//! takes newuidmap and newgidmap, which are setuid programs that consult /etc/subuid and /etc/subgid; they are run
//! by the supervisor, from outside.
use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Gid, Uid};

use crate::plan::MapUser;
use crate::sys::proc::{self, Forked};
use crate::sys::refusal::{Facts, Reason};

/// Why there is no user namespace with the ids that were asked for.
#[derive(Debug, thiserror::Error)]
pub enum UsernsError {
    /// The kernel refused to make one.
    #[error("cannot make a user namespace: {0}")]
    Forbidden(Reason),
    /// An id map could not be written.
    #[error("cannot map ids into the user namespace ({file}): {error}{}", Reason::hint_for_maps())]
    Map {
        /// The file of /proc.
        file: &'static str,
        /// The kernel's answer.
        error: io::Error,
    },
    /// No subordinate range.
    #[error(
        "--map-user auto needs a range of subordinate ids, and {file} has none for {user}: add one with \
         `sudo usermod --add-sub{kind}s 100000-165535 {user}`, or use --map-user root"
    )]
    NoRange {
        /// `/etc/subuid` or `/etc/subgid`.
        file: &'static str,
        /// `uid` or `gid`.
        kind: &'static str,
        /// The user's name, or uid where there is no name.
        user: String,
    },
    /// newuidmap or newgidmap is not there.
    #[error(
        "--map-user auto needs the program {0}, which is not installed: install it (Debian and Ubuntu: package uidmap, \
         Fedora: shadow-utils), or use --map-user root"
    )]
    NoTool(&'static str),
    /// newuidmap or newgidmap failed.
    #[error("{tool} failed: {message}; check that it is setuid root, and the ranges in /etc/subuid and /etc/subgid")]
    Tool {
        /// Which one.
        tool: &'static str,
        /// What it said.
        message: String,
    },
}

/// unshare(2) a user namespace, and with it the others that `with` names.
pub fn enter_new(with: CloneFlags) -> Result<(), UsernsError> {
    unshare(CloneFlags::CLONE_NEWUSER | with)
        .map_err(|errno| UsernsError::Forbidden(Reason::of(errno, &Facts::gather())))
}

/// One line of an id map: ids inside, outside, how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First id inside.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// The caller's ids as they are before any namespace is made.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// Effective uid.
    pub uid: Uid,
    /// Effective gid.
    pub gid: Gid,
}

impl Caller {
    /// Of this process.
    pub fn current() -> Caller {
        Caller { uid: Uid::effective(), gid: Gid::effective() }
    }
}

/// In a new user namespace: map the one uid and gid that a process may map itself, as root or as they are.
pub fn map_self(caller: Caller, map: MapUser) -> Result<(), UsernsError> {
    let (uid, gid) = match map {
        MapUser::Keep => (caller.uid.as_raw(), caller.gid.as_raw()),
        MapUser::Root | MapUser::Auto => (0, 0),
    };
    write_map("/proc/self/setgroups", "deny")?;
    write_map("/proc/self/uid_map", &format!("{uid} {} 1\n", caller.uid))?;
    write_map("/proc/self/gid_map", &format!("{gid} {} 1\n", caller.gid))
}

/// Make a user namespace nested in the caller's, and whatever `with` names, in which every id is what it is in the
/// caller's. One id a process can map itself; for more, a child forked beforehand, which still has its capabilities in
/// the caller's namespace, writes the maps (user_namespaces(7)). The caller must be a process that is about to exec.
pub fn nest(with: CloneFlags) -> Result<(), UsernsError> {
    let identity = |file: &'static str| -> Result<Vec<Extent>, UsernsError> {
        let text = fs::read_to_string(file).map_err(|error| UsernsError::Map { file, error })?;
        Ok(identity_map(&text))
    };
    let (uids, gids) = (identity("/proc/self/uid_map")?, identity("/proc/self/gid_map")?);
    if !needs_helper(&uids) && !needs_helper(&gids) {
        let caller = Caller::current();
        enter_new(with)?;
        return map_self(caller, MapUser::Keep);
    }
    let failed = |error: io::Error| UsernsError::Map { file: "/proc/self/uid_map", error };
    let own = nix::unistd::getpid();
    // Where /proc shows another PID namespace the number that it has for this process is another one.
    let in_proc = fs::read_link("/proc/self").map_err(failed)?;
    let (mut made, tell) = io::pipe().map_err(failed)?;
    match proc::fork().map_err(failed)? {
        Forked::Child => {
            drop(tell);
            // Wait for the namespace: the other end of the pipe is closed, after a byte when it was made.
            let mut byte = [0];
            let lines = |map: &[Extent]| -> String {
                map.iter().map(|e| format!("{} {} {}\n", e.inside, e.outside, e.count)).collect()
            };
            let dir = Path::new("/proc").join(in_proc);
            let written = made
                .read_exact(&mut byte)
                .and_then(|()| fs::write(dir.join("uid_map"), lines(&uids)))
                .and_then(|()| fs::write(dir.join("gid_map"), lines(&gids)));
            proc::exit_now(written.err().map_or(0, |e| e.raw_os_error().unwrap_or(libc::EIO)));
        }
        Forked::Parent(helper) => {
            drop(made);
            let entered = enter_new(with);
            let mut tell = tell;
            if entered.is_ok() {
                tell.write_all(b"1").map_err(failed)?;
            }
            drop(tell);
            let status = waitpid(helper, None).map_err(|e| failed(e.into()))?;
            entered?;
            match status {
                WaitStatus::Exited(_, 0) => Ok(()),
                WaitStatus::Exited(_, errno) => Err(failed(io::Error::from_raw_os_error(errno))),
                _ => Err(failed(io::Error::other(format!("the helper of {own} was killed")))),
            }
        }
    }
}

/// The map of a namespace in which every id of the one with this uid_map or gid_map is itself.
fn identity_map(text: &str) -> Vec<Extent> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace().map(str::parse::<u32>);
            let (inside, _, count) = (fields.next()?.ok()?, fields.next()?.ok()?, fields.next()?.ok()?);
            Some(Extent { inside, outside: inside, count })
        })
        .collect()
}

fn needs_helper(map: &[Extent]) -> bool {
    !matches!(map, [Extent { count: 1, .. }])
}

fn write_map(file: &'static str, text: &str) -> Result<(), UsernsError> {
    fs::write(file, text).map_err(|error| UsernsError::Map { file, error })
}

/// Map 0 to the caller and 1 upwards to the caller's whole subordinate ranges, in the user namespace of `pid`.
pub fn map_subordinate(pid: nix::unistd::Pid, caller: Caller) -> Result<(), UsernsError> {
    let name = user_name(caller.uid);
    let extents = |file: &'static str, kind, own| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let ranges = subordinate_ranges(&text, name.as_deref(), caller.uid);
        if ranges.is_empty() {
            let user = name.clone().unwrap_or_else(|| caller.uid.to_string());
            return Err(UsernsError::NoRange { file, kind, user });
        }
        Ok(whole_map(own, &ranges))
    };
    let uids = extents("/etc/subuid", "uid", caller.uid.as_raw())?;
    let gids = extents("/etc/subgid", "gid", caller.gid.as_raw())?;
    run_tool("newuidmap", pid, &uids)?;
    run_tool("newgidmap", pid, &gids)
}

fn run_tool(tool: &'static str, pid: nix::unistd::Pid, extents: &[Extent]) -> Result<(), UsernsError> {
    let mut command = Command::new(tool);
    command.arg(pid.to_string());
    for e in extents {
        command.args([e.inside.to_string(), e.outside.to_string(), e.count.to_string()]);
    }
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let message = said.lines().next().unwrap_or("it did not say why").to_owned();
            Err(UsernsError::Tool { tool, message })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(UsernsError::NoTool(tool)),
        Err(error) => Err(UsernsError::Tool { tool, message: error.to_string() }),
    }
}

/// The name of a uid in /etc/passwd (passwd(5)), without loading name service modules.
fn user_name(uid: Uid) -> Option<String> {
    let passwd = fs::read_to_string(Path::new("/etc/passwd")).unwrap_or_default();
    let from_file = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse::<u32>().ok()? == uid.as_raw()).then(|| name.to_owned())
    });
    from_file.or_else(|| std::env::var("USER").ok())
}

/// The ranges `(first, count)` that a text in the form of subuid(5) gives to a user, by name or by uid.
pub fn subordinate_ranges(text: &str, name: Option<&str>, uid: Uid) -> Vec<(u32, u32)> {
    let number = uid.to_string();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let (who, first, count) = (fields.next()?, fields.next()?, fields.next()?);
            let ours = who == number || Some(who) == name;
            let (first, count): (u32, u32) = (first.trim().parse().ok()?, count.trim().parse().ok()?);
            (ours && count > 0 && first.checked_add(count - 1).is_some()).then_some((first, count))
        })
        .collect()
}

/// 0 is the caller, then the ranges one after the other.
pub fn whole_map(own: u32, ranges: &[(u32, u32)]) -> Vec<Extent> {
    let mut map = vec![Extent { inside: 0, outside: own, count: 1 }];
    let mut next: u32 = 1;
    for &(first, count) in ranges {
        let Some(after) = next.checked_add(count) else { break };
        map.push(Extent { inside: next, outside: first, count });
        next = after;
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_ids_are_what_they_were() {
        let map = identity_map("         0       1001          1\n         1     100000      65536\n");
        assert_eq!(map, [Extent { inside: 0, outside: 0, count: 1 }, Extent { inside: 1, outside: 1, count: 65_536 }]);
        assert!(needs_helper(&map) && !needs_helper(&map[..1]));
    }

    #[test]
    fn every_range_of_the_user_is_mapped_one_after_the_other() {
        let text = "other:1:5\nme:100000:65536\n# me:9:9\n1000:300000:10\nme:bad:1\nme:7:0\nme:4294967295:2\n";
        let ranges = subordinate_ranges(text, Some("me"), Uid::from_raw(1000));
        assert_eq!(ranges, [(100_000, 65_536), (300_000, 10)]);
        let map = whole_map(1000, &ranges);
        assert_eq!(
            map,
            [
                Extent { inside: 0, outside: 1000, count: 1 },
                Extent { inside: 1, outside: 100_000, count: 65_536 },
                Extent { inside: 65_537, outside: 300_000, count: 10 },
            ]
        );
        assert!(subordinate_ranges(text, Some("nobody"), Uid::from_raw(65534)).is_empty());
    }
}
