//! Files, but for a few (Landlock, landlock(7)).
//!
//! From then on nothing can be opened, made or removed but what is named; no mount can be made or moved, and no process be
//! traced that was not confined with this one. What is open already stays open. Abstract Unix sockets of others cannot be
//! connected to, where the kernel knows that (6.12).
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

use landlock::{
    ABI, Access, AccessFs, BitFlags, PathBeneath, RestrictionStatus, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope,
};

/// A path that stays, and for what.
pub(super) type Left = (&'static str, BitFlags<AccessFs>);

/// Leave this thread these paths alone, as far as they are there. The descriptors, which give access to nothing, are to
/// be kept as long as the paths are needed: the rules belong to the kernel's own objects, and those of /proc/sys are made
/// anew when nobody holds them. `Err` is a sentence's end.
pub(super) fn leave(left: &[Left]) -> Result<Vec<OwnedFd>, String> {
    let pin = |path: &str| File::options().read(true).custom_flags(libc::O_PATH).open(path).ok().map(OwnedFd::from);
    let pins: Vec<(OwnedFd, BitFlags<AccessFs>)> =
        left.iter().filter_map(|(path, access)| Some((pin(path)?, *access))).collect();
    match restrict(&pins) {
        Ok(RestrictionStatus { ruleset: RulesetStatus::NotEnforced, .. }) => {
            Err("this kernel has no Landlock, or it is switched off".to_owned())
        }
        Ok(_) => Ok(pins.into_iter().map(|(pin, _)| pin).collect()),
        Err(error) => Err(error.to_string()),
    }
}

/// As far as the kernel knows these rights; the library leaves out what it does not.
fn restrict(pins: &[(OwnedFd, BitFlags<AccessFs>)]) -> Result<RestrictionStatus, RulesetError> {
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))?
        .scope(Scope::AbstractUnixSocket)?
        .create()?
        .add_rules(pins.iter().map(|(pin, access)| Ok::<_, RulesetError>(PathBeneath::new(pin, *access))))?;
    ruleset.restrict_self()
}
