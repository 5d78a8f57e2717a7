//! What can be typed behind `slirp4netns`: the table of options, and their values.
//!
//! Mistakes are found in this order: options one after the other, then how many operands there are and what the first
//! says, then the values that make a network. The texts are those that scripts grep.
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;

use crate::compat::getopt::{Arg, Opt, OptError, Order, Words};
use crate::plan::MacAddr;

/// The MTU unless another is asked for.
const DEFAULT_MTU: u16 = 1500;
/// The largest: what a TAP takes (65535 bytes with the Ethernet header).
const LARGEST_MTU: u16 = 65521;
/// The subnet unless another is asked for.
const DEFAULT_CIDR: Ipv4Net = crate::plan::subnet::DEFAULT_SUBNET;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Configure,
    ExitFd,
    ReadyFd,
    Mtu,
    Ipv6,
    ApiSocket,
    Cidr,
    DisableHostLoopback,
    NoHostLoopback,
    NetnsType,
    UsernsPath,
    EnableSandbox,
    CreateSandbox,
    EnableSeccomp,
    OutboundAddr,
    OutboundAddr6,
    DisableDns,
    MacAddress,
    TargetType,
    Help,
    Version,
}

const fn opt(short: Option<char>, long: &'static str, arg: Arg, key: Key) -> Opt<Key> {
    Opt { short, long: Some(long), arg, key }
}

const OPTIONS: &[Opt<Key>] = &[
    opt(Some('c'), "configure", Arg::No, Key::Configure),
    opt(Some('e'), "exit-fd", Arg::Needed, Key::ExitFd),
    opt(Some('r'), "ready-fd", Arg::Needed, Key::ReadyFd),
    opt(Some('m'), "mtu", Arg::Needed, Key::Mtu),
    opt(Some('6'), "enable-ipv6", Arg::No, Key::Ipv6),
    opt(Some('a'), "api-socket", Arg::Needed, Key::ApiSocket),
    opt(None, "cidr", Arg::Needed, Key::Cidr),
    opt(None, "disable-host-loopback", Arg::No, Key::DisableHostLoopback),
    opt(None, "no-host-loopback", Arg::No, Key::NoHostLoopback),
    opt(None, "netns-type", Arg::Needed, Key::NetnsType),
    opt(None, "userns-path", Arg::Needed, Key::UsernsPath),
    opt(None, "enable-sandbox", Arg::No, Key::EnableSandbox),
    opt(None, "create-sandbox", Arg::No, Key::CreateSandbox),
    opt(None, "enable-seccomp", Arg::No, Key::EnableSeccomp),
    opt(None, "outbound-addr", Arg::Needed, Key::OutboundAddr),
    opt(None, "outbound-addr6", Arg::Needed, Key::OutboundAddr6),
    opt(None, "disable-dns", Arg::No, Key::DisableDns),
    opt(None, "macaddress", Arg::Needed, Key::MacAddress),
    opt(None, "target-type", Arg::Needed, Key::TargetType),
    opt(Some('h'), "help", Arg::No, Key::Help),
    opt(Some('v'), "version", Arg::No, Key::Version),
];

/// What `--help` lists: an option, and what it is for.
const HELP: &[(&str, &str)] = &[
    ("-c, --configure", "bring the interface up, with address, route, MTU"),
    ("-e, --exit-fd=FD", "end when FD hangs up"),
    ("-r, --ready-fd=FD", "write 1 to FD when the network is ready"),
    ("-m, --mtu=MTU", "largest IP packet (default=1500, max=65521)"),
    ("-6, --enable-ipv6", "IPv6, by router advertisement (experimental)"),
    ("-a, --api-socket=PATH", "listen at PATH for requests to forward ports"),
    ("--cidr=CIDR", "the network's addresses (default=10.0.2.0/24)"),
    ("--disable-host-loopback", "do not let 127.0.0.1:* of the host be reached"),
    ("--netns-type=TYPE", "what the target is ([path|pid], default=pid)"),
    ("--userns-path=PATH", "user namespace to join first"),
    ("--enable-sandbox", "give up capabilities but CAP_NET_BIND_SERVICE when ready"),
    ("--enable-seccomp", "accepted: filters are always on (experimental)"),
    ("--outbound-addr=IPv4", "source address, or its interface (experimental)"),
    ("--outbound-addr6=IPv6", "likewise for IPv6 (experimental)"),
    ("--disable-dns", "no resolver at 10.0.2.3, or where it is with --cidr"),
    ("--macaddress=MAC", "Ethernet address of the interface (only with -c)"),
    ("--target-type=TYPE", "netns; bess is not served (default=netns)"),
    ("-h, --help", "show this help and exit"),
    ("-v, --version", "show version and exit"),
];

