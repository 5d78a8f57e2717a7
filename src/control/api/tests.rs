//! Raw HTTP over sockets, with a worker and a supervisor that the tests play themselves.
use std::net::SocketAddr;
use std::os::unix::net::UnixStream as StdStream;

use super::*;
use crate::datapath::commands::{Command, CommandReceiver, FlowInfo, FlowKind};
use crate::fuzzing::sandbox;
use crate::plan::Origin;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::Instant;

const PATIENCE: Duration = Duration::from_secs(20);
const ID: &str = "0123456789ab";
/// The number of the connection that it came by.
const WAY: u64 = 1;

fn port(host: &str, spec: &str) -> Published {
    Published {
        sandbox: ID.into(),
        protocol: Protocol::Tcp,
        host: host.parse().unwrap(),
        dual_stack: false,
        sandbox_port: 80,
        sandbox_address: None,
        device: 0,
        proxy: None,
        from: Vec::new(),
        spec: spec.into(),
        origin: Origin::Api,
    }
}

/// A served API, the worker's and the supervisor's ends of it, and the way to connect.
struct Bench {
    state: Arc<ApiState>,
    commands: CommandReceiver,
    said: mpsc::Receiver<FromGateway>,
    address: std::os::unix::net::SocketAddr,
    _poll: mio::Poll,
}

