//! What the gateway counts. A frame that is dropped has a [`DropReason`], which is also the metric's label.

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident => $label:literal,)+) => {
        /// Why a frame from a sandbox went no further.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum DropReason { $($(#[$doc])* $name,)+ }

        impl DropReason {
            /// Every reason there is.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$name,)+];

            /// The metric's label.
            pub const fn label(self) -> &'static str {
                match self { $(DropReason::$name => $label,)+ }
            }
        }
    };
}

reasons! {
    /// Shorter than its headers say, or a field that contradicts another.
    Malformed => "malformed",
    /// A checksum that should have been right was not.
    Checksum => "checksum",
    /// Neither ARP, IPv4 nor IPv6.
    EtherType => "ethertype",
    /// Addressed to a MAC that is not the gateway's.
    NotForUs => "not_for_us",
    /// The source address is not one the sandbox may use.
    Spoofed => "spoofed",
    /// The Ethernet source is not the sandbox's own.
    SpoofedMac => "spoofed_mac",
    /// ARP or neighbor discovery that claims an address that is not the sandbox's own.
    SpoofedNeighbor => "spoofed_neighbor",
    /// A router advertisement, a redirect or an answer of a DHCP server, from a sandbox to others.
    RogueServer => "rogue_server",
    /// Addressed to an Ethernet address that nobody on the network has.
    UnknownStation => "unknown_station",
    /// From a sandbox to another that it does not reach: the network's sandboxes are kept apart, and no link opens it.
    Isolated => "isolated",
    /// Broadcast and multicast faster than a sandbox may send it to the others.
    Storm => "storm",
    /// The kernel of the sandbox it was for would not take it.
    LinkRefused => "link_refused",
    /// Multicast or broadcast, which nobody answers on this network.
    Multicast => "multicast",
    /// A protocol above IP that the gateway does not carry.
    Protocol => "protocol",
    /// The family is switched off on this network.
    Family => "family",
    /// A service or protocol that is switched off on this network.
    Disabled => "disabled",
    /// The policy refuses the destination (answered with ICMP).
    Refused => "refused",
    /// A fragment that overlaps another of the same datagram.
    FragmentOverlap => "fragment_overlap",
    /// Too many, too large or too old unfinished datagrams.
    FragmentLimit => "fragment_limit",
    /// A datagram whose fragments did not all come in time.
    FragmentTimeout => "fragment_timeout",
    /// Hop limit used up (answered with ICMP).
    HopLimit => "hop_limit",
    /// More half-open TCP connections than allowed.
    HalfOpenLimit => "half_open_limit",
    /// More flows than allowed or no descriptor left.
    FlowLimit => "flow_limit",
    /// A TCP segment that belongs to no flow (answered with RST).
    NoFlow => "no_flow",
    /// The host would not send it.
    HostError => "host_error",
    /// The host's socket had no room, or the sandbox's link had none.
    NoRoom => "no_room",
    /// An answer from somebody the sandbox had not written to (RFC 4787 REQ-8).
    Unsolicited => "unsolicited",
    /// Ping outside, where the host allows no ping sockets.
    PingClosed => "ping_closed",
    /// DNS queries faster than they are answered.
    DnsOverload => "dns_overload",
    /// An ICMP error kept back by the rate limit.
    RateLimited => "rate_limited",
    /// An ICMP error about something the gateway had sent; nothing follows from it.
    IcmpError => "icmp_error",
}

/// Counters of one network's gateway.
#[derive(Clone, Debug)]
pub struct Counters {
    /// Frames that came from sandboxes.
    pub frames_in: u64,
    /// Bytes of those frames, Ethernet header included.
    pub bytes_in: u64,
    /// Frames sent to sandboxes.
    pub frames_out: u64,
    /// Bytes of those.
    pub bytes_out: u64,
    /// TCP flows begun since the start.
    pub tcp_flows: u64,
    /// UDP flows begun since the start.
    pub udp_flows: u64,
    /// DNS queries taken.
    pub dns_queries: u64,
    dropped: [u64; DropReason::ALL.len()],
}

impl Default for Counters {
    fn default() -> Counters {
        Counters {
            frames_in: 0,
            bytes_in: 0,
            frames_out: 0,
            bytes_out: 0,
            tcp_flows: 0,
            udp_flows: 0,
            dns_queries: 0,
            dropped: [0; DropReason::ALL.len()],
        }
    }
}

impl Counters {
    /// Count a dropped frame.
    pub fn drop(&mut self, reason: DropReason) {
        self.dropped[reason as usize] += 1;
    }

    /// Count several dropped frames.
    pub fn drop_many(&mut self, reason: DropReason, frames: u64) {
        self.dropped[reason as usize] += frames;
    }

    /// How many frames were dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_page_names_every_reason() {
        let page = include_str!("../../man/tapline-api.7").replace('\\', "");
        for reason in DropReason::ALL {
            assert!(page.contains(&format!("fB{}fR", reason.label())), "{}", reason.label());
        }
    }
}
