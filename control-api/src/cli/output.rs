//! The only place that prints, and the only one that knows of terminals and colours.
//!
//! Answers and problems go to stdout, so that they can be piped on; what stands in the way of an answer goes to
//! stderr, and so does the progress bar. Writing to a pipe that nobody reads any more is no error of ours.

use std::collections::HashMap;
use std::fmt::Display;
use std::io::{IsTerminal, Write, stderr, stdout};

use comfy_table::{Table, presets};
use outrigger_config::Problem;
use serde::Serialize;

use crate::server::PushText;

/// How many characters wide the progress bar is.
const BAR_WIDTH: usize = 24;

/// Where things are printed, and how.
#[derive(Debug)]
pub(super) struct Output {
    /// A person reads stdout.
    terminal: bool,
    /// That person wants colours.
    colours: bool,
    /// A progress bar stands on the last line.
    bar: bool,
}

/// What a piece of text is, which decides its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Good,
    Bad,
    Attention,
    Place,
    Strong,
    Quiet,
}

impl Tone {
    fn code(self) -> &'static str {
        match self {
            Self::Good => "32",
            Self::Bad => "31",
            Self::Attention => "33",
            Self::Place => "36",
            Self::Strong => "1",
            Self::Quiet => "2",
        }
    }
}

impl Output {
    pub(super) fn new() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let terminal = stdout().is_terminal();
        Self {
            terminal,
            colours: terminal && wanted,
            bar: false,
        }
    }

    /// Gives `text` the colour of its tone, where colours are wanted.
    pub(super) fn paint(&self, tone: Tone, text: impl Display) -> String {
        if self.colours {
            format!("\x1b[{}m{text}\x1b[0m", tone.code())
        } else {
            text.to_string()
        }
    }

    /// Prints one line.
    pub(super) fn line(&mut self, text: impl Display) {
        self.clear_bar();
        let _ = writeln!(stdout(), "{text}");
    }

    /// Prints text as it is, its line breaks included.
    pub(super) fn text(&mut self, text: &str) {
        self.clear_bar();
        let mut out = stdout();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    /// Prints a value as JSON for programs.
    pub(super) fn json(&mut self, value: &impl Serialize) {
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.line(text),
            Err(error) => self.error(&format!("the answer cannot be written as JSON: {error}")),
        }
    }

    /// Says why nothing, or not everything, was done.
    pub(super) fn error(&mut self, sentence: &str) {
        self.clear_bar();
        let _ = writeln!(stderr(), "error: {sentence}");
    }

    /// Says something to a person that is no part of the answer.
    pub(super) fn hint(&mut self, sentence: &str) {
        self.clear_bar();
        let _ = writeln!(stderr(), "{sentence}");
    }

    /// Prints a table.
    pub(super) fn table(&mut self, header: &[&str], rows: Vec<Vec<String>>) {
        for line in table_lines(header, rows) {
            self.line(line);
        }
    }

    /// Prints problems, and on a terminal the line of the source that each is about.
    pub(super) fn problems(&mut self, problems: &[Problem], sources: &[PushText]) {
        let lines = self.terminal.then(|| source_lines(sources));
        for problem in problems {
            self.line(self.problem(problem));
            let source = lines
                .as_ref()
                .and_then(|lines| lines.get(&(problem.file.as_str(), problem.line)));
            if let Some(source) = source {
                self.snippet(problem, source);
            }
        }
    }

    fn problem(&self, problem: &Problem) -> String {
        let text = harmless(&problem.to_string());
        // The place is all up to the message.
        let message = harmless(&problem.message);
        match text.strip_suffix(message.as_str()) {
            Some(place) => format!("{}{message}", self.paint(Tone::Place, place)),
            None => text,
        }
    }

    /// The source line with a mark below the column.
    fn snippet(&mut self, problem: &Problem, source: &str) {
        let number = problem.line.to_string();
        let margin = " ".repeat(number.len());
        let before = source.chars().take(problem.column.saturating_sub(1));
        // A tab stays one, so that the mark stands below its column however wide the terminal makes it.
        let indent: String = before.map(|char| if char == '\t' { '\t' } else { ' ' }).collect();
        let mark = self.paint(Tone::Bad, "^");
        let bar = self.paint(Tone::Quiet, "|");
        let source = harmless(source);
        self.line(format!(" {} {bar} {source}", self.paint(Tone::Quiet, &number)));
        self.line(format!(" {margin} {bar} {indent}{mark}"));
    }

    /// Shows how far along something is, on a terminal.
    pub(super) fn progress(&mut self, done: usize, of: usize, what: &str) {
        if !self.terminal || !stderr().is_terminal() || of == 0 {
            return;
        }
        let filled = done * BAR_WIDTH / of;
        let bar = format!("{}{}", "█".repeat(filled), "░".repeat(BAR_WIDTH - filled));
        let _ = write!(stderr(), "\r\x1b[K{bar} {done}/{of} {what}");
        let _ = stderr().flush();
        self.bar = true;
    }

    /// Takes the progress bar away, so that something else can be printed.
    pub(super) fn clear_bar(&mut self) {
        if std::mem::take(&mut self.bar) {
            let _ = write!(stderr(), "\r\x1b[K");
            let _ = stderr().flush();
        }
    }
}

