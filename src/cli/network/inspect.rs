//! `tapline network inspect`.
use clap::Args;
use serde_json::{Value, json};

use crate::cli::document::{Show, show_all};
use crate::cli::error::Failure;
use crate::control::networks::Networks;
use crate::control::state::{SandboxState, StateDir};
use crate::plan::{Definition, date};

/// Show all there is to know of networks, as JSON
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// Name or id of the network, or the beginning of its id; several make a list
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,

    #[command(flatten)]
    show: Show,
}

impl InspectArgs {
    /// Does it.
    pub fn execute(self) -> Result<i32, Failure> {
        let networks = Networks::open()?;
        let sandboxes = StateDir::open()?.list()?;
        show_all(&self.show, &self.names, |name| Ok(document(&networks.find(name)?, &sandboxes)))
    }
}

/// A network and the sandboxes of this host network namespace that are on it.
pub fn document(network: &Definition, sandboxes: &[SandboxState]) -> Value {
    let part = |subnet: String, gateway: String, range: Option<String>| json!({ "subnet": subnet, "gateway": gateway, "ip_range": range });
    let on_it: Vec<Value> = sandboxes
        .iter()
        .flat_map(|sandbox| sandbox.endpoints.iter().map(move |seat| (sandbox, seat)))
        .filter(|(_, seat)| seat.network.name == network.name)
        .map(|(sandbox, seat)| {
            let endpoint = &seat.endpoint;
            json!({
                "name": sandbox.name, "id": sandbox.id, "ifname": endpoint.ifname, "mac": endpoint.mac,
                "v4": endpoint.v4, "v6": endpoint.v6, "aliases": endpoint.aliases,
            })
        })
        .collect();
    json!({
        "name": network.name,
        "id": network.id,
        "created": date::rfc3339(network.created),
        "driver": "bridge",
        "ipv4": network.v4.map(|v4| {
            part(v4.subnet.to_string(), v4.gateway.to_string(), v4.range.map(|range| range.to_string()))
        }),
        "ipv6": network.v6.map(|v6| {
            part(v6.subnet.to_string(), v6.gateway.to_string(), v6.range.map(|range| range.to_string()))
        }),
        "mtu": network.mtu,
        "internal": network.sharing.internal,
        "icc": network.sharing.icc,
        "dns": network.dns,
        "dns_search": network.dns_search,
        "labels": network.labels,
        "sandboxes": on_it,
    })
}
