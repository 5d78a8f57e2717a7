//! Memory for smoltcp's TCP sockets.
//!
//! smoltcp fixes a socket's buffers when it is made. Thousands of idle connections must not cost what a few
//! busy ones need, so the rings live in an anonymous mapping of their own whose pages appear when they are
//! first touched and are given back ([`TcpSlot::release_pages`]) when a flow is quiet. smoltcp starts a ring at
//! its beginning whenever it has run empty, so a flow that moves little at a time touches one page of each.
//!
//! A slot is used for one flow after another ([`TcpSlot::renew`]): a mapping is made once, not cleared, and its
//! first pages stay warm. What an earlier flow left in the rings is never read: smoltcp hands out only what was
//! written for the present one.
//!
//! The slot keeps the socket in a `SocketSet` of its own, because smoltcp's `Interface` visits every socket of
//! the set it is given; a set of one makes that a constant.

use std::io;
use std::ptr::NonNull;

use smoltcp::iface::{SocketHandle, SocketSet, SocketStorage};
use smoltcp::socket::tcp;

/// A TCP socket, alone in its set, with both rings in a mapping of its own.
pub struct TcpSlot {
    sockets: Option<SocketSet<'static>>,
    handle: SocketHandle,
    rings: Rings,
}

struct Rings {
    base: NonNull<u8>,
    each: usize,
}

// SAFETY: the mapping belongs to the slot alone and is tied to no thread.
unsafe impl Send for Rings {}

impl Rings {
    fn map(each: usize) -> io::Result<Rings> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches nothing of ours.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), each * 2, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // A huge page would make the first byte of a connection cost 2 MiB. Failing is harmless.
        // SAFETY: the range is the mapping made above.
        unsafe { libc::madvise(base, each * 2, libc::MADV_NOHUGEPAGE) };
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap gave a null address"))?;
        Ok(Rings { base, each })
    }

    /// Both rings as slices. Callers keep at most one pair alive: see [`TcpSlot::renew`].
    fn slices(&mut self) -> (&'static mut [u8], &'static mut [u8]) {
        let tx = self.base.as_ptr().wrapping_add(self.each);
        // SAFETY: the two halves of the mapping do not overlap, are zeroed or written by an earlier flow and so
        // initialised, and stay mapped until `Drop`, which runs after the socket that holds the slices is gone.
        unsafe {
            (
                std::slice::from_raw_parts_mut(self.base.as_ptr(), self.each),
                std::slice::from_raw_parts_mut(tx, self.each),
            )
        }
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `map` with this length and nobody holds a slice of it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.each * 2) };
    }
}

impl TcpSlot {
    /// A slot whose rings hold `ring_bytes` each (a multiple of the page size). Fails when the kernel has no
    /// address space or mappings left (mmap(2)).
    pub fn new(ring_bytes: usize) -> io::Result<TcpSlot> {
        let mut rings = Rings::map(ring_bytes)?;
        let mut sockets = SocketSet::new(vec![SocketStorage::EMPTY]);
        let handle = sockets.add(fresh_socket(&mut rings));
        Ok(TcpSlot { sockets: Some(sockets), handle, rings })
    }

    /// Forget the flow that was: a new socket over the same memory.
    pub fn renew(&mut self) {
        if let Some(sockets) = &mut self.sockets {
            drop(sockets.remove(self.handle));
            self.handle = sockets.add(fresh_socket(&mut self.rings));
        }
    }

