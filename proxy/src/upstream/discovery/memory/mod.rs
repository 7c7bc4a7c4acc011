//! What is remembered of one name: pure, the time is an argument.
//!
//! **Failures.** While DNS fails, says that there is no such name or has no record, the last good answer serves, for as
//! long as the configuration says, counted from that answer. Then there is nothing, and the reason is told.
//!
//! **Families.** A and AAAA are two questions, and each has its last good answer: while one is asked for in vain and the
//! other answers, the name does not fail, and the addresses of the first stay for as long as is kept.
//!
//! **Partial answers.** Some servers name a few of many at each question (Route 53 and Cloud Map 8 at random, Consul 3).
//! What such an answer lacks is not gone. A server that always names all is believed at once, so the two must be told
//! apart, which [`samples`] does:
//!
//! 1. Answers are **samples** once answers of one size have twice brought back what such answers lacked shortly before. A
//!    record is then gone when it was missing from so many answers in a row that one in a million such rows would miss it
//!    by chance, which follows from how many are named of how many.
//! 2. An answer that is smaller than a sample was is **whole**: the server had no more to say. So is one of another size
//!    than the last that names all that is known, and one that names the same records as those before it so often that
//!    chance would have named others. What it lacks is gone at once.
//! 3. Before that is known there is one **suspicion**: as many records as the answer before, at least two, some of
//!    them others and some the same. What it lacks stays until an answer repeats the one before, which samples hardly
//!    ever do, and for three answers at most: a deployment that replaces instance by instance looks the same.
//! 4. Every other answer is whole: fewer, more, all others, one for one. So a name that is scaled down or moved is followed
//!    when its TTL is over.
//!
//! An answer that was cut says nothing of what it does not name.
//!
//! Whoever uses a record that an answer lacked drops it at once when its endpoint is not well: that is not known here.

mod samples;

use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime};

use crate::upstream::discovery::answer::{Answer, Bad, Found, RECORDS_MAX, Record, Version, Why, Word};
use crate::upstream::discovery::memory::samples::Samples;

/// A failure is asked about again after the floor, then twice as long, up to this: a name server that is back is found
/// within seconds.
const FAILED_MAX: Duration = Duration::from_secs(5);

/// A negative answer that says no TTL (RFC 2308 section 5: it should not be cached) is asked again after this.
const NEGATIVE_DEFAULT: Duration = Duration::from_secs(5);

/// A question is not in vain before this, however short what was found is kept: what a server that is alone is given.
const IN_VAIN_AFTER: Duration = Duration::from_secs(5);

/// What is remembered of one name.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    records: Vec<Remembered>,
    four: OfFamily,
    six: OfFamily,
    good: Option<Told>,
    failing: Option<Failing>,
    /// Failures in a row.
    failures: u32,
}

/// A record that is used.
#[derive(Clone, Debug)]
pub(super) struct Remembered {
    pub(super) record: Record,
    /// When an answer named it last.
    pub(super) seen: Instant,
    /// How many answers in a row have lacked it.
    pub(super) missed: u32,
}

/// What is remembered of the questions for one family.
#[derive(Clone, Debug, Default)]
struct OfFamily {
    samples: Samples,
    /// When an answer spoke of it last.
    heard: Option<Instant>,
    trouble: Option<Trouble>,
}

/// That one family of a name is not known whole, while there is an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// On the clock on the wall.
    pub(super) since_clock: SystemTime,
    pub(super) why: Why,
}

/// The last good answer's circumstances.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) at: Instant,
    /// The same on the clock on the wall.
    pub(super) at_clock: SystemTime,
    pub(super) ttl: Duration,
    pub(super) found_as: String,
    pub(super) from: String,
}

/// That there is no good answer.
#[derive(Clone, Debug)]
pub(super) struct Failing {
    pub(super) since: Instant,
    /// The same on the clock on the wall.
    pub(super) since_clock: SystemTime,
    /// What the last answer was.
    pub(super) why: Why,
    /// Whether what was kept has been let go of.
    pub(super) is_over: bool,
}

/// What an answer changed for those who watch the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing.
    None,
    /// It begins to fail.
    Fails,
    /// It answers again.
    Recovers,
}

/// Within which bounds a name is asked again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) floor: Duration,
    pub(super) ceiling: Duration,
}

