//! What `tapline run` and `tapline attach` were asked to do.
use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Access, Endpoint, MacAddr, Network, Ports, SandboxLink};

/// Which network a sandbox gets (`--net`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A network and a gateway of its own.
    Private,
    /// One or several networks that it shares with others.
    Bridge,
    /// A namespace with `lo` up and nothing else.
    None,
    /// The host's network namespace.
    Host,
    /// The network namespace of another sandbox.
    Container,
}

/// A shared network that a sandbox is to join, and what it asks for there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// The network's name.
    pub network: String,
    /// `--ip`: this IPv4 address; `None` means the lowest free one.
    #[serde(default)]
    pub v4: Option<Ipv4Addr>,
    /// `--ip6`: likewise.
    #[serde(default)]
    pub v6: Option<Ipv6Addr>,
    /// `--mac`: this Ethernet address; `None` means one that is made of the IP address.
    #[serde(default)]
    pub mac: Option<MacAddr>,
    /// `--network-alias`: further names on this network, lower case.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// `--ifname`: the interface's name; `None` means the first free of eth0, eth1 and so on.
    #[serde(default)]
    pub ifname: Option<String>,
}

/// Whose network namespace `--net container:` means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shared {
    /// A sandbox by its name, its id or the beginning of its id; or a process by its PID, where no sandbox is called so.
    Sandbox(String),
    /// A network namespace by its path (`ns:PATH`).
    Path(PathBuf),
}

impl fmt::Display for Shared {
    /// As it is written behind `--net`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shared::Sandbox(name) => write!(f, "container:{name}"),
            Shared::Path(path) => write!(f, "ns:{}", path.display()),
        }
    }
}

/// A sandbox's place on a network, and the network: what is known of both while they last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat {
    /// The place.
    pub endpoint: Endpoint,
    /// The network.
    pub network: Network,
    /// The sandbox's default route leads through this network.
    pub default_route: bool,
}

/// Whom CMD sees itself as (`--map-user`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MapUser {
    /// uid and gid 0, mapped to the caller.
    Root,
    /// The caller's own uid and gid.
    Keep,
    /// 0 is the caller, 1 and up the caller's whole subordinate range (newuidmap, newgidmap).
    Auto,
}

/// Whether CMD has a PID namespace of its own (`--pid`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PidMode {
    /// Its own.
    Private,
    /// The caller's.
    Host,
}

/// How the sandbox is joined to its gateway (`--link-kind`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkChoice {
    /// A TAP; without /dev/net/tun a packet socket.
    Auto,
    /// A TAP or an error.
    Tap,
    /// A packet socket.
    Packet,
    /// No interface but `lo`: what goes past a link still works, which is published ports for clients on the host's
    /// loopback, and `--reach`. For mode `private`.
    None,
}

/// Where a name given with `--add-host` leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostTarget {
    /// An address.
    Address(IpAddr),
    /// The gateway's addresses (`host-gateway`).
    Gateway,
}

/// Names inside: resolv.conf and hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// The hostname inside; also in /etc/hostname and /etc/hosts.
    pub hostname: String,
    /// Write /etc/resolv.conf and answer DNS (`false` with `--no-dns`: resolv.conf is then empty).
    pub dns: bool,
    /// `--dns`; empty means the gateway's DNS address.
    pub servers: Vec<IpAddr>,
    /// `--dns-search`; `None` means the host's, an empty list (`--dns-search .`) means none.
    pub search: Option<Vec<String>>,
    /// `--dns-option`, as they stand in resolv.conf.
    pub options: Vec<String>,
    /// `--add-host`.
    pub hosts: Vec<(String, HostTarget)>,
}

/// The interface inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name, 1 to 15 bytes.
    pub name: String,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// How it is joined to the gateway.
    pub link: LinkChoice,
    /// Set link, addresses and routes (`false` with `attach --no-configure`: only the interface is made).
    pub configure: bool,
    /// Where another tool's command line wants more than one address and a default route.
    #[serde(default)]
    pub extras: InterfaceExtras,
}

/// What an interface is given, or is, besides; the default is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceExtras {
    /// Its MTU, where that is not the network's; 0 leaves it as the kernel makes it.
    pub mtu: Option<u32>,
    /// Further addresses, each with the length of its subnet's prefix.
    pub addresses: Vec<IpNet>,
    /// Routes besides those to the subnets and the default route; those that a later one needs come first.
    pub routes: Vec<Route>,
    /// IPv6 addresses and routes come by router advertisement (RFC 4862) and not from us.
    pub v6_by_advertisement: bool,
    /// A persistent TAP of that name may be there already: it is used, and outlives us.
    pub may_exist: bool,
}

/// A route on the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub to: IpNet,
    /// By whom; `None` on the link.
    pub via: Option<IpAddr>,
}

/// How much is said, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logging {
    /// -1 with `-q` (errors only), 0 as it is, 1 and up for each `-v`.
    pub verbosity: i8,
    /// JSON lines instead of text.
    pub json: bool,
}

