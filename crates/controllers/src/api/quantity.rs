//! Kubernetes quantities, exactly: `1.5Gi`, `100M`, `12e6`, `500m`.
//!
//! The value is kept in billionths, the finest that Kubernetes knows; what is finer is rounded away
//! from zero, and what is larger than 2⁶³−1 is that, as there.

use larder_model::{Fault, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{cmp::Ordering, fmt, str::FromStr};

const NANO: i128 = 1_000_000_000;
const MOST: i128 = i64::MAX as i128;

const BINARY: [(&str, u32); 6] =
    [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];
const DECIMAL: [(&str, i32); 9] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];

/// An amount. Compared by its value; shown as it was written.
#[derive(Debug, Clone)]
pub struct Quantity {
    nano: i128,
    text: String,
}

impl Quantity {
    /// So many bytes, in the shortest exact form with binary suffixes.
    pub fn of_bytes(bytes: i64) -> Self {
        Self { nano: i128::from(bytes) * NANO, text: binary(bytes) }
    }

    /// Whole bytes, rounded up.
    pub fn bytes(&self) -> i64 {
        let whole = self.nano.div_euclid(NANO) + i128::from(self.nano.rem_euclid(NANO) > 0);
        i64::try_from(whole).unwrap_or(i64::MAX)
    }

    /// Whether it is nothing.
    pub fn is_zero(&self) -> bool {
        self.nano == 0
    }
}

/// As Kubernetes writes a number of bytes with binary suffixes: below 1024 it uses decimal ones.
fn binary(bytes: i64) -> String {
    let (base, suffixes): (i64, &[&str]) = if bytes.unsigned_abs() < 1024 {
        (1000, &["", "k"])
    } else {
        (1024, &["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"])
    };
    let (mut number, mut steps) = (bytes, 0);
    while number != 0 && number % base == 0 && steps + 1 < suffixes.len() {
        number /= base;
        steps += 1;
    }
    format!("{number}{}", suffixes[steps])
}

impl FromStr for Quantity {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self> {
        parse(text).map(|nano| Self { nano, text: text.to_owned() }).ok_or_else(|| {
            Fault::invalid(format!("read quantity {}", larder_model::id::quoted(text))).hint(
                "write a number with one of Ki, Mi, Gi, Ti, Pi, Ei, k, M, G, T, P, E, or none",
            )
        })
    }
}

fn parse(text: &str) -> Option<i128> {
    let (negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || whole.len() + fraction.len() == 0 {
        return None;
    }
    let (twos, tens) = scale(suffix)?;
    // As digits times a power of ten (and of two), so that nothing is lost on the way.
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return Some(0);
    }
    let tens = i64::from(tens) - i64::try_from(fraction.len()).ok()? + 9;
    let nano = magnitude(digits, twos, tens).min(MOST * NANO);
    Some(if negative { -nano } else { nano })
}

/// `digits × 2^twos × 10^tens`, rounded up, and at least as large as any quantity where it would not
/// fit.
fn magnitude(digits: &str, twos: u32, tens: i64) -> i128 {
    const LARGE: i128 = MOST * NANO;
    let length = i64::try_from(digits.len()).unwrap_or(i64::MAX);
    if length.saturating_add(tens) > 40 {
        return LARGE;
    }
    // More digits than matter: cut, and remember that something was there.
    let (kept, cut) = digits.split_at(digits.len().min(24));
    let tens = tens + i64::try_from(cut.len()).unwrap_or(0);
    let mut rest = cut.bytes().any(|b| b != b'0');
    let mut value: i128 = kept.parse().unwrap_or(LARGE);
    if tens >= 0 {
        for _ in 0..tens {
            value = value.saturating_mul(10);
        }
        value = value.saturating_mul(1 << twos);
    } else {
        // At most 24 digits and 60 powers of two do not fit at once: divide in between.
        let mut twos = twos;
        for _ in 0..-tens {
            while twos > 0 && value < i128::MAX / 4 {
                value *= 2;
                twos -= 1;
            }
            rest |= value % 10 != 0;
            value /= 10;
        }
        value = value.saturating_mul(1 << twos);
    }
    value.saturating_add(i128::from(rest))
}

