//! The names that the DNS address answers itself.
//!
//! These are the network's own ([`Network::local_names`](crate::plan::Network::local_names): host.tapline.internal
//! and its like), which lead to addresses on the segment, and `localhost` with everything below it, which never
//! leaves the host (RFC 6761, 6.3). Both are answered for A and AAAA, and backwards for PTR; other types of these
//! names exist with no data. Letters' case does not matter and is sent back as it was asked. Everything else is
//! none of this room's business and goes to the host's resolvers.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType, rdata};

use super::message::Query;

/// How long a local answer may be kept, in seconds: short, because the sandbox behind a name may end.
const TTL: u32 = 10;

/// The local names of a network.
#[derive(Clone, Debug, Default)]
pub struct LocalZone {
    names: Vec<(Name, IpAddr)>,
}

impl LocalZone {
    /// A zone of names and their addresses; a name may be there several times. A name that DNS cannot carry (an
    /// empty label, more than 63 bytes in one) is left out: nobody can ask for it.
    pub fn new(names: &[(String, IpAddr)]) -> LocalZone {
        let absolute = |name: &str| {
            let mut name = Name::from_ascii(name).ok()?;
            name.set_fqdn(true);
            Some(name)
        };
        LocalZone { names: names.iter().filter_map(|(name, ip)| Some((absolute(name)?, *ip))).collect() }
    }

    /// The answer, where the question is about a local name.
    pub fn answer(&self, query: &Query) -> Option<Vec<u8>> {
        let asked = Message::from_vec(query.bytes()).ok()?;
        let [question] = asked.queries.as_slice() else { return None };
        if asked.metadata.op_code != OpCode::Query || !matches!(question.query_class(), DNSClass::IN | DNSClass::ANY) {
            return None;
        }
        let records = self.records(question.name(), question.query_type())?;
        let mut answer = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
        answer.metadata = Metadata::response_from_request(&asked.metadata);
        answer.metadata.authoritative = true;
        answer.metadata.recursion_available = true;
        answer.add_query(question.clone());
        for data in records {
            answer.add_answer(Record::from_rdata(question.name().clone(), TTL, data));
        }
        if asked.edns.is_some() {
            answer.set_edns(Edns::new());
        }
        answer.to_vec().ok()
    }

    /// What is known of a name: `None` when it is not local, an empty list when it has nothing of this type.
    fn records(&self, name: &Name, kind: RecordType) -> Option<Vec<RData>> {
        if let Some(names) = address_of(name).and_then(|ip| self.names_of(ip)) {
            let wanted = matches!(kind, RecordType::PTR | RecordType::ANY);
            return Some(names.into_iter().filter(|_| wanted).map(|name| RData::PTR(rdata::PTR(name))).collect());
        }
        let addresses = self.addresses_of(name)?;
        Some(
            addresses
                .into_iter()
                .filter_map(|ip| match (ip, kind) {
                    (IpAddr::V4(ip), RecordType::A | RecordType::ANY) => Some(RData::A(rdata::A(ip))),
                    (IpAddr::V6(ip), RecordType::AAAA | RecordType::ANY) => Some(RData::AAAA(rdata::AAAA(ip))),
                    _ => None,
                })
                .collect(),
        )
    }

