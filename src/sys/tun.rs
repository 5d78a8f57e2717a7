//! TAP devices: every ioctl on /dev/net/tun (Documentation/networking/tuntap.rst, linux/if_tun.h).
//!
//! A [`Tap`] is one queue of a TAP device, made in the network namespace of the thread that opened it and bound
//! to that namespace from then on. Frames carry a ten-byte virtio-net header (see [`vnet`](super::vnet)), with
//! checksum and segmentation left to the reader as far as the kernel can: the device's MTU stays what was
//! asked for, while one read or write moves up to 64 KiB.
//!
//! The offloads are asked for step by step, since a kernel that does not know one of them refuses the whole set
//! with EINVAL: everything with UDP segmentation (Linux 6.2), then TCP segmentation and checksum, then none.
//!
//! The device lives as long as its last descriptor, unless it was made persistent: then it is there before us and stays
//! after us, and [`Tap::join`] takes it as long as nobody else has it. The kernel lets who joins such a device choose its
//! frame header anew (drivers/net/tun.c, `tun_set_iff`), as long as it has one queue and that is free. Its offloads stay
//! as they were set last, also when the next one wants no header and could make nothing of them: [`leave`] takes them off.
//!
//! A descriptor that was received from another process is not believed: [`Tap::from_fd`] asks the kernel what it is.
use std::ffi::{CStr, c_int, c_uint};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use super::vnet::VNET_HEADER;

/// The device node.
pub const TUN_DEVICE: &str = "/dev/net/tun";

/// Longest interface name in bytes (IFNAMSIZ without the final zero).
pub const MAX_IFNAME: usize = libc::IFNAMSIZ - 1;

/// What may be left out of a frame because the other side of the link makes up for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums.
    pub csum: bool,
    /// Segmentation of TCP over IPv4.
    pub tso4: bool,
    /// Segmentation of TCP over IPv6.
    pub tso6: bool,
    /// Segmentation of UDP over both.
    pub uso: bool,
}

/// Why there is no TAP device.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The device node could not be opened. The text is meant to be followed by what is done instead.
    #[error("cannot open {TUN_DEVICE}: {}", open_reason(.0))]
    Open(#[source] io::Error),
    /// The interface's name is one that the kernel does not take.
    #[error(
        "`{0}` cannot be the name of an interface: 1 to {MAX_IFNAME} bytes are needed, without spaces, `/`, `:` and `%`"
    )]
    Name(String),
    /// There is an interface of that name already.
    #[error("there is an interface {0} in the namespace already: choose another name, or remove it")]
    Taken(String),
    /// The device could not be made (TUNSETIFF).
    #[error("cannot make the interface {name}: {}", setiff_reason(.source))]
    SetIff {
        /// The interface.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// There is an interface of that name already, which cannot be joined.
    #[error("cannot use the interface {name} that is there already: {}", join_reason(.source))]
    Join {
        /// The interface.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The length of the header in front of frames could not be set (TUNSETVNETHDRSZ).
    #[error("cannot set the length of the TAP device's frame header: {0}; use --link-kind packet")]
    SetVnetHeader(#[source] io::Error),
    /// The offloads were refused, down to none at all (TUNSETOFFLOAD).
    #[error("cannot set the TAP device's offloads: {0}; use --link-kind packet")]
    SetOffload(#[source] io::Error),
    /// A received descriptor is not a TAP device (TUNGETIFF).
    #[error("the descriptor that was handed over is no TAP device: {0}")]
    NotATap(#[source] io::Error),
    /// A received descriptor is a TUN or TAP device of another make.
    #[error("the device {0} was made without {1} (linux/if_tun.h): make it with that")]
    Unusable(String, &'static str),
    /// A received descriptor's frames have a header, and were said to have none.
    #[error("the TAP device {0} was made with IFF_VNET_HDR, which is not what it was said to be")]
    HasHeader(String),
    /// A received descriptor could not be made non-blocking.
    #[error("cannot make the TAP device's descriptor non-blocking: {0}")]
    NonBlocking(#[source] io::Error),
}

fn open_reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => "permission denied".to_owned(),
        Some(libc::ENOENT) => "there is no such device".to_owned(),
        Some(libc::ENODEV | libc::ENXIO) => "the kernel has no tun module".to_owned(),
        _ => error.to_string(),
    }
}

fn setiff_reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "permission denied; it takes CAP_NET_ADMIN in the user namespace that owns the network namespace".to_owned()
        }
        _ => error.to_string(),
    }
}

fn join_reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EBUSY) => "another process has it open; end that one first".to_owned(),
        Some(libc::EINVAL) => {
            "it is no TAP device with a single queue (ip tuntap add name NAME mode tap makes one)".to_owned()
        }
        Some(libc::EPERM | libc::EACCES) => "permission denied; it belongs to another user".to_owned(),
        _ => error.to_string(),
    }
}

