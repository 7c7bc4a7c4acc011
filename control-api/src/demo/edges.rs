//! Who answers whom: the sidecars' counters, made into one row for each caller and backend.
//!
//! Pure: samples and seconds in, rows out. Numbers are taken as Prometheus takes them, by how much each series grew
//! from one scrape to the next, so that a series that goes with a push and comes back is no negative rate.

use std::collections::{BTreeMap, HashMap, VecDeque};

use serde::Serialize;

use super::exposition::Sample;

/// How many scrapes the live numbers are taken over: enough requests for a p99, few enough that a push shows at once.
const RECENT_SCRAPES: usize = 5;

/// How many scrapes of the rate are kept for the line that draws it: one minute.
const HISTORY_SCRAPES: usize = 60;

/// How many rows are kept: far more than the shop has, so that only pushes of ever new names meet it.
const EDGES_MAX: usize = 256;

/// The caller of the shop's entrance, beside which no sidecar stands.
pub(super) const SHOPPERS: &str = "shoppers";

/// What the sidecar calls the application beside it.
const APP: &str = "@app";

/// Who calls whom.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct EdgeName {
    /// The entrance comes first.
    inner: bool,
    pub(super) caller: String,
    pub(super) service: String,
    /// Empty for the entrance, which has no versions to choose from.
    pub(super) backend: String,
}

/// How much was counted between two moments.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tally {
    requests: f64,
    requests_good: f64,
    attempts: f64,
    attempts_good: f64,
    /// Requests that took at most so many seconds, by that bound, the largest last.
    within: Vec<(f64, f64)>,
}

/// All that is known of one edge.
#[derive(Debug, Default)]
struct Edge {
    whole: Tally,
    recent: VecDeque<(f64, Tally)>,
    rates: VecDeque<f64>,
}

/// One row, of the last seconds or of the whole time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Row {
    /// Who calls.
    pub(crate) caller: String,
    /// Whom.
    pub(crate) service: String,
    /// Which version of it.
    pub(crate) backend: String,
    /// How many requests.
    pub(crate) requests: u64,
    /// How many a second.
    pub(crate) rate: f64,
    /// This backend's part of what the caller sends to the service, 0 to 1.
    pub(crate) share: Option<f64>,
    /// The part of the requests that ended well, retries included, 0 to 1.
    pub(crate) success: Option<f64>,
    /// The part of the attempts that ended well, each retry by itself, 0 to 1.
    pub(crate) attempt_success: Option<f64>,
    /// How many attempts were made beyond the first of each request.
    pub(crate) retries: u64,
    /// The duration that half of the requests did not exceed, in milliseconds.
    pub(crate) p50_ms: Option<f64>,
    /// The duration that 99 in 100 requests did not exceed, in milliseconds.
    pub(crate) p99_ms: Option<f64>,
}

/// Every edge that has been seen.
#[derive(Debug, Default)]
pub(super) struct Edges {
    edges: BTreeMap<EdgeName, Edge>,
    /// The last value of every series that an edge is made of, by caller.
    last: HashMap<String, HashMap<Vec<String>, f64>>,
    seconds: f64,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.requests_good += other.requests_good;
        self.attempts += other.attempts;
        self.attempts_good += other.attempts_good;
        for (bound, count) in &other.within {
            self.took_within(*bound, *count);
        }
    }

    fn took_within(&mut self, bound: f64, count: f64) {
        match self.within.binary_search_by(|(known, _)| known.total_cmp(&bound)) {
            Ok(at) => self.within[at].1 += count,
            Err(at) => self.within.insert(at, (bound, count)),
        }
    }

    /// The duration in seconds that a part of the requests did not exceed, drawn straight between the bounds of a
    /// bucket, as Prometheus does.
    fn quantile(&self, part: f64) -> Option<f64> {
        let whole = self.within.last()?.1;
        if whole <= 0.0 {
            return None;
        }
        let rank = part * whole;
        let at = self.within.partition_point(|(_, count)| *count < rank);
        let (bound, count) = *self.within.get(at)?;
        let (below, before) = match at {
            0 => (0.0, 0.0),
            _ => self.within[at - 1],
        };
        if bound.is_infinite() {
            return Some(below);
        }
        Some(below + (bound - below) * (rank - before) / (count - before))
    }
}

