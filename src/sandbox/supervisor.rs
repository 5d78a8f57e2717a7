//! The supervisor of `run`: the process that the person started.
//!
//! # Theory of operation
//!
//! One thread, one poll loop, no privilege inside the sandbox. It registers the sandbox's name, takes its
//! addresses, forks the agent (which forks init, which starts CMD), starts the gateways, and then waits for whichever of them speaks first:
//!
//! ```text
//! agent:   NeedsIds -> run newuidmap, newgidmap     Init(pid) -> publish it     Link(fd) -> hand it to the gateway
//! gateway: Attached -> the network works            Refused -> fail
//! init:    Ready -> mounts are made                 Started, Stopped, Exited -> what became of CMD
//! ```
//!
//! CMD is let go when init is ready, the agent and this process have given up what they do not need any more
//! ([`confine`]), and every network that was asked for works: its gateway carries frames, and the
//! published ports are served. Agent, init and gateways get there in parallel. Until then a signal that would end a process ends the set-up; afterwards signals go on to
//! CMD ([`super::signals`]), which gets what came before its start as soon as it has started. When CMD is stopped the supervisor stops too, so that the person's shell notices.
//!
//! Whatever ends the loop, the end is the same: the sockets are closed, upon which init kills CMD, the agent kills
//! init, the gateway ends; they are waited for; the terminal is mended; the state is removed. When the supervisor is
//! killed, the kernel closes the same sockets, and parent-death signals do the rest.
//!
//! A gateway that dies is replaced ([`super::uplinks`]); when that has not helped, CMD goes on without that network. The
//! supervisor's copy of a link keeps the network namespace alive, so it is closed with everything else when CMD has
//! ended.
//!
//! Standard input and output are let go once the others are started, and so is what was inherited beyond them: the
//! far end of a pipe sees its end when CMD closes it, not when tapline ends.
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};

use super::SandboxError;
use super::agent::Agent;
use super::attach::{remove_pid_file, write_pid_file};
use super::command::{self, CommandLine};
use super::etc::{self, Linked, OwnFiles};
use super::init::Init;
use super::linked;
use super::message::{FromAgent, FromInit, ToAgent, ToInit};
use super::mounts::View;
use super::order::Order;
use super::seats::{self, About};
use super::share::{self, Lease, Other};
use super::signals::{Arrived, Signals};
use super::terminal::Terminal;
use super::uplink::PATIENCE;
use super::uplinks::{Ear, GaveUp, Record, Uplinks};
use super::userns::{self, Caller};
use crate::confine::{self, Keep};
use crate::control::state::{Registration, SandboxState, StateDir};
use crate::control::wire;
use crate::host::watch::HostWatch;
use crate::plan::{Mode, Run, Seat};
use crate::sys::proc::{self, Forked};
use crate::sys::{scm, spawn};

