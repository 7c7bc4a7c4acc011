//! The body of a request on its way to an endpoint, sent again if need be.
//!
//! A body that may have to be sent again is copied while it streams, up to a limit, and never waited for: the first
//! attempt sees every byte as soon as it arrives. Past the limit, or when the caller broke off, it can only be sent
//! once. Whether it *is* sent again is decided by `request::retry`.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use crate::arriving::{Arriving, Broken};
use crate::interim::Hold;

/// The most that is kept of a body in order to send it again: covers nearly all unary gRPC and form posts, and is
/// Linkerd's limit. Frames are shared with the receive buffer, so keeping them copies nothing.
pub(crate) const REPLAY_MAX: usize = 64 * 1024;

/// The most frames that are kept: each costs some tens of bytes beside its data, and a body of single-byte chunks
/// would cost many times its size. Honest bodies of 64 KB come in a few dozen.
const FRAMES_MAX: usize = 256;

/// How long an endpoint's 100 (Continue) is waited for. One that knows of it says so when it has read the head; one that
/// does not must not be waited for long, since the time of the attempt runs. curl and Go wait for a second, and would
/// for this hop.
const CONTINUE_PATIENCE: Duration = Duration::from_millis(250);

/// The body of a request on its way to an endpoint.
#[derive(Debug)]
pub(crate) enum OutgoingBody {
    /// There is none.
    Empty,
    /// It can be sent once. In a box, since most requests have no body and all of them are moved about.
    Once(Box<Once>),
    /// It is copied while it is sent for the first time.
    Replayed(Replay),
    /// It waits until the endpoint asks for it.
    Held(Box<Held>),
}

/// A body that is read as it is sent.
#[derive(Debug)]
pub(crate) struct Once {
    incoming: Arriving,
    upload: Upload,
}

/// A body that its caller sends when it is told to. To ask for it is to tell: HTTP/1.1's connection says 100 when its
/// body is first read.
#[derive(Debug)]
pub(crate) struct Held {
    body: OutgoingBody,
    hold: Rc<Hold>,
    /// Until when the endpoint's word is waited for, once it has the head.
    patience: Option<Pin<Box<Sleep>>>,
}

/// How far a body has come, for whoever watches that it does not fall silent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Upload(Rc<Cell<Stage>>);

/// A stage of an upload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Nothing has come since it was last asked.
    #[default]
    Quiet,
    /// Something has come since it was last asked.
    Moved,
    /// All of it has come.
    Ended,
}

impl Upload {
    /// Whether it has moved since this was last asked, or has nothing left to move.
    pub(crate) fn moves(&self) -> bool {
        let stage = self.0.get();
        if stage == Stage::Moved {
            self.0.set(Stage::Quiet);
        }
        stage != Stage::Quiet
    }

    /// Whether all of it has come.
    pub(crate) fn has_ended(&self) -> bool {
        self.0.get() == Stage::Ended
    }

    fn saw(&self, frame: Option<&Result<Frame<Bytes>, Broken>>, ended: bool) {
        let over = ended || !matches!(frame, Some(Ok(_)));
        self.0.set(if over { Stage::Ended } else { Stage::Moved });
    }
}

/// A handle on a body that may be sent again: the place up to which this attempt has sent it.
#[derive(Debug)]
pub(crate) struct Replay {
    shared: Rc<RefCell<Shared>>,
    sent_frames: usize,
}

#[derive(Debug)]
struct Shared {
    incoming: Arriving,
    upload: Upload,
    frames: Vec<Bytes>,
    trailers: Option<http::HeaderMap>,
    bytes: usize,
    /// Whether every byte that was read so far is still kept.
    whole: bool,
    /// Whether the caller broke off, so that no attempt can be complete.
    broken: bool,
    ended: bool,
    size: SizeHint,
}

impl OutgoingBody {
    /// A body that arrives.
    pub(crate) fn new(incoming: Arriving) -> Self {
        if incoming.is_end_stream() {
            return Self::Empty;
        }
        let upload = Upload::default();
        Self::Once(Box::new(Once { incoming, upload }))
    }

    /// The same, of which nothing has been read yet, to be kept for another attempt.
    pub(crate) fn kept(self) -> Self {
        let Self::Once(once) = self else { return self };
        let Once { incoming, upload } = *once;
        let size = incoming.size_hint();
        let shared = Shared {
            incoming,
            upload,
            frames: Vec::new(),
            trailers: None,
            bytes: 0,
            whole: true,
            broken: false,
            ended: false,
            size,
        };
        Self::Replayed(Replay {
            shared: Rc::new(RefCell::new(shared)),
            sent_frames: 0,
        })
    }

    /// The same, held back.
    pub(crate) fn held(self, hold: Rc<Hold>) -> Self {
        Self::Held(Box::new(Held {
            body: self,
            hold,
            patience: None,
        }))
    }

