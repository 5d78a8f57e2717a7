//! What the fuzz targets (`fuzz/`) need of the inside. No part of the library's interface.
use crate::datapath::port;
use crate::gateway::link::Offload;
use crate::sys::vnet::VnetHeader;

/// What a virtio-net header says of its frame of `length` bytes; `None` when it cannot be.
pub fn offload(header: &VnetHeader, length: usize) -> Option<Offload> {
    port::offload(header, length).ok()
}

/// The virtio-net header that says this.
pub fn header(offload: &Offload, length: usize) -> VnetHeader {
    port::header(offload, length)
}
