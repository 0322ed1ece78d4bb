//! How fast a volume may be used, as `volume show` tells it.

use super::{answer, volume};
use crate::{cli, output::Row, session::Session};
use larder_model::{Fault, Kind, Limits, Result};
use larder_proto::{csi, larder};
use serde::Serialize;

/// A volume with its limits. The JSON form is part of the interface.
#[derive(Debug, Serialize)]
pub(crate) struct Shown {
    #[serde(flatten)]
    volume: volume::VolumeRow,
    /// None: a driver that is not ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<Told>,
}

/// Limits, and whether they hold.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    /// What the volume was asked to be held to.
    asked: Limits,
    /// What its device is held to on this node.
    #[serde(skip_serializing_if = "Limits::is_none")]
    held: Limits,
    state: State,
    #[serde(skip_serializing_if = "String::is_empty")]
    device: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    cgroup: String,
    /// Why they do not hold.
    #[serde(skip_serializing_if = "String::is_empty")]
    fault: String,
    /// What they do not reach.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    caveats: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum State {
    /// The kernel holds this node to what was asked.
    Held,
    /// It does not.
    NotHeld,
    /// They will be set where the volume is used.
    NotInUse,
    /// Nothing was asked.
    None,
    /// This kind of volume cannot be limited.
    Impossible,
}

impl Told {
    fn new(told: larder::GetLimitsResponse) -> Self {
        let (asked, held) = (limits(told.asked), limits(told.held));
        let state = match (asked.is_none(), told.fault.is_empty(), told.device.is_empty()) {
            (true, false, true) => State::Impossible,
            (_, false, _) => State::NotHeld,
            (true, true, _) => State::None,
            (false, true, true) => State::NotInUse,
            (false, true, false) => State::Held,
        };
        let larder::GetLimitsResponse { device, cgroup, fault, caveats, .. } = told;
        Self { asked, held, state, device, cgroup, fault, caveats }
    }

    fn text(&self) -> String {
        let mut text = match self.state {
            State::None => "none".to_owned(),
            State::Impossible => self.fault.clone(),
            State::NotInUse if self.fault.is_empty() => {
                format!("{} (not in use on this node)", self.asked)
            }
            State::Held => format!("{} (held, device {})", self.asked, self.device),
            State::NotHeld | State::NotInUse => format!("{}, NOT HELD: {}", self.asked, self.fault),
        };
        for caveat in &self.caveats {
            text.push_str("; ");
            text.push_str(caveat);
        }
        text
    }
}

fn limits(limits: Option<larder::Limits>) -> Limits {
    let limits = limits.unwrap_or_default();
    let number = |n: i64| u64::try_from(n).unwrap_or(0);
    Limits {
        max_read_bps: number(limits.max_read_bps),
        max_write_bps: number(limits.max_write_bps),
        max_read_iops: number(limits.max_read_iops),
        max_write_iops: number(limits.max_write_iops),
    }
}

impl Row for Shown {
    const HEADINGS: &'static [&'static str] = &[
        "VOLUME",
        "SIZE",
        "FROM",
        "MOUNTED",
        "ENCRYPTED",
        "HEALTH",
        "TOPOLOGY",
        "CONTEXT",
        "LIMITS",
    ];
    const NARROW: usize = Self::HEADINGS.len();
    fn cells(&self) -> Vec<String> {
        let mut cells = self.volume.cells();
        cells.push(self.limits.as_ref().map(Told::text).unwrap_or_default());
        cells
    }
}

/// A volume with its health and its limits.
///
/// # Errors
/// Where the driver cannot tell.
pub(crate) async fn show(session: &Session, name: &str) -> Result<Shown> {
    let volume = volume::show(session, name).await?;
    let request = larder::GetLimitsRequest { volume_id: volume.id.clone() };
    let limits = match answer(session.client().admin().get_limits(request).await) {
        Ok(told) => Some(Told::new(told)),
        // Another's driver, or one of an earlier release.
        Err(fault) if fault.kind() == Kind::Unsupported => None,
        Err(fault) => return Err(fault),
    };
    Ok(Shown { volume, limits })
}

/// Changes mutable parameters.
///
/// # Errors
/// Those of the driver.
pub(crate) async fn modify(session: &Session, flags: &cli::ModifyVolume) -> Result<Shown> {
    let id = super::names::volume_id(session, &flags.volume).await?;
    if let Some((key, _)) =
        flags.parameters.iter().find(|(key, _)| key.starts_with(larder_model::params::RESERVED))
    {
        return Err(Fault::invalid(format!("set parameter {key}: it belongs to Kubernetes")));
    }
    let request = csi::ControllerModifyVolumeRequest {
        volume_id: id.clone(),
        mutable_parameters: flags.parameters.iter().cloned().collect(),
        ..Default::default()
    };
    let mut controller = session.client().controller();
    let call = controller.controller_modify_volume(request);
    answer(super::progress::show(session, &format!("modifying {id}"), call).await)?;
    show(session, &flags.volume).await
}
