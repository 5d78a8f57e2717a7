//! The device smoltcp sees: one packet in, frames out through [`Link`].
//!
//! smoltcp believes in a segment size of close to 64 KiB, whatever the network's MTU: the maximum segment size
//! option of a sandbox's SYN (or SYN-ACK) is raised before smoltcp sees it, and that of ours lowered to the truth on
//! its way out. So smoltcp hands over super-segments, and this device marks those larger than the true segment
//! size for segmentation (virtio-net header, TCPV4 or TCPV6). smoltcp's own segmentation offload would do for
//! IPv4, but 0.14 drops IPv6 packets larger than the MTU without looking at it.
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use super::wire;
use crate::gateway::counters::Counters;
use crate::gateway::link::{Gso, Link, Peer};
use crate::gateway::packet::ETHERNET_HEADER;
use crate::plan::MacAddr;

/// What the packets of a flow look like on the wire, and what was last said on it.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    /// Where frames go.
    pub peer: Peer,
    /// The gateway's Ethernet address.
    pub mac: MacAddr,
    /// Length of the IP header: 20 or 40.
    pub ip_header: usize,
    /// Payload bytes of a segment on the wire towards the sandbox.
    pub mss: u16,
    /// The segment size our SYN or SYN-ACK offers.
    pub our_mss: u16,
    /// Acknowledgement number last sent.
    pub last_ack: u32,
    /// Sequence number behind the last byte (or FIN) sent; `None` before the SYN-ACK.
    pub next_sequence: Option<u32>,
    /// The sandbox has too much memory: it is told of a small window only.
    pub is_pressed: bool,
}

/// Segment size that smoltcp is told: as many whole segments as fit into one frame.
pub fn super_segment(mss: u16, ip_header: usize) -> u16 {
    let mss = usize::from(mss.max(1));
    let room = 65_535 - ip_header - 20;
    (room / mss * mss).max(mss.min(room)) as u16
}

/// Capabilities of the device for one family. The IP MTU leaves the segment size to the peer's option.
pub fn capabilities() -> DeviceCapabilities {
    let mut caps = DeviceCapabilities::default();
    caps.medium = Medium::Ip;
    caps.max_transmission_unit = 65_535;
    caps.checksum.ipv4 = Checksum::Tx;
    caps.checksum.tcp = Checksum::None;
    caps
}

/// One flow's device, for the time of one call into smoltcp.
pub struct FlowDevice<'a, L> {
    /// The packet to be taken in, from its IP header on.
    pub incoming: Option<&'a [u8]>,
    /// Where frames go.
    pub wire: &'a mut Wire,
    /// The network's counters.
    pub counters: &'a mut Counters,
    /// The sandboxes' side.
    pub link: &'a mut L,
}

impl<L: Link> Device for FlowDevice<'_, L> {
    type RxToken<'t>
        = Incoming<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Outgoing<'t, L>
    where
        Self: 't;

    fn receive(&mut self, _: Instant) -> Option<(Incoming<'_>, Outgoing<'_, L>)> {
        let packet = self.incoming.take()?;
        let outgoing = Outgoing { wire: self.wire, counters: self.counters, link: self.link };
        Some((Incoming(packet), outgoing))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_, L>> {
        if !self.link.has_room(self.wire.peer.port) {
            return None;
        }
        Some(Outgoing { wire: self.wire, counters: self.counters, link: self.link })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities()
    }
}

/// The packet to be taken in.
pub struct Incoming<'t>(&'t [u8]);

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// Room for one packet.
pub struct Outgoing<'t, L> {
    wire: &'t mut Wire,
    counters: &'t mut Counters,
    link: &'t mut L,
}

impl<L: Link> TxToken for Outgoing<'_, L> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let wire = self.wire;
        let mut offload = wire::checksum_offload(wire.ip_header);
        let payload = len.saturating_sub(wire.ip_header + 20);
        if payload > usize::from(wire.mss) {
            offload.gso = if wire.ip_header == 20 { Gso::TcpV4 } else { Gso::TcpV6 };
            offload.gso_size = wire.mss;
        }
        self.counters.frames_out += 1;
        self.counters.bytes_out += (ETHERNET_HEADER + len) as u64;
        self.link.transmit(wire.peer.port, offload, ETHERNET_HEADER + len, |frame| {
            let result = wire::finish_frame(frame, wire.mac, wire.peer.mac, wire.ip_header, wire.our_mss, f);
            if wire.is_pressed {
                wire::lower_window(&mut frame[ETHERNET_HEADER + wire.ip_header..]);
            }
            if let Some((ack, sequence, length)) = wire::numbers(&frame[ETHERNET_HEADER..]) {
                wire.last_ack = ack;
                let end = sequence.wrapping_add(length);
                if wire.next_sequence.is_none_or(|next| (end.wrapping_sub(next) as i32) > 0) {
                    wire.next_sequence = Some(end);
                }
            }
            result
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn super_segments_are_whole_multiples_and_fit_a_frame() {
        for ip_header in [20, 40] {
            for mss in [1, 48, 536, 1220, 1440, 1460, 8960, 65_460, 65_480, u16::MAX] {
                let size = usize::from(super_segment(mss, ip_header));
                assert!(size + ip_header + 20 <= 65_535, "{mss}");
                assert!(size >= 1 && (size % usize::from(mss) == 0 || size < usize::from(mss)), "{mss}");
            }
        }
    }
}
