//! Documents that are not read again are judged as if they were.

use super::*;

const MESH: &str = "kind: Mesh\ntrust_domain: shop\ndefaults: { tls: { mode: strict } }\n";
const A: &str = "kind: Service\nname: a\nhosts: [a, aa]\nbackends: [{ name: v1, discover: { static: [\"10.0.0.1:80\"] } }]\n\
                 allow: [{ from: [\"spiffe://shop/b\"] }]\n";
const B: &str = "kind: Service\nname: b\nbackends: [{ name: v1, discover: { dns: b.internal, port: 80 } }]\n";
const GATEWAY: &str = "kind: Gateway\nname: edge\nservices: [{ service: a, hosts: [a.example.com] }]\n";

fn whole() -> Vec<String> {
    [MESH, A, B, GATEWAY].map(str::to_owned).to_vec()
}

/// The whole with one document said in another way.
fn with(old: &str, new: &str) -> Vec<Document> {
    let said: Vec<String> = whole()
        .iter()
        .map(|text| if text == old { new.to_owned() } else { text.clone() })
        .collect();
    documents(&said)
}

/// The whole and one document more.
fn and(more: &str) -> Vec<Document> {
    documents(&[whole(), vec![more.to_owned()]].concat())
}

/// Each in a file of its own, as they are stored.
fn documents(texts: &[String]) -> Vec<Document> {
    texts
        .iter()
        .enumerate()
        .flat_map(|(number, text)| split(&format!("{number}.yaml"), text).unwrap())
        .collect()
}

/// What may come next, with what is to be said of it.
fn next() -> Vec<(Vec<Document>, &'static str)> {
    let mut moved = documents(&whole());
    moved[1].line = 7;
    let mut elsewhere = documents(&whole());
    elsewhere[2].file = "b.yaml".to_owned();
    let mut misnamed = documents(&whole());
    misnamed[1].name = "c".to_owned();
    let mut broken = documents(&whole());
    broken[2].text = "kind: Service\nname: b\nbackends: [\n".to_owned();
    let mut blind = documents(&whole());
    blind[1].text = A.replace("hosts: [a, aa]", "hosts: {}");
    let mut without = documents(&whole());
    without.remove(1);
    vec![
        (documents(&whole()), ""),
        (moved, ""),
        (elsewhere, ""),
        (with(B, &B.replace("port: 80", "port: 81")), ""),
        (and(&B.replace("name: b", "name: c")), ""),
        (
            with(B, &B.replace("name: b\n", "name: b\nhosts: [AA]\n")),
            "the host `aa` is taken by the service `a` at 1.yaml:3",
        ),
        (
            with(A, &A.replace("[a, aa]", "[a, b]")),
            "the host `b` is taken by the service `a` at 1.yaml:3",
        ),
        (and(B), "the service `b` is there already, at 2.yaml:2"),
        (
            with(MESH, &MESH.replace("strict", "disabled")),
            "`allow` lets nobody in here",
        ),
        (
            with(MESH, &MESH.replace("shop", "other")),
            "`spiffe://shop/b` can never call",
        ),
        (and(MESH), "there is a Mesh document already, at 0.yaml:1"),
        (and(GATEWAY), "the gateway `edge` is there already, at 3.yaml:2"),
        (
            without,
            "3.yaml:3:23: services[0].service: there is no service `a`",
        ),
        (
            with(
                A,
                "kind: Service\nname: a\nprotocol: tcp\nbackends: [{ name: v1, discover: { static: [\"10.0.0.1:80\"] } }]\n",
            ),
            "speaks tcp",
        ),
        (misnamed, "handed over as the Service `c`"),
        (broken, "2.yaml:"),
        (blind, "1.yaml:3:8: hosts"),
    ]
}

#[test]
fn a_check_after_another_says_what_a_check_says() {
    for (before, _) in next() {
        let Ok((_, known)) = check_after(&before, (&[], &Known::default())) else {
            continue;
        };
        for (documents, problem) in next() {
            let alone = check(&documents);
            let after = check_after(&documents, (&before, &known)).map(|(config, _)| config);
            assert_eq!(after, alone);
            let said = lines(&alone.err().unwrap_or_default());
            assert_eq!(said.is_empty(), problem.is_empty(), "{said}");
            assert!(said.contains(problem), "{said}");
        }
    }
}

#[test]
fn what_stays_is_not_read_again() {
    let before = documents(&whole());
    let (config, known) = check_after(&before, (&[], &Known::default())).unwrap();
    let after = with(B, &B.replace("port: 80", "port: 81"));
    let (again, _) = check_after(&after, (&before, &known)).unwrap();
    let same = |name: usize| Arc::ptr_eq(&config.services[name], &again.services[name]);
    assert!(same(0), "`a` was read again");
    assert!(!same(1), "`b` has changed");
}
