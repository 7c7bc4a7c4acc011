//! HTTP/1.1 byte by byte: what a caller may send and what must become of it, and the same for the answers of an upstream.
//!
//! The tables are [`requests`] and [`answers`]; each row names the rule that judges it. The upstream reads what leaves
//! strictly (`wire.rs`): a bare line feed, a body with two meanings, a name that is none would be seen there. Each row
//! is tried by itself and with another request behind it on the same connection, which must never be taken for a part
//! of the first, nor the other way round.

mod answers;
mod names;
mod requests;

use outrigger_tests::client::Connection;
use outrigger_tests::wait::{eventually, within};
use outrigger_tests::wire::Head;
use outrigger_tests::{Client, Sidecar, SidecarSpec, Upstream, simple};

use requests::{Becomes, Row};

/// The target that most rows ask for. Each gets one of its own in its place, so that the upstream can tell them apart.
const TARGET: &str = " /a ";

/// What stands in bodies that look like another request; it must never be asked for.
const SMUGGLED: &str = "/smuggled";

async fn pair() -> (Upstream, Sidecar) {
    let upstream = Upstream::start("a").await;
    let file = simple("reviews", &[&upstream], "").to_string();
    // One worker, so that each row meets the connections that the rows before have left.
    let sidecar = Sidecar::start(SidecarSpec::text("a", &file).with("--workers", "1")).await;
    (upstream, sidecar)
}

/// A row as it is sent: with a target of its own, and perhaps with a request behind it.
struct Sent<'a> {
    row: &'a Row,
    own: String,
    bytes: Vec<u8>,
    after: Option<String>,
}

impl<'a> Sent<'a> {
    fn new(row: &'a Row, number: usize, followed: bool) -> Self {
        let own = format!(" /{number}{} ", if followed { "f" } else { "" });
        let mut bytes = replace_first(&row.bytes, TARGET.as_bytes(), own.as_bytes());
        let after = followed.then(|| format!("/after{number}"));
        if let Some(after) = &after {
            bytes.extend_from_slice(format!("GET {after} HTTP/1.1\r\nHost: reviews\r\n\r\n").as_bytes());
        }
        Self {
            row,
            own,
            bytes,
            after,
        }
    }

    fn what(&self) -> String {
        let bytes: String = self.bytes.iter().take(300).copied().map(char::from).collect();
        format!("{} by {}", bytes.escape_debug(), self.row.rule)
    }

    fn method(&self) -> String {
        let end = self
            .bytes
            .iter()
            .position(|byte| *byte == b' ')
            .unwrap_or_default();
        String::from_utf8_lossy(&self.bytes[..end]).trim().to_owned()
    }
}

fn replace_first(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let end_of_line = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(bytes.len());
    // Leading blank lines are skipped.
    let searched = bytes.len().min(end_of_line + 80);
    match bytes[..searched]
        .windows(from.len())
        .position(|window| window == from)
    {
        Some(at) => [&bytes[..at], to, &bytes[at + from.len()..]].concat(),
        None => bytes.to_vec(),
    }
}

/// What is wrong with what became of a row; nothing if it came as it must.
async fn judge(sent: &Sent<'_>, upstream: &Upstream, client: Client) -> Option<String> {
    // What came of the rows before proves nothing of this one: several have the same first line.
    let before = upstream.received().len();
    let mut connection = client.connect().await;
    // The sidecar may close while this is still being sent, and that is an answer as well.
    let _ = connection.wire().send(&sent.bytes).await;
    match &sent.row.becomes {
        Becomes::Refused => refused(&mut connection).await,
        Becomes::Malformed => match refused(&mut connection).await {
            None => never_whole(sent, upstream).await,
            problem => problem,
        },
        Becomes::CutShort => {
            let _ = connection.wire().finish().await;
            within("an end", connection.wire().until_end()).await;
            never_whole(sent, upstream).await
        }
        Becomes::One(line, fields, body) => {
            let line = line.replacen(TARGET, &sent.own, 1);
            let reply = within(&sent.what(), connection.reply_to(&sent.method())).await;
            match reply {
                Err(error) => return Some(format!("no answer: {error}")),
                Ok(reply) if reply.status() != 200 => {
                    return Some(format!("{} {:?} {}", reply.status(), reply.head, reply.text()));
                }
                Ok(_) => {}
            }
            let is_it = |received: &&outrigger_tests::upstream::Received| received.head.first_line == line;
            let all = upstream.received();
            let Some(received) = all[before..].iter().rfind(is_it) else {
                return Some(format!(
                    "not `{line}` but {:?}",
                    all.last().map(|last| &last.head)
                ));
            };
            if received.body.bytes != *body || received.body.cut.is_some() {
                return Some(format!("the body is {:?}", received.body));
            }
            differs(&received.head, fields).or(after(sent, &mut connection).await)
        }
    }
}

/// The first field that is not as it must be: an empty value stands for none of that name.
fn differs(head: &Head, fields: &[(&str, &str)]) -> Option<String> {
    let is_wrong = |(name, value): &&(&str, &str)| {
        let values: Vec<_> = head.all(name).collect();
        values
            != if value.is_empty() {
                &[][..]
            } else {
                std::slice::from_ref(value)
            }
    };
    fields
        .iter()
        .find(is_wrong)
        .map(|field| format!("not {field:?} in {head:?}"))
}

