//! The agent: the process inside the sandbox's user and network namespace that does there what only a member can.
//!
//! # Theory of operation
//!
//! Forked by the supervisor and never executed, so that it needs no file inside. In order: it asks to die with the
//! supervisor; makes the user and network namespace, and has its ids mapped (by itself, or by the supervisor with
//! newuidmap), or enters another sandbox's namespaces ([`super::share`]); becomes undumpable, so that CMD, which is root of the same user namespace, can neither trace it nor
//! look into it; forks init, which makes mounts while the agent goes on with the network; makes the interfaces;
//! gives up what it does not need any more ([`confine::agent`](fn@confine::agent)), and
//! hands the links' descriptors to the supervisor. From then on it waits: for init, whose end it reports, and for the
//! supervisor's socket, whose end of file is its own end; and does what comes up later ([`super::attend`]).
//!
//! Every signal is blocked: those of the terminal concern CMD, and what ends a sandbox is the supervisor's business.
//! It stays outside CMD's PID namespace: unshare(2) puts only its children into the new one, and init is its only
//! child. Of what was open it keeps its socket alone, and no standard stream, once init is forked.
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::{set_dumpable, set_pdeathsig};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, getppid};

use super::attend::{Attendance, Ended, bind_reached, notify, send_link};
use super::init::Init;
use super::link::{self, MadeLink};
use super::message::{FromAgent, ToAgent};
use super::order::{self, Order};
use super::share::Door;
use super::userns::{self, Caller};
use crate::confine::{self, Confined};
use crate::control::wire;
use crate::plan::{LinkChoice, LinkKind, MapUser, Mode, PidMode, Ports, Reached, Run};
use crate::sys::proc::{self, Forked};
use crate::sys::spawn;
use crate::sys::tun::TUN_DEVICE;

/// The agent of `run`.
pub(super) struct Agent<'a> {
    /// What was asked for.
    pub(super) plan: &'a Run,
    /// The interfaces it is to have from the start.
    pub(super) orders: &'a [Order],
    /// Whose namespaces to enter in place of new ones, for mode `container`.
    pub(super) door: Option<&'a Door>,
    /// The caller's ids.
    pub(super) caller: Caller,
    /// What init is to do.
    pub(super) init: &'a Init,
    /// The supervisor.
    pub(super) parent: Pid,
    /// The socket to it.
    pub(super) supervisor: OwnedFd,
    /// Init's socket to it.
    pub(super) init_socket: OwnedFd,
}

