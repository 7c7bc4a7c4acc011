//! What serde says is wrong, kept as facts rather than as a sentence, with the way down to the node.

use std::fmt;

use serde::de;

/// What is wrong with a node.
#[derive(Debug)]
pub(super) enum Wrong {
    /// A field that nobody knows.
    UnknownField {
        field: String,
        allowed: &'static [&'static str],
    },
    /// A word that is not one of a closed set.
    UnknownVariant {
        variant: String,
        allowed: &'static [&'static str],
    },
    /// A field that must be there.
    MissingField(&'static str),
    /// Something else: the sentence.
    Other(String),
}

/// What is wrong, and where in the tree.
#[derive(Debug)]
pub(super) struct DecodeError {
    pub(super) wrong: Wrong,
    /// The indexes from the node up to the root: each level adds its own as the error rises.
    pub(super) rising: Vec<usize>,
}

impl DecodeError {
    pub(super) const fn new(wrong: Wrong) -> Self {
        Self {
            wrong,
            rising: Vec::new(),
        }
    }

    /// The same error, seen from one level further up.
    pub(super) fn under(mut self, index: usize) -> Self {
        self.rising.push(index);
        self
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.wrong {
            Wrong::UnknownField { field, .. } => write!(f, "unknown field `{field}`"),
            Wrong::UnknownVariant { variant, .. } => write!(f, "unknown word `{variant}`"),
            Wrong::MissingField(field) => write!(f, "missing field `{field}`"),
            Wrong::Other(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for DecodeError {}

impl de::Error for DecodeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Wrong::Other(message.to_string()))
    }

    fn unknown_field(field: &str, allowed: &'static [&'static str]) -> Self {
        Self::new(Wrong::UnknownField {
            field: field.to_owned(),
            allowed,
        })
    }

    fn unknown_variant(variant: &str, allowed: &'static [&'static str]) -> Self {
        Self::new(Wrong::UnknownVariant {
            variant: variant.to_owned(),
            allowed,
        })
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(Wrong::MissingField(field))
    }
}
