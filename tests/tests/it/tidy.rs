//! The rules of the house that no compiler keeps. It reads the sources; nothing runs.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The floors of the proxy, from the ground up. A module imports from lower floors only; those of one floor do not
/// know one another. A new module gets its place here, in the same change.
const FLOORS: &[&[&str]] = &[
    &["frames"],
    &[
        "error", "drain", "timer", "pump", "http1", "http2", "interim", "browsers",
    ],
    &["arriving"],
    &["telemetry"],
    &["tls"],
    &["stream"],
    &["upstream"],
    &["snapshot"],
    &["request", "tcp"],
    &["listener", "names", "control", "admin"],
    &["apply", "fuzzing"],
    &["app"],
    &["main"],
];

/// Crates that have one door in the proxy: the path that code names, and the modules that may name it.
const DOORS: &[(&str, &[&str])] = &[
    ("rustls", &["tls/"]),
    ("tokio_rustls", &["tls/"]),
    ("rustls_pki_types", &["tls/"]),
    ("x509_parser", &["tls/"]),
    ("prometheus", &["telemetry/metrics/"]),
    ("hickory_resolver", &["upstream/discovery/asking/"]),
    ("hickory_proto", &["names/"]),
    ("resolv_conf", &["names/"]),
    ("hyper::server", &["listener.rs", "listener/", "admin.rs"]),
    (
        "h2",
        &[
            "frames/",
            "http2.rs",
            "arriving.rs",
            "error.rs",
            "upstream/http2.rs",
            "upstream/health/",
            "upstream/pool.rs",
            "listener/",
            "request/body.rs",
            "request/attempt.rs",
            "request/upgrade.rs",
            "control/workload_api.rs",
        ],
    ),
    ("httparse", &["http1/"]),
    ("httpdate", &["request/retry/pushback.rs"]),
    (
        "hyper::client",
        &[
            "upstream/http1/cased.rs",
            "upstream/health/",
            "control.rs",
            "control/",
        ],
    ),
];

/// Names that say nothing of what is inside.
const EMPTY_NAMES: &[&str] = &[
    "util", "utils", "common", "helper", "helpers", "misc", "manager", "types", "traits",
];

/// As long as a file may be, tests left out: past this it no longer fits on a desk.
const LINES_MAX: usize = 600;

/// One source file.
struct Source {
    /// Its path inside the workspace.
    path: PathBuf,
    text: String,
}

impl Source {
    /// Its path inside the `src` of the proxy, if it is there.
    fn in_proxy(&self) -> Option<String> {
        let inside = self.path.strip_prefix("proxy/src").ok()?;
        Some(inside.to_string_lossy().into_owned())
    }

    /// Its code: without comments, text between quotes, and what is compiled for tests only.
    fn code(&self) -> String {
        if self.path.ends_with("tests.rs") {
            return String::new();
        }
        let without_tests = match self.text.find("#[cfg(test)]\nmod tests {") {
            Some(tests) => &self.text[..tests],
            None => &self.text,
        };
        without_text_and_comments(without_tests)
    }

    /// The first line of the code that has this in it, for a message.
    fn line_of(&self, needle: &str) -> usize {
        let at = self.text.find(needle).unwrap_or_default();
        self.text[..at].lines().count() + 1
    }
}

/// Rust without its comments and the insides of its string literals.
fn without_text_and_comments(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['"', '/', '\'']) {
        code.push_str(&rest[..at]);
        let (here, raw) = (
            &rest[at..],
            rest[..at].ends_with('r') || rest[..at].ends_with("r#"),
        );
        let skipped = if here.starts_with("//") {
            here.find('\n').unwrap_or(here.len())
        } else if here.starts_with("/*") {
            here.find("*/").map_or(here.len(), |end| end + 2)
        } else if here.starts_with("'\"'") || here.starts_with("'\\''") {
            here[1..].find('\'').unwrap_or_default() + 2
        } else if here.starts_with('"') {
            code.push_str("\"\"");
            text_length(here, raw)
        } else {
            code.push_str(&here[..1]);
            1
        };
        rest = &here[skipped..];
    }
    code.push_str(rest);
    code
}

