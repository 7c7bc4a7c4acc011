//! How many connections one source may have, so that none takes the place of all others.
//!
//! A source is an address, of which an IPv6 /64 is one; once a certificate has been shown it is the bearer of that
//! certificate, wherever it comes from: ten thousand sidecars behind one address that translates for them are ten thousand
//! sources as soon as they have proved who they are.
//!
//! **Does not** bound all connections together: the accept loop does.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ca::limits::Who;

/// Connections of one source that is not this machine, unless the operator says another number: as many sidecars as a
/// cluster behind one address has before somebody reads this, and less than a tenth of all.
const PER_SOURCE: u32 = 1_000;

/// The connections that are open, by source. As many sources as there are connections, so that the map is bounded by them.
#[derive(Debug)]
pub(super) struct Sources {
    /// What the operator said; nothing: [`PER_SOURCE`], and no bound on this machine.
    said: Option<NonZeroU32>,
    open: Mutex<HashMap<Who, Count>>,
}

#[derive(Debug, Default)]
struct Count {
    open: u32,
    /// It was said that there are too many, since they were last half as many.
    told: bool,
}

/// The place of one connection, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    sources: Arc<Sources>,
    who: Who,
}

impl Sources {
    pub(super) fn new(said: Option<NonZeroU32>) -> Self {
        Self {
            said,
            open: Mutex::default(),
        }
    }

    /// A place for a connection of this source; none if it has as many as it may.
    pub(super) fn enter(self: &Arc<Self>, who: Who) -> Option<Place> {
        let most = self.most(&who);
        let mut open = self.lock();
        let count = open.entry(who.clone()).or_default();
        if count.open >= most {
            if !std::mem::replace(&mut count.told, true) {
                drop(open);
                tell(&who, most);
            }
            return None;
        }
        count.open += 1;
        drop(open);
        let sources = self.clone();
        Some(Place { sources, who })
    }

    fn most(&self, who: &Who) -> u32 {
        match (self.said, who) {
            (Some(said), _) => said.get(),
            // Who is here is an operator, and could end this process as well.
            (None, Who::Address(address)) if address.is_loopback() => u32::MAX,
            (None, _) => PER_SOURCE,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Who, Count>> {
        // Each change of it is whole before the next can panic.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The connection has shown the certificate of this SHA-256: it counts as its bearer's from now on. None if that
    /// has as many as it may.
    pub(super) fn proved(self, bearer: String) -> Option<Self> {
        self.sources.enter(Who::Bearer(bearer))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let most = self.sources.most(&self.who);
        let mut open = self.sources.lock();
        let Entry::Occupied(mut entry) = open.entry(self.who.clone()) else {
            return;
        };
        let count = entry.get_mut();
        count.open -= 1;
        count.told &= count.open > most / 2;
        if count.open == 0 {
            entry.remove();
        }
    }
}

fn tell(who: &Who, most: u32) {
    let why = "one source has as many connections as it may: more of it are closed unheard; where many sidecars come from \
               one address, give --connections-per-source, or --tls and certificates, by which they are told apart";
    match who {
        Who::Address(source) => tracing::warn!(%source, connections = most, "{why}"),
        Who::Bearer(certificate) => tracing::warn!(certificate, connections = most, "{why}"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn address(text: &str) -> Who {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn a_source_that_has_what_it_may_waits_for_one_of_its_own_and_keeps_nobody_else_out() {
        let sources = Arc::new(Sources::new(NonZeroU32::new(2)));
        let one = sources.enter(address("10.0.0.1")).unwrap();
        let two = sources.enter(address("10.0.0.1")).unwrap();
        assert!(sources.enter(address("10.0.0.1")).is_none());
        assert!(sources.enter(address("10.0.0.2")).is_some());
        drop(one);
        assert!(sources.enter(address("10.0.0.1")).is_some());
        // Who has shown a certificate no longer counts by its address, and counts by the certificate.
        let proved = two.proved("1f".to_owned()).unwrap();
        let at_once: Vec<Place> = (0..2)
            .map(|_| sources.enter(address("10.0.0.1")).unwrap())
            .collect();
        let mut at_once = at_once.into_iter().map(|place| place.proved("1f".to_owned()));
        let second = at_once.next().unwrap();
        assert!(second.is_some());
        assert!(at_once.next().unwrap().is_none());
        drop((proved, second));
        assert!(sources.lock().is_empty(), "{sources:?}");
    }

    #[test]
    fn unless_it_is_said_this_machine_has_no_bound_and_a_network_of_ipv6_has_one() {
        let sources = Arc::new(Sources::new(None));
        let enter = |text: &str| sources.enter(address(text));
        let open = |text: &str| (0..2 * PER_SOURCE).map_while(|_| enter(text)).collect::<Vec<_>>();
        assert_eq!(open("127.0.0.1").len(), 2 * PER_SOURCE as usize);
        assert_eq!(open("::ffff:127.0.0.1").len(), 2 * PER_SOURCE as usize);
        let network = open("2001:db8::1");
        assert_eq!(network.len(), PER_SOURCE as usize);
        assert!(enter("2001:db8::2").is_none() && enter("2001:db8:0:1::1").is_some());
    }
}
