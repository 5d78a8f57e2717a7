//! Resolvers that mean harm, or that somebody speaks in the name of: what they say is not believed, costs no more than what
//! was asked for, and holds nobody else up.
use std::sync::atomic::AtomicBool;

use super::*;
use crate::names::message::HEADER;

/// Sets its flag when it is dropped.
struct Until(Arc<AtomicBool>);

impl Drop for Until {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A resolver on a thread of its own, which goes on sending what `noise` makes of the first query, to whoever asked, until
/// the value returned is dropped. How many queries came is counted.
fn endless(noise: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> (SocketAddr, Until) {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let until = Until(Arc::clone(&over));
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let Ok((len, from)) = socket.recv_from(&mut buffer) else { return };
        let noise = noise(&buffer[..len]);
        while !over.load(Ordering::Acquire) {
            // Whoever has heard enough refuses the rest.
            let _ = socket.send_to(&noise, from);
        }
    });
    (address, until)
}

/// A server over TCP that does this with each connection, on a thread of its own.
fn tcp(serve: impl Fn(std::net::TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = Arc::clone(&serve);
            std::thread::spawn(move || serve(stream));
        }
    });
    address
}

/// Reads a query as on a stream.
fn read(stream: &mut std::net::TcpStream) -> Vec<u8> {
    use std::io::Read;
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut query = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut query).unwrap();
    query
}

async fn ask_on_stream(forwarder: &Forwarder, message: &[u8]) -> Vec<u8> {
    let mut client = stream(forwarder);
    write_message(&mut client, message).await.unwrap();
    timeout(PATIENCE, read_message(&mut client)).await.unwrap().unwrap().unwrap()
}

#[tokio::test]
async fn a_resolver_that_never_stops_talking_holds_nobody_up() {
    let (loud, _until) = endless(|asked| {
        let mut wrong = answer(asked, 1, ResponseCode::NoError);
        wrong[0] ^= 1;
        wrong
    });
    let forwarder = forwarder(&[loud, good(3).await]);
    let (reply, answered) = oneshot::channel();
    forwarder.handle_query(query(1, "a.example.", None), |answer| reply.send(answer).unwrap());
    // Meanwhile others are served, whatever they ask.
    for _ in 0..20 {
        assert_eq!(code(&ask(&forwarder, query(2, "localhost.", None)).await), ResponseCode::NoError);
    }
    let got = timeout(PATIENCE, answered).await.unwrap().unwrap();
    assert_eq!(Message::from_vec(&got).unwrap().answers.len(), 3);
}

#[tokio::test]
async fn who_is_shouted_at_asks_again_where_nobody_can_shout() {
    // The same port twice: a forger in the resolver's name over UDP, and the resolver itself over TCP.
    let right = tcp(|mut stream| {
        let asked = read(&mut stream);
        let answer = answer(&asked, 5, ResponseCode::NoError);
        let length = (answer.len() as u16).to_be_bytes();
        let _ = io::Write::write_all(&mut stream, &[&length[..], &answer].concat());
    });
    let socket = UdpSocket::bind(right).await.unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
        let forged = answer(&buffer[..len], 9, ResponseCode::NoError);
        for guess in 1..=400u16 {
            let mut forged = forged.clone();
            forged[..2].copy_from_slice(&(u16::from_be_bytes([buffer[0], buffer[1]]) ^ guess).to_be_bytes());
            let _ = socket.send_to(&forged, from).await;
        }
    });
    let got = ask(&forwarder(&[right]), query(1, "a.example.", None)).await;
    assert_eq!(Message::from_vec(&got).unwrap().answers.len(), 5);
}

#[tokio::test]
async fn a_question_that_points_to_itself_is_no_answer() {
    let looping = resolver(|asked| {
        let mut answer = asked[..HEADER].to_vec();
        answer[2] |= 0x80;
        // The name is where this name is; likewise one that goes back and forth between two places.
        answer.extend_from_slice(if asked[1] & 1 == 0 { b"\xc0\x0c" } else { b"\x01a\xc0\x0c" });
        answer.extend_from_slice(&[0, 1, 0, 1]);
        Some(answer)
    })
    .await;
    let got = ask(&forwarder(&[looping, good(2).await]), query(1, "a.example.", None)).await;
    assert_eq!(Message::from_vec(&got).unwrap().answers.len(), 2);
}

#[tokio::test]
async fn what_loops_further_on_is_passed_to_who_asked_as_it_came() {
    let tail = b"\xc0\x1d\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x02\xc0\x1d";
    let looping = resolver(|asked| {
        let mut answer = asked.to_vec();
        (answer[2], answer[7]) = (answer[2] | 0x80, 1);
        answer.extend_from_slice(tail);
        Some(answer)
    })
    .await;
    let asked = query(1, "a.example.", None);
    let got = ask(&forwarder(&[looping]), asked.clone()).await;
    assert!(got.len() == asked.len() + tail.len() && got.ends_with(tail));
}

