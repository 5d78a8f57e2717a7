//! `tapline publish`.
use clap::Args;
use ipnet::IpNet;

use super::error::Failure;
use super::{output, port, port_options};
use crate::control::http::{AskError, PortsClient};
use crate::plan::{self, ProxyVersion, PublishSpec, Published};

/// Publish ports of a sandbox that runs
///
/// All of them or, when one cannot be had, none. Prints where the host listens. `tapline unpublish` takes them back;
/// otherwise they go with the sandbox.
#[derive(Args, Debug)]
pub struct PublishArgs {
    /// Name or id of the sandbox, or the beginning of its id
    #[arg(value_name = "SANDBOX")]
    name: String,

    /// What to publish, as for `tapline run -p`
    #[arg(value_name = "SPEC", required = true, value_parser = PublishSpec::parse)]
    specs: Vec<PublishSpec>,

    /// Begin each TCP connection with a PROXY header, for services that read it
    #[arg(long, value_name = "VERSION", value_enum)]
    proxy_protocol: Option<ProxyVersion>,

    /// Who may connect: a subnet or an address; may be repeated [default: as the sandbox was started]
    ///
    /// The host's own loopback always may.
    #[arg(long, value_name = "CIDR", value_parser = plan::parse_clients)]
    publish_from: Vec<IpNet>,
}

impl PublishArgs {
    /// Does it.
    pub fn execute(mut self) -> Result<i32, Failure> {
        if let Some(version) = self.proxy_protocol
            && !port_options::add_proxy(&mut self.specs, version)
        {
            return Err(Failure::Usage("publish", port_options::NO_TCP.into()));
        }
        plan::check_specs(&self.specs).map_err(|error| Failure::Usage("publish", error.to_string()))?;
        let (states, sandbox) = port::find(&self.name)?;
        let client = PortsClient { states: &states, id: &sandbox.id };
        let mut made = Vec::new();
        for spec in &self.specs {
            match client.publish(&spec.text, spec.proxy, &self.publish_from) {
                Ok(ports) => made.extend(ports),
                Err(error) => {
                    take_back(&client, &made)?;
                    return Err(error.into());
                }
            }
        }
        output::print(&port::lines(&made))?;
        Ok(0)
    }
}

/// Takes back what was made. A spec that had been published before as well stays: taking it back would take both.
fn take_back(client: &PortsClient<'_>, made: &[Published]) -> Result<(), AskError> {
    if made.is_empty() {
        return Ok(());
    }
    let all = client.list()?;
    let mut specs: Vec<&str> = made.iter().map(|one| one.spec.as_str()).collect();
    specs.dedup();
    for spec in specs {
        let is_ours = |one: &Published| made.iter().any(|mine| mine.key() == one.key());
        if all.iter().filter(|one| one.spec == spec).all(is_ours) {
            client.unpublish(spec)?;
        }
    }
    Ok(())
}
