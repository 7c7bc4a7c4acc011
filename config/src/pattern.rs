//! Regular expressions of the configuration, and what takes the place of what they find: compiled here and nowhere else,
//! so that what [`crate::check`] lets through is what the sidecar runs.

use regex_automata::meta::{Config, Regex};
use regex_automata::util::syntax;

/// The longest pattern: a rule that needs more is a program, and nobody can review it.
pub const PATTERN_BYTES_MAX: usize = 1024;

/// The most memory that the compiled pattern may take: a counted repetition of a Unicode class grows to megabytes
/// out of ten characters, and a configuration may hold thousands of patterns.
const NFA_BYTES_MAX: usize = 1024 * 1024;

/// The longest substitution: as for a pattern.
const SUBSTITUTION_BYTES_MAX: usize = PATTERN_BYTES_MAX;

/// The most matches that are replaced in one text. Each is looked for from the last, and some patterns look at all of the
/// rest before they find the next: without a bound a long text would take the square of its time.
const REPLACED_MAX: usize = 256;

/// Compiles a pattern that must match the whole of a text. It takes linear time in any text.
pub fn whole_match(pattern: &str) -> Result<Regex, String> {
    compile(pattern, |pattern| format!(r"\A(?:{pattern})\z"))
}

/// Compiles a pattern that may match anywhere in a text.
pub fn anywhere(pattern: &str) -> Result<Regex, String> {
    compile(pattern, str::to_owned)
}

/// Compiles a pattern in the form in which it is used.
fn compile(pattern: &str, form: impl FnOnce(&str) -> String) -> Result<Regex, String> {
    if pattern.len() > PATTERN_BYTES_MAX {
        return Err(format!(
            "the regular expression is {} bytes long; at most {PATTERN_BYTES_MAX} are allowed",
            pattern.len()
        ));
    }
    let unreadable = |reason: &str| format!("the regular expression cannot be read: {reason}");
    // By itself first: within the brackets below, `a)(b` would be read as something else.
    if let Err(error) = syntax::parse(pattern) {
        let error = error.to_string();
        let reason = error
            .lines()
            .last()
            .unwrap_or_default()
            .trim_start_matches("error: ")
            .to_owned();
        return Err(unreadable(&reason));
    }
    Regex::builder()
        .configure(Config::new().nfa_size_limit(Some(NFA_BYTES_MAX)))
        .build(&form(pattern))
        .map_err(|error| match error.size_limit() {
            Some(_) => format!(
                "the regular expression takes more than {NFA_BYTES_MAX} bytes when compiled; use smaller counts in {{…}}"
            ),
            None => unreadable("it cannot be made to match a whole text; a comment at its end may be the cause"),
        })
}

