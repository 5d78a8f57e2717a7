//! A client of the API ([`api`](super::api)), for subcommands: one request, one connection, one answer, all within
//! [`PATIENCE`].
use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use super::state::{StateDir, StateError};
use crate::plan::{ProxyVersion, Published};

/// Nobody waits longer than this for an answer: for the gateway's own word that the supervisor does not answer.
const PATIENCE: Duration = Duration::from_secs(12);
/// An answer is no longer than this, in bytes: every port of both protocols, published one by one, is half of it.
const LONGEST_ANSWER: usize = 64 << 20;

/// Why there is no answer, or not the one that was hoped for.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The connection could not be made.
    #[error(transparent)]
    Connect(#[from] StateError),
    /// The connection broke.
    #[error("cannot speak with the sandbox's gateway: {0}; is the sandbox ending? `tapline ps` lists those that run")]
    Broken(io::Error),
    /// Too late.
    #[error("the sandbox's gateway has not answered within {} s: try again, or see its messages", PATIENCE.as_secs())]
    Late,
    /// The gateway says no.
    #[error("{message}")]
    Refused {
        /// For programs, as in the API.
        code: String,
        /// For people.
        message: String,
    },
    /// Not what the API answers.
    #[error("the sandbox's gateway has answered something else ({0}): is it of another version of tapline?")]
    Nonsense(String),
}

/// What is wanted of a sandbox's ports.
#[derive(Debug, Serialize)]
struct Wanted<'a> {
    spec: &'a str,
    proxy: Option<ProxyVersion>,
    from: &'a [IpNet],
}

#[derive(Debug, Deserialize)]
struct PortsAnswer {
    ports: Vec<Published>,
}

#[derive(Debug, Deserialize)]
struct ErrorAnswer {
    code: String,
    message: String,
}

/// The ports of a living sandbox.
#[derive(Clone, Copy, Debug)]
pub struct PortsClient<'a> {
    /// Where sandboxes are found.
    pub states: &'a StateDir,
    /// The sandbox's id.
    pub id: &'a str,
}

impl PortsClient<'_> {
    /// What is published.
    pub fn list(&self) -> Result<Vec<Published>, AskError> {
        self.ask(Method::GET, "", Vec::new())
    }

    /// Publishes, and returns what was made; an empty `from` means what the sandbox was started with.
    pub fn publish(&self, spec: &str, proxy: Option<ProxyVersion>, from: &[IpNet]) -> Result<Vec<Published>, AskError> {
        // No map with keys that are not strings, no number that JSON has no word for: this cannot fail.
        let body = serde_json::to_vec(&Wanted { spec, proxy, from }).unwrap_or_default();
        self.ask(Method::POST, "", body)
    }

    /// Takes back what a spec has published, and returns what that was.
    pub fn unpublish(&self, spec: &str) -> Result<Vec<Published>, AskError> {
        let query = format!("?spec={}", utf8_percent_encode(spec, NON_ALPHANUMERIC));
        self.ask(Method::DELETE, &query, Vec::new())
    }

    fn ask(&self, method: Method, query: &str, body: Vec<u8>) -> Result<Vec<Published>, AskError> {
        let path = format!("/v1/sandboxes/{}/ports{query}", self.id);
        let stream = self.states.connect_api(self.id)?;
        let answer: PortsAnswer = understood(&ask(stream, method, &path, body)?)?;
        Ok(answer.ports)
    }
}

/// Whole answers only.
fn ask(stream: UnixStream, method: Method, path: &str, body: Vec<u8>) -> Result<Response<Bytes>, AskError> {
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, "tapline");
    if !body.is_empty() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let request = request.body(Full::new(Bytes::from(body))).map_err(|e| AskError::Broken(io::Error::other(e)))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(AskError::Broken)?;
    runtime.block_on(async {
        match tokio::time::timeout(PATIENCE, exchange(stream, request)).await {
            Ok(answer) => answer.map_err(AskError::Broken),
            Err(_) => Err(AskError::Late),
        }
    })
}

async fn exchange(stream: UnixStream, request: Request<Full<Bytes>>) -> io::Result<Response<Bytes>> {
    stream.set_nonblocking(true)?;
    let stream = TokioIo::new(tokio::net::UnixStream::from_std(stream)?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(io::Error::other)?;
    // What goes wrong with the connection is told to the request as well.
    tokio::spawn(connection);
    let (head, body) = sender.send_request(request).await.map_err(io::Error::other)?.into_parts();
    let body = Limited::new(body, LONGEST_ANSWER).collect().await.map_err(io::Error::other)?;
    Ok(Response::from_parts(head, body.to_bytes()))
}

fn understood<T: for<'de> Deserialize<'de>>(answer: &Response<Bytes>) -> Result<T, AskError> {
    let status = answer.status();
    let nonsense = || AskError::Nonsense(format!("status {}", status.as_u16()));
    if status == StatusCode::OK || status == StatusCode::CREATED {
        return serde_json::from_slice(answer.body()).map_err(|_| nonsense());
    }
    let ErrorAnswer { code, message } = serde_json::from_slice(answer.body()).map_err(|_| nonsense())?;
    Err(AskError::Refused { code, message })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::thread::JoinHandle;

    /// A gateway that takes one request and gives this answer; joined, what it was asked.
    fn gateway(answer: &'static str) -> (UnixStream, JoinHandle<String>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || {
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && !request.ends_with(b"]}") && theirs.read(&mut byte).unwrap() == 1 {
                request.push(byte[0]);
            }
            theirs.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request).unwrap()
        });
        (ours, server)
    }

    #[test]
    fn an_answer_is_its_ports() {
        let (stream, server) = gateway("HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{\"ports\":[]}");
        let answer = ask(stream, Method::GET, "/v1/sandboxes/0/ports", Vec::new()).unwrap();
        assert!(understood::<PortsAnswer>(&answer).unwrap().ports.is_empty());
        let request = server.join().unwrap();
        assert!(request.starts_with("GET /v1/sandboxes/0/ports HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("host: tapline\r\n"), "{request}");
    }

    #[test]
    fn a_refusal_is_the_gateways_own_sentence() {
        let (stream, _server) = gateway(
            "HTTP/1.1 409 Conflict\r\ncontent-length: 43\r\n\r\n{\"code\":\"taken\",\"message\":\"nginx has it all\"}",
        );
        let answer = ask(stream, Method::GET, "/v1/sandboxes/0/ports", Vec::new()).unwrap();
        // The length is one short on purpose: half an answer is none.
        assert!(matches!(understood::<PortsAnswer>(&answer), Err(AskError::Nonsense(_))));
        let whole = Response::builder()
            .status(409)
            .body(Bytes::from_static(b"{\"code\":\"taken\",\"message\":\"nginx has it\"}"))
            .unwrap();
        let error = understood::<PortsAnswer>(&whole).unwrap_err();
        assert_eq!(error.to_string(), "nginx has it");
        assert!(matches!(error, AskError::Refused { code, .. } if code == "taken"));
    }

    #[test]
    fn a_gateway_that_waits_in_vain_can_say_so() {
        assert!(PATIENCE >= crate::control::api::ports::PATIENCE + Duration::from_secs(2));
    }

    #[test]
    fn a_gateway_that_goes_away_is_told() {
        for answer in ["", "HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{", "SSH-2.0\r\n\r\n"] {
            let (stream, _server) = gateway(answer);
            let error = ask(stream, Method::GET, "/", Vec::new()).unwrap_err();
            assert!(matches!(error, AskError::Broken(_)), "{answer}: {error}");
        }
    }
}
