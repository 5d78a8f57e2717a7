//! `tapline attach`: a network for a namespace that somebody else made.
//!
//! # Theory of operation
//!
//! The supervisor opens the target, forks an agent that enters its user and network namespace, makes the interface
//! there and hands the link over, and starts a gateway for it, as for `run`; but there is no init and no CMD. The
//! agent has nothing more to do then and ends: it would only keep the namespace alive, and the supervisor lets go of
//! its own descriptors of the namespace for the same reason. What remains is the link, which is closed as soon as
//! the target has ended ([`super::target::Life`]).
//!
//! Published ports need somebody inside, though, who makes sockets there and sees who listens ([`super::attend`]). With
//! such ports the agent stays; when the first one is asked for later, or another network, or connections have to be
//! reset because a gateway has died, another agent is started, which enters the target anew. It does keep the namespace, but not its target alive, and ends when that does.
//!
//! When the gateway carries frames the one who waits is told: a `1` and a newline on `--ready-fd`, the PID in
//! `--pid-file`, and with `--detach` the parent, which has waited on a pipe for this or for the reason why not.
//!
//! A target may be no more than the descriptor of a TAP that somebody else made. There is no agent then, nothing is
//! configured, and the end is whoever started it's to say. Whether its frames have a header is asked of the kernel.
//!
//! It ends when the target ends, `--exit-fd` hangs up (which counts from when the network is ready), or SIGTERM, SIGINT,
//! SIGHUP or SIGQUIT ask for it; in each case the gateway is waited for, since the interface disappears with the last
//! descriptor of it. One that outlives its target keeps the namespace itself, for agents that are started later.
use std::fs::File;
use std::io::{PipeWriter, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::prctl::{set_dumpable, set_pdeathsig};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, chdir, getpid, setsid};

use super::SandboxError;
use super::agent::{self, follow, make_links, send_links};
use super::attend::Attendance;
use super::hostfwd::{self, HostFwd, Publisher};
use super::message::FromAgent;
use super::order::Order;
use super::seats::{self, About};
use super::signals::Signals;
use super::supervisor::{end_child, round_up};
use super::target::{self, Life, Opened};
use super::uplink::{KeptLink, PATIENCE};
use super::uplinks::{Ear, GaveUp, Record, Uplinks};
use crate::confine;
use crate::control::state::{SandboxState, StateDir};
use crate::control::wire;
use crate::host::watch::HostWatch;
use crate::plan::{self, LinkKind, MacAddr, PortFailure, Ports, PublishSpec, Reached, Target, Userns};
use crate::sys::proc::{self, Forked};
use crate::sys::{caps, scm, tun};

/// Why an attached namespace is no longer served, or not by this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It has ended itself.
    Target,
    /// The descriptor of `exit_fd` has hung up.
    ExitFd,
    /// A signal, by its number (signal(7)).
    Signal(i32),
    /// Another process, in the background, serves it from now on.
    Background,
}

/// Serve a namespace until it ends, or the person wants an end. With `detach`, returns in the caller's process as soon
/// as the network works, and the process that serves goes on.
///
/// # Errors
/// When the target cannot be served; no interface is left behind.
pub fn attach(mut plan: plan::Attach) -> Result<Ended, SandboxError> {
    // First of all, before a descriptor of ours could get one of these numbers.
    let adopt = |number: Option<i32>| number.map(proc::adopt_fd).transpose();
    let ready = adopt(plan.ready_fd).map_err(SandboxError::io("use the descriptor of --ready-fd"))?;
    let exit = adopt(plan.exit_fd).map_err(SandboxError::io("use the descriptor of --exit-fd"))?;
    let tap = match plan.target {
        Target::Tap(number) => Some(adopt_tap(number)?),
        Target::Pid(_) | Target::Path { .. } => None,
    };
    if !plan.detach {
        return Service::start(&plan, ready, exit, tap, None)?.serve();
    }
    make_paths_absolute(&mut plan);
    let (mut report, told) = std::io::pipe().map_err(SandboxError::io("make a pipe"))?;
    match proc::fork().map_err(SandboxError::io("go to the background"))? {
        Forked::Parent(_) => {
            drop(told);
            let mut text = String::new();
            report.read_to_string(&mut text).map_err(SandboxError::io("hear from the background"))?;
            match text.as_str() {
                READY => Ok(Ended::Background),
                "" => Err(SandboxError::Vanished { who: "supervisor", signal: None }),
                _ => Err(told_error(text)),
            }
        }
        Forked::Child => {
            drop(report);
            let _ = setsid();
            // Until somebody can count on the network it is the parent's: who interrupts that one wants none.
            let _ = set_pdeathsig(Signal::SIGTERM);
            let mut failed = told.try_clone().map_err(SandboxError::io("make a pipe"))?;
            match Service::start(&plan, ready, exit, tap, Some(told)) {
                Ok(mut service) => {
                    // From here on the parent is told by `ready`, or by the error; never by both.
                    drop(failed);
                    service.serve()
                }
                Err(error) => {
                    let _ = failed.write_all(error_text(&error).as_bytes());
                    proc::exit_now(125);
                }
            }
        }
    }
}

