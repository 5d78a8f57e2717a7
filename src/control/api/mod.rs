//! The API: HTTP and JSON over a Unix socket in the sandbox's state directory.
//!
//! # Theory of operation
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /v1/sandboxes` | every sandbox that this gateway serves |
//! | `GET /v1/sandboxes/ID` | [`SandboxInfo`]: the endpoints, their networks, the host as the gateway knows it |
//! | `GET`, `POST`, `DELETE /v1/sandboxes/ID/ports` | [`ports`]: what is published; more of it, less of it |
//! | `GET /v1/flows` | [`FlowPage`]: some of the flows, one network after the other |
//! | `GET /v1/counters` | [`CountersInfo`]: the workers' [`Snapshot`]s, their sum, and what the DNS forwarders counted |
//! | `GET /v1/events` | [`events`]: what happens, as lines of JSON |
//! | `GET /metrics` | [`metrics`]: the counters as Prometheus reads them |
//!
//! A gateway serves one sandbox on a network of its own, or all of a user's on shared networks. A sandbox has a
//! connection for each of its networks; it is there as long as it has one. Its requests go to its supervisor by the first
//! of them, and its ports leave with the connection that they came by.
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
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
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
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, broadcast, mpsc};
use tokio::time::timeout;

use super::messages::FromGateway;
use crate::datapath::commands::{CommandSender, FlowPage, Snapshot, WorkerGone};
use crate::names::{DnsStats, Names};
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

/// Bits of a cursor for flows that are the worker's; above them the network's number.
const WORKER_CURSOR: u32 = 52;

/// `GET /v1/sandboxes/ID`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxInfo {
    /// The sandbox's place on its first network.
    pub endpoint: Endpoint,
    /// That network.
    pub network: Network,
    /// The host as the gateway was last told.
    pub host: HostView,
    /// All its places, the first one too, in the order in which they came.
    #[serde(default)]
    pub endpoints: Vec<EndpointInfo>,
}

/// A sandbox's place, and the network it is on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointInfo {
    /// The place.
    pub endpoint: Endpoint,
    /// The network.
    pub network: Network,
}

impl SandboxInfo {
    /// A sandbox with one place.
    pub fn new(endpoint: Endpoint, network: Network, host: HostView) -> SandboxInfo {
        let endpoints = vec![EndpointInfo { endpoint: endpoint.clone(), network: network.clone() }];
        SandboxInfo { endpoint, network, host, endpoints }
    }
}

/// `GET /v1/counters`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountersInfo {
    /// All networks' together.
    #[serde(flatten)]
    pub datapath: Snapshot,
    /// The DNS forwarders'.
    pub dns: DnsStats,
    /// Each network's, by its name.
    #[serde(default)]
    pub networks: BTreeMap<String, Snapshot>,
}

/// The way by which a place of a sandbox came.
#[derive(Debug)]
struct Way {
    /// The connection's number.
    connection: u64,
    /// To the supervisor.
    said: mpsc::Sender<FromGateway>,
    /// What is published by it.
    ports: HashSet<PublishedKey>,
}

/// A network that is served.
#[derive(Clone, Debug)]
struct Served {
    name: String,
    /// No other has it.
    number: u64,
    commands: CommandSender,
}

/// One sandbox that is served.
#[derive(Debug)]
struct Sandbox {
    info: SandboxInfo,
    /// One for each of the endpoints, in their order.
    ways: Vec<Way>,
    ports: PortTable,
    supervisor: Supervisor,
    /// What its supervisor is doing for a client.
    asked: Option<Asked>,
}

/// What changes and is shown.
#[derive(Debug)]
struct Shown {
    sandboxes: Vec<Sandbox>,
    /// In the order of their numbers.
    networks: Vec<Served>,
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
    names: Names,
    requests: AtomicU64,
    /// Places for streams of events.
    streams: Arc<Semaphore>,
    /// Places for requests that wait for a supervisor.
    asking: Arc<Semaphore>,
}

impl ApiState {
    /// No network and no sandbox yet.
    pub fn new(names: Names) -> Arc<ApiState> {
        let (events, _) = broadcast::channel(events::KEPT);
        Arc::new(ApiState {
            shown: Mutex::new(Shown { sandboxes: Vec::new(), networks: Vec::new(), events }),
            names,
            requests: AtomicU64::new(1),
            streams: Arc::new(Semaphore::new(events::MAX_STREAMS)),
            asking: Arc::new(Semaphore::new(ports::MAX_ASKING)),
        })
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A network is served by this worker.
    pub fn handle_network_started(&self, name: &str, commands: CommandSender) {
        let networks = &mut self.shown().networks;
        // The lowest that is free: cursors have room for few.
        let at = (0..).zip(&*networks).take_while(|(number, network)| network.number == *number).count();
        networks.insert(at, Served { name: name.to_owned(), number: at as u64, commands });
    }

    /// A network is no longer served.
    pub fn handle_network_stopped(&self, name: &str) {
        self.shown().networks.retain(|network| network.name != name);
    }

    /// A sandbox is served on a network; what is put into `said` goes to its supervisor.
    pub fn handle_attached(&self, connection: u64, info: SandboxInfo, said: mpsc::Sender<FromGateway>) {
        let mut shown = self.shown();
        let way = Way { connection, said: said.clone(), ports: HashSet::new() };
        let (id, network) = (&info.endpoint.id, &info.network.name);
        if shown.sandbox(id).is_some() {
            shown.tell(&Event::NetworkConnected { sandbox: id, network });
            let Some(sandbox) = shown.sandbox(id) else { return };
            sandbox.ways.push(way);
            sandbox.info.host = info.host;
            sandbox.info.endpoints.extend(info.endpoints);
            return;
        }
        shown.tell(&Event::SandboxAttached { sandbox: id });
        let supervisor = Supervisor::new(said);
        shown.sandboxes.push(Sandbox { info, ways: vec![way], ports: PortTable::default(), supervisor, asked: None });
    }

    /// A connection has ended: the sandbox with this id has left its network, or has ended itself. True when it has.
    pub fn handle_detached(&self, id: &str, connection: u64) -> bool {
        let mut shown = self.shown();
        let Some(sandbox) = shown.sandbox(id) else { return true };
        let Some(at) = sandbox.ways.iter().position(|way| way.connection == connection) else { return false };
        let way = sandbox.ways.remove(at);
        let left = sandbox.info.endpoints.remove(at);
        let Some((next, first)) = sandbox.ways.first().zip(sandbox.info.endpoints.first()) else {
            shown.sandboxes.retain(|sandbox| sandbox.info.endpoint.id != id);
            shown.tell(&Event::SandboxEnded { sandbox: id });
            return true;
        };
        if at == 0 {
            sandbox.supervisor.use_way(next.said.clone());
            (sandbox.info.endpoint, sandbox.info.network) = (first.endpoint.clone(), first.network.clone());
            // Its answer would have come by the connection that has ended.
            sandbox.asked = None;
        }
        let closed: Vec<Published> = way.ports.iter().filter_map(|key| sandbox.ports.remove(key)).collect();
        for port in &closed {
            shown.tell(&Event::PortUnpublished { sandbox: id, port });
        }
        shown.tell(&Event::NetworkDisconnected { sandbox: id, network: &left.network.name });
        false
    }

    /// The host changed, as a sandbox's supervisor was the first to say.
    pub fn handle_host_changed(&self, id: &str, host: &HostView) {
        let mut shown = self.shown();
        shown.tell(&Event::HostChanged { sandbox: id, host });
        for sandbox in &mut shown.sandboxes {
            sandbox.info.host = host.clone();
        }
    }

    /// The person was told something.
    pub fn handle_notice(&self, id: &str, text: &str) {
        self.shown().tell(&Event::Notice { sandbox: id, text });
    }

    /// These ports of a sandbox are served; they came by this connection.
    pub fn handle_published(&self, id: &str, connection: u64, ports: Vec<Published>) {
        let mut shown = self.shown();
        for port in ports {
            shown.tell(&Event::PortPublished { sandbox: id, port: &port });
            let Some(sandbox) = shown.sandbox(id) else { return };
            if let Some(asked) = &mut sandbox.asked {
                asked.handle_added(&port);
            }
            for way in &mut sandbox.ways {
                // The latest has it.
                if way.connection == connection {
                    way.ports.insert(port.key());
                } else {
                    way.ports.remove(&port.key());
                }
            }
            sandbox.ports.insert(port);
        }
    }

    /// These ports of a sandbox are closed, as far as they came by this connection.
    pub fn handle_unpublished(&self, id: &str, connection: u64, ports: &[PublishedKey]) {
        let mut shown = self.shown();
        for key in ports {
            let Some(sandbox) = shown.sandbox(id) else { return };
            let way = sandbox.ways.iter_mut().find(|way| way.connection == connection);
            if !way.is_some_and(|way| way.ports.remove(key)) {
                continue;
            }
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

    /// The network of this name, or all; in the order of their numbers.
    fn networks(&self, only: Option<&str>) -> Result<Vec<Served>, ApiError> {
        let shown = self.shown();
        let found: Vec<Served> =
            shown.networks.iter().filter(|network| only.is_none_or(|only| network.name == only)).cloned().collect();
        match only {
            Some(_) if found.is_empty() => {
                let message = "this gateway serves no sandbox on a network of that name";
                Err(ApiError::new(StatusCode::NOT_FOUND, "no_such_network", message))
            }
            _ => Ok(found),
        }
    }

    async fn counters(&self, only: Option<&str>) -> Result<CountersInfo, ApiError> {
        // All are asked before the first is waited for.
        let asked: Vec<_> =
            self.networks(only)?.into_iter().map(|n| (n.name, tokio::spawn(snapshot(n.commands)))).collect();
        let mut networks = BTreeMap::new();
        for (name, snapshot) in asked {
            match answered(async { snapshot.await.unwrap_or(Err(WorkerGone)) }).await {
                Ok(snapshot) => drop(networks.insert(name, snapshot)),
                // Its last sandbox has just left.
                Err(_) if self.networks(Some(&name)).is_err() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(CountersInfo { datapath: sum(networks.values()), dns: self.names.stats(), networks })
    }

    /// A page of flows: from the network that the cursor is in, or the next one.
    async fn flows(&self, cursor: u64, limit: usize, only: Option<&str>) -> Result<FlowPage, ApiError> {
        let (number, place) = (cursor >> WORKER_CURSOR, cursor & ((1 << WORKER_CURSOR) - 1));
        let networks = self.networks(only)?;
        let mut rest = networks.iter().skip_while(|network| network.number < number);
        let Some(network) = rest.next() else { return Ok(FlowPage::default()) };
        // The network that the cursor was in may have gone.
        let place = if network.number == number { place } else { 0 };
        let mut page = answered(network.commands.flows(place, limit)).await?;
        page.next = match page.next {
            Some(place) => Some(network.number << WORKER_CURSOR | place),
            None => rest.next().map(|next| next.number << WORKER_CURSOR),
        };
        Ok(page)
    }
}

async fn snapshot(commands: CommandSender) -> Result<Snapshot, WorkerGone> {
    commands.snapshot().await
}

/// All of them together: every number of a snapshot counts something.
fn sum<'a>(snapshots: impl Iterator<Item = &'a Snapshot>) -> Snapshot {
    let add = |sum: Value, snapshot: &Snapshot| match serde_json::to_value(snapshot) {
        Ok(value) => added(sum, value),
        Err(_) => sum,
    };
    let nothing = serde_json::to_value(Snapshot::default()).unwrap_or_default();
    serde_json::from_value(snapshots.fold(nothing, add)).unwrap_or_default()
}

fn added(one: Value, other: Value) -> Value {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => {
            one.as_u64().unwrap_or_default().wrapping_add(other.as_u64().unwrap_or_default()).into()
        }
        (Value::Object(mut one), Value::Object(other)) => {
            for (key, value) in other {
                let sum = match one.remove(&key) {
                    Some(there) => added(there, value),
                    None => value,
                };
                one.insert(key, sum);
            }
            Value::Object(one)
        }
        (one, _) => one,
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

async fn counters(
    State(state): State<Arc<ApiState>>,
    RawQuery(query): RawQuery,
) -> Result<Json<CountersInfo>, ApiError> {
    let query = parameters(query.as_deref(), &["network"])?;
    Ok(Json(state.counters(query.get("network").map(String::as_str)).await?))
}

async fn flows(State(state): State<Arc<ApiState>>, RawQuery(query): RawQuery) -> Result<Json<FlowPage>, ApiError> {
    let query = parameters(query.as_deref(), &["limit", "cursor", "sandbox", "network"])?;
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
    let mut page = state.flows(cursor, limit, query.get("network").map(String::as_str)).await?;
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