/// Make a sandbox, run CMD in it, and return CMD's exit status as a shell would have it: 128 and the signal's number
/// when one ended it, 127 when it was not found, 126 when it could not be executed.
///
/// # Errors
/// When tapline itself fails; nothing is left behind.
pub fn run(mut plan: Run) -> Result<i32, SandboxError> {
    let caller = Caller::current();
    let signals = Signals::take().map_err(SandboxError::io("read signals"))?;
    let command = CommandLine::new(&plan.command, signals.before())?;
    let command = if plan.surroundings.login_shell { command.into_login_shell() } else { command };
    if plan.mode == Mode::Host {
        tracing::warn!("--net host: no isolation, the command uses the host's own network");
    }
    let capture = seats::capture_file(plan.pcap.as_deref(), plan.mode)?;
    let states = StateDir::open()?;
    let mut registration = states.register(&plan.id, &plan.name)?;
    let peers = linked::find(&states, &mut plan)?;
    let command = command.with_environment(linked::environment(&plan.name, &peers));
    let linked: Vec<Linked> = peers.into_iter().map(|peer| peer.linked).collect();
    let other = plan.container.as_ref().map(|shared| share::find(&states, &plan, shared)).transpose()?;
    let (door, lease, shared_files) = other.map(Other::into_parts).unwrap_or_default();
    let about = About::of_run(&plan);
    let seats = seats::of_run(&plan, &about, &mut registration)?;
    let terminal = Terminal::remember();
    let watch = match plan.mode {
        Mode::Private | Mode::Bridge | Mode::None => Some(HostWatch::new()?),
        Mode::Host | Mode::Container => None,
    };
    let search = watch.as_ref().map(|w| w.view().search.clone()).unwrap_or_default();
    let host_hosts = match plan.mode {
        Mode::Host => std::fs::read_to_string("/etc/hosts").unwrap_or_default(),
        Mode::Private | Mode::Bridge | Mode::None | Mode::Container => String::new(),
    };
    let places: Vec<Seat> = seats.iter().map(|(seat, _)| seat.clone()).collect();
    let view = View {
        mode: plan.mode,
        pid: plan.pid,
        files: match plan.mode {
            Mode::Container => shared_files,
            _ if plan.surroundings.host_files => Vec::new(),
            _ => etc::files(&plan, &places, &linked, &search, &host_hosts),
        },
        own_dirs: own_dirs(caller, &registration),
        host_files: plan.surroundings.host_files,
    };
    let hostname = (plan.mode != Mode::Container).then(|| plan.names.hostname.clone());
    let init = Init { view, hostname, command, locked: plan.locked, own_ipc: plan.surroundings.own_ipc };

    let (agent_socket, supervisor) = scm::pair().map_err(SandboxError::io("make a socket pair"))?;
    let (init_socket, init_supervisor) = scm::pair().map_err(SandboxError::io("make a socket pair"))?;
    let parent = getpid();
    let orders: Vec<Order> = seats.iter().map(|(_, order)| order.clone()).collect();
    let agent = match proc::fork().map_err(SandboxError::io("start the sandbox's agent"))? {
        Forked::Child => Agent {
            plan: &plan,
            orders: &orders,
            door: door.as_ref(),
            caller,
            init: &init,
            parent,
            supervisor,
            init_socket: init_supervisor,
        }
        .main(),
        Forked::Parent(pid) => pid,
    };
    let own_names = init.view.files;
    // Descriptors of another sandbox's namespaces would keep them alive.
    drop((supervisor, init_supervisor, door));
    let mut record = Record { registration, state: state_of(&plan) };
    seats::write_down(&mut record.state, places);
    record.publish()?;
    let connected = seats.is_empty();
    let mut uplinks = Uplinks::new(about, &plan.ports, states, record, watch, seats);
    uplinks.expect_linked(&linked);
    uplinks.capture_to(capture);
    let mut supervisor = Supervisor {
        plan: &plan,
        caller,
        signals,
        agent,
        agent_socket: Some(agent_socket),
        init_socket: Some(init_socket),
        connected,
        uplinks,
        lease,
        own_names,
        mounted: false,
        agent_confined: false,
        let_go: false,
        started: false,
        by_signal: false,
    };
    let result = supervisor.start().and_then(|()| supervisor.serve());
    supervisor.finish(terminal, result.is_err());
    result
}

/// Where tapline keeps state: covered inside.
fn own_dirs(caller: Caller, registration: &Registration) -> Vec<PathBuf> {
    // <root>/<namespace>/sandboxes/<id>
    let root = registration.path().ancestors().nth(3).map(PathBuf::from);
    // A relative one is not used, and what it leads to from here is not ours to cover.
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let runtime = runtime.map(|dir| dir.join("tapline"));
    let mut dirs: Vec<PathBuf> =
        root.into_iter().chain(runtime).chain([PathBuf::from(format!("/tmp/tapline-{}", caller.uid))]).collect();
    dirs.sort();
    dirs.dedup();
    dirs
}

