//! The interface inside: made and configured by the agent, which is in the sandbox's user and network namespace
//! and has CAP_NET_ADMIN there.
//!
//! # Theory of operation
//!
//! [`make_link`] makes the interface and hands out the descriptor that the gateway carries its frames by. It is a
//! TAP where /dev/net/tun can be had. Where it cannot, it is a veth pair: one half is the sandbox's interface,
//! the other half goes to a second, empty network namespace of the same user namespace, and a packet socket is
//! bound to it. CMD never sees that namespace, and no IP stack answers there. Nothing but the packet socket
//! keeps the second namespace alive: when the socket is closed the kernel takes down the namespace and the pair.
//! It does so a little later, so a name that is taken is tried again for a moment.
//!
//! A half that is brought up before the other one has no carrier at that moment, and silently loses all that is
//! sent through it until the kernel's linkwatch has run. The far half's state cannot be seen from the sandbox, so
//! it is the one brought up last; the sandbox's half comes up first and is waited for. That is why a veth is up
//! when it is handed out, where a TAP is not.
//!
//! [`configure`] gives the interface its MTU, MAC, addresses and routes. The kernel shall add nothing of its own
//! and wait for nothing: no link-local address that is tentative for a second (addr_gen_mode none, one of ours
//! instead), no router advertisements (accept_ra 0), no duplicate address detection, reverse-path filtering
//! loose where it was inherited from the host. Most of that is sysctls, and /proc/sys is read-only in many
//! containers: then what netlink can do is done by netlink, and what is left is a [notice](Configured::notices),
//! not an error. A kernel without IPv6 is a notice too.
//!
//! Other tools' command lines want more of it ([`InterfaceExtras`]): further addresses and routes, a gateway outside the
//! subnet, to which a route of its own leads first; or no IPv6 address of ours at all, but what the kernel makes of a
//! router advertisement: then its own link-local address, which it asks with at once because nothing is probed.
//!
//! A persistent TAP may be there already ([`join_tap`]): its name, Ethernet address and state are whoever made it's, and
//! so they stay unless it is to be configured.
//!
//! What is made disappears with the descriptor or with the namespace; there is nothing to undo.
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::sleep;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::plan::{InterfaceExtras, LinkChoice, LinkKind, MacAddr, Route};
use crate::sys::netlink::{LinkChange, Netlink, NetlinkError};
use crate::sys::netns;
use crate::sys::packet::{self, PacketError};
use crate::sys::tun::{self, Tap, TapError, valid_ifname};

/// Name of the half that the sandbox does not see.
const FAR_HALF: &str = "far0";

/// MTU of the far half, the largest a veth can have: the gateway never sends more than fits the sandbox's half.
const FAR_MTU: u32 = 65_535;

/// How long, and how often, a name that is taken is tried again.
const LEFTOVER_RETRIES: u32 = 25;
const LEFTOVER_PAUSE: Duration = Duration::from_millis(10);

/// How long, and how often, a veth's carrier is waited for.
const CARRIER_RETRIES: u32 = 1000;
const CARRIER_PAUSE: Duration = Duration::from_millis(1);

/// Why the sandbox has no interface.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No TAP, and nothing else was allowed or could help.
    #[error("{0}{hint}", hint = if .0.is_unavailable() { "; use --link-kind packet, which needs no device" } else { "" })]
    Tap(#[from] TapError),
    /// An interface of that name is there, and nothing by which a TAP could be used.
    #[error("cannot use the interface {0} that is there already: {1}")]
    NotJoined(String, #[source] TapError),
    /// No second namespace.
    #[error("cannot make a second network namespace for the packet socket: {0}; see user.max_net_namespaces")]
    Namespace(#[source] io::Error),
    /// No way back from the second namespace: the agent cannot go on.
    #[error("cannot return to the sandbox's network namespace: {0}")]
    Return(#[source] io::Error),
    /// The kernel makes no veth pairs.
    #[error("this kernel has no veth interfaces (module veth), which a packet socket needs; use --link-kind tap")]
    NoVeth,
    /// No packet socket.
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// The pair's halves do not come up.
    #[error("the interface {0} has no carrier: the kernel did not join it to its other half")]
    NoCarrier(String),
    /// A step of configuring failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Nothing is left to call another interface.
    #[error("every name from eth0 to eth{last} is taken inside: give one with --ifname", last = super::order::MOST_NAMES - 1)]
    NoName,
    /// Neither kind of link can be had.
    #[error("{tap}; and a packet socket in its place: {packet}")]
    Neither {
        /// Why no TAP.
        tap: TapError,
        /// Why no packet socket.
        packet: Box<LinkError>,
    },
}

/// A link that was made.
#[derive(Debug)]
pub struct MadeLink {
    /// What it is.
    pub kind: LinkKind,
    /// The TAP queue or packet socket, for the gateway, where there is one.
    pub fd: Option<OwnedFd>,
    /// The interface's Ethernet address, where it was not for us to choose.
    pub mac: Option<MacAddr>,
    /// The interface was there before us and stays after us.
    pub stays: bool,
    /// One line for the person, where it is not what was expected.
    pub notice: Option<String>,
}

/// The addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses<Ip> {
    /// The sandbox's address.
    pub address: Ip,
    /// Length of the subnet's prefix.
    pub prefix: u8,
    /// Where everything else leads; `None` where nothing does.
    pub gateway: Option<Ip>,
}

/// What [`configure`] is to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its MTU; `None` leaves it as it is.
    pub mtu: Option<u32>,
    /// IPv4.
    pub v4: Option<Addresses<Ipv4Addr>>,
    /// IPv6.
    pub v6: Option<Addresses<Ipv6Addr>>,
    /// What there is besides. `mtu` is above.
    pub extras: InterfaceExtras,
    /// Addresses and routes may be there already.
    pub stays: bool,
}

/// What [`configure`] has to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configured {
    /// Lines for the person: what could not be set, and what that means.
    pub notices: Vec<String>,
    /// IPv6 was asked for and is there.
    pub v6: bool,
}

