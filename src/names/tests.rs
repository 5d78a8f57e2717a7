//! The forwarder against resolvers on loopback that behave and misbehave.
use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Instant;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType, rdata};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::oneshot;

use super::*;

mod hostile;

const STEP: Duration = Duration::from_millis(250);
const TIMING: Timing = Timing { step: STEP, total: Duration::from_millis(2250), dead: Duration::from_secs(60) };
/// Longer than anything here should take, shorter than a person's patience.
const PATIENCE: Duration = Duration::from_secs(10);

fn forwarder(resolvers: &[SocketAddr]) -> Forwarder {
    let local_names = vec![("host.tapline.internal".into(), "10.0.2.2".parse().unwrap())];
    let network = Network { local_names, ..crate::fuzzing::network() };
    let host = HostView { resolvers: resolvers.to_vec(), ..HostView::default() };
    Names::default().forwarder_with_timing(&network, &Endpoint::default(), &host, TIMING)
}

fn query(id: u16, name: &str, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(Name::from_ascii(name).unwrap(), RecordType::A));
    if let Some(size) = edns {
        let mut opt = Edns::new();
        opt.set_max_payload(size);
        message.set_edns(opt);
    }
    message.to_vec().unwrap()
}

/// An answer to `query` with addresses 192.0.2.0 to 192.0.2.`count`.
fn answer(query: &[u8], count: u16, code: ResponseCode) -> Vec<u8> {
    let mut message = Message::from_vec(query).unwrap();
    message.metadata.message_type = MessageType::Response;
    message.metadata.response_code = code;
    let name = message.queries[0].name().clone();
    for n in 0..count {
        let [high, low] = n.to_be_bytes();
        message.add_answer(Record::from_rdata(name.clone(), 60, RData::A(rdata::A::new(192, 0, 2 + high, low))));
    }
    message.to_vec().unwrap()
}

async fn ask(forwarder: &Forwarder, message: Vec<u8>) -> Vec<u8> {
    let (reply, answer) = oneshot::channel();
    forwarder.handle_query(message, |answer| reply.send(answer).unwrap());
    timeout(PATIENCE, answer).await.unwrap().expect("an answer, not silence")
}

fn code(answer: &[u8]) -> ResponseCode {
    Message::from_vec(answer).unwrap().metadata.response_code
}

/// A resolver that answers each query with what `handler` makes of it, if anything.
async fn resolver(mut handler: impl FnMut(&[u8]) -> Option<Vec<u8>> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
            if let Some(answer) = handler(&buffer[..len]) {
                socket.send_to(&answer, from).await.unwrap();
            }
        }
    });
    address
}

async fn good(addresses: u16) -> SocketAddr {
    resolver(move |query| Some(answer(query, addresses, ResponseCode::NoError))).await
}

/// A port that nobody listens at.
async fn closed() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn who_has_just_left_an_internal_network_asks_nobody_outside_either() {
    let host = HostView { resolvers: vec![good(1).await], ..HostView::default() };
    let endpoint = Endpoint { id: "0123456789ab".into(), name: "web".into(), ..Endpoint::default() };
    for internal in [true, false] {
        let sharing = Some(crate::plan::Sharing { internal, icc: true });
        let network = Network { sharing, ..crate::fuzzing::network() };
        let names = Names::default();
        let forwarder = names.forwarder_with_timing(&network, &endpoint, &host, TIMING);
        names.attach(1, &network, &endpoint);
        let outcome = if internal { ResponseCode::NXDomain } else { ResponseCode::NoError };
        assert_eq!(code(&ask(&forwarder, query(1, "secret.example.", None)).await), outcome);
        names.detach(1);
        assert_eq!(code(&ask(&forwarder, query(2, "secret.example.", None)).await), ResponseCode::NXDomain);
    }
}

