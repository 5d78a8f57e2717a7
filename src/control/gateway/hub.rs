//! The control thread's table: which networks are served, who is on them, and who is told what.
//!
//! # Theory of operation
//!
//! A connection is one endpoint ([`Hub::converse`] is its whole life):
//!
//! | state | what it has | ends with |
//! | --- | --- | --- |
//! | silent | a place among [`MAX_SILENT`] | its first message, or [`Setup::first_word`] |
//! | attaching | a place in its network's table: its addresses are taken | the worker's answer |
//! | attached | a port of the worker; names; a row in the API | its end, or its link's |
//! | leaving | its place in the table only, until the worker has let go of it | [`GRACE`](super::GRACE) at most |
//!
//! A network's worker is started by its first endpoint and stopped when the last one's place is free again. While it is
//! served its definition does not change: an endpoint that comes with another one is refused, as is one whose addresses
//! another has. One that has closed its connection does not count: the new one waits until its place is free, so that a
//! supervisor that was killed and started anew is not refused for what it was.
//!
//! Each worker has a task that reads its events ([`listen`]). What a sandbox asks the DNS address is matched to its
//! endpoint by network and port, and answered by the forwarder of that endpoint. When the subnets of the networks change,
//! all workers are told the others'. The host's view is the latest that any supervisor has told of.
//!
//! The table is behind a lock that is never held while something is waited for.
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::super::api::{self, ApiState, SandboxInfo};
use super::super::messages::{FromGateway, ToGateway};
use super::super::wire::{self, WireError};
use super::check::{Home, Request, check_api, check_listener, set_nonblocking};
use super::mouth::{self, Mouth};
use super::ports::Ports;
use super::{BACKLOG, GRACE, GatewayError};
use crate::datapath::commands::{Command, CommandSender, EVENT_CAPACITY, Event, WorkerGone};
use crate::gateway::link::PortId;
use crate::names::directory::{News, subnets};
use crate::names::{Forwarder, Names};
use crate::plan::{Endpoint, HostView, LinkKind, MacAddr, Network};
use crate::sys::scm::{self, ScmError};
use crate::sys::watch::Watched;

/// Connections that may have said nothing yet.
pub const MAX_SILENT: usize = 64;
/// Places where supervisors may find this gateway; the oldest is given up for another.
const MAX_LISTENERS: usize = 8;
/// How long a new endpoint waits for the place of one whose connection has ended.
const TURN: Duration = Duration::from_secs(2);

/// Starts a worker whose events go there.
pub type StartWorker = Box<dyn Fn(mpsc::Sender<Event>) -> io::Result<CommandSender> + Send + Sync>;

/// What kind of gateway this is.
pub struct Setup {
    /// How a worker is started.
    pub start_worker: StartWorker,
    /// Is a descriptor a link?
    pub check_link: fn(LinkKind, &OwnedFd) -> io::Result<()>,
    /// Sandboxes share its networks; otherwise it serves one that has its network for itself.
    pub shared: bool,
    /// How long a connection may take to say its first word; `None` for ever.
    pub first_word: Option<Duration>,
    /// How long nobody may be there before a shared gateway ends.
    pub linger: Duration,
    /// How long a worker may take to serve an endpoint.
    pub service: Duration,
    /// What this process could not give up, for its supervisors.
    pub lacks: Vec<String>,
}

/// See the top of this file.
pub struct Hub {
    setup: Setup,
    names: Names,
    state: Arc<ApiState>,
    table: Mutex<Table>,
    /// Somebody's place is free.
    departed: Notify,
    /// Why this gateway is of no use any more.
    failures: mpsc::UnboundedSender<GatewayError>,
    /// How many connections there are.
    connections: watch::Sender<usize>,
    silent: Arc<Semaphore>,
}

#[derive(Default)]
struct Table {
    segments: HashMap<String, Segment>,
    host: Option<HostView>,
    /// By the sandbox's id: where its API is served.
    apis: HashMap<String, Vec<AbortHandle>>,
    listeners: Vec<(Arc<Watched>, AbortHandle)>,
    /// The last number that was given out, to a connection or a worker.
    last: u64,
}