impl Edges {
    /// Takes in what a sidecar counted by now. `caller` is the instance beside which it stands, `entrance` whether
    /// shoppers come in by it.
    pub(super) fn observe(&mut self, caller: &str, entrance: bool, samples: &[Sample]) {
        let before = self.last.remove(caller).unwrap_or_default();
        let mut now = HashMap::with_capacity(before.len());
        for sample in samples {
            let Some(name) = edge_of(caller, entrance, sample) else {
                continue;
            };
            let series = series_of(sample);
            let last = before.get(&series).copied().unwrap_or(0.0);
            // A value that fell is a series that began anew.
            let grown = if sample.value < last {
                sample.value
            } else {
                sample.value - last
            };
            now.insert(series, sample.value);
            if self.edges.len() >= EDGES_MAX && !self.edges.contains_key(&name) {
                continue;
            }
            let edge = self.edges.entry(name).or_default();
            if edge.recent.is_empty() {
                edge.recent.push_back((0.0, Tally::default()));
            }
            if let Some((_, tally)) = edge.recent.back_mut() {
                count(tally, sample, grown);
            }
        }
        self.last.insert(caller.to_owned(), now);
    }

    /// Says that all sidecars have been observed, `seconds` after the last time.
    pub(super) fn complete(&mut self, seconds: f64) {
        self.seconds += seconds;
        for edge in self.edges.values_mut() {
            let Some((took, tally)) = edge.recent.back_mut() else {
                continue;
            };
            *took = seconds;
            edge.whole.add(tally);
            let rate = if seconds > 0.0 {
                tally.requests / seconds
            } else {
                0.0
            };
            edge.rates.push_back(rate);
            edge.recent.push_back((0.0, Tally::default()));
            // One more than shown: the last is being filled.
            while edge.recent.len() > RECENT_SCRAPES + 1 {
                edge.recent.pop_front();
            }
            while edge.rates.len() > HISTORY_SCRAPES {
                edge.rates.pop_front();
            }
        }
    }

    /// The rows of the last seconds.
    pub(super) fn recent(&self) -> Vec<Row> {
        let tallies = self.edges.iter().map(|(name, edge)| {
            let (mut seconds, mut sum) = (0.0, Tally::default());
            for (took, tally) in &edge.recent {
                seconds += took;
                sum.add(tally);
            }
            (name, sum, seconds)
        });
        rows(&tallies.collect::<Vec<_>>())
    }

    /// The rows of the whole time.
    pub(super) fn whole(&self) -> Vec<Row> {
        let tallies = self
            .edges
            .iter()
            .map(|(name, edge)| (name, edge.whole.clone(), self.seconds));
        rows(&tallies.collect::<Vec<_>>())
    }

    /// How many requests a second each edge had, scrape by scrape, in the order of the rows.
    pub(super) fn rates(&self) -> Vec<Vec<f64>> {
        let rates = self.edges.values().map(|edge| edge.rates.iter().copied());
        rates.map(Iterator::collect).collect()
    }
}

/// What a sample is counted for; `None` for all that is no edge's.
fn edge_of(caller: &str, entrance: bool, sample: &Sample) -> Option<EdgeName> {
    let (service, backend) = (sample.label("service"), sample.label("backend"));
    let inbound = match sample.name.as_str() {
        "outrigger_requests_total" | "http_server_request_duration_seconds_bucket" => {
            sample.label("listener") == "inbound"
        }
        // Attempts do not name the listener; those to the own application are the inbound side's.
        "outrigger_attempts_total" => service == caller && backend == APP,
        _ => return None,
    };
    // A request that chose no backend was answered by nobody.
    if backend.is_empty() || inbound && !entrance {
        return None;
    }
    let (caller, backend) = if inbound {
        (SHOPPERS, "")
    } else {
        (caller, backend)
    };
    Some(EdgeName {
        inner: !inbound,
        caller: caller.to_owned(),
        service: service.to_owned(),
        backend: backend.to_owned(),
    })
}

