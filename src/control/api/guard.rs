//! Who may speak to the API, how many at once, and how long they may take.
//!
//! # Theory of operation
//!
//! Each connection has a [`Place`], of which there are [`Limits::places`]; others wait in the listen queue, at most
//! one of them accepted. What a place is doing decides who has to leave when others wait:
//!
//! | the place | may be taken away |
//! | --- | --- |
//! | waits for its client: for a request or the rest of one, for somebody to read the answer | after [`Limits::stall`] |
//! | waits for us: for the worker or the supervisor | no; these have time limits of their own |
//! | is a stream of events | no; streams have [`MAX_STREAMS`](super::events::MAX_STREAMS) places of their own and give this one back |
//!
//! So a client that keeps a place costs the others a quarter of a second at most, and as long as nobody waits a slow
//! one has [`Limits::idle`] without a byte moving, the same for a request's head and again for its body, and
//! [`Limits::lifetime`] in all. After that its connection ends with the answer that is under way.
//!
//! What is not HTTP is hyper's to refuse: nonsense and heads that are too large are answered by 400 or 431 without a
//! body, and the connection is closed. A request's body is read whole before anybody looks at the request, at most
//! [`MAX_BODY`] bytes.
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::http::header::{CONNECTION, CONTENT_LENGTH};
use axum::http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};

use super::ApiError;

/// Connections at once, streams of events apart.
pub const MAX_CONNECTIONS: usize = 64;
/// Longest body of a request in bytes.
pub const MAX_BODY: usize = 64 * 1024;
/// Most bytes of a request's head, and what is buffered of an answer.
const BUFFER: usize = 16 * 1024;
/// Most header fields in a request.
const MAX_HEADERS: usize = 64;

/// How much a client may keep of us.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once.
    pub places: usize,
    /// How long nothing may move, and how long a head or a body may take.
    pub idle: Duration,
    /// How long a stream of events may be without anything moving, its heartbeat included.
    pub stream_idle: Duration,
    /// How long a client may keep its place while others wait.
    pub stall: Duration,
    /// How long a connection may last.
    pub lifetime: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            places: MAX_CONNECTIONS,
            idle: Duration::from_secs(10),
            stream_idle: 3 * super::events::HEARTBEAT,
            stall: Duration::from_millis(250),
            lifetime: Duration::from_secs(60),
        }
    }
}

/// What a connection is doing.
#[derive(Clone, Copy, Debug)]
enum Doing {
    /// It waits for its client since then.
    Client(Instant),
    /// It waits for us.
    Us,
    /// It is a stream of events.
    Stream,
}

/// A connection's place.
#[derive(Debug)]
pub struct Place {
    doing: Mutex<(Doing, Option<OwnedSemaphorePermit>)>,
    taken_away: Notify,
}

impl Place {
    /// A place for which `permit`, if any, is kept.
    pub fn new(permit: Option<OwnedSemaphorePermit>) -> Arc<Place> {
        Arc::new(Place { doing: Mutex::new((Doing::Client(Instant::now()), permit)), taken_away: Notify::new() })
    }

    fn doing(&self) -> Doing {
        self.doing.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// It becomes a stream of events; from now on this permit is kept instead of the one it had.
    pub fn become_stream(&self, permit: OwnedSemaphorePermit) {
        *self.doing.lock().unwrap_or_else(PoisonError::into_inner) = (Doing::Stream, Some(permit));
    }

    fn is_stream(&self) -> bool {
        matches!(self.doing(), Doing::Stream)
    }

    /// Waits for us as long as the result lives.
    fn work(self: &Arc<Place>) -> Working {
        self.doing.lock().unwrap_or_else(PoisonError::into_inner).0 = Doing::Us;
        Working(Arc::clone(self))
    }
}

struct Working(Arc<Place>);

impl Drop for Working {
    fn drop(&mut self) {
        let mut kept = self.0.doing.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(kept.0, Doing::Us) {
            kept.0 = Doing::Client(Instant::now());
        }
    }
}

/// Accept connections and serve them, until the runtime ends or this is no longer waited for.
pub async fn serve(listener: std::os::unix::net::UnixListener, router: Router, limits: Limits) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let uid = nix::unistd::geteuid().as_raw();
    let mut places = Places { free: Arc::new(Semaphore::new(limits.places)), taken: Vec::new(), stall: limits.stall };
    // They end with it.
    let mut conversations = JoinSet::new();
    loop {
        let stream = accept(&listener, uid).await;
        let place = places.next().await;
        while conversations.try_join_next().is_some() {}
        conversations.spawn(converse(stream, place, router.clone(), limits));
        // Let it read what is there already before it can look as if its client said nothing.
        tokio::task::yield_now().await;
    }
}

