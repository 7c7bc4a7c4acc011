//! No text at all may do harm: random signs, and examples with mistakes put into them.

use proptest::prelude::*;

use super::*;

/// The seeds that are mutated: every example, valid or not.
fn seeds() -> Vec<String> {
    let folders = [examples(), examples().join("invalid")];
    folders
        .iter()
        .flat_map(|folder| yaml_files(folder))
        .map(|(_, text)| text)
        .collect()
}

/// What must hold for any text at all: no panic, places inside the file, and the same answer for what was split.
fn reads_without_harm(text: &str) {
    let _ = read_bootstrap("p.yaml", text);
    let (documents, problems) = match split("f.yaml", text) {
        Ok(documents) => {
            let problems = check(&documents).err().unwrap_or_default();
            (documents, problems)
        }
        Err(problems) => {
            assert!(!problems.is_empty(), "refused without a reason: {text:?}");
            (Vec::new(), problems)
        }
    };
    let last = text.lines().count().max(1);
    for problem in &problems {
        assert!(
            (1..=last).contains(&problem.line) && problem.column > 0,
            "{problem} in {text:?}"
        );
    }
    let mut once = problems.clone();
    once.dedup();
    assert_eq!(once, problems, "told twice: {text:?}");
    let joined: Vec<&str> = documents.iter().map(|document| document.text.as_str()).collect();
    let again = split("f.yaml", &joined.join("---\n")).unwrap_or_default();
    assert_eq!(again.len(), documents.len(), "{text:?}");
}

/// Pieces that mean something to YAML or to the language.
const PIECES: [&str; 32] = [
    "---\n",
    "...\n",
    "- ",
    "? ",
    ": ",
    "{",
    "}",
    "[",
    "]",
    ",",
    "#",
    "&a ",
    "*a ",
    "!t ",
    "|\n",
    ">-\n",
    "'",
    "\"",
    "\\",
    "\t",
    "\r\n",
    "\n",
    "  ",
    "%YAML 1.2\n",
    "kind: Service\n",
    "name: ",
    "\u{feff}",
    "é",
    "\0",
    "~",
    "\u{85}",
    "\u{2028}",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_read_or_refused(text in any::<String>()) {
        reads_without_harm(&text);
    }

    #[test]
    fn any_row_of_yaml_signs_is_read_or_refused(signs in prop::collection::vec(0..PIECES.len(), 0..40)) {
        let text: String = signs.iter().map(|sign| PIECES[*sign]).collect();
        reads_without_harm(&text);
    }

    #[test]
    fn an_example_with_mistakes_is_read_or_refused(
        seed in any::<prop::sample::Index>(),
        mistakes in prop::collection::vec((any::<prop::sample::Index>(), 0..6_usize, 0..PIECES.len()), 1..6),
    ) {
        let seeds = seeds();
        let mut text: Vec<char> = seed.get(&seeds).chars().collect();
        for (place, cut, sign) in mistakes {
            let place = place.index(text.len() + 1);
            let end = (place + cut).min(text.len());
            text.splice(place..end, PIECES[sign].chars());
        }
        reads_without_harm(&text.into_iter().collect::<String>());
    }
}
