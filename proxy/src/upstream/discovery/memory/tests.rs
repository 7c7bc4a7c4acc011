//! What is remembered of a name, over made-up time.

use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::upstream::discovery::answer::{AnsweredBy, Good, Heard};

const BOUNDS: Bounds = Bounds {
    floor: Duration::from_secs(1),
    ceiling: Duration::from_secs(60),
};

const KEEP: Duration = Duration::from_secs(3600);

fn record(number: u32) -> Record {
    Record::Address(IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number)))
}

fn good(numbers: impl IntoIterator<Item = u32>) -> Good {
    Good {
        records: numbers.into_iter().map(record).collect(),
        ttl: Duration::from_secs(10),
        heard: Heard::WHOLE,
        found_as: "a.".to_owned(),
        from: AnsweredBy::Hosts,
    }
}

fn bad(why: Why) -> Answer {
    Err(Bad { why, ttl: None })
}

/// A memory and its clock, which goes on by 10 s with each answer.
struct Told {
    memory: Memory,
    now: Instant,
}

impl Told {
    fn new() -> Self {
        Self {
            memory: Memory::default(),
            now: Instant::now(),
        }
    }

    fn learns(&mut self, answer: &Answer) -> (Turn, Duration) {
        self.now += Duration::from_secs(10);
        let turn = self
            .memory
            .learn(answer, BOUNDS, (self.now, SystemTime::UNIX_EPOCH));
        self.memory.expire(KEEP, self.now);
        turn
    }

    fn answered(&mut self, numbers: impl IntoIterator<Item = u32>) -> Vec<Record> {
        self.learns(&Ok(good(numbers)));
        self.used()
    }

    fn used(&self) -> Vec<Record> {
        let mut used: Vec<Record> = self
            .memory
            .records()
            .iter()
            .map(|known| known.record.clone())
            .collect();
        used.sort_by_key(Record::address);
        used
    }
}

fn records(numbers: impl IntoIterator<Item = u32>) -> Vec<Record> {
    numbers.into_iter().map(record).collect()
}

#[test]
fn a_whole_answer_is_believed_at_once() {
    for (before, after) in [
        (vec![1, 2, 3], vec![1, 2]),
        (vec![1, 2, 3], vec![1, 2, 3, 4]),
        (vec![1, 2, 3, 4], vec![5]),
        (vec![1, 2], vec![3, 4]),
        (vec![1], vec![2]),
        (vec![1, 2, 3], vec![3, 4]),
    ] {
        let mut told = Told::new();
        told.answered(before.clone());
        let used = told.answered(after.clone());
        assert_eq!(used, records(after.clone()), "{before:?} then {after:?}");
    }
}

#[test]
fn one_that_is_replaced_stays_for_one_answer_more() {
    let mut told = Told::new();
    told.answered([1, 2, 3]);
    assert_eq!(told.answered([1, 2, 4]), records([1, 2, 3, 4]));
    assert_eq!(told.answered([4, 2, 1]), records([1, 2, 4]));
    // A deployment that goes on holds each back for three answers.
    let mut told = Told::new();
    told.answered([1, 2, 3]);
    for step in 0..20 {
        let used = told.answered([step + 2, step + 3, step + 4]);
        assert!(used.len() <= 3 + 3, "{used:?}");
    }
}

#[test]
fn samples_are_joined_to_the_whole_without_coming_and_going() {
    for (sample, all) in [(8, 30_u32), (3, 10), (8, 100), (1, 4)] {
        for seed in 0..5 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut told = Told::new();
            let mut left = 0;
            for round in 0..800 {
                let numbers = rng.choose_multiple(0..all, sample);
                let before = told.used();
                let after = told.answered(numbers);
                let lost = before.iter().filter(|record| !after.contains(record)).count();
                if round > 300 {
                    assert_eq!(
                        after.len(),
                        all as usize,
                        "{sample} of {all}, seed {seed}, round {round}"
                    );
                    left += lost;
                }
            }
            assert!(told.memory.is_sampled());
            assert_eq!(left, 0, "{sample} of {all}, seed {seed}");
        }
    }
}