#[tokio::test]
async fn an_answer_larger_than_anybody_takes_is_cut_for_datagrams_and_whole_on_streams() {
    let large = |asked: &[u8]| {
        let mut answer = answer(asked, 1, ResponseCode::NoError);
        answer.resize(65_000, 0);
        answer
    };
    let upstream = resolver(move |asked| Some(large(asked))).await;
    for (edns, limit) in [(None, 512), (Some(1232), 1232), (Some(100), 512)] {
        let got = ask(&forwarder(&[upstream]), query(1, "a.example.", edns)).await;
        assert!(got.len() <= limit && Message::from_vec(&got).unwrap().metadata.truncation);
    }
    let upstream = tcp(move |mut stream| {
        let asked = read(&mut stream);
        let mut answer = answer(&asked, 1, ResponseCode::NoError);
        answer.resize(65_535, 0);
        // And more behind it, which nobody has asked for.
        let bytes = [&[0xff, 0xff][..], &answer, &[0xff; 4096]].concat();
        let _ = io::Write::write_all(&mut stream, &bytes);
    });
    assert_eq!(ask_on_stream(&forwarder(&[upstream]), &query(1, "a.example.", None)).await.len(), 65_535);
}

#[tokio::test]
async fn a_resolver_that_only_ever_truncates_ends_in_servfail_on_a_stream() {
    let truncating = resolver(|asked| {
        let mut answer = answer(asked, 0, ResponseCode::NoError);
        answer[2] |= 2;
        Some(answer)
    })
    .await;
    let got = ask_on_stream(&forwarder(&[truncating]), &query(1, "a.example.", None)).await;
    assert_eq!(code(&got), ResponseCode::ServFail);
}

#[tokio::test]
async fn a_message_that_never_ends_is_given_up_and_others_are_asked() {
    let slow = tcp(|mut stream| {
        read(&mut stream);
        let _ = io::Write::write_all(&mut stream, &[0xff, 0xff]);
        while io::Write::write_all(&mut stream, &[0]).is_ok() {
            std::thread::sleep(STEP / 10);
        }
    });
    let got = ask_on_stream(&forwarder(&[slow]), &query(1, "a.example.", None)).await;
    assert_eq!(code(&got), ResponseCode::ServFail);
    let got = ask_on_stream(&forwarder(&[slow, tcp_resolver(700).await]), &query(1, "a.example.", None)).await;
    assert_eq!(Message::from_vec(&got).unwrap().answers.len(), 700);
}

#[tokio::test]
async fn an_answer_may_come_byte_by_byte() {
    let slow = tcp(|mut stream| {
        let asked = read(&mut stream);
        let answer = answer(&asked, 4, ResponseCode::NoError);
        let length = (answer.len() as u16).to_be_bytes();
        for byte in [&length[..], &answer].concat() {
            let _ = io::Write::write_all(&mut stream, &[byte]);
            std::thread::yield_now();
        }
    });
    let got = ask_on_stream(&forwarder(&[slow]), &query(1, "a.example.", None)).await;
    assert_eq!(Message::from_vec(&got).unwrap().answers.len(), 4);
}

#[tokio::test]
async fn a_resolver_that_resets_every_connection_is_passed_over() {
    let resetting = tcp(|stream| {
        let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    });
    let got = ask_on_stream(&forwarder(&[resetting, tcp_resolver(600).await]), &query(1, "a.example.", None)).await;
    assert_eq!(Message::from_vec(&got).unwrap().answers.len(), 600);
}

#[tokio::test]
async fn what_an_answer_says_of_other_names_is_not_kept() {
    // An answer that says where the bank is, to somebody who asked for something else.
    let upstream = resolver(|asked| {
        let mut message = Message::from_vec(&answer(asked, 1, ResponseCode::NoError)).unwrap();
        let bank = Name::from_ascii("bank.example.").unwrap();
        if message.queries[0].name() != &bank {
            let lie = Record::from_rdata(bank, 86_400, RData::A(rdata::A::new(203, 0, 113, 66)));
            message.add_answer(lie);
        }
        Some(message.to_vec().unwrap())
    })
    .await;
    let forwarder = forwarder(&[upstream]);
    let lie = ask(&forwarder, query(1, "a.example.", Some(1232))).await;
    assert_eq!(Message::from_vec(&lie).unwrap().answers.len(), 2);
    let truth = Message::from_vec(&ask(&forwarder, query(2, "bank.example.", None)).await).unwrap();
    assert_eq!(truth.answers.len(), 1);
    assert_eq!(truth.answers[0].data, RData::A(rdata::A::new(192, 0, 2, 0)));
}

#[tokio::test]
async fn a_thousand_answers_to_one_question_are_one() {
    let (loud, _until) = endless(|asked| answer(asked, 1, ResponseCode::NoError));
    let forwarder = forwarder(&[loud]);
    let (reply, mut answers) = mpsc::unbounded_channel();
    forwarder.handle_query(query(1, "a.example.", None), move |answer| reply.send(answer).unwrap());
    assert!(timeout(PATIENCE, answers.recv()).await.unwrap().is_some());
    assert!(timeout(PATIENCE, answers.recv()).await.unwrap().is_none(), "another one");
    // And nobody listens where they go.
    for _ in 0..20 {
        assert_eq!(code(&ask(&forwarder, query(2, "localhost.", None)).await), ResponseCode::NoError);
    }
}
