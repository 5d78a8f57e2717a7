//! The runtime state directory: which sandboxes there are, and who serves them.
//!
//! # Theory of operation
//!
//! No daemon has to run for `tapline ps`: state is files, and a lock held by a living process is the only sign of
//! life. The layout below a *root*:
//!
//! ```text
//! <root>/<inode of the host's network namespace>/
//!     lock                       taken (flock, exclusive) by whoever looks or changes, for a moment
//!     sandboxes/<id>/lock        held (flock) by the supervisor as long as it lives
//!     sandboxes/<id>/state.json  what `ps` and `inspect` show; replaced by rename, never half written
//!     sandboxes/<id>/api.sock    the gateway's API; bound by the supervisor
//!     sandboxes/<id>/control.sock  the supervisor, for `tapline network connect` and the like
//!     names/<name>               a claim: another name of sandboxes/<id>/lock
//!     networks/<network>/...     claims to addresses on shared networks, see [`claims`] and [`super::networks`]
//! ```
//!
//! Sandboxes belong to (user, host network namespace): a `tapline` inside a sandbox, or inside RootlessKit, sees
//! the same root and must not find the outer ones, hence the inode.
//!
//! The root is `$XDG_RUNTIME_DIR/tapline`, where that variable names a directory of ours; otherwise
//! `/tmp/tapline-<uid>`, with the uid outside of the caller's user namespace, which is used only when it is a real
//! directory (no symbolic link), ours, and closed to everyone else, because anybody can make names in /tmp. Sandboxes are *registered* in the first root that can be
//! used and *looked for* in both: logind removes the runtime directory when a session ends, while the sandboxes
//! of that session may live on, and a shell from cron has no such variable. When a supervisor finds its own
//! directory gone it makes it again, in whichever root can be used then ([`Registration::publish`],
//! [`Registration::repair`]); who comes in between waits for that ([`living`]).
//!
//! A name is given once: it is a claim ([`claims`]), made under the directory's lock, which is also the way to find a
//! sandbox by its name. An entry whose lock nobody holds is a leftover of something that was killed; whoever meets it
//! removes it, also under the directory's lock, so that an entry that is just being made (made and locked under the same
//! lock) is never taken for one. Whoever only looks takes no lock: a state file is replaced in one step.
//!
//! The flock belongs to the open file description: a supervisor that forks to the background keeps it, a program
//! it starts does not get it (close-on-exec).
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::stat::{self, fchmod};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::plan::{Mode, Names, Published, Seat, Shared, words};

pub mod claims;
mod living;

pub use claims::{Holder, Locked};
pub use living::Living;

/// Why the state directory cannot be used, or a sandbox not be found or registered.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The fallback is not what it must be.
    #[error("{path} {problem}: remove it, or set XDG_RUNTIME_DIR to a directory of your own")]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file operation failed.
    #[error("cannot {what} {path}: {error}")]
    Io {
        /// What was tried, as a verb.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// The name is taken.
    #[error(
        "the name `{name}` is taken by sandbox {id}: choose another with --name, or end it with `tapline stop {name}`"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        id: String,
    },
    /// The id is taken.
    #[error("the id `{0}` is taken by another sandbox: try again")]
    IdTaken(String),
    /// Nobody of that name or id.
    #[error("no sandbox has the name or id `{0}`: `tapline ps` lists those that run")]
    NotFound(String),
    /// Several ids begin so.
    #[error("`{prefix}` is the beginning of several ids ({}): give more digits", ids.join(", "))]
    Ambiguous {
        /// What was given.
        prefix: String,
        /// Who it could be.
        ids: Vec<String>,
    },
}

type Result<T, E = StateError> = std::result::Result<T, E>;

