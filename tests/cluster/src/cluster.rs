//! Brings a cluster up, and is the handle on it.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use larder_needs::Purpose;
use serde_json::Value;

use crate::{
    Binaries, Set, cgroups, config,
    down::tear_down,
    images,
    machine::Machine,
    network::Network,
    pki::{Pki, User},
    process::{self, Process},
    state::{self, Folders, State},
};

/// The control plane's machine.
const CONTROL: &str = "control";
/// How long a part takes to come up, on a busy host.
const PATIENCE: Duration = Duration::from_secs(180);

/// What kind of cluster is wanted.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many nodes it has: node1, node2, …
    pub nodes: u8,
    /// More flags for the controller manager, such as `--kube-api-qps=1000`.
    pub controller_manager: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { nodes: 2, controller_manager: Vec::new() }
    }
}

/// A cluster that is up. Dropping this leaves it up, unless it is a throw-away one.
#[derive(Debug)]
pub struct Cluster {
    state: State,
    folders: Folders,
    throw_away: bool,
}

impl Cluster {
    /// Brings a cluster up, or finds that it is. What is left of one that is not whole
    /// is ended first.
    ///
    /// # Errors
    /// A tool is missing and cannot be installed, or a part did not come up; the message
    /// has the end of its log, and what was started has been ended.
    pub fn up(name: &str, options: &Options) -> Result<Self> {
        Self::up_for(name, options, None)
    }

    fn up_for(name: &str, options: &Options, owner: Option<Process>) -> Result<Self> {
        let folders = Folders::of(name)?;
        larder_needs::ensure(&[Purpose::Cluster])?;
        if let Some(why) = unable() {
            bail!("no cluster can run here: {why}");
        }
        let binaries = Binaries::get(Set::Kubernetes)?;
        let archives = images::archives(&crate::cache_dir()?)?;
        let lock = folders.lock()?;
        if folders.home.exists() {
            if let Some(state) = folders.load()?.filter(is_whole) {
                return Ok(Self { state, folders, throw_away: false });
            }
            crate::say(&format!("{name} is not whole; ending what is left of it"));
            tear_down(name, &folders)?;
        }
        if folders.logs.exists() {
            fs::remove_dir_all(&folders.logs)?;
        }
        let maker = Maker { name, options, owner, folders: &folders, binaries: &binaries };
        let made = maker.make(&archives);
        drop(lock);
        match made {
            Ok(state) => Ok(Self { state, folders, throw_away: false }),
            Err(error) => Err(match crate::down(name) {
                Ok(()) => error,
                Err(more) => anyhow!("{error:#}; and then: {more:#}"),
            }),
        }
    }

    /// Brings up a cluster that is ended when the handle is dropped, or, when this process
    /// is killed, by the next one that wants a throw-away cluster.
    ///
    /// # Errors
    /// As [`Self::up`].
    pub fn throw_away(name: &str, options: &Options) -> Result<Self> {
        crate::down::end_orphans()?;
        let owner = Process::of(i32::try_from(std::process::id())?);
        let mut cluster = Self::up_for(name, options, owner)?;
        cluster.throw_away = true;
        Ok(cluster)
    }

    /// The cluster of this name, which was brought up; a service of it may have ended.
    ///
    /// # Errors
    /// There is none, or not all of its machines run.
    pub fn find(name: &str) -> Result<Self> {
        let folders = Folders::of(name)?;
        let state = folders.load()?.filter(has_machines).with_context(|| {
            format!("no cluster {name} is up (hint: cargo xtask cluster up --name {name})")
        })?;
        Ok(Self { state, folders, throw_away: false })
    }

