//! Which service has which virtual address: one each, drawn from its name, so that it is the same on every sidecar, after
//! every push and every start.
//!
//! Pure: names in, addresses out. Where two names draw the same address, the one that stands first in the order of the
//! alphabet has it and the other draws again. So an address moves by a push only if the push brings or takes a service
//! that drew the same and stands before. What is answered with an address is not known here.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use outrigger_config::names::Range;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// How often a name draws before it takes the next free address from its first on: in a range that is half full one in
/// sixty thousand comes to that.
const DRAWS_MAX: u64 = 16;

/// The virtual addresses of the services.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    of: HashMap<Arc<str>, Ipv4Addr>,
    at: HashMap<Ipv4Addr, Arc<str>>,
    /// Services for which no address was left.
    pub(crate) without: Vec<String>,
}

impl Addresses {
    /// Gives each an address of the range.
    pub(super) fn give<'a>(range: Range, services: impl Iterator<Item = &'a str>) -> Self {
        let mut services: Vec<_> = services.collect();
        services.sort_unstable();
        let (mut given, mut without) = (Self::default(), Vec::new());
        for service in services {
            match given.draw(range, service) {
                Some(address) => {
                    let service: Arc<str> = service.into();
                    given.of.insert(Arc::clone(&service), address);
                    given.at.insert(address, service);
                }
                None => without.push(service.to_owned()),
            }
        }
        Self { without, ..given }
    }

    /// A free address for a service; `None`: there is none.
    fn draw(&self, range: Range, service: &str) -> Option<Ipv4Addr> {
        let size = range.size();
        let drawn = |seed| {
            let drawn = xxh3_64_with_seed(service.as_bytes(), seed) % u64::from(size);
            // What is left of a division by 32 bits has no more than them.
            u32::try_from(drawn).unwrap_or_default()
        };
        let is_free = |address: &Ipv4Addr| !self.at.contains_key(address);
        let again = (0..DRAWS_MAX).map(|seed| range.at(drawn(seed)));
        if let Some(address) = again.into_iter().find(is_free) {
            return Some(address);
        }
        // Of one more place than there are addresses taken, one is free.
        let taken = u32::try_from(self.at.len()).unwrap_or(size);
        if taken >= size {
            return None;
        }
        let first = drawn(0);
        let next = (0..=taken).map(|further| range.at((first % size + further % size) % size));
        next.into_iter().find(is_free)
    }

    /// The address of a service.
    pub(crate) fn of(&self, service: &str) -> Option<Ipv4Addr> {
        self.of.get(service).copied()
    }

    /// The service of an address.
    pub(crate) fn at(&self, address: Ipv4Addr) -> Option<Arc<str>> {
        self.at.get(&address).map(Arc::clone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(range: &str, services: &[&str]) -> Addresses {
        Addresses::give(range.parse().unwrap(), services.iter().copied())
    }

    #[test]
    fn the_address_of_a_name_is_the_same_for_ever() {
        // Written down, so that another version that draws otherwise is seen: sidecars of two versions live side by side.
        let addresses = given("127.64.0.0/16", &["reviews", "ratings"]);
        assert_eq!(addresses.of("reviews"), Some(Ipv4Addr::new(127, 64, 46, 249)));
        assert_eq!(addresses.of("ratings"), Some(Ipv4Addr::new(127, 64, 36, 106)));
    }

    #[test]
    fn the_address_of_a_name_does_not_depend_on_order_or_company() {
        let names: Vec<String> = (0..200).map(|number| format!("service-{number}")).collect();
        let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
        let all = given("240.0.0.0/4", &names);
        names.reverse();
        let turned = given("240.0.0.0/4", &names);
        for name in &names {
            let address = all.of(name).unwrap();
            assert_eq!(turned.of(name), Some(address));
            assert_eq!(given("240.0.0.0/4", &[name]).of(name), Some(address));
            assert_eq!(all.at(address).as_deref(), Some(*name));
        }
    }

    #[test]
    fn of_two_names_that_draw_the_same_address_the_first_by_alphabet_has_it() {
        let names: Vec<String> = (0..100).map(|number| format!("s{number:03}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let alone = |name: &str| given("127.64.0.0/24", &[name]).of(name).unwrap();
        // Of a hundred names in 254 addresses some meet.
        let (first, second) = (0..names.len())
            .flat_map(|a| (a + 1..names.len()).map(move |b| (a, b)))
            .map(|(a, b)| (names[a], names[b]))
            .find(|(a, b)| alone(a) == alone(b))
            .unwrap();
        for order in [[first, second], [second, first]] {
            let both = given("127.64.0.0/24", &order);
            assert_eq!(both.of(first), Some(alone(first)));
            assert_ne!(both.of(second), Some(alone(first)));
            assert!(both.of(second).is_some());
        }
    }

    #[test]
    fn every_address_of_a_range_is_given_before_any_service_goes_without() {
        let names: Vec<String> = (0..256).map(|number| format!("s{number:03}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let full = given("127.64.0.0/24", &names[..254]);
        assert!(full.without.is_empty());
        let distinct: std::collections::HashSet<_> = names[..254].iter().map(|name| full.of(name)).collect();
        assert_eq!(distinct.len(), 254);
        let over = given("127.64.0.0/24", &names);
        assert_eq!(over.without, ["s254", "s255"]);
        assert_eq!(over.of("s254"), None);
    }
}