/// What the positional argument is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Netns {
    /// A process.
    Pid(i32),
    /// A path.
    Path(PathBuf),
    /// The number of a TAP's descriptor.
    Tap(RawFd),
}

/// What was typed, and made sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) configure: bool,
    pub(super) exit_fd: Option<RawFd>,
    pub(super) ready_fd: Option<RawFd>,
    pub(super) mtu: u16,
    pub(super) ipv6: bool,
    pub(super) api_socket: Option<PathBuf>,
    pub(super) cidr: Ipv4Net,
    pub(super) disable_host_loopback: bool,
    pub(super) disable_dns: bool,
    pub(super) userns: Option<PathBuf>,
    pub(super) sandbox: bool,
    pub(super) seccomp: bool,
    pub(super) outbound: Option<Ipv4Addr>,
    pub(super) outbound6: Option<Ipv6Addr>,
    pub(super) mac: Option<MacAddr>,
    pub(super) netns: Netns,
    pub(super) tap: String,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// `--help`.
    Help,
    /// `--version`.
    Version,
    /// A network.
    Network(Box<Options>),
}

/// Why nothing is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    /// For standard error; nothing where the usage says it all.
    pub(super) reason: Option<String>,
    /// The usage is shown, on standard output.
    pub(super) usage: bool,
}

impl Mistake {
    fn usage(reason: impl Into<String>) -> Mistake {
        Mistake { reason: Some(reason.into()), usage: true }
    }

    fn plain(reason: impl Into<String>) -> Mistake {
        Mistake { reason: Some(reason.into()), usage: false }
    }
}

/// Addresses of the host's interfaces, by name.
pub(super) trait Interfaces {
    /// The addresses of this one.
    fn addresses(&self, name: &str) -> Vec<IpAddr>;
}

/// Reads the words behind the program's name, which is `called`. What is to be said on standard output meanwhile is
/// added to `said`, with or without a mistake.
pub(super) fn read(
    called: &OsStr,
    words: impl IntoIterator<Item = OsString>,
    interfaces: &dyn Interfaces,
    said: &mut String,
) -> Result<Wanted, Mistake> {
    let mut typed = Typed::default();
    let mut words = Words::new(OPTIONS, Order::usual(), words);
    for found in &mut words {
        let (key, value) =
            found.map_err(|error: OptError| Mistake::usage(format!("{}: {error}", Path::new(called).display())))?;
        if let Some(wanted) = typed.take(key, value.unwrap_or_default(), said)? {
            return Ok(wanted);
        }
    }
    typed.resolve(words.operands(), interfaces, said).map(|options| Wanted::Network(Box::new(options)))
}

/// Options as they were typed.
#[derive(Default)]
struct Typed {
    configure: bool,
    exit_fd: Option<RawFd>,
    ready_fd: Option<RawFd>,
    mtu: Option<u16>,
    ipv6: bool,
    api_socket: Option<PathBuf>,
    cidr: Option<OsString>,
    disable_host_loopback: bool,
    netns_type: Option<OsString>,
    userns: Option<PathBuf>,
    sandbox: bool,
    seccomp: bool,
    outbound: Option<OsString>,
    outbound6: Option<OsString>,
    disable_dns: bool,
    mac: Option<OsString>,
    bess: bool,
}

impl Typed {
    /// Note one option.
    fn take(&mut self, key: Key, value: OsString, said: &mut String) -> Result<Option<Wanted>, Mistake> {
        match key {
            Key::Configure => self.configure = true,
            Key::ExitFd => {
                let fd = descriptor(&value).ok_or(Mistake::usage("exit-fd must be a non-negative integer"))?;
                self.exit_fd = Some(fd);
            }
            Key::ReadyFd => {
                let fd = descriptor(&value).ok_or(Mistake::usage("ready-fd must be a non-negative integer"))?;
                self.ready_fd = Some(fd);
            }
            Key::Mtu => {
                let mtu = number(&value).and_then(|n| u16::try_from(n).ok()).filter(|n| (1..=LARGEST_MTU).contains(n));
                self.mtu = Some(mtu.ok_or(Mistake::usage("MTU must be a positive integer (< 65522)"))?);
            }
            Key::Ipv6 => {
                self.ipv6 = true;
                experimental(said, "IPv6");
            }
            Key::ApiSocket => self.api_socket = Some(value.into()),
            Key::Cidr => self.cidr = Some(value),
            Key::DisableHostLoopback => self.disable_host_loopback = true,
            Key::NoHostLoopback => {
                self.disable_host_loopback = true;
                deprecated(said, "--no-host-loopback", "--disable-host-loopback");
            }
            Key::NetnsType => self.netns_type = Some(value),
            Key::UsernsPath => self.userns = Some(value.into()),
            Key::EnableSandbox => self.sandbox = true,
            Key::CreateSandbox => {
                self.sandbox = true;
                deprecated(said, "--create-sandbox", "--enable-sandbox");
            }
            Key::EnableSeccomp => {
                self.seccomp = true;
                experimental(said, "seccomp");
            }
            Key::OutboundAddr => {
                self.outbound = Some(value);
                experimental(said, "--outbound-addr");
            }
            Key::OutboundAddr6 => {
                self.outbound6 = Some(value);
                experimental(said, "--outbound-addr6");
            }
            Key::DisableDns => self.disable_dns = true,
            Key::MacAddress => self.mac = Some(value),
            Key::TargetType => match value.to_str() {
                Some("netns") => self.bess = false,
                Some("bess") => self.bess = true,
                _ => return Err(Mistake::usage("--target-type must be either \"netns\" or \"bess\"")),
            },
            Key::Help => return Ok(Some(Wanted::Help)),
            Key::Version => return Ok(Some(Wanted::Version)),
        }
        Ok(None)
    }

