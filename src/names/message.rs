//! DNS messages as bytes (RFC 1035, 4.1): just enough to forward them without touching what is in them.
//!
//! Messages pass through as they are, whatever record types and options they hold; all that is ever looked at is
//! the header, the question, and whether there is an OPT record (RFC 6891). Every function here takes bytes from
//! the network and may be given anything.

/// Bytes of the header.
pub const HEADER: usize = 12;
/// Largest answer over UDP to an asker that says nothing of its size (RFC 1035, 4.2.1).
pub const CLASSIC_LIMIT: usize = 512;
/// What our own answers say of the size we take, in their OPT record (the DNS flag day's 2020 value).
const OUR_EDNS_SIZE: u16 = 1232;
/// The record type of OPT.
const TYPE_OPT: u16 = 41;

/// No error.
pub const NOERROR: u8 = 0;
/// Format error.
pub const FORMERR: u8 = 1;
/// Server failure.
pub const SERVFAIL: u8 = 2;
/// No such name.
pub const NXDOMAIN: u8 = 3;
/// Not implemented.
pub const NOTIMP: u8 = 4;
/// Refused.
pub const REFUSED: u8 = 5;

/// A query from a sandbox: its bytes, and where in them the interesting places are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    bytes: Vec<u8>,
    /// End of the question section; [`HEADER`] where it holds none or cannot be read.
    question_end: usize,
    /// The question section could be read.
    well_formed: bool,
    /// The asker's UDP size, where it sent an OPT record.
    edns_size: Option<u16>,
}

impl Query {
    /// Look at a message that a sandbox sent. `None` for what is no query at all: shorter than a header, or an
    /// answer. Nothing must be sent back for those.
    pub fn parse(bytes: Vec<u8>) -> Option<Query> {
        let header: &[u8; HEADER] = bytes.first_chunk()?;
        if header[2] & 0x80 != 0 {
            return None;
        }
        let end = end_of_questions(&bytes);
        let edns = end.and_then(|end| find_opt(&bytes, end));
        let edns_size = edns.map(|at| u16_at(&bytes, at.start + 3).unwrap_or(0));
        Some(Query { question_end: end.unwrap_or(HEADER), well_formed: end.is_some(), edns_size, bytes })
    }

    /// The message as it came.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its question section can be read.
    pub fn is_well_formed(&self) -> bool {
        self.well_formed
    }

    /// Largest UDP answer that the asker takes, in bytes (RFC 6891, 6.2.5: sizes under 512 count as 512).
    pub fn udp_limit(&self) -> usize {
        usize::from(self.edns_size.unwrap_or(0)).max(CLASSIC_LIMIT)
    }

    /// Its id.
    pub fn id(&self) -> u16 {
        u16::from_be_bytes([self.bytes[0], self.bytes[1]])
    }

    /// A copy with another id, for asking upstream.
    pub fn with_id(&self, id: u16) -> Vec<u8> {
        with_id(self.bytes.clone(), id)
    }

    /// Is `answer` an answer to this query, sent upstream with the id `id`? The question has to be the same, but
    /// for the case of letters; an error may come without it.
    pub fn is_answered_by(&self, answer: &[u8], id: u16) -> bool {
        let Some(header) = answer.first_chunk::<HEADER>() else { return false };
        let same_opcode = header[2] & 0x78 == self.bytes[2] & 0x78;
        if u16::from_be_bytes([header[0], header[1]]) != id || header[2] & 0x80 == 0 || !same_opcode {
            return false;
        }
        if header[4..6] == [0, 0] && rcode(answer) != NOERROR {
            return true;
        }
        match end_of_questions(answer) {
            Some(end) => {
                header[4..6] == self.bytes[4..6]
                    && answer[HEADER..end].eq_ignore_ascii_case(&self.bytes[HEADER..self.question_end])
            }
            None => false,
        }
    }