impl Memory {
    /// Takes an answer in, and says after how long to ask again.
    pub(super) fn learn(
        &mut self,
        answer: &Answer,
        bounds: Bounds,
        (now, clock): (Instant, SystemTime),
    ) -> (Turn, Duration) {
        match answer {
            Ok(good) => {
                for version in Version::ALL {
                    self.hear(version, good.heard.of(version), (now, clock));
                    if let word @ (Word::Whole | Word::Cut) = good.heard.of(version) {
                        let named = good
                            .records
                            .iter()
                            .filter(|record| Version::of(record) == version);
                        self.take(version, named.cloned().collect(), *word == Word::Cut, now);
                    }
                }
                self.good = Some(Told {
                    at: now,
                    at_clock: clock,
                    ttl: good.ttl,
                    found_as: good.found_as.clone(),
                    from: good.from.to_string(),
                });
                self.failures = 0;
                let turn = self.failing.take().map_or(Turn::None, |_| Turn::Recovers);
                (turn, good.ttl.clamp(bounds.floor, bounds.ceiling))
            }
            Err(bad) => {
                let wait = self.next_after(bad, bounds);
                let (mut turn, why) = (Turn::None, bad.why.clone());
                let failing = self.failing.get_or_insert_with(|| {
                    turn = Turn::Fails;
                    Failing {
                        since: now,
                        since_clock: clock,
                        why: why.clone(),
                        is_over: false,
                    }
                });
                failing.why = why;
                (turn, wait)
            }
        }
    }

    fn next_after(&mut self, bad: &Bad, bounds: Bounds) -> Duration {
        if bad.why.is_negative() {
            self.failures = 0;
            let ttl = bad.ttl.unwrap_or(NEGATIVE_DEFAULT);
            return ttl.clamp(bounds.floor, bounds.ceiling);
        }
        let wait = bounds.floor.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        wait.min(FAILED_MAX).clamp(bounds.floor, bounds.ceiling)
    }

    /// Takes in what was found for one family after the answer for the other was taken: the time is that of its coming.
    /// Gives after how long to ask again, if it says so.
    pub(super) fn learn_late(
        &mut self,
        version: Version,
        found: &Found,
        (now, clock): (Instant, SystemTime),
    ) -> Option<Duration> {
        self.hear(version, &found.word(), (now, clock));
        match found {
            Found::Addresses { addresses, ttl, cut } => {
                let named = addresses.iter().copied().map(Record::Address).collect();
                self.take(version, named, *cut, now);
                Some(*ttl)
            }
            Found::Nothing(bad) if bad.why.is_negative() => {
                self.take(version, Vec::new(), false, now);
                None
            }
            Found::Nothing(_) | Found::Awaited => None,
        }
    }

    /// What is said of a family: whether it is in trouble, and since when.
    fn hear(&mut self, version: Version, word: &Word, (now, clock): (Instant, SystemTime)) {
        let family = self.family_mut(version);
        let why = match word {
            Word::Awaited => return,
            Word::Whole => {
                family.heard = Some(now);
                family.trouble = None;
                return;
            }
            Word::Cut => {
                family.heard = Some(now);
                Why::Truncated
            }
            Word::Failed(why) => why.clone(),
        };
        let since_clock = family
            .trouble
            .as_ref()
            .map_or(clock, |trouble| trouble.since_clock);
        family.trouble = Some(Trouble { since_clock, why });
    }

    /// Takes in the records of a family that an answer names.
    fn take(&mut self, version: Version, answer: Vec<Record>, is_cut: bool, now: Instant) {
        let (mut own, others): (Vec<Remembered>, Vec<Remembered>) = std::mem::take(&mut self.records)
            .into_iter()
            .partition(|known| Version::of(&known.record) == version);
        self.records = others;
        let named: HashSet<Record> = answer.iter().cloned().collect();
        let samples = &mut self.family_mut(version).samples;
        let patience = if is_cut {
            samples.take_cut(answer.clone());
            u32::MAX
        } else {
            samples.take(answer.clone(), &own.iter().collect::<Vec<_>>())
        };
        let says_more = !is_cut && !samples.is_old_sample();
        for known in &mut own {
            if named.contains(&known.record) {
                known.missed = 0;
                known.seen = now;
            } else if says_more {
                known.missed = known.missed.saturating_add(1);
            }
        }
        samples.dropped(own.extract_if(.., |known| known.missed > patience));
        let known: HashSet<Record> = own.iter().map(|known| known.record.clone()).collect();
        self.records.append(&mut own);
        let room = RECORDS_MAX.saturating_sub(self.records.len());
        let new = answer.into_iter().filter(|record| !known.contains(record));
        self.records.extend(new.take(room).map(|record| Remembered {
            record,
            seen: now,
            missed: 0,
        }));
        // There are thousands of names with one record each, and a vector makes room for four.
        self.records.shrink_to_fit();
    }

