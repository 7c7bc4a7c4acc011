//! The live view: one full screen, drawn anew a few times a second.
//!
//! **Does not** measure: it draws a [`Board`] and the lines to type.
//!
//! **Invariant:** the terminal is as it was when [`Screen`] is dropped, and also after a panic, by the hook that
//! opening it sets.

use std::mem::ManuallyDrop;
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table, Wrap};
use ratatui::{DefaultTerminal, Frame};

use super::edges;
use super::hints::Hint;
use super::watch::{Board, BoardLine, clock};

/// How many keys are taken at once; more than this in one turn is no typing.
const KEYS_MAX: usize = 64;

/// How many characters wide a share's bar is.
const BAR_WIDTH: usize = 12;

/// How wide a terminal must be for the median as well.
const WIDE: u16 = 90;

/// How wide a terminal must be for the line of the rate as well.
const WIDER: u16 = 108;

/// How wide that line is at least: as its title.
const HISTORY_MIN: u16 = 18;

/// A success below this is worth a look.
const SUCCESS_FAIR: f64 = 0.99;

/// A success below this is bad.
const SUCCESS_BAD: f64 = 0.95;

/// The terminal, while it is ours.
#[derive(Debug)]
pub(super) struct Screen {
    /// Never dropped: its own drop prints to standard error if the terminal is gone, and where standard error was that
    /// terminal, printing panics. What it would do is done by the drop of [`Screen`]. Two buffers of one screen stay
    /// behind, in a program that ends.
    terminal: ManuallyDrop<DefaultTerminal>,
}

impl Screen {
    /// Takes the terminal.
    pub(super) fn open() -> std::io::Result<Self> {
        let terminal = ManuallyDrop::new(ratatui::try_init()?);
        Ok(Self { terminal })
    }

    /// Draws.
    pub(super) fn draw(&mut self, board: &Board, hints: &[Hint]) -> std::io::Result<()> {
        self.terminal.draw(|frame| draw(frame, board, hints))?;
        Ok(())
    }

    /// Whether somebody pressed a key that ends the demo. Does not wait. Keys are only to be had while a screen is
    /// open.
    pub(super) fn ends() -> std::io::Result<bool> {
        for _ in 0..KEYS_MAX {
            if !event::poll(Duration::ZERO)? {
                return Ok(false);
            }
            let Event::Key(key) = event::read()? else { continue };
            let control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            if control_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Where the terminal is gone there is nothing to put back, and nobody to tell.
        let _ = self.terminal.show_cursor();
        let _ = ratatui::try_restore();
    }
}

fn draw(frame: &mut Frame<'_>, board: &Board, hints: &[Hint]) {
    let table_height = u16::try_from(board.lines.len())
        .unwrap_or(u16::MAX)
        .saturating_add(2);
    let hints_height = height_of(hints, frame.area().width);
    let hints = paragraph(hints, frame.area().width);
    let areas = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(table_height),
        Constraint::Length(hints_height),
        Constraint::Min(2),
    ]);
    let [head, table, next, news] = areas.areas(frame.area());
    frame.render_widget(header(board), head);
    edges_table(frame, table, board);
    frame.render_widget(hints, next);
    let room = usize::from(news.height.saturating_sub(1));
    let skipped = board.events.len().saturating_sub(room);
    let events = board.events[skipped..]
        .iter()
        .map(|event| Line::raw(event.as_str()));
    let events = Paragraph::new(events.collect::<Vec<_>>()).block(titled("what happened"));
    frame.render_widget(events, news);
}

/// Only a line above: whoever copies a line must not copy a frame with it.
fn titled(title: &str) -> Block<'_> {
    Block::new()
        .borders(Borders::TOP)
        .title(format!(" {title} "))
        .border_style(Style::new().dark_gray())
        .title_style(Style::new().bold())
}

fn header(board: &Board) -> Paragraph<'_> {
    let serving = format!(
        "version {} on {} of {} sidecars",
        board.version, board.serving, board.sidecars
    );
    let serving = if board.serving == board.sidecars {
        serving.green()
    } else {
        serving.yellow()
    };
    let shoppers = board.shoppers.words();
    let shoppers = if board.shoppers.failed() == 0 {
        shoppers.green()
    } else {
        shoppers.yellow()
    };
    Paragraph::new(vec![
        Line::from(vec![
            " Outrigger demo ".bold().reversed(),
            format!("  {}  ", clock(board.running)).into(),
            serving,
            "   q ends".dim(),
        ]),
        Line::from(vec![" the shoppers saw ".into(), shoppers]),
    ])
}

