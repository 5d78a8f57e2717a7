//! A supervisor's ways to the networks its sandbox is on, and what goes over them.
//!
//! # Theory of operation
//!
//! `run` and `attach` serve a sandbox in the same manner, and this is the manner. There is an [`Uplink`] for each
//! network. Their gateways are started while the agent still makes the interfaces; each gets its link when that comes.
//! The supervisor's loop waits for [`Uplinks::fds`], tells what it heard ([`Uplinks::hear`], [`Uplinks::hear_agent`]),
//! and calls [`Uplinks::go_on`] after each round, which does whatever has become possible.
//!
//! One of the uplinks is the *main* one: its gateway serves the API, the published ports ([`super::ports`]), listeners
//! inside for `--reach`, and has a connection to the agent that makes sockets inside. It is that of `--on`, else the
//! one with the default route, else the first. It stays so as long as the sandbox is on that network; then another one
//! takes all that over. The order is: link, listeners inside, agent, ports; the network works when every uplink carries
//! frames and the ports that the command line asks for are served.
//!
//! What a gateway is given is kept, and given to the next one when it dies (see [`super::uplink`]).
//!
//! # While it runs
//!
//! One request of a caller ([`super::callers`]) is worked on at a time:
//!
//! ```text
//! connect:     addresses taken ── agent makes the interface ── gateway attached ── files, state, answer
//!                   └ undone in reverse when a later step fails, or nothing comes for WORK
//! disconnect:  the next default route ── agent removes the interface ── connection closed, addresses given back ── answer
//! ```
//!
//! Other networks' flows are never touched. The default route is the first open network's, or that of `--default-net`;
//! it moves on when its network is left.
//!
//! /etc/hosts and /etc/resolv.conf inside follow, through the descriptors that init has sent ([`super::etc`]).
//! So they do when a sandbox that this one has a link to gets another address.
//!
//! A sandbox may outlive the session that its state directory belongs to. The directory is watched, and made again with
//! everything in it when somebody has removed it: for some seconds again and again, because who removes one directory
//! after the other may still be at work ([`LOOK_AFTER`]). So is the place where the gateway of shared networks is found.
//!
//! At the end the ports are taken back first, and it is waited for that, so that they are free when the supervisor is
//! gone: for [`RELEASE`], after which a gateway that is the sandbox's own is killed.
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::sys::resource::{Resource, getrlimit};

use super::SandboxError;
use super::callers::Callers;
use super::etc::{self, Linked, OwnFiles};
use super::message::{FromAgent, ToAgent};
use super::order::Order;
use super::ports::{Inner, PortKeeper, Settled, reach_batches, too_many_listeners};
use super::reach::{Changes, Reacher};
use super::seats::{self, About};
use super::uplink::{self, Fate, KeptLink, Uplink};
use crate::control::client::GatewayProcess;
use crate::control::gateway::{Home, check_reached, check_sent_link};
use crate::control::messages::{FromGateway, ToGateway};
use crate::control::networks::Networks;
use crate::control::requests::{self, Request};
use crate::control::state::{Living, Registration, SandboxState, StateDir};
use crate::control::wire;
use crate::host::watch::HostWatch;
use crate::names::directory;
use crate::plan::{Join, LinkKind, Mode, PortFailure, Ports, Protocol, PublishSpec, Published, Reached, Seat};
use crate::sys::scm::{self, MAX_FDS};

mod attached;
mod changes;
mod entry;

/// How long a gateway may take to close its listeners when the sandbox has ended.
const RELEASE: Duration = Duration::from_millis(200);

/// Who removes the state directory may be at it for a while: what was made anew is looked after for so long, this often.
const LOOK_AFTER: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(100);

/// How long a request of a caller may take; below a caller's own patience.
const WORK: Duration = Duration::from_secs(8);

/// A sandbox in the state directory, and what is written there of it.
pub(super) struct Record {
    /// The entry.
    pub(super) registration: Registration,
    /// What `ps` and `inspect` show.
    pub(super) state: SandboxState,
}

impl Record {
    /// Write the state down.
    pub(super) fn publish(&mut self) -> Result<(), SandboxError> {
        Ok(self.registration.publish(&self.state)?)
    }
}

/// Whom to listen to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ear {
    /// The gateway of an uplink.
    Gateway(u64),
    /// Changes of the host, and of the entry in the state directory.
    Host,
    /// New callers.
    Listener,
    /// A caller.
    Caller(u64),
}

