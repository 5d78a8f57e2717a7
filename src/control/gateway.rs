//! The gateway process: its control thread.
//!
//! # Theory of operation
//!
//! The process is started by [`client::GatewayProcess`](super::client::GatewayProcess) with one descriptor
//! ([`Entrance`]). Whichever it is, it goes on in a second process, which is alone in its namespaces ([`confine`]), and
//! the first ends. There are two kinds:
//!
//! - A *private* gateway serves one sandbox on a network of its own. Its descriptor is its end of the attach connection.
//!   It ends when that closes, or its link fails. Its second process is the supervisor's child like the first, and says
//!   so ([`FromGateway::Moved`]).
//! - A *shared* one serves all shared networks of a user in a host network namespace. Its descriptor is a socket
//!   to listen at, bound where supervisors look for it ([`rendezvous`](super::rendezvous)). It is nobody's child: the
//!   first process ends when the second can be connected to. It ends [`LINGER`] after its last
//!   connection; whoever connects then and is not heard finds no gateway at his next look and starts another.
//!
//! Each confines itself ([`confine`]) while it still has one thread and has read nothing. From then on a single-threaded
//! tokio runtime serves the connections ([`hub`]), the workers' events, and the APIs. It never touches a frame. A
//! connection is one endpoint; the descriptors that come with its first message are trusted only as what the kernel says
//! they are ([`check`]). Each network has a worker thread.
//!
//! When a connection closes, which is how the gateway learns that a sandbox has ended, the worker closes the flows, with
//! [`GRACE`] to do so. What goes wrong with one connection ends that one. When a worker ends by itself the process does:
//! the supervisors start another.
//!
//! The terminal's signals are ignored from before the program starts (see [`sys::spawn`](crate::sys::spawn)).
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use socket2::SockRef;
use tokio::sync::mpsc;

use super::messages::FromGateway;
use super::wire::{self, WireError};
use crate::confine::{self, Succession};
use crate::datapath::Worker;
use crate::datapath::commands::WorkerGone;
use crate::sys::scm::ScmError;
use crate::sys::spawn;
use check::check_link;
use check::check_listener;
pub use check::{Home, check_attach, check_reached, check_sent_link};
use hub::{Hub, Setup, refuse};

mod check;
mod hub;
mod mouth;
mod ports;
pub(crate) mod sense;

/// How long the worker may take to close its flows when the sandbox has ended.
pub const GRACE: Duration = Duration::from_millis(100);
/// How long a shared gateway waits for another connection after its last.
pub const LINGER: Duration = Duration::from_secs(2);
/// How long a worker may take to serve an endpoint; below a supervisor's own patience.
const SERVICE: Duration = Duration::from_secs(5);
/// Supervisors that may wait to be accepted.
pub const BACKLOG: i32 = 1024;
/// How long a connection to a shared gateway may take to say what it is for.
const FIRST_WORD: Duration = Duration::from_secs(5);

