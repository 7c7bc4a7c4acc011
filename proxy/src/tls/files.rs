//! An identity from files that something else renews: cert-manager, Vault's agent, a script.
//!
//! They are looked at rather than watched by the kernel, as the configuration's are: that works on every file system and
//! for Kubernetes' swapped symbolic links. The control thread waits for the disk meanwhile, for some kilobytes; requests are
//! served by others. Three files cannot be replaced at one moment, so a set that does not fit
//! together is nothing but the middle of a change: the one before goes on, and the next look decides.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_config::identity::CertificateFiles;

use crate::tls::Identities;
use crate::tls::identity::{CERTIFICATE, Identity, IdentityProblem, KEY};
use crate::tls::revoked::Revocations;

/// How often the files are looked at. They change every few hours and have a few kilobytes.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A certificate, a key or a bundle has a few kilobytes; what is larger is another file.
const FILE_MAX: u64 = 1024 * 1024;

/// What stands in the three files: certificate, key, roots.
type Contents = [Result<Vec<u8>, IdentityProblem>; 3];

/// Keeps the identity as the files are. Never ends.
pub(crate) async fn keep_current(files: CertificateFiles, identities: Arc<Identities>) {
    let mut seen: Option<Contents> = None;
    let mut refused: Option<IdentityProblem> = None;
    loop {
        let contents = [&files.certificate, &files.key, &files.roots].map(|path| read(path));
        // What was refused may be good by now: its time may have come.
        if seen.as_ref().is_none_or(|[_, key, _]| *key != contents[1]) {
            say_if_everybody_can_read(&files.key);
        }
        if refused.is_some() || seen.as_ref() != Some(&contents) {
            let loaded = load(&contents, identities.revocations()).map_err(|problem| placed(&files, problem));
            match loaded.and_then(|identity| identities.fitting(identity)) {
                Ok(identity) => {
                    identities.put(identity);
                    refused = None;
                }
                Err(problem) => {
                    // The same problem again is no news.
                    if refused.as_ref().map(ToString::to_string) != Some(problem.to_string()) {
                        identities.refuse(&problem);
                    }
                    refused = Some(problem);
                }
            }
            seen = Some(contents);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn load([chain, key, roots]: &Contents, revocations: &Arc<Revocations>) -> Result<Identity, IdentityProblem> {
    let [chain, key, roots] = [chain, key, roots].map(|part| part.as_ref().map_err(Clone::clone));
    Identity::from_pem(chain?, key?, roots?, revocations, SystemTime::now())
}

/// Says in the log if everybody on this machine can read a key. It is used all the same: a volume may be mounted with rights
/// of its own. Its group may read it, as Kubernetes' `fsGroup` has it.
pub(super) fn say_if_everybody_can_read(key: &Path) {
    let mode = std::fs::metadata(key).map_or(0, |found| found.permissions().mode());
    if mode & 0o007 != 0 {
        tracing::warn!(
            path = %key.display(), mode = format!("{:o}", mode & 0o777),
            "the key can be read by everybody on this machine: `chmod 600` it"
        );
    }
}

/// A problem with the file that it is about.
fn placed(files: &CertificateFiles, problem: IdentityProblem) -> IdentityProblem {
    let key = files.key.display();
    match problem {
        IdentityProblem::NotPem(what, why) => {
            let path = match what {
                KEY => key,
                CERTIFICATE => files.certificate.display(),
                _ => files.roots.display(),
            };
            IdentityProblem::NotPem(what, format!("{path}: {why}"))
        }
        IdentityProblem::Key(why) => {
            IdentityProblem::Key(format!("{key} for {}: {why}", files.certificate.display()))
        }
        other => other,
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, IdentityProblem> {
    let unreadable = |why: String| IdentityProblem::Unreadable(format!("{}: {why}", path.display()));
    let found = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?;
    if !found.is_file() {
        // A pipe would be waited for without end.
        return Err(unreadable("it is no file".to_owned()));
    }
    let size = found.len();
    if size > FILE_MAX {
        return Err(unreadable(format!(
            "{size} bytes are too many for a certificate or key"
        )));
    }
    std::fs::read(path).map_err(|error| unreadable(error.to_string()))
}
