//! Descriptors of the wrong kind, in the wrong state, of the wrong side.
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

use super::super::check::{check_capture, check_listener, check_sent_link};
use super::*;

fn why(outcome: io::Result<()>) -> String {
    outcome.expect_err("it is none of that").to_string()
}

fn unix(kind: Type) -> Socket {
    Socket::new(Domain::UNIX, kind, None).unwrap()
}

#[test]
fn only_a_tap_or_a_packet_socket_of_a_sandbox_is_a_link() {
    let device: OwnedFd = File::open("/dev/null").unwrap().into();
    assert!(why(check_link(LinkKind::Tap, &device)).contains("/dev/net/tun"));
    assert!(why(check_link(LinkKind::PlainTap, &file())).contains("/dev/net/tun"));
    let directory: OwnedFd = File::open("/dev/net").unwrap().into();
    assert!(why(check_link(LinkKind::Tap, &directory)).contains("/dev/net/tun"));
    let datagram: OwnedFd = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap().into();
    assert!(why(check_link(LinkKind::Packet, &datagram)).contains("another kind of socket"));
    assert!(why(check_link(LinkKind::None, &datagram)).contains("none"));
    let packet = || Ok(vec![Socket::new(Domain::PACKET, Type::RAW, None).map_err(|e| e.to_string())?.into()]);
    let sandboxes = from_elsewhere(packet).remove(0);
    check_sent_link(LinkKind::Packet, &sandboxes).unwrap();
    assert!(Socket::from(sandboxes.try_clone().unwrap()).nonblocking().unwrap(), "whoever reads it must not wait");
    // The same, when it is the host's: its frames are everybody's.
    crate::sys::testing::in_namespace(|| {
        let own = packet()?.remove(0);
        match check_sent_link(LinkKind::Packet, &own) {
            Err(error) if error.to_string().contains("the host's own network") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let message = || ToGateway::Attach {
        link: LinkKind::Packet,
        network: info().network,
        endpoint: info().endpoint,
        host: info().host,
        api: false,
        capture: false,
    };
    let [here, _] = crate::sys::testing::pair_elsewhere();
    let request = |link: OwnedFd, home| Request::check(message(), vec![link], check_link, home).map(drop);
    request(sandboxes.try_clone().unwrap(), Home::of(&here)).unwrap();
    crate::sys::testing::in_namespace(|| match request(packet()?.remove(0), Home::here()) {
        Err(said) if said.contains("is not a packet socket: it belongs to the host's own network") => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
fn only_a_file_that_is_written_at_its_end_and_not_read_takes_a_capture() {
    let path = std::env::temp_dir().join(format!("tapline-check-capture-{}", std::process::id()));
    let open = |options: &mut OpenOptions| OwnedFd::from(options.open(&path).unwrap());
    let good = open(OpenOptions::new().append(true).create(true).mode(0o600));
    check_capture(&good).unwrap();
    assert!(why(check_capture(&open(OpenOptions::new().append(true).read(true)))).contains("for reading too"));
    assert!(why(check_capture(&open(OpenOptions::new().write(true)))).contains("not open for appending"));
    assert!(why(check_capture(&open(OpenOptions::new().read(true)))).contains("not open for appending"));
    std::fs::remove_file(&path).unwrap();
    let other = |path: &str| OwnedFd::from(OpenOptions::new().append(true).open(path).unwrap());
    assert!(why(check_capture(&other("/dev/null"))).contains("no ordinary file"));
    let directory: OwnedFd = File::open("/tmp").unwrap().into();
    assert!(why(check_capture(&directory)).contains("no ordinary file"));
    let (_, pipe) = io::pipe().unwrap();
    assert!(why(check_capture(&pipe.into())).contains("no ordinary file"));
}

#[test]
fn a_connection_has_another_end_and_a_place_to_listen_has_a_name() {
    let (one, _other) = scm::pair().unwrap();
    check_attach(&one).unwrap();
    assert!(why(check_listener(&one)).contains("bound to no place"));
    let alone: OwnedFd = unix(Type::SEQPACKET).into();
    assert!(why(check_attach(&alone)).contains("nobody is at its other end"));
    assert!(why(check_listener(&alone)).contains("bound to no place"));
    let name = socket2::SockAddr::unix(format!("\0tapline-check-{}", std::process::id())).unwrap();
    let bound = unix(Type::SEQPACKET);
    bound.bind(&name).unwrap();
    bound.listen(1).unwrap();
    let client: OwnedFd = {
        let client = unix(Type::SEQPACKET);
        client.connect(&name).unwrap();
        client.into()
    };
    let accepted: OwnedFd = bound.accept().unwrap().0.into();
    let bound: OwnedFd = bound.into();
    check_listener(&bound).unwrap();
    assert!(why(check_attach(&bound)).contains("nobody"));
    check_attach(&client).unwrap();
    // It has its listener's name, and is none.
    assert!(why(check_listener(&accepted)).contains("it is connected"));
    for wrong in [file(), unix(Type::STREAM).into(), unix(Type::DGRAM).into()] {
        assert!(check_attach(&wrong).is_err() && check_listener(&wrong).is_err());
    }
}

#[test]
fn an_api_socket_listens_and_whoever_serves_it_does_not_wait() {
    let (path, listener) = api_socket("check");
    listener.set_nonblocking(false).unwrap();
    let listener = OwnedFd::from(listener);
    let bench = Bench::attached(None);
    let hand = |fds: &[std::os::fd::BorrowedFd<'_>]| {
        wire::send(bench.supervisor.as_ref().unwrap(), &ToGateway::Api, fds).unwrap();
    };
    hand(&[listener.as_fd()]);
    let (status, _) = http(&path, "GET /v1/sandboxes");
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(Socket::from(listener).nonblocking().unwrap());
    let (connected, _other) = UnixStream::pair().unwrap();
    let silent = unix(Type::STREAM);
    for (fds, what) in [
        (vec![], "0 descriptors"),
        (vec![connected.as_fd()], "another kind"),
        (vec![silent.as_fd()], "another kind"),
        (vec![unix(Type::SEQPACKET).as_fd()], "another kind"),
    ] {
        hand(&fds);
        match bench.said() {
            Some(FromGateway::Notice { text }) => assert!(text.contains(what), "{text}"),
            other => panic!("{other:?}"),
        }
    }
    bench.end();
    std::fs::remove_file(path).unwrap();
}
