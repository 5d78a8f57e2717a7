//! Pipes that spliced bytes go through, and how many there may be.
//!
//! # Theory of operation
//!
//! A pipe is lent to one way of a connection while bytes are in it or on the move, and comes back empty; an idle
//! connection has none. A few spare ones are kept, so that a busy connection does not make one each time.
//!
//! The kernel counts the pages that the pipes of a user could hold, filled or not, and gives all of the user's
//! programs tiny pipes when they are more than fs.pipe-user-pages-soft (64 MiB; pipe(7)). So no more than
//! [`MOST_LARGE`] are made large, and a pipe that cannot be is taken as it is. There are at most
//! [`MOST_PIPES`], fewer where the process may have few descriptors; whoever gets none copies instead.
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit};

/// Bytes asked for in a large pipe; the second where the first is refused.
const LARGE_BYTES: [i32; 2] = [1 << 20, 256 << 10];
/// Most large pipes.
const MOST_LARGE: usize = 16;
/// Most pipes.
const MOST_PIPES: usize = 1024;
/// Empty pipes that are kept.
const SPARE: usize = 4;

/// A pipe.
#[derive(Debug)]
pub struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    large: bool,
}

impl Pipe {
    /// Where bytes come out.
    pub fn reader(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }

    /// Where bytes go in.
    pub fn writer(&self) -> BorrowedFd<'_> {
        self.writer.as_fd()
    }
}

/// All pipes of a worker.
#[derive(Debug)]
pub struct PipePool {
    /// Empty ones.
    spare: Vec<Pipe>,
    /// Pipes there are, spare and lent.
    all: usize,
    /// The large ones among them.
    large: usize,
    most: usize,
}

impl PipePool {
    /// No pipes yet.
    pub fn new() -> PipePool {
        let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |limit| limit.0);
        PipePool::with_most(usize::try_from(files / 16).map_or(MOST_PIPES, |most| most.clamp(4, MOST_PIPES)))
    }

    /// No pipes yet, and never more than these.
    pub fn with_most(most: usize) -> PipePool {
        PipePool { spare: Vec::new(), all: 0, large: 0, most }
    }

    /// An empty pipe; `None` when there may be no more.
    pub fn take(&mut self) -> Option<Pipe> {
        if let Some(pipe) = self.spare.pop() {
            return Some(pipe);
        }
        if self.all >= self.most {
            return None;
        }
        let pipe = make(self.large < MOST_LARGE).ok()?;
        self.all += 1;
        self.large += usize::from(pipe.large);
        Some(pipe)
    }

    /// Take back a pipe that is empty.
    pub fn give(&mut self, pipe: Pipe) {
        if self.spare.len() < SPARE { self.spare.push(pipe) } else { self.discard(pipe) }
    }

    /// Take back a pipe that has bytes, which are lost.
    pub fn discard(&mut self, pipe: Pipe) {
        self.all -= 1;
        self.large -= usize::from(pipe.large);
    }

    /// How many are lent.
    pub fn lent(&self) -> usize {
        self.all - self.spare.len()
    }
}

impl Default for PipePool {
    fn default() -> PipePool {
        PipePool::new()
    }
}

fn make(want_large: bool) -> io::Result<Pipe> {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let large =
        want_large && LARGE_BYTES.into_iter().any(|bytes| fcntl(&writer, FcntlArg::F_SETPIPE_SZ(bytes)).is_ok());
    Ok(Pipe { reader, writer, large })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_are_used_again_and_few_are_kept() {
        let mut pool = PipePool::new();
        let lent: Vec<Pipe> = (0..SPARE + 3).map(|_| pool.take().unwrap()).collect();
        assert_eq!(pool.lent(), SPARE + 3);
        for pipe in lent {
            pool.give(pipe);
        }
        assert_eq!((pool.lent(), pool.all), (0, SPARE));
        let pipe = pool.take().unwrap();
        pool.discard(pipe);
        assert_eq!((pool.lent(), pool.all), (0, SPARE - 1));
    }

    #[test]
    fn beyond_the_bound_there_are_none_and_few_are_large() {
        let mut pool = PipePool::with_most(MOST_LARGE + 2);
        let lent: Vec<Pipe> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(lent.len(), MOST_LARGE + 2);
        assert!(pool.large <= MOST_LARGE);
        assert!(!lent[MOST_LARGE + 1].large);
        for pipe in lent {
            pool.discard(pipe);
        }
        assert_eq!((pool.all, pool.large), (0, 0));
    }
}