impl TapError {
    /// Is it that this machine, or this container, has no usable /dev/net/tun, so that another kind of link may
    /// work in its place?
    pub fn is_unavailable(&self) -> bool {
        matches!(self, TapError::Open(_) | TapError::SetVnetHeader(_) | TapError::SetOffload(_))
    }
}

/// May an interface have this name? (net/core/dev.c, `dev_valid_name`; `%` would be a pattern.)
pub fn valid_ifname(name: &str) -> bool {
    (1..=MAX_IFNAME).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.bytes().any(|b| b.is_ascii_whitespace() || matches!(b, b'/' | b':' | b'%' | 0 | 0x0b))
}

/// What the kernel says that a TAP's descriptor is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapMake {
    /// The interface's name in its namespace.
    pub name: String,
    /// Frames have a virtio-net header in front of them.
    pub has_header: bool,
}

/// A queue of a TAP device, non-blocking and closed on exec.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    name: String,
    offloads: Offloads,
}

impl Tap {
    /// Make a TAP device of this name in the network namespace of the calling thread.
    pub fn create(name: &str) -> Result<Tap, TapError> {
        // IFF_TUN_EXCL: an interface that is there already is an error, never joined.
        Tap::open(name, libc::IFF_TUN_EXCL, |name, source| match source.raw_os_error() {
            Some(libc::EBUSY | libc::EEXIST) => TapError::Taken(name),
            _ => TapError::SetIff { name, source },
        })
    }

    /// Take over the persistent TAP device of this name in the network namespace of the calling thread. When there is
    /// none, one is made, which is not persistent.
    pub fn join(name: &str) -> Result<Tap, TapError> {
        Tap::open(name, 0, |name, source| TapError::Join { name, source })
    }

    fn open(name: &str, flags: c_int, failed: impl Fn(String, io::Error) -> TapError) -> Result<Tap, TapError> {
        if !valid_ifname(name) {
            return Err(TapError::Name(name.to_owned()));
        }
        let fd: OwnedFd = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(TUN_DEVICE)
            .map_err(TapError::Open)?
            .into();
        let mut request = ifreq(name);
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | flags) as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which `request` is.
        let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
        if done < 0 {
            return Err(failed(name.to_owned(), io::Error::last_os_error()));
        }
        set_int(&fd, libc::TUNSETVNETHDRSZ, VNET_HEADER as c_int).map_err(TapError::SetVnetHeader)?;
        let offloads = set_offloads(&fd)?;
        Ok(Tap { fd, name: name.to_owned(), offloads })
    }

    /// Take over a TAP queue that another process opened: checks that it is one, with the header this program
    /// speaks, makes it non-blocking and sets its offloads anew.
    pub fn from_fd(fd: OwnedFd) -> Result<Tap, TapError> {
        let TapMake { name, has_header } = inspect(&fd)?;
        if !has_header {
            return Err(TapError::Unusable(name, "IFF_VNET_HDR"));
        }
        set_nonblocking(&fd).map_err(TapError::NonBlocking)?;
        set_int(&fd, libc::TUNSETVNETHDRSZ, VNET_HEADER as c_int).map_err(TapError::SetVnetHeader)?;
        let offloads = set_offloads(&fd)?;
        Ok(Tap { fd, name, offloads })
    }

    /// The same for one whose frames have no header: they are whole, both ways, and nothing is left to anybody.
    pub fn plain_from_fd(fd: OwnedFd) -> Result<Tap, TapError> {
        let TapMake { name, has_header } = inspect(&fd)?;
        if has_header {
            return Err(TapError::HasHeader(name));
        }
        set_nonblocking(&fd).map_err(TapError::NonBlocking)?;
        leave(&fd).map_err(TapError::SetOffload)?;
        Ok(Tap { fd, name, offloads: Offloads::default() })
    }

    /// The interface's name in its namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the kernel agreed to leave to us.
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// The queue's descriptor alone.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// What a descriptor is, which has to be a TAP's. Whether there is packet information in front of its frames is not to be
/// had: the bit of IFF_NO_PI says IFF_NOFILTER in the kernel's answer. Whoever hands it over must have made it without.
pub fn inspect(fd: &OwnedFd) -> Result<TapMake, TapError> {
    let mut request = ifreq("");
    // SAFETY: TUNGETIFF writes one `struct ifreq`, which `request` is; on another kind of file it fails.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF as _, &raw mut request) };
    if done < 0 {
        return Err(TapError::NotATap(io::Error::last_os_error()));
    }
    let name = name_of(&request);
    // SAFETY: TUNGETIFF has filled in `ifru_flags`; every bit pattern is a valid integer.
    let flags = c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    if flags & libc::IFF_TAP == 0 {
        return Err(TapError::Unusable(name, "IFF_TAP"));
    }
    Ok(TapMake { name, has_header: flags & libc::IFF_VNET_HDR != 0 })
}

