//! What was typed: the options of pasta, their names, and values that can be judged one by one.
//!
//! Words are read in their order and the first mistake ends it, as with the original: `--help` in front of a mistake is
//! help. Of an option given several times the last counts, but for those that add up (ports, `-D`, `-S`) and those that
//! are for each family apart (`-a`, `-g`, `-o`, the mapped addresses).
use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use super::super::getopt::{Arg, Opt, OptError, Order, Words};
use crate::plan::MacAddr;

/// The largest MTU: the largest Ethernet frame there is without its header, in whole words of 32 bits.
pub const LARGEST_MTU: u16 = 65520;
/// Our MAC where no other is asked for.
pub const OUR_MAC: MacAddr = MacAddr([0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55]);
/// The size of the log file where none is asked for, and the smallest that can be, in bytes.
pub const LOG_SIZE: u64 = 1 << 20;
const SMALLEST_LOG: u64 = 5 * 4096;
/// Where network namespaces have names (ip-netns(8)).
const NETNS_DIR: &str = "/run/netns";
/// Longest name in DHCP and DNS (RFC 1035 section 2.3.4), and of an interface (IFNAMSIZ without its NUL).
const LONGEST_NAME: usize = 253;
const LONGEST_IFNAME: usize = 15;

/// What an option is to us. Passt's own are known, to be refused by their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    Debug,
    Trace,
    Stats,
    Quiet,
    Foreground,
    Stderr,
    LogFile,
    LogSize,
    RunAs,
    Help,
    Version,
    Pcap,
    Pid,
    Mtu,
    Address,
    Netmask,
    Mac,
    Gateway,
    Interface,
    Outbound,
    OutboundIf4,
    OutboundIf6,
    Dns,
    Search,
    Hostname,
    Fqdn,
    DhcpDns(bool),
    DhcpSearch(bool),
    DnsForward,
    DnsHost,
    MapHostLoopback,
    MapGuest,
    NoMapGateway,
    HostLoToNsLo,
    NoTcp,
    NoUdp,
    NoIcmp,
    NoDhcp,
    NoDhcpv6,
    NoNdp,
    NoRa,
    NoSplice,
    SpliceOnly,
    Freebind,
    V4Only,
    V6Only,
    Tcp,
    Udp,
    TcpNs,
    UdpNs,
    IfName,
    NsMac,
    Userns,
    Netns,
    NetnsOnly,
    NoNetnsQuit,
    NoPidns,
    ConfigNet,
    NoCopyRoutes,
    NoCopyAddrs,
    ChrootFallback,
    ConfPath,
    /// Passt's, by the name that it is refused with.
    Foreign(&'static str),
}

const fn flag(short: Option<char>, long: &'static str, key: Key) -> Opt<Key> {
    Opt { short, long: Some(long), arg: Arg::No, key }
}

const fn value(short: Option<char>, long: &'static str, key: Key) -> Opt<Key> {
    Opt { short, long: Some(long), arg: Arg::Needed, key }
}