/// A pattern and what takes the place of all that it finds.
#[derive(Clone, Debug)]
pub struct Replacement {
    regex: Regex,
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
enum Part {
    Text(String),
    Group(usize),
}

impl Replacement {
    /// Reads a substitution for what `regex` finds: `\0` is all of it, `\1` to `\9` are its groups, `\\` is a backslash.
    ///
    /// # Errors
    /// A backslash before something else, a group that the pattern does not have, more than 1024 bytes.
    pub fn new(regex: Regex, substitution: &str) -> Result<Self, String> {
        if substitution.len() > SUBSTITUTION_BYTES_MAX {
            return Err(format!(
                "the substitution is {} bytes long; at most {SUBSTITUTION_BYTES_MAX} are allowed",
                substitution.len()
            ));
        }
        let groups = regex.captures_len();
        let (mut parts, mut text) = (Vec::new(), String::new());
        let mut chars = substitution.chars();
        while let Some(char) = chars.next() {
            if char != '\\' {
                text.push(char);
                continue;
            }
            match chars.next() {
                Some('\\') => text.push('\\'),
                Some(digit @ '0'..='9') => {
                    let group = usize::from(digit as u8 - b'0');
                    if group >= groups {
                        let last = groups.saturating_sub(1);
                        return Err(format!(
                            "the pattern has no group {group}; its groups are \\0, which is all of it, to \\{last}"
                        ));
                    }
                    if !text.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut text)));
                    }
                    parts.push(Part::Group(group));
                }
                other => {
                    let other = other.map(String::from).unwrap_or_default();
                    return Err(format!(
                        "`\\{other}` says nothing here; \\0 to \\9 are groups, and a backslash is written \\\\"
                    ));
                }
            }
        }
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
        Ok(Self { regex, parts })
    }

    /// What stands in the substitution as it is, beside the groups.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Text(text) => Some(text.as_str()),
            Part::Group(_) => None,
        })
    }

    /// The text with all that the pattern finds replaced. `None`: it would be longer than `bytes_max`, or there is more
    /// than 256 times something to replace.
    pub fn in_text(&self, text: &str, bytes_max: usize) -> Option<String> {
        let mut made = String::with_capacity(text.len());
        let mut end = 0;
        for (count, found) in self.regex.captures_iter(text).enumerate() {
            let matched = found.get_match()?;
            if count == REPLACED_MAX || made.len() > bytes_max {
                return None;
            }
            made.push_str(text.get(end..matched.start())?);
            for part in &self.parts {
                match part {
                    Part::Text(text) => made.push_str(text),
                    // A group that took no part is nothing.
                    Part::Group(group) => made.push_str(
                        found
                            .get_group(*group)
                            .and_then(|span| text.get(span.range()))
                            .unwrap_or_default(),
                    ),
                }
                if made.len() > bytes_max {
                    return None;
                }
            }
            end = matched.end();
        }
        made.push_str(text.get(end..)?);
        (made.len() <= bytes_max).then_some(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_the_whole_text_only() {
        let pattern = whole_match("a|ab").unwrap();
        assert!(pattern.is_match("a"));
        assert!(pattern.is_match("ab"));
        assert!(!pattern.is_match("abc"));
        assert!(!pattern.is_match("xa"));
        assert!(!whole_match("(?m)a").unwrap().is_match("a\nb"));
    }

    #[test]
    fn a_pattern_that_cannot_be_read_is_refused_with_the_reason() {
        assert_eq!(
            whole_match("a)(b").unwrap_err(),
            "the regular expression cannot be read: unopened group"
        );
        assert!(whole_match("(?x)a # end").is_err());
    }

    #[test]
    fn a_pattern_that_grows_without_measure_is_refused() {
        for pattern in [r"\w{500}{500}", r"(\pL{1,100}){100}", &"a".repeat(1025)] {
            let error = whole_match(pattern).unwrap_err();
            assert!(error.contains("bytes") || error.contains("read"), "{error}");
        }
    }

    fn replaced(pattern: &str, substitution: &str, text: &str) -> String {
        let replacement = Replacement::new(anywhere(pattern).unwrap(), substitution).unwrap();
        replacement.in_text(text, 1000).unwrap()
    }

    #[test]
    fn what_a_pattern_finds_is_replaced_as_in_envoy() {
        // The first four are the examples of Envoy's documentation of `regex_rewrite`.
        for (pattern, substitution, text, expected) in [
            (
                "^/service/([^/]+)(/.*)$",
                r"\2/instance/\1",
                "/service/foo/v1/api",
                "/v1/api/instance/foo",
            ),
            ("one", "two", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/two/zzz"),
            (
                "^(.*?)one(.*)$",
                r"\1two\2",
                "/xxx/one/yyy/one/zzz",
                "/xxx/two/yyy/one/zzz",
            ),
            ("(?i)/xxx/", "/yyy/", "/aaa/XxX/bbb", "/aaa/yyy/bbb"),
            ("nowhere", "x", "/a", "/a"),
            ("/(a)|/(b)", r"<\1\2\0>", "/a/b", "<a/a><b/b>"),
            ("b", r"\\1", "/b", r"/\1"),
            ("x*", "-", "/é", "-/-é-"),
        ] {
            assert_eq!(replaced(pattern, substitution, text), expected, "{pattern}");
        }
    }

    #[test]
    fn a_substitution_says_only_what_the_pattern_has() {
        for (substitution, expected) in [
            (r"/\2", "no group 2"),
            (r"/\x", "says nothing here"),
            ("/\\", "says nothing here"),
            (&"a".repeat(1025), "bytes long"),
        ] {
            let why = Replacement::new(anywhere("(a)").unwrap(), substitution).unwrap_err();
            assert!(why.contains(expected), "{substitution}: {why}");
        }
    }

    #[test]
    fn a_replacement_ends_where_it_would_grow_without_measure() {
        let growing = Replacement::new(anywhere(".+").unwrap(), r"\0\0\0").unwrap();
        assert_eq!(growing.in_text("/abc", 12).as_deref(), Some("/abc/abc/abc"));
        assert_eq!(growing.in_text("/abc", 11), None);
        let many = Replacement::new(anywhere("a").unwrap(), "b").unwrap();
        assert!(many.in_text(&"a".repeat(REPLACED_MAX), 1000).is_some());
        assert_eq!(many.in_text(&"a".repeat(REPLACED_MAX + 1), 1000), None);
    }
}
