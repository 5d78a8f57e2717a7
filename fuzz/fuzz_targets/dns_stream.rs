//! DNS over TCP: a sandbox's stream of queries, of which each gets at most one answer; and a resolver's messages, however
//! they are cut.
#![no_main]
use libfuzzer_sys::fuzz_target;
use tapline::fuzzing;
use tapline::names::message::HEADER;

fn messages(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (&[high, low], rest) = bytes.split_first_chunk()?;
        let (message, rest) = rest.split_at_checked(u16::from_be_bytes([high, low]).into())?;
        all.push(message);
        bytes = rest;
    }
    Some(all)
}

fuzz_target!(|bytes: &[u8]| {
    let answered = fuzzing::dns_stream(bytes);
    let answers = messages(&answered).expect("whole messages");
    // As far as they are whole: what is cut off gets no answer.
    let mut asked = Vec::new();
    let mut rest = bytes;
    while let Some((&[high, low], behind)) = rest.split_first_chunk()
        && let Some((message, behind)) = behind.split_at_checked(u16::from_be_bytes([high, low]).into())
    {
        asked.push(message);
        rest = behind;
    }
    assert!(answers.len() <= asked.len(), "more answers than queries");
    for answer in answers {
        assert!(answer.len() >= HEADER && answer[2] & 0x80 != 0, "no answer");
        assert!(asked.iter().any(|query| query.len() >= HEADER && query[..2] == answer[..2]), "to nobody's query");
    }
    let length = bytes.first_chunk().map_or(usize::MAX, |two| u16::from_be_bytes(*two).into());
    let whole = bytes.get(2..).and_then(|rest| rest.get(..length));
    for cut in [0, 1, 2, 3, bytes.len() / 2, bytes.len()] {
        assert_eq!(fuzzing::dns_message(bytes, cut).as_deref(), whole);
    }
});
