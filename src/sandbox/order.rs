//! An interface that is made to order, taken away again, and given the default route, by the agent inside.
//!
//! # Theory of operation
//!
//! A sandbox may have several interfaces, one for each network it is on. Answers have to leave by the interface that the
//! question came by, whichever has the default route: so each has a routing table of its own, numbered by the interface
//! ([`FIRST_TABLE`]), and a rule that sends there what comes from its address (`from 10.176.0.2 lookup 1002`,
//! ip-rule(8)). The main table has what is on the links, and one default route for all that has no source address
//! yet. Where an interface leads nowhere else (an internal network), its table says so at once instead of letting the
//! main table try with an address that is not of that network.
//!
//! A UDP server that is bound to no address has none when it answers, and would answer by the main table. The ports that are
//! published on another network than that of the default route get rules of their own ([`answer_by`]).
//!
//! What is left when an interface goes are the rules, and that table's refusal; [`remove`] takes them away first. The
//! number of an interface is its own in its namespace, so that two supervisors that serve one namespace do not get
//! into each other's way.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::link::{
    Addresses, Configured, LinkError, MadeLink, Settings, bring_up_loopback, configure, configure_namespace, join_tap,
    leave_to_others, make_link,
};
use crate::plan::{InterfaceExtras, LinkChoice, LinkKind, MacAddr};
use crate::sys::netlink::{Link, Netlink, NetlinkError};

/// The number of an interface's own routing table is this and the interface's number.
pub const FIRST_TABLE: u32 = 1000;

/// Most interfaces that are named here, `eth0` and so on.
pub(super) const MOST_NAMES: u32 = 1000;

/// An interface that is to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Its name; `None` means the first free of `eth0`, `eth1` and so on.
    pub name: Option<String>,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its MTU in bytes; `None` leaves it as the kernel makes it.
    pub mtu: Option<u32>,
    /// What it is to be.
    pub link: LinkChoice,
    /// Set addresses and routes and bring it up; with `false` that is left to others, all but `lo`.
    pub configure: bool,
    /// IPv4.
    pub v4: Option<Addresses<Ipv4Addr>>,
    /// IPv6.
    pub v6: Option<Addresses<Ipv6Addr>>,
    /// The sandbox's default route leads through it.
    pub default_route: bool,
    /// It may not be the only one: what comes from its addresses is routed by a table of its own.
    pub own_table: bool,
    /// What it is given besides; its MTU is above. Not for one with a table of its own.
    #[serde(default)]
    pub extras: InterfaceExtras,
}

/// An interface that was made to order.
#[derive(Debug)]
pub struct Made {
    /// Its name.
    pub name: String,
    /// Its link.
    pub link: MadeLink,
    /// Lines for the person.
    pub notices: Vec<String>,
}

/// Make an interface to order, in the calling thread's network namespace; or nothing. What [`make_link`] says of threads
/// holds here, too.
pub fn make(order: &Order) -> Result<Made, LinkError> {
    let name = match &order.name {
        Some(name) => name.clone(),
        None => free_name(&Netlink::open()?.links()?).ok_or(LinkError::NoName)?,
    };
    let joined = match order.link {
        LinkChoice::Auto | LinkChoice::Tap if order.extras.may_exist => join_tap(&name)?,
        _ => None,
    };
    let mut link = match joined {
        Some(link) => link,
        None => make_link(order.link, &name, order.mac, order.mtu)?,
    };
    if link.kind == LinkKind::None {
        return Ok(Made { name: "lo".to_owned(), link, notices: loopback(order)?.notices });
    }
    if !order.configure {
        bring_up_loopback()?;
        if !link.stays {
            leave_to_others(&name)?;
        }
        return Ok(Made { name, link, notices: Vec::new() });
    }
    match configure_to_order(&name, order, link.stays) {
        Ok(done) => {
            // It has the one that it was to have.
            link.mac = None;
            Ok(Made { name, link, notices: done.notices })
        }
        Err(error) => {
            // A veth would live on for a moment, and rules do for ever.
            if !link.stays {
                let _ = remove(&name, order);
            }
            Err(error)
        }
    }
}