/// A network that is served.
struct Segment {
    network: Network,
    worker: u64,
    commands: CommandSender,
    /// By their connections' numbers.
    members: HashMap<u64, Member>,
    ports: HashMap<PortId, u64>,
    /// What its worker was told last.
    foreign: Vec<IpNet>,
}

/// An endpoint's place.
struct Member {
    id: String,
    name: String,
    mac: MacAddr,
    addresses: [Option<IpAddr>; 2],
    attach: Arc<Watched>,
    forwarder: Forwarder,
    mouth: Mouth,
    /// Where it is told that its link has failed; taken when it is.
    failed: Option<oneshot::Sender<String>>,
}

/// What an endpoint has of the hub.
struct Place {
    connection: u64,
    network: String,
    id: String,
    commands: CommandSender,
    mouth: Mouth,
    failed: oneshot::Receiver<String>,
}

/// Why somebody cannot have a place.
enum NoPlace {
    /// One sentence.
    Refused(String),
    /// Whoever has it is leaving.
    Later(String),
}

impl Hub {
    /// A hub, and where it says that it is of no use any more.
    pub fn new(setup: Setup) -> (Arc<Hub>, mpsc::UnboundedReceiver<GatewayError>) {
        let (failures, failed) = mpsc::unbounded_channel();
        let names = Names::default();
        let hub = Hub {
            setup,
            state: ApiState::new(names.clone()),
            names,
            table: Mutex::default(),
            departed: Notify::new(),
            failures,
            connections: watch::Sender::new(0),
            silent: Arc::new(Semaphore::new(MAX_SILENT)),
        };
        (Arc::new(hub), failed)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accept supervisors here too. Call it within a tokio runtime.
    pub fn listen(self: &Arc<Hub>, listener: OwnedFd) -> io::Result<()> {
        check_listener(&listener)?;
        set_nonblocking(&listener)?;
        // It may listen already. Whoever connects sees from now on that it is this process (SO_PEERCRED is as of the last
        // listen(2)).
        SockRef::from(&listener).listen(BACKLOG)?;
        let listener = Arc::new(Watched::new(listener)?);
        let accepting = tokio::spawn(accept(Arc::clone(self), Arc::clone(&listener))).abort_handle();
        let mut table = self.table();
        if table.listeners.len() == MAX_LISTENERS {
            table.listeners.remove(0).1.abort();
        }
        table.listeners.push((listener, accepting));
        Ok(())
    }

    /// Until nobody has been there for a while.
    pub async fn deserted(&self) {
        let mut connections = self.connections.subscribe();
        loop {
            // An error would mean that the hub has gone.
            let _ = connections.wait_for(|count| *count == 0).await;
            if timeout(self.setup.linger, connections.wait_for(|count| *count > 0)).await.is_err() && !self.is_called()
            {
                return;
            }
        }
    }

    /// Is there somebody who has connected and was not yet accepted?
    fn is_called(&self) -> bool {
        self.table().listeners.iter().any(|(listener, _)| {
            let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
        })
    }

    /// Serve one connection to its end. An error is this connection's alone; what concerns all is said elsewhere.
    pub async fn converse(
        self: &Arc<Hub>,
        attach: OwnedFd,
        silent: Option<OwnedSemaphorePermit>,
    ) -> Result<(), GatewayError> {
        set_nonblocking(&attach).map_err(|e| GatewayError::Start("prepare the attach connection", e))?;
        let attach = Watched::new(attach).map_err(|e| GatewayError::Start("watch the attach connection", e))?;
        let attach = Arc::new(attach);
        let first = async {
            match self.setup.first_word {
                Some(patience) => timeout(patience, next_message(&attach)).await.unwrap_or(Ok(None)),
                None => next_message(&attach).await,
            }
        };
        let first = first.await?;
        drop(silent);
        let Some((message, fds)) = first else { return Ok(()) };
        let request = match Request::check(message, fds, self.setup.check_link, Home::of(&*attach)) {
            Ok(request) => request,
            Err(reason) => return refuse(&*attach, &reason),
        };
        match self.take_place(&attach, &request).await {
            Ok((place, said)) => self.attach(attach, request, place, said).await,
            Err(reason) => refuse(&*attach, &reason),
        }
    }

    /// A place in the network's table, whose worker is started if need be.
    async fn take_place(
        self: &Arc<Hub>,
        attach: &Arc<Watched>,
        request: &Request,
    ) -> Result<(Place, mouth::Said), String> {
        let waiting = async {
            loop {
                let mut departed = pin!(self.departed.notified());
                departed.as_mut().enable();
                match self.try_place(attach, request) {
                    Ok(place) => return Ok(place),
                    Err(NoPlace::Refused(reason)) => return Err(reason),
                    Err(NoPlace::Later(_)) => departed.await,
                }
            }
        };
        match timeout(TURN, waiting).await {
            Ok(outcome) => outcome,
            Err(_) => match self.try_place(attach, request) {
                Ok(place) => Ok(place),
                Err(NoPlace::Refused(reason) | NoPlace::Later(reason)) => Err(reason),
            },
        }
    }

    fn try_place(self: &Arc<Hub>, attach: &Arc<Watched>, request: &Request) -> Result<(Place, mouth::Said), NoPlace> {
        let Request { network, endpoint, host, .. } = request;
        if self.setup.shared && network.sharing.is_none() {
            let text = "a network that a sandbox has for itself needs a gateway of its own".to_owned();
            return Err(NoPlace::Refused(text));
        }
        let mut table = self.table();
        if let Some(segment) = table.segments.get(&network.name) {
            segment.check(network, endpoint)?;
        } else {
            self.start_segment(&mut table, network).map_err(NoPlace::Refused)?;
        }
        table.last += 1;
        let connection = table.last;
        let Some(segment) = table.segments.get_mut(&network.name) else {
            return Err(NoPlace::Refused("the network has just ended".to_owned()));
        };
        let (mouth, said) = Mouth::new();
        let (fail, failed) = oneshot::channel();
        let member = Member {
            id: endpoint.id.clone(),
            name: endpoint.name.clone(),
            mac: endpoint.mac,
            addresses: [endpoint.v4.map(IpAddr::from), endpoint.v6.map(IpAddr::from)],
            attach: Arc::clone(attach),
            forwarder: self.names.forwarder(network, endpoint, host),
            mouth: mouth.clone(),
            failed: Some(fail),
        };
        segment.members.insert(connection, member);
        let (network, id) = (network.name.clone(), endpoint.id.clone());
        let commands = segment.commands.clone();
        Ok((Place { connection, network, id, commands, mouth, failed }, said))
    }

    /// Start a network's worker.
    fn start_segment(self: &Arc<Hub>, table: &mut Table, network: &Network) -> Result<(), String> {
        let (events_in, events) = mpsc::channel(EVENT_CAPACITY);
        let commands = (self.setup.start_worker)(events_in)
            .map_err(|error| format!("the gateway cannot start its worker: {error}"))?;
        table.last += 1;
        let worker = table.last;
        self.state.handle_network_started(&network.name, commands.clone());
        tokio::spawn(listen(Arc::clone(self), network.name.clone(), worker, commands.clone(), events));
        let segment = Segment {
            network: network.clone(),
            worker,
            commands,
            members: HashMap::new(),
            ports: HashMap::new(),
            foreign: Vec::new(),
        };
        table.segments.insert(network.name.clone(), segment);
        Ok(())
    }

    /// From the place in the table to the end of the sandbox there.
    async fn attach(
        self: &Arc<Hub>,
        attach: Arc<Watched>,
        request: Request,
        mut place: Place,
        said: mouth::Said,
    ) -> Result<(), GatewayError> {
        let Request { network, endpoint, host, kind, link, api, capture } = request;
        self.handle_host(&place.id, &host);
        // Before the first frame: from then on it is where nothing leads.
        self.tell_foreign();
        let (reply, answer) = oneshot::channel();
        let sent = place.commands.send(Command::AttachPort {
            endpoint: Box::new(endpoint.clone()),
            link: kind,
            fd: link,
            capture,
            network: Box::new(network.clone()),
            host: host.clone(),
            reply,
        });
        let answer = match sent {
            Ok(()) => match timeout(self.setup.service, answer).await {
                Ok(answer) => answer.map_err(|_| WorkerGone),
                Err(_) => {
                    // Should it be served after all.
                    let (reply, _) = oneshot::channel();
                    let _ = place.commands.send(Command::DetachPort { id: place.id.clone(), reply });
                    let seconds = self.setup.service.as_secs_f32();
                    Ok(Err(format!("the worker of the network `{}` has not answered for {seconds} s", network.name)))
                }
            },
            Err(gone) => Err(gone),
        };
        match answer {
            Ok(Ok(port)) => self.settle(port, &place),
            Ok(Err(reason)) => {
                self.free(&place);
                return refuse(&*attach, &reason);
            }
            Err(gone) => {
                self.free(&place);
                let _ = self.failures.send(gone.into());
                return Err(gone.into());
            }
        }
        let result = wire::send(&*attach, &FromGateway::Attached { lacks: self.setup.lacks.clone() }, &[]);
        tokio::spawn(mouth::speak(Arc::clone(&attach), said));
        self.tell(self.names.attach(place.connection, &network, &endpoint));
        let said = place.mouth.queue().clone();
        let info = SandboxInfo::new(endpoint, network, host);
        let ports = Ports::new(
            place.id.clone(),
            place.connection,
            place.commands.clone(),
            Home::of(&*attach),
            Arc::clone(&self.state),
            said.clone(),
        );
        self.state.handle_attached(place.connection, info, said);
        if let Some(api) = api {
            self.serve_api(&place.id, api);
        }
        let end = match result {
            Ok(()) => self.run(&attach, &mut place, &ports).await,
            Err(error) => Err(error.into()),
        };
        self.leave(place, end.is_ok()).await;
        end
    }

    /// The endpoint has its port.
    fn settle(&self, port: PortId, place: &Place) {
        if let Some(segment) = self.table().segments.get_mut(&place.network) {
            segment.ports.insert(port, place.connection);
        }
    }

    fn serve_api(&self, id: &str, listener: std::os::unix::net::UnixListener) {
        let serving = api::serve(listener, Arc::clone(&self.state));
        let serving = tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::warn!("the API of this sandbox is not served: {error}");
            }
        });
        self.table().apis.entry(id.to_owned()).or_default().push(serving.abort_handle());
    }

    /// Until the connection closes or the link fails.
    async fn run(self: &Arc<Hub>, attach: &Arc<Watched>, place: &mut Place, ports: &Ports) -> Result<(), GatewayError> {
        loop {
            tokio::select! {
                message = next_message(attach) => match message {
                    Ok(Some((message, fds))) => self.handle_message(attach, place, ports, message, fds)?,
                    Ok(None) => return Ok(()),
                    // It does not speak our language; it will still close its end when it is done.
                    Err(error @ (WireError::Json(_) | WireError::TooLarge(_))) => tracing::warn!("{error}"),
                    Err(error) => return Err(error.into()),
                },
                // Its other end is dropped only after this has returned.
                Ok(reason) = &mut place.failed => {
                    self.state.handle_notice(&place.id, &reason);
                    // At once: the connection closes now.
                    let text = reason.clone();
                    if let Err(error) = wire::send(&**attach, &FromGateway::Notice { text }, &[]) {
                        tracing::warn!("{reason} (and the supervisor could not be told: {error})");
                    }
                    return Ok(());
                }
            }
        }
    }

    fn handle_message(
        self: &Arc<Hub>,
        attach: &Arc<Watched>,
        place: &Place,
        ports: &Ports,
        message: ToGateway,
        fds: Vec<OwnedFd>,
    ) -> Result<(), GatewayError> {
        match message {
            ToGateway::Attach { endpoint, .. } => {
                let reason = format!("this connection is for one endpoint only, not also for {}", endpoint.name);
                refuse(&**attach, &reason)?;
            }
            ToGateway::Listen => match <[OwnedFd; 1]>::try_from(fds) {
                Ok([listener]) if self.setup.shared => {
                    if let Err(error) = self.listen(listener) {
                        self.say(place, format!("the gateway cannot be found at another place: {error}"));
                    }
                }
                Ok(_) => self.say(place, "this gateway serves one sandbox only, and listens nowhere".to_owned()),
                Err(fds) => self.say(place, format!("{} descriptors came with `listen`, 1 was expected", fds.len())),
            },
            ToGateway::Api => match <[OwnedFd; 1]>::try_from(fds) {
                Ok([listener]) => match check_api(&listener).and_then(|()| set_nonblocking(&listener)) {
                    Ok(()) => self.serve_api(&place.id, listener.into()),
                    Err(error) => {
                        self.say(place, format!("what came with `api` is not a listening Unix socket: {error}"));
                    }
                },
                Err(fds) => self.say(place, format!("{} descriptors came with `api`, 1 was expected", fds.len())),
            },
            ToGateway::HostChanged { host } => self.handle_host(&place.id, &host),
            message @ (ToGateway::Inside
            | ToGateway::Publish { .. }
            | ToGateway::Unpublish { .. }
            | ToGateway::Reach { .. }
            | ToGateway::Unreach { .. }
            | ToGateway::Answer { .. }) => {
                if let Some(failure) = ports.handle(message, fds)? {
                    self.say(place, failure);
                }
            }
        }
        Ok(())
    }

    /// A supervisor says what the host is like: all are told if that is new.
    fn handle_host(&self, id: &str, host: &HostView) {
        let mut table = self.table();
        let before = table.host.replace(host.clone());
        if before.is_none() || before.as_ref() == Some(host) {
            return;
        }
        tracing::info!(?host, "the host changed");
        for segment in table.segments.values() {
            // An error says that the worker has ended; whoever reads its events learns of it.
            let _ = segment.commands.send(Command::HostChanged(host.clone()));
            for member in segment.members.values() {
                member.forwarder.handle_host_changed(host);
            }
        }
        drop(table);
        self.state.handle_host_changed(id, host);
    }

    /// Tell each worker the subnets of the other networks, where those have changed.
    fn tell_foreign(&self) {
        let mut table = self.table();
        let mut all: Vec<(String, IpNet)> = Vec::new();
        for (name, segment) in &table.segments {
            all.extend(subnets(&segment.network).map(|subnet| (name.clone(), subnet)));
        }
        all.sort_unstable();
        for (name, segment) in &mut table.segments {
            let foreign: Vec<IpNet> = all.iter().filter(|(other, _)| other != name).map(|(_, net)| *net).collect();
            if foreign != segment.foreign {
                segment.foreign = foreign.clone();
                let _ = segment.commands.send(Command::Foreign(foreign));
            }
        }
    }

    /// Tell supervisors of linked sandboxes.
    fn tell(&self, news: Vec<News>) {
        if news.is_empty() {
            return;
        }
        let table = self.table();
        for News { to, sandbox, addresses } in news {
            if let Some(member) = table.segments.values().find_map(|segment| segment.members.get(&to)) {
                member.mouth.linked(sandbox, addresses);
            }
        }
    }

    /// Tell the person, through the supervisor.
    fn say(&self, place: &Place, text: String) {
        self.state.handle_notice(&place.id, &text);
        place.mouth.notice(text);
    }

    fn handle_event(&self, network: &str, event: Event) {
        let table = self.table();
        let Some(segment) = table.segments.get(network) else { return };
        match event {
            Event::DnsQuery { asker, message, turn: _turn } => {
                let Some(member) = segment.member_at(asker.peer.port) else { return };
                let (forwarder, commands) = (member.forwarder.clone(), segment.commands.clone());
                drop(table);
                forwarder.handle_query(message, move |message| {
                    // An error says that the worker has ended; whoever reads its events learns of it.
                    let _ = commands.send(Command::DnsAnswer { asker, message });
                });
            }
            Event::DnsStream { asker, stream, turn: _turn } => {
                let Some(member) = segment.member_at(asker.peer.port) else { return };
                let forwarder = member.forwarder.clone();
                drop(table);
                forwarder.handle_stream(stream);
            }
            Event::Notice(text) => {
                for member in segment.members.values() {
                    self.state.handle_notice(&member.id, &text);
                    member.mouth.notice(text.clone());
                }
            }
            Event::PortClosed { id, reason } => {
                drop(table);
                let mut table = self.table();
                let members = table.segments.get_mut(network).into_iter().flat_map(|s| s.members.values_mut());
                for member in members.filter(|member| member.id == id) {
                    if let Some(failed) = member.failed.take() {
                        let _ = failed.send(reason.clone());
                    }
                }
            }
        }
    }

    /// The sandbox has left the network.
    async fn leave(&self, place: Place, well: bool) {
        self.tell(self.names.detach(place.connection));
        if self.state.handle_detached(&place.id, place.connection) {
            let apis = self.table().apis.remove(&place.id);
            apis.into_iter().flatten().for_each(|api| api.abort());
        }
        if let Some(segment) = self.table().segments.get_mut(&place.network) {
            segment.ports.retain(|_, connection| *connection != place.connection);
        }
        // Whoever reads our standard error to its end need not wait for what comes now; a failure is still said there.
        if well
            && !self.setup.shared
            && let Ok((_, nowhere)) = io::pipe()
        {
            let _ = nix::unistd::dup2_stderr(&nowhere);
        }
        let (reply, detached) = oneshot::channel();
        if place.commands.send(Command::DetachPort { id: place.id.clone(), reply }).is_ok() {
            // A worker that takes longer is none that the next endpoint should wait for.
            let _ = timeout(GRACE, detached).await;
        }
        self.free(&place);
    }

    /// The place in the table is free; a network that nobody is on any more ends.
    fn free(&self, place: &Place) {
        let mut table = self.table();
        if let Some(segment) = table.segments.get_mut(&place.network) {
            segment.members.remove(&place.connection);
            if segment.members.is_empty() {
                // An error says that it has ended already.
                let _ = segment.commands.send(Command::Stop);
                table.segments.remove(&place.network);
                self.state.handle_network_stopped(&place.network);
            }
        }
        drop(table);
        self.tell_foreign();
        self.departed.notify_waiters();
    }
}

