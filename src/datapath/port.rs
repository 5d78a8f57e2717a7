//! A port of the switch: where the frames of one sandbox come from and go to.
//!
//! # Theory of operation
//!
//! A [`Port`] stands on a TAP queue or on a packet socket with a receive ring, and hides which. It has two halves
//! that can be borrowed apart, because a frame that was just received is answered while it is still being looked
//! at: [`Port::receiver`] and [`Port::transmitter`].
//!
//! **In.** [`Receiver::recv`] gives one frame at a time until it answers `None`, which is the moment at which an
//! edge-triggered poll can be waited for again. A TAP's frame is read into the buffer that the caller lends
//! ([`RX_BUFFER`] bytes); a ring's frame stays where the kernel put it and is released when the next is asked
//! for. The header in front says what is left to us (checksum, segmentation); one that contradicts its frame
//! is [`RecvError::Malformed`], the frame is gone, and the next can be asked for at once.
//!
//! **Out.** [`Transmitter::transmit`] lets the caller write the frame behind ten bytes kept free for the header,
//! so that one write takes both and nothing is copied on the way. The buffer is this thread's spare one. When
//! the kernel has no room (EAGAIN, ENOBUFS, ENOMEM) the buffer itself moves to the port's queue and another
//! becomes the spare one: the frame is not lost, since a lost last segment would cost its connection a second.
//! [`Transmitter::has_room`] is `false` from then on until [`Transmitter::handle_writable`] has emptied the
//! queue. Callers stop giving data then; the control frames that they still give are queued in order, up to
//! [`QUEUE_FRAMES`]. Beyond that a frame is dropped and counted.
//!
//! ENOBUFS is not always followed by an event. So `handle_writable` has to be called at a writable event, and
//! also [`RETRY`] after `has_room` became `false`.
//!
//! A frame that the kernel does not take for a reason of its own (EINVAL, or EIO while the interface is down)
//! is counted in [`Transmitter::refused`] and forgotten: nothing about one frame is worth the port.
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use crate::gateway::link::{Gso, Offload};
use crate::plan::LinkKind;
use crate::sys::io::{read, write};
use crate::sys::packet::{PacketError, PacketRing};
use crate::sys::tun::{Offloads, Tap, TapError};
use crate::sys::vnet::{self, VNET_HEADER, VnetHeader};

/// Largest frame in bytes: 65,535 bytes of IP behind an Ethernet header with two VLAN tags.
pub const MAX_FRAME: usize = 65_535 + 14 + 8;

/// What [`Receiver::recv`] wants to be lent, in bytes: header, largest frame, and one more, so that a frame that
/// was cut off is known by filling it.
pub const RX_BUFFER: usize = VNET_HEADER + MAX_FRAME + 1;

/// How many frames wait for a link without room before others are dropped.
pub const QUEUE_FRAMES: usize = 64;

/// How long after a link had no room it is tried again if no event came before.
pub const RETRY: Duration = Duration::from_millis(1);

/// Buffers that a thread keeps for its next frames.
const SPARE_BUFFERS: usize = 4;

/// Why no frame was received.
#[derive(Debug, thiserror::Error)]
pub enum RecvError {
    /// A frame came whose header contradicts it, and was dropped. Ask again.
    #[error("the header in front of a frame contradicts it")]
    Malformed,
    /// The link is broken, or its interface has been removed.
    #[error("cannot read from the sandbox's link: {0}")]
    Io(#[from] io::Error),
}

/// Why a descriptor cannot become a port.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// It is no usable TAP.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// It is no usable packet socket.
    #[error(transparent)]
    Packet(#[from] PacketError),
}

/// One sandbox's link.
#[derive(Debug)]
pub struct Port {
    /// Frames from the sandbox.
    pub receiver: Receiver,
    /// Frames for the sandbox.
    pub transmitter: Transmitter,
    capabilities: Offloads,
}

impl Port {
    /// Take over a link's descriptor, as it came with the attach protocol. It is checked, not believed.
    pub fn from_fd(kind: LinkKind, fd: OwnedFd) -> Result<Port, PortError> {
        match kind {
            LinkKind::Tap => Ok(Port::from_tap(Tap::from_fd(fd)?)),
            LinkKind::Packet => Ok(Port::from_ring(PacketRing::from_fd(fd)?)),
        }
    }

