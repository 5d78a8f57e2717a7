//! One connection past the link: two sockets, and bytes both ways.
//!
//! # Theory of operation
//!
//! A connection has two [`Side`]s and two ways between them. A way takes bytes in from its source and delivers
//! them to its destination; it takes in nothing while it holds something. Few bytes are copied, recv(2) and
//! send(2), which is the fewest calls for a question and its answer. When a copy fills the buffer there is more,
//! and the way is in bulk: splice(2) through a pipe that it has from the [pool](super::pipes) until it has
//! delivered all and the source is empty. A way that moved little in bulk goes back to copying.
//!
//! Readiness is edge-triggered and remembered in flags, as in [`host::tcp`](crate::host::tcp). A pipe is always
//! empty before it is filled, so that EAGAIN means an empty socket and never a full pipe. Room to write is watched
//! from the first time on that there was none.
//!
//! At an urgent byte splice(2) answers EAGAIN, or 0 as at the end of the stream, although there is more. EPOLLPRI
//! tells of urgent data, and then, and before an end is believed, recv(2) is asked: SO_OOBINLINE makes it read on.
//!
//! | what happens | what follows |
//! | --- | --- |
//! | end of stream on one side | when all before it is delivered, shutdown(2) for writing on the other |
//! | end of stream on both, all delivered | both are closed, and the kernel delivers what it has |
//! | a side is reset, or will take no more | what can still be read of it is passed on; the other side is reset |
//!
//! Every socket has SO_LINGER {1, 0} from the start, so that a gateway that is killed leaves resets and no clean
//! ends; it is taken off only when both ways have ended.
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use socket2::Socket;

use super::pipes::{Pipe, PipePool};
use crate::sys::splice::splice;

/// Bytes copied at once; more are spliced.
const COPY_BYTES: usize = 32 * 1024;
/// Bytes taken into a pipe at once. A pipe takes fewer when they are in small pieces.
const SPLICE_BYTES: usize = 1 << 20;
/// Bytes that one way may take in before others have their turn.
pub const WAY_BUDGET: usize = 2 << 20;

/// What is shared by all connections of a worker.
pub struct Tools {
    /// The pipes.
    pub pipes: PipePool,
    buffer: Box<[u8]>,
}

impl Tools {
    /// Everything that is needed.
    pub fn new() -> Tools {
        Tools { pipes: PipePool::new(), buffer: vec![0; COPY_BYTES].into_boxed_slice() }
    }
}

impl Default for Tools {
    fn default() -> Tools {
        Tools::new()
    }
}

/// Options that every socket of ours has: no delay, urgent data in its place, and a reset should we be killed. A
/// listener hands them on to what it accepts.
pub fn set_options(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_out_of_band_inline(true)?;
    socket.set_linger(Some(Duration::ZERO))
}

/// One of the two sockets.
pub struct Side {
    socket: Socket,
    token: Token,
    readable: bool,
    writable: bool,
    /// Urgent data may be in the stream.
    urgent: bool,
    /// The far side has ended its stream, or all of it.
    far_side_closed: bool,
    /// The kernel has an error to tell.
    failed: bool,
    /// Events for writing are asked for.
    write_watched: bool,
}

impl Side {
    /// A connected socket, which is watched from now on. With `try_at_once` it is read without an event.
    pub fn new(registry: &Registry, socket: Socket, token: Token, try_at_once: bool) -> io::Result<Side> {
        registry.register(&mut SourceFd(&socket.as_raw_fd()), token, READING)?;
        Ok(Side::watched(socket, token, try_at_once, false))
    }

    /// A connected socket that was watched for reading and writing already.
    pub fn watched_both_ways(socket: Socket, token: Token) -> Side {
        Side::watched(socket, token, true, true)
    }

    fn watched(socket: Socket, token: Token, readable: bool, write_watched: bool) -> Side {
        Side {
            socket,
            token,
            readable,
            writable: true,
            urgent: false,
            far_side_closed: false,
            failed: false,
            write_watched,
        }
    }

    fn handle_event(&mut self, event: &Event) {
        self.readable |= event.is_readable() || event.is_read_closed() || event.is_error() || event.is_priority();
        self.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
        self.urgent |= event.is_priority();
        self.far_side_closed |= event.is_read_closed() || event.is_error();
        self.failed |= event.is_error();
    }

    /// Has the connection broken? An event may also have been meant for an earlier socket.
    fn has_broken(&mut self) -> bool {
        std::mem::take(&mut self.failed) && !matches!(self.socket.take_error(), Ok(None))
    }

