//! The virtio-net header and what is made of it.
#![no_main]
use libfuzzer_sys::fuzz_target;
use tapline::fuzzing;
use tapline::gateway::link::Gso;
use tapline::sys::vnet::VnetHeader;

fuzz_target!(|input: ([u8; 10], u16)| {
    let (bytes, length) = (input.0, usize::from(input.1));
    let header = VnetHeader::decode(&bytes);
    assert_eq!(header.encode(), bytes);
    let Some(offload) = fuzzing::offload(&header, length) else { return };
    assert_eq!(offload.gso == Gso::None, offload.gso_size == 0);
    if offload.needs_csum {
        assert!(usize::from(offload.csum_start) + usize::from(offload.csum_offset) + 2 <= length);
    }
    // What is passed on to another port says the same, but for what only its sender may vouch for.
    let again = fuzzing::header(&offload, length);
    let back = fuzzing::offload(&again, length).expect("what we write we read");
    assert!(usize::from(again.hdr_len) <= length);
    let expected = tapline::gateway::link::Offload { csum_valid: false, hdr_len: again.hdr_len, ..offload };
    assert_eq!(back, expected);
});
