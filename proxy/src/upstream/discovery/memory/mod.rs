//! What is remembered of one name: pure, the time is an argument.
//!
//! **Failures.** While DNS fails, says that there is no such name or has no record, the last good answer serves, for as
//! long as the configuration says, counted from that answer. Then there is nothing, and the reason is told.
//!
//! **Partial answers.** Some servers name a few of many at each question (Route 53 and Cloud Map 8 at random, Consul 3).
//! What such an answer lacks is not gone. A server that always names all is believed at once, so the two must be told
//! apart, and what tells them apart is whether records *come back*:
//!
//! 1. An answer that names what an answer shortly before lacked is a **sample**, and so are those that follow. A record is
//!    then gone when it was missing from so many answers in a row that one in a million such rows would miss it by chance,
//!    which follows from how many are named of how many.
//! 2. An answer that is smaller than a sample was is **whole**: the server had no more to say. So is one that names the
//!    same records as those before it so often that chance would have named others. What it lacks is gone at once; if
//!    it comes back after all, samples may be as small as that.
//! 3. Before anything came back there is one **suspicion**: as many records as the answer before, at least two, some of
//!    them others and some the same. What it lacks stays until an answer repeats the one before, which samples hardly
//!    ever do, and for three answers at most: a deployment that replaces instance by instance looks the same.
//! 4. Every other answer is whole: fewer, more, all others, one for one. So a name that is scaled down or moved is followed
//!    when its TTL is over.
//!
//! Whoever uses a record that an answer lacked drops it at once when its endpoint is not well: that is not known here.

use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime};

use crate::upstream::discovery::answer::{Answer, Bad, Good, RECORDS_MAX, Record, Why};

/// A failure is asked about again after the floor, then twice as long, up to this: a name server that is back is found
/// within seconds.
const FAILED_MAX: Duration = Duration::from_secs(5);

/// A negative answer that says no TTL (RFC 2308 section 5: it should not be cached) is asked again after this.
const NEGATIVE_DEFAULT: Duration = Duration::from_secs(5);

/// Answers for which a record that was dropped is known by its coming back. A sample of 8 of 100 names one of the dropped
/// ones within so many nearly always.
const COMES_BACK_WITHIN: u32 = 8;

/// Dropped records that are known by their coming back: enough to learn what a name's answers are.
const GONE_MAX: usize = 256;

/// Answers for which what a suspicious answer lacked is kept.
const SUSPECTED_FOR: u32 = 3;

/// So many repetitions are waited for at least: a resolver on the way may give the same sample again from its cache.
const REPEATED_MIN: f64 = 3.0;

/// So many at most: two records of which one is named are told from one by as many.
const REPEATED_MAX: f64 = 20.0;

/// The chance that is taken of judging wrong: that a record which is there is missing from as many answers as are waited
/// for, and that samples repeat one another as often.
const BY_CHANCE: f64 = 1e-6;

/// The most answers that are waited for. `keep` is a bound too.
const MISSED_MAX: f64 = 1000.0;

/// What is remembered of one name.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    records: Vec<Remembered>,
    gone: Vec<Gone>,
    /// The last good answer.
    last: Vec<Record>,
    /// How often in a row it was given again.
    repeats: u32,
    /// How many an answer names that is a sample of all; `None`: answers are whole, as far as is known.
    sample: Option<usize>,
    /// The size of an answer that was taken for whole because it was smaller.
    believed: Option<usize>,
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

#[derive(Clone, Debug)]
struct Gone {
    record: Record,
    /// Answers since then.
    answers: u32,
}

