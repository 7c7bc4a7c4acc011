//! The only place that prints, and the only one that knows of terminals and colours.
//!
//! Answers go to stdout, errors and progress to stderr, so that the answer can be piped on.

use std::io::{IsTerminal, Write};

/// Where things are printed, and how.
#[derive(Debug)]
pub(super) struct Output {
    colours: bool,
}

impl Output {
    pub(super) fn new() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            colours: wanted && std::io::stdout().is_terminal(),
        }
    }

    /// Says why nothing, or not everything, was done.
    pub(super) fn error(&mut self, sentence: &str) {
        let _ = writeln!(std::io::stderr(), "error: {sentence}");
    }
}
