//! Reading the Prometheus text format, as far as tests ask for values by name and labels.

use std::collections::BTreeMap;

/// One page of metrics.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    samples: Vec<Sample>,
}

/// One line of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The name, such as `outrigger_requests_total`.
    pub name: String,
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// The value.
    pub value: f64,
}

impl Metrics {
    /// Reads a page. Whatever is not in the format ends the test.
    pub fn parse(text: &str) -> Self {
        let samples = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| parse_sample(line).unwrap_or_else(|| panic!("not a Prometheus sample: {line}")))
            .collect();
        Self { samples }
    }

    /// The samples with this name and at least these labels.
    pub fn matching<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            let has = |(key, value): &(&str, &str)| sample.labels.get(*key).is_some_and(|held| held == value);
            sample.name == name && labels.iter().all(has)
        })
    }

    /// The sum over all samples with this name and at least these labels; 0 if there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|sample| sample.value).sum()
    }

    /// Whether there is a sample of this name at all.
    pub fn has(&self, name: &str) -> bool {
        self.samples.iter().any(|sample| sample.name == name)
    }

    /// Every sample.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }
}

fn parse_sample(line: &str) -> Option<Sample> {
    let name_end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (key, after) = rest.trim_start_matches(',').split_once("=\"")?;
            let (value, after) = parse_label_value(after)?;
            labels.insert(key.to_owned(), value);
            rest = after;
        }
        rest = &rest[1..];
    }
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample {
        name: name.to_owned(),
        labels,
        value,
    })
}

/// The value up to its closing quote, and what follows that.
fn parse_label_value(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP requests_total All of them.\n# TYPE requests_total counter\n\
        requests_total{service=\"a\",reason=\"\"} 3\nrequests_total{service=\"b\\\"c\",reason=\"x,y\"} 4\n\
        up 1\nduration_bucket{le=\"+Inf\"} 7 1700000000\n";

    #[test]
    fn values_are_found_by_name_and_labels() {
        let metrics = Metrics::parse(PAGE);
        assert_eq!(metrics.sum("requests_total", &[]), 7.0);
        assert_eq!(
            metrics.sum("requests_total", &[("service", "a"), ("reason", "")]),
            3.0
        );
        assert_eq!(
            metrics.sum("requests_total", &[("service", "b\"c"), ("reason", "x,y")]),
            4.0
        );
        assert_eq!(metrics.sum("duration_bucket", &[("le", "+Inf")]), 7.0);
        assert_eq!(metrics.sum("requests_total", &[("service", "c")]), 0.0);
        assert!(metrics.has("up") && !metrics.has("down"));
    }
}