/// What tells a series from every other of its sidecar.
fn series_of(sample: &Sample) -> Vec<String> {
    let values = sample.labels.iter().map(|(_, value)| value);
    std::iter::once(&sample.name).chain(values).cloned().collect()
}

/// Adds what a series grew by.
fn count(tally: &mut Tally, sample: &Sample, grown: f64) {
    let good = sample.label("reason").is_empty()
        && matches!(sample.label("status_class"), "1xx" | "2xx" | "3xx" | "4xx");
    let well = if good { grown } else { 0.0 };
    match sample.name.as_str() {
        "outrigger_requests_total" => {
            tally.requests += grown;
            tally.requests_good += well;
        }
        "outrigger_attempts_total" => {
            tally.attempts += grown;
            tally.attempts_good += well;
        }
        _ => {
            if let Ok(bound) = sample.label("le").parse() {
                tally.took_within(bound, grown);
            }
        }
    }
}

/// Rows, each with its share of what its caller sends to its service.
fn rows(tallies: &[(&EdgeName, Tally, f64)]) -> Vec<Row> {
    let mut sent: HashMap<(&str, &str), f64> = HashMap::new();
    for (name, tally, _) in tallies {
        *sent.entry((&name.caller, &name.service)).or_default() += tally.requests;
    }
    let row = |(name, tally, seconds): &(&EdgeName, Tally, f64)| {
        let sent = sent[&(name.caller.as_str(), name.service.as_str())];
        let millis = |part| tally.quantile(part).map(|seconds| seconds * 1_000.0);
        Row {
            caller: name.caller.clone(),
            service: name.service.clone(),
            backend: name.backend.clone(),
            requests: tally.requests.round() as u64,
            rate: part_of(tally.requests, *seconds).unwrap_or(0.0),
            share: part_of(tally.requests, sent),
            success: part_of(tally.requests_good, tally.requests),
            attempt_success: part_of(tally.attempts_good, tally.attempts),
            retries: (tally.attempts - tally.requests).max(0.0).round() as u64,
            p50_ms: millis(0.5),
            p99_ms: millis(0.99),
        }
    };
    tallies.iter().map(row).collect()
}

fn part_of(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}

#[cfg(test)]
mod tests {
    use super::super::exposition::parse;
    use super::*;

    fn page(v1: u32, v2_good: u32, v2_bad: u32, attempts_bad: u32) -> Vec<Sample> {
        parse(&format!(
            r#"
outrigger_requests_total{{backend="v1",listener="outbound",reason="",route="default",service="reviews",status_class="2xx"}} {v1}
outrigger_requests_total{{backend="v2",listener="outbound",reason="",route="default",service="reviews",status_class="2xx"}} {v2_good}
outrigger_requests_total{{backend="v2",listener="outbound",reason="attempt-timeout",route="default",service="reviews",status_class="5xx"}} {v2_bad}
outrigger_requests_total{{backend="",listener="outbound",reason="no-service",route="",service="",status_class="5xx"}} 9
outrigger_requests_total{{backend="@app",listener="inbound",reason="",route="@app",service="frontend",status_class="2xx"}} {v1}
outrigger_attempts_total{{backend="v2",reason="",service="reviews",status_class="2xx"}} {v2_good}
outrigger_attempts_total{{backend="v2",reason="",service="reviews",status_class="5xx"}} {attempts_bad}
outrigger_attempts_total{{backend="@app",reason="",service="frontend",status_class="2xx"}} {v1}
http_server_request_duration_seconds_bucket{{backend="v1",listener="outbound",route="default",service="reviews",le="0.001"}} 0
http_server_request_duration_seconds_bucket{{backend="v1",listener="outbound",route="default",service="reviews",le="0.002"}} {v1}
http_server_request_duration_seconds_bucket{{backend="v1",listener="outbound",route="default",service="reviews",le="+Inf"}} {v1}
"#
        ))
    }

