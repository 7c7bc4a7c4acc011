//! What a name may be made of.

use super::super::node::{Fault, shown};
use super::At;

/// DNS allows no longer label.
const LABEL_BYTES_MAX: usize = 63;

/// DNS allows no longer name.
const HOST_BYTES_MAX: usize = 253;

/// Why a text cannot name a service.
pub fn service_name(name: &str) -> Option<String> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let good = !name.is_empty()
        && name.len() <= LABEL_BYTES_MAX
        && name.bytes().all(allowed)
        && !name.starts_with('-')
        && !name.ends_with('-');
    (!good).then(|| {
        format!(
            "`{}` cannot name a service: expected a DNS label, 1 to {LABEL_BYTES_MAX} of a-z, 0-9 and `-`, with no `-` at \
             either end",
            shown(name)
        )
    })
}

/// Why a text cannot name a gateway. Operators read it as `@NAME`, and `@mesh` is taken.
pub(super) fn gateway_name(name: &str) -> Option<String> {
    if name == "mesh" {
        return Some("`mesh` cannot name a gateway: `@mesh` is the name of the Mesh document".to_owned());
    }
    service_name(name).map(|why| why.replace("cannot name a service", "cannot name a gateway"))
}

/// Why a text cannot name a route or a backend. Both become values of metric labels.
pub(super) fn part_name(name: &str, what: &str) -> Option<String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let good = !name.is_empty() && name.len() <= LABEL_BYTES_MAX && name.bytes().all(allowed);
    (!good).then(|| {
        format!(
            "`{}` cannot name a {what}: expected 1 to {LABEL_BYTES_MAX} of a-z, A-Z, 0-9, `-`, `_` and `.`",
            shown(name)
        )
    })
}

/// Why a text is not a host name. Underscores are let through: container platforms make names with them.
pub(super) fn host(name: &str) -> Option<String> {
    let why = if name.contains("://") {
        "leave the scheme out"
    } else if name.contains('/') {
        "leave the path out"
    } else if name.contains(':') {
        "leave the port out"
    } else if name.ends_with('.') && name.len() > 1 {
        "leave the final dot out"
    } else if name.len() > HOST_BYTES_MAX {
        "at most 253 characters are allowed"
    } else if name.is_empty() || !name.split('.').all(is_label) {
        "expected labels of a-z, 0-9, `-` and `_` with dots between them, each 1 to 63 long"
    } else {
        return None;
    };
    Some(format!("`{}` is not a host name: {why}", shown(name)))
}

fn is_label(label: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    !label.is_empty()
        && label.len() <= LABEL_BYTES_MAX
        && label.bytes().all(allowed)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// Whether a text is a token of HTTP: a header's name or a method.
pub(super) fn is_token(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(allowed)
}

/// Refuses names that stand twice; `field` is the field of each item that names it.
pub(super) fn unique(items: &[At<'_>], field: &str, what: &str, faults: &mut Vec<Fault>) {
    let mut seen = std::collections::HashMap::new();
    for item in items {
        let Some(name) = item.field(field) else {
            continue;
        };
        let Some(text) = name.node.text() else {
            continue;
        };
        if let Some(line) = seen.get(text) {
            faults.push(name.fault(format!(
                "another {what} is named `{}`, on line {line}",
                shown(text)
            )));
        } else {
            seen.insert(text, name.mark().line);
        }
    }
}
