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
//! **On.** A frame for another sandbox leaves as it came: [`Transmitter::forward`] writes the bytes that were read, header
//! included. Only where there is no room is it copied, into the queue, of which such frames get no more than
//! [`QUEUE_FORWARDED`] places: the rest is for what the gateway itself has to say. A TAP takes every kind of
//! super-segment that this machine's kernel makes, whichever offloads were set on it: TUNSETOFFLOAD is about what it
//! gives, and a frame that comes in is cut by the receiver's own stack where it must be (drivers/net/tun.c,
//! `tun_get_user`; linux/virtio_net.h, `virtio_net_hdr_to_skb`). A packet socket takes what the veth pair behind it
//! takes, which is all. So nothing is cut there.
//!
//! **Without a header.** A TAP that somebody else made may have none. Frames that come from it are given one that says
//! nothing; those that go there are finished at this edge, checksums and segments ([`cut`](super::cut)), so that nobody
//! else has to know. A super-segment that finds no room in its middle waits with what is left of it.
//!
//! **Without a link** nothing comes, and what goes there is gone.
//!
//! A frame that the kernel does not take for a reason of its own (EINVAL, or EIO while the interface is down)
//! is counted in [`Transmitter::refused`] and forgotten: nothing about one frame is worth the port.
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use super::cut::{Cut, MAX_HEADERS};
use crate::gateway::link::{Gso, Offload};
use crate::plan::LinkKind;
use crate::sys::io::{read, write};
use crate::sys::packet::{PacketError, PacketRing};
use crate::sys::tun::{self, Offloads, Tap, TapError};
use crate::sys::vnet::{self, VNET_HEADER, VnetHeader};

/// Largest frame in bytes: 65,535 bytes of IP behind an Ethernet header with two VLAN tags.
pub const MAX_FRAME: usize = 65_535 + 14 + 8;

/// What [`Receiver::recv`] wants to be lent, in bytes: header, largest frame, and one more, so that a frame that
/// was cut off is known by filling it.
pub const RX_BUFFER: usize = VNET_HEADER + MAX_FRAME + 1;

/// How many frames wait for a link without room before others are dropped.
pub const QUEUE_FRAMES: usize = 64;

/// How many of these may be frames of other sandboxes.
pub const QUEUE_FORWARDED: usize = QUEUE_FRAMES / 2;

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
    /// A link without its descriptor, or a descriptor for no link.
    #[error("a link of this kind has another number of descriptors")]
    Descriptors,
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
    pub fn from_fd(kind: LinkKind, fd: Option<OwnedFd>) -> Result<Port, PortError> {
        match (kind, fd) {
            (LinkKind::Tap, Some(fd)) => Ok(Port::from_tap(Tap::from_fd(fd)?)),
            (LinkKind::Packet, Some(fd)) => Ok(Port::from_ring(PacketRing::from_fd(fd)?)),
            (LinkKind::PlainTap, Some(fd)) => Ok(Port::from_plain(Tap::plain_from_fd(fd)?.into_fd())),
            (LinkKind::None, None) => Ok(Port::nowhere()),
            (LinkKind::None, Some(_)) | (LinkKind::Tap | LinkKind::Packet | LinkKind::PlainTap, None) => {
                Err(PortError::Descriptors)
            }
        }
    }

    /// A port on a TAP queue.
    pub fn from_tap(tap: Tap) -> Port {
        let capabilities = tap.offloads();
        let fd = Arc::new(tap.into_fd());
        let transmitter = Transmitter::new(Wire::Headed(fd.clone()), capabilities.uso);
        Port { receiver: Receiver::Tap(fd), transmitter, capabilities }
    }

    /// A port on whatever gives and takes one finished frame at a time, without a header.
    fn from_plain(fd: OwnedFd) -> Port {
        let fd = Arc::new(fd);
        let transmitter = Transmitter::new(Wire::Plain(fd.clone()), false);
        // What is left to us: this edge makes up for it.
        let capabilities = Offloads { csum: true, tso4: true, tso6: true, uso: false };
        Port { receiver: Receiver::Plain(fd), transmitter, capabilities }
    }

    /// A port without a link.
    fn nowhere() -> Port {
        let transmitter = Transmitter::new(Wire::Nowhere, false);
        Port { receiver: Receiver::Nowhere, transmitter, capabilities: Offloads::default() }
    }

    /// A port on a packet socket with its ring. A veth pair takes every offload.
    pub fn from_ring(ring: PacketRing) -> Port {
        let capabilities = Offloads { csum: true, tso4: true, tso6: true, uso: true };
        let transmitter = Transmitter::new(Wire::Headed(ring.socket()), capabilities.uso);
        Port { receiver: Receiver::Ring(ring), transmitter, capabilities }
    }

    /// What frames for this port may leave to the sandbox's kernel: checksum, segmentation.
    pub fn capabilities(&self) -> Offloads {
        self.capabilities
    }

    /// For registration with a poll (readable and writable, edge-triggered), where there is a link.
    pub fn raw_fd(&self) -> Option<RawFd> {
        self.transmitter.wire.fd().map(AsRawFd::as_raw_fd)
    }
}

