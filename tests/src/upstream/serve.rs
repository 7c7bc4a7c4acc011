//! One connection of an upstream: reads requests, does what it was told.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::{Answer, Behaviour, Received, Reuse, Shared};
use crate::wire::{Body, Framing, Head, Wire};

/// What is kept of a request's body.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What is to become of a connection after a request.
enum Then {
    Next,
    Close,
}

/// Takes connections for as long as the listener lives.
pub(super) async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let number = shared.connections.fetch_add(1, Ordering::SeqCst) + 1;
        shared.open.fetch_add(1, Ordering::SeqCst);
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            // How a connection ends is what the tests are about; the other side judges it.
            let ended = connection(stream, &shared, number).await;
            if ended.is_err_and(|error| error.kind() == io::ErrorKind::InvalidData) {
                shared.unreadable.fetch_add(1, Ordering::SeqCst);
            }
            shared.open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

async fn connection(stream: TcpStream, shared: &Shared, number: u64) -> io::Result<()> {
    let mut wire = Wire::new(stream);
    let mut close_idle = shared.close_idle.subscribe();
    let mut served = 0;
    loop {
        let reuse = shared.state().reuse;
        match reuse {
            Reuse::CloseAfterAnswer if served > 0 => return Ok(()),
            // Closing a socket whose bytes were not read makes the kernel reset it.
            Reuse::ResetWhenUsedAgain if served > 0 => {
                wire.stream().peek(&mut [0]).await?;
                return Ok(());
            }
            _ => {}
        }
        let Some(head) = next_head(&mut wire, &mut close_idle).await? else {
            return Ok(());
        };
        shared.requests.fetch_add(1, Ordering::SeqCst);
        let last = head.connection_says("close") || head.word(2) == "HTTP/1.0";
        match request(&mut wire, shared, head, number).await? {
            Then::Next if !last => served += 1,
            Then::Next | Then::Close => return Ok(()),
        }
    }
}

async fn next_head(wire: &mut Wire, close_idle: &mut watch::Receiver<u64>) -> io::Result<Option<Head>> {
    let head = tokio::select! {
        head = wire.head() => head,
        _ = close_idle.changed() => Ok(None),
    };
    // A wish from before this request is past; one that comes while it is answered holds right after, because its
    // client already sees the connection idle when this loop does not yet.
    close_idle.mark_unchanged();
    head
}

async fn request(wire: &mut Wire, shared: &Shared, head: Head, number: u64) -> io::Result<Then> {
    let behaviour = {
        let mut state = shared.state();
        state.next.pop_front().unwrap_or_else(|| state.behaviour.clone())
    };
    let method = head.word(0).to_owned();
    let framing = head.request_framing()?;
    let at_head = |body| Received {
        head: head.clone(),
        body,
        connection: number,
    };
    match &behaviour {
        Behaviour::CloseAfterHead => {
            shared.remember(at_head(Body::default()));
            return Ok(Then::Close);
        }
        Behaviour::Reset => {
            shared.remember(at_head(Body::default()));
            socket2::SockRef::from(wire.stream()).set_linger(Some(Duration::ZERO))?;
            return Ok(Then::Close);
        }
        Behaviour::AnswerEarly(answer) => {
            send(wire, shared, &method, answer).await?;
        }
        Behaviour::AnswerUnread(answer) => {
            send(wire, shared, &method, answer).await?;
            return Ok(Then::Close);
        }
        _ if head.header("expect").is_some() => wire.send(b"HTTP/1.1 100 Continue\r\n\r\n").await?,
        _ => {}
    }
    let body = wire.body(framing, BODY_BYTES_MAX).await;
    let cut = body.cut.is_some();
    let received = at_head(body);
    shared.remember(received.clone());
    if cut {
        shared.given_up.fetch_add(1, Ordering::SeqCst);
        return Ok(Then::Close);
    }
    respond(wire, shared, &behaviour, &method, &received).await
}

