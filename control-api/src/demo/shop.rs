//! The shop: four small HTTP services that call one another as any service would, by name, through the sidecar beside
//! them.
//!
//! **Does not** know the mesh: an application has an address to listen on, and one to which it sends what it asks of
//! others.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::caller::Caller;
use super::places::Instance;

/// One request in so many fails at reviews v2: often enough that retries are seen in every second of the view, and
/// seldom enough that three attempts hide nearly all of it.
const V2_FAILS_ONE_IN: u32 = 12;

/// Connections that one application takes at once; its only caller should be its sidecar.
const CONNECTIONS_MAX: usize = 512;

/// How long accepting rests after the system refused a socket, which is mostly for want of file descriptors.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// One application.
#[derive(Debug)]
struct App {
    instance: Instance,
    /// The outbound side of its sidecar.
    mesh: Caller,
}

/// The applications that run.
#[derive(Debug, Default)]
pub(super) struct Shop {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Shop {
    /// Opens an application on a bound socket; what it asks of others goes to `outbound`.
    pub(super) fn open(&self, instance: Instance, socket: TcpListener, outbound: SocketAddr) {
        let mesh = Caller::new(outbound);
        let app = Arc::new(App { instance, mesh });
        let accepting = accept(app, socket, self.stop.clone(), self.tasks.clone());
        self.tasks.spawn(accepting);
    }

    /// Finishes what was begun and closes.
    pub(super) async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn accept(app: Arc<App>, socket: TcpListener, stop: CancellationToken, tasks: TaskTracker) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = async {
            let place = Arc::clone(&room).acquire_owned().await;
            (place, socket.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = stop.cancelled() => return,
            accepted = accepted => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_REST).await;
            continue;
        };
        let (app, stop) = (Arc::clone(&app), stop.clone());
        tasks.spawn(async move {
            serve(app, stream, stop).await;
            drop(place);
        });
    }
}

async fn serve(app: Arc<App>, stream: TcpStream, stop: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let app = Arc::clone(&app);
        async move { Ok::<_, Infallible>(app.answer(&request).await) }
    });
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the shop ended early");
    }
}

impl App {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        tracing::trace!(app = self.instance.name(), path = request.uri().path(), "asked");
        match self.instance {
            Instance::Frontend => self.page().await,
            Instance::ReviewsV1 => {
                work(1..4).await;
                said(
                    StatusCode::OK,
                    r#"{"version":"v1","text":"An unsurprising book."}"#,
                )
            }
            Instance::ReviewsV2 => self.stars().await,
            Instance::Ratings => {
                work(1..3).await;
                said(StatusCode::OK, r#"{"stars":5}"#)
            }
        }
    }

    /// The page of a book, with its reviews.
    async fn page(&self) -> Response<Full<Bytes>> {
        match self.mesh.get("reviews", "/reviews/1").await {
            Ok((StatusCode::OK, reviews)) => {
                let reviews = String::from_utf8_lossy(reviews.trim_ascii_end());
                said(
                    StatusCode::OK,
                    format!(r#"{{"book":"The Canoe","reviews":{reviews}}}"#),
                )
            }
            Ok((status, _)) => failed(&format!("reviews answered {status}")),
            Err(error) => failed(&format!("reviews did not answer: {error}")),
        }
    }

    /// Reviews v2: slower, with the stars of the ratings, and failing now and then.
    async fn stars(&self) -> Response<Full<Bytes>> {
        work(4..10).await;
        if fastrand::u32(..V2_FAILS_ONE_IN) == 0 {
            let sentence = r#"{"version":"v2","error":"out of stars for a moment"}"#;
            return said(StatusCode::SERVICE_UNAVAILABLE, sentence);
        }
        match self.mesh.get("ratings", "/ratings/1").await {
            Ok((StatusCode::OK, ratings)) => {
                let ratings = String::from_utf8_lossy(ratings.trim_ascii_end());
                said(
                    StatusCode::OK,
                    format!(r#"{{"version":"v2","text":"Keeps steady.","ratings":{ratings}}}"#),
                )
            }
            Ok((status, _)) => failed(&format!("ratings answered {status}")),
            Err(error) => failed(&format!("ratings did not answer: {error}")),
        }
    }
}

/// Takes some milliseconds, as a service that looks something up does.
async fn work(millis: std::ops::Range<u64>) {
    tokio::time::sleep(Duration::from_millis(fastrand::u64(millis))).await;
}

/// A failure that is not worth another attempt: whoever is below has been tried again already.
fn failed(sentence: &str) -> Response<Full<Bytes>> {
    let body = serde_json::json!({ "error": sentence }).to_string();
    said(StatusCode::INTERNAL_SERVER_ERROR, body)
}

fn said(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut bytes: Bytes = body.into();
    // For people who call with curl.
    bytes = [&bytes, b"\n".as_slice()].concat().into();
    let mut response = Response::new(Full::new(bytes));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