/// A frame that came.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// What its header says.
    pub offload: Offload,
    /// The header and the frame.
    bytes: &'a [u8],
}

impl<'a> Received<'a> {
    /// The frame, Ethernet header first.
    pub fn frame(&self) -> &'a [u8] {
        self.bytes.get(VNET_HEADER..).unwrap_or(&[])
    }
}

/// Why a frame of another sandbox was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotForwarded {
    /// There is no room.
    NoRoom,
    /// The sandbox's kernel would not have it.
    Refused,
}

/// The half of a port that frames come from.
#[derive(Debug)]
pub enum Receiver {
    /// A TAP queue: one read for each frame.
    Tap(Arc<OwnedFd>),
    /// A packet socket: frames in a ring shared with the kernel.
    Ring(PacketRing),
    /// A TAP without headers: one read for each frame.
    Plain(Arc<OwnedFd>),
    /// No link.
    Nowhere,
}

impl Receiver {
    /// The next frame with what its header says; `None` when there is none now. `buffer` has to be [`RX_BUFFER`] bytes
    /// long, and is what a TAP's frame is read into.
    pub fn recv<'a>(&'a mut self, buffer: &'a mut [u8]) -> Result<Option<Received<'a>>, RecvError> {
        match self {
            Receiver::Tap(fd) => {
                let Some(length) = read_frame(fd, buffer)? else { return Ok(None) };
                let bytes = &buffer[..length];
                let (header, frame) = bytes.split_first_chunk().ok_or(RecvError::Malformed)?;
                let offload = offload(&VnetHeader::decode(header), frame.len())?;
                Ok(Some(Received { offload, bytes }))
            }
            Receiver::Plain(fd) => {
                let (header, room) = buffer.split_first_chunk_mut::<VNET_HEADER>().ok_or(RecvError::Malformed)?;
                let Some(length) = read_frame(fd, room)? else { return Ok(None) };
                // Who it is passed on to finds one in front of it.
                header.fill(0);
                Ok(Some(Received { offload: Offload::default(), bytes: &buffer[..VNET_HEADER + length] }))
            }
            Receiver::Nowhere => Ok(None),
            Receiver::Ring(ring) => match ring.recv() {
                None => Ok(None),
                Some(frame) if frame.incomplete => Err(RecvError::Malformed),
                Some(frame) => {
                    let offload = offload(&frame.header, frame.bytes.len())?;
                    Ok(Some(Received { offload, bytes: frame.with_header }))
                }
            },
        }
    }
}

impl Receiver {
    /// Nobody here will read from it again. A TAP may stay for others, who need not know of offloads.
    pub fn leave(self) {
        if let Receiver::Tap(fd) = self {
            // One whose interface is gone needs nothing.
            let _ = tun::leave(&fd);
        }
    }
}