impl Segment {
    fn member_at(&self, port: PortId) -> Option<&Member> {
        self.network.dns_enabled.then_some(())?;
        self.members.get(self.ports.get(&port)?)
    }

    /// Can this endpoint have a place here?
    fn check(&self, network: &Network, endpoint: &Endpoint) -> Result<(), NoPlace> {
        let same = (self.network.v4, self.network.v6, self.network.mtu, self.network.gateway_mac, self.network.sharing)
            == (network.v4, network.v6, network.mtu, network.gateway_mac, network.sharing);
        let described = |network: &Network| {
            let all: Vec<String> = subnets(network).map(|subnet| subnet.to_string()).collect();
            format!("{}, MTU {}", all.join(" and "), network.mtu)
        };
        if !same {
            let text = format!(
                "the network `{}` is in use as it was defined before ({}), and cannot be joined as it is defined now ({}): \
                 end the sandboxes that are on it first",
                network.name,
                described(&self.network),
                described(network)
            );
            let leaving = self.members.values().all(Member::has_gone);
            return Err(if leaving { NoPlace::Later(text) } else { NoPlace::Refused(text) });
        }
        let taken = |member: &&Member| member.clash(endpoint).is_some();
        let mut clashes = self.members.values().filter(taken).peekable();
        let Some(first) = clashes.peek() else { return Ok(()) };
        let what = first.clash(endpoint).unwrap_or_default();
        let text =
            format!("{what} on the network `{}` belongs to the sandbox {} ({})", network.name, first.name, first.id);
        Err(if clashes.all(Member::has_gone) { NoPlace::Later(text) } else { NoPlace::Refused(text) })
    }
}

