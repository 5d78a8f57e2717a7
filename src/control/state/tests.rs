//! The state directory, with directories of the test's own.
use super::*;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory that goes away with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tapline-state-{}-{n}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&path).unwrap();
        Scratch(path)
    }

    fn dir(&self) -> StateDir {
        let runtime = self.0.join("run");
        make_private_dir(&runtime).unwrap();
        StateDir::at(Some(runtime), self.0.join("fallback"), 42).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_registered_sandbox_is_found_by_name_id_and_prefix_until_it_ends() {
    let scratch = Scratch::new();
    let dir = scratch.dir();
    let mut one = dir.register("0123456789ab", "web").unwrap();
    let _two = dir.register("01ffffffffff", "db").unwrap();
    let mut state = dir.find("web").unwrap();
    assert_eq!((state.id.as_str(), state.pid), ("0123456789ab", None));
    state.pid = Some(7);
    one.publish(&state).unwrap();
    assert_eq!(dir.find("0123456789ab").unwrap(), state);
    assert_eq!(dir.find("012").unwrap(), state);
    assert!(matches!(dir.find("01"), Err(StateError::Ambiguous { .. })));
    assert!(matches!(dir.find(""), Err(StateError::NotFound(_))));
    drop(one);
    assert!(matches!(dir.find("web"), Err(StateError::NotFound(_))));
    assert_eq!(dir.list().unwrap().len(), 1);
}

#[test]
fn a_taken_name_is_refused_with_who_has_it() {
    let scratch = Scratch::new();
    let dir = scratch.dir();
    let _held = dir.register("0123456789ab", "web").unwrap();
    let error = dir.register("ba9876543210", "web").unwrap_err().to_string();
    assert!(error.contains("`web`") && error.contains("0123456789ab") && error.contains("--name"), "{error}");
    assert!(!scratch.0.join("run/tapline/42/sandboxes/ba9876543210").exists());
}

#[test]
fn of_many_who_want_one_name_at_once_one_gets_it() {
    let scratch = Scratch::new();
    let dir = scratch.dir();
    let barrier = std::sync::Barrier::new(8);
    let won: Vec<Registration> = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..8)
            .map(|n| {
                let (dir, barrier) = (&dir, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    dir.register(&format!("00000000000{n}"), "same").ok()
                })
            })
            .collect();
        tries.into_iter().filter_map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(won.len(), 1);
    assert_eq!(dir.list().unwrap().len(), 1);
}

#[test]
fn who_only_looks_does_not_wait_for_whoever_has_the_lock() {
    let scratch = Scratch::new();
    let dir = scratch.dir();
    let web = dir.register("0123456789ab", "web").unwrap();
    let lock = dir.lock().unwrap();
    assert_eq!(dir.glance(), std::slice::from_ref(&web.last));
    assert_eq!(dir.list().unwrap(), dir.glance());
    assert_eq!(dir.find("web").unwrap(), web.last);
    drop(lock);
}