async fn respond(
    wire: &mut Wire,
    shared: &Shared,
    behaviour: &Behaviour,
    method: &str,
    received: &Received,
) -> io::Result<Then> {
    match behaviour {
        Behaviour::Answer(answer) => send(wire, shared, method, answer).await,
        Behaviour::Echo => {
            let answer = Answer::ok().body(received.body.bytes.clone());
            send(wire, shared, method, &answer).await
        }
        Behaviour::Call(answer) => send(wire, shared, method, &answer(received)).await,
        Behaviour::AnswerEarly(_) => Ok(Then::Next),
        Behaviour::AnswerUnread(_)
        | Behaviour::CloseBeforeAnswer
        | Behaviour::CloseAfterHead
        | Behaviour::Reset => Ok(Then::Close),
        Behaviour::HalfBody(answer) => {
            wire.send(&half(shared, method, answer)).await?;
            Ok(Then::Close)
        }
        Behaviour::StallBody(answer) => {
            wire.send(&half(shared, method, answer)).await?;
            given_up(wire, shared).await
        }
        Behaviour::Drip { pieces, pause } => drip(wire, shared, *pieces, *pause).await,
        Behaviour::Raw(bytes) => {
            wire.send(bytes).await?;
            Ok(Then::Close)
        }
        Behaviour::RawKept(bytes) => {
            wire.send(bytes).await?;
            Ok(Then::Next)
        }
        Behaviour::Hang => given_up(wire, shared).await,
    }
}

/// Waits until the other side goes.
async fn given_up(wire: &Wire, shared: &Shared) -> io::Result<Then> {
    wire.gone().await;
    shared.given_up.fetch_add(1, Ordering::SeqCst);
    Ok(Then::Close)
}

async fn send(wire: &mut Wire, shared: &Shared, method: &str, answer: &Answer) -> io::Result<Then> {
    if !answer.delay.is_zero() {
        tokio::select! {
            () = tokio::time::sleep(answer.delay) => {}
            () = wire.gone() => {
                shared.given_up.fetch_add(1, Ordering::SeqCst);
                return Ok(Then::Close);
            }
        }
    }
    wire.send(&bytes_of(shared, method, answer)).await?;
    let says_close = |(name, value): &(String, String)| {
        name.eq_ignore_ascii_case("connection") && value.to_ascii_lowercase().contains("close")
    };
    match answer.headers.iter().any(says_close) {
        true => Ok(Then::Close),
        false => Ok(Then::Next),
    }
}

async fn drip(wire: &mut Wire, shared: &Shared, pieces: usize, pause: Duration) -> io::Result<Then> {
    let head = head_of(shared, &Answer::ok().chunked(), Framing::Chunked);
    wire.send(&head).await?;
    for piece in 0..pieces {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = wire.gone() => {
                shared.given_up.fetch_add(1, Ordering::SeqCst);
                return Ok(Then::Close);
            }
        }
        let text = format!("piece {piece}\n");
        let chunk = format!("{:x}\r\n{text}\r\n", text.len());
        wire.send(chunk.as_bytes()).await?;
    }
    wire.send(b"0\r\n\r\n").await?;
    Ok(Then::Next)
}

/// The head of an answer whose whole body is announced, and half of that body.
fn half(shared: &Shared, method: &str, answer: &Answer) -> Vec<u8> {
    let mut bytes = bytes_of(shared, method, answer);
    bytes.truncate(bytes.len() - answer.body.len().div_ceil(2));
    bytes
}

fn bytes_of(shared: &Shared, method: &str, answer: &Answer) -> Vec<u8> {
    let framing = match answer {
        _ if answer.status == 204 => Framing::Empty,
        Answer { chunked: true, .. } => Framing::Chunked,
        Answer { body, .. } => Framing::Length(body.len()),
    };
    let mut bytes = head_of(shared, answer, framing);
    if method == "HEAD" || answer.status == 304 {
        return bytes;
    }
    match framing {
        Framing::Chunked => {
            for piece in answer.body.chunks(1000) {
                bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                bytes.extend_from_slice(piece);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\n\r\n");
        }
        Framing::Length(_) => bytes.extend_from_slice(&answer.body),
        Framing::Empty | Framing::UntilClose => {}
    }
    bytes
}

fn head_of(shared: &Shared, answer: &Answer, framing: Framing) -> Vec<u8> {
    let mut head = format!(
        "HTTP/1.1 {} Status\r\nx-upstream: {}\r\n",
        answer.status, shared.name
    );
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    match framing {
        Framing::Length(length) => head.push_str(&format!("content-length: {length}\r\n")),
        Framing::Chunked => head.push_str("transfer-encoding: chunked\r\n"),
        Framing::Empty | Framing::UntilClose => {}
    }
    head.push_str("\r\n");
    head.into_bytes()
}
