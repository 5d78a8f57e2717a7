//! `tapline inspect`: the sandbox's state, and its gateway's counters where the gateway answers.
//!
//! The gateway's API is HTTP on a Unix socket. Two requests are made, one after the other, each with a time limit;
//! HTTP/1.0 makes the end of the answer the end of the connection. A gateway that does not answer leaves `counters`
//! null: what the files say is shown all the same.
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::error::Failure;
use super::output;
use crate::control::state::StateDir;

/// Show all there is to know of a sandbox, as JSON
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// Name or id of the sandbox, or the beginning of its id
    #[arg(value_name = "NAME")]
    name: String,
}

/// The gateway is asked no longer than this.
const PATIENCE: Duration = Duration::from_secs(2);
/// An answer is no longer than this, in bytes.
const LONGEST_ANSWER: u64 = 1 << 20;

impl InspectArgs {
    /// Does it.
    pub fn execute(self) -> Result<i32, Failure> {
        let states = StateDir::open()?;
        let state = states.find(&self.name)?;
        let mut document = serde_json::to_value(&state).map_err(anyhow::Error::from)?;
        let counters = states.connect_api(&state.id).ok().and_then(|api| counters(api).ok());
        document["counters"] = counters.unwrap_or(Value::Null);
        let mut text = serde_json::to_string_pretty(&document).map_err(anyhow::Error::from)?;
        text.push('\n');
        output::print(&text)?;
        Ok(0)
    }
}

fn counters(mut api: UnixStream) -> io::Result<Value> {
    api.set_read_timeout(Some(PATIENCE))?;
    api.set_write_timeout(Some(PATIENCE))?;
    api.write_all(b"GET /v1/counters HTTP/1.0\r\nHost: tapline\r\n\r\n")?;
    let mut answer = Vec::new();
    api.take(LONGEST_ANSWER).read_to_end(&mut answer)?;
    body_of(&answer)
        .and_then(|body| serde_json::from_slice(body).ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the gateway's answer is not HTTP with a JSON body"))
}

/// The body of a successful answer.
fn body_of(answer: &[u8]) -> Option<&[u8]> {
    let end_of_head = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let (head, body) = answer.split_at(end_of_head + 4);
    let status = head.split(|b| *b == b' ').nth(1)?;
    (head.starts_with(b"HTTP/1.") && status == b"200").then_some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_come_from_the_api() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || {
            let mut request = [0; 512];
            let n = theirs.read(&mut request).unwrap();
            assert!(request[..n].starts_with(b"GET /v1/counters HTTP/1.0\r\n"));
            theirs.write_all(b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{\"frames_in\":7}").unwrap();
        });
        assert_eq!(counters(ours).unwrap()["frames_in"], 7);
        server.join().unwrap();
    }

    #[test]
    fn anything_but_200_is_no_answer() {
        assert_eq!(body_of(b"HTTP/1.0 404 Not Found\r\n\r\n{}"), None);
        assert_eq!(body_of(b"SSH-2.0 200 x\r\n\r\n{}"), None);
        assert_eq!(body_of(b"HTTP/1.0 200 OK\r\n"), None);
    }
}