    /// An answer of our own that says only that something went wrong, with the question, and with an OPT record
    /// where the query had one (RFC 6891, 7).
    pub fn error(&self, rcode: u8) -> Vec<u8> {
        let mut answer = Vec::with_capacity(self.question_end + 11);
        answer.extend_from_slice(&self.bytes[..self.question_end]);
        // QR, the query's opcode and RD; RA and the code.
        answer[2] = 0x80 | (self.bytes[2] & 0x79);
        answer[3] = 0x80 | (rcode & 0x0f);
        if !self.well_formed {
            answer[4..6].fill(0);
        }
        answer[6..HEADER].fill(0);
        if self.edns_size.is_some() {
            answer[11] = 1;
            answer.push(0);
            answer.extend_from_slice(&TYPE_OPT.to_be_bytes());
            answer.extend_from_slice(&OUR_EDNS_SIZE.to_be_bytes());
            answer.extend_from_slice(&[0; 6]);
        }
        answer
    }
}

/// The same message with another id.
pub fn with_id(mut message: Vec<u8>, id: u16) -> Vec<u8> {
    if let Some(field) = message.first_chunk_mut::<2>() {
        *field = id.to_be_bytes();
    }
    message
}

/// The response code in the header (without the high bits that an OPT record may add).
pub fn rcode(answer: &[u8]) -> u8 {
    answer.get(3).map_or(SERVFAIL, |b| b & 0x0f)
}

/// The answer says that it is not all there is (TC).
pub fn is_truncated(answer: &[u8]) -> bool {
    answer.get(2).is_some_and(|b| b & 0x02 != 0)
}

/// An answer that fits into `limit` bytes: as it is, or with TC set and only the question and the OPT record left
/// (RFC 2181, 9; RFC 6891, 7), so that the asker comes again over TCP.
pub fn fit(answer: Vec<u8>, limit: usize) -> Vec<u8> {
    if answer.len() <= limit || answer.len() < HEADER {
        return answer;
    }
    let end = end_of_questions(&answer).filter(|&end| end <= limit);
    let opt = end.and_then(|end| find_opt(&answer, end)).map(|at| &answer[at]);
    let mut short = answer[..end.unwrap_or(HEADER)].to_vec();
    short[2] |= 0x02;
    if end.is_none() {
        short[4..6].fill(0);
    }
    short[6..HEADER].fill(0);
    if let Some(opt) = opt.filter(|opt| short.len() + opt.len() <= limit) {
        short[11] = 1;
        short.extend_from_slice(opt);
    }
    short
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The first byte after the question section.
fn end_of_questions(bytes: &[u8]) -> Option<usize> {
    let count = u16_at(bytes, 4)?;
    let mut at = HEADER;
    for _ in 0..count {
        at = end_of_name(bytes, at)? + 4;
        if at > bytes.len() {
            return None;
        }
    }
    Some(at)
}

/// The first byte after a name: labels, then a zero or a pointer (RFC 1035, 4.1.4).
fn end_of_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            0xc0.. => return (at + 2 <= bytes.len()).then_some(at + 2),
            _ => return None,
        }
    }
}