/// What goes on in the background keeps no directory busy, so it must not depend on one.
fn make_paths_absolute(plan: &mut plan::Attach) {
    let (netns, userns) = match &mut plan.target {
        Target::Path { netns, userns: Userns::Given(path) | Userns::GivenOrStay(path) } => (Some(netns), Some(path)),
        Target::Path { netns, userns: Userns::Owner | Userns::Stay } => (Some(netns), None),
        Target::Pid(_) | Target::Tap(_) => (None, None),
    };
    for path in netns.into_iter().chain(userns).chain(&mut plan.pid_file) {
        // It fails only for an empty path, or where there is no current directory.
        if let Ok(absolute) = std::path::absolute(&*path) {
            *path = absolute;
        }
    }
}

/// The link of a target that is no more than a TAP's descriptor; and its interface's name.
fn adopt_tap(number: i32) -> Result<(String, KeptLink), SandboxError> {
    let fd = proc::adopt_fd(number).map_err(SandboxError::io("use the TAP's descriptor"))?;
    let made = tun::inspect(&fd).map_err(|error| SandboxError::Inside(format!("descriptor {number}: {error}")))?;
    let kind = if made.has_header { LinkKind::Tap } else { LinkKind::PlainTap };
    let mac = tun::ethernet_address(&fd).ok().map(MacAddr);
    Ok((made.name, KeptLink { kind, fd: Some(fd), mac, stays: true }))
}

/// What a detached supervisor tells its parent; no error is just this.
const READY: &str = "\n";
/// Before a port's failure in JSON, of which the parent wants to know more than its sentence.
const PORT_FAILURE: char = '\0';

/// An error for the parent.
fn error_text(error: &SandboxError) -> String {
    match error {
        SandboxError::Port(failure) => match serde_json::to_string(failure) {
            Ok(json) => format!("{PORT_FAILURE}{json}"),
            Err(_) => failure.to_string(),
        },
        other => other.to_string(),
    }
}

/// The error that [`error_text`] was given, as far as it can be told.
fn told_error(text: String) -> SandboxError {
    match text.strip_prefix(PORT_FAILURE).map(serde_json::from_str) {
        Some(Ok(failure)) => SandboxError::Port(failure),
        _ => SandboxError::Inside(text),
    }
}

/// Who waits for the network to work.
struct Waiting {
    ready_fd: Option<OwnedFd>,
    ready_text: String,
    link_text: String,
    greeting: String,
    parent: Option<PipeWriter>,
    pid_file: Option<PathBuf>,
}

/// How often an agent that stays is started; it ends of itself for no reason that another would not have.
const MOST_AGENTS: u32 = 3;

/// What an agent is forked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Errand {
    /// Make the interface.
    Link,
    /// The same, and stay.
    LinkAndStay,
    /// Stay; interface and listeners are there.
    Stay,
}

/// A supervisor of `attach`.
struct Service<'a> {
    plan: &'a plan::Attach,
    signals: Signals,
    life: Life,
    /// The target, for one that is outlived.
    kept: Option<Opened>,
    exit: Option<OwnedFd>,
    agent: Option<Pid>,
    socket: Option<OwnedFd>,
    errand: Errand,
    /// How many more may be started.
    agents_left: u32,
    /// `None` once they have ended.
    uplinks: Option<Uplinks>,
    waiting: Option<Waiting>,
    hostfwd: Option<HostFwd>,
}

