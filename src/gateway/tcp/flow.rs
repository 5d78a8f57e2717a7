//! One open TCP flow: a smoltcp socket on the sandbox's side, a stream on the host's.
//!
//! # Theory of operation
//!
//! A flow is a pump with two rings. Segments from the sandbox fill the receive ring, the pump empties it into
//! the host's socket; the pump fills the send ring from the host's socket, smoltcp turns it into segments.
//! Nothing waits: when the host's socket takes no more, the ring fills, the window closes and the sandbox's
//! kernel keeps the rest; when the sandbox's window is closed the send ring fills and the host's kernel does.
//!
//! | what happens | what is done |
//! | --- | --- |
//! | the sandbox's FIN, ring empty | `shutdown(SHUT_WR)` on the host |
//! | end of file from the host | `close()` of smoltcp's sending half: FIN behind the last byte |
//! | the sandbox's RST | the host's socket is closed with a reset |
//! | an error on the host's socket | `abort()`: RST to the sandbox |
//! | both FINs acknowledged | the flow ends; what TIME-WAIT needs is a small record in the table |
//!
//! A flow to a published port begins with [`OpenFlow::dial`]; nothing is moved before the sandbox has answered.
//!
//! Each call of [`OpenFlow::pump`] moves a bounded number of bytes, so that one busy flow does not starve the
//! others; it says when there is more.
//!
//! A sandbox that says nothing more, though something was sent to it, is given up after [`GIVE_UP`] as a kernel would; one
//! that goes on saying that it has no room is not, however long. Until then what the host has stays in its kernel, but
//! for one ring full; of whoever has too many of those ([`memory`](super::memory)) much less.
use std::net::SocketAddr;
use std::time::Duration;

use smoltcp::iface::{Interface, PollResult};
use smoltcp::socket::tcp::State;
use smoltcp::wire::IpAddress;

use super::RING_BYTES;
use super::device::{FlowDevice, Wire};
use super::memory::{LEAST, Touched};
use crate::gateway::counters::Counters;
use crate::gateway::link::Link;
use crate::sys::tcp_slot::TcpSlot;

/// Most bytes moved each way in one call of [`OpenFlow::pump`].
const BUDGET: usize = 1 << 20;

/// What a host stream had to say to a read or a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// So many bytes, at least one.
    Moved(usize),
    /// Not now; the flow is made dirty again when the stream is ready.
    Blocked,
    /// End of file (reading).
    Ended,
    /// The connection broke.
    Broken,
}

/// The host's side of a flow: a non-blocking byte stream.
pub trait HostStream {
    /// Take bytes for the far side.
    fn send(&mut self, data: &[u8]) -> Transfer;
    /// Give bytes from the far side.
    fn recv(&mut self, room: &mut [u8]) -> Transfer;
    /// No more bytes will be sent.
    fn shutdown_write(&mut self);
}

/// How a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both sides closed; the host's socket still delivers what it has.
    Closed,
    /// The sandbox reset it: the host's far side must see a reset.
    ResetBySandbox,
    /// The host's side broke; the sandbox was sent RST.
    ResetByHost,
}

/// What a call of [`OpenFlow::pump`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pumped {
    /// The flow is over.
    pub end: Option<End>,
    /// There is more to move: call again after others had their turn.
    pub more: bool,
    /// The link had no room: call again when it has.
    pub link_full: bool,
}

/// An open flow.
pub struct OpenFlow {
    /// The socket.
    pub slot: TcpSlot,
    /// How its packets look.
    pub wire: Wire,
    /// Behind the last byte that the sandbox sent, in order or not.
    pub highest_received: u32,
    /// Bytes moved either way.
    pub bytes: u64,
    /// The sandbox sent a RST that was accepted.
    pub reset_by_sandbox: bool,
    /// Sequence number of the first byte that was not given to the host yet.
    next_for_host: u32,
    /// Sequence number of the sandbox's FIN, once it has been taken in: no text is behind it.
    text_end: Option<u32>,
    /// The host's socket was told that no more will come.
    write_shut: bool,
    /// The host's side has no more bytes.
    read_ended: bool,
    broken: bool,
    /// The sandbox has not answered our SYN-ACK, or our SYN, yet.
    opening: bool,
    /// How often our FIN was repeated by hand.
    fin_repeats: u32,
    /// Since when the sandbox has owed us an acknowledgement, and said nothing.
    unanswered: Option<smoltcp::time::Instant>,
    touched: Touched,
    /// As how much of its sandbox's memory it is counted.
    pub counted: usize,
}

