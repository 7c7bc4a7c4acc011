//! A table that leads a key to the same endpoint, as far as endpoints come and go: Maglev (Eisenbud and others, NSDI
//! 2016, section 3.4). Built when the set of endpoints changes, on the control thread; looked up by every request.
//!
//! Hashes are xxh3's of the address as text, so that every sidecar and every version of it makes the same table.

use std::net::SocketAddr;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Places in the table. A prime, so that every step length walks through all of them; a hundred for each of 655
/// endpoints, which keeps their shares within a few percent; the size that Envoy has too. Two bytes each: 128 KiB
/// for a backend that asks for it.
pub(crate) const TABLE_SIZE: usize = 65_537;

/// The seed of the second hash of an address; any number but 0 does.
const STEP_SEED: u64 = 1;

/// More endpoints than two bytes can name take no part; DNS answers end long before.
const ENDPOINTS_MAX: usize = u16::MAX as usize;

/// For every place the endpoint that it leads to.
#[derive(Debug)]
pub(crate) struct Maglev {
    places: Box<[u16]>,
}

/// An endpoint while the table is built.
struct Filling {
    endpoint: u16,
    weight: u64,
    next: usize,
    step: usize,
    /// What its weight must have grown to for its next turn.
    due: u64,
}

impl Maglev {
    /// The table of these endpoints and weights, in the order in which the caller knows them. `None` for no endpoint.
    pub(crate) fn new(endpoints: &[(SocketAddr, u32)]) -> Option<Self> {
        let mut filling: Vec<(SocketAddr, Filling)> = endpoints
            .iter()
            .take(ENDPOINTS_MAX)
            .zip(0..)
            .map(|((address, weight), endpoint)| {
                let name = address.to_string();
                let filling = Filling {
                    endpoint,
                    weight: u64::from(*weight).max(1),
                    next: place(xxh3_64(name.as_bytes()), TABLE_SIZE),
                    step: place(xxh3_64_with_seed(name.as_bytes(), STEP_SEED), TABLE_SIZE - 1) + 1,
                    due: 0,
                };
                (*address, filling)
            })
            .collect();
        // The order of discovery must not change the table.
        filling.sort_by_key(|(address, _)| *address);
        let heaviest = filling.iter().map(|(_, filling)| filling.weight).max()?;
        let mut places: Vec<Option<u16>> = vec![None; TABLE_SIZE];
        let mut left = TABLE_SIZE;
        let mut round = 0;
        while left > 0 {
            round += 1;
            for (_, filling) in &mut filling {
                // In every round the heaviest has its turn, one of half its weight in every second, and so on.
                if round * filling.weight < filling.due {
                    continue;
                }
                filling.due += heaviest;
                while places[filling.next].is_some() {
                    filling.next = (filling.next + filling.step) % TABLE_SIZE;
                }
                places[filling.next] = Some(filling.endpoint);
                left -= 1;
                if left == 0 {
                    break;
                }
            }
        }
        Some(Self {
            places: places.into_iter().flatten().collect(),
        })
    }

    /// The endpoints for a key: the one that it leads to, then those of the next places, each as often as it stands
    /// there.
    pub(crate) fn from(&self, key: u64) -> impl Iterator<Item = usize> {
        let first = place(key, self.places.len());
        let (before, after) = self.places.split_at(first);
        after.iter().chain(before).map(|endpoint| usize::from(*endpoint))
    }
}

/// A place for a hash. The high bits decide, without a division.
#[expect(clippy::cast_possible_truncation, reason = "the result is below `size`")]
fn place(hash: u64, size: usize) -> usize {
    ((u128::from(hash) * size as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(count: u16) -> Vec<(SocketAddr, u32)> {
        (1..=count)
            .map(|last| {
                (
                    SocketAddr::from(([10, 0, (last >> 8) as u8, last as u8], 15000)),
                    1,
                )
            })
            .collect()
    }

    fn chosen(endpoints: &[(SocketAddr, u32)], keys: u64) -> Vec<SocketAddr> {
        let table = Maglev::new(endpoints).unwrap();
        (0..keys)
            .map(|key| endpoints[table.from(xxh3_64(&key.to_le_bytes())).next().unwrap()].0)
            .collect()
    }

    #[test]
    fn removing_one_of_ten_moves_its_keys_and_hardly_any_other() {
        let ten = addresses(10);
        let mut nine = ten.clone();
        let removed = nine.remove(3).0;
        let (before, after) = (chosen(&ten, 10_000), chosen(&nine, 10_000));
        let moved = before
            .iter()
            .zip(&after)
            .filter(|(before, after)| before != after)
            .count();
        let its_own = before.iter().filter(|address| **address == removed).count();
        assert!(
            moved >= its_own && moved < 2_000,
            "{moved} of 10000, {its_own} of them its own"
        );
    }

    #[test]
    fn the_order_of_discovery_changes_nothing() {
        let ten = addresses(10);
        let mut turned = ten.clone();
        turned.reverse();
        assert_eq!(chosen(&ten, 1_000), chosen(&turned, 1_000));
    }

    #[test]
    fn shares_are_even_and_follow_the_weights() {
        let mut five = addresses(5);
        five[0].1 = 3;
        let chosen = chosen(&five, 70_000);
        for (address, weight) in &five {
            let share = chosen.iter().filter(|chosen| *chosen == address).count();
            let expected = 10_000 * *weight as usize;
            assert!(
                share.abs_diff(expected) < expected / 10,
                "{address}: {share} for weight {weight}"
            );
        }
    }

    #[test]
    fn no_endpoints_make_no_table() {
        assert!(Maglev::new(&[]).is_none());
    }
}
