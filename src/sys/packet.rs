//! A packet socket with a receive ring (packet(7); Documentation/networking/packet_mmap.rst): the link of a
//! sandbox where there is no TAP device.
//!
//! # Theory of operation
//!
//! The socket is bound to the far half of a veth pair, in a namespace where nothing else is. With
//! PACKET_VNET_HDR its frames carry the same ten-byte header as a TAP's, super-segments of 64 KiB included, and
//! with PACKET_IGNORE_OUTGOING it does not hear what it sends itself.
//!
//! Frames come in through a TPACKET_V2 ring, not with read: a socket's receive buffer is counted in bytes, and
//! with the usual net.core.rmem_max of 208 KiB three super-segments fill it. Each slot of the ring takes one
//! frame of any size up to [`MAX_FRAME`]; [`SLOTS`] of them are just under 4 MiB, which count as memory of the
//! process that mapped them. Version 3 of the ring would pack small frames more tightly but hands them over a
//! millisecond late.
//!
//! A slot belongs to whom its status word says. The kernel writes a frame and sets TP_STATUS_USER last; we read
//! the status first (acquire), and give the slot back by setting it to 0 (release) when the next frame is asked
//! for. The kernel fills slots in order and so are they read; when the next one is not ours, there is none.
//! A frame is announced after its status is set, so that an edge-triggered poll that is waited for only once
//! [`PacketRing::recv`] has said `None` misses nothing. When all slots are full frames are dropped, and counted
//! by the kernel ([`PacketRing::statistics`]).
//!
//! Frames go out with write(2). The kernel answers EAGAIN when the send buffer is full and ENOBUFS when the
//! receiver's backlog is; both pass.
//!
//! Two processes take part: [`open`] is for the one in the namespace, which has CAP_NET_RAW there, and
//! [`PacketRing::from_fd`] for the one that carries frames, which needs no capability. Until then the socket is
//! bound to its interface, but to no protocol, and hears nothing.
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::vnet::{VNET_HEADER, VnetHeader};

/// Largest frame that a slot takes, in bytes: 65,535 bytes of IP behind an Ethernet header.
pub const MAX_FRAME: usize = 65_535 + 14;

/// Where a frame begins in its slot at the latest: the ring's header and a socket address (TPACKET2_HDRLEN, 52)
/// and the link header's room (16), rounded up to 16, and the virtio-net header (net/packet/af_packet.c,
/// `tpacket_rcv`).
const SLOT_HEADER: usize = 80 + VNET_HEADER;

/// Size of a slot: a multiple of 16 (TPACKET_ALIGNMENT).
const SLOT: usize = (SLOT_HEADER + MAX_FRAME).next_multiple_of(16);

const SLOTS_PER_BLOCK: usize = 31;
const BLOCKS: usize = 2;

/// How many frames the ring holds.
pub const SLOTS: usize = SLOTS_PER_BLOCK * BLOCKS;

/// Slots do not cross blocks; a block is whole pages (of at most 64 KiB) of contiguous memory where there is
/// some, just below the power of two that the kernel would take for it.
fn block_size() -> usize {
    // SAFETY: sysconf takes an integer and returns one.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    (SLOT * SLOTS_PER_BLOCK).next_multiple_of(usize::try_from(page).unwrap_or(65_536))
}

/// Why there is no packet socket, or no ring on it.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// socket(2) failed.
    #[error("cannot open a packet socket: {0}; it takes CAP_NET_RAW in the namespace, see that nothing takes it away")]
    Open(#[source] io::Error),
    /// bind(2) failed.
    #[error("cannot bind the packet socket to its interface: {0}")]
    Bind(#[source] io::Error),
    /// A received descriptor is no packet socket of the kind that is needed.
    #[error("the descriptor that was handed over is no packet socket bound to an interface")]
    NotAPacketSocket,
    /// A socket option was refused; it is named.
    #[error("cannot set {0} on the packet socket: {1}")]
    Option(&'static str, #[source] io::Error),
    /// The ring could not be mapped.
    #[error("cannot map the packet socket's ring: {0}")]
    Map(#[source] io::Error),
}

/// Open a packet socket for the interface with this index in the network namespace of the calling thread. It
/// hears nothing before [`PacketRing::from_fd`] is called on it.
pub fn open(index: u32) -> Result<OwnedFd, PacketError> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket takes integers only.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(PacketError::Open(io::Error::last_os_error()));
    }
    // SAFETY: the descriptor is new and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    bind(&fd, index as i32, 0)?;
    Ok(fd)
}

fn bind(fd: &OwnedFd, index: i32, protocol: u16) -> Result<(), PacketError> {
    // SAFETY: `struct sockaddr_ll` is plain integers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index;
    address.sll_protocol = protocol.to_be();
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes, which is the size of `address`.
    if unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) } < 0 {
        return Err(PacketError::Bind(io::Error::last_os_error()));
    }
    Ok(())
}