impl Member {
    /// What of an endpoint this one has already.
    fn clash(&self, endpoint: &Endpoint) -> Option<String> {
        if self.id == endpoint.id {
            return Some(format!("the id {}", endpoint.id));
        }
        if self.mac == endpoint.mac {
            return Some(format!("the Ethernet address {}", endpoint.mac));
        }
        let [v4, v6] = [endpoint.v4.map(IpAddr::from), endpoint.v6.map(IpAddr::from)];
        let ip = [v4, v6].into_iter().flatten().find(|ip| self.addresses.contains(&Some(*ip)))?;
        Some(format!("the address {ip}"))
    }

    /// Has its connection been closed, whether or not that was noticed?
    fn has_gone(&self) -> bool {
        let mut fds = [PollFd::new(self.attach.as_fd(), PollFlags::empty())];
        matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
    }
}

/// Read a worker's events to their end. `commands` is kept as long: a waker that is dropped takes back what it has woken
/// for and the worker has not yet seen.
async fn listen(
    hub: Arc<Hub>,
    network: String,
    worker: u64,
    commands: CommandSender,
    mut events: mpsc::Receiver<Event>,
) {
    const BATCH: usize = 64;
    let mut batch = Vec::with_capacity(BATCH);
    while events.recv_many(&mut batch, BATCH).await > 0 {
        for event in batch.drain(..) {
            hub.handle_event(&network, event);
        }
    }
    drop(commands);
    // One that was told to stop is no longer in the table.
    if hub.table().segments.get(&network).is_some_and(|segment| segment.worker == worker) {
        let _ = hub.failures.send(WorkerGone.into());
    }
}

