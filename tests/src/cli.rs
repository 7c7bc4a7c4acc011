//! The operator's tool, run as an operator runs it.

use std::ffi::OsString;

use serde_json::Value;

use crate::program::Program;

/// How a command ended and what it printed.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The exit code; -1 if a signal ended it.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Ended {
    /// Its standard output as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("the standard output is not JSON ({error}): {self:?}"))
    }

    /// Ends the test unless it exited with 0.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{}\n{}", self.stdout, self.stderr);
        self
    }
}

/// Runs `outrigger` with these arguments until it ends.
pub async fn outrigger<S: Into<OsString> + Clone>(arguments: &[S]) -> Ended {
    let arguments: Vec<OsString> = arguments.iter().cloned().map(Into::into).collect();
    finish(Program::start("outrigger", "outrigger", &arguments)).await
}

/// Lets a command run until it ends.
pub async fn finish(mut program: Program) -> Ended {
    let status = program.exited().await;
    let (stdout, stderr) = program.written().await;
    Ended {
        code: status.code().unwrap_or(-1),
        stdout,
        stderr,
    }
}
