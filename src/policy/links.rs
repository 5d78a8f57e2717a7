//! Which sandboxes reach each other on a network with `--icc=false`: only along links.
//!
//! A link (`--link NAME`) goes one way. Who has it may begin flows to the ports that the linked sandbox exposes
//! (`--expose`, `-p`), with the protocols they are exposed for, and to no others. Everything else that a conversation
//! needs follows from the flow and is judged where flows are kept: answers, ICMP errors, fragments.
//!
//! A ping is not opened by a link, as it is not under Docker: a link means ports.
//!
//! Links go by name. A sandbox that comes back under its name with another address is reached at once, and another
//! that is given the old address is not.

use crate::plan::{Endpoint, Protocol};

/// Does `from` have a link to `to`?
pub fn has_link(from: &Endpoint, to: &Endpoint) -> bool {
    from.links.iter().any(|link| link.sandbox == to.name)
}

/// Has one of the two a link to the other? Then they must be able to find each other's Ethernet address.
pub fn are_linked(one: &Endpoint, other: &Endpoint) -> bool {
    has_link(one, other) || has_link(other, one)
}

/// May `from` begin a flow to this port of `to`?
pub fn may_open(from: &Endpoint, to: &Endpoint, protocol: Protocol, port: u16) -> bool {
    let exposed = |e: &crate::plan::Expose| e.protocol == protocol && (e.ports.first..=e.ports.last).contains(&port);
    to.exposed.iter().any(exposed) && has_link(from, to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Expose, PortRange, SandboxLink};

    fn named(name: &str, links: &[&str], exposed: &[(u16, u16, Protocol)]) -> Endpoint {
        Endpoint {
            name: name.into(),
            links: links.iter().map(|to| SandboxLink { sandbox: (*to).into(), alias: None }).collect(),
            exposed: exposed
                .iter()
                .map(|&(first, last, protocol)| Expose { ports: PortRange { first, last }, protocol })
                .collect(),
            ..Endpoint::default()
        }
    }

    #[test]
    fn a_link_opens_the_exposed_ports_in_its_direction_and_nothing_else() {
        let db = named("db", &[], &[(5432, 5432, Protocol::Tcp), (8000, 8009, Protocol::Udp)]);
        let app = named("app", &["cache", "db"], &[(80, 80, Protocol::Tcp)]);
        let stranger = named("stranger", &["app"], &[]);
        assert!(may_open(&app, &db, Protocol::Tcp, 5432));
        assert!(may_open(&app, &db, Protocol::Udp, 8000) && may_open(&app, &db, Protocol::Udp, 8009));
        assert!(!may_open(&app, &db, Protocol::Udp, 5432), "the protocol counts");
        assert!(!may_open(&app, &db, Protocol::Tcp, 5433) && !may_open(&app, &db, Protocol::Udp, 8010));
        assert!(!may_open(&db, &app, Protocol::Tcp, 80), "not backwards");
        assert!(!may_open(&stranger, &db, Protocol::Tcp, 5432));
        assert!(are_linked(&app, &db) && are_linked(&db, &app) && !are_linked(&stranger, &db));
    }
}
