//! The network of a cluster, all of it in 10.N.0.0/16 with an N that is free here:
//!
//! ```text
//! 10.N.0.0/24     machines: .1 control (a bridge), .10+i node i, .254 the host
//! 10.N.i.0/24     pods of node i, routed by its CNI plugin (ptp, host-local)
//! 10.N.128.0/17   services; .128.1 is `kubernetes`, an address of the control machine
//! ```
//! There is no kube-proxy: the API server listens on the port of its own service and on
//! its address, and everybody's default route leads there. Other services have no one
//! behind them. Nothing leads out: pods have no way into the host's networks.

use std::process::Command;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::{machine::Machine, process};

/// The Ns to choose from.
const CHOICE: std::ops::RangeInclusive<u8> = 200..=250;

/// A cluster's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Network {
    octet: u8,
}

impl Network {
    /// One that no route of this host knows. Whoever calls this holds the lock on the
    /// choice until [`Self::connect`] is done.
    pub(crate) fn free() -> Result<Self> {
        let routes = process::output(ip().args(["-4", "route", "show", "table", "all"]))?;
        CHOICE.map(|octet| Self { octet }).find(|network| !network.is_in(&routes)).context(
            "all of 10.200.0.0 to 10.250.0.0 are in use (hint: cargo xtask cluster down --all)",
        )
    }

    fn is_in(self, routes: &str) -> bool {
        let prefix = format!("10.{}.", self.octet);
        routes.split_whitespace().any(|word| word.starts_with(&prefix))
    }

    /// Address of the API server for machines and the host.
    pub(crate) fn control(self) -> String {
        format!("10.{}.0.1", self.octet)
    }

    pub(crate) fn host(self) -> String {
        format!("10.{}.0.254", self.octet)
    }

    /// Address of node `number`, counted from 1.
    pub(crate) fn node(self, number: u8) -> String {
        format!("10.{}.0.{}", self.octet, 10 + number)
    }

    pub(crate) fn pods(self, number: u8) -> String {
        format!("10.{}.{number}.0/24", self.octet)
    }

    pub(crate) fn services(self) -> String {
        format!("10.{}.128.0/17", self.octet)
    }

    /// Address of the service `kubernetes`.
    pub(crate) fn api_service(self) -> String {
        format!("10.{}.128.1", self.octet)
    }

    pub(crate) fn dns_service(self) -> String {
        format!("10.{}.128.10", self.octet)
    }

    /// The host's interface.
    pub(crate) fn interface(self) -> String {
        format!("larder{}", self.octet)
    }

    /// Connects the host and all machines.
    pub(crate) fn connect(self, control: &Machine, nodes: &[Machine]) -> Result<()> {
        let all = format!("10.{}.0.0/16", self.octet);
        let (me, own) = (self.interface(), self.control());
        let pid = control.pid().to_string();
        run(ip()
            .args(["link", "add", &me, "type", "veth", "peer", "name", "host"])
            .args(["netns", &pid]))?;
        run(ip().args(["address", "add", &format!("{}/24", self.host()), "dev", &me]))?;
        run(ip().args(["link", "set", &me, "up"]))?;
        run(ip().args(["route", "add", &all, "via", &own, "dev", &me]))?;

        inside(control, &["link", "add", "nodes", "type", "bridge"])?;
        inside(control, &["address", "add", &format!("{own}/24"), "dev", "nodes"])?;
        inside(control, &["link", "set", "host", "master", "nodes"])?;
        inside(control, &["address", "add", &format!("{}/32", self.api_service()), "dev", "lo"])?;
        for name in ["lo", "host", "nodes"] {
            inside(control, &["link", "set", name, "up"])?;
        }
        forward(control)?;
        for (number, node) in (1..).zip(nodes) {
            self.connect_node(control, number, node)?;
        }
        Ok(())
    }

    fn connect_node(self, control: &Machine, number: u8, node: &Machine) -> Result<()> {
        let (name, pid) = (node.name(), node.pid().to_string());
        let words = ["link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", &pid];
        // In the control machine's network, but with the host's process numbers.
        let mut command = Command::new("nsenter");
        command.args(["--target", &control.pid().to_string(), "--net", "ip"]);
        run(command.args(words))?;
        inside(control, &["link", "set", name, "master", "nodes"])?;
        inside(control, &["link", "set", name, "up"])?;
        inside(node, &["address", "add", &format!("{}/24", self.node(number)), "dev", "eth0"])?;
        for name in ["lo", "eth0"] {
            inside(node, &["link", "set", name, "up"])?;
        }
        inside(node, &["route", "add", "default", "via", &self.control()])?;
        forward(node)?;
        inside(control, &["route", "add", &self.pods(number), "via", &self.node(number)])
    }
}

fn forward(machine: &Machine) -> Result<()> {
    machine.run(["sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"]).map(|_| ())
}

fn inside(machine: &Machine, words: &[&str]) -> Result<()> {
    run(machine.command("ip").args(words))
}

fn ip() -> Command {
    Command::new(larder_needs::find_command("ip").unwrap_or_else(|| "ip".into()))
}

fn run(command: &mut Command) -> Result<()> {
    process::output(command).map(|_| ())
}

/// Removes the host's interface, if it is still there: it goes with its other end,
/// which ends with the control machine.
pub(crate) fn disconnect(network: Network) {
    let _ = process::capture(ip().args(["link", "delete", &network.interface()]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_that_a_route_knows_is_not_free() {
        let routes = "default via 10.1.2.3 dev eth0\n10.200.0.0/16 via 10.200.0.1 dev larder200\n";
        assert!(Network { octet: 200 }.is_in(routes));
        assert!(!Network { octet: 201 }.is_in(routes));
        assert!(!Network { octet: 20 }.is_in(routes));
    }
}
