//! Looking at the host: its network, resolvers and name; and who is to do the work.
use std::fs;
use std::path::Path;

use nix::unistd::{Gid, Group, Uid, User};

use super::meaning::Facts;
use super::options::Stop;
use super::template::HostNet;
use crate::host::resolv::ResolvConf;
use crate::host::watch::RESOLV_CONF;
use crate::plan::{MacAddr, PortRange};
use crate::sys::caps::{self, Capability};
use crate::sys::netlink::{Netlink, NetlinkError};
use crate::sys::random;

/// What root becomes in the initial namespaces.
const NOBODY: &str = "nobody";
/// Its ids where there is no such user.
const NOBODY_ID: u32 = 65534;
/// The ports that the kernel gives to clients, where it does not say (ip(7)).
pub const EPHEMERAL: PortRange = PortRange { first: 32768, last: 60999 };

/// Look at everything that a plan needs.
pub fn facts() -> Result<Facts, NetlinkError> {
    let mut netlink = Netlink::open()?;
    let net = HostNet { links: netlink.links()?, addresses: netlink.addresses()?, routes: netlink.routes()? };
    let resolv_conf = fs::read(RESOLV_CONF).ok().map(|text| ResolvConf::parse(&String::from_utf8_lossy(&text)));
    let hostname = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let id = random::bytes::<6>().iter().map(|byte| format!("{byte:02x}")).collect();
    let has_ipv6 = Path::new("/proc/sys/net/ipv6").exists();
    Ok(Facts { net, resolv_conf, hostname, has_ipv6, mac: random_mac(random::bytes()), id })
}

/// A MAC that nobody has bought: of a single interface, locally administered (IEEE 802).
fn random_mac(bytes: [u8; 6]) -> MacAddr {
    let [first, rest @ ..] = bytes;
    let [a, b, c, d, e] = rest;
    MacAddr([(first & 0xfc) | 2, a, b, c, d, e])
}

/// The ports that the host's kernel gives to clients.
pub fn ephemeral_ports() -> PortRange {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    port_range(&text).unwrap_or(EPHEMERAL)
}

fn port_range(text: &str) -> Option<PortRange> {
    let mut words = text.split_whitespace().map(str::parse);
    match (words.next(), words.next()) {
        (Some(Ok(first)), Some(Ok(last))) if 0 < first && first <= last => Some(PortRange { first, last }),
        _ => None,
    }
}

/// A user, and a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Who.
    uid: Uid,
    /// In which group, the only one.
    gid: Gid,
}

impl Identity {
    /// Whom `--runas` names, or whom root becomes; `None` where everything stays as it is.
    pub fn wanted(run_as: Option<&str>) -> Result<Option<Identity>, Stop> {
        match run_as {
            Some(text) => match Identity::parse(text) {
                Some(identity) => Ok(Some(identity).filter(|identity| *identity != Identity::current())),
                None => Err(Stop::Value(format!("Invalid --runas option: {text}"))),
            },
            None if Uid::effective().is_root() && is_initial_userns() => Ok(Some(Identity::nobody())),
            None => Ok(None),
        }
    }

    fn current() -> Identity {
        Identity { uid: Uid::effective(), gid: Gid::effective() }
    }

    fn nobody() -> Identity {
        match User::from_name(NOBODY) {
            Ok(Some(user)) => Identity { uid: user.uid, gid: user.gid },
            _ => Identity { uid: Uid::from_raw(NOBODY_ID), gid: Gid::from_raw(NOBODY_ID) },
        }
    }

    /// `UID[:GID]` or `LOGIN[:GROUP]`.
    fn parse(text: &str) -> Option<Identity> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let (uid, own_gid) = match user.parse() {
            Ok(uid) => (Uid::from_raw(uid), Gid::from_raw(uid)),
            Err(_) => User::from_name(user).ok().flatten().map(|user| (user.uid, user.gid))?,
        };
        let gid = match group {
            None => own_gid,
            Some(group) => match group.parse() {
                Ok(gid) => Gid::from_raw(gid),
                Err(_) => Group::from_name(group).ok().flatten()?.gid,
            },
        };
        Some(Identity { uid, gid })
    }

    /// Its user and group.
    pub fn ids(self) -> (u32, u32) {
        (self.uid.as_raw(), self.gid.as_raw())
    }

    /// Become it. What root could do for a namespace it goes on to be able to do: look into it, enter it, make an
    /// interface there, and bind the host's low ports; for a `command` of its own the last alone. The gateway, which is
    /// started as a program of its own, has none of that.
    pub fn assume(self, command: bool) -> Result<(), Stop> {
        let keep: &[Capability] = match command {
            true => &[Capability::NetBindService],
            false => &[
                Capability::NetBindService,
                Capability::NetAdmin,
                Capability::SysAdmin,
                Capability::SysPtrace,
                Capability::DacReadSearch,
            ],
        };
        caps::change_identity(self.uid, self.gid, keep)
            .map_err(|error| Stop::Value(format!("Can't become uid {}, gid {}: {error}", self.uid, self.gid)))
    }
}

/// Is every id what it is, as in the namespace that the machine began with?
fn is_initial_userns() -> bool {
    fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| is_identity(&map))
}

fn is_identity(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_mac_is_of_one_interface_and_locally_administered() {
        for first in 0..=255 {
            let mac = random_mac([first, 1, 2, 3, 4, 5]);
            assert!(!mac.is_group() && mac.0[0] & 2 == 2, "{mac}");
        }
    }

    #[test]
    fn identities_are_numbers_or_names() {
        let of = |text| Identity::parse(text).map(|identity| (identity.uid.as_raw(), identity.gid.as_raw()));
        assert_eq!(of("1000"), Some((1000, 1000)));
        assert_eq!(of("1000:100"), Some((1000, 100)));
        assert_eq!(of("root"), Some((0, 0)));
        assert_eq!(of("root:7"), Some((0, 7)));
        for wrong in ["", ":", "no-such-user", "0:no-such-group", "-1", "4294967296"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_initial_namespace_maps_every_id_to_itself() {
        assert!(is_identity("         0          0 4294967295\n"));
        assert!(!is_identity("         0       1000          1\n"));
        assert!(!is_identity(""));
    }

    #[test]
    fn the_range_of_ephemeral_ports_is_read() {
        assert_eq!(port_range("32768\t60999\n"), Some(EPHEMERAL));
        assert_eq!([port_range(""), port_range("9 1"), port_range("0 9")], [None, None, None]);
    }
}
