//! A descriptor that tokio waits for.
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor whose readiness to be read and written a tokio runtime watches.
#[derive(Debug)]
pub struct Watched(AsyncFd<OwnedFd>);

impl Watched {
    /// Watch a non-blocking descriptor. Call it within a tokio runtime.
    pub fn new(fd: OwnedFd) -> io::Result<Watched> {
        // SAFETY: an `OwnedFd` is open as long as it lives and always gives the same descriptor; this type lets
        // nobody swap it.
        Ok(Watched(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE | Interest::WRITABLE) }?))
    }

    /// Wait until `read` gives something else than `None`, which means "nothing there yet".
    pub async fn read<T>(&self, mut read: impl FnMut(BorrowedFd<'_>) -> Option<T>) -> io::Result<T> {
        loop {
            let mut ready = self.0.readable().await?;
            match read(self.0.get_ref().as_fd()) {
                Some(value) => return Ok(value),
                None => ready.clear_ready(),
            }
        }
    }

    /// Wait until `write` gives something else than `None`, which means "no room yet".
    pub async fn write<T>(&self, mut write: impl FnMut(BorrowedFd<'_>) -> Option<T>) -> io::Result<T> {
        loop {
            let mut ready = self.0.writable().await?;
            match write(self.0.get_ref().as_fd()) {
                Some(value) => return Ok(value),
                None => ready.clear_ready(),
            }
        }
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}
