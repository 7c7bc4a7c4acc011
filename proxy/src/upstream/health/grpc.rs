//! The question of gRPC's health protocol: one call of `grpc.health.v1.Health/Check` on a connection of its own.

use bytes::{BufMut, Bytes, BytesMut};
use http::uri::Scheme;
use http::{HeaderMap, Request, Version, header};
use prost::Message;

use crate::stream::Stream;

use crate::error::Reason;

/// What is asked.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// What is answered.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(enumeration = "ServingStatus", tag = "1")]
    status: i32,
}

/// The states of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
enum ServingStatus {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

/// An answer has a handful of bytes; more than this is none.
const ANSWER_MAX: usize = 1024;

/// Before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Asks after a service; with an empty name, after the server as a whole.
pub(super) async fn check(
    stream: Stream,
    (scheme, host): (Scheme, &str),
    service: &str,
) -> Result<(), String> {
    let broken = |error: h2::Error| format!("grpc.health.v1: {error}");
    let (sender, connection) = h2::client::handshake(stream).await.map_err(broken)?;
    let exchange = async {
        let mut sender = sender.ready().await.map_err(broken)?;
        let request = Request::post(format!("{scheme}://{host}/grpc.health.v1.Health/Check"))
            .version(Version::HTTP_2)
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .body(())
            .map_err(|error| format!("grpc.health.v1: {error}"))?;
        let (answer, mut body) = sender.send_request(request, false).map_err(broken)?;
        body.send_data(message(service), true).map_err(broken)?;
        let (head, mut body) = answer.await.map_err(broken)?.into_parts();
        // A call that fails at once says so in its head.
        if Reason::keeps_a_limit(&head.headers) {
            // The sidecar lets no more calls through, of which this is one; nothing is said against its application.
            return Ok(());
        }
        grpc_status(&head.headers)?;
        let mut answer = BytesMut::new();
        while let Some(data) = body.data().await {
            let data = data.map_err(broken)?;
            if answer.len() + data.len() > ANSWER_MAX {
                return Err("grpc.health.v1: the answer is too long".to_owned());
            }
            // What cannot be released was never held, which is no reason to fail.
            let _ = body.flow_control().release_capacity(data.len());
            answer.extend_from_slice(&data);
        }
        if let Some(trailers) = body.trailers().await.map_err(broken)? {
            grpc_status(&trailers)?;
        }
        serving(&answer)
    };
    tokio::select! {
        biased;
        exchanged = exchange => exchanged,
        ended = connection => Err(match ended {
            Ok(()) => "grpc.health.v1: the connection was closed".to_owned(),
            Err(error) => broken(error),
        }),
    }
}

fn message(service: &str) -> Bytes {
    let message = HealthCheckRequest {
        service: service.to_owned(),
    }
    .encode_to_vec();
    let mut framed = BytesMut::with_capacity(PREFIX + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.extend_from_slice(&message);
    framed.freeze()
}

fn grpc_status(headers: &HeaderMap) -> Result<(), String> {
    match headers.get("grpc-status") {
        Some(status) if status != "0" => {
            let words = headers.get("grpc-message").and_then(|words| words.to_str().ok());
            Err(format!(
                "grpc.health.v1: grpc-status {} {}",
                status.to_str().unwrap_or("?"),
                words.unwrap_or_default()
            ))
        }
        _ => Ok(()),
    }
}

fn serving(answer: &[u8]) -> Result<(), String> {
    let message = answer.get(PREFIX..).unwrap_or_default();
    let response =
        HealthCheckResponse::decode(message).map_err(|error| format!("grpc.health.v1: {error}"))?;
    match response.status() {
        ServingStatus::Serving => Ok(()),
        other => Err(format!("grpc.health.v1: {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_serving_is_well() {
        let answer = |status: &[u8]| [&[0, 0, 0, 0, status.len() as u8], status].concat();
        assert_eq!(serving(&answer(&[8, 1])), Ok(()));
        for (bytes, what) in [
            (&[8, 2][..], "NotServing"),
            (&[][..], "Unknown"),
            (&[8, 3][..], "ServiceUnknown"),
        ] {
            assert!(serving(&answer(bytes)).unwrap_err().contains(what), "{what}");
        }
        assert!(serving(&answer(&[0xFF])).is_err());
        assert_eq!(message("a"), Bytes::from_static(&[0, 0, 0, 0, 3, 10, 1, b'a']));
    }
}