/// A network that the sandbox goes on without.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct GaveUp {
    /// The network.
    pub(super) network: String,
    /// It is the sandbox's own.
    pub(super) is_private: bool,
    /// Why; a sentence.
    pub(super) why: String,
}

/// What a caller has asked for, under way.
enum Work {
    Connect {
        caller: u64,
        uplink: u64,
        until: Instant,
    },
    Disconnect {
        caller: u64,
        uplink: u64,
        /// For the interface's end.
        order: u64,
        until: Instant,
    },
}

/// Everything that a sandbox's networks need.
pub(super) struct Uplinks {
    about: About,
    states: StateDir,
    watch: Option<HostWatch>,
    told_lacks: BTreeSet<String>,
    /// The sandbox in the state directory.
    pub(super) record: Record,
    /// In the order of the seats.
    all: Vec<Uplink>,
    main: Option<u64>,
    ports: PortKeeper,
    /// Listeners inside, for `--reach`.
    reached: Vec<(Reached, OwnedFd)>,
    /// What of that comes and goes with the host's own.
    reacher: Reacher,
    /// The main gateway has a connection to the agent.
    joined: bool,
    /// Which gateway has asked for something over the API, by the request's number.
    askers: BTreeMap<u64, u64>,
    /// Some gateway has served all the ports that were there at the start.
    has_started: bool,
    /// It has been said that everything works.
    told: bool,
    /// What the agent is to be told, when there is one.
    orders: VecDeque<ToAgent>,
    /// Of uplinks and orders.
    numbers: u64,
    /// Interfaces that are made though nobody waits for them any more.
    unwanted: Vec<(u64, Order)>,
    /// Links of interfaces that are being removed, by the order: an interface that goes by itself leaves its rules.
    removing: Vec<(u64, OwnedFd)>,
    callers: Callers,
    /// Callers are let in.
    is_listening: bool,
    work: Option<Work>,
    /// Hosts and resolv.conf inside, where they are the sandbox's own.
    files: Option<OwnFiles>,
    /// Whose interface answers leave by that are sent from these UDP ports, as the agent was told; see [`order`](super::order).
    answers: Option<(u64, Vec<(u16, u16)>)>,
    /// Shown while the sandbox is on a shared network.
    living: Option<Living>,
    /// The entry has just been made anew, or could not be: when to look again, and when no more.
    looks_after: Option<(Instant, Instant)>,
    /// By uplink and name: the addresses of sandboxes that this one has links to.
    linked: BTreeMap<(u64, String), Vec<IpAddr>>,
}

impl Uplinks {
    /// No gateway and no link yet. The number of an uplink is its place in the list, and that of the order for its
    /// interface.
    pub(super) fn new(
        about: About,
        ports: &Ports,
        states: StateDir,
        record: Record,
        watch: Option<HostWatch>,
        seats: Vec<(Seat, Order)>,
    ) -> Uplinks {
        let keeper = PortKeeper::new(&about.id, &about.name, ports);
        let all: Vec<Uplink> =
            (0..).zip(seats).map(|(number, (seat, order))| Uplink::new(number, seat, order)).collect();
        let mut uplinks = Uplinks {
            about,
            states,
            watch,
            told_lacks: BTreeSet::new(),
            record,
            numbers: all.len() as u64,
            all,
            main: None,
            ports: keeper,
            reached: Vec::new(),
            reacher: Reacher::new(ports),
            joined: false,
            askers: BTreeMap::new(),
            has_started: false,
            told: false,
            orders: VecDeque::new(),
            unwanted: Vec::new(),
            removing: Vec::new(),
            callers: Callers::default(),
            is_listening: false,
            work: None,
            files: None,
            answers: None,
            living: None,
            looks_after: None,
            linked: BTreeMap::new(),
        };
        uplinks.main = uplinks.choose_main();
        uplinks
    }

    /// What hosts says from the start, until the gateways say otherwise: they are heard from after CMD may have read it.
    pub(super) fn expect_linked(&mut self, linked: &[Linked]) {
        for uplink in &self.all {
            let subnets: Vec<IpNet> = directory::subnets(&uplink.seat.network).collect();
            for Linked { link, addresses } in linked {
                let here: Vec<IpAddr> =
                    addresses.iter().copied().filter(|ip| subnets.iter().any(|subnet| subnet.contains(ip))).collect();
                if !here.is_empty() {
                    self.linked.insert((uplink.number, link.sandbox.clone()), here);
                }
            }
        }
    }

