//! Refusals both ways: what the control API is told of one, so much of it as a poll has room for, and what it says where it
//! turns a poll away.
//!
//! **Does not** decide what is refused, nor keep it: this sidecar's own `/config` shows all of it.

use std::fmt;

use http::StatusCode;
use outrigger_config::Problem;
use outrigger_config::discovery::Refusal;

/// How many problems of a refusal are told: what is wrong shows in the first hundred, and a poll is bounded.
const PROBLEMS_MAX: usize = 100;

/// The longest message of a problem that is told, in characters: what was found can be as long as a document.
const MESSAGE_MAX: usize = 1_000;

/// The longest file name and path of a problem that is told, in characters. A hundred problems at these limits, every
/// character of them escaped, are within the 1 MiB that the control API reads of a poll.
const PLACE_MAX: usize = 200;

/// A refusal as it is told: with as many problems, and as much of each, as a poll has room for.
pub(super) fn bounded(mut problems: Vec<Problem>) -> Refusal {
    let more = problems.len().saturating_sub(PROBLEMS_MAX);
    problems.truncate(PROBLEMS_MAX);
    for problem in &mut problems {
        cut(&mut problem.message, MESSAGE_MAX);
        cut(&mut problem.file, PLACE_MAX);
        cut(&mut problem.path, PLACE_MAX);
    }
    if more > 0 {
        problems.push(Problem {
            line: 1,
            column: 1,
            message: format!(
                "and {more} more problems, which `/config` of this sidecar's admin address shows"
            ),
            ..Problem::default()
        });
    }
    Refusal { problems }
}

/// Cuts `text` to so many characters, the last of which then shows that it was cut.
fn cut(text: &mut String, characters: usize) {
    if text.chars().count() > characters {
        *text = text.chars().take(characters - 1).chain(['…']).collect();
    }
}

/// The longest sentence of the control API that is repeated, in bytes: its longest is a few hundred.
const SENTENCE_MAX: usize = 1_000;

/// The control API has heard the poll and turns it away, in these words.
#[derive(Debug)]
pub(super) struct TurnedAway(StatusCode, String);

impl TurnedAway {
    /// What an answer says that is no success: its sentence where it has the form of a control API's, else all of it.
    pub(super) fn of(status: StatusCode, body: &[u8]) -> Self {
        #[derive(serde::Deserialize)]
        struct Said {
            error: String,
        }
        let said = serde_json::from_slice::<Said>(body).map(|said| said.error);
        let mut words = said
            .unwrap_or_else(|_| String::from_utf8_lossy(&body[..body.len().min(SENTENCE_MAX)]).into_owned());
        words.truncate(words.floor_char_boundary(SENTENCE_MAX));
        Self(status, words)
    }
}

impl fmt::Display for TurnedAway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it answered {}: {}", self.0, self.1)
    }
}

impl std::error::Error for TurnedAway {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_of_the_control_api_is_told_and_of_anything_else_what_it_said() {
        let said = |body: &str| TurnedAway::of(StatusCode::FORBIDDEN, body.as_bytes()).to_string();
        assert_eq!(
            said(r#"{"error":"not you"}"#),
            "it answered 403 Forbidden: not you"
        );
        assert_eq!(said("<html>"), "it answered 403 Forbidden: <html>");
        let long = format!("{{\"error\":\"{}\"}}", "é".repeat(2_000));
        assert!(said(&long).len() < 1_100);
    }
}