/// Every option with its names.
pub const TABLE: &[Opt<Key>] = &[
    flag(Some('d'), "debug", Key::Debug),
    flag(None, "trace", Key::Trace),
    value(None, "stats", Key::Stats),
    flag(Some('q'), "quiet", Key::Quiet),
    flag(Some('f'), "foreground", Key::Foreground),
    flag(Some('e'), "stderr", Key::Stderr),
    value(Some('l'), "log-file", Key::LogFile),
    value(None, "log-size", Key::LogSize),
    value(None, "runas", Key::RunAs),
    flag(Some('h'), "help", Key::Help),
    flag(None, "version", Key::Version),
    value(Some('p'), "pcap", Key::Pcap),
    value(Some('P'), "pid", Key::Pid),
    value(Some('m'), "mtu", Key::Mtu),
    value(Some('a'), "address", Key::Address),
    value(Some('n'), "netmask", Key::Netmask),
    value(Some('M'), "mac-addr", Key::Mac),
    value(Some('g'), "gateway", Key::Gateway),
    value(Some('i'), "interface", Key::Interface),
    value(Some('o'), "outbound", Key::Outbound),
    value(None, "outbound-if4", Key::OutboundIf4),
    value(None, "outbound-if6", Key::OutboundIf6),
    value(Some('D'), "dns", Key::Dns),
    value(Some('S'), "search", Key::Search),
    value(Some('H'), "hostname", Key::Hostname),
    value(None, "fqdn", Key::Fqdn),
    flag(None, "dhcp-dns", Key::DhcpDns(true)),
    flag(None, "no-dhcp-dns", Key::DhcpDns(false)),
    flag(None, "dhcp-search", Key::DhcpSearch(true)),
    flag(None, "no-dhcp-search", Key::DhcpSearch(false)),
    value(None, "dns-forward", Key::DnsForward),
    value(None, "dns-host", Key::DnsHost),
    value(None, "map-host-loopback", Key::MapHostLoopback),
    value(None, "map-guest-addr", Key::MapGuest),
    flag(None, "no-map-gw", Key::NoMapGateway),
    flag(None, "host-lo-to-ns-lo", Key::HostLoToNsLo),
    flag(None, "no-tcp", Key::NoTcp),
    flag(None, "no-udp", Key::NoUdp),
    flag(None, "no-icmp", Key::NoIcmp),
    flag(None, "no-dhcp", Key::NoDhcp),
    flag(None, "no-dhcpv6", Key::NoDhcpv6),
    flag(None, "no-ndp", Key::NoNdp),
    flag(None, "no-ra", Key::NoRa),
    flag(None, "no-splice", Key::NoSplice),
    flag(None, "splice-only", Key::SpliceOnly),
    flag(None, "freebind", Key::Freebind),
    flag(Some('4'), "ipv4-only", Key::V4Only),
    flag(Some('6'), "ipv6-only", Key::V6Only),
    value(Some('t'), "tcp-ports", Key::Tcp),
    value(Some('u'), "udp-ports", Key::Udp),
    value(Some('T'), "tcp-ns", Key::TcpNs),
    value(Some('U'), "udp-ns", Key::UdpNs),
    value(Some('I'), "ns-ifname", Key::IfName),
    value(None, "ns-mac-addr", Key::NsMac),
    value(None, "userns", Key::Userns),
    value(None, "netns", Key::Netns),
    flag(None, "netns-only", Key::NetnsOnly),
    flag(None, "no-netns-quit", Key::NoNetnsQuit),
    flag(None, "no-pidns", Key::NoPidns),
    flag(None, "config-net", Key::ConfigNet),
    flag(None, "no-copy-routes", Key::NoCopyRoutes),
    flag(None, "no-copy-addrs", Key::NoCopyAddrs),
    flag(None, "chroot-fallback", Key::ChrootFallback),
    value(Some('c'), "conf-path", Key::ConfPath),
    value(Some('s'), "socket", Key::Foreign("-s")),
    value(Some('s'), "socket-path", Key::Foreign("-s")),
    value(Some('F'), "fd", Key::Foreign("--fd")),
    flag(Some('1'), "one-off", Key::Foreign("--one-off")),
    flag(None, "vhost-user", Key::Foreign("--vhost-user")),
    flag(None, "print-capabilities", Key::Foreign("--print-capabilities")),
    value(None, "repair-path", Key::Foreign("--repair-path")),
    flag(None, "migrate-exit", Key::Foreign("--migrate-exit")),
    flag(None, "migrate-no-linger", Key::Foreign("--migrate-no-linger")),
];

/// Whose network it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// A new namespace's, in which this command runs; none given means a login shell.
    Command(Vec<OsString>),
    /// That of a process.
    Pid(i32),
    /// A network namespace by its path.
    Netns(PathBuf),
}

/// An address that something is mapped to, one for each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pair {
    /// IPv4.
    pub v4: Option<Ipv4Addr>,
    /// IPv6.
    pub v6: Option<Ipv6Addr>,
}

