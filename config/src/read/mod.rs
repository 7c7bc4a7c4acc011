//! Reading YAML into documents and documents into a checked [`Config`].
//!
//! Three steps, each of which notes every problem it finds: [`node`] makes a tree with places of the text,
//! `decode` makes types of the tree, `semantic` checks what types cannot say. Nothing here opens a file.

mod decode;
mod known;
mod node;
mod pieces;
mod semantic;
mod suggest;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use self::decode::{decode, options};
pub use self::known::Known;
use self::known::{ByName, Good, Said};
pub use self::node::DOCUMENT_BYTES_MAX;
use self::node::{Fault, Mark, Node, PROBLEMS_MAX, State, Value, parse, shown};
use self::pieces::pieces;
pub use self::semantic::service_name;
use self::semantic::{At, Callers, Exposures, Hosts};
use crate::{Bootstrap, Config, Document, Gateway, Kind, Mesh, Problem, Service};

/// After so many documents the thread offers its core to others, about a millisecond of work where they are read: a sidecar checks
/// thousands beside threads that serve requests.
const DOCUMENTS_AT_ONCE: usize = 16;

/// Splits a file into its documents, reading no more of each than its kind and name.
///
/// A text is the lines between two `---` lines, which themselves belong to none, and always ends with a line break;
/// so texts joined with `---\n` read back the same. If a document does not say what it is, the answer is every
/// problem of the whole file, those of its other documents included.
pub fn split(file: &str, text: &str) -> Result<Vec<Document>, Vec<Problem>> {
    let pieces = pieces(text);
    let mut documents = Vec::new();
    let mut sheets = Vec::new();
    let mut lost = false;
    for piece in &pieces {
        let parsed = parse(&piece.text, piece.line);
        if parsed.root.is_none() && parsed.faults.is_empty() {
            continue;
        }
        sheets.push(Sheet {
            file,
            line: piece.line,
            text: &piece.text,
            kept_as: None,
        });
        let Some((kind, name)) = parsed.root.as_ref().and_then(identify) else {
            lost = true;
            continue;
        };
        let (file, text) = (file.to_owned(), piece.text.clone().into_owned());
        documents.push(Document {
            kind,
            name,
            file,
            line: piece.line,
            text,
        });
    }
    if !lost {
        return Ok(documents);
    }
    Err(judge(&sheets, &HashMap::new(), None).2)
}

/// Decodes and checks a whole configuration.
pub fn check(documents: &[Document]) -> Result<Config, Vec<Problem>> {
    check_after(documents, (&[], &Known::default())).map(|(config, _)| config)
}

/// The same for whoever knows of which trust domain the mesh is where its document says none.
pub fn check_within(trust_domain: &str, documents: &[Document]) -> Result<Config, Vec<Problem>> {
    let sheets: Vec<Sheet<'_>> = documents.iter().map(Sheet::of).collect();
    let (config, _, problems) = judge(&sheets, &HashMap::new(), Some(trust_domain));
    if problems.is_empty() {
        Ok(config)
    } else {
        Err(problems)
    }
}

/// The same as [`check`], after another that was found good: its documents and what is known of them. A document that is still the
/// same, place and text, is not read again, which is most of the work where one of thousands has changed; what documents say of one
/// another is judged anew. The answer is that of [`check`].
pub fn check_after(
    documents: &[Document],
    (before, known): (&[Document], &Known),
) -> Result<(Config, Known), Vec<Problem>> {
    let sheets: Vec<Sheet<'_>> = documents.iter().map(Sheet::of).collect();
    let (config, known, problems) = judge(&sheets, &known.of(before), None);
    if problems.is_empty() {
        Ok((config, known))
    } else {
        Err(problems)
    }
}

/// Whether a file says that it is a proxy's bootstrap: its first document is of the kind `Proxy`.
pub fn is_bootstrap(text: &str) -> bool {
    let mut roots = pieces(text)
        .into_iter()
        .filter_map(|piece| parse(&piece.text, piece.line).root);
    let kind = roots
        .next()
        .and_then(|root| Some(root.get("kind")?.value.text()? == "Proxy"));
    kind.unwrap_or(false)
}