/// First wait before a FIN is repeated by hand; doubled each time, at most 64 times as long.
const FIN_REPEAT: Duration = Duration::from_secs(1);
/// How long the sandbox may leave our SYN-ACK or SYN unanswered. Its kernel answers at once; who does not at all must not
/// hold a connection of the host for ever.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the sandbox may leave what was sent to it unanswered, and say nothing else: what fifteen retransmissions take
/// Linux (tcp_retries2).
pub const GIVE_UP: Duration = Duration::from_secs(924);

impl OpenFlow {
    /// A flow around a socket that has just taken its SYN.
    pub fn new(mut slot: TcpSlot, wire: Wire, isn: u32) -> OpenFlow {
        slot.socket().set_timeout(Some(HANDSHAKE_TIMEOUT.into()));
        OpenFlow {
            slot,
            wire,
            highest_received: isn.wrapping_add(1),
            bytes: 0,
            reset_by_sandbox: false,
            next_for_host: isn.wrapping_add(1),
            text_end: None,
            write_shut: false,
            read_ended: false,
            broken: false,
            opening: true,
            fin_repeats: 0,
            unanswered: None,
            touched: Touched::new(isn.wrapping_add(1)),
            counted: 0,
        }
    }

    /// Connect to the sandbox at `to` in the name of `from`. An attempt that failed is forgotten.
    pub fn dial(&mut self, interface: &mut Interface, wire: Wire, from: SocketAddr, to: SocketAddr) {
        self.slot.renew();
        self.touched = Touched::default();
        self.wire = wire;
        self.highest_received = 0;
        let endpoint = |at: SocketAddr| (IpAddress::from(at.ip()), at.port());
        let socket = self.slot.socket();
        socket.set_timeout(Some(HANDSHAKE_TIMEOUT.into()));
        // It fails where a port is 0 or an address unspecified.
        self.broken |= socket.connect(interface.context(), endpoint(to), endpoint(from)).is_err();
    }

    /// The sandbox has answered our SYN; its first byte has this sequence number.
    pub fn answered(&mut self, first: u32) {
        self.wire.last_ack = first;
        self.highest_received = first;
        self.next_for_host = first;
        self.touched = Touched::new(first);
    }

    /// Move what can be moved, then say to the sandbox what is to be said. Where that is pressed for memory as little as
    /// possible is taken from the host.
    pub fn pump(
        &mut self,
        now: smoltcp::time::Instant,
        interface: &mut Interface,
        counters: &mut Counters,
        stream: &mut impl HostStream,
        link: &mut impl Link,
    ) -> Pumped {
        let mut more = self.push_to_host(stream);
        let most_queued = if self.wire.is_pressed { LEAST } else { RING_BYTES };
        more |= self.pull_from_host(now, interface, counters, stream, link, most_queued);
        self.give_up_silent(now);
        let link_full = self.transmit(now, interface, counters, link);
        if self.wire.is_pressed {
            self.trim();
        }
        // Behind `transmit`, which is where smoltcp sees that its time is up.
        if self.opening {
            self.handshake();
        }
        Pumped { end: self.end(), more, link_full }
    }

    /// A sandbox that has not said a word for too long, though it should have.
    fn give_up_silent(&mut self, now: smoltcp::time::Instant) {
        if self.slot.socket().send_queue() == 0 && !self.fin_waits() {
            self.unanswered = None;
            return;
        }
        let since = *self.unanswered.get_or_insert(now);
        if now >= since + GIVE_UP.into() && !self.broken {
            self.broken = true;
            self.slot.socket().abort();
        }
    }

    /// How much memory the rings have.
    pub fn memory(&self) -> usize {
        self.touched.bytes(self.highest_received, RING_BYTES)
    }

    /// How many bytes behind the given sequence number a sandbox that is pressed for memory may send.
    pub fn room_behind(&self, sequence: u32) -> usize {
        let end = self.next_for_host.wrapping_add(LEAST as u32);
        usize::try_from(end.wrapping_sub(sequence) as i32).unwrap_or(0)
    }

    /// Give back the pages that hold nothing any more.
    fn trim(&mut self) {
        let queued = self.slot.socket().send_queue();
        let in_use = self.highest_received.wrapping_sub(self.next_for_host) as usize + queued;
        // A page or two of each ring are not worth a system call.
        if self.memory() > in_use + 4 * LEAST {
            let parts = self.touched.in_use(self.next_for_host, self.highest_received, queued, RING_BYTES);
            self.slot.release_pages_except(parts);
            self.touched.trimmed(self.next_for_host, queued);
        }
    }

