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
//! ```
//!
//! Sandboxes belong to (user, host network namespace): a `tapline` inside a sandbox, or inside RootlessKit, sees
//! the same root and must not find the outer ones, hence the inode.
//!
//! The root is `$XDG_RUNTIME_DIR/tapline`, where that variable names a directory of ours; otherwise
//! `/tmp/tapline-<uid>`, which is used only when it is a real directory (no symbolic link), ours, and closed to
//! everyone else, because anybody can make names in /tmp. Sandboxes are *registered* in the first root that can be
//! used and *looked for* in both: logind removes the runtime directory when a session ends, while the sandboxes
//! of that session may live on, and a shell from cron has no such variable. When a supervisor finds its own
//! directory gone it makes it again, in whichever root can be used then ([`Registration::publish`],
//! [`Registration::repair`]).
//!
//! A name is given once: the check and the new entry happen under the directory's lock. An entry whose lock nobody
//! holds is a leftover of something that was killed; whoever meets it removes it, also under the directory's lock,
//! so that an entry that is just being made (made and locked under the same lock) is never taken for one.
//!
//! The flock belongs to the open file description: a supervisor that forks to the background keeps it, a program
//! it starts does not get it (close-on-exec).
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::plan::{Mode, Published, Seat};

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
        let fallback = PathBuf::from(format!("/tmp/tapline-{uid}"));
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
        let base = self.usable_base()?;
        let _guard = lock_base(&base)?;
        for state in self.scan(Some(&base))? {
            if state.name == name {
                return Err(StateError::NameTaken { name: name.to_owned(), id: state.id });
            }
            if state.id == id {
                return Err(StateError::IdTaken(id.to_owned()));
            }
        }
        let entry = base.join("sandboxes").join(id);
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
        };
        let registration = Registration { dir: self.clone(), entry, lock, last: state.clone() };
        write_state(&registration.entry, &state)?;
        Ok(registration)
    }

    /// Every living sandbox, oldest first. Leftovers of dead ones are removed on the way.
    pub fn list(&self) -> Result<Vec<SandboxState>> {
        let mut all = self.scan(None)?;
        all.sort_by(|a, b| (a.since, &a.id).cmp(&(b.since, &b.id)));
        Ok(all)
    }

    /// The living sandboxes that can be seen at once: none where somebody holds the directory's lock.
    pub fn glance(&self) -> Vec<SandboxState> {
        let mut found = Vec::new();
        for base in self.existing_bases() {
            let Ok(lock) = open_lock(&base.join("lock")) else { continue };
            if lock.try_lock().is_ok() {
                found.extend(read_base(&base).unwrap_or_default());
            }
        }
        found
    }

    /// The living sandbox with this name, this id, or the only one whose id begins so.
    pub fn find(&self, name_or_id: &str) -> Result<SandboxState> {
        let mut all = self.list()?;
        if let Some(at) = all.iter().position(|s| s.name == name_or_id || s.id == name_or_id) {
            return Ok(all.swap_remove(at));
        }
        let mut matching: Vec<SandboxState> =
            all.into_iter().filter(|s| !name_or_id.is_empty() && s.id.starts_with(name_or_id)).collect();
        if matching.len() > 1 {
            let ids = matching.into_iter().map(|s| s.id).collect();
            return Err(StateError::Ambiguous { prefix: name_or_id.to_owned(), ids });
        }
        matching.pop().ok_or_else(|| StateError::NotFound(name_or_id.to_owned()))
    }

    /// Connect to a living sandbox's API. The path may be longer than a socket address can be (107 bytes).
    pub fn connect_api(&self, id: &str) -> Result<UnixStream> {
        for base in self.existing_bases() {
            let entry = base.join("sandboxes").join(id);
            let Ok(dir) = File::open(&entry) else { continue };
            let path = entry.join("api.sock");
            return UnixStream::connect(short_path(&dir, "api.sock")).map_err(|error| StateError::Io {
                what: "connect to",
                path,
                error,
            });
        }
        Err(StateError::NotFound(id.to_owned()))
    }

    /// The first root that can be used, with this namespace's directory made in it.
    fn usable_base(&self) -> Result<PathBuf> {
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
        if root.shared {
            check_private_dir(&root.path).map_err(|problem| StateError::Unsafe { path: root.path.clone(), problem })?;
        }
        let base = root.path.join(self.netns.to_string());
        make_private_dir(&base)?;
        make_private_dir(&base.join("sandboxes"))?;
        Ok(base)
    }

    /// This namespace's directories that are there and may be believed.
    fn existing_bases(&self) -> impl Iterator<Item = PathBuf> {
        self.roots
            .iter()
            .filter(|root| !root.shared || check_private_dir(&root.path).is_ok())
            .map(|root| root.path.join(self.netns.to_string()))
            .filter(|base| base.is_dir())
    }

    /// Read every root; `locked` is the one whose lock the caller holds.
    fn scan(&self, locked: Option<&Path>) -> Result<Vec<SandboxState>> {
        let mut found = Vec::new();
        for base in self.existing_bases() {
            let _guard = match locked {
                Some(path) if path == base => None,
                // The other roots' locks are never held while waiting for the first one's by anybody else:
                // who registers takes its own, then these for a moment, in the order of the roots.
                Some(_) => lock_base(&base).ok(),
                None => Some(lock_base(&base)?),
            };
            found.extend(read_base(&base)?);
        }
        Ok(found)
    }
}

