//! The sandbox's view of the file system, made by init in its own mount namespace.
//!
//! # Theory of operation
//!
//! CMD sees the person's files as they are, except for what would show it the host's network instead of its own:
//!
//! - **/etc** becomes a view of its own, in which `resolv.conf`, `hosts` and `hostname` are the sandbox's. Binding a
//!   file over each of them would not do: such a mount vanishes when the host renames another file over the place,
//!   as systemd-resolved and NetworkManager do, and it cannot cover a symbolic link. So the whole directory is
//!   covered: with an overlay whose lower layer is the real directory and whose upper layer lies in a tmpfs, where
//!   the kernel lets a user namespace mount one; otherwise with a tmpfs full of symbolic links into a recursive bind
//!   of the real directory (recursive, because a container's /etc has locked mounts on it, which is also what makes
//!   the overlay fail there). In both, the three files are ordinary files. Whatever CMD writes in /etc goes to the
//!   tmpfs and ends with it; the host's files are never written. Through the overlay a file that the host replaces
//!   may go on being seen as it was; through the links it is seen as it is.
//! - **/sys** is mounted anew, because /sys/class/net shows the network namespace of whoever mounted it. The cgroup
//!   file systems are carried over to the new one. Where it cannot be mounted, the old one stays.
//! - **/proc** is mounted anew when there is a new PID namespace. In many containers parts of /proc are masked, and
//!   the kernel then refuses a new one that would show them (EPERM): the old one stays, and a line says so.
//! - The sockets of systemd-resolved and nscd, which would look names up on the host, and tapline's own runtime
//!   directory are **covered** by empty tmpfs.
//!
//! Propagation is made private first: nothing that is mounted here shows outside, and the other way round. Nothing
//! is undone on failure: the mount namespace ends with the process that made it.
//!
//! With [`View::host_files`] there is nothing of this but /proc, and the host's own mounts go on to show.
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::etc;
use crate::plan::{Mode, PidMode};
use crate::sys::ns;

/// Why the view could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Mounts would be seen outside.
    #[error("cannot make the sandbox's mounts private: {0}; is mounting forbidden here (seccomp, AppArmor)?")]
    Propagation(io::Error),
    /// Neither way to have an /etc of its own works.
    #[error(
        "cannot give the sandbox an /etc of its own: {what}: {error}; is mounting forbidden here (seccomp, AppArmor)?"
    )]
    Etc {
        /// The step.
        what: &'static str,
        /// The kernel's answer.
        error: io::Error,
    },
}

/// What the view is made of.
#[derive(Debug)]
pub struct View {
    /// Which network: with the host's, /sys and the host's name services stay as they are.
    pub mode: Mode,
    /// Whether there is a new PID namespace.
    pub pid: PidMode,
    /// The sandbox's own files of /etc, by name.
    pub files: Vec<(&'static str, String)>,
    /// Directories of tapline's own state.
    pub own_dirs: Vec<PathBuf>,
    /// The host's files as they are: nothing but /proc is the sandbox's own, and what is mounted on the host later is
    /// seen.
    pub host_files: bool,
}

/// Size of the tmpfs for what CMD writes to /etc.
const ETC_SIZE: &str = "mode=0755,size=16m";

/// Where the real /etc is bound when there is no overlay.
const REAL_ETC: &str = ".host-etc";

impl View {
    /// Make it, in a mount namespace of the caller's own. Notices for the person come back.
    pub fn make(&self) -> Result<Vec<String>, MountError> {
        let mut notices = Vec::new();
        let propagation = if self.host_files { MsFlags::MS_SLAVE } else { MsFlags::MS_PRIVATE };
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | propagation, None::<&str>)
            .map_err(|e| MountError::Propagation(e.into()))?;
        let before = std::env::current_dir().ok();
        if !self.host_files {
            self.make_etc()?;
            self.cover();
            if self.mode != Mode::Host {
                mount_sys();
            }
        }
        if self.pid == PidMode::Private
            && let Err(error) = mount_proc()
        {
            notices.push(format!(
                "cannot mount /proc for the sandbox's own processes ({error}): going on with the one that is there, \
                 which shows the outer ones; a container usually needs `--security-opt systempaths=unconfined` for it"
            ));
        }
        // The working directory again by its name, in case one of the mounts covers it.
        let _ = std::env::set_current_dir(before.as_deref().unwrap_or(Path::new("/")));
        Ok(notices)
    }

    fn make_etc(&self) -> Result<(), MountError> {
        let failed = |what| move |error: io::Error| MountError::Etc { what, error };
        // The working directory holds on to the real /etc while the place is covered.
        std::env::set_current_dir("/etc").map_err(failed("enter /etc"))?;
        mount_etc().map_err(failed("mount a tmpfs"))?;
        let Err(error) = self.overlay_etc() else { return Ok(()) };
        tracing::debug!("no overlay over /etc ({error}): links into it instead");
        // The real one is cloned with all that is mounted on it, so our tmpfs must not be.
        umount2("/etc", MntFlags::MNT_DETACH).map_err(|e| failed("take the tmpfs off")(e.into()))?;
        let real = ns::clone_tree(Path::new("/etc")).map_err(failed("clone the real one"))?;
        mount_etc().map_err(failed("mount a tmpfs"))?;
        self.link_etc(&real).map_err(failed("link to the real one"))
    }

