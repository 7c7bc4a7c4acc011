//! What DNS says to one question, in the words that the rest of discovery understands: plain data, and the joining of the
//! answers for both families into one. Nothing here asks.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Records that are believed for as long as they may be: those that are not DNS's, such as the lines of a hosts file.
pub(super) const FOR_EVER: Duration = Duration::from_secs(24 * 3600);

/// The most records that are taken of one answer, and of several that are joined: more than 64 KiB of them.
pub(super) const RECORDS_MAX: usize = 4096;

/// One thing that an answer names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Record {
    /// An address (A or AAAA).
    Address(IpAddr),
    /// A place of a service (SRV).
    Service(Service),
}

impl Record {
    /// The address, if it is one.
    pub(super) const fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Address(address) => Some(*address),
            Self::Service(_) => None,
        }
    }
}

/// What an SRV record says (RFC 2782).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Service {
    pub(super) priority: u16,
    pub(super) weight: u16,
    pub(super) port: u16,
    /// The name of the host, absolute: it ends with a dot.
    pub(super) target: String,
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// A records.
    V4,
    /// AAAA records.
    V6,
}

impl Version {
    const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// What DNS says, or why it says nothing.
pub(super) type Answer = Result<Good, Bad>;

/// An answer with at least one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Good {
    /// In the order of the answer, each once.
    pub(super) records: Vec<Record>,
    /// The shortest of the whole chain.
    pub(super) ttl: Duration,
    /// The family that was asked for in vain: of its addresses this answer says nothing.
    pub(super) unanswered: Option<Version>,
    /// The name that it was found under: with a search domain, or without.
    pub(super) found_as: String,
    /// Who said so.
    pub(super) from: AnsweredBy,
}

impl Good {
    /// Whether it would name this record if it were there.
    pub(super) fn speaks_of(&self, record: &Record) -> bool {
        match record {
            Record::Address(address) => self.unanswered != Some(Version::of(*address)),
            Record::Service(_) => true,
        }
    }

    /// The records each once, no more than there may be.
    pub(super) fn tidied(mut self) -> Self {
        let mut seen = std::collections::HashSet::new();
        self.records.retain(|record| seen.insert(record.clone()));
        self.records.truncate(RECORDS_MAX);
        self
    }
}

/// Who gave an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AnsweredBy {
    /// Nobody was asked: the name is an address.
    Itself,
    /// The hosts file.
    Hosts,
    /// This server.
    Server(SocketAddr),
}

impl fmt::Display for AnsweredBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Itself => f.write_str("itself"),
            Self::Hosts => f.write_str("hosts file"),
            Self::Server(address) => address.fmt(f),
        }
    }
}

/// Why there is no record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bad {
    pub(super) why: Why,
    /// How long the server asks to be spared the same question, where it says so: the negative TTL of RFC 2308 section 5.
    pub(super) ttl: Option<Duration>,
}

/// The same as a closed set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// NXDOMAIN.
    NoSuchName,
    /// The name is there and has no such record.
    Empty,
    /// SERVFAIL.
    ServerFailed,
    /// REFUSED.
    Refused,
    /// FORMERR or NOTIMP.
    NotUnderstood,
    /// Nobody answered in time.
    TimedOut,
    /// Something else, in its own words.
    Other(String),
}

impl Why {
    /// Whether a server spoke for the name, and did not fail.
    pub(super) const fn is_negative(&self) -> bool {
        matches!(self, Self::NoSuchName | Self::Empty)
    }

    /// What the metric calls it.
    pub(super) const fn word(&self) -> &'static str {
        match self {
            Self::NoSuchName => "nxdomain",
            Self::Empty => "empty",
            Self::ServerFailed => "servfail",
            Self::Refused => "refused",
            Self::TimedOut => "timeout",
            Self::NotUnderstood | Self::Other(_) => "error",
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSuchName => "NXDOMAIN",
            Self::Empty => "no record",
            Self::ServerFailed => "SERVFAIL",
            Self::Refused => "REFUSED",
            Self::NotUnderstood => "FORMERR",
            Self::TimedOut => "no answer in time",
            Self::Other(words) => words,
        })
    }
}

/// What was found for one family of a name.
pub(super) type Part = (Version, Result<(Vec<IpAddr>, Duration), Bad>);

/// One answer of those for each family. One address is enough to be good; of several failures the one that may pass is
/// told, since a name of which half cannot be asked for cannot be said not to exist.
pub(super) fn joined(parts: Vec<Part>, found_as: &str, from: &AnsweredBy) -> Answer {
    let mut good = Good {
        records: Vec::new(),
        ttl: FOR_EVER,
        unanswered: None,
        found_as: found_as.to_owned(),
        from: from.clone(),
    };
    let mut worst: Option<Bad> = None;
    for (version, part) in parts {
        match part {
            Ok((addresses, ttl)) => {
                good.records.extend(addresses.into_iter().map(Record::Address));
                good.ttl = good.ttl.min(ttl);
            }
            Err(bad) => {
                if !bad.why.is_negative() {
                    good.unanswered = Some(version);
                }
                let replaces = |worst: &Bad| match (&worst.why, &bad.why) {
                    (worst, bad) if worst.is_negative() != bad.is_negative() => worst.is_negative(),
                    (Why::NoSuchName, Why::Empty) => true,
                    _ => false,
                };
                if worst.as_ref().is_none_or(replaces) {
                    worst = Some(bad);
                }
            }
        }
    }
    match worst {
        Some(bad) if good.records.is_empty() => Err(bad),
        None if good.records.is_empty() => Err(Bad {
            why: Why::Empty,
            ttl: None,
        }),
        _ => Ok(good.tidied()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bad<T>(why: Why) -> Result<T, Bad> {
        Err(Bad { why, ttl: None })
    }

    #[test]
    fn one_address_is_a_good_answer_and_the_worst_failure_is_told() {
        let four = || Ok((vec!["10.0.0.1".parse().unwrap()], Duration::from_secs(9)));
        let join = |v4, v6| {
            joined(
                vec![(Version::V4, v4), (Version::V6, v6)],
                "a.",
                &AnsweredBy::Hosts,
            )
        };
        let good = join(four(), bad(Why::Empty)).unwrap();
        assert_eq!(
            (good.records.len(), good.ttl.as_secs(), good.unanswered),
            (1, 9, None)
        );
        let half = join(four(), bad(Why::TimedOut)).unwrap();
        assert_eq!(half.unanswered, Some(Version::V6));
        assert!(!half.speaks_of(&Record::Address("::1".parse().unwrap())));
        for (v4, v6, told) in [
            (Why::NoSuchName, Why::NoSuchName, Why::NoSuchName),
            (Why::NoSuchName, Why::Empty, Why::Empty),
            (Why::Empty, Why::ServerFailed, Why::ServerFailed),
            (Why::TimedOut, Why::NoSuchName, Why::TimedOut),
        ] {
            assert_eq!(join(bad(v4), bad(v6)).unwrap_err().why, told);
        }
    }
}
