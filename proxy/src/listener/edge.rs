//! The first bytes of a caller from outside of the mesh: TLS, where the port speaks it, and an answer to who speaks
//! plaintext there.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::listener::opening;
use crate::request::Worker;
use crate::snapshot::access::Source;
use crate::stream::Stream;
use crate::tls::Alpn;
use crate::tls::gateway::Server;

/// Who is turned away has this long to read why.
const WORD_MAX: Duration = Duration::from_secs(1);

/// What a request in plaintext is answered with. It has been no request of ours: nothing of it is read.
const SPEAKS_TLS: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nx-outrigger-reason: bad-request\r\ncontent-type: text/plain\r\n\
    content-length: 38\r\nconnection: close\r\n\r\nThis port speaks TLS: ask it by https\n";

/// Shakes hands with a caller.
///
/// # Errors
/// When it does not come to that; then it has been told.
pub(super) async fn secure(
    worker: &Rc<Worker>,
    server: &Server,
    (stream, source): (TcpStream, SocketAddr),
) -> io::Result<(Stream, Source, Alpn)> {
    if !opening::opens_tls(&stream).await? {
        let mut stream = Stream::from(stream).of_caller(Bytes::new());
        let told = async {
            stream.write_all(SPEAKS_TLS).await?;
            stream.shutdown().await
        };
        let _ = tokio::time::timeout(WORD_MAX, told).await;
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    match Box::pin(server.accept(&worker.identities, stream)).await {
        Ok((stream, alpn)) => Ok((stream.into(), Source::of_edge(source, true), alpn)),
        Err(stream) => {
            if let Some(stream) = stream {
                let mut stream = Stream::from(stream).of_caller(Bytes::new());
                let _ = tokio::time::timeout(WORD_MAX, stream.shutdown()).await;
            }
            Err(io::ErrorKind::ConnectionAborted.into())
        }
    }
}