    const fn family(&self, version: Version) -> &OfFamily {
        match version {
            Version::V4 => &self.four,
            Version::V6 => &self.six,
        }
    }

    const fn family_mut(&mut self, version: Version) -> &mut OfFamily {
        match version {
            Version::V4 => &mut self.four,
            Version::V6 => &mut self.six,
        }
    }

    /// Lets go of what is too old. `true`: all of it, because DNS has failed for too long.
    pub(super) fn expire(&mut self, keep: Duration, now: Instant) -> bool {
        if self.ends(keep).is_some_and(|end| end <= now) {
            self.records.clear();
            (self.four, self.six) = Default::default();
            if let Some(failing) = &mut self.failing {
                failing.is_over = true;
            }
            return true;
        }
        let mut records = std::mem::take(&mut self.records);
        records
            .retain(|known| self.is_vouched_for(known) || now.saturating_duration_since(known.seen) < keep);
        self.records = records;
        false
    }

    /// Whether the last word of DNS on its family names it, and there is one.
    fn is_fresh(&self, known: &Remembered) -> bool {
        let family = self.family(Version::of(&known.record));
        known.missed == 0
            && match &family.trouble {
                None => true,
                Some(trouble) => trouble.why == Why::Truncated && family.heard == Some(known.seen),
            }
    }

    /// Whether it is used for another reason than that it is kept.
    fn is_vouched_for(&self, known: &Remembered) -> bool {
        self.failing.is_none() && self.is_fresh(known)
    }

    /// When the next of what is kept is let go of, if DNS says nothing of it until then.
    pub(super) fn next_end(&self, keep: Duration) -> Option<Instant> {
        let kept = self.records.iter().filter(|known| !self.is_vouched_for(known));
        let ends = kept.filter_map(|known| known.seen.checked_add(keep));
        ends.chain(self.ends(keep)).min()
    }

    /// The same while a question is under way that `began` then.
    pub(super) fn end_unanswered(&self, keep: Duration, began: Instant) -> Option<Instant> {
        let ends = self.in_vain_at(keep, began).into_iter();
        ends.chain(self.next_end(keep)).min()
    }

    /// When a question that `began` then counts as one in vain though it is still under way, if none was before: it may
    /// wait for its turn for long.
    pub(super) fn in_vain_at(&self, keep: Duration, began: Instant) -> Option<Instant> {
        let good = self.good.as_ref().filter(|_| self.failing.is_none())?;
        Some(good.at.checked_add(keep)?.max(began + IN_VAIN_AFTER))
    }

    /// How many records serve from memory because DNS says nothing of them.
    pub(super) fn kept(&self) -> usize {
        let is_kept = |known: &&Remembered| {
            let family = self.family(Version::of(&known.record));
            self.failing.is_some() || family.trouble.is_some() && !self.is_fresh(known)
        };
        self.records.iter().filter(is_kept).count()
    }

    /// The families that are not known whole while there is an answer.
    pub(super) fn troubles(&self) -> impl Iterator<Item = (Version, &Trouble)> {
        let answers = self.failing.is_none();
        let versions = Version::ALL.into_iter().filter(move |_| answers);
        versions.filter_map(|version| Some((version, self.family(version).trouble.as_ref()?)))
    }

    /// When what is kept is let go of, if DNS goes on failing.
    pub(super) fn ends(&self, keep: Duration) -> Option<Instant> {
        let failing = self.failing.as_ref()?;
        let good = self.good.as_ref()?;
        (!failing.is_over).then(|| good.at.checked_add(keep))?
    }

    /// What is used: the records of the last good answer, and those that are not thought to be gone.
    pub(super) fn records(&self) -> &[Remembered] {
        &self.records
    }

    /// The records of the last good answer, in its order, as far as they are used.
    pub(super) fn last(&self) -> impl Iterator<Item = &Record> {
        self.four.samples.last().iter().chain(self.six.samples.last())
    }

    /// That there is no good answer, if so.
    pub(super) fn failing(&self) -> Option<&Failing> {
        self.failing.as_ref()
    }

    /// The last good answer, if there was one.
    pub(super) fn good(&self) -> Option<&Told> {
        self.good.as_ref()
    }

    /// Whether its answers are samples.
    pub(super) fn is_sampled(&self) -> bool {
        self.four.samples.is_sampled() || self.six.samples.is_sampled()
    }
}

#[cfg(test)]
mod tests;