    /// What all of it means.
    fn resolve(
        self,
        operands: Vec<OsString>,
        interfaces: &dyn Interfaces,
        said: &mut String,
    ) -> Result<Options, Mistake> {
        if let Some(userns) = self.userns.as_deref().filter(|userns| !userns.exists()) {
            return Err(Mistake::usage(format!("userns path doesn't exist: {}", userns.display())));
        }
        if self.mac.is_some() && !self.configure {
            return Err(Mistake::usage("--macaddr cannot be specified when --configure or -c is not specified"));
        }
        if self.bess {
            return Err(Mistake::plain(
                "--target-type=bess (User Mode Linux) is not served: give it a TAP in a network namespace, \
                 with --target-type=netns",
            ));
        }
        let mut operands = operands.into_iter();
        let (Some(target), Some(tap)) = (operands.next(), operands.next()) else {
            return Err(Mistake { reason: None, usage: true });
        };
        if operands.next().is_some() {
            said.push_str("WARNING: too many arguments\n");
        }
        let netns = netns(self.netns_type.as_deref(), &target)?;
        let tap = tap.into_string().ok().filter(|name| crate::plan::words::parse_interface(name).is_ok());
        Ok(Options {
            configure: self.configure,
            exit_fd: self.exit_fd,
            ready_fd: self.ready_fd,
            mtu: self.mtu.unwrap_or(DEFAULT_MTU),
            ipv6: self.ipv6,
            api_socket: self.api_socket,
            cidr: self.cidr.map_or(Ok(DEFAULT_CIDR), |text| cidr(&text.to_string_lossy()))?,
            disable_host_loopback: self.disable_host_loopback,
            disable_dns: self.disable_dns,
            userns: self.userns,
            sandbox: self.sandbox,
            seccomp: self.seccomp,
            outbound: self.outbound.map(|text| outbound(&text, interfaces)).transpose()?,
            outbound6: self.outbound6.map(|text| outbound6(&text, interfaces)).transpose()?,
            mac: self.mac.map(|text| mac(&text.to_string_lossy())).transpose()?,
            netns,
            tap: tap.ok_or_else(|| Mistake::plain("TAPNAME is no name of an interface: take one like tap0"))?,
        })
    }
}

fn experimental(said: &mut String, what: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(said, "WARNING: Support for {what} is experimental");
}

fn deprecated(said: &mut String, old: &str, new: &str) {
    let _ = writeln!(
        said,
        "WARNING: {old} is deprecated and will be removed in future releases, please use {new} instead."
    );
}

/// A decimal number as strtol(3) reads one to its end.
fn number(text: &OsStr) -> Option<i64> {
    text.to_str()?.trim_start().parse().ok()
}

fn descriptor(text: &OsStr) -> Option<RawFd> {
    number(text).and_then(|n| RawFd::try_from(n).ok()).filter(|fd| *fd >= 0)
}

fn netns(kind: Option<&OsStr>, target: &OsStr) -> Result<Netns, Mistake> {
    match kind.and_then(OsStr::to_str) {
        _ if kind.is_none_or(|kind| kind == "pid") => {
            let pid = number(target).and_then(|n| i32::try_from(n).ok()).filter(|pid| *pid > 0);
            pid.map(Netns::Pid).ok_or_else(|| Mistake::usage("PID must be a positive integer"))
        }
        Some("tapfd") => descriptor(target)
            .map(Netns::Tap)
            .ok_or_else(|| Mistake::usage("FD must be a non-negative integer when --netns-type=tapfd")),
        // Whatever else was typed means a path to the original.
        _ => match std::fs::metadata(target) {
            Ok(_) => Ok(Netns::Path(target.into())),
            Err(error) => {
                let why = nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or_default()).desc();
                Err(Mistake::usage(format!("existing path expected when --netns-type=path: {why}")))
            }
        },
    }
}