    /// Start the gateways.
    pub(super) fn start_gateways(&mut self) -> Result<(), SandboxError> {
        for uplink in &mut self.all {
            uplink.start_gateway(&self.states, self.about.logging)?;
        }
        Ok(())
    }

    /// Bind the ports that the command line asks for. Call it after the forks: nobody else is to have them.
    pub(super) fn bind_ports(&mut self, ports: &Ports) -> Result<(), SandboxError> {
        Ok(self.ports.bind(ports)?)
    }

    /// Bind a spec now, and have it served; see [`PortKeeper::publish`].
    pub(super) fn publish(&mut self, spec: &PublishSpec) -> Result<u64, PortFailure> {
        self.ports.publish(spec)
    }

    /// Take back what was published under a ticket; see [`PortKeeper::unpublish`].
    pub(super) fn unpublish(&mut self, ticket: u64) -> bool {
        self.ports.unpublish(ticket)
    }

    /// What came of these since the last time. To be looked at after each [`go_on`](Self::go_on).
    pub(super) fn settled(&mut self) -> Vec<Settled> {
        self.ports.settled()
    }

    /// Let callers in, and see to it that they find the way.
    pub(super) fn listen(&mut self) {
        self.is_listening = true;
        self.callers.listen(self.record.registration.path());
        self.watch_entry();
    }

    /// Init has opened its files, with these texts in them.
    pub(super) fn keep_files(&mut self, files: Option<OwnFiles>) {
        self.files = files;
        // Something may have changed since the texts were made.
        self.rewrite_files();
    }

    /// What to poll for being readable.
    pub(super) fn fds(&self) -> Vec<(Ear, BorrowedFd<'_>)> {
        let gateways = self.all.iter().filter_map(|uplink| Some((Ear::Gateway(uplink.number), uplink.connection()?)));
        let host = self.watch.iter().flat_map(HostWatch::fds).map(|fd| (Ear::Host, fd));
        let listener = self.callers.listener().map(|fd| (Ear::Listener, fd));
        let callers = self.callers.silent().map(|(number, fd)| (Ear::Caller(number), fd));
        gateways.chain(host).chain(listener).chain(callers).collect()
    }

    /// How long to wait for them at most.
    pub(super) fn timeout(&self) -> Option<Duration> {
        let now = Instant::now();
        let work = self.work.as_ref().map(|work| match work {
            Work::Connect { until, .. } | Work::Disconnect { until, .. } => *until,
        });
        let deadlines = self.all.iter().filter_map(Uplink::deadline).chain(work).chain(self.callers.deadline());
        let deadlines = deadlines.chain(self.looks_after.map(|(next, _)| next)).chain(self.ports.next_retry());
        let deadlines = deadlines.chain(self.reacher.next().filter(|_| self.serves_ports()));
        let waits = deadlines.map(|at| at.saturating_duration_since(now));
        waits.chain(self.watch.as_ref().and_then(HostWatch::refresh_interval)).min()
    }

    /// One of them is readable.
    ///
    /// # Errors
    /// When the sandbox cannot be served.
    pub(super) fn hear(&mut self, ear: Ear) -> Result<Option<GaveUp>, SandboxError> {
        match ear {
            Ear::Gateway(number) => return self.hear_gateway(number),
            Ear::Host => self.look_at_host(),
            Ear::Listener => self.callers.accept(),
            Ear::Caller(number) => self.callers.hear(number),
        }
        Ok(None)
    }

    /// The host may have changed, and so may our own place in it.
    pub(super) fn look_at_host(&mut self) {
        let Some(watch) = &mut self.watch else { return };
        let changed = watch.handle_ready();
        let changed = changed.or_else(|| watch.refresh_interval().and_then(|_| watch.refresh()));
        if let Some(host) = changed {
            // Before the link is handed over there is nothing to correct: the view goes with it. A gateway that has
            // just died is heard next, and the one that replaces it gets the new view.
            for uplink in self.all.iter().filter(|uplink| uplink.is_handed_over()) {
                let _ = uplink.tell(&ToGateway::HostChanged { host: host.clone() }, &[]);
            }
        }
        self.look_at_entry();
    }