    /// The cluster that `cargo xtask cluster test` has for its tests.
    ///
    /// # Errors
    /// The test does not run under it, or the cluster is not whole.
    pub fn of_tests() -> Result<Self> {
        let name = std::env::var(crate::NAME_VARIABLE).with_context(|| {
            format!("{} is not set (hint: cargo xtask cluster test)", crate::NAME_VARIABLE)
        })?;
        Self::find(&name)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// The machine of etcd, API server, controller manager and scheduler.
    #[must_use]
    pub fn control(&self) -> &Machine {
        // `make` writes no state without it down.
        &self.state.machines[0]
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Machine] {
        &self.state.machines[1..]
    }

    /// Folder of the programs that it runs.
    #[must_use]
    pub fn binaries(&self) -> &Path {
        &self.state.binaries
    }

    /// The administrator's kubeconfig, good on the host.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.folders.home.join("pki/admin.kubeconfig")
    }

    /// The kubeconfig of a node's kubelet.
    #[must_use]
    pub fn kubeconfig_of(&self, node: &Machine) -> PathBuf {
        self.folders.home.join(format!("pki/{}.kubeconfig", node.name()))
    }

    /// The host's address in the cluster's network, where pods reach it.
    #[must_use]
    pub fn host_address(&self) -> String {
        self.state.network.host()
    }

    /// Folder of the logs, kept until the next cluster of this name.
    #[must_use]
    pub fn logs(&self) -> &Path {
        &self.folders.logs
    }

    /// Variables for programs that talk to the cluster as administrator.
    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        let home = &self.folders.home;
        let mut path = vec![self.binaries().to_owned()];
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        vec![
            ("KUBECONFIG", self.kubeconfig().into()),
            ("KUBECACHEDIR", home.join("kubectl-cache").into()),
            ("HELM_CACHE_HOME", home.join("helm/cache").into()),
            ("HELM_CONFIG_HOME", home.join("helm/config").into()),
            ("HELM_DATA_HOME", home.join("helm/data").into()),
            ("PATH", std::env::join_paths(path).unwrap_or_default()),
            (crate::NAME_VARIABLE, self.name().into()),
        ]
    }

    /// Copies the images of an OCI archive to every node.
    ///
    /// # Errors
    /// The archive is not one, or containerd does not run.
    pub fn import_image(&self, archive: &Path) -> Result<()> {
        self.nodes().iter().try_for_each(|node| node.import_image(archive, &self.state.snapshotter))
    }

    /// Ends it.
    ///
    /// # Errors
    /// Something of it does not end; the message says what.
    pub fn down(mut self) -> Result<()> {
        self.throw_away = false;
        crate::down(self.name())
    }

    /// A line for each machine and each service: what runs and what does not.
    #[must_use]
    pub fn report(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (machine, services) in parts(&self.state) {
            for service in services {
                let up = machine.is_alive() && machine.is_running(service);
                let pid = machine.service_pid(service).unwrap_or_default();
                let word = if up { format!("runs ({pid})") } else { "does not run".into() };
                lines.push(format!("{:8} {service:24} {word}", machine.name()));
            }
        }
        lines
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.throw_away
            && let Err(error) = crate::down(self.name())
        {
            crate::say(&format!("{}: {error:#}", self.name()));
        }
    }
}

