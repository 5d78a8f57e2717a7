//! DNS at the gateway's DNS address.
//!
//! # Theory of operation
//!
//! [`Names`] is what a gateway knows of all its sandboxes; each endpoint has a [`Forwarder`] of its own, which answers as
//! that sandbox is to be answered. Both live on the gateway's control thread. Queries reach a forwarder in two ways: as messages from
//! datagrams ([`Forwarder::handle_query`]), and as streams that carry many messages with their lengths before them
//! ([`Forwarder::handle_stream`]), which are the far ends of a sandbox's TCP connections to port 53. The way of a
//! query:
//!
//! 1. [`message`] looks at it. What is no query is dropped, a question that cannot be read is FORMERR.
//! 2. [`local`] answers `localhost`, the asker's own names, the gateway's, and those of the sandboxes that it shares a
//!    network with ([`directory`]). A sandbox that is only on internal networks is told that there is nothing else.
//! 3. [`upstream`] asks the host's resolvers, or those that the sandbox was given (`--dns`), whose answers pass through as bytes; only the id is the asker's again.
//! 4. An answer to a datagram that is larger than its asker takes is cut to an empty one with TC set, upon which
//!    the asker comes again over a stream; a query on a stream goes upstream over TCP.
//!
//! Limits for each forwarder, so that a sandbox cannot make the gateway grow: [`MAX_IN_FLIGHT`] queries at once,
//! [`MAX_IN_FLIGHT_SHARED`] where others share the gateway (a datagram beyond it is dropped and counted, the asker repeats it; a stream is not read further), [`MAX_STREAMS`] streams (one more
//! is closed), [`MAX_PIPELINED`] queries at once on each and [`MAX_UNREAD`] on all, from when they are read until their answers are, and [`STREAM_IDLE`] without a query, or without anybody
//! reading the answers, ends a stream. A query takes at most [`upstream::Timing::total`].
//!
//! So a sandbox makes the control thread hold at most some 16 MiB of answers of 64 KiB that it does not read, as much that is on
//! its way, and a few KiB for each query. For all forwarders of a gateway together there are sockets for a quarter of
//! the process's descriptors, 8192 at most, and for none more than are left for the others. An answer goes to who asked, on the port of the question, and nowhere else.
pub mod directory;
pub mod local;
pub mod message;
pub mod upstream;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use serde::{Deserialize, Serialize};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;

use crate::plan::{Endpoint, GATEWAY_NAMES, HostView, Network};
use directory::{Directory, News};
use local::{LocalZone, View};
use message::{FORMERR, NXDOMAIN, Query};
use upstream::{Sockets, Timing, Transport, Upstreams, read_message, write_message};

/// Queries of a sandbox at once that others are asked for.
pub const MAX_IN_FLIGHT: usize = 1024;
/// The same where several sandboxes share a gateway, and its descriptors.
pub const MAX_IN_FLIGHT_SHARED: usize = 256;
/// Streams at once.
pub const MAX_STREAMS: usize = 128;
/// Queries at once on one stream.
pub const MAX_PIPELINED: usize = 32;
/// Sockets for all forwarders of a gateway.
const MAX_SOCKETS: usize = 8192;
/// Queries of all streams of a sandbox that were read, and their answers not.
pub const MAX_UNREAD: usize = 256;
/// A stream may be idle this long (RFC 7766, 6.2.3: a few seconds); longer than a query may take, so that no answer
/// is lost.
pub const STREAM_IDLE: Duration = Duration::from_secs(15);

/// What all forwarders of a gateway share: who is where, and what was counted.
#[derive(Clone, Debug, Default)]
pub struct Names(Arc<Known>);

#[derive(Debug)]
struct Known {
    directory: Mutex<Directory>,
    counters: Counters,
    sockets: Sockets,
}

impl Default for Known {
    fn default() -> Known {
        let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        let sockets = usize::try_from(soft / 4).unwrap_or(usize::MAX).clamp(MAX_SOCKETS / 64, MAX_SOCKETS);
        Known { directory: Mutex::default(), counters: Counters::default(), sockets: Sockets::new(sockets) }
    }
}

