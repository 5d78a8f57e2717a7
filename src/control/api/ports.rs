//! `/v1/sandboxes/ID/ports`: what is published, and asking for more or less of it.
//!
//! # Theory of operation
//!
//! The gateway binds nothing: it has the supervisor do it. A request becomes a [`FromGateway::WantPublish`] or
//! [`FromGateway::WantUnpublish`]; the supervisor sends the sockets as it sends those of the command line, then its
//! answer, and by then they are in the sandbox's [`PortTable`]. One request at a time is with a supervisor, so what
//! changes in the table meanwhile is what came of it. A request goes on when its client leaves.
//!
//! [`PATIENCE`] is how long a request may take, its turn included; [`MAX_ASKING`] may wait at once.
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
use tokio::time::timeout;

use super::{ApiError, ApiState, Parts, id, parameters};
use crate::control::messages::FromGateway;
use crate::plan::{Origin, PortFailure, ProxyVersion, Published, PublishedKey};

/// How long a request may take.
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
}

impl Supervisor {
    /// What is put into `said` is sent to it.
    pub fn new(said: mpsc::Sender<FromGateway>) -> Supervisor {
        Supervisor { said, turn: Arc::default() }
    }
}

/// What a supervisor was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Publish,
    Unpublish,
}

/// A request that a supervisor has.
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
        if self.wish == Wish::Publish && port.origin == Origin::Api && !self.reply.is_closed() {
            self.changed.push(port.clone());
        }
    }

    /// A port was taken out of the sandbox's table.
    pub fn handle_removed(&mut self, port: &Published) {
        if self.wish == Wish::Unpublish && !self.reply.is_closed() {
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
    let ports = ask(state, id, Wish::Unpublish, move |request| FromGateway::WantUnpublish { request, spec }).await?;
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
    let asking = tokio::spawn(async move {
        let _place = place;
        timeout(PATIENCE, converse(&state, &id, wish, want)).await.unwrap_or_else(|_| {
            let message = format!("the supervisor did not answer within {} seconds", PATIENCE.as_secs());
            Err(ApiError::new(StatusCode::GATEWAY_TIMEOUT, "no_answer", message))
        })
    });
    asking.await.unwrap_or_else(|_| Err(gone()))
}

async fn converse(
    state: &ApiState,
    id: &str,
    wish: Wish,
    want: impl FnOnce(u64) -> FromGateway,
) -> Result<Vec<Published>, ApiError> {
    let supervisor = state.with_sandbox(id, |sandbox| sandbox.supervisor.clone())?;
    let _turn = supervisor.turn.lock().await;
    let request = state.next_request();
    let (reply, answer) = oneshot::channel();
    state.with_sandbox(id, |sandbox| sandbox.asked = Some(Asked { request, wish, changed: Vec::new(), reply }))?;
    supervisor.said.send(want(request)).await.map_err(|_| gone())?;
    answer.await.map_err(|_| gone())?.map_err(ApiError::from)
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