/// Who is to be listened to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Signals,
    Life,
    Exit,
    Agent,
    Uplinks(Ear),
    HostFwd(hostfwd::Ear),
    /// Nobody in particular: it is time to look.
    Time,
}

impl<'a> Service<'a> {
    fn start(
        plan: &'a plan::Attach,
        ready_fd: Option<OwnedFd>,
        exit: Option<OwnedFd>,
        tap: Option<(String, KeptLink)>,
        parent: Option<PipeWriter>,
    ) -> Result<Service<'a>, SandboxError> {
        let signals = Signals::take().map_err(SandboxError::io("read signals"))?;
        let (opened, life) = match &tap {
            Some(_) => (None, Life::Unknown),
            None => target::open(&plan.target).map(|(opened, life)| (Some(opened), life))?,
        };
        let capture = seats::capture_file(plan.pcap.as_deref(), plan.mode)?;
        let states = StateDir::open()?;
        let about = About::of_attach(plan);
        let mut registration = states.register(&plan.id, &plan.name)?;
        let seats = seats::of_attach(plan, &about, &mut registration)?;
        let mut record = Record { registration, state: state_of(plan) };
        seats::write_down(&mut record.state, seats.iter().map(|(seat, _)| seat.clone()).collect());
        record.publish()?;
        let watch = HostWatch::new()?;
        let hostfwd = plan.hostfwd_socket.as_deref().map(|path| listen(path, plan)).transpose()?;
        let errand =
            if needs_agent(&plan.ports) || has_to_enter_now(plan) { Errand::LinkAndStay } else { Errand::Link };
        let orders: Vec<Order> = seats.iter().map(|(_, order)| order.clone()).collect();
        let started =
            opened.as_ref().map(|opened| start_agent(plan, &orders, opened, errand, Vec::new())).transpose()?;
        let (agent, socket) = started.unzip();
        // Descriptors of the namespace would keep it alive.
        let kept = opened.filter(|_| plan.outlives_target);
        let detached = parent.is_some();
        let mut uplinks = Uplinks::new(about, &plan.ports, states, record, Some(watch), seats);
        uplinks.capture_to(capture);
        if let Some((name, link)) = tap {
            uplinks.keep_first_link(name, link);
        }
        let mut start = || uplinks.start_gateways();
        let started = if detached {
            // The caller may be reading our standard error to its end.
            proc::with_null_stderr(&mut start).map_err(SandboxError::io("open /dev/null"))?
        } else {
            start()
        };
        if let Err(error) = started.and_then(|()| uplinks.bind_ports(&plan.ports)) {
            drop((socket, uplinks));
            agent.into_iter().for_each(end_child);
            return Err(error);
        }
        uplinks.listen();
        let mut service = Service {
            plan,
            signals,
            life,
            kept,
            exit,
            agent,
            socket,
            errand,
            agents_left: MOST_AGENTS,
            uplinks: Some(uplinks),
            waiting: Some(Waiting {
                ready_fd,
                ready_text: plan.ready_text.clone(),
                link_text: plan.link_text.clone(),
                greeting: plan.greeting.clone(),
                parent,
                pid_file: plan.pid_file.clone(),
            }),
            hostfwd,
        };
        // A link that is there from the start is nothing to be heard of.
        let mut turn = service.go_on().map(|()| None);
        // With somebody waiting in the foreground, errors up to readiness are this function's.
        loop {
            match turn {
                Ok(None) if service.waiting.is_none() => return Ok(service),
                Ok(None) => turn = service.turn(),
                Ok(Some(ended)) => {
                    service.finish();
                    return Err(SandboxError::EndedEarly(ended));
                }
                Err(error) => {
                    service.finish();
                    return Err(error);
                }
            }
        }
    }

    /// Until it is to end.
    fn serve(&mut self) -> Result<Ended, SandboxError> {
        proc::go_idle();
        let result = loop {
            match self.turn() {
                Ok(None) => {}
                Ok(Some(ended)) => break Ok(ended),
                Err(error) => break Err(error),
            }
        };
        self.finish();
        result
    }

    /// Wait for one thing and deal with it. Says why when it is time to end.
    fn turn(&mut self) -> Result<Option<Ended>, SandboxError> {
        for source in self.wait()? {
            let has_target_ended = match source {
                Source::Signals => {
                    let mut arrived = std::iter::from_fn(|| self.signals.next());
                    if let Some(arrived) = arrived.find(|arrived| arrived.ends()) {
                        return Ok(Some(Ended::Signal(arrived.signal as i32)));
                    }
                    false
                }
                Source::Life => self.has_target_ended(true),
                Source::Exit => return Ok(Some(Ended::ExitFd)),
                Source::Agent => {
                    self.hear_agent()?;
                    false
                }
                Source::Uplinks(ear) => {
                    if let Some(gave_up) = self.uplinks.as_mut().map(|uplinks| uplinks.hear(ear)).transpose()?.flatten()
                    {
                        go_on_without(gave_up)?;
                    }
                    ear == Ear::Host && self.has_target_ended(false)
                }
                Source::HostFwd(ear) => {
                    if let (Some(hostfwd), Some(uplinks)) = (&mut self.hostfwd, &mut self.uplinks) {
                        hostfwd.hear(ear, uplinks);
                    }
                    false
                }
                Source::Time => {
                    self.uplinks.iter_mut().for_each(Uplinks::look_at_host);
                    self.has_target_ended(false)
                }
            };
            if has_target_ended {
                if !self.plan.outlives_target {
                    return Ok(Some(Ended::Target));
                }
                // Its sign would be there for ever.
                self.life = Life::Unknown;
            }
        }
        self.go_on()?;
        Ok(None)
    }

    /// `readable` says whether its descriptor was.
    fn has_target_ended(&self, readable: bool) -> bool {
        self.life.has_ended(readable)
    }

    /// After everything that was heard: do what has become possible.
    fn go_on(&mut self) -> Result<(), SandboxError> {
        if let (Some(hostfwd), Some(uplinks)) = (&mut self.hostfwd, &mut self.uplinks) {
            hostfwd.expire(Instant::now(), uplinks);
        }
        self.start_agent_if_needed();
        self.go_on_with_uplinks()?;
        // What a caller has asked for may be the first thing that there is to do inside.
        if self.start_agent_if_needed() {
            self.go_on_with_uplinks()?;
        }
        if let (Some(hostfwd), Some(uplinks)) = (&mut self.hostfwd, &mut self.uplinks) {
            hostfwd.settle(uplinks.settled());
        }
        Ok(())
    }

    fn start_agent_if_needed(&mut self) -> bool {
        let Some(uplinks) = &self.uplinks else { return false };
        if matches!(self.plan.target, Target::Tap(_)) {
            // There is no namespace that one could enter.
            return false;
        }
        if !(uplinks.needs_agent() && uplinks.has_links() && self.socket.is_none() && self.agents_left > 0) {
            return false;
        }
        self.agents_left -= 1;
        if let Err(error) = self.start_agent() {
            tracing::warn!("nothing can be done inside the namespace any more: {error}");
        }
        true
    }

    fn go_on_with_uplinks(&mut self) -> Result<(), SandboxError> {
        let stays = self.errand != Errand::Link;
        let Some(uplinks) = &mut self.uplinks else { return Ok(()) };
        let (works, gave_up) = uplinks.go_on(self.socket.as_ref().filter(|_| stays))?;
        gave_up.map_or(Ok(()), go_on_without)?;
        if works && let Some(waiting) = self.waiting.take() {
            let keep = if self.plan.confined { confine::Keep::ToBind } else { confine::Keep::ToEnter };
            uplinks.heed_lacks(confine::supervisor(keep)?)?;
            waiting.tell(uplinks.link())?;
        }
        Ok(())
    }

    /// An agent that stays, in place of one that has ended.
    fn start_agent(&mut self) -> Result<(), SandboxError> {
        let reopened = if self.kept.is_some() { None } else { Some(target::open(&self.plan.target)?.0) };
        if reopened.is_some() && self.life.is_over() {
            // Another may have its number or its path now.
            return Ok(());
        }
        let Some(opened) = self.kept.as_ref().or(reopened.as_ref()) else { return Ok(()) };
        let reached = self.uplinks.as_ref().map(Uplinks::reached).unwrap_or_default();
        self.errand = Errand::Stay;
        let (agent, socket) = start_agent(self.plan, &[], opened, self.errand, reached)?;
        (self.agent, self.socket) = (Some(agent), Some(socket));
        self.uplinks.iter_mut().for_each(Uplinks::forget_agent);
        Ok(())
    }

    fn wait(&self) -> Result<Vec<Source>, SandboxError> {
        let mut listeners: Vec<(Source, BorrowedFd<'_>, PollFlags)> = vec![(Source::Signals, self.signals.as_fd(), IN)];
        listeners.extend(self.life.fd().map(|fd| (Source::Life, fd, IN)));
        // Only a hang-up counts, not what may be readable.
        let exit = self.exit.as_ref().filter(|_| self.waiting.is_none());
        listeners.extend(exit.map(|fd| (Source::Exit, fd.as_fd(), PollFlags::empty())));
        listeners.extend(self.socket.as_ref().map(|fd| (Source::Agent, fd.as_fd(), IN)));
        let uplinks = self.uplinks.iter().flat_map(Uplinks::fds);
        listeners.extend(uplinks.map(|(ear, fd)| (Source::Uplinks(ear), fd, IN)));
        // A port is published by a network that works.
        let hostfwd = self.hostfwd.iter().filter(|_| self.waiting.is_none());
        listeners.extend(hostfwd.flat_map(HostFwd::fds).map(|(ear, fd, flags)| (Source::HostFwd(ear), fd, flags)));
        let mut fds: Vec<PollFd<'_>> = listeners.iter().map(|(_, fd, flags)| PollFd::new(*fd, *flags)).collect();
        let interval = [self.life.interval(), self.uplinks.as_ref().and_then(Uplinks::timeout)];
        let hostfwd = self.hostfwd.as_ref().and_then(HostFwd::deadline);
        let hostfwd = hostfwd.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = round_up(interval.into_iter().flatten().chain(hostfwd).min());
        loop {
            match poll(&mut fds, timeout) {
                Err(nix::Error::EINTR) => {}
                Ok(0) => return Ok(vec![Source::Time]),
                other => {
                    other.map_err(SandboxError::io("wait for the namespace"))?;
                    break;
                }
            }
        }
        let mut ready: Vec<Source> =
            listeners.iter().zip(&fds).filter(|(_, fd)| fd.any().unwrap_or(true)).map(|((s, ..), _)| *s).collect();
        ready.dedup();
        Ok(ready)
    }

    fn hear_agent(&mut self) -> Result<(), SandboxError> {
        let Some(socket) = &self.socket else { return Ok(()) };
        match wire::recv::<FromAgent>(socket)? {
            Some((FromAgent::Failed { text }, _)) if self.errand == Errand::Stay => tracing::warn!("{text}"),
            Some((FromAgent::Failed { text }, _)) => return Err(SandboxError::Inside(text)),
            Some((message, fds)) => {
                if let Some(uplinks) = &mut self.uplinks {
                    uplinks.hear_agent(message, fds)?;
                }
            }
            None => {
                self.socket = None;
                if let Some(agent) = self.agent.take() {
                    end_child(agent);
                }
                if !self.uplinks.as_ref().is_some_and(Uplinks::has_links) {
                    return Err(SandboxError::Vanished { who: "agent", signal: None });
                }
            }
        }
        Ok(())
    }

    /// Let go of the link, and see that everybody else has.
    fn finish(&mut self) {
        self.hostfwd = None;
        let ended = self.uplinks.take().map(Uplinks::end);
        self.socket = None;
        if let Some(agent) = self.agent.take() {
            end_child(agent);
        }
        let (gateways, _record) = ended.unzip();
        for gateway in gateways.into_iter().flatten() {
            if let Err(error) = gateway.stop(PATIENCE) {
                tracing::debug!("the gateway cannot be ended: {error}");
            }
        }
        if let Some(path) = &self.plan.pid_file {
            remove_pid_file(path);
        }
    }
}