    /// How far it has come; `None` if there is nothing to come.
    pub(crate) fn upload(&self) -> Option<Upload> {
        match self {
            Self::Empty => None,
            Self::Once(once) => Some(once.upload.clone()),
            Self::Replayed(replay) => Some(replay.shared.borrow().upload.clone()),
            Self::Held(held) => held.body.upload(),
        }
    }

    /// Whether all of it has come from the caller.
    pub(crate) fn has_all_come(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Once(once) => once.incoming.is_end_stream(),
            Self::Replayed(replay) => {
                let shared = replay.shared.borrow();
                shared.ended || shared.incoming.is_end_stream()
            }
            Self::Held(held) => held.body.has_all_come(),
        }
    }

    /// Whether it could be sent again as it stands.
    pub(crate) fn may_go_again(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Once(_) => false,
            Self::Replayed(replay) => replay.shared.borrow().is_kept(),
            Self::Held(held) => held.body.may_go_again(),
        }
    }

    /// A second handle, to be kept while this one is sent; `None` if it cannot be sent again.
    pub(crate) fn again(&self) -> Option<Self> {
        match self {
            Self::Empty => Some(Self::Empty),
            Self::Once(_) => None,
            Self::Replayed(replay) => replay.shared.borrow().is_kept().then(|| {
                Self::Replayed(Replay {
                    shared: Rc::clone(&replay.shared),
                    sent_frames: 0,
                })
            }),
            Self::Held(held) => Some(held.body.again()?.held(Rc::clone(&held.hold))),
        }
    }
}

impl Held {
    /// Ready when it is asked for, or the endpoint has had its time to.
    fn poll_wanted(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.hold.poll_open(cx).is_ready() {
            return Poll::Ready(());
        }
        let patience = self
            .patience
            .get_or_insert_with(|| Box::pin(sleep(CONTINUE_PATIENCE)));
        std::task::ready!(patience.as_mut().poll(cx));
        self.hold.open();
        Poll::Ready(())
    }
}

impl Shared {
    /// Whether all that has been read is there to be read again.
    fn is_kept(&self) -> bool {
        self.whole && !self.broken
    }
}

impl Replay {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let mut shared = self.shared.borrow_mut();
        let shared = &mut *shared;
        if let Some(frame) = shared.frames.get(self.sent_frames) {
            self.sent_frames += 1;
            return Poll::Ready(Some(Ok(Frame::data(frame.clone()))));
        }
        if shared.ended {
            return Poll::Ready(
                shared
                    .trailers
                    .clone()
                    .map(|trailers| Ok(Frame::trailers(trailers))),
            );
        }
        let frame = std::task::ready!(Pin::new(&mut shared.incoming).poll_frame(cx));
        shared.upload.saw(frame.as_ref(), shared.incoming.is_end_stream());
        match &frame {
            None => shared.ended = true,
            Some(Err(_)) => shared.broken = true,
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    shared.bytes += data.len();
                    // A body that will be too large is not begun to be kept; it can still be sent again as long
                    // as none of it has been read.
                    let fits = shared
                        .bytes
                        .max(usize::try_from(shared.size.lower()).unwrap_or(usize::MAX))
                        <= REPLAY_MAX;
                    if shared.whole && fits && shared.frames.len() < FRAMES_MAX {
                        shared.frames.push(data.clone());
                        self.sent_frames += 1;
                    } else {
                        shared.whole = false;
                        shared.frames = Vec::new();
                        self.sent_frames = 0;
                    }
                } else {
                    shared.trailers = frame.trailers_ref().cloned();
                    shared.ended = true;
                }
            }
        }
        Poll::Ready(frame)
    }
}

impl Body for OutgoingBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Once(once) => {
                let Once { incoming, upload } = &mut **once;
                let frame = std::task::ready!(Pin::new(&mut *incoming).poll_frame(cx));
                upload.saw(frame.as_ref(), incoming.is_end_stream());
                Poll::Ready(frame)
            }
            Self::Replayed(replay) => replay.poll(cx),
            Self::Held(held) => {
                std::task::ready!(held.poll_wanted(cx));
                Pin::new(&mut held.body).poll_frame(cx)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Once(once) => once.incoming.is_end_stream(),
            Self::Replayed(replay) => {
                let shared = replay.shared.borrow();
                let ended = shared.ended && shared.trailers.is_none() || shared.incoming.is_end_stream();
                ended && (!shared.whole || replay.sent_frames == shared.frames.len())
            }
            Self::Held(held) => held.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Once(once) => once.incoming.size_hint(),
            // hyper asks once, before the first frame, so the size of the whole is the right answer.
            Self::Replayed(replay) => replay.shared.borrow().size,
            Self::Held(held) => held.body.size_hint(),
        }
    }
}
