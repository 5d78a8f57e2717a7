//! `tapline publish`.
use anyhow::anyhow;
use clap::Args;
use ipnet::IpNet;

use super::error::Failure;
use super::{output, port, port_options};
use crate::control::http::{AskError, PortsClient};
use crate::plan::{self, PortRange, ProxyVersion, PublishSpec, Published};

/// Publish ports of a sandbox that runs
///
/// All of them or, when one cannot be had, none. Prints where the host listens. `tapline unpublish` takes them back;
/// otherwise they go with the sandbox.
#[derive(Args, Debug)]
pub struct PublishArgs {
    /// Name or id of the sandbox, or the beginning of its id
    #[arg(value_name = "SANDBOX")]
    name: String,

    /// What to publish, as for `tapline run -p`
    #[arg(value_name = "SPEC", required = true, value_parser = PublishSpec::parse)]
    specs: Vec<PublishSpec>,

    /// Begin each TCP connection with a PROXY header, for services that read it
    #[arg(long, value_name = "VERSION", value_enum)]
    proxy_protocol: Option<ProxyVersion>,

    /// Who may connect: a subnet or an address; may be repeated [default: as the sandbox was started]
    ///
    /// The host's own loopback always may.
    #[arg(long, value_name = "CIDR", value_parser = plan::parse_clients)]
    publish_from: Vec<IpNet>,
}

impl PublishArgs {
    /// Does it.
    pub fn execute(mut self) -> Result<i32, Failure> {
        if let Some(version) = self.proxy_protocol
            && !port_options::add_proxy(&mut self.specs, version)
        {
            return Err(Failure::Usage("publish", port_options::NO_TCP.into()));
        }
        plan::check_specs(&self.specs).map_err(|error| Failure::Usage("publish", error.to_string()))?;
        let (states, sandbox) = port::find(&self.name)?;
        let client = PortsClient { states: &states, id: &sandbox.id };
        let made = publish_all(&client, &self.specs, &self.publish_from).map_err(Failure::Failed)?;
        output::print(&port::lines(&made))?;
        Ok(0)
    }
}

/// All of them; when one cannot be had, what was made before is taken back. The first failure is the one that counts.
fn publish_all(
    client: &PortsClient<'_>,
    specs: &[PublishSpec],
    from: &[IpNet],
) -> Result<Vec<Published>, anyhow::Error> {
    let mut made = Vec::new();
    for spec in specs {
        match client.publish(&spec.text, spec.proxy, from) {
            Ok(ports) => made.extend(ports),
            Err(error) => {
                return Err(match take_back(client, &made) {
                    Ok(()) => error.into(),
                    Err((left, why)) => {
                        anyhow!("{error} (what was published before it may stay: {left} cannot be taken back: {why})")
                    }
                });
            }
        }
    }
    Ok(made)
}

/// Takes back what was made, by where it is bound: others may have published the same spec. Ends at the first part
/// that cannot be taken back, for the next would only take as long to fail.
fn take_back(client: &PortsClient<'_>, made: &[Published]) -> Result<(), (PublishSpec, AskError)> {
    for spec in bound_as(made) {
        match client.unpublish(&spec.to_string()) {
            Ok(_) => {}
            // Somebody has been quicker.
            Err(AskError::Refused { code, .. }) if code == "not_published" && spec.sandbox.count() == 1 => {}
            Err(why) => return Err((spec, why)),
        }
    }
    Ok(())
}

