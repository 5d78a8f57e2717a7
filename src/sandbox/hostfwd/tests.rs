use super::*;
use std::net::Ipv4Addr;

const LIST: &[u8] = b"{\"execute\":\"list_hostfwd\"}";
const ADD: &[u8] =
    b"{\"execute\":\"add_hostfwd\",\"arguments\":{\"proto\":\"tcp\",\"host_port\":8080,\"guest_port\":80}}";
const EMPTY: &str = "{\"return\":{\"entries\":[]},\"entries\":[]}";

/// Gives tickets, and remembers what is published under them.
#[derive(Default)]
struct Desk {
    last: u64,
    open: Vec<u64>,
    is_full: bool,
}

impl Publisher for Desk {
    fn publish(&mut self, _: &PublishSpec) -> Result<u64, PortFailure> {
        if self.is_full {
            return Err(PortFailure::new("taken", "somebody has it"));
        }
        self.last += 1;
        self.open.push(self.last);
        Ok(self.last)
    }

    fn unpublish(&mut self, ticket: u64) -> bool {
        let before = self.open.len();
        self.open.retain(|open| *open != ticket);
        self.open.len() < before
    }
}

/// An API at a path of its own.
struct Api {
    hostfwd: HostFwd,
    desk: Desk,
    path: PathBuf,
}

impl Api {
    fn new(name: &str) -> Api {
        let path = std::env::temp_dir().join(format!("tapline-hostfwd-{}-{name}", std::process::id()));
        let hostfwd = HostFwd::listen(&path, Ipv4Addr::new(10, 0, 2, 100).into()).unwrap();
        Api { hostfwd, desk: Desk::default(), path }
    }

    /// A client that has said this, and has been heard.
    fn client(&mut self, said: &[u8]) -> UnixStream {
        let mut client = UnixStream::connect(&self.path).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        client.write_all(said).unwrap();
        self.hostfwd.hear(Ear::Listener, &mut self.desk);
        self.turn();
        client
    }

    fn turn(&mut self) {
        for ear in self.hostfwd.clients.iter().map(|client| Ear::Client(client.number)).collect::<Vec<_>>() {
            self.hostfwd.hear(ear, &mut self.desk);
        }
    }

    fn settle(&mut self, ticket: u64, publish: bool, failure: Option<PortFailure>) {
        self.hostfwd.settle(vec![Settled { ticket, publish, failure }]);
    }
}

fn answer(client: &mut UnixStream) -> String {
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    text
}

fn is_waiting(client: &mut UnixStream) -> bool {
    client.set_nonblocking(true).unwrap();
    let waits = client.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
    client.set_nonblocking(false).unwrap();
    waits
}

#[test]
fn a_port_is_answered_when_it_is_served_and_others_meanwhile() {
    let mut api = Api::new("add");
    let mut first = api.client(ADD);
    assert!(is_waiting(&mut first));
    assert_eq!(answer(&mut api.client(LIST)), EMPTY);
    api.settle(1, true, None);
    assert_eq!(answer(&mut first), "{\"return\":{\"id\":1}}");
    assert!(answer(&mut api.client(LIST)).contains("\"host_port\":8080"));
    let remove = b"{\"execute\":\"remove_hostfwd\",\"arguments\":{\"id\":1}}";
    let mut gone = api.client(remove);
    assert!(is_waiting(&mut gone));
    assert!(answer(&mut api.client(remove)).contains("bad arguments.id"));
    api.settle(1, false, None);
    assert_eq!(answer(&mut gone), "{\"return\":{}}");
    assert_eq!(answer(&mut api.client(LIST)), EMPTY);
}

#[test]
fn a_port_that_cannot_be_had_is_refused_at_once_or_when_the_gateway_does() {
    let mut api = Api::new("refused");
    let mut later = api.client(ADD);
    api.settle(1, true, Some(PortFailure::new("failed", "it is full")));
    let failed = "{\"error\":{\"desc\":\"bad request: add_hostfwd: slirp_add_hostfwd failed\"}}";
    assert_eq!(answer(&mut later), failed);
    api.desk.is_full = true;
    assert_eq!(answer(&mut api.client(ADD)), failed);
    assert_eq!(answer(&mut api.client(LIST)), EMPTY);
}

