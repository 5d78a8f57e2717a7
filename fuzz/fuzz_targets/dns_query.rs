//! DNS messages from the sandbox.
#![no_main]
use hickory_proto::op::Message;
use libfuzzer_sys::fuzz_target;
use tapline::names::local::LocalZone;
use tapline::names::message::{CLASSIC_LIMIT, Query, REFUSED, SERVFAIL};

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
    let zone = LocalZone::new(&[
        ("host.tapline.internal".into(), "10.0.2.2".parse().expect("an address")),
        ("host.tapline.internal".into(), "fd00::2".parse().expect("an address")),
    ]);
    if let Some(answer) = zone.answer(&query) {
        assert!(query.is_answered_by(&answer, query.id()));
        Message::from_vec(&answer).expect("what we make ourselves is right");
    }
    // What a whole resolver reads, we read too.
    if Message::from_vec(bytes).is_ok() {
        assert!(query.is_well_formed());
    }
});