/// Reads a bootstrap file. One that holds nothing but comments is all defaults.
pub fn read_bootstrap(file: &str, text: &str) -> Result<Bootstrap, Vec<Problem>> {
    bootstrap_of(file, text, false)
}

/// The same, and asks also what the sidecar itself asks once its flags are known: what contradicts itself unless a flag
/// changes what the file says is a problem. What a flag may add is not missed.
pub fn check_bootstrap(file: &str, text: &str) -> Result<Bootstrap, Vec<Problem>> {
    bootstrap_of(file, text, true)
}

fn bootstrap_of(file: &str, text: &str, is_alone: bool) -> Result<Bootstrap, Vec<Problem>> {
    let mut faults = Vec::new();
    let mut bootstrap = None;
    for piece in pieces(text) {
        let parsed = parse(&piece.text, piece.line);
        faults.extend(parsed.faults);
        let Some(mut root) = parsed.root else {
            continue;
        };
        if bootstrap.is_some() {
            faults.push(At::root(&root).fault("a proxy has one bootstrap document; this is a second one"));
            break;
        }
        proxy_kind(&root, &mut faults);
        let read: Option<Bootstrap> = decode(&mut root, true, &mut faults);
        if let Some(read) = &read {
            let at = At::root(&root);
            semantic::bootstrap(&at, read, &mut faults);
            if is_alone {
                semantic::bootstrap_alone(&at, read, &mut faults);
            }
        }
        bootstrap = Some(read.unwrap_or_default());
    }
    if faults.is_empty() {
        return Ok(bootstrap.unwrap_or_default());
    }
    Err(in_order(faults)
        .into_iter()
        .map(|fault| fault.in_file(file))
        .collect())
}

/// The text of a document, where it stands, and what it was kept as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sheet<'a> {
    file: &'a str,
    line: usize,
    text: &'a str,
    kept_as: Option<(Kind, &'a str)>,
}

impl<'a> Sheet<'a> {
    fn of(document: &'a Document) -> Self {
        Self {
            file: &document.file,
            line: document.line,
            text: &document.text,
            kept_as: Some((document.kind, &document.name)),
        }
    }
}

/// What the documents before have taken.
#[derive(Default)]
struct Taken {
    /// Where each service was named first.
    names: HashMap<String, String>,
    /// Where the mesh document stands.
    mesh: Option<String>,
    hosts: Hosts,
    /// What gateways say of services, which may stand in later documents.
    exposures: Exposures,
    /// Whom services let call, of whichever trust domain.
    callers: Callers,
}

