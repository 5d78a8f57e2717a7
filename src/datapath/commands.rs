//! What the control thread and a worker say to each other.
//!
//! # Theory of operation
//!
//! A worker never waits for anything but its own event loop, and the control thread never touches a frame. They
//! exchange typed messages, in both directions without a lock that either could hold for long:
//!
//! - control to worker: [`Command`]s over an unbounded std channel, with a [`mio::Waker`] registered in the
//!   worker's poll. [`CommandSender::send`] puts the command in and wakes; the worker drains its
//!   [`CommandReceiver`] whenever the waker's token is ready. What can be in that channel is bounded by those who
//!   send: the attach connection (as many ports as the supervisor has descriptors for), the host watch (rare), DNS
//!   answers (never more than the forwarder's bound of queries in flight), and the API (one command at a time for
//!   each of its connections).
//! - worker to control: [`Event`]s over a bounded tokio channel of [`EVENT_CAPACITY`] entries, filled with
//!   `try_send`. When it is full the worker goes on: a DNS query is counted as
//!   [`DnsOverload`](crate::gateway::counters::DropReason::DnsOverload), and whoever asked asks again. Of several
//!   sandboxes each has an eighth of the entries for its questions ([`Turn`]), so that one that asks without end takes
//!   nobody else's.
//!
//! A command that wants an answer carries a one-shot sender. A worker that is asked to stop closes what is left and returns
//! from its loop; a worker whose senders are all gone stops too. A sender whose worker has ended gets
//! [`WorkerGone`].
use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::gateway::counters::{Counters, DropReason};
use crate::gateway::link::{Asker, PortId};
use crate::plan::{Endpoint, HostView, LinkKind, Network, Published, PublishedKey, Reached};
use crate::publish;

/// Entries of the channel from a worker to the control thread.
pub const EVENT_CAPACITY: usize = 1024;