impl Pair {
    fn set(&mut self, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => self.v4 = Some(ip),
            IpAddr::V6(ip) => self.v6 = Some(ip),
        }
    }
}

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whose network.
    pub whose: Whose,
    /// `-d` is 2, `--trace` 3.
    pub verbosity: i8,
    /// `-q`.
    pub quiet: bool,
    /// `-f`.
    pub foreground: bool,
    /// `--stats`, in seconds.
    pub stats: Option<u64>,
    /// `-l`.
    pub log_file: Option<PathBuf>,
    /// `--log-size`, in bytes.
    pub log_size: u64,
    /// `--runas`.
    pub run_as: Option<String>,
    /// `-p`.
    pub pcap: Option<PathBuf>,
    /// `-P`.
    pub pid_file: Option<PathBuf>,
    /// `-m`; 0 leaves it alone.
    pub mtu: u16,
    /// `-a`.
    pub address: Pair,
    /// The length of the prefix, from `-a` with one, or from `-n`.
    pub prefix4: Option<u8>,
    /// Likewise from `-a` with one.
    pub prefix6: Option<u8>,
    /// `-M`.
    pub our_mac: MacAddr,
    /// `--ns-mac-addr`.
    pub mac: Option<MacAddr>,
    /// `-g`.
    pub gateway: Pair,
    /// `-i`.
    pub interface: Option<String>,
    /// `-o`.
    pub outbound: Pair,
    /// `--outbound-if4`.
    pub outbound_if4: Option<String>,
    /// `--outbound-if6`.
    pub outbound_if6: Option<String>,
    /// `-D`; an empty list is `none`.
    pub dns: Option<Vec<IpAddr>>,
    /// `-S`; an empty list is `none`.
    pub search: Option<Vec<String>>,
    /// `-H`.
    pub hostname: Option<String>,
    /// `--fqdn`.
    pub fqdn: Option<String>,
    /// `--dhcp-dns`.
    pub announce_dns: bool,
    /// `--dhcp-search`.
    pub announce_search: bool,
    /// `--dns-forward`.
    pub dns_forward: Pair,
    /// `--dns-host`.
    pub dns_host: Pair,
    /// `--map-host-loopback`.
    pub host_loopback: Pair,
    /// `--map-guest-addr`.
    pub guest: Pair,
    /// Without `--no-map-gw`: the gateway's address is the host's loopback.
    pub map_gateway: bool,
    /// `--host-lo-to-ns-lo`.
    pub host_lo_to_ns_lo: bool,
    /// Without `--no-tcp`, and so on.
    pub tcp: bool,
    pub udp: bool,
    pub icmp: bool,
    pub dhcp: bool,
    pub dhcpv6: bool,
    pub ndp: bool,
    pub ra: bool,
    pub splice: bool,
    /// `--splice-only`.
    pub splice_only: bool,
    /// `--freebind`.
    pub freebind: bool,
    /// Without `-6`.
    pub v4: bool,
    /// Without `-4`.
    pub v6: bool,
    /// `-t`, `-u`, `-T`, `-U`, as they were given.
    pub tcp_ports: Vec<String>,
    pub udp_ports: Vec<String>,
    pub tcp_ns: Vec<String>,
    pub udp_ns: Vec<String>,
    /// `-I`.
    pub ifname: Option<String>,
    /// `--userns`.
    pub userns: Option<PathBuf>,
    /// `--netns-only`.
    pub netns_only: bool,
    /// `--no-netns-quit`.
    pub outlives_netns: bool,
    /// Without `--no-pidns`.
    pub own_pids: bool,
    /// `--config-net`.
    pub configure: bool,
    /// Without `--no-copy-routes`.
    pub copy_routes: bool,
    /// Without `--no-copy-addrs`.
    pub copy_addresses: bool,
    /// `-c`.
    pub conf_path: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            whose: Whose::Command(Vec::new()),
            verbosity: 0,
            quiet: false,
            foreground: false,
            stats: None,
            log_file: None,
            log_size: LOG_SIZE,
            run_as: None,
            pcap: None,
            pid_file: None,
            mtu: LARGEST_MTU,
            address: Pair::default(),
            prefix4: None,
            prefix6: None,
            our_mac: OUR_MAC,
            mac: None,
            gateway: Pair::default(),
            interface: None,
            outbound: Pair::default(),
            outbound_if4: None,
            outbound_if6: None,
            dns: None,
            search: None,
            hostname: None,
            fqdn: None,
            announce_dns: false,
            announce_search: false,
            dns_forward: Pair::default(),
            dns_host: Pair::default(),
            host_loopback: Pair::default(),
            guest: Pair::default(),
            map_gateway: true,
            host_lo_to_ns_lo: false,
            tcp: true,
            udp: true,
            icmp: true,
            dhcp: true,
            dhcpv6: true,
            ndp: true,
            ra: true,
            splice: true,
            splice_only: false,
            freebind: false,
            v4: true,
            v6: true,
            tcp_ports: Vec::new(),
            udp_ports: Vec::new(),
            tcp_ns: Vec::new(),
            udp_ns: Vec::new(),
            ifname: None,
            userns: None,
            netns_only: false,
            outlives_netns: false,
            own_pids: true,
            configure: false,
            copy_routes: true,
            copy_addresses: true,
            conf_path: None,
        }
    }
}