/// The length of the string literal that begins here, its quotes included.
fn text_length(text: &str, raw: bool) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if !raw => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Every Rust source of the workspace.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .unwrap();
    let mut found = Vec::new();
    for folder in ["config", "proxy", "control-api", "tests", "fuzz", "bench"] {
        walk(&root, &root.join(folder), &mut found);
    }
    assert!(
        found.len() > 20,
        "the sources are not where they are expected: {}",
        root.display()
    );
    found
}

fn walk(root: &Path, folder: &Path, found: &mut Vec<Source>) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            walk(root, &path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(root).unwrap().to_owned();
            found.push(Source { path, text });
        }
    }
}

/// Ends the test if anything was found.
fn none(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|modules| modules.contains(&module))
}

/// The top modules of this crate that some code names: after `crate::`, or after `super::` in a file at the top.
fn named_modules(code: &str, at_the_top: bool) -> Vec<String> {
    let roots: &[&str] = if at_the_top {
        &["crate::", "super::"]
    } else {
        &["crate::"]
    };
    let mut named = Vec::new();
    for root in roots {
        for (at, _) in code.match_indices(root) {
            // `pub(in crate::x)` and `outrigger_config::crate_x` are not meant.
            if code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == ':')
            {
                continue;
            }
            let rest = &code[at + root.len()..];
            match rest.strip_prefix('{') {
                Some(group) => named.extend(first_names(group)),
                None => named.push(identifier(rest)),
            }
        }
    }
    named
}

fn identifier(text: &str) -> String {
    let length = text
        .find(|char: char| !char.is_alphanumeric() && char != '_')
        .unwrap_or(text.len());
    text[..length].to_owned()
}

/// The first name of each member of a group in a `use`.
fn first_names(group: &str) -> Vec<String> {
    let mut depth = 0;
    let mut names = vec![String::new()];
    for char in group.chars() {
        match char {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(String::new()),
            _ => names.last_mut().unwrap().push(char),
        }
    }
    names.iter().map(|name| identifier(name.trim())).collect()
}

#[test]
fn a_module_of_the_proxy_imports_from_lower_floors_only() {
    let mut problems = Vec::new();
    for source in sources() {
        let Some(inside) = source.in_proxy() else { continue };
        let own = inside.split(['/', '.']).next().unwrap();
        if own == "lib" {
            continue;
        }
        let Some(own_floor) = floor(own) else {
            problems.push(format!(
                "proxy/src/{inside}: the module `{own}` has no floor; give it one in FLOORS"
            ));
            continue;
        };
        for named in named_modules(&source.code(), !inside.contains('/')) {
            let allowed = match floor(&named) {
                // An item of the crate root is no module, and belongs to nobody.
                None => named.chars().next().is_some_and(char::is_uppercase),
                Some(floor) => floor < own_floor || named == own,
            };
            if !allowed {
                let line = source.line_of(&format!("::{named}"));
                problems.push(format!(
                    "proxy/src/{inside}:{line}: `{own}` may not know `{named}`, which is not below it"
                ));
            }
        }
    }
    none(&problems);
}

#[test]
fn every_outside_crate_has_one_door() {
    let mut problems = Vec::new();
    for source in sources() {
        let Some(inside) = source.in_proxy() else { continue };
        let code = source.code();
        for (name, doors) in DOORS {
            let open = doors
                .iter()
                .any(|door| inside == *door || (door.ends_with('/') && inside.starts_with(door)));
            if names_crate(&code, name) && !open {
                let line = source.line_of(name);
                let doors = doors.join(", ");
                problems.push(format!(
                    "proxy/src/{inside}:{line}: names {name}, whose door is {doors}"
                ));
            }
        }
    }
    none(&problems);
}