/// A registered sandbox. Dropping it takes the entry away; being killed leaves it to the next one who looks.
#[derive(Debug)]
pub struct Registration {
    dir: StateDir,
    entry: PathBuf,
    lock: File,
    last: SandboxState,
}

impl Registration {
    /// The sandbox's directory. It may move when [`repair`](Self::repair) has to make it again.
    pub fn path(&self) -> &Path {
        &self.entry
    }

    /// Replace `state.json`, atomically. Makes the directory again when somebody removed it.
    pub fn publish(&mut self, state: &SandboxState) -> Result<()> {
        self.last = state.clone();
        if !self.repair()? {
            write_state(&self.entry, &self.last)?;
        }
        Ok(())
    }

    /// Make the entry again when it has gone (logind removed the runtime directory), with the state published
    /// last. True when it had to: an API socket in it must then be bound anew.
    pub fn repair(&mut self) -> Result<bool> {
        let same = |a: fs::Metadata, b: fs::Metadata| a.ino() == b.ino() && a.dev() == b.dev();
        let intact = match (fs::metadata(self.entry.join("lock")), self.lock.metadata()) {
            (Ok(there), Ok(ours)) => same(there, ours),
            _ => false,
        };
        if intact {
            return Ok(false);
        }
        let base = self.dir.usable_base()?;
        let _guard = lock_base(&base)?;
        self.entry = base.join("sandboxes").join(&self.last.id);
        self.lock = make_entry(&self.entry)?;
        write_state(&self.entry, &self.last)?;
        Ok(true)
    }

