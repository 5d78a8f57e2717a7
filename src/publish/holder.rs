//! Who has a port of this host, as far as /proc tells (proc(5)): for error messages only, and never in a hurry.
//!
//! The kernel's tables of sockets give an inode and a user; which process has that inode open is seen only for the
//! caller's own processes, unless the caller is root, and not for those that may not be looked into, as a supervisor that
//! has its sandbox in place. A sandbox's own state says which ports it has.
use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::unistd::{Uid, User};

use crate::control::state::{SandboxState, StateDir};
use crate::plan::Protocol;

/// Who has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A sandbox of the caller's.
    Sandbox(String),
    /// A process that the caller can see.
    Process {
        /// Its name, as ps(1) has it.
        name: String,
        /// Its PID.
        pid: i32,
    },
    /// Somebody's; more cannot be seen.
    User(String),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Sandbox(name) => write!(f, "the sandbox `{name}`"),
            Holder::Process { name, pid } => write!(f, "{name} (process {pid})"),
            Holder::User(name) => write!(f, "a process of {name}"),
        }
    }
}

#[cfg(test)]
thread_local! {
    /// How often this thread has looked.
    pub(crate) static LOOKS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// Who keeps a socket from being bound here. It waits for nobody, but it reads much.
pub fn of(protocol: Protocol, address: SocketAddr) -> Option<Holder> {
    #[cfg(test)]
    LOOKS.set(LOOKS.get() + 1);
    let (inode, uid) = socket_at(protocol, address)?;
    let pids = holders(inode);
    let sandboxes = StateDir::open().map(|states| states.glance()).unwrap_or_default();
    let is_ours = uid == Uid::effective().as_raw();
    if let Some(sandbox) = sandboxes.iter().find(|sandbox| match pids[..] {
        [] => is_ours && publishes(sandbox, protocol, address),
        _ => pids.contains(&sandbox.supervisor_pid),
    }) {
        return Some(Holder::Sandbox(sandbox.name.clone()));
    }
    if let Some(&pid) = pids.first() {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let name = name.trim().chars().filter(|c| !c.is_control()).collect();
        return Some(Holder::Process { name, pid });
    }
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    Some(Holder::User(user.map_or(format!("uid {uid}"), |user| user.name)))
}

/// Has it a published port there?
fn publishes(sandbox: &SandboxState, protocol: Protocol, address: SocketAddr) -> bool {
    sandbox.ports.iter().any(|port| port.protocol == protocol && is_in_the_way(port.host, address))
}

/// Inode and uid of the socket in the way; one that listens before one that is connected.
fn socket_at(protocol: Protocol, wanted: SocketAddr) -> Option<(u64, u32)> {
    let tables = match protocol {
        Protocol::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
        Protocol::Udp => ["/proc/net/udp", "/proc/net/udp6"],
    };
    let texts = tables.map(|table| fs::read_to_string(table).unwrap_or_default());
    let rows = texts.iter().flat_map(|text| text.lines().skip(1)).filter_map(Row::read);
    let in_the_way = rows.filter(|row| row.inode != 0 && is_in_the_way(row.local, wanted));
    in_the_way.min_by_key(|row| !row.is_open).map(|row| (row.inode, row.uid))
}

fn is_in_the_way(theirs: SocketAddr, ours: SocketAddr) -> bool {
    let (their_ip, our_ip) = (theirs.ip().to_canonical(), ours.ip().to_canonical());
    theirs.port() == ours.port() && (their_ip == our_ip || their_ip.is_unspecified() || our_ip.is_unspecified())
}

/// A line of /proc/net/tcp and its like.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    local: SocketAddr,
    /// It takes whatever comes, rather than one conversation.
    is_open: bool,
    uid: u32,
    inode: u64,
}

impl Row {
    fn read(line: &str) -> Option<Row> {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, local, _, state, _, _, _, uid, _, inode, ..] = words[..] else { return None };
        let (address, port) = local.split_once(':')?;
        let address = match address.len() {
            8 => IpAddr::V4(Ipv4Addr::from(word(address)?)),
            32 => {
                let mut bytes = [0; 16];
                for (at, four) in bytes.chunks_exact_mut(4).enumerate() {
                    four.copy_from_slice(&word(address.get(at * 8..at * 8 + 8)?)?);
                }
                IpAddr::V6(Ipv6Addr::from(bytes))
            }
            _ => return None,
        };
        let port = u16::from_str_radix(port, 16).ok()?;
        // TCP_LISTEN, and TCP_CLOSE, which is how a socket of UDP without a peer is shown (net/tcp_states.h).
        let is_open = matches!(state, "0A" | "07");
        Some(Row { local: (address, port).into(), is_open, uid: uid.parse().ok()?, inode: inode.parse().ok()? })
    }
}

/// Four bytes that the kernel has printed as a number in its own order.
fn word(hex: &str) -> Option<[u8; 4]> {
    u32::from_str_radix(hex, 16).ok().map(u32::to_ne_bytes)
}

/// The processes that have a socket open, the lowest PID first.
fn holders(inode: u64) -> Vec<i32> {
    let link = format!("socket:[{inode}]");
    let has_it = |pid: &i32| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        fds.into_iter().any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target.as_os_str() == link.as_str()))
    };
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<i32> = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(has_it).collect();
    pids.sort_unstable();
    pids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_of_the_kernels_tables_are_read() {
        let v4 =
            "   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0 0";
        let expected = Row { local: "127.0.0.1:8080".parse().unwrap(), is_open: true, uid: 1000, inode: 4711 };
        assert_eq!(Row::read(v4), Some(expected));
        let v6 =
            "  0: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 01 0:0 00:0 0 0 0 5 1 0";
        let row = Row::read(v6).unwrap();
        assert_eq!((row.local, row.is_open, row.inode), ("[::1]:53".parse().unwrap(), false, 5));
        for bad in
            ["", "  sl  local_address rem_address st", "0: x:1 0:0 0A 0:0 0:0 0 0 0 1", "0: 0100007F 0 0A 0 0 0 0 0 1"]
        {
            assert_eq!(Row::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_listener_of_either_family_is_in_the_way_of_all_addresses() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert!(is_in_the_way(at("127.0.0.1:80"), at("[::]:80")));
        assert!(is_in_the_way(at("0.0.0.0:80"), at("127.0.0.1:80")));
        assert!(is_in_the_way(at("[::ffff:127.0.0.1]:80"), at("127.0.0.1:80")));
        assert!(!is_in_the_way(at("127.0.0.1:80"), at("127.0.0.2:80")));
        assert!(!is_in_the_way(at("127.0.0.1:81"), at("127.0.0.1:80")));
    }

    #[test]
    fn nobody_has_a_free_port() {
        assert_eq!(of(Protocol::Tcp, "127.77.1.1:1".parse().unwrap()), None);
    }
}
