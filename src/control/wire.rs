//! Messages of the attach protocol as packets: JSON, and descriptors beside it.
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::messages::MAX_MESSAGE;
use crate::sys::scm::{self, ScmError};

/// Why a message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The kernel's answer.
    #[error("the connection between tapline and its gateway failed: {0}")]
    Connection(#[from] ScmError),
    /// The other side speaks something else.
    #[error("a message between tapline and its gateway cannot be read ({0}): are both of the same version?")]
    Json(#[from] serde_json::Error),
    /// Too much was to be said at once.
    #[error(
        "a message of {0} bytes is larger than the {MAX_MESSAGE} bytes that one may have: use fewer names or search domains"
    )]
    TooLarge(usize),
}

impl WireError {
    /// A non-blocking socket had nothing to say, or no room.
    pub fn is_would_block(&self) -> bool {
        matches!(self, WireError::Connection(error) if error.is_would_block())
    }
}

/// Send a message.
pub fn send<T: Serialize>(socket: impl AsFd, message: &T, fds: &[BorrowedFd<'_>]) -> Result<(), WireError> {
    let text = serde_json::to_vec(message)?;
    if text.len() > MAX_MESSAGE {
        return Err(WireError::TooLarge(text.len()));
    }
    Ok(scm::send(socket, &text, fds)?)
}

/// Receive a message and its descriptors; `None` when the other side has closed. A message whose descriptors were lost,
/// because this process has no room for them, comes without any: who sent it can be told.
pub fn recv<T: DeserializeOwned>(socket: impl AsFd) -> Result<Option<(T, Vec<OwnedFd>)>, WireError> {
    let mut buffer = vec![0; MAX_MESSAGE];
    match scm::recv(socket, &mut buffer) {
        Ok((0, _)) => Ok(None),
        Ok((len, fds)) => Ok(Some((serde_json::from_slice(&buffer[..len])?, fds))),
        Err(error @ ScmError::FdsLost(len)) => {
            tracing::warn!("{error}");
            Ok(Some((serde_json::from_slice(&buffer[..len])?, Vec::new())))
        }
        // The other side was killed with a message of ours unread.
        Err(ScmError::Receive(error)) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::messages::{FromGateway, ToGateway};
    use super::*;
    use crate::plan::HostView;
    use std::io::{Read, Write};

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (one, two) = scm::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        send(&one, &ToGateway::HostChanged { host: HostView::default() }, &[writer.as_fd()]).unwrap();
        drop(writer);
        let (message, mut fds) = recv::<ToGateway>(&two).unwrap().unwrap();
        assert!(matches!(message, ToGateway::HostChanged { .. }));
        assert_eq!(fds.len(), 1);
        std::fs::File::from(fds.remove(0)).write_all(b"x").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
    }

    #[test]
    fn a_message_whose_descriptors_were_lost_comes_without_them() {
        crate::sys::testing::in_child(|| {
            use nix::sys::resource::{Resource, setrlimit};
            let text = |error: &dyn std::fmt::Display| error.to_string();
            let (one, two) = scm::pair().map_err(|e| text(&e))?;
            let (mut reader, writer) = io::pipe().map_err(|e| text(&e))?;
            send(&one, &ToGateway::Inside, &[writer.as_fd()]).map_err(|e| text(&e))?;
            drop(writer);
            setrlimit(Resource::RLIMIT_NOFILE, 3, 3).map_err(|e| text(&e))?;
            match recv::<ToGateway>(&two) {
                Ok(Some((ToGateway::Inside, fds))) if fds.is_empty() => {}
                other => return Err(format!("{other:?}")),
            }
            match reader.read(&mut [0; 1]) {
                Ok(0) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    #[test]
    fn a_closed_end_is_no_message_and_nonsense_is_an_error() {
        let (one, two) = scm::pair().unwrap();
        scm::send(&one, b"{\"type\":\"sing\"}", &[]).unwrap();
        assert!(matches!(recv::<FromGateway>(&two), Err(WireError::Json(_))));
        drop(one);
        assert!(recv::<FromGateway>(&two).unwrap().is_none());
    }

    #[test]
    fn what_is_too_large_is_not_sent() {
        let (one, _two) = scm::pair().unwrap();
        let message = FromGateway::Notice { text: "x".repeat(MAX_MESSAGE) };
        assert!(matches!(send(&one, &message, &[]), Err(WireError::TooLarge(_))));
    }
}