#[test]
fn the_entry_of_a_killed_supervisor_is_cleaned_by_who_meets_it() {
    let scratch = Scratch::new();
    let dir = scratch.dir();
    // Another process holds the lock, as a supervisor would; then it is killed.
    let base = scratch.0.join("run/tapline/42");
    let entry = base.join("sandboxes/aaaaaaaaaaaa");
    drop(make_entry(&entry).unwrap());
    fs::write(entry.join("lock"), "aaaaaaaaaaaa web\nnames/web\nnetworks/db/v4/10.9.0.2\n").unwrap();
    make_private_dir(&base.join("names")).unwrap();
    for claim in ["names/web", "networks/db/v4/10.9.0.2"] {
        fs::create_dir_all(base.join(claim).parent().unwrap()).unwrap();
        fs::hard_link(entry.join("lock"), base.join(claim)).unwrap();
    }
    let mut holder = Command::new("flock")
        .arg(entry.join("lock"))
        .args(["sh", "-c", "echo held; exec sleep 60"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 5];
    holder.stdout.take().unwrap().read_exact(&mut line).unwrap();
    let mut state = dir.register("bbbbbbbbbbbb", "other").map(|r| r.last.clone()).unwrap();
    (state.id, state.name) = ("aaaaaaaaaaaa".into(), "web".into());
    write_state(&entry, &state).unwrap();
    assert_eq!(dir.find("web").unwrap().id, "aaaaaaaaaaaa");
    assert!(matches!(dir.register("cccccccccccc", "web"), Err(StateError::NameTaken { .. })));

    // `sleep` inherits the lock from flock(1), so it has to go as well.
    kill_tree(holder.id());
    holder.wait().unwrap();
    let freed = (0..500).find_map(|_| {
        let freed = dir.register("cccccccccccc", "web").ok();
        if freed.is_none() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        freed
    });
    assert!(freed.is_some());
    assert!(!entry.exists());
    assert!(!base.join("networks/db/v4/10.9.0.2").exists());
}

fn kill_tree(pid: u32) {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    for child in children.split_whitespace() {
        kill_tree(child.parse().unwrap());
    }
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[test]
fn without_a_runtime_directory_the_fallback_serves_and_is_found_again() {
    let scratch = Scratch::new();
    let fallback = scratch.0.join("fallback");
    let without = StateDir::at(None, fallback.clone(), 42).unwrap();
    let _held = without.register("0123456789ab", "web").unwrap();
    assert_eq!(fs::metadata(&fallback).unwrap().mode() & 0o7777, 0o700);
    let with = scratch.dir();
    assert_eq!(with.find("web").unwrap().id, "0123456789ab");
    assert!(matches!(with.register("ba9876543210", "web"), Err(StateError::NameTaken { .. })));
}

#[test]
fn a_removed_runtime_directory_is_survived() {
    let scratch = Scratch::new();
    let dir = scratch.dir();
    let mut held = dir.register("0123456789ab", "web").unwrap();
    assert!(!held.repair().unwrap());
    fs::remove_dir_all(scratch.0.join("run")).unwrap();
    // Whoever needs the entry first makes it; that its sockets must be bound anew is told all the same.
    let state = held.last.clone();
    held.publish(&state).unwrap();
    assert!(held.repair().unwrap());
    assert!(!held.repair().unwrap());
    assert!(held.path().starts_with(scratch.0.join("fallback")), "{:?}", held.path());
    let later = StateDir::at(Some(scratch.0.join("run")), scratch.0.join("fallback"), 42).unwrap();
    assert_eq!(later.find("web").unwrap().id, "0123456789ab");
}

#[test]
fn another_namespace_sees_none_of_them() {
    let scratch = Scratch::new();
    let _held = scratch.dir().register("0123456789ab", "web").unwrap();
    let other = StateDir::at(Some(scratch.0.join("run")), scratch.0.join("fallback"), 43).unwrap();
    assert!(other.list().unwrap().is_empty());
    other.register("0123456789ab", "web").unwrap();
}

#[test]
fn a_fallback_that_somebody_prepared_is_refused() {
    let scratch = Scratch::new();
    let elsewhere = scratch.0.join("elsewhere");
    make_private_dir(&elsewhere).unwrap();
    let link = scratch.0.join("link");
    std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
    let error = StateDir::at(None, link, 42).unwrap_err().to_string();
    assert!(error.contains("symbolic link") && error.contains("XDG_RUNTIME_DIR"), "{error}");

    let open = scratch.0.join("open");
    make_private_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(StateDir::at(None, open, 42).unwrap_err().to_string().contains("0755"));

    let file = scratch.0.join("file");
    fs::write(&file, "").unwrap();
    assert!(StateDir::at(None, file, 42).unwrap_err().to_string().contains("not a directory"));
}

#[test]
fn what_another_user_prepared_is_refused() {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        // Nobody else can give us one of his.
        return;
    }
    let scratch = Scratch::new();
    let (theirs, other) = (scratch.0.join("theirs"), Some(nix::unistd::Uid::from_raw(65534)));
    make_private_dir(&theirs).unwrap();
    let link = scratch.0.join("their-link");
    std::os::unix::fs::symlink(&theirs, &link).unwrap();
    nix::unistd::fchownat(nix::fcntl::AT_FDCWD, &link, other, None, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW).unwrap();
    assert!(StateDir::at(None, link, 42).unwrap_err().to_string().contains("symbolic link"));
    nix::unistd::chown(&theirs, other, None).unwrap();
    let error = StateDir::at(None, theirs.clone(), 42).unwrap_err().to_string();
    assert!(error.contains("belongs to uid 65534"), "{error}");
    assert_eq!(fs::read_dir(&theirs).unwrap().count(), 0, "nothing is left there");
    // Nor is it looked into, when it is there beside a good one.
    let runtime = scratch.0.join("run");
    make_private_dir(&runtime).unwrap();
    let dir = StateDir::at(Some(runtime), theirs.clone(), 42).unwrap();
    fs::create_dir_all(theirs.join("42/sandboxes/0123456789ab")).unwrap();
    fs::write(theirs.join("42/sandboxes/0123456789ab/lock"), "").unwrap();
    assert_eq!(dir.existing_bases().count(), 1);
    assert!(dir.list().unwrap().is_empty());
    assert!(theirs.join("42/sandboxes/0123456789ab/lock").exists());
    // The runtime directory itself may be another's too, or its tapline.
    let dir = StateDir::at(Some(theirs), scratch.0.join("fallback"), 42).unwrap();
    assert!(dir.register("0123456789ab", "web").unwrap().path().starts_with(scratch.0.join("fallback")));
}

/// Everything below, with its mode; sockets, directories and files.
fn modes(below: &Path) -> Vec<(PathBuf, u32)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(below).unwrap().flatten() {
        let meta = fs::symlink_metadata(entry.path()).unwrap();
        all.push((entry.path(), meta.mode() & 0o7777));
        if meta.is_dir() {
            all.extend(modes(&entry.path()));
        }
    }
    all
}

