//! `kubectl larder why`

use super::{flags::Why, nodes};
use crate::{
    exit::Found,
    output::{self, Format},
};
use anyhow::Result;
use larder_controllers::why::{Report, State, Step, explain, gather};

/// Runs `kubectl larder why`.
pub(crate) async fn run(flags: Why) -> Result<()> {
    let kube = flags.cluster.kube().await?;
    let namespace = flags.namespace.as_deref().unwrap_or(kube.namespace()).to_owned();
    let mut see = gather(&kube, &namespace, &flags.subject).await?;
    let mut report = explain(&see, &flags.subject)?;
    if !flags.no_nodes {
        let volumes = report.chain.iter().filter_map(|step| step.object.strip_prefix("pv/"));
        let volumes: std::collections::BTreeSet<_> = volumes.map(str::to_owned).collect();
        nodes::ask(&kube, &flags.cluster, &volumes, &mut see).await;
        report = explain(&see, &flags.subject)?;
    }
    match flags.output.output {
        Format::Json | Format::Yaml => output::value(flags.output.output, &report)?,
        Format::Table | Format::Wide => print(&report, flags.output.output == Format::Wide)?,
    }
    if report.state == State::Stuck { Err(Found.into()) } else { Ok(()) }
}

fn print(report: &Report, wide: bool) -> Result<()> {
    let place = match report.namespace.as_str() {
        "" => String::new(),
        namespace => format!(" in namespace {namespace}"),
    };
    match &report.cause {
        None => output::line(format!("{}{place}: nothing is stuck", report.about))?,
        Some(cause) => {
            output::line(format!("{}{place}: {}", report.about, report.state))?;
            output::line(format!("  on:    {} ({})", cause.object, cause.kind))?;
            output::line(format!("  what:  {}", cause.what))?;
            if let Some(since) = &cause.since {
                output::line(format!("  since: {}", for_people(since)))?;
            }
            if !cause.mend.is_empty() {
                output::line(format!("  do:    {}", cause.mend))?;
            }
        }
    }
    output::line("")?;
    for step in &report.chain {
        link(step, report.cause.as_ref() == Some(step))?;
    }
    let events = if wide { report.events.len() } else { report.events.len().min(3) };
    if events > 0 {
        output::line("")?;
        output::line("Events, the last one first:")?;
    }
    for said in &report.events[..events] {
        let times = if said.count > 1 { format!(" ({} times)", said.count) } else { String::new() };
        let line = format!("{} {}: {}{times}", for_people(&said.at), said.reason, said.message);
        output::line(format!("  {}: {line}", said.object))?;
    }
    if !report.not_seen.is_empty() {
        output::line("")?;
        output::line("Not looked at:")?;
    }
    report.not_seen.iter().try_for_each(|why| output::line(format!("  failed to {why}")))
}

/// One link. What is told above is not told again.
fn link(step: &Step, told: bool) -> Result<()> {
    let state = step.state.to_string();
    let what = if told { "see above" } else { step.what.as_str() };
    output::line(format!("  {state:8} {:13} {}: {what}", step.link, step.object))?;
    if !told && step.state > State::Unknown && !step.mend.is_empty() {
        output::line(format!("  {:8} {:13} do: {}", "", "", step.mend))?;
    }
    Ok(())
}

/// A time, and how long ago that is.
fn for_people(time: &str) -> String {
    let Ok(at) = time.parse::<jiff::Timestamp>() else { return time.to_owned() };
    let seconds = jiff::Timestamp::now().as_second() - at.as_second();
    let ago = match seconds {
        ..0 => return time.to_owned(),
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    };
    format!("{time} ({ago} ago)")
}
