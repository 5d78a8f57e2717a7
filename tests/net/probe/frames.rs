//! Frames that no honest stack sends, through a packet socket.
use std::os::fd::{AsRawFd, OwnedFd};

use etherparse::{IpNumber, Ipv4Header, PacketBuilder};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use tapline::sys::netlink::Netlink;
use tapline::sys::packet;

const SANDBOX: [u8; 4] = [10, 0, 2, 100];
const GATEWAY: [u8; 4] = [10, 0, 2, 2];

/// The segment as this sandbox sees it.
struct Wire {
    socket: OwnedFd,
    own: [u8; 6],
    gateway: [u8; 6],
}

impl Wire {
    fn open() -> Result<Wire, String> {
        let link = Netlink::open().and_then(|mut n| n.link("tap0")).map_err(|e| e.to_string())?;
        // A datagram makes the kernel ask for the gateway's address.
        let _ = super::udp_echo("10.0.2.2:9", 1);
        let table = std::fs::read_to_string("/proc/net/arp").map_err(|e| e.to_string())?;
        let row = table.lines().find(|l| l.starts_with("10.0.2.2 ")).ok_or("the gateway has no MAC")?;
        let text = row.split_whitespace().nth(3).ok_or("a MAC")?;
        let bytes: Vec<u8> = text.split(':').filter_map(|b| u8::from_str_radix(b, 16).ok()).collect();
        let socket = packet::open(link.index).map_err(|e| e.to_string())?;
        let gateway = bytes.try_into().map_err(|_| format!("{text} is no MAC"))?;
        Ok(Wire { socket, own: link.mac.ok_or("tap0 has a MAC")?, gateway })
    }

    fn send(&self, frame: &[u8]) -> Result<(), String> {
        loop {
            match send(self.socket.as_raw_fd(), frame, MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::EAGAIN | Errno::ENOBUFS) => {
                    use std::os::fd::AsFd;
                    let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
                    poll(&mut fds, PollTimeout::from(100u8)).map_err(|e| e.to_string())?;
                }
                Err(error) => return Err(format!("a frame of {} bytes: {error}", frame.len())),
            }
        }
    }

    fn templates(&self) -> Vec<Vec<u8>> {
        let v4 = || PacketBuilder::ethernet2(self.own, self.gateway).ipv4(SANDBOX, GATEWAY, 64);
        let v6 = || {
            let (mut from, mut to) = ([0; 16], [0; 16]);
            (from[0], from[14], from[15], to[0], to[15]) = (0xfd, 1, 0, 0xfd, 2);
            PacketBuilder::ethernet2(self.own, self.gateway).ipv6(from, to, 64)
        };
        let payload: Vec<u8> = super::pattern(60);
        let mut frames: Vec<Vec<u8>> = Vec::new();
        let mut add = |write: &dyn Fn(&mut Vec<u8>)| {
            let mut frame = Vec::new();
            write(&mut frame);
            frames.push(frame);
        };
        let put = "a vector takes everything";
        add(&|f| v4().udp(1000, 9).write(f, &payload).expect(put));
        add(&|f| v4().udp(68, 67).write(f, &payload).expect(put));
        add(&|f| v4().udp(1000, 53).write(f, &payload).expect(put));
        add(&|f| v4().tcp(1000, 9, 1, 1000).syn().write(f, &[]).expect(put));
        add(&|f| v4().tcp(1000, 9, 1, 1000).ack(7).write(f, &payload).expect(put));
        add(&|f| v4().icmpv4_echo_request(1, 2).write(f, &payload).expect(put));
        add(&|f| v6().udp(1000, 9).write(f, &payload).expect(put));
        add(&|f| v6().tcp(1000, 9, 1, 1000).syn().write(f, &[]).expect(put));
        add(&|f| v6().icmpv6_echo_request(1, 2).write(f, &payload).expect(put));
        // Neighbour solicitation, router solicitation, packet too big.
        for kind in [135, 133, 2] {
            add(&|f| v6().icmpv6_raw(kind, 0, [0; 4]).write(f, &payload).expect(put));
        }
        add(&|f| {
            f.extend([[0xff; 6], self.own].concat());
            f.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
            f.extend([&self.own[..], &SANDBOX, &[0; 6], &GATEWAY].concat());
        });
        add(&|f| f.extend(self.fragment(1, true, 0, &payload[..24])));
        frames
    }

    /// A fragment of a UDP datagram; `offset` in bytes.
    fn fragment(&self, id: u16, more: bool, offset: u16, payload: &[u8]) -> Vec<u8> {
        let mut ip = Ipv4Header::new(payload.len() as u16, 64, IpNumber::UDP, SANDBOX, GATEWAY).expect("it is short");
        ip.identification = id;
        ip.dont_fragment = false;
        ip.more_fragments = more;
        ip.fragment_offset = (offset / 8).try_into().expect("it is small");
        ip.header_checksum = ip.calc_header_checksum();
        let mut frame = [self.gateway, self.own].concat();
        frame.extend([8, 0]);
        ip.write(&mut frame).expect("a vector takes everything");
        frame.extend(payload);
        frame
    }
}

/// So many frames: honest ones with bytes changed, cut off, or of noise.
pub fn malformed(count: usize) -> Result<String, String> {
    let wire = Wire::open()?;
    let templates = wire.templates();
    // xorshift64 (Marsaglia): the same frames each time.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as usize % below
    };
    for template in &templates {
        for length in 14..template.len() {
            wire.send(&template[..length])?;
        }
    }
    for _ in 0..count {
        let mut frame = templates[random(templates.len())].clone();
        for _ in 0..=random(4) {
            // The addresses of the frame itself are mostly right, or little would be looked at.
            let at = if random(50) == 0 { random(frame.len()) } else { 12 + random(frame.len() - 12) };
            frame[at] = random(256) as u8;
        }
        match random(8) {
            0 => frame.truncate(14 + random(frame.len() - 14)),
            1 => (0..random(1400)).for_each(|_| frame.push(random(256) as u8)),
            2 => frame[14..].iter_mut().for_each(|b| *b = random(256) as u8),
            _ => {}
        }
        wire.send(&frame)?;
    }
    Ok(format!("{count} sent"))
}

/// Two fragments, the second of which changes bytes of the first.
pub fn overlap() -> Result<String, String> {
    let wire = Wire::open()?;
    wire.send(&wire.fragment(77, true, 0, &[1; 24]))?;
    wire.send(&wire.fragment(77, false, 16, &[2; 24]))?;
    Ok("sent".into())
}
