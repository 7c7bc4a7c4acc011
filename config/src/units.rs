//! Values with units, as people write them: `250ms`, `20%`, `10/s`.
//!
//! Each reads only its own spelling and says what was expected; each writes itself back the same way. Ranges that
//! depend on the field are checked in [`crate::read`], not here.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A span of time: a whole number and one of `ms`, `s`, `m`, `h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(pub std::time::Duration);

impl Duration {
    /// So many milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self(std::time::Duration::from_millis(millis))
    }

    /// So many seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(std::time::Duration::from_secs(seconds))
    }
}

impl FromStr for Duration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            format!("`{text}` is not a duration: expected a number with a unit, such as 250ms, 2s, 1m or 1h")
        };
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| expected())?;
        let millis_per_unit = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(expected()),
        };
        number
            .checked_mul(millis_per_unit)
            .map(Self::from_millis)
            .ok_or_else(expected)
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        match millis {
            0 => f.write_str("0s"),
            _ if millis.is_multiple_of(3_600_000) => write!(f, "{}h", millis / 3_600_000),
            _ if millis.is_multiple_of(60_000) => write!(f, "{}m", millis / 60_000),
            _ if millis.is_multiple_of(1_000) => write!(f, "{}s", millis / 1_000),
            _ => write!(f, "{millis}ms"),
        }
    }
}

/// A share of a whole, 0 to 100, written with its sign: `20%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Percent(pub u8);

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text
            .strip_suffix('%')
            .and_then(|digits| digits.parse::<u8>().ok());
        number
            .filter(|number| *number <= 100)
            .map(Self)
            .ok_or_else(|| format!("`{text}` is not a percentage: expected 0% to 100%, such as 20%"))
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

/// How often, a second: `10/s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(pub u32);

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text
            .strip_suffix("/s")
            .and_then(|digits| digits.parse::<u32>().ok());
        number
            .map(Self)
            .ok_or_else(|| format!("`{text}` is not a rate: expected a number a second, such as 10/s"))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", self.0)
    }
}

/// How often, in a unit of time that is named: `100/s`, `60/m`, `10/h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Frequency {
    /// So many times.
    pub count: u32,
    /// In this time.
    pub per: Unit,
}

/// A unit of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// A second.
    Second,
    /// A minute.
    Minute,
    /// An hour.
    Hour,
}

impl Unit {
    const ALL: [(Self, &'static str); 3] = [(Self::Second, "/s"), (Self::Minute, "/m"), (Self::Hour, "/h")];

    /// How long it is.
    pub const fn seconds(self) -> u32 {
        match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3_600,
        }
    }
}

impl FromStr for Frequency {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = Unit::ALL.into_iter().find_map(|(per, suffix)| {
            let count = text.strip_suffix(suffix)?.parse().ok()?;
            Some(Self { count, per })
        });
        read.ok_or_else(|| {
            format!("`{text}` is not a rate: expected a number a second, minute or hour, such as 100/s, 60/m or 10/h")
        })
    }
}

impl fmt::Display for Frequency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = Unit::ALL.into_iter().find(|(per, _)| *per == self.per);
        write!(f, "{}{}", self.count, suffix.map_or("", |(_, suffix)| suffix))
    }
}

/// Gives a unit its serde and schema halves, which differ only in name, pattern and example.
macro_rules! written_as_text {
    ($unit:ident, $pattern:literal, $description:literal) => {
        impl Serialize for $unit {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $unit {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;

                impl de::Visitor<'_> for Text {
                    type Value = $unit;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($description)
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$unit, E> {
                        text.parse().map_err(E::custom)
                    }
                }

                // As `str` and not as `String`: the reader gives a plain `5` to a type that takes text apart, so
                // that the problem speaks of the missing unit and not of missing quotes.
                deserializer.deserialize_str(Text)
            }
        }

        impl JsonSchema for $unit {
            fn schema_name() -> Cow<'static, str> {
                stringify!($unit).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "description": $description })
            }
        }
    };
}

written_as_text!(
    Duration,
    r"^[0-9]+(ms|s|m|h)$",
    "A duration with its unit: 250ms, 2s, 1m, 1h."
);
written_as_text!(
    Percent,
    r"^(100|[0-9]{1,2})%$",
    "A percentage with its sign: 20%."
);
written_as_text!(Rate, r"^[0-9]+/s$", "A rate a second: 10/s.");
written_as_text!(
    Frequency,
    r"^[0-9]+/[smh]$",
    "A rate a second, a minute or an hour: 100/s, 60/m, 10/h."
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_read_with_its_unit_and_written_back_the_same() {
        for text in ["0s", "1ms", "250ms", "2s", "90s", "1m", "2h"] {
            let read: Duration = text.parse().unwrap();
            assert_eq!(read.to_string().parse::<Duration>().unwrap(), read, "{text}");
        }
        assert_eq!("90s".parse::<Duration>().unwrap(), Duration::from_secs(90));
    }

    #[test]
    fn a_duration_without_a_known_unit_is_refused() {
        for text in [
            "",
            "5",
            "ms",
            "5 s",
            "-1s",
            "1.5s",
            "5sec",
            "99999999999999999999s",
            "18446744073709551615h",
        ] {
            let problem = text.parse::<Duration>().unwrap_err();
            assert!(problem.contains("250ms"), "{problem}");
        }
    }

    #[test]
    fn a_percentage_needs_its_sign_and_stays_within_a_hundred() {
        assert_eq!("20%".parse(), Ok(Percent(20)));
        for text in ["20", "101%", "%", "-1%", "1.5%"] {
            assert!(text.parse::<Percent>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_rate_is_a_number_a_second() {
        assert_eq!("10/s".parse(), Ok(Rate(10)));
        for text in ["10", "10/m", "/s", "-1/s"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_frequency_names_its_unit_and_is_written_back_the_same() {
        for text in ["100/s", "60/m", "10/h"] {
            assert_eq!(text.parse::<Frequency>().unwrap().to_string(), text);
        }
        for text in ["10", "10/d", "/s", "-1/s", "1.5/s", "10 /s", "10/s/m"] {
            let problem = text.parse::<Frequency>().unwrap_err();
            assert!(problem.contains("60/m"), "{problem}");
        }
    }
}
