//! The page docs/edge-cases.md says the truth: its rows are whole, and every test that it names is there.

use std::path::Path;

/// As many rows as the page has.
const ROWS: usize = 37;

/// The texts between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Whether a source has a test with this name.
fn has_test(source: &str, name: &str) -> bool {
    let test = [format!("fn {name}("), format!("fn {name}<")];
    let mut lines = source.lines().rev();
    while let Some(line) = lines.next() {
        if test.iter().any(|test| line.contains(test)) {
            // Between a test's attribute and its name there may be other attributes, each of a line.
            return lines
                .take_while(|line| line.trim_start().starts_with(['#', ' ', ')']))
                .any(|line| line.contains("#[test]") || line.contains("#[tokio::test"));
        }
    }
    false
}

#[test]
fn every_row_of_the_page_about_edge_cases_names_tests_that_are_there() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(here.join("../docs/edge-cases.md")).unwrap();
    let mut problems = Vec::new();
    let mut numbers = Vec::new();
    for line in page.lines() {
        let cells: Vec<_> = line.trim_matches('|').split(" |").map(str::trim).collect();
        let [number, case, _, tests, ..] = cells[..] else {
            continue;
        };
        let Ok(number) = number.parse::<usize>() else {
            continue;
        };
        numbers.push(number);
        let mut file = None;
        let mut named = 0;
        for word in quoted(tests) {
            if word.ends_with(".rs") {
                let path = here.join("tests/it").join(word);
                file = std::fs::read_to_string(&path).ok().map(|source| (word, source));
                if file.is_none() {
                    problems.push(format!("row {number}: there is no {}", path.display()));
                }
            } else if let Some((path, source)) = &file {
                named += 1;
                if !has_test(source, word) {
                    problems.push(format!("row {number}: {path} has no test `{word}`"));
                }
            }
        }
        if named == 0 {
            problems.push(format!("row {number} ({case}): no test"));
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
    assert_eq!(
        numbers,
        (1..=ROWS).collect::<Vec<_>>(),
        "every row once, in order"
    );
}

#[test]
fn the_reader_of_the_page_knows_a_test_from_what_is_none() {
    let source = "#[tokio::test]\nasync fn one() {}\nfn two() {}\n#[test]\n#[ignore]\nfn three() {}\n";
    assert!(has_test(source, "one") && has_test(source, "three"));
    assert!(!has_test(source, "two") && !has_test(source, "thre"));
}
