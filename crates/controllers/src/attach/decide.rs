//! What is to be done about an attachment, and about the volume that it kept.

use crate::{
    api::{Attachment, Volume},
    lease,
};

/// What of the process decides about an attachment.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// Our driver.
    pub driver: &'a str,
    /// Ours, of that driver.
    pub finalizer: &'a str,
    /// In node-local mode: our node.
    pub local: Option<&'a str>,
    /// The driver attaches nothing.
    pub trivial: bool,
    /// The driver says something else than the status.
    pub forced: bool,
}

/// What to do about an attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It is not for us, or as it should be.
    Nothing,
    /// There is nothing to do but to say that it is attached.
    Mark,
    /// The driver attaches it.
    Attach,
    /// The driver detaches it.
    Detach,
}

/// The finalizer of a driver's attachments and volumes.
pub fn finalizer(driver: &str) -> String {
    format!("external-attacher/{}", lease::clean(driver))
}

/// What to do about an attachment.
pub fn attachment(observed: Observed<'_>, attachment: &Attachment) -> Step {
    let Observed { driver, finalizer, local, trivial, forced } = observed;
    let (meta, spec, status) = (&attachment.metadata, &attachment.spec, &attachment.status);
    if spec.attacher != driver || local.is_some_and(|node| node != spec.node_name) {
        return Step::Nothing;
    }
    match (trivial, meta.is_deleting()) {
        // Also one that is deleted: who waits for it waits for the word.
        (true, _) if !status.attached => Step::Mark,
        (true, _) => Step::Nothing,
        (false, false) if !status.attached || forced => Step::Attach,
        // Also when it was never attached: an attempt may have got further than its answer.
        (false, true) if meta.has_finalizer(finalizer) || forced => Step::Detach,
        (false, _) => Step::Nothing,
    }
}

/// Whether a volume that is deleted need not be kept for the attacher any more.
pub fn is_free(finalizer: &str, volume: &Volume, attachments: usize) -> bool {
    let meta = &volume.metadata;
    meta.is_deleting() && meta.has_finalizer(finalizer) && attachments == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    #[rstest]
    #[case("hostpath.csi.k8s.io", "external-attacher/hostpath-csi-k8s-io")]
    #[case("a/b.", "external-attacher/a-b-X")]
    fn the_finalizer_is_that_of_the_go_sidecar(#[case] driver: &str, #[case] wanted: &str) {
        assert_eq!(finalizer(driver), wanted);
    }

    // attached, deleting, our finalizer, forced ─▶ with a driver that attaches, with a trivial one
    #[rstest]
    #[case(false, false, false, false, Step::Attach, Step::Mark)]
    #[case(false, false, true, false, Step::Attach, Step::Mark)]
    #[case(false, false, true, true, Step::Attach, Step::Mark)]
    #[case(true, false, true, false, Step::Nothing, Step::Nothing)]
    #[case(true, false, false, false, Step::Nothing, Step::Nothing)]
    #[case(true, false, true, true, Step::Attach, Step::Nothing)]
    #[case(false, true, true, false, Step::Detach, Step::Mark)]
    #[case(true, true, true, false, Step::Detach, Step::Nothing)]
    #[case(true, true, true, true, Step::Detach, Step::Nothing)]
    #[case(true, true, false, false, Step::Nothing, Step::Nothing)]
    #[case(false, true, false, false, Step::Nothing, Step::Mark)]
    #[case(true, true, false, true, Step::Detach, Step::Nothing)]
    fn every_attachment_has_its_step(
        #[case] attached: bool,
        #[case] deleting: bool,
        #[case] protected: bool,
        #[case] forced: bool,
        #[case] real: Step,
        #[case] trivial: Step,
    ) {
        let finalizers: Vec<_> = protected.then_some("external-attacher/d").into_iter().collect();
        let one: Attachment = serde_json::from_value(json!({
            "metadata": {
                "name": "va", "finalizers": finalizers,
                "deletionTimestamp": deleting.then_some("2026-01-01T00:00:00Z"),
            },
            "spec": {"attacher": "d", "nodeName": "n1"},
            "status": {"attached": attached},
        }))
        .unwrap();
        let observed = Observed {
            driver: "d",
            finalizer: "external-attacher/d",
            local: None,
            trivial: false,
            forced,
        };
        assert_eq!(attachment(observed, &one), real);
        assert_eq!(attachment(Observed { trivial: true, ..observed }, &one), trivial);
        assert_eq!(attachment(Observed { local: Some("n1"), ..observed }, &one), real);
        for elsewhere in [
            Observed { driver: "other", ..observed },
            Observed { local: Some("n2"), trivial: true, ..observed },
        ] {
            assert_eq!(attachment(elsewhere, &one), Step::Nothing);
        }
    }

    #[rstest]
    #[case(true, true, 0, true)]
    #[case(true, true, 1, false)]
    #[case(true, false, 0, false)]
    #[case(false, true, 0, false)]
    fn a_volume_is_kept_as_long_as_something_attaches_it(
        #[case] deleting: bool,
        #[case] protected: bool,
        #[case] attachments: usize,
        #[case] free: bool,
    ) {
        let finalizers: Vec<_> = protected.then_some("external-attacher/d").into_iter().collect();
        let volume: Volume = serde_json::from_value(json!({"metadata": {
            "finalizers": finalizers,
            "deletionTimestamp": deleting.then_some("2026-01-01T00:00:00Z"),
        }}))
        .unwrap();
        assert_eq!(is_free("external-attacher/d", &volume, attachments), free);
    }
}