    /// On the tmpfs at /etc: upper layer and work directory, and the overlay over it all.
    fn overlay_etc(&self) -> io::Result<()> {
        let (upper, work) = (Path::new("/etc/upper"), Path::new("/etc/work"));
        fs::create_dir(upper)?;
        fs::create_dir(work)?;
        self.write_files(upper)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let options = "lowerdir=.,upperdir=/etc/upper,workdir=/etc/work,userxattr";
        Ok(mount(Some("overlay"), "/etc", Some("overlay"), flags, Some(options))?)
    }

    /// On the tmpfs at /etc: the real one bound, and a link for each of its entries.
    fn link_etc(&self, real: &OwnedFd) -> io::Result<()> {
        let at = Path::new("/etc").join(REAL_ETC);
        fs::create_dir(&at)?;
        ns::attach_tree(real, &at)?;
        for entry in fs::read_dir(&at)?.flatten() {
            let name = entry.file_name();
            if self.files.iter().any(|(own, _)| name.to_str() == Some(own)) {
                continue;
            }
            // A link is copied: it may be relative to where it stands (../usr/share/zoneinfo/UTC).
            let target = match fs::read_link(entry.path()) {
                Ok(target) => target,
                Err(_) => Path::new(REAL_ETC).join(&name),
            };
            symlink(target, Path::new("/etc").join(&name))?;
        }
        self.write_files(Path::new("/etc"))
    }

    fn write_files(&self, dir: &Path) -> io::Result<()> {
        for (name, text) in &self.files {
            let path = dir.join(name);
            fs::write(&path, text)?;
            // Whatever the caller's umask.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        }
        Ok(())
    }

    /// After [`make`](Self::make): the sandbox's own hosts and resolv.conf, in this order, open for reading and writing.
    /// Nothing where not both are its own, and where they cannot be opened: then they stay as they are.
    pub fn open_names(&self) -> Vec<File> {
        let is_own = |name| self.files.iter().any(|(own, _)| *own == name);
        let names = [etc::HOSTS, etc::RESOLV_CONF];
        if !names.into_iter().all(is_own) {
            return Vec::new();
        }
        let open = |name| File::options().read(true).write(true).open(Path::new("/etc").join(name));
        names.into_iter().map(open).collect::<io::Result<_>>().unwrap_or_else(|error| {
            tracing::debug!("hosts and resolv.conf will not follow changes: {error}");
            Vec::new()
        })
    }

    /// Empty directories over what leads to the host's name services, and over our own state. What is not there
    /// needs no cover, and one that fails is a lesser evil than no sandbox.
    fn cover(&self) {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        if self.mode != Mode::Host {
            for dir in ["/run/systemd/resolve", "/run/nscd", "/var/run/nscd"] {
                // /var/run is a link to /run almost everywhere; a second cover over the first does no harm.
                if Path::new(dir).is_dir()
                    && let Err(error) =
                        mount(Some("tmpfs"), dir, Some("tmpfs"), flags | MsFlags::MS_RDONLY, Some("mode=0755,size=4k"))
                {
                    tracing::debug!("cannot cover {dir}: {error}");
                }
            }
        }
        for dir in self.own_dirs.iter().filter(|dir| dir.is_dir()) {
            // Writable: a tapline inside keeps its own state there.
            if let Err(error) = mount(Some("tmpfs"), dir, Some("tmpfs"), flags, Some("mode=0700,size=1m")) {
                tracing::debug!("cannot cover {}: {error}", dir.display());
            }
        }
    }
}

/// The tmpfs for /etc.
fn mount_etc() -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    Ok(mount(Some("tmpfs"), "/etc", Some("tmpfs"), flags, Some(ETC_SIZE))?)
}

fn mount_proc() -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>)?)
}

fn mount_sys() {
    let cgroup = Path::new("/sys/fs/cgroup");
    let kept = ns::clone_tree(cgroup);
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Where the old one is read-only the kernel demands the same of a new one.
    let made = mount(Some("sysfs"), "/sys", Some("sysfs"), flags, None::<&str>)
        .or_else(|_| mount(Some("sysfs"), "/sys", Some("sysfs"), flags | MsFlags::MS_RDONLY, None::<&str>));
    match (made, kept) {
        (Ok(()), Ok(tree)) => {
            if let Err(error) = ns::attach_tree(&tree, cgroup) {
                tracing::debug!("cannot carry /sys/fs/cgroup over: {error}");
            }
        }
        (Ok(()), Err(error)) => tracing::debug!("no /sys/fs/cgroup to carry over: {error}"),
        (Err(error), _) => tracing::debug!("cannot mount /sys, it goes on showing the outer interfaces: {error}"),
    }
}
