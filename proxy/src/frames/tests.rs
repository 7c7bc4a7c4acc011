//! What is told of frames.

use super::heads::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE_LENGTH, SETTINGS,
};
use super::*;

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    on(0, kind, flags, payload)
}

fn on(stream: u32, kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn opening() -> Vec<u8> {
    [vec![b'P'; PREFACE_LENGTH], frame(SETTINGS, 0, &[])].concat()
}

fn told(bytes: &[u8], allowance: &Allowance) -> Result<(), (Reason, usize)> {
    Frames::of_a_caller().take(bytes, allowance)
}

#[test]
fn however_the_bytes_are_cut_the_frames_are_the_same() {
    let wide = [0, 4, 0xff, 0, 0, 0];
    let bytes = [
        opening(),
        frame(DATA, 0, &[0; 100]),
        frame(SETTINGS, 0, &[0, 3, 0, 0, 0, 1]),
        frame(SETTINGS, 0, &[&[0, 3, 0, 0, 0, 1][..], &wide].concat()),
    ]
    .concat();
    for cut in 1..bytes.len() {
        let (mut frames, allowance) = (Frames::of_a_caller(), Allowance::default());
        let told = bytes
            .chunks(cut)
            .try_for_each(|piece| frames.take(piece, &allowance));
        assert_eq!(
            told.unwrap_err().0,
            Reason::FLOW_CONTROL_ERROR,
            "in pieces of {cut}"
        );
        assert!(frames.take(&[], &allowance).is_ok());
    }
    let good = told(&bytes, &Allowance::default()).unwrap_err().1;
    assert_eq!(
        good,
        bytes.len() - wide.len(),
        "what comes before the fault is handed on"
    );
}

#[test]
fn the_first_frame_is_the_caller_s_settings() {
    for first in [
        frame(PING, 0, &[0; 8]),
        frame(SETTINGS, ACK, &[]),
        frame(HEADERS, 0, &[]),
    ] {
        let bytes = [vec![b'P'; PREFACE_LENGTH], first].concat();
        let told = told(&bytes, &Allowance::default());
        assert_eq!(told, Err((Reason::PROTOCOL_ERROR, PREFACE_LENGTH)));
    }
}

#[test]
fn an_allowance_ends_and_time_and_answers_give_it_back() {
    let allowance = Allowance::default();
    let mut frames = Frames::of_a_caller();
    frames.take(&opening(), &allowance).unwrap();
    let ping = frame(PING, 0, &[0; 8]);
    let sent = (0..)
        .take_while(|_| frames.take(&ping, &allowance).is_ok())
        .count();
    assert_eq!(
        sent,
        ALLOWANCE_MAX as usize - 1,
        "all but one, which was SETTINGS"
    );
    allowance.sent(BYTES_FOR_ONE * 3);
    assert_eq!(allowance.left.get(), 3);
    allowance.renew(allowance.renewed.get() + RENEWAL);
    assert!(frames.take(&ping, &allowance).is_ok());
    assert_eq!(allowance.verdict(), None);
}

#[test]
fn requests_taken_back_are_weighed_against_those_that_are_answered() {
    let half = Allowance::default();
    for _ in 0..10_000 {
        half.taken_back();
        half.answered();
    }
    assert_eq!(half.verdict(), None);
    let most = Allowance::default();
    for _ in 0..1_000 {
        most.taken_back();
        most.taken_back();
        most.answered();
    }
    assert_eq!(most.verdict(), Some(Reason::ENHANCE_YOUR_CALM));
    let slow = Allowance::default();
    for _ in 0..1_000 {
        (0..TAKEN_BACK_FORGIVEN).for_each(|_| slow.taken_back());
        slow.forgive();
    }
    assert_eq!(slow.verdict(), None);
}

#[test]
fn requests_and_their_bodies_cost_nothing() {
    let allowance = Allowance::default();
    let request = [
        frame(HEADERS, 4, &[0x82; 20]),
        frame(DATA, 0, b"x"),
        frame(DATA, END_STREAM, &[]),
    ]
    .concat();
    let bytes = [opening(), request.repeat(50_000)].concat();
    assert_eq!(told(&bytes, &allowance), Ok(()));
    assert_eq!(allowance.left.get(), ALLOWANCE_MAX - 1);
}

/// What a caller is told that sends these after its opening.
fn judged(frames: &[Vec<u8>]) -> Result<(), Reason> {
    let bytes = [opening(), frames.concat()].concat();
    told(&bytes, &Allowance::default()).map_err(|(reason, _)| reason)
}

const WHOLE: u8 = END_STREAM | END_HEADERS;
const GET: &[u8] = &[0x82];

#[test]
fn a_stream_that_the_caller_has_ended_takes_no_more_of_it() {
    let get = |stream: u32| on(stream, HEADERS, WHOLE, GET);
    let post = |stream: u32| on(stream, HEADERS, END_HEADERS, GET);
    let trailers = |stream: u32| on(stream, HEADERS, WHOLE, &[0, 1, b'x', 1, b'y']);
    let data = |stream: u32, flags: u8| on(stream, DATA, flags, b"x");
    let closed = Err(Reason::STREAM_CLOSED);
    assert_eq!(judged(&[get(1), data(1, 0)]), closed);
    assert_eq!(judged(&[get(1), trailers(1)]), closed);
    assert_eq!(judged(&[post(1), data(1, END_STREAM), data(1, 0)]), closed);
    assert_eq!(judged(&[post(1), trailers(1), data(1, 0)]), closed);
    assert_eq!(
        judged(&[post(1), get(3), data(1, 0), trailers(1), get(7)]),
        Ok(())
    );
    assert_eq!(
        judged(&[post(1), get(2_001), data(1, 0)]),
        Ok(()),
        "too old to be known"
    );
    assert_eq!(
        judged(&[get(1), post(2_049), data(2_049, 0)]),
        Ok(()),
        "the same place"
    );
    let many: Vec<_> = (0..5_000).map(|count| get(2 * count + 1)).collect();
    assert_eq!(judged(&many), Ok(()));
    assert_eq!(judged(&[many.concat(), data(9_001, 0)]), closed);
    // What stands in the middle of a header block is `h2`'s to refuse.
    assert_eq!(judged(&[on(1, HEADERS, END_STREAM, GET), data(1, 0)]), Ok(()));
}

#[test]
fn a_stream_that_the_caller_has_ended_is_known_however_old_it_is() {
    let mut rng = fastrand::Rng::with_seed(7);
    let (mut frames, allowance) = (Frames::of_a_caller(), Allowance::default());
    frames.take(&opening(), &allowance).unwrap();
    // Few stay open, as by callers who keep to the streams that they may have.
    let (mut open, mut refused) = (Vec::new(), 0);
    for count in 0..20_000 {
        let newest = 2 * count + 1;
        let ends = open.len() >= 200 || rng.u8(..10) != 0;
        if !ends {
            open.push(newest);
        }
        let flags = if ends { WHOLE } else { END_HEADERS };
        frames
            .take(&on(newest, HEADERS, flags, &[0x82]), &allowance)
            .unwrap();
        if !open.is_empty() && rng.u8(..20) == 0 {
            let place = rng.usize(..open.len());
            let ends = rng.bool();
            let data = on(open[place], DATA, u8::from(ends), b"x");
            assert_eq!(frames.take(&data, &allowance), Ok(()), "it is open");
            if ends {
                open.swap_remove(place);
            }
        }
        let any = rng.u32(..=count) * 2 + 1;
        if rng.u8(..20) == 0 && !open.contains(&any) {
            // Without a byte, so that reading can go on behind what is refused.
            let told = frames.take(&on(any, DATA, 0, b""), &allowance);
            let told = told.map_err(|(reason, _)| reason);
            assert_eq!(told, Err(Reason::STREAM_CLOSED), "{any} of {newest}");
            refused += 1;
        }
    }
    assert!(refused > 100);
}

#[test]
fn of_streams_that_are_left_open_only_so_many_are_remembered() {
    let (mut frames, allowance) = (Frames::of_a_caller(), Allowance::default());
    frames.take(&opening(), &allowance).unwrap();
    frames.take(&on(1, HEADERS, WHOLE, &[0x82]), &allowance).unwrap();
    for number in 1..10_000 {
        let head = on(1 + 2 * number, HEADERS, END_HEADERS, &[0x82]);
        frames.take(&head, &allowance).unwrap();
    }
    for left_to_h2 in [1, 3, 19_999] {
        assert_eq!(frames.take(&on(left_to_h2, DATA, 0, b"x"), &allowance), Ok(()));
    }
    // A jump forgets all, and what comes after it is known again.
    for stream in [100_001, 100_003] {
        frames
            .take(&on(stream, HEADERS, WHOLE, &[0x82]), &allowance)
            .unwrap();
    }
    assert_eq!(frames.take(&on(19_999, DATA, 0, b"x"), &allowance), Ok(()));
    let told = frames.take(&on(100_001, DATA, 0, b"x"), &allowance);
    assert_eq!(told.unwrap_err().0, Reason::STREAM_CLOSED);
}

#[test]
fn a_block_that_cannot_be_decoded_is_not_handed_on_whole() {
    let block = |flags: u8, payload: &[u8]| on(1, HEADERS, flags, payload);
    let rest = |payload: &[u8]| on(1, CONTINUATION, END_HEADERS, payload);
    let broken = Err(Reason::COMPRESSION_ERROR);
    assert_eq!(judged(&[block(WHOLE, &[0x82, 0x80])]), broken);
    assert_eq!(judged(&[block(END_STREAM, &[0x82, 0xff]), rest(&[])]), broken);
    assert_eq!(judged(&[block(END_STREAM, &[0x82, 0xff]), rest(&[0x80])]), broken);
    assert_eq!(
        judged(&[block(END_STREAM, &[0x82, 0x40]), rest(&[1, b'x', 0, 0xbe])]),
        Ok(())
    );
    assert_eq!(
        judged(&[block(WHOLE | 8, &[2, 0x82, 0x80, 0x80])]),
        Ok(()),
        "padding"
    );
    assert_eq!(
        judged(&[block(WHOLE | 32, &[0x80, 0, 0, 3, 9, 0x82])]),
        Ok(()),
        "a priority"
    );
    assert_eq!(
        judged(&[block(WHOLE | 8, &[9, 0x80])]),
        Ok(()),
        "h2 refuses the padding"
    );
    let bytes = [opening(), block(WHOLE, &[0x82, 0x80])].concat();
    for cut in 1..bytes.len() {
        let (mut frames, allowance, mut handed_on) = (Frames::of_a_caller(), Allowance::default(), 0);
        let told = bytes.chunks(cut).try_for_each(|piece| {
            let told = frames.take(piece, &allowance);
            handed_on += told.err().map_or(piece.len(), |(_, good)| good);
            told
        });
        assert_eq!(
            told.unwrap_err().0,
            Reason::COMPRESSION_ERROR,
            "in pieces of {cut}"
        );
        assert!(handed_on < bytes.len(), "in pieces of {cut}");
    }
}

#[test]
fn pseudo_headers_where_they_do_not_belong_are_found() {
    let head = on(1, HEADERS, END_HEADERS, &[0x82, 0x44, 1, b'/']);
    let malformed = |frames: &mut Frames, blocks: &[&[u8]]| {
        let allowance = Allowance::default();
        frames.take(&head, &allowance).unwrap();
        for block in blocks {
            frames
                .take(&on(1, HEADERS, END_HEADERS, block), &allowance)
                .unwrap();
        }
        assert!(!allowance.is_malformed(|| 3), "no other");
        allowance.is_malformed(|| 1)
    };
    let caller = |blocks: &[&[u8]]| {
        let mut frames = Frames::of_a_caller();
        frames.take(&opening(), &Allowance::default()).unwrap();
        malformed(&mut frames, blocks)
    };
    assert!(!caller(&[]));
    assert!(!caller(&[&[0, 1, b'x', 0]]));
    assert!(caller(&[&[0x82]]));
    assert!(caller(&[&[0xbe]]), "what was remembered");
    let told = Frames::of_an_endpoint().take(&head, &Allowance::default());
    assert_eq!(
        told.unwrap_err().0,
        Reason::PROTOCOL_ERROR,
        "a request's, to be remembered"
    );
    let head = on(1, HEADERS, END_HEADERS, &[0x82]);
    let (mut frames, allowance) = (Frames::of_an_endpoint(), Allowance::default());
    frames.take(&head, &allowance).unwrap();
    assert!(allowance.is_malformed(|| 1), "a request's, from an endpoint");
    let (mut frames, allowance) = (Frames::of_an_endpoint(), Allowance::default());
    let answer = on(1, HEADERS, WHOLE, &[0x88, 0, 1, b'x', 0]);
    frames.take(&answer, &allowance).unwrap();
    assert!(!allowance.is_malformed(|| 1));
    let many = (0..=MALFORMED_MAX).try_for_each(|_| frames.take(&head, &allowance));
    assert_eq!(many.unwrap_err().0, Reason::PROTOCOL_ERROR);
}

/// Fields of a length that fills the table and empties it again, some of them said again.
fn some_fields(rng: &mut fastrand::Rng) -> http::HeaderMap {
    let mut fields = http::HeaderMap::new();
    for _ in 0..rng.usize(..12) {
        let name = format!("x-{}", rng.u8(..40));
        let length = if rng.u8(..20) == 0 { 3_000 } else { rng.usize(..60) };
        let value: String = (0..length).map(|_| char::from(rng.u8(b' '..=b'~'))).collect();
        let value = if rng.bool() {
            value.trim().to_owned()
        } else {
            "again".to_owned()
        };
        fields.insert(
            http::HeaderName::try_from(name).unwrap(),
            http::HeaderValue::try_from(value).unwrap(),
        );
    }
    fields
}

#[tokio::test]
async fn what_h2_itself_writes_is_never_found_wrong() {
    const REQUESTS: usize = 500;
    let (near, far) = tokio::io::duplex(3_000);
    let (of_caller, of_endpoint) = (Rc::<Allowance>::default(), Rc::<Allowance>::default());
    let (served, asked) = (Rc::clone(&of_caller), Rc::clone(&of_endpoint));
    let local = tokio::task::LocalSet::new();
    let serve = async move {
        let mut connection = h2::server::handshake(Watched::caller(far, served)).await.unwrap();
        let mut seed = 0;
        while let Some(accepted) = connection.accept().await {
            let (request, mut respond) = accepted.unwrap();
            seed += 1;
            let mut rng = fastrand::Rng::with_seed(seed);
            tokio::task::spawn_local(async move {
                // All of it, so that nothing comes for a stream that is over.
                let mut body = request.into_body();
                assert!(body.data().await.is_none());
                assert!(body.trailers().await.unwrap().is_some());
                let mut answer = http::Response::new(());
                *answer.headers_mut() = some_fields(&mut rng);
                let mut stream = respond.send_response(answer, false).unwrap();
                stream.send_trailers(some_fields(&mut rng)).unwrap();
            });
        }
    };
    local.spawn_local(serve);
    let ask = async move {
        let mut rng = fastrand::Rng::with_seed(8);
        let (mut sender, connection) = h2::client::handshake(Watched::endpoint(near, asked))
            .await
            .unwrap();
        tokio::task::spawn_local(async move { drop(connection.await) });
        for count in 0..REQUESTS {
            let path = format!(
                "http://host-{}/{}?{}",
                count % 3,
                rng.u64(..),
                "é~%7c".repeat(rng.usize(..4))
            );
            let path: String = path.chars().filter(char::is_ascii).collect();
            let mut request = http::Request::get(path).body(()).unwrap();
            *request.headers_mut() = some_fields(&mut rng);
            sender = sender.ready().await.unwrap();
            let (answer, mut stream) = sender.send_request(request, false).unwrap();
            stream.send_trailers(some_fields(&mut rng)).unwrap();
            let mut body = answer.await.unwrap().into_body();
            assert!(body.data().await.is_none());
            assert!(body.trailers().await.unwrap().is_some());
        }
    };
    local.run_until(ask).await;
    assert_eq!((of_caller.verdict(), of_endpoint.verdict()), (None, None));
    assert!(of_caller.malformed.borrow().is_empty() && of_endpoint.malformed.borrow().is_empty());
}