const IN: PollFlags = PollFlags::POLLIN;

impl Waiting {
    /// The network works, over this link.
    fn tell(self, link: Option<BorrowedFd<'_>>) -> Result<(), SandboxError> {
        if let Some(path) = &self.pid_file {
            write_pid_file(path)?;
        }
        // Who does not read this may have gone; the network works all the same.
        if let Some(link) = link.filter(|_| !self.link_text.is_empty()) {
            let text = self.link_text.replace(plan::LINK_NUMBER, &link.as_raw_fd().to_string());
            let _ = std::io::stderr().write_all(text.as_bytes());
        }
        if !self.greeting.is_empty() {
            let mut out = std::io::stdout();
            let _ = out.write_all(self.greeting.as_bytes()).and_then(|()| out.flush());
        }
        if let Some(fd) = self.ready_fd
            && let Err(error) = File::from(fd).write_all(self.ready_text.as_bytes())
        {
            tracing::warn!("the network is ready, which cannot be written to the descriptor of --ready-fd: {error}");
        }
        if let Some(mut parent) = self.parent {
            // Before the parent goes: its caller may read what it has inherited to the end, and look at this process.
            proc::null_stdio(&[0, 1, 2]).map_err(SandboxError::io("open /dev/null"))?;
            proc::close_inherited_fds(&[]).map_err(SandboxError::io("read /proc/self/fd"))?;
            let _ = chdir("/");
            let _ = set_pdeathsig(None);
            // A parent that was killed meanwhile need not know.
            let _ = parent.write_all(READY.as_bytes());
        }
        Ok(())
    }
}