#[tokio::test]
async fn messages_pass_as_they_are_but_for_the_id() {
    // An unknown type (65280), an unknown EDNS option (65001), and an answer that only its maker understands.
    let tail = b"\x03www\x07ExAmPle\x03org\x00\xff\x00\x00\x01";
    let mut message = b"\x12\x34\x01\x20\x00\x01\x00\x00\x00\x00\x00\x01".to_vec();
    message.extend_from_slice(tail);
    message.extend_from_slice(b"\x00\x00\x29\x10\x00\x00\x00\x80\x00\x00\x06\xfd\xe9\x00\x02hi");
    let strange = b"\xc0\x0c\xff\x00\x00\x01\x00\x00\x00\x3c\x00\x03\x00\xff\x01";
    let seen = message.clone();
    let upstream = resolver(move |query| {
        assert_eq!(query[2..], seen[2..]);
        let mut answer = query[..2].to_vec();
        answer.extend_from_slice(b"\x85\xb0\x00\x01\x00\x01\x00\x00\x00\x00");
        answer.extend_from_slice(tail);
        answer.extend_from_slice(strange);
        Some(answer)
    })
    .await;
    let got = ask(&forwarder(&[upstream]), message).await;
    assert_eq!(got[..4], *b"\x12\x34\x85\xb0");
    assert!(got.ends_with(strange));
}

#[tokio::test]
async fn a_silent_resolver_is_passed_over_and_remembered() {
    let silent = resolver(|_| None).await;
    let forwarder = forwarder(&[silent, good(1).await]);
    let begun = Instant::now();
    assert_eq!(code(&ask(&forwarder, query(1, "a.example.", None)).await), ResponseCode::NoError);
    assert!(begun.elapsed() >= STEP);
    let begun = Instant::now();
    assert_eq!(code(&ask(&forwarder, query(2, "b.example.", None)).await), ResponseCode::NoError);
    assert!(begun.elapsed() < STEP, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_late_answer_of_a_slow_resolver_still_counts() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let slow = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
        tokio::time::sleep(STEP * 2).await;
        socket.send_to(&answer(&buffer[..len], 3, ResponseCode::NoError), from).await.unwrap();
    });
    let silent = resolver(|_| None).await;
    let got = ask(&forwarder(&[slow, silent]), query(1, "a.example.", None)).await;
    assert_eq!(Message::from_vec(&got).unwrap().answers.len(), 3);
}

#[tokio::test]
async fn the_next_one_is_asked_at_once_when_one_fails() {
    for failing in [
        resolver(|query| Some(answer(query, 0, ResponseCode::ServFail))).await,
        resolver(|query| Some(answer(query, 0, ResponseCode::Refused))).await,
        closed().await,
    ] {
        let begun = Instant::now();
        let got = ask(&forwarder(&[failing, good(1).await]), query(1, "a.example.", None)).await;
        assert_eq!(code(&got), ResponseCode::NoError);
        assert!(begun.elapsed() < STEP);
    }
}

#[tokio::test]
async fn nxdomain_is_an_answer() {
    let nxdomain = resolver(|query| Some(answer(query, 0, ResponseCode::NXDomain))).await;
    let got = ask(&forwarder(&[nxdomain, good(1).await]), query(1, "a.example.", None)).await;
    assert_eq!(code(&got), ResponseCode::NXDomain);
}

#[tokio::test]
async fn when_all_fail_the_first_failure_is_passed_on() {
    let refuses = resolver(|query| Some(answer(query, 0, ResponseCode::Refused))).await;
    let fails = resolver(|query| Some(answer(query, 0, ResponseCode::ServFail))).await;
    assert_eq!(code(&ask(&forwarder(&[refuses, fails]), query(1, "a.example.", None)).await), ResponseCode::Refused);
}

#[tokio::test]
async fn without_a_resolver_the_answer_is_servfail_at_once() {
    for resolvers in [vec![], vec![closed().await, closed().await]] {
        let begun = Instant::now();
        let got = ask(&forwarder(&resolvers), query(0x4242, "a.example.", Some(1232))).await;
        let message = Message::from_vec(&got).unwrap();
        assert_eq!((message.metadata.id, message.metadata.response_code), (0x4242, ResponseCode::ServFail));
        assert!(message.edns.is_some());
        assert!(begun.elapsed() < STEP);
    }
}

#[tokio::test]
async fn when_all_are_silent_the_answer_is_servfail_after_the_total() {
    let forwarder = forwarder(&[resolver(|_| None).await]);
    let begun = Instant::now();
    assert_eq!(code(&ask(&forwarder, query(1, "a.example.", None)).await), ResponseCode::ServFail);
    assert!(begun.elapsed() >= TIMING.total && begun.elapsed() < TIMING.total + STEP * 4, "{:?}", begun.elapsed());
    assert_eq!(forwarder.0.names.stats().failed, 1);
}

