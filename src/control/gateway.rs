//! The gateway process: its control thread.
//!
//! # Theory of operation
//!
//! The process is started by [`client::GatewayProcess`](super::client::GatewayProcess) with one descriptor, its end
//! of the attach connection. In this order:
//!
//! 1. It confines itself ([`confine`]) while it still has one thread and has read nothing.
//! 2. It waits for [`ToGateway::Attach`] and looks at the descriptors beside it: whatever they are said to be, they
//!    are trusted only as what the kernel says they are (`check_link`, `check_api`), and made non-blocking.
//! 3. It starts a worker thread, hands it the link, and waits for its word. Then it says [`FromGateway::Attached`],
//!    or [`FromGateway::Refused`] with the reason, and ends.
//! 4. From then on a single-threaded tokio runtime serves three things: the attach connection, the worker's events
//!    (names to be asked for, notices), and the API. It never touches a frame.
//!
//! It ends when the attach connection closes, which is how it learns that the sandbox has ended: the worker closes
//! the flows, with [`GRACE`] to do so, and the process exits at once with 0. When the worker ends, or its link fails,
//! the process says so ([`FromGateway::Notice`]) and ends as well: a private gateway without its link is of no use.
//!
//! The terminal's signals are ignored from before the program starts (see [`sys::spawn`](crate::sys::spawn)).
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{SFlag, fstat, major, minor};
use socket2::{Domain, SockRef, Type};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::api::{self, ApiState, SandboxInfo};
use super::messages::{FromGateway, ToGateway};
use super::wire::{self, WireError};
use crate::confine;
use crate::datapath::Worker;
use crate::datapath::commands::{Command, CommandSender, EVENT_CAPACITY, Event, WorkerGone};
use crate::names::Forwarder;
use crate::plan::{LinkKind, Network};
use crate::sys::scm::ScmError;
use crate::sys::spawn;
use crate::sys::watch::Watched;
use ports::Ports;

mod ports;

/// How long the worker may take to close its flows when the sandbox has ended.
pub const GRACE: Duration = Duration::from_millis(100);

/// Why a gateway ended otherwise than it should.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// Started by hand, or by something else than tapline.
    #[error("`gateway` is started by tapline itself: descriptor {0} is not a connection to it ({1})")]
    NotStartedByTapline(i32, io::Error),
    /// A stage of the confinement did not work.
    #[error(transparent)]
    Confine(#[from] confine::ConfineError),
    /// The connection to the supervisor failed.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Threads, epoll.
    #[error("the gateway cannot {0}: {1}")]
    Start(&'static str, io::Error),
    /// The worker's thread ended, which it does not do by itself.
    #[error(transparent)]
    Worker(#[from] WorkerGone),
}

/// Be a gateway: `inherited` is the number after `--fd`. Logging has begun and there is one thread. Returns when the
/// sandbox has ended; the caller then exits without waiting for anything.
pub fn main(inherited: i32) -> Result<(), GatewayError> {
    let attach = spawn::inherited(inherited).map_err(|e| GatewayError::NotStartedByTapline(inherited, e))?;
    check_attach(&attach).map_err(|e| GatewayError::NotStartedByTapline(inherited, e))?;
    if let Err(error) = confine::gateway() {
        refuse(&attach, &error.to_string())?;
        return Err(error.into());
    }
    serve(attach, Worker::start)
}

/// All that comes after the confinement.
fn serve(
    attach: OwnedFd,
    start_worker: impl FnOnce(mpsc::Sender<Event>) -> io::Result<CommandSender>,
) -> Result<(), GatewayError> {
    let Some((message, fds)) = wire::recv::<ToGateway>(&attach)? else { return Ok(()) };
    let request = match Request::check(message, fds) {
        Ok(request) => request,
        Err(reason) => return refuse(&attach, &reason),
    };
    let (events_in, events) = mpsc::channel(EVENT_CAPACITY);
    let commands = match start_worker(events_in) {
        Ok(commands) => commands,
        Err(error) => return refuse(&attach, &format!("the gateway cannot start its worker: {error}")),
    };
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| GatewayError::Start("start its runtime", e))?
        .block_on(control(attach, request, commands, events))
}

fn refuse(attach: impl AsFd, reason: &str) -> Result<(), GatewayError> {
    Ok(wire::send(attach, &FromGateway::Refused { reason: reason.to_owned() }, &[])?)
}

/// An attach request whose descriptors are what they should be.
struct Request {
    info: SandboxInfo,
    kind: LinkKind,
    link: OwnedFd,
    api: Option<UnixListener>,
}

impl Request {
    /// Take a first message apart. `Err` is a sentence for the person.
    fn check(message: ToGateway, fds: Vec<OwnedFd>) -> Result<Request, String> {
        let ToGateway::Attach { network, endpoint, link: kind, host, api } = message else {
            return Err("the first message was not `attach`".to_owned());
        };
        let expected = 1 + usize::from(api);
        if fds.len() != expected {
            return Err(format!("{} descriptors came with `attach`, {expected} were expected", fds.len()));
        }
        let mut fds = fds.into_iter();
        // Their number was checked above.
        let link = fds.next().ok_or("no link")?;
        check_link(kind, &link).map_err(|e| format!("the link's descriptor is not a {}: {e}", name_of(kind)))?;
        let api = match fds.next() {
            None => None,
            Some(fd) => {
                check_api(&fd).map_err(|e| format!("the API's descriptor is not a listening Unix socket: {e}"))?;
                Some(UnixListener::from(fd))
            }
        };
        Ok(Request { info: SandboxInfo { endpoint, network, host }, kind, link, api })
    }
}

fn name_of(kind: LinkKind) -> &'static str {
    match kind {
        LinkKind::Tap => "TAP device",
        LinkKind::Packet => "packet socket",
    }
}

