//! What is wrong with a configuration, all of it at once.
//!
//! Nothing is changed and nothing is bound. Errors make the configuration unusable (exit status 64);
//! warnings say what will not be as one might expect.

use super::{DriverSettings, Settings};
use crate::{backends, logging};
use larder_model::PoolName;
use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

/// Something wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// The key it is about: `drivers[0].pools.default.path`.
    pub(crate) path: String,
    /// What is wrong, and what to do.
    pub(crate) text: String,
    /// It cannot be served like this.
    pub(crate) fatal: bool,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = if self.fatal { "error" } else { "warning" };
        write!(f, "{class}: {}: {}", self.path, self.text)
    }
}

/// A service manager has long killed us by then.
const LONGEST_GRACE: u64 = 24 * 60 * 60;

#[derive(Default)]
struct Findings(Vec<Problem>);

impl Findings {
    fn error(&mut self, path: impl Into<String>, text: impl Into<String>) {
        self.0.push(Problem { path: path.into(), text: text.into(), fatal: true });
    }
    fn warning(&mut self, path: impl Into<String>, text: impl Into<String>) {
        self.0.push(Problem { path: path.into(), text: text.into(), fatal: false });
    }
}

/// Checks the settings by themselves, and against what can be seen of their pools.
pub(crate) fn check(settings: &Settings) -> Vec<Problem> {
    find(settings, true)
}

/// Why it cannot be served like this; None: it can.
pub(crate) fn refusal(problems: &[Problem]) -> Option<String> {
    let fatal: Vec<_> = problems.iter().filter(|p| p.fatal).map(ToString::to_string).collect();
    (!fatal.is_empty()).then(|| format!("accept the configuration:\n{}", fatal.join("\n")))
}

/// Without a look at the machine.
#[cfg(feature = "fuzzing")]
pub(crate) fn check_by_itself(settings: &Settings) -> Vec<Problem> {
    find(settings, false)
}

fn find(settings: &Settings, look: bool) -> Vec<Problem> {
    let mut found = Findings::default();
    absolute(&mut found, "stateDir", &settings.state_dir);
    absolute(&mut found, "kubeletDir", &settings.kubelet_dir);
    if let Some(path) = &settings.cgroup {
        absolute(&mut found, "cgroup", path);
        cgroup(&mut found, path);
    }
    process(&mut found, settings);
    if settings.drivers.is_empty() {
        found.error("drivers", "there is none (hint: name at least one driver)");
    }
    let mut names = BTreeMap::new();
    let mut endpoints: BTreeMap<Option<&Path>, usize> = BTreeMap::new();
    let mut paths: Vec<(String, PathBuf)> = Vec::new();
    for (i, driver) in settings.drivers.iter().enumerate() {
        let at = |key: &str| format!("drivers[{i}].{key}");
        if let Some(first) = names.insert(driver.name.as_str().to_ascii_lowercase(), i) {
            found
                .error(at("name"), format!("{} is also the name of drivers[{first}]", driver.name));
        }
        if let Some(first) = endpoints.insert(driver.endpoint.path().parent(), i) {
            found.error(
                at("endpoint"),
                format!(
                    "{} is in the folder of drivers[{first}]'s (hint: give each socket a folder of \
                     its own: whoever sees the folder can talk to the driver)",
                    driver.endpoint
                ),
            );
        }
        if driver.endpoint.path().extension().is_none_or(|e| e != "sock") {
            found.warning(at("endpoint"), "its name does not end in .sock, as CSI asks");
        }
        let kind = backends::find(&driver.backend);
        if kind.is_none() {
            let known: Vec<_> = backends::KINDS.iter().map(|k| k.name).collect();
            found.error(
                at("backend"),
                format!(
                    "{:?} is not a backend (hint: use one of {})",
                    driver.backend,
                    known.join(", ")
                ),
            );
        }
        if let Some(kind) = kind {
            pools_of_kind(&mut found, driver, kind, at);
        }
        match kind.filter(|_| look).map(|kind| (kind.advise)(&driver.pools)) {
            None => {}
            Some(Ok(advice)) => {
                for (name, text) in advice {
                    found.warning(at(&format!("pools.{name}")), text);
                }
            }
            Some(Err(fault)) => found.error(at("pools"), fault.to_string()),
        }
        for (name, pool) in &driver.pools {
            let at = |key: &str| at(&format!("pools.{name}{key}"));
            if let Err(fault) = pool.check() {
                found.error(at(""), fault.to_string());
                continue;
            }
            overlap(&mut found, &at(".path"), &pool.path, &paths);
            paths.push((at(".path"), pool.path.clone()));
            if pool.path.starts_with(&settings.state_dir)
                || settings.state_dir.starts_with(&pool.path)
            {
                found.error(at(".path"), "it overlaps stateDir");
            }
            if look {
                on_disk(&mut found, &at(".path"), name, pool);
            }
        }
    }
    found.0
}