/// `A.B.C.D/N`: a network address whose prefix leaves room for the layout.
fn cidr(text: &str) -> Result<Ipv4Net, Mistake> {
    let invalid = || Mistake::plain(format!("invalid CIDR: {text}"));
    let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
    let has_digits = |part: &str, most: usize| {
        !part.is_empty() && part.len() <= most && part.bytes().all(|byte| byte.is_ascii_digit())
    };
    let parts: Vec<&str> = address.split('.').collect();
    if parts.len() != 4 || !parts.iter().all(|part| has_digits(part, 3)) || !has_digits(prefix, 2) {
        return Err(invalid());
    }
    let ip: Ipv4Addr = address.parse().map_err(|_| Mistake::plain(format!("invalid network address: {address}")))?;
    let prefix = prefix.parse::<u8>().ok().filter(|prefix| (1..=25).contains(prefix));
    let net = prefix.and_then(|prefix| Ipv4Net::new(ip, prefix).ok());
    let net = net.ok_or_else(|| Mistake::plain("prefix length needs to be 1-25"))?;
    if net.network() != ip {
        return Err(Mistake::plain("CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24"));
    }
    Ok(net)
}

fn outbound(text: &OsStr, interfaces: &dyn Interfaces) -> Result<Ipv4Addr, Mistake> {
    let text = text.to_string_lossy();
    let of_interface = || {
        interfaces.addresses(&text).into_iter().find_map(|ip| match ip {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        })
    };
    text.parse()
        .ok()
        .or_else(of_interface)
        .ok_or_else(|| Mistake::plain("outbound-addr has to be valid ipv4 address or interface name."))
}

/// Of an interface's addresses one that is not link-local is taken, where there is such.
fn outbound6(text: &OsStr, interfaces: &dyn Interfaces) -> Result<Ipv6Addr, Mistake> {
    let text = text.to_string_lossy();
    let of_interface = || {
        let mut all: Vec<Ipv6Addr> = interfaces
            .addresses(&text)
            .into_iter()
            .filter_map(|ip| match ip {
                IpAddr::V6(ip) => Some(ip),
                IpAddr::V4(_) => None,
            })
            .collect();
        all.sort_by_key(|ip| ip.is_unicast_link_local());
        all.first().copied()
    };
    text.parse()
        .ok()
        .or_else(of_interface)
        .ok_or_else(|| Mistake::plain("outbound-addr6 has to be valid ipv6 address or interface name."))
}

/// Six bytes of one or two hexadecimal digits.
fn mac(text: &str) -> Result<MacAddr, Mistake> {
    let invalid = || {
        Mistake::plain(format!(
            "\"{text}\" is an invalid MAC address.\nmacaddress has to be a valid MAC address (hex string, 6 bytes, \
             each byte separated by a ':')."
        ))
    };
    let byte = |part: &str| match part.len() {
        1 | 2 if part.bytes().all(|b| b.is_ascii_hexdigit()) => u8::from_str_radix(part, 16).ok(),
        _ => None,
    };
    let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
    let mac = MacAddr(bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(invalid)?);
    // The kernel would refuse these.
    if mac.is_group() || mac == MacAddr::default() { Err(invalid()) } else { Ok(mac) }
}

/// What `--help` prints, and a mistake: `called` is the program's name.
pub(super) fn usage(called: &OsStr) -> String {
    let mut text = format!(
        "Usage: {} [OPTION]... PID|PATH [TAPNAME]\nUser-mode networking for unprivileged network namespaces.\n\n",
        Path::new(called).display()
    );
    for (option, meaning) in HELP {
        let _ = writeln!(text, "{option:<24} {meaning}");
    }
    text
}

/// What `--version` prints. Callers look for features by these numbers: they are those of the release whose command line
/// this is.
pub(super) fn version() -> String {
    concat!(
        "slirp4netns version 1.3.3\n",
        "commit: tapline-",
        env!("CARGO_PKG_VERSION"),
        "\n",
        "libslirp: 4.8.0\n",
        "SLIRP_CONFIG_VERSION_MAX: 5\n",
        "libseccomp: none\n",
    )
    .to_owned()
}

#[cfg(test)]
mod tests;
