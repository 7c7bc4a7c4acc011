//! What is wrong with a file, said so that a person can mend it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One thing that is wrong, and where. Printed as `file:line:column: path: message`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// The file as its author named it; empty when the text came without one.
    pub file: String,
    /// Line in that file, counted from 1.
    pub line: usize,
    /// Column in that line, in characters, counted from 1.
    pub column: usize,
    /// The path of the value inside its document, such as `routes[0].retry.attempts`; empty for the whole.
    pub path: String,
    /// What was found, what was expected, and, where it is known, what to write instead.
    pub message: String,
}

/// How much of a line is shown to either side of the mistake: a terminal's width in all.
const SNIPPET_REACH: usize = 60;

impl Problem {
    /// The line of `source`, which is the whole file, with a caret under the place: two lines for a terminal. Empty
    /// if the file has no such line.
    pub fn snippet(&self, source: &str) -> String {
        let source = source.strip_prefix('\u{feff}').unwrap_or(source);
        let Some(line) = self
            .line
            .checked_sub(1)
            .and_then(|above| source.lines().nth(above))
        else {
            return String::new();
        };
        let column = self.column.max(1) - 1;
        let from = column.saturating_sub(SNIPPET_REACH);
        // What would move the caret or the terminal is shown as a space.
        let shown: String = line
            .chars()
            .skip(from)
            .take(2 * SNIPPET_REACH)
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let number = self.line.to_string();
        let gutter = " ".repeat(number.len());
        let indent = " ".repeat(column - from);
        format!("{number} | {}\n{gutter} | {indent}^\n", shown.trim_end())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = if self.file.is_empty() { "-" } else { &self.file };
        write!(f, "{file}:{}:{}: ", self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(line: usize, column: usize) -> Problem {
        Problem {
            line,
            column,
            ..Problem::default()
        }
    }

    #[test]
    fn a_snippet_points_at_the_place() {
        let source = "kind: Service\r\n\tname: é x\n";
        assert_eq!(problem(1, 7).snippet(source), "1 | kind: Service\n  |       ^\n");
        assert_eq!(problem(2, 10).snippet(source), "2 |  name: é x\n  |          ^\n");
    }

    #[test]
    fn a_snippet_of_a_long_line_is_cut_to_what_matters() {
        let source = format!("{}here{}", "x".repeat(1000), "y".repeat(1000));
        let snippet = problem(1, 1001).snippet(&source);
        let lines: Vec<&str> = snippet.lines().collect();
        assert_eq!(lines[1].find('^'), lines[0].find("here"));
        assert!(lines[0].len() < 130);
    }

    #[test]
    fn a_place_outside_the_file_has_no_snippet() {
        assert_eq!(problem(0, 0).snippet("a"), "");
        assert_eq!(problem(2, 1).snippet("a\n"), "");
    }
}
