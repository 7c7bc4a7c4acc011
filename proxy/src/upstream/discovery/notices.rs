//! What discovery is worried about, in sentences for people far from this sidecar: the control API is told them with each
//! poll, and `outrigger status` shows them.
//!
//! Names put them here and take them away; who polls waits for changes. What is shown on this sidecar itself is
//! [`super::report`]'s.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use outrigger_config::discovery::bounded_notices;
use tokio::sync::watch;

use crate::upstream::discovery::answer::{Version, Why};
use crate::upstream::discovery::asking::Kind;
use crate::upstream::discovery::directory::Key;
use crate::upstream::discovery::memory::Memory;
use crate::upstream::discovery::sources::time_of_day;

/// The notices of one sidecar. Cheap to clone; all clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Notices(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// By when they began: one for a name, at most.
    all: Mutex<(u64, BTreeMap<u64, String>)>,
    /// The first of them, so that what begins later changes nothing of what is told.
    told: watch::Sender<Vec<String>>,
}

/// The place of a notice that may come and go.
#[derive(Debug)]
pub(super) struct Place {
    notices: Notices,
    number: Mutex<Option<u64>>,
}

impl Notices {
    /// Those that are told, and word of each change.
    pub(super) fn told(&self) -> watch::Receiver<Vec<String>> {
        self.0.told.subscribe()
    }

    /// A place for one.
    pub(super) fn place(&self) -> Place {
        Place {
            notices: self.clone(),
            number: Mutex::new(None),
        }
    }
}