/// Whether the driver has pools, and of the sort that its kind of storage knows.
fn pools_of_kind(
    found: &mut Findings,
    driver: &DriverSettings,
    kind: &backends::BackendKind,
    at: impl Fn(&str) -> String,
) {
    let (key, other, example) = match kind.exports {
        true => {
            ("exports", "pools", "exports: { default: { server: nas.example, share: /export } }")
        }
        false => ("pools", "exports", "pools: { default: { path: /var/lib/larder } }"),
    };
    let (none, others) = match kind.exports {
        true => (driver.exports.is_empty(), !driver.pools.is_empty()),
        false => (driver.pools.is_empty(), !driver.exports.is_empty()),
    };
    if none {
        found.error(at(key), format!("there is none (hint: {example})"));
    }
    if others {
        found.error(at(other), format!("backend {} has {key} (hint: {example})", kind.name));
    }
    if let Err(fault) = larder_backend_nfs::check(&driver.exports) {
        found.error(at("exports"), fault.to_string());
    }
}

/// It may be made later, by whoever makes it.
fn cgroup(found: &mut Findings, path: &Path) {
    let host = larder_host::Host::real().with_cgroup(Some(path.to_owned()));
    if let Err(fault) = host.throttle.place() {
        found.warning("cgroup", fault.to_string());
    }
}

/// What is not about one driver.
fn process(found: &mut Findings, settings: &Settings) {
    if let Err(fault) = logging::filter(&settings.log.level) {
        found.error("log.level", fault.to_string());
    }
    if settings.shutdown_grace_seconds > LONGEST_GRACE {
        found.error(
            "shutdownGraceSeconds",
            format!("{} is more than a day ({LONGEST_GRACE})", settings.shutdown_grace_seconds),
        );
    }
    let named = settings.kubernetes.iter().flat_map(|k| k.drivers.iter().flatten());
    for name in named.filter(|name| settings.drivers.iter().all(|d| d.name != **name)) {
        found.error("kubernetes.drivers", format!("{name} is not one of the drivers of this file"));
    }
    let local = |pools: &BTreeMap<_, larder_pool::PoolConfig>| pools.values().any(|p| !p.shared);
    if settings.drivers.iter().any(|d| local(&d.pools)) && !is_segment(settings.node.as_str()) {
        found.error(
            "node",
            format!(
                "{:?} cannot be the place of a volume (hint: CSI and Kubernetes take at most 63 \
                 letters, digits, '-', '_' and '.', with a letter or digit at both ends)",
                settings.node.as_str()
            ),
        );
    }
}

/// Whether callers can hand it back as the value of a topology segment.
fn is_segment(text: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    text.len() <= 63
        && text.chars().all(inner)
        && ends(text.chars().next())
        && ends(text.chars().next_back())
}

fn absolute(found: &mut Findings, key: &str, path: &Path) {
    if !path.is_absolute() || path.components().any(|c| c == std::path::Component::ParentDir) {
        found.error(key, format!("{} is not an absolute path without ..", path.display()));
    }
}

fn overlap(found: &mut Findings, at: &str, path: &Path, others: &[(String, PathBuf)]) {
    for (other, taken) in others {
        if path.starts_with(taken) || taken.starts_with(path) {
            found.error(at, format!("{} overlaps {} of {other}", path.display(), taken.display()));
        }
    }
}

