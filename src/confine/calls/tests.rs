//! What a gateway may do goes on, and everything else ends the process with a line that names the call.
use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use libc::{c_int, c_long};
use nix::sys::signal::SigSet;
use socket2::{Domain, Protocol, Socket, Type};

use super::enter;
use super::list::{ALLOWED, PROBED};
use crate::sys::testing::{self, End, call, end_of};

/// A confined child, which has all signals blocked, as a supervisor's children have.
fn confined(work: impl FnOnce() -> Result<(), String>) -> End {
    end_of(|| {
        SigSet::all().thread_block().map_err(|e| e.to_string())?;
        nix::sys::prctl::set_no_new_privs().map_err(|e| e.to_string())?;
        enter()?;
        work()
    })
}

/// It ends by this call.
#[track_caller]
fn ends(name: &str, number: c_long, arguments: [usize; 6]) {
    let end = confined(|| Err(format!("it went on: {:?}", call(number, arguments))));
    let line = format!("tapline: error: the gateway ends: it is not to make this system call: {name} ({number})\n");
    assert_eq!((end.said.as_str(), end.signal), (line.as_str(), Some(libc::SIGSYS)), "{name}: {end:?}");
}

/// An argument of these bits.
const fn int(value: c_int) -> usize {
    value as u32 as usize
}

