//! Regular expressions of the configuration: compiled here and nowhere else, so that what [`crate::check`] lets
//! through is what the sidecar runs.

use regex_automata::meta::{Config, Regex};
use regex_automata::util::syntax;

/// The longest pattern: a rule that needs more is a program, and nobody can review it.
pub const PATTERN_BYTES_MAX: usize = 1024;

/// The most memory that the compiled pattern may take: a counted repetition of a Unicode class grows to megabytes
/// out of ten characters, and a configuration may hold thousands of patterns.
const NFA_BYTES_MAX: usize = 1024 * 1024;

/// Compiles a pattern that must match the whole of a text. It takes linear time in any text.
pub fn whole_match(pattern: &str) -> Result<Regex, String> {
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
        .build(&format!(r"\A(?:{pattern})\z"))
        .map_err(|error| match error.size_limit() {
            Some(_) => format!(
                "the regular expression takes more than {NFA_BYTES_MAX} bytes when compiled; use smaller counts in {{…}}"
            ),
            None => unreadable("it cannot be made to match a whole text; a comment at its end may be the cause"),
        })
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
}
