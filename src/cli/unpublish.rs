//! `tapline unpublish`.
use clap::Args;

use super::error::Failure;
use super::port;
use crate::control::http::PortsClient;
use crate::plan::PublishSpec;

/// Take back published ports of a sandbox that runs
///
/// The host listens there no longer; connections that exist go on.
#[derive(Args, Debug)]
pub struct UnpublishArgs {
    /// Name or id of the sandbox, or the beginning of its id
    #[arg(value_name = "SANDBOX")]
    name: String,

    /// What was published, as for `tapline run -p`
    #[arg(value_name = "SPEC", required = true, value_parser = PublishSpec::parse)]
    specs: Vec<PublishSpec>,
}

impl UnpublishArgs {
    /// Does it; past a spec that cannot be taken back, and tells of the first such.
    pub fn execute(self) -> Result<i32, Failure> {
        let (states, sandbox) = port::find(&self.name)?;
        let client = PortsClient { states: &states, id: &sandbox.id };
        let results: Vec<_> = self.specs.iter().map(|spec| client.unpublish(&spec.text)).collect();
        results.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(0)
    }
}
