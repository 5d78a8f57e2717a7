//! Mode `container`: another sandbox's network, for a sandbox with files and processes of its own.
//!
//! # Theory of operation
//!
//! Whose network it is may be said by the name or id of a sandbox (of `run` or of `attach`), by a PID, or by the path
//! of a network namespace. [`find`] opens it in three parts:
//!
//! - the [`Door`]: the namespaces that the agent enters in place of making its own, and the UTS namespace, so that the
//!   new sandbox begins with the other one's hostname. The user namespace is the other one's as well, because only its
//!   members may mount a /sys that shows that network; ids inside are therefore what they are there. A network
//!   namespace that belongs to the caller's own user namespace is entered alone, and CMD gets a user namespace of its
//!   own. The supervisor closes the door after the fork, since a descriptor of a namespace keeps it alive;
//! - the texts of hosts, resolv.conf and hostname as they are there, read once. What a process that is not ours has
//!   there is not trusted: its links lead nowhere out of its root, and only ordinary files of a decent size are read;
//! - the [`Lease`], which tells that the other one has ended: its process, or for a path what is there. With a sandbox
//!   its supervisor counts too, because without it nobody serves the network. Then CMD goes on, with what is left of
//!   the namespace: `lo`, and an interface that nobody answers on, or none.
//!
//! What `--locked` promises holds here as in every mode. CMD has no capability over the network namespace it is in,
//! none over the mount namespace its view was made in, and cannot take off what covers the host's files there: it runs
//! in a user and a mount namespace below those that own them.
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Gid, Uid, setresgid, setresuid};

use super::etc;
use super::exec::parent_of;
use super::target::{self, Life, Opened, TargetError};
use super::userns::{self, Caller};
use crate::control::state::{SandboxState, StateDir, StateError};
use crate::plan::{MapUser, Mode, Names, Run, Shared, Target, Userns};
use crate::sys::spawn;

/// Why a network cannot be shared. One sentence each.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// No sandbox, or several.
    #[error("--net container:{word}: {error}")]
    State {
        /// What was given.
        word: String,
        /// Why.
        error: StateError,
    },
    /// Its own name.
    #[error("--net container:{0} is this sandbox itself, which has no network yet: name another one")]
    Itself(String),
    /// One in mode `host`.
    #[error("--net container:{0}: that sandbox uses the host's network itself; for the same, use --net host")]
    UsesHost(String),
    /// The host's namespace.
    #[error("--net {0}: that is the network of the host, as tapline sees it; for the same, use --net host")]
    IsHost(String),
    /// It has ended, or has not begun.
    #[error("--net container:{0}: that sandbox has ended, or is only just starting: see `tapline ps`")]
    Gone(String),
    /// The namespace cannot be entered.
    #[error("--net {word}: {error}")]
    Target {
        /// What was given.
        word: String,
        /// Why.
        error: TargetError,
    },
}

