//! `larder doctor`: finds what is left over, lost or about to go wrong; says what it means; mends what it
//! can prove to be worth nothing.
//!
//! ```text
//! scene (everything seen once, read-only) ─▶ checks, one module a kind ─▶ findings
//!        └── looked at twice: what a running process is just doing is no finding
//! --fix: plan printed ─▶ asked ─▶ each item: looked at again ─▶ done, by the owner where there is one
//! ```
//! | module | finds |
//! |---|---|
//! | [`pools`] | pools away, silent, of another backend, read-only, near full; permissions |
//! | [`contents`] | half-made things, records without data and data without records, other files |
//! | [`trash`] | damaged entries of the trash, and records of nothing in it |
//! | [`groups`] | groups that lack a snapshot, snapshots that lack their group |
//! | [`devices`] | loop devices that nobody has, images deleted under a device, limits left behind |
//! | [`encrypted`] | encrypted volumes that are open and nobody's |
//! | [`mounts`] | mounts of what is gone, mounts that nothing knows of |
//! | [`nodes`] | node records of what does not stand |
//! | [`freezes`] | freezes that nobody took back |
//! | [`sockets`] | sockets that nobody serves |
//!
//! Nothing that could be somebody's data is ever removed: a fix unmounts, detaches, forgets or finishes
//! what the records prove to be over.

mod contents;
mod devices;
mod encrypted;
mod finding;
mod fix;
mod freezes;
mod groups;
mod mounts;
mod nodes;
mod pools;
mod report;
mod scene;
mod sockets;
mod trash;

use crate::{
    cli,
    config::Settings,
    exit::Found,
    output::{self, Format},
    session,
};
use anyhow::Result;
use finding::Finding;
use fix::Outcome;
use larder_host::Host;
use scene::Scene;
use std::{
    collections::VecDeque,
    io::BufRead,
    time::{Duration, Instant},
};

/// Between the two looks.
const PAUSE: Duration = Duration::from_millis(250);
/// How long a look counts as one right before a fix, which checks by itself what it acts on. A look takes
/// in the whole machine; there may be thousands of left-overs.
const FRESH: Duration = Duration::from_secs(1);
/// How often people are told how far it is.
const PROGRESS: Duration = Duration::from_secs(2);

/// One kind of look. It only reads.
type Check = fn(&Scene) -> larder_model::Result<Vec<Finding>>;

/// All of them, in the order in which their findings are told and mended.
const CHECKS: &[(&str, Check)] = &[
    ("freezes", freezes::look),
    ("pools", pools::look),
    ("contents of pools", contents::look),
    ("trash", trash::look),
    ("groups of snapshots", groups::look),
    ("mounts", mounts::look),
    ("node records", nodes::look),
    ("encrypted devices", encrypted::look),
    ("loop devices", devices::look),
    ("sockets", sockets::look),
];

/// Runs `larder doctor`.
pub(crate) async fn run(flags: cli::Doctor) -> Result<()> {
    let settings = session::load(&flags.target)?;
    let doctor = Doctor { settings, flags };
    let findings = doctor.look().await?;
    if !doctor.flags.fix {
        report::print(doctor.flags.output.output, &findings, &[])?;
        return verdict(findings.len());
    }
    let planned: Vec<_> = findings.iter().filter(|f| f.fix.is_some()).collect();
    if planned.is_empty() {
        report::print(doctor.flags.output.output, &findings, &[])?;
        return verdict(findings.len());
    }
    // For people, also where the output is for a program.
    report::plan(&findings);
    if !doctor.flags.yes && !agreed()? {
        output::note("nothing was changed");
        report::print(doctor.flags.output.output, &findings, &[])?;
        return verdict(findings.len());
    }
    let outcomes = doctor.fix(&findings).await;
    let left = doctor.look().await?;
    report::print(doctor.flags.output.output, &left, &outcomes)?;
    verdict(left.len())
}

fn verdict(found: usize) -> Result<()> {
    if found == 0 { Ok(()) } else { Err(Found.into()) }
}

/// Whether a person says yes. No terminal, no answer: no.
fn agreed() -> Result<bool> {
    output::note("Do this? Type yes (or run it with --yes):");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}

/// One run.
pub(crate) struct Doctor {
    settings: Settings,
    flags: cli::Doctor,
}

impl Doctor {
    /// What is found in two looks: what one of them alone sees is somebody's work.
    async fn look(&self) -> Result<Vec<Finding>> {
        let first = self.look_once().await?;
        if first.is_empty() {
            return Ok(first);
        }
        tokio::time::sleep(PAUSE).await;
        let mut second = self.look_once().await?;
        second.retain(|found| first.iter().any(|f| f.id == found.id));
        Ok(second)
    }

    async fn look_once(&self) -> Result<Vec<Finding>> {
        let busy = scene::busy(&self.settings).await;
        let (settings, near_full) = (self.settings.clone(), self.flags.near_full);
        let host = Host::real().with_cgroup(settings.cgroup.clone());
        let looked = larder_host::blocking(move || {
            let scene = Scene::new(host, settings, busy, near_full)?;
            let mut findings = Vec::new();
            for (what, check) in CHECKS {
                findings.extend(check(&scene).map_err(|f| f.during(format!("look at {what}")))?);
            }
            for finding in &mut findings {
                let of = |driver: &&scene::DriverScene| driver.name() == finding.driver;
                if scene.drivers.iter().find(of).is_some_and(|d| d.elsewhere.is_some()) {
                    finding.fix = None;
                }
            }
            Ok(findings)
        });
        Ok(looked.await?)
    }