/// The interface that a packet socket is bound to.
fn bound_index(fd: &OwnedFd) -> Option<i32> {
    // SAFETY: `struct sockaddr_ll` is plain integers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is the size of `address`.
    let done = unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut address).cast(), &raw mut length) };
    (done == 0 && i32::from(address.sll_family) == libc::AF_PACKET && address.sll_ifindex > 0)
        .then_some(address.sll_ifindex)
}

fn set_option<T>(fd: &OwnedFd, name: &'static str, option: libc::c_int, value: &T) -> Result<(), PacketError> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes, which is the size of `value`.
    let done =
        unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_PACKET, option, std::ptr::from_ref(value).cast(), length) };
    if done < 0 {
        return Err(PacketError::Option(name, io::Error::last_os_error()));
    }
    Ok(())
}

/// Is it a raw socket of this kind (SO_TYPE)?
fn is_raw(fd: &OwnedFd) -> bool {
    let mut kind: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is the size of `kind`.
    let done = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_TYPE, (&raw mut kind).cast(), &raw mut length)
    };
    done == 0 && kind == libc::SOCK_RAW
}

/// The ring's memory, shared with the kernel.
#[derive(Debug)]
struct Map {
    at: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping is not tied to the thread that made it.
unsafe impl Send for Map {}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by us with this address and length, and nothing refers to it any more.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.length) };
    }
}

/// A frame in the ring. It is released when the next one is asked for.
#[derive(Debug)]
pub struct RingFrame<'a> {
    /// What the header in front of it says.
    pub header: VnetHeader,
    /// The frame, Ethernet header first.
    pub bytes: &'a [u8],
    /// The same with the virtio-net header in front of it, as it is to be written to send it on.
    pub with_header: &'a [u8],
    /// The frame is not whole: it was longer than a slot, or carried a VLAN tag, which the ring keeps elsewhere.
    pub incomplete: bool,
}

/// What the kernel counted since it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames that came, dropped ones included.
    pub frames: u32,
    /// Frames dropped because no slot was free.
    pub dropped: u32,
}

/// A packet socket with its receive ring.
#[derive(Debug)]
pub struct PacketRing {
    fd: Arc<OwnedFd>,
    map: Map,
    block_size: usize,
    /// The slot that is read next, or that is being read.
    slot: usize,
    /// `slot` has been handed out and is to be released.
    held: bool,
}

impl PacketRing {
    /// Make the ring on a socket that [`open`] had made, perhaps in another process, and begin to receive.
    pub fn from_fd(fd: OwnedFd) -> Result<PacketRing, PacketError> {
        let index = bound_index(&fd).filter(|_| is_raw(&fd)).ok_or(PacketError::NotAPacketSocket)?;
        super::tun::set_nonblocking(&fd).map_err(|e| PacketError::Option("O_NONBLOCK", e))?;
        // The ring of a process that has ended may still be there; without it nothing else can be set.
        let none = libc::tpacket_req { tp_block_size: 0, tp_block_nr: 0, tp_frame_size: 0, tp_frame_nr: 0 };
        set_option(&fd, "PACKET_RX_RING", libc::PACKET_RX_RING, &none)?;
        set_option(&fd, "PACKET_VERSION", libc::PACKET_VERSION, &(libc::tpacket_versions::TPACKET_V2 as libc::c_int))?;
        set_option(&fd, "PACKET_VNET_HDR", libc::PACKET_VNET_HDR, &1i32)?;
        set_option(&fd, "PACKET_IGNORE_OUTGOING", libc::PACKET_IGNORE_OUTGOING, &1i32)?;
        let block_size = block_size();
        let request = libc::tpacket_req {
            tp_block_size: block_size as libc::c_uint,
            tp_block_nr: BLOCKS as libc::c_uint,
            tp_frame_size: SLOT as libc::c_uint,
            tp_frame_nr: SLOTS as libc::c_uint,
        };
        set_option(&fd, "PACKET_RX_RING", libc::PACKET_RX_RING, &request)?;
        let length = block_size * BLOCKS;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED {
            return Err(PacketError::Map(io::Error::last_os_error()));
        }
        let at = NonNull::new(at.cast()).ok_or_else(|| PacketError::Map(io::ErrorKind::InvalidData.into()))?;
        let map = Map { at, length };
        bind(&fd, index, libc::ETH_P_ALL as u16)?;
        Ok(PacketRing { fd: Arc::new(fd), map, block_size, slot: 0, held: false })
    }

