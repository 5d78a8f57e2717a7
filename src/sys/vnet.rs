//! The header in front of every frame of a TAP or a packet socket with offloads: `struct virtio_net_hdr`
//! (linux/virtio_net.h; virtio 1.2, 5.1.6), ten bytes.
//!
//! Fields are in the machine's own byte order. That is what a TAP does unless TUNSETVNETLE or TUNSETVNETBE was
//! used on it (drivers/net/tun.c, `tun_is_little_endian`), and what a packet socket always does.
//!
//! This is a view of bytes and no more: whether the fields make sense beside the frame they stand in front of
//! is judged where they are used.

/// Length of the header in bytes.
pub const VNET_HEADER: usize = 10;

/// `flags`: the checksum from `csum_start` on is still to be computed.
pub const NEEDS_CSUM: u8 = 1;
/// `flags`: whoever sent it vouches for the checksum.
pub const DATA_VALID: u8 = 2;
/// `gso_type`: an ordinary frame.
pub const GSO_NONE: u8 = 0;
/// `gso_type`: a TCP super-segment over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// `gso_type`: a TCP super-segment over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// `gso_type`: several UDP datagrams in one (USO).
pub const GSO_UDP_L4: u8 = 5;
/// Bit of `gso_type`: CWR is set and belongs to the first segment only (RFC 3168).
pub const GSO_ECN: u8 = 0x80;

/// The fields of the header, as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// [`NEEDS_CSUM`], [`DATA_VALID`].
    pub flags: u8,
    /// [`GSO_NONE`] and its like, perhaps with [`GSO_ECN`].
    pub gso_type: u8,
    /// Length of all headers in bytes; a hint.
    pub hdr_len: u16,
    /// Payload bytes of each segment of a super-segment.
    pub gso_size: u16,
    /// First byte that the checksum covers, from the start of the Ethernet header.
    pub csum_start: u16,
    /// Where the checksum field is, from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Read the fields.
    pub fn decode(bytes: &[u8; VNET_HEADER]) -> VnetHeader {
        let &[flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = bytes;
        VnetHeader {
            flags,
            gso_type,
            hdr_len: u16::from_ne_bytes([h0, h1]),
            gso_size: u16::from_ne_bytes([g0, g1]),
            csum_start: u16::from_ne_bytes([s0, s1]),
            csum_offset: u16::from_ne_bytes([o0, o1]),
        }
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; VNET_HEADER] {
        let [h0, h1] = self.hdr_len.to_ne_bytes();
        let [g0, g1] = self.gso_size.to_ne_bytes();
        let [s0, s1] = self.csum_start.to_ne_bytes();
        let [o0, o1] = self.csum_offset.to_ne_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let header = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: GSO_TCPV6 | GSO_ECN,
            hdr_len: 74,
            gso_size: 1440,
            csum_start: 54,
            csum_offset: 16,
        };
        assert_eq!(VnetHeader::decode(&header.encode()), header);
    }

    #[test]
    fn layout_is_the_kernels() {
        let bytes =
            VnetHeader { flags: 1, gso_type: 4, hdr_len: 0x0102, gso_size: 3, csum_start: 4, csum_offset: 5 }.encode();
        assert_eq!(bytes[..2], [1, 4]);
        assert_eq!(bytes[2..4], 0x0102u16.to_ne_bytes());
        assert_eq!(bytes[4..6], 3u16.to_ne_bytes());
        assert_eq!(bytes[6..8], 4u16.to_ne_bytes());
        assert_eq!(bytes[8..], 5u16.to_ne_bytes());
    }
}
