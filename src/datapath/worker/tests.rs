//! A worker between two real TAP devices. Frames are put on the sandboxes' interfaces and taken from them by packet
//! sockets, so that every byte is seen, and the kernel's own stack says nothing.
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, poll};

use super::*;
use crate::datapath::commands::{EVENT_CAPACITY, Snapshot};
use crate::gateway::emit::testing::{SANDBOX_MAC, network};
use crate::plan::{LinkChoice, MacAddr, Sharing};
use crate::sandbox::link::{Settings, configure, make_link};
use crate::sys::netlink::Netlink;
use crate::sys::packet::{self, PacketRing};
use crate::sys::testing::in_namespace;
use crate::sys::vnet::{GSO_TCPV4, NEEDS_CSUM, VNET_HEADER, VnetHeader};

const A: MacAddr = SANDBOX_MAC;
const B: MacAddr = MacAddr([0x02, 0x42, 10, 0, 2, 101]);
const C: MacAddr = MacAddr([0x02, 0x42, 10, 0, 2, 102]);

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// A sandbox's side of its link.
struct Inside(PacketRing);

impl Inside {
    fn send(&self, header: VnetHeader, frame: &[u8]) -> Result<(), String> {
        let bytes = [&header.encode()[..], frame].concat();
        crate::sys::io::write(self.0.as_fd(), &bytes).map(drop).map_err(text)
    }

    /// The next frame, header in front, within five seconds.
    fn next(&mut self) -> Result<Vec<u8>, String> {
        for _ in 0..50 {
            if let Some(frame) = self.0.recv() {
                return Ok(frame.with_header.to_vec());
            }
            poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], 100u16).map_err(text)?;
        }
        Err("no frame came".to_owned())
    }

    fn is_empty(&mut self) -> bool {
        self.0.recv().is_none()
    }
}

/// Put a sandbox on the network.
fn attach(worker: &CommandSender, number: u8, mac: MacAddr) -> Result<(PortId, Inside), String> {
    let ifname = format!("tl{number}");
    let made = make_link(LinkChoice::Tap, &ifname, mac, Some(1500)).map_err(text)?;
    configure(&ifname, &Settings { mac, mtu: Some(1500), ..Settings::default() }).map_err(text)?;
    let index = Netlink::open().map_err(text)?.link(&ifname).map_err(text)?.index;
    let inside = Inside(PacketRing::from_fd(packet::open(index).map_err(text)?).map_err(text)?);
    let endpoint = Endpoint {
        id: format!("{number:012x}"),
        name: format!("s{number}"),
        mac,
        v4: Some([10, 0, 2, mac.0[5]].into()),
        ..Endpoint::default()
    };
    let network = Network { sharing: Some(Sharing { internal: false, icc: true }), v6: None, ..network(1500) };
    let (reply, answer) = oneshot::channel();
    worker
        .send(Command::AttachPort {
            endpoint: Box::new(endpoint),
            link: made.kind,
            fd: made.fd,
            capture: None,
            network: Box::new(network),
            host: HostView::default(),
            reply,
        })
        .map_err(text)?;
    let port = answer.blocking_recv().map_err(text)??;
    Ok((port, inside))
}

fn snapshot(worker: &CommandSender) -> Result<Snapshot, String> {
    let (reply, answer) = oneshot::channel();
    worker.send(Command::Snapshot { reply }).map_err(text)?;
    answer.blocking_recv().map_err(text)
}

fn detach(worker: &CommandSender, number: u8) -> Result<(), String> {
    let (reply, answer) = oneshot::channel();
    worker.send(Command::DetachPort { id: format!("{number:012x}"), reply }).map_err(text)?;
    answer.blocking_recv().map_err(text)
}

/// A frame with a TCP segment of `len` bytes.
fn tcp(from: MacAddr, to: MacAddr, len: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(from.0, to.0)
        .ipv4([10, 0, 2, from.0[5]], [10, 0, 2, to.0[5]], 64)
        .tcp(4000, 80, 1, 1000)
        .write(&mut frame, &(0..len).map(|i| i as u8).collect::<Vec<_>>())
        .unwrap();
    frame
}

