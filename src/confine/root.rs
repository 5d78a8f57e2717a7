//! The stage that takes away all files: an empty, read-only root.
//!
//! # Theory of operation
//!
//! A gateway is given what it needs as descriptors: links, listeners, sockets, its log, a capture. So its root can be a
//! tmpfs with nothing in it, not even a directory, to which nothing can be added, mounted read-only from the beginning:
//!
//! 1. Whatever is mounted by others stays away from us, and what we do from them (`MS_PRIVATE`).
//! 2. The tmpfs is mounted over /proc, which must be there because the program was started from it.
//! 3. pivot_root(2) makes it the root, with the old root on top of it, which is then taken off.
//! 4. An initramfs cannot be pivoted away from (EINVAL). There the tmpfs is moved over the root and entered by chroot(2).
//!    The old root is then still mounted, beneath; without a descriptor below it, and from the next stage on without a
//!    capability, nobody gets there.
//!
//! What is already mapped or open stays so: the program's own pages come back from its file as before.
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, chroot, pivot_root};

/// Where it is mounted first.
const PLACE: &str = "/proc";
/// One page, and no room for a file beside the root directory itself.
const OPTIONS: &str = "mode=0555,size=4k,nr_inodes=2";
const NONE: Option<&str> = None;

/// Make the root empty, in a mount namespace of our own; an error says what failed.
pub(super) fn empty() -> Result<(), (&'static str, Errno)> {
    mount_empty()?;
    match pivot_root(".", ".") {
        Ok(()) => umount2(".", MntFlags::MNT_DETACH).map_err(|e| ("take off the old root", e))?,
        Err(Errno::EINVAL) => {
            tracing::info!("the root cannot be pivoted away from, as with an initramfs: the gateway's is a chroot");
            cover()?;
        }
        Err(errno) => return Err(("pivot_root", errno)),
    }
    chdir("/").map_err(|e| ("change to the empty root", e))
}

/// Mount it and go there.
fn mount_empty() -> Result<(), (&'static str, Errno)> {
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).map_err(|e| ("make mounts private", e))?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), PLACE, Some("tmpfs"), flags, Some(OPTIONS)).map_err(|e| ("mount a tmpfs", e))?;
    chdir(PLACE).map_err(|e| ("change to the tmpfs", e))
}

/// Have it cover the old root.
fn cover() -> Result<(), (&'static str, Errno)> {
    mount(Some("."), "/", NONE, MsFlags::MS_MOVE, NONE).map_err(|e| ("move the tmpfs over the root", e))?;
    chroot(".").map_err(|e| ("chroot", e))
}

/// As where it cannot be pivoted away from.
#[cfg(test)]
pub(super) fn empty_by_chroot() -> Result<(), (&'static str, Errno)> {
    mount_empty()?;
    cover()?;
    chdir("/").map_err(|e| ("change to the empty root", e))
}