    /// The set, for smoltcp's `Interface`. The socket must not be taken out of it.
    pub(crate) fn sockets(&mut self) -> &mut SocketSet<'static> {
        self.sockets.as_mut().expect("the set is there until the slot is dropped")
    }

    /// The socket.
    pub(crate) fn socket(&mut self) -> &mut tcp::Socket<'static> {
        let handle = self.handle;
        self.sockets().get_mut(handle)
    }

    /// Give the rings' physical pages back to the kernel. Call it only when nothing is queued either way and no
    /// segment that came out of order waits for its predecessor: what was there is zero afterwards.
    pub fn release_pages(&mut self) {
        // SAFETY: the range is our own private anonymous mapping; no slice of it is being read or written during
        // the call, and the socket reads only what it is told was written later.
        unsafe { libc::madvise(self.rings.base.as_ptr().cast(), self.rings.each * 2, libc::MADV_DONTNEED) };
    }

    /// Give back the pages of which neither ring uses a byte: of the receive ring the first part is kept, of the send ring
    /// the second, each of which begins at its first number, has as many bytes as its second, and may go round its ring's
    /// end. What was elsewhere is zero afterwards.
    pub(crate) fn release_pages_except(&mut self, parts: [(usize, usize); 2]) {
        const PAGE: usize = 4096;
        let each = self.rings.each;
        for (ring, (begin, length)) in parts.into_iter().enumerate() {
            let (begin, length) = (begin % each, length.min(each));
            let end = begin + length;
            // What is free: behind it, and before it, unless it goes round.
            let free = if length == 0 {
                [(0, each), (0, 0)]
            } else if end <= each {
                [(end.next_multiple_of(PAGE), each), (0, begin / PAGE * PAGE)]
            } else {
                [((end - each).next_multiple_of(PAGE), begin / PAGE * PAGE), (0, 0)]
            };
            for (from, to) in free.into_iter().filter(|(from, to)| from < to) {
                let at = self.rings.base.as_ptr().wrapping_add(ring * each + from);
                // SAFETY: as above; the range lies within this ring, whose size is a multiple of the page size.
                unsafe { libc::madvise(at.cast(), to - from, libc::MADV_DONTNEED) };
            }
        }
    }
}

impl Drop for TcpSlot {
    fn drop(&mut self) {
        // The socket first: it holds slices of the rings.
        self.sockets = None;
    }
}

/// A socket over the rings. The one before must be gone.
fn fresh_socket(rings: &mut Rings) -> tcp::Socket<'static> {
    let (rx, tx) = rings.slices();
    let mut socket = tcp::Socket::new(tcp::SocketBuffer::new(rx), tcp::SocketBuffer::new(tx));
    // Nothing is gained by waiting: the frame is written while the host's side works on what it was given, a
    // short timer costs more than that, and a sender with BBR measures its path by acknowledgements.
    socket.set_ack_delay(None);
    socket.set_nagle_enabled(false);
    socket
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewed_slot_is_closed_and_empty() {
        let mut slot = TcpSlot::new(64 * 1024).unwrap();
        slot.socket().listen(80).unwrap();
        assert_eq!(slot.socket().state(), tcp::State::Listen);
        slot.renew();
        assert_eq!(slot.socket().state(), tcp::State::Closed);
        assert_eq!(slot.socket().recv_capacity(), 64 * 1024);
        assert_eq!(slot.socket().send_queue(), 0);
    }

    #[test]
    fn pages_that_are_given_back_are_zero_and_those_in_use_are_not() {
        const RING: usize = 64 * 1024;
        let mut slot = TcpSlot::new(RING).unwrap();
        let fill = |slot: &mut TcpSlot| slot.rings.slices().0.fill(7);
        let kept = |slot: &mut TcpSlot, part| -> Vec<usize> {
            fill(slot);
            slot.release_pages_except([part, (0, 0)]);
            slot.rings.slices().0.chunks(4096).enumerate().filter(|(_, p)| p[0] == 7).map(|(n, _)| n).collect()
        };
        assert_eq!(kept(&mut slot, (0, 0)), [0; 0]);
        assert_eq!(kept(&mut slot, (5000, 1)), [1]);
        assert_eq!(kept(&mut slot, (8000, 400)), [1, 2]);
        assert_eq!(kept(&mut slot, (RING - 10, 20)), [0, 15]);
        assert_eq!(kept(&mut slot, (0, RING)).len(), 16);
        assert_eq!(kept(&mut slot, (100, RING)).len(), 16);
    }
}