#[test]
fn one_that_says_nothing_holds_up_nobody_and_is_closed_in_time() {
    let mut api = Api::new("silent");
    let mut silent = api.client(b"");
    let mut slow = api.client(&LIST[..10]);
    assert_eq!(answer(&mut api.client(LIST)), EMPTY);
    slow.write_all(&LIST[10..]).unwrap();
    api.turn();
    assert_eq!(answer(&mut slow), EMPTY);
    assert!(is_waiting(&mut silent));
    api.hostfwd.expire(Instant::now() + SILENCE, &mut api.desk);
    assert_eq!(answer(&mut silent), "{\"error\":{\"desc\":\"bad request: cannot parse JSON\"}}");
    drop((silent, slow));
    api.turn();
    assert_eq!(api.hostfwd.deadline(), None);
}

#[test]
fn one_that_says_too_much_reads_its_answer() {
    let mut api = Api::new("much");
    let mut client = api.client(&[b'x'; 50_000]);
    assert_eq!(answer(&mut client), "{\"error\":{\"desc\":\"bad request: too large message\"}}");
    // Also when it says more than it is asked for, before or after the answer.
    let mut chatty = api.client(&[LIST, b"\n", LIST].concat());
    assert_eq!(answer(&mut chatty), EMPTY);
    chatty.write_all(b"\n").unwrap();
    drop((client, chatty));
    api.turn();
    assert_eq!(api.hostfwd.clients.len(), 0);
}

#[test]
fn a_client_that_has_half_closed_or_gone_is_no_harm() {
    let mut api = Api::new("closed");
    let mut half = UnixStream::connect(&api.path).unwrap();
    half.write_all(LIST).unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    api.hostfwd.hear(Ear::Listener, &mut api.desk);
    api.turn();
    assert_eq!(answer(&mut half), EMPTY);
    drop(api.client(ADD));
    api.settle(1, true, None);
    // It is forwarded, though nobody has heard of it.
    assert!(answer(&mut api.client(LIST)).contains("\"id\":1"));
    drop(half);
    api.turn();
    assert_eq!(api.hostfwd.clients.len(), 0);
}

#[test]
fn a_port_that_is_not_served_in_time_is_given_up() {
    let mut api = Api::new("late");
    let mut client = api.client(ADD);
    assert_eq!(api.desk.open, [1]);
    api.hostfwd.expire(Instant::now() + WORK, &mut api.desk);
    assert!(answer(&mut client).contains("slirp_add_hostfwd failed"));
    assert!(api.desk.open.is_empty());
    api.settle(1, true, None);
    assert_eq!(answer(&mut api.client(LIST)), EMPTY);
}

#[test]
fn so_many_are_served_at_a_time_and_the_next_when_one_has_gone() {
    let mut api = Api::new("many");
    let mut silent: Vec<UnixStream> = (0..MOST).map(|_| api.client(b"")).collect();
    let listens = |api: &Api| api.hostfwd.fds().any(|(ear, ..)| ear == Ear::Listener);
    assert!(!listens(&api));
    drop(silent.pop());
    api.turn();
    assert!(listens(&api));
}

#[test]
fn the_file_is_replaced_first_and_removed_at_the_end_if_it_is_still_ours() {
    let api = Api::new("file");
    let path = api.path.clone();
    let second = HostFwd::listen(&path, api.hostfwd.forwards.own()).unwrap();
    drop(api);
    assert!(path.exists());
    drop(second);
    assert!(!path.exists());
    let too_long = std::env::temp_dir().join("x".repeat(120));
    assert!(HostFwd::listen(&too_long, Ipv4Addr::LOCALHOST.into()).is_err());
    assert!(HostFwd::listen(&std::env::temp_dir(), Ipv4Addr::LOCALHOST.into()).is_err());
}
