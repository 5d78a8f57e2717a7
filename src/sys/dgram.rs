//! Datagram sockets: sendmsg(2) with UDP_SEGMENT, recvmmsg(2) with UDP_GRO, the error queue (MSG_ERRQUEUE), and
//! the handful of options the gateway turns on them.
//!
//! Control messages that come back are read by a bounds-checked walk over their bytes, so that nothing but the
//! system calls themselves is unsafe.
use std::io;
use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Messages received by one system call.
pub const BATCH: usize = 16;
/// Room for each: the largest UDP payload, or what UDP_GRO joins together.
const MESSAGE_BYTES: usize = 64 * 1024;
/// The most that [`Batch::join`] makes of several datagrams, in number and in bytes: what one UDP super-segment
/// carries over IPv6 (linux/udp.h, UDP_MAX_SEGMENTS as it was at first).
const MOST_JOINED: (usize, usize) = (64, 65_000);
/// Room for each message's control data.
const CONTROL_BYTES: usize = 128;

/// An option of a datagram socket, of either family (ip(7), ipv6(7), udp(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketOption {
    /// IP_TTL, IPV6_UNICAST_HOPS: 1 to 255.
    HopLimit,
    /// IP_TOS, IPV6_TCLASS: the whole byte.
    Tos,
    /// IP_MTU_DISCOVER, IPV6_MTU_DISCOVER: 1 is "never fragment, say EMSGSIZE", 0 is "fragment where needed".
    DontFragment,
    /// IP_RECVERR, IPV6_RECVERR: ICMP errors are queued.
    ReceiveErrors,
    /// IP_RECVTOS, IPV6_RECVTCLASS.
    ReceiveTos,
    /// IP_RECVTTL, IPV6_RECVHOPLIMIT.
    ReceiveHopLimit,
    /// UDP_GRO: datagrams of one sender may come joined.
    Gro,
    /// IP_PKTINFO, IPV6_RECVPKTINFO: the address that a datagram was sent to. On a socket of IPv6 it says so of IPv4
    /// too.
    ReceiveDestination,
}

/// Set an option of a socket of IPv4 or IPv6.
pub fn set_option(socket: BorrowedFd<'_>, ipv6: bool, option: SocketOption, value: i32) -> io::Result<()> {
    use libc::{SOL_IP, SOL_IPV6, SOL_UDP};
    let (level, name, value) = match (option, ipv6) {
        (SocketOption::HopLimit, false) => (SOL_IP, libc::IP_TTL, value),
        (SocketOption::HopLimit, true) => (SOL_IPV6, libc::IPV6_UNICAST_HOPS, value),
        (SocketOption::Tos, false) => (SOL_IP, libc::IP_TOS, value),
        (SocketOption::Tos, true) => (SOL_IPV6, libc::IPV6_TCLASS, value),
        (SocketOption::DontFragment, false) if value == 0 => (SOL_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
        (SocketOption::DontFragment, false) => (SOL_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO),
        // IPv6 has no routers that fragment: "where needed" is at the source, to the path's MTU.
        (SocketOption::DontFragment, true) if value == 0 => {
            (SOL_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_WANT)
        }
        (SocketOption::DontFragment, true) => (SOL_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO),
        (SocketOption::ReceiveErrors, false) => (SOL_IP, libc::IP_RECVERR, value),
        (SocketOption::ReceiveErrors, true) => (SOL_IPV6, libc::IPV6_RECVERR, value),
        (SocketOption::ReceiveTos, false) => (SOL_IP, libc::IP_RECVTOS, value),
        (SocketOption::ReceiveTos, true) => (SOL_IPV6, libc::IPV6_RECVTCLASS, value),
        (SocketOption::ReceiveHopLimit, false) => (SOL_IP, libc::IP_RECVTTL, value),
        (SocketOption::ReceiveHopLimit, true) => (SOL_IPV6, libc::IPV6_RECVHOPLIMIT, value),
        (SocketOption::Gro, _) => (SOL_UDP, libc::UDP_GRO, value),
        (SocketOption::ReceiveDestination, false) => (SOL_IP, libc::IP_PKTINFO, value),
        (SocketOption::ReceiveDestination, true) => (SOL_IPV6, libc::IPV6_RECVPKTINFO, value),
    };
    // SAFETY: the descriptor is open for the length of the borrow, and the pointer is to a live int whose size
    // is what is said.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The path's MTU in bytes, as the kernel knows it now, towards what this socket is connected to (IP_MTU).
pub fn path_mtu(socket: BorrowedFd<'_>, ipv6: bool) -> io::Result<u32> {
    let (level, name) = if ipv6 { (libc::SOL_IPV6, libc::IPV6_MTU) } else { (libc::SOL_IP, libc::IP_MTU) };
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: as above; the kernel writes at most `len` bytes, the size of the int it is given.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len) };
    if result == 0 { Ok(value.max(0) as u32) } else { Err(io::Error::last_os_error()) }
}

