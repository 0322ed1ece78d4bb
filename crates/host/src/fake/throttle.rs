//! Fake limits: a table that outlives the devices, as the kernel's does.

use super::FakeKernel;
use crate::{DeviceId, Place, Throttle};
use larder_model::{Limits, Result};

pub(super) struct FakeThrottle(pub(super) FakeKernel);

impl Throttle for FakeThrottle {
    fn get(&self, device: DeviceId) -> Result<Limits> {
        Ok(self.0.state().limits.get(&device).copied().unwrap_or_default())
    }

    fn set(&self, device: DeviceId, limits: Limits) -> Result<()> {
        let mut state = self.0.state();
        state.fail("limit", || format!("limit device {device}"))?;
        if limits.is_none() {
            state.limits.remove(&device);
        } else {
            state.limits.insert(device, limits);
        }
        state.log.push(format!("limit {device}: {limits}"));
        Ok(())
    }

    fn all(&self) -> Result<Vec<(DeviceId, Limits)>> {
        Ok(self.0.state().limits.iter().map(|(device, limits)| (*device, *limits)).collect())
    }

    fn place(&self) -> Result<Place> {
        Ok(Place { path: "/fake/kubepods".into(), caveats: Vec::new() })
    }
}