/// Whether some code names this path, alone or in a group after its crate.
fn names_crate(code: &str, path: &str) -> bool {
    let starts = |code: &str, name: &str| {
        code.match_indices(name).any(|(at, _)| {
            let before = code[..at].chars().next_back();
            let after = code[at + name.len()..].chars().next();
            let part = |char: Option<char>| char.is_some_and(|char| char.is_alphanumeric() || char == '_');
            !part(before) && !part(after) && before != Some(':')
        })
    };
    match path.split_once("::") {
        None => code.match_indices(path).any(|(at, _)| {
            let whole =
                !code[..at].ends_with(|char: char| char.is_alphanumeric() || char == '_' || char == ':');
            whole && code[at + path.len()..].starts_with("::")
        }),
        Some((root, module)) => {
            let grouped = code.match_indices(&format!("{root}::{{")).any(|(at, opening)| {
                first_names(&code[at + opening.len()..])
                    .iter()
                    .any(|name| name == module)
            });
            grouped || starts(code, path)
        }
    }
}

#[test]
fn no_file_is_longer_than_a_desk() {
    let mut problems = Vec::new();
    for source in sources() {
        let tests = source.path.ends_with("tests.rs") || source.path.starts_with("tests/tests");
        let length = source
            .text
            .find("#[cfg(test)]\nmod tests {")
            .unwrap_or(source.text.len());
        let lines = source.text[..length].lines().count();
        if lines > LINES_MAX && !tests {
            problems.push(format!(
                "{}: {lines} lines without its tests; {LINES_MAX} is the most",
                source.path.display()
            ));
        }
    }
    none(&problems);
}

#[test]
fn nothing_is_left_for_later_without_saying_where_it_is_written_down() {
    let words = ["TO", "FIX", "XX"].map(|start| {
        start.to_owned()
            + if start == "TO" {
                "DO"
            } else if start == "FIX" {
                "ME"
            } else {
                "X"
            }
    });
    let mut problems = Vec::new();
    for source in sources() {
        for (number, line) in source.text.lines().enumerate() {
            if words.iter().any(|word| line.contains(word.as_str())) {
                problems.push(format!(
                    "{}:{}: {}",
                    source.path.display(),
                    number + 1,
                    line.trim()
                ));
            }
        }
    }
    none(&problems);
}

#[test]
fn no_module_has_a_name_that_says_nothing() {
    let mut problems = Vec::new();
    for source in sources() {
        for part in &source.path {
            let name = part.to_string_lossy();
            if EMPTY_NAMES.contains(&name.trim_end_matches(".rs")) {
                let mut problem = format!(
                    "{}: `{name}` says nothing of what is inside; ",
                    source.path.display()
                );
                let _ = write!(problem, "name it by its work");
                problems.push(problem);
            }
        }
    }
    none(&problems);
}

#[test]
fn every_module_says_what_it_is_for() {
    let mut problems = Vec::new();
    for source in sources() {
        // What stands beside a module in a file of its own is known by that module.
        let beside = source.path.ends_with("tests.rs");
        if !beside && !source.text.starts_with("//! ") && !source.text.starts_with("#!") {
            problems.push(format!(
                "{}: the first line says not what it is for (`//! …`)",
                source.path.display()
            ));
        }
    }
    none(&problems);
}

#[test]
fn the_reader_of_sources_sees_what_it_should() {
    let code = without_text_and_comments(
        "use a; // crate::b\nlet c = \"crate::d \\\" x\"; let e = '\"'; /* crate::f */ g",
    );
    assert_eq!(
        code,
        "use a; \nlet c = \"\"; let e = ; \n g".replace("\n g", " g")
    );
    assert_eq!(
        named_modules(
            "use crate::{error, snapshot::{self, Route}, Top}; crate::drain::x",
            false
        ),
        ["error", "snapshot", "Top", "drain"]
    );
    assert!(names_crate(
        "use hyper::{body::Incoming, server};",
        "hyper::server"
    ));
    assert!(names_crate("hyper::server::conn", "hyper::server"));
    assert!(!names_crate(
        "use hyper::body; my_hyper::server::x",
        "hyper::server"
    ));
    assert!(names_crate("use rustls::ServerConfig;", "rustls"));
    assert!(!names_crate("use tokio_rustls::TlsStream;", "rustls"));
}
