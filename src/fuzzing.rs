//! What the fuzz targets (`fuzz/`) need of the inside. No part of the library's interface.
use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::cli;
use crate::compat::{oci, pasta, slirp4netns};
use crate::control::api::{self, ApiState, SandboxInfo};
use crate::control::gateway;
use crate::control::messages::FromGateway;
use crate::datapath::commands::{Command, CommandSender, FlowPage, Snapshot};
use crate::datapath::port;
use crate::gateway::link::Offload;
use crate::names::{Names, upstream};
use crate::plan::{Endpoint, HostView, Interface, MacAddr, Network, Outbound, PRIVATE};
use crate::sys::vnet::VnetHeader;

/// What a virtio-net header says of its frame of `length` bytes; `None` when it cannot be.
pub fn offload(header: &VnetHeader, length: usize) -> Option<Offload> {
    port::offload(header, length).ok()
}

/// The virtio-net header that says this.
pub fn header(offload: &Offload, length: usize) -> VnetHeader {
    port::header(offload, length)
}

/// Bytes of a connection to the API, with a worker and a supervisor that always answer. What was answered.
///
/// # Panics
/// When the connection does not end though its client has: that is what the target looks for.
pub fn http_api(bytes: &[u8]) -> Vec<u8> {
    let poll = mio::Poll::new().expect("an epoll");
    let waker = mio::Waker::new(poll.registry(), mio::Token(0)).expect("an eventfd");
    let (commands, worker) = CommandSender::new(waker);
    let info = sandbox(SANDBOX, "web");
    let state = ApiState::new(Names::default());
    state.handle_network_started(&info.network.name, commands);
    let (supervisor, mut said) = mpsc::channel(1);
    state.handle_attached(1, info, supervisor);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (mut client, stream) = tokio::io::duplex(1024);
        let served = tokio::spawn(api::serve_stream(stream, Arc::clone(&state)));
        let answering = Arc::clone(&state);
        tokio::spawn(async move {
            while let Some(message) = said.recv().await {
                if let FromGateway::WantPublish { request, .. } | FromGateway::WantUnpublish { request, .. } = message {
                    answering.handle_answer(SANDBOX, request, None);
                }
            }
        });
        tokio::spawn(async move {
            loop {
                match worker.try_recv() {
                    Ok(Command::Flows { reply, .. }) => drop(reply.send(FlowPage::default())),
                    Ok(Command::Snapshot { reply }) => drop(reply.send(Snapshot::default())),
                    Ok(_) | Err(_) => {}
                }
                tokio::task::yield_now().await;
            }
        });
        let mut answered = Vec::new();
        let (mut reading, mut writing) = tokio::io::split(&mut client);
        let write = async {
            // It may be refused before all is written.
            let _ = writing.write_all(bytes).await;
            let _ = writing.shutdown().await;
            std::future::pending().await
        };
        // What has come so far is the answer; has the connection ended?
        let read = async {
            let mut some = [0; 4096];
            loop {
                match timeout(QUIET, reading.read(&mut some)).await {
                    // An error is an end as well.
                    Ok(Ok(0) | Err(_)) => return true,
                    Ok(Ok(count)) => answered.extend_from_slice(&some[..count]),
                    // Behind `Connection: close` nothing more is read, so nobody notices that nothing more will come: a
                    // stream of events goes on to who has asked for it until its next line finds nobody.
                    Err(_) if answered.windows(HELLO.len()).any(|part| part == HELLO) => return false,
                    Err(_) => {}
                }
            }
        };
        let ended = async {
            tokio::select! {
                ended = read => ended,
                never = write => never,
            }
        };
        if timeout(PATIENCE, ended).await.expect("a connection ends with its client") {
            timeout(PATIENCE, served).await.expect("likewise").expect("a connection is served without a panic");
        }
        answered
    })
}