#[test]
fn every_file_is_its_owners_whatever_the_umask_and_the_directory() {
    let scratch = Scratch::new();
    for name in ["runtime", "fallback"] {
        crate::sys::testing::in_child(|| {
            stat::umask(stat::Mode::empty());
            let runtime = scratch.0.join(name);
            fs::create_dir(&runtime).unwrap();
            fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).unwrap();
            // Made by something else, and open.
            let own = runtime.join("tapline");
            fs::create_dir(&own).unwrap();
            let dir = match name {
                "runtime" => {
                    fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).unwrap();
                    StateDir::at(Some(runtime.clone()), scratch.0.join("unused"), 42).unwrap()
                }
                _ => StateDir::at(None, runtime.join("other"), 42).unwrap(),
            };
            let registration = dir.register("0123456789ab", "web").unwrap();
            let _api = registration.bind_api().unwrap();
            let _control = crate::control::requests::listen(registration.path()).unwrap();
            let _gateway = dir.bind_gateway().unwrap().unwrap();
            fs::remove_dir(&own).ok();
            let all = modes(&runtime);
            for file in ["lock", "state.json", "api.sock", "control.sock", "gateway.sock", "gateway.lock", "web"] {
                if !all.iter().any(|(path, _)| path.ends_with(file)) {
                    return Err(format!("no {file} in {all:?}"));
                }
            }
            match all.iter().find(|(path, mode)| *mode != if path.is_dir() { 0o700 } else { 0o600 }) {
                Some((path, mode)) => Err(format!("{} has mode {mode:04o}", path.display())),
                None => Ok(()),
            }
        });
    }
}

#[test]
fn a_socket_is_its_owners_from_the_first_moment() {
    let scratch = Scratch::new();
    crate::sys::testing::in_child(|| {
        stat::umask(stat::Mode::empty());
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        bind_private(&socket, &File::open(&scratch.0).unwrap(), "socket").unwrap();
        match fs::metadata(scratch.0.join("socket")).unwrap().mode() & 0o7777 {
            0o600 => Ok(()),
            mode => Err(format!("{mode:04o}")),
        }
    });
}

#[test]
fn a_runtime_directory_that_is_no_directory_of_ours_is_passed_over() {
    let scratch = Scratch::new();
    let file = scratch.0.join("file");
    fs::write(&file, "").unwrap();
    for bad in [file, scratch.0.join("missing"), PathBuf::from("relative")] {
        let dir = StateDir::at(Some(bad), scratch.0.join("fallback"), 42).unwrap();
        let held = dir.register("0123456789ab", "web").unwrap();
        assert!(held.path().starts_with(scratch.0.join("fallback")));
    }
}

