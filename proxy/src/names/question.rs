//! A question of DNS, and the answers that are given to it here.
//!
//! Pure: bytes in, bytes out, by hickory's reading and writing of the wire format. Who is asked for names that the mesh does
//! not know stands in [`super::forward`].

use std::net::IpAddr;

use hickory_proto::op::{Edns, Header, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

/// The length of the head of a message (RFC 1035 section 4.1.1).
pub(super) const HEAD_LENGTH: usize = 12;

/// The largest answer over UDP that we would take ourselves: what the makers of DNS software have agreed on, as it fits in
/// a packet everywhere (DNS flag day 2020).
const PAYLOAD_MAX: u16 = 1232;

/// Longer questions are refused: a name has 255 bytes at most, and with all that is said by EDNS a question has some hundred.
/// What waits for name servers is kept, so this bounds it.
pub(super) const QUESTION_MAX: usize = 4096;

/// What a message is to who listens for questions.
#[derive(Debug)]
pub(super) enum Read {
    /// Nothing that is to be answered.
    Nothing,
    /// What is not done here, and the answer that says so.
    Refused(Vec<u8>),
    /// A question.
    Asked(Box<Question>),
}

/// A question.
#[derive(Debug)]
pub(super) struct Question {
    query: Query,
    header: Header,
    /// What it says of itself by EDNS. An error: what follows the question cannot be read.
    edns: Result<Option<Edns>, ()>,
    /// Where the question ends in its message.
    pub(super) end: usize,
    /// Its name in lower case, without the root's dot.
    pub(super) name: String,
}

/// Reads a message.
pub(super) fn read(bytes: &[u8]) -> Read {
    let mut decoder = BinDecoder::new(bytes);
    // Without a whole head there is no identity to answer to.
    let Ok(header) = Header::read(&mut decoder) else {
        return Read::Nothing;
    };
    // Two servers that answer answers would never end.
    if header.message_type == MessageType::Response {
        return Read::Nothing;
    }
    let refused = |code| {
        let mut message = Message::error_msg(header.id, header.op_code, code);
        message.metadata.recursion_desired = header.recursion_desired;
        written(&message).map_or(Read::Nothing, Read::Refused)
    };
    if header.op_code != OpCode::Query {
        return refused(ResponseCode::NotImp);
    }
    // RFC 9619 section 4: a query has one question.
    if header.counts.queries != 1 || bytes.len() > QUESTION_MAX {
        return refused(ResponseCode::FormErr);
    }
    let Ok(query) = Query::read(&mut decoder) else {
        return refused(ResponseCode::FormErr);
    };
    // A zone is many messages and no question of an application.
    if matches!(query.query_type, RecordType::AXFR | RecordType::IXFR) {
        return refused(ResponseCode::Refused);
    }
    let mut name = query.name.to_lowercase().to_ascii();
    if name.ends_with('.') {
        name.pop();
    }
    Read::Asked(Box::new(Question {
        end: decoder.index(),
        edns: Message::from_vec(bytes)
            .map(|message| message.edns)
            .map_err(|_| ()),
        query,
        header,
        name,
    }))
}

impl Question {
    /// Whether a service may have this name. Others hold what DNS allows and hosts do not.
    pub(super) fn is_of_a_host(&self) -> bool {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        self.query.query_class == DNSClass::IN && self.name.bytes().all(allowed)
    }

    /// Whether both ask the same, however they are written.
    pub(super) fn asks(&self) -> (&str, u16, u16) {
        let (kind, class) = (self.query.query_type, self.query.query_class);
        (&self.name, kind.into(), class.into())
    }

    /// The answer about a name of the mesh: those of the addresses that are asked for, which may be none.
    pub(super) fn answered(&self, addresses: &[IpAddr], ttl_seconds: u32) -> Option<Vec<u8>> {
        let Ok(edns) = &self.edns else {
            return self.failed(ResponseCode::FormErr);
        };
        // RFC 6891 section 6.1.3.
        if edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return self.failed(ResponseCode::BADVERS);
        }
        let mut message = self.reply(ResponseCode::NoError);
        message.metadata.authoritative = true;
        for address in addresses {
            let data = match (self.query.query_type, address) {
                // RFC 8482 section 4.1: who asks for anything is told something.
                (RecordType::A | RecordType::ANY, IpAddr::V4(address)) => RData::A(A(*address)),
                (RecordType::AAAA | RecordType::ANY, IpAddr::V6(address)) => RData::AAAA(AAAA(*address)),
                _ => continue,
            };
            // The name as it was asked: who spells it at random looks whether it comes back so.
            message.add_answer(Record::from_rdata(self.query.name.clone(), ttl_seconds, data));
        }
        if message.answers.is_empty() {
            message.add_authority(self.nothing_else(ttl_seconds));
        }
        written(&message)
    }

    /// The record that says for how long it may be remembered that there is nothing of this kind (RFC 2308 section 3).
    fn nothing_else(&self, ttl_seconds: u32) -> Record {
        let name = &self.query.name;
        let seconds = i32::try_from(ttl_seconds).unwrap_or(i32::MAX);
        let soa = SOA::new(
            name.clone(),
            Name::root(),
            1,
            seconds,
            seconds,
            seconds,
            ttl_seconds,
        );
        Record::from_rdata(name.clone(), ttl_seconds, RData::SOA(soa))
    }

    /// The answer that there is none, with the reason.
    pub(super) fn failed(&self, code: ResponseCode) -> Option<Vec<u8>> {
        written(&self.reply(code))
    }

    /// The answer that no name server gave one.
    pub(super) fn unanswered(&self) -> Option<Vec<u8>> {
        self.failed(ResponseCode::ServFail)
    }

    /// The answer that there are too many questions.
    pub(super) fn one_too_many(&self) -> Option<Vec<u8>> {
        self.failed(ResponseCode::Refused)
    }

    fn reply(&self, code: ResponseCode) -> Message {
        let mut message = Message::error_msg(self.header.id, OpCode::Query, code);
        message.metadata.recursion_desired = self.header.recursion_desired;
        message.metadata.checking_disabled = self.header.checking_disabled;
        message.metadata.recursion_available = true;
        message.add_query(self.query.clone());
        if let Ok(Some(asked)) = &self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(PAYLOAD_MAX);
            // RFC 3225 section 3.
            edns.set_dnssec_ok(asked.flags().dnssec_ok);
            message.set_edns(edns);
        }
        message
    }
}