/// This process's. A pipe that nobody reads is an error: no signal would end the wait for somebody.
pub(super) fn write_pid_file(path: &Path) -> Result<(), SandboxError> {
    let mut options = File::options();
    // Whoever ends a process by it must be able to believe it: nobody else may write to it, whatever the umask.
    options.create(true).write(true).truncate(true).mode(0o644);
    let file = options.custom_flags(libc::O_NONBLOCK).open(path);
    file.and_then(|mut file| writeln!(file, "{}", getpid())).map_err(SandboxError::io("write the file of --pid-file"))
}

/// Ours only: another supervisor may have written it since. What is no file keeps nothing.
pub(super) fn remove_pid_file(path: &Path) {
    let is_file = std::fs::metadata(path).is_ok_and(|meta| meta.is_file());
    if is_file && std::fs::read_to_string(path).is_ok_and(|text| text.trim() == getpid().to_string()) {
        let _ = std::fs::remove_file(path);
    }
}

/// Without the network that it was attached for there is nothing left to do; another one it may go on without.
fn go_on_without(GaveUp { network, is_private, why }: GaveUp) -> Result<(), SandboxError> {
    if is_private {
        return Err(SandboxError::Inside(why));
    }
    tracing::error!("{why}: the namespace goes on without the network {network}");
    Ok(())
}