/// Read one frame, with what is in front of it; its length. `None` when there is none now.
fn read_frame(fd: &OwnedFd, buffer: &mut [u8]) -> Result<Option<usize>, RecvError> {
    loop {
        match read(fd.as_fd(), buffer) {
            Ok(length) if length == buffer.len() => return Err(RecvError::Malformed),
            Ok(length) => return Ok(Some(length)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

/// What a header says of its frame of `length` bytes, or that it cannot be.
pub(crate) fn offload(header: &VnetHeader, length: usize) -> Result<Offload, RecvError> {
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
pub(crate) fn header(offload: &Offload, length: usize) -> VnetHeader {
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

impl Sent {
    fn of(written: io::Result<usize>) -> Sent {
        match written {
            Ok(_) => Sent::Done,
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => Sent::Later,
                _ => Sent::Never,
            },
        }
    }
}

/// Where frames are written to.
#[derive(Debug)]
enum Wire {
    /// With the header in front of them, as they are.
    Headed(Arc<OwnedFd>),
    /// Finished, without one.
    Plain(Arc<OwnedFd>),
    /// There is no link.
    Nowhere,
}

impl Wire {
    fn fd(&self) -> Option<&OwnedFd> {
        match self {
            Wire::Headed(fd) | Wire::Plain(fd) => Some(fd),
            Wire::Nowhere => None,
        }
    }

    /// Send a frame with its header. Of one that is cut, `sent` pieces have been sent before, and are so afterwards.
    fn send(&self, bytes: &[u8], sent: &mut usize) -> Sent {
        match self {
            Wire::Headed(fd) => Sent::of(again(|| write(fd.as_fd(), bytes))),
            Wire::Plain(fd) => send_finished(fd, bytes, sent),
            Wire::Nowhere => Sent::Done,
        }
    }
}

/// Until no signal comes between.
fn again(call: impl Fn() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// What a frame with a header becomes for those who take none.
fn send_finished(fd: &OwnedFd, bytes: &[u8], sent: &mut usize) -> Sent {
    let Some((header, frame)) = bytes.split_first_chunk() else { return Sent::Never };
    let offload = offload(&VnetHeader::decode(header), frame.len());
    let Some(cut) = offload.ok().and_then(|offload| Cut::new(frame, &offload)) else { return Sent::Never };
    let mut headers = [0; MAX_HEADERS];
    while *sent < cut.pieces() {
        let (length, rest) = cut.piece(*sent, &mut headers);
        let parts = [IoSlice::new(&headers[..length]), IoSlice::new(rest)];
        match Sent::of(again(|| Ok(nix::sys::uio::writev(fd, &parts)?))) {
            Sent::Done => *sent += 1,
            other => return other,
        }
    }
    Sent::Done
}

/// A frame that found no room.
#[derive(Debug)]
struct Queued {
    /// With its header.
    buffer: Buffer,
    /// How much of the buffer that is.
    end: usize,
    /// How many pieces of it have been sent, where it is cut.
    sent: usize,
}

/// The half of a port that frames go to.
#[derive(Debug)]
pub struct Transmitter {
    wire: Wire,
    /// In order.
    queue: VecDeque<Queued>,
    /// The sandbox's kernel cuts UDP super-segments itself.
    udp_super_segments: bool,
    refused: u64,
    overflowed: u64,
}

impl Transmitter {
    fn new(wire: Wire, udp_super_segments: bool) -> Transmitter {
        Transmitter { wire, queue: VecDeque::new(), udp_super_segments, refused: 0, overflowed: 0 }
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
        let mut sent = 0;
        if !self.queue.is_empty() {
            self.enqueue(Queued { buffer, end, sent });
            return result;
        }
        match self.wire.send(&buffer[..end], &mut sent) {
            Sent::Done => give_back(buffer),
            Sent::Later => self.enqueue(Queued { buffer, end, sent }),
            Sent::Never => {
                self.refused += 1;
                give_back(buffer);
            }
        }
        result
    }

    /// Send a frame that came from another sandbox, as it came.
    pub fn forward(&mut self, received: &Received<'_>) -> Result<(), NotForwarded> {
        let mut sent = 0;
        if self.queue.is_empty() {
            match self.wire.send(received.bytes, &mut sent) {
                Sent::Done => return Ok(()),
                Sent::Later => {}
                Sent::Never => {
                    self.refused += 1;
                    return Err(NotForwarded::Refused);
                }
            }
        }
        if self.queue.len() >= QUEUE_FORWARDED {
            return Err(NotForwarded::NoRoom);
        }
        let mut buffer = take_buffer();
        let end = received.bytes.len();
        let room = buffer.get_mut(..end).ok_or(NotForwarded::Refused)?;
        room.copy_from_slice(received.bytes);
        self.enqueue(Queued { buffer, end, sent });
        Ok(())
    }

    /// The link may have room again: send what waits.
    pub fn handle_writable(&mut self) {
        while let Some(mut frame) = self.queue.pop_front() {
            match self.wire.send(&frame.buffer[..frame.end], &mut frame.sent) {
                Sent::Done => {}
                Sent::Later => {
                    self.queue.push_front(frame);
                    return;
                }
                Sent::Never => self.refused += 1,
            }
            give_back(frame.buffer);
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

    fn enqueue(&mut self, frame: Queued) {
        if self.queue.len() < QUEUE_FRAMES {
            self.queue.push_back(frame);
        } else {
            self.overflowed += 1;
            give_back(frame.buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{LinkChoice, MacAddr};
    use crate::sandbox::link::{Addresses, Settings, configure, make_link};
    use crate::sys::testing::{foreign_tap, in_namespace};
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpStream};
    use std::time::Instant;

    const SANDBOX_MAC: MacAddr = MacAddr([2, 0x42, 10, 0, 2, 100]);
    const GATEWAY_MAC: MacAddr = MacAddr([2, 0x42, 10, 0, 2, 2]);
    const SANDBOX: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

    fn text(error: impl std::fmt::Display) -> String {
        error.to_string()
    }

    fn settings(v4: Addresses<Ipv4Addr>) -> Settings {
        Settings { mac: SANDBOX_MAC, mtu: Some(1500), v4: Some(v4), ..Settings::default() }
    }

    /// The next frame that `wanted` takes, within five seconds.
    fn wait<T>(
        receiver: &mut Receiver,
        fd: &OwnedFd,
        what: &str,
        mut wanted: impl FnMut(&Offload, &[u8]) -> Option<T>,
    ) -> Result<T, String> {
        let mut buffer = vec![0; RX_BUFFER];
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            match receiver.recv(&mut buffer).map_err(text)? {
                Some(received) => {
                    if let Some(found) = wanted(&received.offload, received.frame()) {
                        return Ok(found);
                    }
                }
                None => {
                    let mut poll = [nix::poll::PollFd::new(fd.as_fd(), nix::poll::PollFlags::POLLIN)];
                    nix::poll::poll(&mut poll, 100u16).map_err(text)?;
                }
            }
        }
        Err(format!("{what} did not come"))
    }

    fn sum(bytes: &[u8], start: u32) -> u16 {
        let mut sum = start;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[allow(clippy::too_many_arguments)]
    /// A TCP segment from the gateway's port 80, its checksum left to the link.
    fn send_tcp(tx: &mut Transmitter, to: u16, seq: u32, ack: u32, flags: u8, options: &[u8], data: &[u8], gso: u16) {
        let tcp_len = 20 + options.len() + data.len();
        let length = 14 + 20 + tcp_len;
        let offload = Offload {
            needs_csum: true,
            csum_start: 34,
            csum_offset: 16,
            gso: if gso == 0 { Gso::None } else { Gso::TcpV4 },
            gso_size: gso,
            hdr_len: (54 + options.len()) as u16,
            ..Offload::default()
        };
        tx.transmit(offload, length, |frame| {
            frame[..6].copy_from_slice(&SANDBOX_MAC.0);
            frame[6..12].copy_from_slice(&GATEWAY_MAC.0);
            frame[12..14].copy_from_slice(&[8, 0]);
            let ip = &mut frame[14..];
            ip[..12].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0]);
            ip[2..4].copy_from_slice(&((20 + tcp_len) as u16).to_be_bytes());
            ip[12..16].copy_from_slice(&GATEWAY.octets());
            ip[16..20].copy_from_slice(&SANDBOX.octets());
            let check = !sum(&ip[..20], 0);
            ip[10..12].copy_from_slice(&check.to_be_bytes());
            let pseudo = sum(&ip[12..20], 6 + tcp_len as u32);
            let tcp = &mut ip[20..];
            tcp[..2].copy_from_slice(&80u16.to_be_bytes());
            tcp[2..4].copy_from_slice(&to.to_be_bytes());
            tcp[4..8].copy_from_slice(&seq.to_be_bytes());
            tcp[8..12].copy_from_slice(&ack.to_be_bytes());
            tcp[12] = (((20 + options.len()) / 4) << 4) as u8;
            tcp[13] = flags;
            tcp[14..16].copy_from_slice(&0xffffu16.to_be_bytes());
            tcp[16..18].copy_from_slice(&pseudo.to_be_bytes());
            tcp[18..20].fill(0);
            tcp[20..20 + options.len()].copy_from_slice(options);
            tcp[20 + options.len()..].copy_from_slice(data);
        });
    }

    /// The sandbox's kernel answers ARP, and exchanges TCP super-segments with us both ways.
    fn exchange(choice: LinkChoice) -> Result<(), String> {
        let made = make_link(choice, "tl0", SANDBOX_MAC, Some(1500)).map_err(text)?;
        exchange_over(Port::from_fd(made.kind, made.fd).map_err(text)?)
    }

    fn exchange_over(mut port: Port) -> Result<(), String> {
        let v4 = Addresses { address: SANDBOX, prefix: 24, gateway: Some(GATEWAY) };
        configure("tl0", &settings(v4)).map_err(text)?;
        let (fd, headed) = match &port.transmitter.wire {
            Wire::Headed(fd) => (fd.clone(), true),
            Wire::Plain(fd) => (fd.clone(), false),
            Wire::Nowhere => return Err("no link".to_owned()),
        };
        let Port { receiver: rx, transmitter: tx, .. } = &mut port;

        // Who has 10.0.2.100? From then on the sandbox knows where the gateway is, too.
        tx.transmit(Offload::default(), 42, |frame| {
            frame[..6].copy_from_slice(&MacAddr::BROADCAST.0);
            frame[6..12].copy_from_slice(&GATEWAY_MAC.0);
            frame[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
            frame[22..28].copy_from_slice(&GATEWAY_MAC.0);
            frame[28..32].copy_from_slice(&GATEWAY.octets());
            frame[32..38].fill(0);
            frame[38..42].copy_from_slice(&SANDBOX.octets());
        });
        wait(rx, &fd, "the ARP reply", |_, frame| {
            let reply = frame[12..14] == [8, 6] && frame[20..22] == [0, 2] && frame[22..28] == SANDBOX_MAC.0;
            reply.then_some(())
        })?;

        let connecting = std::thread::spawn(|| TcpStream::connect((GATEWAY, 80)));
        let (from, isn) = wait(rx, &fd, "the SYN", |_, f| {
            (f.len() >= 54 && f[12..14] == [8, 0] && f[23] == 6 && f[47] == 2)
                .then(|| (u16::from_be_bytes([f[34], f[35]]), u32::from_be_bytes([f[38], f[39], f[40], f[41]])))
        })?;
        // MSS 1460, window scale 7.
        send_tcp(tx, from, 1000, isn + 1, 0x12, &[2, 4, 5, 0xb4, 3, 3, 7, 1], &[], 0);
        let mut stream = connecting.join().map_err(|_| "the connecting thread panicked")?.map_err(text)?;
        stream.write_all(&[7; 14_000]).map_err(text)?;
        wait(rx, &fd, "a super-segment, or a segment", |offload, frame| {
            if !headed {
                // Its checksum is there, and right.
                let tcp = frame.get(34..).filter(|tcp| tcp.len() == 1480)?;
                let pseudo = sum(&frame[26..34], 6 + tcp.len() as u32);
                return (offload.gso == Gso::None && sum(tcp, pseudo.into()) == 0xffff).then_some(());
            }
            let large = offload.gso == Gso::TcpV4 && offload.gso_size == 1460 && frame.len() > 2_900;
            (large && offload.needs_csum && (offload.csum_start, offload.csum_offset) == (34, 16)).then_some(())
        })?;
        let data: Vec<u8> = (0..60_000u32).map(|i| (i % 251) as u8).collect();
        send_tcp(tx, from, 1001, isn + 1 + 14_000, 0x18, &[], &data, 1460);
        let mut got = vec![0; data.len()];
        stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(text)?;
        stream.read_exact(&mut got).map_err(|e| format!("the super-segment was not received: {e}"))?;
        if got != data {
            return Err("the super-segment was received damaged".to_owned());
        }
        let Receiver::Ring(ring) = rx else { return Ok(()) };
        match ring.statistics().map_err(text)? {
            s if s.dropped == 0 && s.frames > 0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn tap_carries_super_segments_both_ways() {
        in_namespace(|| exchange(LinkChoice::Tap));
    }

    #[test]
    fn ring_carries_super_segments_both_ways() {
        in_namespace(|| exchange(LinkChoice::Packet));
    }

    #[test]
    fn a_tap_without_headers_carries_segments_both_ways() {
        in_namespace(|| {
            let fd = foreign_tap("tl0", 0, false)?;
            exchange_over(Port::from_fd(LinkKind::PlainTap, Some(fd)).map_err(text)?)
        });
    }

    #[test]
    fn a_link_has_the_descriptors_of_its_kind() {
        let some = || Some(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
        for (kind, fd) in [(LinkKind::None, some()), (LinkKind::Tap, None), (LinkKind::PlainTap, None)] {
            assert!(matches!(Port::from_fd(kind, fd), Err(PortError::Descriptors)), "{kind:?}");
        }
        let mut port = Port::from_fd(LinkKind::None, None).unwrap();
        port.transmitter.transmit(Offload::default(), 60, |frame| frame.fill(1));
        assert!(port.raw_fd().is_none() && port.transmitter.has_room());
        assert!(port.receiver.recv(&mut [0; RX_BUFFER]).unwrap().is_none());
    }

    #[test]
    fn a_super_segment_that_finds_no_room_in_its_middle_goes_on_there() {
        let (near, far) = std::os::unix::net::UnixDatagram::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        let mut port = Port::from_plain(near.into());
        let tx = &mut port.transmitter;
        // Each makes three; the socket takes some number that is known to the kernel only.
        let mut sent = 0u32;
        while tx.has_room() {
            send_tcp(tx, 4000, sent * 3000, 0, 0x18, &[], &[7; 3000], 1460);
            sent += 1;
        }
        let mut buffer = [0; 2000];
        let mut sequence = 0;
        for number in 0..sent * 3 {
            let length = far.recv(&mut buffer).unwrap();
            let found = u32::from_be_bytes([buffer[38], buffer[39], buffer[40], buffer[41]]);
            assert_eq!((found, length), (sequence, 54 + if number % 3 == 2 { 80 } else { 1460 }), "{number}");
            sequence += length as u32 - 54;
            tx.handle_writable();
        }
        assert!(far.recv(&mut buffer).is_err() && tx.has_room());
        assert_eq!((tx.overflowed(), tx.refused()), (0, 0));
    }

    #[test]
    fn a_frame_without_header_is_passed_on_with_one() {
        let (near, far) = std::os::unix::net::UnixDatagram::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let mut port = Port::from_plain(near.into());
        far.send(&[9; 60]).unwrap();
        let mut buffer = vec![0xff; RX_BUFFER];
        let received = port.receiver.recv(&mut buffer).unwrap().unwrap();
        assert_eq!((received.offload, received.frame()), (Offload::default(), &[9; 60][..]));
        assert_eq!(received.bytes[..VNET_HEADER], VnetHeader::default().encode());
        port.transmitter.forward(&received).unwrap();
        let mut back = [0; 100];
        assert_eq!((far.recv(&mut back).unwrap(), &back[..60]), (60, &[9; 60][..]));
    }

    #[test]
    fn ring_loses_nothing_that_fits_it_and_goes_round() {
        in_namespace(|| {
            let made = make_link(LinkChoice::Packet, "tl0", SANDBOX_MAC, Some(1500)).map_err(text)?;
            let v4 = Addresses { address: SANDBOX, prefix: 24, gateway: Some(GATEWAY) };
            configure("tl0", &settings(v4)).map_err(text)?;
            let mut port = Port::from_fd(made.kind, made.fd).map_err(text)?;
            let socket = std::net::UdpSocket::bind((SANDBOX, 9000)).map_err(text)?;
            socket.set_broadcast(true).map_err(text)?;
            let mut buffer = vec![0; RX_BUFFER];
            let mut expected = 0u32;
            for _ in 0..20 {
                for number in 0..40 {
                    socket.send_to(&(expected + number).to_be_bytes(), "10.0.2.255:9000").map_err(text)?;
                }
                while let Some(received) = port.receiver.recv(&mut buffer).map_err(text)? {
                    let frame = received.frame();
                    if frame.len() >= 46 && frame[23] == 17 && frame[36..38] == 9000u16.to_be_bytes() {
                        if frame[42..46] != expected.to_be_bytes() {
                            return Err(format!("{:?} came instead of {expected}", &frame[42..46]));
                        }
                        expected += 1;
                    }
                }
            }
            if expected == 800 { Ok(()) } else { Err(format!("{expected} of 800 came")) }
        });
    }

    #[test]
    fn header_that_contradicts_its_frame_is_malformed() {
        let good = VnetHeader {
            flags: vnet::NEEDS_CSUM,
            gso_type: vnet::GSO_TCPV4 | vnet::GSO_ECN,
            hdr_len: 54,
            gso_size: 1460,
            csum_start: 34,
            csum_offset: 16,
        };
        let said = offload(&good, 3000).unwrap();
        assert_eq!((said.gso, said.gso_size, said.csum_start), (Gso::TcpV4, 1460, 34));
        assert_eq!(header(&said, 3000), VnetHeader { gso_type: vnet::GSO_TCPV4, ..good });
        for bad in [
            VnetHeader { csum_start: 2990, ..good },
            VnetHeader { csum_start: u16::MAX, csum_offset: u16::MAX, ..good },
            VnetHeader { gso_size: 0, ..good },
            VnetHeader { gso_type: 3, ..good },
            VnetHeader { gso_type: vnet::GSO_ECN, ..good },
        ] {
            assert!(matches!(offload(&bad, 3000), Err(RecvError::Malformed)), "{bad:?}");
        }
        assert!(matches!(offload(&good, 51), Err(RecvError::Malformed)));
        assert!(offload(&VnetHeader { gso_type: 0, ..good }, 52).is_ok());
    }

    #[test]
    fn frame_without_room_waits_in_order_and_is_not_lost() {
        let (near, far) = std::os::unix::net::UnixDatagram::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        let mut tx = Transmitter::new(Wire::Headed(Arc::new(near.into())), true);
        let mut sent = 0u32;
        while tx.has_room() {
            tx.transmit(Offload::default(), 1000, |frame| frame[..4].copy_from_slice(&sent.to_be_bytes()));
            sent += 1;
        }
        for _ in 0..10 {
            tx.transmit(Offload::default(), 1000, |frame| frame[..4].copy_from_slice(&sent.to_be_bytes()));
            sent += 1;
        }
        let mut buffer = [0; 2000];
        for expected in 0..sent {
            let length = far.recv(&mut buffer).unwrap();
            assert_eq!((length, &buffer[10..14]), (1010, &expected.to_be_bytes()[..]));
            tx.handle_writable();
        }
        assert!(tx.has_room());
        assert_eq!((tx.overflowed(), tx.refused()), (0, 0));
    }

    #[test]
    fn a_frame_of_another_sandbox_leaves_as_it_came_and_waits_within_bounds() {
        let (near, far) = std::os::unix::net::UnixDatagram::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        let mut tx = Transmitter::new(Wire::Headed(Arc::new(near.into())), true);
        let header = VnetHeader {
            flags: vnet::NEEDS_CSUM | vnet::DATA_VALID,
            gso_type: vnet::GSO_TCPV4 | vnet::GSO_ECN,
            hdr_len: 66,
            gso_size: 1448,
            csum_start: 34,
            csum_offset: 16,
        };
        let mut bytes = header.encode().to_vec();
        bytes.resize(3000, 7);
        let offload = offload(&header, 2990).unwrap();
        let mut sent = 0usize;
        while tx.forward(&Received { offload, bytes: &bytes }) == Ok(()) {
            sent += 1;
            bytes[20..28].copy_from_slice(&(sent as u64).to_be_bytes());
        }
        assert_eq!(tx.queue.len(), QUEUE_FORWARDED);
        assert_eq!(tx.forward(&Received { offload, bytes: &bytes }), Err(NotForwarded::NoRoom));
        tx.transmit(Offload::default(), 60, |frame| frame.fill(9));
        let mut buffer = [0; 4000];
        for number in 0..sent {
            assert_eq!(far.recv(&mut buffer).unwrap(), 3000);
            assert_eq!(buffer[..10], bytes[..10], "the header is the sender's own");
            assert!(number == 0 || buffer[20..28] == (number as u64).to_be_bytes());
            tx.handle_writable();
        }
        assert_eq!((far.recv(&mut buffer).unwrap(), buffer[10]), (70, 9), "the gateway's own was not crowded out");
        assert_eq!((tx.overflowed(), tx.refused(), tx.has_room()), (0, 0, true));
    }
}
