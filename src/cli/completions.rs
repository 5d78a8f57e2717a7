//! `tapline completions`.
use clap::Args;
use clap_complete::Shell;

use super::error::Failure;
use super::output;

/// Print completions for a shell
#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL", value_enum)]
    shell: Shell,
}

impl CompletionsArgs {
    /// Does it.
    pub fn execute(self) -> Result<i32, Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::command(), "tapline", &mut script);
        output::print(&String::from_utf8_lossy(&script))?;
        Ok(0)
    }
}