impl Place {
    /// This is the notice now; `None`: there is none.
    pub(super) fn put(&self, notice: Option<String>) {
        let mut number = self.number.lock().unwrap_or_else(PoisonError::into_inner);
        if number.is_none() && notice.is_none() {
            return;
        }
        let inner = &self.notices.0;
        let mut all = inner.all.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, notices) = &mut *all;
        match (notice, *number) {
            (Some(notice), known) => {
                let place = known.unwrap_or_else(|| {
                    *last += 1;
                    *last
                });
                *number = Some(place);
                notices.insert(place, notice);
            }
            (None, Some(known)) => {
                notices.remove(&known);
                *number = None;
            }
            (None, None) => {}
        }
        let first = bounded_notices(notices.values());
        inner.told.send_if_modified(|told| {
            let is_other = *told != first;
            *told = first;
            is_other
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.put(None);
    }
}

/// What there is to say of a name, if there is. The words stay the same for as long as what they say does.
pub(super) fn notice(key: &Key, memory: &Memory) -> Option<String> {
    let name = &key.question.name;
    let what = match key.kind {
        Kind::Addresses => "DNS",
        Kind::Services => "SRV",
    };
    let kept = |count: usize| {
        let records = match (key.kind, count) {
            (Kind::Addresses, 1) => "address",
            (Kind::Addresses, _) => "addresses",
            (Kind::Services, 1) => "record",
            (Kind::Services, _) => "records",
        };
        format!("{count} {records} kept")
    };
    if let Some(failing) = memory.failing() {
        let (why, since) = (&failing.why, time_of_day(failing.since_clock));
        let until = memory.good().map(|good| good.at_clock + key.question.keep);
        let becomes = match (memory.records().len(), until) {
            (count @ 1.., Some(until)) => format!("{} until {}", kept(count), time_of_day(until)),
            (1.., None) => "what is known is kept".to_owned(),
            (0, _) if failing.is_over => "nothing is kept any more".to_owned(),
            (0, _) => "nothing is known of it".to_owned(),
        };
        return Some(format!("{what} for {name}: {why} since {since}, {becomes}"));
    }
    let of_family = |(version, why, since): (Version, &Why, SystemTime)| {
        let is_of = |known: &&super::memory::Remembered| Version::of(&known.record) == version;
        let count = memory.records().iter().filter(is_of).count();
        let since = time_of_day(since);
        match (why, count) {
            (Why::Truncated, _) => Some(format!(
                "{what} for {name}: {why} since {since}, what came is used"
            )),
            // That a family nobody has is not answered for is no worry.
            (_, 0) => None,
            (_, count) => {
                let records = version.word();
                Some(format!(
                    "{what} for {name}: {why} for {records} since {since}, {}",
                    kept(count)
                ))
            }
        }
    };
    let mut troubles = memory.troubles();
    troubles.find_map(|(version, trouble)| of_family((version, &trouble.why, trouble.since_clock)))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use outrigger_config::discover::{Family, Question};
    use outrigger_config::discovery::{NOTICE_BYTES_MAX, NOTICES_MAX};

    use super::*;
    use crate::upstream::discovery::answer::{AnsweredBy, Bad, Good, Heard, Record, Word};
    use crate::upstream::discovery::memory::Bounds;

    const HOUR: Duration = Duration::from_secs(3600);

    fn key() -> Key {
        Key {
            kind: Kind::Addresses,
            question: Question {
                name: "reviews.shop.internal".to_owned(),
                family: Family::Any,
                floor: Duration::from_secs(1),
                ceiling: Duration::from_secs(60),
                keep: HOUR,
                servers: Vec::new(),
            },
            of: "reviews.shop.internal".to_owned(),
        }
    }

    #[test]
    fn what_fails_is_said_with_what_becomes_of_it() {
        let good = |heard| {
            let records = ["10.0.0.1", "10.0.0.2", "::1"].map(|text| Record::Address(text.parse().unwrap()));
            Ok(Good {
                records: records.into(),
                ttl: Duration::ZERO,
                heard,
                found_as: String::new(),
                from: AnsweredBy::Hosts,
            })
        };
        let bad = || {
            Err(Bad {
                why: Why::ServerFailed,
                ttl: None,
            })
        };
        let six = |six| Heard { six, ..Heard::WHOLE };
        let cut = Heard {
            four: Word::Cut,
            ..Heard::WHOLE
        };
        for (answers, over, said) in [
            (vec![good(Heard::WHOLE)], false, None),
            (
                vec![bad()],
                false,
                Some("SERVFAIL since 12:00:00, nothing is known of it"),
            ),
            (
                vec![good(Heard::WHOLE), bad(), bad()],
                false,
                Some("SERVFAIL since 12:00:07, 3 addresses kept until 13:00:00"),
            ),
            (
                vec![good(Heard::WHOLE), bad()],
                true,
                Some("SERVFAIL since 12:00:07, nothing is kept any more"),
            ),
            (
                vec![good(Heard::WHOLE), good(six(Word::Failed(Why::TimedOut)))],
                false,
                Some("no answer in time for AAAA since 12:00:07, 1 address kept"),
            ),
            (vec![good(six(Word::Failed(Why::TimedOut)))], false, None),
            (
                vec![good(cut)],
                false,
                Some("truncated, and nothing more over TCP since 12:00:00, what came is used"),
            ),
        ] {
            let mut memory = Memory::default();
            let bounds = Bounds {
                floor: HOUR,
                ceiling: HOUR,
            };
            let (began, noon) = (Instant::now(), SystemTime::UNIX_EPOCH + 12 * HOUR);
            for (place, answer) in (0..).zip(&answers) {
                let passed = 7 * Duration::from_secs(place);
                memory.learn(answer, bounds, (began + passed, noon + passed));
            }
            if over {
                memory.expire(HOUR, began + HOUR);
            }
            let said = said.map(|said| format!("DNS for reviews.shop.internal: {said}"));
            assert_eq!(notice(&key(), &memory), said, "{answers:?}");
        }
    }

    #[test]
    fn the_oldest_notices_are_told_and_each_change_of_them_alone() {
        let notices = Notices::default();
        let mut told = notices.told();
        let places: Vec<Place> = (0..=NOTICES_MAX).map(|_| notices.place()).collect();
        for (number, place) in places.iter().enumerate() {
            place.put(Some(format!("{number} {}", "é".repeat(NOTICE_BYTES_MAX))));
        }
        assert_eq!(told.borrow_and_update().len(), NOTICES_MAX);
        assert!(
            told.borrow()
                .iter()
                .all(|notice| notice.len() <= NOTICE_BYTES_MAX)
        );
        places[NOTICES_MAX].put(Some("other words".to_owned()));
        assert!(!told.has_changed().unwrap());
        drop(places);
        assert!(told.borrow_and_update().is_empty());
    }
}