    fn hear_gateway(&mut self, number: u64) -> Result<Option<GaveUp>, SandboxError> {
        let Some(at) = self.at(number) else { return Ok(None) };
        let is_main = self.main == Some(number);
        let message = match self.all[at].hear() {
            Err(error) if self.is_wanted_by_caller(number) => {
                self.undo(error.to_string());
                return Ok(None);
            }
            message => message?,
        };
        match message {
            Some(FromGateway::Attached { lacks }) => return self.handle_attached(number, lacks),
            // It ends now, which is heard next.
            Some(FromGateway::Refused { reason }) if self.all[at].has_worked() => {
                tracing::error!("the new gateway cannot serve the sandbox: {reason}");
            }
            Some(FromGateway::Refused { reason }) if self.is_wanted_by_caller(number) => self.undo(reason),
            Some(FromGateway::Refused { reason }) => return Err(SandboxError::Inside(reason)),
            Some(FromGateway::Done { request, error }) if is_main => self.ports.handle_done(request, error),
            // What was asked of it before another one became the main one has been given up there.
            Some(FromGateway::Done { .. }) => {}
            // Whichever of its connections a gateway of several networks has chosen to ask over.
            Some(FromGateway::WantPublish { request, spec, proxy, from }) => {
                self.askers.insert(request, number);
                self.ports.want_publish(request, &spec, proxy, &from);
            }
            Some(FromGateway::WantUnpublish { request, spec }) => {
                self.askers.insert(request, number);
                self.ports.want_unpublish(request, &spec);
            }
            Some(FromGateway::Linked { sandbox, addresses }) => {
                if addresses.is_empty() {
                    self.linked.remove(&(number, sandbox));
                } else {
                    self.linked.insert((number, sandbox), addresses);
                }
                self.rewrite_files();
            }
            Some(FromGateway::Notice { text }) => tracing::warn!("{text}"),
            Some(FromGateway::Moved) => {}
            None => return self.handle_end(number),
        }
        Ok(None)
    }

    /// A gateway has died, or is of no use any more.
    fn handle_end(&mut self, number: u64) -> Result<Option<GaveUp>, SandboxError> {
        let Some(at) = self.at(number) else { return Ok(None) };
        if self.main == Some(number) {
            self.joined = false;
        }
        match self.all[at].handle_end(Instant::now()) {
            Fate::Again => {}
            Fate::Failed(why) if self.is_wanted_by_caller(number) => self.undo(why),
            Fate::Failed(why) => return Err(SandboxError::Inside(why)),
            Fate::Replaced(how) => {
                tracing::error!("the gateway died ({how}): its connections are lost, starting another");
                let gone = self.all[at].gone();
                self.orders.push_back(ToAgent::Reset { order: number, gone });
            }
            Fate::GaveUp(_) if self.all[at].leaving => {}
            Fate::GaveUp(why) => return Ok(Some(self.give_up(number, why))),
        }
        Ok(None)
    }

    /// The sandbox goes on without a network.
    fn give_up(&mut self, number: u64, why: String) -> GaveUp {
        if self.main == Some(number) {
            // Better refused than accepted by nobody.
            self.ports.release();
            self.write_down_ports();
        }
        let uplink = self.all.iter_mut().find(|uplink| uplink.number == number);
        let (network, is_private) = uplink.map_or((String::new(), false), |uplink| {
            uplink.give_up();
            (uplink.seat.network.name.clone(), !uplink.is_shared())
        });
        GaveUp { network, is_private, why }
    }

    /// The agent has said something that concerns the networks.
    pub(super) fn hear_agent(&mut self, message: FromAgent, mut fds: Vec<OwnedFd>) -> Result<(), SandboxError> {
        match message {
            FromAgent::Notice { text } => tracing::warn!("{text}"),
            FromAgent::Reached { reached } => self.keep_reached(reached, fds)?,
            FromAgent::Listeners { tcp, udp } => self.follow(tcp, udp),
            FromAgent::Link { order, name, kind, mac, stays, notice } => {
                if let Some(notice) = notice {
                    tracing::warn!("{notice}");
                }
                let fd = fds.pop();
                match &fd {
                    None if kind != LinkKind::None => {
                        return Err(SandboxError::Inside("the sandbox's agent sent no link".into()));
                    }
                    Some(fd) => check_sent_link(kind, fd).map_err(|error| {
                        SandboxError::Inside(format!("what the sandbox's agent sent is no link: {error}"))
                    })?,
                    None => {}
                }
                self.keep_link(order, name, KeptLink { kind, fd, mac, stays });
            }
            FromAgent::Done { order, error } => self.handle_done(order, error),
            FromAgent::Confined { lacks } => self.heed_lacks(lacks)?,
            // The rest is for `run` alone.
            _ => {}
        }
        Ok(())
    }

    /// Have the frames of the first network written down there.
    pub(super) fn capture_to(&mut self, file: Option<File>) {
        if let (Some(uplink), Some(file)) = (self.all.first_mut(), file) {
            uplink.capture_to(file);
        }
    }

