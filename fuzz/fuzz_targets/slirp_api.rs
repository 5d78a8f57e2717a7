//! Requests to slirp4netns' API, as they come in pieces: answered, refused or waited for, and the same answer however
//! they are cut.
#![no_main]
use std::net::{IpAddr, Ipv4Addr};

use libfuzzer_sys::fuzz_target;
use tapline::control::hostfwd::{Forwards, MOST, Refusal, Request, complete};
use tapline::plan::{PublishSpec, check_specs};

const OWN: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 100));

fuzz_target!(|bytes: &[u8]| {
    let all = complete(bytes, true).expect("nothing more will come");
    if bytes.len() >= MOST {
        assert_eq!(all, Err(Refusal::TooLarge));
        return;
    }
    // The first piece that is enough says what all of it says. What follows may only spoil a number.
    for end in [bytes.len() / 4, bytes.len() / 2, bytes.len()] {
        match complete(&bytes[..end], false) {
            Some(Ok(request)) => assert_eq!(all, Ok(request)),
            Some(Err(Refusal::NoJson)) => assert_eq!(all, Err(Refusal::NoJson)),
            Some(Err(_)) | None => {}
        }
    }
    match all {
        Ok(Request::Add(forward)) => {
            let spec = forward.spec(OWN);
            // A group's address, which nobody can listen at, is no address on the command line.
            if let Ok(again) = PublishSpec::parse(&spec.text) {
                assert!(again.means_same(&spec) && check_specs(&[spec, again]).is_err());
            }
            let mut forwards = Forwards::new(OWN);
            forwards.added(&forward, 7);
            assert_eq!((forwards.ticket(1), forwards.ticket(2)), (Ok(7), Err(Refusal::Remove)));
            let list: serde_json::Value = serde_json::from_str(&forwards.list()).expect("JSON");
            assert_eq!(list["entries"], list["return"]["entries"]);
            assert_eq!(list["entries"][0]["host_port"], forward.host_port);
        }
        Ok(Request::List | Request::Remove(_)) => {}
        Err(refusal) => {
            let answer: serde_json::Value = serde_json::from_str(&refusal.answer()).expect("JSON");
            let desc = answer["error"]["desc"].as_str().expect("a text");
            assert!(desc.starts_with("bad request: ") && desc.len() < 100);
        }
    }
});