    fn row<'a>(rows: &'a [Row], backend: &str) -> &'a Row {
        rows.iter().find(|row| row.backend == backend).unwrap()
    }

    #[test]
    fn rows_have_rate_share_success_and_retries() {
        let mut edges = Edges::default();
        edges.observe("frontend", true, &page(90, 10, 0, 2));
        edges.complete(2.0);
        let rows = edges.recent();
        let names: Vec<_> = rows
            .iter()
            .map(|row| (row.caller.as_str(), row.backend.as_str()))
            .collect();
        assert_eq!(names, [("shoppers", ""), ("frontend", "v1"), ("frontend", "v2")]);
        let (v1, v2) = (row(&rows, "v1"), row(&rows, "v2"));
        assert_eq!((v1.rate, v1.share, v2.share), (45.0, Some(0.9), Some(0.1)));
        assert_eq!(
            (v2.success, v2.attempt_success, v2.retries),
            (Some(1.0), Some(10.0 / 12.0), 2)
        );
        assert_eq!((v1.p50_ms, v2.p50_ms), (Some(1.5), None));
        assert_eq!(rows[0].requests, 90);
    }

    #[test]
    fn the_recent_rows_forget_and_the_whole_rows_do_not() {
        let mut edges = Edges::default();
        edges.observe("frontend", true, &page(1_000, 0, 0, 0));
        edges.complete(1.0);
        for second in 1..=RECENT_SCRAPES as u32 {
            edges.observe("frontend", true, &page(1_000, 100 * second, 0, 0));
            edges.complete(1.0);
        }
        assert_eq!(row(&edges.recent(), "v2").share, Some(1.0));
        assert_eq!(row(&edges.recent(), "v2").rate, 100.0);
        assert_eq!(row(&edges.whole(), "v1").requests, 1_000);
        assert_eq!(edges.rates()[1][..2], [1_000.0, 0.0]);
    }

    #[test]
    fn a_series_that_went_and_came_back_counts_from_nothing() {
        let mut edges = Edges::default();
        edges.observe("frontend", true, &page(100, 0, 0, 0));
        edges.complete(1.0);
        edges.observe("frontend", true, &[]);
        edges.complete(1.0);
        edges.observe("frontend", true, &page(30, 0, 0, 0));
        edges.complete(1.0);
        edges.observe("frontend", true, &page(10, 0, 0, 0));
        edges.complete(1.0);
        assert_eq!(row(&edges.whole(), "v1").requests, 140);
    }

    #[test]
    fn failures_of_ours_are_no_success_whatever_their_status() {
        let mut edges = Edges::default();
        edges.observe("frontend", true, &page(0, 99, 1, 3));
        edges.complete(1.0);
        assert_eq!(row(&edges.whole(), "v2").success, Some(0.99));
    }

    #[test]
    fn only_the_entrance_shows_its_inbound_side() {
        let mut edges = Edges::default();
        edges.observe("frontend", false, &page(5, 0, 0, 0));
        edges.complete(1.0);
        assert!(edges.whole().iter().all(|row| row.caller == "frontend"));
    }

    #[test]
    fn quantiles_lie_between_the_bounds_of_their_bucket() {
        let inf = f64::INFINITY;
        let tally = |within: &[(f64, f64)]| Tally {
            within: within.to_vec(),
            ..Tally::default()
        };
        let cases = [
            (tally(&[(1.0, 50.0), (2.0, 100.0), (inf, 100.0)]), 0.5, Some(1.0)),
            (tally(&[(1.0, 50.0), (2.0, 100.0), (inf, 100.0)]), 0.75, Some(1.5)),
            (tally(&[(1.0, 0.0), (2.0, 10.0), (inf, 10.0)]), 0.5, Some(1.5)),
            (tally(&[(1.0, 0.0), (2.0, 0.0), (inf, 10.0)]), 0.99, Some(2.0)),
            (tally(&[(1.0, 0.0), (inf, 0.0)]), 0.99, None),
            (tally(&[]), 0.99, None),
        ];
        for (tally, part, expected) in cases {
            assert_eq!(tally.quantile(part), expected, "{tally:?} {part}");
        }
    }
}
