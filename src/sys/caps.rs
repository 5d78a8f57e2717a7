//! Capabilities: giving up all of them, for good (capabilities(7)).
use std::io;

/// The header and data of capset(2), version 3 (linux/capability.h).
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const VERSION_3: u32 = 0x2008_0522;

/// Drop every capability of the calling thread, and of the threads and programs it starts later: the bounding set
/// (where CAP_SETPCAP allows it), the ambient set, and the effective, permitted and inheritable sets. A thread that
/// has none is left as it is.
pub fn drop_all() -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: PR_CAPBSET_DROP takes a number and touches no memory of ours. EINVAL says that there is no such
        // capability, EPERM that the bounding set is not ours to change: it then bounds nothing that we could gain.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } < 0 {
            break;
        }
    }
    // SAFETY: as above. It fails only where the kernel has no ambient set (before 4.3).
    let _ = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    let header = Header { version: VERSION_3, pid: 0 };
    let data = [Data { effective: 0, permitted: 0, inheritable: 0 }; 2];
    // SAFETY: version 3 reads one header and two data structures, which live until the call returns; pid 0 is the
    // calling thread.
    if unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_drops_all_has_none() {
        // Capabilities belong to a thread: the other tests keep theirs.
        let status = std::thread::spawn(|| {
            drop_all().unwrap();
            std::fs::read_to_string("/proc/thread-self/status").unwrap()
        });
        let status = status.join().unwrap();
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            let line = status.lines().find(|l| l.starts_with(set)).unwrap();
            assert_eq!(line.split_whitespace().nth(1), Some("0000000000000000"), "{line}");
        }
    }
}
