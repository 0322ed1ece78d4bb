//! `io.max`: one limit for all below it.

use super::{is_gone, read, refused, write};
use crate::DeviceId;
use larder_model::{Fault, Limits, Result};
use std::path::Path;

const MAX: &str = "io.max";

/// The line of `device`, as it is written.
fn line(device: DeviceId, limits: Limits) -> String {
    let number = |n: u64| if n == 0 { "max".to_owned() } else { n.to_string() };
    format!(
        "{device} rbps={} wbps={} riops={} wiops={}",
        number(limits.max_read_bps),
        number(limits.max_write_bps),
        number(limits.max_read_iops),
        number(limits.max_write_iops)
    )
}

/// What `io.max` says.
pub(super) fn parse(text: &str) -> Vec<(DeviceId, Limits)> {
    text.lines().filter_map(parse_line).filter(|(_, limits)| !limits.is_none()).collect()
}

fn parse_line(line: &str) -> Option<(DeviceId, Limits)> {
    let mut words = line.split_whitespace();
    let device = words.next()?.parse().ok()?;
    let mut limits = Limits::NONE;
    for (key, number) in words.filter_map(|word| word.split_once('=')) {
        let number = number.parse().unwrap_or(0);
        match key {
            "rbps" => limits.max_read_bps = number,
            "wbps" => limits.max_write_bps = number,
            "riops" => limits.max_read_iops = number,
            "wiops" => limits.max_write_iops = number,
            _ => {}
        }
    }
    Some((device, limits))
}

pub(super) fn all(group: &Path) -> Result<Vec<(DeviceId, Limits)>> {
    // Without the file the controller is off, and nothing is limited.
    Ok(read(&group.join(MAX))?.map(|text| parse(&text)).unwrap_or_default())
}

pub(super) fn set(group: &Path, device: DeviceId, limits: Limits) -> Result<()> {
    let file = group.join(MAX);
    if !file.exists() {
        if limits.is_none() {
            return Ok(());
        }
        enable(group)?;
    }
    match write(&file, &line(device, limits)) {
        Err(e) if limits.is_none() && is_gone(&e) => Ok(()),
        written => written.map_err(|e| refused(&file, device, e)),
    }
}

/// Turns the io controller on for `group`, from the top of the hierarchy down: kubelet does so for
/// the controllers that it uses itself.
fn enable(group: &Path) -> Result<()> {
    let mut above: Vec<&Path> = group
        .ancestors()
        .skip(1)
        .take_while(|path| path.join("cgroup.subtree_control").exists())
        .collect();
    above.reverse();
    for parent in above {
        let control = parent.join("cgroup.subtree_control");
        let on = read(&control)?.unwrap_or_default();
        if on.split_whitespace().any(|controller| controller == "io") {
            continue;
        }
        write(&control, "+io").map_err(|e| {
            Fault::precondition(format!(
                "turn on the io controller of cgroup {} in {}: {e}",
                group.display(),
                control.display()
            ))
            .hint(
                "give Larder /sys/fs/cgroup for writing, or have the manager of that cgroup turn it \
                 on (systemd: systemctl set-property SLICE IOAccounting=yes)",
            )
        })?;
    }
    Ok(())
}

/// What the limits do not reach.
pub(super) fn caveats(group: &Path) -> Vec<String> {
    let mut caveats = Vec::new();
    let controllers = read(&group.join("cgroup.controllers")).ok().flatten().unwrap_or_default();
    let has = |name: &str| controllers.split_whitespace().any(|controller| controller == name);
    if !has("memory") {
        caveats.push(format!(
            "cgroup {} has no memory controller: only direct and synchronous writes are limited, the \
             kernel's writing of cached data is not",
            group.display()
        ));
    }
    caveats
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn lines_are_read_as_they_are_written() {
        let device = DeviceId { major: 7, minor: 3 };
        let limits = Limits { max_read_bps: 10 << 20, max_write_iops: 100, ..Limits::NONE };
        let text = line(device, limits);
        assert_eq!(text, "7:3 rbps=10485760 wbps=max riops=max wiops=100");
        assert_eq!(
            parse(&format!("8:0 rbps=max wbps=max riops=max wiops=max\n{text}\n\nx\n")),
            [(device, limits)]
        );
        assert_eq!(line(device, Limits::NONE), "7:3 rbps=max wbps=max riops=max wiops=max");
    }
}
