//! How fast a volume may be used on this machine.
//!
//! ```text
//! stage ─ mounted ─▶ set ─▶ acknowledged      publish …      unstage ─▶ taken away ─▶ unmounted
//!                     ▲                          ▲
//!        restart ─────┘           modified ──────┘   what holds is always what the record says
//! ```
//! The kernel keeps a limit by the device's number, and whoever has the number next would be held to
//! it. Invariants:
//! - what is asked is in the volume's own record, and nowhere else;
//! - a limit is set after the node's record names the device, and taken away before the device is let
//!   go, so a killed process leaves none that the repeated call, the opposite call or the next start
//!   does not find;
//! - a device that somebody else has by now is not touched: a volume of ours sets its own limits,
//!   whatever it finds;
//! - the device is the one that pods write to: of an encrypted volume the opened one, and not the one
//!   below it, where the requests are the kernel's threads' and belong to no pod;
//! - a volume that cannot be limited here is used without: `larder volume show` tells.
//!
//! The one who modifies may be another process than this one (a controller elsewhere): then this node
//! learns of it by [`NodeEngine::modified`] (whoever brings the news), at the next staging and at the
//! next start; all three read the record.

use super::{
    NodeEngine,
    executor::Executor,
    record::{Shows, Staged},
    sight,
};
use larder_host::{DeviceId, luks};
use larder_model::{
    Cx, Fault, Limits, Result, VolumeId,
    backend::{Attachment, Source},
};
use std::{path::PathBuf, sync::Arc};

/// A volume's limits as this node keeps them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeLimits {
    /// What the volume's record asks for.
    pub asked: Limits,
    /// The device that the volume has here; None: it is not in use here.
    pub device: Option<DeviceId>,
    /// What the kernel holds the device to.
    pub held: Limits,
    /// The cgroup in which it does.
    pub cgroup: Option<PathBuf>,
    /// Why it does not do what was asked; None: it does, or the volume is not in use here.
    pub fault: Option<String>,
    /// What the limits do not reach.
    pub caveats: Vec<String>,
}

impl NodeEngine {
    /// What is asked, and what holds here.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    pub async fn limits(&self, volume: &str) -> Result<NodeLimits> {
        let id = self.parse(volume)?;
        self.0.executor.limits(&id).await
    }
}

impl Executor {
    /// Holds a device to the limits that the volume's record asks for.
    ///
    /// # Errors
    /// `Precondition` where this machine cannot.
    pub(super) async fn hold(
        self: &Arc<Self>,
        device: DeviceId,
        limits: Limits,
        cx: &Cx,
    ) -> Result<()> {
        let throttle = self.host.throttle.clone();
        let now = self.blocking(move |_| throttle.get(device)).await;
        match now {
            Ok(now) if now == limits && now.is_none() => return Ok(()),
            Err(_) if limits.is_none() => return Ok(()),
            // Also what is set already: version 1 has cgroups that were made since.
            _ => {}
        }
        cx.step("set the volume's limits")?;
        self.blocking(move |this| this.host.throttle.set(device, limits)).await
    }