/// Machines and their services.
fn parts(state: &State) -> impl Iterator<Item = (&Machine, &'static [&'static str])> {
    const CONTROL_PLANE: &[&str] =
        &["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];
    const NODE: &[&str] = &["containerd", "kubelet"];
    let services = |name: &str| if name == CONTROL { CONTROL_PLANE } else { NODE };
    state.machines.iter().map(move |machine| (machine, services(machine.name())))
}

fn has_machines(state: &State) -> bool {
    state.complete && state.machines.iter().all(Machine::is_alive)
}

fn is_whole(state: &State) -> bool {
    let runs = |(machine, services): (&Machine, &'static [&str])| {
        services.iter().all(|service| machine.is_running(service))
    };
    has_machines(state) && parts(state).all(runs)
}

/// Why no cluster can run on this machine, if so.
#[must_use]
pub fn unable() -> Option<String> {
    if !larder_needs::is_root() {
        return Some("it takes root (hint: run as root)".into());
    }
    let namespaces = "mount -t tmpfs larder-probe /mnt && mount -t sysfs sysfs /mnt \
                      && ip link add probe0 type veth peer name probe1 \
                      && ip link add probe2 type bridge";
    let mut probe = Command::new("unshare");
    probe.args(["--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "sh", "-c", namespaces]);
    if let Err(error) = process::output(&mut probe) {
        return Some(format!("namespaces, mounts and links are not allowed: {error:#}"));
    }
    let probe = format!("probe-{}", std::process::id());
    let made = cgroups::create(&probe, "node");
    let removed = cgroups::remove(&probe);
    made.and(removed).err().map(|error| format!("cgroups are not allowed: {error:#}"))
}

/// Makes one cluster.
struct Maker<'a> {
    name: &'a str,
    options: &'a Options,
    owner: Option<Process>,
    folders: &'a Folders,
    binaries: &'a Binaries,
}

impl Maker<'_> {
    fn make(&self, archives: &[PathBuf]) -> Result<State> {
        let home = &self.folders.home;
        fs::create_dir_all(home)?;
        let networks = Folders::network_lock()?;
        let network = Network::free()?;
        let mut state = State {
            name: self.name.into(),
            network,
            machines: Vec::new(),
            binaries: self.binaries.dir().into(),
            snapshotter: config::snapshotter(home).into(),
            owner: self.owner,
            complete: false,
        };
        self.folders.save(&state)?;
        let pki = self.certificates(network)?;
        let nodes: Vec<_> =
            (1..=self.options.nodes).map(|number| format!("node{number}")).collect();
        for node in &nodes {
            cgroups::create(self.name, node)?;
        }
        let names = std::iter::once(CONTROL).chain(nodes.iter().map(String::as_str));
        for name in names {
            let dir = state::machine_dir(home, name);
            let binds = [self.binaries.dir(), &home.join("pki")];
            Machine::start(name, &dir, &self.folders.logs, &binds, |machine| {
                state.machines.push(machine.clone());
                self.folders.save(&state)
            })?;
        }
        let (control, nodes) = state.machines.split_first().context("no machines")?;
        network.connect(control, nodes)?;
        drop(networks);
        thread::scope(|scope| {
            let nodes: Vec<_> = (1..)
                .zip(nodes)
                .map(|(number, node)| {
                    let (pki, state) = (&pki, &state);
                    scope.spawn(move || self.start_node(node, number, state, pki, archives))
                })
                .collect();
            let control = self.start_control(control, network, &pki);
            let nodes = nodes
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked"))));
            control.and(nodes.collect::<Result<Vec<()>>>().map(|_| ()))
        })?;
        let whole = State { complete: true, ..state };
        let folders = self.folders.clone();
        let cluster = Cluster { state: whole, folders, throw_away: false };
        self.wait_until_ready(&cluster)?;
        self.folders.save(&cluster.state)?;
        Ok(cluster.state.clone())
    }

    fn certificates(&self, network: Network) -> Result<Pki> {
        let server = format!("https://{}", network.control());
        let pki = Pki::create(&self.folders.home.join("pki"), &server)?;
        let (own, service) = (network.control(), network.api_service());
        let names = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
            "127.0.0.1",
            &own,
            &service,
        ];
        pki.serving("apiserver", "kube-apiserver", &names)?;
        let masters = Some("system:masters");
        pki.client(&User { file: "apiserver-kubelet", name: "kube-apiserver", group: masters })?;
        for (file, name, group) in [
            ("admin", "larder-admin", masters),
            ("controller-manager", "system:kube-controller-manager", None),
            ("scheduler", "system:kube-scheduler", None),
        ] {
            pki.kubeconfig(&User { file, name, group })?;
        }
        for number in 1..=self.options.nodes {
            let node = format!("node{number}");
            let (user, address) = (format!("system:node:{node}"), network.node(number));
            let group = Some("system:nodes");
            pki.kubeconfig(&User { file: &node, name: &user, group })?;
            pki.serving(&format!("{node}-serving"), &user, &[&node, &address])?;
        }
        Ok(pki)
    }

    fn start_control(&self, control: &Machine, network: Network, pki: &Pki) -> Result<()> {
        self.start(control, "etcd", config::etcd())?;
        self.start(control, "kube-apiserver", config::apiserver(network, pki))?;
        let began = Instant::now();
        loop {
            let mut kubectl = Command::new(self.binaries.path("kubectl"));
            kubectl.args(["get", "--raw=/readyz", "--request-timeout=5s", "--kubeconfig"]);
            kubectl.arg(pki.path("admin.kubeconfig"));
            let Err(error) = process::output(&mut kubectl) else { break };
            for service in ["etcd", "kube-apiserver"] {
                ensure!(
                    control.is_running(service),
                    "{service} ended: {}",
                    control.log_end(service)
                );
            }
            ensure!(
                began.elapsed() < PATIENCE,
                "the API server is not ready: {error:#}; {}",
                control.log_end("kube-apiserver")
            );
            thread::sleep(Duration::from_millis(200));
        }
        let more = &self.options.controller_manager;
        let manager = config::controller_manager(pki, more);
        self.start(control, "kube-controller-manager", manager)?;
        self.start(control, "kube-scheduler", config::scheduler(pki))
    }

    fn start_node(
        &self,
        node: &Machine,
        number: u8,
        state: &State,
        pki: &Pki,
        archives: &[PathBuf],
    ) -> Result<()> {
        let write = |path: &str, text: String| -> Result<()> {
            let path = node.root().join(path);
            fs::create_dir_all(path.parent().context("no folder")?)?;
            fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))
        };
        let cgroup = cgroups::name(self.name, node.name());
        let kubelet = config::kubelet_file(&cgroup, state.network, pki, node.name());
        write("etc/kubernetes/kubelet.json", serde_json::to_string_pretty(&kubelet)?)?;
        write("etc/cni/net.d/10-larder.conflist", config::cni(state.network, number).to_string())?;
        write("etc/containerd/config.toml", config::containerd(&state.snapshotter))?;
        let containerd = ["containerd", "--config", "/etc/containerd/config.toml"];
        node.start_service("containerd", containerd)?;
        let look = || {
            ensure!(node.is_running("containerd"), "containerd ended");
            Ok(node.run(["ctr", "version"]).is_ok().then_some(()))
        };
        process::wait_for(PATIENCE, look).with_context(|| node.log_end("containerd"))?;
        for archive in archives {
            node.import_image(archive, &state.snapshotter)?;
        }
        self.start(node, "kubelet", config::kubelet(node.name(), state.network, number, pki))
    }

    fn start(&self, machine: &Machine, program: &str, arguments: Vec<String>) -> Result<()> {
        let path = self.binaries.path(program).display().to_string();
        machine.start_service(program, std::iter::once(path).chain(arguments))
    }

    /// All nodes take pods, and pods have an account to run as.
    fn wait_until_ready(&self, cluster: &Cluster) -> Result<()> {
        let wanted = usize::from(self.options.nodes);
        let ready = |list: &Value| {
            let items = list.pointer("/items")?.as_array()?;
            (items.iter().filter(|node| is_ready(node)).count() == wanted).then_some(())
        };
        let logs = || {
            let mut text = cluster.control().log_end("kube-controller-manager");
            for node in cluster.nodes() {
                text.push('\n');
                text.push_str(&node.log_end("kubelet"));
            }
            text
        };
        cluster.wait_for(&["nodes"], PATIENCE, ready).with_context(logs)?;
        cluster.wait_for(&["serviceaccount", "default"], PATIENCE, |_| Some(())).with_context(logs)
    }
}

/// Whether a node says so and nothing keeps pods away.
fn is_ready(node: &Value) -> bool {
    let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
    let ready = conditions.into_iter().flatten().any(|condition| {
        condition.get("type").is_some_and(|kind| kind == "Ready")
            && condition.get("status").is_some_and(|status| status == "True")
    });
    ready && node.pointer("/spec/taints").is_none()
}