    /// The link of the first network is there already: nobody is to make it.
    pub(super) fn keep_first_link(&mut self, name: String, link: KeptLink) {
        self.keep_link(0, name, link);
    }

    fn keep_link(&mut self, order: u64, name: String, link: KeptLink) {
        if let Some(at) = self.at(order) {
            let before = self.all[at].seat.clone();
            self.all[at].seat.endpoint.ifname = name;
            self.all[at].keep_link(link);
            if self.all[at].seat != before && !self.is_wanted_by_caller(order) {
                self.write_down_seats();
            }
        } else if let Some(at) = self.unwanted.iter().position(|(number, _)| *number == order) {
            let (_, interface) = self.unwanted.swap_remove(at);
            let order = self.number();
            self.orders.push_back(ToAgent::Remove { order, name, interface });
            self.removing.extend(link.fd.map(|fd| (order, fd)));
        }
    }

    fn handle_done(&mut self, order: u64, error: Option<String>) {
        self.removing.retain(|(removed, _)| *removed != order);
        if self.reacher.handle_done(Instant::now(), order) {
            self.ports.set_reached(self.reacher.numbers().collect());
            error.iter().for_each(|error| tracing::warn!("{error}"));
            return;
        }
        match &self.work {
            Some(Work::Connect { uplink, .. }) if *uplink == order && error.is_some() => {
                self.undo(error.unwrap_or_default());
                return;
            }
            Some(Work::Disconnect { order: awaited, .. }) if *awaited == order => {
                if let Some(error) = error {
                    tracing::warn!("{error}");
                }
                self.finish_disconnect();
                return;
            }
            _ => {}
        }
        if let Some(error) = error {
            tracing::warn!("{error}");
        }
        if let Some(at) = self.at(order) {
            self.all[at].handle_reset();
        }
    }

    /// The sandbox listens on these ports now (`-p auto`).
    fn follow(&mut self, tcp: Vec<u16>, udp: Vec<u16>) {
        if self.main_uplink().is_none_or(|main| !main.has_gateway()) {
            return;
        }
        let tcp = tcp.into_iter().map(|port| (Protocol::Tcp, port));
        let listening: BTreeSet<Inner> = tcp.chain(udp.into_iter().map(|port| (Protocol::Udp, port))).collect();
        self.ports.follow(listening);
    }

    /// Is there a main gateway that serves ports?
    fn serves_ports(&self) -> bool {
        self.has_started && self.main_uplink().is_some_and(Uplink::is_attached)
    }

    /// What listens on the host is to be found inside, where that was asked for.
    fn reach_what_listens(&mut self, now: Instant) {
        if !self.serves_ports() {
            return;
        }
        let Some(Changes { open, close }) = self.reacher.look(now, || self.ports.taken()) else { return };
        if !close.is_empty() {
            let is_meant = |(reached, _): &(Reached, OwnedFd)| close.iter().any(|reach| reach.is_led_by(reached));
            let gone = self.reached.extract_if(.., |one| is_meant(one)).map(|(reached, _)| reached).collect();
            self.ports.unreach(gone);
        }
        if !open.is_empty() {
            let order = self.number();
            self.reacher.handle_ordered(order);
            self.orders.push_back(ToAgent::Listen { order, reach: open });
        }
        self.ports.set_reached(self.reacher.numbers().collect());
    }

