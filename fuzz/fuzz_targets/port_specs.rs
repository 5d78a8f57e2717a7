//! What people say about ports: read or refused, and written again with the same meaning.
#![no_main]
use libfuzzer_sys::fuzz_target;
use tapline::plan::{Expose, PublishArg, PublishSpec, Reach, check_specs, parse_clients, parse_port};

fuzz_target!(|text: &str| {
    match PublishSpec::parse(text) {
        Ok(spec) => {
            assert_eq!(spec.text, text);
            let again = PublishSpec::parse(&spec.to_string()).expect("what we write we can read");
            assert!(again.means_same(&spec) && again.proxy == spec.proxy);
            let alone = check_specs(std::slice::from_ref(&spec)).is_ok();
            let clash = check_specs(&[spec.clone(), again]).is_err();
            assert!(alone && clash == spec.host.is_some_and(|host| host.count() == spec.sandbox.count()));
        }
        Err(error) => {
            let error = error.to_string();
            assert!(error.len() < 2000 && !error.chars().any(|c| c.is_control() && c != '\n'));
        }
    }
    if let Ok(expose) = Expose::parse(text) {
        assert_eq!(Expose::parse(&expose.to_string()), Ok(expose));
        assert!(PublishSpec::parse(&expose.to_string()).expect("a spec too").means_same(&expose.spec(None)));
    }
    if let Ok(reach) = Reach::parse(text) {
        assert_eq!(Reach::parse(&reach.to_string()), Ok(reach));
    }
    let _ = (PublishArg::parse(text), parse_port(text), parse_clients(text));
});
