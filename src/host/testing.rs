//! What tests of host sockets share: a network namespace to be alone in.
use std::process::Command;

/// Run a test again, alone, in user and network namespaces of its own whose `lo` is up with this MTU; `true`
/// when that was done (and went well), `false` inside.
pub fn in_namespace(test: &str, mtu: u32) -> bool {
    const INSIDE: &str = "TAPLINE_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        loopback_up(mtu);
        return false;
    }
    let status = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed in its namespace");
    true
}

/// RTM_NEWLINK for interface 1 with IFF_UP and IFLA_MTU (rtnetlink(7)).
fn loopback_up(mtu: u32) {
    let mut message = [0u8; 40];
    message[0..4].copy_from_slice(&40u32.to_ne_bytes());
    message[4..6].copy_from_slice(&libc::RTM_NEWLINK.to_ne_bytes());
    message[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    message[20..24].copy_from_slice(&1i32.to_ne_bytes());
    message[24..28].copy_from_slice(&(libc::IFF_UP as u32).to_ne_bytes());
    message[28..32].copy_from_slice(&(libc::IFF_UP as u32).to_ne_bytes());
    message[32..34].copy_from_slice(&8u16.to_ne_bytes());
    message[34..36].copy_from_slice(&libc::IFLA_MTU.to_ne_bytes());
    message[36..40].copy_from_slice(&mtu.to_ne_bytes());
    let netlink = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_ROUTE).unwrap();
    netlink.send_to(&message, &netlink_sys::SocketAddr::new(0, 0), 0).unwrap();
}