/// Another sandbox's network, open.
#[derive(Debug)]
pub(super) struct Other {
    /// For the agent.
    door: Door,
    /// For the supervisor.
    lease: Lease,
    /// Files of /etc as they are there.
    files: Vec<(&'static str, String)>,
}

/// The namespaces to enter.
#[derive(Debug)]
pub(super) struct Door {
    opened: Opened,
    uts: Option<OwnedFd>,
}

/// How long the network lasts.
#[derive(Debug)]
pub(super) struct Lease {
    /// As it was written behind `--net`.
    word: String,
    life: Life,
    /// Readable when the sandbox's supervisor has ended.
    supervisor: Option<OwnedFd>,
}

/// Find what `--net container:` names. The new sandbox is registered already, so that it can be told from others.
pub(super) fn find(states: &StateDir, plan: &Run, shared: &Shared) -> Result<Other, ShareError> {
    let word = shared.to_string();
    let mut served = None;
    let (target, supervisor) = match shared {
        Shared::Path(netns) => (Target::Path { netns: netns.clone(), userns: Userns::Owner }, None),
        Shared::Sandbox(name) => match states.find(name) {
            // An id that happens to begin like a PID.
            Ok(state) if state.id == plan.id && state.name != *name && state.id != *name => (by_pid(name)?, None),
            Ok(state) if state.id == plan.id => return Err(ShareError::Itself(name.clone())),
            Ok(state) => {
                let found = of_sandbox(states, &state, name)?;
                served = (state.names.is_none() && state.container.is_none()).then_some(state);
                found
            }
            Err(StateError::NotFound(_)) => (by_pid(name)?, None),
            Err(error) => return Err(ShareError::State { word: name.clone(), error }),
        },
    };
    let (opened, life) = target::open(&target).map_err(|error| match (error, shared) {
        (TargetError::Own, _) => ShareError::IsHost(word.clone()),
        // Its state names what has ended meanwhile, or will be something else.
        (TargetError::NoProcess(_) | TargetError::WrongKind { .. }, Shared::Sandbox(name)) if supervisor.is_some() => {
            ShareError::Gone(name.clone())
        }
        (error, _) => ShareError::Target { word: word.clone(), error },
    })?;
    let process = match &target {
        Target::Pid(pid) => Some(*pid),
        Target::Path { netns, .. } => target::process_of(netns),
        Target::Tap(_) => None,
    };
    let uts = process.and_then(|pid| File::open(format!("/proc/{pid}/ns/uts")).ok()).map(OwnedFd::from);
    let mut files = match (&target, process) {
        (_, Some(pid)) => files_below(Path::new("/proc").join(pid.to_string()).join("root/etc"), Root::Process(pid)),
        (Target::Path { netns, .. }, None) => netns.file_name().map_or(Vec::new(), |name| {
            // As `ip netns exec` has it (ip-netns(8)).
            files_below(Path::new("/etc/netns").join(name), Root::Own)
        }),
        (Target::Pid(_) | Target::Tap(_), None) => Vec::new(),
    };
    if let Some(state) = served {
        name_servers(&mut files, &state);
    }
    Ok(Other { door: Door { opened, uts }, lease: Lease { word, life, supervisor }, files })
}

/// What `attach` serves has no resolv.conf of tapline's making: where it has none but the host's, or none, the
/// network's own resolvers are the ones that answer there.
fn name_servers(files: &mut Vec<(&'static str, String)>, state: &SandboxState) {
    let hosts = std::fs::read_to_string("/etc/resolv.conf").ok();
    let theirs = files.iter().position(|(name, _)| *name == etc::RESOLV_CONF);
    if theirs.is_some_and(|at| hosts.as_ref() != Some(&files[at].1)) {
        return;
    }
    let names = Names {
        hostname: state.name.clone(),
        dns: true,
        servers: Vec::new(),
        search: None,
        options: Vec::new(),
        hosts: Vec::new(),
    };
    let text = etc::resolv_conf(&names, &state.endpoints, &[]);
    if text.is_empty() {
        return;
    }
    match theirs {
        Some(at) => files[at].1 = text,
        None => files.push((etc::RESOLV_CONF, text)),
    }
}

/// A process, where no sandbox is called so.
fn by_pid(word: &str) -> Result<Target, ShareError> {
    match word.parse() {
        Ok(pid) if pid > 0 => Ok(Target::Pid(pid)),
        _ => Err(ShareError::State { word: word.to_owned(), error: StateError::NotFound(word.to_owned()) }),
    }
}

/// A sandbox's process or path, and a pidfd of its supervisor.
fn of_sandbox(states: &StateDir, state: &SandboxState, word: &str) -> Result<(Target, Option<OwnedFd>), ShareError> {
    let gone = || ShareError::Gone(word.to_owned());
    if state.mode == Mode::Host {
        return Err(ShareError::UsesHost(word.to_owned()));
    }
    let supervisor = spawn::pidfd_open(state.supervisor_pid.unsigned_abs()).map_err(|_| gone())?;
    // Its number was not given to another before the descriptor was there.
    if states.find(&state.id).map_or(true, |now| now.supervisor_pid != state.supervisor_pid) {
        return Err(gone());
    }
    let target = match (state.pid, state.command.first()) {
        // What `attach` serves was made by somebody else; what `run` made is a grandchild of its supervisor.
        (Some(pid), Some(command)) if *command == pid.to_string() => Target::Pid(pid),
        (Some(pid), _) if parent_of(pid).and_then(parent_of) == Some(state.supervisor_pid) => Target::Pid(pid),
        // `attach` by path; or one that is only just starting, whose command's path is no namespace.
        (None, Some(path)) if path.starts_with('/') => Target::Path { netns: path.into(), userns: Userns::Owner },
        _ => return Err(gone()),
    };
    Ok((target, Some(supervisor)))
}

/// Whose root directory links are followed in.
#[derive(Clone, Copy)]
enum Root {
    Own,
    Process(i32),
}

/// Longest file that is taken over, in bytes.
const LONGEST: u64 = 1 << 20;

/// The files of /etc that concern the network, as they are in a directory; those that are not there are left out.
fn files_below(dir: PathBuf, root: Root) -> Vec<(&'static str, String)> {
    ["hostname", etc::RESOLV_CONF, etc::HOSTS]
        .into_iter()
        .filter_map(|name| {
            let text = read_file(&dir, name, root)
                .inspect_err(|error| tracing::debug!("cannot take over {name} of {}: {error}", dir.display()))
                .ok()?;
            Some((name, text))
        })
        .collect()
}

fn read_file(dir: &Path, name: &str, root: Root) -> io::Result<String> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = match root {
        Root::Own => File::open(dir.join(name))?,
        Root::Process(pid) => {
            let root = File::open(format!("/proc/{pid}/root"))?;
            let how =
                OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
            File::from(openat2(&root, &Path::new("etc").join(name), how)?)
        }
    };
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no ordinary file, or too large"));
    }
    let mut bytes = Vec::new();
    file.take(LONGEST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl Other {
    /// For each who needs it.
    pub(super) fn into_parts(self) -> (Option<Door>, Option<Lease>, Vec<(&'static str, String)>) {
        (Some(self.door), Some(self.lease), self.files)
    }
}

impl Door {
    /// Its descriptors, which the agent keeps.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.opened.fds().chain(self.uts.iter().map(AsFd::as_fd))
    }

    /// Enter, in the agent, which has one thread.
    pub(super) fn enter(&self, caller: Caller) -> Result<(), String> {
        self.opened.enter().map_err(|e| e.to_string())?;
        if !self.opened.has_userns() {
            userns::enter_new(CloneFlags::empty()).map_err(|e| e.to_string())?;
            return userns::map_self(caller, MapUser::Root).map_err(|e| e.to_string());
        }
        if let Some(uts) = &self.uts {
            // Another user namespace's, or the one we are in: the hostname is then the one that is here.
            let _ = setns(uts, CloneFlags::CLONE_NEWUTS);
        }
        // Somebody whom that user namespace does not know, such as the host's root, is its root.
        if Uid::effective().as_raw() == OVERFLOW_ID {
            let _ = setresgid(ROOT_GID, ROOT_GID, ROOT_GID);
            let _ = setresuid(ROOT_UID, ROOT_UID, ROOT_UID);
        }
        Ok(())
    }
}

/// What an id looks like that a user namespace does not map (/proc/sys/kernel/overflowuid).
const OVERFLOW_ID: u32 = 65_534;
const ROOT_UID: Uid = Uid::from_raw(0);
const ROOT_GID: Gid = Gid::from_raw(0);

impl Lease {
    /// What to poll for being readable.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.life.fd().into_iter().chain(self.supervisor.iter().map(AsFd::as_fd))
    }

    /// How long to wait at most before asking [`is_over`](Self::is_over).
    pub(super) fn interval(&self) -> Option<Duration> {
        self.life.interval()
    }

    /// Has the other one ended?
    pub(super) fn is_over(&self) -> bool {
        let ended = self.supervisor.as_ref().is_some_and(|supervisor| {
            let mut fds = [PollFd::new(supervisor.as_fd(), PollFlags::POLLIN)];
            matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
        });
        ended || self.life.is_over()
    }

    /// What the person is told then.
    pub(super) fn obituary(&self) -> String {
        format!("--net {}: that network has ended, and the command goes on without a network", self.word)
    }
}
