//! DNS at the gateway's DNS address.
//!
//! # Theory of operation
//!
//! The [`Forwarder`] lives on the gateway's control thread. Queries reach it in two ways: as messages from
//! datagrams ([`Forwarder::handle_query`]), and as streams that carry many messages with their lengths before them
//! ([`Forwarder::handle_stream`]), which are the far ends of a sandbox's TCP connections to port 53. The way of a
//! query:
//!
//! 1. [`message`] looks at it. What is no query is dropped, a question that cannot be read is FORMERR.
//! 2. [`local`] answers the network's own names and `localhost`.
//! 3. [`upstream`] asks the host's resolvers, whose answers pass through as bytes; only the id is the asker's again.
//! 4. An answer to a datagram that is larger than its asker takes is cut to an empty one with TC set, upon which
//!    the asker comes again over a stream; a query on a stream goes upstream over TCP.
//!
//! Limits, so that a sandbox cannot make the gateway grow: [`MAX_IN_FLIGHT`] queries at once (a datagram beyond it
//! is dropped and counted, the asker repeats it; a stream is not read further), [`MAX_STREAMS`] streams (one more
//! is closed), [`MAX_PIPELINED`] queries at once on each, and [`STREAM_IDLE`] without a query, or without anybody
//! reading the answers, ends a stream. A query takes at most [`upstream::Timing::total`].
pub mod local;
pub mod message;
pub mod upstream;

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use crate::plan::{HostView, Network};
use local::LocalZone;
use message::{FORMERR, Query};
use upstream::{Timing, Transport, Upstreams, read_message, write_message};

/// Queries at once.
pub const MAX_IN_FLIGHT: usize = 1024;
/// Streams at once.
pub const MAX_STREAMS: usize = 128;
/// Queries at once on one stream.
pub const MAX_PIPELINED: usize = 32;
/// A stream may be idle this long (RFC 7766, 6.2.3: a few seconds); longer than a query may take, so that no answer
/// is lost.
pub const STREAM_IDLE: Duration = Duration::from_secs(15);

/// The forwarder of one network.
#[derive(Clone, Debug)]
pub struct Forwarder(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    local: LocalZone,
    upstreams: Upstreams,
    in_flight: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    counters: Counters,
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

impl Forwarder {
    /// A forwarder for a network, asking the host's resolvers.
    pub fn new(network: &Network, host: &HostView) -> Forwarder {
        Forwarder::with_timing(network, host, Timing::default())
    }

    fn with_timing(network: &Network, host: &HostView, timing: Timing) -> Forwarder {
        Forwarder(Arc::new(Shared {
            local: LocalZone::new(&network.local_names),
            upstreams: Upstreams::new(&host.resolvers, network.outbound.clone(), timing),
            in_flight: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            counters: Counters::default(),
        }))
    }

    /// The host's resolvers changed: queries that come from now on go to the new ones.
    pub fn handle_host_changed(&self, host: &HostView) {
        self.0.upstreams.replace(&host.resolvers);
    }

    /// A query came in a datagram. `reply` is called with the answer, now or later, or never. Call it within a
    /// tokio runtime.
    pub fn handle_query(&self, message: Vec<u8>, reply: impl FnOnce(Vec<u8>) + Send + 'static) {
        let shared = &self.0;
        count(&shared.counters.queries);
        let Some(query) = Query::parse(message) else { return count(&shared.counters.malformed) };
        if let Some(answer) = shared.answer_at_once(&query) {
            return reply(message::fit(answer, query.udp_limit()));
        }
        let Ok(slot) = Arc::clone(&shared.in_flight).try_acquire_owned() else {
            return count(&shared.counters.overload);
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
            return count(&shared.counters.overload);
        };
        tokio::spawn(async move {
            if let Err(error) = serve_stream(shared, stream).await {
                tracing::debug!("DNS over TCP: {error}");
            }
            drop(slot);
        });
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
}

impl Shared {
    /// The answer to what needs nobody else.
    fn answer_at_once(&self, query: &Query) -> Option<Vec<u8>> {
        if !query.is_well_formed() {
            count(&self.counters.malformed);
            return Some(query.error(FORMERR));
        }
        let answer = self.local.answer(query)?;
        count(&self.counters.local);
        Some(answer)
    }

    async fn forward(&self, query: &Query, transport: Transport) -> Vec<u8> {
        let answer = self.upstreams.ask(query, transport).await;
        if message::rcode(&answer) == message::SERVFAIL {
            count(&self.counters.failed);
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

async fn read_queries(
    shared: Arc<Shared>,
    mut reader: OwnedReadHalf,
    answers: mpsc::Sender<Vec<u8>>,
) -> io::Result<()> {
    let pipelined = Arc::new(Semaphore::new(MAX_PIPELINED));
    loop {
        let Ok(place) = Arc::clone(&pipelined).acquire_owned().await else { return Ok(()) };
        let message = match timeout(STREAM_IDLE, read_message(&mut reader)).await {
            Ok(message) => message?,
            Err(_) => None,
        };
        let Some(message) = message else { return Ok(()) };
        count(&shared.counters.queries);
        let Some(query) = Query::parse(message) else {
            // Whoever sends such a thing has lost the beginnings of messages; nothing after it makes sense.
            count(&shared.counters.malformed);
            return Ok(());
        };
        let Ok(slot) = Arc::clone(&shared.in_flight).acquire_owned().await else { return Ok(()) };
        let (shared, answers) = (Arc::clone(&shared), answers.clone());
        tokio::spawn(async move {
            let answer = match shared.answer_at_once(&query) {
                Some(answer) => answer,
                None => shared.forward(&query, Transport::Tcp).await,
            };
            // The slot is everybody's: it is not kept while the far end takes its time to read.
            drop(slot);
            // An error says that the stream has ended, and then nobody wants the answer.
            let _ = answers.send(answer).await;
            drop(place);
        });
    }
}

async fn write_answers(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
    while let Some(answer) = queue.recv().await {
        timeout(STREAM_IDLE, write_message(&mut writer, &answer)).await.map_err(|_| io::ErrorKind::TimedOut)??;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
