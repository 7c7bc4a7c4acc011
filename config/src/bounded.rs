//! How much a poll may say: more is refused, or left out, while it is read, so that a short text never becomes a large value.
//!
//! **Does not** bound the text: whoever reads it from a socket does.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::Problem;
use crate::discovery::{HAVE_MAX, NAME_BYTES_MAX, NOTICES_MAX, PROBLEMS_MAX, WANTS_MAX};

/// `want`: at most [`WANTS_MAX`] names.
pub(crate) fn wants<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    struct Wants;

    impl<'de> Visitor<'de> for Wants {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {WANTS_MAX} names")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
            let mut wants = Vec::new();
            while let Some(name) = items.next_element()? {
                if wants.len() == WANTS_MAX {
                    return Err(A::Error::custom(format_args!(
                        "`want` has more than {WANTS_MAX} names: `*` stands for all"
                    )));
                }
                wants.push(short::<A::Error>("want", name)?);
            }
            Ok(wants)
        }
    }

    from.deserialize_seq(Wants)
}

/// `have`: at most [`HAVE_MAX`] documents.
pub(crate) fn have<'de, D: Deserializer<'de>>(from: D) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    struct Have(BTreeMap<String, String>);
    struct Entries;

    impl<'de> Visitor<'de> for Entries {
        type Value = Have;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a map of at most {HAVE_MAX} documents to their versions")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Have, A::Error> {
            let mut have = BTreeMap::new();
            while let Some((key, version)) = entries.next_entry()? {
                if have.len() == HAVE_MAX {
                    return Err(A::Error::custom(format_args!(
                        "`have` has more than {HAVE_MAX} documents, as many as a mesh may have"
                    )));
                }
                have.insert(
                    short::<A::Error>("have", key)?,
                    short::<A::Error>("have", version)?,
                );
            }
            Ok(Have(have))
        }
    }

    impl<'de> Deserialize<'de> for Have {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            from.deserialize_map(Entries)
        }
    }

    Ok(Option::<Have>::deserialize(from)?.map(|Have(have)| have))
}

/// `notices`: the first [`NOTICES_MAX`] of them.
pub(crate) fn notices<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    from.deserialize_seq(First(NOTICES_MAX, PhantomData))
}

/// `problems`: the first [`PROBLEMS_MAX`] of them.
pub(crate) fn problems<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Problem>, D::Error> {
    from.deserialize_seq(First(PROBLEMS_MAX, PhantomData))
}

/// So many items, and nothing of those behind them.
struct First<T>(usize, PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for First<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut first = Vec::new();
        while first.len() < self.0 {
            let Some(item) = items.next_element()? else {
                return Ok(first);
            };
            first.push(item);
        }
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(first)
    }
}

fn short<E: Error>(field: &str, text: String) -> Result<String, E> {
    if text.len() <= NAME_BYTES_MAX {
        return Ok(text);
    }
    Err(E::custom(format_args!(
        "an entry of `{field}` is longer than {NAME_BYTES_MAX} bytes"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::DiscoveryRequest;

    fn read(want: usize, have: usize, further: &str) -> Result<DiscoveryRequest, String> {
        let want: Vec<String> = (0..want).map(|number| format!("s{number}")).collect();
        let have: BTreeMap<String, String> = (0..have)
            .map(|number| (format!("s{number}"), "1".into()))
            .collect();
        let (want, have) = (
            serde_json::to_string(&want).unwrap(),
            serde_json::to_string(&have).unwrap(),
        );
        let text = format!(r#"{{"node":{{"id":"a"}},"want":{want},"have":{have}{further}}}"#);
        serde_json::from_str(&text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_poll_names_so_many_services_and_no_more_each_no_longer_than_a_name_is() {
        let full = read(WANTS_MAX, HAVE_MAX, "").unwrap();
        assert_eq!((full.want.len(), full.have.unwrap().len()), (WANTS_MAX, HAVE_MAX));
        assert!(
            read(WANTS_MAX + 1, 0, "")
                .unwrap_err()
                .contains("`*` stands for all")
        );
        assert!(
            read(1, HAVE_MAX + 1, "")
                .unwrap_err()
                .contains("`have` has more than")
        );
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        for (want, have) in [
            (format!(r#"["{long}"]"#), "null".to_owned()),
            ("[]".to_owned(), format!(r#"{{"{long}":"1"}}"#)),
            ("[]".to_owned(), format!(r#"{{"a":"{long}"}}"#)),
        ] {
            let text = format!(r#"{{"node":{{"id":"a"}},"want":{want},"have":{have}}}"#);
            let error = serde_json::from_str::<DiscoveryRequest>(&text).unwrap_err();
            assert!(error.to_string().contains("longer than 253 bytes"), "{error}");
        }
        let without = r#"{"node":{"id":"a"},"want":[],"have":null}"#;
        assert_eq!(
            serde_json::from_str::<DiscoveryRequest>(without).unwrap().have,
            None
        );
    }

    #[test]
    fn of_notices_and_problems_the_first_are_read() {
        let notices = serde_json::to_string(&vec!["slow"; 100]).unwrap();
        let problems = serde_json::to_string(&vec![Problem::default(); 200]).unwrap();
        let further = format!(r#","notices":{notices},"error":{{"problems":{problems}}}"#);
        let poll = read(1, 1, &further).unwrap();
        assert_eq!(poll.notices.len(), NOTICES_MAX);
        assert_eq!(poll.error.unwrap().problems.len(), PROBLEMS_MAX);
    }
}