/// Control data, aligned as a `cmsghdr` must be.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// A `sockaddr` as bytes; the kernel reads and writes it, we only look at bytes.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Name([u8; 28]);

impl Name {
    const EMPTY: Name = Name([0; 28]);

    /// Encode an address; also the length the kernel wants with it.
    fn encode(address: SocketAddr) -> (Name, libc::socklen_t) {
        let mut name = Name::EMPTY;
        name.0[2..4].copy_from_slice(&address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => {
                name.0[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                name.0[4..8].copy_from_slice(&v4.ip().octets());
                (name, 16)
            }
            SocketAddr::V6(v6) => {
                name.0[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                name.0[4..8].copy_from_slice(&v6.flowinfo().to_be_bytes());
                name.0[8..24].copy_from_slice(&v6.ip().octets());
                name.0[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                (name, 28)
            }
        }
    }

    fn decode(&self) -> Option<SocketAddr> {
        decode_sockaddr(&self.0)
    }
}

/// Read a `sockaddr_in` or `sockaddr_in6`; `None` for anything else.
fn decode_sockaddr(bytes: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(*bytes.first_chunk()?));
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
    match family {
        libc::AF_INET => {
            let ip: [u8; 4] = *bytes.get(4..)?.first_chunk()?;
            Some(SocketAddr::new(Ipv4Addr::from(ip).into(), port))
        }
        libc::AF_INET6 => {
            let ip: [u8; 16] = *bytes.get(8..)?.first_chunk()?;
            let scope = u32::from_ne_bytes(*bytes.get(24..)?.first_chunk()?);
            Some(SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::from(ip), port, 0, scope)))
        }
        _ => None,
    }
}

/// Bytes of a `cmsghdr` (kernel's layout: length, level, type).
const CMSG_HEADER: usize = size_of::<usize>() + 8;

/// Walk over control messages: (level, type, data).
fn controls(mut bytes: &[u8]) -> impl Iterator<Item = (i32, i32, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from_ne_bytes(*bytes.first_chunk()?);
        let level = i32::from_ne_bytes(*bytes.get(size_of::<usize>()..)?.first_chunk()?);
        let kind = i32::from_ne_bytes(*bytes.get(size_of::<usize>() + 4..)?.first_chunk()?);
        let data = bytes.get(CMSG_HEADER..len)?;
        bytes = bytes.get(len.next_multiple_of(size_of::<usize>())..).unwrap_or(&[]);
        Some((level, kind, data))
    })
}

impl Control {
    /// Put a control message behind the `len` bytes that are there.
    fn push(&mut self, len: &mut usize, level: i32, kind: i32, data: &[u8]) {
        let (word, at) = (size_of::<usize>(), *len);
        self.0[at..at + word].copy_from_slice(&(CMSG_HEADER + data.len()).to_ne_bytes());
        self.0[at + word..at + word + 4].copy_from_slice(&level.to_ne_bytes());
        self.0[at + word + 4..at + word + 8].copy_from_slice(&kind.to_ne_bytes());
        self.0[at + CMSG_HEADER..at + CMSG_HEADER + data.len()].copy_from_slice(data);
        *len = at + (CMSG_HEADER + data.len()).next_multiple_of(word);
    }
}

