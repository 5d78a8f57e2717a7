use super::*;
use proptest::prelude::*;

const OWN: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 100));

fn asked(text: &str) -> Result<Request, Refusal> {
    complete(text.as_bytes(), true).unwrap()
}

fn add(arguments: Value) -> Result<Forward, Refusal> {
    match asked(&json!({ "execute": "add_hostfwd", "arguments": arguments }).to_string())? {
        Request::Add(forward) => Ok(forward),
        other => panic!("{other:?}"),
    }
}

fn desc(refusal: Refusal) -> String {
    let answer: Value = serde_json::from_str(&refusal.answer()).unwrap();
    answer["error"]["desc"].as_str().unwrap().to_owned()
}

#[test]
fn a_port_is_forwarded_as_the_documentation_shows_it() {
    let text = r#"{"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_addr": "0.0.0.0", "host_port": 8080,
                   "guest_addr": "10.0.2.100", "guest_port": 80}}"#;
    let Ok(Request::Add(forward)) = asked(text) else { panic!() };
    let spec = forward.spec(OWN);
    assert_eq!(spec.to_string(), "0.0.0.0:8080:80");
    assert_eq!(spec.manner.sandbox_address, None);
}

#[test]
fn addresses_may_be_absent_empty_or_of_ipv6() {
    let bare = add(json!({ "proto": "udp", "host_port": 53, "guest_port": 5353 })).unwrap();
    let empty = json!({ "proto": "udp", "host_addr": "", "host_port": 53, "guest_addr": "", "guest_port": 5353 });
    let odd = json!({ "proto": "udp", "host_addr": 7, "host_port": 53, "guest_addr": null, "guest_port": 5353 });
    assert_eq!(add(empty), Ok(bare.clone()));
    assert_eq!(add(odd), Ok(bare.clone()));
    assert_eq!((bare.host, bare.guest), (IpAddr::V4(Ipv4Addr::UNSPECIFIED), None));
    let v6 = json!({ "proto": "tcp", "host_addr": "::1", "host_port": 80, "guest_addr": "fd00::7", "guest_port": 80 });
    let v6 = add(v6).unwrap();
    assert_eq!(v6.spec(OWN).to_string(), "[::1]:80:80");
    assert_eq!(v6.spec(OWN).manner.sandbox_address, Some("fd00::7".parse().unwrap()));
    let nowhere = Forward { guest: Some(Ipv4Addr::UNSPECIFIED.into()), ..bare };
    assert_eq!(nowhere.spec(OWN).manner.sandbox_address, None);
}