    /// The socket, for whoever sends on it.
    pub fn socket(&self) -> Arc<OwnedFd> {
        self.fd.clone()
    }

    /// The next frame, `None` when there is none now. The one before is released.
    #[inline]
    pub fn recv(&mut self) -> Option<RingFrame<'_>> {
        if self.held {
            self.held = false;
            self.status().store(libc::TP_STATUS_KERNEL, Ordering::Release);
            self.slot = (self.slot + 1) % SLOTS;
        }
        let status = self.status().load(Ordering::Acquire);
        if status & libc::TP_STATUS_USER == 0 {
            return None;
        }
        self.held = true;
        let slot = self.slot_at();
        // SAFETY: the slot is ours (TP_STATUS_USER was read with acquire), so the kernel does not write to it, and
        // it begins with a `struct tpacket2_hdr`, aligned to 16. Every bit pattern is a valid one.
        let head = unsafe { slot.cast::<libc::tpacket2_hdr>().read() };
        let (at, length) = (usize::from(head.tp_mac), head.tp_snaplen as usize);
        if at < size_of::<libc::tpacket2_hdr>() + VNET_HEADER || at + length > SLOT {
            let none: &[u8] = &[];
            return Some(RingFrame { header: VnetHeader::default(), bytes: none, with_header: none, incomplete: true });
        }
        // SAFETY: `at - VNET_HEADER .. at + length` lies inside the slot, which was just checked, and the slot inside
        // the mapping. The kernel does not write to the slot before its status is 0 again, which takes `&mut self`.
        let with_header =
            unsafe { std::slice::from_raw_parts(slot.as_ptr().add(at - VNET_HEADER), VNET_HEADER + length) };
        let (header, bytes) = with_header.split_first_chunk()?;
        let incomplete = head.tp_len as usize != length || status & libc::TP_STATUS_VLAN_VALID != 0;
        Some(RingFrame { header: VnetHeader::decode(header), bytes, with_header, incomplete })
    }

    /// What the kernel counted since this was last called.
    pub fn statistics(&self) -> io::Result<Statistics> {
        let mut counts = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes, which is the size of `counts`.
        let done = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut counts).cast(),
                &raw mut length,
            )
        };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Statistics { frames: counts.tp_packets, dropped: counts.tp_drops })
    }

    fn slot_at(&self) -> NonNull<u8> {
        let offset = self.slot / SLOTS_PER_BLOCK * self.block_size + self.slot % SLOTS_PER_BLOCK * SLOT;
        debug_assert!(offset + SLOT <= self.map.length);
        // SAFETY: `slot` is less than SLOTS, so the offset lies inside the mapping of BLOCKS blocks.
        unsafe { self.map.at.add(offset) }
    }

    /// The status word of the slot: the first field of `struct tpacket2_hdr`.
    fn status(&self) -> &AtomicU32 {
        // SAFETY: the slot lies inside the mapping, aligned to 16; the word is shared with the kernel, which
        // accesses it as one word.
        unsafe { AtomicU32::from_ptr(self.slot_at().as_ptr().cast()) }
    }
}

impl AsFd for PacketRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for PacketRing {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
