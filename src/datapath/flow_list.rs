//! Flows, page by page.
//!
//! # Theory of operation
//!
//! Flows are in several tables, each with places that are numbered and of which some are free. A cursor is a table's
//! number and a place in it: [`SECTION`] bits for the place, the table above. A page goes on from there until it has
//! as many flows as were asked for, or has looked at [`MOST_PLACES`] places, so that its cost is bounded however
//! full or empty the tables are. Between two pages flows come and go: one that was there all the time is listed once.
use crate::gateway::Gateway;
use crate::gateway::describe::Table;
use crate::gateway::link::PortId;
use crate::publish::Publishing;

use super::commands::{FlowInfo, FlowKind, FlowPage};

/// Bits of a cursor that are the place in its table.
const SECTION: u32 = 48;
/// Most places looked at for one page.
const MOST_PLACES: usize = 4096;
/// The number of the table that is none of the gateway's: flows past the link.
const PAST_THE_LINK: u64 = Table::ALL.len() as u64;

/// The page that begins at `cursor`, with at most `limit` flows. `id` names the sandbox at a port.
pub fn page<'a>(
    gateway: Option<&mut Gateway>,
    publishing: &mut Publishing,
    id: impl Fn(PortId) -> Option<&'a str>,
    cursor: u64,
    limit: usize,
) -> FlowPage {
    let mut flows = Vec::new();
    let mut section = cursor >> SECTION;
    let mut place = cursor & ((1 << SECTION) - 1);
    if let Some(gateway) = gateway {
        let mut looked = 0;
        while let Some(&table) = usize::try_from(section).ok().and_then(|section| Table::ALL.get(section)) {
            while place < gateway.places(table) as u64 {
                if flows.len() >= limit || looked >= MOST_PLACES {
                    return FlowPage { flows, next: Some(section << SECTION | place) };
                }
                let found = gateway.describe(table, place as usize);
                looked += 1;
                place += 1;
                let Some(flow) = found else { continue };
                // Flows end with their sandbox, so each has one.
                let Some(sandbox) = id(flow.port) else { continue };
                flows.push(FlowInfo {
                    protocol: flow.protocol.to_owned(),
                    kind: if flow.published { FlowKind::Published } else { FlowKind::Out },
                    sandbox: sandbox.to_owned(),
                    inside: flow.inside,
                    outside: flow.outside,
                    state: flow.state.to_owned(),
                });
            }
            (section, place) = (section + 1, 0);
        }
    }
    if section > PAST_THE_LINK {
        return FlowPage { flows, next: None };
    }
    if flows.len() >= limit {
        return FlowPage { flows, next: Some(PAST_THE_LINK << SECTION) };
    }
    let rest = publishing.flows(id, place, limit - flows.len(), MOST_PLACES);
    flows.extend(rest.flows);
    FlowPage { flows, next: rest.next.map(|place| PAST_THE_LINK << SECTION | place) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::testing::{Test, echo_frame};

    const ID: &str = "0123456789ab";

    fn publishing() -> (mio::Poll, Publishing) {
        let poll = mio::Poll::new().unwrap();
        let publishing = Publishing::new(poll.registry()).unwrap();
        (poll, publishing)
    }

    #[test]
    fn every_flow_is_on_one_page_whatever_their_size() {
        let mut test = Test::new();
        for port in 1..=20 {
            test.udp(&format!("10.0.2.100:{port}"), "192.0.2.1:7", b"x");
        }
        test.udp("10.0.2.100:20", "192.0.2.2:7", b"x");
        for identifier in 0..5 {
            test.frame(Default::default(), &echo_frame("10.0.2.100", "192.0.2.1", 8, identifier, 1, b""));
        }
        let (_poll, mut publishing) = publishing();
        for limit in [1, 7, 25, 1000] {
            let (mut cursor, mut all) = (0, Vec::new());
            loop {
                let page = page(Some(&mut test.gateway), &mut publishing, |_| Some(ID), cursor, limit);
                assert!(page.flows.len() <= limit);
                all.extend(page.flows);
                match page.next {
                    Some(next) => cursor = next,
                    None => break,
                }
            }
            assert_eq!(all.len(), 25, "{limit}");
            assert_eq!(all.iter().filter(|flow| flow.protocol == "icmp").count(), 5);
            let of = |port: u16| all.iter().find(|f| f.protocol == "udp" && f.inside.port() == port).unwrap();
            assert_eq!(of(3).outside, "192.0.2.1:7".parse().ok());
            assert_eq!(of(20).outside, None, "it has written to two");
            assert!(all.iter().all(|flow| flow.sandbox == ID && flow.kind == FlowKind::Out && flow.state == "open"));
        }
    }

    #[test]
    fn a_connection_is_listed_from_its_first_segment() {
        let mut test = Test::new();
        let mut syn = Vec::new();
        etherparse::PacketBuilder::ethernet2([2; 6], test.gateway.network().gateway_mac.0)
            .ipv4([10, 0, 2, 100], [192, 0, 2, 1], 64)
            .tcp(4444, 80, 1, 65535)
            .syn()
            .write(&mut syn, b"")
            .unwrap();
        test.frame(Default::default(), &syn);
        let (_poll, mut publishing) = publishing();
        let page = page(Some(&mut test.gateway), &mut publishing, |_| Some(ID), 0, 10);
        let [flow] = &*page.flows else { panic!("{page:?}") };
        assert_eq!((flow.protocol.as_str(), flow.state.as_str()), ("tcp", "connecting"));
        assert_eq!((flow.inside, flow.outside), ("10.0.2.100:4444".parse().unwrap(), "192.0.2.1:80".parse().ok()));
    }

    #[test]
    fn a_cursor_that_nobody_gave_is_no_harm() {
        let mut test = Test::new();
        let (_poll, mut publishing) = publishing();
        for cursor in [u64::MAX, 3 << SECTION, 4 << SECTION, (1 << SECTION) - 1] {
            let page = page(Some(&mut test.gateway), &mut publishing, |_| Some(ID), cursor, 10);
            assert_eq!(page, FlowPage::default());
        }
        assert_eq!(page(None, &mut publishing, |_| Some(ID), 0, 10), FlowPage::default());
    }
}
