//! Namespaces as files: what kind one is, who owns it (ioctl_ns(2)); mounts as descriptors (open_tree(2)).
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;

/// `_IO(0xb7, nr)` of linux/nsfs.h.
const fn nsio(nr: libc::c_ulong) -> libc::c_ulong {
    (0xb7 << 8) | nr
}
const NS_GET_USERNS: libc::c_ulong = nsio(1);
const NS_GET_NSTYPE: libc::c_ulong = nsio(3);

/// What a namespace file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NsKind {
    /// A network namespace.
    Net,
    /// A user namespace.
    User,
    /// Another one.
    Other,
}

/// The kind of a namespace file; `None` when the descriptor is not a namespace at all.
pub fn kind(fd: BorrowedFd<'_>) -> io::Result<Option<NsKind>> {
    let stat = nix::sys::statfs::fstatfs(fd)?;
    if stat.filesystem_type() != nix::sys::statfs::FsType(libc::NSFS_MAGIC as _) {
        return Ok(None);
    }
    // SAFETY: NS_GET_NSTYPE takes no argument and returns the clone flag of the namespace's kind.
    let flag = Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE as _) })?;
    Ok(Some(match flag {
        libc::CLONE_NEWNET => NsKind::Net,
        libc::CLONE_NEWUSER => NsKind::User,
        _ => NsKind::Other,
    }))
}

/// The user namespace that owns a namespace. `EPERM` when it is not the caller's own or below it.
pub fn owner(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: NS_GET_USERNS takes no argument and returns a new descriptor.
    let owner = Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_USERNS as _) })?;
    // SAFETY: the call succeeded; the descriptor is new and ours. The kernel opens it close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(owner) })
}

/// A mount and all that is mounted below it, cloned, attached nowhere (open_tree(2), Linux 5.2).
pub fn clone_tree(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE as libc::c_uint;
    // SAFETY: the path is a C string that outlives the call; the result is a new descriptor.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })?;
    // SAFETY: the call succeeded; the descriptor is new and ours, and fits an int.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Attach a cloned tree at a path (move_mount(2)).
pub fn attach_tree(tree: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: both strings are C strings that outlive the call; the descriptor is open.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_namespace_file_knows_its_kind_and_other_files_have_none() {
        let of = |path: &str| kind(File::open(path).unwrap().as_fd()).unwrap();
        assert_eq!(of("/proc/self/ns/net"), Some(NsKind::Net));
        assert_eq!(of("/proc/self/ns/user"), Some(NsKind::User));
        assert_eq!(of("/proc/self/ns/uts"), Some(NsKind::Other));
        assert_eq!(of("/dev/null"), None);
    }
}
