//! What a value without quotes is: YAML 1.2's core schema, in which `on` and `yes` are words and `1` is a number.

use super::super::node::{Node, Value, shown};

/// What a value without quotes is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Plain {
    /// Nothing at all is written.
    Empty,
    /// `null` or `~`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Whole(i128),
    /// Another number.
    Fraction,
    /// Text.
    Text,
}

/// Says what a value without quotes is.
pub(super) fn resolve(text: &str) -> Plain {
    match text {
        "" => Plain::Empty,
        "~" | "null" | "Null" | "NULL" => Plain::Null,
        "true" | "True" | "TRUE" => Plain::Bool(true),
        "false" | "False" | "FALSE" => Plain::Bool(false),
        _ => number(text),
    }
}

fn number(text: &str) -> Plain {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let radix = |prefix: &str, base: u32| {
        let digits = text.strip_prefix(prefix)?;
        let known = !digits.is_empty() && digits.chars().all(|digit| digit.is_digit(base));
        known.then(|| i128::from_str_radix(digits, base))
    };
    if let Some(number) = radix("0o", 8).or_else(|| radix("0x", 16)) {
        return number.map_or(Plain::Fraction, Plain::Whole);
    }
    if !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return text.parse().map_or(Plain::Fraction, Plain::Whole);
    }
    if is_fraction(digits) || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return Plain::Fraction;
    }
    Plain::Text
}

/// `1.5`, `.5`, `1.`, `1e3`, `.inf`: the sign has been taken off.
fn is_fraction(digits: &str) -> bool {
    if matches!(digits, ".inf" | ".Inf" | ".INF") {
        return true;
    }
    let (number, exponent) = digits
        .split_once(['e', 'E'])
        .map_or((digits, None), |(n, e)| (n, Some(e)));
    let all_digits = |part: &str| part.bytes().all(|digit| digit.is_ascii_digit());
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let exponent = exponent.is_none_or(|exponent| {
        let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        !exponent.is_empty() && all_digits(exponent)
    });
    all_digits(whole) && all_digits(part) && !(whole.is_empty() && part.is_empty()) && exponent
}

/// What a node is, as a person would call it.
pub(super) fn describe(node: &Node) -> String {
    match &node.value {
        Value::Sequence(_) => "a list".to_owned(),
        Value::Mapping(_) => "a mapping".to_owned(),
        Value::Scalar { text, plain: false } => format!("the text \"{}\"", shown(text)),
        Value::Scalar { text, plain: true } => match resolve(text) {
            Plain::Empty => "nothing".to_owned(),
            Plain::Null => format!("`{text}`, which is nothing"),
            Plain::Bool(_) => format!("`{text}`, which is true or false"),
            Plain::Whole(_) | Plain::Fraction => format!("the number {}", shown(text)),
            Plain::Text => format!("the text `{}`", shown(text)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_values_are_what_yaml_1_2_says() {
        for (text, plain) in [
            ("", Plain::Empty),
            ("~", Plain::Null),
            ("null", Plain::Null),
            ("true", Plain::Bool(true)),
            ("False", Plain::Bool(false)),
            ("12", Plain::Whole(12)),
            ("-12", Plain::Whole(-12)),
            ("+7", Plain::Whole(7)),
            ("010", Plain::Whole(10)),
            ("0o10", Plain::Whole(8)),
            ("0xff", Plain::Whole(255)),
            ("1.10", Plain::Fraction),
            ("1e3", Plain::Fraction),
            ("-.inf", Plain::Fraction),
            (".5", Plain::Fraction),
            ("99999999999999999999999999999999999999999", Plain::Fraction),
        ] {
            assert_eq!(resolve(text), plain, "{text}");
        }
        for text in [
            "on",
            "yes",
            "off",
            "v1",
            "1s",
            "10%",
            "1.2.3",
            "127.0.0.1:80",
            "-",
            ".",
            "0x",
            "e3",
            "1e",
        ] {
            assert_eq!(resolve(text), Plain::Text, "{text}");
        }
    }
}