#[test]
fn what_is_not_on_the_list_ends_the_process_with_one_line() {
    let path = c"/etc/passwd".as_ptr() as usize;
    let [zero, here] = [[0; 6], [int(libc::AT_FDCWD), path, 0, 0, 0, 0]];
    for (name, number, arguments) in [
        // Files.
        ("openat", libc::SYS_openat, here),
        ("openat2", libc::SYS_openat2, here),
        ("faccessat", libc::SYS_faccessat, here),
        ("readlinkat", libc::SYS_readlinkat, here),
        ("unlinkat", libc::SYS_unlinkat, here),
        ("memfd_create", libc::SYS_memfd_create, [path, 0, 0, 0, 0, 0]),
        ("chdir", libc::SYS_chdir, [path, 0, 0, 0, 0, 0]),
        ("getcwd", libc::SYS_getcwd, zero),
        ("statx", libc::SYS_statx, here),
        // Mounts and namespaces.
        ("mount", libc::SYS_mount, zero),
        ("umount2", libc::SYS_umount2, [path, 0, 0, 0, 0, 0]),
        ("fsopen", libc::SYS_fsopen, zero),
        ("open_tree", libc::SYS_open_tree, here),
        ("move_mount", libc::SYS_move_mount, zero),
        ("pivot_root", libc::SYS_pivot_root, zero),
        ("chroot", libc::SYS_chroot, [path, 0, 0, 0, 0, 0]),
        ("unshare", libc::SYS_unshare, [int(libc::CLONE_NEWUSER), 0, 0, 0, 0, 0]),
        ("setns", libc::SYS_setns, [0, 0, 0, 0, 0, 0]),
        // Processes.
        ("execve", libc::SYS_execve, [c"/bin/true".as_ptr() as usize, 0, 0, 0, 0, 0]),
        ("execveat", libc::SYS_execveat, zero),
        ("clone", libc::SYS_clone, [int(libc::SIGCHLD), 0, 0, 0, 0, 0]),
        ("clone", libc::SYS_clone, [int(libc::CLONE_NEWUSER | libc::SIGCHLD), 0, 0, 0, 0, 0]),
        ("ptrace", libc::SYS_ptrace, [int(libc::PTRACE_TRACEME as c_int), 0, 0, 0, 0, 0]),
        ("process_vm_readv", libc::SYS_process_vm_readv, zero),
        ("process_vm_writev", libc::SYS_process_vm_writev, zero),
        ("pidfd_open", libc::SYS_pidfd_open, [1, 0, 0, 0, 0, 0]),
        ("pidfd_getfd", libc::SYS_pidfd_getfd, zero),
        ("kill", libc::SYS_kill, [1, 0, 0, 0, 0, 0]),
        ("tgkill", libc::SYS_tgkill, [1, 1, libc::SIGABRT as usize, 0, 0, 0]),
        ("tgkill", libc::SYS_tgkill, [std::process::id() as usize, 1, libc::SIGABRT as usize, 0, 0, 0]),
        ("wait4", libc::SYS_wait4, zero),
        ("setpriority", libc::SYS_setpriority, zero),
        // Sockets.
        ("socket", libc::SYS_socket, [int(libc::AF_UNIX), int(libc::SOCK_STREAM), 0, 0, 0, 0]),
        ("socket", libc::SYS_socket, [int(libc::AF_NETLINK), int(libc::SOCK_RAW), 0, 0, 0, 0]),
        ("socket", libc::SYS_socket, [int(libc::AF_PACKET), int(libc::SOCK_RAW), 0, 0, 0, 0]),
        ("socket", libc::SYS_socket, [int(libc::AF_PACKET), int(libc::SOCK_DGRAM), 0, 0, 0, 0]),
        ("socket", libc::SYS_socket, [int(libc::AF_ALG), int(libc::SOCK_SEQPACKET), 0, 0, 0, 0]),
        ("socket", libc::SYS_socket, [int(libc::AF_VSOCK), int(libc::SOCK_STREAM), 0, 0, 0, 0]),
        ("socket", libc::SYS_socket, [int(libc::AF_INET), int(libc::SOCK_RAW), int(libc::IPPROTO_ICMP), 0, 0, 0]),
        ("socket", libc::SYS_socket, [int(libc::AF_INET), int(libc::SOCK_STREAM), int(libc::IPPROTO_MPTCP), 0, 0, 0]),
        ("socketpair", libc::SYS_socketpair, [int(libc::AF_UNIX), int(libc::SOCK_DGRAM), 0, 0, 0, 0]),
        ("setsockopt", libc::SYS_setsockopt, [0, int(libc::SOL_SOCKET), int(libc::SO_ATTACH_FILTER), 0, 0, 0]),
        ("setsockopt", libc::SYS_setsockopt, [0, int(libc::SOL_TCP), int(libc::TCP_ULP), 0, 0, 0]),
        ("ioctl", libc::SYS_ioctl, [0, libc::TUNSETIFF as usize, 0, 0, 0, 0]),
        ("ioctl", libc::SYS_ioctl, [0, libc::TIOCSTI as usize, 0, 0, 0, 0]),
        ("fcntl", libc::SYS_fcntl, [0, int(libc::F_SETOWN), 1, 0, 0, 0]),
        ("pipe2", libc::SYS_pipe2, [0, int(libc::O_EXCL), 0, 0, 0, 0]),
        // Memory.
        ("mmap", libc::SYS_mmap, [0, 4096, int(libc::PROT_READ | libc::PROT_EXEC), int(libc::MAP_ANON), 0, 0]),
        ("mprotect", libc::SYS_mprotect, [0, 4096, int(libc::PROT_EXEC), 0, 0, 0]),
        ("pkey_mprotect", libc::SYS_pkey_mprotect, zero),
        ("userfaultfd", libc::SYS_userfaultfd, zero),
        ("madvise", libc::SYS_madvise, [0, 0, int(libc::MADV_HWPOISON), 0, 0, 0]),
        ("futex", libc::SYS_futex, [0, int(libc::FUTEX_LOCK_PI), 0, 0, 0, 0]),
        // The kernel's other machinery.
        ("bpf", libc::SYS_bpf, zero),
        ("io_uring_setup", libc::SYS_io_uring_setup, [1, 0, 0, 0, 0, 0]),
        ("perf_event_open", libc::SYS_perf_event_open, zero),
        ("keyctl", libc::SYS_keyctl, zero),
        ("add_key", libc::SYS_add_key, zero),
        ("personality", libc::SYS_personality, zero),
        ("finit_module", libc::SYS_finit_module, zero),
        ("reboot", libc::SYS_reboot, zero),
        // What the stages have set.
        ("prctl", libc::SYS_prctl, [int(libc::PR_SET_DUMPABLE), 1, 0, 0, 0, 0]),
        ("capset", libc::SYS_capset, zero),
        ("setresuid", libc::SYS_setresuid, zero),
        ("prlimit64", libc::SYS_prlimit64, [0, libc::RLIMIT_NOFILE as usize, path, 0, 0, 0]),
        ("prlimit64", libc::SYS_prlimit64, [1, libc::RLIMIT_NOFILE as usize, 0, 0, 0, 0]),
        ("seccomp", libc::SYS_seccomp, zero),
        ("rt_sigaction", libc::SYS_rt_sigaction, [libc::SIGSYS as usize, 0, 0, 8, 0, 0]),
    ] {
        ends(name, number, arguments);
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn calls_by_older_numbers_end_the_process_too() {
    let path = c"/etc/passwd".as_ptr() as usize;
    ends("open", libc::SYS_open, [path, 0, 0, 0, 0, 0]);
    ends("fork", libc::SYS_fork, [0; 6]);
    ends("vfork", libc::SYS_vfork, [0; 6]);
    // read(2) by its number for x32.
    ends("unknown", 0x4000_0000, [0; 6]);
    ends("unknown", 9999, [0; 6]);
}

#[test]
fn what_is_only_tried_is_answered_as_if_there_were_no_such_call() {
    for line in PROBED {
        let end = confined(|| match call(line.call.id().into(), [0; 6]) {
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        assert_eq!(end.code, Some(0), "{end:?}");
    }
}

/// Threads, streams, datagrams, an event loop.
fn work(server: &TcpListener) -> Result<(), String> {
    let text = |e: std::io::Error| e.to_string();
    let address = server.local_addr().map_err(text)?;
    let thread = std::thread::Builder::new().name("worker".into()).spawn(move || {
        let mut stream = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        stream.set_tcp_nodelay(true)?;
        stream.connect(&address.into())?;
        stream.write_all(&vec![7; 100_000])
    });
    let mut stream = crate::sys::splice::accept(std::os::fd::AsFd::as_fd(server)).map(|(fd, _)| TcpStream::from(fd));
    let stream = stream.as_mut().map_err(|e| e.to_string())?;
    stream.set_nonblocking(false).map_err(text)?;
    let mut got = Vec::new();
    stream.read_to_end(&mut got).map_err(text)?;
    thread.map_err(text)?.join().map_err(|_| "a panic")?.map_err(text)?;
    if got != [7; 100_000] {
        return Err("other bytes".to_owned());
    }
    // Much memory and none again.
    for _ in 0..20 {
        let thread = std::thread::spawn(|| (0..50).map(|n| vec![n as u8; 100_000]).collect::<Vec<_>>().len());
        thread.join().map_err(|_| "a panic")?;
    }
    let poll = mio::Poll::new().map_err(text)?;
    let _waker = mio::Waker::new(poll.registry(), mio::Token(0)).map_err(text)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(text)?;
    runtime.block_on(async { tokio::time::sleep(std::time::Duration::from_millis(1)).await });
    std::os::unix::net::UnixStream::pair().map(drop).map_err(text)
}

#[test]
fn what_a_gateway_does_goes_on() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let end = confined(|| work(&server));
    assert_eq!((end.code, end.said.as_str()), (Some(0), ""), "{end:?}");
}

#[test]
fn a_panic_a_full_stack_and_a_fault_end_as_they_do_elsewhere() {
    const INSIDE: &str = "TAPLINE_TEST_PANIC";
    const ME: &str = "confine::calls::tests::a_panic_a_full_stack_and_a_fault_end_as_they_do_elsewhere";
    if std::env::var_os(INSIDE).is_none() {
        // The harness shows panics itself, and a gateway's environment is empty: a backtrace would open files.
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", ME, "--nocapture"]).env_clear().env(INSIDE, "1");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
        return;
    }
    let panic = confined(|| match std::thread::spawn(|| panic!("on purpose")).join() {
        Err(_) => Ok(()),
        Ok(()) => Err("no panic".to_owned()),
    });
    assert_eq!(panic.code, Some(0), "{panic:?}");
    assert!(panic.said.contains("panicked at") && panic.said.contains("on purpose"), "{panic:?}");
    let abort = confined(|| std::process::abort());
    assert_eq!(abort.signal, Some(libc::SIGABRT), "{abort:?}");
    let overflow = confined(|| {
        let thread = std::thread::Builder::new().name("deep".into()).spawn(|| testing::overflow_stack(0));
        thread.map_err(|e| e.to_string())?.join().map(drop).map_err(|_| "a panic".to_owned())
    });
    assert_eq!(overflow.signal, Some(libc::SIGABRT), "{overflow:?}");
    assert!(overflow.said.contains("overflowed its stack"), "{overflow:?}");
    let fault = confined(|| {
        testing::write_nowhere();
        Ok(())
    });
    assert_eq!((fault.signal, fault.said.as_str()), (Some(libc::SIGSEGV), ""), "{fault:?}");
}

#[test]
fn where_there_are_no_filters_the_reason_is_said() {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
    let end = end_of(|| {
        // As a container engine that forbids more of them.
        let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(|e| e.to_string())?;
        let rules = [(libc::SYS_seccomp, Vec::new())].into_iter().collect();
        let error = SeccompAction::Errno(libc::EINVAL as u32);
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, error, architecture);
        let program: BpfProgram = filter.and_then(TryInto::try_into).map_err(|e| e.to_string())?;
        seccompiler::apply_filter(&program).map_err(|e| e.to_string())?;
        enter()
    });
    assert_eq!(
        end.said,
        "the gateway may make any system call: this kernel has no filters for that, or a container hides them \
         (CONFIG_SECCOMP_FILTER)"
    );
}

#[test]
fn each_line_has_its_reason_and_stands_once() {
    let mut seen = HashSet::new();
    let mut with_conditions = HashSet::new();
    for line in ALLOWED.iter().chain(PROBED) {
        assert!(!line.why.is_empty(), "{line:?}");
        assert!(seen.insert((line.call, format!("{:?}", line.when))), "twice: {line:?}");
        if !line.when.is_empty() {
            with_conditions.insert(line.call);
        }
    }
    for line in ALLOWED.iter().chain(PROBED) {
        let is_free = line.when.is_empty();
        assert!(!is_free || !with_conditions.contains(&line.call), "with and without a condition: {line:?}");
    }
}

#[test]
fn the_modules_that_lines_name_are_there() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for line in ALLOWED.iter().chain(PROBED) {
        let words = line.why.split(|c: char| !(c.is_alphanumeric() || c == ':' || c == '_'));
        for module in words.map(|word| word.trim_matches(':')).filter(|word| word.contains("::")) {
            let path = source.join(module.replace("::", "/"));
            assert!(path.is_dir() || path.with_extension("rs").is_file(), "{module} in {line:?}");
        }
    }
}
