//! How the proxy is started: its file, its flags, its environment, and what it says when they are wrong.

use std::process::Command;

use outrigger_tests::cli::finish;
use outrigger_tests::program::{Program, binary};
use outrigger_tests::{Client, ControlApi, Sidecar, SidecarSpec, Upstream, simple};

/// The proxy with every port left to the system, and no OUTRIGGER_* variable of the developer's.
fn proxy() -> Command {
    let mut command = Command::new(binary("outrigger-proxy"));
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("OUTRIGGER_") {
            command.env_remove(key);
        }
    }
    for flag in ["--outbound", "--scrape", "--admin"] {
        command.args([flag, "127.0.0.1:0"]);
    }
    command
}

/// Runs the proxy until it ends by itself; gives its exit code and what it said.
async fn fails(command: Command) -> (Option<i32>, String) {
    let mut program = Program::spawn("proxy", command);
    let status = program.exited().await;
    let (_, said) = program.written().await;
    (status.code(), said)
}

#[tokio::test]
async fn a_variable_says_what_its_flag_says_and_a_flag_overrules_it() {
    let upstream = Upstream::start("a").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mesh.yaml");
    let service = simple("reviews", &[&upstream], "").app(upstream.address());
    std::fs::write(&file, service.to_string()).unwrap();
    let mut command = Command::new(binary("outrigger-proxy"));
    command.args(["--admin", "127.0.0.1:0"]);
    for (variable, value) in [
        ("NODE_ID", "from-the-environment"),
        ("SERVICE", "reviews"),
        ("PATH", file.to_str().unwrap()),
        ("INBOUND", "127.0.0.1:0"),
        ("OUTBOUND", "127.0.0.1:0"),
        ("LOCAL", "127.0.0.1:0=reviews"),
        ("SCRAPE", "127.0.0.1:0"),
        // No such port can be opened here: the flag above must win.
        ("ADMIN", "203.0.113.1:1"),
        ("WORKERS", "1"),
        ("DRAIN", "3s"),
        ("ACCESS_LOG", "all"),
        ("DNS", "127.0.0.1:53"),
    ] {
        command.env(format!("OUTRIGGER_{variable}"), value);
    }
    let program = Program::spawn("proxy", command);
    let admin = Client::new(program.listening("admin").await);
    outrigger_tests::eventually("the proxy to be ready", async || {
        (admin.get("x", "/ready").await.status() == 200).then_some(())
    })
    .await;
    for (listener, host) in [
        ("inbound", "reviews"),
        ("outbound", "reviews"),
        ("local:reviews", "x"),
    ] {
        let client = Client::new(program.listening(listener).await);
        assert_eq!(client.get(host, "/").await.upstream(), "a", "{listener}");
    }
    program
        .printed("the access log", |line| line.contains("\"status\":200"))
        .await;
}

#[tokio::test]
async fn the_file_is_used_and_a_flag_overrules_it() {
    let upstream = Upstream::start("a").await;
    let api = ControlApi::start().await;
    api.pushed(&format!(
        "{}---\n{}",
        simple("reviews", &[&upstream], ""),
        simple("ratings", &[&upstream], "")
    ))
    .await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("proxy.yaml");
    let text = format!(
        "kind: Proxy\nnode: {{ id: from-the-file, zone: z1, version: v7 }}\nconfig: {{ control: {}, want: [reviews] }}\n\
         listeners: {{ local: [{{ address: 127.0.0.1:0, service: reviews }}] }}\n",
        api.url()
    );
    std::fs::write(&file, text).unwrap();
    let mut command = proxy();
    command.args(["--config", file.to_str().unwrap(), "--node-id", "from-the-flag"]);
    let program = Program::spawn("proxy", command);
    let local = Client::new(program.listening("local:reviews").await);
    let nodes = api
        .nodes_when("it in sync", |list| list["nodes"][0]["state"] == "in-sync")
        .await;
    let node = &nodes["nodes"][0];
    assert_eq!(
        (&node["id"], &node["zone"]),
        (&"from-the-flag".into(), &"z1".into()),
        "{nodes:#}"
    );
    assert_eq!(node["version"], "v7");
    assert_eq!(local.get("x", "/").await.upstream(), "a");
    // What it did not ask for, it does not know.
    let outbound = Client::new(program.listening("outbound").await);
    assert_eq!(outbound.get("reviews", "/").await.status(), 200);
    assert_eq!(outbound.get("ratings", "/").await.reason(), Some("no-service"));
}

#[tokio::test]
async fn a_wrong_file_ends_the_start_with_2_and_every_problem() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("proxy.yaml");
    std::fs::write(
        &file,
        "kind: Proxy\nnode: { idd: x }\ndrain: 20\nconfig: { path: /nowhere }\n",
    )
    .unwrap();
    let mut command = proxy();
    command.args(["--config", file.to_str().unwrap()]);
    let (code, said) = fails(command).await;
    assert_eq!(code, Some(2), "{said}");
    for part in [":2:9: node.idd: ", "did you mean `id`", ":3:8: drain: "] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    let mut command = proxy();
    command.args(["--config", "/no/such/file.yaml"]);
    let (code, said) = fails(command).await;
    assert_eq!(code, Some(2));
    assert!(said.contains("/no/such/file.yaml"), "{said}");
}