    /// Listeners inside have come from the agent: those of the command line, or what it was told to open.
    fn keep_reached(&mut self, reached: Vec<Reached>, fds: Vec<OwnedFd>) -> Result<(), SandboxError> {
        // Those of the command line are handed over with the link.
        let has_started = self.has_started;
        if reached.len() != fds.len() {
            let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard);
            let failure = too_many_listeners(self.reached.len() + reached.len(), limit);
            if !has_started {
                return Err(failure.into());
            }
            if self.reacher.handle_lost() {
                tracing::warn!("{failure}");
            }
            return Ok(());
        }
        let home = Home::here();
        if let Some(wrong) = reached.iter().zip(&fds).find_map(|(reached, fd)| check_reached(reached, fd, home).err()) {
            return Err(SandboxError::Inside(format!("what the sandbox's agent sent is wrong: {wrong}")));
        }
        let come = reached.into_iter().zip(fds);
        let come: Vec<_> = come.filter(|(reached, _)| !has_started || self.reacher.handle_opened(reached)).collect();
        if let Some(main) = self.main_uplink().filter(|main| has_started && main.is_handed_over()) {
            for some in come.chunks(MAX_FDS) {
                let reached = some.iter().map(|(reached, _)| *reached).collect();
                let fds: Vec<BorrowedFd<'_>> = some.iter().map(|(_, socket)| socket.as_fd()).collect();
                main.tell(&ToGateway::Reach { reached }, &fds)?;
            }
        }
        self.reached.extend(come);
        Ok(())
    }

    /// The listeners inside, made for `--reach`.
    pub(super) fn reached(&self) -> Vec<Reached> {
        self.reached.iter().map(|(reached, _)| *reached).collect()
    }

    /// Is an agent needed, which makes sockets inside or has something else to do there?
    pub(super) fn needs_agent(&self) -> bool {
        !self.orders.is_empty() || self.main_uplink().is_some_and(Uplink::has_gateway) && !self.ports.is_empty()
    }

    /// The first link.
    pub(super) fn link(&self) -> Option<BorrowedFd<'_>> {
        self.all.first().and_then(Uplink::link)
    }

    /// Have all the links come that were there to be made from the start?
    pub(super) fn has_links(&self) -> bool {
        self.all.iter().all(|uplink| uplink.has_link() || self.is_wanted_by_caller(uplink.number))
    }

    /// The agent has gone, or there is another one.
    pub(super) fn forget_agent(&mut self) {
        self.joined = false;
        self.removing.clear();
        self.reacher.forget_agent();
    }

    /// After everything that was heard: do what has become possible. `agent` is the socket to an agent that stays, where
    /// there is one. True once, when everything that was there at the start works.
    ///
    /// # Errors
    /// When a network that was there at the start, or a port that the command line asks for, cannot be served.
    pub(super) fn go_on(&mut self, agent: Option<&OwnedFd>) -> Result<(bool, Option<GaveUp>), SandboxError> {
        let now = Instant::now();
        if self.looks_after.is_some_and(|(next, _)| next <= now) {
            self.look_at_entry();
        }
        self.callers.expire(now);
        self.expire_work(now);
        self.begin_work(now);
        self.ports.retry(now);
        self.reach_what_listens(now);
        if let Some(agent) = agent {
            for order in self.orders.drain(..) {
                // When the agent has gone, that is heard next.
                let _ = wire::send(agent, &order, &[]);
            }
        }
        let numbers: Vec<u64> = self.all.iter().map(|uplink| uplink.number).collect();
        let mut gave_up = None;
        for number in numbers {
            let Some(at) = self.at(number) else { continue };
            if self.all[at].wants_gateway(now)
                && let Err(error) = self.all[at].start_gateway(&self.states, self.about.logging)
            {
                // What has worked once does not end for want of another gateway.
                if self.all[at].has_worked() {
                    let why = format!("the gateway died, and there is no other ({error})");
                    gave_up = gave_up.or(Some(self.give_up(number, why)));
                } else if self.is_wanted_by_caller(number) {
                    self.undo(error.to_string());
                } else {
                    return Err(error.into());
                }
                continue;
            }
            if self.all[at].is_overdue(now) {
                gave_up = gave_up.or(self.handle_end(number)?);
                continue;
            }
            if self.all[at].is_ready(now)
                && let Err(error) = self.hand_over(at)
            {
                if !self.is_wanted_by_caller(number) {
                    return Err(error);
                }
                self.undo(error.to_string());
            }
        }
        let broken = self.serve_ports(agent)?;
        gave_up = gave_up.or(broken);
        let works = !self.told && self.has_started && self.all.iter().all(Uplink::has_worked);
        self.told |= works;
        Ok((works, gave_up))
    }

    /// What the main gateway is to have beyond its link.
    fn serve_ports(&mut self, agent: Option<&OwnedFd>) -> Result<Option<GaveUp>, SandboxError> {
        let Some(main) = self.main_uplink().filter(|main| main.is_handed_over()) else { return Ok(None) };
        if let (Some(agent), false) = (agent, self.joined) {
            let (ours, theirs) = scm::pair().map_err(SandboxError::io("make a socket pair"))?;
            // Whichever of them has gone is heard next.
            let _ = wire::send(agent, &ToAgent::Inside, &[theirs.as_fd()]);
            let _ = main.tell(&ToGateway::Inside, &[ours.as_fd()]);
            self.joined = true;
        }
        let Some(at) = self.main.and_then(|number| self.at(number)) else { return Ok(None) };
        if !self.all[at].is_attached() {
            return Ok(None);
        }
        let (main, all, askers) = (&self.all[at], &self.all, &mut self.askers);
        let outcome = self.ports.advance(|message, fds| match message {
            ToGateway::Answer { request, .. } => {
                let asker = askers.remove(request);
                // One that has died has nobody left to tell.
                all.iter()
                    .find(|uplink| Some(uplink.number) == asker)
                    .map_or(Ok(()), |uplink| uplink.tell(message, fds))
            }
            _ => main.send(message, fds),
        })?;
        self.has_started |= outcome.started;
        if !outcome.unreached.is_empty() {
            self.reacher.handle_closed(&outcome.unreached);
            let forgotten = reach_batches(&outcome.unreached).map(|some| ToAgent::Forget { reached: some.to_vec() });
            self.orders.extend(forgotten);
            self.ports.set_reached(self.reacher.numbers().collect());
        }
        if outcome.changed {
            self.write_down_ports();
        }
        if let Some(why) = outcome.broken {
            tracing::error!("the gateway cannot be told of ports and is given up: {why}");
            self.all[at].kill();
            let number = self.all[at].number;
            return self.handle_end(number);
        }
        Ok(None)
    }

    /// What is published is to be seen in `ps` and `inspect`. That it is not must not end a sandbox.
    fn write_down_ports(&mut self) {
        let ports = self.ports.published();
        if self.record.state.ports != ports {
            self.record.state.ports = ports;
            if let Err(error) = self.record.publish() {
                tracing::warn!("`tapline ps` does not show the published ports: {error}");
            }
            self.steer_answers();
        }
    }

    /// Servers whose ports are published on another network than that of the default route are to answer there.
    fn steer_answers(&mut self) {
        let udp = udp_ranges(&self.record.state.ports);
        let Some(main) = self.main_uplink().filter(|main| main.has_link() && !main.leaving) else { return };
        let wanted = (!main.seat.default_route && !udp.is_empty()).then_some((main.number, udp));
        if self.answers == wanted {
            return;
        }
        let (name, interface) = (main.seat.endpoint.ifname.clone(), main.order.clone());
        let udp = wanted.as_ref().map(|(_, udp)| udp.clone()).unwrap_or_default();
        self.answers = wanted;
        let order = self.number();
        self.orders.push_back(ToAgent::Answer { order, name, interface, udp });
    }

    /// The sandbox's places, without those that are only just coming or going.
    fn seats(&self) -> Vec<Seat> {
        let there = self.all.iter().filter(|uplink| !uplink.leaving && !self.is_wanted_by_caller(uplink.number));
        there.map(|uplink| uplink.seat.clone()).collect()
    }

    /// Likewise for the sandbox's places.
    fn write_down_seats(&mut self) {
        let seats = self.seats();
        seats::write_down(&mut self.record.state, seats);
        if let Err(error) = self.record.publish() {
            tracing::warn!("`tapline inspect` does not show the sandbox's networks as they are: {error}");
        }
        self.steer_answers();
    }

    /// Give a gateway its link, and the main one all that it serves besides.
    fn hand_over(&mut self, at: usize) -> Result<(), SandboxError> {
        let number = self.all[at].number;
        if self.main.is_none() {
            self.main = Some(number);
            self.joined = false;
        }
        let is_main = self.main == Some(number);
        let api = if is_main { self.bind_api(self.all[at].has_worked() || self.told)? } else { None };
        let host = self.watch.as_ref().map(|watch| watch.view().clone()).unwrap_or_default();
        let uplink = &mut self.all[at];
        let search = if uplink.is_shared() {
            Some(&uplink.seat.network.dns_search).filter(|own| !own.is_empty()).map(Vec::as_slice)
        } else {
            self.about.search.as_deref()
        };
        let network = uplink.seat.network.announcing(search, &host);
        uplink.hand_over(network, host, api.as_ref().map(AsFd::as_fd))?;
        if is_main {
            self.give_reached(at)?;
            self.ports.begin(!self.has_started);
        }
        Ok(())
    }

    /// A listener for the API. A sandbox that works goes on without.
    fn bind_api(&mut self, may_fail: bool) -> Result<Option<OwnedFd>, SandboxError> {
        self.look_at_entry();
        match self.record.registration.bind_api() {
            Ok(api) => Ok(Some(api.into())),
            Err(error) if may_fail => {
                tracing::warn!("the sandbox's API is not served any more: {error}");
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn give_reached(&self, at: usize) -> Result<(), SandboxError> {
        let reached = self.reached();
        let mut sockets = self.reached.iter().map(|(_, socket)| socket.as_fd());
        for batch in reach_batches(&reached) {
            let fds: Vec<BorrowedFd<'_>> = sockets.by_ref().take(batch.len()).collect();
            self.all[at].tell(&ToGateway::Reach { reached: batch.to_vec() }, &fds)?;
        }
        Ok(())
    }

    /// A gateway carries frames.
    /// Whose gateway is to serve ports and the API.
    fn choose_main(&self) -> Option<u64> {
        let candidates = || self.all.iter().filter(|uplink| !uplink.leaving);
        let named = |uplink: &&Uplink| Some(&uplink.seat.network.name) == self.about.publish_on.as_ref();
        let has_default = |uplink: &&Uplink| uplink.seat.default_route;
        let chosen = candidates().find(named).or_else(|| candidates().find(has_default));
        chosen.or_else(|| candidates().next()).map(|uplink| uplink.number)
    }

    /// When the sandbox has left the network whose gateway served ports and the API, another does.
    fn move_main(&mut self) {
        if self.main.is_some() {
            return;
        }
        self.main = self.choose_main();
        let Some(at) = self.main.and_then(|number| self.at(number)) else {
            if !self.ports.is_empty() {
                tracing::warn!("the published ports are closed: the sandbox is on no network that could serve them");
                self.ports.release();
                self.write_down_ports();
            }
            return;
        };
        // One that has died gets all of this with its link.
        if self.all[at].is_handed_over() {
            let api = self.bind_api(true).ok().flatten();
            let told = api.map_or(Ok(()), |api| self.all[at].tell(&ToGateway::Api, &[api.as_fd()]));
            if let Err(error) = told.map_err(SandboxError::from).and_then(|()| self.give_reached(at)) {
                tracing::warn!("the gateway cannot be told what to serve: {error}");
            }
            self.ports.begin(!self.has_started);
        }
    }

    /// Have hosts and resolv.conf inside say what is so now.
    fn rewrite_files(&mut self) {
        let seats = self.seats();
        let (Some(names), Some(files)) = (&self.about.names, &mut self.files) else { return };
        let search = self.watch.as_ref().map(|watch| watch.view().search.as_slice()).unwrap_or_default();
        let linked: Vec<Linked> = self
            .about
            .links
            .iter()
            .map(|link| {
                let there = self.linked.iter().filter(|((_, sandbox), _)| *sandbox == link.sandbox);
                Linked { link: link.clone(), addresses: there.flat_map(|(_, addresses)| addresses.clone()).collect() }
            })
            .collect();
        let hosts = files.update_hosts(etc::hosts(names, &seats, &linked));
        let resolv_conf = files.update_resolv_conf(etc::resolv_conf(names, &seats, search));
        for (name, outcome) in [(etc::HOSTS, hosts), (etc::RESOLV_CONF, resolv_conf)] {
            if let Err(error) = outcome {
                tracing::warn!("/etc/{name} inside cannot be rewritten: {error}");
            }
        }
    }

    /// Let go of ports and links; the gateways that are the sandbox's own, for who wants to wait for their end, and the
    /// entry in the state directory, which is to go last.
    pub(super) fn end(mut self) -> (Vec<GatewayProcess>, Record) {
        let messages = self.ports.release();
        let deadline = Instant::now() + RELEASE;
        if let Some(at) = self.main.and_then(|number| self.at(number))
            && self.all[at].is_attached()
            && !messages.iter().all(|message| self.all[at].take_back(message, deadline))
        {
            self.all[at].kill();
        }
        (self.all.into_iter().filter_map(Uplink::end).collect(), self.record)
    }

    fn at(&self, number: u64) -> Option<usize> {
        self.all.iter().position(|uplink| uplink.number == number)
    }

    fn main_uplink(&self) -> Option<&Uplink> {
        self.main.and_then(|number| self.at(number)).map(|at| &self.all[at])
    }

    /// Is this the uplink that a caller waits for?
    fn is_wanted_by_caller(&self, number: u64) -> bool {
        matches!(&self.work, Some(Work::Connect { uplink, .. }) if *uplink == number)
    }

    /// A number that has not been given yet.
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers - 1
    }
}

/// The UDP ports inside that are published, those beside each other together.
fn udp_ranges(ports: &[Published]) -> Vec<(u16, u16)> {
    let udp = ports.iter().filter(|port| port.protocol == Protocol::Udp).map(|port| port.sandbox_port);
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for port in udp.collect::<BTreeSet<u16>>() {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(port) => *last = port,
            _ => ranges.push((port, port)),
        }
    }
    ranges
}
