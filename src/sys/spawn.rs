//! Starting a program with one descriptor and nothing else of ours, and watching it end.
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Have the program start in a session of its own, deaf to the terminal's signals and to that of a file that may grow no
/// more (its write fails all the same), with standard input, output and
/// error as the command says and `keep` open under its own number; every other descriptor is closed, whether it was
/// marked close-on-exec or not. The caller keeps `keep` open until the program is started.
pub fn isolate(command: &mut Command, keep: BorrowedFd<'_>) {
    let keep = keep.as_raw_fd();
    let prepare = move || {
        let terminal = [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
        for signal in terminal.into_iter().chain([libc::SIGXFSZ]) {
            // SAFETY: setting a disposition to "ignore" is async-signal-safe and survives exec.
            if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: no memory is touched. It fails only for a process group leader, which a fresh child is not.
        if unsafe { libc::setsid() } < 0 {
            return Err(io::Error::last_os_error());
        }
        // Marked, not closed: the standard library still needs its own descriptor to report a failed exec.
        // SAFETY: close_range and fcntl touch no memory of ours.
        let marked = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
        if marked < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above; `keep` is open here because the caller keeps it open.
        if unsafe { libc::fcntl(keep, libc::F_SETFD, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec. It makes only async-signal-safe system calls, allocates
    // nothing (`last_os_error` does not) and captures one integer.
    unsafe { command.pre_exec(prepare) };
}

/// A descriptor that becomes readable when the process ends (pidfd_open(2)). For a child that has not been waited
/// for, `pid` cannot have been given to another process.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is touched; a descriptor that is returned is ours alone.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).expect("a descriptor or -1 fits an int");
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor (close-on-exec).
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Take over a descriptor that this program was started with, by its number; it is close-on-exec from now on.
/// Call it once for each number, before anything else is opened that could have it.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    if number < 3 {
        return Err(io::Error::other("it is one of the standard descriptors"));
    }
    // SAFETY: fcntl touches no memory of ours, and says EBADF when nothing is open under this number.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and by this function's contract nothing else in the program owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
