//! The names that the DNS address answers itself.
//!
//! These are, in this order: `localhost` with everything below it, which never leaves the host (RFC 6761, 6.3); the
//! asker's own ([`Endpoint::names`](crate::plan::Endpoint::names)); those of the gateway
//! ([`Network::local_names`](crate::plan::Network::local_names): host.tapline.internal and its like), which lead to
//! addresses on the segment; and those of the sandboxes that it shares a network with ([`Directory`]). All are answered
//! for A and AAAA, and backwards for PTR; other types of these names exist with no data. Letters' case does not matter
//! and is sent back as it was asked. Everything else is none of this room's business and goes to the host's resolvers,
//! but for addresses in the asker's subnets that nobody has.
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType, rdata};

use super::directory::{Directory, Key, Owner, absolute, key, key_of};
use super::message::Query;

/// How long a local answer may be kept, in seconds: short, because the sandbox behind a name may end.
const TTL: u32 = 10;

/// Names that lead to addresses for one sandbox alone.
#[derive(Clone, Debug, Default)]
pub struct LocalZone {
    names: HashMap<Key, Vec<IpAddr>>,
    /// The first name of each address: a PTR should have one.
    addresses: HashMap<IpAddr, Name>,
}

impl LocalZone {
    /// A zone of names and their addresses; a name may be there several times. A name that DNS cannot carry (an
    /// empty label, more than 63 bytes in one) is left out: nobody can ask for it.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a (String, IpAddr)>) -> LocalZone {
        let mut zone = LocalZone::default();
        for (text, ip) in names {
            let Some(name) = absolute(text) else { continue };
            zone.names.entry(key(text)).or_default().push(*ip);
            zone.addresses.entry(*ip).or_insert(name);
        }
        zone
    }

    /// Take what the other zone has as well, where this one has nothing under the same name.
    pub fn or(mut self, other: LocalZone) -> LocalZone {
        for (key, addresses) in other.names {
            self.names.entry(key).or_insert(addresses);
        }
        for (ip, name) in other.addresses {
            self.addresses.entry(ip).or_insert(name);
        }
        self
    }
}

/// All that one sandbox can ask for here.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// What is for it alone.
    pub own: &'a LocalZone,
    /// What it shares with others.
    pub directory: &'a Directory,
    /// Its id.
    pub asker: &'a str,
}

/// What is known of a name.
enum Found {
    /// These records; perhaps none of the type that was asked for.
    Records(Vec<RData>),
    /// There is no such name.
    Nothing,
}

impl View<'_> {
    /// The answer, where the question is about a local name.
    pub fn answer(&self, query: &Query) -> Option<Vec<u8>> {
        let asked = Message::from_vec(query.bytes()).ok()?;
        let [question] = asked.queries.as_slice() else { return None };
        if asked.metadata.op_code != OpCode::Query || !matches!(question.query_class(), DNSClass::IN | DNSClass::ANY) {
            return None;
        }
        let found = self.find(question.name(), question.query_type())?;
        let mut answer = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
        answer.metadata = Metadata::response_from_request(&asked.metadata);
        answer.metadata.authoritative = true;
        answer.metadata.recursion_available = true;
        answer.add_query(question.clone());
        match found {
            Found::Records(records) => {
                for data in records {
                    answer.add_answer(Record::from_rdata(question.name().clone(), TTL, data));
                }
            }
            Found::Nothing => answer.metadata.response_code = ResponseCode::NXDomain,
        }
        if asked.edns.is_some() {
            answer.set_edns(Edns::new());
        }
        answer.to_vec().ok()
    }

    /// What is known of a name; `None` when it is not local.
    fn find(&self, name: &Name, kind: RecordType) -> Option<Found> {
        if let Some(ip) = address_of(name) {
            let name = match self.name_of(ip) {
                Owner::Sandbox(name) => name.clone(),
                Owner::Nobody => return Some(Found::Nothing),
                Owner::Elsewhere if ip.is_loopback() => Name::from_ascii("localhost.").ok()?,
                Owner::Elsewhere => return None,
            };
            let wanted = matches!(kind, RecordType::PTR | RecordType::ANY);
            let records = Some(name).into_iter().filter(|_| wanted).map(|name| RData::PTR(rdata::PTR(name)));
            return Some(Found::Records(records.collect()));
        }
        let of_kind = |ip: IpAddr| match (ip, kind) {
            (IpAddr::V4(ip), RecordType::A | RecordType::ANY) => Some(RData::A(rdata::A(ip))),
            (IpAddr::V6(ip), RecordType::AAAA | RecordType::ANY) => Some(RData::AAAA(rdata::AAAA(ip))),
            _ => None,
        };
        Some(Found::Records(self.addresses_of(name)?.into_iter().filter_map(of_kind).collect()))
    }

    fn addresses_of(&self, name: &Name) -> Option<Vec<IpAddr>> {
        if is_localhost(name) {
            return Some(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        let key = key_of(name)?;
        match self.own.names.get(&*key) {
            Some(addresses) => Some(addresses.clone()),
            None => self.directory.addresses(self.asker, &key),
        }
    }

    fn name_of(&self, ip: IpAddr) -> Owner<'_> {
        match self.own.addresses.get(&ip) {
            Some(name) if !ip.is_loopback() => Owner::Sandbox(name),
            _ => self.directory.owner(self.asker, ip),
        }
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
    use hickory_proto::op::Query as Question;

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
        let (own, directory) = (zone(), Directory::default());
        let answer = View { own: &own, directory: &directory, asker: "0123456789ab" }.answer(&query)?;
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