    /// As [`Self::hold`]; what cannot be limited is used all the same, and `volume show` tells.
    ///
    /// # Errors
    /// Only a simulated crash.
    pub(super) async fn try_to_hold(
        self: &Arc<Self>,
        id: &VolumeId,
        device: DeviceId,
        limits: Limits,
        cx: &Cx,
    ) -> Result<()> {
        match self.hold(device, limits, cx).await {
            Err(fault) if fault.is_simulated_crash() => Err(fault),
            Err(fault) => {
                tracing::warn!(volume = %id, %fault, "the volume is used without its limits");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Takes away the limits of what is connected, before it is let go. Where the kernel refuses they
    /// stay, and the log says so: a pod that cannot end is worse, whatever of ours gets the number next
    /// sets its own, and `larder doctor` finds them.
    ///
    /// # Errors
    /// Of looking whose the device is.
    pub(super) async fn lift(
        self: &Arc<Self>,
        id: &VolumeId,
        shows: Option<&Shows>,
        attachment: Option<&Attachment>,
        cx: &Cx,
    ) -> Result<()> {
        if self.backend.provision().modify().is_none() {
            return Ok(());
        }
        let device = match shows {
            Some(Shows::Device { number, .. }) => DeviceId::from(*number),
            Some(_) => return Ok(()),
            // No record tells; a volume that is gone has no device either.
            None => match self.device_of(id).await {
                Ok(Some(device)) => device,
                _ => return Ok(()),
            },
        };
        let limited = self.blocking(move |this| this.host.throttle.get(device)).await;
        // Without a cgroup there are none.
        if limited.map_or(true, |limits| limits.is_none()) {
            return Ok(());
        }
        let ours = match attachment {
            Some(attachment) => {
                let name = self.name_of(id);
                self.backend.connect().is_connected(id, attachment).await?
                    // What was opened above it may have another number by now.
                    && self.blocking(move |_| match luks::find(&name)? {
                        Some(opened) => Ok(opened.device == device),
                        None => Ok(!luks::is_mapped(device)),
                    })
                    .await?
            }
            None => true,
        };
        if !ours && self.blocking(move |this| this.host.is_attached(device)).await? {
            return Ok(());
        }
        cx.step("take the volume's limits away")?;
        let lifted = self.blocking(move |this| this.host.throttle.set(device, Limits::NONE)).await;
        match lifted {
            Err(fault) if !fault.is_simulated_crash() => {
                tracing::warn!(volume = %id, %fault, "its limits stay on device {device}");
                Ok(())
            }
            lifted => lifted,
        }
    }

    /// What could not be let go is used on, so its limits must hold again.
    pub(super) async fn hold_again(self: &Arc<Self>, id: &VolumeId, cx: &Cx) {
        if let Err(fault) = self.modified(id, cx).await {
            tracing::warn!(volume = %id, %fault, "its limits could not be set again");
        }
    }

    /// Of a volume that a former process staged.
    ///
    /// # Errors
    /// Only a simulated crash.
    pub(super) async fn hold_staged(
        self: &Arc<Self>,
        id: &VolumeId,
        staged: &Staged,
        cx: &Cx,
    ) -> Result<()> {
        let Some(Shows::Device { number, .. }) = &staged.shows else { return Ok(()) };
        match self.backend.provision().get_volume(id).await {
            Ok(volume) => self.try_to_hold(id, (*number).into(), volume.limits, cx).await,
            Err(fault) => {
                // Its pool is away; what holds goes on to hold.
                tracing::warn!(volume = %id, %fault, "its limits are left as they are");
                Ok(())
            }
        }
    }

    /// See [`crate::control::InUse::modified`].
    pub(super) async fn modified(self: &Arc<Self>, id: &VolumeId, cx: &Cx) -> Result<()> {
        let volume = self.backend.provision().get_volume(id).await?;
        match self.device_of(id).await? {
            Some(device) => self.hold(device, volume.limits, cx).await.map_err(|fault| {
                fault.during(format!("limit volume {id}, which is in use on this node"))
            }),
            None => Ok(()),
        }
    }

    /// The device that the volume has here: of an encrypted one that which is open, since there the
    /// pods' requests arrive. Those that reach the device below come from the kernel's own threads.
    async fn device_of(self: &Arc<Self>, id: &VolumeId) -> Result<Option<DeviceId>> {
        let Some((source @ Source::Device { .. }, _)) = self.backend.connect().find(id).await?
        else {
            return Ok(None);
        };
        let id = id.clone();
        self.blocking(move |this| {
            let shows = sight::shows(&this.host, &source)?;
            match this.above(&id, shows)? {
                Shows::Device { number, .. } => Ok(Some(number.into())),
                _ => Ok(None),
            }
        })
        .await
    }

    async fn limits(self: &Arc<Self>, id: &VolumeId) -> Result<NodeLimits> {
        let asked = self.backend.provision().get_volume(id).await?.limits;
        if self.backend.provision().modify().is_none() {
            let kind = self.backend.kind();
            let fault = Some(format!(
                "volumes of the {kind} backend cannot be limited: they have no device of their own"
            ));
            return Ok(NodeLimits { asked, fault, ..NodeLimits::default() });
        }
        let device = self.device_of(id).await?;
        self.blocking(move |this| {
            let throttle = &this.host.throttle;
            let mut told = NodeLimits { asked, device, ..NodeLimits::default() };
            match throttle.place() {
                Ok(place) => {
                    told.cgroup = Some(place.path);
                    told.caveats = if asked.is_none() { Vec::new() } else { place.caveats };
                }
                Err(fault) if !asked.is_none() => told.fault = Some(fault.to_string()),
                Err(_) => {}
            }
            if let (Some(device), Some(_)) = (device, &told.cgroup) {
                told.held = throttle.get(device)?;
                if told.held != asked {
                    let held = told.held;
                    told.fault = Some(format!(
                        "device {device} is held to: {held} (hint: restart larder, or stage the \
                         volume again)"
                    ));
                }
            }
            Ok(told)
        })
        .await
        .map_err(|fault: Fault| fault.during(format!("look at the limits of volume {id}")))
    }
}
