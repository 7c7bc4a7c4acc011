//! The text that Prometheus reads, taken apart: as much of the format as the sidecar writes.
//!
//! **Does not** know what the metrics mean: [`super::edges`] does. A line that cannot be read is left out, as a
//! scraper that met a newer sidecar would do.

/// One line: a series and its value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    /// The metric.
    pub(super) name: String,
    /// Its labels, in the order written.
    pub(super) labels: Vec<(String, String)>,
    /// Its value.
    pub(super) value: f64,
}

impl Sample {
    /// The value of a label; empty if it is not there, which Prometheus holds to be the same.
    pub(super) fn label(&self, name: &str) -> &str {
        let found = self.labels.iter().find(|(label, _)| label == name);
        found.map_or("", |(_, value)| value)
    }
}

/// Reads every sample of a page.
pub(super) fn parse(page: &str) -> Vec<Sample> {
    page.lines().filter_map(sample).collect()
}

fn sample(line: &str) -> Option<Sample> {
    if line.starts_with('#') {
        return None;
    }
    let name_ends = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(name_ends);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    // A time may follow the value; the sidecar writes none.
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample {
        name: name.to_owned(),
        labels,
        value,
    })
}

/// Reads `a="b",c="d"}` and gives back what follows.
fn labels(mut rest: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (name, quoted) = rest.split_once("=\"")?;
        let (value, after) = quoted_value(quoted)?;
        labels.push((name.to_owned(), value));
        rest = after;
    }
}

/// Reads up to the closing quote, which a backslash may hide.
fn quoted_value(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
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

    #[test]
    fn names_labels_and_values_are_read() {
        let page = "# HELP a_total Things.\n# TYPE a_total counter\na_total{x=\"1\",y=\"two words\"} 3\n\nb 0.5\nc_bucket{le=\"+Inf\"} 7\n";
        let samples = parse(page);
        assert_eq!(samples.len(), 3);
        assert_eq!(samples[0].name, "a_total");
        assert_eq!(samples[0].label("y"), "two words");
        assert_eq!(samples[0].label("absent"), "");
        assert_eq!((samples[1].name.as_str(), samples[1].value), ("b", 0.5));
        assert_eq!(samples[2].label("le"), "+Inf");
    }

    #[test]
    fn what_is_escaped_in_a_label_is_itself_again() {
        let samples = parse("a{x=\"say \\\"no\\\"}, \\\\ and\\nmore\",y=\"\"} 1");
        assert_eq!(samples[0].label("x"), "say \"no\"}, \\ and\nmore");
        assert_eq!(samples[0].value, 1.0);
    }

    #[test]
    fn a_line_that_is_cut_short_is_left_out() {
        for line in ["a{x=\"1", "a{x=\"1\"}", "a", "a{x=\"1\\", "a word", "{", ""] {
            assert_eq!(parse(line), Vec::new(), "{line}");
        }
    }
}
