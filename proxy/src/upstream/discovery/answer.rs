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

/// A family of addresses: each is asked for by a question of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// A records. SRV records, which are one question too, stand in their place.
    V4,
    /// AAAA records.
    V6,
}

impl Version {
    /// Both.
    pub(super) const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The one that a record belongs to.
    pub(super) const fn of(record: &Record) -> Self {
        match record {
            Record::Address(IpAddr::V6(_)) => Self::V6,
            Record::Address(IpAddr::V4(_)) | Record::Service(_) => Self::V4,
        }
    }

    /// What its records are called.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::V4 => "A",
            Self::V6 => "AAAA",
        }
    }
}

/// What an answer says of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// What it does not name is not there, unless it is a sample.
    Whole,
    /// It was cut, and the rest could not be had: what it does not name may be there.
    Cut,
    /// Nothing yet: the question is under way, or was not asked.
    Awaited,
    /// Nothing: the question was in vain.
    Failed(Why),
}

/// What an answer says of each family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) four: Word,
    pub(super) six: Word,
}

impl Heard {
    /// All there is of both.
    pub(super) const WHOLE: Self = Self {
        four: Word::Whole,
        six: Word::Whole,
    };

    /// What is said of one.
    pub(super) const fn of(&self, version: Version) -> &Word {
        match version {
            Version::V4 => &self.four,
            Version::V6 => &self.six,
        }
    }

    /// This is said of one.
    pub(super) fn set(&mut self, version: Version, word: Word) {
        match version {
            Version::V4 => self.four = word,
            Version::V6 => self.six = word,
        }
    }

    /// Whether something was cut.
    pub(super) fn is_cut(&self) -> bool {
        self.four == Word::Cut || self.six == Word::Cut
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
    /// What it says of each family.
    pub(super) heard: Heard,
    /// The name that it was found under: with a search domain, or without.
    pub(super) found_as: String,
    /// Who said so.
    pub(super) from: AnsweredBy,
}

impl Good {
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
    /// What was answered is not all, and the rest could not be had.
    Truncated,
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
            Self::Truncated => "truncated",
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
            Self::Truncated => "truncated, and nothing more over TCP",
            Self::Other(words) => words,
        })
    }
}

/// What was found for one family of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) version: Version,
    pub(super) found: Found,
}

/// The same without saying for which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// These, which are not all where `cut` says so, for as long.
    Addresses {
        addresses: Vec<IpAddr>,
        ttl: Duration,
        cut: bool,
    },
    /// None.
    Nothing(Bad),
    /// Not known yet.
    Awaited,
}

impl Found {
    /// Whether there is an address.
    pub(super) const fn is_good(&self) -> bool {
        matches!(self, Self::Addresses { .. })
    }

    /// Whether a server spoke: it has these, or none.
    pub(super) const fn is_conclusive(&self) -> bool {
        match self {
            Self::Addresses { .. } => true,
            Self::Nothing(bad) => bad.why.is_negative(),
            Self::Awaited => false,
        }
    }

    /// What is thereby said of its family.
    pub(super) fn word(&self) -> Word {
        match self {
            Self::Addresses { cut: true, .. } => Word::Cut,
            Self::Nothing(bad) if !bad.why.is_negative() => Word::Failed(bad.why.clone()),
            Self::Addresses { .. } | Self::Nothing(_) => Word::Whole,
            Self::Awaited => Word::Awaited,
        }
    }
}

/// One answer of those for each family. One address is enough to be good; of several failures the one that may pass is
/// told, since a name of which half cannot be asked for cannot be said not to exist.
pub(super) fn joined(parts: Vec<Part>, found_as: &str, from: &AnsweredBy) -> Answer {
    let mut good = Good {
        records: Vec::new(),
        ttl: FOR_EVER,
        heard: Heard::WHOLE,
        found_as: found_as.to_owned(),
        from: from.clone(),
    };
    let mut worst: Option<Bad> = None;
    for Part { version, found } in parts {
        good.heard.set(version, found.word());
        let bad = match found {
            Found::Addresses { addresses, ttl, .. } => {
                good.records.extend(addresses.into_iter().map(Record::Address));
                good.ttl = good.ttl.min(ttl);
                continue;
            }
            Found::Nothing(bad) => bad,
            Found::Awaited => Bad {
                why: Why::TimedOut,
                ttl: None,
            },
        };
        let replaces = |worst: &Bad| match (&worst.why, &bad.why) {
            (worst, bad) if worst.is_negative() != bad.is_negative() => worst.is_negative(),
            (Why::NoSuchName, Why::Empty) => true,
            _ => false,
        };
        if worst.as_ref().is_none_or(replaces) {
            worst = Some(bad);
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

    fn bad(why: Why) -> Found {
        Found::Nothing(Bad { why, ttl: None })
    }

    #[test]
    fn one_address_is_a_good_answer_and_the_worst_failure_is_told() {
        let four = |cut| Found::Addresses {
            addresses: vec!["10.0.0.1".parse().unwrap()],
            ttl: Duration::from_secs(9),
            cut,
        };
        let join = |v4, v6| {
            let parts =
                [(Version::V4, v4), (Version::V6, v6)].map(|(version, found)| Part { version, found });
            joined(parts.into(), "a.", &AnsweredBy::Hosts)
        };
        for (v4, v6, heard) in [
            (four(false), bad(Why::Empty), Heard::WHOLE),
            (
                four(true),
                Found::Awaited,
                Heard {
                    four: Word::Cut,
                    six: Word::Awaited,
                },
            ),
            (
                four(false),
                bad(Why::TimedOut),
                Heard {
                    six: Word::Failed(Why::TimedOut),
                    ..Heard::WHOLE
                },
            ),
        ] {
            let good = join(v4, v6).unwrap();
            assert_eq!(
                (good.records.len(), good.ttl.as_secs(), good.heard),
                (1, 9, heard)
            );
        }
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