/// The address in a struct in_pktinfo (the second one, which is this host's even for a broadcast) or in6_pktinfo,
/// unless it is a group's.
fn destination(level: i32, data: &[u8]) -> Option<IpAddr> {
    let ip = if level == libc::SOL_IP {
        IpAddr::from(*data.get(4..)?.first_chunk::<4>()?)
    } else {
        IpAddr::from(*data.first_chunk::<16>()?).to_canonical()
    };
    (!ip.is_multicast() && !ip.is_unspecified()).then_some(ip)
}

/// A control message that is one int, or one byte (IP_TOS).
fn small(data: &[u8]) -> u32 {
    match data {
        [a, b, c, d, ..] => u32::from_ne_bytes([*a, *b, *c, *d]),
        [one, ..] => u32::from(*one),
        [] => 0,
    }
}

/// Send one datagram made of two parts; with `segment` not 0, several of that many bytes each (UDP_SEGMENT,
/// udp(7)). Never waits: WouldBlock when the socket has no room.
pub fn send(socket: BorrowedFd<'_>, to: SocketAddr, parts: [&[u8]; 2], segment: u16) -> io::Result<()> {
    let (mut name, name_len) = Name::encode(to);
    let mut iov = parts.map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() });
    let mut control = Control([0; CONTROL_BYTES]);
    let mut control_len = 0;
    if segment != 0 {
        let word = size_of::<usize>();
        control.0[..word].copy_from_slice(&(CMSG_HEADER + 2).to_ne_bytes());
        control.0[word..word + 4].copy_from_slice(&libc::SOL_UDP.to_ne_bytes());
        control.0[word + 4..word + 8].copy_from_slice(&libc::UDP_SEGMENT.to_ne_bytes());
        control.0[CMSG_HEADER..CMSG_HEADER + 2].copy_from_slice(&segment.to_ne_bytes());
        control_len = (CMSG_HEADER + 2).next_multiple_of(word);
    }
    // SAFETY: msghdr is plain data for which all zeros is a value; the fields that matter are set below.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = name.0.as_mut_ptr().cast();
    header.msg_namelen = name_len;
    header.msg_iov = iov.as_mut_ptr();
    header.msg_iovlen = iov.len() as _;
    if control_len != 0 {
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = control_len as _;
    }
    // SAFETY: every pointer in `header` is to a local or a borrowed slice that outlives the call, with its true
    // length; sendmsg only reads through them.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Datagrams on their way out of a socket of many clients, or of a connected one.
#[derive(Clone, Copy, Debug)]
pub struct Letter<'a> {
    /// To whom; `None` on a connected socket.
    pub to: Option<SocketAddr>,
    /// The address to send from, one of this host's own; `None` lets the kernel choose.
    pub from: Option<IpAddr>,
    /// Type of service / traffic class.
    pub tos: u8,
    /// Bytes of each datagram but the last; 0 for a single one.
    pub segment: u16,
    /// The datagrams, one after the other.
    pub payload: &'a [u8],
}