/// Why there is nothing to do, or nothing can be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// `--help`.
    #[error("help was asked for")]
    Help,
    /// `--version`.
    #[error("the version was asked for")]
    Version,
    /// A word that is no option: said with the program's name in front, and the usage after it.
    #[error(transparent)]
    Words(#[from] OptError),
    /// A value or a combination that cannot be.
    #[error("{0}")]
    Value(String),
}

fn bad<T>(text: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Value(text.into()))
}

/// A prefix length has been given: by `-a` with one, or by `-n`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PrefixFrom {
    Nothing,
    Address,
    Netmask,
}

impl Options {
    /// From the words behind the program's name.
    pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Options, Stop> {
        let mut words = Words::new(TABLE, Order::Stop, words);
        let mut options = Options::default();
        let mut netns = None;
        let mut prefix_from = PrefixFrom::Nothing;
        for found in &mut words {
            let (key, value) = found?;
            match key {
                Key::Netns => netns = Some(netns_path(&value.unwrap_or_default())),
                Key::Address | Key::Netmask => {
                    let text = value.unwrap_or_default();
                    prefix_from = options.take_address(key, &text.to_string_lossy(), prefix_from)?;
                }
                _ => options.take(key, value.unwrap_or_default())?,
            }
        }
        options.whose = whose(words.operands(), netns)?;
        options.check()?;
        Ok(options)
    }

