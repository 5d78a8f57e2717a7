//! Processes: forking, descriptors that a fork must not keep, pidfds, the last steps before an exec.
//!
//! A forked child that does not exec is a copy of everything its parent had open. Two kinds are told apart by
//! their close-on-exec flag: what this program opened has it (the standard library and every wrapper in this crate
//! set it), what the person's shell handed down has not, and belongs to CMD. So "ours" can be closed in a child
//! without touching what CMD is to inherit, and the inherited ones can be closed in the processes that only wait,
//! so that a pipe's far end sees its end of file when CMD is done with it.
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal};
use nix::unistd::{ForkResult, Pid};

/// On which side of a fork this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forked {
    /// In the parent, with the child's PID, which is to be waited for.
    Parent(Pid),
    /// In the child.
    Child,
}

/// fork(2), in a process that has one thread.
///
/// # Errors
/// The kernel's, or `Unsupported` when there are other threads: their locks would stay taken in the child for ever.
pub fn fork() -> io::Result<Forked> {
    be_alone()?;
    // SAFETY: this is the only thread (checked above as far as /proc tells, and nothing in the supervisor starts
    // one), so no lock can be held by a thread that does not exist in the child.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Forked::Parent(child)),
        ForkResult::Child => Ok(Forked::Child),
    }
}

/// The same, but the copy is a child of this process's parent, who waits for it as for this one (clone(2),
/// CLONE_PARENT).
///
/// # Errors
/// As with [`fork`].
pub fn fork_sibling() -> io::Result<Forked> {
    be_alone()?;
    let mut own_number: *mut libc::c_int = std::ptr::null_mut();
    // SAFETY: the kernel writes one pointer: where the C library has it keep this thread's number.
    let is_known = unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut own_number) } == 0;
    let flags = libc::CLONE_PARENT | libc::SIGCHLD;
    // As fork(3) does. Without it the C library would take the first process's number for the second's.
    let flags = if is_known { flags | libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID } else { flags };
    // SAFETY: no memory is shared and there is no new stack, so this returns twice, as fork(2) does; that there is one
    // thread was checked. The number is written in the child, where the C library's own fork has it written. It is
    // the fourth argument on some architectures and the fifth on others; without CLONE_SETTLS the other is not looked at.
    let pid = Errno::result(unsafe { libc::syscall(libc::SYS_clone, flags, 0usize, 0usize, own_number, own_number) })?;
    match pid {
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(Pid::from_raw(pid as libc::pid_t))),
    }
}

/// An error in a process with several threads.
fn be_alone() -> io::Result<()> {
    match is_alone() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::Unsupported, "fork in a process with several threads")),
    }
}

/// Is this the process's only thread, as far as /proc tells?
pub fn is_alone() -> bool {
    threads().is_none_or(|number| number == 1)
}

/// Wait for the end of any child in a process group, and reap it; `None` when there is none.
pub fn wait_for_group(group: Pid) -> io::Result<Option<(Pid, ExitStatus)>> {
    loop {
        let mut status = 0;
        // SAFETY: the kernel writes one int to where the pointer leads.
        match Errno::result(unsafe { libc::waitpid(-group.as_raw(), &raw mut status, 0) }) {
            Ok(pid) => return Ok(Some((Pid::from_raw(pid), ExitStatus::from_raw(status)))),
            Err(Errno::ECHILD) => return Ok(None),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Have SIGTERM end this process: also where whoever started it has blocked that, and as the first of a PID namespace, which
/// is spared every signal that has no handler (pid_namespaces(7)). Its exit status is then 143, as a shell has it.
pub fn end_on_sigterm() -> io::Result<()> {
    extern "C" fn end(signal: libc::c_int) {
        exit_now(128 + signal);
    }
    let handler = SigHandler::Handler(end);
    // SAFETY: the handler makes one system call, _exit(2), which is async-signal-safe.
    unsafe { nix::sys::signal::signal(Signal::SIGTERM, handler) }?;
    let mut only = SigSet::empty();
    only.add(Signal::SIGTERM);
    Ok(nix::sys::signal::sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&only), None)?)
}

/// Number of threads of this process; `None` where /proc cannot be read.
fn threads() -> Option<u64> {
    // The link count of a directory is two and one for each directory in it (proc(5), /proc/pid/task).
    fs::metadata("/proc/self/task").ok().map(|meta| meta.nlink().saturating_sub(2))
}

/// End this process now, without running destructors or exit handlers: what a forked copy must do, whose
/// destructors belong to its parent.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) has no preconditions and does not return.
    unsafe { libc::_exit(status) }
}

