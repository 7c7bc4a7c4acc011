//! A serde deserializer over the tree, which says what it found and what is allowed in a person's words.
//!
//! Broken nodes are passed by and fillers read as whatever is asked for: see [`super::decode`].

use serde::Deserializer;
use serde::de::value::{MapDeserializer, SeqDeserializer, StrDeserializer};
use serde::de::{
    DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess, Visitor,
};

use super::super::node::{Entry, Node, State, Value};
use super::error::{DecodeError, Wrong};
use super::scalar::{Plain, describe, resolve};

/// Reads one node. `skip` is a field that belongs to the document and not to the type, such as `kind`.
#[derive(Clone, Copy)]
pub(super) struct De<'a> {
    pub(super) node: &'a Node,
    pub(super) skip: Option<&'static str>,
}

impl<'a> De<'a> {
    const fn of(node: &'a Node) -> Self {
        Self { node, skip: None }
    }

    fn is_filler(self) -> bool {
        self.node.state == State::Filler
    }

    fn wrong(self, expected: &str) -> DecodeError {
        DecodeError::new(Wrong::Other(format!(
            "found {}; expected {expected}",
            describe(self.node)
        )))
    }

    /// A whole number within the bounds of its field.
    fn whole(self, min: i128, max: i128) -> Result<i128, DecodeError> {
        if self.is_filler() {
            return Ok(1);
        }
        // Those of 16 bits are ports and statuses. None is ever 0, and `semantic` says why.
        let least = if max == u16::MAX.into() { 1 } else { min };
        let expected = match max > u32::MAX.into() {
            true => "a whole number".to_owned(),
            false => format!("a whole number from {least} to {max}"),
        };
        let Value::Scalar { text, plain } = &self.node.value else {
            return Err(self.wrong(&expected));
        };
        match resolve(text) {
            Plain::Whole(_) if !plain => Err(self.wrong(&format!("{expected}; leave the quotes out"))),
            Plain::Whole(number) if number >= min && number <= max => Ok(number),
            _ => Err(self.wrong(&expected)),
        }
    }

    /// Text that may be anything: without quotes it must not look like something else.
    fn free_text(self) -> Result<&'a str, DecodeError> {
        if self.is_filler() {
            return Ok("filler");
        }
        match &self.node.value {
            Value::Scalar { text, plain: false } => Ok(text),
            Value::Scalar { text, plain: true } => match resolve(text) {
                Plain::Text => Ok(text),
                Plain::Empty => Err(self.wrong("text")),
                _ => Err(self.wrong(&format!("text; put it in quotes: \"{text}\""))),
            },
            Value::Sequence(_) | Value::Mapping(_) => Err(self.wrong("text")),
        }
    }
}

/// Reads whole numbers within the bounds of the type that is asked for.
macro_rules! whole_numbers {
    ($($method:ident $visit:ident $type:ty),* $(,)?) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
            let number = self.whole(<$type>::MIN.into(), <$type>::MAX.into())?;
            let number = <$type>::try_from(number)
                .map_err(|_| self.wrong("a smaller number"))?;
            visitor.$visit(number)
        })*
    };
}