fn edges_table(frame: &mut Frame<'_>, area: Rect, board: &Board) {
    let bar = u16::try_from(BAR_WIDTH).unwrap_or(u16::MAX);
    let mut columns = vec![
        ("", Constraint::Length(23)),
        (" req/s", Constraint::Length(6)),
        ("share", Constraint::Length(5)),
        ("", Constraint::Length(bar)),
        ("weight", Constraint::Length(6)),
        ("success", Constraint::Length(7)),
        ("per try", Constraint::Length(7)),
        ("p99 ms", Constraint::Length(6)),
    ];
    if area.width >= WIDE {
        columns.push(("p50 ms", Constraint::Length(6)));
    }
    if area.width >= WIDER {
        columns.push(("req/s, last minute", Constraint::Min(HISTORY_MIN)));
    }
    let shown = columns.len();
    let history = usize::from(area.width.saturating_sub(WIDER - HISTORY_MIN));
    let rows = board.lines.iter().map(|line| {
        let mut cells = edge_cells(line, history);
        cells.truncate(shown);
        Row::new(cells)
    });
    let (header, widths): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
    let table = Table::new(rows.collect::<Vec<_>>(), widths)
        .header(Row::new(header).dim())
        .block(titled("who answers whom, over the last 5 s"));
    frame.render_widget(table, area);
}

/// The cells of an edge, those that a narrow terminal has no room for last.
fn edge_cells(line: &BoardLine, history: usize) -> Vec<Cell<'_>> {
    let row = &line.row;
    let success = |part: Option<f64>| Cell::from(Span::styled(percent(part, 2), success_style(part)));
    let colour = if row.backend == "v2" {
        Color::Magenta
    } else {
        Color::Cyan
    };
    vec![
        Cell::from(Line::from(vec![
            format!("{} → {}", row.caller, row.service).into(),
            format!(" {}", row.backend).fg(colour).bold(),
        ])),
        Cell::from(format!("{:>6.0}", row.rate)),
        Cell::from(format!(" {}", percent(row.share, 0))),
        Cell::from(bar(row.share.unwrap_or(0.0), BAR_WIDTH).fg(colour)),
        Cell::from(format!("  {}", percent(line.weight, 0)).dim()),
        success(row.success),
        success(row.attempt_success),
        Cell::from(millis(row.p99_ms)),
        Cell::from(millis(row.p50_ms)),
        Cell::from(sparkline(&line.rates, history).blue()),
    ]
}

fn success_style(part: Option<f64>) -> Style {
    match part {
        None => Style::new(),
        Some(part) if part < SUCCESS_BAD => Style::new().fg(Color::Red),
        Some(part) if part < SUCCESS_FAIR => Style::new().fg(Color::Yellow),
        Some(_) => Style::new().fg(Color::Green),
    }
}

/// The commands whole, and what they do where there is room beside them.
fn paragraph(hints: &[Hint], width: u16) -> Paragraph<'_> {
    let longest = |text: fn(&Hint) -> &str| hints.iter().map(|hint| text(hint).chars().count()).max();
    let command_width = longest(|hint| &hint.command).unwrap_or(0) + 3;
    let room = command_width + longest(|hint| hint.what).unwrap_or(0) <= usize::from(width);
    let lines = hints.iter().map(|hint| {
        if !room {
            return Line::raw(&hint.command);
        }
        let command = format!("{:<command_width$}", hint.command);
        Line::from(vec![command.into(), hint.what.dim()])
    });
    Paragraph::new(lines.collect::<Vec<_>>())
        .wrap(Wrap { trim: false })
        .block(titled("type next, in another terminal"))
}

/// How many lines that takes, the title included.
fn height_of(hints: &[Hint], width: u16) -> u16 {
    let lines = hints.iter().map(|hint| {
        let chars = hint.command.chars().count();
        chars.div_ceil(usize::from(width.max(1)))
    });
    u16::try_from(1 + lines.sum::<usize>()).unwrap_or(u16::MAX)
}