/// The last good answer's circumstances.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) at: Instant,
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
                self.take(good, now);
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

    fn take(&mut self, good: &Good, now: Instant) {
        let named: HashSet<&Record> = good.records.iter().collect();
        let spoken_of: Vec<&Record> = self.last.iter().filter(|record| good.speaks_of(record)).collect();
        let same = spoken_of.len() == named.len() && spoken_of.iter().all(|record| named.contains(record));
        self.repeats = if same { self.repeats.saturating_add(1) } else { 0 };
        let shared = spoken_of.iter().filter(|record| named.contains(**record)).count();
        let suspicious = !same && named.len() >= 2 && spoken_of.len() == named.len() && shared > 0;

        let held = self.records.iter().filter(|known| known.missed > 0);
        let held_returns = held
            .map(|known| &known.record)
            .any(|record| named.contains(record));
        let gone_returns = self.gone.iter().any(|gone| named.contains(&gone.record));
        self.sample = match self.sample {
            None => (held_returns || gone_returns).then_some(named.len()),
            // The smaller answer that was taken for whole was none.
            Some(least) if gone_returns => Some(self.believed.take().map_or(least, |size| least.min(size))),
            learnt => learnt,
        };
        if self.repeats >= repetitions(named.len(), self.records.len()) {
            self.sample = None;
        }
        let patience = match self.sample {
            Some(least) if named.len() >= least => patience(named.len(), self.records.len()),
            Some(_) => {
                self.believed = Some(named.len());
                0
            }
            None if suspicious => SUSPECTED_FOR,
            None => 0,
        };

        for known in &mut self.records {
            if named.contains(&known.record) {
                known.missed = 0;
                known.seen = now;
            } else if good.speaks_of(&known.record) {
                known.missed = known.missed.saturating_add(1);
            }
        }
        for gone in &mut self.gone {
            gone.answers += 1;
        }
        let dropped = self.records.extract_if(.., |known| known.missed > patience);
        let dropped: Vec<Record> = dropped.map(|known| known.record).collect();
        self.gone
            .retain(|gone| gone.answers <= COMES_BACK_WITHIN && !named.contains(&gone.record));
        let room = GONE_MAX.saturating_sub(self.gone.len());
        let gone = dropped.into_iter().take(room);
        self.gone.extend(gone.map(|record| Gone { record, answers: 0 }));

        let known: HashSet<Record> = self.records.iter().map(|known| known.record.clone()).collect();
        let room = RECORDS_MAX.saturating_sub(known.len());
        let new = good.records.iter().filter(|record| !known.contains(*record));
        self.records.extend(new.take(room).map(|record| Remembered {
            record: record.clone(),
            seen: now,
            missed: 0,
        }));
        self.last.clone_from(&good.records);
        self.good = Some(Told {
            at: now,
            ttl: good.ttl,
            found_as: good.found_as.clone(),
            from: good.from.to_string(),
        });
    }

    /// Lets go of what is too old. `true`: all of it, because DNS has failed for too long.
    pub(super) fn expire(&mut self, keep: Duration, now: Instant) -> bool {
        if self.ends(keep).is_some_and(|end| end <= now) {
            self.records.clear();
            self.gone.clear();
            self.last.clear();
            (self.repeats, self.sample, self.believed) = (0, None, None);
            if let Some(failing) = &mut self.failing {
                failing.is_over = true;
            }
            return true;
        }
        if self.failing.is_none() {
            self.records
                .retain(|known| known.missed == 0 || now.saturating_duration_since(known.seen) <= keep);
        }
        false
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
        self.last.iter()
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
        self.sample.is_some()
    }
}

/// How often in a row an answer of `named` of `all` is repeated by more than chance.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of records, and a number of answers between 3 and 20"
)]
fn repetitions(named: usize, all: usize) -> u32 {
    // So many samples there are: the binomial coefficient, whose logarithm this is.
    let few = named.min(all.saturating_sub(named));
    let samples: f64 = (0..few)
        .map(|step| ((all - step) as f64 / (step + 1) as f64).ln())
        .sum();
    let repeated = (-BY_CHANCE.ln() / samples).ceil();
    repeated.clamp(REPEATED_MIN, REPEATED_MAX) as u32
}

/// How many answers in a row may lack a record that is there, when each names `named` of `all` at random.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of records, and a number of answers between 1 and 1000"
)]
fn patience(named: usize, all: usize) -> u32 {
    if all <= named {
        return 1;
    }
    let lacked = 1.0 - named as f64 / all as f64;
    (BY_CHANCE.ln() / lacked.ln()).ceil().clamp(1.0, MISSED_MAX) as u32
}

#[cfg(test)]
mod tests;
