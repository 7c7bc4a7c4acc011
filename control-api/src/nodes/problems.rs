//! How much is kept of what a node refused: each of ten thousand could tell of a mebibyte.
//!
//! **Does not** bound how many problems are read: `outrigger_config` does.

use outrigger_config::Problem;

/// As much text as is kept of the problems of a refusal: a hundred as long as a sidecar tells them.
pub(super) const PROBLEM_BYTES_MAX: usize = 256 * 1024;

/// As much of those of who has proved nothing, of which there may be ten thousand: a hundred of a usual length.
pub(super) const UNPROVEN_PROBLEM_BYTES_MAX: usize = 16 * 1024;

/// As many problems as there is room for, the first in any case as far as it goes.
pub(super) fn bounded_problems<'a>(
    problems: impl Iterator<Item = &'a Problem>,
    verified: bool,
) -> Vec<Problem> {
    let mut left = if verified {
        PROBLEM_BYTES_MAX
    } else {
        UNPROVEN_PROBLEM_BYTES_MAX
    };
    let mut kept = Vec::new();
    for problem in problems {
        let mut problem = problem.clone();
        for text in [&mut problem.message, &mut problem.path, &mut problem.file] {
            text.truncate(text.floor_char_boundary(left));
            text.shrink_to_fit();
            left -= text.len();
        }
        kept.push(problem);
        if left == 0 {
            break;
        }
    }
    kept
}