    /// A port on a TAP queue.
    pub fn from_tap(tap: Tap) -> Port {
        let capabilities = tap.offloads();
        let fd = Arc::new(tap.into_fd());
        let transmitter = Transmitter::new(fd.clone(), capabilities.uso);
        Port { receiver: Receiver::Tap(fd), transmitter, capabilities }
    }

    /// A port on a packet socket with its ring. A veth pair takes every offload.
    pub fn from_ring(ring: PacketRing) -> Port {
        let capabilities = Offloads { csum: true, tso4: true, tso6: true, uso: true };
        let transmitter = Transmitter::new(ring.socket());
        Port { receiver: Receiver::Ring(ring), transmitter, capabilities }
    }

    /// What frames for this port may leave to the sandbox's kernel: checksum, segmentation.
    pub fn capabilities(&self) -> Offloads {
        self.capabilities
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.transmitter.fd.as_fd()
    }
}

/// For registration with a poll (readable and writable, edge-triggered).
impl AsRawFd for Port {
    fn as_raw_fd(&self) -> RawFd {
        self.transmitter.fd.as_raw_fd()
    }
}

/// The half of a port that frames come from.
#[derive(Debug)]
pub enum Receiver {
    /// A TAP queue: one read for each frame.
    Tap(Arc<OwnedFd>),
    /// A packet socket: frames in a ring shared with the kernel.
    Ring(PacketRing),
}

impl Receiver {
    /// The next frame, Ethernet header first, with what its header says; `None` when there is none now. `buffer`
    /// has to be [`RX_BUFFER`] bytes long, and is what a TAP's frame is read into.
    pub fn recv<'a>(&'a mut self, buffer: &'a mut [u8]) -> Result<Option<(Offload, &'a [u8])>, RecvError> {
        match self {
            Receiver::Tap(fd) => loop {
                match read(fd.as_fd(), buffer) {
                    Ok(length) if length == buffer.len() => return Err(RecvError::Malformed),
                    Ok(length) => {
                        let (header, frame) = buffer[..length].split_first_chunk().ok_or(RecvError::Malformed)?;
                        return Ok(Some((offload(&VnetHeader::decode(header), frame.len())?, frame)));
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                    Err(error) => return Err(error.into()),
                }
            },
            Receiver::Ring(ring) => match ring.recv() {
                None => Ok(None),
                Some(frame) if frame.incomplete => Err(RecvError::Malformed),
                Some(frame) => Ok(Some((offload(&frame.header, frame.bytes.len())?, frame.bytes))),
            },
        }
    }
}

/// What a header says of its frame of `length` bytes, or that it cannot be.
fn offload(header: &VnetHeader, length: usize) -> Result<Offload, RecvError> {
    let gso = match header.gso_type & !vnet::GSO_ECN {
        // The bit alone would be a property of no super-segment.
        vnet::GSO_NONE if header.gso_type != vnet::GSO_NONE => return Err(RecvError::Malformed),
        vnet::GSO_NONE => Gso::None,
        vnet::GSO_TCPV4 => Gso::TcpV4,
        vnet::GSO_TCPV6 => Gso::TcpV6,
        vnet::GSO_UDP_L4 => Gso::UdpL4,
        _ => return Err(RecvError::Malformed),
    };
    let needs_csum = header.flags & vnet::NEEDS_CSUM != 0;
    if needs_csum && usize::from(header.csum_start) + usize::from(header.csum_offset) + 2 > length {
        return Err(RecvError::Malformed);
    }
    if gso != Gso::None && header.gso_size == 0 {
        return Err(RecvError::Malformed);
    }
    Ok(Offload {
        needs_csum,
        csum_valid: header.flags & vnet::DATA_VALID != 0,
        csum_start: if needs_csum { header.csum_start } else { 0 },
        csum_offset: if needs_csum { header.csum_offset } else { 0 },
        gso,
        gso_size: if gso == Gso::None { 0 } else { header.gso_size },
        hdr_len: header.hdr_len,
    })
}

/// The header that says this. DATA_VALID is for frames that come in only.
fn header(offload: &Offload, length: usize) -> VnetHeader {
    VnetHeader {
        flags: if offload.needs_csum { vnet::NEEDS_CSUM } else { 0 },
        gso_type: match offload.gso {
            Gso::None => vnet::GSO_NONE,
            Gso::TcpV4 => vnet::GSO_TCPV4,
            Gso::TcpV6 => vnet::GSO_TCPV6,
            Gso::UdpL4 => vnet::GSO_UDP_L4,
        },
        // The kernel refuses a header that claims to be longer than its frame.
        hdr_len: offload.hdr_len.min(u16::try_from(length).unwrap_or(u16::MAX)),
        gso_size: offload.gso_size,
        csum_start: if offload.needs_csum { offload.csum_start } else { 0 },
        csum_offset: if offload.needs_csum { offload.csum_offset } else { 0 },
    }
}

type Buffer = Box<[u8]>;

thread_local! {
    /// The buffers that this thread's next frames are written into. Their pages exist as far as they were used.
    static SPARE: RefCell<Vec<Buffer>> = const { RefCell::new(Vec::new()) };
}

fn take_buffer() -> Buffer {
    SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; VNET_HEADER + MAX_FRAME].into_boxed_slice())
}