/// Make the sandbox's interface, with its MAC and, unless it is to stay as it is, MTU, and without addresses, in the
/// calling thread's network namespace. With [`LinkChoice::Auto`] a TAP if possible; with [`LinkChoice::None`] nothing.
///
/// The thread is in the same network namespace afterwards, unless the error is [`LinkError::Return`]. No other
/// thread should be running: a new namespace is entered for a moment.
pub fn make_link(choice: LinkChoice, ifname: &str, mac: MacAddr, mtu: Option<u32>) -> Result<MadeLink, LinkError> {
    match choice {
        LinkChoice::None => Ok(MadeLink { kind: LinkKind::None, fd: None, mac: None, stays: false, notice: None }),
        LinkChoice::Packet => Ok(packet(make_veth(ifname, mac, mtu)?, None)),
        LinkChoice::Tap => make_tap(ifname, mac, mtu),
        LinkChoice::Auto => match make_tap(ifname, mac, mtu) {
            Err(LinkError::Tap(tap)) if tap.is_unavailable() => {
                let notice = format!("{tap}; using a packet socket instead");
                match make_veth(ifname, mac, mtu) {
                    Ok(fd) => Ok(packet(fd, Some(notice))),
                    Err(packet) => Err(LinkError::Neither { tap, packet: Box::new(packet) }),
                }
            }
            other => other,
        },
    }
}

fn packet(fd: OwnedFd, notice: Option<String>) -> MadeLink {
    MadeLink { kind: LinkKind::Packet, fd: Some(fd), mac: None, stays: false, notice }
}

fn make_tap(ifname: &str, mac: MacAddr, mtu: Option<u32>) -> Result<MadeLink, LinkError> {
    let fd = Tap::create(ifname)?.into_fd();
    prepare(&mut Netlink::open()?, ifname, mac, mtu, None)?;
    Ok(MadeLink { kind: LinkKind::Tap, fd: Some(fd), mac: None, stays: false, notice: None })
}