/// A connection that has said nothing for so long says nothing now.
const QUIET: Duration = Duration::from_millis(300);
/// A connection that has not ended by then will not end.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a stream of events begins with.
const HELLO: &[u8] = b"{\"event\":\"hello\"";

/// Bytes of a sandbox's connection to the DNS address, with no resolver to ask. What was answered.
///
/// # Panics
/// When the stream does not end though the sandbox has closed it.
pub fn dns_stream(bytes: &[u8]) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let names = Names::default();
        let endpoint = Endpoint { id: SANDBOX.into(), name: "web".into(), ..Endpoint::default() };
        let network =
            Network { local_names: vec![("host.tapline.internal".into(), [10, 0, 2, 2].into())], ..network() };
        let forwarder = names.forwarder(&network, &endpoint, &HostView::default());
        let (client, stream) = std::os::unix::net::UnixStream::pair().expect("two sockets");
        forwarder.handle_stream(stream);
        client.set_nonblocking(true).expect("a socket of ours");
        let (mut reading, mut writing) = tokio::net::UnixStream::from_std(client).expect("likewise").into_split();
        let mut answered = Vec::new();
        let both = async {
            let write = async {
                // What makes no sense ends the stream before all is written.
                let _ = writing.write_all(bytes).await;
                let _ = writing.shutdown().await;
            };
            let read = async { drop(reading.read_to_end(&mut answered).await) };
            tokio::join!(write, read);
        };
        timeout(PATIENCE, both).await.expect("a stream ends with its sandbox");
        answered
    })
}

/// A message on a stream, as a resolver sends it, however it is cut. `None` for one that is not whole.
pub fn dns_message(bytes: &[u8], cut: usize) -> Option<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let (first, second) = bytes.split_at(cut.min(bytes.len()));
    runtime.block_on(async { upstream::read_message(&mut first.chain(second)).await.ok().flatten() })
}

/// The words that a configuration file adds to those of a subcommand, or what is said of it.
pub fn config_file(text: &str, verb: &str) -> Result<Vec<OsString>, String> {
    cli::config::words_of(text, verb).map_err(|error| format!("{error:#}"))
}

/// The words that a container's annotations are for `attach`, or what is said of them.
pub fn annotations(state: &oci::State) -> Result<Option<Vec<OsString>>, String> {
    cli::oci_hook::words_of(state)
}

/// The network and the interface that the words of slirp4netns' command line mean.
pub fn slirp4netns(words: Vec<OsString>) -> Result<Option<(Network, Interface)>, String> {
    slirp4netns::network_of(words)
}

/// The same for pasta's.
pub fn pasta(words: Vec<OsString>) -> Result<(Network, Interface), String> {
    pasta::fuzzing::network_of(words)
}

/// Would a gateway take this network?
pub fn check_network(network: &Network, endpoint: &Endpoint) -> Result<(), String> {
    gateway::sense::check_network(network, endpoint)
}

const SANDBOX: &str = "0123456789ab";

/// A network that a sandbox has for itself, without an address.
pub(crate) fn network() -> Network {
    Network {
        name: PRIVATE.into(),
        sharing: None,
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
        behaviour: Default::default(),
    }
}

/// A sandbox as the API shows it.
pub(crate) fn sandbox(id: &str, name: &str) -> SandboxInfo {
    let mac = MacAddr([2, 0, 0, 0, 0, 2]);
    let endpoint = Endpoint { id: id.into(), name: name.into(), ifname: "tap0".into(), mac, ..Endpoint::default() };
    SandboxInfo::new(endpoint, network(), HostView::default())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_connection_to_the_api_ends_with_its_client() {
        for bytes in [
            &b""[..],
            b"GET /v1/eve",
            b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\nGET /",
            b"GET /v1/counters HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/flows HTTP/1.1\r\nHost: x\r\n\r\n",
            b"DELETE /v1/sandboxes/web/ports?spec=80 HTTP/1.1\r\nHost: x\r\n\r\n",
        ] {
            super::http_api(bytes);
        }
    }
}
