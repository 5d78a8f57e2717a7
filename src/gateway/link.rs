//! What the gateway needs from the two worlds it stands between, as traits: frames to sandboxes ([`Link`]),
//! bytes and datagrams to the host ([`Host`]). The worker implements both; tests hold both ends themselves.
use std::net::{IpAddr, SocketAddr};

use crate::plan::{MacAddr, Published};

/// A sandbox's port on the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u32);

/// Where frames for a sandbox go: its port and its Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// The port.
    pub port: PortId,
    /// The Ethernet address.
    pub mac: MacAddr,
}

/// Where a published port leads inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// The address, where it is not the sandbox's own.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
}

impl Service {
    /// Its address towards clients of a family, for what goes through the link, where no loopback address is found;
    /// `own` is the sandbox's.
    pub fn through_link(&self, own: Option<IpAddr>, v4: bool) -> Option<SocketAddr> {
        let given = self.address.filter(|ip| !ip.is_loopback() && !ip.is_unspecified());
        let ip = if given.is_some() { given } else { own };
        ip.filter(|ip| ip.is_ipv4() == v4).map(|ip| SocketAddr::new(ip, self.port))
    }
}

impl From<&Published> for Service {
    fn from(published: &Published) -> Service {
        Service { address: published.sandbox_address, port: published.sandbox_port }
    }
}

impl From<u16> for Service {
    /// At the sandbox's own address.
    fn from(port: u16) -> Service {
        Service { address: None, port }
    }
}

/// The kind of super-segment a frame is (linux/virtio_net.h, VIRTIO_NET_HDR_GSO_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Gso {
    /// An ordinary frame.
    #[default]
    None,
    /// TCP over IPv4, to be cut into segments of `gso_size` bytes of payload.
    TcpV4,
    /// TCP over IPv6, likewise.
    TcpV6,
    /// UDP (either family): datagrams of `gso_size` bytes of payload each, the last may be shorter.
    UdpL4,
}

/// What the virtio-net header in front of a frame says (virtio 1.2, 5.1.6). Offsets count from the first byte
/// of the Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Offload {
    /// The checksum field at `csum_start + csum_offset` holds only the pseudo-header's sum; the checksum over
    /// everything from `csum_start` is still to be computed by whoever needs it.
    pub needs_csum: bool,
    /// The sender vouches for the checksum (DATA_VALID); only on frames that come in.
    pub csum_valid: bool,
    /// First byte that the checksum covers.
    pub csum_start: u16,
    /// Where the checksum field is, counted from `csum_start`.
    pub csum_offset: u16,
    /// Kind of super-segment.
    pub gso: Gso,
    /// Payload bytes of each segment; 0 for ordinary frames.
    pub gso_size: u16,
    /// Length of all headers together; a hint to the kernel.
    pub hdr_len: u16,
}

/// Frames on their way to sandboxes.
pub trait Link {
    /// May a large frame be handed to this port now? Small control frames may always be: a port keeps a short
    /// queue for them. When this is `false`, keep the data; the port says when it has room again.
    fn has_room(&self, port: PortId) -> bool;

    /// Does this port take UDP super-segments ([`Gso::UdpL4`]; TUN_F_USO4 and TUN_F_USO6, Linux 6.2)?
    fn takes_udp_super_segments(&self, _port: PortId) -> bool {
        false
    }

    /// Hand over one frame of exactly `len` bytes (Ethernet header first), which `fill` writes. The buffer is
    /// not cleared before.
    fn transmit<R>(&mut self, port: PortId, offload: Offload, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R;
}

/// A TCP flow, by its place in the table and the generation of that place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TcpId {
    /// Place in the table; small and dense, so that others can keep arrays beside it.
    pub index: u32,
    /// Increases whenever the place is given to another flow.
    pub generation: u32,
}

/// A UDP flow (one for each source address and port of a sandbox: endpoint-independent mapping, RFC 4787).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UdpId {
    /// Place in the table; small and dense.
    pub index: u32,
    /// Increases whenever the place is given to another flow.
    pub generation: u32,
}

/// A ping flow (one for each sandbox address, destination and echo identifier).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EchoId {
    /// Place in the table; small and dense.
    pub index: u32,
    /// Increases whenever the place is given to another flow.
    pub generation: u32,
}

/// The way back to a client of a published UDP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReplyPath {
    /// Place of the published socket.
    pub socket: u32,
    /// Increases whenever a place is given to another socket.
    pub generation: u32,
    /// The host's address that the client wrote to, which answers must come from; `None` where the socket has only
    /// one.
    pub local: Option<IpAddr>,
}