#[test]
fn the_api_socket_is_reached_through_a_path_of_any_length() {
    let scratch = Scratch::new();
    let mut deep = scratch.0.clone();
    for _ in 0..4 {
        deep.push("d".repeat(40));
        make_private_dir(&deep).unwrap();
    }
    let dir = StateDir::at(Some(deep), scratch.0.join("fallback"), 42).unwrap();
    let held = dir.register("0123456789ab", "web").unwrap();
    let listener = held.bind_api().unwrap();
    let mut client = dir.connect_api("0123456789ab").unwrap();
    let (mut server, _) = listener.accept().unwrap();
    client.write_all(b"x").unwrap();
    let mut byte = [0];
    server.read_exact(&mut byte).unwrap();
    assert_eq!(fs::metadata(held.path().join("api.sock")).unwrap().mode() & 0o777, 0o600);
    held.bind_api().unwrap();
}

#[test]
fn a_name_is_the_same_whatever_the_case_of_its_letters() {
    let scratch = Scratch::new();
    let dir = scratch.dir();
    let _held = dir.register("0123456789ab", "Web").unwrap();
    assert!(matches!(dir.register("ba9876543210", "web"), Err(StateError::NameTaken { .. })));
    assert_eq!(dir.find("WEB").unwrap().name, "Web");
    for odd in ["../0123456789ab", "names/web", ".", "0123456789ab/"] {
        assert!(matches!(dir.find(odd), Err(StateError::NotFound(_))), "{odd}");
    }
}

#[test]
fn a_claim_is_had_by_one_until_it_is_given_up_or_ends_with_its_sandbox() {
    let scratch = Scratch::new();
    let dir = scratch.dir();
    let mut web = dir.register("0123456789ab", "web").unwrap();
    let mut db = dir.register("ba9876543210", "db").unwrap();
    let claim = |who: &mut Registration| {
        let locked = who.lock().unwrap();
        who.claim(&locked, "networks/n/v4/10.9.0.2").unwrap()
    };
    assert_eq!(claim(&mut web), None);
    assert_eq!(claim(&mut web), None);
    assert_eq!(claim(&mut db), Some(web.holder()));
    assert_eq!(dir.holders_everywhere("networks/n/v4"), [web.holder()]);
    let locked = web.lock().unwrap();
    assert_eq!(locked.living("networks/n/v4").unwrap(), ["10.9.0.2"]);
    assert_eq!(locked.living("networks/other/v4").unwrap(), [""; 0]);
    web.give_up(&locked, "networks/n").unwrap();
    drop(locked);
    assert!(!web.repair().unwrap());
    assert_eq!(claim(&mut db), None);
    assert_eq!(claim(&mut web), Some(db.holder()));
    drop(db);
    assert_eq!(claim(&mut web), None);
    assert_eq!(dir.find("web").unwrap().id, "0123456789ab");
    drop(web);
    assert!(!scratch.0.join("run/tapline/42/names/web").exists());
    assert!(!scratch.0.join("run/tapline/42/networks/n/v4/10.9.0.2").exists());
}

#[test]
fn claims_are_made_again_when_they_were_removed() {
    let scratch = Scratch::new();
    let dir = scratch.dir();
    let mut held = dir.register("0123456789ab", "web").unwrap();
    let locked = held.lock().unwrap();
    assert_eq!(held.claim(&locked, "networks/n/v4/10.9.0.2").unwrap(), None);
    drop(locked);

    // The claims alone: the entry stays, and so do the sockets in it.
    fs::remove_dir_all(scratch.0.join("run/tapline/42/networks")).unwrap();
    assert!(!held.repair().unwrap());
    assert_eq!(dir.holders_everywhere("networks/n/v4"), [held.holder()]);

    // All of it, and somebody took the address in the meantime.
    fs::remove_dir_all(scratch.0.join("run/tapline")).unwrap();
    let mut other = dir.register("ba9876543210", "other").unwrap();
    let locked = other.lock().unwrap();
    assert_eq!(other.claim(&locked, "networks/n/v4/10.9.0.2").unwrap(), None);
    drop(locked);
    assert!(held.repair().unwrap());
    assert!(!held.repair().unwrap());
    assert_eq!(dir.find("web").unwrap().id, "0123456789ab");
    assert_eq!(dir.holders_everywhere("networks/n/v4"), [other.holder()]);
}