/// The lines of a table. What a cell has of colours takes no room: it is laid out without them and painted after.
fn table_lines(header: &[&str], rows: Vec<Vec<String>>) -> Vec<String> {
    let plain: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| plain(cell)).collect())
        .collect();
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(header.iter().copied());
    table.add_rows(plain.clone());
    let text = table.to_string();
    let (mut cells, mut plain) = (rows.into_iter(), plain.iter());
    let mut lines = text.lines().map(str::trim_end);
    let head = lines.next().map(str::to_owned);
    // No cell holds a line break (see `harmless`), so that a row is a line.
    let rest = lines.map(|line| match (cells.next(), plain.next()) {
        (Some(cells), Some(plain)) => painted(line, &cells, plain),
        _ => line.to_owned(),
    });
    head.into_iter().chain(rest).collect()
}

/// A line of a table with its cells as they are painted: from the end of one to the next there is nothing but spaces.
fn painted(mut line: &str, cells: &[String], plain: &[String]) -> String {
    let mut painted = String::new();
    for (cell, plain) in cells.iter().zip(plain) {
        if let Some((before, after)) = line.split_once(plain.trim_end()) {
            painted.push_str(before);
            painted.push_str(cell);
            line = after;
        }
    }
    painted + line
}

/// A text without the colours that [`Output::paint`] gives it.
fn plain(painted: &str) -> String {
    let mut parts = painted.split('\x1b');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        plain.push_str(part.split_once('m').map_or(part, |(_, rest)| rest));
    }
    plain
}

/// So many of something: `1 problem`, `2 problems`.
pub(super) fn count(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// Text from elsewhere, made harmless: what it holds of control characters must not steer the terminal.
pub(super) fn harmless(text: &str) -> String {
    let safe = |char: char| {
        if char.is_control() && char != '\t' {
            '\u{fffd}'
        } else {
            char
        }
    };
    text.chars().map(safe).collect()
}

/// The lines of all sources, by file and number.
fn source_lines(sources: &[PushText]) -> HashMap<(&str, usize), &str> {
    let numbered = sources.iter().flat_map(|source| {
        let lines = source.text.lines().enumerate();
        lines.map(move |(index, line)| ((source.file.as_str(), source.line + index), line))
    });
    numbered.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_take_no_room_in_a_table() {
        let table = |colours: bool| {
            let output = Output {
                terminal: colours,
                colours,
                bar: false,
            };
            let row = |id: &str, tone: Tone, state: &str, left: &str| {
                let mark = output.paint(Tone::Attention, "unverified");
                let left = output.paint(Tone::Quiet, left);
                vec![
                    id.to_owned(),
                    output.paint(tone, state),
                    format!("{id} {mark}"),
                    left,
                ]
            };
            let rows = vec![
                row("a", Tone::Good, "in sync", "1h"),
                row("reviews-é", Tone::Bad, "a", "expired"),
                row("a", Tone::Strong, "", "-"),
            ];
            table_lines(&["NODE", "STATE", "IDENTITY", "LEFT"], rows)
        };
        let (coloured, without) = (table(true), table(false));
        assert_ne!(coloured, without);
        let stripped: Vec<String> = coloured.iter().map(|line| plain(line)).collect();
        assert_eq!(stripped, without);
        let column = without[0].find("LEFT");
        assert_eq!(column, without[1].find("1h"), "{without:#?}");
        assert_eq!(
            coloured.join("\n").matches("\x1b[33munverified\x1b[0m").count(),
            3
        );
    }
}