/// Send a signal to the process behind a pidfd (pidfd_send_signal(2)); `None` only looks whether it could be sent.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: Option<Signal>) -> io::Result<()> {
    let number = signal.map_or(0, |s| s as i32);
    // SAFETY: a borrowed descriptor is open, no siginfo is passed (null means "as kill(2) would").
    Errno::result(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), number, std::ptr::null::<libc::siginfo_t>(), 0)
    })?;
    Ok(())
}

/// What happened to a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It exited with this status.
    Exited(i32),
    /// This signal ended it.
    Killed(i32),
    /// This signal stopped it.
    Stopped(i32),
}

/// The next child that has ended (it is reaped) or stopped, without waiting; `None` when there is none. Knows
/// real-time signals, which nix's wait statuses do not.
pub fn wait_any() -> Option<(Pid, Change)> {
    loop {
        let mut status = 0;
        // SAFETY: the kernel writes one int to where the pointer leads.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::WUNTRACED) };
        match pid {
            0 => return None,
            -1 if Errno::last() == Errno::EINTR => {}
            -1 => return None,
            _ if libc::WIFEXITED(status) => {
                return Some((Pid::from_raw(pid), Change::Exited(libc::WEXITSTATUS(status))));
            }
            _ if libc::WIFSIGNALED(status) => {
                return Some((Pid::from_raw(pid), Change::Killed(libc::WTERMSIG(status))));
            }
            _ if libc::WIFSTOPPED(status) => {
                return Some((Pid::from_raw(pid), Change::Stopped(libc::WSTOPSIG(status))));
            }
            _ => {}
        }
    }
}

/// Descriptors open in this process, lowest first.
fn open_fds() -> io::Result<Vec<RawFd>> {
    let mut fds: Vec<RawFd> =
        fs::read_dir("/proc/self/fd")?.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    fds.sort_unstable();
    Ok(fds)
}

/// Close every descriptor from 3 up that `chosen` says yes to (given: is it close-on-exec?), except `keep`.
fn close_where(keep: &[BorrowedFd<'_>], chosen: impl Fn(bool) -> bool) -> io::Result<()> {
    for fd in open_fds()? {
        if fd < 3 || keep.iter().any(|k| k.as_raw_fd() == fd) {
            continue;
        }
        // SAFETY: F_GETFD reads a flag of a descriptor number; a closed number gives EBADF.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        if flags >= 0 && chosen(flags & libc::FD_CLOEXEC != 0) {
            // SAFETY: the callers' contract is that no owner of this descriptor is used or dropped afterwards.
            unsafe { libc::close(fd) };
        }
    }
    Ok(())
}

/// In a forked child that never returns to the code that owns them: close everything this program opened
/// (close-on-exec), except `keep`. What was inherited from outside stays, for CMD.
pub fn close_own_fds_in_child(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    close_where(keep, |cloexec| cloexec)
}

/// Close every descriptor from 3 up that was inherited from outside (not close-on-exec), except `keep`. Nobody in
/// this program owns those.
pub fn close_inherited_fds(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    close_where(keep, |cloexec| !cloexec)
}

/// Close every descriptor from 3 up except `keep`, in a forked child that never returns to the code that owns them.
/// Needs no /proc.
pub fn close_all_fds_in_child(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd().unsigned_abs()).filter(|&fd| fd >= 3).collect();
    kept.sort_unstable();
    let mut first = 3;
    for last in kept.iter().map(|&fd| fd - 1).chain([u32::MAX]) {
        if first <= last {
            // SAFETY: the callers' contract is that no owner of these descriptors is used or dropped afterwards.
            Errno::result(unsafe { libc::close_range(first, last, 0) })?;
        }
        // Past the one that is kept; after u32::MAX the loop is over.
        first = last.saturating_add(2);
    }
    Ok(())
}

/// Point the named standard descriptors (0, 1, 2) at /dev/null.
pub fn null_stdio(which: &[RawFd]) -> io::Result<()> {
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    for &fd in which.iter().filter(|fd| (0..3).contains(*fd)) {
        // SAFETY: both are open descriptors; 0 to 2 belong to the process as a whole and are never closed, only
        // pointed elsewhere, so no owner is surprised.
        Errno::result(unsafe { libc::dup2(null.as_raw_fd(), fd) })?;
    }
    Ok(())
}