/// Where the OPT record is, in a message whose question section ends at `at`.
fn find_opt(bytes: &[u8], mut at: usize) -> Option<std::ops::Range<usize>> {
    let before = u32::from(u16_at(bytes, 6)?) + u32::from(u16_at(bytes, 8)?);
    let all = before + u32::from(u16_at(bytes, 10)?);
    // Each turn goes at least eleven bytes on or ends, whatever the counts say.
    for n in 0..all {
        let fixed = end_of_name(bytes, at)?;
        let end = fixed + 10 + usize::from(u16_at(bytes, fixed + 8)?);
        if end > bytes.len() {
            return None;
        }
        if n >= before && u16_at(bytes, fixed)? == TYPE_OPT && fixed == at + 1 {
            return Some(at..end);
        }
        at = end;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question, ResponseCode};
    use hickory_proto::rr::{Name, RData, Record, RecordType, rdata::A};
    use proptest::prelude::*;

    fn question(edns: Option<u16>) -> Message {
        let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Question::query(Name::from_ascii("WWW.Example.org.").unwrap(), RecordType::A));
        if let Some(size) = edns {
            let mut opt = Edns::new();
            opt.set_max_payload(size);
            message.set_edns(opt);
        }
        message
    }

    fn query(edns: Option<u16>) -> Query {
        Query::parse(question(edns).to_vec().unwrap()).unwrap()
    }

    /// An answer of `records` addresses to [`question`].
    fn answer(records: u8, edns: Option<u16>) -> Vec<u8> {
        let mut message = question(edns);
        message.metadata.message_type = MessageType::Response;
        for n in 0..records {
            let name = Name::from_ascii("www.example.org.").unwrap();
            message.add_answer(Record::from_rdata(name, 60, RData::A(A::new(192, 0, 2, n))));
        }
        message.to_vec().unwrap()
    }

    #[test]
    fn the_askers_size_is_read() {
        assert_eq!(query(None).udp_limit(), 512);
        assert_eq!(query(Some(1232)).udp_limit(), 1232);
        assert_eq!(query(Some(100)).udp_limit(), 512);
    }

    #[test]
    fn an_answer_is_known_by_id_and_question() {
        let query = query(None);
        let reply = answer(1, None);
        assert!(query.is_answered_by(&reply, 0x1234));
        assert!(!query.is_answered_by(&reply, 0x1235));
        assert!(!query.is_answered_by(query.bytes(), 0x1234));
        let mut other = reply.clone();
        other[HEADER + 1] = b'x';
        assert!(!query.is_answered_by(&other, 0x1234));
        let mut other_type = reply.clone();
        other_type[query.question_end - 3] = 28;
        assert!(!query.is_answered_by(&other_type, 0x1234));
        let mut case = reply;
        case[HEADER + 1] = b'w';
        assert!(query.is_answered_by(&case, 0x1234));
    }

    #[test]
    fn an_error_repeats_the_question_and_the_opt() {
        for edns in [None, Some(4096)] {
            let query = query(edns);
            let error = query.error(SERVFAIL);
            assert!(query.is_answered_by(&error, 0x1234));
            let message = Message::from_vec(&error).unwrap();
            assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
            assert!(message.metadata.recursion_desired && message.metadata.recursion_available);
            assert_eq!(message.edns.is_some(), edns.is_some());
        }
    }

    #[test]
    fn what_does_not_fit_is_truncated_to_question_and_opt() {
        let long = answer(60, Some(512));
        assert!(long.len() > 900);
        assert_eq!(fit(long.clone(), 1232), long);
        let short = fit(long, 512);
        let message = Message::from_vec(&short).unwrap();
        assert!(message.metadata.truncation && message.answers.is_empty() && message.edns.is_some());
        assert_eq!(message.queries.len(), 1);
        assert!(short.len() <= 512);
    }

    #[test]
    fn an_answer_or_a_scrap_is_no_query() {
        assert_eq!(Query::parse(answer(0, None)), None);
        assert_eq!(Query::parse(vec![0; 11]), None);
        let scrap = Query::parse(vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 9]).unwrap();
        assert!(!scrap.is_well_formed());
        assert_eq!(scrap.error(FORMERR), [0, 7, 0x81, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn no_bytes_at_all_are_a_surprise(bytes in prop::collection::vec(any::<u8>(), 0..200), limit in 12usize..300) {
            prop_assert!(fit(bytes.clone(), limit).len() <= limit || bytes.len() < HEADER);
            if let Some(query) = Query::parse(bytes.clone()) {
                query.error(REFUSED);
                query.udp_limit();
                query.is_answered_by(&bytes, 1);
            }
        }

        #[test]
        fn a_message_with_a_flipped_byte_is_no_surprise(at in 0usize..300, to in any::<u8>()) {
            let mut bytes = answer(10, Some(1232));
            let len = bytes.len();
            bytes[at % len] = to;
            fit(bytes.clone(), 64);
            bytes[2] &= 0x7f;
            let query = Query::parse(bytes).unwrap();
            query.error(SERVFAIL);
        }
    }
}