/// Can no other agent enter the namespace later, because what it takes will have been given up?
fn has_to_enter_now(plan: &plan::Attach) -> bool {
    plan.confined && caps::has(caps::Capability::SysAdmin)
}

/// Do the ports that were asked for need somebody inside?
fn needs_agent(ports: &Ports) -> bool {
    let reaches = ports.reach_auto.is_some() || !ports.reach_following.is_empty();
    ports.auto.is_some() || reaches || ports.specs().next().is_some()
}

/// Fork an agent; its PID, and the socket to it. Our own descriptors of the namespace, which would keep it alive, are
/// closed.
fn start_agent(
    plan: &plan::Attach,
    orders: &[Order],
    opened: &Opened,
    errand: Errand,
    reached: Vec<Reached>,
) -> Result<(Pid, OwnedFd), SandboxError> {
    let (socket, supervisor) = scm::pair().map_err(SandboxError::io("make a socket pair"))?;
    let own = getpid();
    match proc::fork().map_err(SandboxError::io("start the agent"))? {
        Forked::Child => be_agent(own, plan, orders, opened, &supervisor, errand, reached),
        Forked::Parent(pid) => Ok((pid, socket)),
    }
}

/// In the child: enter, make the interface, hand over the link, end; or stay. `reached` is what was made for `--reach`
/// before.
fn be_agent(
    parent: Pid,
    plan: &plan::Attach,
    orders: &[Order],
    opened: &Opened,
    supervisor: &OwnedFd,
    errand: Errand,
    reached: Vec<Reached>,
) -> ! {
    let work = || -> Result<(), String> {
        let keep: Vec<BorrowedFd<'_>> = opened.fds().chain([supervisor.as_fd()]).collect();
        proc::close_all_fds_in_child(&keep).map_err(|e| format!("cannot close files: {e}"))?;
        set_dumpable(false).map_err(|e| format!("cannot hide from the namespace: {e}"))?;
        opened.enter().map_err(|e| e.to_string())?;
        // The namespace is entered, and needs no descriptor any more.
        proc::close_all_fds_in_child(&[supervisor.as_fd()]).map_err(|e| format!("cannot close files: {e}"))?;
        // Not earlier: a change of credentials clears it.
        follow(parent)?;
        let _ = chdir("/");
        let made = make_links(supervisor, if errand == Errand::Stay { &[] } else { orders })?;
        let _confined = agent::confine(supervisor, plan.interface.link, &made)?;
        let reached = match errand {
            Errand::Link | Errand::LinkAndStay => send_links(supervisor, made, &plan.ports)?,
            Errand::Stay => reached,
        };
        if errand == Errand::Link {
            return Ok(());
        }
        let _ = proc::null_stdio(&[0, 1, 2]);
        proc::go_idle();
        Attendance::new(supervisor, &plan.ports, reached).wait(None).map(drop)
    };
    if let Err(text) = work() {
        let _ = wire::send(supervisor, &FromAgent::Failed { text }, &[]);
    }
    proc::exit_now(0);
}

