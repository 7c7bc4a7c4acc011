//! Shares by weight: a place in proportion to its weight, for any even sequence of fractions.

/// The golden ratio as a fraction of 2⁶⁴. Steps of this length fall into the gaps that earlier steps left (Weyl's
/// equidistribution), so after n turns each place has had its share within about log n turns, where dice would be
/// off by √n.
const GOLDEN_STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// Weights in the order of their places.
#[derive(Debug)]
pub(crate) struct Shares {
    /// The running sum after each place; the last is the whole.
    sums: Vec<u64>,
}

impl Shares {
    pub(crate) fn new(weights: impl IntoIterator<Item = u32>) -> Self {
        let mut sum = 0;
        let sums = weights.into_iter().map(|weight| {
            sum += u64::from(weight);
            sum
        });
        Self { sums: sums.collect() }
    }

    /// The fraction of 2⁶⁴ for a turn: turns that follow one another spread evenly.
    pub(crate) fn fraction(turn: u64) -> u64 {
        turn.wrapping_mul(GOLDEN_STEP)
    }

    /// The sum of all weights.
    pub(crate) fn whole(&self) -> u64 {
        self.sums.last().copied().unwrap_or(0)
    }

    /// The weight of a place.
    pub(crate) fn of(&self, place: usize) -> u64 {
        let before = place.checked_sub(1).map_or(0, |before| self.sums[before]);
        self.sums[place] - before
    }

    /// The place in whose share a fraction of 2⁶⁴ falls; the first if there is no weight at all.
    pub(crate) fn at(&self, fraction: u64) -> usize {
        let whole = self.whole();
        if self.sums.len() < 2 || whole == 0 {
            return 0;
        }
        let point = (u128::from(fraction) * u128::from(whole)) >> 64;
        self.sums.partition_point(|sum| u128::from(*sum) <= point)
    }

    /// The place among some of them, in the proportion of their weights, for a fraction that fell in the share of
    /// `place`, which is shared out: where in that share it fell decides. `None` if they have no weight.
    pub(crate) fn instead_of(
        &self,
        place: usize,
        fraction: u64,
        some: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let fraction = self.within(place, fraction);
        let weights = || {
            (0..self.sums.len()).filter_map(|place| {
                let weight = self.of(place);
                (weight > 0 && some(place)).then_some((place, weight))
            })
        };
        let whole: u64 = weights().map(|(_, weight)| weight).sum();
        let mut point = (u128::from(fraction) * u128::from(whole)) >> 64;
        for (place, weight) in weights() {
            if point < u128::from(weight) {
                return Some(place);
            }
            point -= u128::from(weight);
        }
        None
    }

    /// Where in the share of a place a fraction fell, as a fraction of 2⁶⁴ of that share.
    fn within(&self, place: usize, fraction: u64) -> u64 {
        let weight = u128::from(self.of(place)).max(1);
        let begin = u128::from(self.sums[place] - self.of(place)) << 64;
        let point = u128::from(fraction) * u128::from(self.whole());
        u64::try_from(point.saturating_sub(begin) / weight).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_that_is_given_up_is_divided_in_the_proportion_of_the_others() {
        let shares = Shares::new([50, 30, 20, 0]);
        for gone in 0..3 {
            let mut counts = [0; 4];
            for turn in 0..10_000 {
                let fraction = Shares::fraction(turn);
                let place = match shares.at(fraction) {
                    place if place == gone => shares.instead_of(gone, fraction, |place| place != gone),
                    place => Some(place),
                };
                counts[place.unwrap()] += 1;
            }
            let left: u64 = (0..3)
                .filter(|place| *place != gone)
                .map(|place| shares.of(place))
                .sum();
            for place in 0..4 {
                let expected = if place == gone {
                    0
                } else {
                    10_000 * shares.of(place) / left
                };
                assert!(expected.abs_diff(counts[place]) <= 20, "{gone}: {counts:?}");
            }
        }
        assert_eq!(shares.instead_of(0, 7, |_| false), None);
        assert_eq!(
            shares.instead_of(0, 7, |place| place == 3),
            None,
            "no weight, no share"
        );
    }
}
