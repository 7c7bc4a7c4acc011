//! What a policy calls the end of an attempt. Pure: it names, and does not decide.

use outrigger_config::mesh::RetryPolicy;
use outrigger_config::service::RetryOn;

use super::peek::{self, Ended};
use crate::error::{Failure, Reached, Reason};
use crate::request::attempt::Answer;

/// How an attempt ended, as far as a retry is concerned.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    Answered(u16),
    /// The sidecar of the endpoint answered that the request did not reach its application.
    NotDelivered,
    Failed(Reason),
}

/// The same, and what it is to gRPC where gRPC is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub(super) event: Event,
    pub(super) grpc_status: Option<u16>,
}

impl End {
    /// How an attempt ended. `call`: its end is looked at as that of a gRPC call.
    pub(super) fn of(outcome: &Result<Box<Answer>, Failure>, call: bool) -> Self {
        let event = Event::of(outcome);
        let grpc_status = call.then(|| match outcome {
            Ok(answer) => match answer.head.extensions.get::<Ended>() {
                Some(ended) => Some(ended.status),
                None => event.grpc_status(),
            },
            Err(_) => event.grpc_status(),
        });
        Self {
            event,
            grpc_status: grpc_status.flatten(),
        }
    }

    /// Whether no policy could call it a failure, which is how nearly every attempt ends.
    pub(super) fn is_fine(self) -> bool {
        matches!(self.event, Event::Answered(..400)) && self.grpc_status.unwrap_or_default() == 0
    }

    /// Whether a policy names it.
    pub(super) fn is_named(self, policy: &RetryPolicy) -> bool {
        policy.on.iter().any(|on| self.event.falls_under(*on, policy)) || self.is_named_for_grpc(policy)
    }

    /// Whether a policy names it by its status in gRPC. As in gRPC's own retry policy (gRFC A6) that says that such
    /// calls may be made twice, which their method, always POST, does not.
    pub(super) fn is_named_for_grpc(self, policy: &RetryPolicy) -> bool {
        self.grpc_status.is_some() && policy.on.iter().any(|on| on.grpc_status() == self.grpc_status)
    }
}

impl Event {
    fn of(outcome: &Result<Box<Answer>, Failure>) -> Self {
        match outcome {
            Ok(answer) => match answer.said {
                Some(reason) if reason.reached() == Reached::No && reason.status().is_server_error() => {
                    Self::NotDelivered
                }
                _ => Self::Answered(answer.head.status.as_u16()),
            },
            Err(failure) => Self::Failed(failure.reason),
        }
    }

    fn falls_under(self, on: RetryOn, policy: &RetryPolicy) -> bool {
        match (on, self) {
            (RetryOn::ServerError, Self::Answered(500..) | Self::NotDelivered)
            | (RetryOn::GatewayError, Self::NotDelivered)
            | (RetryOn::ClientError, Self::Answered(409)) => true,
            (RetryOn::ServerError, Self::Failed(_)) => self.condition().is_some(),
            (RetryOn::StatusCodes, Self::Answered(status)) => policy.status.contains(&status),
            _ => self.condition() == Some(on),
        }
    }

    /// The narrowest condition that it falls under by itself.
    fn condition(self) -> Option<RetryOn> {
        match self {
            Self::Answered(502..=504) => Some(RetryOn::GatewayError),
            Self::Answered(_) => None,
            Self::NotDelivered => Some(RetryOn::ConnectFailure),
            Self::Failed(reason) => match reason {
                Reason::ConnectFailed | Reason::ConnectTimeout | Reason::Overloaded => {
                    Some(RetryOn::ConnectFailure)
                }
                Reason::RefusedStream => Some(RetryOn::RefusedStream),
                Reason::UpstreamReset | Reason::UpstreamProtocol => Some(RetryOn::Reset),
                Reason::AttemptTimeout => Some(RetryOn::GatewayError),
                // Another instance may be in order.
                Reason::IdentityRefused
                | Reason::TlsHandshake
                | Reason::PeerUntrusted
                | Reason::PeerExpired
                | Reason::PeerNotYetValid
                | Reason::PeerWrongIdentity
                | Reason::PeerNoCertificate
                | Reason::PeerRevoked => Some(RetryOn::ConnectFailure),
                Reason::BadRequest
                | Reason::TlsRequired
                | Reason::Forbidden
                // No instance would be spoken to.
                | Reason::IdentityMissing
                | Reason::IdentityExpired
                | Reason::NotReady
                | Reason::NoService
                | Reason::NoRoute
                | Reason::RateLimited
                | Reason::FaultInjected
                | Reason::NoEndpoint
                | Reason::Loop
                | Reason::RequestTimeout
                | Reason::IdleTimeout
                // More of the same is what the endpoint asked not to be sent.
                | Reason::EnhanceYourCalm
                | Reason::Outrun
                | Reason::Draining
                | Reason::ClientGone
                | Reason::Internal => None,
            },
        }
    }

    /// What gRPC makes of an end that does not speak for itself ("HTTP to gRPC Status Code Mapping").
    fn grpc_status(self) -> Option<u16> {
        match self {
            Self::Answered(200) => None,
            Self::Answered(status) => Some(peek::grpc_status_of_http(status)),
            Self::NotDelivered => Some(peek::UNAVAILABLE),
            Self::Failed(reason) => self.condition().map(|_| u16::from(reason.grpc_status())),
        }
    }

    pub(super) fn reached(self) -> Reached {
        match self {
            Self::Answered(_) => Reached::Maybe,
            Self::NotDelivered => Reached::No,
            Self::Failed(reason) => reason.reached(),
        }
    }
}