/// What `ps` and `inspect` show before there is a PID, but for the networks.
fn state_of(plan: &Run) -> SandboxState {
    SandboxState {
        id: plan.id.clone(),
        name: plan.name.clone(),
        pid: None,
        supervisor_pid: getpid().as_raw(),
        mode: plan.mode,
        v4: None,
        v6: None,
        #[expect(clippy::disallowed_methods, reason = "shown, not waited for")]
        since: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        command: plan.command.iter().map(|w| w.to_string_lossy().into_owned()).collect(),
        endpoints: Vec::new(),
        ports: Vec::new(),
        names: Some(plan.names.clone()),
        container: plan.container.clone(),
        locked: plan.locked,
    }
}

struct Supervisor<'a> {
    plan: &'a Run,
    caller: Caller,
    signals: Signals,
    agent: Pid,
    /// `None` once the far end has closed; likewise below.
    agent_socket: Option<OwnedFd>,
    init_socket: Option<OwnedFd>,
    uplinks: Uplinks,
    /// For another sandbox's network, as long as it lasts.
    lease: Option<Lease>,
    /// What init writes into /etc.
    own_names: Vec<(&'static str, String)>,
    /// Init is ready.
    mounted: bool,
    /// The agent has given up what it does not need.
    agent_confined: bool,
    /// Every network that was asked for works, and the ports are served.
    connected: bool,
    /// Init was told to start CMD.
    let_go: bool,
    /// CMD runs, for all the supervisor has heard.
    started: bool,
    /// CMD was ended by a signal.
    by_signal: bool,
}

/// Who is to be listened to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Signals,
    Init,
    Uplinks(Ear),
    Agent,
    Lease,
}