    /// An option and its value, which is empty for one that has none.
    fn take(&mut self, key: Key, value: OsString) -> Result<(), Stop> {
        let text = value.to_string_lossy();
        match key {
            Key::Debug => (self.verbosity, self.quiet) = (self.verbosity.max(2), false),
            Key::Trace => (self.verbosity, self.quiet) = (3, false),
            Key::Quiet => (self.verbosity, self.quiet) = (0, true),
            Key::Stats if !self.foreground => {
                return bad("Can't display statistics if not running in foreground");
            }
            Key::Stats => match number(&text) {
                Some(seconds) => self.stats = Some(seconds).filter(|seconds| *seconds > 0),
                None => return bad(format!("Invalid --stats: {text}")),
            },
            Key::Foreground => self.foreground = true,
            // Both are for ways of the original that there are not here.
            Key::Stderr | Key::ChrootFallback => {}
            Key::LogFile => self.log_file = Some(path(&value, "log file")?),
            Key::LogSize => match number(&text).filter(|size| *size >= SMALLEST_LOG) {
                Some(size) => self.log_size = size,
                None => return bad(format!("Invalid --log-size: {text}")),
            },
            Key::RunAs => self.run_as = Some(text.into_owned()),
            Key::Help => return Err(Stop::Help),
            Key::Version => return Err(Stop::Version),
            Key::Pcap => self.pcap = Some(path(&value, "pcap path")?),
            Key::Pid => self.pid_file = Some(path(&value, "PID file")?),
            Key::Mtu => self.mtu = mtu(&text)?,
            Key::Mac => self.our_mac = mac(&text)?,
            Key::NsMac => self.mac = Some(mac(&text)?),
            Key::Gateway => match address(&text).filter(|ip| !is_broadcast(*ip) && !ip.is_loopback()) {
                Some(ip) => self.gateway.set(ip),
                None => return bad(format!("Invalid gateway address: {text}")),
            },
            Key::Interface => self.interface = Some(interface(&text)?),
            Key::Outbound => match address(&text).filter(|ip| !is_broadcast(*ip) && !ip.is_multicast()) {
                Some(ip) if !matches!(ip, IpAddr::V6(v6) if v6.is_loopback()) => self.outbound.set(ip),
                _ => return bad(format!("Invalid or redundant outbound address: {text}")),
            },
            Key::OutboundIf4 => self.outbound_if4 = Some(interface(&text)?),
            Key::OutboundIf6 => self.outbound_if6 = Some(interface(&text)?),
            Key::Dns if matches!(&*text, "none" | "") => {
                self.dns = Some(Vec::new());
                (self.dns_forward, self.dns_host) = (Pair::default(), Pair::default());
            }
            Key::Dns => match text.parse() {
                Ok(ip) => self.dns.get_or_insert_default().push(ip),
                Err(_) => return bad(format!("Cannot use DNS address {text}")),
            },
            Key::Search if matches!(&*text, "none" | "") => self.search = Some(Vec::new()),
            Key::Search => {
                for word in text.split_ascii_whitespace() {
                    match crate::plan::words::parse_search_domain(word) {
                        Ok(domain) => self.search.get_or_insert_default().push(domain),
                        Err(_) => return bad(format!("Cannot use DNS search domain {text}")),
                    }
                }
            }
            Key::Hostname => self.hostname = Some(name(&text, "hostname")?),
            Key::Fqdn => self.fqdn = Some(name(&text, "FQDN")?),
            Key::DhcpDns(on) => self.announce_dns = on,
            Key::DhcpSearch(on) => self.announce_search = on,
            Key::DnsForward => match address(&text).filter(|ip| !is_broadcast(*ip) && !ip.is_loopback()) {
                Some(ip) => self.dns_forward.set(ip),
                None => return bad(format!("Invalid DNS forwarding address: {text}")),
            },
            Key::DnsHost => match address(&text).filter(|ip| !is_broadcast(*ip)) {
                Some(ip) => self.dns_host.set(ip),
                None => return bad(format!("Invalid host nameserver address: {text}")),
            },
            Key::MapHostLoopback if text == "none" => {
                self.host_loopback = Pair::default();
                self.map_gateway = false;
            }
            Key::MapHostLoopback => self.host_loopback.set(mapped(&text)?),
            Key::MapGuest if text == "none" => self.guest = Pair::default(),
            Key::MapGuest => self.guest.set(mapped(&text)?),
            Key::NoMapGateway => self.map_gateway = false,
            Key::HostLoToNsLo => self.host_lo_to_ns_lo = true,
            Key::NoTcp => self.tcp = false,
            Key::NoUdp => self.udp = false,
            Key::NoIcmp => self.icmp = false,
            Key::NoDhcp => self.dhcp = false,
            Key::NoDhcpv6 => self.dhcpv6 = false,
            Key::NoNdp => self.ndp = false,
            Key::NoRa => self.ra = false,
            Key::NoSplice => self.splice = false,
            Key::SpliceOnly => self.splice_only = true,
            Key::Freebind => self.freebind = true,
            Key::V4Only => (self.v4, self.v6) = (true, false),
            Key::V6Only => (self.v4, self.v6) = (false, true),
            Key::Tcp => self.tcp_ports.push(text.into_owned()),
            Key::Udp => self.udp_ports.push(text.into_owned()),
            Key::TcpNs => self.tcp_ns.push(text.into_owned()),
            Key::UdpNs => self.udp_ns.push(text.into_owned()),
            Key::IfName => match crate::plan::words::parse_interface(&text) {
                Ok(name) => self.ifname = Some(name),
                Err(_) => return bad(format!("Invalid interface name: {text}")),
            },
            Key::Userns => (self.userns, self.netns_only) = (Some(path(&value, "userns")?), false),
            Key::NetnsOnly => (self.userns, self.netns_only) = (None, true),
            Key::NoNetnsQuit => self.outlives_netns = true,
            Key::NoPidns => self.own_pids = false,
            Key::ConfigNet => self.configure = true,
            Key::NoCopyRoutes => self.copy_routes = false,
            Key::NoCopyAddrs => self.copy_addresses = false,
            Key::ConfPath => self.conf_path = Some(path(&value, "configuration socket path")?),
            Key::Foreign(name) => return bad(format!("{name} is for passt mode only")),
            // Taken where more has to be known.
            Key::Address | Key::Netmask | Key::Netns => {}
        }
        Ok(())
    }

