//! The system calls of a gateway: each line a call that is let through, under which condition, and the code that needs it.
//!
//! The order is for those who read it; the kernel is given the calls by their numbers.
//!
//! A condition stands where it takes much away: other families of sockets, memory that can be executed, processes. Two
//! lines of one call mean either.
use libc::{
    AF_INET, AF_INET6, AF_UNIX, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, IPPROTO_UDP,
    SIGABRT, SIGBUS, SIGSEGV, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_STREAM, SOL_PACKET, SOL_SOCKET, SOL_UDP,
};
use syscalls::Sysno;

/// One call that a gateway may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Which.
    pub call: Sysno,
    /// Its arguments meet all of these.
    pub when: &'static [Condition],
    /// The code that needs it.
    pub why: &'static str,
}

/// Something that an argument has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The argument (from 0) is this. The kernel takes no more than 32 bits of it.
    Is(u8, u32),
    /// Of the argument's bits under the first number, those of the second are set, and no others.
    Bits(u8, u32, u32),
    /// The argument is a null pointer.
    Null(u8),
    /// The argument is this process' id.
    Ourselves(u8),
}

use Condition::{Bits, Is, Null, Ourselves};

/// A call whatever its arguments.
const fn any(call: Sysno, why: &'static str) -> Line {
    Line { call, when: &[], why }
}

/// A call under conditions.
const fn only(call: Sysno, when: &'static [Condition], why: &'static str) -> Line {
    Line { call, when, why }
}

/// socket(2): family, type whatever its flags, protocol.
const fn socket(family: i32, kind: i32, protocol: i32) -> [Condition; 3] {
    let flags = (SOCK_CLOEXEC | SOCK_NONBLOCK) as u32;
    [Is(0, family as u32), Bits(1, !flags, kind as u32), Is(2, protocol as u32)]
}

/// setsockopt(2): level, option.
const fn option(level: i32, name: i32) -> [Condition; 2] {
    [Is(1, level as u32), Is(2, name as u32)]
}

/// The second argument of fcntl(2), the first of prctl(2), the third of madvise(2).
const fn operation(argument: u8, number: i32) -> [Condition; 1] {
    [Is(argument, number as u32)]
}

/// ioctl(2).
const fn request(number: libc::Ioctl) -> [Condition; 1] {
    [Is(1, number as u32)]
}

/// futex(2): what it does, in this process or between several, by either clock.
const fn futex(number: i32) -> [Condition; 1] {
    let flags = (libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME) as u32;
    [Bits(1, !flags, number as u32)]
}

/// What glibc's pthread_create(3) asks of clone(2).
const THREAD: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID;

/// Take away the guard page that [`MADV_GUARD_INSTALL`] has made (linux/mman.h, since 6.13).
const MADV_GUARD_REMOVE: i32 = 103;
/// Make a guard page without a mapping of its own.
const MADV_GUARD_INSTALL: i32 = 102;

/// fstatat(2), as the architecture calls it.
#[cfg(not(target_arch = "aarch64"))]
const NEWFSTATAT: Sysno = Sysno::newfstatat;
#[cfg(target_arch = "aarch64")]
const NEWFSTATAT: Sysno = Sysno::fstatat;

/// The signal that glibc keeps for setuid(2) of all threads (nptl, SIGSETXID).
const SIGSETXID: u32 = 33;

