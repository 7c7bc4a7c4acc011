//! Reading YAML into documents and documents into a checked [`Config`].

use crate::{Bootstrap, Config, Document, Problem};

/// Splits a file into its documents, reading no more of each than its kind and name.
pub fn split(_file: &str, _text: &str) -> Result<Vec<Document>, Vec<Problem>> {
    Ok(Vec::new())
}

/// Decodes and checks a whole configuration.
pub fn check(_documents: &[Document]) -> Result<Config, Vec<Problem>> {
    Ok(Config::default())
}

/// Reads a bootstrap file.
pub fn read_bootstrap(_file: &str, _text: &str) -> Result<Bootstrap, Vec<Problem>> {
    Ok(Bootstrap::default())
}
