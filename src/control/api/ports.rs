//! `/v1/sandboxes/ID/ports`: what is published, and asking for more or less of it.
//!
//! # Theory of operation
//!
//! The gateway binds nothing: it has the supervisor do it. A request becomes a [`FromGateway::WantPublish`] or
//! [`FromGateway::WantUnpublish`]; the supervisor sends the sockets as it sends those of the command line, then its
//! answer, and by then they are in the sandbox's [`PortTable`]. One request at a time is with a supervisor, so what
//! changes in the table meanwhile is what came of it, `-p auto` apart ([`Asked`]).
//!
//! [`PATIENCE`] is how long a client waits for an answer, its turn included; [`MAX_ASKING`] may wait at once. A request
//! whose turn has not come by then is dropped. One that the supervisor has keeps its turn until it is answered or the
//! sandbox ends, whether or not its client still waits: what comes of it late is not the next one's.
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper::body::Bytes;
use ipnet::IpNet;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::{ApiError, ApiState, Parts, id, parameters};
use crate::control::messages::FromGateway;
use crate::plan::{Origin, PortFailure, ProxyVersion, PublishSpec, Published, PublishedKey};

/// How long a client waits for an answer.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Requests that may wait for a supervisor at once.
pub const MAX_ASKING: usize = 16;
/// Longest spec in bytes.
const MAX_SPEC: usize = 256;
/// Most networks in `from`.
const MAX_FROM: usize = 256;

/// What is published for a sandbox, in the order in which it came.
#[derive(Debug, Default)]
pub struct PortTable {
    ports: BTreeMap<u64, Published>,
    places: HashMap<PublishedKey, u64>,
    next: u64,
    /// The list as JSON, until it changes: readers share it.
    json: Option<Bytes>,
}

impl PortTable {
    /// Add a port, in the place of one with the same key if there is one.
    pub fn insert(&mut self, port: Published) {
        self.remove(&port.key());
        self.places.insert(port.key(), self.next);
        self.ports.insert(self.next, port);
        self.next += 1;
        self.json = None;
    }

    /// Take a port out.
    pub fn remove(&mut self, key: &PublishedKey) -> Option<Published> {
        let port = self.ports.remove(&self.places.remove(key)?);
        self.json = None;
        port
    }

    /// All, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Published> {
        self.ports.values()
    }

    /// All, in order, as a JSON array.
    pub fn json(&mut self) -> Bytes {
        let ports = &self.ports;
        let json = self.json.get_or_insert_with(|| {
            let all: Vec<&Published> = ports.values().collect();
            // Nothing in it refuses to be written.
            serde_json::to_vec(&all).unwrap_or_default().into()
        });
        json.clone()
    }
}

/// The way to a sandbox's supervisor.
#[derive(Clone, Debug)]
pub struct Supervisor {
    said: mpsc::Sender<FromGateway>,
    turn: Arc<tokio::sync::Mutex<()>>,
    /// [`PATIENCE`], but for tests.
    pub(super) patience: Duration,
}

impl Supervisor {
    /// What is put into `said` is sent to it.
    pub fn new(said: mpsc::Sender<FromGateway>) -> Supervisor {
        Supervisor { said, turn: Arc::default(), patience: PATIENCE }
    }

    /// It is spoken to by another way from now on.
    pub fn use_way(&mut self, said: mpsc::Sender<FromGateway>) {
        self.said = said;
    }
}

/// What a supervisor was asked for.
#[derive(Debug)]
enum Wish {
    Publish,
    /// By this spec.
    Unpublish(String),
}

/// A request that a supervisor has.
///
/// Meanwhile `-p auto` publishes and takes back on its own: such ports count only where the request names them.
#[derive(Debug)]
pub struct Asked {
    request: u64,
    wish: Wish,
    /// What came of it so far.
    changed: Vec<Published>,
    reply: oneshot::Sender<Result<Vec<Published>, PortFailure>>,
}

impl Asked {
    /// A port was added to the sandbox's table.
    pub fn handle_added(&mut self, port: &Published) {
        if matches!(self.wish, Wish::Publish) && port.origin == Origin::Api {
            self.changed.push(port.clone());
        }
    }