/// From the control thread to a worker.
#[derive(Debug)]
pub enum Command {
    /// Carry frames for this endpoint from now on. A private gateway's worker gets this once.
    AttachPort {
        /// The sandbox's place on the network.
        endpoint: Box<Endpoint>,
        /// What `fd` is; the control thread has checked that it is one.
        link: LinkKind,
        /// The TAP queue, or the packet socket whose ring is not yet made, where there is a link. Already non-blocking.
        fd: Option<OwnedFd>,
        /// Where every frame is written down.
        capture: Option<File>,
        /// The network to serve.
        network: Box<Network>,
        /// The host as it is now.
        host: HostView,
        /// The endpoint's port, when frames are carried now; or one sentence that says why not.
        reply: oneshot::Sender<Result<PortId, String>>,
    },
    /// The sandbox with this id has ended: close its flows (host sockets with a reset) and its link.
    DetachPort {
        /// The endpoint's id.
        id: String,
        /// Answered when everything is closed.
        reply: oneshot::Sender<()>,
    },
    /// Ask this agent for sockets inside the sandbox from now on (see [`publish::inside`](crate::publish::inside)).
    Inside {
        /// The endpoint's id.
        id: String,
        /// A non-blocking SOCK_SEQPACKET connection to the agent.
        agent: OwnedFd,
    },
    /// Serve these published ports. All or none.
    Publish {
        /// Each with its socket, checked and non-blocking.
        ports: Vec<(Published, OwnedFd)>,
        /// `Err` is one sentence.
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// Close these ports' sockets; what is connected stays so.
    Unpublish {
        /// Which; unknown ones are passed over.
        ports: Vec<PublishedKey>,
        /// Answered when they are closed.
        reply: oneshot::Sender<()>,
    },
    /// Serve these listeners inside a sandbox, which lead to the host's loopback.
    Reach {
        /// The endpoint's id.
        id: String,
        /// Each with its socket, checked and non-blocking.
        reached: Vec<(Reached, OwnedFd)>,
    },
    /// Close these listeners inside a sandbox; what is connected stays so.
    Unreach {
        /// The endpoint's id.
        id: String,
        /// Which; unknown ones are passed over.
        reached: Vec<Reached>,
        /// Answered when they are closed.
        reply: oneshot::Sender<()>,
    },
    /// Describe some of the flows: a page costs little, whatever the number of flows, so that no frame waits. It may
    /// have fewer than were asked for, even when more follow.
    Flows {
        /// Where the last page ended; 0 for the first.
        cursor: u64,
        /// Most flows in the answer.
        limit: usize,
        /// Where to.
        reply: oneshot::Sender<FlowPage>,
    },
    /// The host's addresses or resolvers changed: new flows use them.
    HostChanged(HostView),
    /// The subnets of all other networks of this gateway: nothing leads there through the host.
    Foreign(Vec<IpNet>),
    /// Nobody is on the network any more: close what is left and end the thread.
    Stop,
    /// The answer to an [`Event::DnsQuery`], to be sent to its asker from the DNS address, port 53.
    DnsAnswer {
        /// As it came with the query.
        asker: Asker,
        /// The DNS message.
        message: Vec<u8>,
    },
    /// Copy the counters.
    Snapshot {
        /// Where to.
        reply: oneshot::Sender<Snapshot>,
    },
}

/// One of the places that a sandbox's questions have in the channel to the control thread: they are counted by their
/// references.
pub type Turn = Arc<()>;

/// From a worker to the control thread.
#[derive(Debug)]
pub enum Event {
    /// A sandbox asked for a name over UDP.
    DnsQuery {
        /// Comes back with the answer.
        asker: Asker,
        /// The DNS message as it came.
        message: Vec<u8>,
        /// Dropped when the question has been taken up.
        turn: Turn,
    },
    /// A sandbox opened a TCP connection to the DNS address: the far end of a socket pair that carries
    /// DNS over TCP (two bytes of length, then the message; RFC 7766).
    DnsStream {
        /// Who asks.
        asker: Asker,
        /// The forwarder's end.
        stream: UnixStream,
        /// Dropped when it has been taken up.
        turn: Turn,
    },
    /// One sentence that the person should read once.
    Notice(String),
    /// A link has failed for good (its namespace is gone, its interface was deleted); its flows are closed.
    PortClosed {
        /// The endpoint's id.
        id: String,
        /// What happened, in one sentence.
        reason: String,
    },
}

/// How a flow came to be, and which way its bytes take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowKind {
    /// The sandbox began it.
    Out,
    /// A client of a published port, through the link, with its own address.
    Published,
    /// A client on the host's loopback, past the link.
    Spliced,
    /// The sandbox, to a port of the host's loopback (`--reach`).
    Reach,
}

/// One flow, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowInfo {
    /// `tcp`, `udp` or `icmp`.
    pub protocol: String,
    /// How it came to be.
    pub kind: FlowKind,
    /// The sandbox's id.
    pub sandbox: String,
    /// The sandbox's address and port.
    pub inside: SocketAddr,
    /// The other side, as the sandbox names it; for `spliced` and `reach` the host's side. `None` where there are
    /// several.
    pub outside: Option<SocketAddr>,
    /// `connecting`, `open`, `closing`.
    pub state: String,
}

/// Some of the flows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowPage {
    /// They.
    pub flows: Vec<FlowInfo>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<u64>,
}

/// The counters of a worker's network at one moment, as the API shows them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Frames that came from sandboxes.
    pub frames_in: u64,
    /// Bytes of those frames, Ethernet header included.
    pub bytes_in: u64,
    /// Frames sent to sandboxes.
    pub frames_out: u64,
    /// Bytes of those.
    pub bytes_out: u64,
    /// TCP flows begun since the start.
    pub tcp_flows_total: u64,
    /// UDP flows begun since the start.
    pub udp_flows_total: u64,
    /// DNS queries taken.
    pub dns_queries: u64,
    /// TCP flows now.
    pub tcp_flows: u64,
    /// UDP flows now.
    pub udp_flows: u64,
    /// Ping flows now.
    pub echo_flows: u64,
    /// Published ports and `--reach`.
    #[serde(default)]
    pub published: publish::Stats,
    /// Frames dropped since the start, by reason; every reason is there, most are zero.
    pub dropped: BTreeMap<String, u64>,
}

