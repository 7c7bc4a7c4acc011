//! Identities from an agent of SPIFFE, by the SPIFFE Workload API.

#[cfg(feature = "spiffe")]
mod with_an_agent;

/// The bootstrap of a sidecar that asks the agent at this socket.
fn bootstrap(socket: &std::path::Path) -> String {
    format!(
        "identity: {{ workload_api: {{ socket: \"unix://{}\" }} }}\n",
        socket.display()
    )
}

#[cfg(not(feature = "spiffe"))]
#[tokio::test]
async fn a_sidecar_that_was_built_without_it_does_not_start_and_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("proxy.yaml");
    let text = bootstrap("/run/agent.sock".as_ref());
    std::fs::write(
        &file,
        format!("kind: Proxy\nconfig: {{ path: mesh.yaml }}\n{text}"),
    )
    .unwrap();
    let mut command = std::process::Command::new(outrigger_tests::program::binary("outrigger-proxy"));
    command.arg("--config").arg(&file);
    for flag in ["--outbound", "--scrape", "--admin"] {
        command.args([flag, "127.0.0.1:0"]);
    }
    let mut program = outrigger_tests::program::Program::spawn("proxy", command);
    assert_eq!(program.exited().await.code(), Some(1));
    let (_, said) = program.written().await;
    for part in ["identity.workload_api", "cargo build --release --features spiffe"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
}
