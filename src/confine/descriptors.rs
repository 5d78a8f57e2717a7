//! The stage that leaves no inherited descriptor open.
//!
//! Whoever starts a gateway has closed them all ([`sys::spawn`](crate::sys::spawn)); this is for the day when somebody
//! else starts one, or that fails. What was inherited over an exec is told by its flag: it is not close-on-exec, and
//! everything that this program opens, or has taken over, is. So nothing needs to be listed: the entrance
//! ([`spawn::inherited`](crate::sys::spawn::inherited)) and the log file's duplicate stay, as do the standard three.
use super::Failure;
use crate::sys::proc;

/// Close the rest.
pub(super) fn close_inherited() -> Result<(), Failure> {
    proc::close_inherited_fds(&[]).map_err(|error| ("close inherited descriptors", error))
}
