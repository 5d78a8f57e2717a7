//! `tapline network ls`.
use std::collections::HashMap;

use clap::Args;
use comfy_table::{Table, presets};

use super::inspect::document;
use crate::cli::error::{self, Failure};
use crate::cli::output;
use crate::cli::ps::Format;
use crate::control::networks::Networks;
use crate::control::state::{SandboxState, StateDir};
use crate::plan::Definition;

/// List the networks
///
/// A file that cannot be read is named on standard error, and is no obstacle for the others.
#[derive(Args, Debug)]
pub struct LsArgs {
    /// Ids only
    #[arg(short, long)]
    quiet: bool,

    /// A table for people, or a JSON object on each line
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Table)]
    format: Format,
}

impl LsArgs {
    /// Does it.
    pub fn execute(self) -> Result<i32, Failure> {
        let listing = Networks::open()?.list()?;
        let sandboxes = if self.quiet { Vec::new() } else { StateDir::open()?.list()? };
        for broken in &listing.broken {
            error::say(&broken.to_string());
        }
        let networks = &listing.definitions;
        let text = match self.format {
            _ if self.quiet => networks.iter().map(|network| format!("{}\n", network.id)).collect(),
            Format::Table => table(networks, &sandboxes),
            Format::Json => networks.iter().map(|network| format!("{}\n", document(network, &sandboxes))).collect(),
        };
        output::print(&text)?;
        Ok(0)
    }
}

fn table(networks: &[Definition], sandboxes: &[SandboxState]) -> String {
    let mut on: HashMap<&str, usize> = HashMap::new();
    for seat in sandboxes.iter().flat_map(|sandbox| &sandbox.endpoints) {
        *on.entry(seat.network.name.as_str()).or_default() += 1;
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["NAME", "ID", "SUBNETS", "SANDBOXES", "RULES"]);
    for network in networks {
        let subnets: Vec<String> = network.subnets().map(|subnet| subnet.to_string()).collect();
        let rules = match (network.sharing.internal, network.sharing.icc) {
            (false, true) => "-",
            (true, true) => "internal",
            (false, false) => "no icc",
            (true, false) => "internal, no icc",
        };
        let count = on.get(network.name.as_str()).copied().unwrap_or_default();
        table.add_row([&network.name, &network.id, &subnets.join(","), &count.to_string(), rules]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Ipv4Part, Sharing};
    use std::collections::BTreeMap;

    #[test]
    fn a_row_shows_subnets_and_rules() {
        let network = Definition {
            name: "db".into(),
            id: "0123456789ab".into(),
            v4: Some(Ipv4Part::new("10.9.0.0/24".parse().unwrap(), None, None).unwrap()),
            v6: None,
            mtu: 1500,
            sharing: Sharing { internal: true, icc: false },
            dns: Vec::new(),
            dns_search: Vec::new(),
            labels: BTreeMap::new(),
            created: 0,
        };
        let text = table(&[network], &[]);
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["NAME", "ID", "SUBNETS", "SANDBOXES", "RULES"]);
        assert_eq!(rows[1], ["db", "0123456789ab", "10.9.0.0/24", "0", "internal,", "no", "icc"]);
    }
}