    /// Bind the API's socket in the entry, whatever the length of its path; mode 0600. An old one is replaced.
    pub fn bind_api(&self) -> Result<UnixListener> {
        let path = self.entry.join("api.sock");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("replace", path)(error)),
            _ => {}
        }
        let dir = File::open(&self.entry).map_err(failed("open", &self.entry))?;
        // Nobody else gets past the entry's mode 0700, so there is no moment in which the socket is open to others.
        let listener = UnixListener::bind(short_path(&dir, "api.sock")).map_err(failed("bind", &path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(failed("change the mode of", path))?;
        Ok(listener)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // Under the directory's lock, so that nobody sees half of it; without it when the root has gone.
        let base = self.entry.parent().and_then(Path::parent);
        let _guard = base.and_then(|base| lock_base(base).ok());
        remove_entry(&self.entry);
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// A path to a file in an open directory that is short enough for a socket address.
fn short_path(dir: &File, name: &str) -> PathBuf {
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

/// The living sandboxes of one root, whose lock the caller holds. Leftovers are removed.
fn read_base(base: &Path) -> Result<Vec<SandboxState>> {
    let sandboxes = base.join("sandboxes");
    let entries = match fs::read_dir(&sandboxes) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("read", sandboxes)(error)),
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        if is_alive(&path) {
            // A living one without a readable state is ending right now, or its disk is full.
            found.extend(read_state(&path));
        } else {
            remove_entry(&path);
        }
    }
    Ok(found)
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

/// Does a living supervisor hold this entry's lock? When that cannot be found out it is taken for alive.
fn is_alive(entry: &Path) -> bool {
    match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(entry.join("lock")) {
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
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A directory that goes away with the test.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Scratch {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("tapline-state-{}-{n}", std::process::id()));
            DirBuilder::new().mode(0o700).create(&path).unwrap();
            Scratch(path)
        }

        fn dir(&self) -> StateDir {
            let runtime = self.0.join("run");
            make_private_dir(&runtime).unwrap();
            StateDir::at(Some(runtime), self.0.join("fallback"), 42).unwrap()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_registered_sandbox_is_found_by_name_id_and_prefix_until_it_ends() {
        let scratch = Scratch::new();
        let dir = scratch.dir();
        let mut one = dir.register("0123456789ab", "web").unwrap();
        let _two = dir.register("01ffffffffff", "db").unwrap();
        let mut state = dir.find("web").unwrap();
        assert_eq!((state.id.as_str(), state.pid), ("0123456789ab", None));
        state.pid = Some(7);
        one.publish(&state).unwrap();
        assert_eq!(dir.find("0123456789ab").unwrap(), state);
        assert_eq!(dir.find("012").unwrap(), state);
        assert!(matches!(dir.find("01"), Err(StateError::Ambiguous { .. })));
        assert!(matches!(dir.find(""), Err(StateError::NotFound(_))));
        drop(one);
        assert!(matches!(dir.find("web"), Err(StateError::NotFound(_))));
        assert_eq!(dir.list().unwrap().len(), 1);
    }

    #[test]
    fn a_taken_name_is_refused_with_who_has_it() {
        let scratch = Scratch::new();
        let dir = scratch.dir();
        let _held = dir.register("0123456789ab", "web").unwrap();
        let error = dir.register("ba9876543210", "web").unwrap_err().to_string();
        assert!(error.contains("`web`") && error.contains("0123456789ab") && error.contains("--name"), "{error}");
        assert!(!scratch.0.join("run/tapline/42/sandboxes/ba9876543210").exists());
    }

    #[test]
    fn of_many_who_want_one_name_at_once_one_gets_it() {
        let scratch = Scratch::new();
        let dir = scratch.dir();
        let barrier = std::sync::Barrier::new(8);
        let won: Vec<Registration> = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..8)
                .map(|n| {
                    let (dir, barrier) = (&dir, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        dir.register(&format!("00000000000{n}"), "same").ok()
                    })
                })
                .collect();
            tries.into_iter().filter_map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(won.len(), 1);
        assert_eq!(dir.list().unwrap().len(), 1);
    }

    #[test]
    fn a_glance_does_not_wait_for_whoever_has_the_lock() {
        let scratch = Scratch::new();
        let dir = scratch.dir();
        let _web = dir.register("0123456789ab", "web").unwrap();
        let lock = lock_base(&scratch.0.join("run/tapline/42")).unwrap();
        assert_eq!(dir.glance(), []);
        drop(lock);
        assert_eq!(dir.glance(), dir.list().unwrap());
        assert_eq!(dir.glance().len(), 1);
    }

    #[test]
    fn the_entry_of_a_killed_supervisor_is_cleaned_by_who_meets_it() {
        let scratch = Scratch::new();
        let dir = scratch.dir();
        // Another process holds the lock, as a supervisor would; then it is killed.
        let entry = scratch.0.join("run/tapline/42/sandboxes/aaaaaaaaaaaa");
        drop(make_entry(&entry).unwrap());
        let mut holder = Command::new("flock")
            .arg(entry.join("lock"))
            .args(["sh", "-c", "echo held; exec sleep 60"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0; 5];
        holder.stdout.take().unwrap().read_exact(&mut line).unwrap();
        let mut state = dir.register("bbbbbbbbbbbb", "other").map(|r| r.last.clone()).unwrap();
        (state.id, state.name) = ("aaaaaaaaaaaa".into(), "web".into());
        write_state(&entry, &state).unwrap();
        assert_eq!(dir.find("web").unwrap().id, "aaaaaaaaaaaa");
        assert!(matches!(dir.register("cccccccccccc", "web"), Err(StateError::NameTaken { .. })));

        // `sleep` inherits the lock from flock(1), so it has to go as well.
        kill_tree(holder.id());
        holder.wait().unwrap();
        let freed = (0..500).find_map(|_| {
            let freed = dir.register("cccccccccccc", "web").ok();
            if freed.is_none() {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            freed
        });
        assert!(freed.is_some());
        assert!(!entry.exists());
    }

    fn kill_tree(pid: u32) {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        for child in children.split_whitespace() {
            kill_tree(child.parse().unwrap());
        }
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    #[test]
    fn without_a_runtime_directory_the_fallback_serves_and_is_found_again() {
        let scratch = Scratch::new();
        let fallback = scratch.0.join("fallback");
        let without = StateDir::at(None, fallback.clone(), 42).unwrap();
        let _held = without.register("0123456789ab", "web").unwrap();
        assert_eq!(fs::metadata(&fallback).unwrap().mode() & 0o7777, 0o700);
        let with = scratch.dir();
        assert_eq!(with.find("web").unwrap().id, "0123456789ab");
        assert!(matches!(with.register("ba9876543210", "web"), Err(StateError::NameTaken { .. })));
    }

    #[test]
    fn a_removed_runtime_directory_is_survived() {
        let scratch = Scratch::new();
        let dir = scratch.dir();
        let mut held = dir.register("0123456789ab", "web").unwrap();
        assert!(!held.repair().unwrap());
        fs::remove_dir_all(scratch.0.join("run")).unwrap();
        assert!(held.repair().unwrap());
        assert!(held.path().starts_with(scratch.0.join("fallback")), "{:?}", held.path());
        let later = StateDir::at(Some(scratch.0.join("run")), scratch.0.join("fallback"), 42).unwrap();
        assert_eq!(later.find("web").unwrap().id, "0123456789ab");
    }

    #[test]
    fn another_namespace_sees_none_of_them() {
        let scratch = Scratch::new();
        let _held = scratch.dir().register("0123456789ab", "web").unwrap();
        let other = StateDir::at(Some(scratch.0.join("run")), scratch.0.join("fallback"), 43).unwrap();
        assert!(other.list().unwrap().is_empty());
        other.register("0123456789ab", "web").unwrap();
    }

    #[test]
    fn a_fallback_that_somebody_prepared_is_refused() {
        let scratch = Scratch::new();
        let elsewhere = scratch.0.join("elsewhere");
        make_private_dir(&elsewhere).unwrap();
        let link = scratch.0.join("link");
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        let error = StateDir::at(None, link, 42).unwrap_err().to_string();
        assert!(error.contains("symbolic link") && error.contains("XDG_RUNTIME_DIR"), "{error}");

        let open = scratch.0.join("open");
        make_private_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(StateDir::at(None, open, 42).unwrap_err().to_string().contains("0755"));

        let file = scratch.0.join("file");
        fs::write(&file, "").unwrap();
        assert!(StateDir::at(None, file, 42).unwrap_err().to_string().contains("not a directory"));
    }

    #[test]
    fn a_runtime_directory_that_is_no_directory_of_ours_is_passed_over() {
        let scratch = Scratch::new();
        let file = scratch.0.join("file");
        fs::write(&file, "").unwrap();
        for bad in [file, scratch.0.join("missing"), PathBuf::from("relative")] {
            let dir = StateDir::at(Some(bad), scratch.0.join("fallback"), 42).unwrap();
            let held = dir.register("0123456789ab", "web").unwrap();
            assert!(held.path().starts_with(scratch.0.join("fallback")));
        }
    }

    #[test]
    fn the_api_socket_is_reached_through_a_path_of_any_length() {
        let scratch = Scratch::new();
        let mut deep = scratch.0.clone();
        for _ in 0..4 {
            deep.push("d".repeat(40));
            make_private_dir(&deep).unwrap();
        }
        let dir = StateDir::at(Some(deep), scratch.0.join("fallback"), 42).unwrap();
        let held = dir.register("0123456789ab", "web").unwrap();
        let listener = held.bind_api().unwrap();
        let mut client = dir.connect_api("0123456789ab").unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"x").unwrap();
        let mut byte = [0];
        server.read_exact(&mut byte).unwrap();
        assert_eq!(fs::metadata(held.path().join("api.sock")).unwrap().mode() & 0o777, 0o600);
        held.bind_api().unwrap();
    }
}