/// For `map_err`: what was tried on which path.
fn failed(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> StateError {
    move |error| StateError::Io { what, path: path.into(), error }
}

/// What is known of one sandbox; `state.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxState {
    /// 12 hexadecimal digits.
    pub id: String,
    /// Its name, unique.
    pub name: String,
    /// The process whose namespaces are the sandbox: CMD's init (or CMD itself), or the target of `attach`; `None`
    /// until there is one. As the host's PID namespace counts.
    pub pid: Option<i32>,
    /// The supervisor.
    pub supervisor_pid: i32,
    /// Which network.
    pub mode: Mode,
    /// IPv4 address inside.
    pub v4: Option<Ipv4Addr>,
    /// IPv6 address inside.
    pub v6: Option<Ipv6Addr>,
    /// When the sandbox was made, in seconds since 1970 (UTC).
    pub since: u64,
    /// CMD and its arguments; what was attached to, for `attach`.
    pub command: Vec<String>,
    /// Its places on networks, in the order of its interfaces.
    #[serde(default)]
    pub endpoints: Vec<Seat>,
    /// Ports that are published.
    #[serde(default)]
    pub ports: Vec<Published>,
    /// Hostname and resolvers inside; `None` for `attach`.
    #[serde(default)]
    pub names: Option<Names>,
    /// Whose network it has, for mode `container`.
    #[serde(default)]
    pub container: Option<Shared>,
    /// `--locked`: so is what is executed in it later.
    #[serde(default)]
    pub locked: bool,
}

/// The state directory of this user in this host network namespace.
#[derive(Clone, Debug)]
pub struct StateDir {
    /// Roots in the order of preference. The first that can be used is registered in, all are looked at.
    roots: Vec<Root>,
    /// Inode of the host's network namespace.
    netns: u64,
}

/// One place where state may be.
#[derive(Clone, Debug)]
struct Root {
    path: PathBuf,
    /// Anybody can make names beside it (it is in /tmp).
    shared: bool,
}