    /// Give back all pages: nothing is queued either way ([`is_quiet`](Self::is_quiet)).
    pub fn release_pages(&mut self) {
        self.slot.release_pages();
        self.touched.trimmed(self.highest_received, 0);
    }

    /// Has the handshake come to an end?
    fn handshake(&mut self) {
        let socket = self.slot.socket();
        match socket.state() {
            State::SynSent | State::SynReceived => {}
            // Timed out; or reset by the sandbox, which is looked at elsewhere.
            State::Closed | State::Listen => self.broken |= !self.reset_by_sandbox,
            State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait => {
                self.opening = false;
                socket.set_timeout(None);
            }
        }
    }

    /// Receive ring to host socket. Says whether the budget ended it.
    fn push_to_host(&mut self, stream: &mut impl HostStream) -> bool {
        let socket = self.slot.socket();
        let mut budget = BUDGET;
        while socket.can_recv() && !self.broken {
            // Text behind the FIN is ignored (RFC 9293, 3.10.7.4); smoltcp takes it in.
            let left = self.text_end.map_or(usize::MAX, |end| end.wrapping_sub(self.next_for_host) as usize);
            if left == 0 {
                match socket.recv(|data| (data.len(), data.len())) {
                    Ok(ignored @ 1..) => self.touched.read(ignored, RING_BYTES),
                    _ => break,
                }
                continue;
            }
            let mut outcome = Transfer::Blocked;
            // `recv` fails only before the handshake and after the end, when there is nothing to be moved.
            let _ = socket.recv(|data| {
                let data = &data[..data.len().min(left)];
                outcome = stream.send(data);
                match outcome {
                    Transfer::Moved(n) => (n.min(data.len()), ()),
                    _ => (0, ()),
                }
            });
            match outcome {
                Transfer::Moved(n) => {
                    self.bytes += n as u64;
                    self.next_for_host = self.next_for_host.wrapping_add(n as u32);
                    self.touched.read(n, RING_BYTES);
                    budget = budget.saturating_sub(n);
                    if budget == 0 {
                        return true;
                    }
                }
                Transfer::Blocked => break,
                Transfer::Ended | Transfer::Broken => self.broken = true,
            }
        }
        // Closed without a reset: our FIN was acknowledged after the sandbox's had come.
        let finished = match socket.state() {
            State::Closed => !self.reset_by_sandbox,
            state => is_half_closed(state),
        };
        if finished && socket.recv_queue() == 0 && !self.write_shut && !self.broken {
            self.write_shut = true;
            stream.shutdown_write();
        }
        false
    }

    /// Host socket to send ring, in which at most `most_queued` bytes wait, and segments out of it as they come. Says
    /// whether the budget ended it.
    #[allow(clippy::too_many_arguments)]
    fn pull_from_host(
        &mut self,
        now: smoltcp::time::Instant,
        interface: &mut Interface,
        counters: &mut Counters,
        stream: &mut impl HostStream,
        link: &mut impl Link,
        most_queued: usize,
    ) -> bool {
        let mut budget = BUDGET;
        while !self.read_ended && !self.broken && self.slot.socket().can_send() {
            let mut outcome = Transfer::Blocked;
            let queued = self.slot.socket().send_queue();
            // What is acknowledged makes room, and wakes the flow.
            if queued >= most_queued {
                break;
            }
            let _ = self.slot.socket().send(|room| {
                let most = room.len().min(most_queued - queued);
                let room = &mut room[..most];
                outcome = stream.recv(room);
                match outcome {
                    Transfer::Moved(n) => (n.min(room.len()), ()),
                    _ => (0, ()),
                }
            });
            match outcome {
                Transfer::Moved(n) => {
                    self.bytes += n as u64;
                    self.touched.wrote(n, queued);
                    self.transmit(now, interface, counters, link);
                    budget = budget.saturating_sub(n);
                    if budget == 0 {
                        return true;
                    }
                }
                Transfer::Blocked => break,
                Transfer::Ended => {
                    self.read_ended = true;
                    self.slot.socket().close();
                }
                Transfer::Broken => self.broken = true,
            }
        }
        if self.broken && !self.reset_by_sandbox {
            self.slot.socket().abort();
        }
        false
    }