/// The Ethernet address of a TAP's interface, wherever that is.
pub fn ethernet_address(fd: &OwnedFd) -> io::Result<[u8; 6]> {
    let mut request = ifreq("");
    // SAFETY: on a TAP SIOCGIFHWADDR writes one `struct ifreq`, which `request` is; on another kind of file it fails,
    // or writes the same.
    if unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFHWADDR as _, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: SIOCGIFHWADDR has filled in `ifru_hwaddr`; every bit pattern is a valid integer.
    let [a, b, c, d, e, f, ..] = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data }.map(|byte| byte as u8);
    Ok([a, b, c, d, e, f])
}

/// Have the kernel leave nothing of a frame to whoever reads it, on a TAP that others will use.
pub fn leave(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
    if unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD as _, 0 as libc::c_ulong) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Ask for offloads, most first; what was had is returned.
fn set_offloads(fd: &OwnedFd) -> Result<Offloads, TapError> {
    const TSO: c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    const USO: c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    let tso = Offloads { csum: true, tso4: true, tso6: true, uso: false };
    let steps = [
        (TSO | libc::TUN_F_TSO_ECN | USO, Offloads { uso: true, ..tso }),
        (TSO | libc::TUN_F_TSO_ECN, tso),
        (TSO, tso),
        (libc::TUN_F_CSUM, Offloads { csum: true, ..Offloads::default() }),
        (0, Offloads::default()),
    ];
    let mut last = io::Error::from_raw_os_error(libc::EINVAL);
    for (bits, offloads) in steps {
        // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
        if unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(bits)) } >= 0 {
            return Ok(offloads);
        }
        last = io::Error::last_os_error();
        if last.raw_os_error() != Some(libc::EINVAL) {
            break;
        }
    }
    Err(TapError::SetOffload(last))
}

fn set_int(fd: &OwnedFd, request: libc::Ioctl, value: c_int) -> io::Result<()> {
    // SAFETY: the requests given here read one `int`, which `value` is.
    if unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw const value) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Set O_NONBLOCK. It belongs to the open file description: whoever shares it has it too.
pub fn set_nonblocking(fd: &impl AsFd) -> io::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: F_GETFL and F_SETFL take integers only; `fd` is borrowed for the duration of both calls.
    unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        if flags < 0 || libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// An `ifreq` with this interface's name, which has to be short enough.
pub(super) fn ifreq(name: &str) -> libc::ifreq {
    // SAFETY: `struct ifreq` is plain integers and a pointer, for all of which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(MAX_IFNAME)) {
        *to = from as libc::c_char;
    }
    request
}

