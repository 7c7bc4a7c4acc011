//! Which of many routes may match a path, without asking each.
//!
//! Routes are tried in the order written, and the first that matches is taken. In a long list nearly all would be asked in
//! vain, so they are filed by what they ask of the path: the whole of it, its first segments, or nothing that can be filed.
//! It decides nothing: each that is found is asked by [`VirtualHost::route`](super::routes::VirtualHost::route).

use std::collections::HashMap;

use crate::snapshot::routes::{Path, Route};

/// Up to so many routes are asked one after the other: that is cheaper than to look them up.
const FEW: usize = 8;

/// Places of routes, each list in their order.
type Places = Vec<u32>;
type Filed = HashMap<String, Places, xxhash_rust::xxh3::Xxh3DefaultBuilder>;

/// Routes by what they ask of the path.
#[derive(Debug, Default)]
pub(crate) struct Lookup {
    exact: Filed,
    /// By their prefix, which is whole segments.
    prefixes: Filed,
    /// How many segments the longest prefix has: past it no path is looked at.
    depth: usize,
    /// Those that may match any path.
    others: Places,
}

impl Lookup {
    /// Files routes; `None` if they are few.
    pub(crate) fn new(routes: &[Route]) -> Option<Box<Self>> {
        (routes.len() > FEW).then(|| {
            let mut lookup = Self::default();
            for (place, route) in (0_u32..).zip(routes) {
                lookup.file(place, route);
            }
            Box::new(lookup)
        })
    }

    fn file(&mut self, place: u32, route: &Route) {
        let file = |filed: &mut Filed, path: &str| {
            let places = filed.entry(path.to_owned()).or_default();
            // Several conditions of one route may ask the same of the path.
            if places.last() != Some(&place) {
                places.push(place);
            }
        };
        let anywhere = |path: &Option<Path>| match path {
            None | Some(Path::Regex(_)) => true,
            Some(Path::Prefix(prefix)) => prefix.is_empty(),
            Some(Path::Exact(_)) => false,
        };
        if route.matchers.is_empty() || route.matchers.iter().any(|matcher| anywhere(&matcher.path)) {
            self.others.push(place);
            return;
        }
        for matcher in &route.matchers {
            match &matcher.path {
                Some(Path::Exact(path)) => file(&mut self.exact, path),
                Some(Path::Prefix(prefix)) => {
                    file(&mut self.prefixes, prefix);
                    self.depth = self.depth.max(segments(prefix));
                }
                None | Some(Path::Regex(_)) => {}
            }
        }
    }

    /// The first place that matches, among those of which this path has what they ask.
    pub(crate) fn first(&self, path: &str, matches: impl Fn(usize) -> bool) -> Option<usize> {
        let mut first: Option<u32> = None;
        let mut among = |places: &Places| {
            let before = places
                .iter()
                .take_while(|place| first.is_none_or(|first| **place < first));
            let found = before.copied().find(|place| matches(*place as usize));
            first = found.or(first);
        };
        if let Some(places) = self.exact.get(path) {
            among(places);
        }
        if !self.prefixes.is_empty() {
            let slashes = path.match_indices('/').map(|(at, _)| at).skip(1);
            let ends = slashes.chain([path.len()]).take(self.depth);
            for end in ends {
                if let Some(places) = self.prefixes.get(&path[..end]) {
                    among(places);
                }
            }
        }
        among(&self.others);
        first.map(|place| place as usize)
    }
}

fn segments(prefix: &str) -> usize {
    prefix.bytes().filter(|byte| *byte == b'/').count()
}