/// `tapline run`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The sandbox's id: 12 hexadecimal digits, random.
    pub id: String,
    /// Its name; unique among this user's sandboxes in this host network namespace.
    pub name: String,
    /// Which network.
    pub mode: Mode,
    /// The network, for mode `private`.
    pub network: Network,
    /// The interface inside, for mode `private`; its kind of link counts for mode `bridge` too.
    pub interface: Interface,
    /// The networks, for mode `bridge`; never empty there.
    pub joins: Vec<Join>,
    /// `--default-net`: whose gateway the default route leads to; `None` means the first network that is not internal.
    pub default_net: Option<String>,
    /// Whose network, for mode `container`.
    pub container: Option<Shared>,
    /// `--link`.
    pub links: Vec<SandboxLink>,
    /// `--on`: the network towards which ports are published; `None` means the one with the default route.
    pub publish_on: Option<String>,
    /// What it may reach besides, for mode `bridge`.
    pub access: Access,
    /// resolv.conf, hosts, hostname.
    pub names: Names,
    /// The PID namespace.
    pub pid: PidMode,
    /// Ids inside.
    pub map_user: MapUser,
    /// Ports published and reached, for mode `private`.
    pub ports: Ports,
    /// CMD without capabilities over its network and mounts.
    pub locked: bool,
    /// Refuse to work where a gateway, agent or supervisor could not be confined in full.
    #[serde(default)]
    pub require_confinement: bool,
    /// Where every frame is written down, for mode `private` (pcap; see [`observe::capture`](crate::observe::capture)).
    pub pcap: Option<PathBuf>,
    /// What is said.
    pub logging: Logging,
    /// What another tool's command line wants otherwise.
    #[serde(default)]
    pub surroundings: Surroundings,
    /// CMD and its arguments; never empty.
    #[serde(serialize_with = "lossy")]
    #[serde(deserialize_with = "words")]
    pub command: Vec<OsString>,
}

/// What CMD finds around it, where that is not what it finds under tapline's own name; the default is that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Surroundings {
    /// The host's files as they are, and its mounts as they come and go: nothing in /etc is the sandbox's own, nothing is
    /// covered. Only /proc is its own, with a PID namespace of its own.
    pub host_files: bool,
    /// An IPC namespace of its own.
    pub own_ipc: bool,
    /// CMD is a shell that is told that it is a login shell: by a `-` in front of its name.
    pub login_shell: bool,
    /// Where the supervisor's PID is written when the network works.
    pub pid_file: Option<PathBuf>,
    /// The exit status when CMD cannot be executed, where that is not as a shell has it.
    pub status_not_executed: Option<u8>,
}

/// The namespace that `tapline attach` serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The namespaces of a process.
    Pid(i32),
    /// A network namespace by path.
    Path {
        /// The network namespace.
        netns: PathBuf,
        /// The user namespace to enter first.
        userns: Userns,
    },
    /// The number of an inherited descriptor of a TAP. Nothing is known of the namespace it is in: nobody enters it,
    /// nothing is configured there, and its end is not noticed.
    Tap(RawFd),
}

/// Which user namespace is entered before a network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Userns {
    /// The one that owns the network namespace, unless the caller is in that already.
    #[default]
    Owner,
    /// This one.
    Given(PathBuf),
    /// This one; where it does not admit the caller he stays where he is, which may be inside it already.
    GivenOrStay(PathBuf),
    /// None: the caller is where he must be.
    Stay,
}

/// Stands for a number in [`Attach::link_text`].
pub const LINK_NUMBER: &str = "{link}";

/// `tapline attach`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// As in [`Run`].
    pub id: String,
    /// As in [`Run`].
    pub name: String,
    /// Whose namespace.
    pub target: Target,
    /// `private` or `bridge`.
    pub mode: Mode,
    /// The network, for mode `private`.
    pub network: Network,
    /// The interface inside, for mode `private`; its kind of link and whether it is configured count for `bridge` too.
    pub interface: Interface,
    /// As in [`Run`].
    pub joins: Vec<Join>,
    /// As in [`Run`].
    pub default_net: Option<String>,
    /// As in [`Run`].
    pub publish_on: Option<String>,
    /// As in [`Run`].
    pub access: Access,
    /// What the DNS address answers from and asks. Of the search domains: on a network of its own they are announced by
    /// DHCP and router advertisement.
    pub names: Names,
    /// Ports published and reached.
    pub ports: Ports,
    /// As in [`Run`].
    pub pcap: Option<PathBuf>,
    /// What is said.
    pub logging: Logging,
    /// Where [`ready_text`](Self::ready_text) is written when the network is ready; then it is closed.
    pub ready_fd: Option<RawFd>,
    /// A `1` and a newline, unless another tool's command line wants it otherwise.
    pub ready_text: String,
    /// What is printed on standard error when the network is ready, before that; in place of [`LINK_NUMBER`] stands the
    /// number of the link's descriptor.
    pub link_text: String,
    /// What is printed on standard output then.
    pub greeting: String,
    /// Where to listen for slirp4netns' API ([`control::hostfwd`](crate::control::hostfwd)); what is there is removed first.
    pub hostfwd_socket: Option<PathBuf>,
    /// Do not end when the target does.
    pub outlives_target: bool,
    /// When it works, also give up the capabilities to enter the namespace again.
    #[serde(default)]
    pub confined: bool,
    /// As in [`Run`].
    #[serde(default)]
    pub require_confinement: bool,
    /// End when this descriptor hangs up.
    pub exit_fd: Option<RawFd>,
    /// Where the supervisor's PID is written.
    pub pid_file: Option<PathBuf>,
    /// Return when ready, go on in the background.
    pub detach: bool,
}

fn lossy<S: serde::Serializer>(words: &[OsString], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(words.iter().map(|w| w.to_string_lossy()))
}

fn words<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<OsString>, D::Error> {
    Ok(Vec::<String>::deserialize(from)?.into_iter().map(OsString::from).collect())
}
