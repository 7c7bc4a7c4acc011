//! A CA that the operator gives: an intermediate signs, and one that cannot is refused with all that is wrong.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use outrigger_tests::cli::finish;
use outrigger_tests::program::{Program, binary};
use serde_json::json;

use super::{Desk, NEW_KEY, ran};

/// A root, an intermediate and what is no CA, in the files that the tests name.
fn pki() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let write = |name: &str, text: &str| std::fs::write(path.join(name), text).unwrap();
    let read = |name: &str| std::fs::read_to_string(path.join(name)).unwrap();
    ran(
        path,
        &format!("openssl req -x509 {NEW_KEY} -keyout root.key -out root.crt -days 30 -subj /O=Shop/CN=root"),
    );
    ran(
        path,
        &format!("openssl req -new {NEW_KEY} -keyout ca.key -out ca.csr -subj /O=Shop/CN=mesh"),
    );
    write(
        "ext",
        "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=keyCertSign\n",
    );
    let sign = "openssl x509 -req -in ca.csr -CA root.crt -CAkey root.key -CAcreateserial -days 20";
    ran(path, &format!("{sign} -extfile ext -out ca.crt"));
    ran(path, &format!("{sign} -out leaf.crt"));
    for (name, further) in [
        ("mail", "extendedKeyUsage=emailProtection"),
        ("servers", "extendedKeyUsage=serverAuth"),
        ("apart", "nameConstraints=critical,excluded;URI:mesh.local"),
        // Sidecars do not read constraints on URIs, and so take nothing under them.
        ("within", "nameConstraints=critical,permitted;URI:mesh.local"),
    ] {
        write("more", &(read("ext") + further + "\n"));
        ran(path, &format!("{sign} -extfile more -out {name}.one"));
        write(
            &format!("{name}.crt"),
            &(read(&format!("{name}.one")) + &read("root.crt")),
        );
    }
    write("chain.crt", &(read("ca.crt") + &read("root.crt")));
    write("bad.crt", &(read("leaf.crt") + &read("root.crt")));
    folder
}

fn file(folder: &Path, name: &str) -> String {
    folder.join(name).to_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_intermediate_of_the_operator_signs_and_its_chain_comes_along() {
    let pki = pki();
    let (chain, key) = (file(pki.path(), "chain.crt"), file(pki.path(), "ca.key"));
    let desk = Desk::new(&["--ca-cert", &chain, "--ca-key", &key, "--trust-domain", "shop"]).await;
    let (status, answer) = desk.join(&desk.token("reviews", 1, "1h").await);
    assert_eq!(
        (status, &answer["spiffe_id"]),
        (200, &json!("spiffe://shop/reviews")),
        "{answer}"
    );
    desk.keep(&answer);
    assert_eq!(answer["certificates"].as_array().unwrap().len(), 2);
    let root = std::fs::read_to_string(pki.path().join("root.crt")).unwrap();
    assert_eq!(answer["bundle"], json!([root]));
    ran(
        desk.path(),
        "openssl verify -CAfile roots.pem -untrusted chain.pem chain.pem",
    );
}

#[tokio::test]
async fn a_key_of_the_operator_that_others_can_read_is_used_and_said() {
    let pki = pki();
    let (chain, key) = (file(pki.path(), "chain.crt"), file(pki.path(), "ca.key"));
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let desk = Desk::new(&["--ca-cert", &chain, "--ca-key", &key]).await;
    super::is_said(&desk.api, "ca.key").await;
}

#[tokio::test]
async fn a_ca_that_cannot_sign_is_refused_with_the_file_and_what_is_wrong() {
    let pki = pki();
    let data = tempfile::tempdir().unwrap();
    ran(
        pki.path(),
        "openssl ecparam -name prime256v1 -genkey -out parameters.key",
    );
    for (certificate, key, said) in [
        ("bad.crt", "ca.key", "does not say CA:TRUE"),
        (
            "chain.crt",
            "root.key",
            "the key is not the one of the first certificate",
        ),
        ("ca.crt", "ca.key", "is the last and is not a root"),
        ("mail.crt", "ca.key", "extendedKeyUsage"),
        ("servers.crt", "ca.key", "of a caller"),
        ("apart.crt", "ca.key", "spiffe://mesh.local/"),
        ("within.crt", "ca.key", "say nothing of URIs"),
        ("ca.key", "ca.crt", "it holds 0 certificates"),
        ("absent.crt", "ca.key", "No such file"),
        ("chain.crt", "parameters.key", "`openssl ecparam -genkey -noout`"),
    ] {
        let mut command = Command::new(binary("outrigger"));
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--data"])
            .arg(data.path());
        command.args([
            "--ca-cert",
            &file(pki.path(), certificate),
            "--ca-key",
            &file(pki.path(), key),
        ]);
        let ended = finish(Program::spawn("outrigger", command)).await;
        assert_eq!(ended.code, 1, "{ended:?}");
        assert!(ended.stderr.contains(said), "{said}: {}", ended.stderr);
        assert!(
            ended.stderr.contains(certificate) || ended.stderr.contains(key),
            "{}",
            ended.stderr
        );
    }
}