/// Specs that name these sockets and no others; one for each run of ports.
fn bound_as(made: &[Published]) -> Vec<PublishSpec> {
    let mut made: Vec<&Published> = made.iter().collect();
    made.sort_by_key(|one| (one.protocol, one.host));
    let mut specs: Vec<PublishSpec> = Vec::new();
    for one in made {
        let (address, outer, inner) = (Some(one.host.ip()), one.host.port(), one.sandbox_port);
        if let Some(last) = specs.last_mut()
            && let Some(host) = &mut last.host
            && (last.protocol, last.address) == (one.protocol, address)
            && (host.last.checked_add(1), last.sandbox.last.checked_add(1)) == (Some(outer), Some(inner))
        {
            (host.last, last.sandbox.last) = (outer, inner);
            continue;
        }
        specs.push(PublishSpec {
            text: String::new(),
            address,
            host: Some(PortRange { first: outer, last: outer }),
            sandbox: PortRange { first: inner, last: inner },
            protocol: one.protocol,
            proxy: None,
            manner: Default::default(),
        });
    }
    specs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::state::StateDir;
    use crate::plan::{Origin, Protocol};
    use std::fs::{self, DirBuilder};
    use std::io::{Read, Write};
    use std::os::unix::fs::DirBuilderExt;

    const ID: &str = "0123456789ab";

    fn published(host: &str, sandbox_port: u16, protocol: Protocol, spec: &str) -> Published {
        Published {
            sandbox: ID.into(),
            protocol,
            host: host.parse().unwrap(),
            dual_stack: host.starts_with("[::]"),
            sandbox_port,
            sandbox_address: None,
            device: 0,
            proxy: None,
            from: Vec::new(),
            spec: spec.into(),
            origin: Origin::Api,
        }
    }

    /// Publishes these specs at a gateway that gives these answers and then leaves, or to a request with an empty one
    /// gives none. What came of it, and the first lines of the requests.
    fn publish(name: &str, specs: &[&str], answers: &[(u16, String)]) -> (Result<Vec<Published>, String>, Vec<String>) {
        let root = std::env::temp_dir().join(format!("tapline-publish-{}-{name}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&root).unwrap();
        let states = StateDir::at(Some(root.clone()), root.join("fallback"), 42).unwrap();
        let held = states.register(ID, "web").unwrap();
        let listener = held.bind_api().unwrap();
        let specs: Vec<PublishSpec> = specs.iter().map(|spec| PublishSpec::parse(spec).unwrap()).collect();
        let (result, requests) = std::thread::scope(|scope| {
            let gateway = scope.spawn(move || {
                let mut requests = Vec::new();
                for (status, body) in answers {
                    let (mut stream, _) = listener.accept().unwrap();
                    let (mut request, mut byte) = (Vec::new(), [0]);
                    let is_whole = |request: &[u8]| match request.starts_with(b"POST") {
                        true => request.ends_with(b"]}"),
                        false => request.ends_with(b"\r\n\r\n"),
                    };
                    while !is_whole(&request) && stream.read(&mut byte).unwrap() == 1 {
                        request.push(byte[0]);
                    }
                    if request.is_empty() {
                        break;
                    }
                    requests.push(String::from_utf8(request).unwrap().lines().next().unwrap().to_owned());
                    if *status != 0 {
                        let length = body.len();
                        write!(stream, "HTTP/1.1 {status} x\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
                    }
                }
                requests
            });
            let result = publish_all(&PortsClient { states: &states, id: ID }, &specs, &[]);
            // A gateway that waits for more waits no longer.
            drop(states.connect_api(ID));
            (result.map_err(|error| error.to_string()), gateway.join().unwrap())
        });
        drop(held);
        fs::remove_dir_all(&root).unwrap();
        (result, requests)
    }

    fn ports(ports: &[Published]) -> String {
        serde_json::json!({ "ports": ports }).to_string()
    }

    fn error(code: &str, message: &str) -> String {
        serde_json::json!({ "code": code, "message": message }).to_string()
    }

    #[test]
    fn when_one_cannot_be_had_those_before_it_are_taken_back_by_their_place() {
        let free = published("[::]:49153", 80, Protocol::Tcp, "80");
        let udp = published("127.0.0.1:53", 53, Protocol::Udp, "127.0.0.1:53:53/udp");
        let (result, requests) = publish(
            "taken",
            &["80", "127.0.0.1:53:53/udp", "8080:80"],
            &[
                (201, ports(std::slice::from_ref(&free))),
                (201, ports(std::slice::from_ref(&udp))),
                (409, error("taken", "nginx has it")),
                // Somebody has taken it back already.
                (404, error("not_published", "it is not published")),
                (200, ports(&[udp])),
            ],
        );
        assert_eq!(result.unwrap_err(), "nginx has it");
        let path = format!("/v1/sandboxes/{ID}/ports");
        let post = format!("POST {path} HTTP/1.1");
        assert_eq!(requests[..3], [&post[..], &post, &post]);
        assert_eq!(requests[3], format!("DELETE {path}?spec=%5B%3A%3A%5D%3A49153%3A80 HTTP/1.1"));
        assert_eq!(requests[4], format!("DELETE {path}?spec=127%2E0%2E0%2E1%3A53%3A53%2Fudp HTTP/1.1"));
    }

    #[test]
    fn the_first_failure_is_told_when_taking_back_fails_as_well() {
        let free = published("[::]:49153", 80, Protocol::Tcp, "80");
        let answers = [(201, ports(&[free])), (0, String::new())];
        let (result, requests) = publish("broken", &["80", "8080:80"], &answers);
        let error = result.unwrap_err();
        assert!(error.starts_with("cannot speak with the sandbox's gateway: "), "{error}");
        assert!(error.contains("may stay: [::]:49153:80 cannot be taken back: "), "{error}");
        assert_eq!(requests.len(), 2);
    }

    #[test]
    fn sockets_in_a_row_are_named_by_one_spec() {
        let made = [
            published("127.0.0.1:8001", 81, Protocol::Tcp, "x"),
            published("127.0.0.1:8000", 80, Protocol::Tcp, "x"),
            published("127.0.0.1:8002", 80, Protocol::Tcp, "x"),
            published("127.0.0.1:8003", 81, Protocol::Udp, "x"),
            published("[::1]:8003", 81, Protocol::Tcp, "x"),
            published("127.0.0.1:65535", 65535, Protocol::Tcp, "x"),
            published("127.0.0.2:1", 1, Protocol::Tcp, "x"),
        ];
        let specs: Vec<String> = bound_as(&made).iter().map(PublishSpec::to_string).collect();
        assert_eq!(
            specs,
            [
                "127.0.0.1:8000-8001:80-81",
                "127.0.0.1:8002:80",
                "127.0.0.1:65535:65535",
                "127.0.0.2:1:1",
                "[::1]:8003:81",
                "127.0.0.1:8003:81/udp",
            ]
        );
        for spec in &specs {
            assert!(PublishSpec::parse(spec).is_ok(), "{spec}");
        }
    }
}