#[tokio::test]
async fn however_many_resolvers_are_silent_the_last_one_is_heard() {
    let mut resolvers = Vec::new();
    for _ in 0..7 {
        resolvers.push(resolver(|_| None).await);
    }
    resolvers.push(good(1).await);
    assert_eq!(code(&ask(&forwarder(&resolvers), query(1, "a.example.", None)).await), ResponseCode::NoError);
}

#[tokio::test]
async fn a_lost_query_is_repeated() {
    let mut first = true;
    let lossy =
        resolver(move |query| (!std::mem::take(&mut first)).then(|| answer(query, 1, ResponseCode::NoError))).await;
    assert_eq!(code(&ask(&forwarder(&[lossy]), query(1, "a.example.", None)).await), ResponseCode::NoError);
}

#[tokio::test]
async fn forged_answers_are_not_believed() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let forger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let upstream = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
        let asked = &buffer[..len];
        // From somebody else, with everything right.
        forger.send_to(&answer(asked, 9, ResponseCode::NoError), from).await.unwrap();
        // From the right one: another id, another question, a scrap.
        let mut wrong_id = answer(asked, 8, ResponseCode::NoError);
        wrong_id[0] ^= 1;
        socket.send_to(&wrong_id, from).await.unwrap();
        let mut wrong_name = answer(asked, 7, ResponseCode::NoError);
        wrong_name[13] ^= 1;
        socket.send_to(&wrong_name, from).await.unwrap();
        socket.send_to(&asked[..2], from).await.unwrap();
        socket.send_to(&answer(asked, 2, ResponseCode::NoError), from).await.unwrap();
    });
    let got = ask(&forwarder(&[upstream]), query(1, "a.example.", None)).await;
    assert_eq!(Message::from_vec(&got).unwrap().answers.len(), 2);
}

#[tokio::test]
async fn ids_and_ports_upstream_are_random() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let upstream = socket.local_addr().unwrap();
    let seen = tokio::spawn(async move {
        let (mut ids, mut ports) = (Vec::new(), HashSet::new());
        let mut buffer = [0; 512];
        for _ in 0..40 {
            let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
            ids.push(u16::from_be_bytes([buffer[0], buffer[1]]));
            ports.insert(from.port());
            socket.send_to(&answer(&buffer[..len], 1, ResponseCode::NoError), from).await.unwrap();
        }
        (ids, ports)
    });
    let forwarder = forwarder(&[upstream]);
    for _ in 0..40 {
        // The asker's id stays the same, and comes back.
        assert_eq!(ask(&forwarder, query(7, "a.example.", None)).await[..2], [0, 7]);
    }
    let (ids, ports) = seen.await.unwrap();
    assert!(ids.iter().collect::<HashSet<_>>().len() > 35);
    assert!(ids.windows(2).filter(|w| w[0].abs_diff(w[1]) < 16).count() < 5);
    assert!(ports.len() > 30, "{ports:?}");
}

#[tokio::test]
async fn a_long_answer_is_truncated_to_what_the_asker_takes() {
    let forwarder = forwarder(&[good(50).await]);
    let short = ask(&forwarder, query(5, "a.example.", None)).await;
    let message = Message::from_vec(&short).unwrap();
    assert!(short.len() <= 512 && message.metadata.truncation && message.answers.is_empty());
    let long = ask(&forwarder, query(5, "a.example.", Some(1232))).await;
    let message = Message::from_vec(&long).unwrap();
    assert!(!message.metadata.truncation);
    assert_eq!(message.answers.len(), 50);
}

#[tokio::test]
async fn truncation_by_the_resolver_passes() {
    let truncating = resolver(|query| {
        let mut answer = answer(query, 2, ResponseCode::NoError);
        answer[2] |= 2;
        Some(answer)
    })
    .await;
    let message = Message::from_vec(&ask(&forwarder(&[truncating]), query(1, "a.example.", None)).await).unwrap();
    assert!(message.metadata.truncation);
    assert_eq!(message.answers.len(), 2);
}

#[tokio::test]
async fn resolvers_over_ipv6_serve_as_well() {
    let socket = UdpSocket::bind("[::1]:0").await.expect("a machine with IPv6 on its loopback");
    let upstream = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
        socket.send_to(&answer(&buffer[..len], 1, ResponseCode::NoError), from).await.unwrap();
    });
    assert_eq!(code(&ask(&forwarder(&[upstream]), query(1, "a.example.", None)).await), ResponseCode::NoError);
}