/// Datagrams from a sandbox, on their way out.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// UDP payload, or an ICMP echo request's data after the eight bytes of its header.
    pub payload: &'a [u8],
    /// For a UDP super-segment: payload bytes of each datagram; 0 when `payload` is one datagram.
    pub segment: u16,
    /// TTL or hop limit that the datagram leaves the gateway with.
    pub hop_limit: u8,
    /// Type of service / traffic class byte.
    pub tos: u8,
    /// The sandbox's don't-fragment bit (always true for IPv6, whose routers do not fragment, except for
    /// datagrams the sandbox itself had sent in fragments).
    pub dont_fragment: bool,
}

/// Datagrams for which [`Host::udp_send`] had said `Ok`, because they waited for others to leave together, and
/// which then could not be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsent<'a> {
    /// Whose they were.
    pub flow: UdpId,
    /// Where they should have gone.
    pub to: SocketAddr,
    /// Why they did not.
    pub error: HostError,
    /// How many.
    pub datagrams: u64,
    /// The payload of the first.
    pub payload: &'a [u8],
}

/// Who asked for a name, so that the answer finds back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The sandbox.
    pub peer: Peer,
    /// Address and port of the question.
    pub from: SocketAddr,
    /// The DNS address that was asked.
    pub to: IpAddr,
}

/// What the gateway has the host's sockets do. Nothing here waits; outcomes come back later through the
/// gateway's `handle_*` functions.
pub trait Host {
    /// Begin to connect a TCP flow to `to` on the host. The outcome comes back with
    /// [`Gateway::handle_tcp_outcome`](super::Gateway::handle_tcp_outcome). `hop_limit` is what the SYN should
    /// leave with, `None` for the host's own choice.
    fn tcp_connect(&mut self, flow: TcpId, to: SocketAddr, hop_limit: Option<u8>);

    /// Give a TCP flow a stream to the DNS forwarder as its other side. Outcome as above.
    fn tcp_connect_dns(&mut self, flow: TcpId, asker: Asker);

    /// The sandbox asked whether the far side is alive: let the host's kernel ask it (SO_KEEPALIVE, tcp(7)).
    fn tcp_keepalive(&mut self, flow: TcpId);

    /// The flow has ended; close its host side. `reset`: the far side must see RST.
    fn tcp_close(&mut self, flow: TcpId, reset: bool);

    /// Send a datagram (or a super-segment of datagrams) of a UDP flow; a socket is made at the first.
    /// `Err` when it cannot be sent, or the flow cannot have a socket at all (out of descriptors, address family
    /// unavailable). A datagram that follows another of its flow may wait for more to leave together; what becomes
    /// of it is told later, with [`Gateway::handle_udp_unsent`](super::Gateway::handle_udp_unsent), if it fails.
    fn udp_send(&mut self, flow: UdpId, to: SocketAddr, datagram: Datagram<'_>) -> Result<(), HostError>;

    /// Send a datagram (or a super-segment) to a client of a published port. It may wait for more to leave together.
    /// For a host that publishes nothing there is no such way.
    fn published_send(
        &mut self,
        _path: ReplyPath,
        _client: SocketAddr,
        _datagram: Datagram<'_>,
    ) -> Result<(), HostError> {
        Err(HostError::Unsupported)
    }

    /// The flow has expired; close its socket.
    fn udp_close(&mut self, flow: UdpId);

    /// Send an echo request through a ping socket; one is made at the first.
    fn echo_send(&mut self, flow: EchoId, to: IpAddr, sequence: u16, datagram: Datagram<'_>) -> Result<(), HostError>;

    /// The flow has expired; close its socket.
    fn echo_close(&mut self, flow: EchoId);

    /// Hand a DNS query to the forwarder. `false` when too many are waiting.
    fn dns_query(&mut self, asker: Asker, message: &[u8]) -> bool;

    /// How many more sockets there may be, about, where several sandboxes share them: who has more than that gets no
    /// others, so that one alone never has more than half of all, and there is something left for whoever comes next.
    fn descriptors_left(&self) -> usize {
        usize::MAX
    }
}

/// Why the host would not carry something, as far as the sandbox can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostError {
    /// Connection refused (RST, or port unreachable).
    Refused,
    /// No route to the network (ENETUNREACH, EADDRNOTAVAIL, EAFNOSUPPORT).
    NetUnreachable,
    /// No route to the host (EHOSTUNREACH, EHOSTDOWN).
    HostUnreachable,
    /// Forbidden (EACCES, EPERM).
    Prohibited,
    /// Larger than the path's MTU, which is given in bytes, with don't-fragment set (EMSGSIZE).
    TooBig(u32),
    /// A router on the way had to drop the SYN because its hop limit was used up (ICMP time exceeded).
    HopLimitExceeded,
    /// Nobody answered (ETIMEDOUT).
    TimedOut,
    /// The connection broke (ECONNRESET, EPIPE and the rest).
    Reset,
    /// No descriptor, buffer or memory left; nothing the sandbox can be told.
    Exhausted,
    /// The host allows no such socket (ping sockets closed).
    Unsupported,
}