/// Why a gateway ended otherwise than it should.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// Started by hand, or by something else than tapline.
    #[error("`gateway` is started by tapline itself: descriptor {0} is not a connection to it ({1})")]
    NotStartedByTapline(i32, io::Error),
    /// A stage of the confinement did not work.
    #[error(transparent)]
    Confine(#[from] confine::ConfineError),
    /// The connection to a supervisor failed.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Threads, epoll, fork.
    #[error("the gateway cannot {0}: {1}")]
    Start(&'static str, io::Error),
    /// A worker's thread ended, which it does not do by itself.
    #[error(transparent)]
    Worker(#[from] WorkerGone),
}

/// How supervisors come in: the number of a descriptor that this process was started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// `--fd`: an attach connection.
    Connection(i32),
    /// `--listen`: a bound socket, at which to listen for them.
    Listener(i32),
}

/// Be a gateway. Logging has begun and there is one thread. Returns when there is nothing more to serve; the caller then
/// exits without waiting for anything.
pub fn main(entrance: Entrance) -> Result<(), GatewayError> {
    match entrance {
        Entrance::Connection(number) => private(inherited(number, check_attach)?),
        Entrance::Listener(number) => shared(inherited(number, check_listener)?),
    }
}

fn inherited(number: i32, check: impl Fn(&OwnedFd) -> io::Result<()>) -> Result<OwnedFd, GatewayError> {
    let fd = spawn::inherited(number).map_err(|e| GatewayError::NotStartedByTapline(number, e))?;
    check(&fd).map_err(|e| GatewayError::NotStartedByTapline(number, e))?;
    Ok(fd)
}

fn private(attach: OwnedFd) -> Result<(), GatewayError> {
    // The supervisor knows the first process only. One that is not told, because its user has too many descriptors on
    // their way between processes, knows it by the process group all the same.
    let mut arrive = || {
        let ourselves = spawn::pidfd_open(std::process::id());
        let told = ourselves.map_err(|error| WireError::from(ScmError::Send(error)));
        let told = told.and_then(|pidfd| wire::send(&attach, &FromGateway::Moved, &[pidfd.as_fd()]));
        if let Err(error) = told {
            tracing::info!("the supervisor is not told of the gateway's second process: {error}");
        }
        Ok(())
    };
    let lacks = match confine::gateway(Succession::Sibling(&mut arrive)) {
        Ok(lacks) => lacks,
        Err(error) => {
            refuse(&attach, &error.to_string())?;
            return Err(error.into());
        }
    };
    let start_worker = Box::new(Worker::start);
    serve_one(
        attach,
        Setup {
            start_worker,
            check_link,
            shared: false,
            first_word: None,
            linger: LINGER,
            service: SERVICE,
            lacks: confine::sentences(&lacks),
        },
    )
}

fn shared(listener: OwnedFd) -> Result<(), GatewayError> {
    let failed = |what| move |error| GatewayError::Start(what, error);
    let (mut ready, say_ready) = io::pipe().map_err(failed("make a pipe"))?;
    let mut say_ready = Some(say_ready);
    // Nobody's child: whoever starts it neither waits for its end nor ends it with himself.
    let mut leave = || {
        say_ready = None;
        let is_ready = ready.read_exact(&mut [0]).is_ok();
        i32::from(!is_ready)
    };
    let lacks = confine::gateway(Succession::Orphan(&mut leave))?;
    drop(ready);
    SockRef::from(&listener).listen(BACKLOG).map_err(failed("listen"))?;
    // When nobody reads it, whoever started this has given up and starts another.
    if let Some(mut say_ready) = say_ready {
        say_ready.write_all(&[1]).map_err(failed("say that it is ready"))?;
    }
    let start_worker = Box::new(Worker::start);
    let setup = Setup {
        start_worker,
        check_link,
        shared: true,
        first_word: Some(FIRST_WORD),
        linger: LINGER,
        service: SERVICE,
        lacks: confine::sentences(&lacks),
    };
    serve_many(listener, setup)
}

fn runtime() -> Result<tokio::runtime::Runtime, GatewayError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| GatewayError::Start("start its runtime", e))
}

/// A private gateway, after the confinement.
fn serve_one(attach: OwnedFd, setup: Setup) -> Result<(), GatewayError> {
    runtime()?.block_on(async {
        let (hub, mut failures) = Hub::new(setup);
        tokio::select! {
            end = hub.converse(attach, None) => end,
            failure = failure(&mut failures) => Err(failure),
        }
    })
}

/// A shared gateway, after the confinement.
fn serve_many(listener: OwnedFd, setup: Setup) -> Result<(), GatewayError> {
    runtime()?.block_on(async {
        let (hub, mut failures) = Hub::new(setup);
        hub.listen(listener).map_err(|e| GatewayError::Start("listen for supervisors", e))?;
        tokio::select! {
            () = hub.deserted() => Ok(()),
            failure = failure(&mut failures) => Err(failure),
        }
    })
}

async fn failure(failures: &mut mpsc::UnboundedReceiver<GatewayError>) -> GatewayError {
    // The hub has the other end.
    failures.recv().await.unwrap_or(GatewayError::Worker(WorkerGone))
}

#[cfg(test)]
mod tests;
