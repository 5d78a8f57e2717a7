//! Signals that a supervisor gets and CMD is to have.
//!
//! # Theory of operation
//!
//! All signals that can be are blocked in the supervisor, and those it has something to do for are read from a
//! signalfd. Each goes on to CMD, with one exception: what the terminal sends (Ctrl-C, Ctrl-\, Ctrl-Z, a new size, a
//! hang-up) goes to every process of the foreground group, and CMD is one of them, unless it has made itself a group
//! of its own, in which case the terminal sends it there. Sent on it would come twice. Such signals have SI_KERNEL as
//! their code (sigaction(2)); what a process sent has SI_USER or another.
//!
//! A signal that is blocked arrives even where it is ignored. Those that the caller had ignored, as nohup(1) does with
//! SIGHUP, end nobody; but SIGTERM, by which others say that they want an end, always does.
//!
//! The mask that was in force before is kept for CMD.
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::sys::proc;

/// Those that go on to CMD.
const FORWARDED: [Signal; 9] = [
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGCONT,
    Signal::SIGTSTP,
];

/// A signal that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arrived {
    /// Which.
    pub(super) signal: Signal,
    /// The terminal sent it, to CMD too.
    pub(super) from_terminal: bool,
    is_ignored: bool,
}

impl Arrived {
    /// Would it have ended this process, had it not been blocked?
    pub(super) fn ends(self) -> bool {
        !self.is_ignored && !matches!(self.signal, Signal::SIGWINCH | Signal::SIGCONT | Signal::SIGTSTP)
    }
}

/// The supervisor's signals, blocked from [`Signals::take`] on.
#[derive(Debug)]
pub(super) struct Signals {
    fd: SignalFd,
    before: SigSet,
}

impl Signals {
    /// Block all signals and read those that concern CMD.
    pub(super) fn take() -> nix::Result<Signals> {
        let mut before = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
        let mut wanted = SigSet::empty();
        wanted.extend(FORWARDED);
        let fd = SignalFd::with_flags(&wanted, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
        if fd.is_err() {
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
        }
        Ok(Signals { fd: fd?, before })
    }

    /// The mask of before.
    pub(super) fn before(&self) -> SigSet {
        self.before
    }

    /// The next that has arrived, if one has.
    pub(super) fn next(&self) -> Option<Arrived> {
        let info = self.fd.read_signal().ok()??;
        let signal = i32::try_from(info.ssi_signo).ok().and_then(|n| Signal::try_from(n).ok())?;
        let is_ignored = signal != Signal::SIGTERM && proc::is_ignored(signal);
        Some(Arrived { signal, from_terminal: info.ssi_code == libc::SI_KERNEL, is_ignored })
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // What arrived meanwhile and nobody took is dealt with as the caller's dispositions say.
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.before), None);
    }
}