/// Send a letter through a socket of IPv4 or IPv6 (where IPv4 goes out by mapped addresses). Never waits, as
/// [`send`].
pub fn post(socket: BorrowedFd<'_>, ipv6: bool, letter: &Letter<'_>) -> io::Result<()> {
    let Letter { to, from, tos, segment, payload } = *letter;
    let mut name = to.map(|to| match to {
        SocketAddr::V4(v4) if ipv6 => Name::encode(SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())),
        to => Name::encode(to),
    });
    let v4 = to.map_or(!ipv6, |to| to.is_ipv4());
    let mut control = Control([0; CONTROL_BYTES]);
    let mut control_len = 0;
    if segment != 0 {
        control.push(&mut control_len, libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
    }
    if tos != 0 {
        let (level, kind) = if v4 { (libc::SOL_IP, libc::IP_TOS) } else { (libc::SOL_IPV6, libc::IPV6_TCLASS) };
        control.push(&mut control_len, level, kind, &i32::from(tos).to_ne_bytes());
    }
    match from {
        // struct in_pktinfo: interface, source, (destination); struct in6_pktinfo: source, interface.
        Some(IpAddr::V4(from)) if v4 => {
            let mut info = [0; 12];
            info[4..8].copy_from_slice(&from.octets());
            control.push(&mut control_len, libc::SOL_IP, libc::IP_PKTINFO, &info);
        }
        Some(IpAddr::V6(from)) if !v4 => {
            let mut info = [0; 20];
            info[..16].copy_from_slice(&from.octets());
            control.push(&mut control_len, libc::SOL_IPV6, libc::IPV6_PKTINFO, &info);
        }
        _ => {}
    }
    let mut iov = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    // SAFETY: msghdr is plain data for which all zeros is a value; the fields that matter are set below.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    if let Some((name, len)) = &mut name {
        header.msg_name = name.0.as_mut_ptr().cast();
        header.msg_namelen = *len;
    }
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    if control_len != 0 {
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = control_len as _;
    }
    // SAFETY: every pointer in `header` is to a local or a borrowed slice that outlives the call, with its true
    // length; sendmsg only reads through them.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A datagram that was received.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Its sender.
    pub from: SocketAddr,
    /// The address of this host that it was sent to, when the socket was asked to say; `None` too for one that
    /// nobody can answer from.
    pub to: Option<IpAddr>,
    /// UDP payload, or, from a ping socket, an ICMP message from its type on.
    pub payload: &'a [u8],
    /// With UDP_GRO: bytes of each datagram that was joined (the last may be shorter); 0 for a single one.
    pub segment: u16,
    /// Type of service / traffic class; 0 when the socket was not asked to say.
    pub tos: u8,
    /// TTL or hop limit it came with, when the socket was asked to say.
    pub hop_limit: Option<u8>,
}

/// What the kernel said of one received message.
#[derive(Clone, Copy, Default)]
struct Meta {
    len: usize,
    control_len: usize,
    /// Bytes of each datagram that [`Batch::join`] put together here; 0 when it did not.
    joined: u16,
    /// It is part of another message now.
    gone: bool,
}

/// Buffers for recvmmsg(2), used for one socket after the other. Its megabyte is touched only as far as
/// messages reach.
pub struct Batch {
    buffer: Vec<u8>,
    names: [Name; BATCH],
    controls: [Control; BATCH],
    metas: [Meta; BATCH],
}

impl Default for Batch {
    fn default() -> Batch {
        Batch::new()
    }
}

impl Batch {
    /// Empty buffers.
    pub fn new() -> Batch {
        Batch {
            buffer: vec![0; BATCH * MESSAGE_BYTES],
            names: [Name::EMPTY; BATCH],
            controls: [Control([0; CONTROL_BYTES]); BATCH],
            metas: [Meta::default(); BATCH],
        }
    }