/// Listen for those who ask for ports. What they do not say means the sandbox's own address.
fn listen(path: &Path, plan: &plan::Attach) -> Result<HostFwd, SandboxError> {
    let network = &plan.network;
    let own = network.v4.map(|l| l.sandbox.into()).or(network.v6.map(|l| l.sandbox.into()));
    HostFwd::listen(path, own.unwrap_or(Ipv4Addr::UNSPECIFIED.into()))
        .map_err(|error| SandboxError::Listen { path: path.to_owned(), error })
}

impl Publisher for Uplinks {
    fn publish(&mut self, spec: &PublishSpec) -> Result<u64, PortFailure> {
        Uplinks::publish(self, spec)
    }

    fn unpublish(&mut self, ticket: u64) -> bool {
        Uplinks::unpublish(self, ticket)
    }
}

/// What `ps` and `inspect` show, but for the networks.
fn state_of(plan: &plan::Attach) -> SandboxState {
    let (pid, command) = match &plan.target {
        Target::Pid(pid) => (Some(*pid), vec![pid.to_string()]),
        Target::Path { netns, .. } => (None, vec![netns.display().to_string()]),
        Target::Tap(number) => (None, vec![format!("the TAP of descriptor {number}")]),
    };
    SandboxState {
        id: plan.id.clone(),
        name: plan.name.clone(),
        pid,
        supervisor_pid: getpid().as_raw(),
        mode: plan.mode,
        v4: None,
        v6: None,
        #[expect(clippy::disallowed_methods, reason = "shown, not waited for")]
        since: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs(),
        command,
        endpoints: Vec::new(),
        ports: Vec::new(),
        names: None,
        container: None,
        locked: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::PortFailure;

    #[test]
    fn the_parent_hears_which_port_could_not_be_bound() {
        let failure = PortFailure::new("taken", "it is");
        let told = |error: SandboxError| told_error(error_text(&error));
        assert!(matches!(told(failure.clone().into()), SandboxError::Port(came) if came == failure));
        assert!(matches!(told(SandboxError::Inside("x".into())), SandboxError::Inside(text) if text == "x"));
    }

    #[test]
    fn a_pid_file_that_is_a_pipe_holds_nobody_up() {
        let path = std::env::temp_dir().join(format!("tapline-pid-pipe-{}", getpid()));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(write_pid_file(&path).is_err(), "nobody reads");
        let reader = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        write_pid_file(&path).unwrap();
        assert_eq!(std::io::read_to_string(reader).unwrap(), format!("{}\n", getpid()));
        remove_pid_file(&path);
        assert!(path.exists(), "it is whose it was");
        std::fs::remove_file(&path).unwrap();
        write_pid_file(&path).unwrap();
        remove_pid_file(&path);
        assert!(!path.exists());
    }
}