    /// `-a` and `-n`, of which one alone may say how long the prefix is.
    fn take_address(&mut self, key: Key, text: &str, before: PrefixFrom) -> Result<PrefixFrom, Stop> {
        if key == Key::Netmask {
            if before == PrefixFrom::Address {
                return bad("Redundant prefix length specification");
            }
            let Some(prefix) = netmask(text) else { return bad(format!("Invalid prefix length: {text}")) };
            self.prefix4 = Some(prefix);
            return Ok(PrefixFrom::Netmask);
        }
        let (word, prefix) = match text.split_once('/') {
            Some((word, prefix)) => (word, Some(prefix)),
            None => (text, None),
        };
        let ip = address(word).filter(|ip| !ip.is_multicast() && !ip.is_loopback() && !is_compatible(*ip));
        let longest = if ip.is_some_and(|ip| ip.is_ipv4()) { 32 } else { 128 };
        let prefix = prefix.map(|text| decimal(text).filter(|prefix| *prefix <= longest));
        let (Some(ip), None | Some(Some(_))) = (ip, prefix) else { return bad(format!("Invalid address: {text}")) };
        let prefix = prefix.flatten().and_then(|prefix| u8::try_from(prefix).ok());
        self.address.set(ip);
        match (ip, prefix) {
            (IpAddr::V6(_), prefix) => {
                self.prefix6 = prefix;
                Ok(before)
            }
            (IpAddr::V4(_), Some(_)) if before == PrefixFrom::Netmask => bad("Redundant prefix length specification"),
            (IpAddr::V4(_), Some(prefix)) => {
                self.prefix4 = Some(prefix);
                Ok(PrefixFrom::Address)
            }
            (IpAddr::V4(_), None) => Ok(before),
        }
    }

    /// What does not go together.
    fn check(&self) -> Result<(), Stop> {
        if !self.configure {
            if !self.copy_routes {
                return bad("--no-copy-routes needs --config-net");
            }
            if !self.copy_addresses {
                return bad("--no-copy-addrs needs --config-net");
            }
        }
        if self.splice_only && !self.splice {
            return bad("--splice-only is incompatible with --no-splice");
        }
        if self.host_lo_to_ns_lo && !self.splice {
            return bad("--host-lo-to-ns-lo is incompatible with --no-splice");
        }
        if !self.own_pids && !matches!(self.whose, Whose::Command(_)) {
            return bad("--no-pidns is for a command that is run, not for a PID or --netns");
        }
        if !self.tcp && self.tcp_ports.iter().chain(&self.tcp_ns).any(|spec| spec != "none") {
            return bad("TCP port forwarding requested but TCP is disabled");
        }
        if !self.udp && self.udp_ports.iter().chain(&self.udp_ns).any(|spec| spec != "none") {
            return bad("UDP port forwarding requested but UDP is disabled");
        }
        Ok(())
    }
}

/// What the words behind the options mean.
fn whose(operands: Vec<OsString>, netns: Option<PathBuf>) -> Result<Whose, Stop> {
    match (netns, &operands[..]) {
        (Some(path), []) => Ok(Whose::Netns(path)),
        (Some(_), _) => bad("Both --netns and PID or command given"),
        (None, [one]) if is_number(one) => {
            let text = one.to_string_lossy();
            match text.parse::<i32>() {
                Ok(pid) if pid >= 0 => Ok(Whose::Pid(pid)),
                _ => bad(format!("Invalid PID {text}")),
            }
        }
        (None, _) => Ok(Whose::Command(operands)),
    }
}

