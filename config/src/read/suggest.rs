//! What a person probably meant by a word that is not known.

use std::cmp::Reverse;

/// The nearest of the allowed words, if it is near enough to be a slip of the hand.
pub(super) fn nearest<'a>(word: &str, allowed: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > WORD_MAX {
        return None;
    }
    let word = word.to_lowercase();
    allowed
        .into_iter()
        .take(CANDIDATES_MAX)
        .filter(|candidate| candidate.len() <= WORD_MAX)
        .map(|candidate| (distance(&word, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| {
            *distance <= slips(word.chars().count().max(candidate.chars().count()))
        })
        .min_by_key(|(distance, candidate)| (*distance, Reverse(begins_alike(&word, candidate))))
        .map(|(_, candidate)| candidate)
}

/// How many letters two words begin with together: hands slip in the middle and at the end, so that of words equally near
/// it is the one that begins alike.
fn begins_alike(word: &str, candidate: &str) -> usize {
    let pairs = word.chars().zip(candidate.chars());
    pairs.take_while(|(left, right)| left == right).count()
}

/// Of a longer list only the beginning is compared: a file may name thousands of backends and misspell each.
const CANDIDATES_MAX: usize = 256;

/// Longer words are not compared: the cost is the product of the lengths, and no field is half as long.
const WORD_MAX: usize = 64;

/// How many slips a word of that length may have: `host` is not `port`, but `retries` is `retry`.
const fn slips(length: usize) -> usize {
    match length {
        0..=2 => 0,
        3..=4 => 1,
        5..=6 => 2,
        _ => 3,
    }
}

/// How many letters must be added, left out, changed or swapped with their neighbour.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=right.len()).collect();
    let mut previous = None;
    for (row, here) in left.chars().enumerate() {
        let mut line = vec![row + 1];
        for (column, there) in right.iter().enumerate() {
            let changed = last[column] + usize::from(here != *there);
            let mut best = changed.min(last[column + 1] + 1).min(line[column] + 1);
            if column > 0 && previous == Some(*there) && right[column - 1] == here {
                best = best.min(before[column - 1] + 1);
            }
            line.push(best);
        }
        previous = Some(here);
        before = std::mem::replace(&mut last, line);
    }
    last[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: [&str; 7] = ["name", "match", "to", "redirect", "timeout", "retry", "port"];

    #[test]
    fn a_slip_of_the_hand_is_understood() {
        for (word, meant) in [
            ("retires", "retry"),
            ("retries", "retry"),
            ("nmae", "name"),
            ("timeouts", "timeout"),
            ("Match", "match"),
        ] {
            assert_eq!(nearest(word, FIELDS), Some(meant), "{word}");
        }
    }

    #[test]
    fn another_word_is_not_taken_for_a_slip() {
        for word in ["host", "weight", "x", "", "backend", &"retry".repeat(100)] {
            assert_eq!(nearest(word, FIELDS), None, "{word}");
        }
    }
}
