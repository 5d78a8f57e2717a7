//! The clock jumps by hours: the machine was suspended, or a virtual one stopped.
use super::*;

/// What a jump may be. (Instants count from boot, so none is negative. From a week on smoltcp's estimate of the round
/// trip time, in milliseconds, overflows: a panic where overflows are checked, one wrong estimate elsewhere.)
const JUMPS: [Duration; 3] =
    [Duration::from_secs(61), Duration::from_secs(6 * 3600), Duration::from_secs(3 * 24 * 3600)];

/// Packets either way that one jump may cause for one flow: whatever is due is due once, not once for each interval
/// that has passed.
const FEW: usize = 20;

impl Sim {
    /// Everything that is on its way arrives; then so much time passes at once.
    fn sleep(&mut self, time: Duration) {
        for _ in 0..3 {
            self.step(Duration::from_millis(5));
        }
        self.step(time);
    }
}

#[test]
fn hours_asleep_in_the_middle_of_transfers_lose_nothing() {
    for jump in JUMPS {
        let mut sim = Sim::new(1500, Trouble::none());
        let client = sim.connect("192.0.2.1:80");
        sim.run_until("connected", |s| !s.streams.is_empty() && s.client(client).may_send());
        let (out, back) = (pattern(3_000_000), pattern(2_000_000));
        sim.stream().to_give.extend(&back);
        let (mut sent, mut got, mut rounds) = (0, Vec::new(), 0);
        while got.len() < back.len() || sim.stream().received.len() < out.len() {
            let socket = sim.client(client);
            if socket.can_send() && sent < out.len() {
                sent += socket.send_slice(&out[sent..]).unwrap();
            }
            while socket.can_recv() {
                socket.recv(|data| (data.len(), got.extend_from_slice(data))).unwrap();
            }
            // Packets of both sides are on their way when the clock jumps.
            sim.step(if rounds % 7 == 3 { jump } else { Duration::from_millis(5) });
            rounds += 1;
            assert!(rounds < 20_000, "{jump:?}: {sent} sent, {} got", got.len());
        }
        assert!(rounds > 14, "it was over before the clock jumped: {rounds}");
        assert!(got == back && sim.stream().received == out, "{jump:?}: bytes differ");
        assert!(sim.ended.is_empty(), "{jump:?}: {:?}", sim.ended);
    }
}

#[test]
fn an_idle_connection_outlives_hours_asleep_without_a_storm() {
    for jump in JUMPS {
        let mut sim = Sim::new(1500, Trouble::none());
        let client = sim.connect("192.0.2.1:80");
        sim.run_until("connected", |s| !s.streams.is_empty() && s.client(client).may_send());
        sim.client(client).set_keep_alive(Some(smoltcp::time::Duration::from_secs(30)));
        for _ in 0..5 {
            sim.sleep(jump);
            let mut packets = 0;
            for _ in 0..50 {
                sim.step(Duration::from_millis(5));
                packets += sim.device.incoming.len() + sim.link.packets.len();
            }
            assert!(packets <= FEW, "{jump:?}: {packets} packets");
        }
        assert_eq!(sim.host.keepalives, 1, "{jump:?}");
        sim.client(client).send_slice(b"awake").unwrap();
        sim.run_until("arrived", |s| s.stream().received == b"awake");
    }
}

#[test]
fn what_was_half_open_is_given_up_in_one_go() {
    for jump in JUMPS {
        let mut sim = Sim::new(1500, Trouble::none());
        sim.outcome = None;
        for _ in 0..50 {
            sim.connect("192.0.2.1:80");
        }
        sim.step(Duration::from_millis(5));
        assert_eq!(sim.host.connects.len(), 50);
        sim.sleep(jump);
        // The client tries again as it likes; the gateway answers nobody before the host has connected.
        sim.outcome = Some(Err(HostError::Refused));
        sim.run_until("all refused", |s| {
            s.sockets.iter().all(|(_, socket)| match socket {
                smoltcp::socket::Socket::Tcp(socket) => socket.state() == tcp::State::Closed,
            })
        });
        assert_eq!(sim.gateway.flows().0, 0, "{jump:?}");
    }
}

#[test]
fn a_close_that_sleep_comes_between_is_a_close() {
    for jump in JUMPS {
        let mut sim = Sim::new(1500, Trouble::none());
        let client = sim.connect("192.0.2.1:80");
        sim.run_until("connected", |s| !s.streams.is_empty() && s.client(client).may_send());
        sim.client(client).send_slice(b"all of it").unwrap();
        sim.client(client).close();
        sim.sleep(jump);
        sim.run_until("half-closed", |s| s.stream().write_shut);
        assert_eq!(sim.stream().received, b"all of it");
        sim.sleep(jump);
        sim.stream().ended = true;
        sim.run_until("closed", |s| !s.ended.is_empty());
        assert_eq!(sim.ended[0].1, End::Closed, "{jump:?}");
        sim.sleep(jump);
        assert_eq!(sim.gateway.flows().0, 0, "{jump:?}");
    }
}
