//! The person's terminal: as it was, when CMD is done with it.
//!
//! CMD stays in the supervisor's process group and so in the terminal's foreground, unless it makes groups of its own,
//! as an interactive shell does. When such a CMD dies without handing the terminal back, the foreground group is one
//! that no longer exists and nobody could type to the person's shell; and when a signal ends a full-screen program its
//! modes stay behind. [`Terminal::restore`] mends both, and only those: a CMD that exits by itself has left the modes
//! as it wants them (`stty -echo`), and a foreground group that lives belongs to somebody.
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::sys::signal::killpg;
use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};

/// The controlling terminal and how it was.
#[derive(Debug)]
pub(super) struct Terminal {
    tty: OwnedFd,
    modes: Termios,
    /// Our group was in the foreground.
    foreground: bool,
}

impl Terminal {
    /// Remember the controlling terminal; `None` without one.
    pub(super) fn remember() -> Option<Terminal> {
        let tty = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open("/dev/tty").ok()?;
        let tty = OwnedFd::from(tty);
        let modes = tcgetattr(&tty).ok()?;
        let foreground = tcgetpgrp(&tty) == Ok(getpgrp());
        Some(Terminal { tty, modes, foreground })
    }

    /// CMD has ended: take the terminal back from a group that is gone, and its modes when a signal ended CMD.
    /// SIGTTOU must be blocked, which lets a process outside the foreground do this.
    pub(super) fn restore(&self, ended_by_signal: bool) {
        if !self.foreground {
            return;
        }
        let own = getpgrp();
        match tcgetpgrp(&self.tty) {
            Ok(group) if group == own => {}
            Ok(group) if !is_gone(group) => return,
            _ => drop(tcsetpgrp(&self.tty, own)),
        }
        if ended_by_signal {
            let _ = tcsetattr(&self.tty, SetArg::TCSADRAIN, &self.modes);
        }
    }
}

/// No process is in this group. The kernel gives 0 or less for one that cannot be named here.
fn is_gone(group: Pid) -> bool {
    group.as_raw() <= 1 || killpg(group, None) == Err(Errno::ESRCH)
}
