//! Ethernet addresses.
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A 48-bit Ethernet address (IEEE 802), printed as `02:42:0a:00:02:64`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MacAddr(pub [u8; 6]);

/// Why a text is not an Ethernet address that an interface can have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MacError {
    /// Not six pairs of hexadecimal digits separated by `:` or `-`.
    #[error("`{0}` is not an Ethernet address: six pairs of hexadecimal digits are needed, like 02:42:0a:00:02:64")]
    Malformed(String),
    /// The group bit (the lowest of the first byte) is set.
    #[error(
        "`{0}` has the multicast bit set (the first byte is odd), no interface can have it: use an even first byte, like 02"
    )]
    Multicast(String),
    /// All bits zero.
    #[error("`{0}` is all zeros, no interface can have it: use one like 02:42:0a:00:02:64")]
    Zero(String),
}

impl MacAddr {
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);

    /// The address Docker would derive: `02:42:` and the four bytes of the IPv4 address, so that a reused
    /// address never meets a stale ARP entry.
    pub const fn from_ipv4(ip: Ipv4Addr) -> MacAddr {
        let [a, b, c, d] = ip.octets();
        MacAddr([0x02, 0x42, a, b, c, d])
    }

    /// Likewise, from the last four bytes of an IPv6 address.
    pub const fn from_ipv6(ip: Ipv6Addr) -> MacAddr {
        let o = ip.octets();
        MacAddr([0x02, 0x42, o[12], o[13], o[14], o[15]])
    }

    /// Broadcast or multicast: the group bit is set.
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// The link-local IPv6 address with the modified EUI-64 identifier of this address (RFC 4291, appendix A).
    pub const fn link_local(self) -> Ipv6Addr {
        let m = self.0;
        Ipv6Addr::from_octets([0xfe, 0x80, 0, 0, 0, 0, 0, 0, m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]])
    }

    /// The address that its owner makes itself in a subnet that is advertised: with the same identifier (RFC 4862, 5.5.3).
    pub fn address_in(self, subnet: ipnet::Ipv6Net) -> Ipv6Addr {
        let identifier = u128::from(self.link_local()) & u128::from(u64::MAX);
        Ipv6Addr::from(u128::from(subnet.network()) | identifier)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for MacAddr {
    type Err = MacError;

    fn from_str(text: &str) -> Result<MacAddr, MacError> {
        let malformed = || MacError::Malformed(text.to_owned());
        let mut bytes = [0u8; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(malformed)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(malformed());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| malformed())?;
        }
        if parts.next().is_some() {
            return Err(malformed());
        }
        match MacAddr(bytes) {
            mac if mac.0 == [0; 6] => Err(MacError::Zero(text.to_owned())),
            mac if mac.is_group() => Err(MacError::Multicast(text.to_owned())),
            mac => Ok(mac),
        }
    }
}

impl serde::Serialize for MacAddr {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for MacAddr {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<MacAddr, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_prints() {
        let mac: MacAddr = "02:42:0a:00:02:64".parse().unwrap();
        assert_eq!(mac, MacAddr::from_ipv4(Ipv4Addr::new(10, 0, 2, 100)));
        assert_eq!(mac.to_string(), "02:42:0a:00:02:64");
        assert_eq!("02-42-0A-00-02-64".parse(), Ok(mac));
    }

    #[test]
    fn refuses_what_no_interface_can_have() {
        assert!(matches!("03:42:0a:00:02:64".parse::<MacAddr>(), Err(MacError::Multicast(_))));
        assert!(matches!("00:00:00:00:00:00".parse::<MacAddr>(), Err(MacError::Zero(_))));
        for bad in ["", "02", "02:42:0a:00:02", "02:42:0a:00:02:64:00", "2:42:0a:00:02:64", "02:42:0a:00:02:+4"] {
            assert!(matches!(bad.parse::<MacAddr>(), Err(MacError::Malformed(_))), "{bad}");
        }
    }

    #[test]
    fn link_local_is_modified_eui64() {
        let mac: MacAddr = "02:42:0a:00:02:64".parse().unwrap();
        assert_eq!(mac.link_local().to_string(), "fe80::42:aff:fe00:264");
        assert_eq!(mac.address_in("fd00::/64".parse().unwrap()).to_string(), "fd00::42:aff:fe00:264");
    }
}
