//! Lengths of time as people write them.

use crate::fault::{Fault, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr, time::Duration};

const UNITS: [(&str, u64); 4] = [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];
/// A hundred years: whoever asks for more means for ever, and arithmetic with dates stays possible.
const LONGEST: u64 = 36_525 * 86_400;

/// A length of time in whole seconds, written `24h`, `30m`, `90s` or `7d`. Never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period(u64);

impl Period {
    /// As the standard library has it.
    pub const fn as_duration(self) -> Duration {
        Duration::from_secs(self.0)
    }
    /// In seconds.
    pub const fn seconds(self) -> u64 {
        self.0
    }
}

impl FromStr for Period {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Fault::invalid(format!("read {text:?} as a length of time: {why}"))
                .hint("write a whole number with a unit, as in 24h, 30m, 90s or 7d")
        };
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong("it has no number"))?;
        let unit = UNITS.iter().find(|(name, _)| *name == unit);
        let (_, unit) = unit.ok_or_else(|| wrong("its unit is none of s, m, h, d"))?;
        match number.checked_mul(*unit) {
            Some(0) => Err(wrong("it is nothing")),
            Some(seconds) if seconds <= LONGEST => Ok(Self(seconds)),
            _ => Err(wrong("it is more than a hundred years")),
        }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A single day is what people call 24h.
        let fits = |unit: u64| self.0.is_multiple_of(unit) && (unit < 86_400 || self.0 > unit);
        let (name, unit) = UNITS.iter().find(|(_, unit)| fits(*unit)).unwrap_or(&UNITS[3]);
        f.pad(&format!("{}{name}", self.0 / unit))
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_of_time_is_read_and_shown_as_people_write_it() {
        for (text, seconds) in [("24h", 86_400), ("30m", 1_800), ("90s", 90), ("7d", 604_800)] {
            let period: Period = text.parse().unwrap();
            assert_eq!((period.seconds(), period.to_string().as_str()), (seconds, text));
        }
        assert_eq!("1d".parse::<Period>().unwrap().to_string(), "24h");
    }

    #[test]
    fn what_is_no_length_of_time_is_refused_with_the_reason() {
        for wrong in ["", "24", "h", "0s", "-1h", "1.5h", "1w", "24 h", "999999999d", "1h30m"] {
            let fault = wrong.parse::<Period>().unwrap_err().to_string();
            assert!(fault.contains("as in 24h"), "{wrong}: {fault}");
        }
    }
}
