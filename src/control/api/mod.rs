//! The API: HTTP and JSON over a Unix socket in the sandbox's state directory.
//!
//! # Theory of operation
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /v1/sandboxes` | every sandbox that this gateway serves |
//! | `GET /v1/sandboxes/ID` | [`SandboxInfo`]: the endpoint, the network, the host as the gateway knows it |
//! | `GET`, `POST`, `DELETE /v1/sandboxes/ID/ports` | [`ports`]: what is published; more of it, less of it |
//! | `GET /v1/flows` | [`FlowPage`]: some of the flows |
//! | `GET /v1/counters` | [`CountersInfo`]: the worker's [`Snapshot`] and what the DNS forwarder counted |
//! | `GET /v1/events` | [`events`]: what happens, as lines of JSON |
//! | `GET /metrics` | [`metrics`]: the counters as Prometheus reads them |
//!
//! `ID` is a sandbox's id, the beginning of it, or its name. An error is `{"code": "...", "message": "..."}` with a
//! fitting HTTP status; `code` is for programs and stays the same, `message` is for people. man/tapline-api.7 has all
//! of it, for those who use it.
//!
//! The supervisor binds the socket, because the gateway opens no file, and hands it over. Its mode lets only the
//! user in; each peer's uid is checked all the same (SO_PEERCRED): the gateway's own user and root may speak.
//!
//! A client can neither hold the gateway up nor make it grow: [`guard`] bounds connections and what each may take,
//! [`ports`] what waits for a supervisor, [`events`] the streams. Nothing here blocks: the names of sandboxes are
//! asked for on the same thread. [`ApiState`] is behind one lock that nobody holds for longer than a look.
use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper::body::{Bytes, Frame, SizeHint};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, broadcast, mpsc};
use tokio::time::timeout;

use super::messages::FromGateway;
use crate::datapath::commands::{CommandSender, FlowPage, Snapshot, WorkerGone};
use crate::names::{DnsStats, Forwarder};
use crate::plan::{Endpoint, HostView, Network, PortFailure, Protocol, Published, PublishedKey};
use events::Event;
use guard::{Limits, Place};
use ports::{Asked, PortTable, Supervisor};

pub mod events;
pub mod guard;
pub mod metrics;
pub mod ports;
#[cfg(test)]
mod tests;

/// How long the worker may take to answer; it never waits for anything, so this is long.
const WORKER_PATIENCE: Duration = Duration::from_secs(2);
/// Flows on a page where nothing else is asked for, and most of them.
const FLOWS: (usize, usize) = (100, 1000);

/// `GET /v1/sandboxes/ID`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxInfo {
    /// The sandbox's place on the network.
    pub endpoint: Endpoint,
    /// The network.
    pub network: Network,
    /// The host as the gateway was last told.
    pub host: HostView,
}

/// `GET /v1/counters`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountersInfo {
    /// The worker's.
    #[serde(flatten)]
    pub datapath: Snapshot,
    /// The DNS forwarder's.
    pub dns: DnsStats,
}

/// One sandbox that is served.
#[derive(Debug)]
struct Sandbox {
    info: SandboxInfo,
    ports: PortTable,
    supervisor: Supervisor,
    /// What its supervisor is doing for a client.
    asked: Option<Asked>,
}

/// What changes and is shown.
#[derive(Debug)]
struct Shown {
    sandboxes: Vec<Sandbox>,
    events: broadcast::Sender<Bytes>,
}

impl Shown {
    fn tell(&self, event: &Event<'_>) {
        if self.events.receiver_count() > 0 {
            // Fails only when the last reader has just gone.
            let _ = self.events.send(event.line());
        }
    }

    fn sandbox(&mut self, id: &str) -> Option<&mut Sandbox> {
        self.sandboxes.iter_mut().find(|sandbox| sandbox.info.endpoint.id == id)
    }
}

/// What the API shows.
#[derive(Debug)]
pub struct ApiState {
    shown: Mutex<Shown>,
    commands: CommandSender,
    forwarder: Forwarder,
    requests: AtomicU64,
    /// Places for streams of events.
    streams: Arc<Semaphore>,
    /// Places for requests that wait for a supervisor.
    asking: Arc<Semaphore>,
}

impl ApiState {
    /// For a worker that listens to `commands`; no sandbox yet.
    pub fn new(commands: CommandSender, forwarder: Forwarder) -> Arc<ApiState> {
        let (events, _) = broadcast::channel(events::KEPT);
        Arc::new(ApiState {
            shown: Mutex::new(Shown { sandboxes: Vec::new(), events }),
            commands,
            forwarder,
            requests: AtomicU64::new(1),
            streams: Arc::new(Semaphore::new(events::MAX_STREAMS)),
            asking: Arc::new(Semaphore::new(ports::MAX_ASKING)),
        })
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A sandbox is served; what is put into `said` goes to its supervisor.
    pub fn handle_attached(&self, info: SandboxInfo, said: mpsc::Sender<FromGateway>) {
        let mut shown = self.shown();
        shown.tell(&Event::SandboxAttached { sandbox: &info.endpoint.id });
        let supervisor = Supervisor::new(said);
        shown.sandboxes.push(Sandbox { info, ports: PortTable::default(), supervisor, asked: None });
    }

    /// A sandbox has ended.
    pub fn handle_ended(&self, id: &str) {
        let mut shown = self.shown();
        shown.sandboxes.retain(|sandbox| sandbox.info.endpoint.id != id);
        shown.tell(&Event::SandboxEnded { sandbox: id });
    }

    /// The host changed, as a sandbox's supervisor says.
    pub fn handle_host_changed(&self, id: &str, host: HostView) {
        let mut shown = self.shown();
        shown.tell(&Event::HostChanged { sandbox: id, host: &host });
        if let Some(sandbox) = shown.sandbox(id) {
            sandbox.info.host = host;
        }
    }

    /// The person was told something.
    pub fn handle_notice(&self, id: &str, text: &str) {
        self.shown().tell(&Event::Notice { sandbox: id, text });
    }

    /// These ports of a sandbox are served.
    pub fn handle_published(&self, id: &str, ports: Vec<Published>) {
        let mut shown = self.shown();
        for port in ports {
            shown.tell(&Event::PortPublished { sandbox: id, port: &port });
            let Some(sandbox) = shown.sandbox(id) else { return };
            if let Some(asked) = &mut sandbox.asked {
                asked.handle_added(&port);
            }
            sandbox.ports.insert(port);
        }
    }

    /// These ports of a sandbox are closed.
    pub fn handle_unpublished(&self, id: &str, ports: &[PublishedKey]) {
        let mut shown = self.shown();
        for key in ports {
            let Some(sandbox) = shown.sandbox(id) else { return };
            let Some(port) = sandbox.ports.remove(key) else { continue };
            if let Some(asked) = &mut sandbox.asked {
                asked.handle_removed(&port);
            }
            shown.tell(&Event::PortUnpublished { sandbox: id, port: &port });
        }
    }

    /// A sandbox's supervisor has answered a request.
    pub fn handle_answer(&self, id: &str, request: u64, failure: Option<PortFailure>) {
        let asked = self.shown().sandbox(id).and_then(|sandbox| sandbox.asked.take_if(|asked| asked.is(request)));
        match asked {
            Some(asked) => asked.finish(failure),
            None => tracing::debug!(request, "an answer that nobody waits for"),
        }
    }

    fn next_request(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::Relaxed)
    }

    /// The state as the first line of a stream of events, and all events that come after it.
    fn subscribe(&self) -> ([Bytes; 3], broadcast::Receiver<Bytes>) {
        let mut shown = self.shown();
        let ports = match &mut *shown.sandboxes {
            [sandbox] => sandbox.ports.json(),
            sandboxes => {
                let all: Vec<&Published> = sandboxes.iter().flat_map(|sandbox| sandbox.ports.iter()).collect();
                serde_json::to_vec(&all).unwrap_or_default().into()
            }
        };
        let sandboxes: Vec<&SandboxInfo> = shown.sandboxes.iter().map(|sandbox| &sandbox.info).collect();
        (events::hello(&sandboxes, ports), shown.events.subscribe())
    }

    /// How many ports of a protocol are published.
    fn published(&self, protocol: Protocol) -> u64 {
        let shown = self.shown();
        let all = shown.sandboxes.iter().flat_map(|sandbox| sandbox.ports.iter());
        all.filter(|port| port.protocol == protocol).count() as u64
    }

    /// Do something with the sandbox of this id, with this name, or whose id begins like this.
    fn with_sandbox<T>(&self, asked: &str, look: impl FnOnce(&mut Sandbox) -> T) -> Result<T, ApiError> {
        let mut shown = self.shown();
        let all = &mut shown.sandboxes;
        let exact = |sandbox: &Sandbox| sandbox.info.endpoint.id == asked;
        let named = |sandbox: &Sandbox| sandbox.info.endpoint.name == asked;
        let begins = |sandbox: &Sandbox| !asked.is_empty() && sandbox.info.endpoint.id.starts_with(asked);
        let at = match all.iter().position(exact).or_else(|| all.iter().position(named)) {
            Some(at) => at,
            None => {
                let mut found = all.iter().enumerate().filter(|(_, sandbox)| begins(sandbox)).map(|(at, _)| at);
                let first = found.next().ok_or_else(|| {
                    let message = "this gateway serves no such sandbox; GET /v1/sandboxes lists those it serves";
                    ApiError::new(StatusCode::NOT_FOUND, "no_such_sandbox", message)
                })?;
                if found.next().is_some() {
                    let message = "several sandboxes' ids begin like this; say more of it";
                    return Err(ApiError::new(StatusCode::CONFLICT, "ambiguous_sandbox", message));
                }
                first
            }
        };
        Ok(look(&mut all[at]))
    }

    async fn counters(&self) -> Result<CountersInfo, ApiError> {
        let datapath = answered(self.commands.snapshot()).await?;
        Ok(CountersInfo { datapath, dns: self.forwarder.stats() })
    }
}

/// What the worker says, if it does in time.
async fn answered<T>(answer: impl Future<Output = Result<T, WorkerGone>>) -> Result<T, ApiError> {
    match timeout(WORKER_PATIENCE, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) | Err(_) => {
            let message = "the gateway's worker does not answer";
            Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "worker_gone", message))
        }
    }
}

/// Serve the API on a listening socket until the runtime ends.
pub async fn serve(listener: std::os::unix::net::UnixListener, state: Arc<ApiState>) -> io::Result<()> {
    guard::serve(listener, routes(state), Limits::default()).await
}

/// Serve one connection, whatever it is.
pub async fn serve_stream<S>(stream: S, state: Arc<ApiState>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    guard::converse(stream, Place::new(None), routes(state), Limits::default()).await;
}

fn routes(state: Arc<ApiState>) -> Router {
    Router::new()
        .route("/v1/sandboxes", get(sandboxes))
        .route("/v1/sandboxes/{id}", get(sandbox))
        .route("/v1/sandboxes/{id}/ports", get(ports::list).post(ports::publish).delete(ports::unpublish))
        .route("/v1/flows", get(flows))
        .route("/v1/counters", get(counters))
        .route("/v1/events", get(events::stream))
        .route("/metrics", get(metrics::metrics))
        .fallback(|| async {
            let message = "there is no such path; there are /v1/sandboxes, /v1/sandboxes/ID, /v1/sandboxes/ID/ports, \
                           /v1/flows, /v1/counters, /v1/events and /metrics";
            ApiError::new(StatusCode::NOT_FOUND, "not_found", message)
        })
        .method_not_allowed_fallback(|| async {
            let message = "this path does not take this method; the header Allow has those that it takes";
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
        })
        .with_state(state)
}

async fn sandboxes(State(state): State<Arc<ApiState>>) -> Response {
    #[derive(Serialize)]
    struct List<'a> {
        sandboxes: Vec<&'a SandboxInfo>,
    }
    let shown = state.shown();
    Json(List { sandboxes: shown.sandboxes.iter().map(|sandbox| &sandbox.info).collect() }).into_response()
}

async fn sandbox(
    State(state): State<Arc<ApiState>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<SandboxInfo>, ApiError> {
    let id = id(path)?;
    state.with_sandbox(&id, |sandbox| Json(sandbox.info.clone()))
}

async fn counters(State(state): State<Arc<ApiState>>) -> Result<Json<CountersInfo>, ApiError> {
    Ok(Json(state.counters().await?))
}

async fn flows(State(state): State<Arc<ApiState>>, RawQuery(query): RawQuery) -> Result<Json<FlowPage>, ApiError> {
    let query = parameters(query.as_deref(), &["limit", "cursor", "sandbox"])?;
    let (usual, most) = FLOWS;
    let bad = |message: String| ApiError::new(StatusCode::BAD_REQUEST, "bad_parameter", message);
    let limit = match query.get("limit") {
        None => usual,
        Some(text) => match text.parse() {
            Ok(limit) if (1..=most).contains(&limit) => limit,
            _ => return Err(bad(format!("limit must be a number from 1 to {most}"))),
        },
    };
    let cursor = match query.get("cursor") {
        None => 0,
        Some(text) => text.parse().map_err(|_| bad("cursor must be the number that came as `next`".into()))?,
    };
    let only = match query.get("sandbox") {
        None => None,
        Some(asked) => Some(state.with_sandbox(asked, |sandbox| sandbox.info.endpoint.id.clone())?),
    };
    let mut page = answered(state.commands.flows(cursor, limit)).await?;
    if let Some(id) = only {
        page.flows.retain(|flow| flow.sandbox == id);
    }
    Ok(Json(page))
}

/// The sandbox that a path names.
fn id(path: Result<Path<String>, PathRejection>) -> Result<String, ApiError> {
    path.map(|Path(id)| id).map_err(|_| {
        ApiError::new(StatusCode::BAD_REQUEST, "bad_path", "the path is not UTF-8 behind its percent signs")
    })
}

/// The parameters behind a path's question mark, of which none may be there twice and all must be `known`.
fn parameters(query: Option<&str>, known: &[&str]) -> Result<HashMap<String, String>, ApiError> {
    let mut all = HashMap::new();
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (Some(name), Some(value)) = (decoded(name), decoded(value)) else {
            let message = "a parameter is not UTF-8 behind its percent signs";
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "bad_parameter", message));
        };
        if !known.contains(&name.as_str()) {
            let name: String = name.chars().take(40).collect();
            let message = format!("there is no parameter {name:?} here; there is {}", known.join(", "));
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "unknown_parameter", message));
        }
        let message = format!("the parameter {name} is there twice");
        if all.insert(name, value).is_some() {
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "bad_parameter", message));
        }
    }
    Ok(all)
}

/// Text without its percent signs (RFC 3986, 2.1), and with spaces for plus signs, as forms have it.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        bytes.push(match first {
            b'+' => b' ',
            b'%' => {
                let (digits, after) = rest.split_at_checked(2)?;
                rest = after;
                let digit = |byte: u8| char::from(byte).to_digit(16);
                (digit(digits[0])? << 4 | digit(digits[1])?) as u8
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

/// What is answered instead.
#[derive(Debug)]
struct ApiError {
    status: StatusCode,
    code: Cow<'static, str>,
    message: Cow<'static, str>,
}

impl ApiError {
    fn new(status: StatusCode, code: impl Into<Cow<'static, str>>, message: impl Into<Cow<'static, str>>) -> ApiError {
        ApiError { status, code: code.into(), message: message.into() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct ErrorBody {
            code: Cow<'static, str>,
            message: Cow<'static, str>,
        }
        (self.status, Json(ErrorBody { code: self.code, message: self.message })).into_response()
    }
}

/// A body in parts, which may be shared with other answers.
struct Parts(VecDeque<Bytes>);

impl Parts {
    fn body(parts: impl Into<VecDeque<Bytes>>) -> Body {
        Body::new(Parts(parts.into()))
    }
}

impl hyper::body::Body for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.get_mut().0.pop_front().map(|part| Ok(Frame::data(part))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|part| part.len() as u64).sum())
    }
}
