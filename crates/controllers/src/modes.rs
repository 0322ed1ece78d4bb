//! Access modes of Kubernetes as those of CSI.
//!
//! What a driver is told depends on whether it knows the two newer modes of one node (the capability
//! SINGLE_NODE_MULTI_WRITER): its controller's for provisioning, attaching and growing.

use larder_model::{Fault, Result};
use larder_proto::csi::volume_capability::access_mode::Mode;

const ONCE: &str = "ReadWriteOnce";
const POD: &str = "ReadWriteOncePod";
const READ_MANY: &str = "ReadOnlyMany";
const WRITE_MANY: &str = "ReadWriteMany";

/// The one mode that several modes of a volume come to (attaching, growing).
///
/// # Errors
/// `Invalid` for modes that exclude each other, or that nobody knows.
pub fn combined(modes: &[String], single_node_multi_writer: bool) -> Result<Mode> {
    let has = |mode: &str| modes.iter().any(|m| m == mode);
    let refuse = |why: &str| {
        Fault::invalid(format!("use access modes {}: {why}", modes.join(", ")))
            .hint("ReadWriteOncePod stands alone, and ReadOnlyMany with ReadWriteOnce is nothing that CSI can say")
    };
    if has(POD) {
        if modes.iter().any(|m| m != POD) {
            return Err(refuse("ReadWriteOncePod excludes the others"));
        }
        return Ok(if single_node_multi_writer {
            Mode::SingleNodeSingleWriter
        } else {
            Mode::SingleNodeWriter
        });
    }
    match (has(WRITE_MANY), has(READ_MANY), has(ONCE)) {
        (true, ..) => Ok(Mode::MultiNodeMultiWriter),
        (_, true, true) => Err(refuse("CSI has no mode for both")),
        (_, true, false) => Ok(Mode::MultiNodeReaderOnly),
        (_, false, true) if single_node_multi_writer => Ok(Mode::SingleNodeMultiWriter),
        (_, false, true) => Ok(Mode::SingleNodeWriter),
        _ => Err(refuse("none of them is known")),
    }
}

/// One mode for each: what CreateVolume is told.
///
/// # Errors
/// As [`combined`], of each by itself.
pub fn each(modes: &[String], single_node_multi_writer: bool) -> Result<Vec<Mode>> {
    let one = |mode: &String| combined(std::slice::from_ref(mode), single_node_multi_writer);
    modes.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("ReadWriteMany", Some(Mode::MultiNodeMultiWriter), Some(Mode::MultiNodeMultiWriter))]
    #[case(
        "ReadOnlyMany ReadWriteMany ReadWriteOnce",
        Some(Mode::MultiNodeMultiWriter),
        Some(Mode::MultiNodeMultiWriter)
    )]
    #[case("ReadOnlyMany", Some(Mode::MultiNodeReaderOnly), Some(Mode::MultiNodeReaderOnly))]
    #[case("ReadWriteOnce", Some(Mode::SingleNodeWriter), Some(Mode::SingleNodeMultiWriter))]
    #[case("ReadWriteOncePod", Some(Mode::SingleNodeWriter), Some(Mode::SingleNodeSingleWriter))]
    #[case("ReadWriteOncePod ReadWriteOnce", None, None)]
    #[case("ReadWriteOncePod ReadWriteMany", None, None)]
    #[case("ReadOnlyMany ReadWriteOnce", None, None)]
    #[case("Odd", None, None)]
    #[case("", None, None)]
    fn modes_are_those_of_csi(
        #[case] modes: &str,
        #[case] old: Option<Mode>,
        #[case] new: Option<Mode>,
    ) {
        let modes: Vec<_> = modes.split_whitespace().map(str::to_owned).collect();
        assert_eq!(combined(&modes, false).ok(), old, "{modes:?}");
        assert_eq!(combined(&modes, true).ok(), new, "{modes:?}");
    }

    #[test]
    fn a_claim_with_several_modes_asks_for_each() {
        let modes = ["ReadOnlyMany", "ReadWriteOnce"].map(str::to_owned);
        let wanted = [Mode::MultiNodeReaderOnly, Mode::SingleNodeWriter];
        assert_eq!(each(&modes, false).unwrap(), wanted);
    }
}