/// Run `work` with standard error pointed at /dev/null, and point it back: for starting a process that outlives
/// whoever reads our standard error.
pub fn with_null_stderr<T>(work: impl FnOnce() -> T) -> io::Result<T> {
    let saved = io::stderr().as_fd().try_clone_to_owned()?;
    null_stdio(&[2])?;
    let result = work();
    // SAFETY: `saved` is an open duplicate of the old standard error; see null_stdio for number 2.
    Errno::result(unsafe { libc::dup2(saved.as_raw_fd(), 2) })?;
    Ok(result)
}

/// Take over a descriptor that the person gave by number (`--ready-fd 5`). It becomes close-on-exec. Take a number
/// once only.
///
/// # Errors
/// `EBADF` when no such descriptor was inherited: it is not open, or one that this program opened.
pub fn adopt_fd(number: RawFd) -> io::Result<OwnedFd> {
    if number < 3 {
        // A duplicate, so that closing it leaves the standard stream alone.
        // SAFETY: fcntl on a number; the result is a new descriptor.
        let fd = Errno::result(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) })?;
        // SAFETY: the call succeeded; the duplicate is ours.
        return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    // SAFETY: reads a flag of a descriptor number; EBADF when it is not open.
    let flags = Errno::result(unsafe { libc::fcntl(number, libc::F_GETFD) })?;
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(Errno::EBADF.into());
    }
    // SAFETY: sets a flag on an open descriptor.
    Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open and was inherited (it was not close-on-exec), so nothing in this program owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Is this number a descriptor that was inherited from outside? One that this program opened is not.
pub fn is_inherited(number: RawFd) -> bool {
    // SAFETY: reads a flag of a descriptor number; EBADF when it is not open.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    flags >= 0 && flags & libc::FD_CLOEXEC == 0
}

/// Have a descriptor pass for one that was inherited, as [`adopt_fd`] wants it.
pub fn make_inheritable(fd: &impl AsFd) -> io::Result<()> {
    // SAFETY: sets a flag on a borrowed, and so open, descriptor.
    Errno::result(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_SETFD, 0) })?;
    Ok(())
}

/// Does whoever started this process want it to ignore a signal (nohup(1), a shell's `trap ''`, a job in the background of
/// a script)?
pub fn is_ignored(signal: Signal) -> bool {
    let mut found = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action sigaction(2) changes nothing, and writes the one in force to `found`.
    if unsafe { libc::sigaction(signal as libc::c_int, std::ptr::null(), found.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: it has succeeded, so `found` is written.
    unsafe { found.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// End this process by a signal, as if nothing had been done about it (signal(7)): who waits for it sees that. Where the
/// signal ends nobody, exits with 128 and its number.
pub fn die_of(signal: i32) -> ! {
    if let Ok(signal) = Signal::try_from(signal) {
        let mut only = SigSet::empty();
        only.add(signal);
        // SAFETY: the default disposition runs no code of ours.
        let _ = unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) };
        let _ = nix::sys::signal::sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&only), None);
        let _ = nix::sys::signal::raise(signal);
    }
    exit_now(128 + signal)
}

/// Give memory that planning used back to the kernel (malloc_trim(3); glibc only).
pub fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim only touches the allocator's own state and takes its locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Have all threads share one heap (M_ARENA_MAX, mallopt(3); glibc only). With several, the allocator opens files in /proc
/// and /sys when it wants to give the first of them back, or to know how many there may be.
pub fn share_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only touches the allocator's own state.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Let go of the memory that is not needed while this process only waits: what the allocator holds, and the pages of
/// the program's own code and constants, which come back from the page cache, a few at a time, when they are used.
pub fn go_idle() {
    trim_memory();
    /// Called for each loaded object, the program first; 1 ends that.
    unsafe extern "C" fn forget(info: *mut libc::dl_phdr_info, _: libc::size_t, _: *mut libc::c_void) -> libc::c_int {
        // SAFETY: dl_iterate_phdr(3) passes a valid pointer.
        let info = unsafe { &*info };
        // SAFETY: it points to that many headers, which stay mapped with the program.
        let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
        // SAFETY: sysconf reads a constant.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
        for header in headers.iter().filter(|h| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_W == 0) {
            let (Ok(offset), Ok(length)) = (usize::try_from(header.p_vaddr), usize::try_from(header.p_memsz)) else {
                continue;
            };
            let Ok(base) = usize::try_from(info.dlpi_addr) else { continue };
            let (start, end) = (base + offset, base + offset + length);
            let start = start - start % page;
            // SAFETY: a segment that is not writable is a private mapping of the program's file with no page of our
            // own in it (position-independent code has no text relocations, and what is relocated lies in a writable
            // segment): a page that is let go comes back with the same bytes.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
        }
        1
    }
    // SAFETY: the callback has the right type and takes no data.
    unsafe { libc::dl_iterate_phdr(Some(forget), std::ptr::null_mut()) };
}