impl Supervisor<'_> {
    /// The gateways, while the agent makes the namespaces; then let go of what CMD has inherited.
    fn start(&mut self) -> Result<(), SandboxError> {
        self.uplinks.start_gateways()?;
        self.uplinks.bind_ports(&self.plan.ports)?;
        if !matches!(self.plan.mode, Mode::Host | Mode::Container) {
            self.uplinks.listen();
        }
        proc::close_inherited_fds(&[]).map_err(SandboxError::io("read /proc/self/fd"))?;
        proc::null_stdio(&[0, 1]).map_err(SandboxError::io("open /dev/null"))?;
        Ok(())
    }

    /// The loop; CMD's status.
    fn serve(&mut self) -> Result<i32, SandboxError> {
        loop {
            for source in self.wait()? {
                let ended = match source {
                    Source::Signals => self.take_signals(),
                    Source::Init => self.hear_init()?,
                    Source::Agent => self.hear_agent()?,
                    Source::Uplinks(ear) => {
                        if let Some(gave_up) = self.uplinks.hear(ear)? {
                            go_on_without(&gave_up);
                        }
                        None
                    }
                    Source::Lease => {
                        if let Some(lease) = self.lease.take_if(|lease| lease.is_over()) {
                            tracing::error!("{}", lease.obituary());
                        }
                        None
                    }
                };
                if let Some(status) = ended {
                    return Ok(status);
                }
            }
            let (works, gave_up) = self.uplinks.go_on(self.agent_socket.as_ref())?;
            gave_up.iter().for_each(go_on_without);
            if works {
                self.connected = true;
                self.go_if_ready()?;
            }
        }
    }

    /// Wait until somebody has something to say.
    fn wait(&self) -> Result<Vec<Source>, SandboxError> {
        // Init comes before the agent: what CMD ended with counts for more than that init ended.
        let own: [(Source, Option<BorrowedFd<'_>>); 2] =
            [(Source::Signals, Some(self.signals.as_fd())), (Source::Init, self.init_socket.as_ref().map(AsFd::as_fd))];
        let own = own.into_iter().filter_map(|(source, fd)| Some((source, fd?)));
        let uplinks = self.uplinks.fds().into_iter().map(|(ear, fd)| (Source::Uplinks(ear), fd));
        let agent = self.agent_socket.as_ref().map(|socket| (Source::Agent, socket.as_fd()));
        let lease = self.lease.iter().flat_map(Lease::fds).map(|fd| (Source::Lease, fd));
        let all = own.chain(uplinks).chain(agent).chain(lease);
        let timeout = self.uplinks.timeout().into_iter().chain(self.lease.as_ref().and_then(Lease::interval)).min();
        let (sources, mut fds): (Vec<Source>, Vec<PollFd<'_>>) =
            all.map(|(source, fd)| (source, PollFd::new(fd, PollFlags::POLLIN))).unzip();
        loop {
            match poll(&mut fds, round_up(timeout)) {
                Err(nix::Error::EINTR) => {}
                Ok(0) => return Ok(vec![Source::Uplinks(Ear::Host), Source::Lease]),
                other => {
                    other.map_err(SandboxError::io("wait for the sandbox"))?;
                    break;
                }
            }
        }
        let mut ready: Vec<Source> =
            sources.into_iter().zip(&fds).filter(|(_, fd)| fd.any().unwrap_or(true)).map(|(s, _)| s).collect();
        ready.dedup();
        Ok(ready)
    }

    fn take_signals(&mut self) -> Option<i32> {
        while let Some(arrived) = self.signals.next() {
            if !self.let_go {
                if arrived.ends() {
                    self.by_signal = true;
                    return Some(128 + arrived.signal as i32);
                }
            } else if !(self.started && arrived.from_terminal) {
                // CMD may run before that is heard, and whoever heard from CMD itself may send it signals. What
                // the terminal sends meanwhile goes on too, because CMD may not have been there to get it.
                self.pass_on(arrived);
            }
        }
        None
    }

    fn pass_on(&self, Arrived { signal, .. }: Arrived) {
        if let Some(init) = &self.init_socket {
            // When init has gone, that is heard next.
            let _ = wire::send(init, &ToInit::Signal { number: signal as i32 }, &[]);
        }
    }

    fn hear_init(&mut self) -> Result<Option<i32>, SandboxError> {
        let Some(socket) = &self.init_socket else { return Ok(None) };
        let (message, fds) = wire::recv::<FromInit>(socket)?.unzip();
        match message {
            Some(FromInit::Notice { text }) => tracing::warn!("{text}"),
            Some(FromInit::Ready) => {
                self.mounted = true;
                let texts = std::mem::take(&mut self.own_names);
                // Another sandbox's stay as they are.
                let files = OwnFiles::new(fds.unwrap_or_default(), &texts);
                self.uplinks.keep_files(files.filter(|_| self.plan.mode != Mode::Container));
                self.go_if_ready()?;
            }
            Some(FromInit::Failed { text }) => return Err(SandboxError::Inside(text)),
            Some(FromInit::Started { lacks }) => {
                self.started = true;
                self.uplinks.heed_lacks(lacks)?;
                proc::go_idle();
            }
            Some(FromInit::NotExecuted { errno }) => {
                // The plan's command is never empty: CommandLine::new has seen to it.
                let (status, sentence) = command::not_executed(&self.plan.command[0], errno);
                tracing::error!("{sentence}");
                return Ok(Some(self.plan.surroundings.status_not_executed.map_or(status, i32::from)));
            }
            Some(FromInit::Stopped) => {
                proc::stop_self().map_err(SandboxError::io("stop with the command"))?;
            }
            Some(FromInit::Exited { status, by_signal }) => {
                self.by_signal = by_signal;
                return Ok(Some(status));
            }
            // The agent says how it ended.
            None => self.init_socket = None,
        }
        Ok(None)
    }

    fn hear_agent(&mut self) -> Result<Option<i32>, SandboxError> {
        let Some(socket) = &self.agent_socket else { return Ok(None) };
        match wire::recv::<FromAgent>(socket)? {
            Some((FromAgent::NeedsIds, _)) => {
                userns::map_subordinate(self.agent, self.caller)?;
                wire::send(socket, &ToAgent::IdsMapped, &[])?;
            }
            Some((FromAgent::Init { pid }, _)) => {
                let record = &mut self.uplinks.record;
                record.state.pid = Some(pid);
                record.publish()?;
            }
            Some((FromAgent::Failed { text }, _)) => return Err(SandboxError::Inside(text)),
            Some((FromAgent::InitEnded { signal }, _)) => {
                // What init said before it ended is still in its socket.
                while self.init_socket.is_some() {
                    if let Some(status) = self.hear_init()? {
                        return Ok(Some(status));
                    }
                }
                return Err(SandboxError::Vanished { who: "first process", signal });
            }
            Some((FromAgent::Confined { lacks }, _)) => {
                self.uplinks.heed_lacks(lacks)?;
                self.agent_confined = true;
                self.go_if_ready()?;
            }
            Some((message, fds)) => self.uplinks.hear_agent(message, fds)?,
            None => {
                self.agent_socket = None;
                let signal = match waitpid(self.agent, None) {
                    Ok(WaitStatus::Signaled(_, signal, _)) => Some(signal as i32),
                    _ => None,
                };
                return Err(SandboxError::Vanished { who: "agent", signal });
            }
        }
        Ok(None)
    }

    /// Let CMD go when everything it needs is there.
    fn go_if_ready(&mut self) -> Result<(), SandboxError> {
        if self.mounted
            && self.connected
            && self.agent_confined
            && !self.let_go
            && let Some(init) = &self.init_socket
        {
            self.uplinks.heed_lacks(confine::supervisor(Keep::ToBind)?)?;
            if let Some(path) = &self.plan.surroundings.pid_file {
                write_pid_file(path)?;
            }
            wire::send(init, &ToInit::Go, &[])?;
            self.let_go = true;
        }
        Ok(())
    }

    /// Close everything, see that everybody has ended, mend the terminal.
    fn finish(self, terminal: Option<Terminal>, failed: bool) {
        // The signals stay blocked to the end: the terminal may be mended from the background.
        let Supervisor { plan, agent, agent_socket, init_socket, uplinks, by_signal, signals: _signals, .. } = self;
        if let Some(path) = &plan.surroundings.pid_file {
            remove_pid_file(path);
        }
        let (gateways, record) = uplinks.end();
        drop((init_socket, agent_socket));
        end_child(agent);
        // The gateway sees its connection close, delivers what the sandbox had sent, and ends by itself; what takes
        // time then (the kernel taking down the link) nobody needs to wait for, unless he wants to read the last frames.
        let awaited = gateways.into_iter().filter(|_| plan.pcap.is_some());
        for error in awaited.filter_map(|gateway| gateway.stop(PATIENCE).err()) {
            tracing::debug!("the gateway cannot be ended: {error}");
        }
        drop(record);
        if let Some(terminal) = terminal {
            terminal.restore(by_signal || failed);
        }
    }
}

/// For poll(2), which counts milliseconds: not before the time has come.
pub(super) fn round_up(timeout: Option<Duration>) -> PollTimeout {
    let milliseconds = timeout.map(|timeout| timeout + Duration::from_micros(999));
    milliseconds.map_or(PollTimeout::NONE, |t| PollTimeout::try_from(t).unwrap_or(PollTimeout::MAX))
}

fn go_on_without(GaveUp { network, is_private, why }: &GaveUp) {
    let network = if *is_private { "a network".to_owned() } else { format!("the network {network}") };
    tracing::error!("{why}: the command goes on without {network}");
}

/// Wait for a child that is about to end, and kill it when it does not.
pub(super) fn end_child(pid: Pid) {
    // PIDs are positive. Where there is no pidfd the child is reaped already.
    if let Ok(pidfd) = spawn::pidfd_open(pid.as_raw().unsigned_abs()) {
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
        if !matches!(poll(&mut fds, timeout), Ok(1..)) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
    let _ = waitpid(pid, None);
}