/// What follows a row that was forwarded: an answer of its own, or the end of the connection.
async fn after(sent: &Sent<'_>, connection: &mut Connection) -> Option<String> {
    match (sent.row.last, sent.after.is_some()) {
        (true, _) => {
            let (more, _) = within("the end of the connection", connection.wire().until_end()).await;
            (!more.is_empty()).then(|| format!("then came {:?}", String::from_utf8_lossy(&more)))
        }
        (false, true) => match within("the answer to what follows", connection.reply_to("GET")).await {
            Ok(reply) if reply.status() == 200 => None,
            other => Some(format!("what follows came to {other:?}")),
        },
        (false, false) => None,
    }
}

/// A refusal is an answer of 4xx (or 501, or 505), and then the end.
async fn refused(connection: &mut Connection) -> Option<String> {
    let answer = async {
        let head = connection.wire().head().await?;
        let end = connection.wire().until_end().await;
        Ok::<_, std::io::Error>((head, end))
    };
    match tokio::time::timeout(std::time::Duration::from_secs(10), answer).await {
        Err(_) => Some("neither refused nor closed".into()),
        Ok(Err(error)) => Some(format!("closed without an answer: {error}")),
        Ok(Ok((None, _))) => Some("closed without an answer".into()),
        Ok(Ok((Some(head), (rest, _)))) => {
            let refused = matches!(head.status(), 400..=431 | 501 | 505);
            let rest = String::from_utf8_lossy(&rest);
            (!refused || rest.contains("HTTP/1.1")).then(|| format!("{head:?} {rest}"))
        }
    }
}

/// The upstream may have seen the beginning of such a request, and must have seen it break off.
async fn never_whole(sent: &Sent<'_>, upstream: &Upstream) -> Option<String> {
    let own = sent.own.trim();
    let received = upstream.received();
    let whole = received
        .iter()
        .find(|one| one.target() == own && one.body.cut.is_none());
    whole.map(|whole| format!("the upstream has it whole: {whole:?}"))
}

/// How many of a row's requests the upstream may see: at least and at most.
fn expected(sent: &Sent<'_>) -> (u64, u64) {
    match &sent.row.becomes {
        Becomes::Refused => (0, 0),
        Becomes::Malformed | Becomes::CutShort => (0, 1),
        Becomes::One(..) => {
            let after = u64::from(sent.after.is_some() && !sent.row.last);
            (1 + after, 1 + after)
        }
    }
}

async fn all_come_as_they_must(rows: Vec<Row>) {
    let (upstream, mut sidecar) = pair().await;
    let (mut problems, mut least, mut most) = (Vec::new(), 0, 0);
    let mut sent_all = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        for followed in [false, true]
            .into_iter()
            .filter(|followed| !(row.alone && *followed))
        {
            let sent = Sent::new(row, number, followed);
            if let Some(problem) = judge(&sent, &upstream, sidecar.client()).await {
                problems.push(format!("{}\n    {problem}", sent.what()));
            }
            let (at_least, at_most) = expected(&sent);
            least += at_least;
            most += at_most;
            sent_all.push(sent);
        }
    }
    // What is still on its way to the upstream has arrived when this has, and what is cut is seen cut.
    assert_eq!(sidecar.client().get("reviews", "/end").await.status(), 200);
    let seen = eventually("every request to be read or cut", async || {
        let seen = upstream.requests();
        (upstream.received().len() as u64 == seen).then_some(seen - 1)
    })
    .await;
    for sent in &sent_all {
        if let Some(problem) = never_whole(sent, &upstream)
            .await
            .filter(|_| expected(sent).0 == 0)
        {
            problems.push(format!("{}\n    {problem}", sent.what()));
        }
    }
    for received in upstream.received() {
        if received.target().contains(SMUGGLED) {
            problems.push(format!("smuggled: {received:?}"));
        }
    }
    if !(least..=most).contains(&seen) {
        problems.push(format!(
            "the upstream has seen {seen} requests instead of {least} to {most}"
        ));
    }
    if upstream.unreadable() > 0 {
        problems.push(format!(
            "{} times the upstream could not read what came",
            upstream.unreadable()
        ));
    }
    assert!(
        problems.is_empty(),
        "{} problems:\n{}",
        problems.len(),
        problems.join("\n")
    );
    assert!(sidecar.program().is_running());
}

#[test]
fn the_tables_are_as_large_as_the_documentation_says() {
    let requests = requests::all().len();
    let answers = answers::all().len();
    let text = include_str!("../../../../docs/http1.md");
    for said in [format!("{requests} requests"), format!("{answers} answers")] {
        assert!(text.contains(&said), "docs/http1.md does not say `{said}`");
    }
    assert!(requests >= 220 && answers >= 60, "{requests} and {answers}");
}

#[tokio::test]
async fn first_lines_come_as_they_must() {
    all_come_as_they_must(requests::first_lines()).await;
}

#[tokio::test]
async fn fields_come_as_they_must() {
    all_come_as_they_must(requests::fields()).await;
}

#[tokio::test]
async fn hosts_come_as_they_must() {
    all_come_as_they_must(requests::hosts()).await;
}

#[tokio::test]
async fn lengths_come_as_they_must() {
    all_come_as_they_must(requests::lengths()).await;
}

#[tokio::test]
async fn codings_come_as_they_must() {
    all_come_as_they_must(requests::codings()).await;
}

#[tokio::test]
async fn chunks_come_as_they_must() {
    all_come_as_they_must(requests::chunks()).await;
}

#[tokio::test]
async fn trailers_come_as_they_must() {
    all_come_as_they_must(requests::trailers()).await;
}

#[tokio::test]
async fn what_is_of_one_connection_comes_as_it_must() {
    all_come_as_they_must(requests::connections()).await;
}