#[test]
fn what_left_a_sampled_name_goes_and_the_rest_stays() {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut told = Told::new();
    for _ in 0..300 {
        told.answered(rng.choose_multiple(0..30, 8));
    }
    assert_eq!(told.used().len(), 30);
    let mut answers = 0;
    while told.used().len() > 20 {
        told.answered(rng.choose_multiple(0..20, 8));
        answers += 1;
    }
    assert_eq!(told.used(), records(0..20));
    assert!((20..60).contains(&answers), "{answers}");
    // Fewer than a sample are all.
    assert_eq!(told.answered([1, 2, 3, 4, 5]), records([1, 2, 3, 4, 5]));
}

#[test]
fn instances_that_restart_in_turn_make_no_sample_of_a_whole_answer() {
    // Each answer is given as often as a step of the deployment takes.
    for steps in [1, 2, 3, 10] {
        for answers in [
            // Some at once, and all back.
            &[&[1, 2, 3][..], &[3], &[1, 2], &[1, 2, 3]][..],
            // One after the other under its old address.
            &[
                &[1, 2, 3],
                &[2, 3],
                &[1, 2, 3],
                &[1, 3],
                &[1, 2, 3],
                &[1, 2],
                &[1, 2, 3],
            ],
            // One after the other under a new one.
            &[
                &[1, 2, 3],
                &[2, 3],
                &[2, 3, 4],
                &[3, 4],
                &[3, 4, 5],
                &[4, 5],
                &[4, 5, 6],
            ],
            // The new one first.
            &[
                &[1, 2, 3],
                &[1, 2, 3, 4],
                &[2, 3, 4],
                &[2, 3, 4, 5],
                &[3, 4, 5],
                &[3, 4, 5, 6],
                &[4, 5, 6],
            ],
            // Under an address that an earlier one had.
            &[
                &[1, 2, 3],
                &[2, 3],
                &[2, 3, 4],
                &[3, 4],
                &[3, 4, 1],
                &[4, 1],
                &[4, 1, 2],
            ],
            // Replaced, and rolled back.
            &[&[1, 2], &[3, 2], &[1, 2]],
            &[&[1], &[2], &[1]],
        ] {
            let mut told = Told::new();
            for (place, answer) in answers.iter().enumerate() {
                for _ in 0..steps {
                    told.answered(answer.iter().copied());
                    assert!(!told.memory.is_sampled(), "{answers:?} {place} {steps}");
                }
                // What is not named is held no longer than a suspicion.
                if steps > 1 || place > 0 && answers[place - 1].len() != answer.len() {
                    let mut whole = records(answer.iter().copied());
                    whole.sort_by_key(Record::address);
                    assert_eq!(told.used(), whole, "{answers:?} {place} {steps}");
                }
            }
        }
    }
}

#[test]
fn samples_that_a_cache_on_the_way_gives_again_are_known_as_well() {
    for given in [2, 3] {
        let mut rng = fastrand::Rng::with_seed(given);
        let mut told = Told::new();
        for round in 0..300 {
            let sample = rng.choose_multiple(0..30, 8);
            for _ in 0..given {
                told.answered(sample.iter().copied());
            }
            assert!(round < 100 || told.used().len() == 30, "{given} {round}");
        }
    }
}

#[test]
fn samples_of_several_sizes_are_known_too_and_a_whole_answer_after_them_as_well() {
    let mut rng = fastrand::Rng::with_seed(11);
    let mut told = Told::new();
    for _ in 0..300 {
        let size = rng.usize(4..=8);
        told.answered(rng.choose_multiple(0..30, size));
    }
    assert_eq!(told.used().len(), 30);
    // All there is, of a size that none had.
    assert_eq!(told.answered(0..30), records(0..30));
    assert!(!told.memory.is_sampled());
    assert_eq!(told.answered(0..29), records(0..29));
}

