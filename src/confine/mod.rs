//! What each process gives up, stage by stage.
//!
//! # Theory of operation
//!
//! A gateway reads what a sandbox sends, so it should be able to do as little as possible if that ever gets the
//! better of it. It gives things up in named stages, in the order of [`STAGES`], before it has read anything of
//! anybody's and while it has one thread: capabilities and the like belong to a thread, and new threads get them from
//! the one that starts them.
//!
//! | stage | afterwards it is impossible to |
//! | --- | --- |
//! | [`Privileges`](Stage::Privileges) | gain rights by starting a set-user-id program (`no_new_privs`, which also lets anybody use seccomp) |
//! | [`Descriptors`](Stage::Descriptors) | use a descriptor that somebody forgot to close: there are the standard three and the entrance |
//! | [`Namespaces`](Stage::Namespaces) | have a capability over anything of the host's; see, signal or trace another process; set the host's name; make another user namespace |
//! | [`Root`](Stage::Root) | open or make any file: there is none, and no room for one |
//! | [`Capabilities`](Stage::Capabilities) | mount, change ids, enter a namespace, and do whatever else takes a capability, for good: the bounding set is empty too |
//! | [`Memory`](Stage::Memory) | be traced, dumped or read by another process of the same user |
//! | [`Surroundings`](Stage::Surroundings) | keep a mount busy; make a file that others may read |
//! | [`Files`](Stage::Files) | open, make, remove or execute any file, whatever the root is (Landlock, [`files`]); use an abstract Unix socket of others, or send them a signal, where the kernel can see to that |
//! | [`Limits`](Stage::Limits) | leave a core file; lock memory, have message queues or a real-time priority. (The soft limit of descriptors is raised to the hard one, because each flow needs one.) |
//! | [`Calls`](Stage::Calls) | make any system call that is not on a list ([`calls`]): no other kind of socket, no process, no memory that can be executed, no look at what the stages have set, or change of it. It ends the process |
//!
//! The order is no accident. A second process is needed for a PID namespace, and should find no descriptor to inherit;
//! the root can be changed only with the capabilities that the new user namespace gives; a process that is not dumpable
//! can no longer write its own id maps; the sweep over descriptors and the maps need /proc; of what the other stages do
//! hardly anything is on the list of calls.
//!
//! What is a matter of the process alone must not fail ([`ConfineError`]). What kernels and containers may refuse is
//! done as far as it goes, and what is missing is said in one sentence for each cause ([`Lack`]), which reaches the person
//! through the supervisor. After the stages a gateway opens no file: what needs one (the id maps, the reasons for a
//! refusal) is looked at before, and all else comes as a descriptor.
//!
//! An agent, who minds a command, and a supervisor have stages of their own: [`agent`](fn@agent), [`minder`],
//! [`supervisor`](fn@supervisor).
use std::io;

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};

use crate::sys::caps;
use crate::sys::refusal::{Facts, Reason};

mod agent;
pub mod calls;
mod descriptors;
mod files;
mod forbidden;
mod namespaces;
mod paths;
mod root;
mod supervisor;

pub use agent::{Confined, agent, minder};
pub use supervisor::{Keep, supervisor};

/// One thing that is given up. What is impossible afterwards is said at the top of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Gaining privileges.
    Privileges,
    /// Descriptors that nobody meant us to have.
    Descriptors,
    /// The host's processes, and rights over what is the host's.
    Namespaces,
    /// The host's files.
    Root,
    /// Capabilities.
    Capabilities,
    /// Being traced, dumped, read.
    Memory,
    /// Working directory and file creation mask.
    Surroundings,
    /// All files.
    Files,
    /// Resource limits.
    Limits,
    /// System calls.
    Calls,
}

/// A gateway's, in their order.
const STAGES: [Stage; 10] = [
    Stage::Privileges,
    Stage::Descriptors,
    Stage::Namespaces,
    Stage::Root,
    Stage::Capabilities,
    Stage::Memory,
    Stage::Surroundings,
    Stage::Files,
    Stage::Limits,
    Stage::Calls,
];

/// A stage that could not be had here; what it takes away is still possible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// Which.
    pub stage: Stage,
    /// What is missing, and why; for the person.
    pub sentence: String,
}

/// What supervisors are told of them.
pub fn sentences(lacks: &[Lack]) -> Vec<String> {
    lacks.iter().map(|lack| lack.sentence.clone()).collect()
}

/// A stage did not work.
#[derive(Debug, thiserror::Error)]
#[error("the process cannot confine itself: {operation}: {error}")]
pub struct ConfineError {
    /// Where.
    pub stage: Stage,
    /// Which operation.
    pub operation: &'static str,
    /// Why.
    pub error: io::Error,
}

