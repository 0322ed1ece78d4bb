//! Sizes in bytes, and the range a caller allows.

use crate::fault::{Fault, Result};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A number of bytes. At most `i64::MAX`, the largest that CSI can carry.
///
/// Text forms are those of a Kubernetes quantity: `1Gi`, `500Mi`, `2T`, `1048576`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Bytes(u64);

const UNITS: [(&str, u64); 13] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("Ei", 1 << 60),
    ("k", 1_000),
    ("K", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("E", 1_000_000_000_000_000_000),
];

impl Bytes {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// The largest size there is: `i64::MAX`.
    pub const MAX: Self = Self(i64::MAX as u64);

    /// `n` bytes, cut at [`Bytes::MAX`].
    pub const fn new(n: u64) -> Self {
        if n > Self::MAX.0 { Self::MAX } else { Self(n) }
    }
    /// `n` MiB.
    pub const fn mib(n: u64) -> Self {
        Self::new(n.saturating_mul(1 << 20))
    }
    /// `n` GiB.
    pub const fn gib(n: u64) -> Self {
        Self::new(n.saturating_mul(1 << 30))
    }
    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
    /// The number as CSI carries it. Never negative, because of [`Bytes::MAX`].
    pub const fn as_i64(self) -> i64 {
        self.0.cast_signed()
    }
    /// From a CSI field: negative is refused.
    pub fn from_i64(n: i64, field: &str) -> Result<Self> {
        u64::try_from(n)
            .map(Self)
            .map_err(|_| Fault::invalid(format!("accept {field} {n}: it is negative")))
    }
    /// The next multiple of `step` (0 and 1 leave it as it is); None above [`Bytes::MAX`].
    pub fn round_up(self, step: Self) -> Option<Self> {
        let n = if step.0 <= 1 { self.0 } else { self.0.checked_next_multiple_of(step.0)? };
        (n <= Self::MAX.0).then_some(Self(n))
    }
    /// The difference, never below zero.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
    /// The sum, cut at [`Bytes::MAX`].
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self::new(self.0.saturating_add(other.0))
    }
}

impl std::iter::Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Self::saturating_add)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, size) in UNITS[..6].iter().rev() {
            if self.0 >= *size && self.0.is_multiple_of(*size) {
                return f.pad(&format!("{}{unit}", self.0 / size));
            }
        }
        f.pad(&self.0.to_string())
    }
}

impl FromStr for Bytes {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Fault::invalid(format!("read {text:?} as a size"))
                .hint("write a whole number with an optional unit, as in 10Gi, 500Mi or 1048576")
        };
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let factor = match unit {
            "" => 1,
            unit => UNITS.iter().find(|(u, _)| *u == unit).ok_or_else(wrong)?.1,
        };
        let n = number.checked_mul(factor).filter(|n| *n <= Self::MAX.0).ok_or_else(|| {
            Fault::out_of_range(format!("use size {text}: it is above {} bytes", Self::MAX.0))
        })?;
        Ok(Self(n))
    }
}

/// The sizes that a caller accepts: at least `required`, at most `limit` (None: no ceiling).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct CapacityRange {
    /// The least size; zero when the caller does not care.
    pub required: Bytes,
    /// The largest size that is still accepted.
    pub limit: Option<Bytes>,
}

impl CapacityRange {
    /// From the two CSI numbers, where 0 is "unset".
    ///
    /// # Errors
    /// `Invalid` for a negative number, `OutOfRange` where the limit is below the requirement.
    pub fn from_csi(required: i64, limit: i64) -> Result<Self> {
        let required = Bytes::from_i64(required, "required_bytes")?;
        let limit = Bytes::from_i64(limit, "limit_bytes")?;
        let limit = (limit > Bytes::ZERO).then_some(limit);
        match limit {
            Some(l) if l < required => Err(Fault::out_of_range(format!(
                "use a capacity range whose limit {l} is below the required {required}"
            ))),
            _ => Ok(Self { required, limit }),
        }
    }

    /// Whether `size` satisfies the range.
    pub fn contains(&self, size: Bytes) -> bool {
        size >= self.required && self.limit.is_none_or(|l| size <= l)
    }

    /// The size to make: the requirement (or `default` where there is none), not below `min`, in
    /// whole `step`s.
    ///
    /// # Errors
    /// `OutOfRange` where that lands above the limit or above what can be expressed.
    pub fn pick(&self, default: Bytes, min: Bytes, step: Bytes) -> Result<Bytes> {
        let wanted = if self.required > Bytes::ZERO {
            self.required
        } else {
            self.limit.map_or(default, |l| l.min(default))
        };
        let size = wanted.max(min).round_up(step).ok_or_else(|| {
            Fault::out_of_range(format!("provide {wanted}: it is above the largest size"))
        })?;
        match self.limit {
            Some(limit) if size > limit => Err(Fault::out_of_range(format!(
                "provide at least {wanted} within the limit {limit}: the least possible size is {size}"
            ))),
            _ => Ok(size),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_like_kubernetes_quantities() {
        for (text, n) in
            [("1Gi", 1 << 30), ("500Mi", 500 << 20), ("2T", 2_000_000_000_000), ("7", 7)]
        {
            assert_eq!(text.parse::<Bytes>().unwrap().get(), n);
        }
        for wrong in ["", "Gi", "1.5Gi", "-1", "1 Gi", "1gib", "0x10"] {
            assert_eq!(wrong.parse::<Bytes>().unwrap_err().kind(), crate::Kind::Invalid, "{wrong}");
        }
        assert_eq!("8Ei".parse::<Bytes>().unwrap_err().kind(), crate::Kind::OutOfRange);
        assert_eq!(Bytes::gib(3).to_string(), "3Gi");
        assert_eq!(Bytes::new(1025).to_string(), "1025");
    }

    #[test]
    fn a_range_picks_the_least_size_it_allows() {
        let range = |r, l| CapacityRange::from_csi(r, l).unwrap();
        let pick = |r: CapacityRange| r.pick(Bytes::gib(1), Bytes::mib(1), Bytes::new(4096));
        assert_eq!(pick(range(0, 0)).unwrap(), Bytes::gib(1));
        assert_eq!(pick(range(5, 0)).unwrap(), Bytes::mib(1));
        assert_eq!(pick(range((1 << 20) + 1, 0)).unwrap().get(), (1 << 20) + 4096);
        assert_eq!(pick(range(0, 2 << 20)).unwrap(), Bytes::mib(2));
        assert_eq!(pick(range(5, 10)).unwrap_err().kind(), crate::Kind::OutOfRange);
        assert_eq!(pick(range(i64::MAX, 0)).unwrap_err().kind(), crate::Kind::OutOfRange);
        assert_eq!(CapacityRange::from_csi(-1, 0).unwrap_err().kind(), crate::Kind::Invalid);
        assert_eq!(CapacityRange::from_csi(10, 5).unwrap_err().kind(), crate::Kind::OutOfRange);
    }
}
