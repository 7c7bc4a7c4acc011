//! Which lines of an answer answer the question: those of the type that is asked for whose owner is the name itself or the
//! end of the chain of aliases from it (RFC 1034 section 3.6.2), and the chain. Pure. What else a server adds is not
//! believed: it would make endpoints of the addresses of other names.

use std::collections::HashMap;
use std::time::Duration;

use hickory_resolver::proto::rr::{Name, RData, Record as Line, RecordType};

/// The chain and the records at its end, in the order of the answer.
pub(super) fn own(lines: Vec<Line>, name: &Name, kind: RecordType) -> Vec<Line> {
    let mut aliases: HashMap<&Name, &Name> = HashMap::new();
    for line in &lines {
        if let RData::CNAME(to) = &line.data {
            aliases.entry(&line.name).or_insert(&to.0);
        }
    }
    let (mut end, mut chain) = (name, Vec::new());
    // Each alias once: a chain that runs in a circle ends too.
    while let Some(next) = aliases.remove(end) {
        chain.push(end.clone());
        end = next;
    }
    let end = end.clone();
    let is_own = |line: &Line| match line.record_type() {
        RecordType::CNAME => chain.contains(&line.name),
        other => other == kind && line.name == end,
    };
    lines.into_iter().filter(is_own).collect()
}

/// The shortest TTL, if there is a line.
pub(super) fn ttl(lines: &[Line]) -> Option<Duration> {
    let shortest = lines.iter().map(|line| line.ttl).min();
    shortest.map(|seconds| Duration::from_secs(seconds.into()))
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::rr::rdata::{A, CNAME};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn line(text: &str) -> Line {
        let words: Vec<&str> = text.split(' ').collect();
        let data = match words[1].parse() {
            Ok(address) => RData::A(A(address)),
            Err(_) => RData::CNAME(CNAME(name(words[1]))),
        };
        Line::from_rdata(name(words[0]), 7, data)
    }

    #[test]
    fn what_belongs_to_the_name_stays_and_nothing_else() {
        for (lines, own_places) in [
            (&["a. 10.0.0.1", "a. 10.0.0.2"][..], &[0, 1][..]),
            (&["A. 10.0.0.1", "b. 10.0.0.2"], &[0]),
            (&["c. 10.0.0.1", "a. b.", "b. c."], &[0, 1, 2]),
            (&["a. b.", "a. 10.0.0.1", "b. 10.0.0.2"], &[0, 2]),
            (&["x. y.", "y. 10.0.0.1"], &[]),
            (&["a. b.", "b. a.", "a. 10.0.0.1"], &[0, 1, 2]),
            (&[], &[]),
        ] {
            let lines: Vec<Line> = lines.iter().map(|text| line(text)).collect();
            let expected: Vec<Line> = own_places.iter().map(|place| lines[*place].clone()).collect();
            assert_eq!(own(lines, &name("a."), RecordType::A), expected);
        }
        let other_type = own(vec![line("a. 10.0.0.1")], &name("a."), RecordType::AAAA);
        assert_eq!(
            (ttl(&other_type), ttl(&[line("a. b.")])),
            (None, Some(Duration::from_secs(7)))
        );
    }
}