/// An operation that failed, and why.
type Failure = (&'static str, io::Error);

/// How a gateway goes on in a second process, as the first of a PID namespace.
pub enum Succession<'a> {
    /// As a child of the same parent. The second process does this at once; where there is no such namespace to be had the
    /// first goes on.
    Sibling(&'a mut dyn FnMut() -> io::Result<()>),
    /// As nobody's child, in any case. The first process does this when there is a second, and ends with the status that
    /// it returns.
    Orphan(&'a mut dyn FnMut() -> i32),
}

/// Confine a gateway; gives what this kernel, or whatever surrounds us, has no room for. Call it before any thread is
/// started and any file of anybody's is read. It returns in the process that is to go on.
pub fn gateway(succession: Succession<'_>) -> Result<Vec<Lack>, ConfineError> {
    enter(&STAGES, succession)
}

/// Enter these stages.
fn enter(stages: &[Stage], succession: Succession<'_>) -> Result<Vec<Lack>, ConfineError> {
    let mut confinement = Confinement { succession: Some(succession), can_change_root: false, lacks: Vec::new() };
    for &stage in stages {
        let entered = confinement.enter(stage);
        entered.map_err(|(operation, error)| ConfineError { stage, operation, error })?;
    }
    Ok(confinement.lacks)
}

/// A gateway on its way through the stages.
struct Confinement<'a> {
    succession: Option<Succession<'a>>,
    can_change_root: bool,
    lacks: Vec<Lack>,
}

impl Confinement<'_> {
    fn enter(&mut self, stage: Stage) -> Result<(), Failure> {
        match stage {
            Stage::Privileges => prctl::set_no_new_privs().map_err(|e| ("no_new_privs", e.into())),
            Stage::Descriptors => descriptors::close_inherited(),
            Stage::Namespaces => self.namespaces(),
            Stage::Root => {
                self.root();
                Ok(())
            }
            Stage::Capabilities => caps::drop_all().map_err(|e| ("drop capabilities", e)),
            Stage::Memory => prctl::set_dumpable(false).map_err(|e| ("PR_SET_DUMPABLE", e.into())),
            Stage::Surroundings => surroundings(),
            Stage::Files => {
                self.note(stage, files::enter());
                Ok(())
            }
            Stage::Limits => limits(),
            Stage::Calls => {
                self.note(stage, calls::enter());
                Ok(())
            }
        }
    }

    /// What is missing where a stage cannot be had here.
    fn note(&mut self, stage: Stage, entered: Result<(), String>) {
        self.lacks.extend(entered.err().map(|sentence| Lack { stage, sentence }));
    }

    fn namespaces(&mut self) -> Result<(), Failure> {
        let Some(succession) = self.succession.take() else { return Ok(()) };
        let entered = namespaces::enter(succession)?;
        self.can_change_root = entered.can_change_root;
        self.lacks.extend(entered.lack.map(|sentence| Lack { stage: Stage::Namespaces, sentence }));
        Ok(())
    }

    fn root(&mut self) {
        if !self.can_change_root {
            return;
        }
        let Err((operation, errno)) = root::empty() else { return };
        let reason = Reason::of(errno, &Facts::gather());
        let sentence =
            format!("the gateway sees the host's files, as its root cannot be emptied ({operation}): {reason}");
        match self.lacks.is_empty() {
            true => self.lacks.push(Lack { stage: Stage::Root, sentence }),
            // The reason is the same, and has been given.
            false => tracing::info!("{sentence}"),
        }
    }
}

fn surroundings() -> Result<(), Failure> {
    umask(Mode::from_bits_truncate(0o077));
    nix::unistd::chdir("/").map_err(|e| ("change to /", e.into()))
}

fn limits() -> Result<(), Failure> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|e| ("read RLIMIT_NOFILE", e.into()))?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(|e| ("raise RLIMIT_NOFILE", e.into()))?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|e| ("RLIMIT_CORE", e.into()))?;
    // Others stay as they are: RLIMIT_NPROC counts all of a user's processes, so that any number may be too small for a
    // worker's thread; RLIMIT_FSIZE would stop captures and the log, which may be large already; for memory there are
    // bounds of our own, whose end is not a sudden one.
    setrlimit(Resource::RLIMIT_MEMLOCK, 0, 0).map_err(|e| ("RLIMIT_MEMLOCK", e.into()))?;
    setrlimit(Resource::RLIMIT_MSGQUEUE, 0, 0).map_err(|e| ("RLIMIT_MSGQUEUE", e.into()))?;
    setrlimit(Resource::RLIMIT_RTPRIO, 0, 0).map_err(|e| ("RLIMIT_RTPRIO", e.into()))
}

#[cfg(test)]
mod tests;