/// No interface but this one.
fn loopback(order: &Order) -> Result<Configured, LinkError> {
    if order.configure { configure_namespace() } else { bring_up_loopback().map(|()| Configured::default()) }
}

/// Take an interface away, with everything that was set for it. What is not there any more needs no removal.
///
/// # Errors
/// The first thing that could not be removed; the others have been all the same.
pub fn remove(name: &str, order: &Order) -> Result<(), LinkError> {
    let mut netlink = Netlink::open()?;
    let index = match netlink.link(name) {
        Ok(link) => link.index,
        Err(error) if error.errno() == Some(libc::ENODEV) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut result = Ok(());
    let mut note = |outcome: Result<(), NetlinkError>| match outcome {
        // Somebody else was there first, or there never was IPv6.
        Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::ESRCH)) || error.is_family_missing() => {}
        Err(error) if result.is_ok() => result = Err(error.into()),
        _ => {}
    };
    if order.own_table {
        let table = FIRST_TABLE + index;
        for (ip, _, gateway) in families(order) {
            note(netlink.delete_rule(ip, table));
            if gateway.is_none() {
                note(netlink.forget_the_rest(table, ip));
            }
        }
    }
    note(netlink.delete_link(index));
    result
}

/// Have the sandbox's default route lead through an interface that was made to order, and nowhere else.
pub fn take_default(name: &str, order: &Order) -> Result<(), LinkError> {
    let mut netlink = Netlink::open()?;
    let index = netlink.link(name)?.index;
    let routes = netlink.routes()?;
    for v6 in [false, true] {
        let gateway = families(order).find_map(|(ip, _, gateway)| gateway.filter(|_| ip.is_ipv6() == v6));
        match gateway {
            Some(gateway) => match netlink.replace_default(index, gateway) {
                // It was told of when the interface was made.
                Err(error) if v6 && error.is_family_missing() => {}
                other => other?,
            },
            None => {
                let old = routes.iter().filter(|route| route.prefix == 0 && route.destination.is_ipv6() == v6);
                for (at, old) in old.filter_map(|route| Some((route.index?, route))) {
                    netlink.delete_route_in(libc::RT_TABLE_MAIN.into(), at, old.destination, 0, old.gateway)?;
                }
            }
        }
    }
    Ok(())
}

/// Have what is sent from these UDP ports leave by an interface that was made to order, where the sender has not said from
/// which address; in place of what was said before. A server that is bound to no address answers so.
pub fn answer_by(name: &str, order: &Order, udp: &[(u16, u16)]) -> Result<(), LinkError> {
    let mut netlink = Netlink::open()?;
    let index = netlink.link(name)?.index;
    for like in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
        let has_table = order.own_table && families(order).any(|(ip, ..)| ip.is_ipv6() == like.is_ipv6());
        match netlink.route_ports(like, FIRST_TABLE + index, if has_table { udp } else { &[] }) {
            Err(error) if error.is_family_missing() => {}
            other => other?,
        }
    }
    Ok(())
}

/// Address, prefix length and gateway of each family.
fn families(order: &Order) -> impl Iterator<Item = (IpAddr, u8, Option<IpAddr>)> {
    let v4 = order.v4.map(|a| (IpAddr::V4(a.address), a.prefix, a.gateway.map(IpAddr::V4)));
    let v6 = order.v6.map(|a| (IpAddr::V6(a.address), a.prefix, a.gateway.map(IpAddr::V6)));
    v4.into_iter().chain(v6)
}

fn free_name(links: &[Link]) -> Option<String> {
    (0..MOST_NAMES).map(|n| format!("eth{n}")).find(|name| !links.iter().any(|link| link.name == *name))
}