/// The list.
pub static ALLOWED: &[Line] = &[
    // Frames and bytes.
    any(Sysno::read, "datapath::port (frames of a TAP), publish::splice, mio and tokio (wakers, API)"),
    any(Sysno::write, "datapath::port (frames), mio and tokio (wakers, API), observe (log, captures), a panic's text"),
    any(Sysno::readv, "tokio (API)"),
    any(Sysno::writev, "datapath::port (a frame in parts), tokio (API), a panic's text, glibc's last words"),
    any(Sysno::recvfrom, "host::tcp, publish (streams), tokio (DNS servers)"),
    any(Sysno::sendto, "host::tcp, publish (streams), tokio (DNS servers)"),
    any(Sysno::recvmsg, "sys::scm (supervisors, agents), sys::dgram (error queue)"),
    any(Sysno::sendmsg, "sys::scm (supervisors, agents), sys::dgram (datagrams, super-segments)"),
    any(Sysno::recvmmsg, "sys::dgram (datagrams)"),
    any(Sysno::splice, "publish::splice"),
    any(Sysno::close, "everything that is dropped"),
    // Waiting.
    #[cfg(target_arch = "x86_64")]
    any(Sysno::epoll_wait, "mio (workers, tokio)"),
    any(Sysno::epoll_pwait, "mio (workers, tokio), where there is no epoll_wait"),
    any(Sysno::epoll_ctl, "mio (workers, tokio)"),
    any(Sysno::epoll_create1, "mio: each worker has one"),
    any(Sysno::eventfd2, "mio: each worker has a waker"),
    #[cfg(target_arch = "x86_64")]
    any(Sysno::poll, "control::gateway::hub (has somebody gone?)"),
    any(Sysno::ppoll, "control::gateway::hub (has somebody gone?), where there is no poll"),
    any(Sysno::restart_syscall, "the kernel: what waits goes on after SIGSTOP and SIGCONT"),
    any(Sysno::clock_gettime, "every clock, where the kernel's page has no answer (Xen, unstable TSC)"),
    // Sockets.
    only(Sysno::socket, &socket(AF_INET, SOCK_STREAM, IPPROTO_TCP), "host::tcp, publish::tcp, names::upstream"),
    only(Sysno::socket, &socket(AF_INET6, SOCK_STREAM, IPPROTO_TCP), "host::tcp, publish::tcp, names::upstream"),
    only(Sysno::socket, &socket(AF_INET, SOCK_DGRAM, IPPROTO_UDP), "host::addr, names::upstream"),
    only(Sysno::socket, &socket(AF_INET6, SOCK_DGRAM, IPPROTO_UDP), "host::addr, names::upstream"),
    only(Sysno::socket, &socket(AF_INET, SOCK_DGRAM, 0), "publish::udp::detour"),
    only(Sysno::socket, &socket(AF_INET6, SOCK_DGRAM, 0), "publish::udp::detour"),
    only(Sysno::socket, &socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP), "host::ping"),
    only(Sysno::socket, &socket(AF_INET6, SOCK_DGRAM, IPPROTO_ICMPV6), "host::ping"),
    only(Sysno::socketpair, &socket(AF_UNIX, SOCK_STREAM, 0), "host::tcp (DNS over TCP, to the forwarder)"),
    any(Sysno::connect, "host, publish, names::upstream"),
    any(Sysno::bind, "host, names::upstream (source address), sys::packet"),
    any(Sysno::listen, "control::gateway (a socket that supervisors look for)"),
    any(Sysno::accept4, "publish::tcp, control::gateway::hub, control::api"),
    any(Sysno::shutdown, "host::tcp, publish::splice, names, control::api"),
    any(Sysno::getsockname, "control::gateway::check (what was handed over?), sys::packet, publish"),
    any(Sysno::getpeername, "host::tcp (is it connected?)"),
    any(Sysno::getsockopt, "everywhere: what a socket is, its error, its path's MTU, who is at its other end"),
    only(Sysno::setsockopt, &option(SOL_SOCKET, libc::SO_LINGER), "host::tcp, publish::splice"),
    only(Sysno::setsockopt, &option(SOL_SOCKET, libc::SO_OOBINLINE), "host::tcp, publish::splice"),
    only(Sysno::setsockopt, &option(SOL_SOCKET, libc::SO_KEEPALIVE), "host::tcp"),
    only(Sysno::setsockopt, &option(SOL_SOCKET, libc::SO_RCVBUF), "host::socket"),
    only(Sysno::setsockopt, &option(SOL_SOCKET, libc::SO_BINDTODEVICE), "host, names::upstream (--outbound-interface)"),
    only(Sysno::setsockopt, &option(IPPROTO_TCP, libc::TCP_NODELAY), "host::tcp, publish::splice"),
    only(Sysno::setsockopt, &option(IPPROTO_IP, libc::IP_TTL), "host::socket, host::tcp"),
    only(Sysno::setsockopt, &option(IPPROTO_IP, libc::IP_TOS), "host::socket"),
    only(Sysno::setsockopt, &option(IPPROTO_IP, libc::IP_MTU_DISCOVER), "host::socket"),
    only(Sysno::setsockopt, &option(IPPROTO_IP, libc::IP_RECVERR), "host::socket, host::tcp, publish::udp"),
    only(Sysno::setsockopt, &option(IPPROTO_IP, libc::IP_RECVTOS), "sys::dgram"),
    only(Sysno::setsockopt, &option(IPPROTO_IP, libc::IP_RECVTTL), "sys::dgram"),
    only(Sysno::setsockopt, &option(IPPROTO_IP, libc::IP_PKTINFO), "publish::udp"),
    only(Sysno::setsockopt, &option(IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT), "host::tcp, names::upstream"),
    only(Sysno::setsockopt, &option(IPPROTO_IPV6, libc::IPV6_V6ONLY), "host::tcp, host::addr"),
    only(Sysno::setsockopt, &option(IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS), "host::socket, host::tcp"),
    only(Sysno::setsockopt, &option(IPPROTO_IPV6, libc::IPV6_TCLASS), "host::socket"),
    only(Sysno::setsockopt, &option(IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER), "host::socket"),
    only(Sysno::setsockopt, &option(IPPROTO_IPV6, libc::IPV6_RECVERR), "host::socket, host::tcp, publish::udp"),
    only(Sysno::setsockopt, &option(IPPROTO_IPV6, libc::IPV6_RECVTCLASS), "sys::dgram"),
    only(Sysno::setsockopt, &option(IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT), "sys::dgram"),
    only(Sysno::setsockopt, &option(IPPROTO_IPV6, libc::IPV6_RECVPKTINFO), "publish::udp"),
    only(Sysno::setsockopt, &option(SOL_UDP, libc::UDP_GRO), "host::udp, publish::udp"),
    only(Sysno::setsockopt, &option(SOL_PACKET, libc::PACKET_RX_RING), "sys::packet"),
    only(Sysno::setsockopt, &option(SOL_PACKET, libc::PACKET_VERSION), "sys::packet"),
    only(Sysno::setsockopt, &option(SOL_PACKET, libc::PACKET_VNET_HDR), "sys::packet"),
    only(Sysno::setsockopt, &option(SOL_PACKET, libc::PACKET_IGNORE_OUTGOING), "sys::packet"),
    // Descriptors.
    only(Sysno::ioctl, &request(libc::TUNGETIFF), "sys::tun (what was handed over?)"),
    only(Sysno::ioctl, &request(libc::TUNSETVNETHDRSZ), "sys::tun"),
    only(Sysno::ioctl, &request(libc::TUNSETOFFLOAD), "sys::tun"),
    only(Sysno::ioctl, &request(libc::FIONBIO), "std's set_nonblocking"),
    only(Sysno::fcntl, &operation(1, libc::F_GETFL), "control::gateway::check, sys::tun, tokio"),
    only(Sysno::fcntl, &operation(1, libc::F_SETFL), "control::gateway::check, sys::tun"),
    only(Sysno::fcntl, &operation(1, libc::F_DUPFD_CLOEXEC), "mio (a worker's registry), publish, names::upstream"),
    only(Sysno::fcntl, &operation(1, libc::F_SETPIPE_SZ), "publish::pipes"),
    only(Sysno::fcntl, &operation(1, libc::F_SETLKW), "observe::logfile"),
    only(Sysno::fcntl, &operation(1, libc::F_GETFD), "std in a debug build, before it closes something"),
    only(
        Sysno::pipe2,
        &[Bits(1, !((libc::O_CLOEXEC | libc::O_NONBLOCK) as u32), 0)],
        "publish::pipes, control::gateway::hub",
    ),
    #[cfg(target_arch = "x86_64")]
    any(Sysno::dup2, "control::gateway::hub (lets go of standard error)"),
    any(Sysno::dup3, "control::gateway::hub (lets go of standard error), where there is no dup2"),
    any(Sysno::fstat, "control::gateway::check, observe::logfile"),
    only(NEWFSTATAT, &[Is(3, libc::AT_EMPTY_PATH as u32)], "fstat(3) of some glibc"),
    only(Sysno::statx, &[Is(2, libc::AT_EMPTY_PATH as u32)], "observe::logfile, through std"),
    any(Sysno::fstatfs, "control::gateway::check (is a capture a file of the kernel's own?)"),
    any(Sysno::pread64, "observe::logfile (makes room)"),
    any(Sysno::ftruncate, "observe::logfile (makes room)"),
    // Memory. None of it can be executed.
    any(Sysno::brk, "the allocator"),
    only(
        Sysno::mmap,
        &[Bits(2, libc::PROT_EXEC as u32, 0)],
        "the allocator, threads' stacks, sys::tcp_slot, sys::packet",
    ),
    only(Sysno::mprotect, &[Bits(2, libc::PROT_EXEC as u32, 0)], "the allocator, threads' stacks"),
    any(Sysno::mremap, "the allocator"),
    any(Sysno::munmap, "the allocator, threads' stacks, sys::tcp_slot, sys::packet"),
    only(Sysno::madvise, &operation(2, libc::MADV_DONTNEED), "sys::tcp_slot, the allocator, threads' stacks"),
    only(Sysno::madvise, &operation(2, libc::MADV_NOHUGEPAGE), "sys::tcp_slot"),
    only(Sysno::madvise, &operation(2, libc::MADV_FREE), "the allocator of musl"),
    only(Sysno::madvise, &operation(2, MADV_GUARD_INSTALL), "threads' stacks, glibc 2.42"),
    only(Sysno::madvise, &operation(2, MADV_GUARD_REMOVE), "threads' stacks, glibc 2.42"),
    any(Sysno::getrandom, "std's hash tables, sys::random"),
    // Threads.
    only(Sysno::futex, &futex(libc::FUTEX_WAIT), "locks, threads' ends"),
    only(Sysno::futex, &futex(libc::FUTEX_WAKE), "locks"),
    only(Sysno::futex, &futex(libc::FUTEX_WAIT_BITSET), "locks, condition variables, std's parking"),
    only(Sysno::futex, &futex(libc::FUTEX_REQUEUE), "condition variables of musl"),
    only(Sysno::clone, &[Is(0, THREAD as u32)], "a network's worker: a thread, and nothing else"),
    #[cfg(target_env = "musl")]
    only(Sysno::clone, &[Is(0, (THREAD | libc::CLONE_DETACHED) as u32)], "the same with musl"),
    any(Sysno::set_robust_list, "threads' start, glibc"),
    only(Sysno::rseq, &[Is(2, 0)], "threads' start, glibc 2.35"),
    any(Sysno::sigaltstack, "threads' start and end: where a stack's overflow is told"),
    only(Sysno::rt_sigaction, &[Is(0, SIGSETXID)], "the first thread's start, glibc"),
    any(Sysno::rt_sigprocmask, "threads' start, abort(3)"),
    only(Sysno::prctl, &operation(0, libc::PR_SET_NAME), "threads' names"),
    any(Sysno::sched_getaffinity, "datapath::worker (how many processors?), threads' start (where their stack is)"),
    any(Sysno::sched_yield, "std's channels"),
    any(Sysno::exit, "threads' ends"),
    // Asking about ourselves.
    any(Sysno::geteuid, "control (does the same user connect?)"),
    any(Sysno::getegid, "host::ping (whose group may ping?)"),
    only(Sysno::prlimit64, &[Is(0, 0), Null(2)], "getrlimit(3): how many descriptors there may be"),
    // The end.
    any(Sysno::exit_group, "the end"),
    any(Sysno::getpid, "abort(3), sys::seccomp"),
    any(Sysno::gettid, "abort(3), a panic's text, sys::seccomp"),
    only(Sysno::tgkill, &[Ourselves(0), Is(2, SIGABRT as u32)], "abort(3)"),
    #[cfg(target_env = "musl")]
    only(Sysno::tkill, &[Is(1, SIGABRT as u32)], "abort(3) of musl"),
    only(Sysno::rt_sigaction, &[Is(0, SIGABRT as u32)], "abort(3)"),
    only(Sysno::rt_sigaction, &[Is(0, SIGSEGV as u32)], "std: a fault that is no stack's overflow ends the process"),
    only(Sysno::rt_sigaction, &[Is(0, SIGBUS as u32)], "std: a fault that is no stack's overflow ends the process"),
    any(Sysno::rt_sigreturn, "the end of std's handler of faults"),
];

/// Calls that a library tries and can do without: they are answered with ENOSYS, as by a kernel that has none of them.
pub static PROBED: &[Line] =
    &[any(Sysno::clone3, "threads' start, glibc 2.34: then it is clone, whose flags can be looked at")];
