//! What sandboxes send to clients of published UDP ports, until the end of the worker's round.
//!
//! # Theory of operation
//!
//! The gateway hands over datagrams one by one, or as super-segments; the published sockets belong to
//! [`publish::udp`](crate::publish::udp), which takes everything in the same round, after the frames. Meanwhile
//! neighbours of one way, size and type of service become one entry, so that they leave in one system call.
//!
//! Bounds: [`MOST_BYTES`], more than the frames of one round from several sandboxes can hold; beyond it a datagram
//! meets what a full socket would be.
use std::net::SocketAddr;
use std::ops::Range;

use super::outbox::SEGMENTS;
use crate::gateway::link::{Datagram, HostError, ReplyPath};

/// Most bytes that wait.
const MOST_BYTES: usize = 8 << 20;
/// Most bytes of datagrams that are put together: UDP over IPv4 has room for 65,507.
const MOST_JOINED: usize = 65_000;
/// What is kept of the buffer from round to round.
const KEPT: usize = 256 << 10;

/// Datagrams that leave together.
struct Entry {
    path: ReplyPath,
    client: SocketAddr,
    tos: u8,
    /// Bytes of each but the last.
    size: usize,
    bytes: Range<usize>,
}

/// Datagrams for a client of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// The way.
    pub path: ReplyPath,
    /// To whom.
    pub client: SocketAddr,
    /// Type of service / traffic class.
    pub tos: u8,
    /// Bytes of each datagram but the last; 0 for a single one.
    pub segment: u16,
    /// The datagrams, one after the other.
    pub payload: &'a [u8],
}

/// What waits.
#[derive(Default)]
pub struct Replies {
    entries: Vec<Entry>,
    bytes: Vec<u8>,
}

impl Replies {
    /// Let a datagram or a super-segment wait.
    pub fn push(&mut self, path: ReplyPath, client: SocketAddr, datagram: Datagram<'_>) -> Result<(), HostError> {
        let Datagram { payload, segment, tos, .. } = datagram;
        if self.bytes.len() + payload.len() > MOST_BYTES {
            return Err(HostError::Exhausted);
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(payload);
        let bytes = start..self.bytes.len();
        if let Some(last) = self.entries.last_mut()
            && segment == 0
            && (last.path, last.client, last.tos) == (path, client, tos)
            && last.takes(payload.len())
        {
            last.bytes.end = bytes.end;
            return Ok(());
        }
        let size = if segment == 0 { payload.len() } else { usize::from(segment) };
        self.entries.push(Entry { path, client, tos, size, bytes });
        Ok(())
    }

    /// Nothing waits?
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Hand over everything, in order.
    pub fn take(&mut self, mut sink: impl FnMut(Reply<'_>)) {
        for Entry { path, client, tos, size, bytes } in self.entries.drain(..) {
            let payload = &self.bytes[bytes];
            let segment = if payload.len() > size { size as u16 } else { 0 }; // a datagram's size
            sink(Reply { path, client, tos, segment, payload });
        }
        self.bytes.clear();
        self.bytes.shrink_to(KEPT);
    }
}

impl Entry {
    /// May a datagram of this many bytes follow?
    fn takes(&self, len: usize) -> bool {
        let have = self.bytes.len();
        self.size > 0
            && (1..=self.size).contains(&len)
            && have.is_multiple_of(self.size)
            && have / self.size < SEGMENTS
            && have + len <= MOST_JOINED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: ReplyPath = ReplyPath { socket: 1, generation: 1, local: None };

    fn push(replies: &mut Replies, client: &str, payload: &[u8], segment: u16) -> Result<(), HostError> {
        let datagram = Datagram { payload, segment, hop_limit: 64, tos: 0, dont_fragment: false };
        replies.push(PATH, client.parse().unwrap(), datagram)
    }

    fn taken(replies: &mut Replies) -> Vec<(u16, Vec<u8>)> {
        let mut all = Vec::new();
        replies.take(|reply| all.push((reply.segment, reply.payload.to_vec())));
        all
    }

    #[test]
    fn neighbours_of_one_size_leave_together_and_a_shorter_one_ends_them() {
        let mut replies = Replies::default();
        for payload in [&b"aaa"[..], b"bbb", b"c", b"ddd", b"", b"eee", b"fffff"] {
            push(&mut replies, "192.0.2.1:9", payload, 0).unwrap();
        }
        push(&mut replies, "192.0.2.2:9", b"ggggg", 0).unwrap();
        push(&mut replies, "192.0.2.2:9", b"hhiij", 2).unwrap();
        let expected: [(u16, &[u8]); 7] =
            [(3, b"aaabbbc"), (0, b"ddd"), (0, b""), (0, b"eee"), (0, b"fffff"), (0, b"ggggg"), (2, b"hhiij")];
        assert_eq!(taken(&mut replies), expected.map(|(segment, bytes)| (segment, bytes.to_vec())));
        assert!(replies.is_empty() && taken(&mut replies).is_empty());
    }

    #[test]
    fn super_segments_and_the_whole_are_bounded() {
        let mut replies = Replies::default();
        let mut count = 0;
        while push(&mut replies, "192.0.2.1:9", &[0; 1400], 0).is_ok() {
            count += 1;
        }
        assert_eq!(count, MOST_BYTES / 1400);
        let all = taken(&mut replies);
        assert!(all.iter().all(|(_, bytes)| bytes.len() <= MOST_JOINED));
        assert_eq!(all[0], (1400, vec![0; 46 * 1400]));
        (0..100).for_each(|_| push(&mut replies, "192.0.2.1:9", &[0], 0).unwrap());
        assert_eq!(taken(&mut replies).iter().map(|(_, bytes)| bytes.len()).collect::<Vec<_>>(), [64, 36]);
    }
}
