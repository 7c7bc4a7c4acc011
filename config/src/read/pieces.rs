//! A file cut into the texts of its documents, before anything is understood: a mistake in one document, even
//! in its YAML, must not hide those of the next.
//!
//! YAML allows this cut by lines: `---` at the beginning of a line parts documents wherever it stands, in the middle
//! of a quoted or a block text too.

use std::borrow::Cow;

/// The text of a document and the line of the file where it begins.
#[derive(Debug)]
pub(super) struct Piece<'a> {
    pub(super) line: usize,
    /// Always ends with a line break, so that texts can be joined.
    pub(super) text: Cow<'a, str>,
}

/// Cuts a file at its `---` lines. A line that carries something of the document itself stays with the document.
pub(super) fn pieces(text: &str) -> Vec<Piece<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut pieces = Vec::new();
    let mut first = (1, 0);
    let mut end = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let begin = end;
        end += line.len();
        match Marker::of(line) {
            Marker::None => {}
            Marker::Bare => {
                pieces.push(Piece::new(first.0, &text[first.1..begin]));
                first = (index + 2, end);
            }
            Marker::WithContent => {
                pieces.push(Piece::new(first.0, &text[first.1..begin]));
                first = (index + 1, begin);
            }
        }
    }
    pieces.push(Piece::new(first.0, &text[first.1..]));
    pieces
}

impl<'a> Piece<'a> {
    fn new(line: usize, text: &'a str) -> Self {
        let ends = text.is_empty() || text.ends_with('\n');
        let text = if ends {
            Cow::Borrowed(text)
        } else {
            Cow::Owned(format!("{text}\n"))
        };
        Self { line, text }
    }
}

/// Whether a line parts two documents.
enum Marker {
    None,
    /// `---` alone or before a comment.
    Bare,
    /// `--- {kind: Mesh}`.
    WithContent,
}

impl Marker {
    fn of(line: &str) -> Self {
        let line = line.trim_end_matches(['\r', '\n']);
        let Some(rest) = line.strip_prefix("---") else {
            return Self::None;
        };
        let content = rest.trim_start_matches([' ', '\t']);
        if rest.len() == content.len() && !rest.is_empty() {
            Self::None
        } else if content.is_empty() || content.starts_with('#') {
            Self::Bare
        } else {
            Self::WithContent
        }
    }
}
