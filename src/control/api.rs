//! The API: HTTP and JSON over a Unix socket in the sandbox's state directory.
//!
//! # Theory of operation
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /v1/sandbox` | [`SandboxInfo`]: the endpoint, the network, the host as the gateway knows it |
//! | `GET /v1/counters` | [`CountersInfo`]: the worker's [`Snapshot`] and what the DNS forwarder counted |
//!
//! An error is `{"code": "...", "message": "..."}` with a fitting HTTP status; `code` is for programs and stays the
//! same, `message` is for people.
//!
//! The supervisor binds the socket, because the gateway opens no file, and hands it over. Its mode lets only the
//! user in; each peer's uid is checked all the same (SO_PEERCRED): the gateway's own user and root may speak.
//! A client can neither hold the gateway up nor make it grow: at most [`MAX_CONNECTIONS`] at once (others wait in
//! the listen queue), and one that neither sends nor reads for [`IDLE`] is closed.
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream, unix};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::datapath::commands::{CommandSender, Snapshot};
use crate::names::{DnsStats, Forwarder};
use crate::plan::{Endpoint, HostView, Network};

/// Connections at once.
pub const MAX_CONNECTIONS: usize = 16;
/// How long a connection may be silent.
pub const IDLE: Duration = Duration::from_secs(10);
/// How long the worker may take to answer; it never waits for anything, so this is long.
const WORKER_PATIENCE: Duration = Duration::from_secs(2);

/// `GET /v1/sandbox`.
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

/// What the API shows.
#[derive(Debug)]
pub struct ApiState {
    info: Mutex<SandboxInfo>,
    commands: CommandSender,
    forwarder: Forwarder,
}

impl ApiState {
    /// For a sandbox whose worker listens to `commands`.
    pub fn new(info: SandboxInfo, commands: CommandSender, forwarder: Forwarder) -> Arc<ApiState> {
        Arc::new(ApiState { info: Mutex::new(info), commands, forwarder })
    }

    /// The host changed.
    pub fn handle_host_changed(&self, host: HostView) {
        self.info.lock().unwrap_or_else(PoisonError::into_inner).host = host;
    }
}

/// Serve the API on a listening socket until the runtime ends.
pub async fn serve(listener: std::os::unix::net::UnixListener, state: Arc<ApiState>) -> io::Result<()> {
    serve_with(listener, state, IDLE).await
}

async fn serve_with(
    listener: std::os::unix::net::UnixListener,
    state: Arc<ApiState>,
    idle: Duration,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = Guarded {
        listener: UnixListener::from_std(listener)?,
        places: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        uid: nix::unistd::geteuid().as_raw(),
        idle,
    };
    axum::serve(listener, routes(state)).await
}

fn routes(state: Arc<ApiState>) -> Router {
    Router::new()
        .route("/v1/sandbox", get(sandbox))
        .route("/v1/counters", get(counters))
        .fallback(|| async {
            ApiError(StatusCode::NOT_FOUND, "not_found", "there is no such path; try /v1/sandbox or /v1/counters")
        })
        .method_not_allowed_fallback(|| async {
            ApiError(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path takes GET only")
        })
        .with_state(state)
}

async fn sandbox(State(state): State<Arc<ApiState>>) -> Json<SandboxInfo> {
    Json(state.info.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

async fn counters(State(state): State<Arc<ApiState>>) -> Result<Json<CountersInfo>, ApiError> {
    let datapath = match timeout(WORKER_PATIENCE, state.commands.snapshot()).await {
        Ok(Ok(snapshot)) => snapshot,
        Ok(Err(_)) | Err(_) => {
            return Err(ApiError(
                StatusCode::SERVICE_UNAVAILABLE,
                "worker_gone",
                "the gateway's worker does not answer",
            ));
        }
    };
    Ok(Json(CountersInfo { datapath, dns: state.forwarder.stats() }))
}

/// HTTP status, code, message.
struct ApiError(StatusCode, &'static str, &'static str);

#[derive(Serialize)]
struct ErrorBody {
    code: &'static str,
    message: &'static str,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.0, Json(ErrorBody { code: self.1, message: self.2 })).into_response()
    }
}

/// A listener that lets in only so many, only those who may, and closes the silent.
struct Guarded {
    listener: UnixListener,
    places: Arc<Semaphore>,
    uid: u32,
    idle: Duration,
}

impl Listener for Guarded {
    type Io = Guest;
    type Addr = unix::SocketAddr;

    async fn accept(&mut self) -> (Guest, unix::SocketAddr) {
        loop {
            // The semaphore is never closed.
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { std::future::pending().await };
            match self.listener.accept().await {
                Ok((stream, address)) => match stream.peer_cred() {
                    Ok(peer) if peer.uid() == self.uid || peer.uid() == 0 => {
                        let idle = self.idle;
                        return (Guest { stream, _place: place, deadline: Box::pin(sleep(idle)), idle }, address);
                    }
                    Ok(peer) => tracing::info!("the API refuses uid {}", peer.uid()),
                    Err(error) => tracing::info!("the API cannot tell who asks: {error}"),
                },
                Err(error) => {
                    // Out of descriptors, most likely: flows that end give some back.
                    tracing::debug!("the API cannot accept: {error}");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<unix::SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that is closed when nothing moves.
struct Guest {
    stream: UnixStream,
    _place: OwnedSemaphorePermit,
    deadline: Pin<Box<Sleep>>,
    idle: Duration,
}

impl Guest {
    /// What the stream says, unless nothing has moved for too long.
    fn watched<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.deadline.as_mut().reset(Instant::now() + self.idle);
            return result;
        }
        self.deadline.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Guest {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.watched(cx, result)
    }
}

impl AsyncWrite for Guest {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watched(cx, result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{MacAddr, Outbound};
    use std::os::unix::net::UnixStream as StdStream;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn state() -> Arc<ApiState> {
        let network = Network {
            v4: None,
            v6: None,
            mtu: 1500,
            gateway_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            host_loopback_allowed: false,
            metadata_allowed: false,
            broadcast_to_host: false,
            dns_enabled: true,
            dns_search: Vec::new(),
            dns_servers: Vec::new(),
            local_names: Vec::new(),
            outbound: Outbound::default(),
            udp_timeout: Duration::from_secs(120),
        };
        let endpoint = Endpoint {
            id: "0123456789ab".into(),
            name: "web".into(),
            ifname: "tap0".into(),
            mac: MacAddr([2, 0, 0, 0, 0, 2]),
            v4: None,
            v6: None,
        };
        let poll = mio::Poll::new().unwrap();
        let (commands, _) = CommandSender::new(mio::Waker::new(poll.registry(), mio::Token(0)).unwrap());
        let forwarder = Forwarder::new(&network, &HostView::default());
        ApiState::new(SandboxInfo { endpoint, network, host: HostView::default() }, commands, forwarder)
    }

    /// A listener of this test alone, without a file (unix(7), abstract), and a way to connect to it.
    fn listener(name: &str) -> (std::os::unix::net::UnixListener, impl Fn() -> UnixStream) {
        use std::os::linux::net::SocketAddrExt;
        let name = format!("tapline-api-test-{}-{name}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
        let listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
        (listener, move || {
            let stream = StdStream::connect_addr(&address).unwrap();
            stream.set_nonblocking(true).unwrap();
            UnixStream::from_std(stream).unwrap()
        })
    }

    async fn response(mut stream: UnixStream, request: &str) -> String {
        stream.write_all(format!("{request} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
        let mut text = String::new();
        timeout(Duration::from_secs(10), stream.read_to_string(&mut text)).await.unwrap().unwrap();
        text
    }

    #[tokio::test]
    async fn silent_connections_are_closed_and_then_others_are_served() {
        let (listener, connect) = listener("silent");
        tokio::spawn(serve_with(listener, state(), Duration::from_millis(200)));
        let mut silent: Vec<_> = (0..MAX_CONNECTIONS).map(|_| connect()).collect();
        // Half a request is silence as well.
        silent[0].write_all(b"GET /v1/sandb").await.unwrap();
        let answered = response(connect(), "GET /v1/sandbox").await;
        assert!(answered.starts_with("HTTP/1.0 200 OK"), "{answered}");
        let mut rest = Vec::new();
        timeout(Duration::from_secs(10), silent[1].read_to_end(&mut rest)).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_worker_that_has_gone_is_an_error_with_a_code() {
        let (listener, connect) = listener("gone");
        tokio::spawn(serve_with(listener, state(), IDLE));
        let answered = response(connect(), "GET /v1/counters").await;
        assert!(answered.starts_with("HTTP/1.0 503"), "{answered}");
        assert!(answered.ends_with(r#"{"code":"worker_gone","message":"the gateway's worker does not answer"}"#));
    }

    #[tokio::test]
    async fn what_changes_on_the_host_is_shown() {
        let (listener, connect) = listener("host");
        let state = state();
        tokio::spawn(serve_with(listener, Arc::clone(&state), IDLE));
        state.handle_host_changed(HostView { v4: Some([192, 0, 2, 1].into()), ..HostView::default() });
        assert!(response(connect(), "GET /v1/sandbox").await.contains(r#""v4":"192.0.2.1""#));
    }
}