/// An edge as one line of plain text.
pub(super) fn plain(line: &BoardLine) -> String {
    let row = &line.row;
    format!(
        "{:<23} {:>5.0}/s  share {} (weight {})  success {} (per try {})  p50 {} ms  p99 {} ms",
        edge(row),
        row.rate,
        percent(row.share, 0).trim(),
        percent(line.weight, 0).trim(),
        percent(row.success, 2).trim(),
        percent(row.attempt_success, 2).trim(),
        millis(row.p50_ms).trim(),
        millis(row.p99_ms).trim(),
    )
}

/// Who calls whom.
pub(crate) fn edge(row: &edges::Row) -> String {
    format!("{} → {} {}", row.caller, row.service, row.backend)
        .trim_end()
        .to_owned()
}

/// A part of a whole.
pub(crate) fn percent(part: Option<f64>, digits: usize) -> String {
    let width = if digits == 0 { 3 } else { digits + 4 };
    part.map_or_else(
        || format!("{:>width$}", "-"),
        |part| format!("{:>width$.digits$}%", part * 100.0),
    )
}

/// A duration.
pub(crate) fn millis(millis: Option<f64>) -> String {
    millis.map_or_else(|| format!("{:>6}", "-"), |millis| format!("{millis:>6.1}"))
}

/// A bar that fills its part of `width` characters, to an eighth of one.
fn bar(part: f64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (part.clamp(0.0, 1.0) * width as f64 * 8.0).round() as usize;
    format!("{}{}", "█".repeat(eighths / 8), EIGHTHS[eighths % 8])
}

/// The last values, drawn in one line of at most `width` characters.
fn sparkline(values: &[f64], width: usize) -> String {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let shown = &values[values.len().saturating_sub(width)..];
    let highest = shown.iter().copied().fold(0.0, f64::max);
    let level = |value: &f64| {
        if highest <= 0.0 {
            return LEVELS[0];
        }
        let level = (value / highest * 7.0).round() as usize;
        LEVELS[level.min(7)]
    };
    shown.iter().map(level).collect()
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    #[test]
    fn bars_fill_their_part() {
        for (part, expected) in [
            (0.0, ""),
            (1.0, "████"),
            (0.5, "██"),
            (0.03125, "▏"),
            (0.9, "███▋"),
            (7.0, "████"),
        ] {
            assert_eq!(bar(part, 4), expected, "{part}");
        }
    }

    #[test]
    fn lines_of_the_rate_show_the_last_values_against_the_highest() {
        assert_eq!(sparkline(&[0.0, 50.0, 100.0], 3), "▁▅█");
        assert_eq!(sparkline(&[100.0, 0.0, 0.0], 2), "▁▁");
        assert_eq!(sparkline(&[], 5), "");
    }

    fn board() -> Board {
        let row = edges::Row {
            caller: "frontend".into(),
            service: "reviews".into(),
            backend: "v2".into(),
            requests: 100,
            rate: 20.0,
            share: Some(0.1),
            success: Some(1.0),
            attempt_success: Some(0.917),
            retries: 9,
            p50_ms: Some(7.25),
            p99_ms: Some(31.0),
        };
        let line = BoardLine {
            row,
            weight: Some(0.1),
            rates: vec![20.0; 60],
        };
        Board {
            version: "2".into(),
            serving: 4,
            sidecars: 4,
            lines: vec![line],
            events: vec!["00:07  version 2 serves".into()],
            ..Board::default()
        }
    }

    fn drawn(width: u16, height: u16) -> String {
        let hints = [Hint {
            what: "half of the reviews from v2",
            command: "./target/release/outrigger push config-examples/demo-half.yaml".into(),
        }];
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, &board(), &hints)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn a_usual_terminal_shows_the_numbers_and_whole_commands() {
        let screen = drawn(80, 24);
        for piece in [
            "version 2 on 4 of 4 sidecars",
            "frontend → reviews v2",
            "10%",
            "100.00%",
            "91.70%",
            "31.0",
            "./target/release/outrigger push config-examples/demo-half.yaml",
            "00:07  version 2 serves",
        ] {
            assert!(screen.contains(piece), "{piece} is not in:\n{screen}");
        }
    }

    #[test]
    fn a_wide_terminal_shows_the_last_minute_and_a_tiny_one_is_no_fault() {
        let screen = drawn(160, 40);
        assert!(
            screen.contains("7.2") && screen.contains("████████████████████"),
            "{screen}"
        );
        drawn(1, 1);
        drawn(10, 3);
    }
}
