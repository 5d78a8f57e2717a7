//! Calls that a process of ours never makes, by families, and the filter that refuses them (seccomp(2)).
//!
//! The gateway, which reads foreign bytes all the time, has a list of what it may do. The processes around it do many
//! things, and some of them through libraries, so theirs is a list of what they may *not* do: whatever would lead out of
//! the place that the other stages leave them, or into parts of the kernel that are attacked most often and that they
//! never need. A refused call fails with EPERM. The filter is inherited by whatever such a process starts.
use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use crate::sys::seccomp;

/// A family of calls.
pub(super) type Family = &'static [c_long];

/// Running another program.
pub(super) const EXECUTION: Family = &[libc::SYS_execve, libc::SYS_execveat];

/// Making processes and threads. (fork(2) and vfork(2) are in [`OLD`].)
pub(super) const PROCESSES: Family = &[libc::SYS_clone, libc::SYS_clone3];

/// Changing what a path leads to.
pub(super) const MOUNTS: Family = &[
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
];

/// Making and entering namespaces; clone(2) does that too.
pub(super) const NAMESPACES: Family = &[libc::SYS_unshare, libc::SYS_setns];

/// Looking into other processes, or taking their descriptors.
pub(super) const TRACING: Family = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
];

/// Becoming another user.
pub(super) const IDENTITY: Family = &[
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
];

/// The machine itself, and the parts of the kernel through which it is attacked most often.
pub(super) const KERNEL: Family = &[
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    // Files by something else than a path, for which Landlock and an empty root are no obstacle.
    libc::SYS_open_by_handle_at,
];

/// Older names of the same on x86-64.
#[cfg(target_arch = "x86_64")]
pub(super) const OLD: Family = &[libc::SYS_fork, libc::SYS_vfork];
#[cfg(not(target_arch = "x86_64"))]
pub(super) const OLD: Family = &[];

/// The same calls have further numbers in the x32 convention of x86-64, where a kernel has that: this bit, and some of
/// their own (arch/x86/entry/syscalls/syscall_64.tbl).
#[cfg(target_arch = "x86_64")]
fn also(call: c_long) -> Vec<c_long> {
    const X32: c_long = 0x4000_0000;
    let own = match call {
        libc::SYS_execve => Some(520),
        libc::SYS_ptrace => Some(521),
        libc::SYS_kexec_load => Some(528),
        libc::SYS_process_vm_readv => Some(539),
        libc::SYS_process_vm_writev => Some(540),
        libc::SYS_execveat => Some(545),
        _ => None,
    };
    [call].into_iter().chain(own).map(|number| number | X32).collect()
}
#[cfg(not(target_arch = "x86_64"))]
fn also(_: c_long) -> Vec<c_long> {
    Vec::new()
}

/// Refuse them from now on, in this thread and in whatever it starts; no_new_privs must be set. For [`NAMESPACES`], `but`
/// says which kind may still be made and entered (`CLONE_NEWNET`). `Err` is a sentence's end.
pub(super) fn refuse(families: &[Family], but: Option<libc::c_int>) -> Result<(), String> {
    seccomp::install(&program(families, but)?).map_err(|error| error.to_string())
}

fn program(families: &[Family], but: Option<libc::c_int>) -> Result<BpfProgram, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in families.iter().flat_map(|family| family.iter().copied()) {
        // An empty list of rules matches whatever the arguments are.
        let mut unless = Vec::new();
        if let (Some(kind), true) = (but, NAMESPACES.contains(&call)) {
            let at = if call == libc::SYS_unshare { 0 } else { 1 };
            let is_another = SeccompCondition::new(at, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, kind as u64);
            unless.push(SeccompRule::new(vec![is_another.map_err(|e| text(&e))?]).map_err(|e| text(&e))?);
        }
        // c_long has 32 bits on some machines.
        #[allow(clippy::useless_conversion)]
        for number in also(call) {
            rules.insert(i64::from(number), Vec::new());
        }
        #[allow(clippy::useless_conversion)]
        rules.insert(i64::from(call), unless);
    }
    let machine = std::env::consts::ARCH.try_into().map_err(|_| "not on this kind of machine".to_owned())?;
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, machine).map_err(|e| text(&e))?;
    filter.try_into().map_err(|e: seccompiler::BackendError| text(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_fits_into_one_filter() {
        let all = [EXECUTION, PROCESSES, MOUNTS, NAMESPACES, TRACING, IDENTITY, KERNEL, OLD];
        let length = program(&all, None).unwrap().len();
        // BPF_MAXINSNS (linux/bpf_common.h).
        assert!(length <= 4096, "{length}");
    }
}
