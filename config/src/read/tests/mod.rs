//! The examples are the tests: every valid one is read, every invalid one is refused in the words beside it.

mod actions;
mod any_text;
mod known;

use std::fs;
use std::path::{Path, PathBuf};

use super::*;

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config-examples")
}

/// The YAML files of a folder, by name.
fn yaml_files(folder: &Path) -> Vec<(String, String)> {
    let mut files: Vec<(String, String)> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read_to_string(&path).unwrap())
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{folder:?} holds no examples");
    files
}

fn read(file: &str, text: &str) -> Result<Config, Vec<Problem>> {
    check(&split(file, text)?)
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("{problem}\n")).collect()
}

/// What a text is refused with; empty if it is not.
fn refusal(text: &str) -> String {
    read("f.yaml", text)
        .err()
        .map(|problems| lines(&problems))
        .unwrap_or_default()
}

#[test]
fn every_example_is_valid() {
    for (file, text) in yaml_files(&examples()) {
        let problems = if file.starts_with("proxy") {
            check_bootstrap(&file, &text).err()
        } else {
            read(&file, &text).err()
        };
        assert_eq!(lines(&problems.unwrap_or_default()), "", "{file}");
        assert!(
            text.starts_with("# yaml-language-server: $schema="),
            "{file} does not name its schema"
        );
    }
}

/// With `UPDATE=1` in the environment the promised texts are written anew: read the difference before it is kept.
#[test]
fn every_invalid_example_is_refused_in_the_words_beside_it() {
    let folder = examples().join("invalid");
    for (file, text) in yaml_files(&folder) {
        let found = if file.starts_with("proxy") {
            check_bootstrap(&file, &text).err()
        } else {
            read(&file, &text).err()
        };
        let found = lines(&found.unwrap_or_default());
        assert_ne!(found, "", "{file} is not refused");
        let promise = folder.join(file.replace(".yaml", ".txt"));
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&promise, &found).unwrap();
        }
        assert_eq!(found, fs::read_to_string(&promise).unwrap_or_default(), "{file}");
    }
}

/// A service with these lines after its name.
fn service(rest: &str) -> String {
    format!("kind: Service\nname: reviews\n{rest}")
}

const BACKEND: &str = "backends: [{ name: v1, discover: { static: [10.0.0.1:80] } }]\n";

/// A service whose one route has these lines.
fn route(rest: &str) -> String {
    service(&format!("{BACKEND}routes:\n  - name: default\n{rest}"))
}

#[test]
fn what_yaml_allows_and_people_misread_is_refused() {
    for (text, expected) in [
        (
            "kind: Mesh\ndefaults: &a {}\n",
            "f.yaml:2:11: defaults: anchors (`&name`)",
        ),
        ("kind: Mesh\ndefaults: *a\n", "f.yaml:2:11: "),
        ("kind: !!str Mesh\n", "f.yaml:1:7: kind: tags (`!!str`)"),
        (
            "kind: Mesh\nkind: Mesh\n",
            "f.yaml:2:1: kind: this field is given twice; the first is on line 1",
        ),
        (
            "kind: Mesh\n? [a]\n: b\n",
            "f.yaml:2:3: a list or a mapping cannot be the name of a field",
        ),
        (
            "kind: Mesh\n...\nkind: Mesh\n",
            "f.yaml:3:1: a second document begins here",
        ),
        ("kind: Mesh\n# \0\n", "f.yaml:2:3: the control character U+0000"),
        ("kind: Mesh\r# x\n", "f.yaml:1:11: the control character U+000D"),
        ("kind: \"Mesh\n", "this is not valid YAML"),
        ("- a\n", "f.yaml:1:1: a document is a mapping"),
        (
            "kind: Mesh\n<<: {}\n",
            "f.yaml:2:1: <<: unknown field (allowed: kind, ",
        ),
        (
            &format!("kind: Mesh\na: {}", "[".repeat(100)),
            "nested too deeply",
        ),
        (
            &format!("kind: Mesh\na: {}", "[".repeat(10_000)),
            "nested too deeply",
        ),
        (&format!("kind: Mesh\na: {}", "- ".repeat(100)), "block sequence"),
        (
            &format!("kind: Mesh\n# {}\n", "x".repeat(DOCUMENT_BYTES_MAX)),
            "the document is 1048",
        ),
    ] {
        let found = refusal(text);
        let shown: String = text.chars().take(80).collect();
        assert!(found.contains(expected), "{shown}\n{found}");
        assert_eq!(found.lines().count(), 1, "{shown}\n{found}");
    }
}