#[tokio::test]
async fn a_flag_that_cannot_be_understood_ends_the_start_with_2() {
    for flags in [
        ["--drain", "20"],
        ["--access-log", "some"],
        ["--local", "127.0.0.1:9001"],
        ["--outbound", "reviews"],
        ["--no-such-flag", "x"],
    ] {
        let mut command = Command::new(binary("outrigger-proxy"));
        command.args(flags);
        let (code, said) = fails(command).await;
        assert_eq!(code, Some(2), "{flags:?}: {said}");
        assert!(said.contains(flags[0]), "{flags:?}: {said}");
    }
}

#[tokio::test]
async fn without_a_source_of_configuration_it_does_not_start_and_says_what_to_give() {
    let (code, said) = fails(proxy()).await;
    assert!(code.is_some_and(|code| code != 0), "{said}");
    assert!(said.contains("--control") || said.contains("control"), "{said}");
    assert!(said.contains("--path") || said.contains("path"), "{said}");
}

#[tokio::test]
async fn an_address_that_is_taken_ends_the_start_and_is_named() {
    let upstream = Upstream::start("a").await;
    let file = simple("reviews", &[&upstream], "").to_string();
    let first = Sidecar::start(SidecarSpec::text("first", &file)).await;
    for (flag, taken) in [
        ("--outbound", first.outbound()),
        ("--scrape", first.scrape()),
        ("--admin", first.admin()),
    ] {
        let mut command = Command::new(binary("outrigger-proxy"));
        for other in ["--outbound", "--scrape", "--admin"] {
            let address = if other == flag {
                taken.to_string()
            } else {
                "127.0.0.1:0".into()
            };
            command.args([other, &address]);
        }
        command.args(["--path", first.file().to_str().unwrap()]);
        let (code, said) = fails(command).await;
        assert_eq!(code, Some(1), "{flag}: {said}");
        assert!(said.contains(&taken.to_string()), "{flag}: {said}");
    }
}

#[tokio::test]
async fn a_local_port_for_a_service_that_nobody_has_says_so_until_it_is_pushed() {
    let upstream = Upstream::start("a").await;
    let file = simple("reviews", &[&upstream], "").to_string();
    let sidecar = Sidecar::start(SidecarSpec::text("a", &file).local("ratings")).await;
    let local = Client::new(sidecar.local("ratings"));
    let reply = local.get("x", "/").await;
    assert_eq!((reply.status(), reply.reason()), (404, Some("no-service")));
    sidecar
        .apply(&format!("{file}---\n{}", simple("ratings", &[&upstream], "")))
        .await;
    assert_eq!(local.get("x", "/").await.upstream(), "a");
}

#[tokio::test]
async fn a_source_of_configuration_that_cannot_be_is_told_before_anything_begins() {
    for (arguments, said) in [
        (&[][..], "no source of configuration"),
        (
            &["--control", "http://127.0.0.1:1", "--path", "mesh.yaml"],
            "two sources of configuration",
        ),
        (&["--control", "ftp://127.0.0.1:1"], "ftp://127.0.0.1:1"),
        (&["--control", "https://127.0.0.1:1"], "join token"),
    ] {
        let mut command = proxy();
        command.args(arguments);
        let ended = finish(Program::spawn("outrigger-proxy", command)).await;
        assert_ne!(ended.code, 0);
        let told = format!("{}{}", ended.stdout, ended.stderr);
        assert!(told.contains(said), "{told}");
        assert!(!told.contains("listening") && !told.contains("worker"), "{told}");
    }
}

#[tokio::test]
async fn a_slip_in_what_says_who_it_is_is_the_only_error_of_a_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("proxy.yaml");
    let text = "kind: Proxy\nidentity: { files: { certificate: /c.pem, key: /k.pem, roots: /r.pem } }\n";
    std::fs::write(&file, text).unwrap();
    let zeros = "A".repeat(43);
    let token = format!("ort1.0123456789abcdef.{zeros}.{zeros}");
    let beside = ["--service", "reviews", "--inbound", "127.0.0.1:0"];
    let (secure, plain) = (
        ["--control", "https://127.0.0.1:1"],
        ["--control", "http://127.0.0.1:1"],
    );
    let filed = ["--config", file.to_str().unwrap()];
    for (arguments, said) in [
        (secure.to_vec(), "give --service"),
        ([&plain[..], &beside].concat(), "is not https"),
        ([&plain[..], &beside, &filed].concat(), "give one of them"),
    ] {
        // Workers that began before it was seen told of their death only now and then.
        for _ in 0..5 {
            let mut command = proxy();
            command.args(&arguments).env("OUTRIGGER_TOKEN", &token);
            let (code, told) = fails(command).await;
            assert!(code.is_some_and(|code| code != 0), "{told}");
            assert!(told.contains(said), "{told}");
            assert_eq!(told.matches("\"ERROR\"").count(), 1, "{told}");
        }
    }
}
