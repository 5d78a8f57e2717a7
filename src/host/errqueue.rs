//! ICMP errors from a socket's error queue (ip(7), IP_RECVERR), in the words of the gateway.
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use crate::gateway::icmp::IcmpError;
use crate::sys::dgram::{self, Origin, QueuedError};

/// An ICMP error that one of a socket's datagrams met.
#[derive(Clone, Copy, Debug)]
pub struct HostIcmp<'a> {
    /// Which error.
    pub error: IcmpError,
    /// Who sent it; `None` when this host's own stack found out without a message.
    pub offender: Option<IpAddr>,
    /// Where the datagram had been sent to.
    pub to: SocketAddr,
    /// As much of the datagram's payload as came back (from a ping socket: the ICMP message from its type on).
    pub payload: &'a [u8],
}

/// Bytes of a payload that are kept: what an ICMPv6 error may quote (RFC 4443, 2.4 c).
const QUOTE: usize = 1280;
/// Entries taken at one go; more than a socket's buffer holds.
const MOST: usize = 4096;

/// Take everything from a socket's error queue and hand on what a sandbox can be told.
pub fn drain(socket: BorrowedFd<'_>, mut sink: impl FnMut(HostIcmp<'_>)) {
    let mut buffer = [0; QUOTE];
    for _ in 0..MOST {
        match dgram::receive_error(socket, &mut buffer) {
            Ok(Some(entry)) => {
                if let Some(error) = translate(&entry) {
                    sink(HostIcmp { error, offender: entry.offender, to: entry.to, payload: entry.payload });
                }
            }
            Ok(None) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// What an entry of the queue means; `None` for what a sandbox need not hear of.
fn translate(entry: &QueuedError<'_>) -> Option<IcmpError> {
    match entry.origin {
        Origin::Icmp => v4(entry),
        Origin::Icmp6 => v6(entry),
        // EMSGSIZE of our own stack was the answer to a send and is reported there.
        Origin::Local if entry.errno == libc::EHOSTUNREACH => Some(IcmpError::HostUnreachable),
        Origin::Local | Origin::Other => None,
    }
}

/// RFC 792; RFC 1122, 3.2.2.1; RFC 1812, 5.2.7.1.
fn v4(entry: &QueuedError<'_>) -> Option<IcmpError> {
    match (entry.kind, entry.code) {
        (3, 0 | 6 | 8 | 11) => Some(IcmpError::NetUnreachable),
        (3, 2) => Some(IcmpError::ProtocolUnreachable),
        (3, 3) => Some(IcmpError::PortUnreachable),
        (3, 4) => Some(IcmpError::PacketTooBig(entry.info)),
        (3, 9 | 10 | 13) => Some(IcmpError::Prohibited),
        (3, _) => Some(IcmpError::HostUnreachable),
        (11, 0) => Some(IcmpError::HopLimitExceeded),
        (11, 1) => Some(IcmpError::ReassemblyTimeExceeded),
        _ => None,
    }
}

/// RFC 4443, 3.
fn v6(entry: &QueuedError<'_>) -> Option<IcmpError> {
    match (entry.kind, entry.code) {
        (1, 0) => Some(IcmpError::NetUnreachable),
        (1, 1 | 5 | 6) => Some(IcmpError::Prohibited),
        (1, 4) => Some(IcmpError::PortUnreachable),
        (1, _) => Some(IcmpError::HostUnreachable),
        (2, _) => Some(IcmpError::PacketTooBig(entry.info)),
        (3, 0) => Some(IcmpError::HopLimitExceeded),
        (3, 1) => Some(IcmpError::ReassemblyTimeExceeded),
        (4, 1) => Some(IcmpError::ProtocolUnreachable),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(origin: Origin, kind: u8, code: u8, errno: i32) -> QueuedError<'static> {
        let to = "192.0.2.1:9".parse().unwrap();
        QueuedError { origin, errno, kind, code, info: 1400, offender: None, to, payload: &[] }
    }

    #[test]
    fn types_and_codes_of_both_families_keep_their_meaning() {
        let of = |origin, kind, code| translate(&entry(origin, kind, code, 0));
        assert_eq!(of(Origin::Icmp, 3, 3), Some(IcmpError::PortUnreachable));
        assert_eq!(of(Origin::Icmp, 3, 4), Some(IcmpError::PacketTooBig(1400)));
        assert_eq!(of(Origin::Icmp, 3, 13), Some(IcmpError::Prohibited));
        assert_eq!(of(Origin::Icmp, 11, 0), Some(IcmpError::HopLimitExceeded));
        assert_eq!(of(Origin::Icmp, 5, 0), None);
        assert_eq!(of(Origin::Icmp6, 1, 4), Some(IcmpError::PortUnreachable));
        assert_eq!(of(Origin::Icmp6, 1, 1), Some(IcmpError::Prohibited));
        assert_eq!(of(Origin::Icmp6, 2, 0), Some(IcmpError::PacketTooBig(1400)));
        assert_eq!(of(Origin::Icmp6, 3, 0), Some(IcmpError::HopLimitExceeded));
    }

    #[test]
    fn a_datagram_too_big_for_our_own_stack_is_not_reported_twice() {
        assert_eq!(translate(&entry(Origin::Local, 0, 0, libc::EMSGSIZE)), None);
        assert_eq!(translate(&entry(Origin::Local, 0, 0, libc::EHOSTUNREACH)), Some(IcmpError::HostUnreachable));
    }
}
