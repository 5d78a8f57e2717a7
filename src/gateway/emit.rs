//! Frames that the gateway writes itself: Ethernet, IP and UDP headers, fragmentation.