/// Powers of two and of ten of a suffix.
fn scale(suffix: &str) -> Option<(u32, i32)> {
    if suffix.is_empty() {
        return Some((0, 0));
    }
    if let Some((_, twos)) = BINARY.iter().find(|(s, _)| *s == suffix) {
        return Some((*twos, 0));
    }
    if let Some((_, tens)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Some((0, *tens));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((0, exponent.parse::<i32>().ok()?.clamp(-100, 100)))
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        // The API takes numbers, too.
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Text(String),
            Number(serde_json::Number),
        }
        let text = match Form::deserialize(d)? {
            Form::Text(text) => text,
            Form::Number(number) => number.to_string(),
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("0", 0)]
    #[case("1", 1)]
    #[case("1Ki", 1024)]
    #[case("1.5Gi", 1_610_612_736)]
    #[case("100M", 100_000_000)]
    #[case("12e6", 12_000_000)]
    #[case("12E+6", 12_000_000)]
    #[case("1E", 1_000_000_000_000_000_000)]
    #[case("1Ei", 1 << 60)]
    #[case("0.1", 1)]
    #[case("500m", 1)]
    #[case("1500m", 2)]
    #[case("1n", 1)]
    #[case("0.0000000001", 1)]
    #[case(".5k", 500)]
    #[case("5.", 5)]
    #[case("-1.5", -1)]
    #[case("+7", 7)]
    #[case("1e-3", 1)]
    #[case("9223372036854775807", i64::MAX)]
    #[case("9223372036854775808", i64::MAX)]
    #[case("100Ei", i64::MAX)]
    #[case("1e90", i64::MAX)]
    #[case("0.3Gi", 322_122_548)]
    #[case("1.00000000000000000000000000000000001", 2)]
    fn a_quantity_is_read_and_rounded_up_to_bytes(#[case] text: &str, #[case] bytes: i64) {
        assert_eq!(text.parse::<Quantity>().unwrap().bytes(), bytes, "{text}");
    }

    #[rstest]
    #[case("")]
    #[case("-")]
    #[case("Ki")]
    #[case("1.2.3")]
    #[case("1 Gi")]
    #[case("1gi")]
    #[case("1K")]
    #[case("1KiB")]
    #[case("1e")]
    #[case("1e1.5")]
    #[case("0x10")]
    #[case(".")]
    fn what_is_no_quantity_is_refused(#[case] text: &str) {
        assert!(text.parse::<Quantity>().is_err(), "{text}");
    }

    #[rstest]
    #[case(0, "0")]
    #[case(1, "1")]
    #[case(100, "100")]
    #[case(1000, "1k")]
    #[case(1023, "1023")]
    #[case(1024, "1Ki")]
    #[case(1025, "1025")]
    #[case(1536, "1536")]
    #[case(1 << 20, "1Mi")]
    #[case(1_610_612_736, "1536Mi")]
    #[case(5 << 30, "5Gi")]
    #[case(2048 << 30, "2Ti")]
    #[case(1 << 60, "1Ei")]
    #[case(i64::MAX, "9223372036854775807")]
    fn bytes_are_written_as_kubernetes_does(#[case] bytes: i64, #[case] text: &str) {
        let quantity = Quantity::of_bytes(bytes);
        assert_eq!(quantity.to_string(), text);
        assert_eq!(text.parse::<Quantity>().unwrap(), quantity);
    }

    #[test]
    fn quantities_are_compared_by_value_and_keep_their_form() {
        let (a, b): (Quantity, Quantity) = ("1024Mi".parse().unwrap(), "1Gi".parse().unwrap());
        assert_eq!(a, b);
        assert_eq!(a.to_string(), "1024Mi");
        assert!("1G".parse::<Quantity>().unwrap() < b);
        assert_eq!(serde_json::to_value(&a).unwrap(), serde_json::json!("1024Mi"));
        assert_eq!(serde_json::from_str::<Quantity>("3").unwrap().bytes(), 3);
    }

    proptest::proptest! {
        #[test]
        fn random_sizes_are_read_back_as_written(bytes in 0..i64::MAX) {
            let text = Quantity::of_bytes(bytes).to_string();
            proptest::prop_assert_eq!(text.parse::<Quantity>().unwrap().bytes(), bytes);
        }
        #[test]
        fn random_text_does_not_make_the_parser_panic(text in "[-+]?[0-9.]{0,40}[a-zA-Z]{0,3}[-+]?[0-9]{0,3}") {
            let _ = text.parse::<Quantity>();
        }
    }
}