/// The forwarder of one endpoint.
#[derive(Clone, Debug)]
pub struct Forwarder(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    names: Names,
    /// The asker's id.
    asker: String,
    own: LocalZone,
    upstreams: Upstreams,
    /// The resolvers are the host's, and change with it.
    follows_host: bool,
    /// Several sandboxes share its network: whether it may ask others at all is the directory's to say.
    is_listed: bool,
    in_flight: Arc<Semaphore>,
    unread: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Counters {
    queries: AtomicU64,
    local: AtomicU64,
    malformed: AtomicU64,
    overload: AtomicU64,
    failed: AtomicU64,
}

/// What the forwarder has counted, as the API shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsStats {
    /// Queries taken, over datagrams and streams.
    pub queries: u64,
    /// Of these, answered on the spot.
    pub local: u64,
    /// Of these, dropped or refused because they could not be read.
    pub malformed: u64,
    /// Datagrams dropped and streams closed because there were too many.
    pub overload: u64,
    /// Answered with an error because no resolver had an answer.
    pub failed: u64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Names {
    /// So many sockets for all.
    #[cfg(test)]
    fn with_sockets(most: usize) -> Names {
        Names(Arc::new(Known { sockets: Sockets::new(most), ..Known::default() }))
    }

    /// A forwarder for an endpoint.
    pub fn forwarder(&self, network: &Network, endpoint: &Endpoint, host: &HostView) -> Forwarder {
        self.forwarder_with_timing(network, endpoint, host, Timing::default())
    }

    fn forwarder_with_timing(
        &self,
        network: &Network,
        endpoint: &Endpoint,
        host: &HostView,
        timing: Timing,
    ) -> Forwarder {
        let follows_host = endpoint.dns_servers.is_empty();
        let given: Vec<SocketAddr> = endpoint.dns_servers.iter().map(|ip| SocketAddr::new(*ip, 53)).collect();
        let servers = if follows_host { &host.resolvers } else { &given };
        let (gateway, most) = match network.sharing {
            None => (LocalZone::new(&network.local_names), MAX_IN_FLIGHT),
            Some(_) => (LocalZone::new(&gateway_names(network)), MAX_IN_FLIGHT_SHARED),
        };
        Forwarder(Arc::new(Shared {
            names: self.clone(),
            asker: endpoint.id.clone(),
            own: LocalZone::new(&endpoint.names).or(gateway),
            upstreams: Upstreams::new(servers, network.outbound.clone(), timing, self.0.sockets.for_another()),
            follows_host,
            is_listed: network.sharing.is_some(),
            in_flight: Arc::new(Semaphore::new(most)),
            unread: Arc::new(Semaphore::new(MAX_UNREAD)),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
        }))
    }

    /// The endpoint of this connection can be found from now on. Who is to be told of it.
    pub fn attach(&self, connection: u64, network: &Network, endpoint: &Endpoint) -> Vec<News> {
        self.directory().attach(connection, network, endpoint)
    }

    /// It can no longer be found. Who is to be told of it.
    pub fn detach(&self, connection: u64) -> Vec<News> {
        self.directory().detach(connection)
    }

    /// What was counted so far.
    pub fn stats(&self) -> DnsStats {
        let counters = &self.0.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DnsStats {
            queries: read(&counters.queries),
            local: read(&counters.local),
            malformed: read(&counters.malformed),
            overload: read(&counters.overload),
            failed: read(&counters.failed),
        }
    }

    fn directory(&self) -> MutexGuard<'_, Directory> {
        self.0.directory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The names of a shared network's gateway, and others that the network has.
fn gateway_names(network: &Network) -> Vec<(String, IpAddr)> {
    let v4 = network.v4.map(|layout| IpAddr::from(layout.gateway));
    let gateways: Vec<IpAddr> = v4.into_iter().chain(network.v6.map(|layout| layout.gateway.into())).collect();
    let of_gateway = GATEWAY_NAMES.iter().flat_map(|name| gateways.iter().map(|ip| ((*name).to_owned(), *ip)));
    network
        .local_names
        .iter()
        .filter(|(name, _)| !GATEWAY_NAMES.contains(&name.as_str()))
        .cloned()
        .chain(of_gateway)
        .collect()
}

impl Forwarder {
    /// The host's resolvers changed: queries that come from now on go to the new ones, unless this sandbox has others.
    pub fn handle_host_changed(&self, host: &HostView) {
        if self.0.follows_host {
            self.0.upstreams.replace(&host.resolvers);
        }
    }

    /// A query came in a datagram. `reply` is called with the answer, now or later, or never. Call it within a
    /// tokio runtime.
    pub fn handle_query(&self, message: Vec<u8>, reply: impl FnOnce(Vec<u8>) + Send + 'static) {
        let shared = &self.0;
        count(&shared.counters().queries);
        let Some(query) = Query::parse(message) else { return count(&shared.counters().malformed) };
        if let Some(answer) = shared.answer_at_once(&query) {
            return reply(message::fit(answer, query.udp_limit()));
        }
        let Ok(slot) = Arc::clone(&shared.in_flight).try_acquire_owned() else {
            return count(&shared.counters().overload);
        };
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            let answer = shared.forward(&query, Transport::Udp).await;
            drop(slot);
            reply(message::fit(answer, query.udp_limit()));
        });
    }

    /// A stream of queries was opened. Call it within a tokio runtime.
    pub fn handle_stream(&self, stream: UnixStream) {
        let shared = Arc::clone(&self.0);
        let Ok(slot) = Arc::clone(&shared.streams).try_acquire_owned() else {
            return count(&shared.counters().overload);
        };
        tokio::spawn(async move {
            if let Err(error) = serve_stream(shared, stream).await {
                tracing::debug!("DNS over TCP: {error}");
            }
            drop(slot);
        });
    }
}

