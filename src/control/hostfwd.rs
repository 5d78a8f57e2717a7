//! slirp4netns' API, which forwards ports of the host: requests and answers.
//!
//! # Theory of operation
//!
//! A client connects to a Unix stream socket, sends one JSON object and gets one, after which the connection is closed.
//! Here is what the bytes mean; who reads and writes them is the supervisor's business. No system call.
//!
//! *When is a request complete?* When its object is: a client may or may not end it with a newline, and may or may not
//! shut down its side ([`complete`]). What stands behind the object is not looked at. [`MOST`] bytes and more are
//! refused, whatever is in them.
//!
//! *Leniency* is the original's: a missing or empty `host_addr` is every IPv4 address, a missing or empty `guest_addr`
//! the sandbox's own; one that is no text counts as missing; a number may have a fraction, which is cut off. The texts
//! of refusals are the original's too, because callers show them and look for them. Where it kept the documentation's
//! word less than its own, both are given: a list stands at `return.entries` and at `entries`.
//!
//! [`Forwards`] is what was forwarded: numbered from 1 up, in that order. A number is never given twice.
use std::net::{IpAddr, Ipv4Addr};

use serde::Serialize;
use serde_json::{Value, json};

use crate::plan::{BindManner, PortRange, Protocol, PublishSpec};

/// So many bytes are too many.
pub const MOST: usize = 4096;

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Forward a port.
    Add(Forward),
    /// Say which are forwarded.
    List,
    /// Do so no longer, by its number.
    Remove(u64),
}

/// A port that leads to one of the sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The protocol.
    pub protocol: Protocol,
    /// Where the host listens.
    pub host: IpAddr,
    /// At which port.
    pub host_port: u16,
    /// Where it leads; `None` means the sandbox's own address.
    pub guest: Option<IpAddr>,
    /// To which port.
    pub guest_port: u16,
}

/// Why a request is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not JSON, or not yet when the client had said all.
    #[error("cannot parse JSON")]
    NoJson,
    /// Not an object.
    #[error("json_object() failed")]
    NoObject,
    /// Without `execute`.
    #[error("no execute found")]
    NoExecute,
    /// With another `execute`.
    #[error("unknown execute")]
    UnknownExecute,
    /// [`MOST`] bytes, or more.
    #[error("too large message")]
    TooLarge,
    /// An argument of `add_hostfwd`.
    #[error("add_hostfwd: bad arguments.{0}")]
    Add(&'static str),
    /// The port cannot be had.
    #[error("add_hostfwd: slirp_add_hostfwd failed")]
    AddFailed,
    /// Nothing has this number.
    #[error("remove_hostfwd: bad arguments.id")]
    Remove,
    /// The port cannot be given back.
    #[error("remove_hostfwd: slirp_remove_hostfwd failed")]
    RemoveFailed,
}

impl Refusal {
    /// The answer.
    pub fn answer(self) -> String {
        json!({ "error": { "desc": format!("bad request: {self}") } }).to_string()
    }
}

/// What the bytes that have come so far ask for; `None` when there have to be more. `is_all` says that no more will come.
pub fn complete(bytes: &[u8], is_all: bool) -> Option<Result<Request, Refusal>> {
    if bytes.len() >= MOST {
        return Some(Err(Refusal::TooLarge));
    }
    match serde_json::Deserializer::from_slice(bytes).into_iter::<Value>().next() {
        Some(Ok(value)) => Some(request(&value)),
        Some(Err(error)) if error.is_eof() && !is_all => None,
        None if !is_all => None,
        _ => Some(Err(Refusal::NoJson)),
    }
}

fn request(value: &Value) -> Result<Request, Refusal> {
    let object = value.as_object().ok_or(Refusal::NoObject)?;
    let execute = object.get("execute").and_then(Value::as_str).ok_or(Refusal::NoExecute)?;
    let argument = |name: &str| object.get("arguments").and_then(|arguments| arguments.get(name));
    match execute {
        "add_hostfwd" => add(argument).map(Request::Add),
        "list_hostfwd" => Ok(Request::List),
        "remove_hostfwd" => argument("id").and_then(whole).map(Request::Remove).ok_or(Refusal::Remove),
        _ => Err(Refusal::UnknownExecute),
    }
}