impl StateDir {
    /// The directory for the caller's user, network namespace and environment. Call it in the host's network
    /// namespace. Fails only when no place can be used, and says what to do.
    pub fn open() -> Result<StateDir> {
        let netns = fs::metadata("/proc/self/ns/net").map_err(failed("look at", "/proc/self/ns/net"))?.ino();
        let uid = nix::unistd::geteuid().as_raw();
        let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let fallback = PathBuf::from(format!("/tmp/tapline-{}", outer_uid(&map, uid)));
        StateDir::at(std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from), fallback, netns)
    }

    /// The same with everything given: the runtime directory (checked, may be missing), the fallback, the inode.
    pub fn at(runtime: Option<PathBuf>, fallback: PathBuf, netns: u64) -> Result<StateDir> {
        let mut roots = Vec::new();
        // Set to nothing means not set (XDG base directory specification).
        if let Some(runtime) = runtime.filter(|path| !path.as_os_str().is_empty()) {
            match check_runtime_dir(&runtime) {
                Ok(()) => roots.push(Root { path: runtime.join("tapline"), shared: false }),
                Err(problem) => {
                    tracing::warn!(
                        "XDG_RUNTIME_DIR: {} {problem}; using {} instead",
                        runtime.display(),
                        fallback.display()
                    );
                }
            }
        }
        roots.push(Root { path: fallback, shared: true });
        let dir = StateDir { roots, netns };
        dir.usable_base()?;
        Ok(dir)
    }

    /// Register a sandbox: takes the name and the lock, and publishes nothing yet but id and name.
    pub fn register(&self, id: &str, name: &str) -> Result<Registration> {
        // Dropped after the lock, which it takes when it is dropped.
        let mut registration;
        self.wait_for_repair();
        let locked = self.lock()?;
        locked.sweep();
        let claim = claims::of_name(name);
        if let Some(holder) = locked.holder(&claim)? {
            return Err(StateError::NameTaken { name: name.to_owned(), id: holder.id });
        }
        if self.existing_bases().any(|base| is_held(&entry_of(&base, id).join("lock"))) {
            return Err(StateError::IdTaken(id.to_owned()));
        }
        let entry = entry_of(locked.base(), id);
        let lock = make_entry(&entry)?;
        let state = SandboxState {
            id: id.to_owned(),
            name: name.to_owned(),
            pid: None,
            supervisor_pid: nix::unistd::getpid().as_raw(),
            mode: Mode::Private,
            v4: None,
            v6: None,
            since: now(),
            command: Vec::new(),
            endpoints: Vec::new(),
            ports: Vec::new(),
            names: None,
            container: None,
            locked: false,
        };
        registration = Registration { dir: self.clone(), entry, lock, last: state, claims: Vec::new(), moved: false };
        registration.write_claims()?;
        registration.claim(&locked, &claim)?;
        write_state(&registration.entry, &registration.last)?;
        drop(locked);
        Ok(registration)
    }

    /// Every living sandbox, oldest first. Leftovers of dead ones are removed on the way.
    pub fn list(&self) -> Result<Vec<SandboxState>> {
        let mut all = Vec::new();
        for base in self.existing_bases() {
            let (living, leftovers) = read_base(&base)?;
            all.extend(living);
            if !leftovers.is_empty() {
                let locked = Locked::new(self, base)?;
                leftovers.iter().for_each(|entry| locked.remove_leftover(entry));
            }
        }
        all.sort_by(|a, b| (a.since, &a.id).cmp(&(b.since, &b.id)));
        Ok(all)
    }

    /// The living sandboxes, as far as they can be seen; nothing is removed, and nobody waited for.
    pub fn glance(&self) -> Vec<SandboxState> {
        self.existing_bases().filter_map(|base| read_base(&base).ok()).flat_map(|(living, _)| living).collect()
    }

    /// The living sandbox with this name, this id, or the only one whose id begins so.
    pub fn find(&self, name_or_id: &str) -> Result<SandboxState> {
        let not_found = || StateError::NotFound(name_or_id.to_owned());
        // Nothing else is made a part of a path.
        words::parse_name(name_or_id).map_err(|_| not_found())?;
        let claim = claims::of_name(name_or_id);
        for base in self.existing_bases() {
            let named = claims::holder(&base.join(&claim)).and_then(|holder| read_state(&entry_of(&base, &holder.id)));
            if let Some(state) = named {
                return Ok(state);
            }
        }
        let mut entries: Vec<(String, PathBuf)> = self
            .existing_bases()
            .filter_map(|base| fs::read_dir(base.join("sandboxes")).ok())
            .flat_map(|entries| entries.flatten())
            .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
            .filter(|(id, entry)| id.starts_with(name_or_id) && is_held(&entry.join("lock")))
            .collect();
        if let Some(at) = entries.iter().position(|(id, _)| id == name_or_id) {
            entries = vec![entries.swap_remove(at)];
        }
        if entries.len() > 1 {
            let ids = entries.into_iter().map(|(id, _)| id).collect();
            return Err(StateError::Ambiguous { prefix: name_or_id.to_owned(), ids });
        }
        entries.pop().and_then(|(_, entry)| read_state(&entry)).ok_or_else(not_found)
    }

    /// Connect to a living sandbox's API. The path may be longer than a socket address can be (107 bytes).
    pub fn connect_api(&self, id: &str) -> Result<UnixStream> {
        self.connect(id, "api.sock", |path| UnixStream::connect(path))
    }

    /// Connect to a living sandbox's supervisor ([`super::requests`]). Sending and receiving give up after `patience`.
    pub fn connect_control(&self, id: &str, patience: std::time::Duration) -> Result<OwnedFd> {
        self.connect(id, "control.sock", |path| {
            let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
            socket.set_read_timeout(Some(patience))?;
            socket.set_write_timeout(Some(patience))?;
            socket.connect(&SockAddr::unix(path)?)?;
            Ok(socket.into())
        })
    }

    fn connect<T>(&self, id: &str, name: &str, connect: impl Fn(&Path) -> io::Result<T>) -> Result<T> {
        for entry in self.existing_bases().map(|base| entry_of(&base, id)) {
            let Ok(dir) = File::open(&entry) else { continue };
            return connect(&short_path(&dir, name)).map_err(failed("connect to", entry.join(name)));
        }
        Err(StateError::NotFound(id.to_owned()))
    }

    /// The first root that can be used, with this namespace's directory made in it.
    pub(super) fn usable_base(&self) -> Result<PathBuf> {
        let mut result = Err(StateError::NotFound(String::new()));
        for root in &self.roots {
            result = self.make_base(root);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    fn make_base(&self, root: &Root) -> Result<PathBuf> {
        make_private_dir(&root.path)?;
        let checked = if root.shared { check_private_dir(&root.path) } else { close_to_others(&root.path) };
        checked.map_err(|problem| StateError::Unsafe { path: root.path.clone(), problem })?;
        let base = root.path.join(self.netns.to_string());
        make_private_dir(&base)?;
        make_private_dir(&base.join("sandboxes"))?;
        Ok(base)
    }

    /// The roots that are there and may be believed.
    fn existing_roots(&self) -> impl Iterator<Item = &Path> {
        self.roots
            .iter()
            .filter(|root| !root.shared || check_private_dir(&root.path).is_ok())
            .map(|root| root.path.as_path())
    }

    /// This namespace's directories that are there and may be believed.
    pub(super) fn existing_bases(&self) -> impl Iterator<Item = PathBuf> {
        self.existing_roots().map(|root| root.join(self.netns.to_string())).filter(|base| base.is_dir())
    }
}

/// A registered sandbox. Dropping it takes the entry away; being killed leaves it to the next one who looks.
#[derive(Debug)]
pub struct Registration {
    dir: StateDir,
    entry: PathBuf,
    lock: File,
    last: SandboxState,
    /// Which claims it has, as paths below the base.
    claims: Vec<String>,
    /// The entry was made anew, and nobody has been told.
    moved: bool,
}

impl Registration {
    /// The sandbox's directory. It may move when [`repair`](Self::repair) has to make it again.
    pub fn path(&self) -> &Path {
        &self.entry
    }

    /// The sandbox's places on networks, as published last.
    pub fn seats(&self) -> &[Seat] {
        &self.last.endpoints
    }

    /// Replace `state.json`, atomically. Makes the directory again when somebody removed it.
    pub fn publish(&mut self, state: &SandboxState) -> Result<()> {
        self.last = state.clone();
        self.mend()?;
        write_state(&self.entry, &self.last)
    }

    /// Make the entry and the claims again when they have gone (logind removed the runtime directory), with the state
    /// published last. True when the entry has been made anew since this was asked last, be it here or by something else
    /// that needed it: an API socket in it must then be bound anew.
    pub fn repair(&mut self) -> Result<bool> {
        self.mend()?;
        Ok(std::mem::take(&mut self.moved))
    }

    /// Makes the entry and the claims again when they have gone.
    pub(super) fn mend(&mut self) -> Result<()> {
        let entry_is_there = claims::is_same_file(&self.entry.join("lock"), &self.lock);
        let names = 1 + self.claims.len() as u64;
        if entry_is_there && self.lock.metadata().is_ok_and(|meta| meta.nlink() == names) {
            return Ok(());
        }
        let locked = if entry_is_there { self.lock()? } else { self.dir.lock()? };
        if !entry_is_there {
            self.entry = entry_of(locked.base(), &self.last.id);
            self.lock = make_entry(&self.entry)?;
            self.moved = true;
        }
        for claim in self.claims.clone() {
            // Nobody knew that it was taken. What cannot be claimed now, because somebody is still removing things, stays
            // on the list for the next time.
            if let Some(holder) = self.claim(&locked, &claim)? {
                tracing::warn!("the claim {claim} was lost to the sandbox `{}` ({})", holder.name, holder.id);
                self.claims.retain(|lost| *lost != claim);
            }
        }
        self.write_claims()?;
        write_state(&self.entry, &self.last)
    }

    /// Bind the API's socket in the entry, whatever the length of its path; mode 0600. An old one is replaced.
    pub fn bind_api(&self) -> Result<UnixListener> {
        let path = self.entry.join("api.sock");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("replace", path)(error)),
            _ => {}
        }
        let dir = File::open(&self.entry).map_err(failed("open", &self.entry))?;
        let listen = || {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            bind_private(&socket, &dir, "api.sock")?;
            socket.listen(API_BACKLOG)?;
            Ok(UnixListener::from(OwnedFd::from(socket)))
        };
        listen().map_err(failed("bind", &path))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // Under the directory's lock, so that nobody sees half of it; without it when the root has gone.
        if let Some(base) = self.entry.parent().and_then(Path::parent) {
            let _guard = lock_base(base).ok();
            self.remove_claims(base, &self.claims);
            remove_entry(&self.entry);
        }
    }
}

