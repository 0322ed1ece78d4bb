//! What Larder's processes have used: memory, processor time, requests.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

use super::scene::Scene;

/// Of Larder's processes on all nodes.
#[derive(Debug, Default)]
pub(super) struct Used {
    /// Resident memory of each, in MB.
    pub(super) memory: Vec<f64>,
    /// Seconds of processor time, children included.
    pub(super) seconds: f64,
    /// Requests to the API server by `verb resource code`.
    pub(super) requests: BTreeMap<String, f64>,
    /// Requests of everybody but watches, as the API server counts them.
    pub(super) all: f64,
}

impl Used {
    pub(super) fn now(scene: &Scene) -> Result<Self> {
        let mut used = Self::default();
        for node in scene.cluster.nodes() {
            // In the machine's own view: kubelet's containers are below it. Shells of probes are none.
            let script = "for p in $(pidof larder); do cat /proc/$p/stat; grep VmRSS /proc/$p/status; done; getconf CLK_TCK";
            let text = node.run(["sh", "-c", script])?;
            let ticks: f64 = text.lines().last().and_then(|l| l.parse().ok()).unwrap_or(100.0);
            for line in text.lines() {
                if let Some(memory) = line.strip_prefix("VmRSS:") {
                    let kilobytes: f64 = memory.trim().trim_end_matches(" kB").parse()?;
                    used.memory.push(kilobytes * 1.024 / 1000.0);
                } else if let Some((_, rest)) = line.rsplit_once(") ") {
                    // From the state on: utime, stime, cutime, cstime are the 12th to 15th.
                    let times =
                        rest.split(' ').skip(11).take(4).filter_map(|t| t.parse::<f64>().ok());
                    used.seconds += times.sum::<f64>() / ticks;
                }
            }
        }
        for (pod, _) in scene.pods()? {
            for (labels, value) in lines(&scene.metrics_of(&pod)?, "rest_client_requests_total") {
                let of = |name: &str| labels.get(name).cloned().unwrap_or_default();
                let key = format!("{} {} {}", of("verb"), of("resource"), of("code"));
                *used.requests.entry(key).or_default() += value;
            }
        }
        let all = lines(&scene.metrics()?, "apiserver_request_total");
        let counted = |labels: &BTreeMap<String, String>| {
            let is = |name: &str, values: &[&str]| {
                labels.get(name).is_some_and(|value| values.contains(&value.as_str()))
            };
            is("resource", &["persistentvolumes", "persistentvolumeclaims", "events"])
                && !is("verb", &["WATCH"])
        };
        used.all = all.iter().filter(|(labels, _)| counted(labels)).map(|(_, value)| value).sum();
        Ok(used)
    }

    /// The requests since then, by kind, for each of so many.
    pub(super) fn each_since(&self, before: &Self, count: usize) -> Requests {
        let mut kinds: Vec<_> = self
            .requests
            .iter()
            .map(|(key, value)| (key.clone(), value - before.requests.get(key).unwrap_or(&0.0)))
            .filter(|(key, value)| *value > 0.0 && !key.starts_with("watch "))
            .map(|(key, value)| (key, value / super::steps::number(count)))
            .collect();
        kinds.sort_by(|a, b| b.1.total_cmp(&a.1));
        let ours = kinds.iter().map(|(_, value)| value).sum();
        let others = (self.all - before.all) / super::steps::number(count) - ours;
        let conflicts =
            kinds.iter().filter(|(key, _)| key.ends_with(" 409")).map(|(_, value)| value).sum();
        let text = kinds.iter().map(|(key, value)| format!("{key}: {value:.2}"));
        Requests { ours, others, conflicts, text: text.collect::<Vec<_>>().join(", ") }
    }
}

/// Requests for each claim.
#[derive(Debug)]
pub(super) struct Requests {
    /// Of Larder's.
    pub(super) ours: f64,
    /// Of all others, for claims, volumes and events.
    pub(super) others: f64,
    /// Of Larder's, those that came too late.
    pub(super) conflicts: f64,
    /// By kind.
    pub(super) text: String,
}

/// The samples of a metric: labels and value.
fn lines(text: &str, name: &str) -> Vec<(BTreeMap<String, String>, f64)> {
    let of = |line: &str| -> Result<(BTreeMap<String, String>, f64)> {
        let (labels, value) = line.rsplit_once("} ").context("no labels")?;
        let pairs = labels.split("\",").filter_map(|pair| pair.split_once("=\""));
        let pairs =
            pairs.map(|(key, value)| (key.to_owned(), value.trim_end_matches('"').to_owned()));
        Ok((pairs.collect(), value.parse()?))
    };
    let start = format!("{name}{{");
    let samples = text.lines().filter_map(|line| line.strip_prefix(&start));
    samples.filter_map(|line| of(line).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_their_labels() {
        let text = "# HELP a b\nm_total{verb=\"get\",resource=\"x\",code=\"200\"} 3\nm_total_other{verb=\"a\"} 1\n";
        let found = lines(text, "m_total");
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].0["verb"].as_str(), found[0].0["code"].as_str(), found[0].1),
            ("get", "200", 3.0)
        );
    }
}