impl Agent<'_> {
    /// Run to the end, in the process just forked.
    pub(super) fn main(self) -> ! {
        if let Err(text) = self.run() {
            let _ = wire::send(&self.supervisor, &FromAgent::Failed { text }, &[]);
            proc::exit_now(125);
        }
        proc::exit_now(0);
    }

    fn run(&self) -> Result<(), String> {
        let mut kept = vec![self.supervisor.as_fd(), self.init_socket.as_fd()];
        kept.extend(self.door.iter().flat_map(|door| door.fds()));
        proc::close_own_fds_in_child(&kept).map_err(|e| format!("cannot close files: {e}"))?;
        match self.door {
            Some(door) => {
                door.enter(self.caller)?;
                follow(self.parent)?;
            }
            None => self.make_namespaces()?,
        }
        set_dumpable(false).map_err(|e| format!("cannot hide from the sandbox: {e}"))?;
        if self.plan.mode == Mode::None {
            // CMD may run as soon as init is ready: nobody waits for a gateway.
            let done = link::configure_namespace().map_err(|e| e.to_string())?;
            notify(&self.supervisor, done.notices)?;
        }
        let init = self.fork_init()?;
        let _ = proc::null_stdio(&[0, 1]);
        let made = make_links(&self.supervisor, self.orders)?;
        let _confined = confine(&self.supervisor, self.plan.interface.link, &made)?;
        let attendance = if self.orders.is_empty() {
            Attendance::new(&self.supervisor, &Ports::default(), Vec::new())
        } else {
            let reached = send_links(&self.supervisor, made, &self.plan.ports)?;
            Attendance::new(&self.supervisor, &self.plan.ports, reached)
        };
        // Nothing is written to standard error from here on.
        let _ = proc::null_stdio(&[2]);
        self.wait(init, attendance)
    }

    /// The user and network namespace, and the ids in it.
    fn make_namespaces(&self) -> Result<(), String> {
        let with = match self.plan.mode {
            Mode::Host | Mode::Container => CloneFlags::empty(),
            Mode::Private | Mode::Bridge | Mode::None => CloneFlags::CLONE_NEWNET,
        };
        userns::enter_new(with).map_err(|e| e.to_string())?;
        // Not earlier: a change of credentials clears it.
        follow(self.parent)?;
        match self.plan.map_user {
            MapUser::Auto => self.wait_for_ids(),
            map => userns::map_self(self.caller, map).map_err(|e| e.to_string()),
        }
    }

    /// The supervisor runs newuidmap and newgidmap on this process.
    fn wait_for_ids(&self) -> Result<(), String> {
        wire::send(&self.supervisor, &FromAgent::NeedsIds, &[]).map_err(|e| e.to_string())?;
        match wire::recv::<ToAgent>(&self.supervisor).map_err(|e| e.to_string())? {
            Some(_) => Ok(()),
            None => proc::exit_now(125),
        }
    }

    fn fork_init(&self) -> Result<Pid, String> {
        if self.plan.pid == PidMode::Private {
            unshare(CloneFlags::CLONE_NEWPID).map_err(|e| format!("cannot make a PID namespace: {e}"))?;
        }
        match proc::fork().map_err(|e| format!("cannot start the sandbox's first process: {e}"))? {
            Forked::Child => self.init.main(&self.init_socket),
            Forked::Parent(pid) => {
                let message = FromAgent::Init { pid: pid.as_raw() };
                wire::send(&self.supervisor, &message, &[]).map_err(|e| e.to_string())?;
                // What was inherited from outside is CMD's, by way of init.
                let _ = proc::close_all_fds_in_child(&[self.supervisor.as_fd()]);
                Ok(pid)
            }
        }
    }

    /// Wait for init's end, or the supervisor's.
    fn wait(&self, init: Pid, mut attendance: Attendance<'_>) -> Result<(), String> {
        // PIDs are positive.
        let pidfd = spawn::pidfd_open(init.as_raw().unsigned_abs()).map_err(|e| format!("cannot watch init: {e}"))?;
        proc::go_idle();
        match attendance.wait(Some(pidfd.as_fd()))? {
            Ended::Child => {
                let signal = match waitpid(init, None) {
                    Ok(WaitStatus::Signaled(_, signal, _)) => Some(signal as i32),
                    _ => None,
                };
                let _ = wire::send(&self.supervisor, &FromAgent::InitEnded { signal }, &[]);
            }
            Ended::Supervisor => {
                // Init is killed as this process exits (its parent-death signal); wait for that, so that nothing of
                // the sandbox is left when this process is gone.
                let _ = nix::sys::signal::kill(init, Signal::SIGKILL);
                let _ = waitpid(init, None);
            }
        }
        Ok(())
    }
}

/// In the sandbox's network namespace: make the interfaces, and give them their addresses.
pub(super) fn make_links(supervisor: &OwnedFd, orders: &[Order]) -> Result<Vec<(String, MadeLink)>, String> {
    let mut links = Vec::new();
    for order in orders {
        let made = order::make(order).map_err(|e| e.to_string())?;
        notify(supervisor, made.notices)?;
        links.push((made.name, made.link));
    }
    Ok(links)
}

/// Give up what is not needed from here on, and say so. Interfaces of the kind that was asked for, or had, can still be
/// made.
pub(super) fn confine(
    supervisor: &OwnedFd,
    choice: LinkChoice,
    made: &[(String, MadeLink)],
) -> Result<Confined, String> {
    let had_tap = made.iter().any(|(_, link)| link.kind == LinkKind::Tap);
    let had_veth = made.iter().any(|(_, link)| link.kind == LinkKind::Packet);
    let can_have_tap = had_tap || File::options().read(true).write(true).open(TUN_DEVICE).is_ok();
    let mut confined =
        confine::agent(choice == LinkChoice::Packet || had_veth || !can_have_tap).map_err(|error| error.to_string())?;
    let lacks = std::mem::take(&mut confined.lacks);
    wire::send(supervisor, &FromAgent::Confined { lacks }, &[]).map_err(|e| e.to_string())?;
    Ok(confined)
}

/// Listen for `--reach`, and hand that and the links to the supervisor. The listeners' addresses. An order's number is its
/// place in the list.
pub(super) fn send_links(
    supervisor: &OwnedFd,
    links: Vec<(String, MadeLink)>,
    ports: &Ports,
) -> Result<Vec<Reached>, String> {
    let reached = bind_reached(supervisor, &ports.reach, ports.reach_tolerant)?;
    for (number, (name, link)) in (0..).zip(links) {
        send_link(supervisor, number, name, link)?;
    }
    Ok(reached)
}

/// Die when `parent` does.
pub(super) fn follow(parent: Pid) -> Result<(), String> {
    set_pdeathsig(Signal::SIGKILL).map_err(|e| format!("cannot follow the supervisor's end: {e}"))?;
    if getppid() != parent {
        proc::exit_now(125);
    }
    Ok(())
}
