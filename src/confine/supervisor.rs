//! What a supervisor gives up when its sandbox is in place.
//!
//! # Theory of operation
//!
//! A supervisor is the person's own process on the person's own files. It reads nothing of what the sandbox sends; those
//! who do (gateway, agent) send it short messages. It must be able to bind a port that is asked for later, to write its
//! state, and to start another gateway, which makes namespaces and an empty root of its own. So there is no Landlock here,
//! which would refuse mounts to the gateway too, and no call is refused that a gateway makes while it confines itself:
//!
//! 1. *Memory*: not dumpable, no core files. Nobody without rights on the host can trace it or look at its memory and
//!    its descriptors, be it a process of the same user.
//! 2. *Privileges*: no_new_privs: no set-user-id program that it or a gateway might start gains anything. Of the
//!    capabilities, of which an ordinary user has none, CAP_NET_BIND_SERVICE stays, and with [`Keep::ToEnter`] what it
//!    takes to enter a namespace again that is somebody else's. Root keeps CAP_SETFCAP besides: without it, root's next
//!    gateway could not map itself into a user namespace of its own (user_namespaces(7)), and whoever killed one gateway
//!    would get another that has given up less.
//! 3. *Calls* (seccomp): the parts of the kernel that it never needs cannot be reached, and no process be traced.
//!
//! It enters them before the command is let go, or whoever waits for the network is told. What is forked before (agent,
//! init, the command) has none of it.
use std::io;

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::Uid;

use super::forbidden::{self, KERNEL, TRACING};
use super::{ConfineError, Stage};
use crate::sys::caps::{self, Capability};

/// Which capabilities a supervisor keeps, if it has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// CAP_NET_BIND_SERVICE.
    ToBind,
    /// And what another agent takes, to enter the namespace and to set up interfaces there.
    ToEnter,
}

impl Keep {
    fn capabilities(self) -> Vec<Capability> {
        use Capability::{DacReadSearch, NetAdmin, NetBindService, NetRaw, SetFcap, SysAdmin, SysPtrace};
        let mut kept = vec![NetBindService];
        kept.extend(Uid::effective().is_root().then_some(SetFcap));
        if self == Keep::ToEnter {
            kept.extend([NetAdmin, NetRaw, SysAdmin, SysPtrace, DacReadSearch]);
        }
        kept
    }
}

/// Confine a supervisor; gives what could not be had, a sentence each.
pub fn supervisor(keep: Keep) -> Result<Vec<String>, ConfineError> {
    let failed = |stage, operation| move |error: io::Error| ConfineError { stage, operation, error };
    prctl::set_dumpable(false).map_err(|error| failed(Stage::Memory, "PR_SET_DUMPABLE")(error.into()))?;
    let limited = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    limited.map_err(|error| failed(Stage::Memory, "RLIMIT_CORE")(error.into()))?;
    prctl::set_no_new_privs().map_err(|error| failed(Stage::Privileges, "no_new_privs")(error.into()))?;
    caps::keep_only(&keep.capabilities()).map_err(failed(Stage::Capabilities, "drop capabilities"))?;
    let lack = |why| format!("the supervisor keeps system calls that it does not need: no seccomp filter ({why})");
    Ok(forbidden::refuse(&[KERNEL, TRACING], None).map_err(lack).err().into_iter().collect())
}

#[cfg(test)]
mod tests;
