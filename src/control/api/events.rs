//! `GET /v1/events`: what happens, as lines of JSON.
//!
//! # Theory of operation
//!
//! A stream begins with `hello`, which has the state as it is then; every later change is a line of its own, and no
//! change is in both or in neither, because the state and the channel of events are behind the same lock. The channel
//! keeps [`KEPT`] lines: a reader that falls further behind loses the oldest, and is told how many. A stream that
//! has nothing to say says `heartbeat` every [`HEARTBEAT`], so that either side notices when the other has gone.
//!
//! There are [`MAX_STREAMS`] streams at most, which are not counted among the other connections.
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONNECTION, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use hyper::body::{Bytes, Frame};
use serde::Serialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio::time::timeout;

use super::guard::Place;
use super::{ApiError, ApiState, SandboxInfo};
use crate::plan::{HostView, Published};

/// Streams at once.
pub const MAX_STREAMS: usize = 32;
/// How long a stream is silent at most.
pub const HEARTBEAT: Duration = Duration::from_secs(15);
/// Lines kept for readers that are slow.
pub const KEPT: usize = 256;

/// Something that happened.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event<'a> {
    /// A port is served from now on.
    PortPublished {
        /// The sandbox's id.
        sandbox: &'a str,
        /// Which.
        port: &'a Published,
    },
    /// A port is closed.
    PortUnpublished {
        /// The sandbox's id.
        sandbox: &'a str,
        /// Which.
        port: &'a Published,
    },
    /// The host's addresses or resolvers changed.
    HostChanged {
        /// The sandbox's id.
        sandbox: &'a str,
        /// As it is now.
        host: &'a HostView,
    },
    /// One sentence for people.
    Notice {
        /// The sandbox's id.
        sandbox: &'a str,
        /// The sentence.
        text: &'a str,
    },
    /// A sandbox is served from now on.
    SandboxAttached {
        /// The sandbox's id.
        sandbox: &'a str,
    },
    /// A sandbox has ended.
    SandboxEnded {
        /// The sandbox's id.
        sandbox: &'a str,
    },
    /// A sandbox that is served already is on another network as well.
    NetworkConnected {
        /// The sandbox's id.
        sandbox: &'a str,
        /// The network's name.
        network: &'a str,
    },
    /// A sandbox has left a network and is still on others.
    NetworkDisconnected {
        /// The sandbox's id.
        sandbox: &'a str,
        /// The network's name.
        network: &'a str,
    },
    /// Lines that this reader was too slow for.
    Lost {
        /// How many.
        count: u64,
    },
    /// Nothing has happened.
    Heartbeat,
}

#[derive(Serialize)]
struct Line<T> {
    #[serde(flatten)]
    event: T,
    /// Seconds since 1970.
    time: f64,
}

#[expect(clippy::disallowed_methods, reason = "events have the time of day")]
fn line(event: impl Serialize) -> Vec<u8> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = since.as_millis() as f64 / 1000.0;
    // Nothing in an event refuses to be written.
    serde_json::to_vec(&Line { event, time }).unwrap_or_default()
}

impl Event<'_> {
    /// As a line.
    pub fn line(&self) -> Bytes {
        let mut text = line(self);
        text.push(b'\n');
        text.into()
    }
}

/// The first line: the ports come as they are in the table, already written.
pub fn hello(sandboxes: &[&SandboxInfo], ports: Bytes) -> [Bytes; 3] {
    #[derive(Serialize)]
    struct Hello<'a> {
        event: &'static str,
        version: &'static str,
        sandboxes: &'a [&'a SandboxInfo],
    }
    let mut text = line(Hello { event: "hello", version: env!("CARGO_PKG_VERSION"), sandboxes });
    text.pop();
    text.extend_from_slice(b",\"ports\":");
    [text.into(), ports, Bytes::from_static(b"}\n")]
}

/// `GET /v1/events`.
pub(super) async fn stream(
    State(state): State<Arc<ApiState>>,
    Extension(place): Extension<Arc<Place>>,
) -> Result<Response, ApiError> {
    let Ok(permit) = Arc::clone(&state.streams).try_acquire_owned() else {
        let message = format!("there are {MAX_STREAMS} streams of events already; close one");
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_streams", message));
    };
    let (hello, events) = state.subscribe();
    place.become_stream(permit);
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(feed(sender, hello, events, HEARTBEAT));
    // The place is a stream's from now on: no other request may follow on this connection.
    let headers = [(CONTENT_TYPE, "application/x-ndjson"), (CONNECTION, "close")];
    Ok((headers, Body::new(Lines(receiver))).into_response())
}

/// Give a reader what happens, until it has gone.
async fn feed(
    reader: mpsc::Sender<Bytes>,
    hello: [Bytes; 3],
    mut events: broadcast::Receiver<Bytes>,
    heartbeat: Duration,
) {
    for part in hello {
        if reader.send(part).await.is_err() {
            return;
        }
    }
    loop {
        let line = tokio::select! {
            () = reader.closed() => return,
            event = timeout(heartbeat, events.recv()) => match event {
                Ok(Ok(line)) => line,
                Ok(Err(RecvError::Lagged(count))) => Event::Lost { count }.line(),
                Ok(Err(RecvError::Closed)) => return,
                Err(_) => Event::Heartbeat.line(),
            },
        };
        if reader.send(line).await.is_err() {
            return;
        }
    }
}

/// A body that goes on as long as lines come.
struct Lines(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.get_mut().0.poll_recv(cx).map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_reader_is_told_what_it_lost_and_a_silent_stream_beats() {
        let (events, receiver) = broadcast::channel(4);
        let (sender, mut lines) = mpsc::channel(1);
        let parts = hello(&[], Bytes::from_static(b"[]"));
        tokio::spawn(feed(sender, parts, receiver, Duration::from_millis(20)));
        let mut text = Vec::new();
        for _ in 0..3 {
            text.extend_from_slice(&lines.recv().await.unwrap());
        }
        let first: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!((&first["event"], &first["ports"]), (&"hello".into(), &serde_json::json!([])));
        assert!(first["time"].as_f64().unwrap() > 1.6e9);

        for count in 0..10 {
            events.send(Event::Notice { sandbox: "a", text: &count.to_string() }.line()).unwrap();
        }
        let mut next = async || -> serde_json::Value { serde_json::from_slice(&lines.recv().await.unwrap()).unwrap() };
        let lost = next().await;
        assert_eq!((&lost["event"], &lost["count"]), (&"lost".into(), &6.into()));
        for count in 6..10 {
            assert_eq!(next().await["text"], count.to_string());
        }
        assert_eq!(next().await["event"], "heartbeat");
        drop(lines);
        events.closed().await;
    }
}