    /// A port was taken out of the sandbox's table.
    pub fn handle_removed(&mut self, port: &Published) {
        if let Wish::Unpublish(spec) = &self.wish
            && (port.origin != Origin::Auto || is_named(port, spec))
        {
            self.changed.push(port.clone());
        }
    }

    /// Is this its number?
    pub fn is(&self, request: u64) -> bool {
        self.request == request
    }

    /// The supervisor has answered.
    pub fn finish(self, failure: Option<PortFailure>) {
        // Whoever asked may have stopped waiting.
        let _ = self.reply.send(failure.map_or(Ok(self.changed), Err));
    }
}

/// Does a spec mean this port that `-p auto` has published: by what it goes under, or by its place on the host?
fn is_named(port: &Published, text: &str) -> bool {
    let ip = port.host.ip();
    port.spec == text
        || PublishSpec::parse(text).is_ok_and(|spec| {
            let is_there = |at: std::net::IpAddr| at == ip || port.dual_stack && at.is_unspecified();
            spec.protocol == port.protocol
                && spec.host.is_some_and(|host| (host.first..=host.last).contains(&port.host.port()))
                && spec.address.is_none_or(is_there)
        })
}

#[derive(Serialize)]
struct PortList {
    ports: Vec<Published>,
}

/// `GET /v1/sandboxes/ID/ports`.
pub(super) async fn list(
    State(state): State<Arc<ApiState>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let id = id(path)?;
    let ports = state.with_sandbox(&id, |sandbox| sandbox.ports.json())?;
    let parts = [Bytes::from_static(b"{\"ports\":"), ports, Bytes::from_static(b"}")];
    Ok(([(CONTENT_TYPE, "application/json")], Parts::body(parts)).into_response())
}

/// `POST /v1/sandboxes/ID/ports`.
pub(super) async fn publish(
    State(state): State<Arc<ApiState>>,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    let id = state.with_sandbox(&id(path)?, |sandbox| sandbox.info.endpoint.id.clone())?;
    let Wanted { spec, proxy, from } = Wanted::parse(&headers, &body)?;
    let want = move |request| FromGateway::WantPublish { request, spec, proxy, from };
    let ports = ask(state, id, Wish::Publish, want).await?;
    Ok((StatusCode::CREATED, axum::Json(PortList { ports })).into_response())
}

/// `DELETE /v1/sandboxes/ID/ports?spec=SPEC`.
pub(super) async fn unpublish(
    State(state): State<Arc<ApiState>>,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let id = state.with_sandbox(&id(path)?, |sandbox| sandbox.info.endpoint.id.clone())?;
    let spec = parameters(query.as_deref(), &["spec"])?.remove("spec").ok_or_else(|| {
        let message = "which port is meant? Say ?spec=SPEC as it was published";
        ApiError::new(StatusCode::BAD_REQUEST, "missing_parameter", message)
    })?;
    let spec = checked_spec(spec)?;
    let wish = Wish::Unpublish(spec.clone());
    let ports = ask(state, id, wish, move |request| FromGateway::WantUnpublish { request, spec }).await?;
    Ok(axum::Json(PortList { ports }).into_response())
}

/// The body of a POST.
#[derive(Debug)]
struct Wanted {
    spec: String,
    proxy: Option<ProxyVersion>,
    from: Vec<IpNet>,
}

impl Wanted {
    fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Wanted, ApiError> {
        let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if !kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
            let message = "the body must be JSON: send it with Content-Type: application/json";
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type", message));
        }
        let bad = |code, message: String| ApiError::new(StatusCode::BAD_REQUEST, code, message);
        let value: Value =
            serde_json::from_slice(body).map_err(|error| bad("bad_json", format!("the body is not JSON: {error}")))?;
        let Value::Object(mut fields) = value else {
            return Err(bad("bad_field", "the body must be an object: {\"spec\": \"8080:80\"}".into()));
        };
        if let Some(unknown) = fields.keys().find(|key| !["spec", "proxy", "from"].contains(&key.as_str())) {
            let unknown: String = unknown.chars().take(40).collect();
            return Err(bad("unknown_field", format!("there is no field {unknown:?}; there are spec, proxy and from")));
        }
        let Some(spec) = field(&mut fields, "spec")? else {
            return Err(bad("missing_field", "the field spec is missing: {\"spec\": \"8080:80\"}".into()));
        };
        let from: Vec<IpNet> = field(&mut fields, "from")?.unwrap_or_default();
        if from.len() > MAX_FROM {
            return Err(bad("bad_field", format!("the field from may have {MAX_FROM} networks at most")));
        }
        Ok(Wanted { spec: checked_spec(spec)?, proxy: field(&mut fields, "proxy")?, from })
    }
}

