//! Config in from a watched file or folder.
//!
//! It is looked at a few times a second rather than watched by the kernel: that works on every file system, for
//! Kubernetes' swapped symbolic links and for editors that replace a file, and costs a few calls on the control
//! thread.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use outrigger_config::Problem;
use xxhash_rust::xxh3::Xxh3;

use crate::control::Push;
use crate::snapshot::Origin;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A watched file, or a folder whose `.yaml` and `.yml` files are.
#[derive(Debug)]
pub(crate) struct Files {
    path: PathBuf,
    /// How things stood when they were last read.
    read: Option<Marks>,
    /// How things stood at the last look.
    seen: Option<Marks>,
}

/// What shows that a file changed, without reading it.
type Marks = Vec<(PathBuf, Option<(SystemTime, u64)>)>;

impl Files {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            read: None,
            seen: None,
        }
    }

    /// The next state of the files. Waits until they differ from the last one.
    pub(crate) async fn next(&mut self) -> Push {
        loop {
            let marks = marks(&self.path);
            // A change is read once two looks agree on it: a file that is just being written settles first.
            let settled = self.read.is_none() || self.seen.as_ref() == Some(&marks);
            let changed = self.read.as_ref() != Some(&marks);
            self.seen = Some(marks.clone());
            if settled && changed {
                self.read = Some(marks);
                return read(&self.path);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

fn marks(path: &Path) -> Marks {
    let mark = |path: PathBuf| {
        let mark = std::fs::metadata(&path)
            .and_then(|file| Ok((file.modified()?, file.len())))
            .ok();
        (path, mark)
    };
    files(path).unwrap_or_default().into_iter().map(mark).collect()
}

/// The files to read, in the order of their names.
fn files(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    if !std::fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let file = entry?.path();
        let is_yaml = file
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "yml");
        if is_yaml && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Push {
    let mut hash = Xxh3::new();
    let mut documents = Vec::new();
    let mut problems = Vec::new();
    let unreadable = |path: &Path, error: &std::io::Error| Problem {
        file: path.display().to_string(),
        line: 1,
        column: 1,
        path: String::new(),
        message: format!("cannot be read: {error}"),
    };
    match files(path) {
        Err(error) => problems.push(unreadable(path, &error)),
        Ok(files) => {
            for file in files {
                match std::fs::read_to_string(&file) {
                    Err(error) => problems.push(unreadable(&file, &error)),
                    Ok(text) => {
                        hash.update(text.as_bytes());
                        match outrigger_config::split(&file.display().to_string(), &text) {
                            Ok(found) => documents.extend(found),
                            Err(found) => problems.extend(found),
                        }
                    }
                }
            }
        }
    }
    if documents.is_empty() && problems.is_empty() {
        // Far more often a file that is just being written, or the wrong path, than the wish to serve nothing.
        problems.push(Problem {
            file: path.display().to_string(),
            line: 1,
            column: 1,
            path: String::new(),
            message: "holds no document; expected a YAML file, or a folder with .yaml or .yml files in it"
                .into(),
        });
    }
    let documents = if problems.is_empty() {
        Ok(documents)
    } else {
        Err(problems)
    };
    Push {
        version: format!("{:016x}", hash.digest()),
        origin: Origin::File,
        documents,
    }
}
