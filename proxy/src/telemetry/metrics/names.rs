//! What is counted of the DNS listener.

use prometheus::IntCounter;

use super::{Definition, Metrics};

pub(super) const QUERIES: Definition = Definition {
    name: "outrigger_dns_queries_total",
    help: "Questions to the DNS listener, by what became of them: mesh (a name of the mesh, answered here), forwarded, failed (no name server answered), \
           refused (malformed, not for such a server, or too many at once).",
    labels: &["result"],
};

/// What became of a question to the DNS listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryResult {
    /// It was about a name of the mesh and was answered here.
    Mesh,
    /// A name server answered it.
    Forwarded,
    /// No name server answered it.
    Failed,
    /// It was malformed, nothing that is answered here, or one too many.
    Refused,
}

impl QueryResult {
    const ALL: [Self; 4] = [Self::Mesh, Self::Forwarded, Self::Failed, Self::Refused];

    const fn word(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::Forwarded => "forwarded",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }
}

/// The questions to the DNS listener, in the order of [`QueryResult::ALL`].
#[derive(Clone, Debug)]
pub struct NameMetrics([IntCounter; QueryResult::ALL.len()]);

impl NameMetrics {
    /// One more.
    pub fn count(&self, result: QueryResult) {
        self.0[result as usize].inc();
    }
}

impl Metrics {
    /// The counters of a DNS listener.
    pub fn names(&self) -> NameMetrics {
        let counter = |result: QueryResult| self.dns_queries.with_label_values(&[result.word()]);
        NameMetrics(QueryResult::ALL.map(counter))
    }
}