#[test]
fn leftovers_do_not_pile_up_where_nobody_lists() {
    let scratch = Scratch::new();
    let dir = scratch.dir();
    for n in 0..6 {
        let entry = scratch.0.join(format!("run/tapline/42/sandboxes/dead0000000{n}"));
        drop(make_entry(&entry).unwrap());
    }
    let _held = dir.register("0123456789ab", "web").unwrap();
    assert_eq!(fs::read_dir(scratch.0.join("run/tapline/42/sandboxes")).unwrap().count(), 1);
}

#[test]
fn a_supervisors_socket_is_reached_and_does_not_make_a_client_wait_for_ever() {
    let scratch = Scratch::new();
    let dir = scratch.dir();
    let held = dir.register("0123456789ab", "web").unwrap();
    let patience = std::time::Duration::from_millis(20);
    let error = dir.connect_control("0123456789ab", patience).unwrap_err().to_string();
    assert!(error.contains("control.sock"), "{error}");
    let listener = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    listener.bind(&SockAddr::unix(held.path().join("control.sock")).unwrap()).unwrap();
    listener.listen(1).unwrap();
    let client = dir.connect_control("0123456789ab", patience).unwrap();
    let error = crate::sys::scm::recv(&client, &mut [0; 8]).unwrap_err();
    assert!(error.is_would_block(), "{error}");
}

#[test]
fn claims_that_cannot_be_made_again_yet_are_made_the_next_time() {
    let scratch = Scratch::new();
    let dir = scratch.dir();
    let mut web = dir.register("0123456789ab", "web").unwrap();
    let locked = web.lock().unwrap();
    for claim in ["networks/db/v4/10.9.0.2", "networks/db/mac/02:42:0a:09:00:02"] {
        assert_eq!(web.claim(&locked, claim).unwrap(), None);
    }
    drop(locked);
    let base = scratch.0.join("run/tapline/42");
    fs::remove_dir_all(base.join("networks")).unwrap();
    // Something is in the way, as when somebody removes what is just being made.
    fs::write(base.join("networks"), "").unwrap();
    assert!(web.repair().is_err());
    fs::remove_file(base.join("networks")).unwrap();
    web.repair().unwrap();
    for claim in ["names/web", "networks/db/v4/10.9.0.2", "networks/db/mac/02:42:0a:09:00:02"] {
        assert!(claims::is_same_file(&base.join(claim), &web.lock), "{claim}");
    }
}

#[test]
fn who_comes_when_everything_was_just_removed_waits_for_those_who_live() {
    let scratch = Scratch::new();
    let dir = scratch.dir();
    let sign = || fs::read_dir(scratch.0.join("fallback")).map(|all| all.count()).unwrap_or(0);
    let mut web = dir.register("0123456789ab", "web").unwrap();
    let living = (dir.show_life().unwrap(), dir.show_life().unwrap());
    assert_eq!(sign(), 1);
    fs::remove_dir_all(scratch.0.join("run/tapline")).unwrap();
    let taken = std::thread::scope(|scope| {
        let other = scope.spawn(|| dir.register("ba9876543210", "web").map(drop).unwrap_err());
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(!other.is_finished(), "nobody waits");
        assert!(web.repair().unwrap());
        fs::write(scratch.0.join("run/tapline/42/gateway.sock"), "").unwrap();
        other.join().unwrap()
    });
    assert!(matches!(taken, StateError::NameTaken { .. }), "{taken}");
    // Where nobody lives nobody is waited for.
    fs::remove_file(scratch.0.join("run/tapline/42/gateway.sock")).unwrap();
    drop(living);
    assert_eq!(sign(), 0);
    let begun = std::time::Instant::now();
    drop(dir.register("ba9876543210", "other").unwrap());
    assert!(begun.elapsed() < std::time::Duration::from_secs(1));
}

#[test]
fn the_directory_in_tmp_is_that_of_the_user_outside() {
    for (map, uid, outside) in [
        ("         0          0 4294967295\n", 1001, 1001),
        ("0 1001 1\n1 100000 65536\n", 0, 1001),
        ("0 1001 1\n1 100000 65536\n", 7, 100006),
        ("0 1001 1\n", 5, 5),
        ("", 5, 5),
    ] {
        assert_eq!(outer_uid(map, uid), outside, "{map}");
    }
}