/// The persistent TAP of this name, where there is such an interface, as it is.
///
/// # Errors
/// Where the interface is something else, or somebody else has it.
pub fn join_tap(ifname: &str) -> Result<Option<MadeLink>, LinkError> {
    let link = match Netlink::open()?.link(ifname) {
        Ok(link) => link,
        Err(error) if error.errno() == Some(libc::ENODEV) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let joined = Tap::join(ifname).map_err(|error| match error {
        error if error.is_unavailable() => LinkError::NotJoined(ifname.to_owned(), error),
        error => error.into(),
    });
    let fd = joined?.into_fd();
    let mac = tun::ethernet_address(&fd).ok().or(link.mac).map(MacAddr);
    Ok(Some(MadeLink { kind: LinkKind::Tap, fd: Some(fd), mac, stays: true, notice: None }))
}

/// Set what has to be set before the interface is up for the first time, so that it never has an address of
/// the kernel's making.
fn prepare(
    netlink: &mut Netlink,
    ifname: &str,
    mac: MacAddr,
    mtu: Option<u32>,
    up: Option<bool>,
) -> Result<(), NetlinkError> {
    let index = netlink.link(ifname)?.index;
    // Refused by a kernel without IPv6, where there is nothing to keep away.
    let _ = netlink.set_addr_gen_mode_none(index);
    let change = LinkChange { mac: Some(mac.0), mtu, ..LinkChange::default() };
    netlink.change_link(index, &change)?;
    match up {
        Some(_) => netlink.change_link(index, &LinkChange { up, ..LinkChange::default() }),
        None => Ok(()),
    }
}

/// Leave the interface as the kernel makes one, for somebody else to configure: down, so that it gets no address
/// from a router advertisement before they begin, and with a link-local address of its own once it is up, so that
/// it asks for one then.
pub fn leave_to_others(ifname: &str) -> Result<(), LinkError> {
    let mut netlink = Netlink::open()?;
    let index = netlink.link(ifname)?.index;
    netlink.change_link(index, &LinkChange { up: Some(false), ..LinkChange::default() })?;
    // Refused by a kernel without IPv6.
    let _ = netlink.set_addr_gen_mode_eui64(index);
    Ok(())
}

/// Make a veth pair whose other half lies in a namespace of its own, and a packet socket on that half.
fn make_veth(ifname: &str, mac: MacAddr, mtu: Option<u32>) -> Result<OwnedFd, LinkError> {
    if !valid_ifname(ifname) {
        return Err(TapError::Name(ifname.to_owned()).into());
    }
    // Speaks to the sandbox's namespace wherever this thread is.
    let mut near = Netlink::open()?;
    let here = netns::of_socket(&near).map_err(LinkError::Namespace)?;
    netns::unshare().map_err(LinkError::Namespace)?;
    let made = far_half(ifname, &here, || prepare(&mut near, ifname, mac, mtu, Some(true)));
    netns::enter(&here).map_err(LinkError::Return)?;
    let socket = made?;
    for _ in 0..CARRIER_RETRIES {
        if near.link(ifname)?.running {
            return Ok(socket);
        }
        sleep(CARRIER_PAUSE);
    }
    Err(LinkError::NoCarrier(ifname.to_owned()))
}

/// In the second namespace: the pair, and the packet socket on its half that stays here. `near_half` brings up
/// the other.
fn far_half(
    ifname: &str,
    sandbox: &OwnedFd,
    near_half: impl FnOnce() -> Result<(), NetlinkError>,
) -> Result<OwnedFd, LinkError> {
    let mut netlink = Netlink::open()?;
    create_veth(&mut netlink, ifname, sandbox)?;
    let index = netlink.link(FAR_HALF)?.index;
    let set_up = |netlink: &mut Netlink| {
        near_half()?;
        // This half must be silent. One of the two is enough; a kernel without IPv6 needs neither.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{FAR_HALF}/disable_ipv6"), "1");
        let _ = netlink.set_addr_gen_mode_none(index);
        netlink.change_link(index, &LinkChange { up: Some(true), mtu: Some(FAR_MTU), ..LinkChange::default() })?;
        Ok(packet::open(index)?)
    };
    let socket = set_up(&mut netlink);
    if socket.is_err() {
        // Not left to the namespace's end, which comes later: the name shall be free at once.
        let _ = netlink.delete_link(index);
    }
    socket
}

fn create_veth(netlink: &mut Netlink, ifname: &str, sandbox: &OwnedFd) -> Result<(), LinkError> {
    let mut attempts = 0;
    loop {
        match netlink.create_veth(FAR_HALF, ifname, sandbox.as_fd()) {
            Ok(()) => return Ok(()),
            Err(error) => match error.errno() {
                // A pair that has just been given up may still be there.
                Some(libc::EEXIST) if attempts < LEFTOVER_RETRIES => {
                    attempts += 1;
                    sleep(LEFTOVER_PAUSE);
                }
                Some(libc::EEXIST) => return Err(TapError::Taken(ifname.to_owned()).into()),
                Some(libc::EOPNOTSUPP) => return Err(LinkError::NoVeth),
                _ => return Err(error.into()),
            },
        }
    }
}

/// Bring `lo` up.
pub fn bring_up_loopback() -> Result<(), LinkError> {
    let mut netlink = Netlink::open()?;
    let lo = netlink.link("lo")?.index;
    Ok(netlink.change_link(lo, &LinkChange { up: Some(true), ..LinkChange::default() })?)
}

/// Bring `lo` up and open what is closed by default inside: ports below 1024 and ping sockets for everybody.
/// The notices say what could not be set.
pub fn configure_namespace() -> Result<Configured, LinkError> {
    let mut done = Configured::default();
    bring_up_loopback()?;
    if let Err(error) = sysctl("net/ipv4/ip_unprivileged_port_start", "0") {
        done.notices.push(format!("only root inside can bind ports below 1024: {error}"));
    }
    // Groups that the user namespace does not map are refused, so the widest range that is taken is looked for.
    if sysctl("net/ipv4/ping_group_range", "0 2147483647").is_err()
        && let Err(error) = ping_groups()
    {
        done.notices.push(format!("only root inside can ping: {error}"));
    }
    Ok(done)
}

/// Ping sockets for the groups that are mapped here, as far as they follow each other from 0, or for our own.
fn ping_groups() -> io::Result<()> {
    let map = std::fs::read_to_string("/proc/self/gid_map")?;
    let mut ranges: Vec<(u64, u64)> = map
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            Some((words.next()?.parse().ok()?, words.nth(1)?.parse().ok()?))
        })
        .collect();
    ranges.sort_unstable();
    let (first, mut end) = ranges.first().map(|&(at, count)| (at, at + count)).ok_or(io::ErrorKind::NotFound)?;
    for (at, count) in ranges {
        if at == end {
            end += count;
        }
    }
    sysctl("net/ipv4/ping_group_range", &format!("{first} {}", end - 1))
}