/// Is this our end of an attach connection?
fn check_attach(fd: &OwnedFd) -> io::Result<()> {
    let socket = SockRef::from(fd);
    if socket.domain()? != Domain::UNIX || socket.r#type()? != Type::SEQPACKET {
        return Err(io::Error::other("not a Unix sequenced-packet socket"));
    }
    Ok(())
}

/// Is the descriptor what it is said to be? Makes it non-blocking. That a TAP has the right flags is found out by
/// the worker, which asks the device (TUNGETIFF).
fn check_link(kind: LinkKind, fd: &OwnedFd) -> io::Result<()> {
    match kind {
        LinkKind::Tap => {
            let stat = fstat(fd)?;
            let is_device = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR;
            // 10:200 is /dev/net/tun (linux/miscdevice.h, TUN_MINOR).
            if !is_device || (major(stat.st_rdev), minor(stat.st_rdev)) != (10, 200) {
                return Err(io::Error::other("it was not opened from /dev/net/tun"));
            }
        }
        LinkKind::Packet => {
            let socket = SockRef::from(fd);
            if socket.domain()? != Domain::PACKET || socket.r#type()? != Type::RAW {
                return Err(io::Error::other("it is another kind of socket"));
            }
        }
    }
    set_nonblocking(fd)
}

fn check_api(fd: &OwnedFd) -> io::Result<()> {
    let socket = SockRef::from(fd);
    if socket.domain()? != Domain::UNIX || socket.r#type()? != Type::STREAM || !socket.is_listener()? {
        return Err(io::Error::other("it is another kind of socket"));
    }
    Ok(())
}

fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// The control thread from the moment there is a worker.
async fn control(
    attach: OwnedFd,
    request: Request,
    commands: CommandSender,
    mut events: mpsc::Receiver<Event>,
) -> Result<(), GatewayError> {
    set_nonblocking(&attach).map_err(|e| GatewayError::Start("prepare the attach connection", e))?;
    let attach = Watched::new(attach).map_err(|e| GatewayError::Start("watch the attach connection", e))?;
    let Request { info, kind, link, api } = request;
    let id = info.endpoint.id.clone();

    let (reply, attached) = oneshot::channel();
    commands.send(Command::AttachPort {
        endpoint: Box::new(info.endpoint.clone()),
        link: kind,
        fd: link,
        network: Box::new(info.network.clone()),
        host: info.host.clone(),
        reply,
    })?;
    if let Err(reason) = attached.await.map_err(|_| WorkerGone)? {
        return refuse(&attach, &reason);
    }
    let attach = Arc::new(attach);
    let forwarder = Forwarder::new(&info.network, &info.host);
    let network = info.network.clone();
    let state = ApiState::new(commands.clone(), forwarder.clone());
    let (said, queue) = mpsc::channel(ports::QUEUE);
    tokio::spawn(ports::speak(Arc::clone(&attach), queue));
    let ports = Ports::new(id.clone(), commands.clone(), Arc::clone(&state), said.clone());
    state.handle_attached(info, said);
    if let Some(api) = api {
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            if let Err(error) = api::serve(api, state).await {
                tracing::warn!("the API of this sandbox is not served: {error}");
            }
        });
    }
    wire::send(&*attach, &FromGateway::Attached, &[])?;

    let control = Control { attach, commands, forwarder, state, network, id: id.clone(), ports };
    let end = control.run(&mut events).await;
    control.state.handle_ended(&id);
    // Whoever reads our standard error to its end need not wait for what comes now; a failure is still said there.
    if end.is_ok()
        && let Ok((_, nowhere)) = io::pipe()
    {
        let _ = nix::unistd::dup2_stderr(&nowhere);
    }
    let (reply, detached) = oneshot::channel();
    if control.commands.send(Command::DetachPort { id, reply }).is_ok() {
        // Whether it took longer or has ended: the process ends now, and the kernel closes what is left.
        let _ = timeout(GRACE, detached).await;
    }
    end
}

