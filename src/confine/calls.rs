//! The system calls that a gateway may make; with any other one it ends.
//!
//! # Theory of operation
//!
//! [`list`] says which calls there may be, with which arguments, and what for. They become two programs that the kernel
//! runs before each call (seccomp(2)). One lets through what is on the list and traps everything else; the other answers
//! those calls with ENOSYS that a library only tries. Of two answers the kernel takes the harsher, so that a call has to be
//! on the list to come as far as that. Threads that are started later have both programs too, and neither can be taken off.
//!
//! A trapped call is not made. The kernel sends SIGSYS instead, and [`seccomp::end_with_a_line`] has it say which call
//! that was on standard error, which is the supervisor's own or the shared gateways' log, before it ends the process. A
//! supervisor then starts another gateway, as after every sudden end. There is no way back to an error for the one that
//! made the call: what is not on the list is a mistake in it, to be mended with a line, or somebody who has taken over the
//! process.
//!
//! A call by the numbers of another architecture (32 bits, x32) ends the process as well.
//!
//! A call without a condition costs some 30 ns more than before, because Linux 5.11 and later finds out once that the
//! programs always let it through, and then looks into a table; the others cost some 100 ns, for which the programs run.
//! So what is done for each frame has no condition.
//!
//! Nothing may be loaded or opened after this: what the C library does only when it is needed first is either on the list,
//! or done here before.
use std::io;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
pub mod list;

/// Enter the stage; the error is one sentence that says what is missing, and why.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
pub(super) fn enter() -> Result<(), String> {
    programs::install().map_err(lack)
}

/// There is no list for this architecture.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
pub(super) fn enter() -> Result<(), String> {
    Err(lack(io::Error::other("there is no list of them for this kind of processor")))
}

fn lack(error: io::Error) -> String {
    let reason = match error.raw_os_error() {
        Some(libc::EINVAL | libc::ENOSYS) => {
            "this kernel has no filters for that, or a container hides them (CONFIG_SECCOMP_FILTER)".to_owned()
        }
        _ => error.to_string(),
    };
    format!("the gateway may make any system call: {reason}")
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
mod programs {
    use std::collections::BTreeMap;
    use std::io;

    use seccompiler::{
        BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule, TargetArch,
    };
    use syscalls::Sysno;

    use super::list::{ALLOWED, Condition, Line, PROBED};
    use crate::sys::{proc, seccomp};

    pub fn install() -> io::Result<()> {
        let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
        let ourselves = std::process::id();
        let build = |lines: &mut dyn Iterator<Item = &Line>, elsewhere, there| -> Result<BpfProgram, BackendError> {
            SeccompFilter::new(rules(lines, ourselves)?, elsewhere, there, architecture)?.try_into()
        };
        let let_through = build(&mut ALLOWED.iter().chain(PROBED), SeccompAction::Trap, SeccompAction::Allow);
        let no_such_call = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
        let deny = build(&mut PROBED.iter(), SeccompAction::Allow, no_such_call);
        let (let_through, deny) = (let_through.map_err(io::Error::other)?, deny.map_err(io::Error::other)?);
        // Before there is a second thread.
        proc::share_heap();
        seccomp::end_with_a_line(name, "tapline: error: the gateway ends: it is not to make this system call: ")?;
        // This one first: with the other there is no installing.
        seccomp::install(&deny)?;
        seccomp::install(&let_through)
    }

    fn name(number: i32) -> &'static str {
        usize::try_from(number).ok().and_then(Sysno::new).map_or("unknown", |call| call.name())
    }

    /// The lines by their calls' numbers.
    fn rules(
        lines: &mut dyn Iterator<Item = &Line>,
        ourselves: u32,
    ) -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        for line in lines {
            let of_call = rules.entry(line.call.id().into()).or_default();
            // A call without any rule is let through; whoever has one must meet it.
            if !line.when.is_empty() {
                let conditions = line.when.iter().map(|condition| condition.compile(ourselves));
                of_call.push(SeccompRule::new(conditions.collect::<Result<_, _>>()?)?);
            }
        }
        Ok(rules)
    }

    impl Condition {
        fn compile(self, ourselves: u32) -> Result<SeccompCondition, BackendError> {
            use SeccompCmpArgLen::{Dword, Qword};
            match self {
                Condition::Is(argument, value) => {
                    SeccompCondition::new(argument, Dword, SeccompCmpOp::Eq, value.into())
                }
                Condition::Bits(argument, mask, value) => {
                    SeccompCondition::new(argument, Dword, SeccompCmpOp::MaskedEq(mask.into()), value.into())
                }
                Condition::Null(argument) => SeccompCondition::new(argument, Qword, SeccompCmpOp::Eq, 0),
                Condition::Ourselves(argument) => {
                    SeccompCondition::new(argument, Dword, SeccompCmpOp::Eq, ourselves.into())
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
