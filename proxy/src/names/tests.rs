//! Questions as bytes, and what becomes of them.

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use proptest::prelude::*;

use super::question::{QUESTION_MAX, Question, Read, answers, is_failure, read};
use super::*;

const TTL: u32 = 5;

fn asked(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0x1234, hickory_proto::op::MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn question(bytes: &[u8]) -> Box<Question> {
    match read(bytes) {
        Read::Asked(question) => question,
        other => panic!("{other:?}"),
    }
}

fn answered(message: &Message, addresses: &[&str]) -> Message {
    let addresses: Vec<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
    let bytes = message.to_vec().unwrap();
    Message::from_vec(&question(&bytes).answered(&addresses, TTL).unwrap()).unwrap()
}

#[test]
fn what_is_no_question_is_refused_as_the_rfcs_say_or_met_with_silence() {
    let whole = asked("reviews.", RecordType::A).to_vec().unwrap();
    let changed = |change: fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        match read(&bytes) {
            Read::Nothing => None,
            Read::Asked(_) => Some(ResponseCode::NoError),
            Read::Refused(answer) => {
                let answer = Message::from_vec(&answer).unwrap();
                assert_eq!(answer.metadata.id, 0x1234);
                Some(answer.metadata.response_code)
            }
        }
    };
    type Case = (&'static str, fn(&mut Vec<u8>), Option<ResponseCode>);
    let cases: [Case; 12] = [
        ("as it is", |_| {}, Some(ResponseCode::NoError)),
        ("nothing", Vec::clear, None),
        ("half a head", |bytes| bytes.truncate(11), None),
        ("an answer", |bytes| bytes[2] |= 0x80, None),
        (
            "an update",
            |bytes| bytes[2] |= 5 << 3,
            Some(ResponseCode::NotImp),
        ),
        ("no question", |bytes| bytes[5] = 0, Some(ResponseCode::FormErr)),
        ("two", |bytes| bytes[5] = 2, Some(ResponseCode::FormErr)),
        (
            "as long as may be",
            |bytes| bytes.resize(QUESTION_MAX, 0),
            Some(ResponseCode::NoError),
        ),
        (
            "too long",
            |bytes| bytes.resize(QUESTION_MAX + 1, 0),
            Some(ResponseCode::FormErr),
        ),
        (
            "half a name",
            |bytes| bytes.truncate(16),
            Some(ResponseCode::FormErr),
        ),
        (
            "a name that points at itself",
            |bytes| {
                bytes.truncate(12);
                bytes.extend([0xc0, 12, 0, 1, 0, 1]);
            },
            Some(ResponseCode::FormErr),
        ),
        (
            "a whole zone",
            |bytes| {
                let at = bytes.len() - 3;
                bytes[at] = 252;
            },
            Some(ResponseCode::Refused),
        ),
    ];
    for (what, change, code) in cases {
        assert_eq!(changed(change), code, "{what}");
    }
}

#[test]
fn a_name_of_the_mesh_has_the_addresses_of_the_family_that_is_asked_for_and_else_nothing() {
    let both = ["127.64.0.7", "::1"];
    for (kind, addresses, found) in [
        (RecordType::A, &both[..], &["127.64.0.7"][..]),
        (RecordType::AAAA, &both, &["::1"]),
        (RecordType::ANY, &both, &["127.64.0.7", "::1"]),
        (RecordType::AAAA, &both[..1], &[]),
        (RecordType::HTTPS, &both, &[]),
        (RecordType::TXT, &both, &[]),
    ] {
        let answer = answered(&asked("ReViews.", kind), addresses);
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        assert_eq!(answer.metadata.id, 0x1234);
        assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
        let records = answer.answers.iter();
        let data: Vec<String> = records.map(|record| record.data.to_string()).collect();
        assert_eq!(data, found, "{kind}");
        for record in answer.answers.iter().chain(&answer.authorities) {
            assert_eq!(record.ttl, TTL);
            // As it was asked, letter by letter.
            assert_eq!(record.name.to_ascii(), "ReViews.");
        }
        // Without it the absence would not be remembered at all, or for as long as a library likes.
        assert_eq!(answer.authorities.len(), usize::from(found.is_empty()), "{kind}");
    }
}

#[test]
fn what_is_said_by_edns_is_answered_by_edns() {
    let mut message = asked("reviews.", RecordType::A);
    assert!(answered(&message, &[]).edns.is_none());
    let mut edns = hickory_proto::op::Edns::new();
    edns.set_dnssec_ok(true).set_max_payload(4096);
    message.set_edns(edns.clone());
    let said = answered(&message, &["127.0.0.1"]).edns.unwrap();
    assert!(said.flags().dnssec_ok);
    assert_eq!((said.version(), said.max_payload()), (0, 1232));
    edns.set_version(1);
    message.set_edns(edns);
    let refused = answered(&message, &["127.0.0.1"]);
    // The number has two names.
    assert_eq!(
        u16::from(refused.metadata.response_code),
        u16::from(ResponseCode::BADVERS)
    );
    assert!(refused.answers.is_empty());
}

#[test]
fn a_name_that_no_service_can_have_is_not_of_a_host() {
    for (name, is_of_a_host) in [
        ("Reviews.shop.internal.", true),
        ("_dmarc.reviews.", true),
        ("rev\\.iews.", false),
        ("*.reviews.", false),
    ] {
        let bytes = asked(name, RecordType::A).to_vec().unwrap();
        assert_eq!(question(&bytes).is_of_a_host(), is_of_a_host, "{name}");
    }
    let mut with_a_port = asked("reviewsx80.", RecordType::A).to_vec().unwrap();
    with_a_port[20] = b':';
    assert!(!question(&with_a_port).is_of_a_host());
    let mut of_another_class = asked("reviews.", RecordType::A).to_vec().unwrap();
    *of_another_class.last_mut().unwrap() = 3;
    assert!(!question(&of_another_class).is_of_a_host());
}

#[test]
fn only_the_answer_to_the_question_is_taken_for_it() {
    let asked = asked("reviews.shop.", RecordType::A).to_vec().unwrap();
    let end = question(&asked).end;
    assert_eq!(end, asked.len());
    let mut answer = asked.clone();
    answer[2] |= 0x80;
    assert!(answers(([0x12, 0x34], &asked), end, &answer));
    let changed = |change: fn(&mut Vec<u8>)| {
        let mut answer = answer.clone();
        change(&mut answer);
        answers(([0x12, 0x34], &asked), end, &answer)
    };
    assert!(changed(|answer| answer[13].make_ascii_uppercase()));
    assert!(changed(|answer| answer.extend([1, 2, 3])));
    assert!(!changed(|answer| answer[0] ^= 1), "another identity");
    assert!(!changed(|answer| answer[13] = b'x'), "another name");
    assert!(!changed(|answer| answer[2] &= 0x7f), "a question");
    assert!(!changed(|answer| answer.truncate(20)), "half of it");
    let without = |code: u8| {
        let mut answer = answer[..12].to_vec();
        (answer[3], answer[5]) = (code, 0);
        answers(([0x12, 0x34], &asked), end, &answer)
    };
    assert!(without(1), "a server that could not read it");
    assert!(!without(0), "no question and no failure");
    for (code, fails) in [
        (0, false),
        (1, false),
        (2, true),
        (3, false),
        (4, true),
        (5, true),
    ] {
        let mut answer = answer.clone();
        answer[3] = answer[3] & 0xf0 | code;
        assert_eq!(is_failure(&answer), fails, "{code}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_and_answered_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80), fit: bool) {
        let mut bytes = bytes;
        if fit && bytes.len() > 12 {
            // A head that is one of a question, so that what follows is looked at.
            bytes[2..12].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
        }
        if let Read::Asked(question) = read(&bytes) {
            prop_assert!(question.end <= bytes.len());
            question.is_of_a_host();
            question.answered(&[Ipv4Addr::LOCALHOST.into()], TTL);
            question.unanswered();
            answers(([bytes[0], bytes[1]], &bytes), question.end, &bytes);
        }
        is_failure(&bytes);
    }
}

#[test]
fn the_addresses_of_the_application_s_side_are_those_at_which_it_listens() {
    for (outbound, own) in [
        ("127.0.0.1", &["127.0.0.1"][..]),
        ("10.1.2.3", &["10.1.2.3"]),
        ("0.0.0.0", &["127.0.0.1"]),
        ("::1", &["::1"]),
        ("::", &["127.0.0.1", "::1"]),
    ] {
        let found = own_addresses(outbound.parse().unwrap());
        let found: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found, own, "{outbound}");
    }
}