    fn addresses_of(&self, name: &Name) -> Option<Vec<IpAddr>> {
        if is_localhost(name) {
            return Some(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        // `Name`'s equality does not care for the case of letters (RFC 4343).
        let found: Vec<IpAddr> = self.names.iter().filter(|(n, _)| n == name).map(|&(_, ip)| ip).collect();
        (!found.is_empty()).then_some(found)
    }

    /// The first name of an address: a PTR should have one.
    fn names_of(&self, ip: IpAddr) -> Option<Vec<Name>> {
        if ip.is_loopback() {
            return Some(vec![Name::from_ascii("localhost.").ok()?]);
        }
        self.names.iter().find(|&&(_, a)| a == ip).map(|(name, _)| vec![name.clone()])
    }
}

/// `localhost` and everything below it.
fn is_localhost(name: &Name) -> bool {
    name.iter().next_back().is_some_and(|label| label.eq_ignore_ascii_case(b"localhost"))
}

/// The address that a whole name below in-addr.arpa or ip6.arpa stands for.
fn address_of(name: &Name) -> Option<IpAddr> {
    let net = name.parse_arpa_name().ok()?;
    (net.prefix_len() == net.max_prefix_len()).then_some(net.addr())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Query as Question, ResponseCode};

    fn zone() -> LocalZone {
        LocalZone::new(&[
            ("host.tapline.internal".into(), "10.0.2.2".parse().unwrap()),
            ("host.tapline.internal".into(), "fd00::2".parse().unwrap()),
            ("host.docker.internal".into(), "10.0.2.2".parse().unwrap()),
        ])
    }

    fn ask(name: &str, kind: RecordType, edns: bool) -> Option<Message> {
        let mut message = Message::new(99, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Question::query(Name::from_ascii(name).unwrap(), kind));
        if edns {
            message.set_edns(Edns::new());
        }
        let query = Query::parse(message.to_vec().unwrap()).unwrap();
        let answer = zone().answer(&query)?;
        assert!(query.is_answered_by(&answer, 99));
        let parsed = Message::from_vec(&answer).unwrap();
        assert_eq!(parsed.metadata.response_code, ResponseCode::NoError);
        assert_eq!(parsed.edns.is_some(), edns);
        Some(parsed)
    }

    fn data(name: &str, kind: RecordType) -> Vec<String> {
        ask(name, kind, false).unwrap().answers.iter().map(|r| r.data.to_string()).collect()
    }

    #[test]
    fn local_names_have_their_addresses_and_nothing_of_other_types() {
        assert_eq!(data("host.tapline.internal.", RecordType::A), ["10.0.2.2"]);
        assert_eq!(data("host.tapline.internal.", RecordType::AAAA), ["fd00::2"]);
        assert_eq!(data("host.docker.internal.", RecordType::AAAA), Vec::<String>::new());
        assert_eq!(data("host.tapline.internal.", RecordType::MX), Vec::<String>::new());
        assert_eq!(data("host.tapline.internal.", RecordType::ANY).len(), 2);
    }

    #[test]
    fn the_case_of_letters_does_not_matter_and_is_kept() {
        let answer = ask("HOST.Docker.Internal.", RecordType::A, true).unwrap();
        assert_eq!(answer.answers[0].name.to_ascii(), "HOST.Docker.Internal.");
        assert_eq!(answer.queries[0].name().to_ascii(), "HOST.Docker.Internal.");
        assert!(answer.answers[0].ttl <= 60);
    }

    #[test]
    fn addresses_lead_back_to_names() {
        assert_eq!(data("2.2.0.10.in-addr.arpa.", RecordType::PTR), ["host.tapline.internal."]);
        let six = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.";
        assert_eq!(data(six, RecordType::PTR), ["host.tapline.internal."]);
        assert_eq!(data("1.0.0.127.in-addr.arpa.", RecordType::PTR), ["localhost."]);
        assert!(ask("8.8.8.8.in-addr.arpa.", RecordType::PTR, false).is_none());
        assert!(ask("0.10.in-addr.arpa.", RecordType::PTR, false).is_none());
    }

    #[test]
    fn localhost_stays_at_home() {
        assert_eq!(data("localhost.", RecordType::A), ["127.0.0.1"]);
        assert_eq!(data("app.LocalHost.", RecordType::AAAA), ["::1"]);
        assert_eq!(data("localhost.", RecordType::TXT), Vec::<String>::new());
    }

    #[test]
    fn other_names_are_not_answered() {
        for name in ["example.org.", "tapline.internal.", "x.host.docker.internal.", "localhost.example.", "."] {
            assert!(ask(name, RecordType::A, false).is_none(), "{name}");
        }
    }
}
