//! The demo as its users run it: the program, a line that it says to type, and the signal that ends it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// Ends the program if the test fails before it does.
struct Demo(Child);

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_line_that_the_demo_says_to_type_moves_the_weights_and_a_signal_ends_it() {
    // From a folder that is no repository, on any ports.
    let elsewhere = tempfile::tempdir().unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_outrigger"))
        .args([
            "demo",
            "--port-base",
            "0",
            "--api-listen",
            "127.0.0.1:0",
            "--rate",
            "60",
        ])
        // Should it never be ended: not for ever.
        .args(["--for", "90s"])
        .current_dir(&elsewhere)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut demo = Demo(child);
    let mut lines = BufReader::new(demo.0.stdout.take().unwrap()).lines();
    let mut line_with = |needle: &str| {
        let mut lines = lines.by_ref().map(Result::unwrap);
        let found = lines.find(|line| line.contains(needle));
        found.unwrap_or_else(|| panic!("the demo ended without a line with `{needle}`"))
    };

    let hint = line_with("demo-half.yaml");
    let command = hint.trim().strip_suffix("# half of the reviews from v2").unwrap();
    let file = command.split_whitespace().last().unwrap().to_owned();
    let folder = Path::new(&file).parent().unwrap();
    assert!(folder.exists());
    let pushed = Command::new("sh").args(["-c", command]).output().unwrap();
    let answers = String::from_utf8(pushed.stdout).unwrap();
    assert!(
        pushed.status.success() && answers.contains("4 applied"),
        "{answers}"
    );

    line_with("version 2 on 4 of 4 sidecars");
    let row = line_with("frontend → reviews v2");
    assert!(row.contains("(weight 50%)"), "{row}");
    // The seconds before the push are in it.
    let share = row.split("share ").nth(1).and_then(|rest| rest.split('%').next());
    let share: f64 = share.unwrap().parse().unwrap();
    assert!((25.0..=52.0).contains(&share), "{row}");

    let pid = Pid::from_child(&demo.0);
    kill_process(pid, Signal::TERM).unwrap();
    line_with("version 2 served at the end");
    assert!(demo.0.wait().unwrap().success());
    assert!(!folder.exists(), "{} is left behind", folder.display());
}
