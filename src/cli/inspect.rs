//! `tapline inspect`: the sandbox's state, and its gateway's counters where the gateway answers.
//!
//! The gateway's API is HTTP on a Unix socket. Two requests are made, one after the other, each with a time limit;
//! HTTP/1.0 makes the end of the answer the end of the connection. A gateway that does not answer leaves `counters`
//! null: what the files say is shown all the same.
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::document::{Show, show_all};
use super::error::Failure;
use crate::control::state::{SandboxState, StateDir};
use crate::plan::{HostTarget, Seat, Shared, date};

/// Show all there is to know of sandboxes, as JSON
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// Name or id of the sandbox, or the beginning of its id; several make a list
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,

    #[command(flatten)]
    show: Show,
}

/// The gateway is asked no longer than this.
const PATIENCE: Duration = Duration::from_secs(2);
/// An answer is no longer than this, in bytes.
const LONGEST_ANSWER: u64 = 1 << 20;

impl InspectArgs {
    /// Does it.
    pub fn execute(self) -> Result<i32, Failure> {
        let states = StateDir::open()?;
        show_all(&self.show, &self.names, |name| {
            let state = states.find(name)?;
            let counters = states.connect_api(&state.id).ok().and_then(|api| counters(api).ok());
            let mut document = document(&state)?;
            document["counters"] = counters.unwrap_or(Value::Null);
            Ok(document)
        })
    }
}

/// What the files say: the state, with what people look for where they look for it.
fn document(state: &SandboxState) -> Result<Value, Failure> {
    let mut document = serde_json::to_value(state).map_err(anyhow::Error::from)?;
    let names = state.names.as_ref();
    let hosts = |(name, target): &(String, HostTarget)| match target {
        HostTarget::Address(address) => json!({ "name": name, "address": address }),
        HostTarget::Gateway => json!({ "name": name, "address": "host-gateway" }),
    };
    document["created"] = date::rfc3339(state.since).into();
    document["hostname"] = names.map(|names| names.hostname.clone()).into();
    document["dns"] = names.map_or(Value::Null, |names| {
        json!({ "enabled": names.dns, "servers": names.servers, "search": names.search, "options": names.options })
    });
    document["hosts"] = names.map_or(json!([]), |names| names.hosts.iter().map(hosts).collect());
    document["container"] = match &state.container {
        None => Value::Null,
        Some(Shared::Sandbox(name)) => name.clone().into(),
        Some(Shared::Path(path)) => format!("ns:{}", path.display()).into(),
    };
    document["endpoints"] = state.endpoints.iter().map(endpoint).collect();
    let seats = state.endpoints.iter();
    let links = seats.flat_map(|seat| seat.endpoint.links.iter().map(|link| (link, &seat.network.name)));
    document["links"] = links
        .map(|(link, network)| json!({ "sandbox": link.sandbox, "alias": link.alias, "network": network }))
        .collect();
    if let Some(document) = document.as_object_mut() {
        document.remove("names");
    }
    Ok(document)
}

fn endpoint(seat: &Seat) -> Value {
    let Seat { endpoint, network, default_route } = seat;
    json!({
        "network": network.name,
        "ifname": endpoint.ifname,
        "mac": endpoint.mac,
        "v4": endpoint.v4,
        "v6": endpoint.v6,
        "subnet_v4": network.v4.map(|layout| layout.subnet),
        "subnet_v6": network.v6.map(|layout| layout.subnet),
        "gateway_v4": network.v4.map(|layout| layout.gateway),
        "gateway_v6": network.v6.map(|layout| layout.gateway),
        "gateway_mac": network.gateway_mac,
        "mtu": network.mtu,
        "default_route": default_route,
        "aliases": endpoint.aliases,
        "exposed": endpoint.exposed,
        "access": endpoint.access,
    })
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
    fn a_document_has_what_people_look_for() {
        let state: SandboxState = serde_json::from_value(json!({
            "id": "0123456789ab", "name": "web", "pid": 7, "supervisor_pid": 6, "mode": "bridge", "v4": "10.9.0.2",
            "v6": null, "since": 1_000_000_000, "command": ["sh"], "ports": [],
            "names": {
                "hostname": "web.example", "dns": true, "servers": ["192.0.2.53"], "search": null, "options": [],
                "hosts": [["db", { "address": "192.0.2.7" }], ["up", "gateway"]],
            },
            "container": { "sandbox": "other" },
            "endpoints": [{
                "endpoint": {
                    "id": "0123456789ab", "name": "web", "ifname": "eth0", "mac": "02:42:0a:09:00:02", "v4": "10.9.0.2",
                    "v6": null, "links": [{ "sandbox": "db", "alias": "store" }],
                },
                "network": crate::plan::Ipv4Part::new("10.9.0.0/24".parse().unwrap(), None, None)
                    .map(|part| definition(part).network())
                    .unwrap(),
                "default_route": true,
            }],
        }))
        .unwrap();
        let document = document(&state).unwrap();
        for (pointer, expected) in [
            ("/mode", json!("bridge")),
            ("/hostname", json!("web.example")),
            ("/created", json!("2001-09-09T01:46:40Z")),
            ("/container", json!("other")),
            ("/dns/servers/0", json!("192.0.2.53")),
            ("/hosts/1/address", json!("host-gateway")),
            ("/endpoints/0/network", json!("db-net")),
            ("/endpoints/0/v4", json!("10.9.0.2")),
            ("/endpoints/0/mac", json!("02:42:0a:09:00:02")),
            ("/endpoints/0/gateway_v4", json!("10.9.0.1")),
            ("/endpoints/0/subnet_v4", json!("10.9.0.0/24")),
            ("/links/0/alias", json!("store")),
            ("/ports", json!([])),
        ] {
            assert_eq!(document.pointer(pointer), Some(&expected), "{pointer}");
        }
    }

    fn definition(part: crate::plan::Ipv4Part) -> crate::plan::Definition {
        crate::plan::Definition {
            name: "db-net".into(),
            id: "0123456789ab".into(),
            v4: Some(part),
            v6: None,
            mtu: 1500,
            sharing: crate::plan::Sharing { internal: false, icc: true },
            dns: Vec::new(),
            dns_search: Vec::new(),
            labels: Default::default(),
            created: 0,
        }
    }

    #[test]
    fn anything_but_200_is_no_answer() {
        assert_eq!(body_of(b"HTTP/1.0 404 Not Found\r\n\r\n{}"), None);
        assert_eq!(body_of(b"SSH-2.0 200 x\r\n\r\n{}"), None);
        assert_eq!(body_of(b"HTTP/1.0 200 OK\r\n"), None);
    }
}
