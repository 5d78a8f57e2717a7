//! Whom a UDP flow has written to, and so who may answer (RFC 4787 REQ-8, filtering by address).
//!
//! # Theory of operation
//!
//! A sandbox names an address and the policy says where on the host that leads: mostly to the address itself,
//! but the gateway's address leads to the host's own or to its loopback. Both are kept, because an answer must
//! seem to come from the address that the sandbox had written to. A sandbox may know the host by both addresses
//! at once; then the port decides, and after that who was written to last. One address may lead to several, by port or
//! because the host's has changed.
//!
//! Any port of a known address may answer. The list is bounded; whoever was written to longest ago leaves it.
//! It is searched from end to end (a few cache lines for nearly every flow there is), after a look at the entry
//! used last.
use std::net::{IpAddr, SocketAddr};

/// Most addresses a flow keeps.
const MOST: usize = 128;

struct Address {
    /// As the sandbox names it.
    named: IpAddr,
    /// Where it leads on the host.
    leads_to: IpAddr,
    /// The port that was written to last.
    port: u16,
    /// When, in writes of this flow.
    written: u64,
}

/// The addresses one flow has written to.
#[derive(Default)]
pub(super) struct Peers {
    addresses: Vec<Address>,
    recent: usize,
    writes: u64,
}

impl Peers {
    /// Where the policy said this address leads, if the flow has written to it before.
    pub fn leads_to(&self, named: IpAddr) -> Option<IpAddr> {
        let recent = self.addresses.get(self.recent).filter(|a| a.named == named);
        recent.or_else(|| self.addresses.iter().find(|a| a.named == named)).map(|a| a.leads_to)
    }

    /// The flow writes to this address, which leads there.
    pub fn write(&mut self, named: IpAddr, leads_to: IpAddr, port: u16) {
        self.writes += 1;
        let written = self.writes;
        let is_it = |a: &Address| a.named == named && a.leads_to == leads_to;
        let is_recent = self.addresses.get(self.recent).is_some_and(is_it);
        if !is_recent {
            self.recent = match self.addresses.iter().position(is_it) {
                Some(at) => at,
                None if self.addresses.len() < MOST => {
                    self.addresses.push(Address { named, leads_to, port, written });
                    self.addresses.len() - 1
                }
                None => self.addresses.iter().enumerate().min_by_key(|(_, a)| a.written).map_or(0, |(at, _)| at),
            };
        }
        self.addresses[self.recent] = Address { named, leads_to, port, written };
    }

    /// The one address that was written to, as the sandbox names it, with the port that was written to last; `None`
    /// where there are several.
    pub fn only(&self) -> Option<SocketAddr> {
        match &*self.addresses {
            [address] => Some(SocketAddr::new(address.named, address.port)),
            _ => None,
        }
    }

    /// The address as which the sandbox knows this sender; `None` when it has not written there.
    pub fn named(&self, from: SocketAddr) -> Option<IpAddr> {
        let matches = |a: &&Address| a.leads_to == from.ip();
        let recent = self.addresses.get(self.recent).filter(matches).filter(|a| a.port == from.port());
        recent
            .or_else(|| self.addresses.iter().filter(matches).max_by_key(|a| (a.port == from.port(), a.written)))
            .map(|a| a.named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn any_port_of_a_known_address_may_answer_and_nobody_else() {
        let mut peers = Peers::default();
        peers.write(ip(1), ip(1), 53);
        peers.write(ip(2), ip(2), 53);
        assert_eq!(peers.named(SocketAddr::new(ip(1), 9)), Some(ip(1)));
        assert_eq!(peers.named(SocketAddr::new(ip(3), 53)), None);
    }

    #[test]
    fn a_host_known_by_two_addresses_answers_from_the_one_whose_port_was_asked() {
        let (gateway, own) = (IpAddr::from([10, 0, 2, 2]), ip(7));
        let mut peers = Peers::default();
        peers.write(gateway, own, 1000);
        peers.write(own, own, 2000);
        assert_eq!(peers.named(SocketAddr::new(own, 1000)), Some(gateway));
        assert_eq!(peers.named(SocketAddr::new(own, 2000)), Some(own));
        assert_eq!(peers.named(SocketAddr::new(own, 3000)), Some(own), "else the one written to last");
        peers.write(gateway, own, 1000);
        assert_eq!(peers.named(SocketAddr::new(own, 3000)), Some(gateway));
    }

    #[test]
    fn the_address_written_to_longest_ago_leaves_a_full_list() {
        let mut peers = Peers::default();
        let at = |i: usize| IpAddr::from([10, 1, (i / 256) as u8, i as u8]);
        for i in 0..MOST {
            peers.write(at(i), at(i), 1);
        }
        peers.write(at(0), at(0), 1);
        peers.write(at(MOST), at(MOST), 1);
        assert_eq!(peers.addresses.len(), MOST);
        assert_eq!(peers.leads_to(at(0)), Some(at(0)));
        assert_eq!(peers.leads_to(at(1)), None);
        assert_eq!(peers.leads_to(at(MOST)), Some(at(MOST)));
    }
}
