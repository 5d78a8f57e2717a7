//! What each process gives up, stage by stage.
//!
//! # Theory of operation
//!
//! A gateway reads what a sandbox sends, so it should be able to do as little as possible if that ever gets the
//! better of it. It gives things up in named stages, each a function that can be read and tested alone, in this
//! order and before the first frame is read:
//!
//! 1. [`Stage::Privileges`]: no capability in any set, and none to be had again (`no_new_privs`: a set-user-id
//!    program it might start would get nothing). A gateway that root starts then does what any user's does.
//! 2. [`Stage::Memory`]: not dumpable: nobody of the same user can trace it or read its memory, and it leaves no
//!    core file.
//! 3. [`Stage::Surroundings`]: working directory `/` (no mount is kept busy), umask 077.
//! 4. [`Stage::Limits`]: the soft limit of descriptors is raised to the hard one, because each flow needs one;
//!    core files are off.
//!
//! A supervisor does what needs the host's file system and the sandbox's namespaces, so it keeps more. Where its caller
//! wants less of it ([`supervisor`], the `--enable-sandbox` of slirp4netns' command line) it gives up, when everything is
//! in place, its capabilities but for CAP_NET_BIND_SERVICE, with which it may bind ports that are asked for later, and
//! the ways to gain others. What else it does needs none: it holds the namespace or has an agent in it.
//!
//! Capabilities belong to a thread, so all of this happens while there is only one. What follows later (an empty
//! root, seccomp) is a further stage of the same list.
use std::io;

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};

use crate::sys::caps;

/// One thing that is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Capabilities and the ways to gain some.
    Privileges,
    /// Being traced, dumped, read.
    Memory,
    /// Working directory and file creation mask.
    Surroundings,
    /// Resource limits.
    Limits,
}

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

/// Confine a gateway; gives what this kernel, or whatever surrounds us, has no room for. Call it before any thread is
/// started.
pub fn gateway() -> Result<Vec<Lack>, ConfineError> {
    for stage in [Stage::Privileges, Stage::Memory, Stage::Surroundings, Stage::Limits] {
        stage.enter().map_err(|(operation, error)| ConfineError { stage, operation, error })?;
    }
    Ok(Vec::new())
}

/// Confine a supervisor whose sandbox is in place.
pub fn supervisor() -> Result<(), ConfineError> {
    let failed = |operation| move |error: io::Error| ConfineError { stage: Stage::Privileges, operation, error };
    prctl::set_no_new_privs().map_err(|error| failed("no_new_privs")(error.into()))?;
    caps::keep_only(&[caps::Capability::NetBindService]).map_err(failed("drop capabilities"))
}

/// Confine an agent that stays in a namespace which its supervisor could not enter again: it can go on making interfaces and
/// listeners there.
pub fn agent() -> Result<(), ConfineError> {
    use caps::Capability::{NetAdmin, NetBindService, NetRaw};
    let failed = |operation| move |error: io::Error| ConfineError { stage: Stage::Privileges, operation, error };
    prctl::set_no_new_privs().map_err(|error| failed("no_new_privs")(error.into()))?;
    caps::keep_only(&[NetBindService, NetAdmin, NetRaw]).map_err(failed("drop capabilities"))
}

type StageResult = Result<(), (&'static str, io::Error)>;

impl Stage {
    fn enter(self) -> StageResult {
        match self {
            Stage::Privileges => privileges(),
            Stage::Memory => memory(),
            Stage::Surroundings => surroundings(),
            Stage::Limits => limits(),
        }
    }
}

fn privileges() -> StageResult {
    prctl::set_no_new_privs().map_err(|e| ("no_new_privs", e.into()))?;
    caps::drop_all().map_err(|e| ("drop capabilities", e))
}

fn memory() -> StageResult {
    prctl::set_dumpable(false).map_err(|e| ("PR_SET_DUMPABLE", e.into()))
}

fn surroundings() -> StageResult {
    umask(Mode::from_bits_truncate(0o077));
    nix::unistd::chdir("/").map_err(|e| ("change to /", e.into()))
}

fn limits() -> StageResult {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|e| ("read RLIMIT_NOFILE", e.into()))?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(|e| ("raise RLIMIT_NOFILE", e.into()))?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|e| ("RLIMIT_CORE", e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_confined_process_has_given_up_what_the_stages_say() {
        const INSIDE: &str = "TAPLINE_TEST_CONFINED";
        const ME: &str = "confine::tests::a_confined_process_has_given_up_what_the_stages_say";
        if std::env::var_os(INSIDE).is_none() {
            // Once confined a process stays so: another one has to be.
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", ME, "--nocapture"])
                .env(INSIDE, "1")
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
            return;
        }
        gateway().unwrap();
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim();
        assert_eq!(field("CapEff:"), "0000000000000000");
        assert_eq!(field("CapPrm:"), "0000000000000000");
        assert_eq!(field("NoNewPrivs:"), "1");
        assert_eq!(field("Umask:"), "0077");
        assert!(!prctl::get_dumpable().unwrap());
        assert_eq!(std::env::current_dir().unwrap().to_str(), Some("/"));
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(soft, hard);
        assert_eq!(getrlimit(Resource::RLIMIT_CORE).unwrap(), (0, 0));
    }
}
