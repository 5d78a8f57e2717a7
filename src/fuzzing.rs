//! What the fuzz targets (`fuzz/`) need of the inside. No part of the library's interface.
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::control::api::{self, ApiState, SandboxInfo};
use crate::control::messages::FromGateway;
use crate::datapath::commands::{Command, CommandSender, FlowPage, Snapshot};
use crate::datapath::port;
use crate::gateway::link::Offload;
use crate::names::Names;
use crate::plan::{Endpoint, HostView, MacAddr, Network, Outbound, PRIVATE};
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
        let both = async {
            let write = async {
                // It may be refused before all is written.
                let _ = writing.write_all(bytes).await;
                let _ = writing.shutdown().await;
            };
            // An error is an end as well.
            let read = async { drop(reading.read_to_end(&mut answered).await) };
            tokio::join!(write, read);
            served.await.expect("a connection is served without a panic");
        };
        timeout(Duration::from_secs(5), both).await.expect("a connection ends with its client");
        answered
    })
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
            b"GET /v1/counters HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/flows HTTP/1.1\r\nHost: x\r\n\r\n",
            b"DELETE /v1/sandboxes/web/ports?spec=80 HTTP/1.1\r\nHost: x\r\n\r\n",
        ] {
            super::http_api(bytes);
        }
    }
}