    /// Mends what can be mended, one after the other; each is looked at again right before, where the
    /// last look was not a moment ago.
    async fn fix(&self, findings: &[Finding]) -> Vec<Outcome> {
        let mut left: VecDeque<_> = findings.iter().filter(|f| f.fix.is_some()).collect();
        let all = left.len();
        let mut outcomes = Vec::new();
        let mut told = Instant::now();
        while let Some(first) = left.pop_front() {
            let now = match self.look_once().await {
                Ok(now) => now,
                Err(error) => {
                    outcomes.push(Outcome::failed(first, format!("{error:#}")));
                    continue;
                }
            };
            let looked = Instant::now();
            let mut next = Some(first);
            while let Some(planned) = next {
                outcomes.extend(self.fix_one(planned, &now, &mut left).await);
                if told.elapsed() > PROGRESS {
                    told = Instant::now();
                    output::note(format!("{} of {all} are mended", outcomes.len()));
                }
                next = (looked.elapsed() < FRESH).then(|| left.pop_front()).flatten();
            }
        }
        outcomes
    }

    /// Mends `planned`, and of what is `left` all that the same run mends.
    async fn fix_one(
        &self,
        planned: &Finding,
        now: &[Finding],
        left: &mut VecDeque<&Finding>,
    ) -> Vec<Outcome> {
        let as_planned = |planned: &Finding| {
            now.iter().find(|now| now.id == planned.id).map(|now| now.fix == planned.fix)
        };
        // An earlier fix may have mended this one too.
        let Some(true) = as_planned(planned) else {
            return vec![match as_planned(planned) {
                None => Outcome::gone(planned),
                Some(_) => Outcome::failed(planned, "it is not as it was; look again".to_owned()),
            }];
        };
        let Some(mut fix) = planned.fix.clone() else { return Vec::new() };
        let mut together = vec![planned];
        left.retain(|other| {
            let joins = as_planned(other) == Some(true)
                && other.fix.as_ref().is_some_and(|other| fix.join(other));
            if joins {
                together.push(other);
            }
            !joins
        });
        let error = match fix.apply(&self.settings, &self.flags.target).await {
            Ok(()) => None,
            Err(error) => Some(crate::text(&error)),
        };
        let outcome = |planned: &&Finding| match &error {
            None => Outcome::done(planned),
            Some(error) => Outcome::failed(planned, error.clone()),
        };
        together.iter().map(outcome).collect()
    }
}

/// Whether the output is one that people read.
fn for_people(format: Format) -> bool {
    matches!(format, Format::Table | Format::Wide)
}

#[cfg(test)]
mod tests {
    use super::{
        contents, devices, encrypted, finding::Sort, freezes, groups, mounts, nodes, pools,
        sockets, trash,
    };

    const PAGE: &str = include_str!("../../../../docs/doctor.md");

    const SORTS: &[&Sort] = &[
        &freezes::LEFT,
        &freezes::UNREADABLE,
        &freezes::OTHER_BOOT,
        &pools::AWAY,
        &pools::SILENT,
        &pools::OTHER,
        &pools::REFUSED,
        &pools::NOT_READY,
        &pools::READ_ONLY,
        &pools::NEAR_FULL,
        &pools::FEW_INODES,
        &pools::PERMISSIONS,
        &contents::HALF_MADE,
        &contents::HALF_DELETED,
        &contents::TEMPORARY,
        &contents::NO_RECORD,
        &contents::BAD_RECORD,
        &contents::NO_DATA,
        &contents::TRUNCATED,
        &contents::EMPTY,
        &contents::STRAY,
        &contents::FOREIGN,
        &contents::STATIC,
        &groups::LACKS,
        &groups::UNREADABLE,
        &groups::ALONE,
        &mounts::LEFT,
        &mounts::UNKNOWN,
        &trash::OF_NOTHING,
        &trash::NO_RECORD,
        &trash::BAD_RECORD,
        &trash::NO_DATA,
        &nodes::UNREADABLE,
        &nodes::NEWER,
        &nodes::OTHER_BOOT,
        &nodes::NOT_PUBLISHED,
        &nodes::NOT_STAGED,
        &nodes::UNFINISHED,
        &nodes::NOT_MOUNTED,
        &nodes::ELSEWHERE,
        &encrypted::UNUSED,
        &devices::UNUSED,
        &devices::OF_DELETED,
        &devices::DELETED_UNDER,
        &devices::LIMITED,
        &sockets::STALE,
        &sockets::TAKEN,
    ];

    #[test]
    fn every_kind_of_finding_has_its_line_in_the_documentation_and_no_other_has() {
        let rows = PAGE.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
        let mut documented: Vec<&str> = rows.map(|(name, _)| name).collect();
        let mut known: Vec<&str> = SORTS.iter().map(|sort| sort.name).collect();
        documented.sort_unstable();
        known.sort_unstable();
        assert_eq!(documented, known);
    }
}