    /// Say to the sandbox what is to be said: segments, acknowledgements, windows, FIN, RST. `true` when the
    /// link had no room for all of it.
    pub fn transmit(
        &mut self,
        now: smoltcp::time::Instant,
        interface: &mut Interface,
        counters: &mut Counters,
        link: &mut impl Link,
    ) -> bool {
        loop {
            if !link.has_room(self.wire.peer.port) {
                return true;
            }
            let mut device = FlowDevice { incoming: None, wire: &mut self.wire, counters, link };
            if interface.poll_egress(now, &mut device, self.slot.sockets()) == PollResult::None {
                return false;
            }
        }
    }

    /// Give smoltcp a packet of the sandbox. `end` is the sequence number behind its text.
    #[allow(clippy::too_many_arguments)]
    pub fn receive(
        &mut self,
        now: smoltcp::time::Instant,
        interface: &mut Interface,
        counters: &mut Counters,
        packet: &[u8],
        end: u32,
        link: &mut impl Link,
    ) {
        let mut device = FlowDevice { incoming: Some(packet), wire: &mut self.wire, counters, link };
        interface.poll_ingress_single(now, &mut device, self.slot.sockets());
        self.unanswered = None;
        if self.text_end.is_none() && is_half_closed(self.slot.socket().state()) {
            self.text_end = Some(end);
        }
    }

    /// Has the flow ended, and how?
    fn end(&mut self) -> Option<End> {
        let socket = self.slot.socket();
        match socket.state() {
            State::Closed if self.broken => socket.remote_endpoint().is_none().then_some(End::ResetByHost),
            // smoltcp goes back to Listen on a reset before the handshake's end.
            State::Closed | State::Listen if self.reset_by_sandbox => Some(End::ResetBySandbox),
            State::Closed | State::TimeWait if self.write_shut => Some(End::Closed),
            State::Closed
            | State::TimeWait
            | State::Listen
            | State::SynSent
            | State::SynReceived
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck => None,
        }
    }

    /// Has the sandbox not ended the handshake yet?
    pub fn is_opening(&self) -> bool {
        self.opening
    }

    /// Where the connection is, in one word.
    pub fn phase(&mut self) -> &'static str {
        match self.slot.socket().state() {
            State::Listen | State::SynSent | State::SynReceived => "connecting",
            State::Established => "open",
            State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait
            | State::Closed => "closing",
        }
    }

    /// Has the host's side everything that the sandbox sent, its end included?
    pub fn is_delivered(&self) -> bool {
        self.write_shut
    }

    /// When the flow wants to be pumped again, if nothing happens before.
    pub fn poll_at(
        &mut self,
        now: smoltcp::time::Instant,
        interface: &mut Interface,
    ) -> Option<smoltcp::time::Instant> {
        match interface.poll_at(now, self.slot.sockets()) {
            Some(at) => Some(at),
            None if self.fin_waits() => Some(now + (FIN_REPEAT * (1 << self.fin_repeats.min(6))).into()),
            None => None,
        }
    }

    /// Has smoltcp forgotten our FIN? It (0.14) never repeats one whose retransmission timer was replaced by a
    /// fast retransmit with nothing left to send.
    fn fin_waits(&mut self) -> bool {
        matches!(self.slot.socket().state(), State::FinWait1 | State::Closing | State::LastAck)
    }

    /// The time that [`poll_at`](Self::poll_at) gave has come and smoltcp has no timer running: the numbers of a
    /// FIN to be repeated (sequence, acknowledgement), where there is one.
    pub fn repeat_fin(&mut self, now: smoltcp::time::Instant, interface: &mut Interface) -> Option<(u32, u32)> {
        if !self.fin_waits() || interface.poll_at(now, self.slot.sockets()).is_some() {
            return None;
        }
        self.fin_repeats += 1;
        Some((self.wire.next_sequence?.wrapping_sub(1), self.wire.last_ack))
    }

    /// Is nothing queued either way, and does nothing wait for an earlier segment? Then the rings' pages can be
    /// given back.
    pub fn is_quiet(&mut self) -> bool {
        let all_in_order = self.wire.last_ack == self.highest_received;
        let socket = self.slot.socket();
        socket.state() != State::SynReceived && socket.recv_queue() == 0 && socket.send_queue() == 0 && all_in_order
    }
}

/// Has the sandbox's FIN been taken in?
fn is_half_closed(state: State) -> bool {
    match state {
        State::CloseWait | State::LastAck | State::Closing | State::TimeWait => true,
        State::Closed
        | State::Listen
        | State::SynSent
        | State::SynReceived
        | State::Established
        | State::FinWait1
        | State::FinWait2 => false,
    }
}