impl Snapshot {
    /// The counters, and the numbers of TCP, UDP and ping flows as
    /// [`Gateway::flows`](crate::gateway::Gateway::flows) gives them.
    pub fn new(counters: &Counters, flows: (usize, usize, usize), published: publish::Stats) -> Snapshot {
        Snapshot {
            published,
            frames_in: counters.frames_in,
            bytes_in: counters.bytes_in,
            frames_out: counters.frames_out,
            bytes_out: counters.bytes_out,
            tcp_flows_total: counters.tcp_flows,
            udp_flows_total: counters.udp_flows,
            dns_queries: counters.dns_queries,
            tcp_flows: flows.0 as u64,
            udp_flows: flows.1 as u64,
            echo_flows: flows.2 as u64,
            dropped: DropReason::ALL.iter().map(|&r| (r.label().to_owned(), counters.dropped(r))).collect(),
        }
    }
}

/// The worker's thread has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the gateway's worker thread has ended")]
pub struct WorkerGone;

/// Sends commands to a worker and wakes it.
#[derive(Clone, Debug)]
pub struct CommandSender {
    commands: mpsc::Sender<Command>,
    waker: Arc<mio::Waker>,
}

/// The worker's end: `try_recv` until it is empty whenever the waker's token is ready.
pub type CommandReceiver = mpsc::Receiver<Command>;

impl CommandSender {
    /// A channel to the worker whose poll `waker` is registered with.
    pub fn new(waker: mio::Waker) -> (CommandSender, CommandReceiver) {
        let (commands, receiver) = mpsc::channel();
        (CommandSender { commands, waker: Arc::new(waker) }, receiver)
    }

    /// Hand over a command and wake the worker.
    pub fn send(&self, command: Command) -> Result<(), WorkerGone> {
        self.commands.send(command).map_err(|_| WorkerGone)?;
        // Writing to an eventfd fails only when its counter is full, and then the worker is awake already.
        let _ = self.waker.wake();
        Ok(())
    }

    /// Ask for the counters and wait for them.
    pub async fn snapshot(&self) -> Result<Snapshot, WorkerGone> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Snapshot { reply })?;
        answer.await.map_err(|_| WorkerGone)
    }

    /// Ask for some of the flows and wait for them.
    pub async fn flows(&self, cursor: u64, limit: usize) -> Result<FlowPage, WorkerGone> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Flows { cursor, limit, reply })?;
        answer.await.map_err(|_| WorkerGone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_wakes_the_worker_and_arrives() {
        let mut poll = mio::Poll::new().unwrap();
        let (sender, receiver) = CommandSender::new(mio::Waker::new(poll.registry(), mio::Token(7)).unwrap());
        sender.send(Command::HostChanged(HostView::default())).unwrap();
        let mut events = mio::Events::with_capacity(4);
        poll.poll(&mut events, Some(std::time::Duration::from_secs(5))).unwrap();
        assert_eq!(events.iter().next().map(|e| e.token()), Some(mio::Token(7)));
        assert!(matches!(receiver.try_recv(), Ok(Command::HostChanged(_))));
        drop(receiver);
        assert_eq!(sender.send(Command::HostChanged(HostView::default())), Err(WorkerGone));
    }

    #[test]
    fn a_snapshot_names_every_reason() {
        let mut counters = Counters::default();
        counters.drop(DropReason::Spoofed);
        let snapshot = Snapshot::new(&counters, (1, 2, 3), publish::Stats::default());
        assert_eq!(snapshot.dropped.len(), DropReason::ALL.len());
        assert_eq!(snapshot.dropped["spoofed"], 1);
        assert_eq!((snapshot.tcp_flows, snapshot.udp_flows, snapshot.echo_flows), (1, 2, 3));
    }
}