/// Each text is refused with one problem, which says this.
fn refused_once<const N: usize>(cases: [(String, &str); N]) {
    for (text, expected) in cases {
        let found = refusal(&text);
        assert!(found.contains(expected), "{text}\n{found}");
        assert_eq!(found.lines().count(), 1, "{text}\n{found}");
    }
}

#[test]
fn a_service_that_makes_no_sense_is_refused_once() {
    refused_once([
        (service("backends: []\n"), "backends: the list is empty"),
        (service("backends:\n"), "backends: found nothing; expected a list"),
        (
            service("backends: [{ name: v1, discover: {} }]\n"),
            "discover: nothing is said here; give one of static, dns, srv",
        ),
        (
            service("backends: [{ name: v1, discover: { http: x } }]\n"),
            "http: unknown field (allowed: static, dns, srv, port,",
        ),
        (
            service("backends: [{ name: v1, discover: { static: [10.0.0.1:80], port: 80 } }]\n"),
            "port: `port` goes with `dns`",
        ),
        (
            service("backends: [{ name: v1, discover: { static: [10.0.0.1:0] } }]\n"),
            "static[0]: port 0",
        ),
        (
            service(&format!("{BACKEND}balance: fastest\n")),
            "balance: `fastest` is not known here (allowed:",
        ),
        (
            service(&format!("{BACKEND}app:\n")),
            "app: nothing is written here",
        ),
        (
            service(&format!("{BACKEND}hosts: [a, A]\n")),
            "hosts[1]: the host `a` is taken by this service at f.yaml:4",
        ),
    ]);
}

#[test]
fn a_route_that_makes_no_sense_is_refused_once() {
    refused_once([
        (route("    to: []\n"), "routes[0].to: the list is empty"),
        (
            route("    to: [{ backend: v1 }, { backend: v1 }]\n"),
            "to[1].backend: this route names `v1` twice",
        ),
        (
            route("    to: [{ backend: v1, weight: 1000001 }]\n"),
            "weight: the weight 1000001 is too large",
        ),
        (
            route("    to: [{ backend: v1, weight: -1 }]\n"),
            "weight: found the number -1; expected a whole number",
        ),
        (
            route("    to: [{ backend: v1 }]\n    match: [{ methods: [G/T] }]\n"),
            "`G/T` is not an HTTP method",
        ),
        (
            route("    to: [{ backend: v1 }]\n    retry: { attempts: 0 }\n"),
            "0 attempts; expected 1 to 10",
        ),
        (
            route("    to: [{ backend: v1 }]\n    retry: { on: [reset, reset] }\n"),
            "on[1]: this failure is listed twice",
        ),
        (
            route("    to: [{ backend: v1 }]\n    timeout: { request: 61m }\n"),
            "request: 61m is too long; at most 1h",
        ),
        (
            route(
                "    to: [{ backend: v1 }]\n    match: [{ headers: [{ name: a, range: { start: x, end: 5 } }] }]\n",
            ),
            "range.start: found the text `x`; expected a whole number",
        ),
        (
            route("    to: [{ backend: v1 }]\n    match: [{ headers: [{ name: a, exat: b }] }]\n"),
            "exat: unknown field; did you mean `exact`?",
        ),
        (
            route("    to: [{ backend: v1 }]\n    match: [{ headers: [{ name: a, exact: 1 }] }]\n"),
            "exact: found the number 1; expected text; put it in quotes: \"1\"",
        ),
    ]);
}