#[tokio::test]
async fn a_change_of_resolvers_takes_effect() {
    let forwarder = forwarder(&[closed().await]);
    assert_eq!(code(&ask(&forwarder, query(1, "a.example.", None)).await), ResponseCode::ServFail);
    forwarder.handle_host_changed(&HostView { resolvers: vec![good(1).await], ..HostView::default() });
    assert_eq!(code(&ask(&forwarder, query(1, "a.example.", None)).await), ResponseCode::NoError);
}

#[tokio::test]
async fn local_names_need_no_resolver() {
    let forwarder = forwarder(&[]);
    let message = Message::from_vec(&ask(&forwarder, query(1, "Host.tapline.internal.", None)).await).unwrap();
    assert_eq!(message.answers[0].data.to_string(), "10.0.2.2");
    assert_eq!(forwarder.0.names.stats(), DnsStats { queries: 1, local: 1, ..DnsStats::default() });
}

#[tokio::test]
async fn queries_beyond_the_bound_are_dropped_and_counted() {
    let forwarder = forwarder(&[resolver(|_| None).await]);
    for n in 0..MAX_IN_FLIGHT + 5 {
        forwarder.handle_query(query(u16::try_from(n).unwrap(), "a.example.", None), |_| {});
    }
    assert_eq!(forwarder.0.names.stats().overload, 5);
    // What needs nobody else is still answered.
    assert_eq!(code(&ask(&forwarder, query(1, "localhost.", None)).await), ResponseCode::NoError);
}

#[tokio::test]
async fn who_asks_without_end_leaves_the_others_sockets() {
    let names = Names::with_sockets(16);
    let silent = HostView { resolvers: vec![resolver(|_| None).await], ..HostView::default() };
    let host = HostView { resolvers: vec![good(1).await], ..HostView::default() };
    let network = crate::fuzzing::network();
    let greedy = names.forwarder_with_timing(&network, &Endpoint::default(), &silent, TIMING);
    let modest = names.forwarder_with_timing(&network, &Endpoint::default(), &host, TIMING);
    for n in 0..100 {
        greedy.handle_query(query(n, "a.example.", None), |_| {});
    }
    for _ in 0..5 {
        assert_eq!(code(&ask(&modest, query(1, "a.example.", None)).await), ResponseCode::NoError);
    }
    // Whoever finds no socket is told at once.
    let begun = Instant::now();
    assert_eq!(code(&ask(&greedy, query(1, "a.example.", None)).await), ResponseCode::ServFail);
    assert!(begun.elapsed() < TIMING.total);
}

/// A resolver over TCP whose answers have `addresses` addresses; one query for each connection.
async fn tcp_resolver(addresses: u16) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let query = read_message(&mut stream).await.unwrap().unwrap();
            write_message(&mut stream, &answer(&query, addresses, ResponseCode::NoError)).await.unwrap();
        }
    });
    address
}

/// The sandbox's end of a stream.
fn stream(forwarder: &Forwarder) -> tokio::net::UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    forwarder.handle_stream(theirs);
    ours.set_nonblocking(true).unwrap();
    tokio::net::UnixStream::from_std(ours).unwrap()
}