#[test]
fn arguments_that_will_not_do_are_named() {
    let good = json!({ "proto": "tcp", "host_addr": "", "host_port": 80, "guest_addr": "", "guest_port": 80 });
    assert!(add(good.clone()).is_ok());
    for (name, bad) in [
        ("proto", json!("sctp")),
        ("proto", json!("TCP")),
        ("proto", json!(null)),
        ("proto", json!(6)),
        ("host_addr", json!("localhost")),
        ("host_addr", json!("10.0.0.1/8")),
        ("guest_addr", json!("y")),
        ("host_port", json!(0)),
        ("host_port", json!(-1)),
        ("host_port", json!(65536)),
        ("host_port", json!("80")),
        ("host_port", json!(null)),
        ("guest_port", json!(0.5)),
        ("guest_port", json!(70000)),
        ("guest_port", json!([80])),
    ] {
        let mut arguments = good.clone();
        arguments[name] = bad.clone();
        assert_eq!(add(arguments), Err(Refusal::Add(name)), "{name} {bad}");
    }
    for arguments in [json!([]), json!(null), json!("tcp"), json!({})] {
        assert_eq!(add(arguments), Err(Refusal::Add("proto")));
    }
    assert_eq!(asked(r#"{"execute":"add_hostfwd"}"#), Err(Refusal::Add("proto")));
    assert_eq!(desc(Refusal::Add("guest_port")), "bad request: add_hostfwd: bad arguments.guest_port");
    assert_eq!(desc(Refusal::AddFailed), "bad request: add_hostfwd: slirp_add_hostfwd failed");
    // A fraction is cut off.
    assert_eq!(add(json!({ "proto": "tcp", "host_port": 80.9, "guest_port": 81.0 })).unwrap().host_port, 80);
}

#[test]
fn what_is_no_request_is_told_why() {
    for (text, why) in [
        ("", "cannot parse JSON"),
        ("x", "cannot parse JSON"),
        ("{", "cannot parse JSON"),
        (r#"{"execute":"list_hostfwd""#, "cannot parse JSON"),
        ("[]", "json_object() failed"),
        ("1", "json_object() failed"),
        ("null", "json_object() failed"),
        ("\"x\"", "json_object() failed"),
        ("{}", "no execute found"),
        (r#"{"execute":1}"#, "no execute found"),
        (r#"{"execute":"x"}"#, "unknown execute"),
        (r#"{"execute":"remove_hostfwd"}"#, "remove_hostfwd: bad arguments.id"),
        (r#"{"execute":"remove_hostfwd","arguments":{"id":"1"}}"#, "remove_hostfwd: bad arguments.id"),
        (r#"{"execute":"remove_hostfwd","arguments":{"id":-1}}"#, "remove_hostfwd: bad arguments.id"),
        (r#"{"execute":"remove_hostfwd","arguments":[]}"#, "remove_hostfwd: bad arguments.id"),
    ] {
        let refusal = asked(text).unwrap_err();
        assert_eq!(refusal.answer(), format!("{{\"error\":{{\"desc\":\"bad request: {why}\"}}}}"), "{text}");
    }
    assert_eq!(complete(b"\xff\xfe", true), Some(Err(Refusal::NoJson)));
}

#[test]
fn a_message_of_four_kilobytes_is_too_large() {
    let padded = |bytes: usize| format!("{}{}", " ".repeat(bytes - 26), r#"{"execute":"list_hostfwd"}"#);
    assert_eq!(padded(4095).len(), 4095);
    assert_eq!(asked(&padded(4095)), Ok(Request::List));
    assert_eq!(asked(&padded(4096)), Err(Refusal::TooLarge));
    assert_eq!(complete("{".repeat(5000).as_bytes(), false), Some(Err(Refusal::TooLarge)));
    assert_eq!(desc(Refusal::TooLarge), "bad request: too large message");
}

#[test]
fn a_request_is_complete_as_soon_as_its_object_is() {
    let text = "{\"execute\":\"list_hostfwd\"}";
    for end in 0..text.len() {
        assert_eq!(complete(&text.as_bytes()[..end], false), None, "{end}");
    }
    for behind in ["", "\n", " \r\n", "\0", " more"] {
        let all = format!("\n {text}{behind}");
        assert_eq!(complete(all.as_bytes(), false), Some(Ok(Request::List)), "{behind:?}");
    }
    // What will never be JSON is not waited for.
    assert_eq!(complete(b"hello", false), Some(Err(Refusal::NoJson)));
}

#[test]
fn numbers_begin_with_one_and_are_not_given_twice() {
    let mut forwards = Forwards::new(OWN);
    assert_eq!(forwards.list(), r#"{"return":{"entries":[]},"entries":[]}"#);
    let forward = add(json!({ "proto": "tcp", "host_port": 8080, "guest_port": 80 })).unwrap();
    assert_eq!(forwards.added(&forward, 70), r#"{"return":{"id":1}}"#);
    let other = Forward { protocol: Protocol::Udp, host: "::1".parse().unwrap(), ..forward.clone() };
    assert_eq!(forwards.added(&other, 71), r#"{"return":{"id":2}}"#);
    assert_eq!((forwards.ticket(1), forwards.ticket(2), forwards.ticket(3)), (Ok(70), Ok(71), Err(Refusal::Remove)));
    forwards.forget(71);
    assert_eq!(forwards.added(&other, 72), r#"{"return":{"id":3}}"#);
    let entries = r#"[{"id":1,"proto":"tcp","host_addr":"0.0.0.0","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80},{"id":3,"proto":"udp","host_addr":"::1","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80}]"#;
    assert_eq!(forwards.list(), format!("{{\"return\":{{\"entries\":{entries}}},\"entries\":{entries}}}"));
    assert_eq!(Forwards::removed(), r#"{"return":{}}"#);
}

proptest! {
    #[test]
    fn any_bytes_are_answered_or_waited_for(bytes in proptest::collection::vec(any::<u8>(), 0..200), is_all: bool) {
        match complete(&bytes, is_all) {
            None => prop_assert!(!is_all),
            Some(Err(refusal)) => prop_assert!(serde_json::from_str::<Value>(&refusal.answer()).is_ok()),
            Some(Ok(_)) => {}
        }
    }
}