impl Bench {
    fn new(name: &str, limits: Limits) -> Bench {
        use std::os::linux::net::SocketAddrExt;
        let poll = mio::Poll::new().unwrap();
        let (sender, commands) = CommandSender::new(mio::Waker::new(poll.registry(), mio::Token(0)).unwrap());
        let info = sandbox(ID, "web");
        let state = ApiState::new(Names::default());
        state.handle_network_started(&info.network.name, sender);
        let (supervisor, said) = mpsc::channel(8);
        state.handle_attached(WAY, info, supervisor);
        // A listener of this test alone, without a file (unix(7), abstract).
        let name = format!("tapline-api-test-{}-{name}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
        let listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
        tokio::spawn(guard::serve(listener, routes(Arc::clone(&state)), limits));
        Bench { state, commands, said, address, _poll: poll }
    }

    fn connect(&self) -> UnixStream {
        let stream = StdStream::connect_addr(&self.address).unwrap();
        stream.set_nonblocking(true).unwrap();
        UnixStream::from_std(stream).unwrap()
    }

    /// The status and the body of the answer to a request on a fresh connection.
    async fn ask(&self, request: &str) -> (u16, Value) {
        response(self.connect(), &format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await
    }

    /// The same with a body of JSON.
    async fn send(&self, request: &str, body: &str) -> (u16, Value) {
        response(self.connect(), &with_body(request, "application/json", body)).await
    }

    /// The worker's next command.
    async fn command(&self) -> Command {
        timeout(PATIENCE, async {
            loop {
                match self.commands.try_recv() {
                    Ok(command) => return command,
                    Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            }
        })
        .await
        .unwrap()
    }
}

fn with_body(request: &str, kind: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// Everything that comes back.
async fn text(mut stream: UnixStream, request: &str) -> String {
    // It may be refused before it is read to its end.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut text = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut text)).await.unwrap();
    String::from_utf8(text).unwrap()
}

async fn response(stream: UnixStream, request: &str) -> (u16, Value) {
    let text = text(stream, request).await;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{request:?}: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_else(|_| panic!("{text}")))
}

fn code(answer: &(u16, Value)) -> (u16, &str) {
    assert!(answer.1["message"].as_str().is_some_and(|message| message.len() > 10), "{answer:?}");
    (answer.0, answer.1["code"].as_str().unwrap())
}

#[tokio::test]
async fn sandboxes_are_found_by_id_its_beginning_and_name() {
    let bench = Bench::new("find", Limits::default());
    let (status, all) = bench.ask("GET /v1/sandboxes").await;
    assert_eq!((status, all["sandboxes"].as_array().unwrap().len()), (200, 1));
    for asked in [ID, "0123", "web"] {
        let (status, found) = bench.ask(&format!("GET /v1/sandboxes/{asked}")).await;
        assert_eq!(status, 200);
        assert_eq!(serde_json::from_value::<SandboxInfo>(found).unwrap(), sandbox(ID, "web"));
    }
    assert_eq!(code(&bench.ask("GET /v1/sandboxes/123").await), (404, "no_such_sandbox"));
    assert_eq!(code(&bench.ask("GET /v1/sandboxes/%ff").await), (400, "bad_path"));
    let (other, _said) = mpsc::channel(1);
    bench.state.handle_attached(2, sandbox("0123000000ff", "0123456789"), other);
    assert_eq!(code(&bench.ask("GET /v1/sandboxes/0123/ports").await), (409, "ambiguous_sandbox"));
    // A whole name is meant rather than the beginning of an id.
    let (_, named) = bench.ask("GET /v1/sandboxes/0123456789").await;
    assert_eq!(named["endpoint"]["id"], "0123000000ff");
    bench.state.handle_detached("0123000000ff", 2);
    assert_eq!(code(&bench.ask("GET /v1/sandboxes/0123000000ff").await), (404, "no_such_sandbox"));
}

#[tokio::test]
async fn what_changes_on_the_host_is_shown() {
    let bench = Bench::new("host", Limits::default());
    bench.state.handle_host_changed(ID, &HostView { v4: Some([192, 0, 2, 1].into()), ..HostView::default() });
    assert_eq!(bench.ask("GET /v1/sandboxes/web").await.1["host"]["v4"], "192.0.2.1");
}

#[tokio::test]
async fn ports_are_listed_in_the_order_they_came() {
    let bench = Bench::new("ports", Limits::default());
    assert_eq!(bench.ask("GET /v1/sandboxes/web/ports").await, (200, json!({"ports": []})));
    let (one, two, three) = (port("127.0.0.1:8083", "a"), port("127.0.0.1:8081", "b"), port("[::1]:8082", "c"));
    bench.state.handle_published(ID, WAY, vec![one.clone(), two.clone(), three.clone()]);
    bench.state.handle_unpublished(ID, WAY, &[two.key(), two.key()]);
    let (status, list) = bench.ask("GET /v1/sandboxes/web/ports").await;
    assert_eq!((status, list), (200, json!({"ports": [one, three]})));
    bench.state.handle_published(ID, WAY, vec![one.clone(), two.clone()]);
    assert_eq!(bench.ask("GET /v1/sandboxes/web/ports").await.1, json!({"ports": [three, one, two]}));
}

#[tokio::test]
async fn a_port_is_published_by_the_supervisor_and_taken_back() {
    let mut bench = Bench::new("publish", Limits::default());
    let new = port("127.0.0.1:8080", "8080:80");
    let own = Published { origin: Origin::Auto, ..port("127.0.0.1:8081", "auto") };
    let state = Arc::clone(&bench.state);
    let asked = with_body(
        "POST /v1/sandboxes/web/ports",
        "application/json; charset=utf-8",
        r#"{"spec":"8080:80","proxy":"v2","from":["192.0.2.0/24"]}"#,
    );
    let answer = tokio::spawn(response(bench.connect(), &asked.leak()[..]));
    match timeout(PATIENCE, bench.said.recv()).await.unwrap().unwrap() {
        FromGateway::WantPublish { request, spec, proxy, from } => {
            assert_eq!((spec.as_str(), proxy), ("8080:80", Some(crate::plan::ProxyVersion::V2)));
            assert_eq!(from, ["192.0.2.0/24".parse().unwrap()]);
            // What else changes at the time is not what came of it, and an answer to something else is none.
            state.handle_published(ID, WAY, vec![own.clone(), new.clone()]);
            state.handle_answer(ID, request + 1, None);
            state.handle_answer(ID, request, None);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(answer.await.unwrap(), (201, json!({"ports": [new]})));

    let answer = tokio::spawn(response(
        bench.connect(),
        "DELETE /v1/sandboxes/web/ports?spec=8080%3A80 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ));
    match timeout(PATIENCE, bench.said.recv()).await.unwrap().unwrap() {
        FromGateway::WantUnpublish { request, spec } => {
            assert_eq!(spec, "8080:80");
            state.handle_unpublished(ID, WAY, &[new.key()]);
            state.handle_answer(ID, request, None);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(answer.await.unwrap(), (200, json!({"ports": [new]})));
    assert_eq!(bench.ask("GET /v1/sandboxes/web/ports").await.1, json!({"ports": [own]}));
}

#[tokio::test]
async fn a_failure_of_the_supervisor_has_its_own_status() {
    let mut bench = Bench::new("failure", Limits::default());
    let state = Arc::clone(&bench.state);
    let supervisor = tokio::spawn(async move {
        let codes = ["bad_spec", "taken", "privileged", "no_such_address", "not_published", "exhausted", "failed"];
        for code in codes {
            let Some(FromGateway::WantPublish { request, .. }) = bench.said.recv().await else { panic!() };
            let failure = PortFailure::new(code, format!("this is what {code} means"));
            state.handle_answer(ID, request, Some(failure));
        }
        bench.said
    });
    let address = bench.address.clone();
    let connect = || {
        let stream = StdStream::connect_addr(&address).unwrap();
        stream.set_nonblocking(true).unwrap();
        UnixStream::from_std(stream).unwrap()
    };
    let mut statuses = Vec::new();
    for _ in 0..7 {
        let request = with_body("POST /v1/sandboxes/web/ports", "application/json", r#"{"spec":"80"}"#);
        let answer = response(connect(), &request).await;
        statuses.push(code(&answer).0);
    }
    assert_eq!(statuses, [400, 409, 403, 400, 404, 503, 500]);
    // The supervisor has gone.
    drop(supervisor.await.unwrap());
    let request = with_body("POST /v1/sandboxes/web/ports", "application/json", r#"{"spec":"80"}"#);
    assert_eq!(code(&response(connect(), &request).await), (503, "sandbox_ended"));
}

#[tokio::test]
async fn each_bad_request_has_its_own_code() {
    let bench = Bench::new("bad", Limits::default());
    let ports = "POST /v1/sandboxes/web/ports";
    for (body, expected) in [
        ("", "bad_json"),
        ("{\"spec\":", "bad_json"),
        (&"[".repeat(10_000), "bad_json"),
        ("[]", "bad_field"),
        ("{}", "missing_field"),
        (r#"{"spec":null}"#, "missing_field"),
        (r#"{"spec":80}"#, "bad_field"),
        (r#"{"spec":"80","proxy":"v3"}"#, "bad_field"),
        (r#"{"spec":"80","from":["10.0.0.0/33"]}"#, "bad_field"),
        (r#"{"spec":"80","form":[]}"#, "unknown_field"),
        (&format!(r#"{{"spec":"{}"}}"#, "8".repeat(300)), "bad_spec"),
    ] {
        assert_eq!(code(&bench.send(ports, body).await), (400, expected), "{body:.60}");
    }
    let form = with_body(ports, "application/x-www-form-urlencoded", "spec=80");
    assert_eq!(code(&response(bench.connect(), &form).await), (415, "content_type"));
    assert_eq!(code(&bench.send(ports, &" ".repeat(guard::MAX_BODY + 1)).await), (413, "body_too_large"));
    let chunked = format!(
        "{ports} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        format!("10000\r\n{}\r\n", "x".repeat(0x10000)).repeat(2)
    );
    assert_eq!(code(&response(bench.connect(), &chunked).await), (413, "body_too_large"));
    for (request, status, expected) in [
        ("GET /v1/elsewhere", 404, "not_found"),
        ("GET /", 404, "not_found"),
        ("PUT /v1/sandboxes", 405, "method_not_allowed"),
        ("PATCH /v1/sandboxes/web/ports", 405, "method_not_allowed"),
        ("POST /metrics", 405, "method_not_allowed"),
        ("DELETE /v1/sandboxes/web/ports", 400, "missing_parameter"),
        ("DELETE /v1/sandboxes/web/ports?spec=%zz", 400, "bad_parameter"),
        ("DELETE /v1/sandboxes/web/ports?spec=%4", 400, "bad_parameter"),
        ("DELETE /v1/sandboxes/nobody/ports?spec=80", 404, "no_such_sandbox"),
        ("GET /v1/flows?limit=0", 400, "bad_parameter"),
        ("GET /v1/flows?limit=1001", 400, "bad_parameter"),
        ("GET /v1/flows?cursor=-1", 400, "bad_parameter"),
        ("GET /v1/flows?limit=1&limit=2", 400, "bad_parameter"),
        ("GET /v1/flows?colour=red", 400, "unknown_parameter"),
        ("GET /v1/flows?sandbox=nobody", 404, "no_such_sandbox"),
    ] {
        assert_eq!(code(&bench.ask(request).await), (status, expected), "{request}");
    }
    let whole = text(bench.connect(), "PUT /v1/sandboxes/web/ports HTTP/1.0\r\n\r\n").await.to_lowercase();
    assert!(whole.contains("allow: get,head,post,delete"), "{whole}");
}

#[tokio::test]
async fn flows_come_in_pages() {
    let bench = Bench::new("flows", Limits::default());
    let request = "GET /v1/flows?limit=7&cursor=3&sandbox=web HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answer = tokio::spawn(response(bench.connect(), request));
    let Command::Flows { cursor: 3, limit: 7, reply } = bench.command().await else { panic!() };
    let flow = |sandbox: &str| FlowInfo {
        protocol: "tcp".into(),
        kind: FlowKind::Out,
        sandbox: sandbox.into(),
        inside: SocketAddr::from(([10, 0, 2, 100], 4444)),
        outside: Some(SocketAddr::from(([192, 0, 2, 1], 80))),
        state: "open".into(),
    };
    reply.send(FlowPage { flows: vec![flow(ID), flow("ffff")], next: Some(10) }).unwrap();
    assert_eq!(
        answer.await.unwrap(),
        (
            200,
            json!({"next": 10, "flows": [{
                "protocol": "tcp", "kind": "out", "sandbox": ID, "inside": "10.0.2.100:4444",
                "outside": "192.0.2.1:80", "state": "open",
            }]})
        )
    );
}

#[tokio::test]
async fn a_worker_that_has_gone_is_an_error_with_a_code() {
    let mut bench = Bench::new("gone", Limits::default());
    bench.commands = std::sync::mpsc::channel().1;
    for path in ["/v1/counters", "/v1/flows", "/metrics"] {
        assert_eq!(code(&bench.ask(&format!("GET {path}")).await), (503, "worker_gone"));
    }
}

#[tokio::test]
async fn metrics_are_text() {
    let bench = Bench::new("metrics", Limits::default());
    bench.state.handle_published(ID, WAY, vec![port("127.0.0.1:8080", "8080:80")]);
    let answer = tokio::spawn(text(bench.connect(), "GET /metrics HTTP/1.0\r\n\r\n"));
    let Command::Snapshot { reply } = bench.command().await else { panic!() };
    reply.send(Snapshot { frames_in: 7, ..Snapshot::default() }).unwrap();
    let answer = answer.await.unwrap();
    assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
    assert!(answer.contains("\ntapline_frames_received_total{network=\"private\"} 7\n"), "{answer}");
    assert!(answer.contains("\ntapline_published_ports{protocol=\"tcp\"} 1\n"), "{answer}");
}

/// A stream of events that is read line by line.
struct Events(UnixStream, Vec<u8>);

impl Events {
    /// HTTP/1.0: the body comes as it is, to the end of the connection.
    async fn open(bench: &Bench) -> Events {
        let mut stream = bench.connect();
        stream.write_all(b"GET /v1/events HTTP/1.0\r\n\r\n").await.unwrap();
        let mut events = Events(stream, Vec::new());
        assert!(events.line().await.starts_with("HTTP/1.0 200"));
        while !events.line().await.trim().is_empty() {}
        events
    }

    async fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.1.iter().position(|byte| *byte == b'\n') {
                return String::from_utf8(self.1.drain(..=end).collect()).unwrap();
            }
            let n = timeout(PATIENCE, self.0.read_buf(&mut self.1)).await.unwrap().unwrap();
            assert!(n > 0, "the stream has ended");
        }
    }

    async fn next(&mut self) -> Value {
        serde_json::from_str(&self.line().await).unwrap()
    }
}

#[tokio::test]
async fn what_happens_is_told_to_those_who_listen() {
    let bench = Bench::new("events", Limits { places: 1, ..Limits::default() });
    let (old, new) = (port("127.0.0.1:8080", "8080:80"), port("127.0.0.1:8081", "8081:80"));
    bench.state.handle_published(ID, WAY, vec![old.clone()]);
    let mut events = Events::open(&bench).await;
    let mut also = Events::open(&bench).await;
    let hello = events.next().await;
    assert_eq!((&hello["event"], &hello["ports"]), (&"hello".into(), &json!([old])));
    assert_eq!(hello["sandboxes"][0]["endpoint"]["name"], "web");
    assert_eq!(hello["version"], env!("CARGO_PKG_VERSION"));
    // The one place is free again.
    assert_eq!(bench.ask("GET /v1/sandboxes").await.0, 200);

    bench.state.handle_published(ID, WAY, vec![new.clone()]);
    bench.state.handle_unpublished(ID, WAY, &[old.key()]);
    bench.state.handle_notice(ID, "ping sockets are closed");
    bench.state.handle_host_changed(ID, &HostView::default());
    bench.state.handle_detached(ID, WAY);
    for stream in [&mut events, &mut also] {
        let mut kinds = Vec::new();
        while kinds.last().is_none_or(|kind| kind != "sandbox_ended") {
            let event = stream.next().await;
            assert!(event["time"].as_f64().unwrap() > 1.6e9);
            match event["event"].as_str().unwrap() {
                "hello" => continue,
                "port_published" => assert_eq!(event["port"], json!(new)),
                "port_unpublished" => assert_eq!(event["port"], json!(old)),
                "notice" => assert_eq!(event["text"], "ping sockets are closed"),
                _ => {}
            }
            assert_eq!(event["sandbox"], ID);
            kinds.push(event["event"].as_str().unwrap().to_owned());
        }
        assert_eq!(kinds, ["port_published", "port_unpublished", "notice", "host_changed", "sandbox_ended"]);
    }
}

#[tokio::test]
async fn streams_are_bounded_and_free_again_when_their_reader_leaves() {
    let bench = Bench::new("streams", Limits::default());
    let mut streams = Vec::new();
    for _ in 0..events::MAX_STREAMS {
        streams.push(Events::open(&bench).await);
    }
    assert_eq!(code(&bench.ask("GET /v1/events").await), (503, "too_many_streams"));
    streams.pop();
    let begun = Instant::now();
    while bench.state.streams.available_permits() == 0 {
        assert!(begun.elapsed() < PATIENCE);
        tokio::task::yield_now().await;
    }
    // HEAD reads no stream, and keeps no place beyond its answer.
    assert!(text(bench.connect(), "HEAD /v1/events HTTP/1.1\r\nHost: x\r\n\r\n").await.starts_with("HTTP/1.1 200"));
    Events::open(&bench).await.next().await;
}

#[tokio::test]
async fn silent_connections_are_closed_and_then_others_are_served() {
    let idle = Duration::from_millis(200);
    let bench = Bench::new("silent", Limits { idle, stall: PATIENCE, ..Limits::default() });
    let mut silent: Vec<_> = (0..guard::MAX_CONNECTIONS).map(|_| bench.connect()).collect();
    // Half a request is silence as well, and so is a body that does not come.
    silent[0].write_all(b"GET /v1/sandb").await.unwrap();
    let head = b"POST /v1/sandboxes/web/ports HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n";
    silent[1].write_all(head).await.unwrap();
    assert_eq!(bench.ask("GET /v1/sandboxes").await.0, 200);
    for stream in &mut silent {
        let _ = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.unwrap();
    }
}

#[tokio::test]
async fn a_client_that_waits_for_us_is_not_silent() {
    let idle = Duration::from_millis(50);
    let bench = Bench::new("waits", Limits { idle, ..Limits::default() });
    let request = "GET /v1/flows HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answer = tokio::spawn(response(bench.connect(), request));
    let Command::Flows { reply, .. } = bench.command().await else { panic!() };
    tokio::time::sleep(4 * idle).await;
    reply.send(FlowPage::default()).unwrap();
    assert_eq!(answer.await.unwrap().0, 200);
}

#[tokio::test]
async fn a_trickle_ends_as_well() {
    let limits = Limits { idle: Duration::from_millis(100), lifetime: Duration::from_millis(300), ..Limits::default() };
    let bench = Bench::new("trickle", limits);
    let mut stream = bench.connect();
    let begun = Instant::now();
    // Header by header, never silent.
    let mut sent = stream.write_all(b"GET /v1/sandboxes HTTP/1.1\r\n").await;
    while sent.is_ok() && begun.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(20)).await;
        sent = stream.write_all(b"x: y\r\n").await;
    }
    assert!(begun.elapsed() < Duration::from_secs(5));
    // Request by request, each quick.
    let mut stream = bench.connect();
    let begun = Instant::now();
    let mut buffer = vec![0; 4096];
    while begun.elapsed() < PATIENCE {
        if stream.write_all(b"GET /v1/sandboxes HTTP/1.1\r\nHost: x\r\n\r\n").await.is_err()
            || stream.read(&mut buffer).await.unwrap_or(0) == 0
        {
            break;
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn those_who_keep_a_place_for_nothing_yield_it_when_others_wait() {
    // Without a time limit that could help.
    let stall = Duration::from_millis(50);
    let bench = Bench::new("stall", Limits { idle: PATIENCE, stall, ..Limits::default() });
    let mut hostile = Vec::new();
    for at in 0..500 {
        let mut stream = bench.connect();
        let bytes: &[u8] = match at % 5 {
            0 => b"",
            1 => b"GET /v1/sand",
            2 => b"POST /v1/sandboxes/web/ports HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n{",
            3 => b"GET /v1/sandboxes HTTP/1.1\r\nHost: x\r\n\r\n",
            _ => b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        };
        let _ = stream.write_all(bytes).await;
        hostile.push(stream);
    }
    let begun = Instant::now();
    assert_eq!(bench.ask("GET /v1/sandboxes").await.0, 200);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn five_hundred_at_once_are_all_served() {
    let bench = Bench::new("crowd", Limits::default());
    let crowd: Vec<_> = (0..500)
        .map(|_| {
            let request = "GET /v1/sandboxes/web/ports HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
            tokio::spawn(response(bench.connect(), request))
        })
        .collect();
    for client in crowd {
        assert_eq!(client.await.unwrap().0, 200);
    }
}

#[tokio::test]
async fn nonsense_is_refused_or_closed() {
    let bench = Bench::new("nonsense", Limits::default());
    let long = format!("GET /v1/sandboxes HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(100_000));
    let many = format!("GET /v1/sandboxes HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(1000));
    let path = format!("GET /{} HTTP/1.1\r\n\r\n", "z".repeat(70_000));
    for request in [
        "\0\x01\x02\x03\r\n\r\n",
        "GET\r\n\r\n",
        "GET /v1/sandboxes HTTP/3.0\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET /v1/sandboxes HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        "GET /v1/sandboxes HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "GET /v1/sandboxes HTTP/1.1\r\nTransfer-Encoding: nonsense\r\n\r\n",
        "POST /v1/sandboxes/web/ports HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        &long,
        &many,
        &path,
    ] {
        let answer = text(bench.connect(), request).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{request:.60?}: {answer}");
    }
    // Requests that do not wait for each other's answers are answered in their order.
    let requests = "GET /v1/nowhere HTTP/1.1\r\nHost: x\r\n\r\n".repeat(20);
    let last = "GET /v1/sandboxes HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answers = text(bench.connect(), &format!("{requests}{last}")).await;
    assert_eq!(answers.matches("HTTP/1.1 404").count(), 20);
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 1);
}

#[tokio::test]
async fn requests_that_wait_for_a_supervisor_are_bounded_and_leave_when_it_is_too_late() {
    let mut bench = Bench::new("asking", Limits::default());
    let request: &str = with_body("POST /v1/sandboxes/web/ports", "application/json", r#"{"spec":"80"}"#).leak();
    let waiting: Vec<_> = (0..ports::MAX_ASKING).map(|_| tokio::spawn(response(bench.connect(), request))).collect();
    let begun = Instant::now();
    while bench.state.asking.available_permits() > 0 {
        assert!(begun.elapsed() < PATIENCE);
        tokio::task::yield_now().await;
    }
    assert_eq!(code(&response(bench.connect(), request).await), (503, "busy"));
    // One at a time is with the supervisor; a client that leaves gives no turn away.
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    assert!(matches!(bench.said.recv().await, Some(FromGateway::WantPublish { request: 1, .. })));
    assert!(timeout(Duration::from_millis(50), bench.said.recv()).await.is_err());
    bench.state.handle_answer(ID, 1, None);
    assert!(matches!(bench.said.recv().await, Some(FromGateway::WantPublish { request: 2, .. })));
}

#[tokio::test]
async fn what_comes_of_a_request_too_late_is_not_the_next_ones() {
    let mut bench = Bench::new("late", Limits::default());
    let patience = |bench: &Bench, patience| {
        bench.state.shown().sandbox(ID).unwrap().supervisor.patience = patience;
    };
    let (first, second) = (port("127.0.0.1:8080", "8080:80"), port("127.0.0.1:8081", "8081:80"));
    let post = "POST /v1/sandboxes/web/ports";
    // The supervisor gets this one, and one that would come after it does not get its turn.
    patience(&bench, Duration::from_millis(50));
    for _ in 0..2 {
        assert_eq!(code(&bench.send(post, r#"{"spec":"8080:80"}"#).await), (504, "no_answer"));
    }
    patience(&bench, PATIENCE);
    let request: &str = with_body(post, "application/json", r#"{"spec":"8081:80"}"#).leak();
    let answer = tokio::spawn(response(bench.connect(), request));
    assert!(matches!(bench.said.recv().await, Some(FromGateway::WantPublish { request: 1, .. })));
    assert!(timeout(Duration::from_millis(50), bench.said.recv()).await.is_err());
    // It wakes.
    bench.state.handle_published(ID, WAY, vec![first.clone()]);
    bench.state.handle_answer(ID, 1, None);
    match timeout(PATIENCE, bench.said.recv()).await.unwrap().unwrap() {
        FromGateway::WantPublish { request, spec, .. } => {
            assert_eq!(spec, "8081:80");
            bench.state.handle_published(ID, WAY, vec![second.clone()]);
            bench.state.handle_answer(ID, request, None);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(answer.await.unwrap(), (201, json!({"ports": [second]})));
    // A request without an answer ends with its sandbox, and leaves its place to others.
    let request: &str = with_body(post, "application/json", r#"{"spec":"8082:80"}"#).leak();
    let answer = tokio::spawn(response(bench.connect(), request));
    assert!(timeout(PATIENCE, bench.said.recv()).await.unwrap().is_some());
    bench.state.handle_detached(ID, WAY);
    assert_eq!(code(&answer.await.unwrap()), (503, "sandbox_ended"));
    assert_eq!(bench.state.asking.available_permits(), ports::MAX_ASKING);
}

#[tokio::test]
async fn what_the_sandbox_no_longer_listens_at_is_taken_back_on_nobodys_request() {
    let mut bench = Bench::new("own", Limits::default());
    let state = Arc::clone(&bench.state);
    let asked = port("127.0.0.1:8080", "8080:80");
    let own = |host| Published { origin: Origin::Auto, ..port(host, "auto") };
    let (leaves, named) = (own("127.0.0.1:9000"), own("127.0.0.1:9001"));
    for (spec, taken_back) in [("8080:80", &asked), ("127.0.0.1:9001:80", &named), ("9001:80", &named)] {
        state.handle_published(ID, WAY, vec![asked.clone(), leaves.clone(), named.clone()]);
        let request: &str =
            format!("DELETE /v1/sandboxes/web/ports?spec={spec} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                .leak();
        let answer = tokio::spawn(response(bench.connect(), request));
        let said = timeout(PATIENCE, bench.said.recv()).await.unwrap();
        let Some(FromGateway::WantUnpublish { request, .. }) = said else { panic!("{said:?}") };
        state.handle_unpublished(ID, WAY, &[leaves.key(), taken_back.key()]);
        state.handle_answer(ID, request, None);
        assert_eq!(answer.await.unwrap(), (200, json!({"ports": [taken_back]})), "{spec}");
    }
}

/// The same sandbox on a network of this name.
fn on(network: &str) -> SandboxInfo {
    let mut info = sandbox(ID, "web");
    info.network.name = network.into();
    SandboxInfo::new(info.endpoint, info.network, info.host)
}

fn worker() -> (CommandSender, CommandReceiver, mio::Poll) {
    let poll = mio::Poll::new().unwrap();
    let (sender, commands) = CommandSender::new(mio::Waker::new(poll.registry(), mio::Token(0)).unwrap());
    (sender, commands, poll)
}

#[tokio::test]
async fn a_sandbox_on_two_networks_is_one_and_leaves_with_the_last() {
    let mut bench = Bench::new("two", Limits::default());
    let mut events = Events::open(&bench).await;
    events.next().await;
    let (also, mut second) = mpsc::channel(8);
    bench.state.handle_attached(2, on("back"), also);
    let (_, shown) = bench.ask("GET /v1/sandboxes").await;
    assert_eq!(shown["sandboxes"].as_array().unwrap().len(), 1);
    let networks = |info: &Value| -> Vec<String> {
        let all = info["endpoints"].as_array().unwrap().iter();
        all.map(|endpoint| endpoint["network"]["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(networks(&shown["sandboxes"][0]), ["private", "back"]);
    let (one, two) = (port("127.0.0.1:8080", "8080:80"), port("127.0.0.1:8081", "8081:80"));
    bench.state.handle_published(ID, WAY, vec![one.clone()]);
    bench.state.handle_published(ID, 2, vec![two.clone()]);
    assert_eq!(bench.ask("GET /v1/sandboxes/web/ports").await.1, json!({"ports": [one, two]}));
    // Not its to take back.
    bench.state.handle_unpublished(ID, 2, &[one.key()]);

    assert!(!bench.state.handle_detached(ID, WAY));
    assert_eq!(bench.ask("GET /v1/sandboxes/web/ports").await.1, json!({"ports": [two]}));
    let (_, left) = bench.ask("GET /v1/sandboxes/web").await;
    assert_eq!((networks(&left), &left["network"]["name"]), (vec!["back".into()], &"back".into()));
    // Its supervisor is asked by the way that is left.
    let answer = tokio::spawn(response(
        bench.connect(),
        with_body("POST /v1/sandboxes/web/ports", "application/json", r#"{"spec":"80"}"#).leak(),
    ));
    match timeout(PATIENCE, second.recv()).await.unwrap().unwrap() {
        FromGateway::WantPublish { request, .. } => bench.state.handle_answer(ID, request, None),
        other => panic!("{other:?}"),
    }
    assert_eq!(answer.await.unwrap().0, 201);
    assert!(bench.said.try_recv().is_err());
    assert!(bench.state.handle_detached(ID, 2));
    let mut kinds = Vec::new();
    while kinds.last().is_none_or(|kind| kind != "sandbox_ended") {
        kinds.push(events.next().await["event"].as_str().unwrap().to_owned());
    }
    let expected =
        ["network_connected", "port_published", "port_published", "port_unpublished", "network_disconnected"];
    assert_eq!(kinds, [&expected[..], &["sandbox_ended"]].concat());
}

#[tokio::test]
async fn counters_are_of_each_network_and_of_all() {
    let bench = Bench::new("sum", Limits::default());
    let (sender, back, _poll) = worker();
    bench.state.handle_network_started("back", sender);
    let get = "GET /v1/counters HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answer = tokio::spawn(response(bench.connect(), get));
    let Command::Snapshot { reply } = bench.command().await else { panic!() };
    let dropped = |count| [("spoofed".to_owned(), count)].into();
    reply.send(Snapshot { frames_in: 7, dropped: dropped(2), ..Snapshot::default() }).unwrap();
    let Ok(Command::Snapshot { reply }) = back.try_recv() else { panic!("all are asked at once") };
    reply.send(Snapshot { frames_in: 5, dropped: dropped(1), ..Snapshot::default() }).unwrap();
    let (status, counters) = answer.await.unwrap();
    assert_eq!((status, &counters["frames_in"], &counters["dropped"]["spoofed"]), (200, &12.into(), &3.into()));
    assert_eq!(counters["networks"]["back"]["frames_in"], 5);
    assert_eq!(code(&bench.ask("GET /v1/counters?network=nowhere").await), (404, "no_such_network"));

    // Flows: one network after the other.
    let mut next = json!(0);
    for (at, of_back) in [(0, false), (3, false), (0, true), (4, true)] {
        let request: &str =
            format!("GET /v1/flows?cursor={next} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").leak();
        let answer = tokio::spawn(response(bench.connect(), request));
        let command = if of_back {
            timeout(PATIENCE, async {
                loop {
                    match back.try_recv() {
                        Ok(command) => return command,
                        Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                    }
                }
            })
            .await
            .unwrap()
        } else {
            bench.command().await
        };
        let Command::Flows { cursor, reply, .. } = command else { panic!() };
        assert_eq!(cursor, at);
        let more = if of_back { 4 } else { 3 };
        reply.send(FlowPage { flows: Vec::new(), next: (cursor == 0).then_some(more) }).unwrap();
        next = answer.await.unwrap().1["next"].clone();
    }
    assert_eq!(next, Value::Null);
    // A network that has gone is passed over.
    bench.state.handle_network_stopped("back");
    let (status, page) = bench.ask(&format!("GET /v1/flows?cursor={}", 1_u64 << WORKER_CURSOR | 4)).await;
    assert_eq!((status, page), (200, json!({"flows": [], "next": null})));
}

/// Every word that a program may meet is on the page: taken from the sources, so that none is forgotten.
#[test]
fn the_manual_page_has_every_path_code_event_and_metric() {
    let page = include_str!("../../../man/tapline-api.7").replace('\\', "");
    let router = include_str!("mod.rs");
    let sources = [
        router,
        include_str!("ports.rs"),
        include_str!("events.rs"),
        include_str!("metrics.rs"),
        include_str!("guard.rs"),
    ];
    let missing = |word: &str| assert!(page.contains(word), "man/tapline-api.7 does not say {word}");
    for path in router.split(".route(\"").skip(1) {
        missing(&path.split('"').next().unwrap().replace("{id}", "ID"));
    }
    let mut codes = 0;
    for call in sources.iter().flat_map(|source| source.split("StatusCode::").skip(1)) {
        let Some((_, rest)) = call.split_once(", \"") else { continue };
        let (code, rest) = rest.split_once('"').unwrap();
        if rest.starts_with(", ") && code.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
            missing(&format!("fB{code}fR"));
            codes += 1;
        }
    }
    assert!(codes > 15, "{codes}");
    for code in ["bad_spec", "taken", "privileged", "no_such_address", "not_published", "exhausted", "failed"] {
        missing(&format!("fB{code}fR"));
    }
    let events = ["hello", "port_published", "port_unpublished", "host_changed", "notice", "sandbox_attached"];
    let events = events.iter().chain(&["network_connected", "network_disconnected"]);
    for event in events.chain(&["sandbox_ended", "lost", "heartbeat"]) {
        missing(&format!("fB{event}fR"));
    }
    missing(concat!("\"tapline ", env!("CARGO_PKG_VERSION"), "\""));
    let metrics = sources[3].split("#[cfg(test)]").next().unwrap();
    for metric in metrics.split("page.family(\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        missing(&format!("fB{metric}fR"));
    }
    let ports = serde_json::to_value(port("127.0.0.1:1", "a")).unwrap();
    let sandbox = serde_json::to_value(sandbox(ID, "web")).unwrap();
    let datapath = Snapshot::default();
    let counters = CountersInfo { datapath, dns: DnsStats::default(), networks: BTreeMap::new() };
    let counters = serde_json::to_value(counters).unwrap();
    for object in [&ports, &sandbox, &sandbox["endpoint"], &sandbox["network"], &sandbox["host"], &counters] {
        object.as_object().unwrap().keys().for_each(|field| missing(&format!("fB{field}fR")));
    }
}