fn name_of(request: &libc::ifreq) -> String {
    let bytes = request.ifr_name.map(|c| c as u8);
    CStr::from_bytes_until_nul(&bytes).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::netlink::Netlink;
    use super::super::testing::{foreign_tap, in_namespace};
    use super::*;

    #[test]
    fn names_are_the_kernels() {
        for good in ["tap0", "a", "fifteen-bytes-x", "eth0.100", "ü"] {
            assert!(valid_ifname(good), "{good}");
        }
        for bad in ["", ".", "..", "sixteen-bytes-xx", "a b", "a/b", "a:b", "tap%d", "a\tb", "a\0"] {
            assert!(!valid_ifname(bad), "{bad}");
        }
    }

    #[test]
    fn tap_has_offloads_and_is_recognised_when_handed_over() {
        in_namespace(|| {
            let tap = Tap::create("tl0").map_err(|e| e.to_string())?;
            let offloads = tap.offloads();
            if !(offloads.csum && offloads.tso4 && offloads.tso6) {
                return Err(format!("{offloads:?}"));
            }
            let again = Tap::from_fd(tap.into_fd()).map_err(|e| e.to_string())?;
            match (again.name(), again.offloads()) {
                ("tl0", o) if o == offloads => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    #[test]
    fn taken_name_is_said_to_be_taken() {
        in_namespace(|| {
            let _first = Tap::create("tl0").map_err(|e| e.to_string())?;
            match Tap::create("tl0") {
                Err(TapError::Taken(name)) if name == "tl0" => {}
                other => return Err(format!("{other:?}")),
            }
            match Tap::create("lo") {
                Err(TapError::Taken(_)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    #[test]
    fn tap_made_without_header_is_refused() {
        in_namespace(|| {
            let file = foreign_tap("tl0", 0, false)?;
            match Tap::from_fd(file) {
                Err(TapError::Unusable(name, "IFF_VNET_HDR")) if name == "tl0" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    #[test]
    fn a_persistent_tap_is_joined_with_header_and_offloads_and_outlives_who_joined() {
        in_namespace(|| {
            let text = |e: TapError| e.to_string();
            let maker = foreign_tap("tap0", 0, true)?;
            match Tap::join("tap0") {
                Err(error) if error.to_string().contains("another process has it open") => {}
                other => return Err(format!("{other:?}")),
            }
            drop(maker);
            match Tap::create("tap0") {
                Err(TapError::Taken(_)) => {}
                other => return Err(format!("{other:?}")),
            }
            for _ in 0..2 {
                let tap = Tap::join("tap0").map_err(text)?;
                let Offloads { csum: true, tso4: true, tso6: true, .. } = tap.offloads() else {
                    return Err(format!("{tap:?}"));
                };
                match Tap::join("tap0") {
                    Err(TapError::Join { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {}
                    other => return Err(format!("{other:?}")),
                }
                let made = inspect(&tap.into_fd()).map_err(text)?;
                if made != (TapMake { name: "tap0".to_owned(), has_header: true }) {
                    return Err(format!("{made:?}"));
                }
            }
            let _queues = foreign_tap("tap1", libc::IFF_MULTI_QUEUE, true)?;
            for name in ["tap1", "lo"] {
                match Tap::join(name) {
                    Err(error) if error.to_string().contains("no TAP device with a single queue") => {}
                    other => return Err(format!("{name}: {other:?}")),
                }
            }
            Ok(())
        });
    }

    #[test]
    fn a_tap_without_header_is_known_by_its_descriptor_and_tells_its_address() {
        in_namespace(|| {
            let text = |e: TapError| e.to_string();
            let fd = foreign_tap("tap0", 0, true)?;
            let link = Netlink::open().and_then(|mut netlink| netlink.link("tap0")).map_err(|e| e.to_string())?;
            if link.mac != Some(ethernet_address(&fd).map_err(|e| e.to_string())?) {
                return Err(format!("{link:?}"));
            }
            let plain = Tap::plain_from_fd(fd).map_err(text)?;
            if (plain.name(), plain.offloads()) != ("tap0", Offloads::default()) {
                return Err(format!("{plain:?}"));
            }
            drop(plain);
            match Tap::plain_from_fd(Tap::join("tap0").map_err(text)?.into_fd()) {
                Err(TapError::HasHeader(name)) if name == "tap0" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    #[test]
    fn other_files_are_no_tap() {
        let file = std::fs::File::open("/dev/null").expect("/dev/null is always there");
        assert!(matches!(Tap::from_fd(file.into()), Err(TapError::NotATap(_))));
    }
}
