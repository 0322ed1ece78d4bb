//! How fast a volume may be read and written.
//!
//! ```text
//! StorageClass parameters ┐
//! mutable parameters      ┴─▶ Limits, in the volume's record ─▶ the node that uses the volume
//! ControllerModifyVolume ───▶ LimitsChange ─▶ over them
//! ```
//! A limit belongs to the volume, however many workloads use it. 0 is no limit.

use crate::{
    backend::Parameter,
    bytes::Bytes,
    fault::{Fault, Result},
    params::Params,
    volume::Attributes,
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Bytes read a second.
pub const MAX_READ_BPS: &str = "maxReadBps";
/// Bytes written a second.
pub const MAX_WRITE_BPS: &str = "maxWriteBps";
/// Reads a second.
pub const MAX_READ_IOPS: &str = "maxReadIops";
/// Writes a second.
pub const MAX_WRITE_IOPS: &str = "maxWriteIops";

/// All keys.
pub const KEYS: [&str; 4] = [MAX_READ_BPS, MAX_WRITE_BPS, MAX_READ_IOPS, MAX_WRITE_IOPS];

/// The parameters, for help and docs.
pub const PARAMETERS: [Parameter; 4] = [
    Parameter {
        name: MAX_READ_BPS,
        what: "The most bytes read from the volume in a second, as in 50Mi. Can be modified.",
        default: "no limit",
    },
    Parameter {
        name: MAX_WRITE_BPS,
        what: "The most bytes written to the volume in a second, as in 20Mi. Can be modified.",
        default: "no limit",
    },
    Parameter {
        name: MAX_READ_IOPS,
        what: "The most reads from the volume in a second. Can be modified.",
        default: "no limit",
    },
    Parameter {
        name: MAX_WRITE_IOPS,
        what: "The most writes to the volume in a second. Can be modified.",
        default: "no limit",
    },
];

/// The largest number of operations: the kernel keeps 32 bits, and all of them set means "none".
const MOST_IOPS: u64 = u32::MAX as u64 - 1;

/// The limits of a volume; 0: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// Bytes read a second.
    #[serde(skip_serializing_if = "is_zero")]
    pub max_read_bps: u64,
    /// Bytes written a second.
    #[serde(skip_serializing_if = "is_zero")]
    pub max_write_bps: u64,
    /// Reads a second.
    #[serde(skip_serializing_if = "is_zero")]
    pub max_read_iops: u64,
    /// Writes a second.
    #[serde(skip_serializing_if = "is_zero")]
    pub max_write_iops: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Limits {
    /// No limit.
    pub const NONE: Self =
        Self { max_read_bps: 0, max_write_bps: 0, max_read_iops: 0, max_write_iops: 0 };

    /// Those that a new volume is asked for with: `mutable` parameters win. Other keys are not
    /// looked at.
    ///
    /// # Errors
    /// `Invalid`, naming the key.
    pub fn of(parameters: &Attributes, mutable: &Attributes) -> Result<Self> {
        let change = |map| LimitsChange::take(&mut Params::new(map));
        Ok(change(mutable)?.over(change(parameters)?.over(Self::NONE)))
    }

    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }

    /// Refuses limits among `parameters`, for storage that cannot keep them.
    ///
    /// # Errors
    /// `Invalid` that names the key, the backend, and `why`.
    pub fn refuse(parameters: &Attributes, backend: &str, why: &str) -> Result<()> {
        match KEYS.iter().find(|key| parameters.contains_key(**key)) {
            None => Ok(()),
            Some(key) => Err(Fault::invalid(format!(
                "use parameter {key} with the {backend} backend: {why}"
            ))
            .hint("leave it out, or use a backend whose volumes are devices, such as loop")),
        }
    }

    /// Key and number of each limit.
    pub fn pairs(self) -> impl Iterator<Item = (&'static str, u64)> {
        let Self { max_read_bps, max_write_bps, max_read_iops, max_write_iops } = self;
        let numbers = [max_read_bps, max_write_bps, max_read_iops, max_write_iops];
        KEYS.into_iter().zip(numbers).filter(|(_, number)| *number > 0)
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one = |(key, number): (&str, u64)| match key {
            MAX_READ_BPS | MAX_WRITE_BPS => format!("{key}={}", Bytes::new(number)),
            _ => format!("{key}={number}"),
        };
        let all: Vec<_> = self.pairs().map(one).collect();
        f.pad(&if all.is_empty() { "none".to_owned() } else { all.join(", ") })
    }
}

/// What shall be otherwise: only the keys that are present; 0 takes a limit away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LimitsChange {
    max_read_bps: Option<u64>,
    max_write_bps: Option<u64>,
    max_read_iops: Option<u64>,
    max_write_iops: Option<u64>,
}