fn give_back(buffer: Buffer) {
    SPARE.with_borrow_mut(|spare| {
        if spare.len() < SPARE_BUFFERS {
            spare.push(buffer);
        }
    });
}

/// What became of a frame.
enum Sent {
    /// The kernel has it.
    Done,
    /// The kernel has no room for it now.
    Later,
    /// The kernel will never take it.
    Never,
}

/// The half of a port that frames go to.
#[derive(Debug)]
pub struct Transmitter {
    fd: Arc<OwnedFd>,
    /// Frames with their headers that found no room, and their lengths; in order.
    queue: VecDeque<(Buffer, usize)>,
    /// The sandbox's kernel cuts UDP super-segments itself.
    udp_super_segments: bool,
    refused: u64,
    overflowed: u64,
}

impl Transmitter {
    fn new(fd: Arc<OwnedFd>, udp_super_segments: bool) -> Transmitter {
        Transmitter { fd, queue: VecDeque::new(), udp_super_segments, refused: 0, overflowed: 0 }
    }

    /// May frames be UDP super-segments?
    pub fn takes_udp_super_segments(&self) -> bool {
        self.udp_super_segments
    }

    /// May data be transmitted? Control frames may always be. When this is `false`, call
    /// [`Transmitter::handle_writable`] at the next writable event, and after [`RETRY`] at the latest.
    pub fn has_room(&self) -> bool {
        self.queue.is_empty()
    }

    /// Send one frame of `length` bytes (at most [`MAX_FRAME`]), which `fill` writes, Ethernet header first. The
    /// bytes given to `fill` are not cleared before.
    ///
    /// # Panics
    ///
    /// When `length` is more than [`MAX_FRAME`].
    pub fn transmit<R>(&mut self, offload: Offload, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut buffer = take_buffer();
        let end = VNET_HEADER + length;
        buffer[..VNET_HEADER].copy_from_slice(&header(&offload, length).encode());
        let result = fill(&mut buffer[VNET_HEADER..end]);
        if !self.queue.is_empty() {
            self.enqueue(buffer, end);
            return result;
        }
        match self.send(&buffer[..end]) {
            Sent::Done => give_back(buffer),
            Sent::Later => self.enqueue(buffer, end),
            Sent::Never => {
                self.refused += 1;
                give_back(buffer);
            }
        }
        result
    }

    /// The link may have room again: send what waits.
    pub fn handle_writable(&mut self) {
        while let Some((buffer, end)) = self.queue.pop_front() {
            match self.send(&buffer[..end]) {
                Sent::Done => {}
                Sent::Later => {
                    self.queue.push_front((buffer, end));
                    return;
                }
                Sent::Never => self.refused += 1,
            }
            give_back(buffer);
        }
    }

    /// Frames that the sandbox's kernel would not take.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Frames dropped because [`QUEUE_FRAMES`] waited already.
    pub fn overflowed(&self) -> u64 {
        self.overflowed
    }

    fn enqueue(&mut self, buffer: Buffer, end: usize) {
        if self.queue.len() < QUEUE_FRAMES {
            self.queue.push_back((buffer, end));
        } else {
            self.overflowed += 1;
            give_back(buffer);
        }
    }

    fn send(&self, bytes: &[u8]) -> Sent {
        loop {
            return match write(self.fd.as_fd(), bytes) {
                Ok(_) => Sent::Done,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => continue,
                    Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => Sent::Later,
                    _ => Sent::Never,
                },
            };
        }
    }
}