/// Give the interface its addresses and routes and bring it up. [`configure_namespace`] is called first.
///
/// # Errors
///
/// Where the interface, an address or a route is refused. A missing IPv6 is no error but a notice, and so is a route
/// beyond the default one.
pub fn configure(ifname: &str, settings: &Settings) -> Result<Configured, LinkError> {
    let Settings { mac, mtu, v4, v6, ref extras, stays } = *settings;
    let mut done = configure_namespace()?;
    let mut netlink = Netlink::open()?;
    let link = netlink.link(ifname)?;
    let index = link.index;
    let (mut v6, mut advertised) = (v6, extras.v6_by_advertisement);
    if (v6.is_some() || advertised) && !std::path::Path::new("/proc/sys/net/ipv6").exists() && !has_ipv6(&mut netlink)?
    {
        done.notices.push("this kernel has no IPv6: the sandbox goes without".to_owned());
        (v6, advertised) = (None, false);
    }
    let own_v6 = match (v6, advertised) {
        (_, true) => OwnV6::Advertised,
        (Some(_), false) => OwnV6::Ours,
        (None, false) => OwnV6::None,
    };
    quiet_interface(&mut netlink, index, ifname, own_v6, &mut done);
    let change =
        LinkChange { up: Some(true), mtu, mac: (link.mac != Some(mac.0)).then_some(mac.0), ..LinkChange::default() };
    netlink.change_link(index, &change)?;
    let mut inside = Inside { netlink, index, stays, subnets: Vec::new() };
    let of = |v6: bool| extras.addresses.iter().copied().filter(move |net| net.addr().is_ipv6() == v6);
    if let Some(v4) = v4 {
        inside.add_address(v4.address.into(), v4.prefix)?;
        of(false).try_for_each(|net| inside.add_address(net.addr(), net.prefix_len()))?;
        v4.gateway.map_or(Ok(()), |gateway| inside.add_default(gateway.into()))?;
    }
    if let Some(v6) = v6.filter(|_| !advertised) {
        match inside.add_v6(mac, v6, of(true)) {
            Ok(()) => done.v6 = true,
            Err(error) if error.is_family_missing() => {
                done.notices.push(format!("the sandbox goes without IPv6: {error}"));
            }
            Err(error) => return Err(error.into()),
        }
    }
    for route in extras.routes.iter().filter(|route| route.to.addr().is_ipv4() || done.v6) {
        if let Err(error) = inside.add_route(route) {
            done.notices.push(error.to_string());
        }
    }
    Ok(done)
}

/// An interface that is being configured.
struct Inside {
    netlink: Netlink,
    index: u32,
    stays: bool,
    /// What its addresses say is on the link.
    subnets: Vec<IpNet>,
}

impl Inside {
    fn add_address(&mut self, ip: IpAddr, prefix: u8) -> Result<(), NetlinkError> {
        self.subnets.extend(IpNet::new(ip, prefix));
        match self.netlink.add_address(self.index, ip, prefix) {
            Err(error) if self.stays && error.errno() == Some(libc::EEXIST) => Ok(()),
            other => other,
        }
    }

