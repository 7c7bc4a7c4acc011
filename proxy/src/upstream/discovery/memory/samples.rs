//! Whether the answers for one family of a name are whole or samples, and for how long what they lack may stay.
//!
//! A server that samples names **as many each time**, and what one answer lacks **comes back** in another soon. A whole
//! server shows each alone: instances that restart come back, but by answers of other sizes or to all that is known;
//! deployments name as many, but nothing comes back. So a return counts twice where every answer since was of one size,
//! once where not, and not at all where the answer names all that is known; and repetitions take from the count, since
//! samples hardly ever repeat.

use std::collections::HashSet;

use super::Remembered;
use crate::upstream::discovery::answer::Record;

/// Answers for which a record that was dropped is known by its coming back. A sample of 8 of 100 names one of the dropped
/// ones within so many nearly always.
const COMES_BACK_WITHIN: u32 = 8;

/// Dropped records that are known by their coming back: enough to learn what a name's answers are.
const GONE_MAX: usize = 256;

/// Answers for which what a suspicious answer lacked is kept.
const SUSPECTED_FOR: u32 = 3;

/// The count of returns that makes answers samples: two answers of one size that bring something back, which a rollback
/// or an address that is given again does once. Samples of 8 of 30 reach it by the fourth answer.
const RETURNS_ENOUGH: u32 = 4;

/// Returns among answers of one size.
const RETURN_STEADY: u32 = 2;

/// Returns among answers of several sizes: a deployment that gives addresses again looks like that for some steps.
const RETURN_UNSTEADY: u32 = 1;

/// From so many repetitions in a row on each takes from the count. One may come of a resolver on the way, which gives
/// the same sample again from its cache.
const REPEATED_COUNTS: u32 = 2;

/// So many repetitions are waited for at least: a resolver on the way may give the same sample again from its cache.
const REPEATED_MIN: f64 = 3.0;

/// So many at most: two records of which one is named are told from one by as many.
const REPEATED_MAX: f64 = 20.0;

/// The chance that is taken of judging wrong: that a record which is there is missing from as many answers as are waited
/// for, and that samples repeat one another as often.
const BY_CHANCE: f64 = 1e-6;

/// The most answers that are waited for. `keep` is a bound too.
const MISSED_MAX: f64 = 1000.0;

/// What the answers for one family were like.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples {
    gone: Vec<Gone>,
    /// The last answer.
    last: Vec<Record>,
    /// How often in a row it was given again.
    repeats: u32,
    /// How many answers in a row, the last included, were of its size.
    steady: u32,
    /// What speaks for samples, up to [`RETURNS_ENOUGH`].
    returns: u32,
    /// How many an answer names that is a sample of all; `None`: answers are whole, as far as is known.
    sample: Option<usize>,
    /// The size of an answer that was taken for whole because it was smaller.
    believed: Option<usize>,
}

/// A record that was dropped.
#[derive(Clone, Debug)]
struct Gone {
    record: Record,
    /// How many answers in a row have lacked it.
    missed: u32,
    /// How many of them came since it was dropped.
    answers: u32,
}

impl Samples {
    /// The last answer, in its order.
    pub(super) fn last(&self) -> &[Record] {
        &self.last
    }

    /// Whether an answer names only some.
    pub(super) const fn is_sampled(&self) -> bool {
        self.sample.is_some()
    }

    /// Whether the last answer was a sample that was given before: a cache on the way says nothing new by it.
    pub(super) const fn is_old_sample(&self) -> bool {
        self.is_sampled() && self.repeats > 0
    }

    /// Takes in an answer that was cut: it says nothing of what it does not name, nor of what such answers are like.
    pub(super) fn take_cut(&mut self, named: Vec<Record>) {
        (self.repeats, self.steady) = (0, 0);
        self.last = named;
    }

    /// Takes in an answer beside the records that are `used`, and says how many answers in a row may lack one of them.
    pub(super) fn take(&mut self, answer: Vec<Record>, used: &[&Remembered]) -> u32 {
        let named: HashSet<&Record> = answer.iter().collect();
        let same = self.last.len() == named.len() && self.last.iter().all(|record| named.contains(record));
        let shared = self.last.iter().filter(|record| named.contains(record)).count();
        let suspicious = !same && named.len() >= 2 && self.last.len() == named.len() && shared > 0;
        self.repeats = if same { self.repeats.saturating_add(1) } else { 0 };
        if self.last.len() == named.len() {
            self.steady = self.steady.saturating_add(1);
        } else {
            self.steady = 1;
        }
        self.learn_what_they_are(&named, used);
        let patience = match self.sample {
            Some(least) if named.len() >= least => patience(named.len(), used.len()),
            Some(_) => {
                self.believed = Some(named.len());
                0
            }
            None if suspicious => SUSPECTED_FOR,
            None => 0,
        };
        for gone in &mut self.gone {
            gone.answers += 1;
            gone.missed = gone.missed.saturating_add(1);
        }
        self.gone
            .retain(|gone| gone.answers <= COMES_BACK_WITHIN && !named.contains(&gone.record));
        drop(named);
        self.last = answer;
        patience
    }

    fn learn_what_they_are(&mut self, named: &HashSet<&Record>, used: &[&Remembered]) {
        let held = used.iter().map(|known| (&known.record, known.missed));
        let gone = self.gone.iter().map(|gone| (&gone.record, gone.missed));
        let back = held
            .chain(gone)
            .filter(|(record, missed)| *missed > 0 && named.contains(record));
        // It was named, then lacked so often, and is named now: all by answers of one size?
        let is_steady = |missed: u32| self.steady >= missed.saturating_add(2);
        let (returned, steadily) = back.fold((false, false), |(_, steadily), (_, missed)| {
            (true, steadily || is_steady(missed))
        });
        let gone_returns = self.gone.iter().any(|gone| named.contains(&gone.record));
        let is_all = used.iter().all(|known| named.contains(&known.record))
            && self.gone.iter().all(|gone| named.contains(&gone.record));
        if returned && !is_all {
            self.returns += if steadily { RETURN_STEADY } else { RETURN_UNSTEADY };
            self.returns = self.returns.min(RETURNS_ENOUGH);
        } else if self.repeats >= REPEATED_COUNTS {
            self.returns = self.returns.saturating_sub(1);
        }
        self.sample = match self.sample {
            None => (self.returns >= RETURNS_ENOUGH).then_some(named.len()),
            // The smaller answer that was taken for whole was none.
            Some(least) if gone_returns && !is_all => {
                Some(self.believed.take().map_or(least, |size| least.min(size)))
            }
            learnt => learnt,
        };
        // One of another size that names all there is: samples of one size never do.
        let is_whole = is_all && self.steady == 1;
        if is_whole || self.repeats >= repetitions(named.len(), used.len()) {
            (self.sample, self.believed, self.returns) = (None, None, 0);
        }
    }

    /// These were dropped, after so many answers had lacked each.
    pub(super) fn dropped(&mut self, records: impl Iterator<Item = Remembered>) {
        let room = GONE_MAX.saturating_sub(self.gone.len());
        self.gone.extend(records.take(room).map(|known| Gone {
            record: known.record,
            missed: known.missed,
            answers: 0,
        }));
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
