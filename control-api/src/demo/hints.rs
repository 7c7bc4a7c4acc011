//! What to type next: lines that can be copied to another terminal and work there as they stand.
//!
//! **Does not** run anything.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::places::{Example, HALF, Moved, Ports, SHIFT, SHOP};
use crate::client::API_DEFAULT;

/// One line to type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hint {
    /// What it does.
    pub(crate) what: &'static str,
    /// The line.
    pub(crate) command: String,
}

/// Where this program and its files are.
#[derive(Debug)]
pub(super) struct Here {
    /// This program.
    pub(super) program: PathBuf,
    /// The folder in which it was started.
    pub(super) directory: PathBuf,
    /// The folders in which a shell looks for programs.
    pub(super) search: Vec<PathBuf>,
}

impl Here {
    /// Asks the system.
    pub(super) fn find() -> std::io::Result<Self> {
        let search = std::env::var_os("PATH").unwrap_or_default();
        Ok(Self {
            program: std::env::current_exe()?,
            directory: std::env::current_dir()?,
            search: std::env::split_paths(&search).collect(),
        })
    }

    /// How this program is called from the folder in which it was started, and whether only from there.
    fn call(&self) -> (String, bool) {
        let name = self.program.file_name().unwrap_or_default();
        if self.search.iter().any(|folder| folder.join(name) == self.program) {
            return (quoted(&name.to_string_lossy()), false);
        }
        let (path, near) = match self.program.strip_prefix(&self.directory) {
            // One word alone would be looked for in PATH.
            Ok(near) => (Path::new(".").join(near), true),
            Err(_) => (self.program.clone(), false),
        };
        (quoted(&path.to_string_lossy()), near)
    }
}

/// The lines, for a demo whose frontend listens at `frontend` and whose control API at `api`.
pub(super) fn hints(
    here: &Here,
    moved: &Moved,
    data: &Path,
    api: SocketAddr,
    frontend: &Ports,
) -> std::io::Result<Vec<Hint>> {
    let (program, mut near) = here.call();
    let url = format!("http://{api}");
    let at = if url == API_DEFAULT {
        String::new()
    } else {
        format!(" --api {url}")
    };
    let mut push = |example: Example| {
        let path = moved.path(example, &here.directory, data)?;
        near |= Path::new(&path).is_relative();
        let command = format!("{program}{at} push {}", quoted(&path));
        let what = example.what;
        std::io::Result::Ok(Hint { what, command })
    };
    let hint = |what, command| Hint { what, command };
    let outbound = frontend.outbound;
    let mut hints = vec![
        push(HALF)?,
        push(SHIFT)?,
        push(SHOP)?,
        hint("who holds what", format!("{program}{at} status")),
        hint(
            "call as the frontend does",
            format!("curl -H 'Host: reviews' http://{outbound}/reviews/1"),
        ),
        hint(
            "the same, as a proxy",
            format!("curl -x http://{outbound} http://reviews/reviews/1"),
        ),
        hint(
            "always v2, as a tester",
            format!("curl -H 'Host: reviews' -H 'x-beta: 1' http://{outbound}/reviews/1"),
        ),
        hint(
            "what this view reads",
            format!("curl http://{}/metrics", frontend.admin),
        ),
    ];
    if near {
        let directory = quoted(&here.directory.to_string_lossy());
        hints.insert(0, hint("where these paths begin", format!("cd {directory}")));
    }
    Ok(hints)
}

/// A word for the shell.
fn quoted(word: &str) -> String {
    let plain = |char: char| char.is_ascii_alphanumeric() || "/._-+:@%".contains(char);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::super::places::{Instance, PORT_BASE_DEFAULT};
    use super::*;

    fn here(program: &str, directory: &Path) -> Here {
        Here {
            program: program.into(),
            directory: directory.into(),
            search: vec!["/usr/local/bin".into()],
        }
    }

    fn lines(here: &Here, data: &Path, api: &str) -> Vec<String> {
        let frontend = Instance::Frontend.ports(PORT_BASE_DEFAULT);
        let hints = hints(here, &Moved::default(), data, api.parse().unwrap(), &frontend).unwrap();
        hints.into_iter().map(|hint| hint.command).collect()
    }

    #[test]
    fn in_the_repository_the_paths_are_those_of_the_repository() {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("..")
            .canonicalize()
            .unwrap();
        let program = repository.join("target/release/outrigger");
        let data = tempfile::tempdir().unwrap();
        let lines = lines(
            &here(program.to_str().unwrap(), &repository),
            data.path(),
            "127.0.0.1:9900",
        );
        assert_eq!(lines[0], format!("cd {}", repository.display()));
        assert_eq!(
            lines[1],
            "./target/release/outrigger push config-examples/demo-half.yaml"
        );
        assert_eq!(
            lines[5],
            "curl -H 'Host: reviews' http://127.0.0.1:9912/reviews/1"
        );
    }

    #[test]
    fn elsewhere_the_files_are_copies_and_a_program_of_the_search_path_goes_by_its_name() {
        let (data, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let lines = lines(
            &here("/usr/local/bin/outrigger", elsewhere.path()),
            data.path(),
            "127.0.0.1:7000",
        );
        let file = data.path().join("demo-half.yaml");
        assert!(file.exists());
        assert_eq!(
            lines[0],
            format!("outrigger --api http://127.0.0.1:7000 push {}", file.display())
        );
    }

    #[test]
    fn words_that_a_shell_would_take_apart_are_quoted() {
        for (word, expected) in [
            ("/a/b-c.d", "/a/b-c.d"),
            ("my files/x", "'my files/x'"),
            ("it's", r"'it'\''s'"),
            ("$HOME", "'$HOME'"),
        ] {
            assert_eq!(quoted(word), expected);
        }
    }
}