#[tokio::test]
async fn a_stream_carries_many_queries_and_long_answers() {
    let forwarder = forwarder(&[tcp_resolver(1500).await]);
    let mut client = stream(&forwarder);
    // All at once, the lengths and messages torn apart anywhere.
    let mut bytes = Vec::new();
    for id in 0..100u16 {
        let message = query(id, if id.is_multiple_of(2) { "a.example." } else { "localhost." }, None);
        bytes.extend_from_slice(&u16::try_from(message.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(&message);
    }
    let (mut reader, mut writer) = client.split();
    let send = async {
        for piece in bytes.chunks(17) {
            writer.write_all(piece).await.unwrap();
        }
        writer.shutdown().await.unwrap();
    };
    let receive = async {
        let mut ids = HashSet::new();
        while let Some(answer) = read_message(&mut reader).await.unwrap() {
            let message = Message::from_vec(&answer).unwrap();
            let expected = if message.metadata.id.is_multiple_of(2) { 1500 } else { 1 };
            assert_eq!(message.answers.len(), expected);
            ids.insert(message.metadata.id);
        }
        ids
    };
    let (ids, ()) = timeout(PATIENCE, async { tokio::join!(receive, send) }).await.unwrap();
    assert_eq!(ids.len(), 100);
}

#[tokio::test]
async fn a_resolver_without_tcp_serves_streams_too() {
    let forwarder = forwarder(&[good(1).await]);
    let mut client = stream(&forwarder);
    write_message(&mut client, &query(1, "a.example.", None)).await.unwrap();
    let got = timeout(PATIENCE, read_message(&mut client)).await.unwrap().unwrap().unwrap();
    assert_eq!(code(&got), ResponseCode::NoError);
}

#[tokio::test]
async fn nonsense_on_a_stream_ends_it() {
    let forwarder = forwarder(&[]);
    let mut client = stream(&forwarder);
    client.write_all(b"\x00\x03abc").await.unwrap();
    let mut rest = Vec::new();
    timeout(PATIENCE, client.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert_eq!(forwarder.0.names.stats().malformed, 1);
}

#[tokio::test]
async fn answers_that_nobody_reads_are_bounded_over_all_streams() {
    let forwarder = forwarder(&[]);
    let mut streams: Vec<_> = (0..MAX_UNREAD / MAX_PIPELINED * 4).map(|_| stream(&forwarder)).collect();
    // Nothing is read of what they are answered, and a socket holds only so much.
    let asked = query(1, "localhost.", None);
    let flood = async {
        for stream in &mut streams {
            for _ in 0..50_000 {
                if timeout(Duration::from_millis(100), write_message(stream, &asked)).await.is_err() {
                    break;
                }
            }
        }
    };
    flood.await;
    assert_eq!(forwarder.0.unread.available_permits(), 0);
    assert!(forwarder.0.in_flight.available_permits() > 0, "datagrams are served");
    assert_eq!(code(&ask(&forwarder, query(2, "localhost.", None)).await), ResponseCode::NoError);
}

#[tokio::test]
async fn one_stream_more_than_the_bound_is_closed() {
    let forwarder = forwarder(&[]);
    let mut held: Vec<_> = (0..MAX_STREAMS).map(|_| stream(&forwarder)).collect();
    let mut byte = [0];
    let mut extra = stream(&forwarder);
    assert_eq!(timeout(PATIENCE, extra.read(&mut byte)).await.unwrap().unwrap(), 0);
    // The others live, and one that ends makes room.
    write_message(&mut held[3], &query(1, "localhost.", None)).await.unwrap();
    assert!(timeout(PATIENCE, read_message(&mut held[3])).await.unwrap().unwrap().is_some());
    drop(held.pop());
    timeout(PATIENCE, async {
        loop {
            let mut again = stream(&forwarder);
            if write_message(&mut again, &query(1, "localhost.", None)).await.is_ok()
                && let Ok(Some(_)) = read_message(&mut again).await
            {
                break;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

/// The answer code and the addresses that a forwarder has for a name.
async fn found(forwarder: &Forwarder, name: &str) -> (ResponseCode, Vec<String>) {
    let answer = Message::from_vec(&ask(forwarder, query(7, name, None)).await).unwrap();
    (answer.metadata.response_code, answer.answers.iter().map(|record| record.data.to_string()).collect())
}

fn shared(name: &str, third: u8, internal: bool) -> Network {
    let layout = crate::plan::Ipv4Layout::slirp(format!("10.1.{third}.0/24").parse().unwrap()).unwrap();
    let sharing = Some(crate::plan::Sharing { internal, icc: true });
    Network { name: name.into(), sharing, v4: Some(layout), ..crate::fuzzing::network() }
}

fn endpoint(id: &str, name: &str, ip: [u8; 4]) -> Endpoint {
    Endpoint { id: id.into(), name: name.into(), v4: Some(ip.into()), ..Endpoint::default() }
}

#[tokio::test]
async fn a_sandbox_on_internal_networks_only_is_told_that_there_is_nothing_else() {
    let upstream = resolver(|query| Some(answer(query, 1, ResponseCode::NoError))).await;
    let host = HostView { resolvers: vec![upstream], ..HostView::default() };
    let names = Names::default();
    let (inner, outer) = (shared("inner", 1, true), shared("outer", 2, false));
    let db = endpoint("aaaaaaaaaaaa", "db", [10, 1, 1, 5]);
    let (app_inner, app_outer) =
        (endpoint("bbbbbbbbbbbb", "app", [10, 1, 1, 6]), endpoint("bbbbbbbbbbbb", "app", [10, 1, 2, 6]));
    names.attach(1, &inner, &db);
    names.attach(2, &inner, &app_inner);
    let of_db = names.forwarder_with_timing(&inner, &db, &host, TIMING);
    let of_app = names.forwarder_with_timing(&inner, &app_inner, &host, TIMING);
    assert_eq!(found(&of_db, "app.").await, (ResponseCode::NoError, vec!["10.1.1.6".into()]));
    assert_eq!(found(&of_db, "example.org.").await, (ResponseCode::NXDomain, vec![]));
    assert_eq!(found(&of_app, "example.org.").await, (ResponseCode::NXDomain, vec![]));
    // On another network as well it may be asked for from either.
    names.attach(3, &outer, &app_outer);
    assert_eq!(found(&of_app, "example.org.").await, (ResponseCode::NoError, vec!["192.0.2.0".into()]));
    assert_eq!(found(&of_db, "app.").await.1, ["10.1.1.6"]);
    assert_eq!(found(&of_db, "host.docker.internal.").await.1, ["10.1.1.2"]);
    names.detach(3);
    assert_eq!(found(&of_app, "example.org.").await.0, ResponseCode::NXDomain);
}

#[tokio::test]
async fn names_of_its_own_are_for_one_sandbox_alone_and_come_first() {
    let names = Names::default();
    let net = shared("front", 1, false);
    let own = vec![
        ("web".to_owned(), IpAddr::from([192, 0, 2, 7])),
        ("host.docker.internal".to_owned(), IpAddr::from([192, 0, 2, 8])),
    ];
    let app = Endpoint { names: own, ..endpoint("aaaaaaaaaaaa", "app", [10, 1, 1, 5]) };
    let web = endpoint("bbbbbbbbbbbb", "web", [10, 1, 1, 6]);
    names.attach(1, &net, &app);
    names.attach(2, &net, &web);
    let host = HostView::default();
    let (of_app, of_web) = (names.forwarder(&net, &app, &host), names.forwarder(&net, &web, &host));
    assert_eq!(found(&of_app, "WEB.").await.1, ["192.0.2.7"]);
    assert_eq!(found(&of_app, "host.docker.internal.").await.1, ["192.0.2.8"]);
    assert_eq!(found(&of_app, "host.tapline.internal.").await.1, ["10.1.1.2"]);
    assert_eq!(found(&of_web, "web.").await.1, ["10.1.1.6"]);
    assert_eq!(found(&of_web, "host.docker.internal.").await.1, ["10.1.1.2"]);

    let backwards = async |forwarder: &Forwarder, name: &str| {
        let mut message = Message::new(9, MessageType::Query, OpCode::Query);
        message.add_query(Question::query(Name::from_ascii(name).unwrap(), RecordType::PTR));
        let answer = Message::from_vec(&ask(forwarder, message.to_vec().unwrap()).await).unwrap();
        let found: Vec<String> = answer.answers.iter().map(|record| record.data.to_string()).collect();
        (answer.metadata.response_code, found)
    };
    assert_eq!(backwards(&of_app, "6.1.1.10.in-addr.arpa.").await, (ResponseCode::NoError, vec!["web.".into()]));
    assert_eq!(backwards(&of_app, "9.1.1.10.in-addr.arpa.").await, (ResponseCode::NXDomain, vec![]));
}

#[tokio::test]
async fn resolvers_of_its_own_do_not_change_with_the_hosts() {
    let names = Names::default();
    let net = shared("front", 1, false);
    let own = Endpoint { dns_servers: vec![[192, 0, 2, 1].into()], ..endpoint("aaaaaaaaaaaa", "app", [10, 1, 1, 5]) };
    let forwarder = names.forwarder(&net, &own, &HostView::default());
    assert_eq!(forwarder.0.upstreams.addresses(), ["192.0.2.1:53".parse().unwrap()]);
    let host = HostView { resolvers: vec!["127.0.0.1:9".parse().unwrap()], ..HostView::default() };
    forwarder.handle_host_changed(&host);
    assert_eq!(forwarder.0.upstreams.addresses(), ["192.0.2.1:53".parse().unwrap()]);
    let others = names.forwarder(&net, &endpoint("bbbbbbbbbbbb", "web", [10, 1, 1, 6]), &HostView::default());
    others.handle_host_changed(&host);
    assert_eq!(others.0.upstreams.addresses(), host.resolvers);
}
