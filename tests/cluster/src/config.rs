//! What the components are told: as kubeadm would, apart from what a test machine lacks.

use std::path::Path;

use serde_json::{Value, json};

use crate::{images, network::Network, pki::Pki};

/// Where every node has its containerd.
pub(crate) const RUNTIME: &str = "/run/containerd/containerd.sock";

/// etcd, for the control machine only; a crash may lose what it wrote.
pub(crate) fn etcd() -> Vec<String> {
    words(
        "--data-dir=/var/lib/etcd --unsafe-no-fsync --log-level=warn \
         --listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379 \
         --listen-peer-urls=http://127.0.0.1:2380",
    )
}

/// The API server, on the port of its own service.
pub(crate) fn apiserver(network: Network, pki: &Pki) -> Vec<String> {
    let mut all = words(
        "--etcd-servers=http://127.0.0.1:2379 --bind-address=0.0.0.0 --secure-port=443 \
         --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
         --allow-privileged=true --service-account-issuer=https://kubernetes.default.svc \
         --kubelet-preferred-address-types=InternalIP \
         --requestheader-allowed-names=front-proxy-client \
         --requestheader-extra-headers-prefix=X-Remote-Extra- \
         --requestheader-group-headers=X-Remote-Group \
         --requestheader-username-headers=X-Remote-User",
    );
    all.push(format!("--advertise-address={}", network.control()));
    all.push(format!("--service-cluster-ip-range={}", network.services()));
    for (flag, file) in [
        ("client-ca-file", "ca.crt"),
        ("requestheader-client-ca-file", "ca.crt"),
        ("tls-cert-file", "apiserver.crt"),
        ("tls-private-key-file", "apiserver.key"),
        ("service-account-key-file", "sa.pub"),
        ("service-account-signing-key-file", "sa.key"),
        ("kubelet-certificate-authority", "ca.crt"),
        ("kubelet-client-certificate", "apiserver-kubelet.crt"),
        ("kubelet-client-key", "apiserver-kubelet.key"),
    ] {
        all.push(format!("--{flag}={}", pki.path(file)));
    }
    all
}

/// The controller manager, with the stock limits on its requests unless `more` says else.
pub(crate) fn controller_manager(pki: &Pki, more: &[String]) -> Vec<String> {
    let mut all =
        words("--bind-address=127.0.0.1 --leader-elect=false --use-service-account-credentials");
    for (flag, file) in [
        ("kubeconfig", "controller-manager.kubeconfig"),
        ("authentication-kubeconfig", "controller-manager.kubeconfig"),
        ("authorization-kubeconfig", "controller-manager.kubeconfig"),
        ("client-ca-file", "ca.crt"),
        ("root-ca-file", "ca.crt"),
        ("cluster-signing-cert-file", "ca.crt"),
        ("cluster-signing-key-file", "ca.key"),
        ("service-account-private-key-file", "sa.key"),
    ] {
        all.push(format!("--{flag}={}", pki.path(file)));
    }
    all.extend_from_slice(more);
    all
}

/// The scheduler.
pub(crate) fn scheduler(pki: &Pki) -> Vec<String> {
    let mut all = words("--bind-address=127.0.0.1 --leader-elect=false");
    for flag in ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"] {
        all.push(format!("--{flag}={}", pki.path("scheduler.kubeconfig")));
    }
    all
}

/// A kubelet.
pub(crate) fn kubelet(node: &str, network: Network, number: u8, pki: &Pki) -> Vec<String> {
    vec![
        "--config=/etc/kubernetes/kubelet.json".into(),
        format!("--kubeconfig={}", pki.path(&format!("{node}.kubeconfig"))),
        format!("--hostname-override={node}"),
        format!("--node-ip={}", network.node(number)),
        "--root-dir=/var/lib/kubelet".into(),
        "--v=2".into(),
    ]
}

/// The kubelet's configuration file.
pub(crate) fn kubelet_file(cgroup: &str, network: Network, pki: &Pki, node: &str) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": pki.path("ca.crt") },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": pki.path(&format!("{node}-serving.crt")),
        "tlsPrivateKeyFile": pki.path(&format!("{node}-serving.key")),
        "containerRuntimeEndpoint": format!("unix://{RUNTIME}"),
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        // No one answers there; pods get the address of the API server by variable.
        "clusterDNS": [network.dns_service()],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        // What this machine may not have: cgroup v2, no swap, iptables, room on its disk.
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup,
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        "makeIPTablesUtilChains": false,
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
            "imagefs.available": "0%", "imagefs.inodesFree": "0%",
        },
    })
}

/// containerd's configuration file.
pub(crate) fn containerd(snapshotter: &str) -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
address = "{RUNTIME}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
# Without CAP_SYS_RESOURCE runc would fail to lower the score.
restrict_oom_score_adj = true
disable_apparmor = true
disable_hugetlb_controller = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{cni}"
conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{snapshotter}"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"#,
        pause = images::PAUSE,
        cni = CNI_PLUGINS,
    )
}

/// Where Debian has the plugins.
const CNI_PLUGINS: &str = "/usr/lib/cni";

/// The network of a node's pods: a link each, routed by the node.
pub(crate) fn cni(network: Network, number: u8) -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "larder",
        "plugins": [{
            "type": "ptp",
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": network.pods(number) }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
                "dataDir": "/run/cni",
            },
        }],
    })
}

/// The snapshotter that works in a folder: overlays do not lie on overlays.
pub(crate) fn snapshotter(dir: &Path) -> &'static str {
    const OVERLAYFS: i64 = 0x794c_7630;
    let on_overlay = rustix::fs::statfs(dir).is_ok_and(|stat| stat.f_type == OVERLAYFS);
    if on_overlay { "native" } else { "overlayfs" }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}