impl<'de> Deserializer<'de> for De<'de> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.node.value {
            Value::Sequence(_) => self.deserialize_seq(visitor),
            Value::Mapping(_) => self.deserialize_map(visitor),
            Value::Scalar { plain: false, .. } => self.deserialize_str(visitor),
            Value::Scalar { text, plain: true } => match resolve(text) {
                Plain::Empty | Plain::Null => visitor.visit_unit(),
                Plain::Bool(flag) => visitor.visit_bool(flag),
                Plain::Whole(number) => match i64::try_from(number) {
                    Ok(number) => visitor.visit_i64(number),
                    Err(_) => visitor.visit_borrowed_str(text),
                },
                Plain::Fraction | Plain::Text => self.deserialize_str(visitor),
            },
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.node.value {
            Value::Scalar { text, plain: true } => match resolve(text) {
                Plain::Bool(flag) => visitor.visit_bool(flag),
                _ if self.is_filler() => visitor.visit_bool(false),
                _ => Err(self.wrong("true or false")),
            },
            Value::Scalar { text, plain: false } if matches!(resolve(text), Plain::Bool(_)) => {
                Err(self.wrong("true or false; leave the quotes out"))
            }
            _ => Err(self.wrong("true or false")),
        }
    }

    whole_numbers! {
        deserialize_i8 visit_i8 i8,
        deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64,
        deserialize_u8 visit_u8 u8,
        deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64,
    }

    /// Text that the type itself takes apart, such as an address or a duration: it may look like a number, and
    /// the type says what it expects.
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.node.value {
            Value::Scalar { text, plain } if !plain || !text.is_empty() => visitor
                .visit_borrowed_str::<DecodeError>(text)
                .map_err(|error| match error.wrong {
                    Wrong::Other(message) if message == "invalid socket address syntax" => {
                        self.wrong("an IP address and a port, such as 127.0.0.1:9080 or \"[::1]:9080\"")
                    }
                    _ => error,
                }),
            _ => Err(self.wrong("text")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_borrowed_str(self.free_text()?)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.node.value {
            Value::Scalar { text, plain: true } => match resolve(text) {
                Plain::Empty | Plain::Null if !self.is_filler() => Err(DecodeError::new(Wrong::Other(
                    "nothing is written here; give a value or leave the field out".to_owned(),
                ))),
                _ => visitor.visit_some(self),
            },
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.node.value {
            Value::Sequence(items) => visitor.visit_seq(Items { items, next: 0 }),
            _ if self.is_filler() => {
                visitor.visit_seq(SeqDeserializer::new(std::iter::empty::<&'static str>()))
            }
            _ => Err(self.wrong("a list, each item after a `-`")),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.node.value {
            Value::Mapping(entries) => visitor.visit_map(Fields {
                entries,
                skip: self.skip,
                next: 0,
                value: None,
            }),
            _ if self.is_filler() => visitor.visit_map(MapDeserializer::new(std::iter::empty::<(
                &'static str,
                &'static str,
            )>())),
            _ => Err(self.wrong("a mapping")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        if self.is_filler() || matches!(self.node.value, Value::Mapping(_)) {
            return self.deserialize_map(visitor);
        }
        Err(self.wrong(&format!("a mapping with the fields {}", fields.join(", "))))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        let first = variants.first().copied().unwrap_or_default();
        let word = match &self.node.value {
            _ if self.is_filler() => first,
            Value::Scalar { text, .. } if !text.is_empty() => text,
            // One field, whose name is the word and whose value goes with it.
            Value::Mapping(entries) if entries.len() == 1 => match &entries[0] {
                // What was in it has been told of; the first word, which needs no value, stands in.
                entry if entry.value.state == State::Broken => first,
                entry => return visitor.visit_enum(WordWithValue { entry }),
            },
            _ => return Err(self.wrong(&format!("one of {}", variants.join(", ")))),
        };
        let word: StrDeserializer<'_, DecodeError> = word.into_deserializer();
        visitor.visit_enum(word)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_newtype_struct(self)
    }

    serde::forward_to_deserialize_any! {
        i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

/// The items of a list, without the broken ones.
struct Items<'a> {
    items: &'a [Node],
    next: usize,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DecodeError> {
        while let Some(node) = self.items.get(self.next) {
            let index = self.next;
            self.next += 1;
            if node.state != State::Broken {
                return seed
                    .deserialize(De::of(node))
                    .map(Some)
                    .map_err(|error| error.under(index));
            }
        }
        Ok(None)
    }
}

/// The fields of a mapping, without the broken ones.
struct Fields<'a> {
    entries: &'a [Entry],
    skip: Option<&'static str>,
    next: usize,
    value: Option<(usize, &'a Node)>,
}

impl<'de> MapAccess<'de> for Fields<'de> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, DecodeError> {
        while let Some(entry) = self.entries.get(self.next) {
            let index = self.next;
            self.next += 1;
            if entry.value.state == State::Broken || self.skip == Some(entry.key.as_str()) {
                continue;
            }
            self.value = Some((index, &entry.value));
            let key: StrDeserializer<'_, DecodeError> = entry.key.as_str().into_deserializer();
            return seed
                .deserialize(key)
                .map(Some)
                .map_err(|error| error.under(index));
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, DecodeError> {
        let Some((index, node)) = self.value.take() else {
            return Err(DecodeError::new(Wrong::Other(
                "a value was asked for before its field".to_owned(),
            )));
        };
        seed.deserialize(De::of(node)).map_err(|error| error.under(index))
    }
}

/// A word of a closed set that has a value with it: `header: x-user`.
struct WordWithValue<'a> {
    entry: &'a Entry,
}

impl<'de> EnumAccess<'de> for WordWithValue<'de> {
    type Error = DecodeError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), DecodeError> {
        let word: StrDeserializer<'_, DecodeError> = self.entry.key.as_str().into_deserializer();
        Ok((seed.deserialize(word)?, self))
    }
}

impl<'de> VariantAccess<'de> for WordWithValue<'de> {
    type Error = DecodeError;

    fn unit_variant(self) -> Result<(), DecodeError> {
        Err(DecodeError::new(Wrong::Other(format!(
            "`{}` stands by itself; write it without a value",
            self.entry.key
        ))))
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, DecodeError> {
        seed.deserialize(De::of(&self.entry.value))
            .map_err(|error| error.under(0))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, DecodeError> {
        De::of(&self.entry.value)
            .deserialize_seq(visitor)
            .map_err(|error| error.under(0))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        De::of(&self.entry.value)
            .deserialize_map(visitor)
            .map_err(|error| error.under(0))
    }
}
