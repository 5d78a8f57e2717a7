//! No files: Landlock (landlock(7)).
//!
//! A gateway opens nothing: what it needs is brought to it open. So it has a rule set that handles every access to files
//! which this kernel knows of and allows none of them. What is open stays usable, whoever opened it. Where the kernel can
//! (Linux 6.12), it also keeps the process from abstract Unix sockets that others have bound and from sending signals to
//! anybody outside.
//!
//! The rights of Landlock over TCP are left alone: a gateway connects to where its sandboxes want to.
use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, LandlockStatus, Ruleset, RulesetAttr, RulesetError, RulesetStatus,
    Scope,
};

/// The newest that is known of here; of it as much is had as there is.
const NEWEST: ABI = ABI::V9;

/// Enter the stage; the error is one sentence that says what is missing, and why.
pub(super) fn enter() -> Result<(), String> {
    let reason = match restrict() {
        Ok((RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced, _)) => return Ok(()),
        Ok((RulesetStatus::NotEnforced, LandlockStatus::NotEnabled)) => {
            "Landlock is switched off (the kernel's parameter lsm=)".to_owned()
        }
        Ok((RulesetStatus::NotEnforced, _)) => {
            "this kernel has no Landlock, or a container hides it (CONFIG_SECURITY_LANDLOCK)".to_owned()
        }
        Err(error) => error.to_string(),
    };
    Err(format!("the gateway may open the files that its user may: {reason}"))
}

fn restrict() -> Result<(RulesetStatus, LandlockStatus), RulesetError> {
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .restrict_self()?;
    Ok((status.ruleset, status.landlock))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::in_child;
    use std::fs::{self, File};
    use std::io::{self, Read, Write};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

    /// Does this kernel have it?
    fn has_landlock() -> bool {
        let status = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        status.handle_access(AccessFs::from_all(ABI::V1)).and_then(Ruleset::create).is_ok()
    }

    #[test]
    fn no_file_can_be_reached_and_open_ones_stay() {
        if !has_landlock() {
            assert!(enter().unwrap_err().starts_with("the gateway may open the files that its user may: "));
            return;
        }
        let path = std::env::temp_dir().join(format!("tapline-landlock-{}", std::process::id()));
        fs::write(&path, "before").unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        in_child(|| {
            let text = |e: io::Error| e.to_string();
            let mut open = File::options().read(true).append(true).open(&path).map_err(text)?;
            enter()?;
            let refused = |what: &str, outcome: io::Result<()>| match outcome {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
                other => Err(format!("{what}: {other:?}")),
            };
            refused("read", File::open(&path).map(drop))?;
            refused("write", File::options().append(true).open(&path).map(drop))?;
            refused("/dev/null", File::open("/dev/null").map(drop))?;
            refused("list", fs::read_dir("/").map(drop))?;
            refused("create", File::create(path.with_extension("new")).map(drop))?;
            refused("remove", fs::remove_file(&path))?;
            refused("rename", fs::rename(&path, path.with_extension("new")))?;
            refused("socket", UnixListener::bind(path.with_extension("sock")).map(drop))?;
            refused("execute", std::process::Command::new("/bin/true").status().map(drop))?;
            // What is open stays so, and the network is not its business.
            open.write_all(b", after").and_then(|()| open.set_len(8)).map_err(text)?;
            std::net::TcpStream::connect(address).map_err(text)?;
            Ok(())
        });
        let mut found = String::new();
        File::open(&path).unwrap().read_to_string(&mut found).unwrap();
        assert_eq!(found, "before, ");
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn others_are_out_of_reach_where_the_kernel_can_say_so() {
        let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        if ruleset.scope(Scope::from_all(ABI::V6)).and_then(Ruleset::create).is_err() {
            return;
        }
        let name = SocketAddr::from_abstract_name(format!("tapline-landlock-{}", std::process::id())).unwrap();
        let _listener = UnixListener::bind_addr(&name).unwrap();
        let parent = nix::unistd::Pid::from_raw(std::process::id() as i32);
        in_child(|| {
            enter()?;
            match (UnixStream::connect_addr(&name), nix::sys::signal::kill(parent, None)) {
                (Err(error), Err(nix::Error::EPERM)) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }
}
