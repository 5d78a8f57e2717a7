//! What a supervisor asks a gateway to serve: refused, or served.
#![no_main]
use libfuzzer_sys::fuzz_target;
use tapline::control::messages::ToGateway;
use tapline::fuzzing;
use tapline_fuzz::World;

fuzz_target!(|bytes: &[u8]| {
    let Ok(ToGateway::Attach { network, endpoint, host, .. }) = serde_json::from_slice(bytes) else { return };
    if fuzzing::check_network(&network, &endpoint).is_err() {
        return;
    }
    let mut world = World::of(network, endpoint);
    world.gateway.handle_host_changed(host);
    world.greet();
    world.finish();
});