impl LimitsChange {
    /// Understands mutable parameters, which hold nothing else.
    ///
    /// # Errors
    /// `Invalid`, naming the key.
    pub fn parse(parameters: &Attributes) -> Result<Self> {
        let mut params = Params::new(parameters);
        let change = Self::take(&mut params)?;
        params.finish().map_err(|fault| fault.during("modify the volume"))?;
        Ok(change)
    }

    /// Takes the limits among other parameters.
    ///
    /// # Errors
    /// `Invalid`, naming the key.
    pub fn take(params: &mut Params) -> Result<Self> {
        Ok(Self {
            max_read_bps: number(params, MAX_READ_BPS, Bytes::MAX.get())?,
            max_write_bps: number(params, MAX_WRITE_BPS, Bytes::MAX.get())?,
            max_read_iops: number(params, MAX_READ_IOPS, MOST_IOPS)?,
            max_write_iops: number(params, MAX_WRITE_IOPS, MOST_IOPS)?,
        })
    }

    /// What `limits` become.
    #[must_use]
    pub fn over(self, limits: Limits) -> Limits {
        Limits {
            max_read_bps: self.max_read_bps.unwrap_or(limits.max_read_bps),
            max_write_bps: self.max_write_bps.unwrap_or(limits.max_write_bps),
            max_read_iops: self.max_read_iops.unwrap_or(limits.max_read_iops),
            max_write_iops: self.max_write_iops.unwrap_or(limits.max_write_iops),
        }
    }
}

fn number(params: &mut Params, key: &'static str, most: u64) -> Result<Option<u64>> {
    match params.parse::<Bytes>(key)?.map(Bytes::get) {
        Some(number) if number > most => {
            Err(Fault::invalid(format!("use parameter {key}={number}: it is above {most}"))
                .hint("leave it out, or write 0, for no limit"))
        }
        number => Ok(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Kind;

    fn map(pairs: &[(&str, &str)]) -> Attributes {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn limits_are_read_as_quantities_and_mutable_parameters_win() {
        let class = map(&[("maxReadBps", "10Mi"), ("maxWriteIops", "1k"), ("fs", "xfs")]);
        let limits = Limits::of(&class, &map(&[("maxReadBps", "5M"), ("maxWriteIops", "0")]));
        let limits = limits.unwrap();
        assert_eq!(limits, Limits { max_read_bps: 5_000_000, ..Limits::NONE });
        let limits = Limits::of(&class, &Attributes::new()).unwrap();
        assert_eq!((limits.max_read_bps, limits.max_write_iops), (10 << 20, 1000));
        assert_eq!(limits.to_string(), "maxReadBps=10Mi, maxWriteIops=1000");
        assert_eq!(Limits::NONE.to_string(), "none");
    }

    #[test]
    fn a_change_touches_the_keys_that_are_present_and_nothing_else() {
        let before = Limits { max_read_bps: 1, max_write_bps: 2, ..Limits::NONE };
        let change = LimitsChange::parse(&map(&[("maxWriteBps", "0"), ("maxReadIops", "7")]));
        let after = change.unwrap().over(before);
        assert_eq!(after, Limits { max_read_bps: 1, max_read_iops: 7, ..Limits::NONE });
        let nothing = LimitsChange::parse(&map(&[("csi.storage.k8s.io/pv/name", "x")])).unwrap();
        assert_eq!(nothing.over(after), after);
    }

    #[test]
    fn what_is_wrong_is_invalid_and_named() {
        for (key, text) in [
            ("maxReadBps", ""),
            ("maxReadBps", "-1"),
            ("maxWriteBps", "1.5Mi"),
            ("maxWriteBps", "99Ei"),
            ("maxReadIops", "4294967295"),
            ("maxWriteIops", "fast"),
            ("maxIops", "5"),
            ("fs", "xfs"),
        ] {
            let fault = LimitsChange::parse(&map(&[(key, text)])).unwrap_err();
            assert_eq!(fault.kind(), Kind::Invalid, "{key}={text}");
            assert!(fault.to_string().contains(key), "{fault}");
        }
        let fault = Limits::refuse(&map(&[("maxReadBps", "1")]), "dir", "it has no device");
        let fault = fault.unwrap_err();
        assert_eq!(fault.kind(), Kind::Invalid);
        assert!(fault.to_string().contains("the dir backend"), "{fault}");
    }

    #[test]
    fn a_record_holds_what_is_limited_and_no_more() {
        let limits = Limits { max_write_bps: 5, ..Limits::NONE };
        let text = serde_json::to_string(&limits).unwrap();
        assert_eq!(text, r#"{"maxWriteBps":5}"#);
        assert_eq!(serde_json::from_str::<Limits>(&text).unwrap(), limits);
    }
}