struct Control {
    attach: Arc<Watched>,
    commands: CommandSender,
    forwarder: Forwarder,
    state: Arc<ApiState>,
    network: Network,
    id: String,
    ports: Ports,
}

impl Control {
    /// Until the attach connection closes or the worker ends.
    async fn run(&self, events: &mut mpsc::Receiver<Event>) -> Result<(), GatewayError> {
        loop {
            tokio::select! {
                message = self.next_message() => match message {
                    Ok(Some((message, fds))) => self.handle_message(message, fds)?,
                    Ok(None) => return Ok(()),
                    // It does not speak our language; it will still close its end when it is done.
                    Err(error @ (WireError::Json(_) | WireError::TooLarge(_))) => tracing::warn!("{error}"),
                    Err(error) => return Err(error.into()),
                },
                event = events.recv() => match event {
                    Some(Event::PortClosed { reason, .. }) => {
                        self.say(reason);
                        return Ok(());
                    }
                    Some(event) => self.handle_event(event),
                    None => return Err(WorkerGone.into()),
                },
            }
        }
    }

    async fn next_message(&self) -> Result<Option<(ToGateway, Vec<OwnedFd>)>, WireError> {
        let received = self.attach.read(|fd| match wire::recv(fd) {
            Err(error) if error.is_would_block() => None,
            other => Some(other),
        });
        received.await.map_err(ScmError::Receive)?
    }

    fn handle_message(&self, message: ToGateway, fds: Vec<OwnedFd>) -> Result<(), GatewayError> {
        match message {
            ToGateway::Attach { endpoint, .. } => {
                let reason = format!("this gateway serves one sandbox only, not also {}", endpoint.name);
                refuse(&*self.attach, &reason)
            }
            message @ (ToGateway::Inside
            | ToGateway::Publish { .. }
            | ToGateway::Unpublish { .. }
            | ToGateway::Reach { .. }
            | ToGateway::Answer { .. }) => {
                if let Some(failure) = self.ports.handle(message, fds)? {
                    self.say(failure);
                }
                Ok(())
            }
            ToGateway::Listen => Ok(()),
            ToGateway::HostChanged { host } => {
                tracing::info!(?host, "the host changed");
                self.forwarder.handle_host_changed(&host);
                self.state.handle_host_changed(&self.id, host.clone());
                Ok(self.commands.send(Command::HostChanged(host))?)
            }
        }
    }

    fn handle_event(&self, event: Event) {
        match event {
            Event::DnsQuery { asker, message } => {
                let commands = self.commands.clone();
                if self.network.dns_enabled {
                    self.forwarder.handle_query(message, move |message| {
                        // An error says that the worker has ended; `run` learns of it by itself.
                        let _ = commands.send(Command::DnsAnswer { asker, message });
                    });
                }
            }
            Event::DnsStream { stream, .. } => {
                if self.network.dns_enabled {
                    self.forwarder.handle_stream(stream);
                }
            }
            Event::Notice(text) => self.say(text),
            Event::PortClosed { reason, .. } => self.say(reason),
        }
    }

    /// Tell the person, through the supervisor.
    fn say(&self, text: String) {
        self.state.handle_notice(&self.id, &text);
        if let Err(error) = wire::send(&*self.attach, &FromGateway::Notice { text: text.clone() }, &[]) {
            tracing::warn!("{text} (and the supervisor could not be told: {error})");
        }
    }
}

#[cfg(test)]
mod tests;