    /// Receive up to [`BATCH`] datagrams without waiting; fewer than that mean the socket is empty for now.
    /// WouldBlock when there is none; another error is one that had been pending on the socket, now cleared.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: mmsghdr is plain data for which all zeros is a value.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
        let mut iovs = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
        for (i, (part, iov)) in self.buffer.chunks_exact_mut(MESSAGE_BYTES).zip(&mut iovs).enumerate() {
            *iov = libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() };
            let header = &mut headers[i].msg_hdr;
            header.msg_iov = iov;
            header.msg_iovlen = 1;
            header.msg_name = self.names[i].0.as_mut_ptr().cast();
            header.msg_namelen = self.names[i].0.len() as libc::socklen_t;
            header.msg_control = self.controls[i].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL_BYTES as _;
        }
        // SAFETY: each header points to its own parts of buffers that this struct and this frame own, with their
        // true lengths; they outlive the call, and nothing else touches them meanwhile.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        let count = (count as usize).min(BATCH);
        for (meta, header) in self.metas.iter_mut().zip(&headers[..count]) {
            *meta = Meta {
                len: (header.msg_len as usize).min(MESSAGE_BYTES),
                control_len: header.msg_hdr.msg_controllen.min(CONTROL_BYTES),
                joined: 0,
                gone: false,
            };
        }
        Ok(count)
    }

    /// Put neighbours together that UDP_GRO left apart, as it does with what comes over loopback and with most of
    /// what comes from a network: of the `count` messages received last, those of one sender, one type of service
    /// and one size (the last may be shorter) become one with [`Message::segment`]. A copy of a datagram costs
    /// less than to write it to a sandbox on its own.
    pub fn join(&mut self, count: usize) {
        let mut first = 0;
        for next in 1..count.min(BATCH) {
            if !self.append(first, next) {
                first = next;
            }
        }
    }

    /// Put message `next` at the end of message `first`, if it belongs there.
    fn append(&mut self, first: usize, next: usize) -> bool {
        let (Some(a), Some(b)) = (self.message(first), self.message(next)) else { return false };
        let size = if a.segment == 0 { a.payload.len() } else { usize::from(a.segment) };
        let (have, more) = (a.payload.len(), b.payload.len());
        let whole = size > 0 && have.is_multiple_of(size);
        let alike = match b.segment {
            0 => (1..=size).contains(&more),
            segment => usize::from(segment) == size,
        };
        let (most, most_bytes) = MOST_JOINED;
        if a.from != b.from || a.to != b.to || a.tos != b.tos || !whole || !alike || have + more > most_bytes {
            return false;
        }
        if (have + more).div_ceil(size) > most {
            return false;
        }
        let at = next * MESSAGE_BYTES;
        self.buffer.copy_within(at..at + more, first * MESSAGE_BYTES + have);
        self.metas[first].len += more;
        self.metas[first].joined = size as u16; // less than 65,000
        self.metas[next].gone = true;
        true
    }

    /// One of the datagrams that [`receive`](Self::receive) counted last. `None` when its sender's address is of
    /// a family we do not know, or when it has become part of one before it.
    pub fn message(&self, index: usize) -> Option<Message<'_>> {
        let meta = self.metas.get(index).filter(|meta| !meta.gone)?;
        let at = index * MESSAGE_BYTES;
        let mut message = Message {
            from: self.names[index].decode()?,
            to: None,
            payload: &self.buffer[at..at + meta.len],
            segment: 0,
            tos: 0,
            hop_limit: None,
        };
        for (level, kind, data) in controls(&self.controls[index].0[..meta.control_len]) {
            match (level, kind) {
                (libc::SOL_UDP, libc::UDP_GRO) => message.segment = small(data).try_into().unwrap_or(0),
                (libc::SOL_IP, libc::IP_TOS) | (libc::SOL_IPV6, libc::IPV6_TCLASS) => message.tos = small(data) as u8,
                (libc::SOL_IP, libc::IP_TTL) | (libc::SOL_IPV6, libc::IPV6_HOPLIMIT) => {
                    message.hop_limit = Some(small(data) as u8);
                }
                (libc::SOL_IP, libc::IP_PKTINFO) | (libc::SOL_IPV6, libc::IPV6_PKTINFO) => {
                    message.to = destination(level, data);
                }
                _ => {}
            }
        }
        if meta.joined != 0 {
            message.segment = meta.joined;
        }
        if usize::from(message.segment) >= message.payload.len() {
            message.segment = 0;
        }
        Some(message)
    }
}