fn configure_to_order(name: &str, order: &Order, stays: bool) -> Result<Configured, LinkError> {
    let v4 = order.v4.map(|a| Addresses { gateway: a.gateway.filter(|_| order.default_route), ..a });
    let v6 = order.v6.map(|a| Addresses { gateway: a.gateway.filter(|_| order.default_route), ..a });
    let settings = Settings { mac: order.mac, mtu: order.mtu, v4, v6, extras: order.extras.clone(), stays };
    let done = configure(name, &settings)?;
    if order.own_table {
        let mut netlink = Netlink::open()?;
        let index = netlink.link(name)?.index;
        for (ip, prefix, gateway) in families(order).filter(|(ip, ..)| ip.is_ipv4() || done.v6) {
            own_table(&mut netlink, index, ip, prefix, gateway)?;
        }
    }
    Ok(done)
}

/// What comes from this address leaves by this interface.
fn own_table(
    netlink: &mut Netlink,
    index: u32,
    ip: IpAddr,
    prefix: u8,
    gateway: Option<IpAddr>,
) -> Result<(), NetlinkError> {
    let table = FIRST_TABLE + index;
    let subnet = IpNet::new(ip, prefix).map_or(ip, |net| net.network());
    netlink.add_route_in(table, index, subnet, prefix, None)?;
    match gateway {
        Some(_) => {
            let everywhere = IpNet::new(ip, 0).map_or(ip, |net| net.network());
            netlink.add_route_in(table, index, everywhere, 0, gateway)?;
        }
        None => netlink.refuse_the_rest(table, ip)?,
    }
    netlink.add_rule(ip, table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::{foreign_tap, in_namespace};
    use crate::sys::tun::TapError;
    use crate::sys::vnet::VNET_HEADER;
    use etherparse::PacketBuilder;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::net::{SocketAddr, UdpSocket};
    use std::os::fd::{AsFd, OwnedFd};
    use std::time::{Duration, Instant};

    const ELSEWHERE: [&str; 2] = ["203.0.113.9", "2001:db8::9"];

    fn text(error: impl std::fmt::Display) -> String {
        error.to_string()
    }

    /// On 10.`net`.0.0/20 and fd00:`net`::/64, whose gateways are the first addresses.
    fn order(net: u8, default_route: bool, internal: bool) -> Order {
        let v4 = Addresses {
            address: Ipv4Addr::new(10, net, 0, 2),
            prefix: 20,
            gateway: (!internal).then_some(Ipv4Addr::new(10, net, 0, 1)),
        };
        let at = |last| Ipv6Addr::new(0xfd00, net.into(), 0, 0, 0, 0, 0, last);
        let v6 = Addresses { address: at(2), prefix: 64, gateway: (!internal).then_some(at(1)) };
        Order {
            name: None,
            mac: MacAddr::from_ipv4(v4.address),
            mtu: Some(1500),
            link: LinkChoice::Tap,
            configure: true,
            v4: Some(v4),
            v6: Some(v6),
            default_route,
            own_table: true,
            extras: InterfaceExtras::default(),
        }
    }

    /// What an unbound socket towards `to` would have as its own address.
    fn source(to: &str) -> Result<IpAddr, String> {
        let to = SocketAddr::new(to.parse().map_err(text)?, 9);
        let any = SocketAddr::new(unspecified(to.ip()), 0);
        let socket = UdpSocket::bind(any).map_err(text)?;
        socket.connect(to).map_err(text)?;
        Ok(socket.local_addr().map_err(text)?.ip())
    }

    fn unspecified(ip: IpAddr) -> IpAddr {
        if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
    }

    fn tap(made: &Made) -> &OwnedFd {
        made.link.fd.as_ref().expect("a TAP has a descriptor")
    }

    /// A SYN from elsewhere to this interface's address.
    fn ask(tap: &OwnedFd, order: &Order, v6: bool) -> Result<(), String> {
        let from_gateway = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], order.mac.0);
        let mut frame = vec![0; VNET_HEADER];
        let [from4, from6] = ELSEWHERE;
        if v6 {
            let from: Ipv6Addr = from6.parse().map_err(text)?;
            let to = order.v6.ok_or("no IPv6")?.address;
            let packet = from_gateway.ipv6(from.octets(), to.octets(), 64).tcp(4000, 9, 1, 1000).syn();
            packet.write(&mut frame, &[]).map_err(text)?;
        } else {
            let from: Ipv4Addr = from4.parse().map_err(text)?;
            let to = order.v4.ok_or("no IPv4")?.address;
            let packet = from_gateway.ipv4(from.octets(), to.octets(), 64).tcp(4000, 9, 1, 1000).syn();
            packet.write(&mut frame, &[]).map_err(text)?;
        }
        nix::unistd::write(tap, &frame).map(drop).map_err(text)
    }

    /// Whom the interface looks for on its link, as ARP and neighbor solicitations say; the first of one family.
    fn looked_for(tap: &OwnedFd, v6: bool, patience: Duration) -> Option<IpAddr> {
        let end = Instant::now() + patience;
        let mut buffer = [0; 2048];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::try_from(left).unwrap()) != Ok(1) {
                return None;
            }
            let length = nix::unistd::read(tap, &mut buffer).ok()?;
            let frame = &buffer[VNET_HEADER..length];
            if !v6 && frame[12..14] == [8, 6] {
                return Some(Ipv4Addr::from(<[u8; 4]>::try_from(&frame[38..42]).unwrap()).into());
            }
            // ICMPv6 type 135 (RFC 4861 section 4.3).
            if v6 && frame[12..14] == [0x86, 0xdd] && frame[20] == 58 && frame[54] == 135 {
                return Some(Ipv6Addr::from(<[u8; 16]>::try_from(&frame[62..78]).unwrap()).into());
            }
        }
    }

    #[test]
    fn answers_leave_by_the_interface_the_question_came_by() {
        in_namespace(|| {
            let orders = [order(176, true, false), order(177, false, false)];
            let mut made = Vec::new();
            for order in &orders {
                made.push(make(order).map_err(text)?);
            }
            if made.iter().map(|made| made.name.as_str()).collect::<Vec<_>>() != ["eth0", "eth1"] {
                return Err(format!("{made:?}"));
            }
            for v6 in [false, true] {
                for (asked, order) in orders.iter().enumerate() {
                    let gateway = families(order).find(|(ip, ..)| ip.is_ipv6() == v6).and_then(|(.., gateway)| gateway);
                    // The kernel takes packets for a new IPv6 address only once a work queue of its own has run.
                    let found = (0..50).find_map(|_| {
                        ask(tap(&made[asked]), order, v6).ok()?;
                        looked_for(tap(&made[asked]), v6, Duration::from_millis(100))
                    });
                    if found.is_none() || found != gateway {
                        return Err(format!("asked by {asked}, IPv6 {v6}: it looks for {found:?}"));
                    }
                    if let Some(found) = looked_for(tap(&made[1 - asked]), v6, Duration::ZERO) {
                        return Err(format!("asked by {asked}, IPv6 {v6}: the other looks for {found}"));
                    }
                }
            }
            Ok(())
        });
    }

    #[test]
    fn one_interface_has_the_default_route_and_the_next_one_takes_it() {
        in_namespace(|| {
            let (first, second) = (order(176, true, false), order(177, false, false));
            let (one, two) = (make(&first).map_err(text)?, make(&second).map_err(text)?);
            let from = |order: &Order, v6| families(order).find(|(ip, ..)| ip.is_ipv6() == v6).map(|(ip, ..)| ip);
            for (v6, to) in [(false, ELSEWHERE[0]), (true, ELSEWHERE[1])] {
                if Some(source(to)?) != from(&first, v6) {
                    return Err(format!("{to} is reached from {}", source(to)?));
                }
            }
            if source("10.177.0.9")? != IpAddr::from([10, 177, 0, 2])
                || source("fd00:b1::9")? != from(&second, true).unwrap()
            {
                return Err("what is on the link is reached from another one's address".to_owned());
            }
            take_default(&two.name, &second).map_err(text)?;
            remove(&one.name, &first).map_err(text)?;
            drop(one);
            for (v6, to) in [(false, ELSEWHERE[0]), (true, ELSEWHERE[1])] {
                if Some(source(to)?) != from(&second, v6) {
                    return Err(format!("{to} is reached from {} afterwards", source(to)?));
                }
            }
            Ok(())
        });
    }

    #[test]
    fn nothing_is_left_of_what_was_removed() {
        in_namespace(|| {
            let state = || -> Result<(usize, usize, usize), String> {
                let mut netlink = Netlink::open().map_err(text)?;
                let rules = netlink.rules().map_err(text)?.len();
                Ok((netlink.links().map_err(text)?.len(), rules, netlink.routes().map_err(text)?.len()))
            };
            configure_namespace().map_err(text)?;
            let before = state()?;
            for (choice, internal) in [(LinkChoice::Tap, false), (LinkChoice::Packet, false), (LinkChoice::Tap, true)] {
                let order = Order { link: choice, ..order(176, true, internal) };
                let made = make(&order).map_err(text)?;
                let during = state()?;
                if during.0 != before.0 + 1 || during.1 != before.1 + 2 || during.2 <= before.2 {
                    return Err(format!("{choice:?}: {during:?}"));
                }
                remove(&made.name, &order).map_err(text)?;
                if state()? != before {
                    return Err(format!("{choice:?}: {:?} instead of {before:?}", state()?));
                }
                // Once more is no error.
                remove(&made.name, &order).map_err(text)?;
            }
            Ok(())
        });
    }

    #[test]
    fn servers_bound_to_no_address_answer_by_the_interface_that_their_port_belongs_to() {
        in_namespace(|| {
            let orders = [order(176, true, false), order(177, false, false)];
            let made: Vec<Made> = orders.iter().map(|o| make(o).map_err(text)).collect::<Result<_, _>>()?;
            let source = |port: u16, to: &str| {
                let to = SocketAddr::new(to.parse().map_err(text)?, 9);
                let socket = UdpSocket::bind(SocketAddr::new(unspecified(to.ip()), port)).map_err(text)?;
                socket.connect(to).map_err(text)?;
                Ok::<IpAddr, String>(socket.local_addr().map_err(text)?.ip())
            };
            let own = |at: usize, to: &str| families(&orders[at]).find(|(ip, ..)| ip.is_ipv6() == to.contains(':'));
            let check = |expected: &[(u16, usize)]| {
                for to in ELSEWHERE {
                    for &(port, at) in expected {
                        let wanted = own(at, to).ok_or("no address")?.0;
                        if source(port, to)? != wanted {
                            return Err(format!("{port} to {to}: {} instead of {wanted}", source(port, to)?));
                        }
                    }
                    // Neighbors are neighbors.
                    let (near, prefix, _) = own(0, to).ok_or("no address")?;
                    let neighbor = IpNet::new(near, prefix).map_err(text)?.hosts().nth(8).ok_or("no neighbor")?;
                    if source(53, &neighbor.to_string())? != near {
                        return Err(format!("53 to {neighbor}"));
                    }
                }
                Ok(())
            };
            check(&[(53, 0), (5353, 0)])?;
            answer_by(&made[1].name, &orders[1], &[(53, 53), (8000, 8009)]).map_err(text)?;
            check(&[(52, 0), (53, 1), (54, 0), (8000, 1), (8009, 1), (8010, 0)])?;
            answer_by(&made[1].name, &orders[1], &[(54, 54)]).map_err(text)?;
            check(&[(53, 0), (54, 1), (8000, 0)])?;
            answer_by(&made[0].name, &orders[0], &[]).map_err(text)?;
            check(&[(53, 0), (54, 0), (8000, 0)])
        });
    }

    #[test]
    fn an_internal_interface_leads_nowhere_else_whatever_the_default_route_says() {
        in_namespace(|| {
            let (_open, internal) = (make(&order(176, true, false)).map_err(text)?, order(177, false, true));
            let _made = make(&internal).map_err(text)?;
            for (own, to) in [("10.177.0.2", ELSEWHERE[0]), ("fd00:b1::2", ELSEWHERE[1])] {
                let socket = UdpSocket::bind(SocketAddr::new(own.parse().map_err(text)?, 0)).map_err(text)?;
                match socket.connect(SocketAddr::new(to.parse().map_err(text)?, 9)) {
                    Err(error) if matches!(error.raw_os_error(), Some(libc::EHOSTUNREACH | libc::ENETUNREACH)) => {}
                    other => return Err(format!("{own} to {to}: {other:?}")),
                }
            }
            // An interface that leads nowhere takes the default route away from the one that had it.
            take_default(&_made.name, &internal).map_err(text)?;
            match source(ELSEWHERE[0]) {
                Err(error) if error.contains("unreachable") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    #[test]
    fn what_cannot_be_made_leaves_nothing() {
        in_namespace(|| {
            let taken = order(176, true, false);
            let _one = make(&taken).map_err(text)?;
            let again = Order { name: Some("eth7".into()), mtu: Some(20), ..order(177, false, false) };
            if let Ok(made) = make(&again) {
                return Err(format!("{made:?}"));
            }
            let mut netlink = Netlink::open().map_err(text)?;
            if netlink.link("eth7").is_ok() {
                return Err("the interface is there".to_owned());
            }
            match make(&Order { name: Some("eth0".into()), ..again }) {
                Err(LinkError::Tap(TapError::Taken(name))) if name == "eth0" => Ok(()),
                other => Err(format!("{:?}", other.map(|made| made.link.kind == LinkKind::Tap))),
            }
        });
    }
    #[test]
    fn a_tap_that_is_there_is_used_as_it_is_or_as_asked_for_and_stays() {
        in_namespace(|| {
            drop(foreign_tap("tap0", 0, true)?);
            let mut netlink = Netlink::open().map_err(text)?;
            let there = netlink.link("tap0").map_err(text)?;
            let extras = InterfaceExtras { may_exist: true, mtu: Some(0), ..InterfaceExtras::default() };
            let plain = Order { name: Some("tap0".into()), own_table: false, extras, ..order(176, true, false) };
            match make(&Order { extras: InterfaceExtras::default(), ..plain.clone() }) {
                Err(LinkError::Tap(TapError::Taken(_))) => {}
                other => return Err(format!("{other:?}")),
            }
            let left_alone = Order { configure: false, ..plain.clone() };
            let made = make(&left_alone).map_err(text)?;
            let now = netlink.link("tap0").map_err(text)?;
            if (now.mac, now.mtu, now.up) != (there.mac, there.mtu, there.up)
                || made.link.mac.map(|mac| mac.0) != there.mac
                || !made.link.stays
                || !netlink.link("lo").map_err(text)?.up
            {
                return Err(format!("{now:?} was {there:?}: {made:?}"));
            }
            match make(&left_alone) {
                Err(error) if error.to_string().contains("another process has it open") => {}
                other => return Err(format!("{other:?}")),
            }
            drop(made);
            // What is configured may have been so before; one that fails does not take it away.
            for _ in 0..2 {
                let made = make(&plain).map_err(text)?;
                let now = netlink.link("tap0").map_err(text)?;
                if !now.up || now.mac != Some(plain.mac.0) || made.link.mac.is_some() {
                    return Err(format!("{now:?}: {made:?}"));
                }
            }
            let bad = Order { mtu: Some(20), ..plain.clone() };
            if let Ok(made) = make(&bad) {
                return Err(format!("{made:?}"));
            }
            netlink.link("tap0").map(drop).map_err(text)
        });
    }

    #[test]
    fn without_a_link_there_is_nothing_but_the_loopback_which_is_up() {
        in_namespace(|| {
            for configure in [false, true] {
                let made =
                    make(&Order { link: LinkChoice::None, configure, ..order(176, true, false) }).map_err(text)?;
                let links = Netlink::open().and_then(|mut netlink| netlink.links()).map_err(text)?;
                let ["lo"] = links.iter().map(|link| link.name.as_str()).collect::<Vec<_>>()[..] else {
                    return Err(format!("{links:?}"));
                };
                if !links[0].up || made.name != "lo" || made.link.kind != LinkKind::None || made.link.fd.is_some() {
                    return Err(format!("{made:?}"));
                }
            }
            Ok(())
        });
    }
}