#[test]
fn a_mistake_makes_no_other_mistake_of_what_is_right() {
    refused_once([
        (
            service("backends: [{ name: v1, discover: 5 }]\nroutes: [{ name: a, to: [{ backend: v1 }] }]\n"),
            "discover: found the number 5; expected a mapping such as { dns: reviews.shop.internal, port: 15000 }, or a list",
        ),
        (
            service(&format!(
                "{BACKEND}routes:\n  - name: a\n    match: [{{ methods: GET }}]\n    to: [{{ backend: v1 }}]\n  - name: b\n    to: [{{ backend: v1 }}]\n"
            )),
            "methods: found the text `GET`; expected a list",
        ),
        (
            service(
                "backends: [{ name: v1, discover: { static: [10.0.0.1:80] } }, { name: v2, discover: { static: [10.0.0.2:80] } }]\nruotes: []\n",
            ),
            "ruotes: unknown field; did you mean `routes`?",
        ),
    ]);
}

#[test]
fn documents_are_judged_together() {
    let mesh = "kind: Mesh\n";
    assert_eq!(
        refusal(&format!("{mesh}---\n{mesh}")),
        "f.yaml:3:1: there is a Mesh document already, at f.yaml:1; a mesh has one\n"
    );
    let reviews = service(BACKEND);
    assert_eq!(
        refusal(&format!("{reviews}---\n{reviews}")),
        "f.yaml:6:7: name: the service `reviews` is there already, at f.yaml:2\n"
    );
    assert_eq!(
        refusal(&format!(
            "{reviews}---\n{}",
            reviews.replace("name: reviews\n", "name: x\nhosts: [Reviews]\n")
        )),
        "f.yaml:7:9: hosts[0]: the host `reviews` is taken by the service `reviews` at f.yaml:2; a host belongs to \
         one service\n"
    );
    let config = read(
        "f.yaml",
        &format!(
            "{}---\n{reviews}",
            reviews.replace("name: reviews", "name: zebra")
        ),
    )
    .unwrap();
    let names: Vec<&str> = config
        .services
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    assert_eq!(names, ["reviews", "zebra"]);
}

#[test]
fn a_document_handed_over_under_another_name_is_refused() {
    let mut documents = split("f.yaml", &service(BACKEND)).unwrap();
    documents[0].name = "ratings".to_owned();
    assert_eq!(
        lines(&check(&documents).unwrap_err()),
        "f.yaml:1:1: this document was handed over as the Service `ratings` but says that it is the Service `reviews`\n"
    );
}

#[test]
fn a_file_without_kinds_is_refused_with_all_its_problems() {
    let found = refusal(&format!(
        "name: a\n{BACKEND}\n---\nkind: Mesh\ndefaults: 5\n---\nkind: Ingress\n"
    ));
    assert_eq!(
        found,
        "f.yaml:1:1: the field `kind` is missing (allowed: Service, Mesh, Gateway)\n\
         f.yaml:6:11: defaults: found the number 5; expected a mapping with the fields balance, limits, ejection, slow_start, discover, timeout, retry, tls\n\
         f.yaml:8:7: kind: `Ingress` is not known here (allowed: Service, Mesh, Gateway)\n"
    );
    assert_eq!(
        refusal("knid: Service\nname: a\n"),
        "f.yaml:1:1: knid: unknown field; did you mean `kind`?\n"
    );
}

#[test]
fn texts_joined_again_read_the_same() {
    let file = format!(
        "\u{feff}# head\n--- # one\r\n{}---\n\n# nothing\n---\n--- {{ kind: Mesh }}",
        service(BACKEND)
    );
    let documents = split("f.yaml", &file).unwrap();
    let places: Vec<(&str, usize)> = documents
        .iter()
        .map(|document| (document.key(), document.line))
        .collect();
    assert_eq!(places, [("reviews", 3), ("@mesh", 10)]);
    let texts: Vec<&str> = documents.iter().map(|document| document.text.as_str()).collect();
    assert_eq!(texts[0], service(BACKEND));
    let again = split("f.yaml", &texts.join("---\n")).unwrap();
    let again_texts: Vec<&str> = again.iter().map(|document| document.text.as_str()).collect();
    assert_eq!(texts, again_texts);
    assert_eq!(check(&documents).unwrap(), check(&again).unwrap());
}