/// Allow this process as many descriptors as it may have: the soft limit becomes the hard one (RLIMIT_NOFILE,
/// setrlimit(2)). Whoever is forked afterwards has it too; programs that use select(2) want a low one.
pub fn raise_descriptor_limit() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// SIGXFSZ was not ignored before [`survive_file_limit`].
static FILE_LIMIT_ENDS: AtomicBool = AtomicBool::new(false);

/// From now on a file that may not grow further (RLIMIT_FSIZE) is an error of write(2), of which the person can be told,
/// and not the end by SIGXFSZ without a word.
pub fn survive_file_limit() {
    if !is_ignored(Signal::SIGXFSZ) {
        // SAFETY: an ignored signal runs no code of ours.
        let ignored = unsafe { nix::sys::signal::signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
        FILE_LIMIT_ENDS.store(ignored.is_ok(), Ordering::Relaxed);
    }
}

/// Signal dispositions as a fresh program expects them, and the given mask: the last thing before an exec. The
/// Rust runtime ignores SIGPIPE, and we SIGXFSZ, which an exec would hand on.
pub fn restore_signals(mask: &SigSet) -> io::Result<()> {
    // SAFETY: setting a disposition to the default runs no code of ours.
    unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
    if FILE_LIMIT_ENDS.load(Ordering::Relaxed) {
        // SAFETY: as above.
        unsafe { nix::sys::signal::signal(Signal::SIGXFSZ, SigHandler::SigDfl) }?;
    }
    nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(mask), None)?;
    Ok(())
}

/// execvpe(3): the program by its name, looked for in PATH, with this environment or the caller's. Returns only when it
/// could not be started.
pub fn exec(program: &CString, args: &[CString], environment: Option<&[CString]>) -> io::Error {
    let result = match environment {
        Some(environment) => nix::unistd::execvpe(program, args, environment),
        None => nix::unistd::execvp(program, args),
    };
    match result {
        Ok(never) => match never {},
        Err(errno) => errno.into(),
    }
}

/// The stopping signal of a terminal (Ctrl-Z): stop this process as it would, whatever the mask. Returns when it has
/// been continued. Nothing happens in an orphaned process group, whose members nobody could continue.
pub fn stop_self() -> io::Result<()> {
    let mut only = SigSet::empty();
    only.add(Signal::SIGTSTP);
    let mut old = SigSet::empty();
    nix::sys::signal::raise(Signal::SIGTSTP)?;
    // It was blocked and is pending; unblocked it is delivered before this call returns.
    nix::sys::signal::sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&only), Some(&mut old))?;
    nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&old), None)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::spawn::pidfd_open;

    #[test]
    fn a_process_with_threads_is_not_forked() {
        // The test harness runs each test in a thread of its own.
        assert!(threads().unwrap() > 1);
        assert_eq!(fork().unwrap_err().kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn a_pidfd_becomes_readable_when_its_process_ends() {
        let mut child = std::process::Command::new("/bin/cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pidfd = pidfd_open(child.id()).unwrap();
        let readable = |timeout: u16| {
            let mut fds = [nix::poll::PollFd::new(pidfd.as_fd(), nix::poll::PollFlags::POLLIN)];
            nix::poll::poll(&mut fds, timeout).unwrap() == 1
        };
        assert!(!readable(0));
        pidfd_send_signal(pidfd.as_fd(), None).unwrap();
        pidfd_send_signal(pidfd.as_fd(), Some(Signal::SIGTERM)).unwrap();
        assert!(readable(5000));
        child.wait().unwrap();
        assert!(pidfd_send_signal(pidfd.as_fd(), None).is_err());
    }

    #[test]
    fn a_number_that_is_not_open_cannot_be_adopted() {
        assert_eq!(adopt_fd(9999).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }
}
