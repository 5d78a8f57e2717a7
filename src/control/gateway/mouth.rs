//! What is said to one supervisor.
//!
//! A task ([`speak`]) sends it, and waits while the supervisor reads nothing; nobody else waits for that. Answers and
//! notices wait in a queue of [`QUEUE`] messages; of each linked sandbox only the latest addresses wait.
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, mpsc};

use super::super::messages::FromGateway;
use super::super::wire::{self, WireError};
use crate::sys::watch::Watched;

/// Messages to a supervisor that wait to be sent.
pub const QUEUE: usize = 64;

/// The way to a supervisor.
#[derive(Clone, Debug)]
pub struct Mouth {
    queue: mpsc::Sender<FromGateway>,
    linked: Arc<Linked>,
}

/// Linked sandboxes of which the supervisor is to be told: their names, where they are now.
#[derive(Debug, Default)]
struct Linked {
    waiting: Mutex<BTreeMap<String, Vec<IpAddr>>>,
    news: Notify,
}

/// What [`speak`] is to say.
#[derive(Debug)]
pub struct Said {
    queue: mpsc::Receiver<FromGateway>,
    linked: Arc<Linked>,
}

impl Mouth {
    /// A way to a supervisor, and what is to be given to [`speak`].
    pub fn new() -> (Mouth, Said) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let linked = Arc::<Linked>::default();
        (Mouth { queue: sender, linked: Arc::clone(&linked) }, Said { queue, linked })
    }

    /// For those who can wait for their turn.
    pub fn queue(&self) -> &mpsc::Sender<FromGateway> {
        &self.queue
    }

    /// Say one sentence to the person.
    pub fn notice(&self, text: String) {
        if let Err(error) = self.queue.try_send(FromGateway::Notice { text }) {
            tracing::warn!("a supervisor cannot be told: {error}");
        }
    }

    /// A linked sandbox has these addresses now.
    pub fn linked(&self, sandbox: String, addresses: Vec<IpAddr>) {
        self.linked.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(sandbox, addresses);
        self.linked.news.notify_one();
    }
}

impl Said {
    /// The next message; `None` when nothing more can come.
    async fn next(&mut self) -> Option<FromGateway> {
        loop {
            let first = self.linked.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_first();
            if let Some((sandbox, addresses)) = first {
                return Some(FromGateway::Linked { sandbox, addresses });
            }
            tokio::select! {
                message = self.queue.recv() => return message,
                () = self.linked.news.notified() => {}
            }
        }
    }
}

/// Say to the supervisor what is to be said.
pub async fn speak(attach: Arc<Watched>, mut said: Said) {
    while let Some(message) = said.next().await {
        let sent = attach.write(|fd| match wire::send(fd, &message, &[]) {
            Err(error) if error.is_would_block() => None,
            other => Some(other),
        });
        match sent.await {
            Ok(Ok(())) => {}
            Ok(Err(error @ (WireError::TooLarge(_) | WireError::Json(_)))) => tracing::warn!("{error}"),
            // The supervisor has gone; whoever reads the connection sees it as well.
            Ok(Err(_)) | Err(_) => return,
        }
    }
}