#[test]
fn a_document_alone_has_its_problems_at_the_same_places() {
    let good = service(BACKEND);
    let file = format!(
        "# é\n{good}---\n# ünï\nkind: Service\nname: x\n# ó\nhosts: [é, b]\nbackends: [{{ nmae: ü, discover: {{}} }}]\n"
    );
    let documents = split("f.yaml", &file).unwrap();
    let whole = check(&documents).unwrap_err();
    assert_eq!(
        lines(&whole),
        "f.yaml:10:9: hosts[0]: `é` is not a host name: expected labels of a-z, 0-9, `-` and `_` with dots between \
         them, each 1 to 63 long\n\
         f.yaml:11:14: backends[0].nmae: unknown field; did you mean `name`? (allowed: name, discover, tls)\n\
         f.yaml:11:33: backends[0].discover: nothing is said here; give one of static, dns, srv\n"
    );
    assert_eq!(check(&documents[1..]).unwrap_err(), whole);
    let source_lines: Vec<&str> = file.lines().collect();
    assert!(
        source_lines[10]
            .chars()
            .skip(13)
            .collect::<String>()
            .starts_with("nmae")
    );
}

#[test]
fn more_problems_than_anyone_reads_are_cut_short() {
    let many: String = (0..200).map(|index| format!("field{index}: 1\n")).collect();
    let problems = read("f.yaml", &service(&format!("{BACKEND}{many}"))).unwrap_err();
    assert_eq!(problems.len(), PROBLEMS_MAX + 1);
    assert!(problems.last().unwrap().message.contains("there may be more"));
}

#[test]
fn a_bootstrap_is_read_as_strictly() {
    let read = |text: &str| read_bootstrap("p.yaml", text).map_err(|problems| lines(&problems));
    assert_eq!(read("# all defaults\n"), Ok(Bootstrap::default()));
    assert_eq!(read("kind: Proxy\nworkers: 2\n").unwrap().workers, Some(2));
    for (text, expected) in [
        (
            "kind: Service\n",
            "p.yaml:1:7: kind: `Service` is not known here (allowed: Proxy)",
        ),
        (
            "workers: 0\n",
            "p.yaml:1:10: workers: 0 workers; expected 1 to 256",
        ),
        (
            "config: { control: \"http://a:1\", path: x }\n",
            "p.yaml:1:9: config: `control` and `path` are given together",
        ),
        (
            "config: { control: \"ftp://a\" }\n",
            "config.control: `ftp://a` is not the address of a control API",
        ),
        (
            "config: { control: \"http://a:0\" }\n",
            "config.control: `http://a:0` is not",
        ),
        (
            "config: { control: \"http://a/b\" }\n",
            "config.control: `http://a/b` is not",
        ),
        (
            "admin: 0.0.0.0:9901\n",
            "p.yaml:1:8: admin: 0.0.0.0:9901 is the address of `scrape` already",
        ),
        (
            "listeners: { local: [{ address: 127.0.0.1:15001, service: a }] }\n",
            "is the address of `outbound` already",
        ),
        (
            "listeners: { local: [{ address: x, service: A_ }] }\n",
            "p.yaml:1:33: listeners.local[0].address: found",
        ),
        (
            "listeners: { local: [{ service: A_ }] }\n",
            "p.yaml:1:22: listeners.local[0]: the field `address` is missing",
        ),
        (
            "node: { service: A_ }\n",
            "node.service: `A_` cannot name a service",
        ),
        ("drain: 20\n", "drain: `20` is not a duration"),
        (
            "access_log: none\n",
            "access_log: `none` is not known here (allowed: failures, all, off)",
        ),
        (
            "node: {}\n---\nnode: {}\n",
            "p.yaml:3:1: a proxy has one bootstrap document",
        ),
    ] {
        let found = read(text).unwrap_err();
        assert!(found.contains(expected), "{text}\n{found}");
        assert_eq!(found.lines().count(), 1, "{text}\n{found}");
    }
}

