//! The words about what is done to traffic on purpose: copies of it sent elsewhere, faults put into it, limits on it.
//!
//! What the words mean for one request is decided by the sidecar, in `snapshot::traffic` and `request::traffic`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::{Duration, Frequency, Percent};

/// A backend that is sent copies of a route's requests. Its answers are read and dropped, and nothing that it does
/// reaches the caller. A copy bears the header `x-outrigger-mirror: 1`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// A backend of this service.
    pub backend: String,
    /// The share of the requests that are copied. Default 100%.
    #[serde(default = "whole")]
    pub percent: Percent,
}

/// Faults that are put into a route's requests on the caller's side, to see how callers bear them. Each is drawn by
/// itself; a request may be delayed and then aborted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
pub struct Fault {
    /// Requests that are kept waiting before they are sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Delay>,
    /// Requests that are answered by the sidecar instead of being sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<Abort>,
}

/// Requests that are kept waiting. The wait is part of `timeout.request`: a request whose time is over is answered
/// then, with `request-timeout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Delay {
    /// For so long. 1ms to 1h.
    #[serde(rename = "for")]
    pub time: Duration,
    /// The share of the requests that are delayed. Default 100%.
    #[serde(default = "whole")]
    pub percent: Percent,
}

/// Requests that are answered by the sidecar, with the reason `fault-injected`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Abort {
    /// The status of the answer. 400 to 599, default 503.
    #[serde(default = "Abort::status_default")]
    #[schemars(range(min = 400, max = 599))]
    pub status: u16,
    /// The `grpc-status` that a gRPC call is answered with, by number. 1 to 16. Default: what gRPC makes of `status`,
    /// such as 14, UNAVAILABLE, of 503.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub grpc_status: Option<u8>,
    /// The share of the requests that are aborted. Default 100%.
    #[serde(default = "whole")]
    pub percent: Percent,
}

impl Abort {
    const fn status_default() -> u16 {
        503
    }

    /// The `grpc-status` of a call that is aborted: the one that is said, or what gRPC's document "HTTP to gRPC Status
    /// Code Mapping" makes of the status.
    pub const fn grpc_status(&self) -> u8 {
        match (self.grpc_status, self.status) {
            (Some(said), _) => said,
            (None, 400) => 13,
            (None, 401) => 16,
            (None, 403) => 7,
            (None, 404) => 12,
            (None, 429 | 502..=504) => 14,
            (None, _) => 2,
        }
    }
}

/// How many requests are let through. One over it is answered 429 with `Retry-After` and the reason `rate-limited`.
/// **Each sidecar counts for itself**: with ten callers' sidecars, ten times as much reaches the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// How often, in the long run. 1 to 1,000,000 a unit.
    pub requests: Frequency,
    /// How many may come at once after a silence. 1 to 1,000,000. Default: what `requests` allows in a second, at
    /// least 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: Option<u32>,
    /// Whose requests are counted together. Default: all that come to the route, or to the service where the limit is
    /// the service's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per: Option<Per>,
}

impl RateLimit {
    /// How many may come at once: what is said, or what a second allows.
    pub fn burst(&self) -> u32 {
        let in_a_second = || self.requests.count.div_ceil(self.requests.per.seconds());
        self.burst.unwrap_or_else(in_a_second).max(1)
    }
}

/// Whose requests a limit counts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// All that come to the route.
    Route,
    /// Those of one caller, known by its address. The application beside a sidecar has always the same; this is for
    /// callers from other hosts, so it belongs to the limit of a service.
    Caller,
}

const fn whole() -> Percent {
    Percent(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_burst_is_what_is_said_or_what_a_second_allows() {
        for (requests, burst, expected) in [
            ("100/s", Some(7), 7),
            ("100/s", None, 100),
            ("100/m", None, 2),
            ("10/h", None, 1),
        ] {
            let limit = RateLimit {
                requests: requests.parse().unwrap(),
                burst,
                per: None,
            };
            assert_eq!(limit.burst(), expected, "{requests}");
        }
    }

    #[test]
    fn an_abort_says_in_grpc_what_its_status_says_in_http() {
        for (status, said, expected) in [
            (503, None, 14),
            (429, None, 14),
            (500, None, 2),
            (404, None, 12),
            (503, Some(8), 8),
        ] {
            let abort = Abort {
                status,
                grpc_status: said,
                percent: whole(),
            };
            assert_eq!(abort.grpc_status(), expected, "{status}, {said:?}");
        }
    }
}
