//! DNS messages from upstream, in answer to a query, cut to a size.
#![no_main]
use arbitrary::Arbitrary;
use hickory_proto::op::Message;
use libfuzzer_sys::fuzz_target;
use tapline::names::message::{HEADER, Query, fit, is_truncated};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    limit: u16,
    id: u16,
    /// The answer is to begin as the query does.
    same: bool,
    query: &'a [u8],
    answer: &'a [u8],
}

fuzz_target!(|input: Input<'_>| {
    let mut answer = input.answer.to_vec();
    if let Some(query) = Query::parse(input.query.to_vec()) {
        if input.same && answer.len() >= HEADER && query.bytes().len() >= HEADER {
            let tail = answer.split_off(HEADER);
            answer.extend_from_slice(&query.bytes()[HEADER..]);
            answer.extend_from_slice(&tail);
        }
        if query.is_answered_by(&answer, input.id) {
            assert_eq!(answer[..2], input.id.to_be_bytes());
            assert!(answer[2] & 0x80 != 0);
        }
    }
    let limit = usize::from(input.limit).max(HEADER);
    let short = fit(answer.clone(), limit);
    assert!(short.len() <= limit || answer.len() < HEADER);
    if answer.len() <= limit || answer.len() < HEADER {
        assert_eq!(short, answer);
    } else {
        assert!(is_truncated(&short) && short[..2] == answer[..2]);
        if Message::from_vec(&answer).is_ok() {
            Message::from_vec(&short).expect("what was right is right when it is cut");
        }
    }
    assert_eq!(fit(short.clone(), limit), short);
});
