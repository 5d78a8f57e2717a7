//! DNS messages from the sandbox.
#![no_main]
use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::op::Message;
use libfuzzer_sys::fuzz_target;
use tapline::names::directory::Directory;
use tapline::names::local::{LocalZone, View};
use tapline::names::message::{CLASSIC_LIMIT, Query, REFUSED, SERVFAIL};
use tapline::plan::{Endpoint, Network, SandboxLink, Sharing};

fuzz_target!(|bytes: &[u8]| {
    let Some(query) = Query::parse(bytes.to_vec()) else { return };
    assert_eq!(query.bytes(), bytes);
    assert!(query.udp_limit() >= CLASSIC_LIMIT);
    let other = query.with_id(!query.id());
    assert_eq!(other[2..], bytes[2..]);
    for code in [SERVFAIL, REFUSED] {
        let error = query.error(code);
        assert!(query.is_answered_by(&error, query.id()), "an error of ours is an answer");
        assert!(Query::parse(error).is_none(), "an answer is no query");
    }
    let own = LocalZone::new(&[
        ("host.tapline.internal".into(), "10.0.2.2".parse().expect("an address")),
        ("host.tapline.internal".into(), "fd00::2".parse().expect("an address")),
    ]);
    // On a network with another sandbox, which an alias and a link lead to as well.
    let sharing = Some(Sharing { internal: false, icc: true });
    let network = Network { name: "front".into(), sharing, ..tapline_fuzz::network(1500) };
    let mut directory = Directory::default();
    let links = vec![SandboxLink { sandbox: "db".into(), alias: Some("store".into()) }];
    let asker = Endpoint { id: "0123456789ab".into(), name: "app".into(), links, ..Endpoint::default() };
    let v4 = Some(Ipv4Addr::new(10, 0, 2, 9));
    let v6 = Some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 9));
    let db = Endpoint {
        id: "ba9876543210".into(),
        name: "db".into(),
        v4,
        v6,
        aliases: vec!["sql".into()],
        ..Endpoint::default()
    };
    directory.attach(1, &network, &asker);
    directory.attach(2, &network, &db);
    let view = View { own: &own, directory: &directory, asker: &asker.id };
    if let Some(answer) = view.answer(&query) {
        assert!(query.is_answered_by(&answer, query.id()));
        Message::from_vec(&answer).expect("what we make ourselves is right");
    }
    // What a whole resolver reads, we read too.
    if Message::from_vec(bytes).is_ok() {
        assert!(query.is_well_formed());
    }
});