    fn add_v6(
        &mut self,
        mac: MacAddr,
        v6: Addresses<Ipv6Addr>,
        further: impl Iterator<Item = IpNet>,
    ) -> Result<(), NetlinkError> {
        let own = [IpNet::V6(ipnet::Ipv6Net::new_assert(v6.address, v6.prefix))];
        let link_local = mac.link_local();
        self.add_address(IpAddr::V6(link_local), 64)?;
        // Of addresses that are alike the kernel prefers the last that was added, and lists it first.
        let further: Vec<IpNet> = further.collect();
        for net in further.into_iter().rev().chain(own).filter(|net| net.addr() != link_local) {
            self.add_address(net.addr(), net.prefix_len())?;
        }
        v6.gateway.map_or(Ok(()), |gateway| self.add_default(gateway.into()))
    }

    /// The default route; before it one to the gateway, where no address says that it is on the link.
    fn add_default(&mut self, gateway: IpAddr) -> Result<(), NetlinkError> {
        if !self.subnets.iter().any(|net| net.contains(&gateway)) {
            self.add_route(&Route { to: gateway.into(), via: None })?;
        }
        let everywhere = IpNet::new(gateway, 0).map_or(gateway, |net| net.network());
        match self.netlink.add_route(self.index, everywhere, 0, Some(gateway)) {
            Err(error) if self.stays && error.errno() == Some(libc::EEXIST) => Ok(()),
            other => other,
        }
    }

    /// A route that may follow from an address, or be given twice.
    fn add_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        match self.netlink.add_route(self.index, route.to.network(), route.to.prefix_len(), route.via) {
            Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
            other => other,
        }
    }
}

/// Where an interface's IPv6 addresses come from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OwnV6 {
    /// There are none.
    None,
    /// From us.
    Ours,
    /// From the kernel, which hears of the subnet by a router advertisement.
    Advertised,
}

/// Does the kernel speak IPv6? Asked where /proc does not say: with it, `lo` has ::1 as soon as it is up.
fn has_ipv6(netlink: &mut Netlink) -> Result<bool, NetlinkError> {
    Ok(netlink.addresses()?.iter().any(|a| a.ip.is_ipv6()))
}

/// Keep the kernel from adding anything of its own to the interface.
fn quiet_interface(netlink: &mut Netlink, index: u32, ifname: &str, v6: OwnV6, done: &mut Configured) {
    // The kernel takes the higher of `all` and the interface's own value; 2 is loose (RFC 3704).
    let value = |of: &str| std::fs::read_to_string(format!("/proc/sys/{}", interface_key("ipv4", of, "rp_filter")));
    let is = |of: &str, what: &str| value(of).is_ok_and(|value| value.trim() == what);
    let strict = (is("all", "1") || is(ifname, "1")) && !is("all", "2");
    if strict && let Err(error) = sysctl(&interface_key("ipv4", ifname, "rp_filter"), "2") {
        done.notices.push(format!("reverse-path filtering stays strict inside: {error}"));
    }
    if v6 == OwnV6::None {
        return;
    }
    // A new namespace may have IPv6 switched off by a default it inherited.
    let _ = sysctl(&interface_key("ipv6", ifname, "disable_ipv6"), "0");
    let _ = sysctl(&interface_key("ipv6", ifname, "accept_dad"), "0");
    if v6 == OwnV6::Advertised {
        let _ = sysctl(&interface_key("ipv6", ifname, "use_tempaddr"), "0");
        let _ = sysctl(&interface_key("ipv6", ifname, "autoconf"), "1");
        // Also where the sandbox forwards packets for others (2).
        let accepts = |value: &str| sysctl(&interface_key("ipv6", ifname, "accept_ra"), value);
        let key = format!("/proc/sys/{}", interface_key("ipv6", ifname, "accept_ra"));
        if let Err(error) = accepts("2")
            && std::fs::read_to_string(key).is_ok_and(|value| value.trim() == "0")
        {
            done.notices.push(format!("the sandbox goes without an IPv6 address: {error}"));
        }
        let _ = netlink.set_addr_gen_mode_eui64(index);
        return;
    }
    let _ = sysctl(&interface_key("ipv6", ifname, "autoconf"), "0");
    if let Err(error) = sysctl(&interface_key("ipv6", ifname, "accept_ra"), "0") {
        done.notices.push(format!("router advertisements are listened to inside: {error}"));
    }
    if netlink.set_addr_gen_mode_none(index).is_err() {
        let _ = sysctl(&interface_key("ipv6", ifname, "addr_gen_mode"), "1");
    }
}

/// The path of an interface's sysctl. A name may have dots in it; the path has them too.
fn interface_key(family: &str, ifname: &str, key: &str) -> String {
    format!("net/{family}/conf/{ifname}/{key}")
}

