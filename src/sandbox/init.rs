//! Init: the first process of the sandbox's PID namespace, parent of CMD.
//!
//! # Theory of operation
//!
//! Forked by the agent into the sandbox's user and network namespace, it takes a mount and a UTS namespace of its
//! own, makes CMD's view of the file system ([`super::mounts`]), sets the hostname, reports [`FromInit::Ready`] and
//! waits for the supervisor's word; CMD must not run before the network does. Then it starts CMD, passes signals on,
//! reaps what is orphaned, and exits when CMD has ended, upon which the kernel kills whatever CMD left behind in the
//! PID namespace. With `--pid host` there is no such namespace: init is an ordinary process then, and only CMD
//! itself dies with it.
//!
//! It keeps nothing open but its socket to the supervisor, and none of CMD's standard streams: who reads CMD's output
//! sees its end when CMD closes it. It is dumpable again, unlike the agent, so that `tapline exec` can join its
//! namespaces; CMD gains nothing by tracing it, because it has given up more than CMD has ([`confine::minder`]), and a
//! locked CMD cannot trace it.
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::{set_dumpable, set_pdeathsig};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::command::{self, CommandLine, NotStarted};
use super::message::{FromInit, ToInit};
use super::mounts::View;
use super::userns;
use crate::confine;
use crate::control::wire;
use crate::sys::proc;

/// Everything init does, decided before it is forked.
#[derive(Debug)]
pub(super) struct Init {
    /// The file system.
    pub(super) view: View,
    /// The hostname inside; `None` keeps the one of the UTS namespace that the agent is in.
    pub(super) hostname: Option<String>,
    /// CMD.
    pub(super) command: CommandLine,
    /// CMD goes into a nested user namespace.
    pub(super) locked: bool,
    /// It has an IPC namespace of its own.
    pub(super) own_ipc: bool,
}

impl Init {
    /// Run to the end, in the process just forked. `supervisor` is the socket to it.
    pub(super) fn main(&self, supervisor: &OwnedFd) -> ! {
        let status = match self.run(supervisor) {
            Ok(status) => status,
            Err(text) => {
                let _ = wire::send(supervisor, &FromInit::Failed { text }, &[]);
                125
            }
        };
        proc::exit_now(status);
    }

    fn run(&self, supervisor: &OwnedFd) -> Result<i32, String> {
        set_pdeathsig(Signal::SIGKILL).map_err(|e| format!("cannot follow the agent's end: {e}"))?;
        // An agent that died before that line has closed nothing that tells, but the supervisor sees it and goes.
        proc::close_own_fds_in_child(&[supervisor.as_fd()]).map_err(|e| format!("cannot close files: {e}"))?;
        set_dumpable(true).map_err(|e| format!("cannot let `tapline exec` in: {e}"))?;
        let ipc = if self.own_ipc { CloneFlags::CLONE_NEWIPC } else { CloneFlags::empty() };
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | ipc)
            .map_err(|e| format!("cannot make a mount and a UTS namespace: {e}; does a seccomp filter forbid it?"))?;
        if let Some(hostname) = &self.hostname {
            nix::unistd::sethostname(hostname).map_err(|e| format!("cannot set the hostname to {hostname}: {e}"))?;
        }
        for text in self.view.make().map_err(|e| e.to_string())? {
            let _ = wire::send(supervisor, &FromInit::Notice { text }, &[]);
        }
        let told = |e: wire::WireError| e.to_string();
        let files = self.view.open_names();
        let fds: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        wire::send(supervisor, &FromInit::Ready, &fds).map_err(told)?;
        drop(files);
        loop {
            match wire::recv::<ToInit>(supervisor).map_err(told)? {
                Some((ToInit::Go, _)) => break,
                // The supervisor answers signals itself until CMD runs.
                Some((ToInit::Signal { .. }, _)) => {}
                None => return Ok(125),
            }
        }
        let child = match self.start() {
            Ok(child) => child,
            Err(NotStarted::Preparation(text)) => return Err(text),
            Err(NotStarted::Exec(errno)) => {
                wire::send(supervisor, &FromInit::NotExecuted { errno }, &[]).map_err(told)?;
                return Ok(127);
            }
        };
        let _ = proc::close_all_fds_in_child(&[supervisor.as_fd()]);
        let _ = proc::null_stdio(&[0, 1, 2]);
        let mut confined = confine::minder().map_err(|e| e.to_string())?;
        let lacks = std::mem::take(&mut confined.lacks);
        wire::send(supervisor, &FromInit::Started { lacks }, &[]).map_err(told)?;
        proc::go_idle();
        match command::mind(child, supervisor).map_err(|e| format!("cannot wait for the command: {e}"))? {
            Some(ending) => {
                let message = FromInit::Exited { status: ending.status, by_signal: ending.by_signal };
                let _ = wire::send(supervisor, &message, &[]);
                Ok(ending.status)
            }
            None => Ok(125),
        }
    }

    /// Fork and execute CMD, locked in where that is asked for.
    fn start(&self) -> Result<Pid, NotStarted> {
        if !self.locked {
            return command::start(&self.command, || Ok(()));
        }
        command::start(&self.command, lock)
    }
}

/// Lock a command in that is about to be executed. Capabilities in a namespace nested in the sandbox's are none over the
/// sandbox's network and mounts, and mounts that came from a more privileged namespace can no longer be taken off
/// (mount_namespaces(7)).
pub(super) fn lock() -> Result<(), String> {
    userns::nest(CloneFlags::CLONE_NEWNS).map_err(|e| format!("--locked: {e}"))
}