/// The next connection of somebody who may.
async fn accept(listener: &UnixListener, uid: u32) -> UnixStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match stream.peer_cred() {
                Ok(peer) if peer.uid() == uid || peer.uid() == 0 => return stream,
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

/// All places.
struct Places {
    free: Arc<Semaphore>,
    taken: Vec<Weak<Place>>,
    stall: Duration,
}

impl Places {
    /// A place for somebody who waits, once there is one.
    async fn next(&mut self) -> Arc<Place> {
        loop {
            let look_again = match Arc::clone(&self.free).try_acquire_owned() {
                Ok(permit) => {
                    let place = Place::new(Some(permit));
                    self.taken.retain(|place| place.strong_count() > 0);
                    self.taken.push(Arc::downgrade(&place));
                    return place;
                }
                Err(_) => self.make_room(),
            };
            tokio::select! {
                // Only looked at: the round above takes it.
                permit = Arc::clone(&self.free).acquire_owned() => drop(permit),
                () = sleep_until(look_again) => {}
            }
        }
    }

    /// Take the place away that has waited for its client longest, if that was long enough. When to look again.
    fn make_room(&self) -> Instant {
        let waiting = self.taken.iter().filter_map(Weak::upgrade).filter_map(|place| match place.doing() {
            Doing::Client(since) => Some((since, place)),
            Doing::Us | Doing::Stream => None,
        });
        let now = Instant::now();
        match waiting.min_by_key(|(since, _)| *since) {
            Some((since, place)) if since + self.stall <= now => {
                place.taken_away.notify_one();
                now + self.stall
            }
            Some((since, _)) => since + self.stall,
            None => now + self.stall,
        }
    }
}

/// Serve one connection to its end.
pub async fn converse<S>(stream: S, place: Arc<Place>, router: Router, limits: Limits)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let deadline = Box::pin(sleep(limits.idle));
    let guest = Guest { stream, place: Arc::clone(&place), deadline, limits };
    let service = TowerToHyperService::new(router);
    let answering = service_fn(|request| answer(&service, &place, request, limits.idle));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.idle)
        .max_headers(MAX_HEADERS)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(guest), answering);
    let mut connection = pin!(connection);
    let mut end = pin!(sleep(limits.lifetime));
    let mut ending = false;
    loop {
        tokio::select! {
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!("a connection to the API: {error}");
                }
                return;
            }
            () = place.taken_away.notified() => return,
            () = end.as_mut(), if !place.is_stream() => {
                if ending {
                    return;
                }
                ending = !place.is_stream();
                if ending {
                    connection.as_mut().graceful_shutdown();
                    end.as_mut().reset(Instant::now() + limits.idle);
                }
            }
        }
    }
}

/// Read a request's body, then have the request answered.
async fn answer(
    service: &TowerToHyperService<Router>,
    place: &Arc<Place>,
    request: Request<Incoming>,
    patience: Duration,
) -> Result<Response<Body>, Infallible> {
    let (mut parts, body) = request.into_parts();
    let body = match timeout(patience, whole(&parts.headers, body)).await {
        Ok(Ok(body)) => body,
        Ok(Err(error)) => return Ok(last(error)),
        Err(_) => {
            let message = format!("the request's body did not come within {} seconds", patience.as_secs());
            return Ok(last(ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", message)));
        }
    };
    let _working = place.work();
    parts.extensions.insert(Arc::clone(place));
    service.call(Request::from_parts(parts, Body::from(body))).await
}

/// An answer after which the connection is closed: the request was not read to its end.
fn last(error: ApiError) -> Response<Body> {
    let mut response = error.into_response();
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

async fn whole(headers: &HeaderMap, mut body: Incoming) -> Result<Vec<u8>, ApiError> {
    let too_large = || {
        let message = format!("a request's body may have {MAX_BODY} bytes at most");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    };
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > MAX_BODY as u64) {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|error| {
            let message = format!("the request's body cannot be read: {error}");
            ApiError::new(StatusCode::BAD_REQUEST, "bad_body", message)
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > MAX_BODY {
            return Err(too_large());
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// A connection that is closed when nothing moves.
struct Guest<S> {
    stream: S,
    place: Arc<Place>,
    deadline: Pin<Box<Sleep>>,
    limits: Limits,
}

impl<S> Guest<S> {
    /// What the stream says, unless nothing has moved for too long.
    fn watched<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            let patience = if self.place.is_stream() { self.limits.stream_idle } else { self.limits.idle };
            self.deadline.as_mut().reset(Instant::now() + patience);
            return result;
        }
        // A client that waits for us is not silent.
        while self.deadline.as_mut().poll(cx).is_ready() {
            if !matches!(self.place.doing(), Doing::Us) {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.deadline.as_mut().reset(Instant::now() + self.limits.idle);
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guest<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.watched(cx, result)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guest<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watched(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.watched(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
