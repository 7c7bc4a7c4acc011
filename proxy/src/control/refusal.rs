//! What the control API is told of a refusal: so much of it as a poll has room for.
//!
//! **Does not** decide what is refused, nor keep it: this sidecar's own `/config` shows all of it.

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