/// Seconds since 1970.
#[expect(clippy::disallowed_methods, reason = "shown, not waited for")]
fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Clients of an API that the kernel lets wait.
const API_BACKLOG: i32 = 128;

/// Bind a Unix socket in an open directory so that from the first moment only its owner can connect, whatever the umask
/// and the directory's own mode.
pub(super) fn bind_private(socket: &Socket, dir: &File, name: &str) -> io::Result<()> {
    // The file gets the mode that the socket has (unix(7), less the umask).
    fchmod(socket, stat::Mode::S_IRUSR | stat::Mode::S_IWUSR)?;
    socket.bind(&SockAddr::unix(short_path(dir, name))?)
}

/// A path to a file in an open directory that is short enough for a socket address.
pub(super) fn short_path(dir: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

/// Is this a runtime directory to be believed? `Err` says what is wrong.
fn check_runtime_dir(path: &Path) -> Result<(), String> {
    if !path.is_absolute() {
        return Err("is not an absolute path".into());
    }
    let meta = fs::metadata(path).map_err(|error| format!("cannot be used ({error})"))?;
    if !meta.is_dir() {
        return Err("is not a directory".into());
    }
    check_owner_and_mode(&meta)
}

/// Is this directory, which anybody could have made, ours, no link, and closed to others?
fn check_private_dir(path: &Path) -> Result<(), String> {
    let meta = fs::symlink_metadata(path).map_err(|error| format!("cannot be looked at ({error})"))?;
    if meta.file_type().is_symlink() {
        return Err("is a symbolic link".into());
    }
    if !meta.is_dir() {
        return Err("is not a directory".into());
    }
    check_owner_and_mode(&meta)?;
    if meta.mode() & 0o077 != 0 {
        return Err(format!("is open to others (mode {:04o})", meta.mode() & 0o7777));
    }
    Ok(())
}

/// The user that `uid` is outside of this user namespace, by its map (user_namespaces(7)). In a namespace of Podman's
/// everybody is root, and root's directory in /tmp is somebody else's.
fn outer_uid(map: &str, uid: u32) -> u32 {
    let ranges = map.lines().filter_map(|line| {
        let mut numbers = line.split_whitespace().map(|word| word.parse::<u32>().ok());
        Some((numbers.next()??, numbers.next()??, numbers.next()??))
    });
    let mut outside = ranges.filter_map(|(inner, outer, length)| {
        uid.checked_sub(inner).filter(|offset| *offset < length).and_then(|offset| outer.checked_add(offset))
    });
    outside.next().unwrap_or(uid)
}

fn check_owner_and_mode(meta: &fs::Metadata) -> Result<(), String> {
    let uid = nix::unistd::geteuid().as_raw();
    if meta.uid() != uid {
        return Err(format!("belongs to uid {}, not to you (uid {uid})", meta.uid()));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(format!("can be written to by others (mode {:04o})", meta.mode() & 0o7777));
    }
    Ok(())
}

/// Take away what others may do with a directory of ours, if it was made before with another mode.
fn close_to_others(path: &Path) -> Result<(), String> {
    let meta = fs::metadata(path).map_err(|error| format!("cannot be looked at ({error})"))?;
    if meta.mode() & 0o077 == 0 && meta.uid() == nix::unistd::geteuid().as_raw() {
        return Ok(());
    }
    check_owner_and_mode(&meta)?;
    let closed = fs::Permissions::from_mode(meta.mode() & 0o700);
    fs::set_permissions(path, closed).map_err(|error| format!("cannot be closed to others ({error})"))
}

/// Make a directory with mode 0700; one that is there already is fine.
fn make_private_dir(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed("make the directory", path)(error)),
        _ => Ok(()),
    }
}

