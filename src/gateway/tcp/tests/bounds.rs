//! What a sandbox that means harm can make the table hold.
use super::super::timers::LEAST_TIMERS;
use super::*;
use crate::gateway::tcp::memory::{LEAST, MOST_OF_A_SANDBOX};

/// So much more and the sandbox is pressed for memory.
fn nearly_pressed(sim: &mut Sim, left: usize) {
    let mut counted = 0;
    sim.gateway.tcp().memory.update(PORT, &mut counted, MOST_OF_A_SANDBOX - left);
}

fn established(sim: &mut Sim) -> SocketHandle {
    let client = sim.connect("192.0.2.1:80");
    sim.run_until("established", |s| s.client(client).state() == tcp::State::Established && !s.streams.is_empty());
    client
}

#[test]
fn whoever_is_pressed_for_memory_goes_on_and_loses_nothing() {
    for (to, trouble) in
        [("192.0.2.1:80", Trouble::none()), ("[2001:db8::1]:80", Trouble::none()), ("192.0.2.1:80", Trouble::some(5))]
    {
        let mut sim = Sim::new(1500, trouble);
        nearly_pressed(&mut sim, 0);
        let client = sim.connect(to);
        let (out, back) = (pattern(200_000), pattern(100_001));
        sim.run_until("connected", |s| !s.streams.is_empty());
        sim.stream().to_give.extend(&back);
        let (mut sent, mut got, mut most) = (0, Vec::new(), 0);
        sim.run_until("everything there", |s| {
            let socket = s.client(client);
            if socket.can_send() {
                sent += socket.send_slice(&out[sent..]).unwrap();
            }
            while socket.can_recv() {
                got.extend_from_slice(socket.recv(|data| (data.len(), data.to_vec())).unwrap().as_slice());
            }
            most = most.max(s.gateway.tcp().memory.of(PORT) - MOST_OF_A_SANDBOX);
            s.stream().received.len() == out.len() && got.len() == back.len()
        });
        assert!(sim.stream().received == out && got == back, "{to}");
        assert!(most <= 8 * LEAST, "{to}: {most}");
        sim.client(client).close();
        sim.stream().ended = true;
        sim.run_until("closed", |s| !s.ended.is_empty());
        assert_eq!(sim.ended[0].1, End::Closed);
        assert_eq!(sim.gateway.tcp().memory.of(PORT), MOST_OF_A_SANDBOX, "{to}: what ended holds nothing");
    }
}

#[test]
fn a_host_that_does_not_read_makes_a_sandboxes_rings_grow_to_their_bound_only() {
    const FLOWS: usize = 12;
    let mut sim = Sim::new(1500, Trouble::none());
    nearly_pressed(&mut sim, 1 << 20);
    let clients: Vec<_> = (0..FLOWS).map(|port| sim.connect(&format!("192.0.2.1:{}", 80 + port))).collect();
    sim.run_until("all connected", |s| s.streams.len() == FLOWS);
    sim.streams.values_mut().for_each(|stream| stream.takes = 0);
    let data = vec![7; 100_000];
    for _ in 0..400 {
        for client in &clients {
            let socket = sim.client(*client);
            if socket.can_send() {
                socket.send_slice(&data).unwrap();
            }
        }
        sim.step(Duration::from_millis(5));
    }
    let held = sim.gateway.tcp().memory.of(PORT);
    // The last segment before the bound may lie across it.
    let bound = MOST_OF_A_SANDBOX + FLOWS * 4 * LEAST + 65_536;
    assert!((MOST_OF_A_SANDBOX..=bound).contains(&held), "{held}, {bound}");
    assert!(sim.gateway.counters().dropped(DropReason::NoRoom) > 0);
}

#[test]
fn a_window_that_stays_closed_keeps_what_the_host_has_with_the_host() {
    const FLOWS: usize = 12;
    let mut sim = Sim::new(1500, Trouble::none());
    nearly_pressed(&mut sim, 1 << 20);
    for port in 0..FLOWS {
        sim.connect(&format!("192.0.2.1:{}", 80 + port));
    }
    sim.run_until("all connected", |s| s.streams.len() == FLOWS);
    // The clients take 256 KiB and read nothing.
    sim.streams.values_mut().for_each(|stream| stream.to_give.extend(vec![7; 3 << 20]));
    for _ in 0..1000 {
        sim.step(Duration::from_millis(20));
    }
    let held = sim.gateway.tcp().memory.of(PORT);
    let bound = MOST_OF_A_SANDBOX + FLOWS * 4 * LEAST + 65_536;
    assert!(held <= bound, "{held}, {bound}");
    let left: usize = sim.streams.values().map(|stream| stream.to_give.len()).sum();
    assert!(left > FLOWS * (2 << 20), "{left}");
    assert_eq!((sim.gateway.flows().0, sim.ended.len()), (FLOWS, 0), "nothing was reset");
}