/// Reads and checks all documents together, those excepted that were read before. `trust_domain`: that of the mesh where its
/// document says none, if it is known.
fn judge(
    sheets: &[Sheet<'_>],
    before: &ByName<'_>,
    trust_domain: Option<&str>,
) -> (Config, Known, Vec<Problem>) {
    let mut config = Config::default();
    let mut taken = Taken::default();
    let (mut known, mut problems) = (Vec::new(), Vec::new());
    for (place, sheet) in sheets.iter().enumerate() {
        if place % DOCUMENTS_AT_ONCE == 0 {
            std::thread::yield_now();
        }
        let mut faults = Vec::new();
        let same = sheet.kept_as.and_then(|name| before.get(&name));
        let good = match same.filter(|(as_written, _)| as_written == sheet) {
            Some((_, good)) => Some(Good::clone(good)),
            None => read(sheet, &mut taken, &mut faults),
        };
        if let Some(good) = good {
            judge_beside(&good, sheet, &mut config, &mut taken, &mut faults);
            known.push(good);
        }
        problems.extend(
            in_order(faults)
                .into_iter()
                .map(|fault| fault.in_file(sheet.file)),
        );
    }
    taken.exposures.judge(&config, &mut problems);
    taken.callers.judge(&config.mesh, trust_domain, &mut problems);
    config.services.sort_by(|left, right| left.name.cmp(&right.name));
    config.gateways.sort_by(|left, right| left.name.cmp(&right.name));
    (config, Known(known), problems)
}

/// Reads a document and checks it by itself. Where what it says cannot be read and may have been what others miss, they
/// are blind.
fn read(sheet: &Sheet<'_>, taken: &mut Taken, faults: &mut Vec<Fault>) -> Option<Good> {
    let parsed = parse(sheet.text, sheet.line);
    faults.extend(parsed.faults);
    let Some(mut root) = parsed.root else {
        if faults.is_empty() {
            let mark = Mark {
                line: sheet.line,
                column: 1,
            };
            faults.push(Fault {
                mark,
                path: String::new(),
                message: "the document is empty".to_owned(),
            });
        }
        return None;
    };
    if let (Some((kind, name)), Some(kept_as)) = (identify(&root), sheet.kept_as)
        && (kind != kept_as.0 || kind != Kind::Mesh && name != kept_as.1)
    {
        let kept_as = format!("{} `{}`", kept_as.0.word(), shown(kept_as.1));
        faults.push(At::root(&root).fault(format!(
            "this document was handed over as the {kept_as} but says that it is the {} `{}`",
            kind.word(),
            shown(&name)
        )));
    }
    let kind = document_kind(&mut root, faults);
    let said = match kind {
        None => {
            taken.exposures.is_blind = true;
            taken.callers.is_blind = true;
            return None;
        }
        Some(Kind::Service) => {
            let service: Option<Service> = decode(&mut root, true, faults);
            taken.exposures.is_blind |= service.is_none();
            let service = service?;
            semantic::service(&At::root(&root), &service, faults);
            Said::Service(Arc::new(service))
        }
        Some(Kind::Gateway) => {
            let gateway: Gateway = decode(&mut root, true, faults)?;
            semantic::gateway(&At::root(&root), &gateway, faults);
            Said::Gateway(Arc::new(gateway))
        }
        Some(Kind::Mesh) => {
            let mesh: Option<Mesh> = decode(&mut root, true, faults);
            taken.callers.is_blind |= mesh.is_none() || !At::root(&root).is_whole();
            if let Some(mesh) = &mesh {
                semantic::mesh(&At::root(&root), mesh, faults);
            }
            Said::Mesh(mesh.map(Arc::new))
        }
    };
    Some(Good::new(said, root))
}

/// Checks what a document says beside the others, and adds it to them.
fn judge_beside(
    good: &Good,
    sheet: &Sheet<'_>,
    config: &mut Config,
    taken: &mut Taken,
    faults: &mut Vec<Fault>,
) {
    let at = At::root(&good.root);
    match &good.said {
        Said::Service(service) => {
            judge_service(&at, sheet, service, taken, faults);
            config.services.push(Arc::clone(service));
        }
        Said::Gateway(gateway) => {
            taken.exposures.take(&at, sheet.file, gateway, faults);
            config.gateways.push(Gateway::clone(gateway));
        }
        Said::Mesh(mesh) => {
            let here = place(sheet.file, at.mark());
            if let Some(first) = &taken.mesh {
                faults.push(at.fault(format!(
                    "there is a Mesh document already, at {first}; a mesh has one"
                )));
            }
            taken.mesh.get_or_insert(here);
            if let Some(mesh) = mesh {
                config.mesh = Mesh::clone(mesh);
            }
        }
    }
}

fn judge_service(
    at: &At<'_>,
    sheet: &Sheet<'_>,
    service: &Service,
    taken: &mut Taken,
    faults: &mut Vec<Fault>,
) {
    taken.callers.take(at, sheet.file, service);
    let Some(name) = at.field("name") else {
        return;
    };
    if let Some(first) = taken.names.get(&service.name) {
        faults.push(name.fault(format!(
            "the service `{}` is there already, at {first}",
            shown(&service.name)
        )));
        return;
    }
    taken
        .names
        .insert(service.name.clone(), place(sheet.file, name.mark()));
    taken.hosts.take(at, sheet.file, service, faults);
}

/// What a document says that it is, read as far as it can be without judging it.
fn identify(root: &Node) -> Option<(Kind, String)> {
    let whole = |key: &str| {
        Some(&root.get(key)?.value)
            .filter(|value| value.state == State::Whole)?
            .text()
    };
    let kind = Kind::of(whole("kind")?)?;
    let name = match kind {
        Kind::Service => whole("name")?.to_owned(),
        Kind::Mesh => "mesh".to_owned(),
        Kind::Gateway => format!("@{}", whole("name")?),
    };
    Some((kind, name))
}

/// The kind of a document. If it is missing or misspelt, that is noted, and what was probably meant is read on.
fn document_kind(root: &mut Node, faults: &mut Vec<Fault>) -> Option<Kind> {
    let at = At::root(root);
    let Value::Mapping(entries) = &root.value else {
        if root.state == State::Whole {
            faults
                .push(at.fault("a document is a mapping: lines such as `kind: Service` and `name: reviews`"));
        }
        return None;
    };
    let guess = ["backends", "routes", "hosts"]
        .iter()
        .any(|key| root.get(key).is_some());
    let guess = if guess {
        Some(Kind::Service)
    } else if root.get("services").is_some() {
        Some(Kind::Gateway)
    } else {
        root.get("defaults").map(|_| Kind::Mesh)
    };
    let Some(entry) = root.get("kind") else {
        let misspelt = entries
            .iter()
            .position(|entry| suggest::nearest(&entry.key, ["kind"]).is_some());
        let (message, mark, path) = match misspelt.and_then(|index| entries.get(index)) {
            Some(entry) => (
                "unknown field; did you mean `kind`?",
                entry.key_mark,
                shown(&entry.key),
            ),
            None => (
                "the field `kind` is missing (allowed: Service, Mesh, Gateway)",
                root.mark,
                String::new(),
            ),
        };
        faults.push(Fault {
            mark,
            path,
            message: message.to_owned(),
        });
        if let (Some(index), Value::Mapping(entries)) = (misspelt, &mut root.value) {
            entries[index].value.state = State::Broken;
        }
        return guess;
    };
    if entry.value.state != State::Whole {
        return guess;
    }
    let found = entry.value.text().unwrap_or_default();
    let kind = Kind::of(found);
    if kind.is_some() {
        return kind;
    }
    let meant = suggest::nearest(found, Kind::WORDS);
    let message = match found {
        "" => format!(
            "expected the kind of the document{}",
            options(None, None, &Kind::WORDS)
        ),
        _ => format!(
            "`{}` is not known here{}",
            shown(found),
            options(meant, None, &Kind::WORDS)
        ),
    };
    faults.push(Fault {
        mark: entry.value.mark,
        path: "kind".to_owned(),
        message,
    });
    meant.and_then(Kind::of).or(guess)
}

/// The `kind` of a bootstrap may be left out, for it stands alone; if it is there it says `Proxy`.
fn proxy_kind(root: &Node, faults: &mut Vec<Fault>) {
    let Some(entry) = root.get("kind").filter(|entry| entry.value.state == State::Whole) else {
        return;
    };
    let found = entry.value.text().unwrap_or_default();
    if found != "Proxy" {
        let message = format!("`{}` is not known here (allowed: Proxy)", shown(found));
        faults.push(Fault {
            mark: entry.value.mark,
            path: "kind".to_owned(),
            message,
        });
    }
}

impl Kind {
    /// The words for the kinds.
    const WORDS: [&'static str; 3] = ["Service", "Mesh", "Gateway"];

    const fn word(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::Mesh => "Mesh",
            Self::Gateway => "Gateway",
        }
    }

    fn of(word: &str) -> Option<Self> {
        [Self::Service, Self::Mesh, Self::Gateway]
            .into_iter()
            .find(|kind| kind.word() == word)
    }
}

impl Fault {
    fn in_file(self, file: &str) -> Problem {
        let Self { mark, path, message } = self;
        Problem {
            file: file.to_owned(),
            line: mark.line,
            column: mark.column,
            path,
            message,
        }
    }
}

/// A place that a message speaks of.
fn place(file: &str, mark: Mark) -> String {
    let file = if file.is_empty() { "-" } else { file };
    format!("{file}:{}", mark.line)
}

/// The faults of one document from top to bottom, no more than a person would read.
fn in_order(mut faults: Vec<Fault>) -> Vec<Fault> {
    faults.sort_by_key(|fault| fault.mark);
    if faults.len() >= PROBLEMS_MAX {
        faults.truncate(PROBLEMS_MAX);
        if let Some(last) = faults.last() {
            let message = "there may be more problems in this document; mend these first".to_owned();
            faults.push(Fault {
                mark: last.mark,
                path: String::new(),
                message,
            });
        }
    }
    faults
}