fn arp(from: MacAddr, target: u8) -> Vec<u8> {
    let packet = [
        &MacAddr::BROADCAST.0[..],
        &from.0,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &from.0,
        &[10, 0, 2, from.0[5]],
        &[0; 6],
        &[10, 0, 2, target],
    ];
    packet.concat()
}

fn start() -> Result<(CommandSender, mpsc::Receiver<Event>), String> {
    let (events, receiver) = mpsc::channel(EVENT_CAPACITY);
    Ok((Worker::start(events).map_err(text)?, receiver))
}

#[test]
fn frames_go_from_sandbox_to_sandbox_as_they_are_super_segments_too() {
    in_namespace(|| {
        let (worker, _events) = start()?;
        let (a, inside_a) = attach(&worker, 0, A)?;
        let (b, mut inside_b) = attach(&worker, 1, B)?;
        let (_, mut inside_c) = attach(&worker, 2, C)?;
        assert_ne!(a, b);
        let small = tcp(A, B, 100);
        inside_a.send(VnetHeader::default(), &small)?;
        assert_eq!(inside_b.next()?[VNET_HEADER..], small);
        let header = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: GSO_TCPV4,
            hdr_len: 54,
            gso_size: 1460,
            csum_start: 34,
            csum_offset: 16,
        };
        let large = tcp(A, B, 60_000);
        inside_a.send(header, &large)?;
        let came = inside_b.next()?;
        assert_eq!(VnetHeader::decode(came.first_chunk().unwrap()), header);
        assert!(came[VNET_HEADER..] == large, "not a byte is changed");

        // A question for B reaches B; one for the gateway is answered; a lie reaches nobody.
        inside_a.send(VnetHeader::default(), &arp(A, B.0[5]))?;
        assert_eq!(inside_b.next()?[VNET_HEADER..][..42], arp(A, B.0[5]));
        inside_a.send(VnetHeader::default(), &tcp(C, B, 1))?;
        inside_a.send(VnetHeader::default(), &tcp(A, MacAddr([2, 0, 0, 0, 0, 77]), 1))?;
        // Announced to all: behind it nothing else can be on its way.
        inside_a.send(VnetHeader::default(), &arp(A, A.0[5]))?;
        for inside in [&mut inside_b, &mut inside_c] {
            assert_eq!(inside.next()?[VNET_HEADER..][..42], arp(A, A.0[5]));
            assert!(inside.is_empty());
        }
        let counted = snapshot(&worker)?;
        let dropped = |reason| counted.dropped[reason];
        assert_eq!((dropped("spoofed_mac"), dropped("unknown_station")), (1, 1), "{counted:?}");
        assert_eq!((counted.frames_in, counted.frames_out), (6, 5), "{counted:?}");
        Ok(())
    });
}

#[test]
fn a_sandbox_that_left_is_not_found_and_a_worker_that_is_stopped_ends() {
    in_namespace(|| {
        let (worker, _events) = start()?;
        let (_, inside_a) = attach(&worker, 0, A)?;
        let (b, _inside_b) = attach(&worker, 1, B)?;
        detach(&worker, 1)?;
        detach(&worker, 1)?;
        inside_a.send(VnetHeader::default(), &tcp(A, B, 1))?;
        for _ in 0..50 {
            if snapshot(&worker)?.frames_in == 1 {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(snapshot(&worker)?.dropped["unknown_station"], 1);
        let (again, mut inside_again) = attach(&worker, 3, B)?;
        assert_eq!(again, b, "the place is given to the next");
        inside_a.send(VnetHeader::default(), &tcp(A, B, 1))?;
        assert_eq!(inside_again.next()?[VNET_HEADER..], tcp(A, B, 1));
        let error = attach(&worker, 4, network(1500).gateway_mac).err().unwrap_or_default();
        assert!(error.contains("the gateway's own"), "{error}");

        worker.send(Command::Stop).map_err(text)?;
        assert!(snapshot(&worker).is_err());
        // The link went with the worker: the last descriptor was its.
        let interface = |name| Netlink::open().map_err(text)?.link(name).map(drop).map_err(text);
        for _ in 0..50 {
            if interface("tl0").is_err() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Err("the link is still there".to_owned())
    });
}