#[test]
fn a_sandbox_that_says_nothing_more_is_given_up_and_one_with_a_closed_window_is_not() {
    for answers in [false, true] {
        let mut sim = Sim::new(1500, Trouble::none());
        established(&mut sim);
        // More than the client takes.
        sim.stream().to_give.extend(vec![7; 600_000]);
        for _ in 0..200 {
            sim.step(Duration::from_millis(5));
        }
        for second in 0..1100u64 {
            if !answers {
                sim.device.incoming.clear();
            }
            sim.step(Duration::from_secs(1));
            let given_up = !sim.ended.is_empty();
            assert!(!given_up || (!answers && second + 2 >= flow::GIVE_UP.as_secs()), "{answers} {second}");
        }
        assert_eq!((sim.gateway.flows().0, sim.ended.len()), if answers { (1, 0) } else { (0, 1) });
    }
}

#[test]
fn a_sandbox_that_was_silent_for_a_day_with_nothing_to_say_is_not_given_up() {
    let mut sim = Sim::new(1500, Trouble::none());
    let client = established(&mut sim);
    for _ in 0..24 {
        sim.step(Duration::from_secs(3600));
    }
    sim.stream().to_give.extend(*b"hello");
    sim.run_until("it comes", |s| s.client(client).recv_queue() == 5);
    for _ in 0..24 {
        sim.step(Duration::from_secs(3600));
    }
    sim.stream().ended = true;
    sim.run_until("the end comes", |s| s.client(client).state() == tcp::State::CloseWait);
    assert!(sim.ended.is_empty());
}

#[test]
fn handshakes_that_are_never_ended_are_half_open() {
    let mut sim = Sim::new(1500, Trouble::none());
    let mut syn = raw_segment(SYN, 1, 0, &[], &[]);
    for port in 0..HALF_OPEN_LIMIT as u16 + 10 {
        syn[20..22].copy_from_slice(&(2000 + port).to_be_bytes());
        let (src, dst) = ("10.0.2.100".parse().unwrap(), "192.0.2.1".parse().unwrap());
        TcpPacket::new_unchecked(&mut syn[20..]).fill_checksum(&IpAddress::Ipv4(src), &IpAddress::Ipv4(dst));
        sim.give_gateway(&syn);
        sim.step(Duration::ZERO);
        sim.device.incoming.clear();
    }
    assert_eq!(sim.gateway.flows().0, HALF_OPEN_LIMIT);
    assert_eq!(sim.gateway.counters().dropped(DropReason::HalfOpenLimit), 10);
    sim.step(Duration::from_secs(31));
    sim.device.incoming.clear();
    sim.step(Duration::ZERO);
    let client = sim.connect("192.0.2.1:80");
    sim.run_until("others again", |s| s.client(client).state() == tcp::State::Established);
}

#[test]
fn timers_of_flows_that_are_gone_do_not_pile_up() {
    let mut sim = Sim::new(1500, Trouble::none());
    for round in 0..3 * LEAST_TIMERS as u32 {
        sim.give_gateway(&raw_segment(SYN, round * 1000, 0, &[], &[]));
        sim.step(Duration::ZERO);
        sim.device.incoming.clear();
        const RST: u8 = 4;
        sim.give_gateway(&raw_segment(RST, round * 1000 + 1, 0, &[], &[]));
        sim.step(Duration::ZERO);
        sim.streams.clear();
        sim.host.connects.clear();
    }
    assert_eq!(sim.gateway.flows().0, 0);
    assert!(sim.gateway.tcp().timers.len() <= LEAST_TIMERS + 4, "{}", sim.gateway.tcp().timers.len());
}

#[test]
fn who_has_more_flows_than_there_are_descriptors_left_gets_no_more() {
    let mut sim = Sim::new(1500, Trouble::none());
    sim.host.left = Some(20);
    for port in 0..40 {
        sim.connect(&format!("192.0.2.1:{}", port + 1));
    }
    sim.step(Duration::from_millis(1));
    assert_eq!((sim.gateway.flows().0, sim.gateway.counters().dropped(DropReason::FlowLimit)), (21, 19));
}