#[test]
fn failures_keep_the_last_good_answer_for_as_long_as_is_said_and_no_longer() {
    let why = [
        Why::NoSuchName,
        Why::Empty,
        Why::ServerFailed,
        Why::Refused,
        Why::TimedOut,
        Why::Other("odd".to_owned()),
    ];
    for why in why {
        let mut told = Told::new();
        told.answered([1, 2]);
        let good_at = told.now;
        assert_eq!(told.learns(&bad(why.clone())).0, Turn::Fails);
        assert_eq!(told.learns(&bad(why.clone())).0, Turn::None);
        assert_eq!(told.used().len(), 2);
        assert_eq!(told.memory.ends(KEEP), Some(good_at + KEEP));
        assert!(
            !told
                .memory
                .expire(KEEP, good_at + KEEP - Duration::from_millis(1))
        );
        assert!(told.memory.expire(KEEP, good_at + KEEP));
        assert!(told.used().is_empty() && told.memory.ends(KEEP).is_none());
        assert_eq!(
            told.memory.failing().map(|failing| failing.why.clone()),
            Some(why)
        );
        assert_eq!(told.learns(&Ok(good([3]))).0, Turn::Recovers);
        assert_eq!(told.used(), records([3]));
    }
}

#[test]
fn nothing_is_kept_where_that_is_said() {
    let mut told = Told::new();
    told.answered([1]);
    told.memory
        .learn(&bad(Why::NoSuchName), BOUNDS, (told.now, SystemTime::UNIX_EPOCH));
    assert!(told.memory.expire(Duration::ZERO, told.now));
    assert!(told.used().is_empty());
}

#[test]
fn the_next_question_comes_when_the_ttl_is_over_within_bounds() {
    let seconds = Duration::from_secs;
    let wait = |ttl| {
        let answer = Ok(Good { ttl, ..good([1]) });
        Told::new().learns(&answer).1
    };
    assert_eq!(wait(seconds(0)), seconds(1));
    assert_eq!(wait(seconds(30)), seconds(30));
    assert_eq!(wait(seconds(900)), seconds(60));
    let negative = |ttl| {
        let why = Why::NoSuchName;
        Told::new().learns(&Err(Bad { why, ttl })).1
    };
    assert_eq!(negative(Some(seconds(0))), seconds(1));
    assert_eq!(negative(Some(seconds(7))), seconds(7));
    assert_eq!(negative(Some(seconds(900))), seconds(60));
    assert_eq!(negative(None), NEGATIVE_DEFAULT);
    let mut told = Told::new();
    let waits: Vec<u64> = (0..5)
        .map(|_| told.learns(&bad(Why::TimedOut)).1.as_secs())
        .collect();
    assert_eq!(waits, [1, 2, 4, 5, 5]);
}

#[test]
fn each_family_has_its_own_last_good_answer() {
    let six: IpAddr = "2001:db8::1".parse().unwrap();
    let mut both = good([1, 2]);
    both.records.push(Record::Address(six));
    let mut told = Told::new();
    told.learns(&Ok(both));
    let seen = told.now;
    let half = |six: Word| {
        let heard = Heard { six, ..Heard::WHOLE };
        Ok(Good { heard, ..good([1]) })
    };
    for word in [
        Word::Awaited,
        Word::Failed(Why::TimedOut),
        Word::Failed(Why::ServerFailed),
    ] {
        let kept = usize::from(word != Word::Awaited);
        assert_eq!(told.learns(&half(word)).0, Turn::None);
        assert_eq!(told.used(), [record(1), Record::Address(six)]);
        assert_eq!((told.memory.kept(), told.memory.troubles().count()), (kept, kept));
        assert!(told.memory.last().eq(&[record(1), Record::Address(six)]));
    }
    // Late is soon enough.
    let late = |found: &Found, told: &mut Told| {
        told.memory
            .learn_late(Version::V6, found, (told.now, SystemTime::UNIX_EPOCH))
    };
    let ttl = Duration::from_secs(3);
    let addresses = Found::Addresses {
        addresses: vec![six],
        ttl,
        cut: false,
    };
    let mut other = told.memory.clone();
    assert_eq!(late(&addresses, &mut told), Some(ttl));
    assert_eq!((told.memory.kept(), told.memory.troubles().count()), (0, 0));
    assert_eq!(told.used(), [record(1), Record::Address(six)]);
    // That there is none is believed, and what was not heard of for too long is let go of.
    let none = Found::Nothing(Bad {
        why: Why::Empty,
        ttl: None,
    });
    late(&none, &mut told);
    assert_eq!(told.used(), [record(1)]);
    assert!(!other.expire(KEEP, seen + KEEP + Duration::from_secs(1)));
    assert_eq!(other.records().len(), 1);
}