/// Would strtol(3) read the whole word as a number?
fn is_number(word: &OsStr) -> bool {
    let text = word.to_string_lossy();
    let digits = text.strip_prefix(['+', '-']).unwrap_or(&text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// A name is one of those in /run/netns.
fn netns_path(word: &OsStr) -> PathBuf {
    if word.to_string_lossy().contains('/') { word.into() } else { [OsStr::new(NETNS_DIR), word].iter().collect() }
}

fn path(word: &OsStr, what: &str) -> Result<PathBuf, Stop> {
    if word.is_empty() {
        return bad(format!("Invalid {what}: "));
    }
    Ok(word.into())
}

/// Decimal digits and nothing else.
fn decimal(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// A number as strtoul(3) reads it in base 0: decimal, 0x and hexadecimal, 0 and octal.
fn number(text: &str) -> Option<u64> {
    let digits = |text: &str, radix| {
        let fits = !text.is_empty() && text.chars().all(|c| c.is_digit(radix));
        fits.then(|| u64::from_str_radix(text, radix).ok()).flatten()
    };
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hexadecimal) => digits(hexadecimal, 16),
        None if text.len() > 1 && text.starts_with('0') => digits(&text[1..], 8),
        None => digits(text, 10),
    }
}

fn mtu(text: &str) -> Result<u16, Stop> {
    let Some(mtu) = number(text) else { return bad(format!("Invalid MTU: {text}")) };
    match u16::try_from(mtu).ok().filter(|mtu| *mtu <= LARGEST_MTU) {
        Some(mtu) => Ok(mtu),
        None => bad(format!("MTU {mtu} too large (max {LARGEST_MTU})")),
    }
}

/// Six pairs of hexadecimal digits with colons between them.
fn mac(text: &str) -> Result<MacAddr, Stop> {
    let parsed = if text.contains('-') { None } else { text.parse::<MacAddr>().ok() };
    parsed.map_or_else(|| bad(format!("Invalid MAC address: {text}")), Ok)
}

/// An address that somebody can have. One of IPv4 in the clothes of IPv6 is one of IPv4.
fn address(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical()).filter(|ip| !ip.is_unspecified())
}

fn is_broadcast(ip: IpAddr) -> bool {
    ip == IpAddr::V4(Ipv4Addr::BROADCAST)
}

/// An "IPv4-compatible" IPv6 address (RFC 4291 section 2.5.5.1), which nobody has.
fn is_compatible(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.octets()[..12] == [0; 12])
}

fn mapped(text: &str) -> Result<IpAddr, Stop> {
    match address(text).filter(|ip| !ip.is_loopback() && !ip.is_multicast()) {
        Some(ip) => Ok(ip),
        None => bad(format!("Invalid address to remap to host: {text}")),
    }
}

/// A prefix length, or a mask of ones with nothing but zeros behind them.
fn netmask(text: &str) -> Option<u8> {
    match text.parse::<Ipv4Addr>() {
        Ok(mask) => {
            let bits = u32::from(mask);
            (bits.leading_ones() == bits.count_ones()).then(|| bits.count_ones() as u8)
        }
        Err(_) => number(text).and_then(|length| u8::try_from(length).ok()).filter(|length| *length <= 32),
    }
}

fn interface(text: &str) -> Result<String, Stop> {
    if text.is_empty() || text.len() > LONGEST_IFNAME {
        return bad(format!("Invalid interface name: {text}"));
    }
    Ok(text.to_owned())
}

fn name(text: &str, what: &str) -> Result<String, Stop> {
    let fits = !text.is_empty() && text.len() <= LONGEST_NAME && text.bytes().all(|byte| byte.is_ascii_graphic());
    if fits { Ok(text.to_owned()) } else { bad(format!("Invalid {what}: {text}")) }
}

#[cfg(test)]
mod tests;