impl Shared {
    fn counters(&self) -> &Counters {
        &self.names.0.counters
    }

    /// The answer to what needs nobody else.
    fn answer_at_once(&self, query: &Query) -> Option<Vec<u8>> {
        if !query.is_well_formed() {
            count(&self.counters().malformed);
            return Some(query.error(FORMERR));
        }
        let directory = self.names.directory();
        let view = View { own: &self.own, directory: &directory, asker: &self.asker };
        let may_forward = || !self.is_listed || directory.may_forward(&self.asker);
        let nothing_else = || (!may_forward()).then(|| query.error(NXDOMAIN));
        let answer = view.answer(query).or_else(nothing_else)?;
        count(&self.counters().local);
        Some(answer)
    }

    async fn forward(&self, query: &Query, transport: Transport) -> Vec<u8> {
        let answer = self.upstreams.ask(query, transport).await;
        if message::rcode(&answer) == message::SERVFAIL {
            count(&self.counters().failed);
        }
        answer
    }
}

/// Serve a stream until its far end closes it, or is idle.
async fn serve_stream(shared: Arc<Shared>, stream: UnixStream) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let (reader, writer) = tokio::net::UnixStream::from_std(stream)?.into_split();
    let (answers, queue) = mpsc::channel(MAX_PIPELINED);
    let writing = write_answers(writer, queue);
    tokio::pin!(writing);
    tokio::select! {
        // Nobody reads the answers: no use to read queries either.
        written = &mut writing => return written,
        read = read_queries(shared, reader, answers) => read?,
    }
    writing.await
}

async fn read_queries(shared: Arc<Shared>, mut reader: OwnedReadHalf, answers: mpsc::Sender<Answer>) -> io::Result<()> {
    let pipelined = Arc::new(Semaphore::new(MAX_PIPELINED));
    loop {
        let Ok(place) = Arc::clone(&pipelined).acquire_owned().await else { return Ok(()) };
        let message = match timeout(STREAM_IDLE, read_message(&mut reader)).await {
            Ok(message) => message?,
            Err(_) => None,
        };
        let Some(message) = message else { return Ok(()) };
        count(&shared.counters().queries);
        let Some(query) = Query::parse(message) else {
            // Whoever sends such a thing has lost the beginnings of messages; nothing after it makes sense.
            count(&shared.counters().malformed);
            return Ok(());
        };
        let Ok(unread) = Arc::clone(&shared.unread).acquire_owned().await else { return Ok(()) };
        let Ok(slot) = Arc::clone(&shared.in_flight).acquire_owned().await else { return Ok(()) };
        let (shared, answers) = (Arc::clone(&shared), answers.clone());
        tokio::spawn(async move {
            let answer = match shared.answer_at_once(&query) {
                Some(answer) => answer,
                None => shared.forward(&query, Transport::Tcp).await,
            };
            // The slot is for datagrams too: it is not kept while the far end takes its time to read.
            drop(slot);
            // An error says that the stream has ended, and then nobody wants the answer.
            let _ = answers.send(Answer { message: answer, _places: [place, unread] }).await;
        });
    }
}

/// An answer for a stream, and the places that it keeps until it is written.
struct Answer {
    message: Vec<u8>,
    _places: [OwnedSemaphorePermit; 2],
}

async fn write_answers(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<Answer>) -> io::Result<()> {
    while let Some(answer) = queue.recv().await {
        timeout(STREAM_IDLE, write_message(&mut writer, &answer.message))
            .await
            .map_err(|_| io::ErrorKind::TimedOut)??;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
