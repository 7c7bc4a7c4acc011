//! What is wrong with a file, said so that a person can mend it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One thing that is wrong, and where. Printed as `file:line:column: path: message`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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