/// Where an error in the queue comes from (linux/errqueue.h, SO_EE_ORIGIN_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This host's own stack.
    Local,
    /// An ICMP message.
    Icmp,
    /// An ICMPv6 message.
    Icmp6,
    /// Anything else.
    Other,
}

/// An entry of a socket's error queue.
#[derive(Clone, Copy, Debug)]
pub struct QueuedError<'a> {
    /// Where it comes from.
    pub origin: Origin,
    /// The errno it would be.
    pub errno: i32,
    /// ICMP type.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
    /// The MTU in bytes, for packet too big; otherwise 0.
    pub info: u32,
    /// Who sent the ICMP message.
    pub offender: Option<IpAddr>,
    /// Where the datagram that met the error had been sent to.
    pub to: SocketAddr,
    /// As much of that datagram's payload as came back.
    pub payload: &'a [u8],
}

/// Take the oldest entry from a socket's error queue (recvmsg(2), MSG_ERRQUEUE). WouldBlock when it is empty;
/// `None` for an entry without the parts that make sense of it.
pub fn receive_error<'a>(socket: BorrowedFd<'_>, buffer: &'a mut [u8]) -> io::Result<Option<QueuedError<'a>>> {
    let mut name = Name::EMPTY;
    let mut control = Control([0; CONTROL_BYTES]);
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: msghdr is plain data for which all zeros is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = name.0.as_mut_ptr().cast();
    header.msg_namelen = name.0.len() as libc::socklen_t;
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL_BYTES as _;
    // SAFETY: the pointers are to locals and to the borrowed buffer, with their true lengths; all outlive the call.
    let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) };
    if len < 0 {
        return Err(io::Error::last_os_error());
    }
    let payload_len = (len as usize).min(buffer.len());
    let control_len = header.msg_controllen.min(CONTROL_BYTES);
    let Some(to) = name.decode() else { return Ok(None) };
    for (level, kind, data) in controls(&control.0[..control_len]) {
        if !matches!((level, kind), (libc::SOL_IP, libc::IP_RECVERR) | (libc::SOL_IPV6, libc::IPV6_RECVERR)) {
            continue;
        }
        // struct sock_extended_err, 16 bytes, and behind it the offender's sockaddr (AF_UNSPEC: none).
        let Some(&[e0, e1, e2, e3, origin, kind, code, _, i0, i1, i2, i3, _, _, _, _]) = data.first_chunk() else {
            continue;
        };
        return Ok(Some(QueuedError {
            origin: match origin {
                libc::SO_EE_ORIGIN_LOCAL => Origin::Local,
                libc::SO_EE_ORIGIN_ICMP => Origin::Icmp,
                libc::SO_EE_ORIGIN_ICMP6 => Origin::Icmp6,
                _ => Origin::Other,
            },
            errno: u32::from_ne_bytes([e0, e1, e2, e3]) as i32,
            kind,
            code,
            info: u32::from_ne_bytes([i0, i1, i2, i3]),
            offender: decode_sockaddr(&data[16..]).map(|a| a.ip()),
            to,
            payload: &buffer[..payload_len],
        }));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_kernels_form() {
        for address in ["192.0.2.7:53", "[2001:db8::7]:65535", "0.0.0.0:0"] {
            let address: SocketAddr = address.parse().unwrap();
            assert_eq!(Name::encode(address).0.decode(), Some(address));
        }
    }

    #[test]
    fn control_messages_that_lie_about_their_length_end_the_walk() {
        for len in [0usize, 1, CMSG_HEADER - 1, 65, usize::MAX] {
            let mut bytes = [0u8; 64];
            bytes[..size_of::<usize>()].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(controls(&bytes).count(), 0, "{len}");
        }
        assert_eq!(controls(&[1, 2, 3]).count(), 0);
        let mut bytes = [0u8; 64];
        bytes[..size_of::<usize>()].copy_from_slice(&(CMSG_HEADER + 4).to_ne_bytes());
        assert_eq!(controls(&bytes).count(), 1, "a true one is seen, the empty one behind it ends the walk");
    }
}