/// A field, if it is there and not null.
fn field<T: DeserializeOwned>(fields: &mut Map<String, Value>, name: &str) -> Result<Option<T>, ApiError> {
    let Some(value) = fields.remove(name) else { return Ok(None) };
    serde_json::from_value(value).map_err(|error| {
        ApiError::new(StatusCode::BAD_REQUEST, "bad_field", format!("the field {name} cannot be read: {error}"))
    })
}

fn checked_spec(spec: String) -> Result<String, ApiError> {
    if spec.len() > MAX_SPEC {
        let message = format!("a spec has {MAX_SPEC} bytes at most");
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "bad_spec", message));
    }
    Ok(spec)
}

/// Have the supervisor do it. What was published, or taken back.
async fn ask(
    state: Arc<ApiState>,
    id: String,
    wish: Wish,
    want: impl FnOnce(u64) -> FromGateway + Send + 'static,
) -> Result<Vec<Published>, ApiError> {
    let Ok(place) = Arc::clone(&state.asking).try_acquire_owned() else {
        let message = "too many requests wait for the supervisor; try again later";
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message));
    };
    // A task of its own: what the supervisor was asked for happens even if the client leaves, and nobody else's turn
    // may come before that.
    let supervisor = state.with_sandbox(&id, |sandbox| sandbox.supervisor.clone())?;
    let deadline = Instant::now() + supervisor.patience;
    let asking = tokio::spawn(async move {
        let _place = place;
        converse(&state, &id, &supervisor, deadline, wish, want).await
    });
    match timeout_at(deadline, asking).await {
        Ok(answer) => answer.unwrap_or_else(|_| Err(gone())),
        Err(_) => Err(late()),
    }
}

/// The request gets its turn before the deadline or is dropped; then it takes as long as it takes.
async fn converse(
    state: &ApiState,
    id: &str,
    supervisor: &Supervisor,
    deadline: Instant,
    wish: Wish,
    want: impl FnOnce(u64) -> FromGateway,
) -> Result<Vec<Published>, ApiError> {
    let _turn = timeout_at(deadline, supervisor.turn.lock()).await.map_err(|_| late())?;
    let said = timeout_at(deadline, supervisor.said.reserve()).await.map_err(|_| late())?.map_err(|_| gone())?;
    let request = state.next_request();
    let (reply, answer) = oneshot::channel();
    state.with_sandbox(id, |sandbox| sandbox.asked = Some(Asked { request, wish, changed: Vec::new(), reply }))?;
    said.send(want(request));
    // Where the sandbox ends, so does the other end of this.
    answer.await.map_err(|_| gone())?.map_err(ApiError::from)
}

fn late() -> ApiError {
    let seconds = PATIENCE.as_secs();
    let message =
        format!("the supervisor did not answer within {seconds} seconds; it may do later what it was asked for");
    ApiError::new(StatusCode::GATEWAY_TIMEOUT, "no_answer", message)
}

fn gone() -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "sandbox_ended", "the sandbox has ended")
}

impl From<PortFailure> for ApiError {
    fn from(failure: PortFailure) -> ApiError {
        let status = match failure.code.as_str() {
            "bad_spec" | "no_such_address" => StatusCode::BAD_REQUEST,
            "privileged" => StatusCode::FORBIDDEN,
            "not_published" => StatusCode::NOT_FOUND,
            "taken" => StatusCode::CONFLICT,
            "exhausted" => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, failure.code, failure.message)
    }
}