/// Accept supervisors.
async fn accept(hub: Arc<Hub>, listener: Arc<Watched>) {
    let uid = nix::unistd::geteuid().as_raw();
    loop {
        let Ok(silent) = Arc::clone(&hub.silent).acquire_owned().await else { return };
        let accepted = listener.read(|fd| match SockRef::from(&fd).accept() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            other => Some(other),
        });
        let attach: OwnedFd = match accepted.await.and_then(|accepted| accepted) {
            Ok((socket, _)) => socket.into(),
            Err(error) => {
                // Out of descriptors, most likely: flows that end give some back.
                tracing::warn!("the gateway cannot accept a supervisor: {error}");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        match scm::peer_credentials(&attach) {
            Ok(peer) if peer.uid == uid || peer.uid == 0 => {}
            Ok(peer) => {
                tracing::warn!("the gateway refuses uid {}", peer.uid);
                continue;
            }
            Err(error) => {
                tracing::warn!("the gateway cannot tell who connects: {error}");
                continue;
            }
        }
        hub.connections.send_modify(|count| *count += 1);
        let hub = Arc::clone(&hub);
        tokio::spawn(async move {
            if let Err(error) = hub.converse(attach, Some(silent)).await {
                tracing::warn!("{error}");
            }
            hub.connections.send_modify(|count| *count -= 1);
        });
    }
}

/// The next message; `None` when the connection has closed.
async fn next_message(attach: &Watched) -> Result<Option<(ToGateway, Vec<OwnedFd>)>, WireError> {
    let received = attach.read(|fd| match wire::recv(fd) {
        Err(error) if error.is_would_block() => None,
        other => Some(other),
    });
    received.await.map_err(ScmError::Receive)?
}

/// Say why not.
pub fn refuse(attach: impl AsFd, reason: &str) -> Result<(), GatewayError> {
    Ok(wire::send(attach, &FromGateway::Refused { reason: reason.to_owned() }, &[])?)
}