#[test]
fn an_answer_that_was_cut_takes_nothing_away_and_what_it_names_is_used() {
    let cut = |numbers: [u32; 2]| {
        let four = Word::Cut;
        Ok(Good {
            heard: Heard { four, ..Heard::WHOLE },
            ..good(numbers)
        })
    };
    let mut told = Told::new();
    told.learns(&cut([1, 2]));
    assert_eq!(told.used(), records([1, 2]));
    assert_eq!(told.memory.kept(), 0);
    told.learns(&cut([2, 3]));
    assert_eq!((told.used(), told.memory.kept()), (records([1, 2, 3]), 1));
    assert!(
        told.memory
            .troubles()
            .all(|(_, trouble)| trouble.why == Why::Truncated)
    );
    // Nothing is kept that is not named where that is said, and what is named is no memory.
    told.memory
        .expire(Duration::ZERO, told.now + Duration::from_secs(1));
    assert_eq!(told.used(), records([2, 3]));
    assert_eq!(told.answered([4, 5, 6]), records([4, 5, 6]));
    assert_eq!(told.memory.troubles().count(), 0);
}

#[test]
fn the_order_of_the_last_good_answer_is_known() {
    let mut told = Told::new();
    told.answered([2, 1]);
    assert!(told.memory.last().eq(&[record(2), record(1)]));
    told.answered([1, 2]);
    assert!(told.memory.last().eq(&[record(1), record(2)]));
    told.learns(&bad(Why::TimedOut));
    assert!(told.memory.last().eq(&[record(1), record(2)]));
    told.memory.expire(KEEP, told.now + KEEP);
    assert_eq!(told.memory.last().count(), 0);
}

#[test]
fn a_sampled_record_is_not_kept_for_longer_than_is_said() {
    let mut told = Told::new();
    let mut rng = fastrand::Rng::with_seed(3);
    for _ in 0..100 {
        told.answered(rng.choose_multiple(0..30, 8));
    }
    assert!(told.memory.is_sampled());
    told.now += KEEP;
    assert!(told.answered(rng.choose_multiple(0..30, 8)).len() < 10);
}

#[test]
fn what_is_kept_goes_while_a_question_is_under_way() {
    let mut told = Told::new();
    told.answered([1]);
    let (answered, second) = (told.now, Duration::from_secs(1));
    // The first question after it is under way for as long as a server is given, however short what was found is kept.
    for (keep, began, end) in [(10, 1, 10), (10, 9, 14), (0, 1, 6)] {
        let end_of = told
            .memory
            .end_unanswered(keep * second, answered + began * second);
        assert_eq!(end_of, Some(answered + end * second), "{keep} {began}");
    }
    // Once one was in vain there is no more time than what is kept has.
    told.memory
        .learn(&bad(Why::TimedOut), BOUNDS, (told.now, SystemTime::UNIX_EPOCH));
    let end = told.memory.end_unanswered(10 * second, answered + 9 * second);
    assert_eq!(end, Some(answered + 10 * second));
}