fn written(message: &Message) -> Option<Vec<u8>> {
    message.to_vec().ok()
}

/// Whether a message answers this question of ours, whose identity it bears. `asked` is what was sent but for its identity,
/// `end` where its question ends.
pub(super) fn answers((identity, asked): ([u8; 2], &[u8]), end: usize, answer: &[u8]) -> bool {
    let mut decoder = BinDecoder::new(answer);
    let Ok(header) = Header::read(&mut decoder) else {
        return false;
    };
    let is_ours = header.message_type == MessageType::Response && answer[..2] == identity;
    // RFC 5452 section 9.1. Some servers leave out the question of what they could not read.
    let question = || {
        answer
            .get(HEAD_LENGTH..end)
            .is_some_and(|answered| answered.eq_ignore_ascii_case(&asked[HEAD_LENGTH..end]))
    };
    is_ours
        && match header.counts.queries {
            0 => header.response_code != ResponseCode::NoError,
            _ => question(),
        }
}

/// Whether an answer says that its server cannot tell, so that another may be asked.
pub(super) fn is_failure(answer: &[u8]) -> bool {
    let header = Header::read(&mut BinDecoder::new(answer));
    header.is_ok_and(|header| {
        matches!(
            header.response_code,
            ResponseCode::ServFail | ResponseCode::NotImp | ResponseCode::Refused
        )
    })
}
