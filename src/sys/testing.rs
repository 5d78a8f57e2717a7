//! For tests: code that runs in a user and network namespace of its own.
//!
//! A test is a thread among others, and a thread among others cannot unshare a user namespace. So a child is
//! forked, which has one thread only, does the work there, and sends what went wrong back through a pipe.
//! glibc's fork leaves the allocator usable in the child; what may not be used there is anything else that
//! another thread could have held locked at that moment, standard output above all.
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Longest that a child may take, in seconds.
const TIME_LIMIT: u32 = 60;

/// Run `work` in a child that is root of a new user namespace and its network namespace. Panics with what
/// `work` answered, or with how the child ended. Not being allowed to make namespaces is a failure too.
pub fn in_namespace(work: impl FnOnce() -> Result<(), String>) {
    in_child(|| {
        enter_namespace()?;
        work()
    });
}

/// Run `work` in a forked child.
pub fn in_child(work: impl FnOnce() -> Result<(), String>) {
    let mut ends = [0; 2];
    // SAFETY: pipe2 writes two descriptors into the array given to it.
    assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }, 0, "pipe2");
    // SAFETY: the two descriptors are new and nobody else's.
    let (reader, writer) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    // SAFETY: the child has one thread, uses no lock but the allocator's, and leaves with _exit.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork: {}", io::Error::last_os_error());
    if child == 0 {
        drop(reader);
        // SAFETY: both calls take integers only.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::alarm(TIME_LIMIT);
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        let answer = match outcome {
            Ok(Ok(())) => "ok".to_owned(),
            Ok(Err(text)) => format!("failed: {text}"),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                format!("panicked: {}", text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("?"))
            }
        };
        let _ = std::fs::File::from(writer).write_all(answer.as_bytes());
        // SAFETY: _exit ends the process at once, without the handlers that belong to the parent.
        unsafe { libc::_exit(0) }
    }
    drop(writer);
    let mut answer = String::new();
    std::fs::File::from(reader).read_to_string(&mut answer).expect("the pipe can be read");
    let mut status = 0;
    // SAFETY: waitpid writes one integer; the child is ours and not yet waited for.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(answer, "ok", "the child ended with wait status {status:#x}");
}

/// How a child that did something ended, and what it said on standard error.
#[derive(Debug)]
pub struct End {
    /// Its exit status; `None` when a signal ended it.
    pub code: Option<i32>,
    /// The signal that did.
    pub signal: Option<i32>,
    /// Everything from its standard error.
    pub said: String,
}

/// Run `work` in a forked child, which may end in any way; when it returns, with status 0, or 1 and its text. The heap of
/// the test's thread, which the child goes on with, is not made smaller there: glibc would open a file for that, as it does
/// not for a process' first heap.
pub fn end_of(work: impl FnOnce() -> Result<(), String>) -> End {
    let (mut reader, writer) = io::pipe().expect("a pipe");
    // SAFETY: as in `in_child`.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork: {}", io::Error::last_os_error());
    if child == 0 {
        // SAFETY: these calls take integers only; both descriptors are open.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::alarm(TIME_LIMIT);
            #[cfg(target_env = "gnu")]
            libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
            libc::dup2(writer.as_raw_fd(), libc::STDERR_FILENO);
        }
        drop((reader, writer));
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        let outcome = outcome.unwrap_or_else(|_| Err("it panicked".to_owned()));
        let text = outcome.as_ref().err().map_or("", String::as_str);
        // Not through the standard library's handle, which another thread may have locked.
        let mut out = std::mem::ManuallyDrop::new(std::fs::File::from(io_stderr()));
        let _ = out.write_all(text.as_bytes());
        // SAFETY: as in `in_child`.
        unsafe { libc::_exit(i32::from(outcome.is_err())) }
    }
    drop(writer);
    let mut said = String::new();
    reader.read_to_string(&mut said).expect("the pipe can be read");
    let mut status = 0;
    // SAFETY: as in `in_child`.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    End {
        code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
        signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
        said,
    }
}

fn io_stderr() -> OwnedFd {
    // SAFETY: the caller, which ends without dropping it, owns nothing else under this number.
    unsafe { OwnedFd::from_raw_fd(libc::STDERR_FILENO) }
}

/// A system call by its number, in a child that is about to end: nobody else minds what it does to this process.
pub fn call(number: i64, arguments: [usize; 6]) -> io::Result<usize> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the tests that use it pass integers, null pointers, and pointers to what outlives the call.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Overflow this thread's stack.
pub fn overflow_stack(depth: usize) -> usize {
    let page = [depth as u8; 4096];
    let deeper = if std::hint::black_box(true) { overflow_stack(depth + 1) } else { 0 };
    deeper + usize::from(std::hint::black_box(&page)[depth % 4096])
}

/// Write where nothing is.
pub fn write_nowhere() {
    // SAFETY: there is none; the process ends by it.
    unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(1) };
}

/// Make a user and a network namespace and become root in them. For a process with one thread.
pub fn enter_namespace() -> Result<(), String> {
    // SAFETY: these calls take nothing and return integers.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    // SAFETY: unshare takes flags only.
    if unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) } != 0 {
        return Err(format!("this machine lets us make no user namespace: {}", io::Error::last_os_error()));
    }
    let write = |path: &str, text: String| std::fs::write(path, text).map_err(|e| format!("{path}: {e}"));
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// A TAP as somebody else makes one, without a header unless `flags` say so; with `stays` also without its descriptor, as
/// `ip tuntap add` does.
pub fn foreign_tap(name: &str, flags: libc::c_int, stays: bool) -> Result<OwnedFd, String> {
    let text = |e: io::Error| e.to_string();
    let file = std::fs::File::options().read(true).write(true).open(super::tun::TUN_DEVICE).map_err(text)?;
    let mut request = super::tun::ifreq(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | flags) as libc::c_short;
    let stays = libc::c_ulong::from(stays);
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which `request` is; TUNSETPERSIST takes its argument by value.
    let done = unsafe {
        libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) >= 0
            && libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST as _, stays) >= 0
    };
    if done { Ok(file.into()) } else { Err(text(io::Error::last_os_error())) }
}

/// A system call by its number, with nothing but zeros: what a filter refuses, whatever it is asked for, is told from what
/// is only nonsense. Not for calls that do something with zeros.
pub fn empty_call(number: libc::c_long) -> io::Result<()> {
    // SAFETY: null where the kernel looks for memory, so that it neither reads nor writes any.
    match unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// [`scm::pair`](super::scm::pair), made in a network namespace of its own: for a process that is the inside of a sandbox.
pub fn pair_elsewhere() -> [OwnedFd; 2] {
    let pair = from_elsewhere(|| super::scm::pair().map(|(one, other)| vec![one, other]).map_err(|e| e.to_string()));
    pair.try_into().expect("both")
}

/// Descriptors that are made in a network namespace of their own, which lives on with them.
pub fn from_elsewhere(make: impl FnOnce() -> Result<Vec<OwnedFd>, String>) -> Vec<OwnedFd> {
    let (ours, theirs) = super::scm::pair().expect("a socket pair");
    in_namespace(|| {
        let made = make()?;
        let made: Vec<_> = made.iter().map(AsFd::as_fd).collect();
        super::scm::send(&theirs, b"x", &made).map_err(|e| e.to_string())
    });
    super::scm::recv(&ours, &mut [0; 1]).expect("what was made").1
}

/// Have files of this process grow no further than that: writing beyond is an error.
pub fn limit_files(bytes: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: setrlimit reads one `struct rlimit`; ignoring a signal touches no memory of ours.
    let done = unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN) != libc::SIG_ERR
            && libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}