/// Set a sysctl of the calling thread's network namespace.
fn sysctl(key: &str, value: &str) -> io::Result<()> {
    std::fs::write(format!("/proc/sys/{key}"), value)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot set {}: {error}", key.replace('/', "."))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netlink::Address;
    use crate::sys::testing::in_namespace;

    const MAC: MacAddr = MacAddr([2, 0x42, 10, 0, 2, 100]);

    fn text(error: impl std::fmt::Display) -> String {
        error.to_string()
    }

    fn check_configured(choice: LinkChoice) -> Result<(), String> {
        let made = make_link(choice, "tl0", MAC, Some(1500)).map_err(text)?;
        let v4 =
            Addresses { address: Ipv4Addr::new(10, 0, 2, 100), prefix: 24, gateway: Some(Ipv4Addr::new(10, 0, 2, 2)) };
        let v6 = Addresses {
            address: "fd00::100".parse().map_err(text)?,
            prefix: 64,
            gateway: Some("fd00::2".parse().map_err(text)?),
        };
        let settings = Settings { mac: MAC, mtu: Some(1500), v4: Some(v4), v6: Some(v6), ..Settings::default() };
        let done = configure("tl0", &settings).map_err(text)?;
        if !done.v6 || !done.notices.is_empty() {
            return Err(format!("{done:?}"));
        }
        let mut netlink = Netlink::open().map_err(text)?;
        let link = netlink.link("tl0").map_err(text)?;
        if !link.up || link.mtu != 1500 || link.mac != Some(MAC.0) {
            return Err(format!("{link:?}"));
        }
        let mut addresses: Vec<Address> = netlink.addresses().map_err(text)?;
        addresses.retain(|a| a.index == link.index);
        let mut have: Vec<String> = addresses.iter().map(|a| format!("{}/{}", a.ip, a.prefix)).collect();
        have.sort();
        let link_local = format!("{}/64", MAC.link_local());
        if have != ["10.0.2.100/24", "fd00::100/64", link_local.as_str()] || addresses.iter().any(|a| a.tentative) {
            return Err(format!("{addresses:?}"));
        }
        let defaults = netlink.routes().map_err(text)?.iter().filter(|r| r.prefix == 0).count();
        if defaults != 2 {
            return Err(format!("{defaults} default routes"));
        }
        let read = |key: &str| std::fs::read_to_string(format!("/proc/sys/{key}")).map_err(text);
        if read("net/ipv6/conf/tl0/accept_ra")?.trim() != "0"
            || read("net/ipv4/ip_unprivileged_port_start")?.trim() != "0"
            || read("net/ipv4/ping_group_range")?.split_ascii_whitespace().next() != Some("0")
        {
            return Err("a sysctl is not as it should be".to_owned());
        }
        drop(made);
        Ok(())
    }

    #[test]
    fn tap_is_configured_and_usable_at_once() {
        in_namespace(|| check_configured(LinkChoice::Tap));
    }

    #[test]
    fn an_interface_that_others_configure_is_down_and_the_kernels_own_way() {
        for choice in [LinkChoice::Tap, LinkChoice::Packet] {
            in_namespace(move || {
                let _link = make_link(choice, "tl0", MAC, Some(1500)).map_err(text)?;
                leave_to_others("tl0").map_err(text)?;
                let mut netlink = Netlink::open().map_err(text)?;
                let link = netlink.link("tl0").map_err(text)?;
                if link.up {
                    return Err(format!("{choice:?}: {link:?}"));
                }
                netlink
                    .change_link(link.index, &LinkChange { up: Some(true), ..LinkChange::default() })
                    .map_err(text)?;
                // The kernel makes it when it has seen the carrier, a moment later.
                let own = |a: &Address| a.index == link.index && a.ip.to_string().starts_with("fe80");
                for _ in 0..CARRIER_RETRIES {
                    if netlink.addresses().map_err(text)?.iter().any(own) {
                        return Ok(());
                    }
                    sleep(CARRIER_PAUSE);
                }
                Err(format!("{choice:?}: no link-local address"))
            });
        }
    }

    #[test]
    fn veth_is_configured_and_usable_at_once() {
        in_namespace(|| check_configured(LinkChoice::Packet));
    }

    #[test]
    fn name_of_a_veth_is_free_again_when_its_socket_is_closed() {
        in_namespace(|| {
            for _ in 0..3 {
                let made = make_link(LinkChoice::Packet, "tl0", MAC, Some(1500)).map_err(text)?;
                if made.kind != LinkKind::Packet || made.notice.is_some() {
                    return Err(format!("{made:?}"));
                }
            }
            Ok(())
        });
    }

    #[test]
    fn bad_and_taken_names_are_said_to_be() {
        in_namespace(|| {
            let _made = make_link(LinkChoice::Packet, "tl0", MAC, Some(1500)).map_err(text)?;
            for choice in [LinkChoice::Tap, LinkChoice::Packet, LinkChoice::Auto] {
                match make_link(choice, "tl0", MAC, Some(1500)) {
                    Err(LinkError::Tap(TapError::Taken(name))) if name == "tl0" => {}
                    other => return Err(format!("{choice:?}: {other:?}")),
                }
                match make_link(choice, "sixteen-bytes-xx", MAC, Some(1500)) {
                    Err(LinkError::Tap(TapError::Name(_))) => {}
                    other => return Err(format!("{choice:?}: {other:?}")),
                }
            }
            Ok(())
        });
    }

    #[test]
    fn thread_is_back_in_its_namespace_after_a_failure() {
        in_namespace(|| {
            let _tap = make_link(LinkChoice::Tap, "tl0", MAC, Some(1500)).map_err(text)?;
            if make_link(LinkChoice::Packet, "tl0", MAC, Some(1500)).is_ok() {
                return Err("a taken name was taken again".to_owned());
            }
            Netlink::open().and_then(|mut n| n.link("tl0")).map(drop).map_err(text)
        });
    }

    #[test]
    fn packet_socket_takes_the_place_of_a_missing_device() {
        in_namespace(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).map_err(text)?;
            let flags = nix::mount::MsFlags::empty();
            nix::mount::mount(Some("none"), "/dev/net", Some("tmpfs"), flags, None::<&str>).map_err(text)?;
            match make_link(LinkChoice::Tap, "tl0", MAC, Some(1500)) {
                Err(LinkError::Tap(TapError::Open(_))) => {}
                other => return Err(format!("{other:?}")),
            }
            let made = make_link(LinkChoice::Auto, "tl0", MAC, Some(1500)).map_err(text)?;
            let expected = "cannot open /dev/net/tun: there is no such device; using a packet socket instead";
            match (made.kind, made.notice.as_deref()) {
                (LinkKind::Packet, Some(notice)) if notice == expected => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    #[test]
    fn missing_device_is_one_line_that_says_what_is_done_instead() {
        let denied = TapError::Open(io::Error::from_raw_os_error(libc::EACCES));
        assert!(denied.is_unavailable());
        assert_eq!(denied.to_string(), "cannot open /dev/net/tun: permission denied");
        let forced = LinkError::Tap(denied).to_string();
        assert_eq!(
            forced,
            "cannot open /dev/net/tun: permission denied; use --link-kind packet, which needs no device"
        );
    }
    #[test]
    fn what_is_asked_for_besides_is_there() {
        in_namespace(|| {
            let _made = make_link(LinkChoice::Tap, "tl0", MAC, None).map_err(text)?;
            // An address like a rented server's: alone in its subnet, with a gateway elsewhere.
            let settings = Settings {
                mac: MAC,
                v4: Some(Addresses { address: parse("192.0.2.7")?, prefix: 32, gateway: Some(parse("198.51.100.1")?) }),
                v6: Some(Addresses { address: parse("2001:db8::7")?, prefix: 128, gateway: Some(parse("fe80::1")?) }),
                extras: InterfaceExtras {
                    addresses: vec![parse("203.0.113.9/24")?, parse("2001:db8:1::9/64")?],
                    routes: vec![
                        // One that follows from an address, one that needs the one before it.
                        Route { to: parse("203.0.113.0/24")?, via: None },
                        Route { to: parse("10.1.0.0/16")?, via: None },
                        Route { to: parse("10.2.0.0/16")?, via: Some(parse("10.1.0.1")?) },
                        Route { to: parse("2001:db8:2::/48")?, via: Some(parse("2001:db8:1::1")?) },
                        Route { to: parse("10.3.0.0/16")?, via: Some(parse("172.16.0.1")?) },
                    ],
                    ..InterfaceExtras::default()
                },
                ..Settings::default()
            };
            let done = configure("tl0", &settings).map_err(text)?;
            match done.notices.as_slice() {
                [notice] if notice.starts_with("cannot add the route 10.3.0.0/16 through 172.16.0.1: ") => {}
                other => return Err(format!("{other:?}")),
            }
            let mut netlink = Netlink::open().map_err(text)?;
            let index = netlink.link("tl0").map_err(text)?.index;
            let mut addresses = netlink.addresses().map_err(text)?;
            addresses.retain(|a| a.index == index && !a.tentative);
            let mut have: Vec<String> = addresses.iter().map(|a| format!("{}/{}", a.ip, a.prefix)).collect();
            have.sort();
            let link_local = format!("{}/64", MAC.link_local());
            let wanted = ["192.0.2.7/32", "2001:db8:1::9/64", "2001:db8::7/128", "203.0.113.9/24", link_local.as_str()];
            if have != wanted {
                return Err(format!("{have:?}"));
            }
            let routes = netlink.routes().map_err(text)?;
            let leads = |to: &str, prefix, via: Option<&str>| {
                let via = via.and_then(|via| via.parse().ok());
                routes.iter().any(|r| (r.destination.to_string(), r.prefix, r.gateway) == (to.to_owned(), prefix, via))
            };
            for (to, prefix, via) in [
                ("198.51.100.1", 32, None),
                ("0.0.0.0", 0, Some("198.51.100.1")),
                ("::", 0, Some("fe80::1")),
                ("10.2.0.0", 16, Some("10.1.0.1")),
                ("2001:db8:2::", 48, Some("2001:db8:1::1")),
            ] {
                if !leads(to, prefix, via) {
                    return Err(format!("no route to {to}/{prefix}: {routes:?}"));
                }
            }
            Ok(())
        });
    }

    fn parse<T: std::str::FromStr>(word: &str) -> Result<T, String>
    where
        T::Err: std::fmt::Display,
    {
        word.parse().map_err(text)
    }

    /// What the interface sends that `wanted` takes, within five seconds.
    fn sent<T>(made: &MadeLink, wanted: impl Fn(&[u8]) -> Option<T>) -> Result<T, String> {
        use nix::poll::{PollFd, PollFlags, poll};
        let fd = made.fd.as_ref().ok_or("no descriptor")?;
        let mut buffer = [0; 2048];
        let until = std::time::Instant::now() + Duration::from_secs(5);
        while std::time::Instant::now() < until {
            poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], 100u16).map_err(text)?;
            while let Ok(length) = nix::unistd::read(fd, &mut buffer) {
                if let Some(found) = wanted(buffer.get(crate::sys::vnet::VNET_HEADER..length).unwrap_or_default()) {
                    return Ok(found);
                }
            }
        }
        Err("it did not come".to_owned())
    }

    #[test]
    fn an_advertised_subnet_is_asked_for_at_once_and_used() {
        in_namespace(|| {
            let made = make_link(LinkChoice::Tap, "tl0", MAC, Some(1500)).map_err(text)?;
            let extras = InterfaceExtras { v6_by_advertisement: true, ..InterfaceExtras::default() };
            let settings = Settings { mac: MAC, mtu: Some(1500), extras, ..Settings::default() };
            let done = configure("tl0", &settings).map_err(text)?;
            if !done.notices.is_empty() {
                return Err(format!("{done:?}"));
            }
            // A router solicitation (type 133) from an address that nobody was asked for.
            let from = sent(&made, |frame| {
                let is_solicitation = frame.len() > 54 && frame[12..14] == [0x86, 0xdd] && frame[54] == 133;
                is_solicitation.then(|| frame[22..38].to_vec())
            })?;
            if from != MAC.link_local().octets() {
                return Err(format!("it comes from {from:?}"));
            }
            let router: Ipv6Addr = parse("fe80::2")?;
            let all: Ipv6Addr = parse("ff02::1")?;
            let mut frame = vec![0; crate::sys::vnet::VNET_HEADER];
            // 30 minutes; the prefix is on the link and for addresses (RFC 4861, 4.6.2).
            let mut options =
                vec![0, 0, 0, 0, 0, 0, 0, 0, 3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0];
            options.extend("fd00::".parse::<Ipv6Addr>().map_err(text)?.octets());
            etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [0x33, 0x33, 0, 0, 0, 1])
                .ipv6(router.octets(), all.octets(), 255)
                .icmpv6_raw(134, 0, [64, 0, 7, 8])
                .write(&mut frame, &options)
                .map_err(text)?;
            nix::unistd::write(made.fd.as_ref().ok_or("no descriptor")?, &frame).map_err(text)?;
            let own = IpAddr::V6(MAC.address_in(parse("fd00::/64")?));
            let mut netlink = Netlink::open().map_err(text)?;
            for _ in 0..CARRIER_RETRIES {
                let addresses = netlink.addresses().map_err(text)?;
                let routes = netlink.routes().map_err(text)?;
                let leads = routes.iter().any(|route| route.prefix == 0 && route.gateway == Some(router.into()));
                if leads && addresses.iter().any(|a| a.ip == own && !a.tentative) {
                    return Ok(());
                }
                sleep(CARRIER_PAUSE);
            }
            Err(format!("{:?} {:?}", netlink.addresses(), netlink.routes()))
        });
    }
}
