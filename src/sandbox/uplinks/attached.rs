//! What is done when a gateway carries frames, and about a process that could not give up everything.
use super::{GaveUp, Uplinks};
use crate::sandbox::SandboxError;

impl Uplinks {
    /// Its gateway has said so, and what it could not give up.
    pub(super) fn handle_attached(&mut self, number: u64, lacks: Vec<String>) -> Result<Option<GaveUp>, SandboxError> {
        if let Err(error) = self.heed_lacks(lacks) {
            if self.is_wanted_by_caller(number) {
                self.undo(error.to_string());
                return Ok(None);
            }
            return Err(error);
        }
        if self.living.is_none() && self.at(number).is_some_and(|at| self.all[at].is_shared()) {
            self.living = self.states.show_life();
        }
        if self.is_wanted_by_caller(number) {
            self.finish_connect();
        }
        Ok(None)
    }

    /// Say it, once for each sentence, or refuse to work where that is asked for.
    pub(in crate::sandbox) fn heed_lacks(&mut self, lacks: Vec<String>) -> Result<(), SandboxError> {
        if lacks.is_empty() {
            return Ok(());
        }
        if self.about.require_confinement {
            return Err(SandboxError::Unconfined(lacks.join("; ")));
        }
        for lack in lacks {
            if self.told_lacks.insert(lack.clone()) {
                tracing::warn!("{lack}");
            }
        }
        Ok(())
    }
}