fn add<'a>(argument: impl Fn(&str) -> Option<&'a Value>) -> Result<Forward, Refusal> {
    let text = |name| argument(name).and_then(Value::as_str);
    let protocol = match text("proto") {
        Some("tcp") => Protocol::Tcp,
        Some("udp") => Protocol::Udp,
        _ => return Err(Refusal::Add("proto")),
    };
    let address = |name| match text(name) {
        None | Some("") => Ok(None),
        Some(text) => text.parse::<IpAddr>().map(Some).map_err(|_| Refusal::Add(name)),
    };
    let port = |name| {
        let port = argument(name).and_then(whole).and_then(|port| u16::try_from(port).ok());
        port.filter(|port| *port != 0).ok_or(Refusal::Add(name))
    };
    Ok(Forward {
        protocol,
        host: address("host_addr")?.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
        host_port: port("host_port")?,
        guest: address("guest_addr")?,
        guest_port: port("guest_port")?,
    })
}

/// A number that is not negative, without its fraction.
fn whole(value: &Value) -> Option<u64> {
    let number = value.as_f64().map(f64::trunc)?;
    // Past this not every number is one.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within the range")]
    (0.0..9e15).contains(&number).then_some(number as u64)
}

impl Forward {
    /// As it is published; `own` is the sandbox's own address.
    pub fn spec(&self, own: IpAddr) -> PublishSpec {
        let one = |port| PortRange { first: port, last: port };
        let sandbox_address = self.guest.filter(|guest| *guest != own && !guest.is_unspecified());
        let mut spec = PublishSpec {
            text: String::new(),
            address: Some(self.host),
            host: Some(one(self.host_port)),
            sandbox: one(self.guest_port),
            protocol: self.protocol,
            proxy: None,
            manner: Box::new(BindManner { sandbox_address, ..BindManner::default() }),
        };
        spec.text = spec.to_string();
        spec
    }
}

/// Everything that is forwarded.
#[derive(Debug)]
pub struct Forwards {
    /// What a missing address inside means.
    own: IpAddr,
    entries: Vec<Entry>,
    last: u64,
}

#[derive(Debug, Serialize)]
struct Entry {
    id: u64,
    #[serde(rename = "proto")]
    protocol: Protocol,
    host_addr: IpAddr,
    host_port: u16,
    guest_addr: IpAddr,
    guest_port: u16,
    #[serde(skip)]
    ticket: u64,
}

#[derive(Serialize)]
struct List<'a> {
    r#return: Entries<'a>,
    entries: &'a [Entry],
}

#[derive(Serialize)]
struct Entries<'a> {
    entries: &'a [Entry],
}

impl Forwards {
    /// Nothing yet, in a sandbox with this address.
    pub fn new(own: IpAddr) -> Forwards {
        Forwards { own, entries: Vec::new(), last: 0 }
    }

    /// The sandbox's address.
    pub fn own(&self) -> IpAddr {
        self.own
    }

    /// A port is forwarded, published under this ticket; the answer.
    pub fn added(&mut self, forward: &Forward, ticket: u64) -> String {
        self.last += 1;
        self.entries.push(Entry {
            id: self.last,
            protocol: forward.protocol,
            host_addr: forward.host,
            host_port: forward.host_port,
            guest_addr: forward.guest.unwrap_or(self.own),
            guest_port: forward.guest_port,
            ticket,
        });
        json!({ "return": { "id": self.last } }).to_string()
    }

    /// The ticket of what has this number.
    ///
    /// # Errors
    /// When nothing has.
    pub fn ticket(&self, id: u64) -> Result<u64, Refusal> {
        self.entries.iter().find(|entry| entry.id == id).map(|entry| entry.ticket).ok_or(Refusal::Remove)
    }

    /// What was published under this ticket no longer is.
    pub fn forget(&mut self, ticket: u64) {
        self.entries.retain(|entry| entry.ticket != ticket);
    }

    /// The answer to one that was removed.
    pub fn removed() -> String {
        json!({ "return": {} }).to_string()
    }

    /// The answer that lists all of them.
    pub fn list(&self) -> String {
        let entries = &self.entries[..];
        // Nothing in it can fail to be written.
        serde_json::to_string(&List { r#return: Entries { entries }, entries }).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
