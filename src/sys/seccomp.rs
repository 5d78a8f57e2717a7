//! Filters of system calls (seccomp(2)), and the line that a process says when one ends it.
use std::io;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal};
use seccompiler::sock_filter;

/// `struct sock_fprog` (linux/filter.h).
#[repr(C)]
struct Program {
    length: libc::c_ushort,
    filter: *const sock_filter,
}

/// What the kernel tells of a call that a filter has trapped: the beginning of `siginfo_t` as it is for SIGSYS
/// (asm-generic/siginfo.h).
#[repr(C)]
struct Trapped {
    _signal: libc::c_int,
    _errno: libc::c_int,
    code: libc::c_int,
    /// Where the call was made; its alignment is the union's.
    _address: *const libc::c_void,
    number: libc::c_int,
    _architecture: libc::c_uint,
}

/// `si_code` of a SIGSYS that a filter has caused, and not somebody's kill(2).
const SYS_SECCOMP: libc::c_int = 1;

/// How a call is called, by its number.
type Names = fn(i32) -> &'static str;

/// What is said around the name and the number.
static SAYING: OnceLock<(Names, &'static str)> = OnceLock::new();

/// Have the calling thread, and those that it starts later, make only the system calls that this program lets through. It
/// cannot be taken back, and needs `no_new_privs`.
///
/// # Errors
/// The kernel's: EINVAL or ENOSYS where it has no filters.
pub fn install(filter: &[sock_filter]) -> io::Result<()> {
    let length = filter.len().try_into().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = Program { length, filter: filter.as_ptr() };
    let attempt = |flags: libc::c_ulong| {
        // SAFETY: the kernel reads as many instructions as `program` says, which are there, and checks them itself.
        let done = unsafe {
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, std::ptr::from_ref(&program))
        };
        Errno::result(done).map(drop)
    };
    // Before Linux 5.16 a filter also slows down the processor's loads, for those who run foreign code in their own
    // address space (Documentation/userspace-api/spec_ctrl.rst); before 4.17 it did not, and there was no such flag.
    match attempt(libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW) {
        Err(Errno::EINVAL) => Ok(attempt(0)?),
        other => Ok(other?),
    }
}

/// Have a trapped call end this process by SIGSYS, with one line on standard error that names it: `before`, and then
/// `open (2)`, for instance. The first call in a process counts.
///
/// For a process with one thread, whose signal mask later ones inherit: SIGSYS is taken out of it, because a blocked
/// signal would end the process without a word, and so are those of faults, about which the standard library has a word to
/// say. Whoever has started us may have had all of them blocked.
pub fn end_with_a_line(names: Names, before: &'static str) -> io::Result<()> {
    let _ = SAYING.set((names, before));
    // It resets itself: the signal that the handler sends ends the process.
    let flags = SaFlags::SA_SIGINFO | SaFlags::SA_RESETHAND | SaFlags::SA_ONSTACK | SaFlags::SA_NODEFER;
    let action = SigAction::new(SigHandler::SigAction(handle_trap), flags, SigSet::empty());
    // SAFETY: the handler makes only async-signal-safe calls, takes no lock, allocates nothing and does not return.
    unsafe { nix::sys::signal::sigaction(Signal::SIGSYS, &action) }?;
    let ours: SigSet = [Signal::SIGSYS, Signal::SIGSEGV, Signal::SIGBUS].into_iter().collect();
    Ok(nix::sys::signal::sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&ours), None)?)
}

extern "C" fn handle_trap(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: SA_SIGINFO says that it points to a `siginfo_t`, which is larger than what is read and aligned as a pointer.
    let trapped = unsafe { info.cast::<Trapped>().read() };
    if trapped.code == SYS_SECCOMP
        && let Some((names, before)) = SAYING.get()
    {
        let mut line = Line { bytes: [0; 256], length: 0 };
        let mut digits = [0; 12];
        for part in [before.as_bytes(), names(trapped.number).as_bytes(), b" (", decimal(trapped.number, &mut digits)] {
            line.push(part);
        }
        line.push(b")\n");
        // SAFETY: write(2) reads that many bytes of it.
        unsafe { libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.length) };
    }
    // SAFETY: these touch no memory of ours. Where a filter traps the second call, which is a signal of another number
    // than it lets through, the kernel ends the process itself, also one that is its namespace's first.
    unsafe {
        libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::syscall(libc::SYS_gettid), signal);
        libc::_exit(128 + signal);
    }
}

/// A line that is put together without allocating.
struct Line {
    bytes: [u8; 256],
    length: usize,
}

impl Line {
    /// What does not fit is left out.
    fn push(&mut self, part: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(self.length).zip(part) {
            *to = *from;
            self.length += 1;
        }
    }
}

fn decimal(number: i32, digits: &mut [u8; 12]) -> &[u8] {
    let mut rest = number.unsigned_abs();
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        first -= 1;
        digits[first] = b'-';
    }
    &digits[first..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_people_do() {
        for number in [0, 7, 10, 257, i32::MAX, i32::MIN, 1 << 30, -1] {
            assert_eq!(decimal(number, &mut [0; 12]), number.to_string().as_bytes());
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_cut() {
        let mut line = Line { bytes: [0; 256], length: 0 };
        line.push(&[b'a'; 200]);
        line.push(&[b'b'; 200]);
        line.push(b"c");
        assert_eq!(line.length, 256);
        assert_eq!(line.bytes[..200], [b'a'; 200]);
        assert_eq!(line.bytes[200..], [b'b'; 56]);
    }
}
