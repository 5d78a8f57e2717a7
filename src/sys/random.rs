//! The kernel's random source.

/// `N` random bytes (getrandom(2)). Waits only before the source is ready, early at boot.
pub fn bytes<const N: usize>() -> [u8; N] {
    const { assert!(N <= 256, "larger requests may be answered in part") };
    let mut bytes = [0; N];
    loop {
        // SAFETY: the kernel writes at most `N` bytes into a buffer of `N` bytes.
        let had = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), N, 0) };
        // Up to 256 bytes come whole; a signal can interrupt only the wait for the source to be ready.
        if usize::try_from(had) == Ok(N) {
            return bytes;
        }
    }
}

/// A random 16-bit number.
pub fn u16() -> u16 {
    u16::from_ne_bytes(bytes())
}

#[cfg(test)]
mod tests {
    #[test]
    fn two_draws_differ() {
        assert_ne!(super::bytes::<16>(), super::bytes::<16>());
    }
}