/// What can be seen of the pool now. It may come up later, so nothing here is fatal but a file.
fn on_disk(found: &mut Findings, at: &str, name: &PoolName, pool: &larder_pool::PoolConfig) {
    let path = &pool.path;
    // Whoever looks at what a dead server holds waits for ever.
    if let Err(fault) = larder_host::Host::real().filesystems.answers(path) {
        return found.warning(at, fault.to_string());
    }
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_dir() => {
            found.error(at, format!("{} is not a directory", path.display()))
        }
        Ok(_) if !pool.create && !matches!(larder_pool::identity(path), Ok(Some(_))) => found
            .warning(
                at,
                format!("{} is no pool yet (hint: larder pool init {name})", path.display()),
            ),
        Ok(_) => {}
        Err(_) if pool.create => {}
        Err(error) => found.warning(at, format!("{}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(yaml: &str) -> Vec<String> {
        let file = super::super::file::parse(yaml).unwrap();
        check(&super::super::settings(file).unwrap()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn everything_that_is_wrong_is_found_in_one_go() {
        let found = problems(
            "stateDir: run\n\
             drivers:\n\
             - {name: a, backend: dir, endpoint: /run/a.sock, pools: {p: {path: /no/p}}}\n\
             - {name: A, backend: tape, endpoint: /run/a.sock, pools: {p: {path: /no/p/q}, r: {path: rel}}}\n\
             - {name: c, backend: loop, endpoint: /run/c.sock}\n",
        );
        for wanted in [
            "error: stateDir:",
            "error: drivers[1].name: A is also",
            "error: drivers[1].endpoint: unix:///run/a.sock is in the folder of drivers[0]'s",
            "error: drivers[1].backend: \"tape\"",
            "error: drivers[1].pools.p.path: /no/p/q overlaps /no/p",
            "error: drivers[1].pools.r:",
            "error: drivers[2].pools:",
            "warning: drivers[0].pools.p.path:",
        ] {
            assert!(found.iter().any(|f| f.starts_with(wanted)), "{wanted} is not in {found:#?}");
        }
    }

    #[test]
    fn what_serving_would_refuse_or_die_of_is_found_before() {
        let served = "drivers: [{name: a, backend: loop, endpoint: /run/a/s.sock, pools: {p: {path: /no/p}}}]";
        let fatal = |yaml: &str| {
            let found = problems(&format!("{yaml}\n{served}\n"));
            found.into_iter().filter(|f| f.starts_with("error")).collect::<Vec<_>>()
        };
        let long = format!("node: {}", "n".repeat(64));
        for (yaml, wanted) in [
            ("log: {level: nonsense=nowhere}", "error: log.level:"),
            ("shutdownGraceSeconds: 18446744073709551615", "error: shutdownGraceSeconds:"),
            ("node: two words", "error: node: \"two words\""),
            ("node: -n", "error: node:"),
            (&long, "error: node:"),
        ] {
            let found = fatal(yaml);
            assert!(found.len() == 1 && found[0].starts_with(wanted), "{yaml}: {found:#?}");
        }
        let good = "node: n-1.example_2\nlog: {level: 'info,larder_csi=debug'}\nshutdownGraceSeconds: 86400";
        assert_eq!(fatal(good), Vec::<String>::new());
        // No volume of a shared pool has a place.
        let shared = "node: two words\ndrivers: [{name: a, backend: dir, endpoint: /run/a/s.sock, \
                      pools: {p: {path: /no/p, shared: true}}}]\n";
        assert!(!problems(shared).iter().any(|f| f.starts_with("error: node")));
    }

    #[test]
    fn a_pool_of_directories_without_quota_is_warned_of_and_a_mixed_driver_refused() {
        // No kernel limits directories there, whatever this machine can do elsewhere.
        let pool = |more: &str| {
            problems(&format!(
                "drivers:\n\
                 - {{name: a, backend: dir, endpoint: /run/a.sock, pools: {{p: {{path: /proc/sys{more}}}}}}}\n"
            ))
        };
        let warned = |found: &[String]| {
            found.iter().any(|f| f.starts_with("warning: drivers[0].pools.p: sizes in pool p"))
        };
        assert!(warned(&pool("")), "{:#?}", pool(""));
        let refused = pool(", fs: xfs");
        assert!(refused.iter().any(|f| f.starts_with("error: drivers[0].pools: use fs: xfs")));
        let mixed = pool("}, q: {path: /no/q, shared: true");
        assert!(
            mixed.iter().any(|f| f.starts_with("error: drivers[0].pools: use the shared pool q")),
            "{mixed:#?}"
        );
    }
}