/// Take the directory's lock, waiting for it; it is only ever held for a moment.
fn lock_base(base: &Path) -> Result<File> {
    let path = base.join("lock");
    let file = open_lock(&path).map_err(failed("open", &path))?;
    file.lock().map_err(failed("lock", path))?;
    Ok(file)
}

/// A sandbox's directory.
fn entry_of(base: &Path, id: &str) -> PathBuf {
    base.join("sandboxes").join(id)
}

/// The living sandboxes of one root, and the entries that seem to be leftovers.
fn read_base(base: &Path) -> Result<(Vec<SandboxState>, Vec<PathBuf>)> {
    let sandboxes = base.join("sandboxes");
    let entries = match fs::read_dir(&sandboxes) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), Vec::new())),
        Err(error) => return Err(failed("read", sandboxes)(error)),
    };
    let (mut found, mut leftovers) = (Vec::new(), Vec::new());
    for path in entries.flatten().map(|entry| entry.path()) {
        if is_held(&path.join("lock")) {
            // A living one without a readable state is ending right now, or its disk is full.
            found.extend(read_state(&path));
        } else {
            leftovers.push(path);
        }
    }
    Ok((found, leftovers))
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

/// Make a sandbox's directory and lock it for as long as the file is open. The caller holds the base's lock.
fn make_entry(entry: &Path) -> Result<File> {
    make_private_dir(entry)?;
    let path = entry.join("lock");
    let lock = open_lock(&path).map_err(failed("open", &path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            Err(StateError::IdTaken(entry.file_name().unwrap_or_default().to_string_lossy().into_owned()))
        }
        Err(TryLockError::Error(error)) => Err(failed("lock", path)(error)),
    }
}

/// Does somebody hold the lock on this file, be it with others?
fn is_held_by_some(path: &Path) -> bool {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path);
    file.is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

/// Does a living supervisor hold the lock on this file? When that cannot be found out it is taken for alive.
fn is_held(path: &Path) -> bool {
    match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path) {
        Ok(lock) => !matches!(lock.try_lock_shared(), Ok(())),
        Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
    }
}

/// Take an entry away, as far as it can be. The lock goes last: an entry without it counts as a leftover.
fn remove_entry(entry: &Path) {
    let _ = fs::remove_file(entry.join("api.sock"));
    let _ = fs::remove_dir_all(entry);
}

/// `state.json`, replaced in one step.
fn write_state(entry: &Path, state: &SandboxState) -> Result<()> {
    let (path, new) = (entry.join("state.json"), entry.join("state.json.new"));
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec_pretty(state)?)?;
        fs::rename(&new, &path)
    };
    write().map_err(failed("write", &path))
}

/// Largest state file that is read, in bytes. Ten thousand published ports take some two million.
const MAX_STATE: u64 = 64 << 20;

fn read_state(entry: &Path) -> Option<SandboxState> {
    let mut text = Vec::new();
    File::open(entry.join("state.json")).ok()?.take(MAX_STATE).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests;
