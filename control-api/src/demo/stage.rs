//! The time while the demo is shown: it is looked at each second, drawn or written, until something ends it.
//!
//! **Does not** start or stop what is shown.

use std::time::Duration;

use tokio::sync::watch::{Receiver, Sender};
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, sleep};

use super::hints::Hint;
use super::traffic::Traffic;
use super::view::{self, Screen};
use super::watch::{Board, Watch, clock};
use super::{DemoError, Ends, Mesh};

/// How often everything is scraped: often enough that a push is seen as it arrives.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often keys are read and the view is drawn.
const FRAME_EVERY: Duration = Duration::from_millis(100);

/// How many looks there are between two reports in plain lines.
const LOOKS_PER_REPORT: u64 = 5;

/// Who looks on while it runs.
pub(crate) enum Audience<'a> {
    /// A person at a terminal.
    Screen,
    /// Whoever reads these lines.
    Lines(&'a mut dyn FnMut(&str)),
    /// Nobody.
    Nobody,
}

/// What the audience sees.
pub(super) struct Stage<'a> {
    screen: Option<Screen>,
    lines: Option<&'a mut dyn FnMut(&str)>,
    hints: Vec<Hint>,
    looks: u64,
}

impl<'a> Stage<'a> {
    pub(super) fn open(audience: Audience<'a>, hints: Vec<Hint>) -> Result<Self, DemoError> {
        let mut stage = Self {
            screen: None,
            lines: None,
            hints,
            looks: 0,
        };
        match audience {
            Audience::Nobody => {}
            Audience::Lines(lines) => {
                lines("Type next, in another terminal:");
                for hint in &stage.hints {
                    lines(&format!("  {}   # {}", hint.command, hint.what));
                }
                stage.lines = Some(lines);
            }
            Audience::Screen => stage.screen = Some(Screen::open().map_err(|error| no_terminal(&error))?),
        }
        Ok(stage)
    }

    /// Looks and shows until the time is over, somebody ends it, or a part fails.
    pub(super) async fn play(
        &mut self,
        watch: &mut Watch,
        traffic: &Traffic,
        mesh: &Mesh,
        (time, ends): (Option<Duration>, &mut Ends),
    ) -> Result<(), DemoError> {
        let over = async {
            match time {
                Some(time) => sleep(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(over);
        let (boards, mut news) = tokio::sync::watch::channel(watch.board());
        // Beside the keys, not between them: a look may take seconds where the machine is overwhelmed.
        let looking = keep_looking(watch, mesh, boards);
        tokio::pin!(looking);
        let mut frame = interval(FRAME_EVERY);
        frame.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let started = Instant::now();
        loop {
            tokio::select! {
                () = &mut over => return Ok(()),
                () = ends.come() => return Ok(()),
                fault = &mut looking => return Err(fault),
                Ok(()) = news.changed() => {
                    let board = now(&news, started, traffic);
                    self.report(&board);
                }
                _ = frame.tick(), if self.screen.is_some() => {
                    let board = now(&news, started, traffic);
                    if self.show(&board).map_err(|error| no_terminal(&error))? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Draws the view, and says whether a key ends it.
    fn show(&mut self, board: &Board) -> std::io::Result<bool> {
        let Some(screen) = &mut self.screen else {
            return Ok(false);
        };
        screen.draw(board, &self.hints)?;
        Screen::ends()
    }

    /// Writes some lines now and then.
    fn report(&mut self, board: &Board) {
        let Some(lines) = &mut self.lines else { return };
        self.looks += 1;
        if !self.looks.is_multiple_of(LOOKS_PER_REPORT) {
            return;
        }
        lines(&format!(
            "{}  version {} on {} of {} sidecars; the shoppers saw {}",
            clock(board.running),
            board.version,
            board.serving,
            board.sidecars,
            board.shoppers.words()
        ));
        for line in &board.lines {
            lines(&format!("  {}", view::plain(line)));
        }
    }
}

/// Looks each second, until something fails.
async fn keep_looking(watch: &mut Watch, mesh: &Mesh, boards: Sender<Board>) -> DemoError {
    let mut look = interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let looked = match mesh.check() {
            Ok(()) => watch.look().await,
            fault => fault,
        };
        if let Err(fault) = looked {
            return fault;
        }
        boards.send_replace(watch.board());
    }
}

/// The last board, with what is known without a look.
fn now(boards: &Receiver<Board>, started: Instant, traffic: &Traffic) -> Board {
    Board {
        running: started.elapsed(),
        shoppers: traffic.so_far(),
        ..boards.borrow().clone()
    }
}

fn no_terminal(error: &std::io::Error) -> DemoError {
    DemoError::Start(format!("the terminal cannot be used: {error}"))
}
