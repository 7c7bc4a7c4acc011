//! A token in the wrong hands: what is guessed is held back by its source, wherever it says it comes from, and nobody else
//! is; what is too long is not read.

use outrigger_tests::{eventually, within};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use super::{Desk, ran};

/// A token with the id of this one and the secret of that one.
fn guess(id_of: &str, secret_of: &str) -> String {
    let part = |token: &str, at: usize| token.split('.').nth(at).unwrap().to_owned();
    id_of.replace(&part(id_of, 2), &part(secret_of, 2))
}

impl Desk {
    /// The refusals of the audit log.
    async fn refusals(&self) -> Vec<Value> {
        let list = self.run("audit --json").await.ok().json();
        let rows = list["rows"].as_array().unwrap().iter();
        rows.filter(|row| row["deed"] == "refused").cloned().collect()
    }
}

#[tokio::test]
async fn who_guesses_the_secret_of_a_token_is_held_back_and_who_has_it_gets_in_from_elsewhere() {
    let desk = Desk::new(&[]).await;
    let token = desk.token("reviews", 1, "1h").await;
    let wrong = json!({ "csr": desk.csr(), "token": guess(&token, &desk.token("reviews", 1, "1h").await) });
    for _ in 0..20 {
        let (status, answer) = desk.post(&wrong, "");
        assert_eq!(
            (status, &answer["reason"]),
            (403, &json!("token-unknown")),
            "{answer}"
        );
    }
    // The source is what the connection comes from, and not what is said of it. One more is heard each 3 s, so on a slow
    // machine some of ten are; of a source that is new, all would be.
    for said in ["", "-H x-forwarded-for:10.9.9.9", "-H forwarded:for=10.9.9.9"] {
        let is_held_back = || {
            let (status, answer) = desk.post(&wrong, said);
            status == 429 && answer["reason"] == "rate-limited"
        };
        assert!((0..10).any(|_| is_held_back()), "{said}");
    }
    let file = desk.path().join("wrong.json");
    std::fs::write(&file, wrong.to_string()).unwrap();
    let command = format!(
        "curl -sS -o /dev/null -D - --data @{} {}/v1/identity",
        file.display(),
        desk.url
    );
    let wait = (0..10).find_map(|_| {
        let headers = ran(desk.path(), &command);
        let wait = headers
            .lines()
            .find_map(|line| line.strip_prefix("retry-after: "));
        wait.map(|seconds| seconds.trim().parse::<u64>().unwrap())
    });
    assert!((1..=4).contains(&wait.unwrap()), "{wait:?}");

    // From elsewhere the right one is heard, and the guesses have used nothing up.
    let right = json!({ "csr": desk.csr(), "token": token });
    let (status, answer) = desk.post(&right, "--interface 127.0.0.2");
    assert_eq!(status, 200, "{answer}");

    let refusals = desk.refusals().await;
    let id = token.split('.').nth(1).unwrap();
    let guesses: Vec<&Value> = refusals
        .iter()
        .filter(|row| row["reason"] == "token-unknown")
        .collect();
    assert!(guesses.len() >= 20, "{refusals:?}");
    assert!(
        guesses
            .iter()
            .all(|row| row["source"] == "127.0.0.1" && row["token"] == id)
    );
    assert!(refusals.iter().any(|row| row["reason"] == "rate-limited"));
}

#[tokio::test]
async fn a_certificate_and_a_token_of_another_service_do_not_add_up() {
    let desk = Desk::over_tls(&[]).await;
    let roots = desk.run("ca bundle").await.ok().stdout;
    std::fs::write(desk.path().join("known.pem"), roots).unwrap();
    let reviews = desk.token("reviews", 1, "1h").await;
    let (_, answer) = desk.post(
        &json!({ "csr": desk.csr(), "token": reviews }),
        "--cacert known.pem",
    );
    desk.keep(&answer);
    let shown = "--cacert known.pem --cert chain.pem --key key.pem";
    let ratings = desk.token("ratings", 1, "1h").await;
    let body = |service: &str| json!({ "csr": desk.csr(), "token": ratings, "service": service });
    let (status, refused) = desk.post(&body("reviews"), shown);
    assert_eq!(
        (status, &refused["reason"]),
        (403, &json!("other-service")),
        "{refused}"
    );
    let (status, answer) = desk.post(&body("ratings"), shown);
    assert_eq!(
        (status, &answer["spiffe_id"]),
        (200, &json!("spiffe://mesh.local/ratings"))
    );
    let refusals = desk.refusals().await;
    assert_eq!(refusals.len(), 1);
    assert_eq!(refusals[0]["token"], ratings.split('.').nth(1).unwrap());
}

#[tokio::test]
async fn what_is_too_long_or_no_request_is_refused_and_uses_nothing_up() {
    let desk = Desk::new(&[]).await;
    let token = desk.token("reviews", 1, "1h").await;
    let of_length = |length: usize| json!({ "csr": "a".repeat(length), "token": token });
    for (body, reason) in [
        (of_length(9 * 1024), "malformed-csr"),
        (of_length(17 * 1024), "malformed-request"),
        (json!(token), "malformed-request"),
        (
            json!({ "csr": desk.csr(), "token": [token] }),
            "malformed-request",
        ),
        (json!({ "csr": desk.csr(), "token": "" }), "token-malformed"),
        (
            json!({ "csr": desk.csr(), "token": format!("{token}.more") }),
            "token-malformed",
        ),
        (
            json!({ "csr": desk.csr(), "token": token, "service": "outrigger/control" }),
            "other-service",
        ),
        (
            json!({ "csr": desk.csr(), "token": token, "service": "" }),
            "other-service",
        ),
    ] {
        let (status, answer) = desk.post(&body, "");
        assert!((400..500).contains(&status), "{status} {answer}");
        assert_eq!(answer["reason"], reason, "{answer}");
    }
    let secret = token.split('.').nth(2).unwrap();
    let refusals = desk.refusals().await;
    assert_eq!(refusals.len(), 8);
    assert!(refusals.iter().all(|row| !row.to_string().contains(secret)));
    assert_eq!(desk.join(&token).0, 200);
}

#[tokio::test]
async fn a_source_with_as_many_connections_as_it_may_have_gets_no_more_until_one_of_them_ends() {
    let desk = Desk::new(&["--connections-per-source", "3"]).await;
    let address = desk.url.strip_prefix("http://").unwrap();
    // Whoever is silent holds its place all the same.
    let connect = async || tokio::net::TcpStream::connect(address).await.unwrap();
    let held = [connect().await, connect().await, connect().await];
    let mut one_more = connect().await;
    let ended = within("the fourth to be closed", one_more.read_u8()).await;
    assert!(ended.is_err(), "{ended:?}");
    let told = desk.api.logged("that there are too many", |line| {
        line["message"]
            .as_str()
            .is_some_and(|text| text.contains("--connections-per-source"))
    });
    let told = told.await;
    assert_eq!(
        (&told["level"], &told["source"]),
        (&json!("WARN"), &json!("127.0.0.1"))
    );
    drop(held);
    eventually("the API to be heard again", async || {
        (desk.run("status").await.code == 0).then_some(())
    })
    .await;
}
