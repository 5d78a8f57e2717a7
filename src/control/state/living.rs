//! A sign of life where a logout does not reach.
//!
//! # Theory of operation
//!
//! When somebody removes the runtime directory, its supervisors make their entries anew, but not before they hear of it.
//! Whoever starts a sandbox at that very moment would find nothing: neither the gateway, nor whose the addresses are. So
//! each supervisor with a place on a shared network holds a lock (flock, shared) on a file in the fallback root, which
//! is named after the runtime directory and the namespace; who finds no place of a gateway, but that file locked, waits
//! until it is there again ([`StateDir::wait_for_repair`]). The last one takes the file away.
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::claims::is_same_file;
use super::{StateDir, check_private_dir, make_private_dir, open_lock};

/// How long the supervisors of a directory that was removed may take to make their entries anew.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long after the first of them the last may.
const STRAGGLERS: Duration = Duration::from_millis(200);
const PAUSE: Duration = Duration::from_millis(10);

/// A sandbox lives that is on a shared network; as long as this is held.
#[derive(Debug)]
pub struct Living {
    path: PathBuf,
    file: File,
}

impl StateDir {
    /// Show that a sandbox lives that is on a shared network. `None` where that need not, or cannot be.
    pub fn show_life(&self) -> Option<Living> {
        let path = self.sign_of_life()?;
        make_private_dir(path.parent()?).ok()?;
        check_private_dir(path.parent()?).ok()?;
        loop {
            let file = open_lock(&path).ok()?;
            file.lock_shared().ok()?;
            // Otherwise the last of the others has just taken it away.
            if is_same_file(&path, &file) {
                return Some(Living { path, file });
            }
        }
    }

    /// Where sandboxes live whose entries somebody has taken away: wait until they have made them anew, for a while.
    pub(super) fn wait_for_repair(&self) {
        let until = Instant::now() + PATIENCE;
        let mut waited = false;
        while self.has_lost_gateway() && self.is_there_life() && Instant::now() < until {
            waited = true;
            sleep(PAUSE);
        }
        if waited {
            sleep(STRAGGLERS);
        }
    }

    fn is_there_life(&self) -> bool {
        let Some(path) = self.sign_of_life() else { return false };
        let is_safe = path.parent().is_some_and(|root| check_private_dir(root).is_ok());
        is_safe && super::is_held_by_some(&path)
    }

    /// Named after the runtime directory (FNV-1a), which may be gone, and the namespace.
    fn sign_of_life(&self) -> Option<PathBuf> {
        let [runtime, .., fallback] = self.roots.as_slice() else { return None };
        let hash = runtime
            .path
            .as_os_str()
            .as_bytes()
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        Some(fallback.path.join(format!("living-{}-{hash:016x}", self.netns)))
    }
}

impl Drop for Living {
    fn drop(&mut self) {
        if self.file.try_lock().is_ok() && is_same_file(&self.path, &self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