#[test]
fn a_bootstrap_takes_the_addresses_that_there_are() {
    let read = |text: &str| read_bootstrap("p.yaml", text).map_err(|problems| lines(&problems));
    for address in [
        "http://a",
        "https://a:9900",
        "http://a.b:80/",
        "http://[::1]:80",
        "http://[::1]",
    ] {
        read(&format!("config: {{ control: \"{address}\" }}\n")).unwrap();
    }
    read("listeners: { inbound: 127.0.0.1:0, outbound: 127.0.0.1:0 }\nscrape: 127.0.0.1:0\nadmin: 127.0.0.1:0\n").unwrap();
}

#[test]
fn an_identity_comes_from_one_source_and_over_tls() {
    for (text, expected) in [
        (
            "identity: {}\n",
            "identity: an identity comes from `files`, from the control API by `join`, or from an agent",
        ),
        (
            "identity: { join: { control: \"http://a\" } }\n",
            "identity.join.control: `http://a` is not https://",
        ),
    ] {
        let found = lines(&read_bootstrap("p.yaml", text).unwrap_err());
        assert!(found.contains(expected), "{text}\n{found}");
    }
    read_bootstrap("p.yaml", "identity: { join: {} }\n").unwrap();
    // What flags may add is not missed; what only another flag would mend is, by who is asked about the file alone.
    check_bootstrap("p.yaml", "identity: { join: {} }\n").unwrap();
    let text = "config: { path: a.yaml }\nidentity: { join: {} }\n";
    read_bootstrap("p.yaml", text).unwrap();
    let found = lines(&check_bootstrap("p.yaml", text).unwrap_err());
    assert!(
        found.contains("identity.join: joining the mesh takes a control API"),
        "{found}"
    );
}

#[test]
fn null_is_no_way_to_write_a_value() {
    refused_once([
        (
            service("backends: [{ name: v1, discover: { static: null } }]\n"),
            "static: nothing is written here",
        ),
        (
            service(&format!("{BACKEND}balance: ~\n")),
            "balance: nothing is written here",
        ),
        (
            service(&format!("{BACKEND}hosts: null\n")),
            "hosts: found `null`, which is nothing; expected a list",
        ),
    ]);
}

#[test]
fn a_file_full_of_mistakes_is_refused_as_quickly_as_another() {
    let backends: String = (0..5_000)
        .map(|index| format!("  - {{ name: b{index}, discover: {{ static: [] }} }}\n"))
        .collect();
    let targets: String = (0..5_000)
        .map(|index| format!("      - backend: wrong{index}\n"))
        .collect();
    let text = service(&format!(
        "backends:\n{backends}routes:\n  - name: default\n    to:\n{targets}"
    ));
    let problems = read("f.yaml", &text).unwrap_err();
    assert_eq!(problems.len(), PROBLEMS_MAX + 1);
    assert!(
        problems.iter().all(|problem| problem.message.len() < 300),
        "{}",
        problems[0]
    );
}

#[test]
fn a_sidecar_asks_for_so_many_services_by_name_and_no_more() {
    let read = |count: usize| {
        let names: Vec<String> = (0..count).map(|number| format!("s{number}")).collect();
        let text = format!(
            "config: {{ control: \"http://127.0.0.1:9900\", want: [{}] }}\n",
            names.join(", ")
        );
        read_bootstrap("p.yaml", &text).map_err(|problems| lines(&problems))
    };
    assert_eq!(read(512).unwrap().config.want.len(), 512);
    let found = read(513).unwrap_err();
    assert!(
        found.contains("config.want: 513 services; at most 512"),
        "{found:?}"
    );
}
