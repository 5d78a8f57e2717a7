//! Capabilities: giving up all of them, for good, or all but a few with the identity (capabilities(7)).
use std::io;

use nix::unistd::{Gid, Uid};

/// The header and data of capset(2), version 3 (linux/capability.h).
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const VERSION_3: u32 = 0x2008_0522;

/// A capability, by its number (linux/capability.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Capability {
    /// CAP_DAC_READ_SEARCH: find and read files whatever their permissions.
    DacReadSearch = 2,
    /// CAP_KILL: send signals to processes of other users.
    Kill = 5,
    /// CAP_NET_BIND_SERVICE: bind ports below 1024.
    NetBindService = 10,
    /// CAP_NET_ADMIN: make and set up interfaces.
    NetAdmin = 12,
    /// CAP_NET_RAW: packet sockets.
    NetRaw = 13,
    /// CAP_SYS_PTRACE: open other processes' namespaces.
    SysPtrace = 19,
    /// CAP_SYS_ADMIN: enter namespaces.
    SysAdmin = 21,
    /// CAP_SETFCAP: map root into a user namespace (user_namespaces(7)).
    SetFcap = 31,
}

/// Become another user, in one group alone, and keep of the capabilities only those of `keep` that there are; a program
/// that is executed later has none of them. For a process with one thread.
///
/// The process stays dumpable: its files in /proc are its own, as if it had been started by that user.
pub fn change_identity(uid: Uid, gid: Gid, keep: &[Capability]) -> io::Result<()> {
    nix::unistd::setgroups(&[])?;
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::sys::prctl::set_keepcaps(true)?;
    nix::unistd::setresuid(uid, uid, uid)?;
    let header = Header { version: VERSION_3, pid: 0 };
    // All of them are among the first 32.
    let mask = keep.iter().fold(0, |mask, capability| mask | 1 << *capability as u32) & permitted()?;
    let none = Data { effective: 0, permitted: 0, inheritable: 0 };
    let data = [Data { effective: mask, permitted: mask, inheritable: 0 }, none];
    // SAFETY: as above, and both are read.
    if unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    nix::sys::prctl::set_keepcaps(false)?;
    Ok(nix::sys::prctl::set_dumpable(true)?)
}

/// Drop every capability of the calling thread, and of the threads and programs it starts later: the bounding set
/// (where CAP_SETPCAP allows it), the ambient set, and the effective, permitted and inheritable sets. A thread that
/// has none is left as it is.
pub fn drop_all() -> io::Result<()> {
    keep_only(&[])
}

/// Likewise, but for these, which a thread keeps that has them. A program that it starts has them only if it is root's.
pub fn keep_only(keep: &[Capability]) -> io::Result<()> {
    let keep = keep.iter().fold(0, |mask, capability| mask | 1 << *capability as u32);
    for capability in (0..64).filter(|number| *number >= 32 || keep & 1 << number == 0) {
        // SAFETY: PR_CAPBSET_DROP takes a number and touches no memory of ours. EINVAL says that there is no such
        // capability, EPERM that the bounding set is not ours to change: it then bounds nothing that we could gain.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } < 0 {
            break;
        }
    }
    // SAFETY: as above. It fails only where the kernel has no ambient set (before 4.3).
    let _ = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    let mask = permitted()? & keep;
    let none = Data { effective: 0, permitted: 0, inheritable: 0 };
    let data = [Data { effective: mask, permitted: mask, inheritable: 0 }, none];
    let header = Header { version: VERSION_3, pid: 0 };
    // SAFETY: version 3 reads one header and two data structures, which live until the call returns; pid 0 is the
    // calling thread.
    if unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Has the calling thread this one?
pub fn has(capability: Capability) -> bool {
    permitted().is_ok_and(|mask| mask & 1 << capability as u32 != 0)
}

/// Of the first 32.
fn permitted() -> io::Result<u32> {
    let header = Header { version: VERSION_3, pid: 0 };
    let mut have = [Data { effective: 0, permitted: 0, inheritable: 0 }; 2];
    // SAFETY: version 3 reads one header and writes two data structures, which live until the call returns.
    if unsafe { libc::syscall(libc::SYS_capget, &raw const header, have.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(have[0].permitted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_identity_keeps_what_it_was_left() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        // In a process of its own: glibc changes the ids of all threads.
        // SAFETY: the child makes system calls and ends without touching what other threads may have locked.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => {
                let (uid, gid) = (Uid::from_raw(65534), Gid::from_raw(65533));
                let changed = change_identity(uid, gid, &[Capability::NetBindService, Capability::SysAdmin]).is_ok();
                let is = changed && Uid::effective() == uid && Gid::effective() == gid;
                // The files in /proc are the new user's.
                let own = nix::unistd::access("/proc/self/uid_map", nix::unistd::AccessFlags::W_OK).is_ok();
                let again = nix::unistd::setuid(Uid::from_raw(0)).is_err();
                // SAFETY: _exit(2) has no preconditions.
                unsafe { libc::_exit(i32::from(!(is && own && again))) }
            }
            nix::unistd::ForkResult::Parent { child } => {
                let status = nix::sys::wait::waitpid(child, None).unwrap();
                assert_eq!(status, nix::sys::wait::WaitStatus::Exited(child, 0));
            }
        }
    }

    #[test]
    fn a_thread_keeps_only_what_it_was_left_of_what_it_has() {
        let sets = std::thread::spawn(|| {
            let had = has(Capability::NetBindService);
            keep_only(&[Capability::NetBindService]).unwrap();
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let set = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
                u64::from_str_radix(line.trim(), 16).unwrap()
            };
            (had, set("CapPrm:"), set("CapEff:"), set("CapInh:"))
        });
        let (had, permitted, effective, inheritable) = sets.join().unwrap();
        let expected = if had { 1 << Capability::NetBindService as u32 } else { 0 };
        assert_eq!((permitted, effective, inheritable), (expected, expected, 0));
    }

    #[test]
    fn a_thread_that_drops_all_has_none() {
        // Capabilities belong to a thread: the other tests keep theirs.
        let status = std::thread::spawn(|| {
            drop_all().unwrap();
            std::fs::read_to_string("/proc/thread-self/status").unwrap()
        });
        let status = status.join().unwrap();
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            let line = status.lines().find(|l| l.starts_with(set)).unwrap();
            assert_eq!(line.split_whitespace().nth(1), Some("0000000000000000"), "{line}");
        }
    }
}