    /// Copy what is there, at most a buffer full. 0 is the end of the stream.
    fn recv(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = retry(|| self.socket.read(buffer));
        match &result {
            // Fewer than there was room for: it is empty now, except before an urgent byte or the end.
            Ok(received) => {
                self.readable = *received == buffer.len() || self.urgent || self.far_side_closed;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => (self.readable, self.urgent) = (false, false),
            Err(_) => {}
        }
        result
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = retry(|| self.socket.send_with_flags(bytes, libc::MSG_NOSIGNAL));
        match result {
            Ok(sent) => {
                self.writable = sent == bytes.len();
                Ok(sent)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.writable = false;
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    /// There was no room: hear of it when there is.
    fn watch_writing(&mut self, registry: &Registry) {
        if !self.writable && !self.write_watched {
            // Registering again reports what is ready already, so room that came meanwhile is not missed.
            let interest = READING.add(Interest::WRITABLE);
            let fd = self.socket.as_raw_fd();
            self.write_watched = registry.reregister(&mut SourceFd(&fd), self.token, interest).is_ok();
        }
    }
}

/// What is watched of a socket that is only read.
pub const READING: Interest = Interest::READABLE.add(Interest::PRIORITY);

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Bytes that a way has taken in and not delivered.
enum Hold {
    Nothing,
    Pipe(Pipe, usize),
    Text(Box<[u8]>, usize),
}

/// One way.
struct Way {
    hold: Hold,
    /// There was more than a copy takes.
    bulk: bool,
    /// Bytes taken in since the source was empty.
    burst: usize,
    /// The source has ended.
    source_ended: bool,
    /// And all of it is delivered.
    done: bool,
}

/// Why a way stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// The source is empty, or the destination is full: an event will tell.
    Wait,
    /// The budget is used up.
    Budget,
    /// All is delivered, the end too.
    Done,
}

impl Way {
    fn new(first: Vec<u8>) -> Way {
        let hold = if first.is_empty() { Hold::Nothing } else { Hold::Text(first.into_boxed_slice(), 0) };
        Way { hold, bulk: false, burst: 0, source_ended: false, done: false }
    }

    /// Move what can be moved; `moved` counts what was delivered.
    fn run(&mut self, from: &mut Side, to: &mut Side, tools: &mut Tools, moved: &mut u64) -> io::Result<Stop> {
        if self.done {
            return Ok(Stop::Done);
        }
        let mut taken = 0;
        let stop = loop {
            if !self.deliver(to, moved)? {
                break Stop::Wait;
            }
            if self.source_ended {
                self.done = true;
                break Stop::Done;
            }
            if taken >= WAY_BUDGET {
                break Stop::Budget;
            }
            if !from.readable {
                self.burst = 0;
                break Stop::Wait;
            }
            let more = match self.bulk {
                true => self.fill(from, tools)?,
                false => self.copy(from, to, tools, moved)?,
            };
            taken += more;
            self.burst += more;
        };
        self.rest(&mut tools.pipes);
        Ok(stop)
    }

    /// Take in and deliver a few bytes.
    fn copy(&mut self, from: &mut Side, to: &mut Side, tools: &mut Tools, moved: &mut u64) -> io::Result<usize> {
        let received = match from.recv(&mut tools.buffer) {
            Ok(0) => {
                self.source_ended = true;
                return Ok(0);
            }
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(error) => return Err(error),
        };
        let bytes = &tools.buffer[..received];
        let sent = to.send(bytes)?;
        *moved += sent as u64;
        if sent < received {
            self.rest(&mut tools.pipes);
            self.hold = Hold::Text(bytes[sent..].into(), 0);
        }
        // Spliced from here on, if there are pipes.
        self.bulk = received == tools.buffer.len() && !from.urgent;
        Ok(received)
    }

    /// Take bytes into an empty pipe.
    fn fill(&mut self, from: &mut Side, tools: &mut Tools) -> io::Result<usize> {
        if matches!(self.hold, Hold::Nothing) {
            match tools.pipes.take() {
                Some(pipe) => self.hold = Hold::Pipe(pipe, 0),
                None => {
                    self.bulk = false;
                    return Ok(0);
                }
            }
        }
        let Hold::Pipe(pipe, bytes) = &mut self.hold else { return Ok(0) };
        match retry(|| splice(from.socket.as_fd(), pipe.writer(), SPLICE_BYTES)) {
            // Perhaps the end, perhaps an urgent byte: recv(2) knows.
            Ok(0) => self.bulk = false,
            Ok(taken) => {
                *bytes = taken;
                return Ok(taken);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                from.readable = from.urgent;
                self.bulk = self.burst > COPY_BYTES && !from.urgent;
            }
            Err(error) => return Err(error),
        }
        Ok(0)
    }

    /// Deliver what is held; `true` when all of it was.
    fn deliver(&mut self, to: &mut Side, moved: &mut u64) -> io::Result<bool> {
        match &mut self.hold {
            Hold::Nothing => return Ok(true),
            Hold::Pipe(_, 0) => return Ok(true),
            _ if !to.writable => return Ok(false),
            Hold::Pipe(pipe, bytes) => {
                while *bytes > 0 {
                    match retry(|| splice(pipe.reader(), to.socket.as_fd(), *bytes)) {
                        Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                        Ok(delivered) => {
                            *bytes -= delivered;
                            *moved += delivered as u64;
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            to.writable = false;
                            return Ok(false);
                        }
                        Err(error) => return Err(error),
                    }
                }
                return Ok(true);
            }
            Hold::Text(text, at) => {
                let sent = to.send(&text[*at..])?;
                *at += sent;
                *moved += sent as u64;
                if *at < text.len() {
                    return Ok(false);
                }
            }
        }
        self.hold = Hold::Nothing;
        Ok(true)
    }

    /// Give an empty pipe back.
    fn rest(&mut self, pipes: &mut PipePool) {
        if matches!(self.hold, Hold::Pipe(_, 0))
            && let Hold::Pipe(pipe, _) = std::mem::replace(&mut self.hold, Hold::Nothing)
        {
            pipes.give(pipe);
        }
    }

    /// Forget what is held.
    fn forget(&mut self, pipes: &mut PipePool) {
        self.rest(pipes);
        if let Hold::Pipe(pipe, _) = std::mem::replace(&mut self.hold, Hold::Nothing) {
            pipes.discard(pipe);
        }
    }
}

/// Both sockets. Side 0 was accepted, side 1 connected; way 0 begins at side 0, way 1 at side 1.
pub struct Spliced {
    sides: [Side; 2],
    ways: [Way; 2],
}

/// What is to be done with a connection now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing until there is an event.
    Wait,
    /// Visit it again soon.
    Again,
    /// Both ways have ended: close it.
    Close,
    /// It has broken: reset it.
    Reset,
}

impl Spliced {
    /// Two connected sockets; `first` goes to side 1 before anything else.
    pub fn new(accepted: Side, connected: Side, first: Vec<u8>) -> Spliced {
        Spliced { sides: [accepted, connected], ways: [Way::new(first), Way::new(Vec::new())] }
    }

    /// A side is ready.
    pub fn handle_event(&mut self, side: usize, event: &Event) {
        self.sides[side].handle_event(event);
    }

    /// Move bytes both ways within budgets; `moved` counts what each way delivered.
    pub fn pump(&mut self, registry: &Registry, tools: &mut Tools, moved: &mut [u64; 2]) -> Next {
        let [a, b] = &mut self.sides;
        let [there, back] = &mut self.ways;
        let broken = [a.has_broken(), b.has_broken()];
        if broken != [false, false] {
            // Who is reset may still read what came before, so it is passed on; then the reset follows.
            if broken[0] {
                let _ = there.run(a, b, tools, &mut moved[0]);
            }
            if broken[1] {
                let _ = back.run(b, a, tools, &mut moved[1]);
            }
            return Next::Reset;
        }
        let were_done = [there.done, back.done];
        let stops = (there.run(a, b, tools, &mut moved[0]), back.run(b, a, tools, &mut moved[1]));
        let (Ok(first), Ok(second)) = stops else { return Next::Reset };
        if there.done && back.done {
            return Next::Close;
        }
        // It fails only when the connection is broken already, which an event tells.
        if there.done && !were_done[0] {
            let _ = b.socket.shutdown(Shutdown::Write);
        }
        if back.done && !were_done[1] {
            let _ = a.socket.shutdown(Shutdown::Write);
        }
        a.watch_writing(registry);
        b.watch_writing(registry);
        if first == Stop::Budget || second == Stop::Budget { Next::Again } else { Next::Wait }
    }

    /// Is everything from this side delivered to the other, its end too?
    pub fn is_delivered(&self, from: usize) -> bool {
        self.ways[from].done
    }

    /// Has either side ended its stream?
    pub fn is_closing(&self) -> bool {
        self.ways.iter().any(|way| way.source_ended)
    }

    /// Close both sockets. A side that `cleanly` names is left to the kernel, which delivers what it has; the other
    /// is reset.
    pub fn close(mut self, cleanly: [bool; 2], pipes: &mut PipePool) {
        for way in &mut self.ways {
            way.forget(pipes);
        }
        for (side, clean) in self.sides.iter().zip(cleanly) {
            if clean {
                // It cannot fail on a socket that let it be set.
                let _ = side.socket.set_linger(None);
            }
        }
    }
}
